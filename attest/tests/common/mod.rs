//! What the tests share: the genuine vectors, a software platform, evidence of it and a policy that accepts it.
#![allow(dead_code)]

use nacre_attest::chain::BUILT_IN;
use nacre_attest::claims::{Claims, Label, Role, code_list_hash};
use nacre_attest::ed25519_dalek::SigningKey;
use nacre_attest::evidence::Evidence;
use nacre_attest::launch::Measurement;
use nacre_attest::manifest::{Manifest, Mode};
use nacre_attest::policy::{AcceptedGuest, ManifestRule, Policy};
use nacre_attest::report::REPORT_BYTES;
use nacre_attest::software::{ReportFields, Root, Signer};
use nacre_attest::tcb::{Platform, Tcb};
use nacre_attest::verify::Expect;

/// The VCEK of the report of [`milan_report`].
pub const VCEK_MILAN: &[u8] = include_bytes!("../vectors/vcek_milan.der");
/// A VCEK of a Turin chip.
pub const VCEK_TURIN: &[u8] = include_bytes!("../vectors/vcek_turin.der");
/// A report of a third chip.
pub const AZ_REPORT: &[u8] = include_bytes!("../vectors/az_report.bin");
/// A chain of a fourth.
pub const AZ_CHAIN: &str = include_str!("../vectors/az_vcek_chain.pem");

/// A genuine report.
pub fn milan_report() -> Vec<u8> {
    let digits = include_str!("../vectors/report_milan.hex").trim();
    let byte = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Its chain, leaf first.
pub fn milan_chain() -> Vec<Vec<u8>> {
    vec![VCEK_MILAN.to_vec(), BUILT_IN[0].ask.to_vec(), BUILT_IN[0].ark.to_vec()]
}

/// The blocks of a PEM file.
pub fn pem(text: &str) -> Vec<Vec<u8>> {
    let blocks = text.split_inclusive("-----END CERTIFICATE-----");
    let blocks = blocks.map(str::trim).filter(|block| !block.is_empty());
    blocks.map(|block| der::pem::decode_vec(block.as_bytes()).unwrap().1).collect()
}

/// A policy that accepts the genuine report.
pub fn milan_policy() -> Policy {
    let measurement = milan_report()[0x90..0xc0].try_into().unwrap();
    Policy {
        measurements: vec![AcceptedGuest {
            measurement: Measurement(measurement),
            guest: "vector".to_string(),
        }],
        platforms: vec![Platform::Milan],
        minimum_tcb: vec![(Platform::Milan, Tcb { fmc: 0, bootloader: 3, tee: 0, snp: 8, microcode: 115 })],
        ..Policy::default()
    }
}

/// A time at which all genuine certificates are valid: 2024.
pub const NOW: u64 = 1_710_000_000;
/// The verifier's nonce.
pub const NONCE: [u8; 32] = [7; 32];
/// The guest's launch digest.
pub const MEASUREMENT: [u8; 48] = [3; 48];

/// A tenant's owner.
pub fn owner() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

/// A compiler that the manifest lists.
pub fn compiler() -> SigningKey {
    SigningKey::from_bytes(&[2; 32])
}

/// A manifest.
pub fn manifest() -> Manifest {
    Manifest {
        version: 4,
        owner: owner().verifying_key(),
        compilers: vec![compiler().verifying_key()],
        brokers: vec![SigningKey::from_bytes(&[3; 32]).verifying_key()],
        mode: Mode::Sealed,
        name: "tenant/workload".to_string(),
        migration: None,
    }
}

/// A software platform and evidence that it signs.
pub struct Bench {
    /// The root.
    pub root: Root,
    /// A node's signer.
    pub signer: Signer,
    /// What goes into the report.
    pub fields: ReportFields,
    /// The evidence, without report and certificates so far.
    pub evidence: Evidence,
}

impl Bench {
    /// Good evidence, not signed yet.
    pub fn new() -> Bench {
        let root = Root::generate().unwrap();
        let signer = Signer::new(&root.issue_vcek("n1").unwrap(), root.above()).unwrap();
        let code = vec![[8; 32], [9; 32]];
        let signed = manifest().sign(&owner()).unwrap();
        let claims = Claims {
            label: Label::Session,
            role: Role::Cvm,
            key: vec![5; 32],
            nonce: NONCE,
            id: vec![6; 16],
            manifest: signed.hash(),
            code: code_list_hash(&code),
        };
        let fields = ReportFields {
            measurement: MEASUREMENT,
            host_data: signed.hash(),
            report_data: [0; 64],
            report_id: [2; 32],
            debug: false,
        };
        let evidence = Evidence {
            report: vec![0; REPORT_BYTES],
            certificates: signer.certificates().to_vec(),
            manifest: Some(signed),
            claims,
            code,
            outer: None,
        };
        Bench { root, signer, fields, evidence }
    }

    /// Signs a report over the claims as they are now.
    pub fn sign(&mut self) -> &Evidence {
        self.fields.report_data = self.evidence.claims.report_data();
        self.evidence.report = self.signer.sign(&self.fields).unwrap().to_vec();
        &self.evidence
    }
}

/// A policy that accepts a [`Bench`]'s evidence.
pub fn policy() -> Policy {
    Policy {
        measurements: vec![AcceptedGuest {
            measurement: Measurement(MEASUREMENT),
            guest: "0.1.0".to_string(),
        }],
        allow_software_platform: true,
        manifest: Some(ManifestRule {
            owner: owner().verifying_key().to_bytes(),
            minimum_version: 4,
            mode: Mode::Sealed,
        }),
        code: Some(vec![[8; 32], [9; 32], [10; 32]]),
        ..Policy::default()
    }
}

/// What the verifier of a [`Bench`] expects.
pub fn expect() -> Expect {
    Expect { nonce: NONCE, label: Label::Session, role: Role::Cvm, now: None }
}
