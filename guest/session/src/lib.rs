//! Sealed sessions between a client and a CVM: handshake, records, commands. Both ends, without a machine.
//!
//! The client is whoever verifies evidence: a caller of actions, the owner's deploy tool, a key broker. Everything passes
//! through the node, which is hostile: it may drop, repeat, reorder and change, and learns names of sessions, numbers,
//! lengths in buckets, and times. Evidence itself belongs to `attest`; here it is bytes, a public key and a hash.
//!
//! # Messages
//!
//! ```text
//! client                              node                                CVM
//!   | EvidenceRequest { nonce }         |                                   |  Draft: key pair, session id
//!   |---------------------------------->|---------------------------------->|  report over the claims
//!   |             Offer { session, evidence(public key, nonce, session) }   |  publish(Draft, hash of the claims)
//!   |<----------------------------------|<----------------------------------|
//!   | verifies the evidence             |                                   |
//!   | Open { session, 0, enc, command } |                                   |
//!   |---------------------------------->|---------------------------------->|  wipes the private key
//!   | Request { session, 1, command }   |                                   |
//!   |---------------------------------->|---------------------------------->|  any number in execution at once
//!   |                             Response { session, 1, reply }            |
//!   |<----------------------------------|<----------------------------------|  each number answered once,
//!   |                             Response { session, 0, reply }            |  in any order
//!   |<----------------------------------|<----------------------------------|
//! ```
//!
//! `Failure { session, seq, number, value }` stands in for a response when a message was turned away. It is in the clear
//! and proves nothing: a client may send again or open another session because of it, no more.
//!
//! # Bytes
//!
//! Little-endian. One header for all messages, readable alone; what it announces is checked against its kind at once:
//!
//! ```text
//!  0  version = 1    1  kind    2  zero u16    4  bytes of the body u32    8  session [16]    24  seq u64
//! 32  body:  EvidenceRequest  nonce [32]                          session and seq zero
//!            Offer            evidence, 64 KiB at most            seq zero
//!            Open             enc [32] | sealed                   seq zero
//!            Request          sealed
//!            Response         sealed
//!            Failure          number u32 | value u64
//! sealed     AES-256-GCM(key of this record, nonce = seq (big-endian, last 8 of 12 bytes),
//!                        aad = "nacre session 1 record" | header | enc (Open only), plaintext) | tag [16]
//! plaintext  bytes of the content u32 | content | zeros up to 256 B, 1, 4, 16, 64, 256 KiB, or a multiple of 1 MiB up to 64
//! ```
//!
//! Contents are in [`command`] and [`reply`].
//!
//! # Keys
//!
//! HPKE (RFC 9180) in mode base with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; `info` is "nacre session 1" and
//! the SHA-256 of the encoded claims ([`ClaimsHash`]), so that both ends mean the same evidence. Its context only exports
//! "nacre chain" (32 bytes), the secret of the first request. Each request has keys of its own:
//!
//! ```text
//! key of request n     HMAC-SHA256(secret n, "request")
//! key of its answer    HMAC-SHA256(secret n, "response")
//! secret n + 1         HMAC-SHA256(secret n, "next"), which overwrites secret n
//! ```
//! The client goes on when it has sealed a request, the CVM when it has accepted it. The CVM's key pair is of one session, wiped when that
//! opens or its offer is evicted, and a key goes with its record. So who gets hold of a CVM later reads no older session, and nothing of an
//! open one that was answered before.
//!
//! A number is used for one plaintext: the client never seals twice under one (it repeats bytes instead), and the CVM
//! answers by a [`Responder`] that is used up.
//!
//! Records go through `ring`, HPKE through `hpke` (RustCrypto). Measured on the development machine, one thread, key expansion
//! included: `ring` seals 1 KiB in 0.8 us and 1 MiB in 0.2 to 0.3 ms, `aes-gcm` 0.11 in 1.6 us and 0.7 to 0.8 ms, and vCPU 0
//! does nothing else meanwhile (`accept`: 1.2 us for 1 KiB of input, 0.13 ms for 1 MB, and 3 us for the keys of a request). `ring`'s AEAD makes no system call and
//! takes no lock.
//!
//! # States
//!
//! ```text
//! CVM      Draft --publish--> offer --Open, authentic--> session --close, evicted--> gone
//!            |                  |  forged Open: stays      |  accept(seq = next, authentic): next += 1
//!          dropped           evicted (256)                 |  anything else: an error, nothing changes
//!                                                       4096, the one used longest ago goes first
//! client   ClientHandshake --accept--> ClientSession --seal_request: Open, then Request; open_response--> dropped
//! request  Request = RequestBody (command, authority) + Responder --seal--> bytes
//! ```
//!
//! What a CVM does with the number of a request: smaller than the next, [`RecordError::Replayed`]; larger,
//! [`RecordError::OutOfOrder`]; equal but not authentic, [`RecordError::Forged`]; an unknown session,
//! [`RecordError::UnknownSession`] (the node swapped CVMs, it was restarted, or the session was evicted). Whoever reaches the
//! CVM can open sessions, the node too: what needs more than that carries an [authority](RequestBody::authority).
//!
//! # Version rule
//!
//! The first byte is the version, and the labels of HPKE, records and signatures end in it: no record means anything in
//! another version, so nobody can be talked into an older one. Any change of bytes, buckets, labels or the meaning of a number is a new
//! version, and `tests/vectors.rs` fails on it. New reasons and kinds may be added within a version only if the other end is
//! never sent one that it does not know; a decoder refuses what it does not know.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod authority;
mod client;
mod codec;
pub mod command;
mod cvm;
mod keys;
pub mod reply;
mod sealed;
mod versions;
pub mod wire;

pub use client::{ClientError, ClientHandshake, ClientSession, Response, SealedRequest};
pub use codec::{DecodeError, EncodeError, MAX_LIST, MAX_NAME_BYTES};
pub use command::Command;
pub use cvm::{CvmSessions, Draft, Request, RequestBody, Responder};
pub use ed25519_dalek::SigningKey;
pub use keys::LABEL;
pub use rand_core::CryptoRng;
pub use reply::{Refusal, Reply};
pub use versions::Versions;
pub use wire::{RecordError, Rejected, SessionId};

/// SHA-256 of the encoded claims of the evidence that a session was opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimsHash(pub [u8; 32]);

#[cfg(test)]
mod tests;
