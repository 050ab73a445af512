//! The spin lock of the guest's own short critical sections.
//!
//! Nothing is switched out while it holds one: a fiber never yields inside, and there are no interrupts. Sections under a
//! lock are bounded and touch memory that is mapped.

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
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A value behind a spin lock.
pub type SpinLock<T> = lock_api::Mutex<RawSpin, T>;
