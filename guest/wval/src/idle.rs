//! [`IdleSet`]: which vCPUs are parked, and who has been woken.
//!
//! # No lost wake: Dekker's argument with two fences
//! ```text
//!   worker: announce (bit, FENCE) -> look at all queues -> park
//!   waker:  push a task -> claim_one (FENCE, look at the bits) -> wake hypercall
//! ```
//! Of two sequentially consistent fences one is first. If the worker's is, the waker sees its bit; if the waker's is,
//! the worker sees the task. The same pair orders `retract` (FENCE) with whatever the worker looks at next: tasks,
//! the stop flag, requests for a TLB flush (see [`crate::Rendezvous`]).
//!
//! # Claimed is not woken
//! A waker can be stopped by the host between its claim and its hypercall. If a claim took the worker out of the
//! set, nobody else would wake that worker any more, and their tasks would wait for the stopped waker. So
//! each vCPU has a word (epoch, phase): AWAKE -> IDLE -> CLAIMED -> RUNG -> AWAKE.
//! - `claim_one` prefers an IDLE worker (one waker gets it), else returns a CLAIMED one again: its first waker may
//!   be stopped, and a second wake does no harm.
//! - `wake_sent`, *after* the hypercall, makes it RUNG: then the wake is on its way for certain, nobody needs to
//!   repeat it, and the worker will look at all queues when it comes out.
//! - A wake that the host has dropped is repeated after `doubt_wakes`, which makes RUNG workers CLAIMED again.
//! - Only the worker itself leaves the set (`retract`). Every `announce` starts a new epoch, so the late
//!   `wake_sent` of a waker that was stopped meanwhile changes nothing.
//!
//! Wake hypercalls must be latched: one sent to a vCPU that does not park yet makes its next park return at once.

use crate::sync::{AtomicU64, CachePadded, Ordering, fence};
use crate::{VcpuId, VcpuMask};

const AWAKE: u64 = 0;
const IDLE: u64 = 1;
const CLAIMED: u64 = 2;
const RUNG: u64 = 3;
const PHASE: u64 = 3;
const EPOCH: u64 = 4;

/// Loom tracks every atomic ever made; its tests need few vCPUs.
pub(crate) const WORDS: usize = if cfg!(loom) { 4 } else { nacre_abi::MAX_VCPUS as usize };

/// The duty to wake one vCPU: do the hypercall, then give the ticket to [`IdleSet::wake_sent`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a task may wait until this vCPU is woken"]
pub struct WakeTicket {
    vcpu: VcpuId,
    word: u64,
}

impl WakeTicket {
    /// Whom to wake.
    pub fn vcpu(&self) -> VcpuId {
        self.vcpu
    }
}

/// What [`IdleSet::retract`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retract {
    /// Nobody had claimed this vCPU.
    Quiet,
    /// Somebody has woken it or is about to: the wake may be why it runs now, or it makes the next park return at
    /// once. Both are harmless.
    WakePending,
}

/// The set of parked vCPUs.
#[derive(Debug)]
pub struct IdleSet {
    /// Bit v: vCPU v's phase is not AWAKE (set after its word, cleared after it: a filter, the word decides).
    mask: CachePadded<AtomicU64>,
    words: [AtomicU64; WORDS],
}

impl Default for IdleSet {
    fn default() -> Self {
        Self::new()
    }
}

impl IdleSet {
    /// All awake.
    pub fn new() -> Self {
        IdleSet {
            mask: CachePadded(AtomicU64::new(0)),
            words: core::array::from_fn(|_| AtomicU64::new(AWAKE)),
        }
    }

    /// Called by vCPU `v` itself before it parks. Afterwards it must look once more at everything it would
    /// have to stay awake for, then either [`IdleSet::retract`] or park.
    pub fn announce(&self, v: VcpuId) {
        let word = &self.words[v.index()];
        // Nobody else writes the word of a vCPU that is awake, so load and store need not be one step.
        let old = word.load(Ordering::Relaxed);
        word.store((old & !PHASE).wrapping_add(EPOCH) | IDLE, Ordering::Release);
        self.mask.fetch_or(v.bit(), Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Called by vCPU `v` itself when it does not park after all, and whenever it comes back from a park, for
    /// whatever reason. Before it looks for work.
    pub fn retract(&self, v: VcpuId) -> Retract {
        let old = self.words[v.index()].fetch_and(!PHASE, Ordering::AcqRel);
        self.mask.fetch_and(!v.bit(), Ordering::AcqRel);
        fence(Ordering::SeqCst);
        match old & PHASE {
            AWAKE | IDLE => Retract::Quiet,
            _ => Retract::WakePending,
        }
    }

    /// After a push: who has to be woken, if anyone. The lowest number first, so that few workers stay busy and the
    /// others stay dormant.
    pub fn claim_one(&self, allowed: VcpuMask) -> Option<WakeTicket> {
        fence(Ordering::SeqCst);
        self.claim_after_fence(allowed)
    }

    /// [`IdleSet::claim_one`] for a caller that has just executed the sequentially consistent fence itself.
    pub(crate) fn claim_after_fence(&self, allowed: VcpuMask) -> Option<WakeTicket> {
        let mut second_hand = None;
        for vcpu in VcpuMask(self.mask.load(Ordering::Acquire)).and(allowed).iter() {
            let word = &self.words[vcpu.index()];
            let mut seen = word.load(Ordering::Acquire);
            if seen & PHASE == IDLE {
                let claimed = seen ^ IDLE ^ CLAIMED;
                match word.compare_exchange(seen, claimed, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Some(WakeTicket { vcpu, word: claimed }),
                    Err(now) => seen = now,
                }
            }
            if seen & PHASE == CLAIMED {
                second_hand.get_or_insert(WakeTicket { vcpu, word: seen });
            }
        }
        second_hand
    }

    /// Called after the wake hypercall was done.
    pub fn wake_sent(&self, ticket: WakeTicket) {
        let rung = ticket.word ^ CLAIMED ^ RUNG;
        // Failure means that somebody else's wake was faster, or that the vCPU already runs: nothing to record.
        let _ = self.words[ticket.vcpu.index()].compare_exchange(
            ticket.word,
            rung,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

    /// Takes the wakes of all vCPUs that are still parked for lost: they can be claimed, and woken, once more. For a host
    /// that drops wakes: nobody repeats one that was sent. To be called when work has waited for longer than any wake
    /// takes; a wake that was only slow comes twice, which does no harm.
    pub fn doubt_wakes(&self) {
        for vcpu in VcpuMask(self.mask.load(Ordering::Acquire)).iter() {
            let word = &self.words[vcpu.index()];
            let seen = word.load(Ordering::Acquire);
            if seen & PHASE == RUNG {
                // Failure means that it has come back.
                let _ =
                    word.compare_exchange(seen, seen ^ RUNG ^ CLAIMED, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Which of `among` are parked although their wake was sent. A hint: the host may have dropped it.
    pub fn rung(&self, among: VcpuMask) -> VcpuMask {
        let parked = VcpuMask(self.mask.load(Ordering::Acquire)).and(among).iter();
        let rung = parked.filter(|v| self.words[v.index()].load(Ordering::Acquire) & PHASE == RUNG);
        rung.fold(VcpuMask::EMPTY, VcpuMask::with)
    }

    /// Whether `v` is between `announce` and `retract`: it holds no task, and passes the fence of `retract` before it
    /// looks for one.
    pub fn is_parked(&self, v: VcpuId) -> bool {
        self.words[v.index()].load(Ordering::Acquire) & PHASE != AWAKE
    }

    /// About which vCPUs are parked.
    pub fn parked_hint(&self) -> VcpuMask {
        VcpuMask(self.mask.load(Ordering::Relaxed))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn v(n: u32) -> VcpuId {
        VcpuId::new(n).unwrap()
    }

    const ALL: VcpuMask = VcpuMask(u64::MAX);

    #[test]
    fn wakes_the_lowest_allowed_idle_one_once() {
        let s = IdleSet::new();
        assert_eq!(s.claim_one(ALL), None);
        for n in [63, 5, 9] {
            s.announce(v(n));
        }
        assert_eq!(s.claim_one(ALL.without(v(5))).unwrap().vcpu(), v(9));
        assert_eq!(s.claim_one(ALL).unwrap().vcpu(), v(5));
        assert_eq!(s.claim_one(ALL).unwrap().vcpu(), v(63));
        assert_eq!(s.claim_one(VcpuMask::EMPTY), None);
        assert_eq!(s.parked_hint().count(), 3);
    }

    #[test]
    fn who_was_rung_counts_until_it_comes_or_is_doubted() {
        let s = IdleSet::new();
        for n in [1, 2] {
            s.announce(v(n));
        }
        let first = s.claim_one(ALL).unwrap();
        assert_eq!(s.rung(ALL).count(), 0, "claimed, not woken");
        s.wake_sent(first);
        assert_eq!(s.rung(ALL), VcpuMask::EMPTY.with(v(1)));
        assert_eq!(s.rung(ALL.without(v(1))).count(), 0);
        s.doubt_wakes();
        assert_eq!(s.rung(ALL).count(), 0);
        let again = s.claim_one(VcpuMask::EMPTY.with(v(1))).unwrap();
        s.wake_sent(again);
        let _ = s.retract(v(1));
        assert_eq!(s.rung(ALL).count(), 0);
    }

    #[test]
    fn a_claim_by_a_stopped_waker_is_repeated_until_the_wake_is_sent() {
        let s = IdleSet::new();
        s.announce(v(1));
        let stopped = s.claim_one(ALL).unwrap();
        let second = s.claim_one(ALL).unwrap();
        assert_eq!((second.vcpu(), s.is_parked(v(1))), (v(1), true));
        s.wake_sent(second);
        assert_eq!(s.claim_one(ALL), None);
        assert_eq!(s.retract(v(1)), Retract::WakePending);
        // A new epoch: the late waker must not make it look woken.
        s.announce(v(1));
        s.wake_sent(stopped);
        assert_eq!(s.claim_one(ALL).unwrap().vcpu(), v(1));
    }

    #[test]
    fn a_wake_that_was_dropped_is_repeated_once_it_is_doubted() {
        let s = IdleSet::new();
        for n in [1, 2] {
            s.announce(v(n));
            s.wake_sent(s.claim_one(ALL).unwrap());
        }
        assert_eq!(s.retract(v(2)), Retract::WakePending);
        assert_eq!(s.claim_one(ALL), None);
        s.doubt_wakes();
        let again = s.claim_one(ALL).unwrap();
        assert_eq!((again.vcpu(), s.claim_one(ALL).unwrap().vcpu()), (v(1), v(1)));
        s.wake_sent(again);
        assert_eq!(s.claim_one(ALL), None);
        s.retract(v(1));
        s.doubt_wakes();
        assert_eq!((s.claim_one(ALL), s.is_parked(v(1))), (None, false));
    }

    #[test]
    fn retract_tells_whether_a_wake_may_be_under_way() {
        let s = IdleSet::new();
        s.announce(v(2));
        assert_eq!(s.retract(v(2)), Retract::Quiet);
        assert_eq!(s.retract(v(2)), Retract::Quiet);
        assert_eq!((s.claim_one(ALL), s.is_parked(v(2))), (None, false));
        s.announce(v(2));
        let _ticket = s.claim_one(ALL).unwrap();
        assert_eq!(s.retract(v(2)), Retract::WakePending);
    }
}
