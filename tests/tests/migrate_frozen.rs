//! A host that freezes a vCPU of the source in the middle of anything, and lets it go on when the tenant has long been somewhere else: nothing runs twice.
//!
//! `NACRE_FROZEN_SEED=N` repeats a run.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use nacre_tests::auditor::{Auditor, Habit, fill, glance, read_back};
use nacre_tests::cluster::{Cluster, service_port, until};
use nacre_tests::frozen::{Frozen, vcpus};
use nacre_tests::job::Nacre;
use nacre_tests::node::Tenant;
use nacre_tests::random::Random;
use nacre_tests::skip::need;
use rustix::process::Pid;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Runs with a vCPU that is frozen at a random moment, in CI and with `--long`.
const RUNS: (u64, u64) = (6, 100);
/// What the service holds beside the records.
const FILLER_BYTES: usize = 16 << 20;
/// Records of each client before a migration, and after.
const BETWEEN: u64 = 20;
/// How long a migration that must not go on is watched.
const WATCHED: Duration = Duration::from_secs(2);
/// How long a vCPU stays frozen if the migration does not end before that: less than clients wait at a gate.
const LONGEST_FROST: Duration = Duration::from_secs(3);
/// CPU time of a thread that has work, in clock ticks.
const BUSY_TICKS: u64 = 20;

/// Counts down from 4,000,000,000 and prints a line.
const SPINNER: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "{\"turns\": 4000000000}\n")
  (func (export "_start") (local $left i64)
    (local.set $left (i64.const 4000000000))
    (loop $more
      (br_if $more (i64.ne (local.tee $left (i64.sub (local.get $left) (i64.const 1))) (i64.const 0))))
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 22))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

fn step(view: &Value) -> &str {
    view["step"].as_str().unwrap_or_default()
}

/// CPU time of a thread, in clock ticks; time in the guest is part of it.
fn ticks(process: Pid, thread: Pid) -> Result<u64> {
    let [process, thread] = [process, thread].map(Pid::as_raw_nonzero);
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/stat"))?;
    let after_name = text.rsplit(')').next().context("a name")?;
    // The fields from the third on; user and system time are the 14th and 15th.
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// The workers of the only CVM of a node.
fn workers(node: Pid) -> Result<Vec<Pid>> {
    let all = vcpus(node)?;
    ensure!(all.iter().filter(|(name, _)| name == "vcpu-0").count() == 1, "one CVM: {all:?}");
    Ok(all.into_iter().filter(|(name, _)| name != "vcpu-0").map(|(_, thread)| thread).collect())
}

/// A tenant with the key-value service at the first of two nodes.
struct Case {
    tenant: Tenant,
    port: u16,
}

impl Case {
    fn new(cluster: &Cluster<'_>, name: &str) -> Result<Case> {
        let case = Case { tenant: cluster.tenant(0, name)?, port: service_port() };
        cluster.deploy(0, &case.tenant, case.port)?;
        fill(cluster.hosts()[0].service(case.port), FILLER_BYTES)?;
        Ok(case)
    }

    fn order(&self, cluster: &Cluster<'_>, mode: &str) -> Result<String> {
        let order = json!({"to": cluster.hosts()[1].peer(), "mode": mode});
        let begun = cluster.move_to(0, &self.tenant, &order)?;
        begun.map_err(|answer| anyhow::anyhow!("it does not begin: {}", answer.error()))
    }

    /// One copy answers, by whichever node it is asked.
    fn is_one(&self, cluster: &Cluster<'_>, token: &str) -> Result<()> {
        let [one, other] = [0, 1].map(|place: usize| cluster.hosts()[place].service(self.port));
        ensure!(glance(one, &format!("SET probe {token}"))? == "+OK");
        ensure!(glance(other, "GET probe")? == token, "two copies answer");
        Ok(())
    }

    /// Whether all its workers are parked.
    fn is_idle(&self, cluster: &Cluster<'_>) -> Option<()> {
        let shown = cluster.ask(0, &self.tenant, "GET", "/v1/ps", b"").ok()?.json();
        (shown["cvm"]["active"] == 0).then_some(())
    }

    /// At the node where it is gone, nothing of it is left.
    fn is_buried(&self, cluster: &Cluster<'_>) -> Result<()> {
        until("the source's CVM has ended", || vcpus(cluster.pid(0).ok()?).ok()?.is_empty().then_some(()))
    }

    fn forget(self, cluster: &Cluster<'_>) -> Result<()> {
        [0, 1].into_iter().try_for_each(|place| cluster.forget(place, &self.tenant).map(drop))
    }
}

#[test]
fn who_holds_a_task_holds_the_hand_over_back() {
    let Some(nacre) = need("a frozen worker", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let case = Case::new(&cluster, "holds").unwrap();
    let module = wat::parse_str(SPINNER).unwrap();
    cluster.tell(0, &case.tenant, "PUT", "/v1/deployments/spin", &module).unwrap();
    let node = cluster.pid(0).unwrap();
    let threads = workers(node).unwrap();
    let before: Vec<u64> = threads.iter().map(|&thread| ticks(node, thread).unwrap()).collect();
    std::thread::scope(|scope| {
        let path = "/api/v1/namespaces/_/actions/spin?blocking=true&result=true";
        let spun = scope.spawn(|| cluster.ask(0, &case.tenant, "POST", path, b"{}"));
        let busy = |(&thread, &before): (&Pid, &u64)| {
            (ticks(node, thread).ok()? >= before + BUSY_TICKS).then_some(thread)
        };
        let worker = until("a worker is busy", || threads.iter().zip(&before).find_map(busy)).unwrap();
        let frozen = Frozen::new(worker).unwrap().expect("it runs");
        let id = case.order(&cluster, "stop-and-copy").unwrap();
        let begin = Instant::now();
        let mut seen = Value::Null;
        while begin.elapsed() < WATCHED {
            seen = cluster.view(0, &case.tenant, &id).unwrap();
            assert!(
                matches!(step(&seen), "preparing" | "attesting" | "copying"),
                "a vCPU still has a task: {seen}"
            );
        }
        assert_eq!(step(&seen), "copying", "only the worker is waited for: {seen}");
        frozen.thaw();
        let view = cluster.events(0, &case.tenant, &id).unwrap().last().unwrap();
        assert_eq!(step(&view), "complete", "{view}");
        let answer = spun.join().unwrap().unwrap();
        assert_eq!(answer.json()["turns"], 4_000_000_000_u64, "{answer:?}");
    });
    case.is_one(&cluster, "after-the-frost").unwrap();
    case.is_buried(&cluster).unwrap();
}

#[test]
fn who_wakes_after_the_tenant_has_gone_runs_nothing() {
    let Some(nacre) = need("workers that are frozen for long", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    for mode in ["hybrid", "post-copy", "pre-copy", "stop-and-copy"] {
        let case = Case::new(&cluster, &format!("late-{mode}")).unwrap();
        // Nobody asks the service for anything any more.
        let threads = workers(cluster.pid(0).unwrap()).unwrap();
        until("no worker has anything to do", || case.is_idle(&cluster)).unwrap();
        let frozen: Vec<Frozen> =
            threads.iter().map(|&thread| Frozen::new(thread).unwrap().expect("it is there")).collect();
        let id = case.order(&cluster, mode).unwrap();
        let mut events = cluster.events(0, &case.tenant, &id).unwrap();
        while !matches!(step(&events.hear().unwrap()), "running" | "complete") {}
        // It is the other node's, and has changed since: what the workers knew is old.
        case.is_one(&cluster, mode).unwrap();
        drop(frozen);
        let view = cluster.view(0, &case.tenant, &id).unwrap();
        let last = if step(&view) == "complete" { view } else { events.last().unwrap() };
        assert_eq!(step(&last), "complete", "{last}");
        case.is_one(&cluster, "after-the-frost").unwrap();
        case.is_buried(&cluster).unwrap();
        case.forget(&cluster).unwrap();
    }
}

/// What is to be done, drawn from a seed.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    mode: &'static str,
    vcpu: usize,
    /// From the order to the freezing.
    delay: Duration,
}

impl Plan {
    fn draw(seed: u64) -> Plan {
        let mut random = Random::of_seed(seed);
        let most = random.of(&[10_000, 100_000, 500_000]);
        Plan {
            seed,
            mode: random.of(&["hybrid", "pre-copy", "post-copy", "stop-and-copy"]),
            vcpu: random.below(3) as usize,
            delay: Duration::from_micros(random.below(most)),
        }
    }
}

/// One run; whether the vCPU was frozen until the tenant ran at the other node.
fn freezes(cluster: &Cluster<'_>, plan: Plan) -> Result<bool> {
    let case = Case::new(cluster, &format!("run-{}", plan.seed))?;
    let address = cluster.hosts()[0].service(case.port);
    let clients = [
        Auditor::start("kept", Habit::Keeps, vec![address]),
        Auditor::start("new", Habit::Renews, vec![address]),
    ];
    clients.iter().try_for_each(|client| client.wait_for(BETWEEN))?;
    let (_, thread) = vcpus(cluster.pid(0)?)?[plan.vcpu].clone();
    let begin = Instant::now();
    let id = case.order(cluster, plan.mode)?;
    while begin.elapsed() < plan.delay {
        std::hint::spin_loop();
    }
    // If the migration was faster, there is nothing to freeze any more.
    let frozen = Frozen::new(thread)?;
    let (mut view, frost) = (Value::Null, Instant::now());
    while !matches!(step(&view), "running" | "complete" | "aborted") && frost.elapsed() < LONGEST_FROST {
        view = cluster.view(0, &case.tenant, &id)?;
    }
    let was_late = frozen.is_some() && matches!(step(&view), "running" | "complete");
    // Without its vCPU 0 the source answers nothing that the tenant needs from it.
    if was_late && plan.vcpu != 0 {
        clients[0].wait_for(1)?;
    }
    drop(frozen);
    let view = match step(&view) {
        "complete" => view,
        _ => cluster.events(0, &case.tenant, &id)?.last()?,
    };
    ensure!(step(&view) == "complete", "{view}");
    clients.iter().try_for_each(|client| client.wait_for(BETWEEN))?;
    let ledgers = clients.map(Auditor::end).into_iter().collect::<Result<Vec<_>>>()?;
    for ledger in &ledgers {
        ensure!(ledger.failures == 0, "{}: {:?}", ledger.name, ledger.failure);
    }
    case.is_one(cluster, "after-the-frost")?;
    let found = read_back(cluster.hosts()[1].service(case.port), &ledgers)?;
    ensure!(found.missing == 0, "{found:?}");
    case.is_buried(cluster)?;
    case.forget(cluster)?;
    Ok(was_late)
}

#[test]
fn a_vcpu_that_is_frozen_at_any_moment_costs_time_only() {
    let Some(nacre) = need("vCPUs that are frozen at random", Nacre::find()) else { return };
    let cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let seeds = match std::env::var("NACRE_FROZEN_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => {
            let count = if nacre_tests::long() { RUNS.1 } else { RUNS.0 };
            let first = std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_millis() as u64);
            first..first + count
        }
    };
    let (mut late, mut runs) = (0, 0);
    for plan in seeds.map(Plan::draw) {
        let begin = Instant::now();
        let was_late = freezes(&cluster, plan)
            .unwrap_or_else(|error| panic!("NACRE_FROZEN_SEED={} {plan:?}: {error:?}", plan.seed));
        println!("{plan:?}: {was_late}, {:.1} s", begin.elapsed().as_secs_f64());
        (late, runs) = (late + u64::from(was_late), runs + 1);
    }
    println!("{runs} vCPUs frozen, {late} of them until the tenant ran at the other node");
}
