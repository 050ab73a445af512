//! Reports and verdicts for people and for tools: tables of text, and JSON.

use crate::report::{Report, SigningKey};
use crate::tcb::{Platform, TcbVersion};
use crate::verify::{Verdict, hex};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// A report's fields by name, in the order of the layout. With the platform known, TCBs are shown by their parts.
pub fn report_fields(report: &Report, platform: Option<Platform>) -> Vec<(&'static str, String)> {
    let tcb = |version: TcbVersion| match platform.and_then(|platform| version.parts(platform)) {
        Some(parts) => format!("{} ({parts})", hex(&version.0)),
        None => hex(&version.0),
    };
    let flags = |raw: u64, flags: &mut dyn Iterator<Item = (&'static str, bool)>| {
        let set: Vec<&str> = flags.filter(|(_, set)| *set).map(|(name, _)| name).collect();
        format!("{raw:#x} ({})", if set.is_empty() { "none".to_string() } else { set.join(", ") })
    };
    let firmware = |version: crate::report::FirmwareVersion| {
        format!("{}.{} build {}", version.major, version.minor, version.build)
    };
    let signing_key = match report.key_info.signing_key {
        SigningKey::Vcek => "VCEK",
        SigningKey::Vlek => "VLEK",
        SigningKey::None => "none",
    };
    let mut fields = vec![
        ("version", report.version.to_string()),
        ("guest_svn", report.guest_svn.to_string()),
        ("policy", flags(report.policy.0, &mut report.policy.flags())),
        ("family_id", hex(&report.family_id)),
        ("image_id", hex(&report.image_id)),
        ("vmpl", report.vmpl.to_string()),
        ("current_tcb", tcb(report.current_tcb)),
        ("platform_info", flags(report.platform_info.0, &mut report.platform_info.flags())),
        ("signing_key", signing_key.to_string()),
        ("author_key", report.key_info.author_key.to_string()),
        ("mask_chip_key", report.key_info.mask_chip_key.to_string()),
        ("report_data", hex(&report.report_data)),
        ("measurement", hex(&report.measurement)),
        ("host_data", hex(&report.host_data)),
        ("id_key_digest", hex(&report.id_key_digest)),
        ("author_key_digest", hex(&report.author_key_digest)),
        ("report_id", hex(&report.report_id)),
        ("report_id_ma", hex(&report.report_id_ma)),
        ("reported_tcb", tcb(report.reported_tcb)),
    ];
    if let Some(cpuid) = report.cpuid {
        let text = format!("family {:#x} model {:#x} stepping {}", cpuid.family, cpuid.model, cpuid.stepping);
        fields.push(("cpuid", text));
    }
    fields.extend([
        ("chip_id", hex(&report.chip_id)),
        ("committed_tcb", tcb(report.committed_tcb)),
        ("current_version", firmware(report.current_version)),
        ("committed_version", firmware(report.committed_version)),
        ("launch_tcb", tcb(report.launch_tcb)),
    ]);
    if let Some(mitigations) = report.mitigations {
        fields.push(("launch_mit_vector", format!("{:#x}", mitigations.launch)));
        fields.push(("current_mit_vector", format!("{:#x}", mitigations.current)));
    }
    fields.push(("signature_r", hex(&report.signature.r)));
    fields.push(("signature_s", hex(&report.signature.s)));
    if crate::software_mark::is_marked(&report.chip_id) {
        fields.push(("platform", format!("software: {}", crate::software_mark::ISSUER)));
    }
    fields
}

/// A report as a table.
pub fn report_table(report: &Report, platform: Option<Platform>) -> String {
    let mut text = String::new();
    for (name, value) in report_fields(report, platform) {
        writeln!(text, "{name:18} {value}").expect("writing to a string");
    }
    text
}

/// A report as a JSON object of strings.
pub fn report_json(report: &Report, platform: Option<Platform>) -> Value {
    let fields = report_fields(report, platform).into_iter();
    Value::Object(fields.map(|(name, value)| (name.to_string(), Value::String(value))).collect::<Map<_, _>>())
}

/// A verdict as a table: each rule with its result, and the result of all.
pub fn verdict_table(verdict: &Verdict) -> String {
    let mut text = String::new();
    for rule in &verdict.rules {
        let mark = if rule.passed { "ok" } else { "FAILED" };
        writeln!(text, "{mark:6} {:27} {}", rule.name, rule.detail).expect("writing to a string");
    }
    let platform = verdict.platform.map_or("unknown", Platform::name);
    let result = if verdict.accepted() { "accepted" } else { "REJECTED" };
    write!(text, "{result}: platform {platform}").expect("writing to a string");
    if let Some(guest) = &verdict.guest {
        write!(text, ", guest {guest}").expect("writing to a string");
    }
    let failed: Vec<&str> = verdict.failed().map(|rule| rule.name).collect();
    if !failed.is_empty() {
        write!(text, "; failed: {}", failed.join(", ")).expect("writing to a string");
    }
    text.push('\n');
    text
}

/// A verdict as JSON: `accepted`, `platform`, `guest`, `manifest`, `rules`.
pub fn verdict_json(verdict: &Verdict) -> Value {
    let manifest = verdict.manifest.as_ref().map(|manifest| {
        json!({
            "name": manifest.name,
            "version": manifest.version,
            "mode": manifest.mode.name(),
            "owner": hex(manifest.owner.as_bytes()),
            "sha256": hex(&manifest.hash()),
        })
    });
    json!({
        "accepted": verdict.accepted(),
        "platform": verdict.platform.map(Platform::name),
        "guest": verdict.guest,
        "manifest": manifest,
        "rules": verdict.rules,
    })
}
