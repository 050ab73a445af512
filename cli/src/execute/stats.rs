//! `--stats` and `--stats-json`: what a run cost.

use crate::failure::Failure;
use crate::run::RunPlan;
use nacre_abi::message::GuestStats;
use nacre_vmm::cvm::CvmStats;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// What a run cost. Times of the guest are its own claims.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the CVM ran on.
    pub backend: &'static str,
    /// vCPUs, the normal one included.
    pub vcpus: usize,
    /// Moments of the boot in microseconds since the start of the process, in their order.
    pub boot_us: BTreeMap<&'static str, f64>,
    /// Microseconds that each vCPU spent in the guest.
    pub vcpu_run_us: Vec<f64>,
    /// Bytes that the host committed for the CVM's private memory.
    pub memory_committed_bytes: u64,
    /// Bytes of frames that the guest had promised to programs at the peak.
    pub memory_promised_peak_bytes: u64,
    /// Bytes that the guest gave back to the host.
    pub memory_released_bytes: u64,
    /// Exits to the VMM by kind.
    pub exits: BTreeMap<&'static str, u64>,
    /// Tasks of the program and the CPU time they had.
    pub tasks: Tasks,
    /// What happened inside the guest.
    pub guest: BTreeMap<&'static str, u64>,
}

/// The tasks of a program, by the guest's word.
#[derive(Debug, Serialize)]
pub struct Tasks {
    /// Those it spawned.
    pub spawned: u64,
    /// Those that ended, the main one included.
    pub ended: u64,
    /// Sum of the CPU times of these, in microseconds.
    pub cpu_us: f64,
    /// The least that one of them had.
    pub cpu_min_us: f64,
    /// The mean.
    pub cpu_mean_us: f64,
    /// The most.
    pub cpu_max_us: f64,
    /// Times a task went on on another vCPU than before.
    pub moves: u64,
    /// Times one gave its vCPU up because its slice was over or a higher one waited.
    pub preemptions: u64,
}

impl Tasks {
    fn new(guest: &GuestStats) -> Tasks {
        let us = |ns: u64| ns as f64 / 1000.0;
        Tasks {
            spawned: guest.tasks_spawned,
            ended: guest.tasks_ended,
            cpu_us: us(guest.task_cpu_ns),
            cpu_min_us: us(guest.task_cpu_min_ns),
            cpu_mean_us: us(guest.task_cpu_ns) / guest.tasks_ended.max(1) as f64,
            cpu_max_us: us(guest.task_cpu_max_ns),
            moves: guest.task_moves,
            preemptions: guest.preemptions,
        }
    }
}

impl Report {
    /// The report of a CVM that was launched `launched` after the start of the process.
    pub fn new(stats: &CvmStats, launched: Duration) -> Report {
        let us = |duration: Duration| duration.as_nanos() as f64 / 1000.0;
        let times = stats.times;
        let since_launch = |tsc: u64| {
            let cycles = tsc.saturating_sub(times.launch_tsc) as f64;
            us(launched) + cycles * 1000.0 / times.tsc_khz.max(1) as f64
        };
        let boot_us = BTreeMap::from([
            ("1_launch", us(launched)),
            ("2_memory_written", us(launched + times.memory)),
            ("3_machine_made", us(launched + times.machine)),
            ("4_vcpu_started", us(launched + times.started)),
            ("5_guest_entered", since_launch(stats.guest.entry_tsc)),
            ("6_guest_up", since_launch(stats.guest.memory_ready_tsc)),
            ("7_program_arrives", since_launch(stats.guest.created_tsc)),
            ("8_program_starts", since_launch(stats.guest.task_tsc)),
            ("9_engine_ready", since_launch(stats.guest.engine_tsc)),
            ("A_program_loaded", since_launch(stats.guest.loaded_tsc)),
            ("B_first_wasm", since_launch(stats.guest.wasm_tsc)),
        ]);
        let mut exits = BTreeMap::new();
        let mut vcpu_run_us = Vec::new();
        for vcpu in &stats.vcpus {
            for (name, value) in vcpu {
                match *name {
                    "run_ns" => vcpu_run_us.push(*value as f64 / 1000.0),
                    name => *exits.entry(name).or_insert(0) += value,
                }
            }
        }
        let guest = stats.guest;
        Report {
            backend: "kvm",
            vcpus: stats.vcpus.len(),
            boot_us,
            vcpu_run_us,
            memory_committed_bytes: stats.resident_bytes.unwrap_or(guest.frames_used_bytes),
            memory_promised_peak_bytes: guest.committed_peak_bytes,
            memory_released_bytes: guest.released_bytes,
            exits,
            tasks: Tasks::new(&guest),
            guest: BTreeMap::from([
                ("page_faults", guest.page_faults),
                ("tlb_flushes", guest.tlb_flushes),
                ("task_resumes", guest.task_resumes),
                ("task_moves", guest.task_moves),
                ("parks", guest.parks),
                ("wakes", guest.wakes),
                ("handed_over", guest.handed_over),
                ("worker_locks", guest.worker_locks),
            ]),
        }
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(text, "backend      {}, {} vCPUs", self.backend, self.vcpus);
        let _ = writeln!(text, "boot         microseconds since the start of nacre");
        for (phase, at) in &self.boot_us {
            let _ = writeln!(text, "  {:<18} {at:>12.0}", phase[2..].replace('_', " "));
        }
        let _ = writeln!(text, "vCPU run     microseconds in the guest");
        for (vcpu, run) in self.vcpu_run_us.iter().enumerate() {
            let _ = writeln!(
                text,
                "  {:<18} {run:>12.0}",
                if vcpu == 0 { "normal".into() } else { format!("worker {vcpu}") }
            );
        }
        let _ = writeln!(
            text,
            "memory       {:.1} MiB committed by the host, {:.1} MiB promised at the peak, {:.1} MiB given back",
            mib(self.memory_committed_bytes),
            mib(self.memory_promised_peak_bytes),
            mib(self.memory_released_bytes)
        );
        let tasks = &self.tasks;
        let _ = writeln!(
            text,
            "tasks        {} spawned, {} ended, moved {} times, preempted {} times",
            tasks.spawned, tasks.ended, tasks.moves, tasks.preemptions
        );
        let _ = writeln!(
            text,
            "  CPU time           {:.0} us in all; a task {:.0} to {:.0}, mean {:.0}",
            tasks.cpu_us, tasks.cpu_min_us, tasks.cpu_max_us, tasks.cpu_mean_us
        );
        for (title, counts) in [("exits", &self.exits), ("guest", &self.guest)] {
            let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            let _ = writeln!(text, "{title:<12} {}", counts.join(", "));
        }
        text
    }
}

/// Prints and writes the report as the plan asks.
///
/// # Errors
/// If the file can't be written.
pub fn report(report: &Report, plan: &RunPlan) -> Result<(), Failure> {
    let json = || serde_json::to_string_pretty(report).unwrap_or_default();
    if plan.stats.print {
        eprintln!("{}", if plan.json { json() } else { report.table() });
    }
    match &plan.stats.json_file {
        Some(path) => std::fs::write(path, json() + "\n").map_err(|error| {
            Failure::new(path.display(), format_args!("{error}; choose another file for --stats-json"))
        }),
        None => Ok(()),
    }
}
