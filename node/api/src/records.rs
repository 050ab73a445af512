//! What the store keeps, as JSON: tenants, actions, activations. A field that a later version adds has a default.

use crate::limits::{ActionLimits, TenantLimits};
use crate::names::{ActivationId, Digest, EntityName, PackageId, TenantName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;

/// The kind of all actions: a WASI command module.
pub const KIND: &str = "wasi:default";

/// A parameter or an annotation; the value stays the text that came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyValue {
    /// Its name.
    pub key: String,
    /// Any JSON.
    pub value: Box<RawValue>,
}

impl KeyValue {
    /// A pair whose value is JSON text already.
    ///
    /// # Errors
    /// If it is not.
    pub fn new(key: &str, json: String) -> Result<Self, serde_json::Error> {
        Ok(Self { key: key.to_owned(), value: RawValue::from_string(json)? })
    }
}

/// A version as OpenWhisk counts it: the last number grows with each update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Of what is new.
    pub const FIRST: Version = Version(0, 0, 1);

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0, self.1, self.2.saturating_add(1))
    }

    /// Reads "1.2.3".
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        let version = Self(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl TryFrom<String> for Version {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a version has three numbers, such as 0.0.1")
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

/// A tenant. Its key is not here, only what recognises it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// Its name and namespace.
    pub name: TenantName,
    /// The first half of its credentials.
    pub uuid: String,
    /// Salt of the hash, in hexadecimal digits.
    pub salt: String,
    /// Hash of the second half, in hexadecimal digits.
    pub key_hash: String,
    /// What it may use.
    pub limits: TenantLimits,
    /// When it was added, in milliseconds since 1970.
    pub created_ms: u64,
}

/// A deployed module, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRef {
    /// SHA-256 of the module.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A sealed package that the node keeps: ciphertext, and nothing that tells what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub id: PackageId,
    /// Its bytes: a file of the store like a module.
    pub module: ModuleRef,
    /// When it came, in milliseconds since 1970.
    pub created_ms: u64,
}

/// A deployed function.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Action {
    /// Its name.
    pub name: EntityName,
    /// Grows with each update.
    pub version: Version,
    /// Its code.
    pub module: ModuleRef,
    /// The code was sent as binary by its own word; OpenWhisk clients ask for it.
    pub binary: bool,
    /// Parameters that a call need not give.
    pub parameters: Vec<KeyValue>,
    /// What its owner notes about it.
    pub annotations: Vec<KeyValue>,
    /// What one activation may use.
    pub limits: ActionLimits,
    /// OpenWhisk's flag; it means nothing here.
    pub publish: bool,
    /// When it was changed last, in milliseconds since 1970.
    pub updated_ms: u64,
}

/// Whether a service that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// However it ended.
    #[default]
    Always,
    /// Unless it ended by itself with code 0.
    OnFailure,
    /// Never.
    Never,
}

impl Restart {
    /// Reads one of the words.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "always" => Some(Self::Always),
            "on-failure" => Some(Self::OnFailure),
            "never" => Some(Self::Never),
            _ => None,
        }
    }

    /// Whether it is started again after such an end.
    #[must_use]
    pub fn again(self, failed: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => failed,
            Self::Never => false,
        }
    }
}

/// A deployed service: a program that runs all the time and serves TCP clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name; no action of the tenant has it.
    pub name: EntityName,
    /// Grows with each update.
    pub version: Version,
    /// Its code.
    pub module: ModuleRef,
    /// Where its clients connect.
    pub port: u16,
    /// Whether it is started again when it ends.
    pub restart: Restart,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    /// It was installed from this package, which is what `module` then refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageId>,
    /// When it was changed last, in milliseconds since 1970.
    pub updated_ms: u64,
}

/// How an activation ended, in OpenWhisk's classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It gave a result.
    Success,
    /// The program says that it failed.
    ApplicationError,
    /// It trapped, reached a limit, or gave no result.
    DeveloperError,
    /// The node or the CVM failed.
    InternalError,
}

impl Status {
    /// OpenWhisk's number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::ApplicationError => 1,
            Self::DeveloperError => 2,
            Self::InternalError => 3,
        }
    }

    /// OpenWhisk's words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::ApplicationError => "application error",
            Self::DeveloperError => "action developer error",
            Self::InternalError => "whisk internal error",
        }
    }
}

/// A call that is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Activation {
    /// Its number.
    pub id: ActivationId,
    /// What was called.
    pub action: EntityName,
    /// Which version of it.
    pub version: Version,
    /// When it began, in milliseconds since 1970.
    pub start_ms: u64,
    /// When it ended.
    pub end_ms: u64,
    /// How.
    pub status: Status,
    /// Its result: a JSON object.
    pub result: Box<RawValue>,
    /// Lines of `time stream: text`.
    pub logs: Vec<String>,
    /// What it was allowed.
    pub limits: ActionLimits,
    /// It ran into its time limit.
    pub timeout: bool,
    /// CPU time in microseconds.
    #[serde(default)]
    pub cpu_us: u64,
    /// Time in queues before it ran, in microseconds.
    #[serde(default)]
    pub wait_us: u64,
    /// Time to bring its code in, in microseconds, if that was needed.
    #[serde(default)]
    pub init_us: Option<u64>,
}

impl Activation {
    /// What it takes in memory and in the store, about, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.result.get().len() + self.logs.iter().map(|line| line.len() + 24).sum::<usize>() + 512
    }
}

/// A call that was acknowledged before it was over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// What is called.
    pub action: EntityName,
    /// Which version of it.
    pub version: Version,
    /// When it began, in milliseconds since 1970.
    pub start_ms: u64,
    /// What it is allowed.
    pub limits: ActionLimits,
}

impl Pending {
    /// The end of a call that the node did not live to see.
    ///
    /// # Panics
    /// Never: the text is JSON.
    #[must_use]
    pub fn interrupted(self, id: ActivationId, now_ms: u64) -> Activation {
        const RESULT: &str = r#"{"error":"The node was restarted while the action ran; it may have run in part. Invoke it again."}"#;
        Activation {
            id,
            action: self.action,
            version: self.version,
            start_ms: self.start_ms,
            end_ms: now_ms.max(self.start_ms),
            status: Status::InternalError,
            result: RawValue::from_string(RESULT.to_owned()).expect("a constant object"),
            logs: Vec::new(),
            limits: self.limits,
            timeout: false,
            cpu_us: 0,
            wait_us: 0,
            init_us: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_numbers() {
        assert_eq!(Version::parse("1.22.3"), Some(Version(1, 22, 3)));
        for text in ["", "1", "1.2", "1.2.3.4", "a.b.c", "1.2.-3", "99999999999.0.0"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
        assert_eq!(Version::FIRST.next().to_string(), "0.0.2");
    }

    #[test]
    fn values_keep_their_text() {
        let pair: KeyValue = serde_json::from_str(r#"{"key":"a","value": 1.000e2}"#).unwrap();
        assert_eq!(pair.value.get(), "1.000e2");
        assert_eq!(serde_json::to_string(&pair).unwrap(), r#"{"key":"a","value":1.000e2}"#);
    }

    #[test]
    fn an_interrupted_call_is_an_internal_error_that_says_so() {
        let pending = Pending {
            action: EntityName::new("a").unwrap(),
            version: Version::FIRST,
            start_ms: 10,
            limits: ActionLimits::default(),
        };
        let ended = pending.interrupted(ActivationId::at(10), 5);
        assert_eq!((ended.status.code(), ended.end_ms), (3, 10));
        let text = serde_json::to_vec(&ended).unwrap();
        let back: Activation = serde_json::from_slice(&text).unwrap();
        assert_eq!(back.result.get(), ended.result.get());
    }
}
