//! [`SpinPolicy`]: how long a worker looks for work before it parks.
//!
//! One number says what a wake is worth: the *limit*. It is the longest that a worker ever spins, and what the policy
//! takes a park to cost (the CPU of an exit and a wake, and the latency that somebody waits meanwhile). From the waits for
//! work that a worker has seen it keeps a histogram with logarithmic buckets in which old waits fade, and spins for
//! the time `t` that costs least:
//!
//! ```text
//! cost(t) = sum over waits shorter than t of the wait  +  share of longer ones * (t + limit)
//! ```
//!
//! This is the ski-rental problem with a known distribution (Karlin et al., Algorithmica 11, 1994); without one, spinning
//! for the limit is at most twice as dear as the best. Arrivals without memory (Poisson) that are rarer than the
//! limit give `t = 0`: the worker parks at once. Bursts give a `t` that bridges the gaps inside a burst and not those
//! between, whatever their mean.

/// Upper ends of the buckets are 1 us << 0 to 1 us << 14 (16 ms); what is longer is in one more.
const BUCKETS: usize = 16;
const FIRST_NS: u64 = 1_000;
/// Weight of a new wait; all weights together come to about `WEIGHT << FADE`.
const WEIGHT: u32 = 4096;
/// Each new wait takes 1 / 2^FADE from the weight of the older ones.
const FADE: u32 = 4;

/// One worker's estimate.
#[derive(Clone, Debug)]
pub struct SpinPolicy {
    weights: [u32; BUCKETS],
}

impl Default for SpinPolicy {
    fn default() -> Self {
        Self::new()
    }
}

/// Upper end of a bucket in nanoseconds; the last one has none.
const fn end_ns(bucket: usize) -> u64 {
    FIRST_NS << bucket
}

impl SpinPolicy {
    /// Shortest spin in nanoseconds, unless the limit is shorter: parking costs more than that even if nobody waits.
    pub const MIN_NS: u64 = 2_000;

    /// A policy that has seen little and expects short waits: one wait in each of the short buckets.
    pub fn new() -> Self {
        let mut weights = [0; BUCKETS];
        for weight in &mut weights[..8] {
            *weight = WEIGHT / 4;
        }
        SpinPolicy { weights }
    }

    /// Work came `waited_ns` after the worker had run dry, whether it spun or was parked meanwhile.
    pub fn work_came(&mut self, waited_ns: u64) {
        for weight in &mut self.weights {
            *weight -= *weight >> FADE;
        }
        let bucket = (0..BUCKETS - 1).find(|bucket| waited_ns <= end_ns(*bucket)).unwrap_or(BUCKETS - 1);
        self.weights[bucket] += WEIGHT;
    }

    /// How long to spin now, in nanoseconds: at most `limit_ns`, which is what a wake is worth.
    pub fn budget_ns(&self, limit_ns: u64) -> u64 {
        let total: u64 = self.weights.iter().map(|weight| u64::from(*weight)).sum();
        // Not to spin at all costs a wake each time.
        let mut best = (total.saturating_mul(limit_ns), 0);
        let (mut waits, mut longer) = (0u64, total);
        for (bucket, weight) in self.weights[..BUCKETS - 1].iter().enumerate() {
            let (end, weight) = (end_ns(bucket), u64::from(*weight));
            if end > limit_ns {
                break;
            }
            // A wait in this bucket is three quarters of its end on average.
            waits = waits.saturating_add(weight * (end / 4 * 3));
            longer -= weight;
            let cost = waits.saturating_add(longer.saturating_mul(end + limit_ns));
            if cost < best.0 {
                best = (cost, end);
            }
        }
        best.1.max(Self::MIN_NS).min(limit_ns)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT_NS: u64 = 150_000;

    fn after(waits_ns: impl IntoIterator<Item = u64>) -> SpinPolicy {
        let mut policy = SpinPolicy::new();
        waits_ns.into_iter().for_each(|wait| policy.work_came(wait));
        policy
    }

    /// Waits of Poisson arrivals with this mean: the quantiles of the exponential distribution, mixed.
    fn poisson(mean_ns: f64, count: u64) -> impl Iterator<Item = u64> {
        (0..count).map(move |i| {
            let uniform = ((i * 37) % 101) as f64 / 101.0 + 0.005;
            (-(1.0 - uniform).ln() * mean_ns) as u64
        })
    }

    #[test]
    fn a_new_worker_spins_at_first() {
        assert!(SpinPolicy::new().budget_ns(LIMIT_NS) > 10_000);
    }

    #[test]
    fn rare_work_without_memory_is_not_waited_for() {
        for mean_ns in [500_000.0, 1_000_000.0, 20_000_000.0] {
            let policy = after(poisson(mean_ns, 500));
            assert!(policy.budget_ns(LIMIT_NS) <= 16_000, "mean {mean_ns}: {}", policy.budget_ns(LIMIT_NS));
        }
    }

    #[test]
    fn frequent_work_is_waited_for() {
        for mean_ns in [3_000.0, 20_000.0] {
            let budget = after(poisson(mean_ns, 500)).budget_ns(LIMIT_NS);
            assert!(budget as f64 >= 2.0 * mean_ns, "mean {mean_ns}: {budget}");
        }
    }

    #[test]
    fn gaps_inside_a_burst_are_bridged_and_those_between_are_not() {
        for gap_ns in [2_000, 20_000, 60_000] {
            let mut policy = SpinPolicy::new();
            for burst in 0..50 {
                policy.work_came(10_000_000);
                for request in 1..10 {
                    let budget = policy.budget_ns(LIMIT_NS);
                    assert!(burst < 3 || budget >= gap_ns, "gap {gap_ns}, burst {burst}.{request}: {budget}");
                    policy.work_came(gap_ns);
                }
                assert!(policy.budget_ns(LIMIT_NS) <= LIMIT_NS);
            }
        }
    }

    #[test]
    fn it_forgets() {
        let mut policy = after([3_000; 200]);
        assert!(policy.budget_ns(LIMIT_NS) >= 4_000);
        (0..60).for_each(|_| policy.work_came(5_000_000));
        assert_eq!(policy.budget_ns(LIMIT_NS), SpinPolicy::MIN_NS);
        (0..60).for_each(|_| policy.work_came(30_000));
        assert!(policy.budget_ns(LIMIT_NS) >= 30_000);
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(waits: Vec<u64>, limit_ns: u64) {
            let policy = after(waits);
            prop_assert!(policy.budget_ns(limit_ns) <= limit_ns);
            prop_assert!(policy.budget_ns(limit_ns) >= SpinPolicy::MIN_NS.min(limit_ns));
            prop_assert_eq!(policy.budget_ns(0), 0);
        }
    }
}
