//! The tenant heap: a lock-free allocator that hands out offsets.
//!
//! ```text
//! chunk                  2 MiB: a header, then 31 slabs of 64 KiB
//! small (up to 64 KiB)   a block of a slab, all of whose blocks are of one size class
//! medium (up to 1 MiB)   neighbouring slabs of one chunk
//! large                  a slot of a power of two of addresses, with large pages for what was asked
//! ```
//! All state is out of band: nothing is written into free blocks. A slab is a class and a bitmap; allocating is
//! clearing one bit, freeing is setting it again. Everything else says where to look: per class a *partial* bit for each
//! slab that may have free blocks, above it a bit per chunk, and hints for the slab that was used last, one set for each
//! of a few *spreads* (the caller's vCPU number, so that vCPUs meet rarely; nothing depends on it).
//!
//! Chunks stay mapped for good. Large blocks are unmapped when they are freed, and their addresses rest until all
//! vCPUs have flushed (see [`Slots`]): a block may be handed from one running task to another without a flush.
//!
//! **Stopped anywhere.** A vCPU that is stopped inside an operation holds no lock. What it has in its hands then is out of
//! reach for the others until it runs again: at most one block, slab, chunk or slot.
//!
//! **Why a stale look is harmless.** A slab changes its class only when all its bits were taken by the one who changes
//! it. So whoever has taken one bit has pinned the class: it is looked at after the bit was taken, and if it is not the
//! expected one the bit goes back. A partial bit is cleared by whoever finds nothing, who then looks once more and
//! sets it again if a block came free in between; whoever frees a block sets it if it is clear. Either the free is seen
//! by the second look, or the cleared bit by the one who frees.

mod classes;
mod runs;

use crate::slots::{SlotClass, Slots, end_of, lay_out, words_of};
use crate::sync::{AtomicU64, Ordering};
use classes::{CLASSES, SIZES, SLAB_BYTES, SMALL_MAX, block_at, class_for, word_mask, words};
use nacre_abi::LARGE_PAGE_BYTES;
use runs::{run_bits, take_run};

/// Bytes of a chunk.
pub const CHUNK_BYTES: u64 = LARGE_PAGE_BYTES;
/// Most chunks there can be: as many as the largest CVM has memory for.
pub const CHUNKS: usize = (nacre_abi::layout::MEMORY_MAX_BYTES / CHUNK_BYTES) as usize;
/// Slabs in a chunk, the first of which holds the header.
const SLABS: usize = (CHUNK_BYTES / SLAB_BYTES) as usize;
/// The bits of all slabs that can be used.
const ALL_SLABS: u64 = (1 << SLABS) - 2;
/// Words of a bitmap of chunks.
const CHUNK_WORDS: usize = CHUNKS / 64;
/// Largest block that is made of slabs.
const MEDIUM_MAX: u64 = 1 << 20;
/// Sets of hints.
const SPREADS: usize = 16;
/// The row of the directory for free slabs.
const FREE_ROW: usize = CLASSES;

/// Sizes of large slots: 2 MiB to 64 GiB. The smallest ones have 512 GiB of addresses, the others up to 64 GiB each.
const LARGE_CLASSES: usize = 16;
const LARGE: [SlotClass; LARGE_CLASSES] = {
    let mut sizes = [(0, 0); LARGE_CLASSES];
    let mut index = 0;
    while index < LARGE_CLASSES {
        let bytes = LARGE_PAGE_BYTES << index;
        let budget: u64 = match index {
            0 => 256 << 30,
            1..10 => 32 << 30,
            _ => 64 << 30,
        };
        sizes[index] = (bytes, budget / bytes);
        index += 1;
    }
    lay_out(sizes, CHUNKS as u64 * CHUNK_BYTES, true)
};
const LARGE_WORDS: usize = words_of(&LARGE);
const CHUNK_CLASS: [SlotClass; 1] = lay_out([(CHUNK_BYTES, CHUNKS as u64)], 0, true);

/// First offset behind everything.
pub const END_OFFSET: u64 = end_of(&LARGE);

/// The state of a chunk, at its start. All zeros before its first use.
#[repr(C)]
pub struct Header {
    /// Per class, bit set: that slab may have free blocks of the class. In the last row: that slab is free.
    partial: [AtomicU64; CLASSES + 1],
    /// Per slab: 1 + its class; 0 for a free one, one on its way, or a part of a medium block.
    class: [AtomicU64; SLABS],
    /// Per slab, bit set: that block is free.
    blocks: [[AtomicU64; 64]; SLABS],
}

const _: () = assert!(size_of::<Header>() as u64 <= SLAB_BYTES, "the header must fit into the first slab");

impl Header {
    /// A header as the heap expects to find it.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Header {
        Header {
            partial: [const { AtomicU64::new(0) }; CLASSES + 1],
            class: [const { AtomicU64::new(0) }; SLABS],
            blocks: [const { [const { AtomicU64::new(0) }; 64] }; SLABS],
        }
    }
}

/// What the heap takes from the machine. Offsets are from the heap's start; ranges are whole large pages.
pub trait HeapMemory {
    /// The header of a chunk that was mapped.
    fn header(&self, chunk: usize) -> &Header;
    /// Makes `bytes` bytes at `offset` usable, zero where nothing was; false if there is no memory. `reserve` says whether
    /// the memory kept for small blocks may be used.
    fn map(&self, offset: u64, bytes: u64, reserve: bool) -> bool;
    /// Takes them away; returns the generation which vCPUs must have flushed before the addresses are used again.
    fn unmap(&self, offset: u64, bytes: u64) -> u64;
    /// The generation up to which all vCPUs have flushed.
    fn settled(&self) -> u64;
    /// Some number that differs between vCPUs: a hint.
    fn spread(&self) -> usize;
}

/// The heap.
pub struct Heap {
    chunks: Slots<1, CHUNK_WORDS>,
    large: Slots<LARGE_CLASSES, LARGE_WORDS>,
    /// Per class, and for free slabs, bit set: that chunk may have a partial (free) slab.
    directory: [[AtomicU64; CHUNK_WORDS]; CLASSES + 1],
    /// First chunk that was never used.
    chunks_end: AtomicU64,
    /// Chunks that were added so far.
    chunks_added: AtomicU64,
    /// Per spread and class: 1 + number of a slab, times 64, plus a word of its bitmap.
    hints: [Hints; SPREADS],
}

#[repr(align(128))]
struct Hints([AtomicU64; CLASSES]);

/// A slab: its chunk and its number there.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slab {
    chunk: usize,
    number: usize,
}

impl Slab {
    fn index(self) -> u64 {
        (self.chunk * SLABS + self.number) as u64
    }

    fn at(offset: u64) -> Slab {
        Slab::from_index(offset / SLAB_BYTES)
    }

    fn from_index(index: u64) -> Slab {
        Slab { chunk: index as usize / SLABS, number: index as usize % SLABS }
    }

    fn bit(self) -> u64 {
        1 << self.number
    }

    fn offset(self) -> u64 {
        self.index() * SLAB_BYTES
    }
}

/// How a layout is served.
enum Kind {
    Small { class: usize },
    Medium { slabs: u32 },
    Large { bytes: u64, slot_bytes: u64 },
}

impl Kind {
    #[inline]
    fn of(bytes: u64, align: u64) -> Kind {
        if let Some(class) = class_for(bytes, align) {
            return Kind::Small { class };
        }
        Kind::of_more(bytes, align)
    }

    #[cold]
    fn of_more(bytes: u64, align: u64) -> Kind {
        if bytes <= MEDIUM_MAX && align <= SLAB_BYTES {
            return Kind::Medium { slabs: bytes.div_ceil(SLAB_BYTES) as u32 };
        }
        let bytes = bytes.checked_next_multiple_of(LARGE_PAGE_BYTES).unwrap_or(u64::MAX);
        let slot_bytes = bytes.max(align).checked_next_power_of_two().unwrap_or(u64::MAX);
        Kind::Large { bytes, slot_bytes }
    }
}

/// A new block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its offset.
    pub offset: u64,
    /// Its content is zero: nobody has used it since it was mapped.
    pub zeroed: bool,
}

impl Heap {
    /// An empty heap.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Heap {
        Heap {
            chunks: Slots::new(CHUNK_CLASS),
            large: Slots::new(LARGE),
            directory: [const { [const { AtomicU64::new(0) }; CHUNK_WORDS] }; CLASSES + 1],
            chunks_end: AtomicU64::new(0),
            chunks_added: AtomicU64::new(0),
            hints: [const { Hints([const { AtomicU64::new(0) }; CLASSES]) }; SPREADS],
        }
    }

    /// Takes a block of `bytes` bytes at a multiple of `align`, a power of two; `None` if there is no memory.
    #[inline]
    pub fn alloc(&self, memory: &impl HeapMemory, bytes: u64, align: u64) -> Option<Block> {
        let used = |offset| Block { offset, zeroed: false };
        match Kind::of(bytes, align) {
            Kind::Small { class } => self.alloc_small(memory, class).map(used),
            Kind::Medium { slabs } => self.take_slabs(memory, slabs, false).map(|slab| used(slab.offset())),
            Kind::Large { bytes, slot_bytes } => {
                let offset = self.large.take(slot_bytes, || memory.settled())?;
                if memory.map(offset, bytes, false) {
                    return Some(Block { offset, zeroed: true });
                }
                self.large.give(offset);
                None
            }
        }
    }

    /// Gives a block back; `bytes` and `align` are those it has now.
    #[inline]
    pub fn free(&self, memory: &impl HeapMemory, offset: u64, bytes: u64, align: u64) {
        match Kind::of(bytes, align) {
            Kind::Small { class } => self.free_small(memory, class, offset),
            Kind::Medium { slabs } => self.free_slabs(memory, Slab::at(offset), slabs),
            Kind::Large { bytes, .. } => self.large.rest(offset, memory.unmap(offset, bytes)),
        }
    }

    /// Changes the size of a block without moving it; false if that can't be.
    pub fn resize(
        &self,
        memory: &impl HeapMemory,
        offset: u64,
        bytes: u64,
        align: u64,
        new_bytes: u64,
    ) -> bool {
        match (Kind::of(bytes, align), Kind::of(new_bytes, align)) {
            (Kind::Small { class: old }, Kind::Small { class: new }) => old == new,
            (Kind::Medium { slabs: old }, Kind::Medium { slabs: new }) => {
                if new < old {
                    let slab = Slab::at(offset);
                    self.free_slabs(memory, Slab { number: slab.number + new as usize, ..slab }, old - new);
                }
                new <= old
            }
            (Kind::Large { bytes: old, .. }, Kind::Large { bytes: new, .. }) => {
                // Never grown into addresses that were unmapped a moment ago: other vCPUs may know them.
                if new < old {
                    memory.unmap(offset + new, old - new);
                }
                new <= old
            }
            _ => false,
        }
    }
}

/// For who moves the whole heap elsewhere.
impl Heap {
    /// Shows the offset and length of every range that may be mapped.
    pub fn for_each_range(&self, visit: &mut dyn FnMut(u64, u64)) {
        self.chunks.for_each_used(visit);
        self.large.for_each_used(visit);
    }

    /// Shows the offset of every slab (64 KiB) whose blocks are of a class of at most `most` bytes, or were. Nobody uses the heap
    /// meanwhile.
    pub fn for_each_slab(&self, memory: &impl HeapMemory, most: u32, visit: &mut dyn FnMut(u64, u64)) {
        for chunk in 0..self.chunks_end.load(Ordering::SeqCst) as usize {
            let header = memory.header(chunk);
            for (number, class) in header.class.iter().enumerate().skip(1) {
                let class = class.load(Ordering::SeqCst);
                let size = class.checked_sub(1).and_then(|class| SIZES.get(class as usize));
                // A free slab may have had blocks of any class.
                if size.is_none_or(|size| *size <= most) {
                    visit(Slab { chunk, number }.offset(), SLAB_BYTES);
                }
            }
        }
    }

    /// Says that no vCPU has translations of what was unmapped. Nobody may use the heap meanwhile.
    pub fn settle(&self) {
        self.large.settle();
    }
}

/// Whom a row of the directory leads to.
impl Heap {
    /// The first success of `attempt` among the chunks in a row of the directory, from word `start` of it on.
    fn find<T>(
        &self,
        memory: &impl HeapMemory,
        row: usize,
        start: usize,
        attempt: impl Fn(usize) -> Option<T>,
    ) -> Option<T> {
        let end = (self.chunks_end.load(Ordering::SeqCst) as usize).div_ceil(64);
        let start = if start < end { start } else { 0 };
        for word in (start..end).chain(0..start) {
            let mut chunks = self.directory[row][word].load(Ordering::SeqCst);
            while chunks != 0 {
                let chunk = word * 64 + chunks.trailing_zeros() as usize;
                chunks &= chunks - 1;
                if let Some(found) = attempt(chunk) {
                    return Some(found);
                }
                self.unpublish_chunk(memory, row, chunk);
            }
        }
        None
    }

    fn publish_chunk(&self, row: usize, chunk: usize) {
        let (word, bit) = (&self.directory[row][chunk / 64], 1 << (chunk % 64));
        if word.load(Ordering::SeqCst) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    fn unpublish_chunk(&self, memory: &impl HeapMemory, row: usize, chunk: usize) {
        let slabs = &memory.header(chunk).partial[row];
        if slabs.load(Ordering::SeqCst) == 0 {
            let (word, bit) = (&self.directory[row][chunk / 64], 1 << (chunk % 64));
            word.fetch_and(!bit, Ordering::SeqCst);
            if slabs.load(Ordering::SeqCst) != 0 {
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    /// Says that a slab may have free blocks of a class.
    fn publish(&self, memory: &impl HeapMemory, class: usize, slab: Slab) {
        let partial = &memory.header(slab.chunk).partial[class];
        if partial.load(Ordering::SeqCst) & slab.bit() == 0 {
            partial.fetch_or(slab.bit(), Ordering::SeqCst);
        }
        self.publish_chunk(class, slab.chunk);
    }

    /// Says that a slab was found to have none, unless it has after all.
    fn unpublish(&self, memory: &impl HeapMemory, class: usize, slab: Slab) {
        let header = memory.header(slab.chunk);
        let partial = &header.partial[class];
        if partial.load(Ordering::SeqCst) & slab.bit() == 0 {
            return;
        }
        partial.fetch_and(!slab.bit(), Ordering::SeqCst);
        let has_free = header.class[slab.number].load(Ordering::SeqCst) == class as u64 + 1
            && header.blocks[slab.number][..words(class)].iter().any(|word| word.load(Ordering::SeqCst) != 0);
        if has_free {
            self.publish(memory, class, slab);
        }
    }
}

/// Slabs and chunks.
impl Heap {
    /// Takes `count` neighbouring free slabs.
    fn take_slabs(&self, memory: &impl HeapMemory, count: u32, reserve: bool) -> Option<Slab> {
        loop {
            let seen = self.chunks_added.load(Ordering::SeqCst);
            let free = |chunk| take_run(&memory.header(chunk).partial[FREE_ROW], count);
            let found =
                self.find(memory, FREE_ROW, 0, |chunk| free(chunk).map(|number| Slab { chunk, number }));
            if found.is_some() {
                return found;
            }
            let added = self.add_chunk(memory, count, reserve);
            // No memory: unless another vCPU has added a chunk meanwhile, that is the end.
            if added.is_some() || self.chunks_added.load(Ordering::SeqCst) == seen {
                return added;
            }
        }
    }

    /// Maps one more chunk and takes its first `count` slabs.
    fn add_chunk(&self, memory: &impl HeapMemory, count: u32, reserve: bool) -> Option<Slab> {
        let offset = self.chunks.take(CHUNK_BYTES, || 0)?;
        let chunk = (offset / CHUNK_BYTES) as usize;
        if !memory.map(offset, CHUNK_BYTES, reserve) {
            self.chunks.give(offset);
            return None;
        }
        let taken = run_bits(count) << 1;
        memory.header(chunk).partial[FREE_ROW].store(ALL_SLABS & !taken, Ordering::SeqCst);
        self.chunks_end.fetch_max(chunk as u64 + 1, Ordering::SeqCst);
        self.publish_chunk(FREE_ROW, chunk);
        self.chunks_added.fetch_add(1, Ordering::SeqCst);
        Some(Slab { chunk, number: 1 })
    }

    fn free_slabs(&self, memory: &impl HeapMemory, first: Slab, count: u32) {
        let bits = run_bits(count) << first.number;
        let before = memory.header(first.chunk).partial[FREE_ROW].fetch_or(bits, Ordering::SeqCst);
        debug_assert_eq!(before & bits, 0, "slabs freed twice");
        self.publish_chunk(FREE_ROW, first.chunk);
    }

    /// Makes a slab that the caller has taken one of `class`, and takes its first block.
    fn open_slab(&self, memory: &impl HeapMemory, slab: Slab, class: usize, hint: &AtomicU64) -> u64 {
        let header = memory.header(slab.chunk);
        // Nobody finds a free block in it yet, so nobody relies on its class.
        header.class[slab.number].store(class as u64 + 1, Ordering::SeqCst);
        for word in 0..words(class) {
            let first = u64::from(word == 0);
            header.blocks[slab.number][word].store(word_mask(class, word) & !first, Ordering::SeqCst);
        }
        if word_mask(class, 0) != 1 {
            hint.store(hint_of(slab, 0), Ordering::Relaxed);
            self.publish(memory, class, slab);
        }
        slab.offset()
    }

    /// Frees a slab if all its blocks are free, unless this vCPU allocates from it just now.
    fn retire(&self, memory: &impl HeapMemory, class: usize, slab: Slab) -> bool {
        let hint = self.hints[memory.spread() % SPREADS].0[class].load(Ordering::Relaxed);
        let header = memory.header(slab.chunk);
        let blocks = &header.blocks[slab.number][..words(class)];
        let is_free = |word: usize| blocks[word].load(Ordering::Relaxed) == word_mask(class, word);
        if hint / 64 == slab.index() + 1 || !(0..blocks.len()).all(is_free) {
            return false;
        }
        for taken in 0..blocks.len() {
            let all = word_mask(class, taken);
            let took = blocks[taken].compare_exchange(all, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok();
            if !took || (taken == 0 && !self.is_of_class(memory, slab, class, 0, all)) {
                for (word, bits) in blocks[..taken].iter().enumerate() {
                    bits.fetch_or(word_mask(class, word), Ordering::SeqCst);
                }
                if taken != 0 {
                    self.publish(memory, class, slab);
                }
                return false;
            }
        }
        header.class[slab.number].store(0, Ordering::SeqCst);
        header.partial[class].fetch_and(!slab.bit(), Ordering::SeqCst);
        self.free_slabs(memory, slab, 1);
        true
    }

    /// Whether the slab, of which the caller has just taken `bits`, is of `class`: from then on it stays so. If it is not,
    /// it was freed and opened for another class since the caller looked; then the bits are put back.
    #[inline]
    fn is_of_class(
        &self,
        memory: &impl HeapMemory,
        slab: Slab,
        class: usize,
        word: usize,
        bits: u64,
    ) -> bool {
        let header = memory.header(slab.chunk);
        let now = header.class[slab.number].load(Ordering::SeqCst);
        if now == class as u64 + 1 {
            return true;
        }
        header.blocks[slab.number][word].fetch_or(bits, Ordering::SeqCst);
        if now != 0 {
            // Somebody may have found nothing in it meanwhile.
            self.publish(memory, now as usize - 1, slab);
        }
        false
    }
}

/// Small blocks.
impl Heap {
    #[inline]
    fn alloc_small(&self, memory: &impl HeapMemory, class: usize) -> Option<u64> {
        let hint = &self.hints[memory.spread() % SPREADS].0[class];
        let seen = hint.load(Ordering::Relaxed);
        if seen >= 64 {
            let slab = Slab::from_index(seen / 64 - 1);
            let word = (seen % 64) as usize;
            if let Some((offset, found)) = self.take_block(memory, slab, class, word) {
                if found != word {
                    hint.store(hint_of(slab, found), Ordering::Relaxed);
                }
                return Some(offset);
            }
            self.unpublish(memory, class, slab);
        }
        self.alloc_elsewhere(memory, class, hint)
    }

    /// From a partial slab, a free slab or a new chunk.
    #[cold]
    fn alloc_elsewhere(&self, memory: &impl HeapMemory, class: usize, hint: &AtomicU64) -> Option<u64> {
        let start = hint.load(Ordering::Relaxed) / 64 / SLABS as u64 / 64;
        // vCPUs that come to the same slab begin at different words.
        let word = memory.spread() % words(class);
        let partial = self.find(memory, class, start as usize, |chunk| {
            let mut slabs = memory.header(chunk).partial[class].load(Ordering::SeqCst);
            while slabs != 0 {
                let slab = Slab { chunk, number: slabs.trailing_zeros() as usize };
                slabs &= slabs - 1;
                if let Some((offset, word)) = self.take_block(memory, slab, class, word) {
                    return Some((slab, offset, word));
                }
                self.unpublish(memory, class, slab);
            }
            None
        });
        if let Some((slab, offset, word)) = partial {
            hint.store(hint_of(slab, word), Ordering::Relaxed);
            return Some(offset);
        }
        let reserve = u64::from(SIZES[class]) < SMALL_MAX;
        let slab = self.take_slabs(memory, 1, reserve)?;
        Some(self.open_slab(memory, slab, class, hint))
    }

    /// Takes a block of a slab, if that is of `class` and has one, searching from a word of its bitmap on; returns the
    /// block's offset and its word.
    #[inline]
    fn take_block(
        &self,
        memory: &impl HeapMemory,
        slab: Slab,
        class: usize,
        start: usize,
    ) -> Option<(u64, usize)> {
        let (header, count) = (memory.header(slab.chunk), words(class));
        if header.class[slab.number].load(Ordering::Relaxed) != class as u64 + 1 {
            return None;
        }
        let start = if start < count { start } else { 0 };
        for word in (start..count).chain(0..start) {
            let blocks = &header.blocks[slab.number][word];
            let mut free = blocks.load(Ordering::Relaxed);
            while free != 0 {
                let bit = free & free.wrapping_neg();
                if blocks.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                    if !self.is_of_class(memory, slab, class, word, bit) {
                        return None;
                    }
                    let block = word as u64 * 64 + u64::from(bit.trailing_zeros());
                    return Some((slab.offset() + block * u64::from(SIZES[class]), word));
                }
                free = blocks.load(Ordering::Relaxed);
            }
        }
        None
    }

    #[inline]
    fn free_small(&self, memory: &impl HeapMemory, class: usize, offset: u64) {
        let slab = Slab::at(offset);
        let header = memory.header(slab.chunk);
        debug_assert_eq!(header.class[slab.number].load(Ordering::Relaxed), class as u64 + 1, "another size");
        let block = block_at(class, offset % SLAB_BYTES);
        let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
        let before = header.blocks[slab.number][word].fetch_or(bit, Ordering::SeqCst);
        debug_assert_eq!(before & bit, 0, "freed twice");
        if before | bit == word_mask(class, word) && self.retire(memory, class, slab) {
            return;
        }
        if header.partial[class].load(Ordering::SeqCst) & slab.bit() == 0 {
            self.publish(memory, class, slab);
        }
    }
}

fn hint_of(slab: Slab, word: usize) -> u64 {
    (slab.index() + 1) * 64 + word as u64
}

#[cfg(test)]
mod tests;
