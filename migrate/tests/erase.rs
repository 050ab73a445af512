//! Between the start of the lanes and the end nothing is allocated or given back at either end, because the tenant's heap is
//! what is being moved; and of the activation key nothing is left at the source once it is gone.

use nacre_migrate::crypto::{HkdfRoot, Root, X25519Pair};
use nacre_migrate::destination::{
    Change, Demand, Destination, Host, Memory, MemoryCommitted, NoMemory, Received, Stage,
};
use nacre_migrate::policy::{Binding, PeerPolicy, PeerRefused};
use nacre_migrate::source::{Source, Tenant};
use nacre_migrate::vault::{DestinationVault, SourceVault};
use nacre_migrate::wire::{Connection, MAX_HANDSHAKE_BYTES};
use nacre_migrate::{Content, DATA_OFFSET, Event, Place, Slot, Terms};
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
fn holds(vault: *const SendVault, secret: &[u8]) -> bool {
    let bytes = (0..size_of::<SendVault>()).map(|at| {
        // SAFETY: the vault is leaked, nobody writes to it meanwhile, and its block was zeroed before it was used.
        unsafe { vault.cast::<u8>().add(at).read_volatile() }
    });
    let bytes: Vec<u8> = bytes.collect();
    bytes.windows(16).any(|window| window == &secret[..16])
}

#[test]
fn the_heap_is_left_alone_and_the_activation_key_is_wiped() {
    let random = |seed| ChaCha20Rng::seed_from_u64(seed);
    let vault: &'static mut SendVault = Box::leak(Box::default());
    let watched: *const SendVault = vault;
    let take: &'static mut TakeVault = Box::leak(Box::default());
    let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
    let terms = Terms { manifest: [0; 32], memory_bytes: 0, cpu_features: 0, lanes: 1 };
    let (source, length) =
        Source::<_, Token>::offer(vault, terms, &mut random(1), &mut frame).expect("it fits");
    let fresh = Destination::fresh(take, Host { manifest: [0; 32], memory_bytes: 0, cpu_features: 0 });
    let (slots_here, slots_there) = (slots(), slots());
    let activation = HkdfRoot::generate(&mut random(3));
    let (mut random, mut parking) = (random(2), random(3));

    let before = TOUCHED.get();
    let step = fresh.receive(&mut frame[..length], &mut Trusting, &mut random);
    let Destination::Answering(state) = step.state else { panic!() };
    let (destination, length) = state.prove(b"evidence", &mut frame);
    let step = source.receive(&mut frame[..length.expect("it fits")], &mut Trusting);
    let Source::Proving(state) = step.state else { panic!() };
    let (source, length) = state.prove::<Token>(b"evidence", &mut frame);
    let step = destination.receive(&mut frame[..length.expect("it fits")], &mut Trusting, &mut random);
    let Destination::Attested(state) = step.state else { panic!() };
    let mut storage = Some(slots_there);
    let (mut receiving, ready) = state.start(1, |_| storage.take().expect("one lane")).expect("it is open");
    frame[..ready.frame().len()].copy_from_slice(ready.frame());
    let step = source.receive(&mut frame[..ready.frame().len()], &mut Trusting);
    let Source::Attested(state) = step.state else { panic!() };
    let mut storage = Some(slots_here);
    let mut copying = state.start(|_| storage.take().expect("one lane"));

    let mut memory = Seen::default();
    copying.begin_round().expect("there are rounds");
    for number in 0..4 {
        copying.lanes().next().expect("one").mark(page(number), Content::Data).expect("there is room");
    }
    loop {
        let lane = copying.lanes().next().expect("one");
        let Some(unit) = lane.next() else { break };
        let length = lane.seal_data(unit, &mut frame, 4096).expect("it is open");
        let lane = receiving.lanes().next().expect("one");
        assert_eq!(lane.receive(&mut frame[..length], &mut memory), Ok(Received::Units(1)));
    }
    let length = copying.lanes().next().expect("one").seal_barrier(&mut frame).expect("all was sent");
    receiving.lanes().next().expect("one").receive(&mut frame[..length], &mut memory).expect("it is due");
    let told = receiving.round_received().expect("the round is complete");
    let mut reply = [0; 256];
    let put = |reply: &mut [u8; 256], bytes: &[u8]| {
        reply[..bytes.len()].copy_from_slice(bytes);
        bytes.len()
    };
    let length = put(&mut reply, told.frame());
    let step = Source::<_, Token>::Copying(copying).receive(&mut reply[..length], &mut Trusting);
    let Source::Copying(copying) = step.state else { panic!() };

    let Ok(mut parked) = copying.park(Token, &mut parking) else { panic!() };
    assert!(holds(watched, activation.expose()), "the search would find it");
    let mut roots = [0x5a; 24];
    let (text, place) = roots.split_at_mut(8);
    place.copy_from_slice(&parked.lock(text).expect("once"));
    let lane = parked.lanes().next().expect("one");
    lane.mark(page(1), Content::Data).expect("there is room");
    lane.mark(Place::state(0), Content::Data).expect("there is room");
    let length = lane.seal_outstanding(&mut frame).expect("it is open").expect("a page is dirty");
    receiving.lanes().next().expect("one").receive(&mut frame[..length], &mut memory).expect("it is due");
    let lane = parked.lanes().next().expect("one");
    let unit = lane.next().expect("the roots");
    frame[DATA_OFFSET..DATA_OFFSET + 24].copy_from_slice(&roots);
    let length = lane.seal_data(unit, &mut frame, 24).expect("it is open");
    receiving.lanes().next().expect("one").receive(&mut frame[..length], &mut memory).expect("it is due");
    let length = parked.lanes().next().expect("one").seal_barrier(&mut frame).expect("all was sent");
    receiving.lanes().next().expect("one").receive(&mut frame[..length], &mut memory).expect("it is due");
    let Ok((waiting, last)) = parked.finish() else { panic!() };
    let length = put(&mut reply, last.frame());
    let step = Destination::Receiving(receiving).receive(&mut reply[..length], &mut Trusting, &mut random);
    let Destination::Verifying(verifying) = step.state else { panic!() };
    let Stage::Staged(staged, said) = verifying.stage(MemoryCommitted) else { panic!() };
    let length = put(&mut reply, said.frame());
    let step = Source::AwaitStaged(waiting).receive(&mut reply[..length], &mut Trusting);
    let Source::Staged(ready) = step.state else { panic!() };
    let Ok((mut gone, mut commit)) = ready.go() else { panic!() };
    assert_eq!(TOUCHED.get(), before, "nothing was allocated or given back");
    assert!(!holds(watched, activation.expose()), "the activation key is wiped");

    let before = TOUCHED.get();
    let step = Destination::Staged(staged).receive(&mut commit, &mut Trusting, &mut random);
    let Destination::Running(mut running) = step.state else { panic!() };
    let key = running.activation().expect("once");
    let (text, tag) = memory.roots.split_at_mut(8);
    key.open(text, (&*tag).try_into().expect("16 bytes")).expect("sealed with it");
    drop(key);
    let (demand, length) = running.demand(0x1007, &mut frame).expect("it is open");
    assert!(matches!(demand, Demand::Ask(_)));
    let mut requests =
        gone.requests(Connection::Demand, &mut frame[..length.expect("a request")]).expect("listed");
    let unit = requests.next().expect("one");
    let length = gone.answer(Connection::Demand, unit, &mut frame).expect("it is open");
    let fetched =
        running.fetched(Connection::Demand, &mut frame[..length], &mut memory).expect("it was asked for");
    assert_eq!((fetched.used, fetched.missing, memory.data), (1, 0, 6));
    let Ok((finished, complete)) = running.complete() else { panic!() };
    let length = put(&mut reply, complete.expect("it is open").frame());
    // Running was said before it.
    let said = step.reply.expect("units were outstanding");
    let mut running = [0; 256];
    let said_length = put(&mut running, said.frame());
    let step = Source::<_, Token>::Gone(gone).receive(&mut running[..said_length], &mut Trusting);
    assert_eq!(step.event, Ok(Event::Running));
    let step = step.state.receive(&mut reply[..length], &mut Trusting);
    assert!(matches!((step.state, step.event), (Source::Done, Ok(Event::Complete))));
    finished.close();
    assert_eq!(TOUCHED.get(), before, "nothing was allocated or given back");
    // SAFETY: the vault is leaked and nobody uses it any more.
    assert!(unsafe { &*watched }.is_empty());
}
