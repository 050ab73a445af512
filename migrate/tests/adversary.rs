//! Two real state machines with real cryptography, and a network that does what it likes: it drops, repeats, reorders, truncates,
//! extends, flips bits, replays another migration and stops anywhere, while the tenant writes, connections break and somebody cancels.

mod support;

use nacre_migrate::crypto::X25519Pair as Suite;
use nacre_migrate::wire::Kind;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;
use support::Frames;
use support::world::{PAGES, Step, World, to_whom, undisturbed};

fn step() -> impl Strategy<Value = Step> {
    let any = any::<usize>;
    prop_oneof![
        30 => (1..40_u8).prop_map(Step::Honest),
        2 => Just(Step::Drop),
        3 => any().prop_map(Step::Repeat),
        2 => any().prop_map(Step::Reorder),
        2 => (any(), any()).prop_map(|(which, at)| Step::Truncate(which, at)),
        1 => (any(), 0..=255_u8).prop_map(|(which, byte)| Step::Extend(which, byte)),
        3 => (any(), any(), 0..8_u8).prop_map(|(which, at, bit)| Step::Flip(which, at, bit)),
        3 => any().prop_map(Step::Replay),
        2 => any().prop_map(Step::Misdirect),
        6 => (0..PAGES, 0..4_u8).prop_map(|(number, value)| Step::Write(number, value)),
        6 => Just(Step::Round),
        5 => Just(Step::Park),
        6 => Just(Step::Stage),
        6 => Just(Step::Go),
        1 => Just(Step::Cancel),
        4 => any().prop_map(Step::Resume),
    ]
}

#[test]
fn undisturbed_it_moves() {
    undisturbed(false, 1000);
    undisturbed(true, 2000);
}

#[test]
fn a_vcpu_that_has_not_acknowledged_holds_it_up_and_nothing_is_lost() {
    let mut world = World::new(true, 1, Frames::new());
    world.step(&Step::Honest(9));
    let mut out = Frames::new();
    world.source.park(false, 5, &mut out);
    world.due.extend(out);
    for step in [Step::Honest(99), Step::Stage, Step::Honest(99)] {
        world.step(&step);
    }
    assert_eq!(world.source.name(), "Staged");
    assert!(!world.source.go(), "a vCPU still holds a task");
    assert_eq!(world.source.name(), "Staged");
    assert!(world.source.cancel(&mut Frames::new()));
    assert!(world.source.has_tenant() && world.source.commit.is_none());
    world.check();
}

/// What is generated is worth something: it gets to every end, with and without a race between destinations.
#[test]
fn the_adversary_gets_everywhere() {
    let mut runner = TestRunner::deterministic();
    let mut ends = BTreeMap::<&'static str, usize>::new();
    let other = undisturbed(true, 3000).sent;
    for _ in 0..300 {
        let steps =
            prop::collection::vec(step(), 40..80).new_tree(&mut runner).expect("it is generated").current();
        let mut world = World::new(true, 1, other.clone());
        steps.iter().for_each(|step| world.step(step));
        *ends.entry(world.source.name()).or_default() += 1;
        let second = &world.destinations[1];
        *ends.entry(if second.running { "the second runs" } else { "it does not" }).or_default() += 1;
    }
    println!("{ends:?}");
    for end in ["Offered", "Copying", "AwaitStaged", "Gone", "Serving", "Done", "Aborted"] {
        assert!(ends.get(end).is_some_and(|count| *count > 2), "{end} is among {ends:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_network_does(outstanding: bool, steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new(outstanding, 1, undisturbed(outstanding, 3000).sent);
        for step in &steps {
            world.step(step);
            world.check();
        }
        world.settle();
        world.check();
    }

    #[test]
    fn stopped_after_any_byte_it_goes_on_or_stays(outstanding: bool, stop in 0..400_000_usize) {
        let script = [
            Step::Round, Step::Write(1, 3), Step::Round, Step::Write(2, 2), Step::Park, Step::Stage, Step::Go,
        ];
        let mut world = World::new(outstanding, 1, Frames::new());
        let (mut left, mut script) = (stop, script.iter());
        'relay: loop {
            while let Some(bytes) = world.due.pop_front() {
                if bytes.len() > left {
                    world.forged(&bytes[..left], to_whom(&bytes), Kind::Data);
                    break 'relay;
                }
                left -= bytes.len();
                world.deliver(&bytes, to_whom(&bytes)).expect("nothing disturbs it");
                world.check();
            }
            let Some(step) = script.next() else { break };
            world.step(step);
            world.check();
        }
        world.settle();
        world.check();
    }
}
