//! Administration of trust between nodes: who this one is, and which it trusts. Where and to whom it is served: as [`super::admin`].

use super::error::ApiError;
use super::extract;
use super::native::ErrorBody;
use crate::daemon::Node;
use crate::peers::{Fingerprint, PeerError, PeerNameError, PeerUrl, Peers, PeersError, TrustedPeer};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Json, Router};
use nacre_node_api::sentence;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::task::spawn_blocking;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Largest body in bytes.
const MAX_BODY: usize = 4 << 10;

pub(super) fn documented() -> OpenApiRouter<Arc<Node>> {
    OpenApiRouter::new().routes(routes!(identity)).routes(routes!(list, trust)).routes(routes!(distrust))
}

pub(super) fn router(node: &Arc<Node>) -> Router {
    documented().split_for_parts().0.with_state(node.clone())
}

fn peers(node: &Node) -> Result<&Peers, ApiError> {
    let none = "This node has no peer port; start it with --peer-listen ADDR.";
    node.peers.as_ref().ok_or_else(|| ApiError::new(StatusCode::CONFLICT, none))
}

impl From<PeersError> for ApiError {
    fn from(error: PeersError) -> Self {
        let status = match &error {
            PeersError::Itself | PeersError::Name => StatusCode::BAD_REQUEST,
            PeersError::Taken { .. } => StatusCode::CONFLICT,
            PeersError::TooMany(_) => StatusCode::FORBIDDEN,
            PeersError::File { .. } | PeersError::Malformed { .. } | PeersError::Key(_) => {
                tracing::error!(%error, "trust can't be changed");
                return Self::internal();
            }
        };
        Self::new(status, sentence(error))
    }
}

impl From<PeerError> for ApiError {
    fn from(error: PeerError) -> Self {
        let status = match &error {
            PeerError::Itself { .. } => StatusCode::BAD_REQUEST,
            PeerError::TimedOut { .. } | PeerError::NotShown { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, sentence(error))
    }
}

impl From<PeerNameError> for ApiError {
    fn from(error: PeerNameError) -> Self {
        Self::bad(sentence(error))
    }
}

/// Who a node is for other nodes.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct IdentityView {
    /// SHA-256 of its public key, in hexadecimal digits.
    #[schema(value_type = String)]
    fingerprint: Fingerprint,
    /// Where other nodes reach it, `HOST:PORT`.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<PeerUrl>,
    /// What to run on another node, so that it trusts this one.
    command: String,
}

/// A node that is trusted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PeerView {
    /// SHA-256 of its public key, in hexadecimal digits.
    #[schema(value_type = String)]
    fingerprint: Fingerprint,
    /// Where its peer port is, `HOST:PORT`.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<PeerUrl>,
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Since when it is trusted.
    added_at: String,
}

impl From<TrustedPeer> for PeerView {
    fn from(peer: TrustedPeer) -> Self {
        let TrustedPeer { name, url, fingerprint, added_at } = peer;
        Self { fingerprint, url, name, added_at }
    }
}

/// A node to trust.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPeer {
    /// Where its peer port is, `HOST:PORT`.
    pub url: String,
    /// SHA-256 of its public key. Without it the node is asked for it, which is told and not believed.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// What people call it.
    #[serde(default)]
    pub name: Option<String>,
}

/// Who this node is for other nodes.
#[utoipa::path(get, path = "/v1/identity", tag = "administration", security(("administrator" = [])),
    responses((status = 200, body = IdentityView), (status = 401, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn identity(State(node): State<Arc<Node>>) -> Result<Json<IdentityView>, ApiError> {
    let peers = peers(&node)?;
    let address = peers.address().cloned();
    Ok(Json(IdentityView { fingerprint: peers.fingerprint(), address, command: peers.command() }))
}

/// List the nodes that this one trusts.
#[utoipa::path(get, path = "/v1/peers", tag = "administration", security(("administrator" = [])),
    responses((status = 200, body = Vec<PeerView>), (status = 401, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn list(State(node): State<Arc<Node>>) -> Result<Json<Vec<PeerView>>, ApiError> {
    Ok(Json(peers(&node)?.trusted().into_iter().map(PeerView::from).collect()))
}

/// Trust a node, or change the address and name of one. Without a fingerprint nothing is changed: the answer tells which one the node shows.
#[utoipa::path(post, path = "/v1/peers", tag = "administration", security(("administrator" = [])),
    request_body = NewPeer,
    responses((status = 201, body = PeerView), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 428, body = ErrorBody, description = "The fingerprint is missing"),
        (status = 502, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn trust(State(node): State<Arc<Node>>, body: Body) -> Result<(StatusCode, Json<PeerView>), ApiError> {
    let body = extract::small(body, MAX_BODY).await?;
    let NewPeer { url, fingerprint, name } = nacre_node_api::body::record(&body)?;
    let (peers, url) = (peers(&node)?.clone(), url.parse::<PeerUrl>()?);
    let Some(fingerprint) = fingerprint else {
        let shown = peers.look(&url).await?;
        let text = format!(
            "{url} shows the fingerprint {shown}, and nothing says that this is right; if `nacre node identity` prints the same there, \
             run: nacre node trust {url} --fingerprint {shown}"
        );
        return Err(ApiError::new(StatusCode::PRECONDITION_REQUIRED, text));
    };
    let peer = TrustedPeer::new(fingerprint.parse()?, Some(url), name);
    let added = peer.clone();
    spawn_blocking(move || peers.trust(peer)).await.map_err(|_| ApiError::internal())??;
    tracing::info!(node = %added.fingerprint, "a node is trusted");
    Ok((StatusCode::CREATED, Json(added.into())))
}

/// Trust a node no more: its connections end.
#[utoipa::path(delete, path = "/v1/peers/{fingerprint}", tag = "administration", security(("administrator" = [])),
    params(("fingerprint" = String, Path, description = "Its fingerprint")),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn distrust(
    State(node): State<Arc<Node>>,
    Path(fingerprint): Path<String>,
) -> Result<StatusCode, ApiError> {
    let (peers, fingerprint) = (peers(&node)?.clone(), fingerprint.parse::<Fingerprint>()?);
    let removed =
        spawn_blocking(move || peers.distrust(fingerprint)).await.map_err(|_| ApiError::internal())??;
    if !removed {
        let text = format!(
            "No node with the fingerprint {fingerprint} is trusted; nacre node trust --list shows those that are."
        );
        return Err(ApiError::new(StatusCode::NOT_FOUND, text));
    }
    tracing::info!(node = %fingerprint, "a node is trusted no more");
    Ok(StatusCode::NO_CONTENT)
}
