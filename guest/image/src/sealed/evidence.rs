//! Evidence: somebody asks with a client's nonce, the guest asks the platform for a report over a key of its own, and what comes
//! back makes evidence. Who asks is the host for an offer of a session, or a TLS service for a certificate.

use super::{Random, packages, tls, with_manifest};
use crate::normal::NormalCell;
use crate::{link, migrate, sockets};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use nacre_abi::attest::{EvidenceKind, MAX_REPORTS_WAITING, NONCE_BYTES, REPORT_DATA_BYTES};
use nacre_abi::message::{Header, Kind};
use nacre_attest::claims::{Claims, Label, Role, code_list_hash};
use nacre_attest::evidence::{Evidence, MAX_EVIDENCE_BYTES, decode_report};
use nacre_attest::report::Report;
use nacre_migrate::policy::Binding;
use nacre_session::{ClaimsHash, Draft};
use nacre_tls::Nonce;

/// Reports that were asked for, by our number.
static WAITING: NormalCell<Waiting> = NormalCell::new(Waiting { next: 0, offers: 0, asked: BTreeMap::new() });

struct Waiting {
    next: u32,
    /// How many of them are for offers; each TLS service bounds its own.
    offers: usize,
    asked: BTreeMap<u32, Asked>,
}

/// A report that is not there yet.
struct Asked {
    by: Asker,
    claims: Claims,
    code: Vec<[u8; 32]>,
    /// [`packages::generation`] of that code.
    generation: u64,
}

/// Who gets the evidence.
enum Asker {
    /// A client, as the offer of a session, by the host's number for its request.
    Offer(u32, Draft),
    /// A TLS service, for a certificate with this nonce.
    Service(u32, Nonce),
    /// This end of a migration.
    Migration,
}

fn refuse(request: u32, text: &str) {
    let header = Header::new(Kind::Evidence, request).stream(EvidenceKind::Refused as u32);
    link::send(header, text.as_bytes());
}

/// Enters a question to the platform; returns its number and what the report is to bind.
fn enter(
    by: Asker,
    label: Label,
    key: Vec<u8>,
    nonce: [u8; 32],
    id: Vec<u8>,
) -> (u32, [u8; REPORT_DATA_BYTES]) {
    let (code, generation) = (packages::code(), packages::generation());
    let claims = Claims {
        label,
        role: Role::Cvm,
        key,
        nonce,
        id,
        manifest: with_manifest(|manifest| manifest.map_or([0; 32], |(signed, _)| signed.hash())),
        code: code_list_hash(&code),
    };
    let report_data = claims.report_data();
    let number = WAITING.with(|waiting| {
        waiting.offers += usize::from(matches!(by, Asker::Offer(..)));
        waiting.next = waiting.next.wrapping_add(1);
        waiting.asked.insert(waiting.next, Asked { by, claims, code, generation });
        waiting.next
    });
    (number, report_data)
}

/// A client wants evidence: makes a key pair for a session of its own and asks for a report.
pub fn request(request: u32, body: &[u8]) {
    let Ok(nonce) = <[u8; NONCE_BYTES]>::try_from(body) else {
        return refuse(request, "nonce: it has 32 bytes");
    };
    if WAITING.with(|waiting| waiting.offers >= MAX_REPORTS_WAITING) {
        return refuse(request, "busy: too many reports are being made");
    }
    let draft = Draft::new(&mut Random);
    let (key, id) = (draft.public_key().to_vec(), draft.id().0.to_vec());
    let (number, report_data) = enter(Asker::Offer(request, draft), Label::Session, key, nonce, id);
    link::send(Header::new(Kind::ReportRequest, number), &report_data);
}

/// A TLS service wants evidence with this nonce: enters that. The caller sends the question when it is not on vCPU 0 any more.
pub fn enter_service(program: u32, nonce: Nonce) -> ReportQuestion {
    let key = tls::identity().spki_sha256().to_vec();
    let by = Asker::Service(program, nonce);
    ReportQuestion(enter(by, Label::Tls, key, *nonce.bytes(), [0; 16].to_vec()))
}

/// A migration wants evidence of this end that binds what the protocol says.
pub fn for_migration(binding: &Binding) {
    let (code, generation) = (packages::code(), packages::generation());
    let claims = binding.claims(code_list_hash(&code));
    let report_data = claims.report_data();
    let number = WAITING.with(|waiting| {
        waiting.next = waiting.next.wrapping_add(1);
        waiting.asked.insert(waiting.next, Asked { by: Asker::Migration, claims, code, generation });
        waiting.next
    });
    link::send(Header::new(Kind::ReportRequest, number), &report_data);
}

/// Asks the platform again for what it was asked where the tenant came from; what clients of that host wait for, they ask for again
/// themselves.
pub fn ask_again() {
    WAITING.with(|waiting| {
        waiting.asked.retain(|_, asked| matches!(asked.by, Asker::Service(..)));
        waiting.offers = 0;
        for (number, asked) in &waiting.asked {
            link::send(Header::new(Kind::ReportRequest, *number), &asked.claims.report_data());
        }
    });
}

/// A question to the platform that was entered and not asked yet.
#[must_use]
pub struct ReportQuestion((u32, [u8; REPORT_DATA_BYTES]));

impl ReportQuestion {
    /// Asks it. On any vCPU.
    pub fn send(self) {
        let (number, report_data) = self.0;
        link::send(Header::new(Kind::ReportRequest, number), &report_data);
    }
}

/// A report came, or there is none.
pub fn report(number: u32, body: &[u8]) {
    let asked = WAITING.with(|waiting| {
        let asked = waiting.asked.remove(&number)?;
        waiting.offers -= usize::from(matches!(asked.by, Asker::Offer(..)));
        Some(asked)
    });
    let Some(Asked { by, claims, code, generation }) = asked else { return };
    let hash = ClaimsHash(claims.hash());
    let made = evidence(body, claims, code);
    match (by, made) {
        (Asker::Offer(request, draft), Ok(evidence)) => {
            super::sessions::offer(draft, hash, generation);
            link::send(Header::new(Kind::Evidence, request).stream(EvidenceKind::Claims as u32), &evidence);
        }
        (Asker::Offer(request, _), Err(text)) => refuse(request, text),
        (Asker::Service(program, nonce), made) => sockets::evidence(program, nonce, made.ok()),
        (Asker::Migration, made) => migrate::evidence(made.as_deref().map_err(|text| *text)),
    }
}

/// The evidence that a report makes. What the report says of the manifest and of the key must be what we meant: else clients would
/// reject it, and the host is the one to know.
fn evidence(body: &[u8], claims: Claims, code: Vec<[u8; 32]>) -> Result<Vec<u8>, &'static str> {
    if body.is_empty() {
        return Err("report: the platform makes none");
    }
    let malformed = "report: what the platform made is malformed";
    let (report, certificates) = decode_report(body).map_err(|_| malformed)?;
    let parsed = Report::parse(report).map_err(|_| malformed)?;
    if parsed.report_data != claims.report_data() || parsed.host_data != claims.manifest {
        return Err("report: it binds another key or manifest");
    }
    let manifest = with_manifest(|manifest| manifest.map(|(signed, _)| signed.clone()));
    let encoded =
        Evidence { report: report.to_vec(), certificates, manifest, claims, code, outer: None }.encode();
    if encoded.len() > MAX_EVIDENCE_BYTES {
        return Err("report: the evidence with it is too long");
    }
    Ok(encoded)
}
