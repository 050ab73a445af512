//! `nacre demo`: what it shows is true, and nothing of it stays, however it ends.
#![forbid(unsafe_code)]

use nacre_tests::job::{Nacre, code_of, finish, wait_at_most};
use nacre_tests::live::Live;
use nacre_tests::skip::need;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long something may take before it counts as never coming.
const PATIENCE: Duration = Duration::from_secs(120);

/// The demo, with a place of its own for temporary files.
fn demo(nacre: &Nacre, temporary: &Path) -> Command {
    let mut command = nacre.command();
    command.arg("demo").env("TMPDIR", temporary);
    command
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// The address behind "http://".
fn address(line: &str) -> SocketAddr {
    let rest = line.split("http://").nth(1).unwrap_or_else(|| panic!("no address in {line}"));
    rest.split([' ', ';']).next().unwrap().parse().unwrap()
}

/// The number before a word.
fn number_before(line: &str, word: &str) -> f64 {
    let before = line.split(word).next().unwrap().trim_end();
    let number = before.rsplit([' ', '(']).next().unwrap();
    number.replace(',', "").parse().unwrap_or_else(|_| panic!("no number before '{word}' in {line}"))
}

#[test]
fn the_demo_shows_workers_that_wake_and_park() {
    let Some(nacre) = need("demo", Nacre::find()) else { return };
    let temporary = tempfile::tempdir().unwrap();
    let report = tempfile::tempdir().unwrap();
    let mut command = demo(&nacre, temporary.path());
    command.args(["--workers", "3", "--fill", "16MiB", "--report"]).arg(report.path());
    let ended = finish(&mut command, b"").unwrap();
    let text = ended.text();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{text}");
    for word in ["primes", "mandelbrot", "darts", "kv", "root can read the CVMs' memory"] {
        assert!(text.contains(word), "'{word}' is not in:\n{text}");
    }
    assert!(!text.to_lowercase().contains("confidential"), "this platform is not:\n{text}");
    let line = |name: &str| {
        let found = text.lines().find(|line| line.trim_start().starts_with(name));
        found.unwrap_or_else(|| panic!("no line '{name}' in:\n{text}"))
    };
    assert!(number_before(line("burst "), " calls from ") > 0.0);
    let workers = text.lines().find(|line| line.contains("active before")).unwrap();
    assert_eq!(number_before(workers, " active before"), 0.0, "{workers}");
    assert!(number_before(workers, " of 3 at the peak") > 0.0, "{workers}");
    assert_eq!(number_before(workers, " after:"), 0.0, "{workers}");
    assert!(number_before(line("SET "), " a second") > 0.0 && number_before(line("GET "), " a second") > 0.0);
    assert_eq!(number_before(line("idle "), " workers active"), 0.0);
    // The chart has a line in which the burst's workers are seen, and one after it without any.
    let chart: Vec<&str> =
        text.lines().filter(|line| line.contains(" of 3 ") && line.contains(" s ")).collect();
    let burst = chart.iter().rposition(|line| line.contains('#') && line.ends_with("32 callers"));
    let burst = burst.unwrap_or_else(|| panic!("no burst in:\n{text}"));
    assert!(
        chart[burst..].iter().any(|line| line.contains(" 0 of 3 ") && line.ends_with("nothing")),
        "{text}"
    );

    // Both migrations have their timelines and their column.
    for mark in ["  order", "no task runs", "complete"] {
        let marked = text.lines().filter(|line| line.contains(mark)).count();
        assert!(marked >= 2, "'{mark}' is there {marked} times:\n{text}");
    }
    let cells = |name: &str| line(name).split_at(40).1.split_whitespace().collect::<Vec<_>>();
    assert_eq!(cells("requests that failed"), ["0"], "{text}");
    assert_eq!(cells("downtime: no task ran").len(), 7, "{text}");
    let picture = std::fs::read_to_string(report.path().join("migration-latency.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("stop-and-copy"), "{picture}");

    for name in ["node ", "second node "] {
        assert!(TcpStream::connect(address(line(name))).is_err(), "the {name}is gone");
    }
    assert_eq!(entries(temporary.path()), 0, "so is their directory");
}

#[test]
fn the_demo_for_machines() {
    let Some(nacre) = need("demo --json", Nacre::find()) else { return };
    let temporary = tempfile::tempdir().unwrap();
    let ended = finish(demo(&nacre, temporary.path()).args(["--json", "--fill", "64MiB"]), b"").unwrap();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.text());
    let summary: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let number = |path: &str| {
        summary.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {summary}"))
    };
    assert_eq!(summary["platform"], "software");
    assert!(summary["cvm"]["programs"].as_array().is_some_and(|programs| programs.len() == 2));
    let calls = number("/node/function/burst/calls");
    assert!(calls >= number("/node/function/burst/connections"), "{summary}");
    assert_eq!(number("/node/function/burst/active_before"), 0.0);
    assert!(number("/node/function/burst/active_peak") > 0.0 && number("/node/function/burst/wakes") > 0.0);
    assert_eq!(number("/node/function/burst/active_after"), 0.0);
    assert!(number("/node/function/burst/times/p50_ms") <= number("/node/function/burst/times/p99_ms"));
    // The calls' results are right: six standard errors of millions of darts are not missed by chance.
    let off = (number("/node/function/pi") - std::f64::consts::PI).abs();
    assert!(off < 6.0 * number("/node/function/pi_standard_error"), "{summary}");
    for kind in ["set", "get"] {
        assert!(number(&format!("/node/service/{kind}/commands")) > 0.0);
    }
    assert!(number("/node/service/keys") > 0.0 && number("/node/service/active_peak") > 0.0);
    assert_eq!(number("/node/idle/active"), 0.0);
    // Nothing but what the kernel itself needs to let the threads sleep: a spinning worker would take all of it.
    let share = number("/node/idle/cvm_cpu_ms") / (1000.0 * number("/node/idle/seconds"));
    assert!(share < 0.1, "an idle CVM takes {share} of a CPU");

    assert_eq!(number("/migration/filled_bytes"), f64::from(64 << 20));
    assert_eq!(number("/migration/failed_requests"), 0.0, "{}", summary["migration"]);
    for (way, mode) in [("hybrid", "hybrid"), ("stop_and_copy", "stop-and-copy")] {
        let number = |name: &str| number(&format!("/migration/{way}/{name}"));
        assert_eq!(summary["migration"][way]["mode"], mode);
        let (downtime, total) = (number("downtime_ms"), number("total_ms"));
        assert!(0.0 < downtime && downtime < total, "{way}: {downtime} of {total}");
        assert!(number("bytes") > f64::from(64 << 20), "{way}: {}", number("bytes"));
        // No client had an answer while no task ran.
        assert!(number("clients/client_gap_ms") >= number("clients/gap_ms"));
        assert!(number("clients/before") > 0.0 && number("clients/after") > 0.0);
        let timeline = summary["migration"][way]["timeline"].as_array().unwrap();
        assert!(timeline.iter().any(|bucket| bucket["max_ms"].as_f64().is_some()), "{way}");
    }
}

#[test]
fn the_demo_draws_on_a_terminal_and_ends_at_ctrl_c() {
    let Some(nacre) = need("demo on a terminal", Nacre::find()) else { return };
    let temporary = tempfile::tempdir().unwrap();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = std::fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let mut command = demo(&nacre, temporary.path());
    command.env("TERM", "xterm-256color");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::from(terminal)).spawn().unwrap();
    // Else the terminal's other end stays open here.
    drop(command);
    let (mut screen, mut bytes, mut buffer) = (std::fs::File::from(master), Vec::new(), [0; 4096]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    while !(text(&bytes).contains("|32 callers") && text(&bytes).contains('█')) {
        let read = screen.read(&mut buffer).unwrap_or(0);
        assert!(read > 0, "the demo ended early: {}", text(&bytes));
        bytes.extend_from_slice(&buffer[..read]);
    }
    assert_eq!(entries(temporary.path()), 1);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let in_time = wait_at_most(&child, PATIENCE).unwrap();
    if !in_time {
        child.kill().unwrap();
    }
    assert_eq!(code_of(child.wait().unwrap()), 130, "{}", text(&bytes));
    let shown = text(&bytes);
    let nodes = shown.lines().filter(|line| line.starts_with("node ") || line.starts_with("second node "));
    for (node, name) in nodes.clone().map(address).zip(["first", "second"]) {
        assert!(TcpStream::connect(node).is_err(), "the {name} node is gone");
    }
    assert_eq!((nodes.count(), entries(temporary.path())), (2, 0), "so is their directory");
}

#[test]
fn the_nodes_do_not_outlive_a_demo_that_is_killed() {
    let Some(nacre) = need("demo that is killed", Nacre::find()) else { return };
    let temporary = tempfile::tempdir().unwrap();
    let mut live = Live::start(&mut demo(&nacre, temporary.path())).unwrap();
    let mut nodes = Vec::new();
    while nodes.len() < 2 {
        let line = live.hear().unwrap();
        if line.starts_with("node ") || line.starts_with("second node ") {
            nodes.push(address(&line));
        }
    }
    live.signal(Signal::KILL).unwrap();
    assert_eq!(live.end_with_open_stdin().unwrap().0, 128 + 9);
    let begin = Instant::now();
    for node in nodes {
        while TcpStream::connect(node).is_ok() {
            assert!(begin.elapsed() < PATIENCE, "the node at {node} still serves");
        }
    }
}
