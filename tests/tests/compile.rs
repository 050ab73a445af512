//! `nacre compile` and running what it made; `--stats-json`.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Nacre, finish};
use nacre_tests::skip::need;
use serde_json::Value;
use std::path::Path;

fn compile(nacre: &Nacre, module: &Path, into: &Path, options: &[&str]) {
    let ended =
        finish(nacre.command().arg("compile").args(options).arg(module).arg("-o").arg(into), b"").unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn compiled_code_runs_like_the_module() {
    let Some(nacre) = need("compile", Nacre::find()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let code = dir.path().join("primes.cwasm");
    for options in [&[][..], &["--cpu", "native"]] {
        compile(&nacre, &app("primes"), &code, options);
        let (ours, theirs) = (nacre.run(&[], &code), nacre.run(&[], &app("primes")));
        let [ours, theirs] = [ours, theirs].map(|mut run| finish(run.arg("100000"), b"").unwrap());
        assert_eq!((ours.code, ours.text()), (0, theirs.text()), "{}", ours.stderr);
    }
}

/// Truncated at many places and with single bits changed in its header: refused, never run.
#[test]
fn damaged_code_is_refused() {
    let Some(nacre) = need("damaged code", Nacre::find()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let code = dir.path().join("hello.cwasm");
    compile(&nacre, &app("hello"), &code, &[]);
    let whole = std::fs::read(&code).unwrap();
    let damaged = dir.path().join("damaged.cwasm");
    let cut = [1, 8, 64, whole.len() / 2, whole.len() - 1].map(|length| whole[..length].to_vec());
    let flipped = [0, 4, 9].map(|at| {
        let mut copy = whole.clone();
        copy[at] ^= 0x10;
        copy
    });
    for content in cut.into_iter().chain(flipped) {
        std::fs::write(&damaged, &content).unwrap();
        let ended = finish(&mut nacre.run(&[], &damaged), b"").unwrap();
        assert_eq!((ended.code, ended.stdout.len()), (1, 0), "{} bytes: {}", content.len(), ended.stderr);
        assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{}", ended.stderr);
    }
}

#[test]
fn statistics_have_the_documented_fields() {
    let Some(nacre) = need("statistics", Nacre::find()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stats.json");
    let options = ["--workers", "2", "--stats-json", file.to_str().unwrap()];
    let ended = finish(nacre.run(&options, &app("primes")).arg("20000000"), b"").unwrap();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let stats: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(stats["backend"], "kvm", "{stats:#}");
    assert_eq!(stats["vcpus"], 3, "one normal vCPU and two workers: {stats:#}");
    let boot = stats["boot_us"].as_object().expect("phases of the boot");
    assert!(
        !boot.is_empty() && boot.values().all(|phase| phase.as_f64().is_some_and(|us| us >= 0.0)),
        "{stats:#}"
    );
    let run = stats["vcpu_run_us"].as_array().expect("run time of each vCPU");
    assert_eq!(run.len(), 3, "{stats:#}");
    let total: f64 = run.iter().filter_map(Value::as_f64).sum();
    assert!(total > 10_000.0, "sieving 20 million numbers takes more than 10 ms: {stats:#}");
    let committed = stats["memory_committed_bytes"].as_u64().expect("memory");
    assert!((1 << 20..4 << 30).contains(&committed), "{stats:#}");
    let exits = stats["exits"].as_object().expect("exits by kind");
    assert!(exits.values().filter_map(Value::as_u64).sum::<u64>() > 0, "{stats:#}");
}

#[test]
fn the_readable_statistics_go_to_stderr() {
    let Some(nacre) = need("readable statistics", Nacre::find()) else { return };
    let ended = finish(nacre.run(&["--stats"], &app("hello")).args(["--exit", "5"]), b"").unwrap();
    assert_eq!((ended.code, ended.stdout.len()), (5, 0));
    for word in ["kvm", "boot", "memory", "exits"] {
        assert!(ended.stderr.to_lowercase().contains(word), "'{word}' is not in:\n{}", ended.stderr);
    }
}
