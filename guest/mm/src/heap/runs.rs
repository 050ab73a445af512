//! Neighbouring bits of a word.

use crate::sync::{AtomicU64, Ordering};

/// `count` ones, at most 31.
pub(super) fn run_bits(count: u32) -> u64 {
    (1 << count) - 1
}

/// Clears `count` neighbouring bits of a word; returns the number of the first.
pub(super) fn take_run(word: &AtomicU64, count: u32) -> Option<usize> {
    let mut bits = word.load(Ordering::SeqCst);
    loop {
        // A bit stays where as many bits from it on are set.
        let starts = (1..count).fold(bits, |starts, _| starts & (starts >> 1));
        if starts == 0 {
            return None;
        }
        let first = starts.trailing_zeros();
        let taken = bits & !(run_bits(count) << first);
        match word.compare_exchange(bits, taken, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Some(first as usize),
            Err(now) => bits = now,
        }
    }
}
