//! What one lane does in a step: looks for pages that changed, seals and sends them, or receives.

use super::super::channels::Port;
use super::super::pace;
use super::super::state::{self, may_wait};
use super::{Duty, FromHere, ToHere, tell_normal};
use crate::{memory, translations};
use nacre_abi::LARGE_PAGE_BYTES;
use nacre_abi::layout::{HEAP_VA, IMAGE_VA, IMAGE_VA_END, TENANT_VA_END};
use nacre_migrate::destination::{ReceiveError, Received};
use nacre_migrate::message::Reason;
use nacre_migrate::source::Due;
use nacre_migrate::wire::{Header, Kind, TAG_BYTES};
use nacre_migrate::{Content, DATA_OFFSET, PIECE_BYTES, PIECES, Place, Unit};
use nacre_mm::address_space::Flush;
use nacre_mm::entry::{Leaf, Perms, Size};
use nacre_mm::page_tables::Collect;

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
const REGIONS_WARMED_PER_STEP: usize = 8;
const BYTES_PER_STEP: usize = 256 << 10;

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
    pub(super) regions: u64,
    pub(super) shown_large: u64,
    /// Regions that it changed since translations were last forgotten, and whether something of them is not listed.
    changed: u64,
    pub(super) unlisted: bool,
    /// Whether pages are listed, for their translations to be forgotten one by one.
    pub(super) lists: bool,
    /// Whether there are regions to be warmed.
    warms: bool,
    /// Pages may be listed here, or a list has come that waits for it.
    listing: Listing,
    /// Bytes of pages that travelled.
    pub bytes: u64,
    /// Bytes of pages that were listed as outstanding.
    pub(super) listed: u64,
}

/// The protocol's part of a lane, in the vault.
#[derive(Clone, Copy)]
pub(super) enum End {
    Source(*mut FromHere),
    Destination(*mut ToHere),
}

/// Whether tables are ready for pages to be listed as outstanding, which splits many large ones at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    NotYet,
    /// They are not, and the frame that was received last is a list.
    Waits,
    /// They are, and that frame is the next one.
    Held,
    Ready,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Moved,
    /// Something has to come, or there has to be room.
    Blocked,
    /// vCPU 0 has to do something first.
    Waits,
    Done,
}

impl LaneWork {
    pub(super) fn new(index: usize, lanes: usize, port: Port, end: End) -> LaneWork {
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
            warms: false,
            listing: Listing::NotYet,
            bytes: 0,
            listed: 0,
        }
    }

    /// The next collection begins at the first region.
    pub(super) fn rewind(&mut self) {
        (self.range, self.cursor) = (0, RANGES[0].0);
        (self.regions, self.shown_large) = (0, 0);
    }

    /// Whether the last collection has looked at all regions.
    pub(super) fn has_collected_all(&self) -> bool {
        self.range == RANGES.len()
    }

    /// Translations of all that it changed have been forgotten.
    pub(super) fn forgotten(&mut self) {
        (self.changed, self.unlisted) = (0, false);
    }

    /// Where the vault has the lane now.
    pub fn set_source(&mut self, lane: *mut FromHere) {
        self.end = End::Source(lane);
    }

    /// The same.
    pub fn set_destination(&mut self, lane: *mut ToHere) {
        self.end = End::Destination(lane);
    }

    /// Whether a list has come that waits until tables are ready for it.
    pub(super) fn waits_to_list(&self) -> bool {
        self.listing == Listing::Waits
    }

    /// Tables are ready for lists; whether one has waited for that.
    pub(super) fn may_list(&mut self) -> bool {
        let waited = self.waits_to_list();
        self.listing = if waited { Listing::Held } else { Listing::Ready };
        // What a processor walks from here on has to be written with exits.
        self.warms = false;
        waited
    }

    pub(super) fn step(&mut self, duty: Duty) -> Result<Outcome, Reason> {
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
            let Some(region) = self.next_region() else { return Ok(Outcome::Done) };
            if duty == Duty::CollectLast {
                memory::read_table_ahead(region + self.lanes as u64 * LARGE_PAGE_BYTES);
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

    /// The next region of this lane.
    fn next_region(&mut self) -> Option<u64> {
        loop {
            let (_, end) = RANGES.get(self.range)?;
            let Some(region) = memory::space().next_region(self.cursor, *end) else {
                self.range += 1;
                self.cursor = RANGES.get(self.range).map_or(0, |(start, _)| *start);
                continue;
            };
            self.cursor = region + LARGE_PAGE_BYTES;
            if Place::large(region).is_some_and(|place| place.lane(self.lanes).index() == self.index) {
                return Some(region);
            }
        }
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

    /// Has the processor find the translations of the next regions of this lane that are here, as long as nothing comes: where tables
    /// are shadowed, each costs 50 us, which the tenant would wait for once it runs. False when all are done.
    fn warm(&mut self) -> bool {
        for _ in 0..REGIONS_WARMED_PER_STEP {
            let next = self.next_region().filter(|_| self.warms);
            let Some(region) = next else {
                self.warms = false;
                return false;
            };
            memory::warm(region);
        }
        true
    }

    fn flush_or_block(&mut self, moved: bool) -> Result<Outcome, Reason> {
        let flushed = self.port.flush().map_err(|_| Reason::Protocol)?;
        Ok(if moved || flushed { Outcome::Moved } else { Outcome::Blocked })
    }

    /// Takes what came.
    fn receive(&mut self, lane: &mut ToHere) -> Result<Outcome, Reason> {
        let mut budget = BYTES_PER_STEP;
        while budget > 0 {
            let frame = match self.listing {
                Listing::Waits => return Ok(Outcome::Waits),
                Listing::Held => {
                    self.listing = Listing::Ready;
                    Ok(Some(self.port.channel().received()))
                }
                Listing::NotYet | Listing::Ready => self.port.receive(),
            };
            let received = match frame {
                Ok(Some(frame)) if self.listing == Listing::NotYet && is_list(frame) => {
                    self.listing = Listing::Waits;
                    return Ok(Outcome::Waits);
                }
                Ok(Some(frame)) => {
                    budget = budget.saturating_sub(frame.len());
                    self.bytes += frame.len() as u64;
                    lane.receive(frame, &mut state::Arrival)
                }
                Ok(None) if budget == BYTES_PER_STEP => {
                    return Ok(if self.warm() { Outcome::Moved } else { Outcome::Blocked });
                }
                Ok(None) => return Ok(Outcome::Moved),
                Err(_) => return Err(Reason::Protocol),
            };
            match received {
                Ok(Received::Units(_)) => {}
                Ok(Received::Barrier(_, last)) => {
                    if last {
                        return Ok(Outcome::Done);
                    }
                    self.rewind();
                    self.warms = self.listing == Listing::NotYet;
                    tell_normal();
                }
                // Not due, or nobody with the key has made it. What is due will not come: before the hand-over that ends it.
                Err(ReceiveError::Record(_)) => return Err(Reason::Protocol),
                Err(ReceiveError::NoMemory(_)) => return Err(Reason::Memory),
                Err(ReceiveError::Mismatch { .. }) => {
                    return Err(Reason::Mismatch);
                }
                Err(_) => return Err(Reason::Unit),
            }
        }
        Ok(Outcome::Moved)
    }
}

/// Whether a frame says that it is a list of outstanding pages. It is not opened yet.
fn is_list(frame: &[u8]) -> bool {
    Header::split(frame).is_ok_and(|(header, _)| header.kind == Kind::Outstanding)
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
