//! Activations: list, get, logs, result.

use super::actions::{answer, window};
use crate::daemon::Node;
use crate::http::error::ApiError;
use crate::http::extract::{Options, Place};
use crate::names::{ActivationId, EntityName};
use crate::records::Activation;
use crate::store::activations::Filter;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nacre_node_api::wire::{ActivationView, ResponseView};
use std::sync::Arc;

pub(super) async fn list(
    State(node): State<Arc<Node>>,
    place: Place,
    options: Options,
) -> Result<Response, ApiError> {
    let (limit, skip) = window(&options)?;
    let action = options.text("name").filter(|name| !name.is_empty()).map(EntityName::new).transpose()?;
    let moment = |name: &str| options.number(name, 0, u64::MAX);
    let filter = Filter { action, since_ms: moment("since")?, upto_ms: moment("upto")?, skip, limit };
    let (count, docs) = (options.flag("count")?, options.flag("docs")?);
    // A long list of large activations takes a while to read.
    let read = move || {
        let name = place.tenant.name();
        if count {
            let count = node.store.count_activations(name, &filter)?;
            return Ok(answer(StatusCode::OK, &serde_json::json!({ "activations": count })));
        }
        let found = node.store.activations(name, &filter)?;
        let view = |activation| {
            if docs {
                ActivationView::full(name, activation)
            } else {
                ActivationView::summary(name, activation)
            }
        };
        let views: Vec<_> = found.iter().map(|activation| view(activation)).collect();
        Ok(answer(StatusCode::OK, &views))
    };
    tokio::task::spawn_blocking(read).await.map_err(|_| ApiError::internal())?
}

fn find(node: &Node, place: &Place) -> Result<Arc<Activation>, ApiError> {
    let id = ActivationId::parse(place.text())?;
    node.store.activation(place.tenant.name(), id)?.ok_or_else(ApiError::missing)
}

pub(super) async fn get(State(node): State<Arc<Node>>, place: Place) -> Result<Response, ApiError> {
    let activation = find(&node, &place)?;
    Ok(answer(StatusCode::OK, &ActivationView::full(place.tenant.name(), &activation)))
}

pub(super) async fn logs(State(node): State<Arc<Node>>, place: Place) -> Result<Response, ApiError> {
    let activation = find(&node, &place)?;
    Ok(answer(StatusCode::OK, &serde_json::json!({ "logs": activation.logs })))
}

pub(super) async fn result(State(node): State<Arc<Node>>, place: Place) -> Result<Response, ApiError> {
    let activation = find(&node, &place)?;
    Ok(answer(StatusCode::OK, &ResponseView::new(&activation)))
}
