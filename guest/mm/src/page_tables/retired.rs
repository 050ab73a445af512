//! Tables that nobody finds any more but somebody may still be looking at: a processor that has not flushed, or a visitor.
//!
//! Its user first reserves a place, then takes the table out of the tree, then puts it here. Who wants the tables back calls
//! [`seal`](Retired::seal), waits until every vCPU has flushed (and so is in none of this crate's functions that it was in),
//! and calls [`recycle`](Retired::recycle). If no place is left, tables stay where they are: that is always right.

use crate::GuestPhys;
use crate::frames::PagePool;
use crate::sync::{AtomicU64, Ordering};

/// Tables that may wait at once.
const PLACES: usize = 128;

const FREE: u64 = 0;
const RESERVED: u64 = 1;
/// With the table's address: retired since the last [`Retired::seal`].
const FRESH: u64 = 2;
/// With the table's address: retired before it.
const SEALED: u64 = 4;
const STATE: u64 = FRESH | SEALED;

/// The places.
pub(super) struct Retired {
    places: [AtomicU64; PLACES],
}

/// A place that is reserved; dropped, it is free again.
pub(super) struct Place<'r>(&'r AtomicU64);

impl Place<'_> {
    /// Puts a table there that was just taken out of the tree.
    pub(super) fn put(self, table: GuestPhys) {
        self.0.store(table.0 | FRESH, Ordering::SeqCst);
        core::mem::forget(self);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.store(FREE, Ordering::Release);
    }
}

impl Retired {
    pub(super) const fn new() -> Retired {
        Retired { places: [const { AtomicU64::new(FREE) }; PLACES] }
    }

    pub(super) fn reserve(&self) -> Option<Place<'_>> {
        let free = |place: &&AtomicU64| {
            place.load(Ordering::Relaxed) == FREE
                && place.compare_exchange(FREE, RESERVED, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        };
        self.places.iter().find(free).map(Place)
    }

    /// Whether more than half of the places are free.
    pub(super) fn has_many_places(&self) -> bool {
        self.places.iter().filter(|place| place.load(Ordering::Relaxed) == FREE).count() > PLACES / 2
    }

    /// Returns whether any table waits to be recycled.
    pub(super) fn seal(&self) -> bool {
        let mut any = false;
        for place in &self.places {
            let word = place.load(Ordering::Acquire);
            if word & STATE == FRESH {
                // Only who seals changes a word in this state.
                place.store(word & !STATE | SEALED, Ordering::SeqCst);
            }
            any |= word & STATE != 0;
        }
        any
    }

    /// Puts the tables that were sealed into the pool; returns how many.
    pub(super) fn recycle(&self, pool: &PagePool<'_>) -> u64 {
        let mut recycled = 0;
        for place in &self.places {
            let word = place.load(Ordering::Acquire);
            if word & STATE == SEALED {
                place.store(FREE, Ordering::SeqCst);
                pool.free(GuestPhys(word & !STATE));
                recycled += 1;
            }
        }
        recycled
    }
}
