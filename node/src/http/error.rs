//! Errors of both APIs: a status code and OpenWhisk's body, `{"error": text, "code": request id}`.

use crate::compile::CompileError;
use crate::invoke::Refused;
use crate::limits::LimitError;
use crate::names::NameError;
use crate::store::{EditError, StoreError};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nacre_node_api::{BadRequest, sentence};

/// An error for a client. The body is made where the request's id is known: see [`super::layer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The status code.
    pub status: StatusCode,
    /// One sentence that helps.
    pub message: String,
}

/// The text of an error on its way to the body.
#[derive(Clone, Debug)]
pub(super) struct ErrorText(pub(super) String);

impl ApiError {
    /// An error.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The request makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// OpenWhisk's words for what is not there.
    #[must_use]
    pub fn missing() -> Self {
        Self::new(StatusCode::NOT_FOUND, "The requested resource does not exist.")
    }

    /// The tenant has moved between the request and what was to be done. Whoever can forwards the request then.
    #[must_use]
    pub fn moved() -> Self {
        let text = "The tenant has moved to another node meanwhile; send the request again.";
        Self::new(StatusCode::MISDIRECTED_REQUEST, text)
    }

    /// A body beyond its limit.
    #[must_use]
    pub fn too_large(have: Option<u64>, most: u64) -> Self {
        let have = have.map_or_else(|| format!("more than {most}"), |have| have.to_string());
        let text = format!("The request's body has {have} bytes, {most} are allowed; send less.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    }

    /// A defect or a full disk; the details are in the log.
    #[must_use]
    pub fn internal() -> Self {
        let text = "The node failed; its log says why, under the code given here.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"nacre\""));
        }
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(ErrorText(self.message));
        response
    }
}

impl From<BadRequest> for ApiError {
    fn from(BadRequest(text): BadRequest) -> Self {
        Self::bad(text)
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::bad(sentence(error))
    }
}

impl From<LimitError> for ApiError {
    fn from(error: LimitError) -> Self {
        Self::bad(sentence(error))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let status = match &error {
            StoreError::Edit(EditError::Missing) => return Self::missing(),
            StoreError::Edit(
                EditError::Exists
                | EditError::Moving
                | EditError::Coming
                | EditError::OtherKind(_)
                | EditError::PortTaken
                | EditError::OtherOwner
                | EditError::OlderManifest(_)
                | EditError::SameManifestVersion(_)
                | EditError::Step(_),
            ) => StatusCode::CONFLICT,
            StoreError::Edit(EditError::TooMany(_)) => StatusCode::FORBIDDEN,
            StoreError::Edit(EditError::TooMuch) => StatusCode::PAYLOAD_TOO_LARGE,
            StoreError::Edit(EditError::NoCode) => StatusCode::BAD_REQUEST,
            StoreError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            other => {
                tracing::error!(error = %other, "the store failed");
                return Self::internal();
            }
        };
        Self::new(status, sentence(error))
    }
}

impl From<CompileError> for ApiError {
    fn from(error: CompileError) -> Self {
        let status = match &error {
            CompileError::Module(_) | CompileError::TooMuch { .. } => StatusCode::BAD_REQUEST,
            CompileError::Busy => StatusCode::TOO_MANY_REQUESTS,
            CompileError::System(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, sentence(error))
    }
}

impl From<Refused> for ApiError {
    fn from(error: Refused) -> Self {
        let status = match error {
            Refused::Concurrency { .. } => {
                crate::metrics::refused();
                StatusCode::TOO_MANY_REQUESTS
            }
            Refused::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Refused::Moved => return Self::moved(),
            Refused::Store(error) => return error.into(),
        };
        Self::new(status, error.to_string())
    }
}
