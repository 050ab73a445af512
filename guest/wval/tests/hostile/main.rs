//! A hostile host against the scheduler, on seeds: the real queues, parking, timers and rings, driven by the guest's loops in
//! small, with one thread per vCPU and the host's own beside them. Every atomic operation is a point at which a thread
//! can be stopped for any number of steps (`schedule`); the host loses, repeats, delays and misdirects wakes, wakes
//! for nothing and takes workers away (`host`); time is simulated and jumps. After a while the host behaves, and then
//! all tasks must end, each step of each having been done once, in order, on one vCPU at a time (`world`).
//!
//! ```text
//! RUSTFLAGS="--cfg stepped" cargo test -p nacre-wval --release --test hostile
//! NACRE_SIM_SEEDS=200000    seeds to run (default 2000)
//! NACRE_SIM_SEED=17         this one only
//! ```
//! A seed repeats exactly. Threads see each other's stores at once here (sequential consistency): what the memory
//! model allows beyond that is the loom tests' part.
#![cfg(stepped)]

mod host;
mod plan;
mod schedule;
mod world;

use plan::{Broken, Plan};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use world::Seen;

/// Steps after which a run counts as one that makes no progress; the longest need a twentieth.
const MAX_STEPS: usize = 4_000_000;

/// Runs one seed; what was seen in it, or what went wrong.
fn run(seed: u64, broken: Broken) -> Result<Seen, String> {
    let mut config = shuttle::Config::new();
    config.failure_persistence = shuttle::FailurePersistence::None;
    config.max_steps = shuttle::MaxSteps::FailAfter(MAX_STEPS);
    config.silence_warnings = true;
    config.stack_size = 64 << 10;
    let seen = std::sync::Arc::new(Mutex::new(Seen::default()));
    let inner = seen.clone();
    let body = move || {
        let result = world::run(&Plan::from_seed(seed, broken));
        *inner.lock().unwrap() = result;
    };
    let runner = shuttle::Runner::new(schedule::Stopper::new(seed), config);
    match catch_unwind(AssertUnwindSafe(|| runner.run(body))) {
        Ok(_) => Ok(*seen.lock().unwrap()),
        Err(cause) => {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| text.to_string()));
            Err(text.unwrap_or_else(|| "a panic without words".into()))
        }
    }
}

/// Runs seeds on two threads until one fails; the first failure, and what was seen.
fn sweep(seeds: std::ops::Range<u64>, broken: Broken) -> (Option<(u64, String)>, Seen) {
    nacre_abi::sync::set_step(shuttle::thread::yield_now);
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(None));
    let total = Mutex::new(Seen::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match run(seed, broken) {
                        Ok(seen) => total.lock().unwrap().add(seen),
                        Err(what) => drop(failed.lock().unwrap().get_or_insert((seed, what))),
                    }
                }
            });
        }
    });
    (failed.into_inner().unwrap(), total.into_inner().unwrap())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} takes a number")))
}

#[test]
fn all_tasks_end_rightly_once_the_host_behaves() {
    let seeds = match number("NACRE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NACRE_SIM_SEEDS").unwrap_or(2000),
    };
    let (begin, count) = (Instant::now(), seeds.end - seeds.start);
    let (failed, seen) = sweep(seeds, Broken::Nothing);
    let seconds = begin.elapsed().as_secs_f64();
    // Past the test's captured output: it is a result.
    let _ = writeln!(std::io::stderr(), "{count} simulated seeds in {seconds:.1} s: {seen:?}");
    if let Some((seed, what)) = failed {
        panic!(
            "seed {seed}: {what}\nreplay: NACRE_SIM_SEED={seed} RUSTFLAGS=\"--cfg stepped\" cargo test -p nacre-wval --release --test hostile"
        );
    }
    // A simulation in which nothing happens would pass too.
    if count >= 1000 {
        assert!(
            seen.dropped > 0 && seen.misdirected > 0 && seen.repeated > 0 && seen.delayed > 0,
            "{seen:?}"
        );
        assert!(seen.spurious > 0 && seen.grants > 0 && seen.moves > 0 && seen.timers > 0, "{seen:?}");
        assert!(seen.waits_for_room > 0 && seen.doubted > 0, "{seen:?}");
    }
}

/// Two runs of one seed do the same.
#[test]
fn a_seed_repeats_exactly() {
    nacre_abi::sync::set_step(shuttle::thread::yield_now);
    for seed in 0..20 {
        assert_eq!(run(seed, Broken::Nothing), run(seed, Broken::Nothing), "seed {seed}");
    }
}

/// The simulation finds what it is for: each of these guests has one thing left out.
#[test]
fn catches_guests_that_lose_wakes() {
    let all = [
        Broken::NoSecondLook,
        Broken::NoDoubt,
        Broken::NoSecondLookAtTheRing,
        Broken::NoTimerWake,
        Broken::LockedTask,
    ];
    for broken in all {
        let (failed, _) = sweep(0..5_000, broken);
        let (seed, what) = failed.unwrap_or_else(|| panic!("{broken:?} was not noticed in 5000 seeds"));
        println!("{broken:?}: seed {seed}: {what}");
    }
}
