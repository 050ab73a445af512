//! What a CVM answers, out of its record.

use nacre_session::command::ModuleKind;
use nacre_session::reply::{self, ExitKind};
use std::fmt;
use std::time::Duration;

/// How a sealed call ended. Only its client and the CVM know.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    /// In which way.
    pub exit: ExitKind,
    /// Its exit code.
    pub code: u32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// Message and backtrace of a trap, or why it could not be started.
    pub text: String,
    /// More was written to standard output than is here.
    pub stdout_cut: bool,
    /// The same of standard error.
    pub stderr_cut: bool,
    /// No memory of its module was ready for use.
    pub cold: bool,
    /// CPU time it had.
    pub cpu: Duration,
    /// From its arrival in the CVM to its start.
    pub queued: Duration,
    /// From its start to its end.
    pub ran: Duration,
}

impl Outcome {
    /// Whether it returned, with exit code 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.exit == ExitKind::Code && self.code == 0
    }

    /// In a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.exit {
            ExitKind::Code => format!("it ended with code {}", self.code),
            ExitKind::Trap => "it trapped".to_owned(),
            ExitKind::Error => "it could not be started".to_owned(),
            ExitKind::BrokenPipe => "it wrote to a stream that nobody reads".to_owned(),
            ExitKind::OutOfMemory => "it ran out of memory".to_owned(),
            ExitKind::TimeLimit => "it reached its time limit".to_owned(),
        }
    }
}

impl From<&reply::Outcome<'_>> for Outcome {
    fn from(outcome: &reply::Outcome<'_>) -> Self {
        Self {
            exit: outcome.exit,
            code: outcome.code,
            stdout: outcome.stdout.to_vec(),
            stderr: outcome.stderr.to_vec(),
            text: outcome.text.to_owned(),
            stdout_cut: outcome.stdout_cut,
            stderr_cut: outcome.stderr_cut,
            cold: outcome.cold,
            cpu: Duration::from_nanos(outcome.cpu_ns),
            queued: Duration::from_nanos(outcome.queued_ns),
            ran: Duration::from_nanos(outcome.ran_ns),
        }
    }
}

/// What it wrote stays out of logs.
impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome").field("exit", &self.exit).field("code", &self.code).finish_non_exhaustive()
    }
}

/// Something installed in a CVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// What it is.
    pub kind: ModuleKind,
    /// SHA-256 of its precompiled code.
    pub code: [u8; 32],
}

impl From<&reply::Installed<'_>> for Installed {
    fn from(one: &reply::Installed<'_>) -> Self {
        Self { name: one.name.to_owned(), version: one.version, kind: one.kind, code: *one.code }
    }
}
