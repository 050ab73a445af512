//! `nacre deploy --manifest`: compiled here, signed, sealed; the node gets ciphertext.

use super::{deploy_failure, proved, read, read_key, read_manifest, read_policy};
use crate::cache::Cache;
use crate::compile::compile_cached;
use crate::failure::Failure;
use crate::module::{Entry, Module};
use crate::node::client::wait;
use crate::node::drive_args::DeployArgs;
use crate::program::{io_reason, is_cwasm};
use crate::spinner;
use crate::values::{EnvVar, format_size};
use nacre_attest::verify::hex;
use nacre_client::deploy::{Order, deploy};
use nacre_client::store::kind_name;
use nacre_client::{Code, Expectations, ModuleKind, Service, Store, read_private};
use nacre_engine::CpuTarget;
use std::path::Path;
use std::process::ExitCode;

/// Longest secret in a file: all of them fit one command.
const MAX_SECRET_BYTES: u64 = 16 << 20;

/// Runs the command.
///
/// # Errors
/// What compiler, node or CVM say.
pub fn command(args: &DeployArgs, manifest: &Path) -> Result<ExitCode, Failure> {
    let sealed = &args.sealed;
    let (Some(policy), Some(owner), Some(compiler)) =
        (&sealed.policy, &sealed.owner_key, &sealed.compiler_key)
    else {
        let why = "needs --policy, --owner-key and --compiler-key";
        return Err(Failure::usage("--manifest", why, "add them, or deploy plain without --manifest"));
    };
    let client = args.target.client()?;
    let (manifest, policy) = (read_manifest(manifest)?, read_policy(policy)?);
    let (owner, compiler) = (read_key(owner)?, read_key(compiler)?);
    let env = variables(&sealed.secret, &sealed.secret_file)?;
    let store = sealed.keybroker_store.as_deref().map(Store::open).transpose();
    let store = store.map_err(|error| Failure::new("--keybroker-store", error))?;
    let service = args
        .port
        .filter(|_| args.service)
        .map(|port| Service { port, restart: args.restart.map(|restart| restart.word().to_owned()) });
    let code = code(&args.module)?;
    let order = Order {
        manifest: &manifest,
        policy: &policy,
        code: &code,
        name: &args.name,
        version: sealed.number,
        kind: kind(args.service, sealed.tls),
        env: &env,
        service: service.as_ref(),
        compiler: &compiler,
        authority: &owner,
        store: store.as_ref(),
    };
    let message = format!("deploying {} ({}, sealed)", args.name, format_size(code.cwasm.len() as u64));
    let deployed = spinner::during(&message, || {
        wait(async {
            let done = deploy(client.node(), &order, &Expectations::provisioning()).await;
            done.map_err(|error| deploy_failure(&args.name, error))
        })
    })?;
    let release = &deployed.release;
    if args.json {
        let object = serde_json::json!({
            "name": release.name,
            "sealed": true,
            "version": release.version,
            "kind": kind_name(release.kind),
            "package": hex(&release.package),
            "package_bytes": deployed.package_bytes,
            "code_sha256": hex(&release.code),
            "address": deployed.address,
            "registered": store.is_some(),
            "evidence": nacre_attest::show::verdict_json(&deployed.verdict),
        });
        println!("{object}");
    } else {
        let at = deployed
            .address
            .as_deref()
            .map(|address| format!(" at {}", super::printable(address)))
            .unwrap_or_default();
        println!("{}: sealed, version {}{at}", super::printable(&args.name), release.version);
        eprintln!("nacre: {}: sealed for a CVM that has proved: {}", args.name, proved(&deployed.verdict));
        if store.is_none() {
            eprintln!(
                "nacre: {}: gone when its CVM ends; --keybroker-store keeps it for a key broker",
                args.name
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a program is.
pub fn kind(service: bool, tls: bool) -> ModuleKind {
    match (service, tls) {
        (false, _) => ModuleKind::Action,
        (true, false) => ModuleKind::Service,
        (true, true) => ModuleKind::TlsService,
    }
}

/// Compiles a module here: sealed CVMs take machine code, and only the owner's compilers'.
pub fn code(path: &Path) -> Result<Code, Failure> {
    let bytes = read(path)?;
    let failure = |error: &dyn std::fmt::Display| Failure::new(path.display(), error);
    if is_cwasm(&bytes) {
        return Err(failure(&"is compiled already; pass the .wasm it was made from"));
    }
    let module = Module::parse(&bytes, Entry::Command).map_err(|error| failure(&error))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let compiled = compile_cached(&name, &module, CpuTarget::X86_64V3, Cache::of_user().as_ref());
    Ok(Code::from(&compiled.map_err(|error| failure(&error))?.program))
}

/// Reads a file with a secret: one that others may read holds none.
fn secret(path: &Path) -> Result<Vec<u8>, Failure> {
    read_private(path, MAX_SECRET_BYTES).map_err(|error| {
        let reason = io_reason(&error);
        let remedy = if reason.contains("; ") { "" } else { "; check the path and its permissions" };
        Failure::new(path.display(), format_args!("{reason}{remedy}"))
    })
}

/// `--secret` and `--secret-file`.
pub fn variables(secrets: &[EnvVar], files: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut all: Vec<(String, String)> = Vec::new();
    for EnvVar { name, value } in secrets {
        let value = match value {
            Some(value) => value.clone(),
            None => std::env::var(name).map_err(|_| {
                let what = format_args!("--secret {name}");
                Failure::usage(what, "is not set in this process", "write NAME=VALUE, or export it")
            })?,
        };
        all.push((name.clone(), value));
    }
    for file in files {
        let what = || format!("--secret-file {file}");
        let (name, path) =
            file.split_once('=')
                .filter(|(name, path)| !name.is_empty() && !path.is_empty())
                .ok_or_else(|| Failure::usage(what(), "has no name or no path", "write NAME=PATH"))?;
        let value = String::from_utf8(secret(Path::new(path))?)
            .map_err(|_| Failure::new(path, "is not text in UTF-8; encode it, for example in base64"))?;
        all.push((name.to_owned(), value));
    }
    let mut names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Failure::usage(format_args!("--secret {}", twice[0]), "is given twice", "give it once"));
    }
    if let Some((name, _)) = all.iter().find(|(_, value)| value.contains('\0')) {
        return Err(Failure::usage(format_args!("--secret {name}"), "contains a NUL character", "encode it"));
    }
    Ok(all)
}
