//! What runs now.

use super::ErrorBody;
use crate::daemon::Node;
use crate::http::error::ApiError;
use crate::http::extract::Caller;
use crate::runner::View;
use crate::services::Status;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// A tenant's CVM.
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmView {
    /// Workers launched.
    workers: u32,
    /// Of these with a CPU.
    active: u32,
    /// Of these that want one and have none.
    waiting: u32,
    /// Workers that may run now.
    grant: u32,
    /// What the guest asks for beyond that.
    demand: u32,
    /// CPU time of all its vCPUs in nanoseconds.
    cpu_ns: u64,
    /// Memory that the host has committed for it, in bytes.
    memory_bytes: u64,
    /// Times that workers were given a CPU.
    wakes: u64,
    /// Since its launch, in milliseconds.
    age_ms: u64,
    /// Modules in it.
    modules: usize,
}

impl CvmView {
    fn new(view: &View) -> Self {
        let cpu = &view.cpu;
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            workers: cpu.workers,
            active: cpu.active.count_ones(),
            waiting: cpu.waiting.count_ones(),
            grant: cpu.grant,
            demand: cpu.demand,
            cpu_ns: u64::try_from(cpu.cpu_time().as_nanos()).unwrap_or(u64::MAX),
            memory_bytes: view.resident_bytes,
            wakes: cpu.sum(|vcpu| vcpu.wakes),
            age_ms: millis(view.age),
            modules: view.modules,
        }
    }
}

/// What a tenant has running.
#[derive(Debug, Serialize, ToSchema)]
pub struct PsView {
    /// The tenant.
    tenant: String,
    /// Activations that run.
    activations: u64,
    /// Activations that may run at once.
    concurrency: u32,
    /// Its CVM; none before the first call, and after a long time without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    cvm: Option<CvmView>,
    /// Its services.
    services: Vec<ServiceView>,
}

/// A service.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServiceView {
    /// Its name.
    name: String,
    /// Where its clients connect.
    address: String,
    /// How it is.
    status: Option<Status>,
}

/// What runs now.
#[utoipa::path(get, path = "/v1/ps", tag = "state", security(("tenant" = [])),
    responses((status = 200, body = PsView), (status = 401, body = ErrorBody)))]
pub(super) async fn ps(
    State(node): State<Arc<Node>>,
    Caller(tenant): Caller,
) -> Result<Json<PsView>, ApiError> {
    let runner = node.runner.clone();
    let looked = tenant.clone();
    let view =
        tokio::task::spawn_blocking(move || runner.view(&looked)).await.map_err(|_| ApiError::internal())?;
    let service = |service: &Arc<crate::records::Service>| ServiceView {
        name: service.name.to_string(),
        address: node.services.address(service.port).to_string(),
        status: node.services.status(tenant.name(), &service.name),
    };
    let services = node.store.directory().services(tenant.name()).iter().map(service).collect();
    Ok(Json(PsView {
        services,
        tenant: tenant.name().to_string(),
        activations: tenant.running(),
        concurrency: tenant.limits().concurrency,
        cvm: view.as_ref().map(CvmView::new),
    }))
}
