//! Evidence as it travels: a report, its certificates, the signed manifest if there is one, the claims and the hashes of
//! the loaded code. Decoding it verifies nothing; [`crate::verify`] does.

use crate::certificate::MAX_CERTIFICATE_BYTES;
use crate::chain::MAX_CERTIFICATES;
use crate::claims::Claims;
use crate::manifest::{MAX_MANIFEST_BYTES, SignedManifest};
use crate::report::REPORT_BYTES;
use crate::wire::{Reader, WireError, Writer};
use alloc::vec::Vec;

/// Most bytes of evidence.
pub const MAX_EVIDENCE_BYTES: usize = 64 << 10;
/// Most hashes of code.
pub const MAX_CODE: usize = 256;

const MAGIC: &[u8; 8] = b"NACREEV1";

/// Evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The report's 1184 bytes.
    pub report: Vec<u8>,
    /// The chain in DER, leaf first.
    pub certificates: Vec<Vec<u8>>,
    /// The manifest the CVM was launched with.
    pub manifest: Option<SignedManifest>,
    /// What REPORT_DATA is the hash of.
    pub claims: Claims,
    /// SHA-256 of each module or `.cwasm` that is loaded: a set.
    pub code: Vec<[u8; 32]>,
}

impl Evidence {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC).string(&self.report).u8(self.certificates.len() as u8);
        for certificate in &self.certificates {
            writer = writer.string(certificate);
        }
        writer = match &self.manifest {
            None => writer.u8(0),
            Some(signed) => writer.u8(1).raw(&signed.signature).string(&signed.manifest),
        };
        writer.string(&self.claims.encode()).set(&self.code).done()
    }

    /// Reads [`Evidence::encode`]'s bytes.
    ///
    /// # Errors
    /// If they are anything else, or too many.
    pub fn decode(bytes: &[u8]) -> Result<Evidence, WireError> {
        if bytes.len() > MAX_EVIDENCE_BYTES {
            return Err(WireError::TooLong("the evidence"));
        }
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(WireError::Magic("evidence"));
        }
        let report = reader.string("report", REPORT_BYTES)?.to_vec();
        let count = usize::from(reader.u8()?);
        if count > MAX_CERTIFICATES {
            return Err(WireError::TooLong("the certificate chain"));
        }
        let mut certificates = Vec::new();
        for _ in 0..count {
            certificates.push(reader.string("certificate", MAX_CERTIFICATE_BYTES)?.to_vec());
        }
        let manifest = match reader.flag("manifest")? {
            false => None,
            true => Some(SignedManifest {
                signature: reader.array()?,
                manifest: reader.string("manifest", MAX_MANIFEST_BYTES)?.to_vec(),
            }),
        };
        let claims = Claims::decode(reader.string("claims", 1024)?)?;
        let code = reader.set("code hashes", MAX_CODE)?;
        reader.end()?;
        Ok(Evidence { report, certificates, manifest, claims, code })
    }
}
