//! The one module that knows the VMM: a CVM, code in it, and calls of that code.

use crate::limits::MAX_RESULT_BYTES;
use crate::outcome::{End, Left};
use nacre_compile::program::Program as Compiled;
use nacre_vmm::elastic::CpuStats;
use nacre_vmm::evidence::{EvidenceError, Identity};
use nacre_vmm::program::{Exit, RunOptions};
use nacre_vmm::{
    Call, CallError, CallHandle, CallResult, CpuLimits, CpuManager, Cvm, CvmConfig, CvmError, ElasticConfig,
    Module,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// How long after its limit a call may take to end by itself; then it is cancelled.
const GRACE: Duration = Duration::from_secs(1);
/// How long after that; then its CVM is taken for broken.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// Waits between two attempts of a call for which the CVM has no room now: shortest and longest.
const BUSY_PAUSES: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));

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
    /// How it proves what it is.
    pub identity: Identity,
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
    /// It can't be made: what is wrong with it.
    Refused(String),
}

/// A call.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Arguments, `argv[0]` first.
    pub args: &'a [&'a str],
    /// Environment.
    pub env: &'a [(&'a str, &'a str)],
    /// Standard input.
    pub stdin: &'a [u8],
    /// How long it may take.
    pub wall_limit: Duration,
    /// Linear memory it may have, in bytes.
    pub memory_limit: u64,
    /// Bytes of logs it may write, besides a result.
    pub max_logs: usize,
}

/// What a record of a session may cause.
#[derive(Clone, Copy, Debug)]
pub struct RecordLimits {
    /// How long it may take.
    pub wall: Duration,
    /// Linear memory of a call, in bytes.
    pub memory_bytes: u64,
    /// Bytes of the answer.
    pub answer_bytes: usize,
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

/// Code in a CVM, shared by all its calls; taken out when the last of these is dropped and the last call has ended.
#[derive(Clone)]
pub struct Code(Module);

impl Code {
    /// How calls of it end, if the guest has refused it.
    #[must_use]
    pub fn refusal(&self) -> Option<End> {
        self.0.refused().cloned().map(end_of)
    }
}

/// Why code is not in a CVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadFailed {
    /// The CVM has ended.
    Ended(Ended),
    /// The guest does not take it: how a call of it would end.
    Refused(End),
}

/// A running CVM.
pub struct Machine {
    cvm: Arc<Cvm>,
    /// Its tenant is between two CVMs, or memory of it is still to come: calls wait, whatever their limits.
    moving: AtomicBool,
    /// Its tenant runs elsewhere: no call begins here any more.
    left: AtomicBool,
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
            identity: Some(spec.identity),
            elastic: ElasticConfig {
                manager: Some(spec.manager),
                limits: spec.limits,
                ..ElasticConfig::default()
            },
            // A guest's last words are a defect of the guest: they hold no data of tenants.
            on_print: Box::new(|text| tracing::error!(text, "guest")),
            ..CvmConfig::default()
        })?;
        Ok(Self { cvm: Arc::new(cvm), moving: AtomicBool::new(false), left: AtomicBool::new(false) })
    }

    /// The CVM, for whoever shows it.
    #[must_use]
    pub fn cvm(&self) -> &Arc<Cvm> {
        &self.cvm
    }

    /// Brings short code in without waiting for the guest: what is called meanwhile waits there. `None` if it must be
    /// [loaded](Self::load), for which one waits.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn begin_load(&self, program: &Compiled) -> Result<Option<Code>, Ended> {
        Ok(self.cvm.post_module(program.file())?.map(Code))
    }

    /// Brings code in. Blocks for as long as copying takes.
    ///
    /// # Errors
    /// [`LoadFailed`].
    pub fn load(&self, program: &Compiled) -> Result<Code, LoadFailed> {
        match self.cvm.load_module(program.file()) {
            Ok(module) => Ok(Code(module)),
            Err(CvmError::Module(exit)) => Err(LoadFailed::Refused(end_of(exit))),
            Err(error) => Err(LoadFailed::Ended(error.into())),
        }
    }

    /// Brings a sealed package in. Blocks for as long as copying takes.
    ///
    /// # Errors
    /// [`LoadFailed`].
    pub fn load_package(&self, package: &[u8]) -> Result<Code, LoadFailed> {
        match self.cvm.load_package(package) {
            Ok(module) => Ok(Code(module)),
            Err(CvmError::Module(exit)) => Err(LoadFailed::Refused(end_of(exit))),
            Err(error) => Err(LoadFailed::Ended(error.into())),
        }
    }

    /// Asks for the offer of a session, and for what proves it.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub async fn evidence(&self, nonce: &[u8; 32]) -> Result<Vec<u8>, EvidenceError> {
        let (sender, receiver) = oneshot::channel();
        // Who waited may have given up.
        self.cvm.evidence(nonce, move |result| drop(sender.send(result)));
        receiver.await.unwrap_or(Err(EvidenceError::Ended))
    }

    /// Hands a record of a session over and waits for the one that answers it.
    ///
    /// # Errors
    /// [`CallFailed`]: the CVM is of no use any more.
    pub async fn record(&self, record: &[u8], limits: &RecordLimits) -> Result<Vec<u8>, CallFailed> {
        let request = Request {
            args: &[],
            env: &[],
            stdin: record,
            wall_limit: limits.wall,
            memory_limit: limits.memory_bytes,
            max_logs: limits.answer_bytes.saturating_sub(MAX_RESULT_BYTES),
        };
        let reply = self.finish(None, &request).await?;
        match reply.left.end {
            End::Exit(_) => Ok(reply.left.stdout),
            End::Error(text) | End::OutOfMemory(text) | End::Trap(text) => Err(CallFailed::Refused(text)),
            End::TimeLimit => Err(CallFailed::Refused("its time limit has passed".into())),
            End::Lost(text) => Err(CallFailed::Lost(Ended(text))),
        }
    }

    /// Runs code to its end. No thread waits for it; the CVM's own thread that reads its rings wakes the caller.
    ///
    /// # Errors
    /// [`CallFailed`]: the CVM is of no use any more.
    pub async fn call(&self, code: &Code, request: &Request<'_>) -> Result<Reply, CallFailed> {
        self.finish(Some(code), request).await
    }

    /// A call of some code, or of the sessions.
    async fn finish(&self, code: Option<&Code>, request: &Request<'_>) -> Result<Reply, CallFailed> {
        let begin = Instant::now();
        let (mut result, handle) = self.begin(code, request).await?;
        let deadline = tokio::time::Instant::now() + request.wall_limit + GRACE;
        let in_time = match tokio::time::timeout_at(deadline, &mut result).await {
            Ok(result) => result,
            Err(_) => {
                handle.cancel();
                self.after_cancel(&mut result).await
            }
        };
        let gone = || CallFailed::Lost(Ended(self.cvm.end_error().to_string()));
        let result = in_time.map_err(|_| gone())?;
        if matches!(result.exit, Exit::Error(_)) && self.cvm.has_ended() {
            return Err(gone());
        }
        let CallResult { exit, stdout, stderr, stdout_cut, stderr_cut, cpu, ran, .. } = result;
        let queued = begin.elapsed().saturating_sub(ran);
        Ok(Reply { left: Left { end: end_of(exit), stdout, stderr, stdout_cut, stderr_cut }, cpu, queued })
    }

    /// Waits for the end of a call that was cancelled. If it does not come the CVM is broken, but for one whose tenant moves: its tasks are parked, or wait for
    /// memory, or the answer is on its way from another node.
    async fn after_cancel(
        &self,
        result: &mut oneshot::Receiver<CallResult>,
    ) -> Result<CallResult, oneshot::error::RecvError> {
        loop {
            match tokio::time::timeout(CANCEL_GRACE, &mut *result).await {
                Ok(result) => return result,
                Err(_) if self.moving.load(Ordering::SeqCst) => {}
                Err(_) => {
                    tracing::error!("a call can't be ended: its CVM is ended");
                    self.stop().await;
                    return result.await;
                }
            }
        }
    }

    /// Its tenant moves, in either direction, or does so no more.
    pub fn set_moving(&self, moving: bool) {
        self.moving.store(moving, Ordering::SeqCst);
    }

    /// Its tenant runs elsewhere.
    pub fn set_left(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    /// Queues a call; waits while the CVM has no room for it.
    async fn begin(
        &self,
        code: Option<&Code>,
        request: &Request<'_>,
    ) -> Result<(oneshot::Receiver<CallResult>, CallHandle), CallFailed> {
        let call = Call {
            args: request.args,
            env: request.env,
            stdin: request.stdin,
            options: RunOptions { wall_limit: Some(request.wall_limit), ..RunOptions::default() },
            memory_limit: Some(request.memory_limit),
            max_output: request.max_logs + MAX_RESULT_BYTES,
        };
        let mut pause = BUSY_PAUSES.0;
        loop {
            let (sender, receiver) = oneshot::channel();
            // Who waited may have given up.
            let done = move |result| drop(sender.send(result));
            let made = match code {
                Some(code) => self.cvm.call(&code.0, call.clone(), done),
                None => self.cvm.record(&call, done),
            };
            match made {
                Ok(handle) => return Ok((receiver, handle)),
                Err(CallError::Busy) if self.left.load(Ordering::SeqCst) => {
                    return Err(CallFailed::NotBegun(Ended("the tenant has moved to another node".into())));
                }
                Err(CallError::Busy) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BUSY_PAUSES.1);
                }
                Err(CallError::Ended) => {
                    return Err(CallFailed::NotBegun(Ended(self.cvm.end_error().to_string())));
                }
                Err(error @ (CallError::TooLong { .. } | CallError::TooMany { .. })) => {
                    return Err(CallFailed::Refused(error.to_string()));
                }
            }
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.cvm.has_ended()
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
        let cvm = self.cvm.clone();
        // Fails only when stopping panicked, and then nothing is left to do.
        let _ = spawn_blocking(move || cvm.stop()).await;
    }
}

pub(super) fn end_of(exit: Exit) -> End {
    match exit {
        Exit::Code(code) => End::Exit(code),
        Exit::Trap(text) => End::Trap(text),
        Exit::Error(text) => End::Error(text),
        Exit::BrokenPipe => End::Trap("it wrote to a closed stream".into()),
        Exit::OutOfMemory(text) => End::OutOfMemory(text),
        Exit::TimeLimit(_) => End::TimeLimit,
    }
}
