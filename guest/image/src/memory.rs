//! The guest's address space: page tables in the agent arena, and a window onto all frames for zeroing them.

mod moving;

pub use moving::{
    end_reservations, for_each_constant, is_missing, note_uniform_some, place_content, place_missing,
    place_piece, place_zero, read_page, read_table_ahead, recycle_joined, rejoin_some, remove_page,
    renew_directories, settle_runs, touch_tables_some, warm, wipe, wipe_tenant, zero_page,
};

use crate::agent::{AgentCell, agent_static};
use crate::translations;
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::boot::BootInfo;
use nacre_abi::layout::{AGENT_VA, Layout, RAM_GPA};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::address_space::{AddressSpace, Fault, Flush, MapError, PageRange};
use nacre_mm::entry::{Access, Leaf, Perms, Size};
use nacre_mm::frames::{Frames, PagePool, words_needed};
use nacre_mm::page_tables::{FAULT_AROUND_BYTES, PageTables, TableMemory};
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

/// Reads a byte of each page of `bytes`: where the caller must not wait afterwards, it waits here for what is still on its way. What has come
/// never goes again.
pub fn touch(bytes: &[u8]) {
    for page in bytes.chunks(PAGE_BYTES as usize) {
        core::hint::black_box(page[0]);
    }
    core::hint::black_box(bytes.last().copied());
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

/// Calls `each` with the address and length of each page of `range` that is promised as zeros and was never touched here. The caller
/// owns the range.
pub fn for_each_promised(range: PageRange, each: &mut dyn FnMut(u64, u64)) {
    SPACE.get().scan(range, &mut |mapping| {
        if mapping.leaf == Leaf::Lazy(Perms::ReadWrite) {
            each(mapping.start.0, mapping.size.bytes());
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
