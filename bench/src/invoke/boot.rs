//! Boot: `nacre run` of a compiled program as a process, from its start to the first Wasm instruction.
//!
//! The process cannot see its own beginning: what lies before its `main` is estimated from above by the whole life of
//! `nacre --version`, started in the same round.

use super::arm;
use crate::host::{HostEngine, binary_form};
use crate::programs::{EMPTY, container};
use crate::report::{Row, Target, Unit};
use crate::{BenchError, Progress};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// From the start of the process to the first Wasm instruction.
const TOTAL_TARGET: Target = Target::Value(15e6);
/// What the guest itself does in that time.
const GUEST_TARGET: Target = Target::Value(2e6);

/// The part of `--stats-json` that is used: moments in microseconds since the start of `main`.
#[derive(Deserialize)]
struct Stats {
    boot_us: BTreeMap<String, f64>,
}

impl Stats {
    /// The moment of a phase in nanoseconds. Phases are named `ORDER_name`.
    fn at(&self, phase: &str) -> Result<f64, BenchError> {
        let found =
            self.boot_us.iter().find(|(name, _)| name.split_once('_').is_some_and(|(_, name)| name == phase));
        let us = found.ok_or_else(|| child("run", format!("tells no time of {phase}")))?;
        Ok(us.1 * 1e3)
    }

    /// The guest's own part: coming up, and from the start message to the first Wasm instruction. Between the two it
    /// waits for the host.
    fn guest(&self) -> Result<f64, BenchError> {
        let up = self.at("guest_up")? - self.at("guest_entered")?;
        Ok(up + self.at("first_wasm")? - self.at("program_starts")?)
    }
}

pub(super) fn measure(nacre: &Path, count: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let directory = tempfile::tempdir().map_err(BenchError::system("a temporary directory"))?;
    let (program, stats) = (directory.path().join("empty.cwasm"), directory.path().join("stats.json"));
    let compiled = HostEngine::same()?.load(EMPTY.as_bytes())?.code()?;
    let file = container(&binary_form(EMPTY.as_bytes())?, &compiled, 0)?;
    std::fs::write(&program, file).map_err(BenchError::system("a temporary file"))?;
    let [mut total, mut process, mut inside, mut guest, mut whole] = <[Vec<f64>; 5]>::default();
    for _ in 0..count {
        progress.step("boot");
        let before_main = time(nacre, &[OsStr::new("--version")])?;
        let run = [OsStr::new("run"), OsStr::new("--stats-json"), stats.as_os_str(), program.as_os_str()];
        whole.push(time(nacre, &run)?);
        let text = std::fs::read_to_string(&stats).map_err(BenchError::system("the boot times"))?;
        let told: Stats = serde_json::from_str(&text).map_err(|error| child("run", error.to_string()))?;
        let first_wasm = told.at("first_wasm")?;
        total.push(before_main + first_wasm);
        process.push(before_main);
        inside.push(first_wasm);
        guest.push(told.guest()?);
    }
    let row = |name: &str, arm, samples: &[f64]| Row::new(name, arm, Unit::Nanoseconds, samples);
    let rows = [
        row("boot: process start to first Wasm", arm::PROCESS, &total).map(|row| row.target(TOTAL_TARGET)),
        row("boot: main to first Wasm", arm::PROCESS, &inside),
        row("boot: the guest's own part", arm::GUEST, &guest).map(|row| row.target(GUEST_TARGET)),
        row("boot: whole process, empty program", arm::PROCESS, &whole),
        row("boot: process start (by nacre --version)", "nacre --version", &process),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Runs `nacre` with these arguments; nanoseconds to its end.
fn time(nacre: &Path, args: &[&OsStr]) -> Result<f64, BenchError> {
    let name = args.first().map(|arg| arg.to_string_lossy()).unwrap_or_default();
    let mut command = Command::new(nacre);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begin = Instant::now();
    let output = command.output().map_err(BenchError::system("the nacre executable"))?;
    let elapsed = begin.elapsed().as_nanos() as f64;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(child(&name, format!("failed ({}): {}", output.status, said.trim())));
    }
    Ok(elapsed)
}

fn child(command: &str, what: String) -> BenchError {
    BenchError::Child { command: command.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_found_whatever_their_place() {
        let text = r#"{"backend": "kvm", "boot_us": {"5_guest_entered": 10.0, "6_guest_up": 11.5,
            "8_program_starts": 20.0, "B_first_wasm": 20.25}}"#;
        let stats: Stats = serde_json::from_str(text).unwrap();
        assert_eq!((stats.at("first_wasm").unwrap(), stats.guest().unwrap()), (20250.0, 1750.0));
        assert!(stats.at("wasm").is_err());
    }

    #[test]
    fn a_child_that_fails_is_an_error() {
        assert!(time(Path::new("/bin/false"), &[]).is_err());
        assert!(time(Path::new("/bin/true"), &[]).unwrap() > 0.0);
    }
}
