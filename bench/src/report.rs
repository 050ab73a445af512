//! The result of a benchmark: rows for people and for programs.

use crate::machine::Machine;
use crate::summary::Summary;
use serde::Serialize;
use std::fmt::Write;

/// What a row's numbers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Nanoseconds per MiB.
    NanosecondsPerMib,
    /// Bytes.
    Bytes,
    /// Pieces.
    Count,
    /// Percent of one CPU.
    Percent,
    /// Pieces a second.
    PerSecond,
}

/// What a row must not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Its ratio's median, at most this.
    Ratio(f64),
    /// Its ratio's median, at least this.
    RatioAtLeast(f64),
    /// Its 99th percentile to that of its baseline, at most this.
    P99Ratio(f64),
    /// Its own median, at most this, in the row's unit.
    Value(f64),
    /// Its own 99th percentile, at most this, in the row's unit.
    P99(f64),
}

/// What an arm is compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Baseline {
    /// The arm.
    pub arm: &'static str,
    /// Its samples.
    pub value: Summary,
    /// Arm to baseline, round by round.
    pub ratio: Summary,
    /// The arm's least sample to the baseline's: what remains when nothing else disturbs either.
    pub least_ratio: f64,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Where.
    pub arm: &'static str,
    /// What its numbers count.
    pub unit: Unit,
    /// Its samples.
    pub value: Summary,
    /// What it is compared with.
    pub baseline: Option<Baseline>,
    /// What it must not exceed.
    pub target: Option<Target>,
    /// Whether it does not.
    pub met: Option<bool>,
}

impl Row {
    /// A row of these samples, `None` if there are none.
    #[must_use]
    pub fn new(name: impl Into<String>, arm: &'static str, unit: Unit, samples: &[f64]) -> Option<Self> {
        let value = Summary::of(samples)?;
        Some(Self { name: name.into(), arm, unit, value, baseline: None, target: None, met: None })
    }

    /// The same compared with another arm. `samples` are this row's own, or one number for each round of them.
    #[must_use]
    pub fn against(mut self, arm: &'static str, samples: &[f64], baseline: &[f64]) -> Self {
        let all = Summary::of(samples).zip(Summary::of(baseline)).zip(Summary::of_ratios(samples, baseline));
        self.baseline =
            all.map(|((own, value), ratio)| Baseline { arm, value, ratio, least_ratio: own.min / value.min });
        self
    }

    /// The same with a target.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self.met = match target {
            Target::Ratio(limit) => self.baseline.as_ref().map(|baseline| baseline.ratio.median <= limit),
            Target::RatioAtLeast(limit) => {
                self.baseline.as_ref().map(|baseline| baseline.ratio.median >= limit)
            }
            Target::P99Ratio(limit) => {
                self.baseline.as_ref().map(|baseline| self.value.p99 <= limit * baseline.value.p99)
            }
            Target::Value(limit) => Some(self.value.median <= limit),
            Target::P99(limit) => Some(self.value.p99 <= limit),
        };
        self
    }
}

/// Numbers side by side, without a judgement: where something goes.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Names of the columns of numbers, with their units.
    pub columns: Vec<&'static str>,
    /// Names of the lines, and a number for each column.
    pub lines: Vec<(String, Vec<f64>)>,
}

impl Table {
    fn text(&self) -> String {
        let cell = |number: &f64| format!("{number:.2}");
        let names = self.lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = self.lines.iter().filter_map(|(_, numbers)| numbers.get(column));
                cells.map(|number| cell(number).len()).chain([self.columns[column].len()]).max().unwrap_or(0)
            })
            .collect();
        let mut text = format!("\n{}\n{:names$}", self.title, "");
        for (column, width) in self.columns.iter().zip(&widths) {
            let _ = write!(text, "  {column:>width$}");
        }
        for (name, numbers) in &self.lines {
            let _ = write!(text, "\n{name:names$}");
            for (number, width) in numbers.iter().zip(&widths) {
                let _ = write!(text, "  {:>width$}", cell(number));
            }
        }
        text.push('\n');
        text
    }
}

/// A finished run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Of Nacre.
    pub version: &'static str,
    /// Of the engine, on both sides.
    pub wasmtime: &'static str,
    /// Where.
    pub machine: Machine,
    /// How long it took.
    pub elapsed_seconds: f64,
    /// The measurements.
    pub rows: Vec<Row>,
    /// What was left out and why.
    pub skipped: Vec<String>,
    /// What is not judged.
    pub tables: Vec<Table>,
}

impl Report {
    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "nacre {}, wasmtime {}, {}, {} CPUs, {:.1} GiB, Linux {}, load {:.2}\n\
             Medians with (least..most); ratios are taken round by round, \"least\" is that of the\n\
             fastest rounds. Targets are for medians unless they name the 99th percentile.\n\n",
            self.version,
            self.wasmtime,
            machine.cpu,
            machine.cpus,
            machine.memory_bytes as f64 / f64::from(1 << 30),
            machine.kernel,
            machine.load
        );
        let head =
            ["measurement", "arm", "value", "baseline", "ratio", "least", "target", "met"].map(str::to_owned);
        let lines: Vec<[String; COLUMNS]> =
            std::iter::once(head).chain(self.rows.iter().map(cells)).collect();
        let mut widths = [0; COLUMNS];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.chars().count().max(*width);
            }
        }
        for line in &lines {
            let padded: Vec<String> =
                line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "{}", padded.join("  ").trim_end());
        }
        for table in &self.tables {
            text.push_str(&table.text());
        }
        let missed = self.rows.iter().filter(|row| row.met == Some(false)).count();
        let judged = self.rows.iter().filter(|row| row.met.is_some()).count();
        let _ = writeln!(
            text,
            "\n{} of {judged} targets met, {missed} not met, in {:.0} s",
            judged - missed,
            self.elapsed_seconds
        );
        for skipped in &self.skipped {
            let _ = writeln!(text, "SKIPPED {skipped}");
        }
        text
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> String {
        // Structs of numbers and strings always serialise.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

const COLUMNS: usize = 8;

fn cells(row: &Row) -> [String; COLUMNS] {
    let mut value = with_range(&row.value, |number| format_value(row.unit, number));
    if row.value.count >= 100 {
        let _ = write!(value, ", p99 {}", format_value(row.unit, row.value.p99));
    }
    let baseline = |baseline: &Baseline| {
        let mut text = format_value(row.unit, baseline.value.median);
        if matches!(row.target, Some(Target::P99Ratio(_))) {
            let _ = write!(text, ", p99 {}", format_value(row.unit, baseline.value.p99));
        }
        format!("{text} {}", baseline.arm)
    };
    let ratio = |baseline: &Baseline| with_range(&baseline.ratio, |number| format!("{number:.3}"));
    let target = |target: Target| match target {
        Target::Ratio(limit) => format!("ratio {limit:.2}"),
        Target::RatioAtLeast(limit) => format!("ratio >= {limit:.2}"),
        Target::P99Ratio(limit) => format!("p99 ratio {limit:.2}"),
        Target::Value(limit) => format_value(row.unit, limit),
        Target::P99(limit) => format!("p99 {}", format_value(row.unit, limit)),
    };
    let met = |met: bool| if met { "yes" } else { "not met" };
    [
        row.name.clone(),
        row.arm.to_owned(),
        value,
        row.baseline.as_ref().map(baseline).unwrap_or_default(),
        row.baseline.as_ref().map(ratio).unwrap_or_default(),
        row.baseline.as_ref().map(|baseline| format!("{:.3}", baseline.least_ratio)).unwrap_or_default(),
        row.target.map(target).unwrap_or_default(),
        row.met.map(met).unwrap_or_default().to_owned(),
    ]
}

fn with_range(summary: &Summary, format: impl Fn(f64) -> String) -> String {
    let median = format(summary.median);
    if summary.count == 1 {
        return median;
    }
    format!("{median} ({}..{})", format(summary.min), format(summary.max))
}

fn format_value(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Count => format!("{value:.0}"),
        Unit::Percent => format!("{value:.1} %"),
        Unit::PerSecond => format!("{value:.1}/s"),
        Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        Unit::Nanoseconds => format_ns(value),
        Unit::NanosecondsPerMib => format!("{}/MiB", format_ns(value)),
    }
}

fn format_ns(ns: f64) -> String {
    match ns.abs() {
        ns_abs if ns_abs < 1e3 => format!("{ns:.0} ns"),
        ns_abs if ns_abs < 1e6 => format!("{:.2} us", ns / 1e3),
        ns_abs if ns_abs < 1e9 => format!("{:.2} ms", ns / 1e6),
        _ => format!("{:.3} s", ns / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(samples: &[f64], baseline: &[f64], target: Target) -> Row {
        Row::new("x", "CVM", Unit::Nanoseconds, samples)
            .unwrap()
            .against("host", samples, baseline)
            .target(target)
    }

    #[test]
    fn a_target_is_met_up_to_its_limit() {
        assert_eq!(row(&[103.0], &[100.0], Target::Ratio(1.03)).met, Some(true));
        assert_eq!(row(&[104.0], &[100.0], Target::Ratio(1.03)).met, Some(false));
        assert_eq!(row(&[10.0, 11.0, 90.0], &[1.0], Target::Value(11.0)).met, Some(true));
        let slow = |target| row(&[3.0, 3.0, 50.0], &[1.0, 1.0, 60.0], target).met;
        assert_eq!([Target::P99Ratio(1.0), Target::P99(49.0)].map(slow), [Some(true), Some(false)]);
        assert_eq!([2.9, 3.1].map(Target::RatioAtLeast).map(slow), [Some(true), Some(false)]);
        // Without a baseline a ratio can neither be met nor missed.
        assert_eq!(row(&[10.0], &[], Target::Ratio(1.0)).met, None);
    }

    #[test]
    fn the_table_tells_what_was_missed_and_skipped() {
        let rows = vec![
            row(&[1e6, 3e6, 2e6], &[1e6, 2e6, 1e6], Target::Ratio(1.0)),
            row(&[5.0], &[], Target::Value(6.0)),
        ];
        let report = Report {
            version: "1",
            wasmtime: "2",
            machine: Machine::this(),
            elapsed_seconds: 1.0,
            rows,
            skipped: vec!["big: no memory".into()],
            tables: vec![Table {
                title: "where".into(),
                columns: vec!["us", "wakes"],
                lines: vec![("a thread".into(), vec![12.345, 0.5]), ("b".into(), vec![1.0, 100.0])],
            }],
        };
        let table = report.table();
        assert!(table.contains("2.00 ms (1.00 ms..3.00 ms)"), "{table}");
        assert!(table.contains("1.500 (1.000..2.000)  1.000  ratio 1.00  not met"), "{table}");
        assert!(table.contains("1 of 2 targets met, 1 not met") && table.contains("SKIPPED big"), "{table}");
        assert!(
            table.contains(
                "where\n             us   wakes\na thread  12.35    0.50\nb          1.00  100.00\n"
            ),
            "{table}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["rows"][0]["met"], false);
        assert_eq!(json["rows"][1]["target"]["value"], 6.0);
    }
}
