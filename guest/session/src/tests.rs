//! Both ends against each other, error by error, and what only the inside can build: genuine records that break the rules.

use crate::command::{Install, Invoke, Limits, Logs, ModuleKind, Priority, Remove};
use crate::keys::KeyPair;
use crate::reply::{ExitKind, Installed, Outcome};
use crate::sealed::{self, Place};
use crate::wire::*;
use crate::*;
use hpke::aead::{Aead, AesGcm128, AesGcm256};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, OpModeR};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

const CLAIMS: ClaimsHash = ClaimsHash([7; 32]);

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn offer_to(cvm: &mut CvmSessions, rng: &mut ChaCha20Rng) -> ClientSession {
    let draft = Draft::new(rng);
    let (id, public_key) = (draft.id(), *draft.public_key());
    cvm.publish(draft, CLAIMS, 7);
    ClientHandshake::new(rng).accept(id, &public_key, CLAIMS, rng).unwrap()
}

fn opened(seed: u64) -> (CvmSessions, ClientSession) {
    let rng = &mut rng(seed);
    let mut cvm = CvmSessions::new();
    let mut client = offer_to(&mut cvm, rng);
    let sealed = client.seal_request(&Command::Status).unwrap();
    let request = cvm.accept(sealed.bytes).unwrap();
    client.open_response(request.responder.seal(&Reply::Removed { version: 1 })).unwrap();
    (cvm, client)
}

fn invoke(stdin: &[u8]) -> Command<'_> {
    Command::Invoke(Invoke {
        action: "hash",
        args: vec!["-v", ""],
        env: vec![("KEY", "secret value")],
        limits: Limits { priority: Priority::Low, cpu_ns: 5, ..Limits::default() },
        stdin,
    })
}

fn install<'a>(key: &'a [u8; 32]) -> Command<'a> {
    let (name, kind, env) = ("bank", ModuleKind::TlsService, vec![("TOKEN", "hunter2")]);
    Command::Install(Install { package: &[1; 32], key, name, version: 3, kind, env })
}

#[track_caller]
fn rejected(accepted: Result<Request, Rejected>) -> RecordError {
    let rejected = accepted.expect_err("it was accepted");
    assert_eq!(Rejected::decode(&rejected.encode()), Some(rejected));
    rejected.error
}

fn hex<const N: usize>(text: &str) -> [u8; N] {
    assert_eq!(text.len(), 2 * N);
    core::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
}

/// The keys and info of RFC 9180, A.1.1 (and so its shared secret), with this AEAD.
fn rfc_exports<A: Aead>() -> [[u8; 32]; 3] {
    let private: [u8; 32] = hex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8");
    let enc: [u8; 32] = hex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431");
    let info: [u8; 20] = hex("4f6465206f6e2061204772656369616e2055726e");
    let context = hpke::setup_receiver::<A, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &Deserializable::from_bytes(&private).unwrap(),
        &Deserializable::from_bytes(&enc).unwrap(),
        &info,
    )
    .unwrap();
    [&b""[..], b"\0", b"TestContext"].map(|label| {
        let mut exported = [0; 32];
        context.export(label, &mut exported).unwrap();
        exported
    })
}

#[test]
fn exports_are_those_of_rfc_9180() {
    // A.1.1: AES-128-GCM.
    assert_eq!(
        rfc_exports::<AesGcm128>(),
        [
            hex("3853fe2b4035195a573ffc53856e77058e15d9ea064de3e59f4961d0095250ee"),
            hex("2e8f0b54673c7029649d4eb9d5e33bf1872cf76d623ff164ac185da9e88c21a5"),
            hex("e9e43065102c3836401bed8c3c3c75ae46be1639869391d62c61f1ec7af54931"),
        ]
    );
    // The appendix has no vectors of our suite. These are of the RFC's formulas, written down in Python, which give A.1.1's
    // values (shared secret, key, base nonce, exports) for AES-128-GCM.
    assert_eq!(
        rfc_exports::<AesGcm256>(),
        [
            hex("b3cb4482e97308bc89417db5e7ba95b65008991adf2e60716d5b489538534f5f"),
            hex("f614b164ecb23313ddc5f376fd91e2c1b484d85597a3b6eeb160f06d9864fb67"),
            hex("a1f0b0587d1a613ebc7719b3c66272251beccc161f139aeec40ec11053530e26"),
        ]
    );
}

#[test]
fn commands_and_replies_arrive_as_they_were_sent() {
    let (mut cvm, mut client) = opened(1);
    let big = vec![9; 3 << 20];
    let commands = [
        invoke(b"input"),
        invoke(&big),
        install(&[2; 32]),
        Command::Remove(Remove { name: "bank", version: u64::MAX }),
        Command::Status,
        Command::Logs(Logs { name: "bank", from: 70_000 }),
    ];
    let outcome = Outcome {
        exit: ExitKind::Trap,
        code: 134,
        stdout_cut: true,
        stderr_cut: false,
        cold: true,
        cpu_ns: 1,
        queued_ns: 2,
        ran_ns: 3,
        text: "unreachable",
        stdout: &big,
        stderr: b"",
    };
    let entry = Installed { name: "bank", version: 3, kind: ModuleKind::Action, code: &[4; 32] };
    let replies = [
        Reply::Outcome(outcome),
        Reply::Installed { version: 3, code: &[5; 32] },
        Reply::Removed { version: 3 },
        Reply::Status(vec![entry.clone(), entry]),
        Reply::Refused { reason: Refusal::OlderVersion, value: 4, detail: "no" },
        Reply::Logs { first: 65_536, bytes: b"listening\n" },
    ];
    for (command, reply) in commands.iter().zip(&replies) {
        let sealed = client.seal_request(command).unwrap();
        let request = cvm.accept(sealed.bytes).unwrap();
        assert_eq!(request.body.command().as_ref(), Ok(command));
        assert_eq!((request.body.seq(), request.responder.seq()), (sealed.seq, sealed.seq));
        let response = client.open_response(request.responder.seal(reply)).unwrap();
        assert_eq!((response.seq(), response.reply()), (sealed.seq, Ok(reply.clone())));
    }
    assert_eq!(client.unanswered(), 0);
}

#[test]
fn lengths_show_as_buckets_only() {
    let buckets = [0, 256, 257, 1024, 4097, 65536, 65537, 1 << 20, (1 << 20) + 1, MAX_PLAINTEXT_BYTES];
    let expected = [256, 256, 1024, 1024, 16384, 65536, 262144, 1 << 20, 2 << 20, MAX_PLAINTEXT_BYTES];
    assert_eq!(buckets.map(bucket), expected.map(Some));
    assert_eq!(bucket(MAX_PLAINTEXT_BYTES + 1), None);
    let (_, mut client) = opened(2);
    let mut length = |bytes: usize| client.seal_request(&invoke(&vec![0; bytes])).unwrap().bytes.len();
    assert_eq!(length(0), length(100));
    assert_ne!(length(0), length(300));
}

#[test]
fn each_failure_has_its_name_and_the_session_goes_on() {
    let (mut cvm, mut client) = opened(3);
    let good = client.seal_request(&invoke(b"1")).unwrap().bytes;
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= to;
        bytes
    };
    let cases = [
        (good[..20].to_vec(), RecordError::Truncated { bytes: 20 }),
        (good[..good.len() - 1].to_vec(), RecordError::Truncated { bytes: good.len() as u64 - 1 }),
        (changed(0, 3), RecordError::Version { found: 2 }),
        (changed(1, 0x80), RecordError::UnknownKind { found: 0x84 }),
        (changed(1, 1), RecordError::WrongEnd { found: 5 }),
        (changed(2, 1), RecordError::Reserved),
        (changed(4, 1), RecordError::Length { bytes: 273 }),
        (changed(8, 1), RecordError::UnknownSession),
        (changed(24, 1), RecordError::Replayed { next: 1 }),
        (changed(24, 2), RecordError::OutOfOrder { expected: 1 }),
        (changed(31, 1), RecordError::Exhausted),
        (changed(32, 1), RecordError::Forged),
        (changed(good.len() - 1, 1), RecordError::Forged),
    ];
    for (record, error) in cases {
        assert_eq!(rejected(cvm.accept(record)), error);
    }
    let responder = cvm.accept(good.clone()).unwrap().responder;
    assert_eq!(rejected(cvm.accept(good)), RecordError::Replayed { next: 2 });

    let answer = responder.seal(&Reply::Removed { version: 1 });
    let mut forged = answer.clone();
    forged[40] ^= 1;
    assert_eq!(client.open_response(forged).unwrap_err(), RecordError::Forged.into());
    let mut other = answer.clone();
    other[24] = 0;
    assert_eq!(client.open_response(other.clone()).unwrap_err(), ClientError::AlreadyAnswered { seq: 0 });
    other[24] = 2;
    assert_eq!(client.open_response(other.clone()).unwrap_err(), ClientError::NeverAsked { seq: 2 });
    other[8] ^= 1;
    assert!(matches!(client.open_response(other), Err(ClientError::OtherSession { .. })));
    let error = RecordError::OutOfOrder { expected: 1 };
    let failure = Rejected { session: client.id(), seq: 1, error }.encode();
    assert_eq!(client.open_response(failure).unwrap_err(), ClientError::TurnedAway { seq: 1, error });
    client.open_response(answer).unwrap();
}

#[test]
fn a_forged_open_leaves_the_offer_and_a_genuine_one_uses_it_up() {
    let rng = &mut rng(4);
    let mut cvm = CvmSessions::new();
    let mut client = offer_to(&mut cvm, rng);
    let (open, second) =
        (client.seal_request(&invoke(b"1")).unwrap().bytes, client.seal_request(&invoke(b"2")));
    let second = second.unwrap().bytes;
    assert_eq!(rejected(cvm.accept(second.clone())), RecordError::OutOfOrder { expected: 0 });
    for at in [32, 63, 64, open.len() - 1] {
        let mut forged = open.clone();
        forged[at] ^= 1;
        assert_eq!(rejected(cvm.accept(forged)), RecordError::Forged);
    }
    let mut low_order = open.clone();
    low_order[32..64].fill(0);
    assert_eq!(rejected(cvm.accept(low_order)), RecordError::Forged);
    assert_eq!(cvm.counts(), (1, 0));
    cvm.accept(open.clone()).unwrap();
    assert_eq!(cvm.counts(), (0, 1));
    assert_eq!(rejected(cvm.accept(open.clone())), RecordError::Replayed { next: 1 });
    cvm.accept(second).unwrap();
    cvm.close(client.id());
    assert_eq!(rejected(cvm.accept(open)), RecordError::UnknownSession);
}

#[test]
fn other_claims_or_a_bad_key_open_nothing() {
    let rng = &mut rng(5);
    let (mut cvm, draft) = (CvmSessions::new(), Draft::new(rng));
    let (id, public_key) = (draft.id(), *draft.public_key());
    cvm.publish(draft, CLAIMS, 7);
    let other = ClientHandshake::new(rng).accept(id, &public_key, ClaimsHash([8; 32]), rng);
    let open = other.unwrap().seal_request(&Command::Status).unwrap();
    assert_eq!(rejected(cvm.accept(open.bytes)), RecordError::Forged);
    let zero = ClientHandshake::new(rng).accept(id, &[0; 32], CLAIMS, rng);
    assert_eq!(zero.unwrap_err(), ClientError::BadPublicKey);
}

#[test]
fn offers_and_sessions_are_bounded_and_the_idle_ones_go_first() {
    let rng = &mut rng(6);
    let mut cvm = CvmSessions::with_limits(2, 2);
    let mut clients: Vec<_> = (0..3).map(|_| offer_to(&mut cvm, rng)).collect();
    assert_eq!(cvm.counts(), (2, 0));
    let ask = |cvm: &mut CvmSessions, client: &mut ClientSession| {
        cvm.accept(client.seal_request(&Command::Status).unwrap().bytes).map(|_| ())
    };
    let gone = ask(&mut cvm, &mut clients[0]).unwrap_err();
    assert_eq!(gone.error, RecordError::UnknownSession);
    ask(&mut cvm, &mut clients[1]).unwrap();
    ask(&mut cvm, &mut clients[2]).unwrap();
    ask(&mut cvm, &mut clients[1]).unwrap();
    clients.push(offer_to(&mut cvm, rng));
    ask(&mut cvm, &mut clients[3]).unwrap();
    assert_eq!(cvm.counts(), (0, 2));
    assert_eq!(ask(&mut cvm, &mut clients[2]).unwrap_err().error, RecordError::UnknownSession);
    ask(&mut cvm, &mut clients[1]).unwrap();
    cvm.close_all();
    assert_eq!(cvm.counts(), (0, 0));
}

#[test]
fn numbers_end() {
    let (mut cvm, mut client) = opened(7);
    client.set_next(MAX_RECORDS - 1);
    cvm.set_next(client.id(), MAX_RECORDS - 1);
    cvm.accept(client.seal_request(&Command::Status).unwrap().bytes).unwrap();
    assert_eq!(client.seal_request(&Command::Status).unwrap_err(), ClientError::Exhausted);
    let header = Header { kind: Kind::Request, body_bytes: 272, session: client.id(), seq: MAX_RECORDS };
    assert_eq!(rejected(cvm.accept(header.with_body(&[0; 272]))), RecordError::Exhausted);
}

#[test]
fn what_does_not_fit_takes_no_number() {
    let (mut cvm, mut client) = opened(8);
    let huge = vec![0; MAX_PLAINTEXT_BYTES];
    let too_long = client.seal_request(&invoke(&huge)).unwrap_err();
    assert!(matches!(too_long, ClientError::Encode(EncodeError::TooLong { .. })));
    let name = "n".repeat(MAX_NAME_BYTES + 1);
    for name in [&name, ""] {
        let bad = client.seal_request(&Command::Remove(Remove { name, version: 1 })).unwrap_err();
        assert_eq!(bad, ClientError::Encode(EncodeError::Name { bytes: name.len() }));
    }
    let args = vec![""; MAX_LIST + 1];
    let (env, limits) = (vec![], Limits::default());
    let many = Command::Invoke(Invoke { action: "a", args, env, limits, stdin: b"" });
    let bad = client.seal_request(&many).unwrap_err();
    assert_eq!(bad, ClientError::Encode(EncodeError::List { entries: MAX_LIST + 1 }));

    let sealed = client.seal_request(&Command::Status).unwrap();
    assert_eq!(sealed.seq, 1);
    let responder = cvm.accept(sealed.bytes).unwrap().responder;
    let detail = String::from_utf8(huge).unwrap();
    let answer = responder.seal(&Reply::Refused { reason: Refusal::Busy, value: 0, detail: &detail });
    let response = client.open_response(answer).unwrap();
    assert_eq!(response.reply(), Ok(Reply::refused(Refusal::AnswerTooLong)));
}

#[test]
fn who_gets_the_keys_reads_nothing_that_was_answered_before() {
    let (mut cvm, mut client) = opened(1);
    let (asked, answered) = {
        let sealed = client.seal_request(&invoke(b"planted")).unwrap();
        let asked = sealed.bytes.clone();
        let answer = cvm.accept(sealed.bytes).unwrap().responder.seal(&Reply::Removed { version: 1 });
        client.open_response(answer.clone()).unwrap();
        (asked, answer)
    };
    // What the CVM holds from now on: all keys that come from its chain.
    let mut chain = cvm.chain_of(client.id());
    for _ in 0..100 {
        let step = chain.step();
        for key in [&step.request, &step.response] {
            for record in [&asked, &answered] {
                let mut record = record.clone();
                let header = Header::split(&record).unwrap().0;
                let (aad, sealed) = record.split_at_mut(32);
                assert!(key.open(header.seq, aad, sealed).is_err());
            }
        }
        chain.advance(&step);
    }
    // And the two ends are where they must be to go on.
    let sealed = client.seal_request(&Command::Status).unwrap();
    cvm.accept(sealed.bytes).unwrap();
}

#[test]
fn a_session_knows_the_code_of_its_evidence_and_what_it_changed_itself() {
    let (mut cvm, mut client) = opened(1);
    let mut code = |cvm: &mut CvmSessions| {
        let sealed = client.seal_request(&Command::Status).unwrap();
        let request = cvm.accept(sealed.bytes).unwrap();
        (request.body.session(), request.code)
    };
    let (id, known) = code(&mut cvm);
    assert_eq!(known, 7);
    // Another's change, which this one missed; then one of its own.
    cvm.code_changed(id, 8, 9);
    assert_eq!(code(&mut cvm).1, 7);
    cvm.code_changed(id, 7, 8);
    assert_eq!(code(&mut cvm).1, 8);
}

#[test]
fn a_version_that_was_removed_does_not_come_back() {
    let mut versions = Versions::new();
    versions.installed("a", 3, &[1; 32]).unwrap();
    versions.check("a", 3, &[1; 32]).unwrap();
    assert_eq!(versions.removed("a", 2), Err((Refusal::OlderVersion, 3)));
    versions.removed("a", 3).unwrap();
    assert_eq!(versions.check("a", 3, &[1; 32]), Err((Refusal::SameVersion, 3)));
    versions.installed("a", 4, &[1; 32]).unwrap();
    // Of what was never there, too: an order to install it may be on its way.
    versions.removed("b", 5).unwrap();
    assert_eq!(versions.installed("b", 5, &[2; 32]), Err((Refusal::SameVersion, 5)));
    assert_eq!(versions.installed("b", 4, &[2; 32]), Err((Refusal::OlderVersion, 5)));
}

/// What the CVM makes of a content that a genuine client sealed, after `spoil` had its way with the plaintext.
fn content(content: &[u8], spoil: impl FnOnce(&mut Vec<u8>)) -> Result<String, DecodeError> {
    let pair = KeyPair::new(&mut rng(9));
    let (chain, enc) = keys::Chain::send(&pair.public, &CLAIMS, &mut rng(10)).unwrap();
    let key = chain.step().request;
    let (kind, session) = (Kind::Open, SessionId([1; 16]));
    let place = Place { kind, session, seq: 0, enc: Some(enc), key: &key };
    let mut record = sealed::seal(place, content.len(), |record| record.extend_from_slice(content)).unwrap();
    let (aad, body) = record.split_at_mut(64);
    key.open(0, aad, body).unwrap();
    let mut plaintext = body[..body.len() - TAG_BYTES].to_vec();
    spoil(&mut plaintext);
    let tag = key.seal(0, aad, &mut plaintext);
    record.truncate(64);
    record.extend_from_slice(&plaintext);
    record.extend_from_slice(&tag);
    let header = Header::split(&record).unwrap().0;
    let key = pair.receive(&enc, &CLAIMS).unwrap().step().request;
    let plaintext = sealed::Plaintext::open(record, &header, &key).unwrap();
    let content = plaintext.content()?;
    Command::decode(content[0], &content[2..]).map(|command| format!("{command:?}"))
}

#[test]
fn genuine_plaintexts_are_decoded_strictly() {
    let same = |_: &mut Vec<u8>| {};
    assert_eq!(content(&[4, 0], same).unwrap(), "Status");
    assert_eq!(content(&[4, 0], |bytes| bytes[255] = 1), Err(DecodeError::Padding));
    assert_eq!(content(&[4, 0], |bytes| bytes[6] = 1), Err(DecodeError::Padding));
    assert_eq!(content(&[4, 0], |bytes| bytes[1] = 1), Err(DecodeError::Bucket));
    assert_eq!(content(&[4, 0], |bytes| bytes[..4].fill(0xff)), Err(DecodeError::Bucket));
    assert_eq!(content(&[4, 0, 0], same), Err(DecodeError::Trailing { bytes: 1 }));
    assert_eq!(content(&[9, 0], same), Err(DecodeError::Choice { what: "a command", number: 9 }));
    assert_eq!(content(&[3, 0, 1, 0], same), Err(DecodeError::Short));
    assert_eq!(content(&[3, 0, 0, 0, 0, 0], same), Err(DecodeError::Name { bytes: 0 }));
    assert_eq!(content(&[3, 0, 1, 0, 0, 0, 0xff], same), Err(DecodeError::Text));
    let lists = |count: u32| {
        let mut bytes = vec![1, 0, 1, 0, 0, 0, b'a'];
        bytes.extend_from_slice(&count.to_le_bytes());
        content(&bytes, same)
    };
    assert_eq!(lists(u32::MAX), Err(DecodeError::List { entries: u32::MAX as usize }));
    assert_eq!(lists(MAX_LIST as u32), Err(DecodeError::Short));
}

#[test]
fn authority_is_for_one_command_at_one_place() {
    let (mut cvm, mut client) = opened(11);
    let [owner, broker, stranger] = [1, 2, 3].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    let public = |key: &SigningKey| key.verifying_key().to_bytes();
    let allowed = [public(&owner), public(&broker)];
    let (secret, other) = ([2; 32], [3; 32]);
    let mut ask = |command: &Command, key: Option<&SigningKey>| {
        let sealed = match key {
            Some(key) => client.seal_signed(command, key),
            None => client.seal_request(command),
        };
        cvm.accept(sealed.unwrap().bytes).unwrap().body
    };
    let body = ask(&install(&secret), Some(&broker));
    assert_eq!(body.authority(&allowed), Ok(public(&broker)));
    assert_eq!(body.command(), Ok(install(&secret)));
    assert_eq!(ask(&install(&secret), None).authority(&allowed), Err(Refusal::Unsigned));
    assert_eq!(ask(&install(&secret), Some(&stranger)).authority(&allowed), Err(Refusal::UnknownSigner));
    assert_eq!(body.authority(&[]), Err(Refusal::UnknownSigner));

    let place = |seq, session, claims| authority::Place { session, claims, seq };
    let (session, encoded) = (body.session(), |key| {
        let mut encoded = Vec::new();
        install(key).put_body(&mut encoded).unwrap();
        encoded
    });
    let here = place(5, session, CLAIMS);
    let signed = here.sign(2, &encoded(&secret), &owner);
    assert_eq!(here.verify(2, &encoded(&secret), &signed, &allowed), Ok(public(&owner)));
    let bad = Err(Refusal::BadSignature);
    assert_eq!(here.verify(2, &encoded(&other), &signed, &allowed), bad);
    assert_eq!(here.verify(3, &encoded(&secret), &signed, &allowed), bad);
    let mut claimed = signed;
    claimed[..32].copy_from_slice(&public(&broker));
    assert_eq!(here.verify(2, &encoded(&secret), &claimed, &allowed), bad);
    for there in [
        place(6, session, CLAIMS),
        place(5, SessionId([1; 16]), CLAIMS),
        place(5, session, ClaimsHash([8; 32])),
    ] {
        assert_eq!(there.verify(2, &encoded(&secret), &signed, &allowed), bad);
    }
}

#[test]
fn versions_do_not_go_back() {
    let mut versions = Versions::new();
    assert_eq!(versions.installed("a", 2, &[1; 32]), Ok(()));
    assert_eq!(versions.installed("a", 2, &[1; 32]), Ok(()));
    assert_eq!(versions.installed("a", 1, &[1; 32]), Err((Refusal::OlderVersion, 2)));
    assert_eq!(versions.installed("a", 2, &[2; 32]), Err((Refusal::SameVersion, 2)));
    assert_eq!(versions.installed("b", 1, &[2; 32]), Ok(()));
    assert_eq!(versions.installed("a", 3, &[2; 32]), Ok(()));
    for name in 2..Versions::MAX_NAMES {
        versions.installed(&name.to_string(), 1, &[0; 32]).unwrap();
    }
    assert_eq!(versions.check("c", 1, &[0; 32]), Err((Refusal::TooMany, 4096)));
    assert_eq!(versions.check("a", 3, &[2; 32]), Ok(()));
}

#[test]
fn nothing_of_a_tenant_prints() {
    let (mut cvm, mut client) = opened(12);
    let secret = [b's'; 32];
    let sealed = client.seal_request(&install(&secret)).unwrap();
    let request = cvm.accept(sealed.bytes.clone()).unwrap();
    let mut printed = format!("{request:?}{:?}{sealed:?}{client:?}{:?}", request.responder, install(&secret));
    printed += &format!("{:?}{:?}", invoke(b"stdin"), Command::Remove(Remove { name: "bank", version: 1 }));
    printed += &format!("{:?}", Reply::Refused { reason: Refusal::Busy, value: 1, detail: "hunter2" });
    for word in ["bank", "hunter2", "TOKEN", "hash", "secret", "stdin", "115", "input"] {
        assert!(!printed.contains(word), "{word} is in {printed}");
    }
    assert!(printed.contains("TlsService"));
}

#[test]
fn numbers_are_those_of_the_abi() {
    for number in 0..=6 {
        let ours = ExitKind::from_number(number).map(|kind| kind as u32);
        let theirs = nacre_abi::message::ExitKind::from_number(number.into()).map(|kind| kind as u32);
        assert_eq!(ours, theirs);
    }
    assert_eq!(command::UNLIMITED, nacre_abi::call::UNLIMITED);
    assert_eq!(MAX_PLAINTEXT_BYTES as u64, nacre_abi::call::MAX_REQUEST_BYTES);
    for (number, reason) in (1..).zip(Refusal::ALL) {
        assert_eq!((*reason as u32, Refusal::from_number(number)), (number, Some(*reason)));
    }
}

#[test]
fn plain_messages_are_framed() {
    let handshake = ClientHandshake::new(&mut rng(13));
    let request = handshake.request();
    assert_eq!(decode_evidence_request(&request), Ok(*handshake.nonce()));
    let id = SessionId([1; 16]);
    let offered = offer(id, b"evidence").unwrap();
    assert_eq!(decode_offer(&offered), Ok((id, &b"evidence"[..])));
    assert_eq!(decode_offer(&request), Err(RecordError::WrongEnd { found: 1 }));
    assert_eq!(decode_offer(&offered[..39]), Err(RecordError::Truncated { bytes: 39 }));
    assert_eq!(offer(id, &[0; MAX_EVIDENCE_BYTES + 1]), None);
}
