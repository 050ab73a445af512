//! [`Rendezvous`]: one vCPU asks all others to do something at their next safe point, and learns when they have.
//!
//! Used for the scheduler's stop gate; fit for TLB flushes too (one `Rendezvous` per purpose). A parked vCPU
//! counts as having acknowledged: it holds no task, and when it comes back it passes the fence in
//! [`IdleSet::retract`] before it looks at [`Rendezvous::pending`]. Either the requester, whose fence is in
//! `request`, sees it awake, or it sees the request (Dekker's argument, as in [`IdleSet`]). Its duty: between
//! `retract` and the look at `pending` it touches nothing the rendezvous is about.

use crate::idle::WORDS;
use crate::sync::{AtomicU64, CachePadded, Ordering, fence};
use crate::{IdleSet, VcpuId, VcpuMask};

/// One request. Later requests have larger epochs; acknowledging one acknowledges all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub(crate) u64);

/// A request to all vCPUs, and their acknowledgements.
#[derive(Debug)]
pub struct Rendezvous {
    epoch: CachePadded<AtomicU64>,
    acks: [CachePadded<AtomicU64>; WORDS],
}

impl Default for Rendezvous {
    fn default() -> Self {
        Self::new()
    }
}

impl Rendezvous {
    /// Nothing requested yet.
    pub fn new() -> Self {
        Rendezvous {
            epoch: CachePadded(AtomicU64::new(0)),
            acks: core::array::from_fn(|_| CachePadded(AtomicU64::new(0))),
        }
    }

    /// Makes a request. What the caller wrote before is seen by a vCPU that finds it pending.
    pub fn request(&self) -> Epoch {
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        fence(Ordering::SeqCst);
        Epoch(epoch)
    }

    /// As `request`, only if the newest epoch is still `from`.
    pub(crate) fn request_from(&self, from: Epoch) -> Option<Epoch> {
        let next = from.0 + 1;
        let done = self.epoch.compare_exchange(from.0, next, Ordering::AcqRel, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        done.ok().map(|_| Epoch(next))
    }

    /// The newest request.
    pub fn current(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// The newest request, if vCPU `v` (the caller) has not acknowledged it. One load and a compare: cheap
    /// enough for every safe point.
    pub fn pending(&self, v: VcpuId) -> Option<Epoch> {
        let now = self.current();
        (self.acks[v.index()].load(Ordering::Relaxed) != now.0).then_some(now)
    }

    /// Called by vCPU `v` after it did what `epoch` asks. What it wrote before is seen by who finds it acknowledged.
    pub fn acknowledge(&self, v: VcpuId, epoch: Epoch) {
        self.acks[v.index()].store(epoch.0, Ordering::Release);
    }

    /// Which vCPUs of `of` have neither acknowledged `epoch` nor are parked. Acknowledgements stay; a parked
    /// vCPU may come back, and will then see the request.
    pub fn missing(&self, epoch: Epoch, of: VcpuMask, idle: &IdleSet) -> VcpuMask {
        let mut missing = VcpuMask::EMPTY;
        for v in of.iter() {
            let acked = self.acks[v.index()].load(Ordering::Acquire) >= epoch.0;
            if !acked && !idle.is_parked(v) {
                missing = missing.with(v);
            }
        }
        missing
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn waits_for_those_awake_only() {
        let (r, idle) = (Rendezvous::new(), IdleSet::new());
        let v = |n| VcpuId::new(n).unwrap();
        let all = VcpuMask::first(3);
        assert_eq!(r.pending(v(0)), None);
        let first = r.request();
        idle.announce(v(2));
        assert_eq!(r.missing(first, all, &idle), VcpuMask::first(2));
        r.acknowledge(v(0), r.pending(v(0)).unwrap());
        assert_eq!(r.pending(v(0)), None);
        assert_eq!(r.missing(first, all, &idle), VcpuMask::EMPTY.with(v(1)));
        let second = r.request();
        r.acknowledge(v(1), r.pending(v(1)).unwrap());
        assert_eq!(r.missing(first, all, &idle), VcpuMask::EMPTY);
        assert_eq!(r.missing(second, all, &idle), VcpuMask::EMPTY.with(v(0)));
        assert_eq!(r.request_from(first), None);
        assert_eq!(r.request_from(second), Some(r.current()));
        idle.retract(v(2));
        assert_eq!(r.pending(v(2)), Some(r.current()));
    }
}
