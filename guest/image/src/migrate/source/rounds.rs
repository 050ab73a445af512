//! Rounds, while tasks run: collect what was written, have every vCPU flush, send.

use super::{Course, Phase, SourceAgent, VAULT, wake_for_lanes};
use crate::arch::clock;
use crate::migrate::lanes::{self, Duty};
use crate::migrate::tell;
use crate::{memory, translations, wasm};
use nacre_abi::migrate::{MoveEvent, MoveProgress};
use nacre_migrate::Source;
use nacre_migrate::flow::{Decision, Least, Measured, Mode, decide};

/// Of which part of the memory translations are forgotten sooner one by one than with all others: up to 4 pages of each region.
const SPARSE: u64 = 128;

impl SourceAgent {
    /// Collects, from the beginning or where it stopped to have translations forgotten.
    pub(super) fn collect(&mut self, duty: Duty, goes_on: bool) {
        self.course = Course::Round(Phase::ToCollect { duty, goes_on, bumped_ns: clock::monotonic_ns() });
    }

    pub(super) fn begin_collecting(&mut self, duty: Duty, goes_on: bool) {
        if !translations::all().begin(translations::settled) {
            return;
        }
        let Some(mut all) = lanes::claim_all() else { return };
        if goes_on {
            all.go_on(duty);
        } else {
            // About as much as the last time, or less.
            all.list_pages(self.is_small_round());
            all.begin(duty);
        }
        drop(all);
        self.course = Course::Round(Phase::Collecting(duty));
        wake_for_lanes();
    }

    /// What changed is marked, in all regions or some: whatever is written from now on must be seen the next time.
    pub(super) fn collected(&mut self, mut all: lanes::AllLanes, duty: Duty) {
        let has_retired = memory::space().seal_tables();
        let is_listed = all.list_is_enough() && !has_retired;
        let goes_on = !all.have_collected_all();
        drop(all);
        match is_listed {
            true => translations::next_listed(),
            false => translations::next_generation(),
        }
        let (generation, bumped_ns) = (translations::generation(), clock::monotonic_ns());
        wasm::bump_epoch();
        let then = goes_on.then_some(duty);
        self.course = Course::Round(Phase::Flushing { generation, bumped_ns, then });
    }

    /// Another round, or the hand-over.
    pub(super) fn decide(&mut self) {
        let Some(mut all) = lanes::claim_all() else { return };
        let now = clock::monotonic_ns();
        let dirty = unsent_bytes(&all, self.order.lanes);
        let elapsed = (now - self.collected_at_ns).max(1);
        self.dirty_rate = per_second(dirty, elapsed);
        self.collected_at_ns = now;
        let sent = all.bytes();
        self.least = self.least.after(dirty);
        let measured = Measured {
            rounds: (self.report.rounds - self.rounds_before) as u32,
            memory_bytes: memory::frames().committed_pages().0 * nacre_abi::PAGE_BYTES,
            sent_bytes: sent - self.bytes_before,
            dirty_bytes: dirty,
            least: self.least,
            dirty_rate: self.dirty_rate,
            bandwidth: self.bandwidth,
            carried: self.carried,
            downtime_goal: core::time::Duration::from_nanos(self.order.downtime_goal_ns),
        };
        match decide(self.mode(), &measured) {
            Decision::HandOver(_) if self.received.is_some() => {
                drop(all);
                self.begin_parking();
            }
            decision => {
                // What is written until the destination is ready must not stay: rounds begin anew then.
                self.begins_anew = decision != Decision::AnotherRound;
                self.report.rounds += 1;
                let progress = MoveProgress {
                    round: self.report.rounds,
                    sent_bytes: sent,
                    dirty_bytes: dirty,
                    dirty_rate: if self.report.rounds > 1 { self.dirty_rate } else { 0 },
                    bandwidth: self.bandwidth,
                };
                tell(MoveEvent::Progress, 0, &progress.encode());
                (self.sent_before, self.dirty_before) = (sent, dirty);
                all.begin(Duty::Send);
                drop(all);
                self.course = Course::Round(Phase::Sending);
                wake_for_lanes();
            }
        }
    }

    /// A round was sent: looks what changed meanwhile.
    pub(super) fn sent(&mut self, mut all: lanes::AllLanes) {
        if matches!(self.mode(), Mode::StopAndCopy | Mode::PostCopy) {
            if all.flush() {
                drop(all);
                self.course = Course::Round(Phase::Waiting);
            }
            return;
        }
        if !all.flush() {
            // The barrier is not with the host yet.
            return;
        }
        let elapsed = (clock::monotonic_ns() - self.collected_at_ns).max(1);
        self.bandwidth = per_second(all.bytes() - self.sent_before, elapsed);
        self.carried = self.carried.max(self.bandwidth);
        drop(all);
        // What the destination has not dealt with is in the way of the last round, while tasks are parked.
        let in_the_way = self.is_small_round() && self.received.is_some_and(|received| received < self.round);
        if in_the_way || self.begins_anew {
            self.course = Course::Round(Phase::Confirming);
        } else {
            self.next_round();
        }
    }

    /// Looks what changed while a round was sent.
    pub(super) fn next_round(&mut self) {
        if core::mem::take(&mut self.begins_anew) {
            // Neither what was learned nor the limits that were used up hold for what was written meanwhile.
            (self.least, self.dirty_before) = (Least::NONE, u64::MAX);
            (self.rounds_before, self.bytes_before) = (self.report.rounds - 1, self.sent_before);
        }
        let Some(Source::Copying(copying)) = &mut self.state else { return };
        match copying.begin_round() {
            Ok(round) => {
                self.round = round;
                self.collect(Duty::Collect, false);
            }
            Err(_) => self.wants_cancel = true,
        }
    }

    /// Whether the last round had few pages of each region.
    fn is_small_round(&self) -> bool {
        let memory_bytes = memory::frames().committed_pages().0 * nacre_abi::PAGE_BYTES;
        self.report.rounds > 1 && self.dirty_before < memory_bytes / SPARSE
    }
}

fn per_second(bytes: u64, ns: u64) -> u64 {
    (u128::from(bytes) * 1_000_000_000 / u128::from(ns)) as u64
}

/// Bytes of pages that are marked and not sent, on all lanes.
pub(super) fn unsent_bytes(_: &lanes::AllLanes, lanes: u32) -> u64 {
    // SAFETY: this is vCPU 0, and all lanes are claimed.
    let mut hold = unsafe { VAULT.hold() };
    (0..lanes as usize).filter_map(|lane| Some(hold.lane_mut(lane)?.ledger().unsent().1)).sum()
}

/// How often vCPUs are brought to a safe point again, in nanoseconds: bumps coalesce.
pub(super) const REBUMP_NS: u64 = 20_000;

/// Brings running tasks to a safe point from time to time, for what every vCPU has to do there.
pub(super) fn hurry(bumped_ns: &mut u64) {
    let now = clock::monotonic_ns();
    if now.saturating_sub(*bumped_ns) > REBUMP_NS {
        *bumped_ns = now;
        wasm::bump_epoch();
    }
}
