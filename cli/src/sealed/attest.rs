//! `nacre attest show`, `verify`, `fetch`: reports and evidence, for people.

use super::args::{AttestArgs, AttestCommand, AttestFetchArgs, AttestShowArgs, AttestVerifyArgs};
use super::{read, read_policy, session_failure};
use crate::cache::write_atomically;
use crate::failure::{EXIT_FAILED, Failure};
use crate::node::client::wait;
use crate::program::io_reason;
use nacre_attest::certificate::Certificate;
use nacre_attest::chain::Chain;
use nacre_attest::evidence::{Evidence, MAX_EVIDENCE_BYTES, OuterReport};
use nacre_attest::launch::Measurement;
use nacre_attest::policy::{AcceptedGuest, Policy};
use nacre_attest::report::{REPORT_BYTES, Report};
use nacre_attest::show::{report_fields, report_json, report_table, verdict_json, verdict_table};
use nacre_attest::tcb::{Platform, Tcb};
use nacre_attest::verify::{Expect, RuleResult, Verdict, hex, rule, verify, verify_report};
use nacre_client::session::fetch;
use nacre_client::{Expectations, keys};
use serde_json::json;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// Why nothing can be shown or judged; a rejection is an exit code.
pub fn command(args: &AttestArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        AttestCommand::Show(args) => show(args),
        AttestCommand::Verify(args) => judge(args),
        AttestCommand::Fetch(args) => fetch_evidence(args),
    }
}

/// What a file holds.
enum Shown {
    Report(Vec<u8>),
    Evidence(Box<Evidence>),
}

impl Shown {
    fn report(&self) -> &[u8] {
        match self {
            Shown::Report(report) => report,
            Shown::Evidence(evidence) => &evidence.report,
        }
    }
}

fn load(path: &Path) -> Result<Shown, Failure> {
    let failure = |error: &dyn std::fmt::Display| Failure::new(path.display(), error);
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        let most = (4 * MAX_EVIDENCE_BYTES) as u64;
        let read = std::io::stdin().take(most).read_to_end(&mut bytes);
        read.map_err(|error| failure(&format_args!("{}; pipe a file into it", io_reason(&error))))?;
        bytes
    } else {
        read(path)?
    };
    if bytes.starts_with(b"NACREEV") {
        let evidence = Evidence::decode(&bytes);
        let evidence = evidence.map_err(|error| failure(&format_args!("{error}; fetch it again")))?;
        return Ok(Shown::Evidence(Box::new(evidence)));
    }
    let report = if bytes.len() == REPORT_BYTES { Some(bytes) } else { report_of_hex(&bytes) };
    report.map(Shown::Report).ok_or_else(|| {
        failure(&format_args!(
            "is no evidence and no report, which has {REPORT_BYTES} bytes or twice as many hexadecimal digits; name another file"
        ))
    })
}

fn report_of_hex(bytes: &[u8]) -> Option<Vec<u8>> {
    let digits: String = std::str::from_utf8(bytes).ok()?.split_whitespace().collect();
    let report: [u8; REPORT_BYTES] = keys::from_hex(&digits)?;
    Some(report.to_vec())
}

fn platform(certificates: &[Vec<u8>]) -> Option<Platform> {
    Chain::verify(certificates).ok().map(|chain| chain.platform)
}

fn show(args: &AttestShowArgs) -> Result<ExitCode, Failure> {
    let shown = load(&args.file)?;
    let report = Report::parse(shown.report()).map_err(|error| {
        Failure::new(args.file.display(), format_args!("{error}; is it a report of SEV-SNP?"))
    })?;
    let Shown::Evidence(evidence) = &shown else {
        if args.json {
            println!("{}", json!({ "report": report_json(&report, None) }));
        } else {
            print!("{}", report_table(&report, None));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let platform = platform(&evidence.certificates);
    let names: Vec<String> = evidence.certificates.iter().map(|der| certificate(der)).collect();
    let outer = evidence.outer.as_ref().map(OuterShown::new);
    let manifest = evidence.manifest.as_ref().map(|signed| signed.verify());
    let claims = &evidence.claims;
    let code: Vec<String> = evidence.code.iter().map(|hash| hex(hash)).collect();
    if args.json {
        let manifest = manifest.map(|manifest| match manifest {
            Ok(manifest) => {
                json!({ "name": manifest.name, "version": manifest.version, "mode": manifest.mode.name(),
                "owner": hex(manifest.owner.as_bytes()) })
            }
            Err(error) => json!({ "error": error.to_string() }),
        });
        let object = json!({
            "report": report_json(&report, platform),
            "certificates": names,
            "claims": { "label": claims.label.text(), "role": claims.role.text(), "key": hex(&claims.key),
                "nonce": hex(&claims.nonce), "id": hex(&claims.id), "manifest": hex(&claims.manifest),
                "code": hex(&claims.code) },
            "manifest": manifest,
            "code": code,
            "outer": outer.as_ref().map(OuterShown::json),
        });
        println!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("# report");
    print!("{}", report_table(&report, platform));
    println!("# claims, of which report_data is the hash");
    let rows = [
        ("label", claims.label.text().to_owned()),
        ("role", claims.role.text().to_owned()),
        ("key", hex(&claims.key)),
        ("nonce", hex(&claims.nonce)),
        ("id", hex(&claims.id)),
        ("manifest", hex(&claims.manifest)),
        ("code", hex(&claims.code)),
    ];
    rows.iter().for_each(|(name, value)| println!("{name:18} {value}"));
    println!("# certificates");
    names.iter().for_each(|name| println!("{name}"));
    println!("# manifest");
    match manifest {
        None => println!("none: the CVM is open"),
        Some(Ok(manifest)) => print!("{}", manifest.to_toml()),
        Some(Err(error)) => println!("{error}"),
    }
    println!("# loaded code");
    code.iter().for_each(|hash| println!("{hash}"));
    if let Some(outer) = outer {
        outer.print();
    }
    Ok(ExitCode::SUCCESS)
}

/// What there is to see of the VM around a nested CVM.
struct OuterShown {
    report: Result<Report, String>,
    platform: Option<Platform>,
    certificates: Vec<String>,
}

impl OuterShown {
    fn new(outer: &OuterReport) -> Self {
        Self {
            report: Report::parse(&outer.report).map_err(|error| error.to_string()),
            platform: platform(&outer.certificates),
            certificates: outer.certificates.iter().map(|der| certificate(der)).collect(),
        }
    }

    fn json(&self) -> serde_json::Value {
        let report = match &self.report {
            Ok(report) => report_json(report, self.platform),
            Err(error) => json!({ "error": error }),
        };
        json!({ "report": report, "certificates": self.certificates })
    }

    fn print(&self) {
        println!("# report of the VM around it");
        match &self.report {
            Ok(report) => print!("{}", report_table(report, self.platform)),
            Err(error) => println!("{error}"),
        }
        println!("# certificates of the VM around it");
        self.certificates.iter().for_each(|name| println!("{name}"));
    }
}

/// A certificate in one line, with the two hashes that a policy may revoke it by.
fn certificate(der: &[u8]) -> String {
    match Certificate::parse(der) {
        Ok(one) => format!(
            "{} issued by {}, SHA-256 {}, of its signed part {}",
            super::printable(&one.subject_name),
            super::printable(&one.issuer_name),
            hex(&one.sha256()),
            hex(&one.signed_sha256())
        ),
        Err(error) => format!("unreadable: {error}"),
    }
}

/// All certificates of a folder, leaf first: each one before its issuer.
fn certificates(dir: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let failure = |error: &dyn std::fmt::Display| Failure::new(dir.display(), error);
    let reason = |error: std::io::Error| {
        failure(&format_args!("{}; name a folder with certificates", io_reason(&error)))
    };
    let mut all: Vec<Certificate> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(reason)? {
        let path = entry.map_err(reason)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !matches!(extension, "der" | "pem" | "crt" | "cer" | "cert") {
            continue;
        }
        for der in blocks(&read(&path)?) {
            let one = Certificate::parse(&der).map_err(|error| {
                Failure::new(path.display(), format_args!("{error}; remove it from the folder"))
            })?;
            if !all.contains(&one) {
                all.push(one);
            }
        }
    }
    // The one that issued no other is the leaf.
    let is_leaf = |one: &Certificate| !all.iter().any(|other| other != one && other.names_as_issuer(one));
    let mut leaves = all.iter().filter(|one| is_leaf(one));
    let (Some(leaf), None) = (leaves.next(), leaves.next()) else {
        return Err(failure(
            &"holds no single chain; put the VCEK or VLEK, the ASK and the ARK there, and nothing else",
        ));
    };
    let mut chain = vec![leaf];
    while let Some(issuer) = all.iter().find(|one| chain[chain.len() - 1].names_as_issuer(one)) {
        if chain.contains(&issuer) {
            break;
        }
        chain.push(issuer);
    }
    Ok(chain.iter().map(|one| one.der().to_vec()).collect())
}

/// The certificates of a file, in DER: it is that, or PEM.
fn blocks(bytes: &[u8]) -> Vec<Vec<u8>> {
    use base64::Engine;
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.contains(BEGIN)) else {
        return vec![bytes.to_vec()];
    };
    let block = |block: &str| {
        let base64: String = block.split("-----END").next().unwrap_or_default().split_whitespace().collect();
        base64::engine::general_purpose::STANDARD.decode(base64).unwrap_or_default()
    };
    text.split(BEGIN).skip(1).map(block).collect()
}

/// Rules that say what is genuine, without anybody's wishes.
const GENUINE: [&str; 10] = [
    rule::REPORT_FORMAT,
    rule::CERTIFICATE_CHAIN,
    rule::CERTIFICATE_VALIDITY,
    rule::REPORT_SIGNATURE,
    rule::CERTIFICATE_MATCHES_REPORT,
    rule::SOFTWARE_PLATFORM,
    rule::CLAIMS,
    rule::MANIFEST_BOUND,
    rule::MANIFEST_SIGNATURE,
    rule::CODE_BOUND,
];

/// A policy that wants what is there, but nothing that protects nothing.
fn any(report: &[u8], certificates: &[Vec<u8>]) -> Policy {
    let measurement = Report::parse(report).map_or([0; 48], |report| report.measurement);
    let platform = platform(certificates).filter(|platform| *platform != Platform::Software);
    let lowest = Tcb { fmc: 0, bootloader: 0, tee: 0, snp: 0, microcode: 0 };
    Policy {
        measurements: vec![AcceptedGuest { measurement: Measurement(measurement), guest: "any".to_owned() }],
        platforms: platform.into_iter().collect(),
        minimum_tcb: platform.into_iter().map(|platform| (platform, lowest)).collect(),
        ..Policy::default()
    }
}

fn judge(args: &AttestVerifyArgs) -> Result<ExitCode, Failure> {
    let shown = load(&args.file)?;
    let now = Expectations::new().now;
    let mut certs = args.certs.as_deref().map(certificates).transpose()?;
    if let (Shown::Evidence(evidence), None) = (&shown, &certs) {
        certs = Some(evidence.certificates.clone());
    }
    let certs = certs.ok_or_else(|| {
        Failure::usage(
            "--certs",
            "is missing, and a report brings no certificates",
            "name a folder with its chain",
        )
    })?;
    let policy = match &args.policy {
        Some(path) => read_policy(path)?,
        None => any(shown.report(), &certs),
    };
    let mut verdict = match &shown {
        Shown::Report(report) => {
            let mut verdict = verify_report(report, &certs, &policy, now);
            verdict.rules.extend(args.nonce.as_deref().map(|nonce| of_report(nonce, report)).transpose()?);
            verdict
        }
        Shown::Evidence(evidence) => {
            let nonce = args.nonce.as_deref().map(nonce::<32>).transpose()?;
            let claims = &evidence.claims;
            let (label, role) = (claims.label, claims.role);
            let expect = Expect { nonce: nonce.unwrap_or(claims.nonce), label, role, now };
            let evidence = Evidence { certificates: certs, ..(**evidence).clone() };
            let mut verdict = verify(&evidence, &policy, &expect);
            if nonce.is_none() {
                verdict.rules.retain(|one| one.name != rule::NONCE);
            }
            verdict
        }
    };
    if args.policy.is_none() {
        verdict.rules.retain(|one| GENUINE.contains(&one.name) || one.name == rule::NONCE);
        verdict.guest = None;
    }
    Ok(tell(args, &verdict))
}

/// Prints a verdict, and what was not judged.
fn tell(args: &AttestVerifyArgs, verdict: &Verdict) -> ExitCode {
    if args.json {
        let mut object = verdict_json(verdict);
        object["policy_judged"] = args.policy.is_some().into();
        object["nonce_judged"] = args.nonce.is_some().into();
        println!("{object}");
    } else {
        print!("{}", verdict_table(verdict));
        if args.policy.is_none() {
            println!("without --policy only what is genuine was judged, not whether it is what you want");
        }
        if args.nonce.is_none() {
            println!("without --nonce nobody knows how old it is");
        }
    }
    ExitCode::from(if verdict.accepted() { 0 } else { EXIT_FAILED })
}

fn nonce<const N: usize>(text: &str) -> Result<[u8; N], Failure> {
    keys::from_hex(text).ok_or_else(|| {
        let why = format_args!("is not {} hexadecimal digits", 2 * N);
        Failure::usage("--nonce", why, "write the nonce as nacre attest fetch prints it")
    })
}

/// A report's own nonce: the beginning of REPORT_DATA, with nothing behind it.
fn of_report(text: &str, report: &[u8]) -> Result<RuleResult, Failure> {
    let mut wanted = [0; 64];
    match text.len() {
        64 => wanted[..32].copy_from_slice(&nonce::<32>(text)?),
        _ => wanted = nonce(text)?,
    }
    let passed = Report::parse(report).is_ok_and(|report| report.report_data == wanted);
    let detail = if passed { "REPORT_DATA is the nonce" } else { "REPORT_DATA is not the nonce" };
    Ok(RuleResult { name: rule::NONCE, passed, detail: detail.to_owned() })
}

fn fetch_evidence(args: &AttestFetchArgs) -> Result<ExitCode, Failure> {
    let client = args.target.client()?;
    let policy = args.policy.as_deref().map(read_policy).transpose()?;
    let judged_by = policy.clone().unwrap_or_default();
    let (evidence, nonce, verdict) = wait(async {
        let fetched = fetch(client.node(), &judged_by, &Expectations::new()).await;
        fetched.map_err(|error| session_failure("evidence", error))
    })?;
    let bytes = evidence.encode();
    write_atomically(&args.output, &bytes, 0o644).map_err(|error| {
        let why = io_reason(&error);
        Failure::new(
            args.output.display(),
            format_args!("can not be written: {why}; choose another place with -o"),
        )
    })?;
    let verdict = policy.map(|_| verdict);
    if args.json {
        let object = json!({
            "output": args.output.to_string_lossy(),
            "bytes": bytes.len(),
            "nonce": hex(&nonce),
            "verdict": verdict.as_ref().map(verdict_json),
        });
        println!("{object}");
    } else {
        println!("{}: {} bytes, nonce {}", args.output.display(), bytes.len(), hex(&nonce));
        if let Ok(report) = Report::parse(&evidence.report) {
            let fields = report_fields(&report, platform(&evidence.certificates));
            for (name, value) in
                fields.iter().filter(|(name, _)| ["measurement", "host_data", "platform"].contains(name))
            {
                println!("{name:18} {value}");
            }
        }
        if let Some(verdict) = &verdict {
            print!("{}", verdict_table(verdict));
        }
    }
    let rejected = verdict.is_some_and(|verdict| !verdict.accepted());
    Ok(ExitCode::from(if rejected { EXIT_FAILED } else { 0 }))
}
