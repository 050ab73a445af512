//! The tenant's memory as a migration sees it: how pages are read where it leaves, put in place where it arrives, wiped behind it, and made large
//! again afterwards.

use super::{SPACE, frame_window};
use crate::translations;
use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use core::sync::atomic::Ordering;
use nacre_abi::layout::{HEAP_VA, IMAGE_VA, IMAGE_VA_END, TENANT_VA_END};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::address_space::{AddressSpace, Flush, MapError, Mapping, PageRange};
use nacre_mm::entry::{Leaf, Perms, Size};
use nacre_mm::page_tables::{Claim, Run, SettleError, TableMemory};
use nacre_mm::{GuestPhys, GuestVirt};

/// Calls `each` with what of this image can't be written, code and constants, in the order of their addresses.
pub fn for_each_constant(each: &mut dyn FnMut(u64, &[u8])) {
    let Some(image) = PageRange::new(GuestVirt(IMAGE_VA), IMAGE_VA_END - IMAGE_VA) else { return };
    SPACE.get().scan(image, &mut |mapping| {
        if let Leaf::Present { perms: Perms::Read | Perms::ReadExecute, .. } = mapping.leaf {
            // SAFETY: the launcher mapped it for good, and nobody can write to it.
            let content = unsafe {
                core::slice::from_raw_parts(mapping.start.0 as *const u8, mapping.size.bytes() as usize)
            };
            each(mapping.start.0, content);
        }
    });
}

/// Copies a page, small or large, as `buffer` is long, to it: zeros where nothing is mapped. Whoever writes to it meanwhile makes it
/// count as written again, so a torn copy is not the last one.
pub fn read_page(address: u64, buffer: &mut [u8]) {
    let (space, mut at) = (SPACE.get(), address);
    let end = address + buffer.len() as u64;
    while at < end {
        let mapping = space.lookup(GuestVirt(at));
        let (frame, stop) = match mapping {
            Some(Mapping {
                start,
                size,
                leaf: Leaf::Present { frame, .. } | Leaf::Missing { frame, .. },
            }) => (Some(GuestPhys(frame.0 + (at - start.0))), (start.0 + size.bytes()).min(end)),
            Some(Mapping { start, size, .. }) => (None, (start.0 + size.bytes()).min(end)),
            None => (None, (at + PAGE_BYTES).min(end)),
        };
        let piece = &mut buffer[(at - address) as usize..(stop - address) as usize];
        match frame {
            // SAFETY: the window shows the frame, which is memory of the tenant's as long as this CVM runs; `piece` is the agent's. Tasks
            // may write there meanwhile, as a device would see it: whatever bytes that gives are as good as any.
            Some(frame) => unsafe {
                core::ptr::copy_nonoverlapping(frame_window(frame), piece.as_mut_ptr(), piece.len());
            },
            None => piece.fill(0),
        }
        at = stop;
    }
}

/// Puts content in the place of a page that arrives. While tasks run it goes only where one still waits for it.
///
/// # Errors
/// [`MapError`] if memory runs out.
pub fn place_content(at: GuestVirt, size: Size, content: &[u8], tasks_run: bool) -> Result<(), MapError> {
    let space = SPACE.get();
    if tasks_run {
        match space.claim(at, size) {
            Claim::Yours(claimed) => {
                write_frame(claimed.frame(), content);
                // If its owner took the page away meanwhile, nobody needs it.
                let _ = space.arrived(claimed);
            }
            Claim::OtherSize => place_small(at, content, tasks_run)?,
            Claim::NotMissing => {}
        }
        return Ok(());
    }
    match space.place(at, size) {
        Ok(frame) => write_frame(frame, content),
        // Memory may be there, but not in one piece.
        Err(MapError::OutOfMemory) if size == Size::Large => place_small(at, content, tasks_run)?,
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Puts a piece of a large page's content in its place, while no task runs. Pieces come in order.
///
/// # Errors
/// [`MapError`] if memory runs out.
pub fn place_piece(page: GuestVirt, offset: u64, content: &[u8]) -> Result<(), MapError> {
    match SPACE.get().place_piece(page, offset == 0)? {
        Some(frame) => write_frame(GuestPhys(frame.0 + offset), content),
        None => place_small(GuestVirt(page.0 + offset), content, false)?,
    }
    Ok(())
}

/// Reads a byte of the region of 2 MiB at `region`, if its first page is the tenant's and present. Of a region that nobody else changes, while no
/// task runs.
pub fn warm(region: u64) {
    let first = SPACE.get().lookup(GuestVirt(region));
    if region >= HEAP_VA
        && let Some(Mapping { leaf: Leaf::Present { perms: Perms::ReadWrite, .. }, .. }) = first
    {
        // SAFETY: mapped and readable. Pages are taken away by tasks, none of which runs, and by the lane that the region belongs to, which is
        // the caller.
        unsafe { (region as *const u8).read_volatile() };
    }
}

fn place_small(at: GuestVirt, content: &[u8], tasks_run: bool) -> Result<(), MapError> {
    let pages = content.chunks_exact(PAGE_BYTES as usize).zip((at.0..).step_by(PAGE_BYTES as usize));
    for (piece, at) in pages {
        place_content(GuestVirt(at), Size::Small, piece, tasks_run)?;
    }
    Ok(())
}

fn write_frame(frame: GuestPhys, content: &[u8]) {
    // SAFETY: a frame that nobody uses before its page is present, or before tasks run, of that many bytes at least.
    unsafe { core::ptr::copy_nonoverlapping(content.as_ptr(), frame_window(frame), content.len()) }
}

/// Makes a page that arrives zero, while no task runs.
///
/// # Errors
/// [`MapError`].
pub fn zero_page(at: GuestVirt, size: Size) -> Result<(), MapError> {
    let frame = SPACE.get().place(at, size)?;
    // SAFETY: as in `write_frame`.
    unsafe { core::ptr::write_bytes(frame_window(frame), 0, size.bytes() as usize) }
    Ok(())
}

/// Makes the range what the runs say. While no task runs, and before every vCPU flushes.
///
/// # Errors
/// [`SettleError`].
pub fn settle_runs(range: PageRange, runs: impl Iterator<Item = Run> + Clone) -> Result<(), SettleError> {
    SPACE.get().settle_runs(range, runs).map(|_| ())
}

/// Makes tables ready for many large pages of the range to be split at once: see [`PageTables::renew_directories`]. While no task runs and
/// nobody works on a lane.
pub fn renew_directories(range: PageRange) {
    SPACE.get().renew_directories(range);
}

/// Pages of the table pool that are touched in one go.
const TABLES_AT_ONCE: usize = 64;

/// Touches a bounded number of the pages that tables are made of, from number `at` on; returns where to go on, or `None` at the end. Where tables are
/// shadowed the hypervisor maps such memory page by page, at the first access, which takes longer than to fill a table.
pub fn touch_tables_some(at: usize) -> Option<usize> {
    for number in at..at + TABLES_AT_ONCE {
        let table = SPACE.get().pool().page(number)?;
        core::hint::black_box(SPACE.get().memory().entries(table)[0].load(Ordering::Relaxed));
    }
    Some(at + TABLES_AT_ONCE)
}

/// Regions that are looked at in one go for uniform ones.
const NOTES_AT_ONCE: u64 = 64;

/// Notes which regions are uniform, so that [`settle_runs`] takes no time for them: does a bounded number from `at` on and returns where to go on,
/// or `None` at the end. While pages arrive.
pub fn note_uniform_some(at: u64) -> Option<u64> {
    let region = SPACE.get().next_region(at.max(HEAP_VA), TENANT_VA_END)?;
    let end = (region + NOTES_AT_ONCE * LARGE_PAGE_BYTES).min(TENANT_VA_END);
    SPACE.get().note_uniform_regions(region, end);
    Some(end)
}

/// Makes a page that arrives zero without giving it a frame.
///
/// # Errors
/// [`MapError`].
pub fn place_zero(at: GuestVirt, size: Size) -> Result<(), MapError> {
    SPACE.get().place_zero(at, size)
}

/// Makes a page known whose content comes later.
///
/// # Errors
/// [`MapError`].
pub fn place_missing(at: GuestVirt, size: Size) -> Result<(), MapError> {
    match SPACE.get().place_missing(at, size) {
        // Memory may be there, but not in one piece.
        Err(MapError::OutOfMemory) if size == Size::Large => (at.0..at.0 + LARGE_PAGE_BYTES)
            .step_by(PAGE_BYTES as usize)
            .try_for_each(|at| SPACE.get().place_missing(GuestVirt(at), Size::Small)),
        other => other,
    }
}

/// Takes a page away while no task runs.
pub fn remove_page(at: GuestVirt, size: Size) {
    // Whatever is left of it the map takes away, or does not.
    let _ = SPACE.get().remove(at, size);
}

/// Whether the page of an address is still on its way here.
pub fn is_missing(address: u64) -> bool {
    matches!(SPACE.get().lookup(GuestVirt(address)), Some(Mapping { leaf: Leaf::Missing { .. }, .. }))
}

/// Zeroes the tenant's arena, which lives elsewhere: all of it, or all but linear memories.
pub fn wipe_tenant(all: bool) {
    let (space, mut at) = (SPACE.get(), HEAP_VA);
    while let Some(region) = space.next_region(at, TENANT_VA_END) {
        at = region + LARGE_PAGE_BYTES;
        if !all && crate::areas::is_linear_memory(region) {
            continue;
        }
        if let Some(range) = PageRange::new(GuestVirt(region), LARGE_PAGE_BYTES) {
            wipe(range);
        }
    }
}

/// Overwrites what is present of the range with zeros, through the window onto frames. Its tenant has gone: nobody uses it any more, ever.
pub fn wipe(range: PageRange) {
    SPACE.get().scan(range, &mut |mapping| {
        if let Leaf::Present { frame, .. } = mapping.leaf {
            // SAFETY: no task runs here any more, and what the agent uses is not in such a range.
            unsafe { core::ptr::write_bytes(frame_window(frame), 0, mapping.size.bytes() as usize) }
        }
    });
}

/// Regions that are looked at before all vCPUs have to flush.
const JOINS_AT_ONCE: usize = 64;

/// Makes small pages large ones again that a migration has split: does a bounded number of regions from `at` on and returns where to
/// go on, or `None` at the end. Their tables are free again once all vCPUs have flushed ([`recycle_joined`]).
pub fn rejoin_some(mut at: u64) -> Option<u64> {
    let (space, mut joined) = (SPACE.get(), false);
    for _ in 0..JOINS_AT_ONCE {
        let region = space.next_region(at.max(HEAP_VA), TENANT_VA_END)?;
        at = region + LARGE_PAGE_BYTES;
        joined |= space.rejoin_region(region) == Flush::Needed;
    }
    if joined {
        space.seal_tables();
        translations::next_generation();
    }
    Some(at)
}

/// Lets everybody have the frames that were reserved so that small pages that arrived could be joined.
pub fn end_reservations() {
    SPACE.get().frames().end_reservations();
}

/// Frees the tables of regions that were joined, once `generation` is settled; false until then.
pub fn recycle_joined(generation: u64) -> bool {
    let is_settled = translations::settled() >= generation;
    if is_settled {
        SPACE.get().recycle_tables();
    }
    is_settled
}

/// Has the processor read the table of the region at `region` ahead, if there is one: who looks through many would else wait for memory at the
/// beginning of each, because processors don't look beyond the end of a page.
pub fn read_table_ahead(region: u64) {
    let Some(table) = SPACE.get().leaf_table(region) else { return };
    for line in SPACE.get().memory().entries(table).chunks(8) {
        // SAFETY: a prefetch changes nothing that a program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
}
