//! The key broker: the owner's, or one the owner's manifest names. It waits at a node for CVMs that hold nothing yet, and gives code
//! keys and secrets to those that its policy accepts, so that the tenant's workloads come back while their owner is away.
//!
//! ```text
//! wait: GET provisioning -> a CVM -> evidence -> rejected: audit, wait longer each time
//!                                             -> accepted: audit, then for each name its newest release:
//!                                                upload if the node lost it, audit, Install   -> POST provisioning
//! ```
//! Everything that is released is in the audit log before it leaves. The manifest and each version only ever go up.

use crate::deploy::{ClearError, clear, run_service, services};
use crate::http::{Node, NodeError};
use crate::node::Unprovisioned;
use crate::release::Release;
use crate::session::{Expectations, SealedSession, SessionError};
use crate::store::{Entry, Store, StoreError};
use hyper::body::Bytes;
use nacre_attest::evidence::Evidence;
use nacre_attest::policy::Policy;
use nacre_attest::report::Report;
use nacre_attest::verify::{Verdict, hex};
use nacre_session::{Refusal, SigningKey};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a question for CVMs waits at the node.
const POLL: Duration = Duration::from_secs(30);
/// Pauses after failures: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// From one question to the next at least: a node may answer at once, for ever.
const POLL_PAUSE: Duration = Duration::from_millis(500);
/// Longest time for one CVM.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why a CVM was not provisioned.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The evidence, the session, or the CVM.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node launched the CVM with a manifest that is not the newest.
    #[error(
        "the CVM runs with version {found} of the manifest, version {newest} is known; nothing was released"
    )]
    OldManifest {
        /// Its version.
        found: u64,
        /// The newest.
        newest: u64,
    },
    /// The node does not answer in time.
    #[error("the CVM was not provisioned within {} s; is the node overloaded?", PATIENCE.as_secs())]
    Slow,
}

impl From<ClearError> for BrokerError {
    fn from(error: ClearError) -> Self {
        match error {
            ClearError::Node(error) => error.into(),
            ClearError::Store(error) => error.into(),
        }
    }
}

/// What became of one CVM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provisioned {
    /// What was installed: names and versions.
    pub installed: Vec<(String, u64)>,
    /// What was there already.
    pub present: Vec<(String, u64)>,
    /// What the CVM did not take, and why.
    pub refused: Vec<(String, u64, String)>,
}

/// What the broker tells whoever started it.
#[derive(Debug)]
pub enum Event<'a> {
    /// It waits at the node.
    Waiting,
    /// A CVM has what it needs.
    Provisioned {
        /// The node's number for it.
        generation: u64,
        /// What it got.
        result: &'a Provisioned,
    },
    /// Something failed; it goes on after a pause.
    Failed {
        /// What.
        error: &'a BrokerError,
        /// How long it waits.
        pause: Duration,
    },
}

/// A key broker.
pub struct Broker {
    /// Where it waits.
    pub node: Node,
    /// What a CVM must prove.
    pub policy: Policy,
    /// Signs its commands.
    pub key: SigningKey,
    /// What it has to give.
    pub store: Store,
}

/// Chip, measurement and so on of evidence, for the log. All of it is the CVM's word until a verdict accepts it.
fn described(evidence: &Evidence, verdict: &Verdict) -> Value {
    let report = Report::parse(&evidence.report).ok();
    let report = report.as_ref();
    json!({
        "platform": verdict.platform.map(|platform| platform.name()),
        "chip": report.map(|report| hex(&report.chip_id)),
        "measurement": report.map(|report| hex(&report.measurement)),
        "guest": verdict.guest,
        "manifest": hex(&evidence.claims.manifest),
        "manifest_version": verdict.manifest.as_ref().map(|manifest| manifest.version),
        "session": hex(&evidence.claims.id),
        "accepted": verdict.accepted(),
        "failed": verdict.failed().map(|rule| json!({ "rule": rule.name, "detail": rule.detail })).collect::<Vec<_>>(),
    })
}

impl Broker {
    /// Gives the node what it lost: the manifest, if it has none or an older one.
    ///
    /// # Errors
    /// `Node`, `Store`.
    pub async fn restore_manifest(&self) -> Result<(), BrokerError> {
        let Some((signed, manifest)) = self.store.manifest()? else { return Ok(()) };
        let there = self.node.manifest().await?;
        let there = there.and_then(|bytes| nacre_attest::manifest::SignedManifest::decode(&bytes).ok());
        let there = there.and_then(|signed| signed.verify().ok());
        if there.is_none_or(|there| there.owner == manifest.owner && there.version < manifest.version) {
            self.node.put_manifest(&signed).await?;
        }
        Ok(())
    }

    /// Provisions one CVM.
    ///
    /// # Errors
    /// [`BrokerError`]; the audit log says what was released until then.
    pub async fn provision(&self, waiting: &Unprovisioned) -> Result<Provisioned, BrokerError> {
        let work = self.provision_now(waiting);
        tokio::time::timeout(PATIENCE, work).await.map_err(|_| BrokerError::Slow)?
    }

    async fn provision_now(&self, waiting: &Unprovisioned) -> Result<Provisioned, BrokerError> {
        let opened = SealedSession::open(&self.node, &self.policy, &Expectations::provisioning()).await;
        if let Err(error) = &opened
            && let Some(rejection) = error.rejection()
        {
            let mut what = described(&rejection.evidence, &rejection.verdict);
            what["error"] = error.to_string().into();
            self.store.audit("rejected", what)?;
        }
        let mut session = opened?;
        let mut what = described(session.evidence(), session.verdict());
        if let Err(error) = self.newest_manifest(&session) {
            what["error"] = error.to_string().into();
            self.store.audit("rejected", what)?;
            return Err(error);
        }
        self.store.audit("accepted", what)?;
        let entries = self.store.entries()?;
        let installed = session.status(&self.key).await?;
        let running = services(&self.node).await?;
        let mut result = Provisioned::default();
        for Entry { name, release, .. } in &entries {
            let Some(release) = release else { continue };
            let there = installed.iter().find(|one| one.name == *name);
            if there.is_some_and(|there| there.version == release.version && there.code == release.code) {
                result.present.push((name.clone(), release.version));
            } else {
                match self.install(&mut session, release, &waiting.packages).await? {
                    Ok(()) => result.installed.push((name.clone(), release.version)),
                    Err(why) => {
                        result.refused.push((name.clone(), release.version, why));
                        continue;
                    }
                }
            }
            if let Some(service) = &release.service
                && !running.contains(&(release.package, service.port))
            {
                run_service(&self.node, release, service).await?;
            }
        }
        for entry in entries.iter().filter(|entry| !entry.obsolete.is_empty()) {
            clear(&self.node, &self.store, &entry.name).await?;
        }
        self.node.provisioned(waiting.generation).await?;
        Ok(result)
    }

    /// An older manifest may name keys that were taken back.
    fn newest_manifest(&self, session: &SealedSession) -> Result<(), BrokerError> {
        let Some(signed) = &session.evidence().manifest else { return Ok(()) };
        match self.store.set_manifest(signed) {
            Err(StoreError::OlderManifest { newest }) => {
                Err(BrokerError::OldManifest { found: session.manifest().version, newest })
            }
            done => Ok(done?),
        }
    }

    /// Installs one release; why the CVM does not take it, if that is the release's fault.
    async fn install(
        &self,
        session: &mut SealedSession,
        release: &Release,
        packages: &[String],
    ) -> Result<Result<(), String>, BrokerError> {
        let id = hex(&release.package);
        if !packages.contains(&id) {
            self.upload(release).await?;
        }
        let what = json!({
            "session": hex(&session.evidence().claims.id),
            "name": release.name,
            "version": release.version,
            "package": id,
            "code": hex(&release.code),
            "variables": release.env.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        });
        self.store.audit("releasing", what.clone())?;
        let mut done = session.install(release, &self.key).await;
        let lost = [Refusal::PackageMissing, Refusal::PackageDamaged];
        if matches!(&done, Err(SessionError::Refused { reason, .. }) if lost.contains(reason)) {
            self.upload(release).await?;
            done = session.install(release, &self.key).await;
        }
        match done {
            Ok(_) => {
                self.store.audit("released", what)?;
                Ok(Ok(()))
            }
            Err(error) => {
                let mut what = what;
                what["error"] = error.to_string().into();
                self.store.audit("refused", what)?;
                if is_final(&error) { Ok(Err(error.to_string())) } else { Err(error.into()) }
            }
        }
    }

    async fn upload(&self, release: &Release) -> Result<(), BrokerError> {
        let package = Bytes::from(self.store.package(release)?);
        Ok(self.node.put_package(&release.package, package).await?)
    }

    /// Provisions CVMs for ever, or one only: then whatever went wrong is the result. `tell` gets what happens.
    ///
    /// # Errors
    /// With `once`: [`BrokerError`]. Else `Session` for a policy that no broker can have.
    pub async fn run(&self, once: bool, mut tell: impl FnMut(Event<'_>)) -> Result<(), BrokerError> {
        let mut pause = PAUSES.0;
        loop {
            tell(Event::Waiting);
            let next = tokio::time::Instant::now() + POLL_PAUSE;
            let error = match self.next(&mut tell).await {
                Ok(done) => {
                    if once && done != Round::Nobody {
                        return Ok(());
                    }
                    match done {
                        // The node names one that has all: a broker that asked less would miss little.
                        Round::Idle => {
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(PAUSES.1);
                        }
                        Round::Nobody | Round::Provisioned => pause = PAUSES.0,
                    }
                    tokio::time::sleep_until(next).await;
                    continue;
                }
                Err(error) => error,
            };
            let hopeless =
                matches!(error, BrokerError::Session(SessionError::NoOwner | SessionError::OpenPolicy));
            if once || hopeless {
                return Err(error);
            }
            tell(Event::Failed { error: &error, pause });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Waits for one CVM and provisions it.
    async fn next(&self, tell: &mut impl FnMut(Event<'_>)) -> Result<Round, BrokerError> {
        self.restore_manifest().await?;
        let Some(waiting) = self.node.unprovisioned(POLL).await? else { return Ok(Round::Nobody) };
        let result = self.provision(&waiting).await?;
        tell(Event::Provisioned { generation: waiting.generation, result: &result });
        Ok(if result.installed.is_empty() { Round::Idle } else { Round::Provisioned })
    }
}

/// What came of one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// There was no CVM.
    Nobody,
    /// There was one, which lacked nothing, or took nothing.
    Idle,
    /// There was one, which got something.
    Provisioned,
}

/// Whether the CVM will say the same next time, so that the others need not wait for this one.
fn is_final(error: &SessionError) -> bool {
    let SessionError::Refused { reason, .. } = error else { return false };
    match reason {
        Refusal::Malformed
        | Refusal::OlderVersion
        | Refusal::SameVersion
        | Refusal::OtherVersion
        | Refusal::PackageDamaged
        | Refusal::CodeRejected
        | Refusal::CodeIncompatible
        | Refusal::TooMany
        | Refusal::OutOfMemory
        | Refusal::Unsupported
        | Refusal::UnknownAction
        | Refusal::NotAnAction
        | Refusal::NotAService
        | Refusal::BadVariable
        | Refusal::AnswerTooLong => true,
        Refusal::Unsigned
        | Refusal::UnknownSigner
        | Refusal::BadSignature
        | Refusal::PackageMissing
        | Refusal::OpenMode
        | Refusal::Busy
        | Refusal::CodeChanged
        | Refusal::Leaving => false,
    }
}
