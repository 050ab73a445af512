//! The CVM's end: offers, sessions, and the tokens of one request.
//!
//! Records are authenticated on vCPU 0, in order of arrival, before the session's number moves. Decrypting on a worker
//! would need a session state in between, in which a forged record of 64 MiB holds up the genuine one, or a number that
//! moves for a forgery; 1 MiB takes 0.2 ms here, which is not worth either. Everything after that (checking the padding,
//! decoding, the signature, sealing the answer) is in tokens that share nothing and go to a worker.

use crate::ClaimsHash;
use crate::authority::{self, Place};
use crate::codec::{DecodeError, Reader};
use crate::command::Command;
use crate::keys::{Chain, KeyPair, RecordKey, Step};
use crate::reply::{Refusal, Reply};
use crate::sealed::{self, Plaintext};
use crate::wire::{HEADER_BYTES, Header, Kind, MAX_RECORDS, RecordError, Rejected, SessionId};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::fmt;
use rand_core::CryptoRng;

/// A key pair and a name for a session that nobody knows of yet: the caller makes evidence of them.
pub struct Draft {
    id: SessionId,
    pair: Box<KeyPair>,
}

impl Draft {
    /// A fresh pair and name.
    pub fn new(rng: &mut impl CryptoRng) -> Draft {
        Draft { id: SessionId::random(rng), pair: Box::new(KeyPair::new(rng)) }
    }

    /// The session's name, for the claims.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The public key, for the claims.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.pair.public
    }
}

struct Offer {
    draft: Draft,
    claims: ClaimsHash,
    code: u64,
}

// Keys are boxed wherever a collection or a queue moves what holds them: a move leaves the old bytes where they were.
struct Live {
    chain: Box<Chain>,
    claims: ClaimsHash,
    code: u64,
    next: u64,
    last_used: u64,
}

/// All sessions of one CVM. Belongs to one vCPU; nothing in it is shared.
pub struct CvmSessions {
    offers: VecDeque<Offer>,
    live: BTreeMap<SessionId, Live>,
    max_offers: usize,
    max_sessions: usize,
    uses: u64,
}

impl Default for CvmSessions {
    fn default() -> CvmSessions {
        CvmSessions::new()
    }
}

impl CvmSessions {
    /// Offers that can be pending.
    pub const MAX_OFFERS: usize = 256;
    /// Sessions that can be open.
    pub const MAX_SESSIONS: usize = 4096;

    /// None yet.
    pub const fn new() -> CvmSessions {
        CvmSessions::with_limits(Self::MAX_OFFERS, Self::MAX_SESSIONS)
    }

    /// None yet, and room for so many offers and sessions (at least one of each).
    pub const fn with_limits(max_offers: usize, max_sessions: usize) -> CvmSessions {
        CvmSessions { offers: VecDeque::new(), live: BTreeMap::new(), max_offers, max_sessions, uses: 0 }
    }

    /// Takes a draft whose claims are known as a pending offer; the oldest one goes if there are too many. `code` is the caller's number for
    /// the set of code that the evidence lists; requests of the session bear it.
    pub fn publish(&mut self, draft: Draft, claims: ClaimsHash, code: u64) {
        while self.offers.len() >= self.max_offers.max(1) {
            self.offers.pop_front();
        }
        self.offers.push_back(Offer { draft, claims, code });
    }

    /// Takes a message of a client, an [`Kind::Open`] or [`Kind::Request`], which is decrypted in place.
    ///
    /// # Errors
    /// Every [`RecordError`]. The session is as it was before, and no forgery can end it; [`Rejected::encode`] is for the
    /// client.
    pub fn accept(&mut self, record: Vec<u8>) -> Result<Request, Rejected> {
        let header = match Header::split(&record) {
            Ok((header, _)) => header,
            Err(error) => return Err(Rejected { session: SessionId::NONE, seq: 0, error }),
        };
        let accepted = match header.kind {
            Kind::Open => self.open(header, record),
            Kind::Request => self.request(header, record),
            kind => Err(RecordError::WrongEnd { found: kind as u8 }),
        };
        accepted.map_err(|error| Rejected { session: header.session, seq: header.seq, error })
    }

    fn open(&mut self, header: Header, record: Vec<u8>) -> Result<Request, RecordError> {
        let id = header.session;
        if let Some(live) = self.live.get(&id) {
            return Err(RecordError::Replayed { next: live.next });
        }
        let found = self.offers.iter().position(|offer| offer.draft.id == id);
        let index = found.ok_or(RecordError::UnknownSession)?;
        let Offer { draft, claims, code } = &self.offers[index];
        let enc = record[HEADER_BYTES..].first_chunk().expect("the header checked the length");
        let mut chain = draft.pair.receive(enc, claims).ok_or(RecordError::Forged)?;
        let step = chain.step();
        let plaintext = Plaintext::open(record, &header, &step.request)?;
        chain.advance(&step);
        // Only now: a forged Open must not use up an offer. The private key is wiped here.
        let (claims, code) = (*claims, *code);
        self.offers.remove(index);
        self.make_room();
        self.uses += 1;
        let live = Live { chain, claims, code, next: 1, last_used: self.uses };
        let request = Request::new(&header, &live, plaintext, step);
        self.live.insert(id, live);
        Ok(request)
    }

    fn request(&mut self, header: Header, record: Vec<u8>) -> Result<Request, RecordError> {
        let Some(live) = self.live.get_mut(&header.session) else {
            let pending = self.offers.iter().any(|offer| offer.draft.id == header.session);
            return Err(match pending {
                true => RecordError::OutOfOrder { expected: 0 },
                false => RecordError::UnknownSession,
            });
        };
        let next = live.next;
        if header.seq < next {
            return Err(RecordError::Replayed { next });
        }
        if header.seq >= MAX_RECORDS {
            return Err(RecordError::Exhausted);
        }
        if header.seq > next {
            return Err(RecordError::OutOfOrder { expected: next });
        }
        let step = live.chain.step();
        let plaintext = Plaintext::open(record, &header, &step.request)?;
        self.uses += 1;
        live.chain.advance(&step);
        live.next += 1;
        live.last_used = self.uses;
        Ok(Request::new(&header, live, plaintext, step))
    }

    /// Ends the session that was used longest ago if there is no room. Rare, so nothing is kept in order for it.
    fn make_room(&mut self) {
        while self.live.len() >= self.max_sessions.max(1) {
            let oldest = self.live.iter().min_by_key(|(_, live)| live.last_used).map(|(id, _)| *id);
            self.live.remove(&oldest.expect("there is one"));
        }
    }

    /// A request of this session has changed the set of code: if it knew the one before, it knows the new one.
    pub fn code_changed(&mut self, id: SessionId, before: u64, now: u64) {
        if let Some(live) = self.live.get_mut(&id).filter(|live| live.code == before) {
            live.code = now;
        }
    }

    /// Ends a session or takes back an offer. What is being answered still can be.
    pub fn close(&mut self, id: SessionId) {
        self.live.remove(&id);
        self.offers.retain(|offer| offer.draft.id != id);
    }

    /// Ends everything: all keys are wiped.
    pub fn close_all(&mut self) {
        self.offers.clear();
        self.live.clear();
    }

    /// Pending offers and open sessions.
    pub fn counts(&self) -> (usize, usize) {
        (self.offers.len(), self.live.len())
    }

    /// A copy of a session's chain, as whoever takes the CVM has it.
    #[cfg(test)]
    pub(crate) fn chain_of(&self, id: SessionId) -> Box<Chain> {
        self.live[&id].chain.copy()
    }

    #[cfg(test)]
    pub(crate) fn set_next(&mut self, id: SessionId, next: u64) {
        self.live.get_mut(&id).expect("it is open").next = next;
    }
}

/// A request that was accepted: it is the client's, new, and in order.
pub struct Request {
    /// What was asked.
    pub body: RequestBody,
    /// With which to answer it, once.
    pub responder: Responder,
    /// The set of code that its sender knows of: the number given to [`CvmSessions::publish`].
    pub code: u64,
}

impl Request {
    fn new(header: &Header, live: &Live, plaintext: Plaintext, step: Step) -> Request {
        let (session, seq) = (header.session, header.seq);
        Request {
            body: RequestBody { plaintext, place: Place { session, claims: live.claims, seq } },
            responder: Responder { session, seq, key: step.response },
            code: live.code,
        }
    }
}

/// The decrypted request. Wiped when it is dropped.
pub struct RequestBody {
    plaintext: Plaintext,
    place: Place,
}

impl RequestBody {
    /// The session it belongs to.
    pub fn session(&self) -> SessionId {
        self.place.session
    }

    /// Its number.
    pub fn seq(&self) -> u64 {
        self.place.seq
    }

    /// What it asks for. Padding and encoding are checked here.
    ///
    /// # Errors
    /// The client, though genuine, broke the protocol: answer [`Refusal::Malformed`].
    pub fn command(&self) -> Result<Command<'_>, DecodeError> {
        let (tag, _, body) = self.parts()?;
        Command::decode(tag, body)
    }

    /// Whose signature the command carries, out of the keys that are allowed: the manifest's owner and brokers.
    ///
    /// # Errors
    /// `Malformed`, `Unsigned`, `UnknownSigner`, `BadSignature`.
    pub fn authority(&self, allowed: &[[u8; 32]]) -> Result<[u8; 32], Refusal> {
        let (tag, signed, body) = self.parts().map_err(|_| Refusal::Malformed)?;
        self.place.verify(tag, body, signed.ok_or(Refusal::Unsigned)?, allowed)
    }

    #[expect(clippy::type_complexity, reason = "the three parts of a content")]
    fn parts(&self) -> Result<(u8, Option<&[u8; authority::BYTES]>, &[u8]), DecodeError> {
        let mut reader = Reader(self.plaintext.content()?);
        let tag = reader.u8()?;
        let signed = if reader.flag("whether a command is signed")? { Some(reader.array()?) } else { None };
        Ok((tag, signed, reader.0))
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "request {} of session {:?}", self.place.seq, self.place.session)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.body.fmt(formatter)
    }
}

/// The right to answer one request, once, from wherever. Holds the key of that answer, wiped when it is dropped.
pub struct Responder {
    session: SessionId,
    seq: u64,
    key: Box<RecordKey>,
}

impl Responder {
    /// The session it belongs to.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The request's number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The sealed answer, a [`Kind::Response`]. One that can't be sealed becomes [`Refusal::AnswerTooLong`].
    pub fn seal(self, reply: &Reply) -> Vec<u8> {
        let refused = Reply::refused(Refusal::AnswerTooLong);
        let fitting = reply.content_bytes().and_then(sealed::plaintext_bytes);
        let reply = if fitting.is_ok() { reply } else { &refused };
        let content = reply.content_bytes().expect("it was counted before");
        let Responder { session, seq, key } = &self;
        let place = sealed::Place { kind: Kind::Response, session: *session, seq: *seq, enc: None, key };
        let write = |record: &mut Vec<u8>| reply.put(record).expect("it was counted before");
        sealed::seal(place, content, write).expect("it fits")
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "responder {} of session {:?}", self.seq, self.session)
    }
}
