//! Key agreement (HPKE), the chain of keys of a session, and memory that is wiped when it is dropped.
//!
//! Each request has keys of its own, one for it and one for its answer. They come from a chain that only goes forward, the symmetric
//! ratchet of "The Double Ratchet Algorithm" (Perrin, Marlinspike, 2016), section 2.2 and 5.2: HMAC-SHA256 of constants
//! under the chain's secret, which the next secret then overwrites. Who gets hold of an end later reads nothing that was
//! answered before.
//!
//! `ring` expands a key into a structure that it does not wipe, so a key is kept as its 32 bytes and expanded for one
//! record at a time (0.3 us); the expanded one is overwritten in place afterwards.

use crate::ClaimsHash;
use crate::wire::{ENC_BYTES, RecordError, TAG_BYTES};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hint::black_box;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand_core::CryptoRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use zeroize::Zeroizing;

/// What HPKE and records are labelled with. Evidence for sessions carries the same label (`attest::claims`).
pub const LABEL: &[u8] = b"nacre session 1";
const RECORD_LABEL: &[u8] = b"nacre session 1 record";

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;

/// Overwrites memory in a way that is not optimised out.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(bytes);
}

/// Bytes that are wiped when they are dropped. Never reallocated: what grows leaves copies behind.
pub(crate) struct SecretBytes(pub Vec<u8>);

impl Drop for SecretBytes {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// The key of one record.
pub(crate) struct RecordKey {
    key: Zeroizing<[u8; 32]>,
}

impl RecordKey {
    /// Encrypts `plaintext` in place and returns the tag. Each key seals one record.
    pub(crate) fn seal(&self, seq: u64, header: &[u8], plaintext: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self.expanded(|key| {
            key.seal_in_place_separate_tag(nonce(seq), aad(header).as_ref(), plaintext)
                .expect("a plaintext is shorter than AES-GCM's limit")
        });
        *tag.as_ref().first_chunk().expect("a tag of AES-GCM has 16 bytes")
    }

    /// Decrypts `sealed` (ciphertext and tag) in place; the plaintext is at its start.
    ///
    /// # Errors
    /// `Forged`; then what `sealed` holds is undefined.
    pub(crate) fn open(&self, seq: u64, header: &[u8], sealed: &mut [u8]) -> Result<(), RecordError> {
        self.expanded(|key| {
            let opened = key.open_in_place(nonce(seq), aad(header).as_ref(), sealed);
            opened.map(|_| ()).map_err(|_| RecordError::Forged)
        })
    }

    fn expanded<R>(&self, run: impl FnOnce(&LessSafeKey) -> R) -> R {
        let mut key = expand(&self.key);
        let result = run(&key);
        key = expand(&[0; 32]);
        black_box(&mut key);
        result
    }
}

/// The number of the record. The key is no other record's, so that nothing depends on it.
fn nonce(seq: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&seq.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn expand(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes"))
}

/// The label and the header (with `enc` behind it in an Open) as one piece.
struct AadBytes {
    bytes: [u8; RECORD_LABEL.len() + 64],
    used: usize,
}

impl AadBytes {
    fn as_ref(&self) -> Aad<&[u8]> {
        Aad::from(&self.bytes[..self.used])
    }
}

fn aad(header: &[u8]) -> AadBytes {
    let mut bytes = [0; RECORD_LABEL.len() + 64];
    let used = RECORD_LABEL.len() + header.len();
    bytes[..RECORD_LABEL.len()].copy_from_slice(RECORD_LABEL);
    bytes[RECORD_LABEL.len()..used].copy_from_slice(header);
    AadBytes { bytes, used }
}

/// What the keys of a session's records come from: the secret of the next one.
pub(crate) struct Chain {
    secret: Zeroizing<[u8; 32]>,
}

/// The keys of one request, and how the chain goes on.
pub(crate) struct Step {
    pub request: Box<RecordKey>,
    pub response: Box<RecordKey>,
    next: Box<Chain>,
}

impl Chain {
    fn export(export: impl Fn(&[u8], &mut [u8])) -> Box<Chain> {
        let mut chain = Box::new(Chain { secret: Zeroizing::default() });
        export(b"nacre chain", &mut chain.secret[..]);
        chain
    }

    /// The keys of the next request. The chain stays where it is.
    pub(crate) fn step(&self) -> Step {
        let mut step = Step {
            request: Box::new(RecordKey { key: Zeroizing::default() }),
            response: Box::new(RecordKey { key: Zeroizing::default() }),
            next: Box::new(Chain { secret: Zeroizing::default() }),
        };
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret[..]);
        let outputs = [&mut step.request.key, &mut step.response.key, &mut step.next.secret];
        for (label, output) in [&b"request"[..], b"response", b"next"].into_iter().zip(outputs) {
            let mut tag = hmac::sign(&key, label);
            output.copy_from_slice(tag.as_ref());
            tag = hmac::sign(&key, b"");
            black_box(&mut tag);
        }
        key = hmac::Key::new(hmac::HMAC_SHA256, &[0; 32]);
        black_box(&mut key);
        step
    }

    #[cfg(test)]
    pub(crate) fn copy(&self) -> Box<Chain> {
        Box::new(Chain { secret: self.secret.clone() })
    }

    /// Goes on behind that step: what came before can't be had from here.
    pub(crate) fn advance(&mut self, step: &Step) {
        self.secret.copy_from_slice(&step.next.secret[..]);
    }

    /// The client's side: RFC 9180 `SetupBaseS`, then exports. Also returns `enc`. `None` if the public key is of low order.
    pub(crate) fn send(
        public_key: &[u8; 32],
        claims: &ClaimsHash,
        rng: &mut impl CryptoRng,
    ) -> Option<(Box<Chain>, [u8; ENC_BYTES])> {
        let public = Deserializable::from_bytes(public_key).ok()?;
        let mode = OpModeS::Base;
        let (enc, context) = hpke::setup_sender_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &mode,
            &public,
            &info(claims),
            rng,
        )
        .ok()?;
        let chain = Chain::export(|label, out| context.export(label, out).expect("32 bytes at most"));
        Some((chain, enc.to_bytes().into()))
    }
}

fn info(claims: &ClaimsHash) -> [u8; LABEL.len() + 32] {
    let mut info = [0; LABEL.len() + 32];
    info[..LABEL.len()].copy_from_slice(LABEL);
    info[LABEL.len()..].copy_from_slice(&claims.0);
    info
}

/// A CVM's key pair for one session. The private key is wiped when it is dropped.
pub(crate) struct KeyPair {
    private: PrivateKey,
    pub public: [u8; 32],
}

impl KeyPair {
    pub(crate) fn new(rng: &mut impl CryptoRng) -> KeyPair {
        let (private, public) = X25519HkdfSha256::gen_keypair_with_rng(rng);
        KeyPair { private, public: public.to_bytes().into() }
    }

    /// The CVM's side: RFC 9180 `SetupBaseR`, then exports. `None` if `enc` is of low order.
    pub(crate) fn receive(&self, enc: &[u8; ENC_BYTES], claims: &ClaimsHash) -> Option<Box<Chain>> {
        let enc = Deserializable::from_bytes(enc).ok()?;
        let context = hpke::setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &enc,
            &info(claims),
        )
        .ok()?;
        Some(Chain::export(|label, out| context.export(label, out).expect("32 bytes at most")))
    }
}
