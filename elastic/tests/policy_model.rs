//! Arbitrary event sequences, possible and impossible ones, against a model that is told only events and actions: the
//! rules of `nacre_elastic::policy` hold after every step.

use nacre_elastic::policy::{
    Action, Budget, Change, CvmId, Event, Limits, MAX_WORKERS, Manager, Nanos, PolicyError, Tuning,
    WorkerIndex,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::num::NonZeroU32;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Dormant,
    Waiting,
    Stopped,
    Active,
    Reclaiming,
}

/// What the actions are the answer to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum On {
    Event,
    Change,
}

struct ModelCvm {
    limits: Limits,
    demand: u32,
    workers: Vec<State>,
    /// When each worker was admitted last, in nanoseconds.
    admitted: Vec<u64>,
    grant: u8,
    /// Above the maximum since it was lowered: only ever less from then on.
    most: usize,
}

impl ModelCvm {
    fn count(&self, state: State) -> usize {
        self.workers.iter().filter(|&&other| other == state).count()
    }

    fn occupied(&self) -> usize {
        self.count(State::Active) + self.count(State::Reclaiming)
    }

    fn wanted(&self) -> usize {
        let dormant = self.count(State::Dormant);
        self.count(State::Waiting) + self.count(State::Stopped) + dormant.min(self.demand as usize)
    }
}

#[derive(Default)]
struct Model {
    /// The latest instant seen, in nanoseconds.
    now: u64,
    budget: usize,
    most: usize,
    cvms: BTreeMap<u32, ModelCvm>,
}

impl Model {
    fn occupied(&self) -> usize {
        self.cvms.values().map(ModelCvm::occupied).sum()
    }

    fn worker(&mut self, cvm: CvmId, worker: WorkerIndex) -> Option<&mut State> {
        self.cvms.get_mut(&cvm.0)?.workers.get_mut(usize::from(worker.get()) - 1)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Demand { cvm, level } => {
                if let Some(cvm) = self.cvms.get_mut(&cvm.0) {
                    cvm.demand = level.min(u32::from(MAX_WORKERS));
                }
            }
            Event::WorkerWoke { cvm, worker } => {
                if let Some(state @ State::Dormant) = self.worker(cvm, worker) {
                    *state = State::Waiting;
                }
            }
            Event::WorkerParked { cvm, worker } => {
                let Some(state) = self.worker(cvm, worker) else { return };
                let before = std::mem::replace(state, State::Dormant);
                let demand = &mut self.cvms.get_mut(&cvm.0).expect("it has the worker").demand;
                match before {
                    State::Active => *demand = 0,
                    State::Reclaiming => *demand = (*demand).max(1),
                    _ => {}
                }
            }
            Event::WorkerDescheduled { cvm, worker } => {
                if let Some(state @ (State::Active | State::Reclaiming)) = self.worker(cvm, worker) {
                    *state = State::Stopped;
                }
            }
            Event::Timer => {}
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::CvmAdded { cvm, limits, launched } => {
                let workers = vec![State::Dormant; usize::from(launched)];
                let admitted = vec![0; workers.len()];
                self.cvms.insert(cvm.0, ModelCvm { limits, demand: 0, workers, admitted, grant: 0, most: 0 });
            }
            Change::CvmRemoved { cvm } => {
                self.cvms.remove(&cvm.0);
            }
            Change::LimitsChanged { cvm, limits } => {
                self.cvms.get_mut(&cvm.0).expect("the manager knew it").limits = limits;
            }
            Change::BudgetChanged { budget } => self.budget = budget.get() as usize,
        }
    }

    fn action(&mut self, action: Action, on: On) {
        match action {
            Action::Admit { cvm, worker } => {
                let state = self.worker(cvm, worker).expect("an existing worker is admitted");
                let before = std::mem::replace(state, State::Active);
                assert!(
                    matches!(before, State::Dormant | State::Waiting | State::Stopped),
                    "{before:?} admitted"
                );
                let cvm = self.cvms.get_mut(&cvm.0).expect("it has the worker");
                if before == State::Dormant {
                    assert!(cvm.demand > 0, "a dormant worker is woken though nobody asked");
                    cvm.demand -= 1;
                }
                cvm.admitted[usize::from(worker.get()) - 1] = self.now;
                assert!(cvm.occupied() <= usize::from(cvm.limits.max_workers()));
                assert!(self.occupied() <= self.budget);
            }
            Action::Reclaim { cvm, worker } => {
                let state = self.worker(cvm, worker).expect("an existing worker is reclaimed");
                assert_eq!(*state, State::Active);
                *state = State::Reclaiming;
                let admitted = self.cvms[&cvm.0].admitted[usize::from(worker.get()) - 1];
                let held = u128::from(self.now - admitted) >= Tuning::default().min_hold.as_nanos();
                let guaranteed = self.cvms.values().any(|cvm| {
                    cvm.wanted() > 0 && cvm.count(State::Active) < usize::from(cvm.limits.min_workers())
                });
                assert!(held || guaranteed || on == On::Change, "reclaimed within the hold");
            }
            Action::Grant { cvm, workers } => {
                let cvm = self.cvms.get_mut(&cvm.0).expect("a known CVM gets a grant");
                assert_ne!(cvm.grant, workers, "told already");
                cvm.grant = workers;
            }
            Action::SetTimer { .. } => {}
        }
    }

    /// What has to be true after every step.
    fn check(&mut self, manager: &Manager) {
        let occupied = self.occupied();
        assert_eq!(manager.occupied() as usize, occupied);
        self.most = self.most.min(occupied).max(self.budget);
        assert!(occupied <= self.most, "{occupied} CPUs in use of {}", self.budget);
        let active: usize = self.cvms.values().map(|cvm| cvm.count(State::Active)).sum();
        assert!(active <= self.budget, "what is too much is being reclaimed");
        let (mut deficit, mut in_flight) = (0, 0);
        for (id, cvm) in &mut self.cvms {
            let max = usize::from(cvm.limits.max_workers());
            cvm.most = cvm.most.min(cvm.occupied()).max(max);
            assert!(cvm.occupied() <= cvm.most && cvm.count(State::Active) <= max);
            let waits = cvm.wanted() > 0 && cvm.occupied() < max;
            assert!(!waits || occupied >= self.budget, "CVM {id} waits though a CPU is free");
            let limited = waits || cvm.count(State::Reclaiming) > 0;
            assert!(limited || usize::from(cvm.grant) == max, "nothing limits CVM {id}");
            in_flight += cvm.count(State::Reclaiming);
            if waits && cvm.count(State::Reclaiming) == 0 {
                let min = usize::from(cvm.limits.min_workers());
                deficit += min.saturating_sub(cvm.count(State::Active)).min(cvm.wanted());
            }
        }
        assert!(deficit <= in_flight, "{deficit} CPUs are guaranteed, {in_flight} on their way");
    }
}

fn cvm_id() -> impl Strategy<Value = CvmId> {
    prop_oneof![20 => (0u32..5).prop_map(CvmId), 1 => any::<u32>().prop_map(CvmId)]
}

fn worker() -> impl Strategy<Value = WorkerIndex> {
    prop_oneof![20 => 1u8..=6, 1 => 1u8..=63].prop_map(|index| WorkerIndex::new(index).expect("a worker"))
}

fn limits() -> impl Strategy<Value = Limits> {
    (1u32..300, 0u8..=3, 0u8..=6).prop_map(|(weight, min, max)| {
        Limits::new(NonZeroU32::new(weight).expect("above 0"), min.min(max), max).expect("min <= max")
    })
}

#[derive(Clone, Debug)]
enum Input {
    Event(Event),
    Change(Change),
}

fn input() -> impl Strategy<Value = Input> {
    let at = || (cvm_id(), worker());
    let event = prop_oneof![
        8 => at().prop_map(|(cvm, worker)| Event::WorkerWoke { cvm, worker }),
        6 => at().prop_map(|(cvm, worker)| Event::WorkerParked { cvm, worker }),
        2 => at().prop_map(|(cvm, worker)| Event::WorkerDescheduled { cvm, worker }),
        2 => (cvm_id(), prop_oneof![0u32..8, any::<u32>()]).prop_map(|(cvm, level)| Event::Demand { cvm, level }),
        3 => Just(Event::Timer),
    ];
    let change = prop_oneof![
        3 => (cvm_id(), limits(), 0u8..=8).prop_map(|(cvm, limits, launched)| {
            Change::CvmAdded { cvm, limits, launched }
        }),
        1 => cvm_id().prop_map(|cvm| Change::CvmRemoved { cvm }),
        2 => (cvm_id(), limits()).prop_map(|(cvm, limits)| Change::LimitsChanged { cvm, limits }),
        1 => (1u32..12).prop_map(|cpus| Change::BudgetChanged { budget: Budget::new(cpus).expect("above 0") }),
    ];
    prop_oneof![10 => event.prop_map(Input::Event), 1 => change.prop_map(Input::Change)]
}

/// Pauses between events, in nanoseconds; now and then the clock jumps, also back (0 means: to the beginning).
fn pause() -> impl Strategy<Value = u64> {
    prop_oneof![10 => 1u64..2_000_000, 3 => 1u64..30_000_000, 1 => Just(0), 1 => 0u64..1 << 50]
}

/// A manager with four CVMs of six workers.
fn start(budget: u32) -> (Manager, Model) {
    let cpus = Budget::new(budget).expect("above 0");
    let mut manager = Manager::new(cpus, Tuning::default()).expect("the default tuning is possible");
    let mut model = Model { budget: budget as usize, ..Model::default() };
    for cvm in (0..4).map(CvmId) {
        let weight = NonZeroU32::new(100 * (cvm.0 + 1)).expect("above 0");
        let limits = Limits::new(weight, 0, 6).expect("possible");
        let change = Change::CvmAdded { cvm, limits, launched: 6 };
        configure(&mut manager, &mut model, 0, change).expect("a new CVM");
    }
    (manager, model)
}

fn configure(manager: &mut Manager, model: &mut Model, now: u64, change: Change) -> Result<(), PolicyError> {
    let mut actions = Vec::new();
    let result = manager.configure(Nanos(now), change, &mut actions);
    if result.is_ok() {
        model.now = model.now.max(now);
        model.most = model.most.max(model.occupied());
        if let Change::LimitsChanged { cvm, .. } = change {
            let cvm = model.cvms.get_mut(&cvm.0).expect("the manager knew it");
            cvm.most = cvm.most.max(cvm.occupied());
        }
        model.change(change);
        actions.iter().for_each(|&action| model.action(action, On::Change));
    } else {
        assert!(actions.is_empty());
    }
    model.check(manager);
    result
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_hold_whatever_happens(
        budget in 1u32..10,
        inputs in prop::collection::vec((pause(), input()), 1..400),
    ) {
        let (mut manager, mut model) = start(budget);
        let (mut twin, _) = start(budget);
        let mut now = 0u64;
        for (pause, input) in inputs {
            now = if pause == 0 { 0 } else { now + pause };
            match input {
                Input::Change(change) => {
                    let result = configure(&mut manager, &mut model, now, change);
                    prop_assert_eq!(result, twin.configure(Nanos(now), change, &mut Vec::new()));
                }
                Input::Event(event) => {
                    let (mut actions, mut again) = (Vec::new(), Vec::new());
                    manager.step(Nanos(now), event, &mut actions);
                    twin.step(Nanos(now), event, &mut again);
                    prop_assert_eq!(&actions, &again, "the same input gave something else");
                    model.now = model.now.max(now);
                    model.event(event);
                    actions.iter().for_each(|&action| model.action(action, On::Event));
                    model.check(&manager);
                }
            }
            let snapshot = manager.snapshot(Nanos(now));
            let accounted: u64 = snapshot.cvms.iter().map(|cvm| cvm.account.active_ns).sum();
            prop_assert_eq!(accounted + snapshot.retired.active_ns, snapshot.busy_ns);
        }
    }

    #[test]
    fn a_refused_change_changes_nothing(change in (cvm_id(), limits(), 0u8..=255).prop_flat_map(|(cvm, limits, launched)| {
        prop_oneof![
            Just(Change::CvmAdded { cvm, limits, launched }),
            Just(Change::LimitsChanged { cvm, limits }),
            Just(Change::CvmRemoved { cvm }),
        ]
    })) {
        let (mut manager, mut model) = start(2);
        let before = manager.snapshot(Nanos(5));
        if configure(&mut manager, &mut model, 5, change).is_err() {
            prop_assert_eq!(manager.snapshot(Nanos(5)), before);
        }
    }
}

#[test]
fn impossible_configurations_say_what_to_do() {
    let (mut manager, _) = start(2);
    let limits = |min, max| Limits::new(NonZeroU32::MIN, min, max).expect("possible");
    let mut refused =
        |change| manager.configure(Nanos(0), change, &mut Vec::new()).expect_err("impossible").to_string();
    let added = |cvm, launched, limits| Change::CvmAdded { cvm: CvmId(cvm), limits, launched };
    for (message, expected) in [
        (refused(added(9, 4, limits(0, 5))), "CVM 9 was launched with 4 workers, not 5; lower the maximum"),
        (
            refused(added(9, 4, limits(3, 4))),
            "minimums add up to 3 CPUs, but the budget is 2; lower a minimum",
        ),
        (refused(added(3, 4, limits(0, 4))), "CVM 3 exists already; remove it first"),
        (
            refused(added(u32::MAX, 4, limits(0, 4))),
            "CVM number 4294967295 is too great; use numbers up to 1048575",
        ),
        (refused(Change::CvmRemoved { cvm: CvmId(7) }), "CVM 7 is unknown; add it first"),
        (
            refused(Change::LimitsChanged { cvm: CvmId(7), limits: limits(0, 1) }),
            "CVM 7 is unknown; add it first",
        ),
        (
            Budget::new(0).expect_err("impossible").to_string(),
            "a budget of 0 CPUs is impossible; give 1 to 65536",
        ),
        (Budget::new(70_000).expect_err("impossible").to_string(), "a budget of 70000 CPUs is impossible"),
        (
            Limits::new(NonZeroU32::MIN, 3, 2).expect_err("impossible").to_string(),
            "the minimum of 3 workers is above the maximum of 2; lower the minimum",
        ),
        (
            Limits::new(NonZeroU32::MIN, 0, 64).expect_err("impossible").to_string(),
            "a CVM cannot have 64 workers",
        ),
        (
            Limits::new(NonZeroU32::MAX, 0, 1).expect_err("impossible").to_string(),
            "weight 4294967295 is too great",
        ),
    ] {
        assert!(message.contains(expected), "{message}");
    }
}
