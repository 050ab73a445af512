//! Evidence of a software platform judged by policies: good evidence passes all rules, and each thing that can be wrong
//! fails the rule that is about it, and only that one.

mod common;

use common::*;
use nacre_attest::claims::{Label, Role, code_list_hash};
use nacre_attest::ed25519_dalek::SigningKey;
use nacre_attest::evidence::{Evidence, OuterReport, outer_report_data};
use nacre_attest::launch::Measurement;
use nacre_attest::manifest::{ManifestError, Mode};
use nacre_attest::policy::Policy;
use nacre_attest::report::Report;
use nacre_attest::software::{ReportFields, Root};
use nacre_attest::tcb::Platform;
use nacre_attest::verify::{Expect, Verdict, Verifier, rule, verify};
use nacre_attest::wire::WireError;
use nacre_attest::{show, software_mark};

fn failed(verdict: &Verdict) -> Vec<&'static str> {
    verdict.failed().map(|rule| rule.name).collect()
}

/// The rules that fail for a bench's evidence after a change, signed again.
fn after(change: impl FnOnce(&mut Bench)) -> Vec<&'static str> {
    let mut bench = Bench::new();
    change(&mut bench);
    failed(&verify(bench.sign(), &policy(), &expect()))
}

/// The rules that fail under a changed policy.
fn under(change: impl FnOnce(&mut Policy)) -> Vec<&'static str> {
    let mut bench = Bench::new();
    let mut policy = policy();
    change(&mut policy);
    failed(&verify(bench.sign(), &policy, &expect()))
}

/// The rules that fail for a changed expectation.
fn expecting(change: impl FnOnce(&mut Expect)) -> Vec<&'static str> {
    let mut bench = Bench::new();
    let mut expect = expect();
    change(&mut expect);
    failed(&verify(bench.sign(), &policy(), &expect))
}

#[test]
fn good_evidence_passes_every_rule() {
    let mut bench = Bench::new();
    let verdict = verify(bench.sign(), &policy(), &expect());
    assert!(verdict.accepted(), "{}", show::verdict_table(&verdict));
    let names: Vec<_> = verdict.rules.iter().map(|rule| rule.name).collect();
    assert_eq!(names, [rule::OF_REPORTS.as_slice(), rule::OF_CLAIMS.as_slice()].concat());
    assert_eq!(verdict.manifest, Some(manifest()));
    assert_eq!(verdict.guest.as_deref(), Some("0.1.0"));
    let json = show::verdict_json(&verdict);
    assert_eq!((&json["accepted"], &json["platform"]), (&true.into(), &"software".into()));
    assert!(show::verdict_table(&verdict).ends_with("accepted: platform software, guest 0.1.0\n"));
    // It is good after travelling too.
    let travelled = Evidence::decode(&bench.evidence.encode()).unwrap();
    assert_eq!(travelled, bench.evidence);
    assert!(verify(&travelled, &policy(), &expect()).accepted());
}

#[test]
fn an_empty_policy_rejects_and_a_verdict_without_rules_is_none() {
    let mut bench = Bench::new();
    let verdict = verify(bench.sign(), &Policy::default(), &expect());
    assert_eq!(failed(&verdict), [rule::SOFTWARE_PLATFORM, rule::MEASUREMENT]);
    assert_eq!(verify(bench.sign(), &Policy::from_toml("").unwrap(), &expect()), verdict);
    assert!(show::verdict_table(&verdict).contains("REJECTED: platform software; failed: software-platform"));
    let empty = Verdict { rules: Vec::new(), ..verdict };
    assert!(!empty.accepted());
}

/// Launch digest of the VM around a nested CVM.
const OUTER: [u8; 48] = [0xa7; 48];

/// Evidence of a CVM in a VM: the outer VM's platform, and what its report has.
fn nested(change: impl FnOnce(&mut ReportFields)) -> Evidence {
    let mut evidence = Bench::new().sign().clone();
    let mut around = Bench::new();
    around.fields.measurement = OUTER;
    around.fields.report_data = outer_report_data(&Report::parse(&evidence.report).unwrap());
    change(&mut around.fields);
    evidence.outer = Some(OuterReport {
        report: around.signer.sign(&around.fields).unwrap().to_vec(),
        certificates: around.evidence.certificates,
    });
    evidence
}

#[test]
fn the_vm_around_a_cvm_is_judged_like_it() {
    let asking = Policy { outer_measurements: vec![Measurement(OUTER)], ..policy() };
    let judged = |evidence: &Evidence| verify(evidence, &asking, &expect());
    let found = |evidence: &Evidence| {
        let verdict = judged(evidence);
        assert_eq!(failed(&verdict), [rule::OUTER_MEASUREMENT]);
        verdict.rule(rule::OUTER_MEASUREMENT).unwrap().detail.clone()
    };
    let good = nested(|_| ());
    assert!(judged(&good).accepted(), "{}", show::verdict_table(&judged(&good)));
    assert_eq!(Evidence::decode(&good.encode()).unwrap(), good);
    // Who asks for none does not mind one.
    assert!(verify(&good, &policy(), &expect()).accepted());
    assert!(found(Bench::new().sign()).contains("not nested"));
    assert!(found(&nested(|outer| outer.measurement = MEASUREMENT)).contains("measurement"));
    assert!(found(&nested(|outer| outer.debug = true)).contains("fails debug"));
    // Of another CVM, or of this one's earlier evidence.
    assert!(found(&nested(|outer| outer.report_data[63] ^= 1)).contains("about another CVM"));
    let mut cut = good.clone();
    cut.outer.as_mut().unwrap().certificates.pop();
    assert!(found(&cut).contains("certificate-chain"));
    let mut flipped = good.clone();
    flipped.outer.as_mut().unwrap().report[0x100] ^= 1;
    assert!(found(&flipped).contains("report-signature"));
    let mut inside_out = good.clone();
    let (outer, report) = (inside_out.outer.as_mut().unwrap(), good.report.clone());
    (outer.report, outer.certificates) = (report, good.certificates.clone());
    assert!(found(&inside_out).contains("fails measurement"));
}

#[test]
fn a_genuine_vm_is_needed_around_a_software_platform_that_is_not_allowed() {
    let asking =
        Policy { outer_measurements: vec![Measurement(OUTER)], allow_software_platform: false, ..policy() };
    // A VM of a software platform does not make another one genuine.
    let verdict = verify(&nested(|_| ()), &asking, &expect());
    assert_eq!(failed(&verdict), [rule::SOFTWARE_PLATFORM, rule::OUTER_MEASUREMENT]);
    // A genuine report, of a VM that was not made for this: only what it is about is wrong.
    let mut evidence = Bench::new().sign().clone();
    evidence.outer = Some(OuterReport { report: milan_report(), certificates: milan_chain() });
    let milan = milan_policy();
    let asking = Policy {
        outer_measurements: vec![milan.measurements[0].measurement],
        platforms: milan.platforms,
        minimum_tcb: milan.minimum_tcb,
        ..asking
    };
    let verdict = verify(&evidence, &asking, &expect());
    assert_eq!(failed(&verdict), [rule::SOFTWARE_PLATFORM, rule::OUTER_MEASUREMENT]);
    let detail = &verdict.rule(rule::OUTER_MEASUREMENT).unwrap().detail;
    assert_eq!(detail, "the outer report is about another CVM");
}

#[test]
fn software_platforms_need_the_policys_word() {
    assert_eq!(under(|p| p.allow_software_platform = false), [rule::SOFTWARE_PLATFORM]);
    assert_eq!(under(|p| p.software_roots = vec![[1; 32]]), [rule::SOFTWARE_PLATFORM]);
    let mut bench = Bench::new();
    let root = nacre_attest::chain::Chain::verify(&bench.evidence.certificates).unwrap().root_sha256();
    let pinned = Policy { software_roots: vec![root], ..policy() };
    assert!(verify(bench.sign(), &pinned, &expect()).accepted());
    // Genuine platforms in the policy don't help.
    let all = vec![Platform::Milan, Platform::Genoa, Platform::Turin];
    assert_eq!(under(|p| (p.allow_software_platform, p.platforms) = (false, all)), [rule::SOFTWARE_PLATFORM]);
}

#[test]
fn debugging_needs_the_policys_word() {
    assert_eq!(after(|b| b.fields.debug = true), [rule::DEBUG]);
    let mut bench = Bench::new();
    bench.fields.debug = true;
    assert!(verify(bench.sign(), &Policy { allow_debug: true, ..policy() }, &expect()).accepted());
}

#[test]
fn stale_and_foreign_evidence_is_rejected() {
    assert_eq!(expecting(|e| e.nonce[31] ^= 1), [rule::NONCE]);
    assert_eq!(expecting(|e| e.label = Label::Tls), [rule::LABEL]);
    assert_eq!(expecting(|e| e.label = Label::Migration), [rule::LABEL]);
    assert_eq!(expecting(|e| e.role = Role::Destination), [rule::ROLE]);
    assert_eq!(expecting(|e| e.now = Some(1_000_000_000)), [rule::CERTIFICATE_VALIDITY]);
    assert_eq!(expecting(|e| e.now = Some(4_000_000_000)), [rule::CERTIFICATE_VALIDITY]);
    // Old evidence whose nonce was rewritten: the report does not have these claims' hash.
    let mut bench = Bench::new();
    bench.evidence.claims.nonce = [1; 32];
    let mut evidence = bench.sign().clone();
    evidence.claims.nonce = NONCE;
    assert_eq!(failed(&verify(&evidence, &policy(), &expect())), [rule::CLAIMS]);
    // Another's key in the claims.
    let mut evidence = Bench::new().sign().clone();
    evidence.claims.key[0] ^= 1;
    assert_eq!(failed(&verify(&evidence, &policy(), &expect())), [rule::CLAIMS]);
}

#[test]
fn every_field_of_the_claims_is_bound() {
    let claims = Bench::new().evidence.claims;
    let mut hashes = vec![claims.report_data()];
    let mut changed = |change: &dyn Fn(&mut nacre_attest::claims::Claims)| {
        let mut other = claims.clone();
        change(&mut other);
        hashes.push(other.report_data());
    };
    changed(&|c| c.label = Label::Tls);
    changed(&|c| c.role = Role::Source);
    changed(&|c| c.key.push(0));
    changed(&|c| c.nonce[0] ^= 1);
    changed(&|c| c.id.clear());
    changed(&|c| c.manifest[0] ^= 1);
    changed(&|c| c.code[0] ^= 1);
    // A byte moved over a border of fields is another hash too.
    changed(&|c| {
        let byte = c.key.pop().unwrap();
        c.id.insert(0, byte);
    });
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 9);
}

#[test]
fn measurements_chips_certificates_and_nesting_are_judged() {
    assert_eq!(under(|p| p.measurements[0].measurement.0[47] ^= 1), [rule::MEASUREMENT]);
    assert_eq!(after(|b| b.fields.measurement[0] ^= 1), [rule::MEASUREMENT]);
    assert_eq!(under(|p| p.revoked_chips = vec![software_mark::chip_id("n1")]), [rule::CHIP_NOT_REVOKED]);
    assert!(under(|p| p.revoked_chips = vec![software_mark::chip_id("n2")]).is_empty());
    assert_eq!(
        under(|p| p.outer_measurements = vec![p.measurements[0].measurement]),
        [rule::OUTER_MEASUREMENT]
    );
}

#[test]
fn the_manifest_must_be_the_launched_one_and_the_policys() {
    assert_eq!(after(|b| b.fields.host_data[0] ^= 1), [rule::MANIFEST_BOUND]);
    assert_eq!(after(|b| b.evidence.claims.manifest[0] ^= 1), [rule::MANIFEST_BOUND]);
    let other = SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes();
    assert_eq!(under(|p| p.manifest.as_mut().unwrap().owner = other), [rule::MANIFEST_OWNER]);
    assert_eq!(under(|p| p.manifest.as_mut().unwrap().minimum_version = 5), [rule::MANIFEST_VERSION]);
    assert_eq!(under(|p| p.manifest.as_mut().unwrap().mode = Mode::Open), [rule::MANIFEST_MODE]);
    // Nobody but the owner signs; who changes a manifest must sign it.
    let forged = after(|b| b.evidence.manifest.as_mut().unwrap().signature[0] ^= 1);
    let none = [rule::MANIFEST_SIGNATURE, rule::MANIFEST_OWNER, rule::MANIFEST_VERSION, rule::MANIFEST_MODE];
    assert_eq!(forged, none);
    assert_eq!(manifest().sign(&compiler()), Err(ManifestError::Signature));
    // Leaving it out of the evidence does not make it an open CVM.
    let left_out = after(|b| b.evidence.manifest = None);
    assert_eq!(left_out, [&[rule::MANIFEST_BOUND], &none[1..]].concat());
    // A CVM without one is fine for who asks for none.
    let mut bench = Bench::new();
    bench.evidence.manifest = None;
    bench.evidence.claims.manifest = [0; 32];
    bench.fields.host_data = [0; 32];
    assert!(verify(bench.sign(), &Policy { manifest: None, ..policy() }, &expect()).accepted());
    assert_eq!(failed(&verify(bench.sign(), &policy(), &expect())), none[1..]);
}

#[test]
fn loaded_code_is_bound_and_judged() {
    assert_eq!(after(|b| b.evidence.code.truncate(1)), [rule::CODE_BOUND]);
    assert_eq!(under(|p| p.code = Some(vec![[8; 32]])), [rule::CODE_ALLOWED]);
    assert_eq!(under(|p| p.code = Some(Vec::new())), [rule::CODE_ALLOWED]);
    assert!(under(|p| p.code = None).is_empty());
    assert_eq!(code_list_hash(&[]), [0; 32]);
    assert_eq!(code_list_hash(&[[2; 32], [1; 32], [2; 32]]), code_list_hash(&[[1; 32], [2; 32]]));
}

#[test]
fn reports_signed_otherwise_are_rejected() {
    // Signed by another node of the same platform.
    let mut bench = Bench::new();
    let evidence = bench.sign().clone();
    let other = bench.root.issue_vcek("n2").unwrap();
    let mut swapped = evidence.clone();
    swapped.certificates[0] = other.certificate().to_vec();
    let two = [rule::REPORT_SIGNATURE, rule::CERTIFICATE_MATCHES_REPORT];
    assert_eq!(failed(&verify(&swapped, &policy(), &expect())), two);
    // By another platform's node of the same name: the key alone differs.
    let root = Root::generate().unwrap();
    let mut swapped = evidence.clone();
    let [intermediate, ark] = root.above();
    let leaf = root.issue_vcek("n1").unwrap().certificate().to_vec();
    swapped.certificates = vec![leaf, intermediate, ark];
    assert_eq!(failed(&verify(&swapped, &policy(), &expect())), [rule::REPORT_SIGNATURE]);
    // Fields that only a forger would set: the signature no longer holds, and the rule of the field fails too.
    let forge = |change: &dyn Fn(&mut Report)| {
        let mut report = Report::parse(&evidence.report).unwrap();
        change(&mut report);
        let forged = Evidence { report: report.encode().to_vec(), ..evidence.clone() };
        failed(&verify(&forged, &policy(), &expect()))
    };
    assert_eq!(forge(&|r| r.vmpl = 1), [rule::REPORT_SIGNATURE, rule::PRIVILEGE_LEVEL]);
    assert_eq!(forge(&|r| r.policy.0 |= 1 << 18), [rule::REPORT_SIGNATURE, rule::MIGRATION_AGENT]);
    assert_eq!(forge(&|r| r.report_id_ma = [0; 32]), [rule::REPORT_SIGNATURE, rule::MIGRATION_AGENT]);
    assert_eq!(forge(&|r| r.reported_tcb.0[6] = 2), two);
    assert_eq!(forge(&|r| r.key_info.mask_chip_key = true), two);
    let genuine_chip = forge(&|r| r.chip_id = [1; 64]);
    assert_eq!(genuine_chip, [&two[..], &[rule::SOFTWARE_PLATFORM]].concat());
    let cpu = forge(&|r| r.cpuid.as_mut().unwrap().family = 0x19);
    assert_eq!(cpu, two);
}

#[test]
fn truncated_and_over_long_evidence_is_named() {
    let bytes = Bench::new().sign().encode();
    for len in 0..bytes.len() {
        assert_eq!(Evidence::decode(&bytes[..len]), Err(WireError::Truncated), "{len}");
    }
    assert_eq!(Evidence::decode(&[bytes.as_slice(), &[0]].concat()), Err(WireError::Trailing));
    let long = [bytes.as_slice(), &vec![0; 64 << 10]].concat();
    assert_eq!(Evidence::decode(&long), Err(WireError::TooLong("the evidence")));
    let mut evidence = Bench::new().evidence;
    evidence.report.pop();
    let verdict = verify(&evidence, &policy(), &expect());
    assert!(
        !verdict.rule(rule::REPORT_FORMAT).unwrap().passed && !verdict.rule(rule::CLAIMS).unwrap().passed
    );
    evidence.certificates.clear();
    let verdict = verify(&evidence, &policy(), &expect());
    assert!(!verdict.rule(rule::CERTIFICATE_CHAIN).unwrap().passed);
}

#[test]
fn a_remembered_chain_is_remembered_by_all_its_bytes_and_nothing_else_is() {
    let mut verifier = Verifier::new();
    let mut bench = Bench::new();
    let good = bench.sign().clone();
    for _ in 0..2 {
        assert!(verifier.verify(&good, &policy(), &expect()).accepted());
    }
    for which in 0..3 {
        for byte in 0..good.certificates[which].len() {
            let mut bad = good.clone();
            bad.certificates[which][byte] ^= 1;
            assert!(failed(&verifier.verify(&bad, &policy(), &expect())).contains(&rule::CERTIFICATE_CHAIN));
        }
    }
    // The rest is judged anew.
    let mut forged = good.clone();
    forged.report[0x2a0] ^= 1;
    assert_eq!(failed(&verifier.verify(&forged, &policy(), &expect())), [rule::REPORT_SIGNATURE]);
    let strict = Policy { allow_software_platform: false, ..policy() };
    assert_eq!(failed(&verifier.verify(&good, &strict, &expect())), [rule::SOFTWARE_PLATFORM]);
    let late = Expect { now: Some(4_000_000_000), ..expect() };
    assert_eq!(failed(&verifier.verify(&good, &policy(), &late)), [rule::CERTIFICATE_VALIDITY]);
    // More nodes than are remembered.
    for node in 0..Verifier::MAX_CHAINS + 1 {
        let key = bench.root.issue_vcek(&format!("node{node}")).unwrap();
        let signer = nacre_attest::software::Signer::new(&key, bench.root.above()).unwrap();
        let report = signer.sign(&bench.fields).unwrap().to_vec();
        let certificates = signer.certificates().to_vec();
        let evidence = Evidence { report, certificates, ..good.clone() };
        assert!(verifier.verify(&evidence, &policy(), &expect()).accepted());
    }
    assert!(verifier.verify(&good, &policy(), &expect()).accepted());
}
