//! Control messages and barriers: what the two ends say to each other apart from units. All have one length.

use crate::book::Summary;
use crate::unit::Round;
use crate::wire::{CONTROL_BYTES, WORD_BYTES};

/// Why a migration ended. What is told the other end is one byte; it decides nothing there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    /// Somebody asked for it.
    #[error("it was cancelled")]
    Cancelled = 1,
    /// The other end broke the protocol, though genuine: it is of another release.
    #[error("the other end broke the protocol")]
    Protocol = 2,
    /// A ledger is full, or there is no memory for what came.
    #[error("the destination has not enough memory")]
    Memory = 3,
    /// The destination's table is not the source's: a defect, found before anything was lost.
    #[error("what the destination has is not what the source has")]
    Mismatch = 4,
    /// The peer's evidence was not accepted.
    #[error("the peer's evidence was not accepted")]
    Peer = 5,
    /// Source and destination were launched with different manifests.
    #[error("the destination was launched with another manifest")]
    Manifest = 6,
    /// Loaded code needs CPU features that the destination has not.
    #[error("the destination's CPU lacks features that loaded code uses")]
    Cpu = 7,
    /// A unit was refused.
    #[error("a unit was refused")]
    Unit = 8,
    /// Source and destination are of different images.
    #[error("the destination is of another guest image; update the older node")]
    Image = 9,
}

impl Reason {
    /// The reason with this number.
    pub const fn from_number(number: u8) -> Option<Reason> {
        Some(match number {
            1 => Reason::Cancelled,
            2 => Reason::Protocol,
            3 => Reason::Memory,
            4 => Reason::Mismatch,
            5 => Reason::Peer,
            6 => Reason::Manifest,
            7 => Reason::Cpu,
            8 => Reason::Unit,
            9 => Reason::Image,
            _ => return None,
        })
    }
}

/// The hash of the final manifest, which binds the transcript.
pub type FinalHash = [u8; WORD_BYTES];

/// A control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Destination: it has verified the source and can take units.
    Ready,
    /// Destination: it has everything of all rounds up to this one.
    RoundReceived(Round),
    /// Source: its tasks are parked, and this is the hash of the final manifest.
    Final(FinalHash),
    /// Destination: all memory is committed, and what it has is what this manifest says.
    Staged(FinalHash),
    /// Destination: it was activated and fetches what is outstanding.
    Running,
    /// Destination: it was activated and has everything.
    Complete,
    /// Either, before the source is gone: it ends here.
    Abort(Reason),
}

/// Bytes that are no control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a control message breaks the format")]
pub struct MessageError;

impl Message {
    /// Its name, for errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Message::Ready => "Ready",
            Message::RoundReceived(_) => "RoundReceived",
            Message::Final(_) => "Final",
            Message::Staged(_) => "Staged",
            Message::Running => "Running",
            Message::Complete => "Complete",
            Message::Abort(_) => "Abort",
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; CONTROL_BYTES] {
        let mut bytes = [0; CONTROL_BYTES];
        let (tag, body) = bytes.split_at_mut(1);
        tag[0] = match self {
            Message::Ready => 1,
            Message::RoundReceived(round) => {
                body[..4].copy_from_slice(&round.0.to_le_bytes());
                2
            }
            Message::Final(hash) => {
                body[..WORD_BYTES].copy_from_slice(hash);
                3
            }
            Message::Staged(hash) => {
                body[..WORD_BYTES].copy_from_slice(hash);
                4
            }
            Message::Running => 5,
            Message::Complete => 6,
            Message::Abort(reason) => {
                body[0] = *reason as u8;
                7
            }
        };
        bytes
    }

    /// Reads [`Message::encode`]'s bytes.
    ///
    /// # Errors
    /// If they are anything else.
    pub fn decode(bytes: &[u8; CONTROL_BYTES]) -> Result<Message, MessageError> {
        let body = &bytes[1..];
        let hash = || body.first_chunk::<WORD_BYTES>().copied().ok_or(MessageError);
        let message = match bytes[0] {
            1 => Message::Ready,
            2 => Message::RoundReceived(Round(u32::from_le_bytes([body[0], body[1], body[2], body[3]]))),
            3 => Message::Final(hash()?),
            4 => Message::Staged(hash()?),
            5 => Message::Running,
            6 => Message::Complete,
            7 => Message::Abort(Reason::from_number(body[0]).ok_or(MessageError)?),
            _ => return Err(MessageError),
        };
        if message.encode() == *bytes { Ok(message) } else { Err(MessageError) }
    }
}

/// What ends a round on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Barrier {
    pub round: Round,
    /// Whether this is the final manifest's part of this lane.
    pub last: bool,
    pub summary: Summary,
}

impl Barrier {
    pub(crate) fn encode(&self) -> [u8; CONTROL_BYTES] {
        let mut bytes = [0; CONTROL_BYTES];
        bytes[..4].copy_from_slice(&self.round.0.to_le_bytes());
        bytes[4] = u8::from(self.last);
        bytes[8..16].copy_from_slice(&self.summary.units.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.summary.fingerprint.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; CONTROL_BYTES]) -> Result<Barrier, MessageError> {
        let number = |at: usize, count: usize| {
            bytes[at..at + count].iter().rev().fold(0, |number, byte| number << 8 | u128::from(*byte))
        };
        let barrier = Barrier {
            round: Round(number(0, 4) as u32),
            last: bytes[4] == 1,
            summary: Summary { units: number(8, 8) as u64, fingerprint: number(16, 16) },
        };
        if barrier.encode() == *bytes { Ok(barrier) } else { Err(MessageError) }
    }
}
