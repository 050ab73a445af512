//! The frame allocator: which frames of private memory are free.
//!
//! Memory is divided into large frames (2 MiB). A large frame is free as a whole, in use as a whole, or split into 512
//! small frames (4 KiB), each with its own bit. All state is bits in atomic words; every operation is a bounded number
//! of compare-and-swaps on one word after another, so a vCPU that is stopped in the middle delays nobody.
//!
//! A split frame may be *reserved*: its small ones are for who asks for them by their number ([`Frames::alloc_reserved`],
//! [`Frames::alloc_beside`]), and for others only once nothing else is free. So small pages that come one by one end up as the
//! pieces of one large frame, in order, and can be joined without a copy. After J. Navarro, S. Iyer, P. Druschel and A. Cox,
//! "Practical, transparent operating system support for superpages", OSDI 2002.
//!
//! Besides, the allocator keeps the *commitment*: how many pages have been promised to areas that may touch them later.
//! A promise is only made when there is a frame for it, so that running out of memory is an error of the call that
//! asks (`memory.grow`, a file write), never of a store instruction.

use crate::GuestPhys;
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};

/// Small frames in a large one.
pub const SMALL_PER_LARGE: u64 = LARGE_PAGE_BYTES / PAGE_BYTES;
const WORDS_PER_LARGE: usize = (SMALL_PER_LARGE / 64) as usize;

/// The words an allocator over `large_frames` frames needs.
pub const fn words_needed(large_frames: usize) -> usize {
    4 * large_frames.div_ceil(64) + large_frames * WORDS_PER_LARGE
}

/// The allocator. Its maps are in memory that the caller provides.
pub struct Frames<'a> {
    base: GuestPhys,
    count: usize,
    /// Bit set: free as a whole.
    whole: &'a [AtomicU64],
    /// Bit set: split, and some small frame may be free.
    partial: &'a [AtomicU64],
    /// Bit set: the host has given memory for it, as far as we know (it was handed out since the last release).
    backed: &'a [AtomicU64],
    /// Bit set: free as a whole, and all zero. Only who has the frame changes it.
    zeroed: &'a [AtomicU64],
    /// Eight words per large frame; bit set: that small frame is free.
    small: &'a [AtomicU64],
    used_pages: AtomicU64,
    committed_pages: AtomicU64,
    committed_peak: AtomicU64,
    limit_pages: u64,
    /// Operations under way that hold frames which nobody uses.
    moving: AtomicU64,
}

/// While this lives, its holder may have frames in hand that will be free again: whoever finds none tries again instead of
/// giving up.
pub struct Moving<'f>(&'f AtomicU64);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// There is no memory left for what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl<'a> Frames<'a> {
    /// An allocator of `count` free large frames from `base` on, of which `reserve_pages` small ones are never
    /// promised.
    ///
    /// # Panics
    /// If `words` are fewer than [`words_needed`]: the caller computes both from the same layout.
    pub fn new(base: GuestPhys, count: usize, reserve_pages: u64, words: &'a [AtomicU64]) -> Frames<'a> {
        let map = count.div_ceil(64);
        let (whole, rest) = words.split_at(map);
        let (partial, rest) = rest.split_at(map);
        let (backed, rest) = rest.split_at(map);
        let (zeroed, rest) = rest.split_at(map);
        for index in 0..count {
            whole[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
        }
        Frames {
            base,
            count,
            whole,
            partial,
            backed,
            zeroed,
            small: &rest[..count * WORDS_PER_LARGE],
            used_pages: AtomicU64::new(0),
            committed_pages: AtomicU64::new(0),
            committed_peak: AtomicU64::new(0),
            moving: AtomicU64::new(0),
            limit_pages: (count as u64 * SMALL_PER_LARGE).saturating_sub(reserve_pages),
        }
    }

    /// Says that the caller holds frames for a moment.
    pub fn moving(&self) -> Moving<'_> {
        self.moving.fetch_add(1, Ordering::SeqCst);
        Moving(&self.moving)
    }

    /// Whether somebody holds frames for a moment.
    pub fn in_transit(&self) -> bool {
        self.moving.load(Ordering::SeqCst) != 0
    }

    /// Promises `pages` small pages.
    ///
    /// # Errors
    /// [`OutOfMemory`] if that is more than there is; nothing is promised then.
    pub fn commit(&self, pages: u64) -> Result<(), OutOfMemory> {
        let fits = |now: u64| now.checked_add(pages).filter(|sum| *sum <= self.limit_pages);
        let before = self.committed_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        let before = before.map_err(|_| OutOfMemory)?;
        self.committed_peak.fetch_max(before + pages, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a promise back.
    pub fn uncommit(&self, pages: u64) {
        let before = self.committed_pages.fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "more promises taken back than given");
    }

    /// Pages promised now, and at most so far.
    pub fn committed_pages(&self) -> (u64, u64) {
        (self.committed_pages.load(Ordering::Relaxed), self.committed_peak.load(Ordering::Relaxed))
    }

    /// Whether nobody has this small frame. Only certain while nothing changes, for a look at an idle CVM; `None` if it is
    /// not one of these frames.
    pub fn is_free(&self, frame: GuestPhys) -> Option<bool> {
        let index = self.index_of(frame)?;
        let bit =
            |words: &[AtomicU64], at: usize| words[at / 64].load(Ordering::Relaxed) >> (at % 64) & 1 != 0;
        let small = ((frame.0 - self.base.0) % LARGE_PAGE_BYTES / PAGE_BYTES) as usize;
        Some(bit(self.whole, index) || bit(self.words_of(index), small))
    }

    /// Small pages handed out now.
    pub fn used_pages(&self) -> u64 {
        self.used_pages.load(Ordering::Relaxed)
    }

    /// Pages that may be promised in all.
    pub fn limit_pages(&self) -> u64 {
        self.limit_pages
    }

    /// Takes a large frame, and says whether it is all zero; else its content is anything.
    pub fn alloc_large(&self) -> Option<(GuestPhys, bool)> {
        let index = self.find(|word| self.whole_and(word, self.zeroed)).or_else(|| self.take_whole())?;
        // Looked at now that nobody else has it: since it was found it may have been taken, used and given back.
        let zeroed = self.zeroed[index / 64].load(Ordering::SeqCst) >> (index % 64) & 1 != 0;
        clear_bit(self.zeroed, index);
        self.used_pages.fetch_add(SMALL_PER_LARGE, Ordering::Relaxed);
        Some((self.address(index, 0), zeroed))
    }

    /// How many large frames are ready: free and all zero.
    pub fn ready(&self) -> u32 {
        (0..self.whole.len()).map(|word| self.whole_and(word, self.zeroed).count_ones()).sum()
    }

    /// Takes a free large frame that is not all zero, if so many pages are promised to nobody that none will be missing
    /// meanwhile: the caller zeroes it and calls [`put_ready`](Self::put_ready).
    pub fn take_unready(&self, spare_pages: u64) -> Option<GuestPhys> {
        if self.limit_pages.saturating_sub(self.committed_pages.load(Ordering::Relaxed)) < spare_pages {
            return None;
        }
        let unready = |word: usize| !self.zeroed[word].load(Ordering::Relaxed);
        let backed = self.find(|word| self.whole_and(word, self.backed) & unready(word));
        let index =
            backed.or_else(|| self.find(|word| self.whole[word].load(Ordering::Relaxed) & unready(word)))?;
        set_bit(self.backed, index);
        Some(self.address(index, 0))
    }

    /// Puts a frame from [`take_unready`](Self::take_unready) back, which is all zero now.
    pub fn put_ready(&self, frame: GuestPhys) {
        let (index, _) = self.locate(frame);
        set_bit(self.zeroed, index);
        set_bit(self.whole, index);
    }

    /// The frames of a word that are free as a whole and in `map` too.
    fn whole_and(&self, word: usize, map: &[AtomicU64]) -> u64 {
        self.whole[word].load(Ordering::Relaxed) & map[word].load(Ordering::Relaxed)
    }

    /// Gives a large frame back.
    pub fn free_large(&self, frame: GuestPhys) {
        let (index, offset) = self.locate(frame);
        debug_assert_eq!(offset, 0, "not the start of a large frame");
        self.used_pages.fetch_sub(SMALL_PER_LARGE, Ordering::Relaxed);
        set_bit(self.whole, index);
    }

    /// Takes a small frame; its content is anything.
    pub fn alloc_small(&self) -> Option<GuestPhys> {
        let from_reserved = || {
            self.end_reservations();
            self.take_from_partial()
        };
        let frame = self.take_from_partial().or_else(|| self.split_whole()).or_else(from_reserved)?;
        self.used_pages.fetch_add(1, Ordering::Relaxed);
        Some(frame)
    }

    /// Takes the small frame with this number, below 512, of a large one that is free as a whole, and reserves the others.
    pub fn alloc_reserved(&self, number: u64) -> Option<GuestPhys> {
        let index = self.take_whole()?;
        self.fill_small(index, number as usize);
        self.used_pages.fetch_add(1, Ordering::Relaxed);
        Some(self.address(index, number as usize))
    }

    /// Takes the small frame with this number, below 512, of the large one in which `beside` lies; `None` if it is not free, or not
    /// one of these frames.
    pub fn alloc_beside(&self, beside: GuestPhys, number: u64) -> Option<GuestPhys> {
        let (index, number) = (self.index_of(beside)?, number as usize);
        let (word, bit) = (&self.words_of(index)[number / 64], 1 << (number % 64));
        if word.load(Ordering::Relaxed) & bit == 0 || word.fetch_and(!bit, Ordering::SeqCst) & bit == 0 {
            return None;
        }
        self.used_pages.fetch_add(1, Ordering::Relaxed);
        Some(self.address(index, number))
    }

    /// Lets everybody have what is reserved.
    pub fn end_reservations(&self) {
        for index in 0..self.count {
            if self.words_of(index).iter().any(|word| word.load(Ordering::SeqCst) != 0) {
                set_bit(self.partial, index);
            }
        }
    }

    /// Gives a small frame back. When the last one of a large frame returns, that is whole again.
    pub fn free_small(&self, frame: GuestPhys) {
        let (index, offset) = self.locate(frame);
        self.used_pages.fetch_sub(1, Ordering::Relaxed);
        self.words_of(index)[offset / 64].fetch_or(1 << (offset % 64), Ordering::SeqCst);
        set_bit(self.partial, index);
        self.coalesce(index);
    }

    /// Takes a free large frame that the host still has memory for, so that it can be released: the caller then
    /// asks the host and calls [`released`](Self::released).
    pub fn take_releasable(&self) -> Option<GuestPhys> {
        let index = self.find(|word| self.whole_and(word, self.backed))?;
        Some(self.address(index, 0))
    }

    /// The same for one certain frame; false if it is not there to be released.
    pub fn take_this_releasable(&self, frame: GuestPhys) -> bool {
        let offset = frame.0 - self.base.0;
        let index = (offset / LARGE_PAGE_BYTES) as usize;
        if index >= self.count {
            return false;
        }
        let (word, bit) = (index / 64, 1 << (index % 64));
        self.backed[word].load(Ordering::Relaxed) & bit != 0
            && self.whole[word].fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Puts a frame from [`take_releasable`](Self::take_releasable) back.
    pub fn released(&self, frame: GuestPhys) {
        let (index, _) = self.locate(frame);
        clear_bit(self.backed, index);
        clear_bit(self.zeroed, index);
        set_bit(self.whole, index);
    }

    /// Bytes of free large frames that the host still has memory for.
    pub fn releasable_bytes(&self) -> u64 {
        let frames: u32 = self
            .whole
            .iter()
            .zip(self.backed)
            .map(|(a, b)| (a.load(Ordering::Relaxed) & b.load(Ordering::Relaxed)).count_ones())
            .sum();
        u64::from(frames) * LARGE_PAGE_BYTES
    }

    fn address(&self, index: usize, offset: usize) -> GuestPhys {
        GuestPhys(self.base.0 + index as u64 * LARGE_PAGE_BYTES + offset as u64 * PAGE_BYTES)
    }

    /// The number of the large frame in which this one lies, if it is one of these.
    fn index_of(&self, frame: GuestPhys) -> Option<usize> {
        let offset = frame.0.checked_sub(self.base.0)?;
        usize::try_from(offset / LARGE_PAGE_BYTES).ok().filter(|index| *index < self.count)
    }

    fn locate(&self, frame: GuestPhys) -> (usize, usize) {
        let offset = frame.0 - self.base.0;
        let index = (offset / LARGE_PAGE_BYTES) as usize;
        assert!(index < self.count, "a frame that is not ours");
        (index, (offset % LARGE_PAGE_BYTES / PAGE_BYTES) as usize)
    }

    fn words_of(&self, index: usize) -> &[AtomicU64] {
        &self.small[index * WORDS_PER_LARGE..(index + 1) * WORDS_PER_LARGE]
    }

    /// Takes one whole frame, preferably one that the host has memory for already.
    fn take_whole(&self) -> Option<usize> {
        let index = self
            .find(|word| self.whole_and(word, self.backed))
            .or_else(|| self.find(|word| self.whole[word].load(Ordering::Relaxed)))?;
        set_bit(self.backed, index);
        Some(index)
    }

    /// Finds a candidate whose bit is set in `candidates(word)` and takes it out of `whole`.
    fn find(&self, candidates: impl Fn(usize) -> u64) -> Option<usize> {
        for word in 0..self.whole.len() {
            let mut bits = candidates(word);
            while bits != 0 {
                let bit = bits.trailing_zeros();
                if self.whole[word].fetch_and(!(1 << bit), Ordering::AcqRel) & 1 << bit != 0 {
                    return Some(word * 64 + bit as usize);
                }
                bits = candidates(word);
            }
        }
        None
    }

    fn take_from_partial(&self) -> Option<GuestPhys> {
        for (word, bits) in self.partial.iter().enumerate() {
            loop {
                let bits = bits.load(Ordering::Relaxed);
                if bits == 0 {
                    break;
                }
                let index = word * 64 + bits.trailing_zeros() as usize;
                if let Some(offset) = take_any_bit(self.words_of(index)) {
                    return Some(self.address(index, offset));
                }
                clear_bit(self.partial, index);
                // A small frame may have come back between the look and the clearing.
                if self.words_of(index).iter().any(|word| word.load(Ordering::SeqCst) != 0) {
                    set_bit(self.partial, index);
                }
            }
        }
        None
    }

    fn split_whole(&self) -> Option<GuestPhys> {
        let index = self.take_whole()?;
        self.fill_small(index, 0);
        set_bit(self.partial, index);
        Some(self.address(index, 0))
    }

    /// Splits a frame that the caller has taken: all its small frames are free but the one that he keeps.
    fn fill_small(&self, index: usize, kept: usize) {
        clear_bit(self.zeroed, index);
        for (number, word) in self.words_of(index).iter().enumerate() {
            let free = if number == kept / 64 { !(1 << (kept % 64)) } else { !0 };
            word.store(free, Ordering::Release);
        }
    }

    /// If all 512 small frames are free, takes them all and makes the frame whole.
    fn coalesce(&self, index: usize) {
        let _moving = self.moving();
        let words = self.words_of(index);
        for (taken, word) in words.iter().enumerate() {
            if word.compare_exchange(!0, 0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                // Some are in use: put back what was taken.
                for word in &words[..taken] {
                    word.fetch_or(!0, Ordering::SeqCst);
                }
                if taken != 0 {
                    set_bit(self.partial, index);
                }
                return;
            }
        }
        clear_bit(self.partial, index);
        set_bit(self.whole, index);
    }
}

fn set_bit(words: &[AtomicU64], index: usize) {
    words[index / 64].fetch_or(1 << (index % 64), Ordering::SeqCst);
}

fn clear_bit(words: &[AtomicU64], index: usize) {
    words[index / 64].fetch_and(!(1 << (index % 64)), Ordering::SeqCst);
}

/// Clears one set bit of `words` and returns its position.
fn take_any_bit(words: &[AtomicU64]) -> Option<usize> {
    for (number, word) in words.iter().enumerate() {
        let mut bits = word.load(Ordering::SeqCst);
        while bits != 0 {
            let bit = bits.trailing_zeros();
            if word.fetch_and(!(1 << bit), Ordering::SeqCst) & 1 << bit != 0 {
                return Some(number * 64 + bit as usize);
            }
            bits = word.load(Ordering::SeqCst);
        }
    }
    None
}

/// A pool of 4 KiB pages without the two sizes: page-table pages.
pub struct PagePool<'a> {
    base: GuestPhys,
    count: usize,
    /// Bit set: free.
    free: &'a [AtomicU64],
    /// Word where the last page was found: a hint.
    hint: AtomicU64,
}

impl<'a> PagePool<'a> {
    /// A pool of `count` pages from `base` on, the first `used` of them in use.
    ///
    /// # Panics
    /// If `free` has fewer than `count` bits.
    pub fn new(base: GuestPhys, count: usize, used: usize, free: &'a [AtomicU64]) -> PagePool<'a> {
        for index in used..count {
            free[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
        }
        PagePool { base, count, free, hint: AtomicU64::new(0) }
    }

    /// The page with this number, free or not; `None` behind the last one.
    pub fn page(&self, number: usize) -> Option<GuestPhys> {
        (number < self.count).then(|| GuestPhys(self.base.0 + number as u64 * PAGE_BYTES))
    }

    /// Takes a page; its content is anything.
    pub fn alloc(&self) -> Option<GuestPhys> {
        let words = self.count.div_ceil(64);
        let start = self.hint.load(Ordering::Relaxed) as usize % words.max(1);
        for step in 0..words {
            let word = (start + step) % words;
            if let Some(bit) = take_any_bit(&self.free[word..=word]) {
                self.hint.store(word as u64, Ordering::Relaxed);
                return Some(GuestPhys(self.base.0 + (word * 64 + bit) as u64 * PAGE_BYTES));
            }
        }
        None
    }

    /// Gives a page back.
    pub fn free(&self, page: GuestPhys) {
        let index = ((page.0 - self.base.0) / PAGE_BYTES) as usize;
        assert!(index < self.count, "a page that is not ours");
        set_bit(self.free, index);
    }
}

#[cfg(test)]
mod tests;
