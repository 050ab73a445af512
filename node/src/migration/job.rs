//! A migration away from here as it goes on: what is shown of it, and its cancelling. In memory; what has to survive is in the store.

use super::{InState, Incoming, Mode, OutState, Outgoing, PeerName};
use crate::names::{MigrationId, TenantName, now_ms, rfc3339};
use nacre_vmm::migration::MoveNews;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use utoipa::ToSchema;

/// What a migration does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The other node is asked, and gets what it lacks.
    Preparing,
    /// Both guests prove what they are.
    Attesting,
    /// Memory is sent while tasks run.
    Copying,
    /// The tasks are parked.
    Parked,
    /// The destination has what it needs to run.
    Staged,
    /// The tenant is gone from here.
    Gone,
    /// It runs there.
    Running,
    /// It has everything.
    Complete,
    /// It ended, and the tenant runs here.
    Aborted,
    /// The tenant is nowhere any more.
    Lost,
}

impl Step {
    /// Nothing follows.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Complete | Self::Aborted | Self::Lost)
    }
}

/// When a step began.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct StepTime {
    /// Which.
    step: Step,
    /// Milliseconds since the migration began.
    at_ms: f64,
}

/// What the source's guest has measured: a claim, as all that guests say.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct GuestReport {
    /// Rounds while tasks ran.
    rounds: u64,
    /// Bytes of pages sent before the hand-over.
    bytes: u64,
    /// Bytes of pages that stayed outstanding at the hand-over.
    outstanding_bytes: u64,
    /// From the beginning of parking until all tasks were parked, in milliseconds.
    parked_ms: f64,
    /// Until what had changed was found.
    collected_ms: f64,
    /// Until everything was sent.
    sent_ms: f64,
    /// Until the destination had said that it is staged.
    staged_ms: f64,
    /// Until the tenant was gone.
    gone_ms: f64,
    /// From the hand-over until nothing was outstanding any more.
    window_ms: f64,
}

/// A migration.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MigrationView {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Who moves.
    pub tenant: String,
    /// Where to.
    pub to: String,
    /// How.
    pub mode: Mode,
    /// When it began.
    began: String,
    /// What it does now.
    pub step: Step,
    /// The round that is sent now; 0 before the first.
    pub round: u64,
    /// Bytes of pages sent.
    pub sent_bytes: u64,
    /// Bytes of pages sent, and to be sent in this round.
    pub total_bytes: u64,
    /// Bytes of pages written per second.
    pub dirty_rate: u64,
    /// Bytes sent per second during the last round.
    pub bandwidth: u64,
    /// Until this round is sent, in milliseconds: an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_ms: Option<u64>,
    /// The steps and when they began.
    pub steps: Vec<StepTime>,
    /// From the moment at which its tasks were known to be parked here until the other node said that it runs, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<f64>,
    /// From the moment at which its guest here was done with it until its tasks ran there, in milliseconds. With `gone_ms` of the guest that is
    /// the time in which no task ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handed_ms: Option<f64>,
    /// What the guest measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<GuestReport>,
    /// Why it ended without success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl MigrationView {
    /// Of one that only the store knows: it was begun before the node was started.
    #[must_use]
    pub fn stored(record: &Outgoing) -> Self {
        let (step, error) = match &record.state {
            OutState::Offered => (Step::Preparing, None),
            OutState::Parked => (Step::Parked, None),
            OutState::Gone { .. } => (Step::Gone, None),
            OutState::Delivered => (Step::Running, None),
            OutState::Complete => (Step::Complete, None),
            OutState::Aborted { reason } => (Step::Aborted, Some(reason.clone())),
            OutState::Lost { reason } => (Step::Lost, Some(reason.clone())),
        };
        Self { step, error, ..Self::new(record) }
    }

    /// Of one to here, as far as this end knows it.
    #[must_use]
    pub fn incoming(record: &Incoming, own: String) -> Self {
        let (step, error) = match &record.state {
            InState::Receiving => (Step::Copying, None),
            InState::Staged => (Step::Staged, None),
            InState::Running => (Step::Running, None),
            InState::Complete => (Step::Complete, None),
            InState::Failed { reason } => (Step::Aborted, Some(reason.clone())),
            InState::Lost { reason } => (Step::Lost, Some(reason.clone())),
        };
        let peer = PeerName { url: own, fingerprint: record.from };
        let (id, tenant, mode, begun_ms) = (record.id, record.tenant.clone(), record.mode, record.begun_ms);
        let state = OutState::Offered;
        let record = Outgoing { id, tenant, uuid: String::new(), peer, mode, begun_ms, state };
        Self { step, error, ..Self::new(&record) }
    }

    fn new(record: &Outgoing) -> Self {
        Self {
            id: record.id.to_string(),
            tenant: record.tenant.to_string(),
            to: record.peer.url.clone(),
            mode: record.mode,
            began: rfc3339(record.begun_ms),
            step: Step::Preparing,
            round: 0,
            sent_bytes: 0,
            total_bytes: 0,
            dirty_rate: 0,
            bandwidth: 0,
            estimated_ms: None,
            steps: Vec::new(),
            downtime_ms: None,
            handed_ms: None,
            report: None,
            error: None,
        }
    }
}

/// A migration away from here that is under way, or was.
pub struct Job {
    /// Its id.
    pub id: MigrationId,
    /// Whose it is.
    pub tenant: TenantName,
    /// When it began, in milliseconds since 1970.
    pub begun_ms: u64,
    begin: Instant,
    view: watch::Sender<MigrationView>,
    cancelled: watch::Sender<bool>,
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

impl Job {
    /// One that begins.
    #[must_use]
    pub fn new(record: &Outgoing) -> Arc<Self> {
        let job = Self {
            id: record.id,
            tenant: record.tenant.clone(),
            begun_ms: record.begun_ms,
            begin: Instant::now(),
            view: watch::Sender::new(MigrationView::new(record)),
            cancelled: watch::Sender::new(false),
        };
        job.step(Step::Preparing);
        Arc::new(job)
    }

    /// How it is.
    #[must_use]
    pub fn view(&self) -> MigrationView {
        self.view.borrow().clone()
    }

    /// How it is, and when that changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<MigrationView> {
        self.view.subscribe()
    }

    /// Nothing follows.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.view.borrow().step.is_over()
    }

    /// Asks for its end.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Somebody has.
    #[must_use]
    pub fn cancelled(&self) -> watch::Receiver<bool> {
        self.cancelled.subscribe()
    }

    fn elapsed_ms(&self) -> f64 {
        self.begin.elapsed().as_secs_f64() * 1e3
    }

    /// A step begins.
    pub fn step(&self, step: Step) {
        let at_ms = self.elapsed_ms();
        self.view.send_modify(|view| {
            if view.step.is_over() || view.steps.iter().any(|time| time.step == step) {
                return;
            }
            view.step = step;
            view.steps.push(StepTime { step, at_ms });
            if step == Step::Running {
                let parked = view.steps.iter().find(|time| time.step == Step::Parked);
                view.downtime_ms = parked.map(|parked| at_ms - parked.at_ms);
            }
            if step.is_over() {
                view.estimated_ms = None;
            }
        });
    }

    /// Its tasks ran there so long after the guest here was done with it.
    pub fn handed(&self, took: Duration) {
        self.view.send_modify(|view| view.handed_ms = Some(took.as_secs_f64() * 1e3));
    }

    /// It ended without success.
    pub fn fail(&self, step: Step, reason: &str) {
        self.view.send_modify(|view| view.error = Some(reason.to_owned()));
        self.step(step);
    }

    /// What the guest tells.
    pub fn note(&self, news: &MoveNews) {
        match news {
            MoveNews::Attested => self.step(Step::Copying),
            MoveNews::Round(progress) => self.view.send_modify(|view| {
                view.round = progress.round;
                view.sent_bytes = progress.sent_bytes;
                view.total_bytes = progress.sent_bytes.saturating_add(progress.dirty_bytes);
                view.dirty_rate = progress.dirty_rate;
                view.bandwidth = progress.bandwidth;
                let left = u128::from(progress.dirty_bytes) * 1000;
                view.estimated_ms =
                    left.checked_div(progress.bandwidth.into()).and_then(|ms| u64::try_from(ms).ok());
            }),
            MoveNews::Parked => self.step(Step::Parked),
            MoveNews::Staged => self.step(Step::Staged),
            MoveNews::Complete(report) => self.view.send_modify(|view| {
                view.sent_bytes = report.bytes.saturating_add(report.outstanding_bytes);
                view.total_bytes = view.sent_bytes;
                view.report = Some(GuestReport {
                    rounds: report.rounds,
                    bytes: report.bytes,
                    outstanding_bytes: report.outstanding_bytes,
                    parked_ms: ms(report.parked_ns),
                    collected_ms: ms(report.collected_ns),
                    sent_ms: ms(report.sent_ns),
                    staged_ms: ms(report.staged_ns),
                    gone_ms: ms(report.gone_ns),
                    window_ms: ms(report.window_ns),
                });
            }),
            MoveNews::Commit(..) | MoveNews::Running(_) | MoveNews::Aborted(..) | MoveNews::Broken(..) => {}
        }
    }
}

/// A migration's record as it begins.
#[must_use]
pub fn begin(tenant: &crate::tenants::Tenant, peer: PeerName, mode: Mode) -> Outgoing {
    Outgoing {
        id: MigrationId::new(),
        tenant: tenant.name().clone(),
        uuid: tenant.record.uuid.clone(),
        peer,
        mode,
        begun_ms: now_ms(),
        state: OutState::Offered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Digest;

    fn progress(round: u64, sent: u64, dirty: u64) -> MoveNews {
        MoveNews::Round(nacre_vmm::migration::MoveProgress {
            round,
            sent_bytes: sent,
            dirty_bytes: dirty,
            dirty_rate: 1,
            bandwidth: 1000,
        })
    }

    #[test]
    fn what_is_shown_follows_what_is_told() {
        let record = Outgoing {
            id: MigrationId([1; 16]),
            tenant: TenantName::new("a").unwrap(),
            uuid: "u".into(),
            peer: PeerName { url: "b:1".into(), fingerprint: Digest([2; 32]) },
            mode: Mode::Hybrid,
            begun_ms: 3,
            state: OutState::Offered,
        };
        let job = Job::new(&record);
        job.note(&MoveNews::Attested);
        job.note(&progress(2, 4000, 500));
        let view = job.view();
        assert_eq!(
            (view.step, view.round, view.total_bytes, view.estimated_ms),
            (Step::Copying, 2, 4500, Some(500))
        );
        job.note(&MoveNews::Parked);
        assert_eq!(job.view().downtime_ms, None);
        job.handed(Duration::from_millis(2));
        job.step(Step::Running);
        assert_eq!(job.view().handed_ms, Some(2.0));
        assert!(job.view().downtime_ms.is_some_and(|ms| ms >= 0.0));
        job.step(Step::Complete);
        // What is over stays so.
        job.fail(Step::Aborted, "late");
        assert_eq!(job.view().step, Step::Complete);
        assert!(serde_json::to_string(&job.view()).unwrap().contains("\"step\":\"complete\""));
    }
}
