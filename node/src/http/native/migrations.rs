//! Migrations of tenants to other nodes. A tenant moves itself; the administrator moves all.

use super::ErrorBody;
use crate::daemon::Node;
use crate::http::error::ApiError;
use crate::http::extract;
use crate::migration::{Job, MigrationView, MoveOrder, NotBegun};
use crate::names::{EntityName, MigrationId, TenantName};
use crate::tenants::{Credentials, Tenant};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use utoipa::ToSchema;

/// Largest order, in bytes.
const MAX_ORDER: usize = 16 << 10;
/// Events that wait for a client who does not take them; then only the newest counts.
const MAX_EVENTS: usize = 4;
/// A word now and then on a stream without events, so that both ends see each other.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Requests on this way come from the administrator.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Administrator;

/// Who asks.
pub(in crate::http) enum Who {
    Tenant(Arc<Tenant>),
    Administrator,
}

impl FromRequestParts<Arc<Node>> for Who {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, ApiError> {
        let header = parts.headers.get(header::AUTHORIZATION).cloned();
        let credentials = header.as_ref().and_then(|header| Credentials::from_header(header.as_bytes()));
        if let Some(tenant) = credentials.and_then(|credentials| node.tenants.authenticate(&credentials)) {
            return Ok(Self::Tenant(tenant));
        }
        let bearer = header.as_ref().is_some_and(|header| super::admin::is_token(node, header.as_bytes()));
        match Extension::<Administrator>::from_request_parts(parts, node).await {
            Ok(_) if header.is_none() || bearer => Ok(Self::Administrator),
            _ if bearer => Ok(Self::Administrator),
            _ => Err(ApiError::new(StatusCode::UNAUTHORIZED, "The supplied authentication is invalid.")),
        }
    }
}

impl Who {
    fn may_see(&self, tenant: &str) -> bool {
        match self {
            Self::Administrator => true,
            Self::Tenant(own) => own.name().as_str() == tenant,
        }
    }
}

/// The id of a migration that began.
#[derive(Debug, Serialize, ToSchema)]
pub struct Begun {
    /// 32 hexadecimal digits.
    id: String,
}

impl From<NotBegun> for ApiError {
    fn from(error: NotBegun) -> Self {
        let status = match &error {
            NotBegun::UnderWay(_) | NotBegun::NoCvm | NotBegun::Policy(_) | NotBegun::Away(_) => {
                StatusCode::CONFLICT
            }
            NotBegun::Alone => StatusCode::NOT_IMPLEMENTED,
            NotBegun::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            NotBegun::To(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, nacre_node_api::sentence(error))
    }
}

/// Move a tenant to another node, with all that runs in it. Follow it by its events.
#[utoipa::path(post, path = "/v1/migrations", tag = "migrations", security(("tenant" = []), ("administrator" = [])),
    request_body = MoveOrder,
    responses((status = 202, body = Begun), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 501, body = ErrorBody)))]
pub(super) async fn begin(
    State(node): State<Arc<Node>>,
    who: Who,
    body: Body,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let body = extract::small(body, MAX_ORDER).await?;
    let order: MoveOrder = nacre_node_api::body::record(&body)?;
    let tenant = match (&who, order.tenant.as_deref()) {
        (Who::Tenant(own), None) => own.clone(),
        (Who::Administrator, None) => {
            return Err(ApiError::bad("Which tenant? Name it, or send its credentials."));
        }
        (who, Some(name)) => {
            let name = TenantName::new(name)?;
            let found = node.tenants.named(&name).filter(|_| who.may_see(name.as_str()));
            found.ok_or_else(ApiError::missing)?
        }
    };
    if let Some(name) = &order.name {
        let name = EntityName::new(name)?;
        let directory = node.store.directory();
        let known = directory.service(tenant.name(), name.as_str()).is_some()
            || directory.action(tenant.name(), name.as_str()).is_some();
        if !known && name.as_str() != tenant.name().as_str() {
            return Err(ApiError::missing());
        }
    }
    if order.bandwidth == Some(0) {
        return Err(ApiError::bad("The bandwidth is 1 byte per second or more."));
    }
    let job = node.migrations.begin(&tenant, &order)?;
    Ok((StatusCode::ACCEPTED, Json(Begun { id: job.id.to_string() })))
}

/// List migrations away from this node, newest first.
#[utoipa::path(get, path = "/v1/migrations", tag = "migrations", security(("tenant" = []), ("administrator" = [])),
    responses((status = 200, body = Vec<MigrationView>), (status = 401, body = ErrorBody)))]
pub(super) async fn list(
    State(node): State<Arc<Node>>,
    who: Who,
) -> Result<Json<Vec<MigrationView>>, ApiError> {
    let mut all = node.migrations.all()?;
    all.retain(|view| who.may_see(&view.tenant));
    Ok(Json(all))
}

fn find(node: &Node, who: &Who, id: &str) -> Result<(MigrationId, MigrationView), ApiError> {
    let id =
        MigrationId::parse(id).ok_or_else(|| ApiError::bad("A migration's id has 32 hexadecimal digits."))?;
    let view = node.migrations.view(id)?.filter(|view| who.may_see(&view.tenant));
    Ok((id, view.ok_or_else(ApiError::missing)?))
}

/// One migration.
#[utoipa::path(get, path = "/v1/migrations/{id}", tag = "migrations", security(("tenant" = []), ("administrator" = [])),
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, body = MigrationView), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn get(
    State(node): State<Arc<Node>>,
    who: Who,
    Path(id): Path<String>,
) -> Result<Json<MigrationView>, ApiError> {
    Ok(Json(find(&node, &who, &id)?.1))
}

/// Cancel a migration: the tenant goes on here, unless it is gone already. Its events say which.
#[utoipa::path(delete, path = "/v1/migrations/{id}", tag = "migrations", security(("tenant" = []), ("administrator" = [])),
    params(("id" = String, Path, description = "Its id")),
    responses((status = 202, body = MigrationView), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, description = "It is over", body = ErrorBody)))]
pub(super) async fn cancel(
    State(node): State<Arc<Node>>,
    who: Who,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<MigrationView>), ApiError> {
    let (id, view) = find(&node, &who, &id)?;
    let job = node.migrations.job(id).filter(|job| !job.is_over());
    let job = job.ok_or_else(|| ApiError::new(StatusCode::CONFLICT, "The migration is over."))?;
    job.cancel();
    Ok((StatusCode::ACCEPTED, Json(view)))
}

/// Follow a migration: server-sent events, each with the whole of it, until it is over.
#[utoipa::path(get, path = "/v1/migrations/{id}/events", tag = "migrations",
    security(("tenant" = []), ("administrator" = [])),
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, body = MigrationView, content_type = "text/event-stream"),
        (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn events(
    State(node): State<Arc<Node>>,
    who: Who,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (id, view) = find(&node, &who, &id)?;
    let (tell, events) = mpsc::channel(MAX_EVENTS);
    match node.migrations.job(id) {
        Some(job) => drop(tokio::spawn(follow(job, tell))),
        None => drop(tell.try_send(event(&view))),
    }
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::new(Events(events))).into_response())
}

async fn follow(job: Arc<Job>, tell: mpsc::Sender<Bytes>) {
    let mut view = job.watch();
    loop {
        let now = view.borrow_and_update().clone();
        let over = now.step.is_over();
        if tell.send(event(&now)).await.is_err() || over {
            return;
        }
        while let Err(_late) = tokio::time::timeout(KEEP_ALIVE, view.changed()).await {
            if tell.send(Bytes::from_static(b": still there\n\n")).await.is_err() {
                return;
            }
        }
    }
}

fn event(view: &MigrationView) -> Bytes {
    let json = serde_json::to_string(view).unwrap_or_default();
    Bytes::from(format!("event: migration\ndata: {json}\n\n"))
}

/// Events as a body.
struct Events(mpsc::Receiver<Bytes>);

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
