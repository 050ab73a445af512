//! Large pages that travel in pieces, over a connection that breaks anywhere.

use crate::crypto::{GcmKey, HkdfRoot, Root};
use crate::destination::{Change, DestinationLane, Memory, NoMemory, ReceiveError, Received};
use crate::flow::Window;
use crate::link::Link;
use crate::source::{Due, LaneError, SourceLane};
use crate::wire::{Connection, End, LaneId, MAX_FRAME_BYTES, MigrationId};
use crate::{Content, DATA_OFFSET, LARGE_BYTES, PIECE_BYTES, PIECES, Place, Round, SMALL_BYTES, Slot};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const SECRET: [u8; 32] = [3; 32];
/// Large pages of the tenant.
const PAGES: usize = 2;

/// The tenant's memory at either end.
#[derive(PartialEq, Eq)]
struct Pages(Vec<u8>);

impl Pages {
    fn at(&mut self, place: Place) -> &mut [u8] {
        let start = place.address() as usize;
        &mut self.0[start..start + place.bytes()]
    }
}

impl Memory for Pages {
    fn change(&mut self, place: Place, change: Change<'_>) -> Result<(), NoMemory> {
        match change {
            Change::Data(content) => self.at(place).copy_from_slice(content),
            Change::Piece(offset, content) => {
                self.at(place)[offset..offset + content.len()].copy_from_slice(content);
            }
            Change::Zero => self.at(place).fill(0),
            Change::Absent | Change::Outstanding => return Err(NoMemory),
        }
        Ok(())
    }
}

struct Ends {
    root: HkdfRoot,
    source: SourceLane<GcmKey, Vec<Slot>>,
    here: Pages,
    destination: DestinationLane<GcmKey, Vec<Slot>>,
    there: Pages,
    round: u32,
    frame: Vec<u8>,
}

fn link(root: &HkdfRoot, own: End, connection: fn(LaneId) -> Connection) -> Option<Link<GcmKey>> {
    Some(Link::new(root, MigrationId([1; 16]), own, connection(LaneId::wrapping(0, 1))))
}

fn large(page: usize) -> Place {
    Place::large((page * LARGE_BYTES) as u64).expect("aligned")
}

impl Ends {
    fn new() -> Ends {
        let root = HkdfRoot::from_bytes(&SECRET);
        let (lane, slots) = (LaneId::wrapping(0, 1), || vec![Slot::default(); 4096]);
        let source = SourceLane {
            pages: link(&root, End::Source, Connection::Pages),
            fetch: link(&root, End::Source, Connection::Fetch),
            ledger: crate::source::Ledger::new(slots(), &SECRET, lane, 1),
            piece: None,
            parked: false,
            finished: false,
        };
        let destination = DestinationLane {
            pages: link(&root, End::Destination, Connection::Pages),
            fetch: link(&root, End::Destination, Connection::Fetch),
            ledger: crate::destination::Ledger::new(slots(), &SECRET, lane, 1),
            piece: None,
            window: Window::for_bandwidth(1),
        };
        let pages = || Pages(vec![0; PAGES * LARGE_BYTES]);
        let mut ends = Ends {
            root,
            source,
            here: pages(),
            destination,
            there: pages(),
            round: 0,
            frame: vec![0; MAX_FRAME_BYTES],
        };
        ends.begin();
        ends
    }

    fn begin(&mut self) {
        self.round += 1;
        self.source.begin(Round(self.round));
    }

    /// The tenant writes, and the place is marked.
    fn write(&mut self, place: Place, value: u8) {
        let start = place.address() as usize;
        let bytes = self.here.at(place);
        bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = value ^ ((start + at) >> 12) as u8);
        self.source.mark(place, Content::Data).expect("there is room, and a new round");
    }

    /// Seals the next record; `None` if the barrier is due.
    fn seal(&mut self) -> Option<usize> {
        let frame = &mut self.frame[..];
        let sealed = match self.source.due() {
            Due::Barrier => return None,
            Due::Empty => self.source.seal_empty(frame).map(|length| length.expect("some are due")),
            Due::Data(unit) => {
                let bytes = unit.place.bytes();
                frame[DATA_OFFSET..DATA_OFFSET + bytes].copy_from_slice(self.here.at(unit.place));
                self.source.seal_data(unit, frame, bytes)
            }
            Due::Piece(unit, piece) => {
                let content = &self.here.at(unit.place)[piece as usize * PIECE_BYTES..][..PIECE_BYTES];
                frame[DATA_OFFSET..DATA_OFFSET + PIECE_BYTES].copy_from_slice(content);
                self.source.seal_piece(frame)
            }
        };
        Some(sealed.expect("the connection is open"))
    }

    fn arrive(&mut self, length: usize) -> Result<Received, ReceiveError> {
        self.destination.receive(&mut self.frame[..length], &mut self.there)
    }

    fn send(&mut self) -> bool {
        let Some(length) = self.seal() else { return false };
        self.arrive(length).expect("it is due");
        true
    }

    fn barrier(&mut self) {
        while self.send() {}
        let length = self.source.seal_barrier(&mut self.frame).expect("all was sent");
        let round = Round(self.round);
        assert_eq!(self.arrive(length), Ok(Received::Barrier(round, false)));
        self.source.ledger.confirm(round);
        self.begin();
    }

    /// The connection breaks, and what was on its way is lost.
    fn resume(&mut self) {
        let (here, there) = (self.source.pages.as_mut(), self.destination.pages.as_mut());
        let (here, there) = (here.expect("open"), there.expect("open"));
        let mut proposal = here.propose(&self.root).expect("there are epochs");
        let mut answer = there.follow(&self.root, &mut proposal).expect("it is authentic");
        here.agreed(&mut answer).expect("it is authentic");
        self.source.rewind();
    }
}

#[derive(Clone, Debug)]
enum Step {
    WriteLarge(usize, u8),
    WriteSmall(usize, u8),
    Send(u32),
    Lose,
    Break,
    Barrier,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..PAGES, 1..255u8).prop_map(|(page, value)| Step::WriteLarge(page, value)),
        (0..PAGES * 512, 1..255u8).prop_map(|(page, value)| Step::WriteSmall(page, value)),
        (1..2 * PIECES).prop_map(Step::Send),
        Just(Step::Lose),
        Just(Step::Break),
        Just(Step::Barrier),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// What is written gets there whole, however often the connection breaks in the middle of a page.
    #[test]
    fn pages_are_whole_after_each_barrier(steps in proptest::collection::vec(step(), 1..24)) {
        let mut ends = Ends::new();
        for step in steps {
            match step {
                Step::WriteLarge(page, value) => {
                    ends.barrier();
                    ends.write(large(page), value);
                }
                Step::WriteSmall(page, value) => {
                    ends.barrier();
                    ends.write(Place::small((page * SMALL_BYTES) as u64).expect("aligned"), value);
                }
                Step::Send(records) => _ = (0..records).all(|_| ends.send()),
                Step::Lose => {
                    let _ = ends.seal();
                    ends.resume();
                }
                Step::Break => ends.resume(),
                Step::Barrier => {
                    ends.barrier();
                    prop_assert!(ends.here == ends.there);
                }
            }
        }
        ends.barrier();
        prop_assert!(ends.here == ends.there);
    }
}

#[test]
fn a_page_goes_in_pieces_once_and_whole_when_it_is_sent_again() {
    let mut ends = Ends::new();
    ends.write(large(0), 9);
    let records = core::iter::from_fn(|| ends.send().then_some(())).count();
    assert_eq!(records, PIECES as usize);
    ends.resume();
    assert!(matches!(ends.source.due(), Due::Data(unit) if unit.place == large(0)));
}

#[test]
fn a_round_does_not_end_in_the_middle_of_a_page() {
    let mut ends = Ends::new();
    ends.write(large(1), 9);
    assert!(ends.send());
    assert_eq!(ends.source.seal_barrier(&mut ends.frame), Err(LaneError::Unsent(1)));
    assert_eq!(ends.destination.ledger().units(), 0);
}

#[test]
fn pieces_that_are_not_due_are_refused() {
    let mut ends = Ends::new();
    ends.write(large(0), 9);
    assert!(ends.send());
    let (unit, _) = ends.source.piece.expect("more are due");
    // The same again, and one too many: a source that is broken, as the records are authentic.
    for piece in [1, 3, PIECES] {
        ends.source.piece = Some((unit, piece));
        let length = ends.source.seal_piece(&mut ends.frame).expect("open");
        match piece {
            1 => assert_eq!(ends.arrive(length), Ok(Received::Units(0))),
            _ => assert_eq!(ends.arrive(length), Err(ReceiveError::Format("Piece"))),
        }
    }
    // A page of which this very generation is here: its content must not be put over it.
    ends.source.piece = Some((unit, 2));
    ends.barrier();
    ends.source.piece = Some((unit, 0));
    let length = ends.source.seal_piece(&mut ends.frame).expect("open");
    assert!(matches!(ends.arrive(length), Err(ReceiveError::Unit(_))));
}
