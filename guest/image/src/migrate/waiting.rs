//! Tasks that touched a page which is not here yet: after a hand-over what was left outstanding comes on demand.
//!
//! The exception upcall lets such a task go on in [`nacre_wait_for_page`], on its own stack and with all its registers put away there
//! (`page_wait_entry` in stub.S). It asks vCPU 0 for the page and parks; its worker takes another task. Whoever waits holds no lock and is no
//! scheduler: what those touch never stays outstanding (`state::may_wait`).

use crate::agent::agent_static;
use crate::{link, memory, sched, task, vcpu};
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::VcpuId;

/// Bits of the largest table of tasks there can be.
const MAX_TASKS: usize = 1 << 16;

agent_static! {
    /// Slots of tasks that wait and have not been asked for yet, and of all that wait.
    static ASKING: [AtomicU64; MAX_TASKS / 64] = [const { AtomicU64::new(0) }; MAX_TASKS / 64];
    static WAITING: [AtomicU64; MAX_TASKS / 64] = [const { AtomicU64::new(0) }; MAX_TASKS / 64];
    static ASKED: AtomicU64 = AtomicU64::new(0);
}

/// Whether the code that an exception interrupted may wait for a page: it is a task's own, on its own stack, and not in the middle of a message
/// to the host, which belongs to the vCPU (see [`memory::touch`]).
pub fn begin_wait(stack: u64) -> bool {
    task::running().is_some_and(|task| task.has_on_stack(stack)) && !link::is_sending()
}

/// Called by `page_wait_entry` on the task's stack: returns when the page at `address` is here.
#[unsafe(no_mangle)]
pub extern "C" fn nacre_wait_for_page(address: u64) {
    let task = task::current();
    // With a lock nobody gives its vCPU away. Only vCPU 0 has locks, so it can see to the page itself.
    if vcpu::locks_held() != 0 {
        while memory::is_missing(address) {
            super::fetch_now(address);
        }
        return;
    }
    task.waits_for.store(address, Ordering::Release);
    let (word, bit) = (task.slot as usize / 64, 1 << (task.slot % 64));
    while memory::is_missing(address) {
        WAITING[word].fetch_or(bit, Ordering::SeqCst);
        ASKING[word].fetch_or(bit, Ordering::SeqCst);
        ASKED.fetch_add(1, Ordering::SeqCst);
        // It may have come before vCPU 0 could know of this task.
        if memory::is_missing(address) {
            sched::call_normal();
            task::park();
        }
    }
    WAITING[word].fetch_and(!bit, Ordering::SeqCst);
    task.waits_for.store(0, Ordering::Release);
    // The park above may have taken a wake that was meant for what the task was about to do.
    task::unpark(task);
}

/// By vCPU 0: calls `ask` with the address that each task waits for which has not been asked for. `ask` says whether that was possible.
pub fn take_questions(ask: &mut dyn FnMut(u64) -> bool) {
    if ASKED.swap(0, Ordering::SeqCst) == 0 {
        return;
    }
    for (index, word) in ASKING.iter().enumerate() {
        let mut bits = if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::SeqCst) };
        while bits != 0 {
            let bit = bits & bits.wrapping_neg();
            bits &= !bit;
            let slot = index as u32 * 64 + bit.trailing_zeros();
            let Some(task) = task::in_slot(slot) else { continue };
            let address = task.waits_for.load(Ordering::Acquire);
            if address != 0 && memory::is_missing(address) && !ask(address) {
                word.fetch_or(bit, Ordering::SeqCst);
                ASKED.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// Whether somebody waits for something that was not asked for.
pub fn has_questions() -> bool {
    ASKED.load(Ordering::SeqCst) != 0
}

/// By vCPU 0: pages came; whoever waits looks again.
pub fn pages_came() {
    debug_assert_eq!(vcpu::id(), VcpuId::NORMAL);
    for (index, word) in WAITING.iter().enumerate() {
        let mut bits = word.load(Ordering::Relaxed);
        while bits != 0 {
            let bit = bits & bits.wrapping_neg();
            bits &= !bit;
            let Some(task) = task::in_slot(index as u32 * 64 + bit.trailing_zeros()) else { continue };
            let address = task.waits_for.load(Ordering::Acquire);
            if address != 0 && !memory::is_missing(address) {
                word.fetch_and(!bit, Ordering::SeqCst);
                task::unpark(&task);
            }
        }
    }
}

/// All questions are to be asked again: the connection was another one.
pub fn ask_again() {
    for (asking, waiting) in ASKING.iter().zip(&WAITING) {
        let bits = waiting.load(Ordering::SeqCst);
        if bits != 0 {
            asking.fetch_or(bits, Ordering::SeqCst);
            ASKED.fetch_add(1, Ordering::SeqCst);
        }
    }
}
