//! A tenant moves between two nodes, which are processes of their own, and back: its service keeps what it holds, calls and clients find it
//! from either node, also when the source was killed meanwhile.
#![forbid(unsafe_code)]

#[allow(dead_code)]
mod migrate_support;
#[allow(dead_code)]
mod sealed_support;

use hyper::Method;
use migrate_support::{PIPELINE, auditor};
use nacre_attest::launch::Measurement;
use nacre_attest::manifest::{Manifest, Mode};
use nacre_attest::policy::{AcceptedGuest, ManifestRule, Policy};
use nacre_attest::software::SoftwarePlatform;
use nacre_cli::node::client::Client;
use nacre_node::peers::{Peers, TrustedPeer};
use nacre_session::SigningKey;
use nacre_vmm::evidence::{LaunchShape, measurement};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);
const WORKERS: u32 = 2;
const MEMORY_MIB: u64 = 256;
/// Two machines, as far as ports are concerned.
const HOSTS: [&str; 2] = ["127.0.0.1", "127.0.0.2"];

fn free_port(host: &str) -> u16 {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port()
}

/// A node, killed when this is dropped.
struct Node {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    url: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a node has its state, and where others reach it.
struct Place {
    state: PathBuf,
    host: &'static str,
    peer: String,
}

impl Place {
    fn new(dir: &Path, host: &'static str, platform: &Path) -> Place {
        let state = dir.join(host);
        std::fs::create_dir(&state).unwrap();
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        // Both nodes are of one operator, who has one software platform.
        std::fs::create_dir(state.join("platform")).unwrap();
        for entry in std::fs::read_dir(platform).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), state.join("platform").join(entry.file_name())).unwrap();
        }
        Place { state, host, peer: format!("{host}:{}", free_port(host)) }
    }

    fn trust(&self, other: &Place) {
        let fingerprint = Peers::open(&other.state).unwrap().fingerprint();
        let peer = TrustedPeer::new(fingerprint, Some(other.peer.parse().unwrap()), None);
        Peers::open(&self.state).unwrap().trust(peer).unwrap();
    }

    fn start(&self) -> Node {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
        command.args(["node", "start", "--json", "--listen", &format!("{}:0", self.host)]);
        command.args(["--peer-listen", &self.peer, "--state-dir"]).arg(&self.state);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let ready: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("it does not start: {line}"));
        let url = format!("http://{}", ready["listen"].as_str().unwrap());
        Node { child, _stdout: stdout, url }
    }

    fn admin(&self) -> Client {
        Client::unix(&self.state.join("admin.sock"))
    }
}

fn ask(client: &Client, method: Method, path: &str, body: &[u8]) -> Value {
    let answer = client.send(method, path, "application/octet-stream", body.to_vec()).unwrap();
    let answer = answer.success(path).unwrap();
    if answer.body.is_empty() { Value::Null } else { answer.json().unwrap() }
}

fn as_tenant(node: &Node, auth: &str) -> Client {
    use base64::Engine;
    let basic = base64::engine::general_purpose::STANDARD.encode(auth);
    Client::http(&node.url).unwrap().with_authorization(format!("Basic {basic}"))
}

/// A manifest that lets its tenant move to whatever of this image the platform vouches for.
fn manifest(platform: &SoftwarePlatform) -> Vec<u8> {
    let owner = SigningKey::from_bytes(&[7; 32]);
    let guest = |xcr0| {
        let memory_bytes = MEMORY_MIB << 20;
        let shape = LaunchShape { vcpus: WORKERS + 1, memory_bytes, debug_image: false, xcr0 };
        AcceptedGuest { measurement: Measurement(measurement(shape).unwrap()), guest: "this".into() }
    };
    let policy = Policy {
        measurements: vec![guest(7), guest(0xe7)],
        allow_software_platform: true,
        software_roots: vec![platform.root_sha256()],
        manifest: Some(ManifestRule {
            owner: owner.verifying_key().to_bytes(),
            minimum_version: 1,
            mode: Mode::Open,
        }),
        ..Policy::default()
    };
    let manifest = Manifest {
        version: 1,
        owner: owner.verifying_key(),
        compilers: vec![owner.verifying_key()],
        brokers: Vec::new(),
        mode: Mode::Open,
        name: "mover".into(),
        migration: Some(policy.encode()),
    };
    manifest.sign(&owner).unwrap().encode()
}

/// One command to the key-value service, and its answer's first bytes.
fn kv(host: &str, port: u16, command: &str, expected: &str) {
    let begin = Instant::now();
    let mut said = Vec::new();
    // Its program may not listen yet.
    while begin.elapsed() < PATIENCE {
        said.clear();
        if let Ok(mut stream) = TcpStream::connect((host, port)) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(command.as_bytes()).unwrap();
            let mut buffer = vec![0; expected.len()];
            if stream.read_exact(&mut buffer).is_ok() {
                said = buffer;
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(String::from_utf8_lossy(&said), expected, "{command:?} at {host}");
}

/// Moves the tenant and returns what the node shows of it in the end.
fn migrate(client: &Client, order: &Value) -> Value {
    let begun = ask(client, Method::POST, "/v1/migrations", order.to_string().as_bytes());
    let path = format!("/v1/migrations/{}", begun["id"].as_str().unwrap());
    let begin = Instant::now();
    loop {
        let view = ask(client, Method::GET, &path, b"");
        if matches!(view["step"].as_str().unwrap(), "complete" | "aborted" | "lost") {
            return view;
        }
        assert!(begin.elapsed() < PATIENCE, "{view}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_tenant_moves_to_another_node_and_back() {
    if let Err(error) = nacre_vmm::kvm::available() {
        return nacre_tests::skip::skipped("migration between nodes", &error.to_string());
    }
    let dir = tempfile::tempdir().unwrap();
    let platform_dir = dir.path().join("platform");
    let platform = SoftwarePlatform::init(&platform_dir).unwrap();
    let [here, there] = HOSTS.map(|host| Place::new(dir.path(), host, &platform_dir));
    here.trust(&there);
    there.trust(&here);
    let (first, second) = (here.start(), there.start());

    let limits = json!({"memory_bytes": MEMORY_MIB << 20, "workers_max": WORKERS});
    let tenant = json!({"name": "mover", "limits": limits});
    let added = ask(&here.admin(), Method::POST, "/v1/tenants", tenant.to_string().as_bytes());
    let auth = added["auth"].as_str().unwrap();
    let (client, other) = (as_tenant(&first, auth), as_tenant(&second, auth));
    let order = |to: &Place, mode: &str| json!({"to": to.peer, "mode": mode, "name": "kv"});
    let apps = Path::new(env!("CARGO_MANIFEST_DIR")).join("../apps");
    let port = free_port(HOSTS[0]);
    let deploy = format!("/v1/deployments/kv?service=true&port={port}");
    ask(&client, Method::PUT, &deploy, &std::fs::read(apps.join("kv/kv.wasm")).unwrap());

    // Without a manifest nothing moves, and the message says what to do.
    let refused =
        client.send(Method::POST, "/v1/migrations", "", order(&there, "hybrid").to_string().into_bytes());
    let refused = refused.unwrap().success("migrate").unwrap_err().to_string();
    assert!(refused.contains("no manifest") && refused.contains("migration policy"), "{refused}");
    ask(&client, Method::PUT, "/v1/sealed/manifest", &manifest(&platform));
    kv(HOSTS[0], port, "SET k moved\r\n", "+OK\r\n");

    // Itself is no destination; the tenant stays.
    let view = migrate(&client, &order(&here, "hybrid"));
    assert_eq!(view["step"], "aborted", "{view}");
    assert!(view["error"].as_str().unwrap().contains("itself"), "{view}");
    kv(HOSTS[0], port, "GET k\r\n", "$5\r\nmoved\r\n");

    // A connection that was open goes on, and every record that was acknowledged is there.
    let (progress, audit) = auditor(TcpStream::connect((HOSTS[0], port)).unwrap(), "a");
    progress.wait_for(PIPELINE);
    let view = migrate(&client, &order(&there, "hybrid"));
    assert_eq!(view["step"], "complete", "{view}");
    progress.wait_for(PIPELINE);
    progress.stop.store(true, Ordering::SeqCst);
    audit.join().unwrap();
    // What follows the guest's own part of the downtime is within what the nodes saw of it.
    let (downtime, handed) = (view["downtime_ms"].as_f64().unwrap(), view["handed_ms"].as_f64().unwrap());
    assert!(0.0 < handed && handed <= downtime, "{view}");
    kv(HOSTS[1], port, "GET k\r\n", "$5\r\nmoved\r\n");
    kv(HOSTS[0], port, "GET k\r\n", "$5\r\nmoved\r\n");
    let shown = ask(&client, Method::GET, "/v1/ps", b"");
    assert!(shown["services"][0]["address"].as_str().unwrap().starts_with(HOSTS[1]), "{shown}");

    // A source that was killed starts nothing, and still leads there.
    drop(first);
    let first = here.start();
    let client = as_tenant(&first, auth);
    kv(HOSTS[0], port, "GET k\r\n", "$5\r\nmoved\r\n");
    let shown = ask(&client, Method::GET, "/v1/ps", b"");
    assert_eq!(shown["services"][0]["status"]["phase"], "running", "{shown}");

    // Back, in another mode, with clients of both nodes.
    let audits = HOSTS.map(|host| {
        auditor(TcpStream::connect((host, port)).unwrap(), if host == HOSTS[0] { "b" } else { "c" })
    });
    audits.iter().for_each(|(progress, _)| progress.wait_for(PIPELINE));
    let view = migrate(&other, &order(&here, "pre-copy"));
    assert_eq!(view["step"], "complete", "{view}");
    audits.iter().for_each(|(progress, _)| progress.wait_for(PIPELINE));
    audits.iter().for_each(|(progress, _)| progress.stop.store(true, Ordering::SeqCst));
    assert!(audits.into_iter().all(|(_, audit)| audit.join().unwrap() > 0));
    kv(HOSTS[0], port, "GET k\r\n", "$5\r\nmoved\r\n");
    kv(HOSTS[1], port, "GET k\r\n", "$5\r\nmoved\r\n");
    drop((first, second));
}
