//! A running CVM: launch, programs, end. Its part in the elastic CPU is in [`crate::elastic`].

use crate::calls::Calls;
use crate::elastic::manager::Membership;
use crate::elastic::{
    self, CpuLimits, CpuManager, CpuStats, ElasticConfig, ElasticError, PendingReclaim, Reclaimed,
};
use crate::events::{Events, Exit, Mailboxes, ProgramEvent, ProgramId};
use crate::evidence::{Attestation, EvidenceError, Identity, LaunchShape};
use crate::hooks::Hooks;
use crate::image::{self, GuestImage, ImageError};
use crate::kvm::{KvmError, Machine};
use crate::launch::{Launch, LaunchError};
use crate::link::{self, LinkStats, SendError, Sender, Traffic};
use crate::memory::{LaunchMemory, SharedMemory};
use crate::migration::Migrations;
use crate::socket::{Connections, Connector, Intake, Relay};
use crate::vcpu::{self, Shared, VcpuEnd, VcpuHandle};
use nacre_abi::VcpuId;
use nacre_abi::attest::NONCE_BYTES;
use nacre_abi::elastic::ElasticWord;
use nacre_abi::message::{GuestStats, Header, Kind, NO_PROGRAM};
use nacre_abi::window::Window;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// What a CVM is launched with.
pub struct CvmConfig {
    /// Worker vCPUs, 0 to 63.
    pub workers: u32,
    /// Private memory in bytes.
    pub memory_bytes: u64,
    /// Launch the debug image, which measures differently.
    pub debug_image: bool,
    /// How it proves what it is; without one it has no evidence.
    pub identity: Option<Identity>,
    /// Its part in the elastic CPU.
    pub elastic: ElasticConfig,
    /// Receives what the guest itself prints: defects only.
    pub on_print: Box<dyn Fn(&str) + Send + Sync>,
    /// For tests only: a host that misbehaves.
    pub hooks: Option<Arc<dyn Hooks>>,
}

impl Default for CvmConfig {
    /// One worker, 1 GiB, last words to standard error.
    fn default() -> CvmConfig {
        CvmConfig {
            workers: 1,
            memory_bytes: 1 << 30,
            debug_image: false,
            identity: None,
            elastic: ElasticConfig::default(),
            on_print: Box::new(|text| eprintln!("nacre: guest: {text}")),
            hooks: None,
        }
    }
}

/// Why there is no CVM, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum CvmError {
    /// The built-in image is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Impossible parameters.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// No machine.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Impossible limits, or a budget that is promised to others.
    #[error(transparent)]
    Elastic(#[from] ElasticError),
    /// The kernel gives no memory, descriptors or threads.
    #[error("the kernel refuses {what}: {error}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
    /// Something of the program does not fit a message.
    #[error(transparent)]
    TooLong(SendError),
    /// The guest does not take a module's code.
    #[error("the module can't be loaded: {0:?}")]
    Module(Exit),
    /// A migration can't begin.
    #[error("{0}")]
    Migration(String),
    /// It ended before it answered.
    #[error("the CVM ended: {0}")]
    Ended(String),
}

/// Moments of the launch, for `--stats`; each is measured from the call of [`Cvm::launch`].
#[derive(Clone, Copy, Debug, Default)]
pub struct LaunchTimes {
    /// The initial memory is written.
    pub memory: Duration,
    /// The machine exists.
    pub machine: Duration,
    /// vCPU 0 is about to run.
    pub started: Duration,
    /// Time stamp counter at the call of `launch`.
    pub launch_tsc: u64,
    /// Rate of the time stamp counter in kHz.
    pub tsc_khz: u64,
}

/// A running CVM. Dropping it ends it.
pub struct Cvm {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sender: Arc<Sender>,
    mailboxes: Arc<Mailboxes>,
    connections: Arc<Connections>,
    intake: Arc<Intake>,
    calls: Arc<Calls>,
    attestation: Arc<Attestation>,
    pub(crate) migrations: Arc<Migrations>,
    doorbell: Arc<EventFd>,
    threads: Mutex<Threads>,
    ended: Arc<Mutex<Option<VcpuEnd>>>,
    next_program: AtomicU32,
    times: LaunchTimes,
    /// It is under its manager no more.
    left: AtomicBool,
}

#[derive(Default)]
struct Threads {
    vcpus: Vec<Option<JoinHandle<VcpuEnd>>>,
    reader: Option<JoinHandle<()>>,
}

/// What a CVM has used.
#[derive(Clone, Debug)]
pub struct CvmStats {
    /// The guest's own counters.
    pub guest: GuestStats,
    /// Per vCPU: names and values of its counters.
    pub vcpus: Vec<Vec<(&'static str, u64)>>,
    /// Bytes that the host has committed for private memory.
    pub resident_bytes: Option<u64>,
    /// Moments of the launch.
    pub times: LaunchTimes,
}

fn system<T>(what: &'static str, result: io::Result<T>) -> Result<T, CvmError> {
    result.map_err(|error| CvmError::System { what, error })
}

impl Cvm {
    /// Launches a CVM; returns when vCPU 0 runs.
    ///
    /// # Errors
    /// [`CvmError`].
    pub fn launch(config: CvmConfig) -> Result<Cvm, CvmError> {
        let begin = Instant::now();
        let mut times = LaunchTimes { launch_tsc: rdtsc(), ..LaunchTimes::default() };
        let spin_limit_ns = elastic::spin_limit_word(config.elastic.spin_limit)?;
        system("a signal handler", vcpu::install_kick_handler())?;
        let file = if config.debug_image { image::DEBUG } else { image::RELEASE };
        let launch =
            Launch::new(&GuestImage::parse(file)?, config.workers.saturating_add(1), config.memory_bytes)?;
        let mut memory = system("memory for the CVM", LaunchMemory::new(config.memory_bytes))?;
        for run in &launch.runs {
            memory.write(run);
        }
        times.memory = begin.elapsed();
        let window = system("memory for the shared window", SharedMemory::new(launch.layout.shared_bytes))?;
        let machine = Machine::new(memory.seal(), window, config.hooks.as_deref())?;
        let doorbell = Arc::new(system("an event descriptor", EventFd::new(EFD_CLOEXEC))?);
        machine.bind_doorbell(&doorbell)?;
        let mut vcpus = Vec::new();
        for id in ids(launch.vcpus.len()) {
            let wake = system("an event descriptor", EventFd::new(EFD_CLOEXEC))?;
            machine.bind_wake(id, &wake)?;
            vcpus.push(VcpuHandle::new(wake));
        }
        times.machine = begin.elapsed();
        let shared = Arc::new(Shared {
            machine,
            vcpus,
            lanes: launch.layout.lanes,
            stop: AtomicBool::new(false),
            on_print: config.on_print,
            membership: OnceLock::new(),
            hooks: config.hooks,
        });
        join_manager(&shared, config.elastic)?;
        let shape = LaunchShape {
            vcpus: launch.vcpus.len() as u32,
            memory_bytes: config.memory_bytes,
            debug_image: config.debug_image,
            xcr0: shared.machine.xcr0(),
        };
        let sender = Arc::new(Sender::new(shared.clone()));
        let cvm = Cvm {
            attestation: Arc::new(Attestation::new(config.identity, shape, sender.clone())),
            sender,
            mailboxes: Arc::new(Mailboxes::default()),
            migrations: Arc::default(),
            connections: Arc::default(),
            intake: Arc::new(Intake::new(doorbell.clone())),
            calls: Arc::new(Calls::new(launch.layout.max_tasks)),
            doorbell,
            threads: Mutex::default(),
            ended: Arc::default(),
            next_program: AtomicU32::new(0),
            times,
            left: AtomicBool::new(false),
            shared,
        };
        cvm.start(launch, begin, spin_limit_ns)
    }

    /// Makes the vCPUs and threads. vCPU 0 runs while the workers are still being made: they are dormant anyway.
    fn start(mut self, launch: Launch<'static>, begin: Instant, spin_limit_ns: u64) -> Result<Cvm, CvmError> {
        let normal = self.shared.machine.vcpu(VcpuId::NORMAL, &launch)?;
        let khz = normal.get_tsc_khz().map_err(|error| CvmError::System {
            what: "the clock rate of the vCPU",
            error: io::Error::from_raw_os_error(error.errno()),
        })?;
        self.times.tsc_khz = u64::from(khz);
        link::prepare(&link::window_of(&self.shared), u64::from(khz), rdtsc(), spin_limit_ns);
        if let Some(hooks) = &self.shared.hooks {
            hooks.starting(&self.shared);
        }
        self.times.started = begin.elapsed();
        let mut threads = Threads { vcpus: Vec::new(), reader: Some(self.spawn_reader()?) };
        threads.vcpus.push(Some(self.spawn_vcpu(normal, VcpuId::NORMAL)?));
        *self.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        for id in ids(launch.vcpus.len()).skip(1) {
            let worker = self.shared.machine.vcpu(id, &launch)?;
            let thread = self.spawn_vcpu(worker, id)?;
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).vcpus.push(Some(thread));
        }
        // Before anybody can send code.
        if let Some(manifest) = self.attestation.manifest() {
            self.send(Header::new(Kind::Manifest, NO_PROGRAM), &manifest)?;
        }
        Ok(self)
    }

    fn spawn_vcpu(&self, fd: kvm_ioctls::VcpuFd, id: VcpuId) -> Result<JoinHandle<VcpuEnd>, CvmError> {
        let (shared, doorbell, ended) = (self.shared.clone(), self.doorbell.clone(), self.ended.clone());
        let name = if id.is_worker() { format!("worker-{}", id.index()) } else { "vcpu-0".into() };
        let body = move || {
            let end = vcpu::run(fd, id, &shared, &link::window_of(&shared));
            if end != VcpuEnd::Stopped {
                ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| end.clone());
                // The reader sees it, and tells everybody who waits.
                shared.stop.store(true, Ordering::SeqCst);
            }
            let _ = doorbell.write(1);
            end
        };
        system("a thread", std::thread::Builder::new().name(name).spawn(body))
    }

    fn spawn_reader(&self) -> Result<JoinHandle<()>, CvmError> {
        let (shared, doorbell) = (self.shared.clone(), self.doorbell.clone());
        let (sender, mailboxes, ended) = (self.sender.clone(), self.mailboxes.clone(), self.ended.clone());
        let (calls, connections) = (self.calls.clone(), self.connections.clone());
        let (attestation, migrations) = (self.attestation.clone(), self.migrations.clone());
        let mut relay = system("an event queue", Relay::new(self.intake.clone()))?;
        let body = move || {
            let expects = || calls.any_in_flight();
            let read = link::read_rings(&shared, &doorbell, &sender, &mut relay, expects, |header, body| {
                if connections.receive(header, body) {
                    return Traffic::Connection;
                }
                if header.kind == Kind::ProgramExited {
                    connections.program_over(header.program);
                }
                let taken = calls.deliver(header, body)
                    || attestation.deliver(header, body)
                    || migrations.deliver(&shared, &sender, header, body);
                if !taken {
                    mailboxes.deliver(header, body);
                }
                Traffic::Other
            });
            if read.is_err() {
                let broken = VcpuEnd::Failed("the guest broke its ring".into());
                ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(broken);
                shared.stop.store(true, Ordering::SeqCst);
            }
            drop(relay);
            connections.close();
            sender.notify();
            mailboxes.close();
            calls.close();
            attestation.close();
        };
        system("a thread", std::thread::Builder::new().name("rings".into()).spawn(body))
    }

    /// A number for a new program and the queue of what happens to it.
    pub fn new_program(&self) -> (ProgramId, Events) {
        let id = ProgramId(self.next_program.fetch_add(1, Ordering::Relaxed));
        (id, self.mailboxes.open(id))
    }

    /// The same for a program that comes from another CVM, with the number it has there and how much of its standard
    /// output and error has come from there.
    pub fn adopt_program(&self, id: ProgramId, outputs: [u64; 2]) -> Events {
        self.provide_sockets(id);
        self.mailboxes.open_at(id, outputs)
    }

    /// Output of a program that came from another CVM was dealt with up to `end`: the guest may send more.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn consumed(&self, id: ProgramId, stream: u32, end: u64) -> Result<(), CvmError> {
        self.note_consumed(id, stream, end);
        self.send(Header::new(Kind::Credit, id.0).stream(stream).arg(end), &[])
    }

    /// The reader of a program has dealt with a stream up to `end`.
    pub(crate) fn note_consumed(&self, id: ProgramId, stream: u32, end: u64) {
        self.mailboxes.consumed(id, stream, end);
    }

    /// Messages about this program are no longer of interest.
    pub(crate) fn forget_program(&self, id: ProgramId) {
        self.mailboxes.remove(id);
        self.connections.remove(id.0);
    }

    /// What opens connections to a program, from any thread and for longer than the [`Program`](crate::program::Program) lives.
    pub fn connector(&self, id: ProgramId) -> Connector {
        let (sender, connections) = (self.sender.clone(), self.connections.clone());
        Connector::new(id, sender, connections, self.intake.clone())
    }

    /// The program will listen.
    pub(crate) fn provide_sockets(&self, id: ProgramId) {
        self.connections.provide(id.0);
    }

    /// Ends a program, from any thread: it is killed at its next safe point, and who follows its events finds their end.
    pub fn end_program(&self, id: ProgramId) {
        // If the CVM has ended there is nothing to end.
        let _ = self.send(Header::new(Kind::ProgramDrop, id.0), &[]);
        self.forget_program(id);
    }

    /// The queue of messages about the CVM as a whole.
    pub fn cvm_events(&self) -> Events {
        self.mailboxes.open(ProgramId(NO_PROGRAM))
    }

    /// Sends a message to the guest.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn send(&self, header: Header, body: &[u8]) -> Result<(), CvmError> {
        self.sender.send(header, body).map_err(|error| match error {
            SendError::Ended => self.end_error(),
            too_long @ (SendError::TooLong(_) | SendError::Full) => CvmError::TooLong(too_long),
        })
    }

    /// Sends from other threads.
    pub fn sender(&self) -> Arc<Sender> {
        self.sender.clone()
    }

    /// The calls of this CVM.
    pub(crate) fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// Asks the guest for the offer of a session and the evidence that binds it. `done` is called once, on the thread that reads the rings or on
    /// this one, and must not wait for anything.
    pub fn evidence(
        &self,
        nonce: &[u8; NONCE_BYTES],
        done: impl FnOnce(Result<Vec<u8>, EvidenceError>) + Send + 'static,
    ) {
        self.attestation.request(nonce, Box::new(done));
    }

    /// What has gone between host and guest.
    pub fn link_stats(&self) -> LinkStats {
        self.sender.stats()
    }

    /// Whether it has ended, or is about to.
    pub fn has_ended(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    /// Why the CVM ended, as an error.
    pub fn end_error(&self) -> CvmError {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        CvmError::Ended(match &*ended {
            None | Some(VcpuEnd::Stopped) => "it was stopped".into(),
            Some(VcpuEnd::GuestExit(reason)) => {
                format!("the guest gave up ({reason:?}); its last words are above")
            }
            Some(VcpuEnd::Shutdown) => "a vCPU shut down (a fault while a fault was delivered)".into(),
            Some(VcpuEnd::Failed(what)) => what.clone(),
        })
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn stats(&self) -> Result<CvmStats, CvmError> {
        let events = self.cvm_events();
        self.send(Header::new(Kind::StatsRequest, NO_PROGRAM), &[])?;
        let guest = loop {
            match events.recv().ok_or_else(|| self.end_error())? {
                ProgramEvent::Message(Header { kind: Kind::Stats, .. }, body) => {
                    break body.as_slice().try_into().map(GuestStats::decode).unwrap_or_default();
                }
                _ => continue,
            }
        };
        Ok(CvmStats {
            guest,
            vcpus: self.shared.vcpus.iter().map(|vcpu| vcpu.snapshot(self.times.tsc_khz)).collect(),
            resident_bytes: self.shared.machine.private().resident_bytes(),
            times: self.times,
        })
    }

    /// Bytes that the host has committed for private memory.
    pub fn resident_bytes(&self) -> Option<u64> {
        self.shared.machine.private().resident_bytes()
    }

    /// Makes the thread that reads the guest's rings look at them once more, as the guest's doorbell does.
    pub fn look_at_rings(&self) {
        let _ = self.doorbell.write(1);
    }

    /// Moments of the launch.
    pub fn times(&self) -> LaunchTimes {
        self.times
    }

    /// Ends the CVM: what runs in it is gone. All threads have ended when this returns.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for (thread, vcpu) in threads.vcpus.iter_mut().zip(&self.shared.vcpus) {
            if let Some(thread) = thread {
                vcpu::kick(thread, vcpu);
            }
        }
        for thread in &mut threads.vcpus {
            let _ = thread.take().map(JoinHandle::join);
        }
        let _ = self.doorbell.write(1);
        self.migrations.close();
        // The result of a call may be what ends the CVM: then this is the reader, which ends by itself.
        let reader = threads.reader.take();
        let other = reader.filter(|reader| reader.thread().id() != std::thread::current().id());
        let _ = other.map(JoinHandle::join);
        // The manager's books hold on to what this CVM shares. Once: its number may be another's later.
        if let Some(Membership { manager, cvm }) = self.shared.membership.get()
            && !self.left.swap(true, Ordering::SeqCst)
        {
            manager.remove(*cvm);
        }
    }

    fn membership(&self) -> Result<&Membership, ElasticError> {
        let membership = self.shared.membership.get().filter(|_| !self.left.load(Ordering::SeqCst));
        membership.ok_or(ElasticError::Gone)
    }

    /// Asks a worker to park at its next safe point, and holds it until [`allow`](Self::allow): its task goes on on
    /// another worker. If it has not parked within the grace time it is stopped wherever it is, and its task with it.
    /// Returns at once; what is returned tells when it is done.
    ///
    /// # Errors
    /// [`ElasticError::NoSuchWorker`], or [`ElasticError::Gone`].
    pub fn reclaim(&self, worker: VcpuId) -> Result<PendingReclaim, ElasticError> {
        let Membership { manager, cvm } = self.membership()?;
        manager.reclaim(*cvm, worker)
    }

    /// Lets a reclaimed worker run again.
    ///
    /// # Errors
    /// [`ElasticError::NoSuchWorker`], or [`ElasticError::Gone`].
    pub fn allow(&self, worker: VcpuId) -> Result<(), ElasticError> {
        let Membership { manager, cvm } = self.membership()?;
        manager.allow(*cvm, worker)
    }

    /// Changes what the CVM may have; workers beyond a lower maximum are reclaimed at once.
    ///
    /// # Errors
    /// [`ElasticError`] if that is impossible; nothing is changed then.
    pub fn set_limits(&self, limits: CpuLimits) -> Result<(), ElasticError> {
        let Membership { manager, cvm } = self.membership()?;
        manager.set_limits(*cvm, limits)
    }

    /// Changes what a wake is worth: for how long workers spin at most.
    ///
    /// # Errors
    /// [`ElasticError::SpinLimit`] above 10 ms.
    pub fn set_spin_limit(&self, limit: Duration) -> Result<(), ElasticError> {
        let word = elastic::spin_limit_word(limit)?;
        link::window_of(&self.shared).elastic().set(ElasticWord::SpinLimit, word);
        Ok(())
    }

    /// What its CPUs have done, by the host's clocks. Asks nobody and wakes nobody.
    ///
    /// # Errors
    /// [`ElasticError::Gone`].
    pub fn cpu(&self) -> Result<CpuStats, ElasticError> {
        let Membership { manager, cvm } = self.membership()?;
        Ok(manager.stats(*cvm, &self.shared))
    }

    /// The reclaims that ended since the last call.
    pub fn take_reclaims(&self) -> Vec<Reclaimed> {
        self.membership().map(|member| member.manager.take_reclaims(member.cvm)).unwrap_or_default()
    }

    /// The shared window, which the guest and this process write at any time: for tests of what garbage there does.
    pub fn window(&self) -> Window<'_> {
        link::window_of(&self.shared)
    }

    /// Rings a vCPU's doorbell, as any host may at any time.
    pub fn ring(&self, vcpu: VcpuId) {
        if let Some(handle) = self.shared.vcpus.get(vcpu.index()) {
            let _ = handle.wake.write(1);
        }
    }
}

/// Finds a CVM its place under its manager.
fn join_manager(shared: &Arc<Shared>, config: ElasticConfig) -> Result<(), CvmError> {
    let manager = config.manager.map_or_else(CpuManager::unlimited, Ok)?;
    let cvm = manager.add(shared.clone(), config.limits, config.grace)?;
    // Set once, here.
    let _ = shared.membership.set(Membership { manager, cvm });
    Ok(())
}

impl Drop for Cvm {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ids(count: usize) -> impl Iterator<Item = VcpuId> {
    (0..count as u32).filter_map(VcpuId::new)
}

/// The time stamp counter, to compare with the guest's.
pub fn rdtsc() -> u64 {
    vcpu::rdtsc()
}
