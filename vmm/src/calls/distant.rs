//! Calls of a tenant that moves: which numbers are whose, here and at other hosts.

use super::Calls;
use crate::tunnel::origin::Origin;
use std::sync::Arc;

impl Calls {
    /// Whether a call with this number waits for more.
    pub(crate) fn awaits(&self, call: u32) -> bool {
        self.state().waiting.get(call as usize).is_some_and(Option::is_some)
    }

    /// Whether calls may begin and modules may be brought in.
    pub(crate) fn set_moving(&self, moving: bool) {
        self.state().moving = moving;
    }

    /// Numbers of the calls and modules that are this host's, and the number of the last module.
    pub(crate) fn numbers(&self) -> (Vec<u32>, Vec<u32>, u32) {
        let state = self.state();
        let calls = (0..).zip(&state.waiting).filter(|(_, call)| call.is_some()).map(|(number, _)| number);
        (calls.collect(), state.present.iter().copied().collect(), state.modules)
    }

    /// Numbers of an origin's calls.
    pub(crate) fn numbers_of(&self, origin: &Origin) -> Vec<u32> {
        let state = self.state();
        let its = state.distant.iter().filter(|(_, of)| of.id == origin.id);
        its.map(|(number, _)| *number).collect()
    }

    /// The tenant comes with these origins, which have these calls; what is made here is numbered on from `last_module`.
    pub(crate) fn adopt(&self, origins: Vec<(Arc<Origin>, &[u32])>, last_module: u32) {
        let mut state = self.state();
        state.modules = last_module;
        for (origin, calls) in origins {
            state.distant.extend(calls.iter().map(|call| (*call, origin.clone())));
            state.origins.push(origin);
        }
        let end = state.distant.keys().max().map_or(0, |last| *last as usize + 1);
        state.waiting.resize_with(end, || None);
        state.free = (0..end as u32).filter(|number| !state.distant.contains_key(number)).collect();
    }

    /// Whether a call is an origin's.
    pub(crate) fn is_of(&self, origin: &Origin, call: u32) -> bool {
        self.state().distant.get(&call).is_some_and(|of| of.id == origin.id)
    }

    /// An origin needs the number of a call no more.
    pub(crate) fn free(&self, origin: &Origin, call: u32) {
        let mut state = self.state();
        if state.distant.get(&call).is_some_and(|of| of.id == origin.id) {
            state.distant.remove(&call);
            state.free.push(call);
        }
    }

    /// The tenant has left, and with it what other hosts have of it.
    pub(crate) fn drop_origins(&self) {
        let mut state = self.state();
        state.distant.clear();
        state.origins.clear();
    }

    /// An origin is lost: its calls, which the guest is to end. Their numbers are not used again, because nobody knows when all of an answer is
    /// there.
    pub(crate) fn lose(&self, origin: &Origin) -> Vec<u32> {
        self.state().origins.retain(|of| of.id != origin.id);
        self.numbers_of(origin)
    }
}
