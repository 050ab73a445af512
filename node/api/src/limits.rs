//! Limits of tenants and of actions: what they are by default, and what they may be set to.

use crate::names::EntityName;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Largest JSON object that an action is called with, in bytes.
pub const MAX_PARAMETERS_BYTES: usize = 1 << 20;
/// Largest JSON object that an action may give back, in bytes.
pub const MAX_RESULT_BYTES: usize = 1 << 20;
/// Longest a blocking call waits before it becomes a non-blocking one.
pub const MAX_BLOCKING: Duration = Duration::from_secs(60);
/// Parameters and annotations of all actions of one tenant, in bytes: they are kept in memory.
pub const MAX_METADATA_BYTES: usize = 16 << 20;
/// Smallest memory of a CVM, in bytes; what can be launched decides the VMM.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// Largest memory of a CVM, in bytes.
pub const MAX_MEMORY_BYTES: u64 = 64 << 30;
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Why limits are impossible, with the remedy after "; ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// A number out of its range.
    #[error("{what} of {value} is out of range; give {min} to {max}")]
    Range {
        /// Which limit, with its unit.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
}

fn within(what: &'static str, value: u64, min: u64, max: u64) -> Result<(), LimitError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(LimitError::Range { what, value, min, max }) }
}

/// What one tenant may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TenantLimits {
    /// Memory of its CVM in bytes.
    pub memory_bytes: u64,
    /// Workers its CVM always gets at once.
    pub workers_min: u32,
    /// Workers its CVM gets at most, 1 to 63.
    pub workers_max: u32,
    /// Its share of the CPUs relative to other tenants, 1 to 10000.
    pub cpu_weight: u32,
    /// Activations at once.
    pub concurrency: u32,
    /// Largest body of one request, in bytes.
    pub request_bytes: u64,
    /// Bodies of all its requests at once, in bytes.
    pub requests_bytes: u64,
    /// Longest time limit of an action, in milliseconds.
    pub time_ms: u64,
    /// Actions and services it may have.
    pub actions: u32,
    /// Activations that are kept.
    pub activations: u32,
    /// Bytes of activations that are kept.
    pub activations_bytes: u64,
    /// How long its CVM is kept without work, in milliseconds.
    pub idle_ms: u64,
    /// Connections of all its services at once.
    pub connections: u32,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            workers_min: 0,
            workers_max: 4,
            cpu_weight: 100,
            concurrency: 100,
            request_bytes: 64 << 20,
            requests_bytes: 256 << 20,
            time_ms: 300_000,
            actions: 2_000,
            activations: 10_000,
            activations_bytes: 64 << 20,
            idle_ms: 600_000,
            connections: 10_000,
        }
    }
}

impl TenantLimits {
    /// Checks all of them; memory is rounded up to what a CVM can have.
    ///
    /// # Errors
    /// [`LimitError`] for the first that is impossible.
    pub fn checked(mut self) -> Result<Self, LimitError> {
        within("memory in bytes", self.memory_bytes, MIN_MEMORY_BYTES, MAX_MEMORY_BYTES)?;
        self.memory_bytes = self.memory_bytes.next_multiple_of(HUGE_PAGE_BYTES);
        within("the largest number of workers", self.workers_max.into(), 1, 63)?;
        within("the smallest number of workers", self.workers_min.into(), 0, self.workers_max.into())?;
        within("the CPU weight", self.cpu_weight.into(), 1, 10_000)?;
        within("concurrency", self.concurrency.into(), 1, 100_000)?;
        within("the request size in bytes", self.request_bytes, 1 << 10, 1 << 30)?;
        within("the size of all requests in bytes", self.requests_bytes, self.request_bytes, 16 << 30)?;
        within("the time limit in ms", self.time_ms, 100, 86_400_000)?;
        within("the number of actions", self.actions.into(), 1, 1_000_000)?;
        within("the number of activations", self.activations.into(), 1, 10_000_000)?;
        within("the size of activations in bytes", self.activations_bytes, 1 << 20, 1 << 40)?;
        within("the idle time in ms", self.idle_ms, 1, 31_536_000_000)?;
        within("the number of connections", self.connections.into(), 1, 1_000_000)?;
        Ok(self)
    }
}

/// What one activation of an action may use. OpenWhisk's names, units and ranges, but for the time, which goes as far as the
/// tenant's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ActionLimits {
    /// Milliseconds.
    pub timeout: u64,
    /// MiB of linear memory.
    pub memory: u64,
    /// MiB of logs.
    pub logs: u64,
    /// Activations of it at once; kept and shown, the tenant's own limit is what counts.
    pub concurrency: u64,
}

impl Default for ActionLimits {
    fn default() -> Self {
        Self { timeout: 60_000, memory: 256, logs: 1, concurrency: 1 }
    }
}

impl ActionLimits {
    /// Checks them against the tenant's.
    ///
    /// # Errors
    /// [`LimitError`] for the first that is impossible.
    pub fn checked(self, tenant: &TenantLimits) -> Result<Self, LimitError> {
        within("limits.timeout in ms", self.timeout, 100, tenant.time_ms)?;
        within("limits.memory in MiB", self.memory, 1, tenant.memory_bytes >> 20)?;
        within("limits.logs in MiB", self.logs, 0, 10)?;
        within("limits.concurrency", self.concurrency, 1, 100_000)?;
        Ok(self)
    }
}

/// The size of what an action keeps in memory, in bytes.
#[must_use]
pub fn metadata_bytes(name: &EntityName, pairs: &[&[crate::records::KeyValue]]) -> usize {
    let values: usize =
        pairs.iter().copied().flatten().map(|pair| pair.key.len() + pair.value.get().len() + 48).sum();
    name.as_str().len() + values + 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_possible_and_memory_is_rounded() {
        let limits = TenantLimits::default().checked().unwrap();
        assert_eq!(limits, TenantLimits::default());
        let odd = TenantLimits { memory_bytes: (64 << 20) + 1, ..TenantLimits::default() };
        assert_eq!(odd.checked().unwrap().memory_bytes, 66 << 20);
        assert!(ActionLimits::default().checked(&limits).is_ok());
    }

    #[test]
    fn impossible_limits_are_refused() {
        let base = TenantLimits::default;
        for limits in [
            TenantLimits { memory_bytes: 1, ..base() },
            TenantLimits { workers_max: 0, ..base() },
            TenantLimits { workers_max: 64, ..base() },
            TenantLimits { workers_min: 5, ..base() },
            TenantLimits { cpu_weight: 0, ..base() },
            TenantLimits { concurrency: 0, ..base() },
            TenantLimits { requests_bytes: 1 << 20, ..base() },
            TenantLimits { idle_ms: 0, ..base() },
        ] {
            assert!(limits.clone().checked().is_err(), "{limits:?}");
        }
        let tenant = base();
        let action = ActionLimits::default;
        for limits in [
            ActionLimits { timeout: 99, ..action() },
            ActionLimits { timeout: 300_001, ..action() },
            ActionLimits { memory: 513, ..action() },
            ActionLimits { logs: 11, ..action() },
        ] {
            assert!(limits.checked(&tenant).is_err(), "{limits:?}");
        }
    }
}
