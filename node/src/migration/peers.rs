//! The peers of this node as the way of migrations, and what they may ask of it.

use super::net::{self, Duplex, Net, NetError, Wait};
use super::{AskClient, AskCommit, AskRejoin, AskTunnel, EndedCall, Migrations, PeerName, destination};
use crate::http::error::ApiError;
use crate::names::Digest;
use crate::peers::{Caller, Fingerprint, PeerUrl, Peers, Question, StreamRequest};
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde_json::Value;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

fn said(error: impl Display) -> NetError {
    NetError(error.to_string())
}

fn digest(fingerprint: Fingerprint) -> Digest {
    Digest(*fingerprint.bytes())
}

impl Net for Peers {
    fn own(&self) -> Digest {
        digest(self.fingerprint())
    }

    fn address(&self) -> Option<String> {
        Peers::address(self).map(PeerUrl::to_string)
    }

    fn url(&self, text: &str) -> Result<String, NetError> {
        text.parse::<PeerUrl>().map(|url| url.to_string()).map_err(said)
    }

    fn ask(&self, node: &PeerName, path: &'static str, question: Value) -> Wait<Value> {
        let (peers, url) = (self.clone(), node.url.parse::<PeerUrl>());
        let who = Fingerprint::from_bytes(node.fingerprint.0);
        Box::pin(async move { peers.ask_this(&url.map_err(said)?, who, path, &question).await.map_err(said) })
    }

    fn stream(&self, node: &str, path: &'static str, question: Value) -> Wait<Box<dyn Duplex>> {
        let (peers, node) = (self.clone(), node.parse::<PeerUrl>());
        Box::pin(async move {
            let stream = peers.stream(&node.map_err(said)?, path, &question).await.map_err(said)?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }

    fn bare(&self, node: &str, ticket: String) -> Wait<std::net::TcpStream> {
        let (peers, node) = (self.clone(), node.parse::<PeerUrl>());
        Box::pin(async move {
            let ticket = serde_json::from_value(Value::String(ticket)).map_err(said)?;
            peers.bare(&node.map_err(said)?, ticket).await.map_err(said)
        })
    }

    fn expect(
        &self,
        from: Digest,
        patience: Duration,
    ) -> Result<(String, Wait<std::net::TcpStream>), NetError> {
        let (ticket, stream) = Peers::expect(self, Fingerprint::from_bytes(from.0), patience);
        let ticket = serde_json::to_value(&ticket).map_err(said)?;
        let ticket = ticket.as_str().unwrap_or_default().to_owned();
        Ok((ticket, Box::pin(async move { stream.await.map_err(said) })))
    }

    fn forward(&self, node: &str, request: Request<Body>) -> Wait<Response<Body>> {
        let (peers, node) = (self.clone(), node.parse::<PeerUrl>());
        Box::pin(async move { peers.forward(&node.map_err(said)?, request).await.map_err(said) })
    }
}

type Manager = State<Arc<Migrations>>;
type From = Extension<Caller>;

/// What other nodes may ask about migrations; `tenants` are the interfaces of tenants, for forwarded requests.
pub fn router(manager: &Arc<Migrations>, tenants: Router) -> Router {
    let come =
        async |State(manager): Manager, Extension(Caller(from)): From, stream: StreamRequest<Value>| {
            stream.accept(move |stream| destination::attend(manager, digest(from), Box::new(stream)))
        };
    let commit =
        async |State(manager): Manager, Extension(Caller(from)): From, question: Question<AskCommit>| {
            Ok::<_, ApiError>(Json(manager.answer_commit(digest(from), question.0).await?))
        };
    let rejoin =
        async |State(manager): Manager, Extension(Caller(from)): From, question: Question<AskRejoin>| {
            Ok::<_, ApiError>(Json(manager.answer_rejoin(digest(from), question.0)?))
        };
    let client = async |State(manager): Manager, stream: StreamRequest<AskClient>| {
        let question = stream.question.clone();
        stream.accept(move |stream| async move { manager.serve_client(question, Box::new(stream)).await })
    };
    let tunnel = async |State(manager): Manager, stream: StreamRequest<AskTunnel>| {
        let question = stream.question.clone();
        stream.accept(move |stream| async move { manager.serve_tunnel(question, Box::new(stream)).await })
    };
    let ended = async |State(manager): Manager, question: Question<EndedCall>| {
        manager.take_ended(question.0).await;
        (StatusCode::OK, Json(Value::Null))
    };
    Router::new()
        .route(net::MOVE, post(come))
        .route(net::COMMIT, post(commit))
        .route(net::REJOIN, post(rejoin))
        .route(net::CONNECT, post(client))
        .route(net::TUNNEL, post(tunnel))
        .route(net::ENDED, post(ended))
        .with_state(manager.clone())
        .nest(net::TENANT, tenants)
}
