//! `nacre node identity` and `nacre node trust`: who nodes are for each other, through a node's administration.

use super::args::{IdentityArgs, TrustArgs};
use crate::failure::Failure;
use hyper::Method;
use nacre_node::peers::{Fingerprint, PeerUrl};
use serde_json::Value;
use std::process::ExitCode;

const JSON: &str = "application/json";

/// `nacre node identity`.
///
/// # Errors
/// What the node says.
pub fn identity(args: &IdentityArgs) -> Result<ExitCode, Failure> {
    let answer = args.target.client()?.send(Method::GET, "/v1/identity", JSON, Vec::new())?;
    let identity = answer.success("identity")?.json()?;
    if args.json {
        println!("{identity}");
    } else {
        println!("fingerprint  {}", text(&identity, "fingerprint"));
        println!("to be trusted, run on the other node:\n  {}", text(&identity, "command"));
    }
    Ok(ExitCode::SUCCESS)
}

/// `nacre node trust`.
///
/// # Errors
/// What the node says.
pub fn trust(args: &TrustArgs) -> Result<ExitCode, Failure> {
    match (&args.peer, args.remove) {
        (Some(peer), _) => add(args, peer),
        (None, Some(fingerprint)) => remove(args, fingerprint),
        (None, None) => list(args),
    }
}

/// A member of an object as text; a dash if it has none.
fn text<'v>(object: &'v Value, member: &str) -> &'v str {
    object[member].as_str().unwrap_or("-")
}

fn add(args: &TrustArgs, peer: &PeerUrl) -> Result<ExitCode, Failure> {
    let body = serde_json::json!({ "url": peer, "fingerprint": args.fingerprint, "name": args.name });
    let answer =
        args.target.client()?.send(Method::POST, "/v1/peers", JSON, body.to_string().into_bytes())?;
    let added = answer.success("trust")?.json()?;
    if args.json {
        println!("{added}");
    } else {
        println!("{} with the fingerprint {} is trusted", text(&added, "url"), text(&added, "fingerprint"));
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &TrustArgs) -> Result<ExitCode, Failure> {
    let answer = args.target.client()?.send(Method::GET, "/v1/peers", JSON, Vec::new())?;
    let peers = answer.success("trust")?.json()?;
    if args.json {
        println!("{peers}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<64} {:<24} {:<24} SINCE", "FINGERPRINT", "NODE", "NAME");
    for peer in peers.as_array().into_iter().flatten() {
        let [fingerprint, url, name, since] =
            ["fingerprint", "url", "name", "added_at"].map(|member| text(peer, member));
        println!("{fingerprint:<64} {url:<24} {name:<24} {since}");
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(args: &TrustArgs, fingerprint: Fingerprint) -> Result<ExitCode, Failure> {
    let path = format!("/v1/peers/{fingerprint}");
    args.target.client()?.send(Method::DELETE, &path, JSON, Vec::new())?.success("trust")?;
    if args.json {
        println!("{}", serde_json::json!({ "removed": fingerprint }));
    }
    Ok(ExitCode::SUCCESS)
}
