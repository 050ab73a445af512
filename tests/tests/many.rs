//! Many CVMs: at once, and one after the other without anything left behind. `NACRE_LONG=1` runs the full numbers.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Nacre, finish};
use nacre_tests::live::{Live, left_in_group};
use nacre_tests::skip::need;
use std::collections::BTreeSet;
use std::ffi::OsString;

/// All are alive at once: each has answered before the first one may end, and answers again after all have started.
#[test]
fn many_cvms_are_alive_at_once() {
    let Some(nacre) = need("many at once", Nacre::find()) else { return };
    let count = if nacre_tests::long() { 100 } else { 20 };
    let start = |i: usize| {
        let mut live = Live::start(nacre.run(&["--memory", "64MiB"], &app("hello")).arg("--cat")).unwrap();
        live.say(&format!("cvm {i}")).unwrap();
        assert_eq!(live.hear().unwrap(), format!("1: cvm {i}"));
        live
    };
    let mut all: Vec<Live> = (0..count).map(start).collect();
    for (i, live) in all.iter_mut().enumerate() {
        live.say(&format!("still {i}")).unwrap();
        assert_eq!(live.hear().unwrap(), format!("2: still {i}"));
    }
    for live in all {
        let group = live.pid();
        let (code, rest, stderr) = live.end().unwrap();
        assert_eq!((code, rest.len(), stderr.as_str()), (0, 1, ""));
        assert_eq!(left_in_group(group).unwrap(), Vec::<i32>::new());
    }
}

fn names_in(dir: &str) -> BTreeSet<OsString> {
    std::fs::read_dir(dir)
        .map(|all| all.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default()
}

/// The memory the kernel could give out, in KiB.
fn available_kib() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// After every run: no process, no temporary file, no shared memory; and over all of them no memory of the kernel.
#[test]
fn many_runs_in_a_row_leave_nothing() {
    let Some(nacre) = need("many in a row", Nacre::find()) else { return };
    let count = if nacre_tests::long() { 1000 } else { 50 };
    let temporary = tempfile::tempdir().unwrap();
    let shared = names_in("/dev/shm");
    let run = |i: i32| {
        let mut run = nacre.run(&["--workers", "1"], &app("hello"));
        run.args(["--exit", &(i % 7).to_string()]).env("TMPDIR", temporary.path());
        let ended = finish(&mut run, b"").unwrap();
        assert_eq!((ended.code, ended.stderr.as_str()), (i % 7, ""), "run {i}");
    };
    // The first runs fill caches.
    (0..5).for_each(run);
    let before = available_kib();
    (0..count).for_each(run);
    let lost = before - available_kib();
    assert!(lost < 64 * 1024 + 512 * i64::from(count), "{lost} KiB less memory after {count} runs");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "temporary files stayed behind");
    let stayed: Vec<_> = names_in("/dev/shm").difference(&shared).cloned().collect();
    assert!(!stayed.iter().any(|name| name.to_string_lossy().contains("nacre")), "{stayed:?}");
}

/// More workers than CPUs, up to the limit.
#[test]
fn as_many_workers_as_allowed() {
    let Some(nacre) = need("workers", Nacre::find()) else { return };
    for workers in ["0", "1", "7", "63"] {
        let ended = finish(nacre.run(&["--workers", workers], &app("primes")).arg("1000"), b"").unwrap();
        assert!(ended.text().starts_with("primes below 1000: 168\n"), "{workers} workers: {}", ended.stderr);
        assert_eq!(ended.code, 0);
    }
}
