//! [`Scenario`]: everything a simulation depends on, with defaults for all of it. Read it from JSON (any serde format)
//! or build it, then `check` it; [`super::run`] checks again.

use crate::policy::{Budget, CvmId, Limits, MAX_WORKERS, PolicyError, Tuning};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;
use std::path::PathBuf;
use thiserror::Error;

/// The most cores that are simulated.
pub const MAX_CORES: u32 = 4_096;

/// The most CVMs that are simulated.
pub const MAX_CVMS: u32 = 10_000;

/// The most tasks of one simulation, so that it fits into memory.
pub const MAX_TASKS: usize = 20_000_000;

/// What the steps of an elastic CVM cost. The defaults are medians of the reference machine; `nacre bench elastic` puts in
/// what it measured. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Costs {
    /// Doorbell in the guest to the first instruction of the task on a dormant worker. 18 us.
    pub wake_ns: u64,
    /// The same to a worker that still spins. 0.25 us.
    pub spin_wake_ns: u64,
    /// What a doorbell costs the vCPU that rings it, so that it rings several one after the other. 9.5 us.
    pub ring_ns: u64,
    /// A worker's way from its decision to park until its CPU is free. 10 us.
    pub park_ns: u64,
    /// The host's decision to take a CPU until the worker has parked. 60 us.
    pub reclaim_ns: u64,
    /// How long a worker without work spins before it parks. 20 us: about what a wake costs.
    pub spin_ns: u64,
    /// Hot-adding a vCPU, for the arm that does so. 100 ms.
    pub hotplug_ns: u64,
    /// How long that arm keeps vCPUs beyond what it uses. 1 s.
    pub hotplug_keep_ns: u64,
    /// Booting a CVM, for the arm that boots one per burst. 1 s.
    pub boot_ns: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            wake_ns: 18_000,
            spin_wake_ns: 250,
            ring_ns: 9_500,
            park_ns: 10_000,
            reclaim_ns: 60_000,
            spin_ns: 20_000,
            hotplug_ns: 100_000_000,
            hotplug_keep_ns: 1_000_000_000,
            boot_ns: 1_000_000_000,
        }
    }
}

/// Synthetic arrivals: bursts of tasks at random instants (a Poisson process per CVM), heavy-tailed in size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bursts {
    /// How long bursts arrive, in seconds.
    pub seconds: f64,
    /// Work offered per CPU time that there is, on average: above 0, below 1.
    pub load: f64,
    /// Shape of the Pareto distribution of tasks per burst; the lower the heavier its tail. Above 1.
    pub size_shape: f64,
    /// Tasks of a burst at most.
    pub size_max: u32,
    /// Median CPU time of a task, in microseconds.
    pub service_median_us: f64,
    /// Standard deviation of the logarithm of a task's CPU time (lognormal).
    pub service_sigma: f64,
    /// The same of the CVMs' popularity: 0 makes all equally busy.
    pub popularity_sigma: f64,
}

impl Default for Bursts {
    fn default() -> Self {
        Self {
            seconds: 20.0,
            load: 0.5,
            size_shape: 1.3,
            size_max: 64,
            service_median_us: 10_000.0,
            service_sigma: 1.0,
            popularity_sigma: 1.0,
        }
    }
}

/// How CPUs come to CVMs. All arms have the same cores and arrivals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// The CPU manager's policy, on events.
    Nacre,
    /// A fixed number of vCPUs: the 95th percentile of what the CVM could use while it had work.
    StaticP95,
    /// A fixed number of vCPUs: an equal part of the cores, at least 1.
    StaticEqual,
    /// vCPUs hot-added on demand, each [`Costs::hotplug_ns`] after it was wanted.
    Hotplug,
    /// vCPUs set to the demand every so many milliseconds.
    Sampled {
        /// Time between samples of one CVM.
        interval_ms: u32,
    },
    /// A CVM for every burst, [`Costs::boot_ns`] after it arrived.
    BootPerBurst,
}

impl Arm {
    /// All arms that the project compares.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let sampled = [500, 1000, 2000].map(|interval_ms| Self::Sampled { interval_ms });
        let mut arms = vec![Self::Nacre, Self::StaticP95, Self::StaticEqual, Self::Hotplug];
        arms.extend(sampled);
        arms.push(Self::BootPerBurst);
        arms
    }

    /// A short name for legends.
    #[must_use]
    pub fn title(self) -> String {
        match self {
            Self::Nacre => "nacre (events)".into(),
            Self::StaticP95 => "static, p95".into(),
            Self::StaticEqual => "static, equal".into(),
            Self::Hotplug => "hotplug".into(),
            Self::Sampled { interval_ms } => format!("sampled {} s", f64::from(interval_ms) / 1000.0),
            Self::BootPerBurst => "CVM per burst".into(),
        }
    }
}

/// What to simulate. `Scenario::default()` is a rack of 256 cores with 1,000 CVMs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// Physical cores, up to [`MAX_CORES`].
    pub cores: u32,
    /// CVMs, up to [`MAX_CVMS`]. A trace file brings its own.
    pub cvms: u32,
    /// Workers each CVM was launched with, up to 63.
    pub workers: u8,
    /// Workers each CVM is guaranteed, in the `nacre` arm.
    pub min_workers: u8,
    /// Seed of all randomness.
    pub seed: u64,
    /// Synthetic arrivals, if there is no trace.
    pub bursts: Bursts,
    /// A trace file instead: lines of `time_us,cvm,service_us`.
    pub trace: Option<PathBuf>,
    /// Costs of the mechanisms.
    pub costs: Costs,
    /// Tuning of the policy.
    pub tuning: Tuning,
    /// The arms to compare.
    pub arms: Vec<Arm>,
    /// Workers of the parallel jobs; empty for none.
    pub parallel: Vec<u32>,
    /// Ideal time of the parallel jobs, in seconds.
    pub parallel_seconds: f64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            cores: 256,
            cvms: 1000,
            workers: 32,
            min_workers: 0,
            seed: 1,
            bursts: Bursts::default(),
            trace: None,
            costs: Costs::default(),
            tuning: Tuning::default(),
            arms: Arm::all(),
            parallel: vec![4, 8, 16, 32, 64],
            parallel_seconds: 20.0,
        }
    }
}

/// What is wrong with a scenario.
#[derive(Debug, PartialEq, Error)]
pub enum ScenarioError {
    /// A number is out of its range.
    #[error("{what} = {value} is impossible; give {range}")]
    Range {
        /// The field.
        what: &'static str,
        /// What it says.
        value: f64,
        /// What it may say.
        range: &'static str,
    },
    /// There is nothing to compare.
    #[error("no arms to simulate; name at least one")]
    NoArms,
    /// Too much for memory.
    #[error("{tasks:.0} tasks are too many; shorten the time or lower the load to at most {MAX_TASKS} tasks")]
    TooLong {
        /// About how many there would be.
        tasks: f64,
    },
    /// The CPU manager would refuse it.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The trace cannot be read.
    #[error("cannot read the trace {path}; check the file: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A line of the trace is wrong.
    #[error("line {line} of the trace: {problem}")]
    Trace {
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong, and what is expected.
        problem: &'static str,
    },
}

impl Scenario {
    /// Checks that everything is in its range.
    ///
    /// # Errors
    /// With the first thing that is not.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let bursts = &self.bursts;
        let ranges = [
            ("cores", f64::from(self.cores), 1.0, f64::from(MAX_CORES), "1 to 4096"),
            ("cvms", f64::from(self.cvms), 1.0, f64::from(MAX_CVMS), "1 to 10000"),
            ("workers", f64::from(self.workers), 1.0, f64::from(MAX_WORKERS), "1 to 63"),
            ("seconds", bursts.seconds, 0.001, 100_000.0, "0.001 to 100000 s"),
            ("load", bursts.load, 0.000_001, 0.99, "more than 0, at most 0.99"),
            ("size_shape", bursts.size_shape, 1.01, 100.0, "1.01 to 100"),
            ("size_max", f64::from(bursts.size_max), 1.0, 100_000.0, "1 to 100000"),
            ("service_median_us", bursts.service_median_us, 1.0, 1e9, "1 us to 1000 s"),
            ("service_sigma", bursts.service_sigma, 0.0, 4.0, "0 to 4"),
            ("popularity_sigma", bursts.popularity_sigma, 0.0, 4.0, "0 to 4"),
            ("parallel_seconds", self.parallel_seconds, 0.01, 1000.0, "0.01 to 1000 s"),
        ];
        let parallel =
            self.parallel.iter().map(|&k| ("parallel", f64::from(k), 1.0, f64::from(MAX_CORES), "1 to 4096"));
        for (what, value, least, most, range) in ranges.into_iter().chain(parallel) {
            if !(least..=most).contains(&value) {
                return Err(ScenarioError::Range { what, value, range });
            }
        }
        for (what, value) in [
            ("wake_ns", self.costs.wake_ns),
            ("spin_wake_ns", self.costs.spin_wake_ns),
            ("ring_ns", self.costs.ring_ns),
            ("park_ns", self.costs.park_ns),
            ("reclaim_ns", self.costs.reclaim_ns),
            ("spin_ns", self.costs.spin_ns),
            ("hotplug_ns", self.costs.hotplug_ns),
            ("hotplug_keep_ns", self.costs.hotplug_keep_ns),
            ("boot_ns", self.costs.boot_ns),
        ] {
            if value > 1_000_000_000_000 {
                return Err(ScenarioError::Range { what, value: value as f64, range: "at most 1000 s" });
            }
        }
        if self.arms.is_empty() {
            return Err(ScenarioError::NoArms);
        }
        if self.arms.contains(&Arm::Sampled { interval_ms: 0 }) {
            return Err(ScenarioError::Range { what: "interval_ms", value: 0.0, range: "1 ms or more" });
        }
        self.tuning.check()?;
        self.limits()?;
        Budget::new(self.cores)?;
        let guaranteed = u64::from(self.min_workers) * u64::from(self.cvms);
        if guaranteed > u64::from(self.cores) {
            return Err(PolicyError::MinsOverBudget { sum: guaranteed, budget: self.cores }.into());
        }
        Ok(())
    }

    /// The limits of every CVM in the `nacre` arm.
    ///
    /// # Errors
    /// If they are impossible.
    pub(super) fn limits(&self) -> Result<Limits, PolicyError> {
        const WEIGHT: NonZeroU32 = NonZeroU32::new(100).expect("it is above 0");
        Limits::new(WEIGHT, self.min_workers, self.workers)
    }
}

/// The number of a CVM, as the policy knows it.
pub(super) fn cvm_id(index: usize) -> CvmId {
    // There are at most MAX_CVMS.
    CvmId(index as u32)
}
