//! The fixed header of a message, the kinds of messages, and why one is turned away. See the crate's documentation for the
//! layout. Nothing secret is here: all of this is what the host sees.

use alloc::vec::Vec;
use core::fmt;
use rand_core::CryptoRng;

/// The version of the protocol that this crate speaks; the only one.
pub const VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a verifier's nonce.
pub const NONCE_BYTES: usize = 32;
/// Bytes of an encapsulated X25519 key, which is a public key.
pub const ENC_BYTES: usize = 32;
/// Bytes of an AES-GCM tag.
pub const TAG_BYTES: usize = 16;
/// Longest plaintext, padding included, in bytes: as much as a call can have as input.
pub const MAX_PLAINTEXT_BYTES: usize = 64 << 20;
/// Longest evidence in an offer, in bytes.
pub const MAX_EVIDENCE_BYTES: usize = 64 << 10;
/// Longest message of any kind, in bytes. A transport needs to accept no more.
pub const MAX_RECORD_BYTES: usize = HEADER_BYTES + ENC_BYTES + MAX_PLAINTEXT_BYTES + TAG_BYTES;
/// Bytes of a [`Kind::Failure`].
pub const FAILURE_BYTES: usize = HEADER_BYTES + FAILURE_BODY_BYTES;
/// How many records a session can carry in each direction; their numbers are below this.
pub const MAX_RECORDS: u64 = 1 << 32;

const FAILURE_BODY_BYTES: usize = 12;

const _: () = assert!(
    HEADER_BYTES == 32 && NONCE_BYTES == 32 && ENC_BYTES == 32 && TAG_BYTES == 16 && FAILURE_BYTES == 44,
    "these are on the wire: read the version rule in lib.rs before changing them"
);

/// The name of a session: random, chosen by the CVM, bound by its evidence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// What a message has that belongs to no session.
    pub const NONE: SessionId = SessionId([0; 16]);

    pub(crate) fn random(rng: &mut impl CryptoRng) -> SessionId {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        SessionId(bytes)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Client to CVM: asks for evidence. The body is a nonce.
    EvidenceRequest = 1,
    /// CVM to client: evidence with the public key of a new session. The body is `attest`'s evidence.
    Offer = 2,
    /// Client to CVM: opens the session and carries its first request. The body is `enc` and a sealed command.
    Open = 3,
    /// Client to CVM: a further request. The body is a sealed command.
    Request = 4,
    /// CVM to client: the answer to the request with the same number. The body is a sealed reply.
    Response = 5,
    /// To the client, in the clear and from whoever: a request was turned away. A hint, because anybody can write one.
    Failure = 6,
}

impl Kind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::EvidenceRequest,
            2 => Kind::Offer,
            3 => Kind::Open,
            4 => Kind::Request,
            5 => Kind::Response,
            6 => Kind::Failure,
            _ => return None,
        })
    }

    /// Whether a body of this kind can be so long.
    fn body_fits(self, bytes: usize) -> bool {
        match self {
            Kind::EvidenceRequest => bytes == NONCE_BYTES,
            Kind::Offer => bytes <= MAX_EVIDENCE_BYTES,
            Kind::Open => bytes > ENC_BYTES && sealed_fits(bytes - ENC_BYTES),
            Kind::Request | Kind::Response => sealed_fits(bytes),
            Kind::Failure => bytes == FAILURE_BODY_BYTES,
        }
    }
}

fn sealed_fits(bytes: usize) -> bool {
    bytes > TAG_BYTES && bucket(bytes - TAG_BYTES) == Some(bytes - TAG_BYTES)
}

/// To how many bytes a plaintext of so many is padded; `None` if it is too long.
pub const fn bucket(bytes: usize) -> Option<usize> {
    const MIB: usize = 1 << 20;
    if bytes > MAX_PLAINTEXT_BYTES {
        return None;
    }
    let mut size = 256;
    while size < MIB {
        if bytes <= size {
            return Some(size);
        }
        size *= 4;
    }
    Some(if bytes <= MIB { MIB } else { bytes.next_multiple_of(MIB) })
}

/// Why a message was turned away. All but [`Exhausted`](RecordError::Exhausted) leave the session as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It ends before its header or its announced body does, or goes on after it.
    #[error("the message is {bytes} bytes long, which is not what its header says; it was cut on its way")]
    Truncated {
        /// How long it is.
        bytes: u64,
    },
    /// It is of another version.
    #[error("the message is of protocol version {found}, not {VERSION}; use a client of the node's release")]
    Version {
        /// The version it claims.
        found: u8,
    },
    /// There is no such kind of message.
    #[error("there is no message of kind {found}")]
    UnknownKind {
        /// The number it has.
        found: u8,
    },
    /// It is of a kind that is not for this end.
    #[error("a message of kind {found} is not for this end")]
    WrongEnd {
        /// The number of its kind.
        found: u8,
    },
    /// A field that must be zero is not.
    #[error("a reserved field of the header is not zero")]
    Reserved,
    /// Its body is as long as no message of its kind can be.
    #[error("no message of its kind has a body of {bytes} bytes")]
    Length {
        /// The announced length.
        bytes: u64,
    },
    /// No session has this name.
    #[error("the CVM knows no such session; fetch new evidence and open another")]
    UnknownSession,
    /// A request with this number was accepted before.
    #[error("the request was accepted before; the next one is number {next}")]
    Replayed {
        /// The number of the next one.
        next: u64,
    },
    /// An earlier request is missing.
    #[error("request {expected} has not arrived; send it again, then this one")]
    OutOfOrder {
        /// The number of the missing one.
        expected: u64,
    },
    /// Its tag is wrong: it was changed, or was not made for this session and place.
    #[error("the record was not sealed by the other end of this session for this place, or it was changed")]
    Forged,
    /// The session has carried all the records it can.
    #[error("the session has carried {MAX_RECORDS} requests; open another")]
    Exhausted,
}

impl RecordError {
    /// Its number on the wire and its one parameter. Numbers are never used again for something else.
    const fn parts(self) -> (u32, u64) {
        match self {
            RecordError::Truncated { bytes } => (1, bytes),
            RecordError::Version { found } => (2, found as u64),
            RecordError::UnknownKind { found } => (3, found as u64),
            RecordError::WrongEnd { found } => (4, found as u64),
            RecordError::Reserved => (5, 0),
            RecordError::Length { bytes } => (6, bytes),
            RecordError::UnknownSession => (7, 0),
            RecordError::Replayed { next } => (8, next),
            RecordError::OutOfOrder { expected } => (9, expected),
            RecordError::Forged => (10, 0),
            RecordError::Exhausted => (11, 0),
        }
    }

    fn from_parts(number: u32, value: u64) -> Option<RecordError> {
        let found = || u8::try_from(value).ok();
        let error = match number {
            1 => RecordError::Truncated { bytes: value },
            2 => RecordError::Version { found: found()? },
            3 => RecordError::UnknownKind { found: found()? },
            4 => RecordError::WrongEnd { found: found()? },
            5 => RecordError::Reserved,
            6 => RecordError::Length { bytes: value },
            7 => RecordError::UnknownSession,
            8 => RecordError::Replayed { next: value },
            9 => RecordError::OutOfOrder { expected: value },
            10 => RecordError::Forged,
            11 => RecordError::Exhausted,
            _ => return None,
        };
        (error.parts() == (number, value)).then_some(error)
    }
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Bytes after the header.
    pub body_bytes: usize,
    /// The session it belongs to, or [`SessionId::NONE`].
    pub session: SessionId,
    /// The number of the request.
    pub seq: u64,
}

impl Header {
    /// As bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = VERSION;
        bytes[1] = self.kind as u8;
        bytes[4..8].copy_from_slice(&(self.body_bytes as u32).to_le_bytes());
        bytes[8..24].copy_from_slice(&self.session.0);
        bytes[24..].copy_from_slice(&self.seq.to_le_bytes());
        bytes
    }

    /// Reads a header alone, as a transport does that wants to know how much follows.
    ///
    /// # Errors
    /// `Truncated`, `Version`, `UnknownKind`, `Reserved`, `Length`: a body that its kind can't have is refused here.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, RecordError> {
        let [version, number, reserved @ .., _, _, _, _] = *bytes.first_chunk::<8>().expect("32 bytes");
        if version != VERSION {
            return Err(RecordError::Version { found: version });
        }
        let kind = Kind::from_number(number).ok_or(RecordError::UnknownKind { found: number })?;
        let word = |from: usize| u32::from_le_bytes(*bytes[from..].first_chunk().expect("inside the header"));
        let mut session = SessionId::NONE;
        session.0.copy_from_slice(&bytes[8..24]);
        let seq = u64::from(word(24)) | u64::from(word(28)) << 32;
        let plain = matches!(kind, Kind::EvidenceRequest | Kind::Offer);
        if reserved != [0; 2]
            || (plain && seq != 0)
            || (kind == Kind::EvidenceRequest && session != SessionId::NONE)
            || (kind == Kind::Open && seq != 0)
        {
            return Err(RecordError::Reserved);
        }
        let body_bytes = word(4) as usize;
        if !kind.body_fits(body_bytes) {
            return Err(RecordError::Length { bytes: body_bytes as u64 });
        }
        Ok(Header { kind, body_bytes, session, seq })
    }

    /// Splits a whole message.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode), and `Truncated` if the body is not as long as the header says.
    pub fn split(message: &[u8]) -> Result<(Header, &[u8]), RecordError> {
        let truncated = RecordError::Truncated { bytes: message.len() as u64 };
        let (header, body) = message.split_first_chunk().ok_or(truncated)?;
        let header = Header::decode(header)?;
        if body.len() != header.body_bytes { Err(truncated) } else { Ok((header, body)) }
    }

    pub(crate) fn with_body(&self, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        message.extend_from_slice(&self.encode());
        message.extend_from_slice(body);
        message
    }
}

/// A request for evidence with this nonce.
pub fn evidence_request(nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    let kind = Kind::EvidenceRequest;
    Header { kind, body_bytes: NONCE_BYTES, session: SessionId::NONE, seq: 0 }.with_body(nonce)
}

/// The nonce of a request for evidence.
///
/// # Errors
/// Those of [`Header::split`], and `WrongEnd` if it is another message.
pub fn decode_evidence_request(message: &[u8]) -> Result<[u8; NONCE_BYTES], RecordError> {
    let body = body_of(Kind::EvidenceRequest, message)?.1;
    Ok(*body.first_chunk().expect("the header checked the length"))
}

/// An offer: the evidence of a new session. `None` if the evidence is too long.
pub fn offer(session: SessionId, evidence: &[u8]) -> Option<Vec<u8>> {
    let header = Header { kind: Kind::Offer, body_bytes: evidence.len(), session, seq: 0 };
    (evidence.len() <= MAX_EVIDENCE_BYTES).then(|| header.with_body(evidence))
}

/// The session and the evidence of an offer. Nothing about either is verified here.
///
/// # Errors
/// Those of [`Header::split`], and `WrongEnd` if it is another message.
pub fn decode_offer(message: &[u8]) -> Result<(SessionId, &[u8]), RecordError> {
    body_of(Kind::Offer, message).map(|(header, body)| (header.session, body))
}

fn body_of(kind: Kind, message: &[u8]) -> Result<(Header, &[u8]), RecordError> {
    let (header, body) = Header::split(message)?;
    if header.kind != kind {
        return Err(RecordError::WrongEnd { found: header.kind as u8 });
    }
    Ok((header, body))
}

/// A request that was turned away, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {seq} of session {session:?}: {error}")]
pub struct Rejected {
    /// The session it named, or [`SessionId::NONE`] if it could not be read.
    pub session: SessionId,
    /// The number it had, or 0.
    pub seq: u64,
    /// Why.
    pub error: RecordError,
}

impl Rejected {
    /// As a [`Kind::Failure`] message for the client.
    pub fn encode(&self) -> Vec<u8> {
        let (number, value) = self.error.parts();
        let mut body = [0; FAILURE_BODY_BYTES];
        body[..4].copy_from_slice(&number.to_le_bytes());
        body[4..].copy_from_slice(&value.to_le_bytes());
        let Rejected { session, seq, .. } = *self;
        Header { kind: Kind::Failure, body_bytes: body.len(), session, seq }.with_body(&body)
    }

    /// Reads what [`encode`](Self::encode) wrote. `None` if that is not what it is.
    pub fn decode(message: &[u8]) -> Option<Rejected> {
        let (header, body) = body_of(Kind::Failure, message).ok()?;
        let number = u32::from_le_bytes(*body.first_chunk()?);
        let value = u64::from_le_bytes(*body.last_chunk()?);
        let error = RecordError::from_parts(number, value)?;
        Some(Rejected { session: header.session, seq: header.seq, error })
    }
}
