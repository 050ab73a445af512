//! The tenant heap: the global allocator. Everything allocated with `alloc` belongs to the tenant arena.
//!
//! What is decided, and why no vCPU ever waits for another, is in [`nacre_mm::heap`]; here is its memory. The allocator's
//! state is a tenant static and chunk headers in the heap itself, so it moves with the tenant arena.

use crate::memory::{self, Promise};
use crate::translations;
use crate::vcpu;
use core::alloc::{GlobalAlloc, Layout};
use nacre_abi::layout::{AREAS_VA, HEAP_VA};
use nacre_mm::GuestVirt;
use nacre_mm::address_space::PageRange;
use nacre_mm::entry::Perms;
use nacre_mm::heap::{CHUNK_BYTES, END_OFFSET, Header, Heap, HeapMemory};

#[global_allocator]
static HEAP: Global = Global(Heap::new());

const _: () = assert!(END_OFFSET <= AREAS_VA - HEAP_VA, "the heap's addresses reach the areas");

struct Global(Heap);

/// The heap's memory: addresses from [`HEAP_VA`] on.
struct Pages;

fn range(offset: u64, bytes: u64) -> PageRange {
    // Inside the heap's addresses, and whole pages.
    PageRange::new(GuestVirt(HEAP_VA + offset), bytes).unwrap_or_else(|| unreachable!("bounds of the heap"))
}

impl HeapMemory for Pages {
    fn header(&self, chunk: usize) -> &Header {
        // SAFETY: the allocator asks for the headers of mapped chunks only; these stay mapped, nobody else uses that part
        // of them, and a header is nothing but atomic words, for which zeros are a valid start.
        unsafe { &*((HEAP_VA + chunk as u64 * CHUNK_BYTES) as *const Header) }
    }

    fn map(&self, offset: u64, bytes: u64, reserve: bool) -> bool {
        let promise = if reserve { Promise::Heap } else { Promise::Tenant };
        memory::map(range(offset, bytes), Perms::ReadWrite, promise).is_ok()
    }

    fn unmap(&self, offset: u64, bytes: u64) -> u64 {
        // Whole large pages: never incomplete.
        let complete = memory::unmap(range(offset, bytes));
        debug_assert!(complete);
        translations::generation()
    }

    fn settled(&self) -> u64 {
        translations::settled()
    }

    fn spread(&self) -> usize {
        vcpu::id().index()
    }
}

/// Shows the start and length of everything that may be mapped.
#[cfg(feature = "debug-image")]
pub fn for_each(visit: &mut dyn FnMut(u64, u64)) {
    HEAP.0.for_each_range(&mut |offset, bytes| visit(HEAP_VA + offset, bytes));
}

/// Called when the heap came from another CVM: no vCPU of this one knows an address of it.
pub fn arrived() {
    HEAP.0.settle();
}

/// Largest blocks that may hold a key: contents of files have larger ones.
const WIPED_BYTES: u32 = 32 << 10;

/// Overwrites all small blocks with zeros, in use or not. The heap is of no use afterwards, and nobody uses it ever again: the tenant
/// lives elsewhere.
pub fn wipe_small() {
    HEAP.0.for_each_slab(&Pages, WIPED_BYTES, &mut |offset, bytes| {
        if let Some(range) = PageRange::new(GuestVirt(HEAP_VA + offset), bytes) {
            memory::wipe(range);
        }
    });
}

fn block_at(offset: u64) -> *mut u8 {
    (HEAP_VA + offset) as *mut u8
}

fn offset_of(block: *mut u8) -> u64 {
    block as u64 - HEAP_VA
}

// SAFETY: blocks are disjoint, aligned, mapped and of at least the size asked for, as `nacre_mm::heap` shows by its tests.
unsafe impl GlobalAlloc for Global {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.0.alloc(&Pages, layout.size() as u64, layout.align() as u64) {
            Some(block) => block_at(block.offset),
            None => core::ptr::null_mut(),
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(block) = self.0.alloc(&Pages, layout.size() as u64, layout.align() as u64) else {
            return core::ptr::null_mut();
        };
        let start = block_at(block.offset);
        if !block.zeroed {
            // SAFETY: a new block of that many bytes.
            unsafe { core::ptr::write_bytes(start, 0, layout.size()) }
        }
        start
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.0.free(&Pages, offset_of(block), layout.size() as u64, layout.align() as u64);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (size, align) = (layout.size() as u64, layout.align() as u64);
        if self.0.resize(&Pages, offset_of(block), size, align, new_size as u64) {
            return block;
        }
        // SAFETY: the caller promises that `new_size` is not too large for the alignment; then a new block of `new_size`
        // bytes and the copy of the common part, as the contract says.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !moved.is_null() {
                core::ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}
