//! What a node is started with.

use crate::migration::Incomings;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Where CVMs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backend {
    /// `/dev/kvm`.
    #[default]
    Kvm,
}

/// Everything `nacre node start` takes.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where the public API listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Where `/metrics` is served without a key, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Where other nodes connect; without it this node knows no others.
    pub peer_listen: Option<SocketAddr>,
    /// Where clients of services connect, if not where the public API listens.
    pub service_host: Option<IpAddr>,
    /// What is taken of other nodes at once.
    pub incomings: Incomings,
    /// Everything durable is below this directory.
    pub state_dir: PathBuf,
    /// The software platform whose root signs for this node; in the state directory if none is named.
    pub platform_dir: Option<PathBuf>,
    /// Physical CPUs that the workers of all CVMs share; `None` for all that this process may use.
    pub cpus: Option<u32>,
    /// Where CVMs come from.
    pub backend: Backend,
    /// A token that opens the administrative API on the public port; without one it is on the Unix socket only.
    pub admin_token: Option<String>,
    /// Client connections at once; more wait in the kernel's queue.
    pub max_connections: usize,
    /// CVMs at once. Beyond that the one that is idle longest has to go.
    pub max_cvms: usize,
    /// How long tenants between two nodes and running activations may go on after SIGTERM.
    pub drain: Duration,
    /// Also stop when standard input ends, as on SIGTERM: whoever started the node is gone then.
    pub until_stdin_ends: bool,
    /// The address that actions and clients are told, if it is not the one listened on.
    pub public_url: Option<String>,
    /// The program that compiles modules: this very binary.
    pub compiler: PathBuf,
}

impl NodeConfig {
    /// The defaults for a state directory.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3233)),
            metrics_listen: None,
            peer_listen: None,
            service_host: None,
            incomings: Incomings { max: 4, max_memory_bytes: 16 << 30 },
            state_dir,
            platform_dir: None,
            cpus: None,
            backend: Backend::Kvm,
            admin_token: None,
            max_connections: 4096,
            max_cvms: 128,
            drain: Duration::from_secs(30),
            until_stdin_ends: false,
            public_url: None,
            // The running binary, also when its file has been replaced since.
            compiler: PathBuf::from("/proc/self/exe"),
        }
    }
}
