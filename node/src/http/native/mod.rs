//! The native API.
use crate::daemon::Node;
use axum::Router;
use std::sync::Arc;

pub(super) fn router(_node: &Arc<Node>) -> Router {
    Router::new()
}
