//! Connections of other nodes: who may come in, bounded before anything is spent on it; then HTTP/1.1, or a bare connection.

use super::Peers;
use super::bare;
use super::dial::{HANDSHAKE_PATIENCE, prepare};
use super::identity::fingerprint;
use super::link::{LINK_FULL, LINK_VERSION, Link};
use super::name::Fingerprint;
use super::trust::NoLease;
use super::verify::{self, Refused, refused_there};
use crate::http::watch::Watch;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections at once; more wait in the kernel.
const MAX_CONNECTIONS: usize = 16384;
/// Of these, such whose other end is not known yet, and such of one address.
const MAX_STRANGERS: usize = 256;
pub(super) const MAX_STRANGERS_OF_ONE: usize = 64;
/// A node has this long for the head of a request, and may keep a connection open without one.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);
/// Buffer of a connection in bytes: the head of a request must fit.
const BUFFER_BYTES: usize = 64 << 10;
/// Most header fields.
const MAX_HEADERS: usize = 64;
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a refused node may take to hear it, and what it may still send meanwhile, in bytes.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 64 << 10;

/// The trusted node that asks: an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub Fingerprint);

/// Addresses from which strangers come, and how many.
type Strangers = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A connection whose other end is not known yet. Its place is free again when that is known.
struct Stranger {
    strangers: Strangers,
    address: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Stranger {
    /// None if there are enough from this address.
    fn admit(strangers: &Strangers, address: IpAddr, place: OwnedSemaphorePermit) -> Option<Self> {
        let mut all = strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = all.entry(address).or_default();
        if *of_one >= MAX_STRANGERS_OF_ONE {
            return None;
        }
        *of_one += 1;
        drop(all);
        Some(Self { strangers: strangers.clone(), address, _place: place })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut all = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = all.get_mut(&self.address) {
            *of_one -= 1;
            if *of_one == 0 {
                all.remove(&self.address);
            }
        }
    }
}

/// Serves `router` to trusted nodes on a listener until `stopping`; then open requests are finished. Streams and bare connections belong to who
/// took them.
pub async fn serve(peers: Peers, listener: TcpListener, router: Router, mut stopping: watch::Receiver<bool>) {
    let acceptor = match verify::listening(&peers.core) {
        Ok(config) => TlsAcceptor::from(config),
        Err(error) => return tracing::error!(%error, "the peer port can't be served"),
    };
    let (places, unknown) = (Semaphore::new(MAX_CONNECTIONS), Semaphore::new(MAX_STRANGERS));
    let (places, unknown) = (Arc::new(places), Arc::new(unknown));
    let strangers = Strangers::default();
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // More connections than that wait in the kernel.
            let place = places.clone().acquire_owned().await;
            let unknown = unknown.clone().acquire_owned().await;
            (listener.accept().await, place, unknown)
        };
        let (accepted, place, unknown) = tokio::select! {
            next = next => next,
            () = stopped(&mut stopping) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, from)) => {
                let Ok(unknown) = unknown else { break };
                let Some(stranger) = Stranger::admit(&strangers, from.ip(), unknown) else {
                    tracing::debug!(%from, "too many strangers from one address");
                    continue;
                };
                let arrival = Arrival { peers: peers.clone(), acceptor: acceptor.clone(), from: from.ip() };
                let (router, stopping) = (router.clone(), stopping.clone());
                connections.spawn(async move {
                    if let Some((link, caller)) = arrival.welcome(stream, stranger).await {
                        converse(link, caller, router, stopping).await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // A node that went away while it waited is nothing; without descriptors, wait for some.
                tracing::debug!(%error, "a peer's connection was not accepted");
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The node is to end.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // Without a sender the node is gone.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// What a new connection meets.
struct Arrival {
    peers: Peers,
    acceptor: TlsAcceptor,
    from: IpAddr,
}

impl Arrival {
    /// A link with a trusted node, and who that is; none if it is something else, which is dealt with then.
    async fn welcome(
        &self,
        stream: TcpStream,
        stranger: Stranger,
    ) -> Option<(Link<TlsStream<TcpStream>>, Caller)> {
        let welcomed = timeout(HANDSHAKE_PATIENCE, self.look(stream)).await;
        drop(stranger);
        match welcomed {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => {
                self.tell(&error);
                None
            }
            Err(_) => {
                tracing::debug!(from = %self.from, "a handshake took too long");
                None
            }
        }
    }

    async fn look(&self, stream: TcpStream) -> io::Result<Option<(Link<TlsStream<TcpStream>>, Caller)>> {
        prepare(&stream)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(None);
        }
        if first[0] == bare::PREAMBLE[0] {
            bare::arrive(&self.peers.tickets, stream).await?;
            return Ok(None);
        }
        match self.acceptor.accept(stream).into_fallible().await {
            Ok(stream) => self.greet(stream).await,
            Err((error, stream)) => {
                // Closed at once, with bytes unread, the connection would end before the other end has read why.
                let _ = timeout(FAREWELL, farewell(stream)).await;
                Err(error)
            }
        }
    }

    async fn greet(
        &self,
        mut stream: TlsStream<TcpStream>,
    ) -> io::Result<Option<(Link<TlsStream<TcpStream>>, Caller)>> {
        let certificates = stream.get_ref().1.peer_certificates();
        let shown = certificates.and_then(|chain| fingerprint(chain.first()?));
        // Without one the handshake would have failed.
        let Some(shown) = shown else { return Ok(None) };
        let lease = match self.peers.core.trust.lease(shown) {
            Ok(lease) => lease,
            // It ended since the handshake.
            Err(NoLease::NotTrusted) => return Ok(None),
            Err(NoLease::Full) => {
                tracing::warn!(node = %shown, "this node has as many connections as it may");
                stream.write_u8(LINK_FULL).await?;
                stream.shutdown().await?;
                return Ok(None);
            }
        };
        stream.write_u8(LINK_VERSION).await?;
        stream.flush().await?;
        Ok(Some((Link::new(stream, lease), Caller(shown))))
    }

    /// What went wrong, for who operates this node.
    fn tell(&self, error: &io::Error) {
        let from = self.from;
        match Refused::of(error) {
            Some(Refused::Unknown(node)) => tracing::info!(
                %from, %node,
                "a node that is not trusted was refused; to trust it: nacre node trust HOST:PORT --fingerprint {node}"
            ),
            None if refused_there(error) => {
                tracing::info!(%from, "a node refused this one; to be trusted, run there: {}", self.peers.command());
            }
            _ => tracing::debug!(%from, %error, "a stranger was refused"),
        }
    }
}

/// Reads what a refused node still sends, until it has read why.
async fn farewell(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// HTTP/1.1 with a trusted node, until one of both has enough.
async fn converse(
    link: Link<TlsStream<TcpStream>>,
    caller: Caller,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let watch = Watch::new();
    let asked = watch.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let busy = asked.busy();
        request.extensions_mut().insert(caller);
        let answer = TowerToHyperService::new(router.clone()).call(request);
        async move {
            let answer: Response<Body> = answer.await?;
            // Busy for as long as the answer goes on.
            let hold = move |frame| {
                let _ = &busy;
                frame
            };
            Ok::<_, std::convert::Infallible>(answer.map(|body| body.map_frame(hold)))
        }
    });
    let mut builder = http1::Builder::new();
    // `Watch` looks after the time of heads.
    builder.header_read_timeout(None::<Duration>).max_buf_size(BUFFER_BYTES).max_headers(MAX_HEADERS);
    let connection = builder.half_close(false).serve_connection(TokioIo::new(link), service).with_upgrades();
    let mut connection = pin!(connection);
    let (mut idle, mut stop) = (pin!(watch.idle(HEAD_PATIENCE)), pin!(stopped(&mut stopping)));
    let mut told = false;
    let result = loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => break result,
            () = idle.as_mut() => return,
            () = stop.as_mut(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, node = %caller.0, "a node's connection ended early");
    }
}
