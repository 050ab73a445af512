//! One X.509 certificate, as far as AMD's and ours go: signed by RSA-PSS with SHA-384, or by ECDSA on P-384 with SHA-384 or on
//! P-256 with SHA-256 (authorities of software platforms, because that is verified in a tenth of the time). What is verified are the very bytes that were given, never a second encoding of them.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use der::asn1::{BitStringRef, ObjectIdentifier, UintRef};
use der::{Decode, Encode, Reader, SliceReader};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey,
    VerificationAlgorithm,
};
use sha2::{Digest, Sha256};
use x509_cert::TbsCertificate;
use x509_cert::ext::pkix::BasicConstraints;

/// Largest certificate that is read. AMD's have 1.3 to 1.7 KiB.
pub const MAX_CERTIFICATE_BYTES: usize = 8 << 10;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
pub(crate) const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
pub(crate) const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
/// Marks certificates of software platforms; see [`crate::software_mark`].
pub(crate) const SOFTWARE_MARK: ObjectIdentifier = crate::software_mark::OID;

/// AlgorithmIdentifier of RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt, without and with the trailer
/// field (whose default AMD writes out in some certificates).
const PSS_SHA384: [&[u8]; 2] = [
    b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\
      \x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\
      \x03\x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30",
    b"\x30\x46\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x39\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\
      \x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\
      \x03\x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01",
];
/// AlgorithmIdentifier of ecdsa-with-SHA256.
pub(crate) const ECDSA_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// AlgorithmIdentifier of ecdsa-with-SHA384.
pub(crate) const ECDSA_SHA384: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03";

/// What is wrong with a certificate by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Longer than [`MAX_CERTIFICATE_BYTES`].
    #[error("it is longer than {MAX_CERTIFICATE_BYTES} bytes")]
    TooLong,
    /// Not DER of an X.509 certificate, or bytes follow.
    #[error("it is no certificate in DER")]
    Malformed,
    /// The two places that name the signature algorithm differ, or name none that is used here.
    #[error(
        "its signature algorithm is none of RSA-PSS and ECDSA P-384 with SHA-384, and ECDSA P-256 with SHA-256"
    )]
    Algorithm,
    /// Neither an RSA key nor one on P-256 or P-384.
    #[error("its key is neither RSA nor on P-256 or P-384")]
    Key,
    /// An extension that must be understood is not, or is there twice.
    #[error("it has an extension that is not known or is there twice")]
    Extension,
    /// Subject or issuer have no common name, or several.
    #[error("its names have no single common name")]
    Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    RsaPss,
    EcdsaP256,
    EcdsaP384,
}

/// The public key that a certificate is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// RSAPublicKey in DER (PKCS #1).
    Rsa(Vec<u8>),
    /// A point on P-256, uncompressed: 65 bytes.
    P256(Vec<u8>),
    /// A point on P-384, uncompressed: 97 bytes.
    P384(Vec<u8>),
}

/// An extension: its identifier, and its value undecoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Which it is.
    pub oid: ObjectIdentifier,
    /// The bytes of its value.
    pub value: Vec<u8>,
}

/// A certificate that could be read. Nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    signed: Vec<u8>,
    signature: Vec<u8>,
    algorithm: Algorithm,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    /// Common name of the subject.
    pub subject_name: String,
    /// Common name of the issuer.
    pub issuer_name: String,
    /// Serial number, big-endian. All VCEKs have 0.
    pub serial: Vec<u8>,
    /// Seconds since 1970 from which it is valid.
    pub not_before: u64,
    /// Seconds since 1970 until which it is valid.
    pub not_after: u64,
    /// The subject's key.
    pub key: PublicKey,
    /// All extensions.
    pub extensions: Vec<Extension>,
}

impl Certificate {
    /// Reads DER.
    ///
    /// # Errors
    /// If it is no certificate of the kind used here.
    pub fn parse(der: &[u8]) -> Result<Certificate, CertificateError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::TooLong);
        }
        let (signed, outer, signature) = split(der).map_err(|_| CertificateError::Malformed)?;
        let tbs = TbsCertificate::from_der(signed).map_err(|_| CertificateError::Malformed)?;
        let inner = tbs.signature().to_der().map_err(|_| CertificateError::Malformed)?;
        let algorithm = match outer {
            _ if outer != inner => return Err(CertificateError::Algorithm),
            ECDSA_SHA256 => Algorithm::EcdsaP256,
            ECDSA_SHA384 => Algorithm::EcdsaP384,
            _ if PSS_SHA384.contains(&outer) => Algorithm::RsaPss,
            _ => return Err(CertificateError::Algorithm),
        };
        let name = |name: &x509_cert::name::Name| name.to_der().map_err(|_| CertificateError::Malformed);
        Ok(Certificate {
            der: der.to_vec(),
            signed: signed.to_vec(),
            signature: signature.to_vec(),
            algorithm,
            subject: name(tbs.subject())?,
            issuer: name(tbs.issuer())?,
            subject_name: common_name(tbs.subject())?,
            issuer_name: common_name(tbs.issuer())?,
            serial: tbs.serial_number().as_bytes().to_vec(),
            not_before: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
            key: public_key(&tbs)?,
            extensions: extensions(&tbs)?,
        })
    }

    /// The DER it was read from.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of its DER: what policies call it by, if it is signed by RSA.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// SHA-256 of the part that is signed. Whoever has a certificate signed by ECDSA can make another one of it, with another
    /// signature that is as good: this is the same in both.
    pub fn signed_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.signed).into()
    }

    /// Whether that one's key signed this one, and this one names it as its issuer.
    pub fn is_signed_by(&self, issuer: &Certificate) -> bool {
        let (algorithm, key): (&dyn VerificationAlgorithm, _) = match (self.algorithm, &issuer.key) {
            (Algorithm::RsaPss, PublicKey::Rsa(key)) => (&RSA_PSS_2048_8192_SHA384, key),
            (Algorithm::EcdsaP256, PublicKey::P256(key)) => (&ECDSA_P256_SHA256_ASN1, key),
            (Algorithm::EcdsaP384, PublicKey::P384(key)) => (&ECDSA_P384_SHA384_ASN1, key),
            _ => return false,
        };
        self.names_as_issuer(issuer)
            && UnparsedPublicKey::new(algorithm, key).verify(&self.signed, &self.signature).is_ok()
    }

    /// Whether this one names that one as its issuer.
    pub fn names_as_issuer(&self, issuer: &Certificate) -> bool {
        self.issuer == issuer.subject
    }

    /// The value of an extension.
    pub fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        self.extensions.iter().find(|extension| extension.oid == oid).map(|found| found.value.as_slice())
    }

    /// Whether it may sign certificates.
    pub fn is_authority(&self) -> bool {
        let value = self.extension(BASIC_CONSTRAINTS);
        value.is_some_and(|value| BasicConstraints::from_der(value).is_ok_and(|it| it.ca))
    }

    /// Whether it carries the mark of software platforms.
    pub fn has_software_mark(&self) -> bool {
        self.extension(SOFTWARE_MARK).is_some()
    }
}

/// The signed part, the signature's algorithm (both as they are encoded) and the signature.
fn split(der: &[u8]) -> der::Result<(&[u8], &[u8], &[u8])> {
    let mut outer = SliceReader::new(der)?;
    let parts = outer.sequence(|inner: &mut SliceReader<'_>| {
        let signed = inner.tlv_bytes()?;
        let algorithm = inner.tlv_bytes()?;
        let signature = BitStringRef::decode(inner)?;
        let signature = signature.as_bytes().ok_or(der::Error::from(der::ErrorKind::Failed))?;
        Ok::<_, der::Error>((signed, algorithm, signature))
    })?;
    outer.finish()?;
    Ok(parts)
}

fn common_name(name: &x509_cert::name::Name) -> Result<String, CertificateError> {
    let mut found = name.iter().filter(|one| one.oid == COMMON_NAME);
    let (Some(one), None) = (found.next(), found.next()) else { return Err(CertificateError::Name) };
    let text = core::str::from_utf8(one.value.value()).map_err(|_| CertificateError::Name)?;
    // It is shown to people.
    if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
        return Err(CertificateError::Name);
    }
    Ok(text.to_string())
}

fn public_key(tbs: &TbsCertificate) -> Result<PublicKey, CertificateError> {
    let info = tbs.subject_public_key_info();
    let bytes = info.subject_public_key.as_bytes().ok_or(CertificateError::Key)?.to_vec();
    if info.algorithm.oid == RSA_ENCRYPTION && is_rsa_key(&bytes) {
        return Ok(PublicKey::Rsa(bytes));
    }
    let curve = info.algorithm.parameters.as_ref().and_then(|it| it.decode_as::<ObjectIdentifier>().ok());
    match curve.filter(|_| info.algorithm.oid == EC_PUBLIC_KEY && bytes.first() == Some(&4)) {
        Some(SECP256R1) if bytes.len() == 65 => Ok(PublicKey::P256(bytes)),
        Some(SECP384R1) if bytes.len() == 97 => Ok(PublicKey::P384(bytes)),
        _ => Err(CertificateError::Key),
    }
}

/// Whether these bytes are an RSAPublicKey of 4096 bits, the only size AMD uses.
fn is_rsa_key(bytes: &[u8]) -> bool {
    let parse = || -> der::Result<usize> {
        let mut outer = SliceReader::new(bytes)?;
        let bits = outer.sequence(|inner: &mut SliceReader<'_>| {
            let modulus = UintRef::decode(inner)?;
            UintRef::decode(inner)?;
            Ok::<_, der::Error>(modulus.as_bytes().len() * 8)
        })?;
        outer.finish()?;
        Ok(bits)
    };
    parse().is_ok_and(|bits| bits == 4096)
}

fn extensions(tbs: &TbsCertificate) -> Result<Vec<Extension>, CertificateError> {
    let mut all: Vec<Extension> = Vec::new();
    for extension in tbs.extensions().map(Vec::as_slice).unwrap_or_default() {
        let oid = extension.extn_id;
        let known = [BASIC_CONSTRAINTS, KEY_USAGE, SOFTWARE_MARK].contains(&oid);
        if (extension.critical && !known) || all.iter().any(|before| before.oid == oid) {
            return Err(CertificateError::Extension);
        }
        all.push(Extension { oid, value: extension.extn_value.as_bytes().to_vec() });
    }
    Ok(all)
}
