//! [`TimerQueue`]: deadlines of tasks, in a binary heap over the caller's memory. One owner (vCPU 0), no atomics.
//!
//! A timer is named by a [`TimerToken`]: a dense slot number (one per task, say its index in the task table) and a
//! sequence number, which the slot's user raises at every arming and never sets back, also not when the slot goes to
//! another task. Arming a slot replaces its timer. So the queue cannot overflow, needs no search, and bears its
//! requests in any order: they come over one ring per vCPU ([`crate::TimerInbox`]), and a task that moved may have
//! its cancellation seen before its arming. Whatever is not newer than the newest seen for the slot is ignored.
//!
//! Layout: `slots[n]` holds timer n and, unrelated to it, the heap's n-th entry, so one slice is enough.
//! Every operation is O(log n); cancellation removes at once.

use crate::TaskRef;

const NOWHERE: u32 = u32::MAX;

/// Memory for one timer.
#[derive(Clone, Debug)]
pub struct TimerSlot {
    deadline_ns: u64,
    /// Order of arming, to break ties first come, first served.
    order: u64,
    newest_seq: u64,
    task: Option<TaskRef>,
    /// Where the heap has this slot's timer, or NOWHERE.
    position: u32,
    /// The heap's entry of this index: a slot number.
    heap_entry: u32,
}

impl TimerSlot {
    /// An unused slot.
    pub const fn new() -> Self {
        TimerSlot { deadline_ns: 0, order: 0, newest_seq: 0, task: None, position: NOWHERE, heap_entry: 0 }
    }
}

impl Default for TimerSlot {
    fn default() -> Self {
        Self::new()
    }
}

/// Names one arming of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerToken {
    /// The slot's number.
    pub slot: u32,
    /// The arming's number: larger than any used with this slot before; not zero.
    pub seq: u64,
}

/// What became of an arming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// The timer runs.
    Armed,
    /// It was cancelled or replaced before it came.
    Stale,
}

/// A timer that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Which one.
    pub token: TimerToken,
    /// The task to wake.
    pub task: TaskRef,
    /// When it was due.
    pub deadline_ns: u64,
}

/// Why a request cannot be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimerError {
    /// The slot number is not below the number of slots.
    #[error("there is no timer slot {0}")]
    NoSuchSlot(u32),
}

/// The timers of a CVM.
#[derive(Debug)]
pub struct TimerQueue<'a> {
    slots: &'a mut [TimerSlot],
    len: usize,
    orders: u64,
}

impl<'a> TimerQueue<'a> {
    /// An empty queue for as many timers as there are slots (at most 2^32 - 1 of them are used).
    pub fn new(slots: &'a mut [TimerSlot]) -> Self {
        let usable = slots.len().min(NOWHERE as usize);
        let slots = &mut slots[..usable];
        slots.fill(TimerSlot::new());
        TimerQueue { slots, len: 0, orders: 0 }
    }

    /// How many timers run.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets `task` be reported at `deadline_ns` (of the guest's monotonic clock), instead of what the slot had before.
    pub fn arm(&mut self, token: TimerToken, deadline_ns: u64, task: TaskRef) -> Result<Arm, TimerError> {
        let order = self.orders;
        let slot = self.slots.get_mut(token.slot as usize).ok_or(TimerError::NoSuchSlot(token.slot))?;
        if token.seq <= slot.newest_seq {
            return Ok(Arm::Stale);
        }
        self.orders += 1;
        slot.newest_seq = token.seq;
        let position = slot.position;
        if position != NOWHERE {
            self.remove_at(position as usize);
        }
        let slot = &mut self.slots[token.slot as usize];
        (slot.deadline_ns, slot.order, slot.task) = (deadline_ns, order, Some(task));
        let end = self.len;
        self.len += 1;
        self.place(end, token.slot);
        self.sift_up(end);
        Ok(Arm::Armed)
    }

    /// Cancels that arming, even if it comes later. True if its timer ran.
    pub fn cancel(&mut self, token: TimerToken) -> Result<bool, TimerError> {
        let slot = self.slots.get_mut(token.slot as usize).ok_or(TimerError::NoSuchSlot(token.slot))?;
        if token.seq < slot.newest_seq {
            return Ok(false);
        }
        slot.newest_seq = token.seq;
        let position = slot.position;
        if position == NOWHERE {
            return Ok(false);
        }
        self.remove_at(position as usize);
        Ok(true)
    }

    /// When the next timer is due.
    pub fn next_deadline(&self) -> Option<u64> {
        (self.len > 0).then(|| self.at(0).deadline_ns)
    }

    /// Takes the timer that is due the longest at `now_ns`; ties in the order of arming.
    pub fn pop_expired(&mut self, now_ns: u64) -> Option<Expired> {
        if self.next_deadline()? > now_ns {
            return None;
        }
        let slot = self.slots[0].heap_entry;
        self.remove_at(0);
        let s = &self.slots[slot as usize];
        Some(Expired {
            token: TimerToken { slot, seq: s.newest_seq },
            task: s.task?,
            deadline_ns: s.deadline_ns,
        })
    }

    fn at(&self, position: usize) -> &TimerSlot {
        &self.slots[self.slots[position].heap_entry as usize]
    }

    fn place(&mut self, position: usize, slot: u32) {
        self.slots[position].heap_entry = slot;
        self.slots[slot as usize].position = position as u32;
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.at(a), self.at(b));
        (a.deadline_ns, a.order) < (b.deadline_ns, b.order)
    }

    fn swap(&mut self, a: usize, b: usize) {
        let (x, y) = (self.slots[a].heap_entry, self.slots[b].heap_entry);
        self.place(a, y);
        self.place(b, x);
    }

    fn remove_at(&mut self, position: usize) {
        let last = self.len - 1;
        let removed = self.slots[position].heap_entry;
        self.swap(position, last);
        self.slots[removed as usize].position = NOWHERE;
        self.len = last;
        if position < last {
            self.sift_up(position);
            self.sift_down(position);
        }
    }

    fn sift_up(&mut self, mut i: usize) {
        while i > 0 && self.before(i, (i - 1) / 2) {
            self.swap(i, (i - 1) / 2);
            i = (i - 1) / 2;
        }
    }

    fn sift_down(&mut self, mut i: usize) {
        loop {
            let (left, right) = (2 * i + 1, 2 * i + 2);
            let mut least = i;
            if left < self.len && self.before(left, least) {
                least = left;
            }
            if right < self.len && self.before(right, least) {
                least = right;
            }
            if least == i {
                return;
            }
            self.swap(i, least);
            i = least;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn token(slot: u32, seq: u64) -> TimerToken {
        TimerToken { slot, seq }
    }

    fn task(n: u64) -> TaskRef {
        TaskRef::new(n).unwrap()
    }

    #[test]
    fn fires_in_order_and_only_when_due() {
        let mut mem = vec![TimerSlot::new(); 8];
        let mut q = TimerQueue::new(&mut mem);
        for (slot, deadline) in [(0, 50), (1, 10), (2, 50), (3, 30), (4, 10)] {
            assert_eq!(q.arm(token(slot, 1), deadline, task(100 + u64::from(slot))), Ok(Arm::Armed));
        }
        assert_eq!((q.next_deadline(), q.pop_expired(9), q.len()), (Some(10), None, 5));
        let fired: Vec<_> = core::iter::from_fn(|| q.pop_expired(50)).map(|e| e.task.get()).collect();
        assert_eq!(fired, [101, 104, 103, 100, 102]);
        assert_eq!((q.next_deadline(), q.is_empty()), (None, true));
    }

    #[test]
    fn requests_may_come_in_any_order() {
        let mut mem = vec![TimerSlot::new(); 2];
        let mut q = TimerQueue::new(&mut mem);
        assert_eq!(q.cancel(token(0, 5)), Ok(false));
        assert_eq!(q.arm(token(0, 5), 10, task(1)), Ok(Arm::Stale));
        assert_eq!(q.arm(token(0, 7), 10, task(1)), Ok(Arm::Armed));
        assert_eq!(q.arm(token(0, 6), 5, task(1)), Ok(Arm::Stale));
        assert_eq!(q.cancel(token(0, 6)), Ok(false));
        assert_eq!(q.arm(token(0, 8), 20, task(1)), Ok(Arm::Armed));
        assert_eq!((q.len(), q.next_deadline()), (1, Some(20)));
        assert_eq!((q.cancel(token(0, 8)), q.cancel(token(0, 8))), (Ok(true), Ok(false)));
        assert_eq!(q.arm(token(2, 1), 1, task(1)), Err(TimerError::NoSuchSlot(2)));
        assert_eq!(q.cancel(token(9, 1)), Err(TimerError::NoSuchSlot(9)));
    }
}
