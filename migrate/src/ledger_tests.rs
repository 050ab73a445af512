//! Both ledgers against each other and against what memory really holds: pages that split and merge, come and go, a connection
//! that loses what was under way, units that stay outstanding.

use crate::destination::{Demand, Ledger as Have, UnitRefused, Verdict};
use crate::source::{Ledger as Send, MarkError};
use crate::table::Slot;
use crate::unit::{Content, Extent, LARGE_BYTES, Place, Round, SMALL_BYTES, Unit};
use crate::wire::LaneId;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

const REGIONS: u64 = 3;
const BASE: u64 = 0x100_0000_0000;
const SECRET: [u8; 32] = [0x37; 32];

fn lane() -> LaneId {
    LaneId::new(0).expect("there is a first")
}

fn large(region: u64) -> Place {
    Place::large(BASE + region * LARGE_BYTES as u64).expect("aligned")
}

fn small(region: u64, page: u64) -> Place {
    Place::small(BASE + region * LARGE_BYTES as u64 + page * SMALL_BYTES as u64).expect("aligned")
}

/// Both ends of a lane, and memories by small page: which write each shows, 0 for zeros.
struct Ends {
    source: Send<Vec<Slot>>,
    destination: Have<Vec<Slot>>,
    round: u32,
    writes: u64,
    here: BTreeMap<u64, u64>,
    there: BTreeMap<u64, Option<u64>>,
}

fn pages(place: Place) -> Vec<u64> {
    match place.extent() {
        Extent::Large => place.parts().map(Place::address).collect(),
        _ => vec![place.address()],
    }
}

impl Ends {
    fn new() -> Ends {
        let slots = || vec![Slot::default(); 3000];
        let mut source = Send::new(slots(), &SECRET, lane(), 1);
        source.begin(Round(1));
        let destination = Have::new(slots(), &SECRET, lane(), 1);
        Ends { source, destination, round: 1, writes: 0, here: BTreeMap::new(), there: BTreeMap::new() }
    }

    fn mark(&mut self, place: Place, content: Content) {
        if self.source.mark(place, content) == Err(MarkError::NeedsRound) {
            self.round += 1;
            self.source.begin(Round(self.round));
            self.source.mark(place, content).expect("it is a new round");
        }
        self.writes += 1;
        for page in pages(place) {
            match content {
                Content::Data => self.here.insert(page, self.writes),
                Content::Zero => self.here.insert(page, 0),
                Content::Absent => self.here.remove(&page),
            };
        }
    }

    fn receive(&mut self, unit: Unit) {
        let verdict = self.destination.receive(unit).expect("the source is honest");
        if verdict == Verdict::Have {
            return;
        }
        for page in pages(unit.place) {
            match unit.content {
                Content::Absent => self.there.remove(&page),
                // A page that is gone since is read as whatever is there.
                _ => self.there.insert(page, Some(self.here.get(&page).copied().unwrap_or(u64::MAX))),
            };
        }
    }

    /// Sends all but the last `lost` units, which the connection takes with it.
    fn send(&mut self, lost: usize) {
        let mut units: Vec<_> = core::iter::from_fn(|| self.source.next()).collect();
        units.truncate(units.len().saturating_sub(lost));
        units.into_iter().for_each(|unit| self.receive(unit));
        if lost > 0 {
            self.source.rewind();
        }
    }

    fn barrier(&mut self, last: bool) {
        assert_eq!(self.source.unsent(), (0, 0));
        assert_eq!(self.source.summary(), self.destination.summary());
        self.destination.close_round(self.source.round(), last);
        self.source.confirm(self.source.round());
        self.round += 1;
        self.source.begin(Round(self.round));
    }

    fn announce(&mut self) {
        while let Some(unit) = self.source.next_outstanding(|_| true) {
            if self.destination.announce(unit) == Ok(Verdict::Use) {
                self.there.extend(pages(unit.place).into_iter().map(|page| (page, None)));
            }
            while let Some(unit) = self.source.next_empty() {
                self.receive(unit);
            }
        }
        while let Some(unit) = self.source.next() {
            self.receive(unit);
        }
    }

    fn fetch_all(&mut self) {
        let expected = self.there.values().filter(|value| value.is_none()).count() * SMALL_BYTES;
        assert_eq!(self.destination.missing().1, expected as u64);
        let asked = self.there.iter().find(|(_, value)| value.is_none()).map(|(page, _)| *page);
        if let Some(page) = asked {
            let Demand::Ask(unit) = self.destination.demand(page + 5) else { panic!("it is missing") };
            assert_eq!(self.destination.demand(page), Demand::Coming(unit));
            self.destination.rewind();
        }
        while let Some(unit) = self.destination.next_missing(u64::MAX) {
            assert!(self.source.may_be_fetched(&unit));
            let newer = Unit { generation: Round(unit.generation.0 + 1), ..unit };
            assert_eq!(self.destination.receive(newer), Err(UnitRefused::Stale { found: newer.generation }));
            assert!(!self.source.may_be_fetched(&newer));
            self.receive(unit);
            assert_eq!(self.destination.receive(unit), Ok(Verdict::Have));
        }
        assert_eq!(self.destination.missing(), (0, 0));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Small(u64, u64, Content),
    Large(u64, Content),
    Send,
    Lose(usize),
    Round,
}

fn op() -> impl Strategy<Value = Op> {
    let content =
        || prop_oneof![4 => Just(Content::Data), 1 => Just(Content::Zero), 1 => Just(Content::Absent)];
    prop_oneof![
        8 => (0..REGIONS, 0..6_u64, content()).prop_map(|(region, page, content)| Op::Small(region, page * 100, content)),
        3 => (0..REGIONS, content()).prop_map(|(region, content)| Op::Large(region, content)),
        3 => Just(Op::Send),
        1 => (1..400_usize).prop_map(Op::Lose),
        3 => Just(Op::Round),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_agree_and_hold_what_was_written_last(
        ops in prop::collection::vec(op(), 0..60),
        outstanding: bool,
    ) {
        let mut ends = Ends::new();
        for op in ops {
            match op {
                Op::Small(region, page, content) => ends.mark(small(region, page), content),
                Op::Large(region, content) => ends.mark(large(region), content),
                Op::Send => ends.send(0),
                Op::Lose(lost) => ends.send(lost),
                Op::Round => {
                    ends.send(0);
                    ends.barrier(false);
                }
            }
        }
        if outstanding { ends.announce() } else { ends.send(0) }
        ends.barrier(true);
        ends.source.freeze();
        assert_eq!(ends.source.mark(large(0), Content::Data), Err(MarkError::Final));
        ends.fetch_all();
        let there: BTreeMap<_, _> = ends.there.iter().map(|(page, value)| (*page, value.expect("it came"))).collect();
        prop_assert_eq!(&there, &ends.here);
        let data = Content::Data;
        let unlisted = Unit { place: large(REGIONS), generation: Round(1), content: data };
        prop_assert_eq!(ends.destination.receive(unlisted), Err(UnitRefused::Unlisted));
        prop_assert_eq!(ends.destination.announce(unlisted), Err(UnitRefused::Unlisted));
    }
}

#[test]
fn older_generations_and_closed_rounds_are_refused() {
    let mut ends = Ends::new();
    let unit = |place, generation| Unit { place, generation: Round(generation), content: Content::Data };
    assert_eq!(ends.destination.receive(unit(small(0, 0), 2)), Ok(Verdict::Use));
    let stale = |found| Err(UnitRefused::Stale { found: Round(found) });
    assert_eq!(ends.destination.receive(unit(small(0, 0), 1)), stale(1));
    assert_eq!(ends.destination.receive(unit(small(0, 0), 2)), Ok(Verdict::Have));
    assert_eq!(ends.destination.receive(unit(large(0), 1)), stale(1), "a part of it is newer");
    ends.destination.close_round(Round(3), false);
    assert_eq!(ends.destination.receive(unit(small(0, 1), 3)), stale(3), "its round is over");
    assert_eq!(ends.destination.receive(unit(small(0, 1), 4)), Ok(Verdict::Use));
    assert_eq!(ends.destination.receive(unit(large(1), 4)), Ok(Verdict::Use));
    assert_eq!(ends.destination.receive(unit(small(1, 7), 3)), stale(3), "the page around it is newer");
}

#[test]
fn what_was_announced_may_come_before_the_hand_over_all_the_same() {
    let mut ends = Ends::new();
    let unit = Unit { place: small(0, 0), generation: Round(1), content: Content::Data };
    assert_eq!(ends.destination.announce(unit), Ok(Verdict::Use));
    assert_eq!(ends.destination.announce(unit), Ok(Verdict::Have));
    assert_eq!(ends.destination.missing(), (1, SMALL_BYTES as u64));
    assert_eq!(ends.destination.receive(unit), Ok(Verdict::Use));
    assert_eq!(ends.destination.receive(unit), Ok(Verdict::Have));
    assert_eq!(ends.destination.missing(), (0, 0));
}

#[test]
fn lanes_keep_to_themselves() {
    let other = Place::large(BASE + LARGE_BYTES as u64).expect("aligned");
    let mut source = Send::new(vec![Slot::default(); 16], &SECRET, lane(), 2);
    source.begin(Round(1));
    assert_eq!(source.mark(other, Content::Data), Err(MarkError::OtherLane));
    let mut destination = Have::new(vec![Slot::default(); 16], &SECRET, lane(), 2);
    let unit = Unit { place: other, generation: Round(1), content: Content::Data };
    assert_eq!(destination.receive(unit), Err(UnitRefused::OtherLane));
}

#[test]
fn nothing_is_marked_outside_a_round_or_twice_in_one() {
    let mut source = Send::new(vec![Slot::default(); 16], &SECRET, lane(), 1);
    assert_eq!(source.mark(large(0), Content::Data), Err(MarkError::NeedsRound));
    source.begin(Round(1));
    for _ in 0..2 {
        source.mark(large(0), Content::Data).expect("it is queued");
    }
    assert_eq!(source.unsent(), (1, LARGE_BYTES as u64));
    source.next().expect("it is queued");
    for place in [large(0), small(0, 3)] {
        assert_eq!(source.mark(place, Content::Data), Err(MarkError::NeedsRound));
    }
}

#[test]
fn a_full_ledger_says_so_and_stays_as_it_was() {
    let mut source = Send::new(vec![Slot::default(); 16], &SECRET, lane(), 1);
    source.begin(Round(1));
    for page in 0..12 {
        source.mark(small(0, page), Content::Data).expect("three quarters can be used");
    }
    let before = source.summary();
    assert_eq!(source.mark(small(0, 12), Content::Data), Err(MarkError::Full(crate::Full)));
    assert_eq!((source.summary(), source.units()), (before, 12));
    source.mark(large(0), Content::Data).expect("it takes the place of the small ones");
    assert_eq!(source.units(), 1);
    while source.next().is_some() {}
    source.begin(Round(2));
    assert_eq!(
        source.mark(small(0, 1), Content::Data),
        Err(MarkError::Full(crate::Full)),
        "512 have no room"
    );
    assert_eq!(source.units(), 1);
}

#[test]
fn what_is_gone_is_forgotten_once_it_is_confirmed() {
    let mut ends = Ends::new();
    for number in 0..2000_u64 {
        ends.mark(small(number % REGIONS, number % 512), Content::Data);
        ends.send(0);
        ends.barrier(false);
        ends.mark(small(number % REGIONS, number % 512), Content::Absent);
        ends.send(0);
        ends.barrier(false);
        assert_eq!((ends.source.units(), ends.destination.units()), (0, 0), "at {number}");
    }
}
