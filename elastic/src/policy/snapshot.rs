//! What the manager knows, for `nacre top` and for tests: [`Snapshot`]. Taking one changes nothing.

use super::cvm::{Cvm, Worker, count};
use super::{Budget, CvmId, Limits, Manager, Nanos, Tuning, WorkerIndex};
use serde::{Deserialize, Serialize};

/// What workers used and how often they changed hands. Times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Time with a CPU, from admission to parked or stopped.
    pub active_ns: u64,
    /// Time that workers waited for a CPU, from doorbell or stop to admission.
    pub waiting_ns: u64,
    /// Admissions.
    pub admits: u64,
    /// Requests to park.
    pub reclaims: u64,
    /// Times a worker was stopped by force.
    pub stops: u64,
}

impl Account {
    fn of(worker: &Worker, state: WorkerState, now: u64) -> Self {
        let present = now - worker.since;
        let (active, waiting) = match state {
            WorkerState::Active | WorkerState::Reclaiming => (present, 0),
            WorkerState::Waiting | WorkerState::Stopped => (0, present),
            WorkerState::Dormant => (0, 0),
        };
        Self {
            active_ns: worker.active_ns + active,
            waiting_ns: worker.waiting_ns + waiting,
            admits: worker.admits,
            reclaims: worker.reclaims,
            stops: worker.stops,
        }
    }

    fn plus(&mut self, other: &Self) {
        self.active_ns = self.active_ns.saturating_add(other.active_ns);
        self.waiting_ns = self.waiting_ns.saturating_add(other.waiting_ns);
        self.admits += other.admits;
        self.reclaims += other.reclaims;
        self.stops += other.stops;
    }

    /// Adds what all workers of `cvm` used until `now`, in nanoseconds.
    pub(super) fn add(&mut self, cvm: &Cvm, now: u64) {
        for worker in snapshots(cvm, now) {
            self.plus(&worker.account);
        }
    }
}

/// What a worker does, as the manager sees it. [The module's documentation](super) draws how they follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Parked; costs nothing.
    Dormant,
    /// Wants a CPU.
    Waiting,
    /// Wants a CPU, with a task inside that was stopped by force.
    Stopped,
    /// Holds a CPU.
    Active,
    /// Holds a CPU and was asked to park.
    Reclaiming,
}

/// One worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSnapshot {
    /// Which.
    pub worker: WorkerIndex,
    /// What it does.
    pub state: WorkerState,
    /// What it used.
    pub account: Account,
}

/// One CVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CvmSnapshot {
    /// Which.
    pub cvm: CvmId,
    /// What it may have.
    pub limits: Limits,
    /// Workers that are active.
    pub active: u8,
    /// Workers that were asked to park.
    pub reclaiming: u8,
    /// Workers whose doorbell rang and that wait for a CPU.
    pub waiting: u8,
    /// Workers that were stopped by force and wait for a CPU.
    pub stopped: u8,
    /// Tasks that no worker is there for, as the guest says.
    pub demand: u8,
    /// What the guest was told it may have active.
    pub grant: u8,
    /// What all its workers used.
    pub account: Account,
    /// Its workers, vCPU 1 first.
    pub workers: Vec<WorkerSnapshot>,
}

/// Everything at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The latest instant the manager has seen, or the later one that was asked for.
    pub now: Nanos,
    /// CPUs to share.
    pub budget: Budget,
    /// CPUs in use, those of workers asked to park counted.
    pub occupied: u32,
    /// CPU time given since the beginning, in nanoseconds: the sum of all accounts' `active_ns`, counted apart.
    pub busy_ns: u64,
    /// What the CVMs that are gone used.
    pub retired: Account,
    /// Events that could not be and were ignored.
    pub ignored: u64,
    /// All CVMs, the least number first.
    pub cvms: Vec<CvmSnapshot>,
}

fn snapshots(cvm: &Cvm, now: u64) -> impl Iterator<Item = WorkerSnapshot> {
    let all = (1..=super::MAX_WORKERS).filter_map(WorkerIndex::new);
    all.zip(&cvm.workers).map(move |(worker, entry)| {
        let is_in = |set: u64| set & worker.bit() != 0;
        let state = match () {
            () if is_in(cvm.active) => WorkerState::Active,
            () if is_in(cvm.reclaiming) => WorkerState::Reclaiming,
            () if is_in(cvm.waiting) => WorkerState::Waiting,
            () if is_in(cvm.stopped) => WorkerState::Stopped,
            () => WorkerState::Dormant,
        };
        WorkerSnapshot { worker, state, account: Account::of(entry, state, now) }
    })
}

impl Manager {
    /// Everything as it is at `now`. Looks at every worker, so it is not for every event.
    #[must_use]
    pub fn snapshot(&self, now: Nanos) -> Snapshot {
        let instant = now.0.max(self.now);
        let mut cvms: Vec<_> = self.slots.iter().flatten().map(|cvm| cvm_snapshot(cvm, instant)).collect();
        cvms.sort_unstable_by_key(|cvm| cvm.cvm);
        Snapshot {
            now: Nanos(instant),
            budget: self.budget(),
            occupied: self.occupied,
            busy_ns: self
                .busy_ns
                .saturating_add((instant - self.now).saturating_mul(u64::from(self.occupied))),
            retired: self.retired,
            ignored: self.ignored,
            cvms,
        }
    }

    /// CPUs to share.
    #[must_use]
    pub fn budget(&self) -> Budget {
        Budget::new(self.budget).expect("it came from a budget")
    }

    /// The tuning it was made with.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// CPUs in use, those of workers asked to park counted.
    #[must_use]
    pub fn occupied(&self) -> u32 {
        self.occupied
    }

    /// What a worker does; none if there is no such CVM or worker.
    #[must_use]
    pub fn worker_state(&self, cvm: CvmId, worker: WorkerIndex) -> Option<WorkerState> {
        let cvm = self.cvm(self.find(cvm)?);
        snapshots(cvm, self.now).find(|snapshot| snapshot.worker == worker).map(|snapshot| snapshot.state)
    }
}

fn cvm_snapshot(cvm: &Cvm, now: u64) -> CvmSnapshot {
    let mut account = Account::default();
    account.add(cvm, now);
    CvmSnapshot {
        cvm: cvm.id,
        limits: cvm.limits,
        active: count(cvm.active),
        reclaiming: count(cvm.reclaiming),
        waiting: count(cvm.waiting),
        stopped: count(cvm.stopped),
        demand: cvm.demand,
        grant: cvm.granted,
        account,
        workers: snapshots(cvm, now).collect(),
    }
}
