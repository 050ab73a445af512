//! Runs precompiled Wasm: the engine, loading, one run of a program, and what its end means.

mod call;
mod epoch;
pub mod hooks;
pub mod memory;
pub mod slots;
mod spawn;
mod wasi;

pub use call::{load_module, run_call};

#[cfg(feature = "debug-image")]
use crate::arch;
use crate::arch::cpu;
use crate::children::{Child, Family, Kids, Loaded};
use crate::once::Once;
use crate::program::{Code, GuestSystem, Loading, Options, Owner, Program};
use crate::sealed::logs;
use crate::system::TaskSystem;
use crate::task::Begin;
use crate::{areas, phases, sockets, task};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use epoch::SharedEpoch;
use nacre_abi::elastic::ElasticWord;
use nacre_abi::message::ExitKind;
use nacre_abi::spawn::Status;
use nacre_engine::Header;
use nacre_engine::cpu::CpuFeatures;
use nacre_mm::entry::Perms;
use nacre_wasi::{Builder, Fs, Stop, Stream, WasiCtx};
use nacre_wval::StopReason;
use wasmtime::{
    Config, CustomCodeMemory, Engine, Extern, Instance, InstancePre, Linker, Memory, Module, Store, Trap,
    UpdateDeadline, ValRaw, WasmBacktrace,
};

/// What a program's host functions find in its store.
pub struct Context {
    wasi: WasiCtx<TaskSystem>,
    memory: Option<Memory>,
    /// What it has spawned; a call can't spawn.
    kids: Option<Kids>,
    /// How much memory it may still have. For calls.
    limit: call::MemoryLimit,
    runtime: &'static Runtime,
}

/// The engine and the functions it provides, shared by all programs of this CVM.
pub struct Runtime {
    engine: Engine,
    epoch: SharedEpoch,
    linker: Linker<Context>,
}

/// For programs: linear memories come from [`memory::Creator`].
static RUNTIME: Once<Runtime> = Once::new();
/// For calls: linear memories come from [`slots`].
static CALLS: Once<Runtime> = Once::new();

/// How a run ended.
pub struct Outcome {
    kind: ExitKind,
    code: u64,
    text: String,
}

impl Outcome {
    fn error(text: impl ToString) -> Outcome {
        let text = text.to_string();
        // The one thing that wasmtime says in words only: there is no memory for an instance.
        let kind = if text.contains("out of memory") { ExitKind::OutOfMemory } else { ExitKind::Error };
        Outcome { kind, code: 0, text }
    }

    /// Kind, code and text.
    pub fn parts(&self) -> (ExitKind, u32, &str) {
        (self.kind, self.code as u32, &self.text)
    }

    /// Kind and text of what is an error.
    pub fn into_error(self) -> (ExitKind, String) {
        (self.kind, self.text)
    }

    /// There was no memory for the task's stack.
    pub fn no_stack() -> Outcome {
        Outcome::error("out of memory: none is left for the program's stack; give the CVM more with --memory")
    }

    /// The task was told to end.
    pub fn stopped(reason: StopReason, options: Options) -> Outcome {
        let seconds = |ns: u64| ns as f64 / 1e9;
        let (kind, text) = match reason {
            StopReason::Cancelled => (ExitKind::Error, String::from("killed")),
            StopReason::WallLimit => {
                let limit = seconds(options.wall_limit_ns);
                (
                    ExitKind::TimeLimit,
                    format!("time limit: it ran for {limit} s; allow more with --time-limit"),
                )
            }
            StopReason::CpuLimit => {
                let limit = seconds(options.cpu_limit_ns);
                (ExitKind::TimeLimit, format!("time limit: it used {limit} s of CPU time; allow it more"))
            }
        };
        Outcome { kind, code: 0, text }
    }

    /// The same as the end of a spawned task: status and code.
    pub fn status(&self) -> (Status, u32) {
        match self.kind {
            ExitKind::Code => (Status::Exited, self.code as u32),
            ExitKind::Trap => (Status::Trapped, 0),
            ExitKind::TimeLimit => (Status::TimeLimit, 0),
            ExitKind::OutOfMemory => (Status::OutOfMemory, 0),
            ExitKind::BrokenPipe => (Status::Failed, 0),
            ExitKind::Error => (Status::Failed, 0),
        }
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
        // Nobody writes there: what follows is the end of the memory.
        protect(start, bytes, Perms::Read)
    }
}

fn protect(start: *const u8, bytes: usize, perms: Perms) -> wasmtime::Result<()> {
    areas::protect(start as u64, bytes as u64, Some(perms))
        .map_err(|_| wasmtime::Error::msg("out of page tables"))
}

/// The runtime of programs, made at its first use.
pub fn runtime() -> wasmtime::Result<&'static Runtime> {
    made(&RUNTIME, ElasticWord::EpochOfPrograms, |config| {
        config.with_host_memory(Arc::new(memory::Creator));
    })
}

/// The runtime of calls, made at its first use.
pub fn calls_runtime() -> wasmtime::Result<&'static Runtime> {
    made(&CALLS, ElasticWord::EpochOfCalls, |_| ())
}

fn made(
    place: &'static Once<Runtime>,
    word: ElasticWord,
    configure: impl FnOnce(&mut Config),
) -> wasmtime::Result<&'static Runtime> {
    if let Some(runtime) = place.get() {
        return Ok(runtime);
    }
    let mut config = Config::new();
    nacre_engine::configure(&mut config);
    config.with_custom_code_memory(Some(Arc::new(InPlace)));
    configure(&mut config);
    // SAFETY: the features of each module are checked against CPUID before it is loaded (`load`).
    unsafe { config.detect_host_feature(|_| Some(true)) };
    let engine = Engine::new(&config)?;
    let mut linker = Linker::new(&engine);
    wasi::link(&mut linker)?;
    spawn::link(&mut linker)?;
    // Two tasks may have made one each: the first to come here wins.
    Ok(place.get_or_set(Box::new(Runtime { engine, epoch: SharedEpoch::new(word), linker })))
}

/// CPU features that code uses which was loaded here.
static FEATURES: AtomicU64 = AtomicU64::new(0);

/// CPU features that the code of this CVM uses.
pub fn features_in_use() -> CpuFeatures {
    CpuFeatures::from_bits(FEATURES.load(Ordering::Relaxed)).unwrap_or_default()
}

/// Makes all running Wasm reach a safe point soon.
pub fn bump_epoch() {
    // The engines are the tenant's.
    if crate::migrate::holds_tenant() {
        return;
    }
    for runtime in [&RUNTIME, &CALLS].into_iter().filter_map(Once::get) {
        runtime.epoch.bump(&runtime.engine);
    }
}

/// Runs a program to its end and reports it. The body of a task.
pub fn run_program(program: &Arc<Program>, loading: Loading, begin: Begin) {
    let options = loading.options;
    let outcome = match begin {
        Begin::Now => {
            phases::mark(&phases::TASK);
            let outcome = run(program, loading, options).unwrap_or_else(|outcome| outcome);
            task::current().conclude();
            outcome
        }
        Begin::Stopped(reason) => Outcome::stopped(reason, options),
        Begin::NoMemory => Outcome::no_stack(),
    };
    if program.owner == Owner::Tenant {
        logs::ended(program, outcome.kind, outcome.code, &outcome.text);
    }
    program.report_exit(outcome.kind, outcome.code, &outcome.text);
}

fn run(program: &Arc<Program>, loading: Loading, options: Options) -> Result<Outcome, Outcome> {
    let Loading { code, args, env, preopens, terminals, fs, error, .. } = loading;
    if let Some((kind, text)) = error {
        return Err(Outcome { kind, code: 0, text });
    }
    // Takes a lock for each type: all on one trip to vCPU 0, which for a module of 26 MB takes a millisecond.
    let (runtime, loaded) = task::on_normal(|| {
        let runtime =
            runtime().map_err(|error| Outcome::error(format!("the engine can't be made: {error:#}")))?;
        phases::mark(&phases::ENGINE);
        Ok((runtime, prepare(runtime, code)?))
    })?;
    phases::mark(&phases::LOADED);
    let family = Arc::new(Family::new(program.clone(), loaded, args, env, terminals));
    let preopens =
        preopens.into_iter().enumerate().map(|(number, name)| (name, format!("/{number}"))).collect();
    let listens = sockets::begin(program);
    let wasi = new_wasi(&family, preopens, listens, fs)?;
    let mut store = new_store(runtime, wasi, Some(Kids::new(family.clone(), None)));
    let ended = call_start(&family.loaded, &mut store);
    let outcome = outcome(ended, options);
    let Context { wasi, kids, .. } = store.into_data();
    sockets::end(program, outcome.kind == ExitKind::Code);
    drop(kids);
    family.close();
    let (_, fs) = wasi.into_parts();
    keep_fs(program, fs);
    Ok(outcome)
}

/// A WASI context with the streams, arguments and environment of a program.
fn new_wasi(
    family: &Family,
    preopens: Vec<(String, String)>,
    listens: bool,
    fs: Fs,
) -> Result<WasiCtx<TaskSystem>, Outcome> {
    let [stdin, stdout, stderr] = family.terminals;
    Builder::new()
        .args(family.args.clone())
        .env(family.env.clone())
        .preopens(preopens)
        .listens(listens)
        .tty(stdin, stdout, stderr)
        .build(TaskSystem::Program(GuestSystem(family.program.clone())), fs)
        .map_err(Outcome::error)
}

/// Runs a spawned task to its end; returns how it ended, with the status and code for its report, and its result.
pub fn run_child(child: &Arc<Child>) -> ((Status, u32), Vec<u8>) {
    let mut result = Vec::new();
    let outcome = call_child(child, &mut result);
    let end = match outcome {
        Ok(code) => (Status::Returned, code),
        Err(outcome) => {
            let (status, code) = match task::current().stopped() {
                Some(StopReason::Cancelled) => (Status::Cancelled, 0),
                Some(_) => (Status::TimeLimit, 0),
                None => outcome.status(),
            };
            if !outcome.text.is_empty() && !matches!(status, Status::Cancelled | Status::TimeLimit) {
                let text = format!("task {}: {}\n", child.name, outcome.text);
                GuestSystem(child.family.program.clone()).write_all(Stream::Stderr, text.as_bytes());
            }
            (status, code)
        }
    };
    child.family.program.count_child(task::current_cpu_cycles());
    (end, result)
}

/// Instantiates a spawned task's module and calls its function; what it gave goes to `result`.
fn call_child(child: &Arc<Child>, result: &mut Vec<u8>) -> Result<u32, Outcome> {
    let family = &child.family;
    let runtime = runtime().map_err(Outcome::error)?;
    let fs = Fs::new(0).map_err(Outcome::error)?;
    let wasi = new_wasi(family, Vec::new(), false, fs)?;
    let mut store = new_store(runtime, wasi, Some(Kids::new(family.clone(), Some(child.clone()))));
    let called = instantiate(&family.loaded.pre, &mut store).and_then(|instance| {
        if !family.loaded.is_task(&child.name) {
            return Err(wasmtime::Error::msg("it exports no such function"));
        }
        let mut values = [ValRaw::u32(child.message.len() as u32)];
        // SAFETY: the function takes and returns one i32, as its module says.
        unsafe { call_checked(instance, &mut store, &child.name, &mut values)? };
        Ok(values[0].get_u32())
    });
    let ended = match called {
        Ok(code) => Ok(code),
        Err(error) => Err(outcome(Err(error), Options::default())),
    };
    if matches!(&ended, Ok(_) | Err(Outcome { kind: ExitKind::Code, .. })) {
        *result =
            store.data_mut().kids.as_mut().map(|kids| core::mem::take(&mut kids.result)).unwrap_or_default();
    }
    ended
}

fn keep_fs(program: &Program, fs: Fs) {
    program.fs_after.put(Box::new(fs));
}

/// Loads code, and does once all that would take a lock of wasmtime's later, on the way to an instance.
fn prepare(runtime: &Runtime, code: Code) -> Result<Loaded, Outcome> {
    task::on_normal(|| {
        let module = load(runtime, &code)?;
        let pre = resolve(runtime, &module)?;
        module.initialize_copy_on_write_image().map_err(Outcome::error)?;
        Ok(Loaded::new(pre, module, code))
    })
}

/// Checks and loads precompiled code.
fn load(runtime: &Runtime, code: &Code) -> Result<Module, Outcome> {
    let bytes = code.bytes();
    let header = Header::parse(bytes).map_err(Outcome::error)?;
    header.check_compatible(cpu::features()).map_err(Outcome::error)?;
    FEATURES.fetch_or(header.target.features().bits(), Ordering::Relaxed);
    let mut available = crate::memory::available_bytes();
    if header.min_memory_bytes > available && areas::give_up_idle() {
        available = crate::memory::available_bytes();
    }
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
fn resolve(runtime: &Runtime, module: &Module) -> Result<InstancePre<Context>, Outcome> {
    runtime.linker.instantiate_pre(module).map_err(|error| {
        let provided = "Nacre provides wasi_snapshot_preview1 and nacre";
        let known = [wasi::MODULE, nacre_abi::spawn::MODULE];
        let missing = module.imports().find(|import| !known.contains(&import.module()));
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

/// A store whose Wasm comes to a safe point when the epoch is bumped.
fn new_store(runtime: &'static Runtime, wasi: WasiCtx<TaskSystem>, kids: Option<Kids>) -> Store<Context> {
    let mut store = Store::new(
        &runtime.engine,
        Context { wasi, memory: None, kids, limit: call::MemoryLimit::new(u64::MAX), runtime },
    );
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|context| {
        let runtime = context.data().runtime;
        runtime.epoch.settle(&runtime.engine);
        match task::safe_point() {
            Ok(()) => Ok(UpdateDeadline::Continue(1)),
            Err(_) => Err(wasi::Stopped(Stop::Killed).into()),
        }
    });
    store
}

fn instantiate(pre: &InstancePre<Context>, store: &mut Store<Context>) -> wasmtime::Result<Instance> {
    let instance = pre.instantiate(&mut *store)?;
    if let Some(Extern::Memory(memory)) = instance.get_export(&mut *store, "memory") {
        store.data_mut().memory = Some(memory);
    }
    Ok(instance)
}

/// Instantiates and calls `_start`.
fn call_start(loaded: &Loaded, store: &mut Store<Context>) -> wasmtime::Result<()> {
    phases::mark(&phases::FIRST_WASM);
    let instance = instantiate(&loaded.pre, store)?;
    start(loaded, instance, store)
}

/// Calls `_start`.
fn start(loaded: &Loaded, instance: Instance, store: &mut Store<Context>) -> wasmtime::Result<()> {
    if !loaded.has_start {
        return Err(wasmtime::Error::msg(
            "it exports no function _start: build it as a command (a WASI program), not as a library",
        ));
    }
    // SAFETY: the function takes and returns nothing, as its module says.
    unsafe { call_checked(instance, store, "_start", &mut []) }
}

/// Calls an exported function whose type was looked at when the module was loaded: to look at it here would take a lock.
///
/// # Safety
/// The function takes the values, and returns what has room in them.
unsafe fn call_checked(
    instance: Instance,
    store: &mut Store<Context>,
    name: &str,
    values: &mut [ValRaw],
) -> wasmtime::Result<()> {
    let function = instance.get_func(&mut *store, name);
    let function = function.ok_or_else(|| wasmtime::Error::msg("it exports no such function"))?;
    store.data().runtime.epoch.share(&function, store);
    // SAFETY: the caller's promise.
    unsafe { function.call_unchecked(&mut *store, values) }
}

/// What the end of a run means; `options` are what the task was started with.
fn outcome(ended: wasmtime::Result<()>, options: Options) -> Outcome {
    let out_of_memory = task::current().frame_missing.replace(false);
    let Err(error) = ended else { return Outcome { kind: ExitKind::Code, code: 0, text: String::new() } };
    if let Some(wasi::Stopped(stop)) = error.downcast_ref() {
        if let (Stop::Killed, Some(reason)) = (stop, task::current().stopped()) {
            return Outcome::stopped(reason, options);
        }
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
    let Some(loading) = program.loading.take() else {
        return Err(Outcome::error("no program is loaded"));
    };
    let runtime = runtime().map_err(Outcome::error)?;
    let Loading { code, args, env, terminals, .. } = *loading;
    let loaded = prepare(runtime, code)?;
    let family = Arc::new(Family::new(program.clone(), loaded, args, env, terminals));
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let fs = Fs::new(0).map_err(Outcome::error)?;
        let wasi = Builder::new()
            .build(TaskSystem::Program(GuestSystem(program.clone())), fs)
            .map_err(Outcome::error)?;
        let kids = Some(Kids::new(family.clone(), None));
        let start = arch::rdtsc();
        let mut store = new_store(runtime, wasi, kids);
        call_start(&family.loaded, &mut store).map_err(Outcome::error)?;
        drop(store);
        samples.push(arch::rdtsc() - start);
    }
    Ok(samples)
}
