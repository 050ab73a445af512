//! The parts of the `nacre` binary, as a library so that benchmarks and tests compile and plan exactly as it does.
//!
//! A program travels through here as: bytes -> [`module`] (is it something Nacre runs?) -> [`compile`] with [`cache`]
//! -> [`program`] (a checked `.cwasm` in memory) -> [`run`] (a validated [`run::RunPlan`]) -> [`execute`] (a CVM).
#![forbid(unsafe_code)]

pub use nacre_compile::{cache, host_cpu, module, program};

pub mod args;
pub mod bench;
pub mod compile;
pub mod demo;
pub mod execute;
pub mod failure;
pub mod log;
pub mod node;
pub mod run;
pub mod sealed;
pub mod spinner;
pub mod top;
pub mod values;
