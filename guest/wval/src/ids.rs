//! Identities: sets of vCPUs, opaque task references. A vCPU's number is [`nacre_abi::VcpuId`].

use core::num::NonZeroU64;

use nacre_abi::{MAX_VCPUS, VcpuId};

/// A set of vCPUs, bit n for vCPU n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuMask(pub u64);

impl VcpuMask {
    /// No vCPU.
    pub const EMPTY: VcpuMask = VcpuMask(0);

    /// The vCPUs 0 to `count - 1`.
    pub const fn first(count: usize) -> Self {
        if count >= MAX_VCPUS as usize { VcpuMask(u64::MAX) } else { VcpuMask((1 << count) - 1) }
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many vCPUs are in the set.
    pub const fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether `v` is in the set.
    pub const fn contains(self, v: VcpuId) -> bool {
        self.0 & v.bit() != 0
    }

    /// The set with `v`.
    #[must_use]
    pub const fn with(self, v: VcpuId) -> Self {
        VcpuMask(self.0 | v.bit())
    }

    /// The set without `v`.
    #[must_use]
    pub const fn without(self, v: VcpuId) -> Self {
        VcpuMask(self.0 & !v.bit())
    }

    /// What is in both sets.
    #[must_use]
    pub const fn and(self, other: VcpuMask) -> Self {
        VcpuMask(self.0 & other.0)
    }

    /// The members, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = VcpuId> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            // An empty word has 64 trailing zeros, which is no vCPU's number.
            let v = VcpuId::new(rest.trailing_zeros())?;
            rest &= !v.bit();
            Some(v)
        })
    }
}

/// An opaque reference to a task, usually its address. This crate never looks behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskRef(NonZeroU64);

impl TaskRef {
    /// Wraps a value; zero is no task.
    pub const fn new(raw: u64) -> Option<Self> {
        match NonZeroU64::new(raw) {
            Some(raw) => Some(TaskRef(raw)),
            None => None,
        }
    }

    /// The value given to [`TaskRef::new`].
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn mask_covers_all_vcpus_and_iterates_in_order() {
        assert_eq!(VcpuMask::first(64), VcpuMask(u64::MAX));
        assert_eq!(VcpuMask::first(63).0, u64::MAX >> 1);
        let last = VcpuId::new(63).unwrap();
        assert!(VcpuId::new(64).is_none());
        let m = VcpuMask::EMPTY.with(last).with(VcpuId::NORMAL);
        assert_eq!(m.iter().collect::<Vec<_>>(), [VcpuId::NORMAL, last]);
        assert_eq!((m.count(), m.without(last).count(), m.contains(last)), (2, 1, true));
    }

    #[test]
    fn zero_is_no_task() {
        assert!(TaskRef::new(0).is_none());
        assert_eq!(TaskRef::new(7).unwrap().get(), 7);
    }
}
