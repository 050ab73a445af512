//! A small HTTP client for the node: one request, one connection, over TCP or a Unix socket.

use crate::failure::Failure;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Longest wait for a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer in bytes.
const MAX_ANSWER: usize = 1 << 30;

/// Where a node is.
#[derive(Debug, Clone)]
enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A way to a node.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
    /// Value of the `Authorization` header.
    authorization: Option<String>,
}

/// A node's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn json(&self) -> Result<Value, Failure> {
        let bad = |_| Failure::new("node", "its answer is not JSON; is there a nacre node at this address?");
        serde_json::from_slice(&self.body).map_err(bad)
    }

    /// The answer if it is a success, else what it says as a failure of `what`.
    ///
    /// # Errors
    /// What the node says.
    pub fn success(self, what: impl Display) -> Result<Self, Failure> {
        if self.status.is_success() {
            return Ok(self);
        }
        let said = self.json().ok().and_then(|body| Some(body.get("error")?.as_str()?.to_owned()));
        let said = said.unwrap_or_else(|| format!("the node answers {}", self.status));
        Err(Failure::new(what, said.trim_end_matches('.')))
    }
}

impl Client {
    /// Over a Unix socket.
    #[must_use]
    pub fn unix(path: &Path) -> Self {
        Self { place: Place::Unix(path.to_owned()), authorization: None }
    }

    /// Over TCP; `url` is `http://HOST[:PORT]`.
    ///
    /// # Errors
    /// If the URL is another one.
    pub fn http(url: &str) -> Result<Self, Failure> {
        let usage = |why: &str| Failure::usage(format_args!("--node {url}"), why, "write http://HOST:PORT");
        let Some(rest) = url.strip_prefix("http://") else {
            let why = if url.starts_with("https://") { "the node speaks plain HTTP" } else { "is no URL" };
            return Err(usage(why));
        };
        let authority = rest.trim_end_matches('/');
        let uri: hyper::Uri = format!("http://{authority}/").parse().map_err(|_| usage("is no URL"))?;
        if authority.contains(['/', '?', '#', '@']) {
            return Err(usage("has more than a host and a port"));
        }
        let host = uri.host().ok_or_else(|| usage("has no host"))?;
        if uri.port_u16().is_none() && authority != host {
            return Err(usage("has a port that is none"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { place: Place::Tcp { host, port: uri.port_u16().unwrap_or(80) }, authorization: None })
    }

    /// With this `Authorization` header.
    #[must_use]
    pub fn with_authorization(mut self, value: String) -> Self {
        self.authorization = Some(value);
        self
    }

    fn name(&self) -> String {
        match &self.place {
            Place::Tcp { host, port } => format!("node at {host}:{port}"),
            Place::Unix(path) => format!("node at {}", path.display()),
        }
    }

    /// Sends a request and reads the answer; `path` begins with "/".
    ///
    /// # Errors
    /// If no node answers.
    pub fn send(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new("nacre", format_args!("no runtime: {error}")))?;
        runtime.block_on(self.send_async(method, path, kind, body))
    }

    async fn send_async(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let unreachable = |error: &dyn Display| {
            Failure::new(
                self.name(),
                format_args!("can't be reached: {error}; start one with nacre node start, or name another"),
            )
        };
        let slow = |_| unreachable(&"no answer");
        match &self.place {
            Place::Tcp { host, port } => {
                let connect = TcpStream::connect((host.as_str(), *port));
                let stream = tokio::time::timeout(CONNECT_PATIENCE, connect).await.map_err(slow)?;
                self.talk(stream.map_err(|error| unreachable(&error))?, method, path, kind, body).await
            }
            Place::Unix(socket) => {
                let stream = tokio::time::timeout(CONNECT_PATIENCE, UnixStream::connect(socket)).await;
                let stream = stream.map_err(slow)?.map_err(|error| unreachable(&error))?;
                self.talk(stream, method, path, kind, body).await
            }
        }
    }

    async fn talk(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        method: Method,
        path: &str,
        kind: &str,
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let broken = |error: &dyn Display| {
            Failure::new(self.name(), format_args!("the connection broke: {error}; try again"))
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let connection = tokio::spawn(connection);
        let host = match &self.place {
            Place::Tcp { host, port } => format!("{host}:{port}"),
            Place::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        request = request.header(header::CONTENT_TYPE, kind);
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| broken(&error))?;
        connection.abort();
        Ok(Answer { status, body: body.to_bytes() })
    }
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
        let place = |url: &str| match Client::http(url).map(|client| client.place) {
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
