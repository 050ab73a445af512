//! What crosses the boundary between the guest and its host, and nothing else.
//!
//! * [`layout`]: where things are in guest-physical and guest-virtual memory; a pure function of the launch parameters,
//!   so that the launcher, the guest and an offline measurement agree.
//! * [`boot`]: the measured page that tells the guest its launch parameters.
//! * [`hypercall`]: the port numbers of the few operations a guest asks its host for.
//! * [`window`]: the shared window: the control page and the rings in it.
//! * [`elastic`]: the shared page in it, by which guest and host agree on who runs.
//! * [`attest`]: how reports, manifests, packages and session records travel.
//! * [`ring`]: a byte ring between two parties that do not trust each other.
//! * [`pipe`]: a stream of bytes, for the frames of a migration. [`migrate`]: how one is begun, followed and ended.
//! * [`message`]: the messages on those rings. [`call`]: what the request and the answer of a call hold. [`socket`]: TCP
//!   connections, and their flow control.
//!
//! Both sides compile this crate. Its numbers are an interface: each is pinned by a `const` assert, and a change is a
//! new [`ABI_VERSION`]. The crate is `no_std` except under test, so that fuzzers and host tools can drive it.
#![cfg_attr(not(any(test, stepped)), no_std)]
#![forbid(unsafe_code)]

pub mod attest;
pub mod boot;
pub mod call;
pub mod elastic;
pub mod hypercall;
pub mod layout;
pub mod message;
pub mod migrate;
pub mod pipe;
pub mod ring;
pub mod socket;
pub mod spawn;
#[cfg(not(stepped))]
mod sync;
#[cfg(stepped)]
pub mod sync;
pub mod window;

/// Version of everything in this crate; host and guest of one Nacre binary always have the same.
pub const ABI_VERSION: u32 = 4;

/// Bytes in a small page and in the smallest unit of memory accounting.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes in a large page (one page-directory entry).
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// vCPUs in a CVM at most: one normal vCPU and 63 Worker vCPUs, so that a set of them fits one machine word.
pub const MAX_VCPUS: u32 = 64;

/// A number that identifies a vCPU: 0 is the normal vCPU, 1.. are Worker vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(u8);

impl VcpuId {
    /// The normal vCPU.
    pub const NORMAL: VcpuId = VcpuId(0);

    /// The vCPU with this index, or `None` beyond [`MAX_VCPUS`].
    pub const fn new(index: u32) -> Option<VcpuId> {
        if index < MAX_VCPUS { Some(VcpuId(index as u8)) } else { None }
    }

    /// Its index, below [`MAX_VCPUS`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The word with only this vCPU's bit set.
    pub const fn bit(self) -> u64 {
        1 << self.0
    }

    /// Whether this is a Worker vCPU.
    pub const fn is_worker(self) -> bool {
        self.0 != 0
    }
}
