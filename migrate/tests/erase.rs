//! Between the start of the lanes and the end nothing is allocated or given back at either end, because the tenant's heap is
//! what is being moved; and of the activation key nothing is left at the source once it is gone.

use nacre_migrate::crypto::{HkdfRoot, Root, X25519Pair};
use nacre_migrate::destination::{
    Change, Demand, Destination, Host, Memory, MemoryCommitted, NoMemory, Received, Stage,
};
use nacre_migrate::policy::{Binding, PeerPolicy, PeerRefused};
use nacre_migrate::source::{Due, Source, Tenant};
use nacre_migrate::vault::{DestinationVault, SourceVault};
use nacre_migrate::wire::Connection;
use nacre_migrate::{Commit, Content, DATA_OFFSET, Event, Place, Slot, Terms};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static TOUCHED: Cell<usize> = const { Cell::new(0) };
}

/// Counts what a thread does to its heap.
struct Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TOUCHED.set(TOUCHED.get() + 1);
        // SAFETY: the caller's promise. Zeros, so that all bytes of a block can be read.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        TOUCHED.set(TOUCHED.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type SendVault = SourceVault<X25519Pair, &'static mut [Slot]>;
type TakeVault = DestinationVault<X25519Pair, &'static mut [Slot]>;

/// What the activation key comes from.
const PARKING: u64 = 3;

struct Token;

impl Tenant for Token {
    fn extinguish(self) -> Result<(), Token> {
        Ok(())
    }
}

struct Trusting;

impl PeerPolicy for Trusting {
    fn judge(&mut self, _: &[u8], _: &Binding) -> Result<(), PeerRefused> {
        Ok(())
    }
}

#[derive(Default)]
struct Seen {
    data: u32,
    roots: [u8; 24],
}

impl Memory for Seen {
    fn change(&mut self, place: Place, change: Change<'_>) -> Result<(), NoMemory> {
        if let Change::Data(bytes) = change {
            self.data += 1;
            if place == Place::state(0) {
                self.roots.copy_from_slice(bytes);
            }
        }
        Ok(())
    }
}

fn slots() -> &'static mut [Slot] {
    Box::leak(vec![Slot::default(); 64].into())
}

fn page(number: u64) -> Place {
    Place::small(0x1000 * number).expect("aligned")
}

/// Whether the vault's memory holds this, read byte by byte.
fn holds(vault: *const SendVault, secret: &[u8; 32]) -> bool {
    let byte = |at: usize| {
        // SAFETY: the vault is leaked, nobody writes to it meanwhile, and its block was zeroed before it was used.
        unsafe { vault.cast::<u8>().add(at).read_volatile() }
    };
    let places = 0..size_of::<SendVault>() - 16;
    places.into_iter().any(|from| (0..16).all(|at| byte(from + at) == secret[at]))
}

type Copies = nacre_migrate::source::Copying<&'static mut SendVault>;
type Takes = nacre_migrate::destination::Receiving<&'static mut TakeVault>;
type Goes = nacre_migrate::source::Gone<&'static mut SendVault>;
type Waits = nacre_migrate::destination::Staged<&'static mut TakeVault>;

/// A frame's place: the only buffer there is.
type Frame = [u8; DATA_OFFSET + 4096 + 16];

fn put(frame: &mut Frame, bytes: &[u8]) -> usize {
    frame[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

/// Both ends of a migration with one lane, from the offer on.
struct Ends {
    vault: &'static mut SendVault,
    take: &'static mut TakeVault,
    slots: [&'static mut [Slot]; 2],
}

impl Ends {
    fn join(self, frame: &mut Frame) -> (Copies, Takes) {
        let random = &mut ChaCha20Rng::seed_from_u64(1);
        let terms = Terms { manifest: [0; 32], memory_bytes: 0, cpu_features: 0, lanes: 1, image: [0; 32] };
        let Ok((source, length)) = Source::<_, Token>::offer(self.vault, terms, random, frame) else {
            panic!()
        };
        let host = Host { manifest: [0; 32], memory_bytes: 0, cpu_features: 0, image: [0; 32] };
        let fresh = Destination::fresh(self.take, host);
        let step = fresh.receive(&mut frame[..length], &mut Trusting, random);
        let Destination::Answering(state) = step.state else { panic!() };
        let (destination, length) = state.prove(b"evidence", frame);
        let step = source.receive(&mut frame[..length.expect("it fits")], &mut Trusting);
        let Source::Proving(state) = step.state else { panic!() };
        let (source, length) = state.prove::<Token>(b"evidence", frame);
        let step = destination.receive(&mut frame[..length.expect("it fits")], &mut Trusting, random);
        let Destination::Attested(state) = step.state else { panic!() };
        let mut slots = self.slots.into_iter();
        let mut next = |_| slots.next().expect("one for each end");
        let (receiving, ready) = state.start(1, &mut next).expect("it is open");
        let length = put(frame, ready.frame());
        let step = source.receive(&mut frame[..length], &mut Trusting);
        let Source::Attested(state) = step.state else { panic!() };
        (state.start(next), receiving)
    }
}

/// A round of four pages.
fn round(mut source: Copies, destination: &mut Takes, memory: &mut Seen, frame: &mut Frame) -> Copies {
    source.begin_round().expect("there are rounds");
    let (here, there) = (source.lanes().next().expect("one"), destination.lanes().next().expect("one"));
    for number in 0..4 {
        here.mark(page(number), Content::Data).expect("there is room");
    }
    while let Due::Data(unit) = here.due() {
        let length = here.seal_data(unit, frame, 4096).expect("it is open");
        assert_eq!(there.receive(&mut frame[..length], memory), Ok(Received::Units(1)));
    }
    let length = here.seal_barrier(frame).expect("all was sent");
    there.receive(&mut frame[..length], memory).expect("it is due");
    let told = destination.round_received().expect("the round is complete");
    let length = put(frame, told.frame());
    let step = Source::<_, Token>::Copying(source).receive(&mut frame[..length], &mut Trusting);
    let Source::Copying(source) = step.state else { panic!() };
    source
}

/// Parks with one page dirty, which stays outstanding, and goes.
fn hand_over(
    source: Copies,
    mut destination: Takes,
    memory: &mut Seen,
    frame: &mut Frame,
    watch: impl Fn(bool),
) -> (Goes, Waits, Commit) {
    let Ok(mut parked) = source.park(Token, &mut ChaCha20Rng::seed_from_u64(PARKING)) else { panic!() };
    watch(true);
    let mut roots = [0x5a; 24];
    let (text, place) = roots.split_at_mut(8);
    place.copy_from_slice(&parked.lock(text).expect("once"));
    let (here, there) = (parked.lanes().next().expect("one"), destination.lanes().next().expect("one"));
    here.mark(page(1), Content::Data).expect("there is room");
    here.mark(Place::state(0), Content::Data).expect("there is room");
    let length = here.seal_outstanding(frame, |_| true).expect("it is open").expect("a page is dirty");
    there.receive(&mut frame[..length], memory).expect("it is due");
    let Due::Data(unit) = here.due() else { panic!() };
    frame[DATA_OFFSET..DATA_OFFSET + 24].copy_from_slice(&roots);
    let length = here.seal_data(unit, frame, 24).expect("it is open");
    there.receive(&mut frame[..length], memory).expect("it is due");
    let length = here.seal_barrier(frame).expect("all was sent");
    there.receive(&mut frame[..length], memory).expect("it is due");
    let Ok((waiting, last)) = parked.finish() else { panic!() };
    let length = put(frame, last.frame());
    let random = &mut ChaCha20Rng::seed_from_u64(2);
    let step = Destination::Receiving(destination).receive(&mut frame[..length], &mut Trusting, random);
    let Destination::Verifying(verifying) = step.state else { panic!() };
    let Stage::Staged(staged, said) = verifying.stage(MemoryCommitted) else { panic!() };
    let length = put(frame, said.frame());
    let step = Source::AwaitStaged(waiting).receive(&mut frame[..length], &mut Trusting);
    let Source::Staged(ready) = step.state else { panic!() };
    let Ok((gone, commit)) = ready.go() else { panic!() };
    watch(false);
    (gone, staged, commit)
}

/// Activates, fetches the page, and ends.
fn fetch(mut source: Goes, destination: Waits, mut commit: Commit, memory: &mut Seen, frame: &mut Frame) {
    let random = &mut ChaCha20Rng::seed_from_u64(2);
    let step = Destination::Staged(destination).receive(&mut commit, &mut Trusting, random);
    let Destination::Running(mut running) = step.state else { panic!() };
    let said = step.reply.expect("units are outstanding");
    let key = running.activation().expect("once");
    let (text, tag) = memory.roots.split_at_mut(8);
    key.open(text, (&*tag).try_into().expect("16 bytes")).expect("sealed with it");
    let (demand, length) = running.demand(page(1).address() + 7, frame).expect("it is open");
    assert!(matches!(demand, Demand::Ask(_)));
    let request = &mut frame[..length.expect("a request")];
    let unit = source.requests(Connection::Demand, request).expect("it is listed").next().expect("one");
    let length = source.answer(Connection::Demand, unit, frame).expect("it is open");
    let fetched =
        running.fetched(Connection::Demand, &mut frame[..length], memory).expect("it was asked for");
    assert_eq!((fetched.used, fetched.missing, memory.data), (1, 0, 6));
    let Ok((finished, complete)) = running.complete() else { panic!() };
    let length = put(frame, said.frame());
    let step = Source::<_, Token>::Gone(source).receive(&mut frame[..length], &mut Trusting);
    assert_eq!(step.event, Ok(Event::Running));
    let length = put(frame, complete.expect("it is open").frame());
    let step = step.state.receive(&mut frame[..length], &mut Trusting);
    assert!(matches!((step.state, step.event), (Source::Done, Ok(Event::Complete))));
    finished.close();
}

#[test]
fn the_heap_is_left_alone_and_the_activation_key_is_wiped() {
    let ends =
        Ends { vault: Box::leak(Box::default()), take: Box::leak(Box::default()), slots: [slots(), slots()] };
    let watched: *const SendVault = &raw const *ends.vault;
    let activation = HkdfRoot::generate(&mut ChaCha20Rng::seed_from_u64(PARKING));
    let watch = |there| assert_eq!(holds(watched, activation.expose()), there, "the activation key is there");
    let mut memory = Seen::default();
    let mut frame: Frame = [0; _];

    let before = TOUCHED.get();
    let (source, mut destination) = ends.join(&mut frame);
    let source = round(source, &mut destination, &mut memory, &mut frame);
    let (gone, staged, commit) = hand_over(source, destination, &mut memory, &mut frame, watch);
    fetch(gone, staged, commit, &mut memory, &mut frame);
    assert_eq!(TOUCHED.get(), before, "nothing was allocated or given back");
    // SAFETY: the vault is leaked and nobody uses it any more.
    assert!(unsafe { &*watched }.is_empty());
}
