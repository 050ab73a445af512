//! Genuine reports and chains: what AMD's processors signed is accepted, and every single bit flipped in it is not. The
//! flips run over all bits; both runs together take seconds.

mod common;

use common::*;
use nacre_attest::certificate::Certificate;
use nacre_attest::chain::{BUILT_IN, Chain, ChainError};
use nacre_attest::policy::Policy;
use nacre_attest::report::{Report, SigningKey};
use nacre_attest::tcb::{Platform, Tcb};
use nacre_attest::verify::{Verdict, hex, rule, verify_report};

fn judge(report: &[u8], chain: &[Vec<u8>], policy: &Policy) -> Verdict {
    verify_report(report, chain, policy, Some(NOW))
}

fn failed(verdict: &Verdict) -> Vec<&'static str> {
    verdict.failed().map(|rule| rule.name).collect()
}

#[test]
fn the_roots_are_amds() {
    let prints = [
        [
            "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
            "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
        ],
        [
            "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
            "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
        ],
        [
            "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
            "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
        ],
    ];
    for (built_in, print) in BUILT_IN.iter().zip(prints) {
        let ark = Certificate::parse(built_in.ark).unwrap();
        let ask = Certificate::parse(built_in.ask).unwrap();
        assert_eq!([hex(&ark.sha256()), hex(&ask.sha256())], print);
        // Verified here once for all verifications, which take the built-in ASK by its bytes.
        assert!(ark.is_signed_by(&ark) && ask.is_signed_by(&ark) && ask.is_authority());
        assert!(!ark.is_signed_by(&ask));
        let product = built_in.platform.name();
        assert_eq!(ark.subject_name.to_lowercase(), format!("ark-{product}"));
    }
}

#[test]
fn the_milan_report_and_chain_are_accepted() {
    let (report, chain) = (milan_report(), milan_chain());
    for given in 1..=3 {
        let verdict = judge(&report, &chain[..given], &milan_policy());
        assert!(verdict.accepted(), "{given}: {:?}", failed(&verdict));
        assert_eq!((verdict.platform, verdict.guest.as_deref()), (Some(Platform::Milan), Some("vector")));
        let names: Vec<_> = verdict.rules.iter().map(|rule| rule.name).collect();
        assert_eq!(names, rule::OF_REPORTS);
    }
    let parsed = Report::parse(&report).unwrap();
    assert_eq!(parsed.encode()[..], report);
    assert_eq!((parsed.version, parsed.policy.0, parsed.cpuid), (2, 0x30000, None));
    assert_eq!(parsed.key_info.signing_key, SigningKey::Vcek);
    let leaf = Chain::verify(&chain).unwrap().leaf;
    assert_eq!(leaf.tcb, Tcb { fmc: 0, bootloader: 3, tee: 0, snp: 8, microcode: 115 });
    assert_eq!((leaf.product_name.as_str(), leaf.chip_id), ("Milan-B0", Some(parsed.chip_id)));
}

#[test]
fn a_turin_vcek_has_its_own_layout() {
    let chain = Chain::verify(&[VCEK_TURIN]).unwrap();
    assert_eq!(chain.platform, Platform::Turin);
    assert_eq!(chain.leaf.tcb, Tcb { fmc: 0, bootloader: 0, tee: 0, snp: 0, microcode: 9 });
    let id = chain.leaf.chip_id.unwrap();
    assert!(hex(&id).starts_with("1e550a8ee5cf9f4d") && id[8..] == [0; 56]);
    let mixed = [VCEK_TURIN, BUILT_IN[0].ask, BUILT_IN[0].ark];
    assert_eq!(Chain::verify(&mixed), Err(ChainError::Leaf));
    let mixed = [VCEK_TURIN, BUILT_IN[2].ask, BUILT_IN[0].ark];
    assert_eq!(Chain::verify(&mixed), Err(ChainError::Intermediate));
}

#[test]
fn every_bit_flipped_in_the_report_is_rejected() {
    let (mut report, chain) = (milan_report(), milan_chain());
    // Other rules fail too where they look at the field; format or signature must fail by themselves.
    for bit in 0..report.len() * 8 {
        report[bit / 8] ^= 1 << (bit % 8);
        let verdict = judge(&report, &chain, &milan_policy());
        let verdict = failed(&verdict);
        let by_itself = verdict.contains(&rule::REPORT_FORMAT) || verdict.contains(&rule::REPORT_SIGNATURE);
        assert!(by_itself, "bit {bit}: {verdict:?}");
        report[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(judge(&report, &chain, &milan_policy()).accepted());
}

#[test]
fn every_bit_flipped_in_the_chain_is_rejected() {
    let mut chain = milan_chain();
    for which in 0..chain.len() {
        for bit in 0..chain[which].len() * 8 {
            chain[which][bit / 8] ^= 1 << (bit % 8);
            assert!(Chain::verify(&chain).is_err(), "certificate {which}, bit {bit}");
            chain[which][bit / 8] ^= 1 << (bit % 8);
        }
    }
    assert!(Chain::verify(&chain).is_ok());
}

#[test]
fn a_report_of_another_chip_is_rejected() {
    let report = Report::parse(AZ_REPORT).unwrap();
    assert_eq!(report.encode()[..], *AZ_REPORT);
    let mut policy = milan_policy();
    policy.measurements[0].measurement.0 = report.measurement;
    for chain in [pem(AZ_CHAIN), milan_chain()] {
        assert!(Chain::verify(&chain).is_ok(), "the chain itself is good");
        let verdict = judge(AZ_REPORT, &chain, &policy);
        assert_eq!(failed(&verdict), [rule::REPORT_SIGNATURE, rule::CERTIFICATE_MATCHES_REPORT]);
        assert!(verdict.rule(rule::CERTIFICATE_MATCHES_REPORT).unwrap().detail.contains("another chip"));
    }
}

#[test]
fn what_the_policy_does_not_accept_is_named() {
    let (report, chain) = (milan_report(), milan_chain());
    let rejected = |change: &dyn Fn(&mut Policy)| {
        let mut policy = milan_policy();
        change(&mut policy);
        failed(&judge(&report, &chain, &policy))
    };
    let empty = failed(&judge(&report, &chain, &Policy::default()));
    assert_eq!(empty, [rule::PLATFORM, rule::MINIMUM_TCB, rule::MEASUREMENT]);
    assert_eq!(rejected(&|p| p.minimum_tcb[0].1.microcode = 116), [rule::MINIMUM_TCB]);
    assert_eq!(rejected(&|p| p.minimum_tcb[0].1.snp = 9), [rule::MINIMUM_TCB]);
    assert_eq!(rejected(&|p| p.minimum_tcb.clear()), [rule::MINIMUM_TCB]);
    assert_eq!(rejected(&|p| p.platforms = vec![Platform::Genoa]), [rule::PLATFORM]);
    assert_eq!(rejected(&|p| p.measurements[0].measurement.0[0] ^= 1), [rule::MEASUREMENT]);
    let chip = Report::parse(&report).unwrap().chip_id;
    assert_eq!(rejected(&|p| p.revoked_chips = vec![chip]), [rule::CHIP_NOT_REVOKED]);
    for der in &chain {
        let print = Certificate::parse(der).unwrap().sha256();
        assert_eq!(rejected(&|p| p.revoked_certificates = vec![print]), [rule::CERTIFICATE_NOT_REVOKED]);
        let print = Certificate::parse(der).unwrap().signed_sha256();
        assert_eq!(rejected(&|p| p.revoked_certificates = vec![print]), [rule::CERTIFICATE_NOT_REVOKED]);
        // Another signature makes another certificate, about the same.
        let mut other = der.clone();
        *other.last_mut().unwrap() ^= 1;
        let other = Certificate::parse(&other).unwrap();
        assert_ne!(other.sha256(), Certificate::parse(der).unwrap().sha256());
        assert_eq!(other.signed_sha256(), print);
    }
    // A chip that is not named may be any of them.
    let mut masked = report.clone();
    masked[0x1a0..0x1e0].fill(0);
    let chips = |revoked_chips: Vec<[u8; 64]>| {
        let verdict = judge(&masked, &chain, &Policy { revoked_chips, ..milan_policy() });
        let rule = verdict.rule(rule::CHIP_NOT_REVOKED).unwrap();
        (rule.passed, rule.detail.clone())
    };
    assert_eq!(chips(vec![[1; 64]]), (false, "the chip's identity is masked".to_string()));
    assert!(chips(Vec::new()).0);
    assert_eq!(
        rejected(&|p| p.outer_measurements = vec![p.measurements[0].measurement]),
        [rule::OUTER_MEASUREMENT]
    );
    // It helps nobody to allow software platforms for genuine evidence, and does not harm.
    assert!(rejected(&|p| p.allow_software_platform = true).is_empty());
}

#[test]
fn dates_are_judged_when_a_time_is_given() {
    let (report, chain) = (milan_report(), milan_chain());
    let at = |now| failed(&verify_report(&report, &chain, &milan_policy(), now));
    assert!(at(None).is_empty() && at(Some(NOW)).is_empty());
    // The VCEK is valid from April 2023 to April 2030.
    assert_eq!(at(Some(1_680_549_822)), [rule::CERTIFICATE_VALIDITY]);
    assert!(at(Some(1_680_549_823)).is_empty() && at(Some(1_901_474_623)).is_empty());
    assert_eq!(at(Some(1_901_474_624)), [rule::CERTIFICATE_VALIDITY]);
}

#[test]
fn truncated_and_over_long_reports_and_chains_are_rejected() {
    let (report, chain) = (milan_report(), milan_chain());
    let long = [report.as_slice(), &[0]].concat();
    for bytes in [&report[..1183], &report[..0], &report[..672], &long] {
        let verdict = judge(bytes, &chain, &milan_policy());
        assert!(!verdict.rule(rule::REPORT_FORMAT).unwrap().passed);
        assert!(failed(&verdict).contains(&rule::MEASUREMENT), "what can't be judged has failed");
    }
    assert_eq!(Chain::verify::<Vec<u8>>(&[]), Err(ChainError::Count(0)));
    assert_eq!(Chain::verify(&[chain.clone(), chain.clone()].concat()), Err(ChainError::Count(6)));
    for len in 0..VCEK_MILAN.len() {
        assert!(matches!(Chain::verify(&[&VCEK_MILAN[..len]]), Err(ChainError::Certificate(0, _))));
    }
    let long = [VCEK_MILAN, &[0]].concat();
    assert!(matches!(Chain::verify(&[long]), Err(ChainError::Certificate(0, _))));
}
