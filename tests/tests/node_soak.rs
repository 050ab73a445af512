//! Mixed load on a node that is killed at random moments: tenants come and go, actions change, calls of every kind run. An
//! auditor checks after each start that nothing acknowledged is lost. Ten minutes with `NACRE_LONG=1`, or as many seconds
//! as `NACRE_SOAK_SECONDS` says.
#![forbid(unsafe_code)]

use nacre_tests::job::Nacre;
use nacre_tests::node::{Node, Place, Tenant, base64, read_answer, request};
use nacre_tests::random::Random;
use nacre_tests::skip::need;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ACTIONS: &str = "/api/v1/namespaces/_/actions";
/// Tenants whose actions change, each with a thread.
const OWNERS: usize = 3;
/// Connections with nothing but calls.
const CALLERS: usize = 8;
/// Longest time between two kills, in milliseconds.
const MAX_LIFE_MS: u64 = 4_000;

fn length() -> Duration {
    let told = std::env::var("NACRE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(told.unwrap_or(if nacre_tests::long() { 600 } else { 10 }))
}

/// What is known of one thing: the states it may be in, `None` for absence. One, unless a change was never answered.
type Possible<T> = Vec<Option<T>>;

/// A tenant's owner: changes its actions, each to a number that its parameter tells, and notes what was acknowledged.
struct Owner {
    tenant: Tenant,
    actions: BTreeMap<String, Possible<u64>>,
    /// Ids of calls that were accepted, with the number of the call.
    calls: Vec<(String, u64)>,
    next: u64,
    acknowledged: u64,
}

impl Owner {
    fn new(tenant: Tenant) -> Owner {
        Owner { tenant, actions: BTreeMap::new(), calls: Vec::new(), next: 0, acknowledged: 0 }
    }

    fn possible(&mut self, name: &str) -> &mut Possible<u64> {
        self.actions.entry(name.to_owned()).or_insert_with(|| vec![None])
    }

    /// A change was asked for: it is so if there was an answer, and may be so if there was none.
    fn changed(&mut self, name: &str, state: Option<u64>, answered: bool) {
        let possible = self.possible(name);
        if answered {
            *possible = vec![state];
            self.acknowledged += 1;
        } else {
            possible.push(state);
        }
    }

    fn work(&mut self, node: &Node<'_>, code: &str, random: &mut Random, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let name = format!("a{}", random.below(4));
            let path = format!("{ACTIONS}/{name}");
            let states = self.possible(&name).clone();
            self.next += 1;
            let number = self.next;
            match random.below(8) {
                0 => match node.request(Some(&self.tenant), "DELETE", &path, b"") {
                    Ok(answer) => {
                        let was = if answer.status == 404 { None } else { Some(()) };
                        assert!(matches!(answer.status, 200 | 404), "{}", answer.error());
                        assert!(states.iter().any(|state| state.map(|_| ()) == was), "{name}: {states:?}");
                        self.changed(&name, None, true);
                    }
                    Err(_) => self.changed(&name, None, false),
                },
                1 | 2 => {
                    let body = json!({
                        "exec": { "kind": "wasi:default", "code": code },
                        "parameters": [{ "key": "state", "value": number }],
                    });
                    let path = format!("{path}?overwrite=true");
                    let answer = node.request(Some(&self.tenant), "PUT", &path, body.to_string().as_bytes());
                    if let Ok(answer) = &answer {
                        assert_eq!(answer.status, 200, "{}", answer.error());
                    }
                    self.changed(&name, Some(number), answer.is_ok());
                }
                3 | 4 => self.accepted_call(node, &path, number, &states),
                _ => {
                    let path = format!("{path}?blocking=true&result=true");
                    let body = json!({ "call": number }).to_string();
                    let Ok(answer) = node.request(Some(&self.tenant), "POST", &path, body.as_bytes()) else {
                        continue;
                    };
                    check_call(&name, &states, answer.status, &answer.json(), number);
                }
            }
        }
    }

    fn accepted_call(&mut self, node: &Node<'_>, path: &str, number: u64, states: &Possible<u64>) {
        let body = json!({ "call": number }).to_string();
        let Ok(answer) = node.request(Some(&self.tenant), "POST", path, body.as_bytes()) else { return };
        if answer.status == 404 {
            assert!(states.contains(&None), "{path}: {states:?}");
            return;
        }
        assert_eq!(answer.status, 202, "{}", answer.error());
        self.calls.push((answer.json()["activationId"].as_str().unwrap().to_owned(), number));
        self.acknowledged += 1;
    }

    /// Compares with a node that was started again.
    fn audit(&mut self, node: &Node<'_>) {
        for (name, states) in &mut self.actions {
            let path = format!("{ACTIONS}/{name}?code=false");
            let answer = node.request(Some(&self.tenant), "GET", &path, b"").unwrap();
            let found =
                (answer.status == 200).then(|| answer.json()["parameters"][0]["value"].as_u64().unwrap());
            assert!(
                states.contains(&found),
                "{name}: one of {states:?} was acknowledged, {found:?} is there"
            );
            *states = vec![found];
        }
        for (id, number) in self.calls.drain(..) {
            let path = format!("/api/v1/namespaces/_/activations/{id}");
            let answer = node.request(Some(&self.tenant), "GET", &path, b"").unwrap();
            assert_eq!(answer.status, 200, "the accepted call {id} is lost");
            let response = answer.json()["response"].clone();
            let interrupted =
                response["result"]["error"].as_str().is_some_and(|error| error.contains("restarted"));
            assert!(interrupted || response["result"]["call"] == json!(number), "{response}");
        }
    }
}

/// A call gives what it was sent, with the parameter of a state that its action may have had.
fn check_call(name: &str, states: &Possible<u64>, status: u16, result: &Value, number: u64) {
    if status == 404 {
        assert!(states.contains(&None), "{name}: {states:?}");
        return;
    }
    assert_eq!((status, &result["call"]), (200, &json!(number)), "{name}: {result}");
    assert!(states.contains(&result["state"].as_u64()), "{name}: {states:?}, {result}");
}

/// Adds and removes tenants.
#[derive(Default)]
struct Registrar {
    tenants: BTreeMap<String, Possible<String>>,
    acknowledged: u64,
}

impl Registrar {
    fn work(&mut self, node: &Node<'_>, random: &mut Random, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let name = format!("come-and-go-{}", random.below(4));
            let states = self.tenants.entry(name.clone()).or_insert_with(|| vec![None]);
            // Whose state is not known waits for the audit.
            let [state] = &states[..] else { continue };
            let (done, next) = if state.is_none() {
                let added = node.tenant(&name, &["--no-context"]);
                let auth = added.as_ref().map_or_else(|_| "unknown".to_owned(), |tenant| tenant.auth.clone());
                (added.is_ok(), Some(auth))
            } else {
                (node.admin(&["tenant", "rm", &name]).is_ok_and(|ended| ended.code == 0), None)
            };
            if done {
                *states = vec![next];
                self.acknowledged += 1;
            } else {
                states.push(next);
            }
        }
    }

    fn audit(&mut self, node: &Node<'_>) {
        let listed = node.admin(&["tenant", "list", "--json"]).unwrap();
        assert_eq!(listed.code, 0, "{}", listed.stderr);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let names: BTreeSet<&str> =
            listed.as_array().unwrap().iter().filter_map(|t| t["name"].as_str()).collect();
        for (name, states) in &mut self.tenants {
            let here = names.contains(name.as_str());
            assert!(states.iter().any(|state| state.is_some() == here), "{name}: {states:?}, listed: {here}");
            states.retain(|state| state.is_some() == here);
            states.truncate(1);
            if let Some(Some(auth)) = states.first().filter(|state| state.as_deref() != Some("unknown")) {
                let tenant = Tenant { name: name.clone(), auth: auth.clone() };
                let answer = node.request(Some(&tenant), "GET", "/api/v1/namespaces", b"").unwrap();
                assert_eq!((answer.status, answer.json()), (200, json!([name])));
            }
        }
    }
}

/// Calls on one connection after another, until the node is gone.
fn call(node: &Node<'_>, tenant: &Tenant, caller: usize, over: &AtomicBool) -> u64 {
    let mut calls = 0;
    while !over.load(Ordering::SeqCst) {
        let Ok(mut stream) = node.connect() else { continue };
        let mut one = |number: u64| {
            let body = json!({ "caller": caller, "call": number }).to_string();
            let path = format!("{ACTIONS}/steady?blocking=true&result=true");
            stream.write_all(&request(Some(tenant), "POST", &path, body.as_bytes(), false)).ok()?;
            let answer = read_answer(&mut stream).ok()?;
            assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).trim()), (200, body.as_str()));
            Some(())
        };
        while !over.load(Ordering::SeqCst) && one(calls).is_some() {
            calls += 1;
        }
    }
    calls
}

#[test]
fn mixed_load_and_kills_lose_nothing() {
    let Some(nacre) = need("soak", Nacre::find()) else { return };
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("seed {seed}");
    let mut random = Random::of_seed(seed);
    let place = Place::new().unwrap();
    let code = base64(&wat::parse_str(include_str!("../../bench/programs/echo.wat")).unwrap());
    let mut node = Node::start(&nacre, &place, &[]).unwrap();
    let tenant =
        |name: &str| node.tenant(name, &["--concurrency", "1000", "--activations", "1000000"]).unwrap();
    let mut owners: Vec<Owner> = (0..OWNERS).map(|i| Owner::new(tenant(&format!("owner-{i}")))).collect();
    let callers = tenant("callers");
    let body = json!({ "exec": { "kind": "wasi:default", "code": code } }).to_string();
    let put = node.request(Some(&callers), "PUT", &format!("{ACTIONS}/steady"), body.as_bytes()).unwrap();
    assert_eq!(put.status, 200, "{}", put.error());
    let mut registrar = Registrar::default();
    let (begin, mut kills, mut calls) = (Instant::now(), 0, 0);
    while begin.elapsed() < length() {
        let over = AtomicBool::new(false);
        let life = Duration::from_millis(random.below(MAX_LIFE_MS));
        std::thread::scope(|scope| {
            let (node, code, over, callers) = (&node, &code, &over, &callers);
            for owner in &mut owners {
                let mut random = Random::of_seed(random.below(u64::MAX));
                scope.spawn(move || owner.work(node, code, &mut random, over));
            }
            let mut other = Random::of_seed(random.below(u64::MAX));
            let registrar = &mut registrar;
            scope.spawn(move || registrar.work(node, &mut other, over));
            let calling: Vec<_> =
                (0..CALLERS).map(|caller| scope.spawn(move || call(node, callers, caller, over))).collect();
            // The moment of the kill is what is random here; nothing is waited for.
            std::thread::sleep(life);
            kill_process(node.pid(), Signal::KILL).unwrap();
            over.store(true, Ordering::SeqCst);
            calls += calling.into_iter().map(|caller| caller.join().unwrap()).sum::<u64>();
        });
        node.kill().unwrap();
        node = Node::start(&nacre, &place, &[]).unwrap();
        owners.iter_mut().for_each(|owner| owner.audit(&node));
        registrar.audit(&node);
        kills += 1;
    }
    let changes = owners.iter().map(|owner| owner.acknowledged).sum::<u64>() + registrar.acknowledged;
    println!("{kills} kills, {changes} changes acknowledged and found, {calls} calls beside");
    assert!(kills > 1 && changes > 20 && calls > 20);
    let (exit, log) = node.terminate().unwrap();
    assert_eq!(exit, 0, "{log}");
}
