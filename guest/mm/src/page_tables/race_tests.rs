//! An operation stops before one of its accesses to a table, others run meanwhile, then it goes on: for every pair of what migration
//! does and what an owner does, at every place to stop.

use super::migration_tests::*;
use super::*;
use crate::stepping::Gate;
use std::collections::BTreeMap;
use std::sync::mpsc;

type Space = PageTables<'static, &'static Backing>;

/// What is stopped.
#[derive(Clone, Copy, Debug)]
enum Act {
    Collect(Collect),
    Rejoin,
    Mark,
    Map(u64, u64, Perms),
    Unmap(u64, u64),
    Hide(u64, u64),
    Track(u64, u64),
    Arrive(Size),
}

/// What it left to do.
enum Done {
    Shown(Vec<Mapping>),
    Flush(Flush),
    Claim(Claim),
}

/// What a missing page will hold.
const ARRIVES: u64 = 5000;
const FIRST: GuestVirt = GuestVirt(REGIONS[0]);

impl Act {
    fn run(self, space: &Space, claimed: Option<Claimed>) -> Done {
        match self {
            Act::Collect(how) => {
                let mut shown = Vec::new();
                let _ = space.collect_region(REGIONS[0], how, &mut |mapping| shown.push(mapping));
                Done::Shown(shown)
            }
            Act::Rejoin => {
                let _ = space.rejoin_region(REGIONS[0]);
                Done::Shown(Vec::new())
            }
            Act::Mark => {
                space.mark_written(range(0, 3));
                Done::Shown(Vec::new())
            }
            Act::Map(page, pages, perms) => Done::Flush(space.map(range(page, pages), perms).unwrap()),
            Act::Unmap(page, pages) => {
                let unmapped = space.unmap(range(page, pages));
                assert!(unmapped.complete);
                Done::Flush(unmapped.flush)
            }
            Act::Hide(page, pages) => Done::Flush(space.hide(range(page, pages)).flush),
            Act::Track(page, pages) => Done::Flush(space.track(range(page, pages))),
            Act::Arrive(size) => match claimed {
                Some(claimed) => {
                    space.arrived(claimed);
                    Done::Shown(Vec::new())
                }
                None => Done::Claim(space.claim(FIRST, size)),
            },
        }
    }

    fn tell(self, world: &mut World<'_>) {
        match self {
            Act::Map(page, pages, perms) => {
                for page in numbers(range(page, pages)) {
                    let page = world.model.entry(page).or_insert(Page { perms, hidden: false, content: 0 });
                    (page.perms, page.hidden) = (perms, false);
                }
            }
            Act::Unmap(page, pages) => numbers(range(page, pages)).for_each(|page| {
                world.model.remove(&page);
                world.slots.remove(&page);
            }),
            Act::Hide(page, pages) => {
                numbers(range(page, pages)).for_each(|page| world.model.get_mut(&page).unwrap().hidden = true)
            }
            _ => {}
        }
    }
}

/// How the first region is before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// One large page, written.
    Large,
    /// Its pieces, none written for migration, and all for slots.
    Sent,
    /// The same, and then some are written.
    Written,
    /// Pages of which slots track what is written.
    Tracked,
    /// One large page that is missing.
    Missing,
}

fn prepare(world: &mut World<'_>, before: Before) {
    let whole = SMALL_PER_LARGE;
    if before == Before::Missing {
        world.space.place_missing(FIRST, Size::Large).unwrap();
        for page in 0..whole {
            let content = Page { perms: Perms::ReadWrite, hidden: false, content: ARRIVES + page };
            world.model.insert(page, content);
        }
        world.missing.insert((0, true), Vec::new());
        return;
    }
    world.step(&Step::Map(0, whole, Perms::ReadWrite));
    for page in [0, 1, 2, 3, 200, 511] {
        world.step(&Step::Write(page, 1000 + page, page % 2 == 0));
    }
    if before != Before::Large {
        world.step(&Step::Collect(0, Collect::Split));
    }
    if before == Before::Written {
        world.flush(Flush::Needed);
        for page in [1, 200] {
            world.step(&Step::Write(page, 2000 + page, false));
        }
    }
    if before == Before::Tracked {
        world.step(&Step::Track(0, whole));
    }
}

/// Content that was sent, as it would be when all processors have flushed.
fn sent(world: &mut World<'_>) -> BTreeMap<u64, u64> {
    world.space.seal_tables();
    world.flush(Flush::Needed);
    let shown = core::mem::take(&mut world.shown);
    let pages = shown.iter().flat_map(|mapping| {
        let first = page_at(mapping.start.0);
        first..first + mapping.size.bytes() / PAGE_BYTES
    });
    let content = pages.filter_map(|page| match world.look(page)? {
        (Leaf::Present { .. }, Some(frame)) => {
            Some((page, world.backing.word(frame).load(Ordering::Relaxed)))
        }
        _ => None,
    });
    let content = content.collect();
    world.space.recycle_tables();
    content
}

/// What is not sent counts as unsent.
fn check_sent(world: &World<'_>, sent: &BTreeMap<u64, u64>) {
    for (page, what) in &world.model {
        let unsent = !matches!(world.leaf(*page), Leaf::Present { unsent: false, .. });
        assert!(unsent || sent.get(page) == Some(&what.content), "page {page} is not sent: {what:?}");
    }
}

fn fill(world: &World<'_>, claimed: &Claimed) {
    let first = page_at(claimed.start().0);
    for number in 0..claimed.size().bytes() / PAGE_BYTES {
        let piece = GuestPhys(claimed.frame().0 + number * PAGE_BYTES);
        world.backing.word(piece).store(ARRIVES + first + number, Ordering::Relaxed);
    }
}

/// What is still missing arrives, in pieces where it is in pieces.
fn arrive_rest(world: &mut World<'_>) {
    let claims = core::iter::once((FIRST, Size::Large))
        .chain((0..SMALL_PER_LARGE).map(|page| (GuestVirt(address(page)), Size::Small)));
    for (address, size) in claims {
        if let Claim::Yours(claimed) = world.space.claim(address, size) {
            fill(world, &claimed);
            assert!(world.space.arrived(claimed));
        }
    }
    world.missing.clear();
    assert!((0..SMALL_PER_LARGE).all(|page| !matches!(world.leaf(page), Leaf::Missing { .. })));
}

/// Runs `act` up to its access number `stop`, then `meanwhile`, then the rest. False once it ends before.
fn race_at(world: &mut World<'static>, stop: u64, before: Before, act: Act, meanwhile: &[Step]) -> bool {
    prepare(world, before);
    let mut copies = if before == Before::Large { BTreeMap::new() } else { sent(world) };
    let claimed = match (act, before) {
        (Act::Arrive(Size::Large), Before::Missing) => match world.space.claim(FIRST, Size::Large) {
            Claim::Yours(claimed) => {
                fill(world, &claimed);
                Some(claimed)
            }
            other => panic!("{other:?}"),
        },
        _ => None,
    };
    let space = world.space;
    let (tell, told) = mpsc::channel();
    let (gate, thread) = Gate::run(move || tell.send(act.run(space, claimed)).unwrap());
    let stopped = gate.step(stop);
    for step in meanwhile {
        match step {
            // Here: what is missing arrives.
            Step::Arrive(_) => arrive_meanwhile(world),
            step => world.step(step),
        }
    }
    while gate.step(1 << 20) {}
    thread.join().unwrap();
    act.tell(world);
    match told.recv().unwrap() {
        Done::Shown(shown) => world.shown.extend(shown),
        Done::Flush(flush) => world.flush(flush),
        Done::Claim(Claim::Yours(claimed)) => {
            fill(world, &claimed);
            world.space.arrived(claimed);
        }
        Done::Claim(_) => {}
    }
    if before == Before::Missing {
        arrive_rest(world);
    }
    world.check();
    copies.extend(sent(world));
    check_sent(world, &copies);
    // It works on: everything is sent, and joined where it may be.
    world.step(&Step::Collect(0, Collect::All));
    world.step(&Step::Rejoin(0));
    world.step(&Step::Write(2, 77, true));
    world.check();
    copies.extend(sent(world));
    check_sent(world, &copies);
    world.clear();
    stopped
}

fn arrive_meanwhile(world: &mut World<'_>) {
    if let Claim::Yours(claimed) = world.space.claim(FIRST, Size::Large) {
        fill(world, &claimed);
        world.space.arrived(claimed);
    }
}

/// At the first and last stops all, between them some.
fn race(before: Before, act: Act, meanwhile: &[Step]) {
    let backing: &'static Backing = Box::leak(Box::new(Backing::new()));
    let space: &'static Space = Box::leak(Box::new(backing.space()));
    let mut world = World::new(backing, space);
    let (mut stop, mut stops) = (0, 0);
    while race_at(&mut world, stop, before, act, meanwhile) {
        stop += if stop < 40 || (1 << 9..(1 << 9) + 40).contains(&stop) || stop % 512 > 500 { 1 } else { 29 };
        stops += 1;
    }
    assert!(stops > 3, "{act:?} has few accesses");
}

/// What owners do.
fn owners() -> Vec<Vec<Step>> {
    let whole = SMALL_PER_LARGE;
    let read = |page, pages| Step::Map(page, pages, Perms::Read);
    let write = |page, pages| Step::Map(page, pages, Perms::ReadWrite);
    vec![
        vec![Step::Write(1, 9, false), Step::Write(2, 9, true)],
        vec![read(0, 3), write(0, 3), Step::Write(1, 9, false)],
        vec![read(0, whole), write(0, whole), Step::Write(1, 9, false)],
        vec![Step::Unmap(1, 5), Step::Write(6, 9, false)],
        vec![Step::Unmap(0, whole)],
        // Other tables and frames are made of what was freed.
        vec![
            Step::Unmap(0, whole),
            write(whole, whole),
            read(whole, 3),
            write(whole + 3, 3),
            Step::Write(whole + 5, 9, false),
            write(0, whole),
            Step::Write(5, 9, false),
        ],
        vec![Step::Hide(0, 3), Step::Write(3, 9, true)],
        vec![Step::Hide(0, 3), write(0, 3), Step::Write(1, 9, false)],
        vec![Step::Track(0, whole), Step::Write(1, 9, false)],
        vec![Step::Fill(1, 9), Step::Populate(0, whole)],
    ]
}

#[test]
fn owners_change_a_region_while_it_is_collected() {
    for before in [Before::Large, Before::Written, Before::Tracked] {
        for how in [Collect::All, Collect::Last, Collect::Split, Collect::SplitAll] {
            for meanwhile in owners() {
                if how != Collect::Last || before == Before::Written {
                    race(before, Act::Collect(how), &meanwhile);
                }
            }
        }
    }
}

#[test]
fn owners_change_a_region_while_it_is_joined_or_marked() {
    for meanwhile in owners() {
        race(Before::Sent, Act::Rejoin, &meanwhile);
        race(Before::Written, Act::Rejoin, &meanwhile);
        race(Before::Written, Act::Mark, &meanwhile);
    }
}

#[test]
fn a_region_is_joined_and_collected_while_its_owners_change_it() {
    let others = [
        vec![Step::Rejoin(0)],
        vec![Step::Rejoin(0), Step::Write(100, 9, true)],
        vec![Step::Rejoin(0), Step::Collect(0, Collect::Split), Step::Write(100, 9, true)],
        vec![Step::Collect(0, Collect::Split), Step::Write(100, 9, true)],
        vec![Step::Collect(0, Collect::All)],
        // Another owner of the same region.
        vec![Step::Map(100, 2, Perms::Read), Step::Rejoin(0)],
        vec![Step::Unmap(100, 2), Step::Rejoin(0)],
    ];
    for before in [Before::Large, Before::Sent, Before::Written] {
        for act in [Act::Map(4, 6, Perms::Read), Act::Unmap(4, 6), Act::Track(4, 6), Act::Hide(4, 6)] {
            for meanwhile in &others {
                race(before, act, meanwhile);
            }
        }
        race(before, Act::Unmap(0, SMALL_PER_LARGE), &others[0]);
        race(before, Act::Unmap(0, SMALL_PER_LARGE), &others[4]);
        race(before, Act::Map(0, SMALL_PER_LARGE, Perms::ReadExecute), &others[0]);
        race(before, Act::Map(0, SMALL_PER_LARGE, Perms::ReadWrite), &others[3]);
    }
}

#[test]
fn owners_take_away_what_arrives() {
    let whole = SMALL_PER_LARGE;
    let owners = [
        vec![Step::Unmap(1, 5)],
        vec![Step::Unmap(0, whole)],
        vec![Step::Unmap(0, whole), Step::Map(0, whole, Perms::ReadWrite), Step::Write(1, 9, false)],
        vec![
            Step::Unmap(0, whole),
            Step::Map(1, whole, Perms::ReadWrite),
            Step::Write(1, 9, false),
            Step::Map(whole, whole, Perms::Read),
        ],
        vec![
            Step::Unmap(1, 1),
            Step::Unmap(0, whole),
            Step::Map(whole, whole, Perms::ReadWrite),
            Step::Write(whole, 8, true),
        ],
        vec![Step::Map(1, 5, Perms::Read), Step::Write(10, 9, false)],
        vec![Step::Map(0, whole, Perms::ReadExecute)],
        vec![Step::Write(10, 9, false), Step::Populate(0, whole)],
    ];
    for meanwhile in &owners[..5] {
        race(Before::Missing, Act::Arrive(Size::Large), meanwhile);
    }
    for meanwhile in &owners[5..] {
        // A page that has not arrived can't be written: nothing to tell the model.
        race(Before::Missing, Act::Arrive(Size::Large), &meanwhile[..1]);
    }
    for act in [Act::Unmap(1, 5), Act::Unmap(0, whole), Act::Map(1, 5, Perms::Read)] {
        race(Before::Missing, act, &[Step::Arrive(0)]);
    }
}

/// Before all processors have flushed, one of them may walk through the table that a join has retired.
#[test]
fn a_table_is_used_again_only_after_a_flush() {
    let backing: &'static Backing = Box::leak(Box::new(Backing::new()));
    let space: &'static Space = Box::leak(Box::new(backing.space()));
    let mut world = World::new(backing, space);
    prepare(&mut world, Before::Sent);
    let table = |world: &World<'_>| {
        entry::table(world.space.find_directory_entry(REGIONS[0]).unwrap().load(Ordering::Relaxed))
    };
    let old = table(&world).unwrap();
    // This processor remembers the table.
    world.flush(Flush::Needed);
    world.step(&Step::Write(1, 7, false));
    let _ = sent(&mut world);
    world.flush(Flush::Needed);
    world.step(&Step::Write(1, 8, false));
    assert_eq!(world.space.rejoin_region(REGIONS[0]), Flush::Needed);
    assert_eq!(table(&world), None);
    let others: Vec<_> = std::iter::from_fn(|| world.space.pool.alloc()).collect();
    assert!(!others.contains(&old));
    others.iter().for_each(|table| world.space.pool.free(*table));
    world.step(&Step::Write(2, 9, false));
    world.check();
    assert_eq!(world.space.recycle_tables(), 0, "not sealed");
    world.space.seal_tables();
    world.flush(Flush::Needed);
    assert_eq!(world.space.recycle_tables(), 1);
    world.clear();
}

/// Where no more tables may wait, nothing is joined, and what is unmapped under somebody's eyes keeps its table.
#[test]
fn when_too_many_tables_wait_they_stay_where_they_are() {
    let backing: &'static Backing = Box::leak(Box::new(Backing::new()));
    let space: &'static Space = Box::leak(Box::new(backing.space()));
    let mut world = World::new(backing, space);
    let places: Vec<_> = std::iter::from_fn(|| space.retired.reserve()).collect();
    prepare(&mut world, Before::Sent);
    assert_eq!(space.rejoin_region(REGIONS[0]), Flush::NotNeeded);
    world.step(&Step::Unmap(0, SMALL_PER_LARGE));
    world.check();
    assert_eq!(space.next_region(0, u64::MAX), Some(REGIONS[0]), "an empty table");
    drop(places);
    prepare(&mut world, Before::Sent);
    world.step(&Step::Write(1, 7, true));
    world.check();
    assert_eq!(space.rejoin_region(REGIONS[0]), Flush::Needed);
    world.check();
    world.clear();
}
