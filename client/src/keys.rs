//! Files with Ed25519 signing keys: PKCS #8 in PEM, as `openssl genpkey -algorithm ed25519` writes them, 0600.

use crate::files;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nacre_attest::ed25519_dalek::{SigningKey, VerifyingKey};
use nacre_attest::manifest::sound_key;
use nacre_attest::verify::hex;
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroize;

/// A PKCS #8 structure of version 0 with an Ed25519 key up to its 32 bytes (RFC 8410 section 7).
const PREFIX: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
const MAX_BYTES: u64 = 4096;

/// Why a key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// There is one already.
    #[error("{0} exists already; a key is never overwritten, choose another name")]
    Exists(PathBuf),
    /// It holds something else.
    #[error("{0} holds no Ed25519 key in PEM; make one with nacre manifest init")]
    Content(PathBuf),
}

/// A fresh key.
#[must_use]
pub fn generate() -> SigningKey {
    let mut seed = crate::random_bytes();
    let key = SigningKey::from_bytes(&seed);
    seed.zeroize();
    key
}

/// Writes a key into a new file.
///
/// # Errors
/// `Exists`, `File`.
pub fn write(path: &Path, key: &SigningKey) -> Result<(), KeyError> {
    let mut der = [PREFIX.as_slice(), key.as_bytes()].concat();
    let mut text = format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(&der));
    let written = files::write_new(path, text.as_bytes());
    der.zeroize();
    text.zeroize();
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
        _ => KeyError::File { path: path.to_owned(), error },
    })
}

/// Reads a key.
///
/// # Errors
/// `File`, also if others may read it; `Content`.
pub fn read(path: &Path) -> Result<SigningKey, KeyError> {
    let mut bytes = files::read_private(path, MAX_BYTES)
        .map_err(|error| KeyError::File { path: path.to_owned(), error })?;
    let key = parse(&bytes);
    bytes.zeroize();
    key.ok_or_else(|| KeyError::Content(path.to_owned()))
}

fn parse(bytes: &[u8]) -> Option<SigningKey> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let mut base64: String = text.strip_prefix(BEGIN)?.strip_suffix(END)?.split_whitespace().collect();
    let der = STANDARD.decode(&base64);
    base64.zeroize();
    let mut der = der.ok()?;
    let key = der.strip_prefix(&PREFIX).and_then(|seed| Some(SigningKey::from_bytes(seed.try_into().ok()?)));
    der.zeroize();
    key
}

/// A public key as manifests and policies write it.
#[must_use]
pub fn public_hex(key: &SigningKey) -> String {
    hex(key.verifying_key().as_bytes())
}

/// A public key of 64 hexadecimal digits.
#[must_use]
pub fn parse_public(text: &str) -> Option<VerifyingKey> {
    let bytes: [u8; 32] = from_hex(text)?;
    sound_key(&bytes).ok()
}

/// `N` bytes from twice as many hexadecimal digits.
#[must_use]
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_survive_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        let key = generate();
        write(&path, &key).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().as_bytes(), key.as_bytes());
        assert!(matches!(write(&path, &key), Err(KeyError::Exists(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn other_files_are_no_keys() {
        // As OpenSSL 3 writes them.
        let openssl = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        assert!(parse(openssl.as_bytes()).is_some());
        for text in
            ["", BEGIN, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", &openssl[..80]]
        {
            assert!(parse(text.as_bytes()).is_none(), "{text}");
        }
        assert!(parse(&[0xff; 32]).is_none());
        assert_eq!(from_hex::<2>("a1B2"), Some([0xa1, 0xb2]));
        for text in ["a1b", "a1b2c3", "a1bg", "é1b"] {
            assert_eq!(from_hex::<2>(text), None, "{text}");
        }
    }
}
