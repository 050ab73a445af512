//! What the compiling host and the guest must agree on, in one place.
//!
//! - [`settings`]: every wasmtime setting that changes generated code or its loading, applied by [`configure`] on
//!   both sides, and the fingerprint of these settings.
//! - [`cpu`]: the CPU features code may be compiled for, and how the guest finds out which ones it has.
//! - [`container`]: the `.cwasm` file: a fixed header of ours before wasmtime's precompiled ELF.
//! - [`operand`]: what an instruction of compiled code touches, for a guest that does not believe an exception.
//! - `compiler` (feature `compiler`, host only): what only the compiling side sets.
//!
//! `no_std` so that the guest image links it. It does no I/O, and holds no code that touches the guest's memory.
#![cfg_attr(not(any(test, feature = "compiler")), no_std)]
#![cfg_attr(not(feature = "compiler"), forbid(unsafe_code))]
#![deny(unsafe_code)]

extern crate alloc;

#[cfg(feature = "compiler")]
pub mod compiler;
pub mod container;
pub mod cpu;
pub mod operand;
#[cfg(feature = "compiler")]
pub mod rewrite;
pub mod settings;

pub use container::{CwasmError, Header};
pub use cpu::{CpuFeatures, CpuTarget, CpuidLeaves};
pub use settings::{WASMTIME_VERSION, configure, fingerprint, wasm_features};
