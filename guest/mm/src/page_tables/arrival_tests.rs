//! Single cases of what migration asks of page tables.

use super::migration_tests::*;
use super::*;

const AT: GuestVirt = GuestVirt(REGIONS[0]);
const WHOLE: u64 = SMALL_PER_LARGE;

fn at(page: u64) -> GuestVirt {
    GuestVirt(address(page))
}

fn with_space(test: impl FnOnce(&Backing, &PageTables<'_, &Backing>)) {
    let backing = Backing::new();
    test(&backing, &backing.space());
}

/// Promised pages, and those with a frame.
fn counts<M: TableMemory>(space: &PageTables<'_, M>) -> (u64, u64) {
    (space.frames().committed_pages().0, space.frames().used_pages())
}

fn run(page: u64, pages: u64, perms: Perms) -> Run {
    Run { start: at(page), pages, perms, promised: false, hidden: false }
}

#[test]
fn places_give_frames_to_what_has_none_and_keep_the_others() {
    with_space(|backing, space| {
        let small = space.place(at(3), Size::Small).unwrap();
        assert_eq!((space.place(at(3), Size::Small), counts(space)), (Ok(small), (1, 1)));
        // A large page takes the place of small ones.
        let large = space.place(AT, Size::Large).unwrap();
        assert_eq!((space.place(AT, Size::Large), counts(space)), (Ok(large), (WHOLE, WHOLE)));
        // A small one in it is a piece of it.
        assert_eq!(space.place(at(5), Size::Small), Ok(GuestPhys(large.0 + 5 * PAGE_BYTES)));
        assert_eq!(space.lookup(at(5)).unwrap().size, Size::Large);
        // One that is missing is not; and whole again it has the same frame.
        space.place_missing(at(5), Size::Small).unwrap();
        assert_eq!(space.fault(at(5), Access::Write), Fault::Missing);
        assert_eq!(space.fault(at(5), Access::Execute), Fault::Violation);
        assert_eq!(space.fault(at(6), Access::Write), Fault::Spurious);
        assert_eq!((space.place(AT, Size::Large), counts(space)), (Ok(large), (WHOLE, WHOLE)));
        assert_eq!(space.fault(at(5), Access::Write), Fault::Spurious);
        // Zero is a promise where there is no frame in one piece.
        backing.word(GuestPhys(large.0 + PAGE_BYTES)).store(7, Ordering::Relaxed);
        space.place_zero(at(1), Size::Small).unwrap();
        assert_eq!(backing.word(GuestPhys(large.0 + PAGE_BYTES)).load(Ordering::Relaxed), 0);
        space.place_missing(at(5), Size::Small).unwrap();
        space.place_zero(AT, Size::Large).unwrap();
        assert_eq!(
            (space.lookup(AT).unwrap().leaf, counts(space)),
            (Leaf::Lazy(Perms::ReadWrite), (WHOLE, 0))
        );
        space.place_zero(at(WHOLE), Size::Small).unwrap();
        assert_eq!(counts(space), (WHOLE + 1, 0));
        assert!(space.remove(at(WHOLE), Size::Small).complete);
        assert!(space.remove(AT, Size::Large).complete);
        assert_eq!(counts(space), (0, 0));
    });
}

#[test]
fn small_pages_that_arrive_one_by_one_are_the_pieces_of_a_large_one() {
    with_space(|_, space| {
        // Two regions at a time, each in an order of its own, and some of their content comes later.
        for number in 0..WHOLE {
            let (up, down) = (number, 2 * WHOLE - 1 - number);
            for page in [up, down] {
                match number % 3 {
                    0 => space.place_missing(at(page), Size::Small).unwrap(),
                    _ => _ = space.place(at(page), Size::Small).unwrap(),
                }
            }
        }
        for region in [REGIONS[0], REGIONS[1]] {
            assert_eq!(space.rejoin_region(region), Flush::NotNeeded, "some are missing");
            for page in (0..WHOLE).map(|page| GuestVirt(region + page * PAGE_BYTES)) {
                space.arrive(page, Size::Small);
            }
            assert_eq!(space.rejoin_region(region), Flush::Needed);
            assert_eq!(space.lookup(GuestVirt(region)).unwrap().size, Size::Large);
        }
        assert_eq!(counts(space), (2 * WHOLE, 2 * WHOLE));
    });
}

#[test]
fn pieces_that_came_stay_when_a_large_frame_is_free_again() {
    with_space(|_, space| {
        // One large frame is in use for small pages, the others are taken.
        space.place(at(WHOLE), Size::Small).unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| space.frames().alloc_large()).collect();
        assert_eq!(space.place_piece(AT, true), Ok(None));
        let first = space.place(at(0), Size::Small).unwrap();
        space.frames().free_large(taken[0].0);
        assert_eq!(space.place_piece(AT, false), Ok(None), "the first piece would be thrown away");
        assert_eq!(space.place(at(0), Size::Small), Ok(first));
        // The next page is one from the beginning, and so are all its pieces.
        let next = at(2 * WHOLE);
        let large = space.place_piece(next, true).unwrap();
        assert!(large.is_some());
        assert_eq!(space.place_piece(next, false), Ok(large));
    });
}

#[test]
fn a_place_that_does_not_fit_changes_nothing() {
    with_space(|_, space| {
        let all = space.frames().limit_pages();
        space.place(at(0), Size::Small).unwrap();
        space.frames().commit(all - 1).unwrap();
        assert_eq!(space.place(at(1), Size::Small), Err(MapError::OutOfMemory));
        assert_eq!(space.place_missing(at(WHOLE), Size::Large), Err(MapError::OutOfMemory));
        assert_eq!(space.place(AT, Size::Large), Err(MapError::OutOfMemory));
        assert_eq!(space.place_zero(AT, Size::Large), Err(MapError::OutOfMemory));
        let two = [run(0, 2, Perms::Read)];
        let range = range(0, 3);
        assert_eq!(space.settle_runs(range, two.into_iter()), Err(SettleError::Map(MapError::OutOfMemory)));
        assert_eq!(counts(space), (all, 1));
    });
}

#[test]
fn what_is_missing_arrives_once_in_the_size_it_has() {
    with_space(|_, space| {
        space.place_missing(AT, Size::Large).unwrap();
        assert_eq!(space.claim(at(1), Size::Small), Claim::OtherSize);
        assert!(!space.arrive(at(1), Size::Small));
        let Claim::Yours(claimed) = space.claim(AT, Size::Large) else { panic!("it is missing") };
        assert_eq!((space.claim(AT, Size::Large), space.arrive(AT, Size::Large)), (Claim::NotMissing, false));
        // Its owner changes a part.
        assert_eq!(space.map(range(7, 1), Perms::Read), Ok(Flush::NotNeeded));
        assert!(space.give_back(claimed));
        assert_eq!(space.claim(AT, Size::Large), Claim::OtherSize);
        assert!(!space.hide(range(0, 1)).complete);
        assert_eq!(space.rejoin_region(REGIONS[0]), Flush::NotNeeded);
        for page in 0..WHOLE {
            assert_eq!(space.fault(at(page), Access::Read), Fault::Missing);
            assert!(space.arrive(at(page), Size::Small) && !space.arrive(at(page), Size::Small));
        }
        assert_eq!(space.fault(at(7), Access::Write), Fault::Violation);
        assert_eq!(space.claim(AT, Size::Large), Claim::NotMissing);
        let _ = space.map(range(7, 1), Perms::ReadWrite).unwrap();
        // Its pieces are one again: everything counts as written.
        assert_eq!(space.lookup(AT).unwrap().size, Size::Large);
        assert_eq!(counts(space), (WHOLE, WHOLE));
        let _ = space.unmap(range(0, WHOLE));
        assert_eq!(counts(space), (0, 0));
    });
}

#[test]
fn the_frame_of_a_claim_is_nobody_elses_until_it_ends() {
    with_space(|_, space| {
        space.place_missing(at(2), Size::Small).unwrap();
        let Claim::Yours(claimed) = space.claim(at(2), Size::Small) else { panic!("it is missing") };
        let _ = space.unmap(range(2, 1));
        assert_eq!(counts(space), (0, 1));
        let others: Vec<_> = std::iter::from_fn(|| space.frames().alloc_small()).collect();
        assert!(!others.contains(&claimed.frame()));
        others.iter().for_each(|frame| space.frames().free_small(*frame));
        // Another page is there now, with a frame of its own.
        let _ = space.map(range(2, 1), Perms::ReadWrite).unwrap();
        assert_eq!(space.fault(at(2), Access::Write), Fault::Resolved);
        let frame = claimed.frame();
        assert!(!space.arrived(claimed));
        assert!(space.lookup(at(2)).unwrap().leaf.own_frame().is_some_and(|now| now != frame));
        assert_eq!(counts(space), (1, 1));
    });
}

#[test]
fn runs_that_are_not_a_list_of_runs_change_nothing() {
    with_space(|_, space| {
        space.place(at(0), Size::Small).unwrap();
        let all = range(0, WHOLE);
        let odd = Run { start: GuestVirt(AT.0 + 1), ..run(0, 1, Perms::Read) };
        let bad: [&[Run]; 6] = [
            &[run(1, 1, Perms::Read), run(0, 1, Perms::Read)],
            &[run(0, 2, Perms::Read), run(1, 2, Perms::ReadWrite)],
            &[run(3, 0, Perms::Read)],
            &[run(3, u64::MAX, Perms::Read)],
            &[run(WHOLE - 1, 2, Perms::Read)],
            &[odd],
        ];
        for runs in bad {
            assert_eq!(space.settle_runs(all, runs.iter().copied()), Err(SettleError::Runs));
        }
        assert_eq!(counts(space), (1, 1));
        assert_eq!(space.settle_runs(all, [].into_iter()), Ok(Flush::Needed));
        assert_eq!(counts(space), (0, 0));
    });
}

#[test]
fn what_goes_makes_room_for_what_comes() {
    with_space(|_, space| {
        let all = space.frames().limit_pages();
        space.place(at(WHOLE), Size::Large).unwrap();
        space.frames().commit(all - WHOLE).unwrap();
        let runs = [run(0, WHOLE, Perms::ReadExecute)];
        assert_eq!(space.settle_runs(range(0, 3 * WHOLE), runs.into_iter()), Ok(Flush::Needed));
        assert_eq!(space.lookup(AT).unwrap().leaf, Leaf::Lazy(Perms::ReadExecute));
        assert_eq!(counts(space), (all, 0));
    });
}

#[test]
fn regions_are_found_and_absent_gigabytes_skipped() {
    with_space(|_, space| {
        for region in [REGIONS[1], REGIONS[3]] {
            let _ = space.map(PageRange::new(GuestVirt(region), PAGE_BYTES).unwrap(), Perms::Read).unwrap();
        }
        assert_eq!(space.next_region(0, u64::MAX), Some(REGIONS[1]));
        assert_eq!(space.next_region(REGIONS[1] + 5, u64::MAX), Some(REGIONS[1]));
        assert_eq!(space.next_region(REGIONS[2], REGIONS[3]), None);
        assert_eq!(space.next_region(REGIONS[2], REGIONS[3] + 1), Some(REGIONS[3]));
        assert_eq!(space.next_region(REGIONS[3] + LARGE_PAGE_BYTES, u64::MAX), None);
        assert_eq!(space.next_region(REGIONS[1] + 5, REGIONS[1] + 5), None);
    });
}

#[test]
fn a_large_page_is_shown_whole_once_then_in_pieces() {
    with_space(|_, space| {
        space.place(AT, Size::Large).unwrap();
        let collect = |how| {
            let mut shown = Vec::new();
            let flush =
                space.collect_region(AT.0, how, &mut |mapping| shown.push((mapping.start, mapping.size)));
            (shown, flush)
        };
        assert_eq!(collect(Collect::Split), (vec![(AT, Size::Large)], Flush::Needed));
        assert_eq!(collect(Collect::Split), (vec![], Flush::NotNeeded));
        space.mark_written(range(4, 2));
        let pieces = vec![(at(4), Size::Small), (at(5), Size::Small)];
        for _ in 0..2 {
            assert_eq!(collect(Collect::Last), (pieces.clone(), Flush::NotNeeded));
        }
        assert_eq!(collect(Collect::Split), (pieces, Flush::Needed));
        assert_eq!((collect(Collect::All).0.len(), collect(Collect::All).1), (512, Flush::NotNeeded));
        assert_eq!(space.rejoin_region(AT.0), Flush::Needed);
        assert_eq!(collect(Collect::Last), (vec![(AT, Size::Large)], Flush::NotNeeded));
        assert_eq!(collect(Collect::SplitAll), (vec![(AT, Size::Large)], Flush::Needed));
        assert_eq!(collect(Collect::Last), (vec![], Flush::NotNeeded));
        space.mark_written(range(0, WHOLE));
        assert_eq!(space.rejoin_region(AT.0), Flush::Needed);
        // Where slots track, small pages stay.
        let _ = space.track(range(0, 1));
        assert_eq!(space.rejoin_region(AT.0), Flush::NotNeeded);
        // Without a table for its pieces it stays large.
        space.place(at(WHOLE), Size::Large).unwrap();
        while space.pool.alloc().is_some() {}
        let mut shown = 0;
        let flush = space.collect_region(REGIONS[1], Collect::Split, &mut |_| shown += 1);
        assert_eq!((shown, flush, space.lookup(at(WHOLE)).unwrap().size), (1, Flush::Needed, Size::Large));
        let _ = space.collect_region(REGIONS[1], Collect::Split, &mut |_| shown += 1);
        assert_eq!(shown, 1);
    });
}

#[test]
fn renewed_directories_say_the_same_and_the_old_ones_come_back() {
    with_space(|backing, space| {
        let free = || backing.pool[0].load(Ordering::Relaxed).count_ones();
        let large = space.place(AT, Size::Large).unwrap();
        let small = space.place(at(WHOLE + 3), Size::Small).unwrap();
        space.note_uniform_regions(REGIONS[0], REGIONS[1]);
        let tables = free();
        let slot = space.find_directory_entry(AT.0).unwrap() as *const _;
        space.renew_directories(range(0, 2 * WHOLE));
        assert!(!core::ptr::eq(slot, space.find_directory_entry(AT.0).unwrap()), "it is the same one");
        assert_eq!((space.place(AT, Size::Large), counts(space).1), (Ok(large), WHOLE + 1));
        assert_eq!(space.place(at(WHOLE + 3), Size::Small), Ok(small));
        space.place_missing(at(7), Size::Small).unwrap();
        assert_eq!(space.fault(at(7), Access::Read), Fault::Missing);
        assert_eq!(space.fault(at(6), Access::Read), Fault::Spurious);
        // The old directory waits until every processor has forgotten it.
        assert_eq!(free(), tables - 2);
        assert!(space.seal_tables());
        assert_eq!((space.recycle_tables(), free()), (1, tables - 1));
    });
}
