//! The destination: a fresh CVM that takes one tenant, or is destroyed.
//!
//! Each state is a type with the commands that are legal in it; [`Destination`] is whichever of them it is now and takes
//! messages. The activation key comes into being in one transition only, from [`Staged`] by a Commit, and is yielded once. See the
//! crate's documentation for the diagram.

mod joining;
mod lane;
mod ledger;
mod receiving;
mod running;

pub use joining::{Answered, Answering, Attested, Fresh, Host};
pub use lane::{Change, DestinationLane, Memory, NoMemory, ReceiveError, Received};
pub use ledger::{Demand, Ledger, UnitRefused, Verdict};
pub use receiving::{MemoryCommitted, Receiving, Stage, Staged, Verifying};
pub use running::{Fetched, Finished, Running};

use crate::error::{Ended, Event, Step, StepError};
use crate::handshake::body;
use crate::link::RecordError;
use crate::message::{Message, Reason};
use crate::policy::PeerPolicy;
use crate::vault::{DestinationHold, Outgoing};
use crate::wire::{Connection, End, Header, Kind, MigrationId};
use rand_core::CryptoRng;

/// What every state after the handshake has.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Core<V> {
    pub held: V,
    pub id: MigrationId,
}

/// The destination, in whichever state.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Destination<V> {
    /// It never ran a task and takes the first offer.
    Fresh(Fresh<V>),
    /// It has taken an offer and needs evidence of its own.
    Answering(Answering<V>),
    /// It has proved itself and waits for the source to do so.
    Answered(Answered<V>),
    /// Both ends know each other.
    Attested(Attested<V>),
    /// Rounds arrive.
    Receiving(Receiving<V>),
    /// The source's tasks are parked; the last units and lists arrive.
    Verifying(Verifying<V>),
    /// It has everything that it needs to run, but for the activation key.
    Staged(Staged<V>),
    /// It was activated, and outstanding units arrive.
    Running(Running<V>),
    /// It was activated and has everything.
    Done(Finished<V>),
    /// It ended: this CVM is of no use any more. Every key is wiped.
    Destroyed(Ended),
}

impl<V: DestinationHold> Destination<V> {
    /// Its state's name.
    pub fn name(&self) -> &'static str {
        match self {
            Destination::Fresh(_) => "Fresh",
            Destination::Answering(_) => "Answering",
            Destination::Answered(_) => "Answered",
            Destination::Attested(_) => "Attested",
            Destination::Receiving(_) => "Receiving",
            Destination::Verifying(_) => "Verifying",
            Destination::Staged(_) => "Staged",
            Destination::Running(_) => "Running",
            Destination::Done(_) => "Done",
            Destination::Destroyed(_) => "Destroyed",
        }
    }

    /// A frame came on the control connection, or a proposal to resume any connection. It is opened in place, so `frame` is
    /// private memory. What comes on lanes goes to the lanes, what was asked for on the demand connection to [`Running`].
    pub fn receive(
        self,
        frame: &mut [u8],
        policy: &mut impl PeerPolicy,
        random: &mut impl CryptoRng,
    ) -> Step<Self> {
        let header = match Header::split(frame) {
            Ok((header, _)) => header,
            Err(error) => return Step::error(self, error),
        };
        if header.from != End::Source {
            return Step::error(self, RecordError::OtherConnection);
        }
        match (header.kind, self) {
            (Kind::Offer, Destination::Fresh(state)) => state.offer(header.id, frame, random),
            (Kind::Proof, Destination::Answered(state)) => state.proof(header.id, frame, policy),
            (Kind::Commit, Destination::Staged(state)) => state.commit(frame),
            (Kind::Commit, state @ (Destination::Running(_) | Destination::Done(_))) => {
                Step::new(state, Event::Repeated)
            }
            (Kind::Refusal, state) => Step::new(state, Event::Hint(Reason::from_number(body(frame)[0]))),
            (Kind::Resume, state) => state.resumed(header.connection, frame),
            (Kind::Control, state) => state.control(frame),
            (kind, state) => {
                let error = StepError::Unexpected { state: state.name(), message: kind.name() };
                Step::error(state, error)
            }
        }
    }

    fn control(mut self, frame: &mut [u8]) -> Step<Self> {
        let state = self.name();
        let Some(core) = self.core() else {
            return Step::error(self, StepError::Unexpected { state, message: Kind::Control.name() });
        };
        match core.held.vault_mut().open(frame) {
            Err(error) => Step::error(self, error),
            Ok(None) => Step::error(self, StepError::Format(Kind::Control.name())),
            Ok(Some(message)) => self.message(message),
        }
    }

    fn message(self, message: Message) -> Step<Self> {
        match (self, message) {
            (Destination::Receiving(state), Message::Final(hash)) => {
                Step::new(Destination::Verifying(state.parked(hash)), Event::Final)
            }
            (Destination::Verifying(state), Message::Final(hash)) => {
                let event = state.repeated(&hash);
                Step { state: Destination::Verifying(state), event, reply: None }
            }
            (Destination::Staged(state), Message::Final(hash)) => {
                let event = state.repeated(&hash);
                Step { state: Destination::Staged(state), event, reply: None }
            }
            (state, Message::Abort(reason)) if state.may_be_aborted() => {
                let ended = Ended::There(reason);
                Step::new(state.destroy(ended), Event::Ended(ended))
            }
            (state, message) => {
                let error = StepError::Unexpected { state: state.name(), message: message.name() };
                Step::error(state, error)
            }
        }
    }

    fn core(&mut self) -> Option<&mut Core<V>> {
        match self {
            Destination::Attested(state) => Some(&mut state.core),
            Destination::Receiving(state) => Some(&mut state.core),
            Destination::Verifying(state) => Some(&mut state.core),
            Destination::Staged(state) => Some(&mut state.core),
            Destination::Running(state) => Some(&mut state.core),
            Destination::Done(state) => Some(&mut state.core),
            Destination::Fresh(_) | Destination::Answering(_) | Destination::Answered(_) => None,
            Destination::Destroyed(_) => None,
        }
    }

    /// What it has to say again when its control connection goes on.
    fn owed(&self) -> Option<Message> {
        match self {
            Destination::Receiving(state) => Some(state.owed()),
            Destination::Verifying(state) => Some(state.owed()),
            Destination::Staged(state) => Some(Message::Staged(*state.hash())),
            Destination::Running(_) => Some(Message::Running),
            Destination::Done(_) => Some(Message::Complete),
            _ => None,
        }
    }

    /// The source proposes a new epoch of a connection: goes there, answers, and for the control connection says again what the
    /// source may not have heard, which is the second frame of [`Destination::say_again`].
    fn resumed(mut self, connection: Connection, frame: &mut [u8]) -> Step<Self> {
        let Some(core) = self.core() else {
            let error = StepError::Unexpected { state: self.name(), message: Kind::Resume.name() };
            return Step::error(self, error);
        };
        let vault = core.held.vault_mut();
        match vault.follow(connection, frame) {
            Err(error) => Step::error(self, error),
            Ok(reply) => {
                match connection {
                    Connection::Fetch(lane) => {
                        if let Ok(lane) = vault.lane(lane) {
                            lane.rewind();
                        }
                    }
                    Connection::Demand => vault.lanes_mut().for_each(|lane| lane.rewind()),
                    Connection::Control | Connection::Pages(_) => {}
                }
                Step::replying(self, Event::Resumed(connection), Some(reply))
            }
        }
    }

    /// After `Resumed(Control)`: what the source may not have heard.
    pub fn say_again(&mut self) -> Option<Outgoing> {
        let message = self.owed()?;
        self.core()?.held.vault_mut().seal(&message).ok()
    }

    /// Whether the source, or this end, can still end it.
    fn may_be_aborted(&self) -> bool {
        !matches!(self, Destination::Running(_) | Destination::Done(_) | Destination::Destroyed(_))
    }

    /// Ends it here; the frame tells the source. Once it said `Staged` the source may be gone already, so then only the source can end it.
    ///
    /// # Errors
    /// The state, unchanged.
    #[expect(clippy::result_large_err, reason = "the state goes on either way")]
    pub fn cancel(mut self, reason: Reason) -> Result<(Self, Option<Outgoing>), Self> {
        if !self.may_be_aborted() || matches!(self, Destination::Staged(_)) {
            return Err(self);
        }
        let vault = self.core().map(|core| core.held.vault_mut());
        let frame = vault.and_then(|vault| vault.seal(&Message::Abort(reason)).ok());
        Ok((self.destroy(Ended::Here(reason)), frame))
    }

    fn destroy(self, ended: Ended) -> Self {
        let mut held = match self {
            Destination::Fresh(state) => state.held,
            Destination::Answering(state) => state.held,
            Destination::Answered(state) => state.held,
            Destination::Attested(state) => state.core.held,
            Destination::Receiving(state) => state.core.held,
            Destination::Verifying(state) => state.core.held,
            Destination::Staged(state) => state.core.held,
            Destination::Running(state) => state.core.held,
            Destination::Done(state) => state.core.held,
            Destination::Destroyed(ended) => return Destination::Destroyed(ended),
        };
        held.vault_mut().wipe();
        Destination::Destroyed(ended)
    }
}
