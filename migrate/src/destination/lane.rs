//! One lane of the destination: a ledger, the connection that rounds arrive on, and the one on which outstanding units are
//! fetched. Lanes share nothing: each can be worked on by its own Worker vCPU.

use crate::Place;
use crate::crypto::Key;
use crate::destination::ledger::{Demand, Ledger, UnitRefused, Verdict};
use crate::flow::Window;
use crate::link::{Link, RecordError};
use crate::message::Barrier;
use crate::source::content_fits;
use crate::table::Storage;
use crate::unit::{Content, Extent, PIECE_BYTES, PIECES, Round, Unit};
use crate::wire::{HEADER_BYTES, Kind, MAX_LIST_UNITS, TAG_BYTES, UNIT_BYTES};

/// What becomes of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// It holds these bytes.
    Data(&'a [u8]),
    /// It is a large page that holds these bytes from an offset on; the others follow before anything is made of it.
    Piece(usize, &'a [u8]),
    /// It holds zeros.
    Zero,
    /// It is not the tenant's any more.
    Absent,
    /// It is the tenant's, and its content comes later: whoever touches it waits.
    Outstanding,
}

/// The tenant's memory at the destination. It is told only what is to be used: what is refused never gets here.
pub trait Memory {
    /// Does it. Large pages may come where small ones were, and the reverse.
    ///
    /// # Errors
    /// If there is no memory: the migration ends.
    fn change(&mut self, place: Place, change: Change<'_>) -> Result<(), NoMemory>;
}

/// The destination has no memory for a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the destination has no memory for what came")]
pub struct NoMemory;

/// Why a record on a lane was refused. After all but `Record` the destination must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// It is no record that is due; nothing changed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A unit in it was refused.
    #[error(transparent)]
    Unit(#[from] UnitRefused),
    /// Its content breaks the format, though authentic.
    #[error("a record {0} breaks the format")]
    Format(&'static str),
    /// What is here is not what the source says.
    #[error("after round {} the destination's table is not the source's", round.0)]
    Mismatch {
        /// After which round.
        round: Round,
    },
    /// See there.
    #[error(transparent)]
    NoMemory(#[from] NoMemory),
}

/// What came on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Units: how many were used. The others were here already.
    Units(u64),
    /// The end of a round, and whether it is the final one.
    Barrier(Round, bool),
}

/// A lane of the destination.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DestinationLane<K, S> {
    pub(crate) pages: Option<Link<K>>,
    pub(crate) fetch: Option<Link<K>>,
    pub(crate) ledger: Ledger<S>,
    /// The large page that is arriving, and its next piece.
    pub(crate) piece: Option<(Unit, u32)>,
    pub(crate) window: Window,
}

impl<K: Key, S: Storage> DestinationLane<K, S> {
    /// What it knows of its units.
    pub fn ledger(&self) -> &Ledger<S> {
        &self.ledger
    }

    /// A record came on the connection of the rounds. It is opened in place, so `frame` must be private memory, and what is to
    /// be used is put into `memory`.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn receive(&mut self, frame: &mut [u8], memory: &mut impl Memory) -> Result<Received, ReceiveError> {
        let (kind, text) = self.pages.as_mut().ok_or(RecordError::Closed)?.open(frame)?;
        match kind {
            Kind::Data => Ok(Received::Units(self.data(text, memory)?)),
            Kind::Piece => Ok(Received::Units(self.piece(text, memory)?)),
            Kind::Empty | Kind::Outstanding => Ok(Received::Units(self.list(kind, text, memory)?)),
            Kind::Barrier => self.barrier(text),
            other => Err(ReceiveError::Format(other.name())),
        }
    }

    /// What a record of data holds, as it came on one of the lane's connections or on the demand connection.
    pub(crate) fn data(&mut self, text: &[u8], memory: &mut impl Memory) -> Result<u64, ReceiveError> {
        let (unit, content) = data_unit(text)?;
        let verdict = self.ledger.receive(unit)?;
        if verdict == Verdict::Use {
            memory.change(unit.place, Change::Data(content))?;
        }
        Ok(u64::from(verdict == Verdict::Use))
    }

    /// A piece of a large page of which nothing of this generation is here. It is entered with the last one.
    fn piece(&mut self, text: &[u8], memory: &mut impl Memory) -> Result<u64, ReceiveError> {
        let broken = ReceiveError::Format(Kind::Piece.name());
        let (head, content) = text.split_first_chunk().ok_or(broken)?;
        let (unit, piece) = Unit::decode(head).map_err(|_| broken)?;
        let is_large = unit.place.extent() == Extent::Large && unit.content == Content::Data;
        let is_due = piece == 0 || self.piece == Some((unit, piece));
        if !is_large || !is_due || piece >= PIECES || content.len() != PIECE_BYTES {
            return Err(broken);
        }
        if piece == 0 {
            self.ledger.expect(unit)?;
        }
        memory.change(unit.place, Change::Piece(piece as usize * PIECE_BYTES, content))?;
        self.piece = (piece + 1 < PIECES).then_some((unit, piece + 1));
        if self.piece.is_none() {
            self.ledger.receive(unit)?;
        }
        Ok(u64::from(self.piece.is_none()))
    }

    fn list(&mut self, kind: Kind, text: &[u8], memory: &mut impl Memory) -> Result<u64, ReceiveError> {
        let mut used = 0;
        for entry in text.as_chunks::<UNIT_BYTES>().0 {
            let broken = ReceiveError::Format(kind.name());
            let (first, count) = Unit::decode(entry).map_err(|_| broken)?;
            if count == 0 || (first.content == Content::Data) != (kind == Kind::Outstanding) {
                return Err(broken);
            }
            for step in 0..count {
                let place = first.place.further(step, self.ledger.lanes()).ok_or(broken)?;
                used += u64::from(self.listed(Unit { place, ..first }, memory)?);
            }
        }
        Ok(used)
    }

    fn listed(&mut self, unit: Unit, memory: &mut impl Memory) -> Result<bool, ReceiveError> {
        let (verdict, change) = match unit.content {
            Content::Data => (self.ledger.announce(unit)?, Change::Outstanding),
            Content::Zero => (self.ledger.receive(unit)?, Change::Zero),
            Content::Absent => (self.ledger.receive(unit)?, Change::Absent),
        };
        if verdict == Verdict::Use {
            memory.change(unit.place, change)?;
        }
        Ok(verdict == Verdict::Use)
    }

    fn barrier(&mut self, text: &[u8]) -> Result<Received, ReceiveError> {
        let broken = ReceiveError::Format(Kind::Barrier.name());
        let barrier = text.first_chunk().and_then(|text| Barrier::decode(text).ok()).ok_or(broken)?;
        let Barrier { round, last, summary } = barrier;
        // Sent again after its connection broke: what it says was compared before, and may be of an older table.
        let repeated = round < self.ledger.open_round();
        if !repeated || last {
            if summary != self.ledger.summary() {
                return Err(ReceiveError::Mismatch { round });
            }
            self.ledger.close_round(round, last);
        }
        Ok(Received::Barrier(round, last))
    }

    /// Asks for outstanding units in the background, as far as the window allows. `None` if nothing is missing that was not
    /// asked for, or the window is full.
    ///
    /// # Errors
    /// If there is no connection. The units come again after it is resumed.
    pub(crate) fn background(&mut self, frame: &mut [u8]) -> Result<Option<usize>, RecordError> {
        let link = self.fetch.as_mut().ok_or(RecordError::Closed)?;
        // What is marked as asked for below will be.
        link.ready()?;
        let room = frame.len().saturating_sub(HEADER_BYTES + TAG_BYTES) / UNIT_BYTES;
        if room == 0 {
            return Err(RecordError::Buffer);
        }
        let mut asked = 0;
        for entry in frame[HEADER_BYTES..].chunks_exact_mut(UNIT_BYTES).take(room.min(MAX_LIST_UNITS)) {
            let Some(unit) = self.ledger.next_missing(self.window.room()) else { break };
            self.window.sent(unit.place.page_bytes());
            entry.copy_from_slice(&unit.encode(1));
            asked += 1;
        }
        match asked {
            0 => Ok(None),
            asked => link.seal(Kind::Fetch, frame, asked * UNIT_BYTES).map(Some),
        }
    }

    /// A unit came that was asked for in the background.
    pub(crate) fn fetched(
        &mut self,
        frame: &mut [u8],
        memory: &mut impl Memory,
    ) -> Result<u64, ReceiveError> {
        let (kind, text) = self.fetch.as_mut().ok_or(RecordError::Closed)?.open(frame)?;
        if kind != Kind::Data {
            return Err(ReceiveError::Format(kind.name()));
        }
        self.window.arrived(data_unit(text)?.0.place.page_bytes());
        self.data(text, memory)
    }

    /// See [`Ledger::demand`].
    pub(crate) fn demand(&mut self, address: u64) -> Demand {
        self.ledger.demand(address)
    }

    /// Its fetching begins again in a new epoch.
    pub(crate) fn rewind(&mut self) {
        self.ledger.rewind();
        self.window.clear();
    }
}

/// The unit and the content of a record of data.
pub(crate) fn data_unit(text: &[u8]) -> Result<(Unit, &[u8]), ReceiveError> {
    let broken = ReceiveError::Format(Kind::Data.name());
    let (head, content) = text.split_first_chunk().ok_or(broken)?;
    let (unit, bytes) = Unit::decode(head).map_err(|_| broken)?;
    let fits = content_fits(unit.place, content.len()) && bytes as usize == content.len();
    if unit.content == Content::Data && fits { Ok((unit, content)) } else { Err(broken) }
}
