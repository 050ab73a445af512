//! The software platform: its files, its marks, and that nothing it makes passes for genuine.

mod common;

use common::*;
use nacre_attest::certificate::Certificate;
use nacre_attest::chain::{BUILT_IN, Chain, ChainError};
use nacre_attest::report::Report;
use nacre_attest::software::{Root, SoftwareError, SoftwarePlatform};
use nacre_attest::software_mark;
use nacre_attest::tcb::Platform;
use nacre_attest::verify::{rule, verify};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_platform_is_made_once_and_found_again() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("platform");
    assert!(matches!(SoftwarePlatform::open(&dir), Err(SoftwareError::File { .. })));
    let made = SoftwarePlatform::init(&dir).unwrap();
    assert!(matches!(SoftwarePlatform::init(&dir), Err(SoftwareError::Exists(_))));
    let opened = SoftwarePlatform::open(&dir).unwrap();
    assert_eq!(made.root_sha256(), opened.root_sha256());
    let first = made.signer("n1").unwrap();
    let again = opened.signer("n1").unwrap();
    assert_eq!(first.certificates(), again.certificates());
    assert_ne!(first.certificates()[0], opened.signer("n2").unwrap().certificates()[0]);
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let file = |name: &str| dir.join(name);
    assert_eq!(names, [file("node-n1.pem"), file("node-n2.pem"), file("platform.pem")]);
    for name in &names {
        assert_eq!(fs::metadata(name).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn files_that_are_damaged_or_open_to_others_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let platform = SoftwarePlatform::init(temp.path()).unwrap();
    platform.signer("n1").unwrap();
    let (root, node) = (temp.path().join("platform.pem"), temp.path().join("node-n1.pem"));
    fs::set_permissions(&node, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(platform.signer("n1"), Err(SoftwareError::Permissions(_))));
    fs::set_permissions(&node, fs::Permissions::from_mode(0o600)).unwrap();
    let text = fs::read_to_string(&node).unwrap();
    for damaged in ["", &text[..text.len() / 2], &text.replace("PRIVATE", "PUBLIC"), &text.repeat(2)] {
        fs::write(&node, damaged).unwrap();
        assert!(matches!(platform.signer("n1"), Err(SoftwareError::Content(_))));
    }
    // Another node's key under this name, and another platform's.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = SoftwarePlatform::init(elsewhere.path()).unwrap();
    other.signer("n1").unwrap();
    fs::copy(elsewhere.path().join("node-n1.pem"), &node).unwrap();
    assert!(matches!(platform.signer("n1"), Err(SoftwareError::Content(_))));
    platform.signer("n2").unwrap();
    fs::copy(temp.path().join("node-n2.pem"), &node).unwrap();
    assert!(matches!(platform.signer("n1"), Err(SoftwareError::Content(_))));
    fs::write(&root, "nothing").unwrap();
    assert!(matches!(SoftwarePlatform::open(temp.path()), Err(SoftwareError::Content(_))));
}

#[test]
fn names_that_are_paths_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let platform = SoftwarePlatform::init(temp.path()).unwrap();
    for name in ["", ".", "..", "../n1", "a/b", "a b", "-n", "ä", "n\n", &"n".repeat(65)] {
        assert!(matches!(platform.signer(name), Err(SoftwareError::NodeName)), "{name:?}");
    }
    assert!(platform.signer("node-1.example_2").is_ok());
}

#[test]
fn everything_it_makes_is_marked() {
    let mut bench = Bench::new();
    let evidence = bench.sign();
    let report = Report::parse(&evidence.report).unwrap();
    assert!(report.chip_id.starts_with(b"NACRE SOFTWARE PLATFORM NOT CONFIDENTIAL"));
    for der in &evidence.certificates {
        let certificate = Certificate::parse(der).unwrap();
        assert!(certificate.has_software_mark());
        assert!(certificate.issuer_name.starts_with("NACRE SOFTWARE PLATFORM - NOT CONFIDENTIAL"));
        assert!(certificate.subject_name.starts_with("NACRE SOFTWARE"));
    }
    assert_eq!(Chain::verify(&evidence.certificates).unwrap().platform, Platform::Software);
}

#[test]
fn no_chain_of_it_is_genuine() {
    let root = Root::generate().unwrap();
    let leaf = root.issue_vcek("n1").unwrap().certificate().to_vec();
    let [intermediate, ark] = root.above();
    let chain = |parts: &[&[u8]]| Chain::verify(parts).map(|chain| chain.platform);
    assert_eq!(chain(&[&leaf, &intermediate, &ark]), Ok(Platform::Software));
    // Every part replaced by AMD's, and every part left out.
    for amd in BUILT_IN {
        assert_eq!(chain(&[&leaf, &intermediate, amd.ark]), Err(ChainError::Intermediate));
        assert_eq!(chain(&[&leaf, amd.ask, amd.ark]), Err(ChainError::Mark));
        assert_eq!(chain(&[&leaf, amd.ask]), Err(ChainError::Mark));
        assert_eq!(chain(&[&leaf, amd.ask, &ark]), Err(ChainError::Mark));
        assert_eq!(chain(&[VCEK_MILAN, &intermediate, &ark]), Err(ChainError::Mark));
        assert_eq!(chain(&[VCEK_MILAN, &intermediate, amd.ark]), Err(ChainError::Intermediate));
    }
    assert_eq!(chain(&[&leaf]), Err(ChainError::UnknownRoot));
    assert_eq!(chain(&[&leaf, &intermediate]), Err(ChainError::UnknownRoot));
    // The parts of two platforms.
    let other = Root::generate().unwrap().above();
    assert_eq!(chain(&[&leaf, &other[0], &other[1]]), Err(ChainError::Leaf));
    assert_eq!(chain(&[&leaf, &intermediate, &other[1]]), Err(ChainError::Intermediate));
    assert_eq!(chain(&[&ark, &intermediate, &ark]), Err(ChainError::Leaf));
}

#[test]
fn a_certificate_with_amds_names_is_none_of_amds() {
    // The names are all in the signed part: rewritten in place (same lengths), the signatures no longer hold, and the root is
    // not one that is built in.
    let root = Root::generate().unwrap();
    let [intermediate, ark] = root.above();
    let rename = |der: &[u8], to: &str| {
        let name = software_mark::ROOT.as_bytes();
        let mut der = der.to_vec();
        let to = [to.as_bytes(), &vec![b' '; name.len() - to.len()]].concat();
        for at in 0..der.len() - name.len() {
            if der[at..].starts_with(name) {
                der[at..at + name.len()].copy_from_slice(&to);
            }
        }
        der
    };
    let forged = [rename(&intermediate, "ARK-Milan"), rename(&ark, "ARK-Milan")];
    assert_ne!(forged[1], ark);
    let leaf = root.issue_vcek("n1").unwrap();
    let chain = [leaf.certificate().to_vec(), forged[0].clone(), forged[1].clone()];
    assert_eq!(Chain::verify(&chain), Err(ChainError::Mark));
    // A genuine report with a software chain, and the reverse.
    let mut bench = Bench::new();
    let mut evidence = bench.sign().clone();
    evidence.certificates = milan_chain();
    let failed: Vec<_> = verify(&evidence, &policy(), &expect()).failed().map(|rule| rule.name).collect();
    assert!(failed.contains(&rule::REPORT_SIGNATURE) && failed.contains(&rule::SOFTWARE_PLATFORM));
}

#[test]
fn every_bit_flipped_in_a_software_chain_or_report_is_rejected() {
    let mut bench = Bench::new();
    let mut evidence = bench.sign().clone();
    // A seventh of the bits, another one for each key; the genuine chain's are all flipped.
    let offset = usize::from(evidence.certificates[0][200] % 7);
    for which in 0..3 {
        for bit in (offset..evidence.certificates[which].len() * 8).step_by(7) {
            evidence.certificates[which][bit / 8] ^= 1 << (bit % 8);
            assert!(Chain::verify(&evidence.certificates).is_err(), "certificate {which}, bit {bit}");
            evidence.certificates[which][bit / 8] ^= 1 << (bit % 8);
        }
    }
    for bit in (offset..evidence.report.len() * 8).step_by(7) {
        evidence.report[bit / 8] ^= 1 << (bit % 8);
        assert!(!verify(&evidence, &policy(), &expect()).accepted(), "bit {bit}");
        evidence.report[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(verify(&evidence, &policy(), &expect()).accepted());
}
