//! Large pages become tables of small ones and back, and who may look at the tables of a range that is not his.
//!
//! Owners of ranges split and merge as they map. Migration also does so in ranges that it does not own, while their owners change them:
//!
//! * A **visitor** ([`PageTables::visit`]) looks at tables that an owner may take away meanwhile. Who takes a table away
//!   while there are visitors does not free it but [retires](super::retired) it.
//! * A **join** puts a large page in the place of 512 small ones that are its pieces, in place. It marks the table's entry in the
//!   directory with JOINING, looks at all small entries, and exchanges the marked entry for the large one. An owner who has
//!   changed small entries then looks whether the directory still points to the table ([`PageTables::keeps`]), and takes the mark
//!   away if it is there. If the owner's look came first, the join sees what he changed; if it came between, the exchange
//!   fails; if it came last, the owner does his change again, on the large page. Owners never wait and, without a
//!   join, never write to the directory, which costs an exit where tables are shadowed. The mark UNIFORM, of which
//!   [`runs`](super::runs) tells, goes the same way.
//!
//! A processor may set D in a small entry after a join has looked at it, even after the large page is there. So a join only takes
//! pages that are written in the view of slots, and its large page counts as written for everybody: nothing can be lost.

use super::*;
use core::sync::atomic::fence;

/// While this lives, no table that its holder has found is freed.
pub(super) struct Visit<'v>(&'v AtomicU64);

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What became of an attempt to put a table in an entry's place.
pub(super) enum Installed {
    /// It is there.
    Ours(GuestPhys),
    /// The entry has changed.
    Changed,
}

/// Puts a large leaf in the place of a table, whatever marks are on it; false if another one, or none, is there by now.
pub(super) fn replace_table(slot: &AtomicU64, table: GuestPhys, leaf: Leaf) -> bool {
    loop {
        let bits = slot.load(Ordering::SeqCst);
        if entry::table(bits) != Some(table) {
            return false;
        }
        if exchange(slot, bits, leaf, Size::Large) {
            return true;
        }
    }
}

impl<M: TableMemory> PageTables<'_, M> {
    /// Begins to look at tables of ranges that the caller does not own.
    pub(super) fn visit(&self) -> Visit<'_> {
        self.visitors.fetch_add(1, Ordering::SeqCst);
        Visit(&self.visitors)
    }

    /// Puts a new table with the given content into `slot`, with these marks, if that holds `expected`.
    pub(super) fn install_table(
        &self,
        slot: &AtomicU64,
        expected: u64,
        marks: u64,
        content: impl Fn(u64) -> u64,
    ) -> Result<Installed, MapError> {
        let table = self.pool.alloc().ok_or(MapError::OutOfTables)?;
        for (number, entry) in self.memory.entries(table).iter().enumerate() {
            entry.store(content(number as u64), Ordering::Relaxed);
        }
        let new = entry::encode_table(table) | marks;
        if slot.compare_exchange(expected, new, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            return Ok(Installed::Ours(table));
        }
        self.pool.free(table);
        Ok(Installed::Changed)
    }

    /// Puts a table of the small pages of the large leaf `whole` into `slot`, if that holds `expected`.
    pub(super) fn install_pieces(
        &self,
        slot: &AtomicU64,
        expected: u64,
        whole: u64,
    ) -> Result<Installed, MapError> {
        let leaf = entry::decode(whole);
        let is_uniform = entry::run_kind(whole) == entry::mapped_kind(Perms::ReadWrite);
        let marks = if is_uniform { entry::UNIFORM } else { 0 };
        let piece = |number| entry::encode(leaf.piece(number), Size::Small);
        let (first, step) = (piece(0), piece(1) - piece(0));
        self.install_table(slot, expected, marks, |number| first + number * step)
    }

    /// The table under `slot`: a large leaf there is replaced by a table of small ones that say the same.
    pub(super) fn split(&self, slot: &AtomicU64) -> Result<GuestPhys, MapError> {
        loop {
            let bits = slot.load(Ordering::Acquire);
            if let Some(table) = entry::table(bits) {
                return Ok(table);
            }
            match self.install_pieces(slot, bits, bits) {
                Ok(Installed::Ours(table)) => return Ok(table),
                Ok(Installed::Changed) => continue,
                // Another vCPU has put the last table here, or turned the promise into a frame: look again.
                Err(_) if slot.load(Ordering::Acquire) != bits => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether `table` is still under `slot`; then no join that has not seen the caller's changes to it will succeed, and nobody
    /// takes it to be uniform who has not seen them.
    pub(super) fn keeps(&self, slot: &AtomicU64, table: GuestPhys) -> bool {
        fence(Ordering::SeqCst);
        loop {
            let bits = slot.load(Ordering::SeqCst);
            if entry::table(bits) != Some(table) {
                return false;
            }
            let plain = bits & !(entry::JOINING | entry::UNIFORM);
            if bits == plain
                || slot.compare_exchange(bits, plain, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            {
                return true;
            }
        }
    }

    /// Takes a table whose pages are all absent out of `slot`; false if it must stay, empty as it is. The caller owns all of its
    /// range.
    pub(super) fn drop_table(&self, slot: &AtomicU64, table: GuestPhys) -> bool {
        let Some(place) = self.retired.reserve() else { return false };
        slot.swap(0, Ordering::SeqCst);
        self.free_table(table, place);
        true
    }

    /// Frees a table that was just taken out of the tree, or retires it.
    pub(super) fn free_table(&self, table: GuestPhys, place: retired::Place<'_>) {
        fence(Ordering::SeqCst);
        if self.visitors.load(Ordering::SeqCst) == 0 {
            self.pool.free(table);
        } else {
            place.put(table);
        }
    }

    /// The large frame whose pieces, in order, are behind the entries, if they are all readable and writable and as `fits` says.
    fn pieces_of(&self, entries: &[AtomicU64], fits: impl Fn(u64) -> bool) -> Option<GuestPhys> {
        let mut whole = None;
        for (number, entry) in entries.iter().enumerate() {
            let bits = entry.load(Ordering::SeqCst);
            let Leaf::Present { frame, perms: Perms::ReadWrite, .. } = entry::decode(bits) else {
                return None;
            };
            let first = *whole.get_or_insert(frame);
            if !fits(bits) || frame.0 != first.0 + number as u64 * PAGE_BYTES {
                return None;
            }
        }
        whole.filter(|frame| frame.0.is_multiple_of(LARGE_PAGE_BYTES))
    }

    /// If all 512 small pages under `slot` are readable and writable, makes them one large page; says whether it did. The caller
    /// owns the range, so nobody writes to the pages meanwhile. Pieces of one large page are joined in place, but not if somebody
    /// tracks which of them are written.
    pub(super) fn merge(&self, slot: &AtomicU64, table: GuestPhys) -> bool {
        let entries = self.memory.entries(table);
        let leaves = || entries.iter().map(|entry| entry::decode(entry.load(Ordering::Acquire)));
        let mergeable = |leaf| {
            matches!(leaf, Leaf::Lazy(Perms::ReadWrite) | Leaf::Present { perms: Perms::ReadWrite, .. })
        };
        if !leaves().all(mergeable) {
            return false;
        }
        let Some(place) = self.retired.reserve() else { return false };
        let pieces = self.pieces_of(entries, |_| true);
        let merged = if let Some(frame) = pieces {
            if !leaves().all(|leaf| matches!(leaf, Leaf::Present { dirty: true, unsent: true, .. })) {
                return false;
            }
            Leaf::written(frame, Perms::ReadWrite)
        } else if leaves().all(|leaf| matches!(leaf, Leaf::Lazy(_))) {
            Leaf::Lazy(Perms::ReadWrite)
        } else {
            let _moving = self.frames.moving();
            let Some(frame) = self.alloc_zeroed_large() else { return false };
            for (number, leaf) in leaves().enumerate() {
                if let Leaf::Present { frame: from, .. } = leaf {
                    self.memory.copy_page(from, GuestPhys(frame.0 + number as u64 * PAGE_BYTES));
                }
            }
            Leaf::written(frame, Perms::ReadWrite)
        };
        if !replace_table(slot, table, merged) {
            if pieces.is_none() {
                let _ = self.free_frame_of(merged, Size::Large);
            }
            return false;
        }
        if pieces.is_none() {
            self.free_small_frames(table);
        }
        self.free_table(table, place);
        true
    }

    /// Frees the frames behind the entries of a table that was taken out of the tree.
    pub(super) fn free_small_frames(&self, table: GuestPhys) {
        for entry in self.memory.entries(table) {
            let _ = self.free_frame_of(entry::decode(entry.swap(0, Ordering::AcqRel)), Size::Small);
        }
    }

    /// Makes the small pages of the region (2 MiB) at `region` one large page again, if they are readable and writable and
    /// the pieces of one large frame, in order: in place, without a copy, while the tenant runs. It then counts as written for
    /// everybody. A region where slots track what is written stays as it is. One caller per region at a time, who need not own
    /// it; the table is free once [`recycle_tables`](Self::recycle_tables) has been called.
    pub fn rejoin_region(&self, region: u64) -> Flush {
        let _visit = self.visit();
        let Some(slot) = self.find_directory_entry(region) else { return Flush::NotNeeded };
        let plain = slot.load(Ordering::Acquire);
        let Some(table) = entry::table(plain) else { return Flush::NotNeeded };
        let look = || self.pieces_of(self.memory.entries(table), |bits| entry::is_written(bits, View::Slots));
        // Looked at first without a mark, which is a write to the directory.
        let Some(place) = look().and_then(|_| self.retired.reserve()) else { return Flush::NotNeeded };
        let marked = plain | entry::JOINING;
        if plain == marked
            || slot.compare_exchange(plain, marked, Ordering::SeqCst, Ordering::Relaxed).is_err()
        {
            return Flush::NotNeeded;
        }
        fence(Ordering::SeqCst);
        if let Some(frame) = look()
            && exchange(slot, marked, Leaf::written(frame, Perms::ReadWrite), Size::Large)
        {
            // Not freed even if nobody visits: processors may still find it, and owners may be about to look whether it is there.
            place.put(table);
            return Flush::Needed;
        }
        let _ = slot.compare_exchange(marked, plain, Ordering::SeqCst, Ordering::Relaxed);
        Flush::NotNeeded
    }

    /// Notes which tables were taken out of use up to now. Whoever then makes every vCPU flush, and waits until all have, may
    /// [`recycle_tables`](Self::recycle_tables). One caller at a time for both.
    pub fn seal_tables(&self) -> bool {
        self.retired.seal()
    }

    /// Makes the tables that were noted by [`seal_tables`](Self::seal_tables) available again; returns how many. Until then at most
    /// 128 wait, and further joins are refused.
    pub fn recycle_tables(&self) -> u64 {
        self.retired.recycle(&self.pool)
    }
}
