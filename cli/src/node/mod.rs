//! `nacre node` and the commands that drive a node: `tenant`, `deploy`, `invoke`, `ps`, `logs`, `describe`, `rm`, `migrate`.

pub mod args;
pub mod client;
pub mod context;
pub mod drive;
pub mod drive_args;
pub mod migrate;
pub mod migrate_args;
mod peers;
mod start;
mod tenant;

pub use start::command as start;
pub use tenant::command as tenant;

use crate::failure::Failure;
use args::{AdminTarget, NodeArgs, NodeCommand, Target, WorkerArgs};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::Client;
use context::Context;
use nacre_compile::worker::{Bounds, serve};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Where a node is when nobody says.
const DEFAULT_NODE: &str = "http://127.0.0.1:3233";

/// `nacre node`.
///
/// # Errors
/// Why the node does not start, or what it says.
pub fn command(args: NodeArgs) -> Result<ExitCode, Failure> {
    match args.command {
        NodeCommand::Start(args) => start(*args),
        NodeCommand::Identity(args) => peers::identity(&args),
        NodeCommand::Trust(args) => peers::trust(&args),
    }
}

/// `nacre compile-worker`.
///
/// # Errors
/// If its bounds can't be set.
pub fn worker(args: &WorkerArgs) -> Result<ExitCode, Failure> {
    let bounds = Bounds { memory_bytes: args.memory_bytes, cpu: Duration::from_secs(args.cpu_seconds) };
    serve(bounds).map_err(|error| Failure::new("compile-worker", error))?;
    Ok(ExitCode::SUCCESS)
}

/// `$XDG_STATE_HOME/nacre`, else `~/.local/state/nacre`.
fn default_state_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = var("XDG_STATE_HOME").filter(|dir| dir.is_absolute());
    Some(state.or_else(|| var("HOME").map(|home| home.join(".local/state")))?.join("nacre"))
}

/// The state directory that an option names, or the usual one.
pub(crate) fn state_dir(option: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let none =
        || Failure::usage("--state-dir", "there is no home directory to keep state in", "name a directory");
    option.or_else(default_state_dir).ok_or_else(none)
}

/// A token's file: its first line.
fn read_token(path: &std::path::Path) -> Result<String, Failure> {
    use std::os::unix::fs::PermissionsExt;
    let failure = |why: &dyn std::fmt::Display| Failure::new(path.display(), why);
    let reason = |error: std::io::Error| {
        failure(&format_args!("{}; check the path", crate::program::io_reason(&error)))
    };
    let mode = std::fs::metadata(path).map_err(reason)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(failure(&"holds a token and is open to other users; chmod 600 it"));
    }
    let text = std::fs::read_to_string(path).map_err(reason)?;
    let token = text.trim();
    if token.len() < 16 || token.contains(char::is_whitespace) {
        return Err(failure(
            &"holds no token; write one word of 16 characters or more, such as `openssl rand -hex 32` gives",
        ));
    }
    Ok(token.to_owned())
}

impl AdminTarget {
    /// The way to the administration.
    ///
    /// # Errors
    /// If the options name none.
    pub fn client(&self) -> Result<Client, Failure> {
        if let (Some(node), Some(token)) = (&self.node, &self.admin_token) {
            return Ok(Client::http(node)?.with_authorization(format!("Bearer {}", read_token(token)?)));
        }
        Ok(Client::unix(&state_dir(self.state_dir.clone())?.join("admin.sock")))
    }
}

impl Target {
    /// The way to the tenant's node.
    ///
    /// # Errors
    /// If nothing says who the tenant is.
    pub fn client(&self) -> Result<Client, Failure> {
        let context = match context::path() {
            Some(path) if self.auth.is_none() || self.node.is_none() => Context::read(&path)?,
            _ => Context::default(),
        };
        let name = self.tenant.as_ref().or(context.current.as_ref());
        let entry = name.and_then(|name| context.tenants.get(name));
        if let (Some(name), None, None) = (&self.tenant, entry, &self.auth) {
            let why = "is not in the context file; add the tenant, or pass --auth";
            return Err(Failure::new(format_args!("tenant {name}"), why));
        }
        let node = self.node.clone().or_else(|| entry.map(|entry| entry.node.clone()));
        let auth = self.auth.clone().or_else(|| entry.map(|entry| entry.auth.clone())).ok_or_else(|| {
            Failure::new("credentials", "there are none; add a tenant with nacre tenant add, or pass --auth")
        })?;
        let client = Client::http(node.as_deref().unwrap_or(DEFAULT_NODE))?;
        Ok(client.with_authorization(format!("Basic {}", STANDARD.encode(auth))))
    }
}
