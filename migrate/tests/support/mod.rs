//! A source node and a destination node around the crate's state machines, with a tenant whose pages each hold one byte over and
//! over. The test that includes this says by `crate::Suite` which cryptography they use.
//!
//! Nothing here decides what the protocol decides: it does what a guest's agent does at each event.

#![allow(dead_code, reason = "each test that includes this uses a part of it")]

pub mod world;

use crate::Suite;
use nacre_migrate::crypto::Pair;
use nacre_migrate::destination::{Change, Demand, Host, Memory, MemoryCommitted, NoMemory, Received, Stage};
use nacre_migrate::policy::{Binding, PeerPolicy, PeerRefused};
use nacre_migrate::source::{Aborted, Due, Tenant};
use nacre_migrate::vault::{DestinationVault, SourceVault};
use nacre_migrate::wire::{Connection, HEADER_BYTES, Header, Kind, LaneId, MAX_HANDSHAKE_BYTES, TAG_BYTES};
use nacre_migrate::{
    Activation, Commit, Content, DATA_OFFSET, Destination, Event, Place, Slot, Source, Terms, Unit,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::{BTreeMap, BTreeSet};

pub type Slots = Box<[Slot]>;
pub type HeldSource = Box<SourceVault<Suite, Slots>>;
pub type HeldDestination = Box<DestinationVault<Suite, Slots>>;
pub type Frames = Vec<Vec<u8>>;

/// The piece of state with the sealed roots.
pub const ROOTS: Place = Place::state(0);
const ROOT_BYTES: usize = 8;
const MANIFEST: [u8; 32] = [9; 32];
const IMAGE: [u8; 32] = [8; 32];

/// The small page with this number, on another lane for each.
pub fn page(number: u64) -> Place {
    Place::small(0x100_0000_0000 + number * (2 << 20) + number * 4096).expect("aligned")
}

/// The handle of a parked tenant. `honest` or not, extinguishing succeeds if the vCPUs acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    pub acknowledged: bool,
}

impl Tenant for Token {
    fn extinguish(self) -> Result<(), Token> {
        if self.acknowledged { Ok(()) } else { Err(self) }
    }
}

/// Evidence that is good for exactly one binding, and that only a genuine guest could have made.
pub fn evidence(binding: &Binding) -> Vec<u8> {
    let Binding { end, key, nonce, id, manifest } = binding;
    [b"genuine ", &[*end as u8][..], key, nonce, id, manifest].concat()
}

/// Judges such evidence.
#[derive(Clone, Copy, Debug)]
pub struct Judge {
    /// A mutation: it does not look at the key.
    pub ignore_key: bool,
}

impl PeerPolicy for Judge {
    fn judge(&mut self, found: &[u8], binding: &Binding) -> Result<(), PeerRefused> {
        let mut expected = evidence(binding);
        if self.ignore_key && found.len() == expected.len() {
            expected[9..41].copy_from_slice(&found[9..41]);
        }
        if found == expected { Ok(()) } else { Err(PeerRefused::Claims("binding")) }
    }
}

/// How the two nodes are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setup {
    pub lanes: u8,
    pub slots: usize,
    /// Whether pages may stay outstanding.
    pub outstanding: bool,
}

/// The source's node: the guest with its tenant.
pub struct SourceNode {
    pub setup: Setup,
    pub machine: Option<Source<HeldSource, Token>>,
    pub memory: BTreeMap<Place, u8>,
    pub dirty: BTreeSet<Place>,
    /// The sealed roots and their tag, once the tenant was parked.
    pub roots: Option<Vec<u8>>,
    /// The tenant was extinguished.
    pub gone: bool,
    pub commit: Option<Commit>,
}

fn slots(setup: &Setup) -> Slots {
    vec![Slot::default(); setup.slots].into()
}

pub fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

impl SourceNode {
    /// With a tenant of so many pages, and an offer.
    pub fn offer(setup: Setup, pages: u64, seed: u64, out: &mut Frames) -> SourceNode {
        let memory: BTreeMap<_, _> = (0..pages).map(|number| (page(number), 1)).collect();
        let (memory_bytes, cpu_features, lanes) = (1 << 20, 3, setup.lanes);
        let terms = Terms { manifest: MANIFEST, memory_bytes, cpu_features, lanes, image: IMAGE };
        let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
        let offered = Source::offer(HeldSource::default(), terms, &mut random(seed), &mut frame);
        let (machine, length) = offered.expect("the terms are good");
        frame.truncate(length);
        out.push(frame);
        let dirty = memory.keys().copied().collect();
        SourceNode { setup, machine: Some(machine), memory, dirty, roots: None, gone: false, commit: None }
    }

    pub fn name(&self) -> &'static str {
        self.machine.as_ref().map_or("crashed", Source::name)
    }

    /// Whether tasks can run here.
    pub fn is_parked(&self) -> bool {
        matches!(self.machine, None | Some(Source::Parked(_) | Source::AwaitStaged(_) | Source::Staged(_)))
            || self.gone
    }

    /// The tenant writes.
    pub fn write(&mut self, place: Place, value: u8) {
        assert!(!self.is_parked(), "tasks that are parked write nothing");
        self.memory.insert(place, value);
        self.dirty.insert(place);
    }

    /// Anything that came for the source. An error has changed nothing.
    pub fn deliver(&mut self, frame: &[u8], judge: &mut Judge, out: &mut Frames) -> Result<Event, String> {
        let (header, _) = Header::split(frame).map_err(|error| error.to_string())?;
        let mut frame = frame.to_vec();
        if header.kind == Kind::Fetch {
            return self.answer(header.connection, &mut frame, out);
        }
        let step = self.machine.take().ok_or("crashed")?.receive(&mut frame, judge);
        self.machine = Some(step.state);
        out.extend(step.reply.map(|reply| reply.frame().to_vec()));
        let event = step.event.map_err(|error| error.to_string())?;
        match event {
            Event::Prove(binding) => self.prove(&binding, out),
            Event::Attested(_) => self.start(),
            Event::Resumed(Connection::Pages(_)) => {
                self.pump(out);
                self.finish(out);
            }
            _ => {}
        }
        Ok(event)
    }

    fn prove(&mut self, binding: &Binding, out: &mut Frames) {
        let Some(Source::Proving(state)) = self.machine.take() else { panic!("it wants to prove itself") };
        let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
        let (machine, length) = state.prove(&evidence(binding), &mut frame);
        self.machine = Some(machine);
        if let Ok(length) = length {
            frame.truncate(length);
            out.push(frame);
        }
    }

    fn start(&mut self) {
        let Some(Source::Attested(state)) = self.machine.take() else { panic!("it is attested") };
        let setup = self.setup;
        self.machine = Some(Source::Copying(state.start(|_| slots(&setup))));
    }

    fn lanes(&mut self) -> Vec<&mut nacre_migrate::source::SourceLane<KeyOf, Slots>> {
        match &mut self.machine {
            Some(Source::Copying(state)) => state.lanes().collect(),
            Some(Source::Parked(state)) => state.lanes().collect(),
            Some(Source::AwaitStaged(state)) => state.lanes().collect(),
            _ => Vec::new(),
        }
    }

    fn mark_dirty(&mut self) {
        let lanes = usize::from(self.setup.lanes);
        for place in std::mem::take(&mut self.dirty) {
            let lane = place.lane(lanes).index();
            self.lanes()[lane].mark(place, Content::Data).expect("there is room");
        }
    }

    /// A round while tasks run.
    pub fn round(&mut self, out: &mut Frames) {
        let Some(Source::Copying(state)) = &mut self.machine else { return };
        state.begin_round().expect("there are rounds left");
        self.mark_dirty();
        self.pump(out);
    }

    /// Sends what lanes have to send, and the end of the round; a lane that can't is left as it is.
    pub fn pump(&mut self, out: &mut Frames) {
        let parked = matches!(self.machine, Some(Source::Parked(_) | Source::AwaitStaged(_)));
        let outstanding = parked && self.setup.outstanding;
        let (memory, roots) = (self.memory.clone(), self.roots.clone());
        for lane in self.lanes() {
            let mut frame = vec![0; DATA_OFFSET + 4096 + TAG_BYTES];
            let mut sent = Frames::new();
            let result = (|| {
                loop {
                    if outstanding && let Some(length) = lane.seal_outstanding(&mut frame, |_| true)? {
                        sent.push(frame[..length].to_vec());
                        continue;
                    }
                    let length = match lane.due() {
                        Due::Barrier => break,
                        Due::Empty => lane.seal_empty(&mut frame)?.expect("some are due"),
                        Due::Piece(..) => panic!("all pages are small"),
                        Due::Data(unit) => {
                            let bytes = content(&memory, roots.as_deref(), unit, &mut frame[DATA_OFFSET..]);
                            let zero = frame[DATA_OFFSET..DATA_OFFSET + bytes].iter().all(|byte| *byte == 0);
                            if zero && unit.place != ROOTS && lane.found_zero(unit) {
                                continue;
                            }
                            lane.seal_data(unit, &mut frame, bytes)?
                        }
                    };
                    sent.push(frame[..length].to_vec());
                }
                let length = lane.seal_barrier(&mut frame)?;
                sent.push(frame[..length].to_vec());
                Ok::<_, nacre_migrate::source::LaneError>(())
            })();
            // Without an agreed connection it goes on once there is one.
            let _ = result;
            out.append(&mut sent);
        }
    }

    /// Parks the tenant, sends the rest or lists it.
    pub fn park(&mut self, acknowledged: bool, seed: u64, out: &mut Frames) {
        let Some(Source::Copying(state)) = self.machine.take() else { panic!("it is copying") };
        let Ok(mut parked) = state.park(Token { acknowledged }, &mut random(seed)) else {
            panic!("there are rounds left")
        };
        let mut roots = [0x5a; ROOT_BYTES];
        let tag = parked.lock(&mut roots).expect("it is the first time");
        parked.lock(&mut [0; 1]).expect_err("it seals once");
        self.machine = Some(Source::Parked(parked));
        self.roots = Some([&roots[..], &tag].concat());
        self.dirty.insert(ROOTS);
        self.mark_dirty();
        self.pump(out);
        self.finish(out);
    }

    /// Makes the final manifest, if all lanes are done.
    pub fn finish(&mut self, out: &mut Frames) {
        self.machine = match self.machine.take() {
            Some(Source::Parked(state)) => Some(match state.finish() {
                Ok((state, reply)) => {
                    out.push(reply.frame().to_vec());
                    Source::AwaitStaged(state)
                }
                Err((state, _)) => Source::Parked(state),
            }),
            other => other,
        };
    }

    /// Goes, if it may and the vCPUs acknowledge.
    pub fn go(&mut self) -> bool {
        let Some(Source::Staged(state)) = self.machine.take() else { panic!("the destination is staged") };
        match state.go() {
            Ok((state, commit)) => {
                assert_eq!(*state.commit(), commit);
                self.machine = Some(Source::Gone(state));
                self.commit = Some(commit);
                self.gone = true;
            }
            Err(state) => self.machine = Some(Source::Staged(state)),
        }
        self.gone
    }

    /// Cancels; `false` if it was too late.
    pub fn cancel(&mut self, out: &mut Frames) -> bool {
        let Some(machine) = self.machine.take() else { return false };
        match machine.cancel(nacre_migrate::message::Reason::Cancelled) {
            Ok((aborted, reply)) => {
                self.machine = Some(Source::Aborted(aborted));
                out.extend(reply.map(|reply| reply.frame().to_vec()));
                true
            }
            Err(machine) => {
                self.machine = Some(machine);
                false
            }
        }
    }

    pub fn resume(&mut self, connection: Connection, out: &mut Frames) -> bool {
        let Some(machine) = &mut self.machine else { return false };
        let frame = machine.resume(connection);
        out.extend(frame.as_ref().ok().map(|frame| frame.frame().to_vec()));
        frame.is_ok()
    }

    fn answer(
        &mut self,
        connection: Connection,
        frame: &mut [u8],
        out: &mut Frames,
    ) -> Result<Event, String> {
        macro_rules! answer {
            ($state:ident) => {{
                let units = $state.requests(connection, frame).map_err(|error| error.to_string())?;
                for unit in units.collect::<Vec<_>>() {
                    let mut frame = vec![0; DATA_OFFSET + 4096 + TAG_BYTES];
                    content(&self.memory, None, unit, &mut frame[DATA_OFFSET..]);
                    let length =
                        $state.answer(connection, unit, &mut frame).map_err(|error| error.to_string())?;
                    frame.truncate(length);
                    out.push(frame);
                }
                Ok(Event::Repeated)
            }};
        }
        match &mut self.machine {
            Some(Source::Gone(state)) => answer!(state),
            Some(Source::Serving(state)) => answer!(state),
            _ => Err(format!("nobody serves in the state {}", self.name())),
        }
    }

    /// The tenant is here: running, or parked and could go on.
    pub fn has_tenant(&self) -> bool {
        match &self.machine {
            None => false,
            Some(Source::Aborted(Aborted { tenant, .. })) => tenant.is_some() || self.roots.is_none(),
            Some(Source::Gone(_) | Source::Serving(_) | Source::Done) => false,
            Some(_) => !self.gone,
        }
    }
}

type KeyOf = nacre_migrate::vault::KeyOf<Suite>;

/// Writes a unit's content; returns its bytes.
fn content(memory: &BTreeMap<Place, u8>, roots: Option<&[u8]>, unit: Unit, out: &mut [u8]) -> usize {
    if unit.place == ROOTS {
        let roots = roots.expect("the tenant is parked");
        out[..roots.len()].copy_from_slice(roots);
        return roots.len();
    }
    let bytes = unit.place.bytes();
    out[..bytes].fill(memory[&unit.place]);
    bytes
}

/// What a page holds at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    Byte(u8),
    Outstanding,
}

/// The destination's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cells {
    pub pages: BTreeMap<Place, Cell>,
    pub roots: Vec<u8>,
}

impl Memory for Cells {
    fn change(&mut self, place: Place, change: Change<'_>) -> Result<(), NoMemory> {
        if place == ROOTS {
            let Change::Data(bytes) = change else { panic!("the roots travel") };
            self.roots = bytes.to_vec();
            return Ok(());
        }
        let cell = match change {
            Change::Data(bytes) => {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a page is whole");
                Cell::Byte(bytes[0])
            }
            Change::Piece(..) => panic!("all pages are small"),
            Change::Zero => Cell::Byte(0),
            Change::Outstanding => Cell::Outstanding,
            Change::Absent => {
                self.pages.remove(&place);
                return Ok(());
            }
        };
        self.pages.insert(place, cell);
        Ok(())
    }
}

/// A destination's node.
pub struct DestinationNode {
    pub setup: Setup,
    pub machine: Option<Destination<HeldDestination>>,
    pub memory: Cells,
    /// Its tasks run.
    pub running: bool,
    /// Its public key, once it has one.
    pub key: Option<[u8; 32]>,
    pub seed: u64,
}

impl DestinationNode {
    pub fn fresh(setup: Setup, seed: u64) -> DestinationNode {
        let host = Host { manifest: MANIFEST, memory_bytes: 1 << 30, cpu_features: 7, image: IMAGE };
        let machine = Some(Destination::fresh(HeldDestination::default(), host));
        DestinationNode { setup, machine, memory: Cells::default(), running: false, key: None, seed }
    }

    pub fn name(&self) -> &'static str {
        self.machine.as_ref().map_or("crashed", Destination::name)
    }

    /// Anything that came for the destination. An error has changed nothing, unless it destroyed it.
    pub fn deliver(&mut self, frame: &[u8], judge: &mut Judge, out: &mut Frames) -> Result<Event, String> {
        let (header, _) = Header::split(frame).map_err(|error| error.to_string())?;
        let mut frame = frame.to_vec();
        match (header.kind, header.connection) {
            (Kind::Data, Connection::Demand | Connection::Fetch(_)) => {
                return self.fetched(header.connection, &mut frame, out);
            }
            (Kind::Data | Kind::Empty | Kind::Outstanding | Kind::Barrier, Connection::Pages(lane)) => {
                return self.page(lane, &mut frame, out);
            }
            _ => {}
        }
        let mut random = random(self.seed);
        let step = self.machine.take().ok_or("crashed")?.receive(&mut frame, judge, &mut random);
        self.machine = Some(step.state);
        out.extend(step.reply.map(|reply| reply.frame().to_vec()));
        let event = step.event.map_err(|error| error.to_string())?;
        match event {
            Event::Prove(binding) => self.prove(&binding, out),
            Event::Attested(_) => self.start(out),
            Event::Running => self.run(out),
            Event::Resumed(Connection::Control) => {
                let frame = self.machine.as_mut().and_then(Destination::say_again);
                out.extend(frame.map(|frame| frame.frame().to_vec()));
            }
            Event::Resumed(Connection::Demand | Connection::Fetch(_)) => self.ask(out),
            _ => {}
        }
        Ok(event)
    }

    fn prove(&mut self, binding: &Binding, out: &mut Frames) {
        let Some(Destination::Answering(state)) = self.machine.take() else {
            panic!("it wants to prove itself")
        };
        self.key = Some(binding.key);
        let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
        let (machine, length) = state.prove(&evidence(binding), &mut frame);
        frame.truncate(length.expect("there is room"));
        self.machine = Some(machine);
        out.push(frame);
    }

    fn start(&mut self, out: &mut Frames) {
        let Some(Destination::Attested(state)) = self.machine.take() else { panic!("it is attested") };
        let setup = self.setup;
        let (machine, reply) = state.start(1 << 30, |_| slots(&setup)).expect("it was just opened");
        self.machine = Some(Destination::Receiving(machine));
        out.push(reply.frame().to_vec());
    }

    fn page(&mut self, lane: LaneId, frame: &mut [u8], out: &mut Frames) -> Result<Event, String> {
        let at = |error: &dyn std::error::Error| error.to_string();
        let received = match &mut self.machine {
            Some(Destination::Receiving(state)) => {
                let lane = state.lanes().nth(lane.index()).ok_or("no such lane")?;
                lane.receive(frame, &mut self.memory)
            }
            Some(Destination::Verifying(state)) => {
                let lane = state.lanes().nth(lane.index()).ok_or("no such lane")?;
                lane.receive(frame, &mut self.memory)
            }
            _ => return Err(format!("no pages in the state {}", self.name())),
        };
        match received {
            Ok(Received::Barrier(round, _)) => {
                if let Some(Destination::Receiving(state)) = &mut self.machine {
                    out.extend(state.round_received().map(|reply| reply.frame().to_vec()));
                }
                Ok(Event::RoundReceived(round))
            }
            Ok(Received::Units(_)) => Ok(Event::Repeated),
            Err(nacre_migrate::destination::ReceiveError::Record(error)) => Err(at(&error)),
            Err(error) => panic!("an honest source's record was refused: {error}"),
        }
    }

    /// Says `Staged`, if everything is here; `false` if not.
    pub fn stage(&mut self, out: &mut Frames) -> bool {
        let state = match self.machine.take() {
            Some(Destination::Verifying(state)) => state,
            other => {
                self.machine = other;
                return false;
            }
        };
        let (machine, frame, staged) = match state.stage(MemoryCommitted) {
            Stage::Staged(state, frame) => (Destination::Staged(state), Some(frame), true),
            Stage::NotYet(state) => (Destination::Verifying(state), None, false),
            Stage::Destroyed(ended, frame) => (Destination::Destroyed(ended), frame, true),
        };
        self.machine = Some(machine);
        out.extend(frame.map(|frame| frame.frame().to_vec()));
        staged
    }

    fn run(&mut self, out: &mut Frames) {
        let Some(Destination::Running(state)) = &mut self.machine else { panic!("it runs") };
        let activation: Activation<_> = state.activation().expect("it is yielded");
        assert!(state.activation().is_none(), "it is yielded once");
        let (roots, tag) = self.memory.roots.split_at_mut(ROOT_BYTES);
        let tag = (&*tag).try_into().expect("the roots have a tag");
        activation.open(roots, tag).expect("the roots were sealed with this key");
        assert_eq!(roots, [0x5a; ROOT_BYTES]);
        assert!(!self.running, "nothing is activated twice");
        self.running = true;
        self.ask(out);
        self.complete(out);
    }

    /// A task touches the first page that is missing; the background asks for the others.
    pub fn ask(&mut self, out: &mut Frames) {
        let Some(Destination::Running(state)) = &mut self.machine else { return };
        let mut frame = vec![0; HEADER_BYTES + 24 * 4 + TAG_BYTES];
        let missing = self.memory.pages.iter().find(|(_, cell)| **cell == Cell::Outstanding);
        if let Some((place, _)) = missing
            && let Ok((Demand::Ask(_), Some(length))) = state.demand(place.address() + 17, &mut frame)
        {
            out.push(frame[..length].to_vec());
        }
        for lane in (0..usize::from(self.setup.lanes)).filter_map(LaneId::new) {
            if let Ok(Some(length)) = state.background(lane, &mut frame) {
                out.push(frame[..length].to_vec());
            }
        }
    }

    fn fetched(
        &mut self,
        connection: Connection,
        frame: &mut [u8],
        out: &mut Frames,
    ) -> Result<Event, String> {
        let Some(Destination::Running(state)) = &mut self.machine else {
            return Err(format!("nothing is fetched in the state {}", self.name()));
        };
        state.fetched(connection, frame, &mut self.memory).map_err(|error| error.to_string())?;
        self.ask(out);
        self.complete(out);
        Ok(Event::Repeated)
    }

    fn complete(&mut self, out: &mut Frames) {
        self.machine = match self.machine.take() {
            Some(Destination::Running(state)) => Some(match state.complete() {
                Ok((state, reply)) => {
                    out.extend(reply.map(|reply| reply.frame().to_vec()));
                    Destination::Done(state)
                }
                Err(state) => Destination::Running(state),
            }),
            other => other,
        };
    }

    /// Units that are missing while it runs.
    pub fn missing(&self) -> u64 {
        match &self.machine {
            Some(Destination::Running(state)) => state.missing().0,
            _ => 0,
        }
    }

    /// Whether every page here that is not outstanding holds what it held when the source was parked.
    pub fn is_faithful(&self, source: &BTreeMap<Place, u8>) -> bool {
        let same = source.iter().all(|(place, value)| match self.memory.pages.get(place) {
            Some(Cell::Byte(found)) => found == value,
            Some(Cell::Outstanding) => self.missing() > 0,
            None => false,
        });
        same && self.memory.pages.len() == source.len()
    }
}

/// A public key that no genuine guest has.
pub fn foreign_key() -> [u8; 32] {
    Suite::generate(&mut random(0xbad)).public()
}
