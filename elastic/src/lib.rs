//! Elastic CPU: who may have how many physical CPUs, and when.
//!
//! - [`policy`] is the CPU manager: a pure, deterministic state machine without a clock, I/O or randomness. The node
//!   feeds it events (a worker's doorbell rang, a worker parked) and carries out its actions (admit, reclaim).
//!
//! Nothing here touches a virtual machine; `docs/cpu-manager.md` explains the ideas and the parameters.
#![forbid(unsafe_code)]

pub mod policy;
