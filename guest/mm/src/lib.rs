//! Memory management of the guest, without the machine: what is here is a pure function of atomics in memory that the
//! caller provides, and runs in host tests as it runs in a CVM.
//!
//! * [`frames`]: which frames are free, in units of 2 MiB and 4 KiB, and how many are promised.
//! * [`entry`]: the format of a page-table entry, present or not.
//! * [`address_space`]: the one interface through which the guest changes its mappings.
//! * [`page_tables`]: its implementation for x86-64 page tables edited from ring 3; what live migration needs of them.
//! * [`heap`]: the tenant heap's allocator. [`place`]: places of a table. [`slots`]: ranges of addresses by size, and bags of what is kept.
//!
//! Nothing here takes a lock: a vCPU may be stopped by the host between any two instructions for any time, and the
//! others must go on. Nothing here allocates either: the agent arena must work when the tenant has used everything.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod address_space;
pub mod entry;
pub mod frames;
pub mod heap;
pub mod page_tables;
pub mod place;
pub mod slots;
#[cfg(test)]
mod stepping;
mod sync;
pub mod translations;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPhys(pub u64);

/// A guest-virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestVirt(pub u64);
