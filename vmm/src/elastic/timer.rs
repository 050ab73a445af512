//! [`Timer`]: one thread that wakes the manager up at the earliest of some instants. It is made when the first instant is
//! set, and sleeps in the kernel, on a timer descriptor: to set an instant wakes nobody, so that a reclaim does not take CPU
//! time from the worker it is about.

use super::manager::CpuManager;
use nacre_abi::VcpuId;
use nacre_elastic::policy::CvmId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use vmm_sys_util::timerfd::TimerFd;

/// What is to be done about a worker that has not parked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// vCPU 0 looks after it.
    Remind,
    /// It is stopped.
    Force,
}

/// A reclaim that takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grace {
    pub(super) at_ns: u64,
    pub(super) asked_ns: u64,
    pub(super) cvm: CvmId,
    pub(super) worker: VcpuId,
    pub(super) step: Step,
}

#[derive(Debug, Default)]
struct State {
    /// When the policy wants to be called.
    policy_ns: Option<u64>,
    graces: BinaryHeap<Reverse<Grace>>,
    /// What the thread sleeps on; none while there is no thread.
    alarm: Option<TimerFd>,
    /// What it is set to.
    armed_ns: Option<u64>,
    ended: bool,
}

impl State {
    fn next_ns(&self) -> Option<u64> {
        let grace = self.graces.peek().map(|first| first.0.at_ns);
        [self.policy_ns, grace].into_iter().flatten().min()
    }

    /// Sets the alarm to the earliest instant, if it is not.
    fn arm(&mut self, now_ns: u64) {
        let next = if self.ended { Some(0) } else { self.next_ns() };
        if next == self.armed_ns {
            return;
        }
        let (Some(at_ns), Some(alarm)) = (next, &mut self.alarm) else { return };
        // An alarm in no time at all would be none.
        let wait = Duration::from_nanos(at_ns.saturating_sub(now_ns).max(1));
        match alarm.reset(wait, None) {
            Ok(()) => self.armed_ns = next,
            Err(error) => tracing::warn!(%error, "the CPU manager's alarm can't be set"),
        }
    }
}

/// The instants that are set.
#[derive(Debug, Default)]
pub(super) struct Timer {
    state: Mutex<State>,
}

/// What has come.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) policy: bool,
    pub(super) graces: Vec<Grace>,
}

impl Timer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the policy's instant.
    pub(super) fn set_policy(&self, at_ns: u64, now_ns: u64, manager: &Weak<CpuManager>) {
        self.set(now_ns, manager, |state| state.policy_ns = Some(at_ns));
    }

    /// Adds a look at a reclaim.
    pub(super) fn add(&self, grace: Grace, now_ns: u64, manager: &Weak<CpuManager>) {
        self.set(now_ns, manager, |state| state.graces.push(Reverse(grace)));
    }

    fn set(&self, now_ns: u64, manager: &Weak<CpuManager>, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        if state.alarm.is_none() {
            match start(manager) {
                Ok(alarm) => state.alarm = Some(alarm),
                Err(error) => {
                    tracing::warn!(%error, "no thread for the timer of the CPU manager: grace times do not end");
                }
            }
        }
        state.arm(now_ns);
    }

    /// The manager is going.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.arm(0);
    }

    /// Sleeps until something is due or the timer ends. `now_ns` reads the manager's clock, `sleep` returns after an alarm.
    fn wait(&self, now_ns: impl Fn() -> u64, mut sleep: impl FnMut()) -> Due {
        let mut due = Due::default();
        loop {
            let mut state = self.lock();
            let now = now_ns();
            if state.policy_ns.is_some_and(|at| at <= now) {
                state.policy_ns = None;
                due.policy = true;
            }
            while state.graces.peek().is_some_and(|first| first.0.at_ns <= now) {
                due.graces.extend(state.graces.pop().map(|first| first.0));
            }
            state.arm(now);
            if state.ended || due.policy || !due.graces.is_empty() {
                return due;
            }
            drop(state);
            sleep();
        }
    }
}

/// Starts the thread. Returns what wakes it.
fn start(manager: &Weak<CpuManager>) -> io::Result<TimerFd> {
    let alarm = TimerFd::new()?;
    // SAFETY: the descriptor is open as long as `alarm`, which outlives this borrow of it.
    let same = unsafe { BorrowedFd::borrow_raw(alarm.as_raw_fd()) }.try_clone_to_owned()?;
    let mut same = std::fs::File::from(same);
    let manager = manager.clone();
    std::thread::Builder::new().name("cpu-timer".into()).spawn(move || run(&manager, &mut same))?;
    Ok(alarm)
}

/// The thread. It holds the timer, not the manager, while it sleeps.
fn run(manager: &Weak<CpuManager>, alarm: &mut impl io::Read) {
    let Some((timer, clock)) = manager.upgrade().map(|manager| (manager.timer(), manager.clock())) else {
        return;
    };
    let mut sleep = || {
        // How often it rang. A signal may end the read early; then the instants are looked at once more.
        let _ = alarm.read(&mut [0; 8]);
    };
    while let due = timer.wait(|| clock.now_ns(), &mut sleep)
        && let Some(manager) = manager.upgrade()
    {
        manager.due(due);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_order_and_once() {
        let timer = Timer::default();
        let grace = |at_ns, worker| Grace {
            at_ns,
            asked_ns: 0,
            cvm: CvmId(1),
            worker: VcpuId::new(worker).unwrap(),
            step: Step::Force,
        };
        let never = || panic!("something is due");
        {
            let mut state = timer.lock();
            state.policy_ns = Some(50);
            state.graces.extend([grace(70, 2), grace(20, 1)].map(Reverse));
        }
        let first = timer.wait(|| 30, never);
        assert_eq!((first.policy, first.graces), (false, vec![grace(20, 1)]));
        let second = timer.wait(|| 70, never);
        assert_eq!((second.policy, second.graces), (true, vec![grace(70, 2)]));
        assert_eq!(timer.lock().next_ns(), None);
        timer.end();
        assert!(!timer.wait(|| 100, never).policy);
    }
}
