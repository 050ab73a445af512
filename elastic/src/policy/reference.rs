//! Exact weighted max-min fairness, as a formula: what the manager's shares are compared with in tests, and what the
//! simulator draws beside them. Not used for decisions.

/// What one CVM wants and may have, in CPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Want {
    /// Its weight, above 0.
    pub weight: f64,
    /// CPUs it would use if it had them, its maximum already applied.
    pub demand: f64,
    /// CPUs it is guaranteed.
    pub minimum: f64,
}

/// Fills `budget` CPUs into the CVMs like water into vessels that are as wide as their weights: every CVM gets its
/// demand, or its minimum, or the common water level times its weight, whichever is in the middle. The result sums to
/// the budget, or to all demands if they are less.
///
/// The minimums together must not be more than the budget.
#[must_use]
pub fn water_fill(budget: f64, wants: &[Want]) -> Vec<f64> {
    let floor = |want: &Want| want.minimum.min(want.demand);
    let share = |want: &Want, level: f64| (level * want.weight).clamp(floor(want), want.demand);
    let total = |level: f64| wants.iter().map(|want| share(want, level)).sum::<f64>();
    // The total is linear between the levels at which a CVM leaves its minimum or reaches its demand.
    let mut bends: Vec<f64> =
        wants.iter().flat_map(|want| [floor(want) / want.weight, want.demand / want.weight]).collect();
    bends.sort_by(f64::total_cmp);
    let above = bends.partition_point(|&bend| total(bend) <= budget);
    let Some(&right) = bends.get(above) else { return wants.iter().map(|want| want.demand).collect() };
    let left = above.checked_sub(1).map_or(0.0, |below| bends[below]);
    let (low, high) = (total(left), total(right));
    let level = left + (budget - low) / (high - low) * (right - left);
    wants.iter().map(|want| share(want, level)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn want(weight: f64, demand: f64, minimum: f64) -> Want {
        Want { weight, demand, minimum }
    }

    #[test]
    fn known_cases() {
        let equal = [want(1.0, 9.0, 0.0); 3];
        assert_eq!(water_fill(2.0, &equal), [2.0 / 3.0; 3]);
        assert_eq!(water_fill(8.0, &[want(1.0, 2.0, 0.0), want(1.0, 9.0, 0.0)]), [2.0, 6.0]);
        assert_eq!(water_fill(8.0, &[want(3.0, 9.0, 0.0), want(1.0, 9.0, 0.0)]), [6.0, 2.0]);
        assert_eq!(water_fill(8.0, &[want(1.0, 9.0, 6.0), want(1.0, 9.0, 0.0)]), [6.0, 2.0]);
        assert_eq!(water_fill(8.0, &[want(1.0, 1.0, 6.0), want(1.0, 2.0, 0.0)]), [1.0, 2.0]);
        assert!(water_fill(8.0, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn nobody_can_be_helped_without_hurting_one_who_has_less(
            raw in prop::collection::vec((1u32..20, 0u32..12, 0u32..3), 1..8),
        ) {
            let wants: Vec<Want> = raw.iter().map(|&(weight, demand, minimum)| {
                want(f64::from(weight), f64::from(demand), f64::from(minimum))
            }).collect();
            let budget = wants.iter().map(|want| want.minimum).sum::<f64>().max(1.0) + 3.0;
            let shares = water_fill(budget, &wants);
            let demands: f64 = wants.iter().map(|want| want.demand).sum();
            prop_assert!((shares.iter().sum::<f64>() - budget.min(demands)).abs() < 1e-9);
            for (want, share) in wants.iter().zip(&shares) {
                prop_assert!(*share <= want.demand && *share >= want.minimum.min(want.demand));
                if *share < want.demand - 1e-9 {
                    for (other, theirs) in wants.iter().zip(&shares) {
                        let above_minimum = *theirs > other.minimum + 1e-9;
                        let richer = theirs / other.weight > share / want.weight + 1e-9;
                        prop_assert!(!(above_minimum && richer));
                    }
                }
            }
        }
    }
}
