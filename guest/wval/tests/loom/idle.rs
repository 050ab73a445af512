//! The idle set, and the rendezvous of late wakers.

use crate::{leak, model, task, v, words};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering, fence};
use loom::thread;
use nacre_wval::*;

/// Dekker: a worker that goes to sleep and a waker with one task.
fn idle_model(announce: fn(&IdleSet), claim: fn(&IdleSet) -> bool, look_again: bool) {
    let (q, idle) = (leak(RunQueue::new(words(2)).unwrap()), leak(IdleSet::new()));
    let owner = q.owner().unwrap();
    let worker = thread::spawn(move || {
        announce(idle);
        let parks = !look_again || q.is_empty();
        if !parks {
            idle.retract(v(1));
        }
        parks
    });
    owner.push(task(1)).unwrap();
    let woken = claim(idle);
    let parks = worker.join().unwrap();
    assert!(!parks || woken, "a task is queued, its worker sleeps, nobody wakes it");
}

pub fn claim_properly(idle: &IdleSet) -> bool {
    idle.claim_one(VcpuMask::first(4)).is_some()
}

#[test]
fn idle_loses_no_wake() {
    model(None, || idle_model(|i| i.announce(v(1)), claim_properly, true));
}

#[test]
#[should_panic(expected = "nobody wakes it")]
fn catches_parking_without_a_second_look() {
    model(None, || idle_model(|i| i.announce(v(1)), claim_properly, false));
}

#[test]
#[should_panic(expected = "nobody wakes it")]
fn catches_a_claim_without_its_fence() {
    model(None, || idle_model(|i| i.announce(v(1)), |i| i.is_parked(v(1)), true));
}

/// A worker comes back and parks again, while the slow waker of its first park reports at last, a second waker claims
/// it and is stopped for good before its hypercall, and a third one pushes. `latch` models the host's: a worker that ends
/// parked with a task queued must have it set.
#[test]
fn idle_survives_wakers_that_were_stopped() {
    model(Some(4), || {
        let (q, idle) = (leak(RunQueue::new(words(2)).unwrap()), leak(IdleSet::new()));
        let latch = Arc::new(AtomicBool::new(false));
        let owner = q.owner().unwrap();
        idle.announce(v(1));
        let slow = idle.claim_one(VcpuMask::first(2)).unwrap();
        let (l1, l2) = (latch.clone(), latch.clone());
        let slow = thread::spawn(move || {
            l1.store(true, Ordering::Release);
            idle.wake_sent(slow);
        });
        let worker = thread::spawn(move || {
            // Back from the park, by the wake or for no reason.
            l2.swap(false, Ordering::AcqRel);
            idle.retract(v(1));
            idle.announce(v(1));
            let parks = q.is_empty();
            if !parks {
                idle.retract(v(1));
            }
            parks
        });
        let _stopped_for_good = idle.claim_one(VcpuMask::first(2));
        owner.push(task(1)).unwrap();
        if let Some(ticket) = idle.claim_one(VcpuMask::first(2)) {
            latch.store(true, Ordering::Release);
            idle.wake_sent(ticket);
        }
        let parked = worker.join().unwrap();
        slow.join().unwrap();
        assert!(!parked || latch.load(Ordering::Acquire), "asleep for ever");
    });
}

/// The worker comes back and parks anew while vCPU 0 doubts the wake of its first park: that must not undo the second.
#[test]
fn a_doubt_that_comes_late_changes_nothing() {
    model(Some(4), || {
        let idle = leak(IdleSet::new());
        idle.announce(v(1));
        idle.wake_sent(idle.claim_one(VcpuMask::first(2)).unwrap());
        let worker = thread::spawn(move || {
            idle.retract(v(1));
            idle.announce(v(1));
        });
        idle.doubt_wakes();
        worker.join().unwrap();
        // Parked once, for nobody: whoever pushes now finds it.
        assert!(idle.is_parked(v(1)));
        assert_eq!(idle.claim_one(VcpuMask::first(2)).map(|ticket| ticket.vcpu()), Some(v(1)));
    });
}

/// Either the requester waits for the vCPU, or that has seen the request before it touches memory again.
fn rendezvous_model(wake: fn(&IdleSet)) {
    let (r, idle) = (leak(Rendezvous::new()), leak(IdleSet::new()));
    let memory = Arc::new(loom::cell::UnsafeCell::new(0u64));
    idle.announce(v(1));
    let theirs = memory.clone();
    let worker = thread::spawn(move || {
        wake(idle);
        if let Some(epoch) = r.pending(v(1)) {
            r.acknowledge(v(1), epoch);
            return;
        }
        // SAFETY: not asked to stop; loom reports the race if the requester goes on all the same.
        theirs.with_mut(|p| unsafe { *p += 1 });
        if let Some(epoch) = r.pending(v(1)) {
            r.acknowledge(v(1), epoch);
        }
    });
    let epoch = r.request();
    if r.missing(epoch, VcpuMask::first(2).without(v(0)), idle).is_empty() {
        // SAFETY: the other vCPU has acknowledged or will see the request first.
        memory.with_mut(|p| unsafe { *p += 1 });
    }
    worker.join().unwrap();
}

#[test]
fn rendezvous_excludes_late_wakers() {
    model(None, || {
        rendezvous_model(|idle| {
            idle.retract(v(1));
        })
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn catches_a_vcpu_that_wakes_without_retracting() {
    model(None, || rendezvous_model(|_| fence(Ordering::SeqCst)));
}
