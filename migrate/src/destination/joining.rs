//! From a fresh CVM until both ends know each other.

use super::{Core, Destination, DestinationLane, Ledger, Receiving};
use crate::crypto::{Pair, Root};
use crate::error::{Ended, Event, Step, StepError, refusal};
use crate::flow::Window;
use crate::handshake::{Greeting, Secrets, Terms, body};
use crate::link::{Link, RecordError};
use crate::message::{Message, Reason};
use crate::policy::{Binding, Nonces, PeerPolicy, PeerRefused};
use crate::vault::{DestinationHold, Outgoing};
use crate::wire::{
    Connection, End, Kind, LaneId, MAX_EVIDENCE_BYTES, MigrationId, REFUSAL_FRAME_BYTES, WORD_BYTES,
    write_clear,
};
use rand_core::CryptoRng;

/// What this CVM is, as its guest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// SHA-256 of the manifest it was launched with; zeros without one.
    pub manifest: [u8; WORD_BYTES],
    /// Bytes of memory that a tenant can have.
    pub memory_bytes: u64,
    /// CPU features that it has, as in the header of a `.cwasm`.
    pub cpu_features: u64,
    /// The hash of its code and constants: see [`Terms::image`].
    pub image: [u8; WORD_BYTES],
}

/// It never ran a task and takes the first offer. **The caller promises the former**: a CVM that ran or loaded anything must not make
/// one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Fresh<V> {
    pub(super) held: V,
    host: Host,
}

/// It has taken an offer and needs evidence of its own. It takes no other offer, whatever happens.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Answering<V> {
    pub(super) held: V,
    id: MigrationId,
    greeting: Greeting,
}

/// It has proved itself and waits for the source to do so.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Answered<V> {
    pub(super) held: V,
    id: MigrationId,
    greeting: Greeting,
}

/// Both ends know each other.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Attested<V> {
    pub(super) core: Core<V>,
    terms: Terms,
}

/// A refusal in the clear.
fn refuse(id: MigrationId, reason: Reason) -> Option<Outgoing> {
    let mut frame = [0; REFUSAL_FRAME_BYTES];
    let parts: [&[u8]; 1] = [&refusal(reason)];
    write_clear(&mut frame, Kind::Refusal, End::Destination, id, &parts)?;
    Some(Outgoing::new(Connection::Control, &frame))
}

impl<V: DestinationHold> Destination<V> {
    /// A fresh one; see [`Fresh`] for what the caller promises. The vault is emptied.
    pub fn fresh(mut held: V, host: Host) -> Destination<V> {
        held.vault_mut().wipe();
        Destination::Fresh(Fresh { held, host })
    }
}

impl<V: DestinationHold> Fresh<V> {
    pub(super) fn offer(
        mut self,
        id: MigrationId,
        frame: &[u8],
        random: &mut impl CryptoRng,
    ) -> Step<Destination<V>> {
        let Some((terms, source)) = Terms::decode(body(frame)) else {
            return Step::error(Destination::Fresh(self), StepError::Format(Kind::Offer.name()));
        };
        let refused = [
            (Reason::Manifest, terms.manifest != self.host.manifest),
            (Reason::Image, terms.image != self.host.image),
            (Reason::Cpu, terms.cpu_features & !self.host.cpu_features != 0),
            (Reason::Memory, terms.memory_bytes > self.host.memory_bytes),
        ];
        if let Some((reason, _)) = refused.into_iter().find(|(_, refused)| *refused) {
            let ended = Ended::Here(reason);
            return Step::replying(Destination::Destroyed(ended), Event::Ended(ended), refuse(id, reason));
        }
        let mut nonces = Nonces { source, destination: [0; WORD_BYTES] };
        random.fill_bytes(&mut nonces.destination);
        self.held.vault_mut().pair = Some(Pair::generate(random));
        let mut greeting = Greeting::new(terms, nonces);
        greeting.add(frame);
        let answering = Answering { held: self.held, id, greeting };
        let event = Event::Prove(answering.binding());
        Step::new(Destination::Answering(answering), event)
    }
}

impl<V: DestinationHold> Answering<V> {
    /// What its own evidence has to bind.
    pub fn binding(&self) -> Binding {
        let key = self.held.vault().pair.as_ref().map_or([0; WORD_BYTES], Pair::public);
        Binding::new(End::Destination, self.id, key, &self.greeting.nonces, self.greeting.terms.manifest)
    }

    /// Proves itself by evidence that binds [`Answering::binding`]: writes the answer to `out` and returns its length.
    ///
    /// # Errors
    /// `NoRoom`: the state is as before.
    pub fn prove(mut self, evidence: &[u8], out: &mut [u8]) -> (Destination<V>, Result<usize, StepError>) {
        let (key, nonce) = (self.binding().key, self.greeting.nonces.destination);
        let fits = !evidence.is_empty() && evidence.len() <= MAX_EVIDENCE_BYTES;
        let parts: [&[u8]; 3] = [&nonce, &key, evidence];
        let written = write_clear(out, Kind::Accept, End::Destination, self.id, &parts);
        let Some(length) = written.filter(|_| fits) else {
            return (Destination::Answering(self), Err(StepError::NoRoom));
        };
        self.greeting.add(&out[..length]);
        let Answering { held, id, greeting } = self;
        (Destination::Answered(Answered { held, id, greeting }), Ok(length))
    }
}

impl<V: DestinationHold> Answered<V> {
    pub(super) fn proof(
        mut self,
        id: MigrationId,
        frame: &[u8],
        policy: &mut impl PeerPolicy,
    ) -> Step<Destination<V>> {
        if id != self.id {
            return Step::error(Destination::Answered(self), RecordError::OtherMigration { found: id });
        }
        let Some((peer, evidence)) = body(frame).split_first_chunk::<WORD_BYTES>() else {
            return Step::error(Destination::Answered(self), StepError::Format(Kind::Proof.name()));
        };
        let nonces = &self.greeting.nonces;
        let expected = Binding::new(End::Source, id, *peer, nonces, self.greeting.terms.manifest);
        let judged = policy.judge(evidence, &expected);
        self.greeting.add(frame);
        let vault = self.held.vault_mut();
        let agreed = judged.and_then(|()| {
            let pair = vault.pair.as_ref();
            let agreed = pair.and_then(|pair| Secrets::agree(pair, peer, self.greeting.transcript()));
            agreed.ok_or(PeerRefused::PublicKey)
        });
        vault.pair = None;
        match agreed {
            Err(refused) => {
                vault.wipe();
                let ended = Ended::Refused(refused);
                let reply = refuse(id, Reason::Peer);
                Step::replying(Destination::Destroyed(ended), Event::Ended(ended), reply)
            }
            Ok(secrets) => {
                let control = secrets.control.as_ref();
                let link = |root| Link::new(root, id, End::Destination, Connection::Control);
                vault.control = control.map(link);
                vault.secrets = Some(secrets);
                let terms = self.greeting.terms;
                let attested = Attested { core: Core { held: self.held, id }, terms };
                Step::new(Destination::Attested(attested), Event::Attested(terms))
            }
        }
    }
}

impl<V: DestinationHold> Attested<V> {
    /// Makes the lanes, with slots for the ledger of each, and tells the source to begin. `bytes_per_second` is a first guess
    /// of the bandwidth.
    ///
    /// # Errors
    /// None in practice: the control connection was just opened.
    pub fn start(
        mut self,
        bytes_per_second: u64,
        mut slots: impl FnMut(LaneId) -> V::Storage,
    ) -> Result<(Receiving<V>, Outgoing), RecordError> {
        let (id, lanes) = (self.core.id, usize::from(self.terms.lanes));
        let vault = self.core.held.vault_mut();
        let secrets = vault.secrets.as_ref();
        let roots =
            secrets.and_then(|all| Some((all.pages.as_ref()?, all.fetch.as_ref()?, all.table.as_ref()?)));
        let (pages, fetch, table) = roots.ok_or(RecordError::Closed)?;
        let link = |root, connection| Link::new(root, id, End::Destination, connection);
        vault.demand = Some(link(fetch, Connection::Demand));
        for lane in (0..lanes).filter_map(LaneId::new) {
            vault.lanes[lane.index()] = Some(DestinationLane {
                pages: Some(link(pages, Connection::Pages(lane))),
                fetch: Some(link(fetch, Connection::Fetch(lane))),
                ledger: Ledger::new(slots(lane), table.expose(), lane, lanes),
                piece: None,
                window: Window::for_bandwidth(bytes_per_second),
            });
        }
        let frame = vault.seal(&Message::Ready)?;
        Ok((Receiving::new(self.core), frame))
    }
}
