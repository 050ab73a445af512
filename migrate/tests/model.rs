//! The protocol, checked exhaustively for small bounds: every property holds in every state. Each bound is small by itself, and
//! different ones are opened together in different tests.

mod protocol;
mod support;

use protocol::symbols::SymbolicPair as Suite;
use protocol::{BASE, Protocol};
use stateright::{Checker, Model};
use support::Setup;

const SENDS_ALL: Setup = Setup { outstanding: false, ..BASE.setup };

fn check(name: &str, protocol: Protocol) {
    let began = std::time::Instant::now();
    let checker = protocol.checker().threads(2).spawn_dfs().join();
    assert!(checker.is_done(), "{name} was explored to the end");
    checker.assert_properties();
    println!("{name}: {} states, {:?}", checker.unique_state_count(), began.elapsed());
}

#[test]
fn hybrid_with_crashes_and_a_broken_connection() {
    check("hybrid, crash, resume", Protocol { crashes: 1, resumes: 1, ..BASE });
}

#[test]
fn pre_copy_with_crashes_and_a_broken_connection() {
    check("pre-copy, crash, resume", Protocol { setup: SENDS_ALL, crashes: 1, resumes: 1, ..BASE });
}

#[test]
fn two_destinations_are_raced_with_crashes() {
    check("two destinations, crash", Protocol { destinations: 2, crashes: 1, ..BASE });
}

#[test]
fn two_destinations_are_raced_over_a_broken_connection() {
    check("two destinations, resume", Protocol { destinations: 2, resumes: 1, ..BASE });
}

#[test]
fn an_earlier_migration_is_replayed() {
    check("replay, crash", Protocol { replay: true, crashes: 1, ..BASE });
}

#[test]
fn both_ends_crash_and_two_rounds_overlap() {
    check("two crashes, two rounds", Protocol { crashes: 2, rounds: 2, writes: 2, ..BASE });
}

#[test]
fn connections_break_twice() {
    check("two resumes", Protocol { resumes: 2, rounds: 1, ..BASE });
}
