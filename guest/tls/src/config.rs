//! What all connections of a CVM have in common, and how rustls is told which certificate to show.

use crate::crypto::Crypto;
use crate::identity::Certificate;
use crate::name::Nonce;
use alloc::boxed::Box;
use alloc::sync::Arc;
use once_cell::race::OnceBox;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{Error, ServerConfig};

/// What connections are made from: the cryptography and the certificate for clients that name no nonce. Clones
/// share both; where the CVM's evidence changes (code was installed), make a new one for the connections to come.
#[derive(Clone, Debug)]
pub struct TlsServer {
    provider: Arc<CryptoProvider>,
    default: Certificate,
}

impl TlsServer {
    /// A server that shows `default` to clients that name no nonce: a certificate whose evidence has a nonce of
    /// zeros.
    pub fn new(crypto: &'static Crypto, default: Certificate) -> TlsServer {
        TlsServer { provider: crypto.provider(), default }
    }

    /// The same with another certificate for clients that name no nonce.
    #[must_use]
    pub fn with_default(&self, default: Certificate) -> TlsServer {
        TlsServer { provider: self.provider.clone(), default }
    }

    /// A connection that shows the default certificate, unless its client names a nonce: then rustls fails it,
    /// and the nonce is in the resolver.
    pub(crate) fn probe(&self) -> Result<(UnbufferedServerConnection, Arc<Probe>), Error> {
        let probe = Arc::new(Probe { default: self.default.certified_key().clone(), asked: OnceBox::new() });
        Ok((self.connection(probe.clone())?, probe))
    }

    /// A connection that shows `certificate` to a client that names `nonce`, and fails for others.
    pub(crate) fn answer(
        &self,
        nonce: Nonce,
        certificate: &Certificate,
    ) -> Result<UnbufferedServerConnection, Error> {
        self.connection(Arc::new(Answer { nonce, key: certificate.certified_key().clone() }))
    }

    fn connection(&self, resolver: Arc<dyn ResolvesServerCert>) -> Result<UnbufferedServerConnection, Error> {
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), Arc::new(NoClock))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        // Said, not left to defaults: these depend on rustls' features.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.send_half_rtt_data = false;
        UnbufferedServerConnection::new(Arc::new(config))
    }
}

/// The time is always the same: only tickets and client certificates would ask, and there are none.
#[derive(Debug)]
struct NoClock;

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(core::time::Duration::ZERO))
    }
}

fn nonce_of(hello: &ClientHello<'_>) -> Option<Nonce> {
    Nonce::of_server_name(hello.server_name()?)
}

/// Finds out what the client asks for.
#[derive(Debug)]
pub struct Probe {
    default: Arc<CertifiedKey>,
    asked: OnceBox<Nonce>,
}

impl Probe {
    /// The nonce the client named.
    pub fn asked(&self) -> Option<Nonce> {
        self.asked.get().copied()
    }
}

impl ResolvesServerCert for Probe {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(nonce) = nonce_of(&hello) else {
            return Some(self.default.clone());
        };
        // A second answer to one client would be a second hello, with the same name: rustls sees to that.
        let _ = self.asked.set(Box::new(nonce));
        None
    }
}

/// Shows one certificate to the client that asked for it.
#[derive(Debug)]
struct Answer {
    nonce: Nonce,
    key: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Answer {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        (nonce_of(&hello) == Some(self.nonce)).then(|| self.key.clone())
    }
}
