//! Linear memories: reservations of addresses that grow in place.
//!
//! A freed reservation keeps the first pages of its memory, if that was small: a new memory of the same kind then takes
//! zeroing, but no change of a page table and no flush, which is what makes an instance take microseconds. What a new
//! memory may not touch is taken away before wasmtime sees it.

use crate::areas;
use crate::memory;
use crate::translations;
use alloc::boxed::Box;
use alloc::string::String;
use nacre_abi::layout::MEMORY_MAX_BYTES;
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::GuestVirt;
use nacre_mm::address_space::PageRange;
use nacre_mm::entry::Perms;
use nacre_mm::slots::Bag;
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

/// A freed memory keeps its pages if it started with at most this many bytes.
const KEEP_BYTES: u64 = 1 << 20;

/// Freed reservations of 32-bit memories that keep pages: their start, a multiple of a large page, plus the number of pages
/// from it on that are still accessible, with old content.
static FREED: Bag<64> = Bag::new();

const _: () = assert!(KEEP_BYTES / PAGE_BYTES < LARGE_PAGE_BYTES, "start and pages share a word");

/// Makes linear memories for wasmtime.
pub struct Creator;

// SAFETY: each memory has a reservation of its own, of which exactly its current size is accessible and zeroed at first;
// the rest of the reservation, guard included, is unmapped.
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        kind: MemoryType,
        minimum: usize,
        _: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        // A 64-bit memory gets room for all the memory a CVM can have, so it never moves either.
        let capacity = match reserved {
            Some(bytes) if !kind.is_64() => bytes as u64,
            _ => MEMORY_MAX_BYTES,
        };
        let out_of_memory =
            || String::from("out of memory: the CVM has not as much left; give it more with --memory");
        if minimum as u64 > capacity {
            return Err(out_of_memory());
        }
        let bytes = capacity.checked_add(guard as u64).ok_or_else(out_of_memory)?;
        let freed = if areas::is_memory32(bytes) { FREED.take(|_| true) } else { None };
        let (start, kept_bytes) = match freed {
            Some(freed) => unpack(freed),
            None => (areas::reserve(bytes).map_err(|_| out_of_memory())?, 0),
        };
        // Its addresses may have been unmapped by another vCPU since this one last flushed.
        translations::catch_up();
        let mut created = Reservation {
            start,
            bytes,
            capacity,
            size: 0,
            accessible: kept_bytes,
            initial: page_up(minimum as u64),
        };
        created.wipe();
        created.grow_to(minimum).map_err(|_| out_of_memory())?;
        Ok(Box::new(created))
    }
}

/// One linear memory.
struct Reservation {
    start: u64,
    /// Length of the reservation, guard included.
    bytes: u64,
    capacity: u64,
    /// Size of the memory.
    size: u64,
    /// What is mapped: the size in whole pages, and between two uses what is kept.
    accessible: u64,
    /// Size at the start, in whole pages.
    initial: u64,
}

fn unpack(freed: u64) -> (u64, u64) {
    (freed / LARGE_PAGE_BYTES * LARGE_PAGE_BYTES, freed % LARGE_PAGE_BYTES * PAGE_BYTES)
}

fn page_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_BYTES)
}

impl Reservation {
    fn range(&self, from: u64, to: u64) -> PageRange {
        // Both are whole pages inside the reservation.
        PageRange::new(GuestVirt(self.start + from), to - from)
            .unwrap_or_else(|| unreachable!("bounds of a memory"))
    }

    /// Takes everything from `bytes` on away, or all if a page table is missing for that.
    fn shrink_to(&mut self, bytes: u64) {
        if memory::unmap(self.range(bytes, self.accessible)) {
            self.accessible = bytes;
        } else {
            // Whole large pages need no page table; the reservation begins with one and ends with a guard.
            let end = self.accessible.next_multiple_of(LARGE_PAGE_BYTES);
            let all = memory::unmap(self.range(0, end));
            debug_assert!(all);
            self.accessible = 0;
        }
    }

    /// Takes the old content away: beyond the initial size with its pages, before it by zeros.
    fn wipe(&mut self) {
        if self.accessible > self.initial {
            self.shrink_to(self.initial);
        }
        memory::zero_present(self.range(0, self.accessible));
    }
}

// SAFETY: see `Creator`.
unsafe impl LinearMemory for Reservation {
    fn byte_size(&self) -> usize {
        self.size as usize
    }

    fn byte_capacity(&self) -> usize {
        self.capacity as usize
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        let wanted = page_up(new_size as u64);
        if wanted > self.capacity {
            return Err(wasmtime::Error::msg("linear memory is at its capacity"));
        }
        if wanted > self.accessible {
            let from = self.accessible;
            // Noted first: if memory runs out in the middle, the drop finds what was mapped.
            self.accessible = wanted;
            areas::protect(self.start + from, wanted - from, Some(Perms::ReadWrite)).map_err(|_| {
                // What was promised before memory ran out; the content up to `from` must stay. If this fails too, more is
                // accessible than the program knows, which only the drop can mend.
                if memory::unmap(self.range(from, wanted)) {
                    self.accessible = from;
                }
                wasmtime::Error::msg("out of memory")
            })?;
        }
        self.size = new_size as u64;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.start as *mut u8
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let keeps = self.initial <= KEEP_BYTES && areas::is_memory32(self.bytes);
        let kept_bytes = if keeps { self.initial.min(self.accessible) } else { 0 };
        if self.accessible > kept_bytes {
            self.shrink_to(kept_bytes);
        }
        if self.accessible != 0 && FREED.put(self.start + self.accessible / PAGE_BYTES).is_ok() {
            return;
        }
        self.shrink_to(0);
        areas::release(self.start);
    }
}

/// Unmaps what freed reservations keep, because memory is short; false if they kept nothing.
pub fn give_up_kept() -> bool {
    let mut any = false;
    while let Some((start, kept_bytes)) = FREED.take(|_| true).map(unpack) {
        areas::unmap(start, kept_bytes);
        any = true;
    }
    any
}
