//! The command lines of the node and of what drives it.

use crate::values::{parse_memory, parse_time_limit};
use clap::{Args, Subcommand, value_parser};
use nacre_node::peers::{Fingerprint, PeerUrl};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// `nacre node`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct NodeArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// `nacre node ...`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Run a node in the foreground, until SIGTERM or Ctrl-C
    Start(Box<StartArgs>),
    /// Show who a node is for other nodes, and how they come to trust it
    Identity(IdentityArgs),
    /// Trust another node, list those that are trusted, or trust one no more
    Trust(Box<TrustArgs>),
}

impl NodeArgs {
    /// Whether output is to be JSON.
    #[must_use]
    pub fn json(&self) -> bool {
        match &self.command {
            NodeCommand::Start(args) => args.json,
            NodeCommand::Identity(args) => args.json,
            NodeCommand::Trust(args) => args.json,
        }
    }
}

/// `nacre node identity`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nacre node identity\n  nacre node identity --json | jq -r .fingerprint")]
pub struct IdentityArgs {
    /// The node's administration
    #[command(flatten)]
    pub target: AdminTarget,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre node trust`.
#[derive(Debug, Args)]
#[command(
    override_usage = "nacre node trust HOST:PORT --fingerprint HEX [--name NAME]\n       nacre node trust --list\n       nacre node trust --remove HEX",
    after_help = "Nodes trust each other by their keys, and both have to: run `nacre node identity` on each, and what it prints on the other. Without \
    --fingerprint the other node is asked for it, and nothing is changed.\n\nExamples:\n  \
    nacre node trust 10.0.0.2:3234 --fingerprint 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --name east\n  \
    nacre node trust --list\n  \
    nacre node trust --remove 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["peer", "list", "remove"]))]
pub struct TrustArgs {
    /// The other node's --peer-listen
    #[arg(value_name = "HOST:PORT")]
    pub peer: Option<PeerUrl>,
    /// Its fingerprint, as `nacre node identity` prints it there
    #[arg(long, value_name = "HEX", requires = "peer")]
    pub fingerprint: Option<Fingerprint>,
    /// What to call it
    #[arg(long, value_name = "NAME", requires = "peer")]
    pub name: Option<String>,
    /// List the nodes that are trusted
    #[arg(long)]
    pub list: bool,
    /// Trust the node with this fingerprint no more; its connections end
    #[arg(long, value_name = "HEX")]
    pub remove: Option<Fingerprint>,
    /// The node's administration
    #[command(flatten)]
    pub target: AdminTarget,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum BackendArg {
    /// What this machine has
    #[default]
    Auto,
    /// Real virtual machines; needs /dev/kvm
    Kvm,
    /// Processes instead of virtual machines
    Process,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// `nacre node start`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre node start\n  \
    nacre node start --listen 0.0.0.0:3233 --state-dir /var/lib/nacre --cpus 8 --log-format json\n  \
    nacre node start --metrics-listen 127.0.0.1:9100 --peer-listen 10.0.0.1:3234\n\n\
    Log: NACRE_LOG, such as info (default), debug or nacre_node=debug,warn; on standard error.")]
pub struct StartArgs {
    /// Address of the HTTP interface; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3233")]
    pub listen: SocketAddr,
    /// Everything durable is kept here [default: $XDG_STATE_HOME/nacre, else ~/.local/state/nacre]
    #[arg(long, value_name = "DIR", env = "NACRE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address for other nodes, which have to be trusted (nacre node trust) [default: no other nodes]
    #[arg(long, value_name = "ADDR")]
    pub peer_listen: Option<SocketAddr>,
    /// Address at which clients of services connect [default: that of --listen]
    #[arg(long, value_name = "IP")]
    pub service_host: Option<IpAddr>,
    /// Migrations that may come to this node at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u32).range(0..=1024))]
    pub max_incoming: u32,
    /// Memory of the CVMs that may come at once
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = crate::values::parse_size)]
    pub max_incoming_memory: u64,
    /// Physical CPUs that the workers of all CVMs share [default: all that this process may use]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,
    /// Where CVMs come from
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendArg,
    /// Serve /metrics on this address without a key
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,
    /// Allow administration and metrics on the HTTP interface with the token in this file (0600)
    #[arg(long, value_name = "FILE")]
    pub admin_token: Option<PathBuf>,
    /// Client connections at once
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// CVMs at once; beyond that the one that is idle longest has to go
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = value_parser!(u32).range(1..=65_536))]
    pub max_cvms: u32,
    /// How long hand-overs of tenants and running activations may go on after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_time_limit)]
    pub drain: Duration,
    /// Stop also when standard input ends, for a node that must not outlive who started it
    #[arg(long)]
    pub until_stdin_ends: bool,
    /// The URL that actions are told, if it is not the address listened on
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// Members of a cluster
    #[arg(long, value_name = "ENDPOINTS", hide = true)]
    pub etcd: Option<String>,
    /// Form of the log
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Print errors as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre compile-worker`: a node's child.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Bound of the address space in bytes
    #[arg(long)]
    pub memory_bytes: u64,
    /// Bound of the CPU time in seconds
    #[arg(long)]
    pub cpu_seconds: u64,
}

/// How to reach a node.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The node [default: the context's, else http://127.0.0.1:3233]
    #[arg(long, value_name = "URL", env = "NACRE_NODE")]
    pub node: Option<String>,
    /// The tenant's credentials, uuid:key [default: the context's]
    #[arg(long, alias = "key", value_name = "UUID:KEY", env = "NACRE_AUTH", hide_env_values = true)]
    pub auth: Option<String>,
    /// Which tenant of the context file [default: the one added last]
    #[arg(long, value_name = "NAME", env = "NACRE_TENANT")]
    pub tenant: Option<String>,
}

/// How to reach a node's administration.
#[derive(Debug, Clone, Args)]
pub struct AdminTarget {
    /// The node's state directory, whose socket is used [default: as for nacre node start]
    #[arg(long, value_name = "DIR", env = "NACRE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Reach the node over HTTP instead; needs --admin-token
    #[arg(long, value_name = "URL", requires = "admin_token")]
    pub node: Option<String>,
    /// File with the administrator's token
    #[arg(long, value_name = "FILE", requires = "node")]
    pub admin_token: Option<PathBuf>,
}

/// `nacre tenant`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct TenantArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TenantCommand,
}

impl TenantArgs {
    /// Whether output is to be JSON.
    #[must_use]
    pub fn json(&self) -> bool {
        match &self.command {
            TenantCommand::Add(args) => args.json,
            TenantCommand::List(args) => args.json,
            TenantCommand::Rm(args) => args.json,
        }
    }
}

/// `nacre tenant ...`.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Add a tenant; prints its credentials, which can't be shown again, and keeps them in the context file
    Add(Box<TenantAddArgs>),
    /// List the tenants and their limits
    List(TenantListArgs),
    /// Remove a tenant and everything it has
    Rm(TenantRmArgs),
}

/// `nacre tenant add`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre tenant add guest\n  \
    nacre tenant add team-a --memory 4GiB --workers-max 8 --concurrency 500 --json")]
pub struct TenantAddArgs {
    /// Its name, which is its namespace
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Memory of its CVM
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<crate::values::MemorySize>,
    /// Workers its CVM always gets at once
    #[arg(long, value_name = "N")]
    pub workers_min: Option<u32>,
    /// Workers its CVM gets at most
    #[arg(long, value_name = "N")]
    pub workers_max: Option<u32>,
    /// Its share of the CPUs relative to other tenants, 1 to 10000
    #[arg(long, value_name = "N")]
    pub cpu_weight: Option<u32>,
    /// Activations at once
    #[arg(long, value_name = "N")]
    pub concurrency: Option<u32>,
    /// Largest request
    #[arg(long, value_name = "SIZE", value_parser = crate::values::parse_size)]
    pub request_size: Option<u64>,
    /// Longest time limit of an action
    #[arg(long, value_name = "DURATION", value_parser = parse_time_limit)]
    pub time_limit: Option<Duration>,
    /// Actions and services it may have
    #[arg(long, value_name = "N")]
    pub actions: Option<u32>,
    /// Activations that are kept
    #[arg(long, value_name = "N")]
    pub activations: Option<u32>,
    /// How long its CVM is kept without work
    #[arg(long, value_name = "DURATION", value_parser = parse_time_limit)]
    pub idle: Option<Duration>,
    /// Leave the context file as it is
    #[arg(long)]
    pub no_context: bool,
    /// The node's administration
    #[command(flatten)]
    pub target: AdminTarget,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre tenant list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nacre tenant list\n  nacre tenant list --json")]
pub struct TenantListArgs {
    /// The node's administration
    #[command(flatten)]
    pub target: AdminTarget,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre tenant rm`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nacre tenant rm guest")]
pub struct TenantRmArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The node's administration
    #[command(flatten)]
    pub target: AdminTarget,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}
