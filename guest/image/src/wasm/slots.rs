//! Linear memories of calls: slots that stay mapped between calls of one module, with its initial content in place.
//!
//! ```text
//!            first call                      later calls
//! mmap_new   takes addresses                 takes a kept slot of this module (and of this memory of it)
//! mprotect   maps the initial size           nothing to do
//! map_at     copies the image                nothing to do
//! (grow)     maps more                       brings back what is hidden, maps more
//! munmap     puts back what was written, hides what grew, keeps the slot
//! ```
//!
//! wasmtime calls these hooks (`hooks.rs`) for the memories of the engine for calls, which has no memory creator. What was
//! written is known from the dirty bits of the guest's own page tables. They are cleared once, when a slot has shown that it is used
//! again, and not again: on a KVM where setting one costs a fault, a page that was ever written is cheaper to put back
//! each time than to watch. Nothing here takes a lock: a slot belongs to the call that has it, or lies in the bag.
//! docs/decisions/0013-warm-slots.md has the numbers.

use crate::areas::{self, MEMORY32_SLOTS};
use crate::translations;
use crate::{calls, memory, task};
use alloc::boxed::Box;
use core::cell::Cell;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use nacre_abi::PAGE_BYTES;
use nacre_mm::GuestVirt;
use nacre_mm::address_space::{Flush, MapError, PageRange};
use nacre_mm::entry::Perms;
use nacre_mm::slots::Bag;

/// Slots that are kept, of all modules.
const KEPT_SLOTS: usize = 256;
/// Kept slots may have this part of the CVM's memory mapped.
const KEPT_SHARE: u64 = 4;
/// What grew by no more than this is hidden between two uses, frames and all, instead of unmapped.
const HIDDEN_BYTES: u64 = 4 << 20;
/// Of what was hidden translations may be left, until the next flush. So many small slots of one memory wait for it
/// together; only then is one made.
const UNFLUSHED_SLOTS: usize = 6;
/// Memories with more initial data do not wait: another slot costs more than a flush.
const SMALL_BYTES: usize = 2 << 20;
/// After so many uses what is written to a slot is tracked.
const USES_UNTRACKED: u32 = 2;

/// What is known of the slots in use or kept, by the slot's number; null for those of programs' memories.
static SLOTS: [AtomicPtr<Slot>; MEMORY32_SLOTS] = [const { AtomicPtr::new(null_mut()) }; MEMORY32_SLOTS];
/// The kept slots, as [`Kept`].
static KEPT: Bag<KEPT_SLOTS> = Bag::new();
/// Bytes that they have mapped.
static KEPT_BYTES: AtomicU64 = AtomicU64::new(0);
/// The number of the last module.
static LAST_MODULE: AtomicU32 = AtomicU32::new(0);
/// Images are made while a module for calls is loaded, on vCPU 0; programs' memories have none.
static WANTS_IMAGES: AtomicBool = AtomicBool::new(false);

/// The initial content of a memory: a part of its module's code, which outlives it.
pub struct Image {
    start: *const u8,
    bytes: usize,
}

/// One slot.
struct Slot {
    start: u64,
    /// What is mapped, from the start on.
    mapped: u64,
    /// Up to where there is something hidden behind that; all of it zero.
    hidden: u64,
    /// Size of the memory at its start.
    initial: u64,
    /// The image that lies in it, and where.
    image: *const Image,
    image_at: u64,
    /// The module that it is kept for (0: none) and which of the module's memories it is.
    module: u32,
    which: u32,
    /// This use has begun: the initial size is mapped.
    begun: bool,
    /// How often it was used.
    uses: u32,
}

/// Whose memories are being made by the running task: set while a call's instance is made.
#[derive(Clone, Copy, Default)]
pub struct Making {
    /// The module's number, 0 for none.
    module: u32,
    /// Memories made so far.
    made: u32,
    /// A memory was made that was not kept before.
    cold: bool,
}

/// A number for a module, by which its slots are kept.
pub struct ModuleSlots(u32);

impl ModuleSlots {
    /// A number that no other module has.
    pub fn new() -> ModuleSlots {
        ModuleSlots(LAST_MODULE.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1))
    }

    /// Makes an instance, with its memories in this module's slots; says too whether there was a memory not kept before.
    pub fn making<R>(&self, make: impl FnOnce() -> R) -> (R, bool) {
        let making = &task::current().making;
        making.set(Making { module: self.0, ..Making::default() });
        let made = make();
        (made, making.take().cold)
    }
}

impl Drop for ModuleSlots {
    fn drop(&mut self) {
        while let Some(kept) = KEPT.take(|kept| Kept(kept).is_of_module(self.0)) {
            discard(Kept(kept));
        }
    }
}

/// Makes the images that `load` asks for real ones. On vCPU 0, where nothing comes between.
pub fn with_images<R>(load: impl FnOnce() -> R) -> R {
    WANTS_IMAGES.store(true, Ordering::Relaxed);
    let loaded = load();
    WANTS_IMAGES.store(false, Ordering::Relaxed);
    loaded
}

/// A new image; null if its module is a program's.
pub fn new_image(start: *const u8, bytes: usize) -> *mut Image {
    match WANTS_IMAGES.load(Ordering::Relaxed) {
        true => Box::into_raw(Box::new(Image { start, bytes })),
        false => null_mut(),
    }
}

/// Frees an image.
///
/// # Safety
/// It is from [`new_image`] and not used any more.
pub unsafe fn free_image(image: *mut Image) {
    if !image.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(image) });
    }
}

/// A kept slot in a word: module (32 bits), which of its memories (8), whether translations of what was hidden may be left (1)
/// from before the end of which whole generation (9 bits of it), slot number plus one (14).
#[derive(Clone, Copy)]
struct Kept(u64);

impl Kept {
    fn key(module: u32, which: u32) -> u64 {
        u64::from(module) << 8 | u64::from(which & 0xff)
    }

    fn new(key: u64, number: usize, unflushed: bool) -> Kept {
        let generation = u64::from(unflushed) << 9 | translations::all().whole() & 0x1ff;
        Kept(key << 24 | generation << 14 | (number as u64 + 1))
    }

    fn number(self) -> usize {
        (self.0 & 0x3fff) as usize - 1
    }

    fn is_of(self, key: u64) -> bool {
        self.0 >> 24 == key
    }

    fn is_of_module(self, module: u32) -> bool {
        self.0 >> 32 == u64::from(module)
    }

    /// Translations may be left if no generation has begun since that has all of them forgotten. (Or 512 have: then once more for
    /// nothing.)
    fn is_unflushed(self) -> bool {
        self.0 >> 23 & 1 != 0 && self.0 >> 14 & 0x1ff == translations::all().whole() & 0x1ff
    }
}

/// Takes a slot that is kept for this memory out of the bag.
fn take_kept(key: u64) -> Option<&'static mut Slot> {
    let unflushed = Cell::new(0);
    let ready = KEPT.take(|kept| {
        let waits = Kept(kept).is_of(key) && Kept(kept).is_unflushed();
        unflushed.set(unflushed.get() + usize::from(waits));
        Kept(kept).is_of(key) && !waits
    });
    let taken = match ready {
        Some(ready) => taken(Kept(ready)),
        None if unflushed.get() == 0 => return None,
        None => {
            let slot = taken(Kept(KEPT.take(|kept| Kept(kept).is_of(key))?));
            if slot.image_bytes() <= SMALL_BYTES && unflushed.get() < UNFLUSHED_SLOTS {
                // Back to the others; this call begins another one.
                KEPT_BYTES.fetch_sub(slot.extent(), Ordering::Relaxed);
                keep(slot, true);
                return None;
            }
            translations::next_generation();
            slot
        }
    };
    KEPT_BYTES.fetch_sub(taken.extent(), Ordering::Relaxed);
    // Another vCPU may have changed its mappings since this one last flushed.
    translations::catch_up();
    Some(taken)
}

/// The slot that holds `address`, if it is one of these.
///
/// # Safety
/// The caller has the memory in that slot, so nobody else has a reference.
unsafe fn slot_at<'a>(address: u64) -> Option<&'a mut Slot> {
    let (number, _) = areas::memory32_slot(address)?;
    // SAFETY: not null means: from a box, which only `discard_slot` frees; alone by the caller's promise.
    unsafe { SLOTS[number].load(Ordering::Acquire).as_mut() }
}

/// Addresses for a memory of `bytes`, guards included: a slot that was kept for it, or a new one, of which nothing is mapped.
/// `None` if they are not as many as the slots have.
///
/// # Errors
/// [`MapError`] if there are none left.
pub fn reserve(bytes: u64) -> Option<Result<u64, MapError>> {
    if !areas::is_memory32(bytes) {
        return None;
    }
    let task = task::running()?;
    let mut making = task.making.get();
    let which = making.made;
    making.made += 1;
    let key = Kept::key(making.module, which);
    let kept = if making.module != 0 { take_kept(key) } else { None };
    making.cold |= kept.is_none();
    task.making.set(making);
    if let Some(slot) = kept {
        return Some(Ok(slot.start));
    }
    Some(areas::reserve(bytes).inspect(|start| {
        let slot = Slot {
            start: *start,
            mapped: 0,
            hidden: 0,
            initial: 0,
            image: null_mut(),
            image_at: 0,
            module: making.module,
            which,
            begun: false,
            uses: 0,
        };
        let number = areas::memory32_slot(*start).map_or(0, |(number, _)| number);
        SLOTS[number].store(Box::into_raw(Box::new(slot)), Ordering::Release);
    }))
}

/// The slot of a value that was taken out of the bag.
fn taken(kept: Kept) -> &'static mut Slot {
    // SAFETY: what is in the bag is a slot that nobody has, and taking it out made it ours.
    unsafe { &mut *SLOTS[kept.number()].load(Ordering::Acquire) }
}

/// Makes `bytes` from `start` on accessible; `None` if that is no slot's.
///
/// # Errors
/// [`MapError`] if memory runs out; nothing has changed then.
pub fn make_accessible(start: u64, bytes: u64) -> Option<Result<(), MapError>> {
    // SAFETY: wasmtime changes a memory only for the instance that has it.
    let slot = unsafe { slot_at(start)? };
    let end = start - slot.start + bytes;
    let instantiates = task::running().is_some_and(|task| task.making.get().module != 0);
    let first = !slot.begun && instantiates && start == slot.start;
    slot.begun = true;
    if first && slot.initial == end && slot.mapped == end {
        return Some(Ok(()));
    }
    if first {
        slot.clear();
        slot.initial = end;
    }
    Some(slot.grow_to(end))
}

/// Puts an image at `at`; false if that is no slot's.
///
/// # Safety
/// `image` is from [`new_image`], and `at` is in a memory of the caller's whose accessible part holds it.
pub unsafe fn place_image(image: *const Image, at: u64) -> bool {
    // SAFETY: the caller's promise.
    let Some(slot) = (unsafe { slot_at(at) }) else { return false };
    if slot.image == image && slot.image_at == at - slot.start {
        return true;
    }
    // SAFETY: the caller's promise.
    memory::expect_writes(at, unsafe { (*image).bytes } as u64);
    // SAFETY: the caller's promise; the module's code and a linear memory do not overlap.
    unsafe { core::ptr::copy_nonoverlapping((*image).start, at as *mut u8, (*image).bytes) };
    (slot.image, slot.image_at) = (image, at - slot.start);
    true
}

/// Takes a memory back: puts its initial content back and keeps it, or unmaps it. False if `start` is no slot's.
pub fn give_back(start: u64) -> bool {
    // SAFETY: wasmtime gives a memory back once, at the end of the instance that had it.
    let Some(slot) = (unsafe { slot_at(start) }) else { return false };
    let Some((number, _)) = areas::memory32_slot(start) else { return false };
    let restored = if slot.module == 0 || slot.initial > limit() { None } else { slot.restore() };
    match restored {
        Some(flush) if slot.extent() != 0 => keep(slot, flush == Flush::Needed),
        _ => discard_slot(number),
    }
    true
}

/// How much kept slots may have mapped.
fn limit() -> u64 {
    memory::layout().params.memory_bytes / KEPT_SHARE
}

/// Puts a slot of the caller's into the bag.
fn keep(slot: &mut Slot, unflushed: bool) {
    let Some((number, _)) = areas::memory32_slot(slot.start) else { return };
    let kept = Kept::new(Kept::key(slot.module, slot.which), number, unflushed);
    let bytes = slot.extent();
    let mut all = KEPT_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes;
    while all > limit()
        && let Some(other) = KEPT.take(|_| true)
    {
        discard(Kept(other));
        all = KEPT_BYTES.load(Ordering::Relaxed);
    }
    // In a full bag any other makes room: the newest is the likeliest to be used next.
    while KEPT.put(kept.0).is_err() {
        KEPT.take(|_| true).map(Kept).into_iter().for_each(discard);
    }
}

/// Unmaps a slot that was taken out of the bag.
fn discard(kept: Kept) {
    KEPT_BYTES.fetch_sub(taken(kept).extent(), Ordering::Relaxed);
    discard_slot(kept.number());
}

fn discard_slot(number: usize) {
    let slot = SLOTS[number].swap(null_mut(), Ordering::AcqRel);
    // SAFETY: from a box, and the slot is the caller's.
    let mut slot = unsafe { Box::from_raw(slot) };
    slot.clear();
    areas::release(slot.start);
}

/// Unmaps all kept slots, because memory is short; false if there were none.
pub fn give_up_kept() -> bool {
    let mut any = false;
    while let Some(kept) = KEPT.take(|_| true) {
        discard(Kept(kept));
        any = true;
    }
    any
}

impl Slot {
    fn range(&self, from: u64, to: u64) -> PageRange {
        // Whole pages inside the slot.
        PageRange::new(GuestVirt(self.start + from), to - from)
            .unwrap_or_else(|| unreachable!("bounds of a slot"))
    }

    fn image_bytes(&self) -> usize {
        // SAFETY: null, or the module lives as long as its calls and as its slots are kept.
        unsafe { self.image.as_ref() }.map_or(0, |image| image.bytes)
    }

    fn grow_to(&mut self, end: u64) -> Result<(), MapError> {
        let from = self.mapped;
        if end > from {
            // Noted first: if memory runs out in the middle, the end of the memory finds what was mapped.
            self.mapped = end;
            areas::protect(self.start + from, end - from, Some(Perms::ReadWrite)).inspect_err(|_| {
                if memory::unmap(self.range(from, end)) {
                    self.mapped = from;
                    self.hidden = if self.hidden > end { self.hidden } else { 0 };
                }
            })?;
        }
        Ok(())
    }

    /// Up to where something is mapped or hidden.
    fn extent(&self) -> u64 {
        self.mapped.max(self.hidden)
    }

    /// Unmaps everything.
    fn clear(&mut self) {
        let end = self.extent().next_multiple_of(nacre_abi::LARGE_PAGE_BYTES);
        if end != 0 {
            // Whole large pages: never incomplete.
            let all = memory::unmap(self.range(0, end));
            debug_assert!(all);
        }
        (self.mapped, self.hidden, self.image, self.uses) = (0, 0, null_mut(), 0);
    }

    /// Makes everything as it was at the start; says whether translations of what was taken away may be left, and `None` if it
    /// could not be taken away alone.
    fn restore(&mut self) -> Option<Flush> {
        self.begun = false;
        self.uses = self.uses.saturating_add(1);
        let tracks = self.uses == USES_UNTRACKED;
        let flush = if self.mapped > self.initial { self.shrink(tracks)? } else { Flush::NotNeeded };
        let range = self.range(0, self.initial);
        let mut restored = 0;
        memory::for_each_written(range, &mut |at, bytes| {
            restored += bytes;
            self.put_back(at - self.start, bytes);
        });
        // What of the image was overwritten with zeros where this memory came from is a promise here, and was not written.
        let (from, to) = (self.image_at, self.image_at + self.image_bytes() as u64);
        if from < to {
            let image =
                self.range(from & !(PAGE_BYTES - 1), to.next_multiple_of(PAGE_BYTES).min(self.initial));
            memory::for_each_promised(image, &mut |at, bytes| {
                restored += bytes;
                self.put_back(at - self.start, bytes);
            });
        }
        calls::count_restored(restored);
        if tracks {
            memory::track(range);
        }
        Some(flush)
    }

    /// Takes what grew away: hides it, or, beyond [`HIDDEN_BYTES`], unmaps it.
    fn shrink(&mut self, tracks: bool) -> Option<Flush> {
        let end = self.mapped.min(self.initial + HIDDEN_BYTES);
        if self.mapped > end && !memory::unmap(self.range(end, self.mapped)) {
            return None;
        }
        let grown = self.range(self.initial, end);
        memory::for_each_written(grown, &mut |at, bytes| {
            // SAFETY: mapped and writable, and nobody uses the slot meanwhile.
            unsafe { core::ptr::write_bytes(at as *mut u8, 0, bytes as usize) }
        });
        if tracks {
            memory::track(grown);
        }
        let hidden = memory::hide(grown);
        (self.hidden, self.mapped) = (self.hidden.max(end).min(self.initial + HIDDEN_BYTES), self.initial);
        hidden
    }

    /// Puts the initial content of `bytes` from `at` on back.
    fn put_back(&self, at: u64, bytes: u64) {
        let (image, from, to) = match self.image.is_null() {
            true => (core::ptr::null(), at, at),
            // SAFETY: the module lives as long as its calls and as its slots are kept.
            false => unsafe {
                let end = self.image_at + self.image_bytes() as u64;
                ((*self.image).start, self.image_at.clamp(at, at + bytes), end.clamp(at, at + bytes))
            },
        };
        let place = |offset: u64| (self.start + offset) as *mut u8;
        // SAFETY: mapped and writable, and nobody uses the slot meanwhile; the image covers what is copied of it.
        unsafe {
            core::ptr::write_bytes(place(at), 0, (from - at) as usize);
            if to > from {
                let source = image.add((from - self.image_at) as usize);
                core::ptr::copy_nonoverlapping(source, place(from), (to - from) as usize);
            }
            core::ptr::write_bytes(place(to), 0, (at + bytes - to) as usize);
        }
    }
}

const _: () = assert!(MEMORY32_SLOTS < 1 << 14, "a slot's number has 14 bits");
