//! [`RunQueue`]: one vCPU's run queue, a bounded FIFO ring with one producer (its owner) and many consumers.
//!
//! # Algorithm
//! The ring of Go's scheduler (`runqput`, `runqget` in `runtime/proc.go`), also the base of Tokio's local queue,
//! reduced to single takes: consumers, the owner among them, read the slot at `head` and then move `head` on by
//! compare-and-swap; only the owner writes slots and `tail`. The indices are 64-bit and only ever grow (at one push a
//! nanosecond for 584 years), so a compare-and-swap cannot succeed on a reused index.
//!
//! # Progress
//! A consumer stopped between its read and its compare-and-swap holds nobody up: the others' succeed, its own will
//! fail. A producer stopped before it publishes `tail` hides one task, the one it was pushing. Nobody ever waits.
//!
//! # Memory ordering
//! - The slot is stored (relaxed) before `tail` (release) and loaded (relaxed) after `tail` (acquire): a consumer
//!   that sees an index as filled sees the slot, and everything the producer did to the task before the push.
//! - The owner overwrites a slot only after it has loaded (acquire) a `head` beyond it. That value was stored by a
//!   compare-and-swap (release) which comes after the winning consumer's load of the slot, so the load cannot see
//!   the new value. A consumer that did see the new value has lost: `head` had moved, its compare-and-swap fails.
//! - `tail` is loaded after `head`; `head` (acquire) was stored by a consumer which had seen a larger `tail`, so
//!   `tail >= head` holds for every pair loaded in this order.

use core::cell::Cell;
use core::marker::PhantomData;

use crate::TaskRef;
use crate::sync::{AtomicBool, AtomicU64, CachePadded, Ordering};

/// Why memory cannot serve as a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A ring's capacity must be a power of two (and not zero).
    #[error("ring capacity {0} is not a power of two")]
    NotPowerOfTwo(usize),
}

/// The queue is full; the task is handed back. Cannot happen when the capacity is at least the number of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run queue is full")]
pub struct Full(pub TaskRef);

/// A bounded FIFO of tasks: pushed by its [`Owner`], taken by anyone. See the module's source for the reasoning.
#[derive(Debug)]
pub struct RunQueue<'a> {
    head: CachePadded<AtomicU64>,
    tail: CachePadded<AtomicU64>,
    slots: &'a [AtomicU64],
    owned: AtomicBool,
}

impl<'a> RunQueue<'a> {
    /// An empty queue in `slots`, whose number must be a power of two.
    pub fn new(slots: &'a [AtomicU64]) -> Result<Self, RingError> {
        if !slots.len().is_power_of_two() {
            return Err(RingError::NotPowerOfTwo(slots.len()));
        }
        Ok(RunQueue {
            head: CachePadded(AtomicU64::new(0)),
            tail: CachePadded(AtomicU64::new(0)),
            slots,
            owned: AtomicBool::new(false),
        })
    }

    /// The right to push. Given out once.
    pub fn owner(&self) -> Option<Owner<'_>> {
        let taken = self.owned.swap(true, Ordering::AcqRel);
        (!taken).then_some(Owner { queue: self, head_seen: Cell::new(0), not_sync: PhantomData })
    }

    /// How many tasks fit.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn slot(&self, index: u64) -> &AtomicU64 {
        &self.slots[index as usize & (self.slots.len() - 1)]
    }

    /// Takes the oldest task. Lock-free: a retry means that another consumer got one.
    pub fn steal(&self) -> Option<TaskRef> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let tail = self.tail.load(Ordering::Acquire);
            if tail <= head {
                return None;
            }
            let raw = self.slot(head).load(Ordering::Relaxed);
            match self.head.compare_exchange(head, head + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return TaskRef::new(raw),
                Err(moved) => head = moved,
            }
        }
    }

    /// Whether nothing was queued at some moment during the call. For the re-check before parking, the caller must
    /// have announced itself first (see [`crate::IdleSet::announce`]).
    pub fn is_empty(&self) -> bool {
        let head = self.head.load(Ordering::Acquire);
        self.tail.load(Ordering::Acquire) <= head
    }

    /// About how many tasks are queued.
    pub fn len_hint(&self) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        self.tail.load(Ordering::Relaxed).saturating_sub(head) as usize
    }
}

/// The only producer of one [`RunQueue`]. Neither `Clone` nor `Sync`: one vCPU has it.
///
/// ```compile_fail,E0277
/// fn needs_sync<T: Sync>() {}
/// needs_sync::<nacre_wval::Owner<'static>>();
/// ```
/// ```compile_fail,E0277
/// fn needs_clone<T: Clone>() {}
/// needs_clone::<nacre_wval::Owner<'static>>();
/// ```
#[derive(Debug)]
pub struct Owner<'q> {
    queue: &'q RunQueue<'q>,
    /// `head` as it was last looked at: as long as that says there is room, its line stays with those who take tasks.
    head_seen: Cell<u64>,
    not_sync: PhantomData<Cell<()>>,
}

impl<'q> Owner<'q> {
    /// Appends a task. Wait-free. Must not be interrupted by a switch to another fiber of the same vCPU.
    pub fn push(&self, task: TaskRef) -> Result<(), Full> {
        let q = self.queue;
        let tail = q.tail.load(Ordering::Relaxed);
        let is_full = |head| tail.saturating_sub(head) >= q.slots.len() as u64;
        if is_full(self.head_seen.get()) {
            self.head_seen.set(q.head.load(Ordering::Acquire));
            if is_full(self.head_seen.get()) {
                return Err(Full(task));
            }
        }
        q.slot(tail).store(task.get(), Ordering::Relaxed);
        q.tail.store(tail + 1, Ordering::Release);
        Ok(())
    }

    /// Takes the oldest task, in competition with the thieves.
    pub fn pop(&self) -> Option<TaskRef> {
        self.queue.steal()
    }

    /// The queue.
    pub fn queue(&self) -> &'q RunQueue<'q> {
        self.queue
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn task(n: u64) -> TaskRef {
        TaskRef::new(n).unwrap()
    }

    fn slots<const N: usize>() -> [AtomicU64; N] {
        [const { AtomicU64::new(0) }; N]
    }

    #[test]
    fn is_fifo_over_many_wraps_and_reports_full() {
        let mem = slots::<4>();
        let q = RunQueue::new(&mem).unwrap();
        let o = q.owner().unwrap();
        let (mut next_in, mut next_out) = (1, 1);
        for round in 0..50 {
            while o.push(task(next_in)).is_ok() {
                next_in += 1;
            }
            assert_eq!(o.push(task(999)), Err(Full(task(999))));
            assert_eq!((q.len_hint(), q.is_empty()), (4, false));
            for _ in 0..=round % 4 {
                assert_eq!(if round % 2 == 0 { o.pop() } else { q.steal() }, Some(task(next_out)));
                next_out += 1;
            }
        }
        while let Some(t) = q.steal() {
            assert_eq!(t, task(next_out));
            next_out += 1;
        }
        assert_eq!((next_in, q.is_empty()), (next_out, true));
    }

    #[test]
    fn has_one_owner_and_a_power_of_two() {
        let mem = slots::<2>();
        let q = RunQueue::new(&mem).unwrap();
        assert!(q.owner().is_some());
        assert!(q.owner().is_none());
        assert_eq!(RunQueue::new(&slots::<3>()).unwrap_err(), RingError::NotPowerOfTwo(3));
        assert_eq!(RunQueue::new(&[]).unwrap_err(), RingError::NotPowerOfTwo(0));
    }
}
