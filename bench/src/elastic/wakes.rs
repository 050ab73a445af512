//! Waking a worker: bare, through the scheduler, while it spins; and what spinning costs and saves for Poisson arrivals and
//! for bursts. All by the guest's own clock (debug image).

use super::{Options, arm};
use crate::report::{Row, Target, Unit};
use crate::summary::{Summary, order};
use crate::{BenchError, Progress, cvm};
use nacre_abi::elastic::SPIN_LIMIT_DEFAULT_NS;
use nacre_abi::message::SelfTest;
use nacre_vmm::Cvm;
use serde::Serialize;
use std::time::Duration;

const MEMORY_BYTES: u64 = 256 << 20;
/// The most arrivals one measurement may have: its answer is one message.
const MAX_ARRIVALS: usize = 2000;
/// First samples of each measurement that are not counted.
const WARM_UP: usize = 20;
/// Long enough for a worker to park and for its thread to sleep.
const DORMANT_GAP_NS: u32 = 600_000;
/// Short enough that it still spins.
const SPINNING_GAP_NS: u32 = 20_000;
/// Mean time between two Poisson arrivals: 1,000 a second.
const POISSON_MEAN_NS: f64 = 1e6;
/// Requests of a burst, time between two of them, and from one burst to the next.
const BURST: usize = 10;
const BURST_GAP_NS: u32 = 50_000;
const BURST_PERIOD_NS: u32 = 10_000_000;

/// Spin limits that are compared, in microseconds; the default is among them.
pub(super) const SPIN_LIMITS_US: [u64; 7] = [0, 20, 50, SPIN_LIMIT_DEFAULT_NS / 1000, 500, 2_000, 10_000];

const WAKE_TARGET: Target = Target::Ratio(1.3);
const SPINNING_TARGET: Target = Target::Value(1e3);
const CPU_TARGET: Target = Target::Value(25.0);
const BURST_TARGET: Target = Target::Value(5e3);

/// What one spin limit gives.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SpinPoint {
    /// The limit in microseconds.
    pub spin_limit_us: u64,
    /// Whether it is the default.
    pub default: bool,
    /// Nanoseconds from an arrival to the first instruction of its task.
    pub latency_ns: Summary,
    /// The same without the first of each burst; all of them for Poisson arrivals.
    pub later_ns: Summary,
    /// CPU time of the worker's thread, in percent of the time it took.
    pub worker_cpu_percent: f64,
}

fn launch() -> Result<Cvm, BenchError> {
    cvm::launch(MEMORY_BYTES, true)
}

/// Nanoseconds of bare wakes, the warm-up left out.
fn floor(cvm: &Cvm, gaps: &[u32]) -> Result<Vec<f64>, BenchError> {
    Ok(cvm::self_test(cvm, SelfTest::WakeFloor, gaps)?.into_iter().skip(WARM_UP).collect())
}

/// The nanoseconds it took, and each arrival's latency.
fn tasks(cvm: &Cvm, gaps: &[u32]) -> Result<(f64, Vec<f64>), BenchError> {
    let mut samples = cvm::self_test(cvm, SelfTest::Wakes, gaps)?;
    let elapsed = samples.remove(0);
    Ok((elapsed, samples))
}

/// Rows for a dormant and for a spinning worker.
pub(super) fn latency(options: &Options, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let cvm = launch()?;
    let count = options.wakes.min(MAX_ARRIVALS - WARM_UP);
    let (mut bare, mut bare_medians) = (Vec::new(), Vec::new());
    let (mut woken, mut woken_medians) = (Vec::new(), Vec::new());
    let mut spinning = Vec::new();
    for round in 0..options.wake_rounds {
        progress.step("wakes");
        for part in order(round, 2) {
            let (all, medians, samples) = if part == 0 {
                (&mut bare, &mut bare_medians, floor(&cvm, &vec![DORMANT_GAP_NS; count + WARM_UP])?)
            } else {
                let (_, samples) = tasks(&cvm, &vec![DORMANT_GAP_NS; count + WARM_UP])?;
                (&mut woken, &mut woken_medians, samples[WARM_UP..].to_vec())
            };
            medians.extend(Summary::of(&samples).map(|summary| summary.median));
            all.extend(samples);
        }
        let (_, samples) = tasks(&cvm, &vec![SPINNING_GAP_NS; count + WARM_UP])?;
        spinning.extend_from_slice(&samples[WARM_UP..]);
    }
    let rows = [
        Row::new("wake: the floor (doorbell, thread, entry)", arm::BARE, Unit::Nanoseconds, &bare),
        Row::new(
            "wake: dormant worker, to the task's first instruction",
            arm::CVM,
            Unit::Nanoseconds,
            &woken,
        )
        .map(|row| row.against(arm::BARE, &woken_medians, &bare_medians).target(WAKE_TARGET)),
        Row::new("wake: spinning worker", arm::CVM, Unit::Nanoseconds, &spinning)
            .map(|row| row.target(SPINNING_TARGET)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// Poisson arrivals under each spin limit, and bare wakes at the same times, in nanoseconds: a CPU that has been idle for
/// longer takes longer to wake, whoever wakes it.
pub(super) fn poisson(
    options: &Options,
    progress: &dyn Progress,
) -> Result<(Vec<SpinPoint>, Vec<f64>), BenchError> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let count = options.arrivals.min(MAX_ARRIVALS);
    let gaps: Vec<u32> = (0..count).map(|_| random.exponential(POISSON_MEAN_NS) as u32).collect();
    let points = each_limit(&gaps, |_| true, "Poisson arrivals", progress)?;
    Ok((points, floor(&launch()?, &gaps)?))
}

/// Bursts under each spin limit.
pub(super) fn bursts(options: &Options, progress: &dyn Progress) -> Result<Vec<SpinPoint>, BenchError> {
    let count = options.arrivals.min(MAX_ARRIVALS);
    let pause = BURST_PERIOD_NS - (BURST as u32 - 1) * BURST_GAP_NS;
    let gaps: Vec<u32> =
        (0..count).map(|arrival| if arrival % BURST == 0 { pause } else { BURST_GAP_NS }).collect();
    each_limit(&gaps, |arrival| arrival % BURST != 0, "bursts", progress)
}

fn each_limit(
    gaps: &[u32],
    later: impl Fn(usize) -> bool,
    doing: &str,
    progress: &dyn Progress,
) -> Result<Vec<SpinPoint>, BenchError> {
    let mut points = Vec::new();
    for spin_limit_us in SPIN_LIMITS_US {
        progress.step(doing);
        let cvm = launch()?;
        cvm.set_spin_limit(Duration::from_micros(spin_limit_us)).map_err(nacre_vmm::CvmError::from)?;
        // The worker learns what arrivals are like.
        tasks(&cvm, &gaps[..gaps.len().min(10 * WARM_UP)])?;
        let before = worker_cpu(&cvm)?;
        let (elapsed, samples) = tasks(&cvm, gaps)?;
        let cpu = worker_cpu(&cvm)?.saturating_sub(before);
        let later: Vec<f64> =
            samples.iter().enumerate().filter(|(arrival, _)| later(*arrival)).map(|(_, ns)| *ns).collect();
        let none = || BenchError::program("the guest's self-test", "gave no samples");
        points.push(SpinPoint {
            spin_limit_us,
            default: spin_limit_us * 1000 == SPIN_LIMIT_DEFAULT_NS,
            latency_ns: Summary::of(&samples).ok_or_else(none)?,
            later_ns: Summary::of(&later).ok_or_else(none)?,
            worker_cpu_percent: cpu.as_nanos() as f64 / elapsed.max(1.0) * 100.0,
        });
    }
    Ok(points)
}

fn worker_cpu(cvm: &Cvm) -> Result<Duration, BenchError> {
    let stats = cvm.cpu().map_err(nacre_vmm::CvmError::from)?;
    Ok(stats.vcpus.iter().skip(1).map(|vcpu| vcpu.cpu_time).sum())
}

/// What the default spin limit gives, as rows. `floor`: bare wakes at the times of the Poisson arrivals.
pub(super) fn spin_rows(poisson: &[SpinPoint], bursts: &[SpinPoint], floor: &[f64]) -> Vec<Row> {
    let row = |name: &str, arm, unit, value: Summary| {
        Row::new(name, arm, unit, &[value.median]).map(|row| Row { value, ..row })
    };
    let percent = |name: &str, percent: f64| Row::new(name, arm::CVM, Unit::Percent, &[percent]);
    let mut rows = Vec::new();
    let floor = Summary::of(floor);
    if let (Some(point), Some(floor)) = (poisson.iter().find(|point| point.default), floor) {
        rows.push(row("arrivals: the floor at the same times", arm::BARE, Unit::Nanoseconds, floor));
        rows.push(row("arrivals: 1,000/s, Poisson", arm::CVM, Unit::Nanoseconds, point.latency_ns).map(
            |row| row.against(arm::BARE, &[point.latency_ns.median], &[floor.median]).target(WAKE_TARGET),
        ));
        rows.push(
            percent("arrivals: CPU of the worker", point.worker_cpu_percent)
                .map(|row| row.target(CPU_TARGET)),
        );
    }
    if let Some(point) = bursts.iter().find(|point| point.default) {
        let name = format!("bursts of {BURST}, {} us apart: requests 2 to {BURST}", BURST_GAP_NS / 1000);
        rows.push(
            row(&name, arm::CVM, Unit::Nanoseconds, point.later_ns).map(|row| row.target(BURST_TARGET)),
        );
        rows.push(percent("bursts: CPU of the worker", point.worker_cpu_percent));
    }
    rows.into_iter().flatten().collect()
}

/// xorshift64*: the same arrivals for every arm and every run.
struct Random(u64);

impl Random {
    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        (bits + 1) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_mean_and_the_spread_of_a_poisson_process() {
        let mut random = Random(1);
        let samples: Vec<f64> = (0..100_000).map(|_| random.exponential(100.0)).collect();
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / samples.len() as f64;
        assert!(
            (99.0..101.0).contains(&mean) && (98.0..102.0).contains(&variance.sqrt()),
            "{mean} {variance}"
        );
    }

    #[test]
    fn the_default_is_among_the_limits() {
        assert_eq!(SPIN_LIMITS_US.iter().filter(|us| **us * 1000 == SPIN_LIMIT_DEFAULT_NS).count(), 1);
    }
}
