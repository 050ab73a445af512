//! Sealed CVMs, without a node: evidence that a policy judges, sessions, packages that are installed by order, calls whose host learns
//! nothing, and each way in which a host or a stranger can try to get around that.
#![forbid(unsafe_code)]

#[path = "calls_support/mod.rs"]
#[allow(dead_code)]
mod calls_support;
mod sealed_support;

use calls_support::{compiled, echo};
use nacre_attest::manifest::Mode;
use nacre_attest::package::Header;
use nacre_attest::verify::rule;
use nacre_session::command::{Command, Invoke, Logs, ModuleKind, Remove};
use nacre_session::reply::{ExitKind, Refusal, Reply};
use nacre_session::{ClientError, ClientSession, RecordError};
use nacre_vmm::evidence::EvidenceError;
use nacre_vmm::program::{Exit, ProgramSpec, RunOptions};
use nacre_vmm::{Cvm, CvmError};
use sealed_support::{Package, World, answer, encoded_evidence, invoke, relay};

/// What a command that needs authority is answered, signed by `key` or by nobody.
fn ordered(world: &World, cvm: &Cvm, session: &mut ClientSession, command: &Command<'_>) -> String {
    let record = session.seal_signed(command, &world.owner).unwrap();
    format!("{:?}", answer(cvm, session, &record.bytes).reply().unwrap())
}

fn refusal(world: &World, cvm: &Cvm, session: &mut ClientSession, package: &Package) -> Refusal {
    let record = session.seal_signed(&package.order(&[]), &world.owner).unwrap();
    match answer(cvm, session, &record.bytes).reply().unwrap() {
        Reply::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sealed_call_is_between_its_client_and_the_cvm() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let cvm = world.launch();
    let mut session = world.open(&cvm);
    let package = world.package("echo", 1, ModuleKind::Action, &echo());
    let _module = world.install(&cvm, &mut session, &package);
    for len in [0, 1000, 70_000, 3 << 20] {
        let stdin: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let record = session.seal_request(&invoke("echo", &stdin)).unwrap();
        let response = answer(&cvm, &mut session, &record.bytes);
        let Reply::Outcome(outcome) = response.reply().unwrap() else { panic!("{:?}", response.reply()) };
        assert_eq!((outcome.exit, outcome.code), (ExitKind::Code, 0), "{}", outcome.text);
        assert!(outcome.stdout == stdin, "{len} bytes came back as {}", outcome.stdout.len());
        assert_eq!(outcome.stderr, b"echo\0SECRET=planted-secret\0E=given\0");
        assert!(outcome.ran_ns > 0);
    }
    // Another client, at the same time.
    let mut other = world.open(&cvm);
    let record = other.seal_request(&invoke("nothing", b"")).unwrap();
    let response = answer(&cvm, &mut other, &record.bytes);
    assert!(matches!(response.reply().unwrap(), Reply::Refused { reason: Refusal::UnknownAction, .. }));
    // Evidence lists the code from now on, and a policy may insist on it.
    let (evidence, _) = world.evidence(&cvm, &[9; 32], &world.policy());
    assert_eq!(evidence.code.len(), 1);
}

#[test]
fn traps_and_limits_are_told_to_the_client_alone() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let cvm = world.launch();
    let mut session = world.open(&cvm);
    let trap = compiled(r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#);
    let package = world.package("trap", 1, ModuleKind::Action, &trap);
    let _module = world.install(&cvm, &mut session, &package);
    let record = session.seal_request(&invoke("trap", b"")).unwrap();
    let response = answer(&cvm, &mut session, &record.bytes);
    let Reply::Outcome(outcome) = response.reply().unwrap() else { panic!("no outcome") };
    assert_eq!(outcome.exit, ExitKind::Trap);
    assert!(outcome.text.contains("unreachable"), "{}", outcome.text);
}

#[test]
fn records_are_taken_once_in_order_and_unchanged() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let cvm = world.launch();
    let mut session = world.open(&cvm);
    let package = world.package("echo", 1, ModuleKind::Action, &echo());
    let _module = world.install(&cvm, &mut session, &package);
    let turned_away =
        |session: &mut ClientSession, record: &[u8]| match session.open_response(relay(&cvm, record)) {
            Err(ClientError::TurnedAway { error, .. }) => error,
            other => panic!("{other:?}"),
        };
    let first = session.seal_request(&invoke("echo", b"first")).unwrap();
    let second = session.seal_request(&invoke("echo", b"second")).unwrap();
    assert_eq!(turned_away(&mut session, &second.bytes), RecordError::OutOfOrder { expected: first.seq });
    let mut forged = first.bytes.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(turned_away(&mut session, &forged), RecordError::Forged);
    assert!(matches!(turned_away(&mut session, &first.bytes[..40]), RecordError::Truncated { .. }));
    for (record, said) in [(&first, &b"first"[..]), (&second, b"second")] {
        let response = answer(&cvm, &mut session, &record.bytes);
        assert!(matches!(response.reply().unwrap(), Reply::Outcome(outcome) if outcome.stdout == said));
    }
    let replayed = relay(&cvm, &second.bytes);
    let next = second.seq + 1;
    let rejected = nacre_session::Rejected::decode(&replayed).unwrap();
    assert_eq!(rejected.error, RecordError::Replayed { next });
    // Another CVM of the same owner knows nothing of the session: the client notices, and has sent nothing that is of use there.
    let swapped = world.launch();
    let third = session.seal_request(&invoke("echo", b"third")).unwrap();
    let rejected = nacre_session::Rejected::decode(&relay(&swapped, &third.bytes)).unwrap();
    assert_eq!(rejected.error, RecordError::UnknownSession);
    let response = answer(&cvm, &mut session, &third.bytes);
    assert!(matches!(response.reply().unwrap(), Reply::Outcome(outcome) if outcome.stdout == b"third"));
    // Garbage is answered like anything else.
    for garbage in [&b""[..], &[0; 7], &[255; 4096]] {
        assert!(nacre_session::Rejected::decode(&relay(&cvm, garbage)).is_some());
    }
}

#[test]
fn a_sealed_cvm_takes_no_plain_code_and_an_open_one_no_orders() {
    let Some(mut world) = World::new("sealed", Mode::Sealed) else { return };
    let cvm = world.launch();
    match cvm.load_module(echo().file()) {
        Err(CvmError::Module(Exit::Error(text))) => assert!(text.starts_with("sealed-cvm: "), "{text}"),
        other => panic!("{:?}", other.map(|_| "loaded")),
    }
    let code = echo();
    let program = cvm.load(&ProgramSpec { code: code.file(), ..ProgramSpec::default() }).unwrap();
    match program.run_to_end().unwrap().0 {
        Exit::Error(text) => assert!(text.starts_with("sealed-cvm: "), "{text}"),
        other => panic!("{other:?}"),
    }
    world.manifest.mode = Mode::Open;
    let open = world.launch();
    open.load_module(code.file()).unwrap();
    let mut session = world.open(&open);
    let package = world.package("echo", 1, ModuleKind::Action, &code);
    let _module = open.load_package(&package.bytes).unwrap();
    assert_eq!(refusal(&world, &open, &mut session, &package), Refusal::OpenMode);
}

#[test]
fn orders_need_authority_and_code_needs_its_compiler() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let cvm = world.launch();
    let mut session = world.open(&cvm);
    let good = world.package("echo", 5, ModuleKind::Action, &echo());
    assert_eq!(refusal(&world, &cvm, &mut session, &good), Refusal::PackageMissing);
    let _module = cvm.load_package(&good.bytes).unwrap();
    let unsigned = session.seal_request(&good.order(&[])).unwrap();
    let response = answer(&cvm, &mut session, &unsigned.bytes);
    assert!(matches!(response.reply().unwrap(), Reply::Refused { reason: Refusal::Unsigned, .. }));
    let stranger = session.seal_signed(&good.order(&[]), &world.compiler).unwrap();
    let response = answer(&cvm, &mut session, &stranger.bytes);
    assert!(matches!(response.reply().unwrap(), Reply::Refused { reason: Refusal::UnknownSigner, .. }));
    // Code that another key has signed, and code that is not what was signed for.
    let foreign = world.package_signed("echo", 5, ModuleKind::Action, echo().file(), &world.owner);
    let _foreign = cvm.load_package(&foreign.bytes).unwrap();
    assert_eq!(refusal(&world, &cvm, &mut session, &foreign), Refusal::CodeRejected);
    let renamed = Package { name: "other".into(), ..world.package("echo", 5, ModuleKind::Action, &echo()) };
    let _renamed = cvm.load_package(&renamed.bytes).unwrap();
    assert_eq!(refusal(&world, &cvm, &mut session, &renamed), Refusal::CodeRejected);
    let wrong_key = Package { key: [9; 32], ..world.package("echo", 5, ModuleKind::Action, &echo()) };
    let _wrong = cvm.load_package(&wrong_key.bytes).unwrap();
    assert_eq!(refusal(&world, &cvm, &mut session, &wrong_key), Refusal::PackageDamaged);
    let garbage = world.package_signed("echo", 5, ModuleKind::Action, &[7; 9000], &world.compiler);
    let _garbage = cvm.load_package(&garbage.bytes).unwrap();
    assert_eq!(refusal(&world, &cvm, &mut session, &garbage), Refusal::CodeIncompatible);
    // Bytes that are no package are refused at once.
    assert!(matches!(cvm.load_package(&[1; 500]), Err(CvmError::Module(Exit::Error(_)))));
    assert!(matches!(cvm.load_package(&good.bytes[..good.bytes.len() - 1]), Err(CvmError::Module(_))));
    // A broker of the manifest may, and nothing older follows.
    let broker = session.seal_signed(&good.order(&[]), &world.broker).unwrap();
    let response = answer(&cvm, &mut session, &broker.bytes);
    assert!(matches!(response.reply().unwrap(), Reply::Installed { version: 5, .. }));
    let older = world.package("echo", 4, ModuleKind::Action, &echo());
    let _older = cvm.load_package(&older.bytes).unwrap();
    assert_eq!(refusal(&world, &cvm, &mut session, &older), Refusal::OlderVersion);
    let same = world.package("echo", 5, ModuleKind::Action, &echo());
    let _same = cvm.load_package(&same.bytes).unwrap();
    assert_eq!(refusal(&world, &cvm, &mut session, &same), Refusal::SameVersion);
    let status = ordered(&world, &cvm, &mut session, &Command::Status);
    assert_eq!(status, "Status(1 entries)");
    let remove = |version| Command::Remove(Remove { name: "echo", version });
    assert!(ordered(&world, &cvm, &mut session, &remove(4)).contains("OtherVersion"));
    assert_eq!(ordered(&world, &cvm, &mut session, &remove(5)), "Removed { version: 5 }");
    assert_eq!(refusal(&world, &cvm, &mut session, &older), Refusal::OlderVersion, "also after it is gone");
}

/// How a call is refused.
fn call_refused(cvm: &Cvm, session: &mut ClientSession, call: &Command<'_>) -> Refusal {
    let record = session.seal_request(call).unwrap();
    match answer(cvm, session, &record.bytes).reply().unwrap() {
        Reply::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_reaches_code_that_its_sender_has_not_judged() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let cvm = world.launch();
    let (mut owner, mut early) = (world.open(&cvm), world.open(&cvm));
    let first = world.package("echo", 1, ModuleKind::Action, &echo());
    let _first = world.install(&cvm, &mut owner, &first);
    // Its evidence listed nothing; the owner knows what it has installed.
    assert_eq!(call_refused(&cvm, &mut early, &invoke("echo", b"x")), Refusal::CodeChanged);
    let record = owner.seal_request(&invoke("echo", b"x")).unwrap();
    assert!(matches!(answer(&cvm, &mut owner, &record.bytes).reply().unwrap(), Reply::Outcome(_)));
    let mut caller = world.open(&cvm);
    let record = caller.seal_request(&invoke("echo", b"x")).unwrap();
    assert!(matches!(answer(&cvm, &mut caller, &record.bytes).reply().unwrap(), Reply::Outcome(_)));
    // Another version: whoever judged the first one has to look again.
    let _second = world.install(&cvm, &mut owner, &world.package("echo", 2, ModuleKind::Action, &echo()));
    assert_eq!(call_refused(&cvm, &mut caller, &invoke("echo", b"x")), Refusal::CodeChanged);
    // An order to install the version that was removed comes late.
    let remove = Command::Remove(Remove { name: "echo", version: 2 });
    assert_eq!(ordered(&world, &cvm, &mut owner, &remove), "Removed { version: 2 }");
    let held = world.package("late", 3, ModuleKind::Action, &echo());
    let _held = cvm.load_package(&held.bytes).unwrap();
    let remove = Command::Remove(Remove { name: "late", version: 3 });
    assert_eq!(ordered(&world, &cvm, &mut owner, &remove), "Removed { version: 3 }");
    assert_eq!(refusal(&world, &cvm, &mut owner, &held), Refusal::SameVersion);
}

#[test]
fn callers_do_not_replace_what_the_owner_has_set() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let cvm = world.launch();
    let mut session = world.open(&cvm);
    let _module = world.install(&cvm, &mut session, &world.package("echo", 1, ModuleKind::Action, &echo()));
    let bad = [
        vec![("SECRET", "mine")],
        vec![("A", "1"), ("A", "2")],
        vec![("", "1")],
        vec![("SECRET=mine", "1")],
        vec![("A\0B", "1")],
    ];
    for env in bad {
        let Command::Invoke(call) = invoke("echo", b"") else { unreachable!() };
        let call = Command::Invoke(Invoke { env: env.clone(), ..call });
        assert_eq!(call_refused(&cvm, &mut session, &call), Refusal::BadVariable, "{env:?}");
    }
}

/// A service that writes two lines, and ends at once by a trap.
const WRITER: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "a secret line\n")
  (func $put (param $fd i32)
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 14))
    (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16))))
  (func (export "_start") (call $put (i32.const 1)) (call $put (i32.const 2)) unreachable))"#;

#[test]
fn what_a_service_writes_is_for_its_owner() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let cvm = world.launch();
    let mut session = world.open(&cvm);
    let service = world.package("writer", 1, ModuleKind::Service, &compiled(WRITER));
    let _service = world.install(&cvm, &mut session, &service);
    let _action = world.install(&cvm, &mut session, &world.package("echo", 1, ModuleKind::Action, &echo()));
    let id = Header::parse(&service.bytes).unwrap().id;
    let mut read = |name: &str, from: u64| {
        let record = session.seal_signed(&Command::Logs(Logs { name, from }), &world.broker).unwrap();
        match answer(&cvm, &mut session, &record.bytes).reply().unwrap() {
            Reply::Logs { first, bytes } => Ok((first, String::from_utf8(bytes.to_vec()).unwrap())),
            Reply::Refused { reason, .. } => Err(reason),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read("writer", 0), Ok((0, String::new())));
    assert_eq!(read("echo", 0), Err(Refusal::NotAService));
    assert_eq!(read("nobody", 0), Err(Refusal::UnknownAction));
    let mut all = String::new();
    for _ in 0..3 {
        let program = cvm.load_service(id, RunOptions::default()).unwrap();
        let (exit, stdout, stderr) = program.run_to_end().unwrap();
        // The host learns that it trapped, and no more.
        assert_eq!((exit, stdout.len(), stderr.len()), (Exit::Trap(String::new()), 0, 0));
        let seen = all.len() as u64;
        let (first, more) = read("writer", seen).unwrap();
        assert_eq!(first, seen);
        assert!(more.starts_with("a secret line\na secret line\n[ended: "), "{more}");
        assert!(more.contains("unreachable") && more.ends_with("]\n"), "{more}");
        all += &more;
    }
    assert_eq!(read("writer", 0), Ok((0, all.clone())));
    assert_eq!(read("writer", u64::MAX), Ok((all.len() as u64, String::new())));
    // A host that keeps a service running after it was replaced can't hide its code.
    let codes = |world: &World| world.evidence(&cvm, &[9; 32], &world.policy()).0.code.len();
    assert_eq!(codes(&world), 2, "the service and the action");
    let kept = cvm.load_service(id, RunOptions::default()).unwrap();
    kept.run_to_end().unwrap();
    let other =
        world.package("writer", 2, ModuleKind::Service, &compiled(&WRITER.replace("secret", "newer")));
    let _other = world.install(&cvm, &mut session, &other);
    assert_eq!(codes(&world), 3, "the old one's too, as long as its program is there");
    // Callers without authority get nothing.
    let unsigned = session.seal_request(&Command::Logs(Logs { name: "writer", from: 0 })).unwrap();
    let response = answer(&cvm, &mut session, &unsigned.bytes);
    assert!(matches!(response.reply().unwrap(), Reply::Refused { reason: Refusal::Unsigned, .. }));
}

#[test]
fn evidence_that_lies_is_rejected_by_the_rule_it_breaks() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let failed = |cvm: &Cvm, policy: &nacre_attest::policy::Policy| -> Vec<&'static str> {
        let (_, verdict) = world.evidence(cvm, &[3; 32], policy);
        verdict.failed().map(|rule| rule.name).collect()
    };
    let honest = world.launch();
    assert_eq!(failed(&honest, &world.policy()), [""; 0]);
    let stricter = nacre_attest::policy::Policy { allow_software_platform: false, ..world.policy() };
    assert!(failed(&honest, &stricter).contains(&rule::SOFTWARE_PLATFORM));
    let liar = world
        .launch_on(sealed_support::Software { lie: |fields| fields.measurement[0] ^= 1, ..world.software() });
    assert_eq!(failed(&liar, &world.policy()), [rule::MEASUREMENT]);
    let debugging =
        world.launch_on(sealed_support::Software { lie: |fields| fields.debug = true, ..world.software() });
    assert_eq!(failed(&debugging, &world.policy()), [rule::DEBUG]);
    // Lies about what the guest itself binds are noticed by the guest.
    for lie in
        [(|fields| fields.report_data[5] ^= 1) as fn(&mut nacre_attest::software::ReportFields), |fields| {
            fields.host_data[5] ^= 1
        }]
    {
        let liar = world.launch_on(sealed_support::Software { lie, ..world.software() });
        let refused = encoded_evidence(&liar, &[3; 32]);
        assert!(matches!(refused, Err(EvidenceError::Refused(text)) if text.starts_with("report: ")));
    }
    let silent = world.launch_on(sealed_support::Software { silent: true, ..world.software() });
    let refused = encoded_evidence(&silent, &[3; 32]);
    assert!(matches!(refused, Err(EvidenceError::Refused(text)) if text.contains("makes none")));
    // A CVM that was given another manifest than the report says.
    let other = nacre_attest::manifest::Manifest { version: 4, ..world.manifest.clone() };
    let signed = other.sign(&world.owner).unwrap();
    let swapped = world.launch_with(world.software(), world.manifest.hash(), Some(signed.encode().into()));
    assert!(matches!(encoded_evidence(&swapped, &[3; 32]), Err(EvidenceError::Refused(_))));
    // Without one it proves so.
    let bare = world.launch_with(world.software(), [0; 32], None);
    assert!(failed(&bare, &world.policy()).contains(&rule::MANIFEST_OWNER));
    assert!(matches!(
        encoded_evidence(&Cvm::launch(nacre_vmm::CvmConfig::default()).unwrap(), &[3; 32]),
        Err(EvidenceError::NoPlatform)
    ));
}

#[test]
fn a_manifest_that_nobody_signed_ends_the_launch() {
    let Some(world) = World::new("sealed", Mode::Sealed) else { return };
    let mut signed = world.manifest.sign(&world.owner).unwrap();
    signed.signature[3] ^= 1;
    let cvm = world.launch_with(world.software(), signed.hash(), Some(signed.encode().into()));
    assert_eq!(encoded_evidence(&cvm, &[3; 32]), Err(EvidenceError::Ended));
}
