//! What the protocol needs of cryptography, as traits, and the real thing. The model (`tests/model`) puts symbols in its place, so
//! that it explores this crate's own transitions.
//!
//! Secrets are wiped when they are dropped. A secret that is *moved* (`Option::take` moves) leaves its bytes where it was, so all long-lived ones stay inside a
//! [`Vault`](crate::vault::Vault) that its owner puts in one place, and are dropped there; what passes over a stack on the way is best effort.

use crate::wire::{TAG_BYTES, WORD_BYTES};
use core::fmt;
use core::hint::black_box;
use hkdf::Hkdf;
use rand_core::CryptoRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Sha256;
use x25519_dalek::{PublicKey, ReusableSecret};
use zeroize::{Zeroize, Zeroizing};

/// An ephemeral key pair, for one migration.
pub trait Pair: Sized {
    /// What both ends agree on.
    type Root: Root;

    /// A fresh pair.
    fn generate(random: &mut impl CryptoRng) -> Self;

    /// Its public half.
    fn public(&self) -> [u8; WORD_BYTES];

    /// The secret shared with whoever has the other private half, bound to `transcript`. `None` if `peer` is a public key with
    /// which no secret can be agreed (of low order).
    fn agree(&self, peer: &[u8; WORD_BYTES], transcript: &[u8; WORD_BYTES]) -> Option<Self::Root>;
}

/// A secret of 32 bytes from which others are derived.
pub trait Root: Sized {
    /// Keys of records.
    type Key: Key;

    /// A fresh secret.
    fn generate(random: &mut impl CryptoRng) -> Self;

    /// The secret with these bytes.
    fn from_bytes(bytes: &[u8; WORD_BYTES]) -> Self;

    /// Its bytes.
    fn expose(&self) -> &[u8; WORD_BYTES];

    /// Another secret; one for each `info`.
    fn derive(&self, info: &[&[u8]]) -> Self;

    /// A key for records; one for each `info`.
    fn key(&self, info: &[&[u8]]) -> Self::Key;
}

/// A key for records: AEAD with a nonce made of a secret base and a counter.
pub trait Key {
    /// Encrypts in place and returns the tag. **A counter may be used once with each key.**
    fn seal(&self, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG_BYTES];

    /// Decrypts in place. If that fails, what `text` holds is undefined.
    #[must_use]
    fn open(&self, counter: u64, aad: &[u8], text: &mut [u8], tag: &[u8; TAG_BYTES]) -> bool;
}

/// X25519. Used for one agreement: the state that has it gives it up. It is borrowed for that and dropped where it lies,
/// because what is moved out leaves its bytes behind.
pub struct X25519Pair {
    secret: ReusableSecret,
    public: [u8; WORD_BYTES],
}

impl Pair for X25519Pair {
    type Root = HkdfRoot;

    fn generate(random: &mut impl CryptoRng) -> X25519Pair {
        let secret = ReusableSecret::random_from_rng(random);
        let public = PublicKey::from(&secret).to_bytes();
        X25519Pair { secret, public }
    }

    fn public(&self) -> [u8; WORD_BYTES] {
        self.public
    }

    fn agree(&self, peer: &[u8; WORD_BYTES], transcript: &[u8; WORD_BYTES]) -> Option<HkdfRoot> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*peer));
        if !shared.was_contributory() {
            return None;
        }
        let (mut extracted, _) = Hkdf::<Sha256>::extract(Some(transcript), shared.as_bytes());
        let root = HkdfRoot::from_bytes(&extracted.into());
        extracted.as_mut_slice().zeroize();
        Some(root)
    }
}

/// HKDF-SHA256's pseudorandom key.
pub struct HkdfRoot(Zeroizing<[u8; WORD_BYTES]>);

impl HkdfRoot {
    fn expand(&self, info: &[&[u8]], out: &mut [u8]) {
        let hkdf = Hkdf::<Sha256>::from_prk(&self.0[..]).expect("32 bytes are a key of HKDF-SHA256");
        hkdf.expand_multi_info(info, out).expect("a few bytes can be expanded");
    }
}

impl Root for HkdfRoot {
    type Key = GcmKey;

    fn generate(random: &mut impl CryptoRng) -> HkdfRoot {
        let mut root = HkdfRoot(Zeroizing::default());
        random.fill_bytes(&mut root.0[..]);
        root
    }

    fn from_bytes(bytes: &[u8; WORD_BYTES]) -> HkdfRoot {
        HkdfRoot(Zeroizing::new(*bytes))
    }

    fn expose(&self) -> &[u8; WORD_BYTES] {
        &self.0
    }

    fn derive(&self, info: &[&[u8]]) -> HkdfRoot {
        let mut root = HkdfRoot(Zeroizing::default());
        self.expand(info, &mut root.0[..]);
        root
    }

    fn key(&self, info: &[&[u8]]) -> GcmKey {
        let mut bytes = Zeroizing::new([0; WORD_BYTES + NONCE_LEN]);
        self.expand(info, &mut bytes[..]);
        let mut base_nonce = Zeroizing::new([0; NONCE_LEN]);
        base_nonce.copy_from_slice(&bytes[WORD_BYTES..]);
        GcmKey { key: expanded(&bytes[..WORD_BYTES]), base_nonce }
    }
}

impl fmt::Debug for HkdfRoot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HkdfRoot(..)")
    }
}

/// AES-256-GCM by `ring`. The expanded key is kept, because records of 4 KiB come by the million; it is overwritten when dropped.
pub struct GcmKey {
    key: LessSafeKey,
    base_nonce: Zeroizing<[u8; NONCE_LEN]>,
}

impl GcmKey {
    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = *self.base_nonce;
        for (byte, bits) in nonce[NONCE_LEN - 8..].iter_mut().zip(counter.to_be_bytes()) {
            *byte ^= bits;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

fn expanded(key: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes"))
}

impl Key for GcmKey {
    fn seal(&self, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self.key.seal_in_place_separate_tag(self.nonce(counter), Aad::from(aad), text);
        let tag = tag.expect("a unit is shorter than AES-GCM's limit");
        *tag.as_ref().first_chunk().expect("a tag of AES-GCM has 16 bytes")
    }

    fn open(&self, counter: u64, aad: &[u8], text: &mut [u8], tag: &[u8; TAG_BYTES]) -> bool {
        let tag = (*tag).into();
        self.key.open_in_place_separate_tag(self.nonce(counter), Aad::from(aad), tag, text, 0..).is_ok()
    }
}

impl Drop for GcmKey {
    fn drop(&mut self) {
        self.key = expanded(&[0; WORD_BYTES]);
        black_box(&mut self.key);
    }
}

impl fmt::Debug for GcmKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("GcmKey(..)")
    }
}
