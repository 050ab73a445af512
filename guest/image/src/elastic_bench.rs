//! Debug images only: how long wakes take, measured where they happen. Asked for by a `SelfTest` message with a body of
//! little-endian words (see [`Request::decode`]); answered by one `SelfTest` message with the samples in nanoseconds as
//! text. vCPU 0 is the source of all wakes and does nothing else meanwhile.

use crate::arch::{self, clock};
use crate::task::{Begin, Spec, Task};
use crate::{link, sched, task, vcpu};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use nacre_abi::hypercall::{self, PARK_FOREVER};
use nacre_abi::message::{Header, Kind};
use nacre_wval::VcpuId;

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
        Some(request) if request.kind == 1 => floor(header.program, &request),
        Some(request) if request.kind == 2 || request.kind == 3 => wakes(header.program, &request),
        Some(request) if request.kind == 4 => arrivals(header.program, &request),
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
fn floor(program: u32, request: &Request) -> Vec<u64> {
    /// Who rings looks at `round` and `rung`, who is woken at `done`.
    #[derive(Default)]
    struct Shared {
        round: AtomicU64,
        rung_tsc: AtomicU64,
        done: AtomicBool,
    }
    let shared = Arc::new(Shared::default());
    let (ringer, interval_ns) = (shared.clone(), request.interval_ns);
    let ringing = move || {
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
    };
    if start(program, ringing).is_none() {
        return Vec::new();
    }
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

/// A task that serves requests: one producer, vCPU 0, and one consumer, the task.
struct Server {
    /// When each request came, in cycles.
    came: Vec<AtomicU64>,
    /// How long each waited, in cycles.
    waited: Vec<AtomicU64>,
    sent: AtomicUsize,
    served: AtomicUsize,
    done: AtomicBool,
}

impl Server {
    fn new(samples: u64) -> Server {
        let zeros = || (0..samples).map(|_| AtomicU64::new(0)).collect();
        Server {
            came: zeros(),
            waited: zeros(),
            sent: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            done: AtomicBool::new(false),
        }
    }

    /// Serves the next request, if there is one.
    fn serve(&self, work_ns: u64) -> bool {
        let now = arch::rdtsc();
        let next = self.served.load(Ordering::Relaxed);
        if next >= self.sent.load(Ordering::Acquire) {
            return false;
        }
        self.waited[next]
            .store(now.saturating_sub(self.came[next].load(Ordering::Relaxed)), Ordering::Relaxed);
        if work_ns != 0 {
            wait_until(clock::monotonic_ns() + work_ns);
        }
        self.served.store(next + 1, Ordering::Release);
        true
    }

    /// A request comes now.
    fn send(&self, task: &Arc<Task>) {
        let next = self.sent.load(Ordering::Relaxed);
        self.came[next].store(arch::rdtsc(), Ordering::Relaxed);
        self.sent.store(next + 1, Ordering::Release);
        task::unpark(task);
    }

    /// Waits until all that were sent are served, or it is `end`; returns how long each waited.
    fn finish(&self, task: &Arc<Task>, end_ns: u64) -> Vec<u64> {
        while self.served.load(Ordering::Acquire) < self.sent.load(Ordering::Relaxed)
            && clock::monotonic_ns() < end_ns
        {
            core::hint::spin_loop();
        }
        self.done.store(true, Ordering::Release);
        task::unpark(task);
        let served = self.served.load(Ordering::Acquire);
        self.waited[..served].iter().map(|cycles| cycles.load(Ordering::Relaxed)).collect()
    }
}

/// Starts the task of a server.
fn start_server(program: u32, server: &Arc<Server>, work_ns: u64) -> Option<Arc<Task>> {
    let inside = server.clone();
    start(program, move || {
        while !inside.done.load(Ordering::Acquire) {
            if !inside.serve(work_ns) {
                task::park();
            }
        }
    })
}

fn start(program: u32, body: impl FnOnce() + Send + 'static) -> Option<Arc<Task>> {
    let entry = move |begin| {
        if begin == Begin::Now {
            body();
        }
    };
    let task = task::create(Spec::helper(program), Box::new(entry)).ok()?;
    task::start(&task);
    Some(task)
}

/// From a wake of a sleeping task by vCPU 0 to the first instruction of that task.
fn wakes(program: u32, request: &Request) -> Vec<u64> {
    let server = Arc::new(Server::new(request.samples));
    let Some(task) = start_server(program, &server, 0) else { return Vec::new() };
    let workers = sched::scheduler().vcpus().without(VcpuId::NORMAL);
    let end = clock::monotonic_ns() + LIMIT_NS;
    let all_parked = || workers.iter().all(|worker| sched::scheduler().idle().is_parked(worker));
    for round in 0..request.samples as usize {
        while server.served.load(Ordering::Acquire) < round
            || !task.park.is_parked()
            || (request.kind == 2 && !all_parked())
        {
            if clock::monotonic_ns() > end {
                return server.finish(&task, end);
            }
            core::hint::spin_loop();
        }
        wait_until(clock::monotonic_ns() + request.interval_ns);
        server.send(&task);
    }
    server.finish(&task, end)
}

/// Requests that come when they come: from the moment of each to the first instruction of its handling.
fn arrivals(program: u32, request: &Request) -> Vec<u64> {
    let server = Arc::new(Server::new(request.samples));
    let Some(task) = start_server(program, &server, request.work_ns) else { return Vec::new() };
    let mut random = arch::rdtsc() | 1;
    let mut due_ns = clock::monotonic_ns() + 1_000_000;
    let end = due_ns + LIMIT_NS;
    for round in 0..request.samples {
        wait_until(due_ns);
        server.send(&task);
        due_ns += match request.burst {
            0 => exponential(&mut random, request.interval_ns),
            burst if (round + 1) % burst == 0 => request.interval_ns,
            _ => request.gap_ns,
        };
        if due_ns > end {
            break;
        }
    }
    server.finish(&task, end + LIMIT_NS)
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
