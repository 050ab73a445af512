//! Two state machines and a network that does what it likes, step by step, with the invariants checked after each.

use super::{DestinationNode, Frames, Judge, Setup, SourceNode, page};
use nacre_migrate::wire::{Connection, Header, Kind, LaneId};
use nacre_migrate::{Place, Source};
use std::collections::{BTreeMap, VecDeque};

/// Pages of the tenant.
pub const PAGES: u64 = 6;
const LANES: u8 = 2;
const JUDGE: Judge = Judge { ignore_key: false };

/// What happens. Numbers name frames and bytes, modulo how many there are.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// What is due arrives, in order.
    Honest(u8),
    Drop,
    Repeat(usize),
    Reorder(usize),
    Truncate(usize, usize),
    Extend(usize, u8),
    Flip(usize, usize, u8),
    Replay(usize),
    Misdirect(usize),
    Write(u64, u8),
    Round,
    Park,
    Go,
    Stage,
    Cancel,
    Resume(usize),
}

/// Everything, and what is on its way.
pub struct World {
    pub source: SourceNode,
    pub destinations: [DestinationNode; 2],
    pub due: VecDeque<Vec<u8>>,
    pub sent: Frames,
    other: Frames,
    last: Option<BTreeMap<Place, u8>>,
}

fn connections() -> Vec<Connection> {
    let lanes = || (0..usize::from(LANES)).filter_map(LaneId::new);
    let pages = lanes().map(Connection::Pages);
    [Connection::Control, Connection::Demand]
        .into_iter()
        .chain(pages)
        .chain(lanes().map(Connection::Fetch))
        .collect()
}

impl World {
    pub fn new(outstanding: bool, seed: u64, other: Frames) -> World {
        let setup = Setup { lanes: LANES, slots: 64, outstanding };
        let mut out = Frames::new();
        let source = SourceNode::offer(setup, PAGES, seed, &mut out);
        let destinations = [1, 2].map(|which| DestinationNode::fresh(setup, seed + which));
        let mut world =
            World { source, destinations, due: VecDeque::new(), sent: Frames::new(), other, last: None };
        world.send(out);
        world
    }

    fn send(&mut self, frames: Frames) {
        self.due.extend(frames.iter().cloned());
        self.sent.extend(frames);
    }

    /// Delivers bytes to the source, or to a destination.
    pub fn deliver(&mut self, bytes: &[u8], to: Option<usize>) -> Result<(), String> {
        let mut out = Frames::new();
        let result = match to {
            None => self.source.deliver(bytes, &mut { JUDGE }, &mut out),
            Some(which) => self.destinations[which].deliver(bytes, &mut { JUDGE }, &mut out),
        };
        self.send(out);
        result.map(|_| ())
    }

    fn honest(&mut self, count: usize) {
        for _ in 0..count {
            let Some(bytes) = self.due.pop_front() else { return };
            // A connection that lost a record refuses the next ones.
            let _ = self.deliver(&bytes, to_whom(&bytes));
        }
    }

    /// Bytes that nobody sealed must be refused, and change nothing.
    pub fn forged(&mut self, bytes: &[u8], to: Option<usize>, kind: Kind) {
        let states = (self.source.name(), self.destinations.each_ref().map(DestinationNode::name));
        let result = self.deliver(bytes, to);
        let clear = matches!(kind, Kind::Offer | Kind::Accept | Kind::Proof | Kind::Refusal);
        if !clear {
            // A Commit that comes after the activation is not looked at.
            let late = kind == Kind::Commit && result.is_ok();
            assert!(late || result.is_err(), "a forged {kind:?} was accepted");
            assert_eq!(states, (self.source.name(), self.destinations.each_ref().map(DestinationNode::name)));
        }
        if let Err(error) = result {
            assert!(!error.is_empty() && !error.contains('\n'), "errors are one line");
        }
    }

    pub fn step(&mut self, step: &Step) {
        let frame = |which: &usize, frames: &Frames| frames[which % frames.len()].clone();
        match step {
            Step::Honest(count) => self.honest(usize::from(*count)),
            Step::Drop => drop(self.due.pop_front()),
            Step::Repeat(which) => {
                let bytes = frame(which, &self.sent);
                let _ = self.deliver(&bytes, to_whom(&bytes));
            }
            Step::Reorder(which) if !self.due.is_empty() => {
                let bytes = self.due.remove(which % self.due.len()).expect("it is there");
                self.due.push_back(bytes);
            }
            Step::Reorder(_) => {}
            Step::Truncate(which, at) => {
                let bytes = frame(which, &self.sent);
                let kind = kind(&bytes);
                self.forged(&bytes[..at % bytes.len()], to_whom(&bytes), kind);
            }
            Step::Extend(which, byte) => {
                let mut bytes = frame(which, &self.sent);
                let kind = kind(&bytes);
                let to = to_whom(&bytes);
                bytes.push(*byte);
                self.forged(&bytes, to, kind);
            }
            Step::Flip(which, at, bit) => {
                let mut bytes = frame(which, &self.sent);
                let (kind, to) = (kind(&bytes), to_whom(&bytes));
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
                self.forged(&bytes, to, kind);
            }
            Step::Replay(which) => {
                let bytes = frame(which, &self.other);
                self.forged(&bytes, to_whom(&bytes), kind(&bytes));
            }
            Step::Misdirect(which) => {
                let bytes = frame(which, &self.sent);
                let _ = self.deliver(&bytes, to_whom(&bytes).map(|_| 1));
            }
            local => self.local(local),
        }
    }

    fn local(&mut self, step: &Step) {
        let mut out = Frames::new();
        match step {
            Step::Write(number, value) if !self.source.is_parked() => {
                self.source.write(page(*number), *value)
            }
            Step::Round => self.source.round(&mut out),
            Step::Park if matches!(self.source.machine, Some(Source::Copying(_))) => {
                self.source.park(true, 5, &mut out);
            }
            Step::Stage => {
                for one in &mut self.destinations {
                    one.stage(&mut out);
                }
            }
            Step::Go if matches!(self.source.machine, Some(Source::Staged(_))) => {
                self.last = Some(self.source.memory.clone());
                assert!(self.source.go());
                out.extend(self.source.commit.map(|commit| commit.to_vec()));
            }
            Step::Cancel => {
                self.source.cancel(&mut out);
            }
            Step::Resume(which) => {
                let connections = connections();
                self.source.resume(connections[which % connections.len()], &mut out);
            }
            _ => {}
        }
        self.send(out);
    }

    pub fn check(&self) {
        let running = self.destinations.iter().filter(|one| one.running).count();
        assert!(running + usize::from(!self.source.gone) <= 1, "two copies could run");
        assert!(self.source.gone || self.source.has_tenant(), "the tenant is nowhere");
        assert!(!(self.source.gone && self.source.has_tenant()), "the tenant is at the source after Gone");
        for one in self.destinations.iter().filter(|one| one.running) {
            let last = self.last.as_ref().expect("the source is gone");
            assert!(one.is_faithful(last), "something stale was used");
        }
    }

    /// The network behaves again: it ends in exactly one running copy.
    pub fn settle(&mut self) {
        let mut out = Frames::new();
        if self.source.cancel(&mut out) || self.source.name() == "Aborted" {
            assert!(self.source.has_tenant());
            assert!(!self.destinations.iter().any(|one| one.running));
            return;
        }
        let commit = self.source.commit.expect("the source is gone");
        for which in 0..2 {
            // The one it is for takes it, if it has not; for the other it means nothing.
            let _ = self.deliver(&commit, Some(which));
        }
        let target =
            self.destinations.iter().position(|one| one.running).expect("the Commit was for one of them");
        for _ in 0..4 {
            for connection in connections() {
                let mut out = Frames::new();
                self.source.resume(connection, &mut out);
                self.send(out);
                while let Some(bytes) = self.due.pop_front() {
                    let to = to_whom(&bytes).map(|_| target);
                    let _ = self.deliver(&bytes, to);
                }
                self.check();
            }
        }
        assert_eq!((self.source.name(), self.destinations[target].name()), ("Done", "Done"));
        assert_eq!(self.destinations[target].missing(), 0);
    }
}

/// Honest frames go to the first destination.
pub fn to_whom(bytes: &[u8]) -> Option<usize> {
    if bytes[3] == 1 { Some(0) } else { None }
}

fn kind(bytes: &[u8]) -> Kind {
    Header::split(bytes).expect("it was sent").0.kind
}

/// A whole migration that nobody disturbs; returns its world.
pub fn undisturbed(outstanding: bool, seed: u64) -> World {
    let mut world = World::new(outstanding, seed, Frames::new());
    let steps = [
        Step::Honest(9),
        Step::Write(3, 0),
        Step::Round,
        Step::Write(1, 3),
        Step::Honest(99),
        Step::Round,
        Step::Write(1, 2),
        Step::Write(4, 0),
        Step::Honest(99),
        Step::Park,
        Step::Honest(99),
        Step::Stage,
        Step::Honest(99),
        Step::Go,
        Step::Honest(99),
    ];
    for step in &steps {
        world.step(step);
        world.check();
    }
    assert_eq!((world.source.name(), world.destinations[0].name()), ("Done", "Done"));
    assert!(world.destinations[0].running && world.destinations[0].is_faithful(&world.source.memory));
    world
}
