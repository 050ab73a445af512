//! Negative controls: protocols that are wrong on purpose. If the model did not notice, its silence about the real one would
//! mean nothing.

mod protocol;
mod support;

use protocol::symbols::SymbolicPair as Suite;
use protocol::{BASE, Mutation, Protocol};
use stateright::{Checker, Model};
use std::sync::Mutex;
use support::Setup;

/// One at a time: a mutation of the symbols is one of the whole process.
static ONE: Mutex<()> = Mutex::new(());

/// Explores until the property fails.
fn breaks(mutation: Mutation, resumes: u8, property: &'static str) {
    let _one = ONE.lock().unwrap_or_else(|failed| failed.into_inner());
    let crashes = u8::from(mutation == Mutation::CommitNotStored);
    let setup = Setup { outstanding: mutation != Mutation::CommitNotStored, ..BASE.setup };
    let protocol = Protocol { mutation, resumes, crashes, setup, ..BASE };
    let failed = stateright::HasDiscoveries::AnyOf([property].into());
    let checker = protocol.checker().threads(1).finish_when(failed).spawn_bfs().join();
    let path = checker.discovery(property);
    assert!(path.is_some(), "{mutation:?} was not noticed by '{property}'");
    println!("{mutation:?}: {}", checker.unique_state_count());
}

#[test]
fn a_commit_before_gone_is_noticed() {
    breaks(Mutation::CommitBeforeGone, 0, "1: at most one copy can run");
}

#[test]
fn a_destination_that_runs_when_it_is_staged_is_noticed() {
    breaks(Mutation::RunAtStaged, 0, "1: at most one copy can run");
}

#[test]
fn a_write_that_the_tracker_misses_is_noticed() {
    breaks(Mutation::MissedWrite, 0, "4: nothing older than the newest is used");
}

#[test]
fn a_destination_that_takes_older_generations_is_noticed() {
    breaks(Mutation::AcceptOlder, 0, "4: nothing older than the newest is used");
}

#[test]
fn evidence_that_does_not_bind_the_key_is_noticed() {
    breaks(Mutation::IgnoreKey, 0, "only a genuine destination is accepted");
}

#[test]
fn a_commit_that_is_not_stored_is_noticed() {
    breaks(Mutation::CommitNotStored, 0, "5: lost only by a crash inside the window");
}

#[test]
fn epochs_without_keys_of_their_own_are_noticed() {
    breaks(Mutation::ReuseKeys, 1, "no number of a key is used for two texts");
}
