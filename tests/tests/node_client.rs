//! The node and those who use it: OpenWhisk's official client, the `nacre` commands, Prometheus.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::cache::Cache;
use nacre_tests::job::{Nacre, finish};
use nacre_tests::node::{Node, Place};
use nacre_tests::registry::{npm_install, unpack_debs};
use nacre_tests::repository;
use nacre_tests::skip::need;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn openwhisks_own_client_works_unchanged() {
    let Some(nacre) = need("OpenWhisk's client", Nacre::find()) else { return };
    let work = tempfile::tempdir().unwrap();
    let sources = repository().join("tests/node-client");
    for file in ["package.json", "client.js"] {
        std::fs::copy(sources.join(file), work.path().join(file)).unwrap();
    }
    if need("OpenWhisk's client", npm_install(work.path())).is_none() {
        return;
    }
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let (guest, other) = (node.tenant("guest", &[]).unwrap(), node.tenant("other", &[]).unwrap());
    let mut client = Command::new("node");
    client.arg("client.js").current_dir(work.path());
    client.env("NODE_URL", node.url()).env("NODE_AUTH", &guest.auth).env("NODE_AUTH_OTHER", &other.auth);
    client.env("NODE_NAMESPACE", &guest.name).env("NODE_ACTION", app("action"));
    let ended = finish(&mut client, b"").unwrap();
    assert_eq!((ended.code, ended.text().as_str()), (0, "ok\n"), "{}", ended.stderr);
    let (code, log) = node.terminate().unwrap();
    assert_eq!(code, 0, "{log}");
    for secret in [&guest.auth[37..], &other.auth[37..], "bonjour", "to stdout", "about to fail"] {
        assert!(!log.contains(secret), "the log tells a tenant's data: {log}");
    }
}

#[test]
fn the_commands_drive_a_node() {
    let Some(nacre) = need("node commands", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    // Through the context file that `tenant add` writes.
    let run = |args: &[&str]| node.admin(args).unwrap();
    let ok = |args: &[&str]| {
        let ended = run(args);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        ended.text()
    };
    let fails = |code: i32, args: &[&str], word: &str| {
        let ended = run(args);
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(word), "{args:?}: {}", ended.stderr);
    };
    fails(1, &["ps"], "nacre tenant add");
    let auth = ok(&["tenant", "add", "guest", "--concurrency", "7", "--memory", "128MiB"]);
    assert_eq!(auth.trim().split_once(':').unwrap().1.len(), 64);
    fails(1, &["tenant", "add", "guest"], "already exists");
    fails(1, &["tenant", "add", "Odd Name"], "tenant's name");
    fails(1, &["tenant", "add", "big", "--workers-max", "64"], "1 to 63");
    assert!(ok(&["tenant", "list"]).contains("128MiB"));
    let module = app("action");
    let module = module.to_str().unwrap();
    assert!(ok(&["ps"]).contains("no CVM"));
    assert!(ok(&["deploy", "a b", module, "--timeout", "5s"]).contains("0.0.1"));
    assert!(ok(&["deploy", "a b", module]).contains("0.0.2"));
    let described: Value = serde_json::from_str(&ok(&["describe", "a b", "--json"])).unwrap();
    assert_eq!((&described["limits"]["timeout"], &described["kind"]), (&5000.into(), &"action".into()));
    assert!(ok(&["describe"]).contains("a b"));
    let result: Value =
        serde_json::from_str(&ok(&["invoke", "a b", "--param", "x=1", "--param", "y=z"])).unwrap();
    assert_eq!(result, serde_json::json!({ "x": 1, "y": "z" }));
    fails(1, &["invoke", "a b", "--params", "{\"do\":\"exit\"}"], "application error");
    fails(2, &["invoke", "a b", "--params", "[]"], "JSON object");
    let id = ok(&["invoke", "a b", "--params", "{\"do\":\"logs\"}", "--no-wait"]);
    let over = loop {
        let shown: Value = serde_json::from_str(&ok(&["logs", id.trim(), "--json"])).unwrap();
        if shown[0]["status"] != "running" {
            break shown;
        }
    };
    assert!(over[0]["logs"][0].as_str().unwrap().ends_with("stdout: to stdout"), "{over}");
    assert!(ok(&["logs", "a b"]).contains("to stderr"));
    assert!(ok(&["ps"]).contains("of 4 workers"));
    let top: Value = serde_json::from_str(&ok(&["top", "--json", "guest"])).unwrap();
    assert_eq!(top[0]["name"], "guest");
    fails(1, &["deploy", "bad", "/nowhere/at-all.wasm"], "/nowhere/at-all.wasm");
    fails(1, &["deploy", "bad", app("features/missing-import").to_str().unwrap()], "launch_rocket");
    fails(1, &["describe", "nobody"], "does not exist");
    ok(&["rm", "a b"]);
    fails(1, &["rm", "a b"], "does not exist");
    ok(&["tenant", "rm", "guest"]);
    fails(1, &["tenant", "rm", "guest"], "does not exist");
    fails(1, &["ps", "--auth", auth.trim(), "--node", &node.url()], "authentication");
}

#[test]
fn what_is_not_there_yet_says_so() {
    let Some(nacre) = need("node options", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    for (options, word) in [
        (["--backend", "process"], "not there yet"),
        (["--etcd", "localhost:2379"], "not supported yet"),
        (["--listen", "192.0.2.1:1"], "192.0.2.1:1"),
    ] {
        let mut command = place.command(&nacre);
        let ended = finish(command.args(["node", "start"]).args(options), b"").unwrap();
        assert_eq!(ended.code, 1, "{options:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{options:?}: {}", ended.stderr);
    }
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let second =
        finish(place.command(&nacre).args(["node", "start", "--listen", "127.0.0.1:0"]), b"").unwrap();
    assert_eq!(second.code, 1);
    let pid = node.pid().as_raw_nonzero().to_string();
    assert!(second.stderr.contains(&pid) && second.stderr.contains("--state-dir"), "{}", second.stderr);
    let taken = node.address().to_string();
    let elsewhere = Place::new().unwrap();
    let third = finish(elsewhere.command(&nacre).args(["node", "start", "--listen", &taken]), b"").unwrap();
    assert!(third.code == 1 && third.stderr.contains(&taken), "{}", third.stderr);
    drop(node);
}

#[test]
fn metrics_are_as_prometheus_wants_them() {
    let Some(nacre) = need("metrics", Nacre::find()) else { return };
    let fetched = Cache::open()
        .and_then(|cache| cache.entry("prometheus-deb", |draft| unpack_debs(&["prometheus"], draft)));
    let Some(unpacked) = need("promtool", fetched) else { return };
    let place = Place::new().unwrap();
    let token = place.path("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let token = token.to_str().unwrap();
    let node =
        Node::start(&nacre, &place, &["--admin-token", token, "--metrics-listen", "127.0.0.1:0"]).unwrap();
    let guest = node.tenant("guest", &[]).unwrap();
    node.deploy(&guest, "f", &app("action")).unwrap();
    assert_eq!(node.invoke(&guest, "f", "{}").unwrap().status, 200);
    assert_eq!(node.invoke(&guest, "f", "{\"do\":\"trap\"}").unwrap().status, 502);
    let get = |authorization: &str| {
        let text = format!("GET /metrics HTTP/1.1\r\nHost: n\r\n{authorization}Connection: close\r\n\r\n");
        node.raw(text.as_bytes()).unwrap()
    };
    assert_eq!(get("").status, 401);
    assert_eq!(get("Authorization: Bearer 0123456789abcdef0123456789abcdeX\r\n").status, 401);
    let metrics = get("Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n");
    assert_eq!(metrics.status, 200);
    let text = String::from_utf8(metrics.body.clone()).unwrap();
    for line in [
        "nacre_activations_total{status=\"success\"} 1",
        "nacre_activations_total{status=\"action developer error\"} 1",
        "nacre_cvms 1",
        "nacre_tenant_cpu_seconds_total{tenant=\"guest\"}",
        "nacre_workers{state=\"dormant\"}",
        "nacre_activation_duration_seconds_bucket",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let promtool = |text: &[u8]| {
        let mut command = Command::new(unpacked.join("usr/bin/promtool"));
        finish(command.args(["check", "metrics"]).current_dir(Path::new("/")), text).unwrap()
    };
    let checked = promtool(&metrics.body);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""), "{}", checked.text());
    // It would tell.
    assert_ne!(promtool(b"# TYPE bad counter\nbad 1\n").code, 0);
}
