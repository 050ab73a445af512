//! Evidence of a CVM: the reports that its guest asks for, and the offers of sessions that clients ask the guest for.
//!
//! ```text
//! client -> Cvm::evidence(nonce) -> EvidenceRequest -> guest -> ReportRequest -> Platform::report -> Report -> guest -> Evidence -> done
//! ```
//! The one who signs is the [`Platform`]. What it signs beside the guest's own report data, this module tells it: the measurement of what was
//! launched and the hash of the manifest. On hardware that isolates CVMs the processor does that, and nobody can lie about it;
//! here the host does, which is why such reports say that they come from a software platform.

use crate::image::{self, GuestImage};
use crate::launch::Launch;
use crate::link::Sender;
use nacre_abi::attest::{EvidenceKind, MAX_REPORTS_WAITING, NONCE_BYTES, REPORT_BYTES, REPORT_DATA_BYTES};
use nacre_abi::message::{Header, Kind};
use nacre_attest::evidence::encode_report;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// Bytes of a launch measurement: SHA-384.
pub const MEASUREMENT_BYTES: usize = 48;

/// What of a launch decides its measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaunchShape {
    /// vCPUs, vCPU 0 included.
    pub vcpus: u32,
    /// Private memory in bytes.
    pub memory_bytes: u64,
    /// The debug image.
    pub debug_image: bool,
    /// The extended state that is enabled, which depends on the processor.
    pub xcr0: u64,
}

/// Who makes the guest's reports.
pub trait Platform: Send + Sync {
    /// Makes a report and gives it to `done`; none if it can't. Is called by the thread that reads the guest's rings and must not wait for
    /// anything; `done` may be called from any thread.
    fn report(&self, request: ReportRequest, done: ReportDone);

    /// The certificates that go with its reports, in DER, leaf first: the guest puts them into its evidence. Must not wait.
    fn certificates(&self) -> Vec<Vec<u8>>;
}

/// What takes a report.
pub type ReportDone = Box<dyn FnOnce(Option<[u8; REPORT_BYTES]>) + Send>;

/// What a report is to say.
#[derive(Clone, Copy, Debug)]
pub struct ReportRequest {
    /// What was launched.
    pub shape: LaunchShape,
    /// SHA-256 of the manifest, zeros if there is none.
    pub host_data: [u8; 32],
    /// What the guest binds.
    pub report_data: [u8; REPORT_DATA_BYTES],
}

/// How a CVM proves what it is.
#[derive(Clone)]
pub struct Identity {
    /// Who makes its reports.
    pub platform: Arc<dyn Platform>,
    /// SHA-256 of the manifest's own bytes, zeros if there is none.
    pub host_data: [u8; 32],
    /// The signed manifest that the guest is given.
    pub manifest: Option<Arc<[u8]>>,
}

/// Why there is no evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The CVM was launched without a platform.
    #[error("this CVM was launched without a platform that signs reports")]
    NoPlatform,
    /// As many requests wait as may.
    #[error("{MAX_REPORTS_WAITING} clients wait for evidence of this CVM already; ask again")]
    Busy,
    /// The guest refuses.
    #[error("the guest gives no evidence: {0}")]
    Refused(String),
    /// It has ended.
    #[error("the CVM has ended")]
    Ended,
}

/// Gets the evidence as the guest encodes it ([`nacre_attest::evidence::Evidence`]).
type Done = Box<dyn FnOnce(Result<Vec<u8>, EvidenceError>) + Send>;

/// The evidence of one CVM that somebody waits for.
pub struct Attestation {
    identity: Option<Identity>,
    shape: LaunchShape,
    sender: Arc<Sender>,
    /// Reports that are being made. The guest chooses how many it asks for.
    making: Arc<AtomicUsize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u32,
    waiting: HashMap<u32, Done>,
    closed: bool,
}

impl Attestation {
    /// Nobody waits yet.
    pub fn new(identity: Option<Identity>, shape: LaunchShape, sender: Arc<Sender>) -> Attestation {
        Attestation { identity, shape, sender, making: Arc::default(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The manifest as a message, to be sent before any code.
    pub fn manifest(&self) -> Option<Arc<[u8]>> {
        self.identity.as_ref()?.manifest.clone()
    }

    /// Asks the guest for an offer and its evidence; `done` is called once, on the thread that reads the rings, and must not wait.
    pub fn request(&self, nonce: &[u8; NONCE_BYTES], done: Done) {
        if self.identity.is_none() {
            return done(Err(EvidenceError::NoPlatform));
        }
        let mut state = self.state();
        let refused = match () {
            () if state.closed => Some(EvidenceError::Ended),
            () if state.waiting.len() >= MAX_REPORTS_WAITING => Some(EvidenceError::Busy),
            () => None,
        };
        if let Some(error) = refused {
            drop(state);
            return done(Err(error));
        }
        let number = state.next;
        state.next = state.next.wrapping_add(1);
        state.waiting.insert(number, done);
        drop(state);
        // If the CVM has ended `close` tells who waits.
        let _ = self.sender.post([(Header::new(Kind::EvidenceRequest, number), &nonce[..])], true);
    }

    /// Takes a message that concerns evidence; false if it is somebody else's.
    pub fn deliver(&self, header: Header, body: &[u8]) -> bool {
        match header.kind {
            Kind::ReportRequest => self.make_report(header.program, body),
            Kind::Evidence => {
                let done = self.state().waiting.remove(&header.program);
                if let Some(done) = done {
                    done(claimed(header, body));
                }
            }
            _ => return false,
        }
        true
    }

    fn make_report(&self, number: u32, report_data: &[u8]) {
        let sender = self.sender.clone();
        let platform = self.identity.as_ref().map(|identity| identity.platform.clone());
        let reply = move |report: Option<[u8; REPORT_BYTES]>| {
            let certificates = platform.map(|platform| platform.certificates()).unwrap_or_default();
            let body = report.map(|report| encode_report(&report, &certificates)).unwrap_or_default();
            // If the CVM has ended nobody waits.
            let _ = sender.post([(Header::new(Kind::Report, number), &body[..])], true);
        };
        let (Some(identity), Ok(report_data)) = (&self.identity, report_data.try_into()) else {
            return reply(None);
        };
        if self.making.fetch_add(1, Ordering::Relaxed) >= 2 * MAX_REPORTS_WAITING {
            self.making.fetch_sub(1, Ordering::Relaxed);
            return reply(None);
        }
        let making = self.making.clone();
        let done = Box::new(move |report| {
            making.fetch_sub(1, Ordering::Relaxed);
            reply(report);
        });
        let request = ReportRequest { shape: self.shape, host_data: identity.host_data, report_data };
        identity.platform.report(request, done);
    }

    /// The number of the next request.
    pub(crate) fn next_number(&self) -> u32 {
        self.state().next
    }

    /// A tenant comes whose guest may still answer requests before this one.
    pub(crate) fn go_on_from(&self, next: u32) {
        self.state().next = next;
    }

    /// The CVM has ended, or the tenant has left: tells everybody who waits.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_values().for_each(|done| done(Err(EvidenceError::Ended)));
    }
}

/// What a message of the guest's says; it may say anything.
fn claimed(header: Header, body: &[u8]) -> Result<Vec<u8>, EvidenceError> {
    match EvidenceKind::from_number(header.stream) {
        Some(EvidenceKind::Claims) => Ok(body.to_vec()),
        Some(EvidenceKind::Refused) => {
            Err(EvidenceError::Refused(String::from_utf8_lossy(body).into_owned()))
        }
        None => Err(EvidenceError::Refused("its answer is of an unknown kind".into())),
    }
}

/// The launch measurement of a CVM of this shape, computed from what is built in: the digest of SEV-SNP over all initial pages and vCPU
/// states. Takes some milliseconds the first time.
///
/// # Errors
/// [`crate::CvmError`] for a shape that no CVM can have.
pub fn measurement(shape: LaunchShape) -> Result<[u8; MEASUREMENT_BYTES], crate::CvmError> {
    static KNOWN: LazyLock<Mutex<HashMap<LaunchShape, [u8; MEASUREMENT_BYTES]>>> =
        LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(digest) = known().get(&shape) {
        return Ok(*digest);
    }
    let file = if shape.debug_image { image::DEBUG } else { image::RELEASE };
    let launch = Launch::new(&GuestImage::parse(file)?, shape.vcpus, shape.memory_bytes)?;
    let digest = launch.measure(shape.xcr0).0;
    known().insert(shape, digest);
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_guest_are_claims_or_refusals() {
        let header = |kind: u32| Header::new(Kind::Evidence, 1).stream(kind);
        let claims = claimed(header(EvidenceKind::Claims as u32), b"claims");
        assert_eq!(claims.as_deref(), Ok(&b"claims"[..]));
        for (kind, body) in [(EvidenceKind::Refused as u32, &b"why"[..]), (9, b"claims")] {
            assert!(matches!(claimed(header(kind), body), Err(EvidenceError::Refused(_))), "{kind}");
        }
    }
}
