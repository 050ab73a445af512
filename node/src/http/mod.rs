//! The HTTP interfaces: OpenWhisk's API, the native one, health and metrics.
//!
//! ```text
//! public listener    /api/v1/...  /v1/...  /ping  /healthz  /readyz          keys of tenants
//!                    /v1/tenants  /metrics                                   the administrator's token, if one is set
//! admin socket       all of it, administration and metrics without a token   whoever may open the socket: its owner
//! peer port          /peer/v1/...                                            nodes that are trusted
//! metrics listener   /metrics  /healthz  /readyz
//! ```

mod admin;
pub mod error;
pub mod extract;
mod impatient;
mod layer;
mod moving;
pub mod native;
pub mod openwhisk;
pub mod peer;
mod peers_admin;
mod server;
pub(crate) mod watch;

use crate::daemon::Node;
use crate::metrics::Gauges;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use error::ApiError;
use server::Front;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::{TcpListener, UnixListener};

/// Where the node listens.
pub struct Listeners {
    /// The public interface.
    pub public: TcpListener,
    /// Metrics alone.
    pub metrics: Option<TcpListener>,
    /// Other nodes.
    pub peers: Option<TcpListener>,
    /// Administration.
    pub admin: UnixListener,
}

/// Serves until the node stops and open requests are answered.
pub async fn serve(node: Arc<Node>, listeners: Listeners) {
    let all = |administrator| Front { router: router(&node, administrator), calls: Some(node.clone()) };
    let public = server::serve(listeners.public, all(false), node.clone());
    let admin = server::serve(listeners.admin, all(true), node.clone());
    let metrics = async {
        if let Some(listener) = listeners.metrics {
            let router = finish(metrics_router(&node).merge(health_router(&node)));
            server::serve(listener, Front { router, calls: None }, node.clone()).await;
        }
    };
    let peers = async {
        if let (Some(listener), Some(peers)) = (listeners.peers, &node.peers) {
            let router = peer_router(&node);
            crate::peers::serve(peers.clone(), listener, router, node.stopping.subscribe()).await;
        }
    };
    tokio::join!(public, admin, metrics, peers);
}

/// Everything, for the public or for the administrator.
fn router(node: &Arc<Node>, administrator: bool) -> Router {
    let guarded = admin::router(node).merge(peers_admin::router(node)).merge(metrics_router(node));
    let guarded = if administrator {
        guarded
    } else {
        guarded.route_layer(axum::middleware::from_fn_with_state(node.clone(), admin::needs_token))
    };
    let moving = axum::middleware::from_fn_with_state(node.clone(), moving::around);
    let mut tenants = openwhisk::router(node).merge(native::router(node)).route_layer(moving);
    if administrator {
        tenants = tenants.layer(axum::Extension(native::migrations::Administrator));
    }
    finish(tenants.merge(health_router(node)).merge(guarded))
}

/// What other nodes may ask.
fn peer_router(node: &Arc<Node>) -> Router {
    let moving = axum::middleware::from_fn_with_state(node.clone(), moving::around_forwarded);
    let tenants = openwhisk::router(node).merge(native::router(node)).route_layer(moving);
    finish(peer::router(node).merge(crate::migration::peers::router(&node.migrations, tenants)))
}

/// What no route takes, and the layer around everything.
fn finish(router: Router) -> Router {
    let missing = || async { ApiError::missing() };
    let method = || async {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "This resource does not take this method.")
    };
    router
        .fallback(missing)
        .method_not_allowed_fallback(method)
        // Bodies are read by `extract::read`, which has limits of its own.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn(layer::around))
}

fn health_router(node: &Arc<Node>) -> Router {
    let ready = async |State(node): State<Arc<Node>>| {
        if *node.stopping.borrow() || node.migrations.is_stopping() {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "The node is stopping."));
        }
        Ok("ready\n")
    };
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/ping", get(async || "pong"))
        .route("/readyz", get(ready))
        .with_state(node.clone())
}

fn metrics_router(node: &Arc<Node>) -> Router {
    let metrics = async |State(node): State<Arc<Node>>| {
        let gauges = Gauges {
            tenants: node.tenants.all().len(),
            actions: node.store.directory().action_count(),
            services: node.store.directory().service_count(),
            compile_queue: node.compiler.waiting(),
            connections: node.connections.load(Ordering::Relaxed),
            uptime: node.start.elapsed().as_secs_f64(),
        };
        // Looking at a CVM's memory walks page tables of the kernel.
        let looked =
            tokio::task::spawn_blocking(move || crate::metrics::render(&node.runner.views(), gauges)).await;
        let text = looked.map_err(|_| ApiError::internal())?;
        Ok::<_, ApiError>(
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        )
    };
    Router::new().route("/metrics", get(metrics)).with_state(node.clone())
}
