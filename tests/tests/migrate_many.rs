//! A tenant moves from node to node many times, with clients that have connections open all the time and clients that come anew: no request
//! fails, every record is there in the end, and how long clients had to wait is printed.
#![forbid(unsafe_code)]

use nacre_tests::auditor::{Auditor, Habit, fill, read_back};
use nacre_tests::cluster::{Cluster, service_port};
use nacre_tests::job::Nacre;
use nacre_tests::skip::need;
use std::time::Duration;

/// Migrations in CI and with `--long`.
const MOVES: (usize, usize) = (4, 100);
/// What the service holds beside the records.
const FILLER_BYTES: usize = 16 << 20;
/// Records of each client before a migration, and after.
const BETWEEN: u64 = 30;

/// The `percent`-th percentile of sorted values.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

fn print(what: &str, mut all: Vec<Duration>) {
    all.sort_unstable();
    let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&all, percent).as_secs_f64() * 1e3);
    println!("{what}: p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms");
}

fn moves(modes: &[&str]) {
    let Some(nacre) = need("many migrations", Nacre::find()) else { return };
    let count = if nacre_tests::long() { MOVES.1 } else { MOVES.0 };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let (tenant, port) = (cluster.tenant(0, "mover").unwrap(), service_port());
    cluster.deploy(0, &tenant, port).unwrap();
    let addresses = [0, 1].map(|place: usize| cluster.hosts()[place].service(port));
    fill(addresses[0], FILLER_BYTES).unwrap();
    let mut clients = vec![Auditor::start("here", Habit::Keeps, vec![addresses[0]])];
    let (mut gaps, mut new_gaps, mut downtimes) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        let (from, to) = (number % 2, 1 - number % 2);
        clients.iter().for_each(|client| client.wait_for(BETWEEN).unwrap());
        for client in &clients {
            let _ = client.take_longest();
        }
        let view = cluster.migrate(from, to, &tenant, modes[number % modes.len()]).unwrap();
        assert_eq!(view["step"], "complete", "{number}: {view}");
        for (place, client) in clients.iter().enumerate() {
            client
                .wait_for(BETWEEN)
                .unwrap_or_else(|error| panic!("client {place}, migration {number}: {error}"));
            let longest = client.take_longest();
            if place == 2 { new_gaps.push(longest) } else { gaps.push(longest) }
        }
        downtimes.push(Duration::from_secs_f64(view["downtime_ms"].as_f64().unwrap() / 1e3));
        if number == 0 {
            // From now on the other node knows the tenant, too.
            clients.push(Auditor::start("there", Habit::Keeps, vec![addresses[1]]));
            clients.push(Auditor::start("new", Habit::Renews, addresses.to_vec()));
        }
    }
    let ledgers: Vec<_> = clients.into_iter().map(|client| client.end().unwrap()).collect();
    let found = read_back(addresses[count % 2], &ledgers).unwrap();
    assert_eq!(found.missing, 0, "{found:?}");
    println!("{count} migrations {modes:?}, {} records acknowledged and found", found.present);
    print("longest wait of a client during a migration, open connections", gaps);
    print("the same, new connections", new_gaps);
    print("parked until it runs there, by the node", downtimes);
    for ledger in &ledgers {
        assert_eq!(ledger.failures, 0, "{}: {:?}", ledger.name, ledger.failure);
    }
}

#[test]
fn a_tenant_moves_to_and_fro_and_no_request_fails() {
    moves(&["hybrid"]);
}

#[test]
fn all_modes_in_turn() {
    moves(&["post-copy", "stop-and-copy", "pre-copy", "hybrid"]);
}
