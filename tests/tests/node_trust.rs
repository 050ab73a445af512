//! Nodes that come to trust each other: the commands, what they say when something is wrong, and what stays over a restart.
#![forbid(unsafe_code)]

use nacre_tests::job::{Ended, Nacre};
use nacre_tests::node::{Node, Place};
use nacre_tests::skip::need;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

const PORT: [&str; 2] = ["--peer-listen", "127.0.0.1:0"];

fn ok(node: &Node<'_>, args: &[&str]) -> String {
    let ended = node.admin(args).unwrap();
    assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
    ended.text()
}

fn json(node: &Node<'_>, args: &[&str]) -> Value {
    serde_json::from_str(&ok(node, &[args, &["--json"]].concat())).unwrap()
}

fn fails(node: &Node<'_>, code: i32, args: &[&str], word: &str) -> Ended {
    let ended = node.admin(args).unwrap();
    assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
    assert!(ended.stderr.contains(word), "{args:?}: '{word}' is not in: {}", ended.stderr);
    ended
}

/// The words after `nacre` in the last line that has such a command.
fn command(text: &str) -> Vec<String> {
    let (_, words) = text.trim_end().rsplit_once("nacre node trust").unwrap();
    ["node", "trust"].into_iter().chain(words.split_whitespace()).map(str::to_owned).collect()
}

#[test]
fn nodes_come_to_trust_each_other() {
    let Some(nacre) = need("nodes that trust each other", Nacre::find()) else { return };
    let (place, other_place) = (Place::new().unwrap(), Place::new().unwrap());
    let node = Node::start(&nacre, &place, &PORT).unwrap();
    let other = Node::start(&nacre, &other_place, &PORT).unwrap();
    let (identity, others) = (json(&node, &["node", "identity"]), json(&other, &["node", "identity"]));
    let address = other.peer_address().unwrap().to_string();
    let fingerprint = others["fingerprint"].as_str().unwrap();
    assert_eq!((fingerprint.len(), others["address"].as_str()), (64, Some(&*address)));
    assert_ne!(identity["fingerprint"], others["fingerprint"]);
    for file in ["key.pem", "certificate.pem"] {
        let mode = std::fs::metadata(place.state().join("peer").join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // Without the fingerprint it is shown and not believed; the command that is told is the one that works.
    let told = fails(&node, 1, &["node", "trust", &address], fingerprint);
    assert_eq!(json(&node, &["node", "trust", "--list"]), serde_json::json!([]));
    assert_eq!(command(&told.stderr), command(&ok(&other, &["node", "identity"])));
    let words = command(&told.stderr);
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--name", "east"]).collect();
    assert!(ok(&node, &words).contains("is trusted"));
    let list = json(&node, &["node", "trust", "--list"]);
    assert_eq!((&list[0]["fingerprint"], &list[0]["url"]), (&others["fingerprint"], &others["address"]));
    assert!(ok(&node, &["node", "trust", "--list"]).contains("east"));
    // What makes no sense.
    let own = node.peer_address().unwrap().to_string();
    let mine = identity["fingerprint"].as_str().unwrap();
    fails(&node, 1, &["node", "trust", &own, "--fingerprint", mine], "own fingerprint");
    fails(&node, 1, &["node", "trust", &own], "itself");
    fails(&node, 1, &["node", "trust", &address, "--fingerprint", &"0".repeat(64)], "--remove");
    fails(&node, 1, &["node", "trust", "127.0.0.1:1"], "--peer-listen");
    let http = node.address().to_string();
    fails(&node, 1, &["node", "trust", &http], "does not speak as a node's peer port does");
    fails(&node, 2, &["node", "trust", "nobody"], "HOST:PORT");
    fails(&node, 2, &["node", "trust", &address, "--fingerprint", "12"], "64 hexadecimal digits");
    fails(&node, 2, &["node", "trust"], "required");
    fails(&node, 2, &["node", "trust", "--list", "--remove", mine], "cannot be used with");
    fails(&node, 1, &["node", "trust", "--remove", mine], "--list");
    // It stays over a restart, as do the identities.
    node.kill().unwrap();
    let node = Node::start(&nacre, &place, &PORT).unwrap();
    assert_eq!(json(&node, &["node", "identity"])["fingerprint"], identity["fingerprint"]);
    assert_eq!(json(&node, &["node", "trust", "--list"]), list);
    assert_eq!(json(&node, &["node", "trust", "--remove", fingerprint])["removed"], others["fingerprint"]);
    assert_eq!(json(&node, &["node", "trust", "--list"]), serde_json::json!([]));
    // Not for everybody: the HTTP interface has none of it.
    let answer = node.request(None, "GET", "/v1/peers", b"").unwrap();
    assert_eq!(answer.status, 404);
}

#[test]
fn a_node_without_a_peer_port_says_so() {
    let Some(nacre) = need("a node without a peer port", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    for args in [&["node", "identity"][..], &["node", "trust", "--list"], &["node", "trust", "127.0.0.1:1"]] {
        fails(&node, 1, args, "--peer-listen");
    }
    assert!(!place.state().join("peer").exists());
}
