//! The key-value service of `apps/kv` on a node against native redis-server: throughput under redis-benchmark in turns, and
//! memory for a million keys.

use super::arm;
use crate::child::{Node, Server};
use crate::programs::KV;
use crate::report::{Row, Target, Unit};
use crate::summary::order;
use crate::{BenchError, Progress};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const REDIS: &str = "redis-server";
const BENCHMARK: &str = "redis-benchmark";
/// Requests under way on each connection, and requests in a slice.
const PIPELINES: [(u32, u32); 2] = [(1, 40_000), (16, 300_000)];
const COMMANDS: [&str; 2] = ["SET", "GET"];
/// Steps of progress in a round.
pub(super) const STEPS: usize = PIPELINES.len();
const THROUGHPUT_TARGET: Target = Target::RatioAtLeast(0.6);
const MEMORY_TARGET: Target = Target::Ratio(1.5);
/// Keys for the comparison of memory.
const KEYS: usize = 1_000_000;
const VALUE_BYTES: usize = 64;
/// Commands that are sent before their answers are read.
const BATCH: usize = 1_000;
/// A server has this long to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest run of redis-benchmark in seconds.
const SLICE_LIMIT: &str = "120";
/// Of the tenant that has the service.
const MEMORY_BYTES: u64 = 2 << 30;

/// A server under test.
struct Arm<'s> {
    address: SocketAddr,
    server: &'s Server,
}

/// Commands a second of one slice, in the order of [`COMMANDS`].
type Rates = [f64; 2];

pub(super) fn measure(
    nacre: &Path,
    rounds: usize,
    progress: &dyn Progress,
    skipped: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    for program in [REDIS, BENCHMARK] {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            skipped.push(format!("kv: there is no {program}; install redis-server and redis-tools"));
            return Ok(Vec::new());
        }
    }
    let directory = tempfile::tempdir().map_err(BenchError::system("a temporary directory"))?;
    let redis_port = free_port()?;
    let redis = redis(redis_port, directory.path())?;
    let node = Node::start(nacre, &directory.path().join("node"))?;
    let service_port = free_port()?;
    deploy(nacre, &node, directory.path(), service_port)?;
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let arms = [
        Arm { address: local(service_port), server: &node.server },
        Arm { address: local(redis_port), server: &redis },
    ];
    for one in &arms {
        ready(one.address)?;
    }
    let mut rates: [[Vec<Rates>; 2]; STEPS] = Default::default();
    for round in 0..rounds {
        for (rates, (pipeline, requests)) in rates.iter_mut().zip(PIPELINES) {
            progress.step("the key-value service");
            for which in order(round, arms.len()) {
                rates[which].push(slice(arms[which].address, pipeline, requests)?);
            }
        }
    }
    let mut rows = Vec::new();
    for (rates, (pipeline, _)) in rates.iter().zip(PIPELINES) {
        for (at, command) in COMMANDS.into_iter().enumerate() {
            let [own, native] =
                [0, 1].map(|which| rates[which].iter().map(|rates| rates[at]).collect::<Vec<_>>());
            let row = Row::new(format!("kv: {command}, -P {pipeline}"), arm::SERVICE, Unit::PerSecond, &own);
            rows.extend(row.map(|row| row.against(arm::REDIS, &own, &native).target(THROUGHPUT_TARGET)));
        }
    }
    rows.extend(memory(&arms)?);
    Ok(rows)
}

/// Memory that a million keys take, in bytes per key.
fn memory(arms: &[Arm<'_>; 2]) -> Result<Option<Row>, BenchError> {
    let mut per_key = [0.0; 2];
    for (one, per_key) in arms.iter().zip(&mut per_key) {
        command(one.address, "FLUSHALL")?;
        let before = one.server.resident_bytes();
        fill(one.address)?;
        *per_key = one.server.resident_bytes().saturating_sub(before) as f64 / KEYS as f64;
    }
    let name = format!("kv: bytes per key, {KEYS} keys of 16 bytes with {VALUE_BYTES}");
    let row = Row::new(name, arm::SERVICE, Unit::Count, &per_key[..1]);
    Ok(row.map(|row| row.against(arm::REDIS, &per_key[..1], &per_key[1..]).target(MEMORY_TARGET)))
}

/// A port that is free now.
fn free_port() -> Result<u16, BenchError> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    port.map(|address| address.port()).map_err(BenchError::system("a port"))
}

fn redis(port: u16, directory: &Path) -> Result<Server, BenchError> {
    let mut command = Command::new(REDIS);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    Server::start(command.arg("--dir").arg(directory).stdout(Stdio::null()))
}

/// Deploys the service by the command line, as its users do.
fn deploy(nacre: &Path, node: &Node, directory: &Path, port: u16) -> Result<(), BenchError> {
    let runtime = crate::load::runtime()?;
    let tenant =
        runtime.block_on(node.add_tenant("kv", serde_json::json!({ "memory_bytes": MEMORY_BYTES })))?;
    let file = directory.join("kv.wasm");
    std::fs::write(&file, KV).map_err(BenchError::system("a temporary file"))?;
    let auth = tenant.authorization.trim_start_matches("Basic ");
    let auth = String::from_utf8(STANDARD.decode(auth).unwrap_or_default()).unwrap_or_default();
    let mut command = Command::new(nacre);
    command.args(["deploy", "kv"]).arg(file).args(["--service", "--port", &port.to_string()]);
    command.env("NACRE_NODE", format!("http://{}", node.address)).env("NACRE_AUTH", auth);
    let output = command.stdin(Stdio::null()).output().map_err(BenchError::system("the nacre executable"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(BenchError::Child { command: "deploy".into(), what: format!("failed: {}", said.trim()) })
}

/// Waits until the server answers.
fn ready(address: SocketAddr) -> Result<(), BenchError> {
    let begin = Instant::now();
    while let Err(error) = command(address, "PING") {
        if begin.elapsed() > PATIENCE {
            return Err(error);
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Sends one command without arguments; its answer is one line.
fn command(address: SocketAddr, text: &str) -> Result<String, BenchError> {
    let talk = || {
        let mut stream = connect(address)?;
        stream.write_all(format!("{text}\r\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        if line.starts_with('+') { Ok(line) } else { Err(std::io::Error::other(format!("it says {line:?}"))) }
    };
    talk().map_err(BenchError::system("the key-value server"))
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sets [`KEYS`] keys.
fn fill(address: SocketAddr) -> Result<(), BenchError> {
    let talk = || {
        let stream = connect(address)?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let mut sender = BufWriter::with_capacity(256 << 10, stream);
        let value = "v".repeat(VALUE_BYTES);
        let mut line = String::new();
        for batch in 0..KEYS / BATCH {
            for key in batch * BATCH..(batch + 1) * BATCH {
                write!(sender, "*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n${VALUE_BYTES}\r\n{value}\r\n")?;
            }
            sender.flush()?;
            for _ in 0..BATCH {
                line.clear();
                answers.read_line(&mut line)?;
                if line != "+OK\r\n" {
                    return Err(std::io::Error::other(format!("it says {line:?} to SET")));
                }
            }
        }
        Ok(())
    };
    talk().map_err(BenchError::system("the key-value server"))
}

/// One run of redis-benchmark.
fn slice(address: SocketAddr, pipeline: u32, requests: u32) -> Result<Rates, BenchError> {
    let port = address.port().to_string();
    let (pipeline, requests) = (pipeline.to_string(), requests.to_string());
    let output = Command::new("timeout")
        .args([SLICE_LIMIT, BENCHMARK, "-p", &port, "-P", &pipeline, "-n", &requests, "-r", "100000"])
        .args(["-c", "50", "-t", "set,get", "--csv"])
        .stdin(Stdio::null())
        .output()
        .map_err(BenchError::system(BENCHMARK))?;
    rates(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        BenchError::program(BENCHMARK, format!("gave no numbers ({}): {}", output.status, said.trim()))
    })
}

/// The rates in its CSV.
fn rates(csv: &str) -> Option<Rates> {
    let rate = |command: &str| {
        let line = csv.lines().find(|line| line.starts_with(&format!("\"{command}\"")))?;
        line.split(',').nth(1)?.trim_matches('"').parse().ok()
    };
    Some([rate(COMMANDS[0])?, rate(COMMANDS[1])?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_from_csv() {
        let csv =
            "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"102040.82\",\"0.2\"\n\"GET\",\"99.5\",\"0.1\"\n";
        assert_eq!(rates(csv), Some([102_040.82, 99.5]));
        assert_eq!((rates(""), rates("\"SET\",\"1\"\n")), (None, None));
    }
}
