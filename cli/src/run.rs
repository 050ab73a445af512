//! From the arguments of `nacre run` to a [`RunPlan`]: everything that can fail before a VM exists fails here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{
    args::RunArgs,
    cache::Cache,
    compile::compile_cached,
    failure::Failure,
    host_cpu,
    module::{Entry, Module, ModuleError},
    program::{Program, io_reason, is_cwasm, read_file},
    values::{DirMapping, EnvVar, ExportMapping, MemorySize},
};

/// All that is needed to run one program in a fresh CVM. Each field is validated; only the CVM itself can still fail.
#[derive(Debug)]
pub struct RunPlan {
    /// The compiled program.
    pub program: Program,
    /// The program's `argv`, its file name first.
    pub args: Vec<String>,
    /// Its environment; names are unique.
    pub env: Vec<(String, String)>,
    /// Directories to copy in; each exists and can be listed.
    pub dirs: Vec<DirMapping>,
    /// What to copy out after the end; the directory each goes into exists.
    pub exports: Vec<ExportMapping>,
    /// Worker vCPUs: 0 to 63.
    pub workers: u8,
    /// Memory of the CVM; at least what the program starts with.
    pub memory: MemorySize,
    /// How long the program may take.
    pub time_limit: Option<Duration>,
    /// What to tell about the run.
    pub stats: StatsOutput,
    /// Nacre's own errors are to be JSON.
    pub json: bool,
}

/// Where statistics go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatsOutput {
    /// To stderr after the end: a table, or JSON when [`RunPlan::json`] is set.
    pub print: bool,
    /// As JSON into this file, whose directory exists.
    pub json_file: Option<PathBuf>,
}

/// Validates the arguments of `nacre run` and loads, and where needed compiles, the program.
///
/// # Errors
/// What is wrong, for the user.
pub fn plan(args: RunArgs) -> Result<RunPlan, Failure> {
    for dir in &args.dirs {
        check_dir(&dir.host)?;
    }
    for export in &args.exports {
        check_parent("--export", &export.host)?;
    }
    if let Some(file) = &args.stats_json {
        check_parent("--stats-json", file)?;
    }
    let env = resolve_env(&args.env)?;
    let argv = argv(&args)?;
    let program = load_program(&args)?;
    check_memory(args.program(), &program, args.cvm.memory)?;
    tracing::debug!(since_start_us = crate::log::since_start().as_micros() as u64, "run planned");

    Ok(RunPlan {
        program,
        args: argv,
        env,
        dirs: args.dirs,
        exports: args.exports,
        workers: args.cvm.workers,
        memory: args.cvm.memory,
        time_limit: args.time_limit,
        stats: StatsOutput { print: args.stats, json_file: args.stats_json },
        json: args.json,
    })
}

/// The program's file name without its directory, as with other Wasm engines, then its arguments.
fn argv(args: &RunArgs) -> Result<Vec<String>, Failure> {
    let name = args.program().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut argv = vec![name];
    for arg in args.command_line.iter().skip(1) {
        let Some(text) = arg.to_str().filter(|text| !text.contains('\0')) else {
            let what = format_args!("argument {}", arg.to_string_lossy());
            return Err(Failure::usage(what, "is not UTF-8", "programs take text as arguments"));
        };
        argv.push(text.to_owned());
    }
    Ok(argv)
}

fn load_program(args: &RunArgs) -> Result<Program, Failure> {
    let path = args.program();
    let failure = |error: &dyn std::fmt::Display| Failure::new(path.display(), error);
    let host = host_cpu::features();
    let bytes = read_file(path).map_err(|error| {
        failure(&format_args!("{}; check the path and its permissions", io_reason(&error)))
    })?;
    if is_cwasm(&bytes) {
        if args.cpu.is_some() {
            let why = format_args!("{} is compiled already", path.display());
            return Err(Failure::usage("--cpu", why, "leave the option out"));
        }
        let program = Program::from_bytes(bytes, host).map_err(|error| failure(&error))?;
        if !program.header().is_command {
            return Err(failure(&ModuleError::NoStart { reactor: false }));
        }
        return Ok(program);
    }
    let module = Module::parse(&bytes, Entry::Command).map_err(|error| failure(&error))?;
    check_module_memory(path, module.min_memory_bytes, args.cvm.memory)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let target = args.cpu.unwrap_or_default().target();
    let cache = Cache::of_user();
    let compiled = compile_cached(&name, &module, target, cache.as_ref()).map_err(|error| failure(&error))?;
    compiled.program.header().check_compatible(host).map_err(|error| failure(&error))?;
    Ok(compiled.program)
}

fn check_memory(path: &Path, program: &Program, memory: MemorySize) -> Result<(), Failure> {
    check_module_memory(path, program.header().min_memory_bytes, memory)
}

/// The runtime and the code need memory too; how much is known only to the guest, which reports it when it runs out.
fn check_module_memory(path: &Path, need: u64, memory: MemorySize) -> Result<(), Failure> {
    if need < memory.bytes() {
        return Ok(());
    }
    Err(Failure::new(path.display(), ModuleError::Memory { need, have: memory.bytes() }))
}

fn check_dir(host: &Path) -> Result<(), Failure> {
    let failure = |why: &str, remedy: &str| {
        Failure::new(format_args!("--dir {}", host.display()), format_args!("{why}; {remedy}"))
    };
    match std::fs::read_dir(host) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            Err(failure("is not a directory", "pass the directory the file is in"))
        }
        Err(error) => Err(failure(&io_reason(&error), "check the path and its permissions")),
    }
}

/// A result that can not be written must not be found out after a long run.
fn check_parent(option: &str, path: &Path) -> Result<(), Failure> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Failure::new(
            format_args!("{option} {}", path.display()),
            format_args!("{} is not a directory; choose another place", dir.display()),
        )),
        Err(error) => Err(Failure::new(
            format_args!("{option} {}", path.display()),
            format_args!("{}: {}; make the directory first", dir.display(), io_reason(&error)),
        )),
    }
}

/// Takes missing values from this process. A name given twice has its last value, at its first place.
fn resolve_env(vars: &[EnvVar]) -> Result<Vec<(String, String)>, Failure> {
    let mut env: Vec<(String, String)> = Vec::with_capacity(vars.len());
    for var in vars {
        let value = match &var.value {
            Some(value) => value.clone(),
            None => std::env::var(&var.name).map_err(|error| {
                let why = match error {
                    std::env::VarError::NotPresent => "is not set here",
                    std::env::VarError::NotUnicode(_) => "its value here is not UTF-8",
                };
                let what = format_args!("--env {}", var.name);
                Failure::new(what, format_args!("{why}; give a value: --env {}=VALUE", var.name))
            })?,
        };
        match env.iter_mut().find(|(name, _)| *name == var.name) {
            Some(entry) => entry.1 = value,
            None => env.push((var.name.clone(), value)),
        }
    }
    Ok(env)
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
