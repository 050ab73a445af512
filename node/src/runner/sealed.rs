//! Sealed CVMs: packages that are brought in, offers of sessions, records, and whom to wait for before a CVM is of use.
//!
//! A CVM that is new holds ciphertext only. A key broker, which is a client of the node like others, asks by
//! [`Runner::unprovisioned`] whether there is such a one, opens a session with it, orders the installation of each package, and says
//! so by [`Runner::provisioned`]. Other clients' requests for evidence wait for that, if a broker was here a moment ago. All of it is for
//! their convenience: what the node says here proves nothing to anybody.

use super::live::Live;
use super::machine::{CallFailed, Code, RecordLimits};
use super::{Busy, Runner, Seat};
use crate::limits::{MAX_RESULT_BYTES, TenantLimits};
use crate::names::PackageId;
use crate::records::Package;
use crate::tenants::{Standing, Tenant};
use nacre_vmm::evidence::EvidenceError;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// A broker counts as present for so long after it has asked.
const BROKER_PRESENT: Duration = Duration::from_secs(60);
/// How long others wait for it to provision a CVM.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one answer to a record: a call's outputs, twice, and what is around them.
const ANSWER_BYTES: usize = 2 * MAX_RESULT_BYTES + (4 << 20);

/// Why a sealed CVM gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// There is no CVM, or it ended.
    #[error("the CVM ended: {0}; ask for new evidence")]
    Ended(String),
    /// The guest refuses, or has no time.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The tenant runs at another node since; it was not handed over.
    #[error("the tenant has moved to another node meanwhile; send the request again")]
    Moved,
    /// The record can't be handed over.
    #[error("the record is refused: {0}")]
    Refused(String),
}

/// What a CVM has to do with sealed code.
pub(super) struct Sealing {
    /// Tells one CVM of a tenant from the next.
    generation: u64,
    packages: Mutex<HashMap<PackageId, Code>>,
    provisioned: watch::Sender<bool>,
}

impl Sealing {
    pub(super) fn new(generation: u64) -> Self {
        Self { generation, packages: Mutex::default(), provisioned: watch::Sender::new(false) }
    }

    /// It has all it needs.
    pub(super) fn provisioned(&self) {
        self.provisioned.send_replace(true);
    }
}

impl Runner {
    /// Brings all packages of its tenant into a CVM that is new. One that the guest does not take is left out: whoever orders its
    /// installation is told.
    pub(super) async fn bring_packages(&self, live: &Arc<Live>, tenant: &Tenant) {
        for package in self.store.directory().sealed(tenant.name()).packages.values() {
            self.bring_package(live, *package).await;
        }
    }

    async fn bring_package(&self, live: &Arc<Live>, package: Package) {
        let (store, machine) = (self.store.clone(), live.machine.clone());
        let load = move || {
            let bytes = store.modules().read(&package.module.digest).map_err(|error| error.to_string())?;
            machine.load_package(&bytes).map_err(|error| format!("{error:?}"))
        };
        match tokio::task::spawn_blocking(load).await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(code) => {
                let packages = &live.sealing.packages;
                packages.lock().unwrap_or_else(PoisonError::into_inner).insert(package.id, code);
            }
            Err(error) => tracing::warn!(error, "a package is not taken by its CVM"),
        }
    }

    fn busy(&self, tenant: &Arc<Tenant>) -> Busy<'_> {
        let seat = self.seat(tenant);
        seat.busy.fetch_add(1, Ordering::SeqCst);
        Busy(self, seat)
    }

    /// A package has come: into the CVM that runs, if one does.
    pub async fn package_arrived(&self, tenant: &Arc<Tenant>, package: Package) {
        let busy = self.busy(tenant);
        if let Some(live) = busy.1.get() {
            self.bring_package(&live, package).await;
        }
    }

    /// A package is gone.
    pub fn package_removed(&self, tenant: &Arc<Tenant>, id: PackageId) {
        if let Some(live) = self.seat(tenant).get() {
            live.sealing.packages.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }

    /// Evidence of the tenant's CVM; launches it if there is none. Waits for a broker that is present, unless it is the
    /// broker who asks.
    ///
    /// # Errors
    /// [`SealedError`].
    pub async fn evidence(
        &self,
        tenant: &Arc<Tenant>,
        nonce: &[u8; 32],
        is_broker: bool,
    ) -> Result<Vec<u8>, SealedError> {
        let busy = self.busy(tenant);
        let live = self.live(&busy.1).await.map_err(|error| SealedError::Ended(error.0))?;
        if !is_broker {
            self.wait_for_broker(&busy.1, &live).await;
        }
        let evidence = live.machine.evidence(nonce).await;
        if matches!(evidence, Err(EvidenceError::Ended)) {
            self.retire(&busy.1, &live).await;
        }
        Ok(evidence?)
    }

    pub(super) async fn wait_for_broker(&self, seat: &Seat, live: &Live) {
        let seen = seat.broker_seen.load(Ordering::Relaxed);
        let present = seen != 0 && self.now_ms().saturating_sub(seen) < BROKER_PRESENT.as_millis() as u64;
        let packages = !self.store.directory().sealed(seat.tenant.name()).packages.is_empty();
        if present && packages {
            let mut provisioned = live.sealing.provisioned.subscribe();
            // A broker that does not come in time is the client's to notice: the action is not installed then.
            let _ = tokio::time::timeout(BROKER_PATIENCE, provisioned.wait_for(|done| *done)).await;
        }
    }

    /// Hands a record of a session to the tenant's CVM. There is none that could know the session if none runs.
    ///
    /// # Errors
    /// [`SealedError`].
    pub async fn record(&self, tenant: &Arc<Tenant>, record: &[u8]) -> Result<Vec<u8>, SealedError> {
        let busy = self.busy(tenant);
        let live = busy.1.get().ok_or_else(|| SealedError::Ended("none runs".into()))?;
        let limits = tenant.limits();
        let answered = live.machine.record(record, &record_limits(limits)).await;
        match answered {
            Ok(answer) => Ok(answer),
            Err(CallFailed::Refused(text)) => Err(SealedError::Refused(text)),
            Err(CallFailed::NotBegun(_)) if matches!(tenant.standing(), Standing::Away(_)) => {
                Err(SealedError::Moved)
            }
            Err(CallFailed::NotBegun(ended) | CallFailed::Lost(ended)) => {
                self.retire(&busy.1, &live).await;
                Err(SealedError::Ended(ended.0))
            }
        }
    }

    /// Waits until a CVM of the tenant runs that nobody has provisioned, at most `patience`; returns its generation.
    pub async fn unprovisioned(&self, tenant: &Arc<Tenant>, patience: Duration) -> Option<u64> {
        let seat = self.seat(tenant);
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            seat.broker_seen.store(self.now_ms().max(1), Ordering::Relaxed);
            let launched = seat.launched.notified();
            if let Some(live) = seat.get()
                && !*live.sealing.provisioned.borrow()
            {
                return Some(live.sealing.generation);
            }
            if tokio::time::timeout_at(deadline, launched).await.is_err() {
                seat.broker_seen.store(self.now_ms().max(1), Ordering::Relaxed);
                return None;
            }
        }
    }

    /// A broker has provisioned the CVM of this generation; nothing if that is gone.
    pub fn provisioned(&self, tenant: &Arc<Tenant>, generation: u64) {
        if let Some(live) = self.seat(tenant).get()
            && live.sealing.generation == generation
        {
            live.sealing.provisioned.send_replace(true);
        }
    }

    /// Ends the tenant's CVM if it was launched with another manifest than the tenant has now: the next request launches another
    /// one. One that is being launched is waited for.
    pub async fn replace(&self, tenant: &Arc<Tenant>) {
        let seat = self.seat(tenant);
        let _one = seat.launching.lock().await;
        let Some(live) = seat.get() else { return };
        if live.manifest != self.manifest_hash(tenant) && seat.take(Some(&live)).is_some() {
            live.machine.stop().await;
        }
    }
}

fn record_limits(limits: &TenantLimits) -> RecordLimits {
    RecordLimits {
        wall: Duration::from_millis(limits.time_ms),
        memory_bytes: limits.memory_bytes,
        answer_bytes: ANSWER_BYTES,
    }
}
