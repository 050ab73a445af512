//! What a tenant has deployed: list, deploy, describe, remove, invoke.

use super::ErrorBody;
use super::activations::ActivationView;
use crate::daemon::Node;
use crate::http::error::ApiError;
use crate::http::extract::{self, Caller, Options, Place};
use crate::http::openwhisk;
use crate::invoke::Invoked;
use crate::limits::{ActionLimits, MAX_BLOCKING, MAX_PARAMETERS_BYTES};
use crate::names::{EntityName, now_ms, rfc3339};
use crate::records::{Action, ModuleRef, Restart, Service, Version};
use crate::services::{Begin, Door, Status};
use crate::store::modules::Draft;
use crate::store::{EditError, StoreError};
use crate::tenants::Tenant;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use nacre_node_api::wire;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// Something deployed.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeploymentView {
    name: String,
    /// `action` or `service`.
    kind: &'static str,
    version: String,
    /// SHA-256 of the module, in hexadecimal digits.
    module_sha256: String,
    /// Size of the module.
    module_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<ActionLimits>,
    /// Names of the parameters that have defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    default_parameters: Option<Vec<String>>,
    /// Where a service's clients connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart: Option<Restart>,
    /// How a service is.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    updated: String,
}

impl DeploymentView {
    fn action(action: &Action) -> Self {
        Self {
            name: action.name.to_string(),
            kind: "action",
            version: action.version.to_string(),
            module_sha256: action.module.digest.to_string(),
            module_bytes: action.module.bytes,
            limits: Some(action.limits),
            default_parameters: Some(action.parameters.iter().map(|pair| pair.key.clone()).collect()),
            address: None,
            restart: None,
            status: None,
            updated: rfc3339(action.updated_ms),
        }
    }

    pub(super) fn service(node: &Node, tenant: &Tenant, service: &Service) -> Self {
        Self {
            name: service.name.to_string(),
            kind: "service",
            version: service.version.to_string(),
            module_sha256: service.module.digest.to_string(),
            module_bytes: service.module.bytes,
            limits: None,
            default_parameters: None,
            address: Some(node.services.address(service.port).to_string()),
            restart: Some(service.restart),
            status: node.services.status(tenant.name(), &service.name),
            updated: rfc3339(service.updated_ms),
        }
    }
}

/// List what is deployed.
#[utoipa::path(get, path = "/v1/deployments", tag = "deployments", security(("tenant" = [])),
    responses((status = 200, body = Vec<DeploymentView>), (status = 401, body = ErrorBody)))]
pub(super) async fn list(State(node): State<Arc<Node>>, Caller(tenant): Caller) -> Json<Vec<DeploymentView>> {
    let directory = node.store.directory();
    let actions = directory.actions(tenant.name());
    let services = directory.services(tenant.name());
    let actions = actions.iter().map(|action| DeploymentView::action(action));
    let services = services.iter().map(|service| DeploymentView::service(&node, &tenant, service));
    Json(actions.chain(services).collect())
}

/// Describe one deployment.
#[utoipa::path(get, path = "/v1/deployments/{name}", tag = "deployments", security(("tenant" = [])),
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = DeploymentView), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn describe(
    State(node): State<Arc<Node>>,
    place: Place,
) -> Result<Json<DeploymentView>, ApiError> {
    let name = place.entity()?;
    let directory = node.store.directory();
    if let Some(action) = directory.action(place.tenant.name(), name.as_str()) {
        return Ok(Json(DeploymentView::action(&action)));
    }
    let service = directory.service(place.tenant.name(), name.as_str()).ok_or_else(ApiError::missing)?;
    Ok(Json(DeploymentView::service(&node, &place.tenant, &service)))
}

/// Deploy a function or a service, or a new version of one. The body is a WASI command module.
#[utoipa::path(put, path = "/v1/deployments/{name}", tag = "deployments", security(("tenant" = [])),
    params(
        ("name" = String, Path, description = "Its name"),
        ("timeout_ms" = Option<u64>, Query, description = "Time limit of a call"),
        ("memory_mb" = Option<u64>, Query, description = "Linear memory of a call, in MiB"),
        ("logs_mb" = Option<u64>, Query, description = "Logs of a call, in MiB"),
        ("service" = Option<bool>, Query, description = "A service, not a function"),
        ("port" = Option<u16>, Query, description = "Where a service's clients connect"),
        ("restart" = Option<Restart>, Query, description = "When a service is started again"),
        ("args" = Option<String>, Query, description = "Arguments of a service, as a JSON array of strings"),
    ),
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    responses(
        (status = 200, description = "A new version", body = DeploymentView),
        (status = 201, description = "Deployed", body = DeploymentView),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 429, body = ErrorBody)))]
pub(super) async fn deploy(
    State(node): State<Arc<Node>>,
    place: Place,
    options: Options,
    body: Body,
) -> Result<(StatusCode, Json<DeploymentView>), ApiError> {
    let name = place.entity()?;
    if options.flag("service")? {
        return deploy_service(&node, &place.tenant, name, &options, body).await;
    }
    let number = |name: &str| options.number(name, 0, u64::MAX);
    let put = wire::ActionPut::of_limits(number("timeout_ms")?, number("memory_mb")?, number("logs_mb")?);
    let existed = node.store.directory().action(place.tenant.name(), name.as_str()).is_some();
    let content = extract::read(&place.tenant, body, u64::MAX).await?;
    let put = put.with_code(wire::module(content.bytes.to_vec())?);
    let action = openwhisk::deploy(&node, &place.tenant, name, put, true).await?;
    let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(DeploymentView::action(&action))))
}

/// What a service is deployed with.
pub(super) fn service_options(options: &Options) -> Result<(u16, Restart, Vec<String>), ApiError> {
    let port = options.number("port", 1, u16::MAX.into())?;
    let port = port.and_then(|port| u16::try_from(port).ok());
    let port = port.ok_or_else(|| ApiError::bad("A service needs a port: give one from 1 to 65535."))?;
    let restart = match options.text("restart") {
        None => Restart::default(),
        Some(text) => Restart::parse(text)
            .ok_or_else(|| ApiError::bad("The query parameter 'restart' is always, on-failure or never."))?,
    };
    let args: Vec<String> =
        options.text("args").map_or(Ok(Vec::new()), |text| extract::json(text.as_bytes()))?;
    let bytes: usize = args.iter().map(String::len).sum();
    if args.len() > 256 || bytes > 16 << 10 || args.iter().any(|arg| arg.contains('\0')) {
        return Err(ApiError::bad(
            "A service has at most 256 arguments and 16 KiB of them, without NUL characters.",
        ));
    }
    Ok((port, restart, args))
}

async fn deploy_service(
    node: &Arc<Node>,
    tenant: &Arc<Tenant>,
    name: EntityName,
    options: &Options,
    body: Body,
) -> Result<(StatusCode, Json<DeploymentView>), ApiError> {
    let (port, restart, args) = service_options(options)?;
    let content = extract::read(tenant, body, u64::MAX).await?;
    let module = wire::module(content.bytes.to_vec())?;
    // Before anything is stored: a port that can't be had is the deployer's affair.
    let listener = node.services.listen(tenant.name(), &name, port).await.map_err(|error| {
        let address = node.services.address(port);
        ApiError::new(
            StatusCode::CONFLICT,
            format!("{address} can't be listened on: {error}; choose another port."),
        )
    })?;
    let draft = openwhisk::compile(node, tenant, module).await?;
    let module = ModuleRef { digest: draft.digest, bytes: draft.bytes };
    let key = name.clone();
    let edit = move |old: Option<Service>| {
        let version = old.map_or(Version::FIRST, |old| old.version.next());
        Ok(Service { name: key, version, module, port, restart, args, package: None, updated_ms: now_ms() })
    };
    let service = keep_and_start(node, tenant, (name, draft, edit), listener).await?;
    let is_new = service.version == Version::FIRST;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(DeploymentView::service(node, tenant, &service))))
}

/// Stores a service and starts it. Who asked may go away: what is stored and what runs go together all the same.
pub(super) async fn keep_and_start(
    node: &Arc<Node>,
    tenant: &Arc<Tenant>,
    (name, draft, edit): (
        EntityName,
        Draft,
        impl FnOnce(Option<Service>) -> Result<Service, EditError> + Send + 'static,
    ),
    door: Arc<Door>,
) -> Result<Arc<Service>, ApiError> {
    let (node, tenant) = (node.clone(), tenant.clone());
    let both = async move {
        let service = Arc::new(node.store.edit_service(tenant.owner().clone(), name, draft, edit).await?);
        node.store.found(tenant.name().clone(), service.name.clone()).await?;
        node.services.start(&tenant, service.clone(), Some(door), Begin::Fresh).await;
        Ok::<_, StoreError>(service)
    };
    Ok(tokio::spawn(both).await.map_err(|_| ApiError::internal())??)
}

/// Removes a service and ends it, likewise.
pub(super) async fn remove_and_stop(
    node: &Arc<Node>,
    tenant: &Arc<Tenant>,
    name: EntityName,
) -> Result<(), ApiError> {
    let (node, tenant) = (node.clone(), tenant.clone());
    let both = async move {
        node.store.remove_service(tenant.owner().clone(), name.clone()).await?;
        node.store.found(tenant.name().clone(), name.clone()).await?;
        node.services.stop(tenant.name(), &name).await;
        Ok::<_, StoreError>(())
    };
    Ok(tokio::spawn(both).await.map_err(|_| ApiError::internal())??)
}

/// Remove a deployment.
#[utoipa::path(delete, path = "/v1/deployments/{name}", tag = "deployments", security(("tenant" = [])),
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn remove(State(node): State<Arc<Node>>, place: Place) -> Result<StatusCode, ApiError> {
    let name = place.entity()?;
    if node.store.directory().service(place.tenant.name(), name.as_str()).is_some() {
        remove_and_stop(&node, &place.tenant, name).await?;
    } else {
        node.store.remove_action(place.tenant.owner().clone(), name).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The last lines that a service wrote.
#[utoipa::path(get, path = "/v1/deployments/{name}/logs", tag = "deployments", security(("tenant" = [])),
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = Vec<String>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn logs(State(node): State<Arc<Node>>, place: Place) -> Result<Json<Vec<String>>, ApiError> {
    let lines = node.services.logs(place.tenant.name(), &place.entity()?);
    lines.map(Json).ok_or_else(ApiError::missing)
}

/// Call a function with a JSON object, and wait for its result. The status code is 200 also if the function fails: see `status`.
#[utoipa::path(post, path = "/v1/deployments/{name}/invoke", tag = "deployments", security(("tenant" = [])),
    params(
        ("name" = String, Path, description = "Its name"),
        ("wait_ms" = Option<u64>, Query, description = "How long to wait for the end, 0 to 60000; then it goes on by itself"),
    ),
    request_body(content = Object, content_type = "application/json"),
    responses(
        (status = 200, description = "It is over", body = ActivationView),
        (status = 202, description = "It goes on", body = ActivationView),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn invoke(
    State(node): State<Arc<Node>>,
    place: Place,
    options: Options,
    body: Body,
) -> Result<(StatusCode, Json<ActivationView>), ApiError> {
    let name = place.entity()?;
    let action =
        node.store.directory().action(place.tenant.name(), name.as_str()).ok_or_else(ApiError::missing)?;
    let wait = options.number("wait_ms", 0, MAX_BLOCKING.as_millis() as u64)?;
    let wait = wait.map_or(Some(MAX_BLOCKING), |ms| (ms > 0).then(|| Duration::from_millis(ms)));
    let content = extract::read(&place.tenant, body, MAX_PARAMETERS_BYTES as u64).await?;
    let parameters = extract::object(&content.bytes)?;
    Ok(match node.invoker.invoke(&place.tenant, &action, parameters, wait).await? {
        Invoked::Done(activation) => (StatusCode::OK, Json(ActivationView::new(&activation, true))),
        Invoked::Accepted(id) => (StatusCode::ACCEPTED, Json(ActivationView::running(id, &action.name))),
    })
}
