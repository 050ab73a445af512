//! `nacre tunnel`: plain TCP here, TLS to a sealed service, whose evidence is judged for each connection.

use super::args::TunnelArgs;
use super::{printable, read_policy};
use crate::failure::Failure;
use crate::node::client::{segment, wait};
use crate::program::io_reason;
use nacre_client::session::fetch;
use nacre_client::tunnel::Tunnel;
use nacre_client::{Expectations, Policy};
use std::process::ExitCode;
use tokio::net::TcpListener;

/// Runs the command.
///
/// # Errors
/// Why it does not listen.
pub fn command(args: &TunnelArgs) -> Result<ExitCode, Failure> {
    let policy = read_policy(&args.policy)?;
    let (address, chain) = place(args)?;
    let tunnel = Tunnel::new(address.clone(), policy, chain)
        .map_err(|error| Failure::new(args.policy.display(), error))?;
    wait(async {
        let failed = |error: std::io::Error| {
            let why = io_reason(&error);
            Failure::new(
                format_args!("--listen {}", args.listen),
                format_args!("{why}; choose another address"),
            )
        };
        let listener = TcpListener::bind(args.listen).await.map_err(failed)?;
        let here = listener.local_addr().map_err(failed)?;
        if args.json {
            println!("{}", serde_json::json!({ "listen": here.to_string(), "service": address }));
        } else {
            println!("nacre tunnel: {here}, to {}", printable(&address));
        }
        tunnel.serve(listener, |error| eprintln!("nacre: tunnel: {}", printable(&error.to_string()))).await;
        Ok(ExitCode::SUCCESS)
    })
}

/// The service's address; and, of a node that is known, the certificates that its evidence may come without.
fn place(args: &TunnelArgs) -> Result<(String, Vec<Vec<u8>>), Failure> {
    if args.service.contains(':') {
        return Ok((args.service.clone(), Vec::new()));
    }
    let client = args.target.client()?;
    let path = format!("/v1/deployments/{}", segment(&args.service));
    let answer = client.send(hyper::Method::GET, &path, "application/json", Vec::new())?;
    let view = answer.success(&args.service)?.json()?;
    let address = view["address"]
        .as_str()
        .ok_or_else(|| Failure::new(printable(&args.service), "is no service; name one, or its HOST:PORT"))?;
    let chain = wait(async {
        let fetched = fetch(client.node(), &Policy::default(), &Expectations::new()).await;
        Ok(fetched.map(|(evidence, ..)| evidence.certificates).unwrap_or_default())
    })?;
    Ok((address.to_owned(), chain))
}
