//! Packages: sealed code as a node stores it, ciphertext only. The content is a signed statement and the machine code it is
//! about; secrets are never in it.
//!
//! ```text
//! header, 68 bytes: magic "NACREPK1" | u32 version 1 | package id [16] | SHA-256 of the body [32] | u64 content bytes
//! body: chunks of 64 KiB (the last one shorter, and never missing), each AES-256-GCM with its 16 bytes of tag behind it
//! nonce of a chunk: u64 BE index | 3 zero bytes | 1 if it is the last one, else 0
//! additional data: the header with zeros for the body's hash
//! content: u32 LE length | signed statement | machine code
//! ```
//!
//! The key belongs to one package; a second package under the same key would use nonces twice. The body's hash lets a node
//! check what it stores and tells it nothing about the content; the index and the last chunk's mark make reordering and
//! cutting fail, the header in the additional data makes mixing fail.

use crate::code::{MAX_SIGNED_CODE_BYTES, SignedCode};
use crate::wire::{Reader, WireError, Writer};
use alloc::vec::Vec;
use core::ops::Range;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest, Sha256};

/// Size of a header.
pub const HEADER_BYTES: usize = 68;
/// Content per chunk.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Size of a tag.
pub const TAG_BYTES: usize = 16;
/// Largest content.
pub const MAX_CONTENT_BYTES: u64 = 1 << 30;

const MAGIC: &[u8; 8] = b"NACREPK1";
const VERSION: u32 = 1;

/// Why a package can't be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// It is not in its format.
    #[error("the package can't be read: {0}")]
    Format(#[from] WireError),
    /// The body is not the one the header was made for.
    #[error("the package's content is damaged")]
    Damaged,
    /// The key is another's, or something was changed.
    #[error("the package does not open with this key")]
    Forged,
}

/// What can be read of a package without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its id.
    pub id: [u8; 16],
    /// SHA-256 of the body.
    pub body_sha256: [u8; 32],
    /// Size of the content in bytes.
    pub content_bytes: u64,
}

impl Header {
    /// Reads the header at the beginning of a package.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(package: &[u8]) -> Result<Header, PackageError> {
        let mut reader = Reader::new(package.get(..HEADER_BYTES).ok_or(WireError::Truncated)?);
        if reader.array()? != *MAGIC {
            return Err(WireError::Magic("a package").into());
        }
        if reader.u32()? != VERSION {
            return Err(WireError::Value("version").into());
        }
        let (id, body_sha256, content_bytes) = (reader.array()?, reader.array()?, reader.u64()?);
        if !(4..=MAX_CONTENT_BYTES).contains(&content_bytes) {
            return Err(WireError::Value("content length").into());
        }
        Ok(Header { id, body_sha256, content_bytes })
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(MAGIC).u32(VERSION).raw(&self.id).raw(&self.body_sha256).u64(self.content_bytes).done()
    }

    /// Bytes of the body that follows.
    pub fn body_bytes(&self) -> u64 {
        self.content_bytes + self.content_bytes.div_ceil(CHUNK_BYTES as u64) * TAG_BYTES as u64
    }

    /// That a stored package is whole. Needs no key.
    ///
    /// # Errors
    /// If its length or its body's hash is not the header's.
    pub fn check(&self, package: &[u8]) -> Result<(), PackageError> {
        let body = package.get(HEADER_BYTES..).ok_or(WireError::Truncated)?;
        match (body.len() as u64).cmp(&self.body_bytes()) {
            core::cmp::Ordering::Less => Err(WireError::Truncated.into()),
            core::cmp::Ordering::Greater => Err(WireError::Trailing.into()),
            core::cmp::Ordering::Equal if Sha256::digest(body)[..] == self.body_sha256 => Ok(()),
            core::cmp::Ordering::Equal => Err(PackageError::Damaged),
        }
    }

    /// What every chunk is bound to: the header without the body's hash, which is known only afterwards.
    fn binding(&self) -> Vec<u8> {
        Header { body_sha256: [0; 32], ..*self }.encode()
    }
}

/// Seals code under a key that is used for nothing else.
///
/// # Errors
/// If it is longer than [`MAX_CONTENT_BYTES`].
pub fn seal(key: &[u8; 32], id: [u8; 16], code: &SignedCode, cwasm: &[u8]) -> Result<Vec<u8>, PackageError> {
    let content = [Writer::default().string(&code.encode()).done().as_slice(), cwasm].concat();
    let content_bytes = content.len() as u64;
    if content_bytes > MAX_CONTENT_BYTES {
        return Err(WireError::TooLong("the code").into());
    }
    let mut header = Header { id, body_sha256: [0; 32], content_bytes };
    let (key, binding) = (gcm(key), header.binding());
    let mut package = header.encode();
    package.reserve(header.body_bytes() as usize);
    let chunks = content.chunks(CHUNK_BYTES);
    let last = chunks.len() - 1;
    for (index, chunk) in chunks.enumerate() {
        let start = package.len();
        package.extend_from_slice(chunk);
        let tag = key
            .seal_in_place_separate_tag(
                nonce(index, index == last),
                Aad::from(&binding),
                &mut package[start..],
            )
            .map_err(|_| PackageError::Forged)?;
        package.extend_from_slice(tag.as_ref());
    }
    header.body_sha256 = Sha256::digest(&package[HEADER_BYTES..]).into();
    package[..HEADER_BYTES].copy_from_slice(&header.encode());
    Ok(package)
}

/// Opens a package where it is. Gives the statement (not verified yet) and where the machine code lies in `package` now.
/// After an error `package` holds nothing that may be used.
///
/// # Errors
/// If it is damaged, changed, or another key's.
pub fn open_in_place(key: &[u8; 32], package: &mut [u8]) -> Result<(SignedCode, Range<usize>), PackageError> {
    let header = Header::parse(package)?;
    header.check(package)?;
    let (key, binding) = (gcm(key), header.binding());
    let chunks = header.content_bytes.div_ceil(CHUNK_BYTES as u64) as usize;
    let (mut from, mut to) = (HEADER_BYTES, HEADER_BYTES);
    for index in 0..chunks {
        let end = (from + CHUNK_BYTES + TAG_BYTES).min(package.len());
        let plain = key
            .open_in_place(nonce(index, index + 1 == chunks), Aad::from(&binding), &mut package[from..end])
            .map_err(|_| PackageError::Forged)?
            .len();
        package.copy_within(from..from + plain, to);
        (from, to) = (end, to + plain);
    }
    let mut reader = Reader::new(&package[HEADER_BYTES..to]);
    let code = reader.string("the signed statement", MAX_SIGNED_CODE_BYTES)?;
    let start = HEADER_BYTES + 4 + code.len();
    Ok((SignedCode::decode(code)?, start..to))
}

fn gcm(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 keys have 32 bytes"))
}

fn nonce(index: usize, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&(index as u64).to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}
