//! `nacre rm --policy`: sealed code is taken out of the CVM, by the owner.

use super::{deploy_failure, read_key, read_policy};
use crate::failure::Failure;
use crate::node::client::wait;
use crate::node::drive_args::RmArgs;
use nacre_client::deploy::{Removal, remove};
use nacre_client::{Expectations, Store};
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// What node or CVM say; those before the first failure are gone.
pub fn command(args: &RmArgs, policy: &Path) -> Result<ExitCode, Failure> {
    let client = args.target.client()?;
    let policy = read_policy(policy)?;
    let key = args.owner_key.as_deref().ok_or_else(|| {
        Failure::usage("--policy", "needs the key that signs the removal", "add --owner-key FILE")
    })?;
    let key = read_key(key)?;
    let store = args.keybroker_store.as_deref().map(Store::open).transpose();
    let store = store.map_err(|error| Failure::new("--keybroker-store", error))?;
    let mut removed = Vec::new();
    for name in &args.names {
        let removal = Removal { policy: &policy, name, authority: &key, store: store.as_ref() };
        let version = wait(async {
            let done = remove(client.node(), &removal, &Expectations::provisioning()).await;
            done.map_err(|error| deploy_failure(name, error))
        })?;
        removed.push(serde_json::json!({ "name": name, "version": version }));
    }
    if args.json {
        println!("{}", serde_json::json!({ "sealed": true, "removed": removed }));
    }
    Ok(ExitCode::SUCCESS)
}
