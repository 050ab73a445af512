//! The store as what it is made for: `kv.wasm` as a service of a node, in the CVM of a tenant.

use crate::cases;
use nacre_tests::apps::app;
use nacre_tests::job::Nacre;
use nacre_tests::kv::Server;
use nacre_tests::node::{Node, Place, Tenant, free_port};
use nacre_tests::skip::need;
use serde_json::Value;

/// Deploys the store and says where it is.
fn deploy(node: &Node<'_>, tenant: &Tenant, name: &str, options: &[&str]) -> Server {
    let (module, port) = (app("kv"), free_port().unwrap());
    let text = port.to_string();
    let mut args = vec!["deploy", name, module.to_str().unwrap(), "--service", "--port", &text];
    options.iter().for_each(|option| args.extend(["--arg", *option]));
    let ended = node.run(tenant, &args).unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    Server::at(port)
}

/// Runs cases against a store that is a service of a node, which must not have had to start it again.
fn with_service(name: &str, options: &[&str], cases: impl FnOnce(&Server)) {
    let Some(nacre) = need(name, Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let tenant = node.tenant("guest", &["--memory", "2GiB"]).unwrap();
    let kv = deploy(&node, &tenant, "kv", options);
    // Also if what the cases need is not installed.
    kv.connect().unwrap().ask("PING").unwrap();
    cases(&kv);
    let described = node.run(&tenant, &["describe", "kv", "--json"]).unwrap();
    let described: Value = serde_json::from_slice(&described.stdout).unwrap();
    let status = &described["status"];
    assert_eq!((&status["phase"], &status["restarts"]), (&"running".into(), &0.into()), "{described}");
    let (code, log) = node.terminate().unwrap();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn a_service_has_the_replies_of_redis() {
    let Some(redis) = need("kv on Nacre: differential", Server::redis()) else { return };
    with_service("kv on Nacre: differential", &[], |kv| {
        cases::random_requests(kv, &redis, if nacre_tests::long() { 400 } else { 20 });
        cases::protocol(kv, &redis);
        cases::patterns(kv, &redis);
    });
}

#[test]
fn a_service_scans_expires_and_holds_large_values() {
    with_service("kv on Nacre: scans, expiry, large values", &[], |kv| {
        cases::expiry(kv);
        kv.connect().unwrap().ask("FLUSHALL").unwrap();
        cases::scans(kv);
        cases::large_values(kv);
    });
}

#[test]
fn a_full_service_says_so_and_goes_on() {
    with_service("kv on Nacre: out of memory", &cases::ARENA, cases::full_store);
}

#[test]
fn a_service_bears_many_and_slow_clients() {
    with_service("kv on Nacre: connections", &cases::MAX_CLIENTS, |kv| {
        // Two subscriptions and their events stay in the arrays of `poll_oneoff`.
        cases::connections(kv, 2 * (48 + 32));
        cases::slow_clients(kv);
    });
}

#[test]
fn the_clients_of_redis_work_with_a_service() {
    with_service("kv on Nacre: redis-cli and redis-benchmark", &[], cases::clients_of_redis);
}
