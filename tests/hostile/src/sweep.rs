//! Many seeds, some at a time, with a guard against a host that hangs: the process then ends with the seed's replay line.

use crate::plan::{Class, Plan};
use crate::programs::code;
use crate::run::{Patience, Report, Verdict, run};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A seed that takes longer hangs the host itself: far longer than the patience with the guest.
const HOST_HANGS: Duration = Duration::from_secs(90);

/// What became of the seeds.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many seeds of a class had a verdict, without its reason.
    pub verdicts: BTreeMap<String, u64>,
    /// How often the host did what.
    pub done: BTreeMap<String, u64>,
    /// Plans that did not hold, and what did not.
    pub failures: Vec<(Plan, String)>,
    /// Seeds run.
    pub seeds: u64,
    /// Time it took.
    pub time: Duration,
}

impl Summary {
    fn add(&mut self, plan: Plan, result: Result<Report, String>) {
        self.seeds += 1;
        match result {
            Ok(report) => {
                let verdict = match (&report.verdict, plan.class) {
                    (Verdict::Right, _) => "right".to_string(),
                    (Verdict::Stalled, _) => "stalled".to_string(),
                    (Verdict::Refused(why), _) => format!("refused: {}", short(why)),
                    (Verdict::Ended(why), _) => short(why),
                };
                let of = if plan.class == Class::Launch {
                    format!("{:?}", plan.lie)
                } else {
                    format!("{:?}", plan.class)
                };
                *self.verdicts.entry(format!("{of}: {verdict}")).or_default() += 1;
                report
                    .done
                    .into_iter()
                    .for_each(|(what, count)| *self.done.entry(what).or_default() += count);
            }
            Err(what) => self.failures.push((plan, what)),
        }
    }
}

/// The beginning of a reason, without the numbers in it, so that alike ones are counted together.
fn short(text: &str) -> String {
    let text = text.replace("; its last words are above", "");
    let words = text.split(' ').filter(|word| !word.contains("0x"));
    words.collect::<Vec<_>>().join(" ").chars().take(110).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} seeds on KVM in {:.1} s", self.seeds, self.time.as_secs_f64())?;
        for (verdict, count) in &self.verdicts {
            writeln!(f, "{count:7}  {verdict}")?;
        }
        for (what, count) in &self.done {
            writeln!(f, "{count:7} x {what}")?;
        }
        for (plan, what) in &self.failures {
            writeln!(f, "FAILED {plan}\n  {what}\n  replay: {}", plan.replay())?;
        }
        write!(f, "{} failed", self.failures.len())
    }
}

/// Runs the seeds, `threads` at a time, each `repeat` times; stops early after ten failures.
///
/// # Errors
/// If the program under attack does not compile.
pub fn sweep(seeds: Range<u64>, repeat: u64, threads: usize) -> Result<Summary> {
    let code = code()?;
    let begin = Instant::now();
    let (next, summary) = (AtomicU64::new(0), Mutex::new(Summary::default()));
    let count = (seeds.end - seeds.start) * repeat;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let failed = summary.lock().unwrap_or_else(PoisonError::into_inner).failures.len();
                    if number >= count || failed >= 10 {
                        return;
                    }
                    let plan = Plan::from_seed(seeds.start + number / repeat);
                    let result = guarded(&plan, || {
                        let caught = catch_unwind(AssertUnwindSafe(|| run(&plan, &code)));
                        caught.unwrap_or_else(|_| Err("the host panicked".into()))
                    });
                    summary.lock().unwrap_or_else(PoisonError::into_inner).add(plan, result);
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.time = begin.elapsed();
    Ok(summary)
}

/// The threads of this process and what each waits for in the kernel.
fn threads() -> String {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let all = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    all.map(|task| {
        format!("{} in {}, ", read(task.path().join("comm")).trim(), read(task.path().join("wchan")))
    })
    .collect()
}

/// Ends the process if `body` does not come back.
fn guarded<T>(plan: &Plan, body: impl FnOnce() -> T) -> T {
    let (alive, watch): (Sender<()>, _) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if !Patience::new(HOST_HANGS).wait_for(&watch) {
                eprintln!("FAILED {plan}\n  the host hangs: {}\n  replay: {}", threads(), plan.replay());
                std::process::exit(1);
            }
        });
        let result = body();
        drop(alive);
        result
    })
}
