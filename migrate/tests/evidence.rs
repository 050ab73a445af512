//! Both ends judge each other by the migration policy of their manifest, with genuine evidence of a software platform.

use nacre_attest::claims::code_list_hash;
use nacre_attest::ed25519_dalek::SigningKey;
use nacre_attest::evidence::Evidence;
use nacre_attest::launch::Measurement;
use nacre_attest::manifest::{Manifest, Mode, SignedManifest};
use nacre_attest::policy::{AcceptedGuest, ManifestRule, Policy};
use nacre_attest::software::{ReportFields, Root, Signer};
use nacre_attest::verify::rule;
use nacre_migrate::crypto::X25519Pair;
use nacre_migrate::destination::{Destination, Host};
use nacre_migrate::message::Reason;
use nacre_migrate::policy::{Binding, ManifestPolicy, PeerPolicy, PeerRefused};
use nacre_migrate::source::{Aborted, Source, Tenant};
use nacre_migrate::vault::{DestinationVault, SourceVault};
use nacre_migrate::wire::{End, MAX_HANDSHAKE_BYTES};
use nacre_migrate::{Ended, Event, Slot, Terms};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::LazyLock;

const MEASUREMENT: [u8; 48] = [3; 48];
const CODE: [u8; 32] = [8; 32];

/// A tenant that is never parked here.
#[derive(Debug)]
struct NoTenant;

impl Tenant for NoTenant {
    fn extinguish(self) -> Result<(), NoTenant> {
        Err(self)
    }
}

type Sent = Source<Box<SourceVault<X25519Pair, Vec<Slot>>>, NoTenant>;
type Taken = Destination<Box<DestinationVault<X25519Pair, Vec<Slot>>>>;

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let root = Root::generate().unwrap();
    Signer::new(&root.issue_vcek("n1").unwrap(), root.above()).unwrap()
});

fn manifest(policy: Option<&Policy>) -> (Manifest, SignedManifest) {
    let owner = SigningKey::from_bytes(&[1; 32]);
    let manifest = Manifest {
        version: 4,
        owner: owner.verifying_key(),
        compilers: Vec::new(),
        brokers: Vec::new(),
        mode: Mode::Sealed,
        name: "tenant".to_string(),
        migration: policy.map(Policy::encode),
    };
    let signed = manifest.sign(&owner).unwrap();
    (manifest, signed)
}

fn policy() -> Policy {
    let owner = SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes();
    Policy {
        measurements: vec![AcceptedGuest {
            measurement: Measurement(MEASUREMENT),
            guest: "0.1.0".to_string(),
        }],
        allow_software_platform: true,
        manifest: Some(ManifestRule { owner, minimum_version: 4, mode: Mode::Sealed }),
        ..Policy::default()
    }
}

/// What a guest with this image and code, launched with this manifest, proves.
fn evidence(signed: &SignedManifest, binding: &Binding, image: [u8; 48], code: &[[u8; 32]]) -> Vec<u8> {
    let claims = binding.claims(code_list_hash(code));
    let fields = ReportFields {
        measurement: image,
        host_data: signed.hash(),
        report_data: claims.report_data(),
        report_id: [2; 32],
        debug: false,
    };
    let report = SIGNER.sign(&fields).unwrap().to_vec();
    let certificates = SIGNER.certificates().to_vec();
    Evidence {
        report,
        certificates,
        manifest: Some(signed.clone()),
        claims,
        code: code.to_vec(),
        outer: None,
    }
    .encode()
}

/// The two ends until the destination's evidence is due.
fn offered(signed: &SignedManifest, host: Host) -> (Sent, Taken, Vec<u8>, Result<Event, String>) {
    let random = &mut ChaCha20Rng::seed_from_u64(1);
    let (hash, memory_bytes) = (signed.hash(), 1 << 20);
    let terms = Terms { manifest: hash, memory_bytes, cpu_features: 5, lanes: 1, image: [4; 32] };
    let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
    let (source, length) = Source::offer(Box::default(), terms, random, &mut frame).unwrap();
    frame.truncate(length);
    let fresh: Taken = Destination::fresh(Box::default(), host);
    let mut judge = ManifestPolicy::new(&manifest(Some(&policy())).0).unwrap();
    let step = fresh.receive(&mut frame.clone(), &mut judge, random);
    (source, step.state, frame, step.event.map_err(|error| error.to_string()))
}

fn host(signed: &SignedManifest) -> Host {
    Host { manifest: signed.hash(), memory_bytes: 1 << 30, cpu_features: 7, image: [4; 32] }
}

/// What the source says to a destination with this evidence.
fn judged(make: impl Fn(&SignedManifest, &Binding) -> Vec<u8>) -> Ended {
    let (manifest, signed) = manifest(Some(&policy()));
    let (source, destination, _, event) = offered(&signed, host(&signed));
    let (Destination::Answering(answering), Ok(Event::Prove(binding))) = (destination, event) else {
        panic!("it takes the offer")
    };
    let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
    let (_, length) = answering.prove(&make(&signed, &binding), &mut frame);
    frame.truncate(length.unwrap());
    let step = source.receive(&mut frame, &mut ManifestPolicy::new(&manifest).unwrap());
    match (step.state, step.event) {
        (Source::Aborted(Aborted { ended, tenant: None }), Ok(Event::Ended(same))) => {
            assert_eq!(ended, same);
            ended
        }
        (state, event) => panic!("{} after {event:?}", state.name()),
    }
}

/// Evidence of one kind or another.
type Make = fn(&SignedManifest, &Binding) -> Vec<u8>;

#[test]
fn both_ends_accept_genuine_evidence() {
    let (manifest, signed) = manifest(Some(&policy()));
    let mut judges = [0; 2].map(|_| ManifestPolicy::new(&manifest).unwrap());
    let (source, destination, _, event) = offered(&signed, host(&signed));
    let (Destination::Answering(answering), Ok(Event::Prove(binding))) = (destination, event) else {
        panic!("it takes the offer")
    };
    let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
    let (answered, length) = answering.prove(&evidence(&signed, &binding, MEASUREMENT, &[]), &mut frame);
    let step = source.receive(&mut frame[..length.unwrap()], &mut judges[0]);
    let (Source::Proving(proving), Ok(Event::Prove(binding))) = (step.state, step.event) else {
        panic!("the destination is accepted")
    };
    assert_eq!(binding.end, End::Source);
    let mut frame = vec![0; MAX_HANDSHAKE_BYTES];
    let (source, length) =
        proving.prove::<NoTenant>(&evidence(&signed, &binding, MEASUREMENT, &[CODE]), &mut frame);
    let random = &mut ChaCha20Rng::seed_from_u64(2);
    let step = answered.receive(&mut frame[..length.unwrap()], &mut judges[1], random);
    let Destination::Attested(attested) = step.state else {
        panic!("the source is accepted: {:?}", step.event)
    };
    let (_, ready) = attested.start(1 << 30, |_| vec![Slot::default(); 8]).unwrap();
    let step = source.receive(&mut ready.frame().to_vec(), &mut judges[0]);
    assert!(matches!(step.event, Ok(Event::Attested(_))), "both have the same keys");
}

#[test]
fn a_destination_with_the_wrong_image_code_key_or_nonce_is_refused() {
    let cases: [(PeerRefused, Make); 8] = [
        (PeerRefused::Rule(rule::MEASUREMENT), |signed, binding| evidence(signed, binding, [4; 48], &[])),
        (PeerRefused::NotFresh, |signed, binding| evidence(signed, binding, MEASUREMENT, &[CODE])),
        (PeerRefused::Claims("role"), |signed, binding| {
            evidence(signed, &Binding { end: End::Source, ..*binding }, MEASUREMENT, &[])
        }),
        (PeerRefused::Claims("key"), |signed, binding| {
            evidence(signed, &Binding { key: [1; 32], ..*binding }, MEASUREMENT, &[])
        }),
        (PeerRefused::Claims("nonce"), |signed, binding| {
            evidence(signed, &Binding { nonce: [1; 32], ..*binding }, MEASUREMENT, &[])
        }),
        (PeerRefused::Claims("migration id"), |signed, binding| {
            evidence(signed, &Binding { id: [1; 48], ..*binding }, MEASUREMENT, &[])
        }),
        (PeerRefused::Claims("manifest"), |signed, binding| {
            evidence(signed, &Binding { manifest: [1; 32], ..*binding }, MEASUREMENT, &[])
        }),
        (PeerRefused::Format, |_, _| b"evidence".to_vec()),
    ];
    for (expected, make) in cases {
        assert_eq!(judged(make), Ended::Refused(expected));
    }
    let forged = |signed: &SignedManifest, binding: &Binding| {
        let mut evidence = Evidence::decode(&evidence(signed, binding, MEASUREMENT, &[])).unwrap();
        evidence.report[0x90] ^= 1;
        evidence.encode()
    };
    assert_eq!(judged(forged), Ended::Refused(PeerRefused::Rule(rule::REPORT_SIGNATURE)));
}

#[test]
fn a_destination_that_does_not_fit_refuses_before_it_proves_anything() {
    let (_, signed) = manifest(Some(&policy()));
    let good = host(&signed);
    let cases = [
        (Reason::Manifest, Host { manifest: [0; 32], ..good }),
        (Reason::Image, Host { image: [5; 32], ..good }),
        (Reason::Cpu, Host { cpu_features: 3, ..good }),
        (Reason::Memory, Host { memory_bytes: (1 << 20) - 1, ..good }),
    ];
    for (reason, host) in cases {
        let (_, destination, _, event) = offered(&signed, host);
        assert!(matches!(destination, Destination::Destroyed(ended) if ended == Ended::Here(reason)));
        assert_eq!(event, Ok(Event::Ended(Ended::Here(reason))));
    }
}

#[test]
fn without_a_migration_policy_nothing_moves() {
    let (mut manifest, _) = manifest(None);
    assert_eq!(ManifestPolicy::new(&manifest).err(), Some(PeerRefused::NoPolicy));
    manifest.migration = Some(b"NACREPOL".to_vec());
    assert_eq!(ManifestPolicy::new(&manifest).err(), Some(PeerRefused::NoPolicy));
    // One that accepts no software platform accepts none.
    let strict = Policy { allow_software_platform: false, ..policy() };
    let (manifest, signed) = self::manifest(Some(&strict));
    let (_, _, _, event) = offered(&signed, host(&signed));
    let Ok(Event::Prove(binding)) = event else { panic!("it takes the offer") };
    let refused = ManifestPolicy::new(&manifest)
        .unwrap()
        .judge(&evidence(&signed, &binding, MEASUREMENT, &[]), &binding);
    assert_eq!(refused, Err(PeerRefused::Rule(rule::SOFTWARE_PLATFORM)));
}
