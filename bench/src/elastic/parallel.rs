//! A job in as many equal parts as the machine has CPUs: on workers that were all dormant, against the same parts as
//! threads of this process.

use super::work::{Pause, Workshop};
use super::{Options, arm};
use crate::report::{Row, Target, Unit};
use crate::summary::order;
use crate::{BenchError, Progress, machine};
use nacre_elastic::sim::{Costs, Scenario, parallel_job};
use nacre_vmm::program::{Exit, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};
use std::time::{Duration, Instant};

const MEMORY_BYTES: u64 = 512 << 20;
const TARGET: Target = Target::Ratio(1.01);
/// Workers of the simulated jobs, and their ideal time in seconds: that of the published system's test.
const SIMULATED: [u32; 5] = [4, 8, 16, 32, 64];
const SIMULATED_SECONDS: f64 = 20.0;

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

/// The same job on more workers than this machine has CPUs, simulated with what was measured here.
pub(super) fn simulated(costs: Costs) -> Result<Vec<Row>, BenchError> {
    let scenario = Scenario { costs, ..Scenario::default() };
    let mut rows = Vec::new();
    for workers in SIMULATED {
        let job = parallel_job(workers, SIMULATED_SECONDS, &scenario)
            .map_err(|error| BenchError::program("the simulation", error.to_string()))?;
        for (index, arm) in job.arms.iter().enumerate() {
            let name = format!("parallel, simulated: {workers} workers, {}", arm.title);
            let row = Row::new(name, super::arm::SIMULATED, Unit::Nanoseconds, &[arm.seconds * 1e9]);
            let row =
                row.map(|row| row.against(super::arm::IDEAL, &[arm.seconds * 1e9], &[job.ideal_s * 1e9]));
            // The first arm is the CPU manager's; the others, the published system's rule among them, are shown once.
            rows.extend(match index {
                0 => row.map(|row| row.target(TARGET)),
                _ if workers == SIMULATED[0] => row,
                _ => None,
            });
        }
    }
    Ok(rows)
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
