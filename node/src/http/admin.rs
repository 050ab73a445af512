//! Administration: tenants. On the administrator's socket, or with the administrator's token.

use super::error::ApiError;
use super::extract;
use super::native::ErrorBody;
use crate::daemon::Node;
use crate::limits::TenantLimits;
use crate::names::{TenantName, rfc3339};
use crate::records::TenantRecord;
use crate::tenants::Credentials;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Largest body of an administrative request in bytes.
const MAX_BODY: usize = 64 << 10;

pub(super) fn documented() -> OpenApiRouter<Arc<Node>> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(remove))
}

pub(super) fn router(node: &Arc<Node>) -> Router {
    documented().split_for_parts().0.with_state(node.clone())
}

/// Lets only the administrator's token through. Without one there is nothing here.
pub(super) async fn needs_token(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    if node.config.admin_token.is_none() {
        return ApiError::missing().into_response();
    }
    let given =
        request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    if is_token(&node, given) {
        next.run(request).await
    } else {
        let text =
            "This needs the administrator's token as a bearer token, or the socket in the state directory.";
        ApiError::new(StatusCode::UNAUTHORIZED, text).into_response()
    }
}

/// Whether a header's value is the administrator's token.
pub(super) fn is_token(node: &Node, given: &[u8]) -> bool {
    let Some(token) = &node.config.admin_token else { return false };
    let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
    // Digests are of one length, so that the comparison tells nothing about the token's.
    let digest = |bytes: &[u8]| Sha256::digest(bytes);
    bool::from(digest(given).ct_eq(&digest(token.as_bytes())))
}

/// A new tenant.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenant {
    /// Its name, which is its namespace.
    #[schema(value_type = String)]
    pub name: TenantName,
    /// What it may use; defaults for what is not said.
    #[serde(default)]
    pub limits: TenantLimits,
}

/// A tenant for its administrator.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TenantView {
    name: String,
    limits: TenantLimits,
    created: String,
    /// `uuid:key`, told once, when the tenant is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    /// Where the node is, told with the credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

impl TenantView {
    fn new(record: &TenantRecord) -> Self {
        let (name, created) = (record.name.to_string(), rfc3339(record.created_ms));
        Self { name, limits: record.limits.clone(), created, auth: None, node: None }
    }
}

/// List the tenants.
#[utoipa::path(get, path = "/v1/tenants", tag = "administration", security(("administrator" = [])),
    responses((status = 200, body = Vec<TenantView>), (status = 401, body = ErrorBody)))]
async fn list(State(node): State<Arc<Node>>) -> Json<Vec<TenantView>> {
    Json(node.store.directory().tenants().iter().map(|record| TenantView::new(record)).collect())
}

/// Add a tenant. Its credentials are in the answer and can't be had again.
#[utoipa::path(post, path = "/v1/tenants", tag = "administration", security(("administrator" = [])),
    request_body = NewTenant,
    responses((status = 201, body = TenantView), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn add(State(node): State<Arc<Node>>, body: Body) -> Result<(StatusCode, Json<TenantView>), ApiError> {
    let body = extract::small(body, MAX_BODY).await?;
    let NewTenant { name, limits } = nacre_node_api::body::record(&body)?;
    let credentials = Credentials::random();
    let record = credentials.record(name, limits.checked()?);
    node.store.add_tenant(record.clone()).await?;
    node.tenants.add(record.clone());
    tracing::info!(tenant = record.name.as_str(), "tenant added");
    Ok((
        StatusCode::CREATED,
        Json(TenantView {
            auth: Some(credentials.reveal()),
            node: Some(node.url.clone()),
            ..TenantView::new(&record)
        }),
    ))
}

/// Remove a tenant and everything it has.
#[utoipa::path(delete, path = "/v1/tenants/{name}", tag = "administration", security(("administrator" = [])),
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn remove(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let name = TenantName::new(&name).map_err(|_| ApiError::missing())?;
    super::moving::stays(&node, &name)?;
    // In a task of its own: it goes to its end also if the client does not wait for that.
    let removal = tokio::spawn(async move {
        let tenant = node.tenants.named(&name);
        node.store.remove_tenant(name.clone()).await?;
        if let Some(tenant) = &tenant {
            node.tenants.retire(tenant);
        }
        node.services.stop_all(Some(&name)).await;
        if let Some(tenant) = &tenant {
            node.runner.forget(tenant).await;
        }
        tracing::info!(tenant = name.as_str(), "tenant removed");
        Ok(StatusCode::NO_CONTENT)
    });
    removal.await.map_err(|_| ApiError::internal())?
}
