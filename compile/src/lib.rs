//! From a module to a `.cwasm`: what `nacre compile`, `nacre run` and the node share.
//!
//! A program travels through here as: bytes -> [`module`] (is it something Nacre runs?) -> [`compiler`] with [`cache`]
//! -> [`program`] (a checked `.cwasm` in memory). [`worker`] does the middle part in a process of its own, bounded in
//! time and memory, for modules that strangers send.
#![forbid(unsafe_code)]

pub mod cache;
pub mod compiler;
pub mod host_cpu;
pub mod module;
pub mod program;
pub mod size;
pub mod worker;
