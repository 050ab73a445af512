//! [`Manager`]: what each event and each change of the configuration means. How scarce CPUs are shared is in
//! `contention.rs`.

use super::contention::Contention;
use super::cvm::{Claim, Cvm, count};
use super::error::PolicyError;
use super::heap::Heap;
use super::snapshot::Account;
use super::types::{MAX_CVM_ID, nanoseconds};
use super::{Action, Budget, Change, CvmId, Event, Limits, Nanos, Tuning, WorkerIndex};
use std::collections::{BTreeSet, VecDeque};

/// In the table of CVMs: there is none of this number.
const NONE: u32 = u32::MAX;

/// The CPU manager. See the documentation of [the module](super) for the contract and the rules.
#[derive(Clone, Debug)]
pub struct Manager {
    pub(super) budget: u32,
    pub(super) tuning: Tuning,
    /// `tuning.min_hold`, in nanoseconds.
    pub(super) hold: u64,
    /// `tuning.quantum`, in nanoseconds.
    pub(super) quantum: u64,
    /// The latest instant seen, in nanoseconds.
    pub(super) now: u64,
    pub(super) slots: Vec<Option<Cvm>>,
    free_slots: Vec<u32>,
    /// Slot by number of CVM.
    table: Vec<u32>,
    next_generation: u64,
    /// Workers that hold a CPU: active and reclaiming.
    pub(super) occupied: u32,
    pub(super) reclaiming: u32,
    /// CPUs promised to a CVM, by a claim at a reclaiming worker or in `floating`.
    pub(super) claimed: u32,
    /// Claims on CPUs that reclaiming workers without a claim will free.
    pub(super) floating: VecDeque<Claim>,
    /// The sum of all minimums.
    minimums: u64,
    /// CVMs that want a CPU and may have one, by price with one more.
    pub(super) waiting: Heap,
    /// Of those, the ones that want more than is promised to them.
    pub(super) short: Heap,
    /// CVMs with active workers beyond their minimum, the highest price first.
    pub(super) victims: Heap,
    /// CVMs that hold a CPU, in no order.
    pub(super) running: Vec<u32>,
    /// CVMs with stopped workers.
    pub(super) with_stopped: BTreeSet<u32>,
    /// CVMs whose grant may be another now than what the guest was told; empty between steps.
    pub(super) regrant: Vec<u32>,
    pub(super) contention: Contention,
    /// The timer that the caller was asked for and has not given, in nanoseconds.
    pub(super) timer: Option<u64>,
    /// What the CVMs that are gone used.
    pub(super) retired: Account,
    /// CPU time given since the beginning, counted apart from the workers' accounts, in nanoseconds.
    pub(super) busy_ns: u64,
    /// Events that could not be.
    pub(super) ignored: u64,
}

impl Manager {
    /// A manager of `budget` CPUs without CVMs.
    ///
    /// # Errors
    /// If the tuning is not possible.
    pub fn new(budget: Budget, tuning: Tuning) -> Result<Self, PolicyError> {
        tuning.check()?;
        Ok(Self {
            budget: budget.get(),
            tuning,
            hold: nanoseconds(tuning.min_hold),
            quantum: nanoseconds(tuning.quantum),
            now: 0,
            slots: Vec::new(),
            free_slots: Vec::new(),
            table: Vec::new(),
            next_generation: 1,
            occupied: 0,
            reclaiming: 0,
            claimed: 0,
            floating: VecDeque::new(),
            minimums: 0,
            waiting: Heap::default(),
            short: Heap::default(),
            victims: Heap::default(),
            running: Vec::new(),
            with_stopped: BTreeSet::new(),
            regrant: Vec::new(),
            contention: Contention::default(),
            timer: None,
            retired: Account::default(),
            busy_ns: 0,
            ignored: 0,
        })
    }

    /// Takes in one event and appends to `actions` what the caller has to do, in order.
    pub fn step(&mut self, now: Nanos, event: Event, actions: &mut Vec<Action>) {
        self.advance(now);
        let known = match event {
            Event::Demand { cvm, level } => self.on_demand(cvm, level),
            Event::WorkerWoke { cvm, worker } => self.on_woke(cvm, worker, actions),
            Event::WorkerParked { cvm, worker } => self.on_parked(cvm, worker),
            Event::WorkerDescheduled { cvm, worker } => self.on_descheduled(cvm, worker),
            Event::Timer => {
                self.timer = self.timer.filter(|&timer| timer > self.now);
                self.tick(actions);
                Some(())
            }
        };
        if known.is_none() {
            self.ignored += 1;
        }
        if self.contention.ticking && self.now >= self.contention.next_tick.saturating_add(self.quantum) {
            // The timer is late or lost.
            self.timer = None;
            self.tick(actions);
        }
        self.settle(actions);
    }

    /// Changes the configuration and appends to `actions` what the caller has to do for it, in order.
    ///
    /// # Errors
    /// If the change is impossible; nothing is changed then.
    pub fn configure(
        &mut self,
        now: Nanos,
        change: Change,
        actions: &mut Vec<Action>,
    ) -> Result<(), PolicyError> {
        match change {
            Change::CvmAdded { cvm, limits, launched } => {
                self.check_new(cvm, limits, launched)?;
                self.advance(now);
                self.add(cvm, limits, launched);
            }
            Change::CvmRemoved { cvm } => {
                let slot = self.find(cvm).ok_or(PolicyError::UnknownCvm { cvm })?;
                self.advance(now);
                self.remove(slot);
            }
            Change::LimitsChanged { cvm, limits } => {
                let slot = self.find(cvm).ok_or(PolicyError::UnknownCvm { cvm })?;
                let old = self.cvm(slot).limits;
                check_launched(cvm, limits, self.cvm(slot).workers.len())?;
                self.check_minimums(
                    self.minimums - u64::from(old.min_workers()),
                    limits.min_workers(),
                    self.budget,
                )?;
                self.advance(now);
                self.change_limits(slot, limits, actions);
            }
            Change::BudgetChanged { budget } => {
                self.check_minimums(self.minimums, 0, budget.get())?;
                self.advance(now);
                self.budget = budget.get();
            }
        }
        self.settle(actions);
        Ok(())
    }

    fn check_new(&self, cvm: CvmId, limits: Limits, launched: u8) -> Result<(), PolicyError> {
        if cvm.0 > MAX_CVM_ID {
            return Err(PolicyError::IdTooGreat { cvm });
        }
        if self.find(cvm).is_some() {
            return Err(PolicyError::Duplicate { cvm });
        }
        if launched > super::MAX_WORKERS {
            return Err(PolicyError::MaxWorkers { max: launched });
        }
        check_launched(cvm, limits, usize::from(launched))?;
        self.check_minimums(self.minimums, limits.min_workers(), self.budget)
    }

    fn check_minimums(&self, others: u64, minimum: u8, budget: u32) -> Result<(), PolicyError> {
        let sum = others + u64::from(minimum);
        if sum > u64::from(budget) { Err(PolicyError::MinsOverBudget { sum, budget }) } else { Ok(()) }
    }

    /// Moves time on, and with it the integral of CPUs in use.
    fn advance(&mut self, now: Nanos) {
        let elapsed = now.0.saturating_sub(self.now);
        self.busy_ns = self.busy_ns.saturating_add(elapsed.saturating_mul(u64::from(self.occupied)));
        self.now += elapsed;
    }

    /// The slot of a CVM.
    pub(super) fn find(&self, cvm: CvmId) -> Option<u32> {
        self.table.get(cvm.0 as usize).copied().filter(|&slot| slot != NONE)
    }

    /// The CVM in a slot that is in use: those in `table` and in every heap and list are.
    pub(super) fn cvm(&self, slot: u32) -> &Cvm {
        self.slots[slot as usize].as_ref().expect("the slot is in use")
    }

    pub(super) fn cvm_mut(&mut self, slot: u32) -> &mut Cvm {
        self.slots[slot as usize].as_mut().expect("the slot is in use")
    }

    /// The slot of a worker that exists.
    fn find_worker(&self, cvm: CvmId, worker: WorkerIndex) -> Option<u32> {
        self.find(cvm).filter(|&slot| worker.place() < self.cvm(slot).workers.len())
    }

    fn add(&mut self, id: CvmId, limits: Limits, launched: u8) {
        let cvm = Cvm::new(id, limits, launched, self.next_generation);
        self.next_generation += 1;
        let slot = if let Some(slot) = self.free_slots.pop() {
            self.slots[slot as usize] = Some(cvm);
            slot
        } else {
            self.slots.push(Some(cvm));
            self.slots.len() as u32 - 1
        };
        if self.table.len() <= id.0 as usize {
            self.table.resize(id.0 as usize + 1, NONE);
        }
        self.table[id.0 as usize] = slot;
        self.minimums += u64::from(limits.min_workers());
        self.accrue(slot);
        self.place(slot);
    }

    fn remove(&mut self, slot: u32) {
        let now = self.now;
        self.accrue(slot);
        let cvm = self.cvm_mut(slot);
        let (id, minimum) = (cvm.id, cvm.limits.min_workers());
        let (occupied, reclaiming) = (cvm.active | cvm.reclaiming, cvm.reclaiming);
        cvm.demand = 0;
        let mut claims = Vec::new();
        for worker in (1..=super::MAX_WORKERS).filter_map(WorkerIndex::new) {
            if occupied & worker.bit() != 0 {
                let was_reclaiming = reclaiming & worker.bit() != 0;
                let claim = self.cvm_mut(slot).release(worker, false, now);
                claims.extend(was_reclaiming.then_some(claim));
            } else if (self.cvm(slot).waiting | self.cvm(slot).stopped) & worker.bit() != 0 {
                self.cvm_mut(slot).give_up(worker, now);
            }
        }
        self.occupied -= u32::from(count(occupied));
        self.reclaiming -= u32::from(count(reclaiming));
        self.place(slot);
        self.uncount(slot);
        if let Some(cvm) = self.slots[slot as usize].take() {
            self.retired.add(&cvm, now);
        }
        self.table[id.0 as usize] = NONE;
        self.free_slots.push(slot);
        self.minimums -= u64::from(minimum);
        for claim in claims {
            self.redeem(claim);
        }
    }

    fn change_limits(&mut self, slot: u32, limits: Limits, actions: &mut Vec<Action>) {
        self.accrue(slot);
        self.uncount(slot);
        let cvm = self.cvm_mut(slot);
        let old = cvm.limits;
        cvm.set_limits(limits);
        self.minimums = self.minimums - u64::from(old.min_workers()) + u64::from(limits.min_workers());
        self.place(slot);
        while count(self.cvm(slot).active) > limits.max_workers() {
            self.take(slot, None, actions);
        }
    }

    fn on_demand(&mut self, cvm: CvmId, level: u32) -> Option<()> {
        let slot = self.find(cvm)?;
        // More than there are workers means nothing; `wanted` clamps to the dormant ones.
        let level = level.min(u32::from(super::MAX_WORKERS)) as u8;
        if level != self.cvm(slot).demand {
            self.accrue(slot);
            self.cvm_mut(slot).demand = level;
            self.place(slot);
        }
        Some(())
    }

    fn on_woke(&mut self, cvm: CvmId, worker: WorkerIndex, actions: &mut Vec<Action>) -> Option<()> {
        let slot = self.find_worker(cvm, worker)?;
        let now = self.now;
        let state = self.cvm(slot);
        if (state.active | state.reclaiming | state.waiting | state.stopped) & worker.bit() != 0 {
            return None;
        }
        let room = self.occupied < self.budget && state.occupied() < state.limits.max_workers();
        self.accrue(slot);
        self.cvm_mut(slot).wait(worker, now);
        if room {
            // Nobody waits while there is room, so nobody is passed.
            self.admit(slot, worker, actions);
        }
        self.place(slot);
        Some(())
    }

    fn on_parked(&mut self, cvm: CvmId, worker: WorkerIndex) -> Option<()> {
        let slot = self.find_worker(cvm, worker)?;
        let (now, bit) = (self.now, worker.bit());
        let state = self.cvm(slot);
        if (state.active | state.reclaiming) & bit != 0 {
            let reclaimed = state.reclaiming & bit != 0;
            self.accrue(slot);
            let cvm = self.cvm_mut(slot);
            // A reclaimed worker put its task back; another one found nothing to do.
            cvm.demand = if reclaimed { cvm.demand.max(1) } else { 0 };
            self.free(slot, worker, false);
        } else if (state.waiting | state.stopped) & bit != 0 {
            self.accrue(slot);
            self.cvm_mut(slot).give_up(worker, now);
            self.place(slot);
        } else {
            return None;
        }
        Some(())
    }

    fn on_descheduled(&mut self, cvm: CvmId, worker: WorkerIndex) -> Option<()> {
        let slot = self.find_worker(cvm, worker)?;
        let state = self.cvm(slot);
        if (state.active | state.reclaiming) & worker.bit() == 0 {
            return None;
        }
        self.accrue(slot);
        self.free(slot, worker, true);
        Some(())
    }

    /// Lets a worker that is not on a CPU run; `place` is the caller's part.
    pub(super) fn admit(&mut self, slot: u32, worker: WorkerIndex, actions: &mut Vec<Action>) {
        let now = self.now;
        self.occupied += 1;
        let cvm = self.cvm_mut(slot);
        cvm.admit(worker, now);
        actions.push(Action::Admit { cvm: cvm.id, worker });
    }

    /// A worker's CPU is free; `accrue` came before.
    fn free(&mut self, slot: u32, worker: WorkerIndex, stopped: bool) {
        let now = self.now;
        let cvm = self.cvm_mut(slot);
        let reclaimed = cvm.reclaiming & worker.bit() != 0;
        let claim = cvm.release(worker, stopped, now);
        self.occupied -= 1;
        self.reclaiming -= u32::from(reclaimed);
        self.place(slot);
        if reclaimed {
            self.redeem(claim);
        }
    }
}

fn check_launched(cvm: CvmId, limits: Limits, launched: usize) -> Result<(), PolicyError> {
    if usize::from(limits.max_workers()) > launched {
        let launched = launched as u8;
        return Err(PolicyError::NotLaunched { cvm, max: limits.max_workers(), launched });
    }
    Ok(())
}
