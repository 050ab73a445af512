//! What makes tasks run, as a value: taken away from a CVM whose tenant leaves, and planted where it goes.

use super::{Entered, STOPPING, TASKS, TIMER_SEQ, table, unpark};
use crate::handover::{self, Errand};
use crate::sched;
use core::sync::atomic::Ordering;

/// Bytes of the roots of all tasks.
pub const ROOT_BYTES: usize = 24;

/// Takes the roots of all tasks away, to `roots`: without them nothing finds a task, here or where the arena goes. All tasks are parked.
pub fn uproot(roots: &mut [u8; ROOT_BYTES]) {
    let words = [TASKS.detach(), TIMER_SEQ.swap(0, Ordering::SeqCst), STOPPING.swap(0, Ordering::SeqCst)];
    for (chunk, word) in roots.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// Puts the roots back that [`uproot`] took, here or in the CVM that the arena went to.
pub fn plant(roots: &[u8; ROOT_BYTES]) {
    let word = |number: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&roots[8 * number..8 * number + 8]);
        u64::from_le_bytes(word)
    };
    // SAFETY: what `uproot` took, sealed by the guest that had it, and the heap it refers to is here as it was.
    unsafe { TASKS.attach(word(0)) }
    TIMER_SEQ.store(word(1), Ordering::SeqCst);
    STOPPING.store(word(2), Ordering::SeqCst);
}

/// Queues every task that does not sleep: after the arena came from another CVM, where they were queued.
pub fn submit_all_runnable() {
    for task in table().iter().filter_map(Entered::get) {
        // Its timer stayed where it came from: it looks at the clock and asks for a new one.
        if task.timer_at.take() != 0 && task.park.is_parked() {
            unpark(&task);
            continue;
        }
        if task.park.is_parked() {
            continue;
        }
        match task.errand.get() {
            Errand::Run => sched::submit(&task),
            // It was on its way to vCPU 0, never to run again.
            _ => handover::push(task.slot),
        }
    }
}
