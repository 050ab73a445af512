//! The third part of `nacre demo`: a filled key-value service moves live to a second node while clients use it, and comes back by
//! stop-and-copy, for comparison.

use super::latency::{self, Mark};
use super::node::{grouped, milliseconds};
use super::process::Node;
use super::screen::Screen;
use crate::args::DemoArgs;
use crate::bench::failure;
use crate::failure::Failure;
use crate::spinner;
use crate::values::format_size;
use nacre_abi::migrate::MoveMode;
use nacre_bench::BenchError;
use nacre_bench::machine::available_bytes;
use nacre_bench::pair::clients::{Plan, VALUE_BYTES, fill};
use nacre_bench::pair::plot::{self, Panel};
use nacre_bench::pair::timeline::{Bucket, Seen, View};
use nacre_bench::pair::{Moved, Pair, Places, Watched, cvm_bytes, needed_bytes};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How they go: there, and back.
const MODES: [MoveMode; 2] = [MoveMode::Hybrid, MoveMode::StopAndCopy];
/// The least that is worth moving, in bytes.
const MIN_FILL: u64 = 1 << 20;
/// Pieces of the timeline in JSON and in the picture, and on paper.
const PIECES: u32 = 400;
const PLAIN_PIECES: u32 = 24;
/// The picture's name in its directory.
const PICTURE: &str = "migration-latency.svg";

/// What happened.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Why there is nothing else, if there is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    #[serde(flatten)]
    done: Option<Done>,
}

#[derive(Debug, Serialize)]
struct Done {
    filled_bytes: u64,
    fill_seconds: f64,
    cvm_bytes: u64,
    load: Plan,
    failed_requests: u64,
    hybrid: Journey,
    stop_and_copy: Journey,
    /// Of the baseline's.
    downtime_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<PathBuf>,
}

/// One migration.
#[derive(Debug, Serialize)]
struct Journey {
    #[serde(flatten)]
    moved: Moved,
    clients: Seen,
    timeline: Vec<Bucket>,
}

/// What of `wanted` a host with so much free memory has room for, halved as often as need be.
fn fitting(wanted: u64, available: u64) -> Option<u64> {
    let halves = std::iter::successors(Some(wanted), |fill| Some(fill / 2));
    halves.take_while(|fill| *fill >= MIN_FILL.min(wanted)).find(|fill| needed_bytes(*fill) <= available)
}

/// Runs it between two nodes.
///
/// # Errors
/// If the service does not get there, or a request fails.
pub fn run(places: &Places, nodes: &[Node; 2], args: &DemoArgs, screen: &Screen) -> Result<Summary, Failure> {
    screen.line("\n--- a live migration")?;
    let Some(filled) = fitting(args.fill, available_bytes()) else {
        let needs = format_size(needed_bytes(MIN_FILL).next_multiple_of(1 << 20));
        let why = format!("two CVMs need {needs} of free memory");
        screen.line(&format!("skipped        {why}"))?;
        return Ok(Summary { skipped: Some(why), done: None });
    };
    if filled < args.fill {
        let (less, wanted) = (format_size(filled), format_size(args.fill));
        screen.line(&format!(
            "memory         there is not enough for {wanted} at both nodes at once: it goes with {less}"
        ))?;
    }
    let done = Moving { places, nodes, filled, screen }.run(args.report.as_deref())?;
    Ok(Summary { skipped: None, done: Some(done) })
}

/// What is to be done.
struct Moving<'d> {
    places: &'d Places,
    nodes: &'d [Node; 2],
    filled: u64,
    screen: &'d Screen,
}

fn failed(error: BenchError) -> Failure {
    failure("migration", &error)
}

impl Moving<'_> {
    fn run(&self, report: Option<&Path>) -> Result<Done, Failure> {
        let runtime = nacre_bench::load::runtime().map_err(failed)?;
        let plan = Plan::new(self.filled);
        let ends = [0, 1].map(|end: usize| self.nodes[end].end.clone());
        let pair = runtime.block_on(Pair::new(self.places, ends, self.filled)).map_err(failed)?;
        let filling = || runtime.block_on(fill(pair.service(0), &plan));
        let took = spinner::during("filling the service", filling).map_err(failed)?;
        self.tell_before(&plan, took)?;
        let moving = || runtime.block_on(pair.watch(plan, &MODES, &()));
        let watched = spinner::during("moving the service there and back", moving).map_err(failed)?;
        let done = self.judge(plan, took, &watched, report)?;
        match &watched.log.why {
            None => Ok(done),
            Some(why) => {
                let why = format_args!("{} requests failed while it moved: {why}", watched.log.failed);
                Err(Failure::new("service kv", why))
            }
        }
    }

    fn tell_before(&self, plan: &Plan, took: Duration) -> Result<(), Failure> {
        let (filled, memory) = (format_size(self.filled), format_size(cvm_bytes(self.filled)));
        self.screen.line(&format!(
            "service        kv is filled with {filled} in {:.1} s: {} values of {VALUE_BYTES} bytes, in a CVM of {memory}",
            took.as_secs_f64(),
            grouped(plan.keys),
        ))?;
        self.screen.line(&format!(
            "clients        {} connections to the first node stay open and ask for {} GET and SET a second of random keys, {} at once",
            plan.connections,
            grouped(plan.rate() as u64),
            plan.pipeline,
        ))
    }

    fn judge(
        &self,
        plan: Plan,
        took: Duration,
        watched: &Watched,
        report: Option<&Path>,
    ) -> Result<Done, Failure> {
        let mut journeys = Vec::new();
        for (view, moved) in watched.views() {
            let clients = view.seen(moved);
            journeys.push((
                view,
                Journey { moved: moved.clone(), clients, timeline: view.buckets(moved, PIECES) },
            ));
        }
        let most = journeys.iter().map(|(_, one)| latency::most(&one.timeline)).fold(0.0, f64::max);
        for ((view, one), way) in journeys.iter().zip(["to the second node", "back to the first one"]) {
            self.tell_timeline(view, one, way, most)?;
        }
        let picture = report.map(|directory| picture(directory, &journeys)).transpose()?;
        let mut journeys = journeys.into_iter().map(|(_, journey)| journey);
        let (Some(hybrid), Some(stop_and_copy)) = (journeys.next(), journeys.next()) else {
            unreachable!("one for each mode")
        };
        self.tell_table(&hybrid, &stop_and_copy, watched.log.failed)?;
        match &picture {
            Some(path) => self.screen.line(&format!("picture        {}", path.display()))?,
            None => {
                self.screen.line("picture        nacre demo --report DIR draws both timelines as an SVG")?
            }
        }
        Ok(Done {
            filled_bytes: self.filled,
            fill_seconds: took.as_secs_f64(),
            cvm_bytes: cvm_bytes(self.filled),
            load: plan,
            failed_requests: watched.log.failed,
            downtime_ratio: hybrid.moved.downtime_ms / stop_and_copy.moved.downtime_ms,
            hybrid,
            stop_and_copy,
            picture,
        })
    }

    fn tell_timeline(&self, view: &View<'_>, one: &Journey, way: &str, most: f64) -> Result<(), Failure> {
        let moved = &one.moved;
        let marks: [Mark; 4] = [
            (0.0, "order"),
            (moved.parked_at_ms, "no task runs"),
            (moved.running_at_ms, "runs there"),
            (moved.total_ms, "complete"),
        ];
        self.screen.line(&format!("\n{}, {way}: what the clients' requests took", moved.mode))?;
        let lines = match self.screen.columns() {
            Some(columns) => {
                let pieces = u32::try_from(latency::width(columns)).unwrap_or(PLAIN_PIECES);
                latency::block(&view.buckets(moved, pieces), &marks, most)
            }
            None => latency::lines(&view.buckets(moved, PLAIN_PIECES), &marks, most),
        };
        lines.iter().try_for_each(|line| self.screen.line(line))
    }

    fn tell_table(&self, live: &Journey, stopped: &Journey, failed: u64) -> Result<(), Failure> {
        let cell = |text: &str| format!("{text:>15}");
        let row = |name: &str, cells: [&str; 3]| {
            let line = format!("{name:<40}{}", cells.map(cell).concat());
            self.screen.line(line.trim_end())
        };
        let times = |name: &str, of: fn(&Journey) -> Option<f64>| {
            let [one, other] = [live, stopped].map(of);
            let ms = |time: Option<f64>| time.map_or("not in time".to_owned(), |ms| format!("{ms:.1} ms"));
            let ratio = one.zip(other).filter(|(one, _)| *one > 0.0);
            let ratio = ratio.map(|(one, other)| format!("1 : {:.1}", other / one)).unwrap_or_default();
            row(name, [&ms(one), &ms(other), &ratio])
        };
        let sizes = |name: &str, of: fn(&Moved) -> u64| {
            row(name, [&size(of(&live.moved)), &size(of(&stopped.moved)), ""])
        };
        self.screen.line("")?;
        row("", [&live.moved.mode, &stopped.moved.mode, ""])?;
        times("downtime: no task ran", |one| Some(one.moved.downtime_ms))?;
        times("  until it was gone, by its guest", |one| Some(one.moved.gone_ms))?;
        times("longest time without any answer", |one| Some(one.clients.gap_ms))?;
        times("longest time between a client's answers", |one| Some(one.clients.client_gap_ms))?;
        times("  the same in the second before", |one| Some(one.clients.client_gap_before_ms))?;
        times("until 95 % of the answers a second", |one| one.clients.recovered_ms)?;
        times("all of it", |one| Some(one.moved.total_ms))?;
        sizes("memory sent", |moved| moved.bytes)?;
        sizes("  of that after the hand-over", |moved| moved.outstanding_bytes)?;
        row("requests that failed", [&failed.to_string(), "", ""])
    }
}

/// MiB, as exactly as people want it.
fn size(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Draws both.
fn picture(directory: &Path, journeys: &[(View<'_>, Journey)]) -> Result<PathBuf, Failure> {
    let panel = |(_, one): &(View<'_>, Journey)| {
        let moved = &one.moved;
        let title = format!(
            "{}: {:.1} ms of downtime, {:.1} ms between two answers at most",
            moved.mode, moved.downtime_ms, one.clients.client_gap_ms
        );
        let pause_ms = (moved.parked_at_ms, moved.running_at_ms);
        Panel { title, pause_ms, buckets: one.timeline.clone() }
    };
    let panels: Vec<Panel> = journeys.iter().map(panel).collect();
    let path = directory.join(PICTURE);
    plot::write(&path, &panels).map_err(failed)?;
    Ok(path)
}

/// Nodes for it, and where they have their state.
///
/// # Errors
/// If one does not start.
pub fn nodes(home: &super::process::Home) -> Result<(Places, [Node; 2], f64), Failure> {
    let places = Places::new(&home.directory).map_err(failed)?;
    let begin = Instant::now();
    let [first, second] = &places.states;
    let first = Node::start(home, first, [127, 0, 0, 1].into())?;
    let start_ms = milliseconds(begin.elapsed());
    let second = Node::start(home, second, [127, 0, 0, 2].into())?;
    Ok((places, [first, second], start_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is() {
        let gib = 1 << 30;
        assert_eq!(fitting(gib, 100 * gib), Some(gib));
        assert_eq!(fitting(gib, needed_bytes(gib) - 1), Some(gib / 2));
        assert_eq!(fitting(gib, needed_bytes(MIN_FILL)), Some(MIN_FILL));
        assert_eq!(fitting(gib, needed_bytes(MIN_FILL) - (4 << 20)), None);
    }
}
