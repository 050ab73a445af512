//! The first part of `nacre demo`: two small programs at once in one CVM with workers, and what that cost.

use super::screen::Screen;
use crate::cache::Cache;
use crate::compile::compile_cached;
use crate::execute::cvm_failure;
use crate::execute::stats::Report;
use crate::failure::Failure;
use crate::host_cpu;
use crate::module::{Entry, Module};
use crate::program::Program as Compiled;
use nacre_engine::CpuTarget;
use nacre_vmm::program::{Exit, Program, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};
use serde::Serialize;
use std::time::Instant;

/// The demo's programs: name, module, arguments.
const PROGRAMS: [(&str, &[u8], &[&str]); 2] = [
    ("primes", include_bytes!("../../../apps/primes/primes.wasm"), &["50000000"]),
    ("mandelbrot", include_bytes!("../../../apps/mandelbrot/mandelbrot.wasm"), &[]),
];

/// What one program did.
#[derive(Debug, Serialize)]
struct Ran {
    name: &'static str,
    output: String,
    milliseconds: f64,
}

/// What happened.
#[derive(Debug, Serialize)]
pub struct Summary {
    workers: u8,
    launch_milliseconds: f64,
    programs: Vec<Ran>,
    together_milliseconds: f64,
    stats: Report,
}

/// Runs it in a CVM of this size.
///
/// # Errors
/// If there is no CVM, or a program does not end as it should.
pub fn run(workers: u8, memory_bytes: u64, screen: &Screen) -> Result<Summary, Failure> {
    let compiled =
        PROGRAMS.iter().map(|(name, module, _)| compile(name, module)).collect::<Result<Vec<_>, _>>()?;
    let launched_at = crate::log::since_start();
    let begin = Instant::now();
    let config = CvmConfig { workers: workers.into(), memory_bytes, ..CvmConfig::default() };
    let cvm = Cvm::launch(config).map_err(|error| cvm_failure(&error))?;
    let launch_milliseconds = milliseconds(begin);
    screen.line(&format!("A CVM with {workers} workers is up after {launch_milliseconds:.1} ms."))?;
    screen.line(&format!("It now runs {} and {} at the same time.\n", PROGRAMS[0].0, PROGRAMS[1].0))?;
    let together = Instant::now();
    let programs = run_together(&cvm, &compiled)?;
    let together_milliseconds = milliseconds(together);
    let stats = cvm.stats().map_err(|error| cvm_failure(&error))?;
    let stats = Report::new(&stats, launched_at);
    let summary = Summary { workers, launch_milliseconds, programs, together_milliseconds, stats };
    print(&summary, screen)?;
    Ok(summary)
}

fn compile(name: &str, module: &[u8]) -> Result<Compiled, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(name, error);
    let module = Module::parse(module, Entry::Command).map_err(|error| failed(&error))?;
    let compiled = compile_cached(name, &module, CpuTarget::default(), Cache::of_user().as_ref());
    let program = compiled.map_err(|error| failed(&error))?.program;
    program.header().check_compatible(host_cpu::features()).map_err(|error| failed(&error))?;
    Ok(program)
}

/// Starts all programs, then waits for each.
fn run_together(cvm: &Cvm, compiled: &[Compiled]) -> Result<Vec<Ran>, Failure> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for ((name, _, args), code) in PROGRAMS.iter().zip(compiled) {
            let args = std::iter::once(name).chain(args.iter()).map(|arg| arg.to_string()).collect();
            let spec = ProgramSpec { code: code.file(), args, ..ProgramSpec::default() };
            let program = cvm.load(&spec).map_err(|error| cvm_failure(&error))?;
            running.push(scope.spawn(move || run_one(name, &program)));
        }
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn run_one(name: &'static str, program: &Program<'_>) -> Result<Ran, Failure> {
    let begin = Instant::now();
    let (exit, out, _) = program.run_to_end().map_err(|error| cvm_failure(&error))?;
    if exit != Exit::Code(0) {
        return Err(Failure::new(name, format_args!("ended with {exit:?}; run it alone with nacre run")));
    }
    Ok(Ran { name, output: String::from_utf8_lossy(&out).into_owned(), milliseconds: milliseconds(begin) })
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

fn print(summary: &Summary, screen: &Screen) -> Result<(), Failure> {
    for ran in &summary.programs {
        screen.line(&format!("--- {} ({:.0} ms)\n{}", ran.name, ran.milliseconds, ran.output.trim_end()))?;
    }
    let apart: f64 = summary.programs.iter().map(|ran| ran.milliseconds).sum();
    screen.line(&format!(
        "\n--- one CVM\nboth together  {:.0} ms; their own times add up to {apart:.0} ms",
        summary.together_milliseconds
    ))?;
    screen.line(summary.stats.table().trim_end())
}
