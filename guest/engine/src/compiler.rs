//! What only the compiling side sets: the target and its CPU flags. Feature `compiler`, needs std. The one place with `unsafe`:
//! wasmtime marks the setters of CPU flags so.
#![allow(unsafe_code)]

use wasmtime::{Config, OptLevel, Strategy};

use crate::rewrite::{RewriteError, rewrite};
use crate::{CpuTarget, configure};

/// The target triple code is compiled for; the guest image is built for the same one.
pub const TARGET_TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What is compiled in the place of a module: the same program, which passes an epoch check less often.
///
/// # Errors
/// [`RewriteError`], never for a valid module.
pub fn prepare(wasm: &[u8]) -> Result<Vec<u8>, RewriteError> {
    rewrite(wasm)
}

/// A configuration that compiles for `target` whatever CPU this machine has. An engine made from it compiles
/// (`Engine::precompile_module`); only where [`CpuTarget::features`] are all present may it also run modules.
///
/// # Errors
/// When this build of wasmtime has no compiler for [`TARGET_TRIPLE`].
pub fn compiling_config(target: CpuTarget) -> wasmtime::Result<Config> {
    let mut config = Config::new();
    configure(&mut config);
    config.strategy(Strategy::Cranelift).cranelift_opt_level(OptLevel::Speed);
    // An explicit target switches off the detection of this machine's own features.
    config.target(TARGET_TRIPLE)?;
    for flag in target.features().cranelift_flags() {
        // SAFETY: these flags only let the compiler use instructions that x86-64 CPUs of that kind have; the features
        // are recorded in the .cwasm and checked before its code runs. An unknown flag is an error of `Engine::new`.
        unsafe { config.cranelift_flag_enable(flag) };
    }
    Ok(config)
}
