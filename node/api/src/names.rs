//! Names and numbers that come from clients, as types that can't be wrong afterwards.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest name of an action or service, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest name of a tenant, in bytes.
const MAX_TENANT_BYTES: usize = 63;

/// Why something is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("a name may not be empty")]
    Empty,
    /// Too long.
    #[error("a name has at most {0} bytes, this one has {1}")]
    TooLong(usize, usize),
    /// A character that may not be in it.
    #[error(
        "a name is made of letters, digits and _ @ . & - and inner spaces, and starts with a letter, digit or _"
    )]
    Characters,
    /// A tenant's name is narrower.
    #[error(
        "a tenant's name is made of a-z, 0-9, - and _, starts with a letter or digit, and has at most 63 bytes"
    )]
    Tenant,
    /// No activation id.
    #[error("an activation id has 32 hexadecimal digits")]
    Activation,
}

/// Name of an action or service within its tenant: OpenWhisk's rule for entity names, ASCII only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntityName(Arc<str>);

impl EntityName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '@' | '.' | '&' | '-');
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong(MAX_NAME_BYTES, text.len()));
        }
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if !starts || text.ends_with(' ') || !text.chars().all(|c| inner(c) || c == ' ') {
            return Err(NameError::Characters);
        }
        Ok(Self(text.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a tenant, which is its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(Arc<str>);

impl TenantName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError::Tenant`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        let first = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let all = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
        if first && all && text.len() <= MAX_TENANT_BYTES {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Tenant)
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
text_type!(EntityName);
text_type!(TenantName);

/// Random bytes of the kernel, fetched for many ids at once.
struct Pool {
    bytes: [u8; 1024],
    used: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; 1024], used: 1024 }) };
}

/// Fills a short id with random bytes that nobody can guess.
///
/// # Panics
/// If the kernel gives no random bytes, which it always does; or for more than 1024 bytes.
pub fn random(id: &mut [u8]) {
    POOL.with_borrow_mut(|pool| {
        if pool.bytes.len() - pool.used < id.len() {
            getrandom::fill(&mut pool.bytes).expect("the kernel has random bytes");
            pool.used = 0;
        }
        let taken = &mut pool.bytes[pool.used..][..id.len()];
        id.copy_from_slice(taken);
        // What was given out is nowhere else.
        taken.fill(0);
        pool.used += id.len();
    });
}

/// Identifies an activation: 48 bits of milliseconds since 1970, then 80 random ones, so that ids sort by time (the layout of
/// a UUID version 7 without its fixed bits). Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivationId([u8; 16]);

impl ActivationId {
    /// A new id.
    #[must_use]
    pub fn new() -> Self {
        let mut id = Self::at(now_ms());
        random(&mut id.0[6..]);
        id
    }

    /// The first id of a millisecond.
    #[must_use]
    pub fn at(ms: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&ms.min((1 << 48) - 1).to_be_bytes()[2..]);
        Self(bytes)
    }

    /// The last id of a millisecond.
    #[must_use]
    pub fn last_at(ms: u64) -> Self {
        let mut id = Self::at(ms);
        id.0[6..].fill(255);
        id
    }

    /// The millisecond it belongs to.
    #[must_use]
    pub fn ms(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[..6]);
        u64::from_be_bytes(bytes)
    }

    /// The id behind these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// Reads 32 hexadecimal digits.
    ///
    /// # Errors
    /// [`NameError::Activation`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        parse_hex(text).map(Self).ok_or(NameError::Activation)
    }
}

impl Default for ActivationId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for ActivationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Serialize for ActivationId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for ActivationId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// SHA-256 of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl TryFrom<String> for Digest {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        parse_hex(&text).map(Self).ok_or("a digest has 64 hexadecimal digits")
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        hex(&digest.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Names a sealed package: 16 bytes that its maker chose at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PackageId(pub [u8; 16]);

impl TryFrom<String> for PackageId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        parse_hex(&text).map(Self).ok_or("a package's id has 32 hexadecimal digits")
    }
}

impl From<PackageId> for String {
    fn from(id: PackageId) -> String {
        hex(&id.0)
    }
}

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Names a migration: 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationId(pub [u8; 16]);

impl MigrationId {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        let mut bytes = [0; 16];
        random(&mut bytes);
        Self(bytes)
    }

    /// Reads 32 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        parse_hex(text).map(Self)
    }
}

impl Default for MigrationId {
    fn default() -> Self {
        Self::new()
    }
}

impl TryFrom<String> for MigrationId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a migration's id has 32 hexadecimal digits")
    }
}

impl From<MigrationId> for String {
    fn from(id: MigrationId) -> String {
        hex(&id.0)
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Exactly `N` bytes from hexadecimal digits.
#[must_use]
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

/// Milliseconds since 1970 by the host's clock.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A moment as RFC 3339 text with milliseconds.
#[must_use]
pub fn rfc3339(ms: u64) -> String {
    // Beyond the year 9999 the formatter refuses; no clock that is of use says that.
    let moment = UNIX_EPOCH + Duration::from_millis(ms.min(253_402_300_799_000));
    humantime::format_rfc3339_millis(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_names_follow_openwhisk() {
        for name in ["a", "_", "hello world", "a.b@c&d-e_f", "9", &"x".repeat(256)] {
            assert!(EntityName::new(name).is_ok(), "{name}");
        }
        for name in [
            "",
            " a",
            "a ",
            "-a",
            ".",
            "..",
            "a/b",
            "a\nb",
            "a\0",
            "é",
            "a\u{202e}b",
            "a?b",
            "%41",
            &"x".repeat(257),
        ] {
            assert!(EntityName::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn tenant_names_are_narrow() {
        for name in ["guest", "a", "0-b_c"] {
            assert!(TenantName::new(name).is_ok(), "{name}");
        }
        for name in ["", "_", "-a", "A", "a b", "a/b", "a.b", &"a".repeat(64)] {
            assert!(TenantName::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn activation_ids_sort_by_time_and_survive_text() {
        let early = ActivationId::at(1_700_000_000_000);
        let late = ActivationId::new();
        assert!(early < late && ActivationId::new() != late);
        assert_eq!((early.ms(), ActivationId::last_at(7).ms()), (1_700_000_000_000, 7));
        assert_eq!(ActivationId::parse(&late.to_string()), Ok(late));
        for text in ["", "xyz", &"0".repeat(31), &"0".repeat(33), &"g".repeat(32), &"é".repeat(16)] {
            assert!(ActivationId::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_are_rfc_3339() {
        assert_eq!(rfc3339(1_500), "1970-01-01T00:00:01.500Z");
        assert!(rfc3339(u64::MAX).starts_with("9999"));
    }
}
