//! What a node offers for sealed CVMs, as it is on the wire. A node relays and stores; nothing that comes from here is
//! believed for the node's word.

use crate::http::{Answer, Bounds, Node, NodeError, Repeat, segment};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use nacre_attest::evidence::MAX_EVIDENCE_BYTES;
use nacre_attest::manifest::SignedManifest;
use nacre_attest::verify::hex;
use nacre_session::wire::MAX_RECORD_BYTES;
use serde::Deserialize;
use std::time::Duration;

const OCTETS: &str = "application/octet-stream";
const JSON: &str = "application/json";
/// How much longer than asked a node may take to answer a long poll.
const POLL_SLACK: Duration = Duration::from_secs(10);
/// Longest wait for a node that only has to look something up.
const LOOK_UP: Duration = Duration::from_secs(30);
/// Longest wait for a node that may have to launch a CVM, end one, or wait for a broker.
const LAUNCH: Duration = Duration::from_secs(60);
/// Longest wait for the answer to a record. A node ends calls earlier, by its tenant's limit.
const RECORD: Duration = Duration::from_secs(3600);
/// What a long body is uploaded with at least, in bytes per second.
const UPLOAD_RATE: u64 = 1 << 20;
/// Longest answer in JSON, or of an answer that nobody looks at.
const MAX_JSON_BYTES: usize = 1 << 20;
/// Longest manifest, as a node takes it.
const MAX_MANIFEST_BYTES: usize = 64 << 10;
/// Longest offer: evidence and what is around it.
const MAX_OFFER_BYTES: usize = MAX_EVIDENCE_BYTES + (4 << 10);

const fn bounds(answer: usize, wait: Duration) -> Bounds {
    Bounds { answer, wait: Some(wait) }
}

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

/// What is needed of the node's view of a service, or of an action.
#[derive(Deserialize)]
pub(crate) struct ServiceView {
    #[serde(default)]
    pub(crate) name: String,
    /// Where it listens, if it does.
    #[serde(default)]
    pub(crate) address: Option<String>,
}

impl Node {
    async fn sealed(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        bounds: Bounds,
    ) -> Result<Answer, NodeError> {
        self.send_within(method, path, OCTETS, body, Repeat::Once, bounds).await?.success()
    }

    /// Gets JSON of a known form.
    pub(crate) async fn listed<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, NodeError> {
        let bounds = bounds(MAX_JSON_BYTES, LOOK_UP);
        let answer = self.send_within(Method::GET, path, JSON, Bytes::new(), Repeat::Once, bounds).await?;
        answer.success()?.parsed()
    }

    /// Sets the manifest that the tenant's CVMs are launched with. A CVM with another one is ended.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn put_manifest(&self, manifest: &SignedManifest) -> Result<(), NodeError> {
        let bounds = bounds(MAX_JSON_BYTES, LAUNCH);
        self.sealed(Method::PUT, "/v1/sealed/manifest", manifest.encode(), bounds).await.map(drop)
    }

    /// The manifest's bytes, if the tenant has one.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn manifest(&self) -> Result<Option<Bytes>, NodeError> {
        let bounds = bounds(MAX_MANIFEST_BYTES, LOOK_UP);
        match self.sealed(Method::GET, "/v1/sealed/manifest", Bytes::new(), bounds).await {
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
        let upload = Duration::from_secs(package.len() as u64 / UPLOAD_RATE);
        self.sealed(Method::PUT, &path, package, bounds(MAX_JSON_BYTES, LAUNCH + upload)).await.map(drop)
    }

    /// The tenant's packages.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn packages(&self) -> Result<Vec<StoredPackage>, NodeError> {
        self.listed("/v1/sealed/packages").await
    }

    /// Has the node forget a package; that it knows none is fine.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn delete_package(&self, id: &str) -> Result<(), NodeError> {
        let path = format!("/v1/sealed/packages/{}", segment(id));
        gone(self.sealed(Method::DELETE, &path, Bytes::new(), bounds(MAX_JSON_BYTES, LAUNCH)).await)
    }

    /// Asks for the offer of a session with a message of the session protocol. Launches the CVM if there is none; waits for
    /// a broker to provision it unless `provisioning`.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn evidence(&self, request: Vec<u8>, provisioning: bool) -> Result<Bytes, NodeError> {
        let query = if provisioning { "?provisioning=true" } else { "" };
        let path = format!("/v1/sealed/evidence{query}");
        Ok(self.sealed(Method::POST, &path, request, bounds(MAX_OFFER_BYTES, LAUNCH)).await?.body)
    }

    /// Relays a record to the CVM. A CVM accepts each once, so that it may be sent again.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn record(&self, record: Bytes) -> Result<Bytes, NodeError> {
        let bounds = bounds(MAX_RECORD_BYTES, RECORD);
        Ok(self.sealed(Method::POST, "/v1/sealed/records", record, bounds).await?.body)
    }

    /// Waits, at most so long, for a CVM that nobody has provisioned.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn unprovisioned(&self, wait: Duration) -> Result<Option<Unprovisioned>, NodeError> {
        let path = format!("/v1/sealed/provisioning?wait_s={}", wait.as_secs());
        let bounds = bounds(MAX_JSON_BYTES, wait + POLL_SLACK);
        let answer = self.send_within(Method::GET, &path, JSON, Bytes::new(), Repeat::Once, bounds).await?;
        let answer = answer.success()?;
        if answer.status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        answer.parsed().map(Some)
    }

    /// Tells the node that a CVM has all it needs.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn provisioned(&self, generation: u64) -> Result<(), NodeError> {
        let path = format!("/v1/sealed/provisioning/{generation}");
        self.sealed(Method::POST, &path, Bytes::new(), bounds(MAX_JSON_BYTES, LOOK_UP)).await.map(drop)
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
        let view: ServiceView =
            self.sealed(Method::PUT, &path, Bytes::new(), bounds(MAX_JSON_BYTES, LAUNCH)).await?.parsed()?;
        Ok(view.address)
    }

    /// Has the node stop the service of a package; that it runs none is fine.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn stop_service(&self, package: &[u8; 16]) -> Result<(), NodeError> {
        let path = format!("/v1/sealed/services/{}", hex(package));
        gone(self.sealed(Method::DELETE, &path, Bytes::new(), bounds(MAX_JSON_BYTES, LAUNCH)).await)
    }
}

fn gone(answer: Result<Answer, NodeError>) -> Result<(), NodeError> {
    match answer {
        Err(error) if error.status() != Some(404) => Err(error),
        _ => Ok(()),
    }
}
