//! Single-threaded tests of the scheduler's decisions.

use super::*;

/// Places in a vCPU's queues, all lanes together.
const RING: usize = 8 * LANES;

type Rings<const N: usize> = [[AtomicU64; RING]; N];

fn rings<const N: usize>() -> Rings<N> {
    core::array::from_fn(|_| [const { AtomicU64::new(0) }; RING])
}

fn slots<const N: usize>(rings: &Rings<N>) -> [VcpuSlot<'_>; N] {
    core::array::from_fn(|i| VcpuSlot::new(&rings[i]).unwrap())
}

fn v(n: u32) -> VcpuId {
    VcpuId::new(n).unwrap()
}

fn task(n: u64) -> TaskRef {
    TaskRef::new(n).unwrap()
}

fn run(n: u64) -> Next {
    Next::Run { task: task(n), wake: None }
}

#[test]
fn the_normal_vcpu_takes_tasks_only_without_workers() {
    let (r1, r2) = (rings::<1>(), rings::<2>());
    let (s1, s2) = (slots(&r1), slots(&r2));
    let (alone, pair) = (Scheduler::new(&s1).unwrap(), Scheduler::new(&s2).unwrap());
    let v0 = alone.attach(v(0)).unwrap();
    alone.set_allowed(VcpuMask::EMPTY);
    assert_eq!(v0.submit(task(1), Priority::Normal).unwrap(), None);
    assert_eq!((v0.has_work(), v0.next()), (true, run(1)));

    let (v0, w1) = (pair.attach(v(0)).unwrap(), pair.attach(v(1)).unwrap());
    assert_eq!(v0.submit(task(1), Priority::Normal).unwrap(), None);
    assert_eq!((v0.has_work(), v0.next()), (false, Next::Empty));
    assert_eq!((w1.has_work(), w1.next()), (true, run(1)));
    assert!(pair.attach(v(1)).is_none() && pair.attach(v(2)).is_none());
    assert_eq!(Scheduler::new(&[]).unwrap_err(), SchedError::VcpuCount(0));
}

#[test]
fn every_push_wakes_a_parked_worker_but_a_lone_requeue_does_not() {
    let (r, mut woken) = (rings::<3>(), Vec::new());
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1, w2] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
    w1.announce();
    w2.announce();
    v0.announce();
    for n in 1..=3 {
        let ticket = v0.submit(task(n), Priority::Normal).unwrap();
        woken.push(ticket.as_ref().map(|t| t.vcpu()));
        ticket.into_iter().for_each(|t| sched.wake_sent(t));
    }
    assert_eq!(woken, [Some(v(1)), Some(v(2)), None]);
    assert_eq!(w1.retract(), Retract::WakePending);
    assert_eq!(w1.next(), run(1));
    assert_eq!(w2.retract(), Retract::WakePending);
    assert_eq!(w2.next(), run(2));
    assert_eq!(w2.next(), run(3));
    assert_eq!(w2.next(), Next::Empty);
    w2.announce();
    assert_eq!(w1.requeue(task(1), Priority::Normal).unwrap(), None);
    assert_eq!(w1.requeue(task(9), Priority::Normal).unwrap().unwrap().vcpu(), v(2));
}

#[test]
fn busy_workers_still_take_from_queues_nobody_serves() {
    let r = rings::<4>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1, stopped, w3] = [0, 1, 2, 3].map(|n| sched.attach(v(n)).unwrap());
    for n in 0..3 {
        assert_eq!(v0.submit(task(100 + n), Priority::Normal).unwrap(), None);
        assert_eq!(stopped.submit(task(200 + n), Priority::Normal).unwrap(), None);
    }
    assert_eq!(w1.submit(task(1), Priority::Normal).unwrap(), None);
    w3.announce();
    let (mut foreign, mut wakes) = (Vec::new(), 0);
    for _ in 0..7 * FAIRNESS_INTERVAL {
        match w1.next() {
            Next::Run { task: t, wake } => {
                if t == task(1) {
                    assert!(wake.is_none() && w1.requeue(t, Priority::Normal).unwrap().is_none());
                } else {
                    wakes += usize::from(wake.is_some());
                    foreign.push(t.get());
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(foreign, [200, 100, 201, 101, 202, 102]);
    assert_eq!(wakes, 6, "its own task waited each time, and nobody ever said that the wake was sent");
}

#[test]
fn a_reclaimed_worker_hands_its_queue_over_and_a_grant_wakes_for_it() {
    let r = rings::<3>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [w1, w2] = [1, 2].map(|n| sched.attach(v(n)).unwrap());
    w2.announce();
    sched.disallow(v(1));
    w1.push(task(5), Lane { class: Priority::Normal, new: false }).unwrap();
    let Next::Reclaimed { wake: Some(ticket) } = w1.next() else { panic!() };
    assert_eq!(ticket.vcpu(), v(2));
    sched.wake_sent(ticket);
    // Before the woken one takes it, it is reclaimed too: the task stays, until a grant.
    sched.disallow(v(2));
    let _ = w2.retract();
    assert_eq!(w2.next(), Next::Reclaimed { wake: None });
    for w in [&w1, &w2] {
        w.announce();
        assert!(!w.has_work());
    }
    assert_eq!(sched.claim_for_backlog(), None);
    sched.set_allowed(VcpuMask::EMPTY.with(v(2)));
    let ticket = sched.claim_for_backlog().unwrap();
    assert_eq!(ticket.vcpu(), v(2));
    sched.wake_sent(ticket);
    assert_eq!(sched.claim_for_backlog(), None);
    let _ = w2.retract();
    assert_eq!(w2.next(), run(5));
}

#[test]
fn the_gate_waits_for_tasks_in_hand_and_resume_wakes() {
    let r = rings::<3>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1, w2] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
    assert_eq!(v0.submit(task(1), Priority::Normal).unwrap(), None);
    assert_eq!(w1.next(), run(1));
    w2.announce();
    assert_eq!(sched.load().running, 1);
    let stopped = sched.stop().unwrap();
    assert!(sched.stop().is_none() && sched.is_stopped());
    assert_eq!(sched.unacknowledged(&stopped, sched.vcpus()), VcpuMask::first(2));
    assert_eq!(v0.next(), Next::Stopped);
    assert!(!sched.all_acknowledged(&stopped, sched.vcpus()));
    // It switches its task out, requeues it (nobody is woken), and only then has acknowledged.
    assert_eq!(w1.requeue(task(1), Priority::Normal).unwrap(), None);
    assert_eq!(w1.next(), Next::Stopped);
    assert!(sched.all_acknowledged(&stopped, VcpuMask(u64::MAX)));
    assert_eq!(v0.submit(task(2), Priority::Normal).unwrap(), None);
    // A late return from a park changes nothing.
    let _ = w2.retract();
    assert_eq!((w2.has_work(), w2.next()), (false, Next::Stopped));
    w2.announce();
    w1.announce();
    assert_eq!(sched.claim_for_backlog(), None);
    sched.resume(stopped);
    let mut woken = Vec::new();
    while let Some(ticket) = sched.claim_for_backlog() {
        woken.push(ticket.vcpu());
        sched.wake_sent(ticket);
    }
    assert_eq!(woken, [v(1), v(2)]);
    let load = sched.load();
    assert_eq!((load.queued, load.running, load.parked.count()), (2, 0, 2));
    // A second stop needs new acknowledgements.
    let _ = w1.retract();
    assert_eq!(w1.next(), run(1));
    let again = sched.stop().unwrap();
    assert_eq!(sched.unacknowledged(&again, sched.vcpus()), VcpuMask::first(2));
}

/// What `vcpu` takes in `turns` turns when it requeues each task it took: how often each class was chosen.
fn chosen(vcpu: &Vcpu<'_>, turns: u32, class_of: impl Fn(u64) -> Priority) -> [u32; CLASSES] {
    let mut chosen = [0; CLASSES];
    for _ in 0..turns {
        let Next::Run { task, .. } = vcpu.next() else { panic!("nothing to run") };
        let class = class_of(task.get());
        chosen[class.index()] += 1;
        let _ = vcpu.requeue(task, class).unwrap();
    }
    chosen
}

#[test]
fn the_highest_class_goes_first_wherever_it_is_queued() {
    let r = rings::<3>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1, w2] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
    w1.submit(task(3), Priority::Low).unwrap();
    w1.submit(task(2), Priority::Normal).unwrap();
    w2.submit(task(1), Priority::High).unwrap();
    v0.submit(task(4), Priority::Low).unwrap();
    for n in 1..=4 {
        assert_eq!(w1.next(), run(n));
    }
    assert_eq!(w1.next(), Next::Empty);
}

#[test]
fn low_classes_get_their_share_beside_busy_high_ones() {
    let r = rings::<2>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1] = [0, 1].map(|n| sched.attach(v(n)).unwrap());
    let class_of = |n: u64| Priority::from_index(n as usize % 10).unwrap();
    // Of each class one task with the worker and one with the normal vCPU, which never takes any.
    for n in 10..13 {
        w1.submit(task(n), class_of(n)).unwrap();
        v0.submit(task(n + 10), class_of(n + 10)).unwrap();
    }
    let turns = 100 * 3 * FAIRNESS_INTERVAL;
    let [high, normal, low] = chosen(&w1, turns, class_of);
    assert_eq!((normal, low, high), (100, 100, turns - 200));
}

#[test]
fn taking_anothers_task_first_wakes_somebody_for_the_own_one() {
    let r = rings::<3>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1, w2] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
    assert_eq!(w1.requeue(task(1), Priority::Low).unwrap(), None, "it takes that very task next");
    v0.submit(task(2), Priority::High).unwrap();
    w2.announce();
    let Next::Run { task: t, wake: Some(ticket) } = w1.next() else { panic!() };
    assert_eq!((t, ticket.vcpu()), (task(2), v(2)), "it did not, so somebody else must");
}

#[test]
fn a_running_task_yields_for_higher_ones_for_others_after_its_slice_and_when_told_to() {
    let r = rings::<3>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1, _w2] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
    v0.submit(task(1), Priority::Normal).unwrap();
    assert_eq!(w1.next(), run(1));
    for slice_is_over in [false, true] {
        assert!(!w1.should_yield(Priority::Normal, slice_is_over), "nobody waits");
    }
    v0.submit(task(2), Priority::Low).unwrap();
    assert!(!w1.should_yield(Priority::Normal, false) && w1.should_yield(Priority::Normal, true));
    assert!(!sched.runs_below(Priority::Normal) && sched.runs_below(Priority::High));
    v0.submit(task(3), Priority::High).unwrap();
    assert!(w1.should_yield(Priority::Normal, false) && !w1.should_yield(Priority::High, false));
    assert_eq!(w1.next(), run(3));
    assert_eq!(w1.next(), run(2));
    assert!(sched.runs_below(Priority::Normal));
    sched.disallow(v(1));
    assert!(w1.should_yield(Priority::Low, false), "reclaimed");
    sched.set_allowed(VcpuMask(u64::MAX));
    let stopped = sched.stop().unwrap();
    assert!(w1.should_yield(Priority::Low, false), "stopped");
    sched.resume(stopped);
    assert!(!w1.should_yield(Priority::Low, true));
}

#[test]
fn ticks_come_when_a_slice_ends_a_limit_is_reached_or_a_higher_one_waits() {
    const SLICE: u64 = 100;
    const RETRY: u64 = 20;
    let r = rings::<3>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1, w2] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
    let tick = |now| sched.tick(now, SLICE, RETRY);
    assert_eq!(tick(0), Tick { bump: false, look_again_at: None });
    v0.submit(task(1), Priority::Normal).unwrap();
    v0.submit(task(2), Priority::Normal).unwrap();
    assert_eq!(w1.next(), run(1));
    w1.begin(1000, u64::MAX);
    assert_eq!(w2.next(), run(2));
    w2.begin(1030, 1500);
    assert_eq!(tick(1200), Tick { bump: false, look_again_at: Some(1500) }, "nobody waits");
    assert_eq!(tick(1500), Tick { bump: true, look_again_at: Some(1520) }, "its limit");
    v0.submit(task(3), Priority::Low).unwrap();
    assert_eq!(tick(1050), Tick { bump: false, look_again_at: Some(1100) });
    assert_eq!(tick(1110), Tick { bump: true, look_again_at: Some(1130) });
    v0.submit(task(4), Priority::High).unwrap();
    assert_eq!(tick(1050), Tick { bump: true, look_again_at: Some(1070) });
    assert_eq!(w1.next(), run(4));
    assert_eq!(tick(1050).look_again_at, Some(1100), "the high one is taken");
}

#[test]
fn new_tasks_wait_for_memory_while_others_are_ready() {
    let r = rings::<2>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1] = [0, 1].map(|n| sched.attach(v(n)).unwrap());
    v0.submit_new(task(1), Priority::High).unwrap();
    v0.submit_new(task(2), Priority::Normal).unwrap();
    v0.submit(task(3), Priority::Low).unwrap();
    assert_eq!(w1.next_with(false), run(3), "ready, however low");
    assert_eq!(w1.requeue(task(3), Priority::Low).unwrap(), None);
    // A fairness turn changes nothing about it.
    for _ in 0..2 * FAIRNESS_INTERVAL {
        assert_eq!(w1.next_with(false), run(3));
        assert_eq!(w1.requeue(task(3), Priority::Low).unwrap(), None);
    }
    assert_eq!(w1.next_with(false), run(3));
    assert!(w1.has_work(), "new tasks are work");
    assert_eq!(w1.next_with(false), run(1), "nothing else is ready");
    assert_eq!(w1.next_with(false), run(2));
    assert_eq!(w1.next_with(true), Next::Empty);
}

#[test]
fn new_tasks_and_others_of_a_class_take_turns() {
    let r = rings::<2>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1] = [0, 1].map(|n| sched.attach(v(n)).unwrap());
    for n in 1..=4 {
        v0.submit_new(task(n), Priority::Normal).unwrap();
    }
    let mut begun = Vec::new();
    for _ in 0..8 {
        let Next::Run { task, .. } = w1.next() else { panic!() };
        begun.push(task.get());
        assert!(w1.requeue(task, Priority::Normal).unwrap().is_none());
    }
    begun.sort();
    begun.dedup();
    assert_eq!(begun, [1, 2, 3, 4], "however many turns the first ones would take");
}

#[test]
fn brief_tasks_are_left_to_workers_that_are_awake() {
    let r = rings::<3>();
    let s = slots(&r);
    let sched = Scheduler::new(&s).unwrap();
    let [v0, w1, w2] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
    w1.announce();
    w2.announce();
    let submit = |n, since| v0.submit_brief(task(n), Priority::Normal, 2, since).unwrap();
    let woken = |submitted| match submitted {
        Submitted::Wake(Some(ticket)) => ticket,
        other => panic!("{other:?}"),
    };
    // Nobody is awake; then one is on its way, for two.
    let first = woken(submit(1, 0));
    assert_eq!(first.vcpu(), v(1));
    sched.wake_sent(first);
    assert_eq!(submit(2, 0), Submitted::Left);
    assert_eq!(woken(submit(3, 0)).vcpu(), v(2));
    // It runs one since moment 10: it counts for who looks back that far only.
    let _ = w1.retract();
    assert_eq!(w1.next(), run(1));
    w1.begin(10, u64::MAX);
    assert_eq!(w1.next(), run(2));
    assert_eq!(submit(4, 10), Submitted::Left);
    assert_eq!(woken(submit(5, 11)).vcpu(), v(2));
    // Whom the host has taken its permission does not count.
    assert_eq!((w1.next(), w1.next(), w1.next(), w1.next()), (run(3), run(4), run(5), Next::Empty));
    sched.disallow(v(1));
    assert_eq!(woken(submit(6, 0)).vcpu(), v(2));
}
