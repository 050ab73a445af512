//! The key-value store of `apps/kv`: as a native program under sanitizers here, as a service of a node in [`service`].
//! The cases are the same ([`cases`]).
#![forbid(unsafe_code)]

mod cases;
mod random;
mod service;

use anyhow::Result;
use nacre_tests::cache::Cache;
use nacre_tests::kv::{Flavour, Server, native};
use nacre_tests::skip::need;

fn start(options: &[&str]) -> Result<Server> {
    Server::kv(&native(&Cache::open()?, Flavour::Checked)?, options)
}

/// The store, or `None` after saying why the test is skipped.
fn store(name: &str, options: &[&str]) -> Option<Server> {
    need(name, start(options))
}

/// Both servers.
fn both(name: &str) -> Option<(Server, Server)> {
    need(name, start(&[]).and_then(|kv| Ok((kv, Server::redis()?))))
}

#[test]
fn random_requests_have_the_replies_of_redis() {
    let Some((kv, redis)) = both("kv: differential") else { return };
    cases::random_requests(&kv, &redis, if nacre_tests::long() { 400 } else { 40 });
}

#[test]
fn protocol_errors_and_inline_requests_are_those_of_redis() {
    let Some((kv, redis)) = both("kv: protocol") else { return };
    cases::protocol(&kv, &redis);
}

#[test]
fn patterns_match_as_in_redis() {
    let Some((kv, redis)) = both("kv: patterns") else { return };
    cases::patterns(&kv, &redis);
}

#[test]
fn scans_see_every_key_while_the_table_grows_and_shrinks() {
    let Some(kv) = store("kv: scan", &[]) else { return };
    cases::scans(&kv);
}

#[test]
fn expired_keys_are_gone_at_once_and_their_memory_soon() {
    let Some(kv) = store("kv: expiry", &[]) else { return };
    cases::expiry(&kv);
}

#[test]
fn a_full_store_says_so_and_goes_on() {
    let Some(mut kv) = store("kv: out of memory", &cases::ARENA) else { return };
    cases::full_store(&kv);
    assert!(kv.alive());
}

#[test]
fn idle_connections_cost_little_and_too_many_are_refused() {
    let Some(kv) = store("kv: connections", &cases::MAX_CLIENTS) else { return };
    cases::connections(&kv, 0);
}

#[test]
fn clients_that_do_not_read_or_never_finish_harm_nobody() {
    let Some(kv) = store("kv: slow clients", &[]) else { return };
    cases::slow_clients(&kv);
}

#[test]
fn large_values_and_many_arguments_survive() {
    let Some(kv) = store("kv: large values", &[]) else { return };
    cases::large_values(&kv);
}

#[test]
fn the_clients_of_redis_work() {
    let Some(kv) = store("kv: redis-cli and redis-benchmark", &[]) else { return };
    cases::clients_of_redis(&kv);
}
