//! What sealing costs: warm calls of the same action through the same node, sealed by an established session and plain, in turns; handshakes,
//! from a fresh nonce to a session that is open; and the verification of one report with its chain.

use super::arm;
use crate::child::Node;
use crate::host::binary_form;
use crate::load::runtime;
use crate::programs::ECHO;
use crate::report::{Row, Target, Unit};
use crate::{BenchError, Progress};
use nacre_attest::claims::{Label, Role};
use nacre_attest::launch::Measurement;
use nacre_attest::policy::{AcceptedGuest, ManifestRule};
use nacre_attest::verify::{Expect, rule, verify, verify_report};
use nacre_client::deploy::Order;
use nacre_client::http::Repeat;
use nacre_client::{Code, Expectations, Manifest, Mode, ModuleKind, Policy, SealedSession, deploy, keys};
use nacre_engine::CpuTarget;
use nacre_vmm::evidence::{LaunchShape, measurement};
use serde_json::json;
use std::fmt::Display;
use std::path::Path;
use std::time::Instant;

/// A genuine report and the certificate of its key: test vectors of the crate `sev`. ASK and ARK are built in.
const MILAN_REPORT: &str = include_str!("../../../attest/tests/vectors/report_milan.hex");
const MILAN_VCEK: &[u8] = include_bytes!("../../../attest/tests/vectors/vcek_milan.der");
/// Calls of each kind before anything is measured.
const WARM_UP: usize = 300;
/// Calls of each kind per round.
const CALLS: usize = 300;
/// Handshakes and verifications per round.
const HANDSHAKES: usize = 10;
/// Bytes of a call's input, and of what it gives back.
const PAYLOAD_BYTES: usize = 1024;
/// What sealing may add to a call.
const SEALING_TARGET: Target = Target::Value(100e3);
/// How long a handshake may take.
const HANDSHAKE_TARGET: Target = Target::Value(10e6);
/// How long the verification of one report and its chain may take.
const VERIFY_TARGET: Target = Target::Value(3e6);
/// A tenant's CVM, by the node's defaults: vCPUs and memory in bytes.
const VCPUS: u32 = 5;
const MEMORY_BYTES: u64 = 512 << 20;

fn failed<E: Display>(what: &'static str) -> impl Fn(E) -> BenchError {
    move |error| BenchError::Program { program: what.into(), what: format!("failed: {error}") }
}

/// A policy for what a node with its defaults launches for this manifest, on any processor.
fn policy(manifest: &Manifest) -> Result<Policy, BenchError> {
    let mut measurements = Vec::new();
    for xcr0 in [0x7, 0xe7] {
        let shape = LaunchShape { vcpus: VCPUS, memory_bytes: MEMORY_BYTES, debug_image: false, xcr0 };
        let digest = measurement(shape).map_err(failed("the measurement"))?;
        measurements.push(AcceptedGuest { measurement: Measurement(digest), guest: "this".into() });
    }
    Ok(Policy {
        measurements,
        allow_software_platform: true,
        manifest: Some(ManifestRule {
            owner: *manifest.owner.as_bytes(),
            minimum_version: manifest.version,
            mode: Mode::Sealed,
        }),
        ..Policy::default()
    })
}

pub(super) fn measure(nacre: &Path, rounds: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let directory = tempfile::tempdir().map_err(BenchError::system("a temporary directory"))?;
    let node = Node::start(nacre, &directory.path().join("node"))?;
    let (owner, compiler) = (keys::generate(), keys::generate());
    let manifest = Manifest {
        version: 1,
        owner: owner.verifying_key(),
        compilers: vec![compiler.verifying_key()],
        brokers: Vec::new(),
        mode: Mode::Sealed,
        name: "bench".into(),
        migration: None,
    };
    let policy = policy(&manifest)?;
    let module = binary_form(ECHO.as_bytes())?;
    runtime()?.block_on(async {
        let open = node.add_tenant("open", json!({})).await?;
        node.put_action(&open, "echo", &module).await?;
        let sealed = node.add_tenant("sealed", json!({})).await?;
        let url = format!("http://{}", node.address);
        let client = |authorization: &str| {
            let client = nacre_client::Node::http(&url).map_err(failed("the client"))?;
            Ok::<_, BenchError>(client.with_authorization(authorization.to_owned()))
        };
        let (plain, client) = (client(&open.authorization)?, client(&sealed.authorization)?);
        let code = Code::compile(&module, CpuTarget::default()).map_err(failed("the module"))?;
        let signed = manifest.sign(&owner).map_err(failed("the manifest"))?;
        let order = Order {
            manifest: &signed,
            policy: &policy,
            code: &code,
            name: "echo",
            version: None,
            kind: ModuleKind::Action,
            env: &[],
            service: None,
            compiler: &compiler,
            authority: &owner,
            store: None,
        };
        deploy(&client, &order, &Expectations::provisioning())
            .await
            .map_err(failed("the sealed deployment"))?;
        let mut arms = Arms { plain, client, policy, session: None };
        arms.run(rounds, progress).await
    })
}

/// Who calls.
struct Arms {
    plain: nacre_client::Node,
    client: nacre_client::Node,
    policy: Policy,
    session: Option<SealedSession>,
}

impl Arms {
    /// A plain call's time in nanoseconds.
    async fn plain(&self, input: &[u8]) -> Result<f64, BenchError> {
        let begin = Instant::now();
        let path = "/api/v1/namespaces/_/actions/echo?blocking=true&result=true";
        let kind = "application/json";
        let sent = self.plain.send(hyper::Method::POST, path, kind, input.to_vec(), Repeat::Never).await;
        let answer = sent.and_then(|answer| answer.success()).map_err(failed("a plain call"))?;
        let elapsed = begin.elapsed().as_nanos() as f64;
        if answer.body.len() < PAYLOAD_BYTES {
            return Err(failed("a plain call")("it gave less than it was given"));
        }
        Ok(elapsed)
    }

    /// A sealed call's.
    async fn sealed(&mut self, input: &[u8]) -> Result<f64, BenchError> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(handshake(&self.client, &self.policy).await?.0),
        };
        let begin = Instant::now();
        let outcome = session.call("echo", input).await.map_err(failed("a sealed call"))?;
        let elapsed = begin.elapsed().as_nanos() as f64;
        if outcome.stdout != input {
            return Err(failed("a sealed call")("it gave something else than it was given"));
        }
        Ok(elapsed)
    }

    async fn run(&mut self, rounds: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
        let input = format!("{{\"x\":\"{}\"}}", "y".repeat(PAYLOAD_BYTES));
        for _ in 0..WARM_UP {
            self.plain(input.as_bytes()).await?;
            self.sealed(input.as_bytes()).await?;
        }
        let (mut plain, mut sealed, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
        let (mut handshakes, mut verifications, mut genuine) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            progress.step("sealed calls and handshakes");
            let (mut one, mut other) = (Vec::with_capacity(CALLS), Vec::with_capacity(CALLS));
            for _ in 0..CALLS {
                one.push(self.plain(input.as_bytes()).await?);
                other.push(self.sealed(input.as_bytes()).await?);
            }
            let median = |times: &[f64]| crate::summary::Summary::of(times).map_or(f64::NAN, |it| it.median);
            beyond.push(median(&other) - median(&one));
            plain.push(median(&one));
            sealed.push(median(&other));
            for _ in 0..HANDSHAKES {
                let (session, elapsed) = handshake(&self.client, &self.policy).await?;
                handshakes.push(elapsed);
                verifications.push(verification(&session, &self.policy)?);
                genuine.push(genuine_verification()?);
            }
        }
        let ns = Unit::Nanoseconds;
        let rows = [
            Row::new("sealing adds to a warm call with 1 KiB", arm::NODE, ns, &beyond)
                .map(|row| row.target(SEALING_TARGET)),
            Row::new("sealed warm call with 1 KiB", arm::NODE, ns, &sealed)
                .map(|row| row.against("plain", &sealed, &plain)),
            Row::new("handshake: evidence, verification, session", arm::NODE, ns, &handshakes)
                .map(|row| row.target(HANDSHAKE_TARGET)),
            Row::new("verification of this machine's report with its chain", arm::NODE, ns, &verifications)
                .map(|row| row.target(VERIFY_TARGET)),
            Row::new("verification of a genuine Milan report with its chain", arm::NODE, ns, &genuine)
                .map(|row| row.target(VERIFY_TARGET)),
        ];
        Ok(rows.into_iter().flatten().collect())
    }
}

/// Opens a session; how long it took, in nanoseconds.
async fn handshake(client: &nacre_client::Node, policy: &Policy) -> Result<(SealedSession, f64), BenchError> {
    let begin = Instant::now();
    let session = SealedSession::open(client, policy, &Expectations::provisioning()).await;
    let session = session.map_err(failed("a handshake"))?;
    Ok((session, begin.elapsed().as_nanos() as f64))
}

/// Verifies the evidence of a session once more, with nothing remembered; how long it took, in nanoseconds.
fn verification(session: &SealedSession, policy: &Policy) -> Result<f64, BenchError> {
    let evidence = session.evidence();
    let nonce = evidence.claims.nonce;
    let expect = Expect { nonce, label: Label::Session, role: Role::Cvm, now: None };
    let begin = Instant::now();
    let verdict = verify(evidence, policy, &expect);
    let elapsed = begin.elapsed().as_nanos() as f64;
    if verdict.accepted() {
        Ok(elapsed)
    } else {
        Err(failed("the verification")("good evidence was rejected"))
    }
}

/// Verifies a report that a processor of AMD's has signed, with its chain; how long it took, in nanoseconds. Whether it is one that a policy
/// of ours accepts is another matter: only what is genuine is asked.
fn genuine_verification() -> Result<f64, BenchError> {
    let wrong = failed("the verification");
    let report = from_hex(MILAN_REPORT.trim()).ok_or_else(|| wrong("the report is no hexadecimal text"))?;
    let begin = Instant::now();
    let verdict = verify_report(&report, &[MILAN_VCEK], &Policy::default(), None);
    let elapsed = begin.elapsed().as_nanos() as f64;
    match verdict.rule(rule::REPORT_SIGNATURE) {
        Some(rule) if rule.passed => Ok(elapsed),
        _ => Err(wrong("a genuine report was rejected")),
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
