//! Migrations between two nodes, which are processes of their own, while clients use the service from outside: what an operator sees, where
//! the rest of this benchmark sees what the guests can do. The nodes are at both ends of the network; the clients are at the first one.

use super::network::{Network, Speed};
use super::{GAP_TARGET, TRACKING_TARGET, name};
use crate::BenchError;
use crate::child::Server;
use crate::load::runtime;
use crate::pair::clients::{Plan, fill};
use crate::pair::plot::{self, Panel};
use crate::pair::timeline::{AROUND, Bucket, Seen};
use crate::pair::{End, Moved, Pair, Places};
use crate::report::{Row, Target, Unit};
use nacre_abi::migrate::MoveMode;
use serde::Serialize;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The largest store that a service of 32 bits holds with room to spare, in bytes of values.
pub(super) const MAX_FILL: u64 = 2 << 30;
/// What is compared here.
const MODES: [MoveMode; 2] = [MoveMode::Hybrid, MoveMode::StopAndCopy];
/// Pieces of a timeline.
const PIECES: u32 = 400;

/// One migration.
#[derive(Debug, Clone, Serialize)]
pub struct Between {
    /// Over what.
    pub network: Speed,
    /// Bytes of the values that the service holds.
    pub bytes: u64,
    /// What nodes and guests tell.
    #[serde(flatten)]
    pub moved: Moved,
    /// What clients saw.
    pub clients: Seen,
    /// The same over time.
    pub timeline: Vec<Bucket>,
    /// Requests that failed, in all migrations of this size over this network.
    pub failed_requests: u64,
}

/// The modes among these that are compared here.
pub(super) fn modes(all: &[MoveMode]) -> Vec<MoveMode> {
    MODES.into_iter().filter(|mode| all.contains(mode)).collect()
}

/// Moves a service that holds so much there and back, in these modes, so many times each.
pub(super) fn measure(
    nacre: &Path,
    network: &Network,
    bytes: u64,
    modes: &[MoveMode],
    rounds: usize,
) -> Result<Vec<Between>, BenchError> {
    let directory = tempfile::tempdir().map_err(BenchError::system("a temporary directory"))?;
    let places = Places::new(directory.path())?;
    let start = |end: usize| start(nacre, network, end, &places.states[end]);
    let ((_first, first), (_second, second)) = (start(0)?, start(1)?);
    let order: Vec<MoveMode> = (0..rounds).flat_map(|_| modes.iter().copied()).collect();
    let session = move || {
        let moved = runtime().and_then(|runtime| {
            runtime.block_on(async {
                let plan = Plan::new(bytes);
                let pair = Pair::new(&places, [first, second], bytes).await?;
                fill(pair.service(0), &plan).await?;
                pair.watch(plan, &order, &()).await
            })
        });
        Ok(moved)
    };
    let watched = network.within(0, session).map_err(BenchError::system("the clients"))??;
    if let Some(why) = &watched.log.why {
        // The row says how many, and only this says why.
        eprintln!("nacre bench migrate: a request failed: {why}");
    }
    let between = watched.views().map(|(view, moved)| Between {
        network: network.speed,
        bytes,
        moved: moved.clone(),
        clients: view.seen(moved),
        timeline: view.buckets(moved, PIECES),
        failed_requests: watched.log.failed,
    });
    Ok(between.collect())
}

/// A node at one end of the network.
fn start(nacre: &Path, network: &Network, end: usize, state: &Path) -> Result<(Server, End), BenchError> {
    let listen = format!("{}:0", IpAddr::V4(network.address(end)));
    let mut command = Command::new(nacre);
    command.args(["node", "start", "--json", "--listen", &listen, "--peer-listen", &listen, "--state-dir"]);
    command.arg(state).env("NACRE_LOG", "error").stdout(Stdio::piped());
    // The namespace of the thread that starts it becomes its own.
    let started = network.within(end, move || Ok(Server::start(&mut command)));
    let mut server = started.map_err(BenchError::system("a node"))??;
    let line = server.first_line()?;
    let end =
        End::parse(&line).ok_or_else(|| BenchError::program("a node", "does not tell its addresses"))?;
    Ok((server, end))
}

/// Of one size over one network.
fn of(all: &[Between], speed: Speed, bytes: u64, mode: MoveMode) -> impl Iterator<Item = &Between> + Clone {
    all.iter().filter(move |one| one.network == speed && one.bytes == bytes && one.moved.mode == name(mode))
}

/// Rows for one size over one network.
pub(super) fn rows(all: &[Between], speed: Speed, bytes: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    let label = |what: &str| format!("nodes: {what}, {} MiB, {speed}", bytes >> 20);
    for mode in MODES {
        let take =
            |of_one: fn(&Between) -> f64| of(all, speed, bytes, mode).map(of_one).collect::<Vec<f64>>();
        let row = |what: &str, unit, samples: &[f64]| Row::new(label(what), name(mode), unit, samples);
        let downtime = take(|one| one.moved.downtime_ms * 1e6);
        rows.extend(row("downtime", Unit::Nanoseconds, &downtime).map(|row| {
            let stopped = of(all, speed, bytes, MoveMode::StopAndCopy).map(|one| one.moved.downtime_ms * 1e6);
            match mode {
                MoveMode::Hybrid => row.against("stop-and-copy", &downtime, &stopped.collect::<Vec<_>>()),
                _ => row,
            }
        }));
        let target = |row: Row, target| if mode == MoveMode::Hybrid { row.target(target) } else { row };
        for (what, gap) in [
            ("no answer to anybody", take(|one| one.clients.gap_ms * 1e6)),
            ("between two answers to a client", take(|one| one.clients.client_gap_ms * 1e6)),
        ] {
            rows.extend(row(what, Unit::Nanoseconds, &gap).map(|row| target(row, GAP_TARGET)));
        }
        let before = take(|one| one.clients.before);
        for (what, answers) in [
            ("requests while it is copied", take(|one| one.clients.during)),
            ("requests afterwards", take(|one| one.clients.after)),
        ] {
            rows.extend(row(what, Unit::PerSecond, &answers).map(|row| {
                let row = row.against("before", &answers, &before);
                if what == "requests while it is copied" { target(row, TRACKING_TARGET) } else { row }
            }));
        }
        let never = |one: &Between| one.moved.total_ms - one.moved.parked_at_ms + AROUND.as_secs_f64() * 1e3;
        // Whoever did not recover took at least as long as was looked.
        let recovered: Vec<f64> = of(all, speed, bytes, mode)
            .map(|one| one.clients.recovered_ms.unwrap_or_else(|| never(one)) * 1e6)
            .collect();
        rows.extend(row("until 95 % of the requests", Unit::Nanoseconds, &recovered));
        let total = take(|one| one.moved.total_ms * 1e6);
        rows.extend(row("all of it", Unit::Nanoseconds, &total));
    }
    let failed: Vec<f64> = all
        .iter()
        .filter(|one| one.network == speed && one.bytes == bytes)
        .map(|one| one.failed_requests as f64)
        .take(1)
        .collect();
    let row = Row::new(label("requests that failed"), "all", Unit::Count, &failed);
    rows.extend(row.map(|row| row.target(Target::Value(0.0))));
    rows
}

/// What clients saw of the last migration of the largest store, in each mode, for each network.
pub(super) fn write_plots(all: &[Between], directory: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let mut files = Vec::new();
    let mut networks: Vec<Speed> = all.iter().map(|one| one.network).collect();
    networks.dedup();
    for network in networks {
        let own = || all.iter().rev().filter(|one| one.network == network);
        let largest = own().map(|one| one.bytes).max().unwrap_or(0);
        let panel = |mode| {
            let one = own().find(|one| one.bytes == largest && one.moved.mode == name(mode))?;
            let moved = &one.moved;
            Some(Panel {
                title: format!(
                    "{}, {} MiB over {network}: {:.1} ms of downtime, {:.1} ms between two answers at most",
                    moved.mode,
                    largest >> 20,
                    moved.downtime_ms,
                    one.clients.client_gap_ms
                ),
                pause_ms: (moved.parked_at_ms, moved.running_at_ms),
                buckets: one.timeline.clone(),
            })
        };
        let panels: Vec<Panel> = MODES.into_iter().filter_map(panel).collect();
        let file = network.to_string().replace([' ', '/'], "-").to_lowercase();
        let path = directory.join(format!("latency-{file}.svg"));
        plot::write(&path, &panels)?;
        files.push(path);
    }
    Ok(files)
}
