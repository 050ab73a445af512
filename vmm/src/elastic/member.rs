//! [`Member`]: one CVM under a manager. It keeps the sets of workers that may run, publishes them on the shared page, and
//! knows what was asked of whom. Everything here happens under the manager's lock.

use super::seat::{Seat, State};
use crate::link::{raise_epochs, window_of};
use crate::vcpu::Shared;
use nacre_abi::VcpuId;
use nacre_abi::elastic::{self, ElasticWord, worker_mask};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// How a reclaim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The worker parked.
    Parked,
    /// It was stopped by force after the grace time; its task goes on when it is admitted again.
    Forced,
    /// It had no CPU when it was asked.
    WasNotActive,
}

/// A reclaim that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaimed {
    /// Which worker.
    pub worker: VcpuId,
    /// From the decision until the worker's exit to the host, by the host's monotonic clock.
    pub after: Duration,
    /// How.
    pub ended: Ended,
}

/// A reclaim on its way.
#[derive(Debug)]
pub struct PendingReclaim(Receiver<Reclaimed>);

impl PendingReclaim {
    /// Waits for its end; `None` if it takes longer than `limit`, or the CVM ended.
    pub fn wait(&self, limit: Duration) -> Option<Reclaimed> {
        self.0.recv_timeout(limit).ok()
    }
}

/// A worker that was asked to park.
#[derive(Debug, Default)]
struct Asked {
    /// When, in nanoseconds; also tells a late grace timer that another reclaim has begun.
    at_ns: u64,
    /// Who waits for it.
    tell: Vec<Sender<Reclaimed>>,
}

/// One CVM.
pub(super) struct Member {
    pub(super) shared: Arc<Shared>,
    pub(super) grace: Duration,
    workers: u32,
    /// Workers the policy lets it have.
    grant: u32,
    /// Workers that have a CPU.
    active: u64,
    /// Workers that want one.
    waiting: u64,
    /// Of these, those that were stopped in the middle of something.
    stopped: u64,
    /// Active workers that were asked to park.
    leaving: u64,
    /// Workers that must not run until [`allow`](Self::allow), whatever the policy says.
    held: u64,
    /// Workers the shared page lets run.
    published: u64,
    /// The demand in the books, as the guest was told.
    demand: u32,
    asked: Vec<Asked>,
    log: Vec<Reclaimed>,
}

/// Reclaims that are kept for whoever asks.
const LOG_LENGTH: usize = 1 << 16;

impl Member {
    pub(super) fn new(shared: Arc<Shared>, grace: Duration) -> Member {
        let workers = shared.vcpus.len() as u32 - 1;
        Member {
            shared,
            grace,
            workers,
            grant: 0,
            active: 0,
            waiting: 0,
            stopped: 0,
            leaving: 0,
            held: 0,
            published: 0,
            demand: 0,
            asked: (0..=workers).map(|_| Asked::default()).collect(),
            log: Vec::new(),
        }
    }

    pub(super) fn seat(&self, worker: VcpuId) -> &Seat {
        &self.shared.vcpus[worker.index()].seat
    }

    pub(super) fn workers(&self) -> u32 {
        self.workers
    }

    /// Whether this CVM has such a worker.
    pub(super) fn has(&self, worker: VcpuId) -> bool {
        worker.is_worker() && worker.index() as u32 <= self.workers
    }

    pub(super) fn is_held(&self, worker: VcpuId) -> bool {
        self.held & worker.bit() != 0
    }

    /// Active, waiting, grant and demand.
    pub(super) fn sets(&self) -> (u64, u64, u32, u32) {
        (self.active, self.waiting, self.grant, self.demand)
    }

    /// A dormant worker that may run instead of one that is held.
    pub(super) fn substitute(&self) -> Option<VcpuId> {
        let dormant = worker_mask(self.workers) & !(self.active | self.waiting | self.held);
        VcpuId::new(dormant.trailing_zeros())
    }

    /// The workers that may run: those that have a CPU and were not asked to give it back, those that wait for one, then
    /// the first others, as many as are granted.
    fn permitted(&self) -> u64 {
        let all = worker_mask(self.workers) & !self.leaving & !self.held;
        if self.grant >= self.workers {
            return all;
        }
        let mut chosen = self.active & all;
        for group in [self.waiting & all, all] {
            let room = u64::from(self.grant).saturating_sub(chosen.count_ones().into());
            chosen |= elastic::allowed(self.workers, room, !(group & !chosen));
        }
        chosen
    }

    /// Tells the guest which workers may run, if that is news.
    fn publish(&mut self) {
        let permitted = self.permitted();
        if permitted == self.published {
            return;
        }
        self.published = permitted;
        let page = window_of(&self.shared).elastic();
        page.set(ElasticWord::Reclaim, worker_mask(self.workers) & !permitted);
        page.set(ElasticWord::Grant, permitted.count_ones().into());
    }

    /// vCPU 0 looks at the page, whatever it does now.
    pub(super) fn ring_normal(&self) {
        fence(Ordering::SeqCst);
        let _ = self.shared.vcpus[VcpuId::NORMAL.index()].wake.write(1);
    }

    pub(super) fn set_grant(&mut self, grant: u32) {
        let before = self.published;
        self.grant = grant;
        self.publish();
        // A worker that was let go of without a reclaim of its own has to hear of it too.
        if before & !self.published & self.active != 0 {
            raise_epochs(&window_of(&self.shared));
            self.ring_normal();
        }
    }

    /// A worker's doorbell rang. False if it may not ask for a CPU now.
    pub(super) fn woke(&mut self, worker: VcpuId, now_ns: u64) -> bool {
        if self.seat(worker).state() != State::Dormant {
            return false;
        }
        self.waiting |= worker.bit();
        self.seat(worker).set_state(State::Waiting, now_ns);
        !self.is_held(worker)
    }

    /// Gives a worker a CPU.
    pub(super) fn admit(&mut self, worker: VcpuId, now_ns: u64) {
        let dormant = self.seat(worker).state() == State::Dormant;
        self.active |= worker.bit();
        self.waiting &= !worker.bit();
        self.stopped &= !worker.bit();
        self.leaving &= !worker.bit();
        if dormant {
            self.demand_is(self.demand.saturating_sub(1));
        }
        self.publish();
        let seat = self.seat(worker);
        seat.set_state(State::Active, now_ns);
        if dormant {
            fence(Ordering::SeqCst);
            let _ = self.shared.vcpus[worker.index()].wake.write(1);
        } else {
            seat.unpark();
        }
    }

    /// Asks a worker to park. False if it has no CPU.
    pub(super) fn reclaim(&mut self, worker: VcpuId, now_ns: u64) -> bool {
        if self.active & worker.bit() == 0 {
            return false;
        }
        self.leaving |= worker.bit();
        self.asked[worker.index()].at_ns = now_ns;
        self.seat(worker).count_reclaim();
        self.publish();
        raise_epochs(&window_of(&self.shared));
        true
    }

    /// Forbids a worker to run until [`allow`](Self::allow).
    pub(super) fn hold(&mut self, worker: VcpuId) {
        self.held |= worker.bit();
        self.publish();
    }

    /// Lets a held worker run again; true if it waits for that.
    pub(super) fn allow(&mut self, worker: VcpuId) -> bool {
        let waits = self.is_held(worker) && self.waiting & worker.bit() != 0;
        self.held &= !worker.bit();
        self.publish();
        waits
    }

    /// Lets it be known when a reclaim of `worker` that was just asked for is over.
    pub(super) fn on_reclaimed(&mut self, worker: VcpuId) -> PendingReclaim {
        let (sender, receiver) = channel();
        if self.leaving & worker.bit() == 0 {
            let ended = Reclaimed { worker, after: Duration::ZERO, ended: Ended::WasNotActive };
            // The receiver is here.
            let _ = sender.send(ended);
        } else {
            self.asked[worker.index()].tell.push(sender);
        }
        PendingReclaim(receiver)
    }

    /// Whether a worker has still not parked after a reclaim from `asked_ns`.
    pub(super) fn is_leaving(&self, worker: VcpuId, asked_ns: u64) -> bool {
        self.leaving & worker.bit() != 0 && self.asked[worker.index()].at_ns == asked_ns
    }

    /// How long a worker may take to park, in nanoseconds.
    pub(super) fn grace_ns(&self) -> u64 {
        u64::try_from(self.grace.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Stops a worker that still runs. Its thread then reports [`released`](Self::released).
    pub(super) fn force(&self, worker: VcpuId) {
        self.seat(worker).force();
    }

    /// A worker has left the guest: it parked, or was `forced` out and wants to go on. False if it had no CPU.
    pub(super) fn released(&mut self, worker: VcpuId, forced: bool, now_ns: u64) -> bool {
        if self.active & worker.bit() == 0 {
            return false;
        }
        let was_asked = self.leaving & worker.bit() != 0;
        self.active &= !worker.bit();
        self.leaving &= !worker.bit();
        if forced {
            self.waiting |= worker.bit();
            self.stopped |= worker.bit();
        }
        self.seat(worker).set_state(if forced { State::Waiting } else { State::Dormant }, now_ns);
        if was_asked {
            let asked = &mut self.asked[worker.index()];
            let after = Duration::from_nanos(now_ns.saturating_sub(asked.at_ns));
            let ended =
                Reclaimed { worker, after, ended: if forced { Ended::Forced } else { Ended::Parked } };
            // Whoever asked may have gone.
            for tell in asked.tell.drain(..) {
                let _ = tell.send(ended);
            }
            if self.log.len() < LOG_LENGTH {
                self.log.push(ended);
            }
            self.publish();
        }
        true
    }

    /// The reclaims that ended since the last call.
    pub(super) fn take_log(&mut self) -> Vec<Reclaimed> {
        std::mem::take(&mut self.log)
    }

    /// What the guest asks for now, beyond the workers whose doorbells it rang; `Some` if the policy has to hear of it.
    /// `forgotten`: the policy has no demand of this CVM in its books any more.
    pub(super) fn read_demand(&mut self, forgotten: bool) -> Option<u32> {
        let page = window_of(&self.shared).elastic();
        let before = if forgotten { 0 } else { self.demand };
        let mut level = elastic::level(page.get(ElasticWord::Demand));
        if level == before && level == self.demand {
            return None;
        }
        if level < self.demand {
            // Say what we know, then look once more: the guest looks in the other order.
            page.set(ElasticWord::DemandSeen, level.into());
            fence(Ordering::SeqCst);
            level = level.max(elastic::level(page.get(ElasticWord::Demand)));
        }
        self.demand_is(level);
        let rung = (self.waiting & !self.stopped).count_ones();
        (level != before).then_some(level.saturating_sub(rung))
    }

    /// Notes the demand in the books, and tells the guest.
    fn demand_is(&mut self, level: u32) {
        if self.demand != level {
            self.demand = level;
            window_of(&self.shared).elastic().set(ElasticWord::DemandSeen, level.into());
        }
    }
}
