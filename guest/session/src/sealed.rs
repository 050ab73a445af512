//! Plaintexts: a length, the content, zeros up to the bucket; and how they become records.

use crate::codec::{DecodeError, EncodeError};
use crate::keys::{RecordKey, SecretBytes};
use crate::wire::{ENC_BYTES, HEADER_BYTES, Header, Kind, RecordError, SessionId, TAG_BYTES, bucket};
use alloc::vec::Vec;

const LENGTH_BYTES: usize = 4;

/// What a record of one session and number is sealed with.
pub(crate) struct Place<'k> {
    pub kind: Kind,
    pub session: SessionId,
    pub seq: u64,
    pub enc: Option<[u8; ENC_BYTES]>,
    pub key: &'k RecordKey,
}

/// How long the plaintext of so much content is.
pub(crate) fn plaintext_bytes(content: usize) -> Result<usize, EncodeError> {
    let padded = content.checked_add(LENGTH_BYTES).and_then(bucket);
    padded.ok_or(EncodeError::TooLong { bytes: content })
}

/// A record with the `content` bytes that `write` writes. The buffer has its size from the start: no copy stays behind.
pub(crate) fn seal(
    place: Place,
    content: usize,
    write: impl FnOnce(&mut Vec<u8>),
) -> Result<Vec<u8>, EncodeError> {
    let plaintext = plaintext_bytes(content)?;
    let Place { kind, session, seq, enc, key } = place;
    let enc: &[u8] = enc.as_ref().map_or(&[], |enc| enc);
    let start = HEADER_BYTES + enc.len();
    let body_bytes = enc.len() + plaintext + TAG_BYTES;
    let mut record = Vec::with_capacity(HEADER_BYTES + body_bytes);
    record.extend_from_slice(&Header { kind, body_bytes, session, seq }.encode());
    record.extend_from_slice(enc);
    record.extend_from_slice(&(content as u32).to_le_bytes());
    write(&mut record);
    debug_assert_eq!(
        record.len(),
        start + LENGTH_BYTES + content,
        "the content is as long as it was counted"
    );
    record.resize(start + plaintext, 0);
    let (header, plaintext) = record.split_at_mut(start);
    let tag = key.seal(seq, header, plaintext);
    record.extend_from_slice(&tag);
    Ok(record)
}

/// A decrypted record. Wiped when it is dropped.
pub(crate) struct Plaintext {
    record: SecretBytes,
    start: usize,
}

impl Plaintext {
    /// Decrypts a record whose header was decoded, in place.
    pub(crate) fn open(
        mut record: Vec<u8>,
        header: &Header,
        key: &RecordKey,
    ) -> Result<Plaintext, RecordError> {
        let start = HEADER_BYTES + if header.kind == Kind::Open { ENC_BYTES } else { 0 };
        let (aad, sealed) = record.split_at_mut(start);
        key.open(header.seq, aad, sealed)?;
        Ok(Plaintext { record: SecretBytes(record), start })
    }

    /// What is in it, without length and padding.
    pub(crate) fn content(&self) -> Result<&[u8], DecodeError> {
        let plaintext = &self.record.0[self.start..self.record.0.len() - TAG_BYTES];
        let (length, rest) = plaintext.split_first_chunk().ok_or(DecodeError::Short)?;
        let length = u32::from_le_bytes(*length) as usize;
        if plaintext_bytes(length) != Ok(plaintext.len()) {
            return Err(DecodeError::Bucket);
        }
        let (content, padding) = rest.split_at(length);
        // Without an early end, which makes it fast.
        if padding.iter().fold(0, |all, byte| all | byte) != 0 {
            return Err(DecodeError::Padding);
        }
        Ok(content)
    }
}
