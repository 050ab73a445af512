//! One parallel job on `k` workers: what a delayed scaling decision costs.
//!
//! The job is `k` x its ideal time of CPU time in pieces of 10 ms, all there at the beginning, on a machine of `k`
//! cores. The `nacre` arm runs it through the policy, wakes and doorbells as in the big simulation; more than 63 workers
//! are two CVMs or more. The sampled arms start with one vCPU and decide every so often, at any phase: the reported
//! time is the mean over phases. How the published system decided is not public; two rules are shown:
//! - *jump*: at each sample as many vCPUs as there is work for: the best that sampling can do, half an interval late;
//! - *step*: one vCPU more when the CVM was busy for two whole intervals, which is what autoscalers do that must not
//!   flap. It comes close to the published figures: 22, 25 and 27 s for an ideal of 20 s on 4 vCPUs.

use super::nacre::Nacre;
use super::scenario::{Scenario, ScenarioError};
use super::workload::{Arrival, Workload};
use serde::{Deserialize, Serialize};

/// Sampling intervals of the published system, in seconds.
const INTERVALS: [f64; 3] = [0.5, 1.0, 2.0];

/// Phases of the sampler that the mean is over.
const PHASES: u32 = 64;

/// Length of a piece of the job, in nanoseconds.
const PIECE_NS: u64 = 10_000_000;

/// How long one job took in all arms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParallelJob {
    /// Workers, and cores.
    pub workers: u32,
    /// Time with all workers from the first instant, in seconds.
    pub ideal_s: f64,
    /// Each arm's time.
    pub arms: Vec<ParallelArm>,
}

/// How long the job took in one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParallelArm {
    /// The arm's name.
    pub title: String,
    /// Seconds from the beginning to the end of the last piece.
    pub seconds: f64,
    /// The same over the ideal time.
    pub over_ideal: f64,
}

/// Runs one job of `ideal_s` seconds on `k` workers in all arms, with the costs of `scenario`.
///
/// # Errors
/// If a number is out of its range.
pub fn parallel_job(k: u32, ideal_s: f64, scenario: &Scenario) -> Result<ParallelJob, ScenarioError> {
    let scenario = Scenario {
        cores: k,
        workers: u8::try_from(k.min(63)).unwrap_or(63),
        cvms: k.div_ceil(63),
        min_workers: 0,
        parallel: vec![k],
        parallel_seconds: ideal_s,
        ..scenario.clone()
    };
    scenario.check()?;
    let mut arms = vec![("nacre (events)".to_string(), nacre_seconds(&scenario)?)];
    for interval in INTERVALS {
        arms.push((format!("sampled {interval} s, jump"), mean_seconds(k, ideal_s, interval, jump)));
    }
    for interval in INTERVALS {
        arms.push((format!("sampled {interval} s, step"), mean_seconds(k, ideal_s, interval, step)));
    }
    let arms = arms
        .into_iter()
        .map(|(title, seconds)| ParallelArm { title, seconds, over_ideal: seconds / ideal_s })
        .collect();
    Ok(ParallelJob { workers: k, ideal_s, arms })
}

fn nacre_seconds(scenario: &Scenario) -> Result<f64, ScenarioError> {
    let k = scenario.cores;
    let per_worker = (scenario.parallel_seconds * 1e9).round() as u64;
    let pieces = per_worker.div_ceil(PIECE_NS);
    let mut arrivals = Vec::new();
    for cvm in 0..scenario.cvms {
        let workers = u64::from(k / scenario.cvms + u32::from(cvm < k % scenario.cvms));
        for piece in 0..pieces {
            let service = per_worker * (piece + 1) / pieces - per_worker * piece / pieces;
            arrivals.extend((0..workers).map(|_| Arrival { at: 0, cvm, service }));
        }
    }
    let workload = Workload { arrivals, cvms: scenario.cvms };
    let outcome = Nacre::new(scenario, &workload, None)?.run(&mut |_| {});
    Ok(outcome.end as f64 / 1e9)
}

/// The mean time over phases of the sampler.
fn mean_seconds(k: u32, ideal_s: f64, interval: f64, rule: impl Fn(u32, u32, u32) -> u32) -> f64 {
    let seconds = |phase: f64| {
        let (mut left, mut now, mut vcpus) = (ideal_s * f64::from(k), 0.0, 1);
        let mut next = phase * interval;
        // A sample that came during the job has seen this many whole intervals.
        let mut whole = 0;
        while left > (next - now) * f64::from(vcpus) {
            left -= (next - now) * f64::from(vcpus);
            now = next;
            vcpus = rule(k, vcpus, whole);
            whole += 1;
            next += interval;
        }
        now + left / f64::from(vcpus)
    };
    (0..PHASES).map(|phase| seconds((f64::from(phase) + 0.5) / f64::from(PHASES))).sum::<f64>()
        / f64::from(PHASES)
}

fn jump(k: u32, _vcpus: u32, _whole: u32) -> u32 {
    k
}

/// One more after the second, the fourth, ... whole interval.
fn step(k: u32, vcpus: u32, whole: u32) -> u32 {
    if whole > 0 && whole.is_multiple_of(2) { (vcpus + 1).min(k) } else { vcpus }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(k: u32) -> ParallelJob {
        parallel_job(k, 20.0, &Scenario::default()).expect("a possible job")
    }

    #[test]
    fn on_events_the_job_takes_the_ideal_time_and_a_wake() {
        for k in [4, 16, 63, 64] {
            let job = job(k);
            let wake = Scenario::default().costs.wake_ns as f64 / 1e9;
            assert!(job.arms[0].seconds >= 20.0 && job.arms[0].seconds <= 1.01 * (20.0 + wake), "{job:?}");
        }
    }

    #[test]
    fn samples_cost_what_was_published() {
        let job = job(4);
        for (arm, published) in job.arms[4..].iter().zip([22.0, 25.0, 27.0]) {
            assert!((arm.seconds / published - 1.0).abs() < 0.08, "{arm:?}, published {published}");
        }
        for (arm, interval) in job.arms[1..4].iter().zip(INTERVALS) {
            let expected = 20.0 + 0.75 * interval / 2.0;
            assert!((arm.seconds - expected).abs() < 0.001, "{arm:?}, expected {expected}");
        }
    }
}
