//! The host: event counters of vCPUs and of its own threads, simulated time, and what goes wrong with wakes.

use crate::plan::Plan;
use crate::schedule::Rng;
use crate::world::Seen;
use shuttle::sync::{Condvar, Mutex, MutexGuard};

/// vCPUs there can be.
pub const VCPUS: usize = 4;
/// The event of the thread that reads the rings, behind those of the vCPUs.
pub const DOORBELL: usize = VCPUS;
/// The event of the thread that waits for room.
pub const ROOM: usize = VCPUS + 1;
const EVENTS: usize = VCPUS + 2;

/// Simulated time after which a host that behaves has been waited for in vain.
const PATIENCE_NS: u64 = 20_000_000_000;

/// What all threads share of the host, under one lock. vCPUs take it only where they would enter the host.
pub struct State {
    now_ns: u64,
    counts: [u64; EVENTS],
    /// Who sleeps, and until when.
    asleep: [Option<u64>; EVENTS],
    /// Threads that have ended.
    gone: usize,
    /// Wakes on their way: when they arrive, and where.
    delayed: Vec<(u64, usize)>,
    honest_since: Option<u64>,
    over: bool,
    rng: Rng,
    /// What happened.
    pub seen: Seen,
}

/// The host.
pub struct Host {
    state: Mutex<State>,
    changed: Condvar,
    plan: Plan,
    sleepers: usize,
}

impl Host {
    /// The host of a plan with so many vCPUs.
    pub fn new(plan: &Plan) -> Host {
        let state = State {
            now_ns: 1_000,
            counts: [0; EVENTS],
            asleep: [None; EVENTS],
            gone: 0,
            delayed: Vec::new(),
            honest_since: None,
            over: false,
            rng: Rng(plan.seed ^ 0x686f_7374),
            seen: Seen::default(),
        };
        Host {
            state: Mutex::new(state),
            changed: Condvar::new(),
            plan: plan.clone(),
            sleepers: plan.vcpus + 2,
        }
    }

    /// The state.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A clock that goes on a little whenever it is read.
    pub fn now_ns(&self) -> u64 {
        let mut state = self.lock();
        state.now_ns += state.rng.below(2_000);
        state.now_ns
    }

    /// Whether all is over.
    pub fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Whether the host misbehaves.
    pub fn is_hostile(&self) -> bool {
        self.lock().honest_since.is_none()
    }

    /// All tasks have ended: everybody goes home.
    pub fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// A thread that sleeps sometimes has ended.
    pub fn leave(&self) {
        self.lock().gone += 1;
        self.changed.notify_all();
    }

    /// Signals an event.
    pub fn signal(&self, event: usize) {
        self.lock().counts[event] += 1;
        self.changed.notify_all();
    }

    /// Sleeps until the event is signalled or the deadline has come.
    pub fn sleep(&self, event: usize, deadline_ns: Option<u64>) {
        let mut state = self.lock();
        let deadline = deadline_ns.unwrap_or(u64::MAX);
        loop {
            if state.over || state.now_ns >= deadline {
                break;
            }
            if state.counts[event] > 0 {
                state.counts[event] = 0;
                if self.arrives(&mut state, event) {
                    break;
                }
                continue;
            }
            state.asleep[event] = Some(deadline);
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
            state.asleep[event] = None;
        }
    }

    /// What becomes of a signal that a sleeper has taken; whether it sees it.
    fn arrives(&self, state: &mut State, event: usize) -> bool {
        if state.honest_since.is_some() || event == ROOM {
            return true;
        }
        let roll = state.rng.below(1000);
        let plan = &self.plan;
        let bounds =
            [plan.dropped, plan.dropped + plan.misdirected, plan.dropped + plan.misdirected + plan.delayed];
        // The host's own thread may be late, but looks again.
        if event != DOORBELL && roll < bounds[0] {
            state.seen.dropped += 1;
            return false;
        }
        if event != DOORBELL && roll < bounds[1] {
            state.seen.misdirected += 1;
            let other = state.rng.below(plan.vcpus as u64) as usize;
            state.counts[other] += 1;
            self.changed.notify_all();
            return other == event;
        }
        if roll < bounds[2] && roll >= bounds[1] {
            state.seen.delayed += 1;
            let at = state.now_ns + state.rng.below(50_000_000);
            state.delayed.push((at, event));
            return false;
        }
        if state.rng.chance(plan.repeated) {
            state.seen.repeated += 1;
            state.counts[event] += 1;
        }
        true
    }

    /// Wakes anybody for nothing.
    pub fn wake_for_nothing(&self) {
        let mut state = self.lock();
        let event = state.rng.below(self.plan.vcpus as u64) as usize;
        state.counts[event] += 1;
        state.seen.spurious += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// From now on the host behaves. It wakes vCPU 0 once and looks at its rings; wakes it has lost stay lost.
    fn behave(state: &mut State) {
        state.honest_since = Some(state.now_ns);
        state.counts[0] += 1;
        state.counts[DOORBELL] += 1;
    }

    /// The thread of time: when everybody sleeps it becomes the next moment at which anything happens. `missed` says what
    /// should have been done before that moment; it is asked as long as no wake was lost or late.
    ///
    /// # Panics
    /// If anything was missed, or if the host behaves and nothing will ever happen again, or nothing that matters for long.
    pub fn keep_time(&self, missed: impl Fn(u64) -> Option<String>) {
        let mut state = self.lock();
        while !state.over {
            if state.now_ns >= self.plan.hostile_ns && state.honest_since.is_none() {
                Self::behave(&mut state);
                self.changed.notify_all();
            }
            let asleep = state.asleep.iter().flatten().count();
            let due = (0..EVENTS).any(|event| {
                let wakes =
                    state.counts[event] > 0 || state.asleep[event].is_some_and(|until| until <= state.now_ns);
                state.asleep[event].is_some() && wakes
            });
            if asleep + state.gone < self.sleepers || due {
                state = self.changed.wait(state).unwrap();
                continue;
            }
            let deadlines = state.asleep.iter().flatten().copied().filter(|until| *until != u64::MAX);
            let arrivals = state.delayed.iter().map(|(at, _)| *at);
            let next = deadlines.chain(arrivals).min();
            let Seen { dropped, misdirected, delayed, .. } = state.seen;
            if dropped + misdirected + delayed == 0
                && let Some(what) = missed(next.unwrap_or(u64::MAX))
            {
                panic!("everybody sleeps though {what}, {:?}", state.seen);
            }
            match next {
                Some(next) => state.now_ns = state.now_ns.max(next),
                None if state.honest_since.is_none() => Self::behave(&mut state),
                None => panic!("stuck: everybody sleeps and nobody will wake anybody, {:?}", state.seen),
            }
            let waited = state.honest_since.map(|since| state.now_ns - since);
            assert!(waited < Some(PATIENCE_NS), "stuck: 20 s after the host behaves again, {:?}", state.seen);
            let now = state.now_ns;
            let (arrived, later): (Vec<_>, Vec<_>) = state.delayed.drain(..).partition(|(at, _)| *at <= now);
            state.delayed = later;
            arrived.iter().for_each(|(_, event)| state.counts[*event] += 1);
            self.changed.notify_all();
        }
    }
}
