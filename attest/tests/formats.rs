//! Our own formats and the report: what is written is read back, what is read is written to the same bytes, and no bytes
//! whatever make a reader panic.

mod common;

use common::*;
use nacre_attest::certificate::Certificate;
use nacre_attest::chain::Chain;
use nacre_attest::claims::Claims;
use nacre_attest::code::{CodeError, CodeStatement, Kind, SignedCode};
use nacre_attest::ed25519_dalek::SigningKey;
use nacre_attest::evidence::Evidence;
use nacre_attest::files::FileError;
use nacre_attest::manifest::{Manifest, ManifestError, Mode, SignedManifest};
use nacre_attest::package::{self, CHUNK_BYTES, HEADER_BYTES, Header, PackageError};
use nacre_attest::policy::Policy;
use nacre_attest::report::{REPORT_BYTES, Report, ReportError};
use nacre_attest::tcb::{Platform, Tcb};
use nacre_attest::verify::hex;
use nacre_attest::wire::WireError;
use proptest::prelude::*;

fn statement() -> CodeStatement {
    CodeStatement {
        name: "hello".to_string(),
        version: 3,
        module_sha256: [1; 32],
        cwasm_sha256: sha2::Digest::finalize(sha2::Sha256::default()).into(),
        fingerprint: [3; 32],
        kind: Kind::Service { tls: true },
    }
}

#[test]
fn reports_that_break_the_layout_are_named() {
    let good = milan_report();
    let with = |at: usize, value: u8| {
        let mut report = good.clone();
        report[at] = value;
        Report::parse(&report)
    };
    assert_eq!(Report::parse(&good[1..]), Err(ReportError::Length(1183)));
    assert_eq!(with(0, 1), Err(ReportError::Version(1)));
    assert_eq!(with(0, 6), Err(ReportError::Version(6)));
    assert_eq!(with(0x34, 2), Err(ReportError::Algorithm(2)));
    assert_eq!(with(0x48, 2 << 2), Err(ReportError::SigningKey(2)));
    assert_eq!(with(0x48, 1 << 5), Err(ReportError::Reserved(0x48)));
    assert_eq!(with(0x30, 4), Err(ReportError::Vmpl(4)));
    assert_eq!(with(0x0a, 1), Err(ReportError::Reserved(8)), "bit 17 of the policy is always one");
    assert_eq!(with(0x0b, 4), Err(ReportError::Reserved(8)), "bit 26 is reserved");
    let reserved =
        [(0x4c, 0x4c), (0x188, 0x188), (0x19f, 0x188), (0x1eb, 0x1eb), (0x1ef, 0x1ef), (0x1f8, 0x1f8)];
    for (at, area) in
        reserved.into_iter().chain([(0x29f, 0x1f8), (0x2e7, 0x2d0), (0x318, 0x318), (0x49f, 0x318)])
    {
        assert_eq!(with(at, 1), Err(ReportError::Reserved(area)), "{at:#x}");
    }
    // Later versions have fields there.
    let version = |version: u8, at: usize| {
        let mut report = good.clone();
        (report[0], report[at]) = (version, 1);
        Report::parse(&report)
    };
    for v in 3..=5 {
        assert_eq!(version(v, 0x188).unwrap().cpuid.unwrap().family, 1);
        assert_eq!(version(v, 0x18b), Err(ReportError::Reserved(0x18b)));
        assert_eq!(version(v, 0x200).is_ok(), v == 5);
    }
    assert_eq!(version(5, 0x200).unwrap().mitigations.unwrap().current, 1);
    assert_eq!(version(5, 0x208), Err(ReportError::Reserved(0x208)));
}

#[test]
fn manifests_are_read_back_and_signed_by_their_owner() {
    let manifest = Manifest { migration: Some(policy().encode()), ..manifest() };
    let bytes = manifest.encode();
    assert_eq!(Manifest::decode(&bytes), Ok(manifest.clone()));
    let signed = manifest.sign(&owner()).unwrap();
    assert_eq!(signed.verify(), Ok(manifest.clone()));
    assert_eq!(SignedManifest::decode(&signed.encode()), Ok(signed.clone()));
    for bit in 0..bytes.len() * 8 {
        let mut forged = signed.clone();
        forged.manifest[bit / 8] ^= 1 << (bit % 8);
        assert!(forged.verify().is_err(), "bit {bit}");
    }
    for bit in 0..512 {
        let mut forged = signed.clone();
        forged.signature[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(forged.verify(), Err(ManifestError::Signature), "bit {bit}");
    }
    // A statement about code signed by the owner's key is no manifest: labels differ.
    let code = statement().sign(&owner()).unwrap();
    let confused = SignedManifest { manifest: code.statement, signature: code.signature };
    assert!(confused.verify().is_err());
    let long = Manifest { name: "n".repeat(129), ..manifest.clone() };
    assert_eq!(long.sign(&owner()), Err(ManifestError::Format(WireError::TooLong("name"))));
    let control = Manifest { name: "a\u{1b}[0m".to_string(), ..manifest };
    assert_eq!(control.sign(&owner()), Err(ManifestError::Format(WireError::Value("name"))));
}

#[test]
fn weak_keys_are_refused() {
    let mut bytes = manifest().encode();
    // Behind magic, version and mode: the owner. The neutral element and a point of order 8.
    for weak in [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ] {
        for (at, digits) in (17..49).zip((0..64).step_by(2)) {
            bytes[at] = u8::from_str_radix(&weak[digits..digits + 2], 16).unwrap();
        }
        assert_eq!(Manifest::decode(&bytes), Err(ManifestError::Key));
    }
}

#[test]
fn code_is_believed_by_listed_compilers_only() {
    let signed = statement().sign(&compiler()).unwrap();
    assert_eq!(signed.verify(&manifest()), Ok(statement()));
    assert_eq!(SignedCode::decode(&signed.encode()), Ok(signed.clone()));
    statement().check_code(b"").unwrap();
    assert_eq!(statement().check_code(b"x"), Err(CodeError::Content));
    let stranger = statement().sign(&SigningKey::from_bytes(&[8; 32])).unwrap();
    assert_eq!(stranger.verify(&manifest()), Err(CodeError::Compiler));
    assert_eq!(statement().sign(&owner()).unwrap().verify(&manifest()), Err(CodeError::Compiler));
    let relabelled = SignedCode { compiler: signed.compiler, ..stranger };
    assert_eq!(relabelled.verify(&manifest()), Err(CodeError::Signature));
    let bytes = signed.encode();
    for bit in 0..bytes.len() * 8 {
        let mut forged = bytes.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(SignedCode::decode(&forged).unwrap().verify(&manifest()).is_err(), "bit {bit}");
    }
}

#[test]
fn packages_open_with_their_key_only_and_whole_only() {
    let code = statement().sign(&compiler()).unwrap();
    let overhead = 4 + code.encode().len();
    let key = [4; 32];
    for len in [0, 1, CHUNK_BYTES - overhead, CHUNK_BYTES - overhead + 1, 3 * CHUNK_BYTES] {
        let cwasm: Vec<u8> = (0..len).map(|i| (i * 7 / 5) as u8).collect();
        let package = package::seal(&key, [9; 16], &code, &cwasm).unwrap();
        let header = Header::parse(&package).unwrap();
        assert_eq!((header.id, header.content_bytes), ([9; 16], (overhead + len) as u64));
        header.check(&package).unwrap();
        let mut opened = package.clone();
        let (found, range) = package::open_in_place(&key, &mut opened).unwrap();
        assert_eq!((found, &opened[range]), (code.clone(), cwasm.as_slice()));
        assert_eq!(package::open_in_place(&[5; 32], &mut package.clone()), Err(PackageError::Forged));
        let cut = PackageError::Format(WireError::Truncated);
        assert_eq!(package::open_in_place(&key, &mut package[..package.len() - 1].to_vec()), Err(cut));
        let long = PackageError::Format(WireError::Trailing);
        assert_eq!(package::open_in_place(&key, &mut [package.as_slice(), &[0]].concat()), Err(long));
        let mut damaged = package.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(package::open_in_place(&key, &mut damaged), Err(PackageError::Damaged));
    }
}

#[test]
fn chunks_of_a_package_can_not_be_moved_cut_or_mixed() {
    let code = statement().sign(&compiler()).unwrap();
    let key = [4; 32];
    let package = package::seal(&key, [9; 16], &code, &vec![1; 3 * CHUNK_BYTES]).unwrap();
    let chunk = CHUNK_BYTES + package::TAG_BYTES;
    // What a forger without the key can do: any header and body that fit each other.
    let forge = |id: [u8; 16], content_bytes: u64, body: &[u8]| {
        let body_sha256 = sha2::Digest::chain_update(sha2::Sha256::default(), body);
        let body_sha256 = sha2::Digest::finalize(body_sha256).into();
        let mut forged = Header { id, body_sha256, content_bytes }.encode();
        forged.extend_from_slice(body);
        package::open_in_place(&key, &mut forged)
    };
    let body = &package[HEADER_BYTES..];
    let content = Header::parse(&package).unwrap().content_bytes;
    assert!(forge([9; 16], content, body).is_ok(), "the forger's own way to put it together works");
    let swapped = [&body[chunk..2 * chunk], &body[..chunk], &body[2 * chunk..]].concat();
    assert_eq!(forge([9; 16], content, &swapped), Err(PackageError::Forged));
    assert_eq!(forge([9; 16], 2 * CHUNK_BYTES as u64, &body[..2 * chunk]), Err(PackageError::Forged));
    assert_eq!(forge([8; 16], content, body), Err(PackageError::Forged));
    let other = package::seal(&key, [7; 16], &code, &vec![1; 3 * CHUNK_BYTES]).unwrap();
    let mixed = [&body[..chunk], &other[HEADER_BYTES + chunk..]].concat();
    assert_eq!(forge([9; 16], content, &mixed), Err(PackageError::Forged));
}

/// A policy file with every key.
const POLICY: &str = include_str!("common/policy.toml");

#[test]
fn a_policy_file_with_every_key_is_read() {
    let policy = Policy::from_toml(POLICY).unwrap();
    assert_eq!(policy.measurements.len(), 2);
    assert_eq!(policy.platforms, [Platform::Milan, Platform::Turin]);
    let turin = Tcb { fmc: 1, bootloader: 2, tee: 3, snp: 4, microcode: 5 };
    assert_eq!(policy.minimum_for(Platform::Turin), Some(turin));
    assert!(policy.allow_debug && policy.allow_software_platform);
    assert_eq!((policy.software_roots.len(), policy.revoked_certificates.len()), (1, 1));
    assert_eq!(policy.revoked_chips.len(), 2);
    assert_eq!(policy.outer_measurements.len(), 1);
    let rule = policy.manifest.unwrap();
    assert_eq!((rule.minimum_version, rule.mode), (7, Mode::Sealed));
    assert_eq!(policy.code.as_ref().map(Vec::len), Some(1));
    assert_eq!(Policy::decode(&policy.encode()), Ok(policy));
    assert_eq!(Policy::from_toml(""), Ok(Policy::default()));
}

#[test]
fn errors_in_policy_files_name_the_key() {
    let error = |text: &str| Policy::from_toml(text).unwrap_err().to_string();
    assert!(error("\nallow_debugg = true").starts_with("line 2: unknown field `allow_debugg`"));
    assert!(error("[manifest]\nowner = ''\nminimum = 1").contains("unknown field `minimum`"));
    assert!(error("[[measurements]]\ndigest = ''\nguest = ''\nx = 1").contains("unknown field `x`"));
    assert!(error("[minimum_tcb.milan]\nuode = 1").contains("unknown field `uode`"));
    assert!(error("[manifest]\nowner = ''").contains("missing field `minimum_version`"));
    assert!(error("allow_debug = 1").starts_with("line 1: invalid type"));
    assert!(error("allow_debug = true\nallow_debug = true").starts_with("line 2: duplicate key"));
    assert!(error("allow_debug").starts_with("line 1: "));
    let software = "platforms: software is allowed by allow_software_platform = true only";
    assert_eq!(error("platforms = ['software']"), software);
    assert_eq!(error("platforms = ['rome']"), "platforms: 'rome' is none of milan, genoa, turin");
    assert_eq!(error("software_roots = ['12']"), "software_roots: 64 hexadecimal digits are needed");
    assert_eq!(error("revoked_chips = ['zz']"), "revoked_chips: 128 hexadecimal digits are needed");
    let tcb = "bootloader = 1\ntee = 1\nsnp = 1\nmicrocode = 1";
    let fmc = "minimum_tcb: fmc belongs to turin, and only there";
    assert_eq!(error(&format!("[minimum_tcb.turin]\n{tcb}")), fmc);
    assert_eq!(error(&format!("[minimum_tcb.milan]\nfmc = 1\n{tcb}")), fmc);
    assert!(error(&format!("[minimum_tcb.milan]\n{tcb}0000")).starts_with("line 5: invalid value"));
    assert_eq!(Policy::from_toml(&"#".repeat(300 << 10)), Err(FileError::TooLong));
}

#[test]
fn manifest_files_are_read_and_written() {
    let plain = manifest();
    assert_eq!(Manifest::from_toml(&plain.to_toml()), Ok(plain.clone()));
    let quoted = Manifest { name: "a \"b\" \\ ü".to_string(), ..plain.clone() };
    assert_eq!(Manifest::from_toml(&quoted.to_toml()), Ok(quoted));
    let moving = format!("{}[migration]\nallow_software_platform = true\n", plain.to_toml());
    let migration = Manifest::from_toml(&moving).unwrap().migration.unwrap();
    assert!(Policy::decode(&migration).unwrap().allow_software_platform);
    let error = |text: &str| Manifest::from_toml(text).unwrap_err().to_string();
    assert!(error(&format!("{}ownr = 1\n", plain.to_toml())).contains("unknown field `ownr`"));
    assert!(error("version = 1").contains("missing field `owner`"));
    let owner = hex(plain.owner.as_bytes());
    let key = "owner: 64 hexadecimal digits are needed";
    assert_eq!(error(&plain.to_toml().replace(&owner, "00")), key);
    let mode = "mode: 'shut' is neither sealed nor open";
    assert_eq!(error(&plain.to_toml().replace("\"sealed\"", "\"shut\"")), mode);
}

proptest! {
    #[test]
    fn readers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = (Claims::decode(&bytes), SignedCode::decode(&bytes), CodeStatement::decode(&bytes));
        let _ = (Manifest::decode(&bytes), SignedManifest::decode(&bytes), Policy::decode(&bytes));
        let _ = (Evidence::decode(&bytes), Certificate::parse(&bytes), Chain::verify(&[&bytes]));
        let _ = (Report::parse(&bytes), Header::parse(&bytes));
        let _ = Policy::from_toml(&String::from_utf8_lossy(&bytes));
        let _ = package::open_in_place(&[0; 32], &mut bytes.clone());
    }

    #[test]
    fn changed_encodings_are_refused_or_mean_themselves(at in any::<proptest::sample::Index>(), value: u8) {
        let mut evidence = Bench::new().evidence.encode();
        let i = at.index(evidence.len());
        evidence[i] = value;
        if let Ok(read) = Evidence::decode(&evidence) {
            prop_assert_eq!(read.encode(), evidence);
        }
        let mut policy = Policy::from_toml(POLICY).unwrap().encode();
        let i = at.index(policy.len());
        policy[i] = value;
        if let Ok(read) = Policy::decode(&policy) {
            prop_assert_eq!(read.encode(), policy);
        }
        let mut manifest = manifest().encode();
        let i = at.index(manifest.len());
        manifest[i] = value;
        if let Ok(read) = Manifest::decode(&manifest) {
            prop_assert_eq!(read.encode(), manifest);
        }
        let mut code = statement().encode();
        let i = at.index(code.len());
        code[i] = value;
        if let Ok(read) = CodeStatement::decode(&code) {
            prop_assert_eq!(read.encode(), code);
        }
    }

    #[test]
    fn reports_are_read_back(bytes in proptest::collection::vec(any::<u8>(), REPORT_BYTES), version in 2u8..6) {
        let mut report = bytes;
        report[..4].copy_from_slice(&[version, 0, 0, 0]);
        report[0x0a] |= 2;
        report[0x0b..0x10].fill(0);
        let (vmpl, keys) = (report[0x30] & 3, report[0x48] & 7);
        report[0x30..0x38].copy_from_slice(&[vmpl, 0, 0, 0, 1, 0, 0, 0]);
        report[0x48..0x50].copy_from_slice(&[keys, 0, 0, 0, 0, 0, 0, 0]);
        report[if version == 2 { 0x188 } else { 0x18b }..0x1a0].fill(0);
        (report[0x1eb], report[0x1ef]) = (0, 0);
        report[if version == 5 { 0x208 } else { 0x1f8 }..0x2a0].fill(0);
        report[0x2d0..0x2e8].fill(0);
        report[0x318..].fill(0);
        let parsed = Report::parse(&report).unwrap();
        prop_assert_eq!(&parsed.encode()[..], &report);
        prop_assert_eq!(parsed.signed_bytes(), &report[..0x2a0]);
        prop_assert_eq!(parsed.cpuid.is_some(), version >= 3);
    }
}
