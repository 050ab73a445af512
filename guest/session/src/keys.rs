//! Key agreement (HPKE), the keys of records, and memory that is wiped when it is dropped.
//!
//! `ring` expands a key into a structure that it does not wipe, so a key is kept as its 32 bytes and expanded for one
//! record at a time (0.3 us); the expanded one is overwritten in place afterwards.

use crate::ClaimsHash;
use crate::wire::{ENC_BYTES, RecordError, TAG_BYTES};
use alloc::vec::Vec;
use core::hint::black_box;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand_core::CryptoRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
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

/// The key of one direction of a session.
#[derive(Clone)]
pub(crate) struct RecordKey {
    key: Zeroizing<[u8; 32]>,
    base_nonce: Zeroizing<[u8; NONCE_LEN]>,
}

impl RecordKey {
    fn export(label: [&[u8]; 2], export: impl Fn(&[u8], &mut [u8])) -> RecordKey {
        let mut key = RecordKey { key: Zeroizing::default(), base_nonce: Zeroizing::default() };
        export(label[0], &mut key.key[..]);
        export(label[1], &mut key.base_nonce[..]);
        key
    }

    /// Encrypts `plaintext` in place and returns the tag. A number may be used once.
    pub(crate) fn seal(&self, seq: u64, header: &[u8], plaintext: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self.expanded(|key| {
            key.seal_in_place_separate_tag(self.nonce(seq), aad(header).as_ref(), plaintext)
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
            let opened = key.open_in_place(self.nonce(seq), aad(header).as_ref(), sealed);
            opened.map(|_| ()).map_err(|_| RecordError::Forged)
        })
    }

    fn nonce(&self, seq: u64) -> Nonce {
        let mut nonce = *self.base_nonce;
        for (byte, bits) in nonce[NONCE_LEN - 8..].iter_mut().zip(seq.to_be_bytes()) {
            *byte ^= bits;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn expanded<R>(&self, run: impl FnOnce(&LessSafeKey) -> R) -> R {
        let mut key = expand(&self.key);
        let result = run(&key);
        key = expand(&[0; 32]);
        black_box(&mut key);
        result
    }
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

/// The keys of both directions.
pub(crate) struct SessionKeys {
    pub client_to_cvm: RecordKey,
    pub cvm_to_client: RecordKey,
}

impl SessionKeys {
    fn export(export: impl Fn(&[u8], &mut [u8])) -> SessionKeys {
        SessionKeys {
            client_to_cvm: RecordKey::export([b"nacre c2s key", b"nacre c2s nonce"], &export),
            cvm_to_client: RecordKey::export([b"nacre s2c key", b"nacre s2c nonce"], &export),
        }
    }

    /// The client's side: RFC 9180 `SetupBaseS`, then exports. Also returns `enc`. `None` if the public key is of low order.
    pub(crate) fn send(
        public_key: &[u8; 32],
        claims: &ClaimsHash,
        rng: &mut impl CryptoRng,
    ) -> Option<(SessionKeys, [u8; ENC_BYTES])> {
        let public = Deserializable::from_bytes(public_key).ok()?;
        let mode = OpModeS::Base;
        let (enc, context) = hpke::setup_sender_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &mode,
            &public,
            &info(claims),
            rng,
        )
        .ok()?;
        let keys = SessionKeys::export(|label, out| context.export(label, out).expect("32 bytes at most"));
        Some((keys, enc.to_bytes().into()))
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
    pub(crate) fn receive(&self, enc: &[u8; ENC_BYTES], claims: &ClaimsHash) -> Option<SessionKeys> {
        let enc = Deserializable::from_bytes(enc).ok()?;
        let context = hpke::setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &enc,
            &info(claims),
        )
        .ok()?;
        Some(SessionKeys::export(|label, out| context.export(label, out).expect("32 bytes at most")))
    }
}
