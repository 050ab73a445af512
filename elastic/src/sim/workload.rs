//! What arrives when: synthetic bursts or a trace file. All arms get the same list.

use super::scenario::{Bursts, MAX_CVMS, MAX_TASKS, Scenario, ScenarioError};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Exp, LogNormal, Pareto};
use std::collections::BTreeMap;

/// One task that arrives. Tasks of one CVM at the same instant, next to each other, are a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When, in nanoseconds since the beginning.
    pub at: u64,
    /// Whose, counted from 0.
    pub cvm: u32,
    /// The CPU time it takes, in nanoseconds; at least 1.
    pub service: u64,
}

/// Arrivals in the order of time, and the number of CVMs they go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The tasks.
    pub arrivals: Vec<Arrival>,
    /// CVMs: every arrival's is below this.
    pub cvms: u32,
}

impl Workload {
    /// The arrivals of `scenario`: its trace, or bursts made from its seed.
    ///
    /// # Errors
    /// If the trace cannot be read or is wrong, or the bursts are too many.
    pub fn of(scenario: &Scenario) -> Result<Self, ScenarioError> {
        match &scenario.trace {
            None => Self::synthetic(scenario),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| ScenarioError::Unreadable {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
                Self::parse(&text)
            }
        }
    }

    /// Reads a trace: lines of `time_us,cvm,service_us` (microseconds since the beginning, any number that names the
    /// CVM, CPU time in microseconds; decimals allowed), in any order. Empty lines, lines that begin with `#`, and a
    /// first line of names are skipped. CVMs are numbered from 0 in the order of their numbers.
    ///
    /// # Errors
    /// With the number of the first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let mut arrivals = Vec::new();
        let mut numbers = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let wrong = |problem| ScenarioError::Trace { line: index + 1, problem };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') || (index == 0 && line.starts_with("time_us")) {
                continue;
            }
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let [time, cvm, service] = fields[..] else {
                return Err(wrong("there are not three fields; write time_us,cvm,service_us"));
            };
            let at = nanoseconds(time).ok_or_else(|| wrong("the time is not microseconds from 0 to 1e12"))?;
            let cvm: u32 = cvm.parse().map_err(|_| wrong("the CVM is not a whole number from 0"))?;
            let service = nanoseconds(service)
                .filter(|&service| service > 0)
                .ok_or_else(|| wrong("the service time is not microseconds above 0, to 1e12"))?;
            numbers.insert(cvm, 0);
            if numbers.len() > MAX_CVMS as usize {
                return Err(wrong("it names too many CVMs; a simulation has at most 10000"));
            }
            if arrivals.len() == MAX_TASKS {
                return Err(wrong("there are too many tasks; cut the trace"));
            }
            arrivals.push(Arrival { at, cvm, service });
        }
        if arrivals.is_empty() {
            let line = text.lines().count().max(1);
            return Err(ScenarioError::Trace { line, problem: "it ends without a task; write one a line" });
        }
        numbers.values_mut().zip(0..).for_each(|(place, index)| *place = index);
        for arrival in &mut arrivals {
            arrival.cvm = numbers[&arrival.cvm];
        }
        arrivals.sort_by_key(|arrival| (arrival.at, arrival.cvm));
        Ok(Self { arrivals, cvms: numbers.len() as u32 })
    }

    /// Bursts as the scenario describes them. Each CVM has its own stream of random numbers.
    fn synthetic(scenario: &Scenario) -> Result<Self, ScenarioError> {
        let bursts = &scenario.bursts;
        let range = |what, value| ScenarioError::Range { what, value, range: "a smaller number" };
        let size = Pareto::new(1.0, bursts.size_shape).map_err(|_| range("size_shape", bursts.size_shape))?;
        let service = LogNormal::new((bursts.service_median_us * 1000.0).ln(), bursts.service_sigma)
            .map_err(|_| range("service_sigma", bursts.service_sigma))?;
        let popularity = LogNormal::new(0.0, bursts.popularity_sigma)
            .map_err(|_| range("popularity_sigma", bursts.popularity_sigma))?;
        let mut random = ChaCha12Rng::seed_from_u64(scenario.seed);
        let rates: Vec<f64> = (0..scenario.cvms).map(|_| popularity.sample(&mut random)).collect();
        let mean_service =
            bursts.service_median_us * 1000.0 * (bursts.service_sigma * bursts.service_sigma / 2.0).exp();
        let horizon = bursts.seconds * 1e9;
        let tasks = bursts.load * f64::from(scenario.cores) * horizon / mean_service;
        if tasks * 1.2 > MAX_TASKS as f64 {
            return Err(ScenarioError::TooLong { tasks });
        }
        let bursts_per_ns = tasks / mean_size(bursts) / horizon / rates.iter().sum::<f64>();
        let mut arrivals = Vec::with_capacity((tasks * 1.2) as usize);
        for (cvm, rate) in (0..).zip(&rates) {
            let mut random = ChaCha12Rng::seed_from_u64(scenario.seed);
            random.set_stream(u64::from(cvm) + 1);
            let pause = Exp::new(rate * bursts_per_ns).map_err(|_| range("load", bursts.load))?;
            let mut at = pause.sample(&mut random);
            while at < horizon && arrivals.len() < MAX_TASKS {
                let tasks = (size.sample(&mut random) as u64).min(u64::from(bursts.size_max));
                for _ in 0..tasks {
                    let service = service.sample(&mut random).clamp(1.0, 1e15) as u64;
                    arrivals.push(Arrival { at: at as u64, cvm, service });
                }
                at += pause.sample(&mut random);
            }
        }
        arrivals.sort_by_key(|arrival| (arrival.at, arrival.cvm));
        Ok(Self { arrivals, cvms: scenario.cvms })
    }

    /// All CPU time that the tasks need, in nanoseconds.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.arrivals.iter().map(|arrival| arrival.service).sum()
    }

    /// For each CVM the 95th percentile over time of the tasks it would run at once with CPUs without end, of the
    /// time in which it has any; at least 1.
    #[must_use]
    pub fn p95(&self) -> Vec<u32> {
        let mut edges: Vec<Vec<(u64, i32)>> = vec![Vec::new(); self.cvms as usize];
        for arrival in &self.arrivals {
            let edges = &mut edges[arrival.cvm as usize];
            edges.push((arrival.at, 1));
            edges.push((arrival.at + arrival.service, -1));
        }
        edges.into_iter().map(p95_of).collect()
    }
}

/// The mean of the whole numbers below Pareto samples, cut at the greatest: the sum of the chances of at least n.
fn mean_size(bursts: &Bursts) -> f64 {
    (1..=bursts.size_max).map(|tasks| f64::from(tasks).powf(-bursts.size_shape)).sum()
}

fn p95_of(mut edges: Vec<(u64, i32)>) -> u32 {
    edges.sort_unstable();
    let mut time_at: BTreeMap<i32, u64> = BTreeMap::new();
    let (mut level, mut since) = (0, 0);
    for (at, change) in edges {
        if level > 0 {
            *time_at.entry(level).or_default() += at - since;
        }
        level += change;
        since = at;
    }
    let rest = time_at.values().sum::<u64>() / 20;
    let mut above = 0;
    for (&level, &time) in time_at.iter().rev() {
        above += time;
        if above > rest {
            // Levels with time are above 0.
            return level as u32;
        }
    }
    1
}

fn nanoseconds(microseconds: &str) -> Option<u64> {
    let value: f64 = microseconds.parse().ok()?;
    // Within this range the cast is exact to a nanosecond or so.
    (0.0..=1e12).contains(&value).then(|| (value * 1000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_in_any_order() {
        let text = "time_us,cvm,service_us\n# a comment\n\n20, 70000, 1.5\n0,3,2\n";
        let workload = Workload::parse(text).expect("a trace");
        assert_eq!(workload.cvms, 2);
        assert_eq!(workload.arrivals[0], Arrival { at: 0, cvm: 0, service: 2000 });
        assert_eq!(workload.arrivals[1], Arrival { at: 20_000, cvm: 1, service: 1500 });
    }

    #[test]
    fn a_wrong_trace_is_refused_with_its_line() {
        for (text, message) in [
            ("0,1,5\n1,2\n", "line 2 of the trace: there are not three fields; write time_us,cvm,service_us"),
            ("0,1,5\n-1,2,5\n", "line 2 of the trace: the time is not microseconds from 0 to 1e12"),
            ("NaN,2,5\n", "line 1 of the trace: the time is not microseconds from 0 to 1e12"),
            ("0,x,5\n", "line 1 of the trace: the CVM is not a whole number from 0"),
            ("0,1,0\n", "line 1 of the trace: the service time is not microseconds above 0, to 1e12"),
            ("time_us,cvm,service_us\n", "line 1 of the trace: it ends without a task; write one a line"),
            ("", "line 1 of the trace: it ends without a task; write one a line"),
        ] {
            assert_eq!(Workload::parse(text).expect_err(text).to_string(), message);
        }
    }

    #[test]
    fn the_offered_load_is_what_was_asked_for_and_the_seed_decides() {
        let scenario = Scenario { cores: 64, cvms: 100, ..Scenario::default() };
        let workload = Workload::of(&scenario).expect("a workload");
        let load = workload.work() as f64 / (64.0 * scenario.bursts.seconds * 1e9);
        assert!((0.4..0.6).contains(&load), "{load}");
        assert_eq!(workload, Workload::of(&scenario).expect("again"));
        assert_ne!(workload, Workload::of(&Scenario { seed: 2, ..scenario }).expect("another"));
    }

    #[test]
    fn the_95th_percentile_is_over_time() {
        // One task for 96 ms, beside it nine more for 4 ms: less than a twentieth of the time.
        let text = "0,0,100000\n".to_string() + &"1000,0,4000\n".repeat(9);
        assert_eq!(Workload::parse(&text).expect("a trace").p95(), [1]);
        let text = "0,0,100000\n".to_string() + &"1000,0,6000\n".repeat(9);
        assert_eq!(Workload::parse(&text).expect("a trace").p95(), [10]);
    }
}
