//! What can be wrong with a configuration. Events from guests are never errors: they are ignored and counted.

use super::types::{CvmId, MAX_BUDGET, MAX_CVM_ID, MAX_WEIGHT, MAX_WORKERS};
use std::time::Duration;
use thiserror::Error;

/// A configuration that the manager refuses; its state is then unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// No CPUs at all, or absurdly many.
    #[error("a budget of {cpus} CPUs is impossible; give 1 to {MAX_BUDGET}")]
    Budget {
        /// What was asked for.
        cpus: u32,
    },
    /// A weight beyond the greatest.
    #[error("weight {weight} is too great; give 1 to {MAX_WEIGHT}")]
    Weight {
        /// What was asked for.
        weight: u32,
    },
    /// More workers than a CVM can have.
    #[error("a CVM cannot have {max} workers; give at most {MAX_WORKERS}")]
    MaxWorkers {
        /// What was asked for.
        max: u8,
    },
    /// The minimum is above the maximum.
    #[error(
        "the minimum of {min} workers is above the maximum of {max}; lower the minimum or raise the maximum"
    )]
    MinAboveMax {
        /// The minimum asked for.
        min: u8,
        /// The maximum asked for.
        max: u8,
    },
    /// The maximum is above the number of workers that exist in the CVM.
    #[error(
        "CVM {cvm} was launched with {launched} workers, not {max}; lower the maximum or launch it with more"
    )]
    NotLaunched {
        /// The CVM.
        cvm: CvmId,
        /// The maximum asked for.
        max: u8,
        /// The workers it has.
        launched: u8,
    },
    /// All minimums together are more than the budget.
    #[error(
        "the CVMs' minimums add up to {sum} CPUs, but the budget is {budget}; lower a minimum or raise the budget"
    )]
    MinsOverBudget {
        /// The sum of minimums that the change would bring.
        sum: u64,
        /// The budget.
        budget: u32,
    },
    /// The CVM was never added, or is removed.
    #[error("CVM {cvm} is unknown; add it first, or check the number")]
    UnknownCvm {
        /// The number that names nothing.
        cvm: CvmId,
    },
    /// The number names a CVM already.
    #[error("CVM {cvm} exists already; remove it first, or choose another number")]
    Duplicate {
        /// The number in use.
        cvm: CvmId,
    },
    /// The number is beyond the table.
    #[error("CVM number {cvm} is too great; use numbers up to {MAX_CVM_ID}")]
    IdTooGreat {
        /// The number.
        cvm: CvmId,
    },
    /// vCPU 0 or a number beyond the last worker.
    #[error("vCPU {worker} is not a worker; workers are 1 to {MAX_WORKERS}")]
    NoSuchWorker {
        /// The number.
        worker: u8,
    },
    /// The quantum is out of range.
    #[error("a quantum of {quantum:?} is impossible; give 100us to 10s")]
    Quantum {
        /// What was asked for.
        quantum: Duration,
    },
    /// The hold is longer than the quantum.
    #[error(
        "a hold of {hold:?} is longer than the quantum of {quantum:?}; lower the hold or raise the quantum"
    )]
    Hold {
        /// The hold asked for.
        hold: Duration,
        /// The quantum.
        quantum: Duration,
    },
}
