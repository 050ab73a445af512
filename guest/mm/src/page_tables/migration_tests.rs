//! A tenant moves from one address space to the next, over and over, while it maps, writes and hides; against a model.
//!
//! Processors cache translations, their dirty bits and pointers to tables, until they are told to flush: a flush that is missing,
//! a table that is used again too early and a write that nobody notes all show as wrong content.

use super::*;
use crate::frames;
use core::sync::atomic::AtomicU64 as Word;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const ROOT: GuestPhys = GuestPhys(0x1000_0000);
const TABLES: usize = 64;
const FRAME_BASE: GuestPhys = GuestPhys(0x2000_0000);
const LARGE_FRAMES: usize = 7;
/// Two areas in different gigabytes, as one list of regions.
pub(super) const REGIONS: [u64; 4] = [0x200_0000_0000, 0x200_0020_0000, 0x200_0040_0000, 0x4200_0000_0000];
const PAGES: u64 = REGIONS.len() as u64 * SMALL_PER_LARGE;

pub(super) fn address(page: u64) -> u64 {
    REGIONS[(page / SMALL_PER_LARGE) as usize] + page % SMALL_PER_LARGE * PAGE_BYTES
}

pub(super) fn page_at(address: u64) -> u64 {
    let region = REGIONS.iter().position(|region| *region == address & !(LARGE_PAGE_BYTES - 1)).unwrap();
    region as u64 * SMALL_PER_LARGE + address % LARGE_PAGE_BYTES / PAGE_BYTES
}

/// All there is between the first area and the second, too.
fn everything() -> PageRange {
    PageRange::new(GuestVirt(REGIONS[0]), REGIONS[3] + LARGE_PAGE_BYTES - REGIONS[0]).unwrap()
}

/// What a machine is made of: tables, and a word of content for each small frame.
pub(super) struct Backing {
    tables: Vec<[AtomicU64; ENTRIES]>,
    content: Vec<Word>,
    pub(super) pool: Vec<Word>,
    frames: Vec<Word>,
}

impl Backing {
    pub(super) fn new() -> Backing {
        let words = |count, value| (0..count).map(|_| Word::new(value)).collect();
        Backing {
            tables: (0..TABLES).map(|_| core::array::from_fn(|_| AtomicU64::new(0))).collect(),
            content: words(LARGE_FRAMES * ENTRIES, 0xdead),
            pool: words(1, 0),
            frames: words(frames::words_needed(LARGE_FRAMES), 0),
        }
    }

    pub(super) fn space(&self) -> PageTables<'_, &Backing> {
        let pool = PagePool::new(ROOT, TABLES, 1, &self.pool);
        PageTables::new(ROOT, self, pool, Frames::new(FRAME_BASE, LARGE_FRAMES, 0, &self.frames))
    }

    pub(super) fn word(&self, frame: GuestPhys) -> &Word {
        &self.content[((frame.0 - FRAME_BASE.0) / PAGE_BYTES) as usize]
    }
}

impl TableMemory for &Backing {
    fn entries(&self, table: GuestPhys) -> &[AtomicU64; ENTRIES] {
        &self.tables[((table.0 - ROOT.0) / PAGE_BYTES) as usize]
    }
    fn zero(&self, frame: GuestPhys, size: Size) {
        for piece in 0..size.bytes() / PAGE_BYTES {
            self.word(GuestPhys(frame.0 + piece * PAGE_BYTES)).store(0, Ordering::Relaxed);
        }
    }
    fn copy_page(&self, from: GuestPhys, to: GuestPhys) {
        self.word(to).store(self.word(from).load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// What a processor remembers of a page.
#[derive(Clone, Copy)]
struct Cached {
    frame: GuestPhys,
    writable: bool,
    dirty: bool,
}

/// A processor.
#[derive(Default)]
struct Cpu {
    small: BTreeMap<u64, Cached>,
    large: BTreeMap<u64, Cached>,
    directory: BTreeMap<u64, GuestPhys>,
}

fn dirty_bit() -> u64 {
    let leaf = |dirty| Leaf::Present { frame: GuestPhys(0), perms: Perms::Read, dirty, unsent: dirty };
    entry::encode(leaf(true), Size::Small) & !entry::encode(leaf(false), Size::Small)
}

impl Cpu {
    fn flush(&mut self) {
        *self = Cpu::default();
    }

    fn forget(&mut self, address: u64) {
        self.small.remove(&(address & !(PAGE_BYTES - 1)));
        self.large.remove(&(address & !(LARGE_PAGE_BYTES - 1)));
        self.directory.remove(&(address & !(LARGE_PAGE_BYTES - 1)));
    }

    /// The page from the caches, or from the tables; notes a write there as a processor does.
    fn translate<M: TableMemory>(
        &mut self,
        space: &PageTables<'_, M>,
        address: u64,
        write: bool,
    ) -> Option<GuestPhys> {
        let (page, region) = (address & !(PAGE_BYTES - 1), address & !(LARGE_PAGE_BYTES - 1));
        let enough = |cached: &&Cached| !write || cached.writable && cached.dirty;
        if let Some(cached) = self.small.get(&page).filter(enough) {
            return Some(cached.frame);
        }
        if let Some(cached) = self.large.get(&region).filter(enough) {
            return Some(GuestPhys(cached.frame.0 + (page - region)));
        }
        let slot = space.find_directory_entry(address)?;
        let bits = slot.load(Ordering::SeqCst);
        let (entry, size) = match self.directory.get(&region).copied().or(entry::table(bits)) {
            Some(table) => {
                self.directory.insert(region, table);
                (&space.memory.entries(table)[index(address, 0)], Size::Small)
            }
            None => (slot, Size::Large),
        };
        let Leaf::Present { frame, perms, .. } = entry::decode(entry.load(Ordering::SeqCst)) else {
            return None;
        };
        let writable = perms == Perms::ReadWrite;
        if write && !writable {
            return None;
        }
        if write {
            entry.fetch_or(dirty_bit(), Ordering::SeqCst);
        }
        let cached = Cached { frame, writable, dirty: entry.load(Ordering::SeqCst) & dirty_bit() != 0 };
        match size {
            Size::Small => self.small.insert(page, cached),
            Size::Large => self.large.insert(region, cached),
        };
        self.translate(space, address, write)
    }

    /// The frame of a page that may be accessed; else what its fault is.
    fn access<M: TableMemory>(
        &mut self,
        space: &PageTables<'_, M>,
        address: u64,
        write: bool,
    ) -> Result<GuestPhys, Fault> {
        loop {
            if let Some(frame) = self.translate(space, address, write) {
                return Ok(frame);
            }
            let access = if write { Access::Write } else { Access::Read };
            match space.fault(GuestVirt(address), access) {
                Fault::Resolved | Fault::Spurious => self.forget(address),
                fault => return Err(fault),
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) perms: Perms,
    pub(super) hidden: bool,
    pub(super) content: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Map(u64, u64, Perms),
    Unmap(u64, u64),
    /// Written by one of two processors.
    Write(u64, u64, bool),
    Populate(u64, u64),
    /// Written through another mapping.
    Fill(u64, u64),
    /// A slot shrinks: what it used is zeroed, then hidden.
    Hide(u64, u64),
    Track(u64, u64),
    Collect(usize, Collect),
    Rejoin(usize),
    /// All processors flush; then what was collected is copied.
    Round,
    /// One missing page arrives.
    Arrive(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    // Mostly the same few pages: what goes wrong needs several steps on one.
    let region = || prop_oneof![5 => Just(0u64), 3 => Just(1), 1 => Just(2), 1 => Just(3)];
    let page = move || {
        (region(), prop_oneof![8 => 0u64..3, 2 => 0..SMALL_PER_LARGE])
            .prop_map(|(region, page)| region * SMALL_PER_LARGE + page)
    };
    let pages = || prop_oneof![3 => 1u64..20, 3 => Just(SMALL_PER_LARGE), 1 => Just(2 * SMALL_PER_LARGE), 1 => Just(PAGES)];
    let perms = prop_oneof![
        1 => Just(Perms::Read),
        3 => Just(Perms::ReadWrite),
        1 => Just(Perms::ReadExecute)
    ];
    let how =
        prop_oneof![Just(Collect::All), Just(Collect::Last), Just(Collect::Split), Just(Collect::SplitAll)];
    prop_oneof![
        5 => (page(), pages(), perms).prop_map(|(a, b, c)| Step::Map(a, b, c)),
        1 => (page(), pages()).prop_map(|(a, b)| Step::Unmap(a, b)),
        12 => (page(), 1..u64::MAX, any::<bool>()).prop_map(|(a, b, c)| Step::Write(a, b, c)),
        1 => (page(), pages()).prop_map(|(a, b)| Step::Populate(a, b)),
        2 => (page(), 1..u64::MAX).prop_map(|(a, b)| Step::Fill(a, b)),
        2 => (page(), pages()).prop_map(|(a, b)| Step::Hide(a, b)),
        2 => (page(), pages()).prop_map(|(a, b)| Step::Track(a, b)),
        8 => (region().prop_map(|region| region as usize), how).prop_map(|(a, b)| Step::Collect(a, b)),
        3 => region().prop_map(|region| Step::Rejoin(region as usize)),
        3 => Just(Step::Round),
        4 => any::<usize>().prop_map(Step::Arrive),
    ]
}

/// The tenant and the machine it is on.
pub(super) struct World<'b> {
    pub(super) backing: &'b Backing,
    pub(super) space: &'b PageTables<'b, &'b Backing>,
    cpus: [Cpu; 2],
    pub(super) model: BTreeMap<u64, Page>,
    /// Pages that slots must see as written.
    pub(super) slots: BTreeSet<u64>,
    /// What was collected and is not copied yet.
    pub(super) shown: Vec<Mapping>,
    /// What is still elsewhere, with its content.
    pub(super) missing: BTreeMap<(u64, bool), Vec<u64>>,
}

/// Pages from `page` on that lie in its area, as a range.
pub(super) fn range(page: u64, pages: u64) -> PageRange {
    let area_end = if page < 3 * SMALL_PER_LARGE { 3 * SMALL_PER_LARGE } else { PAGES };
    PageRange::new(GuestVirt(address(page)), pages.min(area_end - page) * PAGE_BYTES).unwrap()
}

/// Often from the start of a large page, or there would hardly be any.
fn aligned(page: u64, pages: u64) -> PageRange {
    range(if pages >= 16 { page - page % SMALL_PER_LARGE } else { page }, pages)
}

pub(super) fn numbers(range: PageRange) -> impl Iterator<Item = u64> + Clone {
    let first = page_at(range.start());
    first..first + range.bytes() / PAGE_BYTES
}

impl<'b> World<'b> {
    pub(super) fn new(backing: &'b Backing, space: &'b PageTables<'b, &'b Backing>) -> World<'b> {
        World {
            backing,
            space,
            cpus: Default::default(),
            model: BTreeMap::new(),
            slots: BTreeSet::new(),
            shown: Vec::new(),
            missing: BTreeMap::new(),
        }
    }

    pub(super) fn flush(&mut self, flush: Flush) {
        if flush == Flush::Needed {
            self.cpus.iter_mut().for_each(Cpu::flush);
        }
    }

    pub(super) fn step(&mut self, step: &Step) {
        match *step {
            Step::Map(page, pages, perms) => self.map(aligned(page, pages), perms),
            Step::Unmap(page, pages) => {
                let range = aligned(page, pages);
                let unmapped = self.space.unmap(range);
                assert!(unmapped.complete);
                self.flush(unmapped.flush);
                for page in numbers(range) {
                    self.model.remove(&page);
                    self.slots.remove(&page);
                }
            }
            Step::Write(page, value, other) => self.write(page, value, other),
            Step::Populate(page, pages) => self.space.populate(aligned(page, pages)).unwrap(),
            Step::Fill(page, value) => self.fill(page, value),
            Step::Hide(page, pages) => self.hide(aligned(page, pages)),
            Step::Track(page, pages) => {
                let range = aligned(page, pages);
                let flush = self.space.track(range);
                self.flush(flush);
                // What is not mapped yet, or not yet here, is not clean but new.
                self.space.scan(range, &mut |mapping| {
                    if let Leaf::Present { dirty: false, .. } = mapping.leaf {
                        let first = page_at(mapping.start.0);
                        (first..first + mapping.size.bytes() / PAGE_BYTES).for_each(|page| {
                            self.slots.remove(&page);
                        });
                    }
                });
            }
            Step::Collect(region, how) => {
                let shown = &mut self.shown;
                // Told to the processors later.
                let _ = self.space.collect_region(REGIONS[region], how, &mut |mapping| shown.push(mapping));
            }
            Step::Rejoin(region) => _ = self.space.rejoin_region(REGIONS[region]),
            Step::Round | Step::Arrive(_) => {}
        }
    }

    fn map(&mut self, range: PageRange, perms: Perms) {
        match self.space.map(range, perms) {
            Ok(flush) => {
                self.flush(flush);
                for page in numbers(range) {
                    let page = self.model.entry(page).or_insert(Page { perms, hidden: false, content: 0 });
                    (page.perms, page.hidden) = (perms, false);
                }
            }
            Err(error) => assert_eq!(error, MapError::OutOfMemory),
        }
    }

    fn write(&mut self, page: u64, value: u64, other: bool) {
        let done = self.cpus[usize::from(other)].access(self.space, address(page), true);
        match (done, self.model.get_mut(&page)) {
            (Ok(frame), Some(Page { perms: Perms::ReadWrite, hidden: false, content })) => {
                self.backing.word(frame).store(value, Ordering::Relaxed);
                *content = value;
                self.slots.insert(page);
            }
            (Err(Fault::Missing), Some(Page { perms: Perms::ReadWrite, hidden: false, .. })) => {
                assert!(!self.missing.is_empty());
            }
            (Err(Fault::Violation), None) => {}
            (Err(Fault::Violation), Some(page)) => assert!(page.hidden || page.perms != Perms::ReadWrite),
            (done, page) => panic!("{done:?} {page:?}"),
        }
    }

    fn fill(&mut self, page: u64, value: u64) {
        let range = range(page, 1);
        self.space.populate(range).unwrap();
        let Some(Mapping { start, leaf: Leaf::Present { frame, .. }, .. }) =
            self.space.lookup(GuestVirt(address(page)))
        else {
            return;
        };
        let frame = GuestPhys(frame.0 + (address(page) - start.0));
        self.backing.word(frame).store(value, Ordering::Relaxed);
        self.space.mark_written(range);
        self.model.get_mut(&page).unwrap().content = value;
    }

    fn hide(&mut self, range: PageRange) {
        let usable: Vec<u64> = numbers(range)
            .filter(|page| {
                self.model.get(page).is_some_and(|page| page.perms == Perms::ReadWrite && !page.hidden)
            })
            .collect();
        for page in &usable {
            // Promised pages are zero, and slots do not touch them; what is missing they wait for first.
            if matches!(self.leaf(*page), Leaf::Present { .. }) {
                self.write(*page, 0, page % 2 == 0);
            }
        }
        let hidden = self.space.hide(range);
        self.flush(hidden.flush);
        for page in usable {
            if matches!(self.leaf(page), Leaf::Missing { .. }) {
                assert!(!hidden.complete);
                continue;
            }
            self.model.get_mut(&page).unwrap().hidden = true;
        }
    }

    pub(super) fn leaf(&self, page: u64) -> Leaf {
        self.space.lookup(GuestVirt(address(page))).map_or(Leaf::Absent, |mapping| mapping.leaf)
    }

    /// The frame and permissions of a page.
    pub(super) fn look(&self, page: u64) -> Option<(Leaf, Option<GuestPhys>)> {
        let mapping = self.space.lookup(GuestVirt(address(page)))?;
        let frame = mapping.leaf.own_frame();
        Some((mapping.leaf, frame.map(|frame| GuestPhys(frame.0 + (address(page) - mapping.start.0)))))
    }

    /// Processors flush, tables come back, and what was collected goes to `to`. A page counts as sent with what it holds now.
    fn round(&mut self, to: &mut World<'_>, leave: bool) {
        self.space.seal_tables();
        self.flush(Flush::Needed);
        self.space.recycle_tables();
        for mapping in core::mem::take(&mut self.shown) {
            let first = page_at(mapping.start.0);
            let now = self.space.lookup(mapping.start);
            let same = now.is_some_and(|now| now.size == mapping.size);
            if mapping.size == Size::Small || same {
                self.send(to, first, mapping.size, leave && (first / 3).is_multiple_of(2));
            } else {
                (first..first + SMALL_PER_LARGE).for_each(|page| self.send(to, page, Size::Small, leave));
            }
        }
    }

    fn send(&self, to: &mut World<'_>, first: u64, size: Size, leave: bool) {
        let Some((leaf, _)) = self.look(first) else { return };
        let at = GuestVirt(address(first));
        let Leaf::Present { .. } = leaf else {
            if let Leaf::Lazy(_) = leaf {
                to.missing.remove(&(first, size == Size::Large));
                to.space.place_zero(at, size).unwrap();
            }
            return;
        };
        let pages = first..first + size.bytes() / PAGE_BYTES;
        let words: Vec<u64> = pages
            .clone()
            .map(|page| self.backing.word(self.look(page).unwrap().1.unwrap()).load(Ordering::Relaxed))
            .collect();
        let placed = if leave {
            to.space.place_missing(at, size).map(|()| None)
        } else {
            to.space.place(at, size).map(Some)
        };
        if placed.is_ok() {
            // It replaces what came before.
            to.missing.retain(|(page, large), _| *large || !pages.contains(page));
        }
        match placed {
            Ok(Some(frame)) => {
                for (number, word) in words.iter().enumerate() {
                    let piece = GuestPhys(frame.0 + number as u64 * PAGE_BYTES);
                    to.backing.word(piece).store(*word, Ordering::Relaxed);
                }
            }
            Ok(None) => _ = to.missing.insert((first, size == Size::Large), words),
            // No frame in one piece.
            Err(error) => {
                assert_eq!((error, size), (MapError::OutOfMemory, Size::Large));
                for page in first..first + SMALL_PER_LARGE {
                    self.send(to, page, Size::Small, leave);
                }
            }
        }
    }

    /// A unit that was missing arrives: in one piece, or, where its owner has split it, page by page.
    fn arrive(&mut self, unit: (u64, bool), give_back: bool, between: &mut dyn FnMut(&mut World<'b>)) {
        let words = self.missing.remove(&unit).unwrap();
        let (first, large) = unit;
        let size = if large { Size::Large } else { Size::Small };
        match self.space.claim(GuestVirt(address(first)), size) {
            Claim::Yours(claimed) => {
                assert_eq!(self.space.claim(claimed.start(), size), Claim::NotMissing);
                // Kept, as its owner may find it missing meanwhile.
                self.missing.insert(unit, words.clone());
                between(self);
                for (number, word) in words.iter().enumerate() {
                    let piece = GuestPhys(claimed.frame().0 + number as u64 * PAGE_BYTES);
                    self.backing.word(piece).store(*word, Ordering::Relaxed);
                }
                let kept =
                    if give_back { self.space.give_back(claimed) } else { self.space.arrived(claimed) };
                if !(give_back && kept) {
                    self.missing.remove(&unit);
                }
            }
            Claim::OtherSize => {
                for (number, word) in words.into_iter().enumerate() {
                    let unit = (first + number as u64, false);
                    self.missing.insert(unit, vec![word]);
                    self.arrive(unit, false, &mut |_| {});
                }
            }
            Claim::NotMissing => {}
        }
    }

    fn arrive_all(&mut self) {
        while let Some(unit) = self.missing.keys().next().copied() {
            self.arrive(unit, false, &mut |_| {});
        }
        for region in REGIONS {
            self.space.scan(PageRange::new(GuestVirt(region), LARGE_PAGE_BYTES).unwrap(), &mut |mapping| {
                assert!(!matches!(mapping.leaf, Leaf::Missing { .. }), "{mapping:?}");
            });
        }
    }

    /// Permissions, contents, counts, and that slots see every write.
    pub(super) fn check(&self) {
        let mut real = BTreeMap::new();
        let mut frames = BTreeSet::new();
        let mut unseen = self.slots.clone();
        let mut used = 0;
        let mut look = |mapping: Mapping| {
            let pages = mapping.size.bytes() / PAGE_BYTES;
            let first = page_at(mapping.start.0);
            for number in 0..pages {
                let leaf = mapping.leaf.piece(number);
                let page = first + number;
                let content = match leaf.own_frame() {
                    Some(frame) => {
                        assert!(frames.insert(frame.0), "a frame behind two pages");
                        used += 1;
                        self.backing.word(frame).load(Ordering::Relaxed)
                    }
                    None => 0,
                };
                let hidden = matches!(leaf, Leaf::Hidden { .. });
                let perms = leaf.perms().unwrap_or(Perms::ReadWrite);
                let content = if hidden { 0 } else { content };
                match leaf {
                    Leaf::Missing { .. } => {
                        let content = self.model.get(&page).map_or(0, |page| page.content);
                        real.insert(page, Page { perms, hidden, content })
                    }
                    _ => real.insert(page, Page { perms, hidden, content }),
                };
                if matches!(leaf, Leaf::Present { dirty: true, .. } | Leaf::Hidden { dirty: true, .. })
                    || leaf.own_frame().is_none()
                    || matches!(leaf, Leaf::Missing { .. })
                {
                    unseen.remove(&page);
                }
            }
        };
        for region in REGIONS {
            self.space.scan(PageRange::new(GuestVirt(region), LARGE_PAGE_BYTES).unwrap(), &mut look);
        }
        let wrong = |map: &BTreeMap<u64, Page>, other: &BTreeMap<u64, Page>| -> Vec<_> {
            map.iter()
                .filter(|(page, what)| other.get(page) != Some(what))
                .map(|(a, b)| (*a, *b))
                .take(5)
                .collect()
        };
        assert_eq!(wrong(&real, &self.model), wrong(&self.model, &real));
        assert_eq!(self.space.frames().committed_pages().0, real.len() as u64);
        assert_eq!(self.space.frames().used_pages(), used);
        assert_eq!(unseen, BTreeSet::new(), "slots do not see a write");
        self.check_runs();
    }

    fn check_runs(&self) {
        let mut expected: Vec<Run> = Vec::new();
        for (page, what) in &self.model {
            let start = GuestVirt(address(*page));
            let leaf = self.space.lookup(start).map(|mapping| mapping.leaf);
            let promised = what.hidden || matches!(leaf, Some(Leaf::Lazy(_)));
            match expected.last_mut() {
                Some(run)
                    if run.end() == Some(start.0)
                        && (run.perms, run.promised, run.hidden) == (what.perms, promised, what.hidden) =>
                {
                    run.pages += 1;
                }
                _ => expected.push(Run { start, pages: 1, perms: what.perms, promised, hidden: what.hidden }),
            }
        }
        assert_eq!(all_runs(self.space), expected);
    }

    /// Takes everything away: nothing is left.
    pub(super) fn clear(&mut self) {
        for region in REGIONS {
            let _ = self.space.unmap(PageRange::new(GuestVirt(region), LARGE_PAGE_BYTES).unwrap());
        }
        self.space.seal_tables();
        self.space.recycle_tables();
        assert_eq!((self.space.frames().committed_pages().0, self.space.frames().used_pages()), (0, 0));
        assert_eq!(self.space.next_region(0, u64::MAX), None);
        self.flush(Flush::Needed);
        self.model.clear();
        self.slots.clear();
    }

    /// Besides, no table is.
    fn end(&mut self) {
        self.clear();
        let left = core::iter::from_fn(|| self.space.pool.alloc()).count();
        let upper = |table: GuestPhys| {
            let entries = self.backing.tables[((table.0 - ROOT.0) / PAGE_BYTES) as usize].iter();
            entries.filter_map(|entry| entry::table(entry.load(Ordering::Relaxed))).collect::<Vec<_>>()
        };
        let above = upper(ROOT);
        let directories: usize = above.iter().map(|table| upper(*table).len()).sum();
        assert_eq!(left + 1 + above.len() + directories, TABLES, "tables leak");
    }
}

fn all_runs<M: TableMemory>(space: &PageTables<'_, M>) -> Vec<Run> {
    let mut runs = Vec::new();
    space.runs(everything(), &mut |run| runs.push(run));
    runs
}

fn migrate<'b>(from: &mut World<'_>, mut to: World<'b>, steps: &[Step]) -> World<'b> {
    let collect_all = |world: &mut World<'_>, how| {
        for region in 0..REGIONS.len() {
            world.step(&Step::Collect(region, how));
        }
    };
    collect_all(from, Collect::All);
    for step in steps {
        match step {
            Step::Round => from.round(&mut to, false),
            other => from.step(other),
        }
        from.check();
    }
    // Parked.
    collect_all(from, Collect::Last);
    from.round(&mut to, true);
    let runs = all_runs(from.space);
    to.space.note_uniform_regions(everything().start(), everything().end());
    let flush = to.space.settle_runs(everything(), runs.iter().copied()).unwrap();
    to.flush(flush);
    assert_eq!(to.space.settle_runs(everything(), runs.iter().copied()), Ok(Flush::NotNeeded));
    assert_eq!(all_runs(to.space), runs);
    to.model = from.model.clone();
    // What slots had not seen they must see here too.
    to.slots = from.slots.iter().copied().filter(|page| !to.model[page].hidden).collect();
    to
}

fn run(steps: &[Vec<Step>]) {
    let backings: Vec<Backing> = (0..=steps.len()).map(|_| Backing::new()).collect();
    let spaces: Vec<_> = backings.iter().map(|backing| backing.space()).collect();
    let mut worlds = backings.iter().zip(&spaces).map(|(backing, space)| World::new(backing, space));
    let mut world = worlds.next().unwrap();
    for (steps, to) in steps.iter().zip(worlds) {
        let (before, after) = steps.split_at(steps.len() / 2);
        let mut next = migrate(&mut world, to, before);
        world.check();
        world.end();
        next.check();
        let mut after = after.iter();
        while let Some(step) = after.next() {
            match step {
                Step::Arrive(which) if !next.missing.is_empty() => {
                    let unit = *next.missing.keys().nth(which % next.missing.len()).unwrap();
                    let between = after.next();
                    next.arrive(unit, which % 5 == 0, &mut |world| {
                        if let Some(step) = between {
                            world.step(step);
                        }
                    });
                }
                // Nobody collects until all has arrived.
                Step::Collect(..) | Step::Round => {}
                other => next.step(other),
            }
            next.check();
        }
        next.arrive_all();
        next.check();
        world = next;
    }
    world.end();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn a_tenant_that_moves_keeps_everything(steps in prop::collection::vec(prop::collection::vec(steps(), 2..80), 1..4)) {
        run(&steps);
    }
}
