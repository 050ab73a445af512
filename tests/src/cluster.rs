//! Nodes of one operator that trust each other, as between machines: each has its own network namespace where that can be had (root, `ip`),
//! else its own address of the loopback. A tenant on them may move, and has a key-value service.

use crate::apps::app;
use crate::job::{Ended, Nacre, finish};
use crate::live::Live;
use crate::node::{Answer, Tenant, free_port, read_answer, request};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before it counts as never coming.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The shape of the tenant's CVMs.
const WORKERS: &str = "2";
const MEMORY: &str = "256MiB";

/// A network for nodes, gone when this is dropped.
#[derive(Debug)]
enum Network {
    /// A namespace for each node, and a bridge here that they hang on.
    Namespaces(Bridge),
    /// Addresses of the loopback.
    Loopback,
}

#[derive(Debug)]
struct Bridge {
    name: String,
    namespaces: Vec<String>,
    /// The first three bytes of the addresses.
    subnet: [u8; 3],
}

/// Runs `ip` or `mount` and their like.
pub fn system(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("a program")?);
    let output = command.args(words).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Bridge {
    fn new(count: usize) -> Result<Bridge> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let (id, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let subnet = [10, 128 + (id >> 4 & 127) as u8, (id << 4 & 240) as u8 + (number & 15) as u8];
        let mut bridge = Bridge { name: format!("n{id:x}x{number:x}"), namespaces: Vec::new(), subnet };
        let name = bridge.name.clone();
        system(&format!("ip link add {name} type bridge"))?;
        system(&format!("ip address add {}/24 dev {name}", bridge.address(254)))?;
        system(&format!("ip link set {name} up"))?;
        for place in 0..count {
            let (space, here) = (format!("{name}-{place}"), bridge.link(place));
            system(&format!("ip netns add {space}"))?;
            bridge.namespaces.push(space.clone());
            system(&format!("ip link add {here} type veth peer name eth0 netns {space}"))?;
            system(&format!("ip link set {here} master {name} up"))?;
            system(&format!("ip -n {space} address add {}/24 dev eth0", bridge.address(place as u8 + 1)))?;
            system(&format!("ip -n {space} link set eth0 up"))?;
            system(&format!("ip -n {space} link set lo up"))?;
        }
        Ok(bridge)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    /// The end here of a node's cable.
    fn link(&self, place: usize) -> String {
        format!("{}e{place}", self.name)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // The cables go with the namespaces.
        for space in &self.namespaces {
            let _ = system(&format!("ip netns delete {space}"));
        }
        let _ = system(&format!("ip link delete {}", self.name));
    }
}

/// One node: it may run or not.
#[derive(Debug)]
pub struct Host {
    /// Where it answers.
    pub ip: IpAddr,
    /// Its state.
    pub state: PathBuf,
    port: u16,
    peer_port: u16,
    namespace: Option<String>,
    options: Vec<String>,
    live: Option<Live>,
}

impl Host {
    /// Where other nodes reach it.
    pub fn peer(&self) -> String {
        format!("{}:{}", self.ip, self.peer_port)
    }

    /// Where clients of the node reach it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    /// Where clients of a service reach it.
    pub fn service(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }
}

/// Nodes that trust each other.
#[derive(Debug)]
pub struct Cluster<'n> {
    nacre: &'n Nacre,
    dir: tempfile::TempDir,
    network: Network,
    hosts: Vec<Host>,
}

impl<'n> Cluster<'n> {
    /// So many nodes, started; each with further options.
    pub fn new(nacre: &'n Nacre, options: &[&[&str]]) -> Result<Cluster<'n>> {
        let network = match Bridge::new(options.len()) {
            Ok(bridge) => Network::Namespaces(bridge),
            Err(error) => {
                let line = format!("NOTE: nodes share the loopback, without network namespaces: {error:#}\n");
                std::io::stderr().write_all(line.as_bytes())?;
                Network::Loopback
            }
        };
        let mut cluster = Cluster { nacre, dir: tempfile::tempdir()?, network, hosts: Vec::new() };
        cluster.sign()?;
        for (place, options) in options.iter().enumerate() {
            cluster.add(place, options)?;
        }
        for place in 0..cluster.hosts.len() {
            cluster.start(place)?;
        }
        cluster.introduce()?;
        Ok(cluster)
    }

    fn add(&mut self, place: usize, options: &[&str]) -> Result<()> {
        let (ip, namespace, port, peer_port) = match &self.network {
            Network::Namespaces(bridge) => {
                (bridge.address(place as u8 + 1), Some(bridge.namespaces[place].clone()), 3233, 3234)
            }
            Network::Loopback => {
                (Ipv4Addr::new(127, 0, 0, place as u8 + 1), None, free_port()?, free_port()?)
            }
        };
        let state = self.path(&format!("state-{place}"));
        private(&state)?;
        let options = options.iter().map(|&option| option.to_owned()).collect();
        self.hosts.push(Host { ip: ip.into(), state, port, peer_port, namespace, options, live: None });
        self.vouch(place)
    }

    /// All nodes are on machines of one software platform.
    fn vouch(&self, place: usize) -> Result<()> {
        let folder = self.hosts[place].state.join("platform");
        private(&folder)?;
        for entry in std::fs::read_dir(self.path("platform"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Makes everybody trust everybody.
    fn introduce(&self) -> Result<()> {
        let known: Result<Vec<String>> = self
            .hosts
            .iter()
            .map(|host| {
                let said = self.done(&["node", "identity", "--json", "--state-dir", text(&host.state)?])?;
                let said: Value = serde_json::from_slice(&said.stdout)?;
                Ok(said["fingerprint"].as_str().context("a fingerprint")?.to_owned())
            })
            .collect();
        let known = known?;
        for (one, host) in self.hosts.iter().enumerate() {
            for (other, fingerprint) in known.iter().enumerate().filter(|&(other, _)| other != one) {
                let (state, peer) = (text(&host.state)?, self.hosts[other].peer());
                self.done(&["node", "trust", &peer, "--fingerprint", fingerprint, "--state-dir", state])?;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A manifest that lets its tenant move to nodes of this cluster, signed.
    fn sign(&self) -> Result<()> {
        let (platform, folder) = (self.path("platform"), self.path("manifest"));
        self.done(&["platform", "init", "--dir", text(&platform)?])?;
        let shape = ["measure", "--workers", WORKERS, "--memory", MEMORY, "--policy", "--platform"];
        let policy = self.done(&[&shape[..], &[text(&platform)?]].concat())?.text();
        let rules = self.path("policy.toml");
        std::fs::write(&rules, policy)?;
        let init = ["manifest", "init", "mover", "--open", "--migrate-to", text(&rules)?];
        self.done(&[&init[..], &["--dir", text(&folder)?]].concat())?;
        let file = folder.join("manifest.toml");
        let (key, signed) = (folder.join("owner.key"), self.path("signed"));
        self.done(&["manifest", "sign", text(&file)?, "--key", text(&key)?, "-o", text(&signed)?])?;
        Ok(())
    }

    /// A call of `nacre` that finds no node by itself.
    pub fn command(&self) -> Command {
        let mut command = self.nacre.command();
        for name in ["NACRE_NODE", "NACRE_AUTH", "NACRE_TENANT", "NACRE_LOG", "NACRE_STATE_DIR"] {
            command.env_remove(name);
        }
        command.env("NACRE_CONTEXT", self.path("context.json"));
        command
    }

    fn done(&self, args: &[&str]) -> Result<Ended> {
        let ended = finish(self.command().args(args), b"")?;
        ensure!(ended.code == 0, "{args:?}: {}", ended.stderr);
        Ok(ended)
    }

    /// The nodes.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Starts a node that does not run; returns when it serves.
    pub fn start(&mut self, place: usize) -> Result<()> {
        let host = &self.hosts[place];
        let mut command = match &host.namespace {
            None => self.command(),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(self.nacre.binary());
                for name in ["NACRE_LOG", "NACRE_STATE_DIR"] {
                    command.env_remove(name);
                }
                command
            }
        };
        command.args(["node", "start", "--json", "--listen", &host.address().to_string(), "--peer-listen"]);
        command.args([&host.peer(), "--state-dir", text(&host.state)?]).args(&host.options);
        let mut live = Live::start(&mut command)?;
        let ready: Value = serde_json::from_str(&live.hear()?)?;
        ensure!(ready["listen"].is_string(), "it says where it listens: {ready}");
        self.hosts[place].live = Some(live);
        Ok(())
    }

    /// The process of a node that runs.
    pub fn pid(&self, place: usize) -> Result<Pid> {
        Ok(self.hosts[place].live.as_ref().context("it runs")?.pid())
    }

    /// Kills a node as a power cut would, at once.
    pub fn kill(&self, place: usize) -> Result<()> {
        let live = self.hosts[place].live.as_ref().context("it runs")?;
        live.signal(Signal::KILL)
    }

    /// Tells a node to stop, in order.
    pub fn terminate(&self, place: usize) -> Result<()> {
        self.hosts[place].live.as_ref().context("it runs")?.signal(Signal::TERM)
    }

    /// Waits for the end of a node that was killed, or told to stop; its log.
    pub fn buried(&mut self, place: usize) -> Result<String> {
        let live = self.hosts[place].live.take().context("it was started")?;
        Ok(live.end_with_open_stdin()?.2)
    }

    /// Cuts the cable of a node, or mends it. False if there are none.
    pub fn cable(&self, place: usize, there: bool) -> Result<bool> {
        let Network::Namespaces(bridge) = &self.network else { return Ok(false) };
        let state = if there { "up" } else { "down" };
        system(&format!("ip link set {} {state}", bridge.link(place)))?;
        Ok(true)
    }

    /// One request to a node.
    pub fn ask(
        &self,
        place: usize,
        tenant: &Tenant,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Answer> {
        let mut stream = connect(self.hosts[place].address())?;
        stream.write_all(&request(Some(tenant), method, path, body, true))?;
        read_answer(&mut stream)
    }

    /// The same, which must go well.
    pub fn tell(
        &self,
        place: usize,
        tenant: &Tenant,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Value> {
        let answer = self.ask(place, tenant, method, path, body)?;
        ensure!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.error());
        Ok(answer.json())
    }

    /// Adds a tenant that may move, at a node.
    pub fn tenant(&self, place: usize, name: &str) -> Result<Tenant> {
        let state = text(&self.hosts[place].state)?;
        let limits = ["--memory", MEMORY, "--workers-max", WORKERS, "--no-context"];
        let add = [&["tenant", "add", name, "--json", "--state-dir", state][..], &limits].concat();
        let added: Value = serde_json::from_slice(&self.done(&add)?.stdout)?;
        let auth = added["auth"].as_str().context("credentials")?.to_owned();
        let tenant = Tenant { name: name.to_owned(), auth };
        let url = format!("http://{}", self.hosts[place].address());
        let signed = self.path("signed");
        self.done(&["manifest", "set", text(&signed)?, "--node", &url, "--auth", &tenant.auth])?;
        Ok(tenant)
    }

    /// Has a tenant removed at a node: how that ended.
    pub fn forget(&self, place: usize, tenant: &Tenant) -> Result<Ended> {
        let args = ["tenant", "rm", &tenant.name, "--state-dir", text(&self.hosts[place].state)?];
        finish(self.command().args(args), b"")
    }

    /// Deploys the key-value service, and waits until it answers.
    pub fn deploy(&self, place: usize, tenant: &Tenant, port: u16) -> Result<()> {
        let path = format!("/v1/deployments/kv?service=true&port={port}");
        self.tell(place, tenant, "PUT", &path, &std::fs::read(app("kv"))?)?;
        until("the service answers", || {
            crate::auditor::is_alive(self.hosts[place].service(port)).then_some(())
        })
    }

    /// Begins a migration; its id, or why it does not begin.
    pub fn move_to(&self, from: usize, tenant: &Tenant, order: &Value) -> Result<Result<String, Answer>> {
        let answer = self.ask(from, tenant, "POST", "/v1/migrations", order.to_string().as_bytes())?;
        Ok(match answer.json()["id"].as_str() {
            Some(id) if answer.status == 202 => Ok(id.to_owned()),
            _ => Err(answer),
        })
    }

    /// What is shown of a migration at a node; null if that knows nothing of it.
    pub fn view(&self, place: usize, tenant: &Tenant, id: &str) -> Result<Value> {
        Ok(self.ask(place, tenant, "GET", &format!("/v1/migrations/{id}"), b"")?.json())
    }

    /// What happens to a migration, as it happens.
    pub fn events(&self, place: usize, tenant: &Tenant, id: &str) -> Result<Events> {
        let mut stream = connect(self.hosts[place].address())?;
        let path = format!("/v1/migrations/{id}/events");
        stream.write_all(&request(Some(tenant), "GET", &path, b"", true))?;
        Ok(Events(BufReader::new(stream)))
    }

    /// Moves a tenant to its end; what is shown of it then.
    pub fn migrate(&self, from: usize, to: usize, tenant: &Tenant, mode: &str) -> Result<Value> {
        let order = json!({"to": self.hosts[to].peer(), "mode": mode});
        match self.move_to(from, tenant, &order)? {
            Ok(id) => self.events(from, tenant, &id)?.last(),
            Err(answer) => bail!("it does not begin: {} {}", answer.status, answer.error()),
        }
    }

    /// The tenant's service as a node shows it; null if it shows none.
    pub fn shown(&self, place: usize, tenant: &Tenant) -> Result<Value> {
        Ok(self.ask(place, tenant, "GET", "/v1/ps", b"")?.json()["services"][0].clone())
    }
}

/// The events of a migration.
#[derive(Debug)]
pub struct Events(BufReader<TcpStream>);

impl Events {
    /// The next one; none when the node has ended, or nothing follows.
    pub fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line).ok()? == 0 || line == "0\r\n" {
                return None;
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).ok();
            }
        }
    }

    /// The last one.
    pub fn last(mut self) -> Result<Value> {
        let mut last = Value::Null;
        while let Some(view) = self.hear() {
            last = view;
        }
        let step = last["step"].as_str().unwrap_or_default();
        ensure!(matches!(step, "complete" | "aborted" | "lost"), "the events end too early: {last}");
        Ok(last)
    }
}

/// A connection with a limit on every read.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        ensure!(begin.elapsed() < PATIENCE, "too late: {what}");
        // Between two questions; what is waited for is the answer.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port for a service, another one each time.
pub fn service_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    20_000 + NEXT.fetch_add(1, Ordering::SeqCst) % 10_000
}

fn private(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    Ok(std::fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("paths are UTF-8")
}
