//! What the demo shows: lines, a chart that grows while it is looked at, or nothing but JSON at the end.

use super::chart::Chart;
use crate::failure::Failure;
use console::Term;
use serde::Serialize;
use std::cell::Cell;
use std::io::Write;
use std::time::Duration;

/// Between two lines of a chart that is no terminal's.
const LINE_EVERY: Duration = Duration::from_millis(500);
/// Columns of a terminal that does not say.
const COLUMNS: usize = 80;

#[derive(Debug)]
enum Kind {
    Json,
    Plain,
    Terminal(Term),
}

/// Where the demo shows things.
#[derive(Debug)]
pub struct Screen {
    kind: Kind,
    /// Lines of the chart that is being drawn.
    drawn: Cell<usize>,
    /// When the last plain line of it was due.
    told: Cell<Duration>,
}

fn gone(error: std::io::Error) -> Failure {
    Failure::new("output", format_args!("{error}; print to a terminal or a file"))
}

impl Screen {
    /// Standard output, in the way that fits it.
    pub fn new(json: bool) -> Self {
        let term = Term::buffered_stdout();
        let kind = match (json, term.is_term()) {
            (true, _) => Kind::Json,
            (false, true) => Kind::Terminal(term),
            (false, false) => Kind::Plain,
        };
        Self { kind, drawn: Cell::new(0), told: Cell::new(Duration::ZERO) }
    }

    /// Prints lines.
    ///
    /// # Errors
    /// If nobody reads them any more.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        match &self.kind {
            Kind::Json => Ok(()),
            Kind::Plain => writeln!(std::io::stdout(), "{text}").map_err(gone),
            Kind::Terminal(term) => term.write_line(text).and_then(|()| term.flush()).map_err(gone),
        }
    }

    /// Prints the result, if that is what was asked for.
    ///
    /// # Errors
    /// If nobody reads it.
    pub fn json(&self, summary: &impl Serialize) -> Result<(), Failure> {
        let Kind::Json = self.kind else { return Ok(()) };
        let text = serde_json::to_string_pretty(summary).unwrap_or_default();
        writeln!(std::io::stdout(), "{text}").map_err(gone)
    }

    /// Shows the chart with its newest sample; on a terminal in place of what it showed before.
    ///
    /// # Errors
    /// If nobody looks any more.
    pub fn chart(&self, chart: &Chart) -> Result<(), Failure> {
        match &self.kind {
            Kind::Json => Ok(()),
            Kind::Plain => {
                if self.told.get() == Duration::ZERO {
                    self.line(&Chart::heading())?;
                }
                let due = chart.now() >= self.told.get();
                let Some(line) = chart.line().filter(|_| due) else { return Ok(()) };
                self.told.set(chart.now() + LINE_EVERY);
                self.line(&line)
            }
            Kind::Terminal(term) => {
                let columns = term.size_checked().map_or(COLUMNS, |(_, columns)| columns.into());
                let lines = chart.block(columns);
                let draw = || {
                    term.clear_last_lines(self.drawn.get())?;
                    lines.iter().try_for_each(|line| term.write_line(line))?;
                    term.flush()
                };
                draw().map_err(gone)?;
                self.drawn.set(lines.len());
                Ok(())
            }
        }
    }
}
