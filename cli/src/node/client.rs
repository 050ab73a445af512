//! The node's client for commands, which wait for each answer: the client library's, and failures for the user.

use crate::failure::Failure;
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
pub use nacre_client::http::segment;
use nacre_client::http::{self, Node, NodeError, Repeat};
use serde_json::Value;
use std::fmt::Display;
use std::future::Future;
use std::path::Path;

/// A way to a node.
#[derive(Debug, Clone)]
pub struct Client {
    node: Node,
}

/// A node's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
    inner: http::Answer,
}

/// What a node's error is for the user; `what` was asked for.
pub fn failure(what: impl Display, error: NodeError) -> Failure {
    match error {
        NodeError::Url { url, problem } => {
            Failure::usage(format_args!("--node {url}"), problem, "write http://HOST:PORT")
        }
        NodeError::Unreachable { node, reason } => Failure::new(
            node,
            format_args!("can't be reached: {reason}; start one with nacre node start, or name another"),
        ),
        NodeError::Broken { node, reason } => {
            Failure::new(node, format_args!("the connection broke: {reason}; try again"))
        }
        NodeError::Refused { said, .. } => Failure::new(what, said),
        NodeError::Strange { .. } => {
            Failure::new("node", "its answer is not JSON; is there a nacre node at this address?")
        }
    }
}

/// Waits for what a command does with a node.
///
/// # Errors
/// If there is no runtime; and those of `work`.
pub fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("nacre", format_args!("no runtime: {error}")))?;
    runtime.block_on(work)
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn json(&self) -> Result<Value, Failure> {
        self.inner.json().map_err(|error| failure("node", error))
    }

    /// The answer if it is a success, else what it says as a failure of `what`.
    ///
    /// # Errors
    /// What the node says.
    pub fn success(self, what: impl Display) -> Result<Self, Failure> {
        let inner = self.inner.success().map_err(|error| failure(what, error))?;
        Ok(Self { inner, ..self })
    }
}

impl Client {
    /// Over a Unix socket.
    #[must_use]
    pub fn unix(path: &Path) -> Self {
        Self { node: Node::unix(path) }
    }

    /// Over TCP; `url` is `http://HOST[:PORT]`.
    ///
    /// # Errors
    /// If the URL is another one.
    pub fn http(url: &str) -> Result<Self, Failure> {
        Ok(Self { node: Node::http(url).map_err(|error| failure("node", error))? })
    }

    /// With this `Authorization` header.
    #[must_use]
    pub fn with_authorization(self, value: String) -> Self {
        Self { node: self.node.with_authorization(value) }
    }

    /// The node itself.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Sends a request and reads the answer; `path` begins with "/".
    ///
    /// # Errors
    /// If no node answers.
    pub fn send(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let sent = async {
            let sent = self.node.send(method, path, kind, body, Repeat::Never).await;
            sent.map_err(|error| failure("node", error))
        };
        let inner = wait(sent)?;
        Ok(Answer { status: inner.status, body: inner.body.clone(), inner })
    }
}
