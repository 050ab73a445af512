//! `nacre deploy`, `invoke`, `ps`, `logs`, `describe`, `rm`: a tenant and its node, over `/v1`.

use super::client::{Answer, Client, segment};
use super::drive_args::{DeployArgs, DescribeArgs, InvokeArgs, LogsArgs, PsArgs, RmArgs};
use crate::failure::{EXIT_FAILED, Failure};
use crate::program::{io_reason, read_file};
use crate::sealed;
use crate::spinner;
use crate::values::format_size;
use hyper::{Method, StatusCode};
use serde_json::{Map, Value};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

const JSON: &str = "application/json";
const WASM: &str = "application/wasm";
/// Longest input of a call.
const MAX_STDIN_BYTES: u64 = 64 << 20;
/// What a call without a policy is.
const PLAIN: &str = "plain: the node sees it";

fn get(client: &Client, what: &str, path: &str) -> Result<Value, Failure> {
    client.send(Method::GET, path, JSON, Vec::new())?.success(what)?.json()
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or("-")
}

/// Names and logs come from the tenant and its programs: nothing in them may act on the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect()
}

/// `nacre deploy`.
///
/// # Errors
/// What the node says.
pub fn deploy(args: &DeployArgs) -> Result<ExitCode, Failure> {
    if let Some(manifest) = &args.sealed.manifest {
        return sealed::deploy(args, manifest);
    }
    let client = args.target.client()?;
    let module = read(&args.module)?;
    let ms = args.timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
    let options = [("timeout_ms", ms), ("memory_mb", args.memory), ("logs_mb", args.logs)];
    let options = options.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?)));
    let query = options.chain(service_options(args)).collect::<Vec<_>>().join("&");
    let path = format!("/v1/deployments/{}?{query}", segment(&args.name));
    let message = format!("deploying {} ({})", args.name, format_size(module.len() as u64));
    let answer = spinner::during(&message, || client.send(Method::PUT, &path, WASM, module))?;
    let deployed = answer.success(&args.name)?.json()?;
    if args.json {
        println!("{deployed}");
    } else {
        let at = deployed["address"].as_str().map(|address| format!(" at {address}")).unwrap_or_default();
        println!("{}: version {}{at}", printable(&args.name), text(&deployed, "version"));
    }
    Ok(ExitCode::SUCCESS)
}

fn service_options(args: &DeployArgs) -> Vec<String> {
    let (Some(port), true) = (args.port, args.service) else { return Vec::new() };
    let mut options = vec!["service=true".to_owned(), format!("port={port}")];
    options.extend(args.restart.map(|restart| format!("restart={}", restart.word())));
    if !args.args.is_empty() {
        options.push(format!("args={}", segment(&Value::from(args.args.clone()).to_string())));
    }
    options
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    read_file(path).map_err(|error| {
        Failure::new(
            path.display(),
            format_args!("{}; check the path and its permissions", io_reason(&error)),
        )
    })
}

/// `nacre invoke`.
///
/// # Errors
/// What the node says; that the function fails is an exit code.
pub fn invoke(args: &InvokeArgs) -> Result<ExitCode, Failure> {
    if let Some(policy) = &args.policy {
        return sealed::invoke(args, policy, &parameters(args)?);
    }
    let client = args.target.client()?;
    let body = parameters(args)?;
    let wait = if args.no_wait { "?wait_ms=0" } else { "" };
    let path = format!("/v1/deployments/{}/invoke{wait}", segment(&args.name));
    let message = format!("calling {}", args.name);
    let call = || -> Result<Answer, Failure> {
        let mut answer = client.send(Method::POST, &path, JSON, body)?.success(&args.name)?;
        while answer.status == StatusCode::ACCEPTED && !args.no_wait {
            answer = poll(&client, &args.name, &answer)?;
        }
        Ok(answer)
    };
    let mut activation = spinner::during(&message, call)?.json()?;
    if args.json {
        activation["sealed"] = false.into();
        activation["label"] = PLAIN.into();
        println!("{activation}");
    } else if args.no_wait {
        println!("{}", text(&activation, "id"));
        return Ok(ExitCode::SUCCESS);
    } else {
        println!("{}", serde_json::to_string_pretty(&activation["result"]).unwrap_or_default());
    }
    if matches!(text(&activation, "status"), "success" | "running") {
        if !args.json {
            eprintln!("nacre: {}: {PLAIN}", printable(&args.name));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.json {
        let status = text(&activation, "status").replace('_', " ");
        eprintln!(
            "nacre: {}: {status} ({PLAIN}); nacre logs {} shows more",
            printable(&args.name),
            text(&activation, "id")
        );
    }
    Ok(ExitCode::from(EXIT_FAILED))
}

/// Pause between two questions about a call that goes on: the node tells its end to nobody by itself.
const POLL_PAUSE: Duration = Duration::from_secs(1);

/// A call that outlasts the node's patience is asked for until it is over.
fn poll(client: &Client, name: &str, answer: &Answer) -> Result<Answer, Failure> {
    let running = answer.json()?;
    let id = running.get("id").and_then(Value::as_str).ok_or_else(|| {
        Failure::new("node", "its answer names no activation; is there a nacre node at this address?")
    })?;
    std::thread::sleep(POLL_PAUSE);
    let path = format!("/v1/activations/{}", segment(id));
    let mut now = client.send(Method::GET, &path, JSON, Vec::new())?.success(name)?;
    if text(&now.json()?, "status") == "running" {
        now.status = StatusCode::ACCEPTED;
    }
    Ok(now)
}

fn parameters(args: &InvokeArgs) -> Result<Vec<u8>, Failure> {
    if let Some(data) = &args.data {
        let given = match (data.as_str(), data.strip_prefix('@')) {
            ("-", _) => read_stdin()?,
            (_, Some(file)) => read(Path::new(file))?,
            (_, None) => data.clone().into_bytes(),
        };
        // What a sealed action takes is nobody's business.
        return if args.policy.is_some() { Ok(given) } else { object("--data", given) };
    }
    if let Some(params) = &args.params {
        let given = match params.strip_prefix('@') {
            Some(file) => read(Path::new(file))?,
            None => params.clone().into_bytes(),
        };
        return object("--params", given);
    }
    let mut object = Map::new();
    for pair in &args.param {
        let wrong = || Failure::usage(format_args!("--param {pair}"), "has no '='", "write KEY=VALUE");
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        object.insert(key.to_owned(), value);
    }
    Ok(Value::from(object).to_string().into_bytes())
}

/// Checks that what an option gives is a JSON object.
fn object(option: &str, given: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let object = serde_json::from_slice::<Map<String, Value>>(&given);
    object.map_err(|error| {
        Failure::usage(option, format_args!("is no JSON object ({error})"), "write {\"key\": value}")
    })?;
    Ok(given)
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin().take(MAX_STDIN_BYTES + 1).read_to_end(&mut bytes).map_err(|error| {
        Failure::new("standard input", format_args!("{}; pipe a file into it", io_reason(&error)))
    })?;
    if bytes.len() as u64 > MAX_STDIN_BYTES {
        return Err(Failure::new("standard input", "has more than 64 MiB; send less"));
    }
    Ok(bytes)
}

/// `nacre ps`.
///
/// # Errors
/// What the node says.
pub fn ps(args: &PsArgs) -> Result<ExitCode, Failure> {
    let client = args.target.client()?;
    let mut state = get(&client, "ps", "/v1/ps")?;
    let packages = sealed_packages(&client)?;
    if args.json {
        state["sealed_packages"] = packages;
        println!("{state}");
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{}: {} of {} activations run",
        text(&state, "tenant"),
        state["activations"],
        state["concurrency"]
    );
    match state.get("cvm") {
        None => println!("no CVM: the first call makes one"),
        Some(cvm) => {
            let number = |field: &str| cvm[field].as_u64().unwrap_or(0);
            println!(
                "CVM: up {}, {} of {} workers active, {} waiting; {} of memory, {:.2} s of CPU, {} modules",
                humantime::format_duration(Duration::from_secs(number("age_ms") / 1000)),
                number("active"),
                number("workers"),
                number("waiting"),
                format_size(number("memory_bytes")),
                number("cpu_ns") as f64 / 1e9,
                number("modules"),
            );
        }
    }
    tell_packages(&packages);
    for service in state["services"].as_array().into_iter().flatten() {
        let status = &service["status"];
        println!(
            "service {} at {}: {}, {} connections, started again {} times{}",
            printable(text(service, "name")),
            text(service, "address"),
            text(status, "phase"),
            status["connections"].as_u64().unwrap_or(0),
            status["restarts"].as_u64().unwrap_or(0),
            status["last_end"]
                .as_str()
                .map(|end| format!("; last end: {}", printable(end)))
                .unwrap_or_default(),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The tenant's sealed packages; none on a node that knows no such thing.
fn sealed_packages(client: &Client) -> Result<Value, Failure> {
    let answer = client.send(Method::GET, "/v1/sealed/packages", JSON, Vec::new())?;
    match answer.status {
        StatusCode::NOT_FOUND => Ok(Value::Array(Vec::new())),
        _ => answer.success("sealed packages")?.json(),
    }
}

fn tell_packages(packages: &Value) {
    for package in packages.as_array().into_iter().flatten() {
        let size = format_size(package["bytes"].as_u64().unwrap_or(0));
        println!(
            "sealed package {}: {size}; what is in it, the node does not know",
            printable(text(package, "id"))
        );
    }
}

/// `nacre logs`.
///
/// # Errors
/// What the node says.
pub fn logs(args: &LogsArgs) -> Result<ExitCode, Failure> {
    if let (Some(policy), Some(key)) = (&args.policy, &args.owner_key) {
        return sealed::logs(args, policy, key);
    }
    let client = args.target.client()?;
    let is_id = args.what.len() == 32 && args.what.bytes().all(|c| c.is_ascii_hexdigit());
    let activations = if is_id {
        vec![get(&client, &args.what, &format!("/v1/activations/{}", segment(&args.what)))?]
    } else {
        // A name without a deployment is a mistake, not an empty log.
        let path = format!("/v1/deployments/{}", segment(&args.what));
        if text(&get(&client, &args.what, &path)?, "kind") == "service" {
            return service_logs(&client, args, &format!("{path}/logs"));
        }
        let path = format!("/v1/activations?full=true&limit={}&name={}", args.last, segment(&args.what));
        let found = get(&client, &args.what, &path)?;
        found.as_array().into_iter().flatten().rev().cloned().collect()
    };
    if args.json {
        println!("{}", Value::from(activations));
        return Ok(ExitCode::SUCCESS);
    }
    for activation in &activations {
        println!(
            "--- {} {} {} {} ms",
            text(activation, "id"),
            text(activation, "start"),
            text(activation, "status").replace('_', " "),
            activation["duration_ms"].as_u64().unwrap_or(0),
        );
        for line in activation["logs"].as_array().into_iter().flatten() {
            println!("{}", printable(line.as_str().unwrap_or_default()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn service_logs(client: &Client, args: &LogsArgs, path: &str) -> Result<ExitCode, Failure> {
    let lines = get(client, &args.what, path)?;
    if args.json {
        println!("{lines}");
        return Ok(ExitCode::SUCCESS);
    }
    for line in lines.as_array().into_iter().flatten() {
        println!("{}", printable(line.as_str().unwrap_or_default()));
    }
    Ok(ExitCode::SUCCESS)
}

/// `nacre describe`.
///
/// # Errors
/// What the node says.
pub fn describe(args: &DescribeArgs) -> Result<ExitCode, Failure> {
    let client = args.target.client()?;
    let Some(name) = &args.name else {
        let all = get(&client, "deployments", "/v1/deployments")?;
        if args.json {
            println!("{all}");
            return Ok(ExitCode::SUCCESS);
        }
        println!("{:<32} {:<8} {:>8} {:>10}  UPDATED", "NAME", "KIND", "VERSION", "MODULE");
        for one in all.as_array().into_iter().flatten() {
            let size = format_size(one["module_bytes"].as_u64().unwrap_or(0));
            let (name, kind, version) =
                (printable(text(one, "name")), text(one, "kind"), text(one, "version"));
            println!("{name:<32} {kind:<8} {version:>8} {size:>10}  {}", text(one, "updated"));
        }
        tell_packages(&sealed_packages(&client)?);
        return Ok(ExitCode::SUCCESS);
    };
    let one = get(&client, name, &format!("/v1/deployments/{}", segment(name)))?;
    if args.json {
        println!("{one}");
    } else {
        println!("{}", serde_json::to_string_pretty(&one).unwrap_or_default());
    }
    Ok(ExitCode::SUCCESS)
}

/// `nacre rm`.
///
/// # Errors
/// What the node says; those before the first failure are gone.
pub fn rm(args: &RmArgs) -> Result<ExitCode, Failure> {
    if let Some(policy) = &args.policy {
        return sealed::remove(args, policy);
    }
    let client = args.target.client()?;
    for name in &args.names {
        let path = format!("/v1/deployments/{}", segment(name));
        client.send(Method::DELETE, &path, JSON, Vec::new())?.success(name)?;
    }
    if args.json {
        println!("{}", serde_json::json!({ "removed": args.names }));
    }
    Ok(ExitCode::SUCCESS)
}
