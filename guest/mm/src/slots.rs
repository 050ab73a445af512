//! Ranges of virtual addresses, handed out by size: a bitmap of slots for each of a few sizes.
//!
//! A request takes a slot of the smallest size that holds it, or of a larger one if all of these are in use. The state
//! is two bits per slot, *used* and *resting*; every operation is single atomic steps on them, so a vCPU that is stopped
//! in the middle keeps at most its own slot from the others. The lowest free slot is preferred: fewer page tables.
//!
//! A slot whose pages were unmapped while another vCPU may still have their translations *rests*: it is used again
//! only when every vCPU has flushed since (`settled`), so no pointer into it needs care when it crosses vCPUs.

use crate::sync::{AtomicU64, Ordering};

/// The slots of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotClass {
    /// Offset of the first slot in bytes.
    pub start: u64,
    /// Length of a slot in bytes.
    pub slot_bytes: u64,
    /// Slots.
    pub count: u64,
    first_word: usize,
}

impl SlotClass {
    const fn end(&self) -> u64 {
        self.start + self.slot_bytes * self.count
    }

    const fn words(&self) -> usize {
        self.count.div_ceil(64) as usize
    }
}

/// Lays out classes of the given (slot bytes, count), ascending in size, one behind the other from `start` on, each at a
/// multiple of its slot size if `aligned`.
pub const fn lay_out<const C: usize>(sizes: [(u64, u64); C], start: u64, aligned: bool) -> [SlotClass; C] {
    let mut classes = [SlotClass { start: 0, slot_bytes: 0, count: 0, first_word: 0 }; C];
    let (mut at, mut word, mut index) = (start, 0, 0);
    while index < C {
        let (slot_bytes, count) = sizes[index];
        if aligned {
            at = at.next_multiple_of(slot_bytes);
        }
        classes[index] = SlotClass { start: at, slot_bytes, count, first_word: word };
        at = classes[index].end();
        word += classes[index].words();
        index += 1;
    }
    classes
}

/// Words that the bitmaps of these classes need.
pub const fn words_of(classes: &[SlotClass]) -> usize {
    let last = &classes[classes.len() - 1];
    last.first_word + last.words()
}

/// First offset behind all slots.
pub const fn end_of(classes: &[SlotClass]) -> u64 {
    classes[classes.len() - 1].end()
}

/// Slots of `C` sizes, whose bitmaps take `W` words.
pub struct Slots<const C: usize, const W: usize> {
    classes: [SlotClass; C],
    /// Bit set: in use, or resting.
    used: [AtomicU64; W],
    /// Bit set: not in use any more, and not to be used before it is settled.
    resting: [AtomicU64; W],
    /// Generation of the last unmapping among the resting slots of a class.
    generation: [AtomicU64; C],
    /// Slots of a class that rest; an upper bound.
    rest_count: [AtomicU64; C],
    /// Word of a class below which all are probably in use.
    first_free: [AtomicU64; C],
}

impl<const C: usize, const W: usize> Slots<C, W> {
    /// Free slots in these classes, which [`lay_out`] made.
    pub const fn new(classes: [SlotClass; C]) -> Self {
        assert!(words_of(&classes) == W, "W must be words_of(&classes)");
        Slots {
            classes,
            used: [const { AtomicU64::new(0) }; W],
            resting: [const { AtomicU64::new(0) }; W],
            generation: [const { AtomicU64::new(0) }; C],
            rest_count: [const { AtomicU64::new(0) }; C],
            first_free: [const { AtomicU64::new(0) }; C],
        }
    }

    /// The class of the slot that holds `offset`.
    pub fn class_of(&self, offset: u64) -> Option<&SlotClass> {
        self.classes.iter().find(|class| (class.start..class.end()).contains(&offset))
    }

    /// Takes a slot of at least `bytes` bytes; returns its offset. `settled` is called only if slots rest: the
    /// generation up to which all vCPUs have flushed.
    pub fn take(&self, bytes: u64, settled: impl Fn() -> u64) -> Option<u64> {
        let first = self.classes.iter().position(|class| class.slot_bytes >= bytes)?;
        (first..C).find_map(|index| {
            self.take_in(index).or_else(|| {
                if self.rest_count[index].load(Ordering::Relaxed) == 0 {
                    return None;
                }
                self.wake_resting(index, &settled);
                self.take_in(index)
            })
        })
    }

    fn take_in(&self, index: usize) -> Option<u64> {
        let class = &self.classes[index];
        let hint = self.first_free[index].load(Ordering::Relaxed);
        let first = (hint as usize).min(class.words());
        for word in (first..class.words()).chain(0..first) {
            let limit = class.count - word as u64 * 64;
            let all = if limit >= 64 { u64::MAX } else { (1 << limit) - 1 };
            let used = &self.used[class.first_word + word];
            let mut free = !used.load(Ordering::Relaxed) & all;
            while free != 0 {
                let bit = free & free.wrapping_neg();
                if used.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
                    if word as u64 != hint {
                        // Fails if a slot came free since; then the hint is better than ours.
                        let _ = self.first_free[index].compare_exchange(
                            hint,
                            word as u64,
                            Ordering::Relaxed,
                            Ordering::Relaxed,
                        );
                    }
                    return Some(
                        class.start + (word as u64 * 64 + u64::from(bit.trailing_zeros())) * class.slot_bytes,
                    );
                }
                free = !used.load(Ordering::Relaxed) & all;
            }
        }
        None
    }

    fn locate(&self, offset: u64) -> (usize, usize, u64) {
        let index = self.classes.iter().position(|class| (class.start..class.end()).contains(&offset));
        let index = index.expect("an offset in no slot");
        let class = &self.classes[index];
        let slot = (offset - class.start) / class.slot_bytes;
        (index, class.first_word + (slot / 64) as usize, 1 << (slot % 64))
    }

    /// Gives the slot that holds `offset` back, for anybody at once.
    pub fn give(&self, offset: u64) {
        let (index, word, bit) = self.locate(offset);
        self.give_bits(index, word, bit);
    }

    fn give_bits(&self, index: usize, word: usize, bits: u64) {
        let before = self.used[word].fetch_and(!bits, Ordering::AcqRel);
        debug_assert_eq!(before & bits, bits, "a slot that nobody has");
        let word = (word - self.classes[index].first_word) as u64;
        self.first_free[index].fetch_min(word, Ordering::Relaxed);
    }

    /// Gives the slot that holds `offset` back, for use once all vCPUs have flushed `generation`, the one after which
    /// nothing of it was mapped any more.
    pub fn rest(&self, offset: u64, generation: u64) {
        let (index, word, bit) = self.locate(offset);
        // Before the bit: whoever sees the bit sees a generation that is late enough.
        self.generation[index].fetch_max(generation, Ordering::SeqCst);
        self.rest_count[index].fetch_add(1, Ordering::Relaxed);
        self.resting[word].fetch_or(bit, Ordering::SeqCst);
    }

    /// Frees the resting slots of a class if they are settled.
    fn wake_resting(&self, index: usize, settled: impl Fn() -> u64) {
        let class = &self.classes[index];
        for word in class.first_word..class.first_word + class.words() {
            if self.resting[word].load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Taken first, so that nobody else frees them, and only then is it certain which generation counts for them.
            let bits = self.resting[word].swap(0, Ordering::SeqCst);
            if self.generation[index].load(Ordering::SeqCst) > settled() {
                self.resting[word].fetch_or(bits, Ordering::SeqCst);
                return;
            }
            self.rest_count[index].fetch_sub(u64::from(bits.count_ones()), Ordering::Relaxed);
            self.give_bits(index, word, bits);
        }
    }

    /// Says that no vCPU has translations of anything that rests. Nobody else may use the slots meanwhile.
    pub fn settle(&self) {
        for index in 0..C {
            self.generation[index].store(0, Ordering::SeqCst);
            self.wake_resting(index, || u64::MAX);
        }
    }

    /// Shows the offset and length of every slot in use, resting ones included.
    pub fn for_each_used(&self, visit: &mut dyn FnMut(u64, u64)) {
        for class in &self.classes {
            for slot in 0..class.count {
                let word = self.used[class.first_word + (slot / 64) as usize].load(Ordering::SeqCst);
                if word >> (slot % 64) & 1 != 0 {
                    visit(class.start + slot * class.slot_bytes, class.slot_bytes);
                }
            }
        }
    }

    /// Slots in use, resting ones included.
    pub fn used(&self) -> u64 {
        self.used.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }
}

/// A few values that anybody may put in and take out: what is kept for the next one who needs the like. Zero is no value.
pub struct Bag<const N: usize> {
    places: [AtomicU64; N],
    /// Where the last value was put or found.
    hint: AtomicU64,
}

impl<const N: usize> Bag<N> {
    /// An empty bag.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Bag { places: [const { AtomicU64::new(0) }; N], hint: AtomicU64::new(0) }
    }

    fn indices_by_hint(&self) -> impl Iterator<Item = usize> {
        let hint = self.hint.load(Ordering::Relaxed) as usize % N;
        (hint..N).chain(0..hint)
    }

    /// Puts a value in.
    ///
    /// # Errors
    /// The value, if the bag is full.
    pub fn put(&self, value: u64) -> Result<(), u64> {
        debug_assert_ne!(value, 0);
        for index in self.indices_by_hint() {
            let place = &self.places[index];
            if place.load(Ordering::Relaxed) == 0
                && place.compare_exchange(0, value, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                self.hint.store(index as u64, Ordering::Relaxed);
                return Ok(());
            }
        }
        Err(value)
    }

    /// Takes a value out that `fits`.
    pub fn take(&self, fits: impl Fn(u64) -> bool) -> Option<u64> {
        for index in self.indices_by_hint() {
            let place = &self.places[index];
            let value = place.load(Ordering::Relaxed);
            if value != 0
                && fits(value)
                && place.compare_exchange(value, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                self.hint.store(index as u64, Ordering::Relaxed);
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
