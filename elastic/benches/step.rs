//! What a decision costs: `Manager::step` with 10,000 CVMs, with CPUs to spare, without, and the look at everything.
#![allow(missing_docs, reason = "criterion's macros make items without documentation")]

use criterion::{Criterion, criterion_group, criterion_main};
use nacre_elastic::policy::{
    Action, Budget, Change, CvmId, Event, Limits, Manager, Nanos, Tuning, WorkerIndex,
};
use std::hint::black_box;
use std::num::NonZeroU32;

const CVMS: u32 = 10_000;

fn manager(budget: u32) -> Manager {
    let mut manager =
        Manager::new(Budget::new(budget).expect("a budget"), Tuning::default()).expect("possible");
    let weight = NonZeroU32::new(100).expect("above 0");
    let limits = Limits::new(weight, 0, 16).expect("possible");
    for cvm in (0..CVMS).map(CvmId) {
        let change = Change::CvmAdded { cvm, limits, launched: 16 };
        manager.configure(Nanos(0), change, &mut Vec::new()).expect("a new CVM");
    }
    manager
}

fn worker(index: u32) -> WorkerIndex {
    WorkerIndex::new(1 + (index % 16) as u8).expect("a worker")
}

/// A pseudo-random sequence (Weyl), so that caches see what they would see.
fn next(state: &mut u32) -> u32 {
    *state = state.wrapping_add(0x9e37_79b9);
    ((u64::from(*state) * u64::from(CVMS)) >> 32) as u32
}

/// A doorbell that is answered at once, and the worker's park: two steps.
fn room(criterion: &mut Criterion) {
    let mut manager = manager(4096);
    let (mut actions, mut state, mut now) = (Vec::new(), 1, 0);
    // Half of the CPUs are taken.
    for index in 0..2048 {
        let event = Event::WorkerWoke { cvm: CvmId(index), worker: worker(0) };
        manager.step(Nanos(0), event, &mut actions);
    }
    criterion.bench_function("wake and park, CPUs free", |bencher| {
        bencher.iter(|| {
            now += 10_000;
            actions.clear();
            let (cvm, worker) = (CvmId(next(&mut state)), worker(1 + now as u32 % 15));
            manager.step(Nanos(now), Event::WorkerWoke { cvm, worker }, &mut actions);
            manager.step(Nanos(now + 5000), Event::WorkerParked { cvm, worker }, &mut actions);
            assert!(matches!(actions[..], [Action::Admit { .. }]));
            black_box(&actions);
        });
    });
}

/// Every CVM wants CPUs: a worker parks, another CVM gets the CPU, and the first asks again: two steps.
fn scarce(criterion: &mut Criterion) {
    let mut manager = manager(4096);
    let (mut actions, mut now) = (Vec::new(), 0);
    for index in 0..CVMS {
        manager.step(Nanos(0), Event::WorkerWoke { cvm: CvmId(index), worker: worker(0) }, &mut actions);
    }
    let mut running: std::collections::VecDeque<_> = actions.drain(..).collect();
    criterion.bench_function("park, hand over and wake, CPUs scarce", |bencher| {
        bencher.iter(|| {
            // Ticks come as asked for; the bench's clock is slow enough that they are few.
            now += 50;
            while let Some(action) = running.pop_front() {
                let Action::Admit { cvm, worker } = action else { continue };
                manager.step(Nanos(now), Event::WorkerParked { cvm, worker }, &mut actions);
                manager.step(Nanos(now), Event::WorkerWoke { cvm, worker }, &mut actions);
                break;
            }
            running.extend(actions.drain(..));
        });
    });
}

/// The timer: a look at 4,096 CVMs that hold a CPU while others wait.
fn tick(criterion: &mut Criterion) {
    let mut manager = manager(4096);
    let (mut actions, mut now) = (Vec::new(), 0);
    for index in 0..CVMS {
        manager.step(Nanos(0), Event::WorkerWoke { cvm: CvmId(index), worker: worker(0) }, &mut actions);
    }
    criterion.bench_function("tick, 4,096 CPUs", |bencher| {
        bencher.iter(|| {
            now += 5_000_000;
            actions.clear();
            manager.step(Nanos(now), Event::Timer, &mut actions);
            // Who is reclaimed parks at once and wants more, so that the next tick finds the same.
            let reclaimed: Vec<Action> = std::mem::take(&mut actions);
            for action in reclaimed {
                if let Action::Reclaim { cvm, worker } = action {
                    manager.step(Nanos(now), Event::WorkerParked { cvm, worker }, &mut actions);
                }
            }
        });
    });
}

criterion_group!(benches, room, scarce, tick);
criterion_main!(benches);
