//! Clients of the key-value service from outside: they fill it, and then use it all the time, at a steady rate, over connections that stay
//! open. When each answer came is kept. Every answer is known beforehand; one that is another, or does not come, is a failed request.

use crate::BenchError;
use crate::load::resp::{Batch, Client, Entry, Kind};
use crate::load::runtime;
use serde::Serialize;
use std::cell::RefCell;
use std::future::Future;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::MissedTickBehavior;

/// Bytes of a value.
pub const VALUE_BYTES: usize = 1024;
/// Connections that fill, and their commands at once.
const FILLERS: u64 = 4;
const FILL_PIPELINE: u64 = 64;
/// An answer that takes longer than this never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the service is used.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Plan {
    /// Keys that have values.
    pub keys: u64,
    /// Connections that stay open.
    pub connections: u64,
    /// Commands at once on each: every second one gets a value, the others set one, of keys all over the store.
    pub pipeline: u64,
    /// Milliseconds between two such batches on one connection, unless the answers to the first one take longer.
    pub every_ms: u64,
}

impl Plan {
    /// The usual load on a store of so many bytes of values.
    #[must_use]
    pub fn new(fill: u64) -> Self {
        let keys = (fill / VALUE_BYTES as u64).max(1);
        Self { keys, connections: 8, pipeline: 8, every_ms: 4 }
    }

    /// Commands a second, if all are answered in time.
    #[must_use]
    pub fn rate(&self) -> f64 {
        (self.connections * self.pipeline * 1000) as f64 / self.every_ms as f64
    }
}

/// Does something that needs answers, in time.
async fn in_time<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || Error::new(ErrorKind::TimedOut, "the service does not answer");
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| Err(late()))
}

/// How many keys the service says it has.
///
/// # Errors
/// If it does not answer.
pub async fn keys(address: SocketAddr) -> Result<u64> {
    in_time(async { Client::connect(address).await?.number("DBSIZE").await }).await
}

/// Gives every key its first value.
///
/// # Errors
/// If an answer is another than it should be, or the service has another number of keys then.
pub async fn fill(address: SocketAddr, plan: &Plan) -> std::result::Result<Duration, BenchError> {
    let begin = Instant::now();
    let keys_of = plan.keys;
    let work = |filler: u64| async move {
        let mut client = Client::connect(address).await?;
        let mut batch = Batch::default();
        let mut first = filler * FILL_PIPELINE;
        while first < keys_of {
            batch.clear();
            for key in first..(first + FILL_PIPELINE).min(keys_of) {
                batch.push(Kind::Set, Entry { key, version: 0, bytes: VALUE_BYTES });
            }
            in_time(client.exchange(&batch)).await?;
            first += FILLERS * FILL_PIPELINE;
        }
        Ok(())
    };
    let mut tasks = JoinSet::new();
    for filler in 0..FILLERS {
        tasks.spawn(work(filler));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap_or_else(|error| Err(Error::other(error))).map_err(BenchError::system("filling"))?;
    }
    let elapsed = begin.elapsed();
    let keys = keys(address).await.map_err(BenchError::system("the service kv"))?;
    if keys != plan.keys {
        let what = format!("has {keys} keys and should have {}", plan.keys);
        return Err(BenchError::program("the service kv", what));
    }
    Ok(elapsed)
}

/// Answers that came together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// When, from the beginning of the log.
    pub at: Duration,
    /// Since they were asked for.
    pub latency: Duration,
    /// On which connection.
    pub connection: u64,
    /// How many.
    pub count: u64,
}

/// What clients saw.
#[derive(Debug)]
pub struct Log {
    /// When it begins.
    pub begin: Instant,
    /// All answers, as they came.
    pub answers: Vec<Answers>,
    /// Commands that were not answered as they should be.
    pub failed: u64,
    /// Why the first of them failed.
    pub why: Option<String>,
}

/// Clients at work, on a thread of their own.
pub struct Clients {
    begin: Instant,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::result::Result<Log, BenchError>>>,
}

impl Drop for Clients {
    fn drop(&mut self) {
        // Whoever gave up does not wait for them.
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Clients {
    /// Connects all of them and lets them begin.
    ///
    /// # Errors
    /// If the service takes no connection, or there is no thread.
    pub fn start(address: SocketAddr, plan: Plan) -> std::result::Result<Self, BenchError> {
        let connect = |_| {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let streams: Result<Vec<_>> = (0..plan.connections).map(connect).collect();
        let streams = streams.map_err(BenchError::system("the service kv"))?;
        let (begin, stop) = (Instant::now(), Arc::<AtomicBool>::default());
        let stopped = stop.clone();
        let work = move || {
            LocalSet::new().block_on(&runtime()?, async {
                let log = Log { begin, answers: Vec::new(), failed: 0, why: None };
                let log = Rc::new(RefCell::new(log));
                let mut tasks = JoinSet::new();
                for (connection, stream) in streams.into_iter().enumerate() {
                    let (log, stopped) = (log.clone(), stopped.clone());
                    tasks.spawn_local(one(stream, connection as u64, plan, log, stopped));
                }
                while tasks.join_next().await.is_some() {}
                Ok(log.replace(Log { begin, answers: Vec::new(), failed: 0, why: None }))
            })
        };
        let thread = std::thread::Builder::new().name("clients".into()).spawn(work);
        Ok(Self { begin, stop, thread: Some(thread.map_err(BenchError::system("the clients"))?) })
    }

    /// How long they have been at work.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Lets them end, and returns what they saw.
    ///
    /// # Errors
    /// If they could not begin.
    pub fn finish(mut self) -> std::result::Result<Log, BenchError> {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        let ended = ended.ok_or_else(|| BenchError::program("the clients", "have ended"))?;
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// One client, until it is told to end or something fails.
async fn one(
    stream: std::net::TcpStream,
    connection: u64,
    plan: Plan,
    log: Rc<RefCell<Log>>,
    stop: Arc<AtomicBool>,
) {
    let fail = |count: u64, error: Error| {
        let mut log = log.borrow_mut();
        log.failed += count;
        log.why.get_or_insert_with(|| error.to_string());
    };
    let mut client = match TcpStream::from_std(stream) {
        Ok(stream) => Client::on(stream),
        Err(error) => return fail(1, error),
    };
    let mut keys = Keys::new(connection, &plan);
    let (period, mut batch) = (Duration::from_millis(plan.every_ms.max(1)), Batch::default());
    // One after the other, and not all at once.
    let offset = period * connection as u32 / plan.connections.max(1) as u32;
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + offset, period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Ordering::SeqCst) {
        tick.tick().await;
        batch.clear();
        for number in 0..plan.pipeline {
            let kind = if number % 2 == 0 { Kind::Set } else { Kind::Get };
            batch.push(kind, keys.next(kind));
        }
        let (asked, mut answered) = (Instant::now(), 0);
        let note = |whole: usize| {
            let (whole, mut log) = (whole as u64, log.borrow_mut());
            let at = log.begin.elapsed();
            let count = whole - std::mem::replace(&mut answered, whole);
            log.answers.push(Answers { at, latency: asked.elapsed(), connection, count });
        };
        if let Err(error) = in_time(client.exchange_noting(&batch, note)).await {
            return fail(plan.pipeline - answered, error);
        }
    }
}

/// The keys of one client, and how often it has set each.
struct Keys {
    connection: u64,
    connections: u64,
    versions: Vec<u32>,
    random: u64,
}

impl Keys {
    fn new(connection: u64, plan: &Plan) -> Self {
        let own = plan.keys.saturating_sub(connection).div_ceil(plan.connections.max(1)).max(1);
        let versions = vec![0; own as usize];
        Self { connection, connections: plan.connections, versions, random: connection + 1 }
    }

    /// Any of them, as it is after this command.
    fn next(&mut self, kind: Kind) -> Entry {
        // Good enough to be all over the store (Knuth's MMIX).
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let index = (self.random >> 33) as usize % self.versions.len();
        if kind == Kind::Set {
            self.versions[index] = self.versions[index].wrapping_add(1);
        }
        let key = index as u64 * self.connections + self.connection;
        Entry { key, version: self.versions[index], bytes: VALUE_BYTES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn each_client_has_keys_of_its_own() {
        let plan = Plan { keys: 10, connections: 3, pipeline: 2, every_ms: 1 };
        let mut seen = [false; 10];
        for connection in 0..3 {
            let mut keys = Keys::new(connection, &plan);
            for _ in 0..200 {
                let entry = keys.next(Kind::Set);
                assert_eq!(entry.key % 3, connection);
                seen[entry.key as usize] = true;
            }
            let entry = keys.next(Kind::Get);
            assert_eq!(entry.version, keys.versions[(entry.key / 3) as usize]);
        }
        assert_eq!(seen, [true; 10]);
        assert_eq!(Plan::new(1 << 20).keys, 1024);
        assert_eq!(plan.rate(), 6000.0);
    }

    #[test]
    fn a_service_that_says_something_else_is_a_failure() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let plan = Plan { keys: 4, connections: 1, pipeline: 2, every_ms: 1 };
        let clients = Clients::start(address, plan).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 64];
        let read = stream.read(&mut request).unwrap();
        assert!(read > 0);
        stream.write_all(b"+OK\r\n-ERR no\r\n").unwrap();
        // What was asked for is waited for.
        let log = clients.finish().unwrap();
        assert_eq!(log.answers.iter().map(|some| some.count).sum::<u64>() + log.failed, 2, "{log:?}");
        assert!(log.failed > 0 && log.why.unwrap().contains("-ERR no"));
    }
}
