//! Keeps one service running: starts it, waits for its end, starts it again as its policy says, with growing pauses.

use super::door::Door;
use super::gateway::{Gateway, RelayTo};
use super::log::LogRing;
use crate::migration::ProgramWord;
use crate::names::EntityName;
use crate::outcome::End;
use crate::records::Service;
use crate::runner::Runner;
use crate::tenants::{Standing, Tenant};
use nacre_vmm::program::Connector;
use nacre_vmm::tunnel::Adopted;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// First pause before a service is started again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A service that ran this long has proven itself: the pauses begin anew.
const PROVEN: Duration = Duration::from_secs(10);
/// Waits at most this long for a supervisor to end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What a service does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its code is brought into the CVM.
    Starting,
    /// It serves.
    Running,
    /// It ended and will be started again.
    Waiting,
    /// It ended, and that is all.
    Ended,
    /// It can't be started.
    Failed,
    /// Its tenant is at another node: clients are relayed there.
    Moved,
    /// Its memory was lost in a migration. It is not started again before it is deployed again, or removed.
    Lost,
}

/// How a service begins.
pub enum Begin {
    /// Its program is started.
    Fresh,
    /// Its program has come with its tenant.
    Arrived(Adopted),
    /// Its program was over where it came from, for good: how.
    Over(String),
    /// It is lost: why.
    Lost(String),
}

/// How a service is.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Status {
    /// What it does now.
    pub phase: Phase,
    /// How often it was started again.
    pub restarts: u64,
    /// How it ended last, or why it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_end: Option<String>,
    /// Connections now.
    pub connections: usize,
    /// Of clients that are relayed between this node and others, because its tenant has moved.
    pub relayed: usize,
}

/// The same with what the gateway needs.
#[derive(Clone)]
pub(super) struct State {
    phase: Phase,
    restarts: u64,
    last_end: Option<String>,
    pub(super) connector: Option<Connector>,
    /// The program's number.
    program: Option<u32>,
}

/// A service and the tasks that keep it.
pub(super) struct Supervised {
    state: watch::Receiver<State>,
    stop: watch::Sender<bool>,
    port: u16,
    door: Mutex<Option<Arc<Door>>>,
    log: Arc<LogRing>,
    relayed: Arc<AtomicUsize>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What a supervisor works with.
pub(super) struct Means {
    pub(super) runner: Arc<Runner>,
    pub(super) relay: Option<Arc<dyn RelayTo>>,
    pub(super) address: SocketAddr,
}

impl Supervised {
    pub(super) fn start(
        means: Means,
        tenant: Arc<Tenant>,
        service: Arc<Service>,
        door: Option<Arc<Door>>,
        begin: Begin,
    ) -> Arc<Self> {
        let phase = Phase::Starting;
        let state = State { phase, restarts: 0, last_end: None, connector: None, program: None };
        let (tell, state) = watch::channel(state);
        let (stop, stopped) = watch::channel(false);
        let log = Arc::new(LogRing::default());
        let port = service.port;
        let this = Arc::new(Self {
            state,
            stop,
            port,
            door: Mutex::new(door.clone()),
            log: log.clone(),
            relayed: Arc::default(),
            task: Mutex::default(),
        });
        let Means { runner, relay, address } = means;
        let standing = tenant.watch_standing();
        let keeper =
            Keeper { runner, tenant, service, tell, log, relay, standing, relayed: this.relayed.clone() };
        let weak = Arc::downgrade(&this);
        let body = async move {
            let mut stopped = stopped;
            let keep = async {
                let begin = match begin {
                    // Clients are refused.
                    Begin::Lost(reason) => return keeper.note(Phase::Lost, None, Some(reason)),
                    Begin::Over(end) => return keeper.note(Phase::Ended, None, Some(end)),
                    begin => begin,
                };
                let door = match door {
                    Some(door) => door,
                    None => keeper.listen(address).await,
                };
                if let Some(this) = weak.upgrade() {
                    *this.door.lock().unwrap_or_else(PoisonError::into_inner) = Some(door.clone());
                }
                keeper.keep(door, begin).await;
                // Over for good: clients are refused rather than kept waiting.
                if let Some(this) = weak.upgrade() {
                    this.door.lock().unwrap_or_else(PoisonError::into_inner).take();
                }
            };
            tokio::select! {
                () = keep => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        };
        *this.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(tokio::spawn(body));
        this
    }

    /// Its door, if it is at this port.
    pub(super) fn door(&self, port: u16) -> Option<Arc<Door>> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|_| port == self.port)
    }

    pub(super) fn status(&self) -> Status {
        let state = self.state.borrow();
        let stats = state.connector.as_ref().map(Connector::stats).unwrap_or_default();
        Status {
            phase: state.phase,
            restarts: state.restarts,
            last_end: state.last_end.clone(),
            connections: stats.open,
            relayed: self.relayed.load(Ordering::Relaxed) + stats.relayed,
        }
    }

    /// Its program, for the node that its tenant moves to.
    pub(super) fn program(&self, service: EntityName) -> ProgramWord {
        let state = self.state.borrow();
        let over = matches!(state.phase, Phase::Ended | Phase::Failed | Phase::Lost);
        let over = over.then(|| state.last_end.clone().unwrap_or_default());
        ProgramWord { service, program: state.program, over }
    }

    pub(super) fn logs(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Ends it; its port is free when this returns, unless it was taken over.
    pub(super) async fn stop(&self) {
        let _ = self.stop.send(true);
        self.door.lock().unwrap_or_else(PoisonError::into_inner).take();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // A task that hangs holds nothing that others need but its port.
            let _ = tokio::time::timeout(STOP_PATIENCE, task).await;
        }
    }
}

/// The work of the supervisor.
struct Keeper {
    runner: Arc<Runner>,
    tenant: Arc<Tenant>,
    service: Arc<Service>,
    tell: watch::Sender<State>,
    log: Arc<LogRing>,
    relay: Option<Arc<dyn RelayTo>>,
    standing: watch::Receiver<Standing>,
    relayed: Arc<AtomicUsize>,
}

impl Keeper {
    fn note(&self, phase: Phase, connector: Option<Connector>, end: Option<String>) {
        if let Some(end) = &end {
            self.log.note(end);
        }
        self.tell.send_modify(|state| {
            state.phase = phase;
            state.connector = connector;
            state.last_end = end.or(state.last_end.take());
        });
    }

    /// Takes the port when it becomes free.
    async fn listen(&self, address: SocketAddr) -> Arc<Door> {
        let mut pause = FIRST_PAUSE;
        loop {
            match Door::open(address).await {
                Ok(door) => return Arc::new(door),
                Err(error) => {
                    self.note(Phase::Failed, None, Some(format!("{address} can't be listened on: {error}")))
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Keeps the program running until its policy says that it is over.
    async fn keep(&self, door: Arc<Door>, begin: Begin) {
        let gateway = Gateway {
            door,
            tenant: self.tenant.clone(),
            service: self.service.name.clone(),
            relay: self.relay.clone(),
            relayed: self.relayed.clone(),
        };
        tokio::select! {
            () = gateway.run(self.tell.subscribe()) => {}
            () = self.keep_program(begin) => {}
        }
    }

    /// Waits until the tenant is away; false if that will not be.
    async fn away(&self) -> bool {
        self.standing.clone().wait_for(|standing| matches!(standing, Standing::Away(_))).await.is_ok()
    }

    /// Waits until the tenant is here.
    async fn here(&self) {
        // The tenant outlives its services.
        let _ = self.standing.clone().wait_for(|standing| *standing == Standing::Here).await;
    }

    async fn keep_program(&self, begin: Begin) {
        let mut pause = FIRST_PAUSE;
        let mut arrived = match begin {
            Begin::Arrived(program) => Some(program),
            _ => None,
        };
        loop {
            if matches!(self.tenant.standing(), Standing::Away(_)) {
                self.note(Phase::Moved, None, None);
            } else {
                self.note(Phase::Starting, None, None);
            }
            self.here().await;
            let begin = Instant::now();
            let (failed, end) = match self.run_once(arrived.take()).await {
                Some(end) => end,
                // It goes on elsewhere. When the tenant comes back, this is replaced.
                None => {
                    self.note(Phase::Moved, None, None);
                    return std::future::pending().await;
                }
            };
            let name = self.tenant.name().as_str();
            tracing::info!(
                tenant = name,
                failed,
                ran_ms = begin.elapsed().as_millis() as u64,
                "a service ended"
            );
            if !self.service.restart.again(failed) {
                return self.note(if failed { Phase::Failed } else { Phase::Ended }, None, Some(end));
            }
            if begin.elapsed() >= PROVEN {
                pause = FIRST_PAUSE;
            }
            self.note(Phase::Waiting, None, Some(end));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            crate::metrics::service_restart();
            self.tell.send_modify(|state| state.restarts += 1);
        }
    }

    /// Runs the program once, or goes on with one that came; whether it failed, and how it ended. `None` if it moved away.
    async fn run_once(&self, arrived: Option<Adopted>) -> Option<(bool, String)> {
        let ring = self.log.clone();
        let log = Arc::new(move |stream: u32, bytes: &[u8]| ring.add(stream, bytes));
        let begun = match arrived {
            Some(program) => self.runner.go_on_serving(&self.tenant, program, log).await,
            None => {
                let mut args = vec![self.service.name.as_str().to_owned()];
                args.extend(self.service.args.iter().cloned());
                self.runner.serve(&self.tenant, &self.service, args, log).await
            }
        };
        let mut running = match begun {
            Ok(running) => running,
            Err(error) => return Some((true, format!("it can't be started: {error}"))),
        };
        let program = running.serving.program();
        self.tell.send_modify(|state| state.program = Some(program));
        self.note(Phase::Running, Some(running.serving.connector.clone()), None);
        let end = tokio::select! {
            // What became of a CVM that it is not in any more is nothing of its.
            biased;
            true = self.away() => None,
            end = &mut running.serving.ended => Some(end),
        };
        self.tell.send_modify(|state| (state.connector, state.program) = (None, None));
        let Some(end) = end else {
            running.forget();
            return None;
        };
        self.runner.served(running).await;
        Some(match end {
            Ok(End::Exit(0)) => (false, "it ended".to_owned()),
            Ok(End::Exit(code)) => (true, format!("it ended with code {code}")),
            Ok(End::Trap(text)) => (true, format!("it trapped: {}", text.lines().next().unwrap_or_default())),
            Ok(End::Error(text) | End::OutOfMemory(text) | End::Lost(text)) => (true, text),
            Ok(End::TimeLimit) | Err(_) => (true, "it was ended".to_owned()),
        })
    }
}
