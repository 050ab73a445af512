//! Streams of bytes within TLS, both ends: an HTTP request with a question that is answered by "101 Switching Protocols". And the bodies of
//! questions, as handlers read them.

use super::Peers;
use super::client::{MAX_SAID, broken, said};
use super::dial::{HANDSHAKE_PATIENCE, Purpose, dial};
use super::error::PeerError;
use super::name::PeerUrl;
use crate::http::error::ApiError;
use crate::http::extract;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// What the connection is changed to.
const PROTOCOL: HeaderValue = HeaderValue::from_static("nacre-stream");
/// The question, JSON in base64.
const QUESTION: HeaderName = HeaderName::from_static("nacre-question");
/// Longest question of a stream in bytes of JSON.
pub const MAX_QUESTION: usize = 16 << 10;
/// Longest body of a question in bytes.
const MAX_BODY: usize = 1 << 20;
/// How long a node may think about a stream.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes both ways with another node. What was written is on its way after a flush. It ends where the trust in the node ends.
pub struct PeerStream(TokioIo<Upgraded>);

impl fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerStream")
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Opens a stream.
pub(super) async fn open<Q: Serialize>(
    peers: &Peers,
    node: &PeerUrl,
    path: &str,
    question: &Q,
) -> Result<PeerStream, PeerError> {
    let protocol = |problem: String| PeerError::Protocol { node: node.clone(), problem };
    let json = serde_json::to_vec(question).map_err(|error| protocol(error.to_string()))?;
    if json.len() > MAX_QUESTION {
        return Err(protocol(format!(
            "a question has {} bytes, a stream's takes {MAX_QUESTION}",
            json.len()
        )));
    }
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, node.to_string())
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .header(QUESTION, STANDARD.encode(json))
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| protocol(error.to_string()))?;
    // A connection of its own, since it has no other use afterwards.
    let link = dial(&peers.core, node, peers.wanted(node), Purpose::Streams).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(link)).await.map_err(|error| broken(node, &error))?;
    tokio::spawn(connection.with_upgrades());
    let answered = async {
        let response = sender.send_request(request).await.map_err(|error| broken(node, &error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(response).await.map_err(|error| broken(node, &error))?;
            return Ok(PeerStream(TokioIo::new(upgraded)));
        }
        let (status, body) = (response.status(), Limited::new(response.into_body(), MAX_SAID));
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(PeerError::Answered { node: node.clone(), status: status.as_u16(), text: said(status, &body) })
    };
    let late = |_| PeerError::TimedOut { node: node.clone(), what: "its answer" };
    timeout(ANSWER_PATIENCE, answered).await.map_err(late)?
}

/// A stream that another node wants, for its handler: refuse it with an answer of your own, or [`accept`](Self::accept) it.
pub struct StreamRequest<Q> {
    /// What it is to be about.
    pub question: Q,
    upgrade: OnUpgrade,
}

impl<Q: fmt::Debug> fmt::Debug for StreamRequest<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRequest").field("question", &self.question).finish_non_exhaustive()
    }
}

impl<Q: DeserializeOwned, S: Sync> FromRequestParts<S> for StreamRequest<Q> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let asked = parts.headers.get(header::UPGRADE) == Some(&PROTOCOL);
        let upgrade = upgrade.filter(|_| asked).ok_or_else(|| {
            ApiError::new(StatusCode::UPGRADE_REQUIRED, "This resource is a stream; ask for an upgrade.")
        })?;
        let json = parts.headers.get(QUESTION).and_then(|value| STANDARD.decode(value).ok());
        let json = json.ok_or_else(|| ApiError::bad("The request has no question in base64."))?;
        Ok(Self { question: extract::json(&json)?, upgrade })
    }
}

impl<Q> StreamRequest<Q> {
    /// Says yes; `run` gets the stream once the other node knows.
    pub fn accept<F>(self, run: impl FnOnce(PeerStream) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            match timeout(HANDSHAKE_PATIENCE, upgrade).await {
                Ok(Ok(upgraded)) => run(PeerStream(TokioIo::new(upgraded))).await,
                Ok(Err(error)) => tracing::debug!(%error, "a stream was not taken up"),
                Err(_) => tracing::debug!("a stream was not taken up in time"),
            }
        });
        let headers =
            [(header::CONNECTION, HeaderValue::from_static("upgrade")), (header::UPGRADE, PROTOCOL)];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }
}

/// The question in a request's body, for its handler: JSON of at most 1 MiB that comes in time.
#[derive(Clone, Copy, Debug)]
pub struct Question<Q>(pub Q);

impl<Q: DeserializeOwned, S: Sync> FromRequest<S> for Question<Q> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, ApiError> {
        let body = extract::small(request.into_body(), MAX_BODY).await?;
        extract::json(&body).map(Self)
    }
}
