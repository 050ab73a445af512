//! Warm calls over HTTP: the node against the reference server, both under the same load from the same generator, in turns.
//! A third arm asks the node for nothing but an answer: what HTTP alone costs there.

use super::arm;
use crate::child::{Node, Reference, Server, Thread};
use crate::load::client::request;
use crate::load::{Clients, Load, Served, runtime};
use crate::programs::ECHO;
use crate::report::{Row, Table, Target, Unit};
use crate::summary::{Summary, order};
use crate::{BenchError, Progress, host};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Connections at once, and whether so many keep all processors of a small machine busy.
const CONNECTIONS: [(usize, bool); 4] = [(1, false), (2, false), (16, true), (64, true)];
/// Steps of progress in a round.
pub(super) const STEPS: usize = CONNECTIONS.len();
const SLICE: Duration = Duration::from_millis(500);
const MAX_REQUESTS: usize = 200_000;
/// Requests before anything is measured.
const WARM_UP: usize = 2_000;
const PARAMETERS: &[u8] = br#"{"name":"Ada Lovelace","numbers":[1,2,3,5,8,13,21]}"#;
const ACTION: &str = "echo";

/// A server and what it is asked.
struct Arm<'s> {
    name: &'static str,
    address: SocketAddr,
    request: Vec<u8>,
    expected: &'static [u8],
    server: &'s Server,
}

impl Arm<'_> {
    fn load(&self, connections: usize) -> Load {
        Load {
            address: self.address,
            request: self.request.clone(),
            expected: self.expected.to_vec(),
            connections,
            time: SLICE,
            max_requests: MAX_REQUESTS,
        }
    }

    /// One slice of load.
    async fn slice(&self, connections: usize) -> Result<Slice, BenchError> {
        let clients = Clients::open(self.load(connections)).await?;
        let before = self.server.used();
        let served = clients.run().await?;
        Ok(Slice::new(&served, self.server.used().since(&before)))
    }
}

/// What a slice of load gave; times in nanoseconds.
struct Slice {
    requests: f64,
    rate: f64,
    p50: f64,
    p99: f64,
    server_cpu: f64,
    client_cpu: f64,
    /// Percent of one processor that both took.
    busy: f64,
    threads: BTreeMap<String, Thread>,
}

impl Slice {
    fn new(served: &Served, threads: BTreeMap<String, Thread>) -> Self {
        let requests = served.latencies_ns.len().max(1) as f64;
        let latency = Summary::of(&served.latencies_ns);
        let server_ns: f64 = threads.values().map(|thread| thread.cpu_ns).sum();
        let client_ns = served.client_cpu.as_nanos() as f64;
        Self {
            requests,
            rate: served.rate(),
            p50: latency.map_or(f64::NAN, |latency| latency.median),
            p99: latency.map_or(f64::NAN, |latency| latency.p99),
            server_cpu: server_ns / requests,
            client_cpu: client_ns / requests,
            busy: (server_ns + client_ns) / served.elapsed.as_nanos() as f64 * 100.0,
            threads,
        }
    }
}

/// The slices of all arms with one number of connections: by arm, by round.
type Slices = [Vec<Slice>; 3];

pub(super) fn measure(
    nacre: &Path,
    rounds: usize,
    progress: &dyn Progress,
    tables: &mut Vec<Table>,
) -> Result<Vec<Row>, BenchError> {
    let directory = tempfile::tempdir().map_err(BenchError::system("a temporary directory"))?;
    let node = Node::start(nacre, &directory.path().join("node"))?;
    let reference = Reference::start(nacre)?;
    runtime()?.block_on(async {
        let tenant = node.add_tenant("bench", json!({ "concurrency": 1000 })).await?;
        node.put_action(&tenant, ACTION, &host::binary_form(ECHO.as_bytes())?).await?;
        let arms = [
            Arm {
                name: arm::NODE,
                address: node.address,
                request: Node::invocation(&tenant, ACTION, PARAMETERS),
                expected: PARAMETERS,
                server: &node.server,
            },
            Arm {
                name: arm::REFERENCE,
                address: reference.address,
                request: request("POST", "/", None, PARAMETERS),
                expected: PARAMETERS,
                server: &reference.server,
            },
            Arm {
                name: arm::PING,
                address: node.address,
                request: request("GET", "/ping", None, b""),
                expected: b"pong",
                server: &node.server,
            },
        ];
        let mut all: [Slices; STEPS] = Default::default();
        for one in &arms {
            let load = Load { max_requests: WARM_UP, time: Duration::from_secs(10), ..one.load(16) };
            Clients::open(load).await?.run().await?;
        }
        let mut counted = [Counted::default(), Counted::default()];
        for round in 0..rounds {
            for (slices, (connections, _)) in all.iter_mut().zip(CONNECTIONS) {
                progress.step("warm calls over HTTP");
                for which in order(round, arms.len()) {
                    let counts = which == 0 && [1, 64].contains(&connections);
                    let before = if counts { Some(node.metrics().await?) } else { None };
                    let slice = arms[which].slice(connections).await?;
                    if let Some(before) = before {
                        // The requests that open the connections are counted too.
                        let requests = slice.requests + connections as f64;
                        counted[usize::from(connections == 64)].add(
                            requests,
                            &before,
                            &node.metrics().await?,
                        );
                    }
                    slices[which].push(slice);
                }
            }
        }
        let mut rows = Vec::new();
        for (slices, (connections, saturates)) in all.iter().zip(CONNECTIONS) {
            rows.extend(compare(slices, connections, saturates));
        }
        for (index, counted) in [0, STEPS - 1].into_iter().zip(&counted) {
            let (connections, _) = CONNECTIONS[index];
            for (one, slices) in arms.iter().zip(&all[index]) {
                tables.push(threads(one.name, connections, slices));
            }
            tables.push(counted.table(connections));
        }
        Ok(rows)
    })
}

/// The node against the reference.
fn compare(slices: &Slices, connections: usize, saturates: bool) -> Vec<Row> {
    let plural = if connections == 1 { "connection" } else { "connections" };
    let row = |what: &str, which: (usize, &'static str), unit, number: fn(&Slice) -> f64| {
        let numbers = |which: usize| slices[which].iter().map(number).collect::<Vec<_>>();
        let name = format!("warm call over HTTP, {connections} {plural}: {what}");
        let row = Row::new(name, which.1, unit, &numbers(which.0))?;
        Some(row.against(arm::REFERENCE, &numbers(which.0), &numbers(1)))
    };
    let (node, ping) = ((0, arm::NODE), (2, arm::PING));
    let rate = |slice: &Slice| slice.rate;
    let throughput = row("throughput", node, Unit::PerSecond, rate);
    let rows = [
        if saturates { throughput.map(|row| row.target(Target::RatioAtLeast(1.0))) } else { throughput },
        row("throughput", ping, Unit::PerSecond, rate),
        row("p50", node, Unit::Nanoseconds, |slice| slice.p50),
        row("p99", node, Unit::Nanoseconds, |slice| slice.p99).map(|row| row.target(Target::Ratio(1.0))),
        row("CPU of the server per call", node, Unit::Nanoseconds, |slice| slice.server_cpu),
        row("CPU of the client per call", node, Unit::Nanoseconds, |slice| slice.client_cpu),
        row("CPU of the server per answer", ping, Unit::Nanoseconds, |slice| slice.server_cpu),
        row("processors in use", node, Unit::Percent, |slice| slice.busy),
    ];
    rows.into_iter().flatten().collect()
}

/// Where the time of a call goes, by kind of thread.
fn threads(arm: &str, connections: usize, slices: &[Slice]) -> Table {
    let mut sums: BTreeMap<&str, Thread> = BTreeMap::new();
    for (name, thread) in slices.iter().flat_map(|slice| &slice.threads) {
        let sum = sums.entry(name).or_default();
        sum.cpu_ns += thread.cpu_ns;
        sum.wait_ns += thread.wait_ns;
        sum.sleeps += thread.sleeps;
        sum.preempted += thread.preempted;
    }
    let requests: f64 = slices.iter().map(|slice| slice.requests).sum();
    let line = |(name, sum): (&str, Thread)| {
        let numbers = [sum.cpu_ns / 1e3, sum.wait_ns / 1e3, sum.sleeps, sum.preempted];
        (name.to_owned(), numbers.map(|number| number / requests).to_vec())
    };
    Table {
        title: format!("{arm}, {connections} connections: threads, per request"),
        columns: vec!["CPU us", "waits for a CPU us", "sleeps", "preempted"],
        lines: sums.into_iter().map(line).collect(),
    }
}

/// What the node counted of its calls.
#[derive(Default)]
struct Counted {
    requests: f64,
    sums: BTreeMap<String, f64>,
}

impl Counted {
    fn add(&mut self, requests: f64, before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) {
        self.requests += requests;
        let counters = after
            .iter()
            .filter(|(name, _)| ["_total", "_sum", "_count"].iter().any(|end| name.ends_with(end)));
        for (name, value) in counters {
            *self.sums.entry(name.clone()).or_insert(0.0) += value - before.get(name).copied().unwrap_or(0.0);
        }
    }

    fn table(&self, connections: usize) -> Table {
        let line = |(name, sum): (&String, &f64)| {
            // Seconds become microseconds.
            let scale = if name.contains("_seconds") && !name.ends_with("_count") { 1e6 } else { 1.0 };
            (name.clone(), vec![sum * scale / self.requests])
        };
        Table {
            title: format!("node, {connections} connections: its own counters, per call (times in us)"),
            columns: vec!["per call"],
            lines: self.sums.iter().filter(|(_, sum)| **sum != 0.0).map(line).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_told_per_request() {
        let served = Served {
            elapsed: Duration::from_millis(1),
            client_cpu: Duration::from_micros(200),
            latencies_ns: vec![1e4; 100],
        };
        let thread = Thread { cpu_ns: 1e6, wait_ns: 2e5, sleeps: 50.0, preempted: 1.0 };
        let slice = Slice::new(&served, BTreeMap::from([("node".to_owned(), thread)]));
        assert_eq!((slice.rate, slice.p50, slice.p99), (1e5, 1e4, 1e4));
        assert_eq!((slice.server_cpu, slice.client_cpu, slice.busy), (1e4, 2e3, 120.0));
        let table = threads("node", 1, &[slice]);
        assert_eq!(table.lines, [("node".to_owned(), vec![10.0, 2.0, 0.5, 0.01])]);
    }

    #[test]
    fn counters_are_told_per_call_and_states_not_at_all() {
        let metrics =
            |pairs: &[(&str, f64)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let mut counted = Counted::default();
        let before = metrics(&[("a_total", 5.0), ("gauge", 1.0), ("t_seconds_sum", 1.0)]);
        counted.add(10.0, &before, &metrics(&[("a_total", 25.0), ("gauge", 9.0), ("t_seconds_sum", 1.5)]));
        let lines = counted.table(1).lines;
        assert_eq!(lines, [("a_total".to_owned(), vec![2.0]), ("t_seconds_sum".to_owned(), vec![5e4])]);
    }
}
