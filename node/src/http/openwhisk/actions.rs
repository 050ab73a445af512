//! Actions: list, get, put, delete, invoke.

use crate::daemon::Node;
use crate::http::error::ApiError;
use crate::http::extract::{self, Options, Place};
use crate::invoke::Invoked;
use crate::limits::{ActionLimits, MAX_BLOCKING, MAX_PARAMETERS_BYTES};
use crate::names::{ActivationId, Digest, EntityName, hex, now_ms};
use crate::records::{Action, Activation, ModuleRef, Status, Version};
use crate::store::EditError;
use crate::tenants::Tenant;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use nacre_node_api::wire::{ActionPut, ActionView, ActivationView, action_put};
use sha2::Digest as _;
use std::sync::Arc;
use std::time::Duration;

/// The header with an activation's id.
const ACTIVATION_ID: HeaderName = HeaderName::from_static("x-openwhisk-activation-id");
/// Entries in a list, unless asked for otherwise, and at most.
pub(super) const LIST_DEFAULT: u64 = 30;
pub(super) const LIST_MAX: u64 = 200;

/// A JSON answer.
pub(super) fn answer<T: serde::Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => json_text(status, bytes.into()),
        Err(_) => ApiError::internal().into_response(),
    }
}

/// The same of JSON.
fn json_text(status: StatusCode, text: Bytes) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `limit` and `skip` of a list.
pub(super) fn window(options: &Options) -> Result<(usize, usize), ApiError> {
    let limit = match options.number("limit", 0, LIST_MAX)? {
        None => LIST_DEFAULT,
        Some(0) => LIST_MAX,
        Some(limit) => limit,
    };
    let skip = options.number("skip", 0, u32::MAX.into())?.unwrap_or(0);
    Ok((limit as usize, skip as usize))
}

fn find(node: &Node, place: &Place) -> Result<Arc<Action>, ApiError> {
    let name = place.entity()?;
    node.store.directory().action(place.tenant.name(), name.as_str()).ok_or_else(ApiError::missing)
}

pub(super) async fn list(
    State(node): State<Arc<Node>>,
    place: Place,
    options: Options,
) -> Result<Response, ApiError> {
    let (limit, skip) = window(&options)?;
    let mut actions = node.store.directory().actions(place.tenant.name());
    if options.flag("count")? {
        let count = actions.len().saturating_sub(skip);
        return Ok(answer(StatusCode::OK, &serde_json::json!({ "actions": count })));
    }
    // As OpenWhisk: what was changed last comes first.
    actions.sort_by_key(|action| std::cmp::Reverse(action.updated_ms));
    let shown = actions.iter().skip(skip).take(limit);
    let views: Vec<_> = shown.map(|action| ActionView::summary(place.tenant.name(), action)).collect();
    Ok(answer(StatusCode::OK, &views))
}

pub(super) async fn get(
    State(node): State<Arc<Node>>,
    place: Place,
    options: Options,
) -> Result<Response, ApiError> {
    let action = find(&node, &place)?;
    let without_code = options.text("code").is_some() && !options.flag("code")?;
    if without_code {
        return Ok(answer(StatusCode::OK, &ActionView::full(place.tenant.name(), &action, None)));
    }
    let digest = action.module.digest;
    let read = tokio::task::spawn_blocking(move || node.store.modules().read(&digest)).await;
    let module = read.map_err(|_| ApiError::internal())??;
    Ok(answer(StatusCode::OK, &ActionView::full(place.tenant.name(), &action, Some(&module))))
}

pub(super) async fn delete(State(node): State<Arc<Node>>, place: Place) -> Result<Response, ApiError> {
    let removed = node.store.remove_action(place.tenant.owner().clone(), place.entity()?).await?;
    Ok(answer(StatusCode::OK, &ActionView::full(place.tenant.name(), &removed, None)))
}

pub(super) async fn put(
    State(node): State<Arc<Node>>,
    place: Place,
    options: Options,
    body: Body,
) -> Result<Response, ApiError> {
    let name = place.entity()?;
    let overwrite = options.flag("overwrite")?;
    let content = extract::read(&place.tenant, body, u64::MAX).await?;
    // Decoding megabytes of base64 takes milliseconds that others wait for.
    let bytes = content.bytes.clone();
    let parsed = tokio::task::spawn_blocking(move || action_put(&bytes)).await;
    let put = parsed.map_err(|_| ApiError::internal())??;
    let action = deploy(&node, &place.tenant, name, put, overwrite).await?;
    drop(content);
    Ok(answer(StatusCode::OK, &ActionView::full(place.tenant.name(), &action, None)))
}

/// Compiles and stores an action.
pub(in crate::http) async fn deploy(
    node: &Arc<Node>,
    tenant: &Arc<Tenant>,
    name: EntityName,
    mut put: ActionPut,
    overwrite: bool,
) -> Result<Action, ApiError> {
    let before = node.store.directory().action(tenant.name(), name.as_str());
    // Told before the work of compiling; told for good when it is stored.
    if before.is_some() && !overwrite {
        return Err(ApiError::new(StatusCode::CONFLICT, "The resource already exists."));
    }
    if before.is_none() && put.code.is_none() {
        return Err(crate::store::StoreError::from(EditError::NoCode).into());
    }
    let before_limits = before.as_ref().map_or_else(ActionLimits::default, |before| before.limits);
    let limits = put.limits(before_limits, tenant.limits())?;
    let draft = match put.code.take() {
        None => None,
        Some(module) => Some(compile(node, tenant, module).await?),
    };
    let reference = draft.as_ref().map(|draft| ModuleRef { digest: draft.digest, bytes: draft.bytes });
    let key = name.clone();
    let edit = move |old: Option<Action>| {
        if old.is_some() && !overwrite {
            return Err(EditError::Exists);
        }
        let is_new = old.is_none();
        let module = reference.or(old.as_ref().map(|old| old.module)).ok_or(EditError::NoCode)?;
        let mut action = old.unwrap_or_else(|| Action {
            name: key,
            version: Version::FIRST,
            module,
            binary: true,
            parameters: Vec::new(),
            annotations: Vec::new(),
            limits,
            publish: false,
            updated_ms: 0,
        });
        action.module = module;
        action.updated_ms = now_ms();
        Ok(put.apply(action, limits, is_new))
    };
    Ok(node.store.edit_action(tenant.owner().clone(), name, draft, edit).await?)
}

/// Finds out whether a module can be run, and brings it to the disk.
pub(in crate::http) async fn compile(
    node: &Arc<Node>,
    tenant: &Arc<Tenant>,
    module: Vec<u8>,
) -> Result<crate::store::modules::Draft, ApiError> {
    let hashed =
        tokio::task::spawn_blocking(move || (Digest(sha2::Sha256::digest(&module).into()), module)).await;
    let (digest, module) = hashed.map_err(|_| ApiError::internal())?;
    let module = Arc::new(module);
    let bytes = module.clone();
    let program = node.compiler.code(tenant.name(), digest, async move || Ok(bytes.to_vec())).await?;
    let (need, have) = (program.header().min_memory_bytes, tenant.limits().memory_bytes);
    if !program.header().is_command || need >= have {
        let text = format!(
            "The module starts with {need} bytes of memory, the tenant's CVM has {have}; build it with less."
        );
        return Err(ApiError::bad(text));
    }
    let node = node.clone();
    let draft = tokio::task::spawn_blocking(move || node.store.modules().draft(digest, &module)).await;
    Ok(draft.map_err(|_| ApiError::internal())??)
}

pub(super) async fn invoke(
    State(node): State<Arc<Node>>,
    place: Place,
    options: Options,
    body: Body,
) -> Result<Response, ApiError> {
    call(&node, place, options, body).await
}

/// The pattern of [`invoke`]'s path.
pub(in crate::http) const PATTERN: &str = "/api/v1/namespaces/{namespace}/actions/{*name}";

/// [`invoke`] without the router: the namespace and the name, if this is such a request, and one of the usual kind.
pub(in crate::http) fn is_call<B>(request: &Request<B>) -> Option<(&str, &str)> {
    let path = request.uri().path().strip_prefix("/api/v1/namespaces/")?;
    let (namespace, name) = path.split_once("/actions/")?;
    let plain = |text: &str| !text.is_empty() && !text.contains(['/', '%']);
    (request.method() == Method::POST && plain(namespace) && plain(name)).then_some((namespace, name))
}

/// Answers a request that [`is_call`].
pub(in crate::http) async fn answer_call<B>(node: Arc<Node>, request: Request<B>) -> Response
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let place = is_call(&request).ok_or_else(ApiError::missing);
    let place = place.and_then(|(namespace, name)| Place::of(&node, request.headers(), namespace, name));
    let options = Options::parse(request.uri().query().unwrap_or_default());
    let answer = match place {
        Ok(place) => call(&node, place, options, request.into_body()).await,
        Err(error) => Err(error),
    };
    answer.into_response()
}

async fn call<B>(node: &Arc<Node>, place: Place, options: Options, body: B) -> Result<Response, ApiError>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let action = find(node, &place)?;
    let (blocking, result_only) = (options.flag("blocking")?, options.flag("result")?);
    let timeout = options.number("timeout", 1, MAX_BLOCKING.as_millis() as u64)?;
    let patience = blocking.then(|| timeout.map_or(MAX_BLOCKING, Duration::from_millis));
    let content = extract::read(&place.tenant, body, MAX_PARAMETERS_BYTES as u64).await?;
    let parameters = extract::object(&content.bytes)?;
    match node.invoker.invoke(&place.tenant, &action, parameters, patience).await? {
        Invoked::Accepted(id) => {
            let body = serde_json::json!({ "activationId": id });
            Ok(with_id(answer(StatusCode::ACCEPTED, &body), id))
        }
        Invoked::Done(activation) => {
            let status = http_status(&activation);
            let response = if result_only {
                json_text(status, Bytes::copy_from_slice(activation.result.get().as_bytes()))
            } else {
                answer(status, &ActivationView::full(place.tenant.name(), &activation))
            };
            Ok(with_id(response, activation.id))
        }
    }
}

fn http_status(activation: &Activation) -> StatusCode {
    match activation.status {
        Status::Success => StatusCode::OK,
        Status::ApplicationError | Status::DeveloperError => StatusCode::BAD_GATEWAY,
        Status::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn with_id(mut response: Response, id: ActivationId) -> Response {
    if let Ok(value) = HeaderValue::try_from(hex(&id.bytes())) {
        response.headers_mut().insert(ACTIVATION_ID, value);
    }
    response
}
