//! The key a CVM's services answer with, and certificates over it that carry evidence.
//!
//! A certificate is self-signed (nobody else vouches for the key: the evidence does), X.509 v3, valid for ever,
//! with one extension of ours:
//!
//! ```text
//! Extension { extnID = 1.3.6.1.3.110.97.99.114.101.1, critical = FALSE, extnValue = OCTET STRING (evidence) }
//! ```
//!
//! (an arc under "experimental"; the tail spells "nacre"). The evidence binds the certificate's key: the report's
//! claims hold [`TlsIdentity::spki_sha256`] as own key.

use crate::crypto::{Crypto, NoRandomness, p256_secret};
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey as EcdsaKey};
use p256::pkcs8::EncodePublicKey;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{Builder, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::{GeneralizedTime, OctetString, UtcTime};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{DateTime, Encode};
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};
use x509_cert::time::{Time, Validity};
use zeroize::Zeroizing;

/// The extension that holds the evidence. The arc is below "experimental", its tail spells "nacre".
pub const EVIDENCE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.3.110.97.99.114.101.1");

/// Longest evidence in a certificate, in bytes. A client's limit decides: rustls takes 65,535 bytes of
/// handshake message, OpenSSL 100 KiB.
pub const MAX_EVIDENCE_BYTES: usize = 60 << 10;

/// Subject and issuer: it says what the certificate is not.
const SUBJECT: &str = "CN=Nacre CVM - trust the evidence and not this name";

/// Why there is no key or certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The source of randomness failed.
    #[error("there is no randomness for a TLS key")]
    NoRandomness,
    /// The evidence is longer than [`MAX_EVIDENCE_BYTES`].
    #[error("the evidence has {0} bytes: a certificate takes {MAX_EVIDENCE_BYTES}")]
    EvidenceTooLong(usize),
    /// The certificate could not be encoded or signed.
    #[error("the certificate could not be made")]
    Encoding,
}

impl From<NoRandomness> for IdentityError {
    fn from(NoRandomness: NoRandomness) -> IdentityError {
        IdentityError::NoRandomness
    }
}

/// The secret of a TLS key, and nothing else: for callers that say in which memory it lies. It holds no memory beside its
/// own, and is erased when it is dropped.
pub struct TlsSecret(EcdsaKey);

impl fmt::Debug for TlsSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TlsSecret")
    }
}

impl TlsSecret {
    /// A fresh one.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NoRandomness`].
    pub fn generate(crypto: &Crypto) -> Result<TlsSecret, IdentityError> {
        Ok(TlsSecret(EcdsaKey::from(p256_secret(crypto.random())?)))
    }

    /// Its 32 bytes, for whoever moves it to another CVM, sealed.
    pub fn expose(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes().into())
    }

    /// The secret with these bytes; `None` if there is none.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<TlsSecret> {
        p256::SecretKey::from_slice(bytes).ok().map(|secret| TlsSecret(EcdsaKey::from(secret)))
    }
}

/// A CVM's TLS key: ECDSA over P-256, made in the CVM, erased with it. Clones share it.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    key: Arc<Key>,
}

struct Key {
    secret: Place,
    spki: Vec<u8>,
}

/// Where the secret is.
#[derive(Clone)]
enum Place {
    Heap(Arc<TlsSecret>),
    Caller(fn() -> Option<&'static TlsSecret>),
}

impl Place {
    fn get(&self) -> Option<&EcdsaKey> {
        match self {
            Place::Heap(secret) => Some(&secret.0),
            Place::Caller(secret) => secret().map(|secret| &secret.0),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Key").field("spki", &self.spki).finish_non_exhaustive()
    }
}

impl TlsIdentity {
    /// A fresh key.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NoRandomness`].
    pub fn generate(crypto: &Crypto) -> Result<TlsIdentity, IdentityError> {
        TlsIdentity::over(Place::Heap(Arc::new(TlsSecret::generate(crypto)?)))
    }

    /// The identity over a secret that stays where it is: `secret` is asked for it at each signature, and where it has none
    /// any more, or another one, handshakes fail.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Encoding`] if there is none.
    pub fn of(secret: fn() -> Option<&'static TlsSecret>) -> Result<TlsIdentity, IdentityError> {
        TlsIdentity::over(Place::Caller(secret))
    }

    fn over(secret: Place) -> Result<TlsIdentity, IdentityError> {
        let public = secret.get().and_then(|secret| secret.verifying_key().to_public_key_der().ok());
        let spki = public.ok_or(IdentityError::Encoding)?.into_vec();
        Ok(TlsIdentity { key: Arc::new(Key { secret, spki }) })
    }

    /// The public key as the certificate has it: SubjectPublicKeyInfo in DER.
    pub fn spki(&self) -> &[u8] {
        &self.key.spki
    }

    /// SHA-256 of [`TlsIdentity::spki`]: what the evidence's claims have as own key.
    pub fn spki_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.key.spki).into()
    }

    /// A certificate over this key with `evidence` in it. Equal evidence gives equal certificates.
    ///
    /// # Errors
    ///
    /// [`IdentityError::EvidenceTooLong`]; [`IdentityError::Encoding`] cannot happen with a key of ours.
    pub fn certificate(&self, evidence: &[u8]) -> Result<Certificate, IdentityError> {
        if evidence.len() > MAX_EVIDENCE_BYTES {
            return Err(IdentityError::EvidenceTooLong(evidence.len()));
        }
        let secret = self.key.secret.get().ok_or(IdentityError::Encoding)?;
        let der = self.sign(secret, evidence).map_err(|_| IdentityError::Encoding)?;
        let chain = vec![CertificateDer::from(der)];
        Ok(Certificate { key: Arc::new(CertifiedKey::new(chain, self.key.clone())) })
    }

    fn sign(&self, secret: &EcdsaKey, evidence: &[u8]) -> Result<Vec<u8>, x509_cert::builder::Error> {
        let value = OctetString::new(OctetString::new(evidence)?.to_der()?)?;
        // Certificates of one issuer differ in their numbers (RFC 5280, 4.1.2.2); positive, hence the 1 in front.
        let mut serial = [1; 17];
        serial[1..].copy_from_slice(&Sha256::digest(evidence)[..16]);
        let mut builder = CertificateBuilder::new(
            SelfSigned(Name::from_str(SUBJECT)?),
            SerialNumber::new(&serial)?,
            for_ever()?,
            SubjectPublicKeyInfoOwned::try_from(&self.key.spki[..])?,
        )?;
        builder.add_extension(Extension { extn_id: EVIDENCE_OID, critical: false, extn_value: value })?;
        let certificate = builder.build::<_, DerSignature>(secret)?;
        Ok(certificate.to_der()?)
    }
}

/// From 2020 to the end of 9999, which RFC 5280 (4.1.2.5) gives to certificates that do not expire.
fn for_ever() -> x509_cert::der::Result<Validity> {
    let from = DateTime::new(2020, 1, 1, 0, 0, 0)?;
    let to = DateTime::new(9999, 12, 31, 23, 59, 59)?;
    Ok(Validity::new(
        Time::from(UtcTime::from_date_time(from)?),
        Time::from(GeneralizedTime::from_date_time(to)),
    ))
}

/// Issuer and subject are the same, and there are no extensions but ours.
struct SelfSigned(Name);

impl BuilderProfile for SelfSigned {
    fn get_issuer(&self, subject: &Name) -> Name {
        subject.clone()
    }

    fn get_subject(&self) -> Name {
        self.0.clone()
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> x509_cert::builder::Result<Vec<Extension>> {
        Ok(Vec::new())
    }
}

/// A certificate and the key under it. Clones share both.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        self.key.cert.first().map_or(&[], |certificate| certificate.as_ref())
    }

    pub(crate) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let ours = SignatureScheme::ECDSA_NISTP256_SHA256;
        offered.contains(&ours).then(|| Box::new(KeySigner(self.secret.clone())) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(&self.spki[..]))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

/// Signs one handshake. The signature's own nonce is that of RFC 6979, so it needs no randomness.
struct KeySigner(Place);

impl fmt::Debug for KeySigner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeySigner")
    }
}

impl Signer for KeySigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let secret = self.0.get().ok_or_else(|| Error::General("the key is gone".to_string()))?;
        let signature: DerSignature =
            secret.try_sign(message).map_err(|error| Error::General(error.to_string()))?;
        Ok(signature.as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}
