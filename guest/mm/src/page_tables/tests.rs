use super::*;
use crate::frames;
use proptest::prelude::*;
use std::collections::BTreeMap;

const ROOT: GuestPhys = GuestPhys(0x1000_0000);
const TABLES: usize = 64;
const FRAME_BASE: GuestPhys = GuestPhys(0x2000_0000);
const LARGE_FRAMES: usize = 6;
const AT: u64 = 0x200_0000_0000;

/// Tables and frames in host memory.
struct Fake {
    tables: Vec<[AtomicU64; ENTRIES]>,
    pages: std::sync::Mutex<BTreeMap<u64, Option<u64>>>,
}

impl TableMemory for &Fake {
    fn entries(&self, table: GuestPhys) -> &[AtomicU64; ENTRIES] {
        &self.tables[((table.0 - ROOT.0) / PAGE_BYTES) as usize]
    }
    fn zero(&self, frame: GuestPhys, size: Size) {
        let mut pages = self.pages.lock().unwrap();
        for page in 0..size.bytes() / PAGE_BYTES {
            pages.insert(frame.0 + page * PAGE_BYTES, Some(0));
        }
    }
    fn copy_page(&self, from: GuestPhys, to: GuestPhys) {
        let mut pages = self.pages.lock().unwrap();
        let content = pages[&from.0];
        pages.insert(to.0, content);
    }
}

struct World {
    fake: &'static Fake,
    space: PageTables<'static, &'static Fake>,
}

fn world() -> World {
    let zeros = |n: usize| -> &'static [core::sync::atomic::AtomicU64] {
        Box::leak((0..n).map(|_| Default::default()).collect())
    };
    let table = || core::array::from_fn(|_| AtomicU64::new(0));
    let fake: &'static Fake = Box::leak(Box::new(Fake {
        tables: (0..TABLES).map(|_| table()).collect(),
        pages: Default::default(),
    }));
    let pool = PagePool::new(ROOT, TABLES, 1, zeros(1));
    let frames = Frames::new(FRAME_BASE, LARGE_FRAMES, 0, zeros(frames::words_needed(LARGE_FRAMES)));
    World { fake, space: PageTables::new(ROOT, fake, pool, frames) }
}

fn range(start: u64, bytes: u64) -> PageRange {
    PageRange::new(GuestVirt(start), bytes).unwrap()
}

impl World {
    fn frame(&self, address: u64) -> Option<u64> {
        match self.space.leaf(address) {
            Leaf::Present { frame, .. } => match self
                .space
                .find_directory_entry(address)
                .map(|slot| entry::table(slot.load(Ordering::Relaxed)))
            {
                Some(None) => Some(frame.0 + ((address % LARGE_PAGE_BYTES) & !0xfff)),
                _ => Some(frame.0),
            },
            _ => None,
        }
    }

    /// What the processor would do: fault until it works, then write.
    fn write(&self, address: u64, value: u64) -> Fault {
        loop {
            if let Leaf::Present { perms: Perms::ReadWrite, .. } = self.space.leaf(address) {
                self.fake.pages.lock().unwrap().insert(self.frame(address).unwrap(), Some(value));
                return Fault::Resolved;
            }
            match self.space.fault(GuestVirt(address), Access::Write) {
                Fault::Resolved => {}
                other => return other,
            }
        }
    }

    fn read(&self, address: u64) -> Option<u64> {
        if self.space.fault(GuestVirt(address), Access::Read) == Fault::Violation {
            return None;
        }
        self.fake.pages.lock().unwrap()[&self.frame(address)?]
    }
}

#[test]
fn a_whole_large_page_is_one_entry_and_a_part_is_small_ones() {
    let world = world();
    let _ = world.space.map(range(AT, LARGE_PAGE_BYTES + 3 * PAGE_BYTES), Perms::ReadWrite).unwrap();
    assert_eq!(world.write(AT + 5 * PAGE_BYTES, 7), Fault::Resolved);
    assert_eq!(world.space.frames().used_pages(), SMALL_PER_LARGE);
    assert_eq!(world.write(AT + LARGE_PAGE_BYTES, 8), Fault::Resolved);
    assert_eq!(
        world.space.frames().used_pages(),
        SMALL_PER_LARGE + 3,
        "fault-around stops at what is promised"
    );
    assert_eq!(world.write(AT + LARGE_PAGE_BYTES + 3 * PAGE_BYTES, 9), Fault::Violation);
    assert_eq!(world.space.fault(GuestVirt(AT), Access::Execute), Fault::Violation);
    assert_eq!(world.space.fault(GuestVirt(AT), Access::Write), Fault::Spurious);
}

#[test]
fn growing_over_a_large_page_merges_and_keeps_the_content() {
    let world = world();
    for page in 0..SMALL_PER_LARGE {
        let flush = world.space.map(range(AT + page * PAGE_BYTES, PAGE_BYTES), Perms::ReadWrite).unwrap();
        assert_eq!(flush == Flush::Needed, page == SMALL_PER_LARGE - 1, "merge at the last page only");
        if page < SMALL_PER_LARGE - 1 {
            world.write(AT + page * PAGE_BYTES, page + 1);
        }
    }
    assert!((0..SMALL_PER_LARGE - 1).all(|page| world.read(AT + page * PAGE_BYTES) == Some(page + 1)));
    assert_eq!(world.space.frames().used_pages(), SMALL_PER_LARGE);
    assert_eq!(
        world.space.unmap(range(AT, LARGE_PAGE_BYTES)),
        Unmapped { flush: Flush::Needed, complete: true }
    );
    assert_eq!((world.space.frames().used_pages(), world.space.frames().committed_pages().0), (0, 0));
}

#[test]
fn promises_beyond_memory_are_refused_and_leave_nothing() {
    let world = world();
    let all = LARGE_FRAMES as u64 * LARGE_PAGE_BYTES;
    assert_eq!(world.space.map(range(AT, all + 4096), Perms::ReadWrite), Err(MapError::OutOfMemory));
    let _ = world.space.map(range(AT, all), Perms::ReadWrite).unwrap();
    world.space.populate(range(AT, all)).unwrap();
    assert_eq!(world.space.map(range(AT + all, 4096), Perms::ReadWrite), Err(MapError::OutOfMemory));
    assert_eq!(world.space.map(range(AT, all), Perms::Read), Ok(Flush::Needed), "no new promise");
}

#[test]
fn a_fragmented_memory_still_keeps_its_promises() {
    let world = world();
    let frames = world.space.frames();
    // One small frame in use in every large one: no whole frame is left.
    let held: Vec<_> = std::iter::from_fn(|| frames.alloc_small()).collect();
    for (number, frame) in held.iter().enumerate() {
        if !(number as u64).is_multiple_of(SMALL_PER_LARGE) {
            frames.free_small(*frame);
        }
    }
    let _ = world.space.map(range(AT, LARGE_PAGE_BYTES), Perms::ReadWrite).unwrap();
    assert!((0..SMALL_PER_LARGE).all(|page| world.write(AT + page * PAGE_BYTES, page) == Fault::Resolved));
}

#[test]
fn running_out_of_tables_is_an_error_and_gives_the_promise_back() {
    let world = world();
    let mut failed = None;
    for number in 0..200u64 {
        if let Err(error) = world.space.map(range(AT + number * (1 << 30), PAGE_BYTES), Perms::ReadWrite) {
            failed = Some((number, error));
            break;
        }
    }
    let (mapped, error) = failed.expect("64 tables can't serve 200 GiB of sparse pages");
    assert_eq!(error, MapError::OutOfTables);
    assert_eq!(world.space.frames().committed_pages().0, mapped);
    for number in 0..mapped {
        let _ = world.space.unmap(range(AT + number * (1 << 30), PAGE_BYTES));
    }
    assert_eq!(world.space.frames().committed_pages().0, 0);
}

#[test]
fn a_window_is_mapped_once() {
    let world = world();
    world.space.map_window(GuestVirt(AT), FRAME_BASE).unwrap();
    world.space.map_window(GuestVirt(AT), GuestPhys(FRAME_BASE.0 + LARGE_PAGE_BYTES)).unwrap();
    assert_eq!(world.frame(AT), Some(FRAME_BASE.0));
}

#[derive(Clone, Debug)]
enum Step {
    Map(u64, u64, Perms),
    Unmap(u64, u64),
    Write(u64, u64),
    Populate(u64, u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let page = 0u64..3 * SMALL_PER_LARGE;
    let pages = prop_oneof![1u64..20, Just(SMALL_PER_LARGE), Just(2 * SMALL_PER_LARGE)];
    let perms = prop_oneof![
        Just(Perms::Read),
        Just(Perms::ReadWrite),
        Just(Perms::ReadWrite),
        Just(Perms::ReadExecute)
    ];
    prop_oneof![
        (page.clone(), pages.clone(), perms).prop_map(|(a, b, c)| Step::Map(a, b, c)),
        (page.clone(), pages.clone()).prop_map(|(a, b)| Step::Unmap(a, b)),
        (page.clone(), any::<u64>()).prop_map(|(a, b)| Step::Write(a, b)),
        (page, pages).prop_map(|(a, b)| Step::Populate(a, b)),
    ]
}

proptest! {
    /// Against a map from page to (permissions, content).
    #[test]
    fn behaves_like_a_map_of_pages(steps in prop::collection::vec(steps(), 1..60)) {
        let world = world();
        let mut model: BTreeMap<u64, (Perms, u64)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Map(page, pages, perms) => {
                    if world.space.map(range(AT + page * PAGE_BYTES, pages * PAGE_BYTES), perms).is_ok() {
                        for page in page..page + pages {
                            model.entry(page).and_modify(|old| old.0 = perms).or_insert((perms, 0));
                        }
                    }
                }
                Step::Unmap(page, pages) => {
                    let _ = world.space.unmap(range(AT + page * PAGE_BYTES, pages * PAGE_BYTES));
                    model.retain(|at, _| !(page..page + pages).contains(at));
                }
                Step::Write(page, value) => {
                    let done = world.write(AT + page * PAGE_BYTES, value);
                    match model.get_mut(&page) {
                        Some((Perms::ReadWrite, content)) => {
                            prop_assert_eq!(done, Fault::Resolved);
                            *content = value;
                        }
                        _ => prop_assert_eq!(done, Fault::Violation),
                    }
                }
                Step::Populate(page, pages) => {
                    world.space.populate(range(AT + page * PAGE_BYTES, pages * PAGE_BYTES)).unwrap();
                }
            }
            prop_assert_eq!(world.space.frames().committed_pages().0, model.len() as u64);
        }
        for page in 0..6 * SMALL_PER_LARGE {
            prop_assert_eq!(world.read(AT + page * PAGE_BYTES), model.get(&page).map(|(_, content)| *content), "page {}", page);
        }
        let mut seen = 0;
        world.space.scan(range(AT, 6 * LARGE_PAGE_BYTES), &mut |mapping| seen += mapping.size.bytes() / PAGE_BYTES);
        prop_assert_eq!(seen, model.len() as u64);
    }
}

/// A part of a large page needs a table to be taken away; without one the page stays whole, and says so.
#[test]
fn a_partial_unmap_without_tables_is_incomplete_and_a_whole_one_never() {
    let world = world();
    let _ = world.space.map(range(AT, LARGE_PAGE_BYTES), Perms::ReadWrite).unwrap();
    world.write(AT, 7);
    for number in 1.. {
        if world.space.map(range(AT + number * (1 << 30), PAGE_BYTES), Perms::ReadWrite).is_err() {
            break;
        }
    }
    assert!(!world.space.unmap(range(AT + PAGE_BYTES, PAGE_BYTES)).complete);
    assert_eq!(world.read(AT), Some(7));
    assert!(world.space.unmap(range(AT, LARGE_PAGE_BYTES)).complete);
    assert_eq!(world.read(AT), None);
}

#[test]
fn what_is_hidden_keeps_its_frame_and_comes_back_without_a_flush() {
    let world = world();
    let pages = range(AT, 40 * PAGE_BYTES);
    let _ = world.space.map(pages, Perms::ReadWrite).unwrap();
    world.write(AT, 7);
    let used = world.space.frames().used_pages();
    assert_eq!(world.space.hide(pages), Unmapped { flush: Flush::Needed, complete: true });
    assert_eq!((world.read(AT), world.write(AT + 20 * PAGE_BYTES, 1)), (None, Fault::Violation));
    assert_eq!(world.space.frames().used_pages(), used);
    assert_eq!(world.space.frames().committed_pages().0, 40);
    assert_eq!(world.space.map(range(AT, 2 * PAGE_BYTES), Perms::ReadWrite), Ok(Flush::NotNeeded));
    assert_eq!((world.read(AT), world.read(AT + 2 * PAGE_BYTES)), (Some(7), None));
    assert_eq!(world.space.frames().committed_pages().0, 40);
    assert!(world.space.unmap(pages).complete);
    assert_eq!((world.space.frames().used_pages(), world.space.frames().committed_pages().0), (0, 0));
}

#[test]
fn tracking_splits_large_pages_and_makes_everything_clean() {
    let world = world();
    let pages = range(AT, 2 * LARGE_PAGE_BYTES + 3 * PAGE_BYTES);
    let _ = world.space.map(pages, Perms::ReadWrite).unwrap();
    world.write(AT, 7);
    world.write(AT + 2 * LARGE_PAGE_BYTES, 8);
    let dirty = || {
        let mut dirty = 0;
        world.space.scan(pages, &mut |mapping| {
            dirty += u64::from(matches!(mapping.leaf, Leaf::Present { dirty: true, .. }));
        });
        dirty
    };
    // One large page, three small ones; the large one in the middle is only promised and stays so.
    assert_eq!((dirty(), world.space.track(pages), dirty()), (4, Flush::Needed, 0));
    assert_eq!((world.read(AT), world.read(AT + 2 * LARGE_PAGE_BYTES)), (Some(7), Some(8)));
    world.write(AT + LARGE_PAGE_BYTES, 9);
    assert_eq!(dirty(), 1, "what comes later counts as written");
    assert!(world.space.unmap(pages).complete);
    assert_eq!((world.space.frames().used_pages(), world.space.frames().committed_pages().0), (0, 0));
}

proptest! {
    /// Hiding, bringing back, growing and taking away in any order: counts are right, contents stay, nothing hidden is reached.
    #[test]
    fn slots_that_grow_and_shrink(steps in prop::collection::vec((0u64..1100, 0u8..4), 1..30)) {
        let world = world();
        let all = range(AT, 1100 * PAGE_BYTES);
        let mut content: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut mapped, mut extent) = (0, 0);
        for (number, (pages, what)) in steps.into_iter().enumerate() {
            match what {
                0 if pages > mapped => {
                    let grown = range(AT + mapped * PAGE_BYTES, (pages - mapped) * PAGE_BYTES);
                    let _ = world.space.map(grown, Perms::ReadWrite).unwrap();
                    mapped = pages;
                    extent = extent.max(mapped);
                }
                1 if pages < mapped => {
                    let gone = range(AT + pages * PAGE_BYTES, (mapped - pages) * PAGE_BYTES);
                    prop_assert!(world.space.hide(gone).complete);
                    mapped = pages;
                }
                2 if mapped != 0 => {
                    let page = pages % mapped;
                    prop_assert_eq!(world.write(AT + page * PAGE_BYTES, number as u64 + 1), Fault::Resolved);
                    content.insert(page, number as u64 + 1);
                }
                3 => {
                    let _ = world.space.track(all);
                }
                _ => {}
            }
            prop_assert_eq!(world.space.frames().committed_pages().0, extent);
            for (page, value) in &content {
                let expected = (*page < mapped).then_some(*value);
                prop_assert_eq!(world.read(AT + page * PAGE_BYTES), expected);
            }
        }
        prop_assert!(world.space.unmap(all).complete);
        prop_assert_eq!(world.space.frames().used_pages(), 0);
    }
}
