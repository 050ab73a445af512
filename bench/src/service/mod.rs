//! What a request to a service costs beyond the same request to a native server: round trips, many clients at once,
//! pipelining and bulk, over TCP sockets that the VMM relays to `apps/echo`, against an echo server of this process.
//!
//! Both are driven by the same thread in the same way: it writes to every client, then reads from every client.

mod clients;

use crate::machine::Machine;
use crate::programs::container;
use crate::report::{Report, Row, Target, Unit};
use crate::summary::order;
use crate::{BenchError, Progress, host};
use clients::{Clients, Native};
use nacre_engine::WASMTIME_VERSION;
use nacre_vmm::program::ProgramSpec;
use nacre_vmm::{Cvm, CvmConfig};
use std::time::Instant;

const CVM: &str = "service in a CVM";
const NATIVE: &str = "native server";
const MEMORY_BYTES: u64 = 512 << 20;
/// Bytes of a request, and of its answer.
const REQUEST_BYTES: usize = 64;
/// The ratio that the issue asks of a real store.
const THROUGHPUT: Target = Target::RatioAtLeast(0.6);

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds of each measurement, with both arms.
    pub rounds: usize,
    /// Requests of one measurement.
    pub requests: usize,
    /// Bytes of a bulk transfer, each way.
    pub bulk_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { rounds: 7, requests: 20_000, bulk_bytes: 64 << 20 }
    }
}

/// One way of asking.
struct Load {
    name: &'static str,
    clients: usize,
    /// Requests on the way per client.
    depth: usize,
}

const LOADS: [Load; 4] = [
    Load { name: "one client, one request", clients: 1, depth: 1 },
    Load { name: "50 clients, one request each", clients: 50, depth: 1 },
    Load { name: "50 clients, 16 requests each", clients: 50, depth: 16 },
    Load { name: "1,000 clients, one request each", clients: 1000, depth: 1 },
];

impl Options {
    /// Steps that [`run`] tells its progress about.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.rounds * (LOADS.len() + 1)
    }
}

/// Measures everything.
///
/// # Errors
/// [`BenchError`]; a missed target is none.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<Report, BenchError> {
    let begin = Instant::now();
    let machine = Machine::this();
    let source = include_bytes!("../../../apps/echo/echo.wasm");
    let code = container(source, &host::HostEngine::same()?.load(source)?.code()?, 0)?;
    let config = CvmConfig { workers: 1, memory_bytes: MEMORY_BYTES, ..CvmConfig::default() };
    let cvm = Cvm::launch(config)?;
    let spec =
        ProgramSpec { code: &code, args: vec!["echo".into()], listens: true, ..ProgramSpec::default() };
    let program = cvm.load(&spec)?;
    program.start()?;
    let native = Native::start()?;
    let mut rows = Vec::new();
    for load in &LOADS {
        let mut ours = Clients::relayed(&program.connector(), load.clients)?;
        let mut theirs = Clients::of(&native, load.clients)?;
        let rounds = (options.requests / load.clients / load.depth).max(20);
        let before = cvm.stats()?.guest;
        let mut samples = [Vec::new(), Vec::new()];
        for round in 0..options.rounds {
            progress.step(load.name);
            for arm in order(round, 2) {
                let clients = if arm == 0 { &mut ours } else { &mut theirs };
                samples[arm].push(clients.requests_per_second(load.depth, REQUEST_BYTES, rounds)?);
            }
        }
        let after = cvm.stats()?.guest;
        let requests = (options.rounds * rounds * load.clients * load.depth) as f64;
        let [ours, theirs] = &samples;
        let row = Row::new(load.name, CVM, Unit::PerSecond, ours);
        let row = row.map(|row| row.against(NATIVE, ours, theirs));
        // One client alone waits for each wake-up on the way: its row shows their floor, and there is nothing to be met.
        rows.extend(row.map(|row| if load.clients > 1 { row.target(THROUGHPUT) } else { row }));
        for (what, count) in [
            ("vCPUs parked per thousand requests", after.parks - before.parks),
            ("workers woken per thousand requests", after.wakes - before.wakes),
        ] {
            let name = format!("{}: {what}", load.name);
            rows.extend(Row::new(name, CVM, Unit::Count, &[1000.0 * count as f64 / requests]));
        }
    }
    rows.extend(bulk(options, progress, &program.connector(), &native)?);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        wasmtime: WASMTIME_VERSION,
        machine,
        elapsed_seconds: begin.elapsed().as_secs_f64(),
        rows,
        skipped: Vec::new(),
        tables: Vec::new(),
    })
}

/// Megabytes there and back over one connection.
fn bulk(
    options: &Options,
    progress: &dyn Progress,
    connector: &nacre_vmm::program::Connector,
    native: &Native,
) -> Result<Option<Row>, BenchError> {
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        progress.step("bulk");
        for arm in order(round, 2) {
            let mut clients =
                if arm == 0 { Clients::relayed(connector, 1)? } else { Clients::of(native, 1)? };
            samples[arm].push(clients.nanoseconds_per_mib(options.bulk_bytes)?);
        }
    }
    let [ours, theirs] = &samples;
    let row = Row::new("bulk, there and back", CVM, Unit::NanosecondsPerMib, ours);
    Ok(row.map(|row| row.against(NATIVE, ours, theirs)))
}
