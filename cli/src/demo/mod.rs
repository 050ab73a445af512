//! `nacre demo`: shows what Nacre does, in about a minute, and cleans up behind itself.
//!
//! * [`cvm`]: two programs at once in one CVM. * [`node`]: a node with a function and a service under load, from idle to busy
//!   and back to idle. * [`migrate`]: a service that moves to a second node and back while it is used.
//! * [`process`]: the nodes as child processes. * [`load`]: who calls the function, and uses the service.
//! * [`screen`]: what is shown. * [`chart`]: workers over time as text. * [`latency`]: latency over time as text.
//!
//! All of it runs on the software platform, whose host can read everything: nothing here is confidential, and the demo says so.

mod chart;
mod cvm;
mod latency;
mod load;
mod migrate;
mod node;
mod process;
mod screen;

use crate::args::DemoArgs;
use crate::failure::Failure;
use crate::program::io_reason;
use process::Home;
use screen::Screen;
use serde::Serialize;
use std::process::ExitCode;

/// Workers when nobody says: as many as there are CPUs, but enough to see them come and go, and not a large machine's all.
const DEFAULT_WORKERS: std::ops::RangeInclusive<usize> = 2..=8;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    platform: &'static str,
    cvm: cvm::Summary,
    node: node::Summary,
    migration: migrate::Summary,
}

/// Runs the demo.
///
/// # Errors
/// If there is no CVM or no node, or one of the programs does not do what it should.
pub fn command(args: &DemoArgs) -> Result<ExitCode, Failure> {
    process::end_on_interrupt()?;
    let ended = run(args);
    match process::interrupted() {
        Some(code) => Ok(code),
        None => ended.map(|()| ExitCode::SUCCESS),
    }
}

fn run(args: &DemoArgs) -> Result<(), Failure> {
    let screen = Screen::new(args.json);
    let workers = node::cpus().clamp(*DEFAULT_WORKERS.start(), *DEFAULT_WORKERS.end());
    let workers = args.workers.unwrap_or(u8::try_from(workers).unwrap_or(u8::MAX));
    let memory_bytes = args.memory.bytes();
    if let Some(directory) = &args.report {
        // A picture that can't be written must not be found out after the run.
        std::fs::create_dir_all(directory).map_err(|error| {
            let why = format_args!("{}; choose another directory for --report", io_reason(&error));
            Failure::new(directory.display(), why)
        })?;
    }
    let cvm = cvm::run(workers, memory_bytes, &screen)?;
    let home = Home::new()?;
    let (places, nodes, start_ms) = migrate::nodes(&home)?;
    screen.line("\n--- two nodes")?;
    let [first, second] = [0, 1].map(|node: usize| nodes[node].end.address);
    screen.line(&format!(
        "node           serves at http://{first} after {start_ms:.0} ms; its state directory is a temporary one"
    ))?;
    screen.line(&format!("second node    serves at http://{second}; it waits"))?;
    let node = node::run(&nodes[0], start_ms, workers, memory_bytes, &screen)?;
    let migration = migrate::run(&places, &nodes, args, &screen)?;
    drop(home);
    screen.line(
        "\nplatform       software: this machine's root can read the CVMs' memory. Their interface is treated as hostile.",
    )?;
    screen.json(&Summary { platform: "software", cvm, node, migration })
}
