//! Symbols in place of cryptography: nothing is secret, but whoever has not the same key, number and header makes no tag that is
//! accepted. A tag's second half names key and number, so that the model sees when a pair is used for two texts.

use nacre_migrate::CryptoRng;
use nacre_migrate::crypto::{Key, Pair, Root};
use std::sync::atomic::{AtomicBool, Ordering};

/// A mutation: epochs have no keys of their own.
pub static REUSE_KEYS: AtomicBool = AtomicBool::new(false);

pub fn mix(pieces: &[&[u8]]) -> u64 {
    let mut hash = 0x243f_6a88_85a3_08d3_u64;
    for piece in pieces {
        let (words, rest) = piece.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        let rest = rest.iter().map(|byte| u64::from(*byte));
        for word in words.chain(rest).chain([piece.len() as u64]) {
            hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
    hash ^ hash >> 29
}

fn spread(number: u64) -> [u8; 32] {
    std::array::from_fn(|at| number.to_le_bytes()[at % 8])
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SymbolicPair([u8; 32]);

impl Pair for SymbolicPair {
    type Root = SymbolicRoot;

    fn generate(random: &mut impl CryptoRng) -> SymbolicPair {
        SymbolicPair(spread(random.next_u64()))
    }

    fn public(&self) -> [u8; 32] {
        spread(mix(&[b"public", &self.0]))
    }

    fn agree(&self, peer: &[u8; 32], transcript: &[u8; 32]) -> Option<SymbolicRoot> {
        let mut publics = [self.public(), *peer];
        publics.sort_unstable();
        Some(SymbolicRoot(spread(mix(&[b"shared", &publics[0], &publics[1], transcript]))))
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SymbolicRoot([u8; 32]);

impl Root for SymbolicRoot {
    type Key = SymbolicKey;

    fn generate(random: &mut impl CryptoRng) -> SymbolicRoot {
        SymbolicRoot(spread(random.next_u64()))
    }

    fn from_bytes(bytes: &[u8; 32]) -> SymbolicRoot {
        SymbolicRoot(*bytes)
    }

    fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn derive(&self, info: &[&[u8]]) -> SymbolicRoot {
        let pieces: Vec<&[u8]> = [&self.0[..]].into_iter().chain(info.iter().copied()).collect();
        SymbolicRoot(spread(mix(&pieces)))
    }

    fn key(&self, info: &[&[u8]]) -> SymbolicKey {
        // The last piece is the epoch, where there are three.
        let kept = if REUSE_KEYS.load(Ordering::Relaxed) && info.len() == 3 { &info[..2] } else { info };
        SymbolicKey(mix(&[&self.derive(kept).0]))
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SymbolicKey(u64);

impl Key for SymbolicKey {
    fn seal(&self, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; 16] {
        let (key, counter) = (self.0.to_le_bytes(), counter.to_le_bytes());
        let mut tag = [0; 16];
        tag[..8].copy_from_slice(&mix(&[&key, &counter, aad, text]).to_le_bytes());
        tag[8..].copy_from_slice(&mix(&[&key, &counter]).to_le_bytes());
        tag
    }

    fn open(&self, counter: u64, aad: &[u8], text: &mut [u8], tag: &[u8; 16]) -> bool {
        self.seal(counter, aad, text) == *tag
    }
}
