//! Bodies of HTTP requests, names, and what programs print: whatever strangers write to the node is read without a panic,
//! and what is accepted keeps the rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_node_api::limits::{ActionLimits, TenantLimits};
use nacre_node_api::names::{ActivationId, EntityName, TenantName};
use nacre_node_api::outcome::{End, Left};
use nacre_node_api::records::Version;
use nacre_node_api::{body, wire};

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => put(rest),
        1 => {
            if let Ok(object) = body::object(rest) {
                assert!(std::str::from_utf8(object).is_ok());
            }
        }
        2 => outcome(rest),
        _ => names(&String::from_utf8_lossy(rest)),
    }
});

fn put(bytes: &[u8]) {
    let Ok(put) = wire::action_put(bytes) else { return };
    if let Some(code) = &put.code {
        assert!(code.starts_with(b"\0asm"));
    }
    let tenant = TenantLimits::default();
    if let Ok(limits) = put.limits(ActionLimits::default(), &tenant) {
        assert_eq!(limits.checked(&tenant), Ok(limits));
    }
}

fn outcome(bytes: &[u8]) {
    let limits = ActionLimits { logs: 1, ..ActionLimits::default() };
    let (stdout, stderr) = bytes.split_at(bytes.len() / 2);
    for end in [End::Exit(0), End::Exit(1), End::Trap(String::from_utf8_lossy(stderr).into_owned())] {
        let (stdout, stderr) = (stdout.to_vec(), stderr.to_vec());
        let outcome = Left { end, stdout, stderr, stdout_cut: false, stderr_cut: false }.outcome(&limits, 0);
        // A result is always an object.
        assert!(body::object(outcome.result.get().as_bytes()).is_ok());
    }
}

fn names(text: &str) {
    for name in [EntityName::new(text).map(String::from), TenantName::new(text).map(String::from)]
        .into_iter()
        .flatten()
    {
        // Names go into paths, logs and JSON unescaped.
        assert!(name == text && name.is_ascii() && !name.contains(['/', '"', '\\', '\n', '\0']));
    }
    if let Ok(id) = ActivationId::parse(text) {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Some(version) = Version::parse(text) {
        assert_eq!(Version::parse(&version.to_string()), Some(version));
    }
}
