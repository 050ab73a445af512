//! [`Heap`]: a binary heap of CVM slots, least key first, in which a slot's key can be changed or taken out in
//! O(log n). Equal keys go by slot number, so the order depends on nothing but the contents.

/// Marks a slot that is not in the heap.
const ABSENT: u32 = u32::MAX;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Heap {
    entries: Vec<(u128, u32)>,
    /// For every slot its place in `entries`, or [`ABSENT`].
    places: Vec<u32>,
}

impl Heap {
    /// The slot with the least key, and its key.
    pub(super) fn first(&self) -> Option<(u32, u128)> {
        self.entries.first().map(|&(key, slot)| (slot, key))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        self.places.get(slot as usize).is_some_and(|&place| place != ABSENT)
    }

    /// Puts `slot` in with `key`, or changes its key.
    pub(super) fn set(&mut self, slot: u32, key: u128) {
        if self.places.len() <= slot as usize {
            self.places.resize(slot as usize + 1, ABSENT);
        }
        let place = match self.places[slot as usize] {
            ABSENT => {
                self.entries.push((key, slot));
                self.entries.len() - 1
            }
            place => {
                self.entries[place as usize].0 = key;
                place as usize
            }
        };
        self.settle(place);
    }

    /// Takes `slot` out if it is in.
    pub(super) fn remove(&mut self, slot: u32) {
        let Some(place) = self.places.get_mut(slot as usize).filter(|place| **place != ABSENT) else {
            return;
        };
        let hole = std::mem::replace(place, ABSENT) as usize;
        self.entries.swap_remove(hole);
        if hole < self.entries.len() {
            self.settle(hole);
        }
    }

    /// Moves the entry at `place` up or down until the heap is in order, and notes where it and the others are.
    fn settle(&mut self, place: usize) {
        let entry = self.entries[place];
        let mut hole = place;
        while hole > 0 && entry < self.entries[(hole - 1) / 2] {
            self.put(hole, self.entries[(hole - 1) / 2]);
            hole = (hole - 1) / 2;
        }
        if hole == place {
            loop {
                let mut child = 2 * hole + 1;
                if child + 1 < self.entries.len() && self.entries[child + 1] < self.entries[child] {
                    child += 1;
                }
                if child >= self.entries.len() || entry <= self.entries[child] {
                    break;
                }
                self.put(hole, self.entries[child]);
                hole = child;
            }
        }
        self.put(hole, entry);
    }

    fn put(&mut self, place: usize, entry: (u128, u32)) {
        self.entries[place] = entry;
        // There are fewer slots than 2^32, so the cast keeps the value.
        self.places[entry.1 as usize] = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_as_a_sorted_map(steps in prop::collection::vec((0u32..40, prop::option::of(0u128..50)), 1..300)) {
            let mut heap = Heap::default();
            let mut model = BTreeMap::new();
            for (slot, key) in steps {
                match key {
                    Some(key) => {
                        heap.set(slot, key);
                        model.insert(slot, key);
                    }
                    None => {
                        heap.remove(slot);
                        model.remove(&slot);
                    }
                }
                let least = model.iter().map(|(&slot, &key)| (key, slot)).min();
                prop_assert_eq!(heap.first(), least.map(|(key, slot)| (slot, key)));
                prop_assert_eq!(heap.is_empty(), model.is_empty());
                prop_assert_eq!(heap.contains(slot), model.contains_key(&slot));
            }
        }
    }
}
