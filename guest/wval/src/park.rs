//! [`ParkState`]: how one task goes to sleep and is woken, with a token, like `std::thread::park`.
//!
//! ```text
//!              prepare_park            commit_park (context saved)
//!   RUNNING ---------------> PARKING ---------------> PARKED
//!    ^   | unpark: Nothing      | unpark: Nothing        | unpark: Push
//!    |   v                      v                        v
//!    +- NOTIFIED <--------------+------------------------+
//!  prepare_park: Token, finish_park          commit_park on NOTIFIED: MustRequeue
//! ```
//! RUNNING and NOTIFIED mean *runnable*: running, or in exactly one run queue, or in the hands of the one vCPU
//! that must push it. Hence:
//! - A task is pushed by the one `unpark` which replaced PARKED, or by the scheduler that switched it out
//!   (yield, MustRequeue), never by both: PARKED is stored by that scheduler's `commit_park` only after it gave up
//!   pushing, and every unpark takes PARKED away atomically.
//! - A task never runs on two vCPUs, nor before its context is saved: PARKED is stored (release) after the save, and
//!   whoever takes it (acquire) sees the context.
//! - No wake-up is lost: an `unpark` always leaves NOTIFIED behind, and the task looks at it before it sleeps
//!   (`prepare_park`), while it falls asleep (`commit_park`), and after it woke (`finish_park`). Each of these reads
//!   it by an acquiring read-modify-write, so what an unparker did before is seen after.
//!
//! Every operation is one or two atomic instructions: wait-free. Wakes may be spurious; callers re-check their
//! condition. A yielding task needs no state change: it stays runnable, and its scheduler pushes it. A finished
//! task stays RUNNING or NOTIFIED, so a late `unpark` does nothing; that its memory still exists is the caller's part.

use crate::sync::{AtomicU8, Ordering};

const RUNNING: u8 = 0;
const NOTIFIED: u8 = 1;
const PARKING: u8 = 2;
const PARKED: u8 = 3;

/// What [`ParkState::prepare_park`] tells the task to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PreparePark {
    /// Switch to the scheduler now, with [`Switch::Park`].
    Switch,
    /// A wake-up was already there and is consumed: go on and re-check the condition.
    Token,
}

/// What [`ParkState::commit_park`] tells the scheduler to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum CommitPark {
    /// The task sleeps, and belongs to whoever unparks it: it may run, or be gone, already. Do not touch it.
    Parked,
    /// It was unparked on its way to sleep: push it.
    MustRequeue,
}

/// What [`ParkState::unpark`] tells its caller to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Unpark {
    /// Push the task into the own run queue, immediately: nobody else will.
    Push,
    /// It is runnable anyway, or its scheduler will push it.
    Nothing,
}

/// Why a fiber switched to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Let others run.
    Yield,
    /// Sleep; [`ParkState::prepare_park`] returned [`PreparePark::Switch`].
    Park,
    /// Finished.
    Exit,
}

/// What the scheduler does with a task that was switched out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Commit {
    /// Push it.
    Requeue,
    /// Forget it; see [`CommitPark::Parked`].
    Parked,
    /// It is finished: no queue holds it and no unpark will push it.
    Exited,
}

/// The sleep state of one task. See the picture in the module's source.
#[derive(Debug)]
pub struct ParkState(AtomicU8);

impl Default for ParkState {
    fn default() -> Self {
        Self::new()
    }
}

impl ParkState {
    /// The state of a task that is runnable and about to be pushed for the first time.
    pub fn new() -> Self {
        ParkState(AtomicU8::new(RUNNING))
    }

    /// Called by the running task, after it registered with whoever will unpark it.
    pub fn prepare_park(&self) -> PreparePark {
        match self.0.compare_exchange(RUNNING, PARKING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => PreparePark::Switch,
            Err(found) => {
                debug_assert_eq!(found, NOTIFIED, "only the running task may park");
                self.finish_park();
                PreparePark::Token
            }
        }
    }

    /// Called by the scheduler, on its own stack, once the task's context is saved.
    pub fn commit_park(&self) -> CommitPark {
        match self.0.compare_exchange(PARKING, PARKED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => CommitPark::Parked,
            Err(found) => {
                debug_assert_eq!(found, NOTIFIED, "commit_park without prepare_park");
                CommitPark::MustRequeue
            }
        }
    }

    /// Called by the task when it runs again after a park: consumes the token that woke it, and all that came
    /// until now. Left out, it costs one spurious wake-up.
    pub fn finish_park(&self) {
        self.0.swap(RUNNING, Ordering::AcqRel);
    }

    /// Wakes the task, or leaves a token for its next park. From any vCPU, any number of times.
    pub fn unpark(&self) -> Unpark {
        if self.0.swap(NOTIFIED, Ordering::AcqRel) == PARKED { Unpark::Push } else { Unpark::Nothing }
    }

    /// Whether the task sleeps. Only certain while nothing runs, for a look at a stopped CVM.
    pub fn is_parked(&self) -> bool {
        self.0.load(Ordering::Acquire) == PARKED
    }

    /// The scheduler's decision after a switch, whatever its reason.
    pub fn commit(&self, why: Switch) -> Commit {
        match why {
            Switch::Yield => Commit::Requeue,
            Switch::Exit => Commit::Exited,
            Switch::Park => match self.commit_park() {
                CommitPark::Parked => Commit::Parked,
                CommitPark::MustRequeue => Commit::Requeue,
            },
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_parked_task_is_pushed_once() {
        let p = ParkState::new();
        assert_eq!(p.prepare_park(), PreparePark::Switch);
        assert_eq!(p.commit(Switch::Park), Commit::Parked);
        assert_eq!(p.unpark(), Unpark::Push);
        assert_eq!(p.unpark(), Unpark::Nothing);
        p.finish_park();
        assert_eq!(p.prepare_park(), PreparePark::Switch);
    }

    #[test]
    fn an_unpark_on_the_way_to_sleep_requeues() {
        let p = ParkState::new();
        assert_eq!(p.prepare_park(), PreparePark::Switch);
        assert_eq!(p.unpark(), Unpark::Nothing);
        assert_eq!(p.commit(Switch::Park), Commit::Requeue);
    }

    #[test]
    fn tokens_do_not_add_up_and_survive_a_yield() {
        let p = ParkState::new();
        assert_eq!((p.unpark(), p.unpark()), (Unpark::Nothing, Unpark::Nothing));
        assert_eq!(p.commit(Switch::Yield), Commit::Requeue);
        assert_eq!(p.prepare_park(), PreparePark::Token);
        assert_eq!(p.prepare_park(), PreparePark::Switch);
    }

    #[test]
    fn unparking_a_finished_task_does_nothing() {
        let p = ParkState::new();
        assert_eq!(p.commit(Switch::Exit), Commit::Exited);
        assert_eq!((p.unpark(), p.unpark()), (Unpark::Nothing, Unpark::Nothing));
    }
}
