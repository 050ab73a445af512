//! The cryptography that rustls is given. Cipher suites are those of rustls on ring (AES-GCM and ChaCha20, with
//! SHA-2, HMAC and HKDF): they need no randomness. Key exchange and signatures do, and ring takes it from the
//! operating system alone, which the guest has not; so these are X25519 of dalek and P-256 of RustCrypto, fed by
//! the caller's [`Random`].

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use p256::elliptic_curve::sec1::ToSec1Point;
use rustls::crypto::ring::cipher_suite;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, SharedSecret,
    SupportedKxGroup, WebPkiSupportedAlgorithms,
};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use rustls::{Error, NamedGroup, PeerMisbehaved};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// The source of randomness failed; nothing may be done that needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no randomness")]
pub struct NoRandomness;

/// A source of randomness fit for keys. In the guest: a generator seeded by the processor. It is asked on any
/// vCPU and never waited for.
pub trait Random: Send + Sync {
    /// Fills `bytes`.
    ///
    /// # Errors
    ///
    /// [`NoRandomness`]: `bytes` must not be used.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;
}

/// The cryptography of a CVM's connections. rustls wants it to live for ever, so it is a static:
///
/// ```
/// # use nacre_tls::{Crypto, NoRandomness, Random};
/// # struct Generator;
/// # impl Random for Generator {
/// #     fn fill(&self, _: &mut [u8]) -> Result<(), NoRandomness> { Err(NoRandomness) }
/// # }
/// static RANDOM: Generator = Generator;
/// static CRYPTO: Crypto = Crypto::new(&RANDOM);
/// ```
#[derive(Debug)]
pub struct Crypto {
    source: Source,
    x25519: X25519,
    p256: P256,
}

impl Crypto {
    /// Cryptography fed by `random`.
    pub const fn new(random: &'static dyn Random) -> Crypto {
        let source = Source(random);
        Crypto { source, x25519: X25519(source), p256: P256(source) }
    }

    /// Where its randomness comes from.
    pub(crate) const fn random(&self) -> &'static dyn Random {
        self.source.0
    }

    /// The same in rustls' words. Order is preference. It verifies no signatures: a server without client
    /// certificates need not.
    pub fn provider(&'static self) -> Arc<CryptoProvider> {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![&self.x25519, &self.p256],
            signature_verification_algorithms: WebPkiSupportedAlgorithms { all: &[], mapping: &[] },
            secure_random: &self.source,
            key_provider: &NoKeyFiles,
        })
    }
}

#[derive(Clone, Copy)]
struct Source(&'static dyn Random);

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Source")
    }
}

impl SecureRandom for Source {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        self.0.fill(bytes).map_err(|NoRandomness| GetRandomFailed)
    }
}

/// Keys are made here and never loaded.
#[derive(Debug)]
struct NoKeyFiles;

impl KeyProvider for NoKeyFiles {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        Err(Error::General("keys of a CVM are made in it".into()))
    }
}

/// Key exchange over Curve25519 (RFC 7748).
#[derive(Debug)]
struct X25519(Source);

impl SupportedKxGroup for X25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        SecureRandom::fill(&self.0, &mut *bytes)?;
        let secret = StaticSecret::from(*bytes);
        let public = x25519_dalek::PublicKey::from(&secret).to_bytes();
        Ok(Box::new(ActiveX25519 { secret, public }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct ActiveX25519 {
    secret: StaticSecret,
    public: [u8; 32],
}

impl ActiveKeyExchange for ActiveX25519 {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer: [u8; 32] = peer.try_into().map_err(|_| PeerMisbehaved::InvalidKeyShare)?;
        let shared = self.secret.diffie_hellman(&x25519_dalek::PublicKey::from(peer));
        if !shared.was_contributory() {
            return Err(PeerMisbehaved::InvalidKeyShare.into());
        }
        Ok(SharedSecret::from(&shared.as_bytes()[..]))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

/// Key exchange over NIST P-256, for clients that may not use Curve25519.
#[derive(Debug)]
struct P256(Source);

impl SupportedKxGroup for P256 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let secret = p256_secret(self.0.0).map_err(|NoRandomness| Error::FailedToGetRandomBytes)?;
        let public = secret.public_key().to_sec1_point(false).as_bytes().to_vec();
        Ok(Box::new(ActiveP256 { secret, public }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp256r1
    }
}

struct ActiveP256 {
    secret: p256::SecretKey,
    public: Vec<u8>,
}

impl ActiveKeyExchange for ActiveP256 {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        // RFC 8446, 4.2.8.2: uncompressed points only, and they are on the curve.
        if peer.first() != Some(&4) {
            return Err(PeerMisbehaved::InvalidKeyShare.into());
        }
        let peer = p256::PublicKey::from_sec1_bytes(peer).map_err(|_| PeerMisbehaved::InvalidKeyShare)?;
        Ok(SharedSecret::from(&self.secret.diffie_hellman(&peer).raw_secret_bytes()[..]))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp256r1
    }
}

/// A secret scalar of P-256, by rejection: 32 random bytes are one with a probability of 1 - 2^-32.
pub(crate) fn p256_secret(random: &dyn Random) -> Result<p256::SecretKey, NoRandomness> {
    for _ in 0..8 {
        let mut bytes = Zeroizing::new([0; 32]);
        random.fill(&mut *bytes)?;
        if let Ok(secret) = p256::SecretKey::from_slice(&*bytes) {
            return Ok(secret);
        }
    }
    Err(NoRandomness)
}
