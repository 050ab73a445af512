//! [`NormalCell`]: what only vCPU 0 uses.

use crate::vcpu;
use core::cell::RefCell;
use nacre_abi::VcpuId;

/// A value of the tenant arena that only vCPU 0 touches, so that it needs no lock.
pub struct NormalCell<T>(RefCell<T>);

// SAFETY: `with` lets only vCPU 0 in, which runs one thing at a time and is not interrupted.
unsafe impl<T: Send> Sync for NormalCell<T> {}

impl<T> NormalCell<T> {
    /// A cell.
    pub const fn new(value: T) -> NormalCell<T> {
        NormalCell(RefCell::new(value))
    }

    /// Uses the value. `act` must not switch: it counts as a lock.
    ///
    /// # Panics
    /// On a Worker vCPU, or inside another use.
    pub fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> R {
        assert_eq!(vcpu::id(), VcpuId::NORMAL, "only vCPU 0 may use this");
        let mut value = self.0.borrow_mut();
        vcpu::count_lock(1);
        let result = act(&mut value);
        vcpu::count_lock(-1);
        result
    }
}
