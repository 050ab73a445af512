//! [`Scheduler`]: the run queues of all vCPUs, the idle set and the stop gate, put together.
//!
//! Everything a vCPU does for itself goes through its [`Vcpu`] handle, of which there is one; everything else is on
//! the shared [`Scheduler`]. Invariant, shown by the loom tests: a queued task is never left while every vCPU that may
//! take it is parked and no wake for one of them has been sent, or is owed by the vCPU which queued it.
//!
//! Pushing wakes one parked worker, always. Two pushes need no wake, because their vCPU takes that very task
//! next (it is "its own task" if the host stops it right there): requeueing into an empty own queue. If the
//! fairness rule makes it take another's task first, [`Next::Run`] carries the wake.
//!
//! **Fairness**: a vCPU takes from its own queue, but every [`FAIRNESS_INTERVAL`]th time it looks at the others'
//! first, round robin. Otherwise busy workers would never take what lies in the queue of the normal vCPU or of one the
//! host has stopped.
//!
//! **Stop gate**: while stopped, [`Vcpu::next`] gives no task and acknowledges. A vCPU in the middle of a task is
//! waited for until it switches that task out and comes to `next`. Pushing goes on and wakes nobody; `resume`
//! and the calls of `claim_for_backlog` after it do.

use core::cell::Cell;

use crate::idle::WORDS;
use crate::sync::{AtomicBool, AtomicU64, CachePadded, Ordering, fence};
use crate::{
    Epoch, Full, IdleSet, Owner, Rendezvous, Retract, RingError, RunQueue, TaskRef, VcpuId, VcpuMask,
    WakeTicket,
};

/// Every how many calls of [`Vcpu::next`] the others' queues come first.
pub const FAIRNESS_INTERVAL: u32 = 16;

/// Why a scheduler cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchedError {
    /// There must be 1 to 64 vCPUs.
    #[error("a CVM has 1 to 64 vCPUs, not {0}")]
    VcpuCount(usize),
}

/// What one vCPU owns in the scheduler.
#[derive(Debug)]
pub struct VcpuSlot<'a> {
    queue: RunQueue<'a>,
    /// A hint: whether it runs a task.
    busy: CachePadded<AtomicBool>,
}

impl<'a> VcpuSlot<'a> {
    /// A slot with its run queue in `ring`. Give each ring room for all tasks there can be: then no push fails.
    pub fn new(ring: &'a [AtomicU64]) -> Result<Self, RingError> {
        Ok(VcpuSlot { queue: RunQueue::new(ring)?, busy: CachePadded(AtomicBool::new(false)) })
    }
}

/// The proof that the scheduler is stopped, needed to resume it.
#[derive(Debug)]
#[must_use = "without it nothing can be resumed"]
pub struct Stopped(Epoch);

/// What a vCPU does next.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Run this task; wake that vCPU first.
    Run {
        /// The task, which nobody else has now.
        task: TaskRef,
        /// Who must be woken because this vCPU leaves work of its own behind.
        wake: Option<WakeTicket>,
    },
    /// Nothing to do: spin, then park.
    Empty,
    /// The stop gate is closed; this vCPU has acknowledged it.
    Stopped,
    /// This vCPU may not run tasks now: park.
    Reclaimed {
        /// Who must be woken because tasks are still queued.
        wake: Option<WakeTicket>,
    },
}

/// Hints for the demand signal, read without stopping anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Tasks in run queues.
    pub queued: usize,
    /// vCPUs that run a task.
    pub running: usize,
    /// vCPUs that are parked.
    pub parked: VcpuMask,
    /// vCPUs that may take tasks now.
    pub allowed: VcpuMask,
}

/// The shared part.
#[derive(Debug)]
pub struct Scheduler<'a> {
    slots: &'a [VcpuSlot<'a>],
    idle: IdleSet,
    /// Odd epochs stop, even ones resume.
    gate: Rendezvous,
    allowed: CachePadded<AtomicU64>,
    /// Who takes tasks at all: the workers, or vCPU 0 if there are none.
    takers: VcpuMask,
}

impl<'a> Scheduler<'a> {
    /// A scheduler for `slots.len()` vCPUs, all awake and allowed to run.
    pub fn new(slots: &'a [VcpuSlot<'a>]) -> Result<Self, SchedError> {
        if slots.is_empty() || slots.len() > WORDS {
            return Err(SchedError::VcpuCount(slots.len()));
        }
        let workers = VcpuMask::first(slots.len()).without(VcpuId::NORMAL);
        let takers = if workers.is_empty() { VcpuMask::EMPTY.with(VcpuId::NORMAL) } else { workers };
        Ok(Scheduler {
            slots,
            idle: IdleSet::new(),
            gate: Rendezvous::new(),
            allowed: CachePadded(AtomicU64::new(u64::MAX)),
            takers,
        })
    }

    /// The handle of vCPU `v`, given out once. `None` also if there is no such vCPU.
    pub fn attach(&self, v: VcpuId) -> Option<Vcpu<'_>> {
        let owner = self.slots.get(v.index())?.queue.owner()?;
        let victim = Cell::new((v.index() + 1) % self.slots.len());
        Some(Vcpu { sched: self, owner, id: v, tick: Cell::new(0), victim })
    }

    /// The idle set, for rendezvous of the caller's own (TLB flush).
    pub fn idle(&self) -> &IdleSet {
        &self.idle
    }

    /// All vCPUs there are.
    pub fn vcpus(&self) -> VcpuMask {
        VcpuMask::first(self.slots.len())
    }

    /// Closes the stop gate. `None` if it is closed already: whoever closed it holds the proof.
    pub fn stop(&self) -> Option<Stopped> {
        let now = self.gate.current();
        if is_stop(now) { None } else { self.gate.request_from(now).map(Stopped) }
    }

    /// Which vCPUs of `of` may still hold a task. Once a vCPU is off this list it stays off until `resume`, and what
    /// its tasks wrote is visible to the caller. vCPUs that run Wasm need an epoch bump to get here.
    pub fn unacknowledged(&self, stopped: &Stopped, of: VcpuMask) -> VcpuMask {
        self.gate.missing(stopped.0, of.and(self.vcpus()), &self.idle)
    }

    /// Whether no vCPU of `of` holds a task.
    pub fn all_acknowledged(&self, stopped: &Stopped, of: VcpuMask) -> bool {
        self.unacknowledged(stopped, of).is_empty()
    }

    /// Opens the gate. Then call [`Scheduler::claim_for_backlog`] and wake until it says `None`.
    pub fn resume(&self, stopped: Stopped) {
        let resumed = self.gate.request_from(stopped.0);
        debug_assert!(resumed.is_some(), "only the holder of the proof resumes");
    }

    /// Whether the gate is closed.
    pub fn is_stopped(&self) -> bool {
        is_stop(self.gate.current())
    }

    /// Sets which vCPUs may take tasks (vCPU 0 always may, where it takes any). Then call
    /// [`Scheduler::claim_for_backlog`] and wake until it says `None`.
    pub fn set_allowed(&self, allowed: VcpuMask) {
        self.allowed.store(allowed.with(VcpuId::NORMAL).0, Ordering::Release);
    }

    /// Takes one worker's permission: it gets [`Next::Reclaimed`] at its next safe point.
    pub fn disallow(&self, v: VcpuId) {
        self.allowed.fetch_and(!v.bit() | VcpuId::NORMAL.bit(), Ordering::AcqRel);
    }

    /// Which vCPUs may take tasks now.
    pub fn allowed(&self) -> VcpuMask {
        VcpuMask(self.allowed.load(Ordering::Acquire)).and(self.takers)
    }

    fn any_queued(&self) -> bool {
        self.slots.iter().any(|s| !s.queue.is_empty())
    }

    fn claim(&self) -> Option<WakeTicket> {
        fence(Ordering::SeqCst);
        if self.is_stopped() {
            return None;
        }
        self.idle.claim_after_fence(self.allowed())
    }

    /// Whom to wake because tasks are queued and it is parked. To be called until `None` after anything that lets more
    /// vCPUs run. Terminates: every wake that is reported by [`Scheduler::wake_sent`] takes a vCPU off the list.
    pub fn claim_for_backlog(&self) -> Option<WakeTicket> {
        fence(Ordering::SeqCst);
        if self.any_queued() { self.claim() } else { None }
    }

    /// Reports that the wake hypercall for `ticket` was done.
    pub fn wake_sent(&self, ticket: WakeTicket) {
        self.idle.wake_sent(ticket);
    }

    /// The present load; each number may be a little old.
    pub fn load(&self) -> Load {
        Load {
            queued: self.slots.iter().map(|s| s.queue.len_hint()).sum(),
            running: self.slots.iter().filter(|s| s.busy.load(Ordering::Relaxed)).count(),
            parked: self.idle.parked_hint(),
            allowed: VcpuMask(self.allowed.load(Ordering::Relaxed)).and(self.takers),
        }
    }
}

fn is_stop(epoch: Epoch) -> bool {
    epoch.0 % 2 == 1
}

/// One vCPU's own handle. Used by its scheduler loop and, for `submit`, by whatever runs on it: code on a fiber must
/// find it anew after every switch, and must not switch (or fault) in the middle of a call.
///
/// ```compile_fail,E0277
/// fn needs_sync<T: Sync>() {}
/// needs_sync::<nacre_wval::Vcpu<'static>>();
/// ```
#[derive(Debug)]
pub struct Vcpu<'s> {
    sched: &'s Scheduler<'s>,
    owner: Owner<'s>,
    id: VcpuId,
    tick: Cell<u32>,
    victim: Cell<usize>,
}

impl<'s> Vcpu<'s> {
    /// Which vCPU this is.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// The scheduler.
    pub fn scheduler(&self) -> &'s Scheduler<'s> {
        self.sched
    }

    /// Queues a task that became runnable (new, or won by `unpark`). `Ok` says whom to wake.
    pub fn submit(&self, task: TaskRef) -> Result<Option<WakeTicket>, Full> {
        self.owner.push(task)?;
        Ok(self.sched.claim())
    }

    /// Queues the task this vCPU has just switched out, before it calls `next`.
    pub fn requeue(&self, task: TaskRef) -> Result<Option<WakeTicket>, Full> {
        let alone = self.owner.queue().is_empty() && self.sched.takers.contains(self.id);
        self.owner.push(task)?;
        Ok(if alone { None } else { self.sched.claim() })
    }

    /// What to do next. Only to be called with no task in hand: a task switched out has its context saved and is requeued,
    /// parked or gone. This is the acknowledgement of a stop.
    pub fn next(&self) -> Next {
        let epoch = self.sched.gate.current();
        let next = if is_stop(epoch) {
            self.sched.gate.acknowledge(self.id, epoch);
            Next::Stopped
        } else if !self.sched.takers.contains(self.id) {
            Next::Empty
        } else if !self.sched.allowed().contains(self.id) {
            Next::Reclaimed { wake: self.sched.claim_for_backlog() }
        } else {
            self.take()
        };
        let busy = matches!(next, Next::Run { .. });
        self.sched.slots[self.id.index()].busy.store(busy, Ordering::Relaxed);
        next
    }

    fn take(&self) -> Next {
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        if tick.is_multiple_of(FAIRNESS_INTERVAL)
            && let Some(task) = self.steal()
        {
            let leaves_work = !self.owner.queue().is_empty();
            return Next::Run { task, wake: if leaves_work { self.sched.claim() } else { None } };
        }
        match self.owner.pop().or_else(|| self.steal()) {
            Some(task) => Next::Run { task, wake: None },
            None => Next::Empty,
        }
    }

    /// One task from another vCPU's queue; the search starts behind the last successful victim.
    fn steal(&self) -> Option<TaskRef> {
        let n = self.sched.slots.len();
        for i in 0..n {
            let victim = (self.victim.get() + i) % n;
            if victim == self.id.index() {
                continue;
            }
            if let Some(task) = self.sched.slots[victim].queue.steal() {
                self.victim.set((victim + 1) % n);
                return Some(task);
            }
        }
        None
    }

    /// Whether `next` would find a task: for spinning, and for the look between `announce` and parking.
    pub fn has_work(&self) -> bool {
        !self.sched.is_stopped() && self.sched.allowed().contains(self.id) && self.sched.any_queued()
    }

    /// See [`IdleSet::announce`].
    pub fn announce(&self) {
        self.sched.idle.announce(self.id);
    }

    /// See [`IdleSet::retract`].
    pub fn retract(&self) -> Retract {
        self.sched.idle.retract(self.id)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "sched_tests.rs"]
mod tests;
