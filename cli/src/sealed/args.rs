//! The command lines of evidence, manifests and sealed CVMs.

use crate::node::args::Target;
use crate::values::{EnvVar, MAX_WORKERS, MemorySize, parse_memory};
use clap::{Args, Subcommand, value_parser};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `nacre platform`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct PlatformArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PlatformCommand,
}

/// `nacre platform ...`.
#[derive(Debug, Subcommand)]
pub enum PlatformCommand {
    /// Make the root of a software platform, for development: it protects nothing
    Init(PlatformInitArgs),
}

/// `nacre platform init`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre platform init\n  \
    nacre platform init --dir platform --json\n\n\
    Whoever has the folder can sign any report. Policies accept it only with allow_software_platform = true and, best, its root in software_roots.")]
pub struct PlatformInitArgs {
    /// Where [default: platform in the node's state directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The node's state directory
    #[arg(long, value_name = "DIR", env = "NACRE_STATE_DIR", hide = true)]
    pub state_dir: Option<PathBuf>,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre manifest`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct ManifestArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ManifestCommand,
}

/// `nacre manifest ...`.
#[derive(Debug, Subcommand)]
pub enum ManifestCommand {
    /// Write a manifest to fill in, and the keys it names
    Init(ManifestInitArgs),
    /// Sign a manifest as its owner
    Sign(ManifestSignArgs),
    /// Give a node the manifest with which it launches the tenant's CVM
    Set(ManifestSetArgs),
}

/// `nacre manifest init`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre manifest init shop\n  \
    nacre manifest init shop --dir shop --broker\n  \
    nacre measure --policy > policy.toml && nacre manifest init shop --open --migrate-to policy.toml\n\n\
    Makes owner.key and compiler.key (with --broker also broker.key) if they are not there. Who has owner.key decides what runs in the CVMs.")]
pub struct ManifestInitArgs {
    /// Tenant or workload, for people
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where manifest.toml and the keys go
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Also make a key for a key broker and list it
    #[arg(long)]
    pub broker: bool,
    /// Plain deploys, no secrets: mode = "open"
    #[arg(long)]
    pub open: bool,
    /// Let the tenant move to CVMs that this policy accepts; without it nothing moves
    #[arg(long, value_name = "POLICY")]
    pub migrate_to: Option<PathBuf>,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre manifest sign`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nacre manifest sign manifest.toml --key owner.key -o manifest.signed")]
pub struct ManifestSignArgs {
    /// The manifest, as TOML
    #[arg(value_name = "FILE")]
    pub manifest: PathBuf,
    /// The owner's key
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Where the signed manifest goes
    #[arg(short, long, value_name = "FILE", default_value = "manifest.signed")]
    pub output: PathBuf,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre manifest set`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nacre manifest set manifest.signed\n\n\
    A CVM of the tenant that runs with another manifest is ended, so set it before anything is deployed. nacre deploy --manifest does it by itself.")]
pub struct ManifestSetArgs {
    /// The signed manifest
    #[arg(value_name = "SIGNED")]
    pub manifest: PathBuf,
    /// The node.
    #[command(flatten)]
    pub target: Target,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre measure`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre measure\n  \
    nacre measure --workers 8 --memory 2GiB --json\n  \
    nacre measure --policy --manifest manifest.signed --platform platform > policy.toml\n\n\
    Computes what a CVM of this shape proves about itself, from the guest image in this program. Defaults are those of a node's tenants.")]
pub struct MeasureArgs {
    /// Most workers of the CVM: the tenant's workers_max
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u8).range(0..=i64::from(MAX_WORKERS)))]
    pub workers: u8,
    /// Memory of the CVM
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = parse_memory)]
    pub memory: MemorySize,
    /// The debug image, which no policy accepts without allow_debug = true
    #[arg(long)]
    pub debug_image: bool,
    /// Print a policy that accepts these measurements
    #[arg(long, conflicts_with = "json")]
    pub policy: bool,
    /// Whose CVMs the policy accepts
    #[arg(long, value_name = "SIGNED", requires = "policy")]
    pub manifest: Option<PathBuf>,
    /// The software platform that the policy accepts, for development
    #[arg(long, value_name = "DIR", requires = "policy")]
    pub platform: Option<PathBuf>,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre attest`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct AttestArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AttestCommand,
}

/// `nacre attest ...`.
#[derive(Debug, Subcommand)]
pub enum AttestCommand {
    /// Show what is in a report or in evidence; judges nothing
    Show(AttestShowArgs),
    /// Judge a report or evidence, rule by rule
    Verify(AttestVerifyArgs),
    /// Fetch evidence of a node's CVM into a file
    Fetch(AttestFetchArgs),
}

/// `nacre attest show`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nacre attest show evidence.bin\n  nacre attest show - --json < report.bin"
)]
pub struct AttestShowArgs {
    /// An SEV-SNP report, binary or hexadecimal, or Nacre's evidence; - for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre attest verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre attest verify evidence.bin --policy policy.toml --nonce 5f1c...\n  \
    nacre attest verify report.bin --certs certs\n  \
    nacre attest verify report.bin --certs certs --policy policy.toml --json\n\n\
    Without --policy only what is genuine about it is judged. Exit code 1 if it is rejected.")]
pub struct AttestVerifyArgs {
    /// An SEV-SNP report, binary or hexadecimal, or Nacre's evidence; - for standard input
    #[arg(value_name = "REPORT")]
    pub file: PathBuf,
    /// A folder with the VCEK or VLEK, ASK and ARK, in DER or PEM; evidence brings its own
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// The policy
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// The nonce it must have: of evidence 32 bytes, of a report the beginning of REPORT_DATA
    #[arg(long, value_name = "HEX")]
    pub nonce: Option<String>,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre attest fetch`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre attest fetch -o evidence.bin\n  \
    nacre attest fetch --policy policy.toml\n\n\
    Prints the nonce that was sent. With --policy the evidence is judged too: exit code 1 if it is rejected.")]
pub struct AttestFetchArgs {
    /// Where the evidence goes
    #[arg(short, long, value_name = "FILE", default_value = "evidence.bin")]
    pub output: PathBuf,
    /// Judge it by this policy
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// The tenant's node
    #[command(flatten)]
    pub target: Target,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// What makes `nacre deploy` a sealed one.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sealed deploy")]
pub struct SealedDeployArgs {
    /// Deploy sealed, into CVMs of this signed manifest
    #[arg(long, value_name = "SIGNED", requires_all = ["policy", "owner_key", "compiler_key"], conflicts_with_all = ["timeout", "memory", "logs", "args"])]
    pub manifest: Option<PathBuf>,
    /// What the CVM must prove before it gets anything
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub policy: Option<PathBuf>,
    /// Signs the installation: the owner's key, or a broker's
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub owner_key: Option<PathBuf>,
    /// Signs the code
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub compiler_key: Option<PathBuf>,
    /// A variable of the program, which only the CVM learns; without a value, this process's. Repeatable
    #[arg(long, value_name = "K=V", requires = "manifest", value_parser = crate::values::parse_env)]
    pub secret: Vec<EnvVar>,
    /// The same, out of a file. Repeatable
    #[arg(long, value_name = "K=PATH", requires = "manifest")]
    pub secret_file: Vec<String>,
    /// The service's connections are TLS, which ends in the CVM
    #[arg(long, requires_all = ["service", "manifest"])]
    pub tls: bool,
    /// Its version [default: the next one]
    #[arg(long = "version", id = "number", value_name = "N", requires = "manifest")]
    pub number: Option<u64>,
    /// Also give it to the key broker with this store
    #[arg(long, value_name = "DIR", requires = "manifest")]
    pub keybroker_store: Option<PathBuf>,
}

/// `nacre keybroker`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
    nacre keybroker --node http://127.0.0.1:3233 --key UUID:KEY --policy policy.toml --store store --broker-key broker.key\n  \
    nacre keybroker --policy policy.toml --store store --broker-key owner.key --once\n  \
    nacre keybroker list --store store\n\n\
    Run it where the owner trusts the machine. It gives code and secrets to every CVM of the node that the policy accepts; STORE/audit.jsonl says what and to whom."
)]
pub struct KeybrokerArgs {
    /// What else to do.
    #[command(subcommand)]
    pub command: Option<KeybrokerCommand>,
    /// What a CVM must prove
    #[arg(long, value_name = "FILE", required = true)]
    pub policy: Option<PathBuf>,
    /// What it has to give: `nacre deploy --keybroker-store` puts it there
    #[arg(long, value_name = "DIR", required = true)]
    pub store: Option<PathBuf>,
    /// Signs its commands: a key that the manifest names as a broker's, or the owner's
    #[arg(long, value_name = "FILE", required = true)]
    pub broker_key: Option<PathBuf>,
    /// Provision one CVM and end
    #[arg(long)]
    pub once: bool,
    /// The tenant's node; --key is --auth
    #[command(flatten)]
    pub target: Target,
    /// Print what happens, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre keybroker ...`.
#[derive(Debug, Subcommand)]
pub enum KeybrokerCommand {
    /// Seal a program and register it, without a node
    Add(Box<KeybrokerAddArgs>),
    /// List what is registered
    List(KeybrokerListArgs),
}

/// `nacre keybroker add`.
#[derive(Debug, Args)]
#[command(
    disable_version_flag = true,
    after_help = "Examples:\n  \
    nacre keybroker add hello hello.wasm --keybroker-store store --manifest manifest.signed --policy policy.toml --owner-key owner.key --compiler-key compiler.key"
)]
pub struct KeybrokerAddArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The program: a WASI preview 1 command, as .wasm
    #[arg(value_name = "MODULE")]
    pub module: PathBuf,
    /// It is a service: a program that runs all the time
    #[arg(long, requires = "port")]
    pub service: bool,
    /// Where a service's clients connect
    #[arg(long, value_name = "P", requires = "service", value_parser = value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// When a service is started again
    #[arg(long, value_enum, requires = "service")]
    pub restart: Option<crate::node::drive_args::RestartArg>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields have help of their own")]
    pub sealed: SealedAddArgs,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// What sealing needs.
#[derive(Debug, Clone, Args)]
pub struct SealedAddArgs {
    /// The store
    #[arg(long, value_name = "DIR")]
    pub keybroker_store: PathBuf,
    /// The signed manifest of its CVMs
    #[arg(long, value_name = "SIGNED")]
    pub manifest: PathBuf,
    /// What a CVM must prove
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// The owner's key, or a broker's
    #[arg(long, value_name = "FILE")]
    pub owner_key: PathBuf,
    /// Signs the code
    #[arg(long, value_name = "FILE")]
    pub compiler_key: PathBuf,
    /// A variable of the program, which only CVMs learn; without a value, this process's. Repeatable
    #[arg(long, value_name = "K=V", value_parser = crate::values::parse_env)]
    pub secret: Vec<EnvVar>,
    /// The same, out of a file. Repeatable
    #[arg(long, value_name = "K=PATH")]
    pub secret_file: Vec<String>,
    /// The service's connections are TLS, which ends in the CVM
    #[arg(long, requires = "service")]
    pub tls: bool,
    /// Its version [default: the next one]
    #[arg(long = "version", id = "number", value_name = "N")]
    pub number: Option<u64>,
}

/// `nacre keybroker list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nacre keybroker list --store store")]
pub struct KeybrokerListArgs {
    /// The store
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre tunnel`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre tunnel 127.0.0.1:6379 --policy policy.toml --listen 127.0.0.1:7000\n  \
    nacre tunnel store --policy policy.toml --listen 127.0.0.1:0 --json\n\n\
    Programs that speak plain TCP connect to ADDR. Each connection is TLS 1.3 to the CVM, whose evidence is judged before a byte of it is sent.")]
pub struct TunnelArgs {
    /// A service of the tenant's node, or its address
    #[arg(value_name = "NAME|HOST:PORT")]
    pub service: String,
    /// What the CVM must prove
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// The tenant's node, for NAME
    #[command(flatten)]
    pub target: Target,
    /// Print the address, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}
