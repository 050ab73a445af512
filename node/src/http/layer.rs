//! What happens around every request: an id, the body of errors, a log line without data of tenants, counting.

use super::error::ErrorText;
use crate::metrics::Interface;
use crate::names::{hex, random};
use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use std::time::Instant;

/// The header with a request's id, in both directions.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the client's, if it is a plain word, else a random one.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    given.filter(plain).map_or_else(
        || {
            let mut bytes = [0; 16];
            random(&mut bytes);
            hex(&bytes)
        },
        str::to_owned,
    )
}

static OPENWHISK: Interface = Interface::new("openwhisk");
static ADMIN: Interface = Interface::new("admin");
static NATIVE: Interface = Interface::new("native");
static OTHER: Interface = Interface::new("other");

fn interface(path: &str) -> &'static Interface {
    match path {
        path if path.starts_with("/api/") => &OPENWHISK,
        path if path.starts_with("/v1/tenants") => &ADMIN,
        path if path.starts_with("/v1/") => &NATIVE,
        _ => &OTHER,
    }
}

/// The layer.
pub(super) async fn around(request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let id = request_id(&request);
    let interface = interface(request.uri().path());
    let method = request.method().clone();
    // The pattern, not the path: names are the tenants'.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(ErrorText(text)) = response.extensions_mut().remove::<ErrorText>() {
        let body = serde_json::json!({ "error": text, "code": id }).to_string();
        *response.body_mut() = Body::from(body);
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let (status, elapsed) = (response.status(), begin.elapsed());
    interface.request(status.as_u16(), elapsed);
    let route = route.as_ref().map_or("-", MatchedPath::as_str);
    let elapsed_us = elapsed.as_micros() as u64;
    let code = status.as_u16();
    // A function that fails is its owner's affair; the node's own failures are the operator's.
    if status.is_server_error() && status != StatusCode::BAD_GATEWAY {
        tracing::warn!(request = id, %method, route, code, elapsed_us, "request failed");
    } else {
        tracing::debug!(request = id, %method, route, code, elapsed_us, "request");
    }
    response
}
