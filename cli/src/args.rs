//! The command line: names are those of the design, every option is validated while it is parsed.
//!
//! [`Command`] lists what works; the argument structs of further commands are here so that they parse and validate the
//! same way once they are added.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use nacre_engine::CpuTarget;

use crate::{
    host_cpu,
    node::args::{NodeArgs, TenantArgs, WorkerArgs},
    node::drive_args::{DeployArgs, DescribeArgs, InvokeArgs, LogsArgs, PsArgs, RmArgs},
    node::migrate_args::MigrateArgs,
    sealed::args::{
        AttestArgs, AttestCommand, KeybrokerArgs, KeybrokerCommand, ManifestArgs, ManifestCommand,
        MeasureArgs, PlatformArgs, PlatformCommand, TunnelArgs,
    },
    top::SortBy,
    values::{
        DirMapping, EnvVar, ExportMapping, MAX_WORKERS, MemorySize, parse_dir, parse_duration, parse_env,
        parse_export, parse_fill, parse_memory, parse_size, parse_spin_limit, parse_time_limit,
    },
};

/// Runs WebAssembly programs inside elastic confidential VMs.
#[derive(Debug, Parser)]
#[command(name = "nacre", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compile a program ahead of time, so that it starts in milliseconds
    Compile(CompileArgs),
    /// Run one program in a CVM of its own
    Run(RunArgs),
    /// Show what Nacre does: two programs in one CVM, then a node under load
    Demo(DemoArgs),
    /// Measure Nacre on this machine
    Bench(BenchArgs),
    /// Show your running CVMs on this machine: workers, demand, CPU, memory
    Top(TopArgs),
    /// Run a node: functions and services behind one daemon
    Node(NodeArgs),
    /// Add, list and remove tenants of a node
    Tenant(TenantArgs),
    /// Deploy a function to a node
    Deploy(Box<DeployArgs>),
    /// Call a function and print its result
    Invoke(InvokeArgs),
    /// Show what a tenant has running
    Ps(PsArgs),
    /// Show the logs of a deployment's last calls, or of one call
    Logs(LogsArgs),
    /// Describe what is deployed
    Describe(DescribeArgs),
    /// Remove what is deployed
    Rm(RmArgs),
    /// Move a tenant to another node, with all that runs in it
    Migrate(MigrateArgs),
    /// Make the root of a software platform, for development
    Platform(PlatformArgs),
    /// Make and sign a tenant's manifest
    Manifest(ManifestArgs),
    /// Print what a CVM proves about itself, for policies
    Measure(MeasureArgs),
    /// Show, judge and fetch evidence
    Attest(AttestArgs),
    /// Give code and secrets to CVMs while their owner is away
    Keybroker(Box<KeybrokerArgs>),
    /// Connect plain TCP to a sealed TLS service
    Tunnel(TunnelArgs),
    /// Compile one module as a child of a node
    #[command(hide = true)]
    CompileWorker(WorkerArgs),
}

impl Command {
    /// Whether errors and results are to be JSON.
    #[must_use]
    pub fn json(&self) -> bool {
        match self {
            Self::Compile(args) => args.json,
            Self::Run(args) => args.json,
            Self::Demo(args) => args.json,
            Self::Bench(args) => args.json(),
            Self::Top(args) => args.json,
            Self::Node(args) => args.json(),
            Self::Tenant(args) => args.json(),
            Self::Deploy(args) => args.json,
            Self::Invoke(args) => args.json,
            Self::Ps(args) => args.json,
            Self::Logs(args) => args.json,
            Self::Describe(args) => args.json,
            Self::Rm(args) => args.json,
            Self::Migrate(args) => args.json,
            Self::Platform(PlatformArgs { command: PlatformCommand::Init(args) }) => args.json,
            Self::Manifest(args) => match &args.command {
                ManifestCommand::Init(args) => args.json,
                ManifestCommand::Sign(args) => args.json,
                ManifestCommand::Set(args) => args.json,
            },
            Self::Measure(args) => args.json,
            Self::Attest(args) => match &args.command {
                AttestCommand::Show(args) => args.json,
                AttestCommand::Verify(args) => args.json,
                AttestCommand::Fetch(args) => args.json,
            },
            Self::Keybroker(args) => match &args.command {
                None => args.json,
                Some(KeybrokerCommand::Add(args)) => args.json,
                Some(KeybrokerCommand::List(args)) => args.json,
            },
            Self::Tunnel(args) => args.json,
            Self::CompileWorker(_) => false,
        }
    }
}

/// `--cpu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CpuArg {
    /// Any server CPU with AVX2; the result is the same on every machine
    #[default]
    #[value(name = "x86-64-v3")]
    X86_64V3,
    /// All features of this machine's CPU; runs only where they exist
    Native,
}

impl CpuArg {
    /// The target meant, looking at this machine's CPU for `native`.
    #[must_use]
    pub fn target(self) -> CpuTarget {
        match self {
            Self::X86_64V3 => CpuTarget::X86_64V3,
            Self::Native => CpuTarget::Native(host_cpu::features()),
        }
    }
}

/// `nacre compile`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre compile app.wasm -o app.cwasm\n  \
    nacre compile app.wasm --cpu native --json")]
pub struct CompileArgs {
    /// The program: a WASI preview 1 command, as .wasm or .wat
    #[arg(value_name = "MODULE")]
    pub module: PathBuf,
    /// Where the compiled program goes [default: MODULE with the extension .cwasm, in the current directory]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The CPU to compile for
    #[arg(long, value_enum, default_value_t)]
    pub cpu: CpuArg,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}

/// The size of a CVM, shared by the commands that start one.
#[derive(Debug, Clone, Copy, Args)]
pub struct CvmArgs {
    /// Worker vCPUs of the CVM: 0 to 63
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u8).range(..=i64::from(MAX_WORKERS)))]
    pub workers: u8,
    /// Memory of the CVM: 64MiB to 64GiB; taken from the host only as it is used
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_memory)]
    pub memory: MemorySize,
}

/// `nacre run`.
#[derive(Debug, Args)]
#[command(
    override_usage = "nacre run [OPTIONS] PROGRAM [ARGS]...",
    after_help = "Everything after PROGRAM goes to the program.\n\nExamples:\n  \
    nacre run hello.wasm\n  \
    nacre run --memory 4GiB --workers 2 --env SEED=1 app.cwasm --verbose input.txt\n  \
    nacre run --workers 4 --time-limit 30s parallel.wasm\n  \
    nacre run --dir ./data::/data --export /data/out.db::./out.db sqlite.wasm /data/out.db\n\n\
    Exit code: the program's own; 134 after a trap or at the time limit, 1 when Nacre fails, 2 for a wrong command line."
)]
pub struct RunArgs {
    /// Size of the CVM
    #[command(flatten)]
    pub cvm: CvmArgs,
    /// Physical CPUs that the workers share [default: all that this process may use]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,
    /// What a wake is worth: idle workers spin for at most this long, where that is likely to save a wake; 0 to 10ms
    #[arg(long, value_name = "DURATION", default_value = "150us", value_parser = parse_spin_limit)]
    pub spin_limit: Duration,
    /// Name of the CVM for nacre top [default: the program's file name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Copy a directory into the CVM before the start; without GUEST under the same name. Repeatable
    #[arg(long = "dir", value_name = "HOST[::GUEST]", value_parser = parse_dir)]
    pub dirs: Vec<DirMapping>,
    /// Copy a file or directory out after the end; without HOST into the current directory. Repeatable
    #[arg(long = "export", value_name = "GUEST[::HOST]", value_parser = parse_export)]
    pub exports: Vec<ExportMapping>,
    /// Set an environment variable; without a value, pass on this process's own. Repeatable
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = parse_env)]
    pub env: Vec<EnvVar>,
    /// End the program after this time, such as 500ms, 30s or 1h30m [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = parse_time_limit)]
    pub time_limit: Option<Duration>,
    /// The CPU to compile for, when PROGRAM is not compiled yet [default: x86-64-v3]
    #[arg(long, value_enum)]
    pub cpu: Option<CpuArg>,
    /// Print what happened (boot phases, time per vCPU, memory, exits) to stderr at the end
    #[arg(long)]
    pub stats: bool,
    /// Write the same as JSON to a file
    #[arg(long, value_name = "FILE")]
    pub stats_json: Option<PathBuf>,
    /// Print Nacre's own errors, and --stats, as JSON
    #[arg(long)]
    pub json: bool,
    // One positional for both: with two, clap would take options after PROGRAM for itself.
    /// The program (.wasm, .wat or .cwasm), then its arguments
    #[arg(value_name = "PROGRAM [ARGS]", required = true, trailing_var_arg = true)]
    pub command_line: Vec<OsString>,
}

impl RunArgs {
    /// The program's file.
    #[must_use]
    pub fn program(&self) -> &Path {
        Path::new(self.command_line.first().map_or(OsStr::new(""), OsString::as_os_str))
    }
}

/// `nacre demo`.
#[derive(Debug, Args)]
#[command(
    after_help = "It takes about a minute: first two programs at once in one CVM, then a node with a function and a \
    key-value service under load, then a service that is filled, moves live to a second node while clients use it, and comes back by \
    stop-and-copy. The nodes are temporary ones on ports of the loopback; nothing of them stays.\n\n\
    Examples:\n  \
    nacre demo\n  \
    nacre demo --fill 256MiB --report plots\n  \
    nacre demo --json | jq .migration.hybrid.downtime_ms"
)]
pub struct DemoArgs {
    /// Worker vCPUs of each CVM but the one that moves: 0 to 63 (a node's CVMs have one at least) [default: one per CPU, 2 to 8]
    #[arg(long, value_name = "N", value_parser = value_parser!(u8).range(..=i64::from(MAX_WORKERS)))]
    pub workers: Option<u8>,
    /// Memory of each CVM but the one that moves: 64MiB to 64GiB; taken from the host only as it is used
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_memory)]
    pub memory: MemorySize,
    /// Values of the service that moves: 1MiB to 2GiB; less if there is not enough free memory for two CVMs that hold them
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_fill)]
    pub fill: u64,
    /// Draw the latency during the migrations (SVG) into DIR
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// `nacre bench`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub bench: BenchCommand,
}

impl BenchArgs {
    /// Whether stdout is to be JSON.
    #[must_use]
    pub fn json(&self) -> bool {
        let json = match &self.bench {
            BenchCommand::Invoke(args) => &args.json,
            BenchCommand::Elastic(args) => &args.json,
            BenchCommand::Migrate(args) => &args.json,
            BenchCommand::ServeReference | BenchCommand::HoldMemory { .. } => return false,
        };
        *json == Some(None)
    }
}

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Start-up, calls, memory and computing inside a CVM, against the same engine as a host process
    Invoke(BenchInvokeArgs),
    /// Waking, parking and reclaiming workers, what they cost, and two CVMs that share CPUs; or a simulation
    Elastic(BenchElasticArgs),
    /// A service moves between two CVMs, and between two nodes: downtime and speed of all modes, and what clients see
    Migrate(BenchMigrateArgs),
    /// The server that the node is compared with; prints its address
    #[command(hide = true)]
    ServeReference,
    /// A native process with so much memory, for CRIU
    #[command(hide = true)]
    HoldMemory {
        /// Its memory in bytes.
        bytes: usize,
    },
}

/// `--mode` of `nacre bench migrate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchMode {
    /// Rounds while tasks run, the rest afterwards
    Hybrid,
    /// Rounds while tasks run
    PreCopy,
    /// Everything afterwards
    PostCopy,
    /// Everything while tasks are parked: the baseline
    StopAndCopy,
}

/// `--network` of `nacre bench migrate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchNetwork {
    /// As fast as this machine is
    Loopback,
    /// Virtual Ethernet between two network namespaces, limited to 10 Gbit/s
    #[value(name = "10g")]
    TenGigabit,
    /// The same, limited to 1 Gbit/s
    #[value(name = "1g")]
    OneGigabit,
}

/// `--between` of `nacre bench migrate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchEnds {
    /// CVMs of this process: what the guests can do
    Cvms,
    /// Two nodes, with clients of a key-value service: what clients see
    Nodes,
}

/// `nacre bench migrate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nacre bench migrate --json result.json --report plots\n  nacre bench migrate --between nodes --size 1GiB --rounds 3\n  nacre bench migrate --size 1GiB --mode hybrid --mode stop-and-copy --network loopback"
)]
pub struct BenchMigrateArgs {
    /// Measure between these only; both otherwise
    #[arg(long, value_enum, value_name = "ENDS")]
    pub between: Vec<BenchEnds>,
    /// Memory that the service writes to; may be given several times. Between nodes up to 2GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Vec<u64>,
    /// Measure this mode only; may be given several times. Between nodes hybrid and stop-and-copy are measured
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Vec<BenchMode>,
    /// Measure over this network only; may be given several times. Limited ones need root, `ip` and `tc`
    #[arg(long, value_enum, value_name = "NETWORK")]
    pub network: Vec<BenchNetwork>,
    /// Migrations of each kind
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// Write the result as JSON to FILE, or to stdout without FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[allow(clippy::option_option, reason = "absent, without a file, and with one are three cases")]
    pub json: Option<Option<PathBuf>>,
    /// Write plots (SVG) into DIR
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
}

/// `--only`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchPart {
    /// Compute-bound programs
    Compute,
    /// Start of a process
    Boot,
    /// Fresh instances
    Instances,
    /// Warm calls of modules in a CVM
    Calls,
    /// First touch of memory
    Touch,
    /// Launch and end of CVMs
    Life,
    /// Warm functions of a node over HTTP
    Http,
    /// First calls of functions
    Cold,
    /// Sealed calls beside plain ones, handshakes, verification
    Sealed,
    /// The key-value service against redis-server
    Kv,
}

/// `nacre bench invoke`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nacre bench invoke\n  nacre bench invoke --only http --only cold --json result.json"
)]
pub struct BenchInvokeArgs {
    /// Measure this part only; may be given several times
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Vec<BenchPart>,
    /// Measure what sealing costs: short for --only sealed
    #[arg(long)]
    pub sealed: bool,
    /// Write the result as JSON to FILE, or to stdout without FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[allow(clippy::option_option, reason = "absent, without a file, and with one are three cases")]
    pub json: Option<Option<PathBuf>>,
}

/// `nacre bench elastic`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nacre bench elastic --report plots\n  nacre bench elastic --simulate --cores 4096 --cvms 10000 --report plots\n  nacre bench elastic --simulate --trace arrivals.csv --json result.json"
)]
pub struct BenchElasticArgs {
    /// Write the result as JSON to FILE, or to stdout without FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[allow(clippy::option_option, reason = "absent, without a file, and with one are three cases")]
    pub json: Option<Option<PathBuf>>,
    /// Write plots (SVG) into DIR
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Simulate many cores and CVMs with the CPU manager's own policy instead of measuring this machine
    #[arg(long)]
    pub simulate: bool,
    /// Everything about the simulation, as JSON (see docs/cpu-manager.md); the options below override it
    #[arg(long, value_name = "FILE", requires = "simulate")]
    pub scenario: Option<PathBuf>,
    /// Arrivals to simulate: lines of time_us,cvm,service_us
    #[arg(long, value_name = "FILE", requires = "simulate")]
    pub trace: Option<PathBuf>,
    /// Physical cores to simulate, up to 4096
    #[arg(long, value_name = "N", requires = "simulate")]
    pub cores: Option<u32>,
    /// CVMs to simulate, up to 10000
    #[arg(long, value_name = "N", requires = "simulate")]
    pub cvms: Option<u32>,
    /// Seed of the arrivals
    #[arg(long, value_name = "N", requires = "simulate")]
    pub seed: Option<u64>,
}

/// `nacre top`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nacre top\n  nacre top --once --sort memory\n  nacre top --json server.wasm\n\n\
    Keys: c cpu, m memory, w wakes, d demand, n name, p pid; q quits."
)]
pub struct TopArgs {
    /// Show only CVMs of these names [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Print the table once
    #[arg(long)]
    pub once: bool,
    /// Print the rows once, as JSON
    #[arg(long)]
    pub json: bool,
    /// Time between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_interval)]
    pub interval: Duration,
    /// What to sort by
    #[arg(long, value_enum, default_value_t)]
    pub sort: SortBy,
}

/// An interval that neither burns a CPU nor looks dead.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if (Duration::from_millis(50)..=Duration::from_secs(3600)).contains(&interval) {
        Ok(interval)
    } else {
        Err("give 50ms to 3600s".to_owned())
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
