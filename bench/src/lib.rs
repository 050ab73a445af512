//! What `nacre bench` measures: each arm and its baseline in one run, taken in turns, compared round by round.
//!
//! * [`invoke`]: computing, boot, instances, first touch of memory and the life of a CVM.
//! * [`elastic`]: waking, parking and reclaiming workers, and what they cost.
//! * [`migrate`]: a service that moves between two CVMs.
//! * [`pair`]: two nodes, and a tenant with a service that moves between them.
//! * [`service`]: requests to a service.
//! * [`host`]: the same engine as an ordinary process. [`cvm`]: the same program in a CVM. [`programs`]: what both run.
//! * [`load`]: requests to HTTP servers. [`child`]: the servers as processes. [`serve`]: the reference among them.
//! * [`summary`]: medians and ratios. [`report`]: the result. [`machine`]: where it was measured.
//!
//! Nothing is printed here and no target fails a run: machines are shared and noisy, a result says what it found.
#![forbid(unsafe_code)]

pub mod child;
pub mod cvm;
pub mod elastic;
pub mod host;
pub mod invoke;
pub mod load;
pub mod machine;
pub mod migrate;
pub mod pair;
pub mod programs;
pub mod report;
pub mod serve;
pub mod service;
pub mod summary;

/// Why a benchmark gave no result; what follows the last "; " is the remedy.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No CVM, or it ended early.
    #[error(transparent)]
    Cvm(#[from] nacre_vmm::CvmError),
    /// A built-in program does not compile, load or run on this machine's processor.
    #[error("the host's engine: {0:#}; the benchmark needs a CPU with AVX2")]
    Engine(wasmtime::Error),
    /// A built-in program did something else than it should.
    #[error("{program} {what}; run it alone with `nacre run` to see more")]
    Program {
        /// Its name.
        program: String,
        /// What it did.
        what: String,
    },
    /// A `nacre` process that was started failed.
    #[error("`nacre {command}` {what}; run it by hand to see more")]
    Child {
        /// Its arguments.
        command: String,
        /// How it ended.
        what: String,
    },
    /// A node does not do what it is asked.
    #[error("{what}: {error}")]
    Node {
        /// What it was asked for.
        what: &'static str,
        /// What it says.
        error: nacre_client::http::NodeError,
    },
    /// The operating system refuses something.
    #[error("{what}: {error}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// Its answer.
        error: std::io::Error,
    },
}

impl From<wasmtime::Error> for BenchError {
    fn from(error: wasmtime::Error) -> Self {
        Self::Engine(error)
    }
}

impl BenchError {
    /// For `map_err`: the operating system's refusal of `what`.
    fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::System { what, error }
    }

    fn program(program: &str, what: impl Into<String>) -> Self {
        Self::Program { program: program.to_owned(), what: what.into() }
    }
}

/// Is told how far a benchmark is.
pub trait Progress {
    /// The next of [`invoke::Options::steps`], [`elastic::Options::steps`], [`migrate::Options::steps`] or [`service::Options::steps`] steps begins.
    fn step(&self, doing: &str);
}

/// Nobody watches.
impl Progress for () {
    fn step(&self, _: &str) {}
}
