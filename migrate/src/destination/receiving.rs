//! From the first round until the activation key is here.

use super::{Core, Destination, DestinationLane, Running};
use crate::activation::open_commit;
use crate::error::{Ended, Event, Step, StepError};
use crate::handshake::final_hash;
use crate::message::{FinalHash, Message, Reason};
use crate::unit::Round;
use crate::vault::{DestinationHold, KeyOf, Outgoing};

/// A lane of the destination in this vault.
pub(super) type LaneOf<V> =
    DestinationLane<KeyOf<<V as DestinationHold>::Pair>, <V as DestinationHold>::Storage>;

/// Rounds arrive.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Receiving<V> {
    pub(super) core: Core<V>,
    /// The last round that the source was told of.
    told: Round,
}

/// The source's tasks are parked; the last units and lists arrive.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Verifying<V> {
    pub(super) core: Core<V>,
    told: Round,
    hash: FinalHash,
}

/// It has everything that it needs to run, but for the activation key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Staged<V> {
    pub(super) core: Core<V>,
    hash: FinalHash,
}

/// The caller's word that all memory that the tenant will need is committed: every page that is here or listed has a frame of its own, and
/// the host has committed that too. After `Staged` there is no way back.
#[derive(Clone, Copy, Debug)]
pub struct MemoryCommitted;

/// What came of [`Verifying::stage`].
pub enum Stage<V> {
    /// It is staged; send the frame.
    Staged(Staged<V>, Outgoing),
    /// Not all lanes have reached their last barrier.
    NotYet(Verifying<V>),
    /// What is here is not what the final manifest says; the frame tells the source.
    Destroyed(Ended, Option<Outgoing>),
}

/// The last round that all lanes have completed.
fn completed<V: DestinationHold>(core: &Core<V>) -> Round {
    let open = core.held.vault().lanes().map(|lane| lane.ledger().open_round().0).min();
    Round(open.unwrap_or(1).saturating_sub(1))
}

impl<V: DestinationHold> Receiving<V> {
    pub(super) fn new(core: Core<V>) -> Receiving<V> {
        Receiving { core, told: Round(0) }
    }

    /// The lanes, to receive on. Different ones may be used by different vCPUs at once.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut LaneOf<V>> {
        self.core.held.vault_mut().lanes_mut()
    }

    /// To be called when a lane reached a barrier: what to tell the source, if all have.
    pub fn round_received(&mut self) -> Option<Outgoing> {
        let round = completed(&self.core);
        if round <= self.told {
            return None;
        }
        let frame = self.core.held.vault_mut().seal(&Message::RoundReceived(round)).ok()?;
        self.told = round;
        Some(frame)
    }

    pub(super) fn owed(&self) -> Message {
        owed(self.told)
    }

    pub(super) fn parked(self, hash: FinalHash) -> Verifying<V> {
        Verifying { core: self.core, told: self.told, hash }
    }
}

fn owed(told: Round) -> Message {
    if told == Round(0) { Message::Ready } else { Message::RoundReceived(told) }
}

impl<V: DestinationHold> Verifying<V> {
    /// The lanes, to receive the rest on.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut LaneOf<V>> {
        self.core.held.vault_mut().lanes_mut()
    }

    pub(super) fn owed(&self) -> Message {
        owed(self.told)
    }

    pub(super) fn repeated(&self, hash: &FinalHash) -> Result<Event, StepError> {
        if *hash == self.hash { Ok(Event::Repeated) } else { Err(StepError::NeverSaid("Final")) }
    }

    /// Whether all lanes have reached their last barrier.
    pub fn is_complete(&self) -> bool {
        self.core.held.vault().lanes().all(|lane| lane.ledger().is_closed())
    }

    /// Says `Staged`, once all lanes have reached their last barrier, all of this is what the final manifest says, and memory is
    /// committed.
    pub fn stage(mut self, _committed: MemoryCommitted) -> Stage<V> {
        if !self.is_complete() {
            return Stage::NotYet(self);
        }
        let round = completed(&self.core);
        let vault = self.core.held.vault_mut();
        let hash = vault.secrets.as_ref().map(|secrets| {
            final_hash(&secrets.transcript, round, vault.lanes().map(|lane| lane.ledger().summary()))
        });
        if hash != Some(self.hash) {
            let frame = vault.seal(&Message::Abort(Reason::Mismatch)).ok();
            vault.wipe();
            return Stage::Destroyed(Ended::Here(Reason::Mismatch), frame);
        }
        match vault.seal(&Message::Staged(self.hash)) {
            Err(_) => Stage::NotYet(self),
            Ok(frame) => {
                let Verifying { core, hash, .. } = self;
                Stage::Staged(Staged { core, hash }, frame)
            }
        }
    }
}

impl<V: DestinationHold> Staged<V> {
    /// The hash of the final manifest.
    pub fn hash(&self) -> &FinalHash {
        &self.hash
    }

    pub(super) fn repeated(&self, hash: &FinalHash) -> Result<Event, StepError> {
        if *hash == self.hash { Ok(Event::Repeated) } else { Err(StepError::NeverSaid("Final")) }
    }

    /// **The point where this copy becomes the one.**
    pub(super) fn commit(mut self, frame: &mut [u8]) -> Step<Destination<V>> {
        let id = self.core.id;
        let vault = self.core.held.vault_mut();
        let secret = vault.secrets.as_ref().and_then(|secrets| secrets.commit.as_ref());
        let Some(activation) = secret.and_then(|secret| open_commit(secret, id, &self.hash, frame)) else {
            return Step::error(Destination::Staged(self), StepError::OtherCommit);
        };
        if let Some(secrets) = vault.secrets.as_mut() {
            (secrets.commit, secrets.pages, secrets.table) = (None, None, None);
        }
        vault.lanes_mut().for_each(|lane| lane.pages = None);
        let (running, frame) = Running::new(self.core, activation);
        Step::replying(Destination::Running(running), Event::Running, frame)
    }
}
