//! Keeps one service running: starts it, waits for its end, starts it again as its policy says, with growing pauses.

use super::gateway;
use super::log::LogRing;
use crate::outcome::End;
use crate::records::Service;
use crate::runner::Runner;
use crate::tenants::Tenant;
use nacre_vmm::program::Connector;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
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
}

/// The same with what the gateway needs.
#[derive(Clone)]
pub(super) struct State {
    phase: Phase,
    restarts: u64,
    last_end: Option<String>,
    pub(super) connector: Option<Connector>,
}

/// A service and the tasks that keep it.
pub(super) struct Supervised {
    state: watch::Receiver<State>,
    stop: watch::Sender<bool>,
    port: u16,
    listener: Mutex<Option<Arc<TcpListener>>>,
    log: Arc<LogRing>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Supervised {
    pub(super) fn start(
        runner: Arc<Runner>,
        tenant: Arc<Tenant>,
        service: Arc<Service>,
        address: SocketAddr,
        listener: Option<Arc<TcpListener>>,
    ) -> Arc<Self> {
        let state = State { phase: Phase::Starting, restarts: 0, last_end: None, connector: None };
        let (tell, state) = watch::channel(state);
        let (stop, stopped) = watch::channel(false);
        let log = Arc::new(LogRing::default());
        let port = service.port;
        let this = Arc::new(Self {
            state,
            stop,
            port,
            listener: Mutex::new(listener.clone()),
            log: log.clone(),
            task: Mutex::default(),
        });
        let keeper = Keeper { runner, tenant, service, tell, log };
        let weak = Arc::downgrade(&this);
        let body = async move {
            let mut stopped = stopped;
            let keep = async {
                let listener = match listener {
                    Some(listener) => listener,
                    None => keeper.listen(address).await,
                };
                if let Some(this) = weak.upgrade() {
                    *this.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener.clone());
                }
                keeper.keep(listener).await;
                // Over for good: clients are refused rather than kept waiting.
                if let Some(this) = weak.upgrade() {
                    this.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
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

    /// Its listener, if it has this port.
    pub(super) fn listener(&self, port: u16) -> Option<Arc<TcpListener>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|_| port == self.port)
    }

    pub(super) fn status(&self) -> Status {
        let state = self.state.borrow();
        Status {
            phase: state.phase,
            restarts: state.restarts,
            last_end: state.last_end.clone(),
            connections: state.connector.as_ref().map_or(0, |connector| connector.stats().open),
        }
    }

    pub(super) fn logs(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Ends it; its port is free when this returns, unless it was taken over.
    pub(super) async fn stop(&self) {
        let _ = self.stop.send(true);
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
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
    async fn listen(&self, address: SocketAddr) -> Arc<TcpListener> {
        let mut pause = FIRST_PAUSE;
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return Arc::new(listener),
                Err(error) => {
                    self.note(Phase::Failed, None, Some(format!("{address} can't be listened on: {error}")))
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Keeps the program running until its policy says that it is over.
    async fn keep(&self, listener: Arc<TcpListener>) {
        let gateway = gateway::run(listener, self.tenant.clone(), self.tell.subscribe());
        tokio::select! {
            () = gateway => {}
            () = self.keep_program() => {}
        }
    }

    async fn keep_program(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.note(Phase::Starting, None, None);
            let begin = Instant::now();
            let (failed, end) = self.run_once().await;
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

    /// Runs the program once; whether it failed, and how it ended.
    async fn run_once(&self) -> (bool, String) {
        let mut args = vec![self.service.name.as_str().to_owned()];
        args.extend(self.service.args.iter().cloned());
        let ring = self.log.clone();
        let log = Arc::new(move |stream: u32, bytes: &[u8]| ring.add(stream, bytes));
        let mut running = match self.runner.serve(&self.tenant, &self.service, args, log).await {
            Ok(running) => running,
            Err(error) => return (true, format!("it can't be started: {error}")),
        };
        self.note(Phase::Running, Some(running.serving.connector.clone()), None);
        let end = (&mut running.serving.ended).await;
        self.tell.send_modify(|state| state.connector = None);
        self.runner.served(running).await;
        match end {
            Ok(End::Exit(0)) => (false, "it ended".to_owned()),
            Ok(End::Exit(code)) => (true, format!("it ended with code {code}")),
            Ok(End::Trap(text)) => (true, format!("it trapped: {}", text.lines().next().unwrap_or_default())),
            Ok(End::Error(text) | End::OutOfMemory(text) | End::Lost(text)) => (true, text),
            Ok(End::TimeLimit) | Err(_) => (true, "it was ended".to_owned()),
        }
    }
}
