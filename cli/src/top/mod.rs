//! `nacre top`: the CVMs of this user on this machine, live.
//!
//! * [`publish`]: every process with a CVM answers on a Unix socket of its own with a [`Sample`]; nothing is written
//!   while nobody asks. * [`collect`]: finds and asks them. * [`table`]: what is shown.

pub mod collect;
pub mod publish;
pub mod table;

use crate::args::TopArgs;
use crate::failure::Failure;
use collect::{Row, collect, rows};
use console::{Key, Term};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Version of [`Sample`]; what has another is not shown.
pub const SAMPLE_VERSION: u32 = 1;

/// What one CVM says about itself. Numbers count from its launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// [`SAMPLE_VERSION`].
    pub version: u32,
    /// The process it is in.
    pub pid: u32,
    /// What it was called.
    pub name: String,
    /// Workers launched.
    pub workers: u32,
    /// Of these with a CPU.
    pub active: u32,
    /// Of these that want one and have none.
    pub waiting: u32,
    /// Workers that may run now.
    pub grant: u32,
    /// What the guest asks for beyond that, by its own word.
    pub demand: u32,
    /// CPU time of all its vCPUs in nanoseconds.
    pub cpu_ns: u64,
    /// Memory that the host has committed for it, in bytes.
    pub memory_bytes: u64,
    /// Times that workers were given a CPU.
    pub wakes: u64,
    /// Times that workers were asked to park.
    pub reclaims: u64,
    /// Times that workers were stopped by force.
    pub forced: u64,
}

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SortBy {
    /// CPU use, highest first
    #[default]
    Cpu,
    /// Memory, highest first
    Memory,
    /// Wakes per second, highest first
    Wakes,
    /// Demand, highest first
    Demand,
    /// Name
    Name,
    /// Process
    Pid,
}

/// Between the two looks of `--once`, from which rates are computed.
const ONCE_INTERVAL: Duration = Duration::from_millis(250);

/// Runs the command.
///
/// # Errors
/// If no CVM has one of the names asked for, or there is no place where CVMs could be.
pub fn command(args: &TopArgs) -> Result<ExitCode, Failure> {
    let dir = publish::directory().ok_or_else(|| {
        Failure::new(
            "top",
            "there is no private directory where CVMs are listed; set XDG_RUNTIME_DIR or HOME",
        )
    })?;
    let mut before = (Instant::now(), collect(&dir));
    check_names(args, &before.1)?;
    if args.once || args.json {
        std::thread::sleep(ONCE_INTERVAL);
        let rows = look(args, &dir, &mut before, args.sort);
        if args.json {
            println!("{}", serde_json::to_string_pretty(&rows).unwrap_or_default());
        } else {
            print!("{}", table::text(&rows, None));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (terminal, keys) = (Term::stdout(), keys());
    let mut sort = args.sort;
    loop {
        match keys.recv_timeout(args.interval) {
            Ok(Key::Char('q') | Key::Escape | Key::CtrlC) => return Ok(ExitCode::SUCCESS),
            Ok(key) => sort = sort_of(&key).unwrap_or(sort),
            Err(RecvTimeoutError::Timeout) => {}
            // No terminal to read keys from.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(args.interval),
        }
        let rows = look(args, &dir, &mut before, sort);
        let size = terminal.is_term().then(|| terminal.size());
        // A terminal that is gone ends the command.
        if terminal.clear_screen().and_then(|()| terminal.write_line(&table::text(&rows, size))).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The rows now, with rates since the last look.
fn look(
    args: &TopArgs,
    dir: &std::path::Path,
    before: &mut (Instant, Vec<Sample>),
    sort: SortBy,
) -> Vec<Row> {
    let now = (Instant::now(), collect(dir));
    let mut rows = rows(&before.1, &now.1, now.0 - before.0);
    *before = now;
    rows.retain(|row| args.names.is_empty() || args.names.contains(&row.sample.name));
    table::sort(&mut rows, sort);
    rows
}

fn check_names(args: &TopArgs, samples: &[Sample]) -> Result<(), Failure> {
    match args.names.iter().find(|name| samples.iter().all(|sample| sample.name != **name)) {
        Some(name) => {
            let why = "no running CVM of yours has this name; `nacre top --once` lists them all";
            Err(Failure::new(format_args!("top {name}"), why))
        }
        None => Ok(()),
    }
}

fn sort_of(key: &Key) -> Option<SortBy> {
    match key {
        Key::Char('c') => Some(SortBy::Cpu),
        Key::Char('m') => Some(SortBy::Memory),
        Key::Char('w') => Some(SortBy::Wakes),
        Key::Char('d') => Some(SortBy::Demand),
        Key::Char('n') => Some(SortBy::Name),
        Key::Char('p') => Some(SortBy::Pid),
        _ => None,
    }
}

/// Keys as they are pressed; ends at once where there is no terminal.
fn keys() -> Receiver<Key> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let terminal = Term::stderr();
        while terminal.is_term()
            && let Ok(key) = terminal.read_key()
            && sender.send(key).is_ok()
        {}
    });
    receiver
}
