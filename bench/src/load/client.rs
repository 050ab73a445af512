//! A connection to an HTTP server that is kept open: one request after the other, answers with a length. It does as little as
//! possible, so that what it takes of the processors says little about the servers it is used on.

use std::io::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest answer in bytes, head included.
const MAX_ANSWER: usize = 64 << 20;
const MAX_HEADERS: usize = 64;
const READ_BYTES: usize = 16 << 10;

/// The bytes of a request with a JSON body.
#[must_use]
pub fn request(method: &str, path: &str, authorization: Option<&str>, body: &[u8]) -> Vec<u8> {
    let authorization = authorization.map_or_else(String::new, |value| format!("authorization: {value}\r\n"));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{authorization}content-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A server's answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'b> {
    /// Its status code.
    pub status: u16,
    /// Its body.
    pub body: &'b [u8],
}

/// A connection.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Whoever sent the last request has not waited for its answer.
    unanswered: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Over this stream.
    #[must_use]
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::with_capacity(READ_BYTES), unanswered: false }
    }

    /// Sends a request and waits for its answer. Who gives up waiting may send another one: it gets its own answer.
    ///
    /// # Errors
    /// If the connection breaks, or the answer is not HTTP with a length.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        if self.unanswered {
            self.read_answer().await?;
        }
        self.buffer.clear();
        self.unanswered = true;
        self.stream.write_all(request).await?;
        let (head, end) = self.read_answer().await?;
        Ok(Answer { status: head.status, body: &self.buffer[head.bytes..end] })
    }

    /// Reads the rest of an answer; where it ends.
    async fn read_answer(&mut self) -> Result<(Head, usize)> {
        let head = loop {
            if let Some(head) = Head::parse(&self.buffer)? {
                break head;
            }
            self.read_more().await?;
        };
        let end = head.bytes + head.body_bytes;
        while self.buffer.len() < end {
            self.read_more().await?;
        }
        if self.buffer.len() > end {
            return Err(wrong("the server sent more than an answer"));
        }
        self.unanswered = false;
        Ok((head, end))
    }

    async fn read_more(&mut self) -> Result<()> {
        if self.buffer.len() > MAX_ANSWER {
            return Err(wrong("an answer is too long"));
        }
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

struct Head {
    status: u16,
    bytes: usize,
    body_bytes: usize,
}

impl Head {
    /// `None` if it is not there whole.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(bytes).map_err(|error| wrong(&error.to_string()))?;
        let httparse::Status::Complete(head_bytes) = parsed else { return Ok(None) };
        let status = response.code.ok_or_else(|| wrong("an answer has no status"))?;
        let length =
            response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
        let body_bytes = match length {
            Some(bytes) if bytes <= MAX_ANSWER => bytes,
            None if status == 204 => 0,
            _ => return Err(wrong("an answer has no length, or is too long")),
        };
        Ok(Some(Self { status, bytes: head_bytes, body_bytes }))
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client makes of a server that says `said` in pieces of `piece` bytes and goes away.
    fn said(said: &[u8], piece: usize) -> Result<(u16, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (near, mut far) = tokio::io::duplex(64);
        runtime.block_on(async {
            let mut connection = Connection::new(near);
            let server = async {
                for piece in said.chunks(piece) {
                    far.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                drop(far);
            };
            let client = async {
                let answer = connection.exchange(b"x").await?;
                Ok((answer.status, answer.body.to_vec()))
            };
            tokio::join!(server, client).1
        })
    }

    #[test]
    fn answers_come_in_pieces() {
        let whole = b"HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\nx: y\r\n\r\nabc";
        for piece in [1, 7, 1000] {
            assert_eq!(said(whole, piece).unwrap(), (202, b"abc".to_vec()));
        }
        assert_eq!(said(b"HTTP/1.1 204 No Content\r\n\r\n", 5).unwrap(), (204, Vec::new()));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for text in [
            "",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(said(text.as_bytes(), 1000).is_err(), "{text}");
        }
    }

    #[test]
    fn requests_have_what_servers_want() {
        let text = String::from_utf8(request("POST", "/p?a=b", Some("Basic eA=="), b"{}")).unwrap();
        assert!(text.starts_with("POST /p?a=b HTTP/1.1\r\nhost: "), "{text}");
        assert!(text.contains("\r\nauthorization: Basic eA==\r\n"), "{text}");
        assert!(text.ends_with("\r\ncontent-length: 2\r\n\r\n{}"), "{text}");
    }
}
