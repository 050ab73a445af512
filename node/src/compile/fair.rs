//! A fair gate: a few slots, and a queue per key; slots go round the keys, so that who queues a thousand things delays
//! others by one.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The gate.
pub struct Fair<K>(Arc<Inner<K>>);

struct Inner<K> {
    state: Mutex<State<K>>,
    max_waiting: usize,
}

struct State<K> {
    free: usize,
    /// Keys with somebody waiting, in the order of their turns.
    turns: VecDeque<K>,
    waiting: HashMap<K, VecDeque<oneshot::Sender<()>>>,
}

/// A slot; given back when dropped.
pub struct Slot<K: Clone + Eq + Hash>(Arc<Inner<K>>);

impl<K: Clone + Eq + Hash> Fair<K> {
    /// A gate with `slots`, and at most `max_waiting` waiting per key.
    #[must_use]
    pub fn new(slots: usize, max_waiting: usize) -> Self {
        let state = State { free: slots, turns: VecDeque::new(), waiting: HashMap::new() };
        Self(Arc::new(Inner { state: Mutex::new(state), max_waiting }))
    }

    /// Waits for a slot; `None` if too many of this key wait already.
    pub async fn enter(&self, key: K) -> Option<Slot<K>> {
        let turn = {
            let mut state = self.0.lock();
            if state.free > 0 {
                state.free -= 1;
                return Some(Slot(self.0.clone()));
            }
            let queue = state.waiting.entry(key.clone()).or_default();
            queue.retain(|waiter| !waiter.is_closed());
            if queue.len() >= self.0.max_waiting {
                return None;
            }
            let (mine, turn) = oneshot::channel();
            let first = queue.is_empty();
            queue.push_back(mine);
            if first && !state.turns.contains(&key) {
                state.turns.push_back(key);
            }
            turn
        };
        let mut waiting = Waiting { turn, gate: &self.0 };
        // The sender lives in the gate until it is used.
        (&mut waiting.turn).await.ok()?;
        Some(Slot(self.0.clone()))
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.lock().waiting.values().map(VecDeque::len).sum()
    }
}

/// Somebody who waits. If it gives up at the moment at which it got a slot, the slot goes on.
struct Waiting<'g, K: Clone + Eq + Hash> {
    turn: oneshot::Receiver<()>,
    gate: &'g Arc<Inner<K>>,
}

impl<K: Clone + Eq + Hash> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        self.turn.close();
        if self.turn.try_recv().is_ok() {
            self.gate.release();
        }
    }
}

impl<K> Inner<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> Inner<K> {
    /// Gives a free slot to whose turn it is.
    fn release(&self) {
        let mut state = self.lock();
        while let Some(key) = state.turns.pop_front() {
            let Some(queue) = state.waiting.get_mut(&key) else { continue };
            let waiter = queue.pop_front();
            if queue.is_empty() {
                state.waiting.remove(&key);
            } else {
                state.turns.push_back(key);
            }
            if waiter.is_some_and(|waiter| waiter.send(()).is_ok()) {
                return;
            }
        }
        state.free += 1;
    }
}

impl<K: Clone + Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Entering<'g> = Pin<Box<dyn Future<Output = Option<Slot<u8>>> + 'g>>;

    fn poll(entering: &mut Entering<'_>) -> Poll<Option<Slot<u8>>> {
        entering.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn slots_go_round_the_keys() {
        let gate = Fair::new(1, 10);
        let mut first: Entering<'_> = Box::pin(gate.enter(1));
        let Poll::Ready(Some(slot)) = poll(&mut first) else { panic!("a free slot") };
        let mut waiting: Vec<Entering<'_>> = [1, 1, 1, 2].map(|key| Box::pin(gate.enter(key)) as _).into();
        assert!(waiting.iter_mut().all(|one| poll(one).is_pending()));
        assert_eq!(gate.waiting(), 4);
        // The second key waits for one of the first, not for three.
        let mut held = slot;
        for next in [0, 3, 1, 2] {
            drop(held);
            let Poll::Ready(Some(slot)) = poll(&mut waiting[next]) else { panic!("turn of {next}") };
            held = slot;
        }
        drop(held);
        assert_eq!((gate.waiting(), gate.0.lock().free), (0, 1));
    }

    #[test]
    fn who_gives_up_loses_no_slot() {
        let gate = Fair::new(1, 10);
        let mut first: Entering<'_> = Box::pin(gate.enter(1));
        let Poll::Ready(Some(slot)) = poll(&mut first) else { panic!("a free slot") };
        let mut early: Entering<'_> = Box::pin(gate.enter(2));
        let mut late: Entering<'_> = Box::pin(gate.enter(2));
        assert!(poll(&mut early).is_pending() && poll(&mut late).is_pending());
        drop(early);
        drop(slot);
        // It has the slot now, and gives up before it knows.
        drop(late);
        assert_eq!(gate.0.lock().free, 1);
    }

    #[test]
    fn a_key_has_only_so_many_waiting() {
        let gate = Fair::new(0, 2);
        let mut waiting: Vec<Entering<'_>> = (0..2).map(|_| Box::pin(gate.enter(1)) as _).collect();
        assert!(waiting.iter_mut().all(|one| poll(one).is_pending()));
        let mut third: Entering<'_> = Box::pin(gate.enter(1));
        assert!(matches!(poll(&mut third), Poll::Ready(None)));
        let mut other: Entering<'_> = Box::pin(gate.enter(2));
        assert!(poll(&mut other).is_pending());
    }
}
