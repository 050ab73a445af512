//! What CRIU, where it is installed, does with a native process of the same size: it is dumped to files and restored from them. The time from
//! the order to dump until the process runs again is what the downtime of a container's migration begins with; nothing is sent anywhere.

use crate::BenchError;
use crate::machine::kib_field;
use crate::report::{Row, Unit};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the process may take until it has its memory, for each GiB.
const PATIENCE_PER_GIB: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// A CRIU that works here.
pub(super) struct Criu(PathBuf);

impl Criu {
    /// The one in the search path.
    ///
    /// # Errors
    /// Why there is none, as a sentence.
    pub(super) fn find() -> Result<Self, String> {
        Self::at("criu".into())
    }

    fn at(program: PathBuf) -> Result<Self, String> {
        let checked = Command::new(&program).arg("check").stdin(Stdio::null()).output();
        match checked {
            Err(error) if error.kind() == ErrorKind::NotFound => Err("CRIU is not installed".into()),
            Err(error) => Err(format!("CRIU can't be started: {error}")),
            Ok(output) if output.status.success() => Ok(Self(program)),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let error = said.lines().find(|line| line.contains("Error")).unwrap_or("without a word");
                Err(format!("`criu check` fails here: {}", error.trim()))
            }
        }
    }

    fn run(&self, args: &[&OsStr]) -> Result<(), BenchError> {
        let output = Command::new(&self.0).args(args).stdin(Stdio::null()).output();
        let output = output.map_err(BenchError::system("criu"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().next_back().unwrap_or("without a word").trim().to_owned();
        Err(BenchError::program("criu", format!("failed: {last}")))
    }

    /// Dumps and restores a process with so much memory; nanoseconds of each round.
    pub(super) fn measure(&self, nacre: &Path, bytes: u64, rounds: usize) -> Result<Vec<f64>, BenchError> {
        let mut held = Held::start(nacre, bytes)?;
        let mut samples = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let directory = tempfile::tempdir().map_err(BenchError::system("a temporary directory"))?;
            let (images, pid_file) = (directory.path(), directory.path().join("pid"));
            let pid = held.pid.as_raw_nonzero().to_string();
            let word = OsStr::new;
            let begin = Instant::now();
            let dump =
                [word("dump"), word("-t"), word(&pid), word("-D"), images.as_os_str(), word("--shell-job")];
            self.run(&dump)?;
            held.gone();
            let restore = [
                word("restore"),
                word("-D"),
                images.as_os_str(),
                word("--shell-job"),
                word("--restore-detached"),
                word("--pidfile"),
                pid_file.as_os_str(),
            ];
            self.run(&restore)?;
            samples.push(begin.elapsed().as_nanos() as f64);
            let text = std::fs::read_to_string(&pid_file).map_err(BenchError::system("criu's pid file"))?;
            let pid = text.trim().parse().ok().and_then(Pid::from_raw);
            held.pid = pid.ok_or_else(|| BenchError::program("criu", "does not tell the process's id"))?;
        }
        Ok(samples)
    }
}

/// A process with memory; killed when this is dropped.
struct Held {
    /// Its id now.
    pid: Pid,
    /// What was started here, until it was dumped.
    child: Option<Child>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // It fails only when it has ended.
        let _ = kill_process(self.pid, Signal::KILL);
        self.gone();
    }
}

impl Held {
    fn start(nacre: &Path, bytes: u64) -> Result<Self, BenchError> {
        let mut command = Command::new(nacre);
        command.args(["bench", "hold-memory", &bytes.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(BenchError::system("a native process"))?;
        let held = Self { pid: Pid::from_child(&child), child: Some(child) };
        let (begin, patience) = (Instant::now(), PATIENCE_PER_GIB * ((bytes >> 30) as u32 + 1));
        let status = format!("/proc/{}/status", held.pid.as_raw_nonzero());
        while kib_field(&status, "VmRSS") < bytes {
            if begin.elapsed() > patience {
                return Err(BenchError::program("a native process", "does not get its memory"));
            }
            std::thread::sleep(LOOK);
        }
        Ok(held)
    }

    /// It has ended: its id is free again.
    fn gone(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

/// Its row.
pub(super) fn row(bytes: u64, samples: &[f64]) -> Option<Row> {
    Row::new(format!("dump and restore, {} MiB, to files", bytes >> 20), "CRIU", Unit::Nanoseconds, samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_criu_that_does_not_work_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Criu::at(directory.path().join("criu"));
        assert_eq!(missing.err().as_deref(), Some("CRIU is not installed"));
        let broken = script(directory.path(), "broken", "echo 'Error (vdso): bounds' >&2; exit 1");
        assert_eq!(Criu::at(broken).err().as_deref(), Some("`criu check` fails here: Error (vdso): bounds"));
    }

    /// With a stand-in that kills the process and starts another one in its place.
    #[test]
    fn a_process_is_dumped_and_restored_so_many_times() {
        let directory = tempfile::tempdir().unwrap();
        let stand_in =
            "case $1 in dump) kill -9 $3;; restore) sleep 600 >/dev/null 2>&1 & echo $! > \"$7\";; esac";
        let criu = Criu::at(script(directory.path(), "criu", stand_in)).ok().unwrap();
        let nacre = script(directory.path(), "nacre", "exec sleep 600");
        let samples = criu.measure(&nacre, 1, 2).unwrap();
        assert!(samples.len() == 2 && samples.iter().all(|ns| *ns > 0.0), "{samples:?}");
        assert!(row(1 << 30, &samples).is_some());
        let failing = script(directory.path(), "failing", "[ $1 = check ] || { echo why >&2; exit 1; }");
        let error = Criu::at(failing).ok().unwrap().measure(&nacre, 1, 1).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }
}
