//! Debug images only: how long wakes take, measured where they happen. Asked for by a `SelfTest` message with a body of
//! little-endian words (see [`Request::decode`]); answered by one `SelfTest` message with the samples in nanoseconds as
//! text. vCPU 0 is the source of all wakes and does nothing else meanwhile.

use crate::arch::{self, clock};
use crate::{link, sched, task, vcpu};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use nacre_abi::hypercall::{self, PARK_FOREVER};
use nacre_abi::message::{Header, Kind};
use nacre_wval::VcpuId;

use crate::sync::SpinLock;

/// Samples at most.
const MAX_SAMPLES: u64 = 5_000;
/// The longest that one test may take.
const LIMIT_NS: u64 = 20_000_000_000;

/// What to measure.
struct Request {
    kind: u64,
    samples: u64,
    /// Floor, wake: time between wakes. Arrivals: mean time between requests, or between bursts.
    interval_ns: u64,
    /// Arrivals: requests in a burst; 0 for Poisson arrivals.
    burst: u64,
    /// Arrivals: time between the requests of a burst.
    gap_ns: u64,
    /// Arrivals: time that a request computes.
    work_ns: u64,
}

impl Request {
    /// Kind (1 bare floor, 2 wake of a parked worker, 3 wake after the interval whatever the worker does, 4 arrivals),
    /// samples, interval, burst, gap, work.
    fn decode(body: &[u8]) -> Option<Request> {
        let words: Vec<u64> = body.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let [kind, samples, interval_ns, burst, gap_ns, work_ns] = words.try_into().ok()?;
        Some(Request { kind, samples: samples.min(MAX_SAMPLES), interval_ns, burst, gap_ns, work_ns })
    }
}

/// Measures, and answers.
pub fn run(header: Header, body: &[u8]) {
    let samples = match Request::decode(body) {
        Some(request) if request.kind == 1 => floor(&request),
        Some(request) if request.kind == 2 || request.kind == 3 => wakes(&request),
        Some(request) if request.kind == 4 => arrivals(&request),
        _ => Vec::new(),
    };
    let text = samples
        .iter()
        .fold(String::new(), |text, cycles| text + &format!("{} ", clock::cycles_to_ns(*cycles)));
    link::send(Header::new(Kind::SelfTest, header.program), text.as_bytes());
}

fn wait_until(at_ns: u64) {
    while clock::monotonic_ns() < at_ns {
        core::hint::spin_loop();
    }
}

/// The bare floor: port write, wake of a thread that reads an event descriptor, entry. The one who is woken is vCPU 0,
/// which is under no manager and runs nothing but the next park.
fn floor(request: &Request) -> Vec<u64> {
    /// Who rings looks at `round` and `rung`, who is woken at `done`.
    #[derive(Default)]
    struct Shared {
        round: AtomicU64,
        rung_tsc: AtomicU64,
        done: AtomicBool,
    }
    let shared = Arc::new(Shared::default());
    let (ringer, interval_ns) = (shared.clone(), request.interval_ns);
    let made = task::create(Box::new(move || {
        let mut seen = 0;
        while !ringer.done.load(Ordering::Acquire) {
            let round = ringer.round.load(Ordering::Acquire);
            if round == seen {
                core::hint::spin_loop();
                continue;
            }
            seen = round;
            // It says so just before it parks.
            wait_until(clock::monotonic_ns() + interval_ns);
            ringer.rung_tsc.store(arch::rdtsc(), Ordering::Release);
            arch::wake(VcpuId::NORMAL);
        }
    }));
    let Ok(task) = made else { return Vec::new() };
    task::start(&task);
    let mut samples = Vec::new();
    let end = clock::monotonic_ns() + LIMIT_NS;
    for round in 1..=request.samples {
        shared.rung_tsc.store(0, Ordering::Relaxed);
        shared.round.store(round, Ordering::Release);
        // A wake from before the measurement ends a park early.
        let woken = loop {
            link::window().mailbox(vcpu::id())[0].store(PARK_FOREVER, Ordering::Relaxed);
            arch::hypercall(hypercall::PARK, 0);
            let now = arch::rdtsc();
            if shared.rung_tsc.load(Ordering::Acquire) != 0 {
                break now;
            }
        };
        samples.push(woken.saturating_sub(shared.rung_tsc.load(Ordering::Acquire)));
        if clock::monotonic_ns() > end {
            break;
        }
    }
    shared.done.store(true, Ordering::Release);
    samples
}

/// A task that notes when it goes on.
#[derive(Default)]
struct Sleeper {
    resumed: SpinLock<Vec<u64>>,
    /// Requests for which it was woken, by the time they came.
    requests: SpinLock<VecDeque<u64>>,
    done: AtomicBool,
}

/// From a wake of a sleeping task by vCPU 0 to the first instruction of that task.
fn wakes(request: &Request) -> Vec<u64> {
    let sleeper = Arc::new(Sleeper::default());
    let inside = sleeper.clone();
    let made = task::create(Box::new(move || {
        while !inside.done.load(Ordering::Acquire) {
            task::park();
            let now = arch::rdtsc();
            if inside.requests.lock().pop_front().is_some() {
                inside.resumed.lock().push(now);
            }
        }
    }));
    let Ok(task) = made else { return Vec::new() };
    task::start(&task);
    let workers = sched::scheduler().vcpus().without(VcpuId::NORMAL);
    let mut samples = Vec::new();
    let end = clock::monotonic_ns() + LIMIT_NS;
    for round in 0..request.samples as usize {
        let all_parked = || workers.iter().all(|worker| sched::scheduler().idle().is_parked(worker));
        while !task.park.is_parked() || (request.kind == 2 && !all_parked()) {
            if clock::monotonic_ns() > end {
                break;
            }
            core::hint::spin_loop();
        }
        wait_until(clock::monotonic_ns() + request.interval_ns);
        sleeper.requests.lock().push_back(0);
        let rung = arch::rdtsc();
        task::unpark(&task);
        let resumed = loop {
            if let Some(at) = sleeper.resumed.lock().get(round) {
                break Some(*at);
            }
            if clock::monotonic_ns() > end {
                break None;
            }
            core::hint::spin_loop();
        };
        match resumed {
            Some(at) => samples.push(at.saturating_sub(rung)),
            None => break,
        }
    }
    sleeper.done.store(true, Ordering::Release);
    task::unpark(&task);
    samples
}

/// Requests that come when they come: from the moment each was due to the first instruction of its handling.
fn arrivals(request: &Request) -> Vec<u64> {
    let server = Arc::new(Sleeper::default());
    let (inside, work_ns) = (server.clone(), request.work_ns);
    let made = task::create(Box::new(move || {
        loop {
            let next = inside.requests.lock().pop_front();
            match next {
                Some(due) => {
                    inside.resumed.lock().push(arch::rdtsc().saturating_sub(due));
                    wait_until(clock::monotonic_ns() + work_ns);
                }
                None if inside.done.load(Ordering::Acquire) => return,
                None => task::park(),
            }
        }
    }));
    let Ok(task) = made else { return Vec::new() };
    task::start(&task);
    let mut random = arch::rdtsc() | 1;
    let mut due_ns = clock::monotonic_ns() + 1_000_000;
    let end = due_ns + LIMIT_NS;
    for round in 0..request.samples {
        wait_until(due_ns);
        server.requests.lock().push_back(arch::rdtsc());
        task::unpark(&task);
        due_ns += match request.burst {
            0 => exponential(&mut random, request.interval_ns),
            burst if (round + 1) % burst == 0 => request.interval_ns,
            _ => request.gap_ns,
        };
        if due_ns > end {
            break;
        }
    }
    server.done.store(true, Ordering::Release);
    task::unpark(&task);
    let drained = clock::monotonic_ns() + LIMIT_NS;
    while !server.requests.lock().is_empty() && clock::monotonic_ns() < drained {
        core::hint::spin_loop();
    }
    core::mem::take(&mut *server.resumed.lock())
}

/// A time from the exponential distribution, in nanoseconds: von Neumann's method, which needs comparisons only
/// (Knuth, TAOCP vol. 2, 3.4.1, exercise 18).
fn exponential(random: &mut u64, mean_ns: u64) -> u64 {
    let mut next = || {
        // xorshift64 (Marsaglia 2003).
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        *random >> 32
    };
    for whole in 0..64 {
        let first = next();
        let (mut last, mut falling) = (first, 1);
        loop {
            let now = next();
            if now >= last {
                break;
            }
            (last, falling) = (now, falling + 1);
        }
        if falling % 2 == 1 {
            return mean_ns.saturating_mul(whole).saturating_add((mean_ns.saturating_mul(first >> 8)) >> 24);
        }
    }
    mean_ns
}
