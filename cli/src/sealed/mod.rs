//! Evidence, manifests and sealed CVMs: `platform`, `manifest`, `measure`, `attest`, `keybroker`, `tunnel`, and the sealed forms of
//! `deploy`, `invoke`, `logs` and `rm`. What they do is the client library's; here are files, options, and output.

pub mod args;
mod attest;
mod deploy;
mod invoke;
mod keybroker;
mod logs;
mod manifest;
mod measure;
mod platform;
mod remove;
mod tunnel;

pub use attest::command as attest;
pub use deploy::command as deploy;
pub use invoke::command as invoke;
pub use keybroker::command as keybroker;
pub use logs::command as logs;
pub use manifest::command as manifest;
pub use measure::command as measure;
pub use platform::command as platform;
pub use remove::command as remove;
pub use tunnel::command as tunnel;

use crate::failure::Failure;
use crate::node::client;
use crate::program::{io_reason, read_file};
use nacre_attest::evidence::Evidence;
use nacre_attest::report::Report;
use nacre_attest::verify::{Verdict, hex};
use nacre_client::keys::{self, KeyError};
use nacre_client::{DeployError, Policy, SessionError, SignedManifest, SigningKey};
use serde_json::{Value, json};
use std::path::Path;

/// Reads a file whole.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    read_file(path).map_err(|error| {
        Failure::new(
            path.display(),
            format_args!("{}; check the path and its permissions", io_reason(&error)),
        )
    })
}

fn read_text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(path)?).map_err(|_| Failure::new(path.display(), "is not text; name a TOML file"))
}

fn read_policy(path: &Path) -> Result<Policy, Failure> {
    Policy::from_toml(&read_text(path)?).map_err(|error| {
        Failure::new(path.display(), format_args!("{error}; see docs/sealed.md for policies"))
    })
}

fn read_manifest(path: &Path) -> Result<SignedManifest, Failure> {
    let signed = SignedManifest::decode(&read(path)?).map_err(|error| error.to_string());
    let signed = signed.and_then(|signed| match signed.verify() {
        Ok(_) => Ok(signed),
        Err(error) => Err(error.to_string()),
    });
    signed.map_err(|error| {
        Failure::new(path.display(), format_args!("{error}; make it with nacre manifest sign"))
    })
}

fn read_key(path: &Path) -> Result<SigningKey, Failure> {
    keys::read(path).map_err(key_failure)
}

fn key_failure(error: KeyError) -> Failure {
    match error {
        KeyError::File { path, error } => {
            let reason = io_reason(&error);
            let remedy = if reason.contains("; ") { "" } else { "; check the path and its permissions" };
            Failure::new(path.display(), format_args!("{reason}{remedy}"))
        }
        KeyError::Exists(path) => {
            Failure::new(path.display(), "exists already; a key is never overwritten, choose another name")
        }
        KeyError::Content(path) => {
            Failure::new(path.display(), "holds no Ed25519 key in PEM; make one with nacre manifest init")
        }
    }
}

/// What a session's error is for the user; `what` was asked for.
fn session_failure(what: &str, error: SessionError) -> Failure {
    match error {
        SessionError::Node(error) => client::failure(what, error),
        error => Failure::new(what, error),
    }
}

fn deploy_failure(what: &str, error: DeployError) -> Failure {
    match error {
        DeployError::Node(error) => client::failure(what, error),
        DeployError::Session(error) => session_failure(what, error),
        error => Failure::new(what, error),
    }
}

/// What a CVM has proved, in one line.
fn proved(verdict: &Verdict) -> String {
    let platform = verdict.platform.map_or("unknown platform", |platform| platform.name());
    let guest = verdict.guest.as_deref().unwrap_or("unknown guest");
    match &verdict.manifest {
        Some(manifest) => {
            format!(
                "{platform} platform, guest {guest}, manifest {} version {}",
                manifest.name, manifest.version
            )
        }
        None => format!("{platform} platform, guest {guest}"),
    }
}

/// What a CVM has proved, for programs.
fn proved_json(evidence: &Evidence, verdict: &Verdict) -> Value {
    let report = Report::parse(&evidence.report).ok();
    json!({
        "platform": verdict.platform.map(|platform| platform.name()),
        "guest": verdict.guest,
        "measurement": report.as_ref().map(|report| hex(&report.measurement)),
        "chip": report.as_ref().map(|report| hex(&report.chip_id)),
        "manifest": hex(&evidence.claims.manifest),
        "manifest_version": verdict.manifest.as_ref().map(|manifest| manifest.version),
    })
}

/// Text of others: nothing in it may act on the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect()
}
