//! The way to a node: HTTP over TCP or a Unix socket. Connections are kept and used again, so that a session has one.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use serde_json::Value;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Longest wait for a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer in bytes to a request that nobody bounds: one of a plain action, with its logs.
const MAX_ANSWER: usize = 128 << 20;
/// Connections that are kept without use.
const MAX_IDLE: usize = 4;
/// A peer that is gone without a word is noticed after this silence, and three unanswered questions as far apart.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The URL names no node.
    #[error("{url} {problem}; write http://HOST:PORT")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No connection: nothing was sent.
    #[error("{node} can't be reached: {reason}; start one with nacre node start, or name another")]
    Unreachable {
        /// Which one.
        node: String,
        /// What the system says.
        reason: String,
    },
    /// The connection ended before the answer: the request may have arrived.
    #[error("the connection to {node} broke: {reason}; try again")]
    Broken {
        /// Which one.
        node: String,
        /// What happened.
        reason: String,
    },
    /// The node says no.
    #[error("{said}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        said: String,
    },
    /// Its answer is not one of a node's.
    #[error("the answer of {node} is not JSON as a node's is; is there a nacre node at this address?")]
    Strange {
        /// Which one.
        node: String,
    },
}

impl NodeError {
    /// The HTTP status, if the node said no.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Whether a request may reach the node twice, if a connection that was used before breaks under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Twice would be another thing than once.
    Never,
    /// Twice is as good as once.
    Once,
}

/// How much a node's answer may cost: it is not trusted to be short, or to come at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the answer's body.
    pub answer: usize,
    /// From the request to the last byte of the answer; for ever without.
    pub wait: Option<Duration>,
}

impl Default for Bounds {
    /// Of a plain action's answer, which takes as long as the action.
    fn default() -> Self {
        Self { answer: MAX_ANSWER, wait: None }
    }
}

/// Where a node is.
#[derive(Debug, Clone)]
enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

type Sender = SendRequest<Full<Bytes>>;

/// A node. Clones share its connections; they belong to the tokio runtime that made them, and others make their own.
#[derive(Clone)]
pub struct Node {
    place: Place,
    /// Value of the `Authorization` header.
    authorization: Option<String>,
    idle: Arc<Mutex<Vec<Sender>>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// The body of an answer that says no.
#[derive(serde::Deserialize)]
struct Said {
    error: String,
}

/// A node's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
    node: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// `Strange`.
    pub fn json(&self) -> Result<Value, NodeError> {
        self.parsed()
    }

    /// The body as JSON of a known form.
    ///
    /// # Errors
    /// `Strange`.
    pub fn parsed<T: serde::de::DeserializeOwned>(&self) -> Result<T, NodeError> {
        serde_json::from_slice(&self.body).map_err(|_| NodeError::Strange { node: self.node.clone() })
    }

    /// The answer if it is a success.
    ///
    /// # Errors
    /// `Refused` with what the node says.
    pub fn success(self) -> Result<Self, NodeError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let said = self.parsed::<Said>().ok().map(|body| body.error);
        let said = said.unwrap_or_else(|| format!("the node answers {}", self.status));
        let said = said.trim_end_matches('.').to_owned();
        Err(NodeError::Refused { status: self.status.as_u16(), said })
    }
}

impl Node {
    fn at(place: Place) -> Self {
        Self { place, authorization: None, idle: Arc::default() }
    }

    /// Over a Unix socket.
    #[must_use]
    pub fn unix(path: &Path) -> Self {
        Self::at(Place::Unix(path.to_owned()))
    }

    /// Over TCP; `url` is `http://HOST[:PORT]`.
    ///
    /// # Errors
    /// `Url` if it is another one.
    pub fn http(url: &str) -> Result<Self, NodeError> {
        let wrong = |problem| NodeError::Url { url: url.to_owned(), problem };
        let Some(rest) = url.strip_prefix("http://") else {
            let tls = url.starts_with("https://");
            return Err(wrong(if tls {
                "is not what a node speaks, which is plain HTTP"
            } else {
                "is no URL"
            }));
        };
        let authority = rest.trim_end_matches('/');
        let uri: hyper::Uri = format!("http://{authority}/").parse().map_err(|_| wrong("is no URL"))?;
        if authority.contains(['/', '?', '#', '@']) {
            return Err(wrong("has more than a host and a port"));
        }
        let host = uri.host().ok_or_else(|| wrong("has no host"))?;
        if uri.port_u16().is_none() && authority != host {
            return Err(wrong("has a port that is none"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self::at(Place::Tcp { host, port: uri.port_u16().unwrap_or(80) }))
    }

    /// With this `Authorization` header.
    #[must_use]
    pub fn with_authorization(mut self, value: String) -> Self {
        self.authorization = Some(value);
        self
    }

    /// With a tenant's credentials, `uuid:key`.
    #[must_use]
    pub fn with_credentials(self, credentials: &str) -> Self {
        use base64::Engine;
        let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
        self.with_authorization(format!("Basic {encoded}"))
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.place {
            Place::Tcp { host, port } => format!("node at {host}:{port}"),
            Place::Unix(path) => format!("node at {}", path.display()),
        }
    }

    /// The host that is connected to; none over a Unix socket.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match &self.place {
            Place::Tcp { host, .. } => Some(host),
            Place::Unix(_) => None,
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self, reason: &dyn Display) -> NodeError {
        NodeError::Broken { node: self.name(), reason: reason.to_string() }
    }

    /// Sends a request and reads the answer; `path` begins with "/", `kind` is the body's content type.
    ///
    /// # Errors
    /// `Unreachable`, `Broken`.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: impl Into<Bytes>,
        repeat: Repeat,
    ) -> Result<Answer, NodeError> {
        self.send_within(method, path, kind, body, repeat, Bounds::default()).await
    }

    /// The same, for an answer that has bounds.
    ///
    /// # Errors
    /// `Unreachable`, `Broken`: that one too if the answer is too long or late.
    pub async fn send_within(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: impl Into<Bytes>,
        repeat: Repeat,
        bounds: Bounds,
    ) -> Result<Answer, NodeError> {
        let message = self.message(method, path, kind, body.into())?;
        let answer = self.exchange(message, repeat, bounds.answer);
        let Some(wait) = bounds.wait else { return answer.await };
        let late = |_| self.broken(&format_args!("no answer within {} s", wait.as_secs()));
        tokio::time::timeout(wait, answer).await.map_err(late)?
    }

    async fn exchange(
        &self,
        mut message: Request<Full<Bytes>>,
        repeat: Repeat,
        most: usize,
    ) -> Result<Answer, NodeError> {
        // Whether a connection took it, so that it may have arrived.
        let mut handed = false;
        loop {
            let kept = self.idle().pop();
            let Some(mut sender) = kept else { break };
            if sender.ready().await.is_err() {
                continue;
            }
            let again = (repeat == Repeat::Once).then(|| message.clone());
            match sender.try_send_request(message).await {
                Ok(response) => return self.read(sender, response, most).await,
                // The node had closed the connection.
                Err(mut error) => match (error.take_message(), again) {
                    (Some(unsent), _) => message = unsent,
                    (None, Some(again)) => (message, handed) = (again, true),
                    (None, None) => return Err(self.broken(error.error())),
                },
            }
        }
        let mut sender = self.connect().await.map_err(|error| match error {
            NodeError::Unreachable { node, reason } if handed => NodeError::Broken { node, reason },
            error => error,
        })?;
        let response = sender.send_request(message).await.map_err(|error| self.broken(&error))?;
        self.read(sender, response, most).await
    }

    fn message(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, NodeError> {
        let host = match &self.place {
            Place::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Place::Tcp { host, port } => format!("{host}:{port}"),
            Place::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        request = request.header(header::CONTENT_TYPE, kind);
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(Full::new(body)).map_err(|error| self.broken(&error))
    }

    async fn read(
        &self,
        sender: Sender,
        response: Response<Incoming>,
        most: usize,
    ) -> Result<Answer, NodeError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), most).collect().await;
        let body = body.map_err(|error| self.broken(&error))?.to_bytes();
        let mut idle = self.idle();
        if !sender.is_closed() && idle.len() < MAX_IDLE {
            idle.push(sender);
        }
        Ok(Answer { status, body, node: self.name() })
    }

    async fn connect(&self) -> Result<Sender, NodeError> {
        let unreachable =
            |reason: &dyn Display| NodeError::Unreachable { node: self.name(), reason: reason.to_string() };
        let slow = |_| unreachable(&"no answer");
        match &self.place {
            Place::Tcp { host, port } => {
                let connect = TcpStream::connect((host.as_str(), *port));
                let stream = tokio::time::timeout(CONNECT_PATIENCE, connect).await.map_err(slow)?;
                let stream = stream.map_err(|error| unreachable(&error))?;
                prepare(&stream).map_err(|error| unreachable(&error))?;
                self.handshake(stream).await
            }
            Place::Unix(socket) => {
                let stream = tokio::time::timeout(CONNECT_PATIENCE, UnixStream::connect(socket)).await;
                let stream = stream.map_err(slow)?.map_err(|error| unreachable(&error))?;
                self.handshake(stream).await
            }
        }
    }

    async fn handshake(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Sender, NodeError> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        // It ends when the last sender is dropped, or the node closes; requests get its errors.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// No waiting for more to send, and silence does not last for ever.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

/// One part of a path, escaped.
#[must_use]
pub fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_and_a_port() {
        let place = |url: &str| match Node::http(url).map(|node| node.place) {
            Ok(Place::Tcp { host, port }) => Some((host, port)),
            _ => None,
        };
        assert_eq!(place("http://localhost:3233"), Some(("localhost".into(), 3233)));
        assert_eq!(place("http://[::1]:1/"), Some(("::1".into(), 1)));
        assert_eq!(place("http://a"), Some(("a".into(), 80)));
        for url in ["", "a:1", "https://a:1", "http://", "http://a/b", "http://a:99999", "http://u:p@a"] {
            assert_eq!(place(url), None, "{url}");
        }
    }
}
