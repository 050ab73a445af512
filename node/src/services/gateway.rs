//! Accepts a service's clients while its program runs, and hands their sockets to the CVM's relay.

use super::supervisor::State;
use crate::tenants::Tenant;
use nacre_vmm::program::Connector;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Pause when no more clients may come now: they wait in the kernel's queue meanwhile.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// Clients that wait for the program to accept them; beyond that others wait in the kernel's queue.
const MAX_WAITING: usize = 512;

/// Accepts until the service is over for good.
pub(super) async fn run(listener: Arc<TcpListener>, tenant: Arc<Tenant>, mut state: watch::Receiver<State>) {
    loop {
        // Clients wait in the kernel's queue while the program is started.
        let Ok(connector) =
            state.wait_for(|state| state.connector.is_some()).await.map(|state| state.connector.clone())
        else {
            return;
        };
        let Some(connector) = connector else { continue };
        let accept = accept_all(&listener, &tenant, &connector);
        tokio::select! {
            () = accept => {}
            over = ended(&mut state) => {
                if over {
                    return;
                }
            }
        }
    }
}

/// Waits until the program has ended; whether the service is over for good.
async fn ended(state: &mut watch::Receiver<State>) -> bool {
    state.wait_for(|state| state.connector.is_none()).await.is_err()
}

async fn accept_all(listener: &TcpListener, tenant: &Tenant, connector: &Connector) {
    loop {
        let stats = connector.stats();
        if stats.open >= tenant.limits().connections as usize || stats.waiting >= MAX_WAITING {
            tokio::time::sleep(FULL_PAUSE).await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                crate::metrics::service_connection();
                if let Err(error) = hand_over(connector, stream, peer) {
                    tracing::debug!(error, "a client was not connected");
                }
            }
            // Without descriptors for another client, wait for some.
            Err(_) => tokio::time::sleep(FULL_PAUSE).await,
        }
    }
}

fn hand_over(connector: &Connector, stream: TcpStream, peer: std::net::SocketAddr) -> Result<(), String> {
    let stream = stream.into_std().map_err(|error| error.to_string())?;
    connector.relay(stream, peer).map_err(|error| error.to_string())
}
