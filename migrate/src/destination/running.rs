//! The tenant runs here; what is outstanding is fetched.

use super::lane::data_unit;
use super::receiving::LaneOf;
use super::{Core, Demand, Destination, Memory, ReceiveError};
use crate::activation::Activation;
use crate::error::Ended;
use crate::link::RecordError;
use crate::message::Message;
use crate::unit::Unit;
use crate::vault::{DestinationHold, Outgoing, RootOf};
use crate::wire::{Connection, HEADER_BYTES, Kind, LaneId, TAG_BYTES, UNIT_BYTES};

/// It was activated, and outstanding units arrive.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Running<V> {
    pub(super) core: Core<V>,
}

/// It was activated and has everything. Kept for as long as the source may ask again.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Finished<V> {
    pub(super) core: Core<V>,
}

/// Units that came: wake whoever waits for these places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// How many were used; the others were here already.
    pub used: u64,
    /// How many are still missing, in all lanes.
    pub missing: u64,
}

impl<V: DestinationHold> Running<V> {
    pub(super) fn new(
        mut core: Core<V>,
        activation: Activation<RootOf<V::Pair>>,
    ) -> (Running<V>, Option<Outgoing>) {
        let vault = core.held.vault_mut();
        vault.activation = Some(activation.into_root());
        let missing = vault.lanes().any(|lane| lane.ledger().missing().0 > 0);
        // Without anything missing `Complete` says it all.
        let frame = if missing { vault.seal(&Message::Running).ok() } else { None };
        (Running { core }, frame)
    }

    /// The activation key: once.
    pub fn activation(&mut self) -> Option<Activation<RootOf<V::Pair>>> {
        let vault = self.core.held.vault_mut();
        let activation = vault.activation.as_ref().map(Activation::copy);
        vault.activation = None;
        activation
    }

    /// Units that are missing, in all lanes, and their bytes.
    pub fn missing(&self) -> (u64, u64) {
        let lanes = self.core.held.vault().lanes().map(|lane| lane.ledger().missing());
        lanes.fold((0, 0), |(units, bytes), (more, more_bytes)| (units + more, bytes + more_bytes))
    }

    /// The lanes.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut LaneOf<V>> {
        self.core.held.vault_mut().lanes_mut()
    }

    /// A task touched an address whose page is not here: asks for it on the demand connection, unless it is on its way. The
    /// request is written to `frame`; its length is returned.
    ///
    /// # Errors
    /// If the connection is not open: the task waits until it is resumed, and asks again.
    pub fn demand(&mut self, address: u64, frame: &mut [u8]) -> Result<(Demand, Option<usize>), RecordError> {
        let vault = self.core.held.vault_mut();
        vault.demand.as_ref().ok_or(RecordError::Closed)?.ready()?;
        if frame.len() < HEADER_BYTES + UNIT_BYTES + TAG_BYTES {
            return Err(RecordError::Buffer);
        }
        let mut found = Demand::Here;
        for lane in vault.lanes_mut() {
            found = lane.demand(address);
            if found != Demand::Here {
                break;
            }
        }
        let Demand::Ask(unit) = found else { return Ok((found, None)) };
        Ok((found, Some(self.ask(&unit, frame)?)))
    }

    fn ask(&mut self, unit: &Unit, frame: &mut [u8]) -> Result<usize, RecordError> {
        let link = self.core.held.vault_mut().demand.as_mut().ok_or(RecordError::Closed)?;
        let place = frame.get_mut(HEADER_BYTES..HEADER_BYTES + UNIT_BYTES).ok_or(RecordError::Buffer)?;
        place.copy_from_slice(&unit.encode(1));
        link.seal(Kind::Fetch, frame, UNIT_BYTES)
    }

    /// Asks for what is missing in the background, as far as the lane's window allows; `None` if there is nothing to ask for
    /// now.
    ///
    /// # Errors
    /// If the connection is not open.
    pub fn background(&mut self, lane: LaneId, frame: &mut [u8]) -> Result<Option<usize>, RecordError> {
        self.core.held.vault_mut().lane(lane)?.background(frame)
    }

    /// The bandwidth was measured anew, in bytes per second for each lane.
    pub fn adjust(&mut self, bytes_per_second: u64) {
        self.core.held.vault_mut().lanes_mut().for_each(|lane| lane.window.adjust(bytes_per_second));
    }

    /// A unit came, on the demand connection or on a lane's fetching.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn fetched(
        &mut self,
        connection: Connection,
        frame: &mut [u8],
        memory: &mut impl Memory,
    ) -> Result<Fetched, ReceiveError> {
        let vault = self.core.held.vault_mut();
        let used = match connection {
            Connection::Fetch(lane) => vault.lane(lane)?.fetched(frame, memory)?,
            Connection::Demand => {
                let (kind, text) = vault.demand.as_mut().ok_or(RecordError::Closed)?.open(frame)?;
                if kind != Kind::Data {
                    return Err(ReceiveError::Format(kind.name()));
                }
                let (unit, _) = data_unit(text)?;
                let lanes = vault.lanes().count();
                vault.lane(unit.place.lane(lanes))?.data(text, memory)?
            }
            Connection::Control | Connection::Pages(_) => return Err(RecordError::OtherConnection.into()),
        };
        Ok(Fetched { used, missing: self.missing().0 })
    }

    /// Everything is here: says `Complete`, and the source wipes what it kept.
    ///
    /// # Errors
    /// The state, if something is missing or the activation key was not taken.
    pub fn complete(mut self) -> Result<(Finished<V>, Option<Outgoing>), Self> {
        let vault = self.core.held.vault_mut();
        if vault.activation.is_some() || vault.lanes().any(|lane| lane.ledger().missing().0 > 0) {
            return Err(self);
        }
        vault.demand = None;
        vault.lanes.iter_mut().for_each(|lane| *lane = None);
        if let Some(secrets) = vault.secrets.as_mut() {
            secrets.fetch = None;
        }
        let frame = vault.seal(&Message::Complete).ok();
        Ok((Finished { core: self.core }, frame))
    }

    /// The source crashed with units outstanding: they are nowhere any more. The service is lost; it is never started empty.
    pub fn lost(self) -> Destination<V> {
        let (missing, _) = self.missing();
        Destination::Running(self).destroy(Ended::Lost(missing))
    }
}

impl<V: DestinationHold> Finished<V> {
    /// The source needs nothing any more: wipes the last key.
    pub fn close(mut self) {
        self.core.held.vault_mut().wipe();
    }
}
