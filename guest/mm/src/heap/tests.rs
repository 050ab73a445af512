//! Against a model, with real threads, and with threads stopped before any of their accesses.

use super::*;
use crate::stepping::Gate;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

thread_local! {
    static SPREAD: Cell<usize> = const { Cell::new(0) };
}

/// Chunks that a test has room for.
const TEST_CHUNKS: usize = 64;

struct Machine {
    headers: Vec<Header>,
    /// Length by start of what is mapped.
    mapped: Mutex<BTreeMap<u64, u64>>,
    limit_bytes: u64,
    settled: core::sync::atomic::AtomicU64,
}

impl Machine {
    fn new(limit_bytes: u64) -> Machine {
        Machine {
            headers: (0..TEST_CHUNKS.min((limit_bytes / CHUNK_BYTES) as usize))
                .map(|_| Header::new())
                .collect(),
            mapped: Mutex::new(BTreeMap::new()),
            limit_bytes,
            settled: core::sync::atomic::AtomicU64::new(u64::MAX),
        }
    }

    fn mapped_bytes(&self) -> u64 {
        self.mapped.lock().unwrap().values().sum()
    }
}

impl HeapMemory for Machine {
    fn header(&self, chunk: usize) -> &Header {
        assert!(
            self.mapped.lock().unwrap().contains_key(&(chunk as u64 * CHUNK_BYTES)),
            "the header of chunk {chunk} is looked at before it is mapped"
        );
        &self.headers[chunk]
    }

    fn map(&self, offset: u64, bytes: u64, _: bool) -> bool {
        assert_eq!((offset % LARGE_PAGE_BYTES, bytes % LARGE_PAGE_BYTES), (0, 0));
        let mut mapped = self.mapped.lock().unwrap();
        if bytes > self.limit_bytes || mapped.values().sum::<u64>() + bytes > self.limit_bytes {
            return false;
        }
        if offset < CHUNKS as u64 * CHUNK_BYTES && offset / CHUNK_BYTES >= self.headers.len() as u64 {
            return false;
        }
        assert!(mapped.range(..offset + bytes).next_back().is_none_or(|(start, len)| start + len <= offset));
        mapped.insert(offset, bytes);
        true
    }

    fn unmap(&self, offset: u64, bytes: u64) -> u64 {
        let mut mapped = self.mapped.lock().unwrap();
        let (&start, &len) = mapped.range(..=offset).next_back().expect("mapped");
        assert_eq!(start + len, offset + bytes, "the end of what is mapped");
        if offset == start {
            mapped.remove(&start);
        } else {
            mapped.insert(start, offset - start);
        }
        1
    }

    fn settled(&self) -> u64 {
        self.settled.load(core::sync::atomic::Ordering::SeqCst)
    }

    fn spread(&self) -> usize {
        SPREAD.get()
    }
}

/// A heap, its memory, and which addresses are whose.
struct World {
    heap: Heap,
    machine: Machine,
    /// Length and alignment by offset of each block.
    live: Mutex<BTreeMap<u64, (u64, u64)>>,
}

impl World {
    fn new(limit_bytes: u64) -> Arc<World> {
        let (heap, live) = (Heap::new(), Mutex::default());
        Arc::new(World { heap, machine: Machine::new(limit_bytes), live })
    }

    fn alloc(&self, bytes: u64, align: u64) -> Option<u64> {
        let block = self.heap.alloc(&self.machine, bytes, align)?;
        assert!(block.offset.is_multiple_of(align));
        let mut live = self.live.lock().unwrap();
        let before = live.range(..block.offset + bytes.max(1)).next_back();
        assert!(
            before.is_none_or(|(start, (len, _))| start + len.max(&1) <= block.offset),
            "overlapping blocks"
        );
        live.insert(block.offset, (bytes, align));
        let mapped = self.machine.mapped.lock().unwrap();
        let (start, len) = mapped.range(..=block.offset).next_back().expect("mapped");
        assert!(block.offset + bytes <= start + len, "a block that is not mapped");
        if block.offset < CHUNKS as u64 * CHUNK_BYTES {
            assert!(block.offset % CHUNK_BYTES >= size_of::<Header>() as u64, "a block over the header");
        }
        Some(block.offset)
    }

    fn free(&self, offset: u64) {
        let (bytes, align) = self.live.lock().unwrap().remove(&offset).expect("a block");
        self.heap.free(&self.machine, offset, bytes, align);
    }

    fn resize(&self, offset: u64, new_bytes: u64) -> bool {
        let (bytes, align) = self.live.lock().unwrap()[&offset];
        if new_bytes < bytes {
            self.live.lock().unwrap().insert(offset, (new_bytes, align));
        }
        let done = self.heap.resize(&self.machine, offset, bytes, align, new_bytes);
        self.live.lock().unwrap().insert(offset, (if done { new_bytes } else { bytes }, align));
        done
    }

    /// Frees everything; then all slabs but those that hints hold must be free, and what is large unmapped.
    fn check_end(&self, max_unfree: u32) {
        let live: Vec<_> = self.live.lock().unwrap().keys().copied().collect();
        live.into_iter().for_each(|offset| self.free(offset));
        let chunks = self.machine.mapped_bytes() / CHUNK_BYTES;
        assert!(
            self.machine.mapped.lock().unwrap().keys().all(|start| *start < TEST_CHUNKS as u64 * CHUNK_BYTES)
        );
        let free: u32 = (0..chunks as usize)
            .map(|chunk| self.machine.headers[chunk].partial[FREE_ROW].load(Ordering::SeqCst).count_ones())
            .sum();
        let all = chunks as u32 * ALL_SLABS.count_ones();
        assert!(free + max_unfree >= all, "{} of {all} slabs are lost", all - free);
    }
}

#[test]
fn freed_memory_serves_other_sizes() {
    let world = World::new(8 * CHUNK_BYTES);
    for bytes in [16, 100, 1000, 5000, 32768, 65536, 70_000, 1 << 20] {
        let mut blocks = Vec::new();
        while let Some(block) = world.alloc(bytes, 8) {
            blocks.push(block);
        }
        let used = blocks.len() as u64 * bytes;
        assert!(used >= 8 * CHUNK_BYTES * 2 / 5, "{bytes}: only {used} bytes");
        blocks.into_iter().for_each(|block| world.free(block));
    }
    world.check_end(8);
}

#[test]
fn large_blocks_return_their_memory_and_rest() {
    let world = World::new(64 << 20);
    let first = world.alloc(5 << 20, 8).unwrap();
    world.machine.settled.store(0, Ordering::SeqCst);
    world.free(first);
    assert_eq!(world.machine.mapped_bytes(), 0);
    // Not settled: other addresses.
    let second = world.alloc(5 << 20, 8).unwrap();
    assert_ne!(first, second);
    assert!(world.resize(second, 3 << 20) && !world.resize(second, 5 << 20));
    assert_eq!(world.machine.mapped_bytes(), 4 << 20);
    assert_eq!(world.alloc(65 << 20, 8), None);
    assert_eq!(world.alloc(u64::MAX / 2, 8), None);
    world.check_end(0);
}

#[test]
fn resting_slots_serve_again_once_settled() {
    let world = World::new(64 << 20);
    world.machine.settled.store(0, Ordering::SeqCst);
    let mut seen = std::collections::BTreeSet::new();
    // All slots of 64 GiB: there is one.
    let slots = Slots::<1, 1>::new(lay_out([(1 << 20, 3)], 0, true));
    let taken: Vec<_> = (0..3).map(|_| slots.take(1, || 0).unwrap()).collect();
    taken.iter().for_each(|slot| slots.rest(*slot, 7));
    assert_eq!(slots.take(1, || 6), None);
    for _ in 0..3 {
        assert!(seen.insert(slots.take(1, || 7).unwrap()));
    }
    assert_eq!(slots.take(1, || 7), None);
    drop(world);
}

#[derive(Clone, Debug)]
enum Action {
    Alloc { bytes: u64, align: u32 },
    Free { which: usize },
    Resize { which: usize, bytes: u64 },
    Settle { generation: u64 },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let bytes = prop_oneof![5 => 0..300u64, 3 => 0..9000u64, 2 => 0..70_000u64, 1 => 0..3_000_000u64];
    let action = prop_oneof![
        6 => (bytes.clone(), 0..17u32).prop_map(|(bytes, align)| Action::Alloc { bytes, align: align.saturating_sub(9) }),
        4 => any::<usize>().prop_map(|which| Action::Free { which }),
        1 => (any::<usize>(), bytes).prop_map(|(which, bytes)| Action::Resize { which, bytes }),
        1 => (0..2u64).prop_map(|generation| Action::Settle { generation }),
    ];
    proptest::collection::vec(action, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn blocks_never_overlap_and_all_memory_returns(actions in actions()) {
        let world = World::new(24 << 20);
        let mut spread = 0;
        for action in actions {
            SPREAD.set({ spread += 1; spread / 7 });
            let pick = |which: usize| {
                let live = world.live.lock().unwrap();
                live.keys().nth(which % live.len().max(1)).copied()
            };
            match action {
                Action::Alloc { bytes, align } => { let _ = world.alloc(bytes, 1 << align); }
                Action::Free { which } => if let Some(offset) = pick(which) { world.free(offset) },
                Action::Resize { which, bytes } => if let Some(offset) = pick(which) { world.resize(offset, bytes); },
                Action::Settle { generation } => world.machine.settled.store(generation, Ordering::SeqCst),
            }
        }
        SPREAD.set(usize::MAX);
        world.check_end((CLASSES * SPREADS) as u32);
    }
}

#[test]
fn threads_never_get_the_same_block() {
    let world = World::new(TEST_CHUNKS as u64 * CHUNK_BYTES);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let world = &world;
            scope.spawn(move || {
                SPREAD.set(thread / 2);
                let (mut mine, mut random) = (Vec::new(), thread as u64 * 77 + 1);
                for _ in 0..40_000 {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let bytes = match random >> 60 {
                        0 => random >> 40 & 0x1f_ffff,
                        1..4 => random >> 40 & 0xffff,
                        _ => random >> 40 & 0xff,
                    };
                    if mine.len() > 100 || random >> 33 & 1 == 0 && !mine.is_empty() {
                        world.free(mine.swap_remove((random >> 20) as usize % mine.len()));
                    } else if let Some(block) = world.alloc(bytes, 8) {
                        mine.push(block);
                    }
                }
                mine.into_iter().for_each(|block| world.free(block));
            });
        }
    });
    world.check_end((2 * CLASSES) as u32);
}

/// Something a thread does in a prepared world.
type Work = fn(&World, &[u64]);

/// Allocates; there may be no memory when others have taken it.
fn take(world: &World, bytes: u64, count: usize) {
    for _ in 0..count {
        let _ = world.alloc(bytes, 8);
    }
}

/// A world in which every path of the allocator is one step away: a slab with one free block, one with one used block,
/// a full one, free slabs. Returns the blocks that work may free: of class 1024 the last one of a slab, and one of a full
/// slab; of class 32768 one of two; a medium one, a large one.
fn prepared(chunks: u64) -> (Arc<World>, Vec<u64>) {
    let world = World::new(chunks * CHUNK_BYTES + (4 << 20));
    SPREAD.set(0);
    let slab: Vec<_> = (0..64).map(|_| world.alloc(1024, 8).unwrap()).collect();
    let full: Vec<_> = (0..64).map(|_| world.alloc(1024, 8).unwrap()).collect();
    let _hinted = world.alloc(1024, 8).unwrap();
    slab[1..].iter().for_each(|block| world.free(*block));
    let half = world.alloc(32768, 8).unwrap();
    let medium = world.alloc(200_000, 8).unwrap();
    let large = world.alloc(2 << 20, 8).unwrap();
    (world, vec![slab[0], full[0], half, medium, large])
}

const WORKS: [(&str, Work); 12] = [
    ("allocate by the hint", |world, _| take(world, 1024, 1)),
    ("allocate with an empty hint", |world, _| {
        SPREAD.set(1);
        take(world, 1024, 1);
    }),
    ("allocate until slabs change", |world, _| take(world, 1000, 70)),
    ("open a slab of another class", |world, _| take(world, 2000, 1)),
    ("allocate a whole slab", |world, _| take(world, 60_000, 1)),
    ("allocate slabs until a chunk is added", |world, _| take(world, 65536, 40)),
    ("free the last block of a slab", |world, blocks| world.free(blocks[0])),
    ("free a block of a full slab", |world, blocks| world.free(blocks[1])),
    ("free one of two", |world, blocks| {
        SPREAD.set(3);
        world.free(blocks[2]);
    }),
    ("free and allocate a medium block", |world, blocks| {
        world.free(blocks[3]);
        take(world, 300_000, 1);
    }),
    ("shrink a medium block", |world, blocks| assert!(world.resize(blocks[3], 100_000))),
    ("free and allocate a large block", |world, blocks| {
        world.free(blocks[4]);
        take(world, 2 << 20, 1);
    }),
];

fn run_stopped(world: &Arc<World>, blocks: &[u64], work: Work) -> (Arc<Gate>, std::thread::JoinHandle<()>) {
    let (world, blocks) = (world.clone(), blocks.to_vec());
    Gate::run(move || {
        SPREAD.set(0);
        work(&world, &blocks);
    })
}

/// Whoever is stopped before any access of any operation, the others go on: they allocate all that is left but what the
/// stopped one may have in its hands, and free it again. Nothing is handed out twice, and nothing is lost once it goes on.
#[test]
fn a_stopped_thread_keeps_nobody_from_anything() {
    for (name, work) in WORKS {
        for steps in 0.. {
            let (world, blocks) = prepared(3);
            let (gate, thread) = run_stopped(&world, &blocks, work);
            let stopped = gate.step(steps);
            SPREAD.set(2);
            let mut mine = Vec::new();
            for bytes in [1024, 2000, 32768, 16] {
                mine.extend(
                    (0..10)
                        .map(|_| world.alloc(bytes, 8).unwrap_or_else(|| panic!("{name}, {steps}: {bytes}"))),
                );
            }
            // 3 chunks: less one that may be in the stopped one's hands, and what is in use.
            let rest = (0..100).map_while(|_| world.alloc(65536, 8)).collect::<Vec<_>>();
            assert!(rest.len() >= 31 - 16 || name.contains("chunk"), "{name}, {steps}: {} slabs", rest.len());
            mine.into_iter().chain(rest).for_each(|block| world.free(block));
            gate.step(1 << 40);
            thread.join().unwrap();
            world.check_end(16);
            if !stopped {
                assert!(steps > 0, "{name} was never stopped");
                break;
            }
        }
    }
}

/// Pairs of operations that meet in one slab, with every schedule of the form: a part of the first, a part of the second,
/// the rest of the first, the rest of the second.
#[test]
fn interleaved_operations_keep_blocks_apart() {
    let pairs = [(0, 6), (1, 6), (6, 1), (6, 3), (3, 6), (1, 7), (7, 1), (6, 7), (8, 1), (10, 4)];
    for (first, second) in pairs.map(|(first, second): (usize, usize)| (WORKS[first].1, WORKS[second].1)) {
        let mut before = 0;
        loop {
            let (mut inner, mut first_ended) = (0, false);
            loop {
                let (world, blocks) = prepared(2);
                let (gate, thread) = run_stopped(&world, &blocks, first);
                let (other_gate, other) = run_stopped(&world, &blocks, second);
                first_ended |= !gate.step(before);
                let second_ended = !other_gate.step(inner);
                gate.step(1 << 40);
                thread.join().unwrap();
                other_gate.step(1 << 40);
                other.join().unwrap();
                assert!(gate.made() > 0 && other_gate.made() > 0);
                world.check_end(8);
                if second_ended {
                    break;
                }
                inner += 1;
            }
            if first_ended {
                break;
            }
            before += 1;
        }
    }
}
