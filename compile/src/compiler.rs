//! Compiling a checked module to a `.cwasm`, in this process.

use nacre_engine::compiler::{compiling_config, prepare};
use nacre_engine::{CpuTarget, CwasmError, Header};

use crate::{
    module::{Module, ModuleError, explain_invalid},
    program::Program,
};

/// Why a module could not be compiled, with the remedy after "; ".
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The module itself is at fault.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The module is valid, but the compiler can not handle it.
    #[error("the compiler gave up: {0}; report it with the module if it runs elsewhere")]
    Compiler(String),
    /// The result does not fit a `.cwasm`.
    #[error(transparent)]
    Cwasm(#[from] CwasmError),
}

/// Compiles `module` for `target`.
///
/// # Errors
/// [`CompileError`].
pub fn compile(module: &Module<'_>, target: CpuTarget) -> Result<Program, CompileError> {
    let gave_up = |error: wasmtime::Error| {
        CompileError::Compiler(format!("{error:#}").replace("; ", ", ").lines().collect::<Vec<_>>().join(" "))
    };
    let engine =
        compiling_config(target).and_then(|config| wasmtime::Engine::new(&config)).map_err(gave_up)?;
    // Invalid modules are told from what was given, not from what was made of it.
    let prepared = prepare(&module.wasm)
        .inspect_err(
            |error| tracing::warn!(%error, "the module is compiled as it is; report it with the module"),
        )
        .ok();
    let payload = engine.precompile_module(prepared.as_deref().unwrap_or(&module.wasm)).map_err(|error| {
        // The compiler's own words for an invalid module name neither the proposal nor a remedy.
        explain_invalid(&module.wasm).map_or_else(|| gave_up(error), CompileError::Module)
    })?;
    let header =
        Header::describe(&module.wasm, &payload, target, module.is_command, module.min_memory_bytes)?;
    Ok(Program::from_payload(header, &payload)?)
}
