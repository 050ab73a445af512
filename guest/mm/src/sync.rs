//! The atomic word of this crate's allocators: `core`'s in the guest; in the crate's own tests one that may stop its
//! thread before any access, as a host may stop a vCPU (`crate::stepping`).

#[cfg(not(test))]
pub use core::sync::atomic::AtomicU64;
pub use core::sync::atomic::Ordering;

#[cfg(test)]
pub use crate::stepping::AtomicU64;
