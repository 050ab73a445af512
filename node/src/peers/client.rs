//! Requests to other nodes, over connections that are kept for a while and used again.

use super::dial::{Dialled, Purpose, dial};
use super::error::PeerError;
use super::name::{Fingerprint, PeerUrl};
use super::places::Places;
use super::verify::Wanted;
use super::{Core, Peers};
use axum::body::{Body, HttpBody};
use axum::http::header::{self, HeaderMap, HeaderName};
use axum::http::uri::{Authority, PathAndQuery, Scheme, Uri};
use axum::http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::net::sockopt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt::{self, Display};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;
use tower::Service;

/// How long a connection is kept without use: shorter than the other end keeps it.
const IDLE: Duration = Duration::from_secs(30);
/// Connections that are kept without use, for each node.
const MAX_IDLE: usize = 16;
/// Requests that are forwarded to one node at once: of the connections that nodes may have beside those of relayed clients, three quarters in both directions.
const MAX_FORWARDED: usize = 384;
/// Longest body of an answer that says no, in bytes, and longest text of it that is told, in characters.
pub(super) const MAX_SAID: usize = 64 << 10;
const MAX_TOLD: usize = 1024;
/// Data of a request that the other end does not take for this long ends the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// The connections that are kept.
pub(super) type Http = Client<Dialer, Body>;

/// The places for requests that are forwarded.
pub(super) fn forwarded() -> Places {
    Places::new(MAX_FORWARDED, "others whose requests were forwarded to it")
}

/// How much an answer may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of its body.
    pub answer: usize,
    /// From the question to the last byte of the answer.
    pub wait: Duration,
}

impl Default for Bounds {
    /// 1 MiB within 30 s.
    fn default() -> Self {
        Self { answer: 1 << 20, wait: Duration::from_secs(30) }
    }
}

/// Makes connections for the client.
#[derive(Clone)]
pub(super) struct Dialer(Arc<Core>, Purpose);

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

pub(super) fn http(core: Arc<Core>, purpose: Purpose) -> Http {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        .build(Dialer(core, purpose))
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Dialled>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (core, purpose) = (self.0.clone(), self.1);
        Box::pin(async move {
            let authority = uri.authority().map_or("", Authority::as_str);
            let (who, node) = authority.split_once('@').unwrap_or(("", authority));
            let wanted = if who.is_empty() { Wanted::Trusted } else { Wanted::This(who.parse()?) };
            let node = node.parse()?;
            let link = dial(&core, &node, wanted, purpose).await?;
            let patience = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
            sockopt::set_tcp_user_timeout(link.stream().get_ref().0, patience)?;
            Ok(TokioIo::new(link))
        })
    }
}

impl Peers {
    /// Who may answer at `node`.
    pub(super) fn wanted(&self, node: &PeerUrl) -> Wanted {
        self.core.trust.recorded(node).map_or(Wanted::Trusted, Wanted::This)
    }

    /// The address of a path of a node. Who is to answer is part of it, so that a kept connection with another is not used.
    fn uri(&self, node: &PeerUrl, who: Option<Fingerprint>, path: PathAndQuery) -> Result<Uri, PeerError> {
        let authority = match who.map_or_else(|| self.wanted(node), Wanted::This) {
            Wanted::This(who) => format!("{who}@{node}"),
            _ => node.to_string(),
        };
        let built = Uri::builder().scheme(Scheme::HTTPS).authority(authority).path_and_query(path).build();
        built.map_err(|error| PeerError::Protocol { node: node.clone(), problem: error.to_string() })
    }
}

async fn send(http: &Http, node: &PeerUrl, request: Request<Body>) -> Result<Response<Body>, PeerError> {
    let response = http.request(request).await.map_err(|error| failed(node, &error))?;
    Ok(response.map(Body::new))
}

/// What an error of the client means.
fn failed(node: &PeerUrl, error: &legacy::Error) -> PeerError {
    let mut cause = error.source();
    while let Some(reason) = cause {
        if let Some(error) = reason.downcast_ref::<PeerError>() {
            return error.clone();
        }
        cause = reason.source();
    }
    broken(node, error)
}

/// A connection that broke; the innermost reason is the one that says something.
pub(super) fn broken(node: &PeerUrl, error: &(dyn Error + 'static)) -> PeerError {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    PeerError::Broken { node: node.clone(), reason: innermost.to_string() }
}

/// The body of an answer that says no.
#[derive(Deserialize)]
struct Said {
    error: String,
}

/// What an answer says that is no success, in one line.
pub(super) fn said(status: StatusCode, body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Said>(body) {
        Ok(Said { error }) => error,
        Err(_) => status.canonical_reason().unwrap_or("no reason").to_owned(),
    };
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(MAX_TOLD).collect::<String>().trim_end_matches('.').to_owned()
}

/// Asks a question; `who` says who may answer it, if not whoever is recorded for that address.
pub(super) async fn ask<Q: Serialize, A: DeserializeOwned>(
    peers: &Peers,
    (node, who): (&PeerUrl, Option<Fingerprint>),
    path: &str,
    question: &Q,
    bounds: Bounds,
) -> Result<A, PeerError> {
    let protocol =
        |problem: &dyn Display| PeerError::Protocol { node: node.clone(), problem: problem.to_string() };
    let path = path.parse::<PathAndQuery>().map_err(|error| protocol(&error))?;
    let body = serde_json::to_vec(question).map_err(|error| protocol(&error))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(peers.uri(node, who, path)?)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|error| protocol(&error))?;
    let answered = async {
        let response = send(&peers.http, node, request).await?;
        let status = response.status();
        let most = if status.is_success() { bounds.answer } else { MAX_SAID };
        let body = Limited::new(response.into_body(), most).collect().await;
        if !status.is_success() {
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            return Err(PeerError::Answered {
                node: node.clone(),
                status: status.as_u16(),
                text: said(status, &body),
            });
        }
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return protocol(&format_args!("its answer has more than {most} bytes"));
            }
            PeerError::Broken { node: node.clone(), reason: error.to_string() }
        })?;
        serde_json::from_slice(&body.to_bytes())
            .map_err(|error| protocol(&format_args!("its answer: {error}")))
    };
    let late = |_| PeerError::TimedOut { node: node.clone(), what: "its answer" };
    timeout(bounds.wait, answered).await.map_err(late)?
}

/// Forwards a request. It has its place among those that are forwarded until the body of the answer has ended.
pub(super) async fn forward(
    peers: &Peers,
    node: &PeerUrl,
    request: Request<Body>,
) -> Result<Response<Body>, PeerError> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    parts.uri = peers.uri(node, None, path)?;
    parts.version = Version::HTTP_11;
    // What this node knows of its own client is not the client library's.
    parts.extensions = http::Extensions::new();
    end_to_end(&mut parts.headers);
    // A body without an end of its own would be sent in chunks, also where there is none.
    let body = if body.is_end_stream() { Body::empty() } else { body };
    let place = peers.core.forwarded.take(node).await?;
    let mut response = send(&peers.forwarding, node, Request::from_parts(parts, body)).await?;
    end_to_end(response.headers_mut());
    let held = move |frame| {
        let _ = &place;
        frame
    };
    Ok(response.map(|body| Body::new(body.map_frame(held))))
}

/// Leaves only the headers that concern both ends, not one connection (RFC 9110, 7.6.1).
fn end_to_end(headers: &mut HeaderMap) {
    const OF_A_CONNECTION: [HeaderName; 8] = [
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    for name in OF_A_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_is_not_forwarded() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("x-end", "2"),
            ("authorization", "Basic x"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        end_to_end(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-end"]);
    }

    #[test]
    fn what_a_node_says_is_one_bounded_line() {
        assert_eq!(said(StatusCode::CONFLICT, b"{\"error\":\"a\\nb; do c.\"}"), "a b; do c");
        assert_eq!(said(StatusCode::CONFLICT, b"<html>"), "Conflict");
        let long = serde_json::json!({ "error": "x".repeat(9999) }).to_string();
        assert_eq!(said(StatusCode::CONFLICT, long.as_bytes()).len(), MAX_TOLD);
    }
}
