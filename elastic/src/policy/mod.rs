//! The CPU manager's policy: [`Manager`].
//!
//! ```text
//!            WorkerWoke                Admit                 Reclaim
//!  Dormant ------------> Waiting ---------------> Active ---------------> Reclaiming
//!   ^ ^ |                                         | ^  |                    |  |
//!   | | +------------- Admit (demand) ------------|-+  | WorkerDescheduled  |  |
//!   | +------------------ WorkerParked -----------+    v                    |  |
//!   |                                              Stopped <----------------+  |
//!   +------------------------------ WorkerParked ------------------------------+
//! ```
//! A worker holds a physical CPU while it is Active or Reclaiming. Stopped is Waiting with a task inside the vCPU that
//! no other worker can go on with: such workers are admitted before the CVM's other ones.
//!
//! **Contract with the caller.** Events come from threads that race and from guests that lie. Whatever cannot be (a
//! dormant worker that parks, a CVM that is gone) is ignored and counted; nothing a guest does can break the budget,
//! another CVM's minimum or the manager. The caller:
//! - carries every action out, in order: [`Action`] says what each one asks for;
//! - gives an [`Event::WorkerWoke`] when a worker's doorbell rang and its thread asks to run, and lets it run only once
//!   it is admitted, which normally is in the same call;
//! - gives an [`Event::WorkerParked`] when the worker's thread is about to sleep, or an
//!   [`Event::WorkerDescheduled`] when a reclaimed worker's grace time is over and its thread was stopped;
//! - gives an [`Event::Demand`] with what the shared page says on every event of the CVM, and from time to time: a
//!   lost edge then delays, and wedges nothing.
//!
//! **Rules.** In the order of their importance:
//! 1. Active and reclaiming workers are never more than the budget; those of a CVM never more than its maximum. A
//!    lower budget or maximum is reached by reclaiming at once.
//! 2. A CVM below its minimum that wants a CPU gets the next one, and one is reclaimed for it without delay.
//! 3. No CPU idles while a CVM wants it and is below its maximum.
//! 4. CPUs beyond that go by weighted max-min fairness over time; see `contention.rs` for how, and
//!    [`reference::water_fill`] for what exactly.
//! 5. A worker runs for [`Tuning::min_hold`] before fairness may take its CPU.
//!
//! **Cost.** An event costs O(1) while CPUs are free, O(log CVMs) else, and one step per action. Under contention a
//! timer event each half quantum looks at every CVM that holds a CPU.

mod contention;
mod cvm;
mod error;
mod heap;
mod manager;
#[cfg(test)]
mod manager_tests;
pub mod reference;
mod snapshot;
mod types;

pub use error::PolicyError;
pub use manager::Manager;
pub use snapshot::{Account, CvmSnapshot, Snapshot, WorkerSnapshot, WorkerState};
pub use types::{
    Budget, CvmId, Limits, MAX_BUDGET, MAX_CVM_ID, MAX_WEIGHT, MAX_WORKERS, Nanos, Tuning, WorkerIndex,
};

use serde::{Deserialize, Serialize};

/// Something that happened. None of it is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// What the guest says about its run queues: how many runnable tasks have neither an active worker nor one whose
    /// doorbell was rung for them. A level that replaces the last one; a guess is enough, lower rather than higher.
    ///
    /// The manager takes one off when it admits a dormant worker on account of it, and forgets it when a worker parks
    /// of its own will, since that one found nothing to do.
    Demand {
        /// The CVM that says so.
        cvm: CvmId,
        /// Tasks; clamped to the workers that are dormant.
        level: u32,
    },
    /// The worker's doorbell rang, its thread asks to run.
    WorkerWoke {
        /// The worker's CVM.
        cvm: CvmId,
        /// The worker.
        worker: WorkerIndex,
    },
    /// The worker parked: its thread needs no CPU until its doorbell rings.
    WorkerParked {
        /// The worker's CVM.
        cvm: CvmId,
        /// The worker.
        worker: WorkerIndex,
    },
    /// The worker was stopped by force in the middle of something and wants to go on later.
    WorkerDescheduled {
        /// The worker's CVM.
        cvm: CvmId,
        /// The worker.
        worker: WorkerIndex,
    },
    /// The instant of the latest [`Action::SetTimer`] has come. An early, late or unasked one does no harm.
    Timer,
}

/// A change of the configuration, from whoever operates the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A CVM with `launched` workers, all dormant.
    CvmAdded {
        /// Its number from now on.
        cvm: CvmId,
        /// What it may have.
        limits: Limits,
        /// Workers it was launched with: vCPUs 1 to this.
        launched: u8,
    },
    /// A CVM has ended: none of its workers runs any more.
    CvmRemoved {
        /// Which.
        cvm: CvmId,
    },
    /// Other limits for a CVM.
    LimitsChanged {
        /// Which.
        cvm: CvmId,
        /// What it may have from now on.
        limits: Limits,
    },
    /// Another budget for all.
    BudgetChanged {
        /// CPUs from now on.
        budget: Budget,
    },
}

/// What the caller has to do. Doing one late costs time only; doing one twice does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Let the worker run: it holds a CPU from now on. If its thread waits, let it go on; if it is dormant (there is
    /// demand, but no doorbell rang), ring its doorbell. Take a reclaim request for it back first.
    Admit {
        /// The worker's CVM.
        cvm: CvmId,
        /// The worker.
        worker: WorkerIndex,
    },
    /// Ask the worker to park at its next safe point, and stop it by force after the grace time.
    Reclaim {
        /// The worker's CVM.
        cvm: CvmId,
        /// The worker.
        worker: WorkerIndex,
    },
    /// Tell the guest how many workers it may have active: its maximum while nothing limits it, else what it has.
    /// A guest that rings more doorbells than that only has its workers wait.
    Grant {
        /// The CVM.
        cvm: CvmId,
        /// Workers.
        workers: u8,
    },
    /// Give [`Event::Timer`] at this instant. Replaces the last one.
    SetTimer {
        /// When.
        at: Nanos,
    },
}
