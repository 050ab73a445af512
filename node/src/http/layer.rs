//! What happens around every request: an id, the body of errors, a log line without data of tenants, counting.

use super::error::ErrorText;
use crate::metrics::Interface;
use crate::names::{hex, random};
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use std::future::Future;
use std::time::Instant;

/// The header with a request's id, in both directions.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the client's, if it is a plain word, else a random one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |id: &&HeaderValue| {
        (1..=64).contains(&id.len()) && id.as_bytes().iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
    };
    let new = || {
        let mut bytes = [0; 16];
        random(&mut bytes);
        // Hexadecimal digits are a header's value.
        HeaderValue::try_from(hex(&bytes)).unwrap_or(HeaderValue::from_static("-"))
    };
    headers.get(REQUEST_ID).filter(plain).cloned().unwrap_or_else(new)
}

/// The layer.
pub(super) async fn around(request: Request<Body>, next: Next) -> Response {
    // The pattern, not the path: names are the tenants'.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let head = Head::of(&request);
    let response = next.run(request).await;
    head.finish(route.as_ref().map_or("-", MatchedPath::as_str), response)
}

/// What the layer remembers of a request.
pub(super) struct Head {
    begin: Instant,
    id: HeaderValue,
    interface: &'static Interface,
    method: Method,
}

impl Head {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self {
            begin: Instant::now(),
            id: request_id(request.headers()),
            interface: Interface::of(request.uri().path()),
            method: request.method().clone(),
        }
    }

    /// The layer for a request that went to its `route` without the router.
    pub(super) async fn around(self, route: &str, answer: impl Future<Output = Response>) -> Response {
        self.finish(route, answer.await)
    }

    fn finish(self, route: &str, mut response: Response) -> Response {
        let id = self.id.to_str().unwrap_or_default();
        if let Some(ErrorText(text)) = response.extensions_mut().remove::<ErrorText>() {
            let body = serde_json::json!({ "error": text, "code": id }).to_string();
            *response.body_mut() = Body::from(body);
            let headers = response.headers_mut();
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let (status, elapsed) = (response.status(), self.begin.elapsed());
        let (code, method) = (status.as_u16(), &self.method);
        self.interface.request(code, elapsed);
        let elapsed_us = elapsed.as_micros() as u64;
        // A function that fails is its owner's affair; the node's own failures are the operator's.
        if status.is_server_error() && status != StatusCode::BAD_GATEWAY {
            tracing::warn!(request = id, %method, route, code, elapsed_us, "request failed");
        } else {
            tracing::debug!(request = id, %method, route, code, elapsed_us, "request");
        }
        response.headers_mut().insert(REQUEST_ID, self.id);
        response
    }
}
