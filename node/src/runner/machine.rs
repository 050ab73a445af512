//! The one module that knows the VMM: a CVM, code in it, and calls of that code.

use crate::limits::MAX_RESULT_BYTES;
use crate::outcome::{End, Left};
use nacre_compile::program::Program as Compiled;
use nacre_vmm::elastic::CpuStats;
use nacre_vmm::program::{Exit, Program, ProgramEvent, ProgramSpec, RunOptions};
use nacre_vmm::{CpuLimits, CpuManager, Cvm, CvmConfig, CvmError, ElasticConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;

/// How long after its limit a call has to have ended; then its CVM is taken for broken.
const GRACE: Duration = Duration::from_secs(2);
/// The stream of errors.
const STDERR: u32 = 2;

/// What a CVM is launched with.
pub struct MachineSpec {
    /// Private memory in bytes.
    pub memory_bytes: u64,
    /// Workers.
    pub workers: u32,
    /// Its part in the CPUs.
    pub limits: CpuLimits,
    /// Who shares the CPUs out.
    pub manager: Arc<CpuManager>,
}

/// The CVM has ended, or can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Ended(pub String);

impl From<CvmError> for Ended {
    fn from(error: CvmError) -> Self {
        Self(error.to_string())
    }
}

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallFailed {
    /// It never began: another CVM may take it.
    NotBegun(Ended),
    /// The CVM ended in the middle.
    Lost(Ended),
}

/// A call.
#[derive(Clone, Debug)]
pub struct Request {
    /// Arguments, `argv[0]` first.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// How long it may take.
    pub wall_limit: Duration,
    /// Linear memory it may have, in bytes.
    pub memory_limit: u64,
    /// Bytes of logs it may write, besides a result.
    pub max_logs: usize,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Reply {
    /// How it ended and what it wrote.
    pub left: Left,
    /// CPU time.
    pub cpu: Duration,
    /// Time before its first instruction.
    pub queued: Duration,
}

/// Code in a CVM.
#[derive(Clone)]
pub struct Code(Arc<Compiled>);

/// A running CVM.
pub struct Machine {
    cvm: Arc<Cvm>,
    ended: Arc<AtomicBool>,
}

impl Machine {
    /// Launches one. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`Ended`] if there can be none.
    pub fn launch(spec: MachineSpec) -> Result<Self, Ended> {
        let cvm = Cvm::launch(CvmConfig {
            workers: spec.workers,
            memory_bytes: spec.memory_bytes,
            elastic: ElasticConfig {
                manager: Some(spec.manager),
                limits: spec.limits,
                ..ElasticConfig::default()
            },
            // A guest's last words are a defect of the guest: they hold no data of tenants.
            on_print: Box::new(|text| tracing::error!(text, "guest")),
            ..CvmConfig::default()
        })?;
        Ok(Self { cvm: Arc::new(cvm), ended: Arc::default() })
    }

    /// The CVM, for whoever shows it.
    #[must_use]
    pub fn cvm(&self) -> &Arc<Cvm> {
        &self.cvm
    }

    /// Brings code in. Blocks for as long as copying takes.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn load(&self, program: Arc<Compiled>) -> Result<Code, Ended> {
        Ok(Code(program))
    }

    /// Runs code to its end.
    ///
    /// # Errors
    /// [`CallFailed`]: the CVM is of no use any more.
    pub async fn call(&self, code: &Code, request: Request) -> Result<Reply, CallFailed> {
        let (cvm, code, limit) = (self.cvm.clone(), code.clone(), request.wall_limit + GRACE);
        let mut call = spawn_blocking(move || run(&cvm, &code, request));
        let ended = match tokio::time::timeout(limit, &mut call).await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::error!("a call did not end at its limit: its CVM is ended");
                self.stop().await;
                call.await
            }
        };
        ended.unwrap_or_else(|error| Err(CallFailed::Lost(Ended(error.to_string()))))
    }

    /// What its CPUs have done; `None` after its end.
    #[must_use]
    pub fn cpu(&self) -> Option<CpuStats> {
        self.cvm.cpu().ok()
    }

    /// Memory that the host has committed for it, in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.cvm.resident_bytes().unwrap_or(0)
    }

    /// Ends it, and what runs in it.
    pub async fn stop(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let cvm = self.cvm.clone();
        // Fails only when stopping panicked, and then nothing is left to do.
        let _ = spawn_blocking(move || cvm.stop()).await;
    }
}

fn run(cvm: &Arc<Cvm>, code: &Code, request: Request) -> Result<Reply, CallFailed> {
    let begin = Instant::now();
    let spec = ProgramSpec {
        code: code.0.file(),
        args: request.args,
        env: request.env,
        options: RunOptions { wall_limit: Some(request.wall_limit), ..RunOptions::default() },
        ..ProgramSpec::default()
    };
    let program = cvm.load(&spec).map_err(|error| CallFailed::NotBegun(error.into()))?;
    program.start().map_err(|error| CallFailed::NotBegun(error.into()))?;
    let queued = begin.elapsed();
    let mut stdin = program.stdin();
    let credit = stdin.credit();
    let input = request.stdin;
    let left = std::thread::scope(|scope| {
        scope.spawn(move || {
            if stdin.write_all(&input) {
                // Fails only when the CVM has ended.
                let _ = stdin.end();
            }
        });
        let left = follow(&program, &credit, request.max_logs);
        credit.finish();
        left
    });
    let left = left.map_err(|error| CallFailed::Lost(error.into()))?;
    Ok(Reply { left, cpu: begin.elapsed().saturating_sub(queued), queued })
}

fn follow(program: &Program<'_>, credit: &nacre_vmm::program::Credit, max_logs: usize) -> Result<Left, CvmError> {
    let (mut stdout, mut stderr) = (Kept::new(max_logs + MAX_RESULT_BYTES), Kept::new(max_logs));
    let exit = loop {
        match program.next_event()? {
            ProgramEvent::Output { stream, bytes, end } => {
                let kept = if stream == STDERR { &mut stderr } else { &mut stdout };
                kept.add(&bytes);
                program.consumed(stream, end)?;
            }
            ProgramEvent::InputCredit(offset) => credit.advance(offset),
            ProgramEvent::Exited(exit) => break exit,
            ProgramEvent::Message(..) => {}
        }
    };
    let end = match exit {
        Exit::Code(code) => End::Exit(code),
        Exit::Trap(text) => End::Trap(text),
        Exit::Error(text) => End::Error(text),
        Exit::BrokenPipe => End::Trap("it wrote to a closed stream".into()),
        Exit::OutOfMemory(text) => End::OutOfMemory(text),
        Exit::TimeLimit(_) => End::TimeLimit,
    };
    Ok(Left { end, stdout: stdout.bytes, stderr: stderr.bytes, stdout_cut: stdout.cut, stderr_cut: stderr.cut })
}

/// The beginning of a stream; the rest is read and thrown away.
struct Kept {
    bytes: Vec<u8>,
    max: usize,
    cut: bool,
}

impl Kept {
    fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), max, cut: false }
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = self.max - self.bytes.len();
        self.cut |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}
