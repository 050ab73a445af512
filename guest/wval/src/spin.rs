//! [`SpinPolicy`]: how long a worker looks for work before it parks.
//!
//! A wake costs tens of microseconds, a spinning worker costs its CPU. The policy keeps an exponentially weighted mean of
//! how long the last waits for work took. If work is expected within the bound, it spins for twice the
//! expected wait; otherwise not longer than the minimum, because spinning would most likely be in vain. Waits count
//! with at most four times the bound, so one long idle period is forgotten after a few short ones.

/// The bounds of spinning, in TSC cycles. Values that make no sense are read as the nearest that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpinConfig {
    /// Spin at least this long, even when nothing is expected.
    pub min_cycles: u64,
    /// Never spin longer. Sensible: about what a wake costs.
    pub max_cycles: u64,
    /// A new wait weighs 1 / 2^shift (at most 2^16).
    pub weight_shift: u32,
}

/// One worker's estimate.
#[derive(Clone, Debug)]
pub struct SpinPolicy {
    config: SpinConfig,
    mean_cycles: u64,
}

impl SpinPolicy {
    /// A policy that at first expects work at the bound.
    pub fn new(config: SpinConfig) -> Self {
        let max_cycles = config.max_cycles.min(u64::MAX >> 20);
        let min_cycles = config.min_cycles.min(max_cycles);
        let config = SpinConfig { min_cycles, max_cycles, weight_shift: config.weight_shift.min(16) };
        SpinPolicy { config, mean_cycles: max_cycles }
    }

    /// Work came `waited_cycles` after the worker had run dry, whether it spun or was parked meanwhile.
    pub fn work_came(&mut self, waited_cycles: u64) {
        let sample = waited_cycles.min(self.config.max_cycles * 4);
        let mean = self.mean_cycles;
        self.mean_cycles = if sample >= mean {
            mean + ((sample - mean) >> self.config.weight_shift)
        } else {
            // Rounded up, so that the mean reaches small samples.
            mean - (mean - sample).div_ceil(1 << self.config.weight_shift)
        };
    }

    /// How long to spin now.
    pub fn budget_cycles(&self) -> u64 {
        let SpinConfig { min_cycles, max_cycles, .. } = self.config;
        if self.mean_cycles > max_cycles {
            min_cycles
        } else {
            (self.mean_cycles * 2).clamp(min_cycles, max_cycles)
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: SpinConfig = SpinConfig { min_cycles: 100, max_cycles: 40_000, weight_shift: 3 };

    #[test]
    fn follows_the_arrivals_and_forgets_one_long_wait() {
        let mut p = SpinPolicy::new(CONFIG);
        assert_eq!(p.budget_cycles(), 40_000);
        for _ in 0..100 {
            p.work_came(3_000);
        }
        assert_eq!(p.budget_cycles(), 6_000);
        p.work_came(u64::MAX);
        let after_pause = p.budget_cycles();
        assert!(after_pause > 6_000, "{after_pause}");
        for _ in 0..10 {
            p.work_came(u64::MAX);
        }
        assert_eq!(p.budget_cycles(), 100, "rare work: do not spin");
        let mut needed = 0;
        while p.budget_cycles() == 100 {
            p.work_came(1_000);
            needed += 1;
        }
        assert!(needed <= 16, "{needed}");
        for _ in 0..200 {
            p.work_came(0);
        }
        assert_eq!(p.budget_cycles(), 100);
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(min: u64, max: u64, shift: u32, waits: Vec<u64>) {
            let mut p = SpinPolicy::new(SpinConfig { min_cycles: min, max_cycles: max, weight_shift: shift });
            for w in waits {
                p.work_came(w);
                prop_assert!(p.budget_cycles() <= max);
                prop_assert!(p.budget_cycles() >= min.min(max).min(u64::MAX >> 20));
            }
        }
    }
}
