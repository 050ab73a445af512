//! Modules become code: in child processes that are bounded in memory and time, in fair order, through a cache.
//!
//! The node itself never looks into a module: who sends one that makes the compiler explode loses a child process.

mod fair;
mod recent;

pub use fair::{Fair, Slot};

use crate::names::{Digest, TenantName};
use nacre_compile::cache::{Cache, Key};
use nacre_compile::host_cpu;
use nacre_compile::program::Program;
use nacre_compile::worker::{Answer, Bounds};
use nacre_engine::CpuTarget;
use recent::Recent;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// What one compilation may take.
pub const BOUNDS: Bounds = Bounds { memory_bytes: 4 << 30, cpu: Duration::from_secs(120) };
/// How long one compilation may take by the clock.
const WALL_LIMIT: Duration = Duration::from_secs(180);
/// Compiled code kept on the disk, in bytes.
const CACHE_BYTES: u64 = 8 << 30;
/// Largest answer of a child in bytes.
const MAX_ANSWER: u64 = 1 << 30;
/// Compiled code that is kept in memory, beside the cache on the disk.
const RECENT_BYTES: usize = 32 << 20;
/// Compilations that one tenant may have waiting.
const MAX_WAITING: usize = 64;

/// Why there is no code, with the remedy after "; ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The module is at fault.
    #[error("the module {0}")]
    Module(String),
    /// It takes more than it may.
    #[error("the module takes more than {what} to compile; make it smaller")]
    TooMuch {
        /// Of what.
        what: String,
    },
    /// The tenant has too many waiting.
    #[error("{MAX_WAITING} modules of this tenant wait to be compiled; try again later")]
    Busy,
    /// The machine is at fault.
    #[error("the compiler can't be run ({0}); try again later")]
    System(String),
}

/// Compiles for all tenants.
pub struct Compiler {
    fair: Fair<TenantName>,
    cache: Cache,
    recent: Mutex<Recent>,
    program: PathBuf,
}

impl Compiler {
    /// A compiler that keeps its results in `dir` and runs `program`, which is `nacre`.
    #[must_use]
    pub fn new(dir: &Path, program: PathBuf) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        // Half of the machine, so that compiling never keeps calls from running.
        let fair = Fair::new((cpus / 2).max(1), MAX_WAITING);
        let cache = Cache::new(dir.to_owned(), CACHE_BYTES);
        Self { fair, cache, recent: Mutex::new(Recent::new(RECENT_BYTES)), program }
    }

    /// The code of a module, from the cache or compiled. `module` is asked for its bytes when they are needed.
    ///
    /// # Errors
    /// [`CompileError`].
    pub async fn code(
        &self,
        tenant: &TenantName,
        digest: Digest,
        module: impl AsyncFnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<Arc<Program>, CompileError> {
        if let Some(program) = self.cached(digest).await {
            return Ok(program);
        }
        let _slot = self.fair.enter(tenant.clone()).await.ok_or(CompileError::Busy)?;
        // Somebody else may have compiled it meanwhile.
        if let Some(program) = self.cached(digest).await {
            return Ok(program);
        }
        let begin = Instant::now();
        let module = module().await.map_err(CompileError::System)?;
        let bytes = module.len();
        let result = self.compile(module).await;
        let elapsed = begin.elapsed();
        crate::metrics::compiled(result.is_ok(), elapsed);
        tracing::info!(%tenant, bytes, ok = result.is_ok(), elapsed_ms = elapsed.as_millis() as u64, "compiled");
        let program = Arc::new(result?);
        self.recent().put(digest, &program);
        let (cache, kept) = (self.cache.clone(), program.clone());
        let put = tokio::task::spawn_blocking(move || {
            cache.put(&Key::of_digest(digest.0, CpuTarget::X86_64V3), &kept)
        });
        if let Ok(Err(error)) = put.await {
            tracing::warn!(%error, "compiled code is not kept");
        }
        Ok(program)
    }

    /// How many modules wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.fair.waiting()
    }

    async fn cached(&self, digest: Digest) -> Option<Arc<Program>> {
        let recent = self.recent().get(digest);
        if recent.is_some() {
            return recent;
        }
        let cache = self.cache.clone();
        let get = move || cache.get(&Key::of_digest(digest.0, CpuTarget::X86_64V3)).map(Arc::new);
        let program = tokio::task::spawn_blocking(get).await.ok().flatten()?;
        self.recent().put(digest, &program);
        Some(program)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn compile(&self, module: Vec<u8>) -> Result<Program, CompileError> {
        let system = |error: std::io::Error| CompileError::System(error.to_string());
        let mut child = self.start().map_err(system)?;
        let mut answer = Vec::new();
        let talk = async {
            let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
            let write = async move {
                if let Some(mut stdin) = stdin {
                    // A child that died has not read everything; its answer tells.
                    let _ = stdin.write_all(&module).await;
                }
            };
            let read = async {
                match stdout {
                    Some(stdout) => stdout.take(MAX_ANSWER).read_to_end(&mut answer).await.map(drop),
                    None => Ok(()),
                }
            };
            let (_, read) = tokio::join!(write, read);
            read?;
            child.wait().await
        };
        let status = match tokio::time::timeout(WALL_LIMIT, talk).await {
            Ok(status) => status.map_err(system)?,
            // Dropping it kills the child.
            Err(_) => return Err(CompileError::TooMuch { what: format!("{} s", WALL_LIMIT.as_secs()) }),
        };
        understand(answer, status)
    }

    fn start(&self) -> std::io::Result<Child> {
        Command::new(&self.program)
            .arg("compile-worker")
            .args(["--memory-bytes", &BOUNDS.memory_bytes.to_string()])
            .args(["--cpu-seconds", &BOUNDS.cpu.as_secs().to_string()])
            .env_clear()
            // One thread: its slot is one CPU.
            .env("RAYON_NUM_THREADS", "1")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }
}

fn understand(answer: Vec<u8>, status: std::process::ExitStatus) -> Result<Program, CompileError> {
    use std::os::unix::process::ExitStatusExt;
    // SIGXCPU and SIGKILL come at the CPU limit, SIGABRT and SIGSEGV when memory is refused.
    let too_much = |what: String| Err(CompileError::TooMuch { what });
    if !status.success() {
        return match status.signal() {
            Some(9 | 24) => too_much(format!("{} s of CPU time", BOUNDS.cpu.as_secs())),
            Some(_) => too_much(format!("{} GiB of memory", BOUNDS.memory_bytes >> 30)),
            None => Err(CompileError::System(format!("it ended with {status}"))),
        };
    }
    match Answer::split(&answer) {
        Some((Answer::Program, _)) => {
            let mut code = answer;
            code.remove(0);
            Program::from_bytes(code, host_cpu::features())
                .map_err(|error| CompileError::System(error.to_string()))
        }
        Some((Answer::Module | Answer::Compiler, text)) => {
            Err(CompileError::Module(String::from_utf8_lossy(text).into_owned()))
        }
        None => Err(CompileError::System("it gave no answer".into())),
    }
}
