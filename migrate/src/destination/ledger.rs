//! What the destination knows of the units of one lane: what is here, in which generation, and what is still missing.

use crate::book::{Book, Summary};
use crate::table::{Full, Index, MISSING, REQUESTED, Storage};
use crate::unit::{Content, Place, Round, SMALL_BYTES, Unit};
use crate::wire::LaneId;

/// What to do with a unit that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the newest: put its content in its place.
    Use,
    /// It is here already: drop it.
    Have,
}

/// Why a unit is refused; its content must not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitRefused {
    /// A newer generation is here, or its round is over.
    #[error("a unit of round {} is older than what the source wrote last", found.0)]
    Stale {
        /// Its generation.
        found: Round,
    },
    /// The final manifest does not list it.
    #[error("a unit is not in the final manifest")]
    Unlisted,
    /// It belongs to another lane.
    #[error("a unit came on another lane than its own")]
    OtherLane,
    /// There is no room for it.
    #[error(transparent)]
    Full(#[from] Full),
}

/// What a task that touched an address has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// The page is here, or is none of the migration's.
    Here,
    /// It was asked for and is on its way.
    Coming(Unit),
    /// Ask for it, on the demand connection.
    Ask(Unit),
}

/// The units of a lane.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ledger<S> {
    book: Book<S>,
    lane: LaneId,
    lanes: usize,
    /// The first round that is not complete.
    open: Round,
    /// After the final barrier nothing new is listed.
    closed: bool,
    missing: u64,
    missing_bytes: u64,
}

impl<S: Storage> Ledger<S> {
    pub(crate) fn new(storage: S, secret: &[u8; 32], lane: LaneId, lanes: usize) -> Ledger<S> {
        let book = Book::new(storage, secret);
        Ledger { book, lane, lanes, open: Round(1), closed: false, missing: 0, missing_bytes: 0 }
    }

    /// The first round that is not complete here.
    pub fn open_round(&self) -> Round {
        self.open
    }

    /// Whether the final barrier was reached.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Units that are listed and not here, and their bytes.
    pub fn missing(&self) -> (u64, u64) {
        (self.missing, self.missing_bytes)
    }

    /// Units that are listed, zeros included.
    pub fn units(&self) -> u64 {
        self.book.summary().units
    }

    pub(crate) fn summary(&self) -> Summary {
        self.book.summary()
    }

    pub(crate) fn lanes(&self) -> usize {
        self.lanes
    }

    /// A round is complete, and if it is the final one, the list is.
    pub(crate) fn close_round(&mut self, round: Round, last: bool) {
        self.open = Round(round.0.saturating_add(1));
        self.closed = last;
    }

    /// A unit came with its content, or one without content.
    ///
    /// Before the final barrier it is the newest if its generation is newer than what is here, and its round not over. After it,
    /// it is if exactly this generation is listed and missing.
    pub(crate) fn receive(&mut self, unit: Unit) -> Result<Verdict, UnitRefused> {
        if self.closed { self.fill(unit) } else { self.enter(unit, false) }
    }

    /// A unit is announced that can be fetched after the hand-over.
    pub(crate) fn announce(&mut self, unit: Unit) -> Result<Verdict, UnitRefused> {
        if self.closed { self.listed(unit).map(|_| Verdict::Have) } else { self.enter(unit, true) }
    }

    /// The unit, if the final manifest lists it in this very generation.
    fn listed(&self, unit: Unit) -> Result<Index, UnitRefused> {
        let (index, known) = self.book.get(unit.place).ok_or(UnitRefused::Unlisted)?;
        if known.generation != unit.generation {
            return Err(UnitRefused::Stale { found: unit.generation });
        }
        if known.content == unit.content { Ok(index) } else { Err(UnitRefused::Unlisted) }
    }

    fn fill(&mut self, unit: Unit) -> Result<Verdict, UnitRefused> {
        if unit.content == Content::Absent && self.book.get(unit.place).is_none() {
            return Ok(Verdict::Have);
        }
        let index = self.listed(unit)?;
        Ok(self.arrive(index))
    }

    fn found(&mut self, index: Index) {
        if self.book.table.has(index, MISSING) {
            self.book.table.set(index, MISSING, false);
            self.book.table.set(index, REQUESTED, false);
            self.missing -= 1;
            self.missing_bytes -= self.book.table.unit(index).place.page_bytes();
        }
    }

    /// Whether a unit may come piece by piece: it is newer than all that is here, and its round is not over.
    pub(crate) fn expect(&self, unit: Unit) -> Result<(), UnitRefused> {
        if unit.place.lane(self.lanes) != self.lane {
            return Err(UnitRefused::OtherLane);
        }
        let older = self.newest(unit.place).is_none_or(|newest| newest < unit.generation);
        match older && unit.generation >= self.open && !self.closed {
            true => Ok(()),
            false => Err(UnitRefused::Stale { found: unit.generation }),
        }
    }

    /// The newest generation of what is here of a place.
    fn newest(&self, place: Place) -> Option<Round> {
        let known =
            self.book.get(place).or_else(|| self.book.around(place)).map(|(_, known)| known.generation);
        known.into_iter().chain(self.book.parts(place).map(|(_, part)| part.generation)).max()
    }

    fn enter(&mut self, unit: Unit, missing: bool) -> Result<Verdict, UnitRefused> {
        let place = unit.place;
        let stale = UnitRefused::Stale { found: unit.generation };
        if place.lane(self.lanes) != self.lane {
            return Err(UnitRefused::OtherLane);
        }
        let around = self.book.around(place);
        match self.newest(place) {
            Some(newest) if newest > unit.generation => return Err(stale),
            Some(newest) if newest == unit.generation => {
                let index = self.same_again(unit, around, stale)?;
                return Ok(if missing { Verdict::Have } else { self.arrive(index) });
            }
            None if unit.content == Content::Absent => return Ok(Verdict::Have),
            _ if unit.generation < self.open => return Err(stale),
            _ => {}
        }
        if let Some((index, _)) = around {
            self.split(index)?;
        }
        for part in place.parts() {
            if let Some((index, _)) = self.book.get(part) {
                self.remove(index);
            }
        }
        if let Some((index, _)) = self.book.get(place) {
            self.found(index);
        }
        let index = self.book.put(unit)?;
        if unit.content == Content::Absent {
            self.remove(index);
        } else if missing {
            self.book.table.set(index, MISSING, true);
            self.book.table.push(index);
            self.missing += 1;
            self.missing_bytes += place.page_bytes();
        }
        Ok(Verdict::Use)
    }

    /// What is here has this very generation: sent again after a connection broke. The source may have split the page since.
    fn same_again(
        &mut self,
        unit: Unit,
        around: Option<(Index, Unit)>,
        stale: UnitRefused,
    ) -> Result<Index, UnitRefused> {
        if let Some((index, _)) = around {
            self.split(index)?;
        }
        let same = self.book.get(unit.place).filter(|(_, known)| known.content == unit.content);
        same.map(|(index, _)| index).ok_or(stale)
    }

    /// The content of a unit that is listed came: it is used if it was missing.
    fn arrive(&mut self, index: Index) -> Verdict {
        if !self.book.table.has(index, MISSING) {
            return Verdict::Have;
        }
        self.found(index);
        Verdict::Use
    }

    fn split(&mut self, index: Index) -> Result<(), UnitRefused> {
        let missing = self.book.table.has(index, MISSING);
        self.book.split(index)?;
        if missing {
            self.missing += crate::unit::SMALL_PER_LARGE - 1;
        }
        Ok(())
    }

    fn remove(&mut self, index: Index) {
        self.found(index);
        self.book.remove(index);
    }

    /// Takes the next missing unit that was not asked for, if it has at most so many bytes.
    pub(crate) fn next_missing(&mut self, most_bytes: u64) -> Option<Unit> {
        loop {
            if self.book.table.peek().is_some_and(|unit| unit.place.page_bytes() > most_bytes) {
                return None;
            }
            let index = self.book.table.pop()?;
            if self.book.table.has(index, MISSING) && !self.book.table.has(index, REQUESTED) {
                self.book.table.set(index, REQUESTED, true);
                return Some(self.book.table.unit(index));
            }
        }
    }

    /// A task touched this guest-virtual address.
    pub fn demand(&mut self, address: u64) -> Demand {
        let page = address - address % SMALL_BYTES as u64;
        let Some(place) = Place::small(page) else { return Demand::Here };
        let Some((index, unit)) = self.book.get(place).or_else(|| self.book.around(place)) else {
            return Demand::Here;
        };
        let table = &mut self.book.table;
        match (table.has(index, MISSING), table.has(index, REQUESTED)) {
            (false, _) => Demand::Here,
            (true, true) => Demand::Coming(unit),
            (true, false) => {
                table.set(index, REQUESTED, true);
                Demand::Ask(unit)
            }
        }
    }

    /// A connection broke: what was asked for and did not come is asked for again.
    pub(crate) fn rewind(&mut self) {
        self.book.table.sweep(|table, index| {
            if table.has(index, MISSING) {
                table.set(index, REQUESTED, false);
                table.push(index);
            }
        });
    }
}
