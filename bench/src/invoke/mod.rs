//! `nacre bench invoke`: what running a program in a CVM costs, beside the same engine as a host process.

mod boot;
mod calls;
mod cold;
mod compute;
mod http;
mod instances;
mod kv;
mod lifecycle;
mod sealed;
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
    pub const NODE: &str = "node";
    pub const REFERENCE: &str = "reference server";
    pub const PING: &str = "node, HTTP alone";
    pub const SERVICE: &str = "kv on the node";
    pub const REDIS: &str = "redis-server";
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Compute-bound programs.
    Compute,
    /// Start of a process.
    Boot,
    /// Fresh instances.
    Instances,
    /// Warm calls of modules.
    Calls,
    /// First touch of memory.
    Touch,
    /// Launch and end of CVMs.
    Life,
    /// Warm functions of a node over HTTP.
    Http,
    /// First calls of functions.
    Cold,
    /// Sealed calls, beside plain ones.
    Sealed,
    /// The key-value service.
    Kv,
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
    /// Rounds of load on the HTTP servers, each with all of them at each number of connections.
    pub http_rounds: usize,
    /// Actions called for the first time.
    pub cold_actions: usize,
    /// Tenants that call for the first time.
    pub cold_tenants: usize,
    /// Rounds of sealed calls and handshakes.
    pub sealed_rounds: usize,
    /// Rounds of the key-value service.
    pub kv_rounds: usize,
}

impl Options {
    /// What `nacre bench invoke` does, in three to four minutes.
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
            http_rounds: 8,
            cold_actions: 60,
            cold_tenants: 20,
            sealed_rounds: 10,
            kv_rounds: 5,
        }
    }

    /// The same with these parts alone.
    #[must_use]
    pub fn only(mut self, parts: &[Part]) -> Self {
        let keep = |count: &mut usize, part| {
            if !parts.contains(&part) {
                *count = 0;
            }
        };
        keep(&mut self.compute_rounds, Part::Compute);
        keep(&mut self.boots, Part::Boot);
        keep(&mut self.instance_batches, Part::Instances);
        keep(&mut self.call_rounds, Part::Calls);
        keep(&mut self.touch_rounds, Part::Touch);
        keep(&mut self.large_touch_rounds, Part::Touch);
        keep(&mut self.lives, Part::Life);
        keep(&mut self.http_rounds, Part::Http);
        keep(&mut self.cold_actions, Part::Cold);
        keep(&mut self.cold_tenants, Part::Cold);
        keep(&mut self.sealed_rounds, Part::Sealed);
        keep(&mut self.kv_rounds, Part::Kv);
        self
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
            + self.http_rounds * http::STEPS
            + self.cold_actions
            + self.cold_tenants
            + self.sealed_rounds
            + self.kv_rounds * kv::STEPS
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
    let (mut rows, mut tables) = (Vec::new(), Vec::new());
    if options.compute_rounds > 0 {
        rows.extend(compute::measure(options.compute_rounds, progress)?);
    }
    if options.boots > 0 {
        rows.extend(boot::measure(&options.nacre, options.boots, progress)?);
    }
    if options.instance_batches > 0 {
        rows.extend(instances::measure(options.instance_batches, progress)?);
    }
    if options.call_rounds > 0 {
        rows.extend(calls::measure(options.call_rounds, progress)?);
    }
    if options.touch_rounds > 0 {
        rows.extend(touch::measure(options.touch_rounds, progress)?);
    }
    if options.large_touch_rounds > 0 {
        rows.extend(touch::measure_large(options.large_touch_rounds, progress, &mut skipped)?);
    }
    if options.lives > 0 {
        rows.extend(lifecycle::measure(options.lives, progress)?);
    }
    if options.http_rounds > 0 {
        rows.extend(http::measure(&options.nacre, options.http_rounds, progress, &mut tables)?);
    }
    if options.cold_actions + options.cold_tenants > 0 {
        rows.extend(cold::measure(options, progress)?);
    }
    if options.sealed_rounds > 0 {
        rows.extend(sealed::measure(&options.nacre, options.sealed_rounds, progress)?);
    }
    if options.kv_rounds > 0 {
        rows.extend(kv::measure(&options.nacre, options.kv_rounds, progress, &mut skipped)?);
    }
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        wasmtime: WASMTIME_VERSION,
        machine,
        elapsed_seconds: begin.elapsed().as_secs_f64(),
        rows,
        skipped,
        tables,
    })
}
