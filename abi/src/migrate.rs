//! How a migration is begun, followed and ended over the window: channels, messages, and what they say. The frames themselves are
//! `nacre-migrate`'s and go through [pipes](crate::pipe).
//!
//! ```text
//! source                                            destination
//! H MigrateSend(order)                              H MigrateReceive(order)      before anything else but its manifest
//! G MigrateEvent*                                   G MigrateEvent*
//! H MigrateCancel                                   H MigrateCancel, MigrateMemory(all of it is committed)
//! G MigrateCommit(88 bytes): the tenant is gone     H MigrateCommit(the same)
//! H MoveWord::Hold: not before the host has written down that it may be gone
//! H MoveWord::Rejoin  G MigrateRejoined(channel)   a connection broke: both pipes of the channel begin again
//! ```
//! From [`MoveEvent::Parked`] on the source's vCPU 0 takes nothing from the ring to the guest, so a cancel is also a word of the
//! window ([`MoveWord`]). What it has not taken then belongs to the destination if the tenant moves, and is taken if it stays.

use crate::{LARGE_PAGE_BYTES, PAGE_BYTES};

/// Lanes at most; `nacre-migrate` has the same number.
pub const MAX_LANES: u32 = 8;
/// Channels before the lanes: control and demand.
pub const FIRST_LANE: u32 = 2;
/// Channels at most.
pub const MAX_CHANNELS: u32 = FIRST_LANE + MAX_LANES;
/// Data bytes of the pipes of the control channel.
pub const CONTROL_PIPE_BYTES: u64 = 256 << 10;
/// Data bytes of the pipes of every other channel.
pub const PIPE_BYTES: u64 = 2 << 20;
/// Bytes of a Commit.
pub const COMMIT_BYTES: usize = 88;

/// Bytes for the pages of one lane's ledger: 16 for each small page of memory, and a third more (`nacre-migrate`).
const SLOT_BYTES: u64 = 16;
/// Bytes in which a frame is put together or taken apart: one of 2 MiB of content and a page for what is around it.
pub const FRAME_BYTES: u64 = LARGE_PAGE_BYTES + PAGE_BYTES;

/// The lanes of a CVM with this much memory and this many vCPUs: one for each worker, as far as their buffers are a small part of its memory.
pub const fn lanes(memory_bytes: u64, vcpus: u32) -> u32 {
    let (workers, affordable) = (vcpus - 1, memory_bytes >> 28);
    let lanes = if affordable < workers as u64 { affordable as u32 } else { workers };
    match lanes {
        0 => 1,
        lanes if lanes > MAX_LANES => MAX_LANES,
        lanes => lanes,
    }
}

/// Bytes that the ledgers' slots of all lanes take.
pub const fn ledger_bytes(memory_bytes: u64) -> u64 {
    memory_bytes / PAGE_BYTES * SLOT_BYTES / 3 * 4 + MAX_LANES as u64 * PAGE_BYTES
}

/// Bytes in which a request for units, or a short frame, is put together or taken apart.
pub const REQUEST_BYTES: u64 = 32 << 10;
/// The same for frames of the control channel, which carry evidence.
pub const CONTROL_FRAME_BYTES: u64 = 96 << 10;

/// Bytes of agent memory that a migration needs: ledgers, and two buffers for each channel.
pub const fn agent_bytes(memory_bytes: u64, vcpus: u32) -> u64 {
    let channels = lanes(memory_bytes, vcpus) as u64 + 1;
    ledger_bytes(memory_bytes)
        + channels * (FRAME_BYTES + REQUEST_BYTES)
        + 2 * CONTROL_FRAME_BYTES
        + PAGE_BYTES
}

/// Words of the window that speak of a migration, written by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveWord {
    /// Not zero: end the migration if that is still possible.
    Cancel = 40,
    /// Channels whose connection broke and of which there is another one, a bit each: the host sets bits, and does nothing with those pipes until
    /// `MigrateRejoined`; the guest takes them.
    Rejoin = 41,
    /// Not zero: the tenant does not go yet, though the destination is staged. The host has something to write down before that.
    Hold = 42,
}

/// How a tenant is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveMode {
    /// Rounds while tasks run; the rest follows after the hand-over.
    Hybrid = 0,
    /// Rounds while tasks run, the rest while they are parked.
    PreCopy = 1,
    /// The hand-over at once; everything follows.
    PostCopy = 2,
    /// Everything while tasks are parked.
    StopAndCopy = 3,
}

impl MoveMode {
    /// The mode with this number, if there is one.
    pub const fn from_number(number: u64) -> Option<MoveMode> {
        Some(match number {
            0 => MoveMode::Hybrid,
            1 => MoveMode::PreCopy,
            2 => MoveMode::PostCopy,
            3 => MoveMode::StopAndCopy,
            _ => return None,
        })
    }
}

/// The body of `MigrateSend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOrder {
    /// How.
    pub mode: MoveMode,
    /// Lanes that are connected, 1 to [`lanes`]' number.
    pub lanes: u32,
    /// Bytes per second that may be sent; `u64::MAX` for no limit.
    pub bandwidth: u64,
    /// In `pre-copy`: how long sending while tasks are parked may take, in nanoseconds.
    pub downtime_goal_ns: u64,
}

impl SendOrder {
    /// Bytes of the encoded form.
    pub const BYTES: usize = 32;

    /// Little-endian words, in the order of the fields.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        encode([self.mode as u64, u64::from(self.lanes), self.bandwidth, self.downtime_goal_ns])
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` if it names no mode or no number of lanes there can be.
    pub fn decode(bytes: &[u8]) -> Option<SendOrder> {
        let [mode, lanes, bandwidth, downtime_goal_ns] = decode(bytes)?;
        let lanes = u32::try_from(lanes).ok().filter(|lanes| (1..=MAX_LANES).contains(lanes))?;
        Some(SendOrder { mode: MoveMode::from_number(mode)?, lanes, bandwidth, downtime_goal_ns })
    }
}

/// What a `MigrateEvent` says; its number is the header's `stream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveEvent {
    /// Both ends know each other.
    Attested = 0,
    /// Source, a round began: the body is a [`MoveProgress`].
    Progress = 1,
    /// Source: all tasks are parked, and everything they sent is on the rings.
    Parked = 2,
    /// Source: the destination has everything that it needs to run. Destination: it has said so.
    Staged = 3,
    /// It ended before the source was gone, and the tenant runs there; `arg` is a [`MoveFailure`], the body the reason as text.
    Aborted = 4,
    /// The destination runs.
    Running = 5,
    /// The destination has everything. The body is a [`MoveReport`].
    Complete = 6,
    /// Destination, before `Staged`: it waits for `MigrateMemory`.
    NeedsMemory = 7,
    /// After `Gone` or `Staged`: what came on the channel `arg` is not what the other end has sent. It takes nothing more before there is another
    /// connection.
    Spoiled = 8,
}

impl MoveEvent {
    /// The event with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<MoveEvent> {
        Some(match number {
            0 => MoveEvent::Attested,
            1 => MoveEvent::Progress,
            2 => MoveEvent::Parked,
            3 => MoveEvent::Staged,
            4 => MoveEvent::Aborted,
            5 => MoveEvent::Running,
            6 => MoveEvent::Complete,
            7 => MoveEvent::NeedsMemory,
            8 => MoveEvent::Spoiled,
            _ => return None,
        })
    }
}

/// Why a migration ended; what the host makes of it is its own business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveFailure {
    /// Somebody asked for it.
    Cancelled = 0,
    /// This end refused, or failed.
    Here = 1,
    /// The other end did.
    There = 2,
}

impl MoveFailure {
    /// The failure with this number, if there is one.
    pub const fn from_number(number: u64) -> Option<MoveFailure> {
        Some(match number {
            0 => MoveFailure::Cancelled,
            1 => MoveFailure::Here,
            2 => MoveFailure::There,
            _ => return None,
        })
    }
}

/// How far the source is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveProgress {
    /// The round that begins now; the first is 1.
    pub round: u64,
    /// Bytes of pages sent so far.
    pub sent_bytes: u64,
    /// Bytes of pages that this round has to send.
    pub dirty_bytes: u64,
    /// Bytes of pages that were written per second during the last round.
    pub dirty_rate: u64,
    /// Bytes per second that the last round took.
    pub bandwidth: u64,
}

impl MoveProgress {
    /// Bytes of the encoded form.
    pub const BYTES: usize = 40;

    /// Little-endian words, in the order of the fields.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        encode([self.round, self.sent_bytes, self.dirty_bytes, self.dirty_rate, self.bandwidth])
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Option<MoveProgress> {
        let [round, sent_bytes, dirty_bytes, dirty_rate, bandwidth] = decode(bytes)?;
        Some(MoveProgress { round, sent_bytes, dirty_bytes, dirty_rate, bandwidth })
    }
}

/// What one end has measured of a whole migration, by its own clock: claims, as all that a guest says. Times are nanoseconds; those of the source
/// count from the moment at which it began to park its tasks, those of the destination from the arrival of the Commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveReport {
    /// Rounds while tasks ran.
    pub rounds: u64,
    /// Bytes of pages sent (source) or received (destination) before the hand-over.
    pub bytes: u64,
    /// Bytes of pages that stayed outstanding at the hand-over.
    pub outstanding_bytes: u64,
    /// Source: all tasks were parked. Destination: the tasks were queued.
    pub parked_ns: u64,
    /// Source: what had changed was found.
    pub collected_ns: u64,
    /// Source: everything was sent, the final manifest too.
    pub sent_ns: u64,
    /// Source: the destination had said that it is staged.
    pub staged_ns: u64,
    /// Source: the tenant was gone, and the Commit on its ring.
    pub gone_ns: u64,
    /// Time stamp counter when it began to park (source), or when the first task was queued (destination).
    pub tsc: u64,
    /// From the hand-over until nothing was outstanding any more.
    pub window_ns: u64,
}

impl MoveReport {
    /// Bytes of the encoded form.
    pub const BYTES: usize = 80;

    /// Little-endian words, in the order of the fields.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        encode([
            self.rounds,
            self.bytes,
            self.outstanding_bytes,
            self.parked_ns,
            self.collected_ns,
            self.sent_ns,
            self.staged_ns,
            self.gone_ns,
            self.tsc,
            self.window_ns,
        ])
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Option<MoveReport> {
        let [
            rounds,
            bytes,
            outstanding_bytes,
            parked_ns,
            collected_ns,
            sent_ns,
            staged_ns,
            gone_ns,
            tsc,
            window_ns,
        ] = decode(bytes)?;
        Some(MoveReport {
            rounds,
            bytes,
            outstanding_bytes,
            parked_ns,
            collected_ns,
            sent_ns,
            staged_ns,
            gone_ns,
            tsc,
            window_ns,
        })
    }
}

fn encode<const WORDS: usize, const BYTES: usize>(words: [u64; WORDS]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn decode<const WORDS: usize>(bytes: &[u8]) -> Option<[u64; WORDS]> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() || chunks.len() != WORDS {
        return None;
    }
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u64::from_le_bytes(*chunk);
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_again() {
        let order = SendOrder { mode: MoveMode::PostCopy, lanes: 3, bandwidth: 7, downtime_goal_ns: 9 };
        assert_eq!(SendOrder::decode(&order.encode()), Some(order));
        let progress = MoveProgress { round: 1, sent_bytes: 2, dirty_bytes: 3, dirty_rate: 4, bandwidth: 5 };
        assert_eq!(MoveProgress::decode(&progress.encode()), Some(progress));
        let report = MoveReport { rounds: 1, window_ns: 10, staged_ns: 7, ..MoveReport::default() };
        assert_eq!(MoveReport::decode(&report.encode()), Some(report));
    }

    #[test]
    fn orders_that_cannot_be_are_refused() {
        let order = SendOrder { mode: MoveMode::Hybrid, lanes: 1, bandwidth: 0, downtime_goal_ns: 0 };
        for (at, value) in [(0, 4u64), (8, 0), (8, 9), (8, u64::MAX)] {
            let mut bytes = order.encode();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert_eq!(SendOrder::decode(&bytes), None, "{at} {value}");
        }
        assert_eq!(SendOrder::decode(&order.encode()[..31]), None);
    }

    #[test]
    fn lanes_fit_workers_and_memory() {
        let cases = [(64 << 20, 64, 1), (1 << 30, 3, 2), (8 << 30, 3, 2), (8 << 30, 64, 8), (1 << 30, 1, 1)];
        for (memory, vcpus, expected) in cases {
            assert_eq!(lanes(memory, vcpus), expected, "{memory} {vcpus}");
            assert!(agent_bytes(memory, vcpus) < memory / 8, "{memory} {vcpus}");
        }
    }
}
