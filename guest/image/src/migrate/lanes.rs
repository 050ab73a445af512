//! The work of a migration that any vCPU can do: lane by lane, in steps of well under a millisecond, by whoever has nothing else to do.
//!
//! A lane belongs to the vCPU that has claimed it; nobody waits for one, so a worker that the host stops in the middle of a step holds up its
//! lane and no more. vCPU 0 claims all lanes before it lets the state machine touch what they share ([`claim_all`]), and gives
//! them their duties. Nothing here uses the tenant's heap: a step runs on the scheduler's stack.

use super::channels::{self, Port, of_lane};
use super::pace;
use super::state::{self, may_wait};
use crate::agent::agent_static;
use crate::{memory, sched, translations, vcpu};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use nacre_abi::LARGE_PAGE_BYTES;
use nacre_abi::layout::{HEAP_VA, IMAGE_VA, IMAGE_VA_END, TENANT_VA_END};
use nacre_abi::migrate::MAX_LANES;
use nacre_migrate::crypto::X25519Pair;
use nacre_migrate::destination::Received;
use nacre_migrate::message::Reason;
use nacre_migrate::source::{Due, SourceLane};
use nacre_migrate::vault::KeyOf;
use nacre_migrate::wire::TAG_BYTES;
use nacre_migrate::{Content, DATA_OFFSET, PIECE_BYTES, PIECES, Place, Slot, Unit};
use nacre_mm::address_space::Flush;
use nacre_mm::entry::{Leaf, Perms, Size};
use nacre_mm::page_tables::Collect;

/// Where ledgers' slots lie.
pub type Slots = &'static mut [Slot];
/// A lane of the source.
pub type FromHere = SourceLane<KeyOf<X25519Pair>, Slots>;
/// A lane of the destination.
pub type ToHere = nacre_migrate::destination::DestinationLane<KeyOf<X25519Pair>, Slots>;

/// First address of the image behind the agent's statics, which have a large page of their own (see build.rs).
pub const TENANT_IMAGE_VA: u64 = IMAGE_VA + LARGE_PAGE_BYTES;
/// What is looked through for pages that changed.
const RANGES: [(u64, u64); 2] = [(TENANT_IMAGE_VA, IMAGE_VA_END), (HEAP_VA, TENANT_VA_END)];

/// Regions that are changed on all lanes before every vCPU forgets all translations, and pages before it forgets those: nothing else
/// runs there meanwhile, and where tables are shadowed that takes 50 us for each region, or 4 us for each page.
const REGIONS_AT_ONCE: u64 = 128;
const PAGES_AT_ONCE: u64 = 1024;
/// Regions of 2 MiB that one step looks at, bytes that it seals or opens.
const REGIONS_PER_STEP: usize = 64;
const BYTES_PER_STEP: usize = 256 << 10;

/// What a lane is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Duty {
    /// Nothing.
    None = 0,
    /// Mark every page there is.
    CollectAll = 1,
    /// Mark what was written since the last time, and split large pages that were.
    Collect = 2,
    /// Send what is marked, then the end of the round.
    Send = 3,
    /// Mark what was written, while tasks are parked.
    CollectLast = 4,
    /// Send all of it while tasks are parked.
    SendLast = 5,
    /// The same, but what can wait is only listed.
    ListLast = 6,
    /// Receive.
    Receive = 7,
    /// As `Collect`, and split all other large pages too.
    SplitAll = 8,
    /// Mark every page there is, while tasks are parked.
    CollectWhole = 9,
}

impl Duty {
    fn from_number(number: u32) -> Duty {
        match number {
            1 => Duty::CollectAll,
            2 => Duty::Collect,
            3 => Duty::Send,
            4 => Duty::CollectLast,
            5 => Duty::SendLast,
            6 => Duty::ListLast,
            7 => Duty::Receive,
            8 => Duty::SplitAll,
            9 => Duty::CollectWhole,
            _ => Duty::None,
        }
    }
}

/// One lane's work.
pub struct LaneWork {
    /// Its channel.
    pub port: Port,
    index: usize,
    lanes: usize,
    end: End,
    /// Where collecting goes on: which of [`RANGES`], and from which address.
    range: usize,
    cursor: u64,
    /// Regions of 2 MiB that the last collection looked at, and those of them that it showed as large pages.
    regions: u64,
    shown_large: u64,
    /// Regions that it changed since translations were last forgotten, and whether something of them is not listed.
    changed: u64,
    unlisted: bool,
    /// Whether pages are listed, for their translations to be forgotten one by one.
    lists: bool,
    /// Bytes of pages that travelled.
    pub bytes: u64,
    /// Bytes of pages that were listed as outstanding.
    listed: u64,
}

/// The protocol's part of a lane, in the vault.
#[derive(Clone, Copy)]
enum End {
    Source(*mut FromHere),
    Destination(*mut ToHere),
}

struct LaneCell {
    claimed: AtomicBool,
    duty: AtomicU32,
    /// It can't go on before something comes or there is room.
    blocked: AtomicBool,
    /// A [`Reason`] for which the migration has to end, or 0.
    failed: AtomicU32,
    work: UnsafeCell<Option<LaneWork>>,
}

// SAFETY: `work` is touched by whoever has set `claimed`, and by nobody else.
unsafe impl Sync for LaneCell {}

agent_static! {
    static LANES: [LaneCell; MAX_LANES as usize] = [const { LaneCell {
        claimed: AtomicBool::new(false),
        duty: AtomicU32::new(0),
        blocked: AtomicBool::new(false),
        failed: AtomicU32::new(0),
        work: UnsafeCell::new(None),
    } }; MAX_LANES as usize];
    /// Lanes with a duty, as bits.
    static ON_DUTY: AtomicU64 = AtomicU64::new(0);
    /// vCPU 0 wants all lanes: nobody begins another step.
    static WANTED: AtomicBool = AtomicBool::new(false);
    /// Something has to be said to the host, or decided: vCPU 0 looks.
    static NEWS: AtomicBool = AtomicBool::new(false);
}

/// The claim of one lane.
struct Claim(&'static LaneCell);

impl Claim {
    fn new(cell: &'static LaneCell) -> Option<Claim> {
        let free = !cell.claimed.load(Ordering::Relaxed)
            && cell.claimed.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        // Not made before it is ours: its end would take the claim from whoever has it.
        free.then(|| Claim(cell))
    }

    fn work(&mut self) -> Option<&mut LaneWork> {
        // SAFETY: the claim gives this cell to us alone.
        unsafe { (*self.0.work.get()).as_mut() }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.claimed.store(false, Ordering::Release);
    }
}

/// All lanes, while nobody works on any.
pub struct AllLanes(());

/// Claims all lanes for vCPU 0; `None` while somebody is in the middle of a step: then no other begins one, and this is tried again.
pub fn claim_all() -> Option<AllLanes> {
    WANTED.store(true, Ordering::SeqCst);
    for (number, cell) in LANES.iter().enumerate() {
        if let Some(claim) = Claim::new(cell) {
            core::mem::forget(claim);
            continue;
        }
        LANES[..number].iter().for_each(|cell| cell.claimed.store(false, Ordering::Release));
        return None;
    }
    WANTED.store(false, Ordering::SeqCst);
    Some(AllLanes(()))
}

impl AllLanes {
    /// The work of a lane.
    pub fn work(&mut self, lane: usize) -> Option<&mut LaneWork> {
        // SAFETY: all lanes are claimed by the owner of `self`.
        unsafe { (*LANES[lane].work.get()).as_mut() }
    }

    fn put(&mut self, lane: usize, work: LaneWork) {
        let cell = &LANES[lane];
        cell.failed.store(0, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { *cell.work.get() = Some(work) }
    }

    /// Adds a lane that sends.
    pub fn add_source(&mut self, index: usize, lanes: usize, port: Port, lane: *mut FromHere) {
        self.put(index, LaneWork::new(index, lanes, port, End::Source(lane)));
    }

    /// Adds a lane that receives.
    pub fn add_destination(&mut self, index: usize, lanes: usize, port: Port, lane: *mut ToHere) {
        self.put(index, LaneWork::new(index, lanes, port, End::Destination(lane)));
    }

    /// Gives all lanes a duty.
    pub fn begin(&mut self, duty: Duty) {
        for lane in 0..LANES.len() {
            if let Some(work) = self.work(lane) {
                (work.range, work.cursor) = (0, RANGES[0].0);
                (work.regions, work.shown_large) = (0, 0);
            }
        }
        self.go_on(duty);
    }

    /// From here on collections list pages, or not: worth it if few pages of a region were written.
    pub fn list_pages(&mut self, lists: bool) {
        for lane in 0..LANES.len() {
            if let Some(work) = self.work(lane) {
                work.lists = lists;
            }
        }
    }

    /// Has all lanes go on with a duty that they have not wholly done.
    pub fn go_on(&mut self, duty: Duty) {
        let mut on_duty = 0;
        for (number, cell) in LANES.iter().enumerate() {
            if let Some(work) = self.work(number) {
                (work.changed, work.unlisted) = (0, false);
                cell.duty.store(duty as u32, Ordering::Relaxed);
                cell.blocked.store(false, Ordering::Relaxed);
                on_duty |= u64::from(duty != Duty::None) << number;
            }
        }
        ON_DUTY.store(on_duty, Ordering::Release);
    }

    /// Ends all work: the protocol's part of the lanes is about to go.
    pub fn remove(&mut self) {
        ON_DUTY.store(0, Ordering::Release);
        for cell in &LANES {
            cell.duty.store(0, Ordering::Relaxed);
            // SAFETY: all lanes are claimed by the owner of `self`.
            unsafe { *cell.work.get() = None }
        }
    }

    /// Regions that the last collection looked at on all lanes, and how many of them it showed as large pages.
    pub fn regions(&mut self) -> (u64, u64) {
        let lanes = 0..LANES.len();
        lanes.fold((0, 0), |(all, large), lane| match self.work(lane) {
            Some(work) => (all + work.regions, large + work.shown_large),
            None => (all, large),
        })
    }

    /// Whether all lanes have looked at all regions.
    pub fn have_collected_all(&mut self) -> bool {
        (0..LANES.len()).all(|lane| self.work(lane).is_none_or(|work| work.range == RANGES.len()))
    }

    /// Whether all that was collected is listed.
    pub fn list_is_enough(&mut self) -> bool {
        (0..LANES.len()).all(|lane| self.work(lane).is_none_or(|work| !work.unlisted))
    }

    /// Bytes of pages that travelled on all lanes.
    pub fn bytes(&mut self) -> u64 {
        (0..LANES.len()).filter_map(|lane| self.work(lane).map(|work| work.bytes)).sum()
    }

    /// Bytes of pages that were listed as outstanding on all lanes.
    pub fn listed_bytes(&mut self) -> u64 {
        (0..LANES.len()).filter_map(|lane| self.work(lane).map(|work| work.listed)).sum()
    }

    /// The channel of a lane, for what comes after its work.
    pub fn take_port(&mut self, lane: usize) -> Option<Port> {
        // SAFETY: all lanes are claimed by the owner of `self`.
        unsafe { (*LANES[lane].work.get()).take() }.map(|work| work.port)
    }

    /// Writes what waits on any lane; true if nothing waits any more.
    pub fn flush(&mut self) -> bool {
        let mut empty = true;
        for lane in 0..LANES.len() {
            if let Some(work) = self.work(lane) {
                // A pipe that the host broke is its loss.
                let _ = work.port.flush();
                empty &= work.port.channel().pending() == 0;
            }
        }
        empty
    }
}

impl Drop for AllLanes {
    fn drop(&mut self) {
        LANES.iter().for_each(|cell| cell.claimed.store(false, Ordering::Release));
    }
}

/// Whether all lanes have done their duty.
pub fn are_done() -> bool {
    ON_DUTY.load(Ordering::Acquire) == 0
}

/// Why the migration has to end, if a lane found that it has.
pub fn failure() -> Option<Reason> {
    let failed = LANES.iter().map(|cell| cell.failed.load(Ordering::Relaxed)).find(|failed| *failed != 0)?;
    Reason::from_number(failed as u8)
}

/// Takes the sign that a lane has something for vCPU 0.
pub fn take_news() -> bool {
    NEWS.load(Ordering::Relaxed) && NEWS.swap(false, Ordering::AcqRel)
}

/// vCPU 0 could not look yet.
pub fn keep_news() {
    NEWS.store(true, Ordering::Release);
}

fn is_ready(number: usize) -> bool {
    let cell = &LANES[number];
    let can_go_on = || match Duty::from_number(cell.duty.load(Ordering::Relaxed)) {
        Duty::None => false,
        Duty::Receive => channels::has_news(of_lane(number)),
        Duty::Send | Duty::SendLast | Duty::ListLast => {
            channels::has_room(of_lane(number)) && !pace::must_pause()
        }
        Duty::CollectAll | Duty::Collect | Duty::SplitAll | Duty::CollectLast | Duty::CollectWhole => true,
    };
    !cell.blocked.load(Ordering::Relaxed) || can_go_on()
}

/// The lanes with a duty, as their numbers.
fn on_duty() -> impl Iterator<Item = usize> {
    let set = ON_DUTY.load(Ordering::Acquire);
    (0..LANES.len()).filter(move |number| set >> number & 1 != 0)
}

/// Lanes that somebody could work on now.
pub fn ready() -> usize {
    on_duty().filter(|number| is_ready(*number) && !LANES[*number].claimed.load(Ordering::Relaxed)).count()
}

/// Whether there is work for a vCPU that has nothing else to do.
pub fn has_work() -> bool {
    ON_DUTY.load(Ordering::Relaxed) != 0 && !WANTED.load(Ordering::Relaxed) && ready() != 0
}

/// Does one step of some lane; false if there is nothing to do.
pub fn work() -> bool {
    if ON_DUTY.load(Ordering::Relaxed) == 0 || WANTED.load(Ordering::SeqCst) {
        return false;
    }
    let set = ON_DUTY.load(Ordering::Acquire);
    let first = vcpu::id().index();
    (0..LANES.len())
        .map(|number| (first + number) % LANES.len())
        .filter(|number| set >> number & 1 != 0 && is_ready(*number))
        .any(step)
}

/// Before vCPU 0 sleeps: the host is to wake it for whatever a lane waits for. Returns whether there is something to do after all.
pub fn before_park() -> bool {
    for number in on_duty() {
        let sends = Duty::from_number(LANES[number].duty.load(Ordering::Relaxed)) != Duty::Receive;
        channels::announce_sleep(of_lane(number), sends);
    }
    core::sync::atomic::fence(Ordering::SeqCst);
    NEWS.load(Ordering::Acquire) || has_work()
}

/// One step of a lane, if nobody else is at it; true if something was done.
fn step(number: usize) -> bool {
    let cell = &LANES[number];
    let Some(mut claim) = Claim::new(cell) else { return false };
    // Either this sees that vCPU 0 wants all lanes, or that finds this one claimed.
    core::sync::atomic::fence(Ordering::SeqCst);
    if WANTED.load(Ordering::SeqCst) {
        return false;
    }
    let duty = Duty::from_number(cell.duty.load(Ordering::Acquire));
    let Some(work) = claim.work() else { return false };
    let outcome = work.step(duty);
    match outcome {
        Ok(Outcome::Moved) => cell.blocked.store(false, Ordering::Relaxed),
        Ok(Outcome::Blocked) => cell.blocked.store(true, Ordering::Relaxed),
        Ok(Outcome::Done) => {
            cell.duty.store(Duty::None as u32, Ordering::Relaxed);
            ON_DUTY.fetch_and(!(1 << number), Ordering::AcqRel);
            tell_normal();
        }
        Err(reason) => {
            cell.failed.store(reason as u32, Ordering::Relaxed);
            cell.duty.store(Duty::None as u32, Ordering::Relaxed);
            ON_DUTY.fetch_and(!(1 << number), Ordering::AcqRel);
            tell_normal();
        }
    }
    drop(claim);
    outcome != Ok(Outcome::Blocked)
}

/// vCPU 0 has to look at the migration.
fn tell_normal() {
    NEWS.store(true, Ordering::SeqCst);
    sched::call_normal();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Moved,
    Blocked,
    Done,
}

impl LaneWork {
    fn new(index: usize, lanes: usize, port: Port, end: End) -> LaneWork {
        LaneWork {
            port,
            index,
            lanes,
            end,
            range: 0,
            cursor: RANGES[0].0,
            regions: 0,
            shown_large: 0,
            changed: 0,
            unlisted: false,
            lists: false,
            bytes: 0,
            listed: 0,
        }
    }

    /// Where the vault has the lane now.
    pub fn set_source(&mut self, lane: *mut FromHere) {
        self.end = End::Source(lane);
    }

    /// The same.
    pub fn set_destination(&mut self, lane: *mut ToHere) {
        self.end = End::Destination(lane);
    }

    fn step(&mut self, duty: Duty) -> Result<Outcome, Reason> {
        match (duty, self.end) {
            (Duty::None, _) => Ok(Outcome::Blocked),
            // Of the pointers below: they were made by vCPU 0 when it last had all lanes, and whoever claims this lane has it alone.
            (
                Duty::CollectAll | Duty::Collect | Duty::SplitAll | Duty::CollectLast | Duty::CollectWhole,
                End::Source(lane),
            ) => {
                // SAFETY: as said.
                self.collect(duty, unsafe { &mut *lane })
            }
            (Duty::Send | Duty::SendLast | Duty::ListLast, End::Source(lane)) => {
                // SAFETY: as said.
                self.send(duty == Duty::ListLast, unsafe { &mut *lane })
            }
            // SAFETY: as said.
            (Duty::Receive, End::Destination(lane)) => self.receive(unsafe { &mut *lane }),
            _ => Err(Reason::Protocol),
        }
    }

    /// Marks what changed in the next regions of this lane.
    fn collect(&mut self, duty: Duty, lane: &mut FromHere) -> Result<Outcome, Reason> {
        let space = memory::space();
        let tasks_run = !matches!(duty, Duty::CollectLast | Duty::CollectWhole);
        for _ in 0..REGIONS_PER_STEP {
            if tasks_run && self.has_changed_enough() {
                return Ok(Outcome::Done);
            }
            let Some((_, end)) = RANGES.get(self.range) else { return Ok(Outcome::Done) };
            let Some(region) = space.next_region(self.cursor, *end) else {
                self.range += 1;
                self.cursor = RANGES.get(self.range).map_or(0, |(start, _)| *start);
                continue;
            };
            self.cursor = region + LARGE_PAGE_BYTES;
            let place = Place::large(region).ok_or(Reason::Protocol)?;
            if place.lane(self.lanes).index() != self.index {
                continue;
            }
            let how = match duty {
                Duty::CollectAll | Duty::CollectWhole => Collect::All,
                Duty::Collect => Collect::Split,
                Duty::SplitAll => Collect::SplitAll,
                _ => Collect::Last,
            };
            self.regions += 1;
            let (mut marked, mut shown_large) = (Ok(()), 0);
            let flush = space.collect_region(region, how, &mut |mapping| {
                let Leaf::Present { perms, .. } = mapping.leaf else { return };
                if tasks_run && self.lists && mapping.size == Size::Small {
                    translations::all().list(mapping.start.0);
                }
                // Text and constants are in every CVM of this image.
                if region < IMAGE_VA_END && perms != Perms::ReadWrite {
                    return;
                }
                shown_large += u64::from(mapping.size == Size::Large);
                let place = match mapping.size {
                    Size::Small => Place::small(mapping.start.0),
                    Size::Large => Place::large(mapping.start.0),
                };
                let result = place.map_or(Err(Reason::Protocol), |place| {
                    lane.mark(place, Content::Data).map_err(|_| Reason::Memory)
                });
                marked = marked.and(result);
            });
            marked?;
            self.shown_large += shown_large;
            self.changed += u64::from(flush == Flush::Needed);
            let all_small = shown_large == 0 && duty != Duty::SplitAll;
            self.unlisted |= flush == Flush::Needed && !(self.lists && all_small);
        }
        Ok(Outcome::Moved)
    }

    /// Whether translations are to be forgotten before more is changed.
    fn has_changed_enough(&self) -> bool {
        match self.lists {
            true => translations::all().listed() >= PAGES_AT_ONCE,
            false => self.changed >= REGIONS_AT_ONCE / self.lanes as u64,
        }
    }

    /// Seals what comes next and writes it. `lists` leaves what can wait outstanding.
    fn send(&mut self, lists: bool, lane: &mut FromHere) -> Result<Outcome, Reason> {
        let mut moved = self.port.flush().map_err(|_| Reason::Protocol)?;
        let mut budget = BYTES_PER_STEP;
        while budget > 0 {
            if pace::must_pause() {
                return Ok(if moved { Outcome::Moved } else { Outcome::Blocked });
            }
            // What is sealed before there is room for it leaves the core's cache.
            if self.port.channel().pending() != 0 {
                return self.flush_or_block(moved);
            }
            let next = lane.peek().filter(|_| !lane.is_in_pieces());
            let bytes = next.map_or(PIECE_BYTES, |unit| unit.place.bytes());
            let needed = DATA_OFFSET + bytes + TAG_BYTES;
            let Some(frame) = self.port.channel().room(needed) else {
                return self.flush_or_block(moved);
            };
            let may_wait = |place: Place| lists && may_wait(place);
            let length = if next.is_some_and(|unit| unit.content == Content::Data && may_wait(unit.place)) {
                let before = lane.ledger().unsent().1;
                let length = lane.seal_outstanding(frame, may_wait).map_err(|_| Reason::Protocol)?;
                self.listed += before - lane.ledger().unsent().1;
                length
            } else {
                match lane.due() {
                    Due::Empty => lane.seal_empty(frame).map_err(|_| Reason::Protocol)?,
                    Due::Data(unit) => seal(lane, unit, frame)?,
                    Due::Piece(unit, piece) => seal_piece(lane, unit, piece, frame)?,
                    Due::Barrier => {
                        let length = lane.seal_barrier(frame).map_err(|_| Reason::Protocol)?;
                        self.port.channel().put(length);
                        self.port.flush().map_err(|_| Reason::Protocol)?;
                        return Ok(Outcome::Done);
                    }
                }
            };
            if let Some(length) = length {
                self.port.channel().put(length);
                budget = budget.saturating_sub(length);
                self.bytes += length as u64;
                pace::count_sent(length);
            }
            moved = true;
            self.port.flush().map_err(|_| Reason::Protocol)?;
        }
        Ok(Outcome::Moved)
    }

    fn flush_or_block(&mut self, moved: bool) -> Result<Outcome, Reason> {
        let flushed = self.port.flush().map_err(|_| Reason::Protocol)?;
        Ok(if moved || flushed { Outcome::Moved } else { Outcome::Blocked })
    }

    /// Takes what came.
    fn receive(&mut self, lane: &mut ToHere) -> Result<Outcome, Reason> {
        let mut budget = BYTES_PER_STEP;
        while budget > 0 {
            let received = match self.port.receive() {
                Ok(Some(frame)) => {
                    budget = budget.saturating_sub(frame.len());
                    self.bytes += frame.len() as u64;
                    lane.receive(frame, &mut state::Arrival)
                }
                Ok(None) if budget == BYTES_PER_STEP => return Ok(Outcome::Blocked),
                Ok(None) => return Ok(Outcome::Moved),
                Err(_) => return Err(Reason::Protocol),
            };
            match received {
                Ok(Received::Units(_)) => {}
                Ok(Received::Barrier(_, last)) => {
                    if last {
                        return Ok(Outcome::Done);
                    }
                    tell_normal();
                }
                // Not due, or nobody with the key has made it. What is due will not come: before the hand-over that ends it.
                Err(nacre_migrate::destination::ReceiveError::Record(_)) => return Err(Reason::Protocol),
                Err(nacre_migrate::destination::ReceiveError::NoMemory(_)) => return Err(Reason::Memory),
                Err(nacre_migrate::destination::ReceiveError::Mismatch { .. }) => {
                    return Err(Reason::Mismatch);
                }
                Err(_) => return Err(Reason::Unit),
            }
        }
        Ok(Outcome::Moved)
    }
}

/// Puts a unit's content into a frame and seals it; `None` if it turned out to be zeros.
fn seal(lane: &mut FromHere, unit: Unit, frame: &mut [u8]) -> Result<Option<usize>, Reason> {
    let content = &mut frame[DATA_OFFSET..];
    let bytes = state::read(unit.place, content).ok_or(Reason::Unit)?;
    if is_zero(&content[..bytes]) && lane.found_zero(unit) {
        return Ok(None);
    }
    lane.seal_data(unit, frame, bytes).map(Some).map_err(|_| Reason::Protocol)
}

/// The same with a piece of a large page; `None` if all of the page turned out to be zeros.
fn seal_piece(
    lane: &mut FromHere,
    unit: Unit,
    piece: u32,
    frame: &mut [u8],
) -> Result<Option<usize>, Reason> {
    let content = &mut frame[DATA_OFFSET..DATA_OFFSET + PIECE_BYTES];
    let mut read_zero = |piece: u32| {
        state::read_piece(unit.place, piece as usize * PIECE_BYTES, content);
        is_zero(content)
    };
    if read_zero(piece) && piece == 0 {
        if (1..PIECES).all(&mut read_zero) && lane.found_zero(unit) {
            return Ok(None);
        }
        read_zero(0);
    }
    lane.seal_piece(frame).map(Some).map_err(|_| Reason::Protocol)
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
