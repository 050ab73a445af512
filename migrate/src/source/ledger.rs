//! What the source knows of the units of one lane: what has to be sent, what was sent, and what the destination has for certain.

use crate::book::{Book, Summary};
use crate::table::{AGAIN, Full, Storage};
use crate::unit::{Content, Extent, Place, Round, Unit};
use crate::wire::LaneId;

/// Why a unit can't be marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// There is no room for it.
    #[error(transparent)]
    Full(#[from] Full),
    /// It belongs to another lane.
    #[error("the unit belongs to another lane")]
    OtherLane,
    /// No round has begun, or the unit was sent in this one: what changed since needs the number of a new round.
    #[error("the unit needs a new round: begin one before marking it")]
    NeedsRound,
    /// The final manifest was made.
    #[error("the final manifest was made: nothing can change any more")]
    Final,
}

/// The units of a lane.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ledger<S> {
    book: Book<S>,
    lane: LaneId,
    lanes: usize,
    round: Round,
    confirmed: Round,
    /// Units that are gone and that the destination may still have.
    absent: usize,
    /// Whether anything was ever listed as outstanding.
    listed: bool,
    /// The final manifest was made: nothing may change any more.
    frozen: bool,
}

impl<S: Storage> Ledger<S> {
    pub(crate) fn new(storage: S, secret: &[u8; 32], lane: LaneId, lanes: usize) -> Ledger<S> {
        let book = Book::new(storage, secret);
        Ledger {
            book,
            lane,
            lanes,
            round: Round(0),
            confirmed: Round(0),
            absent: 0,
            listed: false,
            frozen: false,
        }
    }

    /// The round that units are marked for.
    pub fn round(&self) -> Round {
        self.round
    }

    /// The last round that the destination has for certain.
    pub fn confirmed(&self) -> Round {
        self.confirmed
    }

    /// Units that are still to be sent, and bytes of their pages.
    pub fn unsent(&self) -> (u64, u64) {
        self.book.table.queued()
    }

    /// Whether the destination may fetch after the hand-over. This stays so once anything was listed: what the destination
    /// still misses is for it to know.
    pub fn leaves_outstanding(&self) -> bool {
        self.listed
    }

    /// Units that are there, zeros included.
    pub fn units(&self) -> u64 {
        self.book.summary().units
    }

    pub(crate) fn summary(&self) -> Summary {
        self.book.summary()
    }

    pub(crate) fn begin(&mut self, round: Round) {
        self.round = round;
    }

    /// A unit changed since it was last marked, came into being, or is gone. It joins the queue of what is to be sent.
    ///
    /// The caller clears the dirty bit, and has every active vCPU flush its TLB, **before** it marks: a write that is not in this
    /// round is then seen by the next one.
    ///
    /// # Errors
    /// [`MarkError`]; then nothing changed.
    pub fn mark(&mut self, place: Place, content: Content) -> Result<(), MarkError> {
        if self.frozen {
            return Err(MarkError::Final);
        }
        if place.lane(self.lanes) != self.lane {
            return Err(MarkError::OtherLane);
        }
        // What may have arrived with this round's number must not change without another one.
        let sent_now = |(index, unit): (_, Unit)| {
            let table = &self.book.table;
            unit.generation == self.round && (!table.is_queued(index) || table.has(index, AGAIN))
        };
        let before = self.book.get(place).or_else(|| self.book.around(place));
        let known = before.is_some() || self.book.parts(place).next().is_some();
        if self.round == Round(0) || before.is_some_and(sent_now) || self.book.parts(place).any(sent_now) {
            return Err(MarkError::NeedsRound);
        }
        if let Some((index, around)) = self.book.around(place) {
            // It is about to travel as a part of that.
            if (around.generation, around.content, content) == (self.round, Content::Data, Content::Data) {
                return Ok(());
            }
            self.book.split(index)?;
        }
        if content == Content::Absent && !known {
            return Ok(());
        }
        if !known && !self.book.table.has_room(1) {
            return Err(Full.into());
        }
        self.book.absorb(place);
        let index = self.book.put(Unit { place, generation: self.round, content })?;
        self.book.table.push(index);
        self.absent += usize::from(content == Content::Absent);
        Ok(())
    }

    /// The next unit that is to be sent.
    pub(crate) fn peek(&mut self) -> Option<Unit> {
        self.book.table.peek()
    }

    /// Takes the next unit that is to be sent.
    pub(crate) fn next(&mut self) -> Option<Unit> {
        self.book.table.pop().map(|index| self.book.table.unit(index))
    }

    /// Takes the next unit, and says whether in this generation it was sent before.
    pub(crate) fn next_data(&mut self) -> Option<(Unit, bool)> {
        let index = self.book.table.pop()?;
        Some((self.book.table.unit(index), self.book.table.has(index, AGAIN)))
    }

    /// A unit that was taken could not be sent.
    pub(crate) fn put_back(&mut self, unit: &Unit) {
        if let Some((index, known)) = self.book.get(unit.place)
            && known == *unit
        {
            self.book.table.push(index);
        }
    }

    /// The next unit, if it is without content that travels.
    pub(crate) fn next_empty(&mut self) -> Option<Unit> {
        self.book.table.peek().filter(|unit| unit.content != Content::Data)?;
        self.next()
    }

    /// The next unit, if it is a page that the destination may fetch after the hand-over.
    pub(crate) fn next_outstanding(&mut self, may_wait: impl Fn(Place) -> bool) -> Option<Unit> {
        let page = |unit: &Unit| {
            unit.content == Content::Data && unit.place.extent() != Extent::State && may_wait(unit.place)
        };
        self.book.table.peek().filter(page)?;
        self.listed = true;
        self.next()
    }

    /// The first of the queue, if it continues `first` after `count` places with the same generation and content.
    pub(crate) fn continues(&mut self, first: &Unit, count: u32) -> bool {
        self.book.table.peek().is_some_and(|unit| {
            first.place.further(count, self.lanes) == Some(unit.place)
                && (unit.generation, unit.content) == (first.generation, first.content)
        })
    }

    /// The caller read a unit that it took and found nothing but zeros: it is queued again as zeros. `false` if that is too
    /// late, because the list is final or the destination may have it as data: then it is sent as it is.
    pub(crate) fn found_zero(&mut self, unit: Unit) -> bool {
        if self.frozen {
            return false;
        }
        let known = self.book.get(unit.place).filter(|(_, known)| *known == unit);
        if known.is_some_and(|(index, _)| self.book.table.has(index, AGAIN)) {
            return false;
        }
        if let Some((index, _)) = known
            && !self.book.table.is_queued(index)
            && self.book.put(Unit { content: Content::Zero, ..unit }).is_ok()
        {
            self.book.table.push(index);
        }
        true
    }

    /// The list is final.
    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
    }

    /// The destination has everything up to this round.
    pub(crate) fn confirm(&mut self, round: Round) {
        self.confirmed = self.confirmed.max(round);
        if self.absent == 0 {
            return;
        }
        self.absent = self.book.forget_absent(self.confirmed);
    }

    /// The connection broke: whatever the destination does not have for certain is to be sent again.
    pub(crate) fn rewind(&mut self) {
        let confirmed = self.confirmed;
        self.book.table.sweep(|table, index| {
            if table.unit(index).generation > confirmed && !table.is_queued(index) {
                table.set(index, AGAIN, true);
                table.push(index);
            }
        });
    }

    /// Whether this very unit is one that the destination may ask for.
    pub(crate) fn may_be_fetched(&self, unit: &Unit) -> bool {
        let page = unit.content == Content::Data && unit.place.extent() != Extent::State;
        self.listed && page && self.book.get(unit.place).is_some_and(|(_, known)| known == *unit)
    }
}
