//! `nacre bench migrate`: a service that writes all over its memory moves between two CVMs, in every mode, for several sizes and networks;
//! and a key-value service moves between two nodes while clients use it.
//!
//! * `service`: the program that writes, what is seen of it from outside, and the CVMs it lives in.
//! * `journey`: one migration, and what was measured of it. `network`: loopback, or a link of limited speed.
//! * `nodes`: the same between two nodes, as clients see it. `criu`: what CRIU does with a native process.
//! * `floor`: what the two ends' work costs at least. `plots`: what people would rather look at.
//!
//! *Downtime* is the time in which no task ran, from the moment at which the source began to park to the first task that the destination queued:
//! both ends' clocks are the same here. The *gap* is what an observer sees: the longest time between two signs of life of the service,
//! of which there is one each half to one millisecond while it runs.

mod criu;
mod floor;
mod journey;
mod network;
mod nodes;
mod plots;
mod service;

use crate::machine::Machine;
use crate::report::{Report, Row, Table, Target, Unit};
use crate::{BenchError, Progress};
use criu::Criu;
use floor::Floor;
use journey::Journey;
use nacre_abi::migrate::MoveMode;
use nacre_engine::WASMTIME_VERSION;
use network::Network;
use serde::Serialize;
use service::{Host, Service};
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use journey::Measured;
pub use network::Speed;
pub use nodes::Between;

/// Bytes that a client may write a second, in words, spread over the whole memory.
const WRITES_PER_SECOND: u64 = 50_000;
/// What the downtime may be, in nanoseconds.
const DOWNTIME_TARGET: Target = Target::Value(5e6);
/// What an observer may see, in nanoseconds.
const GAP_TARGET: Target = Target::Value(25e6);
/// Sizes from which on next to nothing of the baseline's downtime may be left.
const LARGE_BYTES: u64 = 4 << 30;
/// What of the floor the transfer has to reach.
const RATE_TARGET: Target = Target::RatioAtLeast(0.7);
/// What of its throughput a service has to keep while it is copied.
const TRACKING_TARGET: Target = Target::RatioAtLeast(0.7);

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Sizes of the memory that is written to, in bytes.
    pub sizes: Vec<u64>,
    /// Modes.
    pub modes: Vec<MoveMode>,
    /// Networks.
    pub networks: Vec<Speed>,
    /// Migrations of each.
    pub rounds: usize,
    /// Whether the guests alone are measured.
    pub cvms: bool,
    /// The `nacre` executable, if nodes are measured too.
    pub nodes: Option<PathBuf>,
}

impl Default for Options {
    /// What `nacre bench migrate` does.
    fn default() -> Self {
        Self {
            sizes: vec![256 << 20, 1 << 30, 4 << 30, 8 << 30],
            modes: vec![MoveMode::Hybrid, MoveMode::PostCopy, MoveMode::PreCopy, MoveMode::StopAndCopy],
            networks: vec![Speed::Loopback, Speed::Gigabits(10), Speed::Gigabits(1)],
            rounds: 5,
            cvms: true,
            nodes: None,
        }
    }
}

impl Options {
    /// Steps that [`run`] tells its progress about.
    #[must_use]
    pub fn steps(&self) -> usize {
        let cvms = if self.cvms { 2 + self.modes.len() * self.rounds } else { 0 };
        let fills = self.fills().count();
        1 + self.networks.len() * (self.sizes.len() * cvms + fills) + fills
    }

    /// What the service of the nodes holds.
    fn fills(&self) -> impl Iterator<Item = u64> {
        let nodes = self.nodes.is_some() && !nodes::modes(&self.modes).is_empty();
        self.sizes.iter().copied().filter(move |bytes| nodes && *bytes <= nodes::MAX_FILL)
    }
}

/// A finished run.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateReport {
    /// The rows, and where they were measured.
    #[serde(flatten)]
    pub report: Report,
    /// Each migration between CVMs.
    pub migrations: Vec<Measured>,
    /// Each migration between nodes.
    pub between_nodes: Vec<Between>,
}

impl MigrateReport {
    /// Writes the plots into a directory, which is made if it isn't there. Returns the files.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write_plots(&self, directory: &Path) -> Result<Vec<PathBuf>, BenchError> {
        let mut files = plots::write(&self.migrations, directory)?;
        files.extend(nodes::write_plots(&self.between_nodes, directory)?);
        Ok(files)
    }
}

/// Measures everything. Needs `/dev/kvm`, and more than twice the largest size of memory.
///
/// # Errors
/// [`BenchError`]; a missed target is none.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<MigrateReport, BenchError> {
    let begin = Instant::now();
    let machine = Machine::this();
    let (mut skipped, mut migrations, mut between_nodes) = (Vec::new(), Vec::new(), Vec::new());
    let mut floors = Vec::new();
    for speed in &options.networks {
        let network = match Network::new(*speed) {
            Ok(network) => network,
            Err(error) => {
                skipped.push(format!("{speed}: {error}"));
                continue;
            }
        };
        let cvms = if options.cvms { options.sizes.as_slice() } else { &[] };
        for bytes in cvms {
            if has_room(2 * service::cvm_bytes(*bytes) + (1 << 30), *bytes, &mut skipped) {
                migrations.extend(between_cvms(options, &network, *bytes, &mut floors, progress)?);
            }
        }
        let Some(nacre) = &options.nodes else { continue };
        for bytes in options.fills() {
            if has_room(crate::pair::needed_bytes(bytes), bytes, &mut skipped) {
                progress.step(&format!("{speed}, {} MiB: between nodes", bytes >> 20));
                let modes = nodes::modes(&options.modes);
                between_nodes.extend(nodes::measure(nacre, &network, bytes, &modes, options.rounds)?);
            }
        }
    }
    let mut rows = rows(options, &migrations);
    for speed in &options.networks {
        rows.extend(options.fills().flat_map(|bytes| nodes::rows(&between_nodes, *speed, bytes)));
    }
    rows.extend(dumps(options, &mut skipped, progress));
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        wasmtime: WASMTIME_VERSION,
        machine,
        elapsed_seconds: begin.elapsed().as_secs_f64(),
        rows,
        skipped,
        tables: vec![phases(&migrations), costs(&floors)],
    };
    Ok(MigrateReport { report, migrations, between_nodes })
}

/// What CRIU does with native processes as large as the nodes' services; nothing of it fails the benchmark.
fn dumps(options: &Options, skipped: &mut Vec<String>, progress: &dyn Progress) -> Vec<Row> {
    let Some(nacre) = &options.nodes else { return Vec::new() };
    let criu = match Criu::find() {
        Ok(criu) => criu,
        Err(why) => {
            skipped.push(format!("dump and restore of a native process: {why}"));
            return Vec::new();
        }
    };
    let mut rows = Vec::new();
    for bytes in options.fills() {
        progress.step(&format!("CRIU, {} MiB", bytes >> 20));
        match criu.measure(nacre, bytes, options.rounds) {
            Ok(samples) => rows.extend(criu::row(bytes, &samples)),
            Err(error) => skipped.push(format!("CRIU, {} MiB: {error}", bytes >> 20)),
        }
    }
    rows
}

/// Whether there is so much free memory for a service of this size.
fn has_room(needed: u64, bytes: u64, skipped: &mut Vec<String>) -> bool {
    let has_room = crate::machine::available_bytes() >= needed;
    if !has_room {
        skipped.push(format!("{} MiB: needs {} MiB of free memory", bytes >> 20, needed >> 20));
    }
    has_room
}

/// Migrations of a service of this size between CVMs of this process. Before each of the baseline the floor is measured, because machines
/// are shared, and none is as fast as it was a minute ago.
fn between_cvms(
    options: &Options,
    network: &Network,
    bytes: u64,
    floors: &mut Vec<Floor>,
    progress: &dyn Progress,
) -> Result<Vec<Measured>, BenchError> {
    let speed = network.speed;
    progress.step(&format!("{speed}, {} MiB: filling", bytes >> 20));
    let mut host = Host::new()?;
    let mut service = Service::start(&mut host, bytes, WRITES_PER_SECOND)?;
    let mut migrations = Vec::new();
    if let Some(mode) = options.modes.first() {
        // Memory of this machine that nobody has used yet may be given to it page by page, 4 s for each GiB where it is a VM itself.
        progress.step(&format!("{speed}, {} MiB: once, uncounted", bytes >> 20));
        service = Journey::new(&host, network, *mode).make(service)?.0;
    }
    for _ in 0..options.rounds {
        for mode in &options.modes {
            progress.step(&format!("{speed}, {} MiB: {}", bytes >> 20, name(*mode)));
            let floor = if *mode == MoveMode::StopAndCopy { Some(floor::measure()?) } else { None };
            let (moved, mut measured) = Journey::new(&host, network, *mode).make(service)?;
            service = moved;
            if let Some(floor) = floor {
                let carried = network.speed.bytes_per_second().unwrap_or(f64::INFINITY);
                measured.floor = carried.min(floor.bytes_per_second());
                floors.push(floor);
            }
            migrations.push(measured);
        }
    }
    // Who follows it holds it until it ends.
    service.cvm.stop();
    Ok(migrations)
}

/// A mode's name, as on the command line.
#[must_use]
pub fn name(mode: MoveMode) -> &'static str {
    match mode {
        MoveMode::Hybrid => "hybrid",
        MoveMode::PreCopy => "pre-copy",
        MoveMode::PostCopy => "post-copy",
        MoveMode::StopAndCopy => "stop-and-copy",
    }
}

/// What was measured of one mode, size and network.
fn of(
    migrations: &[Measured],
    speed: Speed,
    bytes: u64,
    mode: MoveMode,
) -> impl Iterator<Item = &Measured> + Clone {
    migrations.iter().filter(move |measured| {
        measured.network == speed && measured.bytes == bytes && measured.mode == name(mode)
    })
}

fn rows(options: &Options, migrations: &[Measured]) -> Vec<Row> {
    let mut rows = Vec::new();
    for speed in &options.networks {
        for bytes in &options.sizes {
            let of = |mode| of(migrations, *speed, *bytes, mode);
            let label = |what: &str| format!("{what}, {} MiB, {speed}", bytes >> 20);
            let stopped: Vec<f64> = of(MoveMode::StopAndCopy).map(|measured| measured.downtime_ns).collect();
            for mode in &options.modes {
                let take = |of_one: fn(&Measured) -> f64| of(*mode).map(of_one).collect::<Vec<f64>>();
                let downtime = take(|measured| measured.downtime_ns);
                let row = Row::new(label("downtime"), name(*mode), Unit::Nanoseconds, &downtime);
                rows.extend(row.map(|row| match mode {
                    MoveMode::Hybrid => row.target(DOWNTIME_TARGET),
                    _ => row,
                }));
                if *mode != MoveMode::Hybrid {
                    continue;
                }
                if *bytes >= LARGE_BYTES {
                    let row = Row::new(
                        label("of the baseline's downtime"),
                        name(*mode),
                        Unit::Nanoseconds,
                        &downtime,
                    );
                    rows.extend(row.map(|row| {
                        row.against("stop-and-copy", &downtime, &stopped).target(Target::Ratio(0.01))
                    }));
                }
                let gap = take(|measured| measured.gap_ns);
                rows.extend(
                    Row::new(label("seen from outside"), name(*mode), Unit::Nanoseconds, &gap)
                        .map(|row| row.target(GAP_TARGET)),
                );
                let (during, before) =
                    (take(|measured| measured.writes_during), take(|measured| measured.writes_before));
                rows.extend(
                    Row::new(label("writes while it is copied"), name(*mode), Unit::PerSecond, &during)
                        .map(|row| row.against("before", &during, &before).target(TRACKING_TARGET)),
                );
                let recovered = take(|measured| measured.recovered_ns);
                rows.extend(Row::new(
                    label("until 95 % of the writes"),
                    name(*mode),
                    Unit::Nanoseconds,
                    &recovered,
                ));
            }
            let rates: Vec<f64> = of(MoveMode::StopAndCopy).map(|measured| measured.rate).collect();
            let limits: Vec<f64> = of(MoveMode::StopAndCopy).map(|measured| measured.floor).collect();
            rows.extend(
                Row::new(label("bytes a second"), "stop-and-copy", Unit::Bytes, &rates)
                    .map(|row| row.against("floor", &rates, &limits).target(RATE_TARGET)),
            );
        }
    }
    rows
}

/// Where the downtime goes, as medians, in milliseconds.
fn phases(migrations: &[Measured]) -> Table {
    let mut lines: Vec<(String, Vec<&Measured>)> = Vec::new();
    for measured in migrations {
        let label = format!("{}, {} MiB, {}", measured.mode, measured.bytes >> 20, measured.network);
        match lines.iter_mut().find(|(name, _)| *name == label) {
            Some((_, all)) => all.push(measured),
            None => lines.push((label, vec![measured])),
        }
    }
    type Column = (&'static str, fn(&Measured) -> f64);
    let columns: [Column; 9] = [
        ("parked ms", |one| one.phases.parked_ns / 1e6),
        ("collected", |one| one.phases.collected_ns / 1e6),
        ("sent", |one| one.phases.sent_ns / 1e6),
        ("staged", |one| one.phases.staged_ns / 1e6),
        ("gone", |one| one.phases.gone_ns / 1e6),
        ("runs", |one| one.downtime_ns / 1e6),
        ("outstanding MiB", |one| one.outstanding_bytes / f64::from(1 << 20)),
        ("fetched s", |one| one.phases.window_ns / 1e9),
        ("rounds", |one| one.rounds),
    ];
    Table {
        title: "Where the downtime goes: from the order to park, medians".into(),
        columns: columns.iter().map(|(name, _)| *name).collect(),
        lines: lines
            .into_iter()
            .map(|(name, all)| {
                (name, columns.iter().map(|(_, of)| median(all.iter().map(|one| of(one)))).collect())
            })
            .collect(),
    }
}

/// What the floor is made of, as medians.
fn costs(floors: &[Floor]) -> Table {
    type Part = (&'static str, fn(&Floor) -> f64);
    let parts: [Part; 4] = [
        ("AES-256-GCM, sealing", |floor| floor.sealing),
        ("AES-256-GCM, opening", |floor| floor.opening),
        ("loopback, both ends", |floor| floor.sending),
        ("all, both ends on all CPUs", |floor| 1e9 / floor.bytes_per_second()),
    ];
    let line = |(name, of): Part| {
        let ns = median(floors.iter().map(|floor| of(floor) * f64::from(1 << 20)));
        (name.to_owned(), vec![ns / 1e3, 1e9 / ns])
    };
    Table {
        title: "CPU time of what can't be left out, and what this machine's CPUs allow".into(),
        columns: vec!["us/MiB", "MiB/s"],
        lines: if floors.is_empty() { Vec::new() } else { parts.map(line).into() },
    }
}

fn median(samples: impl Iterator<Item = f64>) -> f64 {
    let samples: Vec<f64> = samples.collect();
    crate::summary::Summary::of(&samples).map_or(f64::NAN, |summary| summary.median)
}
