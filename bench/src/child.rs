//! The servers that are measured, as child processes on loopback, and what their threads take of the machine.

use crate::BenchError;
use crate::load::client::{Connection, request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A server that takes longer than this to answer a request of administration has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Starts it, with nothing to read; what it logs is lost.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn start(command: &mut Command) -> Result<Self, BenchError> {
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self).map_err(BenchError::system("a server's process"))
    }

    /// The first line it prints.
    pub(crate) fn first_line(&mut self) -> Result<String, BenchError> {
        let mut line = String::new();
        let read = match self.0.stdout.take() {
            Some(stdout) => BufReader::new(stdout).read_line(&mut line),
            None => Ok(0),
        };
        match read {
            Ok(bytes) if bytes > 0 => Ok(line),
            _ => Err(BenchError::program("a server", "ended before it served")),
        }
    }

    /// What its threads have used.
    #[must_use]
    pub fn used(&self) -> Used {
        Used::of(self.0.id())
    }

    /// Resident memory in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        crate::machine::kib_field(&format!("/proc/{}/status", self.0.id()), "VmRSS")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended, and then all is well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The reference server ([`crate::serve`]).
#[derive(Debug)]
pub struct Reference {
    /// Its process.
    pub server: Server,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Reference {
    /// Starts it.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn start(nacre: &Path) -> Result<Self, BenchError> {
        let mut command = Command::new(nacre);
        let mut server = Server::start(command.args(["bench", "serve-reference"]).stdout(Stdio::piped()))?;
        let line = server.first_line()?;
        let bad = |_| BenchError::program("the reference server", "does not tell its address");
        Ok(Self { server, address: line.trim().parse().map_err(bad)? })
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its process.
    pub server: Server,
    /// Where it listens.
    pub address: SocketAddr,
    socket: PathBuf,
}

#[derive(Deserialize)]
struct Ready {
    listen: SocketAddr,
    admin_socket: PathBuf,
}

/// A tenant of a node.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Value of the `Authorization` header.
    pub authorization: String,
}

impl Node {
    /// Starts one with this state directory.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn start(nacre: &Path, state_dir: &Path) -> Result<Self, BenchError> {
        let mut command = Command::new(nacre);
        command.args(["node", "start", "--json", "--listen", "127.0.0.1:0", "--state-dir"]).arg(state_dir);
        let mut server = Server::start(command.env("NACRE_LOG", "error").stdout(Stdio::piped()))?;
        let line = server.first_line()?;
        let bad = |_| BenchError::program("the node", "does not tell its address");
        let Ready { listen, admin_socket } = serde_json::from_str(&line).map_err(bad)?;
        Ok(Self { server, address: listen, socket: admin_socket })
    }

    /// Adds a tenant.
    ///
    /// # Errors
    /// If the node refuses.
    pub async fn add_tenant(&self, name: &str, limits: Value) -> Result<Tenant, BenchError> {
        let body = json!({ "name": name, "limits": limits }).to_string();
        let answer = self.administer("POST", "/v1/tenants", body.as_bytes()).await?;
        let auth = serde_json::from_slice::<Value>(&answer).unwrap_or_default();
        let auth = auth["auth"].as_str().unwrap_or_default();
        Ok(Tenant { name: name.to_owned(), authorization: format!("Basic {}", STANDARD.encode(auth)) })
    }

    /// Removes one.
    ///
    /// # Errors
    /// If the node refuses.
    pub async fn remove_tenant(&self, tenant: &Tenant) -> Result<(), BenchError> {
        self.administer("DELETE", &format!("/v1/tenants/{}", tenant.name), b"").await.map(drop)
    }

    /// Deploys an action.
    ///
    /// # Errors
    /// If the node refuses.
    pub async fn put_action(&self, tenant: &Tenant, name: &str, module: &[u8]) -> Result<(), BenchError> {
        let body =
            json!({ "exec": { "kind": "wasi:default", "code": STANDARD.encode(module), "binary": true } });
        let path = format!("/api/v1/namespaces/_/actions/{name}?overwrite=true");
        let request = request("PUT", &path, Some(&tenant.authorization), body.to_string().as_bytes());
        exchange(&mut self.connect().await?, &request).await.map(drop)
    }

    /// The request that calls an action and waits for its result.
    #[must_use]
    pub fn invocation(tenant: &Tenant, action: &str, parameters: &[u8]) -> Vec<u8> {
        let path = format!("/api/v1/namespaces/_/actions/{action}?blocking=true&result=true");
        request("POST", &path, Some(&tenant.authorization), parameters)
    }

    /// A connection to it.
    ///
    /// # Errors
    /// If it takes none.
    pub async fn connect(&self) -> Result<Connection<TcpStream>, BenchError> {
        let stream = TcpStream::connect(self.address).await.map_err(BenchError::system("a connection"))?;
        stream.set_nodelay(true).map_err(BenchError::system("a connection"))?;
        Ok(Connection::new(stream))
    }

    /// The sums of its metrics, by name, over all labels.
    ///
    /// # Errors
    /// If it does not tell them.
    pub async fn metrics(&self) -> Result<BTreeMap<String, f64>, BenchError> {
        let text = self.administer("GET", "/metrics", b"").await?;
        let mut sums = BTreeMap::new();
        for line in String::from_utf8_lossy(&text).lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let name = name.split('{').next().unwrap_or(name);
            *sums.entry(name.to_owned()).or_insert(0.0) += value.parse().unwrap_or(0.0);
        }
        Ok(sums)
    }

    async fn administer(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, BenchError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(BenchError::system("the node's administration"))?;
        exchange(&mut Connection::new(stream), &request(method, path, None, body)).await
    }
}

/// The body of a successful answer.
///
/// # Errors
/// If there is none in time, or no success.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    request: &[u8],
) -> Result<Vec<u8>, BenchError> {
    let answer = tokio::time::timeout(PATIENCE, connection.exchange(request)).await;
    let answer = answer.map_err(|_| BenchError::program("the node", "does not answer"))?;
    let answer = answer.map_err(BenchError::system("the node's answer"))?;
    if (200..300).contains(&answer.status) {
        return Ok(answer.body.to_vec());
    }
    let body = String::from_utf8_lossy(answer.body.get(..200).unwrap_or(answer.body));
    Err(BenchError::program("the node", format!("answers {}: {body}", answer.status)))
}

/// What threads took, as the kernel counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Thread {
    /// Processor time in nanoseconds.
    pub cpu_ns: f64,
    /// Time that it could have run but had no processor, in nanoseconds.
    pub wait_ns: f64,
    /// Times it went to sleep: so often it was woken.
    pub sleeps: f64,
    /// Times it was taken off its processor.
    pub preempted: f64,
}

/// A process's threads by id, with their names.
#[derive(Debug, Clone, Default)]
pub struct Used(HashMap<String, (String, Thread)>);

impl Used {
    fn of(pid: u32) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let thread = |task: std::fs::DirEntry| {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).ok();
            let id = task.file_name().to_string_lossy().into_owned();
            Some((id, parse(&read("comm")?, &read("schedstat")?, &read("status")?)))
        };
        Self(tasks.filter_map(thread).collect())
    }

    /// What was used since `before`, by kind of thread: its name without numbers.
    #[must_use]
    pub fn since(&self, before: &Self) -> BTreeMap<String, Thread> {
        let mut kinds: BTreeMap<String, Thread> = BTreeMap::new();
        for (id, (name, now)) in &self.0 {
            let then = before.0.get(id).map(|(_, thread)| *thread).unwrap_or_default();
            let kind = kinds.entry(name.clone()).or_default();
            kind.cpu_ns += now.cpu_ns - then.cpu_ns;
            kind.wait_ns += now.wait_ns - then.wait_ns;
            kind.sleeps += now.sleeps - then.sleeps;
            kind.preempted += now.preempted - then.preempted;
        }
        kinds
    }
}

fn parse(comm: &str, schedstat: &str, status: &str) -> (String, Thread) {
    let name = comm.trim().trim_end_matches(|c: char| c.is_ascii_digit() || "-_ .".contains(c)).to_owned();
    let mut numbers = schedstat.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0.0));
    let switches =
        |name| crate::machine::field(status, name).and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let thread = Thread {
        cpu_ns: numbers.next().unwrap_or(0.0),
        wait_ns: numbers.next().unwrap_or(0.0),
        sleeps: switches("voluntary_ctxt_switches"),
        preempted: switches("nonvoluntary_ctxt_switches"),
    };
    (name, thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted_by_their_kind() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n";
        let (name, one) = parse("vcpu-12\n", "1000 50 9\n", status);
        assert_eq!((name.as_str(), one.cpu_ns, one.wait_ns), ("vcpu", 1000.0, 50.0));
        assert_eq!((one.sleeps, one.preempted), (7.0, 2.0));
        let used = |threads: &[(&str, f64)]| {
            let thread = |(id, cpu_ns): &(&str, f64)| {
                ((*id).to_owned(), ("vcpu".to_owned(), Thread { cpu_ns: *cpu_ns, ..Thread::default() }))
            };
            Used(threads.iter().map(thread).collect())
        };
        // One went on, one is new, one has gone.
        let since = used(&[("1", 30.0), ("3", 5.0)]).since(&used(&[("1", 10.0), ("2", 99.0)]));
        assert_eq!(since["vcpu"].cpu_ns, 25.0);
    }

    #[test]
    fn this_process_uses_something() {
        let before = Used::of(std::process::id());
        assert!(!before.0.is_empty());
        let total: f64 = before.since(&Used::default()).values().map(|thread| thread.cpu_ns).sum();
        assert!(total > 0.0);
    }

    #[test]
    fn a_server_that_does_not_serve_is_an_error() {
        let mut silent = Server::start(Command::new("/bin/true").stdout(Stdio::piped())).unwrap();
        assert!(silent.first_line().is_err());
        assert!(Reference::start(Path::new("/nowhere")).is_err());
    }
}
