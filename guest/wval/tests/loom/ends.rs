//! Ends of tasks, and timers.

use crate::{leak, model, task, v, words};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;
use nacre_wval::*;

/// A task waits for another one's end, which wakes it by its number.
fn join_model() {
    let (done, park) = (Arc::new(Completion::new()), Arc::new(ParkState::new()));
    let result = Arc::new(loom::cell::UnsafeCell::new(0u64));
    let woken = Arc::new(AtomicBool::new(false));
    let (d, p, r, w) = (done.clone(), park.clone(), result.clone(), woken.clone());
    let ender = thread::spawn(move || {
        // SAFETY: nobody reads it before it has seen the end; loom reports the race otherwise.
        r.with_mut(|p| unsafe { *p = 7 });
        if d.end() == Some(3) && p.unpark() == Unpark::Push {
            w.store(true, Ordering::Release);
        }
    });
    let mut parked = false;
    loop {
        if done.wait_for(3) {
            break;
        }
        if park.prepare_park() == PreparePark::Token {
            continue;
        }
        if park.commit_park() == CommitPark::Parked {
            parked = true;
            break;
        }
        park.finish_park();
    }
    if !parked {
        // SAFETY: as above.
        result.with(|p| assert_eq!(unsafe { *p }, 7));
    }
    ender.join().unwrap();
    assert!(!parked || woken.load(Ordering::Acquire), "asleep for ever");
}

#[test]
fn a_join_sees_the_end_and_the_result() {
    model(None, || join_model());
}

/// The ender reads who waits before it says that it has ended.
#[test]
#[should_panic(expected = "nobody wakes the waiter")]
fn catches_an_end_that_is_told_too_late() {
    model(None, || {
        let (ended, waiter) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (e, w) = (ended.clone(), waiter.clone());
        let ender = thread::spawn(move || {
            let woken = w.load(Ordering::Acquire) != 0;
            fence(Ordering::SeqCst);
            e.store(true, Ordering::Release);
            woken
        });
        waiter.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let parks = !ended.load(Ordering::Acquire);
        assert!(!parks || ender.join().unwrap(), "nobody wakes the waiter");
    });
}

/// Requests and ends of a task race: exactly the requests that were accepted are told to who counts them.
#[test]
fn requests_to_stop_are_counted_once() {
    model(None, || {
        let stop = Arc::new(StopRequest::new());
        let askers: Vec<_> = [StopReason::Cancelled, StopReason::WallLimit]
            .map(|reason| {
                let stop = stop.clone();
                thread::spawn(move || stop.request(reason))
            })
            .into();
        let told = stop.end().is_some();
        let accepted = askers.into_iter().map(|a| a.join().unwrap()).filter(|yes| *yes).count();
        assert_eq!(accepted, usize::from(told));
    });
}

/// A sender with an early deadline against vCPU 0 going to sleep: it wakes it, or is read before.
#[test]
fn timers_are_not_late() {
    model(None, || {
        let rings: &'static [TimerRing<'static>] =
            Box::leak(Box::new([TimerRing::new(words(2 * WORDS_PER_MESSAGE)).unwrap()]));
        let inbox = leak(TimerInbox::new(rings));
        let (tx, rx) = (inbox.sender(v(0)).unwrap(), inbox.receiver().unwrap());
        let sender = thread::spawn(move || tx.arm(TimerToken { slot: 0, seq: 1 }, 5, task(1)).unwrap());
        let mut mem = [TimerSlot::new(), TimerSlot::new()];
        let mut timers = TimerQueue::new(&mut mem);
        timers.arm(TimerToken { slot: 1, seq: 1 }, 9, task(2)).unwrap();
        let until = rx.before_park(&mut timers);
        let woken = sender.join().unwrap();
        assert!(until == Some(5) || woken, "sleeps until {until:?}");
        rx.drain(&mut timers);
        assert_eq!((timers.next_deadline(), timers.len()), (Some(5), 2), "the request got lost");
    });
}
