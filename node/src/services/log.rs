//! The last lines that a service wrote: a bounded ring in memory.

use crate::names::{now_ms, rfc3339};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lines of one service that are kept, in bytes.
const MAX_BYTES: usize = 256 << 10;
/// A longer line is cut here.
const MAX_LINE: usize = 4 << 10;

/// The ring.
#[derive(Debug, Default)]
pub struct LogRing(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    whole: VecDeque<String>,
    bytes: usize,
    /// What came without its end yet, by stream.
    begun: [Vec<u8>; 2],
}

impl Lines {
    fn push(&mut self, line: String) {
        self.bytes += line.len() + 24;
        self.whole.push_back(line);
        while self.bytes > MAX_BYTES {
            let Some(oldest) = self.whole.pop_front() else { return };
            self.bytes -= oldest.len() + 24;
        }
    }
}

impl LogRing {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of standard output (1) or error (2).
    pub fn add(&self, stream: u32, bytes: &[u8]) {
        let (index, name) = if stream == 1 { (0, "stdout") } else { (1, "stderr") };
        let mut lines = self.lock();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let begun = &mut lines.begun[index];
            let room = MAX_LINE.saturating_sub(begun.len());
            begun.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(begun);
                let text = String::from_utf8_lossy(&line);
                let text = format!("{} {name}: {}", rfc3339(now_ms()), text.trim_end());
                lines.push(text);
            }
        }
    }

    /// A line of the node's own.
    pub fn note(&self, text: &str) {
        self.lock().push(format!("{} node: {text}", rfc3339(now_ms())));
    }

    /// All lines, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lock().whole.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_bounded_and_cut() {
        let ring = LogRing::default();
        ring.add(1, b"one\ntw");
        ring.add(2, b"error\n");
        ring.add(1, b"o\n");
        let ends: Vec<String> =
            ring.lines().iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
        assert_eq!(ends, ["stdout: one", "stderr: error", "stdout: two"]);
        ring.add(1, &vec![b'x'; 1 << 20]);
        ring.add(1, b"\n");
        assert!(ring.lines().last().unwrap().len() < MAX_LINE + 64);
        for _ in 0..100_000 {
            ring.add(1, b"spam\n");
        }
        let bytes: usize = ring.lines().iter().map(String::len).sum();
        assert!(bytes < MAX_BYTES);
    }
}
