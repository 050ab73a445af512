//! Real threads as vCPUs: many tasks, stealing, parking, stops, a "vCPU" that is stopped for good.
#![cfg(not(loom))]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use nacre_wval::*;

fn words(n: usize) -> Vec<AtomicU64> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

fn v(n: u32) -> VcpuId {
    VcpuId::new(n).unwrap()
}

fn task(n: u64) -> TaskRef {
    TaskRef::new(n).unwrap()
}

#[test]
fn thieves_and_owner_share_out_every_task() {
    const TASKS: u64 = 300_000;
    let mem = words(64);
    let q = RunQueue::new(&mem).unwrap();
    let seen: Vec<_> = (0..=TASKS).map(|_| AtomicUsize::new(0)).collect();
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                let mut last = 0;
                loop {
                    let finished = done.load(Ordering::Acquire);
                    match q.steal() {
                        Some(t) => {
                            assert!(t.get() > last, "not first in, first out");
                            last = t.get();
                            seen[last as usize].fetch_add(1, Ordering::Relaxed);
                        }
                        None if finished => break,
                        None => thread::yield_now(),
                    }
                }
            });
        }
        let owner = q.owner().unwrap();
        for n in 1..=TASKS {
            while owner.push(task(n)).is_err() {
                if let Some(t) = owner.pop() {
                    seen[t.get() as usize].fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        done.store(true, Ordering::Release);
    });
    assert!(seen[1..].iter().all(|n| n.load(Ordering::Relaxed) == 1));
}

/// One task: how far it is, whether somebody runs it, its sleep state. It alternates between yielding and waiting for
/// its partner, the task with the other lowest bit.
struct Task {
    steps: AtomicU64,
    running: AtomicBool,
    park: ParkState,
}

/// Tasks of all classes, partners in different ones.
fn class(n: usize) -> Priority {
    Priority::ALL[n % CLASSES]
}

struct World<'a> {
    sched: &'a Scheduler<'a>,
    tasks: Vec<Task>,
    latches: Vec<thread::Thread>,
    live: AtomicUsize,
    moves: AtomicUsize,
}

const STEPS: u64 = 30_000;

impl World<'_> {
    fn ring(&self, ticket: Option<WakeTicket>) {
        if let Some(ticket) = ticket {
            self.latches[ticket.vcpu().index()].unpark();
            self.sched.wake_sent(ticket);
        }
    }

    fn wake_all(&self) {
        self.latches.iter().for_each(|t| t.unpark());
    }

    fn unpark(&self, vcpu: &Vcpu<'_>, n: usize) {
        if self.tasks[n].park.unpark() == Unpark::Push {
            self.ring(vcpu.submit(task(n as u64 + 1), class(n)).unwrap());
        }
    }

    /// Runs a task until it switches out. A task is at most one step ahead of its partner.
    fn run(&self, vcpu: &Vcpu<'_>, n: usize) -> Switch {
        let (me, partner) = (&self.tasks[n], n ^ 1);
        loop {
            let mine = me.steps.load(Ordering::Relaxed);
            if mine == STEPS {
                return Switch::Exit;
            }
            if mine <= self.tasks[partner].steps.load(Ordering::Acquire) {
                me.steps.store(mine + 1, Ordering::Release);
                self.unpark(vcpu, partner);
                if mine % 3 == 0 {
                    return Switch::Yield;
                }
            } else if me.park.prepare_park() == PreparePark::Switch {
                return Switch::Park;
            }
        }
    }

    fn vcpu(&self, vcpu: &Vcpu<'_>) {
        while self.live.load(Ordering::Acquire) != 0 {
            match vcpu.next() {
                Next::Run { task: t, wake } => {
                    self.ring(wake);
                    let n = t.get() as usize - 1;
                    let me = &self.tasks[n];
                    assert!(!me.running.swap(true, Ordering::Acquire), "runs on two vCPUs");
                    me.park.finish_park();
                    let why = self.run(vcpu, n);
                    me.running.store(false, Ordering::Release);
                    match me.park.commit(why) {
                        Commit::Requeue => self.ring(vcpu.requeue(t, class(n)).unwrap()),
                        Commit::Parked => {}
                        Commit::Exited => {
                            if self.live.fetch_sub(1, Ordering::AcqRel) == 1 {
                                self.wake_all();
                            }
                        }
                    }
                    self.moves.fetch_add(1, Ordering::Relaxed);
                }
                other => {
                    if let Next::Reclaimed { wake } = other {
                        self.ring(wake);
                    }
                    vcpu.announce();
                    if !vcpu.has_work() && self.live.load(Ordering::Acquire) != 0 {
                        thread::park();
                    }
                    vcpu.retract();
                }
            }
        }
    }
}

/// Without any timeout: a lost wake would hang this test. Meanwhile the main thread stops, resumes and
/// takes and gives permissions.
#[test]
fn parked_tasks_and_workers_always_come_back() {
    const WORKERS: usize = 3;
    const TASKS: usize = 12;
    let rings: Vec<_> = (0..=WORKERS).map(|_| words(16 * LANES)).collect();
    let slots: Vec<_> = rings.iter().map(|r| VcpuSlot::new(r).unwrap()).collect();
    let sched = Scheduler::new(&slots).unwrap();
    let (world_tx, stops) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    thread::scope(|s| {
        let (tx, rx): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| std::sync::mpsc::channel()).unzip();
        let handles: Vec<_> = rx
            .into_iter()
            .enumerate()
            .map(|(i, rx)| {
                let vcpu = sched.attach(v(i as u32 + 1)).unwrap();
                s.spawn(move || {
                    let world: std::sync::Arc<World<'_>> = rx.recv().unwrap();
                    world.vcpu(&vcpu);
                })
            })
            .collect();
        let mut latches = vec![thread::current()];
        latches.extend(handles.iter().map(|h| h.thread().clone()));
        let tasks = (0..TASKS).map(|_| Task {
            steps: AtomicU64::new(0),
            running: AtomicBool::new(false),
            park: ParkState::new(),
        });
        let world = std::sync::Arc::new(World {
            sched: &sched,
            tasks: tasks.collect(),
            latches,
            live: AtomicUsize::new(TASKS),
            moves: AtomicUsize::new(0),
        });
        world_tx.lock().unwrap().push(world.clone());
        tx.into_iter().for_each(|tx| tx.send(world.clone()).unwrap());
        let normal = sched.attach(VcpuId::NORMAL).unwrap();
        (0..TASKS).for_each(|n| world.ring(normal.submit(task(n as u64 + 1), class(n)).unwrap()));
        let ring_backlog = || {
            while let Some(t) = sched.claim_for_backlog() {
                world.ring(Some(t));
            }
        };
        let workers = sched.vcpus().without(VcpuId::NORMAL);
        for round in 0.. {
            if world.live.load(Ordering::Acquire) == 0 {
                break;
            }
            let stopped = sched.stop().unwrap();
            while !sched.all_acknowledged(&stopped, workers) {
                thread::yield_now();
            }
            let steps = || world.tasks.iter().map(|t| t.steps.load(Ordering::Relaxed)).sum::<u64>();
            let before = steps();
            assert!(world.tasks.iter().all(|t| !t.running.load(Ordering::Relaxed)));
            (0..50).for_each(|_| thread::yield_now());
            assert_eq!(before, steps(), "a task ran while stopped");
            sched.resume(stopped);
            ring_backlog();
            sched.disallow(v(1 + round % WORKERS as u32));
            (0..200).for_each(|_| thread::yield_now());
            sched.set_allowed(VcpuMask(u64::MAX));
            ring_backlog();
            stops.fetch_add(1, Ordering::Relaxed);
        }
    });
    let worlds = world_tx.into_inner().unwrap();
    assert!(worlds[0].tasks.iter().all(|t| t.steps.load(Ordering::Relaxed) == STEPS));
    assert!(stops.into_inner() > 0 && worlds[0].moves.load(Ordering::Relaxed) > TASKS);
}

/// The host stops one worker for good, right after its pushes, and the wakes it owes are never sent. The others, always
/// busy with tasks of their own, still finish everything but what it had in hand.
#[test]
fn a_worker_stopped_for_ever_keeps_only_its_own_task() {
    const TASKS: u64 = 40;
    let rings: Vec<_> = (0..3).map(|_| words(64 * LANES)).collect();
    let slots: Vec<_> = rings.iter().map(|r| VcpuSlot::new(r).unwrap()).collect();
    let sched = Scheduler::new(&slots).unwrap();
    let [normal, stopped, other] = [0, 1, 2].map(|n| sched.attach(v(n)).unwrap());
    other.announce();
    for n in 1..=TASKS {
        let never_rung = stopped.submit(task(n), Priority::Normal).unwrap();
        assert_eq!(never_rung.unwrap().vcpu(), v(2));
    }
    let Next::Run { task: in_hand, .. } = stopped.next() else { panic!() };
    // The next submitter, whoever it is, gets the wake.
    assert_eq!(normal.submit(task(TASKS + 1), Priority::Normal).unwrap().unwrap().vcpu(), v(2));
    other.retract();
    assert_eq!(other.submit(task(1_000), Priority::Normal).unwrap(), None);
    let mut finished = Vec::new();
    // Three of four fairness turns look at the others' queues first.
    for _ in 0..2 * (TASKS + 2) * u64::from(FAIRNESS_INTERVAL) {
        let Next::Run { task: t, .. } = other.next() else { panic!() };
        if t.get() == 1_000 {
            let _ = other.requeue(t, Priority::Normal).unwrap();
        } else {
            finished.push(t.get());
        }
    }
    finished.sort();
    let all_but_one: Vec<_> = (1..=TASKS + 1).filter(|&n| n != in_hand.get()).collect();
    assert_eq!(finished, all_but_one);
}
