//! Clients of services whose tenants are elsewhere: their bytes go to the node that has the tenant, in one hop. If that node says that it
//! has moved on, the mark here is changed and the client goes there.

use super::net::{CONNECT, Duplex, Net, NetError};
use super::{AskClient, Away, ClientAnswer, Migrations};
use crate::names::Digest;
use crate::names::EntityName;
use crate::peers::MAX_RELAYED;
use crate::services::RelayTo;
use crate::store::Store;
use crate::tenants::{Standing, Tenant};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// How often a client follows a tenant that moves on.
const MAX_MOVES: usize = 4;
/// Longest answer of a node about a client, in bytes.
const MAX_ANSWER: u32 = 64 << 10;
/// How long a node may take with it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The way to services elsewhere.
pub struct Relays {
    net: Arc<dyn Net>,
    store: Arc<Store>,
    /// Clients that may still be relayed to each node.
    places: Mutex<HashMap<Digest, Arc<Semaphore>>>,
}

impl Relays {
    /// By this way to other nodes; the marks of tenants are in the store.
    #[must_use]
    pub fn new(net: Arc<dyn Net>, store: Arc<Store>) -> Self {
        Self { net, store, places: Mutex::default() }
    }

    fn places(&self, node: Digest) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(node).or_insert_with(|| Arc::new(Semaphore::new(MAX_RELAYED))).clone()
    }
}

impl RelayTo for Relays {
    fn relay(
        &self,
        tenant: Arc<Tenant>,
        away: Arc<Away>,
        service: EntityName,
        mut client: TcpStream,
        peer: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = Option<TcpStream>> + Send>> {
        let (net, store, places) = (self.net.clone(), self.store.clone(), self.places(away.to.fingerprint));
        Box::pin(async move {
            // The others wait as they would in the kernel's queue.
            let place = tokio::time::timeout(PATIENCE, places.acquire_owned()).await;
            let Ok(Ok(_place)) = place else {
                tracing::info!(%peer, most = MAX_RELAYED, "a client was not relayed: too many are");
                return None;
            };
            match connect_client(&*net, &store, &tenant, away, service).await {
                // A connection that ends early has ended for both.
                Ok(mut stream) => drop(copy_bidirectional(&mut client, &mut stream).await),
                Err(_) if !matches!(tenant.standing(), Standing::Away(_)) => return Some(client),
                Err(error) => tracing::info!(%error, %peer, "a client was not relayed"),
            }
            None
        })
    }
}

async fn connect_client(
    net: &dyn Net,
    store: &Store,
    tenant: &Arc<Tenant>,
    away: Arc<Away>,
    service: EntityName,
) -> Result<Box<dyn Duplex>, Unconnected> {
    let question = AskClient { tenant: tenant.name().clone(), uuid: tenant.record.uuid.clone(), service };
    let question = serde_json::to_value(question).map_err(|error| NetError(error.to_string()))?;
    connect(net, store, tenant, away, (CONNECT, question)).await
}

/// Why there is no stream to the node that has a tenant.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unconnected {
    /// Another attempt may help.
    #[error(transparent)]
    Net(#[from] NetError),
    /// That node says that none will.
    #[error("{0}")]
    Over(String),
}

/// A stream to the node that has a tenant now: asks where it is thought to be, and follows it.
pub(super) async fn connect(
    net: &dyn Net,
    store: &Store,
    tenant: &Arc<Tenant>,
    mut away: Arc<Away>,
    (path, question): (&'static str, serde_json::Value),
) -> Result<Box<dyn Duplex>, Unconnected> {
    for _ in 0..MAX_MOVES {
        let mut stream = net.stream(&away.to.url, path, question.clone()).await?;
        match tokio::time::timeout(PATIENCE, answer(&mut *stream)).await {
            Ok(Ok(ClientAnswer::Connected)) => return Ok(stream),
            Ok(Ok(ClientAnswer::Moved { away: next })) => {
                // That node has heard from here that the tenant runs here.
                if next.to.fingerprint == net.own() {
                    return Err(NetError("the tenant is back here".into()).into());
                }
                follow(store, tenant, &next).await;
                away = Arc::new(next);
            }
            Ok(Ok(ClientAnswer::Refused { reason })) => return Err(NetError(reason).into()),
            Ok(Ok(ClientAnswer::Over { reason })) => return Err(Unconnected::Over(reason)),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(NetError("the other node took too long".into()).into()),
        }
    }
    Err(NetError("the tenant moves faster than a client can follow".into()).into())
}

/// The tenant has moved on: the mark says so from now on.
pub async fn follow(store: &Store, tenant: &Arc<Tenant>, away: &Away) {
    if matches!(tenant.standing(), Standing::Away(_)) {
        match store.follow(tenant.owner().clone(), away.clone()).await {
            Ok(()) => tenant.stand(Standing::Away(Arc::new(away.clone()))),
            Err(error) => tracing::warn!(%error, "where a tenant has moved on to is not kept"),
        }
    }
}

/// The answer at the beginning of a stream, and not a byte more.
async fn answer(stream: &mut dyn Duplex) -> Result<ClientAnswer, NetError> {
    let broke = |error: std::io::Error| NetError(format!("the line to the other node broke: {error}"));
    // As a word on a line.
    let (_, length) = (stream.read_u8().await.map_err(broke)?, stream.read_u32_le().await.map_err(broke)?);
    if length > MAX_ANSWER {
        return Err(NetError("the other node's answer is too long; update the older node".into()));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text).await.map_err(broke)?;
    serde_json::from_slice(&text)
        .map_err(|error| NetError(format!("the other node's answer is not understood: {error}")))
}

pub(super) async fn say(stream: &mut dyn Duplex, answer: &ClientAnswer) -> std::io::Result<()> {
    let text = serde_json::to_vec(answer)?;
    stream.write_u8(0).await?;
    stream.write_u32_le(text.len() as u32).await?;
    stream.write_all(&text).await?;
    stream.flush().await
}

impl Migrations {
    /// Serves a client that another node relays.
    pub async fn serve_client(&self, question: AskClient, mut stream: Box<dyn Duplex>) {
        let connected = self.connect_client(&question).await;
        let (answer, client) = match connected {
            Ok(client) => (ClientAnswer::Connected, Some(client)),
            Err(answer) => (answer, None),
        };
        if say(&mut *stream, &answer).await.is_err() {
            return;
        }
        if let Some(mut client) = client {
            let _ = copy_bidirectional(&mut client, &mut stream).await;
        }
    }

    /// By the service's own door, which has its limits.
    async fn connect_client(&self, question: &AskClient) -> Result<TcpStream, ClientAnswer> {
        let refused = |reason: &str| ClientAnswer::Refused { reason: reason.to_owned() };
        let tenant = self.tenants.same(&question.tenant, &question.uuid);
        let tenant = tenant.ok_or_else(|| refused("the tenant is not here"))?;
        if let Standing::Away(away) = tenant.standing() {
            return Err(ClientAnswer::Moved { away: (*away).clone() });
        }
        let service = self.store.directory().service(tenant.name(), question.service.as_str());
        let service = service.ok_or_else(|| refused("the service is not there any more"))?;
        let address = self.services.address(service.port);
        let client = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await;
        let client = client.map_err(|_| refused("the service does not accept"))?;
        let client = client.map_err(|error| refused(&format!("the service does not accept: {error}")))?;
        let _ = client.set_nodelay(true);
        Ok(client)
    }
}
