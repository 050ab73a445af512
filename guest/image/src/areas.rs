//! Areas of the tenant arena: ranges of addresses for linear memories, code and stacks.
//!
//! Freed addresses are reused by length. A reservation for a linear memory keeps a little of what was mapped: creating
//! the next instance then changes no page table and flushes nothing, which is what makes it take microseconds.

use crate::memory::{self, Promise};
use crate::sync::SpinLock;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use nacre_abi::layout::{AREAS_VA, TENANT_VA_END};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::GuestVirt;
use nacre_mm::address_space::{MapError, PageRange};
use nacre_mm::entry::Perms;

/// Areas from this size on are reservations of linear memories.
const RESERVATION_BYTES: u64 = 1 << 30;
/// Mapped bytes that a freed reservation keeps at most.
const KEEP_BYTES: u64 = 1 << 20;
/// Freed reservations that keep something at most.
const KEEP_COUNT: usize = 64;
/// Unmapped addresses between two areas.
const GAP_BYTES: u64 = LARGE_PAGE_BYTES;

static AREAS: SpinLock<Areas> = SpinLock::new(Areas::new());

struct Areas {
    next: u64,
    /// Free areas by length.
    free: BTreeMap<u64, Vec<FreeArea>>,
    /// Reservations in use, by address.
    reservations: BTreeMap<u64, Reservation>,
    kept: usize,
}

struct FreeArea {
    start: u64,
    /// Bytes from the start that are still mapped, with old content.
    kept_bytes: u64,
}

#[derive(Clone, Copy)]
struct Reservation {
    bytes: u64,
    /// Old content from the start, before the first use.
    kept_bytes: u64,
    /// What the first [`protect`] made accessible.
    initial_bytes: u64,
    /// End of what is accessible.
    accessible_bytes: u64,
}

impl Areas {
    const fn new() -> Areas {
        Areas { next: AREAS_VA, free: BTreeMap::new(), reservations: BTreeMap::new(), kept: 0 }
    }

    fn take(&mut self, bytes: u64) -> Option<FreeArea> {
        if let Some(area) = self.free.get_mut(&bytes).and_then(Vec::pop) {
            self.kept -= usize::from(area.kept_bytes != 0);
            return Some(area);
        }
        let start = self.next;
        self.next = start.checked_add(bytes)?.checked_add(GAP_BYTES).filter(|end| *end <= TENANT_VA_END)?;
        Some(FreeArea { start, kept_bytes: 0 })
    }

    /// The reservation that holds `address`.
    fn reservation(&mut self, address: u64) -> Option<(u64, &mut Reservation)> {
        let (start, reservation) = self.reservations.range_mut(..=address).next_back()?;
        (address < start + reservation.bytes).then_some((*start, reservation))
    }
}

fn range(start: u64, bytes: u64) -> PageRange {
    // Areas start at multiples of a large page and never overflow.
    PageRange::new(GuestVirt(start), bytes).unwrap_or_else(|| unreachable!("area bounds"))
}

/// Reserves `bytes` of addresses; usable at once if `perms` are given.
///
/// # Errors
/// [`MapError`] if memory, or addresses, run out.
pub fn map(bytes: u64, perms: Option<Perms>) -> Result<u64, MapError> {
    let bytes = bytes.checked_next_multiple_of(LARGE_PAGE_BYTES).ok_or(MapError::OutOfMemory)?;
    let is_reservation = bytes >= RESERVATION_BYTES && perms.is_none();
    let area = {
        let mut areas = AREAS.lock();
        let area = areas.take(bytes).ok_or(MapError::OutOfMemory)?;
        if is_reservation {
            let reservation =
                Reservation { bytes, kept_bytes: area.kept_bytes, initial_bytes: 0, accessible_bytes: 0 };
            areas.reservations.insert(area.start, reservation);
        }
        area
    };
    // The addresses may have been unmapped by another vCPU since this one last flushed.
    memory::catch_up();
    if let Some(perms) = perms {
        if let Err(error) = map_or_reclaim(range(area.start, bytes), perms) {
            release(area.start, bytes, 0);
            return Err(error);
        }
    }
    Ok(area.start)
}

/// Changes what is allowed in a part of an area; `None` takes it away.
///
/// # Errors
/// [`MapError`] if memory runs out.
pub fn protect(start: u64, bytes: u64, perms: Option<Perms>) -> Result<(), MapError> {
    let part = PageRange::new(GuestVirt(start), bytes).ok_or(MapError::OutOfMemory)?;
    let Some(perms) = perms else {
        memory::unmap(part);
        return Ok(());
    };
    let kept_bytes = AREAS.lock().reservation(start).map_or(0, |(_, reservation)| reservation.kept_bytes);
    if kept_bytes != 0 {
        // First use of a reused reservation: old content is wiped, what would be accessible beyond the new size goes.
        let reused = kept_bytes.min(part.bytes());
        memory::zero_present(range(part.start(), reused));
        if kept_bytes > reused {
            memory::unmap(range(part.start() + reused, kept_bytes - reused));
        }
    }
    map_or_reclaim(part, perms)?;
    if let Some((base, reservation)) = AREAS.lock().reservation(start) {
        reservation.kept_bytes = 0;
        if start == base && reservation.initial_bytes == 0 {
            reservation.initial_bytes = part.bytes();
        }
        reservation.accessible_bytes = reservation.accessible_bytes.max(part.end() - base);
    }
    Ok(())
}

/// Frees an area that [`map`] returned.
pub fn unmap(start: u64, bytes: u64) {
    let bytes = bytes.next_multiple_of(LARGE_PAGE_BYTES);
    let reservation = AREAS.lock().reservations.remove(&start);
    let Some(reservation) = reservation else {
        memory::unmap(range(start, bytes));
        return release(start, bytes, 0);
    };
    let accessible = reservation.accessible_bytes.max(reservation.kept_bytes);
    let keep = if AREAS.lock().kept < KEEP_COUNT && reservation.initial_bytes <= KEEP_BYTES {
        reservation.initial_bytes.max(reservation.kept_bytes).min(KEEP_BYTES)
    } else {
        0
    };
    if accessible > keep {
        memory::unmap(range(start + keep, accessible - keep));
    }
    release(start, reservation.bytes, keep);
}

fn release(start: u64, bytes: u64, kept_bytes: u64) {
    let mut areas = AREAS.lock();
    areas.kept += usize::from(kept_bytes != 0);
    areas.free.entry(bytes).or_default().push(FreeArea { start, kept_bytes });
}

/// Maps; when memory runs out, gives up what freed reservations keep and tries once more.
fn map_or_reclaim(part: PageRange, perms: Perms) -> Result<(), MapError> {
    match memory::map(part, perms, Promise::Tenant) {
        Err(MapError::OutOfMemory) if drop_kept() => memory::map(part, perms, Promise::Tenant),
        other => other,
    }
}

/// Unmaps what freed reservations keep; false if they kept nothing.
fn drop_kept() -> bool {
    let mut areas = AREAS.lock();
    let mut dropped = false;
    for area in areas.free.values_mut().flatten() {
        if area.kept_bytes != 0 {
            memory::unmap(range(area.start, area.kept_bytes));
            area.kept_bytes = 0;
            dropped = true;
        }
    }
    areas.kept = 0;
    dropped
}

/// First address behind all areas.
#[cfg(feature = "debug-image")]
pub fn end() -> u64 {
    AREAS.lock().next
}

/// A stack with an unmapped page below it, mapped as it grows.
pub struct Stack {
    start: u64,
}

/// Bytes of a fiber's stack: what Wasm may use, and as much again for host functions.
pub const STACK_BYTES: u64 = 2 * nacre_engine::settings::MAX_WASM_STACK_BYTES as u64;

static STACKS: SpinLock<Vec<u64>> = SpinLock::new(Vec::new());

impl Stack {
    /// A stack, preferably one that was used before.
    ///
    /// # Errors
    /// [`MapError`] if memory runs out.
    pub fn new() -> Result<Stack, MapError> {
        if let Some(start) = STACKS.lock().pop() {
            return Ok(Stack { start });
        }
        let start = map(STACK_BYTES + PAGE_BYTES, None)?;
        protect(start + PAGE_BYTES, STACK_BYTES, Some(Perms::ReadWrite))?;
        Ok(Stack { start })
    }

    /// The end of the stack, 16-byte aligned.
    pub fn top(&self) -> u64 {
        self.start + PAGE_BYTES + STACK_BYTES
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        STACKS.lock().push(self.start);
    }
}
