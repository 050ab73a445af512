//! Offers of sessions, and the reports that bind them: the host asks with a client's nonce, the guest asks the platform for a
//! report over a fresh key, and answers with evidence that lacks only the certificates.

use super::{Random, packages, with_manifest};
use crate::link;
use crate::normal::NormalCell;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use nacre_abi::attest::{EvidenceKind, MAX_REPORTS_WAITING, NONCE_BYTES};
use nacre_abi::message::{Header, Kind};
use nacre_attest::claims::{Claims, Label, Role, code_list_hash};
use nacre_attest::evidence::Evidence;
use nacre_attest::report::Report;
use nacre_session::{ClaimsHash, Draft};

/// Reports that were asked for, by our number.
static WAITING: NormalCell<Waiting> = NormalCell::new(Waiting { next: 0, offers: BTreeMap::new() });

struct Waiting {
    next: u32,
    offers: BTreeMap<u32, Offer>,
}

/// An offer whose report is not there yet.
struct Offer {
    /// The host's number for the request.
    request: u32,
    draft: Draft,
    claims: Claims,
    code: Vec<[u8; 32]>,
}

fn refuse(request: u32, text: &str) {
    let header = Header::new(Kind::Evidence, request).stream(EvidenceKind::Refused as u32);
    link::send(header, text.as_bytes());
}

/// A client wants evidence: makes a key pair for a session of its own and asks for a report.
pub fn request(request: u32, body: &[u8]) {
    let Ok(nonce) = <[u8; NONCE_BYTES]>::try_from(body) else {
        return refuse(request, "nonce: it has 32 bytes");
    };
    if WAITING.with(|waiting| waiting.offers.len() >= MAX_REPORTS_WAITING) {
        return refuse(request, "busy: too many reports are being made");
    }
    let draft = Draft::new(&mut Random);
    let code = packages::code();
    let claims = Claims {
        label: Label::Session,
        role: Role::Cvm,
        key: draft.public_key().to_vec(),
        nonce,
        id: draft.id().0.to_vec(),
        manifest: with_manifest(|manifest| manifest.map_or([0; 32], |(signed, _)| signed.hash())),
        code: code_list_hash(&code),
    };
    let report_data = claims.report_data();
    let number = WAITING.with(|waiting| {
        waiting.next = waiting.next.wrapping_add(1);
        waiting.offers.insert(waiting.next, Offer { request, draft, claims, code });
        waiting.next
    });
    link::send(Header::new(Kind::ReportRequest, number), &report_data);
}

/// A report came, or there is none. What it says of the manifest and of the key must be what we meant: else clients would reject it,
/// and the host is the one to know.
pub fn report(number: u32, body: &[u8]) {
    let Some(offer) = WAITING.with(|waiting| waiting.offers.remove(&number)) else { return };
    let Offer { request, draft, claims, code } = offer;
    if body.is_empty() {
        return refuse(request, "report: the platform makes none");
    }
    let Ok(report) = Report::parse(body) else {
        return refuse(request, "report: what the platform made is malformed");
    };
    if report.report_data != claims.report_data() || report.host_data != claims.manifest {
        return refuse(request, "report: it binds another key or manifest");
    }
    let manifest = with_manifest(|manifest| manifest.map(|(signed, _)| signed.clone()));
    let hash = ClaimsHash(claims.hash());
    let evidence = Evidence { report: body.to_vec(), certificates: Vec::new(), manifest, claims, code };
    super::sessions::offer(draft, hash);
    let header = Header::new(Kind::Evidence, request).stream(EvidenceKind::Claims as u32);
    link::send(header, &evidence.encode());
}
