//! The seam to the tunnel, by which what still talks to a guest from the old host goes on to talk to it: one function for each moment.
//! Without a tunnel open connections and calls under way end with the move.

use crate::runner::machine::Machine;

/// Source, all tasks are parked: nothing more goes to the guest. Returns what the destination's host must know, encoded.
#[must_use]
pub fn hold(_source: &Machine) -> Vec<u8> {
    Vec::new()
}

/// Source, the migration was aborted: what was held goes to the guest.
pub fn go_on(_source: &Machine) {}

/// Source, the tenant runs elsewhere: what was held, and everything from now on, goes there.
pub fn leave(_source: &Machine) {}

/// Destination, before its guest is given the Commit: what the source's [`hold`] returned.
///
/// # Errors
/// Why it can't be taken: the migration ends.
pub fn adopt(_destination: &Machine, roster: &[u8]) -> Result<(), String> {
    if roster.is_empty() { Ok(()) } else { Err("this node has no tunnel; update it".into()) }
}
