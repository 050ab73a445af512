//! The interface through which the guest changes its mappings, whatever implements it: page tables edited from ring 3
//! on a KVM, or calls to the host where there are none (the process backend).

use crate::GuestVirt;
use crate::entry::{Access, Leaf, Perms, Size};
use nacre_abi::PAGE_BYTES;

/// A range of whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    start: u64,
    bytes: u64,
}

impl PageRange {
    /// The pages that `bytes` bytes from `start` on touch; `None` if `start` is not page-aligned or the end overflows.
    pub fn new(start: GuestVirt, bytes: u64) -> Option<PageRange> {
        let bytes = bytes.checked_next_multiple_of(PAGE_BYTES)?;
        (start.0.is_multiple_of(PAGE_BYTES) && start.0.checked_add(bytes).is_some())
            .then_some(PageRange { start: start.0, bytes })
    }

    /// First address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// First address behind the range.
    pub fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Why a mapping can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The frames are all promised or in use.
    OutOfMemory,
    /// The pool of page-table pages is empty.
    OutOfTables,
}

/// Stale translations may be cached: flush before the old ones may be relied on to be gone.
#[must_use = "a forgotten flush leaves stale translations"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing was taken away.
    NotNeeded,
    /// Some mapping lost permissions, its frame, or its size.
    Needed,
}

impl Flush {
    /// Needed if either is.
    pub fn or(self, other: Flush) -> Flush {
        if self == Flush::Needed { self } else { other }
    }
}

/// What [`AddressSpace::unmap`] did.
#[must_use = "a forgotten flush leaves stale translations"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// Whether to flush.
    pub flush: Flush,
    /// False if a part of a large page could not be taken away for want of a page table: that page is still mapped
    /// whole. A range of whole large pages never needs one. (What is missing can be taken away, but not hidden.)
    pub complete: bool,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The address is mapped now, or may be at the next try.
    Resolved,
    /// The mapping allows this access already: a stale translation, or an exception that never happened.
    Spurious,
    /// The access is not allowed here.
    Violation,
    /// It is allowed, but the content is elsewhere: who accesses it waits until it has arrived.
    Missing,
    /// It is allowed, but there is no frame (the promise was broken by fragmentation or the reserve is gone).
    OutOfMemory,
}

/// One contiguous mapping of one page, as [`AddressSpace::scan`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: GuestVirt,
    /// Page size.
    pub size: Size,
    /// State; never [`Leaf::Absent`].
    pub leaf: Leaf,
}

/// An address space. Different ranges may be changed by different vCPUs at the same time; one range has one owner at a
/// time, except that [`fault`](Self::fault) and [`populate`](Self::populate) may run anywhere at any time.
pub trait AddressSpace {
    /// Makes the range usable with `perms`. What was absent becomes promised (committed, zero when first touched); what
    /// was there keeps its content.
    ///
    /// # Errors
    /// [`MapError`]; the range is then as it was, or partly changed in permissions only.
    fn map(&self, range: PageRange, perms: Perms) -> Result<Flush, MapError>;

    /// Makes the range absent and frees its frames.
    fn unmap(&self, range: PageRange) -> Unmapped;

    /// Gives frames to all promised pages of the range now.
    ///
    /// # Errors
    /// [`MapError`] when frames run out; some pages may have got theirs.
    fn populate(&self, range: PageRange) -> Result<(), MapError>;

    /// Reacts to a faulting access. Believes only the mappings themselves.
    fn fault(&self, address: GuestVirt, access: Access) -> Fault;

    /// Shows every page of the range that is not absent, in order of addresses.
    fn scan(&self, range: PageRange, visit: &mut dyn FnMut(Mapping));
}
