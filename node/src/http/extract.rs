//! From requests to typed values: who asks, for what, with which options and body. Everything here comes from strangers.

use super::error::ApiError;
use crate::daemon::Node;
use crate::names::EntityName;
use crate::tenants::{Credentials, Share, Tenant};
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::{HeaderMap, StatusCode, header, request::Parts};
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use nacre_node_api::body;
use serde::Deserialize;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A client has to send something of a body within this time.
const BODY_PATIENCE: Duration = Duration::from_secs(15);
/// And all of it within this time.
const BODY_LIMIT: Duration = Duration::from_secs(300);
/// Room that is made at once for a body whose length was announced, in bytes.
const BODY_START: u64 = 1 << 20;

/// Who asks: a tenant that showed its key.
#[derive(Debug)]
pub struct Caller(pub Arc<Tenant>);

impl FromRequestParts<Arc<Node>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, ApiError> {
        Self::of(node, &parts.headers)
    }
}

impl Caller {
    fn of(node: &Node, headers: &HeaderMap) -> Result<Self, ApiError> {
        let refuse = |text: &str| ApiError::new(StatusCode::UNAUTHORIZED, text);
        let header = headers.get(header::AUTHORIZATION).ok_or_else(|| {
            refuse("The request has no credentials; send uuid:key by HTTP basic authentication.")
        })?;
        let credentials = Credentials::from_header(header.as_bytes());
        let tenant = credentials.and_then(|credentials| node.tenants.authenticate(&credentials));
        let tenant = tenant.ok_or_else(|| refuse("The supplied authentication is invalid."))?;
        Ok(Self(tenant))
    }
}

/// Who asks, and the rest of the path: in OpenWhisk's API the tenant's own namespace, then maybe a name.
#[derive(Debug)]
pub struct Place {
    /// Who asks.
    pub tenant: Arc<Tenant>,
    name: Option<String>,
}

impl FromRequestParts<Arc<Node>> for Place {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, ApiError> {
        let Caller(tenant) = Caller::from_request_parts(parts, node).await?;
        let params = RawPathParams::from_request_parts(parts, node).await;
        let params = params.map_err(|_| ApiError::bad("The path is not UTF-8."))?;
        let mut name = None;
        for (key, value) in &params {
            match key {
                "namespace" => is_own(&tenant, value)?,
                _ => name = Some(value.to_owned()),
            }
        }
        Ok(Self { tenant, name })
    }
}

/// Whether a tenant may enter a namespace.
fn is_own(tenant: &Tenant, namespace: &str) -> Result<(), ApiError> {
    if namespace == "_" || namespace == tenant.name().as_str() {
        return Ok(());
    }
    let text = "The supplied authentication is not authorized to access this resource.";
    Err(ApiError::new(StatusCode::FORBIDDEN, text))
}

impl Place {
    /// The place of a name in a namespace, for whoever these headers say that asks.
    ///
    /// # Errors
    /// 401 or 403 if that is nobody, or somebody else.
    pub fn of(node: &Node, headers: &HeaderMap, namespace: &str, name: &str) -> Result<Self, ApiError> {
        let Caller(tenant) = Caller::of(node, headers)?;
        is_own(&tenant, namespace)?;
        Ok(Self { tenant, name: Some(name.to_owned()) })
    }

    /// The last part of the path, as it is.
    #[must_use]
    pub fn text(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// The name at the end of the path.
    ///
    /// # Errors
    /// 400 if it can be none.
    pub fn entity(&self) -> Result<EntityName, ApiError> {
        if self.text().contains('/') {
            return Err(ApiError::bad("Packages are not supported; use an action's name without a '/'."));
        }
        Ok(EntityName::new(self.text())?)
    }
}

/// The options behind a path's `?`.
#[derive(Debug, Default)]
pub struct Options(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Options {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Options {
    /// The options of a query.
    #[must_use]
    pub fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Options from pairs, for tests.
    #[must_use]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    /// A text: the last one of that name.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A flag; false if it is not there.
    ///
    /// # Errors
    /// 400 if it is neither true nor false.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.text(name) {
            None | Some("false" | "undefined") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(_) => Err(ApiError::bad(format!("The query parameter '{name}' is true or false."))),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// 400 if it is none, or out of range.
    pub fn number(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        let error =
            || ApiError::bad(format!("The query parameter '{name}' is a number from {min} to {max}."));
        number.map(Some).ok_or_else(error)
    }
}

/// A request's body, and the tenant's share of memory that it takes.
#[derive(Debug)]
pub struct Content {
    /// The bytes.
    pub bytes: Bytes,
    _share: Share,
}

impl Content {
    /// The bytes, which count as nobody's from now on.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// Reads a body of at most `most` bytes.
///
/// # Errors
/// 413 if it is longer, 408 if the client is too slow, 429 if the tenant's requests have too much memory already, 400 if the
/// client breaks off.
pub async fn read<B>(tenant: &Arc<Tenant>, mut body: B, most: u64) -> Result<Content, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let limits = tenant.limits();
    let most = most.min(limits.request_bytes);
    let announced = body.size_hint().exact();
    if announced.is_some_and(|length| length > most) {
        return Err(ApiError::too_large(announced, most));
    }
    let mut share = tenant.body_share();
    let mut end = None;
    let mut bytes = Pieces::default();
    loop {
        // Most bodies are there with their head, and need neither a clock nor a timer.
        let there = poll_fn(|context| Poll::Ready(Pin::new(&mut body).poll_frame(context))).await;
        let frame = match there {
            Poll::Ready(frame) => frame,
            Poll::Pending => in_time(body.frame(), &mut end).await?,
        };
        let Some(frame) = frame else { break };
        let broken = |_| ApiError::bad("The request's body broke off, or is badly chunked.");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if bytes.len() as u64 + data.len() as u64 > most {
            return Err(ApiError::too_large(announced, most));
        }
        if !share.grow(data.len() as u64, limits.requests_bytes) {
            let text = format!(
                "The bodies of this tenant's requests exceed {} bytes; send fewer at once.",
                limits.requests_bytes
            );
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        bytes.add(data, announced);
        if announced == Some(bytes.len() as u64) {
            break;
        }
    }
    let bytes = bytes.whole();
    Ok(Content { bytes, _share: share })
}

/// Reads a small body of at most `most` bytes that belongs to no tenant: of the administrator, or of another node.
///
/// # Errors
/// 413 if it is longer, 408 if it comes too slowly, 400 if it breaks off.
pub async fn small<B>(body: B, most: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, most).collect()).await;
    let slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "The request's body came too slowly.");
    let broken = |error: Box<dyn std::error::Error + Send + Sync>| {
        if error.is::<LengthLimitError>() {
            return ApiError::too_large(None, most as u64);
        }
        ApiError::bad("The request's body broke off, or is badly chunked.")
    };
    Ok(body.map_err(slow)?.map_err(broken)?.to_bytes())
}

/// The next piece of a body, all of which has to be there at `end`: some time from the first wait on.
async fn in_time<T>(piece: impl Future<Output = T>, end: &mut Option<Instant>) -> Result<T, ApiError> {
    let now = Instant::now();
    let end = *end.get_or_insert(now + BODY_LIMIT);
    let patience = end.min(now + BODY_PATIENCE);
    timeout_at(patience, piece).await.map_err(|_| {
        let how = if patience == end { "took too long" } else { "came too slowly" };
        ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("The request's body {how}."))
    })
}

/// What has come of a body: one that comes whole is not copied.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    all: BytesMut,
}

impl Pieces {
    fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    fn add(&mut self, data: Bytes, announced: Option<u64>) {
        if self.len() == 0 {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            self.all.reserve(announced.unwrap_or(0).min(BODY_START) as usize);
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&data);
    }

    fn whole(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.freeze() }
    }
}

/// Parses a JSON body into its type.
///
/// # Errors
/// 400 with the place and the reason.
pub fn json<'t, T: Deserialize<'t>>(bytes: &'t [u8]) -> Result<T, ApiError> {
    Ok(body::json(bytes)?)
}

/// Checks that a body is a JSON object; an empty one counts as `{}`.
///
/// # Errors
/// 400.
pub fn object(bytes: &[u8]) -> Result<&[u8], ApiError> {
    Ok(body::object(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_typed() {
        let options = Options::of(&[("a", "true"), ("b", "7"), ("c", "x"), ("d", "")]);
        assert!(options.flag("a").unwrap() && options.flag("d").unwrap() && !options.flag("zz").unwrap());
        assert!(options.flag("c").is_err() && options.flag("b").is_err());
        assert_eq!(options.number("b", 0, 7).unwrap(), Some(7));
        assert!(options.number("b", 0, 6).is_err() && options.number("c", 0, 6).is_err());
        assert_eq!(options.number("zz", 0, 6).unwrap(), None);
    }
}
