//! A tunnel to a sealed service: plain TCP here, TLS 1.3 to the CVM, whose certificate carries its evidence (RA-TLS).
//!
//! ```text
//! program --plain, local--> tunnel ==TLS, nonce in the server name==> node ==> CVM
//!                                  <== certificate with evidence over (nonce, TLS key): verified, or the connection ends
//! ```
//! Each connection asks for evidence with a nonce of its own, and nothing of the program is sent before it is accepted.

use crate::random_bytes;
use crate::session::SessionError;
use nacre_attest::claims::{Label, Role};
use nacre_attest::evidence::Evidence;
use nacre_attest::manifest::Mode;
use nacre_attest::policy::Policy;
use nacre_attest::verify::{Expect, verify};
use nacre_tls::Nonce;
use nacre_tls::client::{Shown, config, server_name};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest wait for a connection, and for the CVM's evidence.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a connection that could not be taken: descriptors may be used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no connection to a service.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The policy is not one for sealed CVMs.
    #[error(transparent)]
    Policy(SessionError),
    /// The service can't be reached, shows no evidence that the policy accepts, or breaks the protocol.
    #[error("{address}: {error}; nothing was sent")]
    Connect {
        /// Where.
        address: String,
        /// What happened.
        error: io::Error,
    },
}

/// A way to one service.
#[derive(Clone, Debug)]
pub struct Tunnel {
    address: String,
    policy: Arc<Policy>,
    chain: Arc<Vec<Vec<u8>>>,
}

impl Tunnel {
    /// To the service at `address`, HOST:PORT. `chain` is for evidence that comes without certificates; it is judged all the same.
    ///
    /// # Errors
    /// `Policy` if the policy names no owner, or wants an open CVM.
    pub fn new(address: String, policy: Policy, chain: Vec<Vec<u8>>) -> Result<Tunnel, TunnelError> {
        match policy.manifest {
            None => Err(TunnelError::Policy(SessionError::NoOwner)),
            Some(rule) if rule.mode != Mode::Sealed => Err(TunnelError::Policy(SessionError::OpenPolicy)),
            Some(_) => Ok(Tunnel { address, policy: Arc::new(policy), chain: Arc::new(chain) }),
        }
    }

    /// A connection to the service, whose evidence was accepted.
    ///
    /// # Errors
    /// `Connect`.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>, TunnelError> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
        let done = tokio::time::timeout(PATIENCE, self.handshake()).await.unwrap_or_else(|_| Err(late()));
        done.map_err(|error| TunnelError::Connect { address: self.address.clone(), error })
    }

    async fn handshake(&self) -> io::Result<TlsStream<TcpStream>> {
        let nonce = Nonce::new(random_bytes());
        let (policy, chain) = (self.policy.clone(), self.chain.clone());
        let config = config(nonce, move |shown| judge(shown, &policy, &chain)).map_err(io::Error::other)?;
        let name = server_name(&nonce).map_err(io::Error::other)?;
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Takes connections and carries each to the service, for ever. `failed` is told why one was not.
    pub async fn serve(&self, listener: TcpListener, failed: impl Fn(&TunnelError) + Clone + Send + 'static) {
        loop {
            let Ok((program, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (tunnel, failed) = (self.clone(), failed.clone());
            tokio::spawn(async move {
                match tunnel.connect().await {
                    Ok(service) => carry(program, service).await,
                    Err(error) => failed(&error),
                }
            });
        }
    }
}

async fn carry(mut program: TcpStream, mut service: impl AsyncRead + AsyncWrite + Unpin) {
    // It ends as either end wants; both see the other's end, or its break.
    let _ = program.set_nodelay(true);
    if tokio::io::copy_bidirectional(&mut program, &mut service).await.is_err() {
        // What the service said may be cut: the program must not take that for its end. It sees a connection that was reset.
        let _ = program.set_zero_linger();
    }
}

/// Judges what a service shows.
fn judge(shown: &Shown<'_>, policy: &Policy, chain: &[Vec<u8>]) -> Result<(), String> {
    let mut evidence = Evidence::decode(shown.evidence).map_err(|error| error.to_string())?;
    if evidence.certificates.is_empty() {
        evidence.certificates = chain.to_vec();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let expect = Expect { nonce: *shown.nonce.bytes(), label: Label::Tls, role: Role::Cvm, now: Some(now) };
    let verdict = verify(&evidence, policy, &expect);
    if !verdict.accepted() {
        let failed = verdict.failed().map(|rule| format!("{} ({})", rule.name, rule.detail));
        return Err(failed.collect::<Vec<_>>().join(", "));
    }
    if evidence.claims.key != shown.spki_sha256 {
        return Err("the evidence is about another TLS key".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};

    /// A service whose answer begins, and then is cut or ends in order.
    struct Cut {
        begun: bool,
        cut: bool,
    }

    impl AsyncRead for Cut {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            to: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !std::mem::replace(&mut self.begun, true) {
                to.put_slice(b"the first half");
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(if self.cut { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
        }
    }

    impl AsyncWrite for Cut {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(from.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_cut_is_no_end() {
        for cut in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (near, _) = listener.accept().await.unwrap();
            let carried = tokio::spawn(carry(near, Cut { begun: false, cut }));
            let mut read = Vec::new();
            if cut {
                carried.await.unwrap();
                let error = program.read_to_end(&mut read).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            } else {
                program.shutdown().await.unwrap();
                program.read_to_end(&mut read).await.unwrap();
                assert_eq!(read, b"the first half");
                carried.await.unwrap();
            }
        }
    }
}
