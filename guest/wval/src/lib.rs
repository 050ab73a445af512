//! Worker vCPU Abstraction Layer (WVAL): the pure, lock-free core of the guest's scheduler.
//!
//! Here live the data structures and the decisions: which task runs next, who must be woken, when a vCPU may
//! sleep, who has reached a safe point. What does *not* live here: context switches, Wasm, hypercalls, memory
//! allocation. All memory is given by the caller; nothing here faults, blocks or allocates.
//!
//! # The one requirement that shapes everything
//! The host may stop a vCPU at any instruction for any time. That may hold up the task this vCPU runs, and what
//! waits for that task, and nothing else. Therefore there is no lock, no operation that waits for another vCPU,
//! and no suppression of wakes because "somebody else is about to look". Three consequences are easy to undo by
//! accident:
//! - No batch stealing: a thief stopped between taking n tasks and publishing them again would take all n along.
//! - No "a worker is already searching, so do not wake another": that searcher may never run again.
//! - Claiming a parked worker is not the same as having woken it; see [`IdleSet`].
//!
//! What a stopped vCPU does hold: the task it runs or has just taken, and tasks whose wake it has won
//! ([`Unpark::Push`]) and not yet pushed. Keep nothing between those two calls. When its wake arrives over two
//! ways, such a task waits for the vCPU which won.
//!
//! # The worker loop
//! ```text
//! loop {
//!     match vcpu.next() {
//!         Next::Run { task, wake } => {
//!             ring(wake);                                       // hypercall, then scheduler.wake_sent(ticket)
//!             let why = switch_to(task);                        // runs until the fiber switches back
//!             match task.park_state.commit(why) {               // on the scheduler's stack, context saved
//!                 Commit::Requeue => ring(vcpu.requeue(task, its priority)),
//!                 Commit::Parked => {}                          // the task is no longer ours: do not touch it
//!                 Commit::Exited => free(task),
//!             }
//!         }
//!         other => {
//!             match other {
//!                 Next::Reclaimed { wake } => ring(wake),       // not allowed to run: its queue goes to others
//!                 _ => if spin(policy.budget_ns(limit), || vcpu.has_work()) { continue },
//!             }
//!             vcpu.announce();
//!             if !vcpu.has_work() { park_hypercall() }          // plus whatever else it must stay awake for
//!             vcpu.retract();                                   // always, also after a spurious return
//!         }
//!     }
//! }
//! ```
//! At a safe point the running task asks [`Vcpu::should_yield`]; whoever brings tasks there asks [`Scheduler::tick`] when.
//! Every push goes into the queue of the task's [`Priority`]; see [`Scheduler`]'s module for the order and what keeps low ones
//! from starving. The host's grant becomes [`Scheduler::set_allowed`], a reclaim [`Scheduler::disallow`]; after every change that
//! lets somebody run (grant, resume) the caller rings until [`Scheduler::claim_for_backlog`] says `None`.
//!
//! # Tests
//! ```text
//! cargo test -p nacre-wval                                             # unit, property and stress tests
//! RUSTFLAGS="--cfg loom" cargo test -p nacre-wval --release --test loom  # every interleaving, within bounds
//! RUSTFLAGS="--cfg stepped" cargo test -p nacre-wval --release --test hostile  # a hostile host, on seeds
//! ```
//! The loom tests set their own bound on preemptions (`LOOM_MAX_PREEMPTIONS` overrides it); use a target folder
//! of its own, because the flag rebuilds everything.
#![cfg_attr(not(any(test, loom, stepped)), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![allow(unexpected_cfgs, reason = "cfg(loom) and cfg(stepped) are set by hand, for their tests only")]

mod idle;
mod ids;
mod inbox;
mod park;
mod priority;
mod queue;
mod rendezvous;
mod sched;
mod spin;
mod stop;
pub mod sync;
mod timer;

pub use idle::{IdleSet, Retract, WakeTicket};
pub use ids::{TaskRef, VcpuMask};
pub use inbox::{
    InboxError, SenderFull, TimerInbox, TimerReceiver, TimerRing, TimerSender, WORDS_PER_MESSAGE,
};
pub use nacre_abi::VcpuId;
pub use park::{Commit, CommitPark, ParkState, PreparePark, Switch, Unpark};
pub use priority::{CLASSES, LANES, Priority};
pub use queue::{Full, Owner, RingError, RunQueue};
pub use rendezvous::{Epoch, Rendezvous};
pub use sched::{
    FAIRNESS_INTERVAL, Load, Next, SchedError, Scheduler, Stopped, Submitted, Tick, Vcpu, VcpuSlot,
};
pub use spin::SpinPolicy;
pub use stop::{Completion, Limits, StopReason, StopRequest};
pub use timer::{Arm, Expired, TimerError, TimerQueue, TimerSlot, TimerToken};
