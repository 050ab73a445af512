//! Diagnostic log on stderr, off unless `NACRE_LOG` is set (`NACRE_LOG=debug`, `NACRE_LOG=nacre_cli=trace,warn`).

use std::{
    io::IsTerminal,
    sync::OnceLock,
    time::{Duration, Instant},
};

use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

static START: OnceLock<Instant> = OnceLock::new();

/// Starts the clock of [`since_start`] and, when `NACRE_LOG` asks for it, the log.
pub fn init() {
    START.get_or_init(Instant::now);
    let Some(filter) = std::env::var_os("NACRE_LOG") else { return };
    match filter.to_str().and_then(|text| text.parse::<Targets>().ok()) {
        Some(targets) => {
            let colours = std::io::stderr().is_terminal();
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
            // Fails only when a log is set up already, which then stays.
            let _ = tracing_subscriber::registry().with(layer).with(targets).try_init();
        }
        None => eprintln!("nacre: warning: NACRE_LOG is not a log filter; write a level such as debug"),
    }
}

/// The log of a daemon on stderr instead, as text or as JSON lines; `info` without `NACRE_LOG`.
pub fn init_daemon(json: bool) {
    let filter = std::env::var("NACRE_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(tracing::Level::INFO));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let colours = std::io::stderr().is_terminal();
    // Fails only when a log is set up already, which then stays.
    let _ = if json {
        tracing_subscriber::registry().with(layer.json().flatten_event(true)).with(filter).try_init()
    } else {
        tracing_subscriber::registry().with(layer.with_ansi(colours)).with(filter).try_init()
    };
}

/// Time since the first call, which is the first thing in `main`.
#[must_use]
pub fn since_start() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}
