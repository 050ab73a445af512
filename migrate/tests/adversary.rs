//! Two real state machines with real cryptography, and a network that does what it likes: it drops, repeats, reorders, truncates,
//! extends, flips bits, replays another migration and stops anywhere, while the tenant writes, connections break and somebody cancels.

mod support;

use nacre_migrate::crypto::X25519Pair as Suite;
use nacre_migrate::wire::Kind;
use proptest::prelude::*;
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
