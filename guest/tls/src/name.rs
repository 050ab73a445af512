//! The server name by which a client asks for fresh evidence.
//!
//! TLS gives a client no field for a nonce before the server shows its certificate, but it lets it say which
//! server it means (SNI). A client that wants evidence made for it chooses 32 random bytes and says
//!
//! ```text
//! <32 hex digits>.<32 hex digits>.evidence.nacre.invalid
//! ```
//!
//! that is 64 lower-case hexadecimal digits, in two labels because one holds at most 63. `.invalid` is reserved
//! (RFC 2606): nobody resolves such a name, and no authority ever signs a certificate for one. Every other name,
//! and none at all, gets the certificate whose evidence has a nonce of zeros: the client knows what it talks to,
//! but not that the evidence is of today.

use crate::crypto::{NoRandomness, Random};
use alloc::string::String;

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;

/// What the name ends with.
pub const SUFFIX: &str = ".evidence.nacre.invalid";

/// Bytes of the whole name.
pub const NAME_BYTES: usize = 2 * NONCE_BYTES + 1 + SUFFIX.len();

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What a client wants to see in its evidence; never zeros in one that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nonce([u8; NONCE_BYTES]);

impl Nonce {
    /// The nonce of evidence that nobody asked for.
    pub const ZERO: Nonce = Nonce([0; NONCE_BYTES]);

    /// A nonce of these bytes.
    pub const fn new(bytes: [u8; NONCE_BYTES]) -> Nonce {
        Nonce(bytes)
    }

    /// A fresh one.
    ///
    /// # Errors
    ///
    /// [`NoRandomness`] of the source.
    pub fn random(random: &dyn Random) -> Result<Nonce, NoRandomness> {
        let mut bytes = [0; NONCE_BYTES];
        random.fill(&mut bytes)?;
        Ok(Nonce(bytes))
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; NONCE_BYTES] {
        &self.0
    }

    /// The server name that asks for it.
    pub fn server_name(&self) -> String {
        let mut name = String::with_capacity(NAME_BYTES);
        for (index, byte) in self.0.iter().enumerate() {
            if index == NONCE_BYTES / 2 {
                name.push('.');
            }
            name.push(char::from(DIGITS[usize::from(byte >> 4)]));
            name.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        name.push_str(SUFFIX);
        name
    }

    /// The nonce that `name` asks for. Names are compared as DNS compares them: letters of both cases are the
    /// same. A nonce of zeros is not one to ask for.
    pub fn of_server_name(name: &str) -> Option<Nonce> {
        let name = name.as_bytes();
        if name.len() != NAME_BYTES {
            return None;
        }
        let (digits, suffix) = name.split_at(2 * NONCE_BYTES + 1);
        if !suffix.eq_ignore_ascii_case(SUFFIX.as_bytes()) {
            return None;
        }
        let (first, rest) = digits.split_at(NONCE_BYTES);
        let [b'.', second @ ..] = rest else { return None };
        let mut bytes = [0; NONCE_BYTES];
        let (front, back) = bytes.split_at_mut(NONCE_BYTES / 2);
        decode(first, front)?;
        decode(second, back)?;
        let nonce = Nonce(bytes);
        (nonce != Nonce::ZERO).then_some(nonce)
    }
}

/// Reads two hexadecimal digits per byte of `target`.
fn decode(digits: &[u8], target: &mut [u8]) -> Option<()> {
    for (pair, byte) in digits.chunks_exact(2).zip(target) {
        *byte = (value(pair[0])? << 4) | value(pair[1])?;
    }
    Some(())
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_two_labels_of_digits_and_the_suffix() {
        let nonce = Nonce::new(core::array::from_fn(|index| index as u8));
        let name = nonce.server_name();
        assert_eq!(
            name,
            "000102030405060708090a0b0c0d0e0f.101112131415161718191a1b1c1d1e1f.evidence.nacre.invalid"
        );
        assert!(name.split('.').all(|label| label.len() <= 63));
        assert_eq!(Nonce::of_server_name(&name), Some(nonce));
        assert_eq!(Nonce::of_server_name(&name.to_uppercase()), Some(nonce));
    }

    #[test]
    fn other_names_ask_for_nothing() {
        let name = Nonce::new([0xab; 32]).server_name();
        for other in [
            String::new(),
            "kv.example".to_string(),
            name[1..].to_string(),
            alloc::format!("{name}."),
            name.replace("ab.ab", "aba.b"),
            name.replace("ab.ab", "abxab"),
            name.replacen('a', "g", 1),
            name.replacen('a', "ä", 1),
            name.replace("nacre", "macre"),
            Nonce::ZERO.server_name(),
        ] {
            assert_eq!(Nonce::of_server_name(&other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_nonce_survives_its_name(bytes: [u8; 32]) {
            prop_assume!(bytes != [0; 32]);
            prop_assert_eq!(Nonce::of_server_name(&Nonce::new(bytes).server_name()), Some(Nonce::new(bytes)));
        }

        #[test]
        fn any_text_is_a_name_or_none(text in "\\PC{0,100}") {
            if let Some(nonce) = Nonce::of_server_name(&text) {
                prop_assert_eq!(nonce.server_name(), text.to_ascii_lowercase());
            }
        }
    }
}
