//! Nodes are killed in the middle of migrations, at any moment and in any mode: there is one copy of the tenant with everything that was
//! acknowledged, or it is shown as lost. Never two, and none that is silently empty.
//!
//! `NACRE_CHAOS_SEED=N` repeats a run.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use nacre_tests::auditor::{Auditor, Found, Habit, Ledger, fill, glance, is_alive, read_back};
use nacre_tests::cluster::{Cluster, service_port, until};
use nacre_tests::job::Nacre;
use nacre_tests::node::Tenant;
use nacre_tests::random::Random;
use nacre_tests::skip::need;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Runs in CI and with `--long`.
const RUNS: (u64, u64) = (6, 150);
/// What the service holds beside the records.
const FILLER_BYTES: usize = 24 << 20;
/// Records of each client before the migration begins.
const BEFORE: u64 = 20;
/// Both nodes.
const BOTH: [usize; 2] = [0, 1];

/// The steps of a migration in their order; none is before the first.
const STEPS: [&str; 8] =
    ["preparing", "attesting", "copying", "parked", "staged", "gone", "running", "complete"];

fn place_of(step: &str) -> usize {
    STEPS.iter().position(|known| *known == step).unwrap_or(STEPS.len())
}

/// What is to be done, drawn from a seed.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    /// The service's.
    port: u16,
    source: usize,
    victim: usize,
    mode: &'static str,
    /// Bytes per second.
    bandwidth: Option<u64>,
    /// The kill follows this step...
    step: &'static str,
    /// ... by so much.
    delay: Duration,
}

impl Plan {
    fn draw(seed: u64) -> Plan {
        let mut random = Random::of_seed(seed);
        let most = random.of(&[0, 500, 5_000, 50_000]);
        Plan {
            seed,
            port: service_port(),
            source: random.of(&BOTH),
            victim: random.of(&BOTH),
            mode: random.of(&["hybrid", "hybrid", "pre-copy", "post-copy", "stop-and-copy"]),
            bandwidth: random.of(&[None, None, Some(64 << 20)]),
            // More often where it matters.
            step: random.of(&[&STEPS[..], &["parked", "staged", "gone", "running"]].concat()),
            delay: Duration::from_micros(random.below(most + 1)),
        }
    }

    fn destination(&self) -> usize {
        1 - self.source
    }
}

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// A node has everything.
    Alive(usize),
    /// Shown as lost.
    Lost,
    /// A crash of the service where it was, outside of any hand-over: it began again.
    BeganAgain(usize),
}

/// Waits for the step and the moment after it; the step that was seen last.
fn until_moment(cluster: &Cluster<'_>, tenant: &Tenant, id: &str, plan: &Plan) -> Result<String> {
    let mut events = cluster.events(plan.source, tenant, id)?;
    let mut seen = String::new();
    while let Some(view) = events.hear() {
        seen = view["step"].as_str().context("a step")?.to_owned();
        if place_of(&seen) >= place_of(plan.step) {
            break;
        }
    }
    let begin = Instant::now();
    while begin.elapsed() < plan.delay {
        std::hint::spin_loop();
    }
    Ok(seen)
}

fn step(view: &Value) -> &str {
    view["step"].as_str().unwrap_or_default()
}

fn phase(shown: &Value) -> &str {
    shown["status"]["phase"].as_str().unwrap_or_default()
}

/// Whether a node shows the service as one that runs there.
fn is_here(cluster: &Cluster<'_>, plan: &Plan, place: usize, shown: &Value) -> bool {
    let address = cluster.hosts()[place].service(plan.port).to_string();
    phase(shown) == "running" && shown["address"] == address
}

/// Waits until nothing is undecided any more: the migration at its source, and the service as each node shows it.
fn settled(cluster: &Cluster<'_>, tenant: &Tenant, id: &str, plan: &Plan) -> Result<(Value, [Value; 2])> {
    let mut last = String::new();
    let found = until("everything is decided", || {
        let path = format!("/v1/migrations/{id}");
        let answer = cluster.ask(plan.source, tenant, "GET", &path, b"").ok()?;
        // Killed before it wrote anything of the migration.
        let view = if answer.status == 404 { json!({"step": "aborted"}) } else { answer.json() };
        let shown: Vec<Value> = BOTH.iter().filter_map(|&place| cluster.shown(place, tenant).ok()).collect();
        last = format!("{view} {shown:?}");
        // By the node where it is: what the other one shows of it was asked for a moment earlier or later.
        let is_here = |(place, shown): (usize, &Value)| is_here(cluster, plan, place, shown);
        let decided =
            shown.iter().any(|shown| phase(shown) == "lost") || shown.iter().enumerate().any(is_here);
        let over = matches!(step(&view), "complete" | "aborted" | "lost");
        let shown: [Value; 2] = shown.try_into().ok()?;
        (decided && over).then_some((view, shown))
    });
    found.with_context(|| last)
}

/// Whether it is the same store that answers at both addresses, if both do.
fn is_one(addresses: &[SocketAddr; 2], token: &str) -> Result<()> {
    let [one, other] = *addresses;
    let written = glance(one, &format!("SET probe {token}"));
    let read = glance(other, "GET probe");
    match (written, read) {
        (Ok(written), Ok(read)) if written == "+OK" => ensure!(read == token, "two copies answer: {read}"),
        (Ok(written), _) => ensure!(written == "+OK", "a strange answer: {written}"),
        _ => {}
    }
    Ok(())
}

/// What became of the tenant, and whether that is as documented.
fn judge(
    cluster: &Cluster<'_>,
    tenant: &Tenant,
    id: &str,
    plan: &Plan,
    (view, shown): (Value, [Value; 2]),
    ledgers: &[Ledger],
) -> Result<Outcome> {
    let addresses = BOTH.map(|place| cluster.hosts()[place].service(plan.port));
    let state = || format!("{view}, {shown:?}");
    let owners: Vec<usize> =
        BOTH.into_iter().filter(|&place| is_here(cluster, plan, place, &shown[place])).collect();
    let owner = match owners[..] {
        [owner] => owner,
        [] => {
            ensure!(
                shown.iter().any(|shown| phase(shown) == "lost"),
                "nowhere, and nobody says so: {}",
                state()
            );
            for address in addresses {
                ensure!(!is_alive(address), "lost, and yet it answers at {address}: {}", state());
            }
            return Ok(Outcome::Lost);
        }
        _ => bail!("two copies: {}", state()),
    };
    until("the service answers", || is_alive(addresses[owner]).then_some(()))?;
    is_one(&addresses, &format!("token{}", plan.seed))?;
    let Found { present, missing } = read_back(addresses[owner], ledgers)?;
    if missing == 0 {
        return Ok(Outcome::Alive(owner));
    }
    // Nothing of it is left, or it is half a tenant.
    let state = format!("{present} records there, {missing} not: {}", state());
    let incoming = cluster.view(plan.destination(), tenant, id).unwrap_or_default();
    let crashed_before = plan.victim == plan.source && owner == plan.source && step(&view) == "aborted";
    let crashed_after = plan.victim == plan.destination()
        && owner == plan.destination()
        && step(&view) == "complete"
        && step(&incoming) == "complete";
    ensure!(crashed_before || crashed_after, "silently empty: {state}, {incoming}");
    Ok(Outcome::BeganAgain(owner))
}

/// One run: a tenant of its own, clients, a migration, a kill, and what is found then. Afterwards it still can be moved.
fn chaos(cluster: &mut Cluster<'_>, plan: Plan) -> Result<(String, Outcome)> {
    let Plan { port, source: place, .. } = plan;
    let tenant = cluster.tenant(place, &format!("run-{}", plan.seed))?;
    cluster.deploy(place, &tenant, port)?;
    let addresses = BOTH.map(|place| cluster.hosts()[place].service(port));
    fill(addresses[place], FILLER_BYTES)?;
    let clients = [
        Auditor::start("kept", Habit::Keeps, vec![addresses[place]]),
        Auditor::start("new", Habit::Renews, vec![addresses[place]]),
    ];
    clients.iter().try_for_each(|client| client.wait_for(BEFORE))?;
    let to = cluster.hosts()[plan.destination()].peer();
    let order = json!({"to": to, "mode": plan.mode, "bandwidth": plan.bandwidth});
    let begun = cluster.move_to(place, &tenant, &order)?;
    let id = begun.map_err(|answer| anyhow::anyhow!("it does not begin: {}", answer.error()))?;
    let seen = until_moment(cluster, &tenant, &id, &plan)?;
    cluster.kill(plan.victim)?;
    let log = cluster.buried(plan.victim)?;
    ensure!(!log.contains("panicked"), "{log}");
    cluster.start(plan.victim)?;
    let decided = settled(cluster, &tenant, &id, &plan)?;
    // Whose connection went over a node that lost its tenant waits for long.
    let ledgers = clients.map(Auditor::abandon).into_iter().collect::<Result<Vec<_>>>()?;
    let outcome = judge(cluster, &tenant, &id, &plan, decided, &ledgers)?;
    aftermath(cluster, &tenant, port, outcome, &ledgers)?;
    for place in BOTH {
        cluster.forget(place, &tenant)?;
    }
    Ok((seen, outcome))
}

/// What was left behind by the kill is in nobody's way: the tenant moves, or is deployed again.
fn aftermath(
    cluster: &Cluster<'_>,
    tenant: &Tenant,
    port: u16,
    outcome: Outcome,
    ledgers: &[Ledger],
) -> Result<()> {
    let owner = match outcome {
        Outcome::Alive(owner) | Outcome::BeganAgain(owner) => owner,
        Outcome::Lost => {
            let lost =
                |&place: &usize| cluster.shown(place, tenant).is_ok_and(|shown| phase(&shown) == "lost");
            let place = BOTH.into_iter().find(lost).context("it is lost somewhere")?;
            return cluster.deploy(place, tenant, port);
        }
    };
    let other = 1 - owner;
    let view = cluster.migrate(owner, other, tenant, "hybrid")?;
    ensure!(step(&view) == "complete", "it does not move any more: {view}");
    let address = cluster.hosts()[other].service(port);
    ensure!(is_alive(address), "it has moved, and does not answer");
    if matches!(outcome, Outcome::Alive(_)) {
        let found = read_back(address, ledgers)?;
        ensure!(found.missing == 0, "after another migration: {found:?}");
    }
    Ok(())
}

fn seeds() -> Vec<u64> {
    if let Some(seed) = std::env::var("NACRE_CHAOS_SEED").ok().and_then(|text| text.parse().ok()) {
        return vec![seed];
    }
    let count = if nacre_tests::long() { RUNS.1 } else { RUNS.0 };
    let first = std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_millis() as u64);
    (first..first + count).collect()
}

#[test]
fn a_kill_at_any_moment_leaves_one_copy_or_says_that_it_is_lost() {
    let Some(nacre) = need("migrations and kills", Nacre::find()) else { return };
    let mut cluster = Cluster::new(&nacre, &[&[], &[]]).unwrap();
    let mut outcomes = [0; 3];
    for seed in seeds() {
        let (plan, begin) = (Plan::draw(seed), Instant::now());
        let (seen, outcome) = match chaos(&mut cluster, plan) {
            Ok(run) => run,
            Err(error) => panic!("NACRE_CHAOS_SEED={seed} {plan:?}: {error:?}"),
        };
        println!("{plan:?}: killed after {seen}: {outcome:?}, {:.1} s", begin.elapsed().as_secs_f64());
        outcomes[match outcome {
            Outcome::Alive(_) => 0,
            Outcome::Lost => 1,
            Outcome::BeganAgain(_) => 2,
        }] += 1;
    }
    let [alive, lost, again] = outcomes;
    println!("{alive} alive, {lost} lost, {again} began again after an ordinary crash");
}
