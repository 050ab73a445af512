//! Judging evidence by a policy: a list of named rules, every one of which is evaluated and listed. Accepted is what passes
//! all of them. A rule that can't be judged because something it needs is missing has failed.

use crate::chain::{Chain, ChainError};
use crate::claims::{self, Label, Role};
use crate::evidence::{Evidence, OuterReport, outer_report_data};
use crate::launch::Measurement;
use crate::manifest::Manifest;
use crate::policy::{AcceptedGuest, Policy};
use crate::report::{Report, ReportError, SigningKey, signed_bytes};
use crate::software_mark;
use crate::tcb::Platform;
use crate::wire::Writer;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use sha2::{Digest, Sha256};

/// Names of the rules, in the order in which they are listed. They are stable: tools may rely on them.
pub mod rule {
    /// The report is one, with the reserved areas as they must be.
    pub const REPORT_FORMAT: &str = "report-format";
    /// The certificates lead to a root of AMD's or a software platform's.
    pub const CERTIFICATE_CHAIN: &str = "certificate-chain";
    /// All certificates are valid at the given time, if one is given.
    pub const CERTIFICATE_VALIDITY: &str = "certificate-validity";
    /// No certificate of the chain is revoked by the policy.
    pub const CERTIFICATE_NOT_REVOKED: &str = "certificate-not-revoked";
    /// The chip is not revoked by the policy.
    pub const CHIP_NOT_REVOKED: &str = "chip-not-revoked";
    /// The leaf's key signed the report.
    pub const REPORT_SIGNATURE: &str = "report-signature";
    /// Kind of key, product, chip and TCB are the same in leaf and report.
    pub const CERTIFICATE_MATCHES_REPORT: &str = "certificate-matches-report";
    /// The policy accepts the product.
    pub const PLATFORM: &str = "platform";
    /// Software platforms are accepted, or the VM around this one is, and this root; genuine reports carry no mark of theirs.
    pub const SOFTWARE_PLATFORM: &str = "software-platform";
    /// All of the report's TCBs are at least the policy's.
    pub const MINIMUM_TCB: &str = "minimum-tcb";
    /// The host may not debug the guest.
    pub const DEBUG: &str = "debug";
    /// No migration agent may get the guest's keys.
    pub const MIGRATION_AGENT: &str = "migration-agent";
    /// The guest that asked for the report runs at the highest privilege level.
    pub const PRIVILEGE_LEVEL: &str = "privilege-level";
    /// The launch digest is one the policy lists.
    pub const MEASUREMENT: &str = "measurement";
    /// If the policy lists VMs around nested CVMs, this one is in such a VM: its report keeps all of the rules of reports, and
    /// binds the CVM's.
    pub const OUTER_MEASUREMENT: &str = "outer-measurement";
    /// REPORT_DATA is the hash of the claims.
    pub const CLAIMS: &str = "claims";
    /// The nonce is the verifier's.
    pub const NONCE: &str = "nonce";
    /// The evidence was made for this use.
    pub const LABEL: &str = "label";
    /// The CVM is the end of the protocol it should be.
    pub const ROLE: &str = "role";
    /// HOST_DATA, the claims and the manifest agree.
    pub const MANIFEST_BOUND: &str = "manifest-bound";
    /// The manifest is signed by its owner.
    pub const MANIFEST_SIGNATURE: &str = "manifest-signature";
    /// The owner is the policy's.
    pub const MANIFEST_OWNER: &str = "manifest-owner";
    /// The manifest is no older than the policy's.
    pub const MANIFEST_VERSION: &str = "manifest-version";
    /// The mode is the policy's.
    pub const MANIFEST_MODE: &str = "manifest-mode";
    /// The list of loaded code is the one the claims have the hash of.
    pub const CODE_BOUND: &str = "code-bound";
    /// All loaded code is listed by the policy, if that has a list.
    pub const CODE_ALLOWED: &str = "code-allowed";

    /// The rules about report and certificates: all that [`super::verify_report`] judges.
    pub const OF_REPORTS: [&str; 15] = [
        REPORT_FORMAT,
        CERTIFICATE_CHAIN,
        CERTIFICATE_VALIDITY,
        CERTIFICATE_NOT_REVOKED,
        CHIP_NOT_REVOKED,
        REPORT_SIGNATURE,
        CERTIFICATE_MATCHES_REPORT,
        PLATFORM,
        SOFTWARE_PLATFORM,
        MINIMUM_TCB,
        DEBUG,
        MIGRATION_AGENT,
        PRIVILEGE_LEVEL,
        MEASUREMENT,
        OUTER_MEASUREMENT,
    ];
    /// The rules about everything else: [`super::verify`] judges these too.
    pub const OF_CLAIMS: [&str; 11] = [
        CLAIMS,
        NONCE,
        LABEL,
        ROLE,
        MANIFEST_BOUND,
        MANIFEST_SIGNATURE,
        MANIFEST_OWNER,
        MANIFEST_VERSION,
        MANIFEST_MODE,
        CODE_BOUND,
        CODE_ALLOWED,
    ];
}

/// One rule's result.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize))]
pub struct RuleResult {
    /// Which rule: one of [`rule`].
    pub name: &'static str,
    /// Whether it holds.
    pub passed: bool,
    /// What was found, for people.
    pub detail: String,
}

/// What became of evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Every rule.
    pub rules: Vec<RuleResult>,
    /// Whose root the chain ends at, if it does.
    pub platform: Option<Platform>,
    /// The guest's version by the policy, if its measurement is listed.
    pub guest: Option<String>,
    /// The manifest, if its owner signed it. It is to be believed only if all was accepted.
    pub manifest: Option<Manifest>,
}

impl Verdict {
    /// Whether every rule passed.
    pub fn accepted(&self) -> bool {
        !self.rules.is_empty() && self.rules.iter().all(|rule| rule.passed)
    }

    /// The rules that failed.
    pub fn failed(&self) -> impl Iterator<Item = &RuleResult> {
        self.rules.iter().filter(|rule| !rule.passed)
    }

    /// The one with this name.
    pub fn rule(&self, name: &str) -> Option<&RuleResult> {
        self.rules.iter().find(|rule| rule.name == name)
    }
}

/// What the verifier knows about evidence it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The nonce it sent. It must be random and never used before.
    pub nonce: [u8; 32],
    /// What the evidence is to be for.
    pub label: Label,
    /// Which end the CVM is to be.
    pub role: Role,
    /// Seconds since 1970, to judge the certificates' dates by; `None`: they are not judged.
    pub now: Option<u64>,
}

/// What is shown and kept by a rule: what was found if it holds, or why it does not.
type Judged = Result<String, String>;

/// Judges evidence. Who judges much of it keeps a [`Verifier`].
pub fn verify(evidence: &Evidence, policy: &Policy, expect: &Expect) -> Verdict {
    Verifier::new().verify(evidence, policy, expect)
}

/// Judges a report and its chain alone: [`rule::OF_REPORTS`]. It says nothing about who the report was made for or when, so
/// it is for looking at evidence, never for sending secrets.
pub fn verify_report<C: AsRef<[u8]>>(
    report: &[u8],
    certificates: &[C],
    policy: &Policy,
    now: Option<u64>,
) -> Verdict {
    let mut judge = Judge::new(report, Chain::verify(certificates).map(Arc::new), policy);
    judge.outer = judge.outer_measurement(None, now);
    judge.report_rules(now);
    judge.verdict
}

/// Judges evidence, and remembers the chains whose signatures it has verified, by the hash of all their bytes: the same few
/// nodes are met again and again. Dates, revocations and everything else are judged each time.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    /// Those used last are at the end.
    chains: Vec<([u8; 32], Arc<Chain>)>,
}

impl Verifier {
    /// Most chains that are remembered.
    pub const MAX_CHAINS: usize = 64;

    /// One that remembers nothing yet.
    pub fn new() -> Verifier {
        Verifier::default()
    }

    /// Judges evidence.
    pub fn verify(&mut self, evidence: &Evidence, policy: &Policy, expect: &Expect) -> Verdict {
        let chain = self.chain(&evidence.certificates);
        let outer = evidence.outer.as_ref().map(|outer| (outer, self.chain(&outer.certificates)));
        let mut judge = Judge::new(&evidence.report, chain, policy);
        judge.outer = judge.outer_measurement(outer, expect.now);
        judge.report_rules(expect.now);
        judge.claims_rules(evidence, expect);
        judge.verdict
    }

    fn chain(&mut self, certificates: &[Vec<u8>]) -> Result<Arc<Chain>, ChainError> {
        let all = certificates.iter().fold(Writer::default(), |all, one| all.string(one)).done();
        let hash: [u8; 32] = Sha256::digest(&all).into();
        let chain = match self.chains.iter().position(|(of, _)| *of == hash) {
            Some(place) => self.chains.remove(place).1,
            None => Arc::new(Chain::verify(certificates)?),
        };
        if self.chains.len() == Verifier::MAX_CHAINS {
            self.chains.remove(0);
        }
        self.chains.push((hash, chain.clone()));
        Ok(chain)
    }
}

struct Judge<'a> {
    bytes: &'a [u8],
    report: Result<Report, ReportError>,
    chain: Result<Arc<Chain>, ChainError>,
    policy: &'a Policy,
    /// What [`rule::OUTER_MEASUREMENT`] says.
    outer: Judged,
    verdict: Verdict,
}

impl<'a> Judge<'a> {
    fn new(bytes: &'a [u8], chain: Result<Arc<Chain>, ChainError>, policy: &'a Policy) -> Judge<'a> {
        let platform = chain.as_ref().ok().map(|chain| chain.platform);
        Judge {
            bytes,
            report: Report::parse(bytes),
            chain,
            policy,
            outer: Ok("not asked for".to_string()),
            verdict: Verdict { rules: Vec::new(), platform, guest: None, manifest: None },
        }
    }

    fn add(&mut self, name: &'static str, judged: Judged) {
        let (passed, detail) = match judged {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        self.verdict.rules.push(RuleResult { name, passed, detail });
    }

    /// The report, for rules that need one.
    fn report(&self) -> Result<&Report, String> {
        self.report.as_ref().map_err(|_| "not judged: there is no report".to_string())
    }

    /// The chain, for rules that need one.
    fn chain(&self) -> Result<&Chain, String> {
        let missing = |_: &ChainError| "not judged: there is no chain to a root".to_string();
        self.chain.as_ref().map(|chain| chain.as_ref()).map_err(missing)
    }

    fn report_rules(&mut self, now: Option<u64>) {
        let judged = match &self.report {
            Ok(report) => Ok(format!("version {}", report.version)),
            Err(error) => Err(error.to_string()),
        };
        self.add(rule::REPORT_FORMAT, judged);
        let judged = match &self.chain {
            Ok(chain) => Ok(chain_summary(chain)),
            Err(error) => Err(error.to_string()),
        };
        self.add(rule::CERTIFICATE_CHAIN, judged);
        self.add(rule::CERTIFICATE_VALIDITY, self.validity(now));
        self.add(rule::CERTIFICATE_NOT_REVOKED, self.certificate_not_revoked());
        self.add(rule::CHIP_NOT_REVOKED, self.chip_not_revoked());
        self.add(rule::REPORT_SIGNATURE, self.signature());
        self.add(rule::CERTIFICATE_MATCHES_REPORT, self.matches());
        self.add(rule::PLATFORM, self.platform());
        self.add(rule::SOFTWARE_PLATFORM, self.software());
        self.add(rule::MINIMUM_TCB, self.minimum_tcb());
        self.add(rule::DEBUG, self.debug());
        self.add(rule::MIGRATION_AGENT, self.migration_agent());
        self.add(rule::PRIVILEGE_LEVEL, self.privilege_level());
        let judged = self.measurement();
        self.add(rule::MEASUREMENT, judged);
        self.add(rule::OUTER_MEASUREMENT, self.outer.clone());
    }

    fn validity(&self, now: Option<u64>) -> Judged {
        let (from, until) = self.chain()?.validity();
        match now {
            None => Ok("no time given: not judged".to_string()),
            Some(now) if now < from => Err(format!("not valid before {from} (it is {now}, in seconds)")),
            Some(now) if now > until => Err(format!("expired at {until} (it is {now}, in seconds)")),
            Some(_) => Ok(format!("valid until {until}, in seconds since 1970")),
        }
    }

    fn certificate_not_revoked(&self) -> Judged {
        let revoked = &self.policy.revoked_certificates;
        match self
            .chain()?
            .certificates
            .iter()
            .find(|one| revoked.contains(&one.sha256()) || revoked.contains(&one.signed_sha256()))
        {
            Some(one) => Err(format!("the policy revokes the certificate of {}", one.subject_name)),
            None => Ok(format!("{} revoked by the policy, none of these", revoked.len())),
        }
    }

    fn chip_not_revoked(&self) -> Judged {
        let chip_id = self.report()?.chip_id;
        let revoked = &self.policy.revoked_chips;
        // Firmware can be told to leave it out, with a VLEK.
        if !revoked.is_empty() && chip_id == [0; 64] {
            return Err("the chip's identity is masked".to_string());
        }
        if revoked.contains(&chip_id) {
            return Err(format!("the policy revokes chip {}", hex(&chip_id[..8])));
        }
        Ok(format!("{} revoked by the policy, not this one", revoked.len()))
    }

    fn signature(&self) -> Judged {
        let (report, chain) = (self.report()?, self.chain()?);
        let signed = signed_bytes(self.bytes).ok_or("not judged: there is no report")?;
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &chain.leaf.key)
            .verify(signed, &report.signature.fixed())
            .map(|()| format!("by the key of {}", chain.certificates[0].subject_name))
            .map_err(|_| "the report is not signed by the leaf certificate's key".to_string())
    }

    fn matches(&self) -> Judged {
        let (report, chain) = (self.report()?, self.chain()?);
        let (leaf, platform) = (&chain.leaf, chain.platform);
        if report.key_info.signing_key != leaf.kind || report.key_info.mask_chip_key {
            return Err("the report says that another kind of key signed it".to_string());
        }
        if let Some(cpuid) = report.cpuid {
            let genuine = Some(platform).filter(|platform| *platform != Platform::Software);
            if Platform::from_cpuid(cpuid.family, cpuid.model) != genuine {
                return Err(format!(
                    "family {:#x}, model {:#x} is not {platform}",
                    cpuid.family, cpuid.model
                ));
            }
        }
        if leaf.chip_id.is_some_and(|id| id != report.chip_id) {
            return Err("the report is of another chip than the certificate".to_string());
        }
        let reported = report.reported_tcb.parts(platform).ok_or("the TCB has values in reserved bytes")?;
        if reported != leaf.tcb {
            return Err(format!("the certificate is for TCB ({}), the report for ({reported})", leaf.tcb));
        }
        Ok("kind of key, product, chip and TCB agree".to_string())
    }

    fn platform(&self) -> Judged {
        let platform = self.chain()?.platform;
        match platform {
            Platform::Software => Ok("software, which another rule is about".to_string()),
            _ if self.policy.platforms.contains(&platform) => Ok(platform.to_string()),
            _ => Err(format!("the policy's platforms do not have {platform}")),
        }
    }

    fn software(&self) -> Judged {
        let (report, chain) = (self.report()?, self.chain()?);
        let marked = software_mark::is_marked(&report.chip_id);
        let is_software = chain.platform == Platform::Software;
        if marked != is_software {
            return Err("report and root do not agree on whether this is a software platform".to_string());
        }
        if !is_software {
            return Ok(format!("no: {}", chain.platform));
        }
        let nested = !self.policy.outer_measurements.is_empty() && self.outer.is_ok();
        if !self.policy.allow_software_platform && !nested {
            return Err("software platform, and the policy has no allow_software_platform = true".to_string());
        }
        let (root, pinned) = (chain.root_sha256(), &self.policy.software_roots);
        if !pinned.is_empty() && !pinned.contains(&root) {
            return Err(format!("the policy's software_roots do not have {}", hex(&root)));
        }
        Ok(if nested { "as confidential as the VM around it" } else { "allowed: NOT CONFIDENTIAL" }
            .to_string())
    }

    fn minimum_tcb(&self) -> Judged {
        let (report, platform) = (self.report()?, self.chain()?.platform);
        if platform == Platform::Software {
            return Ok("a software platform has none".to_string());
        }
        let minimum = self.policy.minimum_for(platform);
        let minimum = minimum.ok_or_else(|| format!("the policy has no minimum_tcb.{platform}"))?;
        let all = [
            ("reported", report.reported_tcb),
            ("committed", report.committed_tcb),
            ("current", report.current_tcb),
            ("launch", report.launch_tcb),
        ];
        for (which, version) in all {
            let tcb = version.parts(platform).ok_or("the TCB has values in reserved bytes")?;
            if let Some((part, is, least)) = tcb.first_below(minimum) {
                return Err(format!("{which} TCB: {part} is {is}, below {least}"));
            }
        }
        Ok(format!("at least ({minimum})"))
    }

    fn debug(&self) -> Judged {
        match (self.report()?.policy.debug(), self.policy.allow_debug) {
            (false, _) => Ok("off".to_string()),
            (true, true) => Ok("on, and allowed".to_string()),
            (true, false) => Err("the host may debug this guest".to_string()),
        }
    }

    fn migration_agent(&self) -> Judged {
        let report = self.report()?;
        if report.policy.migration_agent() || report.report_id_ma != [0xff; 32] {
            return Err("a migration agent may get this guest's keys".to_string());
        }
        Ok("none".to_string())
    }

    fn privilege_level(&self) -> Judged {
        match self.report()?.vmpl {
            0 => Ok("VMPL 0".to_string()),
            other => Err(format!("VMPL {other}: something above this guest may change it")),
        }
    }

    fn measurement(&mut self) -> Judged {
        let measurement = self.report()?.measurement;
        let found = self.policy.measurements.iter().find(|one| one.measurement.0 == measurement);
        match found {
            Some(found) => {
                self.verdict.guest = Some(found.guest.clone());
                Ok(format!("guest {}", found.guest))
            }
            None => Err(format!("{} is not in the policy", hex(&measurement))),
        }
    }

    /// Judges the report of the VM around a nested CVM, by the same policy but for the measurements.
    fn outer_measurement(
        &self,
        outer: Option<(&OuterReport, Result<Arc<Chain>, ChainError>)>,
        now: Option<u64>,
    ) -> Judged {
        if self.policy.outer_measurements.is_empty() {
            return Ok("the policy asks for none".to_string());
        }
        let missing = "the policy asks for a VM around the CVM, and this evidence is not nested";
        let (outer, chain) = outer.ok_or(missing)?;
        let accepted = |one: &Measurement| AcceptedGuest { measurement: *one, guest: "outer VM".to_string() };
        let policy = Policy {
            measurements: self.policy.outer_measurements.iter().map(accepted).collect(),
            outer_measurements: Vec::new(),
            ..self.policy.clone()
        };
        let mut judge = Judge::new(&outer.report, chain, &policy);
        judge.report_rules(now);
        if let Some(rule) = judge.verdict.failed().next() {
            return Err(format!("the outer report fails {}: {}", rule.name, rule.detail));
        }
        let same = judge.report()?.report_data == outer_report_data(self.report()?);
        let platform = judge.chain()?.platform;
        held(same, &format!("inside a VM on {platform}"), "the outer report is about another CVM")
    }

    fn claims_rules(&mut self, evidence: &Evidence, expect: &Expect) {
        let claims = &evidence.claims;
        let bound = self.report().and_then(|report| {
            let same = report.report_data == claims.report_data();
            held(same, "the report has their hash", "the report's data is not the claims' hash")
        });
        self.add(rule::CLAIMS, bound);
        let same = claims.nonce == expect.nonce;
        self.add(rule::NONCE, held(same, "the verifier's", "not the verifier's: the evidence may be old"));
        let (is, wanted) = (claims.label.text(), expect.label.text());
        self.add(rule::LABEL, held(is == wanted, is, &format!("made for '{is}', not '{wanted}'")));
        let (is, wanted) = (claims.role.text(), expect.role.text());
        self.add(rule::ROLE, held(is == wanted, is, &format!("the CVM is {is}, not {wanted}")));
        self.add(rule::MANIFEST_BOUND, self.manifest_bound(evidence));
        self.manifest_rules(evidence);
        let same = claims::code_list_hash(&evidence.code) == claims.code;
        let (good, bad) = (format!("{} loaded", evidence.code.len()), "not the list that the claims bind");
        self.add(rule::CODE_BOUND, held(same, &good, bad));
        self.add(rule::CODE_ALLOWED, self.code_allowed(&evidence.code));
    }

    fn manifest_bound(&self, evidence: &Evidence) -> Judged {
        let claimed = evidence.claims.manifest;
        let given = evidence.manifest.as_ref().map_or([0; 32], |signed| signed.hash());
        if given != claimed {
            return Err("the manifest is not the one the claims bind".to_string());
        }
        let same = self.report()?.host_data == claimed;
        held(same, "launched with it", "the CVM was not launched with this manifest")
    }

    fn manifest_rules(&mut self, evidence: &Evidence) {
        let verified = evidence.manifest.as_ref().map(|signed| signed.verify());
        let judged = match &verified {
            None => Ok("no manifest".to_string()),
            Some(Ok(manifest)) => Ok(format!("manifest '{}', version {}", manifest.name, manifest.version)),
            Some(Err(error)) => Err(error.to_string()),
        };
        self.add(rule::MANIFEST_SIGNATURE, judged);
        let manifest = verified.and_then(Result::ok);
        let wanted = self.policy.manifest;
        let ask =
            |judge: &dyn Fn(&Manifest, &crate::policy::ManifestRule) -> Judged| match (&wanted, &manifest) {
                (None, _) => Ok("the policy asks for none".to_string()),
                (Some(_), None) => Err("there is no manifest that its owner signed".to_string()),
                (Some(wanted), Some(manifest)) => judge(manifest, wanted),
            };
        let owner = ask(&|manifest, wanted| {
            let is = hex(manifest.owner.as_bytes());
            held(manifest.owner.as_bytes() == &wanted.owner, &is, &format!("{is} is not the policy's owner"))
        });
        let version = ask(&|manifest, wanted| {
            let (is, least) = (manifest.version, wanted.minimum_version);
            held(is >= least, &format!("version {is}"), &format!("version {is} is older than {least}"))
        });
        let mode = ask(&|manifest, wanted| {
            let (is, wanted) = (manifest.mode.name(), wanted.mode.name());
            held(is == wanted, is, &format!("the CVM is {is}, not {wanted}"))
        });
        self.add(rule::MANIFEST_OWNER, owner);
        self.add(rule::MANIFEST_VERSION, version);
        self.add(rule::MANIFEST_MODE, mode);
        self.verdict.manifest = manifest;
    }

    fn code_allowed(&self, code: &[[u8; 32]]) -> Judged {
        let Some(allowed) = &self.policy.code else { return Ok("the policy has no list".to_string()) };
        match code.iter().find(|one| !allowed.contains(one)) {
            Some(one) => Err(format!("code {} is loaded and not in the policy", hex(one))),
            None => Ok("all of it is in the policy".to_string()),
        }
    }
}

fn held(holds: bool, good: &str, bad: &str) -> Judged {
    if holds { Ok(good.to_string()) } else { Err(bad.to_string()) }
}

fn chain_summary(chain: &Chain) -> String {
    let names: Vec<&str> = chain.certificates.iter().map(|one| one.subject_name.as_str()).collect();
    let kind = if chain.leaf.kind == SigningKey::Vlek { "VLEK" } else { "VCEK" };
    format!("{kind}, {}: {}", chain.platform, names.join(" <- "))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char];
    bytes.iter().flat_map(digits).collect()
}
