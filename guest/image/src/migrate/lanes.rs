//! The work of a migration that any vCPU can do: lane by lane, in steps of well under a millisecond, by whoever has nothing else to do.
//!
//! A lane belongs to the vCPU that has claimed it; nobody waits for one, so a worker that the host stops in the middle of a step holds up its
//! lane and no more. vCPU 0 claims all lanes before it lets the state machine touch what they share ([`claim_all`]), and gives
//! them their duties. Nothing here uses the tenant's heap: a step runs on the scheduler's stack.

mod work;

pub use work::{LaneWork, TENANT_IMAGE_VA};

use super::channels::{self, Port, of_lane};
use super::pace;
use crate::agent::agent_static;
use crate::{areas, memory, sched, vcpu};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use nacre_abi::migrate::MAX_LANES;
use nacre_migrate::Slot;
use nacre_migrate::crypto::X25519Pair;
use nacre_migrate::message::Reason;
use nacre_migrate::source::SourceLane;
use nacre_migrate::vault::KeyOf;
use work::{End, Outcome};

/// Where ledgers' slots lie.
pub type Slots = &'static mut [Slot];
/// A lane of the source.
pub type FromHere = SourceLane<KeyOf<X25519Pair>, Slots>;
/// A lane of the destination.
pub type ToHere = nacre_migrate::destination::DestinationLane<KeyOf<X25519Pair>, Slots>;

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
                work.rewind();
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
                work.forgotten();
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
            cell.failed.store(0, Ordering::Relaxed);
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
        (0..LANES.len()).all(|lane| self.work(lane).is_none_or(|work| work.has_collected_all()))
    }

    /// Whether all that was collected is listed.
    pub fn list_is_enough(&mut self) -> bool {
        (0..LANES.len()).all(|lane| self.work(lane).is_none_or(|work| !work.unlisted))
    }

    /// Makes tables ready if some lane has got a list of outstanding pages for the first time.
    pub fn prepare_lists(&mut self) {
        if !(0..LANES.len()).any(|lane| self.work(lane).is_some_and(|work| work.waits_to_list())) {
            return;
        }
        // Nothing else is ever listed.
        memory::renew_directories(areas::linear_memories());
        for (lane, cell) in LANES.iter().enumerate() {
            if self.work(lane).is_some_and(LaneWork::may_list) {
                cell.duty.store(Duty::Receive as u32, Ordering::Relaxed);
                cell.blocked.store(false, Ordering::Relaxed);
            }
        }
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
        // It stays on duty, but nobody takes it before vCPU 0 gives it something to do.
        Ok(Outcome::Waits) => {
            cell.duty.store(Duty::None as u32, Ordering::Relaxed);
            cell.blocked.store(true, Ordering::Relaxed);
            tell_normal();
        }
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
