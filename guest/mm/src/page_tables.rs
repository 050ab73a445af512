//! The address space in x86-64 page tables (four levels, Intel SDM vol. 3, 4.5), edited from ring 3.
//!
//! Tables are reached through [`TableMemory`]; frames come from [`Frames`]. Large pages are used wherever a range covers
//! them whole: on a KVM with shadow paging the first touch of a small page costs ten times its share of a large one.
//!
//! Every change of an entry is one atomic operation, a new table is published by compare-and-swap after it was filled,
//! and a frame is zeroed through another mapping before it becomes visible: no lock, no half-made state.
//! Tables are freed only when the range they serve is unmapped whole, by its owner, or when a large page takes their place
//! (`joins`, which also says who may look at a range that is not his). Tables above the leaf level stay for good.
//!
//! `tracking` is what the source of a migration needs, `arrival` what its destination needs, `runs` what both tell
//! each other about permissions.

use crate::address_space::{AddressSpace, Fault, Flush, MapError, Mapping, PageRange, Unmapped};
use crate::entry::{self, Access, Leaf, Perms, Size, View, with_perms};
use crate::frames::{Frames, PagePool, SMALL_PER_LARGE};
use crate::sync::{AtomicU64, Ordering};
use crate::{GuestPhys, GuestVirt};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};

mod arrival;
mod joins;
mod retired;
mod runs;
mod tracking;

pub use arrival::{Claim, Claimed};
pub use runs::{Run, SettleError};
pub use tracking::Collect;

use joins::Installed;
use retired::Retired;

const ENTRIES: usize = 512;
/// Bytes that one fault in a small-paged range maps at once (aligned group of pages).
pub const FAULT_AROUND_BYTES: u64 = 16 * PAGE_BYTES;

/// Access to the memory of page tables and to frames that are not mapped anywhere yet.
pub trait TableMemory {
    /// The 512 entries of the table at `table`.
    fn entries(&self, table: GuestPhys) -> &[AtomicU64; ENTRIES];
    /// Zeroes a frame.
    fn zero(&self, frame: GuestPhys, size: Size);
    /// Copies one small page to a frame at `to`.
    fn copy_page(&self, from: GuestPhys, to: GuestPhys);
}

/// An address space in page tables.
pub struct PageTables<'a, M> {
    root: GuestPhys,
    memory: M,
    pool: PagePool<'a>,
    frames: Frames<'a>,
    /// Those who look at tables of ranges that are not theirs, now.
    visitors: AtomicU64,
    retired: Retired,
}

/// A step of a walk over a range: one page-directory entry and the part of the range under it.
struct Chunk<'t> {
    directory_entry: &'t AtomicU64,
    start: u64,
    end: u64,
}

impl Chunk<'_> {
    fn is_whole(&self) -> bool {
        self.end - self.start == LARGE_PAGE_BYTES
    }
}

impl<'a, M: TableMemory> PageTables<'a, M> {
    /// The address space whose root table is at `root`.
    pub fn new(root: GuestPhys, memory: M, pool: PagePool<'a>, frames: Frames<'a>) -> PageTables<'a, M> {
        PageTables { root, memory, pool, frames, visitors: AtomicU64::new(0), retired: Retired::new() }
    }

    /// The frame allocator.
    pub fn frames(&self) -> &Frames<'a> {
        &self.frames
    }

    /// Where tables come from.
    pub fn pool(&self) -> &PagePool<'a> {
        &self.pool
    }

    /// How tables and frames are reached.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Maps a large page at `address` to `frame` unless something is mapped there: for windows that are never taken
    /// away. Frame and address are multiples of a large page.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`].
    pub fn map_window(&self, address: GuestVirt, frame: GuestPhys) -> Result<(), MapError> {
        self.map_fixed(address, frame, Size::Large, Perms::ReadWrite)
    }

    /// Maps one page at `address` to `frame` unless something is mapped there: for the mappings of the launch, whose
    /// frames are not the allocator's.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`].
    pub fn map_fixed(
        &self,
        address: GuestVirt,
        frame: GuestPhys,
        size: Size,
        perms: Perms,
    ) -> Result<(), MapError> {
        let mut slot = self.directory_entry(address.0)?;
        if size == Size::Small {
            let table = self.table_at(slot)?;
            slot = &self.memory.entries(table)[index(address.0, 0)];
        }
        // An exchange that fails is a write all the same: where tables are shadowed, an exit and the translations below.
        if slot.load(Ordering::Acquire) != 0 {
            return Ok(());
        }
        let leaf = Leaf::written(frame, perms);
        let _ = slot.compare_exchange(0, entry::encode(leaf, size), Ordering::SeqCst, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the tables for windows in `bytes` bytes from `start` on, so that [`map_window`](Self::map_window) there
    /// cannot fail.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`].
    pub fn prepare_window(&self, start: GuestVirt, bytes: u64) -> Result<(), MapError> {
        for directory in (start.0..start.0 + bytes).step_by(1 << 30) {
            self.directory_entry(directory)?;
        }
        Ok(())
    }

    /// The page-directory entry for `address`; makes the tables above it.
    fn directory_entry(&self, address: u64) -> Result<&AtomicU64, MapError> {
        let mut table = self.root;
        for level in [3, 2] {
            table = self.table_at(&self.memory.entries(table)[index(address, level)])?;
        }
        Ok(&self.memory.entries(table)[index(address, 1)])
    }

    /// The same without making tables.
    fn find_directory_entry(&self, address: u64) -> Option<&AtomicU64> {
        let mut table = self.root;
        for level in [3, 2] {
            table = entry::table(self.memory.entries(table)[index(address, level)].load(Ordering::Acquire))?;
        }
        Some(&self.memory.entries(table)[index(address, 1)])
    }

    /// The table that `slot` points to, which is made if `slot` is empty.
    fn table_at(&self, slot: &AtomicU64) -> Result<GuestPhys, MapError> {
        loop {
            let bits = slot.load(Ordering::Acquire);
            if let Some(table) = entry::table(bits) {
                return Ok(table);
            }
            if bits != 0 {
                return Err(MapError::OutOfTables);
            }
            match self.install_table(slot, 0, 0, |_| 0) {
                Ok(Installed::Ours(table)) => return Ok(table),
                Err(error) if slot.load(Ordering::Acquire) == 0 => return Err(error),
                _ => continue,
            }
        }
    }

    /// Begins to track for warm slots what is written in the range: what is mapped there becomes small pages (large ones for
    /// which there is no table stay as they are) and counts as clean. The caller owns the range and flushes; what is given a
    /// frame later counts as written.
    pub fn track(&self, range: PageRange) -> Flush {
        let mut flush = Flush::NotNeeded;
        for (start, end) in chunks(range) {
            let Some(slot) = self.find_directory_entry(start) else { continue };
            let bits = slot.load(Ordering::Acquire);
            if entry::table(bits).is_none() && !entry::is_leaf(bits, Size::Large) {
                continue;
            }
            let chunk = Chunk { directory_entry: slot, start, end };
            loop {
                let Ok(table) = self.split(slot) else {
                    if chunk.is_whole() {
                        entry::clean(slot, Size::Large, View::Slots);
                    }
                    break;
                };
                for entry in self.small_entries(table, &chunk) {
                    entry::clean(entry, Size::Small, View::Slots);
                }
                if self.keeps(slot, table) {
                    break;
                }
            }
            flush = Flush::Needed;
        }
        flush
    }

    /// Makes the range inaccessible but keeps its frames, with their content, and its promises: mapping it again brings them
    /// back at once. The caller owns the range, which is readable and writable. What is missing can't be hidden: it stays as it
    /// is, and the result is not complete.
    pub fn hide(&self, range: PageRange) -> Unmapped {
        let mut hidden = Unmapped { flush: Flush::NotNeeded, complete: true };
        for (start, end) in chunks(range) {
            let Some(slot) = self.find_directory_entry(start) else { continue };
            if slot.load(Ordering::Acquire) == 0 {
                continue;
            }
            let chunk = Chunk { directory_entry: slot, start, end };
            loop {
                let Ok(table) = self.split(slot) else {
                    hidden.complete = false;
                    break;
                };
                for entry in self.small_entries(table, &chunk) {
                    let flush = update(entry, |leaf| match leaf {
                        // What migration was shown but has not copied yet, it can't any more: it must see it again.
                        Leaf::Present { frame, perms: Perms::ReadWrite, dirty, .. } => {
                            (Leaf::Hidden { frame: Some(frame), dirty, unsent: true }, Flush::Needed)
                        }
                        Leaf::Lazy(Perms::ReadWrite) => {
                            (Leaf::Hidden { frame: None, dirty: false, unsent: false }, Flush::NotNeeded)
                        }
                        other => (other, Flush::NotNeeded),
                    });
                    hidden.flush = hidden.flush.or(flush);
                    let now = entry::decode(entry.load(Ordering::Acquire));
                    hidden.complete &= !matches!(now, Leaf::Missing { .. });
                }
                if self.keeps(slot, table) {
                    break;
                }
            }
        }
        hidden
    }

    /// Calls `step` for each page-directory entry under `range`.
    fn for_each_chunk(
        &self,
        range: PageRange,
        mut step: impl FnMut(Chunk<'_>) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        for (start, end) in chunks(range) {
            step(Chunk { directory_entry: self.directory_entry(start)?, start, end })?;
        }
        Ok(())
    }

    /// Pages of the range that are absent.
    fn count_absent(&self, range: PageRange) -> u64 {
        let mut present = 0;
        self.scan(range, &mut |mapping| present += mapping.size.bytes() / PAGE_BYTES);
        range.bytes() / PAGE_BYTES - present.min(range.bytes() / PAGE_BYTES)
    }

    fn map_chunk(&self, chunk: &Chunk<'_>, perms: Perms) -> Result<Flush, MapError> {
        let slot = chunk.directory_entry;
        let mut flush = Flush::NotNeeded;
        loop {
            let bits = slot.load(Ordering::Acquire);
            if chunk.is_whole() && entry::table(bits).is_none() {
                let (leaf, changed) = with_perms(entry::decode(bits), perms);
                if exchange(slot, bits, leaf, Size::Large) {
                    return Ok(flush.or(changed));
                }
                continue;
            }
            let table = self.split(slot)?;
            for entry in self.small_entries(table, chunk) {
                flush = flush.or(update(entry, |leaf| with_perms(leaf, perms)));
            }
            if perms == Perms::ReadWrite && self.merge(slot, table) {
                return Ok(Flush::Needed);
            }
            if self.keeps(slot, table) {
                return Ok(flush);
            }
        }
    }

    fn small_entries(&self, table: GuestPhys, chunk: &Chunk<'_>) -> &[AtomicU64] {
        let first = index(chunk.start, 0);
        let count = ((chunk.end - chunk.start) / PAGE_BYTES) as usize;
        &self.memory.entries(table)[first..first + count]
    }

    fn unmap_chunk(&self, chunk: &Chunk<'_>, pages: &mut u64) -> Result<Flush, MapError> {
        let slot = chunk.directory_entry;
        loop {
            let bits = slot.load(Ordering::Acquire);
            if bits == 0 {
                return Ok(Flush::NotNeeded);
            }
            if chunk.is_whole() && entry::table(bits).is_none() {
                if exchange(slot, bits, Leaf::Absent, Size::Large) {
                    *pages += SMALL_PER_LARGE;
                    return Ok(self.free_frame_of(entry::decode(bits), Size::Large));
                }
                continue;
            }
            let table = self.split(slot)?;
            let Some((first, others)) = self.small_entries(table, chunk).split_first() else {
                return Ok(Flush::NotNeeded);
            };
            // An absent page keeps the rest from becoming a large page. Nothing is freed before that is certain.
            let first = entry::decode(first.swap(0, Ordering::SeqCst));
            if !self.keeps(slot, table) {
                continue;
            }
            let mut flush = Flush::NotNeeded;
            let others = others.iter().map(|entry| entry::decode(entry.swap(0, Ordering::AcqRel)));
            for leaf in core::iter::once(first).chain(others) {
                *pages += u64::from(leaf != Leaf::Absent);
                flush = flush.or(self.free_frame_of(leaf, Size::Small));
            }
            if chunk.is_whole() && self.drop_table(slot, table) {
                flush = Flush::Needed;
            }
            return Ok(flush);
        }
    }

    /// Frees the frame of an entry that was taken away. Where none is left to free, translations need no flush.
    fn free_frame_of(&self, leaf: Leaf, size: Size) -> Flush {
        let Some(frame) = leaf.own_frame() else { return Flush::NotNeeded };
        self.free_frame(frame, size);
        Flush::Needed
    }

    fn free_frame(&self, frame: GuestPhys, size: Size) {
        match size {
            Size::Small => self.frames.free_small(frame),
            Size::Large => self.frames.free_large(frame),
        }
    }

    /// Gives frames to what is promised under one page-directory entry in `start..end`.
    fn populate_chunk(&self, slot: &AtomicU64, start: u64, end: u64) -> Result<(), MapError> {
        let _moving = self.frames.moving();
        let bits = slot.load(Ordering::Acquire);
        let table = match entry::table(bits) {
            Some(table) => table,
            None => match entry::decode(bits) {
                Leaf::Lazy(perms) => match self.alloc_zeroed_large() {
                    Some(frame) => {
                        self.back(slot, bits, frame, perms, Size::Large);
                        return Ok(());
                    }
                    // Memory is there, but not in one piece.
                    None => self.split(slot)?,
                },
                _ => return Ok(()),
            },
        };
        let chunk = Chunk { directory_entry: slot, start, end };
        for entry in self.small_entries(table, &chunk) {
            let bits = entry.load(Ordering::Acquire);
            // A large promise here means that this table was freed and reused since we found it.
            if let Leaf::Lazy(perms) = entry::decode(bits)
                && !entry::is_large(bits)
            {
                let frame = self.frames.alloc_small().ok_or(MapError::OutOfMemory)?;
                self.memory.zero(frame, Size::Small);
                self.back(entry, bits, frame, perms, Size::Small);
            }
        }
        Ok(())
    }

    /// Zeroes large frames ahead, until `count` are ready, while `spare_pages` are promised to nobody.
    pub fn zero_ahead(&self, count: u32, spare_pages: u64) {
        for _ in self.frames.ready()..count {
            let _moving = self.frames.moving();
            let Some(frame) = self.frames.take_unready(spare_pages) else { return };
            self.memory.zero(frame, Size::Large);
            self.frames.put_ready(frame);
        }
    }

    fn alloc_zeroed_large(&self) -> Option<GuestPhys> {
        let (frame, zeroed) = self.frames.alloc_large()?;
        if !zeroed {
            self.memory.zero(frame, Size::Large);
        }
        Some(frame)
    }

    /// Turns the promise `bits` in `slot` into a mapping of `frame`, which is all zero, unless another vCPU was faster.
    fn back(&self, slot: &AtomicU64, bits: u64, frame: GuestPhys, perms: Perms, size: Size) {
        if !exchange(slot, bits, Leaf::written(frame, perms), size) {
            self.free_frame(frame, size);
        }
    }

    /// The leaf that decides about `address`.
    fn leaf(&self, address: u64) -> Leaf {
        let Some(slot) = self.find_directory_entry(address) else { return Leaf::Absent };
        let bits = slot.load(Ordering::Acquire);
        match entry::table(bits) {
            Some(table) => {
                entry::decode(self.memory.entries(table)[index(address, 0)].load(Ordering::Acquire))
            }
            None => entry::decode(bits),
        }
    }
}

impl<M: TableMemory> AddressSpace for PageTables<'_, M> {
    fn map(&self, range: PageRange, perms: Perms) -> Result<Flush, MapError> {
        let new_pages = self.count_absent(range);
        self.frames.commit(new_pages).map_err(|_| MapError::OutOfMemory)?;
        let mut flush = Flush::NotNeeded;
        let result = self.for_each_chunk(range, |chunk| {
            flush = flush.or(self.map_chunk(&chunk, perms)?);
            Ok(())
        });
        if let Err(error) = result {
            // Give back the part of the promise that no entry stands for.
            self.frames.uncommit(self.count_absent(range));
            return Err(error);
        }
        Ok(flush)
    }

    fn unmap(&self, range: PageRange) -> Unmapped {
        let (mut flush, mut complete, mut pages) = (Flush::NotNeeded, true, 0);
        for (start, end) in chunks(range) {
            let Some(directory_entry) = self.find_directory_entry(start) else { continue };
            match self.unmap_chunk(&Chunk { directory_entry, start, end }, &mut pages) {
                Ok(chunk_flush) => flush = flush.or(chunk_flush),
                Err(_) => complete = false,
            }
        }
        self.frames.uncommit(pages);
        Unmapped { flush, complete }
    }

    fn populate(&self, range: PageRange) -> Result<(), MapError> {
        for (start, end) in chunks(range) {
            if let Some(slot) = self.find_directory_entry(start) {
                self.populate_chunk(slot, start, end)?;
            }
        }
        Ok(())
    }

    fn fault(&self, address: GuestVirt, access: Access) -> Fault {
        match self.leaf(address.0) {
            Leaf::Absent => Fault::Violation,
            Leaf::Present { perms, .. } if perms.allow(access) => Fault::Spurious,
            Leaf::Lazy(perms) if perms.allow(access) => {
                let start = address.0 & !(FAULT_AROUND_BYTES - 1);
                let Some(slot) = self.find_directory_entry(start) else { return Fault::Violation };
                match self.populate_chunk(slot, start, start + FAULT_AROUND_BYTES) {
                    Ok(()) => Fault::Resolved,
                    // Out of frames for the neighbours is no harm; and what is on its way back is there at the next try.
                    Err(_) if matches!(self.leaf(address.0), Leaf::Present { .. }) => Fault::Resolved,
                    Err(_) if self.frames.in_transit() => Fault::Resolved,
                    Err(_) => Fault::OutOfMemory,
                }
            }
            Leaf::Missing { perms, .. } if perms.allow(access) => Fault::Missing,
            Leaf::Present { .. } | Leaf::Lazy(_) | Leaf::Hidden { .. } | Leaf::Missing { .. } => {
                Fault::Violation
            }
        }
    }

    fn scan(&self, range: PageRange, visit: &mut dyn FnMut(Mapping)) {
        for (start, end) in chunks(range) {
            let Some(slot) = self.find_directory_entry(start) else { continue };
            let mut at = start;
            while at < end {
                let bits = slot.load(Ordering::Acquire);
                if let Some(table) = entry::table(bits) {
                    at = self.scan_small(slot, table, (at, end), visit);
                    continue;
                }
                match entry::decode(bits) {
                    Leaf::Absent => {}
                    leaf if end - at == LARGE_PAGE_BYTES => {
                        visit(Mapping { start: GuestVirt(at), size: Size::Large, leaf })
                    }
                    leaf => scan_part_of_large(at, end, leaf, visit),
                }
                break;
            }
        }
    }
}

impl<M: TableMemory> PageTables<'_, M> {
    /// Shows the pages of a part of a table. Ends early, with the address to go on at, if another table (or none) has taken its
    /// place while a page was shown: who is shown one may give the processor away.
    fn scan_small(
        &self,
        slot: &AtomicU64,
        table: GuestPhys,
        (start, end): (u64, u64),
        visit: &mut dyn FnMut(Mapping),
    ) -> u64 {
        for page in (start..end).step_by(PAGE_BYTES as usize) {
            let leaf = entry::decode(self.memory.entries(table)[index(page, 0)].load(Ordering::Acquire));
            if leaf == Leaf::Absent {
                continue;
            }
            visit(Mapping { start: GuestVirt(page), size: Size::Small, leaf });
            if entry::table(slot.load(Ordering::Acquire)) != Some(table) {
                return page + PAGE_BYTES;
            }
        }
        end
    }
}

/// Shows the pages `start..end` of a large leaf one by one.
fn scan_part_of_large(start: u64, end: u64, leaf: Leaf, visit: &mut dyn FnMut(Mapping)) {
    for page in (start..end).step_by(PAGE_BYTES as usize) {
        let leaf = leaf.piece(page % LARGE_PAGE_BYTES / PAGE_BYTES);
        visit(Mapping { start: GuestVirt(page), size: Size::Small, leaf });
    }
}

/// Changes one small entry, whatever others do to it meanwhile.
fn update(entry: &AtomicU64, change: impl Fn(Leaf) -> (Leaf, Flush)) -> Flush {
    loop {
        let bits = entry.load(Ordering::Acquire);
        let (leaf, flush) = change(entry::decode(bits));
        if exchange(entry, bits, leaf, Size::Small) {
            return flush;
        }
    }
}

/// Puts `leaf` in the place of `bits`; false if somebody else has changed them. What is the same already is not written: where
/// tables are shadowed, a write is an exit.
fn exchange(entry: &AtomicU64, bits: u64, leaf: Leaf, size: Size) -> bool {
    let new = entry::encode(leaf, size);
    bits == new || entry.compare_exchange(bits, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
}

/// Index of `address` in a table of `level` (0: leaf table).
fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level)) as usize & (ENTRIES - 1)
}

/// The range cut at multiples of a large page.
fn chunks(range: PageRange) -> impl Iterator<Item = (u64, u64)> {
    let mut at = range.start();
    core::iter::from_fn(move || {
        let start = at;
        at = ((start & !(LARGE_PAGE_BYTES - 1)) + LARGE_PAGE_BYTES).min(range.end());
        (start < range.end()).then_some((start, at))
    })
}

#[cfg(test)]
mod arrival_tests;
#[cfg(test)]
mod migration_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod tests;
