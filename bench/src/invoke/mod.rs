//! `nacre bench invoke`: what running a program in a CVM costs, beside the same engine as a host process.

mod boot;
mod calls;
mod compute;
mod instances;
mod lifecycle;
mod touch;

use crate::machine::Machine;
use crate::report::Report;
use crate::{BenchError, Progress};
use nacre_engine::WASMTIME_VERSION;
use std::path::PathBuf;
use std::time::Instant;

/// Names of the arms.
pub(crate) mod arm {
    pub const CVM: &str = "CVM";
    pub const HOST_SAME: &str = "host, same settings";
    pub const HOST_DEFAULT: &str = "host, defaults";
    pub const HOST_HUGE: &str = "host, huge pages";
    pub const HOST_BEST: &str = "host, an instance each";
    pub const PROCESS: &str = "nacre run";
    pub const GUEST: &str = "guest";
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `nacre` executable that is started for the boot times.
    pub nacre: PathBuf,
    /// Rounds of the compute-bound programs, each with all arms.
    pub compute_rounds: usize,
    /// Processes started.
    pub boots: usize,
    /// Batches of instances in the guest and on the host.
    pub instance_batches: usize,
    /// Rounds of warm calls of each program.
    pub call_rounds: usize,
    /// Rounds of touching memory.
    pub touch_rounds: usize,
    /// Rounds of touching 8 GiB.
    pub large_touch_rounds: usize,
    /// CVMs launched and dropped after a few to warm up.
    pub lives: usize,
}

impl Options {
    /// What `nacre bench invoke` does, in one to two minutes.
    #[must_use]
    pub fn full(nacre: PathBuf) -> Self {
        Self {
            nacre,
            compute_rounds: 12,
            boots: 30,
            instance_batches: 5,
            call_rounds: 5,
            touch_rounds: 7,
            large_touch_rounds: 3,
            lives: 50,
        }
    }

    /// Steps that [`run`] tells its progress about.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.compute_rounds * crate::programs::COMPUTE.len()
            + self.boots
            + self.instance_batches
            + self.call_rounds * calls::PROGRAMS
            + self.touch_rounds
            + self.large_touch_rounds
            + self.lives
    }
}

/// Measures everything.
///
/// # Errors
/// [`BenchError`]; a missed target is none.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<Report, BenchError> {
    let begin = Instant::now();
    let machine = Machine::this();
    let mut skipped = Vec::new();
    let mut rows = compute::measure(options.compute_rounds, progress)?;
    rows.extend(boot::measure(&options.nacre, options.boots, progress)?);
    rows.extend(instances::measure(options.instance_batches, progress)?);
    rows.extend(calls::measure(options.call_rounds, progress)?);
    rows.extend(touch::measure(options.touch_rounds, progress)?);
    rows.extend(touch::measure_large(options.large_touch_rounds, progress, &mut skipped)?);
    rows.extend(lifecycle::measure(options.lives, progress)?);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        wasmtime: WASMTIME_VERSION,
        machine,
        elapsed_seconds: begin.elapsed().as_secs_f64(),
        rows,
        skipped,
    })
}
