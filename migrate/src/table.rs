//! The table behind both ledgers: a hash table of 16 bytes per unit with a queue through it, in memory that its owner sets
//! aside at launch. Nothing here allocates: while a tenant is parked its heap may not change.
//!
//! Open addressing, linear probing. A removed slot stays as a *dead* one until something is put there or the table is rebuilt in
//! place; it is rebuilt when less than an eighth has never been used, so a search for what is not there stays short.

use crate::unit::{Content, Extent, Place, Round, Unit};

/// What a ledger keeps of one unit. All zero is an empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Key (37 bits) and flags.
    word: u64,
    generation: u32,
    /// The next one in the queue, plus one.
    next: u32,
}

const _: () =
    assert!(size_of::<Slot>() == 16, "documented: a ledger costs 16 bytes for each unit, and a third more");

/// Where slots lie.
pub trait Storage: AsRef<[Slot]> + AsMut<[Slot]> {}
impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Storage for S {}

/// There is no room for another unit: end the migration, or give the ledger more slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger has no room for another unit")]
pub struct Full;

const KEY: u64 = (1 << 37) - 1;
const LARGE: u64 = 1 << 40;
const CONTENT_SHIFT: u32 = 41;
/// In the queue.
const QUEUED: u64 = 1 << 44;
const DEAD: u64 = 1 << 47;
const MOVING: u64 = 1 << 48;
const USED: u64 = 1 << 49;
/// Listed, but its content is not here yet.
pub(crate) const MISSING: u64 = 1 << 45;
/// Asked for.
pub(crate) const REQUESTED: u64 = 1 << 46;
/// In this generation it was sent before, and may have arrived.
pub(crate) const AGAIN: u64 = 1 << 50;

/// A unit's place in the table, until the next change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index(usize);

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Table<S> {
    slots: S,
    live: usize,
    dead: usize,
    /// First and last of the queue, plus one.
    head: u32,
    tail: u32,
    queued: u64,
    queued_bytes: u64,
}

impl<S: Storage> Table<S> {
    /// An empty one. The slots are cleared.
    pub(crate) fn new(mut slots: S) -> Table<S> {
        slots.as_mut().fill(Slot::default());
        Table { slots, live: 0, dead: 0, head: 0, tail: 0, queued: 0, queued_bytes: 0 }
    }

    /// Whether so many more units have room.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        let length = self.slots.as_ref().len();
        self.live + more <= length - length / 4
    }

    /// Units in the queue, and bytes of their pages.
    pub(crate) fn queued(&self) -> (u64, u64) {
        (self.queued, self.queued_bytes)
    }

    /// The unit of exactly this place and extent.
    pub(crate) fn find(&self, place: Place) -> Option<Index> {
        let index = self.find_key(place.key())?;
        (self.unit(index).place == place).then_some(index)
    }

    fn find_key(&self, key: u64) -> Option<Index> {
        let slots = self.slots.as_ref();
        let mut at = home(key, slots.len());
        for _ in 0..slots.len() {
            let word = slots[at].word;
            if word == 0 {
                return None;
            }
            if word & (DEAD | KEY) == key {
                return Some(Index(at));
            }
            at = if at + 1 == slots.len() { 0 } else { at + 1 };
        }
        None
    }

    pub(crate) fn unit(&self, Index(at): Index) -> Unit {
        let Slot { word, generation, .. } = self.slots.as_ref()[at];
        let content = Content::from_number((word >> CONTENT_SHIFT & 3) as u8).unwrap_or(Content::Absent);
        let place = Place::from_key(word & KEY, word & LARGE != 0);
        Unit { place, generation: Round(generation), content }
    }

    /// Puts a unit in whose key is not there.
    pub(crate) fn insert(&mut self, unit: Unit) -> Result<Index, Full> {
        let length = self.slots.as_ref().len();
        if !self.has_room(1) || u32::try_from(length).is_err() {
            return Err(Full);
        }
        if self.live + self.dead >= length - length / 8 {
            self.rebuild();
        }
        let slots = self.slots.as_mut();
        let mut at = home(unit.place.key(), length);
        // A dead slot that is still queued holds a link of the queue.
        while slots[at].word != 0 && slots[at].word & (DEAD | QUEUED) != DEAD {
            at = if at + 1 == length { 0 } else { at + 1 };
        }
        self.dead -= usize::from(slots[at].word != 0);
        self.live += 1;
        slots[at] = Slot { word: word(&unit), generation: unit.generation.0, next: 0 };
        Ok(Index(at))
    }

    /// Gives a unit that is there another generation and content.
    pub(crate) fn update(&mut self, Index(at): Index, unit: Unit) {
        let slot = &mut self.slots.as_mut()[at];
        slot.word = word(&unit) | slot.word & (QUEUED | MISSING | REQUESTED);
        slot.generation = unit.generation.0;
    }

    pub(crate) fn remove(&mut self, index: Index) {
        if self.has(index, QUEUED) {
            self.count_queued(index, false);
        }
        self.slots.as_mut()[index.0].word |= DEAD;
        self.live -= 1;
        self.dead += 1;
    }

    pub(crate) fn has(&self, Index(at): Index, flag: u64) -> bool {
        self.slots.as_ref()[at].word & flag != 0
    }

    pub(crate) fn is_queued(&self, index: Index) -> bool {
        self.has(index, QUEUED)
    }

    pub(crate) fn set(&mut self, Index(at): Index, flag: u64, on: bool) {
        let word = &mut self.slots.as_mut()[at].word;
        *word = if on { *word | flag } else { *word & !flag };
    }

    /// Puts a unit at the end of the queue, unless it is in there.
    pub(crate) fn push(&mut self, index: Index) {
        if self.has(index, QUEUED) {
            return;
        }
        self.link(index);
        self.count_queued(index, true);
    }

    fn link(&mut self, index: Index) {
        let slots = self.slots.as_mut();
        slots[index.0].word |= QUEUED;
        slots[index.0].next = 0;
        let number = index.0 as u32 + 1;
        match self.tail {
            0 => self.head = number,
            tail => slots[tail as usize - 1].next = number,
        }
        self.tail = number;
    }

    fn count_queued(&mut self, index: Index, more: bool) {
        let bytes = self.unit(index).place.page_bytes();
        if more {
            (self.queued, self.queued_bytes) = (self.queued + 1, self.queued_bytes + bytes);
        } else {
            (self.queued, self.queued_bytes) = (self.queued - 1, self.queued_bytes - bytes);
        }
    }

    /// Takes the first unit from the queue.
    pub(crate) fn pop(&mut self) -> Option<Index> {
        self.peek()?;
        let index = Index(self.head.checked_sub(1)? as usize);
        self.count_queued(index, false);
        self.unlink(index);
        Some(index)
    }

    /// Looks at every unit. It may change or remove it, but insert nothing.
    pub(crate) fn sweep(&mut self, mut look: impl FnMut(&mut Table<S>, Index)) {
        for at in 0..self.slots.as_ref().len() {
            if self.slots.as_ref()[at].word & (USED | DEAD) == USED {
                look(self, Index(at));
            }
        }
    }

    /// The first unit of the queue.
    pub(crate) fn peek(&mut self) -> Option<Unit> {
        loop {
            let index = Index(self.head.checked_sub(1)? as usize);
            if !self.has(index, DEAD) {
                return Some(self.unit(index));
            }
            self.unlink(index);
        }
    }

    fn unlink(&mut self, index: Index) {
        let slot = &mut self.slots.as_mut()[index.0];
        slot.word &= !QUEUED;
        self.head = slot.next;
        if self.head == 0 {
            self.tail = 0;
        }
    }

    /// Puts every unit where it belongs, without the dead ones and without more memory: units on the move are taken out and put
    /// into the first slot that is empty or holds another one on the move, which is the next to be put.
    fn rebuild(&mut self) {
        let slots = self.slots.as_mut();
        let length = slots.len();
        for slot in slots.iter_mut() {
            match slot.word & (USED | DEAD) {
                USED => slot.word |= MOVING,
                _ => *slot = Slot::default(),
            }
        }
        for at in 0..length {
            if slots[at].word & MOVING == 0 {
                continue;
            }
            let mut moved = core::mem::take(&mut slots[at]);
            while moved.word != 0 {
                let mut to = home(moved.word & KEY, length);
                while slots[to].word != 0 && slots[to].word & MOVING == 0 {
                    to = if to + 1 == length { 0 } else { to + 1 };
                }
                moved.word &= !MOVING;
                core::mem::swap(&mut slots[to], &mut moved);
            }
        }
        (self.dead, self.head, self.tail) = (0, 0, 0);
        self.sweep(|table, index| {
            if table.has(index, QUEUED) {
                table.link(index);
            }
        });
    }
}

fn word(unit: &Unit) -> u64 {
    let large = if unit.place.extent() == Extent::Large { LARGE } else { 0 };
    unit.place.key() | large | (unit.content as u64) << CONTENT_SHIFT | USED
}

/// Where the search for a key begins: Fibonacci hashing, scaled to any length.
fn home(key: u64, length: usize) -> usize {
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(hash) * length as u128) >> 64) as usize
}
