//! A Commit that must arrive: asked until the destination's node says that its guest runs, or that it does not know it any more.

use super::destination::STAGED_PATIENCE;
use super::net::{COMMIT, Net};
use super::{AskCommit, Commit, CommitAnswer, Migrations, OutEvent, OutState, Outgoing, PeerName};
use crate::names::{Digest, MigrationId};
use std::sync::Arc;
use std::time::Duration;

/// Pauses between two attempts: first and longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// What the destination says in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It runs.
    Running,
    /// It needs nothing more from here.
    Complete,
    /// It had the tenant, and lost it before everything had come: nobody needs anything more from here.
    Lost(String),
    /// It does not know it.
    Unknown(String),
}

/// Delivers a Commit. `alone`: the CVM here is gone, so that nothing more can be fetched. `running`: the other node has said so before. In
/// either case it goes on until the other side needs nothing more.
pub async fn deliver(
    net: Arc<dyn Net>,
    peer: PeerName,
    id: MigrationId,
    commit: Option<Commit>,
    alone: bool,
    running: bool,
) -> Answer {
    let mut pause = PAUSES.0;
    let commit = commit.filter(|_| !running);
    let question = serde_json::to_value(AskCommit { id, commit, alone }).unwrap_or_default();
    loop {
        let answer = net.ask(&peer, COMMIT, question.clone()).await;
        match answer.map(serde_json::from_value::<CommitAnswer>) {
            Ok(Ok(CommitAnswer::Running)) if !alone && !running => return Answer::Running,
            Ok(Ok(CommitAnswer::Complete)) => return Answer::Complete,
            Ok(Ok(CommitAnswer::Lost { reason })) => return Answer::Lost(format!("{}: {reason}", peer.url)),
            Ok(Ok(CommitAnswer::Unknown)) => {
                return Answer::Unknown(format!("{} does not know the migration any more", peer.url));
            }
            Ok(Ok(CommitAnswer::Running | CommitAnswer::Waiting)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the answer to a Commit is not understood"),
            Err(error) => tracing::warn!(%error, "a Commit is not delivered yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Tells the destination of a migration that ended with a former run of this node that nothing comes any more: it would wait for long.
pub(super) async fn tell_end(manager: Arc<Migrations>, record: Outgoing) {
    // It had not heard of it yet.
    if record.peer.fingerprint == Digest([0; 32]) {
        return;
    }
    if let Some(net) = manager.net.clone() {
        let end = deliver(net, record.peer.clone(), record.id, None, true, false);
        // Then it has given up by itself.
        let _ = tokio::time::timeout(STAGED_PATIENCE, end).await;
    }
}

/// Delivers a Commit that a former run of the node has left.
pub(super) async fn after_restart(manager: Arc<Migrations>, record: Outgoing) {
    let Some(net) = manager.net.clone() else {
        tracing::warn!(id = %record.id, "a Commit waits to be delivered; start the node with --peer-listen");
        return;
    };
    let (commit, running) = match &record.state {
        OutState::Gone { commit, .. } => (Some(commit.clone()), false),
        _ => (None, true),
    };
    let event = match deliver(net, record.peer.clone(), record.id, commit, true, running).await {
        Answer::Running | Answer::Complete | Answer::Lost(_) => OutEvent::Complete,
        Answer::Unknown(reason) => OutEvent::Unknown(reason),
    };
    // Meanwhile it may have come back by another migration, or be another one of its name.
    let was_away = manager.store.directory().away(&record.tenant).is_some_and(|away| away.id == record.id);
    match manager.store.step_out(record.id, event).await {
        Ok(Outgoing { state: OutState::Lost { .. }, .. }) if was_away => {
            if let Some(tenant) = manager.tenants.same(&record.tenant, &record.uuid) {
                manager.lost(&tenant).await;
            }
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "a step of a migration is not kept"),
    }
}
