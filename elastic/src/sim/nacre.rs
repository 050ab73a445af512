//! The `nacre` arm: CVMs with Worker vCPUs, and the CPU manager's own code deciding.
//!
//! Each CVM has one queue of tasks and workers that are dormant, rung, held back by the manager, waking, running,
//! spinning or parking. A worker holds a core from its admission until it has parked, whatever it does meanwhile; the
//! manager never admits more workers than there are cores, so a running task has a core of its own. A reclaimed
//! worker goes on until its safe point, then its task is back at the head of the queue. The guest rings no more
//! doorbells than its grant allows and publishes the rest as demand, rounded down to a power of two.

use super::report::{ArmOutcome, Example, Recorder};
use super::scenario::{Costs, Scenario, ScenarioError, cvm_id};
use super::workload::Workload;
use crate::policy::{Action, Budget, Change, Event, Manager, Nanos, WorkerIndex};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// A task that is not running: its number and what is left of its CPU time, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Left {
    task: u32,
    service: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Doing {
    #[default]
    Dormant,
    /// Its doorbell rings soon, or rang and it waits for admission.
    Rung,
    /// Admitted, on its way to its first instruction; with the task if the host decided so.
    Waking,
    Running {
        task: u32,
        ends: u64,
    },
    Spinning,
    /// It has stopped working and gives its core back; after a reclaim with the task that it put back.
    Parking,
}

#[derive(Clone, Copy, Debug, Default)]
struct Worker {
    doing: Doing,
    /// It was asked to park.
    reclaimed: bool,
    /// Events with an older number are void.
    turn: u32,
}

#[derive(Debug, Default)]
struct Guest {
    queue: VecDeque<Left>,
    workers: Box<[Worker]>,
    /// Sets of workers, by bit.
    dormant: u64,
    spinning: u64,
    /// Rung or waking: each will take a task.
    coming: u32,
    grant: u8,
    told_demand: u32,
    /// Until when its ringing vCPU is busy with doorbells.
    ringing_until: u64,
    active: u32,
}

/// What happens to a worker at some instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Rings,
    Starts,
    Finishes,
    SpinEnds,
    SafePoint,
    Parked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Scheduled {
    at: u64,
    sequence: u64,
    cvm: u32,
    worker: u8,
    kind: Kind,
    turn: u32,
}

pub(super) struct Nacre<'a> {
    costs: Costs,
    workload: &'a Workload,
    manager: Manager,
    actions: Vec<Action>,
    guests: Vec<Guest>,
    events: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    timer: Option<u64>,
    now: u64,
    recorder: Recorder<'a>,
}

impl<'a> Nacre<'a> {
    pub(super) fn new(
        scenario: &Scenario,
        workload: &'a Workload,
        example: Option<&'a Example>,
    ) -> Result<Self, ScenarioError> {
        let mut manager = Manager::new(Budget::new(scenario.cores)?, scenario.tuning)?;
        let limits = scenario.limits()?;
        let mut guests = Vec::with_capacity(workload.cvms as usize);
        for index in 0..workload.cvms as usize {
            let change = Change::CvmAdded { cvm: cvm_id(index), limits, launched: scenario.workers };
            manager.configure(Nanos(0), change, &mut Vec::new())?;
            guests.push(Guest {
                workers: vec![Worker::default(); usize::from(scenario.workers)].into_boxed_slice(),
                dormant: (1 << scenario.workers) - 1,
                grant: scenario.workers,
                ..Guest::default()
            });
        }
        Ok(Self {
            costs: scenario.costs,
            workload,
            manager,
            actions: Vec::new(),
            guests,
            events: BinaryHeap::new(),
            sequence: 0,
            timer: None,
            now: 0,
            recorder: Recorder::new(workload, example),
        })
    }

    /// Runs until every task has finished. `progress` is told the fraction of tasks that have arrived.
    pub(super) fn run(mut self, progress: &mut dyn FnMut(f64)) -> ArmOutcome {
        let arrivals = &self.workload.arrivals;
        let mut arrived = 0;
        loop {
            let event = self.events.peek().map_or(u64::MAX, |event| event.0.at);
            let timer = self.timer.unwrap_or(u64::MAX);
            let arrival = arrivals.get(arrived).map_or(u64::MAX, |arrival| arrival.at);
            let next = event.min(timer).min(arrival);
            if next == u64::MAX || (arrival == u64::MAX && self.recorder.finished == arrivals.len()) {
                break;
            }
            self.now = next;
            if arrival == next {
                let cvm = arrivals[arrived].cvm;
                while let Some(task) = arrivals.get(arrived).filter(|task| task.at == next && task.cvm == cvm)
                {
                    let left = Left { task: arrived as u32, service: task.service };
                    self.guests[cvm as usize].queue.push_back(left);
                    arrived += 1;
                }
                self.offer(cvm);
                if arrived % 4096 < 8 {
                    progress(arrived as f64 / arrivals.len() as f64);
                }
            } else if event == next {
                if let Some(Reverse(event)) = self.events.pop() {
                    self.happen(event);
                }
            } else {
                self.timer = None;
                self.step(Event::Timer);
            }
        }
        self.finish()
    }

    fn finish(mut self) -> ArmOutcome {
        let snapshot = self.manager.snapshot(Nanos(self.now));
        let totals = snapshot.cvms.iter().map(|cvm| cvm.account);
        self.recorder.wakes = totals.clone().map(|account| account.admits).sum();
        self.recorder.reclaims = totals.map(|account| account.reclaims).sum();
        self.recorder.reserved = snapshot.busy_ns as f64;
        self.recorder.busy = snapshot.busy_ns as f64;
        self.recorder.outcome(self.now)
    }

    fn schedule(&mut self, at: u64, cvm: u32, worker: u8, kind: Kind) {
        let turn = self.guests[cvm as usize].workers[usize::from(worker)].turn;
        self.sequence += 1;
        self.events.push(Reverse(Scheduled { at, sequence: self.sequence, cvm, worker, kind, turn }));
    }

    /// Tells the manager, and does what it asks for.
    fn step(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.recorder.decisions += 1;
        self.manager.step(Nanos(self.now), event, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Admit { cvm, worker } => self.admitted(cvm.0, worker.get() - 1),
                Action::Reclaim { cvm, worker } => self.asked_to_park(cvm.0, worker.get() - 1),
                Action::Grant { cvm, workers } => self.guests[cvm.0 as usize].grant = workers,
                Action::SetTimer { at } => self.timer = Some(at.0),
            }
        }
        self.actions = actions;
    }

    fn worker(&mut self, cvm: u32, worker: u8) -> &mut Worker {
        &mut self.guests[cvm as usize].workers[usize::from(worker)]
    }

    /// Changes what a worker does; events that were scheduled for it are void.
    fn set(&mut self, cvm: u32, worker: u8, doing: Doing) {
        let guest = &mut self.guests[cvm as usize];
        let entry = &mut guest.workers[usize::from(worker)];
        entry.turn += 1;
        let coming = |doing: Doing| u32::from(matches!(doing, Doing::Rung | Doing::Waking));
        guest.coming = guest.coming - coming(entry.doing) + coming(doing);
        entry.doing = doing;
        let bit = 1 << worker;
        guest.dormant &= !bit;
        guest.spinning &= !bit;
        match doing {
            Doing::Dormant => guest.dormant |= bit,
            Doing::Spinning => guest.spinning |= bit,
            _ => {}
        }
    }

    /// The guest has tasks that nobody may be coming for: hands them to spinning workers, rings doorbells, publishes
    /// the rest.
    fn offer(&mut self, cvm: u32) {
        loop {
            let guest = &mut self.guests[cvm as usize];
            let unserved = guest.queue.len().saturating_sub(guest.coming as usize);
            if unserved == 0 {
                break;
            }
            if guest.spinning != 0 {
                let worker = guest.spinning.trailing_zeros() as u8;
                self.set(cvm, worker, Doing::Waking);
                self.schedule(self.now + self.costs.spin_wake_ns, cvm, worker, Kind::Starts);
                continue;
            }
            let busy = guest.workers.len() - guest.dormant.count_ones() as usize;
            if guest.dormant == 0 || busy >= usize::from(guest.grant) {
                break;
            }
            let worker = guest.dormant.trailing_zeros() as u8;
            let rings = guest.ringing_until.max(self.now);
            guest.ringing_until = rings + self.costs.ring_ns;
            self.set(cvm, worker, Doing::Rung);
            self.schedule(rings, cvm, worker, Kind::Rings);
        }
        self.publish(cvm);
    }

    /// Tells the manager the demand if it is another than it was.
    fn publish(&mut self, cvm: u32) {
        let guest = &mut self.guests[cvm as usize];
        let unserved = guest.queue.len().saturating_sub(guest.coming as usize) as u32;
        let level = unserved.checked_ilog2().map_or(0, |exponent| 1 << exponent);
        if level != guest.told_demand {
            guest.told_demand = level;
            self.step(Event::Demand { cvm: cvm_id(cvm as usize), level });
        }
    }

    fn happen(&mut self, event: Scheduled) {
        let Scheduled { cvm, worker, kind, turn, .. } = event;
        if self.worker(cvm, worker).turn != turn {
            return;
        }
        match kind {
            Kind::Rings => self.step(Event::WorkerWoke { cvm: cvm_id(cvm as usize), worker: index(worker) }),
            Kind::Starts => self.next_task(cvm, worker),
            Kind::Finishes => {
                if let Doing::Running { task, .. } = self.worker(cvm, worker).doing {
                    self.recorder.task_done(task, self.now);
                }
                self.next_task(cvm, worker);
            }
            Kind::SpinEnds => self.park(cvm, worker),
            Kind::SafePoint => self.safe_point(cvm, worker),
            Kind::Parked => {
                self.set(cvm, worker, Doing::Dormant);
                let reclaimed = std::mem::take(&mut self.worker(cvm, worker).reclaimed);
                self.guests[cvm as usize].active -= 1;
                self.example(cvm);
                self.step(Event::WorkerParked { cvm: cvm_id(cvm as usize), worker: index(worker) });
                // What the manager makes of it: see `Event::Demand`. What the page says is told after.
                self.guests[cvm as usize].told_demand = if reclaimed { u32::MAX } else { 0 };
                self.offer(cvm);
            }
        }
    }

    fn example(&mut self, cvm: u32) {
        let active = self.guests[cvm as usize].active;
        self.recorder.example_level(cvm, self.now, f64::from(active));
    }

    fn admitted(&mut self, cvm: u32, worker: u8) {
        self.set(cvm, worker, Doing::Waking);
        self.guests[cvm as usize].active += 1;
        self.example(cvm);
        self.schedule(self.now + self.costs.wake_ns, cvm, worker, Kind::Starts);
    }

    fn next_task(&mut self, cvm: u32, worker: u8) {
        if self.worker(cvm, worker).reclaimed {
            self.park(cvm, worker);
        } else if let Some(Left { task, service }) = self.guests[cvm as usize].queue.pop_front() {
            let ends = self.now + service;
            self.set(cvm, worker, Doing::Running { task, ends });
            self.schedule(ends, cvm, worker, Kind::Finishes);
        } else {
            self.set(cvm, worker, Doing::Spinning);
            self.schedule(self.now + self.costs.spin_ns, cvm, worker, Kind::SpinEnds);
        }
    }

    fn park(&mut self, cvm: u32, worker: u8) {
        self.set(cvm, worker, Doing::Parking);
        self.schedule(self.now + self.costs.park_ns, cvm, worker, Kind::Parked);
    }

    /// A request to park. A worker that wakes, spins or parks honours it by itself; a running one at its safe point.
    fn asked_to_park(&mut self, cvm: u32, worker: u8) {
        let entry = self.worker(cvm, worker);
        entry.reclaimed = true;
        match entry.doing {
            Doing::Running { ends, .. } => {
                let safe_point = self.now + self.costs.reclaim_ns.saturating_sub(self.costs.park_ns);
                if safe_point < ends {
                    self.schedule(safe_point, cvm, worker, Kind::SafePoint);
                }
            }
            Doing::Spinning => self.park(cvm, worker),
            _ => {}
        }
    }

    fn safe_point(&mut self, cvm: u32, worker: u8) {
        if let Doing::Running { task, ends } = self.worker(cvm, worker).doing {
            let left = Left { task, service: ends - self.now };
            self.guests[cvm as usize].queue.push_front(left);
        }
        self.park(cvm, worker);
        self.publish(cvm);
    }
}

fn index(worker: u8) -> WorkerIndex {
    WorkerIndex::new(worker + 1).expect("workers are counted from 0 to at most 62")
}
