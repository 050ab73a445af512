//! The second part of `nacre demo`: a node with a function and a service. It is idle, is called, gets a burst of calls that
//! wakes workers, and takes no CPU when that is over.

use super::chart::{Chart, Sample};
use super::load::{Calls, DARTS, Door, Times, Used, Users, View, Watch};
use super::process::Node;
use super::screen::Screen;
use crate::failure::Failure;
use crate::node::client::Client;
use crate::values::format_size;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::{Method, StatusCode};
use nacre_bench::load::resp::Kind;
use serde::Serialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, sleep};

const DARTS_MODULE: &[u8] = include_bytes!("../../../apps/darts/darts.wasm");
const KV_MODULE: &[u8] = include_bytes!("../../../apps/kv/kv.wasm");

/// Calls before the burst.
const FEW: usize = 20;
/// Connections of the burst, and how long it lasts.
const CONNECTIONS: usize = 32;
const BURST: Duration = Duration::from_secs(3);
/// What comes before and after it in the chart.
const CALM: Duration = Duration::from_secs(1);
/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(100);
/// Users of the service, their commands at once, and how long they set and get.
const USERS: usize = 8;
const PIPELINE: u64 = 16;
const USE: Duration = Duration::from_millis(1500);
/// Ports that are tried for the service: another program may take one just before the node does.
const PORTS: usize = 5;
/// How long workers may take to park after the last answer, and how often they are looked at.
const PARK_PATIENCE: Duration = Duration::from_secs(30);
const PARK_LOOK: Duration = Duration::from_millis(5);
/// How long the idle node is watched.
const IDLE: Duration = Duration::from_secs(3);

/// What happened.
#[derive(Debug, Serialize)]
pub struct Summary {
    start_ms: f64,
    workers: u8,
    cpus: usize,
    function: Function,
    service: Service,
    idle: Idle,
}

#[derive(Debug, Serialize)]
struct Function {
    deploy_ms: f64,
    /// With the launch of the tenant's CVM.
    first_call_ms: f64,
    warm: Times,
    burst: Burst,
    pi: f64,
    pi_standard_error: f64,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Burst {
    connections: usize,
    seconds: f64,
    calls: usize,
    calls_per_second: f64,
    times: Times,
    active_before: u32,
    active_peak: u32,
    active_after: u32,
    wakes: u64,
    /// From the last answer until no worker was active.
    parked_ms: f64,
}

#[derive(Debug, Serialize)]
struct Service {
    deploy_ms: f64,
    address: SocketAddr,
    connections: usize,
    pipeline: u64,
    set: Commands,
    get: Commands,
    /// By its own word; the same were set.
    keys: u64,
    active_peak: u32,
}

#[derive(Debug, Serialize)]
struct Commands {
    commands: u64,
    per_second: f64,
    /// Of batches.
    times: Times,
}

impl Commands {
    fn new(used: &Used) -> Self {
        let per_second = used.commands as f64 / used.elapsed.as_secs_f64();
        Self { commands: used.commands, per_second, times: Times::of(&used.times) }
    }
}

#[derive(Debug, Serialize)]
struct Idle {
    active: u32,
    seconds: f64,
    cvm_cpu_ms: f64,
    node_cpu_ms: f64,
}

/// A node with a tenant.
struct Place<'s> {
    node: &'s Node,
    door: Door,
    client: Client,
    workers: u32,
    cpus: usize,
    screen: &'s Screen,
}

/// Runs it on a node that was started; the tenant's CVM has this size.
///
/// # Errors
/// If the node does not do what it should.
pub fn run(
    node: &Node,
    start_ms: f64,
    workers: u8,
    memory_bytes: u64,
    screen: &Screen,
) -> Result<Summary, Failure> {
    let (memory, cpus) = (format_size(memory_bytes), cpus());
    // A node's CVMs have one at least.
    let workers = workers.max(1);
    screen.line(&format!(
        "tenant         has a CVM of {memory} with up to {workers} workers; this machine has {cpus} CPUs"
    ))?;
    let place = Place::new(node, workers.into(), memory_bytes, screen)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("nacre", format_args!("no runtime: {error}")))?;
    let tasks = tokio::task::LocalSet::new();
    let deploy_ms = place.deploy("darts", "", DARTS_MODULE)?;
    let function = tasks.block_on(&runtime, place.function(deploy_ms))?;
    let (port, deploy_ms) = place.deploy_service()?;
    let (service, idle) =
        tasks.block_on(&runtime, place.service(port, deploy_ms)).map_err(|failure| place.why(failure))?;
    place.leave()?;
    Ok(Summary { start_ms, workers, cpus, function, service, idle })
}

impl<'s> Place<'s> {
    fn new(node: &'s Node, workers: u32, memory_bytes: u64, screen: &'s Screen) -> Result<Self, Failure> {
        let limits = json!({ "workers_max": workers, "memory_bytes": memory_bytes });
        let body = json!({ "name": "demo", "limits": limits }).to_string().into_bytes();
        let admin = Client::unix(&node.end.admin);
        let answer = admin.send(Method::POST, "/v1/tenants", "application/json", body)?.success("tenant")?;
        let auth = answer.json()?["auth"].as_str().unwrap_or_default().to_owned();
        let authorization = format!("Basic {}", STANDARD.encode(auth));
        let client = Client::http(&format!("http://{}", node.end.address))?;
        let client = client.with_authorization(authorization.clone());
        let door = Door { address: node.end.address, authorization };
        Ok(Self { node, door, client, workers, cpus: cpus(), screen })
    }

    /// The tenant and its CVM end.
    fn leave(&self) -> Result<(), Failure> {
        let admin = Client::unix(&self.node.end.admin);
        admin.send(Method::DELETE, "/v1/tenants/demo", "application/json", Vec::new())?.success("tenant")?;
        Ok(())
    }

    /// Deploys a module; how long that took in milliseconds.
    fn deploy(&self, name: &str, query: &str, module: &[u8]) -> Result<f64, Failure> {
        let begin = Instant::now();
        let path = format!("/v1/deployments/{name}{query}");
        self.client.send(Method::PUT, &path, "application/wasm", module.to_vec())?.success(name)?;
        Ok(milliseconds(begin.elapsed()))
    }

    /// Deploys the service on a port that is free; the port, and how long it took.
    fn deploy_service(&self) -> Result<(u16, f64), Failure> {
        let mut tries = PORTS;
        loop {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
            let free = free.map_err(|error| {
                Failure::new("port", format_args!("there is none: {error}; close some connections"))
            })?;
            let begin = Instant::now();
            let path = format!("/v1/deployments/kv?service=true&port={}", free.port());
            let answer = self.client.send(Method::PUT, &path, "application/wasm", KV_MODULE.to_vec())?;
            tries -= 1;
            if answer.status == StatusCode::CONFLICT && tries > 0 {
                continue;
            }
            answer.success("kv")?;
            return Ok((free.port(), milliseconds(begin.elapsed())));
        }
    }

    /// A failure of the service, as the service's end if it has ended.
    fn why(&self, failure: Failure) -> Failure {
        let described = self.client.send(Method::GET, "/v1/deployments/kv", "application/json", Vec::new());
        let described = described.and_then(|answer| answer.json()).unwrap_or_default();
        match described.pointer("/status/last_end").and_then(Value::as_str) {
            Some(end) => Failure::new(
                "service kv",
                format_args!("{end}; run the demo again, with more --memory if it lacks that"),
            ),
            None => failure,
        }
    }

    /// The function: a first call, a few, a burst.
    async fn function(&self, deploy_ms: f64) -> Result<Function, Failure> {
        let calls = Calls::new(self.door.clone());
        let first_call_ms = milliseconds(calls.some(1).await?[0]);
        let warm = Times::of(&calls.some(FEW).await?);
        self.screen.line(&format!(
            "function       darts is deployed in {deploy_ms:.0} ms; its first call launches the CVM and takes {first_call_ms:.1} ms, \
             the next {FEW} take {:.1} ms (p50)\n",
            warm.p50_ms
        ))?;
        let mut watch = Watch::open(&self.door).await?;
        // The first call leaves nothing behind that runs.
        parked(&mut watch).await?;
        let before = watch.look().await?;
        let chart = RefCell::new(Chart::new(self.workers, self.cpus));
        let story = async {
            chart.borrow_mut().mark("nothing");
            sleep(CALM).await;
            chart.borrow_mut().mark("1 caller");
            calls.burst(1, CALM).await?;
            chart.borrow_mut().mark("32 callers");
            let called = calls.burst(CONNECTIONS, BURST).await?;
            chart.borrow_mut().mark("nothing");
            let (after, parked) = parked(&mut watch).await?;
            sleep(CALM).await;
            Ok::<_, Failure>((called, after, parked))
        };
        let mut sampler = Watch::open(&self.door).await?;
        let (called, after, parked) = tokio::select! {
            told = story => told?,
            failed = sample(&mut sampler, &chart, &calls, Some(self.screen)) => match failed? {},
        };
        let samples = chart.into_inner().samples().to_vec();
        let (pi, pi_standard_error) = calls.pi();
        let burst = Burst {
            connections: CONNECTIONS,
            seconds: called.elapsed.as_secs_f64(),
            calls: called.times.len(),
            calls_per_second: called.times.len() as f64 / called.elapsed.as_secs_f64(),
            times: Times::of(&called.times),
            active_before: before.active,
            active_peak: peak(&samples),
            active_after: after.active,
            wakes: after.wakes.saturating_sub(before.wakes),
            parked_ms: milliseconds(parked),
        };
        let function = Function { deploy_ms, first_call_ms, warm, burst, pi, pi_standard_error, samples };
        self.tell_function(&function)?;
        Ok(function)
    }

    fn tell_function(&self, function: &Function) -> Result<(), Failure> {
        let burst = &function.burst;
        let (darts, workers) = (grouped(DARTS), self.workers);
        self.screen.line(&format!(
            "\nburst          {} calls from {} connections in {:.1} s, each throws {darts} darts: {} a second, p50 {:.1} ms, p99 {:.1} ms",
            grouped(burst.calls as u64),
            burst.connections,
            burst.seconds,
            grouped(burst.calls_per_second as u64),
            burst.times.p50_ms,
            burst.times.p99_ms,
        ))?;
        self.screen.line(&format!(
            "result         pi is about {:.5} (standard error {:.5})",
            function.pi, function.pi_standard_error
        ))?;
        self.screen.line(&format!(
            "workers        {} active before, {} of {workers} at the peak, {} after: {:.1} ms after the last answer; woken {} times",
            burst.active_before,
            burst.active_peak,
            burst.active_after,
            burst.parked_ms,
            grouped(burst.wakes),
        ))
    }

    /// The service under load, then nothing.
    async fn service(&self, port: u16, deploy_ms: f64) -> Result<(Service, Idle), Failure> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut users = Users::connect(address, USERS).await?;
        self.screen.line(&format!("service        kv is deployed at {address} in {deploy_ms:.0} ms"))?;
        let chart = RefCell::new(Chart::new(self.workers, self.cpus));
        let calls = Calls::new(self.door.clone());
        let mut sampler = Watch::open(&self.door).await?;
        let story = async {
            let set = users.work(Kind::Set, PIPELINE, USE).await?;
            let get = users.work(Kind::Get, PIPELINE, USE).await?;
            Ok::<_, Failure>((set, get))
        };
        let (set, get) = tokio::select! {
            told = story => told?,
            failed = sample(&mut sampler, &chart, &calls, None) => match failed? {},
        };
        let keys = users.keys_in_service().await?;
        if keys != users.keys() {
            let why = format!("has {keys} keys and should have {}; run the demo again", users.keys());
            return Err(Failure::new("service kv", why));
        }
        drop(users);
        let service = Service {
            deploy_ms,
            address,
            connections: USERS,
            pipeline: PIPELINE,
            set: Commands::new(&set),
            get: Commands::new(&get),
            keys,
            active_peak: peak(chart.borrow().samples()),
        };
        for (name, commands) in [("SET", &service.set), ("GET", &service.get)] {
            self.screen.line(&format!(
                "  {name}          {} a second from {USERS} connections, {PIPELINE} at once on each: p50 {:.2} ms, p99 {:.2} ms",
                grouped(commands.per_second as u64),
                commands.times.p50_ms,
                commands.times.p99_ms,
            ))?;
        }
        self.screen.line(&format!(
            "  keys         {}; every answer was what had been set; {} active at the peak",
            grouped(keys),
            counted(service.active_peak)
        ))?;
        let idle = self.idle(sampler).await?;
        Ok((service, idle))
    }

    /// What it costs to have all of that and do nothing.
    async fn idle(&self, mut watch: Watch) -> Result<Idle, Failure> {
        let (before, _) = parked(&mut watch).await?;
        let (begin, node) = (Instant::now(), self.node.cpu_time());
        sleep(IDLE).await;
        let (elapsed, node) = (begin.elapsed(), self.node.cpu_time().saturating_sub(node));
        let after = watch.look().await?;
        let cvm = Duration::from_nanos(after.cpu_ns.saturating_sub(before.cpu_ns));
        let idle = Idle {
            active: after.active,
            seconds: elapsed.as_secs_f64(),
            cvm_cpu_ms: milliseconds(cvm),
            node_cpu_ms: milliseconds(node),
        };
        self.screen.line(&format!(
            "idle           {} workers active; in the next {:.1} s the CVM takes {:.1} ms of CPU, the whole node {:.1} ms",
            idle.active, idle.seconds, idle.cvm_cpu_ms, idle.node_cpu_ms
        ))?;
        Ok(idle)
    }
}

/// Samples the CVM into the chart, and shows it, until something fails.
async fn sample(
    watch: &mut Watch,
    chart: &RefCell<Chart>,
    calls: &Rc<Calls>,
    screen: Option<&Screen>,
) -> Result<Infallible, Failure> {
    let mut tick = tokio::time::interval(SAMPLE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    let begin = Instant::now();
    let (mut then, mut done, mut before) = (begin, calls.done.get(), watch.look().await?);
    loop {
        tick.tick().await;
        // Each rate by one clock: answers may be late, so CPU time goes with the node's.
        let (now, done_now) = (Instant::now(), calls.done.get());
        let rate = (done_now - done) as f64 / (now - then).as_secs_f64();
        let view = watch.look().await?;
        let seconds = view.age_ms.saturating_sub(before.age_ms).max(1) as f64 / 1000.0;
        let cpus = view.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e9 / seconds;
        let View { active, waiting, .. } = view;
        chart.borrow_mut().push(Sample { at: now - begin, active, waiting, cpus, calls: rate });
        if let Some(screen) = screen {
            screen.chart(&chart.borrow())?;
        }
        (then, done, before) = (now, done_now, view);
    }
}

/// Waits until no worker is active or wants to be; how it is then, and how long it took.
async fn parked(watch: &mut Watch) -> Result<(View, Duration), Failure> {
    let begin = Instant::now();
    loop {
        let view = watch.look().await?;
        let elapsed = begin.elapsed();
        if view.active == 0 && view.waiting == 0 {
            return Ok((view, elapsed));
        }
        if elapsed > PARK_PATIENCE {
            let why =
                format!("{} workers are active long after the last answer; run the demo again", view.active);
            return Err(Failure::new("node", why));
        }
        sleep(PARK_LOOK).await;
    }
}

/// CPUs that this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn peak(samples: &[Sample]) -> u32 {
    samples.iter().map(|sample| sample.active).max().unwrap_or(0)
}

fn counted(workers: u32) -> String {
    format!("{workers} worker{}", if workers == 1 { "" } else { "s" })
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A number with commas between its thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
