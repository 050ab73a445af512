//! A node for tests, in this process: its HTTP interface for sealed CVMs, and a CVM behind it that is real but for the machine: the
//! session protocol's own end, reports of a software platform. It can be told to lie, and remembers all bytes that it saw.
#![allow(dead_code, reason = "each test uses a part")]

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nacre_attest::claims::{Claims, Label, Role, code_list_hash};
use nacre_attest::evidence::Evidence;
use nacre_attest::launch::Measurement;
use nacre_attest::manifest::{Manifest, Mode, SignedManifest};
use nacre_attest::package;
use nacre_attest::policy::{AcceptedGuest, ManifestRule, Policy};
use nacre_attest::software::{ReportFields, Root, Signer};
use nacre_client::{Node, SigningKey};
use nacre_session::command::ModuleKind;
use nacre_session::reply::{ExitKind, Installed, Outcome, Refusal, Reply};
use nacre_session::{ClaimsHash, Command, CvmSessions, Draft, Request as Sealed, Versions, wire};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// The guest's launch digest.
pub const MEASUREMENT: [u8; 48] = [3; 48];

/// Randomness.
pub fn rng() -> rand_core::UnwrapErr<getrandom::SysRng> {
    rand_core::UnwrapErr(getrandom::SysRng)
}

/// The keys of a tenant.
pub struct Keys {
    pub owner: SigningKey,
    pub compiler: SigningKey,
    pub broker: SigningKey,
}

/// Keys that are the same each time.
pub fn keys() -> Keys {
    let key = |seed| SigningKey::from_bytes(&[seed; 32]);
    Keys { owner: key(1), compiler: key(2), broker: key(3) }
}

/// A signed manifest.
pub fn manifest(version: u64) -> SignedManifest {
    let keys = keys();
    let manifest = Manifest {
        version,
        owner: keys.owner.verifying_key(),
        compilers: vec![keys.compiler.verifying_key()],
        brokers: vec![keys.broker.verifying_key()],
        mode: Mode::Sealed,
        name: "tests".to_owned(),
        migration: None,
    };
    manifest.sign(&keys.owner).unwrap()
}

/// A policy that accepts the node's honest CVMs.
pub fn policy() -> Policy {
    Policy {
        measurements: vec![AcceptedGuest { measurement: Measurement(MEASUREMENT), guest: "test".to_owned() }],
        allow_software_platform: true,
        manifest: Some(ManifestRule {
            owner: keys().owner.verifying_key().to_bytes(),
            minimum_version: 1,
            mode: Mode::Sealed,
        }),
        ..Policy::default()
    }
}

/// Something installed in the CVM.
pub struct Code {
    pub version: u64,
    pub kind: ModuleKind,
    pub code: [u8; 32],
    pub env: Vec<(String, String)>,
}

/// A CVM: what the guest is, but for the machine.
pub struct Cvm {
    pub generation: u64,
    pub provisioned: bool,
    pub sessions: CvmSessions,
    pub manifest: Option<SignedManifest>,
    pub installed: BTreeMap<String, Code>,
    pub versions: Versions,
    /// Every call that ran: action and input.
    pub ran: Vec<(String, Vec<u8>)>,
    /// Every removal that was ordered.
    pub removed: Vec<(String, u64)>,
    /// How often code was installed or removed.
    pub changes: u64,
}

impl Cvm {
    fn new(generation: u64, manifest: Option<SignedManifest>) -> Cvm {
        Cvm {
            generation,
            provisioned: false,
            sessions: CvmSessions::new(),
            manifest,
            installed: BTreeMap::new(),
            versions: Versions::new(),
            ran: Vec::new(),
            removed: Vec::new(),
            changes: 0,
        }
    }

    fn code(&self) -> Vec<[u8; 32]> {
        let mut code: Vec<_> = self.installed.values().map(|one| one.code).collect();
        code.sort_unstable();
        code.dedup();
        code
    }

    fn evidence(&mut self, nonce: [u8; 32], signer: &Signer, lie: &Lie) -> (wire_id::Id, Evidence) {
        let draft = Draft::new(&mut rng());
        let code = self.code();
        let claims = Claims {
            label: Label::Session,
            role: Role::Cvm,
            key: draft.public_key().to_vec(),
            nonce,
            id: draft.id().0.to_vec(),
            manifest: self.manifest.as_ref().map_or([0; 32], SignedManifest::hash),
            code: code_list_hash(&code),
        };
        let fields = ReportFields {
            measurement: if matches!(lie, Lie::OtherGuest) { [4; 48] } else { MEASUREMENT },
            host_data: claims.manifest,
            report_data: claims.report_data(),
            report_id: [2; 32],
            debug: matches!(lie, Lie::Debug),
        };
        let report = signer.sign(&fields).unwrap().to_vec();
        let certificates = signer.certificates().to_vec();
        let evidence =
            Evidence { report, certificates, manifest: self.manifest.clone(), claims, code, outer: None };
        let id = draft.id();
        self.sessions.publish(draft, ClaimsHash(evidence.claims.hash()), self.changes);
        (id, evidence)
    }

    fn record(&mut self, record: Vec<u8>, packages: &BTreeMap<String, Bytes>) -> Vec<u8> {
        let Sealed { body, responder, code } = match self.sessions.accept(record) {
            Ok(request) => request,
            Err(rejected) => return rejected.encode(),
        };
        let command = body.command().unwrap();
        if command.needs_authority() {
            let manifest = self.manifest.as_ref().unwrap().verify().unwrap();
            let mut allowed = vec![manifest.owner.to_bytes()];
            allowed.extend(manifest.brokers.iter().map(|key| key.to_bytes()));
            if let Err(reason) = body.authority(&allowed) {
                return responder.seal(&Reply::refused(reason));
            }
        }
        match command {
            Command::Invoke(call) => {
                if code != self.changes {
                    return responder.seal(&Reply::refused(Refusal::CodeChanged));
                }
                let Some(action) = self.installed.get(call.action) else {
                    return responder.seal(&Reply::refused(Refusal::UnknownAction));
                };
                self.ran.push((call.action.to_owned(), call.stdin.to_vec()));
                let stdout: Vec<u8> = call.stdin.iter().rev().copied().collect();
                let stderr = format!("{:?}", action.env);
                responder.seal(&Reply::Outcome(Outcome {
                    exit: ExitKind::Code,
                    code: 0,
                    stdout_cut: false,
                    stderr_cut: false,
                    cold: false,
                    cpu_ns: 1,
                    queued_ns: 2,
                    ran_ns: 3,
                    text: "",
                    stdout: &stdout,
                    stderr: stderr.as_bytes(),
                }))
            }
            Command::Install(install) => match self.install(&install, packages) {
                Ok(code) => responder.seal(&Reply::Installed { version: install.version, code: &code }),
                Err((reason, value)) => responder.seal(&Reply::Refused { reason, value, detail: "" }),
            },
            Command::Remove(remove) => {
                self.installed.remove(remove.name);
                self.changes += 1;
                self.removed.push((remove.name.to_owned(), remove.version));
                responder.seal(&Reply::Removed { version: remove.version })
            }
            Command::Logs(logs) => responder.seal(&Reply::Logs { first: logs.from, bytes: b"a line\n" }),
            Command::Status => {
                let list = self.installed.iter().map(|(name, one)| Installed {
                    name,
                    version: one.version,
                    kind: one.kind,
                    code: &one.code,
                });
                responder.seal(&Reply::Status(list.collect()))
            }
        }
    }

    fn install(
        &mut self,
        install: &nacre_session::command::Install<'_>,
        packages: &BTreeMap<String, Bytes>,
    ) -> Result<[u8; 32], (Refusal, u64)> {
        self.versions.check(install.name, install.version, install.package)?;
        let package = packages
            .values()
            .find(|bytes| package::Header::parse(bytes).unwrap().body_sha256 == *install.package)
            .ok_or((Refusal::PackageMissing, 0))?;
        let mut package = package.to_vec();
        let (signed, range) =
            package::open_in_place(install.key, &mut package).map_err(|_| (Refusal::PackageDamaged, 0))?;
        let manifest = self.manifest.as_ref().unwrap().verify().unwrap();
        let statement = signed.verify(&manifest).map_err(|_| (Refusal::CodeRejected, 0))?;
        statement.check_code(&package[range]).map_err(|_| (Refusal::CodeRejected, 0))?;
        assert_eq!((statement.name.as_str(), statement.version), (install.name, install.version));
        self.versions.installed(install.name, install.version, install.package)?;
        let env = install.env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let (version, kind, code) = (install.version, install.kind, statement.cwasm_sha256);
        self.changes += 1;
        self.installed.insert(install.name.to_owned(), Code { version, kind, code, env });
        Ok(code)
    }
}

mod wire_id {
    pub type Id = nacre_session::SessionId;
}

/// What the node does that it should not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It is honest.
    None,
    /// It answers with evidence for another nonce.
    OtherNonce,
    /// It launches another guest.
    OtherGuest,
    /// It launches the debug image.
    Debug,
    /// It gives the key of a session of its own instead of the CVM's.
    OwnKey,
    /// It offers the evidence under another session's name.
    OtherSession,
    /// It cuts the evidence.
    Cut,
    /// It answers a record with the answer before.
    Replay,
    /// It hands the same record over twice and gives the second answer.
    Twice,
    /// It does not hand a record over and says that nothing is wrong with it.
    Swallow,
    /// It changes a bit of records on their way to the CVM.
    Forge,
    /// It changes a bit of answers.
    ForgeAnswer,
    /// It ends the connection after it has handed the record over, this often.
    Break(u32),
    /// It is too busy for records, this often.
    Busy(u32),
    /// It hands a record over, and says each time that it is too busy for it.
    Busy429AfterRun,
    /// It hands a record over, and says in the CVM's name that the session has carried all it can.
    FailureExhausted,
    /// Its answers have this many bytes, whatever was asked.
    Long(usize),
    /// It takes requests, and answers nothing.
    Silent,
    /// It forgets that a CVM is provisioned.
    Forgets,
    /// It says at once that no CVM waits.
    Nobody,
}

/// What the node is.
pub struct State {
    pub lie: Lie,
    pub cvm: Option<Cvm>,
    pub manifest: Option<SignedManifest>,
    pub packages: BTreeMap<String, Bytes>,
    pub services: BTreeMap<String, u16>,
    /// All that came in: paths and bodies.
    pub seen: Vec<(String, Bytes)>,
    pub generation: u64,
    last_answer: VecDeque<Vec<u8>>,
    signer: Signer,
}

/// The node.
#[derive(Clone)]
pub struct FakeNode {
    state: Arc<Mutex<State>>,
    launched: Arc<Notify>,
    pub url: String,
}

impl FakeNode {
    /// Starts one; it ends with the runtime.
    pub async fn start() -> FakeNode {
        let root = Root::generate().unwrap();
        let signer = Signer::new(&root.issue_vcek("test").unwrap(), root.above()).unwrap();
        let state = State {
            lie: Lie::None,
            cvm: None,
            manifest: Some(manifest(1)),
            packages: BTreeMap::new(),
            services: BTreeMap::new(),
            seen: Vec::new(),
            generation: 0,
            last_answer: VecDeque::new(),
            signer,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let node = FakeNode { state: Arc::new(Mutex::new(state)), launched: Arc::default(), url };
        tokio::spawn(node.clone().accept(listener));
        node
    }

    async fn accept(self, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let node = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| node.clone().answer(request));
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn client(&self) -> Node {
        Node::http(&self.url).unwrap().with_credentials("uuid:key")
    }

    pub fn lie(&self, lie: Lie) {
        self.state().lie = lie;
    }

    /// The CVM ends, as when its node restarts; what is on disk stays.
    pub fn restart(&self) {
        self.state().cvm = None;
    }

    /// Everything that the node has seen, behind each other.
    pub fn bytes_seen(&self) -> Vec<u8> {
        let state = self.state();
        let mut all = Vec::new();
        for (path, body) in &state.seen {
            all.extend_from_slice(path.as_bytes());
            all.extend_from_slice(body);
        }
        all
    }

    /// How many records came in.
    pub fn records_seen(&self) -> usize {
        self.state().seen.iter().filter(|(path, _)| path == "/v1/sealed/records").count()
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (method, path) = (request.method().clone(), request.uri().to_string());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        self.state().seen.push((path.clone(), body.clone()));
        match self.state().lie.clone() {
            Lie::Long(bytes) => return Ok(Response::new(Full::new(Bytes::from(vec![b' '; bytes])))),
            Lie::Nobody if path.starts_with("/v1/sealed/provisioning") => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                return Ok(response);
            }
            _ => {}
        }
        if self.state().lie == Lie::Silent {
            return std::future::pending().await;
        }
        if method == Method::GET && path.starts_with("/v1/sealed/provisioning") {
            return Ok(self.provisioning().await);
        }
        let (status, body) = self.state().serve(&method, &path, body);
        if path.starts_with("/v1/sealed/evidence") {
            self.launched.notify_waiters();
        }
        if status == 0 {
            // The connection ends without an answer.
            return Err(std::io::Error::other("as it was told"));
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok(response)
    }

    async fn provisioning(&self) -> Response<Full<Bytes>> {
        loop {
            let launched = self.launched.notified();
            let waiting = {
                let state = self.state();
                state.cvm.as_ref().filter(|cvm| !cvm.provisioned).map(|cvm| {
                    let packages: Vec<_> = state.packages.keys().cloned().collect();
                    serde_json::json!({ "generation": cvm.generation, "packages": packages }).to_string()
                })
            };
            match waiting {
                Some(body) => return Response::new(Full::new(body.into())),
                None => launched.await,
            }
        }
    }
}

impl State {
    fn cvm(&mut self) -> &mut Cvm {
        if self.cvm.is_none() {
            self.generation += 1;
            self.cvm = Some(Cvm::new(self.generation, self.manifest.clone()));
        }
        self.cvm.as_mut().unwrap()
    }

    fn serve(&mut self, method: &Method, path: &str, body: Bytes) -> (u16, Vec<u8>) {
        let last = path.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
        let none = Vec::new();
        match (method.as_str(), path) {
            ("GET", "/v1/sealed/manifest") => match &self.manifest {
                Some(manifest) => (200, manifest.encode()),
                None => (404, none),
            },
            ("PUT", "/v1/sealed/manifest") => {
                self.manifest = Some(SignedManifest::decode(&body).unwrap());
                self.cvm = None;
                (204, none)
            }
            ("PUT", path) if path.starts_with("/v1/sealed/packages/") => {
                self.packages.insert(last, body);
                (201, b"{}".to_vec())
            }
            ("DELETE", path) if path.starts_with("/v1/sealed/packages/") => {
                let gone = self.packages.remove(&last);
                (if gone.is_some() { 204 } else { 404 }, none)
            }
            ("PUT", path) if path.starts_with("/v1/sealed/services/") => {
                let port = path.split("port=").nth(1).unwrap().split('&').next().unwrap().parse().unwrap();
                self.services.insert(last, port);
                (201, format!("{{\"address\":\"127.0.0.1:{port}\"}}").into_bytes())
            }
            ("DELETE", path) if path.starts_with("/v1/sealed/services/") => {
                let gone = self.services.remove(&last);
                (if gone.is_some() { 204 } else { 404 }, none)
            }
            ("GET", "/v1/deployments") => {
                let view = |(id, port): (&String, &u16)| serde_json::json!({ "name": format!("sealed-{id}"), "address": format!("127.0.0.1:{port}") });
                let all: Vec<_> = self.services.iter().map(view).collect();
                (200, serde_json::Value::from(all).to_string().into_bytes())
            }
            ("POST", path) if path.starts_with("/v1/sealed/provisioning/") => {
                let generation: u64 = last.parse().unwrap();
                if let Some(cvm) = self.cvm.as_mut().filter(|cvm| cvm.generation == generation) {
                    cvm.provisioned = self.lie != Lie::Forgets;
                }
                (204, none)
            }
            ("POST", path) if path.starts_with("/v1/sealed/evidence") => (200, self.evidence(&body)),
            ("POST", "/v1/sealed/records") => self.record(body.to_vec()),
            _ => (404, br#"{"error":"The node knows nothing of this path."}"#.to_vec()),
        }
    }

    fn evidence(&mut self, body: &[u8]) -> Vec<u8> {
        let lie = self.lie.clone();
        let mut nonce = wire::decode_evidence_request(body).unwrap();
        if lie == Lie::OtherNonce {
            nonce[0] ^= 1;
        }
        self.cvm();
        let (cvm, signer) = (self.cvm.as_mut().unwrap(), &self.signer);
        let (mut id, mut evidence) = cvm.evidence(nonce, signer, &lie);
        match lie {
            // The report is over the CVM's key: a node has no other report of it.
            Lie::OwnKey => evidence.claims.key = Draft::new(&mut rng()).public_key().to_vec(),
            Lie::OtherSession => id.0[0] ^= 1,
            _ => {}
        }
        let encoded = evidence.encode();
        let cut = if lie == Lie::Cut { encoded.len() - 1 } else { encoded.len() };
        wire::offer(id, &encoded[..cut]).unwrap()
    }

    fn record(&mut self, mut record: Vec<u8>) -> (u16, Vec<u8>) {
        if let Lie::Busy(times @ 1..) = self.lie {
            self.lie = Lie::Busy(times - 1);
            return (429, br#"{"error":"The tenant has 1 calls under way; send again."}"#.to_vec());
        }
        if self.lie == Lie::Forge {
            *record.last_mut().unwrap() ^= 1;
        }
        if let (Lie::Replay, Some(answer)) = (&self.lie, self.last_answer.back()) {
            return (200, answer.clone());
        }
        let Some(cvm) = self.cvm.as_mut() else {
            return (409, br#"{"error":"the CVM ended: none runs; ask for new evidence."}"#.to_vec());
        };
        if self.lie == Lie::Swallow {
            let (header, _) = wire::Header::split(&record).unwrap();
            let (session, seq) = (header.session, header.seq);
            let error = nacre_session::RecordError::OutOfOrder { expected: seq };
            return (200, nacre_session::Rejected { session, seq, error }.encode());
        }
        let mut answer = cvm.record(record.clone(), &self.packages);
        if self.lie == Lie::Twice {
            answer = cvm.record(record, &self.packages);
        }
        if let Lie::Break(times @ 1..) = self.lie {
            self.lie = Lie::Break(times - 1);
            return (0, Vec::new());
        }
        if self.lie == Lie::Busy429AfterRun {
            return (429, br#"{"error":"The tenant has 1 calls under way; send again."}"#.to_vec());
        }
        if self.lie == Lie::FailureExhausted {
            let (header, _) = wire::Header::split(&answer).unwrap();
            let (session, seq) = (header.session, header.seq);
            let error = nacre_session::RecordError::Exhausted;
            return (200, nacre_session::Rejected { session, seq, error }.encode());
        }
        if self.lie == Lie::ForgeAnswer {
            *answer.last_mut().unwrap() ^= 1;
        }
        self.last_answer.push_back(answer.clone());
        (200, answer)
    }
}

/// Whether some bytes are in others.
pub fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}
