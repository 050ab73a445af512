//! What nodes are called: by the digest of their key, which is who they are, and by an address, which is where they are.

use crate::names::{hex, parse_hex};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Longest host name in bytes (RFC 1035).
const MAX_HOST: usize = 253;
/// What may stand in front of an address.
const SCHEME: &str = "nacre://";

/// A text that names no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerNameError {
    /// Not a fingerprint.
    #[error(
        "this is no fingerprint; give the 64 hexadecimal digits that `nacre node identity` prints on that node"
    )]
    Fingerprint,
    /// Not an address.
    #[error("this is no node's address; write HOST:PORT with the port of its --peer-listen")]
    Url,
}

/// Who a node is: SHA-256 of its public key (SubjectPublicKeyInfo in DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a public key, SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn of_key(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// With these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = PeerNameError;

    fn from_str(text: &str) -> Result<Self, PeerNameError> {
        parse_hex(text).map(Self).ok_or(PeerNameError::Fingerprint)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Where a node's peer port is: `HOST:PORT`, also written `nacre://HOST:PORT`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerUrl {
    /// A name or an address, an IPv6 address without brackets.
    host: String,
    port: u16,
}

impl PeerUrl {
    /// The host: a name, or an address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl fmt::Debug for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<std::net::SocketAddr> for PeerUrl {
    fn from(address: std::net::SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for PeerUrl {
    type Err = PeerNameError;

    fn from_str(text: &str) -> Result<Self, PeerNameError> {
        let text = text.strip_prefix(SCHEME).unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        let (host, port) = text.rsplit_once(':').ok_or(PeerNameError::Url)?;
        // `parse` also takes a sign.
        let port = Some(port).filter(|port| port.bytes().all(|c| c.is_ascii_digit()));
        let port = port.and_then(|port| port.parse().ok()).filter(|port| *port != 0);
        let port = port.ok_or(PeerNameError::Url)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().map_err(|_| PeerNameError::Url)?.to_string(),
            None => {
                let fine = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
                if host.is_empty() || host.len() > MAX_HOST || !host.bytes().all(fine) {
                    return Err(PeerNameError::Url);
                }
                host.to_ascii_lowercase()
            }
        };
        Ok(Self { host, port })
    }
}

impl Serialize for PeerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_form() {
        let of = |text: &str| text.parse::<PeerUrl>().map(|url| url.to_string());
        assert_eq!(of("nacre://Host.Example:7000/").as_deref(), Ok("host.example:7000"));
        assert_eq!(of("10.0.0.1:1").as_deref(), Ok("10.0.0.1:1"));
        assert_eq!(of("[0:0:0:0:0:0:0:1]:65535").as_deref(), Ok("[::1]:65535"));
        let long = format!("{}:1", "a".repeat(MAX_HOST + 1));
        for wrong in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:+1",
            "host:65536",
            "a b:1",
            "a@b:1",
            "::1:1",
            "[x]:1",
            &long,
        ] {
            assert_eq!(of(wrong), Err(PeerNameError::Url), "{wrong}");
        }
    }

    #[test]
    fn fingerprints_are_64_digits() {
        let print = Fingerprint::of_key(b"key");
        assert_eq!(print.to_string().parse(), Ok(print));
        for wrong in ["", "ab", &"g".repeat(64), &"0".repeat(66)] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(PeerNameError::Fingerprint), "{wrong}");
        }
        let json = serde_json::to_string(&print).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), print);
        assert!(serde_json::from_str::<PeerUrl>("\"nobody\"").is_err());
    }
}
