//! The guest's end of the shared page (`nacre_abi::elastic`): follows grant and reclaim, tells the demand, and gets
//! workers that must park to a safe point.
//!
//! Whatever the host writes there, the result is a set of workers that may take tasks: it can cost CPU, or stop the
//! CVM's work as the host can anyway. What decides who runs what is in private memory (`nacre-wval`).

use crate::agent::agent_static;
use crate::arch::{self, clock};
use crate::{link, sched, wasm};
use core::sync::atomic::{AtomicU64, Ordering, fence};
use nacre_abi::elastic::{self, ElasticWord};
use nacre_abi::hypercall;
use nacre_wval::VcpuMask;

/// How often the host's words are read again in one look, if they change under our eyes.
const LOOKS: usize = 4;
/// After this time a worker that was asked to park is looked at once more: its task may want another vCPU's time slice.
const FIRST_REMINDER_NS: u64 = 5_000_000;
/// After that, a worker that still runs is reminded at this interval.
const REMINDER_NS: u64 = 100_000_000;

agent_static! {
    static RECLAIMS: AtomicU64 = AtomicU64::new(0);
}

/// Workers of this CVM.
fn workers() -> VcpuMask {
    VcpuMask(elastic::worker_mask(link::window().vcpus() - 1))
}

/// Makes the scheduler follow the host's words. At every safe point and before every park; two loads and a compare when
/// nothing changed.
pub fn poll() {
    let (page, count) = (link::window().elastic(), link::window().vcpus() - 1);
    let scheduler = sched::scheduler();
    for _ in 0..LOOKS {
        let wanted = VcpuMask(page.allowed(count));
        // Without workers vCPU 0 takes the tasks, and nobody can take it away.
        if count == 0 || scheduler.allowed() == wanted {
            return;
        }
        // Another vCPU may be stopped between its look and its store, and undo ours later; it then looks again.
        scheduler.set_allowed(wanted);
        sched::wake_for_backlog();
    }
}

/// Tasks that no worker may take now.
fn unmet() -> usize {
    let load = sched::scheduler().load();
    let wanted = load.queued + crate::migrate::helpers_wanted();
    wanted.saturating_sub(load.allowed.count().saturating_sub(load.running))
}

/// A task was queued and nobody could be woken for it: tells the host if it could help and does not know. With all workers
/// allowed it can't, and adding up what is queued would only be in the way of the worker that is about to take it; a worker
/// that loses its permission tells the demand then ([`note_demand`]).
pub fn demand_rose() {
    if sched::scheduler().allowed() == workers() {
        return;
    }
    let page = link::window().elastic();
    let demand = u64::from(elastic::demand(unmet()));
    page.set(ElasticWord::Demand, demand);
    // The host says what it knows, then looks once more (see nacre_abi::elastic).
    fence(Ordering::SeqCst);
    if demand > page.get(ElasticWord::DemandSeen) {
        arch::hypercall(hypercall::DEMAND, 0);
    }
}

/// Something was taken from the queues: the host need not be told, it looks when it has a reason to.
pub fn demand_fell() {
    if link::window().elastic().get(ElasticWord::Demand) != 0 {
        note_demand();
    }
}

/// vCPU 0's slow look: what some vCPU should have told and did not, because the host stopped it, is told here.
pub fn review_demand(queued: usize) {
    if queued == 0 {
        demand_fell();
    } else {
        demand_rose();
        sched::wake_for_backlog();
    }
}

/// This worker must park: the host looks at the demand when it does.
pub fn note_demand() {
    link::window().elastic().set(ElasticWord::Demand, u64::from(elastic::demand(unmet())));
}

/// What a wake is worth to the host, in nanoseconds.
pub fn spin_limit_ns() -> u64 {
    elastic::spin_limit_ns(link::window().elastic().get(ElasticWord::SpinLimit))
}

/// A worker found that it must park.
pub fn count_reclaim() {
    RECLAIMS.fetch_add(1, Ordering::Relaxed);
}

/// How often a worker found that it must park.
pub fn reclaims() -> u64 {
    RECLAIMS.load(Ordering::Relaxed)
}

/// vCPU 0's care for workers that run although they may not: compiled code sees the request at its next epoch check, for
/// which somebody has to bump the epoch.
#[derive(Debug, Default)]
pub struct Reclaimer {
    reminded: VcpuMask,
    next_ns: u64,
}

impl Reclaimer {
    /// Looks at the host's words and reminds who has to park. Returns when to look again, by the monotonic clock.
    pub fn run(&mut self) -> Option<u64> {
        poll();
        let scheduler = sched::scheduler();
        if scheduler.allowed() == workers() || workers().is_empty() {
            self.reminded = VcpuMask::EMPTY;
            return None;
        }
        let allowed = scheduler.allowed().0 | scheduler.idle().parked_hint().0;
        let late = VcpuMask(workers().0 & !allowed);
        if late.is_empty() {
            self.reminded = late;
            return None;
        }
        let now = clock::monotonic_ns();
        if late.0 & !self.reminded.0 != 0 {
            wasm::bump_epoch();
            self.next_ns = now.saturating_add(FIRST_REMINDER_NS);
        } else if now >= self.next_ns {
            wasm::bump_epoch();
            self.next_ns = now.saturating_add(REMINDER_NS);
        }
        self.reminded = late;
        Some(self.next_ns)
    }
}
