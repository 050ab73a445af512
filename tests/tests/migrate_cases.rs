//! Migrations that do not come about, or end early: the tenant stays where it is, answers all the while, and can be moved afterwards.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::auditor::{Auditor, Habit, fill, glance, is_alive, read_back};
use nacre_tests::cluster::{Cluster, service_port, system, until};
use nacre_tests::job::Nacre;
use nacre_tests::live::Live;
use nacre_tests::node::Tenant;
use nacre_tests::skip::{need, skipped};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a service holds beside the records.
const FILLER_BYTES: usize = 32 << 20;
/// Records of a client before something happens, and after.
const BETWEEN: u64 = 30;
/// Longest wait for an answer that comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Slow enough for whatever is to happen meanwhile, in bytes per second.
const SLOW: u64 = 8 << 20;

/// A tenant with a service at the first node, and a client that is never disturbed.
struct Case<'c, 'n> {
    cluster: &'c Cluster<'n>,
    tenant: Tenant,
    port: u16,
    client: Auditor,
}

impl<'c, 'n> Case<'c, 'n> {
    fn new(cluster: &'c Cluster<'n>, name: &str) -> Self {
        let (tenant, port) = (cluster.tenant(0, name).unwrap(), service_port());
        cluster.deploy(0, &tenant, port).unwrap();
        let address = cluster.hosts()[0].service(port);
        fill(address, FILLER_BYTES).unwrap();
        let client = Auditor::start(name, Habit::Keeps, vec![address]);
        client.wait_for(BETWEEN).unwrap();
        Case { cluster, tenant, port, client }
    }

    fn address(&self, place: usize) -> SocketAddr {
        self.cluster.hosts()[place].service(self.port)
    }

    /// A migration that fails, and says so with this word.
    fn fails(&self, to: &str, word: &str) {
        let begun = self.cluster.move_to(0, &self.tenant, &json!({"to": to})).unwrap();
        let error = match begun {
            Err(answer) => answer.error(),
            Ok(id) => {
                let view = self.cluster.events(0, &self.tenant, &id).unwrap().last().unwrap();
                assert_eq!(view["step"], "aborted", "{view}");
                view["error"].as_str().unwrap().to_owned()
            }
        };
        assert!(error.contains(word), "'{word}' is not in: {error}");
        self.client.wait_for(BETWEEN).unwrap();
    }

    /// It moves to the second node, and everything is there.
    fn moves(self) {
        let view = self.cluster.migrate(0, 1, &self.tenant, "hybrid").unwrap();
        assert_eq!(view["step"], "complete", "{view}");
        self.has_moved();
    }

    /// The same, as soon as a disk that was full, or a cable that was cut, is used again.
    fn moves_at_last(self) {
        let moved = || {
            let view = self.cluster.migrate(0, 1, &self.tenant, "hybrid").ok()?;
            let error = view["error"].as_str().unwrap_or_default();
            assert!(
                error.is_empty() || ["disk", "on its way", "reached"].iter().any(|why| error.contains(why)),
                "{view}"
            );
            (view["step"] == "complete").then_some(())
        };
        until("it moves", moved).unwrap();
        self.has_moved();
    }

    fn has_moved(self) {
        self.client.wait_for(BETWEEN).unwrap();
        let address = self.address(1);
        let ledger = self.client.end().unwrap();
        assert_eq!(ledger.failures, 0, "{:?}", ledger.failure);
        assert_eq!(read_back(address, &[ledger]).unwrap().missing, 0);
    }

    /// Ends a migration that is under way.
    fn cancels(&self, id: &str) {
        let path = format!("/v1/migrations/{id}");
        self.cluster.tell(0, &self.tenant, "DELETE", &path, b"").unwrap();
        let view = self.cluster.events(0, &self.tenant, id).unwrap().last().unwrap();
        assert_eq!(view["step"], "aborted", "{view}");
    }

    /// Begins a migration and waits until it copies.
    fn copying(&self, to: usize) -> String {
        let order = json!({"to": self.cluster.hosts()[to].peer(), "bandwidth": SLOW});
        let id = self.cluster.move_to(0, &self.tenant, &order).unwrap().unwrap();
        let mut events = self.cluster.events(0, &self.tenant, &id).unwrap();
        while events.hear().expect("it goes on")["step"] != "copying" {}
        id
    }
}

#[test]
fn who_cannot_take_a_tenant_leaves_it_where_it_is() {
    let Some(nacre) = need("migrations that are refused", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[], &["--max-incoming-memory", "64MiB"]]).unwrap();
    let case = Case::new(&cluster, "stays");
    let [own, other, small] = [0, 1, 2].map(|place: usize| cluster.hosts()[place].peer());
    case.fails(&small, "--max-incoming-memory");
    case.fails(&own, "itself");
    // Nobody listens there.
    let nobody = other.replace(":3234", ":9");
    case.fails(&nobody, "can't be reached");
    case.moves();
}

#[test]
fn a_node_that_is_out_of_reach_costs_nothing() {
    let Some(nacre) = need("migrations to nobody", Nacre::find()) else { return };
    let mut cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    cluster.kill(1).unwrap();
    cluster.buried(1).unwrap();
    {
        let case = Case::new(&cluster, "first");
        case.fails(&cluster.hosts()[1].peer(), "");
        let ledger = case.client.end().unwrap();
        assert_eq!(ledger.failures, 0, "{:?}", ledger.failure);
    }
    cluster.start(1).unwrap();
    Case::new(&cluster, "second").moves();
}

#[test]
fn of_two_destinations_one_is_first() {
    let Some(nacre) = need("two destinations", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[], &[]]).unwrap();
    let case = Case::new(&cluster, "raced");
    let begin = |place: usize| {
        let order = json!({"to": cluster.hosts()[place].peer(), "bandwidth": SLOW});
        cluster.move_to(0, &case.tenant, &order).unwrap()
    };
    let both = std::thread::scope(|scope| {
        [1, 2].map(|place| scope.spawn(move || begin(place))).map(|thread| thread.join().unwrap())
    });
    let refused = both.iter().filter_map(|begun| begun.as_ref().err()).collect::<Vec<_>>();
    assert_eq!(refused.len(), 1, "{both:?}");
    assert!(refused[0].status == 409 && refused[0].error().contains("under way"), "{refused:?}");
    let id = both.iter().find_map(|begun| begun.as_ref().ok()).unwrap();
    case.cancels(id);
    case.client.wait_for(BETWEEN).unwrap();
    case.moves();
}

#[test]
fn who_is_on_its_way_is_neither_changed_nor_removed() {
    let Some(nacre) = need("changes in a migration", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "held");
    let id = case.copying(1);
    let removed = cluster.forget(0, &case.tenant).unwrap();
    assert!(removed.code != 0 && removed.stderr.contains(&id), "{}", removed.stderr);
    let deployed = cluster.deploy(0, &case.tenant, service_port()).unwrap_err().to_string();
    assert!(deployed.contains("under way"), "{deployed}");
    case.cancels(&id);
    case.moves();
}

#[test]
fn ctrl_c_ends_a_migration_and_not_the_service() {
    let Some(nacre) = need("Ctrl-C", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "cancelled");
    let mut command = cluster.command();
    let url = format!("http://{}", cluster.hosts()[0].address());
    let (to, slow) = (cluster.hosts()[1].peer(), SLOW.to_string());
    command.args(["migrate", "kv", "--to", &to, "--bandwidth", &slow, "--json", "--node", &url]);
    let migrating = Live::start(command.args(["--auth", &case.tenant.auth])).unwrap();
    let copies = || {
        let all = cluster.tell(0, &case.tenant, "GET", "/v1/migrations", b"").ok()?;
        (all[0]["step"] == "copying").then_some(())
    };
    until("it copies", copies).unwrap();
    migrating.signal(Signal::INT).unwrap();
    let (code, said, log) = migrating.end_with_open_stdin().unwrap();
    let view: Value = serde_json::from_str(said.last().unwrap()).unwrap();
    assert_eq!((code, view["step"].as_str()), (1, Some("aborted")), "{view} {log}");
    case.client.wait_for(BETWEEN).unwrap();
    case.moves();
}

#[test]
fn a_cable_that_breaks_while_it_copies_ends_the_migration() {
    let Some(nacre) = need("a broken cable", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "cut");
    let id = case.copying(1);
    if !cluster.cable(1, false).unwrap() {
        return skipped("a broken cable", "there are no network namespaces");
    }
    let view = cluster.events(0, &case.tenant, &id).unwrap().last().unwrap();
    assert_eq!(view["step"], "aborted", "{view}");
    case.client.wait_for(BETWEEN).unwrap();
    cluster.cable(1, true).unwrap();
    case.moves_at_last();
}

#[test]
fn a_destination_that_stops_leaves_the_tenant_where_it_is() {
    let Some(nacre) = need("a destination that stops", Nacre::find()) else { return };
    let mut cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    {
        let case = Case::new(&cluster, "first");
        let id = case.copying(1);
        cluster.terminate(1).unwrap();
        let view = cluster.events(0, &case.tenant, &id).unwrap().last().unwrap();
        assert_eq!(view["step"], "aborted", "{view}");
        assert!(view["error"].as_str().unwrap().contains("that node stops"), "{view}");
        case.client.wait_for(BETWEEN).unwrap();
        let ledger = case.client.end().unwrap();
        assert_eq!(ledger.failures, 0, "{:?}", ledger.failure);
    }
    cluster.buried(1).unwrap();
    cluster.start(1).unwrap();
    Case::new(&cluster, "second").moves();
}

#[test]
fn a_source_that_stops_gives_what_the_tenant_still_needs() {
    let Some(nacre) = need("a source that stops", Nacre::find()) else { return };
    let mut cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "leaves");
    let order = json!({"to": cluster.hosts()[1].peer(), "mode": "post-copy", "bandwidth": SLOW});
    let id = cluster.move_to(0, &case.tenant, &order).unwrap().unwrap();
    let mut events = cluster.events(0, &case.tenant, &id).unwrap();
    while events.hear().expect("it goes on")["step"] != "running" {}
    cluster.terminate(0).unwrap();
    let view = events.last().unwrap();
    assert_eq!(view["step"], "complete", "{view}");
    // The client's connection ends with the node that has it.
    let Case { client, tenant, port, .. } = case;
    let ledger = client.abandon().unwrap();
    let log = cluster.buried(0).unwrap();
    assert!(log.contains("the node has stopped") && !log.contains("panicked"), "{log}");
    let address = cluster.hosts()[1].service(port);
    assert_eq!(read_back(address, &[ledger]).unwrap().missing, 0);
    assert_eq!(glance(address, "GET filler0").unwrap().len(), 8 << 10, "what was fetched last is there");
    cluster.start(0).unwrap();
    let view = cluster.migrate(1, 0, &tenant, "hybrid").unwrap();
    assert_eq!(view["step"], "complete", "{view}");
}

#[test]
fn calls_of_functions_go_on_wherever_their_tenant_is() {
    let Some(nacre) = need("calls in a migration", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "called");
    let module = std::fs::read(app("action")).unwrap();
    cluster.tell(0, &case.tenant, "PUT", "/v1/deployments/f", &module).unwrap();
    let (over, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let call = |place: usize| {
        while !over.load(Ordering::SeqCst) {
            // Both nodes take it; only one has the tenant.
            let body = br#"{"do":"count","n":300000}"#;
            let answer = cluster.ask(place, &case.tenant, "POST", "/v1/deployments/f/invoke", body).unwrap();
            let view = answer.json();
            assert_eq!((answer.status, &view["result"]["sum"]), (200, &json!(44_999_850_000u64)), "{view}");
            calls.fetch_add(1, Ordering::SeqCst);
        }
    };
    std::thread::scope(|scope| {
        let callers = [0, 0, 0].map(|place| scope.spawn(move || call(place)));
        let moved = (0..6).all(|count| {
            let view = cluster.migrate(count % 2, 1 - count % 2, &case.tenant, "hybrid").unwrap();
            let before = calls.load(Ordering::SeqCst);
            let more = || (calls.load(Ordering::SeqCst) > before + 10).then_some(());
            view["step"] == "complete" && until("calls go on", more).is_ok()
        });
        over.store(true, Ordering::SeqCst);
        for caller in callers {
            caller.join().unwrap();
        }
        assert!(moved);
    });
    // Three times there and back.
    case.moves();
}

#[test]
fn a_time_limit_that_passes_while_a_tenant_is_parked_ends_the_call_and_nothing_else() {
    let Some(nacre) = need("a time limit in a migration", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "late");
    let module = std::fs::read(app("action")).unwrap();
    cluster.tell(0, &case.tenant, "PUT", "/v1/deployments/f?timeout_ms=4000", &module).unwrap();
    let call = |body: &[u8]| cluster.ask(0, &case.tenant, "POST", "/v1/deployments/f/invoke", body).unwrap();
    let running = || {
        let view = cluster.ask(0, &case.tenant, "GET", "/v1/ps", b"").unwrap().json();
        (view["activations"].as_u64(), view["cvm"]["cpu_ns"].as_u64().unwrap())
    };
    let (_, cpu_before) = running();
    std::thread::scope(|scope| {
        let endless = scope.spawn(|| {
            let begin = Instant::now();
            (call(br#"{"do":"forever"}"#), begin.elapsed())
        });
        // Nothing else uses so much.
        let runs = || (running().1 > cpu_before + 500_000_000).then_some(());
        until("it runs", runs).unwrap();
        assert_eq!(running().0, Some(1));
        // Parked for as long as all of it takes: longer than the call may run, and than a CVM has to end it.
        let order = json!({"to": cluster.hosts()[1].peer(), "mode": "stop-and-copy", "bandwidth": SLOW / 2});
        let id = cluster.move_to(0, &case.tenant, &order).unwrap().unwrap();
        let view = cluster.events(0, &case.tenant, &id).unwrap().last().unwrap();
        assert_eq!(view["step"], "complete", "{view}");
        assert!(
            view["downtime_ms"].as_f64().unwrap() > 7_500.0,
            "it was parked for too short a time: {view}"
        );
        let (answer, took) = endless.join().unwrap();
        let answer = answer.json().to_string();
        assert!(answer.contains("exceeded its time limits"), "{answer}");
        assert!(took > Duration::from_secs(5), "its time was over before tasks were parked: {took:?}");
    });
    assert_eq!(call(br#"{"do":"count","n":10}"#).json()["result"]["sum"], 45);
    case.has_moved();
}

#[test]
fn what_was_removed_elsewhere_is_not_there_after_the_return() {
    let Some(nacre) = need("a return with less", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let Case { client, tenant, port, .. } = Case::new(&cluster, "less");
    let moves = |from: usize| {
        let view = cluster.migrate(from, 1 - from, &tenant, "hybrid").unwrap();
        assert_eq!(view["step"], "complete", "{view}");
    };
    moves(0);
    client.abandon().unwrap();
    // There it is another service that has the port.
    cluster.tell(1, &tenant, "DELETE", "/v1/deployments/kv", b"").unwrap();
    let module = std::fs::read(app("kv")).unwrap();
    let path = format!("/v1/deployments/other?service=true&port={port}");
    cluster.tell(1, &tenant, "PUT", &path, &module).unwrap();
    let address = cluster.hosts()[1].service(port);
    until("it answers", || is_alive(address).then_some(())).unwrap();
    let client = Auditor::start("less", Habit::Keeps, vec![address]);
    client.wait_for(BETWEEN).unwrap();
    moves(1);
    let shown = cluster.tell(0, &tenant, "GET", "/v1/ps", b"").unwrap();
    let names: Vec<_> = shown["services"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["other"], "{shown}");
    client.wait_for(BETWEEN).unwrap();
    moves(0);
    client.wait_for(BETWEEN).unwrap();
    let ledger = client.end().unwrap();
    assert_eq!(ledger.failures, 0, "{:?}", ledger.failure);
    assert_eq!(read_back(address, &[ledger]).unwrap().missing, 0);
}

#[test]
fn a_name_that_is_on_its_way_is_taken() {
    let Some(nacre) = need("a name on its way", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "named");
    let id = case.copying(1);
    let error = cluster.tenant(1, "named").unwrap_err().to_string();
    assert!(error.contains("on its way here"), "{error}");
    case.cancels(&id);
    case.moves();
}

#[test]
fn who_is_removed_where_it_has_come_is_gone_and_its_name_free() {
    let Some(nacre) = need("a removal at the destination", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let Case { client, tenant, .. } = Case::new(&cluster, "brief");
    let order = json!({"to": cluster.hosts()[1].peer(), "mode": "post-copy", "bandwidth": SLOW});
    let id = cluster.move_to(0, &tenant, &order).unwrap().unwrap();
    let mut events = cluster.events(0, &tenant, &id).unwrap();
    while events.hear().expect("it goes on")["step"] != "running" {}
    let removed = cluster.forget(1, &tenant).unwrap();
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    // Before the nodes have noticed, another one has its name there.
    let (later, port) = (cluster.tenant(1, "brief").unwrap(), service_port());
    cluster.deploy(1, &later, port).unwrap();
    let address = cluster.hosts()[1].service(port);
    let client_of_later = Auditor::start("later", Habit::Keeps, vec![address]);
    let view = events.last().unwrap();
    assert_eq!(view["step"], "lost", "{view}");
    assert!(view["error"].as_str().unwrap().contains("removed before all memory had come"), "{view}");
    client_of_later.wait_for(BETWEEN).unwrap();
    let ledger = client_of_later.end().unwrap();
    assert_eq!(ledger.failures, 0, "{:?}", ledger.failure);
    client.abandon().unwrap();
    // And here.
    let removed = cluster.forget(0, &tenant).unwrap();
    assert_eq!(removed.code, 0, "{}", removed.stderr);
}

/// Requests at once: more than a node forwards at once, and more than it may have handshakes with another.
const REQUESTS_AT_ONCE: usize = 800;

#[test]
fn many_requests_at_once_are_all_forwarded() {
    let Some(nacre) = need("many requests of a moved tenant", Nacre::find()) else { return };
    allow_files();
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "busy");
    let view = cluster.migrate(0, 1, &case.tenant, "hybrid").unwrap();
    assert_eq!(view["step"], "complete", "{view}");
    let all = Barrier::new(REQUESTS_AT_ONCE);
    std::thread::scope(|scope| {
        for _ in 0..REQUESTS_AT_ONCE {
            scope.spawn(|| {
                all.wait();
                let answer = cluster.ask(0, &case.tenant, "GET", "/v1/deployments", b"").unwrap();
                assert_eq!(answer.status, 200, "{}", answer.error());
            });
        }
    });
    case.has_moved();
}

/// As many open files as the kernel gives this process.
fn allow_files() {
    let files = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files }).unwrap();
}

/// Clients of moved services that a node relays to one other node at once (docs/migration.md).
const MOST_RELAYED: usize = 1536;

#[test]
fn clients_beyond_those_that_a_node_relays_wait_for_their_turn() {
    let Some(nacre) = need("many clients of a moved service", Nacre::find()) else { return };
    allow_files();
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "asked");
    let view = cluster.migrate(0, 1, &case.tenant, "hybrid").unwrap();
    assert_eq!(view["step"], "complete", "{view}");
    let ask = || {
        let mut stream = TcpStream::connect(case.address(0)).unwrap();
        stream.write_all(b"PING\r\n").unwrap();
        stream
    };
    let hears = |stream: &mut TcpStream, patience: Duration| {
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).is_ok_and(|()| &answer == b"+PONG\r\n")
    };
    // The client from before the migration goes another way.
    let mut relayed: Vec<_> = (0..MOST_RELAYED).map(|_| ask()).collect();
    assert!(relayed.iter_mut().all(|stream| hears(stream, PATIENCE)));
    let mut late = ask();
    assert!(!hears(&mut late, Duration::from_secs(1)), "it had to wait");
    // Nodes still hear each other, and so do clients that the other node serves itself.
    assert!(is_alive(case.address(1)));
    cluster.tell(0, &case.tenant, "GET", "/v1/deployments", b"").unwrap();
    drop(relayed.pop());
    assert!(hears(&mut late, PATIENCE), "a place was free");
    drop((relayed, late));
    case.has_moved();
}

#[test]
fn who_has_a_connection_to_a_tenant_that_crashed_hears_of_it() {
    let Some(nacre) = need("a crash at the destination", Nacre::find()) else { return };
    let mut cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let Case { client, tenant, .. } = Case::new(&cluster, "crashed");
    let view = cluster.migrate(0, 1, &tenant, "hybrid").unwrap();
    assert_eq!(view["step"], "complete", "{view}");
    client.wait_for(BETWEEN).unwrap();
    cluster.kill(1).unwrap();
    cluster.buried(1).unwrap();
    cluster.start(1).unwrap();
    while client.wait_for(1).is_ok() {}
    assert_eq!(client.end().unwrap().failures, 1);
    cluster.terminate(0).unwrap();
    let log = cluster.buried(0).unwrap();
    assert!(log.contains("what stayed behind of a tenant ends"), "it was given up for another reason: {log}");
}

/// A small file system over a node's state.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(cluster: &Cluster<'_>, place: usize) -> anyhow::Result<SmallDisk> {
        let state = cluster.hosts()[place].state.clone();
        let (state_text, kept) = (state.display(), state.with_extension("kept"));
        system(&format!("cp -a {state_text} {}", kept.display()))?;
        system(&format!("mount -t tmpfs -o size=64M,mode=700 none {state_text}"))?;
        let disk = SmallDisk(state.clone());
        system(&format!("cp -a {}/. {state_text}", kept.display()))?;
        Ok(disk)
    }

    /// Until nothing more fits.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        let mut piece = vec![1; 1 << 20];
        while !piece.is_empty() {
            if file.write_all(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = system(&format!("umount -l {}", self.0.display()));
    }
}

/// A cluster, one of whose nodes has its state on a small disk.
fn on_a_small_disk(nacre: &Nacre, place: usize) -> Option<(Cluster<'_>, SmallDisk)> {
    let mut cluster = Cluster::new(nacre, &[&[], &[]]).unwrap();
    cluster.kill(place).unwrap();
    cluster.buried(place).unwrap();
    let disk = match SmallDisk::mount(&cluster, place) {
        Ok(disk) => disk,
        Err(error) => {
            skipped("a full disk", &format!("{error:#}"));
            return None;
        }
    };
    cluster.start(place).unwrap();
    Some((cluster, disk))
}

/// The disk of one of the nodes is full while it copies.
fn a_full_disk_loses_nothing(place: usize) {
    let Some(nacre) = need("a full disk", Nacre::find()) else { return };
    let Some((cluster, disk)) = on_a_small_disk(&nacre, place) else { return };
    let case = Case::new(&cluster, "full");
    let id = case.copying(1);
    disk.fill();
    // What has to be written down before the tenant may be gone can't be: it stays.
    let view = cluster.events(0, &case.tenant, &id).unwrap().last().unwrap();
    assert_eq!(view["step"], "aborted", "{view}");
    assert!(view["error"].as_str().unwrap().contains("disk"), "{view}");
    case.client.wait_for(BETWEEN).unwrap();
    disk.free();
    case.moves_at_last();
}

#[test]
fn a_full_disk_at_the_source_loses_nothing() {
    a_full_disk_loses_nothing(0);
}

#[test]
fn a_full_disk_at_the_destination_loses_nothing() {
    a_full_disk_loses_nothing(1);
}
