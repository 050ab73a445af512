//! Atomics: `core`'s in the guest, loom's under `cfg(loom)`, under `cfg(stepped)` ones that let a test stop their thread at
//! each (see `nacre_abi::sync`). Nothing else in this crate names either.
//!
//! Loom treats sequentially consistent *accesses* as acquire-release but models `fence(SeqCst)` exactly, so every
//! place that needs store-load ordering uses a fence.

#[cfg(not(any(loom, stepped)))]
pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
#[cfg(stepped)]
pub use nacre_abi::sync::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};

/// A value with 128 bytes (two x86 cache lines, which the prefetcher fetches in pairs) to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CachePadded<T>(pub T);

impl<T> core::ops::Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
