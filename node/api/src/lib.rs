//! What crosses the node's HTTP interfaces and what it stores, as types that can't be wrong: everything here is pure, and
//! everything that strangers write is read here.
//!
//! * [`names`], [`limits`]: parts. [`records`]: what the store keeps. [`wire`]: OpenWhisk's JSON, [`body`]: JSON at all.
//! * [`migration`]: what a node keeps of migrations, and what two nodes say to each other about one.
//! * [`outcome`]: from what a program wrote to the result of its activation.
#![forbid(unsafe_code)]

pub mod body;
pub mod limits;
pub mod migration;
pub mod names;
pub mod outcome;
pub mod records;
pub mod wire;

/// A request that makes no sense: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub String);

impl BadRequest {
    /// An error.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<limits::LimitError> for BadRequest {
    fn from(error: limits::LimitError) -> Self {
        Self(sentence(error))
    }
}

/// A sentence begins with a capital letter and ends with a full stop.
pub fn sentence(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    let first = chars.next().map(char::to_uppercase);
    let end = if text.ends_with('.') { "" } else { "." };
    first.into_iter().flatten().chain(chars).chain(end.chars()).collect()
}
