//! Other nodes: how they know each other, ask each other, and bring bytes to each other. Each node has one TCP port for that.
//!
//! ```text
//! connecting node                                   listening node
//! TCP, then either
//!   TLS 1.3, both show the key they are known by -> who is not trusted is refused in the handshake     `verify`
//!                                               <-  1 byte, LINK_VERSION: taken; or LINK_FULL
//!   HTTP/1.1: questions, forwarded requests      ->                                                    `client`, `serve`
//!             POST, Upgrade: nacre-stream        <- 101, from then on bytes both ways                  `stream`
//! or
//!   PREAMBLE, own fingerprint, ticket            ->                                                    `bare`
//!                                               <-  1 byte, TAKEN: from then on bytes both ways, as they are
//! ```
//! The byte at the beginning tells a node that is refused so, before it has sent anything: in TLS 1.3 it takes itself for connected before
//! the other end has looked at its certificate. A bare connection is for bytes that are sealed from guest to guest already. Its preamble
//! begins with a byte with which no TLS connection begins.
//!
//! Trust is by key and by nothing else (`trust`, `identity`): there is no authority, no name in a certificate counts, no session is resumed, so a
//! handshake always asks who is trusted now. Where the trust in a node ends, its connections end too; only bare ones go on, which belong to guests.
//!
//! What comes before trust is bounded (`serve`): handshakes under way, of all and of one address, and their time. What comes after it:
//! connections of one node, heads of requests, time without a request; questions and answers ([`Question`], [`Bounds`]).

mod bare;
mod client;
mod dial;
mod error;
mod files;
mod identity;
mod link;
mod name;
mod places;
mod serve;
mod stream;
#[cfg(test)]
mod tests;
mod ticket;
mod trust;
mod verify;

pub use client::Bounds;
pub use error::{PeerError, PeersError};
pub use name::{Fingerprint, PeerNameError, PeerUrl};
pub use serve::{Caller, serve};
pub use stream::{PeerStream, Question, StreamRequest};
pub use ticket::Ticket;
pub use trust::{MAX_RELAYED, MAX_TRUSTED, TrustedPeer};

use axum::body::Body;
use client::Http;
use dial::{Dialling, Purpose};
use identity::Identity;
use places::Places;
use rustls::crypto::CryptoProvider;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use ticket::Tickets;
use trust::Trust;

/// The state directory's folder of this module, and in it the one of the trusted nodes.
const FOLDER: &str = "peer";
const TRUSTED: &str = "trusted";

/// What the node knows of other nodes, and its way to them. Clones share it.
#[derive(Clone, Debug)]
pub struct Peers {
    core: Arc<Core>,
    tickets: Arc<Tickets>,
    /// The nodes' own questions.
    http: Http,
    /// Requests of tenants that are elsewhere: connections of their own, so that no question waits for them.
    forwarding: Http,
}

/// What connections in both directions need.
#[derive(Debug)]
struct Core {
    identity: Identity,
    trust: Arc<Trust>,
    provider: Arc<CryptoProvider>,
    /// Where other nodes reach this one, once that is known.
    address: OnceLock<PeerUrl>,
    /// Connections that are being made, and requests that are forwarded.
    dialling: Dialling,
    forwarded: Places,
}

impl Core {
    /// The command with which another node comes to trust this one.
    fn command(&self) -> String {
        let address = self.address.get().map_or_else(|| "HOST:PORT".to_owned(), PeerUrl::to_string);
        format!("nacre node trust {address} --fingerprint {}", self.identity.fingerprint)
    }
}

impl Peers {
    /// Reads the node's key and the nodes it trusts, below the state directory; makes a key if there is none.
    ///
    /// # Errors
    /// [`PeersError`] that names the file.
    pub fn open(state_dir: &Path) -> Result<Self, PeersError> {
        let (dir, trusted) = (state_dir.join(FOLDER), state_dir.join(FOLDER).join(TRUSTED));
        files::directory(&dir)?;
        files::directory(&trusted)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let identity = Identity::open(&dir, &provider)?;
        let trust = Arc::new(Trust::open(&trusted, identity.fingerprint)?);
        let (dialling, forwarded) = (Dialling::new(), client::forwarded());
        let core =
            Arc::new(Core { identity, trust, provider, address: OnceLock::new(), dialling, forwarded });
        let [http, forwarding] =
            [Purpose::Questions, Purpose::Requests].map(|purpose| client::http(core.clone(), purpose));
        Ok(Self { http, forwarding, core, tickets: Arc::default() })
    }

    /// Who this node is.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.core.identity.fingerprint
    }

    /// Says where other nodes reach this one, for what they are told; the first word counts.
    pub fn reached_at(&self, address: PeerUrl) {
        let _ = self.core.address.set(address);
    }

    /// Where other nodes reach this one, if that is known.
    #[must_use]
    pub fn address(&self) -> Option<&PeerUrl> {
        self.core.address.get()
    }

    /// The command that makes another node trust this one.
    #[must_use]
    pub fn command(&self) -> String {
        self.core.command()
    }

    /// The nodes that this one trusts.
    #[must_use]
    pub fn trusted(&self) -> Vec<TrustedPeer> {
        self.core.trust.all()
    }

    /// Trusts a node from now on, or changes its name and address. On the disk when it returns; waits for it.
    ///
    /// # Errors
    /// If it is this node, its name is none, its address is another's, there are too many; and those of the disk. Nothing is changed then.
    pub fn trust(&self, peer: TrustedPeer) -> Result<(), PeersError> {
        self.core.trust.add(peer)
    }

    /// Trusts a node no more: its connections end, and its tickets. Says whether it was trusted. Waits for the disk.
    ///
    /// # Errors
    /// Those of the disk; nothing is changed then.
    pub fn distrust(&self, fingerprint: Fingerprint) -> Result<bool, PeersError> {
        let removed = self.core.trust.remove(fingerprint)?;
        self.tickets.forget(fingerprint);
        Ok(removed)
    }

    /// Who answers at an address, trusted or not. Nothing but that is asked.
    ///
    /// # Errors
    /// `Unreachable`, `Protocol`, `TimedOut`, `Itself`.
    pub async fn look(&self, node: &PeerUrl) -> Result<Fingerprint, PeerError> {
        dial::look(&self.core, node).await
    }

    /// Asks a trusted node a question, JSON for JSON, within the usual [`Bounds`].
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        node: &PeerUrl,
        path: &str,
        question: &Q,
    ) -> Result<A, PeerError> {
        self.ask_within(node, path, question, Bounds::default()).await
    }

    /// The same within bounds of one's own.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn ask_within<Q: Serialize, A: DeserializeOwned>(
        &self,
        node: &PeerUrl,
        path: &str,
        question: &Q,
        bounds: Bounds,
    ) -> Result<A, PeerError> {
        client::ask(self, (node, None), path, question, bounds).await
    }

    /// Asks one certain node, wherever another one may be by now.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn ask_this<Q: Serialize, A: DeserializeOwned>(
        &self,
        node: &PeerUrl,
        who: Fingerprint,
        path: &str,
        question: &Q,
    ) -> Result<A, PeerError> {
        client::ask(self, (node, Some(who)), path, question, Bounds::default()).await
    }

    /// Forwards a request: method, path, headers but those that concern one connection only, and the body as it comes. The answer's body comes
    /// as it comes, too. Only the way to the node is bounded in time: the answer takes as long as it takes.
    ///
    /// # Errors
    /// [`PeerError`]; an answer that says no is an answer.
    pub async fn forward(
        &self,
        node: &PeerUrl,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, PeerError> {
        client::forward(self, node, request).await
    }

    /// Bytes both ways, within TLS, with what answers at `path` ([`StreamRequest`]). The question has [`stream::MAX_QUESTION`] bytes at most.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn stream<Q: Serialize>(
        &self,
        node: &PeerUrl,
        path: &str,
        question: &Q,
    ) -> Result<PeerStream, PeerError> {
        stream::open(self, node, path, question).await
    }

    /// A TCP connection to a node that awaits it ([`Peers::expect`] there), for bytes that are sealed already. Blocking, without delay.
    ///
    /// # Errors
    /// `Unreachable`, `TicketRefused`, `TimedOut`.
    pub async fn bare(&self, node: &PeerUrl, ticket: Ticket) -> Result<TcpStream, PeerError> {
        bare::connect(self.fingerprint(), node, &ticket).await
    }

    /// Awaits a bare connection of a node: the ticket that it has to show, for `patience` from now, and the connection. The ticket is good once,
    /// and until the future is dropped.
    ///
    /// # Errors
    /// Of the future: `NotShown`, `ShownByAnother`, `NotAwaited`.
    pub fn expect(
        &self,
        from: Fingerprint,
        patience: Duration,
    ) -> (Ticket, impl Future<Output = Result<TcpStream, PeerError>> + Send + use<>) {
        self.tickets.issue(from, patience)
    }
}
