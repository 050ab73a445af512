//! The guest's address space: page tables in the agent arena, and a window onto all frames for zeroing them.

use crate::agent::{AgentCell, agent_static};
use crate::translations;
use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::boot::BootInfo;
use nacre_abi::layout::{AGENT_VA, HEAP_VA, Layout, RAM_GPA, TENANT_VA_END};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::address_space::{AddressSpace, Fault, Flush, MapError, Mapping, PageRange};
use nacre_mm::entry::{Access, Leaf, Perms, Size};
use nacre_mm::frames::{Frames, PagePool, words_needed};
use nacre_mm::page_tables::{Claim, FAULT_AROUND_BYTES, PageTables, Run, SettleError, TableMemory};
use nacre_mm::{GuestPhys, GuestVirt};

/// Window onto all of private memory, mapped piece by piece: frames are zeroed here before anybody sees them, and code is
/// written here.
const FRAMES_VA: u64 = 0x30_0000_0000;

/// Pages that are never promised to areas: the tenant heap must be able to grow a little when all else is used.
const HEAP_RESERVE_PAGES: u64 = 1024;

/// Most that is given back at once.
const RELEASE_BYTES: u64 = 16 << 20;

/// Free memory that is kept rather than given back to the host.
const KEEP_FREE_BYTES: u64 = 32 << 20;

/// Large frames that are zeroed ahead, and pages that must be promised to nobody for that.
const READY_FRAMES: u32 = 2;
const SPARE_PAGES: u64 = 4096;

/// The guest's address space.
pub type Space = PageTables<'static, Window>;

agent_static! {
    static SPACE: AgentCell<Space> = AgentCell::new();
    static LAYOUT: AgentCell<Layout> = AgentCell::new();
    static FAULTS: AtomicU64 = AtomicU64::new(0);
    static RELEASED_BYTES: AtomicU64 = AtomicU64::new(0);
}

/// How tables and frames are reached.
pub struct Window {
    agent_gpa: u64,
    agent_bytes: u64,
}

impl TableMemory for Window {
    fn entries(&self, table: GuestPhys) -> &[AtomicU64; 512] {
        let offset = table.0.wrapping_sub(self.agent_gpa);
        assert!(
            offset < self.agent_bytes && offset.is_multiple_of(PAGE_BYTES),
            "page table outside of the agent arena"
        );
        // SAFETY: the agent arena is mapped linearly for good; tables are whole pages in it, accessed atomically only.
        unsafe { &*((AGENT_VA + offset) as *const [AtomicU64; 512]) }
    }

    fn zero(&self, frame: GuestPhys, size: Size) {
        // SAFETY: the frame was just allocated: nobody else knows it.
        unsafe { core::ptr::write_bytes(frame_window(frame), 0, size.bytes() as usize) }
    }

    fn copy_page(&self, from: GuestPhys, to: GuestPhys) {
        // SAFETY: both are frames of ours, and the owner of their range does not use them meanwhile.
        unsafe { core::ptr::copy_nonoverlapping(frame_window(from), frame_window(to), PAGE_BYTES as usize) }
    }
}

/// The address of a frame in the window, which is extended if this is its first use.
fn frame_window(frame: GuestPhys) -> *mut u8 {
    let offset = frame.0 - RAM_GPA;
    let large = offset & !(LARGE_PAGE_BYTES - 1);
    // Its tables were made at boot, so this cannot fail.
    let mapped = SPACE.get().map_window(GuestVirt(FRAMES_VA + large), GuestPhys(RAM_GPA + large));
    debug_assert_eq!(mapped, Ok(()));
    (FRAMES_VA + offset) as *mut u8
}

/// Hands out the agent's scratch memory at boot.
pub struct Scratch {
    at: u64,
    end: u64,
}

impl Scratch {
    /// The scratch memory that the layout sets aside.
    pub fn new(layout: &Layout) -> Scratch {
        let at = AGENT_VA + layout.scratch_offset;
        Scratch { at, end: at + layout.scratch_bytes }
    }

    /// A slice made by `make`, for the rest of the CVM's life.
    ///
    /// # Panics
    /// If the layout set aside too little: a defect, found at the first boot.
    pub fn slice<T>(&mut self, count: usize, mut make: impl FnMut(usize) -> T) -> &'static mut [T] {
        let start = self.at.next_multiple_of(64.max(align_of::<T>() as u64));
        let end = start + (count * size_of::<T>()) as u64;
        assert!(end <= self.end, "agent scratch memory is too small");
        self.at = end;
        let first = start as *mut T;
        // SAFETY: inside the scratch memory, which is mapped and handed out once; every element is written first.
        unsafe {
            for index in 0..count {
                first.add(index).write(make(index));
            }
            core::slice::from_raw_parts_mut(first, count)
        }
    }
}

/// Sets the address space up. Once, by vCPU 0.
pub fn init(info: &BootInfo, scratch: &mut Scratch) -> Result<(), MapError> {
    let layout = &info.layout;
    let pool_pages = (layout.table_pool_bytes / PAGE_BYTES) as usize;
    let used_pages = (info.tables_used_bytes / PAGE_BYTES) as usize;
    let zeros = |_| AtomicU64::new(0);
    let pool = PagePool::new(
        GuestPhys(layout.agent_gpa + layout.table_pool_offset),
        pool_pages,
        used_pages,
        scratch.slice(pool_pages.div_ceil(64), zeros),
    );
    let large_frames = (layout.frames_bytes / LARGE_PAGE_BYTES) as usize;
    let words = scratch.slice(words_needed(large_frames), zeros);
    let frames = Frames::new(GuestPhys(layout.frames_gpa), large_frames, 0, words);
    let window = Window { agent_gpa: layout.agent_gpa, agent_bytes: layout.agent_bytes };
    let space = SPACE.set(PageTables::new(GuestPhys(layout.root_table_gpa()), window, pool, frames));
    LAYOUT.set(*layout);
    space.prepare_window(GuestVirt(FRAMES_VA), layout.params.memory_bytes)
}

/// The layout of this CVM.
pub fn layout() -> &'static Layout {
    LAYOUT.get()
}

/// The frame allocator.
pub fn frames() -> &'static Frames<'static> {
    SPACE.get().frames()
}

/// What a page fault at `address` means; repairs it if it can.
pub fn fault(address: GuestVirt, access: Access) -> Fault {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    SPACE.try_get().map_or(Fault::Violation, |space| space.fault(address, access))
}

/// Whether our page tables map `address` for execution now.
pub fn is_executable(address: GuestVirt) -> bool {
    SPACE.try_get().is_some_and(|space| matches!(space.fault(address, Access::Execute), Fault::Spurious))
}

/// Makes `range` usable. With [`Promise::Tenant`] the reserve of the heap stays untouched.
///
/// # Errors
/// [`MapError`] if memory or page tables run out.
pub fn map(range: PageRange, perms: Perms, promise: Promise) -> Result<(), MapError> {
    let space = SPACE.get();
    if promise == Promise::Tenant && !has_room_beside_reserve(range.bytes() / PAGE_BYTES) {
        // Maybe most of the range is mapped already; only what is new counts.
        let mut mapped = 0;
        space.scan(range, &mut |mapping| mapped += mapping.size.bytes() / PAGE_BYTES);
        if !has_room_beside_reserve((range.bytes() / PAGE_BYTES).saturating_sub(mapped)) {
            return Err(MapError::OutOfMemory);
        }
    }
    flush(space.map(range, perms)?);
    Ok(())
}

/// Who a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Linear memories, code, stacks.
    Tenant,
    /// The tenant heap, which may use the reserve.
    Heap,
}

fn has_room_beside_reserve(pages: u64) -> bool {
    let frames = frames();
    pages.saturating_add(frames.committed_pages().0).saturating_add(HEAP_RESERVE_PAGES)
        <= frames.limit_pages()
}

/// Bytes that may still be promised to areas.
pub fn available_bytes() -> u64 {
    let frames = frames();
    frames.limit_pages().saturating_sub(frames.committed_pages().0 + HEAP_RESERVE_PAGES) * PAGE_BYTES
}

/// Takes the range away and frees its frames; false if a part of a large page is still there (see
/// [`Unmapped`](nacre_mm::address_space::Unmapped)).
#[must_use = "what is still mapped must not be handed out"]
pub fn unmap(range: PageRange) -> bool {
    let unmapped = SPACE.get().unmap(range);
    flush(unmapped.flush);
    unmapped.complete
}

/// Keeps a few large frames zeroed ahead. Takes up to half a millisecond: for when nobody waits.
pub fn zero_ahead() {
    SPACE.get().zero_ahead(READY_FRAMES, SPARE_PAGES);
}

/// Gives frames to everything promised in the range.
///
/// # Errors
/// [`MapError`] if frames run out.
pub fn populate(range: PageRange) -> Result<(), MapError> {
    SPACE.get().populate(range)
}

/// Lets `fill` write to `bytes` bytes from `start` on, which are mapped or promised, whatever is allowed there: through the window
/// onto frames. It is given pieces, and how far from `start` each begins.
///
/// # Errors
/// [`MapError`] if frames run out, or something there is not mapped; a part may be written then.
///
/// # Safety
/// The caller owns the range, and nobody has a reference into it.
pub unsafe fn fill(start: u64, bytes: u64, fill: &mut dyn FnMut(usize, &mut [u8])) -> Result<(), MapError> {
    let (first, end) = (start & !(PAGE_BYTES - 1), start + bytes);
    let range = PageRange::new(GuestVirt(first), end - first).ok_or(MapError::OutOfMemory)?;
    populate(range)?;
    let mut filled = 0;
    SPACE.get().scan(range, &mut |mapping| {
        let Leaf::Present { frame, .. } = mapping.leaf else { return };
        let page = mapping.start.0;
        let (from, to) = (page.max(start), (page + mapping.size.bytes()).min(end));
        let window = frame_window(GuestPhys(frame.0 + (from - page)));
        // SAFETY: the window shows all of the page's frame; nobody else uses it, by the caller's promise.
        let piece = unsafe { core::slice::from_raw_parts_mut(window, (to - from) as usize) };
        fill((from - start) as usize, piece);
        filled += to - from;
    });
    // The processor has noted it in the window's entries, not in those of the range.
    SPACE.get().mark_written(range);
    if filled == bytes { Ok(()) } else { Err(MapError::OutOfMemory) }
}

/// Gives frames to `bytes` bytes from `start` on, which are mapped and written next: cheaper than a fault for each group of
/// pages. What gets none is given one by the fault, or fails there.
pub fn expect_writes(start: u64, bytes: u64) {
    // Whole groups, as a fault gives: what comes next is likely to be written too.
    let first = start & !(FAULT_AROUND_BYTES - 1);
    let bytes = (start - first + bytes).next_multiple_of(FAULT_AROUND_BYTES);
    if let Some(range) = PageRange::new(GuestVirt(first), bytes) {
        let _ = populate(range);
    }
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

/// Zeroes what is mapped in `range` without changing a mapping. The caller owns the range.
pub fn zero_present(range: PageRange) {
    SPACE.get().scan(range, &mut |mapping| {
        // Writing to what is still on its way waits for it.
        if let Leaf::Present { perms: Perms::ReadWrite, .. } | Leaf::Missing { perms: Perms::ReadWrite, .. } =
            mapping.leaf
        {
            // SAFETY: mapped and writable, and by the caller's promise nobody else uses it.
            unsafe { core::ptr::write_bytes(mapping.start.0 as *mut u8, 0, mapping.size.bytes() as usize) }
        }
    });
}

/// Lets `restore` put back what was written in `range`, as far as [`track`] makes that known: it is called with the address and
/// length of each page. The caller owns the range.
pub fn for_each_written(range: PageRange, restore: &mut dyn FnMut(u64, u64)) {
    SPACE.get().scan(range, &mut |mapping| {
        if let Leaf::Present { perms: Perms::ReadWrite, dirty: true, .. }
        | Leaf::Missing { perms: Perms::ReadWrite, .. } = mapping.leaf
        {
            restore(mapping.start.0, mapping.size.bytes());
        }
    });
}

/// Makes the range inaccessible but keeps its frames and their content for the next [`map`]; says whether translations of it
/// may be left, and `None` if a part could not be hidden. Its owner must not hand it out before the count of [whole generations](nacre_mm::translations::Translations::whole) has changed
/// (see [`translations::next_generation`]) and the one who gets it has [caught up](translations::catch_up).
#[must_use = "what is still mapped must not be handed out"]
pub fn hide(range: PageRange) -> Option<Flush> {
    let hidden = SPACE.get().hide(range);
    hidden.complete.then_some(hidden.flush)
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

/// From here on [`for_each_written`] shows what is written in `range` after this call. The caller owns the range.
pub fn track(range: PageRange) {
    flush(SPACE.get().track(range));
}

/// The address space, for looking through it.
pub fn space() -> &'static Space {
    SPACE.get()
}

fn flush(needed: Flush) {
    if needed == Flush::Needed {
        translations::next_generation();
    }
}

/// Gives some free memory back to the host, beyond a cushion: one run of neighbouring frames, of bounded length, because
/// nobody can have them meanwhile. Called by the idle vCPU 0; `hypercall` releases the run.
pub fn release_free(hypercall: impl FnOnce(GuestPhys, u64)) {
    let frames = frames();
    let _moving = frames.moving();
    let Some(first) = frames.take_releasable() else { return };
    let mut end = first.0 + LARGE_PAGE_BYTES;
    while end - first.0 < RELEASE_BYTES && has_releasable() && frames.take_this_releasable(GuestPhys(end)) {
        end += LARGE_PAGE_BYTES;
    }
    hypercall(first, end - first.0);
    RELEASED_BYTES.fetch_add(end - first.0, Ordering::Relaxed);
    for frame in (first.0..end).step_by(LARGE_PAGE_BYTES as usize) {
        frames.released(GuestPhys(frame));
    }
}

/// Whether [`release_free`] would do something.
pub fn has_releasable() -> bool {
    frames().releasable_bytes() > KEEP_FREE_BYTES
}

/// Counters: faults, flushes, bytes released.
pub fn counters() -> (u64, u64, u64) {
    (FAULTS.load(Ordering::Relaxed), translations::flushes(), RELEASED_BYTES.load(Ordering::Relaxed))
}
