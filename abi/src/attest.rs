//! Evidence and sealed sessions on the rings: who sends what, and how long it may be. What the bytes mean is none of the
//! host's business; their formats are those of the crates `nacre-attest` and `nacre-session`.
//!
//! ```text
//! H Manifest                     once, before any code
//! H EvidenceRequest(nonce)       G ReportRequest(report data)    H Report    G Evidence
//! H ModuleCreate(Package) ModuleCode* ModuleLoad      G ModuleLoaded        a package is there, and not more
//! H CallStart(SESSIONS)          G CallDone                      a record of a session, and its answer
//! ```
//!
//! A record travels as the standard input of a call to the module number [`SESSIONS`], its answer as standard output: both
//! may be long, and long calls are what that way is for. The limits in the request's head hold for whatever the
//! record starts; its arguments and variables must be none. A record that is no good ends like a call that could not
//! start: with an error text, whose first word names the error.

/// The module number under which session records are taken.
pub const SESSIONS: u32 = u32::MAX;
/// Bytes of a client's nonce.
pub const NONCE_BYTES: usize = 32;
/// Bytes that a guest binds into a report.
pub const REPORT_DATA_BYTES: usize = 64;
/// Bytes of a report: SEV-SNP's attestation report (firmware ABI, 7.3).
pub const REPORT_BYTES: usize = 1184;
/// Bytes that name a package.
pub const PACKAGE_ID_BYTES: usize = 16;
/// Reports that a guest waits for at most; beyond that a request is refused.
pub const MAX_REPORTS_WAITING: usize = 256;

/// How code comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeForm {
    /// As it is, a `.cwasm`: for open CVMs only.
    Plain = 0,
    /// Sealed, as a package: it is kept until an order of a session says what to do with it.
    Package = 1,
}

impl CodeForm {
    /// The form with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<CodeForm> {
        match number {
            0 => Some(CodeForm::Plain),
            1 => Some(CodeForm::Package),
            _ => None,
        }
    }
}

/// What a message [`Evidence`](crate::message::Kind::Evidence) holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvidenceKind {
    /// Evidence, as `nacre-attest` encodes it.
    Claims = 0,
    /// Why there is none, as text.
    Refused = 1,
}

impl EvidenceKind {
    /// The kind with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<EvidenceKind> {
        match number {
            0 => Some(EvidenceKind::Claims),
            1 => Some(EvidenceKind::Refused),
            _ => None,
        }
    }
}
