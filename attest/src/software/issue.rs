//! Keys and certificates of a software platform, all of them marked: root and intermediate authority on P-256, and one VCEK
//! per node on P-384, as reports need it.

use super::{SoftwareError, TCB};
use crate::certificate::{Certificate, ECDSA_SHA256, ECDSA_SHA384, PublicKey, SECP256R1, SECP384R1};
use crate::chain::oid;
use crate::software_mark;
use der::asn1::{Any, BitString, Ia5StringRef, ObjectIdentifier, OctetString};
use der::{Decode, Encode, Sequence};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// How long certificates are valid: 20 years.
const LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// How far clocks of the machines of one developer may be apart.
const CLOCK_SKEW: Duration = Duration::from_secs(86_400);

#[derive(Sequence)]
struct Tbs {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial: SerialNumber,
    signature: Any,
    issuer: Name,
    validity: Validity,
    subject: Name,
    key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

#[derive(Sequence)]
struct Signed {
    tbs: Any,
    algorithm: Any,
    signature: BitString,
}

/// A key and its certificate.
pub(super) struct Issued {
    /// PKCS #8 in DER.
    pub key: Vec<u8>,
    /// The certificate in DER.
    pub certificate: Vec<u8>,
}

/// A root and its intermediate authority.
pub struct Root {
    pub(super) root: Issued,
    pub(super) intermediate: Issued,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").finish_non_exhaustive()
    }
}

/// A node's key.
pub struct NodeKey {
    name: String,
    issued: Issued,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").field("name", &self.name).finish_non_exhaustive()
    }
}

impl NodeKey {
    pub(super) fn new(name: &str, issued: Issued) -> Result<NodeKey, SoftwareError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || name.len() > 64 || !name.chars().all(fine) {
            return Err(SoftwareError::NodeName);
        }
        Ok(NodeKey { name: name.to_string(), issued })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// PKCS #8 in DER.
    pub fn key(&self) -> &[u8] {
        &self.issued.key
    }

    /// The certificate in DER.
    pub fn certificate(&self) -> &[u8] {
        &self.issued.certificate
    }
}

impl Root {
    /// Makes a root and its intermediate authority.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn generate() -> Result<Root, SoftwareError> {
        let (root_key, intermediate_key) = (generate_key(Curve::P256)?, generate_key(Curve::P256)?);
        let certificate = |subject: &str, key: &CurveKey, signer: &CurveKey| {
            let mut extensions = authority_extensions()?;
            extensions.push(mark());
            issue(software_mark::ROOT, subject, key, signer, extensions)
        };
        let (root, intermediate) = (key_pair(&root_key)?, key_pair(&intermediate_key)?);
        let root_certificate = certificate(software_mark::ROOT, &root, &root)?;
        let certificate = certificate(software_mark::ISSUER, &intermediate, &root)?;
        Ok(Root {
            root: Issued { key: root_key, certificate: root_certificate },
            intermediate: Issued { key: intermediate_key, certificate },
        })
    }

    /// Issues a key to a node. Its chip identity follows from the name.
    ///
    /// # Errors
    /// If it is no name, or there are no random numbers.
    pub fn issue_vcek(&self, node: &str) -> Result<NodeKey, SoftwareError> {
        // The name is judged before it goes into a certificate.
        let named = NodeKey::new(node, Issued { key: Vec::new(), certificate: Vec::new() })?;
        let key = generate_key(Curve::P384)?;
        let mut extensions = Vec::new();
        let parts = [
            (oid::BOOTLOADER, TCB.bootloader),
            (oid::TEE, TCB.tee),
            (oid::SNP, TCB.snp),
            (oid::MICROCODE, TCB.microcode),
        ];
        for (oid, value) in parts {
            extensions.push(extension(oid, false, &encoded(&value)?)?);
        }
        let product = Ia5StringRef::new("Nacre software platform").map_err(encoding)?;
        extensions.push(extension(oid::PRODUCT_NAME, false, &encoded(&product)?)?);
        extensions.push(extension(oid::HARDWARE_ID, false, &software_mark::chip_id(node))?);
        extensions.push(mark());
        let subject = format!("NACRE SOFTWARE VCEK {node}");
        let signer = key_pair(&self.intermediate.key)?;
        let certificate = issue(software_mark::ISSUER, &subject, &key_pair(&key)?, &signer, extensions)?;
        Ok(NodeKey { issued: Issued { key, certificate }, ..named })
    }

    /// Certificates above a node's: intermediate and root, in DER.
    pub fn above(&self) -> [Vec<u8>; 2] {
        [self.intermediate.certificate.clone(), self.root.certificate.clone()]
    }
}

fn encoding(_: der::Error) -> SoftwareError {
    SoftwareError::Crypto("encode a certificate")
}

pub(crate) fn encoded(value: &impl Encode) -> Result<Vec<u8>, SoftwareError> {
    value.to_der().map_err(encoding)
}

pub(crate) fn extension(
    oid: ObjectIdentifier,
    critical: bool,
    value: &[u8],
) -> Result<Extension, SoftwareError> {
    let extn_value = OctetString::new(value).map_err(encoding)?;
    Ok(Extension { extn_id: oid, critical, extn_value })
}

fn mark() -> Extension {
    extension(software_mark::OID, true, software_mark::VALUE).expect("a short value")
}

pub(crate) fn authority_extensions() -> Result<Vec<Extension>, SoftwareError> {
    let constraints = BasicConstraints { ca: true, path_len_constraint: None };
    let usage = KeyUsage(KeyUsages::KeyCertSign.into());
    Ok(vec![
        extension(ObjectIdentifier::new_unwrap("2.5.29.19"), true, &encoded(&constraints)?)?,
        extension(ObjectIdentifier::new_unwrap("2.5.29.15"), true, &encoded(&usage)?)?,
    ])
}

/// The curve of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Curve {
    /// Of authorities.
    P256,
    /// Of VCEKs.
    P384,
}

impl Curve {
    fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Curve::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
            Curve::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
        }
    }

    fn oid(self) -> ObjectIdentifier {
        match self {
            Curve::P256 => SECP256R1,
            Curve::P384 => SECP384R1,
        }
    }

    /// AlgorithmIdentifier of its signatures.
    fn signature(self) -> &'static [u8] {
        match self {
            Curve::P256 => ECDSA_SHA256,
            Curve::P384 => ECDSA_SHA384,
        }
    }
}

/// A key that can sign, and its curve.
pub(crate) struct CurveKey {
    curve: Curve,
    pair: EcdsaKeyPair,
}

/// A new key in PKCS #8.
pub(crate) fn generate_key(curve: Curve) -> Result<Vec<u8>, SoftwareError> {
    EcdsaKeyPair::generate_pkcs8(curve.signing(), &SystemRandom::new())
        .map(|document| document.as_ref().to_vec())
        .map_err(|_| SoftwareError::Crypto("generate a key"))
}

/// Reads one, of either curve.
pub(crate) fn key_pair(pkcs8: &[u8]) -> Result<CurveKey, SoftwareError> {
    let read = |curve: Curve| {
        let pair = EcdsaKeyPair::from_pkcs8(curve.signing(), pkcs8, &SystemRandom::new()).ok()?;
        Some(CurveKey { curve, pair })
    };
    read(Curve::P256).or_else(|| read(Curve::P384)).ok_or(SoftwareError::Crypto("read a key"))
}

/// That a private key belongs to a certificate.
pub(super) fn belongs(issued: &Issued) -> bool {
    let (Ok(key), Ok(certificate)) = (key_pair(&issued.key), Certificate::parse(&issued.certificate)) else {
        return false;
    };
    let public = key.pair.public_key().as_ref().to_vec();
    certificate.key
        == match key.curve {
            Curve::P256 => PublicKey::P256(public),
            Curve::P384 => PublicKey::P384(public),
        }
}

/// Signs a certificate.
pub(crate) fn issue(
    issuer: &str,
    subject: &str,
    key: &CurveKey,
    signer: &CurveKey,
    extensions: Vec<Extension>,
) -> Result<Vec<u8>, SoftwareError> {
    let name = |common: &str| format!("CN={common},O=Nacre").parse::<Name>().map_err(encoding);
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| SoftwareError::Crypto("draw a serial number"))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = |at: Duration| {
        let at = Duration::from_secs(at.as_secs());
        x509_cert::der::asn1::UtcTime::from_unix_duration(at).map(Time::UtcTime).map_err(encoding)
    };
    let curve = Any::encode_from(&key.curve.oid()).map_err(encoding)?;
    let tbs = Tbs {
        version: 2,
        serial: SerialNumber::new(&serial).map_err(encoding)?,
        signature: Any::from_der(signer.curve.signature()).map_err(encoding)?,
        issuer: name(issuer)?,
        validity: Validity::new(time(now.saturating_sub(CLOCK_SKEW))?, time(now + LIFETIME)?),
        subject: name(subject)?,
        key: SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned { oid: EC_PUBLIC_KEY, parameters: Some(curve) },
            subject_public_key: BitString::from_bytes(key.pair.public_key().as_ref()).map_err(encoding)?,
        },
        extensions,
    };
    let tbs = encoded(&tbs)?;
    let signature = signer
        .pair
        .sign(&SystemRandom::new(), &tbs)
        .map_err(|_| SoftwareError::Crypto("sign a certificate"))?;
    encoded(&Signed {
        tbs: Any::from_der(&tbs).map_err(encoding)?,
        algorithm: Any::from_der(signer.curve.signature()).map_err(encoding)?,
        signature: BitString::from_bytes(signature.as_ref()).map_err(encoding)?,
    })
}
