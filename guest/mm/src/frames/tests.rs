use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const BASE: GuestPhys = GuestPhys(4 << 30);

fn words(count: usize) -> Vec<AtomicU64> {
    (0..words_needed(count)).map(|_| AtomicU64::new(0)).collect()
}

#[test]
fn every_small_frame_is_handed_out_once_and_returns() {
    let words = words(3);
    let frames = Frames::new(BASE, 3, 0, &words);
    let all: BTreeSet<u64> = std::iter::from_fn(|| frames.alloc_small()).map(|frame| frame.0).collect();
    assert_eq!(all.len() as u64, 3 * SMALL_PER_LARGE);
    assert_eq!(frames.alloc_large(), None);
    for frame in all {
        frames.free_small(GuestPhys(frame));
    }
    assert_eq!(frames.used_pages(), 0);
    let large: BTreeSet<_> = std::iter::from_fn(|| frames.alloc_large()).map(|(frame, _)| frame).collect();
    assert_eq!(large.len(), 3, "split frames became whole again");
}

#[test]
fn what_is_reserved_others_get_last() {
    let words = words(2);
    let frames = Frames::new(BASE, 2, 0, &words);
    let page = |number: u64| GuestPhys(BASE.0 + number * PAGE_BYTES);
    assert_eq!(frames.alloc_reserved(70), Some(page(70)));
    assert_eq!((frames.is_free(page(70)), frames.is_free(page(71))), (Some(false), Some(true)));
    assert_eq!(frames.alloc_beside(page(70), 511), Some(page(511)));
    assert_eq!((frames.alloc_beside(page(70), 511), frames.alloc_beside(page(70), 70)), (None, None));
    assert_eq!(frames.alloc_beside(GuestPhys(BASE.0 - PAGE_BYTES), 0), None, "not one of these frames");
    assert_eq!(frames.alloc_beside(page(2 * SMALL_PER_LARGE), 0), None, "likewise");
    // All of the other large frame comes first.
    for _ in 0..SMALL_PER_LARGE {
        assert!(frames.alloc_small().unwrap() >= page(SMALL_PER_LARGE));
    }
    assert_eq!((frames.alloc_reserved(0), frames.alloc_large()), (None, None));
    assert_eq!(frames.alloc_small(), Some(page(0)), "rather than nothing");
    assert_eq!(frames.alloc_beside(page(70), 1), Some(page(1)), "as far as it is free");
    let rest = std::iter::from_fn(|| frames.alloc_small()).count() as u64;
    assert_eq!((rest, frames.used_pages()), (SMALL_PER_LARGE - 4, 2 * SMALL_PER_LARGE));
    (0..SMALL_PER_LARGE).for_each(|number| frames.free_small(page(number)));
    assert_eq!(frames.alloc_large(), Some((page(0), false)), "whole again");
}

#[test]
fn a_reservation_ends_with_a_word() {
    let words = words(2);
    let frames = Frames::new(BASE, 2, 0, &words);
    let first = frames.alloc_reserved(3).unwrap();
    frames.end_reservations();
    assert_eq!(frames.alloc_small().map(|frame| frame.0 < first.0), Some(true));
    assert!(frames.alloc_large().is_some());
}

#[test]
fn promises_stop_at_the_limit() {
    let words = words(2);
    let frames = Frames::new(BASE, 2, 24, &words);
    assert_eq!(frames.limit_pages(), 1000);
    frames.commit(990).unwrap();
    assert_eq!(frames.commit(11), Err(OutOfMemory));
    assert_eq!(frames.commit(u64::MAX), Err(OutOfMemory));
    frames.commit(10).unwrap();
    frames.uncommit(500);
    assert_eq!(frames.committed_pages(), (500, 1000));
}

#[test]
fn frames_that_are_zeroed_ahead_come_first_and_once() {
    let words = words(4);
    let frames = Frames::new(BASE, 4, 0, &words);
    frames.commit(3 * SMALL_PER_LARGE).unwrap();
    assert_eq!(frames.take_unready(SMALL_PER_LARGE + 1), None, "nobody is to miss it");
    let (first, zeroed) = frames.alloc_large().unwrap();
    assert!(!zeroed);
    let ahead = frames.take_unready(SMALL_PER_LARGE).unwrap();
    frames.put_ready(ahead);
    // One that has memory, but is not zero, does not come before it.
    frames.free_large(first);
    assert_eq!((frames.ready(), frames.alloc_large()), (1, Some((ahead, true))));
    frames.free_large(ahead);
    assert_eq!(frames.ready(), 0, "whoever had it wrote to it");
    // Neither a release nor a split leaves the mark.
    for use_it in [&(|| frames.released(frames.take_releasable().unwrap())) as &dyn Fn(), &|| {
        frames.free_small(frames.alloc_small().unwrap())
    }] {
        while let Some(frame) = frames.take_unready(0) {
            frames.put_ready(frame);
            if frames.ready() == 4 {
                break;
            }
        }
        assert_eq!(frames.ready(), 4);
        use_it();
        assert_eq!(frames.ready(), 3);
    }
}

#[test]
fn only_frames_that_were_used_are_released() {
    let words = words(4);
    let frames = Frames::new(BASE, 4, 0, &words);
    assert_eq!(frames.take_releasable(), None);
    let (used, _) = frames.alloc_large().unwrap();
    frames.free_large(used);
    assert_eq!(frames.releasable_bytes(), LARGE_PAGE_BYTES);
    assert_eq!(frames.alloc_large(), Some((used, false)), "a frame that has memory comes first");
    frames.free_large(used);
    assert_eq!(frames.take_releasable(), Some(used));
    frames.released(used);
    assert_eq!(frames.take_releasable(), None);
    assert_eq!(std::iter::from_fn(|| frames.alloc_large()).count(), 4);
}

#[test]
fn threads_never_get_the_same_frame() {
    let words = words(8);
    let frames = Frames::new(BASE, 8, 0, &words);
    let owners: Vec<AtomicU64> = (0..8 * SMALL_PER_LARGE).map(|_| AtomicU64::new(0)).collect();
    let claim = |frame: GuestPhys, pages: u64, me: u64| {
        let first = (frame.0 - BASE.0) / PAGE_BYTES;
        for page in first..first + pages {
            assert_eq!(owners[page as usize].swap(me, Ordering::SeqCst), 0);
        }
    };
    let disclaim = |frame: GuestPhys, pages: u64, me: u64| {
        let first = (frame.0 - BASE.0) / PAGE_BYTES;
        for page in first..first + pages {
            assert_eq!(owners[page as usize].swap(0, Ordering::SeqCst), me);
        }
    };
    std::thread::scope(|scope| {
        for me in 1..=4u64 {
            let (frames, claim, disclaim) = (&frames, &claim, &disclaim);
            scope.spawn(move || {
                let mut held: Vec<(GuestPhys, u64)> = Vec::new();
                let mut random = me;
                for _ in 0..20_000 {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let number = random >> 20 & 511;
                    let taken = match random >> 61 {
                        0 if held.len() < 500 => frames.alloc_reserved(number).map(|frame| (frame, 1)),
                        1 if held.len() < 500 && !held.is_empty() => {
                            frames.alloc_beside(held[0].0, number).map(|frame| (frame, 1))
                        }
                        2 if held.len() < 500 => frames.alloc_small().map(|frame| (frame, 1)),
                        3 if held.len() < 500 => {
                            frames.alloc_large().map(|(frame, _)| (frame, SMALL_PER_LARGE))
                        }
                        _ if held.is_empty() => None,
                        _ => {
                            let (frame, pages) = held.swap_remove((random >> 8) as usize % held.len());
                            disclaim(frame, pages, me);
                            if pages == 1 {
                                frames.free_small(frame)
                            } else {
                                frames.free_large(frame)
                            }
                            None
                        }
                    };
                    if let Some((frame, pages)) = taken {
                        claim(frame, pages, me);
                        held.push((frame, pages));
                    }
                }
                for (frame, pages) in held {
                    disclaim(frame, pages, me);
                    if pages == 1 { frames.free_small(frame) } else { frames.free_large(frame) }
                }
            });
        }
    });
    assert_eq!(frames.used_pages(), 0);
    assert_eq!(std::iter::from_fn(|| frames.alloc_large()).count(), 8);
}

proptest! {
    #[test]
    fn matches_a_set_of_free_pages(steps in prop::collection::vec((0u8..8, 0..SMALL_PER_LARGE, any::<prop::sample::Index>()), 1..400)) {
        let words = words(4);
        let frames = Frames::new(BASE, 4, 0, &words);
        let mut held: Vec<(GuestPhys, u64)> = Vec::new();
        for (step, number, index) in steps {
            let beside = (!held.is_empty()).then(|| held[index.index(held.len())].0);
            match step {
                2 => held.extend(frames.alloc_reserved(number).map(|frame| (frame, 1))),
                3 => held.extend(beside.and_then(|beside| frames.alloc_beside(beside, number)).map(|frame| (frame, 1))),
                0 => held.extend(frames.alloc_small().map(|frame| (frame, 1))),
                1 => held.extend(frames.alloc_large().map(|(frame, _)| (frame, SMALL_PER_LARGE))),
                _ if held.is_empty() => {}
                _ => {
                    let (frame, pages) = held.swap_remove(index.index(held.len()));
                    if pages == 1 { frames.free_small(frame) } else { frames.free_large(frame) }
                }
            }
            let mut pages = BTreeSet::new();
            for (frame, count) in &held {
                for page in 0..*count {
                    prop_assert!(pages.insert(frame.0 + page * PAGE_BYTES), "handed out twice");
                }
            }
            prop_assert_eq!(frames.used_pages(), pages.len() as u64);
            for page in (0..4 * SMALL_PER_LARGE).map(|page| BASE.0 + page * PAGE_BYTES) {
                prop_assert_eq!(frames.is_free(GuestPhys(page)), Some(!pages.contains(&page)));
            }
        }
    }
}

#[test]
fn a_page_pool_hands_out_each_page_once() {
    let words: Vec<AtomicU64> = (0..2).map(|_| AtomicU64::new(0)).collect();
    let pool = PagePool::new(BASE, 100, 10, &words);
    let all: BTreeSet<_> = std::iter::from_fn(|| pool.alloc()).collect();
    assert_eq!(all.len(), 90);
    assert!(all.iter().all(|page| page.0 >= BASE.0 + 10 * PAGE_BYTES));
    pool.free(GuestPhys(BASE.0 + 50 * PAGE_BYTES));
    assert_eq!(pool.alloc(), Some(GuestPhys(BASE.0 + 50 * PAGE_BYTES)));
}
