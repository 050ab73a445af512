//! The node's life: start, signals, end.

use crate::compile::Compiler;
use crate::config::NodeConfig;
use crate::http::{self, Listeners};
use crate::invoke::Invoker;
use crate::migration::Migrations;
use crate::migration::net::Net;
use crate::migration::relay::Relays;
use crate::peers::{Peers, PeersError};
use crate::platform::NodePlatform;
use crate::runner::{Publish, Runner};
use crate::services::{Begin, RelayTo, Services};
use crate::store::{Store, StoreError};
use crate::tenants::Tenants;
use nacre_vmm::elastic::ElasticError;
use nacre_vmm::{CpuConfig, CpuManager};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often histograms are emptied.
const UPKEEP: Duration = Duration::from_secs(10);

/// Why a node does not start, with the remedy after "; ".
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The CPU manager.
    #[error(transparent)]
    Cpus(#[from] ElasticError),
    /// The platform's files.
    #[error(transparent)]
    Platform(#[from] nacre_attest::software::SoftwareError),
    /// The node's key, or the nodes it trusts.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// No way to make CVMs.
    #[error("/dev/kvm can't be opened: {0}; load the kvm module, or join the kvm group")]
    Kvm(std::io::Error),
    /// An address.
    #[error("{address} can't be listened on: {error}; choose another address")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        error: std::io::Error,
    },
    /// The administrative socket.
    #[error("{path} can't be made: {error}; choose another state directory, with a short path")]
    Socket {
        /// Where.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// The runtime.
    #[error("the system refuses threads or signals: {0}; raise its limits")]
    System(std::io::Error),
}

/// Everything that requests use.
pub struct Node {
    /// What it was started with.
    pub config: NodeConfig,
    /// What is durable.
    pub store: Arc<Store>,
    /// Who may come in.
    pub tenants: Arc<Tenants>,
    /// Modules to code.
    pub compiler: Arc<Compiler>,
    /// CVMs.
    pub runner: Arc<Runner>,
    /// Programs that run all the time.
    pub services: Arc<Services>,
    /// Tenants that move between nodes.
    pub migrations: Arc<Migrations>,
    /// Calls.
    pub invoker: Arc<Invoker>,
    /// Who signs the reports of its CVMs.
    pub platform: Arc<NodePlatform>,
    /// Other nodes; none without a peer port.
    pub peers: Option<Peers>,
    /// Where clients reach it.
    pub url: String,
    /// Since when.
    pub start: Instant,
    /// Client connections now.
    pub connections: AtomicUsize,
    /// True once the node is to end.
    pub stopping: watch::Sender<bool>,
}

/// Where a node is.
#[derive(Debug)]
pub struct Addresses {
    /// Its public interface.
    pub public: SocketAddr,
    /// Its peer port, if it has one.
    pub peers: Option<SocketAddr>,
    /// The path of its administrative socket.
    pub admin: PathBuf,
}

/// Lets this process open as many files as its limits can be raised to: a client that is relayed takes two here and three where it is relayed to.
fn allow_files() {
    let limits = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }) {
        tracing::warn!(%error, current = ?limits.current, "the number of open files stays limited");
    }
}

/// Tells that the node is ready, and where it is.
pub type Ready<'r> = &'r mut dyn FnMut(&Addresses);

/// Runs a node until SIGTERM or SIGINT, or the end of standard input if the configuration says so. `ready` is called once it serves.
///
/// # Errors
/// [`StartError`]; once it serves it ends without an error.
pub fn run(config: NodeConfig, publish: Option<Publish>, ready: Ready<'_>) -> Result<(), StartError> {
    crate::metrics::init();
    allow_files();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().max_blocking_threads(4096).thread_name("node");
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        // The other half is for the guests. A call whose steps are made by one thread takes a third less of it.
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        runtime.worker_threads(cpus.div_ceil(2));
    }
    let runtime = runtime.build().map_err(StartError::System)?;
    let result = runtime.block_on(serve(config, publish, ready));
    // Threads that still wait for something hold no state that is not on the disk.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: NodeConfig, publish: Option<Publish>, ready: Ready<'_>) -> Result<(), StartError> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(StartError::Kvm)?;
    let system = StartError::System;
    let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
    // Before anything is changed: a second node must not get in the way of the first.
    let store = Arc::new(Store::open(&config.state_dir)?);
    let listeners = listen(&config).await?;
    let address = listeners.public.local_addr().map_err(system)?;
    let peer_address = listeners.peers.as_ref().map(TcpListener::local_addr).transpose().map_err(system)?;
    let peers = peer_address.map(|address| know_peers(&config, address)).transpose()?;
    let node = Arc::new(assemble(config, store, publish, address, peers)?);
    let (runner, upkeep) = (node.runner.clone(), tokio::time::interval(UPKEEP));
    let background = [
        tokio::spawn(async move { runner.reap().await }),
        tokio::spawn(async move {
            let mut upkeep = upkeep;
            loop {
                upkeep.tick().await;
                crate::metrics::upkeep();
            }
        }),
    ];
    node.migrations.recover()?;
    for tenant in node.tenants.all() {
        let lost = node.store.directory().lost(tenant.name());
        for service in node.store.directory().services(tenant.name()) {
            let lost = lost.as_ref().filter(|lost| lost.services.contains(&service.name));
            let begin = lost.map_or(Begin::Fresh, |lost| Begin::Lost(lost.reason.clone()));
            node.services.start(&tenant, service, None, begin).await;
        }
    }
    let socket = admin_socket(&node.config);
    let serving = tokio::spawn(http::serve(node.clone(), listeners));
    tracing::info!(%address, state_dir = %node.config.state_dir.display(), "the node serves");
    ready(&Addresses { public: address, peers: peer_address, admin: socket.clone() });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stdin_ended(node.config.until_stdin_ends) => {}
    }
    tracing::info!("the node stops: tenants between two nodes arrive, and running activations may end");
    let stops_at = tokio::time::Instant::now() + node.config.drain;
    let left = || stops_at.saturating_duration_since(tokio::time::Instant::now());
    // While it still serves, because the other nodes ask it.
    if !node.migrations.settle(left()).await {
        tracing::warn!("a tenant still is between two nodes; it may be lost: see docs/migration.md");
    }
    // No new connections and calls; open connections get their answers.
    let _ = node.stopping.send(true);
    if !node.invoker.drain(left()).await {
        tracing::warn!("activations still run; they are told as interrupted at the next start");
    }
    // A client that does not take its answer does not hold the node up.
    let _ = tokio::time::timeout(Duration::from_secs(5), serving).await;
    node.services.stop_all(None).await;
    for task in background {
        task.abort();
    }
    node.store.close().await;
    node.runner.stop().await;
    // Fails only when somebody removed it already.
    let _ = std::fs::remove_file(socket);
    tracing::info!("the node has stopped");
    Ok(())
}

/// Comes back when standard input has ended, if that `matters`.
async fn stdin_ended(matters: bool) {
    if !matters {
        return std::future::pending().await;
    }
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    // Not one of the runtime's threads: it may wait for as long as the process lives.
    std::thread::spawn(move || {
        // An input that can't be read has ended, too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        drop(tell);
    });
    // Never sent: dropped.
    let _ = told.await;
}

fn assemble(
    config: NodeConfig,
    store: Arc<Store>,
    publish: Option<Publish>,
    address: SocketAddr,
    peers: Option<Peers>,
) -> Result<Node, StartError> {
    let cpus = config.cpus.map_or_else(CpuConfig::machine, CpuConfig::new);
    let manager = CpuManager::new(cpus)?;
    let compiler = Arc::new(Compiler::new(&config.state_dir.join("compiled"), config.compiler.clone()));
    let dir = config.platform_dir.clone().unwrap_or_else(|| config.state_dir.join("platform"));
    let platform = NodePlatform::open(&dir)?;
    let runner =
        Runner::new(store.clone(), compiler.clone(), manager, platform.clone(), config.max_cvms, publish);
    let runner = Arc::new(runner);
    let api_host = config.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
    let net = peers.clone().map(|peers| Arc::new(peers) as Arc<dyn Net>);
    let relay = net.clone().map(|net| Arc::new(Relays::new(net, store.clone())) as Arc<dyn RelayTo>);
    let host = config.service_host.unwrap_or(address.ip());
    let services = Arc::new(Services::new(runner.clone(), host, relay));
    let tenants = Arc::new(Tenants::load(store.directory().tenants()));
    let migrations = Migrations::new(
        store.clone(),
        runner.clone(),
        services.clone(),
        tenants.clone(),
        net,
        config.incomings,
    );
    let invoker = Invoker::new(store.clone(), runner.clone(), migrations.clone(), api_host.clone());
    Ok(Node {
        tenants,
        invoker: Arc::new(invoker),
        peers,
        migrations,
        url: api_host,
        platform,
        services,
        store,
        compiler,
        runner,
        config,
        start: Instant::now(),
        connections: AtomicUsize::new(0),
        stopping: watch::channel(false).0,
    })
}

/// Who this node is for others, and where they reach it: where it listens, or under the machine's name if that is everywhere.
fn know_peers(config: &NodeConfig, address: SocketAddr) -> Result<Peers, PeersError> {
    let peers = Peers::open(&config.state_dir)?;
    let url = if address.ip().is_unspecified() {
        // A machine that does not tell its name has none that others know.
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}:{}", machine.trim(), address.port()).parse().ok()
    } else {
        Some(address.into())
    };
    if let Some(url) = url {
        peers.reached_at(url);
    }
    Ok(peers)
}

/// The path of the administrative socket.
#[must_use]
pub fn admin_socket(config: &NodeConfig) -> PathBuf {
    config.state_dir.join("admin.sock")
}

async fn listen(config: &NodeConfig) -> Result<Listeners, StartError> {
    let tcp = async |address: SocketAddr| {
        let bound = TcpListener::bind(address).await;
        bound.map_err(|error| StartError::Listen { address: address.to_string(), error })
    };
    let public = tcp(config.listen).await?;
    let metrics = match config.metrics_listen {
        Some(address) => Some(tcp(address).await?),
        None => None,
    };
    let peers = match config.peer_listen {
        Some(address) => Some(tcp(address).await?),
        None => None,
    };
    let path = admin_socket(config);
    let unix = || {
        use std::os::unix::fs::PermissionsExt;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Nobody else can enter the directory, also before the mode is set.
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    let admin = unix().map_err(|error| StartError::Socket { path: path.display().to_string(), error })?;
    Ok(Listeners { public, metrics, peers, admin })
}
