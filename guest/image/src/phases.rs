//! Time stamps of the boot, for `--stats`.

use crate::agent::agent_static;
use crate::arch;
use core::sync::atomic::{AtomicU64, Ordering};

agent_static! {
    /// vCPU 0's first instruction.
    pub static ENTRY: AtomicU64 = AtomicU64::new(0);
    /// Memory and the other vCPUs' data are ready.
    pub static MEMORY_READY: AtomicU64 = AtomicU64::new(0);
    /// The first program's first message has come.
    pub static CREATED: AtomicU64 = AtomicU64::new(0);
    /// Its task runs.
    pub static TASK: AtomicU64 = AtomicU64::new(0);
    /// The engine is there.
    pub static ENGINE: AtomicU64 = AtomicU64::new(0);
    /// The first program is loaded.
    pub static LOADED: AtomicU64 = AtomicU64::new(0);
    /// Just before its first Wasm instruction.
    pub static FIRST_WASM: AtomicU64 = AtomicU64::new(0);
}

/// Notes the time, if this is the first time.
pub fn mark(phase: &AtomicU64) {
    let _ = phase.compare_exchange(0, arch::rdtsc(), Ordering::Relaxed, Ordering::Relaxed);
}

/// The time of a phase; 0 if it has not come yet.
pub fn at(phase: &AtomicU64) -> u64 {
    phase.load(Ordering::Relaxed)
}
