//! Areas of the tenant arena: ranges of addresses for linear memories, code and stacks. Freed ones are reused by size.
//!
//! Addresses are slots of a few sizes (`nacre_mm::slots`), each longer than what is asked of it by at least [`GAP_BYTES`],
//! which stay unmapped. Nothing here takes a lock.

use crate::memory::{self, Promise};
use crate::translations;
use crate::wasm;
use nacre_abi::layout::{AREAS_VA, TENANT_VA_END};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::GuestVirt;
use nacre_mm::address_space::{MapError, PageRange};
use nacre_mm::entry::Perms;
use nacre_mm::slots::{Bag, SlotClass, Slots, end_of, lay_out, words_of};

/// Unmapped addresses between two areas.
const GAP_BYTES: u64 = LARGE_PAGE_BYTES;

/// Sizes: stacks; 6 MiB; steps of a quarter of a power of two from 8 MiB on, with 256 GiB of addresses each; 32-bit memories
/// with their guards; 64-bit ones, which are reserved as long as a CVM's memory can be. Whole large pages all of them.
const SIZES: usize = 40;
const CLASSES: [SlotClass; SIZES] = {
    let mut sizes = [(0, 0); SIZES];
    let mut index = 0;
    while index < SIZES - 2 {
        let step = index as u64 + 2;
        let bytes = if index < 2 { (4 + 2 * index as u64) << 20 } else { (4 + step % 4) << (20 + step / 4) };
        sizes[index] = (bytes, (256 << 30) / bytes);
        index += 1;
    }
    sizes[SIZES - 2] = (4160 << 20, 12_288);
    sizes[SIZES - 1] = (72 << 30, 128);
    lay_out(sizes, 0, false)
};
/// The slots of 32-bit memories.
const MEMORY32: SlotClass = CLASSES[SIZES - 2];
const _: () = assert!(end_of(&CLASSES) <= TENANT_VA_END - AREAS_VA, "the areas have not so many addresses");

static AREAS: Slots<SIZES, { words_of(&CLASSES) }> = Slots::new(CLASSES);

fn range(start: u64, bytes: u64) -> PageRange {
    // Areas start at multiples of a large page and never overflow.
    PageRange::new(GuestVirt(start), bytes).unwrap_or_else(|| unreachable!("area bounds"))
}

/// Takes addresses for `bytes` bytes; nothing is mapped there.
///
/// # Errors
/// [`MapError`] if there are none left.
pub fn reserve(bytes: u64) -> Result<u64, MapError> {
    let wanted = bytes.checked_add(GAP_BYTES).ok_or(MapError::OutOfMemory)?;
    // Nothing rests here: whoever uses an area catches up first.
    let offset = AREAS.take(wanted, || 0).ok_or(MapError::OutOfMemory)?;
    // The addresses may have been unmapped by another vCPU since this one last flushed.
    translations::catch_up();
    Ok(AREAS_VA + offset)
}

/// Gives addresses back of which nothing is mapped.
pub fn release(start: u64) {
    AREAS.give(start - AREAS_VA);
}

/// Whether an area of `bytes` bytes lies in the slot of a 32-bit memory.
pub fn is_memory32(bytes: u64) -> bool {
    let longest = MEMORY32.slot_bytes - GAP_BYTES;
    (CLASSES[SIZES - 3].slot_bytes..=longest).contains(&bytes)
}

/// Whether an address lies in the slots of linear memories, where nothing else ever lies.
pub fn is_linear_memory(address: u64) -> bool {
    let first = AREAS_VA + MEMORY32.start;
    address >= first && address - AREAS_VA < end_of(&CLASSES)
}

/// The addresses of all linear memories there can be.
pub fn linear_memories() -> PageRange {
    range(AREAS_VA + MEMORY32.start, end_of(&CLASSES) - MEMORY32.start)
}

/// Slots of 32-bit memories.
pub const MEMORY32_SLOTS: usize = MEMORY32.count as usize;

/// The number of the slot of a 32-bit memory that holds `address`, and where that slot starts.
pub fn memory32_slot(address: u64) -> Option<(usize, u64)> {
    let first = AREAS_VA + MEMORY32.start;
    let number = address.checked_sub(first)? / MEMORY32.slot_bytes;
    (number < MEMORY32.count).then(|| (number as usize, first + number * MEMORY32.slot_bytes))
}

/// Shows the start and length of every area, and of those that are kept.
#[cfg(feature = "debug-image")]
pub fn for_each(visit: &mut dyn FnMut(u64, u64)) {
    AREAS.for_each_used(&mut |offset, bytes| visit(AREAS_VA + offset, bytes));
}

/// Reserves `bytes` of addresses; usable at once if `perms` are given.
///
/// # Errors
/// [`MapError`] if memory, or addresses, run out.
pub fn map(bytes: u64, perms: Option<Perms>) -> Result<u64, MapError> {
    let start = reserve(bytes)?;
    if let Some(perms) = perms
        && let Err(error) = protect(start, bytes, Some(perms))
    {
        unmap(start, bytes);
        return Err(error);
    }
    Ok(start)
}

/// Changes what is allowed in a part of an area; `None` takes it away.
///
/// # Errors
/// [`MapError`] if memory runs out.
pub fn protect(start: u64, bytes: u64, perms: Option<Perms>) -> Result<(), MapError> {
    let part = PageRange::new(GuestVirt(start), bytes).ok_or(MapError::OutOfMemory)?;
    let Some(perms) = perms else {
        return if memory::unmap(part) { Ok(()) } else { Err(MapError::OutOfTables) };
    };
    match memory::map(part, perms, Promise::Tenant) {
        Err(MapError::OutOfMemory) if give_up_idle() => memory::map(part, perms, Promise::Tenant),
        other => other,
    }
}

/// Unmaps what is kept for speed only; false if there was nothing.
pub fn give_up_idle() -> bool {
    let mut any = false;
    while let Some(start) = STACKS.take(|_| true) {
        unmap(start, STACK_BYTES + PAGE_BYTES);
        any = true;
    }
    wasm::slots::give_up_kept() | wasm::memory::give_up_kept() | any
}

/// Frees an area of `bytes` that [`map`] returned.
pub fn unmap(start: u64, bytes: u64) {
    // The length was valid when it was mapped. Whole large pages: never incomplete.
    let complete = memory::unmap(range(start, bytes.next_multiple_of(LARGE_PAGE_BYTES)));
    debug_assert!(complete);
    release(start);
}

/// A stack with an unmapped page below it, mapped as it grows.
pub struct Stack {
    start: u64,
}

/// Bytes of a fiber's stack: what Wasm may use, and as much again for host functions.
pub const STACK_BYTES: u64 = 2 * nacre_engine::settings::MAX_WASM_STACK_BYTES as u64;

/// Freed stacks that are kept mapped.
static STACKS: Bag<128> = Bag::new();

impl Stack {
    /// A stack, preferably one that was used before.
    ///
    /// # Errors
    /// [`MapError`] if memory runs out.
    pub fn new() -> Result<Stack, MapError> {
        if let Some(start) = STACKS.take(|_| true) {
            translations::catch_up();
            return Ok(Stack { start });
        }
        let start = map(STACK_BYTES + PAGE_BYTES, None)?;
        protect(start + PAGE_BYTES, STACK_BYTES, Some(Perms::ReadWrite))
            .inspect_err(|_| unmap(start, STACK_BYTES + PAGE_BYTES))?;
        Ok(Stack { start })
    }

    /// The end of the stack, 16-byte aligned.
    pub fn top(&self) -> u64 {
        self.start + PAGE_BYTES + STACK_BYTES
    }

    /// Whether an address lies on it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.top()).contains(&address)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if STACKS.put(self.start).is_err() {
            unmap(self.start, STACK_BYTES + PAGE_BYTES);
        }
    }
}
