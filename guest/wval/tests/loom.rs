//! The protocols under loom: every interleaving and every reordering the memory model allows, within a bound on
//! preemptions. `RUSTFLAGS="--cfg loom" cargo test -p nacre-wval --release --test loom`
//!
//! Loom runs loads in program order, so it cannot show what goes wrong when a load sees a later store (against that the
//! consumers' releasing step of a ring's `head` and the producer's acquiring load of it guard). The other fences and
//! orderings were confirmed by taking them out one by one and seeing a test fail.
//!
//! The `catches_*` tests are negative controls: the same models around a deliberately broken variant, which loom
//! must reject. Without them a model that can never fail would look like a proof.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use loom::thread;
use nacre_wval::*;

/// Checks `f` with at most so many preemptions (`None`: all interleavings), unless `LOOM_MAX_PREEMPTIONS` is set.
fn model(preemptions: Option<usize>, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.check(f);
}

/// Memory for one iteration. Loom runs are finite, so it is leaked.
fn words(n: usize) -> &'static [AtomicU64] {
    Box::leak((0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().into_boxed_slice())
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn task(n: u64) -> TaskRef {
    TaskRef::new(n).unwrap()
}

fn v(n: u32) -> VcpuId {
    VcpuId::new(n).unwrap()
}

fn scheduler(vcpus: usize) -> &'static Scheduler<'static> {
    let slots: Vec<_> = (0..vcpus).map(|_| VcpuSlot::new(words(2 * LANES)).unwrap()).collect();
    leak(Scheduler::new(Box::leak(slots.into_boxed_slice())).unwrap())
}

// ---------------------------------------------------------------------------------------------- run queue

/// Two thieves and an owner that pushes over the ring's end and pops: each task is taken once, in order per taker.
#[test]
fn queue_gives_each_task_once() {
    model(Some(4), || {
        let q = leak(RunQueue::new(words(2)).unwrap());
        let owner = q.owner().unwrap();
        owner.push(task(1)).unwrap();
        let thieves: Vec<_> = (0..2)
            .map(|_| thread::spawn(move || [q.steal(), q.steal()].into_iter().flatten().collect::<Vec<_>>()))
            .collect();
        let (mut mine, mut pushed) = (Vec::new(), 1);
        for n in 2..=4 {
            match owner.push(task(n)) {
                Ok(()) => pushed += 1,
                Err(Full(t)) => mine.push(t),
            }
        }
        let refused = mine.len();
        assert_eq!(pushed + refused, 4);
        mine.extend(owner.pop());
        let mut all: Vec<Vec<_>> = thieves.into_iter().map(|t| t.join().unwrap()).collect();
        mine.extend(core::iter::from_fn(|| q.steal()));
        all.push(mine[refused..].to_vec());
        assert!(all.iter().all(|taken| taken.is_sorted()));
        let mut flat: Vec<_> = all.concat();
        flat.extend(&mine[..refused]);
        flat.sort();
        assert_eq!(flat, [1, 2, 3, 4].map(task));
    });
}

/// What was done to a task before its push is seen after its steal.
#[test]
fn queue_publishes_the_task() {
    model(None, || {
        let q = leak(RunQueue::new(words(2)).unwrap());
        let context = Arc::new(loom::cell::UnsafeCell::new(0u64));
        let owner = q.owner().unwrap();
        let theirs = context.clone();
        let thief = thread::spawn(move || {
            if q.steal().is_some() {
                // SAFETY: whoever takes the task owns it; loom reports the race if that is wrong.
                theirs.with(|p| assert_eq!(unsafe { *p }, 7));
            }
        });
        // SAFETY: as above.
        context.with_mut(|p| unsafe { *p = 7 });
        owner.push(task(1)).unwrap();
        thief.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "taken twice")]
fn catches_a_take_without_compare_and_swap() {
    model(None, || {
        let ring = Arc::new((AtomicU64::new(0), AtomicU64::new(1)));
        let take = |ring: &(AtomicU64, AtomicU64)| {
            let head = ring.0.load(Ordering::Acquire);
            let some = ring.1.load(Ordering::Acquire) > head;
            if some {
                ring.0.store(head + 1, Ordering::Release);
            }
            some
        };
        let other = ring.clone();
        let thief = thread::spawn(move || take(&other));
        let (mine, theirs) = (take(&ring), thief.join().unwrap());
        assert!(mine != theirs, "the one task was taken twice");
    });
}

// --------------------------------------------------------------------------------------------------- park

/// A task that parks once, its scheduler, and two unparkers. Whoever must push runs the task (a push is modelled by the
/// right to touch the context). Broken variant: the scheduler commits before the context is saved.
fn park_model(save_first: bool) {
    let state = Arc::new(ParkState::new());
    let context = Arc::new(loom::cell::UnsafeCell::new(0u64));
    let condition = Arc::new(AtomicBool::new(false));
    let runs = Arc::new(AtomicUsize::new(0));
    let resume = {
        let (state, context, condition, runs) =
            (state.clone(), context.clone(), condition.clone(), runs.clone());
        move || {
            // SAFETY: only the one vCPU that resumes the task touches its context; loom reports a race otherwise.
            context.with_mut(|p| unsafe { *p += 1 });
            state.finish_park();
            assert!(condition.load(Ordering::Relaxed), "woken, but what it waited for is not seen");
            runs.fetch_add(1, Ordering::Relaxed);
        }
    };
    let unparkers: Vec<_> = (0..2)
        .map(|_| {
            let (state, condition, resume) = (state.clone(), condition.clone(), resume.clone());
            thread::spawn(move || {
                condition.store(true, Ordering::Relaxed);
                if state.unpark() == Unpark::Push {
                    resume();
                }
            })
        })
        .collect();
    match state.prepare_park() {
        PreparePark::Token => {
            assert!(condition.load(Ordering::Relaxed));
            runs.fetch_add(1, Ordering::Relaxed);
        }
        PreparePark::Switch => {
            // SAFETY: the task is not yet parked, nobody else has it.
            let save = || context.with_mut(|p| unsafe { *p += 1 });
            if save_first {
                save();
            }
            if state.commit_park() == CommitPark::MustRequeue {
                resume();
            }
            if !save_first {
                save();
            }
        }
    }
    unparkers.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(runs.load(Ordering::Relaxed), 1, "lost or doubled");
}

#[test]
fn park_resumes_exactly_once() {
    model(Some(5), || park_model(true));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn catches_a_commit_before_the_context_is_saved() {
    model(None, || park_model(false));
}

/// Parks twice, is unparked twice from another vCPU: the second round must not be lost either.
#[test]
fn park_loses_no_second_wake() {
    model(None, || {
        let state = Arc::new(ParkState::new());
        let (count, woken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (s, c, w) = (state.clone(), count.clone(), woken.clone());
        let unparker = thread::spawn(move || {
            for n in 1..=2 {
                c.store(n, Ordering::Relaxed);
                if s.unpark() == Unpark::Push {
                    w.store(true, Ordering::Release);
                }
            }
        });
        // The task waits for count == 2. It may end parked only if a push is owed to it.
        let mut parked = false;
        while count.load(Ordering::Relaxed) < 2 {
            if state.prepare_park() == PreparePark::Token {
                continue;
            }
            if state.commit_park() == CommitPark::Parked {
                parked = true;
                break;
            }
            state.finish_park();
        }
        unparker.join().unwrap();
        if parked {
            assert!(woken.load(Ordering::Acquire), "asleep for ever");
            state.finish_park();
            assert_eq!(count.load(Ordering::Relaxed), 2);
        }
    });
}

// ----------------------------------------------------------------------------------------------- idle set

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

fn claim_properly(idle: &IdleSet) -> bool {
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

// --------------------------------------------------------------------------------------------- rendezvous

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

// ---------------------------------------------------------------------------------- the composed protocol

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

// ------------------------------------------------------------------------------------------ ends of tasks

/// A task waits for another one's end, which wakes it by its number.
fn join_model() {
    let (done, park) = (Arc::new(Completion::new()), Arc::new(ParkState::new()));
    let result = Arc::new(loom::cell::UnsafeCell::new(0u64));
    let woken = Arc::new(AtomicBool::new(false));
    let (d, p, r, w) = (done.clone(), park.clone(), result.clone(), woken.clone());
    let ender = thread::spawn(move || {
        // SAFETY: nobody reads it before it has seen the end; loom reports the race otherwise.
        r.with_mut(|p| unsafe { *p = 7 });
        if d.end() == Some(3) && p.unpark() == Unpark::Push {
            w.store(true, Ordering::Release);
        }
    });
    let mut parked = false;
    loop {
        if done.wait_for(3) {
            break;
        }
        if park.prepare_park() == PreparePark::Token {
            continue;
        }
        if park.commit_park() == CommitPark::Parked {
            parked = true;
            break;
        }
        park.finish_park();
    }
    if !parked {
        // SAFETY: as above.
        result.with(|p| assert_eq!(unsafe { *p }, 7));
    }
    ender.join().unwrap();
    assert!(!parked || woken.load(Ordering::Acquire), "asleep for ever");
}

#[test]
fn a_join_sees_the_end_and_the_result() {
    model(None, || join_model());
}

/// The ender reads who waits before it says that it has ended.
#[test]
#[should_panic(expected = "nobody wakes the waiter")]
fn catches_an_end_that_is_told_too_late() {
    model(None, || {
        let (ended, waiter) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (e, w) = (ended.clone(), waiter.clone());
        let ender = thread::spawn(move || {
            let woken = w.load(Ordering::Acquire) != 0;
            fence(Ordering::SeqCst);
            e.store(true, Ordering::Release);
            woken
        });
        waiter.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let parks = !ended.load(Ordering::Acquire);
        assert!(!parks || ender.join().unwrap(), "nobody wakes the waiter");
    });
}

/// Requests and ends of a task race: exactly the requests that were accepted are told to who counts them.
#[test]
fn requests_to_stop_are_counted_once() {
    model(None, || {
        let stop = Arc::new(StopRequest::new());
        let askers: Vec<_> = [StopReason::Cancelled, StopReason::WallLimit]
            .map(|reason| {
                let stop = stop.clone();
                thread::spawn(move || stop.request(reason))
            })
            .into();
        let told = stop.end().is_some();
        let accepted = askers.into_iter().map(|a| a.join().unwrap()).filter(|yes| *yes).count();
        assert_eq!(accepted, usize::from(told));
    });
}

// --------------------------------------------------------------------------------------------- timer inbox

/// A sender with an early deadline against vCPU 0 going to sleep: it wakes it, or is read before.
#[test]
fn timers_are_not_late() {
    model(None, || {
        let rings: &'static [TimerRing<'static>] =
            Box::leak(Box::new([TimerRing::new(words(2 * WORDS_PER_MESSAGE)).unwrap()]));
        let inbox = leak(TimerInbox::new(rings));
        let (tx, rx) = (inbox.sender(v(0)).unwrap(), inbox.receiver().unwrap());
        let sender = thread::spawn(move || tx.arm(TimerToken { slot: 0, seq: 1 }, 5, task(1)).unwrap());
        let mut mem = [TimerSlot::new(), TimerSlot::new()];
        let mut timers = TimerQueue::new(&mut mem);
        timers.arm(TimerToken { slot: 1, seq: 1 }, 9, task(2)).unwrap();
        let until = rx.before_park(&mut timers);
        let woken = sender.join().unwrap();
        assert!(until == Some(5) || woken, "sleeps until {until:?}");
        rx.drain(&mut timers);
        assert_eq!((timers.next_deadline(), timers.len()), (Some(5), 2), "the request got lost");
    });
}
