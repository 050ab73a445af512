//! Many tenants, actions and connections at once. With `--long`: 100 tenants, 10,000 actions, 1,000 connections; else a
//! twentieth of that. Everything works, and the node's own memory stays bounded.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::Nacre;
use nacre_tests::node::{Node, Place, Tenant, base64, read_answer, request};
use nacre_tests::skip::need;
use std::io::Write;

/// What the node itself may take in memory beside its CVMs, in KiB: actions are kept in memory without their code.
const NODE_KIB: u64 = 600 << 10;
/// What one idle CVM may take, in KiB.
const CVM_KIB: u64 = 40 << 10;

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn many_tenants_actions_and_connections() {
    let Some(nacre) = need("scale", Nacre::find()) else { return };
    let (tenants, actions, connections) =
        if nacre_tests::long() { (100, 10_000, 1_000) } else { (5, 250, 50) };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let names: Vec<String> = (0..tenants).map(|number| format!("t{number}")).collect();
    let options = ["--memory", "64MiB", "--workers-max", "1", "--no-context"];
    let tenants: Vec<Tenant> = names.iter().map(|name| node.tenant(name, &options).unwrap()).collect();
    let body = {
        let module = std::fs::read(app("action")).unwrap();
        let parameters = "[{\"key\":\"who\",\"value\":\"default\"}]";
        let code = base64(&module);
        format!("{{\"exec\":{{\"kind\":\"wasi:default\",\"code\":\"{code}\"}},\"parameters\":{parameters}}}")
    };
    let each = actions / tenants.len();
    for tenant in &tenants {
        let mut stream = node.connect().unwrap();
        for number in 0..each {
            let path = format!("/api/v1/namespaces/_/actions/a{number}");
            stream.write_all(&request(Some(tenant), "PUT", &path, body.as_bytes(), false)).unwrap();
            assert_eq!(read_answer(&mut stream).unwrap().status, 200, "{} {number}", tenant.name);
        }
    }
    // All connections are open at once, and each has a call under way before any answer is read.
    let mut open: Vec<_> = (0..connections).map(|_| node.connect().unwrap()).collect();
    for round in 0..3 {
        for (number, stream) in open.iter_mut().enumerate() {
            let tenant = &tenants[number % tenants.len()];
            let action = (number * 7 + round) % each;
            let path = format!("/api/v1/namespaces/_/actions/a{action}?blocking=true&result=true");
            let body = format!("{{\"number\":{number}}}");
            stream.write_all(&request(Some(tenant), "POST", &path, body.as_bytes(), false)).unwrap();
        }
        for (number, stream) in open.iter_mut().enumerate() {
            let answer = read_answer(stream).unwrap();
            let wanted = serde_json::json!({ "number": number, "who": "default" });
            assert_eq!((answer.status, answer.json()), (200, wanted), "round {round}");
        }
    }
    let resident = resident_kib(node.pid().as_raw_nonzero().get());
    let most = NODE_KIB + CVM_KIB * tenants.len() as u64;
    assert!(resident < most, "the node has {resident} KiB, {most} are allowed");
    let (code, log) = node.terminate().unwrap();
    assert_eq!(code, 0, "{log}");
}
