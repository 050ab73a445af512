//! Runs precompiled Wasm: the engine, loading, one run of a program, and what its end means.

pub mod hooks;
pub mod memory;
mod wasi;

#[cfg(feature = "debug-image")]
use crate::arch;
use crate::arch::cpu;
use crate::program::{Code, GuestSystem, Loading, Program};
use crate::sync::SpinLock;
use crate::{areas, phases, task, vcpu};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
#[cfg(feature = "debug-image")]
use alloc::vec::Vec;
use core::fmt::Write;
use core::ptr::NonNull;
use nacre_abi::message::ExitKind;
use nacre_engine::Header;
use nacre_mm::entry::Perms;
use nacre_wasi::{Builder, Fs, Stop, WasiCtx};
use wasmtime::{
    Config, CustomCodeMemory, Engine, Extern, InstancePre, Linker, Memory, Module, Store, Trap,
    UpdateDeadline, WasmBacktrace,
};

/// What a program's host functions find in its store.
pub struct Context {
    wasi: WasiCtx<GuestSystem>,
    memory: Option<Memory>,
}

/// The engine and the functions it provides, shared by all programs of this CVM.
pub struct Runtime {
    engine: Engine,
    linker: Linker<Context>,
}

static RUNTIME: SpinLock<Option<Arc<Runtime>>> = SpinLock::new(None);

/// How a run ended.
pub struct Outcome {
    kind: ExitKind,
    code: u64,
    text: String,
}

impl Outcome {
    fn error(text: impl ToString) -> Outcome {
        Outcome { kind: ExitKind::Error, code: 0, text: text.to_string() }
    }
}

/// Makes code executable where it lies, instead of copying it.
struct InPlace;

impl CustomCodeMemory for InPlace {
    fn required_alignment(&self) -> usize {
        nacre_abi::PAGE_BYTES as usize
    }

    fn publish_executable(&self, start: *const u8, bytes: usize) -> wasmtime::Result<()> {
        protect(start, bytes, Perms::ReadExecute)
    }

    fn unpublish_executable(&self, start: *const u8, bytes: usize) -> wasmtime::Result<()> {
        protect(start, bytes, Perms::ReadWrite)
    }
}

fn protect(start: *const u8, bytes: usize, perms: Perms) -> wasmtime::Result<()> {
    areas::protect(start as u64, bytes as u64, Some(perms))
        .map_err(|_| wasmtime::Error::msg("out of page tables"))
}

/// The runtime, made at its first use.
pub fn runtime() -> wasmtime::Result<Arc<Runtime>> {
    if let Some(runtime) = &*RUNTIME.lock() {
        return Ok(runtime.clone());
    }
    let mut config = Config::new();
    nacre_engine::configure(&mut config);
    config.with_custom_code_memory(Some(Arc::new(InPlace)));
    config.with_host_memory(Arc::new(memory::Creator));
    // SAFETY: the features of each module are checked against CPUID before it is loaded (`load`).
    unsafe { config.detect_host_feature(|_| Some(true)) };
    let engine = Engine::new(&config)?;
    let mut linker = Linker::new(&engine);
    wasi::link(&mut linker)?;
    let runtime = Arc::new(Runtime { engine, linker });
    // Two tasks may have made one each: the first to come here wins.
    Ok(RUNTIME.lock().get_or_insert(runtime).clone())
}

/// Makes all running Wasm reach a safe point soon.
pub fn bump_epoch() {
    let runtime = RUNTIME.lock().clone();
    if let Some(runtime) = runtime {
        runtime.engine.increment_epoch();
    }
}

/// Runs a program to its end and reports it. The body of a task.
pub fn run_program(program: &Arc<Program>) {
    phases::mark(&phases::TASK);
    task::current().program.set(Some(program.id));
    let Some(loading) = program.loading.lock().take() else { return };
    let Outcome { kind, code, text } = run(program, loading).unwrap_or_else(|outcome| outcome);
    task::current().program.set(None);
    program.report_exit(kind, code, &text);
}

fn run(program: &Arc<Program>, loading: Loading) -> Result<Outcome, Outcome> {
    let Loading { code, args, env, preopens, terminals, fs, error, .. } = loading;
    if let Some((kind, text)) = error {
        return Err(Outcome { kind, code: 0, text });
    }
    let runtime =
        runtime().map_err(|error| Outcome::error(format!("the engine can't be made: {error:#}")))?;
    phases::mark(&phases::ENGINE);
    let module = load(&runtime, &code)?;
    let pre = resolve(&runtime, &module)?;
    phases::mark(&phases::LOADED);
    let preopens =
        preopens.into_iter().enumerate().map(|(number, name)| (name, format!("/{number}"))).collect();
    let wasi = Builder::new()
        .args(args)
        .env(env)
        .preopens(preopens)
        .tty(terminals[0], terminals[1], terminals[2])
        .build(GuestSystem(program.clone()), fs)
        .map_err(Outcome::error)?;
    let mut store = new_store(&runtime, wasi);
    let ended = call_start(&pre, &mut store);
    let outcome = outcome(ended);
    let (_, fs) = store.into_data().wasi.into_parts();
    keep_fs(program, fs);
    // The module's code lies in `code`: whatever refers to it goes first.
    drop((pre, module));
    drop(code);
    Ok(outcome)
}

fn keep_fs(program: &Program, fs: Fs) {
    *program.fs_after.lock() = Some(fs);
}

/// Checks and loads precompiled code.
pub fn load(runtime: &Runtime, code: &Code) -> Result<Module, Outcome> {
    let bytes = code.bytes();
    let header = Header::parse(bytes).map_err(Outcome::error)?;
    header.check_compatible(cpu::features()).map_err(Outcome::error)?;
    let available = crate::memory::available_bytes();
    if header.min_memory_bytes > available {
        let text = format!(
            "the program's linear memory starts with {} MiB, but this CVM has only {} MiB left: give it more with --memory",
            header.min_memory_bytes.div_ceil(1 << 20),
            available >> 20
        );
        return Err(Outcome { kind: ExitKind::OutOfMemory, code: 0, text });
    }
    let payload = header.payload(bytes).map_err(Outcome::error)?;
    // SAFETY: whoever deploys code to this CVM is trusted with its tenant's data (an open CVM); the header shows that this
    // version of wasmtime made it with these settings. `code` outlives the module (see `run`).
    unsafe { Module::deserialize_raw(&runtime.engine, NonNull::from(payload)) }.map_err(|error| {
        Outcome::error(format!("the precompiled code can't be loaded: {error:#}; compile it again"))
    })
}

/// Finds everything the module imports.
pub fn resolve(runtime: &Runtime, module: &Module) -> Result<InstancePre<Context>, Outcome> {
    runtime.linker.instantiate_pre(module).map_err(|error| {
        let provided = "Nacre provides wasi_snapshot_preview1 only";
        let missing = module.imports().find(|import| import.module() != wasi::MODULE);
        match missing {
            Some(import) => Outcome::error(format!(
                "import {}.{} is provided by nobody; {provided}",
                import.module(),
                import.name()
            )),
            None => Outcome::error(format!("{error:#}; {provided}")),
        }
    })
}

/// A store whose Wasm yields at safe points when the epoch is bumped.
pub fn new_store(runtime: &Runtime, wasi: WasiCtx<GuestSystem>) -> Store<Context> {
    let mut store = Store::new(&runtime.engine, Context { wasi, memory: None });
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        task::yield_now();
        if store.data().wasi.system().0.is_killed() {
            Err(wasi::Stopped(Stop::Killed).into())
        } else {
            Ok(UpdateDeadline::Continue(1))
        }
    });
    store
}

/// Instantiates and calls `_start`.
fn call_start(pre: &InstancePre<Context>, store: &mut Store<Context>) -> wasmtime::Result<()> {
    phases::mark(&phases::FIRST_WASM);
    let instance = pre.instantiate(&mut *store)?;
    if let Some(Extern::Memory(memory)) = instance.get_export(&mut *store, "memory") {
        store.data_mut().memory = Some(memory);
    }
    let start = instance.get_typed_func::<(), ()>(&mut *store, "_start").map_err(|_| {
        wasmtime::Error::msg(
            "it exports no function _start: build it as a command (a WASI program), not as a library",
        )
    })?;
    start.call(&mut *store, ())
}

/// What the end of a run means.
fn outcome(ended: wasmtime::Result<()>) -> Outcome {
    let out_of_memory = vcpu::take_out_of_memory();
    let Err(error) = ended else { return Outcome { kind: ExitKind::Code, code: 0, text: String::new() } };
    if let Some(wasi::Stopped(stop)) = error.downcast_ref() {
        let (kind, code) = match stop {
            Stop::Exit(code) => (ExitKind::Code, u64::from(*code)),
            Stop::BrokenPipe => (ExitKind::BrokenPipe, 0),
            Stop::Killed => (ExitKind::Error, 0),
        };
        return Outcome {
            kind,
            code,
            text: if kind == ExitKind::Error { "killed".into() } else { String::new() },
        };
    }
    if out_of_memory {
        let text =
            "out of memory: no frame is left for a page it was promised; give the CVM more with --memory"
                .to_string();
        return Outcome { kind: ExitKind::OutOfMemory, code: 0, text };
    }
    let backtrace = error.downcast_ref::<WasmBacktrace>().map(backtrace).unwrap_or_default();
    match error.downcast_ref::<Trap>() {
        Some(trap) => Outcome { kind: ExitKind::Trap, code: 0, text: format!("{trap}{backtrace}") },
        None if error.is::<wasmtime::ThrownException>() => Outcome {
            kind: ExitKind::Trap,
            code: 0,
            text: format!("wasm exception: nobody caught it{backtrace}"),
        },
        None => Outcome::error(format!("{:#}", error)),
    }
}

/// One line per frame, innermost first.
fn backtrace(trace: &WasmBacktrace) -> String {
    let mut text = String::new();
    for (number, frame) in trace.frames().iter().enumerate() {
        let module = frame.module().name().unwrap_or("<unnamed module>");
        let name = match frame.func_name() {
            Some(name) => name.to_string(),
            None => format!("<function {}>", frame.func_index()),
        };
        // No offset: code is compiled from a module that was rewritten, whose offsets are not those of the program's file.
        let _ = write!(text, "\n  {number}: {module}!{name}");
    }
    text
}

/// Time that creating an instance of a loaded program and calling its empty `_start` takes, in cycles, `count` times.
#[cfg(feature = "debug-image")]
pub fn measure_instances(program: &Arc<Program>, count: usize) -> Result<Vec<u64>, Outcome> {
    let Some(loading) = program.loading.lock().take() else {
        return Err(Outcome::error("no program is loaded"));
    };
    let runtime = runtime().map_err(Outcome::error)?;
    let module = load(&runtime, &loading.code)?;
    let pre = resolve(&runtime, &module)?;
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let wasi = Builder::new()
            .build(GuestSystem(program.clone()), Fs::new(0).map_err(Outcome::error)?)
            .map_err(Outcome::error)?;
        let start = arch::rdtsc();
        let mut store = new_store(&runtime, wasi);
        call_start(&pre, &mut store).map_err(Outcome::error)?;
        drop(store);
        samples.push(arch::rdtsc() - start);
    }
    drop((pre, module));
    Ok(samples)
}
