//! The other end, with std: what a client of a CVM's services puts in place of the usual check of certificates.
//! It takes the evidence and the key out of the certificate and asks the caller whether it believes them; rustls
//! checks that whoever it talks to has that key.
//!
//! ```no_run
//! # use nacre_tls::{client, name::Nonce};
//! # fn fresh() -> Nonce { unimplemented!() }
//! # fn verify(_: &client::Shown<'_>) -> Result<(), String> { unimplemented!() }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nonce = fresh();
//! let config = client::config(nonce, |shown| verify(shown))?;
//! let tls = rustls::ClientConnection::new(config.into(), client::server_name(&nonce)?)?;
//! # Ok(())
//! # }
//! ```
//!
//! A configuration is for one nonce, so for one connection. What the caller must check of [`Shown`]: that the
//! evidence satisfies its policy, that the claims' purpose is "nacre tls 1", their own key [`Shown::spki_sha256`],
//! and their nonce [`Shown::nonce`]. A certificate's names, dates and signature say nothing and are not looked at:
//! whoever made it, the handshake proves possession of its key, and the evidence says whose key that is.

use crate::identity::EVIDENCE_OID;
use crate::name::Nonce;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::asn1::OctetString;
use x509_cert::der::{Decode, Encode};

/// What a server showed.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The evidence in its certificate, as it came: nothing about it was checked.
    pub evidence: &'a [u8],
    /// Its public key: SubjectPublicKeyInfo in DER.
    pub spki: &'a [u8],
    /// SHA-256 of the public key: what the claims must have as own key.
    pub spki_sha256: [u8; 32],
    /// The nonce that was asked for: what the claims must have as nonce.
    pub nonce: Nonce,
}

/// Why a certificate was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedCertificate {
    /// There are more certificates than one.
    #[error("the service showed {0} certificates: a Nacre service shows one")]
    Chain(usize),
    /// It does not parse.
    #[error("the service's certificate does not parse")]
    Malformed,
    /// It has no evidence, or more than one.
    #[error("the service's certificate has no evidence in it: this is no Nacre service")]
    NoEvidence,
    /// The connection was made to another name than that of the nonce.
    #[error("the connection was not made to the name that asks for the nonce")]
    OtherName,
    /// The caller did not believe the evidence, for this reason.
    #[error("the evidence was rejected: {0}")]
    Rejected(String),
}

impl From<RefusedCertificate> for Error {
    fn from(reason: RefusedCertificate) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
    }
}

/// The server name that asks for evidence with `nonce`.
///
/// # Errors
///
/// None: the name is always one.
pub fn server_name(nonce: &Nonce) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(nonce.server_name())
}

/// A configuration for one connection to [`server_name`]`(nonce)`: TLS 1.3 only, without resumption, and `judge`
/// says whether to believe what the server shows.
///
/// # Errors
///
/// rustls' own: of a build without TLS 1.3.
pub fn config<J>(nonce: Nonce, judge: J) -> Result<ClientConfig, Error>
where
    J: Fn(&Shown<'_>) -> Result<(), String> + Send + Sync + 'static,
{
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = EvidenceVerifier::new(nonce, provider.clone(), judge);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = true;
    config.enable_early_data = false;
    Ok(config)
}

type Judge = dyn Fn(&Shown<'_>) -> Result<(), String> + Send + Sync;

/// Verifies certificates by the evidence in them: for configurations of one's own. Evidence is the only thing it
/// goes by.
pub struct EvidenceVerifier {
    nonce: Nonce,
    provider: Arc<CryptoProvider>,
    judge: Box<Judge>,
}

impl fmt::Debug for EvidenceVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EvidenceVerifier").field("nonce", &self.nonce).finish_non_exhaustive()
    }
}

impl EvidenceVerifier {
    /// A verifier for one connection, to the name that asks for `nonce`.
    pub fn new<J>(nonce: Nonce, provider: Arc<CryptoProvider>, judge: J) -> EvidenceVerifier
    where
        J: Fn(&Shown<'_>) -> Result<(), String> + Send + Sync + 'static,
    {
        EvidenceVerifier { nonce, provider, judge: Box::new(judge) }
    }

    fn check(
        &self,
        certificate: &[u8],
        others: usize,
        name: &ServerName<'_>,
    ) -> Result<(), RefusedCertificate> {
        if others > 0 {
            return Err(RefusedCertificate::Chain(others + 1));
        }
        let ServerName::DnsName(name) = name else {
            return Err(RefusedCertificate::OtherName);
        };
        if Nonce::of_server_name(name.as_ref()) != Some(self.nonce) {
            return Err(RefusedCertificate::OtherName);
        }
        let certificate = Certificate::from_der(certificate).map_err(|_| RefusedCertificate::Malformed)?;
        let certificate = certificate.tbs_certificate();
        let spki =
            certificate.subject_public_key_info().to_der().map_err(|_| RefusedCertificate::Malformed)?;
        let mut extensions = certificate.extensions().into_iter().flatten();
        let mut ours = extensions.by_ref().filter(|extension| extension.extn_id == EVIDENCE_OID);
        let (Some(extension), None) = (ours.next(), ours.next()) else {
            return Err(RefusedCertificate::NoEvidence);
        };
        let evidence = OctetString::from_der(extension.extn_value.as_bytes())
            .map_err(|_| RefusedCertificate::Malformed)?;
        (self.judge)(&Shown {
            evidence: evidence.as_bytes(),
            spki: &spki,
            spki_sha256: Sha256::digest(&spki).into(),
            nonce: self.nonce,
        })
        .map_err(RefusedCertificate::Rejected)
    }
}

impl ServerCertVerifier for EvidenceVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates.len(), server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
