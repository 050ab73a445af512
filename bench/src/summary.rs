//! Statistics: a few samples become a median with its range, two arms measured in turns become a ratio.

use serde::Serialize;

/// What is told of a number of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// The middle one, or the mean of the two middle ones.
    pub median: f64,
    /// The smallest one.
    pub min: f64,
    /// The largest one.
    pub max: f64,
    /// At least 99 in 100 are at most this (nearest rank).
    pub p99: f64,
}

impl Summary {
    /// Of these samples; `None` of no samples, or if one is not a number.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        if sorted.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len() % 2 == 1 { upper } else { (sorted[middle - 1] + upper) / 2.0 };
        let rank = (sorted.len() * 99).div_ceil(100);
        Some(Self {
            count: sorted.len(),
            median,
            min: sorted[0],
            max: *sorted.last()?,
            p99: sorted[rank - 1],
        })
    }

    /// Of the ratios sample by sample: what was measured side by side in one round is compared, so that a machine that
    /// gets slower during the run slows both arms. `None` if there is no common round.
    #[must_use]
    pub fn of_ratios(samples: &[f64], baseline: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = samples.iter().zip(baseline).map(|(sample, base)| sample / base).collect();
        Self::of(&ratios)
    }
}

/// The order in which a round takes its `arms`: every arm comes first, and after every other one, equally often over
/// `2 * arms` rounds.
pub fn order(round: usize, arms: usize) -> impl Iterator<Item = usize> {
    let backwards = round / arms.max(1) % 2 == 1;
    (0..arms).map(move |position| {
        let turned = (position + round) % arms;
        if backwards { arms - 1 - turned } else { turned }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_and_even_numbers_of_samples_have_their_median() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.count, odd.median, odd.min, odd.max, odd.p99), (3, 2.0, 1.0, 3.0, 3.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[7.0]).unwrap().p99, 7.0);
    }

    #[test]
    fn p99_is_the_nearest_rank() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(Summary::of(&samples).unwrap().p99, 198.0);
        assert_eq!(Summary::of(&samples[..100]).unwrap().p99, 99.0);
    }

    #[test]
    fn nothing_and_nonsense_have_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of_ratios(&[1.0], &[0.0]), None);
        assert_eq!(Summary::of_ratios(&[1.0], &[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine became ten times slower in the last round: both arms did.
        let ratio = Summary::of_ratios(&[2.0, 2.0, 20.0], &[1.0, 1.0, 10.0]).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 2.0, 2.0));
    }

    #[test]
    fn every_arm_has_every_place_and_every_predecessor() {
        let mut firsts = [0; 3];
        let mut follows = [[0; 3]; 3];
        for round in 0..6 {
            let arms: Vec<usize> = order(round, 3).collect();
            firsts[arms[0]] += 1;
            for pair in arms.windows(2) {
                follows[pair[0]][pair[1]] += 1;
            }
        }
        assert_eq!(firsts, [2, 2, 2]);
        for (arm, row) in follows.iter().enumerate() {
            assert!(
                row.iter().enumerate().all(|(next, count)| (*count == 2) == (next != arm)),
                "{follows:?}"
            );
        }
        assert_eq!(order(5, 0).count(), 0);
    }
}
