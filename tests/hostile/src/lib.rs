//! A host that misbehaves on a seed, and what must hold all the same (docs/hostile-host.md).
//!
//! * [`plan`]: what a seed does: a pure function of its number.
//! * [`programs`]: the programs under attack and what must come out of them.
//! * [`host`] and [`inject`]: the misbehaviour, through the hooks of the VMM.
//! * [`run`]: one seed, judged. [`sweep`]: many of them.
#![forbid(unsafe_code)]

pub mod host;
pub mod inject;
pub mod plan;
pub mod probe;
pub mod programs;
pub mod run;
pub mod sweep;

/// What a binary that contains this package contains: a test looks for it in the released `nacre`.
pub const MARK: &str = "nacre-hostile: this host misbehaves on purpose";
