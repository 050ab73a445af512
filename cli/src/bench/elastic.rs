//! `nacre bench elastic`: measures the elastic CPU of this machine, or simulates many cores and CVMs.

use super::{Bar, check_writable, failure, list, print};
use crate::args::BenchElasticArgs;
use crate::failure::Failure;
use crate::program::io_reason;
use indicatif::{ProgressBar, ProgressStyle};
use nacre_bench::elastic::{self, Options};
use nacre_elastic::sim::{self, Scenario, plot};
use std::fmt::Write;
use std::process::ExitCode;

/// `nacre bench elastic`.
///
/// # Errors
/// What went wrong, for the user. A target that is not met is told in the result and is no error.
pub fn command(args: &BenchElasticArgs) -> Result<ExitCode, Failure> {
    check_writable(args.json.as_ref())?;
    if args.simulate { simulate(args) } else { measure(args) }
}

fn measure(args: &BenchElasticArgs) -> Result<ExitCode, Failure> {
    let options = Options::default();
    let bar = Bar::new(options.steps());
    let report = elastic::run(&options, &bar);
    bar.0.finish_and_clear();
    let report = report.map_err(|error| failure("bench elastic", &error))?;
    let plots = match &args.report {
        Some(directory) => report.write_plots(directory).map_err(|error| failure("bench elastic", &error))?,
        None => Vec::new(),
    };
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| Failure::new("bench elastic", format_args!("{error}; report it")))?;
    print(&(report.report.table() + &list(&plots)), &json, args.json.as_ref())
}

fn simulate(args: &BenchElasticArgs) -> Result<ExitCode, Failure> {
    let scenario = scenario(args)?;
    let bar = ProgressBar::new(1000);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent} % simulated ({elapsed}, {eta} left)")
    {
        bar.set_style(style);
    }
    let report = sim::run(&scenario, |part| bar.set_position((part * 1000.0) as u64));
    bar.finish_and_clear();
    let report = report.map_err(|error| Failure::new("bench elastic --simulate", error))?;
    let plots = match &args.report {
        Some(directory) => plot::write_svgs(&report, directory)
            .map_err(|error| Failure::new("bench elastic --report", error))?,
        None => Vec::new(),
    };
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| Failure::new("bench elastic", format_args!("{error}; report it")))?;
    print(&(table(&report) + &list(&plots)), &json, args.json.as_ref())
}

/// The file's scenario, or the default, with what the command line says.
fn scenario(args: &BenchElasticArgs) -> Result<Scenario, Failure> {
    let mut scenario = match &args.scenario {
        None => Scenario::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                let why = io_reason(&error);
                Failure::new(path.display(), format_args!("can't be read: {why}; choose another --scenario"))
            })?;
            serde_json::from_str(&text).map_err(|error| {
                Failure::new(path.display(), format_args!("is no scenario: {error}; see docs/cpu-manager.md"))
            })?
        }
    };
    scenario.cores = args.cores.unwrap_or(scenario.cores);
    scenario.cvms = args.cvms.unwrap_or(scenario.cvms);
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    scenario.trace = args.trace.clone().or(scenario.trace);
    scenario.check().map_err(|error| Failure::new("bench elastic --simulate", error))?;
    Ok(scenario)
}

/// The arms side by side, then the parallel jobs.
fn table(report: &sim::Report) -> String {
    let mut text = format!(
        "{} cores, {} CVMs, {} tasks with {:.0} core-seconds of work; simulated, not measured\n\n\
         {:<16} {:>11} {:>11} {:>11} {:>11} {:>10} {:>14} {:>14} {:>9}\n",
        report.scenario.cores,
        report.cvms,
        report.tasks,
        report.work_core_s,
        "arm",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "mean ms",
        "slowdown",
        "reserved core-s",
        "burnt core-s",
        "wakes"
    );
    for arm in &report.arms {
        let response = &arm.response;
        let _ = writeln!(
            text,
            "{:<16} {:>11.2} {:>11.2} {:>11.2} {:>11.2} {:>10.2} {:>14.0} {:>14.0} {:>9}",
            arm.title,
            response.p50_ms,
            response.p99_ms,
            response.p999_ms,
            response.mean_ms,
            arm.mean_slowdown,
            arm.reserved_core_s,
            arm.busy_core_s,
            arm.wakes
        );
    }
    if !report.parallel.is_empty() {
        text.push_str("\nOne parallel job: time over the ideal\n");
    }
    for job in &report.parallel {
        let arms: Vec<String> =
            job.arms.iter().map(|arm| format!("{} {:.4}", arm.title, arm.over_ideal)).collect();
        let _ = writeln!(text, "{:>3} workers, {:.0} s: {}", job.workers, job.ideal_s, arms.join(", "));
    }
    text
}
