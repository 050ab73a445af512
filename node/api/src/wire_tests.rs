//! Bodies of requests, good and bad; views of records.

use super::*;
use crate::names::{ActivationId, Digest};
use crate::records::{ModuleRef, Status};

fn error(body: &str) -> String {
    action_put(body.as_bytes()).unwrap_err().0
}

fn put(body: serde_json::Value) -> ActionPut {
    action_put(body.to_string().as_bytes()).unwrap()
}

#[test]
fn bad_bodies_say_what_is_wrong() {
    let exec = |rest: &str| format!("{{\"exec\":{{{rest}}}}}");
    for (body, word) in [
        (String::new(), "not JSON"),
        ("{".into(), "not JSON"),
        ("[]".into(), "wrong form"),
        ("{\"exec\":7}".into(), "wrong form"),
        ("{\"exec\":[\"wasi:default\",\"AGFzbQ==\"]}".into(), "wrong form"),
        ("{\"limits\":[1]}".into(), "wrong form"),
        ("{\"parameters\":[[\"a\",1]]}".into(), "wrong form"),
        ("{\"limits\":{\"timeout\":-1}}".into(), "wrong form"),
        ("{\"limits\":{\"timeout\":1.5}}".into(), "wrong form"),
        ("{\"parameters\":{\"a\":1}}".into(), "wrong form"),
        ("{\"parameters\":[{\"key\":1,\"value\":1}]}".into(), "wrong form"),
        ("{\"parameters\":[{\"key\":\"a\",\"value\":1},{\"key\":\"a\",\"value\":2}]}".into(), "twice"),
        ("{\"version\":\"one\"}".into(), "three numbers"),
        (exec("\"code\":\"\""), "kind"),
        (exec("\"kind\":\"nodejs:default\",\"code\":\"x\""), "nodejs:default"),
        (exec("\"kind\":\"wasi:default\""), "no code"),
        (exec("\"kind\":\"wasi:default\",\"code\":\"\""), "empty"),
        (exec("\"kind\":\"wasi:default\",\"code\":\"%%%\""), "base64"),
        (exec("\"kind\":\"wasi:default\",\"code\":\"AGFzb\""), "base64"),
        (exec("\"kind\":\"wasi:default\",\"code\":\"aGVsbG8=\""), "not a WebAssembly module"),
    ] {
        let text = error(&body);
        assert!(text.contains(word), "{body}: {text}");
    }
}

fn action() -> Action {
    Action {
        name: EntityName::new("a b").unwrap(),
        version: Version::FIRST,
        module: ModuleRef { digest: Digest([7; 32]), bytes: 8 },
        binary: true,
        parameters: vec![KeyValue::new("p", "1".into()).unwrap()],
        annotations: vec![],
        limits: ActionLimits::default(),
        publish: false,
        updated_ms: 5,
    }
}

#[test]
fn an_update_changes_what_it_names() {
    let tenant = TenantLimits::default();
    let update =
        put(serde_json::json!({ "limits": { "timeout": 100 }, "parameters": [{ "key": "q", "value": [] }] }));
    assert!(update.code.is_none());
    let limits = update.limits(ActionLimits { logs: 3, ..ActionLimits::default() }, &tenant).unwrap();
    assert_eq!((limits.timeout, limits.logs, limits.memory), (100, 3, 256));
    let changed = update.apply(action(), limits, false);
    assert_eq!((changed.version, changed.parameters[0].key.as_str()), (Version(0, 0, 2), "q"));
    let named = put(serde_json::json!({ "version": "1.0.0" })).apply(action(), limits, false);
    assert_eq!((named.version, named.parameters[0].key.as_str()), (Version(1, 0, 0), "p"));
    let too_long = put(serde_json::json!({ "limits": { "timeout": 300_001 } }));
    assert!(too_long.limits(ActionLimits::default(), &tenant).unwrap_err().0.contains("300000"));
}

#[test]
fn views_are_openwhisks() {
    let namespace = TenantName::new("guest").unwrap();
    let action = action();
    let json = serde_json::to_value(ActionView::full(&namespace, &action, Some(b"\0asm"))).unwrap();
    assert_eq!(json["exec"]["code"], "AGFzbQ==");
    assert_eq!((&json["namespace"], &json["version"]), (&"guest".into(), &"0.0.1".into()));
    assert_eq!(json["annotations"][0]["key"], "exec");
    let activation = Activation {
        id: ActivationId::at(77),
        action: action.name.clone(),
        version: Version::FIRST,
        start_ms: 10,
        end_ms: 25,
        status: Status::ApplicationError,
        result: RawValue::from_string("{\"error\":\"no\"}".into()).unwrap(),
        logs: vec!["line".into()],
        limits: ActionLimits::default(),
        timeout: false,
        cpu_us: 1,
        wait_us: 2000,
        init_us: Some(3000),
    };
    let json = serde_json::to_value(ActivationView::full(&namespace, &activation)).unwrap();
    assert_eq!(json["response"]["status"], "application error");
    assert_eq!((&json["response"]["success"], &json["duration"]), (&false.into(), &15.into()));
    assert_eq!(json["annotations"].as_array().unwrap().len(), 7);
    let summary = serde_json::to_value(ActivationView::summary(&namespace, &activation)).unwrap();
    assert!(summary.get("response").is_none() && summary["statusCode"] == 1);
}
