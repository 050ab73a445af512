//! `nacre demo`: shows what Nacre does, in a quarter of a minute, and cleans up behind itself.
//!
//! * [`cvm`]: two programs at once in one CVM. * [`node`]: a node with a function and a service under load, from idle to busy
//!   and back to idle.
//! * [`process`]: the node as a child process. * [`load`]: who calls the function. * [`resp`]: who uses the service.
//! * [`screen`]: what is shown. * [`chart`]: workers over time as text.
//!
//! All of it runs on the software platform, whose host can read everything: nothing here is confidential, and the demo says so.

mod chart;
mod cvm;
mod load;
mod node;
mod process;
mod resp;
mod screen;

use crate::args::DemoArgs;
use crate::failure::Failure;
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
    let cvm = cvm::run(workers, memory_bytes, &screen)?;
    screen.line("")?;
    let node = node::run(workers, memory_bytes, &screen)?;
    screen.line(
        "platform       software: this machine's root can read the CVMs' memory. Their interface is treated as hostile.",
    )?;
    screen.json(&Summary { platform: "software", cvm, node })
}
