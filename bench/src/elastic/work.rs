//! The program that the elastic CPU is measured with: it computes for a given time, again and again, and sleeps or polls in
//! between. How long an iteration takes is found out on the host first.

use crate::BenchError;
use crate::host::{HostEngine, HostProgram, binary_form};
use crate::programs::container;
use std::time::Duration;

/// Iterations that are timed to know how long one takes.
const CALIBRATION: u32 = 30_000_000;

/// What the program does between two pieces of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Nothing.
    None,
    /// Sleeps.
    Sleep(Duration),
    /// Looks at the clock all the time.
    Poll(Duration),
}

/// A compiled program, for the host and for a CVM.
pub struct Work {
    /// For this process.
    pub host: HostProgram,
    /// A `.cwasm`.
    pub code: Vec<u8>,
}

/// Makes programs of a given length.
pub struct Workshop {
    engine: HostEngine,
    ns_per_iteration: f64,
}

impl Workshop {
    /// Finds out how fast this machine is.
    ///
    /// # Errors
    /// If the program does not run.
    pub fn new() -> Result<Self, BenchError> {
        let engine = HostEngine::same()?;
        let program = engine.load(text(CALIBRATION, 1, Pause::None).as_bytes())?;
        let mut least = Duration::MAX;
        for _ in 0..5 {
            least = least.min(program.run(vec!["work".into()])?.cpu);
        }
        Ok(Self { engine, ns_per_iteration: least.as_nanos() as f64 / f64::from(CALIBRATION) })
    }

    /// A program that computes for about `piece`, `rounds` times.
    ///
    /// # Errors
    /// If it does not compile.
    pub fn make(&self, piece: Duration, rounds: u32, pause: Pause) -> Result<Work, BenchError> {
        let iterations = (piece.as_nanos() as f64 / self.ns_per_iteration).max(1.0) as u32;
        let source = text(iterations, rounds, pause);
        let host = self.engine.load(source.as_bytes())?;
        let code = container(&binary_form(source.as_bytes())?, &host.code()?, 1 << 16)?;
        Ok(Work { host, code })
    }
}

fn text(iterations: u32, rounds: u32, pause: Pause) -> String {
    let (pause, poll) = match pause {
        Pause::None => (Duration::ZERO, 0),
        Pause::Sleep(pause) => (pause, 0),
        Pause::Poll(pause) => (pause, 1),
    };
    include_str!("../../programs/work.wat")
        .replace("ITERATIONS", &iterations.to_string())
        .replace("ROUNDS", &rounds.max(1).to_string())
        .replace("PAUSE", &pause.as_nanos().to_string())
        .replace("POLL", &poll.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_change_nothing_but_the_time() {
        let engine = HostEngine::same().unwrap();
        let run = |pause| {
            let program = engine.load(text(1000, 3, pause).as_bytes()).unwrap();
            program.run(vec!["work".into()]).unwrap()
        };
        let millisecond = Duration::from_millis(1);
        let (plain, polled) = (run(Pause::None), run(Pause::Poll(millisecond)));
        assert_eq!(plain.output.len(), 8);
        assert_eq!(plain.output, polled.output);
        assert_eq!(plain.output, run(Pause::Sleep(millisecond)).output);
        assert!(polled.elapsed >= 3 * millisecond);
        assert_ne!(
            plain.output,
            engine
                .load(text(999, 3, Pause::None).as_bytes())
                .unwrap()
                .run(vec!["work".into()])
                .unwrap()
                .output
        );
    }
}
