//! Requests of tenants that move: they wait while it is not decided where the tenant is, and are forwarded to the node that has it, in one hop.

use super::error::ApiError;
use super::extract;
use crate::daemon::Node;
use crate::migration::net::TENANT;
use crate::migration::{Away, relay};
use crate::names::TenantName;
use crate::tenants::{Credentials, Standing, Tenant};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Duration;

/// Requests of one tenant that wait.
const MAX_WAITING: u64 = 4096;
/// How long one waits: longer than any downtime.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a request follows a tenant that moves on.
const MAX_MOVES: usize = 4;
/// What a node that has it no more answers a forwarded request with: where it is.
const MOVED: HeaderName = HeaderName::from_static("nacre-moved-to");

/// Around requests of clients.
pub(super) async fn around(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    if node.migrations.is_quiet() {
        return next.run(request).await;
    }
    let Some(tenant) = caller(&node, &request) else { return next.run(request).await };
    if own_affair(&node, &request) {
        return next.run(request).await;
    }
    let standing = match stand(&tenant).await {
        Ok(standing) => standing,
        Err(error) => return error.into_response(),
    };
    if standing == Standing::Here {
        if node.migrations.under_way(tenant.name()).is_none() {
            return next.run(request).await;
        }
        if let Some(error) = frozen(&node, &tenant, request.method()) {
            return error.into_response();
        }
    }
    // All of it: it may have to be sent more than once.
    let (parts, body) = request.into_parts();
    match extract::read(&tenant, body, u64::MAX).await {
        Ok(content) => go(&node, &tenant, parts, content, next).await.unwrap_or_else(refusal),
        Err(error) => error.into_response(),
    }
}

/// Does a request where the tenant is: here, if it is here or has come back.
async fn go(
    node: &Arc<Node>,
    tenant: &Arc<Tenant>,
    parts: Parts,
    content: extract::Content,
    next: Next,
) -> Result<Response, ApiError> {
    // Reading it took its time.
    if let Standing::Away(away) = stand(tenant).await?
        && let Some(answer) = forward(node, tenant, away, (&parts, &content.bytes)).await?
    {
        return Ok(answer);
    }
    // Whoever reads it now counts it.
    let bytes = content.into_bytes();
    let answer = next.run(Request::from_parts(parts.clone(), Body::from(bytes.clone()))).await;
    if answer.status() != StatusCode::MISDIRECTED_REQUEST {
        return Ok(answer);
    }
    // It moved before this was begun.
    let Standing::Away(away) = stand(tenant).await? else { return Ok(answer) };
    Ok(forward(node, tenant, away, (&parts, &bytes)).await?.unwrap_or(answer))
}

/// Around requests that another node has forwarded: they go no further.
pub(super) async fn around_forwarded(
    State(node): State<Arc<Node>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(tenant) = caller(&node, &request) else { return next.run(request).await };
    let says_where = |away: &Away, mut response: Response| {
        let value = serde_json::to_string(away).ok().and_then(|text| HeaderValue::try_from(text).ok());
        response.headers_mut().extend(value.map(|value| (MOVED, value)));
        response
    };
    match stand(&tenant).await {
        Ok(Standing::Away(away)) => says_where(&away, ApiError::moved().into_response()),
        Ok(_) => match frozen(&node, &tenant, request.method()) {
            Some(error) => error.into_response(),
            None => {
                let response = next.run(request).await;
                match (response.status(), stand(&tenant).await) {
                    (StatusCode::MISDIRECTED_REQUEST, Ok(Standing::Away(away))) => {
                        says_where(&away, response)
                    }
                    _ => response,
                }
            }
        },
        Err(error) => error.into_response(),
    }
}

fn refusal(error: ApiError) -> Response {
    error.into_response()
}

fn caller(node: &Node, request: &Request) -> Option<Arc<Tenant>> {
    let header = request.headers().get(header::AUTHORIZATION)?;
    node.tenants.authenticate(&Credentials::from_header(header.as_bytes())?)
}

/// Migrations that this node knows are asked about here, wherever their tenant is now.
fn own_affair(node: &Node, request: &Request) -> bool {
    let path = request.uri().path();
    let Some(rest) = path.strip_prefix("/v1/migrations/") else {
        return path == "/v1/migrations" && *request.method() == Method::GET;
    };
    let id = rest.split('/').next().and_then(crate::names::MigrationId::parse);
    id.is_some_and(|id| node.migrations.knows(id))
}

/// What a tenant has is not changed while it is on its way.
fn frozen(node: &Node, tenant: &Tenant, method: &Method) -> Option<ApiError> {
    let changes = *method == Method::PUT || *method == Method::DELETE;
    // Cancelling is own affair and does not come here.
    stays(node, tenant.name()).err().filter(|_| changes)
}

/// A tenant that is on its way is not removed either.
///
/// # Errors
/// Which migration it is.
pub(super) fn stays(node: &Node, tenant: &TenantName) -> Result<(), ApiError> {
    let Some(job) = node.migrations.under_way(tenant) else { return Ok(()) };
    let text = format!("A migration is under way ({}); wait for it, or cancel it.", job.id);
    Err(ApiError::new(StatusCode::CONFLICT, text))
}

/// Where the tenant is, once that is decided.
async fn stand(tenant: &Arc<Tenant>) -> Result<Standing, ApiError> {
    let standing = tenant.standing();
    if standing != Standing::Parked {
        return Ok(standing);
    }
    let busy =
        || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "The tenant is moving to another node; try again.");
    let _place = tenant.begin_waiting(MAX_WAITING).map_err(|_| busy())?;
    let mut standing = tenant.watch_standing();
    let decided = standing.wait_for(|standing| *standing != Standing::Parked);
    match tokio::time::timeout(PATIENCE, decided).await {
        Ok(Ok(standing)) => Ok(standing.clone()),
        _ => Err(busy()),
    }
}

/// Asks the node that has the tenant, and follows it; `None` if it is back here.
async fn forward(
    node: &Arc<Node>,
    tenant: &Arc<Tenant>,
    mut away: Arc<Away>,
    (parts, body): (&Parts, &Bytes),
) -> Result<Option<Response>, ApiError> {
    let net =
        node.migrations.net().ok_or_else(|| bad_gateway("this node listens to no other nodes any more"))?;
    for _ in 0..MAX_MOVES {
        let request = forwarded(parts, body.clone())?;
        let answer = net.forward(&away.to.url, request).await.map_err(|error| bad_gateway(&error.0))?;
        let moved =
            answer.headers().get(&MOVED).filter(|_| answer.status() == StatusCode::MISDIRECTED_REQUEST);
        let Some(moved) = moved else { return Ok(Some(answer)) };
        let next: Away =
            serde_json::from_slice(moved.as_bytes()).map_err(|_| bad_gateway("its answer is garbled"))?;
        if next.to.fingerprint == net.own() {
            return Ok(None);
        }
        relay::follow(&node.store, tenant, &next).await;
        away = Arc::new(next);
    }
    Err(bad_gateway("it moves faster than a request can follow"))
}

fn bad_gateway(why: &str) -> ApiError {
    let text =
        nacre_node_api::sentence(format_args!("the node that has the tenant now can't be asked: {why}"));
    ApiError::new(StatusCode::BAD_GATEWAY, text)
}

/// The request as the other node gets it.
fn forwarded(parts: &Parts, body: Bytes) -> Result<axum::http::Request<Body>, ApiError> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri: Uri = format!("{TENANT}{path}").parse().map_err(|_| ApiError::bad("The path is too long."))?;
    let mut request = axum::http::Request::new(Body::from(body));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = parts.headers.clone();
    for name in [header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::HOST, header::CONNECTION] {
        request.headers_mut().remove(name);
    }
    Ok(request)
}
