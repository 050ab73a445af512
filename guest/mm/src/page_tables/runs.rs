//! What is in use with which permissions, as a list of runs: what the source tells the destination at the end, and what the
//! destination makes of it.
//!
//! Tasks are parked while both is done, so neither may take longer the more memory there is. Nearly all of a large tenant is
//! mapped readable and writable; a table of which that is true of every small page is **uniform**. While tasks run, and pages
//! travel, [`PageTables::note_uniform`] marks such tables in their directory; what is marked need not be looked at in the end.
//! The mark is put there before one looks, and an owner who has changed small entries takes it away afterwards
//! ([`PageTables::keeps`]): so either who looks sees the change, or the mark goes. The pieces of a large page have it from the beginning. What gives a frame to a promise, or takes a page that is there
//! for missing or the other way round, leaves a uniform table uniform.

use super::*;
use core::sync::atomic::fence;

/// Pages one after another that allow the same, and are all promised or all not. Neighbours differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: GuestVirt,
    /// How many small pages; not zero.
    pub pages: u64,
    /// What they allow; of hidden ones, what they will allow.
    pub perms: Perms,
    /// They have no content: they are zero when somebody first touches them.
    pub promised: bool,
    /// They are hidden.
    pub hidden: bool,
}

impl Run {
    /// First address behind the run, if there is one.
    pub fn end(&self) -> Option<u64> {
        self.start.0.checked_add(self.pages.checked_mul(PAGE_BYTES)?)
    }
}

/// Why a list of runs can't be made true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleError {
    /// The runs are not sorted, overlap, are not whole pages, are empty, or lie outside of the range.
    Runs,
    /// Memory or tables ran out.
    Map(MapError),
}

impl From<MapError> for SettleError {
    fn from(error: MapError) -> SettleError {
        SettleError::Map(error)
    }
}

/// The run that is being made longer.
struct Open<'v> {
    start: u64,
    kind: u64,
    visit: &'v mut dyn FnMut(Run),
}

impl Open<'_> {
    /// From `at` on pages are of this kind.
    fn turn(&mut self, at: u64, kind: u64) {
        if kind == self.kind {
            return;
        }
        if self.kind != 0 {
            let (perms, promised, hidden) = entry::of_run_kind(self.kind);
            let pages = (at - self.start) / PAGE_BYTES;
            (self.visit)(Run { start: GuestVirt(self.start), pages, perms, promised, hidden });
        }
        (self.start, self.kind) = (at, kind);
    }
}

impl<M: TableMemory> PageTables<'_, M> {
    /// Shows the runs of the range, in order: present and missing pages count alike, promised ones and hidden ones are in runs of their
    /// own. The caller need not own the range, but what changes meanwhile may be shown as it was or as it is; `visit` must not
    /// give the processor away.
    pub fn runs(&self, range: PageRange, visit: &mut dyn FnMut(Run)) {
        let _visit = self.visit();
        let mut open = Open { start: range.start(), kind: 0, visit };
        let mut at = range.start();
        while let Some(region) = self.next_region(at, range.end()) {
            open.turn(at, if region > at { 0 } else { open.kind });
            let (start, end) = (region.max(range.start()), (region + LARGE_PAGE_BYTES).min(range.end()));
            at = end;
            let Some(slot) = self.find_directory_entry(region) else { continue };
            let bits = slot.load(Ordering::Acquire);
            let Some(table) = entry::table(bits) else {
                open.turn(start, entry::run_kind(bits));
                continue;
            };
            if bits & entry::UNIFORM != 0 {
                open.turn(start, entry::mapped_kind(Perms::ReadWrite));
                continue;
            }
            let entries = self.small_entries(table, &Chunk { directory_entry: slot, start, end });
            for (page, entry) in (start..).step_by(PAGE_BYTES as usize).zip(entries) {
                open.turn(page, entry::run_kind(entry.load(Ordering::Relaxed)));
            }
        }
        open.turn(at, 0);
    }

    /// Notes for each region (2 MiB) that begins in `start..end` whether it is uniform: then [`runs`](Self::runs) and
    /// [`settle_runs`](Self::settle_runs) take no time for it. One caller per region at a time, who need not own it.
    pub fn note_uniform_regions(&self, mut start: u64, end: u64) {
        let _visit = self.visit();
        while let Some(region) = self.next_region(start, end) {
            start = region + LARGE_PAGE_BYTES;
            if let Some(slot) = self.find_directory_entry(region) {
                self.note_uniform(slot);
            }
        }
    }

    /// The same for one entry of a directory, by a visitor.
    pub(super) fn note_uniform(&self, slot: &AtomicU64) {
        let bits = slot.load(Ordering::Acquire);
        let Some(table) = entry::table(bits) else { return };
        let is_uniform = || all_of_kind(self.memory.entries(table), Perms::ReadWrite);
        // Looked at first without a mark, which is a write to the directory.
        if bits & (entry::UNIFORM | entry::JOINING) != 0
            || !is_uniform()
            || slot
                .compare_exchange(bits, bits | entry::UNIFORM, Ordering::SeqCst, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        fence(Ordering::SeqCst);
        if !is_uniform() {
            self.keeps(slot, table);
        }
    }

    /// Makes the range what the runs say, before tasks run: pages outside of all runs are removed; those in a run get its permissions and
    /// keep their content, or are promised if they have none or the run is; hidden ones are hidden, and promised (what is hidden is empty memory). Costs
    /// little where nothing has to change.
    ///
    /// # Errors
    /// [`SettleError::Runs`]: nothing has changed. [`SettleError::Map`]: the range is settled in part.
    pub fn settle_runs(
        &self,
        range: PageRange,
        runs: impl Iterator<Item = Run> + Clone,
    ) -> Result<Flush, SettleError> {
        let mut at = range.start();
        for run in runs.clone() {
            let end = run.end().filter(|end| *end <= range.end()).ok_or(SettleError::Runs)?;
            if run.start.0 < at || end == run.start.0 || !run.start.0.is_multiple_of(PAGE_BYTES) {
                return Err(SettleError::Runs);
            }
            at = end;
        }
        // What goes makes room for what comes.
        let mut flush = Flush::NotNeeded;
        let mut at = range.start();
        for run in runs.clone() {
            flush = flush.or(self.clear(at, run.start.0)?);
            at = run.end().ok_or(SettleError::Runs)?;
        }
        flush = flush.or(self.clear(at, range.end())?);
        for run in runs {
            let pages = PageRange::new(run.start, run.pages * PAGE_BYTES).ok_or(SettleError::Runs)?;
            for (start, end) in chunks(pages) {
                let chunk = Chunk { directory_entry: self.directory_entry(start)?, start, end };
                flush = flush.or(if run.hidden {
                    self.settle_hidden(&chunk)?
                } else {
                    self.settle_chunk(&chunk, run.perms, run.promised)?
                });
            }
        }
        Ok(flush)
    }

    /// Removes what is between two addresses.
    fn clear(&self, mut at: u64, end: u64) -> Result<Flush, MapError> {
        let mut flush = Flush::NotNeeded;
        while let Some(region) = self.next_region(at, end) {
            let (start, stop) = (region.max(at), (region + LARGE_PAGE_BYTES).min(end));
            at = stop;
            let Some(part) = PageRange::new(GuestVirt(start), stop - start) else { continue };
            let unmapped = self.unmap(part);
            flush = flush.or(unmapped.flush);
            if !unmapped.complete {
                return Err(MapError::OutOfTables);
            }
        }
        Ok(flush)
    }

    fn settle_chunk(&self, chunk: &Chunk<'_>, perms: Perms, promised: bool) -> Result<Flush, MapError> {
        let slot = chunk.directory_entry;
        let table = loop {
            let bits = slot.load(Ordering::Acquire);
            if let Some(table) = entry::table(bits) {
                if bits & entry::UNIFORM != 0 && perms == Perms::ReadWrite && !promised {
                    return Ok(Flush::NotNeeded);
                }
                // It may not be uniform any more.
                self.keeps(slot, table);
                break table;
            }
            let old = entry::decode(bits);
            let (leaf, flush) = settled(old, perms, promised);
            if leaf == old {
                return Ok(Flush::NotNeeded);
            }
            if !chunk.is_whole() {
                self.split(slot)?;
                continue;
            }
            let promise = self.promise(if bits == 0 { SMALL_PER_LARGE } else { 0 })?;
            if exchange(slot, bits, leaf, Size::Large) {
                promise.keep();
                return Ok(if promised { self.free_frame_of(old, Size::Large) } else { flush });
            }
        };
        let entries = self.small_entries(table, chunk);
        if !promised && all_of_kind(entries, perms) {
            return Ok(Flush::NotNeeded);
        }
        self.promise_absent(entries)?.keep();
        let mut flush = Flush::NotNeeded;
        for entry in entries {
            let bits = entry.load(Ordering::Acquire);
            let old = entry::decode(bits);
            let (leaf, changed) = settled(old, perms, promised);
            // Nobody else changes it: tasks do not run yet.
            if leaf != old && exchange(entry, bits, leaf, Size::Small) {
                flush = flush.or(if promised { self.free_frame_of(old, Size::Small) } else { changed });
            }
        }
        Ok(flush)
    }

    fn settle_hidden(&self, chunk: &Chunk<'_>) -> Result<Flush, MapError> {
        let table = self.split(chunk.directory_entry)?;
        self.keeps(chunk.directory_entry, table);
        let entries = self.small_entries(table, chunk);
        self.promise_absent(entries)?.keep();
        let hidden = Leaf::Hidden { frame: None, dirty: false, unsent: false };
        let mut flush = Flush::NotNeeded;
        for entry in entries {
            let mut bits = entry.load(Ordering::Acquire);
            while !exchange(entry, bits, hidden, Size::Small) {
                bits = entry.load(Ordering::Acquire);
            }
            flush = flush.or(self.free_frame_of(entry::decode(bits), Size::Small));
        }
        Ok(flush)
    }

    /// Promises those of the pages that are absent.
    fn promise_absent(&self, entries: &[AtomicU64]) -> Result<arrival::Promise<'_>, MapError> {
        let absent = entries.iter().filter(|entry| entry.load(Ordering::Acquire) == 0).count();
        self.promise(absent as u64)
    }
}

/// Whether all these pages are mapped, or missing, and allow this.
fn all_of_kind(entries: &[AtomicU64], perms: Perms) -> bool {
    let kind = entry::mapped_kind(perms);
    entries.iter().all(|entry| entry::run_kind(entry.load(Ordering::SeqCst)) == kind)
}

/// What a page becomes in a run.
fn settled(old: Leaf, perms: Perms, promised: bool) -> (Leaf, Flush) {
    if promised { (Leaf::Lazy(perms), Flush::NotNeeded) } else { with_perms(old, perms) }
}
