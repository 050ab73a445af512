//! The tenant heap: the global allocator. Everything allocated with `alloc` belongs to the tenant arena.

use crate::memory::{self, Promise};
use crate::sync::RawSpin;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use nacre_abi::LARGE_PAGE_BYTES;
use nacre_abi::layout::{AREAS_VA, HEAP_VA};
use nacre_mm::GuestVirt;
use nacre_mm::address_space::PageRange;
use nacre_mm::entry::Perms;
use talc::TalcLock;
use talc::source::Manual;

#[global_allocator]
static HEAP: Heap = Heap {
    talc: TalcLock::new(Manual),
    end: lock_api::Mutex::new(Extent { talc_end: None, mapped_end: HEAP_VA }),
};

/// Allocations from this size on fail before they would use up the reserve that small ones need to report an error.
const LARGE_ALLOCATION: usize = 32 << 10;

struct Heap {
    talc: TalcLock<RawSpin, Manual>,
    end: lock_api::Mutex<RawSpin, Extent>,
}

struct Extent {
    /// Where talc's heap ends, as it said.
    talc_end: Option<u64>,
    /// First address behind the heap.
    mapped_end: u64,
}

// SAFETY: it hands on to talc, which fulfils the contract; memory is only ever added to it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        loop {
            let extent = self.end.lock().mapped_end;
            // SAFETY: the caller's promise about `layout`.
            let block = unsafe { self.talc.alloc(layout) };
            if !block.is_null() || !self.grow(layout, extent) {
                return block;
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.talc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let moved = unsafe { self.talc.realloc(block, layout, new_size) };
        if !moved.is_null() {
            return moved;
        }
        // SAFETY: the caller promises that `new_size` is not too large for the alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: a new block of `new_size` bytes, then the copy of the common part, as the contract says.
        unsafe {
            let moved = self.alloc(new_layout);
            if !moved.is_null() {
                core::ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

impl Heap {
    /// Adds memory for `layout`; false if there is none. `seen_end` is the end before the failed attempt: if another vCPU
    /// added some since, nothing needs to be done.
    fn grow(&self, layout: Layout, seen_end: u64) -> bool {
        let mut extent = self.end.lock();
        if extent.mapped_end != seen_end {
            return true;
        }
        let wanted = (layout.size() + layout.align()) as u64 + 4096;
        let Some(bytes) = wanted.checked_next_multiple_of(LARGE_PAGE_BYTES) else { return false };
        let start = extent.mapped_end;
        if bytes > AREAS_VA - start {
            return false;
        }
        let promise = if layout.size() >= LARGE_ALLOCATION { Promise::Tenant } else { Promise::Heap };
        let Some(range) = PageRange::new(GuestVirt(start), bytes) else { return false };
        if memory::map(range, Perms::ReadWrite, promise).is_err() {
            return false;
        }
        let new_end = (start + bytes) as *mut u8;
        let mut talc = self.talc.lock();
        // SAFETY: the range is mapped, readable, writable, nobody's, and directly behind what talc has.
        let talc_end = unsafe {
            match extent.talc_end.and_then(|end| NonNull::new(end as *mut u8)) {
                None => talc.claim(start as *mut u8, bytes as usize),
                Some(end) => Some(talc.extend(end, new_end)),
            }
        };
        extent.talc_end = talc_end.map(|end| end.as_ptr() as u64);
        extent.mapped_end = start + bytes;
        extent.talc_end.is_some()
    }
}

/// First address behind the heap.
#[cfg(feature = "debug-image")]
pub fn end() -> u64 {
    HEAP.end.lock().mapped_end
}
