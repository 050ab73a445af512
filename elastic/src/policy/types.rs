//! The words of the policy: instants, names of CVMs and workers, limits, budget and tuning. Whatever can be wrong
//! about them is refused here or in `Manager::configure`, with an error that says what to do.

use super::error::PolicyError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

/// The most workers a CVM can have: vCPU 0 is the normal vCPU, vCPUs 1 to 63 are workers.
pub const MAX_WORKERS: u8 = 63;

/// The greatest [`CvmId`]. The manager keeps a table up to the greatest one in use, so callers reuse small numbers.
pub const MAX_CVM_ID: u32 = (1 << 20) - 1;

/// The greatest weight, as in Linux' cgroups.
pub const MAX_WEIGHT: u32 = 10_000;

/// The greatest [`Budget`].
pub const MAX_BUDGET: u32 = 65_536;

/// An instant: nanoseconds since a moment that the caller chose once. Instants that go back count as the latest seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nanos(pub u64);

impl Nanos {
    /// This instant and `duration` more, at most the last instant there is.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(duration)))
    }
}

/// A duration in whole nanoseconds, at most `u64::MAX` (584 years).
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The number by which the caller names a CVM, at most [`MAX_CVM_ID`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CvmId(pub u32);

impl fmt::Display for CvmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A worker of a CVM, 1 to 63: the number of its vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct WorkerIndex(u8);

impl WorkerIndex {
    /// The worker on vCPU `index`; none for 0, the normal vCPU, and beyond [`MAX_WORKERS`].
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if index >= 1 && index <= MAX_WORKERS { Some(Self(index)) } else { None }
    }

    /// The number of the vCPU, 1 to 63.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The worker's bit in a set of workers.
    pub(crate) const fn bit(self) -> u64 {
        1 << self.0
    }

    /// Its place in a table that has no entry for vCPU 0.
    pub(crate) const fn place(self) -> usize {
        self.0 as usize - 1
    }
}

impl TryFrom<u8> for WorkerIndex {
    type Error = PolicyError;

    fn try_from(index: u8) -> Result<Self, PolicyError> {
        Self::new(index).ok_or(PolicyError::NoSuchWorker { worker: index })
    }
}

impl From<WorkerIndex> for u8 {
    fn from(worker: WorkerIndex) -> u8 {
        worker.0
    }
}

/// What a CVM may have. Valid by construction: `min <= max <= 63`, `weight <= 10,000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawLimits")]
pub struct Limits {
    weight: NonZeroU32,
    min_workers: u8,
    max_workers: u8,
}

/// [`Limits`] as they are written, before they are checked.
#[derive(Deserialize)]
struct RawLimits {
    weight: NonZeroU32,
    min_workers: u8,
    max_workers: u8,
}

impl TryFrom<RawLimits> for Limits {
    type Error = PolicyError;

    fn try_from(raw: RawLimits) -> Result<Self, PolicyError> {
        Self::new(raw.weight, raw.min_workers, raw.max_workers)
    }
}

impl Limits {
    /// Limits of a CVM whose share is proportional to `weight` (as in cgroups: 100 is usual), that gets `min_workers`
    /// at once whenever it wants them, and never more than `max_workers`.
    ///
    /// # Errors
    /// If the minimum is above the maximum, or a number is too great.
    pub fn new(weight: NonZeroU32, min_workers: u8, max_workers: u8) -> Result<Self, PolicyError> {
        if weight.get() > MAX_WEIGHT {
            return Err(PolicyError::Weight { weight: weight.get() });
        }
        if max_workers > MAX_WORKERS {
            return Err(PolicyError::MaxWorkers { max: max_workers });
        }
        if min_workers > max_workers {
            return Err(PolicyError::MinAboveMax { min: min_workers, max: max_workers });
        }
        Ok(Self { weight, min_workers, max_workers })
    }

    /// The share's weight.
    #[must_use]
    pub const fn weight(self) -> NonZeroU32 {
        self.weight
    }

    /// Workers that are admitted without regard to fairness.
    #[must_use]
    pub const fn min_workers(self) -> u8 {
        self.min_workers
    }

    /// Workers on a CPU at most.
    #[must_use]
    pub const fn max_workers(self) -> u8 {
        self.max_workers
    }
}

/// Physical CPUs to share, 1 to [`MAX_BUDGET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Budget(u32);

impl Budget {
    /// A budget of `cpus` whole physical CPUs.
    ///
    /// # Errors
    /// If it is 0 or above [`MAX_BUDGET`].
    pub const fn new(cpus: u32) -> Result<Self, PolicyError> {
        if cpus == 0 || cpus > MAX_BUDGET { Err(PolicyError::Budget { cpus }) } else { Ok(Self(cpus)) }
    }

    /// The number of CPUs.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Budget {
    type Error = PolicyError;

    fn try_from(cpus: u32) -> Result<Self, PolicyError> {
        Self::new(cpus)
    }
}

impl From<Budget> for u32 {
    fn from(budget: Budget) -> u32 {
        budget.0
    }
}

/// How eagerly the manager corrects unfairness. The defaults are right unless a measurement says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// A worker admitted less than this ago is not reclaimed for fairness (for a minimum, a lower maximum or a lower
    /// budget it is). Default 1 ms: fifty times what a wake costs, so that flapping wastes at most 2-10 % of a CPU.
    pub min_hold: Duration,
    /// How much CPU time CVMs may be apart before a CPU changes hands, where shares are fractions of a CPU: the
    /// length of a turn. Default 10 ms.
    pub quantum: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { min_hold: Duration::from_millis(1), quantum: Duration::from_millis(10) }
    }
}

impl Tuning {
    /// Checks that 100 us <= quantum <= 10 s and that the hold is at most the quantum.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.quantum < Duration::from_micros(100) || self.quantum > Duration::from_secs(10) {
            return Err(PolicyError::Quantum { quantum: self.quantum });
        }
        if self.min_hold > self.quantum {
            return Err(PolicyError::Hold { hold: self.min_hold, quantum: self.quantum });
        }
        Ok(())
    }
}
