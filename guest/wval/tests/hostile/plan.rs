//! What a seed does: the tasks, and how the host misbehaves.

use crate::host::VCPUS;
use crate::schedule::Rng;

/// One thing left out of the guest, for the tests of the simulation itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The guest as it is.
    Nothing,
    /// Workers do not look at the queues again before they park.
    NoSecondLook,
    /// Wakes that were lost are never repeated.
    NoDoubt,
    /// vCPU 0 does not look at its ring again before it parks.
    NoSecondLookAtTheRing,
    /// Nobody wakes vCPU 0 for a timer that is earlier than its sleep.
    NoTimerWake,
    /// A task is found parked before its context is saved.
    LockedTask,
}

/// What a seed does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// vCPUs, vCPU 0 among them.
    pub vcpus: usize,
    /// Wakes in a thousand that are dropped.
    pub dropped: u64,
    /// That go elsewhere.
    pub misdirected: u64,
    /// That come late.
    pub delayed: u64,
    /// That come twice.
    pub repeated: u64,
    /// Until when, in simulated time, the host misbehaves.
    pub hostile_ns: u64,
    /// Wakes for nothing and changed grants.
    pub mischiefs: u64,
    /// What the tasks do.
    pub tasks: Vec<Vec<Op>>,
    /// What is left out.
    pub broken: Broken,
}

/// One step of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Computes for so many steps.
    Compute(u64),
    /// Lets others run.
    Yield,
    /// Sleeps for so many nanoseconds.
    Sleep(u64),
    /// Goes on when its partner (the task whose number differs in the lowest bit) has come as far.
    Meet,
    /// Writes to the host.
    Send,
}

impl Plan {
    /// The plan of a seed.
    pub fn from_seed(seed: u64, broken: Broken) -> Plan {
        let mut rng = Rng(seed ^ 0x706c_616e);
        let mut rate = || if rng.chance(400) { rng.pick(&[20, 100, 300]) } else { 0 };
        let (dropped, misdirected, delayed, repeated) = (rate(), rate(), rate(), rate());
        let pairs = 1 + rng.below(3);
        let mut tasks = Vec::new();
        for _ in 0..pairs {
            let meetings = rng.below(4);
            for _ in 0..2 {
                let mut ops: Vec<Op> = (0..2 + rng.below(6))
                    .map(|_| match rng.below(5) {
                        0 => Op::Compute(rng.below(20)),
                        1 => Op::Yield,
                        2 => Op::Sleep(rng.pick(&[1_000, 300_000, 40_000_000])),
                        _ => Op::Send,
                    })
                    .collect();
                for _ in 0..meetings {
                    let at = rng.below(ops.len() as u64 + 1) as usize;
                    ops.insert(at, Op::Meet);
                }
                tasks.push(ops);
            }
        }
        Plan {
            seed,
            vcpus: 1 + rng.below(VCPUS as u64) as usize,
            dropped,
            misdirected,
            delayed,
            repeated,
            hostile_ns: rng.pick(&[0, 1_000_000, 50_000_000, 500_000_000]),
            mischiefs: rng.below(12),
            tasks,
            broken,
        }
    }
}
