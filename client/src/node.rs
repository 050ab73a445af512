//! What a node offers for sealed CVMs, as it is on the wire. A node relays and stores; nothing that comes from here is
//! believed for the node's word.

use crate::http::{Answer, Node, NodeError, Repeat, segment};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use nacre_attest::manifest::SignedManifest;
use nacre_attest::verify::hex;
use serde::Deserialize;
use std::time::Duration;

const OCTETS: &str = "application/octet-stream";
const JSON: &str = "application/json";
/// How much longer than asked a node may take to answer a long poll.
const POLL_SLACK: Duration = Duration::from_secs(30);

/// A CVM that nobody has provisioned.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Unprovisioned {
    /// Tells it from others of the tenant.
    pub generation: u64,
    /// The packages that the node has for it: 32 hexadecimal digits each.
    pub packages: Vec<String>,
}

/// A sealed package as the node lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StoredPackage {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of all of it.
    pub sha256: String,
}

impl Node {
    async fn sealed(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer, NodeError> {
        self.send(method, path, OCTETS, body, Repeat::Once).await?.success()
    }

    async fn sealed_json<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, NodeError> {
        let answer = self.send(method, path, JSON, Bytes::new(), Repeat::Once).await?.success()?;
        serde_json::from_slice(&answer.body).map_err(|_| NodeError::Strange { node: self.name() })
    }

    /// Sets the manifest that the tenant's CVMs are launched with. A CVM with another one is ended.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn put_manifest(&self, manifest: &SignedManifest) -> Result<(), NodeError> {
        self.sealed(Method::PUT, "/v1/sealed/manifest", manifest.encode()).await.map(drop)
    }

    /// The manifest's bytes, if the tenant has one.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn manifest(&self) -> Result<Option<Bytes>, NodeError> {
        match self.sealed(Method::GET, "/v1/sealed/manifest", Bytes::new()).await {
            Ok(answer) => Ok(Some(answer.body)),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the node a package to keep.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn put_package(&self, id: &[u8; 16], package: Bytes) -> Result<(), NodeError> {
        let path = format!("/v1/sealed/packages/{}", hex(id));
        self.sealed(Method::PUT, &path, package).await.map(drop)
    }

    /// The tenant's packages.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn packages(&self) -> Result<Vec<StoredPackage>, NodeError> {
        self.sealed_json(Method::GET, "/v1/sealed/packages").await
    }

    /// Has the node forget a package; that it knows none is fine.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn delete_package(&self, id: &str) -> Result<(), NodeError> {
        let path = format!("/v1/sealed/packages/{}", segment(id));
        gone(self.sealed(Method::DELETE, &path, Bytes::new()).await)
    }

    /// Asks for the offer of a session with a message of the session protocol. Launches the CVM if there is none; waits for
    /// a broker to provision it unless `provisioning`.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn evidence(&self, request: Vec<u8>, provisioning: bool) -> Result<Bytes, NodeError> {
        let query = if provisioning { "?provisioning=true" } else { "" };
        let path = format!("/v1/sealed/evidence{query}");
        Ok(self.sealed(Method::POST, &path, request).await?.body)
    }

    /// Relays a record to the CVM. A CVM accepts each once, so that it may be sent again.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn record(&self, record: Bytes) -> Result<Bytes, NodeError> {
        Ok(self.sealed(Method::POST, "/v1/sealed/records", record).await?.body)
    }

    /// Waits, at most so long, for a CVM that nobody has provisioned.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn unprovisioned(&self, wait: Duration) -> Result<Option<Unprovisioned>, NodeError> {
        let path = format!("/v1/sealed/provisioning?wait_s={}", wait.as_secs());
        let poll = self.send(Method::GET, &path, JSON, Bytes::new(), Repeat::Once);
        let late = || NodeError::Broken { node: self.name(), reason: "no answer".to_owned() };
        let answer = tokio::time::timeout(wait + POLL_SLACK, poll).await.map_err(|_| late())??.success()?;
        if answer.status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let found = serde_json::from_slice(&answer.body);
        found.map(Some).map_err(|_| NodeError::Strange { node: self.name() })
    }

    /// Tells the node that a CVM has all it needs.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn provisioned(&self, generation: u64) -> Result<(), NodeError> {
        let path = format!("/v1/sealed/provisioning/{generation}");
        self.sealed(Method::POST, &path, Bytes::new()).await.map(drop)
    }

    /// Has the node run the service that was installed from a package; its address.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn run_service(
        &self,
        package: &[u8; 16],
        port: u16,
        restart: Option<&str>,
    ) -> Result<Option<String>, NodeError> {
        let restart = restart.map(|word| format!("&restart={}", segment(word))).unwrap_or_default();
        let path = format!("/v1/sealed/services/{}?port={port}{restart}", hex(package));
        let view = self.sealed(Method::PUT, &path, Bytes::new()).await?.json()?;
        Ok(view.get("address").and_then(|address| address.as_str()).map(str::to_owned))
    }

    /// Has the node stop the service of a package; that it runs none is fine.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn stop_service(&self, package: &[u8; 16]) -> Result<(), NodeError> {
        let path = format!("/v1/sealed/services/{}", hex(package));
        gone(self.sealed(Method::DELETE, &path, Bytes::new()).await)
    }
}

fn gone(answer: Result<Answer, NodeError>) -> Result<(), NodeError> {
    match answer {
        Err(error) if error.status() != Some(404) => Err(error),
        _ => Ok(()),
    }
}
