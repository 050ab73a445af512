//! Criterion benchmarks of the guest's and the ABI's pure parts, on the host: no CVM is involved.
//!
//! `cargo bench -p nacre-bench`; to compare two versions, `-- --save-baseline NAME` and `-- --baseline NAME`.
#![forbid(unsafe_code)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nacre_abi::message::{Header, Kind};
use nacre_abi::ring::{Consumer, Producer, Ring};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::address_space::{AddressSpace, PageRange};
use nacre_mm::entry::{Perms, Size};
use nacre_mm::frames::{Frames, PagePool, words_needed};
use nacre_mm::page_tables::{PageTables, TableMemory};
use nacre_mm::{GuestPhys, GuestVirt};
use nacre_wasi::{Builder, Call, Clock, Fs, Interest, Sockets, Stop, Stream, StreamError, System};
use nacre_wval::{RunQueue, TaskRef};
use std::hint::black_box;
use std::sync::atomic::AtomicU64;

fn zeros(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// A message sent and received on one ring, by one thread.
fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for bytes in [0usize, 64, 4096] {
        let (indices, data) = (zeros(17), zeros(8192));
        let ring = Ring::new(&indices, &data);
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        let (body, mut copy) = (vec![7; bytes], vec![0; bytes]);
        group.throughput(Throughput::Bytes((bytes + 24) as u64));
        group.bench_function(format!("send and receive {bytes} bytes"), |bencher| {
            bencher.iter(|| {
                producer.send(Header::new(Kind::StreamData, 1), black_box(&body)).expect("the ring is empty");
                let incoming = consumer.receive().expect("the ring is whole").expect("a message was sent");
                incoming.copy_body(0, &mut copy);
                incoming.finish();
            });
        });
    }
    group.finish();
}

const FRAME_BASE: GuestPhys = GuestPhys(1 << 32);
const LARGE_FRAMES: usize = 4096;

/// A frame taken and given back, of 8 GiB of which half is in use.
fn frames(criterion: &mut Criterion) {
    let words = zeros(words_needed(LARGE_FRAMES));
    let frames = Frames::new(FRAME_BASE, LARGE_FRAMES, 0, &words);
    for _ in 0..LARGE_FRAMES / 2 {
        frames.alloc_large().expect("half of the frames");
    }
    // Keeps its large frame split.
    frames.alloc_small().expect("one more");
    criterion.bench_function("frames/large", |bencher| {
        bencher.iter(|| frames.free_large(frames.alloc_large().expect("a free frame").0));
    });
    criterion.bench_function("frames/small", |bencher| {
        bencher.iter(|| frames.free_small(frames.alloc_small().expect("a free frame")));
    });
}

const ROOT: GuestPhys = GuestPhys(0x1000_0000);
const TABLES: usize = 1 + 2 + 2 + REGIONS;
/// Large pages of which one small page each is listed as outstanding: of 2 GiB.
const REGIONS: usize = 1024;

/// Tables in host memory; frames have no memory at all.
struct Tables(Vec<[AtomicU64; 512]>);

impl TableMemory for Tables {
    fn entries(&self, table: GuestPhys) -> &[AtomicU64; 512] {
        &self.0[((table.0 - ROOT.0) / PAGE_BYTES) as usize]
    }
    fn zero(&self, _: GuestPhys, _: Size) {}
    fn copy_page(&self, _: GuestPhys, _: GuestPhys) {}
}

/// Mapping, giving frames and unmapping, without the zeroing.
fn page_tables(criterion: &mut Criterion) {
    let (pool_words, frame_words) = (zeros(TABLES.div_ceil(64)), zeros(words_needed(LARGE_FRAMES)));
    let tables = Tables((0..TABLES).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect());
    let pool = PagePool::new(ROOT, TABLES, 1, &pool_words);
    let space = PageTables::new(ROOT, tables, pool, Frames::new(FRAME_BASE, LARGE_FRAMES, 0, &frame_words));
    let mut group = criterion.benchmark_group("page tables");
    for (name, bytes) in
        [("64 KiB in small pages", 64 << 10), ("64 MiB in large pages", 32 * LARGE_PAGE_BYTES)]
    {
        let range = PageRange::new(GuestVirt(1 << 40), bytes).expect("an aligned range");
        group.bench_function(format!("map, unmap {name}"), |bencher| {
            bencher.iter(|| {
                let _ = space.map(range, Perms::ReadWrite).expect("enough memory");
                let _ = space.unmap(range);
            });
        });
        group.bench_function(format!("map, populate, unmap {name}"), |bencher| {
            bencher.iter(|| {
                let _ = space.map(range, Perms::ReadWrite).expect("enough memory");
                space.populate(range).expect("enough memory");
                let _ = space.unmap(range);
            });
        });
    }
    let regions = || (0..REGIONS as u64).map(|number| GuestVirt((2 << 40) + number * LARGE_PAGE_BYTES));
    let small = |region: GuestVirt| GuestVirt(region.0 + region.0 / LARGE_PAGE_BYTES * 37 % 512 * PAGE_BYTES);
    let place = || regions().for_each(|region| _ = space.place(region, Size::Large).expect("enough memory"));
    group.throughput(Throughput::Elements(REGIONS as u64));
    group.bench_function("list a page of each large one", |bencher| {
        let list = |()| {
            regions()
                .for_each(|region| space.place_missing(small(region), Size::Small).expect("enough tables"))
        };
        bencher.iter_batched(place, list, BatchSize::PerIteration);
    });
    group.finish();
}

/// Tasks pushed by the owner and stolen, without competition.
fn run_queue(criterion: &mut Criterion) {
    let slots = zeros(1024);
    let queue = RunQueue::new(&slots).expect("a power of two");
    let owner = queue.owner().expect("the first owner");
    let task = TaskRef::new(64).expect("not zero");
    criterion.bench_function("run queue/push, steal", |bencher| {
        bencher.iter(|| {
            owner.push(black_box(task)).expect("an empty queue");
            queue.steal()
        });
    });
}

/// A kernel that takes all output.
struct Sink;

impl Sockets for Sink {}

impl System for Sink {
    fn clock_ns(&self, _: Clock) -> u64 {
        0
    }
    fn clock_resolution_ns(&self, _: Clock) -> u64 {
        1
    }
    fn random(&mut self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
    fn stream_read(&mut self, _: Stream, _: &mut [u8]) -> Result<usize, StreamError> {
        Ok(0)
    }
    fn stream_write(&mut self, _: Stream, bytes: &[u8]) -> Result<usize, StreamError> {
        Ok(black_box(bytes).len())
    }
    fn stream_readable(&self, _: Stream) -> Option<u64> {
        Some(0)
    }
    fn stream_writable(&self, _: Stream) -> Option<u64> {
        Some(1 << 16)
    }
    fn wait(&mut self, _: &[Interest], _: Option<u64>) -> Result<(), Stop> {
        Ok(())
    }
    fn yield_now(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

/// A write of 4 KiB, to a stream and to a file that grows.
fn wasi(criterion: &mut Criterion) {
    const BODY: u32 = 4096;
    let mut memory = vec![0u8; 1 << 16];
    // One buffer at 4096, described at 0.
    memory[..4].copy_from_slice(&4096u32.to_le_bytes());
    memory[4..8].copy_from_slice(&BODY.to_le_bytes());
    memory[16..20].copy_from_slice(b"file");
    let context = || {
        let mut fs = Fs::new(0).expect("an empty file system");
        fs.create_dir_all("/0", 0).expect("a directory");
        let preopens = vec![("/".to_owned(), "/0".to_owned())];
        Builder::new().preopens(preopens).build(Sink, fs).expect("a valid context")
    };
    let mut group = criterion.benchmark_group("wasi");
    group.throughput(Throughput::Bytes(BODY.into()));
    let mut ctx = context();
    group.bench_function("fd_write 4 KiB to stdout", |bencher| {
        bencher.iter(|| nacre_wasi::fd_write(&mut Call { ctx: &mut ctx, memory: &mut memory }, 1, 0, 1, 8));
    });
    group.throughput(Throughput::Bytes(u64::from(BODY) * 64));
    group.bench_function("fd_write 64 x 4 KiB to a new file", |bencher| {
        bencher.iter_batched_ref(
            context,
            |ctx| {
                let mut call = Call { ctx, memory: &mut memory };
                let rights = nacre_wasi::abi::rights::FD_WRITE;
                let creat = nacre_wasi::abi::oflags::CREAT;
                let opened = nacre_wasi::path_open(&mut call, 3, 0, 16, 4, creat, rights, 0, 0, 32);
                assert_eq!(opened, Ok(nacre_wasi::Errno::Success));
                for _ in 0..64 {
                    let written = nacre_wasi::fd_write(&mut call, 4, 0, 1, 8);
                    assert_eq!(written, Ok(nacre_wasi::Errno::Success));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(parts, ring, frames, page_tables, run_queue, wasi);
criterion_main!(parts);
