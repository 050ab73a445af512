//! A discrete-event simulation of elastic CVMs: the same policy code as in the node, with measured costs, beside the
//! ways of sizing CVMs that exist without Worker vCPUs.
//!
//! [`run`] plays one list of arrivals (a trace, or bursts from a seed) to every [`Arm`] and reports response times and
//! CPU cost; [`parallel_job`] shows what a delayed decision costs one parallel job; [`plot::write_svgs`] draws it. The
//! same scenario gives the same report on every machine. Each arm's model is in the documentation of its module:
//! `nacre.rs`, `scaled.rs`, `parallel.rs`.

mod nacre;
mod parallel;
pub mod plot;
mod report;
mod scaled;
mod scenario;
mod workload;

pub use parallel::{ParallelArm, ParallelJob, parallel_job};
pub use report::{ArmReport, ExampleReport, Granted, Report, Response};
pub use scenario::{Arm, Bursts, Costs, MAX_CORES, MAX_CVMS, MAX_TASKS, Scenario, ScenarioError};
pub use workload::{Arrival, Workload};

use report::{ArmOutcome, Example};

/// Simulates all arms of `scenario`, one after the other. `progress` is told how much is done, from 0 to 1.
///
/// # Errors
/// If the scenario is impossible or its trace is wrong.
pub fn run(scenario: &Scenario, mut progress: impl FnMut(f64)) -> Result<Report, ScenarioError> {
    scenario.check()?;
    let workload = Workload::of(scenario)?;
    let example = Example::of(&workload);
    let mut arms = Vec::new();
    let mut granted = Vec::new();
    let parts = (scenario.arms.len() + scenario.parallel.len()) as f64;
    for (&arm, done) in scenario.arms.iter().zip(0..) {
        let part = |fraction: f64| (f64::from(done) + fraction) / parts;
        let outcome = run_arm(arm, scenario, &workload, example.as_ref(), &mut |fraction| {
            progress(part(fraction));
        })?;
        if arm != Arm::BootPerBurst {
            granted.push(Granted { arm, steps: outcome.granted.clone() });
        }
        arms.push(outcome.report(arm));
        progress(part(1.0));
    }
    let mut parallel = Vec::new();
    for (&workers, done) in scenario.parallel.iter().zip(scenario.arms.len() + 1..) {
        parallel.push(parallel_job(workers, scenario.parallel_seconds, scenario)?);
        progress(done as f64 / parts);
    }
    Ok(Report {
        scenario: scenario.clone(),
        cvms: workload.cvms,
        tasks: workload.arrivals.len(),
        work_core_s: workload.work() as f64 / 1e9,
        arms,
        example: example.map(|example| example.report(granted)),
        parallel,
    })
}

fn run_arm(
    arm: Arm,
    scenario: &Scenario,
    workload: &Workload,
    example: Option<&Example>,
    progress: &mut dyn FnMut(f64),
) -> Result<ArmOutcome, ScenarioError> {
    match arm {
        Arm::Nacre => Ok(nacre::Nacre::new(scenario, workload, example)?.run(progress)),
        _ => Ok(scaled::Scaled::new(arm, scenario, workload, example).run(progress)),
    }
}
