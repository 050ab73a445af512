//! Evidence as it travels: a report, its certificates, the signed manifest if there is one, the claims, the hashes of
//! the loaded code, and the report of the VM around a nested CVM. Decoding it verifies nothing; [`crate::verify`] does.

use crate::certificate::MAX_CERTIFICATE_BYTES;
use crate::chain::MAX_CERTIFICATES;
use crate::claims::Claims;
use crate::manifest::{MAX_MANIFEST_BYTES, SignedManifest};
use crate::report::{REPORT_BYTES, Report};
use crate::wire::{Reader, WireError, Writer};
use alloc::vec::Vec;
use sha2::{Digest, Sha512};

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
    /// What the VM around a nested CVM says.
    pub outer: Option<OuterReport>,
}

/// The report of a VM around a CVM: of the rented confidential VM in which a node runs its CVMs on a software platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OuterReport {
    /// The report's 1184 bytes. Its REPORT_DATA is [`outer_report_data`].
    pub report: Vec<u8>,
    /// The chain in DER, leaf first.
    pub certificates: Vec<Vec<u8>>,
}

const NESTED: &str = "nacre nested 1";

/// REPORT_DATA of an outer report: SHA-512 of what the CVM's own report says, namely its measurement, its HOST_DATA (the
/// manifest) and its REPORT_DATA (key and nonce, by the claims), each after its length.
pub fn outer_report_data(inner: &Report) -> [u8; 64] {
    let bound = Writer::default()
        .string(NESTED.as_bytes())
        .string(&inner.measurement)
        .string(&inner.host_data)
        .string(&inner.report_data);
    Sha512::digest(bound.done()).into()
}

impl Evidence {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = put_report(Writer::new(MAGIC), &self.report, &self.certificates);
        writer = match &self.manifest {
            None => writer.u8(0),
            Some(signed) => writer.u8(1).raw(&signed.signature).string(&signed.manifest),
        };
        writer = writer.string(&self.claims.encode()).set(&self.code);
        match &self.outer {
            None => writer.u8(0),
            Some(outer) => put_report(writer.u8(1), &outer.report, &outer.certificates),
        }
        .done()
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
        let chain = certificates(&mut reader)?;
        let manifest = match reader.flag("manifest")? {
            false => None,
            true => Some(SignedManifest {
                signature: reader.array()?,
                manifest: reader.string("manifest", MAX_MANIFEST_BYTES)?.to_vec(),
            }),
        };
        let claims = Claims::decode(reader.string("claims", 1024)?)?;
        let code = reader.set("code hashes", MAX_CODE)?;
        let outer = match reader.flag("outer report")? {
            false => None,
            true => Some(OuterReport {
                report: reader.string("outer report", REPORT_BYTES)?.to_vec(),
                certificates: certificates(&mut reader)?,
            }),
        };
        reader.end()?;
        Ok(Evidence { report, certificates: chain, manifest, claims, code, outer })
    }
}

/// Most bytes of [`encode_report`].
pub const MAX_REPORT_BYTES: usize = REPORT_BYTES + MAX_CERTIFICATES * (MAX_CERTIFICATE_BYTES + 4) + 5;

/// A report with its chain, as the host hands them to the guest that asked for the report.
pub fn encode_report(report: &[u8], certificates: &[Vec<u8>]) -> Vec<u8> {
    put_report(Writer::default(), report, certificates).done()
}

fn put_report(writer: Writer, report: &[u8], certificates: &[Vec<u8>]) -> Writer {
    let writer = writer.string(report).u8(certificates.len() as u8);
    certificates.iter().fold(writer, |writer, certificate| writer.string(certificate))
}

/// Reads [`encode_report`]'s bytes: the report, and the certificates. Verifies nothing.
///
/// # Errors
/// If they are anything else, or too many.
pub fn decode_report(bytes: &[u8]) -> Result<(&[u8], Vec<Vec<u8>>), WireError> {
    let mut reader = Reader::new(bytes);
    let report = reader.string("report", REPORT_BYTES)?;
    let certificates = certificates(&mut reader)?;
    reader.end()?;
    Ok((report, certificates))
}

fn certificates(reader: &mut Reader<'_>) -> Result<Vec<Vec<u8>>, WireError> {
    let count = usize::from(reader.u8()?);
    if count > MAX_CERTIFICATES {
        return Err(WireError::TooLong("the certificate chain"));
    }
    let mut certificates = Vec::new();
    for _ in 0..count {
        certificates.push(reader.string("certificate", MAX_CERTIFICATE_BYTES)?.to_vec());
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_report_travels_with_its_chain() {
        let chain = vec![vec![1; 900], vec![2; MAX_CERTIFICATE_BYTES], Vec::new()];
        let bytes = encode_report(&[7; REPORT_BYTES], &chain);
        assert!(bytes.len() <= MAX_REPORT_BYTES);
        assert_eq!(decode_report(&bytes), Ok((&[7; REPORT_BYTES][..], chain)));
        for cut in [0, 3, 4 + REPORT_BYTES, bytes.len() - 1] {
            assert!(decode_report(&bytes[..cut]).is_err(), "{cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode_report(&longer).is_err());
        let too_many = vec![Vec::new(); MAX_CERTIFICATES + 1];
        assert!(decode_report(&encode_report(&[], &too_many)).is_err());
        assert!(decode_report(&encode_report(&[0; REPORT_BYTES + 1], &[])).is_err());
    }
}
