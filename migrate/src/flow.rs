//! Decisions that are pure arithmetic: when another round stops paying, and how much may be fetched at once.
//!
//! # When to hand over
//!
//! With `d` bytes per second becoming dirty, a bandwidth of `b` and `B` bytes to send, a round takes `B/b` and leaves `B * d/b`. It makes
//! what is left smaller by `B * (1 - d/b)`, at the price of sending `B`.
//!
//! - In `hybrid` the downtime hardly depends on `B`, because the remainder is fetched after the hand-over; only if sending it takes no longer than
//!   [`WORTH_SENDING`] it is sent at once, and nothing can be lost any more. What does depend on it is the window
//!   after Commit in which a crash of either side loses the service, and how many tasks wait for pages: both are
//!   proportional to `B`. So rounds go on while `d/b < 3/4`: then the sum of all further
//!   rounds is at most four times `B`. Looking for what was written and having translations forgotten costs a round time besides, and pages are written
//!   meanwhile too, so `B` does not fall below what is written in that time. What is written in a round swings: the second one in a row that leaves hardly less
//!   than the fewest so far is the last if it is at most a fourth more than that; the third, if it is at most half more; and so on.
//!   And rounds end when `B` is what the connection carries in 2 ms: then another round costs about as much time as
//!   two round trips and the parking itself.
//! - In `pre-copy` everything is sent while tasks are parked, so `B/b` is downtime: rounds go on until that is what the caller
//!   wants, or until a round stops paying. `b` is then what the last round carried, because the remainder is pages as small and as scattered as
//!   that round's; in everything else it is the most that a round has carried, which is what the connection can do.
//! - In both, no more than 30 rounds and no more than three times the memory: a rate that swings could go on for ever.

use crate::unit::LARGE_BYTES;
use core::time::Duration;

/// How a tenant moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Park, send all, go: the baseline.
    StopAndCopy,
    /// Rounds while tasks run, the rest while they are parked. No window after Commit.
    PreCopy,
    /// Park at once; everything is fetched afterwards.
    PostCopy,
    /// Rounds while they pay; the rest is fetched afterwards.
    Hybrid,
}

/// What was measured at the end of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Rounds that are over.
    pub rounds: u32,
    /// Bytes of the tenant's memory.
    pub memory_bytes: u64,
    /// Bytes that were sent so far.
    pub sent_bytes: u64,
    /// Bytes that are dirty now.
    pub dirty_bytes: u64,
    /// Bytes that were dirty when fewest were, and the rounds since.
    pub least: Least,
    /// Bytes that became dirty, per second, over the last round.
    pub dirty_rate: u64,
    /// Bytes that were carried, per second, in the last round.
    pub bandwidth: u64,
    /// The same of the round that carried most: small rounds mostly wait for other things, so this tells what the connection can do.
    pub carried: u64,
    /// In `pre-copy`: how long sending while tasks are parked may take.
    pub downtime_goal: Duration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    AnotherRound,
    /// Park the tasks and hand over.
    HandOver(Why),
}

/// Why to hand over now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The mode has no rounds.
    Mode,
    /// What is left is small enough.
    SmallEnough,
    /// As much becomes dirty as is sent, or nearly.
    NotShrinking,
    /// Enough rounds.
    Rounds,
    /// Enough bytes.
    Bytes,
}

/// Most rounds.
pub const MAX_ROUNDS: u32 = 30;
/// What is sent in all, in multiples of the memory.
pub const MAX_SENT: u64 = 3;
/// In `hybrid`, the remainder that is small enough, as time on the connection.
pub const SMALL_ENOUGH: Duration = Duration::from_millis(2);
/// In `hybrid`, how long the remainder may take at the most that a round has carried, for it to be sent while tasks are parked.
pub const WORTH_SENDING: Duration = Duration::from_millis(1);

/// The round that left the fewest dirty bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Least {
    dirty_bytes: u64,
    /// Rounds since then, all of which left more, or hardly less.
    idle_rounds: u32,
}

impl Least {
    /// Before the first round.
    pub const NONE: Least = Least { dirty_bytes: u64::MAX, idle_rounds: 0 };

    /// After another round, which left so many.
    #[must_use]
    pub fn after(self, dirty_bytes: u64) -> Least {
        let Least { dirty_bytes: least, idle_rounds } = self;
        match dirty_bytes < least - least / 16 {
            true => Least { dirty_bytes, idle_rounds: 0 },
            false => Least { dirty_bytes: least.min(dirty_bytes), idle_rounds: idle_rounds + 1 },
        }
    }

    /// Whether another round would hardly leave less: see the module's documentation.
    fn is_reached(self, dirty_bytes: u64) -> bool {
        let Some(more) = self.idle_rounds.checked_sub(1) else { return false };
        let above = u128::from(self.dirty_bytes) * u128::from(more) / 4;
        more > 0 && u128::from(dirty_bytes) <= u128::from(self.dirty_bytes) + above
    }
}

/// Whether what is left when tasks are parked may stay outstanding. To list a page takes about a tenth of the time that it takes to send a small one,
/// but then tasks wait for it, and its neighbours are found in new tables, which takes longer still. `carried`: the most that a round has
/// carried, in bytes per second.
pub fn lists_remainder(mode: Mode, remainder_bytes: u64, carried: u64) -> bool {
    let worth_sending = u128::from(carried) * WORTH_SENDING.as_nanos() / 1_000_000_000;
    match mode {
        Mode::StopAndCopy | Mode::PreCopy => false,
        Mode::PostCopy => true,
        Mode::Hybrid => u128::from(remainder_bytes) > worth_sending,
    }
}

/// Whether another round pays. See the module's documentation.
pub fn decide(mode: Mode, measured: &Measured) -> Decision {
    let Measured { rounds, memory_bytes, sent_bytes, dirty_bytes, dirty_rate, carried, .. } = *measured;
    let mostly = |part: u64, of: u64| u128::from(part) * 4 >= u128::from(of) * 3;
    let (goal, at) = match mode {
        Mode::StopAndCopy | Mode::PostCopy => return Decision::HandOver(Why::Mode),
        Mode::PreCopy => (measured.downtime_goal, measured.bandwidth),
        Mode::Hybrid => (SMALL_ENOUGH, carried),
    };
    if rounds == 0 {
        return Decision::AnotherRound;
    }
    let in_goal = u128::from(at) * goal.as_nanos() / 1_000_000_000;
    if u128::from(dirty_bytes) <= in_goal {
        Decision::HandOver(Why::SmallEnough)
    } else if mostly(dirty_rate, carried) || measured.least.is_reached(dirty_bytes) {
        Decision::HandOver(Why::NotShrinking)
    } else if rounds >= MAX_ROUNDS {
        Decision::HandOver(Why::Rounds)
    } else if sent_bytes >= memory_bytes.saturating_mul(MAX_SENT) {
        Decision::HandOver(Why::Bytes)
    } else {
        Decision::AnotherRound
    }
}

/// Bytes that were asked for and did not come yet, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    cap_bytes: u64,
    in_flight_bytes: u64,
}

impl Window {
    /// About 1 ms of the measured bandwidth (bytes per second): more would only stand in the way of what tasks wait for.
    pub fn for_bandwidth(bytes_per_second: u64) -> Window {
        Window { cap_bytes: bytes_per_second / 1000, in_flight_bytes: 0 }
    }

    /// Measured anew.
    pub fn adjust(&mut self, bytes_per_second: u64) {
        self.cap_bytes = bytes_per_second / 1000;
    }

    /// Bytes that may still be asked for. With nothing on the way any unit may, however slow the connection.
    pub fn room(&self) -> u64 {
        match self.in_flight_bytes {
            0 => self.cap_bytes.max(LARGE_BYTES as u64),
            bytes => self.cap_bytes.saturating_sub(bytes),
        }
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        self.in_flight_bytes += bytes;
    }

    pub(crate) fn arrived(&mut self, bytes: u64) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
    }

    pub(crate) fn clear(&mut self) {
        self.in_flight_bytes = 0;
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
