//! What is counted, for Prometheus. Events are counted where they happen, by the functions here; what is a state (CVMs,
//! memory, CPU) is looked at when somebody asks ([`state`]), so that nothing is kept about what is gone.
//!
//! Labels hold names of tenants and words of ours, never data of tenants.

mod durations;

pub use durations::Durations;

use crate::migration::Step;
use crate::records::Status;
use crate::runner::View;
use durations::BUCKETS;
use metrics::{Counter, counter, describe_counter, describe_histogram, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::fmt::Write;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Begins to count; a second call changes nothing.
pub fn init() {
    HANDLE.get_or_init(|| {
        let builder =
            PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS);
        let handle = builder.and_then(PrometheusBuilder::install_recorder).ok();
        describe();
        handle
    });
}

fn describe() {
    describe_counter!("nacre_http_requests_total", "HTTP requests by kind of interface and status code.");
    describe_counter!("nacre_activations_total", "Activations that ended, by status.");
    describe_counter!("nacre_cold_starts_total", "Activations whose code had to be brought into a CVM.");
    describe_counter!(
        "nacre_activations_refused_total",
        "Activations refused because a tenant ran as many as it may."
    );
    describe_histogram!("nacre_cvm_launch_duration_seconds", "Time to launch a CVM.");
    describe_counter!("nacre_cvms_lost_total", "CVMs that ended by themselves.");
    describe_histogram!("nacre_compile_duration_seconds", "Time to compile a module.");
    describe_histogram!("nacre_store_commit_duration_seconds", "Time of transactions of the store.");
    describe_counter!("nacre_store_changes_total", "Changes that the store's transactions had.");
    describe_counter!("nacre_service_connections_total", "Connections that services accepted.");
    describe_counter!("nacre_service_restarts_total", "Services that were started again.");
    describe_counter!("nacre_migrations_total", "Migrations away from here that ended, by outcome.");
    describe_counter!("nacre_tenants_lost_total", "Tenants whose memory was lost in a migration.");
    describe_histogram!(
        "nacre_migration_downtime_seconds",
        "Time from parked tasks here until the other node said that they run."
    );
}

/// What is counted for every request to one kind of interface: to look a counter up costs as much as a tenth of a call.
pub struct Interface {
    name: &'static str,
    duration: Durations,
    /// By status code, from 100 on.
    codes: [OnceLock<Counter>; 500],
}

impl Interface {
    const fn new(name: &'static str) -> Self {
        Self { name, duration: Durations::new(), codes: [const { OnceLock::new() }; 500] }
    }

    /// The interface that a path belongs to.
    #[must_use]
    pub fn of(path: &str) -> &'static Self {
        let [openwhisk, admin, native, other] = &INTERFACES;
        match path {
            path if path.starts_with("/api/") => openwhisk,
            path if ["/v1/tenants", "/v1/peers", "/v1/identity"]
                .iter()
                .any(|admin| path.starts_with(admin)) =>
            {
                admin
            }
            path if path.starts_with("/v1/") => native,
            _ => other,
        }
    }

    /// A request was answered.
    pub fn request(&self, code: u16, elapsed: Duration) {
        self.duration.record(elapsed);
        let new =
            || counter!("nacre_http_requests_total", "interface" => self.name, "code" => code.to_string());
        if let Some(counter) = usize::from(code).checked_sub(100).and_then(|code| self.codes.get(code)) {
            counter.get_or_init(new).increment(1);
        }
    }
}

static INTERFACES: [Interface; 4] =
    [Interface::new("openwhisk"), Interface::new("admin"), Interface::new("native"), Interface::new("other")];
static ACTIVATION_DURATION: Durations = Durations::new();
static ACTIVATION_WAIT: Durations = Durations::new();

/// The histograms of what happens for every call.
fn durations(text: &mut String) {
    let name = "nacre_http_request_duration_seconds";
    Family::new(text, "histogram", name, "Time from a request's head to its response.");
    for interface in &INTERFACES {
        interface.duration.show(text, name, &format!("interface=\"{}\"", interface.name));
    }
    let families = [
        (
            "nacre_activation_duration_seconds",
            "Time of activations from acceptance to end.",
            &ACTIVATION_DURATION,
        ),
        (
            "nacre_activation_wait_seconds",
            "Time of activations before their first instruction.",
            &ACTIVATION_WAIT,
        ),
    ];
    for (name, help, durations) in families {
        Family::new(text, "histogram", name, help);
        durations.show(text, name, "");
    }
}

/// An activation ended.
pub fn activation(status: Status, elapsed: Duration, wait: Duration, cold: bool) {
    static SUCCESS: LazyLock<Counter> = LazyLock::new(|| activations(Status::Success));
    match status {
        Status::Success => SUCCESS.increment(1),
        other => activations(other).increment(1),
    }
    ACTIVATION_DURATION.record(elapsed);
    ACTIVATION_WAIT.record(wait);
    if cold {
        counter!("nacre_cold_starts_total").increment(1);
    }
}

fn activations(status: Status) -> Counter {
    counter!("nacre_activations_total", "status" => status.words())
}

/// A call was refused for its tenant's concurrency.
pub fn refused() {
    counter!("nacre_activations_refused_total").increment(1);
}

/// A service accepted a client.
pub fn service_connection() {
    counter!("nacre_service_connections_total").increment(1);
}

/// A service was started again.
pub fn service_restart() {
    counter!("nacre_service_restarts_total").increment(1);
}

/// A migration away from here ended.
pub fn migration(outcome: Step, downtime_ms: Option<f64>) {
    let outcome = match outcome {
        Step::Complete => "complete",
        Step::Lost => "lost",
        _ => "aborted",
    };
    counter!("nacre_migrations_total", "outcome" => outcome).increment(1);
    if let Some(ms) = downtime_ms {
        histogram!("nacre_migration_downtime_seconds").record(ms / 1e3);
    }
}

/// A tenant's memory is nowhere any more.
pub fn lost_tenant() {
    counter!("nacre_tenants_lost_total").increment(1);
}

/// A CVM was launched.
pub fn launched(elapsed: Duration) {
    histogram!("nacre_cvm_launch_duration_seconds").record(elapsed);
}

/// A CVM ended by itself.
pub fn lost_cvm() {
    counter!("nacre_cvms_lost_total").increment(1);
}

/// A compilation ended.
pub fn compiled(ok: bool, elapsed: Duration) {
    histogram!("nacre_compile_duration_seconds", "ok" => if ok { "true" } else { "false" }).record(elapsed);
}

/// A transaction of the store ended.
pub fn committed(changes: usize, elapsed: Duration) {
    histogram!("nacre_store_commit_duration_seconds").record(elapsed);
    counter!("nacre_store_changes_total").increment(changes as u64);
}

/// Empties what was recorded into the histograms; to be called now and then.
pub fn upkeep() {
    if let Some(Some(handle)) = HANDLE.get() {
        handle.run_upkeep();
    }
}

/// What [`state`] shows besides the CVMs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// Tenants.
    pub tenants: usize,
    /// Actions of all tenants.
    pub actions: usize,
    /// Services of all tenants.
    pub services: usize,
    /// Modules that wait to be compiled.
    pub compile_queue: usize,
    /// Client connections.
    pub connections: usize,
    /// Seconds since the start.
    pub uptime: f64,
}

/// Everything, in Prometheus' text format.
#[must_use]
pub fn render(views: &[View], gauges: Gauges) -> String {
    let mut text = HANDLE.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default();
    durations(&mut text);
    state(&mut text, views, gauges);
    text
}

/// One family of the text format.
struct Family<'t>(&'t mut String, &'static str);

impl<'t> Family<'t> {
    fn new(text: &'t mut String, kind: &str, name: &'static str, help: &str) -> Self {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self(text, name)
    }

    /// `labels` as in the text format; the names in it hold nothing to escape.
    fn value(&mut self, labels: &str, value: f64) {
        // Writing to a string does not fail.
        let _ = if labels.is_empty() {
            writeln!(self.0, "{} {value}", self.1)
        } else {
            writeln!(self.0, "{}{{{labels}}} {value}", self.1)
        };
    }
}

/// What is so now.
fn state(text: &mut String, views: &[View], gauges: Gauges) {
    let sum = |count: fn(&View) -> u64| views.iter().map(count).sum::<u64>() as f64;
    let mut single = |kind: &str, name: &'static str, help: &str, value: f64| {
        Family::new(text, kind, name, help).value("", value);
    };
    let count = |n: usize| n as f64;
    single("gauge", "nacre_cvms", "CVMs that run.", count(views.len()));
    single("gauge", "nacre_tenants", "Tenants.", count(gauges.tenants));
    single("gauge", "nacre_actions", "Deployed actions.", count(gauges.actions));
    single(
        "gauge",
        "nacre_compile_queue_depth",
        "Modules that wait to be compiled.",
        count(gauges.compile_queue),
    );
    single(
        "gauge",
        "nacre_connections",
        "Client connections of the public interface.",
        count(gauges.connections),
    );
    single("gauge", "nacre_uptime_seconds", "Time since the node was started.", gauges.uptime);
    single(
        "gauge",
        "nacre_run_queue_depth",
        "Runnable tasks that have no worker, as the guests tell it: rounded up to one of eight levels each.",
        sum(|view| view.cpu.demand.into()),
    );
    let mut workers = Family::new(text, "gauge", "nacre_workers", "Worker vCPUs of all CVMs by state.");
    let active = sum(|view| view.cpu.active.count_ones().into());
    let waiting = sum(|view| view.cpu.waiting.count_ones().into());
    workers.value("state=\"active\"", active);
    workers.value("state=\"waiting\"", waiting);
    workers.value("state=\"dormant\"", sum(|view| view.cpu.workers.into()) - active - waiting);
    let version = env!("CARGO_PKG_VERSION");
    Family::new(text, "gauge", "nacre_build_info", "The version that runs; always 1.")
        .value(&format!("version=\"{version}\""), 1.0);
    tenants(text, views);
}

/// What is so of each tenant's CVM.
fn tenants(text: &mut String, views: &[View]) {
    type Value = fn(&View) -> f64;
    let families: [(&str, &'static str, &str, Value); 9] = [
        ("counter", "nacre_tenant_cpu_seconds_total", "CPU time of a tenant's CVM.", |view| {
            view.cpu.cpu_time().as_secs_f64()
        }),
        (
            "counter",
            "nacre_tenant_wakes_total",
            "Times that workers of a tenant's CVM were given a CPU.",
            |view| view.cpu.sum(|vcpu| vcpu.wakes) as f64,
        ),
        (
            "counter",
            "nacre_tenant_messages_sent_total",
            "Messages to a tenant's CVM over its ring.",
            |view| view.link.sent as f64,
        ),
        (
            "counter",
            "nacre_tenant_messages_received_total",
            "Messages from a tenant's CVM over its rings.",
            |view| view.link.received as f64,
        ),
        (
            "counter",
            "nacre_tenant_doorbells_total",
            "Times the node woke a tenant's CVM for a message.",
            |view| view.link.wakes as f64,
        ),
        (
            "counter",
            "nacre_tenant_reader_sleeps_total",
            "Times the reader of a tenant's rings slept until the CVM rang.",
            |view| view.link.sleeps as f64,
        ),
        ("gauge", "nacre_tenant_memory_bytes", "Memory committed for a tenant's CVM.", |view| {
            view.resident_bytes as f64
        }),
        ("gauge", "nacre_tenant_activations", "Activations of a tenant that run.", |view| {
            view.tenant.running() as f64
        }),
        ("gauge", "nacre_tenant_modules", "Modules in a tenant's CVM.", |view| view.modules as f64),
    ];
    for (kind, name, help, value) in families {
        let mut family = Family::new(text, kind, name, help);
        for view in views {
            family.value(&format!("tenant=\"{}\"", view.tenant.name()), value(view));
        }
    }
}
