//! What a simulation found: [`Report`], written as JSON by whoever asked; and how it is collected.

use super::scenario::{Arm, Scenario};
use super::workload::Workload;
use serde::{Deserialize, Serialize};

/// The results of all arms on the same arrivals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was simulated.
    pub scenario: Scenario,
    /// CVMs that tasks arrived for.
    pub cvms: u32,
    /// Tasks that arrived.
    pub tasks: usize,
    /// CPU time that the tasks themselves need, in core-seconds.
    pub work_core_s: f64,
    /// One entry per arm, in the order of the scenario.
    pub arms: Vec<ArmReport>,
    /// The busiest burst in close-up.
    pub example: Option<ExampleReport>,
    /// Parallel jobs, if there were any.
    pub parallel: Vec<super::ParallelJob>,
}

/// The results of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// Which.
    pub arm: Arm,
    /// Its name in legends.
    pub title: String,
    /// Response times: arrival to end.
    pub response: Response,
    /// Mean of response time / CPU time over all tasks.
    pub mean_slowdown: f64,
    /// Median of the same.
    pub p50_slowdown: f64,
    /// 99th percentile of the same.
    pub p99_slowdown: f64,
    /// CPU time that CVMs had at their disposal, in core-seconds: workers from admission to parked, or vCPUs that exist.
    /// More than there is where vCPUs overcommit the cores.
    pub reserved_core_s: f64,
    /// CPU time that was burnt, in core-seconds: the work and, in the `nacre` arm, wakes, spinning and parking.
    pub busy_core_s: f64,
    /// Admissions of workers, or vCPUs added.
    pub wakes: u64,
    /// Workers asked to park.
    pub reclaims: u64,
    /// Events the policy looked at, or samples taken, or scaling decisions.
    pub decisions: u64,
    /// When the last task ended, in seconds.
    pub end_s: f64,
    /// Response times at percentiles that come closer to 100: (percentile, milliseconds).
    pub curve: Vec<(f64, f64)>,
}

/// A distribution of response times, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// One CVM around its largest burst.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExampleReport {
    /// The CVM, counted from 0.
    pub cvm: u32,
    /// The cores it could use if it had them at once: steps of (seconds, cores).
    pub demand: Vec<(f64, f64)>,
    /// What each arm gave it.
    pub granted: Vec<Granted>,
    /// The end of the close-up, in seconds.
    pub to_s: f64,
}

/// What one arm gave a CVM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Granted {
    /// The arm.
    pub arm: Arm,
    /// Steps of (seconds, cores).
    pub steps: Vec<(f64, f64)>,
}

/// Which CVM and which time are looked at closely.
#[derive(Clone, Debug)]
pub(super) struct Example {
    pub(super) cvm: u32,
    from: u64,
    to: u64,
    demand: Vec<(f64, f64)>,
}

/// The close-up begins this long before the burst, and is [`EXAMPLE_NS`] long.
const BEFORE_NS: u64 = 200_000_000;
const EXAMPLE_NS: u64 = 2_000_000_000;

impl Example {
    /// The largest burst of the workload, in tasks.
    pub(super) fn of(workload: &Workload) -> Option<Self> {
        let mut best: Option<(usize, u64, u32)> = None;
        for burst in workload.arrivals.chunk_by(|left, right| (left.at, left.cvm) == (right.at, right.cvm)) {
            if best.is_none_or(|(size, ..)| burst.len() > size) {
                best = burst.first().map(|first| (burst.len(), first.at, first.cvm));
            }
        }
        let (_, at, cvm) = best?;
        let from = at.saturating_sub(BEFORE_NS);
        let mut edges: Vec<(u64, f64)> = Vec::new();
        for arrival in workload.arrivals.iter().filter(|arrival| arrival.cvm == cvm) {
            edges.push((arrival.at, 1.0));
            edges.push((arrival.at + arrival.service, -1.0));
        }
        edges.sort_by(|left, right| left.0.cmp(&right.0).then(left.1.total_cmp(&right.1)));
        let mut steps = Steps::default();
        let mut level = 0.0;
        for (at, change) in edges {
            level += change;
            steps.push(from, from + EXAMPLE_NS, at, level);
        }
        Some(Self { cvm, from, to: from + EXAMPLE_NS, demand: steps.0 })
    }

    pub(super) fn report(self, granted: Vec<Granted>) -> ExampleReport {
        ExampleReport { cvm: self.cvm, demand: self.demand, granted, to_s: self.to as f64 / 1e9 }
    }
}

/// A level over time: (seconds, level) where it changes, within a window.
#[derive(Clone, Debug, Default)]
struct Steps(Vec<(f64, f64)>);

impl Steps {
    fn push(&mut self, from: u64, to: u64, at: u64, level: f64) {
        if at > to {
            return;
        }
        let seconds = at.max(from) as f64 / 1e9;
        match self.0.last_mut() {
            Some(last) if last.0 == seconds => last.1 = level,
            _ => self.0.push((seconds, level)),
        }
    }
}

/// What an arm writes down while it runs.
pub(super) struct Recorder<'a> {
    workload: &'a Workload,
    example: Option<&'a Example>,
    steps: Steps,
    responses: Vec<u64>,
    slowdowns: Vec<f32>,
    /// Tasks that have ended.
    pub(super) finished: usize,
    /// Core-nanoseconds.
    pub(super) busy: f64,
    pub(super) reserved: f64,
    pub(super) wakes: u64,
    pub(super) reclaims: u64,
    pub(super) decisions: u64,
}

/// Everything an arm wrote down.
pub(super) struct ArmOutcome {
    responses: Vec<u64>,
    slowdowns: Vec<f32>,
    busy: f64,
    reserved: f64,
    wakes: u64,
    reclaims: u64,
    decisions: u64,
    /// When the last task ended, in nanoseconds.
    pub(super) end: u64,
    /// The example's CVM's cores.
    pub(super) granted: Vec<(f64, f64)>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(workload: &'a Workload, example: Option<&'a Example>) -> Self {
        Self {
            workload,
            example,
            steps: Steps::default(),
            responses: Vec::with_capacity(workload.arrivals.len()),
            slowdowns: Vec::with_capacity(workload.arrivals.len()),
            finished: 0,
            busy: 0.0,
            reserved: 0.0,
            wakes: 0,
            reclaims: 0,
            decisions: 0,
        }
    }

    pub(super) fn task_done(&mut self, task: u32, now: u64) {
        let arrival = self.workload.arrivals[task as usize];
        let response = now - arrival.at;
        self.responses.push(response);
        self.slowdowns.push((response as f64 / arrival.service as f64) as f32);
        self.finished += 1;
    }

    /// `cvm` has `level` cores from now on.
    pub(super) fn example_level(&mut self, cvm: u32, now: u64, level: f64) {
        if let Some(example) = self.example.filter(|example| example.cvm == cvm) {
            self.steps.push(example.from, example.to, now, level);
        }
    }

    pub(super) fn outcome(self, end: u64) -> ArmOutcome {
        ArmOutcome {
            responses: self.responses,
            slowdowns: self.slowdowns,
            busy: self.busy,
            reserved: self.reserved,
            wakes: self.wakes,
            reclaims: self.reclaims,
            decisions: self.decisions,
            end,
            granted: self.steps.0,
        }
    }
}

/// The nearest-rank percentile of sorted numbers; `fraction` from 0 to 1.
fn percentile<T: Copy>(sorted: &[T], fraction: f64) -> Option<T> {
    let rank = (fraction * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank.min(sorted.len()).checked_sub(1)?).copied()
}

/// Points of a curve: percentiles 0, ... 90, ... 99, ... up to 99.99.
const CURVE_POINTS: u32 = 160;

impl ArmOutcome {
    pub(super) fn report(mut self, arm: Arm) -> ArmReport {
        self.responses.sort_unstable();
        self.slowdowns.sort_unstable_by(f32::total_cmp);
        let count = self.responses.len().max(1) as f64;
        let ms = |fraction| percentile(&self.responses, fraction).unwrap_or(0) as f64 / 1e6;
        let slowdown = |fraction| f64::from(percentile(&self.slowdowns, fraction).unwrap_or(0.0));
        let curve = (0..=CURVE_POINTS)
            .map(|point| 1.0 - 10f64.powf(-4.0 * f64::from(point) / f64::from(CURVE_POINTS)))
            .map(|fraction| (fraction * 100.0, ms(fraction)))
            .collect();
        ArmReport {
            arm,
            title: arm.title(),
            response: Response {
                mean_ms: self.responses.iter().map(|&response| response as f64).sum::<f64>() / count / 1e6,
                p50_ms: ms(0.5),
                p90_ms: ms(0.9),
                p99_ms: ms(0.99),
                p999_ms: ms(0.999),
                max_ms: ms(1.0),
            },
            mean_slowdown: self.slowdowns.iter().map(|&slowdown| f64::from(slowdown)).sum::<f64>() / count,
            p50_slowdown: slowdown(0.5),
            p99_slowdown: slowdown(0.99),
            reserved_core_s: self.reserved / 1e9,
            busy_core_s: self.busy / 1e9,
            wakes: self.wakes,
            reclaims: self.reclaims,
            decisions: self.decisions,
            end_s: self.end as f64 / 1e9,
            curve,
        }
    }
}
