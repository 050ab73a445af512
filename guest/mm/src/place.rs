//! [`Place`]: who may use the content of one place of a table that anybody may look into while its owner removes it.
//!
//! ```text
//! free -claim-> taken -open-> live (n readers) -close-> gone (n readers) -the last one clears-> free
//! ```
//! The content itself is the caller's: it is written between `claim` and `open`, read between `enter` and `leave`, and
//! removed by the one whom `close` or `leave` told so. A reader that is stopped keeps this one place, and nobody waits.

use crate::sync::{AtomicU64, Ordering};

const TAKEN: u64 = 1 << 63;
const LIVE: u64 = 1 << 62;
const GONE: u64 = 1 << 61;

/// The state of one place.
#[derive(Default)]
pub struct Place(AtomicU64);

impl Place {
    /// A free place.
    pub const fn new() -> Place {
        Place(AtomicU64::new(0))
    }

    /// Takes the place if it is free; the caller alone has it then.
    pub fn claim(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
            && self.0.compare_exchange(0, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Lets readers in. Called by the one who claimed it, when the content is there.
    pub fn open(&self) {
        self.0.store(LIVE, Ordering::Release);
    }

    /// Begins to read; false if nothing is there. What is true ends with [`leave`](Self::leave).
    pub fn enter(&self) -> bool {
        let mut state = self.0.load(Ordering::Relaxed);
        while state & LIVE != 0 {
            match self.0.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Ends reading; if true the caller must remove the content and [`clear`](Self::clear) the place.
    #[must_use = "else the place is lost"]
    pub fn leave(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == GONE + 1
    }

    /// Lets no more readers in. Called once by the owner of the content; if true it must remove the content and
    /// [`clear`](Self::clear) the place, else the last reader does.
    #[must_use = "else the place is lost"]
    pub fn close(&self) -> bool {
        // The live bit becomes the bit below it.
        self.0.fetch_sub(LIVE - GONE, Ordering::AcqRel) == LIVE
    }

    /// The content is gone: the place is free.
    pub fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stepping::Gate;
    use std::sync::Arc;
    use std::sync::atomic::{self, AtomicUsize};

    /// Content that is only touched by who may: 0 none, 1 there; and how often it was removed.
    #[derive(Default)]
    struct Table {
        place: Place,
        content: AtomicUsize,
        removed: AtomicUsize,
    }

    impl Table {
        fn fill(&self) -> bool {
            let claimed = self.place.claim();
            if claimed {
                assert_eq!(self.content.swap(1, atomic::Ordering::SeqCst), 0, "filled over other content");
                self.place.open();
            }
            claimed
        }

        fn remove(&self) {
            assert_eq!(self.content.swap(0, atomic::Ordering::SeqCst), 1, "removed twice");
            self.removed.fetch_add(1, atomic::Ordering::SeqCst);
            self.place.clear();
        }

        fn read(&self) {
            if self.place.enter() {
                assert_eq!(self.content.load(atomic::Ordering::SeqCst), 1, "read without content");
                if self.place.leave() {
                    self.remove();
                }
            }
        }

        fn close(&self) {
            if self.place.close() {
                self.remove();
            }
        }
    }

    /// Every schedule in which each of a reader, the owner and a second reader runs in up to two pieces.
    #[test]
    fn content_is_read_while_it_is_there_and_removed_once() {
        let mut schedules = 0;
        for (first, second, third) in
            (0..6u64).flat_map(|a| (0..6).flat_map(move |b| (0..6).map(move |c| (a, b, c))))
        {
            let table = Arc::new(Table::default());
            assert!(table.fill());
            let run = |work: fn(&Table)| {
                let table = table.clone();
                Gate::run(move || work(&table))
            };
            let threads = [
                run(Table::read),
                run(|table| {
                    table.close();
                    // The place can be filled again as soon as it is free, and is closed again then.
                    if table.fill() {
                        table.close();
                    }
                }),
                run(Table::read),
            ];
            for ((gate, _), steps) in threads.iter().zip([first, second, third]) {
                gate.step(steps);
            }
            for (gate, _) in &threads {
                gate.step(1000);
            }
            for (_, thread) in threads {
                thread.join().unwrap();
            }
            assert_eq!(table.content.load(atomic::Ordering::SeqCst), 0);
            assert!((1..=2).contains(&table.removed.load(atomic::Ordering::SeqCst)));
            assert!(table.fill(), "the place is lost");
            schedules += 1;
        }
        assert_eq!(schedules, 216);
    }
}
