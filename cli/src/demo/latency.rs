//! Latency over time as text: rows of block characters for a terminal, lines for everything else. Pure.

use super::chart::cell;
use nacre_bench::pair::timeline::Bucket;

/// Columns of the names at the left, and of the numbers at the right.
const LEFT: usize = 11;
const RIGHT: usize = 24;
/// Columns that are drawn at least.
const MIN_COLUMNS: usize = 10;
/// Cells of the bar in a line.
const BAR: usize = 24;
/// Latencies are drawn on a logarithmic scale that begins here, in milliseconds.
const LEAST_MS: f64 = 0.1;

/// When something happened, in milliseconds from the order, and what.
pub type Mark = (f64, &'static str);

/// How far up a latency is on a scale that ends with `most`: 0 to 1.
fn height(ms: f64, most: f64) -> f64 {
    let decades = |ms: f64| (ms / LEAST_MS).max(1.0).log10();
    // Something that is there is seen.
    (decades(ms) / decades(most).max(1.0)).clamp(0.01, 1.0)
}

/// The highest of all latencies, in milliseconds.
pub fn most(buckets: &[Bucket]) -> f64 {
    buckets.iter().filter_map(|bucket| bucket.max_ms).fold(0.0, f64::max)
}

/// How many buckets fit a terminal of so many columns.
pub fn width(columns: usize) -> usize {
    columns.saturating_sub(LEFT + RIGHT).max(MIN_COLUMNS)
}

/// Rows for a terminal: what happened, longest latency, the usual one, answers; `most` is the scale's end.
pub fn block(buckets: &[Bucket], marks: &[Mark], most: f64) -> Vec<String> {
    let row = |value: fn(&Bucket) -> Option<f64>| -> String {
        let level = |bucket: &Bucket| cell(value(bucket).map_or(0.0, |ms| height(ms, most)), 1.0);
        buckets.iter().map(level).collect()
    };
    let fastest = buckets.iter().map(|bucket| bucket.per_second).fold(0.0, f64::max);
    let answers: String = buckets.iter().map(|bucket| cell(bucket.per_second, fastest)).collect();
    let usual: Vec<f64> = buckets.iter().filter_map(|bucket| bucket.p50_ms).collect();
    let usual = nacre_bench::summary::Summary::of(&usual).map_or(0.0, |all| all.median);
    let lines = [
        ("", axis(buckets, marks), String::new()),
        ("longest", row(|bucket| bucket.max_ms), format!("{:.1} ms at most", self::most(buckets))),
        ("half", row(|bucket| bucket.p50_ms), format!("{usual:.2} ms mostly")),
        ("answers/s", answers, format!("{fastest:.0} at most")),
    ];
    let line = |(name, cells, number): &(&str, String, String)| format!("{name:<LEFT$}{cells}  {number}");
    lines.iter().map(|all| line(all).trim_end().to_owned()).collect()
}

/// What happened, each above where it did; cut where the next begins.
fn axis(buckets: &[Bucket], marks: &[Mark]) -> String {
    let mut cells = vec![' '; buckets.len()];
    for (at, text) in marks {
        let begin = buckets.partition_point(|bucket| bucket.at_ms <= *at).saturating_sub(1);
        cells[begin..].fill(' ');
        for (cell, c) in cells[begin..].iter_mut().zip(std::iter::once('|').chain(text.chars())) {
            *cell = c;
        }
    }
    cells.into_iter().collect()
}

/// The same as plain lines, with a heading.
pub fn lines(buckets: &[Bucket], marks: &[Mark], most: f64) -> Vec<String> {
    let heading = format!("{:>8}  {:>9}  {:>9}  {:>9}", "time", "answers/s", "half", "longest");
    let mut marks = marks.iter().peekable();
    let line = |(index, bucket): (usize, &Bucket)| {
        let end = buckets.get(index + 1).map_or(f64::INFINITY, |next| next.at_ms);
        let mut doing = Vec::new();
        while let Some((_, text)) = marks.next_if(|(at, _)| *at < end) {
            doing.push(*text);
        }
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.2} ms"));
        let bar = bucket.max_ms.map_or(0, |ms| (height(ms, most) * BAR as f64).ceil() as usize);
        let line = format!(
            "{:>6.2} s  {:>9.0}  {:>9}  {:>9}  {:<BAR$}  {}",
            bucket.at_ms / 1e3,
            bucket.per_second,
            ms(bucket.p50_ms),
            ms(bucket.max_ms),
            "#".repeat(bar.min(BAR)),
            doing.join(", "),
        );
        line.trim_end().to_owned()
    };
    std::iter::once(heading).chain(buckets.iter().enumerate().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets() -> Vec<Bucket> {
        let bucket = |(index, max_ms): (usize, Option<f64>)| Bucket {
            at_ms: index as f64 * 100.0 - 200.0,
            per_second: max_ms.map_or(0.0, |_| 1000.0),
            p50_ms: max_ms.map(|ms| ms / 10.0),
            max_ms,
        };
        let all = [Some(1.0), Some(1.0), Some(1.0), None, Some(1000.0), Some(1.0)];
        all.into_iter().enumerate().map(bucket).collect()
    }

    const MARKS: [Mark; 2] = [(0.0, "order"), (110.0, "parked")];

    #[test]
    fn a_block_shows_the_pause() {
        let lines = block(&buckets(), &MARKS, 1000.0);
        assert_eq!(lines[0], "             ||pa");
        assert_eq!(lines[1], "longest    ▂▂▂·█▂  1000.0 ms at most");
        assert!(lines[3].starts_with("answers/s  ███·██"), "{lines:?}");
        assert_eq!(width(80), 45);
        assert_eq!(width(0), MIN_COLUMNS);
    }

    #[test]
    fn lines_are_plain() {
        let lines = lines(&buckets(), &MARKS, 1000.0);
        assert!(lines.iter().all(|line| line.is_ascii()), "{lines:?}");
        assert_eq!(lines.len(), 7);
        assert!(lines[3].ends_with("order") && lines[4].ends_with("parked") && lines[4].contains(" - "));
        assert!(lines[5].contains(&"#".repeat(BAR)), "{lines:?}");
        assert_eq!(super::lines(&[], &MARKS, 0.0).len(), 1);
    }
}
