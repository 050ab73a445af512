//! Which nodes this one trusts: a file for each, and in memory what holds for its connections. A connection has a [`Lease`]: it ends
//! when the trust ends.

use super::error::PeersError;
use super::files;
use super::name::{Fingerprint, PeerUrl};
use crate::names::{now_ms, rfc3339};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Most nodes that are trusted.
pub const MAX_TRUSTED: usize = 256;
/// Connections at once with one node, in either direction: more than what clients of moved services may take in both, so that they never keep nodes from
/// asking each other.
pub(super) const MAX_CONNECTIONS_OF_ONE: usize = 2 * MAX_RELAYED + 1024;
/// Clients of services that this node relays to one other node at once.
pub const MAX_RELAYED: usize = 1536;
/// Longest name of a node, in characters.
const MAX_NAME: usize = 64;

/// A node that this one trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedPeer {
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where its peer port is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<PeerUrl>,
    /// Who it is.
    pub fingerprint: Fingerprint,
    /// Since when, RFC 3339.
    pub added_at: String,
}

impl TrustedPeer {
    /// A node that is trusted from now on.
    #[must_use]
    pub fn new(fingerprint: Fingerprint, url: Option<PeerUrl>, name: Option<String>) -> Self {
        Self { name, url, fingerprint, added_at: rfc3339(now_ms()) }
    }
}

/// Comes back when trust has ended.
pub(super) type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a connection holds for as long as it lives.
#[derive(Debug)]
pub(super) struct Lease {
    alive: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
}

impl Lease {
    /// Comes back when trust in the node at the other end is over.
    pub(super) fn cut(&self) -> Cut {
        let mut alive = self.alive.clone();
        // Nothing is ever sent: the sender goes away.
        Box::pin(async move { while alive.changed().await.is_ok() {} })
    }
}

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// No trust.
    NotTrusted,
    /// As many connections as one node may have.
    Full,
}

/// A trusted node with its connections.
#[derive(Debug)]
struct Entry {
    peer: TrustedPeer,
    /// Dropped when the trust ends: that is what leases look at.
    alive: watch::Sender<()>,
    places: Arc<Semaphore>,
}

/// The trusted nodes.
#[derive(Debug)]
pub(super) struct Trust {
    dir: PathBuf,
    own: Fingerprint,
    peers: RwLock<BTreeMap<Fingerprint, Entry>>,
    /// Held by who changes the files, so that files and memory agree.
    edit: Mutex<()>,
}

fn sound_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= MAX_NAME && !name.chars().any(char::is_control)
}

impl Trust {
    /// Reads the nodes in `dir`.
    pub(super) fn open(dir: &Path, own: Fingerprint) -> Result<Self, PeersError> {
        let failed = |error| PeersError::File { path: dir.to_owned(), error };
        let mut peers = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // What a start that was cut off has left.
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let malformed = |problem: String| PeersError::Malformed {
                path: path.clone(),
                problem,
                remedy: "remove it, and trust the node anew",
            };
            let Some(text) = files::read(&path)? else { continue };
            let peer: TrustedPeer = serde_json::from_str(&text)
                .map_err(|error| malformed(format!("is no record of a node: {error}")))?;
            if path.file_stem().and_then(|stem| stem.to_str()) != Some(&peer.fingerprint.to_string()) {
                return Err(malformed("names another node than it holds".to_owned()));
            }
            if peer.name.as_deref().is_some_and(|name| !sound_name(name)) {
                return Err(malformed("holds a name that is none".to_owned()));
            }
            if peers.len() == MAX_TRUSTED {
                return Err(PeersError::TooMany(MAX_TRUSTED));
            }
            peers.insert(peer.fingerprint, Entry::new(peer));
        }
        Ok(Self { dir: dir.to_owned(), own, peers: RwLock::new(peers), edit: Mutex::new(()) })
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Fingerprint, Entry>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Fingerprint, Entry>> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, fingerprint: Fingerprint) -> PathBuf {
        self.dir.join(format!("{fingerprint}.json"))
    }

    /// All of them, by fingerprint.
    pub(super) fn all(&self) -> Vec<TrustedPeer> {
        self.read().values().map(|entry| entry.peer.clone()).collect()
    }

    /// Whether a node is trusted.
    pub(super) fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.read().contains_key(&fingerprint)
    }

    /// Who is to answer at `url`, if that was said.
    pub(super) fn recorded(&self, url: &PeerUrl) -> Option<Fingerprint> {
        let peers = self.read();
        peers.values().find(|entry| entry.peer.url.as_ref() == Some(url)).map(|entry| entry.peer.fingerprint)
    }

    /// Trusts a node from now on, or changes its name and address. On the disk when it returns.
    pub(super) fn add(&self, peer: TrustedPeer) -> Result<(), PeersError> {
        if peer.fingerprint == self.own {
            return Err(PeersError::Itself);
        }
        if peer.name.as_deref().is_some_and(|name| !sound_name(name)) {
            return Err(PeersError::Name);
        }
        let _edit = self.edit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(url) = &peer.url
            && let Some(fingerprint) = self.recorded(url).filter(|other| *other != peer.fingerprint)
        {
            return Err(PeersError::Taken { url: url.clone(), fingerprint });
        }
        if !self.holds(peer.fingerprint) && self.read().len() >= MAX_TRUSTED {
            return Err(PeersError::TooMany(MAX_TRUSTED));
        }
        // A record of strings is always JSON.
        let text = serde_json::to_string_pretty(&peer).unwrap_or_default() + "\n";
        files::write(&self.file(peer.fingerprint), text.as_bytes())?;
        let mut peers = self.write();
        match peers.get_mut(&peer.fingerprint) {
            Some(entry) => entry.peer = peer,
            None => {
                peers.insert(peer.fingerprint, Entry::new(peer));
            }
        }
        Ok(())
    }

    /// Ends the trust in a node and its connections; whether there was any.
    pub(super) fn remove(&self, fingerprint: Fingerprint) -> Result<bool, PeersError> {
        let _edit = self.edit.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.holds(fingerprint) {
            return Ok(false);
        }
        files::remove(&self.file(fingerprint))?;
        self.write().remove(&fingerprint);
        Ok(true)
    }

    /// A place for one more connection of a node, which ends with the trust in it.
    pub(super) fn lease(&self, fingerprint: Fingerprint) -> Result<Lease, NoLease> {
        let peers = self.read();
        let entry = peers.get(&fingerprint).ok_or(NoLease::NotTrusted)?;
        let place = entry.places.clone().try_acquire_owned().map_err(|_| NoLease::Full)?;
        Ok(Lease { alive: entry.alive.subscribe(), _place: place })
    }
}

impl Entry {
    fn new(peer: TrustedPeer) -> Self {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS_OF_ONE));
        Self { peer, alive: watch::channel(()).0, places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(byte: u8) -> Fingerprint {
        Fingerprint::from_bytes([byte; 32])
    }

    fn peer(byte: u8, url: Option<&str>) -> TrustedPeer {
        TrustedPeer::new(print(byte), url.map(|url| url.parse().unwrap()), None)
    }

    #[test]
    fn trust_is_durable_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Trust::open(dir.path(), print(0)).unwrap();
        let trust = open();
        trust.add(peer(1, Some("a:1"))).unwrap();
        trust.add(TrustedPeer { name: Some("two".into()), ..peer(2, None) }).unwrap();
        assert_eq!(open().all(), trust.all());
        assert_eq!(trust.recorded(&"a:1".parse().unwrap()), Some(print(1)));
        // A second word about a node replaces the first.
        trust.add(peer(1, Some("b:1"))).unwrap();
        assert_eq!(trust.recorded(&"a:1".parse().unwrap()), None);
        assert!(trust.remove(print(1)).unwrap() && !trust.remove(print(1)).unwrap());
        assert_eq!(open().all(), [trust.all()[0].clone()]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::open(dir.path(), print(0)).unwrap();
        assert!(matches!(trust.add(peer(0, None)), Err(PeersError::Itself)));
        for name in [String::new(), "a\nb".into(), "x".repeat(65)] {
            assert!(matches!(
                trust.add(TrustedPeer { name: Some(name), ..peer(1, None) }),
                Err(PeersError::Name)
            ));
        }
        trust.add(peer(1, Some("a:1"))).unwrap();
        assert!(matches!(trust.add(peer(2, Some("a:1"))), Err(PeersError::Taken { .. })));
        for number in 2..=MAX_TRUSTED {
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            trust.add(TrustedPeer::new(Fingerprint::from_bytes(bytes), None, None)).unwrap();
        }
        assert!(matches!(trust.add(peer(200, None)), Err(PeersError::TooMany(_))));
        // One that is there may be changed all the same.
        trust.add(peer(1, Some("a:2"))).unwrap();
    }

    #[test]
    fn a_strange_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{}.json", print(7)));
        let other = serde_json::to_string(&peer(8, None)).unwrap();
        for text in ["{}", "rubbish", &other] {
            std::fs::write(&path, text).unwrap();
            let error = Trust::open(dir.path(), print(0)).unwrap_err().to_string();
            assert!(error.contains(&print(7).to_string()), "{error}");
        }
    }

    #[tokio::test]
    async fn leases_are_bounded_and_end_with_the_trust() {
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::open(dir.path(), print(0)).unwrap();
        assert_eq!(trust.lease(print(1)).unwrap_err(), NoLease::NotTrusted);
        trust.add(peer(1, None)).unwrap();
        let mut leases: Vec<_> =
            (0..MAX_CONNECTIONS_OF_ONE).map(|_| trust.lease(print(1)).unwrap()).collect();
        assert_eq!(trust.lease(print(1)).unwrap_err(), NoLease::Full);
        leases.truncate(1);
        // A change of its name does not touch its connections.
        trust.add(peer(1, Some("a:1"))).unwrap();
        let mut cut = leases[0].cut();
        assert!(futures_poll(&mut cut).is_pending());
        trust.remove(print(1)).unwrap();
        cut.await;
        assert_eq!(trust.lease(print(1)).unwrap_err(), NoLease::NotTrusted);
    }

    fn futures_poll(cut: &mut Cut) -> std::task::Poll<()> {
        cut.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
