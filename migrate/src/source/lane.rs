//! One lane of the source: a ledger, the connection that its rounds travel on, and after the hand-over the one on which its
//! outstanding units are fetched. Lanes share nothing: each can be worked on by its own Worker vCPU.

use crate::crypto::Key;
use crate::link::{Link, RecordError};
use crate::message::Barrier;
use crate::source::ledger::{Ledger, MarkError};
use crate::table::Storage;
use crate::unit::{Content, Extent, PIECE_BYTES, PIECES, Round, Unit};
use crate::wire::{HEADER_BYTES, Kind, MAX_LIST_UNITS, TAG_BYTES, UNIT_BYTES};
use crate::{DATA_OFFSET, Place};

/// Why a lane does not do what was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// Its connection, or the buffer.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A round ends when everything of it was sent.
    #[error("{0} units of the round are not sent yet")]
    Unsent(u64),
    /// Only what was left when the tasks were parked can stay outstanding.
    #[error("units can stay outstanding only after the tasks were parked")]
    NotParked,
    /// A page has its size, and state 1 byte to 2 MiB.
    #[error("the content of {place:?} can't have {bytes} bytes")]
    Length {
        /// Of which unit.
        place: Place,
        /// How many.
        bytes: usize,
    },
    /// No piece is due.
    #[error("no piece of a large page is due")]
    NoPiece,
    /// The unit carries no content.
    #[error("{0:?} carries no content")]
    NoContent(Place),
}

/// What a lane has to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Due {
    /// Units without content: call [`SourceLane::seal_empty`].
    Empty,
    /// This unit, with its content: call [`SourceLane::seal_data`] or [`SourceLane::found_zero`].
    Data(Unit),
    /// This piece of a large page: call [`SourceLane::seal_piece`], or for the first one [`SourceLane::found_zero`].
    Piece(Unit, u32),
    /// The end of the round: call [`SourceLane::seal_barrier`].
    Barrier,
}

/// A lane of the source.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SourceLane<K, S> {
    pub(crate) pages: Option<Link<K>>,
    pub(crate) fetch: Option<Link<K>>,
    pub(crate) ledger: Ledger<S>,
    /// The large page that is being sent, and its next piece.
    pub(crate) piece: Option<(Unit, u32)>,
    /// The tasks are parked: the next barrier is the last.
    pub(crate) parked: bool,
    /// The last barrier was sent in this epoch.
    pub(crate) finished: bool,
}

impl<K: Key, S: Storage> SourceLane<K, S> {
    /// What it knows of its units.
    pub fn ledger(&self) -> &Ledger<S> {
        &self.ledger
    }

    /// See [`Ledger::mark`].
    ///
    /// # Errors
    /// See there.
    pub fn mark(&mut self, place: Place, content: Content) -> Result<(), MarkError> {
        self.ledger.mark(place, content)
    }

    /// What would come next, left where it is; `None` if everything was sent.
    pub fn peek(&mut self) -> Option<Unit> {
        self.ledger.peek()
    }

    /// Whether a large page is being sent, in pieces.
    pub fn is_in_pieces(&self) -> bool {
        self.piece.is_some()
    }

    /// What comes next. A unit with content is taken: it is read and sealed, or turns out to be [zero](Self::found_zero).
    pub fn due(&mut self) -> Due {
        if let Some((unit, piece)) = self.piece {
            return Due::Piece(unit, piece);
        }
        match self.ledger.peek() {
            None => return Due::Barrier,
            Some(unit) if unit.content != Content::Data => return Due::Empty,
            Some(_) => {}
        }
        match self.ledger.next_data() {
            None => Due::Barrier,
            Some((unit, again)) if again || unit.place.extent() != Extent::Large => Due::Data(unit),
            Some((unit, _)) => {
                self.piece = Some((unit, 0));
                Due::Piece(unit, 0)
            }
        }
    }

    /// A unit that was taken holds nothing but zeros: they will be sent as such. `false` if the list is final, or pieces of it were sent;
    /// then seal it.
    pub fn found_zero(&mut self, unit: Unit) -> bool {
        match self.piece {
            Some((same, 0)) if same == unit => {
                let found = self.ledger.found_zero(unit);
                if found {
                    self.piece = None;
                }
                found
            }
            Some((same, _)) if same == unit => false,
            _ => self.ledger.found_zero(unit),
        }
    }

    /// Seals the piece that is due, whose content the caller has put at `frame[DATA_OFFSET..]`, in place; returns the frame's length.
    ///
    /// # Errors
    /// `NoPiece`, `Record`; then all of the page is in the queue again.
    pub fn seal_piece(&mut self, frame: &mut [u8]) -> Result<usize, LaneError> {
        let (unit, piece) = self.piece.take().ok_or(LaneError::NoPiece)?;
        let sealed = match (self.pages.as_mut(), frame.get_mut(HEADER_BYTES..DATA_OFFSET)) {
            (None, _) => Err(RecordError::Closed),
            (_, None) => Err(RecordError::Buffer),
            (Some(link), Some(place)) => {
                place.copy_from_slice(&unit.encode(piece));
                link.seal(Kind::Piece, frame, UNIT_BYTES + PIECE_BYTES)
            }
        };
        match sealed {
            Ok(_) if piece + 1 < PIECES => self.piece = Some((unit, piece + 1)),
            Ok(_) => {}
            Err(_) => self.ledger.put_back(&unit),
        }
        Ok(sealed?)
    }

    /// Seals a unit whose content of so many bytes the caller has put at `frame[DATA_OFFSET..]`, in place; returns the frame's
    /// length. `frame` is private memory: the host must not see it before it is sealed.
    ///
    /// # Errors
    /// `Length`, `NoContent`, `Record`; then the unit is in the queue again.
    pub fn seal_data(&mut self, unit: Unit, frame: &mut [u8], bytes: usize) -> Result<usize, LaneError> {
        let link = self.pages.as_mut().ok_or(LaneError::Record(RecordError::Closed));
        let sealed = link.and_then(|link| seal_unit(link, &unit, frame, bytes));
        if sealed.is_err() {
            self.ledger.put_back(&unit);
        }
        sealed
    }

    /// Seals as many units without content as come next in the queue: zeros and gone ones. `None` if there are none.
    ///
    /// # Errors
    /// `Record`.
    pub fn seal_empty(&mut self, frame: &mut [u8]) -> Result<Option<usize>, LaneError> {
        self.seal_list(Kind::Empty, frame, Ledger::next_empty)
    }

    /// Seals as many pages as come next in the queue and `may_wait` as ones that stay outstanding. `None` if there are none.
    ///
    /// # Errors
    /// `NotParked`, `Record`.
    pub fn seal_outstanding(
        &mut self,
        frame: &mut [u8],
        may_wait: impl Fn(Place) -> bool,
    ) -> Result<Option<usize>, LaneError> {
        if !self.parked {
            return Err(LaneError::NotParked);
        }
        self.seal_list(Kind::Outstanding, frame, |ledger| ledger.next_outstanding(&may_wait))
    }

    fn seal_list(
        &mut self,
        kind: Kind,
        frame: &mut [u8],
        next: impl Fn(&mut Ledger<S>) -> Option<Unit>,
    ) -> Result<Option<usize>, LaneError> {
        let link = self.pages.as_mut().ok_or(RecordError::Closed)?;
        // What is taken from the queue below will be sealed.
        link.ready()?;
        let room = frame.len().saturating_sub(HEADER_BYTES + TAG_BYTES) / UNIT_BYTES;
        if room == 0 {
            return Err(RecordError::Buffer.into());
        }
        let places = frame[HEADER_BYTES..].chunks_exact_mut(UNIT_BYTES).take(room.min(MAX_LIST_UNITS));
        let mut listed = 0;
        for place in places {
            let Some(first) = next(&mut self.ledger) else { break };
            let mut count = 1;
            while self.ledger.continues(&first, count) && next(&mut self.ledger).is_some() {
                count += 1;
            }
            place.copy_from_slice(&first.encode(count));
            listed += 1;
        }
        if listed == 0 {
            return Ok(None);
        }
        Ok(Some(link.seal(kind, frame, listed * UNIT_BYTES)?))
    }

    /// Seals the end of the round, once everything of it was sent. While tasks are parked, this is the end of the final
    /// manifest's list.
    ///
    /// # Errors
    /// `Unsent`, `Record`.
    pub fn seal_barrier(&mut self, frame: &mut [u8]) -> Result<usize, LaneError> {
        let link = self.pages.as_mut().ok_or(RecordError::Closed)?;
        match self.ledger.unsent().0 + u64::from(self.piece.is_some()) {
            0 => {}
            units => return Err(LaneError::Unsent(units)),
        }
        let (round, last) = (self.ledger.round(), self.parked);
        let barrier = Barrier { round, last, summary: self.ledger.summary() };
        let place = frame.get_mut(HEADER_BYTES..).and_then(|body| body.first_chunk_mut());
        *place.ok_or(RecordError::Buffer)? = barrier.encode();
        let length = link.seal(Kind::Barrier, frame, barrier.encode().len())?;
        self.finished = last;
        Ok(length)
    }

    pub(crate) fn begin(&mut self, round: Round) {
        self.ledger.begin(round);
    }

    /// Whether all that the final manifest says of this lane was sent.
    pub(crate) fn is_finished(&self) -> bool {
        self.parked && self.finished && self.ledger.unsent().0 == 0
    }

    /// Its connection begins again: what the destination does not have for certain is sent again.
    pub(crate) fn rewind(&mut self) {
        self.piece = None;
        self.finished = false;
        self.ledger.rewind();
    }
}

/// Seals a unit on a connection.
pub(crate) fn seal_unit<K: Key>(
    link: &mut Link<K>,
    unit: &Unit,
    frame: &mut [u8],
    bytes: usize,
) -> Result<usize, LaneError> {
    if unit.content != Content::Data {
        return Err(LaneError::NoContent(unit.place));
    }
    if !content_fits(unit.place, bytes) {
        return Err(LaneError::Length { place: unit.place, bytes });
    }
    let place = frame.get_mut(HEADER_BYTES..DATA_OFFSET).ok_or(RecordError::Buffer)?;
    place.copy_from_slice(&unit.encode(bytes as u32));
    Ok(link.seal(Kind::Data, frame, UNIT_BYTES + bytes)?)
}

/// Whether a place can have so many bytes of content.
pub(crate) fn content_fits(place: Place, bytes: usize) -> bool {
    match place.extent() {
        Extent::State => bytes > 0 && bytes <= place.bytes(),
        _ => bytes == place.bytes(),
    }
}
