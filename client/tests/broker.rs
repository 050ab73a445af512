//! The key broker: CVMs come and go, the deploying client is away, and nothing goes back.

mod support;

use nacre_client::broker::{Broker, BrokerError, Event};
use nacre_client::deploy::{Order, deploy};
use nacre_client::store::StoreError;
use nacre_client::{Code, Expectations, ModuleKind, SealedSession, Service, SessionError, Store};
use serde_json::Value;
use support::{FakeNode, Lie, contains, keys, manifest, policy};

const SECRET: &str = "planted-secret-0815";

struct Bench {
    node: FakeNode,
    store: Store,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Bench { node: FakeNode::start().await, store, _dir: dir }
    }

    async fn deploy(&self, name: &str, service: Option<&Service>) -> u64 {
        let (keys, signed, policy) = (keys(), manifest(1), policy());
        let code =
            Code { cwasm: name.as_bytes().repeat(20_000), module_sha256: [1; 32], fingerprint: [2; 32] };
        let order = Order {
            manifest: &signed,
            policy: &policy,
            code: &code,
            name,
            version: None,
            kind: if service.is_some() { ModuleKind::Service } else { ModuleKind::Action },
            env: &[("TOKEN".to_owned(), SECRET.to_owned())],
            service,
            compiler: &keys.compiler,
            authority: &keys.owner,
            store: Some(&self.store),
        };
        deploy(&self.node.client(), &order, &Expectations::new()).await.unwrap().release.version
    }

    fn broker(&self) -> Broker {
        let (node, policy, key) = (self.node.client(), policy(), keys().broker);
        Broker { node, policy, key, store: self.store.clone() }
    }

    /// Launches a CVM, as a client that asks for evidence does.
    async fn launch(&self) {
        SealedSession::open(&self.node.client(), &policy(), &Expectations::new()).await.unwrap();
    }

    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.store.dir().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn installed(&self) -> Vec<(String, u64)> {
        let state = self.node.state();
        let cvm = state.cvm.as_ref().unwrap();
        cvm.installed.iter().map(|(name, one)| (name.clone(), one.version)).collect()
    }
}

#[tokio::test]
async fn a_new_cvm_gets_the_newest_of_everything() {
    let bench = Bench::new().await;
    bench.deploy("one", None).await;
    assert_eq!(bench.deploy("one", None).await, 2);
    let service = Service { port: 7001, restart: None };
    bench.deploy("two", Some(&service)).await;
    bench.node.restart();
    bench.launch().await;
    assert!(bench.installed().is_empty());
    bench.broker().run(true, |_| {}).await.unwrap();
    assert_eq!(bench.installed(), [("one".to_owned(), 2), ("two".to_owned(), 1)]);
    assert!(bench.node.state().cvm.as_ref().unwrap().provisioned);
    // With its secrets, of which the node has seen nothing.
    let mut session =
        SealedSession::open(&bench.node.client(), &policy(), &Expectations::new()).await.unwrap();
    let outcome = session.call("one", b"").await.unwrap();
    assert!(String::from_utf8_lossy(&outcome.stderr).contains(SECRET));
    assert!(!contains(&bench.node.bytes_seen(), SECRET.as_bytes()));
    // What was released is written down: to whom, and before it happened.
    let audit = bench.audit();
    let events: Vec<&str> = audit.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["accepted", "releasing", "released", "releasing", "released"]);
    assert_eq!(audit[0]["platform"], "software");
    assert_eq!(audit[0]["measurement"].as_str().map(str::len), Some(96));
    assert_eq!((&audit[1]["name"], &audit[1]["version"]), (&"one".into(), &2.into()));
    assert!(!audit.iter().any(|line| line.to_string().contains(SECRET)));
}

#[tokio::test]
async fn calls_wait_for_the_broker_of_a_new_cvm() {
    let bench = Bench::new().await;
    bench.deploy("one", None).await;
    bench.node.restart();
    let open = async |patience| {
        let expect = Expectations { patience, ..Expectations::new() };
        SealedSession::open(&bench.node.client(), &policy(), &expect).await.unwrap()
    };
    let mut hasty = open(std::time::Duration::ZERO).await;
    let mut session = open(std::time::Duration::from_secs(60)).await;
    let refused = hasty.call("one", b"").await.unwrap_err();
    assert!(matches!(refused, SessionError::Refused { .. }), "{refused}");
    let broker = bench.broker();
    let provisioned = tokio::spawn(async move { broker.run(true, |_| {}).await });
    assert!(session.call("one", b"").await.unwrap().succeeded());
    provisioned.await.unwrap().unwrap();
    assert_eq!(bench.node.state().cvm.as_ref().unwrap().ran.len(), 1);
}

#[tokio::test]
async fn what_the_node_lost_it_gets_back() {
    let bench = Bench::new().await;
    bench.deploy("one", None).await;
    let service = Service { port: 7002, restart: Some("never".to_owned()) };
    bench.deploy("two", Some(&service)).await;
    {
        let mut state = bench.node.state();
        state.packages.clear();
        state.services.clear();
        state.manifest = None;
        state.cvm = None;
    }
    bench.broker().restore_manifest().await.unwrap();
    assert_eq!(bench.node.state().manifest, Some(manifest(1)));
    bench.launch().await;
    bench.broker().run(true, |_| {}).await.unwrap();
    assert_eq!(bench.installed().len(), 2);
    let state = bench.node.state();
    assert_eq!((state.packages.len(), state.services.values().collect::<Vec<_>>()), (2, vec![&7002]));
}

#[tokio::test]
async fn a_cvm_that_the_policy_rejects_gets_nothing() {
    let bench = Bench::new().await;
    bench.deploy("one", None).await;
    for lie in [Lie::OtherGuest, Lie::Debug, Lie::OtherNonce, Lie::OwnKey] {
        bench.node.restart();
        bench.launch().await;
        let records = bench.node.records_seen();
        bench.node.lie(lie.clone());
        let error = bench.broker().run(true, |_| {}).await.unwrap_err();
        bench.node.lie(Lie::None);
        assert!(
            matches!(&error, BrokerError::Session(error) if error.rejection().is_some()),
            "{lie:?}: {error}"
        );
        assert_eq!(bench.node.records_seen(), records, "{lie:?}");
        let last = bench.audit().pop().unwrap();
        assert_eq!((&last["event"], &last["accepted"]), (&"rejected".into(), &false.into()), "{lie:?}");
        assert!(!last["failed"].as_array().unwrap().is_empty());
    }
}

#[tokio::test]
async fn nothing_goes_back() {
    let bench = Bench::new().await;
    bench.deploy("one", None).await;
    bench.deploy("one", None).await;
    // An older version is neither registered nor installed.
    let store = &bench.store;
    assert!(matches!(store.check("one", 1, None), Err(StoreError::Older { newest: 2, .. })));
    // The owner signs a second manifest; the node launches a CVM with the first one, whose keys may be known by now.
    store.set_manifest(&manifest(2)).unwrap();
    bench.node.restart();
    bench.launch().await;
    let records = bench.node.records_seen();
    let broker = bench.broker();
    let waiting = broker.node.unprovisioned(std::time::Duration::from_secs(1)).await.unwrap().unwrap();
    let error = broker.provision(&waiting).await.unwrap_err();
    assert!(matches!(error, BrokerError::OldManifest { found: 1, newest: 2 }), "{error}");
    assert_eq!(bench.node.records_seen(), records);
    assert_eq!(bench.audit().pop().unwrap()["event"], "rejected");
    // The broker brings the newer one; then the CVM is one of it.
    bench.broker().restore_manifest().await.unwrap();
    bench.launch_with_version(2).await;
    bench.broker().run(true, |_| {}).await.unwrap();
    assert_eq!(bench.installed(), [("one".to_owned(), 2)]);
}

impl Bench {
    async fn launch_with_version(&self, version: u64) {
        let session =
            SealedSession::open(&self.node.client(), &policy(), &Expectations::new()).await.unwrap();
        assert_eq!(session.manifest().version, version);
    }
}

#[tokio::test]
async fn one_that_is_refused_holds_up_no_other() {
    let bench = Bench::new().await;
    bench.deploy("one", None).await;
    bench.deploy("two", None).await;
    // The first one's code was signed by a key that is no compiler's any more: the CVM says so.
    let stranger = nacre_client::SigningKey::from_bytes(&[9; 32]);
    let code = Code { cwasm: vec![1; 1000], module_sha256: [1; 32], fingerprint: [2; 32] };
    let spec = nacre_client::ReleaseSpec {
        name: "one".to_owned(),
        version: 2,
        kind: ModuleKind::Action,
        env: Vec::new(),
        service: None,
    };
    let (release, package) = nacre_client::Release::seal(&code, spec, &stranger).unwrap();
    bench.store.register(&release, &package).unwrap();
    bench.node.restart();
    bench.launch().await;
    let mut refused = Vec::new();
    let tell = |event: Event<'_>| {
        if let Event::Provisioned { result, .. } = event {
            refused = result.refused.clone();
        }
    };
    bench.broker().run(true, tell).await.unwrap();
    assert_eq!(bench.installed(), [("two".to_owned(), 1)]);
    assert_eq!((refused[0].0.as_str(), refused[0].1), ("one", 2));
    assert!(bench.audit().iter().any(|line| line["event"] == "refused"));
}

#[tokio::test]
async fn the_broker_outlives_its_node() {
    let bench = Bench::new().await;
    bench.deploy("one", None).await;
    bench.node.restart();
    let broker = bench.broker();
    let (send, mut events) = tokio::sync::mpsc::unbounded_channel();
    let runs = tokio::spawn(async move {
        broker
            .run(false, move |event| match event {
                Event::Provisioned { generation, .. } => drop(send.send(Some(generation))),
                Event::Failed { .. } => drop(send.send(None)),
                Event::Waiting => {}
            })
            .await
    });
    let mut generations = Vec::new();
    for round in 0..3 {
        bench.launch().await;
        loop {
            let event = tokio::time::timeout(std::time::Duration::from_secs(60), events.recv()).await;
            match event.expect("the broker goes on").unwrap() {
                Some(generation) => break generations.push(generation),
                // What it does with a node that is down for a while.
                None => bench.node.lie(Lie::None),
            }
        }
        assert_eq!(bench.installed(), [("one".to_owned(), 1)], "round {round}");
        bench.node.restart();
        if round == 1 {
            bench.node.lie(Lie::OtherGuest);
            let client = bench.node.client();
            let opened = SealedSession::open(&client, &policy(), &Expectations::new()).await;
            assert!(matches!(opened, Err(SessionError::Rejected(_))));
            let event = tokio::time::timeout(std::time::Duration::from_secs(60), events.recv()).await;
            assert_eq!(event.expect("it says so").unwrap(), None);
            bench.node.lie(Lie::None);
            bench.node.restart();
        }
    }
    runs.abort();
    assert_eq!(generations.len(), 3);
    assert!(generations.windows(2).all(|pair| pair[0] < pair[1]));
}

/// Runs a broker until the node has seen this many questions for CVMs; how long that took.
async fn polled(bench: &Bench, times: usize) -> std::time::Duration {
    let begin = std::time::Instant::now();
    let broker = bench.broker();
    let (send, mut rounds) = tokio::sync::mpsc::unbounded_channel();
    let tell = move |event: Event<'_>| {
        if matches!(event, Event::Waiting) {
            let _ = send.send(());
        }
    };
    let runs = tokio::spawn(async move { broker.run(false, tell).await });
    for _ in 0..times {
        let round = tokio::time::timeout(std::time::Duration::from_secs(60), rounds.recv()).await;
        round.expect("the broker goes on").unwrap();
    }
    runs.abort();
    begin.elapsed()
}

#[tokio::test]
async fn a_node_that_answers_at_once_is_asked_no_more_often() {
    let bench = Bench::new().await;
    bench.node.lie(Lie::Nobody);
    // Not before it is due; how much later is the machine's affair.
    assert!(polled(&bench, 3).await >= std::time::Duration::from_millis(1000));
}

#[tokio::test]
async fn a_cvm_that_lacks_nothing_fills_no_log() {
    let bench = Bench::new().await;
    bench.deploy("one", None).await;
    // The node forgets each time that it is provisioned.
    bench.node.lie(Lie::Forgets);
    assert!(polled(&bench, 4).await >= std::time::Duration::from_millis(500 + 1000 + 2000));
    assert!(bench.audit().len() <= 4);
}
