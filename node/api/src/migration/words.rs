//! What two nodes say to each other about a migration. Both are trusted; what they say is bounded and checked all the same.

use super::{Away, Commit};
use crate::names::{ActivationId, Digest, EntityName, MigrationId, TenantName};
use crate::records::{Action, Activation, Package, Pending, Service, TenantRecord};
use serde::{Deserialize, Serialize};

/// Version of these words; nodes of different versions do not migrate.
pub const VERSION: u32 = 2;
/// Longest word, in bytes.
pub const MAX_WORD_BYTES: usize = 32 << 20;
/// Most lanes of a migration.
pub const MAX_LANES: usize = 8;

/// How a tenant moves; see docs/migration.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Rounds while tasks run; the rest follows after the hand-over.
    #[default]
    Hybrid,
    /// Rounds while tasks run, the rest while they are parked.
    PreCopy,
    /// The hand-over at once; everything follows.
    PostCopy,
    /// Everything while tasks are parked.
    StopAndCopy,
}

/// A migration that is asked for: `POST /v1/migrations`.
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveOrder {
    /// Who moves: needed from the administrator; a tenant moves itself.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Something the tenant has deployed, to be sure that it is the right one.
    #[serde(default)]
    pub name: Option<String>,
    /// Where to: the `HOST:PORT` at which the other node listens to nodes.
    pub to: String,
    /// How.
    #[serde(default)]
    pub mode: Mode,
    /// Bytes per second that may be sent.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// Connections for memory, 1 to 8; by the CVM's size if none is said.
    #[serde(default)]
    pub lanes: Option<usize>,
}

/// Everything of a tenant that nodes keep; modules are files, known by their digests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Staged {
    /// The tenant with the hash of its key and its limits.
    pub tenant: TenantRecord,
    /// The signed manifest, in hexadecimal digits.
    pub manifest: String,
    /// Functions.
    pub actions: Vec<Action>,
    /// Services.
    pub services: Vec<Service>,
    /// Sealed packages.
    pub packages: Vec<Package>,
    /// Calls under way whose callers were told to ask later.
    pub pending: Vec<(ActivationId, Pending)>,
}

impl Staged {
    /// The modules it refers to and their sizes, each as often as it does.
    pub fn modules(&self) -> impl Iterator<Item = (Digest, u64)> {
        let actions = self.actions.iter().map(|action| action.module);
        let services = self.services.iter().map(|service| service.module);
        let packages = self.packages.iter().map(|package| package.module);
        actions.chain(services).chain(packages).map(|module| (module.digest, module.bytes))
    }

    /// Whether it is of one piece: limits that can be, names once, and no more than the limits allow.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let limits = &self.tenant.limits;
        let mut names: Vec<_> = self.actions.iter().map(|action| &action.name).collect();
        names.extend(self.services.iter().map(|service| &service.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        let is_hex = |text: &str, bytes: usize| bytes_of(text).is_some_and(|found| found.len() == bytes);
        limits.clone().checked().as_ref() == Ok(limits)
            && is_hex(&self.tenant.salt, 16)
            && is_hex(&self.tenant.key_hash, 32)
            && names.len() == count
            && count <= limits.actions as usize
            && self.packages.len() <= limits.actions as usize
            && self.pending.len() <= limits.concurrency as usize
    }
}

/// The first word of a source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// [`VERSION`].
    pub version: u32,
    /// The migration.
    pub id: MigrationId,
    /// Where the source listens to nodes.
    pub source: Option<String>,
    /// Identifies the guest image and the CVM's shape, in hexadecimal digits: both ends need the same.
    pub image: String,
    /// How it moves.
    pub mode: Mode,
    /// Connections for memory.
    pub lanes: usize,
    /// Bytes per second that the source may send, if that is limited.
    pub bandwidth: Option<u64>,
    /// What moves.
    pub staged: Staged,
}

/// A program of a service as it is when its CVM's tasks are parked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramWord {
    /// The service.
    pub service: EntityName,
    /// The program's number in its CVM, if it runs.
    pub program: Option<u32>,
    /// If it is over for good: how it ended.
    pub over: Option<String>,
}

/// The last of the records, when all tasks are parked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Parked {
    /// See [`Staged::pending`].
    pub pending: Vec<(ActivationId, Pending)>,
    /// All services.
    pub programs: Vec<ProgramWord>,
    /// What the destination's host must know of programs, connections and calls, in hexadecimal digits.
    pub roster: String,
}

/// What a source says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum SourceWord {
    /// It begins.
    Offer(Box<Offer>),
    /// A module follows, in pieces.
    Code {
        /// SHA-256.
        digest: Digest,
        /// Bytes.
        bytes: u64,
    },
    /// All modules were sent.
    Begin,
    /// The tasks are parked.
    Parked(Parked),
    /// Durable at the source: nothing runs there any more.
    Commit {
        /// What activates the destination.
        commit: Commit,
    },
    /// Nothing was handed over; the tenant runs at the source.
    Aborted {
        /// Why.
        reason: String,
    },
}

/// What the source shows when it connects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tickets {
    /// For the control channel.
    pub control: String,
    /// For the demand channel.
    pub demand: String,
    /// For each lane.
    pub lanes: Vec<String>,
}

/// What a destination says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum DestinationWord {
    /// It takes the tenant, and needs these modules.
    Wanted {
        /// Those it has not.
        modules: Vec<Digest>,
        /// Who it is.
        fingerprint: Digest,
    },
    /// Its CVM waits.
    Ready(Tickets),
    /// The last records are on its disk: as far as this node is concerned the tenant may go.
    Kept,
    /// It does not, or can't any more: before anything was gone.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The tenant runs, durably.
    Running {
        /// From the arrival of the Commit until its tasks were queued, in nanoseconds.
        took_ns: u64,
        /// From then until this was said: what the tenant does not wait for.
        #[serde(default)]
        after_ns: u64,
    },
    /// It has everything.
    Complete,
}

/// A stream for what stayed behind of a tenant: `POST /peer/v1/tunnels`, answered by a [`ClientAnswer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskTunnel {
    /// Whose it is.
    pub tenant: TenantName,
    /// The tenant's uuid.
    pub uuid: String,
    /// What stayed behind, in hexadecimal digits.
    pub origin: String,
}

/// The Commit once more: `POST /peer/v1/migrations/commit`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskCommit {
    /// The migration.
    pub id: MigrationId,
    /// What activates the destination; with the source's CVM gone and none here or before, there is none.
    pub commit: Option<Commit>,
    /// The source's CVM is gone: what was not fetched will not come.
    pub alone: bool,
}

/// How it stands there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitAnswer {
    /// It runs.
    Running,
    /// It runs and has everything.
    Complete,
    /// It ran, and was lost before it had everything.
    Lost {
        /// Why.
        reason: String,
    },
    /// It waits for its guest; ask again.
    Waiting,
    /// There is no such migration any more.
    Unknown,
}

/// A client of a service: the first word on its stream, to which [`ClientAnswer`] is the answer; then come its bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskClient {
    /// Whose service.
    pub tenant: TenantName,
    /// The first half of the tenant's credentials.
    pub uuid: String,
    /// Which.
    pub service: EntityName,
}

/// Whether it is connected.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum ClientAnswer {
    /// It is.
    Connected,
    /// The tenant has moved on.
    Moved {
        /// Where to.
        away: Away,
    },
    /// It can't be now.
    Refused {
        /// Why.
        reason: String,
    },
    /// It never can be: what it belonged to is not there any more.
    Over {
        /// Why.
        reason: String,
    },
}

/// A call that was begun at a node ended there after its tenant had moved: `POST /peer/v1/activations`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndedCall {
    /// Whose.
    pub tenant: TenantName,
    /// The first half of the tenant's credentials.
    pub uuid: String,
    /// How it ended.
    pub activation: Activation,
}

/// A connection in place of one that broke: `POST /peer/v1/migrations/rejoin`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct AskRejoin {
    /// The migration.
    pub id: MigrationId,
    /// Which of its channels.
    pub channel: u32,
}

/// What to show for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RejoinTicket {
    /// The ticket; none if the migration is not there, or over.
    pub ticket: Option<String>,
}

/// Bytes from hexadecimal digits, of any number.
#[must_use]
pub fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |c: u8| char::from(c).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_bytes_or_nothing() {
        assert_eq!(bytes_of("00ff1a"), Some(vec![0, 255, 26]));
        assert_eq!(bytes_of(""), Some(Vec::new()));
        for text in ["0", "0g", "é0", "000"] {
            assert_eq!(bytes_of(text), None, "{text}");
        }
    }

    #[test]
    fn words_of_nodes_survive_text() {
        let word = SourceWord::Commit { commit: Commit(Box::new([3; 88])) };
        let text = serde_json::to_string(&word).unwrap();
        assert!(matches!(serde_json::from_str(&text).unwrap(), SourceWord::Commit { .. }));
        assert!(serde_json::from_str::<SourceWord>(r#"{"word":"commit","commit":"00"}"#).is_err());
        let ran = serde_json::from_str(r#"{"word":"running","took_ns":5}"#).unwrap();
        assert!(matches!(ran, DestinationWord::Running { took_ns: 5, after_ns: 0 }));
        let order: MoveOrder = serde_json::from_str(r#"{"to":"b:1","mode":"stop-and-copy"}"#).unwrap();
        assert_eq!((order.mode, order.lanes), (Mode::StopAndCopy, None));
        assert!(serde_json::from_str::<MoveOrder>(r#"{"to":"b:1","speed":1}"#).is_err());
    }
}
