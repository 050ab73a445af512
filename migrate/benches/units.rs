//! What a unit costs at either end, one thread, without reading or writing the tenant's memory: marking, sealing, opening, the ledgers,
//! a page that splits; and the whole handshake without evidence.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nacre_migrate::crypto::X25519Pair as Suite;
use nacre_migrate::destination::{Change, Destination, Host, Memory, NoMemory};
use nacre_migrate::policy::{Binding, PeerPolicy, PeerRefused};
use nacre_migrate::source::{Copying, Due, Source, Tenant};
use nacre_migrate::vault::{DestinationVault, SourceVault};
use nacre_migrate::wire::{MAX_FRAME_BYTES, MAX_HANDSHAKE_BYTES};
use nacre_migrate::{Content, LARGE_BYTES, Place, SMALL_BYTES, Slot, Terms};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::hint::black_box;

/// 8 GiB in small pages, a third more, and some for what comes beside.
const SLOTS: usize = 3_200_000;

type Held = Box<SourceVault<Suite, Vec<Slot>>>;
type Taken = nacre_migrate::destination::Receiving<Box<DestinationVault<Suite, Vec<Slot>>>>;

struct NoTenant;

impl Tenant for NoTenant {
    fn extinguish(self) -> Result<(), NoTenant> {
        Ok(())
    }
}

struct Trusting;

impl PeerPolicy for Trusting {
    fn judge(&mut self, _: &[u8], _: &Binding) -> Result<(), PeerRefused> {
        Ok(())
    }
}

struct Nowhere;

impl Memory for Nowhere {
    fn change(&mut self, _: Place, change: Change<'_>) -> Result<(), NoMemory> {
        black_box(change);
        Ok(())
    }
}

/// Both ends, ready for rounds.
fn joined(slots: usize) -> (Copying<Held>, Taken) {
    let mut random = ChaCha20Rng::seed_from_u64(1);
    let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
    let terms = Terms { manifest: [0; 32], memory_bytes: 0, cpu_features: 0, lanes: 1, image: [0; 32] };
    let (source, length) =
        Source::<Held, NoTenant>::offer(Box::default(), terms, &mut random, &mut frame).expect("good terms");
    let fresh = Destination::fresh(
        Box::default(),
        Host { manifest: [0; 32], memory_bytes: 0, cpu_features: 0, image: [0; 32] },
    );
    let step = fresh.receive(&mut frame[..length], &mut Trusting, &mut random);
    let Destination::Answering(state) = step.state else { panic!() };
    let (destination, length) = state.prove(b"evidence", &mut frame);
    let step = source.receive(&mut frame[..length.expect("it fits")], &mut Trusting);
    let Source::Proving(state) = step.state else { panic!() };
    let (source, length) = state.prove::<NoTenant>(b"evidence", &mut frame);
    let step = destination.receive(&mut frame[..length.expect("it fits")], &mut Trusting, &mut random);
    let Destination::Attested(state) = step.state else { panic!() };
    let (receiving, ready) = state.start(1, |_| vec![Slot::default(); slots]).expect("it is open");
    let step = source.receive(&mut ready.frame().to_vec(), &mut Trusting);
    let Source::Attested(state) = step.state else { panic!() };
    (state.start(|_| vec![Slot::default(); slots]), receiving)
}

fn small(number: u64) -> Place {
    Place::small(number * SMALL_BYTES as u64).expect("aligned")
}

fn units(c: &mut Criterion) {
    let (mut source, mut destination) = joined(SLOTS);
    let mut frame = vec![0; MAX_FRAME_BYTES];
    source.begin_round().expect("there are rounds");
    for number in 0..2 << 20 {
        source.lanes().next().expect("one").mark(small(number), Content::Zero).expect("there is room");
    }
    while let Some(length) = source.lanes().next().and_then(|lane| lane.seal_empty(&mut frame).expect("open"))
    {
        let lane = destination.lanes().next().expect("one");
        lane.receive(&mut frame[..length], &mut Nowhere).expect("it is due");
    }
    let mut group = c.benchmark_group("8 GiB in the tables");
    let mut next = 0_u64;
    group.bench_function("mark and list as zero, both ends", |b| {
        b.iter(|| {
            source.begin_round().expect("there are rounds");
            next = (next + 7919) % (2 << 20);
            let lane = source.lanes().next().expect("one");
            lane.mark(small(next), Content::Zero).expect("there is room");
            let length = lane.seal_empty(&mut frame).expect("open").expect("one is queued");
            let lane = destination.lanes().next().expect("one");
            lane.receive(&mut frame[..length], &mut Nowhere).expect("it is due");
        });
    });
    for (what, bytes, step) in [("small", SMALL_BYTES, 1), ("large", LARGE_BYTES, 512)] {
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut next = 4_u64 << 20;
        group.bench_function(format!("{what}: mark, seal, open, enter"), |b| {
            b.iter(|| {
                source.begin_round().expect("there are rounds");
                next = (4 << 20) + (next + step) % (64 << 9);
                next -= next % step;
                let place =
                    Place::large(next * SMALL_BYTES as u64).filter(|_| step > 1).unwrap_or(small(next));
                let lane = source.lanes().next().expect("one");
                lane.mark(place, Content::Data).expect("there is room");
                loop {
                    let lane = source.lanes().next().expect("one");
                    let length = match lane.due() {
                        Due::Data(unit) => lane.seal_data(unit, &mut frame, bytes).expect("open"),
                        Due::Piece(..) => lane.seal_piece(&mut frame).expect("open"),
                        Due::Empty => panic!(),
                        Due::Barrier => break,
                    };
                    let lane = destination.lanes().next().expect("one");
                    lane.receive(&mut frame[..length], &mut Nowhere).expect("it is due");
                }
            });
        });
    }
}

fn splitting(c: &mut Criterion) {
    let prepared = || {
        let (mut source, _) = joined(4096);
        source.begin_round().expect("there are rounds");
        let lane = source.lanes().next().expect("one");
        lane.mark(Place::large(0).expect("aligned"), Content::Data).expect("there is room");
        let Due::Piece(..) = lane.due() else { panic!() };
        source.begin_round().expect("there are rounds");
        source
    };
    c.bench_function("split a large page", |b| {
        b.iter_batched(
            prepared,
            |mut source| {
                source.lanes().next().expect("one").mark(small(3), Content::Data).expect("there is room");
                source
            },
            BatchSize::LargeInput,
        );
    });
    c.bench_function("handshake of both ends, without evidence", |b| b.iter(|| joined(16)));
}

criterion_group!(benches, units, splitting);
criterion_main!(benches);
