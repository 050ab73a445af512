//! The protocols under loom: every interleaving and every reordering the memory model allows, within a bound on
//! preemptions. `RUSTFLAGS="--cfg loom" cargo test -p nacre-wval --release --test loom`
//!
//! Loom runs loads in program order, so it cannot show what goes wrong when a load sees a later store (against that the
//! consumers' releasing step of a ring's `head` and the producer's acquiring load of it guard). The other fences and
//! orderings were confirmed by taking them out one by one and seeing a test fail.
//!
//! The `catches_*` tests are negative controls: the same models around a deliberately broken variant, which loom
//! must reject. Without them a model that can never fail would look like a proof.
#![cfg(loom)]

mod composed;
mod ends;
mod idle;
mod park;
mod queue;

use loom::sync::atomic::AtomicU64;
use nacre_wval::*;

/// Checks `f` with at most so many preemptions (`None`: all interleavings), unless `LOOM_MAX_PREEMPTIONS` is set.
fn model(preemptions: Option<usize>, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.check(f);
}

/// Memory for one iteration. Loom runs are finite, so it is leaked.
fn words(n: usize) -> &'static [AtomicU64] {
    Box::leak((0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().into_boxed_slice())
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn task(n: u64) -> TaskRef {
    TaskRef::new(n).unwrap()
}

fn v(n: u32) -> VcpuId {
    VcpuId::new(n).unwrap()
}

fn scheduler(vcpus: usize) -> &'static Scheduler<'static> {
    let slots: Vec<_> = (0..vcpus).map(|_| VcpuSlot::new(words(2 * LANES)).unwrap()).collect();
    leak(Scheduler::new(Box::leak(slots.into_boxed_slice())).unwrap())
}
