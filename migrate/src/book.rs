//! What both ledgers have in common: a table in which every address belongs to exactly one unit, and its fingerprint.
//!
//! A large page that changes only here and there is *split* into its small ones; a large page that comes whole *absorbs* the small
//! ones. Both ends do so at the same records, so their tables stay the same.

use crate::fingerprint::{Point, add, sub};
use crate::table::{AGAIN, Full, Index, MISSING, REQUESTED, Storage, Table};
use crate::unit::{Content, Extent, Place, Round, SMALL_PER_LARGE, Unit};

/// What one end has of a lane, to compare with the other's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Summary {
    /// Units that are there, with zeros or data.
    pub units: u64,
    /// The fingerprint of all of them.
    pub fingerprint: u128,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Book<S> {
    pub table: Table<S>,
    point: Point,
    summary: Summary,
    /// Small pages, gone ones included: without any there is nothing to look for around large ones.
    small: usize,
}

impl<S: Storage> Book<S> {
    pub(crate) fn new(storage: S, secret: &[u8; 32]) -> Book<S> {
        Book { table: Table::new(storage), point: Point::new(secret), summary: Summary::default(), small: 0 }
    }

    pub(crate) fn summary(&self) -> Summary {
        self.summary
    }

    pub(crate) fn get(&self, place: Place) -> Option<(Index, Unit)> {
        let index = self.table.find(place)?;
        Some((index, self.table.unit(index)))
    }

    /// The large page around a small one that is there as one unit.
    pub(crate) fn around(&self, place: Place) -> Option<(Index, Unit)> {
        self.get(place.around()?)
    }

    /// Enters a unit, or its new generation. What else covers its addresses must be gone.
    pub(crate) fn put(&mut self, unit: Unit) -> Result<Index, Full> {
        match self.get(unit.place) {
            Some((index, old)) => {
                self.table.update(index, unit);
                self.change(&old, &unit);
                Ok(index)
            }
            None => {
                let index = self.table.insert(unit)?;
                self.small += usize::from(unit.place.extent() == Extent::Small);
                self.change(&Unit { content: Content::Absent, ..unit }, &unit);
                Ok(index)
            }
        }
    }

    pub(crate) fn remove(&mut self, index: Index) {
        let unit = self.table.unit(index);
        self.table.remove(index);
        self.small -= usize::from(unit.place.extent() == Extent::Small);
        self.change(&unit, &Unit { content: Content::Absent, ..unit });
    }

    /// Removes what is gone and of these rounds from the table; returns how many of those are left.
    pub(crate) fn forget_absent(&mut self, until: Round) -> usize {
        let (mut left, mut small) = (0, self.small);
        self.table.sweep(|table, index| {
            let unit = table.unit(index);
            if unit.content != Content::Absent {
                return;
            }
            if unit.generation > until || table.is_queued(index) {
                left += 1;
                return;
            }
            table.remove(index);
            small -= usize::from(unit.place.extent() == Extent::Small);
        });
        self.small = small;
        left
    }

    /// Counts what was at a place no longer, and what is there now.
    fn change(&mut self, old: &Unit, new: &Unit) {
        let [before, after] = [old, new].map(|unit| (unit.content != Content::Absent).then(|| weight(unit)));
        if before.is_none() && after.is_none() {
            return;
        }
        let key = new.place.key();
        let (less, more) = self.point.terms(key, before.unwrap_or(0), after.unwrap_or(0));
        let Summary { units, fingerprint } = self.summary;
        self.summary = Summary {
            units: units + u64::from(after.is_some()) - u64::from(before.is_some()),
            fingerprint: add(sub(fingerprint, less), more),
        };
    }

    /// Replaces a large page by its small ones, which inherit all that is known about it.
    pub(crate) fn split(&mut self, index: Index) -> Result<(), Full> {
        if !self.table.has_room(SMALL_PER_LARGE as usize - 1) {
            return Err(Full);
        }
        let whole = self.table.unit(index);
        let queued = self.table.is_queued(index);
        let flags = [MISSING, REQUESTED, AGAIN].map(|flag| (flag, self.table.has(index, flag)));
        self.remove(index);
        self.small += SMALL_PER_LARGE as usize;
        for place in whole.place.parts() {
            let part = self.table.insert(Unit { place, ..whole })?;
            for (flag, on) in flags {
                self.table.set(part, flag, on);
            }
            if queued {
                self.table.push(part);
            }
        }
        if whole.content != Content::Absent {
            let part = Unit { place: Place::from_key(whole.place.key(), false), ..whole };
            let sum = self.point.run(whole.place.key(), SMALL_PER_LARGE, weight(&part));
            self.summary.units += SMALL_PER_LARGE;
            self.summary.fingerprint = add(self.summary.fingerprint, sum);
        }
        Ok(())
    }

    /// The small pages of a large one that are there.
    pub(crate) fn parts(&self, large: Place) -> impl Iterator<Item = (Index, Unit)> {
        let all = large.parts().take(if self.small == 0 { 0 } else { usize::MAX });
        all.filter_map(|part| self.get(part))
    }

    /// Removes the small pages of a large one.
    pub(crate) fn absorb(&mut self, large: Place) {
        if self.small == 0 {
            return;
        }
        for part in large.parts() {
            if let Some((index, _)) = self.get(part) {
                self.remove(index);
            }
        }
    }
}

fn weight(unit: &Unit) -> u64 {
    let extent = match unit.place.extent() {
        Extent::Small => 0,
        Extent::Large => 1,
        Extent::State => 2,
    };
    u64::from(unit.generation.0) << 4 | extent << 2 | unit.content as u64
}
