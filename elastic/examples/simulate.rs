//! Runs a scenario from a JSON file (or the default one) and writes the report and its drawings into a folder:
//! `cargo run --release --package nacre-elastic --example simulate -- FOLDER [SCENARIO.json]`.

use nacre_elastic::sim::{self, Scenario};
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("name a folder for the report")?);
    let scenario: Scenario = match arguments.next() {
        Some(file) => serde_json::from_str(&std::fs::read_to_string(file)?)?,
        None => Scenario::default(),
    };
    let begin = Instant::now();
    let report = sim::run(&scenario, |_| {})?;
    let taken = begin.elapsed();
    sim::plot::write_svgs(&report, &folder)?;
    std::fs::write(folder.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    println!("{} tasks, {:.0} core-seconds, {taken:.1?}", report.tasks, report.work_core_s);
    for arm in &report.arms {
        println!(
            "{:15} p50 {:9.2} p90 {:9.2} p99 {:9.2} p99.9 {:9.2} ms, slowdown {:7.2}, reserved {:6.2} burnt {:5.3}, {} wakes, {} reclaims, {} decisions",
            arm.title,
            arm.response.p50_ms,
            arm.response.p90_ms,
            arm.response.p99_ms,
            arm.response.p999_ms,
            arm.mean_slowdown,
            arm.reserved_core_s / report.work_core_s,
            arm.busy_core_s / report.work_core_s,
            arm.wakes,
            arm.reclaims,
            arm.decisions,
        );
    }
    for job in &report.parallel {
        for arm in &job.arms {
            println!(
                "{:3} workers, {:22} {:8.3} s, {:6.4}",
                job.workers, arm.title, arm.seconds, arm.over_ideal
            );
        }
    }
    Ok(())
}
