//! The spin lock of the guest's own short critical sections.
//!
//! Nothing is switched out while it holds one: a fiber never yields inside, and there are no interrupts. Sections under a
//! lock are bounded. They may touch heap memory that is only promised: the page-fault path takes no lock. A vCPU that the
//! host stops inside a section holds up whoever wants the same lock; making these paths lock-free is the work of the
//! elastic-CPU issue.

use crate::vcpu;
use core::sync::atomic::{AtomicBool, Ordering};

/// Raw lock for `lock_api`.
pub struct RawSpin(AtomicBool);

// SAFETY: lock and unlock are an acquire-release pair on one flag that only one holder can set.
unsafe impl lock_api::RawMutex for RawSpin {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: RawSpin = RawSpin(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        while !self.try_lock() {
            while self.0.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        }
    }

    fn try_lock(&self) -> bool {
        let taken = !self.0.swap(true, Ordering::Acquire);
        if taken {
            vcpu::count_lock(1);
        }
        taken
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
        vcpu::count_lock(-1);
    }
}

/// A value behind a spin lock.
pub type SpinLock<T> = lock_api::Mutex<RawSpin, T>;
