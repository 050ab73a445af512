//! [`Durations`]: a histogram of what happens for every call. The exporter's own keep each value until somebody adds them up, in
//! blocks that they allocate: 1 us of a call.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of all histograms, in seconds.
pub(super) const BUCKETS: [f64; 18] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// Times, counted by [`BUCKETS`].
pub struct Durations {
    /// How many were in each bucket and in no smaller one; the last is for those beyond all bounds.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_ns: AtomicU64,
}

impl Default for Durations {
    fn default() -> Self {
        Self::new()
    }
}

impl Durations {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS.len() + 1], sum_ns: AtomicU64::new(0) }
    }

    /// Something took so long.
    pub fn record(&self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(elapsed.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Writes the lines of the text format; `label` is `name="value"` or nothing. Nothing is written if nothing was recorded.
    pub(super) fn show(&self, text: &mut String, name: &str, label: &str) {
        let mut count = 0;
        let more = if label.is_empty() { "" } else { "," };
        let sum = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        if counts.iter().all(|count| *count == 0) {
            return;
        }
        for (bucket, new) in counts.into_iter().enumerate() {
            count += new;
            let bound = BUCKETS.get(bucket).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name}_bucket{{{label}{more}le=\"{bound}\"}} {count}");
        }
        let labels = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        let _ = writeln!(text, "{name}_sum{labels} {sum}\n{name}_count{labels} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let (durations, mut text) = (Durations::new(), String::new());
        durations.show(&mut text, "t", "");
        assert_eq!(text, "");
        for micros in [1, 100, 101, 90_000_000] {
            durations.record(Duration::from_micros(micros));
        }
        durations.show(&mut text, "t", "a=\"b\"");
        for line in [
            "t_bucket{a=\"b\",le=\"0.0001\"} 2\n",
            "t_bucket{a=\"b\",le=\"0.00025\"} 3\n",
            "t_bucket{a=\"b\",le=\"60\"} 3\n",
            "t_bucket{a=\"b\",le=\"+Inf\"} 4\n",
            "t_sum{a=\"b\"} 90.000202\nt_count{a=\"b\"} 4\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let (durations, mut text) = (Durations::default(), String::new());
        durations.record(Duration::ZERO);
        durations.show(&mut text, "t", "");
        assert!(text.starts_with("t_bucket{le=\"0.0001\"} 1\n") && text.ends_with("t_count 1\n"), "{text}");
    }
}
