//! Two CVMs on two CPUs: each has a burst of work in its turn and short tasks all the time. Elastic: both may use both CPUs,
//! by one manager. Split: each has one worker.

use super::work::{Pause, Workshop};
use super::{Options, arm};
use crate::report::{Row, Target, Unit};
use crate::summary::{Summary, order};
use crate::{BenchError, Progress};
use nacre_vmm::elastic::{CpuConfig, CpuManager, ElasticConfig};
use nacre_vmm::program::{Exit, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig, CvmError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MEMORY_BYTES: u64 = 512 << 20;
const CPUS: u32 = 2;
/// Tasks of a burst, and the work of each.
const BURST: usize = 16;
const PIECE: Duration = Duration::from_millis(20);
/// The work of a short task, and the time from one's end to the next.
const SHORT: Duration = Duration::from_micros(500);
const SHORT_PAUSE: Duration = Duration::from_millis(50);
/// Bursts of each tenant in a round.
const BURSTS: usize = 4;

const THROUGHPUT_TARGET: Target = Target::RatioAtLeast(1.8);
const SHORT_TARGET: Target = Target::P99Ratio(1.0);

/// What a round of one arm gave.
#[derive(Default)]
struct Round {
    /// Tasks a second, for each burst.
    throughput: Vec<f64>,
    /// Nanoseconds of each short task.
    short_ns: Vec<f64>,
}

pub(super) fn measure(
    options: &Options,
    workshop: &Workshop,
    progress: &dyn Progress,
) -> Result<Vec<Row>, BenchError> {
    let piece = workshop.make(PIECE, 1, Pause::None)?.code;
    let short = workshop.make(SHORT, 1, Pause::None)?.code;
    let mut arms = [Round::default(), Round::default()];
    let mut medians = [Vec::new(), Vec::new()];
    for round in 0..options.tenant_rounds {
        progress.step("two tenants");
        for part in order(round, 2) {
            let tenants = if part == 0 { elastic()? } else { split()? };
            let result = alternate(&tenants, &piece, &short)?;
            medians[part].extend(Summary::of(&result.throughput).map(|summary| summary.median));
            arms[part].throughput.extend(result.throughput);
            arms[part].short_ns.extend(result.short_ns);
        }
    }
    let [elastic, split] = arms;
    let rows = [
        Row::new(
            "tenants: throughput of the one with a burst",
            arm::ELASTIC,
            Unit::PerSecond,
            &elastic.throughput,
        )
        .map(|row| row.against(arm::SPLIT, &medians[0], &medians[1]).target(THROUGHPUT_TARGET)),
        Row::new("tenants: short tasks", arm::ELASTIC, Unit::Nanoseconds, &elastic.short_ns)
            .map(|row| row.against(arm::SPLIT, &elastic.short_ns, &split.short_ns).target(SHORT_TARGET)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

fn elastic() -> Result<[Cvm; 2], CvmError> {
    let manager = CpuManager::new(CpuConfig::new(CPUS))?;
    let launch = || {
        let elastic = ElasticConfig { manager: Some(manager.clone()), ..ElasticConfig::default() };
        Cvm::launch(CvmConfig { workers: CPUS, memory_bytes: MEMORY_BYTES, elastic, ..CvmConfig::default() })
    };
    Ok([launch()?, launch()?])
}

fn split() -> Result<[Cvm; 2], CvmError> {
    let launch =
        || Cvm::launch(CvmConfig { workers: CPUS / 2, memory_bytes: MEMORY_BYTES, ..CvmConfig::default() });
    Ok([launch()?, launch()?])
}

/// Bursts in turns, and short tasks in both all the time.
fn alternate(tenants: &[Cvm; 2], piece: &[u8], short: &[u8]) -> Result<Round, BenchError> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        let shorts: Vec<_> =
            tenants.iter().map(|cvm| scope.spawn(move || short_tasks(cvm, short, over))).collect();
        let mut throughput = Vec::new();
        let bursts = (0..BURSTS).flat_map(|_| tenants).try_for_each(|cvm| {
            throughput.push(burst(cvm, piece)?);
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        let mut short_ns = Vec::new();
        for thread in shorts {
            let samples =
                thread.join().map_err(|_| BenchError::program("the load generator", "panicked"))??;
            short_ns.extend(samples);
        }
        bursts.map(|()| Round { throughput, short_ns })
    })
}

/// Tasks a second.
fn burst(cvm: &Cvm, code: &[u8]) -> Result<f64, BenchError> {
    let programs = (0..BURST).map(|_| cvm.load(&spec(code))).collect::<Result<Vec<_>, _>>()?;
    cvm.stats()?;
    let begin = Instant::now();
    for program in &programs {
        program.start()?;
    }
    for program in &programs {
        check(program.wait_to_end()?.0)?;
    }
    Ok(BURST as f64 / begin.elapsed().as_secs_f64())
}

fn short_tasks(cvm: &Cvm, code: &[u8], over: &AtomicBool) -> Result<Vec<f64>, BenchError> {
    let mut samples = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let program = cvm.load(&spec(code))?;
        // The pause between two arrivals: this is what arrives, not a wait for something.
        std::thread::sleep(SHORT_PAUSE);
        let begin = Instant::now();
        check(program.run_to_end()?.0)?;
        samples.push(begin.elapsed().as_nanos() as f64);
    }
    Ok(samples)
}

fn spec(code: &[u8]) -> ProgramSpec<'_> {
    ProgramSpec { code, args: vec!["work".into()], ..ProgramSpec::default() }
}

fn check(exit: Exit) -> Result<(), BenchError> {
    if exit == Exit::Code(0) {
        Ok(())
    } else {
        Err(BenchError::program("work", format!("ended with {exit:?}")))
    }
}
