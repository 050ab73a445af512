//! Who is at the other end of a TLS connection: the key in its certificate is one that is trusted now, and the handshake's signature is
//! made with it. Names, dates and issuers in certificates say nothing and are not looked at.

use super::Core;
use super::identity::fingerprint;
use super::name::Fingerprint;
use super::trust::Trust;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, ServerConfig, SignatureScheme,
};
use std::io;
use std::sync::Arc;

/// What is spoken on a link: no other TLS service takes it for its own.
const PROTOCOL: &[u8] = b"nacre-peer/1";

/// Why a certificate was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// A key that is not trusted.
    #[error("the fingerprint {0} is not trusted")]
    Unknown(Fingerprint),
    /// Not the key that was expected.
    #[error("the fingerprint {0} is not the one that is recorded")]
    Other(Fingerprint),
    /// The node's own key.
    #[error("it is this node itself")]
    Itself,
    /// It was only to be seen.
    #[error("the fingerprint is {0}")]
    Seen(Fingerprint),
    /// No certificate, or a chain of them.
    #[error("it shows no certificate as a node does")]
    Malformed,
}

impl Refused {
    /// The refusal that made a handshake fail here.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref()? {
            Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
                reason.downcast_ref().copied()
            }
            _ => None,
        }
    }
}

impl From<Refused> for Error {
    fn from(reason: Refused) -> Self {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
    }
}

/// Whether the other end said that it does not trust this one.
pub(super) fn refused_there(error: &io::Error) -> bool {
    let alert = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(
        alert,
        Some(Error::AlertReceived(
            AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::CertificateRequired
        ))
    )
}

/// Whom to accept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// Any that is trusted.
    Trusted,
    /// This one, if it is trusted.
    This(Fingerprint),
    /// None: it is only to be seen.
    Nobody,
}

#[derive(Debug)]
struct Verifier {
    trust: Arc<Trust>,
    own: Fingerprint,
    wanted: Wanted,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(core: &Core, wanted: Wanted) -> Arc<Self> {
        let (trust, provider) = (core.trust.clone(), core.provider.clone());
        Arc::new(Self { trust, own: core.identity.fingerprint, wanted, provider })
    }

    fn judge(&self, certificate: &CertificateDer<'_>, others: usize) -> Result<(), Refused> {
        let shown = fingerprint(certificate).filter(|_| others == 0).ok_or(Refused::Malformed)?;
        match self.wanted {
            _ if shown == self.own => Err(Refused::Itself),
            Wanted::Nobody => Err(Refused::Seen(shown)),
            Wanted::This(wanted) if shown != wanted => Err(Refused::Other(shown)),
            _ if self.trust.holds(shown) => Ok(()),
            _ => Err(Refused::Unknown(shown)),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
}

/// TLS 1.2 is not offered; who speaks it all the same is refused.
const TLS12: Error = Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates.len())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates.len())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// For a connection to another node.
pub(super) fn connecting(core: &Core, wanted: Wanted) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(core.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::new(core, wanted))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(core.identity.key.clone())));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

/// For connections of other nodes.
pub(super) fn listening(core: &Core) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(core.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Verifier::new(core, Wanted::Trusted))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(core.identity.key.clone())));
    // A session that is resumed would not ask who is trusted now.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}
