//! After the tenant is gone: a Commit to be delivered, and perhaps units to be served. Nothing here leads to a tenant, its roots or
//! its keys: no type of this file has a place for them.

use super::lane::seal_unit;
use super::{Core, LaneError, Source, Tenant};
use crate::activation::Commit;
use crate::error::{Event, Step};
use crate::link::{Link, RecordError};
use crate::message::FinalHash;
use crate::unit::{Content, Unit};
use crate::vault::{KeyOf, SourceHold};
use crate::wire::{Connection, HEADER_BYTES, Kind, TAG_BYTES, UNIT_BYTES};

/// What is left.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Remains<V> {
    pub core: Core<V>,
    pub hash: FinalHash,
    pub commit: Commit,
}

/// The tenant is not here any more; the destination has not said yet that it runs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Gone<V>(pub(crate) Remains<V>);

/// The destination runs and fetches what is outstanding.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Serving<V>(pub(crate) Remains<V>);

/// The units that a request names, each of which may be fetched.
#[derive(Clone, Copy, Debug)]
pub struct Requests<'f>(&'f [[u8; UNIT_BYTES]]);

impl Iterator for Requests<'_> {
    type Item = Unit;

    fn next(&mut self) -> Option<Unit> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Unit::decode(first).ok().map(|(unit, _)| unit)
    }
}

/// The unit with this number of a request that was opened by [`Gone::requests`], for who answers it piece by piece.
pub fn requested(frame: &[u8], number: usize) -> Option<Unit> {
    let body = frame.get(HEADER_BYTES..frame.len().checked_sub(TAG_BYTES)?)?;
    let (entries, _) = body.as_chunks::<UNIT_BYTES>();
    Unit::decode(entries.get(number)?).ok().map(|(unit, _)| unit)
}

impl<V: SourceHold> Remains<V> {
    fn link(&mut self, connection: Connection) -> Result<&mut Link<KeyOf<V::Pair>>, RecordError> {
        let vault = self.core.held.vault_mut();
        let link = match connection {
            Connection::Demand => vault.demand.as_mut(),
            Connection::Fetch(lane) => vault.lane(lane)?.fetch.as_mut(),
            Connection::Control | Connection::Pages(_) => None,
        };
        link.ok_or(RecordError::Closed)
    }

    fn may_be_fetched(&self, unit: &Unit) -> bool {
        self.core.held.vault().lanes().any(|lane| lane.ledger.may_be_fetched(unit))
    }

    /// The whole request is refused if one of its units may not be fetched.
    fn requests<'f>(
        &mut self,
        connection: Connection,
        frame: &'f mut [u8],
    ) -> Result<Requests<'f>, RequestError> {
        let (kind, text) = self.link(connection)?.open(frame)?;
        if kind != Kind::Fetch {
            return Err(RequestError::Format);
        }
        let (entries, _) = text.as_chunks::<UNIT_BYTES>();
        for entry in entries {
            let (unit, count) = Unit::decode(entry).map_err(|_| RequestError::Format)?;
            if count != 1 || unit.content != Content::Data || !self.may_be_fetched(&unit) {
                return Err(RequestError::NotOutstanding);
            }
        }
        Ok(Requests(entries))
    }

    fn answer(&mut self, connection: Connection, unit: Unit, frame: &mut [u8]) -> Result<usize, LaneError> {
        if !self.may_be_fetched(&unit) {
            return Err(LaneError::NoContent(unit.place));
        }
        seal_unit(self.link(connection)?, &unit, frame, unit.place.bytes())
    }

    fn complete<T: Tenant>(mut self) -> Step<Source<V, T>> {
        self.core.held.vault_mut().wipe();
        Step::new(Source::Done, Event::Complete)
    }
}

/// Why a request for units is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is no record that is due.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It breaks the format, though authentic.
    #[error("a request for units breaks the format")]
    Format,
    /// It names a unit that does not stay outstanding.
    #[error("a request names a unit that is not outstanding")]
    NotOutstanding,
}

macro_rules! serving {
    ($state:ident) => {
        impl<V: SourceHold> $state<V> {
            /// The Commit: the same bytes each time.
            pub fn commit(&self) -> &Commit {
                &self.0.commit
            }

            /// The units that a request on the demand connection or on a lane's fetching asks for.
            ///
            /// # Errors
            /// [`RequestError`]; then none of it is to be answered.
            pub fn requests<'f>(
                &mut self,
                connection: Connection,
                frame: &'f mut [u8],
            ) -> Result<Requests<'f>, RequestError> {
                self.0.requests(connection, frame)
            }

            /// Seals a unit that was asked for on this connection, whose content is at `frame[DATA_OFFSET..]`; returns the
            /// frame's length.
            ///
            /// # Errors
            /// If it may not be fetched, or the connection is not open.
            pub fn answer(
                &mut self,
                connection: Connection,
                unit: Unit,
                frame: &mut [u8],
            ) -> Result<usize, LaneError> {
                self.0.answer(connection, unit, frame)
            }

            /// The destination is known never to ask again, because it crashed: wipes what is left. The service is lost, unless that
            /// happened before Commit reached it and it still can.
            pub fn give_up<T: Tenant>(self) -> Source<V, T> {
                self.0.complete().state
            }

            pub(super) fn complete<T: Tenant>(self) -> Step<Source<V, T>> {
                self.0.complete()
            }
        }
    };
}

serving!(Gone);
serving!(Serving);

impl<V: SourceHold> Gone<V> {
    pub(super) fn running(self) -> Serving<V> {
        Serving(self.0)
    }
}
