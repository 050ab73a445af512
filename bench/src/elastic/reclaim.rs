//! From the host's decision that a worker must park to its exit, while it computes; its task goes on elsewhere.

use super::work::{Pause, Workshop};
use super::{Options, arm};
use crate::report::{Row, Target, Unit};
use crate::{BenchError, Progress};
use nacre_abi::VcpuId;
use nacre_vmm::elastic::Ended;
use nacre_vmm::program::{Exit, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig, CvmError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MEMORY_BYTES: u64 = 512 << 20;
/// A second is left free, so that the task has where to go.
const WORKERS: u32 = 2;
/// Work for as long as the reclaims take.
const WORK: Duration = Duration::from_secs(3);
/// How long the task computes between one reclaim and the next.
const PAUSE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(2);
const TARGET: Target = Target::P99(100e3);

pub(super) fn measure(
    options: &Options,
    workshop: &Workshop,
    progress: &dyn Progress,
) -> Result<Vec<Row>, BenchError> {
    progress.step("reclaims");
    let work = workshop.make(WORK, 1, Pause::None)?;
    let expected = work.host.run(vec!["work".into()])?.output;
    let cvm =
        Cvm::launch(CvmConfig { workers: WORKERS, memory_bytes: MEMORY_BYTES, ..CvmConfig::default() })?;
    let (mut samples, mut forced) = (Vec::new(), 0);
    while samples.len() < options.reclaims {
        let program =
            cvm.load(&ProgramSpec { code: &work.code, args: vec!["work".into()], ..ProgramSpec::default() })?;
        let over = AtomicBool::new(false);
        let (exit, output, _) = std::thread::scope(|scope| {
            let over = &over;
            let running = scope.spawn(move || {
                let end = program.run_to_end();
                over.store(true, Ordering::Relaxed);
                end
            });
            while !over.load(Ordering::Relaxed) && samples.len() < options.reclaims {
                // It computes meanwhile: a reclaim is of a worker that is at work, not of one that is just being woken.
                std::thread::sleep(PAUSE);
                match one(&cvm)? {
                    Some((after, Ended::Parked)) => samples.push(after.as_nanos() as f64),
                    Some((_, Ended::Forced)) => forced += 1,
                    _ => {}
                }
            }
            running.join().map_err(|_| BenchError::program("work", "panicked"))?.map_err(BenchError::from)
        })?;
        if exit != Exit::Code(0) || output != expected {
            return Err(BenchError::program("work", "computed something else when it was moved"));
        }
    }
    let rows = [
        Row::new("reclaim: decision to parked, computing Wasm", arm::CVM, Unit::Nanoseconds, &samples)
            .map(|row| row.target(TARGET)),
        Row::new("reclaim: stopped by force", arm::CVM, Unit::Count, &[f64::from(forced)]),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Reclaims the worker that computes, if there is one; it may run again afterwards.
fn one(cvm: &Cvm) -> Result<Option<(Duration, Ended)>, BenchError> {
    let active = cvm.cpu().map_err(CvmError::from)?.active;
    let Some(worker) = VcpuId::new(active.trailing_zeros()).filter(|worker| worker.is_worker()) else {
        return Ok(None);
    };
    let pending = cvm.reclaim(worker).map_err(CvmError::from)?;
    let reclaimed = pending.wait(PATIENCE);
    cvm.allow(worker).map_err(CvmError::from)?;
    let Some(reclaimed) = reclaimed else {
        return Err(BenchError::program("a worker", format!("did not park within {PATIENCE:?}")));
    };
    Ok(Some((reclaimed.after, reclaimed.ended)))
}
