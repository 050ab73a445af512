//! Sealed sessions with an honest node and with one that is not: what a client gets, and what the node has seen by then.

mod support;

use nacre_attest::manifest::Mode;
use nacre_attest::policy::ManifestRule;
use nacre_attest::verify::rule;
use nacre_client::deploy::{Order, Removal, deploy, remove};
use nacre_client::http::{Bounds, Repeat};
use nacre_client::{
    Code, DeployError, Expectations, ModuleKind, Node, NodeError, Policy, Refusal, SealedSession,
    SessionError, SigningKey, Store,
};
use support::{FakeNode, Lie, contains, keys, manifest, policy};

/// What nobody but the CVM may see.
const PLANTED: &[u8] = b"planted-plaintext-4711";
const SECRET: &str = "planted-secret-0815";

fn code() -> Code {
    // What it is does not matter here, but that it is not seen.
    let cwasm = PLANTED.iter().copied().cycle().take(200_000).collect();
    Code { cwasm, module_sha256: [1; 32], fingerprint: [2; 32] }
}

struct Setup {
    signed: nacre_client::SignedManifest,
    policy: Policy,
    code: Code,
    env: Vec<(String, String)>,
    compiler: SigningKey,
    authority: SigningKey,
}

impl Setup {
    fn new() -> Setup {
        let keys = keys();
        Setup {
            signed: manifest(1),
            policy: policy(),
            code: code(),
            env: vec![("TOKEN".to_owned(), SECRET.to_owned())],
            compiler: keys.compiler,
            authority: keys.owner,
        }
    }

    fn order(&self) -> Order<'_> {
        Order {
            manifest: &self.signed,
            policy: &self.policy,
            code: &self.code,
            name: "mirror",
            version: None,
            kind: ModuleKind::Action,
            env: &self.env,
            service: None,
            compiler: &self.compiler,
            authority: &self.authority,
            store: None,
        }
    }

    async fn deployed(&self) -> FakeNode {
        let node = FakeNode::start().await;
        node.state().manifest = None;
        deploy(&node.client(), &self.order(), &Expectations::new()).await.unwrap();
        node
    }
}

async fn open(node: &FakeNode) -> SealedSession {
    SealedSession::open(&node.client(), &policy(), &Expectations::new()).await.unwrap()
}

#[tokio::test]
async fn what_is_sealed_the_node_does_not_see() {
    let setup = Setup::new();
    let node = setup.deployed().await;
    let mut session = open(&node).await;
    assert!(session.verdict().accepted());
    for round in 0..5 {
        let outcome = session.call("mirror", PLANTED).await.unwrap();
        let back: Vec<u8> = PLANTED.iter().rev().copied().collect();
        assert!(outcome.succeeded() && outcome.stdout == back, "round {round}");
        assert!(String::from_utf8_lossy(&outcome.stderr).contains(SECRET));
    }
    let seen = node.bytes_seen();
    for secret in [PLANTED, SECRET.as_bytes(), b"mirror", b"TOKEN"] {
        assert!(!contains(&seen, secret), "{}", String::from_utf8_lossy(secret));
    }
    // The positive control: what is not sealed is found in the same bytes.
    assert!(contains(&seen, &manifest(1).encode()));
    assert_eq!(session.logs("mirror", 3, &setup.authority).await.unwrap(), (3, b"a line\n".to_vec()));
    assert_eq!(node.state().cvm.as_ref().unwrap().ran.len(), 5);
    // Evidence lists what runs.
    assert_eq!(open(&node).await.evidence().code.len(), 1);
}

#[tokio::test]
async fn rejected_evidence_is_named_and_nothing_is_sent() {
    let setup = Setup::new();
    let lies = [
        (Lie::OtherNonce, rule::NONCE),
        (Lie::OtherGuest, rule::MEASUREMENT),
        (Lie::Debug, rule::DEBUG),
        (Lie::OwnKey, rule::CLAIMS),
    ];
    for (lie, rule) in lies {
        let node = FakeNode::start().await;
        node.lie(lie.clone());
        let error = SealedSession::open(&node.client(), &policy(), &Expectations::new()).await.unwrap_err();
        let rejection = error.rejection().unwrap_or_else(|| panic!("{lie:?}: {error}"));
        assert!(rejection.verdict.rule(rule).is_some_and(|rule| !rule.passed), "{lie:?}: {error}");
        assert_eq!(matches!(error, SessionError::WrongNonce(_)), lie == Lie::OtherNonce);
        assert!(error.nothing_ran());
        // A deploy into it: manifest and nonce is all the node gets.
        let error = deploy(&node.client(), &setup.order(), &Expectations::new()).await.unwrap_err();
        assert!(
            matches!(&error, DeployError::Session(error) if error.rejection().is_some()),
            "{lie:?}: {error}"
        );
        let state = node.state();
        let paths: Vec<&str> = state.seen.iter().map(|(path, _)| path.as_str()).collect();
        let evidence = "/v1/sealed/evidence?provisioning=true";
        assert_eq!(paths, ["/v1/sealed/evidence", "/v1/sealed/manifest", evidence], "{lie:?}");
    }
}

#[tokio::test]
async fn offers_that_are_none_are_named() {
    let node = FakeNode::start().await;
    let open =
        async || SealedSession::open(&node.client(), &policy(), &Expectations::new()).await.unwrap_err();
    node.lie(Lie::OtherSession);
    assert!(matches!(open().await, SessionError::OtherSession));
    node.lie(Lie::Cut);
    assert!(matches!(open().await, SessionError::Format(_)));
    assert_eq!(node.records_seen(), 0);
}

#[tokio::test]
async fn policies_have_to_say_whose_cvm() {
    let node = FakeNode::start().await;
    let open = async |policy: &Policy| {
        SealedSession::open(&node.client(), policy, &Expectations::new()).await.unwrap_err()
    };
    assert!(matches!(open(&Policy::default()).await, SessionError::NoOwner));
    let rule = policy().manifest.unwrap();
    let open_mode = Policy { manifest: Some(ManifestRule { mode: Mode::Open, ..rule }), ..policy() };
    assert!(matches!(open(&open_mode).await, SessionError::OpenPolicy));
    // Not even a nonce went to the node.
    assert!(node.state().seen.is_empty());
    let newer = Policy { manifest: Some(ManifestRule { minimum_version: 2, ..rule }), ..policy() };
    let error = open(&newer).await;
    assert!(error.to_string().contains(rule::MANIFEST_VERSION), "{error}");
    let genuine = Policy { allow_software_platform: false, ..policy() };
    assert!(open(&genuine).await.to_string().contains(rule::SOFTWARE_PLATFORM));
    // Only dates long gone are judged by a clock that is wrong.
    let expect = Expectations { now: Some(1), ..Expectations::new() };
    let error = SealedSession::open(&node.client(), &policy(), &expect).await.unwrap_err();
    assert!(error.to_string().contains(rule::CERTIFICATE_VALIDITY), "{error}");
    assert_eq!(node.records_seen(), 0);
}

#[tokio::test]
async fn a_swapped_cvm_ends_the_session_and_nothing_runs_twice() {
    let setup = Setup::new();
    let node = setup.deployed().await;
    let mut session = open(&node).await;
    session.call("mirror", b"one").await.unwrap();
    // None runs.
    node.restart();
    let error = session.call("mirror", PLANTED).await.unwrap_err();
    assert!(matches!(error, SessionError::Lost { may_have_run: true, .. }), "{error}");
    assert!(error.to_string().contains("may have run") && !error.nothing_ran());
    let records = node.records_seen();
    // Another one runs, under the same manifest: the client does not go on by itself.
    deploy(&node.client(), &setup.order(), &Expectations::new()).await.unwrap();
    let again = session.call("mirror", PLANTED).await.unwrap_err();
    assert!(matches!(again, SessionError::Lost { may_have_run: false, .. }), "{again}");
    assert!(node.records_seen() > records, "the deploy sent some");

    let mut session = open(&node).await;
    session.call("mirror", b"one").await.unwrap();
    let first = node.state().cvm.take().unwrap();
    deploy(&node.client(), &setup.order(), &Expectations::new()).await.unwrap();
    let error = session.call("mirror", PLANTED).await.unwrap_err();
    assert!(matches!(error, SessionError::Lost { may_have_run: true, .. }), "{error}");
    assert!(node.state().cvm.as_ref().unwrap().ran.is_empty());
    assert_eq!(first.ran.len(), 1);
}

#[tokio::test]
async fn repeated_reordered_and_forged_messages_are_named() {
    let setup = Setup::new();
    let node = setup.deployed().await;
    let lied = async |lie: Lie| {
        let mut session = open(&node).await;
        session.call("mirror", b"one").await.unwrap();
        node.lie(lie);
        let error = session.call("mirror", b"two").await.unwrap_err();
        node.lie(Lie::None);
        (error, session)
    };
    let (error, mut session) = lied(Lie::Replay).await;
    assert!(matches!(error, SessionError::Replayed), "{error}");
    // It never reached the CVM: what follows is out of order, and is not run.
    let error = session.call("mirror", b"three").await.unwrap_err();
    assert!(matches!(error, SessionError::OutOfOrder { expected: 1 }), "{error}");
    let (error, mut session) = lied(Lie::Twice).await;
    assert!(matches!(error, SessionError::Replayed) && !error.nothing_ran(), "{error}");
    // That one did arrive, once.
    session.call("mirror", b"three").await.unwrap();
    let ran = || node.state().cvm.as_ref().unwrap().ran.iter().filter(|(_, input)| input == b"two").count();
    assert_eq!(ran(), 1);
    let (error, _) = lied(Lie::Swallow).await;
    assert!(matches!(error, SessionError::OutOfOrder { expected: 1 }), "{error}");
    for lie in [Lie::Forge, Lie::ForgeAnswer] {
        let (error, mut session) = lied(lie.clone()).await;
        assert!(matches!(error, SessionError::Forged) && !error.nothing_ran(), "{lie:?}: {error}");
        let next = session.call("mirror", b"three").await;
        assert_eq!(next.is_ok(), lie == Lie::ForgeAnswer, "{lie:?}");
    }
}

#[tokio::test]
async fn broken_connections_and_busy_nodes_cost_no_call() {
    let setup = Setup::new();
    let node = setup.deployed().await;
    let mut session = open(&node).await;
    session.call("mirror", b"one").await.unwrap();
    // Busy: nothing was handed over, the same bytes go again.
    node.lie(Lie::Busy(3));
    session.call("mirror", b"two").await.unwrap();
    // The answer is lost: the same bytes again, which the CVM knows; it does not run them twice.
    node.lie(Lie::Break(1));
    let error = session.call("mirror", b"three").await.unwrap_err();
    assert!(matches!(error, SessionError::Replayed), "{error}");
    session.call("mirror", b"four").await.unwrap();
    let inputs: Vec<Vec<u8>> =
        node.state().cvm.as_ref().unwrap().ran.iter().map(|(_, input)| input.clone()).collect();
    assert_eq!(inputs, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec(), b"four".to_vec()]);
}

#[tokio::test]
async fn nobody_there_is_named_and_nothing_ran() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let node = Node::http(&format!("http://127.0.0.1:{port}")).unwrap();
    let error = SealedSession::open(&node, &policy(), &Expectations::new()).await.unwrap_err();
    assert!(matches!(error, SessionError::Node(NodeError::Unreachable { .. })) && error.nothing_ran());
}

#[tokio::test]
async fn only_owner_and_brokers_command() {
    let setup = Setup::new();
    let node = setup.deployed().await;
    let mut session = open(&node).await;
    let records = node.records_seen();
    for key in [&setup.compiler, &SigningKey::from_bytes(&[9; 32])] {
        assert!(matches!(session.status(key).await, Err(SessionError::NoAuthority)));
    }
    assert_eq!(node.records_seen(), records, "it was not even sent");
    for key in [keys().owner, keys().broker] {
        assert_eq!(session.status(&key).await.unwrap()[0].name, "mirror");
    }
    assert!(matches!(
        session.call("nothing", b"").await,
        Err(SessionError::Refused { reason: Refusal::UnknownAction, .. })
    ));
}

#[tokio::test]
async fn deploys_judge_first_and_count_versions() {
    let mut setup = Setup::new();
    let node = setup.deployed().await;
    let client = node.client();
    let second = deploy(&client, &setup.order(), &Expectations::new()).await.unwrap();
    assert_eq!(second.release.version, 2);
    let refused = deploy(&client, &Order { version: Some(1), ..setup.order() }, &Expectations::new()).await;
    let error = refused.unwrap_err();
    assert!(
        matches!(
            &error,
            DeployError::Session(SessionError::Refused { reason: Refusal::OlderVersion, value: 2, .. })
        ),
        "{error}"
    );
    // Whose package could be opened by nobody is not left with the node.
    assert!(node.state().packages.is_empty());

    let before = node.state().seen.len();
    setup.compiler = SigningKey::from_bytes(&[9; 32]);
    let error = deploy(&client, &setup.order(), &Expectations::new()).await.unwrap_err();
    assert!(matches!(error, DeployError::Compiler), "{error}");
    setup.compiler = keys().compiler;
    setup.authority = keys().compiler;
    let error = deploy(&client, &setup.order(), &Expectations::new()).await.unwrap_err();
    assert!(matches!(error, DeployError::Session(SessionError::NoAuthority)), "{error}");
    setup.authority = keys().owner;
    setup.signed.signature[0] ^= 1;
    let error = deploy(&client, &setup.order(), &Expectations::new()).await.unwrap_err();
    assert!(matches!(error, DeployError::Manifest(_)), "{error}");
    setup.signed = manifest(1);
    setup.policy.manifest = Some(ManifestRule { owner: [7; 32], minimum_version: 1, mode: Mode::Sealed });
    let error = deploy(&client, &setup.order(), &Expectations::new()).await.unwrap_err();
    assert!(matches!(error, DeployError::Policy(_)), "{error}");
    assert_eq!(node.state().seen.len(), before, "all of that is judged before the node is asked");
}

#[tokio::test]
async fn what_is_removed_is_gone_from_cvm_node_and_store() {
    let setup = Setup::new();
    let node = FakeNode::start().await;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let order = Order { store: Some(&store), ..setup.order() };
    deploy(&node.client(), &order, &Expectations::new()).await.unwrap();
    assert_eq!(node.state().packages.len(), 1);
    let removal =
        Removal { policy: &setup.policy, name: "mirror", authority: &setup.authority, store: Some(&store) };
    let version = remove(&node.client(), &removal, &Expectations::new()).await.unwrap();
    assert_eq!(version, 1);
    let unknown = remove(&node.client(), &removal, &Expectations::new()).await;
    assert!(matches!(unknown, Err(DeployError::Unknown)));
    assert!(node.state().packages.is_empty());
    assert!(node.state().cvm.as_ref().unwrap().installed.is_empty());
    // The order goes out also when nothing is there: another one, to install it, may be held back.
    assert_eq!(
        node.state().cvm.as_ref().unwrap().removed,
        [("mirror".to_owned(), 1), ("mirror".to_owned(), 1)]
    );
    // Its version is not forgotten.
    let next = deploy(&node.client(), &order, &Expectations::new()).await.unwrap();
    assert_eq!(next.release.version, 2);
}

#[tokio::test]
async fn a_node_can_not_say_that_nothing_ran() {
    let setup = Setup::new();
    let node = setup.deployed().await;
    for lie in [Lie::Busy429AfterRun, Lie::FailureExhausted] {
        let mut session = open(&node).await;
        session.call("mirror", b"one").await.unwrap();
        let ran = node.state().cvm.as_ref().unwrap().ran.len();
        node.lie(lie.clone());
        let error = session.call("mirror", b"two").await.unwrap_err();
        node.lie(Lie::None);
        assert!(!error.nothing_ran(), "{lie:?}: {error}");
        assert!(!matches!(error, SessionError::Exhausted), "{lie:?}");
        assert_eq!(node.state().cvm.as_ref().unwrap().ran.len(), ran + 1, "{lie:?}: it did run, once");
    }
}

#[tokio::test]
async fn other_code_gets_no_input_before_it_has_proved_itself() {
    let mut setup = Setup::new();
    let node = setup.deployed().await;
    let mut session = open(&node).await;
    let first = session.evidence().claims.id.clone();
    session.call("mirror", b"one").await.unwrap();
    let hash = session.evidence().code[0];
    let pinned = Policy { code: Some(vec![hash]), ..policy() };
    let mut strict = SealedSession::open(&node.client(), &pinned, &Expectations::new()).await.unwrap();
    strict.call("mirror", b"two").await.unwrap();
    // The same code, installed anew: both go on, in other sessions.
    deploy(&node.client(), &setup.order(), &Expectations::new()).await.unwrap();
    session.call("mirror", b"three").await.unwrap();
    strict.call("mirror", b"four").await.unwrap();
    assert_ne!(session.evidence().claims.id, first, "there is new evidence");
    // Other code: whoever pins the first sends it nothing.
    setup.code.cwasm = vec![7; 1000];
    deploy(&node.client(), &setup.order(), &Expectations::new()).await.unwrap();
    let error = strict.call("mirror", b"five").await.unwrap_err();
    assert!(matches!(error, SessionError::Rejected(_)) && error.nothing_ran(), "{error}");
    session.call("mirror", b"six").await.unwrap();
    let state = node.state();
    let inputs: Vec<&[u8]> = state.cvm.as_ref().unwrap().ran.iter().map(|(_, input)| &input[..]).collect();
    assert_eq!(inputs, [b"one".as_slice(), b"two", b"three", b"four", b"six"]);
}

#[tokio::test]
async fn a_cvm_without_code_gets_no_input_if_the_policy_lists_some() {
    let node = FakeNode::start().await;
    let pinned = Policy { code: Some(vec![[1; 32]]), ..policy() };
    let expect = Expectations { patience: std::time::Duration::from_millis(150), ..Expectations::new() };
    let mut session = SealedSession::open(&node.client(), &pinned, &expect).await.unwrap();
    let error = session.call("mirror", PLANTED).await.unwrap_err();
    assert!(matches!(error, SessionError::NoCode) && error.nothing_ran(), "{error}");
    assert_eq!(node.records_seen(), 0);
    let asked = node.state().seen.iter().filter(|(path, _)| path.starts_with("/v1/sealed/evidence")).count();
    assert!(asked >= 2, "it has looked again");
}

#[tokio::test]
async fn answers_that_are_too_long_or_never_come_are_no_answers() {
    let node = FakeNode::start().await;
    let client = node.client();
    // Longer than evidence, a manifest, or a list may be.
    node.lie(Lie::Long((1 << 20) + 1));
    let expect = Expectations::new();
    let error = SealedSession::open(&client, &policy(), &expect).await.unwrap_err();
    assert!(matches!(error, SessionError::Node(NodeError::Broken { .. })), "{error}");
    assert!(matches!(client.manifest().await, Err(NodeError::Broken { .. })));
    assert!(matches!(client.packages().await, Err(NodeError::Broken { .. })));
    // As long as a list may be, but no offer.
    node.lie(Lie::Long(70 << 10));
    let error = SealedSession::open(&client, &policy(), &expect).await.unwrap_err();
    assert!(matches!(error, SessionError::Node(NodeError::Broken { .. })), "{error}");
    assert!(matches!(client.packages().await, Err(NodeError::Strange { .. })));
    // None at all.
    node.lie(Lie::Silent);
    let bounds = Bounds { answer: 1, wait: Some(std::time::Duration::from_millis(50)) };
    let path = "/v1/sealed/manifest";
    let answer = client.send_within(hyper::Method::GET, path, "a/b", Vec::new(), Repeat::Once, bounds).await;
    assert!(matches!(answer, Err(NodeError::Broken { .. })));
}
