//! Before the first round: finds out how much of the memory is written all over. What is on large pages is seen to be written only as a whole,
//! 2 MiB at a time; a service that writes a word here and there would have to be sent twice before anything is known about small pages.
//!
//! Twice, for a hundredth of a second, one looks which large pages are written, and splits those. The second time shows how fast *others* come
//! into use than those that always are. If a fourth of all would before the first round is over, all are split at once.

use super::{Course, Phase, SourceAgent};
use crate::arch::clock;
use crate::migrate::lanes::{self, Duty};
use crate::migrate::wakes_at;
use nacre_abi::LARGE_PAGE_BYTES;

/// How long one looks each time, in nanoseconds.
const LOOK_NS: u64 = 10_000_000;
/// Bytes a second at which the first round is assumed to go, before any was measured.
const ASSUMED_BANDWIDTH: u64 = 1 << 30;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scouting {
    /// All that was written before counts as seen; look for the first time.
    First,
    /// Look for the second time.
    Second,
    /// What was seen then decides.
    Judge,
    /// It is known.
    Over,
}

impl SourceAgent {
    /// All vCPUs have flushed what the last collection showed; true if the rounds may begin.
    pub(super) fn has_scouted(&mut self) -> bool {
        self.scouting = match self.scouting {
            Scouting::Over => return true,
            looking @ (Scouting::First | Scouting::Second) => {
                let until = clock::monotonic_ns() + LOOK_NS;
                wakes_at(until);
                self.course = Course::Round(Phase::Looking { until });
                if looking == Scouting::First { Scouting::Second } else { Scouting::Judge }
            }
            Scouting::Judge => {
                let Some(mut all) = lanes::claim_all() else { return false };
                let (regions, written) = all.regions();
                let first_round_ns = u128::from(regions) * u128::from(LARGE_PAGE_BYTES) * 1_000_000_000
                    / u128::from(ASSUMED_BANDWIDTH.min(self.order.bandwidth).max(1));
                let looks = (first_round_ns / u128::from(LOOK_NS)) as u64;
                if written.saturating_mul(looks) > regions / 4 {
                    drop(all);
                    self.collect(Duty::SplitAll, false);
                }
                Scouting::Over
            }
        };
        // The next look, or the last flush.
        matches!(self.course, Course::Round(Phase::Flushing { .. })) && self.scouting == Scouting::Over
    }

    /// The time to look is over.
    pub(super) fn look(&mut self) {
        wakes_at(0);
        self.collect(Duty::Collect, false);
    }
}
