//! Calls that are over, or under way.

use super::ErrorBody;
use crate::daemon::Node;
use crate::http::error::ApiError;
use crate::http::extract::{Caller, Options, Place};
use crate::names::{ActivationId, EntityName, rfc3339};
use crate::records::{Activation, Status};
use crate::store::activations::Filter;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;

/// An activation.
#[derive(Debug, Serialize, ToSchema)]
pub struct ActivationView {
    /// 32 hexadecimal digits.
    id: String,
    /// What was called.
    name: String,
    /// `running`, `success`, `application_error`, `developer_error` or `internal_error`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    /// CPU time in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us: Option<u64>,
    /// Time before its first instruction, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_us: Option<u64>,
    /// Time to bring its code into the CVM, in microseconds, if that was needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    init_us: Option<u64>,
    /// A JSON object.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    result: Option<Box<RawValue>>,
    /// Lines of `time stream: text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<Vec<String>>,
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Success => "success",
        Status::ApplicationError => "application_error",
        Status::DeveloperError => "developer_error",
        Status::InternalError => "internal_error",
    }
}

impl ActivationView {
    /// Of one that is over; with result and logs if it is to be whole.
    pub(super) fn new(activation: &Activation, whole: bool) -> Self {
        Self {
            id: activation.id.to_string(),
            name: activation.action.to_string(),
            status: word(activation.status),
            version: Some(activation.version.to_string()),
            start: Some(rfc3339(activation.start_ms)),
            duration_ms: Some(activation.end_ms.saturating_sub(activation.start_ms)),
            cpu_us: Some(activation.cpu_us),
            wait_us: Some(activation.wait_us),
            init_us: activation.init_us,
            result: whole.then(|| activation.result.clone()),
            logs: whole.then(|| activation.logs.clone()),
        }
    }

    /// Of one that goes on.
    pub(super) fn running(id: ActivationId, name: &EntityName) -> Self {
        Self {
            id: id.to_string(),
            name: name.to_string(),
            status: "running",
            version: None,
            start: None,
            duration_ms: None,
            cpu_us: None,
            wait_us: None,
            init_us: None,
            result: None,
            logs: None,
        }
    }
}

/// List activations, newest first.
#[utoipa::path(get, path = "/v1/activations", tag = "activations", security(("tenant" = [])),
    params(
        ("name" = Option<String>, Query, description = "Only of this deployment"),
        ("limit" = Option<u64>, Query, description = "At most so many, 1 to 200"),
        ("skip" = Option<u64>, Query, description = "Leave out the newest"),
        ("full" = Option<bool>, Query, description = "With results and logs"),
    ),
    responses((status = 200, body = Vec<ActivationView>), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody)))]
pub(super) async fn list(
    State(node): State<Arc<Node>>,
    Caller(tenant): Caller,
    options: Options,
) -> Result<Json<Vec<ActivationView>>, ApiError> {
    let action = options.text("name").map(EntityName::new).transpose()?;
    let limit = options.number("limit", 1, 200)?.unwrap_or(30) as usize;
    let skip = options.number("skip", 0, u32::MAX.into())?.unwrap_or(0) as usize;
    let full = options.flag("full")?;
    let filter = Filter { action, limit, skip, ..Filter::default() };
    let read = move || node.store.activations(tenant.name(), &filter);
    let found = tokio::task::spawn_blocking(read).await.map_err(|_| ApiError::internal())??;
    Ok(Json(found.iter().map(|activation| ActivationView::new(activation, full)).collect()))
}

/// One activation, with its result and logs.
#[utoipa::path(get, path = "/v1/activations/{id}", tag = "activations", security(("tenant" = [])),
    params(("id" = String, Path, description = "32 hexadecimal digits")),
    responses((status = 200, body = ActivationView), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody)))]
pub(super) async fn get(
    State(node): State<Arc<Node>>,
    place: Place,
) -> Result<Json<ActivationView>, ApiError> {
    let id = ActivationId::parse(place.text())?;
    let name = place.tenant.name();
    if let Some(activation) = node.store.activation(name, id)? {
        return Ok(Json(ActivationView::new(&activation, true)));
    }
    let pending = node.store.pending(name, id)?.ok_or_else(ApiError::missing)?;
    Ok(Json(ActivationView::running(id, &pending.action)))
}
