//! `nacre bench`: runs a benchmark with a progress bar on stderr, prints its table and writes its JSON.

mod elastic;
mod migrate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use nacre_bench::{
    BenchError, Progress,
    invoke::{self, Options, Part},
};

use crate::{
    args::{BenchArgs, BenchCommand, BenchInvokeArgs, BenchPart},
    failure::Failure,
    program::io_reason,
};

/// `nacre bench`.
///
/// # Errors
/// What went wrong, for the user. A target that is not met is told in the result and is no error.
pub fn command(args: &BenchArgs) -> Result<ExitCode, Failure> {
    match &args.bench {
        BenchCommand::Invoke(args) => bench_invoke(args),
        BenchCommand::Elastic(args) => elastic::command(args),
        BenchCommand::Migrate(args) => migrate::command(args),
        BenchCommand::ServeReference => serve_reference(),
        BenchCommand::HoldMemory { bytes } => nacre_bench::serve::hold(*bytes),
    }
}

fn bench_invoke(args: &BenchInvokeArgs) -> Result<ExitCode, Failure> {
    let nacre =
        std::env::current_exe().map_err(|error| Failure::new("this executable", io_reason(&error)))?;
    check_writable(args.json.as_ref())?;
    let all = Options::full(nacre);
    let mut parts: Vec<Part> = args.only.iter().map(|part| (*part).into()).collect();
    if args.sealed {
        parts.push(Part::Sealed);
    }
    let options = if parts.is_empty() { all } else { all.only(&parts) };
    let bar = Bar::new(options.steps());
    let report = invoke::run(&options, &bar);
    bar.0.finish_and_clear();
    let report = report.map_err(|error| failure("bench invoke", &error))?;
    print(&report.table(), &report.json(), args.json.as_ref())
}

impl From<BenchPart> for Part {
    fn from(part: BenchPart) -> Self {
        match part {
            BenchPart::Compute => Self::Compute,
            BenchPart::Boot => Self::Boot,
            BenchPart::Instances => Self::Instances,
            BenchPart::Calls => Self::Calls,
            BenchPart::Touch => Self::Touch,
            BenchPart::Life => Self::Life,
            BenchPart::Http => Self::Http,
            BenchPart::Cold => Self::Cold,
            BenchPart::Sealed => Self::Sealed,
            BenchPart::Kv => Self::Kv,
        }
    }
}

/// `nacre bench serve-reference`: ends when it is killed.
fn serve_reference() -> Result<ExitCode, Failure> {
    let ready = |address| println!("{address}");
    let served = nacre_bench::serve::serve(nacre_bench::programs::ECHO.as_bytes(), ready);
    served.map_err(|error| failure("bench serve-reference", &error))?;
    Ok(ExitCode::SUCCESS)
}

/// Where JSON goes: nowhere, to stdout, or to a file.
type Json = Option<PathBuf>;

/// A result that can't be written must not be found out after the run.
fn check_writable(json: Option<&Json>) -> Result<(), Failure> {
    let Some(Some(path)) = json else { return Ok(()) };
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|error| unwritable(path, &error))
}

/// The table to stdout and JSON to the file, or JSON to stdout.
fn print(table: &str, json: &str, to: Option<&Json>) -> Result<ExitCode, Failure> {
    match to {
        Some(None) => println!("{json}"),
        None => print!("{table}"),
        Some(Some(path)) => {
            write(path, &format!("{json}\n"))?;
            print!("{table}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each plot that was written.
fn list(plots: &[PathBuf]) -> String {
    plots.iter().fold(String::new(), |text, plot| text + &format!("plot: {}\n", plot.display()))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let why = io_reason(error);
    Failure::new(path.display(), format_args!("can not be written: {why}; choose another file for --json"))
}

/// What a benchmark's error is for the user.
pub(crate) fn failure(benchmark: &str, error: &BenchError) -> Failure {
    let what = match error {
        BenchError::Cvm(_) => "CVM",
        _ => benchmark,
    };
    Failure::new(what, error)
}

/// A progress bar; it shows on terminals only.
struct Bar(ProgressBar);

impl Bar {
    fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        Self(bar)
    }
}

impl Progress for Bar {
    fn step(&self, doing: &str) {
        self.0.set_message(doing.to_owned());
        self.0.inc(1);
    }
}
