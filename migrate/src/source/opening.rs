//! From the offer until both ends know each other.

use super::{Aborted, Copying, Core, Source, SourceLane, Tenant};
use crate::crypto::Pair;
use crate::error::{Ended, Event, Step, StepError};
use crate::handshake::{Greeting, Secrets, Terms};
use crate::link::{Link, RecordError};
use crate::policy::{Binding, Nonces, PeerPolicy, PeerRefused};
use crate::unit::Round;
use crate::vault::SourceHold;
use crate::wire::{
    Connection, End, Header, Kind, LaneId, MAX_EVIDENCE_BYTES, MigrationId, WORD_BYTES, write_clear,
};
use rand_core::CryptoRng;

/// Why nothing is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// The number of lanes is not 1 to [`MAX_LANES`](crate::wire::MAX_LANES).
    #[error("a migration has 1 to {} lanes", crate::wire::MAX_LANES)]
    Lanes,
    /// The vault belongs to another migration.
    #[error("a migration is under way")]
    UnderWay,
    /// The buffer is shorter than the frame.
    #[error("the buffer is shorter than the frame")]
    Buffer,
}

/// It has offered its tenant.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Offered<V> {
    held: V,
    id: MigrationId,
    greeting: Greeting,
}

/// It has accepted a destination and needs evidence of its own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Proving<V> {
    held: V,
    id: MigrationId,
    greeting: Greeting,
    peer: [u8; WORD_BYTES],
}

/// It has proved itself and waits for the destination's [`Ready`](crate::message::Message::Ready).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Confirming<V> {
    pub(super) core: Core<V>,
    terms: Terms,
}

/// Both ends know each other.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Attested<V> {
    pub(super) core: Core<V>,
    terms: Terms,
}

impl<V: SourceHold, T: Tenant> Source<V, T> {
    /// Begins a migration with a fresh id, nonce and key pair; writes the offer to `out` and returns its length. The vault must be
    /// empty.
    ///
    /// # Errors
    /// [`OfferError`].
    pub fn offer(
        mut held: V,
        terms: Terms,
        random: &mut impl CryptoRng,
        out: &mut [u8],
    ) -> Result<(Source<V, T>, usize), OfferError> {
        if !terms.are_valid() {
            return Err(OfferError::Lanes);
        }
        if !held.vault().is_empty() {
            return Err(OfferError::UnderWay);
        }
        let mut id = MigrationId([0; 16]);
        random.fill_bytes(&mut id.0);
        let mut nonces = Nonces::default();
        random.fill_bytes(&mut nonces.source);
        let body = terms.encode(&nonces.source);
        let length = write_clear(out, Kind::Offer, End::Source, id, &[&body]).ok_or(OfferError::Buffer)?;
        held.vault_mut().pair = Some(Pair::generate(random));
        let mut greeting = Greeting::new(terms, nonces);
        greeting.add(&out[..length]);
        Ok((Source::Offered(Offered { held, id, greeting }), length))
    }
}

impl<V: SourceHold> Offered<V> {
    /// The migration's id.
    pub fn id(&self) -> MigrationId {
        self.id
    }

    pub(super) fn wipe<T>(&mut self) -> Option<T> {
        self.held.vault_mut().wipe();
        None
    }

    pub(super) fn accept<T: Tenant>(
        mut self,
        frame: &[u8],
        policy: &mut impl PeerPolicy,
    ) -> Step<Source<V, T>> {
        let parts = Header::split(frame).ok().and_then(|(header, body)| {
            let (nonce, rest) = body.split_first_chunk::<WORD_BYTES>()?;
            let (key, evidence) = rest.split_first_chunk::<WORD_BYTES>()?;
            Some((header, *nonce, *key, evidence))
        });
        let Some((header, nonce, peer, evidence)) = parts else {
            return Step::error(Source::Offered(self), StepError::Format(Kind::Accept.name()));
        };
        if header.id != self.id {
            return Step::error(Source::Offered(self), RecordError::OtherMigration { found: header.id });
        }
        let mut greeting = self.greeting.clone();
        greeting.nonces.destination = nonce;
        let manifest = greeting.terms.manifest;
        let expected = Binding::new(End::Destination, self.id, peer, &greeting.nonces, manifest);
        if let Err(refused) = policy.judge(evidence, &expected) {
            self.held.vault_mut().wipe();
            let ended = Ended::Refused(refused);
            return Step::new(Source::Aborted(Aborted { ended, tenant: None }), Event::Ended(ended));
        }
        greeting.add(frame);
        let proving = Proving { held: self.held, id: self.id, greeting, peer };
        let event = Event::Prove(proving.binding());
        Step::new(Source::Proving(proving), event)
    }
}

impl<V: SourceHold> Proving<V> {
    /// What its own evidence has to bind.
    pub fn binding(&self) -> Binding {
        let key = self.held.vault().pair.as_ref().map_or([0; WORD_BYTES], Pair::public);
        Binding::new(End::Source, self.id, key, &self.greeting.nonces, self.greeting.terms.manifest)
    }

    pub(super) fn wipe<T>(&mut self) -> Option<T> {
        self.held.vault_mut().wipe();
        None
    }

    /// Proves itself by evidence that binds [`Proving::binding`]: writes the proof to `out` and returns its length. The keys are agreed
    /// now, and the key pair is gone.
    ///
    /// # Errors
    /// `NoRoom`: the state is as before. If no secret can be agreed with the destination's key, the migration ends.
    pub fn prove<T: Tenant>(
        mut self,
        evidence: &[u8],
        out: &mut [u8],
    ) -> (Source<V, T>, Result<usize, StepError>) {
        let key = self.binding().key;
        let fits = !evidence.is_empty() && evidence.len() <= MAX_EVIDENCE_BYTES;
        let written = write_clear(out, Kind::Proof, End::Source, self.id, &[&key, evidence]);
        let Some(length) = written.filter(|_| fits) else {
            return (Source::Proving(self), Err(StepError::NoRoom));
        };
        self.greeting.add(&out[..length]);
        let vault = self.held.vault_mut();
        let pair = vault.pair.as_ref();
        let agreed = pair.and_then(|pair| Secrets::agree(pair, &self.peer, self.greeting.transcript()));
        vault.pair = None;
        let Some(secrets) = agreed else {
            vault.wipe();
            let ended = Ended::Refused(PeerRefused::PublicKey);
            return (Source::Aborted(Aborted { ended, tenant: None }), Err(StepError::Format("Accept")));
        };
        let control = secrets.control.as_ref();
        vault.control = control.map(|root| Link::new(root, self.id, End::Source, Connection::Control));
        vault.secrets = Some(secrets);
        let core = Core { held: self.held, id: self.id };
        (Source::Confirming(Confirming { core, terms: self.greeting.terms }), Ok(length))
    }
}

impl<V: SourceHold> Confirming<V> {
    pub(super) fn ready<T: Tenant>(self) -> Step<Source<V, T>> {
        let Confirming { core, terms } = self;
        Step::new(Source::Attested(Attested { core, terms }), Event::Attested(terms))
    }
}

impl<V: SourceHold> Attested<V> {
    /// Makes the lanes, with slots for the ledger of each.
    pub fn start(mut self, mut slots: impl FnMut(LaneId) -> V::Storage) -> Copying<V> {
        let (id, lanes) = (self.core.id, usize::from(self.terms.lanes));
        let vault = self.core.held.vault_mut();
        let secrets = vault.secrets.as_ref();
        let roots =
            secrets.and_then(|all| Some((all.pages.as_ref()?, all.fetch.as_ref()?, all.table.as_ref()?)));
        if let Some((pages, fetch, table)) = roots {
            let link = |root, connection| Link::new(root, id, End::Source, connection);
            vault.demand = Some(link(fetch, Connection::Demand));
            for lane in (0..lanes).filter_map(LaneId::new) {
                vault.lanes[lane.index()] = Some(SourceLane {
                    pages: Some(link(pages, Connection::Pages(lane))),
                    fetch: Some(link(fetch, Connection::Fetch(lane))),
                    ledger: super::Ledger::new(slots(lane), crate::crypto::Root::expose(table), lane, lanes),
                    piece: None,
                    parked: false,
                    finished: false,
                });
            }
        }
        self.core.begin_round(Round(0));
        Copying(self.core)
    }
}
