//! Asks all CVMs of this user for their [`Sample`]s, and turns two of each into a [`Row`]. What answers is a process of
//! the same user; it may still be of another version, or anything: an answer has a limit in length and time.

use super::{SAMPLE_VERSION, Sample};
use serde::Serialize;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest answer in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// A CVM, with rates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What it says.
    #[serde(flatten)]
    pub sample: Sample,
    /// Workers without a CPU that want none.
    pub dormant: u32,
    /// CPU use in percent of one CPU.
    pub cpu_percent: f64,
    /// Wakes per second.
    pub wakes_per_second: f64,
}

/// The samples of all CVMs listed in `directory`. Entries of processes that are gone are removed.
#[must_use]
pub fn collect(directory: &Path) -> Vec<Sample> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let sockets = entries.flatten().map(|entry| entry.path());
    sockets
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .filter_map(|path| ask(&path))
        .collect()
}

fn ask(path: &Path) -> Option<Sample> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) => {
            if error.kind() == ErrorKind::ConnectionRefused {
                // Nobody listens any more. If this fails the next look tries again.
                let _ = fs::remove_file(path);
            }
            return None;
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).ok()?;
    let sample: Sample = serde_json::from_str(&answer).ok()?;
    (sample.version == SAMPLE_VERSION).then_some(sample)
}

/// One row per CVM of `now`, with rates since `before` where it is in both.
#[must_use]
pub fn rows(before: &[Sample], now: &[Sample], elapsed: Duration) -> Vec<Row> {
    let seconds = elapsed.as_secs_f64().max(1e-6);
    let row = |sample: &Sample| {
        let same = |other: &&Sample| other.pid == sample.pid && other.name == sample.name;
        let earlier = before.iter().find(same).filter(|earlier| earlier.cpu_ns <= sample.cpu_ns);
        let rate = |count: fn(&Sample) -> u64| {
            earlier.map_or(0.0, |earlier| count(sample).saturating_sub(count(earlier)) as f64 / seconds)
        };
        Row {
            dormant: sample.workers.saturating_sub(sample.active.saturating_add(sample.waiting)),
            cpu_percent: rate(|sample| sample.cpu_ns) / 1e7,
            wakes_per_second: rate(|sample| sample.wakes),
            sample: sample.clone(),
        }
    };
    now.iter().map(row).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    pub fn sample(name: &str, pid: u32, cpu_ns: u64) -> Sample {
        Sample {
            version: SAMPLE_VERSION,
            pid,
            name: name.into(),
            workers: 4,
            active: 1,
            waiting: 1,
            grant: 2,
            demand: 2,
            cpu_ns,
            memory_bytes: 64 << 20,
            wakes: cpu_ns / 1000,
            reclaims: 0,
            forced: 0,
        }
    }

    #[test]
    fn rates_come_from_two_looks_at_the_same_cvm() {
        let before = [sample("a", 1, 1_000_000_000), sample("b", 2, 5_000)];
        let now = [sample("a", 1, 1_500_000_000), sample("b", 3, 9_000)];
        let rows = rows(&before, &now, Duration::from_millis(500));
        assert!((rows[0].cpu_percent - 100.0).abs() < 1e-9 && rows[0].dormant == 2, "{:?}", rows[0]);
        assert!((rows[0].wakes_per_second - 1e6).abs() < 1e-3);
        assert_eq!(rows[1].cpu_percent, 0.0, "another process is another CVM");
    }

    #[test]
    fn the_dead_are_removed_and_nonsense_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        drop(UnixListener::bind(path("1-0.sock")).unwrap());
        let answers = |name: &str, text: String| {
            let listener = UnixListener::bind(path(name)).unwrap();
            std::thread::spawn(move || listener.accept().unwrap().0.write_all(text.as_bytes()).unwrap())
        };
        let mut other = sample("other", 3, 0);
        other.version = SAMPLE_VERSION + 1;
        let threads = [
            answers("2-0.sock", "{".into()),
            answers("3-0.sock", serde_json::to_string(&other).unwrap()),
            answers("4-0.sock", serde_json::to_string(&sample("good", 4, 0)).unwrap()),
        ];
        assert_eq!(collect(dir.path()), [sample("good", 4, 0)]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(!path("1-0.sock").exists());
        assert_eq!(collect(&path("nothing")), []);
    }
}
