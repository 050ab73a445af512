//! Two nodes of one operator on this machine, and a tenant with a key-value service that moves between them: what `nacre demo` shows and
//! `nacre bench migrate` measures. Who uses it starts the nodes, as processes of their own.
//!
//! * [`clients`]: who fills the service, and who uses it all the time. * [`timeline`]: what they see of a migration. * [`plot`]: the same as
//!   a picture.
//!
//! The nodes share a software platform, so that each one's CVMs accept the other's; nothing here is confidential.

pub mod clients;
pub mod plot;
pub mod timeline;

use crate::{BenchError, Progress};
use clients::{Clients, Log, Plan};
use hyper::Method;
use nacre_abi::migrate::MoveMode;
use nacre_attest::launch::Measurement;
use nacre_attest::policy::{AcceptedGuest, ManifestRule};
use nacre_attest::software::SoftwarePlatform;
use nacre_client::http::{NodeError, Repeat};
use nacre_client::{Manifest, Mode, Node, Policy, keys};
use nacre_vmm::evidence::{LaunchShape, measurement};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Display;
use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use timeline::{AROUND, View};

/// The service that moves.
const KV: &[u8] = include_bytes!("../../../apps/kv/kv.wasm");
/// The tenant's name.
const TENANT: &str = "mover";
/// What a tenant has beside the service's values: the image, the program's code, keys and what its memory is grown by at once.
const BESIDE_BYTES: u64 = 256 << 20;
/// What a host needs beside two CVMs.
const SPARE_BYTES: u64 = 1 << 30;
/// Ports that are tried for the service: another program may take one just before a node does.
const PORTS: usize = 5;
/// Between two looks at a migration.
const LOOK: Duration = Duration::from_millis(50);
/// What clients are given before anything is looked at.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest time that a migration may take, and that the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Workers of the tenant's CVM, and so lanes of its migrations.
pub const WORKERS: u32 = 2;

/// For `map_err`.
fn failed<E: Display>(what: &'static str) -> impl Fn(E) -> BenchError {
    move |error| BenchError::Program { program: what.into(), what: format!("failed: {error}") }
}

fn refused(what: &'static str) -> impl Fn(NodeError) -> BenchError {
    move |error| BenchError::Node { what, error }
}

/// Memory of a CVM whose service holds so much, in bytes: whole pages of 2 MiB.
#[must_use]
pub fn cvm_bytes(fill: u64) -> u64 {
    (fill + fill / 4 + BESIDE_BYTES).next_multiple_of(2 << 20)
}

/// Memory that has to be free for two such CVMs, in bytes.
#[must_use]
pub fn needed_bytes(fill: u64) -> u64 {
    2 * cvm_bytes(fill) + SPARE_BYTES
}

/// Where two nodes have their state: with the same platform in both.
pub struct Places {
    platform: SoftwarePlatform,
    /// State directories.
    pub states: [PathBuf; 2],
}

impl Places {
    /// Makes them in a directory.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn new(directory: &Path) -> Result<Self, BenchError> {
        let states = ["state-a", "state-b"].map(|name| directory.join(name));
        let [first, second] = &states;
        let made = |error| BenchError::System { what: "a state directory", error };
        for state in &states {
            DirBuilder::new().mode(0o700).create(state).map_err(made)?;
        }
        let platform = SoftwarePlatform::init(&first.join("platform")).map_err(failed("the platform"))?;
        DirBuilder::new().mode(0o700).create(second.join("platform")).map_err(made)?;
        for entry in std::fs::read_dir(first.join("platform")).map_err(made)? {
            let entry = entry.map_err(made)?;
            std::fs::copy(entry.path(), second.join("platform").join(entry.file_name())).map_err(made)?;
        }
        Ok(Self { platform, states })
    }

    /// A manifest that lets a tenant with CVMs of this size move to whatever of this image the platform vouches for.
    fn manifest(&self, memory_bytes: u64) -> Result<nacre_client::SignedManifest, BenchError> {
        let mut measurements = Vec::new();
        for xcr0 in [0x7, 0xe7] {
            let shape = LaunchShape { vcpus: WORKERS + 1, memory_bytes, debug_image: false, xcr0 };
            let digest = measurement(shape).map_err(failed("the measurement"))?;
            measurements.push(AcceptedGuest { measurement: Measurement(digest), guest: "this".into() });
        }
        let owner = keys::generate();
        let rule =
            ManifestRule { owner: owner.verifying_key().to_bytes(), minimum_version: 1, mode: Mode::Open };
        let policy = Policy {
            measurements,
            allow_software_platform: true,
            software_roots: vec![self.platform.root_sha256()],
            manifest: Some(rule),
            ..Policy::default()
        };
        let manifest = Manifest {
            version: 1,
            owner: owner.verifying_key(),
            compilers: Vec::new(),
            brokers: Vec::new(),
            mode: Mode::Open,
            name: TENANT.into(),
            migration: Some(policy.encode()),
        };
        manifest.sign(&owner).map_err(failed("the manifest"))
    }
}

/// A node that serves.
#[derive(Debug, Clone)]
pub struct End {
    /// Where clients find it.
    pub address: SocketAddr,
    /// The socket of its administration.
    pub admin: PathBuf,
    /// Where other nodes find it.
    pub peers: String,
}

/// What a node prints when it serves.
#[derive(Deserialize)]
struct Ready {
    listen: SocketAddr,
    admin_socket: PathBuf,
    peer_listen: Option<String>,
}

impl End {
    /// Of a node's first line; none if that is another one, or it knows no other nodes.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let Ready { listen, admin_socket, peer_listen } = serde_json::from_str(line).ok()?;
        Some(Self { address: listen, admin: admin_socket, peers: peer_listen? })
    }
}

/// What is told of a migration by those who make it: times by the guests' clocks and the source node's, in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Moved {
    /// How.
    pub mode: String,
    /// The whole of it.
    pub total_ms: f64,
    /// No task ran for so long: the guests' times, and what both nodes needed to hand the Commit over.
    pub downtime_ms: f64,
    /// From the order until tasks began to be parked.
    pub parked_at_ms: f64,
    /// From the order until the source heard that they run there.
    pub running_at_ms: f64,
    /// Until all tasks were parked, from when that began.
    pub parked_ms: f64,
    /// Until everything was sent.
    pub sent_ms: f64,
    /// Until the destination had said that it is staged.
    pub staged_ms: f64,
    /// Until the tenant was gone from the source.
    pub gone_ms: f64,
    /// Bytes sent before the hand-over and outstanding then.
    pub bytes: u64,
    /// Of those, what followed.
    pub outstanding_bytes: u64,
    /// Rounds while tasks ran.
    pub rounds: u64,
    /// When each step began, from the order.
    pub steps: Vec<Step>,
}

/// A step of a migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub step: String,
    /// When it began, in milliseconds.
    pub at_ms: f64,
}

impl Moved {
    fn new(view: &Value) -> Result<Self, BenchError> {
        let ended = |text: &str| BenchError::program("a migration", format!("ended: {text}"));
        if view["step"] != "complete" {
            return Err(ended(view["error"].as_str().unwrap_or("without a reason")));
        }
        let steps = serde_json::from_value(view["steps"].clone());
        let steps: Vec<Step> = steps.map_err(|_| ended("without steps"))?;
        let begin = |step: &str| {
            let found = steps.iter().find(|begun| begun.step == step);
            found.map(|begun| begun.at_ms).ok_or_else(|| ended("without a time"))
        };
        let report = &view["report"];
        let ms = |name: &str| report[name].as_f64().ok_or_else(|| ended("without a report"));
        let count = |name: &str| report[name].as_u64().unwrap_or(0);
        let (parked_ms, gone_ms) = (ms("parked_ms")?, ms("gone_ms")?);
        let handed_ms = view["handed_ms"].as_f64().ok_or_else(|| ended("without a time"))?;
        let (total_ms, running_at_ms) = (begin("complete")?, begin("running")?);
        // The node hears of it when they are.
        let parked_at_ms = begin("parked")? - parked_ms;
        Ok(Self {
            mode: view["mode"].as_str().unwrap_or_default().to_owned(),
            total_ms,
            downtime_ms: gone_ms + handed_ms,
            parked_at_ms,
            running_at_ms,
            parked_ms,
            sent_ms: ms("sent_ms")?,
            staged_ms: ms("staged_ms")?,
            gone_ms,
            bytes: count("bytes") + count("outstanding_bytes"),
            outstanding_bytes: count("outstanding_bytes"),
            rounds: count("rounds"),
            steps,
        })
    }
}

/// Two nodes that trust each other, and a tenant at home on them. It belongs to the tokio runtime it was made on.
pub struct Pair {
    ends: [End; 2],
    admins: [Node; 2],
    /// Where the service's clients find it, at each node.
    services: [SocketAddr; 2],
}

impl Pair {
    /// Has two nodes trust each other, and deploys the service at the first one, with room for so many bytes of values.
    ///
    /// # Errors
    /// If a node refuses something, or the service does not answer.
    pub async fn new(places: &Places, ends: [End; 2], fill: u64) -> Result<Self, BenchError> {
        let admins = [0, 1].map(|end: usize| Node::unix(&ends[end].admin));
        let services = [0, 1].map(|end: usize| ends[end].address);
        let mut pair = Self { ends, admins, services };
        let mut fingerprints = Vec::new();
        for admin in &pair.admins {
            let identity = ask(admin, Method::GET, "/v1/identity", Vec::new(), "the node's identity").await?;
            fingerprints.push(identity["fingerprint"].clone());
        }
        for (end, fingerprint) in [0, 1].into_iter().zip(fingerprints.into_iter().rev()) {
            let peer = json!({ "url": pair.ends[1 - end].peers, "fingerprint": fingerprint });
            ask(&pair.admins[end], Method::POST, "/v1/peers", body(&peer), "trust between the nodes").await?;
        }
        let limits = json!({ "workers_max": WORKERS, "memory_bytes": cvm_bytes(fill) });
        let tenant = body(&json!({ "name": TENANT, "limits": limits }));
        let added = ask(&pair.admins[0], Method::POST, "/v1/tenants", tenant, "the tenant").await?;
        let home = Node::http(&format!("http://{}", pair.ends[0].address)).map_err(refused("the node"))?;
        let home = home.with_credentials(added["auth"].as_str().unwrap_or_default());
        home.put_manifest(&places.manifest(cvm_bytes(fill))?).await.map_err(refused("the manifest"))?;
        let port = pair.deploy(&home).await?;
        pair.services.iter_mut().for_each(|service| service.set_port(port));
        pair.answers().await?;
        Ok(pair)
    }

    /// Where clients of one end find the service.
    #[must_use]
    pub fn service(&self, end: usize) -> SocketAddr {
        self.services[end]
    }

    /// Deploys the service on a port that is free at both ends.
    async fn deploy(&self, home: &Node) -> Result<u16, BenchError> {
        let mut tries = PORTS;
        loop {
            let port = free_port(self.ends[0].address.ip()).map_err(BenchError::system("a free port"))?;
            let path = format!("/v1/deployments/kv?service=true&port={port}");
            let deployed = ask_as(home, Method::PUT, &path, "application/wasm", KV.to_vec()).await;
            tries -= 1;
            match deployed {
                Err(error) if error.status() == Some(409) && tries > 0 => {}
                deployed => return deployed.map(|_| port).map_err(refused("the service kv")),
            }
        }
    }

    /// Waits until the service answers.
    async fn answers(&self) -> Result<(), BenchError> {
        let begin = Instant::now();
        loop {
            let answer = clients::keys(self.services[0]).await;
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => return Err(failed("the service kv")(error)),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Moves the tenant from one end to the other one.
    ///
    /// # Errors
    /// If it does not get there.
    pub async fn migrate(&self, from: usize, mode: MoveMode) -> Result<Moved, BenchError> {
        let order =
            json!({ "tenant": TENANT, "to": self.ends[1 - from].peers, "mode": crate::migrate::name(mode) });
        let admin = &self.admins[from];
        let begun = ask(admin, Method::POST, "/v1/migrations", body(&order), "a migration").await?;
        let path = format!("/v1/migrations/{}", begun["id"].as_str().unwrap_or_default());
        let begin = Instant::now();
        loop {
            let view = ask(admin, Method::GET, &path, Vec::new(), "a migration").await?;
            if matches!(view["step"].as_str(), Some("complete" | "aborted" | "lost")) {
                return Moved::new(&view);
            }
            if begin.elapsed() > PATIENCE {
                return Err(BenchError::program("a migration", format!("does not end: {view}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Migrations while clients were at work.
#[derive(Debug)]
pub struct Watched {
    /// What the clients saw.
    pub log: Log,
    /// The migrations, and when in the log each was ordered.
    pub journeys: Vec<(Duration, Moved)>,
}

impl Watched {
    /// What the clients saw of each.
    pub fn views(&self) -> impl Iterator<Item = (View<'_>, &Moved)> {
        self.journeys.iter().map(|(ordered, moved)| (View::new(&self.log, *ordered), moved))
    }
}

impl Pair {
    /// Moves the tenant there and back, once in each of these modes, while clients of the first end use the service.
    ///
    /// # Errors
    /// If it does not get there. Requests that fail are none: the log tells of them.
    pub async fn watch(
        &self,
        plan: Plan,
        modes: &[MoveMode],
        progress: &dyn Progress,
    ) -> Result<Watched, BenchError> {
        let clients = Clients::start(self.service(0), plan)?;
        let mut journeys = Vec::new();
        for (number, mode) in modes.iter().enumerate() {
            progress.step(crate::migrate::name(*mode));
            tokio::time::sleep(AROUND + SETTLE).await;
            let ordered = clients.now();
            journeys.push((ordered, self.migrate(number % 2, *mode).await?));
            tokio::time::sleep(AROUND).await;
        }
        Ok(Watched { log: clients.finish()?, journeys })
    }
}

fn body(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

async fn ask(
    node: &Node,
    method: Method,
    path: &str,
    body: Vec<u8>,
    what: &'static str,
) -> Result<Value, BenchError> {
    ask_as(node, method, path, "application/json", body).await.map_err(refused(what))
}

async fn ask_as(
    node: &Node,
    method: Method,
    path: &str,
    kind: &str,
    body: Vec<u8>,
) -> Result<Value, NodeError> {
    let answer = node.send(method, path, kind, body, Repeat::Never).await?.success()?;
    if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
}

/// A port that nobody has at this address; likely nobody has it at the other node's.
fn free_port(address: IpAddr) -> std::io::Result<u16> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_private_and_have_one_platform() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let places = Places::new(directory.path()).unwrap();
        for state in &places.states {
            assert_eq!(std::fs::metadata(state).unwrap().permissions().mode() & 0o777, 0o700);
            let platform = SoftwarePlatform::open(&state.join("platform")).unwrap();
            assert_eq!(platform.root_sha256(), places.platform.root_sha256());
        }
        assert!(places.manifest(cvm_bytes(64 << 20)).unwrap().verify().unwrap().migration.is_some());
    }

    #[test]
    fn a_node_s_first_line_is_understood() {
        let line = r#"{"listen":"127.0.0.1:1","peer_listen":"127.0.0.1:2","admin_socket":"/s/admin.sock"}"#;
        let end = End::parse(line).unwrap();
        assert_eq!((end.address.port(), end.peers.as_str()), (1, "127.0.0.1:2"));
        assert!(End::parse(r#"{"listen":"127.0.0.1:1","peer_listen":null,"admin_socket":"/s"}"#).is_none());
    }

    #[test]
    fn only_a_migration_that_is_complete_has_moved() {
        let step = |step: &str, at_ms: f64| json!({ "step": step, "at_ms": at_ms });
        let mut view = json!({
            "step": "complete", "mode": "hybrid",
            "steps": [step("parked", 100.0), step("running", 105.0), step("complete", 200.0)],
            "report": { "rounds": 3, "bytes": 10, "outstanding_bytes": 5, "parked_ms": 1.0, "sent_ms": 2.0,
                "staged_ms": 3.0, "gone_ms": 4.0 },
            "handed_ms": 0.5,
        });
        let moved = Moved::new(&view).unwrap();
        assert_eq!((moved.parked_at_ms, moved.downtime_ms, moved.bytes), (99.0, 4.5, 15));
        view["step"] = "aborted".into();
        view["error"] = "no room".into();
        assert!(Moved::new(&view).unwrap_err().to_string().contains("no room"));
    }
}
