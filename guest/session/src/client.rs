//! The client's end: a handshake becomes a session once its evidence is verified.

use crate::ClaimsHash;
use crate::authority;
use crate::codec::{DecodeError, EncodeError};
use crate::command::Command;
use crate::keys::{Chain, RecordKey, SecretBytes};
use crate::reply::Reply;
use crate::sealed::{self, Plaintext};
use crate::wire::{
    ENC_BYTES, Header, Kind, MAX_RECORDS, NONCE_BYTES, RecordError, Rejected, SessionId, evidence_request,
};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use ed25519_dalek::SigningKey;
use rand_core::CryptoRng;

/// Why a client can't go on with what it wanted or got. Only `Exhausted` and `BadPublicKey` end anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The CVM's public key is one that no secret can be agreed with.
    #[error("the CVM's public key is invalid; do not trust this node")]
    BadPublicKey,
    /// The command can't be sealed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The session has carried all the requests it can.
    #[error("the session has carried {MAX_RECORDS} requests; open another")]
    Exhausted,
    /// The answer is no message of this protocol, or not for a client.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The answer belongs to another session.
    #[error("the answer is of session {found:?}; the node mixed up its clients")]
    OtherSession {
        /// Its session.
        found: SessionId,
    },
    /// Nothing with this number was asked.
    #[error("the answer is to request {seq}, which was not sent")]
    NeverAsked {
        /// Its number.
        seq: u64,
    },
    /// The request was answered before.
    #[error("the answer to request {seq} was received before")]
    AlreadyAnswered {
        /// Its number.
        seq: u64,
    },
    /// Somebody says, in the clear, that the request was turned away. Only a hint: the node can write it.
    #[error("request {seq} was turned away: {error}")]
    TurnedAway {
        /// The request's number.
        seq: u64,
        /// The reason given.
        error: RecordError,
    },
}

/// A nonce that was sent, and evidence that is waited for.
pub struct ClientHandshake {
    nonce: [u8; NONCE_BYTES],
}

impl ClientHandshake {
    /// With a fresh nonce.
    pub fn new(rng: &mut impl CryptoRng) -> ClientHandshake {
        let mut nonce = [0; NONCE_BYTES];
        rng.fill_bytes(&mut nonce);
        ClientHandshake { nonce }
    }

    /// The nonce that the evidence must contain.
    pub fn nonce(&self) -> &[u8; NONCE_BYTES] {
        &self.nonce
    }

    /// The message that asks for the evidence.
    pub fn request(&self) -> Vec<u8> {
        evidence_request(&self.nonce)
    }

    /// Opens a session to the CVM whose claims have this hash. The caller **has verified** the evidence, including that it
    /// binds the nonce, `id` and `public_key`; nothing of that is checked here.
    ///
    /// # Errors
    /// `BadPublicKey`.
    pub fn accept(
        self,
        id: SessionId,
        public_key: &[u8; 32],
        claims: ClaimsHash,
        rng: &mut impl CryptoRng,
    ) -> Result<ClientSession, ClientError> {
        let (chain, enc) = Chain::send(public_key, &claims, rng).ok_or(ClientError::BadPublicKey)?;
        Ok(ClientSession { id, claims, chain, enc, next: 0, unanswered: BTreeMap::new() })
    }
}

/// A sealed request. Keep it until its answer is there: if it is lost, these very bytes are sent again; a number is never
/// used for other bytes.
pub struct SealedRequest {
    /// Its number.
    pub seq: u64,
    /// The message.
    pub bytes: Vec<u8>,
}

/// A session. The keys are wiped when it is dropped.
pub struct ClientSession {
    id: SessionId,
    claims: ClaimsHash,
    chain: Box<Chain>,
    enc: [u8; ENC_BYTES],
    next: u64,
    /// The keys of answers that did not come yet.
    unanswered: BTreeMap<u64, Box<RecordKey>>,
}

impl ClientSession {
    /// Its name.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// How many requests have no answer yet.
    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// Seals a command; the first one is an [`Kind::Open`]. Requests must arrive in the order of their numbers.
    ///
    /// # Errors
    /// `Encode`, `Exhausted`; then no number is used up.
    pub fn seal_request(&mut self, command: &Command) -> Result<SealedRequest, ClientError> {
        let body = command.body_bytes()?;
        self.seal(2 + body, |record| {
            record.extend_from_slice(&[command.tag(), 0]);
            command.put_body(record).expect("it was counted before");
        })
    }

    /// The same, signed by the manifest's owner or a broker for this place in this session.
    ///
    /// # Errors
    /// `Encode`, `Exhausted`; then no number is used up.
    pub fn seal_signed(&mut self, command: &Command, key: &SigningKey) -> Result<SealedRequest, ClientError> {
        let mut body = SecretBytes(Vec::with_capacity(command.body_bytes()?));
        command.put_body(&mut body.0)?;
        let place = authority::Place { session: self.id, claims: self.claims, seq: self.next };
        let signed = place.sign(command.tag(), &body.0, key);
        self.seal(2 + signed.len() + body.0.len(), |record| {
            record.extend_from_slice(&[command.tag(), 1]);
            record.extend_from_slice(&signed);
            record.extend_from_slice(&body.0);
        })
    }

    fn seal(
        &mut self,
        content: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<SealedRequest, ClientError> {
        let seq = self.next;
        if seq >= MAX_RECORDS {
            return Err(ClientError::Exhausted);
        }
        let (kind, enc) = if seq == 0 { (Kind::Open, Some(self.enc)) } else { (Kind::Request, None) };
        let step = self.chain.step();
        let place = sealed::Place { kind, session: self.id, seq, enc, key: &step.request };
        let bytes = sealed::seal(place, content, write)?;
        self.next += 1;
        self.chain.advance(&step);
        self.unanswered.insert(seq, step.response);
        Ok(SealedRequest { seq, bytes })
    }

    /// Takes an answer, which is decrypted in place.
    ///
    /// # Errors
    /// `Record` (`Forged` among them), `OtherSession`, `NeverAsked`, `AlreadyAnswered`, `TurnedAway`. The session goes on,
    /// and the request stays unanswered.
    pub fn open_response(&mut self, record: Vec<u8>) -> Result<Response, ClientError> {
        let (header, _) = Header::split(&record)?;
        match header.kind {
            Kind::Response => {}
            Kind::Failure => return Err(self.turned_away(&header, &record)),
            kind => return Err(RecordError::WrongEnd { found: kind as u8 }.into()),
        }
        if header.session != self.id {
            return Err(ClientError::OtherSession { found: header.session });
        }
        let seq = header.seq;
        let Some(key) = self.unanswered.get(&seq) else {
            return Err(match seq < self.next {
                true => ClientError::AlreadyAnswered { seq },
                false => ClientError::NeverAsked { seq },
            });
        };
        let plaintext = Plaintext::open(record, &header, key)?;
        self.unanswered.remove(&seq);
        Ok(Response { seq, plaintext })
    }

    /// A failure may name no session: what could not be read has none.
    fn turned_away(&self, header: &Header, record: &[u8]) -> ClientError {
        match Rejected::decode(record) {
            Some(Rejected { session, .. }) if session != self.id && session != SessionId::NONE => {
                ClientError::OtherSession { found: session }
            }
            Some(Rejected { error, .. }) => ClientError::TurnedAway { seq: header.seq, error },
            None => ClientError::Record(RecordError::Reserved),
        }
    }

    #[cfg(test)]
    pub(crate) fn set_next(&mut self, next: u64) {
        self.next = next;
    }
}

impl fmt::Debug for ClientSession {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "session {:?} with {} unanswered requests", self.id, self.unanswered.len())
    }
}

impl fmt::Debug for SealedRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sealed request {}", self.seq)
    }
}

/// A decrypted answer. Wiped when it is dropped.
pub struct Response {
    seq: u64,
    plaintext: Plaintext,
}

impl Response {
    /// The number of the request it answers.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// What it says. Padding and encoding are checked here.
    ///
    /// # Errors
    /// The CVM, though genuine, broke the protocol: it is of another release.
    pub fn reply(&self) -> Result<Reply<'_>, DecodeError> {
        Reply::decode(self.plaintext.content()?)
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "response {}", self.seq)
    }
}
