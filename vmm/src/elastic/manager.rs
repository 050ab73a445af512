//! [`CpuManager`]: nacre-elastic's policy with a real clock, a lock, and threads that carry its actions out.
//!
//! A worker's own thread comes here when its doorbell rang ([`woke`](CpuManager::woke)), when it parked, and when it was
//! forced out; each call takes the lock, lets the policy make one step and does what it says: writing to shared pages,
//! event descriptors and futexes, none of which waits for anybody. When there is a free CPU the caller comes back
//! admitted.

use super::member::{Member, PendingReclaim, Reclaimed};
use super::timer::{Due, Grace, Step, Timer};
use super::{CpuLimits, CpuStats, ElasticError};
use crate::vcpu::{self, Shared};
use nacre_abi::VcpuId;
use nacre_elastic::policy::{
    Action, Budget, Change, CvmId, Event, Limits, MAX_CVM_ID, MAX_WORKERS, Manager, Nanos, PolicyError,
    Tuning, WorkerIndex,
};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What a manager has to share.
#[derive(Clone, Debug)]
pub struct CpuConfig {
    /// Physical CPUs for workers.
    pub cpus: u32,
    /// CPUs that active workers are pinned to, one each, or none to leave that to the kernel.
    pub pin: Vec<usize>,
    /// How the policy corrects unfairness.
    pub tuning: Tuning,
}

impl CpuConfig {
    /// This many CPUs, without pinning.
    pub fn new(cpus: u32) -> CpuConfig {
        CpuConfig { cpus, pin: Vec::new(), tuning: Tuning::default() }
    }

    /// All CPUs that this process may use.
    pub fn machine() -> CpuConfig {
        CpuConfig::new(std::thread::available_parallelism().map_or(1, |count| count.get() as u32))
    }
}

/// How long after a reclaim vCPU 0 is asked to look after a worker that has not parked: half a millisecond.
const REMIND_NS: u64 = 500_000;

/// The manager's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

struct Inner {
    policy: Manager,
    members: HashMap<CvmId, Member>,
    /// The number given last. Numbers are used again as late as can be, so that a late call for a CVM that is gone
    /// means no other one.
    last: u32,
    /// What the policy wants done; empty between calls.
    actions: Vec<Action>,
    /// CPUs to pin to, and who is there.
    pins: Vec<(usize, Option<(CvmId, VcpuId)>)>,
}

/// Shares CPUs over the CVMs that were launched with it.
pub struct CpuManager {
    inner: Mutex<Inner>,
    timer: Arc<Timer>,
    clock: Clock,
    this: Weak<CpuManager>,
}

impl std::fmt::Debug for CpuManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuManager").finish_non_exhaustive()
    }
}

/// A CVM's place under a manager.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) manager: Arc<CpuManager>,
    pub(crate) cvm: CvmId,
}

impl CpuManager {
    /// A manager for these CPUs.
    ///
    /// # Errors
    /// [`ElasticError`] if there are none, or far too many, or one cannot be pinned to.
    pub fn new(config: CpuConfig) -> Result<Arc<CpuManager>, ElasticError> {
        let policy = Manager::new(Budget::new(config.cpus)?, config.tuning)?;
        if let Some(cpu) = config.pin.iter().find(|cpu| !vcpu::may_use_cpu(**cpu)) {
            return Err(ElasticError::Pin(*cpu));
        }
        let pins = config.pin.into_iter().map(|cpu| (cpu, None)).collect();
        Ok(Arc::new_cyclic(|this| CpuManager {
            inner: Mutex::new(Inner { policy, members: HashMap::new(), last: 0, actions: Vec::new(), pins }),
            timer: Arc::default(),
            clock: Clock(Instant::now()),
            this: this.clone(),
        }))
    }

    /// A manager that has a CPU for every worker a CVM can have.
    pub(crate) fn unlimited() -> Result<Arc<CpuManager>, ElasticError> {
        CpuManager::new(CpuConfig::new(MAX_WORKERS.into()))
    }

    /// Changes the number of CPUs; workers beyond it are reclaimed at once.
    ///
    /// # Errors
    /// [`ElasticError::Policy`] if it is impossible, or less than what CVMs are guaranteed.
    pub fn set_cpus(&self, cpus: u32) -> Result<(), ElasticError> {
        let budget = Budget::new(cpus)?;
        self.lock().configure(self, Change::BudgetChanged { budget })
    }

    /// Workers of all CVMs that have a CPU now.
    pub fn occupied(&self) -> u32 {
        let inner = self.lock();
        inner.members.values().map(|member| member.sets().0.count_ones()).sum()
    }

    /// Nanoseconds of the manager's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    pub(super) fn timer(&self) -> Arc<Timer> {
        self.timer.clone()
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a CVM in, all of whose workers are dormant.
    pub(crate) fn add(
        &self,
        shared: Arc<Shared>,
        limits: CpuLimits,
        grace: Duration,
    ) -> Result<CvmId, ElasticError> {
        let workers = shared.vcpus.len() as u32 - 1;
        let limits = checked(limits, workers)?;
        let mut inner = self.lock();
        let mut numbers = (1..=MAX_CVM_ID).map(|step| CvmId(inner.last.wrapping_add(step) & MAX_CVM_ID));
        let cvm = numbers.find(|cvm| !inner.members.contains_key(cvm)).ok_or(ElasticError::Full)?;
        inner.last = cvm.0;
        inner.members.insert(cvm, Member::new(shared, grace));
        let added = inner.configure(self, Change::CvmAdded { cvm, limits, launched: workers as u8 });
        if added.is_err() {
            inner.members.remove(&cvm);
        }
        added.map(|()| cvm)
    }

    /// Forgets a CVM whose threads have ended or are about to.
    pub(crate) fn remove(&self, cvm: CvmId) {
        let mut inner = self.lock();
        for pin in &mut inner.pins {
            pin.1.take_if(|(owner, _)| *owner == cvm);
        }
        // A CVM that never got in needs nothing more.
        let _ = inner.configure(self, Change::CvmRemoved { cvm });
        let removed = inner.members.remove(&cvm);
        drop(inner);
        drop(removed);
    }

    pub(crate) fn set_limits(&self, cvm: CvmId, limits: CpuLimits) -> Result<(), ElasticError> {
        let mut inner = self.lock();
        let workers = inner.member(cvm)?.workers();
        inner.configure(self, Change::LimitsChanged { cvm, limits: checked(limits, workers)? })
    }

    /// The worker's doorbell rang. When this returns it may be admitted already.
    pub(crate) fn woke(&self, cvm: CvmId, worker: VcpuId) {
        self.event(cvm, |inner, now_ns| {
            let Ok(member) = inner.member(cvm) else { return };
            if member.woke(worker, now_ns) {
                inner.demand(cvm, now_ns, false);
                inner.step_worker(now_ns, worker, |worker| Event::WorkerWoke { cvm, worker });
            }
        });
    }

    /// The worker parked.
    pub(crate) fn parked(&self, cvm: CvmId, worker: VcpuId) {
        self.released(cvm, worker, false);
    }

    /// The worker was forced out of the guest.
    pub(crate) fn descheduled(&self, cvm: CvmId, worker: VcpuId) {
        self.released(cvm, worker, true);
    }

    fn released(&self, cvm: CvmId, worker: VcpuId, forced: bool) {
        self.event(cvm, |inner, now_ns| {
            let Ok(member) = inner.member(cvm) else { return };
            if !member.released(worker, forced, now_ns) {
                return;
            }
            // A held worker that was stopped asks again when it is allowed to.
            let wants_cpu = forced && !member.is_held(worker);
            inner.unpin(cvm, worker);
            inner.step_worker(now_ns, worker, |worker| match wants_cpu {
                true => Event::WorkerDescheduled { cvm, worker },
                false => Event::WorkerParked { cvm, worker },
            });
            inner.demand(cvm, now_ns, !wants_cpu);
        });
    }

    /// The guest says that its demand rose.
    pub(crate) fn demand_rose(&self, cvm: CvmId) {
        self.event(cvm, |inner, now_ns| inner.demand(cvm, now_ns, false));
    }

    /// Asks a worker to park and holds it until [`allow`](Self::allow).
    pub(crate) fn reclaim(&self, cvm: CvmId, worker: VcpuId) -> Result<PendingReclaim, ElasticError> {
        let mut inner = self.lock();
        let now_ns = self.now_ns();
        let member = inner.worker(cvm, worker)?;
        member.hold(worker);
        inner.reclaim(self, cvm, worker, now_ns);
        Ok(inner.member(cvm)?.on_reclaimed(worker))
    }

    /// Ends what [`reclaim`](Self::reclaim) began.
    pub(crate) fn allow(&self, cvm: CvmId, worker: VcpuId) -> Result<(), ElasticError> {
        self.lock().worker(cvm, worker)?;
        self.event(cvm, |inner, now_ns| {
            let Ok(member) = inner.member(cvm) else { return };
            if member.allow(worker) {
                inner.step_worker(now_ns, worker, |worker| Event::WorkerWoke { cvm, worker });
            }
            inner.wake_normal(cvm);
        });
        Ok(())
    }

    /// The reclaims that ended since the last call, at most 65,536 of them.
    pub(crate) fn take_reclaims(&self, cvm: CvmId) -> Vec<Reclaimed> {
        self.lock().member(cvm).map(Member::take_log).unwrap_or_default()
    }

    pub(crate) fn stats(&self, cvm: CvmId, shared: &Shared) -> CpuStats {
        let now_ns = self.now_ns();
        let mut inner = self.lock();
        let (active, waiting, grant, demand) =
            inner.member(cvm).map(|member| member.sets()).unwrap_or_default();
        drop(inner);
        let workers = shared.vcpus.len() as u32 - 1;
        let vcpus = shared.vcpus.iter().map(|vcpu| vcpu.seat.usage(now_ns)).collect();
        CpuStats { cvm: cvm.0, workers, grant: grant.min(workers), demand, active, waiting, vcpus }
    }

    /// Handles something that happened to a CVM, then does what the policy wants.
    fn event(&self, cvm: CvmId, happen: impl FnOnce(&mut Inner, u64)) {
        let mut inner = self.lock();
        if inner.members.contains_key(&cvm) {
            let now_ns = self.now_ns();
            happen(&mut inner, now_ns);
            inner.carry_out(self, now_ns);
        }
    }

    /// The timer's thread: an instant has come.
    pub(super) fn due(&self, due: Due) {
        let mut inner = self.lock();
        let now_ns = self.now_ns();
        for grace in due.graces {
            inner.late(self, grace, now_ns);
        }
        if due.policy {
            inner.step(now_ns, Event::Timer);
        }
        inner.carry_out(self, now_ns);
    }
}

impl Drop for CpuManager {
    fn drop(&mut self) {
        self.timer.end();
    }
}

/// Limits for a CVM with this many workers.
fn checked(limits: CpuLimits, workers: u32) -> Result<Limits, ElasticError> {
    let fitting = |asked: u32| match u8::try_from(asked) {
        Ok(count) if asked <= workers => Ok(count),
        _ => Err(ElasticError::Workers { asked, launched: workers }),
    };
    let weight = NonZeroU32::new(limits.weight).ok_or(ElasticError::NoWeight)?;
    let max = fitting(limits.max.unwrap_or(workers))?;
    Ok(Limits::new(weight, fitting(limits.min)?, max)?)
}

impl Inner {
    fn member(&mut self, cvm: CvmId) -> Result<&mut Member, ElasticError> {
        self.members.get_mut(&cvm).ok_or(ElasticError::Gone)
    }

    fn worker(&mut self, cvm: CvmId, worker: VcpuId) -> Result<&mut Member, ElasticError> {
        let member = self.member(cvm)?;
        let workers = member.workers();
        if member.has(worker) { Ok(member) } else { Err(ElasticError::NoSuchWorker(worker.index(), workers)) }
    }

    fn step(&mut self, now_ns: u64, event: Event) {
        self.policy.step(Nanos(now_ns), event, &mut self.actions);
    }

    fn step_worker(&mut self, now_ns: u64, worker: VcpuId, event: impl FnOnce(WorkerIndex) -> Event) {
        if let Some(worker) = WorkerIndex::new(worker.index() as u8) {
            self.step(now_ns, event(worker));
        }
    }

    fn configure(&mut self, manager: &CpuManager, change: Change) -> Result<(), ElasticError> {
        let now_ns = manager.now_ns();
        let result = self.policy.configure(Nanos(now_ns), change, &mut self.actions);
        self.carry_out(manager, now_ns);
        result.map_err(|error: PolicyError| error.into())
    }

    /// Looks at what the guest asks for. `forgotten`: the policy has just forgotten what it knew.
    fn demand(&mut self, cvm: CvmId, now_ns: u64, forgotten: bool) {
        if let Some(level) = self.member(cvm).ok().and_then(|member| member.read_demand(forgotten)) {
            self.step(now_ns, Event::Demand { cvm, level });
        }
    }

    /// vCPU 0 of a CVM looks at the shared page.
    fn wake_normal(&mut self, cvm: CvmId) {
        if let Ok(member) = self.member(cvm) {
            member.ring_normal();
        }
    }

    fn carry_out(&mut self, manager: &CpuManager, now_ns: u64) {
        let mut next = 0;
        // An action that cannot be carried out is told to the policy, which may add more.
        while let Some(action) = self.actions.get(next).copied() {
            next += 1;
            match action {
                Action::Admit { cvm, worker } => {
                    if let Some(worker) = VcpuId::new(worker.get().into()) {
                        self.admit(cvm, worker, now_ns);
                    }
                }
                Action::Reclaim { cvm, worker } => {
                    if let Some(worker) = VcpuId::new(worker.get().into()) {
                        self.reclaim(manager, cvm, worker, now_ns);
                    }
                }
                Action::Grant { cvm, workers } => {
                    if let Ok(member) = self.member(cvm) {
                        member.set_grant(workers.into());
                    }
                }
                Action::SetTimer { at } => manager.timer.set_policy(at.0, now_ns, &manager.this),
            }
        }
        self.actions.clear();
    }

    fn admit(&mut self, cvm: CvmId, worker: VcpuId, now_ns: u64) {
        let Ok(member) = self.member(cvm) else { return };
        if member.is_held(worker) {
            let substitute = member.substitute();
            self.step_worker(now_ns, worker, |worker| Event::WorkerParked { cvm, worker });
            if let Some(substitute) = substitute {
                self.step_worker(now_ns, substitute, |worker| Event::WorkerWoke { cvm, worker });
            }
            return;
        }
        self.pin(cvm, worker);
        if let Ok(member) = self.member(cvm) {
            member.admit(worker, now_ns);
        }
    }

    fn reclaim(&mut self, manager: &CpuManager, cvm: CvmId, worker: VcpuId, now_ns: u64) {
        let Ok(member) = self.member(cvm) else { return };
        if member.reclaim(worker, now_ns) {
            let at_ns = now_ns.saturating_add(REMIND_NS.min(member.grace_ns()));
            let grace = Grace { at_ns, asked_ns: now_ns, cvm, worker, step: Step::Remind };
            manager.timer.add(grace, now_ns, &manager.this);
        }
    }

    /// Looks after a reclaim, some time after it was asked for.
    fn late(&mut self, manager: &CpuManager, grace: Grace, now_ns: u64) {
        let Ok(member) = self.member(grace.cvm) else { return };
        if !member.is_leaving(grace.worker, grace.asked_ns) {
            return;
        }
        match grace.step {
            Step::Remind => {
                member.ring_normal();
                let at_ns = grace.asked_ns.saturating_add(member.grace_ns());
                let force = Grace { at_ns, step: Step::Force, ..grace };
                manager.timer.add(force, now_ns, &manager.this);
            }
            Step::Force => member.force(grace.worker),
        }
    }

    /// Finds the worker a CPU of its own, the one it had before if that is free.
    fn pin(&mut self, cvm: CvmId, worker: VcpuId) {
        let before = self.member(cvm).ok().and_then(|member| member.seat(worker).cpu());
        let free = |pin: &&mut (usize, Option<(CvmId, VcpuId)>)| pin.1.is_none();
        let Some(pin) = self
            .pins
            .iter_mut()
            .filter(|pin| pin.1.is_none())
            .find(|pin| Some(pin.0) == before)
            .map(|pin| pin.0)
            .or_else(|| self.pins.iter_mut().find(free).map(|pin| pin.0))
        else {
            return;
        };
        if let Some(entry) = self.pins.iter_mut().find(|entry| entry.0 == pin) {
            entry.1 = Some((cvm, worker));
        }
        if let Ok(member) = self.member(cvm) {
            member.seat(worker).pin(Some(pin));
        }
    }

    fn unpin(&mut self, cvm: CvmId, worker: VcpuId) {
        for pin in &mut self.pins {
            pin.1.take_if(|owner| *owner == (cvm, worker));
        }
    }
}
