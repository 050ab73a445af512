//! What the tests of sealed CVMs share: an owner with keys and manifest, a software platform, packages, and clients that verify.

use nacre_attest::claims::{Label, Role};
use nacre_attest::code::{CodeStatement, Kind};
use nacre_attest::evidence::Evidence;
use nacre_attest::launch::Measurement;
use nacre_attest::manifest::{Manifest, Mode};
use nacre_attest::package;
use nacre_attest::policy::{AcceptedGuest, ManifestRule, Policy};
use nacre_attest::software::{ReportFields, Signer, SoftwarePlatform};
use nacre_attest::verify::{Expect, Verdict, verify};
use nacre_cli::program::Program as Compiled;
use nacre_session::command::{Command, Install, Invoke, Limits, ModuleKind};
use nacre_session::{ClaimsHash, ClientHandshake, ClientSession, Response, SessionId, SigningKey};
use nacre_vmm::evidence::{Identity, Platform, ReportDone, ReportRequest, measurement};
use nacre_vmm::{Call, Cvm, CvmConfig, Module};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, mpsc};

/// Workers and memory of all CVMs here.
const WORKERS: u32 = 2;
pub const MEMORY_BYTES: u64 = 256 << 20;
/// Bytes of an answer that the host takes.
const MAX_ANSWER: usize = 16 << 20;

/// A software platform that signs whatever it is asked to, and may lie.
pub struct Software {
    pub signer: Signer,
    /// Changes the fields of each report.
    pub lie: fn(&mut ReportFields),
    /// Signs nothing.
    pub silent: bool,
}

impl Platform for Software {
    fn report(&self, request: ReportRequest, done: ReportDone) {
        if self.silent {
            return done(None);
        }
        let mut fields = ReportFields {
            measurement: measurement(request.shape).unwrap(),
            host_data: request.host_data,
            report_data: request.report_data,
            report_id: [7; 32],
            debug: request.shape.debug_image,
        };
        (self.lie)(&mut fields);
        done(Some(self.signer.sign(&fields).unwrap()));
    }

    fn certificates(&self) -> Vec<Vec<u8>> {
        self.signer.certificates().to_vec()
    }
}

/// The owner of a workload, and everything that is theirs.
pub struct World {
    pub owner: SigningKey,
    pub compiler: SigningKey,
    pub broker: SigningKey,
    pub manifest: Manifest,
    /// Whether CVMs are of the image for tests, another one than what people use.
    pub debug_image: bool,
    platform: SoftwarePlatform,
    _dir: tempfile::TempDir,
    rng: Mutex<ChaCha20Rng>,
}

/// A package and what its order says.
pub struct Package {
    pub bytes: Vec<u8>,
    pub key: [u8; 32],
    pub content: [u8; 32],
    pub name: String,
    pub version: u64,
    pub kind: ModuleKind,
}

impl World {
    /// A world, or `None` with a word why not.
    pub fn new(what: &str, mode: Mode) -> Option<World> {
        if let Err(error) = nacre_vmm::kvm::available() {
            nacre_tests::skip::skipped(what, &error.to_string());
            return None;
        }
        let mut rng = ChaCha20Rng::seed_from_u64(5);
        let mut key = || {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            SigningKey::from_bytes(&bytes)
        };
        let (owner, compiler, broker) = (key(), key(), key());
        let manifest = Manifest {
            version: 3,
            owner: owner.verifying_key(),
            compilers: vec![compiler.verifying_key()],
            brokers: vec![broker.verifying_key()],
            mode,
            name: "test".into(),
            migration: None,
        };
        let dir = tempfile::tempdir().unwrap();
        let platform = SoftwarePlatform::init(&dir.path().join("platform")).unwrap();
        Some(World {
            owner,
            compiler,
            broker,
            manifest,
            debug_image: false,
            platform,
            _dir: dir,
            rng: Mutex::new(rng),
        })
    }

    /// A platform that can sign.
    pub fn software(&self) -> Software {
        Software { signer: self.platform.signer("test").unwrap(), lie: |_| (), silent: false }
    }

    /// A CVM with this world's manifest, on an honest platform.
    pub fn launch(&self) -> Cvm {
        self.launch_on(self.software())
    }

    /// The same on another platform.
    pub fn launch_on(&self, platform: impl Platform + 'static) -> Cvm {
        let signed = self.manifest.sign(&self.owner).unwrap();
        self.launch_with(platform, signed.hash(), Some(signed.encode().into()))
    }

    /// A CVM with any manifest.
    pub fn launch_with(
        &self,
        platform: impl Platform + 'static,
        host_data: [u8; 32],
        manifest: Option<Arc<[u8]>>,
    ) -> Cvm {
        let identity = Identity { platform: Arc::new(platform), host_data, manifest };
        let config = CvmConfig {
            workers: WORKERS,
            memory_bytes: MEMORY_BYTES,
            identity: Some(identity),
            debug_image: self.debug_image,
            ..CvmConfig::default()
        };
        Cvm::launch(config).unwrap()
    }

    /// A policy that accepts this world's CVMs.
    pub fn policy(&self) -> Policy {
        let guest = |xcr0| {
            let shape = nacre_vmm::evidence::LaunchShape {
                vcpus: WORKERS + 1,
                memory_bytes: MEMORY_BYTES,
                debug_image: false,
                xcr0,
            };
            AcceptedGuest { measurement: Measurement(measurement(shape).unwrap()), guest: "this".into() }
        };
        Policy {
            measurements: vec![guest(7), guest(0xe7)],
            allow_software_platform: true,
            software_roots: vec![self.platform.root_sha256()],
            manifest: Some(ManifestRule {
                owner: self.owner.verifying_key().to_bytes(),
                minimum_version: 3,
                mode: self.manifest.mode,
            }),
            ..Policy::default()
        }
    }

    /// Seals compiled code, signed by this world's compiler.
    pub fn package(&self, name: &str, version: u64, kind: ModuleKind, code: &Compiled) -> Package {
        self.package_signed(name, version, kind, code.file(), &self.compiler)
    }

    /// The same by any compiler.
    pub fn package_signed(
        &self,
        name: &str,
        version: u64,
        kind: ModuleKind,
        code: &[u8],
        compiler: &SigningKey,
    ) -> Package {
        let statement = CodeStatement {
            name: name.into(),
            version,
            module_sha256: [1; 32],
            cwasm_sha256: Sha256::digest(code).into(),
            fingerprint: [2; 32],
            kind: match kind {
                ModuleKind::Action => Kind::Action,
                ModuleKind::Service => Kind::Service { tls: false },
                ModuleKind::TlsService => Kind::Service { tls: true },
            },
        };
        let (mut key, mut id) = ([0; 32], [0; 16]);
        let mut rng = self.rng.lock().unwrap();
        rng.fill_bytes(&mut key);
        rng.fill_bytes(&mut id);
        let bytes = package::seal(&key, id, &statement.sign(compiler).unwrap(), code).unwrap();
        let content = package::Header::parse(&bytes).unwrap().body_sha256;
        Package { bytes, key, content, name: name.into(), version, kind }
    }

    /// Evidence for a nonce, and what a policy says of it.
    pub fn evidence(&self, cvm: &Cvm, nonce: &[u8; 32], policy: &Policy) -> (Evidence, Verdict) {
        let evidence = Evidence::decode(&encoded_evidence(cvm, nonce).unwrap()).unwrap();
        let expect = Expect { nonce: *nonce, label: Label::Session, role: Role::Cvm, now: None };
        let verdict = verify(&evidence, policy, &expect);
        (evidence, verdict)
    }

    /// Verifies a CVM and opens a session to it.
    pub fn open(&self, cvm: &Cvm) -> ClientSession {
        let handshake = ClientHandshake::new(&mut *self.rng.lock().unwrap());
        let (evidence, verdict) = self.evidence(cvm, handshake.nonce(), &self.policy());
        assert!(verdict.accepted(), "{:#?}", verdict.failed().collect::<Vec<_>>());
        let claims = &evidence.claims;
        let id = SessionId(claims.id.as_slice().try_into().unwrap());
        let key: [u8; 32] = claims.key.as_slice().try_into().unwrap();
        handshake.accept(id, &key, ClaimsHash(claims.hash()), &mut *self.rng.lock().unwrap()).unwrap()
    }

    /// Brings a package in and has it installed by an order of the owner.
    pub fn install(&self, cvm: &Cvm, session: &mut ClientSession, package: &Package) -> Module {
        let module = cvm.load_package(&package.bytes).unwrap();
        let record =
            session.seal_signed(&package.order(&[("SECRET", "planted-secret")]), &self.owner).unwrap();
        let response = answer(cvm, session, &record.bytes);
        let reply = format!("{:?}", response.reply().unwrap());
        assert!(reply.starts_with("Installed"), "{reply}");
        module
    }
}

impl Package {
    /// The command that installs it.
    pub fn order<'a>(&'a self, env: &[(&'a str, &'a str)]) -> Command<'a> {
        Command::Install(Install {
            package: &self.content,
            key: &self.key,
            name: &self.name,
            version: self.version,
            kind: self.kind,
            env: env.to_vec(),
        })
    }
}

/// Evidence as the guest gives it.
pub fn encoded_evidence(cvm: &Cvm, nonce: &[u8; 32]) -> Result<Vec<u8>, nacre_vmm::evidence::EvidenceError> {
    let (sender, results) = mpsc::channel();
    cvm.evidence(nonce, move |result| sender.send(result).unwrap());
    results.recv().unwrap()
}

/// Hands a record over; returns the record that answers it.
pub fn relay(cvm: &Cvm, record: &[u8]) -> Vec<u8> {
    let (sender, results) = mpsc::channel();
    let call = Call { stdin: record, max_output: MAX_ANSWER, ..Call::default() };
    cvm.record(&call, move |result| sender.send(result).unwrap()).unwrap();
    let result = results.recv().unwrap();
    assert_eq!(result.exit, nacre_vmm::program::Exit::Code(0));
    assert!(
        result.stderr.is_empty() && result.cpu.is_zero() && result.ran.is_zero(),
        "the host learns nothing"
    );
    result.stdout
}

/// The same for a session: opens the answer.
pub fn answer(cvm: &Cvm, session: &mut ClientSession, record: &[u8]) -> Response {
    session.open_response(relay(cvm, record)).unwrap()
}

/// A call of an action.
pub fn invoke<'a>(action: &'a str, stdin: &'a [u8]) -> Command<'a> {
    Command::Invoke(Invoke {
        action,
        args: vec![],
        env: vec![("E", "given")],
        limits: Limits::default(),
        stdin,
    })
}
