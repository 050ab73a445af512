//! Queues, idle set, classes, stop gate and grants together.

use crate::idle::claim_properly;
use crate::{leak, model, scheduler, task, v, words};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use nacre_wval::*;

/// One turn of the worker loop: at most two tasks, then it parks (true) or goes round again (false).
fn turn(vcpu: &Vcpu<'_>, taken: &mut Vec<u64>, look_again: bool) -> bool {
    while let Next::Run { task, wake } = vcpu.next() {
        wake.into_iter().for_each(|t| vcpu.scheduler().wake_sent(t));
        taken.push(task.get());
    }
    vcpu.announce();
    let parks = !look_again || !vcpu.has_work();
    if !parks {
        vcpu.retract();
        while let Next::Run { task, .. } = vcpu.next() {
            taken.push(task.get());
        }
    }
    parks
}

/// Two workers and the normal vCPU, which submits two tasks of these classes. At the end a queued task needs somebody awake
/// or woken.
fn composed_model(look_again: bool, classes: [Priority; 2]) {
    let sched = scheduler(3);
    let workers: Vec<_> = [1, 2]
        .map(|n| {
            let vcpu = sched.attach(v(n)).unwrap();
            thread::spawn(move || {
                let mut taken = Vec::new();
                let parks = turn(&vcpu, &mut taken, look_again);
                (vcpu, taken, parks)
            })
        })
        .into();
    let normal = sched.attach(v(0)).unwrap();
    let mut woken = VcpuMask::EMPTY;
    for (n, class) in (1..).zip(classes) {
        if let Some(ticket) = normal.submit(task(n), class).unwrap() {
            woken = woken.with(ticket.vcpu());
            sched.wake_sent(ticket);
        }
    }
    let mut all = Vec::new();
    for (vcpu, taken, parks) in workers.into_iter().map(|w| w.join().unwrap()) {
        all.extend(taken);
        if !parks || woken.contains(vcpu.id()) {
            vcpu.retract();
            turn(&vcpu, &mut all, true);
        }
    }
    all.sort();
    assert_eq!(all, [1, 2], "lost, doubled, or left with everybody asleep");
}

#[test]
fn composed_leaves_no_task_behind() {
    model(Some(3), || composed_model(true, [Priority::Normal; 2]));
}

#[test]
#[should_panic(expected = "everybody asleep")]
fn catches_the_composed_protocol_without_a_second_look() {
    model(Some(3), || composed_model(false, [Priority::Normal; 2]));
}

/// The same with classes that are used for the first time.
#[test]
fn composed_leaves_no_task_of_another_class_behind() {
    model(Some(2), || composed_model(true, [Priority::Low, Priority::High]));
}

/// A worker goes to sleep while a class is used for the first time: the set of classes is written before the push, so
/// whoever must see the task sees its class. Broken variant: written after the waker's fence.
fn class_model(use_class_first: bool) {
    let (q, idle) = (leak(RunQueue::new(words(2)).unwrap()), leak(IdleSet::new()));
    let used = Arc::new(AtomicBool::new(false));
    let (owner, theirs) = (q.owner().unwrap(), used.clone());
    let worker = thread::spawn(move || {
        idle.announce(v(1));
        let parks = !theirs.load(Ordering::Acquire) || q.is_empty();
        if !parks {
            idle.retract(v(1));
        }
        parks
    });
    if use_class_first {
        used.fetch_or(true, Ordering::AcqRel);
    }
    owner.push(task(1)).unwrap();
    let woken = claim_properly(idle);
    used.fetch_or(true, Ordering::AcqRel);
    assert!(!worker.join().unwrap() || woken, "a task is queued, its worker sleeps, nobody wakes it");
}

#[test]
fn classes_are_seen_with_their_tasks() {
    model(None, || class_model(true));
}

#[test]
#[should_panic(expected = "nobody wakes it")]
fn catches_a_class_that_is_noted_after_the_push() {
    model(None, || class_model(false));
}

/// A worker requeues its low task (alone: no wake), then takes a high one of another vCPU first and is stopped for good
/// after it has sent the wake that `next` gave it. The low task is found by the second worker, which was about to park.
#[test]
fn a_task_left_behind_for_a_higher_one_is_found() {
    model(Some(3), || {
        let sched = scheduler(3);
        let [normal, first, second] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
        assert!(first.requeue(task(1), Priority::Low).unwrap().is_none());
        let mut woken = VcpuMask::EMPTY;
        if let Some(ticket) = normal.submit(task(2), Priority::High).unwrap() {
            woken = woken.with(ticket.vcpu());
            sched.wake_sent(ticket);
        }
        let second = thread::spawn(move || {
            let mut taken = Vec::new();
            let parks = turn(&second, &mut taken, true);
            (second, taken, parks)
        });
        // It has one of the two tasks in hand and never comes back; the other one must not be stuck.
        let mut in_hand = Vec::new();
        if let Next::Run { task, wake } = first.next() {
            in_hand.push(task.get());
            if let Some(ticket) = wake {
                woken = woken.with(ticket.vcpu());
                sched.wake_sent(ticket);
            }
        }
        let (second, mut taken, parks) = second.join().unwrap();
        if !parks || woken.contains(v(2)) {
            second.retract();
            turn(&second, &mut taken, true);
        }
        taken.extend(in_hand);
        taken.sort();
        assert_eq!(taken, [1, 2], "lost, doubled, or left behind");
    });
}

/// A worker requeues the task it ran (alone: no wake), makes another one runnable, and is then stopped for good.
/// That other task is found by the second worker, which was about to park.
#[test]
fn composed_survives_a_worker_stopped_after_its_pushes() {
    model(None, || {
        let sched = scheduler(3);
        let (first, second) = (sched.attach(v(1)).unwrap(), sched.attach(v(2)).unwrap());
        let second = thread::spawn(move || {
            let mut taken = Vec::new();
            let parks = turn(&second, &mut taken, true);
            (second, taken, parks)
        });
        assert!(first.requeue(task(1), Priority::Normal).unwrap().is_none());
        let mut woken = false;
        if let Some(ticket) = first.submit(task(2), Priority::Normal).unwrap() {
            woken = true;
            sched.wake_sent(ticket);
        }
        let (second, mut taken, parks) = second.join().unwrap();
        if !parks || woken {
            second.retract();
            turn(&second, &mut taken, true);
        }
        assert_eq!(taken, [1, 2]);
    });
}

/// A worker in the middle of things, a stop, a resume: nobody touches the tenant's memory while the requester does, and
/// the task left queued is run after the resume.
#[test]
fn stop_gate_excludes_tasks_and_resume_finds_them() {
    model(None, || {
        let sched = scheduler(2);
        let memory = Arc::new(loom::cell::UnsafeCell::new(0u64));
        let (normal, worker) = (sched.attach(v(0)).unwrap(), sched.attach(v(1)).unwrap());
        let _ = normal.submit(task(1), Priority::Normal).unwrap();
        worker.announce();
        let theirs = memory.clone();
        let worker = thread::spawn(move || {
            let mut ran = 0;
            worker.retract();
            while let Next::Run { .. } = worker.next() {
                // SAFETY: a running task owns the tenant's memory; loom reports the race with the requester.
                theirs.with_mut(|p| unsafe { *p += 1 });
                ran += 1;
            }
            worker.announce();
            let parks = !worker.has_work();
            (worker, ran, parks)
        });
        let stopped = sched.stop().unwrap();
        if sched.all_acknowledged(&stopped, sched.vcpus().without(v(0))) {
            // SAFETY: no vCPU holds a task.
            memory.with_mut(|p| unsafe { *p += 1 });
        }
        sched.resume(stopped);
        let mut woken = false;
        while let Some(ticket) = sched.claim_for_backlog() {
            woken = true;
            sched.wake_sent(ticket);
        }
        let (worker, ran, parks) = worker.join().unwrap();
        if ran == 0 {
            assert!(!parks || woken, "stopped, resumed, forgotten");
            worker.retract();
            assert!(matches!(worker.next(), Next::Run { .. }));
        }
    });
}

/// A reclaimed worker goes to sleep on a queued task while it is granted its CPU again: it sees that, or is woken.
#[test]
fn a_grant_finds_the_reclaimed_worker() {
    model(None, || {
        let sched = scheduler(2);
        let (normal, worker) = (sched.attach(v(0)).unwrap(), sched.attach(v(1)).unwrap());
        sched.disallow(v(1));
        assert_eq!(normal.submit(task(1), Priority::Normal).unwrap(), None);
        let worker = thread::spawn(move || {
            let mut taken = Vec::new();
            let parks = turn(&worker, &mut taken, true);
            (taken, parks)
        });
        sched.set_allowed(VcpuMask::first(2));
        let mut woken = false;
        while let Some(ticket) = sched.claim_for_backlog() {
            woken = true;
            sched.wake_sent(ticket);
        }
        let (taken, parks) = worker.join().unwrap();
        assert!(taken == [1] || woken || !parks, "granted, and asleep for ever");
    });
}

/// A worker sleeps reclaimed. One vCPU queues a task while another one grants: one of them wakes it.
#[test]
fn a_grant_and_a_push_do_not_miss_each_other() {
    model(None, || {
        let sched = scheduler(2);
        let (normal, worker) = (sched.attach(v(0)).unwrap(), sched.attach(v(1)).unwrap());
        sched.disallow(v(1));
        worker.announce();
        let submitter = thread::spawn(move || normal.submit(task(1), Priority::Normal).unwrap().is_some());
        sched.set_allowed(VcpuMask::first(2));
        let woken = sched.claim_for_backlog().is_some();
        assert!(submitter.join().unwrap() || woken, "queued, allowed, and asleep for ever");
    });
}
