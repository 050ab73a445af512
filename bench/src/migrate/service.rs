//! The service that moves: a program that writes all over its memory, the CVMs it lives in, and the signs of life that it gives.

use super::journey::failed;
use crate::BenchError;
use crate::host::{HostEngine, binary_form};
use crate::programs::{container, writer};
use nacre_attest::launch::Measurement;
use nacre_attest::policy::{AcceptedGuest, ManifestRule};
use nacre_attest::software::{ReportFields, Signer, SoftwarePlatform};
use nacre_client::{Manifest, Mode, Policy, SigningKey, keys};
use nacre_vmm::evidence::{self, Identity, LaunchShape, Platform, ReportDone, ReportRequest};
use nacre_vmm::program::{Events, ProgramEvent, ProgramId, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a CVM has beside the memory that is written to: the image, the program's code and page tables.
const BESIDE_BYTES: u64 = 192 << 20;
/// Two, for as many lanes.
const WORKERS: u32 = 2;
/// How long the first sign of life may take for each GiB that is filled.
const PATIENCE_PER_GIB: Duration = Duration::from_secs(20);

/// Memory of a CVM for a service of this size, in bytes.
pub(super) fn cvm_bytes(bytes: u64) -> u64 {
    bytes + bytes / 64 + BESIDE_BYTES
}

/// A platform that signs what its host is asked for.
struct Software(Signer);

impl Platform for Software {
    fn report(&self, request: ReportRequest, done: ReportDone) {
        let fields = evidence::measurement(request.shape).ok().map(|measurement| ReportFields {
            measurement,
            host_data: request.host_data,
            report_data: request.report_data,
            report_id: [0; 32],
            debug: request.shape.debug_image,
        });
        done(fields.and_then(|fields| self.0.sign(&fields).ok()));
    }

    fn certificates(&self) -> Vec<Vec<u8>> {
        self.0.certificates().to_vec()
    }
}

/// Where CVMs are launched, all with the same manifest.
pub(super) struct Host {
    platform: SoftwarePlatform,
    owner: SigningKey,
    _directory: TempDir,
}

impl Host {
    pub(super) fn new() -> Result<Self, BenchError> {
        let directory = tempfile::tempdir().map_err(BenchError::system("a temporary directory"))?;
        let platform =
            SoftwarePlatform::init(&directory.path().join("platform")).map_err(failed("the platform"))?;
        Ok(Self { platform, owner: keys::generate(), _directory: directory })
    }

    /// A CVM for a service of this size; the manifest lets it move to others of this kind.
    pub(super) fn launch(&self, bytes: u64) -> Result<Arc<Cvm>, BenchError> {
        let memory_bytes = cvm_bytes(bytes);
        let mut measurements = Vec::new();
        for xcr0 in [0x7, 0xe7] {
            let shape = LaunchShape { vcpus: WORKERS + 1, memory_bytes, debug_image: false, xcr0 };
            let digest = evidence::measurement(shape).map_err(failed("the measurement"))?;
            measurements.push(AcceptedGuest { measurement: Measurement(digest), guest: "this".into() });
        }
        let owner = self.owner.verifying_key();
        let rule = ManifestRule { owner: owner.to_bytes(), minimum_version: 1, mode: Mode::Open };
        let policy = Policy {
            measurements,
            allow_software_platform: true,
            software_roots: vec![self.platform.root_sha256()],
            manifest: Some(rule),
            ..Policy::default()
        };
        let manifest = Manifest {
            version: 1,
            owner,
            compilers: Vec::new(),
            brokers: Vec::new(),
            mode: Mode::Open,
            name: "bench".into(),
            migration: Some(policy.encode()),
        };
        let signed = manifest.sign(&self.owner).map_err(failed("the manifest"))?;
        let signer = self.platform.signer("bench").map_err(failed("the platform"))?;
        let identity = Identity {
            platform: Arc::new(Software(signer)),
            host_data: signed.hash(),
            manifest: Some(signed.encode().into()),
        };
        let config =
            CvmConfig { workers: WORKERS, memory_bytes, identity: Some(identity), ..CvmConfig::default() };
        Ok(Arc::new(Cvm::launch(config)?))
    }
}

/// When the service said how many words it had written: at most so many times, the last ones.
#[derive(Default)]
pub(super) struct Pulse {
    beats: Mutex<Vec<(Instant, u64)>>,
    news: Condvar,
}

impl Pulse {
    fn beats(&self) -> MutexGuard<'_, Vec<(Instant, u64)>> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was.
    pub(super) fn clear(&self) {
        self.beats().clear();
    }

    /// All there are.
    pub(super) fn all(&self) -> Vec<(Instant, u64)> {
        self.beats().clone()
    }

    /// Waits until there are `count`.
    pub(super) fn wait(&self, count: usize, patience: Duration) -> Result<(), BenchError> {
        let beats = self.beats();
        let (_beats, timeout) = self
            .news
            .wait_timeout_while(beats, patience, |beats| beats.len() < count)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Err(BenchError::program("the writer", format!("gave no sign of life in {patience:?}")));
        }
        Ok(())
    }

    /// Follows a program until its CVM ends.
    fn follow(&self, cvm: &Cvm, id: ProgramId, events: &Events) {
        while let Some(event) = events.recv() {
            let ProgramEvent::Output { stream, bytes, end } = event else { continue };
            // Words are written whole.
            if let Some(count) = bytes.last_chunk() {
                self.beats().push((Instant::now(), u64::from_le_bytes(*count)));
                self.news.notify_all();
            }
            // If the CVM has ended there are no more events.
            let _ = cvm.consumed(id, stream, end);
        }
    }
}

/// The service, in the CVM where it is now.
pub(super) struct Service {
    pub(super) cvm: Arc<Cvm>,
    pub(super) id: ProgramId,
    pub(super) bytes: u64,
    pub(super) pulse: Arc<Pulse>,
}

impl Service {
    /// Starts one, and waits until its memory is filled.
    pub(super) fn start(host: &mut Host, bytes: u64, rate: u64) -> Result<Self, BenchError> {
        let source = writer(bytes, rate);
        let code = HostEngine::same()?.load(source.as_bytes())?.code()?;
        let code = container(&binary_form(source.as_bytes())?, &code, bytes)?;
        let cvm = host.launch(bytes)?;
        let (started, start) = sync_channel(1);
        let (pulse, home) = (Arc::<Pulse>::default(), cvm.clone());
        let follower = pulse.clone();
        let run = move || {
            let spec = ProgramSpec { code: &code, args: vec!["writer".into()], ..ProgramSpec::default() };
            let begun = home.load(&spec).and_then(|program| program.start().map(|()| program));
            match begun {
                Ok(program) => {
                    // Who asked waits for it.
                    let _ = started.send(Ok(program.id));
                    follower.follow(&home, program.id, &program.events);
                }
                Err(error) => drop(started.send(Err(error))),
            }
        };
        // Ends with the CVM.
        drop(std::thread::spawn(run));
        let id = start.recv().map_err(failed("the writer"))??;
        let service = Self { cvm, id, bytes, pulse };
        let patience = PATIENCE_PER_GIB * ((bytes >> 30) as u32 + 1);
        service.pulse.wait(1, patience)?;
        Ok(service)
    }

    /// What follows it where it is about to be.
    pub(super) fn follower(&self) -> Follower {
        Follower { from: self.cvm.clone(), id: self.id, pulse: self.pulse.clone() }
    }
}

/// Follows a service to its next CVM.
pub(super) struct Follower {
    from: Arc<Cvm>,
    id: ProgramId,
    pulse: Arc<Pulse>,
}

impl Follower {
    /// All its tasks are parked where it was, and this is where it will be.
    pub(super) fn arrive(&self, cvm: &Arc<Cvm>) {
        let events = cvm.adopt_program(self.id, self.from.outputs_seen(self.id));
        let (pulse, id, cvm) = (self.pulse.clone(), self.id, cvm.clone());
        // Ends with the CVM.
        drop(std::thread::spawn(move || pulse.follow(&cvm, id, &events)));
    }
}
