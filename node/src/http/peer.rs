//! What other nodes may ask, on the peer port. They are trusted to be who they are; what they write is read like anybody's.

use super::error::ApiError;
use crate::daemon::Node;
use crate::names::hex;
use crate::peers::Fingerprint;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use nacre_vmm::image;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::{Arc, LazyLock};

/// What versions a node speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Of the migration protocol, between guests.
    pub migration: u8,
    /// Of the interface between host and guest.
    pub abi: u32,
}

/// A node as it describes itself to others: `GET` or `POST /peer/v1/node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Who it is.
    pub fingerprint: Fingerprint,
    /// What it speaks.
    pub versions: Versions,
    /// The guest images that it can launch: SHA-256 of each, as `nacre measure` prints it. The measurement of a launch follows from image, workers
    /// and memory.
    pub images: Vec<String>,
}

/// What other nodes may ask.
pub(super) fn router(node: &Arc<Node>) -> Router {
    // POST as well: nodes ask questions that way.
    Router::new().route("/peer/v1/node", get(describe).post(describe)).with_state(node.clone())
}

async fn describe(State(node): State<Arc<Node>>) -> Result<Json<NodeView>, ApiError> {
    static IMAGE: LazyLock<String> = LazyLock::new(|| hex(&Sha256::digest(image::RELEASE)));
    // There is no peer port without them.
    let peers = node.peers.as_ref().ok_or_else(ApiError::missing)?;
    Ok(Json(NodeView {
        fingerprint: peers.fingerprint(),
        versions: Versions { migration: nacre_migrate::wire::VERSION, abi: nacre_abi::ABI_VERSION },
        images: vec![IMAGE.clone()],
    }))
}
