//! Services of a node: deployed, connected to, started again, replaced, removed; their ports; what survives `kill -9`.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Ended, Nacre};
use nacre_tests::node::{Node, Place, Tenant};
use nacre_tests::skip::need;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How long an answer may take before it counts as never coming.
const PATIENCE: Duration = Duration::from_secs(60);

fn free_port() -> u16 {
    nacre_tests::node::free_port().unwrap()
}

fn deploy(node: &Node<'_>, tenant: &Tenant, name: &str, port: u16, options: &[&str]) -> Ended {
    let (module, port) = (app("echo"), port.to_string());
    let args = ["deploy", name, module.to_str().unwrap(), "--service", "--port", &port];
    node.run(tenant, &[&args[..], options].concat()).unwrap()
}

fn deployed(node: &Node<'_>, tenant: &Tenant, name: &str, port: u16, options: &[&str]) {
    let ended = deploy(node, tenant, name, port, options);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends bytes, ends this half, and reads to the end of the other.
fn exchange(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(port);
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    })
}

fn describe(node: &Node<'_>, tenant: &Tenant, name: &str) -> Value {
    let ended = node.run(tenant, &["describe", name, "--json"]).unwrap();
    serde_json::from_slice(&ended.stdout).unwrap()
}

/// Waits until a service's status is as wanted.
fn until(node: &Node<'_>, tenant: &Tenant, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let begin = std::time::Instant::now();
    loop {
        let described = describe(node, tenant, name);
        if wanted(&described["status"]) {
            return described;
        }
        assert!(begin.elapsed() < PATIENCE, "{described}");
    }
}

#[test]
fn clients_reach_a_service_and_halves_end_one_by_one() {
    let Some(nacre) = need("a service", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let guest = node.tenant("guest", &[]).unwrap();
    let port = free_port();
    deployed(&node, &guest, "echo", port, &[]);
    assert_eq!(exchange(port, b"hello"), b"hello");
    let large: Vec<u8> = (0..8 << 20).map(|n: u32| (n % 251) as u8).collect();
    assert_eq!(exchange(port, &large), large, "more than any window holds");
    // Functions of the same tenant run in the same CVM meanwhile.
    node.deploy(&guest, "f", &app("action")).unwrap();
    let many = if nacre_tests::long() { 2_000 } else { 200 };
    let mut clients: Vec<TcpStream> = (0..many).map(|_| connect(port)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("client {number};").as_bytes()).unwrap();
    }
    assert_eq!(node.invoke(&guest, "f", "{}").unwrap().status, 200);
    for (number, client) in clients.iter_mut().enumerate() {
        let wanted = format!("client {number};");
        let mut answer = vec![0; wanted.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), wanted);
    }
    let described = describe(&node, &guest, "echo");
    assert_eq!((&described["kind"], &described["status"]["phase"]), (&"service".into(), &"running".into()));
    assert_eq!(described["status"]["connections"], many);
    let shown = node.run(&guest, &["ps"]).unwrap().text();
    assert!(shown.contains("service echo") && shown.contains("running"), "{shown}");
    drop(clients);
    assert_eq!(node.run(&guest, &["rm", "echo"]).unwrap().code, 0);
    let refused = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(node.invoke(&guest, "f", "{}").unwrap().status, 200);
}

#[test]
fn a_client_that_does_not_read_stops_the_service_and_nobody_else() {
    let Some(nacre) = need("backpressure", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let guest = node.tenant("guest", &[]).unwrap();
    let port = free_port();
    deployed(&node, &guest, "echo", port, &[]);
    let mut deaf = connect(port);
    deaf.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    // It takes what the windows and the kernel's buffers hold, and then no more.
    let mut sent = 0u64;
    let piece = vec![7; 1 << 20];
    while let Ok(count) = deaf.write(&piece) {
        sent += count as u64;
        assert!(sent < 256 << 20, "nothing holds so much");
    }
    assert_eq!(exchange(port, b"still here"), b"still here");
    let mut taken = 0;
    let mut buffer = vec![0; 1 << 16];
    deaf.shutdown(Shutdown::Write).unwrap();
    while let Ok(count @ 1..) = deaf.read(&mut buffer) {
        assert!(buffer[..count].iter().all(|byte| *byte == 7));
        taken += count as u64;
    }
    assert_eq!(taken, sent);
}

#[test]
fn a_service_that_ends_is_started_again_as_its_policy_says() {
    let Some(nacre) = need("restart policies", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let guest = node.tenant("guest", &[]).unwrap();
    let exits = ["--arg", "exit", "--arg", "1"];
    // Each client ends it with code 7.
    let end = |port: u16| {
        let mut client = connect(port);
        client.write_all(b"x").unwrap();
        let mut answer = Vec::new();
        // The end of the program may reset the connection behind its answer.
        let _ = client.read_to_end(&mut answer);
    };
    let always = free_port();
    deployed(&node, &guest, "always", always, &exits);
    for restarts in 1..4u64 {
        end(always);
        let described =
            until(&node, &guest, "always", |status| status["restarts"].as_u64() >= Some(restarts));
        assert!(described["status"]["last_end"].as_str().unwrap().contains("code 7"), "{described}");
    }
    let logs = node.run(&guest, &["logs", "always"]).unwrap().text();
    assert!(logs.contains("node: it ended with code 7"), "{logs}");

    let never = free_port();
    deployed(&node, &guest, "never", never, &[&exits[..], &["--restart", "never"]].concat());
    end(never);
    let described = until(&node, &guest, "never", |status| status["phase"] == "failed");
    assert_eq!(described["status"]["restarts"], 0);
    assert!(TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], never))).is_err());
    // A new version takes its place, on the same port.
    deployed(&node, &guest, "never", never, &[]);
    assert_eq!(exchange(never, b"hello"), b"hello");
    assert_eq!(describe(&node, &guest, "never")["version"], "0.0.2");
}

#[test]
fn ports_and_names_belong_to_one() {
    let Some(nacre) = need("ports", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let (guest, other) = (node.tenant("guest", &[]).unwrap(), node.tenant("other", &[]).unwrap());
    let refused = |ended: Ended, word: &str| {
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    };
    let somebody = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = somebody.local_addr().unwrap().port();
    refused(deploy(&node, &guest, "s", taken, &[]), "can't be listened on");
    assert_eq!(node.run(&guest, &["describe", "s"]).unwrap().code, 1, "nothing was stored");
    let port = free_port();
    deployed(&node, &guest, "s", port, &[]);
    refused(deploy(&node, &other, "s", port, &[]), "can't be listened on");
    node.deploy(&guest, "f", &app("action")).unwrap();
    refused(deploy(&node, &guest, "f", free_port(), &[]), "an action");
    let module = app("action");
    refused(node.run(&guest, &["deploy", "s", module.to_str().unwrap()]).unwrap(), "a service");
    assert_eq!(deploy(&node, &guest, "x", 0, &[]).code, 2);
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn services_come_back_after_a_kill() {
    let Some(nacre) = need("services after kill -9", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let guest = node.tenant("guest", &[]).unwrap();
    let port = free_port();
    deployed(&node, &guest, "echo", port, &[]);
    assert_eq!(exchange(port, b"before"), b"before");
    node.kill().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    until(&node, &guest, "echo", |status| status["phase"] == "running");
    assert_eq!(exchange(port, b"after"), b"after");
    assert_eq!(node.terminate().unwrap().0, 0);
}
