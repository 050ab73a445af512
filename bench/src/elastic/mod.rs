//! `nacre bench elastic`: how fast and how cheaply a CVM's CPUs grow and shrink.
//!
//! * `wakes`: a dormant worker, a spinning one, and what spinning costs for arrivals of two kinds.
//! * `cost`: CPU time of a CVM that does nothing, and of one that works a tenth of the time.
//! * `parallel`: a job on all CPUs against the same job as host threads.
//! * `tenants`: two CVMs with bursts in turns, elastic and split.
//! * `reclaim`: from the host's decision to the parked worker.
//! * `work`: the program they run. `plots`: what people would rather look at.

mod cost;
mod parallel;
mod plots;
mod reclaim;
mod tenants;
mod wakes;
mod work;

use crate::machine::Machine;
use crate::report::{Report, Row};
use crate::{BenchError, Progress};
use nacre_elastic::sim::Costs;
use nacre_engine::WASMTIME_VERSION;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use wakes::SpinPoint;

/// Names of the arms.
pub(crate) mod arm {
    pub const BARE: &str = "bare doorbell";
    pub const CVM: &str = "CVM";
    pub const ELASTIC: &str = "elastic";
    pub const SPLIT: &str = "static split";
    pub const ALWAYS_ON: &str = "always on";
    pub const THREADS: &str = "host threads";
    pub const SIMULATED: &str = "simulated";
    pub const IDEAL: &str = "ideal";
    pub const WORK: &str = "the work alone";
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds of wakes, each with the floor and the scheduler's way.
    pub wake_rounds: usize,
    /// Wakes of each arm in a round.
    pub wakes: usize,
    /// Arrivals for each spin limit.
    pub arrivals: usize,
    /// For how long an idle CVM is watched.
    pub idle: Duration,
    /// Rounds of work a tenth of the time.
    pub duty_rounds: usize,
    /// Rounds of the parallel job.
    pub parallel_rounds: usize,
    /// Time one CPU works in the parallel job.
    pub parallel_work: Duration,
    /// Rounds of alternating bursts.
    pub tenant_rounds: usize,
    /// Reclaims.
    pub reclaims: usize,
}

impl Default for Options {
    /// What `nacre bench elastic` does, in about two minutes.
    fn default() -> Self {
        Self {
            wake_rounds: 5,
            wakes: 400,
            arrivals: 2000,
            idle: Duration::from_secs(10),
            duty_rounds: 3,
            parallel_rounds: 5,
            parallel_work: Duration::from_secs(2),
            tenant_rounds: 4,
            reclaims: 300,
        }
    }
}

impl Options {
    /// Steps that [`run`] tells its progress about.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.wake_rounds
            + 2 * wakes::SPIN_LIMITS_US.len()
            + 1
            + self.duty_rounds
            + self.parallel_rounds
            + self.tenant_rounds
            + 1
    }
}

/// A finished run.
#[derive(Debug, Clone, Serialize)]
pub struct ElasticReport {
    /// The rows, and where they were measured.
    #[serde(flatten)]
    pub report: Report,
    /// Latency against CPU for Poisson arrivals, by spin limit.
    pub poisson: Vec<SpinPoint>,
    /// The same for bursts.
    pub bursts: Vec<SpinPoint>,
    /// Costs for the simulator.
    pub costs: Costs,
}

impl ElasticReport {
    /// Writes the plots into a directory, which is made if it isn't there. Returns the files.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write_plots(&self, directory: &Path) -> Result<Vec<PathBuf>, BenchError> {
        plots::write(self, directory)
    }
}

/// Measures everything. Needs two CPUs and `/dev/kvm`.
///
/// # Errors
/// [`BenchError`]; a missed target is none.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<ElasticReport, BenchError> {
    let begin = Instant::now();
    let machine = Machine::this();
    let mut skipped = Vec::new();
    let workshop = work::Workshop::new()?;
    let mut rows = wakes::latency(options, progress)?;
    let (poisson, floor) = wakes::poisson(options, progress)?;
    let bursts = wakes::bursts(options, progress)?;
    rows.extend(wakes::spin_rows(&poisson, &bursts, &floor));
    rows.extend(reclaim::measure(options, &workshop, progress)?);
    rows.extend(cost::idle(options, progress)?);
    rows.extend(cost::duty(options, &workshop, progress)?);
    rows.extend(parallel::measure(options, &workshop, progress)?);
    let costs = measured_costs(&rows);
    rows.extend(parallel::simulated(costs)?);
    if machine.cpus >= 2 {
        rows.extend(tenants::measure(options, &workshop, progress)?);
    } else {
        skipped.push("tenants: needs two CPUs".into());
    }
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        wasmtime: WASMTIME_VERSION,
        machine,
        elapsed_seconds: begin.elapsed().as_secs_f64(),
        rows,
        skipped,
        tables: Vec::new(),
    };
    Ok(ElasticReport { report, poisson, bursts, costs })
}

/// What the simulator is given: the defaults, with what was measured in this run.
fn measured_costs(rows: &[Row]) -> Costs {
    let median = |name: &str, otherwise: u64| {
        rows.iter().find(|row| row.name.starts_with(name)).map_or(otherwise, |row| row.value.median as u64)
    };
    let known = Costs::default();
    Costs {
        wake_ns: median("wake: dormant", known.wake_ns),
        spin_wake_ns: median("wake: spinning", known.spin_wake_ns),
        reclaim_ns: median("reclaim: decision", known.reclaim_ns),
        ..known
    }
}
