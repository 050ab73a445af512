//! The command line of `nacre migrate`.

use super::args::Target;
use crate::values::parse_size;
use clap::Args;

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ModeArg {
    /// Rounds while it runs, as long as they pay; the rest follows after the hand-over
    #[default]
    Hybrid,
    /// Rounds while it runs, the rest while it is parked: nothing is left to a network afterwards
    PreCopy,
    /// The hand-over at once; all memory follows
    PostCopy,
    /// Everything while it is parked, for comparison
    StopAndCopy,
}

impl ModeArg {
    /// As the node writes it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Hybrid => "hybrid",
            Self::PreCopy => "pre-copy",
            Self::PostCopy => "post-copy",
            Self::StopAndCopy => "stop-and-copy",
        }
    }
}

/// `nacre migrate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nacre migrate store --to 10.0.0.2:3234\n  \
    nacre migrate store --to node-b:3234 --mode pre-copy --bandwidth 100MiB\n  \
    nacre migrate store --to node-b:3234 --json\n  \
    nacre migrate --list\n\n\
    A tenant moves with all that runs in it: NAME is the tenant's, or that of something it has deployed. Both nodes run with --peer-listen and \
    trust each other, and the tenant's manifest says where it may go. Ctrl-C cancels, and the tenant goes on where it was, unless it is gone from \
    there already; a second Ctrl-C leaves it alone. Exit code 1 if it did not move.")]
pub struct MigrateArgs {
    /// The tenant, or something it has deployed
    #[arg(value_name = "NAME", required_unless_present = "list")]
    pub name: Option<String>,
    /// Where to: the address at which the other node listens to nodes
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "list")]
    pub to: Option<String>,
    /// How
    #[arg(long, value_enum, default_value_t)]
    pub mode: ModeArg,
    /// Bytes per second that may be sent
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub bandwidth: Option<u64>,
    /// Connections for memory [default: by the CVM's workers and memory]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub lanes: Option<u8>,
    /// List the migrations away from the node
    #[arg(long, conflicts_with_all = ["name", "to", "mode", "bandwidth", "lanes"])]
    pub list: bool,
    /// The tenant's node
    #[command(flatten)]
    pub target: Target,
    /// Print the result, or an error, as JSON
    #[arg(long)]
    pub json: bool,
}
