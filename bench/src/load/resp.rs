//! A small client of stores that speak the Redis protocol (RESP 2): batches of commands on one connection, each of whose
//! answers is known beforehand, byte by byte.

use std::io::{Error, ErrorKind, Result};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Bytes of a value.
pub const VALUE_BYTES: usize = 64;
/// Longest line of an answer that is not a value, in bytes.
const MAX_LINE: u64 = 512;
/// How much of a wrong answer is shown, in bytes.
const MAX_SHOWN: usize = 100;

/// What is done with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Keys get their values.
    Set,
    /// They are asked for.
    Get,
}

/// A key and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub key: u64,
    /// How often it was set to another value.
    pub version: u32,
    /// Bytes of its value.
    pub bytes: usize,
}

impl Entry {
    /// One that keeps its value, of [`VALUE_BYTES`].
    #[must_use]
    pub fn plain(key: u64) -> Self {
        Self { key, version: 0, bytes: VALUE_BYTES }
    }

    /// Appends the value: another one for each key and version, so that a mix-up is seen.
    fn value(self, to: &mut Vec<u8>) {
        let number =
            self.key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.version).wrapping_mul(0xbf58_476d);
        let digits = format!("{number:016x}");
        for _ in 0..self.bytes / digits.len() {
            to.extend_from_slice(digits.as_bytes());
        }
        to.extend_from_slice(&digits.as_bytes()[..self.bytes % digits.len()]);
    }
}

/// Commands that are sent together, and what comes back if the store does what it should.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    request: Vec<u8>,
    answer: Vec<u8>,
    /// Where each answer ends.
    ends: Vec<usize>,
}

impl Batch {
    /// Replaces the commands with others on these keys.
    pub fn fill(&mut self, kind: Kind, keys: impl Iterator<Item = u64>) {
        self.clear();
        for key in keys {
            self.push(kind, Entry::plain(key));
        }
    }

    /// Forgets all commands.
    pub fn clear(&mut self) {
        self.request.clear();
        self.answer.clear();
        self.ends.clear();
    }

    /// Commands in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One more command.
    pub fn push(&mut self, kind: Kind, entry: Entry) {
        let name = format!("key:{:012}", entry.key);
        let head = match kind {
            Kind::Set => "*3\r\n$3\r\nSET\r\n",
            Kind::Get => "*2\r\n$3\r\nGET\r\n",
        };
        self.request.extend_from_slice(head.as_bytes());
        self.request.extend_from_slice(format!("${}\r\n{name}\r\n", name.len()).as_bytes());
        let to = match kind {
            Kind::Set => {
                self.answer.extend_from_slice(b"+OK\r\n");
                &mut self.request
            }
            Kind::Get => &mut self.answer,
        };
        to.extend_from_slice(format!("${}\r\n", entry.bytes).as_bytes());
        entry.value(to);
        to.extend_from_slice(b"\r\n");
        self.ends.push(self.answer.len());
    }
}

/// A connection to a store.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// The system's.
    pub async fn connect(address: std::net::SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::on(stream))
    }

    /// On a connection.
    #[must_use]
    pub fn on(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream), buffer: Vec::new() }
    }

    /// Sends a batch and reads its answers; the time of both.
    ///
    /// # Errors
    /// If the connection breaks, or an answer is another than it should be.
    pub async fn exchange(&mut self, batch: &Batch) -> Result<Duration> {
        self.exchange_noting(batch, |_| {}).await
    }

    /// The same; `note` is told how many answers are there, each time that some more are.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn exchange_noting(&mut self, batch: &Batch, mut note: impl FnMut(usize)) -> Result<Duration> {
        let begin = Instant::now();
        self.stream.get_mut().write_all(&batch.request).await?;
        self.buffer.resize(batch.answer.len(), 0);
        // An error in place of an answer may be shorter than that.
        let (mut got, mut told) = (0, 0);
        while got < batch.answer.len() {
            let read = self.stream.read(&mut self.buffer[got..]).await?;
            let end = got + read;
            let mut both = self.buffer[got..end].iter().zip(&batch.answer[got..end]);
            if let Some(at) = both.position(|(is, should)| is != should) {
                // With the rest of the line, as far as it is there.
                return Err(wrong(&[&self.buffer[got + at..end], self.stream.buffer()].concat()));
            }
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            got = end;
            let whole = batch.ends.partition_point(|end| *end <= got);
            if whole > told {
                note(whole);
                told = whole;
            }
        }
        Ok(begin.elapsed())
    }

    /// Sends a command without arguments that is answered by a number.
    ///
    /// # Errors
    /// If it is answered otherwise.
    pub async fn number(&mut self, command: &str) -> Result<u64> {
        self.stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).await?;
        self.buffer.clear();
        (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut self.buffer).await?;
        let text = String::from_utf8_lossy(&self.buffer);
        let number = text.strip_prefix(':').and_then(|rest| rest.trim_end().parse().ok());
        number.ok_or_else(|| wrong(&self.buffer))
    }
}

/// An answer that should be another, from where they differ.
fn wrong(answer: &[u8]) -> Error {
    let answer = String::from_utf8_lossy(&answer[..answer.len().min(MAX_SHOWN)]);
    Error::new(ErrorKind::InvalidData, format!("an answer is not what was set: {answer:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn batches_are_resp() {
        let mut batch = Batch::default();
        batch.fill(Kind::Set, [1].into_iter());
        let value_of = |key| {
            let mut value = Vec::new();
            Entry::plain(key).value(&mut value);
            value
        };
        let value = text(&value_of(1)).to_owned();
        assert_eq!(value, "9e3779b97f4a7c15".repeat(4));
        let set = format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000001\r\n$64\r\n{value}\r\n");
        assert_eq!((text(&batch.request), text(&batch.answer)), (set.as_str(), "+OK\r\n"));
        batch.fill(Kind::Get, [1].into_iter());
        assert_eq!(text(&batch.request), "*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000001\r\n");
        assert_eq!(text(&batch.answer), format!("$64\r\n{value}\r\n"));
        batch.fill(Kind::Set, 0..16);
        assert_eq!((batch.request.len(), batch.answer.len()), (16 * set.len(), 16 * 5));
        let values: std::collections::HashSet<_> = (0..1000).map(value_of).collect();
        assert_eq!(values.len(), 1000);
        let mut other = Vec::new();
        Entry { key: 1, version: 1, bytes: 20 }.value(&mut other);
        assert!(other.len() == 20 && !value.as_bytes().starts_with(&other), "{}", text(&other));
    }

    /// What a client makes of a store that says `said`, whatever it is asked.
    fn told(said: &'static [u8]) -> (Result<Duration>, Result<u64>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = async {
                for _ in 0..2 {
                    let mut stream = listener.accept().await.unwrap().0;
                    stream.write_all(said).await.unwrap();
                    stream.shutdown().await.unwrap();
                    // The client must not be reset before it has read.
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            };
            let client = async {
                let mut batch = Batch::default();
                batch.fill(Kind::Set, 0..2);
                let exchanged = Client::connect(address).await.unwrap().exchange(&batch).await;
                (exchanged, Client::connect(address).await.unwrap().number("DBSIZE").await)
            };
            tokio::join!(server, client).1
        })
    }

    #[test]
    fn answers_are_compared() {
        assert!(told(b"+OK\r\n+OK\r\n").0.is_ok());
        assert_eq!(told(b":42\r\n").1.unwrap(), 42);
        for said in [&b""[..], b"+OK\r\n", b"+OK\r\n-ERR no\r\n", b"-ERR\r\n", b":x\r\n", b"$-1\r\n"] {
            let (exchanged, number) = told(said);
            assert!(exchanged.is_err() && number.is_err(), "{}", text(said));
        }
        assert!(told(b"+OK\r\n-ERR no\r\n").0.unwrap_err().to_string().contains("-ERR no"));
    }
}
