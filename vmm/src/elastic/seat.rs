//! [`Seat`]: one vCPU thread under the manager: its state, how it waits for a CPU, and what it used.
//!
//! Only the manager changes the state, under its lock; the thread reads it without one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

use crate::vcpu;

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It sleeps until its doorbell rings.
    Dormant = 0,
    /// It wants a CPU.
    Waiting = 1,
    /// It has one.
    Active = 2,
}

impl State {
    const fn from_number(number: u8) -> State {
        match number {
            0 => State::Dormant,
            1 => State::Waiting,
            _ => State::Active,
        }
    }
}

/// No CPU to be pinned to.
const ANY_CPU: i32 = -1;

/// One vCPU thread.
#[derive(Debug)]
pub struct Seat {
    state: AtomicU8,
    /// It must leave the guest at once, wherever it is.
    leave: AtomicBool,
    /// Where to run, or [`ANY_CPU`].
    cpu: AtomicI32,
    thread: OnceLock<(Thread, i32)>,
    /// CPU time of the thread at its end: its clock ends with it.
    final_cpu_ns: AtomicU64,
    /// When it came to its state, in nanoseconds of the manager's clock.
    since_ns: AtomicU64,
    active_ns: AtomicU64,
    wait_ns: AtomicU64,
    wakes: AtomicU64,
    reclaims: AtomicU64,
    forced: AtomicU64,
}

impl Default for Seat {
    fn default() -> Seat {
        let zero = || AtomicU64::new(0);
        Seat {
            state: AtomicU8::new(State::Dormant as u8),
            leave: AtomicBool::new(false),
            cpu: AtomicI32::new(ANY_CPU),
            thread: OnceLock::new(),
            final_cpu_ns: zero(),
            since_ns: zero(),
            active_ns: zero(),
            wait_ns: zero(),
            wakes: zero(),
            reclaims: zero(),
            forced: zero(),
        }
    }
}

/// What one vCPU has used.
#[derive(Clone, Copy, Debug)]
pub struct VcpuCpu {
    /// What it does now.
    pub state: State,
    /// CPU time of its thread, by the kernel's clock: guest, exits and all.
    pub cpu_time: Duration,
    /// Time for which it had a CPU.
    pub active: Duration,
    /// Time for which it wanted one and had none.
    pub waited: Duration,
    /// Times it was admitted.
    pub wakes: u64,
    /// Times it was asked to park.
    pub reclaims: u64,
    /// Times it was stopped by force.
    pub forced: u64,
}

impl Seat {
    /// The thread says who it is. Once, by itself.
    pub fn enter(&self) {
        let _ = self.thread.set((std::thread::current(), vcpu::thread_id()));
    }

    /// The thread ends.
    pub fn exit(&self) {
        self.final_cpu_ns.store(vcpu::own_cpu_ns(), Ordering::Relaxed);
    }

    /// What it does now.
    pub fn state(&self) -> State {
        State::from_number(self.state.load(Ordering::Acquire))
    }

    /// Waits, in the thread itself, until it is admitted; false if `stop` came first.
    pub fn wait_for_cpu(&self, stop: &AtomicBool) -> bool {
        while self.state() != State::Active {
            if stop.load(Ordering::SeqCst) {
                return false;
            }
            std::thread::park();
        }
        true
    }

    /// Gets the thread out of [`wait_for_cpu`](Self::wait_for_cpu), to look again.
    pub fn unpark(&self) {
        if let Some((thread, _)) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Whether the manager wants the thread out of the guest.
    pub fn must_leave(&self) -> bool {
        self.leave.load(Ordering::SeqCst)
    }

    /// Where the thread should run, if the manager pins.
    pub fn cpu(&self) -> Option<usize> {
        usize::try_from(self.cpu.load(Ordering::Relaxed)).ok()
    }

    pub(super) fn pin(&self, cpu: Option<usize>) {
        let cpu = cpu.and_then(|cpu| i32::try_from(cpu).ok()).unwrap_or(ANY_CPU);
        self.cpu.store(cpu, Ordering::Relaxed);
    }

    /// Gets the thread out of the guest, wherever it is.
    pub(super) fn force(&self) {
        self.leave.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    /// The same without being told to leave: it enters again.
    pub(crate) fn interrupt(&self) {
        if let Some((_, thread)) = self.thread.get() {
            vcpu::kick_thread(*thread);
        }
    }

    pub(super) fn count_reclaim(&self) {
        self.reclaims.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes the state; `now_ns` by the manager's clock.
    pub(super) fn set_state(&self, state: State, now_ns: u64) {
        let before = self.state();
        let elapsed = now_ns.saturating_sub(self.since_ns.swap(now_ns, Ordering::Relaxed));
        match before {
            State::Active => self.active_ns.fetch_add(elapsed, Ordering::Relaxed),
            State::Waiting => self.wait_ns.fetch_add(elapsed, Ordering::Relaxed),
            State::Dormant => 0,
        };
        match (before, state) {
            (State::Dormant | State::Waiting, State::Active) => self.wakes.fetch_add(1, Ordering::Relaxed),
            (State::Active, State::Waiting) => self.forced.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        if before == State::Active {
            self.leave.store(false, Ordering::SeqCst);
        }
        self.state.store(state as u8, Ordering::Release);
    }

    /// What it has used until `now_ns`.
    pub fn usage(&self, now_ns: u64) -> VcpuCpu {
        let state = self.state();
        let current = now_ns.saturating_sub(self.since_ns.load(Ordering::Relaxed));
        let of = |which, counter: &AtomicU64| {
            let current = if state == which { current } else { 0 };
            Duration::from_nanos(counter.load(Ordering::Relaxed) + current)
        };
        let ended = self.final_cpu_ns.load(Ordering::Relaxed);
        let cpu_ns = match self.thread.get() {
            Some((_, thread)) if ended == 0 => vcpu::thread_cpu_ns(*thread),
            _ => ended,
        };
        VcpuCpu {
            state,
            cpu_time: Duration::from_nanos(cpu_ns),
            active: of(State::Active, &self.active_ns),
            waited: of(State::Waiting, &self.wait_ns),
            wakes: self.wakes.load(Ordering::Relaxed),
            reclaims: self.reclaims.load(Ordering::Relaxed),
            forced: self.forced.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nanosecond_is_in_one_account() {
        let seat = Seat::default();
        for (state, at) in [
            (State::Waiting, 100),
            (State::Active, 130),
            (State::Waiting, 1130),
            (State::Active, 1135),
            (State::Dormant, 1235),
        ] {
            seat.set_state(state, at);
        }
        let used = seat.usage(5000);
        assert_eq!((used.active, used.waited), (Duration::from_nanos(1100), Duration::from_nanos(35)));
        assert_eq!((used.wakes, used.forced, used.state), (2, 1, State::Dormant));
        seat.set_state(State::Active, 6000);
        assert_eq!(seat.usage(6050).active, Duration::from_nanos(1150));
    }

    #[test]
    fn a_thread_waits_until_it_is_admitted_or_stopped() {
        let (seat, stop) = (Seat::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                seat.enter();
                seat.wait_for_cpu(&stop)
            });
            while seat.thread.get().is_none() {
                std::thread::yield_now();
            }
            seat.unpark();
            seat.set_state(State::Active, 1);
            seat.unpark();
            assert!(waiting.join().unwrap());
            seat.set_state(State::Waiting, 2);
            stop.store(true, Ordering::SeqCst);
            assert!(!seat.wait_for_cpu(&stop));
        });
    }
}
