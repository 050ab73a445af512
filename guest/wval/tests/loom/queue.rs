//! The run queue.

use crate::{leak, model, task, words};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use nacre_wval::*;

/// Two thieves and an owner that pushes over the ring's end and pops: each task is taken once, in order per taker.
#[test]
fn queue_gives_each_task_once() {
    model(Some(4), || {
        let q = leak(RunQueue::new(words(2)).unwrap());
        let owner = q.owner().unwrap();
        owner.push(task(1)).unwrap();
        let thieves: Vec<_> = (0..2)
            .map(|_| thread::spawn(move || [q.steal(), q.steal()].into_iter().flatten().collect::<Vec<_>>()))
            .collect();
        let (mut mine, mut pushed) = (Vec::new(), 1);
        for n in 2..=4 {
            match owner.push(task(n)) {
                Ok(()) => pushed += 1,
                Err(Full(t)) => mine.push(t),
            }
        }
        let refused = mine.len();
        assert_eq!(pushed + refused, 4);
        mine.extend(owner.pop());
        let mut all: Vec<Vec<_>> = thieves.into_iter().map(|t| t.join().unwrap()).collect();
        mine.extend(core::iter::from_fn(|| q.steal()));
        all.push(mine[refused..].to_vec());
        assert!(all.iter().all(|taken| taken.is_sorted()));
        let mut flat: Vec<_> = all.concat();
        flat.extend(&mine[..refused]);
        flat.sort();
        assert_eq!(flat, [1, 2, 3, 4].map(task));
    });
}

/// What was done to a task before its push is seen after its steal.
#[test]
fn queue_publishes_the_task() {
    model(None, || {
        let q = leak(RunQueue::new(words(2)).unwrap());
        let context = Arc::new(loom::cell::UnsafeCell::new(0u64));
        let owner = q.owner().unwrap();
        let theirs = context.clone();
        let thief = thread::spawn(move || {
            if q.steal().is_some() {
                // SAFETY: whoever takes the task owns it; loom reports the race if that is wrong.
                theirs.with(|p| assert_eq!(unsafe { *p }, 7));
            }
        });
        // SAFETY: as above.
        context.with_mut(|p| unsafe { *p = 7 });
        owner.push(task(1)).unwrap();
        thief.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "taken twice")]
fn catches_a_take_without_compare_and_swap() {
    model(None, || {
        let ring = Arc::new((AtomicU64::new(0), AtomicU64::new(1)));
        let take = |ring: &(AtomicU64, AtomicU64)| {
            let head = ring.0.load(Ordering::Acquire);
            let some = ring.1.load(Ordering::Acquire) > head;
            if some {
                ring.0.store(head + 1, Ordering::Release);
            }
            some
        };
        let other = ring.clone();
        let thief = thread::spawn(move || take(&other));
        let (mine, theirs) = (take(&ring), thief.join().unwrap());
        assert!(mine != theirs, "the one task was taken twice");
    });
}
