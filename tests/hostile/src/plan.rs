//! What a host does on a seed: a [`Plan`] is a pure function of its number, so printing the number is enough to repeat it.
//!
//! The plan repeats exactly; when its parts meet the guest does not, because vCPUs are threads of this machine. A seed that
//! failed may have to be run a few times (`--repeat`).

use crate::programs::{Job, Work};
use std::fmt;
use std::time::Duration;

/// Random numbers that are the same everywhere (SplitMix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `permille` times in a thousand.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What a guest owes under a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Everything finishes with the right results once the host behaves again.
    Recoverable,
    /// The same, or the CVM ends with a named reason, because an exception destroyed another one's frame.
    Exceptions,
    /// Right results, or the CVM ends with a named reason, or it makes no progress and can be stopped.
    Window,
    /// Right results, or a clear refusal, or the CVM ends with a named reason.
    Launch,
}

/// One kind of misbehaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Wakes one vCPU for nothing.
    WakeOne,
    /// Wakes all of them for nothing.
    WakeAll,
    /// Stops one vCPU at whatever instruction it is, for a while.
    HoldOne,
    /// Stops vCPU 0.
    HoldNormal,
    /// Stops all of them.
    HoldAll,
    /// A page fault that did not happen, at an invented address.
    PageFault,
    /// An invalid opcode that did not happen.
    InvalidOpcode,
    /// A division error that did not happen.
    Division,
    /// Any other exception, with any error code.
    OtherException,
    /// A non-maskable interrupt.
    Nmi,
    /// An interrupt of any vector.
    Interrupt,
    /// Sets one vCPU's time stamp counter forwards or backwards.
    Time,
    /// Garbage in the control page's words that are hints at run time.
    Hints,
    /// Garbage in a mailbox.
    Mailbox,
    /// Grant, reclaim and spin limit set to any values behind the manager's back, and the demand overwritten.
    SharedPage,
    /// A worker is asked to park, and stopped by force if it does not at once; or it is allowed again.
    Reclaim,
    /// Storms of reclaims: all workers taken away, or given back.
    ReclaimAll,
    /// Messages with contents no honest host sends.
    Messages,
    /// Garbage in a ring's indices.
    Indices,
    /// Garbage where the next message's header will be read.
    Headers,
}

/// Those after which everything must go on.
const RECOVERABLE: [Attack; 12] = [
    Attack::WakeOne,
    Attack::WakeAll,
    Attack::HoldOne,
    Attack::HoldNormal,
    Attack::HoldAll,
    Attack::Time,
    Attack::Hints,
    Attack::Mailbox,
    Attack::SharedPage,
    Attack::Reclaim,
    Attack::ReclaimAll,
    Attack::Messages,
];
const EXCEPTIONS: [Attack; 6] = [
    Attack::PageFault,
    Attack::InvalidOpcode,
    Attack::Division,
    Attack::OtherException,
    Attack::Nmi,
    Attack::Interrupt,
];
const WINDOW: [Attack; 2] = [Attack::Indices, Attack::Headers];

/// What becomes of a wake, in thousandths of all; the rest arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WakeRates {
    /// It never arrives.
    pub dropped: u64,
    /// It arrives later.
    pub delayed: u64,
    /// Another vCPU gets it.
    pub misdirected: u64,
    /// It arrives twice.
    pub duplicated: u64,
}

/// What the host says about the machine at launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchLie {
    /// Nothing wrong.
    None,
    /// A CPUID feature that compiled code needs is hidden.
    MissingFeature,
    /// Features that the processor may not have are claimed.
    ExtraFeatures,
    /// All of CPUID is random.
    RandomCpuid,
    /// XCR0 has AVX-512 off.
    Xcr0WithoutAvx512,
    /// XCR0 has everything off but x87 and SSE.
    Xcr0Minimal,
    /// The rate of the time stamp counter is wrong but possible.
    ClockRate,
    /// The rate is impossible.
    ImpossibleClockRate,
    /// Wall clock and its counter are any numbers.
    WallClock,
    /// The magic or version of the window is wrong.
    Magic,
}

const LIES: [LaunchLie; 9] = [
    LaunchLie::MissingFeature,
    LaunchLie::ExtraFeatures,
    LaunchLie::RandomCpuid,
    LaunchLie::Xcr0WithoutAvx512,
    LaunchLie::Xcr0Minimal,
    LaunchLie::ClockRate,
    LaunchLie::ImpossibleClockRate,
    LaunchLie::WallClock,
    LaunchLie::Magic,
];

/// What the host does on one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What the guest owes.
    pub class: Class,
    /// The debug image, which is asked to look through itself at the end; else the one that is released.
    pub debug_image: bool,
    /// Worker vCPUs.
    pub workers: u32,
    /// Private memory in bytes.
    pub memory_bytes: u64,
    /// The programs and calls, all at once.
    pub jobs: Vec<Job>,
    /// Whether it misbehaves while the guest boots, not only once that is up.
    pub from_boot: bool,
    /// How long the host misbehaves, in microseconds, unless the programs end before.
    pub hostile_us: u64,
    /// Mean time between two attacks in microseconds.
    pub pause_us: u64,
    /// Longest stop of a vCPU in microseconds.
    pub hold_us: u64,
    /// What becomes of wakes.
    pub wakes: WakeRates,
    /// What else it does, each as often as the others.
    pub attacks: Vec<Attack>,
    /// What it says at launch.
    pub lie: LaunchLie,
}

impl Plan {
    /// The plan of a seed.
    pub fn from_seed(seed: u64) -> Plan {
        let mut rng = Rng::new(seed ^ 0x6e61_6372_6500);
        let class = match rng.below(100) {
            0..55 => Class::Recoverable,
            55..80 => Class::Exceptions,
            80..90 => Class::Window,
            _ => Class::Launch,
        };
        let mut attacks = subset(&mut rng, &RECOVERABLE, 450);
        match class {
            Class::Exceptions => attacks.extend(non_empty_subset(&mut rng, &EXCEPTIONS)),
            Class::Window => attacks.extend(non_empty_subset(&mut rng, &WINDOW)),
            Class::Recoverable if attacks.is_empty() => attacks.push(rng.pick(&RECOVERABLE)),
            Class::Launch => attacks.clear(),
            Class::Recoverable => {}
        }
        let mut rate = |share: u64| if rng.chance(share) { rng.pick(&[10, 50, 200, 500, 1000]) } else { 0 };
        let wakes = match class {
            Class::Launch => WakeRates::default(),
            _ => WakeRates {
                dropped: rate(500),
                delayed: rate(300),
                misdirected: rate(300),
                duplicated: rate(200),
            },
        };
        // Garbage on the ring to the guest may hit input, which is the host's to change.
        let works: Vec<Work> =
            Work::ALL.into_iter().filter(|work| class != Class::Window || !work.reads_input()).collect();
        let mut called = Rng::new(seed ^ 0x6361_6c6c_7300);
        let jobs = (0..rng.between(1, 5)).map(|_| {
            let (work, number) = (rng.pick(&works), rng.next());
            Job { work, number, calls: called.chance(400) && work.can_be_called() }
        });
        let jobs = jobs.collect();
        Plan {
            seed,
            class,
            debug_image: rng.chance(500),
            workers: rng.pick(&[0, 1, 1, 2, 2, 3, 5]),
            memory_bytes: rng.pick(&[256, 320, 512]) << 20,
            jobs,
            from_boot: rng.chance(if class == Class::Exceptions { 100 } else { 700 }),
            hostile_us: rng.between(2_000, 60_000),
            pause_us: rng.pick(&[20, 100, 100, 500, 2_000]),
            hold_us: rng.pick(&[100, 1_000, 10_000]),
            wakes,
            attacks,
            lie: if class == Class::Launch { rng.pick(&LIES) } else { LaunchLie::None },
        }
    }

    /// How many calls one job makes. What is on the ring is the host's to change, and a plan that does so begins when all
    /// requests have been read.
    pub fn calls_each(&self) -> usize {
        if self.class == Class::Window { 1 } else { 3 }
    }

    /// Random numbers for one part of the plan.
    pub fn rng(&self, part: u64) -> Rng {
        Rng::new(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(part))
    }

    /// Time between asking a worker to park and stopping it by force.
    pub fn grace(&self) -> Duration {
        Duration::from_micros(self.rng(5).pick(&[0, 50, 1_000, 5_000]))
    }

    /// The command that runs it again.
    pub fn replay(&self) -> String {
        format!("cargo run --release -p nacre-hostile -- --seed {} --repeat 20", self.seed)
    }
}

fn subset(rng: &mut Rng, of: &[Attack], permille: u64) -> Vec<Attack> {
    of.iter().copied().filter(|_| rng.chance(permille)).collect()
}

fn non_empty_subset(rng: &mut Rng, of: &[Attack]) -> Vec<Attack> {
    let some = subset(rng, of, 400);
    if some.is_empty() { vec![rng.pick(of)] } else { some }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = if self.debug_image { "debug" } else { "release" };
        let (mib, wakes) = (self.memory_bytes >> 20, self.wakes);
        write!(
            f,
            "seed {}: {:?}, {image} image, {} workers, {mib} MiB, ",
            self.seed, self.class, self.workers
        )?;
        for job in &self.jobs {
            let how = if job.calls { "calls " } else { "" };
            write!(f, "{how}{:?} {} ", job.work, job.argument())?;
        }
        if self.lie != LaunchLie::None {
            write!(f, "; says {:?}", self.lie)?;
        }
        write!(
            f,
            "; for {} us every {} us one of {:?}, holds up to {} us; of 1000 wakes {} dropped, {} delayed, {} misdirected, {} duplicated",
            self.hostile_us,
            self.pause_us,
            self.attacks,
            self.hold_us,
            wakes.dropped,
            wakes.delayed,
            wakes.misdirected,
            wakes.duplicated
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_function_of_its_seed() {
        for seed in 0..200 {
            assert_eq!(Plan::from_seed(seed), Plan::from_seed(seed));
        }
        assert_ne!(Plan::from_seed(1).to_string(), Plan::from_seed(2).to_string());
    }

    #[test]
    fn a_hundred_seeds_do_everything() {
        let plans: Vec<_> = (0..100).map(Plan::from_seed).collect();
        for attack in RECOVERABLE.iter().chain(&EXCEPTIONS).chain(&WINDOW) {
            assert!(plans.iter().any(|plan| plan.attacks.contains(attack)), "{attack:?}");
        }
        for work in Work::ALL {
            let is_there = |calls| {
                let mut jobs = plans.iter().flat_map(|plan| &plan.jobs);
                jobs.any(|job| job.work == work && job.calls == calls)
            };
            assert!(is_there(false) && is_there(true) == work.can_be_called(), "{work:?}");
        }
        let wakes = |of: fn(&WakeRates) -> u64| plans.iter().any(|plan| of(&plan.wakes) > 0);
        assert!(
            wakes(|w| w.dropped)
                && wakes(|w| w.delayed)
                && wakes(|w| w.misdirected)
                && wakes(|w| w.duplicated)
        );
        assert!(plans.iter().any(|plan| plan.debug_image) && plans.iter().any(|plan| !plan.debug_image));
        assert!(plans.iter().all(|plan| plan.class != Class::Launch || plan.lie != LaunchLie::None));
    }
}
