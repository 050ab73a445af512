//! How CPUs go from one CVM to another when they are scarce: weighted max-min fairness over time.
//!
//! Every CVM has a *virtual time*: the CPU time it used per weight. With `n` workers on a CPU, its **price** is
//! ```text
//! price(n) = virtual time + n * 2 quanta / weight
//! ```
//! A free CPU goes to the CVM whose price *with one more* is lowest. A CPU is taken from the CVM whose price is
//! highest when that is at least the other's price with one more, plus a margin of half a quantum per weight of each of
//! the two. Hence
//! - the second term brings the number of CPUs near the fair share as soon as the hold allows, because a whole CPU too
//!   many weighs more than the margin;
//! - the first term makes the fractions right over time: a CVM short of its share gets cheaper while it waits, until
//!   the CPU changes hands, for about a quantum;
//! - the margin keeps two CVMs from passing a CPU to and fro: after a change the receiver must run for about a quantum
//!   before it can lose it again.
//!
//! Max-min fairness has no memory of what a CVM did not want, so virtual times mean something only while some CVM goes
//! short (a *period* of contention), and a CVM that begins to want more starts at the *level*: what a CVM that went
//! short all the time has used per weight by now, estimated from below. The level rises at
//! (budget - minimums) / sum of weights, which is at most the exact water level, and to the virtual time of
//! whoever is next in line; so nobody is passed by newcomers for ever. A CVM that ran ahead on its minimum is held to be
//! at most some quanta ahead.

use super::Action;
use super::cvm::{Claim, Cvm, SCALE, count};
use super::manager::Manager;

/// Set in the key of CVMs that have their minimum, so that those below theirs come first.
const NOT_GUARANTEED: u128 = 1 << 127;

/// How far a CVM's virtual time may be ahead of the level, in quanta per weight, beside its present price.
const LEAD_QUANTA: u128 = 8;

/// The state of contention, common to all CVMs.
#[derive(Clone, Debug, Default)]
pub(super) struct Contention {
    /// A new number for each period of contention.
    pub(super) period: u64,
    /// When the present period began, in nanoseconds.
    pub(super) since: Option<u64>,
    /// Somebody had to wait since the last tick.
    pub(super) waited: bool,
    /// The next look at all running CVMs, in nanoseconds.
    pub(super) next_tick: u64,
    /// The caller is asked for timers.
    pub(super) ticking: bool,
    /// When a hold ends that kept a CPU from changing hands.
    pub(super) hold_ends: Option<u64>,
    level: u128,
    level_at: u64,
    /// Sums over the CVMs that hold or want a CPU.
    weights: u64,
    minimums: u64,
}

impl Contention {
    /// Counts a CVM that begins to hold or want CPUs, or takes it out again.
    fn count(&mut self, cvm: &Cvm, contends: bool) {
        let (weight, minimum) = (u64::from(cvm.limits.weight().get()), u64::from(cvm.limits.min_workers()));
        if contends {
            self.weights += weight;
            self.minimums += minimum;
        } else {
            self.weights -= weight;
            self.minimums -= minimum;
        }
    }

    /// Lets the level rise until `now`.
    fn rise(&mut self, budget: u32, now: u64) {
        let shared = u64::from(budget).saturating_sub(self.minimums);
        if self.since.is_some() && self.weights > 0 {
            let work = u128::from(now - self.level_at) * u128::from(shared) * u128::from(SCALE);
            self.level = self.level.saturating_add(work / u128::from(self.weights));
        }
        self.level_at = now;
    }
}

impl Manager {
    /// The price per worker of `workers` more than none, in virtual time.
    fn occupancy(&self, cvm: &Cvm, workers: u8) -> u128 {
        u128::from(workers) * u128::from(2 * self.quantum) * u128::from(cvm.inverse)
    }

    /// Brings the CVM's virtual time up to date; before anything that changes what it holds or wants.
    pub(super) fn accrue(&mut self, slot: u32) {
        let now = self.now;
        if self.contention.since.is_some() {
            self.contention.rise(self.budget, now);
        }
        let (period, level, since) = (self.contention.period, self.contention.level, self.contention.since);
        let cvm = self.cvm_mut(slot);
        if cvm.period != period {
            cvm.period = period;
            cvm.virtual_time = level;
        } else if let Some(since) = since {
            let elapsed = now.saturating_sub(cvm.accrued_at.max(since));
            let used = u128::from(elapsed) * u128::from(cvm.occupied()) * u128::from(cvm.inverse);
            cvm.virtual_time = cvm.virtual_time.saturating_add(used);
        }
        cvm.accrued_at = now;
    }

    /// After a change, before which came `accrue`: puts the CVM where it belongs in all the lists.
    pub(super) fn place(&mut self, slot: u32) {
        let level = self.contention.level;
        let waited = self.waiting.contains(slot);
        let cvm = &mut self.slots[slot as usize];
        let Some(cvm) = cvm.as_mut() else { return };
        let waits = cvm.waits();
        let contends = cvm.occupied() > 0 || cvm.wanted() > 0;
        if contends != cvm.contends || (waits && !waited) {
            cvm.virtual_time = cvm.virtual_time.max(level);
        }
        if contends != cvm.contends {
            cvm.contends = contends;
            self.contention.count(cvm, contends);
        }
        if cvm.grant() != cvm.granted {
            self.regrant.push(slot);
        }
        if cvm.stopped != 0 {
            self.with_stopped.insert(slot);
        } else if !self.with_stopped.is_empty() {
            self.with_stopped.remove(&slot);
        }
        self.place_running(slot);
        self.place_prices(slot);
    }

    /// Removes a CVM from the sums, when it is removed or its limits change.
    pub(super) fn uncount(&mut self, slot: u32) {
        let Some(cvm) = self.slots[slot as usize].as_mut() else { return };
        if std::mem::take(&mut cvm.contends) {
            self.contention.count(cvm, false);
        }
    }

    /// Keeps the list of CVMs that hold a CPU.
    fn place_running(&mut self, slot: u32) {
        let cvm = self.cvm_mut(slot);
        match (cvm.occupied() > 0, cvm.running_place) {
            (true, None) => {
                let end = self.running.len() as u32;
                self.cvm_mut(slot).running_place = Some(end);
                self.running.push(slot);
            }
            (false, Some(place)) => {
                cvm.running_place = None;
                self.running.swap_remove(place as usize);
                if let Some(&moved) = self.running.get(place as usize) {
                    self.cvm_mut(moved).running_place = Some(place);
                }
            }
            _ => {}
        }
    }

    /// Keeps the three heaps: who gets a CPU next, for whom one is reclaimed next, and who loses one next.
    fn place_prices(&mut self, slot: u32) {
        let cvm = self.cvm(slot);
        let price = cvm.virtual_time.saturating_add(self.occupancy(cvm, cvm.prospect()));
        let next = cvm.virtual_time.saturating_add(self.occupancy(cvm, cvm.prospect() + 1));
        let class = if cvm.below_min() { 0 } else { NOT_GUARANTEED };
        let next = class | next.min(NOT_GUARANTEED - 1);
        let (waits, goes_short) = (cvm.waits(), cvm.goes_short());
        if count(cvm.active) > cvm.limits.min_workers() {
            self.victims.set(slot, u128::MAX - price);
        } else {
            self.victims.remove(slot);
        }
        if waits {
            self.waiting.set(slot, next);
        } else {
            self.waiting.remove(slot);
        }
        if goes_short {
            self.short.set(slot, next);
        } else {
            self.short.remove(slot);
        }
    }

    /// After everything else in a step: gives free CPUs away, takes CPUs back, tells guests their grants, and sets the
    /// timer.
    pub(super) fn settle(&mut self, actions: &mut Vec<Action>) {
        self.serve(actions);
        if !self.waiting.is_empty() {
            self.contention.waited = true;
            if self.contention.since.is_none() {
                self.contention.since = Some(self.now);
                self.contention.level_at = self.now;
            }
        }
        self.balance(actions);
        while let Some(slot) = self.regrant.pop() {
            let Some(cvm) = self.slots[slot as usize].as_mut() else { continue };
            let workers = cvm.grant();
            if workers != std::mem::replace(&mut cvm.granted, workers) {
                actions.push(Action::Grant { cvm: cvm.id, workers });
            }
        }
        let tick = self.contention.since.is_some() || !self.with_stopped.is_empty();
        if tick {
            if !self.contention.ticking {
                self.contention.next_tick = self.now.saturating_add(self.quantum / 2);
            }
            self.set_timer(actions);
        }
        self.contention.ticking = tick;
    }

    /// Gives free CPUs to those who want them, the lowest price first.
    fn serve(&mut self, actions: &mut Vec<Action>) {
        while self.occupied < self.budget
            && let Some((slot, key)) = self.waiting.first()
        {
            let Some(worker) = self.cvm(slot).next_to_admit() else {
                self.waiting.remove(slot);
                continue;
            };
            if key >= NOT_GUARANTEED {
                self.contention.level = self.contention.level.max(self.cvm(slot).virtual_time);
            }
            self.accrue(slot);
            self.admit(slot, worker, actions);
            self.place(slot);
        }
    }

    /// Takes CPUs from those who have too many: for a lower budget, for minimums, for fairness.
    fn balance(&mut self, actions: &mut Vec<Action>) {
        self.contention.hold_ends = None;
        while self.occupied - self.reclaiming > self.budget
            && let Some((victim, _)) = self.victims.first()
        {
            self.take(victim, None, actions);
        }
        while self.occupied >= self.budget
            && let Some((slot, key)) = self.short.first()
        {
            if self.unclaimed() > self.occupied - self.budget {
                self.claim_unclaimed(slot);
                continue;
            }
            let Some((victim, price)) = self.victims.first() else { break };
            let guaranteed = key < NOT_GUARANTEED;
            if !guaranteed && !self.may_take(slot, key & !NOT_GUARANTEED, victim, u128::MAX - price) {
                break;
            }
            self.take(victim, Some(slot), actions);
        }
    }

    /// Whether fairness lets `slot` take a CPU from `victim` now. Notes when a hold ends that stands against it.
    fn may_take(&mut self, slot: u32, price_with: u128, victim: u32, price_of_victim: u128) -> bool {
        let (taker, giver) = (self.cvm(slot), self.cvm(victim));
        let margin = u128::from(self.quantum / 2) * (u128::from(taker.inverse) + u128::from(giver.inverse));
        if slot == victim || price_of_victim < price_with.saturating_add(margin) {
            return false;
        }
        let Some(worker) = giver.oldest(giver.active) else { return false };
        let hold_ends = giver.workers[worker.place()].since.saturating_add(self.hold);
        if hold_ends > self.now {
            self.contention.hold_ends = Some(hold_ends);
            return false;
        }
        true
    }

    /// Reclaims the worker of `victim` that has run for the longest time, for the CVM in slot `receiver` if any.
    pub(super) fn take(&mut self, victim: u32, receiver: Option<u32>, actions: &mut Vec<Action>) {
        let Some(worker) = self.cvm(victim).oldest(self.cvm(victim).active) else { return };
        let claim = receiver.map(|slot| Claim { slot, generation: self.cvm(slot).generation });
        self.accrue(victim);
        let cvm = self.cvm_mut(victim);
        cvm.reclaim(worker, claim);
        actions.push(Action::Reclaim { cvm: cvm.id, worker });
        self.reclaiming += 1;
        self.place(victim);
        if let Some(slot) = receiver {
            self.promise(slot);
        }
    }

    /// CPUs that will come free and are promised to nobody.
    fn unclaimed(&self) -> u32 {
        self.reclaiming.saturating_sub(self.claimed)
    }

    /// Promises a CPU that comes free anyway.
    fn claim_unclaimed(&mut self, slot: u32) {
        let generation = self.cvm(slot).generation;
        self.floating.push_back(Claim { slot, generation });
        self.promise(slot);
    }

    fn promise(&mut self, slot: u32) {
        self.claimed += 1;
        self.accrue(slot);
        self.cvm_mut(slot).promised += 1;
        self.place(slot);
    }

    /// A reclaimed worker's CPU is free: its claim, or the first that has no worker, is settled.
    pub(super) fn redeem(&mut self, claim: Option<Claim>) {
        let Some(claim) = claim.or_else(|| self.floating.pop_front()) else { return };
        self.claimed -= 1;
        let receiver = self.slots.get_mut(claim.slot as usize).and_then(Option::as_mut);
        if receiver.is_some_and(|cvm| cvm.generation == claim.generation) {
            self.accrue(claim.slot);
            self.cvm_mut(claim.slot).promised -= 1;
            self.place(claim.slot);
        }
    }

    /// Looks at every CVM that holds a CPU, if it is time for that: virtual times advance, so prices change.
    pub(super) fn tick(&mut self, actions: &mut Vec<Action>) {
        if self.now < self.contention.next_tick || !self.contention.ticking {
            return;
        }
        self.contention.next_tick = self.now.saturating_add(self.quantum / 2);
        let over = self.waiting.is_empty() && !self.contention.waited;
        self.contention.waited = false;
        if over {
            self.contention.since = None;
            self.contention.period += 1;
        } else if let Some((slot, key)) = self.waiting.first()
            && key >= NOT_GUARANTEED
        {
            self.contention.level = self.contention.level.max(self.cvm(slot).virtual_time);
        }
        for place in 0..self.running.len() {
            let slot = self.running[place];
            self.accrue(slot);
            let level = self.contention.level;
            let cvm = self.cvm(slot);
            let lead = LEAD_QUANTA * u128::from(self.quantum) * u128::from(cvm.inverse);
            let most = level.saturating_add(lead).saturating_add(self.occupancy(cvm, cvm.prospect()));
            let cvm = self.cvm_mut(slot);
            cvm.virtual_time = cvm.virtual_time.min(most);
            self.place_prices(slot);
        }
        self.rotate_stopped(actions);
    }

    /// A CVM whose stopped worker waited for a quantum, and which cannot have more CPUs, swaps one of its own: nobody
    /// else can go on with the task inside a stopped worker.
    fn rotate_stopped(&mut self, actions: &mut Vec<Action>) {
        let candidates: Vec<u32> = self.with_stopped.iter().copied().collect();
        for slot in candidates {
            let cvm = self.cvm(slot);
            let Some(stopped) = cvm.oldest(cvm.stopped) else { continue };
            let waited = self.now - cvm.workers[stopped.place()].since >= self.quantum;
            let Some(active) = cvm.oldest(cvm.active) else { continue };
            let ran = self.now - cvm.workers[active.place()].since >= self.quantum;
            if waited && ran && cvm.promised == 0 && cvm.reclaiming == 0 {
                self.take(slot, Some(slot), actions);
            }
        }
    }

    fn set_timer(&mut self, actions: &mut Vec<Action>) {
        let tick = self.contention.next_tick;
        let at = self
            .contention
            .hold_ends
            .map_or(tick, |hold_ends| hold_ends.min(tick))
            .max(self.now.saturating_add(1));
        if self.timer.is_none_or(|timer| at < timer) {
            self.timer = Some(at);
            actions.push(Action::SetTimer { at: super::Nanos(at) });
        }
    }
}
