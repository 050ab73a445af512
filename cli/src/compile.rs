//! Compiling a module to a `.cwasm`, through the disk cache, and the command `nacre compile`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Once,
    time::{Duration, Instant},
};

pub use nacre_compile::compiler::{CompileError, compile};
use nacre_engine::CpuTarget;

use crate::{
    args::CompileArgs,
    cache::{Cache, Key, write_atomically},
    failure::Failure,
    module::{Entry, Module},
    program::{Program, io_reason, is_cwasm, read_file},
    spinner,
    values::format_size,
};

/// A compiled program and how it came about.
#[derive(Debug)]
pub struct Compiled {
    /// The program.
    pub program: Program,
    /// It came from the disk cache.
    pub from_cache: bool,
    /// Time it took, in either case.
    pub elapsed: Duration,
}

/// Takes the program from the cache, or compiles it (with a spinner that calls it `name`) and stores it there.
///
/// # Errors
/// [`CompileError`]; a cache that does not work costs a warning only.
pub fn compile_cached(
    name: &str,
    module: &Module<'_>,
    target: CpuTarget,
    cache: Option<&Cache>,
) -> Result<Compiled, CompileError> {
    let start = Instant::now();
    let cached = cache.map(|cache| (cache, Key::new(&module.wasm, target)));
    if let Some(program) = cached.as_ref().and_then(|(cache, key)| cache.get(key)) {
        tracing::debug!(elapsed_us = start.elapsed().as_micros() as u64, "program found in the cache");
        return Ok(Compiled { program, from_cache: true, elapsed: start.elapsed() });
    }
    let message = format!("compiling {name} ({})", format_size(module.wasm.len() as u64));
    let program = spinner::during(&message, || compile(module, target))?;
    let elapsed = start.elapsed();
    tracing::debug!(elapsed_us = elapsed.as_micros() as u64, "program compiled");
    if let Some((cache, key)) = cached
        && let Err(error) = cache.put(&key, &program)
    {
        warn_about_cache(cache.dir(), &error);
    }
    Ok(Compiled { program, from_cache: false, elapsed })
}

/// Once per process: a command may compile several programs.
fn warn_about_cache(dir: &Path, error: &std::io::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        let (dir, reason) = (dir.display(), io_reason(error));
        eprintln!(
            "nacre: warning: compiled programs are not kept: {dir}: {reason}; set NACRE_CACHE_DIR to a writable directory"
        );
    });
}

/// `nacre compile`.
///
/// # Errors
/// What went wrong, for the user.
pub fn command(args: &CompileArgs) -> Result<ExitCode, Failure> {
    let input = &args.module;
    let failure = |error: &dyn std::fmt::Display| Failure::new(input.display(), error);
    let bytes = read_file(input).map_err(|error| {
        failure(&format_args!("{}; check the path and its permissions", io_reason(&error)))
    })?;
    if is_cwasm(&bytes) {
        return Err(failure(&"is compiled already; pass the .wasm it was made from, or run it as it is"));
    }
    let module = Module::parse(&bytes, Entry::Command).map_err(|error| failure(&error))?;
    let name = input.file_name().unwrap_or_default().to_string_lossy();
    let target = args.cpu.target();
    let compiled =
        compile_cached(&name, &module, target, Cache::of_user().as_ref()).map_err(|error| failure(&error))?;

    let output = args.output.clone().unwrap_or_else(|| default_output(input));
    write_atomically(&output, compiled.program.file(), 0o666).map_err(|error| {
        let reason = io_reason(&error);
        Failure::new(
            output.display(),
            format_args!("can not be written: {reason}; choose another place with -o"),
        )
    })?;
    print_result(args.json, &output, &compiled);
    Ok(ExitCode::SUCCESS)
}

fn default_output(input: &Path) -> PathBuf {
    Path::new(input.file_name().unwrap_or_default()).with_extension("cwasm")
}

/// One line, or one JSON object.
fn print_result(json: bool, output: &Path, compiled: &Compiled) {
    let header = compiled.program.header();
    let bytes = header.file_len();
    if json {
        let features: Vec<_> = header.target.features().names().collect();
        let sha256: String = header.source_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let object = serde_json::json!({
            "output": output.to_string_lossy(),
            "bytes": bytes,
            "source_sha256": sha256,
            "wasmtime": header.wasmtime_version.as_str(),
            "cpu": header.target.name(),
            "cpu_features": features,
            "min_memory_bytes": header.min_memory_bytes,
            "from_cache": compiled.from_cache,
            "elapsed_ms": compiled.elapsed.as_secs_f64() * 1e3,
        });
        println!("{object}");
    } else {
        let (size, cpu) = (format_size(bytes), header.target.describe());
        let how = if compiled.from_cache { "from the cache in" } else { "compiled in" };
        println!("{}: {size} for {cpu}, {how} {:.2} s", output.display(), compiled.elapsed.as_secs_f64());
    }
}
