//! TLS 1.3 for services in the guest. The node carries the ciphertext between a client and a connection of the
//! program's; this crate stands between the two, so that the program reads and writes plaintext and the host
//! sees ciphertext only. The certificate carries the CVM's evidence (RA-TLS), so that the client knows what it
//! talks to before it says anything.
//!
//! The protocol itself is rustls' (its core without std and without buffers of its own, [`rustls::unbuffered`]).
//! What is here: where its randomness comes from ([`crypto`]), the certificate ([`identity`]), the nonce by which
//! a client asks for fresh evidence ([`name`]), and one connection as the guest runs it ([`connection`]). There
//! is no machine, no clock and no thread in this crate; nothing in it waits. With the feature `client` it has the
//! other end's verifier too.
//!
//! ```text
//!  client                         node                        guest
//!    | ClientHello, SNI = nonce    |                             |
//!    |---------------------------->|---------------------------->| feed
//!    |                             |                             | state() = NeedsEvidence(nonce)
//!    |                             |                             |   ... a report over (nonce, TLS key) ...
//!    |                             |                             | provide_evidence(certificate)
//!    |   ServerHello ... Finished (certificate with evidence)    |
//!    |<----------------------------|<----------------------------| take_ciphertext
//!    | verifies the evidence       |                             |
//!    | Finished                    |                             |
//!    |---------------------------->|---------------------------->| state() = Open
//!    |<=========================== application data ============>| read_plaintext, write_plaintext
//!    | close_notify, each way by itself                          | Read::End; close
//! ```
//!
//! What is left out, on purpose: TLS 1.2, session tickets and resumption, early data, client certificates. See
//! docs/tls.md.
#![cfg_attr(not(any(test, feature = "client")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod buffer;
#[cfg(feature = "client")]
pub mod client;
mod config;
pub mod connection;
pub mod crypto;
pub mod error;
pub mod identity;
mod link;
pub mod name;

pub use config::TlsServer;
pub use connection::{Read, TlsConnection, TlsState};
pub use crypto::{Crypto, NoRandomness, Random};
pub use error::TlsError;
pub use identity::{Certificate, IdentityError, TlsIdentity, TlsSecret};
pub use name::Nonce;
