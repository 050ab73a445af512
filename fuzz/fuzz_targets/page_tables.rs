//! Page tables edited by the guest: areas grow, shrink and change permissions as programs ask, faults come from anywhere
//! (the host can inject them).
//!
//! Input: operations on two areas, with plenty of table pages or few. Checked: no panic; promises count exactly the pages
//! that are not absent, used frames exactly those that are present, and no frame is behind two pages; a fault is decided
//! by the mapping alone. With enough tables also: permissions and contents are those of a map from page to both.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::address_space::{AddressSpace, Fault, MapError, PageRange};
use nacre_mm::entry::{Access, Leaf, Perms, Size};
use nacre_mm::frames::{Frames, PagePool, words_needed};
use nacre_mm::page_tables::{PageTables, TableMemory};
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
}

/// Some pages of an area: where they start, and how many.
#[derive(Debug, arbitrary::Arbitrary)]
struct Pages(bool, u16, u8);

impl Pages {
    fn start(&self) -> u64 {
        AREAS[usize::from(self.0)] + u64::from(self.1) % (3 * PAGES_PER_LARGE) * PAGE_BYTES
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

/// Permissions and content of each page of the areas that is not absent.
type Model = Vec<Option<(Perms, u64)>>;

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
    /// Whether running out of tables is impossible.
    strict: bool,
}

impl World<'_> {
    /// Every page with its permissions, and its frame if it has one.
    fn scan(&self, range: PageRange) -> Vec<(u64, Perms, Option<GuestPhys>)> {
        let mut pages = Vec::new();
        self.space.scan(range, &mut |mapping| {
            for offset in (0..mapping.size.bytes()).step_by(PAGE_BYTES as usize) {
                let (perms, frame) = match mapping.leaf {
                    Leaf::Absent => panic!("an absent page is shown"),
                    Leaf::Hidden { .. } => panic!("nothing was hidden"),
                    Leaf::Lazy(perms) => (perms, None),
                    Leaf::Present { frame, perms, .. } => (perms, Some(GuestPhys(frame.0 + offset))),
                };
                pages.push((mapping.start.0 + offset, perms, frame));
            }
        });
        pages
    }

    fn page(&self, address: u64) -> Option<(Perms, Option<GuestPhys>)> {
        let pages = self.scan(PageRange::new(GuestVirt(address), PAGE_BYTES)?);
        pages.first().map(|(_, perms, frame)| (*perms, *frame))
    }

    /// A fault at `address`; returns the frame behind it when the access works now.
    fn fault(&self, address: u64, access: Access) -> Option<GuestPhys> {
        let before = self.page(address & !(PAGE_BYTES - 1));
        let fault = self.space.fault(GuestVirt(address), access);
        let allowed = before.is_some_and(|(perms, _)| perms.allow(access));
        match (fault, before) {
            (Fault::Violation, _) => assert!(!allowed),
            (Fault::Spurious, Some((_, Some(_)))) | (Fault::Resolved, Some((_, None))) => assert!(allowed),
            (Fault::OutOfMemory, Some((_, None))) => assert!(allowed && !self.strict, "a promise was broken"),
            other => panic!("{other:?}"),
        }
        self.page(address & !(PAGE_BYTES - 1)).and_then(|(_, frame)| frame).filter(|_| allowed)
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
                    if let Some((_, content)) = &mut self.model[number(pages.start())] {
                        *content = *value;
                    }
                }
            }
            Op::Fault(pages, which) => {
                let _ = self.fault(pages.start() + u64::from(*which), access(*which));
            }
            Op::Anywhere(address, which) => {
                let _ = self.space.fault(GuestVirt(*address), access(*which));
            }
        }
    }

    fn map(&mut self, range: PageRange, perms: Perms) {
        let pages = &mut self.model[numbers(range)];
        let new = pages.iter().filter(|page| page.is_none()).count() as u64;
        let fits = self.space.frames().committed_pages().0 + new <= self.space.frames().limit_pages();
        match self.space.map(range, perms) {
            Ok(_) => {
                for page in pages {
                    page.get_or_insert((perms, 0)).0 = perms;
                }
            }
            Err(MapError::OutOfMemory) => assert!(!self.strict || !fits),
            Err(MapError::OutOfTables) => assert!(!self.strict),
        }
    }

    /// Counts, and that no frame is used twice. Takes what is there for the model when tables may have run out.
    fn check(&mut self) {
        let whole = |area: u64| PageRange::new(GuestVirt(area), AREA_PAGES * PAGE_BYTES).expect("an area");
        let pages: Vec<_> = AREAS.iter().flat_map(|area| self.scan(whole(*area))).collect();
        assert_eq!(self.space.frames().committed_pages().0, pages.len() as u64, "promises");
        let mut frames: Vec<_> = pages.iter().filter_map(|(_, _, frame)| *frame).collect();
        assert_eq!(self.space.frames().used_pages(), frames.len() as u64, "frames leak");
        frames.sort();
        assert!(frames.windows(2).all(|pair| pair[0] != pair[1]), "a frame behind two pages");
        let content = |frame: Option<GuestPhys>| {
            frame.map_or(0, |frame| self.memory.frames.borrow()[frame_number(frame)])
        };
        let mut real = vec![None; self.model.len()];
        for (page, perms, frame) in &pages {
            real[number(*page)] = Some((*perms, content(*frame)));
        }
        if self.strict {
            assert!(real == self.model, "permissions or contents");
        }
        self.model = real;
    }
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
        strict: tables >= ENOUGH_TABLES,
    };
    for ops in input.1[..input.1.len().min(100)].chunks(OPS_PER_CHECK) {
        ops.iter().for_each(|op| world.step(op));
        world.check();
    }
});
