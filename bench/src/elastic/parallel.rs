//! A job in as many equal parts as the machine has CPUs: on workers that were all dormant, against the same parts as
//! threads of this process.

use super::work::{Pause, Workshop};
use super::{Options, arm};
use crate::report::{Row, Target, Unit};
use crate::summary::order;
use crate::{BenchError, Progress, machine};
use nacre_vmm::program::{Exit, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};
use std::time::{Duration, Instant};

const MEMORY_BYTES: u64 = 512 << 20;
const TARGET: Target = Target::Ratio(1.01);

pub(super) fn measure(
    options: &Options,
    workshop: &Workshop,
    progress: &dyn Progress,
) -> Result<Vec<Row>, BenchError> {
    let parts = machine::Machine::this().cpus.clamp(1, 63);
    let work = workshop.make(options.parallel_work, 1, Pause::None)?;
    let cvm =
        Cvm::launch(CvmConfig { workers: parts as u32, memory_bytes: MEMORY_BYTES, ..CvmConfig::default() })?;
    let (mut inside, mut beside) = (Vec::new(), Vec::new());
    for round in 0..options.parallel_rounds {
        progress.step("a parallel job");
        for part in order(round, 2) {
            if part == 0 {
                inside.push(in_cvm(&cvm, &work.code, parts)?.as_nanos() as f64);
            } else {
                beside.push(as_threads(&work.host, parts)?.as_nanos() as f64);
            }
        }
    }
    let name = format!("parallel: a job on {parts} workers");
    let row = Row::new(name, arm::CVM, Unit::Nanoseconds, &inside);
    Ok(row.map(|row| row.against(arm::THREADS, &inside, &beside).target(TARGET)).into_iter().collect())
}

/// From the first start to the last end.
fn in_cvm(cvm: &Cvm, code: &[u8], parts: usize) -> Result<Duration, BenchError> {
    let spec = ProgramSpec { code, args: vec!["work".into()], ..ProgramSpec::default() };
    let programs = (0..parts).map(|_| cvm.load(&spec)).collect::<Result<Vec<_>, _>>()?;
    cvm.stats()?;
    let begin = Instant::now();
    for program in &programs {
        program.start()?;
    }
    for program in &programs {
        let (exit, ..) = program.wait_to_end()?;
        if exit != Exit::Code(0) {
            return Err(BenchError::program("work", format!("ended with {exit:?}")));
        }
    }
    Ok(begin.elapsed())
}

fn as_threads(program: &crate::host::HostProgram, parts: usize) -> Result<Duration, BenchError> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..parts).map(|_| scope.spawn(|| program.run(vec!["work".into()]))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(run) => run.map(drop),
            Err(_) => Err(BenchError::program("work", "panicked")),
        })
    })?;
    Ok(begin.elapsed())
}
