//! The protocol as a model for stateright: the crate's own transitions, an adversary that is the network, crashes, and a few
//! mutations that the properties must catch.
//!
//! The network is the set of all frames that were ever sent, an earlier migration's among them. Each can be delivered to anybody at any time, any
//! number of times or never: that is loss, delay, duplication, reordering and replay. What changes nothing is no step.

pub mod symbols;

use crate::support::{DestinationNode, Frames, Judge, Setup, SourceNode, foreign_key, page};
use nacre_migrate::destination::Destination;
use nacre_migrate::message::Reason;
use nacre_migrate::wire::{Connection, Header, Kind, LaneId};
use nacre_migrate::{Place, Source};
use stateright::{Model, Property};
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing.
    None,
    /// Extinguishing succeeds, but tasks go on: a Commit before Gone.
    CommitBeforeGone,
    /// The destination runs as soon as it is staged.
    RunAtStaged,
    /// Epochs have no keys of their own, so counters come again with one key.
    ReuseKeys,
    /// The tracker misses a write.
    MissedWrite,
    /// A stale unit is used all the same: the destination takes an older generation.
    AcceptOlder,
    /// Evidence is judged without looking at the key.
    IgnoreKey,
    /// A node says that it stored the Commit, and did not.
    CommitNotStored,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub setup: Setup,
    pub pages: u64,
    pub destinations: usize,
    pub writes: u8,
    pub rounds: u8,
    pub resumes: u8,
    pub crashes: u8,
    pub replay: bool,
    pub mutation: Mutation,
}

/// The smallest one in which everything can happen.
pub const BASE: Protocol = Protocol {
    setup: Setup { lanes: 1, slots: 8, outstanding: true },
    pages: 1,
    destinations: 1,
    writes: 1,
    rounds: 1,
    resumes: 0,
    crashes: 0,
    replay: false,
    mutation: Mutation::None,
};

/// All frames that were ever sent, by number: states hold numbers.
static FRAMES: Mutex<Option<Interned>> = Mutex::new(None);

#[derive(Default)]
struct Interned {
    numbers: HashMap<Arc<[u8]>, u32>,
    frames: Vec<Arc<[u8]>>,
}

fn number(frame: &[u8]) -> u32 {
    let mut interned = FRAMES.lock().expect("nobody panics with it");
    let interned = interned.get_or_insert_default();
    if let Some(number) = interned.numbers.get(frame) {
        return *number;
    }
    let frame: Arc<[u8]> = frame.into();
    let number = interned.frames.len() as u32;
    interned.frames.push(frame.clone());
    interned.numbers.insert(frame, number);
    number
}

fn frame(number: u32) -> Arc<[u8]> {
    let interned = FRAMES.lock().expect("nobody panics with it");
    interned.as_ref().expect("frames were sent").frames[number as usize].clone()
}

macro_rules! as_parts {
    ($node:ident, $($field:ident),*) => {
        impl Clone for $node {
            fn clone(&self) -> $node {
                $node { $($field: self.$field.clone()),* }
            }
        }
        impl PartialEq for $node {
            fn eq(&self, other: &$node) -> bool {
                true $(&& self.$field == other.$field)*
            }
        }
        impl Eq for $node {}
        impl Hash for $node {
            fn hash<H: Hasher>(&self, state: &mut H) {
                $(self.$field.hash(state);)*
            }
        }
    };
}

as_parts!(SourceNode, setup, machine, memory, dirty, roots, gone, commit);
as_parts!(DestinationNode, setup, machine, memory, running, key, seed);

/// One state of everything.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub source: Arc<SourceNode>,
    pub destinations: Vec<Arc<DestinationNode>>,
    /// Numbers of all frames, in ascending order.
    sent: Arc<Vec<u32>>,
    writes: u8,
    rounds: u8,
    resumes: u8,
    crashes: u8,
    /// The Commit is in the node's store.
    stored: bool,
    /// What the tenant's memory was when it was extinguished.
    last: Option<Arc<BTreeMap<Place, u8>>>,
    /// Tasks run somewhere although they should not.
    runs_wrongly: bool,
    /// A crash came inside the documented window.
    crashed_in_window: bool,
    /// A key and a number were used for two texts.
    reused: bool,
    /// A destination was accepted with a key that no genuine guest has.
    foreign: bool,
    /// Something stale was used.
    stale: bool,
}

impl std::fmt::Debug for World {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.destinations.iter().map(|one| (one.name(), one.running)).collect();
        write!(
            formatter,
            "source {} (gone: {}), destinations {names:?}",
            self.source.name(),
            self.source.gone
        )
    }
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A frame reaches the source (`None`) or a destination.
    Deliver(u32, Option<usize>),
    /// The frame of a destination's answer reaches the source with another key in it.
    Forge(u32),
    Write,
    Round,
    Park,
    Go,
    Store,
    Cancel,
    Stage(usize),
    CancelDestination(usize),
    Resume(Connection),
    CrashSource,
    CrashDestination(usize),
}

impl World {
    fn send(&mut self, frames: Frames) {
        for bytes in frames {
            let new = number(&bytes);
            if let Err(at) = self.sent.binary_search(&new) {
                self.reused |= self.sent.iter().any(|old| same_number(&frame(*old), &bytes));
                Arc::make_mut(&mut self.sent).insert(at, new);
            }
        }
    }

    /// The destination that the source has accepted: the one whose key the proof was made for is the one that got to keys.
    fn target(&self) -> Option<&DestinationNode> {
        let joined =
            |name| matches!(name, "Receiving" | "Verifying" | "Staged" | "Running" | "Done" | "Attested");
        self.destinations.iter().map(|one| &**one).find(|one| joined(one.name()))
    }

    fn running(&self) -> usize {
        let source = self.source.machine.is_some() && !self.source.gone;
        usize::from(source)
            + usize::from(self.runs_wrongly)
            + self.destinations.iter().filter(|one| one.machine.is_some() && one.running).count()
    }

    /// Nobody runs the tenant, and nobody can any more: neither by itself nor by a Commit that still can be delivered.
    pub fn is_lost(&self) -> bool {
        if !self.source.gone {
            return false;
        }
        let serves = self.source.machine.is_some();
        !self.destinations.iter().any(|one| match one.name() {
            "Done" => true,
            "Running" => one.missing() == 0 || serves,
            "Staged" => serves || self.has_commit() && !self.source.setup.outstanding,
            _ => false,
        })
    }

    fn has_commit(&self) -> bool {
        self.sent
            .iter()
            .any(|number| self.source.commit.is_some_and(|commit| commit[..] == frame(*number)[..]))
    }

    /// How it can end well.
    fn has_ended(&self) -> bool {
        let kept = matches!(self.source.machine, Some(Source::Aborted(_))) && self.source.has_tenant();
        kept || self.destinations.iter().any(|one| one.name() == "Done")
    }

    /// Whether each destination takes the Commit exactly if it is the one for it.
    fn commit_is_for_one(&self) -> bool {
        let Some(commit) = self.source.commit.as_ref().filter(|_| self.source.gone) else { return true };
        let staged = self.destinations.iter().filter(|one| one.name() == "Staged");
        let taken = staged.clone().filter(|one| {
            let mut one = DestinationNode::clone(one);
            one.deliver(commit, &mut Judge { ignore_key: false }, &mut Frames::new()).is_ok() && one.running
        });
        let (staged, taken) = (staged.count(), taken.count());
        let elsewhere = self.destinations.iter().any(|one| one.running) || self.crashes > 0;
        taken <= 1 && (taken == 1 || elsewhere || staged == 0)
    }
}

/// Whether two different sealed frames used one number of one key.
fn same_number(old: &[u8], new: &[u8]) -> bool {
    let sealed = |bytes: &[u8]| {
        let clear = [Kind::Offer, Kind::Accept, Kind::Proof, Kind::Refusal];
        Header::split(bytes).is_ok_and(|(header, _)| !clear.contains(&header.kind))
    };
    old != new && sealed(old) && sealed(new) && old.last_chunk::<8>() == new.last_chunk::<8>()
}

impl Protocol {
    fn judge(&self) -> Judge {
        Judge { ignore_key: self.mutation == Mutation::IgnoreKey }
    }

    fn deliver(&self, world: &mut World, bytes: &[u8], to: Option<usize>) -> bool {
        let mut out = Frames::new();
        let accepted = match to {
            None => {
                let source = Arc::make_mut(&mut world.source);
                let accepted =
                    source.machine.is_some() && source.deliver(bytes, &mut self.judge(), &mut out).is_ok();
                let key = bytes.get(72..104).filter(|_| source.name() == "Confirming");
                world.foreign |= accepted && key.is_some_and(|key| key == foreign_key());
                accepted
            }
            Some(which) => {
                let node = Arc::make_mut(&mut world.destinations[which]);
                let accepted =
                    node.machine.is_some() && node.deliver(bytes, &mut self.judge(), &mut out).is_ok();
                if !accepted && self.mutation == Mutation::AcceptOlder {
                    return self.use_anyway(world, bytes, which);
                }
                accepted
            }
        };
        world.send(out);
        accepted
    }

    /// A destination that uses whatever content ever came for a page.
    fn use_anyway(&self, world: &mut World, bytes: &[u8], which: usize) -> bool {
        use nacre_migrate::destination::{Change, Memory};
        let is_page = Header::split(bytes)
            .is_ok_and(|(header, _)| header.kind == Kind::Data && header.body_bytes > 4096);
        let node = Arc::make_mut(&mut world.destinations[which]);
        if !is_page || node.name() != "Receiving" && node.name() != "Verifying" {
            return false;
        }
        let address = bytes[40..48].try_into().map(u64::from_le_bytes).expect("8 bytes");
        let place = Place::small(address).expect("it was sent");
        let before = node.memory.clone();
        node.memory.change(place, Change::Data(&bytes[64..64 + 4096])).expect("there is memory");
        node.memory != before
    }

    fn write(&self, world: &mut World) {
        let source = Arc::make_mut(&mut world.source);
        let value = source.memory[&page(0)] + 1;
        source.write(page(0), value);
        if self.mutation == Mutation::MissedWrite {
            source.dirty.remove(&page(0));
        }
        world.writes += 1;
    }

    fn crash_source(&self, world: &mut World) {
        let source = &world.source;
        let finished = world.destinations.iter().any(|one| one.running && one.missing() == 0);
        let needed = !world.stored || self.setup.outstanding;
        world.crashed_in_window |= source.gone && !finished && needed;
        Arc::make_mut(&mut world.source).machine = None;
    }

    fn crash_destination(&self, world: &mut World, which: usize) {
        let node = &world.destinations[which];
        world.crashed_in_window |= matches!(node.name(), "Staged" | "Running" | "Done");
        let node = Arc::make_mut(&mut world.destinations[which]);
        (node.machine, node.running) = (None, false);
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        symbols::REUSE_KEYS.store(self.mutation == Mutation::ReuseKeys, Ordering::Relaxed);
        let mut out = Frames::new();
        if self.replay {
            out.append(&mut recorded(self.setup, self.pages));
        }
        let source = SourceNode::offer(self.setup, self.pages, 1, &mut out);
        let fresh = |which| Arc::new(DestinationNode::fresh(self.setup, 10 + which as u64));
        let mut world = World {
            source: Arc::new(source),
            destinations: (0..self.destinations).map(fresh).collect(),
            sent: Arc::default(),
            writes: 0,
            rounds: 0,
            resumes: 0,
            crashes: 0,
            stored: false,
            last: None,
            runs_wrongly: false,
            crashed_in_window: false,
            reused: false,
            foreign: false,
            stale: false,
        };
        world.send(out);
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let source = &world.source;
        for number in world.sent.iter().copied() {
            let bytes = frame(number);
            let from_source = bytes[3] == 1;
            if from_source {
                actions.extend((0..self.destinations).map(|which| Action::Deliver(number, Some(which))));
            } else {
                actions.push(Action::Deliver(number, None));
            }
            if bytes[1] == Kind::Accept as u8 {
                actions.push(Action::Forge(number));
            }
        }
        let copying = matches!(source.machine, Some(Source::Copying(_)));
        if copying {
            actions.push(Action::Park);
            actions.extend((world.writes < self.writes).then_some(Action::Write));
            actions.extend((world.rounds < self.rounds).then_some(Action::Round));
        }
        if matches!(source.machine, Some(Source::Staged(_))) {
            actions.push(Action::Go);
        }
        if source.machine.as_ref().is_some_and(|machine| machine.may_abort()) {
            actions.push(Action::Cancel);
        }
        if source.gone && source.machine.is_some() && !world.stored {
            actions.push(Action::Store);
        }
        if world.resumes < self.resumes && source.machine.is_some() {
            let lane = LaneId::new(0).expect("the first");
            let all =
                [Connection::Control, Connection::Demand, Connection::Pages(lane), Connection::Fetch(lane)];
            actions.extend(all.map(Action::Resume));
        }
        for (which, node) in world.destinations.iter().enumerate() {
            if matches!(node.machine, Some(Destination::Verifying(_))) {
                actions.push(Action::Stage(which));
            }
            if matches!(node.machine, Some(Destination::Receiving(_))) {
                actions.push(Action::CancelDestination(which));
            }
            if world.crashes < self.crashes && node.machine.is_some() {
                actions.push(Action::CrashDestination(which));
            }
        }
        if world.crashes < self.crashes && source.machine.is_some() {
            actions.push(Action::CrashSource);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        let mut out = Frames::new();
        match action {
            Action::Deliver(number, to) => {
                if !self.deliver(&mut world, &frame(number), to) {
                    return None;
                }
            }
            Action::Forge(number) => {
                let mut bytes = frame(number).to_vec();
                bytes[72..104].copy_from_slice(&foreign_key());
                if !self.deliver(&mut world, &bytes, None) {
                    return None;
                }
            }
            Action::Write => self.write(&mut world),
            Action::Round => {
                Arc::make_mut(&mut world.source).round(&mut out);
                world.rounds += 1;
            }
            Action::Park => Arc::make_mut(&mut world.source).park(true, 2, &mut out),
            Action::Go => {
                let memory = world.source.memory.clone();
                if !Arc::make_mut(&mut world.source).go() {
                    return None;
                }
                world.last = Some(Arc::new(memory));
                world.runs_wrongly |= self.mutation == Mutation::CommitBeforeGone;
            }
            Action::Store => {
                world.stored = true;
                if self.mutation == Mutation::CommitNotStored {
                    return Some(world);
                }
                out.extend(world.source.commit.map(|commit| commit.to_vec()));
            }
            Action::Cancel => {
                Arc::make_mut(&mut world.source).cancel(&mut out);
            }
            Action::Stage(which) => {
                let node = Arc::make_mut(&mut world.destinations[which]);
                if !node.stage(&mut out) {
                    return None;
                }
                world.runs_wrongly |= self.mutation == Mutation::RunAtStaged;
            }
            Action::CancelDestination(which) => {
                let node = Arc::make_mut(&mut world.destinations[which]);
                let Ok((machine, reply)) = node.machine.take()?.cancel(Reason::Cancelled) else {
                    return None;
                };
                node.machine = Some(machine);
                out.extend(reply.map(|reply| reply.frame().to_vec()));
            }
            Action::Resume(connection) => {
                world.resumes += 1;
                if !Arc::make_mut(&mut world.source).resume(connection, &mut out) {
                    return None;
                }
            }
            Action::CrashSource => {
                self.crash_source(&mut world);
                world.crashes += 1;
            }
            Action::CrashDestination(which) => {
                self.crash_destination(&mut world, which);
                world.crashes += 1;
            }
        }
        world.send(out);
        let last = world.last.clone();
        let unfaithful = |one: &Arc<DestinationNode>| {
            last.as_ref().is_some_and(|last| one.running && !one.is_faithful(last))
        };
        world.stale |= world.destinations.iter().any(unfaithful);
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Protocol>> {
        vec![
            Property::always("1: at most one copy can run", |_, world: &World| world.running() <= 1),
            Property::always("2: before Gone the source has its tenant, whole", |_, world: &World| {
                world.source.gone || world.source.machine.is_none() || world.source.has_tenant()
            }),
            Property::always(
                "3: a Commit is good for one destination, whenever it comes",
                |_, world: &World| world.commit_is_for_one(),
            ),
            Property::always("4: nothing older than the newest is used", |_, world: &World| !world.stale),
            Property::always("5: lost only by a crash inside the window", |_, world: &World| {
                !world.is_lost() || world.crashed_in_window
            }),
            Property::always("7: after Gone the source has no tenant", |_, world: &World| {
                !world.source.gone || !world.source.has_tenant()
            }),
            Property::always("no number of a key is used for two texts", |_, world: &World| !world.reused),
            Property::always("only a genuine destination is accepted", |_, world: &World| !world.foreign),
            Property::eventually(
                "without crashes it ends in exactly one running copy",
                |_, world: &World| world.crashes > 0 || world.has_ended(),
            ),
            Property::sometimes("the destination runs", |_, world: &World| {
                world.target().is_some_and(|target| target.running && target.name() == "Done")
            }),
            Property::sometimes("the source keeps its tenant", |_, world: &World| {
                world.source.name() == "Aborted"
            }),
        ]
    }
}

/// All frames of an earlier migration of the same tenant between the same nodes, which went well.
fn recorded(setup: Setup, pages: u64) -> Frames {
    let mut judge = Judge { ignore_key: false };
    let mut all = Frames::new();
    let mut source = SourceNode::offer(setup, pages, 101, &mut all);
    let mut node = DestinationNode::fresh(setup, 102);
    let mut next = 0;
    loop {
        while next < all.len() {
            let (bytes, mut out) = (all[next].clone(), Frames::new());
            next += 1;
            let _ = match bytes[3] {
                1 => node.deliver(&bytes, &mut judge, &mut out),
                _ => source.deliver(&bytes, &mut judge, &mut out),
            };
            all.append(&mut out);
        }
        match source.name() {
            "Copying" => source.park(true, 103, &mut all),
            "AwaitStaged" => assert!(node.stage(&mut all)),
            "Staged" => {
                assert!(source.go());
                all.extend(source.commit.map(|commit| commit.to_vec()));
            }
            _ => {
                assert_eq!((source.name(), node.name()), ("Done", "Done"));
                return all;
            }
        }
    }
}
