//! Sealed workloads end to end: what a client deploys and calls sealed works, also after its node was killed and with the client away;
//! what must be refused is; and the node has never seen, nor stored, what was sealed.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Ended, Nacre, finish};
use nacre_tests::live::Live;
use nacre_tests::memory::{self, contains};
use nacre_tests::node::{Node, Place, Tenant, free_port};
use nacre_tests::skip::need;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What is sealed, each in another place.
const INPUT: &str = "planted-input-5f1c";
const SECRET: &str = "planted-secret-77aa";
const LOG: &str = "planted-log-9d02";
const NAME: &str = "planted-name-31be";
const FUNCTION: &str = "planted_function_c4d8";

/// How long a program may take to end: it needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is plain: input and log.
const PLAIN: &str = "plain-input-8e8e";
const PLAIN_LOG: &str = "plain-log-1b7d";

/// Memory of each tenant's CVM in bytes, the default: no other mapping with large pages has this size.
const TENANT_BYTES: u64 = 512 << 20;

/// An action that gives back its input and variables, and writes a log.
fn teller(log: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 64) "{{\"in\":\"")
  (data (i32.const 80) "\",\"env\":\"")
  (data (i32.const 96) "\"}}\n")
  (data (i32.const 128) "{log}\n")
  (func $out (param $fd i32) (param $at i32) (param $bytes i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $bytes))
    (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16))))
  (func (export "_start") (local $input i32) (local $env i32) (local $at i32)
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 8192))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
    (local.set $input (i32.load (i32.const 16)))
    (drop (call $sizes (i32.const 20) (i32.const 24)))
    (drop (call $environ (i32.const 16384) (i32.const 32768)))
    (local.set $env (i32.load (i32.const 24)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $env)))
      (if (i32.eqz (i32.load8_u (i32.add (i32.const 32768) (local.get $at))))
        (then (i32.store8 (i32.add (i32.const 32768) (local.get $at)) (i32.const 32))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $next)))
    (call $out (i32.const 2) (i32.const 128) (i32.const {}))
    (call $out (i32.const 1) (i32.const 64) (i32.const 7))
    (call $out (i32.const 1) (i32.const 1024) (local.get $input))
    (call $out (i32.const 1) (i32.const 80) (i32.const 9))
    (call $out (i32.const 1) (i32.const 32768) (local.get $env))
    (call $out (i32.const 1) (i32.const 96) (i32.const 3))))"#,
        log.len() + 1
    );
    wat::parse_str(text).unwrap()
}

/// An action that traps in a function whose name is nobody's business.
fn trapper() -> Vec<u8> {
    let text = format!(
        r#"(module (memory (export "memory") 1)
             (func ${FUNCTION} unreachable) (func (export "_start") (call ${FUNCTION})))"#
    );
    wat::parse_str(text).unwrap()
}

/// A tenant with keys, manifest and policy, and its node.
struct Owner<'n> {
    nacre: &'n Nacre,
    place: &'n Place,
    tenant: Tenant,
    /// Where the tenant reaches the node.
    url: String,
}

impl<'n> Owner<'n> {
    /// Platform and keys; `place` is the node's and the owner's.
    fn prepare(nacre: &'n Nacre, place: &'n Place) {
        std::fs::create_dir_all(place.path("keys")).unwrap();
        let run = |args: &[&str]| {
            let ended = finish(place.command(nacre).args(args).current_dir(place.path("keys")), b"").unwrap();
            assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
            ended.text()
        };
        run(&["platform", "init"]);
        run(&["manifest", "init", "tests", "--broker"]);
        run(&["manifest", "sign", "manifest.toml", "--key", "owner.key"]);
        let platform = place.state().join("platform");
        let platform = platform.to_str().unwrap();
        let policy = run(&["measure", "--policy", "--manifest", "manifest.signed", "--platform", platform]);
        std::fs::write(place.path("keys/policy.toml"), policy).unwrap();
        std::fs::write(place.path("keys/teller.wasm"), teller(LOG)).unwrap();
        std::fs::write(place.path("keys/plain.wasm"), teller(PLAIN_LOG)).unwrap();
        std::fs::write(place.path("keys/trapper.wasm"), trapper()).unwrap();
    }

    fn new(nacre: &'n Nacre, place: &'n Place, node: &Node<'_>) -> Owner<'n> {
        let tenant = node.tenant("owner", &["--no-context"]).unwrap();
        Owner { nacre, place, tenant, url: node.url() }
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.place.command(self.nacre);
        command.env("NACRE_NODE", &self.url).env("NACRE_AUTH", &self.tenant.auth);
        command.env("TOKEN", SECRET).current_dir(self.place.path("keys")).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        finish(&mut self.command(args), b"").unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> Ended {
        let ended = self.run(args);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        ended
    }

    /// Runs a command that must fail, saying these words, in one line.
    #[track_caller]
    fn fails(&self, args: &[&str], words: &str) {
        let ended = self.run(args);
        assert_eq!(ended.code, 1, "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }

    #[track_caller]
    fn deploy(&self, name: &str, module: &str, more: &[&str]) -> Ended {
        self.ok(&[&["deploy", name, module][..], &SEALED, more].concat())
    }

    #[track_caller]
    fn invoke(&self, name: &str, data: &str) -> Value {
        let ended = self.ok(&["invoke", name, "--policy", "policy.toml", "--data", data, "--json"]);
        serde_json::from_slice(&ended.stdout).unwrap()
    }

    fn broker(&self) -> Live {
        let broker = [
            "keybroker",
            "--policy",
            "policy.toml",
            "--store",
            "store",
            "--broker-key",
            "broker.key",
            "--json",
        ];
        Live::start(&mut self.command(&broker)).unwrap()
    }
}

/// What makes a deploy sealed.
const SEALED: [&str; 8] = [
    "--manifest",
    "manifest.signed",
    "--policy",
    "policy.toml",
    "--owner-key",
    "owner.key",
    "--compiler-key",
    "compiler.key",
];

#[track_caller]
fn told(activation: &Value, data: &str) {
    assert_eq!(
        (&activation["sealed"], &activation["status"]),
        (&true.into(), &"success".into()),
        "{activation}"
    );
    assert_eq!(activation["result"]["in"], data, "{activation}");
    assert!(activation["result"]["env"].as_str().unwrap().contains(SECRET), "{activation}");
    assert!(activation["logs"].to_string().contains(LOG), "{activation}");
}

/// Carries connections to a node, and keeps all bytes of both directions: what is on the wire, and what the node's process gets.
/// Its own address stays when the node comes back at another one.
struct Tap {
    address: SocketAddr,
    node: Arc<Mutex<SocketAddr>>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn start(node: SocketAddr) -> Tap {
        let node = Arc::new(Mutex::new(node));
        let to = node.clone();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, bytes) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
        let kept = bytes.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let node = *to.lock().unwrap();
                let Ok(node) = TcpStream::connect(node) else { continue };
                for (from, to) in [(&client, &node), (&node, &client)] {
                    let (from, to, kept) = (from.try_clone().unwrap(), to.try_clone().unwrap(), kept.clone());
                    std::thread::spawn(move || carry(from, to, &kept));
                }
            }
        });
        Tap { address, node, bytes }
    }

    fn has(&self, text: &str) -> bool {
        contains(&self.bytes.lock().unwrap(), text.as_bytes())
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 65536];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        kept.lock().unwrap().extend_from_slice(&buffer[..bytes]);
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Files below a folder that have a text in them.
fn files_with(dir: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(files_with(&path, text));
        } else if kind.is_file() && contains(&std::fs::read(&path).unwrap(), text.as_bytes()) {
            found.push(path);
        }
    }
    found
}

/// Looks through all memory of the node's process: what was plain is there, what was sealed is in the CVM's private memory
/// and nowhere else. Nothing hides that memory on a software platform, which shows that the search would have found it.
fn memory_has_only_what_is_plain(node: &Node<'_>) {
    let all = memory::mappings(node.pid()).unwrap();
    let (private, hosts): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|one| one.large_pages && one.bytes() == TENANT_BYTES);
    assert_eq!(private.len(), 2, "a CVM of each tenant: {private:?}");
    let sealed = [INPUT, SECRET, LOG, NAME, FUNCTION];
    let found = memory::find(node.pid(), &hosts, &[&sealed[..], &[PLAIN_LOG]].concat()).unwrap();
    assert!(found[sealed.len()].is_some(), "what is plain is in the node's memory");
    for (text, place) in sealed.iter().zip(&found) {
        assert!(place.is_none(), "{text} is in the node's memory: {place:?}");
    }
    let inside = memory::find(node.pid(), &private, &[SECRET, NAME]).unwrap();
    assert!(inside.iter().all(Option::is_some), "what is sealed is in the CVM: {inside:?}");
}

#[test]
fn sealed_calls_are_seen_by_nobody_else() {
    let Some(nacre) = need("sealed calls", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    Owner::prepare(&nacre, &place);
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let tap = Tap::start(node.address());
    let owner = Owner { url: format!("http://{}", tap.address), ..Owner::new(&nacre, &place, &node) };
    owner.deploy(NAME, "teller.wasm", &["--secret", "TOKEN"]);
    owner.deploy("trapper", "trapper.wasm", &[]);
    told(&owner.invoke(NAME, INPUT), INPUT);
    let trapped = owner.run(&["invoke", "trapper", "--policy", "policy.toml", "--data", "x", "--json"]);
    let text = trapped.text();
    assert_eq!(trapped.code, 1, "{}", trapped.stderr);
    assert!(text.contains(FUNCTION) && text.contains("\"sealed\":true"), "{text}");
    // In words, too, it says that it is sealed; logs are not the result.
    let told = owner.ok(&["invoke", NAME, "--policy", "policy.toml", "--data", INPUT]);
    assert!(
        told.stderr.contains("sealed: only the CVM sees it") && told.stderr.contains(LOG),
        "{}",
        told.stderr
    );
    assert!(told.text().contains(INPUT) && !told.text().contains(LOG));
    let listed = owner.ok(&["ps"]).text();
    assert!(!listed.contains(NAME), "{listed}");

    // The same, plain, in an open CVM of another tenant: there all of it is found.
    let other = node.tenant("other", &["--no-context"]).unwrap();
    let plain = Owner { tenant: other, url: owner.url.clone(), nacre: &nacre, place: &place };
    plain.ok(&["deploy", "open", "plain.wasm"]);
    let object = format!(r#"{{"plain":"{PLAIN}"}}"#);
    let answer = plain.run(&["invoke", "open", "--data", &object, "--json"]);
    assert!(answer.text().contains("plain: the node sees it"), "{}", answer.text());
    assert!(tap.has(PLAIN) && tap.has("_start"), "the tap sees what is plain");
    assert!(
        !files_with(&place.state(), PLAIN_LOG).is_empty(),
        "a plain module, or its logs, are in the state directory"
    );

    memory_has_only_what_is_plain(&node);

    let (code, log) = node.terminate().unwrap();
    assert_eq!(code, 0, "{log}");
    for text in [INPUT, SECRET, LOG, NAME, FUNCTION] {
        assert!(!tap.has(text), "{text} was on the wire");
        assert_eq!(files_with(&place.state(), text), Vec::<PathBuf>::new(), "{text}");
        assert!(!log.contains(text), "{text} is in the log");
    }
}

#[test]
fn sealed_code_comes_back_while_its_owner_is_away() {
    let Some(nacre) = need("key broker", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    Owner::prepare(&nacre, &place);
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let tap = Tap::start(node.address());
    let owner = Owner { url: format!("http://{}", tap.address), ..Owner::new(&nacre, &place, &node) };
    owner.deploy(NAME, "teller.wasm", &["--secret", "TOKEN", "--keybroker-store", "store"]);
    let second =
        owner.deploy(NAME, "teller.wasm", &["--secret", "TOKEN", "--keybroker-store", "store", "--json"]);
    assert!(second.text().contains("\"version\":2"), "{}", second.text());
    let mut broker = owner.broker();
    // The owner goes: only callers, with the policy, and the broker, with its own key, are left.
    for key in ["keys/owner.key", "keys/compiler.key"] {
        std::fs::remove_file(place.path(key)).unwrap();
    }
    let mut provisioned = || loop {
        let line: Value = serde_json::from_str(&broker.hear().unwrap()).unwrap();
        if line["event"] == "provisioned" {
            break line;
        }
    };
    // The CVM that the deploy has launched is asked for by the broker too: it has all of it.
    assert_eq!(provisioned()["present"][0]["version"], 2);
    told(&owner.invoke(NAME, INPUT), INPUT);
    node.kill().unwrap();
    for round in 0..2 {
        let node = Node::start(&nacre, &place, &[]).unwrap();
        *tap.node.lock().unwrap() = node.address();
        told(&owner.invoke(NAME, INPUT), INPUT);
        let line = provisioned();
        assert_eq!(line["installed"][0]["version"], 2, "round {round}: {line}");
        node.kill().unwrap();
    }
    let audit = std::fs::read_to_string(place.path("keys/store/audit.jsonl")).unwrap();
    let released = audit.lines().filter(|line| line.contains("\"event\":\"released\"")).count();
    assert_eq!(released, 2, "{audit}");
    assert!(!audit.contains(SECRET));
}

#[test]
fn what_is_not_sealed_by_the_owner_is_refused() {
    let Some(nacre) = need("sealed refusals", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    Owner::prepare(&nacre, &place);
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let owner = Owner::new(&nacre, &place, &node);
    owner.deploy("teller", "teller.wasm", &["--secret", "TOKEN", "--version", "7"]);
    told(&owner.invoke("teller", INPUT), INPUT);
    // A plain deploy is kept by the node, but never loaded.
    owner.ok(&["deploy", "plain", "teller.wasm"]);
    let called = owner.run(&["invoke", "plain", "--json"]);
    assert!(called.code == 1 && called.text().contains("sealed-cvm"), "{} {}", called.text(), called.stderr);
    // Keys of others: a stranger's compiler key, a manifest that lists it but has another owner.
    owner.ok(&["manifest", "init", "others", "--dir", "others"]);
    let with = |pairs: &[(&'static str, &'static str)]| {
        let mut sealed = SEALED;
        for (from, to) in pairs {
            let at = sealed.iter().position(|word| word == from).unwrap();
            sealed[at] = to;
        }
        [&["deploy", "teller", "teller.wasm"][..], &sealed].concat()
    };
    owner.fails(&with(&[("compiler.key", "others/compiler.key")]), "does not list the compiler's key");
    owner.fails(&with(&[("owner.key", "others/owner.key")]), "neither the owner's nor a broker's");
    let sign =
        ["manifest", "sign", "others/manifest.toml", "--key", "others/owner.key", "-o", "others/signed"];
    owner.ok(&sign);
    let others = [
        ("manifest.signed", "others/signed"),
        ("owner.key", "others/owner.key"),
        ("compiler.key", "others/compiler.key"),
    ];
    owner.fails(&with(&others), "another owner");
    // Versions: an older one, and the same one with other content.
    owner.fails(&[&with(&[])[..], &["--version", "6"]].concat(), "newer version");
    owner.fails(&[&with(&[])[..], &["--version", "7"]].concat(), "other content");
    // A policy for another guest rejects this one, before anything is sent.
    let policy = std::fs::read_to_string(place.path("keys/policy.toml")).unwrap();
    let (head, tail) = policy.split_once("digest = \"").unwrap();
    let other: String = policy
        .lines()
        .map(|line| match line.split_once("digest = \"") {
            Some((before, after)) => format!("{before}digest = \"{}{}\n", "ab".repeat(8), &after[16..]),
            None => format!("{line}\n"),
        })
        .collect();
    assert!(head.len() < policy.len() && !tail.is_empty());
    std::fs::write(place.path("keys/other.toml"), other).unwrap();
    owner.fails(&["invoke", "teller", "--policy", "other.toml", "--data", INPUT], "measurement");
    // An older manifest of the same owner.
    let manifest = place.path("keys/manifest.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("version = 1", "version = 2")).unwrap();
    owner.ok(&["manifest", "sign", "manifest.toml", "--key", "owner.key", "-o", "second.signed"]);
    owner.ok(&with(&[("manifest.signed", "second.signed")]));
    owner.fails(&with(&[]), "manifest");
    // Removing needs a key too.
    owner.fails(
        &["rm", "teller", "--policy", "policy.toml", "--owner-key", "compiler.key"],
        "neither the owner's",
    );
    owner.ok(&["rm", "teller", "--policy", "policy.toml", "--owner-key", "owner.key"]);
    owner
        .fails(&["invoke", "teller", "--policy", "policy.toml", "--data", INPUT], "no action with this name");
}

#[test]
fn a_manifest_that_comes_during_a_launch_is_the_one_that_counts() {
    let Some(nacre) = need("sealed calls", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    Owner::prepare(&nacre, &place);
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let owner = Owner::new(&nacre, &place, &node);
    let toml = std::fs::read_to_string(place.path("keys/manifest.toml")).unwrap();
    let sign = |version: u32, name: &str| {
        let text = toml.replace("version = 1\n", &format!("version = {version}\n"));
        std::fs::write(place.path("keys/manifest.toml"), text.replace("\"tests\"", name)).unwrap();
        owner.ok(&["manifest", "sign", "manifest.toml", "--key", "owner.key"]);
        std::fs::read(place.path("keys/manifest.signed")).unwrap()
    };
    let put =
        |manifest: &[u8]| node.request(Some(&owner.tenant), "PUT", "/v1/sealed/manifest", manifest).unwrap();
    for round in 1..=4 {
        // Without a CVM, somebody has one launched, and the next manifest comes meanwhile.
        assert_eq!(put(&sign(2 * round, "\"tests\"")).status, 204);
        let mut fetch = owner.command(&["attest", "fetch", "-o", "evidence"]);
        let mut launches = fetch.stdout(Stdio::null()).spawn().unwrap();
        sign(2 * round + 1, "\"tests\"");
        owner.deploy("teller", "teller.wasm", &["--secret", "TOKEN"]);
        launches.wait().unwrap();
        told(&owner.invoke("teller", INPUT), INPUT);
    }
    // Another one of the same version is not taken.
    let twin = put(&sign(9, "\"twins\""));
    assert_eq!(twin.status, 409, "{}", twin.error());
    assert!(twin.error().contains("another manifest of version 9"), "{}", twin.error());
}

#[test]
fn a_sealed_service_logs_for_its_owner_only() {
    let Some(nacre) = need("sealed logs", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    Owner::prepare(&nacre, &place);
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let owner = Owner::new(&nacre, &place, &node);
    let port = free_port().unwrap().to_string();
    owner.deploy(
        "writer",
        "teller.wasm",
        &["--service", "--port", &port, "--restart", "never", "--secret", "TOKEN"],
    );
    let ask = ["logs", "writer", "--policy", "policy.toml", "--owner-key", "owner.key", "--json"];
    // It writes, and ends by itself.
    let begin = Instant::now();
    let lines = loop {
        let told: Value = serde_json::from_slice(&owner.ok(&ask).stdout).unwrap();
        let lines = told["lines"].to_string();
        if lines.contains("[ended with exit code 0]") {
            break lines;
        }
        assert!(begin.elapsed() < PATIENCE, "{told}");
    };
    assert!(lines.contains(LOG) && lines.contains(SECRET), "{lines}");
    let text = owner.ok(&ask[..6]).text();
    assert!(text.contains(LOG) && text.ends_with("[ended with exit code 0]\n"), "{text}");
    owner.fails(&["logs", "nobody", "--policy", "policy.toml", "--owner-key", "owner.key"], "no action");
    let stranger = ["logs", "writer", "--policy", "policy.toml", "--owner-key", "compiler.key"];
    owner.fails(&stranger, "neither the owner's nor a broker's");
    let (code, log) = node.terminate().unwrap();
    assert_eq!(code, 0, "{log}");
    for text in [LOG, SECRET] {
        assert!(!log.contains(text), "{text} is in the log");
        assert_eq!(files_with(&place.state(), text), Vec::<PathBuf>::new(), "{text}");
    }
}

#[test]
fn a_client_of_a_service_is_encrypted_up_to_the_cvm() {
    let Some(nacre) = need("TLS through the node", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    Owner::prepare(&nacre, &place);
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let owner = Owner::new(&nacre, &place, &node);
    let port = free_port().unwrap();
    let kv = app("kv");
    let text = port.to_string();
    owner.deploy("store", kv.to_str().unwrap(), &["--service", "--tls", "--port", &text]);
    let tap = Tap::start(SocketAddr::from(([127, 0, 0, 1], port)));
    let service = tap.address.to_string();
    let mut tunnel =
        Live::start(&mut owner.command(&["tunnel", &service, "--policy", "policy.toml", "--json"])).unwrap();
    let line: Value = serde_json::from_str(&tunnel.hear().unwrap()).unwrap();
    let mut client = TcpStream::connect(line["listen"].as_str().unwrap()).unwrap();
    let mut says = |command: &str, answer: &str| {
        client.write_all(command.as_bytes()).unwrap();
        let mut bytes = vec![0; answer.len()];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), answer);
    };
    says(&format!("SET {NAME} {INPUT}\r\n"), "+OK\r\n");
    says(&format!("GET {NAME}\r\n"), &format!("${}\r\n{INPUT}\r\n", INPUT.len()));
    // The node carries it, and sees TLS: the name in the hello is in the clear, what is said is not.
    assert!(tap.has(".nacre") && !tap.has(INPUT) && !tap.has(NAME));
    let all = memory::mappings(node.pid()).unwrap();
    let hosts: Vec<_> =
        all.into_iter().filter(|one| !(one.large_pages && one.bytes() == TENANT_BYTES)).collect();
    assert!(memory::find(node.pid(), &hosts, &[INPUT, NAME]).unwrap().iter().all(Option::is_none));
    // Somebody without TLS gets nothing.
    let mut plain = TcpStream::connect(tap.address).unwrap();
    plain.write_all(b"PING\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!contains(&answer, b"PONG"), "{answer:?}");
    drop(tunnel);
}

#[test]
fn evidence_of_a_node_is_judged_offline() {
    let Some(nacre) = need("evidence", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    Owner::prepare(&nacre, &place);
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let owner = Owner::new(&nacre, &place, &node);
    owner.deploy("teller", "teller.wasm", &[]);
    let fetched = owner.ok(&["attest", "fetch", "--policy", "policy.toml", "--json"]);
    let fetched: Value = serde_json::from_slice(&fetched.stdout).unwrap();
    let nonce = fetched["nonce"].as_str().unwrap();
    owner.ok(&["attest", "verify", "evidence.bin", "--policy", "policy.toml", "--nonce", nonce]);
    let shown = owner.ok(&["attest", "show", "evidence.bin"]).text();
    assert!(shown.contains("NOT CONFIDENTIAL") && shown.contains("nacre session 1"), "{shown}");
    let wrong = owner.run(&[
        "attest",
        "verify",
        "evidence.bin",
        "--policy",
        "policy.toml",
        "--nonce",
        &"00".repeat(32),
    ]);
    assert!(wrong.code == 1 && wrong.text().contains("failed: nonce"), "{}", wrong.text());
    // Without a policy a software platform is never accepted.
    let bare = owner.run(&["attest", "verify", "evidence.bin"]);
    assert!(bare.code == 1 && bare.text().contains("failed: software-platform"), "{}", bare.text());
}
