//! What migrations need of other nodes: the peers of this node, or two nodes of one process in a test.

use super::PeerName;
use crate::names::Digest;
use axum::body::Body;
use axum::http::{Request, Response};
use serde_json::Value;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Where sources bring their tenants.
pub const MOVE: &str = "/peer/v1/migrations";
/// Where a Commit is delivered again.
pub const COMMIT: &str = "/peer/v1/migrations/commit";
/// Where a ticket for another connection is had.
pub const REJOIN: &str = "/peer/v1/migrations/rejoin";
/// Where clients of services are relayed.
pub const CONNECT: &str = "/peer/v1/services/connect";
/// Where connections and calls go on whose tenant has moved.
pub const TUNNEL: &str = "/peer/v1/tunnels";
/// Where calls that ended after their tenant had moved are told.
pub const ENDED: &str = "/peer/v1/activations";
/// Before the paths of forwarded requests of tenants.
pub const TENANT: &str = "/peer/v1/tenant";

/// What came of it.
pub type Wait<T> = Pin<Box<dyn Future<Output = Result<T, NetError>> + Send>>;

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Why another node can't be asked: one sentence, with the remedy after "; ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NetError(pub String);

/// A node's way to others.
pub trait Net: Send + Sync {
    /// Who this node is for others.
    fn own(&self) -> Digest;
    /// Where this node listens to others, if it is known.
    fn address(&self) -> Option<String>;
    /// The form in which the address of a node is kept.
    ///
    /// # Errors
    /// If it is none.
    fn url(&self, text: &str) -> Result<String, NetError>;
    /// Asks a node; nobody else's answer counts.
    fn ask(&self, node: &PeerName, path: &'static str, question: Value) -> Wait<Value>;
    /// Opens a stream of bytes to a node.
    fn stream(&self, node: &str, path: &'static str, question: Value) -> Wait<Box<dyn Duplex>>;
    /// Opens a connection to it for bytes that guests have encrypted.
    fn bare(&self, node: &str, ticket: String) -> Wait<std::net::TcpStream>;
    /// A ticket for such a connection from a node, and the connection.
    ///
    /// # Errors
    /// If too many are awaited.
    fn expect(
        &self,
        from: Digest,
        patience: Duration,
    ) -> Result<(String, Wait<std::net::TcpStream>), NetError>;
    /// Forwards a request of a tenant; its path begins with [`TENANT`].
    fn forward(&self, node: &str, request: Request<Body>) -> Wait<Response<Body>>;
}

impl std::fmt::Debug for dyn Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Net({})", self.own())
    }
}
