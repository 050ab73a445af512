//! `nacre tenant`: tenants of a node, through its administration.

use super::args::{AdminTarget, TenantAddArgs, TenantArgs, TenantCommand};
use super::context::{self, Context, Entry};
use crate::failure::Failure;
use crate::values::format_size;
use hyper::Method;
use serde_json::{Map, Value};
use std::process::ExitCode;

const JSON: &str = "application/json";

/// Runs the command.
///
/// # Errors
/// What the node says.
pub fn command(args: &TenantArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        TenantCommand::Add(args) => add(args),
        TenantCommand::List(args) => list(&args.target, args.json),
        TenantCommand::Rm(args) => remove(&args.name, &args.target, args.json),
    }
}

fn add(args: &TenantAddArgs) -> Result<ExitCode, Failure> {
    let client = args.target.client()?;
    let ms = |limit: std::time::Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let limits = [
        ("memory_bytes", args.memory.map(|memory| memory.bytes())),
        ("workers_min", args.workers_min.map(u64::from)),
        ("workers_max", args.workers_max.map(u64::from)),
        ("cpu_weight", args.cpu_weight.map(u64::from)),
        ("concurrency", args.concurrency.map(u64::from)),
        ("request_bytes", args.request_size),
        ("time_ms", args.time_limit.map(ms)),
        ("actions", args.actions.map(u64::from)),
        ("activations", args.activations.map(u64::from)),
        ("idle_ms", args.idle.map(ms)),
    ];
    let given = limits.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Value::from(value?))));
    let limits: Map<String, Value> = given.collect();
    let body = serde_json::json!({ "name": args.name, "limits": limits });
    let what = format!("tenant {}", args.name);
    let answer =
        client.send(Method::POST, "/v1/tenants", JSON, body.to_string().into_bytes())?.success(&what)?;
    let added = answer.json()?;
    let field = |name: &str| added.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !args.no_context {
        let node = args.target.node.clone().unwrap_or_else(|| field("node"));
        remember(&args.name, Entry { node, auth: field("auth") })?;
    }
    if args.json {
        println!("{added}");
    } else {
        println!("{}", field("auth"));
        if !args.no_context {
            eprintln!("nacre: the credentials of {} are kept in the context file", args.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn remember(name: &str, entry: Entry) -> Result<(), Failure> {
    let Some(path) = context::path() else { return Ok(()) };
    let mut context = Context::read(&path)?;
    context.tenants.insert(name.to_owned(), entry);
    context.current = Some(name.to_owned());
    context.write(&path)
}

fn forget(name: &str) -> Result<(), Failure> {
    let Some(path) = context::path() else { return Ok(()) };
    let mut context = Context::read(&path)?;
    if context.tenants.remove(name).is_none() {
        return Ok(());
    }
    if context.current.as_deref() == Some(name) {
        context.current = context.tenants.keys().next().cloned();
    }
    context.write(&path)
}

fn list(target: &AdminTarget, json: bool) -> Result<ExitCode, Failure> {
    let answer = target.client()?.send(Method::GET, "/v1/tenants", JSON, Vec::new())?.success("tenants")?;
    let tenants = answer.json()?;
    if json {
        println!("{tenants}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<24} {:>9} {:>9} {:>12}  CREATED", "NAME", "MEMORY", "WORKERS", "CONCURRENCY");
    for tenant in tenants.as_array().into_iter().flatten() {
        let limit = |name: &str| tenant["limits"][name].as_u64().unwrap_or(0);
        println!(
            "{:<24} {:>9} {:>9} {:>12}  {}",
            tenant["name"].as_str().unwrap_or("?"),
            format_size(limit("memory_bytes")),
            format!("{}-{}", limit("workers_min"), limit("workers_max")),
            limit("concurrency"),
            tenant["created"].as_str().unwrap_or("?"),
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(name: &str, target: &AdminTarget, json: bool) -> Result<ExitCode, Failure> {
    let path = format!("/v1/tenants/{}", super::client::segment(name));
    target.client()?.send(Method::DELETE, &path, JSON, Vec::new())?.success(format_args!("tenant {name}"))?;
    forget(name)?;
    if json {
        println!("{}", serde_json::json!({ "removed": name }));
    }
    Ok(ExitCode::SUCCESS)
}
