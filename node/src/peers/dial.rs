//! The way to another node: TCP, TLS, and its first byte.

use super::Core;
use super::error::PeerError;
use super::link::{LINK_FULL, LINK_VERSION, Link};
use super::name::{Fingerprint, PeerUrl};
use super::places::Places;
use super::trust::NoLease;
use super::verify::{self, Refused, Wanted, refused_there};
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use std::io;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest wait for a TCP connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for a handshake and what follows it.
pub(super) const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// A node that is gone without a word is noticed after this silence, and three unanswered questions as far apart.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The name in handshakes, which is not sent: nodes are known by their keys.
const NAME: &str = "nacre-node";

/// A connection with a node.
pub(super) type Dialled = Link<TlsStream<TcpStream>>;

/// No waiting for more to send, and silence does not last for ever.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

/// A TCP connection to a node's port.
pub(super) async fn connect(node: &PeerUrl) -> Result<TcpStream, PeerError> {
    let unreachable =
        |reason: &dyn ToString| PeerError::Unreachable { node: node.clone(), reason: reason.to_string() };
    let connected = timeout(CONNECT_PATIENCE, TcpStream::connect((node.host(), node.port()))).await;
    let stream = connected.map_err(|_| unreachable(&"no answer"))?.map_err(|error| unreachable(&error))?;
    prepare(&stream).map_err(|error| unreachable(&error))?;
    Ok(stream)
}

/// What connections are made for: each has places of its own, so that no burst of one keeps the others waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nodes' own questions.
    Questions,
    /// Requests of tenants that are elsewhere.
    Requests,
    /// Streams: clients of services that are elsewhere, what goes on after a migration, migrations.
    Streams,
}

/// Connections that are made with each node at once, by purpose. Together with those of another node at the same address they are fewer than a node takes
/// from one address before it knows who is there: `serve::MAX_STRANGERS_OF_ONE`.
#[derive(Debug)]
pub(super) struct Dialling([Places; 3]);

/// Places for questions, for requests and for streams.
const MAX_DIALLING: [usize; 3] = [4, 12, 12];
const _: () = assert!(
    2 * (MAX_DIALLING[0] + MAX_DIALLING[1] + MAX_DIALLING[2]) <= super::serve::MAX_STRANGERS_OF_ONE,
    "two nodes of one address are not refused"
);

impl Dialling {
    pub(super) fn new() -> Dialling {
        Dialling(MAX_DIALLING.map(|most| Places::new(most, "others that connect to it")))
    }
}

/// A TLS connection with `wanted` at `node`. Waits for a place among those that are made.
pub(super) async fn dial(
    core: &Core,
    node: &PeerUrl,
    wanted: Wanted,
    purpose: Purpose,
) -> Result<Dialled, PeerError> {
    let _place = core.dialling.0[purpose as usize].take(node).await?;
    let stream = connect(node).await?;
    let linked = timeout(HANDSHAKE_PATIENCE, shake(core, node, wanted, stream)).await;
    linked.map_err(|_| PeerError::TimedOut { node: node.clone(), what: "the handshake" })?
}

async fn shake(core: &Core, node: &PeerUrl, wanted: Wanted, stream: TcpStream) -> Result<Dialled, PeerError> {
    let protocol =
        |problem: &dyn ToString| PeerError::Protocol { node: node.clone(), problem: problem.to_string() };
    let config = verify::connecting(core, wanted).map_err(|error| protocol(&error))?;
    let name = ServerName::try_from(NAME).map_err(|error| protocol(&error))?;
    let failed = |error: io::Error| match Refused::of(&error) {
        Some(refused) => refusal(node, wanted, refused),
        None if refused_there(&error) => {
            PeerError::NotTrustedThere { node: node.clone(), command: core.command() }
        }
        None => protocol(&error),
    };
    let mut stream = TlsConnector::from(config).connect(name, stream).await.map_err(failed)?;
    match stream.read_u8().await.map_err(failed)? {
        LINK_VERSION => {}
        LINK_FULL => {
            let text = "this node has as many connections there as it may; wait until some end".to_owned();
            return Err(PeerError::Answered { node: node.clone(), status: 503, text });
        }
        other => return Err(protocol(&format_args!("its version of the link is {other}"))),
    }
    let shown =
        stream.get_ref().1.peer_certificates().and_then(|chain| super::identity::fingerprint(chain.first()?));
    let shown = shown.ok_or_else(|| protocol(&Refused::Malformed))?;
    let lease = core.trust.lease(shown).map_err(|why| match why {
        NoLease::NotTrusted => PeerError::NotTrusted { node: node.clone(), fingerprint: shown },
        NoLease::Full => {
            let reason = "there are as many connections with it as there may be".to_owned();
            PeerError::Unreachable { node: node.clone(), reason }
        }
    })?;
    Ok(Link::new(stream, lease))
}

fn refusal(node: &PeerUrl, wanted: Wanted, refused: Refused) -> PeerError {
    let node = node.clone();
    match (refused, wanted) {
        (Refused::Other(shown), Wanted::This(recorded)) => PeerError::OtherKey { node, recorded, shown },
        (Refused::Unknown(fingerprint) | Refused::Other(fingerprint) | Refused::Seen(fingerprint), _) => {
            PeerError::NotTrusted { node, fingerprint }
        }
        (Refused::Itself, _) => PeerError::Itself { node },
        (Refused::Malformed, _) => PeerError::Protocol { node, problem: refused.to_string() },
    }
}

/// Who answers at `node`.
pub(super) async fn look(core: &Core, node: &PeerUrl) -> Result<Fingerprint, PeerError> {
    match dial(core, node, Wanted::Nobody, Purpose::Questions).await {
        Err(PeerError::NotTrusted { fingerprint, .. }) => Ok(fingerprint),
        Err(error) => Err(error),
        // The verifier accepts nobody.
        Ok(_) => Err(PeerError::Protocol { node: node.clone(), problem: "it shows no key".to_owned() }),
    }
}
