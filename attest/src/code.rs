//! Statements about code: a compiler's key says which machine code came from which module by which settings. A sealed guest
//! believes machine code for no other reason, because it is native code.

use crate::manifest::{self, Manifest};
use crate::wire::{Reader, WireError, Writer};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

/// Longest signed statement in bytes.
pub const MAX_SIGNED_CODE_BYTES: usize = 512;

const MAGIC: &[u8; 8] = b"NACRECS1";
const LABEL: &[u8] = b"nacre code 1\0";

/// Why code is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// It is not in its format.
    #[error("the statement about the code can't be read: {0}")]
    Format(#[from] WireError),
    /// The manifest does not list the key.
    #[error("the code is signed by a key that the manifest does not list as a compiler's")]
    Compiler,
    /// The signature is not that key's.
    #[error("the statement about the code is not signed by the key it names")]
    Signature,
    /// The code is not the one the statement is about.
    #[error("the code is not what its signed statement is about")]
    Content,
}

/// What kind of workload it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Called for each request.
    Action,
    /// Runs for long and takes connections.
    Service {
        /// Whether the guest speaks TLS on them.
        tls: bool,
    },
}

/// What a compiler says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeStatement {
    /// The workload's name.
    pub name: String,
    /// Its version; brokers never install an older one after a newer.
    pub version: u64,
    /// SHA-256 of the Wasm module.
    pub module_sha256: [u8; 32],
    /// SHA-256 of the precompiled code.
    pub cwasm_sha256: [u8; 32],
    /// The engine's settings that it was compiled with.
    pub fingerprint: [u8; 32],
    /// What kind it is.
    pub kind: Kind,
}

impl CodeStatement {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(MAGIC)
            .string(self.name.as_bytes())
            .u64(self.version)
            .raw(&self.module_sha256)
            .raw(&self.cwasm_sha256)
            .raw(&self.fingerprint)
            .u8(match self.kind {
                Kind::Action => 0,
                Kind::Service { tls: false } => 1,
                Kind::Service { tls: true } => 2,
            })
            .done()
    }

    /// Reads [`CodeStatement::encode`]'s bytes.
    ///
    /// # Errors
    /// If they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<CodeStatement, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(WireError::Magic("a statement about code"));
        }
        let name = reader.text("name", manifest::MAX_NAME_BYTES)?.to_string();
        if !manifest::is_name(&name) {
            return Err(WireError::Value("name"));
        }
        let statement = CodeStatement {
            name,
            version: reader.u64()?,
            module_sha256: reader.array()?,
            cwasm_sha256: reader.array()?,
            fingerprint: reader.array()?,
            kind: match reader.u8()? {
                0 => Kind::Action,
                1 => Kind::Service { tls: false },
                2 => Kind::Service { tls: true },
                _ => return Err(WireError::Value("kind")),
            },
        };
        reader.end()?;
        Ok(statement)
    }

    /// Signs it.
    ///
    /// # Errors
    /// If it breaks a limit of the format.
    pub fn sign(&self, compiler: &SigningKey) -> Result<SignedCode, CodeError> {
        let statement = self.encode();
        CodeStatement::decode(&statement)?;
        let signature = compiler.sign(&[LABEL, &statement].concat()).to_bytes();
        Ok(SignedCode { compiler: compiler.verifying_key().to_bytes(), signature, statement })
    }

    /// That this is the code it is about.
    ///
    /// # Errors
    /// If it is another.
    pub fn check_code(&self, cwasm: &[u8]) -> Result<(), CodeError> {
        let found: [u8; 32] = Sha256::digest(cwasm).into();
        if found == self.cwasm_sha256 { Ok(()) } else { Err(CodeError::Content) }
    }
}

/// A statement as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCode {
    /// The compiler's public key.
    pub compiler: [u8; 32],
    /// Its signature over a label and the statement.
    pub signature: [u8; 64],
    /// [`CodeStatement::encode`]'s bytes.
    pub statement: Vec<u8>,
}

impl SignedCode {
    /// The statement, if a compiler that the manifest lists has signed it.
    ///
    /// # Errors
    /// If not, or if it can't be read.
    pub fn verify(&self, manifest: &Manifest) -> Result<CodeStatement, CodeError> {
        let listed = |key: &&VerifyingKey| key.as_bytes() == &self.compiler;
        let key = manifest.compilers.iter().find(listed).ok_or(CodeError::Compiler)?;
        let signature = Signature::from_bytes(&self.signature);
        let signed = [LABEL, &self.statement].concat();
        key.verify_strict(&signed, &signature).map_err(|_| CodeError::Signature)?;
        Ok(CodeStatement::decode(&self.statement)?)
    }

    /// Key, signature and statement behind each other.
    pub fn encode(&self) -> Vec<u8> {
        [&self.compiler, self.signature.as_slice(), &self.statement].concat()
    }

    /// Reads [`SignedCode::encode`]'s bytes; verifies nothing.
    ///
    /// # Errors
    /// If they are too few or too many.
    pub fn decode(bytes: &[u8]) -> Result<SignedCode, WireError> {
        if bytes.len() > MAX_SIGNED_CODE_BYTES {
            return Err(WireError::TooLong("the signed statement"));
        }
        let mut reader = Reader::new(bytes);
        let (compiler, signature) = (reader.array()?, reader.array()?);
        Ok(SignedCode { compiler, signature, statement: bytes[96..].to_vec() })
    }
}
