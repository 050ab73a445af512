//! Where one end's secrets lie: in one place that its owner provides, so that states can be consumed and made without copying
//! keys about. A guest puts it into its agent's memory, which does not move and is no part of what is migrated.

use crate::crypto::{Key, Pair, Root};
use crate::destination::DestinationLane;
use crate::handshake::Secrets;
use crate::link::{Link, RESUME_FRAME_BYTES, RecordError};
use crate::message::Message;
use crate::source::SourceLane;
use crate::table::Storage;
use crate::wire::{CONTROL_BYTES, Connection, HEADER_BYTES, Kind, LaneId, MAX_LANES, TAG_BYTES};
use core::fmt;
use core::ops::DerefMut;

/// Bytes of a control message's frame.
pub const CONTROL_FRAME_BYTES: usize = HEADER_BYTES + CONTROL_BYTES + TAG_BYTES;

/// A short frame to be sent on `connection`.
#[derive(Clone, Copy)]
pub struct Outgoing {
    /// Where.
    pub connection: Connection,
    bytes: [u8; CONTROL_FRAME_BYTES],
    length: usize,
}

impl Outgoing {
    pub(crate) fn new(connection: Connection, frame: &[u8]) -> Outgoing {
        let mut bytes = [0; CONTROL_FRAME_BYTES];
        bytes[..frame.len()].copy_from_slice(frame);
        Outgoing { connection, bytes, length: frame.len() }
    }

    /// The frame.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a frame of {} bytes on {:?}", self.length, self.connection)
    }
}

/// Secrets, connections and lanes of one end. Empty until a migration begins; emptied, and with that wiped, when it ends.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Vault<P, R, K, L> {
    pub(crate) pair: Option<P>,
    pub(crate) secrets: Option<Secrets<R>>,
    pub(crate) activation: Option<R>,
    pub(crate) control: Option<Link<K>>,
    pub(crate) demand: Option<Link<K>>,
    pub(crate) lanes: [Option<L>; MAX_LANES],
}

impl<P, R, K, L> Default for Vault<P, R, K, L> {
    fn default() -> Vault<P, R, K, L> {
        Vault::EMPTY
    }
}

impl<P, R, K, L> Vault<P, R, K, L> {
    /// An empty one.
    pub const EMPTY: Vault<P, R, K, L> = Vault {
        pair: None,
        secrets: None,
        activation: None,
        control: None,
        demand: None,
        lanes: [const { None }; MAX_LANES],
    };

    pub(crate) fn wipe(&mut self) {
        (self.pair, self.secrets, self.activation, self.control, self.demand) =
            (None, None, None, None, None);
        self.lanes.iter_mut().for_each(|lane| *lane = None);
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        let Vault { pair, secrets, activation, control, demand, lanes } = self;
        let none = pair.is_none() && secrets.is_none() && activation.is_none();
        none && control.is_none() && demand.is_none() && lanes.iter().all(Option::is_none)
    }

    /// A lane, for whoever works on lanes one by one: the vault's owner sees to it that nobody uses the whole meanwhile.
    pub fn lane_mut(&mut self, lane: usize) -> Option<&mut L> {
        self.lanes.get_mut(lane)?.as_mut()
    }

    pub(crate) fn lanes(&self) -> impl Iterator<Item = &L> {
        self.lanes.iter().flatten()
    }

    pub(crate) fn lanes_mut(&mut self) -> impl Iterator<Item = &mut L> {
        self.lanes.iter_mut().flatten()
    }

    pub(crate) fn lane(&mut self, lane: LaneId) -> Result<&mut L, RecordError> {
        self.lanes[lane.index()].as_mut().ok_or(RecordError::Closed)
    }
}

impl<P, R: Root<Key = K>, K: Key, L: Connected<K>> Vault<P, R, K, L> {
    pub(crate) fn seal(&mut self, message: &Message) -> Result<Outgoing, RecordError> {
        let mut frame = [0; CONTROL_FRAME_BYTES];
        frame[HEADER_BYTES..HEADER_BYTES + CONTROL_BYTES].copy_from_slice(&message.encode());
        let link = self.control.as_mut().ok_or(RecordError::Closed)?;
        link.seal(Kind::Control, &mut frame, CONTROL_BYTES)?;
        Ok(Outgoing::new(Connection::Control, &frame))
    }

    /// What a control frame says; `None` if it is authentic and breaks the format.
    pub(crate) fn open(&mut self, frame: &mut [u8]) -> Result<Option<Message>, RecordError> {
        let (kind, text) = self.control.as_mut().ok_or(RecordError::Closed)?.open(frame)?;
        let text = text.first_chunk().filter(|_| kind == Kind::Control);
        Ok(text.and_then(|text| Message::decode(text).ok()))
    }

    fn link(&mut self, connection: Connection) -> Result<(&mut Link<K>, &R), RecordError> {
        let root = self.secrets.as_ref().and_then(|secrets| secrets.of(connection));
        let link = match connection {
            Connection::Control => self.control.as_mut(),
            Connection::Demand => self.demand.as_mut(),
            Connection::Pages(lane) | Connection::Fetch(lane) => {
                self.lanes[lane.index()].as_mut().and_then(|lane| lane.link(connection))
            }
        };
        link.zip(root).ok_or(RecordError::Closed)
    }

    pub(crate) fn propose(&mut self, connection: Connection) -> Result<Outgoing, RecordError> {
        let (link, root) = self.link(connection)?;
        let frame: [u8; RESUME_FRAME_BYTES] = link.propose(root)?;
        Ok(Outgoing::new(connection, &frame))
    }

    pub(crate) fn follow(
        &mut self,
        connection: Connection,
        frame: &mut [u8],
    ) -> Result<Outgoing, RecordError> {
        let (link, root) = self.link(connection)?;
        let frame: [u8; RESUME_FRAME_BYTES] = link.follow(root, frame)?;
        Ok(Outgoing::new(connection, &frame))
    }

    pub(crate) fn agreed(&mut self, connection: Connection, frame: &mut [u8]) -> Result<(), RecordError> {
        self.link(connection)?.0.agreed(frame)
    }
}

/// A lane, seen as its two connections.
pub trait Connected<K> {
    /// One of them, unless its keys were wiped.
    fn link(&mut self, connection: Connection) -> Option<&mut Link<K>>;
}

impl<K, S> Connected<K> for SourceLane<K, S> {
    fn link(&mut self, connection: Connection) -> Option<&mut Link<K>> {
        match connection {
            Connection::Pages(_) => self.pages.as_mut(),
            Connection::Fetch(_) => self.fetch.as_mut(),
            Connection::Control | Connection::Demand => None,
        }
    }
}

impl<K, S> Connected<K> for DestinationLane<K, S> {
    fn link(&mut self, connection: Connection) -> Option<&mut Link<K>> {
        match connection {
            Connection::Pages(_) => self.pages.as_mut(),
            Connection::Fetch(_) => self.fetch.as_mut(),
            Connection::Control | Connection::Demand => None,
        }
    }
}

/// The root that a pair agrees on.
pub type RootOf<P> = <P as Pair>::Root;
/// The key of records that comes of a pair.
pub type KeyOf<P> = <RootOf<P> as Root>::Key;
/// A source's vault.
pub type SourceVault<P, S> = Vault<P, RootOf<P>, KeyOf<P>, SourceLane<KeyOf<P>, S>>;
/// A destination's vault.
pub type DestinationVault<P, S> = Vault<P, RootOf<P>, KeyOf<P>, DestinationLane<KeyOf<P>, S>>;

/// Whatever leads to a source's vault: a reference to a static, a box.
pub trait SourceHold {
    /// The kind of key pair.
    type Pair: Pair;
    /// Where the ledgers' slots lie.
    type Storage: Storage;
    /// The vault.
    fn vault(&self) -> &SourceVault<Self::Pair, Self::Storage>;
    /// The vault.
    fn vault_mut(&mut self) -> &mut SourceVault<Self::Pair, Self::Storage>;
}

impl<P: Pair, S: Storage, T: DerefMut<Target = SourceVault<P, S>>> SourceHold for T {
    type Pair = P;
    type Storage = S;

    fn vault(&self) -> &SourceVault<P, S> {
        self
    }

    fn vault_mut(&mut self) -> &mut SourceVault<P, S> {
        self
    }
}

/// Whatever leads to a destination's vault.
pub trait DestinationHold {
    /// The kind of key pair.
    type Pair: Pair;
    /// Where the ledgers' slots lie.
    type Storage: Storage;
    /// The vault.
    fn vault(&self) -> &DestinationVault<Self::Pair, Self::Storage>;
    /// The vault.
    fn vault_mut(&mut self) -> &mut DestinationVault<Self::Pair, Self::Storage>;
}

impl<P: Pair, S: Storage, T: DerefMut<Target = DestinationVault<P, S>>> DestinationHold for T {
    type Pair = P;
    type Storage = S;

    fn vault(&self) -> &DestinationVault<P, S> {
        self
    }

    fn vault_mut(&mut self) -> &mut DestinationVault<P, S> {
        self
    }
}
