//! Elastic CPU on the host: which Worker vCPUs run on which physical CPUs, and when.
//!
//! ```text
//!   Dormant --doorbell--> Waiting --admitted--> Active --PARK--> Dormant
//!      |                     ^                     |
//!      +--admitted (demand)--|----------> Active   +--stopped by force after the grace time--> Waiting
//! ```
//! * [`seat`]: what one worker's thread does: it sleeps in the kernel while dormant, asks the manager when its doorbell
//!   rings, and sleeps again until it is admitted. The decision is made in that thread; when a CPU is free nobody else
//!   is involved.
//! * [`manager`]: [`CpuManager`] shares a budget of CPUs over all CVMs that were launched with it. What it decides is
//!   nacre-elastic's policy; here are its clock, its lock and what carries its actions out.
//! * `member`: one CVM under a manager: which workers may run, told to the guest through the shared page.
//! * `timer`: one thread for grace times and the policy's timer, made when the first is needed.
//!
//! Everything a guest says on the shared page is a hint: its demand is a level out of eight, and a worker it wakes waits
//! for its turn. A guest that asks for more than it may have does not get it.

pub mod manager;
mod member;
pub mod seat;
mod timer;

pub use manager::{CpuConfig, CpuManager};
pub use member::{Ended, PendingReclaim, Reclaimed};
pub use nacre_elastic::policy::PolicyError;

use nacre_abi::elastic::{SPIN_LIMIT_DEFAULT_NS, SPIN_LIMIT_MAX_NS};
use std::sync::Arc;
use std::time::Duration;

/// Time that a worker has to park after it was asked to, unless configured otherwise: 5 ms. Compiled code comes to a safe
/// point within microseconds; what takes longer is a large `memory.fill` or a file of many MiB.
pub const DEFAULT_GRACE: Duration = Duration::from_millis(5);

/// How a CVM takes part in the elastic CPU.
#[derive(Clone, Debug)]
pub struct ElasticConfig {
    /// Who decides; without one the CVM has a manager of its own that never says no.
    pub manager: Option<Arc<CpuManager>>,
    /// What it may have.
    pub limits: CpuLimits,
    /// Time that a worker has to park after it was asked to, before it is stopped by force.
    pub grace: Duration,
    /// What a wake is worth: workers spin for at most this long, and only where that is likely to save a wake. 0 for none,
    /// at most 10 ms.
    pub spin_limit: Duration,
}

impl Default for ElasticConfig {
    fn default() -> ElasticConfig {
        ElasticConfig {
            manager: None,
            limits: CpuLimits::default(),
            grace: DEFAULT_GRACE,
            spin_limit: Duration::from_nanos(SPIN_LIMIT_DEFAULT_NS),
        }
    }
}

/// How many workers a CVM may have active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuLimits {
    /// Its share relative to other CVMs: 1 to 10,000.
    pub weight: u32,
    /// Workers it always gets at once.
    pub min: u32,
    /// Workers it gets at most; `None` for all it was launched with.
    pub max: Option<u32>,
}

impl Default for CpuLimits {
    fn default() -> CpuLimits {
        CpuLimits { weight: 100, min: 0, max: None }
    }
}

/// What cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElasticError {
    /// Impossible limits or budget.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A weight of nothing.
    #[error("a weight of 0 is impossible; give 1 to 10000")]
    NoWeight,
    /// More workers than there are.
    #[error("this CVM has {launched} workers, not {asked}; launch it with more, or ask for fewer")]
    Workers {
        /// What was asked for.
        asked: u32,
        /// What it was launched with.
        launched: u32,
    },
    /// vCPU 0, or a worker this CVM has not.
    #[error("vCPU {0} is no worker of this CVM; its workers are 1 to {1}")]
    NoSuchWorker(usize, u32),
    /// A spin limit that no guest follows.
    #[error("a spin limit of {0:?} is too long; give at most 10ms")]
    SpinLimit(Duration),
    /// A CPU to pin to that this process may not use.
    #[error("workers can't be pinned to CPU {0}; name CPUs that this process may use")]
    Pin(usize),
    /// More CVMs than a manager has numbers for.
    #[error("this CPU manager has as many CVMs as it can; end some, or use another manager")]
    Full,
    /// The CVM has ended.
    #[error("the CVM has ended")]
    Gone,
}

/// A spin limit for the shared page.
pub(crate) fn spin_limit_word(limit: Duration) -> Result<u64, ElasticError> {
    let ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    if ns > SPIN_LIMIT_MAX_NS { Err(ElasticError::SpinLimit(limit)) } else { Ok(ns) }
}

/// What the CPUs of a CVM have done.
#[derive(Clone, Debug)]
pub struct CpuStats {
    /// The CVM's number under its manager.
    pub cvm: u32,
    /// Workers launched.
    pub workers: u32,
    /// Workers that may run now.
    pub grant: u32,
    /// What the guest asks for beyond that: a level.
    pub demand: u32,
    /// Set of workers on a CPU, bit n for worker n.
    pub active: u64,
    /// Set of workers that wait for a CPU.
    pub waiting: u64,
    /// By vCPU; vCPU 0 is not under the manager, only its `cpu_time` counts.
    pub vcpus: Vec<seat::VcpuCpu>,
}

impl CpuStats {
    /// CPU time of all vCPU threads, by the kernel's clocks.
    pub fn cpu_time(&self) -> Duration {
        self.vcpus.iter().map(|vcpu| vcpu.cpu_time).sum()
    }

    /// One counter, summed over all vCPUs.
    pub fn sum(&self, counter: impl Fn(&seat::VcpuCpu) -> u64) -> u64 {
        self.vcpus.iter().map(counter).sum()
    }
}
