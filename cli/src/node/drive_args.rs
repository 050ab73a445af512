//! The command lines of what a tenant does with a node.

use super::args::Target;
use crate::sealed::args::SealedDeployArgs;
use crate::values::parse_time_limit;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// `--restart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RestartArg {
    /// However it ended (default)
    Always,
    /// Unless it ended with code 0
    OnFailure,
    /// Never
    Never,
}

impl RestartArg {
    /// As the node writes it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        }
    }
}

/// `nacre deploy`.
#[derive(Debug, Args)]
#[command(
    disable_version_flag = true,
    after_help = "Examples:\n  \
    nacre deploy hello hello.wasm\n  \
    nacre deploy thumbnail thumbnail.wasm --timeout 10s --memory 128 --json\n  \
    nacre deploy store kv.wasm --service --port 6379 --restart on-failure\n  \
    nacre deploy pay pay.wasm --manifest manifest.signed --policy policy.toml --owner-key owner.key --compiler-key compiler.key --secret TOKEN --keybroker-store store\n\n\
    A function gets its parameters as a JSON object on standard input, and the last JSON object it prints is its result. A service accepts TCP connections on the socket that it finds open."
)]
pub struct DeployArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The program: a WASI preview 1 command, as .wasm
    #[arg(value_name = "MODULE")]
    pub module: PathBuf,
    /// Time limit of a call
    #[arg(long, value_name = "DURATION", value_parser = parse_time_limit)]
    pub timeout: Option<Duration>,
    /// Linear memory of a call, in MiB
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// Logs of a call, in MiB
    #[arg(long, value_name = "MIB")]
    pub logs: Option<u64>,
    /// Deploy a service: a program that runs all the time
    #[arg(long, requires = "port", conflicts_with_all = ["timeout", "memory", "logs"])]
    pub service: bool,
    /// Where a service's clients connect
    #[arg(long, value_name = "P", requires = "service", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// When a service is started again
    #[arg(long, value_enum, requires = "service")]
    pub restart: Option<RestartArg>,
    /// An argument for a service. Repeatable
    #[arg(long = "arg", value_name = "ARG", requires = "service", allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// The tenant's node
    #[command(flatten)]
    pub target: Target,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have help of their own")]
    pub sealed: SealedDeployArgs,
}

/// `nacre invoke`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre invoke hello --param name=World\n  \
    nacre invoke hello --params '{\"name\": \"World\"}' --json\n  \
    nacre invoke report --params @input.json --no-wait\n  \
    nacre invoke pay --policy policy.toml --data @order.json\n\n\
    Prints the result. Exit code 1 if the function fails. With --policy the call is sealed: the CVM has to prove itself first, and only it and you see input, result and logs.")]
pub struct InvokeArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// A parameter; the value is JSON, or else taken as text. Repeatable
    #[arg(long = "param", value_name = "KEY=VALUE")]
    pub param: Vec<String>,
    /// All parameters: a JSON object, or @FILE with one
    #[arg(long, value_name = "JSON", conflicts_with = "param")]
    pub params: Option<String>,
    /// Its input: JSON, @FILE, or - for standard input. A plain call takes a JSON object, a sealed one any bytes
    #[arg(long, value_name = "JSON|@FILE|-", conflicts_with_all = ["param", "params"], allow_hyphen_values = true)]
    pub data: Option<String>,
    /// Call it sealed, in a CVM that this policy accepts
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Print the activation's id and do not wait for its end
    #[arg(long)]
    pub no_wait: bool,
    /// The tenant's node
    #[command(flatten)]
    pub target: Target,
    /// Print the whole activation, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre ps`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nacre ps\n  nacre ps --json")]
pub struct PsArgs {
    /// The tenant's node
    #[command(flatten)]
    pub target: Target,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nacre logs hello\n  nacre logs hello --last 20\n  nacre logs 0190f5e1c2a47e3b8d6f1a2b3c4d5e6f --json\n  nacre logs store --policy policy.toml --owner-key owner.key"
)]
pub struct LogsArgs {
    /// A deployment's name, or an activation's id
    #[arg(value_name = "NAME|ID")]
    pub what: String,
    /// How many activations of a deployment to show, 1 to 200
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=200))]
    pub last: u8,
    /// The log of a sealed service, from a CVM that this policy accepts
    #[arg(long, value_name = "FILE", requires = "owner_key", conflicts_with = "last")]
    pub policy: Option<PathBuf>,
    /// Signs the request for a sealed service's log: the owner's key, or a broker's
    #[arg(long, value_name = "FILE", requires = "policy")]
    pub owner_key: Option<PathBuf>,
    /// The tenant's node
    #[command(flatten)]
    pub target: Target,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre describe`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nacre describe\n  nacre describe hello --json")]
pub struct DescribeArgs {
    /// Its name [default: all]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// The tenant's node
    #[command(flatten)]
    pub target: Target,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre rm`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nacre rm hello\n  nacre rm one two three\n  nacre rm pay --policy policy.toml --owner-key owner.key --keybroker-store store"
)]
pub struct RmArgs {
    /// What to remove
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Remove what is sealed, from a CVM that this policy accepts
    #[arg(long, value_name = "FILE", requires = "owner_key")]
    pub policy: Option<PathBuf>,
    /// Signs the removal: the owner's key, or a broker's
    #[arg(long, value_name = "FILE", requires = "policy")]
    pub owner_key: Option<PathBuf>,
    /// Also take it from the key broker with this store
    #[arg(long, value_name = "DIR", requires = "policy")]
    pub keybroker_store: Option<PathBuf>,
    /// The tenant's node
    #[command(flatten)]
    pub target: Target,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}
