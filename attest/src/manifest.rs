//! The tenant's manifest: who owns a CVM, whose compilers and brokers it believes, and how it may be used. The launch puts
//! its hash into HOST_DATA; a CVM without one has zeros there and is open.

use crate::wire::{Reader, WireError, Writer};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

/// Most compiler keys, and most broker keys.
pub const MAX_KEYS: usize = 64;
/// Longest name in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// Longest migration policy in bytes.
pub const MAX_MIGRATION_BYTES: usize = 16 << 10;
/// Longest manifest in bytes.
pub const MAX_MANIFEST_BYTES: usize = 24 << 10;

const MAGIC: &[u8; 8] = b"NACREMF1";
/// What an owner signs begins with this, so that no other signature of that key is one of a manifest.
const LABEL: &[u8] = b"nacre manifest 1\0";

/// How a CVM may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Only code, configuration and commands that owner, brokers and compilers signed; never a plain deploy.
    Sealed,
    /// Plain deploys are taken; it never holds secrets.
    Open,
}

impl Mode {
    /// Its name in files and output.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Sealed => "sealed",
            Mode::Open => "open",
        }
    }

    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Mode> {
        [Mode::Sealed, Mode::Open].into_iter().find(|mode| mode.name() == name)
    }
}

/// Why a manifest is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is not in its format.
    #[error("the manifest can't be read: {0}")]
    Format(#[from] WireError),
    /// A key in it is no Ed25519 public key, or a weak one.
    #[error("a key in the manifest is not a sound Ed25519 public key")]
    Key,
    /// Its owner has not signed it.
    #[error("the manifest is not signed by its owner")]
    Signature,
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Grows with each change by the owner.
    pub version: u64,
    /// Who signs it, and commands to its CVMs.
    pub owner: VerifyingKey,
    /// Who may sign code.
    pub compilers: Vec<VerifyingKey>,
    /// Who may install code and secrets in the owner's stead.
    pub brokers: Vec<VerifyingKey>,
    /// How its CVMs may be used.
    pub mode: Mode,
    /// Tenant and workload, for people.
    pub name: String,
    /// Policy for the other end of a migration, in [`crate::policy::Policy::encode`]'s bytes; without one nothing moves.
    pub migration: Option<Vec<u8>>,
}

impl Manifest {
    /// The canonical bytes. Keys are a set: their order says nothing and is the bytes' own.
    pub fn encode(&self) -> Vec<u8> {
        let keys = |keys: &[VerifyingKey]| keys.iter().map(VerifyingKey::to_bytes).collect::<Vec<_>>();
        let writer = Writer::new(MAGIC)
            .u64(self.version)
            .u8(match self.mode {
                Mode::Sealed => 1,
                Mode::Open => 2,
            })
            .raw(self.owner.as_bytes())
            .set(&keys(&self.compilers))
            .set(&keys(&self.brokers))
            .string(self.name.as_bytes());
        match &self.migration {
            None => writer.u8(0),
            Some(policy) => writer.u8(1).string(policy),
        }
        .done()
    }

    /// Reads [`Manifest::encode`]'s bytes.
    ///
    /// # Errors
    /// If they are anything else, or a key is none.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(WireError::TooLong("the manifest").into());
        }
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(WireError::Magic("a manifest").into());
        }
        let version = reader.u64()?;
        let mode = match reader.u8()? {
            1 => Mode::Sealed,
            2 => Mode::Open,
            _ => return Err(WireError::Value("mode").into()),
        };
        let owner = sound_key(&reader.array()?)?;
        let mut keys = |what| -> Result<Vec<VerifyingKey>, ManifestError> {
            reader.set(what, MAX_KEYS)?.iter().map(sound_key).collect()
        };
        let (compilers, brokers) = (keys("compiler keys")?, keys("broker keys")?);
        let name = reader.text("name", MAX_NAME_BYTES)?.to_string();
        if !is_name(&name) {
            return Err(WireError::Value("name").into());
        }
        let migration = match reader.flag("migration policy")? {
            true => Some(reader.string("migration policy", MAX_MIGRATION_BYTES)?.to_vec()),
            false => None,
        };
        reader.end()?;
        Ok(Manifest { version, owner, compilers, brokers, mode, name, migration })
    }

    /// SHA-256 of the canonical bytes: HOST_DATA of its CVMs.
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.encode())
    }

    /// Signs it.
    ///
    /// # Errors
    /// If it breaks a limit of the format, or the key is not its owner's.
    pub fn sign(&self, owner: &SigningKey) -> Result<SignedManifest, ManifestError> {
        let manifest = self.encode();
        Manifest::decode(&manifest)?;
        if owner.verifying_key() != self.owner {
            return Err(ManifestError::Signature);
        }
        let signature = owner.sign(&[LABEL, &manifest].concat()).to_bytes();
        Ok(SignedManifest { manifest, signature })
    }
}

/// SHA-256 of a manifest's canonical bytes.
pub fn hash(manifest: &[u8]) -> [u8; 32] {
    Sha256::digest(manifest).into()
}

/// Whether a name may be shown as it is: not empty, at most [`MAX_NAME_BYTES`], no control characters.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.chars().any(char::is_control)
}

/// An Ed25519 key that is a point and not of small order.
///
/// # Errors
/// If it is not.
pub fn sound_key(bytes: &[u8; 32]) -> Result<VerifyingKey, ManifestError> {
    let key = VerifyingKey::from_bytes(bytes).map_err(|_| ManifestError::Key)?;
    // Equal keys have equal bytes: what is decoded encodes to what it came from.
    if key.is_weak() || key.as_bytes() != bytes { Err(ManifestError::Key) } else { Ok(key) }
}

/// A manifest as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedManifest {
    /// [`Manifest::encode`]'s bytes.
    pub manifest: Vec<u8>,
    /// The owner's, over a label and the bytes.
    pub signature: [u8; 64],
}

impl SignedManifest {
    /// The manifest, if its own owner signed it.
    ///
    /// # Errors
    /// If it can't be read or is not signed.
    pub fn verify(&self) -> Result<Manifest, ManifestError> {
        let manifest = Manifest::decode(&self.manifest)?;
        let signature = Signature::from_bytes(&self.signature);
        let signed = [LABEL, &self.manifest].concat();
        manifest.owner.verify_strict(&signed, &signature).map_err(|_| ManifestError::Signature)?;
        Ok(manifest)
    }

    /// The hash of the manifest's bytes.
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.manifest)
    }

    /// Signature and bytes behind each other, for files.
    pub fn encode(&self) -> Vec<u8> {
        [&self.signature, self.manifest.as_slice()].concat()
    }

    /// Reads [`SignedManifest::encode`]'s bytes; verifies nothing.
    ///
    /// # Errors
    /// If they are too few or too many.
    pub fn decode(bytes: &[u8]) -> Result<SignedManifest, WireError> {
        let mut reader = Reader::new(bytes);
        let signature = reader.array()?;
        let manifest = &bytes[64..];
        if manifest.len() > MAX_MANIFEST_BYTES {
            return Err(WireError::TooLong("the manifest"));
        }
        Ok(SignedManifest { manifest: manifest.to_vec(), signature })
    }
}
