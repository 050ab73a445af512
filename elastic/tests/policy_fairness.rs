//! Long-run shares of CVMs that always want more, against the exact water level; starvation; flapping.

use nacre_elastic::policy::reference::{Want, water_fill};
use nacre_elastic::policy::{
    Action, Budget, Change, CvmId, Event, Limits, Manager, Nanos, Tuning, WorkerIndex,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::num::NonZeroU32;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// How a CVM of the world below behaves.
#[derive(Clone, Copy, Debug)]
struct Tenant {
    weight: u32,
    min: u8,
    /// Also the number of its endless tasks.
    max: u8,
    /// Every task runs for this long and comes back after the same time, if set.
    burst_ns: Option<u64>,
}

fn endless(weight: u32, min: u8, max: u8) -> Tenant {
    Tenant { weight, min, max, burst_ns: None }
}

/// Workers that park this long after they were asked to.
const RECLAIM_NS: u64 = 60 * US;

/// A closed world: every action is answered by the events that would follow in a CVM.
struct World {
    manager: Manager,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    timer: Option<u64>,
    tenants: Vec<Tenant>,
    reclaims: u64,
}

impl World {
    fn new(budget: u32, tenants: &[Tenant]) -> Self {
        let manager =
            Manager::new(Budget::new(budget).expect("above 0"), Tuning::default()).expect("possible");
        let mut world = Self {
            manager,
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            timer: None,
            tenants: tenants.to_vec(),
            reclaims: 0,
        };
        for (index, tenant) in tenants.iter().enumerate() {
            let cvm = CvmId(index as u32);
            let weight = NonZeroU32::new(tenant.weight).expect("above 0");
            let limits = Limits::new(weight, tenant.min, tenant.max).expect("possible");
            let change = Change::CvmAdded { cvm, limits, launched: tenant.max };
            world.manager.configure(Nanos(0), change, &mut Vec::new()).expect("a new CVM");
            for worker in (1..=tenant.max).filter_map(WorkerIndex::new) {
                world.later(0, Event::WorkerWoke { cvm, worker });
            }
        }
        world
    }

    fn later(&mut self, pause: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + pause, self.sequence), event);
    }

    fn run(&mut self, until: u64) {
        let mut actions = Vec::new();
        loop {
            let next = self.queue.first_key_value().map(|(key, _)| key.0);
            let at = next.unwrap_or(u64::MAX).min(self.timer.unwrap_or(u64::MAX));
            if at > until {
                break;
            }
            self.now = at;
            let event = if next == Some(at) {
                self.queue.pop_first().expect("it is there").1
            } else {
                self.timer = None;
                Event::Timer
            };
            self.manager.step(Nanos(at), event, &mut actions);
            for action in actions.drain(..) {
                self.act(action);
            }
            if let Event::WorkerParked { cvm, worker } = event {
                let pause = self.tenants[cvm.0 as usize].burst_ns.unwrap_or(0);
                self.later(pause, Event::WorkerWoke { cvm, worker });
            }
        }
        self.now = until;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Admit { cvm, worker } => {
                if let Some(burst) = self.tenants[cvm.0 as usize].burst_ns {
                    self.later(burst, Event::WorkerParked { cvm, worker });
                }
            }
            Action::Reclaim { cvm, worker } => {
                self.reclaims += 1;
                self.later(RECLAIM_NS, Event::WorkerParked { cvm, worker });
            }
            Action::SetTimer { at } => self.timer = Some(at.0),
            Action::Grant { .. } => {}
        }
    }

    /// CPU time of each CVM so far, in seconds.
    fn used(&self) -> Vec<f64> {
        let snapshot = self.manager.snapshot(Nanos(self.now));
        snapshot.cvms.iter().map(|cvm| cvm.account.active_ns as f64 / SECOND as f64).collect()
    }
}

fn fair(budget: u32, tenants: &[Tenant]) -> Vec<f64> {
    let wants: Vec<Want> = tenants
        .iter()
        .map(|tenant| Want {
            weight: f64::from(tenant.weight),
            demand: f64::from(tenant.max),
            minimum: f64::from(tenant.min),
        })
        .collect();
    water_fill(f64::from(budget), &wants)
}

/// How far CPU time may be from the fair one, whatever the time passed: a few quanta per CPU around the share.
fn bound_seconds(share: f64) -> f64 {
    0.010 * (6.0 + 2.0 * share)
}

fn check_shares(budget: u32, tenants: &[Tenant], seconds: u64) -> Result<(), String> {
    let mut world = World::new(budget, tenants);
    // The start is not fair: the first takes what is there.
    world.run(SECOND);
    let before = world.used();
    world.run((1 + seconds) * SECOND);
    for (index, (share, (after, before))) in
        fair(budget, tenants).into_iter().zip(world.used().into_iter().zip(before)).enumerate()
    {
        let (used, expected) = (after - before, share * seconds as f64);
        if (used - expected).abs() > bound_seconds(share) + 0.002 * expected {
            return Err(format!("CVM {index} used {used:.4} s, fair are {expected:.4} s"));
        }
    }
    Ok(())
}

#[test]
fn three_equal_cvms_share_two_cpus() {
    check_shares(2, &[endless(100, 0, 4); 3], 10).unwrap();
    check_shares(2, &[endless(100, 0, 1); 3], 10).unwrap();
}

#[test]
fn fractions_of_unequal_weights_come_right_over_time() {
    check_shares(2, &[endless(300, 0, 4), endless(200, 0, 4)], 10).unwrap();
    check_shares(1, &[endless(1000, 0, 4), endless(10, 0, 4)], 100).unwrap();
    check_shares(3, &[endless(100, 2, 4), endless(900, 0, 4), endless(500, 0, 1)], 10).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn shares_are_max_min_fair(
        budget in 1u32..24,
        raw in prop::collection::vec((1u32..20, 0u8..3, 1u8..10), 2..10),
    ) {
        let mut left = budget;
        let tenants: Vec<Tenant> = raw.iter().map(|&(weight, min, max)| {
            let min = min.min(max).min(left as u8);
            left -= u32::from(min);
            endless(weight, min, max)
        }).collect();
        prop_assert_eq!(check_shares(budget, &tenants, 10), Ok(()));
    }
}

#[test]
fn nobody_starves_beside_a_crowd_of_short_bursts() {
    let mut tenants = vec![Tenant { weight: 100, min: 0, max: 4, burst_ns: Some(3 * MS) }; 60];
    tenants.push(endless(100, 0, 1));
    let mut world = World::new(4, &tenants);
    world.run(20 * SECOND);
    let used = world.used();
    let crowd = used[..60].iter().sum::<f64>() / 60.0;
    assert!(used[60] > 0.8 * crowd, "{:.3} s, a burster {crowd:.3} s", used[60]);
    assert!(used.iter().sum::<f64>() > 79.99, "work-conserving: {used:?}");
}

#[test]
fn a_tenant_that_comes_late_owes_nothing_and_is_owed_nothing() {
    let late = Tenant { weight: 100, min: 0, max: 4, burst_ns: Some(5 * SECOND) };
    let mut world = World::new(4, &[endless(100, 0, 4), late]);
    // Both run for 5 s, then the first one has everything for 5 s and more.
    world.run(11 * SECOND);
    let before = world.used();
    world.run(13 * SECOND);
    let after = world.used();
    assert!((after[1] - before[1] - 4.0).abs() < 0.1, "{:.3} s of 2 CPUs in 2 s", after[1] - before[1]);
}

/// Under steady contention CPUs change hands about once a quantum; when guests flap, not faster than the hold.
#[test]
fn flapping_is_bounded() {
    let mut world = World::new(4, &[endless(100, 0, 8); 3]);
    world.run(SECOND);
    let start = world.reclaims;
    world.run(11 * SECOND);
    let rate = (world.reclaims - start) / 10;
    assert!((1..=2 * 4 * 100).contains(&rate), "{rate} reclaims a second on 4 CPUs");

    let flapping = Tenant { weight: 100, min: 0, max: 8, burst_ns: Some(100 * US) };
    let mut world = World::new(4, &[flapping, flapping, endless(100, 0, 8), endless(50, 0, 8)]);
    world.run(10 * SECOND);
    assert!(world.reclaims / 10 <= 4 * 1000, "{} reclaims a second", world.reclaims / 10);
}
