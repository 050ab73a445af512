//! What a [`Sender`] does when the tenant moves: it holds messages, and sends them on where the tenant is.

use super::{Held, Sender, Way};
use crate::socket::Outlet;
use crate::tunnel::concern::Concern;
use crate::tunnel::link::Message;
use nacre_abi::ring::Producer;
use nacre_abi::window::ControlWord;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

impl Sender {
    /// Nothing more goes to the guest, whose tasks are parked and which reads nothing. Returns what it has not read of what was
    /// sent or posted so far, in order: that goes with the tenant, or stays where it is if the tenant does.
    pub(crate) fn hold(&self) -> Vec<Message> {
        let window = self.door.window();
        let mut state = self.state();
        if matches!(state.way, Way::Away(_)) {
            return Vec::new();
        }
        state.way = Way::Held(Held::Leaving(state.posted.len()));
        let mut messages = Vec::new();
        Producer::resume(window.to_guest(), state.producer).unread(|incoming| {
            let mut body = vec![0; incoming.header().len as usize];
            incoming.copy_body(0, &mut body);
            messages.push((incoming.header(), body));
        });
        messages.extend(state.posted.iter().cloned());
        messages
    }

    /// A tenant will arrive: its guest would drop what is sent before it runs.
    pub(crate) fn expect_tenant(&self) {
        let mut state = self.state();
        if matches!(state.way, Way::Guest) {
            state.way = Way::Held(Held::Arriving);
        }
    }

    /// The tenant that was expected is here.
    pub(crate) fn arrived(&self) {
        self.open(|held| held == Held::Arriving);
    }

    /// The tenant stays: sends what was held.
    pub(crate) fn go_on(&self) {
        self.open(|held| matches!(held, Held::Leaving(_)));
    }

    fn open(&self, why: impl FnOnce(Held) -> bool) {
        let mut state = self.state();
        if let Way::Held(held) = state.way
            && why(held)
        {
            state.way = Way::Guest;
            drop(state);
            self.notify();
        }
    }

    /// The tenant is gone: what was held after [`hold`](Self::hold), and what is sent from here on, goes `there` if an origin may say it. Again
    /// when the tenant moves on: then nothing is held here. `first` may send something before all else.
    pub(crate) fn leave(&self, there: Arc<dyn Outlet>, first: impl FnOnce()) {
        let mut state = self.state();
        first();
        let gone_along = if let Way::Held(Held::Leaving(count)) = state.way { count } else { 0 };
        let posted = std::mem::take(&mut state.posted);
        self.posted.fetch_sub(posted.len(), Ordering::Relaxed);
        state.posted_bytes = 0;
        let later = posted.into_iter().skip(gone_along);
        for (header, body) in later.filter(|(header, _)| Concern::of(header.kind) == Concern::Origin) {
            // If there is no way any more nobody waits for an answer: the tables are told.
            let _ = there.post(header, &body);
        }
        state.way = Way::Away(there.clone());
        let wakers = std::mem::take(&mut state.wakers);
        self.door.window().set_control(ControlWord::HostWantsRoom, 0);
        drop(state);
        there.kick();
        self.room.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the guest may be elsewhere: what it knows already is said all the same, because its host does not.
    pub(crate) fn is_relayed(&self) -> bool {
        !matches!(self.state().way, Way::Guest)
    }
}
