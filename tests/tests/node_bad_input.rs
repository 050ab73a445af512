//! Requests that no honest client sends, functions that misbehave, strangers: each gets the right status code and a message
//! that helps, and everybody else goes on.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::Nacre;
use nacre_tests::node::{Answer, Node, Place, Tenant, base64, is_closed_within, read_answer, request};
use nacre_tests::skip::need;
use std::io::Write;
use std::time::Duration;

const ACTIONS: &str = "/api/v1/namespaces/_/actions";

/// This status code, OpenWhisk's form, and a message with this in it.
fn refused(what: &str, answer: &Answer, status: u16, word: &str) {
    let shown = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status, status, "{what}: {shown}");
    let (error, code) = (answer.error(), answer.json()["code"].as_str().unwrap_or_default().to_owned());
    assert!(error.to_lowercase().contains(&word.to_lowercase()), "{what}: '{word}' is not in: {shown}");
    assert!(!code.is_empty() && error.len() < 400, "{what}: {shown}");
}

fn put(code: &str) -> String {
    format!("{{\"exec\":{{\"kind\":\"wasi:default\",\"code\":\"{code}\"}}}}")
}

#[test]
fn malformed_requests_are_refused() {
    let Some(nacre) = need("malformed requests", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let guest = node.tenant("guest", &["--request-size", "1MiB"]).unwrap();
    node.deploy(&guest, "f", &app("action")).unwrap();
    let module = |name: &str| put(&base64(&std::fs::read(app(name)).unwrap()));
    let cut = put(&base64(&std::fs::read(app("action")).unwrap()[..1000]));
    for (what, method, path, body, status, word) in [
        ("JSON cut off", "POST", "f?blocking=true", "{\"a\":", 400, "not JSON"),
        ("an array", "POST", "f?blocking=true", "[1]", 400, "wrong form"),
        ("a flag that is none", "POST", "f?blocking=perhaps", "{}", 400, "blocking"),
        ("a timeout too long", "POST", "f?blocking=true&timeout=99999999", "{}", 400, "timeout"),
        ("no body at all", "PUT", "g", "", 400, "not JSON"),
        ("a wrong type", "PUT", "g", "{\"exec\":[]}", 400, "wrong form"),
        ("an unknown kind", "PUT", "g", "{\"exec\":{\"kind\":\"python:3\",\"code\":\"x\"}}", 400, "python:3"),
        ("no kind", "PUT", "g", "{\"exec\":{\"code\":\"x\"}}", 400, "kind"),
        ("a sequence", "PUT", "g", "{\"exec\":{\"kind\":\"sequence\",\"components\":[]}}", 400, "sequence"),
        ("no base64", "PUT", "g", &put("$$$"), 400, "base64"),
        ("no module", "PUT", "g", &put("aGVsbG8="), 400, "WebAssembly"),
        ("a module cut off", "PUT", "g", &cut, 400, "truncated"),
        ("an import nobody has", "PUT", "g", &module("features/missing-import"), 400, "launch_rocket"),
        ("no start", "PUT", "g", &module("features/no-start"), 400, "_start"),
        ("no code", "PUT", "g", "{}", 400, "code"),
        (
            "impossible limits",
            "PUT",
            "f?overwrite=true",
            "{\"limits\":{\"memory\":99999}}",
            400,
            "limits.memory",
        ),
        ("a package", "PUT", "pkg/g", &put("x"), 400, "Packages"),
        ("an encoded slash", "GET", "a%2Fb", "", 400, "Packages"),
        ("a NUL", "GET", "a%00b", "", 400, "name"),
        ("bytes that are no text", "GET", "a%ff", "", 400, "UTF-8"),
        ("a line break", "GET", "a%0d%0ab", "", 400, "name"),
        ("letters of another script", "GET", "%E2%80%AEgnp", "", 400, "name"),
        ("a long name", "GET", &"x".repeat(300), "", 400, "256"),
        ("what is not there", "GET", "nobody", "", 404, "does not exist"),
        ("a method that is none", "PATCH", "f", "", 405, "method"),
    ] {
        let answer =
            node.request(Some(&guest), method, &format!("{ACTIONS}/{path}"), body.as_bytes()).unwrap();
        refused(what, &answer, status, word);
    }
    for (what, path, status, word) in [
        ("a list too long", "/api/v1/namespaces/_/actions?limit=201", 400, "limit"),
        ("a negative skip", "/api/v1/namespaces/_/activations?skip=-1", 400, "skip"),
        ("an odd id", "/api/v1/namespaces/_/activations/zz", 400, "32"),
        ("nothing", "/nothing", 404, "does not exist"),
        ("administration", "/v1/tenants", 404, "does not exist"),
        ("metrics", "/metrics", 404, "does not exist"),
        ("a trigger", "/api/v1/namespaces/_/triggers/x", 501, "not supported"),
    ] {
        refused(what, &node.request(Some(&guest), "GET", path, b"").unwrap(), status, word);
    }
    let whole = node.invoke(&guest, "f", "{\"still\":\"here\"}").unwrap();
    assert_eq!((whole.status, &whole.json()["response"]["result"]["still"]), (200, &"here".into()));
}

#[test]
fn sizes_and_times_are_bounded() {
    let Some(nacre) = need("sizes and times", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let guest = node.tenant("guest", &["--request-size", "2MiB"]).unwrap();
    node.deploy(&guest, "f", &app("action")).unwrap();
    let path = format!("{ACTIONS}/f?blocking=true");
    // Both of these wait for the node's patience.
    let mut slow = node.connect().unwrap();
    let begun = String::from_utf8(request(Some(&guest), "POST", &path, b"{}", false)).unwrap();
    slow.write_all(begun.replace("Content-Length: 2", "Content-Length: 20").as_bytes()).unwrap();
    let mut silent = node.connect().unwrap();
    silent.write_all(b"GET /ping HTTP/1.1\r\nHost:").unwrap();

    // Told by the announced length, before the body was sent.
    let announced = |path: &str, length: &str| {
        let head = String::from_utf8(request(Some(&guest), "PUT", path, b"", true)).unwrap();
        node.raw(head.replace("Content-Length: 0", &format!("Content-Length: {length}")).as_bytes()).unwrap()
    };
    refused("a body too long", &announced(&format!("{ACTIONS}/g"), "2097153"), 413, "2097152");
    let endless = announced(&format!("{ACTIONS}/g"), "99999999999999999999999");
    assert_eq!(endless.status, 400);
    let chunked = {
        let head = String::from_utf8(request(Some(&guest), "POST", &path, b"", true)).unwrap();
        let head = head.replace("Content-Length: 0", "Transfer-Encoding: chunked");
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
        [head.as_bytes(), &chunk.repeat(17)].concat()
    };
    refused("chunks without an end", &node.raw(&chunked).unwrap(), 413, "1048576");
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat((1 << 20) - 8));
    assert_eq!(node.invoke(&guest, "f", &large).unwrap().status, 200);
    refused(
        "one byte more",
        &node.invoke(&guest, "f", &large.replace("x\"", "xx\"")).unwrap(),
        413,
        "1048576",
    );
    let long_head = format!("GET /ping HTTP/1.1\r\nHost: n\r\nX: {}\r\n\r\n", "y".repeat(2_000_000));
    // The answer may get lost when the rest of the request hits the closed connection.
    let told = node.raw(long_head.as_bytes());
    assert!(matches!(told, Ok(Answer { status: 431, .. }) | Err(_)));
    let many = format!("GET /ping HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let told = node.raw(many.as_bytes());
    assert!(matches!(told, Ok(Answer { status: 431, .. }) | Err(_)), "{told:?}");
    assert_eq!(node.raw(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").unwrap().status, 400);
    assert_eq!(node.raw(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n").unwrap().status, 400);

    let answer = read_answer(&mut slow).unwrap();
    refused("a slow body", &answer, 408, "too slowly");
    assert!(is_closed_within(&mut silent, Duration::from_secs(100)).unwrap());
    assert_eq!(node.invoke(&guest, "f", "{}").unwrap().status, 200);
}

#[test]
fn functions_that_misbehave_harm_only_themselves() {
    let Some(nacre) = need("functions that misbehave", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let guest = node.tenant("guest", &["--memory", "256MiB"]).unwrap();
    let neighbour = node.tenant("neighbour", &[]).unwrap();
    for (name, options) in
        [("f", ["--timeout", "20s"]), ("brief", ["--timeout", "500ms"]), ("small", ["--memory", "32"])]
    {
        let module = app("action");
        let args = ["deploy", name, module.to_str().unwrap()];
        let ended = node.run(&guest, &[&args[..], &options[..]].concat()).unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }
    node.deploy(&guest, "deaf", &app("hello")).unwrap();
    node.deploy(&neighbour, "f", &app("action")).unwrap();
    let error = |name: &str, body: &str, word: &str| {
        let answer = node.invoke(&guest, name, body).unwrap();
        let said = answer.json()["response"]["result"]["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.status, 502, "{name} {body}: {}", String::from_utf8_lossy(&answer.body));
        assert!(said.contains(word), "{name} {body}: {said}");
        answer.json()
    };
    let loops = error("brief", "{\"do\":\"forever\"}", "time limits of 500 milliseconds");
    let annotations = loops["annotations"].as_array().unwrap().clone();
    assert!(annotations.contains(&serde_json::json!({ "key": "timeout", "value": true })), "{loops}");
    error("f", "{\"do\":\"trap\"}", "unexpectedly");
    // It finds that there is no memory, and says so itself; or it is ended.
    error("small", "{\"do\":\"allocate\"}", "memory");
    error("f", "{\"do\":\"large\",\"n\":1100000}", "allowed length");
    let large = node.invoke(&guest, "f", "{\"do\":\"large\",\"n\":1000000}").unwrap();
    assert_eq!(large.json()["response"]["result"]["large"].as_str().unwrap().len(), 1_000_000);
    let flood = node.invoke(&guest, "f", "{\"do\":\"flood\",\"n\":100}").unwrap();
    assert!(flood.body.len() < 3 << 20, "{} bytes", flood.body.len());
    assert!(String::from_utf8_lossy(&flood.body).contains("truncated because the total bytes size exceeds"));
    let unread = format!("{{\"a\":\"{}\"}}", "x".repeat(900_000));
    error("deaf", &unread, "valid JSON");
    let whole = node.invoke(&neighbour, "f", "{\"a\":1}").unwrap();
    assert_eq!(whole.status, 200);
    assert_eq!(node.invoke(&guest, "f", "{\"a\":1}").unwrap().status, 200);
}

#[test]
fn strangers_get_nothing() {
    let Some(nacre) = need("strangers", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let (guest, other) = (node.tenant("guest", &[]).unwrap(), node.tenant("other", &[]).unwrap());
    node.deploy(&guest, "f", &app("action")).unwrap();
    let called = node.invoke(&guest, "f", "{\"secret\":1}").unwrap();
    let id = called.json()["activationId"].as_str().unwrap().to_owned();
    let wrong = Tenant { auth: guest.auth.replace(':', ":x"), ..guest.clone() };
    for path in [ACTIONS, "/api/v1/namespaces", "/v1/deployments", "/v1/ps", "/v1/activations"] {
        refused(path, &node.request(None, "GET", path, b"").unwrap(), 401, "credentials");
        refused(
            path,
            &node.request(Some(&wrong), "GET", path, b"").unwrap(),
            401,
            "authentication is invalid",
        );
    }
    for header in ["Basic", "Basic %%%", "Bearer x", "basic  ", "Basic Og=="] {
        let text = format!(
            "GET {ACTIONS} HTTP/1.1\r\nHost: n\r\nAuthorization: {header}\r\nConnection: close\r\n\r\n"
        );
        refused(header, &node.raw(text.as_bytes()).unwrap(), 401, "authentication");
    }
    for (method, path, status) in [
        ("GET", "/api/v1/namespaces/guest/actions/f".to_owned(), 403),
        ("PUT", "/api/v1/namespaces/guest/actions/f?overwrite=true".to_owned(), 403),
        ("DELETE", "/api/v1/namespaces/guest/actions/f".to_owned(), 403),
        ("POST", "/api/v1/namespaces/guest/actions/f?blocking=true".to_owned(), 403),
        ("GET", "/api/v1/namespaces/guest/activations".to_owned(), 403),
        ("GET", "/api/v1/namespaces/_/actions/f".to_owned(), 404),
        ("GET", format!("/api/v1/namespaces/_/activations/{id}"), 404),
        ("GET", format!("/v1/activations/{id}"), 404),
        ("DELETE", "/v1/deployments/f".to_owned(), 404),
        ("POST", "/v1/deployments/f/invoke".to_owned(), 404),
    ] {
        let answer = node.request(Some(&other), method, &path, b"{}").unwrap();
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
    }
    assert_eq!(node.invoke(&guest, "f", "{}").unwrap().status, 200);
}

#[test]
fn a_tenant_has_its_share_and_no_more() {
    let Some(nacre) = need("shares", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let guest =
        node.tenant("guest", &["--concurrency", "2", "--actions", "2", "--activations", "3"]).unwrap();
    let neighbour = node.tenant("neighbour", &[]).unwrap();
    node.deploy(&neighbour, "f", &app("action")).unwrap();
    let module = app("action");
    let deploy = |name: &str| {
        node.run(&guest, &["deploy", name, module.to_str().unwrap(), "--timeout", "3s"]).unwrap()
    };
    assert_eq!((deploy("a").code, deploy("b").code), (0, 0));
    assert!(deploy("c").stderr.contains("as many as it may"));
    let start =
        || node.request(Some(&guest), "POST", &format!("{ACTIONS}/a"), b"{\"do\":\"forever\"}").unwrap();
    let (first, second) = (start(), start());
    assert_eq!((first.status, second.status), (202, 202));
    refused("a third call", &start(), 429, "count: 2, allowed: 2");
    assert_eq!(node.invoke(&neighbour, "f", "{}").unwrap().status, 200);
    // They end at their limit, and others may come.
    let over = |answer: &Answer| loop {
        let path = format!("/v1/activations/{}", answer.json()["activationId"].as_str().unwrap());
        let seen = node.request(Some(&guest), "GET", &path, b"").unwrap().json();
        if seen["status"] != "running" {
            break seen;
        }
    };
    assert_eq!(
        (&over(&first)["status"], &over(&second)["status"]),
        (&"developer_error".into(), &"developer_error".into())
    );
    for _ in 0..5 {
        assert_eq!(node.invoke(&guest, "a", "{}").unwrap().status, 200);
    }
    // The bound on what is kept holds for what is on the disk; what comes next is behind it.
    assert_eq!(deploy("a").code, 0);
    let kept = node.request(Some(&guest), "GET", "/v1/activations", b"").unwrap().json();
    assert_eq!(kept.as_array().unwrap().len(), 3, "{kept}");
}
