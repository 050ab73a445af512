//! Tasks on their way to vCPU 0, which is never taken away: whoever needs one of wasmtime's locks takes it there.
//!
//! wasmtime guards its registries of types and code with locks of its own. A Worker vCPU that the host stops while it holds
//! one would hold up everybody. So a task that wants such a lock on a worker is handed to vCPU 0 and
//! goes on there (`wasm/hooks.rs`). vCPU 0 runs one task at a time and switches none out that holds a lock: nobody
//! ever waits for a lock. The same way go tasks that can't be ended on a worker because that might take a lock.
//!
//! The waiting ones are bits by their place in the table of tasks; agent memory, as run queues are.

use crate::agent::{AgentCell, agent_static};
use crate::memory::Scratch;
use crate::sched;
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_wval::{VcpuId, VcpuMask};

agent_static! {
    static WAITING: AgentCell<&'static [AtomicU64]> = AgentCell::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
}

/// What vCPU 0 does with a task that was handed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Run it.
    Run,
    /// Let its body report that it can't begin.
    Refuse(crate::task::Begin),
    /// It has ended: free what it had.
    Finish,
}

/// Once, by vCPU 0.
pub fn init(scratch: &mut Scratch, max_tasks: usize) {
    WAITING.set(scratch.slice(max_tasks.div_ceil(64), |_| AtomicU64::new(0)));
}

/// Hands the task in a slot to vCPU 0, which may have run it before this returns.
pub fn push(slot: u32) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    WAITING.get()[slot as usize / 64].fetch_or(1 << (slot % 64), Ordering::SeqCst);
    // vCPU 0 says that it sleeps, then looks here; this looks the other way round.
    sched::ring(sched::scheduler().idle().claim_one(VcpuMask::EMPTY.with(VcpuId::NORMAL)));
}

/// A slot whose task was handed over.
pub fn pop() -> Option<u32> {
    WAITING.get().iter().enumerate().find_map(|(index, word)| {
        let bits = word.load(Ordering::SeqCst);
        let bit = bits & bits.wrapping_neg();
        // Only vCPU 0 takes bits out.
        (bit != 0).then(|| {
            word.fetch_and(!bit, Ordering::SeqCst);
            index as u32 * 64 + bit.trailing_zeros()
        })
    })
}

/// Whether some task was handed over.
pub fn any() -> bool {
    WAITING.get().iter().any(|word| word.load(Ordering::SeqCst) != 0)
}

/// Tasks handed over so far.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}
