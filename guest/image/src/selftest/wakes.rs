//! How long a wake takes, by the time stamp counter: from the moment vCPU 0 decides to wake a worker to the first
//! instruction there. vCPU 0 does nothing else meanwhile.
//!
//! [`floor`] is the bare mechanism, without queue, scheduler and CPU manager: a port write, the host's thread, the
//! entry. [`tasks`] is the scheduler's whole way, with arrivals at any times the host asks for. Both need a worker.

use crate::arch::{self, clock};
use crate::task::{self, Spec};
use crate::{link, vcpu};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::message::NO_PROGRAM;
use nacre_abi::{VcpuId, hypercall};

/// After this long without an answer a measurement has failed.
const PATIENCE_NS: u64 = 20_000_000_000;

/// Moments of one measurement, in cycles; the second is 0 until it has happened.
#[derive(Default)]
struct Wake {
    decided: AtomicU64,
    arrived: AtomicU64,
}

impl Wake {
    fn decide(&self) {
        self.decided.store(arch::rdtsc(), Ordering::Release);
    }

    fn arrive(&self, now: u64) {
        self.arrived.store(now, Ordering::Release);
    }

    fn is_decided(&self) -> bool {
        self.decided.load(Ordering::Acquire) != 0
    }

    fn has_arrived(&self) -> bool {
        self.arrived.load(Ordering::Acquire) != 0
    }

    fn latency_ns(&self) -> u64 {
        let cycles =
            self.arrived.load(Ordering::Acquire).saturating_sub(self.decided.load(Ordering::Acquire));
        clock::cycles_to_ns(cycles)
    }
}

/// Nanoseconds between one wake and the next, four bytes each.
fn gaps(body: &[u8]) -> Vec<u64> {
    body.as_chunks::<4>().0.iter().map(|gap| u64::from(u32::from_le_bytes(*gap))).collect()
}

fn wakes(count: usize) -> Arc<[Wake]> {
    (0..count).map(|_| Wake::default()).collect()
}

/// Waits without giving the vCPU up; false after [`PATIENCE_NS`].
fn spin_until(mut done: impl FnMut() -> bool) -> bool {
    let until = clock::monotonic_ns().saturating_add(PATIENCE_NS);
    while !done() {
        if clock::monotonic_ns() >= until {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Latencies of bare wakes of vCPU 0, which is under no CPU manager and does nothing but park, each a gap after it
/// began to. A worker rings.
pub fn floor(body: &[u8]) -> Option<impl Iterator<Item = u64>> {
    let gaps = gaps(body);
    let wakes = wakes(gaps.len());
    // How many times vCPU 0 was about to park.
    let parks = Arc::new(AtomicU64::new(0));
    let (on_worker, its_parks) = (wakes.clone(), parks.clone());
    let entry = move |_| {
        for (count, (gap, wake)) in (1..).zip(gaps.iter().zip(on_worker.iter())) {
            if !spin_until(|| its_parks.load(Ordering::Acquire) >= count) {
                return;
            }
            let at = clock::monotonic_ns().saturating_add(*gap);
            spin_until(|| clock::monotonic_ns() >= at);
            wake.decide();
            arch::wake(VcpuId::NORMAL);
        }
    };
    task::start(&task::create(Spec::helper(NO_PROGRAM), Box::new(entry)).ok()?);
    let until = clock::monotonic_ns().saturating_add(PATIENCE_NS);
    for wake in wakes.iter() {
        parks.fetch_add(1, Ordering::AcqRel);
        // A wake that somebody else sent ends a park early.
        while !wake.is_decided() {
            let mailbox = link::window().mailbox(vcpu::id());
            mailbox[0].store(PATIENCE_NS, Ordering::Relaxed);
            mailbox[1].store(0, Ordering::Relaxed);
            arch::hypercall(hypercall::PARK, 0);
            wake.arrive(arch::rdtsc());
            if clock::monotonic_ns() >= until {
                return None;
            }
        }
    }
    Some((0..wakes.len()).map(move |index| wakes[index].latency_ns()))
}

/// First the nanoseconds that it took in all, then the latency of each empty task: from before it is queued to its first
/// instruction. Arrivals do not wait for each other.
pub fn tasks(body: &[u8]) -> Option<impl Iterator<Item = u64>> {
    let gaps = gaps(body);
    let wakes = wakes(gaps.len());
    let begin = clock::monotonic_ns();
    let mut at = begin;
    for (index, gap) in gaps.iter().enumerate() {
        let on_worker = wakes.clone();
        let mut task = None;
        // Tasks that have ended make room, if there are too many.
        spin_until(|| {
            let its_wakes = on_worker.clone();
            let entry = move |_| its_wakes[index].arrive(arch::rdtsc());
            task = task::create(Spec::helper(NO_PROGRAM), Box::new(entry)).ok();
            task.is_some()
        });
        let task = task?;
        at = at.saturating_add(*gap);
        spin_until(|| clock::monotonic_ns() >= at);
        wakes[index].decide();
        task::start(&task);
    }
    if !spin_until(|| wakes.iter().all(Wake::has_arrived)) {
        return None;
    }
    let elapsed = clock::monotonic_ns().saturating_sub(begin);
    Some(core::iter::once(elapsed).chain((0..wakes.len()).map(move |index| wakes[index].latency_ns())))
}
