//! Accepting connections and speaking HTTP/1.1 on them, bounded in number, time and memory.

use super::impatient::Impatient;
use super::layer::Head;
use super::openwhisk::{PATTERN, answer_call, is_call};
use super::watch::Watch;
use crate::daemon::Node;
use axum::Router;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// A client has this long for the head of a request, and may keep a connection open without one.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);
/// Buffer of a connection in bytes: the head of a request must fit.
const BUFFER_BYTES: usize = 64 << 10;
/// Most header fields.
const MAX_HEADERS: usize = 64;
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A client has to take something of an answer within this time.
const TAKE_PATIENCE: Duration = Duration::from_secs(60);
/// Data that a client does not acknowledge for this long ends the connection, in milliseconds.
const UNACKNOWLEDGED_MS: u32 = 60_000;

/// A source of connections.
pub(super) trait Listen: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next one.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = tokio::net::TcpStream;
    async fn accept(&mut self) -> io::Result<Self::Stream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Answers are written whole: waiting for more would only delay them. Neither setting is needed for being right.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MS);
        Ok(stream)
    }
}

impl Listen for UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn accept(&mut self) -> io::Result<Self::Stream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

/// Counts a connection while it lives.
struct Counted<'c>(&'c AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What answers requests: calls of actions, which are most of them, go a way of their own around the router; the layer and the
/// handler are the same.
#[derive(Clone)]
pub(super) struct Front {
    /// Everything.
    pub(super) router: Router,
    /// For calls of actions, where they are served.
    pub(super) calls: Option<Arc<Node>>,
}

/// The same for one connection.
struct Attended {
    front: Front,
    watch: Arc<Watch>,
}

impl Service<Request<Incoming>> for Attended {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = self.watch.busy();
        match &self.front.calls {
            Some(node) if node.migrations.is_quiet() && is_call(&request).is_some() => {
                let (head, node) = (Head::of(&request), node.clone());
                Box::pin(async move {
                    let _busy = busy;
                    Ok(head.around(PATTERN, answer_call(node, request)).await)
                })
            }
            _ => {
                let answer = TowerToHyperService::new(self.front.router.clone()).call(request);
                Box::pin(async move {
                    let _busy = busy;
                    answer.await
                })
            }
        }
    }
}

/// Serves `front` on a listener until the node stops; then open connections finish their requests.
pub(super) async fn serve<L: Listen>(mut listener: L, front: Front, node: Arc<Node>) {
    let mut stopping = node.stopping.subscribe();
    let places = Arc::new(Semaphore::new(node.config.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // More connections than that wait in the kernel.
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = stopped(&mut stopping) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(stream) => {
                let (front, stopping, node) = (front.clone(), stopping.clone(), node.clone());
                connections.spawn(async move {
                    node.connections.fetch_add(1, Ordering::Relaxed);
                    let _counted = Counted(&node.connections);
                    connection(stream, front, stopping).await;
                    drop(place);
                });
            }
            Err(error) => {
                // A client that went away while it waited is nothing; without descriptors, wait for some.
                tracing::debug!(%error, "a connection was not accepted");
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

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    front: Front,
    mut stopping: watch::Receiver<bool>,
) {
    let mut builder = http1::Builder::new();
    builder
        // `Watch` does it.
        .header_read_timeout(None::<Duration>)
        .max_buf_size(BUFFER_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(false);
    let watch = Watch::new();
    let stream = Impatient::new(stream, TAKE_PATIENCE, watch.clone());
    let service = Attended { front, watch: watch.clone() };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
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
        tracing::debug!(%error, "a connection ended early");
    }
}
