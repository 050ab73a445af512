//! Load on a node: calls of the function over connections that are kept open, and commands to the service; and the look at
//! what the tenant's CVM does meanwhile. One thread, so that it takes little from the workers.

use crate::failure::Failure;
use nacre_bench::load::client::{Connection, request};
use nacre_bench::load::resp::{Batch, Client, Kind};
use nacre_bench::summary::Summary;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// An answer that takes longer than this never comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Darts of one call: a few milliseconds of work.
pub const DARTS: u64 = 1_000_000;
/// Keys of one connection to the service.
const KEYS: u64 = 20_000;

/// Times of requests in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// Half of them took less.
    pub p50_ms: f64,
    /// 99 of 100 took at most this.
    pub p99_ms: f64,
}

impl Times {
    /// Of some; 0 of none.
    pub fn of(times: &[Duration]) -> Self {
        let ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        let (p50_ms, p99_ms) = Summary::of(&ms).map_or((0.0, 0.0), |all| (all.median, all.p99));
        Self { p50_ms, p99_ms }
    }
}

/// A tenant of a node, to talk to.
#[derive(Clone)]
pub struct Door {
    /// Where the node is.
    pub address: SocketAddr,
    /// Value of the `Authorization` header.
    pub authorization: String,
}

/// Waits for something that a program of ours does; not for ever.
async fn in_time<T>(what: &str, future: impl Future<Output = std::io::Result<T>>) -> Result<T, Failure> {
    let failed = |error: &dyn Display| Failure::new(what, format_args!("{error}; run the demo again"));
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done.map_err(|error| failed(&error)),
        Err(_) => Err(failed(&"does not answer")),
    }
}

impl Door {
    async fn connect(&self) -> Result<Connection<TcpStream>, Failure> {
        let connect = async {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            Ok(Connection::new(stream))
        };
        in_time("node", connect).await
    }
}

/// Sends a request, and reads its answer if that is a success.
async fn ask<T: DeserializeOwned>(
    connection: &mut Connection<TcpStream>,
    request: &[u8],
    what: &str,
) -> Result<T, Failure> {
    let answer = in_time(what, connection.exchange(request)).await?;
    let said = || String::from_utf8_lossy(answer.body.get(..200).unwrap_or(answer.body)).into_owned();
    if answer.status != 200 {
        return Err(Failure::new(what, format_args!("the node answers {}: {}", answer.status, said())));
    }
    serde_json::from_slice(answer.body)
        .map_err(|error| Failure::new(what, format_args!("the node answers {} ({error})", said())))
}

/// The tenant's CVM, as `/v1/ps` shows it.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct View {
    /// Workers with a CPU.
    pub active: u32,
    /// Workers that want one and have none.
    pub waiting: u32,
    /// Since its launch, by the node's clock.
    pub age_ms: u64,
    /// CPU time of all its vCPUs.
    pub cpu_ns: u64,
    /// Times that workers were given a CPU.
    pub wakes: u64,
}

/// Looks at the CVM, on a connection of its own.
pub struct Watch {
    connection: Connection<TcpStream>,
    request: Vec<u8>,
}

impl Watch {
    /// Connects.
    ///
    /// # Errors
    /// If the node takes no connection.
    pub async fn open(door: &Door) -> Result<Self, Failure> {
        let request = request("GET", "/v1/ps", Some(&door.authorization), b"");
        Ok(Self { connection: door.connect().await?, request })
    }

    /// How the CVM is now.
    ///
    /// # Errors
    /// If the node does not tell, or there is no CVM.
    pub async fn look(&mut self) -> Result<View, Failure> {
        #[derive(Deserialize)]
        struct Ps {
            cvm: Option<View>,
        }
        let ps: Ps = ask(&mut self.connection, &self.request, "ps").await?;
        ps.cvm.ok_or_else(|| Failure::new("node", "the tenant's CVM is gone; run the demo again"))
    }
}

/// Calls of the function, and what came of them.
pub struct Calls {
    door: Door,
    seed: Cell<u64>,
    /// Calls that succeeded.
    pub done: Cell<u64>,
    inside: Cell<u64>,
}

/// What a number of calls did.
#[derive(Debug)]
pub struct Called {
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Of each.
    pub times: Vec<Duration>,
}

impl Calls {
    /// None yet.
    pub fn new(door: Door) -> Rc<Self> {
        Rc::new(Self { door, seed: Cell::new(0), done: Cell::new(0), inside: Cell::new(0) })
    }

    /// Four times the share of all darts so far that hit: near pi. And by how much it is off in two of three cases.
    pub fn pi(&self) -> (f64, f64) {
        estimate(self.done.get() * DARTS, self.inside.get())
    }

    /// One call; how long it took.
    async fn one(&self, connection: &mut Connection<TcpStream>) -> Result<Duration, Failure> {
        #[derive(Deserialize)]
        struct Activation {
            status: String,
            result: Option<Thrown>,
        }
        #[derive(Deserialize)]
        struct Thrown {
            darts: u64,
            inside: u64,
        }
        self.seed.set(self.seed.get() + 1);
        let parameters = format!("{{\"seed\":{},\"darts\":{DARTS}}}", self.seed.get());
        let path = "/v1/deployments/darts/invoke";
        let request = request("POST", path, Some(&self.door.authorization), parameters.as_bytes());
        let begin = Instant::now();
        let activation: Activation = ask(connection, &request, "function darts").await?;
        let elapsed = begin.elapsed();
        let thrown = activation.result.filter(|thrown| thrown.darts == DARTS && thrown.inside <= DARTS);
        let Some(thrown) = thrown.filter(|_| activation.status == "success") else {
            let why = format_args!("ends with {} and no result; run the demo again", activation.status);
            return Err(Failure::new("function darts", why));
        };
        self.done.set(self.done.get() + 1);
        self.inside.set(self.inside.get() + thrown.inside);
        Ok(elapsed)
    }

    /// Calls one after the other on one connection.
    ///
    /// # Errors
    /// If one does not succeed.
    pub async fn some(&self, count: usize) -> Result<Vec<Duration>, Failure> {
        let mut connection = self.door.connect().await?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            times.push(self.one(&mut connection).await?);
        }
        Ok(times)
    }

    /// Calls for this time on so many connections, on each one after the other.
    ///
    /// # Errors
    /// If one does not succeed: then all end.
    pub async fn burst(self: &Rc<Self>, connections: usize, time: Duration) -> Result<Called, Failure> {
        let mut open = Vec::with_capacity(connections);
        for _ in 0..connections {
            open.push(self.door.connect().await?);
        }
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for mut connection in open {
            let this = self.clone();
            tasks.spawn_local(async move {
                let mut times = Vec::new();
                while begin.elapsed() < time {
                    times.push(this.one(&mut connection).await?);
                }
                Ok(times)
            });
        }
        Ok(Called { times: all(tasks).await?, elapsed: begin.elapsed() })
    }
}

/// Pi and its standard error, from darts in the square and in the circle.
fn estimate(darts: u64, inside: u64) -> (f64, f64) {
    let share = inside as f64 / darts.max(1) as f64;
    (4.0 * share, 4.0 * (share * (1.0 - share) / darts.max(1) as f64).sqrt())
}

/// What all tasks gave, together.
async fn all(mut tasks: JoinSet<Result<Vec<Duration>, Failure>>) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended.map_err(|error| Failure::new("load", error))??);
    }
    Ok(times)
}

/// Users of the service, each with keys of its own.
pub struct Users {
    address: SocketAddr,
    users: Vec<User>,
}

struct User {
    client: Client,
    first: u64,
    /// How many of its keys have a value.
    keys: u64,
}

/// What a number of commands did.
#[derive(Debug)]
pub struct Used {
    /// Commands that were answered.
    pub commands: u64,
    /// From the first to the last answer.
    pub elapsed: Duration,
    /// Of each batch.
    pub times: Vec<Duration>,
}

impl Users {
    /// Connects.
    ///
    /// # Errors
    /// If the service takes no connection.
    pub async fn connect(address: SocketAddr, count: usize) -> Result<Self, Failure> {
        let mut users = Vec::with_capacity(count);
        for number in 0..count as u64 {
            let client = in_time("service kv", Client::connect(address)).await?;
            users.push(User { client, first: number * KEYS, keys: 0 });
        }
        Ok(Self { address, users })
    }

    /// Keys that have a value.
    pub fn keys(&self) -> u64 {
        self.users.iter().map(|user| user.keys).sum()
    }

    /// Keys that have one by the service's word.
    ///
    /// # Errors
    /// If it does not say.
    pub async fn keys_in_service(&self) -> Result<u64, Failure> {
        let count = async { Client::connect(self.address).await?.number("DBSIZE").await };
        in_time("service kv", count).await
    }

    /// Commands for this time, so many at once from each user. Gets only keys that were set.
    ///
    /// # Errors
    /// If an answer is another than what was set: then all end.
    pub async fn work(&mut self, kind: Kind, pipeline: u64, time: Duration) -> Result<Used, Failure> {
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        let done = Rc::new(RefCell::new(Vec::with_capacity(self.users.len())));
        for mut user in self.users.drain(..) {
            let done = done.clone();
            tasks.spawn_local(async move {
                let times = user.work(kind, pipeline, begin, time).await?;
                done.borrow_mut().push(user);
                Ok(times)
            });
        }
        let times = all(tasks).await?;
        let elapsed = begin.elapsed();
        self.users.append(&mut done.borrow_mut());
        Ok(Used { commands: times.len() as u64 * pipeline, elapsed, times })
    }
}

impl User {
    async fn work(
        &mut self,
        kind: Kind,
        pipeline: u64,
        begin: Instant,
        time: Duration,
    ) -> Result<Vec<Duration>, Failure> {
        let (mut batch, mut times, mut next) = (Batch::default(), Vec::new(), 0);
        let keys = if kind == Kind::Set { KEYS } else { self.keys };
        while begin.elapsed() < time && keys > 0 {
            batch.fill(kind, (next..next + pipeline).map(|key| self.first + key % keys));
            times.push(in_time("service kv", self.client.exchange(&batch)).await?);
            next += pipeline;
        }
        if kind == Kind::Set {
            self.keys = next.min(KEYS);
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_percentiles() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(Times::of(&times), Times { p50_ms: 100.5, p99_ms: 198.0 });
        assert_eq!(Times::of(&[]), Times { p50_ms: 0.0, p99_ms: 0.0 });
    }

    #[test]
    fn pi_comes_from_shares() {
        let (pi, off) = estimate(1_000_000, 750_000);
        assert!((pi - 3.0).abs() < 1e-9 && (0.0017..0.0018).contains(&off), "{pi} {off}");
        assert_eq!(estimate(0, 0), (0.0, 0.0));
    }
}
