//! Load on an HTTP server: a number of connections that are kept open, on each one request after the other (closed loop), for
//! a time and up to a count. The same for every server that is compared; its own processor time is told.

pub mod client;
pub mod resp;

use crate::BenchError;
use crate::machine::process_cpu;
use client::Connection;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// A connection whose answer takes longer than this breaks the run off.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is sent.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where to.
    pub address: SocketAddr,
    /// The request, whole.
    pub request: Vec<u8>,
    /// The body that every answer must have.
    pub expected: Vec<u8>,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// No request begins after this time.
    pub time: Duration,
    /// Nor after so many, over all connections.
    pub max_requests: usize,
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Processor time of this process in that time.
    pub client_cpu: Duration,
    /// Time of each request in nanoseconds.
    pub latencies_ns: Vec<f64>,
}

impl Served {
    /// Requests a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.latencies_ns.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// A thread's runtime for clients.
///
/// # Errors
/// If the system refuses one.
pub fn runtime() -> Result<tokio::runtime::Runtime, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(BenchError::system("the load generator"))
}

/// Connections that are open, with a request answered on each: what is measured on them is warm.
pub struct Clients {
    load: Rc<Load>,
    connections: Vec<Connection<TcpStream>>,
}

impl Clients {
    /// Opens them.
    ///
    /// # Errors
    /// If the server refuses one or answers otherwise than expected.
    pub async fn open(load: Load) -> Result<Self, BenchError> {
        let mut connections = Vec::with_capacity(load.connections);
        for _ in 0..load.connections {
            let stream = TcpStream::connect(load.address).await.and_then(|stream| {
                stream.set_nodelay(true)?;
                Ok(stream)
            });
            let mut connection = Connection::new(stream.map_err(BenchError::system("a connection"))?);
            one(&mut connection, &load).await?;
            connections.push(connection);
        }
        Ok(Self { load: Rc::new(load), connections })
    }

    /// Loads the server.
    ///
    /// # Errors
    /// If a connection breaks, or an answer is another than expected: then all end at once.
    pub async fn run(self) -> Result<Served, BenchError> {
        let tasks = LocalSet::new();
        let begun = Rc::new(std::cell::Cell::new(0));
        let (begin, cpu) = (Instant::now(), process_cpu());
        let running: Vec<_> = self
            .connections
            .into_iter()
            .map(|mut connection| {
                let (load, begun) = (self.load.clone(), begun.clone());
                tasks.spawn_local(async move {
                    let mut latencies_ns = Vec::new();
                    while begin.elapsed() < load.time && begun.get() < load.max_requests {
                        begun.set(begun.get() + 1);
                        latencies_ns.push(one(&mut connection, &load).await?.as_nanos() as f64);
                    }
                    Ok::<_, BenchError>(latencies_ns)
                })
            })
            .collect();
        let gather = async {
            let mut latencies_ns = Vec::new();
            for task in running {
                let ended = task.await.map_err(|error| BenchError::program("the load", error.to_string()))?;
                latencies_ns.extend(ended?);
            }
            Ok::<_, BenchError>(latencies_ns)
        };
        let latencies_ns = tasks.run_until(gather).await?;
        let client_cpu = process_cpu().saturating_sub(cpu);
        Ok(Served { elapsed: begin.elapsed(), client_cpu, latencies_ns })
    }
}

/// One request on one connection.
async fn one(connection: &mut Connection<TcpStream>, load: &Load) -> Result<Duration, BenchError> {
    let begin = Instant::now();
    let answer = tokio::time::timeout(PATIENCE, connection.exchange(&load.request)).await;
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let answer = answer.map_err(late).and_then(|answer| answer);
    let answer = answer.map_err(BenchError::system("an answer of the server"))?;
    if answer.status != 200 || answer.body != load.expected {
        let body = String::from_utf8_lossy(answer.body.get(..200).unwrap_or(answer.body));
        return Err(BenchError::program("the server", format!("answers {}: {body}", answer.status)));
    }
    Ok(begin.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that answers `body` to whatever comes, on any number of connections.
    async fn server(body: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::task::spawn_local(async move {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {
                        let answer =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        address
    }

    fn load(address: SocketAddr) -> Load {
        let (request, expected) = (client::request("POST", "/", None, b"{}"), b"yes".to_vec());
        Load { address, request, expected, connections: 4, time: Duration::from_secs(60), max_requests: 100 }
    }

    #[test]
    fn load_ends_at_its_count_and_at_its_time() {
        let tasks = LocalSet::new();
        tasks.block_on(&runtime().unwrap(), async {
            let address = server("yes").await;
            let served = Clients::open(load(address)).await.unwrap().run().await.unwrap();
            assert_eq!(served.latencies_ns.len(), 100);
            assert!(served.rate() > 0.0 && served.latencies_ns.iter().all(|ns| *ns > 0.0));
            let timed = Load { time: Duration::ZERO, ..load(address) };
            let served = Clients::open(timed).await.unwrap().run().await.unwrap();
            assert_eq!(served.latencies_ns.len(), 0);
        });
    }

    #[test]
    fn a_wrong_answer_is_an_error() {
        let tasks = LocalSet::new();
        tasks.block_on(&runtime().unwrap(), async {
            let error = Clients::open(load(server("no").await)).await.err().unwrap().to_string();
            assert!(error.contains("answers 200: no"), "{error}");
        });
    }
}
