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
    /// When the next plain line of it is due; zero before the first.
    told: Cell<Duration>,
}

/// When the line after one at this time is due: late ones do not make the rest later.
fn next_line(now: Duration) -> Duration {
    let lines = now.as_nanos() / LINE_EVERY.as_nanos();
    LINE_EVERY.saturating_mul(u32::try_from(lines + 1).unwrap_or(u32::MAX))
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

    /// The columns of the terminal, if it is one.
    pub fn columns(&self) -> Option<usize> {
        let Kind::Terminal(term) = &self.kind else { return None };
        Some(term.size_checked().map_or(COLUMNS, |(_, columns)| columns.into()))
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
                self.told.set(next_line(chart.now()));
                self.line(&line)
            }
            Kind::Terminal(term) => {
                let columns = self.columns().unwrap_or(COLUMNS);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_every_half_second() {
        let ms = Duration::from_millis;
        for (now, next) in [(0, 500), (100, 500), (499, 500), (500, 1000), (612, 1000), (90_001, 90_500)] {
            assert_eq!(next_line(ms(now)), ms(next));
        }
    }
}
