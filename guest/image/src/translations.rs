//! Translations that vCPUs have cached, and that something was taken away behind them: who has forgotten what.
//!
//! What each vCPU has flushed is `vcpu::flushed`: 0 while it sleeps or was never started, else 1 + the generation.

use crate::agent::agent_static;
use crate::memory::layout;
use crate::{arch, vcpu};
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_mm::translations::{Owed, Translations};

/// Pages whose translations can be forgotten one by one: 16 ms for all of them where ring 0 is emulated.
const MOST_LISTED: usize = 8192;

agent_static! {
    static ALL: Translations<MOST_LISTED> = Translations::new();
    static FLUSHES: AtomicU64 = AtomicU64::new(0);
}

/// Generations, and lists of what they took away.
pub fn all() -> &'static Translations<MOST_LISTED> {
    &ALL
}

/// How often a vCPU has forgotten something, for the statistics.
pub fn flushes() -> u64 {
    FLUSHES.load(Ordering::Relaxed)
}

/// Begins another generation: every vCPU flushes before it next runs a task.
pub fn next_generation() {
    ALL.next();
    catch_up();
}

/// The same, if all that was taken away is [listed](all).
pub fn next_listed() {
    ALL.next_listed();
    catch_up();
}

/// Flushes this vCPU's translations if something was taken away since it last did. Must be called before an address that
/// was unmapped may be used again: when a task is switched in, and when addresses are handed out a second time.
pub fn catch_up() {
    let flushed = &vcpu::local().flushed;
    let (now, owed) = match flushed.load(Ordering::Relaxed).checked_sub(1) {
        Some(flushed) => ALL.owed(flushed),
        None => (ALL.generation(), Owed::All),
    };
    match owed {
        Owed::Nothing => return,
        Owed::All => arch::flush_tlb(),
        Owed::Pages(pages) => pages.into_iter().for_each(arch::flush_pages),
    }
    FLUSHES.fetch_add(1, Ordering::Relaxed);
    // After the flush: whoever sees it may use the addresses again.
    flushed.store(now + 1, Ordering::SeqCst);
}

/// The present generation: what was unmapped before this call is settled once all vCPUs have flushed it.
pub fn generation() -> u64 {
    ALL.generation()
}

/// The generation up to which all vCPUs that run have flushed. The others flush, if need be, before they touch anything.
pub fn settled() -> u64 {
    let now = generation();
    (0..layout().params.vcpus as usize)
        .map(|vcpu| vcpu::flushed(vcpu).load(Ordering::SeqCst))
        .filter(|flushed| *flushed != 0)
        .fold(now, |least, flushed| least.min(flushed - 1))
}

/// Runs `sleep`, in which this vCPU touches nothing of the tenant's: nobody has to wait for its flush meanwhile.
pub fn while_asleep(sleep: impl FnOnce()) {
    let flushed = &vcpu::local().flushed;
    let before = flushed.swap(0, Ordering::SeqCst);
    sleep();
    // Published first, looked at the generation then: either `settled` counts this vCPU, or it sees the change.
    flushed.store(before, Ordering::SeqCst);
    catch_up();
}

/// This vCPU begins to run: it has no translations yet.
pub fn started() {
    vcpu::local().flushed.store(1, Ordering::SeqCst);
    catch_up();
}
