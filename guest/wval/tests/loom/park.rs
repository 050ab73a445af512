//! Parking of tasks.

use crate::model;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use loom::thread;
use nacre_wval::*;

/// A task that parks once, its scheduler, and two unparkers. Whoever must push runs the task (a push is modelled by the
/// right to touch the context). Broken variant: the scheduler commits before the context is saved.
fn park_model(save_first: bool) {
    let state = Arc::new(ParkState::new());
    let context = Arc::new(loom::cell::UnsafeCell::new(0u64));
    let condition = Arc::new(AtomicBool::new(false));
    let runs = Arc::new(AtomicUsize::new(0));
    let resume = {
        let (state, context, condition, runs) =
            (state.clone(), context.clone(), condition.clone(), runs.clone());
        move || {
            // SAFETY: only the one vCPU that resumes the task touches its context; loom reports a race otherwise.
            context.with_mut(|p| unsafe { *p += 1 });
            state.finish_park();
            assert!(condition.load(Ordering::Relaxed), "woken, but what it waited for is not seen");
            runs.fetch_add(1, Ordering::Relaxed);
        }
    };
    let unparkers: Vec<_> = (0..2)
        .map(|_| {
            let (state, condition, resume) = (state.clone(), condition.clone(), resume.clone());
            thread::spawn(move || {
                condition.store(true, Ordering::Relaxed);
                if state.unpark() == Unpark::Push {
                    resume();
                }
            })
        })
        .collect();
    match state.prepare_park() {
        PreparePark::Token => {
            assert!(condition.load(Ordering::Relaxed));
            runs.fetch_add(1, Ordering::Relaxed);
        }
        PreparePark::Switch => {
            // SAFETY: the task is not yet parked, nobody else has it.
            let save = || context.with_mut(|p| unsafe { *p += 1 });
            if save_first {
                save();
            }
            if state.commit_park() == CommitPark::MustRequeue {
                resume();
            }
            if !save_first {
                save();
            }
        }
    }
    unparkers.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(runs.load(Ordering::Relaxed), 1, "lost or doubled");
}

#[test]
fn park_resumes_exactly_once() {
    model(Some(5), || park_model(true));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn catches_a_commit_before_the_context_is_saved() {
    model(None, || park_model(false));
}

/// Parks twice, is unparked twice from another vCPU: the second round must not be lost either.
#[test]
fn park_loses_no_second_wake() {
    model(None, || {
        let state = Arc::new(ParkState::new());
        let (count, woken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (s, c, w) = (state.clone(), count.clone(), woken.clone());
        let unparker = thread::spawn(move || {
            for n in 1..=2 {
                c.store(n, Ordering::Relaxed);
                if s.unpark() == Unpark::Push {
                    w.store(true, Ordering::Release);
                }
            }
        });
        // The task waits for count == 2. It may end parked only if a push is owed to it.
        let mut parked = false;
        while count.load(Ordering::Relaxed) < 2 {
            if state.prepare_park() == PreparePark::Token {
                continue;
            }
            if state.commit_park() == CommitPark::Parked {
                parked = true;
                break;
            }
            state.finish_park();
        }
        unparker.join().unwrap();
        if parked {
            assert!(woken.load(Ordering::Acquire), "asleep for ever");
            state.finish_park();
            assert_eq!(count.load(Ordering::Relaxed), 2);
        }
    });
}
