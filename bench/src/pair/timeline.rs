//! What clients saw of a migration, from the log of their answers. Pure.

use super::Moved;
use super::clients::{Answers, Log};
use crate::summary::Summary;
use serde::Serialize;
use std::time::Duration;

/// How long before the order and after the end is looked at.
pub const AROUND: Duration = Duration::from_secs(1);
/// A window in which answers are counted, for the time until there are as many as before.
const WINDOW: Duration = Duration::from_millis(50);
/// What of the rate before counts as being back.
const BACK: f64 = 0.95;

/// Answers in one piece of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bucket {
    /// Its beginning, in milliseconds from the order to migrate.
    pub at_ms: f64,
    /// Answers a second.
    pub per_second: f64,
    /// Half of them took less, in milliseconds. None without answers.
    pub p50_ms: Option<f64>,
    /// The longest one.
    pub max_ms: Option<f64>,
}

/// What clients saw of one migration.
#[derive(Debug, Clone, Serialize)]
pub struct Seen {
    /// Longest time without an answer to any client, from the order to the end, in milliseconds.
    pub gap_ms: f64,
    /// Longest time between two answers to one client, likewise.
    pub client_gap_ms: f64,
    /// When it began, from the order.
    pub client_gap_at_ms: f64,
    /// The same in the second before the order: what this machine makes of nothing.
    pub client_gap_before_ms: f64,
    /// Answers a second in the second before the order.
    pub before: f64,
    /// While memory was copied and tasks ran.
    pub during: f64,
    /// In the second after the end.
    pub after: f64,
    /// From the beginning of parking until 95 % of the rate before was there again, in milliseconds; none if it was not a second after the end.
    pub recovered_ms: Option<f64>,
    /// Latency in the second before: half took less, in milliseconds.
    pub p50_before_ms: f64,
    /// And while it went on.
    pub p50_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// What was seen of a migration that was ordered at a time of the log.
#[derive(Debug, Clone, Copy)]
pub struct View<'l> {
    log: &'l Log,
    ordered: Duration,
}

impl<'l> View<'l> {
    /// Of this log.
    #[must_use]
    pub fn new(log: &'l Log, ordered: Duration) -> Self {
        Self { log, ordered }
    }

    /// Answers from one time to another one.
    fn within(&self, from: Duration, to: Duration) -> &'l [Answers] {
        let find = |time| self.log.answers.partition_point(|some| some.at < time);
        let (from, to) = (find(from), find(to));
        &self.log.answers[from..to.max(from)]
    }

    fn rate(&self, from: Duration, to: Duration) -> f64 {
        let answers: u64 = self.within(from, to).iter().map(|some| some.count).sum();
        answers as f64 / to.saturating_sub(from).as_secs_f64().max(1e-9)
    }

    /// All of it.
    #[must_use]
    pub fn seen(&self, moved: &Moved) -> Seen {
        let at = |ms: f64| self.ordered + Duration::from_secs_f64(ms.max(0.0) / 1e3);
        let (parked, end) = (at(moved.parked_at_ms), at(moved.total_ms));
        let before = self.ordered.saturating_sub(AROUND);
        let rate_before = self.rate(before, self.ordered);
        let latency = |from, to| latencies(self.within(from, to));
        let (gap, gap_at) = self.client_gap(self.ordered, end);
        let (quiet, moving) = (latency(before, self.ordered), latency(self.ordered, end));
        Seen {
            gap_ms: ms(longest(self.within(self.ordered, end), None).0),
            client_gap_ms: ms(gap),
            client_gap_at_ms: ms(gap_at.saturating_sub(self.ordered)),
            client_gap_before_ms: ms(self.client_gap(before, self.ordered).0),
            before: rate_before,
            during: self.rate(self.ordered, parked),
            after: self.rate(end, end + AROUND),
            recovered_ms: self.recovered(parked, end + AROUND, rate_before * BACK).map(ms),
            p50_before_ms: quiet.map_or(0.0, |all| all.median),
            p50_ms: moving.map_or(0.0, |all| all.median),
            max_ms: moving.map_or(0.0, |all| all.max),
        }
    }

    /// How long it is, and when it begins.
    fn client_gap(&self, from: Duration, to: Duration) -> (Duration, Duration) {
        let answers = self.within(from, to);
        let connections = answers.iter().map(|some| some.connection).max().map_or(0, |last| last + 1);
        (0..connections).map(|one| longest(answers, Some(one))).max().unwrap_or_default()
    }

    /// How long after tasks began to be parked the first window with that rate begins.
    fn recovered(&self, parked: Duration, end: Duration, rate: f64) -> Option<Duration> {
        if rate <= 0.0 {
            return None;
        }
        let starts = std::iter::successors(Some(parked), |from| Some(*from + Duration::from_millis(1)));
        let mut starts = starts.take_while(|from| *from + WINDOW <= end);
        starts.find(|from| self.rate(*from, *from + WINDOW) >= rate).map(|from| from - parked)
    }

    /// From a second before the order to a second after the end, in so many pieces.
    #[must_use]
    pub fn buckets(&self, moved: &Moved, count: u32) -> Vec<Bucket> {
        let begin = self.ordered.saturating_sub(AROUND);
        let end = self.ordered + Duration::from_secs_f64(moved.total_ms / 1e3) + AROUND;
        let piece = (end - begin) / count.max(1);
        let bucket = |index: u32| {
            let from = begin + piece * index;
            let of = latencies(self.within(from, from + piece));
            Bucket {
                at_ms: ms(from) - ms(self.ordered),
                per_second: self.rate(from, from + piece),
                p50_ms: of.map(|all| all.median),
                max_ms: of.map(|all| all.max),
            }
        };
        (0..count).map(bucket).collect()
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn latencies(answers: &[Answers]) -> Option<Summary> {
    Summary::of(&answers.iter().map(|some| ms(some.latency)).collect::<Vec<_>>())
}

/// Longest time between two answers, of all connections or of one, and when it begins.
fn longest(answers: &[Answers], connection: Option<u64>) -> (Duration, Duration) {
    let own = answers.iter().filter(|some| connection.is_none_or(|one| some.connection == one));
    let mut last: Option<Duration> = None;
    let gaps =
        own.filter_map(|some| last.replace(some.at).map(|before| (some.at.saturating_sub(before), before)));
    gaps.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Two clients with an answer every 2 ms each, and 20 ms without any: 3 s, ordered at 1 s, parked at 1.1 s, over at 1.2 s.
    fn log() -> (Log, Moved) {
        let answers = (0..3000u64)
            .filter(|at| !(1100..1120).contains(at))
            .map(|at| Answers {
                at: Duration::from_millis(at),
                latency: Duration::from_millis(if at == 1120 { 22 } else { 1 }),
                connection: at % 2,
                count: 4,
            })
            .collect();
        let moved = Moved {
            mode: "hybrid".into(),
            total_ms: 200.0,
            downtime_ms: 19.0,
            parked_at_ms: 99.5,
            running_at_ms: 119.0,
            parked_ms: 0.5,
            sent_ms: 1.0,
            staged_ms: 2.0,
            gone_ms: 3.0,
            bytes: 0,
            outstanding_bytes: 0,
            rounds: 1,
            steps: Vec::new(),
        };
        (Log { begin: Instant::now(), answers, failed: 0, why: None }, moved)
    }

    #[test]
    fn a_pause_is_seen_as_long_as_it_was() {
        let (log, moved) = log();
        let seen = View::new(&log, Duration::from_secs(1)).seen(&moved);
        assert_eq!(
            (seen.gap_ms, seen.client_gap_ms, seen.client_gap_before_ms),
            (21.0, 22.0, 2.0),
            "{seen:?}"
        );
        assert!((97.0..=99.0).contains(&seen.client_gap_at_ms), "{seen:?}");
        assert!((seen.before - 4000.0).abs() < 1.0 && (seen.after - 4000.0).abs() < 1.0, "{seen:?}");
        // The first window may have a twentieth of the pause that is as long as itself.
        assert!(seen.recovered_ms.is_some_and(|ms| (17.0..19.0).contains(&ms)), "{seen:?}");
        assert_eq!((seen.p50_before_ms, seen.max_ms), (1.0, 22.0));
    }

    #[test]
    fn buckets_cover_all_of_it() {
        let (log, moved) = log();
        let buckets = View::new(&log, Duration::from_secs(1)).buckets(&moved, 220);
        assert_eq!((buckets.len(), buckets[0].at_ms), (220, -1000.0));
        let empty = buckets.iter().filter(|bucket| bucket.max_ms.is_none()).count();
        assert!((1..=2).contains(&empty), "{empty}");
        assert!(buckets.iter().any(|bucket| bucket.max_ms == Some(22.0)));
    }

    #[test]
    fn no_answers_are_no_panic() {
        let (mut log, moved) = log();
        log.answers.clear();
        let view = View::new(&log, Duration::from_secs(1));
        assert_eq!((view.seen(&moved).gap_ms, view.seen(&moved).recovered_ms), (0.0, None));
        assert_eq!(view.buckets(&moved, 10).len(), 10);
    }
}
