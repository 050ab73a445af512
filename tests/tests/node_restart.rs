//! A node that is killed at any moment loses nothing that it acknowledged: an auditor works with it, notes what was
//! acknowledged, kills it, starts it again and compares. A minute of that with `--long`; ten, with more kinds of load, are
//! `node_soak`'s.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::Nacre;
use nacre_tests::node::{Node, Place, Tenant, base64};
use nacre_tests::random::Random;
use nacre_tests::skip::need;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ACTIONS: &str = "/api/v1/namespaces/_/actions";

/// What one worker of the auditor knows. Each has names of its own, so that it knows the order of its changes.
#[derive(Default)]
struct Ledger {
    /// By name: the versions that may be there; `None` for absence. One entry unless a change was never answered.
    actions: BTreeMap<String, Vec<Option<String>>>,
    /// Activations whose id was acknowledged.
    activations: Vec<String>,
    acknowledged: u64,
}

impl Ledger {
    fn settle(&mut self, name: &str, state: Option<String>) {
        self.actions.insert(name.to_owned(), vec![state]);
        self.acknowledged += 1;
    }

    fn maybe(&mut self, name: &str, state: Option<String>) {
        self.actions.entry(name.to_owned()).or_insert_with(|| vec![None]).push(state);
    }

    fn version(&self, name: &str) -> Option<String> {
        self.actions.get(name).and_then(|states| states[0].clone())
    }

    /// Works until the node is gone.
    fn work(
        &mut self,
        node: &Node<'_>,
        tenant: &Tenant,
        number: usize,
        body: &[u8],
        random: &mut Random,
        over: &AtomicBool,
    ) {
        while !over.load(Ordering::SeqCst) {
            let name = format!("w{number}-{}", random.below(5));
            let here = self.version(&name);
            let path = format!("{ACTIONS}/{name}");
            match (random.below(10), &here) {
                (0 | 1, Some(_)) => match node.request(Some(tenant), "DELETE", &path, b"") {
                    Ok(answer) => {
                        assert_eq!(answer.status, 200, "{}", answer.error());
                        self.settle(&name, None);
                    }
                    Err(_) => self.maybe(&name, None),
                },
                (2..7, Some(_)) => {
                    let Ok(answer) =
                        node.request(Some(tenant), "POST", &path, b"{\"do\":\"count\",\"n\":3000000}")
                    else {
                        continue;
                    };
                    assert_eq!(answer.status, 202, "{}", answer.error());
                    self.activations.push(answer.json()["activationId"].as_str().unwrap().to_owned());
                    self.acknowledged += 1;
                }
                (7, Some(_)) => {
                    let Ok(answer) = node.invoke(tenant, &name, "{\"x\":1}") else { continue };
                    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
                }
                _ => {
                    let next = here.as_ref().map_or("0.0.1".to_owned(), |version| {
                        let last: u64 = version.rsplit('.').next().unwrap().parse().unwrap();
                        format!("0.0.{}", last + 1)
                    });
                    match node.request(Some(tenant), "PUT", &format!("{path}?overwrite=true"), body) {
                        Ok(answer) => {
                            assert_eq!(answer.status, 200, "{}", answer.error());
                            assert_eq!(answer.json()["version"], next.as_str());
                            self.settle(&name, Some(next));
                        }
                        Err(_) => self.maybe(&name, Some(next)),
                    }
                }
            }
        }
    }

    /// Compares with a node that was started again.
    fn audit(&mut self, node: &Node<'_>, tenant: &Tenant) {
        for (name, states) in &mut self.actions {
            let answer = node.request(Some(tenant), "GET", &format!("{ACTIONS}/{name}"), b"").unwrap();
            let found = (answer.status == 200).then(|| answer.json()["version"].as_str().unwrap().to_owned());
            assert!(
                states.contains(&found),
                "{name}: one of {states:?} was acknowledged, {found:?} is there"
            );
            *states = vec![found];
        }
        for id in self.activations.drain(..) {
            let path = format!("/api/v1/namespaces/_/activations/{id}");
            let answer = node.request(Some(tenant), "GET", &path, b"").unwrap();
            assert_eq!(answer.status, 200, "the acknowledged activation {id} is lost");
            let response = &answer.json()["response"];
            let named = response["status"] == "success"
                || response["result"]["error"].as_str().is_some_and(|error| error.contains("restarted"));
            assert!(named, "{response}");
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let Some(nacre) = need("kill -9", Nacre::find()) else { return };
    let length = Duration::from_secs(if nacre_tests::long() { 60 } else { 8 });
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("seed {seed}");
    let mut random = Random::of_seed(seed);
    let place = Place::new().unwrap();
    let mut ledgers: Vec<Ledger> = (0..4).map(|_| Ledger::default()).collect();
    let body = {
        let module = std::fs::read(app("action")).unwrap();
        format!("{{\"exec\":{{\"kind\":\"wasi:default\",\"code\":\"{}\"}}}}", base64(&module)).into_bytes()
    };
    let mut node = Node::start(&nacre, &place, &[]).unwrap();
    let tenant = node.tenant("guest", &["--concurrency", "1000", "--activations", "1000000"]).unwrap();
    let (begin, mut rounds) = (Instant::now(), 0);
    // On a busy machine longer: until it has something to say.
    while begin.elapsed() < length || rounds < 2 || acknowledged(&ledgers) < 20 {
        let over = AtomicBool::new(false);
        let pause = Duration::from_millis(random.below(1500));
        std::thread::scope(|scope| {
            for (number, ledger) in ledgers.iter_mut().enumerate() {
                let (node, tenant, body, over) = (&node, &tenant, &body, &over);
                let mut random = Random::of_seed(random.below(u64::MAX));
                scope.spawn(move || ledger.work(node, tenant, number, body, &mut random, over));
            }
            // The moment of the kill is what is random here; nothing is waited for.
            std::thread::sleep(pause);
            rustix::process::kill_process(node.pid(), rustix::process::Signal::KILL).unwrap();
            over.store(true, Ordering::SeqCst);
        });
        node.kill().unwrap();
        node = Node::start(&nacre, &place, &[]).unwrap();
        for ledger in &mut ledgers {
            ledger.audit(&node, &tenant);
        }
        rounds += 1;
    }
    println!("{rounds} kills, {} changes acknowledged and found", acknowledged(&ledgers));
    // Nothing is left behind either: modules are those that somebody refers to.
    let names = ledgers.iter().flat_map(|ledger| ledger.actions.keys()).cloned().collect::<Vec<_>>();
    for name in names {
        let gone = node.request(Some(&tenant), "DELETE", &format!("{ACTIONS}/{name}"), b"").unwrap();
        assert!(matches!(gone.status, 200 | 404));
    }
    assert_eq!(files(&place.state().join("modules")), 0);
    let (code, log) = node.terminate().unwrap();
    assert_eq!(code, 0, "{log}");
}

fn acknowledged(ledgers: &[Ledger]) -> u64 {
    ledgers.iter().map(|ledger| ledger.acknowledged).sum()
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_polite_end_lets_calls_finish() {
    let Some(nacre) = need("SIGTERM", Nacre::find()) else { return };
    let place = Place::new().unwrap();
    let node = Node::start(&nacre, &place, &["--drain", "20s"]).unwrap();
    let tenant = node.tenant("guest", &[]).unwrap();
    let module = app("action");
    let deployed = node.run(&tenant, &["deploy", "f", module.to_str().unwrap(), "--timeout", "1s"]).unwrap();
    assert_eq!(deployed.code, 0, "{}", deployed.stderr);
    let begun =
        node.request(Some(&tenant), "POST", &format!("{ACTIONS}/f"), b"{\"do\":\"forever\"}").unwrap();
    let id = begun.json()["activationId"].as_str().unwrap().to_owned();
    let (code, log) = node.terminate().unwrap();
    assert_eq!(code, 0, "{log}");
    let node = Node::start(&nacre, &place, &[]).unwrap();
    let path = format!("/api/v1/namespaces/_/activations/{id}");
    let over = node.request(Some(&tenant), "GET", &path, b"").unwrap().json();
    // It ran to its own limit, rather than being cut off by the end of the node.
    let error = over["response"]["result"]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("time limits"), "{over}");
    assert!(!place.state().join("admin.sock").exists() || node.admin(&["tenant", "list"]).unwrap().code == 0);
}
