//! `nacre keybroker`: what the owner leaves behind, so that CVMs get code and secrets while the owner is away.

use super::args::{KeybrokerAddArgs, KeybrokerArgs, KeybrokerCommand, KeybrokerListArgs};
use super::deploy::{code, kind, variables};
use super::{deploy_failure, printable, read_key, read_manifest, read_policy, session_failure};
use crate::failure::Failure;
use crate::node::client::{self, wait};
use nacre_attest::verify::hex;
use nacre_client::broker::{Broker, BrokerError, Event, Provisioned};
use nacre_client::deploy::Order;
use nacre_client::store::kind_name;
use nacre_client::{Service, SessionError, Store};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// Why it does not start; with `--once`, why the CVM got nothing.
pub fn command(args: &KeybrokerArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        Some(KeybrokerCommand::Add(args)) => add(args),
        Some(KeybrokerCommand::List(args)) => list(args),
        None => run(args),
    }
}

fn store(dir: &Path) -> Result<Store, Failure> {
    Store::open(dir).map_err(|error| Failure::new("--store", error))
}

fn run(args: &KeybrokerArgs) -> Result<ExitCode, Failure> {
    let (Some(policy), Some(dir), Some(key)) = (&args.policy, &args.store, &args.broker_key) else {
        let why = "needs --policy, --store and --broker-key";
        return Err(Failure::usage("keybroker", why, "see nacre keybroker --help"));
    };
    let broker = Broker {
        node: args.target.client()?.node().clone(),
        policy: read_policy(policy)?,
        key: read_key(key)?,
        store: store(dir)?,
    };
    // What can't be right with any node is said at once, damaged records too.
    if broker.policy.manifest.is_none() {
        return Err(session_failure(&policy.display().to_string(), SessionError::NoOwner));
    }
    broker.store.entries().map_err(|error| Failure::new("--store", error))?;
    let json = args.json;
    wait(async {
        let done = broker.run(args.once, |event| tell(json, &event)).await;
        done.map_err(failure)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn failure(error: BrokerError) -> Failure {
    match error {
        BrokerError::Node(error) => client::failure("keybroker", error),
        BrokerError::Session(error) => session_failure("keybroker", error),
        error => Failure::new("keybroker", error),
    }
}

fn pairs(pairs: &[(String, u64)]) -> Vec<String> {
    pairs.iter().map(|(name, version)| format!("{} {version}", printable(name))).collect()
}

fn tell(json: bool, event: &Event<'_>) {
    let line = match event {
        // Said by what follows.
        Event::Waiting => return,
        Event::Provisioned { generation, result } if json => provisioned_json(*generation, result),
        Event::Failed { error, pause } if json => {
            json!({ "event": "failed", "error": error.to_string(), "again_ms": pause.as_millis() as u64 })
        }
        Event::Provisioned { generation, result } => {
            println!("CVM {generation}: installed {}", list_of(&pairs(&result.installed)));
            if !result.present.is_empty() {
                println!("CVM {generation}: had {}", list_of(&pairs(&result.present)));
            }
            for (name, version, why) in &result.refused {
                eprintln!("nacre: CVM {generation}: {} {version}: {}", printable(name), printable(why));
            }
            return;
        }
        Event::Failed { error, pause } => {
            eprintln!(
                "nacre: keybroker: {}; goes on in {} ms",
                printable(&error.to_string()),
                pause.as_millis()
            );
            return;
        }
    };
    println!("{line}");
}

fn list_of(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn provisioned_json(generation: u64, result: &Provisioned) -> Value {
    let named = |pairs: &[(String, u64)]| -> Vec<Value> {
        pairs.iter().map(|(name, version)| json!({ "name": name, "version": version })).collect()
    };
    let refused: Vec<Value> = result
        .refused
        .iter()
        .map(|(name, version, why)| json!({ "name": name, "version": version, "why": why }))
        .collect();
    json!({
        "event": "provisioned",
        "generation": generation,
        "installed": named(&result.installed),
        "present": named(&result.present),
        "refused": refused,
    })
}

fn add(args: &KeybrokerAddArgs) -> Result<ExitCode, Failure> {
    let sealed = &args.sealed;
    let (manifest, policy) = (read_manifest(&sealed.manifest)?, read_policy(&sealed.policy)?);
    let (owner, compiler) = (read_key(&sealed.owner_key)?, read_key(&sealed.compiler_key)?);
    let env = variables(&sealed.secret, &sealed.secret_file)?;
    let store = store(&sealed.keybroker_store)?;
    let restart = args.restart.map(|restart| restart.word().to_owned());
    let service = args.port.map(|port| Service { port, restart });
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
        store: Some(&store),
    };
    let release = order.register(&store).map_err(|error| deploy_failure(&args.name, error))?;
    if args.json {
        println!(
            "{}",
            json!({ "name": release.name, "version": release.version, "code_sha256": hex(&release.code) })
        );
    } else {
        println!("{}: version {}, for the next CVM", printable(&release.name), release.version);
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &KeybrokerListArgs) -> Result<ExitCode, Failure> {
    let entries = store(&args.store)?.entries().map_err(|error| Failure::new("--store", error))?;
    if args.json {
        let all: Vec<Value> = entries
            .iter()
            .map(|entry| {
                let release = entry.release.as_ref();
                json!({
                    "name": entry.name,
                    "version": entry.version,
                    "removed": release.is_none(),
                    "kind": release.map(|release| kind_name(release.kind)),
                    "code_sha256": release.map(|release| hex(&release.code)),
                    "variables": release.map(|release| release.env.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()),
                    "port": release.and_then(|release| release.service.as_ref()).map(|service| service.port),
                })
            })
            .collect();
        println!("{}", Value::from(all));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<32} {:>8} {:<12} CODE", "NAME", "VERSION", "KIND");
    for entry in &entries {
        let kind = entry.release.as_ref().map_or("removed", |release| kind_name(release.kind));
        let code = entry.release.as_ref().map_or_else(String::new, |release| hex(&release.code));
        println!("{:<32} {:>8} {kind:<12} {code}", printable(&entry.name), entry.version);
    }
    Ok(ExitCode::SUCCESS)
}
