//! The shared page: how guest and host agree on which Worker vCPUs run. Second page of the shared
//! [`window`](crate::window).
//!
//! ```text
//! offset  word         written by
//! 0x000   Version      host, before launch: [`PAGE_VERSION`]
//! 0x080   Grant        host   how many workers may be active
//! 0x088   Reclaim      host   bit n: worker n parks at its next safe point, and is not woken
//! 0x090   SpinLimit    host   what a wake is worth, in nanoseconds: see `SpinPolicy` in nacre-wval
//! 0x098   DemandSeen   host   the demand the host has in its books
//! 0x180   Demand       guest  tasks that no allowed worker can take, quantised
//! 0x200   Epoch...     both   what compiled code compares with its deadline: guest its epoch, host [`EPOCH_NOW`]
//! ```
//!
//! All of them are levels, none is an event, and each is a hint: whoever reads copies once and validates ([`allowed`],
//! [`level`], [`spin_limit_ns`]). The worst that garbage can do is to cost CPU or to stop the CVM's work; no run queue, no
//! park flag and no task is here.
//!
//! # Who tells whom
//! ```text
//! host: takes a worker away   Reclaim, Grant; Epoch...; fence; wakes vCPU 0, in case the epoch was not seen; the worker parks (PARK)
//! host: gives one             Reclaim, Grant; fence; wakes that worker (and it wakes others if tasks wait)
//! guest: more tasks wait      Demand; fence; reads DemandSeen; if the demand is higher, hypercall DEMAND
//! guest: fewer wait           Demand, no more
//! host: sees a lower demand   DemandSeen; fence; reads Demand once more
//! ```
//! The two fences of the demand are Dekker's: either the guest sees that the host knows of less, or the host sees the
//! higher demand. A guest looks at Grant and Reclaim at every safe point and before it parks.

use crate::MAX_VCPUS;
use crate::sync::{AtomicU64, Ordering};

/// Version of the page, which both sides must have alike.
pub const PAGE_VERSION: u64 = 2;
/// Where the page is in the window.
pub const PAGE_OFFSET: u64 = 0x1000;
/// Its length in bytes.
pub const PAGE_BYTES: u64 = 0x1000;
/// Longest time that a guest spins, whatever the host says: 10 ms.
pub const SPIN_LIMIT_MAX_NS: u64 = 10_000_000;
/// What a wake is worth unless somebody says otherwise: 150 us.
pub const SPIN_LIMIT_DEFAULT_NS: u64 = 150_000;
/// An epoch that all deadlines are below: compiled code comes to a safe point. The guest then puts its own epoch back.
pub const EPOCH_NOW: u64 = u64::MAX;
/// The words of the epochs: on a cache line of their own, which all workers that compute have in their caches.
pub const EPOCHS: [ElasticWord; 2] = [ElasticWord::EpochOfPrograms, ElasticWord::EpochOfCalls];
/// What the demand can be.
pub const DEMAND_LEVELS: [u32; 8] = [0, 1, 2, 4, 8, 16, 32, 63];

/// Words of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElasticWord {
    /// [`PAGE_VERSION`].
    Version = 0,
    /// Host: how many workers may be active.
    Grant = 16,
    /// Host: bit n says that worker n must park and may not be woken.
    Reclaim = 17,
    /// Host: what a wake is worth in nanoseconds; 0 for no spinning.
    SpinLimit = 18,
    /// Host: the demand it has in its books.
    DemandSeen = 19,
    /// Guest: one of [`DEMAND_LEVELS`].
    Demand = 48,
    /// Both: the epoch of programs, which the host may set to [`EPOCH_NOW`].
    EpochOfPrograms = 64,
    /// Both: the epoch of calls, likewise.
    EpochOfCalls = 65,
}

const _: () = assert!(
    ElasticWord::Version as u64 == 0
        && ElasticWord::Grant as u64 == 16
        && ElasticWord::Reclaim as u64 == 17
        && ElasticWord::SpinLimit as u64 == 18
        && ElasticWord::DemandSeen as u64 == 19
        && ElasticWord::Demand as u64 == 48
        && ElasticWord::EpochOfPrograms as u64 == 64
        && ElasticWord::EpochOfCalls as u64 == 65,
    "the places of the words are an interface: raise PAGE_VERSION and read docs/elasticity.md before changing them"
);
const _: () = assert!(
    PAGE_OFFSET + PAGE_BYTES <= crate::window::MAILBOXES && PAGE_OFFSET.is_multiple_of(4096),
    "the shared page lies between the control page and the mailboxes"
);
const _: () = assert!(MAX_VCPUS == 64, "a mask of vCPUs is one word");
const _: () =
    assert!(DEMAND_LEVELS[DEMAND_LEVELS.len() - 1] == MAX_VCPUS - 1, "all workers can be asked for");

/// The shared page.
#[derive(Clone, Copy)]
pub struct ElasticPage<'a> {
    words: &'a [AtomicU64],
}

impl<'a> ElasticPage<'a> {
    /// The page over its words, of which there are at least 66.
    pub(crate) fn new(words: &'a [AtomicU64]) -> ElasticPage<'a> {
        ElasticPage { words }
    }

    /// Reads a word once.
    pub fn get(&self, word: ElasticWord) -> u64 {
        self.words[word as usize].load(Ordering::SeqCst)
    }

    /// Writes a word.
    pub fn set(&self, word: ElasticWord, value: u64) {
        self.words[word as usize].store(value, Ordering::SeqCst);
    }

    /// Where a word is, for what a read and a write are not enough for.
    pub fn place(&self, word: ElasticWord) -> &'a AtomicU64 {
        &self.words[word as usize]
    }

    /// Which of `workers` workers may run, by the host's present word.
    pub fn allowed(&self, workers: u32) -> u64 {
        allowed(workers, self.get(ElasticWord::Grant), self.get(ElasticWord::Reclaim))
    }
}

/// Which of the workers 1 to `workers` may run: the first `grant` that are not reclaimed, as a mask with bit n for
/// vCPU n. Both sides use this rule, so that a host can name exactly the workers it means. Any grant and any mask are
/// valid; vCPU 0 is never in the result, because nobody can take it away.
pub const fn allowed(workers: u32, grant: u64, reclaim: u64) -> u64 {
    let mut rest = worker_mask(workers) & !reclaim;
    // The usual case, at every safe point.
    if grant >= rest.count_ones() as u64 {
        return rest;
    }
    let mut result = 0;
    let mut left = grant;
    while rest != 0 && left != 0 {
        let lowest = rest & rest.wrapping_neg();
        result |= lowest;
        rest ^= lowest;
        left -= 1;
    }
    result
}

/// The mask of the workers 1 to `workers`.
pub const fn worker_mask(workers: u32) -> u64 {
    let vcpus = workers.saturating_add(1);
    (if vcpus >= MAX_VCPUS { u64::MAX } else { (1 << vcpus) - 1 }) & !1
}

/// The demand that stands for `tasks` tasks without a worker: the next level up.
pub const fn demand(tasks: usize) -> u32 {
    let mut at = 0;
    while at < DEMAND_LEVELS.len() - 1 && (DEMAND_LEVELS[at] as usize) < tasks {
        at += 1;
    }
    DEMAND_LEVELS[at]
}

/// The demand that a guest means by `word`: the highest level that is not above it, so that garbage is a level too.
pub const fn level(word: u64) -> u32 {
    let mut at = DEMAND_LEVELS.len() - 1;
    while DEMAND_LEVELS[at] as u64 > word {
        at -= 1;
    }
    DEMAND_LEVELS[at]
}

/// The spin limit that a host means by `word`, in nanoseconds.
pub const fn spin_limit_ns(word: u64) -> u64 {
    if word > SPIN_LIMIT_MAX_NS { SPIN_LIMIT_MAX_NS } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_granted_that_are_not_reclaimed_may_run() {
        assert_eq!(allowed(4, 2, 0), 0b00110);
        assert_eq!(allowed(4, 2, 0b00010), 0b01100);
        assert_eq!(allowed(4, 0, 0), 0);
        assert_eq!(allowed(4, u64::MAX, 0), 0b11110);
        assert_eq!(allowed(0, u64::MAX, 0), 0);
        assert_eq!(allowed(63, u64::MAX, 0), !1);
        assert_eq!(allowed(u32::MAX, 1, 0), 2);
    }

    #[test]
    fn demand_is_a_level_never_below_the_tasks() {
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 9, 33, 63, 64, usize::MAX].map(demand),
            [0, 1, 2, 4, 4, 8, 16, 63, 63, 63, 63]
        );
        assert_eq!([0, 1, 3, 62, 63, u64::MAX].map(level), [0, 1, 2, 32, 63, 63]);
        assert_eq!([0, 7, u64::MAX].map(spin_limit_ns), [0, 7, SPIN_LIMIT_MAX_NS]);
    }

    proptest! {
        #[test]
        fn garbage_allows_only_workers_that_exist_and_are_not_reclaimed(workers: u32, grant: u64, reclaim: u64) {
            let mask = allowed(workers, grant, reclaim);
            prop_assert_eq!(mask & !(worker_mask(workers) & !reclaim), 0);
            prop_assert!(u64::from(mask.count_ones()) <= grant);
        }

        /// A host can name any set of workers exactly.
        #[test]
        fn every_set_can_be_named(workers in 0u32..=63, set: u64) {
            let set = set & worker_mask(workers);
            prop_assert_eq!(allowed(workers, set.count_ones().into(), !set), set);
        }

        #[test]
        fn what_is_asked_for_is_read_as_it_was_meant(tasks: usize) {
            let asked = demand(tasks);
            prop_assert_eq!(level(asked.into()), asked);
            prop_assert!(asked as usize >= tasks.min(63));
        }
    }
}
