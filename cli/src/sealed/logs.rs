//! `nacre logs --policy`: the log of a sealed service, which its CVM gives to the owner and brokers only.

use super::{printable, read_key, read_policy, session_failure};
use crate::failure::Failure;
use crate::node::client::wait;
use crate::node::drive_args::LogsArgs;
use nacre_client::{Expectations, SealedSession};
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// What node or CVM say.
pub fn command(args: &LogsArgs, policy: &Path, key: &Path) -> Result<ExitCode, Failure> {
    let client = args.target.client()?;
    let (policy, key) = (read_policy(policy)?, read_key(key)?);
    let work = async {
        let mut session = SealedSession::open(client.node(), &policy, &Expectations::new()).await?;
        session.logs(&args.what, 0, &key).await
    };
    let (first, bytes) = wait(async { work.await.map_err(|error| session_failure(&args.what, error)) })?;
    let text = String::from_utf8_lossy(&bytes);
    if args.json {
        let lines: Vec<&str> = text.lines().collect();
        println!(
            "{}",
            serde_json::json!({ "name": args.what, "sealed": true, "first_byte": first, "lines": lines })
        );
        return Ok(ExitCode::SUCCESS);
    }
    if first != 0 {
        eprintln!("the first {first} bytes are gone: a CVM keeps the last 64 KiB");
    }
    text.lines().for_each(|line| println!("{}", printable(line)));
    Ok(ExitCode::SUCCESS)
}
