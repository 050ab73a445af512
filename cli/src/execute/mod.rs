//! Carries a [`RunPlan`] out: launches the CVM, brings files in, connects the streams, takes files out, reports.

mod exports;
mod output;
pub mod stats;
mod tree;
mod watchdog;

use crate::failure::{EXIT_FAILED, Failure};
use crate::run::RunPlan;
use crate::top::publish::{self, Publisher};
use nacre_vmm::program::{Credit, Exit, Program, ProgramEvent, ProgramSpec, RunOptions};
use nacre_vmm::{CpuConfig, CpuManager, Cvm, CvmConfig, CvmError, ElasticConfig};
use output::Output;
use std::io::{IsTerminal, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use watchdog::Watchdog;

/// Exit code after a trap, as a shell shows a program that aborted.
pub const EXIT_TRAP: u8 = 134;
/// Exit code after a write to a closed pipe, as a shell shows a program that SIGPIPE ended.
pub const EXIT_BROKEN_PIPE: u8 = 141;
/// Exit code after Ctrl-C.
const EXIT_INTERRUPTED: i32 = 130;

/// The CVM that Ctrl-C ends.
static RUNNING: OnceLock<Arc<Cvm>> = OnceLock::new();
/// Ctrl-C came: whatever fails from here on fails because of it.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the program; returns its exit code.
///
/// # Errors
/// What is Nacre's to report; the program's own failures are printed and become exit codes.
pub fn execute(plan: &RunPlan) -> Result<i32, Failure> {
    match run(plan) {
        Err(_) if INTERRUPTED.load(Ordering::SeqCst) => Ok(EXIT_INTERRUPTED),
        other => other,
    }
}

fn run(plan: &RunPlan) -> Result<i32, Failure> {
    let name = plan.args.first().map_or("program", String::as_str);
    let exports = exports::resolve(&plan.exports, &plan.dirs)?;
    end_on_interrupt()?;
    let launch_begin = crate::log::since_start();
    let cvm = launch(plan).map_err(|error| cvm_failure(&error))?;
    let cvm = RUNNING.get_or_init(|| Arc::new(cvm)).clone();
    let spec = ProgramSpec {
        code: plan.program.file(),
        args: plan.args.clone(),
        env: plan.env.clone(),
        preopens: plan.dirs.iter().map(|dir| dir.guest.clone()).collect(),
        terminals: [
            std::io::stdin().is_terminal(),
            std::io::stdout().is_terminal(),
            std::io::stderr().is_terminal(),
        ],
        options: RunOptions { wall_limit: plan.time_limit, ..RunOptions::default() },
        listens: false,
    };
    let program = cvm.load(&spec).map_err(|error| cvm_failure(&error))?;
    for (number, dir) in plan.dirs.iter().enumerate() {
        tree::bring_in(&program, &dir.host, &format!("/{number}"))?;
    }
    program.start().map_err(|error| cvm_failure(&error))?;
    let listed = Publisher::start(&plan.name, cvm.clone());
    let watchdog = plan.time_limit.map(|limit| Watchdog::start(&cvm, limit));
    let exit = follow(&program);
    let exit = match watchdog.and_then(|watchdog| watchdog.bitten()) {
        Some(text) if exit.is_err() => return exit_code(Exit::TimeLimit(text), name, plan.json),
        _ => exit?,
    };
    // What failed here is told, but the program's own end decides the exit code if it was not a clean one.
    let exported = exports.iter().try_for_each(|export| exports::take_out(&program, export));
    if plan.stats != Default::default() {
        let stats = cvm.stats().map_err(|error| cvm_failure(&error))?;
        stats::report(&stats::Report::new(&stats, launch_begin), plan)?;
    }
    drop((program, listed));
    cvm.stop();
    match (exit_code(exit, name, plan.json)?, exported) {
        (0, Err(failure)) => Err(failure),
        (code, Err(failure)) => {
            let _ = failure.report(plan.json);
            Ok(code)
        }
        (code, Ok(())) => Ok(code),
    }
}

fn launch(plan: &RunPlan) -> Result<Cvm, CvmError> {
    let cpus = plan.cpus.map_or_else(CpuConfig::machine, CpuConfig::new);
    Cvm::launch(CvmConfig {
        workers: plan.workers.into(),
        memory_bytes: plan.memory.bytes(),
        elastic: ElasticConfig {
            manager: Some(CpuManager::new(cpus)?),
            spin_limit: plan.spin_limit,
            ..ElasticConfig::default()
        },
        ..CvmConfig::default()
    })
}

/// A failure of the CVM as a whole.
pub fn cvm_failure(error: &CvmError) -> Failure {
    // The messages of these errors name what to do behind a colon.
    Failure::new("CVM", error)
}

/// From here on Ctrl-C (and a polite kill) ends the CVM, then the process.
fn end_on_interrupt() -> Result<(), Failure> {
    let installed = ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::SeqCst);
        if let Some(cvm) = RUNNING.get() {
            cvm.stop();
        }
        publish::forget_all();
        std::process::exit(EXIT_INTERRUPTED);
    });
    installed.map_err(|error| Failure::new("signal handler", error))
}

/// Connects the program's streams to this process's until it ends.
fn follow(program: &Program<'_>) -> Result<Exit, Failure> {
    let credit = feed_stdin(program);
    let mut outputs = Output::both();
    let exit = loop {
        match program.next_event().map_err(|error| cvm_failure(&error))? {
            ProgramEvent::Output { stream, bytes, end } => {
                let Some(output) = outputs.get_mut(stream as usize - 1) else { continue };
                let told = if output.write(&bytes)? {
                    program.consumed(stream, end)
                } else {
                    program.close_output(stream)
                };
                told.map_err(|error| cvm_failure(&error))?;
            }
            ProgramEvent::InputCredit(offset) => credit.advance(offset),
            ProgramEvent::Exited(exit) => break exit,
            ProgramEvent::Message(..) => {}
        }
    };
    credit.finish();
    Ok(exit)
}

/// Starts the thread that passes standard input on. It may still sit in a read when the program is over; then the end
/// of the process ends it.
fn feed_stdin(program: &Program<'_>) -> Arc<Credit> {
    let mut guest = program.stdin();
    let credit = guest.credit();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match std::io::stdin().lock().read(&mut buffer) {
                Ok(0) => break,
                Ok(len) if guest.write_all(&buffer[..len]) => {}
                Ok(_) => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // A closed descriptor reads as empty, as for any program.
                Err(_) => break,
            }
        }
        // Fails only when the CVM has ended.
        let _ = guest.end();
    });
    credit
}

/// Prints why a program failed; returns its exit code.
fn exit_code(exit: Exit, name: &str, json: bool) -> Result<i32, Failure> {
    match exit {
        Exit::Code(code) => Ok(code as i32),
        Exit::BrokenPipe => Ok(EXIT_BROKEN_PIPE.into()),
        Exit::Trap(text) => {
            let (what, backtrace) = text.split_once('\n').unwrap_or((&text, ""));
            let failure = Failure { exit_code: EXIT_TRAP, ..Failure::new(name, what) };
            let _ = failure.report(json);
            if !json && !backtrace.is_empty() {
                eprintln!("{}", printable(backtrace));
            }
            Ok(EXIT_TRAP.into())
        }
        Exit::TimeLimit(text) => Err(Failure { exit_code: EXIT_TRAP, ..Failure::new(name, text) }),
        Exit::Error(text) | Exit::OutOfMemory(text) => {
            Err(Failure { exit_code: EXIT_FAILED, ..Failure::new(name, text) })
        }
    }
}

/// Names in a backtrace come from the module: nothing but line ends may act on the terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}
