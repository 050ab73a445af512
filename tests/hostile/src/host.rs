//! The host that misbehaves: what it does when the VMM asks it ([`Hooks`]), and the attacks it starts by itself.

use crate::inject::{self, Injection};
use crate::plan::{Attack, LaunchLie, Plan, Rng};
use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;
use nacre_abi::VcpuId;
use nacre_abi::elastic::{ElasticWord, SPIN_LIMIT_DEFAULT_NS};
use nacre_abi::window::{ControlWord, MAILBOX_BYTES, Window};
use nacre_vmm::Cvm;
use nacre_vmm::hooks::Hooks;
use nacre_vmm::link;
use nacre_vmm::vcpu::Shared;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What is done to a vCPU before it enters the guest the next time.
#[derive(Clone, Copy, Debug)]
enum Order {
    Hold(Duration),
    Inject(Injection),
}

/// The orders for one vCPU, and the random numbers of its wakes.
struct Desk {
    orders: VecDeque<Order>,
    rng: Rng,
    /// Times it entered the guest.
    entries: u64,
}

/// Entries, and nanoseconds inside the guest, after which a vCPU has got ready for exceptions. Before that one is the end of
/// the CVM.
const SETTLED: (u64, u64) = (4, 3_000_000);

/// The host of one plan.
pub struct Adversary {
    plan: Plan,
    hostile: AtomicBool,
    shared: OnceLock<Weak<Shared>>,
    desks: Vec<Mutex<Desk>>,
    /// Held vCPUs wait here; the pair of `release`.
    holding: Mutex<()>,
    release: Condvar,
    done: Mutex<BTreeMap<String, u64>>,
    /// Whether vCPUs say where they are; and what they said.
    asked: AtomicBool,
    places: Mutex<BTreeMap<usize, String>>,
    placed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Adversary {
    /// The host of a plan. It behaves until [`attack`](Self::attack), but for what it says at launch.
    pub fn new(plan: &Plan) -> Arc<Adversary> {
        let desk = |vcpu| Mutex::new(Desk { orders: VecDeque::new(), rng: plan.rng(100 + vcpu), entries: 0 });
        Arc::new(Adversary {
            plan: plan.clone(),
            hostile: AtomicBool::new(false),
            shared: OnceLock::new(),
            desks: (0..=u64::from(plan.workers)).map(desk).collect(),
            holding: Mutex::default(),
            release: Condvar::new(),
            done: Mutex::default(),
            asked: AtomicBool::new(false),
            places: Mutex::default(),
            placed: Condvar::new(),
        })
    }

    /// Where the vCPUs of a guest that is stuck are. Those that sleep say nothing.
    pub fn places(&self) -> String {
        /// Far more than a thread takes that is interrupted.
        const ANSWER: Duration = Duration::from_millis(500);
        let Some(shared) = self.shared.get().and_then(Weak::upgrade) else { return String::new() };
        self.asked.store(true, Ordering::SeqCst);
        shared.vcpus.iter().for_each(|vcpu| vcpu.interrupt());
        let places = self
            .placed
            .wait_timeout_while(lock(&self.places), ANSWER, |places| places.len() < shared.vcpus.len())
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        places.values().cloned().collect()
    }

    fn say_place(&self, id: VcpuId, vcpu: &VcpuFd) {
        let place = match (vcpu.get_regs(), vcpu.get_sregs()) {
            (Ok(registers), Ok(special)) => {
                format!("vCPU {} at {:#x}:{registers:x?}; ", id.index(), special.cs.selector)
            }
            (Err(error), _) | (_, Err(error)) => format!("vCPU {}: {error}; ", id.index()),
        };
        lock(&self.places).insert(id.index(), place);
        self.placed.notify_all();
    }

    /// What it has done, and how often.
    pub fn done(&self) -> BTreeMap<String, u64> {
        lock(&self.done).clone()
    }

    fn count(&self, what: &str) {
        *lock(&self.done).entry(what.into()).or_default() += 1;
    }

    /// Misbehaves for as long as the plan says, then never again: from then on this is an honest host, which lets all workers
    /// run, looks at the rings and wakes vCPU 0 once more.
    pub fn attack(&self, cvm: &Cvm) {
        let Some(shared) = self.shared.get().and_then(Weak::upgrade) else { return };
        let mut rng = self.plan.rng(1);
        let end = Instant::now() + Duration::from_micros(self.plan.hostile_us);
        self.hostile.store(true, Ordering::SeqCst);
        while Instant::now() < end && !shared.stop.load(Ordering::SeqCst) {
            if let Some(attack) = (!self.plan.attacks.is_empty()).then(|| rng.pick(&self.plan.attacks)) {
                self.count(&format!("{attack:?}"));
                self.carry_out(attack, cvm, &shared, &mut rng);
            }
            // The pace of the attacks; nothing waits for it.
            std::thread::sleep(Duration::from_micros(rng.below(2 * self.plan.pause_us)));
        }
        self.behave(cvm, &shared);
    }

    fn behave(&self, cvm: &Cvm, shared: &Shared) {
        self.hostile.store(false, Ordering::SeqCst);
        drop(lock(&self.holding));
        self.release.notify_all();
        let window = link::window_of(shared);
        for (word, value) in [(ControlWord::HostAwake, 0), (ControlWord::HostWantsRoom, 0)] {
            window.set_control(word, value);
        }
        let page = window.elastic();
        for (word, value) in [
            (ElasticWord::Grant, self.plan.workers.into()),
            (ElasticWord::Reclaim, 0),
            (ElasticWord::SpinLimit, SPIN_LIMIT_DEFAULT_NS),
            (ElasticWord::DemandSeen, 0),
        ] {
            page.set(word, value);
        }
        (1..self.desks.len()).for_each(|worker| reclaim(cvm, worker, false));
        cvm.look_at_rings();
        // One honest wake: whatever it has missed, vCPU 0 now looks.
        let _ = shared.vcpus[0].wake.write(1);
    }

    fn carry_out(&self, attack: Attack, cvm: &Cvm, shared: &Shared, rng: &mut Rng) {
        let one = rng.below(self.desks.len() as u64) as usize;
        let hold = |rng: &mut Rng| Order::Hold(Duration::from_micros(rng.below(self.plan.hold_us)));
        match attack {
            Attack::WakeOne => drop(shared.vcpus[one].wake.write(rng.between(1, 3))),
            Attack::WakeAll => shared.vcpus.iter().for_each(|vcpu| drop(vcpu.wake.write(1))),
            Attack::HoldOne => self.order(one, hold(rng), shared),
            Attack::HoldNormal => self.order(0, hold(rng), shared),
            Attack::HoldAll => (0..self.desks.len()).for_each(|vcpu| self.order(vcpu, hold(rng), shared)),
            Attack::PageFault
            | Attack::InvalidOpcode
            | Attack::Division
            | Attack::OtherException
            | Attack::Nmi
            | Attack::Interrupt
            | Attack::Time => self.order(one, Order::Inject(inject::of(attack, rng)), shared),
            Attack::Hints => hints(&link::window_of(shared), rng, self.plan.from_boot),
            Attack::Mailbox => mailbox(&link::window_of(shared), rng),
            Attack::Indices => indices(shared, rng),
            Attack::Headers => headers(shared, rng),
            Attack::SharedPage => shared_page(&link::window_of(shared), rng, self.plan.from_boot),
            Attack::Reclaim => reclaim(cvm, one, rng.chance(500)),
            Attack::ReclaimAll => {
                let take = rng.chance(500);
                (1..self.desks.len()).for_each(|worker| reclaim(cvm, worker, take));
            }
            // Sent by a thread of their own, which may have to wait for room: see `run`.
            Attack::Messages => {}
        }
    }

    /// Gives an order, and gets the vCPU out of the guest to carry it out there and then.
    fn order(&self, vcpu: usize, order: Order, shared: &Shared) {
        let mut desk = lock(&self.desks[vcpu]);
        if desk.orders.len() < 4 {
            desk.orders.push_back(order);
        }
        drop(desk);
        shared.vcpus[vcpu].interrupt();
    }

    /// Whether it misbehaves now.
    pub fn is_attacking(&self) -> bool {
        self.hostile.load(Ordering::SeqCst)
    }

    fn is_hostile(&self, shared: &Shared) -> bool {
        self.hostile.load(Ordering::SeqCst) && !shared.stop.load(Ordering::SeqCst)
    }

    /// Keeps this vCPU's thread for a while, at most until the host behaves again.
    fn hold(&self, time: Duration, shared: &Shared) {
        let (end, mut guard) = (Instant::now() + time, lock(&self.holding));
        while self.is_hostile(shared)
            && let Some(rest) = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
        {
            // In pieces, so that the end of the CVM is seen too.
            let piece = rest.min(Duration::from_millis(5));
            guard = self.release.wait_timeout(guard, piece).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Hooks for Adversary {
    fn processor(&self, cpuid: &mut CpuId, xcr0: &mut u64) {
        inject::lie_about_processor(self.plan.lie, cpuid, xcr0, &mut self.plan.rng(2));
    }

    fn starting(&self, shared: &Arc<Shared>) {
        let _ = self.shared.set(Arc::downgrade(shared));
        let (window, mut rng) = (link::window_of(shared), self.plan.rng(3));
        match self.plan.lie {
            LaunchLie::ClockRate => window.set_control(ControlWord::TscKhz, rng.between(100_000, 20_000_000)),
            LaunchLie::ImpossibleClockRate => {
                window.set_control(ControlWord::TscKhz, rng.pick(&[0, 1, u64::MAX, 99_999]))
            }
            LaunchLie::WallClock => {
                window.set_control(ControlWord::WallClockNs, rng.next());
                window.set_control(ControlWord::WallClockTsc, rng.next());
            }
            LaunchLie::Magic => {
                window.set_control(rng.pick(&[ControlWord::Magic, ControlWord::AbiVersion]), rng.next())
            }
            _ => {}
        }
    }

    fn entering(&self, id: VcpuId, vcpu: &VcpuFd, shared: &Shared) {
        if self.asked.load(Ordering::SeqCst) {
            self.say_place(id, vcpu);
        }
        loop {
            let mut desk = lock(&self.desks[id.index()]);
            desk.entries += 1;
            let inside = shared.vcpus[id.index()].counters.run_ns.load(Ordering::Relaxed);
            let settled = desk.entries > SETTLED.0 && inside > SETTLED.1 || self.plan.from_boot;
            let order = desk.orders.pop_front();
            drop(desk);
            match order {
                None => return,
                Some(_) if !self.is_hostile(shared) => {}
                Some(Order::Inject(
                    Injection::Exception { .. } | Injection::Nmi | Injection::Interrupt(_),
                )) if !settled => {}
                Some(Order::Hold(time)) => self.hold(time, shared),
                Some(Order::Inject(injection)) => {
                    if let Err(error) = injection.apply(vcpu) {
                        self.count(&format!("{injection:?} refused: {error}"));
                    }
                }
            }
        }
    }

    fn woken(&self, id: VcpuId, shared: &Shared) -> bool {
        if !self.is_hostile(shared) {
            return true;
        }
        let mut desk = lock(&self.desks[id.index()]);
        let (roll, other) = (desk.rng.below(1000), desk.rng.below(self.desks.len() as u64) as usize);
        let delay = Duration::from_micros(desk.rng.below(self.plan.hold_us));
        drop(desk);
        let mut bound = 0;
        let mut falls_in = |rate: u64| {
            bound += rate;
            rate > 0 && roll < bound
        };
        let rates = self.plan.wakes;
        if falls_in(rates.dropped) {
            self.count("wake dropped");
            return false;
        }
        if falls_in(rates.misdirected) {
            self.count("wake misdirected");
            let _ = shared.vcpus[other].wake.write(1);
            return other == id.index();
        }
        if falls_in(rates.duplicated) {
            self.count("wake duplicated");
            let _ = shared.vcpus[id.index()].wake.write(1);
        } else if falls_in(rates.delayed) {
            self.count("wake delayed");
            self.hold(delay, shared);
        }
        true
    }
}

/// Asks for a worker, or lets it run again. The CVM may have ended meanwhile, and vCPU 0 is not to be had.
fn reclaim(cvm: &Cvm, worker: usize, take: bool) {
    if let Some(worker) = VcpuId::new(worker as u32) {
        let _ = if take { cvm.reclaim(worker).map(drop) } else { cvm.allow(worker) };
    }
}

/// Any value for the words of the shared page; both sides write some of them again when they have a reason to. The version
/// only once the guest has read it.
fn shared_page(window: &Window<'_>, rng: &mut Rng, starts: bool) {
    const WORDS: [ElasticWord; 8] = [
        ElasticWord::Grant,
        ElasticWord::Reclaim,
        ElasticWord::SpinLimit,
        ElasticWord::DemandSeen,
        ElasticWord::Demand,
        ElasticWord::EpochOfPrograms,
        ElasticWord::EpochOfCalls,
        ElasticWord::Version,
    ];
    let (any, words) = (rng.next(), if starts { &WORDS[..7] } else { &WORDS });
    window.elastic().set(rng.pick(words), rng.pick(&[0, 1, any & 7, any & 0xff, any, u64::MAX]));
}

/// Any value for the words that the guest reads while it runs, for the one it writes, and, once it has started, for those
/// that it has read at its start.
fn hints(window: &Window<'_>, rng: &mut Rng, starts: bool) {
    let words = [
        ControlWord::HostAwake,
        ControlWord::HostWantsRoom,
        ControlWord::NormalParked,
        ControlWord::TscKhz,
        ControlWord::WallClockNs,
        ControlWord::Magic,
    ];
    let words = if starts { &words[..3] } else { &words };
    window.set_control(rng.pick(words), if rng.chance(500) { rng.below(2) } else { rng.next() });
}

/// Odd values only: an even one could be a range of large pages, and a host that gives guest memory away without having
/// been asked is what the hardware prevents, not the guest.
fn mailbox(window: &Window<'_>, rng: &mut Rng) {
    let Some(vcpu) = VcpuId::new(rng.below(u64::from(window.vcpus())) as u32) else { return };
    let word = rng.pick(&[0, 0, 1, rng.clone().below(MAILBOX_BYTES / 8)]) as usize;
    window.mailbox(vcpu)[word].store(rng.next() | 1, Ordering::Relaxed);
}

/// Byte offsets of the rings in the window, first the one to the guest.
fn ring_offsets(vcpus: u32) -> Vec<(u64, u64)> {
    use nacre_abi::window::{RING_HEADER_BYTES, RINGS, TO_GUEST_BYTES, TO_HOST_BYTES};
    let first = RINGS + RING_HEADER_BYTES + TO_GUEST_BYTES;
    let to_host =
        (0..u64::from(vcpus)).map(|vcpu| (first + vcpu * (RING_HEADER_BYTES + TO_HOST_BYTES), TO_HOST_BYTES));
    [(RINGS, TO_GUEST_BYTES)].into_iter().chain(to_host).collect()
}

/// Any value in one of the two indices of any ring: zero, near the present one, or anything.
fn indices(shared: &Shared, rng: &mut Rng) {
    let (offset, _) = rng.pick(&ring_offsets(shared.vcpus.len() as u32));
    let index = if rng.chance(500) { 0 } else { 16 };
    let word = &shared.machine.shared().words()[(offset / 8 + index) as usize];
    let near = word.load(Ordering::Relaxed).wrapping_add(rng.below(64)).wrapping_sub(32);
    word.store(rng.pick(&[0, near, near & !7, rng.clone().next()]), Ordering::Relaxed);
}

/// Garbage over the words where the consumer of a ring will look for the next header.
fn headers(shared: &Shared, rng: &mut Rng) {
    let (offset, bytes) = ring_offsets(shared.vcpus.len() as u32)[0];
    let words = shared.machine.shared().words();
    let producer = &words[(offset / 8) as usize + 16];
    let tail = producer.load(Ordering::Relaxed);
    let at = tail.wrapping_sub(rng.below(16) * 8) % bytes / 8;
    let data = (offset + nacre_abi::window::RING_HEADER_BYTES) / 8;
    words[(data + at) as usize].store(rng.next(), Ordering::Relaxed);
    // Announce it.
    if rng.chance(500) {
        producer.store(tail.wrapping_add(24), Ordering::Release);
    }
}
