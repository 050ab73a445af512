//! Page tables edited by the guest: areas grow, shrink and change permissions as programs ask, faults come from anywhere
//! (the host can inject them), and migration collects, joins, places and settles (runs of pages come from a peer).
//!
//! Input: operations on two areas, with plenty of table pages or few. Checked: no panic; promises count exactly the pages
//! that are not absent, used frames exactly those that are present, hidden or missing, and no frame is behind two pages; a fault
//! is decided by the mapping alone; what counts as sent has the content that was last collected; runs say what is
//! mapped. With enough tables also: permissions and contents are those of a map from page to both.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::address_space::{AddressSpace, Fault, Flush, MapError, PageRange};
use nacre_mm::entry::{Access, Leaf, Perms, Size};
use nacre_mm::frames::{Frames, PagePool, words_needed};
use nacre_mm::page_tables::{Claim, Collect, PageTables, Run, SettleError, TableMemory};
use nacre_mm::{GuestPhys, GuestVirt};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::AtomicU64;

const TABLES_GPA: u64 = 0x1000_0000;
const FRAMES_GPA: u64 = 0x2000_0000;
const LARGE_FRAMES: usize = 6;
const PAGES_PER_LARGE: u64 = LARGE_PAGE_BYTES / PAGE_BYTES;
/// Enough for everything the operations can map: a root, a directory pointer table, two directories, ten leaf tables.
const ENOUGH_TABLES: usize = 14;
/// The areas are in different gigabytes, so that they share no directory.
const AREAS: [u64; 2] = [0x200_0000_0000, 0x200_4000_0000];
const AREA_PAGES: u64 = 5 * PAGES_PER_LARGE;
/// A check looks at all pages, which takes as long as many operations.
const OPS_PER_CHECK: usize = 10;

#[derive(Debug, arbitrary::Arbitrary)]
enum Op {
    Map(Pages, u8),
    Unmap(Pages),
    Populate(Pages),
    Write(Pages, u64),
    Fault(Pages, u8),
    /// A fault at any address.
    Anywhere(u64, u8),
    Hide(Pages),
    Track(Pages),
    Collect(Pages, u8),
    Rejoin(Pages),
    Place(Pages, u64),
    PlaceZero(Pages),
    PlaceMissing(Pages, u64),
    /// True: it goes back to where it was.
    Arrive(Pages, bool),
    Remove(Pages),
    /// How far each run is from the one before, its length, permissions or hidden.
    Settle(bool, Vec<(u8, u16, u8)>),
    /// Runs as a peer may send them.
    SettleAnything(bool, Vec<(u64, u64)>),
    RenewDirectories(Pages),
}

/// Some pages of an area: where they start, and how many.
#[derive(Debug, arbitrary::Arbitrary)]
struct Pages(bool, u16, u8);

impl Pages {
    fn start(&self) -> u64 {
        AREAS[usize::from(self.0)] + u64::from(self.1) % (3 * PAGES_PER_LARGE) * PAGE_BYTES
    }

    /// A page of either size.
    fn page(&self) -> (GuestVirt, Size) {
        match self.2 {
            0..128 => (GuestVirt(self.start()), Size::Small),
            128.. => (GuestVirt(self.region()), Size::Large),
        }
    }

    fn region(&self) -> u64 {
        self.start() & !(LARGE_PAGE_BYTES - 1)
    }

    fn range(&self) -> PageRange {
        let pages = match self.2 {
            0..192 => u64::from(self.2),
            192..224 => PAGES_PER_LARGE,
            224.. => 2 * PAGES_PER_LARGE,
        };
        // Often from the start of a large page, or there would hardly be any.
        let start = if self.2 >= 160 { self.start() & !(LARGE_PAGE_BYTES - 1) } else { self.start() };
        PageRange::new(GuestVirt(start), pages * PAGE_BYTES).expect("inside an area")
    }
}

fn perms(number: u8) -> Perms {
    [Perms::ReadWrite, Perms::Read, Perms::ReadWrite, Perms::ReadExecute][usize::from(number % 4)]
}

fn access(number: u8) -> Access {
    [Access::Read, Access::Write, Access::Execute][usize::from(number % 3)]
}

/// Tables, and one word for the content of each small frame.
struct Memory {
    tables: Vec<[AtomicU64; 512]>,
    frames: RefCell<Vec<u64>>,
}

fn frame_number(frame: GuestPhys) -> usize {
    ((frame.0 - FRAMES_GPA) / PAGE_BYTES) as usize
}

impl TableMemory for &Memory {
    fn entries(&self, table: GuestPhys) -> &[AtomicU64; 512] {
        &self.tables[((table.0 - TABLES_GPA) / PAGE_BYTES) as usize]
    }
    fn zero(&self, frame: GuestPhys, size: Size) {
        let first = frame_number(frame);
        self.frames.borrow_mut()[first..first + (size.bytes() / PAGE_BYTES) as usize].fill(0);
    }
    fn copy_page(&self, from: GuestPhys, to: GuestPhys) {
        let mut frames = self.frames.borrow_mut();
        frames[frame_number(to)] = frames[frame_number(from)];
    }
}

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    perms: Perms,
    content: u64,
    hidden: bool,
}

/// Each page of the areas that is not absent.
type Model = Vec<Option<Page>>;

/// The place of a page in the model.
fn number(page: u64) -> usize {
    let area = usize::from(page >= AREAS[1]);
    area * AREA_PAGES as usize + ((page - AREAS[area]) / PAGE_BYTES) as usize
}

/// The places of the pages of a range.
fn numbers(range: PageRange) -> Range<usize> {
    let first = number(range.start());
    first..first + (range.bytes() / PAGE_BYTES) as usize
}

struct World<'a> {
    memory: &'a Memory,
    space: PageTables<'a, &'a Memory>,
    model: Model,
    /// The content that each page had when it was last collected.
    sent: Vec<u64>,
    /// Whether running out of tables is impossible.
    strict: bool,
}

impl World<'_> {
    /// Every page that is not absent.
    fn scan(&self, range: PageRange) -> Vec<(u64, Leaf)> {
        let mut pages = Vec::new();
        self.space.scan(range, &mut |mapping| {
            assert_ne!(mapping.leaf, Leaf::Absent);
            for number in 0..mapping.size.bytes() / PAGE_BYTES {
                pages.push((mapping.start.0 + number * PAGE_BYTES, mapping.leaf.piece(number)));
            }
        });
        pages
    }

    fn page(&self, address: u64) -> Leaf {
        let page = PageRange::new(GuestVirt(address & !(PAGE_BYTES - 1)), PAGE_BYTES);
        page.and_then(|page| self.scan(page).first().map(|(_, leaf)| *leaf)).unwrap_or(Leaf::Absent)
    }

    /// A fault at `address`; returns the frame behind it when the access works now.
    fn fault(&self, address: u64, access: Access) -> Option<GuestPhys> {
        let before = self.page(address);
        let fault = self.space.fault(GuestVirt(address), access);
        let allowed = before.perms().is_some_and(|perms| perms.allow(access));
        match (fault, before) {
            (Fault::Violation, _) => assert!(!allowed),
            (Fault::Spurious, Leaf::Present { .. })
            | (Fault::Resolved, Leaf::Lazy(_))
            | (Fault::Missing, Leaf::Missing { .. }) => assert!(allowed),
            (Fault::OutOfMemory, Leaf::Lazy(_)) => assert!(allowed && !self.strict, "a promise was broken"),
            other => panic!("{other:?}"),
        }
        match self.page(address) {
            Leaf::Present { frame, .. } if allowed => Some(frame),
            _ => None,
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Map(pages, which) => self.map(pages.range(), perms(*which)),
            Op::Unmap(pages) => {
                let range = pages.range();
                let _ = self.space.unmap(range);
                self.model[numbers(range)].fill(None);
            }
            Op::Populate(pages) => {
                let done = self.space.populate(pages.range());
                assert!(done.is_ok() || !self.strict, "a promise was broken: {done:?}");
            }
            Op::Write(pages, value) => {
                if let Some(frame) = self.fault(pages.start(), Access::Write) {
                    self.memory.frames.borrow_mut()[frame_number(frame)] = *value;
                    if let Some(page) = &mut self.model[number(pages.start())] {
                        page.content = *value;
                    }
                    // The processor does not note it here.
                    let page = PageRange::new(GuestVirt(pages.start()), PAGE_BYTES).expect("a page");
                    self.space.mark_written(page);
                }
            }
            Op::Fault(pages, which) => {
                let _ = self.fault(pages.start() + u64::from(*which), access(*which));
            }
            Op::Anywhere(address, which) => {
                let _ = self.space.fault(GuestVirt(*address), access(*which));
            }
            Op::Hide(pages) => self.hide(pages.range()),
            Op::Track(pages) => _ = self.space.track(pages.range()),
            Op::Collect(pages, how) => self.collect(pages.region(), *how),
            Op::Rejoin(pages) => {
                let flush = self.space.rejoin_region(pages.region());
                // As if all processors had flushed.
                self.space.seal_tables();
                assert_eq!(self.space.recycle_tables() == 1, flush == Flush::Needed);
            }
            Op::RenewDirectories(pages) => {
                self.space.renew_directories(pages.range());
                self.space.seal_tables();
                assert!(self.space.recycle_tables() <= 1, "the range lies in one gigabyte");
            }
            Op::Place(pages, value) => self.place(pages.page(), *value, false),
            Op::PlaceMissing(pages, value) => self.place(pages.page(), *value, true),
            Op::PlaceZero(pages) => {
                let (address, size) = pages.page();
                match self.space.place_zero(address, size) {
                    Ok(()) => self.placed(address, size, 0),
                    Err(error) => assert!(!self.strict || error == MapError::OutOfMemory),
                }
            }
            Op::Arrive(pages, back) => {
                let (address, size) = pages.page();
                if let Claim::Yours(claimed) = self.space.claim(address, size) {
                    assert_eq!(self.space.claim(address, size), Claim::NotMissing);
                    let there =
                        if *back { self.space.give_back(claimed) } else { self.space.arrived(claimed) };
                    assert!(there);
                }
            }
            Op::Remove(pages) => {
                let (address, size) = pages.page();
                let _ = self.space.remove(address, size);
                self.model[numbers(PageRange::new(address, size.bytes()).expect("a page"))].fill(None);
            }
            Op::Settle(area, runs) => self.settle(AREAS[usize::from(*area)], runs),
            Op::SettleAnything(area, runs) => {
                let area = whole(AREAS[usize::from(*area)]);
                let run = |(start, pages): &(u64, u64)| Run {
                    start: GuestVirt(*start),
                    pages: *pages,
                    perms: Perms::Read,
                    promised: false,
                    hidden: false,
                };
                if self.space.settle_runs(area, runs.iter().map(run)).is_ok() && runs.is_empty() {
                    self.model[numbers(area)].fill(None);
                } else if !runs.is_empty() {
                    self.take_real();
                }
            }
        }
    }

    fn hide(&mut self, range: PageRange) {
        let _ = self.space.hide(range);
        for at in numbers(range) {
            let missing = matches!(self.page(page_at(at)), Leaf::Missing { .. });
            if let Some(page) = &mut self.model[at]
                && page.perms == Perms::ReadWrite
                && !missing
            {
                page.hidden = true;
            }
        }
    }

    fn collect(&mut self, region: u64, how: u8) {
        let how = [Collect::All, Collect::Last, Collect::Split, Collect::SplitAll][usize::from(how % 4)];
        let _ = self.space.collect_region(region, how, &mut |mapping| {
            for piece in 0..mapping.size.bytes() / PAGE_BYTES {
                let at = number(mapping.start.0 + piece * PAGE_BYTES);
                match mapping.leaf.piece(piece) {
                    Leaf::Present { frame, .. } => {
                        self.sent[at] = self.memory.frames.borrow()[frame_number(frame)]
                    }
                    Leaf::Lazy(_) => {}
                    other => panic!("{other:?} is collected"),
                }
            }
        });
    }

    fn place(&mut self, (address, size): (GuestVirt, Size), value: u64, missing: bool) {
        let placed = if missing {
            self.space.place_missing(address, size)
        } else {
            self.space.place(address, size).map(|_| ())
        };
        if let Err(error) = placed {
            assert!(!self.strict || error == MapError::OutOfMemory);
            return;
        }
        let pages = PageRange::new(address, size.bytes()).expect("a page");
        for (page, leaf) in self.scan(pages) {
            match leaf {
                Leaf::Missing { frame, .. } if missing => {
                    self.memory.frames.borrow_mut()[frame_number(frame)] = value;
                }
                Leaf::Present { frame, .. } if !missing => {
                    self.memory.frames.borrow_mut()[frame_number(frame)] = value;
                }
                other => panic!("{other:?} at {page:#x}"),
            }
        }
        self.placed(address, size, value);
    }

    /// Pages have this content now; a large page that took the place of small ones has its own permissions.
    fn placed(&mut self, address: GuestVirt, size: Size, content: u64) {
        for (page, leaf) in self.scan(PageRange::new(address, size.bytes()).expect("a page")) {
            let hidden = matches!(leaf, Leaf::Hidden { .. });
            let perms = leaf.perms().unwrap_or(Perms::ReadWrite);
            self.model[number(page)] = Some(Page { perms, content, hidden });
        }
    }

    fn settle(&mut self, area: u64, runs: &[(u8, u16, u8)]) {
        let mut at = area;
        let mut list = Vec::new();
        for (gap, pages, which) in runs {
            let pages = u64::from(*pages) % (2 * PAGES_PER_LARGE) + 1;
            let gap = if *gap >= 192 {
                (LARGE_PAGE_BYTES - at % LARGE_PAGE_BYTES) / PAGE_BYTES
            } else {
                u64::from(*gap)
            };
            let hidden = which % 5 == 4;
            let start = GuestVirt(at + gap * PAGE_BYTES);
            at = start.0 + pages * PAGE_BYTES;
            if at > area + AREA_PAGES * PAGE_BYTES {
                break;
            }
            list.push(Run {
                start,
                pages,
                perms: if hidden { Perms::ReadWrite } else { perms(*which) },
                promised: !hidden && which % 7 == 6,
                hidden,
            });
        }
        match self.space.settle_runs(whole(area), list.iter().copied()) {
            Ok(_) => {}
            Err(SettleError::Runs) => panic!("{list:?} is a list of runs"),
            Err(SettleError::Map(error)) => {
                assert!(!self.strict || error == MapError::OutOfMemory);
                return self.take_real();
            }
        }
        let mut new = vec![None; AREA_PAGES as usize];
        for run in &list {
            for at in 0..run.pages {
                let page = run.start.0 + at * PAGE_BYTES;
                let content = self.model[number(page)]
                    .filter(|_| !run.hidden && !run.promised)
                    .map_or(0, |page| page.content);
                new[((page - area) / PAGE_BYTES) as usize] =
                    Some(Page { perms: run.perms, content, hidden: run.hidden });
            }
        }
        self.model[numbers(whole(area))].copy_from_slice(&new);
    }

    fn map(&mut self, range: PageRange, perms: Perms) {
        let pages = &mut self.model[numbers(range)];
        let new = pages.iter().filter(|page| page.is_none()).count() as u64;
        let fits = self.space.frames().committed_pages().0 + new <= self.space.frames().limit_pages();
        match self.space.map(range, perms) {
            Ok(_) => {
                for page in pages {
                    let page = page.get_or_insert(Page { perms, content: 0, hidden: false });
                    (page.perms, page.hidden) = (perms, false);
                }
            }
            Err(MapError::OutOfMemory) => assert!(!self.strict || !fits),
            Err(MapError::OutOfTables) => assert!(!self.strict),
        }
    }

    /// What is there.
    fn real(&self) -> Model {
        let mut real = vec![None; self.model.len()];
        for (page, leaf) in AREAS.iter().flat_map(|area| self.scan(whole(*area))) {
            let frame = match leaf {
                Leaf::Hidden { frame, .. } => frame,
                leaf => leaf.own_frame(),
            };
            let content = frame.map_or(0, |frame| self.memory.frames.borrow()[frame_number(frame)]);
            let perms = leaf.perms().unwrap_or(Perms::ReadWrite);
            if let Leaf::Present { unsent: false, .. } = leaf {
                assert_eq!(content, self.sent[number(page)], "{page:#x} was written and is not sent");
            }
            real[number(page)] = Some(Page { perms, content, hidden: matches!(leaf, Leaf::Hidden { .. }) });
        }
        real
    }

    fn take_real(&mut self) {
        self.model = self.real();
    }

    /// Counts, and that no frame is used twice. Takes what is there for the model when tables may have run out.
    fn check(&mut self) {
        let pages: Vec<_> = AREAS.iter().flat_map(|area| self.scan(whole(*area))).collect();
        assert_eq!(self.space.frames().committed_pages().0, pages.len() as u64, "promises");
        let mut frames: Vec<_> = pages.iter().filter_map(|(_, leaf)| leaf.own_frame()).collect();
        assert_eq!(self.space.frames().used_pages(), frames.len() as u64, "frames leak");
        frames.sort();
        assert!(frames.windows(2).all(|pair| pair[0] != pair[1]), "a frame behind two pages");
        let real = self.real();
        if self.strict {
            assert!(real == self.model, "permissions or contents");
        }
        self.model = real;
        for area in AREAS {
            let mut runs = vec![None; AREA_PAGES as usize];
            let mut last = None;
            self.space.runs(whole(area), &mut |run| {
                let next = (run.start.0, run.perms, run.promised, run.hidden);
                assert_ne!(last, Some(next), "neighbours are the same");
                last = run.end().map(|end| (end, run.perms, run.promised, run.hidden));
                let first = ((run.start.0 - area) / PAGE_BYTES) as usize;
                runs[first..first + run.pages as usize].fill(Some((run.perms, run.hidden)));
            });
            let model = self.model[numbers(whole(area))].iter();
            assert!(model.map(|page| page.map(|page| (page.perms, page.hidden))).eq(runs), "runs");
        }
    }
}

/// All of an area.
fn whole(area: u64) -> PageRange {
    PageRange::new(GuestVirt(area), AREA_PAGES * PAGE_BYTES).expect("an area")
}

/// The address of the page at this place in the model.
fn page_at(number: usize) -> u64 {
    AREAS[number / AREA_PAGES as usize] + (number as u64 % AREA_PAGES) * PAGE_BYTES
}

fuzz_target!(|input: (u8, Vec<Op>)| {
    let tables = usize::from(input.0 % 24) + 1;
    let zeros = |count: usize| -> Vec<AtomicU64> { (0..count).map(|_| AtomicU64::new(0)).collect() };
    let memory = Memory {
        tables: (0..tables).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
        frames: RefCell::new(vec![0xdead; LARGE_FRAMES * PAGES_PER_LARGE as usize]),
    };
    let (free, words) = (zeros(1), zeros(words_needed(LARGE_FRAMES)));
    let pool = PagePool::new(GuestPhys(TABLES_GPA), tables, 1, &free);
    let frames = Frames::new(GuestPhys(FRAMES_GPA), LARGE_FRAMES, 0, &words);
    let space = PageTables::new(GuestPhys(TABLES_GPA), &memory, pool, frames);
    let mut world = World {
        memory: &memory,
        space,
        model: vec![None; 2 * AREA_PAGES as usize],
        sent: vec![0; 2 * AREA_PAGES as usize],
        strict: tables >= ENOUGH_TABLES,
    };
    for ops in input.1[..input.1.len().min(100)].chunks(OPS_PER_CHECK) {
        ops.iter().for_each(|op| world.step(op));
        world.check();
    }
});
