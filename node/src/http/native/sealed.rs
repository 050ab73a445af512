//! Sealed CVMs: the tenant's manifest, packages, evidence, records of sessions, and what a key broker asks. The node reads headers and
//! checks lengths; everything else is between the client and the CVM.

use super::ErrorBody;
use super::deployments::{DeploymentView, keep_and_start, remove_and_stop, service_options};
use crate::daemon::Node;
use crate::http::error::ApiError;
use crate::http::extract::{self, Caller, Options, Place};
use crate::names::{EntityName, PackageId, now_ms, rfc3339};
use crate::records::{ModuleRef, Package, Service, Version};
use crate::runner::SealedError;
use crate::store::{EditError, StoreError};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use nacre_attest::evidence::Evidence;
use nacre_attest::manifest::SignedManifest;
use nacre_attest::package;
use nacre_session::SessionId;
use nacre_session::wire::{self, MAX_RECORD_BYTES};
use nacre_vmm::evidence::EvidenceError;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// Longest body of a manifest.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// Longest wait of a key broker, in seconds.
const MAX_WAIT_S: u64 = 60;

/// A sealed package.
#[derive(Debug, Serialize, ToSchema)]
pub struct PackageView {
    /// Its name.
    id: String,
    /// Its size.
    bytes: u64,
    /// SHA-256 of all of it.
    sha256: String,
    created: String,
}

impl From<&Package> for PackageView {
    fn from(package: &Package) -> Self {
        Self {
            id: package.id.to_string(),
            bytes: package.module.bytes,
            sha256: package.module.digest.to_string(),
            created: rfc3339(package.created_ms),
        }
    }
}

/// A CVM that waits for its broker.
#[derive(Debug, Serialize, ToSchema)]
pub struct Unprovisioned {
    /// Tells it from others.
    generation: u64,
    /// The packages that the node has for it.
    packages: Vec<String>,
}

impl From<SealedError> for ApiError {
    fn from(error: SealedError) -> Self {
        let status = match &error {
            SealedError::Ended(_) | SealedError::Evidence(EvidenceError::Ended) => StatusCode::CONFLICT,
            SealedError::Evidence(EvidenceError::Busy) => StatusCode::TOO_MANY_REQUESTS,
            SealedError::Moved => return Self::moved(),
            SealedError::Refused(_) => StatusCode::BAD_REQUEST,
            SealedError::Evidence(_) => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, error.to_string())
    }
}

fn package_id(place: &Place) -> Result<PackageId, ApiError> {
    let id = PackageId::try_from(place.text().to_owned());
    id.map_err(|error| ApiError::bad(format!("The path is wrong: {error}.")))
}

/// Set the manifest with which the tenant's CVM is launched. A CVM that runs with another one is ended.
#[utoipa::path(put, path = "/v1/sealed/manifest", tag = "sealed", security(("tenant" = [])),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 409, description = "It has another owner, is older, or is another one of the same version", body = ErrorBody)))]
pub(super) async fn set_manifest(
    State(node): State<Arc<Node>>,
    Caller(tenant): Caller,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let content = extract::read(&tenant, body, MAX_MANIFEST_BYTES).await?;
    let bad = |error: &dyn std::fmt::Display| ApiError::bad(format!("The manifest is no good: {error}."));
    let signed = SignedManifest::decode(&content.bytes).map_err(|error| bad(&error))?;
    let new = signed.verify().map_err(|error| bad(&error))?;
    let bytes: Arc<[u8]> = Arc::from(&content.bytes[..]);
    let may_replace = move |old: Option<&[u8]>| {
        let old = old.and_then(|old| SignedManifest::decode(old).ok()?.verify().ok());
        match old {
            Some(old) if old.owner != new.owner => Err(EditError::OtherOwner),
            Some(old) if old.version > new.version => Err(EditError::OlderManifest(old.version)),
            Some(old) if old.version == new.version && old != new => {
                Err(EditError::SameManifestVersion(old.version))
            }
            _ => Ok(()),
        }
    };
    // Who asked may go away: what is stored and what runs go together all the same.
    let both = async move {
        node.store.set_manifest(tenant.owner().clone(), bytes, may_replace).await?;
        node.runner.replace(&tenant).await;
        Ok::<_, StoreError>(())
    };
    tokio::spawn(both).await.map_err(|_| ApiError::internal())??;
    Ok(StatusCode::NO_CONTENT)
}

/// Get the tenant's manifest.
#[utoipa::path(get, path = "/v1/sealed/manifest", tag = "sealed", security(("tenant" = [])),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn manifest(
    State(node): State<Arc<Node>>,
    Caller(tenant): Caller,
) -> Result<Vec<u8>, ApiError> {
    let sealed = node.store.directory().sealed(tenant.name());
    sealed.manifest.as_ref().map(|manifest| manifest.to_vec()).ok_or_else(ApiError::missing)
}

/// Keep a sealed package, and bring it into the CVM that runs.
#[utoipa::path(put, path = "/v1/sealed/packages/{id}", tag = "sealed", security(("tenant" = [])),
    params(("id" = String, Path, description = "Its name: 32 hexadecimal digits")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = PackageView), (status = 400, body = ErrorBody),
        (status = 401, body = ErrorBody), (status = 413, body = ErrorBody)))]
pub(super) async fn put_package(
    State(node): State<Arc<Node>>,
    place: Place,
    body: Body,
) -> Result<(StatusCode, Json<PackageView>), ApiError> {
    let (id, tenant) = (package_id(&place)?, &place.tenant);
    let content = extract::read(tenant, body, u64::MAX).await?;
    let bad = |error: &dyn std::fmt::Display| ApiError::bad(format!("The package is no good: {error}."));
    let header = package::Header::parse(&content.bytes).map_err(|error| bad(&error))?;
    header.check(&content.bytes).map_err(|error| bad(&error))?;
    if header.id != id.0 {
        return Err(bad(&"it has another id than the path"));
    }
    let store = node.store.clone();
    let draft = move || {
        let digest = crate::names::Digest(<sha2::Sha256 as sha2::Digest>::digest(&content.bytes).into());
        store.modules().draft(digest, &content.bytes)
    };
    let draft = tokio::task::spawn_blocking(draft).await.map_err(|_| ApiError::internal())??;
    let package = node.store.put_package(tenant.owner().clone(), id, draft).await?;
    node.runner.package_arrived(tenant, package).await;
    Ok((StatusCode::CREATED, Json(PackageView::from(&package))))
}

/// List the sealed packages.
#[utoipa::path(get, path = "/v1/sealed/packages", tag = "sealed", security(("tenant" = [])),
    responses((status = 200, body = Vec<PackageView>), (status = 401, body = ErrorBody)))]
pub(super) async fn packages(
    State(node): State<Arc<Node>>,
    Caller(tenant): Caller,
) -> Json<Vec<PackageView>> {
    let sealed = node.store.directory().sealed(tenant.name());
    Json(sealed.packages.values().map(PackageView::from).collect())
}

/// Remove a sealed package. What was installed from it stays until its CVM ends.
#[utoipa::path(delete, path = "/v1/sealed/packages/{id}", tag = "sealed", security(("tenant" = [])),
    params(("id" = String, Path, description = "Its name")),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn remove_package(
    State(node): State<Arc<Node>>,
    place: Place,
) -> Result<StatusCode, ApiError> {
    let id = package_id(&place)?;
    node.store.remove_package(place.tenant.owner().clone(), id).await?;
    node.runner.package_removed(&place.tenant, id);
    Ok(StatusCode::NO_CONTENT)
}

/// Get the offer of a session, with evidence of the CVM that makes it. The body is an `EvidenceRequest` of the session protocol, the
/// answer an `Offer`.
#[utoipa::path(post, path = "/v1/sealed/evidence", tag = "sealed", security(("tenant" = [])),
    params(("provisioning" = Option<bool>, Query, description = "Asked by a key broker: do not wait for one")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 502, body = ErrorBody)))]
pub(super) async fn evidence(
    State(node): State<Arc<Node>>,
    Caller(tenant): Caller,
    options: Options,
    body: Body,
) -> Result<Vec<u8>, ApiError> {
    let content = extract::read(&tenant, body, 4096).await?;
    let nonce = wire::decode_evidence_request(&content.bytes);
    let nonce =
        nonce.map_err(|error| ApiError::bad(format!("The request for evidence is no good: {error}.")))?;
    let is_broker = options.flag("provisioning")?;
    let encoded = node.runner.evidence(&tenant, &nonce, is_broker).await?;
    let garbled = || ApiError::new(StatusCode::BAD_GATEWAY, "The CVM's evidence is malformed.");
    let evidence = Evidence::decode(&encoded).map_err(|_| garbled())?;
    let id = evidence.claims.id.as_slice().try_into().map(SessionId).map_err(|_| garbled())?;
    wire::offer(id, &encoded).ok_or_else(garbled)
}

/// Hand a record of a session to the CVM; the answer is the record that replies to it.
#[utoipa::path(post, path = "/v1/sealed/records", tag = "sealed", security(("tenant" = [])),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 409, description = "The CVM has ended", body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 429, body = ErrorBody)))]
pub(super) async fn record(
    State(node): State<Arc<Node>>,
    Caller(tenant): Caller,
    body: Body,
) -> Result<Bytes, ApiError> {
    let content = extract::read(&tenant, body, MAX_RECORD_BYTES as u64).await?;
    let allowed = tenant.limits().concurrency;
    let share = tenant.begin_activation();
    let _share = share.map_err(|count| {
        let text =
            format!("The tenant has {count} calls under way, of {allowed} that it may have; send again.");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, text)
    })?;
    Ok(node.runner.record(&tenant, &content.bytes).await?.into())
}

/// Wait, as a key broker, until a CVM runs that nobody has provisioned.
#[utoipa::path(get, path = "/v1/sealed/provisioning", tag = "sealed", security(("tenant" = [])),
    params(("wait_s" = Option<u64>, Query, description = "How long to wait, in seconds")),
    responses((status = 200, body = Unprovisioned), (status = 204, description = "There is none"),
        (status = 401, body = ErrorBody)))]
pub(super) async fn unprovisioned(
    State(node): State<Arc<Node>>,
    Caller(tenant): Caller,
    options: Options,
) -> Result<Result<Json<Unprovisioned>, StatusCode>, ApiError> {
    let wait = Duration::from_secs(options.number("wait_s", 0, MAX_WAIT_S)?.unwrap_or(0));
    let mut stopping = node.stopping.subscribe();
    let found = tokio::select! {
        found = node.runner.unprovisioned(&tenant, wait) => found,
        _ = stopping.wait_for(|stopping| *stopping) => None,
    };
    let Some(generation) = found else { return Ok(Err(StatusCode::NO_CONTENT)) };
    let packages =
        node.store.directory().sealed(tenant.name()).packages.keys().map(PackageId::to_string).collect();
    Ok(Ok(Json(Unprovisioned { generation, packages })))
}

/// Say, as a key broker, that a CVM has all it needs.
#[utoipa::path(post, path = "/v1/sealed/provisioning/{generation}", tag = "sealed", security(("tenant" = [])),
    params(("generation" = u64, Path, description = "Which one")),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody)))]
pub(super) async fn provisioned(State(node): State<Arc<Node>>, place: Place) -> Result<StatusCode, ApiError> {
    let generation = place.text().parse().map_err(|_| ApiError::bad("A generation is a number."))?;
    node.runner.provisioned(&place.tenant, generation);
    Ok(StatusCode::NO_CONTENT)
}

/// The name under which the node knows the service of a package.
fn service_name(id: PackageId) -> Result<EntityName, ApiError> {
    Ok(EntityName::new(&format!("sealed-{id}"))?)
}

/// Run the service that is installed from a package, at a port.
#[utoipa::path(put, path = "/v1/sealed/services/{id}", tag = "sealed", security(("tenant" = [])),
    params(("id" = String, Path, description = "The package"),
        ("port" = u16, Query, description = "Where its clients connect"),
        ("restart" = Option<crate::records::Restart>, Query, description = "When it is started again")),
    responses((status = 201, body = DeploymentView), (status = 400, body = ErrorBody),
        (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn run_service(
    State(node): State<Arc<Node>>,
    place: Place,
    options: Options,
) -> Result<(StatusCode, Json<DeploymentView>), ApiError> {
    let (id, tenant) = (package_id(&place)?, &place.tenant);
    let name = service_name(id)?;
    let (port, restart, args) = service_options(&options)?;
    if !args.is_empty() {
        return Err(ApiError::bad(
            "A sealed service takes no arguments from the node; seal them as variables.",
        ));
    }
    let package = node.store.directory().sealed(tenant.name()).packages.get(&id).copied();
    let package = package.ok_or_else(ApiError::missing)?;
    let listener = node.services.listen(tenant.name(), &name, port).await.map_err(|error| {
        let address = node.services.address(port);
        ApiError::new(
            StatusCode::CONFLICT,
            format!("{address} can't be listened on: {error}; choose another port."),
        )
    })?;
    let store = node.store.clone();
    let draft = move || {
        let bytes = store.modules().read(&package.module.digest)?;
        store.modules().draft(package.module.digest, &bytes)
    };
    let draft = tokio::task::spawn_blocking(draft).await.map_err(|_| ApiError::internal())??;
    let module = ModuleRef { digest: draft.digest, bytes: draft.bytes };
    let key = name.clone();
    let edit = move |old: Option<Service>| {
        let version = old.map_or(Version::FIRST, |old| old.version.next());
        let package = Some(id);
        Ok(Service { name: key, version, module, port, restart, args, package, updated_ms: now_ms() })
    };
    let service = keep_and_start(&node, tenant, (name, draft, edit), listener).await?;
    Ok((StatusCode::CREATED, Json(DeploymentView::service(&node, tenant, &service))))
}

/// Stop the service of a package.
#[utoipa::path(delete, path = "/v1/sealed/services/{id}", tag = "sealed", security(("tenant" = [])),
    params(("id" = String, Path, description = "The package")),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn stop_service(
    State(node): State<Arc<Node>>,
    place: Place,
) -> Result<StatusCode, ApiError> {
    let name = service_name(package_id(&place)?)?;
    remove_and_stop(&node, &place.tenant, name).await?;
    Ok(StatusCode::NO_CONTENT)
}
