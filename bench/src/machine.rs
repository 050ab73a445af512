//! The machine a result comes from, without which numbers say little, and what this process takes of it.

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::fs;
use std::time::{Duration, Instant};

/// Facts of a machine, as its kernel tells them; what it does not tell is empty or 0.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The CPU's name.
    pub cpu: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Memory that was free for new programs when the run began, in bytes.
    pub memory_available_bytes: u64,
    /// When processes get huge pages: the kernel's setting, the chosen one in brackets.
    pub huge_pages: String,
    /// Mean number of runnable tasks over the last minute when the run began: much above 0 is noise.
    pub load: f64,
}

impl Machine {
    /// This one, now.
    #[must_use]
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let load = read("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_bytes: kib_field("/proc/meminfo", "MemTotal"),
            memory_available_bytes: available_bytes(),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled").trim().to_owned(),
            load,
        }
    }
}

/// Takes the time of something on the clock and on the processors.
#[derive(Debug)]
pub struct Timer {
    begin: Instant,
    cpu: Duration,
}

impl Timer {
    /// From now on.
    #[must_use]
    pub fn start() -> Self {
        Self { cpu: process_cpu(), begin: Instant::now() }
    }

    /// Time since the start, and the processor time that all threads of this process used in it, vCPUs included.
    #[must_use]
    pub fn stop(self) -> (Duration, Duration) {
        (self.begin.elapsed(), process_cpu().saturating_sub(self.cpu))
    }
}

/// Processor time of this process, all threads.
#[must_use]
pub fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Memory that is free for new programs now, in bytes.
#[must_use]
pub fn available_bytes() -> u64 {
    kib_field("/proc/meminfo", "MemAvailable")
}

/// Resident memory of this process in bytes.
#[must_use]
pub fn resident_bytes() -> u64 {
    kib_field("/proc/self/status", "VmRSS")
}

/// Threads of this process.
#[must_use]
pub fn threads() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    field(&status, "Threads").and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Open descriptors of this process, the one this function uses included.
#[must_use]
pub fn descriptors() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

/// The value of the first line `name : value`.
pub(crate) fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The same in bytes, of a file whose values are in KiB; 0 if there is none.
pub(crate) fn kib_field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = field(&text, name).unwrap_or_default();
    value.strip_suffix("kB").and_then(|kib| kib.trim().parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Mem: 1\nMemTotal:   24 kB\nmodel name\t: A CPU\n";
        assert_eq!(field(text, "MemTotal").as_deref(), Some("24 kB"));
        assert_eq!(field(text, "model name").as_deref(), Some("A CPU"));
        assert_eq!(field(text, "name"), None);
    }

    #[test]
    fn processor_time_is_counted() {
        let timer = Timer::start();
        let mut rounds = 0u64;
        while process_cpu().saturating_sub(timer.cpu) < Duration::from_millis(5) {
            rounds = std::hint::black_box(rounds + 1);
        }
        let (elapsed, cpu) = timer.stop();
        assert!(cpu >= Duration::from_millis(5) && elapsed > Duration::ZERO && rounds > 0);
    }

    #[test]
    fn this_process_has_descriptors_threads_and_memory() {
        assert!(descriptors() > 3 && threads() >= 1 && resident_bytes() > 1 << 16);
        assert!(Machine::this().memory_bytes > available_bytes());
    }
}
