//! One migration, and what was measured of it.

use super::network::{Network, Speed};
use super::service::{Host, Service};
use super::{WRITES_PER_SECOND, name};
use crate::BenchError;
use nacre_abi::migrate::{MoveMode, MoveReport};
use nacre_vmm::Cvm;
use nacre_vmm::migration::{MoveNews, MoveOptions};
use serde::Serialize;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Signs of life that are waited for before and after.
const BEATS: usize = 300;
/// How long a migration may take, at most, for each GiB.
const PATIENCE_PER_GIB: Duration = Duration::from_secs(60);
/// A window in which writes are counted.
const WINDOW: Duration = Duration::from_millis(20);

/// For `map_err`.
pub(super) fn failed<E: Display>(what: &'static str) -> impl Fn(E) -> BenchError {
    move |error| BenchError::Program { program: what.into(), what: format!("failed: {error}") }
}

/// Nanoseconds from the moment at which the source began to park, until...
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Phases {
    /// ...all tasks were parked.
    pub parked_ns: f64,
    /// ...what had changed was found.
    pub collected_ns: f64,
    /// ...it was sent.
    pub sent_ns: f64,
    /// ...the destination had said that it is staged.
    pub staged_ns: f64,
    /// ...the source was gone.
    pub gone_ns: f64,
    /// From the hand-over until the destination had everything.
    pub window_ns: f64,
}

/// What was measured of one migration.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// How.
    pub mode: &'static str,
    /// Over what.
    pub network: Speed,
    /// Bytes of the memory that is written to.
    pub bytes: u64,
    /// No task ran for so long, in nanoseconds.
    pub downtime_ns: f64,
    /// Longest time between two signs of life, in nanoseconds.
    pub gap_ns: f64,
    /// From the longest gap's end until 95 % of the writes were made again, in nanoseconds.
    pub recovered_ns: f64,
    /// Writes a second before, while it was copied, and in the second after it.
    pub writes_before: f64,
    /// While tasks ran and were copied.
    pub writes_during: f64,
    /// After.
    pub writes_after: f64,
    /// The whole of it, in nanoseconds.
    pub total_ns: f64,
    /// Bytes that were sent before the hand-over, and outstanding then.
    pub sent_bytes: f64,
    /// Of those, what followed.
    pub outstanding_bytes: f64,
    /// Bytes a second, while nothing else was to be done.
    pub rate: f64,
    /// What both ends' CPUs and the network allowed just before, in bytes a second; 0 where it is not compared.
    pub floor: f64,
    /// Rounds while tasks ran.
    pub rounds: f64,
    /// Where the downtime goes.
    pub phases: Phases,
    /// Signs of life around the hand-over: milliseconds from the longest gap's beginning, and writes a second until then.
    pub timeline: Vec<(f64, f64)>,
}

/// One way to go.
pub(super) struct Journey<'j> {
    host: &'j Host,
    network: &'j Network,
    mode: MoveMode,
}

impl<'j> Journey<'j> {
    pub(super) fn new(host: &'j Host, network: &'j Network, mode: MoveMode) -> Self {
        Self { host, network, mode }
    }

    /// Makes it.
    pub(super) fn make(&self, service: Service) -> Result<(Service, Measured), BenchError> {
        let patience = PATIENCE_PER_GIB * ((service.bytes >> 30) as u32 + 1);
        service.pulse.clear();
        service.pulse.wait(BEATS, patience)?;
        let destination = self.host.launch(service.bytes)?;
        let begin = Instant::now();
        let told = self.send(&service, &destination)?;
        let mut news = Vec::new();
        while !matches!(news.last(), Some((_, End::Source(MoveNews::Complete(_))))) {
            let next = told.recv_timeout(patience).map_err(failed("a migration"))?;
            if let End::Source(MoveNews::Aborted(_, text)) | End::Destination(MoveNews::Aborted(_, text)) =
                &next.1
            {
                return Err(BenchError::program("a migration", format!("ended: {text}")));
            }
            news.push(next);
        }
        let end = Instant::now();
        let home = service.cvm.clone();
        let moved = Service { cvm: destination, ..service };
        let seen = moved.pulse.all().len();
        moved.pulse.wait(seen + 2 * BEATS, patience)?;
        let measured = self.measure(&moved, begin, end, &news)?;
        home.stop();
        Ok((moved, measured))
    }

    /// Orders it; what both ends tell, with the time at which they did. The Commit is handed over at once: there is nothing that keeps it here.
    fn send(
        &self,
        service: &Service,
        destination: &Arc<Cvm>,
    ) -> Result<Receiver<(Instant, End)>, BenchError> {
        let lanes = service.cvm.lanes().min(destination.lanes());
        let (here, there) = self.network.streams(lanes)?;
        let (tell, told) = channel();
        let tell_there = tell.clone();
        let receiving = destination.receive_tenant(there, 1 << 30, move |news| {
            // Nobody listens after the end.
            let _ = tell_there.send((Instant::now(), End::Destination(news)));
        })?;
        let (arrival, cvm) = (service.follower(), destination.clone());
        let options = MoveOptions { mode: self.mode, ..MoveOptions::default() };
        service.cvm.send_tenant(here, options, move |news| {
            match &news {
                MoveNews::Parked => {
                    receiving.hurry();
                    arrival.arrive(&cvm);
                }
                MoveNews::Commit(commit, _) => drop(receiving.commit(commit)),
                _ => {}
            }
            let _ = tell.send((Instant::now(), End::Source(news)));
        })?;
        Ok(told)
    }

    fn measure(
        &self,
        service: &Service,
        begin: Instant,
        end: Instant,
        news: &[(Instant, End)],
    ) -> Result<Measured, BenchError> {
        let source = report(news, |end| matches!(end, End::Source(MoveNews::Complete(_))));
        let there = report(news, |end| matches!(end, End::Destination(MoveNews::Running(_))));
        let last = report(news, |end| matches!(end, End::Destination(MoveNews::Complete(_))));
        let (Some(source), Some(there)) = (source, there) else {
            return Err(BenchError::program("a migration", "ended without a report"));
        };
        let window_ns = last.map_or(0, |last| last.window_ns) as f64;
        let beats = service.pulse.all();
        let parked = |end: &End| matches!(end, End::Source(MoveNews::Parked));
        let parked_at = news.iter().find(|(_, end)| parked(end)).map_or(end, |(at, _)| *at);
        let seen = Seen::of(&beats, parked_at);
        let khz = service.cvm.times().tsc_khz.max(1) as f64;
        let sending_ns = (source.sent_ns - source.collected_ns) as f64;
        Ok(Measured {
            mode: name(self.mode),
            network: self.network.speed,
            bytes: service.bytes,
            downtime_ns: there.tsc.saturating_sub(source.tsc) as f64 * 1e6 / khz,
            gap_ns: seen.gap.as_nanos() as f64,
            recovered_ns: seen.recovered.as_nanos() as f64,
            writes_before: rate_in(&beats, begin - WINDOW * 5, begin),
            writes_during: rate_in(&beats, begin, parked_at),
            writes_after: rate_in(&beats, seen.until, seen.until + Duration::from_secs(1)),
            total_ns: (end - begin).as_nanos() as f64,
            sent_bytes: source.bytes as f64,
            outstanding_bytes: source.outstanding_bytes as f64,
            rate: source.bytes as f64 / (sending_ns / 1e9),
            floor: 0.0,
            rounds: source.rounds as f64,
            phases: Phases {
                parked_ns: source.parked_ns as f64,
                collected_ns: source.collected_ns as f64,
                sent_ns: source.sent_ns as f64,
                staged_ns: source.staged_ns as f64,
                gone_ns: source.gone_ns as f64,
                window_ns,
            },
            timeline: timeline(&beats, seen.until - seen.gap),
        })
    }
}

/// Who tells.
enum End {
    Source(MoveNews),
    Destination(MoveNews),
}

fn report(news: &[(Instant, End)], which: impl Fn(&End) -> bool) -> Option<MoveReport> {
    let found = news.iter().find(|(_, end)| which(end)).map(|(_, end)| end)?;
    match found {
        End::Source(MoveNews::Complete(report)) | End::Destination(MoveNews::Complete(report)) => {
            Some(*report)
        }
        End::Destination(MoveNews::Running(report)) => *report,
        _ => None,
    }
}

/// What an observer sees of the hand-over.
struct Seen {
    gap: Duration,
    /// When it ended.
    until: Instant,
    recovered: Duration,
}

impl Seen {
    fn of(beats: &[(Instant, u64)], parked_at: Instant) -> Self {
        let near = beats.windows(2).filter(|pair| pair[1].0 >= parked_at);
        let longest = near.max_by_key(|pair| pair[1].0 - pair[0].0);
        let (gap, until) =
            longest.map_or((Duration::ZERO, parked_at), |pair| (pair[1].0 - pair[0].0, pair[1].0));
        let enough = WRITES_PER_SECOND as f64 * 0.95;
        let again = beats.iter().map(|(at, _)| *at).filter(|at| *at >= until);
        let recovered = again.into_iter().find(|at| rate_in(beats, *at, *at + WINDOW) >= enough);
        Self { gap, until, recovered: recovered.map_or(Duration::MAX, |at| at - until) }
    }
}

/// Writes a second from one moment to another, as far as signs of life tell.
fn rate_in(beats: &[(Instant, u64)], from: Instant, to: Instant) -> f64 {
    let mut within = beats.iter().filter(|(at, _)| (from..=to).contains(at));
    let (first, last) = (within.next(), within.next_back());
    first
        .zip(last)
        .map_or(0.0, |(first, last)| (last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64().max(1e-9))
}

/// Writes a second in pieces of 5 ms, half a second around a moment.
fn timeline(beats: &[(Instant, u64)], around: Instant) -> Vec<(f64, f64)> {
    let piece = Duration::from_millis(5);
    let Some(first) = around.checked_sub(piece * 40) else { return Vec::new() };
    (0..140u32)
        .map(|index| {
            let at = first + piece * index;
            let count =
                |until: Instant| beats.iter().rev().find(|(at, _)| *at <= until).map_or(0, |beat| beat.1);
            let written = count(at + piece).saturating_sub(count(at)) as f64;
            (index as f64 * 5.0 - 200.0, written / piece.as_secs_f64())
        })
        .collect()
}
