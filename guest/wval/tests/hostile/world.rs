//! The guest's loops in small, around the real `nacre-wval` and the real rings, and the tasks that run on them.

use crate::host::{DOORBELL, Host, ROOM, VCPUS};
use crate::plan::{Broken, Op, Plan};
use crate::schedule::Rng;
use nacre_abi::message::{Header, Kind};
use nacre_abi::ring::{Consumer, Producer, Ring};
use nacre_abi::sync::fence;
use nacre_wval::sync::AtomicU64;
use nacre_wval::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64 as Plain, AtomicUsize, Ordering};

/// What happened in runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Wakes by what became of them.
    pub dropped: u64,
    /// See above.
    pub misdirected: u64,
    /// See above.
    pub delayed: u64,
    /// See above.
    pub repeated: u64,
    /// Wakes for nothing.
    pub spurious: u64,
    /// Changes of the grant.
    pub grants: u64,
    /// Tasks that went on on another vCPU.
    pub moves: u64,
    /// Timers that expired.
    pub timers: u64,
    /// Parks of vCPUs.
    pub parks: u64,
    /// Times the sender found the ring full.
    pub waits_for_room: u64,
    /// Times wakes were taken for lost.
    pub doubted: u64,
}

impl Seen {
    /// Adds another run's.
    pub fn add(&mut self, other: Seen) {
        self.dropped += other.dropped;
        self.misdirected += other.misdirected;
        self.delayed += other.delayed;
        self.repeated += other.repeated;
        self.spurious += other.spurious;
        self.grants += other.grants;
        self.moves += other.moves;
        self.timers += other.timers;
        self.parks += other.parks;
        self.waits_for_room += other.waits_for_room;
        self.doubted += other.doubted;
    }
}

/// A task. Its own words are plain: only the protocol under test keeps them from being touched by two.
struct Task {
    ops: Vec<Op>,
    at: AtomicUsize,
    /// Steps done, which the partner looks at.
    meetings: AtomicU64,
    until_ns: Plain,
    sent: Plain,
    park: ParkState,
    running: AtomicBool,
    saved: AtomicBool,
    ended: AtomicBool,
    last_vcpu: AtomicUsize,
}

/// Words of a ring to the host and to the guest: small, so that they are full sometimes.
const RING_WORDS: usize = 16;
const TICK_NS: u64 = 5_000_000;
const BACKSTOP_NS: u64 = 100_000_000;
const TIMER_REQUESTS: usize = 4;

/// Words of the control page and of the shared page.
struct Window<'w> {
    normal_parked: AtomicU64,
    host_awake: AtomicU64,
    wants_room: AtomicU64,
    granted: AtomicU64,
    to_guest: Ring<'w>,
    to_host: Vec<Ring<'w>>,
}

struct World<'w> {
    plan: &'w Plan,
    host: &'w Host,
    sched: &'w Scheduler<'w>,
    window: &'w Window<'w>,
    tasks: Vec<Task>,
    live: AtomicUsize,
    /// Numbers of timers.
    timer_seq: Plain,
    /// Messages that the host has read: task and number.
    received: Mutex<Vec<(u32, u64)>>,
    /// Messages to the guest that were sent, with whatever belongs to it, and that it has read.
    told: Plain,
    heard: Plain,
    /// Messages to the host that were sent, likewise.
    sent: Plain,
}

/// What one vCPU owns.
struct Own<'w> {
    vcpu: Vcpu<'w>,
    timers: TimerSender<'w>,
    transmit: RefCell<Producer<'w>>,
}

fn words(n: usize) -> Vec<AtomicU64> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

fn v(n: usize) -> VcpuId {
    VcpuId::new(n as u32).unwrap()
}

fn name(task: usize) -> TaskRef {
    TaskRef::new(task as u64 + 1).unwrap()
}

/// Each class has its tasks.
fn class(task: usize) -> Priority {
    [Priority::Normal, Priority::High, Priority::Low][task % 3]
}

fn step() {
    shuttle::thread::yield_now();
}

/// Runs a plan to its end.
///
/// # Panics
/// If anything that must hold does not.
pub fn run(plan: &Plan) -> Seen {
    let (queues, requests) = (memory(VCPUS, 16 * LANES), memory(VCPUS, TIMER_REQUESTS * WORDS_PER_MESSAGE));
    let (indices, data) = (memory(VCPUS + 1, 17), memory(VCPUS + 1, RING_WORDS));
    let slots: Vec<_> = queues[..plan.vcpus].iter().map(|ring| VcpuSlot::new(ring).unwrap()).collect();
    let sched = Scheduler::new(&slots).unwrap();
    let timer_rings: Vec<_> = requests.iter().map(|ring| TimerRing::new(ring).unwrap()).collect();
    let inbox = TimerInbox::new(&timer_rings);
    let ring = |n: usize| Ring::new(&indices[n], &data[n]);
    let window = Window {
        normal_parked: AtomicU64::new(0),
        host_awake: AtomicU64::new(1),
        wants_room: AtomicU64::new(0),
        granted: AtomicU64::new(u64::MAX),
        to_guest: ring(VCPUS),
        to_host: (0..plan.vcpus).map(ring).collect(),
    };
    let host = Host::new(plan);
    let world = World {
        plan,
        host: &host,
        sched: &sched,
        window: &window,
        tasks: plan.tasks.iter().map(|ops| Task::new(ops.clone())).collect(),
        live: AtomicUsize::new(plan.tasks.len()),
        timer_seq: Plain::new(0),
        received: Mutex::default(),
        told: Plain::new(0),
        heard: Plain::new(0),
        sent: Plain::new(0),
    };
    (1..plan.vcpus).for_each(|worker| sched.idle().announce(v(worker)));
    shuttle::thread::scope(|scope| {
        for n in 0..plan.vcpus {
            let (world, inbox) = (&world, &inbox);
            let own = Own {
                vcpu: sched.attach(v(n)).unwrap(),
                timers: inbox.sender(v(n)).unwrap(),
                transmit: RefCell::new(Producer::new(window.to_host[n])),
            };
            scope.spawn(move || {
                if n == 0 {
                    world.dispatcher(&own, inbox.receiver().unwrap());
                } else {
                    world.worker(&own);
                }
                world.host.leave();
            });
        }
        scope.spawn(|| {
            world.read_rings();
            world.host.leave();
        });
        scope.spawn(|| {
            world.send_starts();
            world.host.leave();
        });
        scope.spawn(|| world.mischief());
        scope.spawn(|| world.host.keep_time(|next_ns| world.missed(next_ns)));
    });
    world.check()
}

fn memory(count: usize, length: usize) -> Vec<Vec<AtomicU64>> {
    (0..count).map(|_| words(length)).collect()
}

impl Task {
    fn new(ops: Vec<Op>) -> Task {
        Task {
            ops,
            at: AtomicUsize::new(0),
            meetings: AtomicU64::new(0),
            until_ns: Plain::new(0),
            sent: Plain::new(0),
            park: ParkState::new(),
            running: AtomicBool::new(false),
            saved: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            last_vcpu: AtomicUsize::new(usize::MAX),
        }
    }
}

// ---------------------------------------------------------------------------------------------- the guest

impl World<'_> {
    fn ring(&self, ticket: Option<WakeTicket>) {
        if let Some(ticket) = ticket {
            self.host.signal(ticket.vcpu().index());
            self.sched.wake_sent(ticket);
        }
    }

    fn wake_for_backlog(&self) {
        while let Some(ticket) = self.sched.claim_for_backlog() {
            self.ring(Some(ticket));
        }
    }

    fn submit(&self, own: &Own<'_>, task: usize) {
        self.ring(own.vcpu.submit(name(task), class(task)).unwrap());
    }

    fn unpark(&self, own: &Own<'_>, task: usize) {
        if self.tasks[task].park.unpark() == Unpark::Push {
            self.submit(own, task);
        }
    }

    /// Follows the host's grant, as `elastic.rs` of the guest does.
    fn poll(&self) {
        let all = self.sched.vcpus().without(VcpuId::NORMAL);
        let wanted = VcpuMask(self.window.granted.load(Ordering::SeqCst)).and(all);
        if !all.is_empty() && self.sched.allowed() != wanted {
            self.sched.set_allowed(wanted);
            self.wake_for_backlog();
        }
    }

    /// Takes one task and runs it until it switches out; whether there was one.
    fn run_one(&self, own: &Own<'_>) -> bool {
        self.poll();
        match own.vcpu.next() {
            Next::Run { task, wake } => {
                self.ring(wake);
                self.resume(own, task);
                true
            }
            Next::Reclaimed { wake } => {
                self.ring(wake);
                false
            }
            Next::Empty | Next::Stopped => false,
        }
    }

    fn resume(&self, own: &Own<'_>, reference: TaskRef) {
        let number = reference.get() as usize - 1;
        let task = &self.tasks[number];
        assert!(!task.running.swap(true, Ordering::Relaxed), "task {number} runs on two vCPUs");
        assert!(task.saved.swap(false, Ordering::Relaxed), "task {number} runs before its context is saved");
        assert!(!task.ended.load(Ordering::Relaxed), "task {number} runs after its end");
        let here = own.vcpu.id().index();
        let before = task.last_vcpu.swap(here, Ordering::Relaxed);
        if before != here && before != usize::MAX {
            self.host.lock().seen.moves += 1;
        }
        let why = self.steps(own, number);
        let save = || {
            task.running.store(false, Ordering::Relaxed);
            task.saved.store(true, Ordering::Relaxed);
        };
        if self.plan.broken != Broken::LockedTask {
            step();
            save();
        }
        let commit = task.park.commit(why);
        if self.plan.broken == Broken::LockedTask {
            step();
            save();
        }
        match commit {
            Commit::Requeue => self.ring(own.vcpu.requeue(reference, class(number)).unwrap()),
            Commit::Parked => {}
            Commit::Exited => {
                assert!(!task.ended.swap(true, Ordering::Relaxed));
                if self.live.fetch_sub(1, Ordering::Relaxed) == 1 {
                    self.host.end();
                }
            }
        }
    }

    /// The task itself.
    fn steps(&self, own: &Own<'_>, number: usize) -> Switch {
        let task = &self.tasks[number];
        loop {
            let at = task.at.load(Ordering::Relaxed);
            let Some(op) = task.ops.get(at) else { return Switch::Exit };
            let done = match *op {
                Op::Compute(steps) => {
                    (0..steps).for_each(|_| step());
                    Ok(())
                }
                Op::Yield => {
                    task.at.store(at + 1, Ordering::Relaxed);
                    return Switch::Yield;
                }
                Op::Sleep(ns) => self.sleep(own, number, ns),
                Op::Meet => self.meet(own, number, at),
                Op::Send => self.send(own, number),
            };
            match done {
                Ok(()) => {
                    let before = task.at.swap(at + 1, Ordering::Relaxed);
                    assert_eq!(before, at, "task {number} was run by two");
                }
                Err(why) => return why,
            }
        }
    }

    /// Whether the task goes on, or how it switches out to come back to the same step.
    fn park(&self, number: usize) -> Result<(), Switch> {
        match self.tasks[number].park.prepare_park() {
            PreparePark::Switch => Err(Switch::Park),
            PreparePark::Token => Ok(()),
        }
    }

    fn sleep(&self, own: &Own<'_>, number: usize, ns: u64) -> Result<(), Switch> {
        let task = &self.tasks[number];
        task.park.finish_park();
        let now = self.host.now_ns();
        let until = task.until_ns.load(Ordering::Relaxed);
        let until = if until == 0 { now + ns } else { until };
        loop {
            if self.host.now_ns() >= until {
                task.until_ns.store(0, Ordering::Relaxed);
                return Ok(());
            }
            task.until_ns.store(until, Ordering::Relaxed);
            let seq = self.timer_seq.fetch_add(1, Ordering::Relaxed) + 1;
            let token = TimerToken { slot: number as u32, seq };
            match own.timers.arm(token, until, name(number)) {
                Ok(true) if self.plan.broken != Broken::NoTimerWake && own.vcpu.id() != VcpuId::NORMAL => {
                    self.host.signal(0);
                }
                Ok(_) => {}
                Err(_) => {
                    if own.vcpu.id() != VcpuId::NORMAL {
                        self.host.signal(0);
                    }
                    return Err(Switch::Yield);
                }
            }
            self.park(number)?;
        }
    }

    fn meet(&self, own: &Own<'_>, number: usize, at: usize) -> Result<(), Switch> {
        let (task, partner) = (&self.tasks[number], number ^ 1);
        task.park.finish_park();
        let count = task.ops[..=at].iter().filter(|op| **op == Op::Meet).count() as u64;
        if task.meetings.load(Ordering::Relaxed) < count {
            task.meetings.store(count, Ordering::Release);
            self.unpark(own, partner);
        }
        while self.tasks[partner].meetings.load(Ordering::Acquire) < count {
            self.park(number)?;
        }
        Ok(())
    }

    fn send(&self, own: &Own<'_>, number: usize) -> Result<(), Switch> {
        let task = &self.tasks[number];
        let header = Header::new(Kind::StreamData, number as u32).arg(task.sent.load(Ordering::Relaxed));
        let sent = own.transmit.borrow_mut().send(header, &[]);
        fence(Ordering::SeqCst);
        if sent.is_err() || self.window.host_awake.load(Ordering::SeqCst) == 0 {
            self.host.signal(DOORBELL);
        }
        sent.map_err(|_| Switch::Yield)?;
        task.sent.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn worker(&self, own: &Own<'_>) {
        self.host.sleep(own.vcpu.id().index(), None);
        let _ = own.vcpu.retract();
        while !self.host.is_over() {
            if !self.run_one(own) {
                self.park_unless(own, || self.has_work(own), None);
            }
        }
    }

    fn has_work(&self, own: &Own<'_>) -> bool {
        self.poll();
        self.plan.broken != Broken::NoSecondLook && own.vcpu.has_work()
    }

    fn park_unless(&self, own: &Own<'_>, busy: impl FnOnce() -> bool, deadline_ns: Option<u64>) {
        own.vcpu.announce();
        if !busy() {
            self.host.lock().seen.parks += 1;
            self.host.sleep(own.vcpu.id().index(), deadline_ns);
        }
        let _ = own.vcpu.retract();
    }

    fn dispatcher(&self, own: &Own<'_>, receiver: TimerReceiver<'_>) {
        let mut slots = vec![TimerSlot::new(); self.tasks.len()];
        let mut queue = TimerQueue::new(&mut slots);
        let mut ring = Consumer::new(self.window.to_guest);
        let mut next_tick_ns = 0;
        while !self.host.is_over() {
            self.poll();
            let mut busy = self.receive(own, &mut ring);
            busy |= self.run_timers(own, &receiver, &mut queue);
            busy |= self.run_one(own);
            if busy {
                continue;
            }
            self.window.normal_parked.store(1, Ordering::SeqCst);
            let deadlines = [receiver.before_park(&mut queue), self.tick(&mut next_tick_ns)];
            let second_look = self.plan.broken != Broken::NoSecondLookAtTheRing;
            let busy = || second_look && ring.has_message() || own.vcpu.has_work();
            self.park_unless(own, busy, deadlines.into_iter().flatten().min());
            receiver.after_park();
            self.window.normal_parked.store(0, Ordering::SeqCst);
        }
    }

    fn tick(&self, next_tick_ns: &mut u64) -> Option<u64> {
        let (load, now) = (self.sched.load(), self.host.now_ns());
        if load.queued == 0 {
            *next_tick_ns = 0;
            return (load.running != 0).then_some(now + BACKSTOP_NS);
        }
        let (first, due) = (*next_tick_ns == 0, now >= *next_tick_ns);
        if load.running == 0 {
            self.wake_for_backlog();
        }
        if due && !first && self.plan.broken != Broken::NoDoubt {
            self.host.lock().seen.doubted += 1;
            self.sched.idle().doubt_wakes();
            self.wake_for_backlog();
        }
        if due {
            *next_tick_ns = now + if load.running == 0 && !first { BACKSTOP_NS } else { TICK_NS };
        }
        Some(*next_tick_ns)
    }

    fn receive(&self, own: &Own<'_>, ring: &mut Consumer<'_>) -> bool {
        let mut any = false;
        while let Some(incoming) = ring.receive().expect("the ring is not attacked here") {
            let header = incoming.header();
            incoming.finish();
            self.heard.fetch_add(1, Ordering::Relaxed);
            self.submit(own, header.program as usize);
            any = true;
        }
        fence(Ordering::SeqCst);
        if any && self.window.wants_room.load(Ordering::SeqCst) != 0 {
            self.host.signal(DOORBELL);
        }
        any
    }

    fn run_timers(&self, own: &Own<'_>, receiver: &TimerReceiver<'_>, queue: &mut TimerQueue<'_>) -> bool {
        receiver.drain(queue);
        let mut any = false;
        if queue.next_deadline().is_some() {
            let now = self.host.now_ns();
            while let Some(expired) = queue.pop_expired(now) {
                self.host.lock().seen.timers += 1;
                self.unpark(own, expired.token.slot as usize);
                any = true;
            }
        }
        any
    }
}

// ---------------------------------------------------------------------------------------------- the host's threads

impl World<'_> {
    fn take_messages(&self, rings: &mut [Consumer<'_>]) -> bool {
        let mut any = false;
        for ring in rings {
            while let Some(incoming) = ring.receive().expect("the guest breaks no ring") {
                let header = incoming.header();
                incoming.finish();
                self.received.lock().unwrap().push((header.program, header.arg));
                any = true;
            }
        }
        any
    }

    /// As `read_rings` of the VMM.
    fn read_rings(&self) {
        let mut rings: Vec<_> = self.window.to_host.iter().map(|ring| Consumer::new(*ring)).collect();
        loop {
            if self.take_messages(&mut rings) && !self.host.is_over() {
                continue;
            }
            self.window.host_awake.store(0, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.host.is_over() {
                break;
            }
            if !rings.iter().any(Consumer::has_message) {
                self.host.sleep(DOORBELL, None);
                self.host.signal(ROOM);
            }
            self.window.host_awake.store(1, Ordering::SeqCst);
        }
        // The last task has ended, and sent before that.
        self.take_messages(&mut rings);
    }

    /// As `Sender::send` of the VMM: a message per task, which starts it.
    fn send_starts(&self) {
        let mut producer = Producer::new(self.window.to_guest);
        for task in 0..self.tasks.len() {
            let header = Header::new(Kind::ProgramStart, task as u32);
            while producer.send(header, &[]).is_err() {
                self.window.wants_room.store(1, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                let sent = producer.send(header, &[]).is_ok();
                self.wake_if_parked();
                if sent {
                    break;
                }
                self.host.lock().seen.waits_for_room += 1;
                self.host.sleep(ROOM, None);
                if self.host.is_over() {
                    return;
                }
            }
            self.window.wants_room.store(0, Ordering::SeqCst);
            self.wake_if_parked();
            self.told.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wake_if_parked(&self) {
        fence(Ordering::SeqCst);
        if self.window.normal_parked.load(Ordering::SeqCst) != 0 {
            self.host.signal(0);
        }
    }

    /// Wakes for nothing, and takes workers away and gives them back; at last all of them.
    fn mischief(&self) {
        let mut rng = Rng(self.plan.seed ^ 0x6d69_7363);
        for _ in 0..self.plan.mischiefs {
            (0..rng.below(200)).for_each(|_| step());
            if !self.host.is_hostile() || self.host.is_over() {
                break;
            }
            if rng.chance(500) {
                self.host.wake_for_nothing();
            } else {
                self.window.granted.store(rng.next(), Ordering::SeqCst);
                self.host.lock().seen.grants += 1;
                self.host.signal(0);
            }
        }
        self.window.granted.store(u64::MAX, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.host.signal(0);
    }

    /// What was forgotten, if nobody does anything until `next_ns` and no wake was lost.
    fn missed(&self, next_ns: u64) -> Option<String> {
        let load = self.sched.load();
        if load.queued != 0 && !load.allowed.is_empty() {
            return Some(format!("{} tasks are queued and {:?} may run them", load.queued, load.allowed));
        }
        let count = |counter: &Plain| counter.load(Ordering::Relaxed);
        if count(&self.told) > count(&self.heard) {
            return Some("the guest has not read its ring".into());
        }
        if count(&self.sent) > self.received.lock().unwrap().len() as u64 {
            return Some("the host has not read its rings".into());
        }
        let late = |task: &Task| {
            let until = task.until_ns.load(Ordering::Relaxed);
            task.park.is_parked() && until != 0 && until < next_ns
        };
        let late = self.tasks.iter().position(late)?;
        Some(format!("task {late} should have been woken by its timer"))
    }

    /// Each task has ended, and everything it sent has come once.
    fn check(&self) -> Seen {
        let received = self.received.lock().unwrap();
        let distinct: BTreeSet<_> = received.iter().copied().collect();
        assert_eq!(distinct.len(), received.len(), "a message came twice: {received:?}");
        for (number, task) in self.tasks.iter().enumerate() {
            assert!(task.ended.load(Ordering::Relaxed) && task.at.load(Ordering::Relaxed) == task.ops.len());
            let sent = task.ops.iter().filter(|op| **op == Op::Send).count() as u64;
            let came = distinct.iter().filter(|(program, _)| *program == number as u32).count() as u64;
            assert_eq!(came, sent, "task {number} sent {sent} messages");
        }
        self.host.lock().seen
    }
}
