//! Where a test takes the place of the host, to misbehave: see docs/hostile-host.md.
//!
//! The VMM itself is honest. Whoever launches a CVM may hand it a [`Hooks`], which is asked where a host decides
//! something that the guest must not have to trust. The misbehaviour itself is in the test package `nacre-hostile`, which
//! no other package depends on.

use crate::vcpu::Shared;
use kvm_bindings::CpuId;
pub use kvm_ioctls::VcpuFd;
use nacre_abi::VcpuId;
use std::sync::Arc;

/// What a test does in the host's place. Each method as it is here does what an honest host does.
pub trait Hooks: Send + Sync {
    /// What the guest is told about its processor, before the first vCPU is made: CPUID, and the value of XCR0.
    fn processor(&self, _cpuid: &mut CpuId, _xcr0: &mut u64) {}

    /// The control page is written and no vCPU has run. Keep `shared` weakly: it owns the hooks.
    fn starting(&self, _shared: &Arc<Shared>) {}

    /// The vCPU is about to enter the guest. Called on its thread, as often as it does; the vCPU stands still meanwhile.
    fn entering(&self, _id: VcpuId, _vcpu: &VcpuFd, _shared: &Shared) {}

    /// A wake was taken from the event of this sleeping vCPU. Called on its thread. False: it goes on sleeping, as if
    /// there had been none.
    fn woken(&self, _id: VcpuId, _shared: &Shared) -> bool {
        true
    }
}
