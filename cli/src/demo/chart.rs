//! Workers, CPUs and calls over time, as text: rows of block characters for a terminal, lines for everything else. Pure.

use serde::Serialize;
use std::time::Duration;

/// Eighths of a character cell, from the bottom.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Where nothing was.
const NOTHING: char = '·';
/// Columns of the names at the left, and of the numbers at the right.
const LEFT: usize = 9;
const RIGHT: usize = 24;
/// Columns that are drawn at least.
const MIN_COLUMNS: usize = 10;
/// Cells of the bar in a line.
const BAR: usize = 20;

/// How it was at one time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Since the beginning of the chart.
    #[serde(rename = "ms", serialize_with = "milliseconds")]
    pub at: Duration,
    /// Workers with a CPU.
    pub active: u32,
    /// Workers that want one and have none.
    pub waiting: u32,
    /// CPUs that the CVM used on average since the last sample.
    pub cpus: f64,
    /// Calls a second since the last sample.
    pub calls: f64,
}

fn milliseconds<S: serde::Serializer>(at: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(at.as_secs_f64() * 1000.0)
}

/// The samples so far.
#[derive(Debug, Clone)]
pub struct Chart {
    workers: u32,
    cpus: f64,
    samples: Vec<Sample>,
    /// From which sample on something else is done.
    marks: Vec<(usize, String)>,
}

impl Chart {
    /// Of a CVM with so many workers on a machine with so many CPUs.
    pub fn new(workers: u32, cpus: usize) -> Self {
        Self { workers, cpus: cpus as f64, samples: Vec::new(), marks: Vec::new() }
    }

    /// Adds a sample.
    pub fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// From the next sample on this is done.
    pub fn mark(&mut self, text: &str) {
        self.marks.push((self.samples.len(), text.to_owned()));
    }

    /// All samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// When the newest sample was taken.
    pub fn now(&self) -> Duration {
        self.samples.last().map_or(Duration::ZERO, |sample| sample.at)
    }

    /// What stands above [`Chart::line`]s.
    pub fn heading() -> String {
        format!("{:>7}  {:<w$}{:>6}  {:>7}", "time", "workers with a CPU", "CPUs", "calls/s", w = BAR + 9)
    }

    /// The newest sample as a line.
    pub fn line(&self) -> Option<String> {
        let sample = self.samples.last()?;
        let length = (sample.active as usize * BAR).div_ceil(self.workers.max(1) as usize).min(BAR);
        let doing = self.marks.last().map_or("", |(_, text)| text.as_str());
        Some(format!(
            "{:>5.1} s  {:>2} of {:<2} {:<w$}{:>6.2}  {:>7.0}  {doing}",
            sample.at.as_secs_f64(),
            sample.active,
            self.workers,
            "#".repeat(length),
            sample.cpus,
            sample.calls,
            w = BAR,
        ))
    }

    /// All samples in so many columns of a terminal: what was done, workers, CPUs, calls.
    pub fn block(&self, columns: usize) -> Vec<String> {
        let width = columns.saturating_sub(LEFT + RIGHT).max(MIN_COLUMNS);
        let per_cell = self.samples.len().div_ceil(width).max(1);
        let row = |value: fn(&Sample) -> f64, full: Option<f64>| {
            let values: Vec<f64> = self.samples.iter().map(value).collect();
            cells(&values, per_cell, full)
        };
        let last = self.samples.last();
        let last = |text: fn(&Sample) -> String| last.map(text).unwrap_or_default();
        let workers = self.workers;
        let active = last(|sample| sample.active.to_string());
        let waiting = last(|sample| match sample.waiting {
            0 => String::new(),
            waiting => format!(", {waiting} waiting"),
        });
        let lines = [
            ("", self.axis(per_cell, width), String::new()),
            (
                "workers",
                row(|sample| sample.active.into(), Some(workers.into())),
                format!("{active} of {workers}{waiting}"),
            ),
            (
                "CPUs",
                row(|sample| sample.cpus, Some(self.cpus)),
                last(|sample| format!("{:.2}", sample.cpus)),
            ),
            ("calls/s", row(|sample| sample.calls, None), last(|sample| format!("{:.0}", sample.calls))),
        ];
        lines
            .iter()
            .map(|(name, cells, number)| {
                let line = format!("{name:<LEFT$}{cells:<width$}  {number}");
                line.trim_end().chars().take(columns).collect()
            })
            .collect()
    }

    /// What was done, each above where it began; cut where the next begins.
    fn axis(&self, per_cell: usize, width: usize) -> String {
        let mut cells = vec![' '; width];
        for (at, text) in &self.marks {
            let begin = (at / per_cell).min(width);
            cells[begin..].fill(' ');
            for (cell, c) in cells[begin..].iter_mut().zip(std::iter::once('|').chain(text.chars())) {
                *cell = c;
            }
        }
        cells.into_iter().collect()
    }
}

/// One cell for the mean of so many values each. A full one is `full`, or the largest of them.
fn cells(values: &[f64], per_cell: usize, full: Option<f64>) -> String {
    let means: Vec<f64> =
        values.chunks(per_cell).map(|some| some.iter().sum::<f64>() / some.len() as f64).collect();
    let full = full.unwrap_or_else(|| means.iter().copied().fold(0.0, f64::max));
    means.iter().map(|mean| cell(*mean, full)).collect()
}

/// A share of a full cell.
pub fn cell(value: f64, full: f64) -> char {
    // As close to nothing as a chart can show.
    if value <= full / 1000.0 {
        return NOTHING;
    }
    let eighths = (value / full * BLOCKS.len() as f64).ceil() as usize;
    BLOCKS[eighths.clamp(1, BLOCKS.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(active: &[u32]) -> Chart {
        let mut chart = Chart::new(4, 2);
        for (n, active) in active.iter().enumerate() {
            let at = Duration::from_millis(100 * n as u64);
            let (cpus, calls) = (f64::from(*active) / 2.0, f64::from(*active) * 100.0);
            chart.push(Sample { at, active: *active, waiting: 0, cpus, calls });
        }
        chart
    }

    #[test]
    fn cells_show_shares_of_the_largest() {
        assert_eq!(cells(&[0.0, 0.1, 4.0, 8.0], 1, None), "·▁▄█");
        assert_eq!(cells(&[0.0, 8.0, 4.0, 4.0, 8.0], 2, None), "▄▄█", "means of two");
        assert_eq!(cells(&[1.0, 2.0, 9.0], 1, Some(4.0)), "▂▄█", "of what can be");
        assert_eq!(cells(&[], 1, None), "");
        assert_eq!(cells(&[0.0], 1, None), "·");
        assert_eq!(cell(f64::NAN, 1.0), BLOCKS[0], "nonsense is drawn and does no harm");
    }

    #[test]
    fn a_block_fits_the_terminal() {
        let mut chart = chart(&[0, 0, 4, 4, 2, 0]);
        chart.marks = vec![(0, "idle".into()), (2, "a burst of calls".into()), (5, "end".into())];
        let lines = chart.block(80);
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "         |i|a |end");
        assert!(lines[1].starts_with("workers  ··██▄· ") && lines[1].ends_with(" 0 of 4"), "{lines:?}");
        assert!(
            lines[2].starts_with("CPUs     ··██▄·") && lines[3].starts_with("calls/s  ··██▄·"),
            "{lines:?}"
        );
        let long = self::chart(&[3; 1000]);
        for columns in [0, 20, 40, 80, 300] {
            let lines = long.block(columns);
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{columns}: {lines:?}");
        }
        assert_eq!(Chart::new(1, 1).block(80).len(), 4);
    }

    #[test]
    fn lines_are_plain() {
        let mut chart = chart(&[0, 3]);
        chart.mark("burst");
        assert_eq!(chart.line().unwrap(), "  0.1 s   3 of 4  ###############       1.50      300  burst");
        assert_eq!(Chart::new(1, 1).line(), None);
        assert!(Chart::heading().is_ascii());
        let none = self::chart(&[0]);
        assert!(!none.line().unwrap().contains('#'));
    }
}
