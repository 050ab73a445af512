//! The fixed header of a frame and the kinds of frames: all that a relay needs and all that it can read. Nothing secret is
//! here. See the crate's documentation for the layout.

use crate::unit::PIECE_BYTES;
use core::fmt;

/// The version of the protocol that this crate speaks; the only one.
pub const VERSION: u8 = 3;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 40;
/// Bytes of an AES-GCM tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of a nonce, a public key, a hash.
pub const WORD_BYTES: usize = 32;
/// Longest evidence in bytes: what `attest` allows.
pub const MAX_EVIDENCE_BYTES: usize = nacre_attest::evidence::MAX_EVIDENCE_BYTES;
/// Bytes of an offer's body.
pub const OFFER_BYTES: usize = 120;
/// Bytes of the plaintext of a control message and of a barrier, padding included: all look the same.
pub const CONTROL_BYTES: usize = 64;
/// Bytes of a unit's description.
pub const UNIT_BYTES: usize = 24;
/// Most content of one unit in bytes: a large page.
pub const MAX_CONTENT_BYTES: usize = 2 << 20;
/// Most descriptions in one list.
pub const MAX_LIST_UNITS: usize = 1024;
/// Bytes of a [`Kind::Commit`] frame.
pub const COMMIT_FRAME_BYTES: usize = HEADER_BYTES + WORD_BYTES + TAG_BYTES;
/// Bytes of a [`Kind::Refusal`] frame.
pub const REFUSAL_FRAME_BYTES: usize = HEADER_BYTES + REFUSAL_BYTES;
/// Longest frame that belongs to the handshake, in bytes.
pub const MAX_HANDSHAKE_BYTES: usize = HEADER_BYTES + 2 * WORD_BYTES + MAX_EVIDENCE_BYTES;
/// Longest frame of any kind, in bytes. A transport needs to accept no more.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + UNIT_BYTES + MAX_CONTENT_BYTES + TAG_BYTES;
/// Most lanes of a migration. Each has a connection for rounds and one for fetching.
pub const MAX_LANES: usize = 8;

pub(crate) const REFUSAL_BYTES: usize = 8;

const _: () = assert!(
    HEADER_BYTES == 40 && UNIT_BYTES == 24 && CONTROL_BYTES == 64 && OFFER_BYTES == 120 && MAX_LANES == 8,
    "these are on the wire: read the version rule in lib.rs before changing them"
);

/// The name of a migration: random, chosen by the source's guest, bound by the evidence of both ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MigrationId(pub [u8; 16]);

impl fmt::Debug for MigrationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// One of the two ends; in a header the one that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It gives its tenant away.
    Source = 1,
    /// It takes a tenant.
    Destination = 2,
}

impl End {
    /// The other one.
    pub const fn other(self) -> End {
        match self {
            End::Source => End::Destination,
            End::Destination => End::Source,
        }
    }
}

/// The number of a lane, below [`MAX_LANES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(u8);

impl LaneId {
    /// The lane with this number, or `None` beyond [`MAX_LANES`].
    pub const fn new(number: usize) -> Option<LaneId> {
        if number < MAX_LANES { Some(LaneId(number as u8)) } else { None }
    }

    /// The remainder of a number by so many lanes.
    pub(crate) fn wrapping(number: u64, lanes: usize) -> LaneId {
        LaneId((number % lanes.clamp(1, MAX_LANES) as u64) as u8)
    }

    /// Its number.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A connection between the ends, each with keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Connection {
    /// Handshake and control messages.
    Control,
    /// What faulting tasks wait for, after the hand-over.
    Demand,
    /// The rounds of a lane, up to the hand-over.
    Pages(LaneId),
    /// Background fetching of a lane, after the hand-over.
    Fetch(LaneId),
}

const FIRST_PAGES: u8 = 0x10;
const FIRST_FETCH: u8 = 0x20;

impl Connection {
    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Connection::Control => 0,
            Connection::Demand => 1,
            Connection::Pages(lane) => FIRST_PAGES + lane.0,
            Connection::Fetch(lane) => FIRST_FETCH + lane.0,
        }
    }

    /// The connection with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Connection> {
        let lane = LaneId::new((number & 0x0f) as usize);
        match (number & 0xf0, lane) {
            (0, _) if number == 0 => Some(Connection::Control),
            (0, _) if number == 1 => Some(Connection::Demand),
            (FIRST_PAGES, Some(lane)) => Some(Connection::Pages(lane)),
            (FIRST_FETCH, Some(lane)) => Some(Connection::Fetch(lane)),
            _ => None,
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Source, in the clear: what is to move, and a nonce.
    Offer = 1,
    /// Destination, in the clear: nonce, public key, evidence.
    Accept = 2,
    /// Source, in the clear: public key, evidence.
    Proof = 3,
    /// Either, in the clear and by whoever: why there is no migration. A hint, because anybody can write one.
    Refusal = 4,
    /// Either: a connection begins again under new keys.
    Resume = 5,
    /// Either: a [control message](crate::message::Message).
    Control = 6,
    /// Source: a unit and its content.
    Data = 7,
    /// Source: units without content: all zero, or gone.
    Empty = 8,
    /// Source: units that will be fetched after the hand-over.
    Outstanding = 9,
    /// Source: all of a round was sent, on a lane.
    Barrier = 10,
    /// Destination: units that it asks for.
    Fetch = 11,
    /// Source: the activation key, for this destination alone; the same bytes whenever it is sent.
    Commit = 12,
    /// Source: a part of a large page's content.
    Piece = 13,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 13] = [
        Kind::Offer,
        Kind::Accept,
        Kind::Proof,
        Kind::Refusal,
        Kind::Resume,
        Kind::Control,
        Kind::Data,
        Kind::Empty,
        Kind::Outstanding,
        Kind::Barrier,
        Kind::Fetch,
        Kind::Commit,
        Kind::Piece,
    ];

    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Its name, for errors.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Offer => "Offer",
            Kind::Accept => "Accept",
            Kind::Proof => "Proof",
            Kind::Refusal => "Refusal",
            Kind::Resume => "Resume",
            Kind::Control => "Control",
            Kind::Data => "Data",
            Kind::Empty => "Empty",
            Kind::Outstanding => "Outstanding",
            Kind::Barrier => "Barrier",
            Kind::Fetch => "Fetch",
            Kind::Commit => "Commit",
            Kind::Piece => "Piece",
        }
    }

    /// Whether a body of this kind can be so long.
    fn body_fits(self, bytes: usize) -> bool {
        let evidence = |before: usize| bytes > before && bytes <= before + MAX_EVIDENCE_BYTES;
        let list = |bytes: usize| {
            bytes > 0 && bytes.is_multiple_of(UNIT_BYTES) && bytes <= MAX_LIST_UNITS * UNIT_BYTES
        };
        let sealed = bytes.checked_sub(TAG_BYTES);
        match (self, sealed) {
            (Kind::Offer, _) => bytes == OFFER_BYTES,
            (Kind::Accept, _) => evidence(2 * WORD_BYTES),
            (Kind::Proof, _) => evidence(WORD_BYTES),
            (Kind::Refusal, _) => bytes == REFUSAL_BYTES,
            (_, None) => false,
            (Kind::Resume, Some(plain)) => plain == 0,
            (Kind::Control | Kind::Barrier, Some(plain)) => plain == CONTROL_BYTES,
            (Kind::Data, Some(plain)) => plain > UNIT_BYTES && plain <= UNIT_BYTES + MAX_CONTENT_BYTES,
            (Kind::Empty | Kind::Outstanding | Kind::Fetch, Some(plain)) => list(plain),
            (Kind::Commit, Some(plain)) => plain == WORD_BYTES,
            (Kind::Piece, Some(plain)) => plain == UNIT_BYTES + PIECE_BYTES,
        }
    }

    /// Whether this end sends it, on this connection.
    fn belongs(self, from: End, connection: Connection) -> bool {
        let control = connection == Connection::Control;
        let pages = matches!(connection, Connection::Pages(_));
        let fetching = matches!(connection, Connection::Demand | Connection::Fetch(_));
        let source = from == End::Source;
        match self {
            Kind::Offer | Kind::Proof | Kind::Commit => control && source,
            Kind::Accept => control && !source,
            Kind::Refusal | Kind::Control => control,
            Kind::Resume => true,
            Kind::Data => source && (pages || fetching),
            Kind::Empty | Kind::Outstanding | Kind::Barrier | Kind::Piece => source && pages,
            Kind::Fetch => !source && fetching,
        }
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// There are fewer bytes than a header, or than it announces.
    #[error("the frame is truncated")]
    Truncated,
    /// There are more bytes than the header announces.
    #[error("bytes follow the frame")]
    Trailing,
    /// Another version of the protocol.
    #[error(
        "the other end speaks version {found} of the protocol, this one version {VERSION}; update the older node"
    )]
    Version {
        /// The version it has.
        found: u8,
    },
    /// A kind, connection or end that does not exist.
    #[error("a field of the header has no valid value")]
    Value,
    /// No body of this kind is so long.
    #[error("a frame {kind} can't have {bytes} bytes")]
    Length {
        /// Its kind.
        kind: &'static str,
        /// What it announces.
        bytes: usize,
    },
    /// This kind is never sent by that end on that connection.
    #[error("a frame {kind} has no place on this connection")]
    Misplaced {
        /// Its kind.
        kind: &'static str,
    },
}

/// A header that keeps all rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// On which connection.
    pub connection: Connection,
    /// Who sends it.
    pub from: End,
    /// Bytes of the body, tag included.
    pub body_bytes: usize,
    /// How often the connection began again.
    pub epoch: u32,
    /// Which record of its direction, connection and epoch it is. Zero in the clear and in a Commit.
    pub counter: u64,
    /// The migration it belongs to.
    pub id: MigrationId,
}

impl Header {
    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&[VERSION, self.kind as u8, self.connection.number(), self.from as u8]);
        bytes[4..8].copy_from_slice(&(self.body_bytes as u32).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.counter.to_le_bytes());
        bytes[24..].copy_from_slice(&self.id.0);
        bytes
    }

    /// Reads [`Header::encode`]'s bytes: enough to know how many more to wait for.
    ///
    /// # Errors
    /// If they break a rule.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        if bytes[0] != VERSION {
            return Err(FrameError::Version { found: bytes[0] });
        }
        let kind = Kind::from_number(bytes[1]).ok_or(FrameError::Value)?;
        let connection = Connection::from_number(bytes[2]).ok_or(FrameError::Value)?;
        let from = match bytes[3] {
            1 => End::Source,
            2 => End::Destination,
            _ => return Err(FrameError::Value),
        };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (body_bytes, epoch, reserved) = (word(4) as usize, word(8), word(12));
        let counter = u64::from(word(16)) | u64::from(word(20)) << 32;
        let clear = matches!(kind, Kind::Offer | Kind::Accept | Kind::Proof | Kind::Refusal | Kind::Commit);
        if reserved != 0 || (clear && (epoch != 0 || counter != 0)) {
            return Err(FrameError::Value);
        }
        if !kind.body_fits(body_bytes) {
            return Err(FrameError::Length { kind: kind.name(), bytes: body_bytes });
        }
        if !kind.belongs(from, connection) {
            return Err(FrameError::Misplaced { kind: kind.name() });
        }
        let mut id = MigrationId([0; 16]);
        id.0.copy_from_slice(&bytes[24..]);
        Ok(Header { kind, connection, from, body_bytes, epoch, counter, id })
    }

    /// The header of exactly one frame, and its body.
    ///
    /// # Errors
    /// If the header breaks a rule, or the bytes are more or fewer than one frame.
    pub fn split(frame: &[u8]) -> Result<(Header, &[u8]), FrameError> {
        let (header, body) = frame.split_first_chunk().ok_or(FrameError::Truncated)?;
        let header = Header::decode(header)?;
        match body.len() {
            found if found < header.body_bytes => Err(FrameError::Truncated),
            found if found > header.body_bytes => Err(FrameError::Trailing),
            _ => Ok((header, body)),
        }
    }
}

/// Writes a frame in the clear from the parts of its body; returns its length, or `None` if `out` is too short.
pub(crate) fn write_clear(
    out: &mut [u8],
    kind: Kind,
    from: End,
    id: MigrationId,
    parts: &[&[u8]],
) -> Option<usize> {
    let body_bytes = parts.iter().map(|part| part.len()).sum();
    let header =
        Header { kind, connection: Connection::Control, from, body_bytes, epoch: 0, counter: 0, id }.encode();
    let out = out.get_mut(..HEADER_BYTES + body_bytes)?;
    let (head, mut rest) = out.split_at_mut(HEADER_BYTES);
    head.copy_from_slice(&header);
    for part in parts {
        let (place, after) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = after;
    }
    Some(HEADER_BYTES + body_bytes)
}
