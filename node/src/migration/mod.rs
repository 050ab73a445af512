//! Tenants that move between nodes: what the hosts have to do with it. The guests do the moving ([`nacre_vmm::migration`]).
//!
//! ```text
//! source node                                    destination node
//! line: Offer(records) ------------------------> limits, ports, image; nothing is spent before
//!       <---------------------------- Wanted(modules)
//!       Code* Begin ---------------------------> staged in the store; a CVM as receiver
//!       <---------------------------- Ready(tickets)
//! bare connections ============================= the guests migrate
//! gate closes: Parked(last records) -----------> staged
//!       <---------------------------- Kept: now the guest may go
//! Gone: one transaction; then Commit ----------> the guest runs; one transaction; services go on
//!       <---------------------------- Running
//! gate opens: requests and clients are relayed   Complete
//! ```
//! * [`line`]: the line between both. [`source`], [`destination`]: the two ends; `offering`, `accepting`: before guests talk. [`deliver`]: a Commit that must arrive.
//! * [`job`]: what is shown. [`relay`]: clients of services of tenants that are elsewhere. [`net`]: what this needs of other nodes.
//! * [`peers`]: the peers of this node as that. [`tunnel`]: open connections and calls under way. [`settle`]: before the node stops.
//!
//! The durable states, and what follows from them after a crash, are in [`nacre_node_api::migration`] and [`crate::store`].

mod accepting;
mod admission;
pub mod deliver;
pub mod destination;
pub mod job;
pub mod line;
pub mod net;
mod offering;
pub mod peers;
pub mod relay;
mod settle;
pub mod source;
pub mod tunnel;

pub use job::{Job, MigrationView, Step};
pub use nacre_node_api::migration::*;

use crate::names::{MigrationId, TenantName};
use crate::runner::Runner;
use crate::services::Services;
use crate::store::Store;
use crate::tenants::{Standing, Tenant, Tenants};
use destination::Order;
use net::Net;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};

/// Migrations that are over and still shown.
const MAX_SHOWN: usize = 64;
/// Pauses before the end of a call is told again to the node that has its tenant: the first, and what ends the attempts.
const TELL_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Offers that are read at once beyond the migrations that may come: they are refused, but hear why.
const OFFERS_READ: usize = 4;

/// What a node takes of others at once.
#[derive(Clone, Copy, Debug)]
pub struct Incomings {
    /// Migrations.
    pub max: usize,
    /// Memory of the CVMs that receive, in bytes.
    pub max_memory_bytes: u64,
}

/// Why a migration does not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    /// Migrations need other nodes.
    #[error("the node listens to no other nodes; start it with --peer-listen ADDR")]
    Alone,
    /// One at a time.
    #[error("a migration is under way ({0}); wait for it, or cancel it")]
    UnderWay(MigrationId),
    /// It is about to end.
    #[error("the node stops; migrate again when it has started")]
    Stopping,
    /// It is not here.
    #[error("the tenant is at {0} already; ask that node")]
    Away(String),
    /// Nothing would move.
    #[error("the tenant has no running CVM; deploy a service, or call a function, or add the tenant there")]
    NoCvm,
    /// By its manifest.
    #[error("{0}; sign a manifest with a migration policy, deploy again")]
    Policy(&'static str),
    /// The destination's address.
    #[error("{0}")]
    To(String),
}

/// All migrations of a node.
pub struct Migrations {
    pub(crate) store: Arc<Store>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) services: Arc<Services>,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) net: Option<Arc<dyn Net>>,
    limits: Incomings,
    jobs: Mutex<BTreeMap<MigrationId, Arc<Job>>>,
    arrivals: Mutex<HashMap<MigrationId, mpsc::Sender<Order>>>,
    /// One of these is over.
    arrival_over: Notify,
    stopping: AtomicBool,
    /// Offers that may be read at once.
    reading: Arc<Semaphore>,
    /// Migrations that come, and memory of their CVMs.
    room: Mutex<(usize, u64)>,
    /// Tenants that do not simply stand here: while there are none, no request has to be looked at.
    restless: AtomicUsize,
    tunnels: tunnel::Tunnels,
}

/// A place among those that may come at once.
struct Room(Arc<Migrations>, u64);

impl Drop for Room {
    fn drop(&mut self) {
        let mut room = self.0.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.0 -= 1;
        room.1 -= self.1;
    }
}

impl Migrations {
    /// None yet.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        runner: Arc<Runner>,
        services: Arc<Services>,
        tenants: Arc<Tenants>,
        net: Option<Arc<dyn Net>>,
        limits: Incomings,
    ) -> Arc<Self> {
        let (jobs, arrivals, room) = (Mutex::default(), Mutex::default(), Mutex::default());
        let restless = AtomicUsize::new(0);
        let tunnels = tunnel::Tunnels::default();
        Arc::new(Self {
            store,
            runner,
            services,
            tenants,
            net,
            limits,
            jobs,
            arrivals,
            arrival_over: Notify::new(),
            stopping: AtomicBool::new(false),
            reading: Arc::new(Semaphore::new(
                limits.max.saturating_add(OFFERS_READ).min(Semaphore::MAX_PERMITS),
            )),
            room,
            restless,
            tunnels,
        })
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrivals(&self) -> MutexGuard<'_, HashMap<MigrationId, mpsc::Sender<Order>>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No tenant is away, or about to go.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.restless.load(Ordering::Acquire) == 0
    }

    /// A tenant stands elsewhere now, or here again.
    pub(crate) fn stand(&self, tenant: &Tenant, standing: Standing) {
        tenant.stand(standing);
        self.count_restless();
    }

    fn count_restless(&self) {
        let under_way = self.jobs().values().filter(|job| !job.is_over()).count();
        let away = self.tenants.all().iter().filter(|tenant| tenant.standing() != Standing::Here).count();
        self.restless.store(under_way + away, Ordering::Release);
    }

    /// Goes on with what a former run of the node left: marks of tenants, Commits that were not delivered.
    ///
    /// # Errors
    /// The store's.
    pub fn recover(self: &Arc<Self>) -> Result<(), crate::store::StoreError> {
        for tenant in self.tenants.all() {
            if let Some(away) = self.store.directory().away(tenant.name()) {
                tenant.stand(Standing::Away(Arc::new(away)));
            }
        }
        self.count_restless();
        for record in self.store.outgoing()? {
            if matches!(record.state, OutState::Gone { .. } | OutState::Delivered) {
                tokio::spawn(deliver::after_restart(self.clone(), record));
            }
        }
        for record in self.store.interrupted() {
            if matches!(record.state, OutState::Lost { .. }) {
                crate::metrics::lost_tenant();
            }
            tokio::spawn(deliver::tell_end(self.clone(), record.clone()));
        }
        Ok(())
    }

    /// Begins to move a tenant.
    ///
    /// # Errors
    /// [`NotBegun`]; what the other node says to it comes later.
    pub fn begin(self: &Arc<Self>, tenant: &Arc<Tenant>, order: &MoveOrder) -> Result<Arc<Job>, NotBegun> {
        let net = self.net.clone().ok_or(NotBegun::Alone)?;
        let to = net.url(&order.to).map_err(|error| NotBegun::To(error.0))?;
        if let Standing::Away(away) = tenant.standing() {
            return Err(NotBegun::Away(away.to.url.clone()));
        }
        offering::check_policy(self, tenant).map_err(NotBegun::Policy)?;
        let peer = PeerName { url: to, fingerprint: crate::names::Digest([0; 32]) };
        let record = job::begin(tenant, peer, order.mode);
        let job = Job::new(&record);
        {
            let mut jobs = self.jobs();
            if self.is_stopping() {
                return Err(NotBegun::Stopping);
            }
            if let Some(other) = jobs.values().find(|job| job.tenant == *tenant.name() && !job.is_over()) {
                return Err(NotBegun::UnderWay(other.id));
            }
            let departing = self.runner.departing(tenant).ok_or(NotBegun::NoCvm)?;
            let surplus = (jobs.len() + 1).saturating_sub(MAX_SHOWN);
            let mut over: Vec<_> =
                jobs.values().filter(|job| job.is_over()).map(|job| (job.begun_ms, job.id)).collect();
            over.sort_unstable();
            for (_, id) in over.into_iter().take(surplus) {
                jobs.remove(&id);
            }
            jobs.insert(job.id, job.clone());
            let what =
                offering::Plan { tenant: tenant.clone(), departing, record, order: order.clone(), net };
            let (this, of_task) = (self.clone(), job.clone());
            tokio::spawn(async move {
                source::run(&this, &of_task, what).await;
                let view = of_task.view();
                crate::metrics::migration(view.step, view.downtime_ms);
                this.count_restless();
            });
        }
        self.count_restless();
        Ok(job)
    }

    /// A migration away from here that goes on, or was shown since the node was started.
    #[must_use]
    pub fn job(&self, id: MigrationId) -> Option<Arc<Job>> {
        self.jobs().get(&id).cloned()
    }

    /// Whether a migration away from here has this id.
    #[must_use]
    pub fn knows(&self, id: MigrationId) -> bool {
        self.jobs().contains_key(&id)
            || self.store.outgoing().is_ok_and(|all| all.iter().any(|one| one.id == id))
    }

    /// What this node takes of others at once.
    #[must_use]
    pub fn limits(&self) -> Incomings {
        self.limits
    }

    /// The way to other nodes.
    #[must_use]
    pub fn net(&self) -> Option<&Arc<dyn Net>> {
        self.net.as_ref()
    }

    /// The migration of a tenant that is under way.
    #[must_use]
    pub fn under_way(&self, tenant: &TenantName) -> Option<Arc<Job>> {
        self.jobs().values().find(|job| job.tenant == *tenant && !job.is_over()).cloned()
    }

    /// All migrations away from here that are known, the newest first.
    ///
    /// # Errors
    /// The store's.
    pub fn all(&self) -> Result<Vec<MigrationView>, crate::store::StoreError> {
        let mut found: BTreeMap<(u64, MigrationId), MigrationView> = self
            .store
            .outgoing()?
            .iter()
            .map(|record| ((record.begun_ms, record.id), MigrationView::stored(record)))
            .collect();
        let jobs: Vec<Arc<Job>> = self.jobs().values().cloned().collect();
        found.extend(jobs.iter().map(|job| ((job.begun_ms, job.id), job.view())));
        Ok(found.into_values().rev().collect())
    }

    /// One migration, in either direction.
    ///
    /// # Errors
    /// The store's.
    pub fn view(&self, id: MigrationId) -> Result<Option<MigrationView>, crate::store::StoreError> {
        if let Some(job) = self.job(id) {
            return Ok(Some(job.view()));
        }
        if let Some(record) = self.store.outgoing()?.iter().find(|record| record.id == id) {
            return Ok(Some(MigrationView::stored(record)));
        }
        let own = self.net.as_ref().and_then(|net| net.address()).unwrap_or_default();
        Ok(self.store.incoming_of(id)?.map(|record| MigrationView::incoming(&record, own)))
    }

    /// A place for a tenant that comes.
    fn take_room(self: &Arc<Self>, memory_bytes: u64) -> Result<Room, String> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let Incomings { max, max_memory_bytes } = self.limits;
        if room.0 >= max {
            return Err(format!(
                "{max} migrations come to that node already, as many as may; try again later"
            ));
        }
        if room.1.saturating_add(memory_bytes) > max_memory_bytes {
            return Err(format!(
                "that node takes {max_memory_bytes} bytes of memory by migrations at once; try again later, or raise its \
                 --max-incoming-memory"
            ));
        }
        room.0 += 1;
        room.1 += memory_bytes;
        Ok(Room(self.clone(), memory_bytes))
    }

    /// A call of a tenant that has moved ended here: its owner keeps how.
    pub async fn tell_owner(&self, tenant: &Tenant, activation: &crate::records::Activation) {
        let mut pause = TELL_PAUSES.0;
        while !self.told_owner(tenant, activation).await && pause < TELL_PAUSES.1 {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// One attempt; true if there is nothing more to do.
    async fn told_owner(&self, tenant: &Tenant, activation: &crate::records::Activation) -> bool {
        let (Standing::Away(away), Some(net)) = (tenant.standing(), &self.net) else { return true };
        let word = EndedCall {
            tenant: tenant.name().clone(),
            uuid: tenant.record.uuid.clone(),
            activation: activation.clone(),
        };
        let Ok(word) = serde_json::to_value(word) else { return true };
        match net.ask(&away.to, net::ENDED, word).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "the end of a call is not told to the node that has its tenant now");
                false
            }
        }
    }

    /// A call ended where its tenant was before.
    pub async fn take_ended(&self, ended: EndedCall) {
        let Some(tenant) = self.tenants.same(&ended.tenant, &ended.uuid) else { return };
        // It has moved on: one hop more, to where it is.
        if let Standing::Away(_) = tenant.standing() {
            let _ = self.told_owner(&tenant, &ended.activation).await;
        }
        if let Err(error) = self.store.record(tenant.owner().clone(), Arc::new(ended.activation)).await {
            tracing::error!(%error, "an activation is not kept");
        }
    }
}
