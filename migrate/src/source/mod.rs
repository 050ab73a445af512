//! The source: it gives its tenant away, or keeps it.
//!
//! Each state is a type with the commands that are legal in it; [`Source`] is whichever of them it is now and takes
//! messages. From [`Parked`] on the state owns the caller's [`Tenant`]; up to [`Staged`] it can be had back
//! ([`Source::cancel`]), and by [`Staged::go`] it is consumed: no state after that has a way to it. See the crate's
//! documentation for the diagram.

mod gone;
mod lane;
mod ledger;
mod opening;
mod rounds;

pub use gone::{Gone, RequestError, Requests, Serving, requested};
pub(crate) use lane::content_fits;
pub use lane::{Due, LaneError, SourceLane};
pub use ledger::{Ledger, MarkError};
pub use opening::{Attested, Confirming, OfferError, Offered, Proving};
pub use rounds::{AwaitStaged, Copying, Parked, Staged};

use crate::error::{Ended, Event, Step, StepError};
use crate::link::RecordError;
use crate::message::{FinalHash, Message, Reason};
use crate::policy::PeerPolicy;
use crate::unit::Round;
use crate::vault::{Outgoing, SourceHold};
use crate::wire::{Connection, End, Header, Kind, MigrationId};

/// What makes the source able to run its tenant: the roots of its parked tasks, and every session, TLS and HPKE key.
pub trait Tenant: Sized {
    /// Makes that impossible for ever: on success every vCPU has acknowledged that it holds no tenant task, one that the host resumes late looks again before it touches one,
    /// and all roots and keys are zeroised. On failure nothing was erased, because a vCPU has not acknowledged yet.
    ///
    /// # Errors
    /// The tenant, untouched.
    fn extinguish(self) -> Result<(), Self>;
}

/// What every state after the handshake has.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Core<V> {
    pub held: V,
    pub id: MigrationId,
}

/// The source, in whichever state.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Source<V, T> {
    /// It has offered its tenant.
    Offered(Offered<V>),
    /// It has accepted a destination and needs evidence of its own.
    Proving(Proving<V>),
    /// It has proved itself and waits for the destination.
    Confirming(Confirming<V>),
    /// Both ends know each other.
    Attested(Attested<V>),
    /// Rounds travel while tasks run.
    Copying(Copying<V>),
    /// All tasks are parked.
    Parked(Parked<V, T>),
    /// The final manifest is on its way.
    AwaitStaged(AwaitStaged<V, T>),
    /// The destination could run: the source may go.
    Staged(Staged<V, T>),
    /// The tenant is not here any more. Commit may be sent, as often as needed.
    Gone(Gone<V>),
    /// The destination runs and fetches what is outstanding.
    Serving(Serving<V>),
    /// The destination has everything; nothing is left here.
    Done,
    /// It ended before the source was gone: the tenant is here, whole.
    Aborted(Aborted<T>),
}

/// It ended, and the tenant is here. Every key is wiped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Aborted<T> {
    /// Why.
    pub ended: Ended,
    /// The tenant, if it was parked already: let its tasks go on.
    pub tenant: Option<T>,
}

impl<V: SourceHold, T: Tenant> Source<V, T> {
    /// Its state's name.
    pub fn name(&self) -> &'static str {
        match self {
            Source::Offered(_) => "Offered",
            Source::Proving(_) => "Proving",
            Source::Confirming(_) => "Confirming",
            Source::Attested(_) => "Attested",
            Source::Copying(_) => "Copying",
            Source::Parked(_) => "Parked",
            Source::AwaitStaged(_) => "AwaitStaged",
            Source::Staged(_) => "Staged",
            Source::Gone(_) => "Gone",
            Source::Serving(_) => "Serving",
            Source::Done => "Done",
            Source::Aborted(_) => "Aborted",
        }
    }

    /// A frame came that is not a request for units. It is opened in place, so `frame` is private memory.
    pub fn receive(self, frame: &mut [u8], policy: &mut impl PeerPolicy) -> Step<Self> {
        let header = match Header::split(frame) {
            Ok((header, _)) => header,
            Err(error) => return Step::error(self, error),
        };
        if header.from != End::Destination {
            return Step::error(self, RecordError::OtherConnection);
        }
        match (header.kind, self) {
            (Kind::Accept, Source::Offered(state)) => state.accept(frame, policy),
            (Kind::Refusal, state) => {
                let reason = Reason::from_number(crate::handshake::body(frame)[0]);
                Step::new(state, Event::Hint(reason))
            }
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
            (Source::Confirming(state), Message::Ready) => state.ready(),
            (Source::Staged(state), Message::Staged(hash)) => {
                let event = state.repeated(&hash);
                Step { state: Source::Staged(state), event, reply: None }
            }
            (Source::AwaitStaged(state), Message::Staged(hash)) => state.staged(&hash),
            (Source::Gone(state), Message::Running) => {
                Step::new(Source::Serving(state.running()), Event::Running)
            }
            (Source::Gone(state), Message::Complete) => state.complete(),
            (Source::Serving(state), Message::Complete) => state.complete(),
            (state, Message::Abort(reason)) if state.may_abort() => {
                let (aborted, _) = state.abort(Ended::There(reason), None);
                Step::new(Source::Aborted(aborted), Event::Ended(Ended::There(reason)))
            }
            (state, Message::RoundReceived(round)) => state.round_received(round),
            (state, message) if state.was_said(&message) => Step::new(state, Event::Repeated),
            (state, message) => {
                let error = StepError::Unexpected { state: state.name(), message: message.name() };
                Step::error(state, error)
            }
        }
    }

    /// Whether this is what the destination says again after its control connection was resumed.
    fn was_said(&self, message: &Message) -> bool {
        match message {
            Message::Ready => !matches!(self, Source::Confirming(_)),
            Message::Running => matches!(self, Source::Serving(_)),
            Message::Staged(hash) => match self {
                Source::Gone(Gone(state)) | Source::Serving(Serving(state)) => state.hash == *hash,
                _ => false,
            },
            _ => false,
        }
    }

    fn round_received(mut self, round: Round) -> Step<Self> {
        let lanes = match &mut self {
            Source::Copying(state) => state.0.held.vault_mut(),
            Source::Parked(state) => state.core.held.vault_mut(),
            Source::AwaitStaged(state) => state.core.held.vault_mut(),
            Source::Staged(_) | Source::Gone(_) | Source::Serving(_) => {
                return Step::new(self, Event::Repeated);
            }
            _ => {
                let error = StepError::Unexpected { state: self.name(), message: "RoundReceived" };
                return Step::error(self, error);
            }
        };
        if lanes.lanes().any(|lane| lane.ledger.round() < round) {
            return Step::error(self, StepError::NeverSaid("RoundReceived"));
        }
        let before = lanes.lanes().map(|lane| lane.ledger.confirmed()).min();
        lanes.lanes_mut().for_each(|lane| lane.ledger.confirm(round));
        let event = if before >= Some(round) { Event::Repeated } else { Event::RoundReceived(round) };
        Step::new(self, event)
    }

    fn core(&mut self) -> Option<&mut Core<V>> {
        match self {
            Source::Confirming(Confirming { core, .. }) | Source::Attested(Attested { core, .. }) => {
                Some(core)
            }
            Source::Copying(Copying(core)) => Some(core),
            Source::Parked(state) => Some(&mut state.core),
            Source::AwaitStaged(state) => Some(&mut state.core),
            Source::Staged(state) => Some(&mut state.core),
            Source::Gone(Gone(state)) | Source::Serving(Serving(state)) => Some(&mut state.core),
            Source::Offered(_) | Source::Proving(_) | Source::Done | Source::Aborted(_) => None,
        }
    }

    /// The connection broke and there is another one: goes to its next epoch. The frame proposes that to the destination;
    /// until its answer comes nothing can be sealed. If no answer comes, this is called again.
    ///
    /// # Errors
    /// If there is no such connection in this state.
    pub fn resume(&mut self, connection: Connection) -> Result<Outgoing, RecordError> {
        let vault = self.core().ok_or(RecordError::Closed)?.held.vault_mut();
        let frame = vault.propose(connection)?;
        if let Connection::Pages(lane) = connection {
            vault.lane(lane)?.rewind();
        }
        Ok(frame)
    }

    fn resumed(mut self, connection: Connection, frame: &mut [u8]) -> Step<Self> {
        let Some(core) = self.core() else {
            let error = StepError::Unexpected { state: self.name(), message: Kind::Resume.name() };
            return Step::error(self, error);
        };
        if let Err(error) = core.held.vault_mut().agreed(connection, frame) {
            return Step::error(self, error);
        }
        let owed = match &self {
            Source::AwaitStaged(state) if connection == Connection::Control => Some(state.hash),
            _ => None,
        };
        // A connection that was just agreed can carry a record.
        let seal = |core: &mut Core<V>, hash| core.held.vault_mut().seal(&Message::Final(hash)).ok();
        let reply = owed.and_then(|hash: FinalHash| self.core().and_then(|core| seal(core, hash)));
        Step::replying(self, Event::Resumed(connection), reply)
    }

    /// Whether it is early enough to keep the tenant.
    pub fn may_abort(&self) -> bool {
        !matches!(self, Source::Gone(_) | Source::Serving(_) | Source::Done | Source::Aborted(_))
    }

    /// Ends the migration; the tenant stays here. The frame, if there is one, tells the destination; if that does not arrive, it
    /// stays as it is, without an activation key, until its host destroys it.
    ///
    /// # Errors
    /// The state, unchanged, if it is too late, or it has ended already.
    #[expect(clippy::result_large_err, reason = "the state goes on either way")]
    pub fn cancel(self, reason: Reason) -> Result<(Aborted<T>, Option<Outgoing>), Self> {
        if self.may_abort() { Ok(self.abort(Ended::Here(reason), Some(reason))) } else { Err(self) }
    }

    fn abort(mut self, ended: Ended, tell: Option<Reason>) -> (Aborted<T>, Option<Outgoing>) {
        let vault = self.core().map(|core| core.held.vault_mut());
        let frame = vault.zip(tell).and_then(|(vault, reason)| vault.seal(&Message::Abort(reason)).ok());
        let tenant = match self {
            Source::Offered(mut state) => state.wipe(),
            Source::Proving(mut state) => state.wipe(),
            Source::Confirming(Confirming { core, .. }) | Source::Attested(Attested { core, .. }) => {
                core.wipe()
            }
            Source::Copying(Copying(core)) => core.wipe(),
            Source::Parked(state) => state.into_tenant(),
            Source::AwaitStaged(state) => state.into_tenant(),
            Source::Staged(state) => state.into_tenant(),
            Source::Gone(_) | Source::Serving(_) | Source::Done => None,
            Source::Aborted(aborted) => return (aborted, None),
        };
        (Aborted { ended, tenant }, frame)
    }
}

impl<V: SourceHold> Core<V> {
    /// Wipes every key; there is no tenant here.
    fn wipe<T>(mut self) -> Option<T> {
        self.held.vault_mut().wipe();
        None
    }
}
