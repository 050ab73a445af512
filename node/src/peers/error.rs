//! What goes wrong with other nodes. Each message ends with what to do, after "; ".

use super::name::{Fingerprint, PeerUrl};
use std::path::PathBuf;

/// Why the node's own key or the list of trusted nodes can't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// A file.
    #[error("{path}: {error}; check the owner of the state directory, and the disk")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path} {problem}; {remedy}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No key could be made.
    #[error("the node's key can't be made: {0}; try again")]
    Key(String),
    /// A node does not trust itself.
    #[error(
        "this is the node's own fingerprint; give the one that `nacre node identity` prints on the other node"
    )]
    Itself,
    /// A name that is none.
    #[error("a node's name has 1 to 64 characters and no control characters; choose another")]
    Name,
    /// The address is another node's.
    #[error(
        "{url} is recorded for the node {fingerprint}; remove that first: nacre node trust --remove {fingerprint}"
    )]
    Taken {
        /// The address.
        url: PeerUrl,
        /// Whose it is.
        fingerprint: Fingerprint,
    },
    /// Too many.
    #[error("{0} nodes are trusted already; remove one with nacre node trust --remove")]
    TooMany(usize),
}

/// Why another node gave no answer, or none that is of use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection: nothing was sent.
    #[error("{node} can't be reached: {reason}; check that it runs with --peer-listen, and the address")]
    Unreachable {
        /// Which one.
        node: PeerUrl,
        /// What the system says.
        reason: String,
    },
    /// This node does not trust that one: nothing was sent.
    #[error(
        "{node} shows the fingerprint {fingerprint}, which this node does not trust; if `nacre node identity` prints the same there, \
         run here: nacre node trust {node} --fingerprint {fingerprint}"
    )]
    NotTrusted {
        /// Which one.
        node: PeerUrl,
        /// Who it is.
        fingerprint: Fingerprint,
    },
    /// Another node than the one that was recorded for this address: nothing was sent.
    #[error(
        "{node} shows the fingerprint {shown} and not {recorded}, which is recorded for it; find out why before you run here: \
         nacre node trust --remove {recorded}"
    )]
    OtherKey {
        /// Which one.
        node: PeerUrl,
        /// Who was expected.
        recorded: Fingerprint,
        /// Who answered.
        shown: Fingerprint,
    },
    /// That node does not trust this one: nothing was sent.
    #[error("{node} does not trust this node; run there: {command}")]
    NotTrustedThere {
        /// Which one.
        node: PeerUrl,
        /// What makes it trust this one.
        command: String,
    },
    /// The address leads back here.
    #[error("{node} is this node itself; name another")]
    Itself {
        /// The address.
        node: PeerUrl,
    },
    /// The node says no.
    #[error("{node} answers {status}: {text}")]
    Answered {
        /// Which one.
        node: PeerUrl,
        /// The HTTP status.
        status: u16,
        /// What it says.
        text: String,
    },
    /// The connection ended before the whole answer: the question may have arrived.
    #[error("the connection to {node} broke: {reason}; try again")]
    Broken {
        /// Which one.
        node: PeerUrl,
        /// What happened.
        reason: String,
    },
    /// It does not speak as a node of this version does.
    #[error(
        "{node} does not speak as a node's peer port does: {problem}; check the port, and update the older node"
    )]
    Protocol {
        /// Which one.
        node: PeerUrl,
        /// What it did.
        problem: String,
    },
    /// No answer in time; it may still come to pass.
    #[error("{node} took too long: {what}; check that node and the network")]
    TimedOut {
        /// Which one.
        node: PeerUrl,
        /// What was waited for.
        what: &'static str,
    },
    /// The ticket of a bare connection is not good, or not any more.
    #[error("{node} does not take the ticket of this connection; ask it for a new one")]
    TicketRefused {
        /// Which one.
        node: PeerUrl,
    },
    /// Nobody showed the ticket in time.
    #[error("the node {from} did not connect in time; check the network between the nodes")]
    NotShown {
        /// Who was to.
        from: Fingerprint,
    },
    /// Somebody else showed it.
    #[error("a ticket for {from} was shown by {by}; begin anew, and find out how it came by it")]
    ShownByAnother {
        /// For whom it was.
        from: Fingerprint,
        /// Who showed it.
        by: Fingerprint,
    },
    /// Too many tickets wait, or trust in the node ended.
    #[error("no more connections of the node {from} are awaited; {remedy}")]
    NotAwaited {
        /// Of which node.
        from: Fingerprint,
        /// What to do.
        remedy: &'static str,
    },
}
