//! The `nacre` binary: parses the command line, runs one command, reports its failure and exit code.
#![forbid(unsafe_code)]

use std::{ffi::OsStr, process::ExitCode};

use clap::Parser;
use nacre_cli::{
    args::{Cli, Command},
    bench, compile, demo, execute,
    failure::{EXIT_USAGE, Failure},
    log,
    node::{self, args::NodeCommand},
    run, sealed, top,
};

/// Calls of functions allocate on one thread what another frees, which this one is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let _ = log::since_start();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error),
    };
    // A node that runs has a log of its own, always.
    if !matches!(&cli.command, Command::Node(args) if matches!(args.command, NodeCommand::Start(_))) {
        log::init();
    }
    tracing::debug!(since_start_us = log::since_start().as_micros() as u64, "command line parsed");
    if only_prints(&cli.command) {
        // Whoever reads the output may stop reading: that is no error to tell of.
        sigpipe::reset();
    }
    let json = cli.command.json();
    let result = match cli.command {
        Command::Compile(args) => compile::command(&args),
        Command::Demo(args) => demo::command(&args),
        Command::Bench(args) => bench::command(&args),
        Command::Top(args) => top::command(&args),
        Command::Node(args) => node::command(args),
        Command::Tenant(args) => node::tenant(&args),
        Command::Deploy(args) => node::drive::deploy(&args),
        Command::Invoke(args) => node::drive::invoke(&args),
        Command::Ps(args) => node::drive::ps(&args),
        Command::Logs(args) => node::drive::logs(&args),
        Command::Describe(args) => node::drive::describe(&args),
        Command::Rm(args) => node::drive::rm(&args),
        Command::Migrate(args) => node::migrate::command(&args),
        Command::Platform(args) => sealed::platform(&args),
        Command::Manifest(args) => sealed::manifest(&args),
        Command::Measure(args) => sealed::measure(&args),
        Command::Attest(args) => sealed::attest(&args),
        Command::Keybroker(args) => sealed::keybroker(&args),
        Command::Tunnel(args) => sealed::tunnel(&args),
        Command::CompileWorker(args) => node::worker(&args),
        Command::Run(args) => run::plan(args).and_then(|plan| execute::execute(&plan)).map(exit),
    };
    result.unwrap_or_else(|failure| failure.report(json))
}

/// Whether a command does nothing that must be cleaned up if its output is closed early, as by `head`.
fn only_prints(command: &Command) -> bool {
    matches!(
        command,
        Command::Invoke(_)
            | Command::Ps(_)
            | Command::Logs(_)
            | Command::Describe(_)
            | Command::Platform(_)
            | Command::Manifest(_)
            | Command::Measure(_)
            | Command::Attest(_)
    )
}

/// Ends the process with a program's exit code, which may be any number: the system takes what it takes of it.
fn exit(code: i32) -> ExitCode {
    std::process::exit(code)
}

/// Prints clap's message; help and version texts come the same way and are no errors.
fn usage_error(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == OsStr::new("--json"));
    if error.use_stderr() && wants_json {
        let text = error.to_string();
        let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        return Failure::usage("command line", why, "see `nacre --help`").report(true);
    }
    // Nothing is left to do when the terminal is gone.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
}
