//! CPU time of a CVM that does nothing, and of one that works a tenth of the time, against the work alone.

use super::work::{Pause, Workshop};
use super::{Options, arm};
use crate::machine::process_cpu;
use crate::report::{Row, Target, Unit};
use crate::summary::order;
use crate::{BenchError, Progress, cvm};
use nacre_vmm::{Cvm, CvmConfig};
use std::time::Duration;

/// Workers of the idle CVM: all there can be.
const IDLE_WORKERS: u32 = 63;
const MEMORY_BYTES: u64 = 512 << 20;
/// A ten-thousandth of the time: what can't be told from nothing on a machine that does other things.
const IDLE_SHARE: f64 = 1e-4;
const PIECE: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_millis(90);
const ROUNDS: u32 = 30;
const DUTY_TARGET: Target = Target::Ratio(1.05);

/// An idle CVM.
pub(super) fn idle(options: &Options, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    progress.step("an idle CVM");
    let cvm =
        Cvm::launch(CvmConfig { workers: IDLE_WORKERS, memory_bytes: MEMORY_BYTES, ..CvmConfig::default() })?;
    // It answers: boot is over, and all workers were made.
    cvm.stats()?;
    let before = process_cpu();
    std::thread::sleep(options.idle);
    let used = process_cpu().saturating_sub(before).as_nanos() as f64;
    let name = format!("idle: CPU time in {:.0} s, {IDLE_WORKERS} workers", options.idle.as_secs_f64());
    let target = Target::Value(options.idle.as_nanos() as f64 * IDLE_SHARE);
    Ok(Row::new(name, arm::CVM, Unit::Nanoseconds, &[used])
        .map(|row| row.target(target))
        .into_iter()
        .collect())
}

/// Work a tenth of the time: a program that sleeps in between, one that polls, and one that has no pauses.
pub(super) fn duty(
    options: &Options,
    workshop: &Workshop,
    progress: &dyn Progress,
) -> Result<Vec<Row>, BenchError> {
    let programs = [
        workshop.make(PIECE, ROUNDS, Pause::None)?,
        workshop.make(PIECE, ROUNDS, Pause::Sleep(PAUSE))?,
        workshop.make(PIECE, ROUNDS, Pause::Poll(PAUSE))?,
    ];
    let cvm = cvm::launch(MEMORY_BYTES, false)?;
    let mut used = [const { Vec::new() }; 3];
    let mut outputs = Vec::new();
    for round in 0..options.duty_rounds {
        progress.step("work a tenth of the time");
        for part in order(round, programs.len()) {
            let run = cvm::run(&cvm, &programs[part].code, vec!["work".into()])?;
            used[part].push(run.cpu.as_nanos() as f64);
            outputs.push(run.output);
        }
    }
    if outputs.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(BenchError::program("work", "computed something else when it slept"));
    }
    let [work, elastic, always_on] = used;
    let row = |name: &str, arm, samples: &[f64]| {
        Row::new(name, arm, Unit::Nanoseconds, samples).map(|row| row.against(arm::WORK, samples, &work))
    };
    let rows = [
        row("10 % load: CPU time", arm::ELASTIC, &elastic).map(|row| row.target(DUTY_TARGET)),
        row("10 % load: CPU time", arm::ALWAYS_ON, &always_on),
    ];
    Ok(rows.into_iter().flatten().collect())
}
