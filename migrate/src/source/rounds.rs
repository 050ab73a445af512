//! From the first round until the destination is staged.

use super::{Aborted, Core, Gone, LaneError, Source, SourceLane, Tenant};
use crate::activation::{Commit, seal_commit, seal_roots};
use crate::crypto::Root;
use crate::error::{Ended, Event, Step, StepError};
use crate::handshake::final_hash;
use crate::link::RecordError;
use crate::message::{FinalHash, Message, Reason};
use crate::source::gone::Remains;
use crate::unit::Round;
use crate::vault::{KeyOf, Outgoing, SourceHold};
use crate::wire::TAG_BYTES;
use rand_core::CryptoRng;

/// A lane of the source in this vault.
type LaneOf<V> = SourceLane<KeyOf<<V as SourceHold>::Pair>, <V as SourceHold>::Storage>;

/// Rounds travel while tasks run.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Copying<V>(pub(super) Core<V>);

/// All tasks are parked; what changed since the last round is marked, then sent or listed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Parked<V, T> {
    pub(super) core: Core<V>,
    tenant: T,
    /// Whether the roots were sealed: the activation key seals once.
    locked: bool,
}

/// The final manifest is on its way.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AwaitStaged<V, T> {
    pub(super) core: Core<V>,
    tenant: T,
    pub(super) hash: FinalHash,
}

/// The destination has everything that it needs to run, but for the activation key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Staged<V, T> {
    pub(super) core: Core<V>,
    tenant: T,
    hash: FinalHash,
}

impl<V: SourceHold> Core<V> {
    pub(super) fn begin_round(&mut self, round: Round) {
        self.held.vault_mut().lanes_mut().for_each(|lane| lane.begin(round));
    }

    fn round(&self) -> Round {
        self.held.vault().lanes().map(|lane| lane.ledger.round()).max().unwrap_or_default()
    }

    fn lanes(&mut self) -> impl Iterator<Item = &mut LaneOf<V>> {
        self.held.vault_mut().lanes_mut()
    }
}

impl<V: SourceHold> Copying<V> {
    /// Begins the next round: what is marked from now on belongs to it. Rounds may overlap; what is left of one is sent with the
    /// next.
    ///
    /// # Errors
    /// `Exhausted` after 2^32 rounds.
    pub fn begin_round(&mut self) -> Result<Round, RecordError> {
        let next = self.0.round().0.checked_add(1).map(Round).ok_or(RecordError::Exhausted)?;
        self.0.begin_round(next);
        Ok(next)
    }

    /// The lanes, to mark, seal and end rounds on. Different ones may be used by different vCPUs at once.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut LaneOf<V>> {
        self.0.lanes()
    }

    /// All tasks are parked at safe points: the last round begins. From here on the tenant's heap must not change.
    ///
    /// # Errors
    /// The state and the tenant, after 2^32 rounds.
    pub fn park<T: Tenant>(
        mut self,
        tenant: T,
        random: &mut impl CryptoRng,
    ) -> Result<Parked<V, T>, (Copying<V>, T)> {
        if self.begin_round().is_err() {
            return Err((self, tenant));
        }
        self.0.lanes().for_each(|lane| lane.parked = true);
        self.0.held.vault_mut().activation = Some(Root::generate(random));
        Ok(Parked { core: self.0, tenant, locked: false })
    }
}

impl<V: SourceHold, T: Tenant> Parked<V, T> {
    /// The lanes, to mark what changed since the last round, to send it, and to list what stays outstanding.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut LaneOf<V>> {
        self.core.lanes()
    }

    /// Seals the roots of the tenant's tasks in place under the activation key; returns the tag. They then travel as state, beside
    /// their tag. Once.
    ///
    /// # Errors
    /// `Exhausted` the second time.
    pub fn lock(&mut self, roots: &mut [u8]) -> Result<[u8; TAG_BYTES], RecordError> {
        let activation = self.core.held.vault().activation.as_ref();
        let activation = activation.filter(|_| !self.locked).ok_or(RecordError::Exhausted)?;
        self.locked = true;
        Ok(seal_roots(activation, roots))
    }

    /// Every lane has sent its last barrier: makes the final manifest. Nothing can be marked any more.
    ///
    /// # Errors
    /// The state, if a lane has not.
    pub fn finish(mut self) -> Result<(AwaitStaged<V, T>, Outgoing), (Self, LaneError)> {
        let unfinished = self.core.held.vault().lanes().find(|lane| !lane.is_finished());
        if let Some(lane) = unfinished {
            let error = LaneError::Unsent(lane.ledger.unsent().0);
            return Err((self, error));
        }
        let round = self.core.round();
        let vault = self.core.held.vault_mut();
        let Some(transcript) = vault.secrets.as_ref().map(|secrets| secrets.transcript) else {
            return Err((self, RecordError::Closed.into()));
        };
        let hash = final_hash(&transcript, round, vault.lanes().map(|lane| lane.ledger.summary()));
        match vault.seal(&Message::Final(hash)) {
            Err(error) => Err((self, error.into())),
            Ok(frame) => {
                vault.lanes_mut().for_each(|lane| lane.ledger.freeze());
                let Parked { core, tenant, .. } = self;
                Ok((AwaitStaged { core, tenant, hash }, frame))
            }
        }
    }

    pub(super) fn into_tenant(mut self) -> Option<T> {
        self.core.held.vault_mut().wipe();
        Some(self.tenant)
    }
}

impl<V: SourceHold, T: Tenant> AwaitStaged<V, T> {
    /// The lanes, to send again what was lost with a connection.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut LaneOf<V>> {
        self.core.lanes()
    }

    pub(super) fn staged(mut self, hash: &FinalHash) -> Step<Source<V, T>> {
        if *hash == self.hash {
            let AwaitStaged { core, tenant, hash } = self;
            return Step::new(Source::Staged(Staged { core, tenant, hash }), Event::Staged);
        }
        let reply = self.core.held.vault_mut().seal(&Message::Abort(Reason::Mismatch)).ok();
        let ended = Ended::Here(Reason::Mismatch);
        let aborted = Aborted { ended, tenant: self.into_tenant() };
        Step::replying(Source::Aborted(aborted), Event::Ended(ended), reply)
    }

    pub(super) fn into_tenant(mut self) -> Option<T> {
        self.core.held.vault_mut().wipe();
        Some(self.tenant)
    }
}

impl<V: SourceHold, T: Tenant> Staged<V, T> {
    /// The hash of the final manifest.
    pub fn hash(&self) -> &FinalHash {
        &self.hash
    }

    pub(super) fn repeated(&self, hash: &FinalHash) -> Result<Event, StepError> {
        if *hash == self.hash { Ok(Event::Repeated) } else { Err(StepError::NeverSaid("Staged")) }
    }

    /// **The point of no return.** Extinguishes the tenant here, then makes the Commit, the only thing that can make it run again
    /// anywhere, and wipes every key that is not needed to serve what is outstanding. Only what this returns may ever reach the host.
    ///
    /// # Errors
    /// The state, if the tenant could not be extinguished yet: it still is here, whole.
    pub fn go(self) -> Result<(Gone<V>, Commit), Self> {
        let Staged { mut core, tenant, hash } = self;
        if core.commit_secret().is_none() || core.held.vault().activation.is_none() {
            return Err(Staged { core, tenant, hash });
        }
        if let Err(tenant) = tenant.extinguish() {
            return Err(Staged { core, tenant, hash });
        }
        let id = core.id;
        let vault = core.held.vault_mut();
        let secret = vault.secrets.as_ref().and_then(|secrets| secrets.commit.as_ref());
        let both = secret.zip(vault.activation.as_ref());
        let commit = both.map(|(secret, activation)| seal_commit(secret, id, &hash, activation));
        let commit = commit.expect("both were there before the tenant was extinguished");
        vault.activation = None;
        let nothing_left = !vault.lanes().any(|lane| lane.ledger.leaves_outstanding());
        if let Some(secrets) = vault.secrets.as_mut() {
            (secrets.commit, secrets.pages, secrets.table) = (None, None, None);
            if nothing_left {
                secrets.fetch = None;
            }
        }
        vault.lanes_mut().for_each(|lane| lane.pages = None);
        if nothing_left {
            vault.demand = None;
            vault.lanes.iter_mut().for_each(|lane| *lane = None);
        }
        Ok((Gone(Remains { core, hash, commit }), commit))
    }

    pub(super) fn into_tenant(mut self) -> Option<T> {
        self.core.held.vault_mut().wipe();
        Some(self.tenant)
    }
}

impl<V: SourceHold> Core<V> {
    fn commit_secret(&self) -> Option<()> {
        self.held.vault().secrets.as_ref()?.commit.as_ref().map(|_| ())
    }
}
