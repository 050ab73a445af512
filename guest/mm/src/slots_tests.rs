use super::*;
use crate::stepping::Gate;
use std::collections::BTreeSet;
use std::sync::Arc;

const CLASSES: [SlotClass; 2] = lay_out([(4096, 70), (8192, 2)], 0, true);

fn slots() -> Slots<2, { words_of(&CLASSES) }> {
    Slots::new(CLASSES)
}

#[test]
fn every_slot_is_handed_out_once_the_lowest_first_then_larger_ones() {
    let slots = slots();
    let mut seen = BTreeSet::new();
    for expected in 0..70 {
        assert_eq!(slots.take(4000, || 0), Some(expected * 4096));
        seen.insert(expected * 4096);
    }
    let larger = [slots.take(1, || 0).unwrap(), slots.take(5000, || 0).unwrap()];
    assert!(larger.iter().all(|slot| slot.is_multiple_of(8192) && seen.insert(*slot)));
    assert_eq!((slots.take(1, || 0), slots.used()), (None, 72));
    assert_eq!(slots.take(8193, || 0), None);
    slots.give(65 * 4096 + 17);
    slots.give(3 * 4096);
    assert_eq!(slots.take(1, || 0), Some(3 * 4096));
    assert_eq!(slots.take(1, || 0), Some(65 * 4096));
}

#[test]
fn a_slot_that_rests_is_not_used_before_it_is_settled() {
    let slots = slots();
    let all: Vec<_> = std::iter::from_fn(|| slots.take(1, || 0)).collect();
    slots.rest(all[5], 10);
    slots.rest(all[6], 12);
    assert_eq!(slots.take(1, || 11), None);
    assert_eq!((slots.take(1, || 12), slots.take(1, || 12)), (Some(all[5]), Some(all[6])));
    assert_eq!(slots.take(1, || 12), None);
}

/// A thread that is stopped anywhere in taking, giving back or waking slots: no slot is handed out twice, the others get all
/// but those in its hands, and nothing is lost.
#[test]
fn a_stopped_thread_delays_nobody() {
    for steps in 0.. {
        let slots = Arc::new(slots());
        let all: Vec<_> = std::iter::from_fn(|| slots.take(1, || 0)).collect();
        slots.rest(all[3], 1);
        slots.give(all[40]);
        let (inner, given) = (slots.clone(), all[50]);
        let (taken, result) = std::sync::mpsc::channel();
        let (gate, thread) = Gate::run(move || {
            inner.give(given);
            if let Some(slot) = inner.take(1, || 1) {
                inner.rest(slot, 1);
            }
            for _ in 0..3 {
                taken.send(inner.take(1, || 1)).unwrap();
            }
        });
        let stopped = gate.step(steps);
        let mine: Vec<_> = std::iter::from_fn(|| slots.take(1, || 1)).collect();
        gate.step(1 << 40);
        thread.join().unwrap();
        let late: Vec<_> =
            result.iter().flatten().chain(std::iter::from_fn(|| slots.take(1, || 1))).collect();
        let together: BTreeSet<_> = mine.iter().chain(&late).copied().collect();
        assert_eq!(together.len(), mine.len() + late.len(), "handed out twice when stopped after {steps}");
        assert_eq!(together, BTreeSet::from([all[3], all[40], all[50]]), "lost when stopped after {steps}");
        if !stopped {
            assert!(steps > 10);
            break;
        }
    }
}

#[test]
fn a_bag_gives_back_what_was_put_in() {
    let bag = Bag::<4>::new();
    assert!((1..5).all(|value| bag.put(value).is_ok()));
    assert_eq!(bag.put(9), Err(9));
    assert_eq!(bag.take(|value| value == 3), Some(3));
    assert_eq!(bag.take(|value| value == 3), None);
    let rest: BTreeSet<_> = std::iter::from_fn(|| bag.take(|_| true)).collect();
    assert_eq!(rest, BTreeSet::from([1, 2, 4]));
}
