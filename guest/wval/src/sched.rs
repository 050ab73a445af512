//! [`Scheduler`]: the run queues of all vCPUs, the idle set and the stop gate, put together.
//!
//! Everything a vCPU does for itself goes through its [`Vcpu`] handle, of which there is one; everything else is on
//! the shared [`Scheduler`]. Invariant, shown by the loom tests: a queued task is never left while every vCPU that may
//! take it is parked and no wake for one of them has been sent, or is owed by the vCPU which queued it.
//!
//! Pushing wakes one parked worker, always. One push needs no wake, because its vCPU takes that very task
//! next (it is "its own task" if the host stops it right there): requeueing into empty own queues. If a higher class
//! or the fairness rule makes it take another's task first, [`Next::Run`] carries the wake.
//!
//! **Priorities**: each vCPU has two queues per class, one of them for new tasks. It takes the oldest task of the highest class that has one anywhere,
//! from its own queue if it can, else from the others', round robin. A wake is for whatever is queued: its vCPU decides
//! when it comes. Which queues (*lanes*) were ever used is a set that only grows, written before the push it is for, so that
//! who sees the task sees its lane too; lanes that are not in it cost nothing.
//!
//! **New tasks**: within a class a vCPU takes new tasks and those that have begun in turns. A task that has not begun needs
//! no stack and no memory of its own: while memory is short ([`Vcpu::next_with`]) a vCPU begins one only if nothing
//! else is ready. So any number of tasks may be queued, and as many
//! are under way as there is memory for; if those all wait, for new ones perhaps, more are begun.
//!
//! **Fairness** (nothing starves): every [`FAIRNESS_INTERVAL`]th time a vCPU lets the three classes take turns at
//! being first, and in three of four of these turns it looks at the others' queues before its own. So each
//! class that has something waiting gets at least one in 3 x [`FAIRNESS_INTERVAL`] of the tasks that any vCPU takes, and what
//! lies in the queue of the normal vCPU or of one the host has stopped is taken however busy the workers are.
//!
//! **Slices**: [`Vcpu::should_yield`] says at a safe point whether the running task must give its vCPU up, and
//! [`Scheduler::tick`] when running ones must be brought to one. A bump of the epoch reaches all of them; who has time left
//! goes on.
//!
//! **Stop gate**: while stopped, [`Vcpu::next`] gives no task and acknowledges. A vCPU in the middle of a task is
//! waited for until it switches that task out and comes to `next`. Pushing goes on and wakes nobody; `resume`
//! and the calls of `claim_for_backlog` after it do.

use core::cell::Cell;

use crate::idle::WORDS;
use crate::priority::{CLASSES, Lane, New};
use crate::sync::{AtomicU64, CachePadded, Ordering, fence};
use crate::{
    Epoch, Full, IdleSet, LANES, Owner, Priority, Rendezvous, Retract, RingError, RunQueue, TaskRef, VcpuId,
    VcpuMask, WakeTicket,
};

/// Every how many calls of [`Vcpu::next`] another order than that of the priorities holds.
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
    /// By lane.
    queues: [RunQueue<'a>; LANES],
    running: CachePadded<Running>,
}

impl<'a> VcpuSlot<'a> {
    /// A slot with its run queues in `ring`: [`LANES`] times a power of two words. Give each queue room for all
    /// tasks there can be: then no push fails.
    pub fn new(ring: &'a [AtomicU64]) -> Result<Self, RingError> {
        let places = ring.len() / LANES;
        let queue = |lane: usize| RunQueue::new(&ring[lane * places..(lane + 1) * places]);
        let queues = [queue(0)?, queue(1)?, queue(2)?, queue(3)?, queue(4)?, queue(5)?];
        Ok(VcpuSlot { queues, running: CachePadded(Running::default()) })
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

/// What becomes of a brief task ([`Vcpu::submit_brief`]).
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Submitted {
    /// It is left to the workers that are awake: look again in a while, lest one of their tasks takes long after all.
    Left,
    /// As [`Vcpu::submit`] says.
    Wake(Option<WakeTicket>),
}

/// What [`Scheduler::tick`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Bring running Wasm to a safe point now.
    pub bump: bool,
    /// When to look again; `None` if no task runs.
    pub look_again_at: Option<u64>,
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
    /// Bit n: a task was queued in lane n once.
    lanes: CachePadded<AtomicU64>,
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
            lanes: CachePadded(AtomicU64::new(Lane { class: Priority::Normal, new: false }.bit())),
            takers,
        })
    }

    /// The handle of vCPU `v`, given out once. `None` also if there is no such vCPU.
    pub fn attach(&self, v: VcpuId) -> Option<Vcpu<'_>> {
        let [q0, q1, q2, q3, q4, q5] = &self.slots.get(v.index())?.queues;
        let owners = [q0.owner()?, q1.owner()?, q2.owner()?, q3.owner()?, q4.owner()?, q5.owner()?];
        let victim = Cell::new((v.index() + 1) % self.slots.len());
        Some(Vcpu { sched: self, owners, id: v, tick: Cell::new(0), victim })
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

    /// The lanes ever used, in this order.
    fn lanes(&self, lead: Priority, new: New) -> impl Iterator<Item = Lane> {
        let used = self.lanes.load(Ordering::Acquire);
        Lane::order(lead, new).filter(move |lane| used & lane.bit() != 0)
    }

    /// Called before a push, so that whoever may see the task looks into its lane.
    fn use_lane(&self, lane: Lane) {
        if self.lanes.load(Ordering::Relaxed) & lane.bit() == 0 {
            self.lanes.fetch_or(lane.bit(), Ordering::AcqRel);
        }
    }

    /// The classes that have something queued, the highest first.
    fn queued(&self) -> impl Iterator<Item = Priority> {
        self.lanes(Priority::High, New::Second)
            .filter(|lane| self.slots.iter().any(|s| !s.queues[lane.index()].is_empty()))
            .map(|lane| lane.class)
    }

    fn any_queued(&self) -> bool {
        self.queued().next().is_some()
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

    /// How many more wakes the queued tasks need: one each, less those on their way to workers that are allowed. A hint for
    /// who looks now and then: a wake that the host has dropped counts until [`IdleSet::doubt_wakes`].
    pub fn wakes_missing(&self) -> usize {
        let load = self.load();
        match load.queued {
            0 => 0,
            queued => queued.saturating_sub(self.idle.rung(load.allowed).count()),
        }
    }

    /// How many workers take tasks, or will in a moment: those awake that do not run one since before `since`, and those whose
    /// wake was sent.
    fn serving(&self, since: u64) -> usize {
        let allowed = self.allowed();
        let awake = VcpuMask(allowed.0 & !self.idle.parked_hint().0);
        let free = |v: &VcpuId| {
            let running = &self.slots[v.index()].running;
            running.class().is_none() || running.since.load(Ordering::Relaxed) >= since
        };
        awake.iter().filter(|v| v.index() < self.slots.len()).filter(free).count()
            + self.idle.rung(allowed).count()
    }

    /// Reports that the wake hypercall for `ticket` was done.
    pub fn wake_sent(&self, ticket: WakeTicket) {
        self.idle.wake_sent(ticket);
    }

    /// Whether some vCPU runs a task that one of `class` goes before: with no worker free, bring it to a safe point. A
    /// hint: a vCPU that is just about to run such a task may be missed, and is found by the next [`Scheduler::tick`].
    pub fn runs_below(&self, class: Priority) -> bool {
        // Usually there never was one, and the lines that say what runs stay with those who write them.
        let below = Priority::ALL.into_iter().filter(|other| class.outranks(*other));
        let lanes = below.fold(0, |lanes, class| lanes | Lane::both(class));
        self.lanes.load(Ordering::Acquire) & lanes != 0
            && self.slots.iter().filter_map(|s| s.running.class()).any(|running| class.outranks(running))
    }

    /// For whoever ticks: whether running tasks must come to a safe point at `now`, and when to look again. A task must if it
    /// has had `slice` while others wait, if one of a higher class waits, or if it asked to be looked at
    /// ([`Vcpu::begin`]). One that must and does not, because it is in a long call or just missed the
    /// bump, is due again after `retry`. All in the units of `now`.
    pub fn tick(&self, now: u64, slice: u64, retry: u64) -> Tick {
        let highest = self.queued().next();
        let mut tick = Tick { bump: false, look_again_at: None };
        for running in self.slots.iter().map(|s| &s.running) {
            let Some(class) = running.class() else { continue };
            let mut due = running.look_at.load(Ordering::Relaxed);
            if let Some(highest) = highest {
                // A slice that begins far in the future was begun by a clock that the host has set back since.
                let since = running.since.load(Ordering::Relaxed);
                let slice_ends =
                    if since > now.saturating_add(slice) { now } else { since.saturating_add(slice) };
                due = if highest.outranks(class) { now } else { due.min(slice_ends) };
            }
            tick.bump |= due <= now;
            let again = if due <= now { now.saturating_add(retry) } else { due };
            tick.look_again_at = Some(tick.look_again_at.map_or(again, |at| at.min(again)));
        }
        tick
    }

    /// The present load; each number may be a little old.
    pub fn load(&self) -> Load {
        Load {
            queued: self.slots.iter().flat_map(|s| &s.queues).map(RunQueue::len_hint).sum(),
            running: self.slots.iter().filter(|s| s.running.class().is_some()).count(),
            parked: self.idle.parked_hint(),
            allowed: VcpuMask(self.allowed.load(Ordering::Relaxed)).and(self.takers),
        }
    }
}

/// What a vCPU runs: hints for the others, written by itself.
#[derive(Debug)]
struct Running {
    /// 0: nothing; else one more than the number of the task's class.
    class: AtomicU64,
    /// Since when.
    since: AtomicU64,
    /// When it must come to a safe point for its own sake.
    look_at: AtomicU64,
}

impl Default for Running {
    fn default() -> Self {
        Running { class: AtomicU64::new(0), since: AtomicU64::new(0), look_at: AtomicU64::new(u64::MAX) }
    }
}

impl Running {
    fn class(&self) -> Option<Priority> {
        (self.class.load(Ordering::Relaxed) as usize).checked_sub(1).and_then(Priority::from_index)
    }

    fn set_class(&self, class: Option<Priority>) {
        self.class.store(class.map_or(0, |class| class.index() as u64 + 1), Ordering::Relaxed);
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
    /// By lane.
    owners: [Owner<'s>; LANES],
    id: VcpuId,
    tick: Cell<u32>,
    victim: Cell<usize>,
}

/// A task that was taken.
struct Taken {
    task: TaskRef,
    class: Priority,
    /// From another vCPU's queue.
    foreign: bool,
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

    fn push(&self, task: TaskRef, lane: Lane) -> Result<(), Full> {
        self.sched.use_lane(lane);
        self.owners[lane.index()].push(task)
    }

    /// Queues a task that became runnable (won by `unpark`, or begun at once). `Ok` says whom to wake; if that is nobody, no
    /// worker is free: then ask [`Scheduler::runs_below`].
    pub fn submit(&self, task: TaskRef, class: Priority) -> Result<Option<WakeTicket>, Full> {
        self.push(task, Lane { class, new: false })?;
        Ok(self.sched.claim())
    }

    /// The same for a task that has not begun and may wait for memory.
    pub fn submit_new(&self, task: TaskRef, class: Priority) -> Result<Option<WakeTicket>, Full> {
        self.push(task, Lane { class, new: true })?;
        Ok(self.sched.claim())
    }

    /// [`Vcpu::submit_new`] for one of many tasks that each take so little that up to `per_worker` of them are not worth a wake:
    /// nobody is woken while the workers that are awake, or on their way, have no more than that each. A worker that runs a task
    /// since before `since` does not count.
    pub fn submit_brief(
        &self,
        task: TaskRef,
        class: Priority,
        per_worker: usize,
        since: u64,
    ) -> Result<Submitted, Full> {
        let lane = Lane { class, new: true };
        self.push(task, lane)?;
        // A worker that is awake after this fence looks at the queues before it parks.
        fence(Ordering::SeqCst);
        let queued = self.owners[lane.index()].queue().len_hint();
        if queued <= self.sched.serving(since).saturating_mul(per_worker) {
            return Ok(Submitted::Left);
        }
        Ok(Submitted::Wake(self.sched.claim()))
    }

    /// Queues the task this vCPU has just switched out, before it calls `next`.
    pub fn requeue(&self, task: TaskRef, class: Priority) -> Result<Option<WakeTicket>, Full> {
        let alone = !self.leaves_work() && self.sched.takers.contains(self.id);
        self.push(task, Lane { class, new: false })?;
        Ok(if alone { None } else { self.sched.claim() })
    }

    /// What to do next. Only to be called with no task in hand: a task switched out has its context saved and is requeued,
    /// parked or gone. This is the acknowledgement of a stop.
    pub fn next(&self) -> Next {
        self.next_with(true)
    }

    /// [`Vcpu::next`], which begins a new task only if nothing else is ready unless `admit_new`.
    pub fn next_with(&self, admit_new: bool) -> Next {
        let running = &self.sched.slots[self.id.index()].running;
        let epoch = self.sched.gate.current();
        let next = if is_stop(epoch) {
            self.sched.gate.acknowledge(self.id, epoch);
            Next::Stopped
        } else if !self.sched.takers.contains(self.id) {
            Next::Empty
        } else if !self.sched.allowed().contains(self.id) {
            Next::Reclaimed { wake: self.sched.claim_for_backlog() }
        } else if let Some(taken) = self.take(admit_new) {
            running.set_class(Some(taken.class));
            let wake = if taken.foreign && self.leaves_work() { self.sched.claim() } else { None };
            return Next::Run { task: taken.task, wake };
        } else {
            Next::Empty
        };
        running.set_class(None);
        next
    }

    /// Whether something is in this vCPU's own queues.
    pub fn leaves_work(&self) -> bool {
        let mut lanes = self.sched.lanes(Priority::High, New::Second);
        lanes.any(|lane| !self.owners[lane.index()].queue().is_empty())
    }

    fn take(&self, admit_new: bool) -> Option<Taken> {
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        let turn = tick / FAIRNESS_INTERVAL;
        let fair = tick.is_multiple_of(FAIRNESS_INTERVAL);
        let lead = if fair { Priority::ALL[turn as usize % CLASSES] } else { Priority::High };
        // Three and four have no common divisor: every class leads in both ways.
        let others_first = fair && !turn.is_multiple_of(4);
        let new = match (admit_new, tick % 2) {
            (false, _) => New::Last,
            (true, 0) => New::First,
            (true, _) => New::Second,
        };
        self.sched.lanes(lead, new).find_map(|lane| {
            if others_first {
                self.steal(lane).or_else(|| self.pop(lane))
            } else {
                self.pop(lane).or_else(|| self.steal(lane))
            }
        })
    }

    fn pop(&self, lane: Lane) -> Option<Taken> {
        let task = self.owners[lane.index()].pop()?;
        Some(Taken { task, class: lane.class, foreign: false })
    }

    /// One task from another vCPU's queue; the search starts behind the last successful victim.
    fn steal(&self, lane: Lane) -> Option<Taken> {
        let n = self.sched.slots.len();
        for i in 0..n {
            let victim = (self.victim.get() + i) % n;
            if victim == self.id.index() {
                continue;
            }
            if let Some(task) = self.sched.slots[victim].queues[lane.index()].steal() {
                self.victim.set((victim + 1) % n);
                return Some(Taken { task, class: lane.class, foreign: true });
            }
        }
        None
    }

    /// The task that [`Vcpu::next`] gave begins to run at `now`; `look_at` is when it must come to a safe point for its own
    /// sake (a limit of its CPU time), `u64::MAX` for never. In the units of [`Scheduler::tick`].
    pub fn begin(&self, now: u64, look_at: u64) {
        let running = &self.sched.slots[self.id.index()].running;
        running.since.store(now, Ordering::Relaxed);
        running.look_at.store(look_at, Ordering::Relaxed);
    }

    /// Asked at a safe point by the running task of `class`: whether it must give this vCPU up. A stop, a reclaim and a
    /// waiting task of a higher class make it yield at once, any other waiting task when it has had its slice.
    pub fn should_yield(&self, class: Priority, slice_is_over: bool) -> bool {
        if self.sched.is_stopped() || !self.sched.allowed().contains(self.id) {
            return true;
        }
        self.sched.queued().any(|queued| slice_is_over || queued.outranks(class))
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
