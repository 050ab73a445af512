//! The durable states of a migration at either end, and what may follow what.

use super::Mode;
use crate::names::{Digest, MigrationId, TenantName, hex, parse_hex};
use serde::{Deserialize, Serialize};

/// Bytes of a Commit.
const COMMIT_BYTES: usize = 88;
/// Longest reason that is kept, in characters.
const MAX_REASON: usize = 512;

/// Another node: where it is, and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerName {
    /// `HOST:PORT`.
    pub url: String,
    /// SHA-256 of its public key.
    pub fingerprint: Digest,
}

/// What makes the destination run the tenant; of use to it alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Commit(pub Box<[u8; COMMIT_BYTES]>);

impl std::fmt::Debug for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Commit({COMMIT_BYTES} bytes)")
    }
}

impl TryFrom<String> for Commit {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        parse_hex(&text).map(|bytes| Self(Box::new(bytes))).ok_or("a Commit has 176 hexadecimal digits")
    }
}

impl From<Commit> for String {
    fn from(commit: Commit) -> String {
        hex(&commit.0[..])
    }
}

/// Where a tenant is that moved away: never started here again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    /// Who has it.
    pub to: PeerName,
    /// By which migration.
    pub id: MigrationId,
}

/// A tenant whose memory is nowhere any more, and which of its services are not started again for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// By which migration.
    pub id: MigrationId,
    /// What happened.
    pub reason: String,
    /// The services that ran then, and were neither removed nor deployed since.
    pub services: Vec<crate::names::EntityName>,
}

/// How far a migration is at its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OutState {
    /// The tenant runs here.
    Offered,
    /// Its tasks are parked: from now on it may be gone at any moment, and the guest alone knows.
    Parked,
    /// It runs nowhere, and this is what makes it run there.
    Gone {
        /// To be delivered.
        commit: Commit,
        /// Bytes that the destination still has to fetch.
        outstanding_bytes: u64,
    },
    /// The destination has said that it runs.
    Delivered,
    /// And that it has everything.
    Complete,
    /// It ended before, and the tenant runs here.
    Aborted {
        /// Why.
        reason: String,
    },
    /// The tenant is nowhere any more.
    Lost {
        /// Why.
        reason: String,
    },
}

/// What happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutEvent {
    /// The guest has parked the tenant's tasks.
    Parked,
    /// The guest said so.
    Gone {
        /// What it gave with that.
        commit: Commit,
        /// Bytes that the destination still has to fetch.
        outstanding_bytes: u64,
    },
    /// The destination's node says that it runs.
    Running,
    /// It has everything.
    Complete,
    /// It ended before anything was gone.
    Aborted(String),
    /// The destination's node does not know it.
    Unknown(String),
    /// Its CVM ended while the tenant was being handed over.
    Ended(String),
    /// This node was started.
    Restarted,
}

/// A migration away from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// Its id.
    pub id: MigrationId,
    /// Who moves.
    pub tenant: TenantName,
    /// The first half of its credentials: a later tenant of its name is another one.
    pub uuid: String,
    /// Where to.
    pub peer: PeerName,
    /// How.
    pub mode: Mode,
    /// When it began, in milliseconds since 1970.
    pub begun_ms: u64,
    /// How far it is.
    #[serde(flatten)]
    pub state: OutState,
}

/// Something that can't follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a migration that is {state} can't become {event}")]
pub struct StepError {
    state: &'static str,
    event: &'static str,
}

impl OutState {
    /// Its word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Parked => "parked",
            Self::Gone { .. } => "gone",
            Self::Delivered => "delivered",
            Self::Complete => "complete",
            Self::Aborted { .. } => "aborted",
            Self::Lost { .. } => "lost",
        }
    }

    /// Nothing follows.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Complete | Self::Aborted { .. } | Self::Lost { .. })
    }

    /// What follows; the same state if nothing does.
    ///
    /// # Errors
    /// [`StepError`] if that can't happen now.
    pub fn step(self, event: OutEvent) -> Result<Self, StepError> {
        let wrong = |state: &Self, event| Err(StepError { state: state.word(), event });
        match (self, event) {
            (Self::Offered, OutEvent::Parked) => Ok(Self::Parked),
            (Self::Parked, OutEvent::Gone { commit, outstanding_bytes }) => {
                Ok(Self::Gone { commit, outstanding_bytes })
            }
            (Self::Offered | Self::Parked, OutEvent::Aborted(reason)) => {
                Ok(Self::Aborted { reason: short(reason) })
            }
            (Self::Offered, OutEvent::Restarted) => {
                Ok(Self::Aborted { reason: "the node was restarted meanwhile".into() })
            }
            // Its CVM ended with the node, and the destination has no Commit, or none that this node knows.
            (Self::Parked, OutEvent::Restarted) => Ok(Self::Lost {
                reason: "the node was restarted while the tenant was being handed over".into(),
            }),
            (Self::Gone { .. }, OutEvent::Running) => Ok(Self::Delivered),
            (Self::Gone { .. }, OutEvent::Complete) | (Self::Delivered, OutEvent::Complete) => {
                Ok(Self::Complete)
            }
            (Self::Gone { .. }, OutEvent::Unknown(reason)) | (Self::Parked, OutEvent::Ended(reason)) => {
                Ok(Self::Lost { reason: short(reason) })
            }
            // What became of it there since is that node's affair.
            (Self::Delivered, OutEvent::Unknown(_)) => Ok(Self::Complete),
            (state @ Self::Delivered, OutEvent::Running) => Ok(state),
            (state, OutEvent::Restarted) => Ok(state),
            (state, OutEvent::Parked) => wrong(&state, "parked"),
            (state, OutEvent::Gone { .. }) => wrong(&state, "gone"),
            (state, OutEvent::Running) => wrong(&state, "running"),
            (state, OutEvent::Complete) => wrong(&state, "complete"),
            (state, OutEvent::Aborted(_)) => wrong(&state, "aborted"),
            (state, OutEvent::Unknown(_)) => wrong(&state, "unknown"),
            (state, OutEvent::Ended(_)) => wrong(&state, "lost"),
        }
    }
}

/// How far a migration is at its destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum InState {
    /// The tenant's records are staged, its memory comes.
    Receiving,
    /// What changed last in the records is staged too.
    Staged,
    /// The tenant is this node's.
    Running,
    /// And nothing of it is at the source any more.
    Complete,
    /// It ended before; nothing of it is here.
    Failed {
        /// Why.
        reason: String,
    },
    /// The tenant is this node's, but its memory is nowhere.
    Lost {
        /// Why.
        reason: String,
    },
}

/// What happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InEvent {
    /// The last of the records came.
    Staged,
    /// The guest runs.
    Running,
    /// It has everything.
    Complete,
    /// It ended before.
    Failed(String),
    /// What was still to come will not.
    SourceLost(String),
    /// This node was started.
    Restarted,
}

/// A migration to here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// Its id.
    pub id: MigrationId,
    /// Who moves.
    pub tenant: TenantName,
    /// The first half of its credentials: a later tenant of its name is another one. Empty in records of before it was kept.
    #[serde(default)]
    pub uuid: String,
    /// Where from: the key of that node. Nobody else may ask about it.
    pub from: Digest,
    /// How.
    #[serde(default)]
    pub mode: Mode,
    /// When it began, in milliseconds since 1970.
    pub begun_ms: u64,
    /// How far it is.
    #[serde(flatten)]
    pub state: InState,
}

impl Incoming {
    /// Whether it may still bring this tenant: it is under way, and the tenant does not run here yet.
    #[must_use]
    pub fn brings(&self, tenant: &TenantName) -> bool {
        self.tenant == *tenant && !self.state.is_over() && self.state != InState::Running
    }
}

impl InState {
    /// Its word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Staged => "staged",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed { .. } => "failed",
            Self::Lost { .. } => "lost",
        }
    }

    /// Nothing follows.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Complete | Self::Failed { .. } | Self::Lost { .. })
    }

    /// What follows; the same state if nothing does.
    ///
    /// # Errors
    /// [`StepError`] if that can't happen now.
    pub fn step(self, event: InEvent) -> Result<Self, StepError> {
        let wrong = |state: &Self, event| Err(StepError { state: state.word(), event });
        match (self, event) {
            (Self::Receiving, InEvent::Staged) => Ok(Self::Staged),
            (Self::Staged, InEvent::Running) => Ok(Self::Running),
            (Self::Running, InEvent::Complete) => Ok(Self::Complete),
            (Self::Receiving | Self::Staged, InEvent::Failed(reason)) => {
                Ok(Self::Failed { reason: short(reason) })
            }
            (Self::Receiving | Self::Staged, InEvent::Restarted) => {
                Ok(Self::Failed { reason: "the node was restarted meanwhile".into() })
            }
            (Self::Running, InEvent::SourceLost(reason)) => Ok(Self::Lost { reason: short(reason) }),
            (Self::Running, InEvent::Restarted) => {
                Ok(Self::Lost { reason: "the node was restarted before all memory had come".into() })
            }
            (state, InEvent::Restarted) => Ok(state),
            (state, InEvent::Staged) => wrong(&state, "staged"),
            (state, InEvent::Running) => wrong(&state, "running"),
            (state, InEvent::Complete) => wrong(&state, "complete"),
            (state, InEvent::Failed(_)) => wrong(&state, "failed"),
            (state, InEvent::SourceLost(_)) => wrong(&state, "lost"),
        }
    }
}

fn short(reason: String) -> String {
    match reason.char_indices().nth(MAX_REASON) {
        Some((end, _)) => reason[..end].to_owned(),
        None => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit() -> Commit {
        Commit(Box::new([7; COMMIT_BYTES]))
    }

    fn gone() -> OutEvent {
        OutEvent::Gone { commit: commit(), outstanding_bytes: 5 }
    }

    /// Two ends, a wire between them that carries words late or never, and crashes of either at any point.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Pair {
        out: OutState,
        inn: InState,
        /// The tenant's tasks: at the source, at the destination.
        runs: [bool; 2],
        /// The destination's guest can still be activated.
        receiver: bool,
    }

    fn follow(pair: &Pair) -> Vec<Pair> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut Pair) -> Option<()>| {
            let mut copy = pair.clone();
            if change(&mut copy).is_some() && copy != *pair {
                next.push(copy);
            }
        };
        let out = |pair: &mut Pair, event| {
            pair.out = pair.out.clone().step(event).ok()?;
            Some(())
        };
        let inn = |pair: &mut Pair, event| {
            pair.inn = pair.inn.clone().step(event).ok()?;
            Some(())
        };
        add(&|pair| inn(pair, InEvent::Staged));
        add(&|pair| out(pair, OutEvent::Parked));
        // The guest at the source goes only when the one at the destination is staged and its host has written down that it may. What it says
        // reaches the disk later, or never.
        add(&|pair| {
            (pair.receiver && pair.inn == InState::Staged && pair.out == OutState::Parked).then_some(())?;
            pair.runs[0] = false;
            Some(())
        });
        add(&|pair| {
            (pair.out == OutState::Parked && !pair.runs[0]).then_some(())?;
            out(pair, gone())
        });
        add(&|pair| pair.runs[0].then(|| out(pair, OutEvent::Aborted("x".into())))?);
        add(&|pair| inn(pair, InEvent::Failed("x".into())).map(|()| pair.receiver = false));
        // The Commit is delivered, from the disk if need be.
        add(&|pair| {
            (matches!(pair.out, OutState::Gone { .. }) && pair.receiver).then_some(())?;
            inn(pair, InEvent::Running)?;
            (pair.receiver, pair.runs[1]) = (false, true);
            Some(())
        });
        add(&|pair| {
            matches!(pair.inn, InState::Running | InState::Complete | InState::Lost { .. }).then_some(())?;
            out(pair, OutEvent::Running)
        });
        add(&|pair| inn(pair, InEvent::Complete));
        add(&|pair| {
            out(pair, OutEvent::Ended("x".into()))?;
            pair.runs[0] = false;
            Some(())
        });
        // Lost there is there to be seen.
        add(&|pair| {
            matches!(pair.inn, InState::Complete | InState::Lost { .. }).then_some(())?;
            out(pair, OutEvent::Complete)
        });
        add(&|pair| {
            matches!(pair.inn, InState::Failed { .. }).then_some(())?;
            out(pair, OutEvent::Unknown("it does not know it".into()))
        });
        // Crashes: what is durable stays, CVMs do not. A source that is not gone starts its tenant again.
        add(&|pair| {
            let was_gone = !pair.runs[0];
            out(pair, OutEvent::Restarted)?;
            assert!(
                !was_gone || !matches!(pair.out, OutState::Aborted { .. }),
                "begins again, empty: {pair:?}"
            );
            pair.runs[0] = matches!(pair.out, OutState::Aborted { .. });
            Some(())
        });
        add(&|pair| {
            inn(pair, InEvent::Restarted)?;
            pair.receiver = false;
            pair.runs[1] = pair.inn == InState::Complete;
            Some(())
        });
        next
    }

    #[test]
    fn whatever_crashes_when_there_are_never_two_and_none_is_silently_empty() {
        let begin =
            Pair { out: OutState::Offered, inn: InState::Receiving, runs: [true, false], receiver: true };
        let (mut seen, mut open) = (vec![begin.clone()], vec![begin]);
        while let Some(pair) = open.pop() {
            assert!(!(pair.runs[0] && pair.runs[1]), "two copies: {pair:?}");
            let next = follow(&pair);
            let over = pair.out.is_over() && pair.inn.is_over();
            let lost = matches!(pair.out, OutState::Lost { .. }) || matches!(pair.inn, InState::Lost { .. });
            if over && !lost {
                assert!(pair.runs[0] || pair.runs[1], "nowhere, and nobody says so: {pair:?}");
            }
            // From everywhere there is a way to an end.
            assert!(over || !next.is_empty(), "stuck: {pair:?}");
            for pair in next {
                if !seen.contains(&pair) {
                    seen.push(pair.clone());
                    open.push(pair);
                }
            }
        }
        assert!(seen.len() > 20, "{}", seen.len());
        assert!(seen.iter().any(|pair| pair.out == OutState::Complete && pair.inn == InState::Complete));
        assert!(seen.iter().any(|pair| matches!(pair.out, OutState::Lost { .. })));
    }

    #[test]
    fn what_is_over_stays_so() {
        for state in [OutState::Complete, OutState::Aborted { reason: "x".into() }] {
            assert_eq!(state.clone().step(OutEvent::Restarted), Ok(state.clone()));
            assert!(state.step(gone()).is_err());
        }
        let error = OutState::Offered.step(OutEvent::Running).unwrap_err();
        assert_eq!(error.to_string(), "a migration that is offered can't become running");
    }

    #[test]
    fn records_survive_text_and_keep_the_commit_to_themselves() {
        let record = Outgoing {
            id: MigrationId([1; 16]),
            tenant: TenantName::new("a").unwrap(),
            uuid: "u".into(),
            peer: PeerName { url: "b:1".into(), fingerprint: Digest([2; 32]) },
            mode: Mode::Hybrid,
            begun_ms: 3,
            state: OutState::Parked.step(gone()).unwrap(),
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Outgoing>(&text).unwrap(), record);
        assert!(!format!("{record:?}").contains("0707"));
    }
}
