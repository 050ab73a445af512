//! Services: programs that run all the time and serve TCP clients.
//!
//! ```text
//!             +--------- supervisor: a task per service ----------+
//!   deploy -> | Starting -> Running -> (ended) -> Waiting ----+   |  -> Ended, Failed
//!             |    ^                                          |   |
//!             |    +------------- back-off -------------------+   |
//!             +---------------------------------------------------+
//!   clients -> kernel's queue -> gateway: accepts while it runs -> the CVM's relay
//! ```
//! A tenant that moved away leaves its gateways behind: they relay new clients to the node that has it.
//! The port is listened on from the deployment on; connections are accepted only while the program runs, so that clients
//! wait in the kernel's queue while it is started again. Once accepted a socket is handed to the CVM's relay
//! for good: bytes, ends of streams and backpressure are its affair, in both directions.

mod door;
mod gateway;
mod log;
mod supervisor;

pub use door::Door;
pub use gateway::RelayTo;
pub use log::LogRing;
pub use supervisor::{Begin, Phase, Status};

use crate::migration::ProgramWord;
use crate::names::{EntityName, TenantName};
use crate::records::Service;
use crate::runner::Runner;
use crate::tenants::Tenant;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use supervisor::{Means, Supervised};

type Key = (TenantName, EntityName);

/// All services of a node.
pub struct Services {
    runner: Arc<Runner>,
    host: IpAddr,
    relay: Option<Arc<dyn RelayTo>>,
    running: Mutex<HashMap<Key, Arc<Supervised>>>,
}

impl Services {
    /// No services yet; clients connect at `host`. `relay` is the way to services of tenants that moved away.
    #[must_use]
    pub fn new(runner: Arc<Runner>, host: IpAddr, relay: Option<Arc<dyn RelayTo>>) -> Self {
        Self { runner, host, relay, running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Arc<Supervised>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a service's clients connect.
    #[must_use]
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host, port)
    }

    /// Takes a port; or that of a service which is to be replaced.
    ///
    /// # Errors
    /// If somebody else has it.
    pub async fn listen(&self, tenant: &TenantName, name: &EntityName, port: u16) -> io::Result<Arc<Door>> {
        let old = self.running().get(&(tenant.clone(), name.clone())).cloned();
        if let Some(door) = old.and_then(|old| old.door(port)) {
            return Ok(door);
        }
        Ok(Arc::new(Door::open(self.address(port)).await?))
    }

    /// Takes a port for a tenant that comes back; maybe one where something of it waited for that, under whatever name.
    ///
    /// # Errors
    /// If somebody else has it.
    pub async fn listen_for(&self, tenant: &TenantName, port: u16) -> io::Result<Arc<Door>> {
        let old = self
            .running()
            .iter()
            .filter(|((owner, _), _)| owner == tenant)
            .find_map(|(_, old)| old.door(port));
        if let Some(door) = old {
            return Ok(door);
        }
        Ok(Arc::new(Door::open(self.address(port)).await?))
    }

    /// Starts a service, in place of one of its name. Without a door it takes the port itself, and says if it can't.
    pub async fn start(
        &self,
        tenant: &Arc<Tenant>,
        service: Arc<Service>,
        door: Option<Arc<Door>>,
        begin: Begin,
    ) {
        let key = (tenant.name().clone(), service.name.clone());
        self.stop(&key.0, &key.1).await;
        let address = self.address(service.port);
        let means = Means { runner: self.runner.clone(), relay: self.relay.clone(), address };
        let supervised = Supervised::start(means, tenant.clone(), service, door, begin);
        self.running().insert(key.clone(), supervised);
        // Whoever removed the tenant meanwhile may have stopped what ran before this.
        if tenant.is_removed() {
            self.stop(&key.0, &key.1).await;
        }
    }

    /// The programs of a tenant's services, for the node that it moves to.
    #[must_use]
    pub fn programs(&self, tenant: &TenantName) -> Vec<ProgramWord> {
        let running = self.running();
        let own = running.iter().filter(|((owner, _), _)| owner == tenant);
        own.map(|((_, name), supervised)| supervised.program(name.clone())).collect()
    }

    /// Ends a service and gives its port back.
    pub async fn stop(&self, tenant: &TenantName, name: &EntityName) {
        let supervised = self.running().remove(&(tenant.clone(), name.clone()));
        if let Some(supervised) = supervised {
            supervised.stop().await;
        }
    }

    /// Ends those of a tenant's services that it does not have any more: it was elsewhere.
    pub async fn stop_others(&self, tenant: &TenantName, has: &[Arc<Service>]) {
        let is_other =
            |(owner, name): &&Key| owner == tenant && has.iter().all(|service| service.name != *name);
        let others: Vec<Key> = self.running().keys().filter(is_other).cloned().collect();
        for (owner, name) in &others {
            self.stop(owner, name).await;
        }
    }

    /// Ends all services of a tenant, or all there are.
    pub async fn stop_all(&self, tenant: Option<&TenantName>) {
        let keys: Vec<Key> = self.running().keys().cloned().collect();
        for (owner, name) in keys.iter().filter(|(owner, _)| tenant.is_none_or(|tenant| tenant == owner)) {
            self.stop(owner, name).await;
        }
    }

    /// How a service is.
    #[must_use]
    pub fn status(&self, tenant: &TenantName, name: &EntityName) -> Option<Status> {
        self.running().get(&(tenant.clone(), name.clone())).map(|supervised| supervised.status())
    }

    /// The last lines a service wrote.
    #[must_use]
    pub fn logs(&self, tenant: &TenantName, name: &EntityName) -> Option<Vec<String>> {
        self.running().get(&(tenant.clone(), name.clone())).map(|supervised| supervised.logs())
    }

    /// How all services are.
    #[must_use]
    pub fn all(&self) -> Vec<(TenantName, EntityName, Status)> {
        let status =
            |(key, supervised): (&Key, &Arc<Supervised>)| (key.0.clone(), key.1.clone(), supervised.status());
        self.running().iter().map(status).collect()
    }
}
