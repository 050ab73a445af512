//! Measurements that only a guest can make of itself: [`Cvm::probe`], for benchmarks. Needs the debug image.

use super::ElasticError;
use crate::cvm::{Cvm, CvmError};
use crate::events::ProgramEvent;
use nacre_abi::message::{Header, Kind};
use std::time::Duration;

/// What to measure, `samples` times (at most 5,000). All of them keep vCPU 0 busy until they are over, at most 20 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The bare floor: a worker writes vCPU 0's wake port, `settle` after that began to park; until vCPU 0 executes the next
    /// instruction. No queue, no scheduler and no CPU manager is involved.
    Floor {
        /// How often.
        samples: u64,
        /// Long enough for the thread to sleep: some 50 us.
        settle: Duration,
    },
    /// vCPU 0 wakes a sleeping task when all workers have been parked for `settle`; until the task's first instruction.
    WakeParked {
        /// How often.
        samples: u64,
        /// See there.
        settle: Duration,
    },
    /// The same `after` the task went to sleep, whatever the workers do then: below the spinning time, a wake of a
    /// spinning worker.
    WakeAfter {
        /// How often.
        samples: u64,
        /// See there.
        after: Duration,
    },
    /// Requests without memory (Poisson arrivals) for one task that serves them; from each one's arrival until the task
    /// begins with it.
    Poisson {
        /// How many requests.
        samples: u64,
        /// Mean time between two.
        mean: Duration,
        /// Time that each computes.
        work: Duration,
    },
    /// The same with requests in bursts. Samples are in the order of the requests.
    Bursts {
        /// How many requests.
        samples: u64,
        /// Requests in a burst.
        burst: u64,
        /// Time between two requests of a burst.
        gap: Duration,
        /// Time from the last request of a burst to the next burst.
        pause: Duration,
        /// Time that each computes.
        work: Duration,
    },
}

impl Probe {
    /// The body of the message: kind, samples, interval, burst, gap, work.
    fn encode(&self) -> Vec<u8> {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let words = match *self {
            Probe::Floor { samples, settle } => [1, samples, ns(settle), 0, 0, 0],
            Probe::WakeParked { samples, settle } => [2, samples, ns(settle), 0, 0, 0],
            Probe::WakeAfter { samples, after } => [3, samples, ns(after), 0, 0, 0],
            Probe::Poisson { samples, mean, work } => [4, samples, ns(mean), 0, 0, ns(work)],
            Probe::Bursts { samples, burst, gap, pause, work } => {
                [4, samples, ns(pause), burst.max(1), ns(gap), ns(work)]
            }
        };
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

impl Cvm {
    /// Measures inside the guest, by its clock.
    ///
    /// # Errors
    /// [`ElasticError::NeedsDebugImage`], or [`CvmError::Ended`].
    pub fn probe(&self, probe: Probe) -> Result<Vec<Duration>, CvmError> {
        if !self.is_debug_image() {
            return Err(ElasticError::NeedsDebugImage.into());
        }
        let (id, events) = self.new_program();
        self.send(Header::new(Kind::SelfTest, id.0), &probe.encode())?;
        let samples = loop {
            let event = events.recv().ok_or_else(|| self.end_error())?;
            if let ProgramEvent::Message(Header { kind: Kind::SelfTest, .. }, body) = event {
                let text = String::from_utf8_lossy(&body).into_owned();
                break text
                    .split_ascii_whitespace()
                    .filter_map(|ns| ns.parse().ok())
                    .map(Duration::from_nanos)
                    .collect();
            }
        };
        self.forget_program(id);
        Ok(samples)
    }
}
