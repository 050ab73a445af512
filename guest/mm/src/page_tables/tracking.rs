//! The source of a migration: which pages were written since it last looked.
//!
//! The agent looks while the tenant runs, in ranges that it does not own, in this order: [`PageTables::collect_region`] over all
//! regions (any vCPUs, one per region), then every vCPU flushes and confirms it, then what was shown is copied. A write that is
//! not in the copy sets the bit again, so that the next collection shows it. Where a page was shown, its frame may have changed
//! until it is copied: [`PageTables::lookup`] again. Whatever is unmapped, replaced or written meanwhile is shown later,
//! or is not in the list of [runs](PageTables::runs) at the end.

use super::*;

/// Which pages a collection shows, and what becomes of large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// All that are present, written or not; large ones stay. For the first round.
    All,
    /// Those that were written. Nothing is changed, so they count as written as before: for the last time, when nobody writes any more.
    /// Where tables are shadowed the first change of each costs an exit.
    Last,
    /// Those that were written. A large one is shown whole for the last time: then it is small ones, none of which counts as written.
    /// If there is no table for that it stays.
    Split,
    /// The same, but a large one becomes small ones whether it was written or not; only those that were are shown.
    SplitAll,
}

/// Entries that are looked at together: a line of the cache.
const ENTRIES_PER_LINE: usize = 8;
/// End of the addresses that four levels translate.
const END: u64 = 1 << 48;

impl<M: TableMemory> PageTables<'_, M> {
    /// The first region (2 MiB) at or after the one of `at` and below `end` in which there may be something. What is absent in
    /// whole gigabytes or more is skipped.
    pub fn next_region(&self, at: u64, end: u64) -> Option<u64> {
        let end = end.min(END);
        if at >= end {
            return None;
        }
        let mut at = at & !(LARGE_PAGE_BYTES - 1);
        'search: while at < end {
            let mut table = self.root;
            for level in [3, 2] {
                let above = self.memory.entries(table)[index(at, level)].load(Ordering::Acquire);
                let Some(below) = entry::table(above) else {
                    let bytes = 1 << (12 + 9 * level);
                    at = (at & !(bytes - 1)) + bytes;
                    continue 'search;
                };
                table = below;
            }
            for slot in &self.memory.entries(table)[index(at, 1)..] {
                if at >= end {
                    return None;
                }
                if slot.load(Ordering::Relaxed) != 0 {
                    return Some(at);
                }
                at += LARGE_PAGE_BYTES;
            }
        }
        None
    }

    /// Where the small pages of the region (2 MiB) at `region` have their table, if they have one just now: for who has the processor read it
    /// ahead.
    pub fn leaf_table(&self, region: u64) -> Option<GuestPhys> {
        entry::table(self.find_directory_entry(region)?.load(Ordering::Relaxed))
    }

    /// The page that decides about an address, if it is not absent: with the frame of that page, small or large.
    pub fn lookup(&self, address: GuestVirt) -> Option<Mapping> {
        let _visit = self.visit();
        let slot = self.find_directory_entry(address.0)?;
        let bits = slot.load(Ordering::Acquire);
        let (bits, size) = match entry::table(bits) {
            Some(table) => {
                (self.memory.entries(table)[index(address.0, 0)].load(Ordering::Acquire), Size::Small)
            }
            None => (bits, Size::Large),
        };
        let start = GuestVirt(address.0 & !(size.bytes() - 1));
        let leaf = entry::decode(bits);
        (leaf != Leaf::Absent).then_some(Mapping { start, size, leaf })
    }

    /// Shows the pages of the region (2 MiB) at `region` that migration has to hear of: those that were written since the last
    /// collection (`how` says more), and those that are promised, each time. A page counts as not written from just before
    /// it is shown, but for the last time. What is hidden or missing is not shown.
    ///
    /// One caller per region at a time, who need not own it; `visit` must not give the processor away.
    pub fn collect_region(&self, region: u64, how: Collect, visit: &mut dyn FnMut(Mapping)) -> Flush {
        let _visit = self.visit();
        let Some(slot) = self.find_directory_entry(region) else { return Flush::NotNeeded };
        loop {
            let bits = slot.load(Ordering::Acquire);
            if let Some(table) = entry::table(bits) {
                let flush = self.collect_small(region, table, how, visit);
                if how != Collect::Last {
                    self.note_uniform(slot);
                }
                return flush;
            }
            let mut show = |leaf| visit(Mapping { start: GuestVirt(region), size: Size::Large, leaf });
            match entry::decode(bits) {
                leaf @ Leaf::Lazy(_) => show(leaf),
                leaf @ Leaf::Present { unsent: true, .. } if how == Collect::Last => show(leaf),
                leaf @ Leaf::Present { unsent, .. } if unsent || how == Collect::All => {
                    if !self.see_large(slot, bits, how) {
                        continue;
                    }
                    show(leaf);
                    if unsent {
                        return Flush::Needed;
                    }
                }
                // Its pieces have been seen, as it has: nobody has to flush before they are shown.
                Leaf::Present { .. } if how == Collect::SplitAll => {
                    if !self.see_large(slot, bits, how) {
                        continue;
                    }
                    return Flush::Needed;
                }
                _ => {}
            }
            return Flush::NotNeeded;
        }
    }

    /// Makes a large page count as seen, and small ones of it; false if the entry is not `bits` any more.
    fn see_large(&self, slot: &AtomicU64, bits: u64, how: Collect) -> bool {
        let seen = entry::seen(bits, View::Migration);
        if matches!(how, Collect::Split | Collect::SplitAll) {
            match self.install_pieces(slot, bits, seen) {
                Ok(Installed::Ours(_)) => return true,
                Ok(Installed::Changed) => return false,
                Err(_) => {}
            }
        }
        bits == seen || slot.compare_exchange(bits, seen, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn collect_small(
        &self,
        region: u64,
        table: GuestPhys,
        how: Collect,
        visit: &mut dyn FnMut(Mapping),
    ) -> Flush {
        let mut flush = Flush::NotNeeded;
        let mask = entry::to_collect(how == Collect::All);
        let (lines, _) = self.memory.entries(table).as_chunks::<ENTRIES_PER_LINE>();
        for (line, entries) in lines.iter().enumerate() {
            // Most pages are neither written nor promised: they cost no more than this.
            if entries.iter().fold(0, |any, entry| any | entry.load(Ordering::Relaxed)) & mask == 0 {
                continue;
            }
            for (number, entry) in entries.iter().enumerate() {
                let Some(leaf) = see_small(entry, how) else { continue };
                if how != Collect::Last && matches!(leaf, Leaf::Present { unsent: true, .. }) {
                    flush = Flush::Needed;
                }
                let start = region + (line * ENTRIES_PER_LINE + number) as u64 * PAGE_BYTES;
                visit(Mapping { start: GuestVirt(start), size: Size::Small, leaf });
            }
        }
        flush
    }

    /// Makes the present pages of the range count as written for migration: for code that has written to them through another mapping,
    /// where the processor does not note it. Called after the write.
    pub fn mark_written(&self, range: PageRange) {
        let _visit = self.visit();
        let mut at = range.start();
        while let Some(region) = self.next_region(at, range.end()) {
            let (start, end) = (region.max(range.start()), (region + LARGE_PAGE_BYTES).min(range.end()));
            at = region + LARGE_PAGE_BYTES;
            let Some(slot) = self.find_directory_entry(region) else { continue };
            while !mark(slot, Size::Large) {
                let Some(table) = entry::table(slot.load(Ordering::Acquire)) else { continue };
                let chunk = Chunk { directory_entry: slot, start, end };
                for entry in self.small_entries(table, &chunk) {
                    mark(entry, Size::Small);
                }
                // Small pages that have become a large one meanwhile count as written anyway.
                break;
            }
        }
    }
}

/// Makes a small page count as seen, unless it is for the last time; returns what it was if it has to be shown.
fn see_small(entry: &AtomicU64, how: Collect) -> Option<Leaf> {
    loop {
        let bits = entry.load(Ordering::Acquire);
        let leaf = entry::decode(bits);
        match leaf {
            Leaf::Lazy(_) => return Some(leaf),
            Leaf::Present { unsent: true, .. } if how == Collect::Last => return Some(leaf),
            Leaf::Present { unsent: true, .. } => {
                let seen = entry::seen(bits, View::Migration);
                if entry.compare_exchange(bits, seen, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return Some(leaf);
                }
            }
            Leaf::Present { .. } => return (how == Collect::All).then_some(leaf),
            _ => return None,
        }
    }
}

/// Makes an entry's page, if it is present, count as written for migration; false if the entry points to a table.
fn mark(entry: &AtomicU64, size: Size) -> bool {
    loop {
        let bits = entry.load(Ordering::Acquire);
        if size == Size::Large && entry::table(bits).is_some() {
            return false;
        }
        let new = entry::unseen(bits, View::Migration);
        if !entry::is_present(bits)
            || entry::is_written(bits, View::Migration)
            || entry.compare_exchange(bits, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            return true;
        }
    }
}
