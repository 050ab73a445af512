//! [`TimerInbox`]: how other vCPUs reach the timers, which vCPU 0 owns: one ring per vCPU, one reader.
//!
//! Each ring has one producer and one consumer (Lamport's ring): a message's words are stored relaxed before `tail`
//! (release) and loaded after it (acquire); `head` (release) is stored after the words are read and loaded (acquire)
//! before they are overwritten. A stopped producer hides its own message and nothing else.
//!
//! # No late timer
//! vCPU 0 parks until its next deadline. Before that it publishes that deadline, fence, drains once more; a
//! sender pushes, fence, reads the published deadline and wakes vCPU 0 if its own is earlier. By Dekker's argument one
//! of them sees the other. Every sender decides for itself: nobody relies on a wake that another sender, which may be
//! stopped, is about to make. While vCPU 0 is awake, 0 is published: nothing is earlier.

use core::cell::Cell;
use core::marker::PhantomData;

use crate::sync::{AtomicBool, AtomicU64, CachePadded, Ordering, fence};
use crate::{RingError, TaskRef, TimerQueue, TimerToken, VcpuId};

/// Words of memory per message.
pub const WORDS_PER_MESSAGE: usize = 4;

/// In the first word beside the slot number: this message arms.
const ARM: u64 = 1 << 32;
const AWAKE: u64 = 0;
const NO_DEADLINE: u64 = u64::MAX;

/// The ring is full: vCPU 0 has not read it for long. To arm: yield, then try again. To cancel: give it up, the
/// timer's wake-up will be spurious.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("vCPU 0 is behind with reading timer requests")]
pub struct SenderFull;

/// Why memory cannot serve as a timer ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboxError {
    /// Not [`WORDS_PER_MESSAGE`] times a power of two words.
    #[error("{0} words are not a ring of messages")]
    Size(usize),
    /// The number of messages is wrong.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// One vCPU's requests on their way to vCPU 0.
#[derive(Debug)]
pub struct TimerRing<'a> {
    head: CachePadded<AtomicU64>,
    tail: CachePadded<AtomicU64>,
    words: &'a [AtomicU64],
    owned: AtomicBool,
}

impl<'a> TimerRing<'a> {
    /// An empty ring in `words`, [`WORDS_PER_MESSAGE`] times a power of two.
    pub fn new(words: &'a [AtomicU64]) -> Result<Self, InboxError> {
        if !words.len().is_multiple_of(WORDS_PER_MESSAGE) {
            return Err(InboxError::Size(words.len()));
        }
        let messages = words.len() / WORDS_PER_MESSAGE;
        if !messages.is_power_of_two() {
            return Err(RingError::NotPowerOfTwo(messages).into());
        }
        Ok(TimerRing {
            head: CachePadded(AtomicU64::new(0)),
            tail: CachePadded(AtomicU64::new(0)),
            words,
            owned: AtomicBool::new(false),
        })
    }

    fn capacity(&self) -> u64 {
        (self.words.len() / WORDS_PER_MESSAGE) as u64
    }

    fn message(&self, index: u64) -> &[AtomicU64] {
        let at = (index & (self.capacity() - 1)) as usize * WORDS_PER_MESSAGE;
        &self.words[at..at + WORDS_PER_MESSAGE]
    }
}

/// All vCPUs' timer requests.
#[derive(Debug)]
pub struct TimerInbox<'a> {
    rings: &'a [TimerRing<'a>],
    /// Until when vCPU 0 sleeps.
    sleeps_until_ns: CachePadded<AtomicU64>,
    received: AtomicBool,
}

impl<'a> TimerInbox<'a> {
    /// An inbox with ring n for vCPU n. vCPU 0 counts as awake.
    pub fn new(rings: &'a [TimerRing<'a>]) -> Self {
        TimerInbox {
            rings,
            sleeps_until_ns: CachePadded(AtomicU64::new(AWAKE)),
            received: AtomicBool::new(false),
        }
    }

    /// The right of vCPU `v` to send. Given out once.
    pub fn sender(&self, v: VcpuId) -> Option<TimerSender<'_>> {
        let ring = self.rings.get(v.index())?;
        let taken = ring.owned.swap(true, Ordering::AcqRel);
        (!taken).then_some(TimerSender { inbox: self, ring, not_sync: PhantomData })
    }

    /// The right of vCPU 0 to receive. Given out once.
    pub fn receiver(&self) -> Option<TimerReceiver<'_>> {
        let taken = self.received.swap(true, Ordering::AcqRel);
        (!taken).then_some(TimerReceiver { inbox: self, not_sync: PhantomData })
    }
}

/// One vCPU's sending end: neither `Clone` nor `Sync`.
#[derive(Debug)]
pub struct TimerSender<'s> {
    inbox: &'s TimerInbox<'s>,
    ring: &'s TimerRing<'s>,
    not_sync: PhantomData<Cell<()>>,
}

impl TimerSender<'_> {
    fn send(&self, message: [u64; WORDS_PER_MESSAGE]) -> Result<(), SenderFull> {
        let tail = self.ring.tail.load(Ordering::Relaxed);
        let head = self.ring.head.load(Ordering::Acquire);
        if tail.saturating_sub(head) >= self.ring.capacity() {
            return Err(SenderFull);
        }
        for (to, from) in self.ring.message(tail).iter().zip(message) {
            to.store(from, Ordering::Relaxed);
        }
        self.ring.tail.store(tail + 1, Ordering::Release);
        Ok(())
    }

    /// Asks for [`TimerQueue::arm`]. `Ok(true)`: vCPU 0 sleeps past this deadline, wake it.
    pub fn arm(&self, token: TimerToken, deadline_ns: u64, task: TaskRef) -> Result<bool, SenderFull> {
        self.send([ARM | u64::from(token.slot), token.seq, deadline_ns, task.get()])?;
        fence(Ordering::SeqCst);
        Ok(deadline_ns < self.inbox.sleeps_until_ns.load(Ordering::Acquire))
    }

    /// Asks for [`TimerQueue::cancel`]. Not urgent: wakes nobody.
    pub fn cancel(&self, token: TimerToken) -> Result<(), SenderFull> {
        self.send([u64::from(token.slot), token.seq, 0, 0])
    }
}

/// vCPU 0's receiving end: neither `Clone` nor `Sync`.
#[derive(Debug)]
pub struct TimerReceiver<'s> {
    inbox: &'s TimerInbox<'s>,
    not_sync: PhantomData<Cell<()>>,
}

impl TimerReceiver<'_> {
    /// Does what is requested; says how many requests there were. At most one ringful per vCPU, so that it ends
    /// whatever the senders do. Requests for slots that do not exist are dropped.
    pub fn drain(&self, timers: &mut TimerQueue<'_>) -> usize {
        let mut done = 0;
        for ring in self.inbox.rings {
            let mut head = ring.head.load(Ordering::Relaxed);
            let tail = ring.tail.load(Ordering::Acquire);
            while head < tail {
                let word = |i: usize| ring.message(head)[i].load(Ordering::Relaxed);
                let token = TimerToken { slot: word(0) as u32, seq: word(1) };
                if word(0) & ARM == 0 {
                    let _ = timers.cancel(token);
                } else if let Some(task) = TaskRef::new(word(3)) {
                    let _ = timers.arm(token, word(2), task);
                }
                head += 1;
                done += 1;
                ring.head.store(head, Ordering::Release);
            }
        }
        done
    }

    /// vCPU 0 is about to park. Says until when it may (`None`: until it is woken), after a last look at the rings;
    /// that may be in the past. Never later than what was published, so a sender that saw that need not wake; it may be
    /// too early where the last look brought a cancellation.
    pub fn before_park(&self, timers: &mut TimerQueue<'_>) -> Option<u64> {
        let published = timers.next_deadline().unwrap_or(NO_DEADLINE);
        self.inbox.sleeps_until_ns.store(published, Ordering::Release);
        fence(Ordering::SeqCst);
        self.drain(timers);
        let until = timers.next_deadline().unwrap_or(NO_DEADLINE).min(published);
        (until != NO_DEADLINE).then_some(until)
    }

    /// vCPU 0 is awake again.
    pub fn after_park(&self) {
        self.inbox.sleeps_until_ns.store(AWAKE, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::TimerSlot;

    fn token(slot: u32, seq: u64) -> TimerToken {
        TimerToken { slot, seq }
    }

    #[test]
    fn requests_arrive_and_the_sleeper_is_woken_for_earlier_deadlines_only() {
        let words = [const { AtomicU64::new(0) }; 2 * WORDS_PER_MESSAGE];
        let rings = [TimerRing::new(&words).unwrap()];
        let inbox = TimerInbox::new(&rings);
        let (tx, rx) = (inbox.sender(VcpuId::NORMAL).unwrap(), inbox.receiver().unwrap());
        assert!(inbox.sender(VcpuId::NORMAL).is_none() && inbox.receiver().is_none());
        let mut mem = vec![TimerSlot::new(); 4];
        let mut timers = TimerQueue::new(&mut mem);
        let task = TaskRef::new(9).unwrap();
        for round in 1..20 {
            assert_eq!(tx.arm(token(0, 2 * round), 100, task), Ok(false), "awake");
            assert_eq!(tx.arm(token(77, 1), 100, task), Ok(false));
            assert_eq!(tx.cancel(token(0, 1)), Err(SenderFull));
            assert_eq!(rx.drain(&mut timers), 2);
            assert_eq!(rx.before_park(&mut timers), Some(100));
            assert_eq!(tx.arm(token(1, round), 100, task), Ok(false));
            assert_eq!(tx.arm(token(2, round), 99, task), Ok(true));
            rx.after_park();
            assert_eq!(rx.drain(&mut timers), 2);
            assert_eq!(timers.pop_expired(99).unwrap().token, token(2, round));
            assert_eq!(timers.pop_expired(100).unwrap().token, token(0, 2 * round));
            tx.cancel(token(1, round)).unwrap();
            assert_eq!(rx.before_park(&mut timers), Some(100), "published before the cancellation was seen");
            assert_eq!(rx.before_park(&mut timers), None);
            assert_eq!(tx.arm(token(3, 2 * round), 1 << 40, task), Ok(true));
            tx.cancel(token(3, 2 * round)).unwrap();
            rx.after_park();
            assert_eq!((rx.drain(&mut timers), timers.len()), (2, 0));
        }
    }

    #[test]
    fn odd_memory_is_refused() {
        let words = [const { AtomicU64::new(0) }; 12];
        assert_eq!(TimerRing::new(&words[..5]).unwrap_err(), InboxError::Size(5));
        let three = InboxError::Ring(RingError::NotPowerOfTwo(3));
        assert_eq!(TimerRing::new(&words).unwrap_err(), three);
    }
}
