//! `nacre node start`.

use super::args::{BackendArg, LogFormat, StartArgs};
use super::{read_token, state_dir};
use crate::failure::Failure;
use crate::log;
use crate::top::publish::Publisher;
use nacre_node::migration::Incomings;
use nacre_node::{Backend, NodeConfig};
use std::any::Any;
use std::process::ExitCode;
use std::sync::Arc;

/// Runs a node until it is told to end.
///
/// # Errors
/// Why it does not start.
pub fn command(args: StartArgs) -> Result<ExitCode, Failure> {
    if args.etcd.is_some() {
        return Err(Failure::new("--etcd", "clusters are not supported yet; start a single node without it"));
    }
    let backend = match args.backend {
        BackendArg::Auto | BackendArg::Kvm => Backend::Kvm,
        BackendArg::Process => {
            return Err(Failure::new("--backend process", "is not there yet; use a machine with /dev/kvm"));
        }
    };
    let admin_token = args.admin_token.as_deref().map(read_token).transpose()?;
    let config = NodeConfig {
        listen: args.listen,
        metrics_listen: args.metrics_listen,
        peer_listen: args.peer_listen,
        service_host: args.service_host,
        incomings: Incomings { max: args.max_incoming as usize, max_memory_bytes: args.max_incoming_memory },
        cpus: args.cpus,
        backend,
        admin_token,
        max_connections: args.max_connections as usize,
        max_cvms: args.max_cvms as usize,
        drain: args.drain,
        until_stdin_ends: args.until_stdin_ends,
        public_url: args.public_url,
        ..NodeConfig::new(state_dir(args.state_dir)?)
    };
    log::init_daemon(args.log_format == LogFormat::Json);
    let json = args.json;
    let mut ready = |at: &nacre_node::Addresses| {
        let peers = at.peers.map(|address| address.to_string());
        if json {
            let object = serde_json::json!({
                "listen": at.public.to_string(),
                "peer_listen": peers,
                "admin_socket": at.admin.to_string_lossy(),
            });
            println!("{object}");
        } else {
            let peers = peers.map(|address| format!(", other nodes at {address}")).unwrap_or_default();
            println!("nacre node: http://{}{peers}, administration at {}", at.public, at.admin.display());
        }
    };
    let publish: nacre_node::runner::Publish = Arc::new(|name, cvm| {
        let shown: Box<dyn Any + Send + Sync> = Box::new(Publisher::start(name, cvm.clone()));
        shown
    });
    nacre_node::run(config, Some(publish), &mut ready).map_err(|error| Failure::new("node", error))?;
    Ok(ExitCode::SUCCESS)
}
