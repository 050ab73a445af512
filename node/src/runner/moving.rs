//! CVMs that move: one that is to go keeps its seat until it is gone, one that comes has none until it runs.

use super::live::Live;
use super::machine::{Ended, Machine};
use super::{Held, Runner};
use crate::limits::TenantLimits;
use crate::names::TenantName;
use crate::platform::Manifest;
use crate::tenants::Tenant;
use nacre_attest::manifest::SignedManifest;
use nacre_vmm::evidence::{LaunchShape, measurement};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// A tenant's CVM that is to move, and is not idle until this is dropped.
pub struct Departing {
    live: Arc<Live>,
    held: Held,
}

impl Departing {
    /// The CVM.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.live.machine
    }
}

/// A CVM that receives a tenant.
pub struct Arriving(Arc<Live>);

impl Arriving {
    /// The CVM.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.0.machine
    }
}

/// Names the guest image and the shape of a tenant's CVM: nodes between which it moves need the same. What the processor adds to the
/// measurement is for the guests to judge.
///
/// # Errors
/// [`Ended`] for a shape that no CVM can have.
pub fn image_of(limits: &TenantLimits) -> Result<String, Ended> {
    let shape = LaunchShape {
        vcpus: limits.workers_max + 1,
        memory_bytes: limits.memory_bytes,
        debug_image: false,
        xcr0: 0,
    };
    Ok(crate::names::hex(&measurement(shape)?))
}

impl Runner {
    /// The tenant's CVM, to be moved; none if none runs.
    #[must_use]
    pub fn departing(self: &Arc<Self>, tenant: &Arc<Tenant>) -> Option<Departing> {
        let seat = self.seat(tenant);
        seat.busy.fetch_add(1, Ordering::SeqCst);
        let held = Held(self.clone(), seat);
        let live = held.1.get().filter(|live| !live.machine.has_ended())?;
        Some(Departing { live, held })
    }

    /// The machine of a tenant that is here.
    #[must_use]
    pub fn machine(&self, tenant: &Arc<Tenant>) -> Option<Arc<Machine>> {
        self.seat(tenant).get().map(|live| live.machine.clone())
    }

    /// The tenant is not in this CVM any more: nobody finds it.
    pub fn vacate(&self, departing: &Departing) {
        drop(departing.held.1.take(Some(&departing.live)));
    }

    /// Launches a CVM for a tenant that is to come, with the manifest and shape that it has.
    ///
    /// # Errors
    /// [`Ended`] if there can be none.
    pub async fn receive(
        &self,
        tenant: &TenantName,
        limits: &TenantLimits,
        manifest: Arc<[u8]>,
    ) -> Result<Arriving, Ended> {
        let signed = SignedManifest::decode(&manifest);
        let signed = signed.map_err(|error| Ended(format!("the manifest is damaged: {error}")))?;
        let manifest = Manifest { hash: signed.hash(), bytes: manifest };
        self.make_room(None).await?;
        self.launch_bare(tenant, limits, Some(manifest)).await.map(Arriving)
    }

    /// The tenant runs in the CVM that received it.
    pub fn settle(&self, tenant: &Arc<Tenant>, arriving: &Arriving) {
        let seat = self.seat(tenant);
        // What it was provisioned with has come along.
        arriving.0.sealing.provisioned();
        *seat.live.write().unwrap_or_else(PoisonError::into_inner) = Some(arriving.0.clone());
        seat.last_used.store(self.now_ms(), Ordering::Relaxed);
        self.changed.notify_one();
        seat.launched.notify_waiters();
    }

    /// Ends the tenant's CVM and leaves the tenant without one.
    pub async fn abandon(&self, tenant: &Arc<Tenant>) {
        if let Some(live) = self.seat(tenant).take(None) {
            live.machine.stop().await;
        }
    }
}
