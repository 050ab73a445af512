//! The policy by example: each test is a short story with exact actions.

use super::*;
use std::num::NonZeroU32;

const MS: u64 = 1_000_000;

struct Story {
    manager: Manager,
    now: u64,
}

fn worker(index: u8) -> WorkerIndex {
    WorkerIndex::new(index).expect("a worker")
}

fn limits(weight: u32, min: u8, max: u8) -> Limits {
    Limits::new(NonZeroU32::new(weight).expect("a weight"), min, max).expect("possible limits")
}

fn admit(cvm: u32, index: u8) -> Action {
    Action::Admit { cvm: CvmId(cvm), worker: worker(index) }
}

fn reclaim(cvm: u32, index: u8) -> Action {
    Action::Reclaim { cvm: CvmId(cvm), worker: worker(index) }
}

fn grant(cvm: u32, workers: u8) -> Action {
    Action::Grant { cvm: CvmId(cvm), workers }
}

impl Story {
    /// CVMs 0, 1 ... with these limits (8 workers launched each) on `budget` CPUs.
    fn new(budget: u32, all: &[Limits]) -> Self {
        let manager =
            Manager::new(Budget::new(budget).expect("a budget"), Tuning::default()).expect("tuning");
        let mut story = Self { manager, now: 0 };
        for (cvm, limits) in all.iter().enumerate() {
            let cvm = CvmId(cvm as u32);
            story.configure(Change::CvmAdded { cvm, limits: *limits, launched: 8 }).expect("a CVM");
        }
        story
    }

    /// Without timers, which matter to no story but those that go through `run`.
    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.manager.step(Nanos(self.now), event, &mut actions);
        actions.retain(|action| !matches!(action, Action::SetTimer { .. }));
        actions
    }

    fn configure(&mut self, change: Change) -> Result<Vec<Action>, PolicyError> {
        let mut actions = Vec::new();
        self.manager.configure(Nanos(self.now), change, &mut actions)?;
        Ok(actions)
    }

    fn woke(&mut self, cvm: u32, index: u8) -> Vec<Action> {
        self.step(Event::WorkerWoke { cvm: CvmId(cvm), worker: worker(index) })
    }

    fn parked(&mut self, cvm: u32, index: u8) -> Vec<Action> {
        self.step(Event::WorkerParked { cvm: CvmId(cvm), worker: worker(index) })
    }

    fn stopped(&mut self, cvm: u32, index: u8) -> Vec<Action> {
        self.step(Event::WorkerDescheduled { cvm: CvmId(cvm), worker: worker(index) })
    }

    fn demand(&mut self, cvm: u32, level: u32) -> Vec<Action> {
        self.step(Event::Demand { cvm: CvmId(cvm), level })
    }
}

#[test]
fn a_doorbell_is_answered_at_once_while_there_is_room() {
    let mut story = Story::new(2, &[limits(100, 0, 8)]);
    assert_eq!(story.woke(0, 3), [admit(0, 3)]);
    assert_eq!(story.woke(0, 3), [], "it runs already");
    assert_eq!(story.woke(0, 1), [admit(0, 1)]);
    assert_eq!(story.woke(0, 2), [grant(0, 2)], "no room: it waits, and the guest is told");
    assert_eq!(story.parked(0, 3), [admit(0, 2), grant(0, 8)]);
}

#[test]
fn a_maximum_holds_though_cpus_are_free() {
    let mut story = Story::new(8, &[limits(100, 0, 1)]);
    assert_eq!(story.woke(0, 1), [admit(0, 1)]);
    assert_eq!(story.woke(0, 2), []);
    assert_eq!(story.parked(0, 1), [admit(0, 2)]);
}

#[test]
fn demand_wakes_dormant_workers_and_is_forgotten_when_one_finds_nothing() {
    let mut story = Story::new(3, &[limits(100, 0, 8)]);
    assert_eq!(story.demand(0, 2), [admit(0, 1), admit(0, 2)]);
    assert_eq!(story.demand(0, 1_000_000), [admit(0, 3), grant(0, 3)]);
    assert_eq!(story.parked(0, 2), [grant(0, 8)], "it asked for more than it can use");
}

#[test]
fn a_newcomer_gets_half_as_soon_as_the_hold_allows() {
    let mut story = Story::new(4, &[limits(100, 0, 8); 2]);
    for index in 1..=4 {
        story.woke(0, index);
    }
    for index in 1..=4 {
        let expected = if index == 1 { vec![grant(1, 0)] } else { vec![] };
        assert_eq!(story.woke(1, index), expected, "nothing is reclaimed that was admitted now");
    }
    story.now = MS;
    assert_eq!(story.step(Event::Timer), [reclaim(0, 1), reclaim(0, 2), grant(1, 2), grant(0, 2)]);
    assert_eq!(story.parked(0, 1), [admit(1, 1)]);
    assert_eq!(story.stopped(0, 2), [admit(1, 2)]);
    assert_eq!(story.parked(1, 3), [], "its thread does not wait any more");
    assert_eq!(story.parked(1, 4), [grant(1, 8)]);
    assert_eq!(story.parked(1, 1), [admit(0, 2), grant(0, 3)], "the stopped one first: it has a task inside");
}

#[test]
fn a_minimum_is_there_at_once() {
    let mut story = Story::new(2, &[limits(10_000, 0, 8), limits(1, 1, 8)]);
    story.woke(0, 1);
    story.woke(0, 2);
    assert_eq!(story.woke(1, 5), [reclaim(0, 1), grant(1, 1), grant(0, 1)], "without regard to the hold");
    assert_eq!(story.woke(1, 6), [], "beyond the minimum it waits for its share");
    assert_eq!(story.parked(0, 1), [admit(1, 5)]);
}

#[test]
fn a_lower_budget_or_maximum_is_reached_by_reclaiming_at_once() {
    let mut story = Story::new(4, &[limits(100, 0, 8)]);
    for index in 1..=4 {
        story.woke(0, index);
    }
    let budget = Budget::new(3).expect("a budget");
    assert_eq!(story.configure(Change::BudgetChanged { budget }), Ok(vec![reclaim(0, 1), grant(0, 3)]));
    let change = Change::LimitsChanged { cvm: CvmId(0), limits: limits(100, 0, 2) };
    assert_eq!(story.configure(change), Ok(vec![reclaim(0, 2), grant(0, 2)]));
    assert_eq!(story.parked(0, 1), []);
    assert_eq!(story.parked(0, 2), []);
    assert_eq!(story.manager.occupied(), 2);
}

#[test]
fn a_stopped_worker_gets_a_turn_of_its_own_cvm() {
    let mut story = Story::new(4, &[limits(100, 0, 1)]);
    story.woke(0, 1);
    assert_eq!(story.stopped(0, 1), [admit(0, 1)], "there is a CPU for it");
    let change = Change::LimitsChanged { cvm: CvmId(0), limits: limits(100, 0, 2) };
    story.configure(change).expect("possible");
    story.woke(0, 2);
    let change = Change::LimitsChanged { cvm: CvmId(0), limits: limits(100, 0, 1) };
    assert_eq!(story.configure(change), Ok(vec![reclaim(0, 1), grant(0, 1)]));
    let mut actions = Vec::new();
    story.manager.step(Nanos(0), Event::WorkerDescheduled { cvm: CvmId(0), worker: worker(1) }, &mut actions);
    assert_eq!(actions, [Action::SetTimer { at: Nanos(5 * MS) }], "at its maximum, it has to wait");
    story.now = 5 * MS;
    assert_eq!(story.step(Event::Timer), []);
    story.now = 10 * MS;
    assert_eq!(story.step(Event::Timer), [reclaim(0, 2)], "after a quantum they take turns");
    assert_eq!(story.parked(0, 2), [admit(0, 1)]);
}

#[test]
fn a_removed_cvm_frees_what_it_had_and_what_was_promised_to_it() {
    let mut story = Story::new(2, &[limits(100, 0, 8), limits(100, 2, 8), limits(100, 0, 8)]);
    story.woke(0, 1);
    story.woke(0, 2);
    story.woke(1, 1);
    story.woke(2, 1);
    assert_eq!(story.configure(Change::CvmRemoved { cvm: CvmId(1) }), Ok(vec![]));
    assert_eq!(story.parked(0, 1), [admit(2, 1), grant(2, 8)], "its CPU goes to the next");
    assert_eq!(story.configure(Change::CvmRemoved { cvm: CvmId(2) }), Ok(vec![admit(0, 1), grant(0, 8)]));
    assert_eq!(story.woke(2, 1), [], "it is gone");
    assert_eq!(story.manager.snapshot(Nanos(0)).ignored, 1);
}
