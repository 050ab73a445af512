//! Accepts a service's clients while its program runs, and hands their sockets to the CVM's relay; or to the node that has its tenant now.

use super::door::Door;
use super::supervisor::State;
use crate::migration::Away;
use crate::names::EntityName;
use crate::tenants::{Standing, Tenant};
use nacre_vmm::program::Connector;
use nacre_vmm::socket::{NotRelayed, RelayError};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Pause when no more clients may come now: they wait in the kernel's queue meanwhile.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// Clients that wait for the program to accept them; beyond that others wait in the kernel's queue.
const MAX_WAITING: usize = 512;

/// Relays clients to other nodes.
pub trait RelayTo: Send + Sync {
    /// Relays one to the end of its connection. If that node has it no more, to the one that has. A client whose tenant is not away any
    /// more comes back.
    fn relay(
        &self,
        tenant: Arc<Tenant>,
        away: Arc<Away>,
        service: EntityName,
        client: TcpStream,
        peer: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = Option<TcpStream>> + Send>>;
}

/// A service's door.
pub(super) struct Gateway {
    pub(super) door: Arc<Door>,
    pub(super) tenant: Arc<Tenant>,
    pub(super) service: EntityName,
    pub(super) relay: Option<Arc<dyn RelayTo>>,
    /// Clients that are relayed to another node.
    pub(super) relayed: Arc<AtomicUsize>,
}

/// Counts a relayed client while it lives.
struct Relayed(Arc<AtomicUsize>);

impl Drop for Relayed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gateway {
    /// Accepts until the service is over for good.
    pub(super) async fn run(&self, mut state: watch::Receiver<State>) {
        let mut standing = self.tenant.watch_standing();
        loop {
            let now = standing.borrow_and_update().clone();
            tokio::select! {
                over = self.serve(&now, &mut state) => {
                    if over {
                        return;
                    }
                }
                // While nobody knows where the tenant will be, clients wait in the kernel's queue.
                changed = standing.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Accepts clients of a tenant that stands so; whether the service is over for good.
    async fn serve(&self, standing: &Standing, state: &mut watch::Receiver<State>) -> bool {
        match (standing, &self.relay) {
            (Standing::Away(away), Some(relay)) => self.relay_all(away, relay).await,
            (Standing::Parked | Standing::Away(_), _) => std::future::pending().await,
            (Standing::Here, _) => {
                // Clients wait in the kernel's queue while the program is started.
                let running = state.wait_for(|state| state.connector.is_some()).await;
                let Ok(connector) = running.map(|state| state.connector.clone()) else { return true };
                let Some(connector) = connector else { return false };
                tokio::select! {
                    () = self.accept_all(&connector) => false,
                    over = ended(state) => over,
                }
            }
        }
    }

    async fn accept_all(&self, connector: &Connector) {
        loop {
            let stats = connector.stats();
            if stats.open >= self.tenant.limits().connections as usize || stats.waiting >= MAX_WAITING {
                tokio::time::sleep(FULL_PAUSE).await;
                continue;
            }
            match self.door.client().await {
                Ok((stream, peer)) => {
                    crate::metrics::service_connection();
                    if let Some(stream) = hand_over(connector, stream, peer) {
                        // Its tenant is about to move, or its program to end: then this does not go on.
                        self.door.give_back(stream, peer);
                        tokio::time::sleep(FULL_PAUSE).await;
                    }
                }
                // Without descriptors for another client, wait for some.
                Err(_) => tokio::time::sleep(FULL_PAUSE).await,
            }
        }
    }

    async fn relay_all(&self, away: &Arc<Away>, relay: &Arc<dyn RelayTo>) -> bool {
        loop {
            if self.relayed.load(Ordering::Relaxed) >= self.tenant.limits().connections as usize {
                tokio::time::sleep(FULL_PAUSE).await;
                continue;
            }
            match self.door.client().await {
                Ok((stream, peer)) => {
                    self.relayed.fetch_add(1, Ordering::Relaxed);
                    let counted = Relayed(self.relayed.clone());
                    let (tenant, away, service) = (self.tenant.clone(), away.clone(), self.service.clone());
                    let relayed = relay.relay(tenant, away, service, stream, peer);
                    let door = self.door.clone();
                    tokio::spawn(async move {
                        let _counted = counted;
                        if let Some(stream) = relayed.await {
                            door.give_back(stream, peer);
                        }
                    });
                }
                Err(_) => tokio::time::sleep(FULL_PAUSE).await,
            }
        }
    }
}

/// Waits until the program has ended; whether the service is over for good.
async fn ended(state: &mut watch::Receiver<State>) -> bool {
    state.wait_for(|state| state.connector.is_none()).await.is_err()
}

/// Gives a client to the program's CVM; back if that does not take it now. One whose socket is of no use is dropped: it would come first for ever.
fn hand_over(connector: &Connector, stream: TcpStream, peer: SocketAddr) -> Option<TcpStream> {
    let NotRelayed { stream, error } = connector.relay(stream.into_std().ok()?, peer).err()?;
    tracing::debug!(%error, "a client is not connected yet");
    matches!(error, RelayError::Connect(_)).then(|| TcpStream::from_std(stream).ok())?
}
