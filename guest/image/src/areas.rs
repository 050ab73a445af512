//! Areas of the tenant arena: ranges of addresses for linear memories, code and stacks. Freed ones are reused by length.

use crate::memory::{self, Promise};
use crate::sync::SpinLock;
use crate::wasm;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use nacre_abi::layout::{AREAS_VA, TENANT_VA_END};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::GuestVirt;
use nacre_mm::address_space::{MapError, PageRange};
use nacre_mm::entry::Perms;

/// Unmapped addresses between two areas.
const GAP_BYTES: u64 = LARGE_PAGE_BYTES;

static AREAS: SpinLock<Areas> = SpinLock::new(Areas { next: AREAS_VA, free: BTreeMap::new() });

struct Areas {
    next: u64,
    /// Starts of free areas by length.
    free: BTreeMap<u64, Vec<u64>>,
}

impl Areas {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        if let Some(start) = self.free.get_mut(&bytes).and_then(Vec::pop) {
            return Some(start);
        }
        let start = self.next;
        self.next = start.checked_add(bytes)?.checked_add(GAP_BYTES).filter(|end| *end <= TENANT_VA_END)?;
        Some(start)
    }
}

fn range(start: u64, bytes: u64) -> PageRange {
    // Areas start at multiples of a large page and never overflow.
    PageRange::new(GuestVirt(start), bytes).unwrap_or_else(|| unreachable!("area bounds"))
}

fn area_bytes(bytes: u64) -> Result<u64, MapError> {
    bytes.checked_next_multiple_of(LARGE_PAGE_BYTES).ok_or(MapError::OutOfMemory)
}

/// Reserves `bytes` of addresses; usable at once if `perms` are given.
///
/// # Errors
/// [`MapError`] if memory, or addresses, run out.
pub fn map(bytes: u64, perms: Option<Perms>) -> Result<u64, MapError> {
    let start = AREAS.lock().take(area_bytes(bytes)?).ok_or(MapError::OutOfMemory)?;
    // The addresses may have been unmapped by another vCPU since this one last flushed.
    memory::catch_up();
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
fn give_up_idle() -> bool {
    let stacks = core::mem::take(&mut *STACKS.lock());
    let any = !stacks.is_empty();
    for start in stacks {
        unmap(start, STACK_BYTES + PAGE_BYTES);
    }
    wasm::memory::give_up_kept() | any
}

/// Frees an area of `bytes` that [`map`] returned.
pub fn unmap(start: u64, bytes: u64) {
    // The length was valid when it was mapped.
    let bytes = bytes.next_multiple_of(LARGE_PAGE_BYTES);
    // Whole large pages: never incomplete.
    let complete = memory::unmap(range(start, bytes));
    debug_assert!(complete);
    AREAS.lock().free.entry(bytes).or_default().push(start);
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
        STACKS.lock().push(self.start);
    }
}
