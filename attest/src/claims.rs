//! Claims: what a CVM says about itself, and what its report's REPORT_DATA is the hash of. They travel in the clear beside
//! the report; whoever changes one has a hash that no report carries.

use crate::wire::{Reader, WireError, Writer};
use alloc::vec::Vec;
use sha2::{Digest, Sha256, Sha512};

/// Longest public key in claims.
pub const MAX_KEY_BYTES: usize = 256;
/// Longest session or migration id.
pub const MAX_ID_BYTES: usize = 64;

/// What evidence is made for. Evidence for one use is none for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// A sealed session: the key is X25519.
    Session,
    /// A TLS server's certificate: the key is the certificate's.
    Tls,
    /// A migration: the key is X25519.
    Migration,
}

/// [`Label::Session`] as it is hashed.
pub const SESSION: &str = "nacre session 1";
/// [`Label::Tls`] as it is hashed.
pub const TLS: &str = "nacre tls 1";
/// [`Label::Migration`] as it is hashed.
pub const MIGRATION: &str = "nacre migration 3";

impl Label {
    /// As it is hashed.
    pub fn text(self) -> &'static str {
        match self {
            Label::Session => SESSION,
            Label::Tls => TLS,
            Label::Migration => MIGRATION,
        }
    }

    fn from_text(text: &[u8]) -> Option<Label> {
        [Label::Session, Label::Tls, Label::Migration].into_iter().find(|it| it.text().as_bytes() == text)
    }
}

/// Which end of a protocol the CVM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It takes requests: in sessions and TLS.
    Cvm,
    /// It gives its tenant away.
    Source,
    /// It takes a tenant.
    Destination,
}

impl Role {
    /// As it is hashed.
    pub fn text(self) -> &'static str {
        match self {
            Role::Cvm => "cvm",
            Role::Source => "source",
            Role::Destination => "destination",
        }
    }

    fn from_text(text: &[u8]) -> Option<Role> {
        [Role::Cvm, Role::Source, Role::Destination].into_iter().find(|it| it.text().as_bytes() == text)
    }
}

/// The claims of one piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// What it is for.
    pub label: Label,
    /// Which end.
    pub role: Role,
    /// Its own ephemeral public key.
    pub key: Vec<u8>,
    /// The nonce of whoever asked.
    pub nonce: [u8; 32],
    /// Session or migration id.
    pub id: Vec<u8>,
    /// SHA-256 of the manifest, zeros without one.
    pub manifest: [u8; 32],
    /// [`code_list_hash`] of what it has loaded.
    pub code: [u8; 32],
}

impl Claims {
    /// The canonical bytes: each field after its length. They are what REPORT_DATA is a hash of.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default()
            .string(self.label.text().as_bytes())
            .string(self.role.text().as_bytes())
            .string(&self.key)
            .string(&self.nonce)
            .string(&self.id)
            .string(&self.manifest)
            .string(&self.code)
            .done()
    }

    /// Reads [`Claims::encode`]'s bytes.
    ///
    /// # Errors
    /// If they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Claims, WireError> {
        let mut reader = Reader::new(bytes);
        let hash = |reader: &mut Reader<'_>, what| {
            reader.string(what, 32)?.try_into().map_err(|_| WireError::Value(what))
        };
        let claims = Claims {
            label: Label::from_text(reader.string("label", 64)?).ok_or(WireError::Value("label"))?,
            role: Role::from_text(reader.string("role", 64)?).ok_or(WireError::Value("role"))?,
            key: reader.string("key", MAX_KEY_BYTES)?.to_vec(),
            nonce: hash(&mut reader, "nonce")?,
            id: reader.string("id", MAX_ID_BYTES)?.to_vec(),
            manifest: hash(&mut reader, "manifest hash")?,
            code: hash(&mut reader, "code hash")?,
        };
        reader.end()?;
        Ok(claims)
    }

    /// REPORT_DATA: SHA-512 of [`Claims::encode`].
    pub fn report_data(&self) -> [u8; 64] {
        Sha512::digest(self.encode()).into()
    }

    /// SHA-256 of [`Claims::encode`]: how protocols refer to evidence.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.encode()).into()
    }
}

/// The hash of a list of loaded code: SHA-256 over the sorted hashes, doubles left out; zeros if nothing is loaded.
pub fn code_list_hash(hashes: &[[u8; 32]]) -> [u8; 32] {
    if hashes.is_empty() {
        return [0; 32];
    }
    let mut sorted = hashes.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    Sha256::digest(sorted.concat()).into()
}
