//! What a tenant has deployed: list, deploy, describe, remove, invoke.

use super::ErrorBody;
use super::activations::ActivationView;
use crate::daemon::Node;
use crate::http::error::ApiError;
use crate::http::extract::{self, Caller, Options, Place};
use crate::http::openwhisk::{self, wire};
use crate::invoke::Invoked;
use crate::limits::{ActionLimits, MAX_BLOCKING, MAX_PARAMETERS_BYTES};
use crate::names::rfc3339;
use crate::records::Action;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
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
    limits: ActionLimits,
    /// Names of the parameters that have defaults.
    default_parameters: Vec<String>,
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
            limits: action.limits,
            default_parameters: action.parameters.iter().map(|pair| pair.key.clone()).collect(),
            updated: rfc3339(action.updated_ms),
        }
    }
}

/// List what is deployed.
#[utoipa::path(get, path = "/v1/deployments", tag = "deployments", security(("tenant" = [])),
    responses((status = 200, body = Vec<DeploymentView>), (status = 401, body = ErrorBody)))]
pub(super) async fn list(State(node): State<Arc<Node>>, Caller(tenant): Caller) -> Json<Vec<DeploymentView>> {
    let actions = node.store.directory().actions(tenant.name());
    Json(actions.iter().map(|action| DeploymentView::action(action)).collect())
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
    let action =
        node.store.directory().action(place.tenant.name(), name.as_str()).ok_or_else(ApiError::missing)?;
    Ok(Json(DeploymentView::action(&action)))
}

/// Deploy a function, or a new version of one. The body is a WASI command module.
#[utoipa::path(put, path = "/v1/deployments/{name}", tag = "deployments", security(("tenant" = [])),
    params(
        ("name" = String, Path, description = "Its name"),
        ("timeout_ms" = Option<u64>, Query, description = "Time limit of a call"),
        ("memory_mb" = Option<u64>, Query, description = "Linear memory of a call, in MiB"),
        ("logs_mb" = Option<u64>, Query, description = "Logs of a call, in MiB"),
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
    let put = wire::ActionPut::of_options(&options)?;
    let existed = node.store.directory().action(place.tenant.name(), name.as_str()).is_some();
    let content = extract::read(&place.tenant, body, u64::MAX).await?;
    let put = put.with_code(wire::module(content.bytes.to_vec())?);
    let action = openwhisk::deploy(&node, &place.tenant, name, put, true).await?;
    let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(DeploymentView::action(&action))))
}

/// Remove a deployment.
#[utoipa::path(delete, path = "/v1/deployments/{name}", tag = "deployments", security(("tenant" = [])),
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn remove(State(node): State<Arc<Node>>, place: Place) -> Result<StatusCode, ApiError> {
    node.store.remove_action(place.tenant.name().clone(), place.entity()?).await?;
    Ok(StatusCode::NO_CONTENT)
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
