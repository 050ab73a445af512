//! `nacre bench migrate`: a service that writes all over its memory moves between two CVMs, in every mode; another one moves between two
//! nodes while clients use it.

use super::{Bar, check_writable, failure, list, print};
use crate::args::{BenchEnds, BenchMigrateArgs, BenchMode, BenchNetwork};
use crate::failure::Failure;
use crate::program::io_reason;
use nacre_abi::migrate::MoveMode;
use nacre_bench::migrate::{self, Options, Speed};
use std::process::ExitCode;

/// `nacre bench migrate`.
///
/// # Errors
/// What went wrong, for the user. A target that is not met is told in the result and is no error.
pub fn command(args: &BenchMigrateArgs) -> Result<ExitCode, Failure> {
    check_writable(args.json.as_ref())?;
    let options = options(args)?;
    let bar = Bar::new(options.steps());
    let report = migrate::run(&options, &bar);
    bar.0.finish_and_clear();
    let report = report.map_err(|error| failure("bench migrate", &error))?;
    let plots = match &args.report {
        Some(directory) => report.write_plots(directory).map_err(|error| failure("bench migrate", &error))?,
        None => Vec::new(),
    };
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| Failure::new("bench migrate", format_args!("{error}; report it")))?;
    print(&(report.report.table() + &list(&plots)), &json, args.json.as_ref())
}

fn options(args: &BenchMigrateArgs) -> Result<Options, Failure> {
    let nacre =
        std::env::current_exe().map_err(|error| Failure::new("this executable", io_reason(&error)))?;
    let wanted = |ends| args.between.is_empty() || args.between.contains(&ends);
    let all = Options::default();
    let or = |given: Vec<u64>, otherwise| if given.is_empty() { otherwise } else { given };
    let modes: Vec<MoveMode> = args.mode.iter().map(|mode| (*mode).into()).collect();
    let between_nodes = [MoveMode::Hybrid, MoveMode::StopAndCopy];
    if args.between == [BenchEnds::Nodes]
        && !modes.is_empty()
        && !modes.iter().any(|mode| between_nodes.contains(mode))
    {
        return Err(Failure::usage(
            "--mode",
            "is not measured between nodes",
            "name hybrid or stop-and-copy",
        ));
    }
    let networks: Vec<Speed> = args.network.iter().map(|network| (*network).into()).collect();
    Ok(Options {
        sizes: or(args.size.clone(), all.sizes),
        modes: if modes.is_empty() { all.modes } else { modes },
        networks: if networks.is_empty() { all.networks } else { networks },
        rounds: args.rounds.map_or(all.rounds, |rounds| rounds as usize),
        cvms: wanted(BenchEnds::Cvms),
        nodes: wanted(BenchEnds::Nodes).then_some(nacre),
    })
}

impl From<BenchMode> for MoveMode {
    fn from(mode: BenchMode) -> Self {
        match mode {
            BenchMode::Hybrid => Self::Hybrid,
            BenchMode::PreCopy => Self::PreCopy,
            BenchMode::PostCopy => Self::PostCopy,
            BenchMode::StopAndCopy => Self::StopAndCopy,
        }
    }
}

impl From<BenchNetwork> for Speed {
    fn from(network: BenchNetwork) -> Self {
        match network {
            BenchNetwork::Loopback => Self::Loopback,
            BenchNetwork::TenGigabit => Self::Gigabits(10),
            BenchNetwork::OneGigabit => Self::Gigabits(1),
        }
    }
}
