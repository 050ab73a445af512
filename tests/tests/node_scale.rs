//! A node with many tenants, many actions and many connections: all of them work, nobody gets another's answer, and memory
//! does not grow with use. `NACRE_LONG=1` runs the full numbers: 100 tenants, 10,000 actions, 1,000 connections.
#![forbid(unsafe_code)]

use nacre_tests::job::Nacre;
use nacre_tests::node::{Node, Place, Tenant, base64, read_answer, request};
use nacre_tests::skip::need;
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;

const ACTIONS: &str = "/api/v1/namespaces/_/actions";
/// Threads of this test; each has its part of the connections.
const THREADS: usize = 8;
const MIB: u64 = 1 << 20;
/// Actions of one tenant that have the same module: compiling 10,000 of them is not what is tested.
const PER_MODULE: usize = 10;
/// What a deployed action may take of the node's memory.
const PER_ACTION: u64 = 16 << 10;
/// What a connection may take.
const PER_CONNECTION: u64 = 256 << 10;
/// What caches of fixed size may take: the store's, and allocators'.
const CACHES: u64 = 128 * MIB;

struct Size {
    tenants: usize,
    /// Of each tenant.
    actions: usize,
    connections: usize,
    /// Requests on each connection, all connections at once.
    passes: usize,
}

fn size() -> Size {
    if nacre_tests::long() {
        Size { tenants: 100, actions: 100, connections: 1000, passes: 60 }
    } else {
        Size { tenants: 6, actions: 20, connections: 120, passes: 12 }
    }
}

/// Resident memory of the node with all its CVMs, in bytes.
fn resident(node: &Node<'_>) -> u64 {
    let path = format!("/proc/{}/status", node.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// What an action tells of itself, by a parameter of its own.
fn mark(tenant: &Tenant, action: usize) -> String {
    format!("{}/{action}", tenant.name)
}

/// The function with a custom section of its own: another module.
fn module(function: &[u8], mark: &str) -> Vec<u8> {
    let length = u8::try_from(mark.len() + 2).unwrap();
    [function, &[0, length, 1, b'n'], mark.as_bytes()].concat()
}

fn deploy(stream: &mut TcpStream, tenant: &Tenant, action: usize, function: &[u8]) {
    let mark = mark(tenant, action);
    let body = json!({
        "exec": { "kind": "wasi:default", "code": base64(&module(function, &format!("{}/{}", tenant.name, action / PER_MODULE))) },
        "parameters": [{ "key": "me", "value": mark }],
    });
    let path = format!("{ACTIONS}/a{action}");
    stream.write_all(&request(Some(tenant), "PUT", &path, body.to_string().as_bytes(), false)).unwrap();
    let answer = read_answer(stream).unwrap();
    assert_eq!(answer.status, 200, "{mark}: {}", answer.error());
}

/// A connection, whose calls it uses for.
struct Line<'t> {
    stream: TcpStream,
    tenant: &'t Tenant,
    number: usize,
}

impl Line<'_> {
    fn action(&self, pass: usize, actions: usize) -> usize {
        (self.number + pass * 7) % actions
    }

    fn ask(&mut self, pass: usize, actions: usize) {
        let path = format!("{ACTIONS}/a{}?blocking=true&result=true", self.action(pass, actions));
        let body = json!({ "line": self.number, "pass": pass }).to_string();
        self.stream.write_all(&request(Some(self.tenant), "POST", &path, body.as_bytes(), false)).unwrap();
    }

    fn hear(&mut self, pass: usize, actions: usize) {
        let answer = read_answer(&mut self.stream).unwrap();
        let me = mark(self.tenant, self.action(pass, actions));
        assert_eq!(answer.status, 200, "{me}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.json(), json!({ "me": me, "line": self.number, "pass": pass }));
    }
}

/// One request on each connection, all of them at once.
fn pass(lines: &mut [Line<'_>], number: usize, actions: usize) {
    let part = lines.len().div_ceil(THREADS);
    std::thread::scope(|scope| {
        for lines in lines.chunks_mut(part) {
            scope.spawn(move || {
                lines.iter_mut().for_each(|line| line.ask(number, actions));
                lines.iter_mut().for_each(|line| line.hear(number, actions));
            });
        }
    });
}

fn action_count(node: &Node<'_>, tenant: &Tenant) -> Value {
    node.request(Some(tenant), "GET", &format!("{ACTIONS}?count=true"), b"").unwrap().json()["actions"]
        .clone()
}

fn check_bound(what: &str, before: u64, now: u64, bound: u64) {
    let grown = now.saturating_sub(before);
    println!("{what}: {} MiB, {} MiB more, {} MiB allowed", now / MIB, grown / MIB, bound / MIB);
    assert!(grown <= bound, "{what}: {grown} bytes more, {bound} allowed");
}

#[test]
fn many_tenants_actions_and_connections() {
    let Some(nacre) = need("scale", Nacre::find()) else { return };
    let size = size();
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let start = resident(&node);
    let tenants: Vec<Tenant> = (0..size.tenants)
        .map(|i| node.tenant(&format!("t{i}"), &["--memory", "64MiB", "--no-context"]).unwrap())
        .collect();
    let function = wat::parse_str(include_str!("../../bench/programs/echo.wat")).unwrap();
    std::thread::scope(|scope| {
        for tenants in tenants.chunks(tenants.len().div_ceil(THREADS)) {
            let (node, function) = (&node, &function);
            scope.spawn(move || {
                let mut stream = node.connect().unwrap();
                for tenant in tenants {
                    (0..size.actions).for_each(|action| deploy(&mut stream, tenant, action, function));
                }
            });
        }
    });
    let all = (size.tenants * size.actions) as u64;
    let deployed = resident(&node);
    check_bound("deployed", start, deployed, CACHES + all * PER_ACTION);

    let line = |number: usize| {
        let tenant = &tenants[number % tenants.len()];
        Line { stream: node.connect().unwrap(), tenant, number }
    };
    let mut lines: Vec<Line<'_>> = (0..size.connections).map(line).collect();
    // Half the passes bring CVMs and code in and fill caches; after them memory stays.
    let half = size.passes / 2;
    (0..half).for_each(|number| pass(&mut lines, number, size.actions));
    let warm = resident(&node);
    println!("warm: {} MiB, {} MiB per tenant", warm / MIB, (warm - deployed) / MIB / size.tenants as u64);
    (half..size.passes).for_each(|number| pass(&mut lines, number, size.actions));
    let bound = CACHES + size.connections as u64 * PER_CONNECTION;
    check_bound("after as many calls again", warm, resident(&node), bound);
    drop(lines);

    // A power cut: everything is there again.
    node.kill().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    for (number, tenant) in tenants.iter().enumerate() {
        assert_eq!(action_count(&node, tenant), json!(size.actions), "{}", tenant.name);
        let mut line = Line { stream: node.connect().unwrap(), tenant, number };
        line.ask(0, size.actions);
        line.hear(0, size.actions);
    }
    let (code, log) = node.terminate().unwrap();
    assert_eq!(code, 0, "{log}");
}
