//! One CVM per tenant: made when it is first needed, kept warm, taken away when it has been idle for long, replaced when it
//! dies. While it is idle its vCPUs sleep in the kernel.
//!
//! A tenant's CVM is reached through a [`Seat`]. Whoever calls takes the CVM that is there without waiting for anybody; only
//! launching one is behind a lock, so that it happens once.

mod live;
pub mod machine;
mod moving;
mod sealed;
pub mod serving;

pub use machine::{Ended, Reply, Request};
pub use moving::{Arriving, Departing, image_of};
pub use sealed::SealedError;

use crate::compile::Compiler;
use crate::limits::TenantLimits;
use crate::names::TenantName;
use crate::outcome::{End, Left};
use crate::platform::{Manifest, NodePlatform};
use crate::records::{ModuleRef, Service};
use crate::store::Store;
use crate::tenants::{Standing, Tenant};
use live::{Live, NoCode};
use machine::{CallFailed, Machine, MachineSpec};
use nacre_attest::manifest::SignedManifest;
use nacre_vmm::elastic::CpuStats;
use nacre_vmm::link::LinkStats;
use nacre_vmm::tunnel::Adopted;
use nacre_vmm::{CpuLimits, CpuManager, Cvm};
use serving::ServiceCode;
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often a launch is begun again because the manifest changed meanwhile.
const MAX_LAUNCHES: u32 = 5;

/// Shows a CVM of the node for as long as what it returns lives.
pub type Publish = Arc<dyn Fn(&str, &Arc<Cvm>) -> Box<dyn Any + Send + Sync> + Send + Sync>;

/// A call did not begin: its tenant runs at another node since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved;

/// What came of one call.
#[derive(Debug)]
pub struct Ran {
    /// What the program left.
    pub left: Left,
    /// CPU time.
    pub cpu: Duration,
    /// Time before its first instruction.
    pub wait: Duration,
    /// Time to bring its code in, if that was needed.
    pub init: Option<Duration>,
}

impl Ran {
    pub(crate) fn failed(end: End, since: Instant) -> Self {
        let left = Left { end, stdout: Vec::new(), stderr: Vec::new(), stdout_cut: false, stderr_cut: false };
        Self { left, cpu: Duration::ZERO, wait: since.elapsed(), init: None }
    }
}

/// A tenant's place for a CVM.
struct Seat {
    tenant: Arc<Tenant>,
    live: RwLock<Option<Arc<Live>>>,
    launching: tokio::sync::Mutex<()>,
    /// Calls under way, from before they ask for the CVM.
    busy: AtomicU64,
    /// When the last call ended, in milliseconds of the runner's clock.
    last_used: AtomicU64,
    /// When a key broker asked last, by the same clock; 0 if none ever did.
    broker_seen: AtomicU64,
    /// Told when a CVM was launched.
    launched: Notify,
}

impl Seat {
    fn get(&self) -> Option<Arc<Live>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn view(&self) -> Option<View> {
        let live = self.get()?;
        Some(View {
            tenant: self.tenant.clone(),
            cpu: live.machine.cpu()?,
            link: live.machine.cvm().link_stats(),
            resident_bytes: live.machine.resident_bytes(),
            age: live.since.elapsed(),
            modules: live.module_count(),
        })
    }

    /// Takes the CVM away, if it is still this one.
    fn take(&self, which: Option<&Arc<Live>>) -> Option<Arc<Live>> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let same = |live: &&Arc<Live>| which.is_none_or(|which| Arc::ptr_eq(live, which));
        live.as_ref().filter(same).is_some().then(|| live.take()).flatten()
    }
}

/// A call under way.
struct Busy<'r>(&'r Runner, Arc<Seat>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.1.last_used.store(self.0.now_ms(), Ordering::Relaxed);
        self.1.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The same for longer than a borrow.
struct Held(Arc<Runner>, Arc<Seat>);

impl Drop for Held {
    fn drop(&mut self) {
        self.1.last_used.store(self.0.now_ms(), Ordering::Relaxed);
        self.1.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A service that runs.
pub struct InService {
    /// Its program.
    pub serving: serving::Serving,
    live: Arc<Live>,
    _held: Held,
}

impl InService {
    /// Its tenant, and it with that, has moved to another node.
    pub fn forget(self) {
        self.serving.forget();
    }
}

/// One tenant's CVM as it is now.
#[derive(Clone, Debug)]
pub struct View {
    /// Whose it is.
    pub tenant: Arc<Tenant>,
    /// What its CPUs have done.
    pub cpu: CpuStats,
    /// What went over its rings.
    pub link: LinkStats,
    /// Memory that the host has committed for it, in bytes.
    pub resident_bytes: u64,
    /// Since when it is there.
    pub age: Duration,
    /// Modules in it.
    pub modules: usize,
}

/// Runs calls.
pub struct Runner {
    store: Arc<Store>,
    compiler: Arc<Compiler>,
    manager: Arc<CpuManager>,
    platform: Arc<NodePlatform>,
    publish: Option<Publish>,
    max_cvms: usize,
    launches: AtomicU64,
    seats: Mutex<HashMap<String, Arc<Seat>>>,
    changed: Notify,
    start: Instant,
}

impl Runner {
    /// A runner without CVMs.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        compiler: Arc<Compiler>,
        manager: Arc<CpuManager>,
        platform: Arc<NodePlatform>,
        max_cvms: usize,
        publish: Option<Publish>,
    ) -> Self {
        let (seats, changed, start) = (Mutex::default(), Notify::new(), Instant::now());
        let launches = AtomicU64::new(0);
        Self { store, compiler, manager, platform, publish, max_cvms, launches, seats, changed, start }
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<String, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seat(&self, tenant: &Arc<Tenant>) -> Arc<Seat> {
        let new = || {
            Arc::new(Seat {
                tenant: tenant.clone(),
                live: RwLock::default(),
                launching: tokio::sync::Mutex::default(),
                busy: AtomicU64::new(0),
                last_used: AtomicU64::new(self.now_ms()),
                broker_seen: AtomicU64::new(0),
                launched: Notify::new(),
            })
        };
        let mut seats = self.seats();
        if let Some(seat) = seats.get(&tenant.record.uuid) {
            return seat.clone();
        }
        seats.entry(tenant.record.uuid.clone()).or_insert_with(new).clone()
    }

    /// Runs a module once in the tenant's CVM.
    ///
    /// # Errors
    /// [`Moved`]: it did not begin.
    pub async fn run(
        &self,
        tenant: &Arc<Tenant>,
        module: &ModuleRef,
        request: Request<'_>,
    ) -> Result<Ran, Moved> {
        let is_away = || matches!(tenant.standing(), Standing::Away(_));
        let begin = Instant::now();
        let seat = self.seat(tenant);
        seat.busy.fetch_add(1, Ordering::SeqCst);
        let busy = Busy(self, seat);
        let seat = &busy.1;
        let mut lost = Ended("it ended before the action began".into());
        // A CVM that died since the last call is replaced without the caller noticing.
        for _ in 0..2 {
            let live = match self.live(seat).await {
                Ok(live) => live,
                Err(_) if is_away() => return Err(Moved),
                Err(error) => {
                    return Ok(Ran::failed(End::Lost(format!("The CVM can't be started: {error}")), begin));
                }
            };
            let (code, init) = match live.code(&self.store, &self.compiler, tenant, module).await {
                Ok(code) => code,
                Err(NoCode::Compile(error)) => return Ok(Ran::failed(End::Error(error.to_string()), begin)),
                Err(NoCode::Refused(end)) => return Ok(Ran::failed(end, begin)),
                Err(NoCode::Ended(error)) => {
                    lost = error;
                    self.retire(seat, &live).await;
                    continue;
                }
            };
            let before = begin.elapsed();
            let called = live.machine.call(&code, &request).await;
            // It was called before the guest had looked at it.
            if let (Ok(_), Some(end)) = (&called, code.refusal()) {
                return Ok(Ran::failed(end, begin));
            }
            match called {
                Ok(Reply { left, cpu, queued }) => {
                    return Ok(Ran { left, cpu, wait: before + queued, init });
                }
                Err(CallFailed::NotBegun(_)) if is_away() => return Err(Moved),
                Err(CallFailed::NotBegun(error)) => lost = error,
                Err(CallFailed::Refused(text)) => return Ok(Ran::failed(End::Error(text), begin)),
                Err(CallFailed::Lost(error)) => {
                    self.retire(seat, &live).await;
                    let text = format!("The CVM ended while the action ran: {error}");
                    return Ok(Ran::failed(End::Lost(text), begin));
                }
            }
            self.retire(seat, &live).await;
        }
        Ok(Ran::failed(End::Lost(format!("The CVM ended: {lost}")), begin))
    }

    /// Starts a service in the tenant's CVM. Its CVM is not idle while what is returned lives.
    ///
    /// # Errors
    /// Why it can't be started.
    pub async fn serve(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        service: &Service,
        args: Vec<String>,
        log: serving::Log,
    ) -> Result<InService, String> {
        let seat = self.seat(tenant);
        seat.busy.fetch_add(1, Ordering::SeqCst);
        let held = Held(self.clone(), seat);
        let seat = &held.1;
        let code = match service.package {
            Some(package) => ServiceCode::Sealed(package),
            None => {
                let program = live::program(&self.store, &self.compiler, tenant, &service.module).await;
                ServiceCode::Open(program.map_err(|error| error.to_string())?)
            }
        };
        let live = self.live(seat).await.map_err(|error| format!("the CVM can't be started: {error}"))?;
        if service.package.is_some() {
            self.wait_for_broker(seat, &live).await;
        }
        let machine = live.machine.clone();
        let begun = tokio::task::spawn_blocking(move || machine.serve(code, args, log)).await;
        match begun.map_err(|error| error.to_string())? {
            Ok(serving) => Ok(InService { serving, _held: held, live }),
            Err(error) => {
                self.retire(seat, &live).await;
                Err(format!("the CVM ended: {error}"))
            }
        }
    }

    /// Goes on with a service's program that came with its tenant.
    ///
    /// # Errors
    /// If its CVM has ended since.
    pub async fn go_on_serving(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        program: Adopted,
        log: serving::Log,
    ) -> Result<InService, String> {
        let seat = self.seat(tenant);
        seat.busy.fetch_add(1, Ordering::SeqCst);
        let held = Held(self.clone(), seat);
        let live = held.1.get().ok_or("the CVM that it came with has ended")?;
        let serving = live.machine.go_on_serving(program, log).map_err(|error| error.0)?;
        Ok(InService { serving, _held: held, live })
    }

    /// A service has ended: its CVM too?
    pub async fn served(&self, service: InService) {
        let InService { serving, _held, live } = service;
        drop(serving);
        if live.machine.has_ended() {
            self.retire(&_held.1, &live).await;
        }
    }

    /// The tenant's CVM; launched if there is none.
    async fn live(&self, seat: &Arc<Seat>) -> Result<Arc<Live>, Ended> {
        if let Some(live) = seat.get() {
            return Ok(live);
        }
        let _one = seat.launching.lock().await;
        if let Some(live) = seat.get() {
            return Ok(live);
        }
        if seat.tenant.standing() != Standing::Here {
            return Err(Ended("the tenant has moved to another node; ask again".into()));
        }
        if seat.tenant.is_incomplete() {
            return Err(Ended("its CVM ended before all its memory had come; ask again".into()));
        }
        self.make_room(Some(seat)).await?;
        for _ in 0..MAX_LAUNCHES {
            let live = self.launch(&seat.tenant).await?;
            // A manifest that came meanwhile found no CVM to end; one that comes from now on waits for this one.
            if live.manifest != self.manifest_hash(&seat.tenant) {
                live.machine.stop().await;
                continue;
            }
            *seat.live.write().unwrap_or_else(PoisonError::into_inner) = Some(live.clone());
            if seat.tenant.is_removed() {
                self.retire(seat, &live).await;
                return Err(Ended("the tenant was removed".into()));
            }
            self.changed.notify_one();
            seat.launched.notify_waiters();
            return Ok(live);
        }
        Err(Ended("its manifest changes faster than it starts; ask again".into()))
    }

    /// Launches a CVM with the manifest that its tenant has now, and brings the packages in.
    async fn launch(&self, tenant: &Arc<Tenant>) -> Result<Arc<Live>, Ended> {
        let manifest = self.manifest(tenant)?;
        let live = self.launch_bare(tenant.name(), tenant.limits(), manifest).await?;
        self.bring_packages(&live, tenant).await;
        Ok(live)
    }

    /// Launches a CVM for a tenant, and brings nothing in.
    async fn launch_bare(
        &self,
        name: &TenantName,
        limits: &TenantLimits,
        manifest: Option<Manifest>,
    ) -> Result<Arc<Live>, Ended> {
        let hash = manifest.as_ref().map(|manifest| manifest.hash);
        let spec = MachineSpec {
            memory_bytes: limits.memory_bytes,
            workers: limits.workers_max,
            limits: CpuLimits {
                weight: limits.cpu_weight,
                min: limits.workers_min,
                max: Some(limits.workers_max),
            },
            manager: self.manager.clone(),
            identity: self.platform.identity(manifest),
        };
        let begin = Instant::now();
        let launched = tokio::task::spawn_blocking(move || Machine::launch(spec)).await;
        let machine = launched.map_err(|error| Ended(error.to_string()))??;
        crate::metrics::launched(begin.elapsed());
        let name = name.as_str();
        tracing::info!(tenant = name, elapsed_us = begin.elapsed().as_micros() as u64, "CVM launched");
        let shown = self.publish.as_ref().map(|publish| publish(name, machine.cvm()));
        let generation = self.launches.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Live::new(machine, generation, hash, limits.memory_bytes / 4, shown)))
    }

    /// The manifest that a tenant's CVM is launched with.
    fn manifest(&self, tenant: &Tenant) -> Result<Option<Manifest>, Ended> {
        let sealed = self.store.directory().sealed(tenant.name());
        let Some(bytes) = sealed.manifest.clone() else { return Ok(None) };
        let signed = SignedManifest::decode(&bytes);
        let signed = signed.map_err(|error| Ended(format!("the stored manifest is damaged: {error}")))?;
        Ok(Some(Manifest { bytes, hash: signed.hash() }))
    }

    /// The hash of the manifest that the tenant has now.
    fn manifest_hash(&self, tenant: &Tenant) -> Option<[u8; 32]> {
        let sealed = self.store.directory().sealed(tenant.name());
        let signed = SignedManifest::decode(sealed.manifest.as_deref()?).ok()?;
        Some(signed.hash())
    }

    /// Ends the CVM that is idle longest, if there are as many as may be.
    async fn make_room(&self, wanting: Option<&Arc<Seat>>) -> Result<(), Ended> {
        let seats: Vec<Arc<Seat>> = self.seats().values().cloned().collect();
        let occupied: Vec<&Arc<Seat>> = seats.iter().filter(|seat| seat.get().is_some()).collect();
        if occupied.len() < self.max_cvms {
            return Ok(());
        }
        let is_idle = |seat: &&&Arc<Seat>| {
            let wants = wanting.is_some_and(|wanting| Arc::ptr_eq(seat, wanting));
            seat.busy.load(Ordering::SeqCst) == 0 && !wants
        };
        let idle = occupied.iter().filter(is_idle);
        let Some(oldest) = idle.min_by_key(|seat| seat.last_used.load(Ordering::Relaxed)) else {
            return Err(Ended(format!("{} CVMs are at work, as many as this node may have", occupied.len())));
        };
        if let Some(live) = oldest.take(None) {
            live.machine.stop().await;
        }
        Ok(())
    }

    /// Ends a CVM that is of no use any more.
    async fn retire(&self, seat: &Seat, live: &Arc<Live>) {
        if let Some(live) = seat.take(Some(live)) {
            crate::metrics::lost_cvm();
            tracing::warn!(
                tenant = seat.tenant.name().as_str(),
                "a CVM ended; the next call gets another one"
            );
            live.machine.stop().await;
        }
    }

    /// Ends the CVM of a tenant that is removed.
    pub async fn forget(&self, tenant: &Arc<Tenant>) {
        let seat = self.seats().remove(&tenant.record.uuid);
        if let Some(live) = seat.and_then(|seat| seat.take(None)) {
            live.machine.stop().await;
        }
    }

    /// Ends all CVMs.
    pub async fn stop(&self) {
        let seats: Vec<Arc<Seat>> = self.seats().drain().map(|(_, seat)| seat).collect();
        for live in seats.iter().filter_map(|seat| seat.take(None)) {
            live.machine.stop().await;
        }
    }

    /// Ends CVMs that have been idle for as long as their tenants' limits say. Never returns; sleeps until there may be
    /// something to do.
    pub async fn reap(&self) {
        loop {
            let now = self.now_ms();
            let mut next = u64::MAX;
            let seats: Vec<Arc<Seat>> = self.seats().values().cloned().collect();
            for seat in seats.iter().filter(|seat| seat.get().is_some()) {
                let idle_ms = seat.tenant.limits().idle_ms;
                let due = seat.last_used.load(Ordering::Relaxed).saturating_add(idle_ms);
                if seat.busy.load(Ordering::SeqCst) > 0 || due > now {
                    next = next.min(due.max(now + idle_ms.min(1000)));
                    continue;
                }
                // Who comes in this moment finds none and launches another one.
                let _one = seat.launching.lock().await;
                if seat.busy.load(Ordering::SeqCst) == 0
                    && let Some(live) = seat.take(None)
                {
                    tracing::info!(tenant = seat.tenant.name().as_str(), "CVM ended: it was idle");
                    live.machine.stop().await;
                }
            }
            let wait = Duration::from_millis(next.saturating_sub(now).min(3_600_000));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// All CVMs as they are now.
    #[must_use]
    pub fn views(&self) -> Vec<View> {
        let seats: Vec<Arc<Seat>> = self.seats().values().cloned().collect();
        seats.iter().filter_map(|seat| seat.view()).collect()
    }

    /// A tenant's CVM as it is now.
    #[must_use]
    pub fn view(&self, tenant: &Tenant) -> Option<View> {
        let seat = self.seats().get(&tenant.record.uuid).cloned()?;
        seat.view()
    }
}
