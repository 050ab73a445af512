//! `nacre manifest init`, `sign` and `set`.

use super::args::{ManifestArgs, ManifestCommand, ManifestInitArgs, ManifestSetArgs, ManifestSignArgs};
use super::{key_failure, read_key, read_manifest, read_text};
use crate::cache::write_atomically;
use crate::failure::Failure;
use crate::node::client::wait;
use crate::program::io_reason;
use nacre_attest::manifest::{Manifest, ManifestError, Mode};
use nacre_attest::verify::hex;
use nacre_client::{SigningKey, keys};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// Why there is no manifest.
pub fn command(args: &ManifestArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        ManifestCommand::Init(args) => init(args),
        ManifestCommand::Sign(args) => sign(args),
        ManifestCommand::Set(args) => set(args),
    }
}

/// The key in a file, or a new one that is put there.
fn key(path: &Path) -> Result<(SigningKey, bool), Failure> {
    if path.exists() {
        return Ok((read_key(path)?, false));
    }
    let key = keys::generate();
    keys::write(path, &key).map_err(key_failure)?;
    Ok((key, true))
}

/// What a new manifest says beside keys.
struct Template<'a> {
    name: &'a str,
    mode: Mode,
    /// The section about migration.
    migration: &'a str,
}

fn text(template: &Template<'_>, owner: &str, compiler: &str, broker: Option<&str>) -> String {
    let Template { name, mode, migration } = template;
    let (name, mode) = (*name, mode.name());
    let brokers = broker.map(|broker| format!("\"{broker}\"")).unwrap_or_default();
    // JSON's way to write a string is one of TOML's.
    let name = serde_json::Value::from(name);
    format!(
        "# A tenant's manifest: who owns its CVMs, whose code they run, and how they may be used. Its hash is in every report of them.\n\
         # Sign it with: nacre manifest sign manifest.toml --key owner.key -o manifest.signed\n\n\
         # Raise it with each change: nodes, brokers and policies refuse an older one.\n\
         version = 1\n\
         # Tenant or workload, for people.\n\
         name = {name}\n\
         # \"sealed\": only code that a compiler below has signed, and commands that owner or brokers have signed. \"open\": plain deploys, no secrets.\n\
         mode = \"{mode}\"\n\
         # Public keys are Ed25519, 64 hexadecimal digits. The owner signs this file, and may sign commands.\n\
         owner = \"{owner}\"\n\
         # Who may sign code.\n\
         compilers = [\"{compiler}\"]\n\
         # Who may install code and secrets while the owner is away.\n\
         brokers = [{brokers}]\n\n\
         # What the other end of a migration must prove, as in a policy file. Without it nothing moves.\n\
         {migration}"
    )
}

/// The section about migration of who did not say what it should be.
const NO_MIGRATION: &str = "# [migration]\n# measurements = [{ digest = \"...\", guest = \"...\" }]\n";

fn init(args: &ManifestInitArgs) -> Result<ExitCode, Failure> {
    let dir = &args.dir;
    let failed = |path: &Path, error: std::io::Error| {
        Failure::new(path.display(), format_args!("{}; name another folder with --dir", io_reason(&error)))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| failed(dir, error))?;
    let path = dir.join("manifest.toml");
    if path.exists() {
        return Err(Failure::new(
            path.display(),
            "exists already; change that one, or name another folder with --dir",
        ));
    }
    let migration = match &args.migrate_to {
        Some(path) => Manifest::migration_section(&read_text(path)?).map_err(|error| {
            Failure::new(path.display(), format_args!("{error}; make it with nacre measure --policy"))
        })?,
        None => NO_MIGRATION.to_owned(),
    };
    let mode = if args.open { Mode::Open } else { Mode::Sealed };
    let template = Template { name: &args.name, mode, migration: &migration };
    // Judged before any key is made.
    let sample = keys::public_hex(&keys::generate());
    Manifest::from_toml(&text(&template, &sample, &sample, None))
        .map_err(|error| Failure::usage("NAME", error, "choose another"))?;
    let (owner, owner_is_new) = key(&dir.join("owner.key"))?;
    let (compiler, compiler_is_new) = key(&dir.join("compiler.key"))?;
    let broker = args.broker.then(|| key(&dir.join("broker.key"))).transpose()?;
    let public = keys::public_hex;
    let broker_hex = broker.as_ref().map(|(key, _)| public(key));
    let content = text(&template, &public(&owner), &public(&compiler), broker_hex.as_deref());
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(|error| failed(&path, error))?;
    if args.json {
        let object = serde_json::json!({
            "manifest": path.to_string_lossy(),
            "owner": public(&owner),
            "compiler": public(&compiler),
            "broker": broker_hex,
        });
        println!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    let new = |is_new: bool| if is_new { "new" } else { "as it was" };
    println!("{}", path.display());
    println!("{}: {}, owner {}", dir.join("owner.key").display(), new(owner_is_new), public(&owner));
    println!(
        "{}: {}, compiler {}",
        dir.join("compiler.key").display(),
        new(compiler_is_new),
        public(&compiler)
    );
    if let (Some((_, is_new)), Some(public)) = (&broker, &broker_hex) {
        println!("{}: {}, broker {public}", dir.join("broker.key").display(), new(*is_new));
    }
    Ok(ExitCode::SUCCESS)
}

fn sign(args: &ManifestSignArgs) -> Result<ExitCode, Failure> {
    let failure = |error: &dyn std::fmt::Display| Failure::new(args.manifest.display(), error);
    let manifest = Manifest::from_toml(&read_text(&args.manifest)?)
        .map_err(|error| failure(&format_args!("{error}; see nacre manifest init for a manifest")))?;
    let owner = read_key(&args.key)?;
    let signed = manifest.sign(&owner).map_err(|error| match error {
        ManifestError::Signature => Failure::new(
            args.key.display(),
            "is not the key of the manifest's owner; name that one, or change owner",
        ),
        error => failure(&format_args!("{error}; shorten it")),
    })?;
    write_atomically(&args.output, &signed.encode(), 0o644).map_err(|error| {
        let reason = io_reason(&error);
        Failure::new(
            args.output.display(),
            format_args!("can not be written: {reason}; choose another place with -o"),
        )
    })?;
    let hash = hex(&signed.hash());
    if args.json {
        let object = serde_json::json!({
            "output": args.output.to_string_lossy(),
            "sha256": hash,
            "version": manifest.version,
            "mode": manifest.mode.name(),
            "owner": hex(manifest.owner.as_bytes()),
        });
        println!("{object}");
    } else {
        let (name, version, mode) = (&manifest.name, manifest.version, manifest.mode.name());
        println!("{}: {name}, version {version}, {mode}, SHA-256 {hash}", args.output.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn set(args: &ManifestSetArgs) -> Result<ExitCode, Failure> {
    let signed = read_manifest(&args.manifest)?;
    let manifest = signed.verify().map_err(|error| Failure::new(args.manifest.display(), error))?;
    let client = args.target.client()?;
    let what = args.manifest.display();
    wait(async { client.node().put_manifest(&signed).await.map_err(|error| Failure::new(what, error)) })?;
    let (hash, may_move) = (hex(&signed.hash()), manifest.migration.is_some());
    if args.json {
        let object = serde_json::json!({ "sha256": hash, "version": manifest.version, "may_move": may_move });
        println!("{object}");
    } else {
        let moves = if may_move { "may move" } else { "moves nowhere" };
        println!(
            "{}: version {}, {}, {moves}, SHA-256 {hash}",
            manifest.name,
            manifest.version,
            manifest.mode.name()
        );
    }
    Ok(ExitCode::SUCCESS)
}
