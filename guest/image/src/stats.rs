//! What this guest has counted and measured.

use crate::{calls, elastic, handover, link, memory, phases, sched, wasm};
use nacre_abi::message::GuestStats;

/// All of it, as it is now.
pub fn all() -> GuestStats {
    let frames = memory::frames();
    let (page_faults, tlb_flushes, released_bytes) = memory::counters();
    let [task_resumes, task_moves, parks, wakes, preemptions, tasks_spawned] = sched::counters();
    let [tasks_ended, task_cpu_ns, task_cpu_min_ns, task_cpu_max_ns] = sched::ended();
    let [messages_in, messages_out, doorbells] = link::counters();
    let [calls, calls_cold, restored_bytes] = calls::counters();
    let (committed, peak) = frames.committed_pages();
    GuestStats {
        entry_tsc: phases::at(&phases::ENTRY),
        memory_ready_tsc: phases::at(&phases::MEMORY_READY),
        created_tsc: phases::at(&phases::CREATED),
        task_tsc: phases::at(&phases::TASK),
        engine_tsc: phases::at(&phases::ENGINE),
        loaded_tsc: phases::at(&phases::LOADED),
        wasm_tsc: phases::at(&phases::FIRST_WASM),
        frames_used_bytes: frames.used_pages() * nacre_abi::PAGE_BYTES,
        committed_bytes: committed * nacre_abi::PAGE_BYTES,
        committed_peak_bytes: peak * nacre_abi::PAGE_BYTES,
        released_bytes,
        page_faults,
        tlb_flushes,
        task_resumes,
        task_moves,
        tasks_spawned,
        tasks_ended,
        task_cpu_ns,
        task_cpu_min_ns,
        task_cpu_max_ns,
        preemptions,
        parks,
        wakes,
        reclaims: elastic::reclaims(),
        calls,
        calls_cold,
        restored_bytes,
        messages_in,
        messages_out,
        doorbells,
        handed_over: handover::count(),
        worker_locks: wasm::hooks::worker_locks(),
    }
}
