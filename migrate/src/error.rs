//! What both ends answer to a step: errors that name state and message, and what happened.

use crate::handshake::Terms;
use crate::link::RecordError;
use crate::message::Reason;
use crate::policy::{Binding, PeerRefused};
use crate::unit::Round;
use crate::vault::Outgoing;
use crate::wire::{Connection, FrameError, REFUSAL_BYTES};

/// Why a message had no effect. The state is what it was before, and the message that is due can still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// It is no record that is due.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It has no meaning in this state.
    #[error("a message {message} has no meaning in the state {state}")]
    Unexpected {
        /// The state.
        state: &'static str,
        /// The message.
        message: &'static str,
    },
    /// It breaks the format.
    #[error("a message {0} breaks the format")]
    Format(&'static str),
    /// The buffer for the answer is too short, or evidence too long.
    #[error("a frame of the handshake has no room")]
    NoRoom,
    /// It is about another final manifest.
    #[error("a Commit is for another destination or another final manifest")]
    OtherCommit,
    /// It belongs to another final manifest or round than this end knows.
    #[error("a message {0} is about something this end never said")]
    NeverSaid(&'static str),
}

impl From<FrameError> for StepError {
    fn from(error: FrameError) -> StepError {
        StepError::Record(error.into())
    }
}

/// Why a migration ended without moving anything, in this end's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ended {
    /// This end ended it.
    #[error("{0}")]
    Here(Reason),
    /// The other end ended it.
    #[error("the other end ended it: {0}")]
    There(Reason),
    /// This end refused the other.
    #[error(transparent)]
    Refused(#[from] PeerRefused),
    /// The source crashed before the destination had everything: nobody can run the tenant any more.
    #[error("the source is lost with {0} units that did not arrive; the service is lost")]
    Lost(u64),
}

/// What a message brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Get evidence that binds this, and go on with `prove`.
    Prove(Binding),
    /// Both ends know each other.
    Attested(Terms),
    /// The destination has everything up to this round.
    RoundReceived(Round),
    /// The tasks are parked at the source; now the lanes must reach their last barrier.
    Final,
    /// The destination is staged: the source may go.
    Staged,
    /// The destination runs, and fetches what is outstanding.
    Running,
    /// The destination has everything.
    Complete,
    /// The migration ended before the source was gone.
    Ended(Ended),
    /// A connection goes on in a new epoch.
    Resumed(Connection),
    /// This was said before: nothing changed.
    Repeated,
    /// Somebody says, in the clear, that the other end refused. A hint: the host can write it.
    Hint(Option<Reason>),
}

/// What came of a message: the state after it, what happened, and what to send.
#[derive(Debug)]
#[must_use]
pub struct Step<S> {
    /// The state after it; the one before if `event` is an error.
    pub state: S,
    /// What happened.
    pub event: Result<Event, StepError>,
    /// What to send.
    pub reply: Option<Outgoing>,
}

impl<S> Step<S> {
    pub(crate) fn new(state: S, event: Event) -> Step<S> {
        Step { state, event: Ok(event), reply: None }
    }

    pub(crate) fn replying(state: S, event: Event, reply: Option<Outgoing>) -> Step<S> {
        Step { state, event: Ok(event), reply }
    }

    pub(crate) fn error(state: S, error: impl Into<StepError>) -> Step<S> {
        Step { state, event: Err(error.into()), reply: None }
    }
}

/// The body of a refusal in the clear.
pub(crate) fn refusal(reason: Reason) -> [u8; REFUSAL_BYTES] {
    let mut body = [0; REFUSAL_BYTES];
    body[0] = reason as u8;
    body
}
