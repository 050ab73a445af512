//! The table of `nacre top` as text.

use super::SortBy;
use super::collect::Row;
use crate::values::format_size;
use std::fmt::Write;

const HEADER: [&str; 12] = [
    "PID", "NAME", "ACTIVE", "WAIT", "DORMANT", "WORKERS", "GRANT", "DEMAND", "CPU%", "MEMORY", "WAKES/S",
    "RECLAIMS",
];
/// The widest a name is shown.
const NAME_WIDTH: usize = 32;

/// Sorts the rows; equal ones by process, so that they do not jump.
pub fn sort(rows: &mut [Row], by: SortBy) {
    rows.sort_by(|a, b| {
        let order = match by {
            SortBy::Cpu => b.cpu_percent.total_cmp(&a.cpu_percent),
            SortBy::Memory => b.sample.memory_bytes.cmp(&a.sample.memory_bytes),
            SortBy::Wakes => b.wakes_per_second.total_cmp(&a.wakes_per_second),
            SortBy::Demand => b.sample.demand.cmp(&a.sample.demand),
            SortBy::Name => a.sample.name.cmp(&b.sample.name),
            SortBy::Pid => std::cmp::Ordering::Equal,
        };
        order.then(a.sample.pid.cmp(&b.sample.pid))
    });
}

/// The table; cut to `size` (rows, columns) of a terminal if there is one.
#[must_use]
pub fn text(rows: &[Row], size: Option<(u16, u16)>) -> String {
    let mut lines: Vec<[String; 12]> = vec![HEADER.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let mut widths = [0; 12];
    for (column, width) in widths.iter_mut().enumerate() {
        *width = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    }
    let (height, columns) =
        size.map_or((usize::MAX, usize::MAX), |(rows, columns)| (rows.into(), columns.into()));
    let mut text = String::new();
    let shown = height.saturating_sub(if size.is_some() { 3 } else { 0 });
    for line in lines.iter().take(shown.max(1)) {
        let mut full = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            // The name is the only text; numbers stand at the right.
            let _ = match column {
                1 => write!(full, "{cell:<width$}  "),
                _ => write!(full, "{cell:>width$}  "),
            };
        }
        text.extend(full.trim_end().chars().take(columns));
        text.push('\n');
    }
    if rows.is_empty() {
        text.push_str("no CVM of yours runs here\n");
    }
    if size.is_some() {
        text.push_str("\nsort: c cpu  m memory  w wakes  d demand  n name  p pid      q quit");
    }
    text
}

fn cells(row: &Row) -> [String; 12] {
    let sample = &row.sample;
    // A name is a file's name: it must not act on the terminal.
    let name: String = sample.name.chars().filter(|c| !c.is_control()).take(NAME_WIDTH).collect();
    [
        sample.pid.to_string(),
        name,
        sample.active.to_string(),
        sample.waiting.to_string(),
        row.dormant.to_string(),
        sample.workers.to_string(),
        sample.grant.to_string(),
        sample.demand.to_string(),
        format!("{:.1}", row.cpu_percent),
        format_size(sample.memory_bytes),
        format!("{:.0}", row.wakes_per_second),
        sample.reclaims.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::collect::tests::sample;
    use super::*;

    fn row(name: &str, pid: u32, cpu_percent: f64) -> Row {
        Row { sample: sample(name, pid, 0), dormant: 2, cpu_percent, wakes_per_second: 12.4 }
    }

    #[test]
    fn rows_are_sorted_and_aligned() {
        let mut rows = vec![row("idle", 9, 0.0), row("busy", 7, 150.26), row("also idle", 8, 0.0)];
        sort(&mut rows, SortBy::Cpu);
        let lines: Vec<String> = text(&rows, None).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("PID  NAME       ACTIVE"), "{}", lines[0]);
        assert!(lines[1].contains("busy") && lines[1].contains("150.3") && lines[1].contains("64MiB"));
        assert!(lines[2].contains("also idle") && lines[3].starts_with("  9  idle "));
        sort(&mut rows, SortBy::Name);
        assert_eq!(rows[0].sample.name, "also idle");
    }

    #[test]
    fn a_terminal_shows_what_fits_and_names_do_not_act_on_it() {
        let rows = vec![row("a\u{1b}[2Jb", 1, 1.0), row("c", 2, 1.0), row("d", 3, 1.0)];
        let shown = text(&rows, Some((5, 20)));
        assert!(!shown.contains('\u{1b}') && shown.contains("a[2Jb"));
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.len() <= 5 && lines[..2].iter().all(|line| line.chars().count() <= 20), "{lines:?}");
        assert!(text(&[], None).contains("no CVM"));
    }
}
