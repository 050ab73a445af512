//! OpenWhisk's REST API, version 1: actions, activations, namespaces. What of it is there and what is not: docs/node.md.

mod actions;
mod activations;

pub(super) use actions::{PATTERN, answer_call, compile, deploy, is_call};

use super::error::ApiError;
use super::extract::{Caller, Place};
use crate::daemon::Node;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) fn router(node: &Arc<Node>) -> Router {
    const NS: &str = "/api/v1/namespaces/{namespace}";
    let path = |rest: &str| format!("{NS}/{rest}");
    let packages = || async {
        ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "Packages, triggers and rules are not supported yet; deploy actions.",
        )
    };
    let none = async |_: Place| Json(json!([]));
    Router::new()
        .route("/api/v1", get(info))
        .route("/api/v1/", get(info))
        .route("/api/v1/namespaces", get(namespaces))
        .route("/api/v1/namespaces/", get(namespaces))
        .route(&path("limits"), get(limits))
        .route(&path("actions"), get(actions::list))
        .route(&path("actions/"), get(actions::list))
        .route(PATTERN, get(actions::get).put(actions::put).delete(actions::delete).post(actions::invoke))
        .route(&path("activations"), get(activations::list))
        .route(&path("activations/"), get(activations::list))
        .route(&path("activations/{id}"), get(activations::get))
        .route(&path("activations/{id}/logs"), get(activations::logs))
        .route(&path("activations/{id}/result"), get(activations::result))
        .route(&path("packages"), get(none))
        .route(&path("triggers"), get(none))
        .route(&path("rules"), get(none))
        .route(&path("packages/{*name}"), any(packages))
        .route(&path("triggers/{*name}"), any(packages))
        .route(&path("rules/{*name}"), any(packages))
        .with_state(node.clone())
}

async fn info() -> Json<Value> {
    Json(json!({
        "description": "OpenWhisk API",
        "api_version": "1.0.0",
        "api_version_path": "v1",
        "build": concat!("nacre ", env!("CARGO_PKG_VERSION")),
        "api_paths": ["/api/v1"],
        "runtimes": { "wasi": [{ "kind": crate::records::KIND, "default": true, "deprecated": false }] },
    }))
}

async fn namespaces(Caller(tenant): Caller) -> Json<[String; 1]> {
    Json([tenant.name().to_string()])
}

async fn limits(State(_): State<Arc<Node>>, place: Place) -> Json<Value> {
    let limits = place.tenant.limits();
    Json(json!({
        "concurrentInvocations": limits.concurrency,
        "maxActionTimeout": limits.time_ms,
        "maxActionMemory": limits.memory_bytes >> 20,
        "maxParameterSize": crate::limits::MAX_PARAMETERS_BYTES,
        "storeActivations": true,
    }))
}
