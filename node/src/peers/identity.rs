//! The node's own key: ECDSA over P-256, made at the first start, and a certificate over it that nobody but the node itself has
//! signed. Other nodes look at the key in it and at nothing else.

use super::error::PeersError;
use super::files;
use super::name::Fingerprint;
use crate::names::random;
use p256::SecretKey;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::{GeneralizedTime, UtcTime};
use x509_cert::der::{DateTime, EncodePem};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};
use x509_cert::time::{Time, Validity};

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";
/// Subject and issuer: it says what the certificate is not.
const SUBJECT: &str = "CN=Nacre node - trust the fingerprint and not this name";

/// The key, its certificate, and who that makes the node.
#[derive(Debug)]
pub(super) struct Identity {
    /// What the node shows in handshakes.
    pub(super) key: Arc<CertifiedKey>,
    /// Who it is.
    pub(super) fingerprint: Fingerprint,
}

impl Identity {
    /// Reads the key in `dir`; makes one if there is none.
    pub(super) fn open(dir: &Path, provider: &CryptoProvider) -> Result<Self, PeersError> {
        let (key_path, certificate_path) = (dir.join(KEY), dir.join(CERTIFICATE));
        let malformed = |path: &Path, problem: &str, remedy| PeersError::Malformed {
            path: path.to_owned(),
            problem: problem.to_owned(),
            remedy,
        };
        let (key, certificate) = match (files::read(&key_path)?, files::read(&certificate_path)?) {
            (Some(key), Some(certificate)) => (key, certificate),
            // A start that was cut off between the two, or nothing yet.
            (key, None) => make(key, &key_path, &certificate_path)?,
            (None, Some(_)) => {
                let remedy = "restore it, or remove certificate.pem for a new identity";
                return Err(malformed(&key_path, "is missing beside its certificate", remedy));
            }
        };
        const REMEDY: &str = "restore it, or remove key.pem and certificate.pem for a new identity";
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| malformed(&key_path, "is no key in PEM", REMEDY))?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| malformed(&certificate_path, "is no certificate in PEM", REMEDY))?;
        let fingerprint = fingerprint(&certificate)
            .ok_or_else(|| malformed(&certificate_path, "is no certificate", REMEDY))?;
        let key = CertifiedKey::from_der(vec![certificate], key, provider)
            .map_err(|error| malformed(&key_path, &format!("does not fit: {error}"), REMEDY))?;
        Ok(Self { key: Arc::new(key), fingerprint })
    }
}

/// Whose certificate this is; none if it is not one.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Option<Fingerprint> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(Fingerprint::of_key(&parsed.subject_public_key_info()))
}

/// Makes what is missing, and writes it.
fn make(
    key: Option<String>,
    key_path: &Path,
    certificate_path: &Path,
) -> Result<(String, String), PeersError> {
    let failed = |error: &dyn std::fmt::Display| PeersError::Key(error.to_string());
    let key = match key {
        Some(key) => key,
        None => {
            let key = generate().to_pkcs8_pem(LineEnding::LF).map_err(|error| failed(&error))?;
            files::write(key_path, key.as_bytes())?;
            key.to_string()
        }
    };
    let secret = SigningKey::from_pkcs8_pem(&key).map_err(|_| PeersError::Malformed {
        path: key_path.to_owned(),
        problem: "is no key in PEM".to_owned(),
        remedy: "restore it, or remove it for a new identity",
    })?;
    let certificate = certificate(&secret).map_err(|error| failed(&error))?;
    files::write(certificate_path, certificate.as_bytes())?;
    Ok((key, certificate))
}

/// A fresh key.
fn generate() -> SecretKey {
    loop {
        let mut bytes = [0; 32];
        random(&mut bytes);
        // One number in 2^32 is none of the curve's.
        if let Ok(key) = SecretKey::from_slice(&bytes) {
            return key;
        }
    }
}

/// A certificate in PEM.
fn certificate(key: &SigningKey) -> Result<String, builder::Error> {
    let spki = key.verifying_key().to_public_key_der()?;
    let mut serial = [1; 17];
    random(&mut serial[1..]);
    let mut builder = CertificateBuilder::new(
        SelfSigned(Name::from_str(SUBJECT)?),
        SerialNumber::new(&serial)?,
        for_ever()?,
        SubjectPublicKeyInfoOwned::try_from(spki.as_bytes())?,
    )?;
    // A certificate without any extension is one of version 1, which rustls does not read.
    builder.add_extension(&BasicConstraints { ca: false, path_len_constraint: None })?;
    Ok(builder.build::<_, DerSignature>(key)?.to_pem(LineEnding::LF)?)
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

/// Issuer and subject are the same; extensions are added one by one.
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
    ) -> builder::Result<Vec<Extension>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn open(dir: &Path) -> Result<Fingerprint, PeersError> {
        let provider = rustls::crypto::ring::default_provider();
        Identity::open(dir, &provider).map(|identity| identity.fingerprint)
    }

    #[test]
    fn a_node_stays_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        for name in [KEY, CERTIFICATE] {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(open(dir.path()).unwrap(), first);
        // A first start that was cut off before the certificate.
        std::fs::remove_file(dir.path().join(CERTIFICATE)).unwrap();
        assert_eq!(open(dir.path()).unwrap(), first);
        assert_ne!(open(tempfile::tempdir().unwrap().path()).unwrap(), first);
    }

    #[test]
    fn what_does_not_fit_is_told_and_left_alone() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&dir, &other] {
            open(dir.path()).unwrap();
        }
        std::fs::copy(other.path().join(CERTIFICATE), dir.path().join(CERTIFICATE)).unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("does not fit"));
        for (name, text) in [(CERTIFICATE, "is no certificate in PEM"), (KEY, "is no key in PEM")] {
            std::fs::write(other.path().join(name), "rubbish").unwrap();
            assert!(open(other.path()).unwrap_err().to_string().contains(text));
            assert_eq!(std::fs::read(other.path().join(name)).unwrap(), b"rubbish");
        }
        std::fs::remove_file(dir.path().join(KEY)).unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("missing"));
    }
}
