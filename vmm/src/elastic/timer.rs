//! [`Timer`]: one thread that wakes the manager up at the earliest of some instants. It is made when the first instant is
//! set, and sleeps in the kernel while there is none.

use super::manager::CpuManager;
use nacre_abi::VcpuId;
use nacre_elastic::policy::CvmId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// A reclaim whose grace time ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grace {
    pub(super) at_ns: u64,
    pub(super) asked_ns: u64,
    pub(super) cvm: CvmId,
    pub(super) worker: VcpuId,
}

impl Ord for Grace {
    fn cmp(&self, other: &Grace) -> std::cmp::Ordering {
        (self.at_ns, self.cvm, self.worker).cmp(&(other.at_ns, other.cvm, other.worker))
    }
}

impl PartialOrd for Grace {
    fn partial_cmp(&self, other: &Grace) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug, Default)]
struct State {
    /// When the policy wants to be called.
    policy_ns: Option<u64>,
    graces: BinaryHeap<Reverse<Grace>>,
    started: bool,
    ended: bool,
}

impl State {
    fn next_ns(&self) -> Option<u64> {
        let grace = self.graces.peek().map(|first| first.0.at_ns);
        [self.policy_ns, grace].into_iter().flatten().min()
    }
}

/// The instants that are set.
#[derive(Debug, Default)]
pub(super) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
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
    pub(super) fn set_policy(&self, at_ns: u64, manager: &Weak<CpuManager>) {
        self.set(manager, |state| state.policy_ns = Some(at_ns));
    }

    /// Adds the end of a grace time.
    pub(super) fn add(&self, grace: Grace, manager: &Weak<CpuManager>) {
        self.set(manager, |state| state.graces.push(Reverse(grace)));
    }

    fn set(&self, manager: &Weak<CpuManager>, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let before = state.next_ns();
        change(&mut state);
        if !state.started {
            state.started = true;
            let manager = manager.clone();
            let thread = std::thread::Builder::new().name("cpu-timer".into());
            if let Err(error) = thread.spawn(move || run(&manager)) {
                state.started = false;
                tracing::warn!(%error, "no thread for the timer of the CPU manager: grace times do not end");
            }
        } else if state.next_ns() != before {
            self.changed.notify_one();
        }
    }

    /// The manager is going.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_one();
    }

    /// Sleeps until something is due or the timer ends. `now_ns` reads the manager's clock.
    fn wait(&self, now_ns: impl Fn() -> u64) -> Due {
        let mut state = self.lock();
        let mut due = Due::default();
        while !state.ended {
            let now = now_ns();
            if state.policy_ns.is_some_and(|at| at <= now) {
                state.policy_ns = None;
                due.policy = true;
            }
            while state.graces.peek().is_some_and(|first| first.0.at_ns <= now) {
                due.graces.extend(state.graces.pop().map(|first| first.0));
            }
            if due.policy || !due.graces.is_empty() {
                break;
            }
            state = match state.next_ns() {
                Some(at) => {
                    let wait = Duration::from_nanos(at - now);
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        due
    }
}

/// The thread. It holds the timer, not the manager, while it sleeps.
fn run(manager: &Weak<CpuManager>) {
    let Some((timer, clock)) = manager.upgrade().map(|manager| (manager.timer(), manager.clock())) else {
        return;
    };
    while let due = timer.wait(|| clock.now_ns())
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
        let grace =
            |at_ns, worker| Grace { at_ns, asked_ns: 0, cvm: CvmId(1), worker: VcpuId::new(worker).unwrap() };
        {
            let mut state = timer.lock();
            state.started = true;
            state.policy_ns = Some(50);
            state.graces.extend([grace(70, 2), grace(20, 1)].map(Reverse));
        }
        let first = timer.wait(|| 30);
        assert_eq!((first.policy, first.graces), (false, vec![grace(20, 1)]));
        let second = timer.wait(|| 70);
        assert_eq!((second.policy, second.graces), (true, vec![grace(70, 2)]));
        assert_eq!(timer.lock().next_ns(), None);
        timer.end();
        assert!(!timer.wait(|| 100).policy);
    }
}
