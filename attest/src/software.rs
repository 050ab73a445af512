//! The software platform: a development root that issues VCEKs to nodes and signs reports in the layout of the genuine ones.
//! It protects nothing: whoever has the files can sign anything, and whoever runs the machine can read its memory. All it
//! makes carries the marks of [`crate::software_mark`], and no policy accepts it that does not say so.

pub(crate) mod issue;
mod store;

use crate::report::{
    Cpuid, FirmwareVersion, GuestPolicy, KeyInfo, Mitigations, PlatformInfo, REPORT_BYTES, Report, Signature,
    SigningKey,
};
use crate::software_mark;
use crate::tcb::{Platform, Tcb};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use std::io;
use std::path::PathBuf;

pub use issue::{NodeKey, Root};
pub use store::SoftwarePlatform;

/// The TCB that software platforms state.
pub const TCB: Tcb = Tcb { fmc: 0, bootloader: 0, tee: 0, snp: 1, microcode: 1 };

/// Why a software platform can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum SoftwareError {
    /// There is one already.
    #[error("{0} exists already: a second platform needs another folder")]
    Exists(PathBuf),
    /// A file can't be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Others may read a file with keys.
    #[error("{0} can be read by others: chmod 600")]
    Permissions(PathBuf),
    /// A file is not what this module wrote.
    #[error("{0} is not a software platform's file: restore it, or make a new platform")]
    Content(PathBuf),
    /// Not a name for a node.
    #[error(
        "a node's name has 1 to 64 of a-z, A-Z, 0-9, '-', '_', '.', and begins with none of the last three"
    )]
    NodeName,
    /// Key generation, signing or encoding failed, which they don't with a working random number generator.
    #[error("the software platform can't {0}")]
    Crypto(&'static str),
}

/// What a launch and a guest put into a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportFields {
    /// The launch digest.
    pub measurement: [u8; 48],
    /// The manifest's hash, or zeros.
    pub host_data: [u8; 32],
    /// The claims' hash.
    pub report_data: [u8; 64],
    /// Identity of this launch: random.
    pub report_id: [u8; 32],
    /// Whether the image is one for debugging.
    pub debug: bool,
}

/// A node's key, ready to sign reports: about half a millisecond each. Share it, don't open it per report.
pub struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    certificates: [Vec<u8>; 3],
    chip_id: [u8; 64],
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// From a node's key, its certificate and those above it.
    ///
    /// # Errors
    /// If the key is none.
    pub fn new(node: &NodeKey, above: [Vec<u8>; 2]) -> Result<Signer, SoftwareError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, node.key(), &random)
            .map_err(|_| SoftwareError::Crypto("read a node's key"))?;
        let [intermediate, root] = above;
        let certificates = [node.certificate().to_vec(), intermediate, root];
        Ok(Signer { key, random, certificates, chip_id: software_mark::chip_id(node.name()) })
    }

    /// The chain of its reports, leaf first: what belongs into evidence.
    pub fn certificates(&self) -> &[Vec<u8>; 3] {
        &self.certificates
    }

    /// Signs a report.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn sign(&self, fields: &ReportFields) -> Result<[u8; REPORT_BYTES], SoftwareError> {
        let mut report = self.report(fields);
        let signature = self
            .key
            .sign(&self.random, &report.signed_bytes())
            .map_err(|_| SoftwareError::Crypto("sign a report"))?;
        let (r, s) = signature.as_ref().split_at(48);
        report.signature = Signature {
            r: r.try_into().map_err(|_| SoftwareError::Crypto("sign a report"))?,
            s: s.try_into().map_err(|_| SoftwareError::Crypto("sign a report"))?,
        };
        Ok(report.encode())
    }

    fn report(&self, fields: &ReportFields) -> Report {
        let tcb = TCB.version(Platform::Software);
        let firmware = FirmwareVersion::default();
        Report {
            version: 5,
            guest_svn: 0,
            policy: GuestPolicy::NACRE.with_debug(fields.debug),
            family_id: [0; 16],
            image_id: [0; 16],
            vmpl: 0,
            current_tcb: tcb,
            platform_info: PlatformInfo::default(),
            key_info: KeyInfo { author_key: false, mask_chip_key: false, signing_key: SigningKey::Vcek },
            report_data: fields.report_data,
            measurement: fields.measurement,
            host_data: fields.host_data,
            id_key_digest: [0; 48],
            author_key_digest: [0; 48],
            report_id: fields.report_id,
            report_id_ma: [0xff; 32],
            reported_tcb: tcb,
            cpuid: Some(Cpuid::default()),
            chip_id: self.chip_id,
            committed_tcb: tcb,
            current_version: firmware,
            committed_version: firmware,
            launch_tcb: tcb,
            mitigations: Some(Mitigations::default()),
            signature: Signature { r: [0; 48], s: [0; 48] },
        }
    }
}
