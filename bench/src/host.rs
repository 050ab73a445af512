//! The baseline: wasmtime in this process, with the same WASI code as the guest's.

use crate::BenchError;
use crate::machine::Timer;
use nacre_engine::CpuTarget;
use nacre_engine::compiler::{compiling_config, prepare};
use nacre_wasi::{
    Builder, Call, Clock, Errno, Fs, Interest, Sockets, Stop, Stream, StreamError, System, WasiCtx,
};
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wasmtime::{
    Caller, Config, Engine, Extern, InstancePre, Linker, Memory, Module, PoolingAllocationConfig, Store,
};

/// Instances that [`HostEngine::pooled`] can have at once.
const POOL_INSTANCES: u32 = 128;
/// Memory of an instance that it zeroes instead of giving it back to the kernel.
const POOL_RESIDENT_BYTES: usize = 1 << 20;

const WASI: &str = "wasi_snapshot_preview1";

/// What a program's host functions find in its store.
struct Context {
    wasi: WasiCtx<HostSystem>,
    memory: Option<Memory>,
}

/// An engine and the functions it provides.
pub struct HostEngine {
    engine: Engine,
    linker: Linker<Context>,
    /// Whether modules are prepared as they are for a guest.
    prepares: bool,
}

/// A program that is compiled for one engine.
pub struct HostProgram {
    module: Module,
    pre: InstancePre<Context>,
    engine: Engine,
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// From before the instance was made to its end.
    pub elapsed: Duration,
    /// Processor time of this process, all threads, in that time.
    pub cpu: Duration,
    /// What it wrote to standard output.
    pub output: Vec<u8>,
}

impl HostEngine {
    /// With exactly what the guest uses: its settings, its target.
    ///
    /// # Errors
    /// If there is no compiler for this machine.
    pub fn same() -> Result<Self, BenchError> {
        Self::new(&compiling_config(CpuTarget::X86_64V3)?, true)
    }

    /// With wasmtime's own defaults: no epoch checks, this CPU's features.
    ///
    /// # Errors
    /// If there is no compiler for this machine.
    pub fn defaults() -> Result<Self, BenchError> {
        Self::new(&Config::new(), false)
    }

    /// With the guest's settings and wasmtime's pool of instances, whose memories start from copy-on-write images: the engine's
    /// own best for many short instances.
    ///
    /// # Errors
    /// If there is no compiler for this machine, or no address space for the pool.
    pub fn pooled() -> Result<Self, BenchError> {
        let mut config = compiling_config(CpuTarget::X86_64V3)?;
        let mut pool = PoolingAllocationConfig::default();
        pool.total_memories(POOL_INSTANCES)
            .total_tables(POOL_INSTANCES)
            .total_core_instances(POOL_INSTANCES)
            .max_memory_size(1 << 30)
            .max_core_instance_size(4 << 20)
            .linear_memory_keep_resident(POOL_RESIDENT_BYTES)
            .table_keep_resident(POOL_RESIDENT_BYTES);
        config.allocation_strategy(pool);
        Self::new(&config, true)
    }

    fn new(config: &Config, prepares: bool) -> Result<Self, BenchError> {
        let engine = Engine::new(config)?;
        let mut linker = Linker::new(&engine);
        link(&mut linker)?;
        Ok(Self { engine, linker, prepares })
    }

    /// Compiles a program in binary or text form.
    ///
    /// # Errors
    /// If it can't be compiled or imports something else than WASI.
    pub fn load(&self, source: &[u8]) -> Result<HostProgram, BenchError> {
        let mut wasm = binary_form(source)?;
        if self.prepares {
            wasm = prepare(&wasm)
                .map_err(|error| BenchError::program("a built-in program", error.to_string()))?;
        }
        let module = Module::new(&self.engine, &wasm)?;
        let pre = self.linker.instantiate_pre(&module)?;
        Ok(HostProgram { module, pre, engine: self.engine.clone() })
    }
}

/// A program's binary form.
///
/// # Errors
/// If its text form is wrong.
pub fn binary_form(source: &[u8]) -> Result<Vec<u8>, BenchError> {
    let wasm = wat::parse_bytes(source)
        .map_err(|error| BenchError::program("a built-in program", error.to_string()))?;
    Ok(wasm.into_owned())
}

impl HostProgram {
    /// Its compiled form, byte for byte what runs here.
    ///
    /// # Errors
    /// If it can't be written down.
    pub fn code(&self) -> Result<Vec<u8>, BenchError> {
        Ok(self.module.serialize()?)
    }

    /// Runs `_start` in a fresh instance; compiling is not part of the time.
    ///
    /// # Errors
    /// If it traps or exits with anything else than 0.
    pub fn run(&self, argv: Vec<String>) -> Result<Run, BenchError> {
        let name = argv.first().cloned().unwrap_or_default();
        let wasi = context(argv, Vec::new(), Vec::new())?;
        let timer = Timer::start();
        let mut store = self.store(wasi);
        let ended = self.start(&mut store);
        let (elapsed, cpu) = timer.stop();
        match ended {
            Err(error) if !matches!(error.downcast_ref(), Some(Stopped(Stop::Exit(0)))) => Err(error.into()),
            _ if store.data().wasi.system().lost => {
                Err(BenchError::program(&name, "wrote to standard error"))
            }
            _ => Ok(Run { elapsed, cpu, output: store.into_data().wasi.into_parts().0.output }),
        }
    }

    /// Time that making an instance, calling its empty `_start` and dropping it takes, `count` times, in nanoseconds.
    ///
    /// # Errors
    /// If it fails.
    pub fn instances(&self, count: usize) -> Result<Vec<f64>, BenchError> {
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            let wasi = context(Vec::new(), Vec::new(), Vec::new())?;
            let begin = Instant::now();
            let mut store = self.store(wasi);
            self.start(&mut store)?;
            drop(store);
            samples.push(begin.elapsed().as_nanos() as f64);
        }
        Ok(samples)
    }

    /// Runs `_start` in a fresh instance with this environment and standard input; returns what it wrote to standard output.
    ///
    /// # Errors
    /// If it traps or exits with anything else than 0.
    pub fn call(&self, env: Vec<(String, String)>, input: Vec<u8>) -> Result<Vec<u8>, BenchError> {
        let mut store = self.store(context(Vec::new(), env, input)?);
        match self.start(&mut store) {
            Err(error) if !matches!(error.downcast_ref(), Some(Stopped(Stop::Exit(0)))) => Err(error.into()),
            _ => Ok(store.into_data().wasi.into_parts().0.output),
        }
    }

    fn store(&self, wasi: WasiCtx<HostSystem>) -> Store<Context> {
        let mut store = Store::new(&self.engine, Context { wasi, memory: None });
        // Nobody increments it; where the engine has no epochs it means nothing.
        store.set_epoch_deadline(1);
        store
    }

    fn start(&self, store: &mut Store<Context>) -> wasmtime::Result<()> {
        let instance = self.pre.instantiate(&mut *store)?;
        if let Some(Extern::Memory(memory)) = instance.get_export(&mut *store, "memory") {
            store.data_mut().memory = Some(memory);
        }
        instance.get_typed_func::<(), ()>(&mut *store, "_start")?.call(&mut *store, ())
    }
}

fn context(
    argv: Vec<String>,
    env: Vec<(String, String)>,
    input: Vec<u8>,
) -> Result<WasiCtx<HostSystem>, BenchError> {
    let fs = Fs::new(0).map_err(|error| BenchError::program("the file system", format!("{error:?}")))?;
    let system = HostSystem { begin: Instant::now(), output: Vec::new(), lost: false, input, read: 0 };
    Builder::new()
        .args(argv)
        .env(env)
        .build(system, fs)
        .map_err(|error| BenchError::program("WASI", error.to_string()))
}

/// The operating system under a program's WASI context. Output is kept, input is there from the start.
struct HostSystem {
    input: Vec<u8>,
    /// Bytes of it that were read.
    read: usize,
    begin: Instant,
    output: Vec<u8>,
    /// Something was written to standard error.
    lost: bool,
}

impl Sockets for HostSystem {}

impl System for HostSystem {
    fn clock_ns(&self, clock: Clock) -> u64 {
        let time = match clock {
            Clock::Realtime => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Clock::Monotonic | Clock::ProcessCpu | Clock::ThreadCpu => self.begin.elapsed(),
        };
        time.as_nanos() as u64
    }

    fn clock_resolution_ns(&self, _: Clock) -> u64 {
        1
    }

    fn random(&mut self, buffer: &mut [u8]) {
        // Every Linux has it; without it a program of a benchmark sees what was there.
        let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(buffer));
    }

    fn stream_read(&mut self, _: Stream, buffer: &mut [u8]) -> Result<usize, StreamError> {
        let rest = &self.input[self.read..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.read += len;
        Ok(len)
    }

    fn stream_write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, StreamError> {
        if stream == Stream::Stdout {
            self.output.extend_from_slice(bytes);
        } else {
            self.lost = true;
        }
        Ok(bytes.len())
    }

    fn stream_readable(&self, _: Stream) -> Option<u64> {
        Some((self.input.len() - self.read) as u64)
    }

    fn stream_writable(&self, _: Stream) -> Option<u64> {
        Some(u64::MAX)
    }

    fn wait(&mut self, _: &[Interest], deadline_monotonic_ns: Option<u64>) -> Result<(), Stop> {
        // All streams are ready always: only a deadline can be waited for.
        let deadline = Duration::from_nanos(deadline_monotonic_ns.ok_or(Stop::Killed)?);
        std::thread::sleep(deadline.saturating_sub(self.begin.elapsed()));
        Ok(())
    }

    fn yield_now(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

/// The error that carries the end of a program through its Wasm frames.
#[derive(Debug, thiserror::Error)]
#[error("the program ended: {0:?}")]
struct Stopped(Stop);

/// Calls a WASI function with the caller's linear memory.
fn call(
    caller: &mut Caller<'_, Context>,
    function: impl FnOnce(&mut Call<'_, HostSystem>) -> Result<Errno, Stop>,
) -> wasmtime::Result<u32> {
    let Some(memory) = caller.data().memory else {
        return Err(wasmtime::Error::msg("a WASI program must export its memory as \"memory\""));
    };
    let (memory, context) = memory.data_and_store_mut(caller);
    match function(&mut Call { ctx: &mut context.wasi, memory }) {
        Ok(errno) => Ok(u32::from(errno.raw())),
        Err(stop) => Err(Stopped(stop).into()),
    }
}

macro_rules! bind {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ident;)*) => {
        fn link(linker: &mut Linker<Context>) -> wasmtime::Result<()> {
            $(bind!(@one linker $name($($arg: $type),*) -> $result);)*
            Ok(())
        }
    };
    (@one $linker:ident $name:ident($($arg:ident: $type:ty),*) -> errno) => {
        $linker.func_wrap(WASI, stringify!($name), |mut caller: Caller<'_, Context>, $($arg: $type),*| {
            call(&mut caller, |context| nacre_wasi::$name(context, $($arg),*))
        })?;
    };
    (@one $linker:ident $name:ident($($arg:ident: $type:ty),*) -> never) => {
        $linker.func_wrap(WASI, stringify!($name), |mut caller: Caller<'_, Context>, $($arg: $type),*| {
            call(&mut caller, |context| nacre_wasi::$name(context, $($arg),*)).map(|_| ())
        })?;
    };
}

nacre_wasi::for_each_preview1!(bind);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs;

    #[test]
    fn both_engines_give_the_same_output() {
        let primes = programs::COMPUTE[0];
        let run = |engine: HostEngine| engine.load(primes.source)?.run(vec!["primes".into(), "1000".into()]);
        let (same, defaults) =
            (run(HostEngine::same().unwrap()).unwrap(), run(HostEngine::defaults().unwrap()).unwrap());
        assert!(String::from_utf8_lossy(&same.output).starts_with("primes below 1000: 168\n"));
        assert_eq!(same.output, defaults.output);
    }

    #[test]
    fn a_trap_is_an_error_and_exit_zero_is_none() {
        let engine = HostEngine::same().unwrap();
        let run = |body: &str| {
            let text = format!(
                r#"(module (import "{WASI}" "proc_exit" (func $exit (param i32)))
                   (memory (export "memory") 1) (func (export "_start") {body}))"#
            );
            engine.load(text.as_bytes()).unwrap().run(vec!["x".into()])
        };
        assert!(run("unreachable").is_err());
        assert!(run("(call $exit (i32.const 1))").is_err());
        assert!(run("(call $exit (i32.const 0))").is_ok());
    }

    #[test]
    fn instances_are_timed() {
        let program = HostEngine::same().unwrap().load(programs::EMPTY.as_bytes()).unwrap();
        let samples = program.instances(3).unwrap();
        assert!(samples.len() == 3 && samples.iter().all(|ns| *ns > 0.0));
    }
}
