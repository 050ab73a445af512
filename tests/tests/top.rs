//! `nacre top` against real `nacre run` processes.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Ended, Nacre, finish};
use nacre_tests::live::Live;
use nacre_tests::skip::need;
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A program that answers lines, listed in `runtime`.
fn start(nacre: &Nacre, runtime: &Path, options: &[&str]) -> Live {
    let mut command = nacre.run(options, &app("hello"));
    let mut live = Live::start(command.arg("--cat").env("XDG_RUNTIME_DIR", runtime)).unwrap();
    live.say("x").unwrap();
    assert_eq!(live.hear().unwrap(), "1: x");
    live
}

fn top(nacre: &Nacre, runtime: &Path, args: &[&str]) -> Ended {
    finish(nacre.command().arg("top").args(args).env("XDG_RUNTIME_DIR", runtime), b"").unwrap()
}

fn rows(nacre: &Nacre, runtime: &Path, args: &[&str]) -> Vec<serde_json::Value> {
    let ended = top(nacre, runtime, &[&["--json"], args].concat());
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    serde_json::from_slice(&ended.stdout).unwrap()
}

/// The socket is made while the program already runs.
fn listed(nacre: &Nacre, runtime: &Path, count: usize) -> Vec<serde_json::Value> {
    loop {
        let rows = rows(nacre, runtime, &["--sort", "name"]);
        if rows.len() == count {
            return rows;
        }
        assert!(rows.len() < count, "{rows:?}");
    }
}

#[test]
fn top_shows_what_runs_and_forgets_the_dead() {
    let Some(nacre) = need("top", Nacre::find()) else { return };
    let runtime = tempfile::tempdir().unwrap();
    let runtime = runtime.path();
    assert_eq!(rows(&nacre, runtime, &[]).len(), 0);
    assert!(top(&nacre, runtime, &["--once"]).text().contains("no CVM"));

    let first = start(&nacre, runtime, &["--workers", "3", "--cpus", "2", "--name", "alpha"]);
    let second = start(&nacre, runtime, &["--workers", "1", "--memory", "64MiB"]);
    let both = listed(&nacre, runtime, 2);
    let (alpha, hello) = (&both[0], &both[1]);
    assert_eq!((&alpha["name"], &hello["name"]), (&"alpha".into(), &"hello.wasm".into()));
    assert_eq!((&alpha["workers"], &hello["workers"]), (&3.into(), &1.into()));
    assert_eq!(alpha["pid"], first.pid().as_raw_nonzero().get());
    let number = |row: &serde_json::Value, field: &str| row[field].as_u64().unwrap();
    assert_eq!(number(alpha, "active") + number(alpha, "waiting") + number(alpha, "dormant"), 3);
    assert!(
        number(alpha, "wakes") > 0 && number(alpha, "cpu_ns") > 0 && number(alpha, "memory_bytes") > 1 << 20
    );
    assert_eq!(rows(&nacre, runtime, &["alpha"]).len(), 1);
    let text = top(&nacre, runtime, &["--once", "hello.wasm"]).text();
    assert!(text.contains("hello.wasm") && !text.contains("alpha"), "{text}");

    let unknown = top(&nacre, runtime, &["--once", "gamma"]);
    assert_eq!(unknown.code, 1);
    assert!(
        unknown.stderr.contains("gamma") && unknown.stderr.contains("nacre top --once"),
        "{}",
        unknown.stderr
    );

    let sockets = || std::fs::read_dir(runtime.join("nacre")).unwrap().count();
    for entry in std::fs::read_dir(runtime.join("nacre")).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    // One that ends takes its entry along; what a killed one left is removed by the next look.
    assert_eq!(second.end().unwrap().0, 0);
    assert_eq!(sockets(), 1);
    first.signal(Signal::KILL).unwrap();
    assert_eq!(first.end_with_open_stdin().unwrap().0, 128 + 9);
    assert_eq!(sockets(), 1);
    assert_eq!(rows(&nacre, runtime, &[]).len(), 0);
    assert_eq!(sockets(), 0);
}

#[test]
fn wrong_options_are_refused() {
    let Some(nacre) = need("top options", Nacre::find()) else { return };
    for (command, args) in [
        ("top", ["--interval", "1ns"]),
        ("top", ["--sort", "colour"]),
        ("run", ["--cpus", "0"]),
        ("run", ["--spin-limit", "1s"]),
    ] {
        let ended = finish(nacre.command().arg(command).args(args).arg("x.wasm"), b"").unwrap();
        assert_eq!(ended.code, 2, "{args:?}: {}", ended.stderr);
        assert!(!ended.stderr.is_empty());
    }
}
