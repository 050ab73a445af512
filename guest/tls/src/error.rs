//! Why a connection ended otherwise than by close_notify.

use rustls::Error;

/// What went wrong with a connection. All of them but [`TlsError::NotWaiting`] and [`TlsError::WriteClosed`] end
/// it; the client is told by an alert where TLS has one, which [`crate::TlsConnection::take_ciphertext`] still
/// gives out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// Bytes that are no TLS, or a message that does not parse.
    #[error("the client does not speak TLS: connect to this service with TLS 1.3")]
    Malformed,
    /// The first message is longer than [`crate::connection::MAX_HELLO_BYTES`].
    #[error("the client's first message is too long")]
    HelloTooLong,
    /// The client has no version, cipher suite, group or signature in common with us.
    #[error(
        "the client and this service have no TLS in common: it takes TLS 1.3 with X25519 or P-256, and ECDSA P-256"
    )]
    Incompatible,
    /// A message that TLS forbids at this point.
    #[error("the client broke the rules of TLS")]
    Misbehaved,
    /// A record whose authentication tag is wrong: bytes were changed, reordered or repeated on the way.
    #[error("a record was changed on its way: the connection is closed")]
    Forged,
    /// A record or a handshake message beyond the limits.
    #[error("the client sent a record or message beyond the limit")]
    TooLong,
    /// The client gave up, with this alert (RFC 8446, section 6).
    #[error("the client closed the connection with TLS alert {0}")]
    PeerAlert(u8),
    /// The ciphertext ended without the client's close_notify: what came may be less than what was sent.
    #[error("the connection was cut off before its end: what was read may be incomplete")]
    Truncated,
    /// The evidence the client asked for could not be had.
    #[error("there is no evidence for this connection: try again later")]
    NoEvidence,
    /// [`crate::TlsConnection::provide_evidence`] of a connection that did not ask.
    #[error("this connection does not wait for evidence")]
    NotWaiting,
    /// Plaintext after our close_notify.
    #[error("this connection's sending side is closed")]
    WriteClosed,
    /// The source of randomness failed.
    #[error("there is no randomness: the connection is closed")]
    NoRandomness,
    /// The keys are used up, or rustls met something that cannot be.
    #[error("TLS failed inside: the connection is closed")]
    Internal,
}

impl From<Error> for TlsError {
    fn from(error: Error) -> TlsError {
        match error {
            Error::InvalidMessage(rustls::InvalidMessage::MessageTooLarge)
            | Error::InvalidMessage(rustls::InvalidMessage::HandshakePayloadTooLarge)
            | Error::PeerSentOversizedRecord => TlsError::TooLong,
            Error::InvalidMessage(_) | Error::UnsupportedNameType => TlsError::Malformed,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => TlsError::Incompatible,
            Error::PeerMisbehaved(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. } => TlsError::Misbehaved,
            Error::DecryptError => TlsError::Forged,
            Error::AlertReceived(alert) => TlsError::PeerAlert(u8::from(alert)),
            Error::FailedToGetRandomBytes => TlsError::NoRandomness,
            _ => TlsError::Internal,
        }
    }
}
