//! [`Cvm`]: one CVM's workers, what they do and what they used. No decisions here, only state that is consistent:
//! every worker is in exactly one state, and every nanosecond is counted once.

use super::types::{CvmId, Limits, WorkerIndex};

/// One whole CPU for one nanosecond at weight 1, in units of virtual time. A power of two, so that the rounding of
/// `SCALE / weight` is 2 parts in a million at the greatest weight.
pub(super) const SCALE: u64 = 1 << 32;

/// A promise of the CPU that a reclaimed worker will free: to the CVM in `slot`, if it is still that `generation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) slot: u32,
    pub(super) generation: u64,
}

/// What the manager remembers of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Worker {
    /// When it came to its state (Active and Reclaiming count as one), in nanoseconds.
    pub(super) since: u64,
    pub(super) active_ns: u64,
    pub(super) waiting_ns: u64,
    pub(super) admits: u64,
    pub(super) reclaims: u64,
    pub(super) stops: u64,
    /// For whom it is being reclaimed.
    pub(super) claim: Option<Claim>,
}

/// One CVM. Workers that are in none of the four sets are dormant; no worker is in two.
#[derive(Clone, Debug)]
pub(super) struct Cvm {
    pub(super) id: CvmId,
    pub(super) limits: Limits,
    pub(super) generation: u64,
    pub(super) waiting: u64,
    pub(super) stopped: u64,
    pub(super) active: u64,
    pub(super) reclaiming: u64,
    /// Tasks that the guest says no worker is there for.
    pub(super) demand: u8,
    /// CPUs on their way to this CVM.
    pub(super) promised: u8,
    /// What the guest was told last.
    pub(super) granted: u8,
    /// [`SCALE`] / weight.
    pub(super) inverse: u64,
    /// Virtual time: CPU time per weight, see `contention.rs`.
    pub(super) virtual_time: u128,
    /// Until when `virtual_time` counts, in nanoseconds.
    pub(super) accrued_at: u64,
    /// The period in which `virtual_time` means something.
    pub(super) period: u64,
    /// It holds or wants a CPU, and its weight is in the sum of those that do.
    pub(super) contends: bool,
    /// Its place in the list of those that hold a CPU.
    pub(super) running_place: Option<u32>,
    pub(super) workers: Box<[Worker]>,
}

/// The number of workers in a set.
pub(super) fn count(set: u64) -> u8 {
    // At most 64.
    set.count_ones() as u8
}

impl Cvm {
    pub(super) fn new(id: CvmId, limits: Limits, launched: u8, generation: u64) -> Self {
        Self {
            id,
            limits,
            generation,
            waiting: 0,
            stopped: 0,
            active: 0,
            reclaiming: 0,
            demand: 0,
            promised: 0,
            granted: 0,
            inverse: SCALE / u64::from(limits.weight().get()),
            virtual_time: 0,
            accrued_at: 0,
            period: 0,
            contends: false,
            running_place: None,
            workers: vec![Worker::default(); usize::from(launched)].into_boxed_slice(),
        }
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.inverse = SCALE / u64::from(limits.weight().get());
    }

    /// Workers that hold a CPU.
    pub(super) fn occupied(&self) -> u8 {
        count(self.active | self.reclaiming)
    }

    fn launched(&self) -> u8 {
        // At most MAX_WORKERS.
        self.workers.len() as u8
    }

    fn dormant(&self) -> u8 {
        self.launched() - count(self.active | self.reclaiming | self.waiting | self.stopped)
    }

    /// CPUs it could use beyond those that it holds, if there were no maximum.
    pub(super) fn wanted(&self) -> u8 {
        count(self.waiting | self.stopped) + self.demand.min(self.dormant())
    }

    /// It wants a CPU and may have one more.
    pub(super) fn waits(&self) -> bool {
        self.wanted() > 0 && self.occupied() < self.limits.max_workers()
    }

    /// It wants a CPU beyond those that are promised to it, and may have one more beyond them.
    pub(super) fn goes_short(&self) -> bool {
        self.wanted() > self.promised && self.occupied() + self.promised < self.limits.max_workers()
    }

    /// What the guest may have active: all, unless the CVM waits or has to give workers back.
    pub(super) fn grant(&self) -> u8 {
        if self.waits() || self.reclaiming != 0 { self.prospect() } else { self.limits.max_workers() }
    }

    /// Workers it has or will have: active ones that stay, and promised CPUs.
    pub(super) fn prospect(&self) -> u8 {
        count(self.active) + self.promised
    }

    pub(super) fn below_min(&self) -> bool {
        self.prospect() < self.limits.min_workers()
    }

    /// The worker to admit next: one that was stopped, else one whose doorbell rang, the longest waiting first; else
    /// the first dormant one.
    pub(super) fn next_to_admit(&self) -> Option<WorkerIndex> {
        let waiting = if self.stopped != 0 { self.stopped } else { self.waiting };
        self.oldest(waiting).or_else(|| {
            let taken = self.active | self.reclaiming | 1;
            WorkerIndex::new(taken.trailing_ones() as u8).filter(|worker| worker.get() <= self.launched())
        })
    }

    /// The worker of `set` that has been in its state for the longest time; the first of equals.
    pub(super) fn oldest(&self, set: u64) -> Option<WorkerIndex> {
        let mut rest = set;
        let mut found: Option<(u64, WorkerIndex)> = None;
        while let Some(worker) = WorkerIndex::new(rest.trailing_zeros() as u8) {
            rest &= rest - 1;
            let since = self.workers[worker.place()].since;
            if found.is_none_or(|(oldest, _)| since < oldest) {
                found = Some((since, worker));
            }
        }
        found.map(|(_, worker)| worker)
    }

    /// Dormant -> Waiting.
    pub(super) fn wait(&mut self, worker: WorkerIndex, now: u64) {
        self.waiting |= worker.bit();
        self.workers[worker.place()].since = now;
    }

    /// Waiting, Stopped or Dormant -> Active.
    pub(super) fn admit(&mut self, worker: WorkerIndex, now: u64) {
        let entry = &mut self.workers[worker.place()];
        if (self.waiting | self.stopped) & worker.bit() != 0 {
            entry.waiting_ns += now - entry.since;
        } else {
            self.demand = self.demand.saturating_sub(1);
        }
        entry.since = now;
        entry.admits += 1;
        self.waiting &= !worker.bit();
        self.stopped &= !worker.bit();
        self.active |= worker.bit();
    }

    /// Active -> Reclaiming.
    pub(super) fn reclaim(&mut self, worker: WorkerIndex, claim: Option<Claim>) {
        self.active &= !worker.bit();
        self.reclaiming |= worker.bit();
        let entry = &mut self.workers[worker.place()];
        entry.reclaims += 1;
        entry.claim = claim;
    }

    /// Active or Reclaiming -> Dormant or, `stopped`, Stopped. Gives the claim on its CPU.
    pub(super) fn release(&mut self, worker: WorkerIndex, stopped: bool, now: u64) -> Option<Claim> {
        self.active &= !worker.bit();
        self.reclaiming &= !worker.bit();
        let entry = &mut self.workers[worker.place()];
        entry.active_ns += now - entry.since;
        entry.since = now;
        if stopped {
            entry.stops += 1;
            self.stopped |= worker.bit();
        }
        entry.claim.take()
    }

    /// Waiting or Stopped -> Dormant: its thread does not wait any more.
    pub(super) fn give_up(&mut self, worker: WorkerIndex, now: u64) {
        let entry = &mut self.workers[worker.place()];
        entry.waiting_ns += now - entry.since;
        entry.since = now;
        self.waiting &= !worker.bit();
        self.stopped &= !worker.bit();
    }
}
