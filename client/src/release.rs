//! Releases: sealed code with what only its owner knows, its key and its variables.
//!
//! The *package* is ciphertext and goes to the node. The *release* says which package it is, has the key that opens it and the
//! secrets that go with it: it goes to CVMs in sealed commands, and into the key broker's store.

use crate::random_bytes;
use nacre_attest::code::{CodeError, CodeStatement, Kind};
use nacre_attest::package::{self, Header, PackageError};
use nacre_session::SigningKey;
use nacre_session::command::{Install, ModuleKind};
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroize;

/// Machine code and where it comes from.
#[derive(Clone)]
pub struct Code {
    /// The whole `.cwasm`.
    pub cwasm: Vec<u8>,
    /// SHA-256 of the module it was made of.
    pub module_sha256: [u8; 32],
    /// The engine's settings.
    pub fingerprint: [u8; 32],
}

#[cfg(feature = "compile")]
impl From<&nacre_compile::program::Program> for Code {
    fn from(program: &nacre_compile::program::Program) -> Self {
        Self {
            cwasm: program.file().to_vec(),
            module_sha256: program.header().source_sha256,
            fingerprint: nacre_engine::fingerprint(),
        }
    }
}

#[cfg(feature = "compile")]
impl Code {
    /// Compiles a module, in this process: its author is who deploys it.
    ///
    /// # Errors
    /// [`nacre_compile::compiler::CompileError`].
    pub fn compile(
        wasm: &[u8],
        target: nacre_engine::CpuTarget,
    ) -> Result<Self, nacre_compile::compiler::CompileError> {
        use nacre_compile::module::{Entry, Module};
        let module = Module::parse(wasm, Entry::Command)?;
        Ok(Self::from(&nacre_compile::compiler::compile(&module, target)?))
    }
}

/// How a node runs a sealed service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Where its clients connect.
    pub port: u16,
    /// When it is started again, in the node's words; its default without.
    pub restart: Option<String>,
}

/// What is to be released.
#[derive(Clone)]
pub struct ReleaseSpec {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// What it is.
    pub kind: ModuleKind,
    /// Its variables.
    pub env: Vec<(String, String)>,
    /// For services.
    pub service: Option<Service>,
}

/// A release. Whoever has one can read its package: it is kept by owner and broker, and wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Release {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// What it is.
    pub kind: ModuleKind,
    /// Under which the node stores the package.
    pub package: [u8; 16],
    /// SHA-256 of the package's body: what a CVM is told to install.
    pub content: [u8; 32],
    /// SHA-256 of the precompiled code: what evidence lists.
    pub code: [u8; 32],
    /// What the package is encrypted with.
    pub key: [u8; 32],
    /// Its variables: secrets and configuration.
    pub env: Vec<(String, String)>,
    /// For services.
    pub service: Option<Service>,
}

/// Why nothing was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The statement about the code breaks a limit: its name, mostly.
    #[error("the code can't be signed: {0}; use a name of 1 to 128 bytes without control characters")]
    Statement(#[from] CodeError),
    /// The code does not fit a package.
    #[error("the code can't be sealed: {0}")]
    Package(#[from] PackageError),
}

impl Release {
    /// Signs code and seals it under a fresh key; the release and its package.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn seal(
        code: &Code,
        spec: ReleaseSpec,
        compiler: &SigningKey,
    ) -> Result<(Release, Vec<u8>), ReleaseError> {
        let ReleaseSpec { name, version, kind, env, service } = spec;
        let cwasm_sha256 = Sha256::digest(&code.cwasm).into();
        let statement = CodeStatement {
            name: name.clone(),
            version,
            module_sha256: code.module_sha256,
            cwasm_sha256,
            fingerprint: code.fingerprint,
            kind: match kind {
                ModuleKind::Action => Kind::Action,
                ModuleKind::Service => Kind::Service { tls: false },
                ModuleKind::TlsService => Kind::Service { tls: true },
            },
        };
        let (id, key) = (random_bytes(), random_bytes());
        let package = package::seal(&key, id, &statement.sign(compiler)?, &code.cwasm)?;
        let content = Header::parse(&package)?.body_sha256;
        Ok((
            Release { name, version, kind, package: id, content, code: cwasm_sha256, key, env, service },
            package,
        ))
    }

    /// The command that installs it.
    #[must_use]
    pub fn install(&self) -> Install<'_> {
        Install {
            package: &self.content,
            key: &self.key,
            name: &self.name,
            version: self.version,
            kind: self.kind,
            env: self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        }
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        self.key.zeroize();
        self.env.iter_mut().for_each(|(_, value)| value.zeroize());
    }
}

/// Keys and secrets stay out of logs.
impl fmt::Debug for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Release")
            .field("name", &self.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
