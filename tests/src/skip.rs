//! Skipping: a test that needs something from outside says `SKIPPED name: why` when it can't be had. In CI (`CI=true`)
//! that is a failure instead, so that nothing is left out there without anybody noticing.

use std::fmt;
use std::io::Write;

/// Something from outside this repository can't be had now: a registry that doesn't answer, a missing device or package.
/// It travels inside an [`anyhow::Error`]; every other error is a failure.
#[derive(Debug)]
pub struct Unavailable(
    /// What is missing and why, one sentence.
    pub String,
);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Hands on what a test needs, or `None` after saying why the test `name` is skipped.
///
/// # Panics
/// If the error is not [`Unavailable`], and in CI for that one too.
pub fn need<T>(name: &str, got: anyhow::Result<T>) -> Option<T> {
    let error = match got {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    if error.downcast_ref::<Unavailable>().is_none() {
        panic!("{name}: {error:#}");
    }
    skipped(name, &format!("{error:#}"));
    None
}

/// Says that `name` is skipped, past the test runner's capturing of output.
///
/// # Panics
/// In CI.
pub fn skipped(name: &str, why: &str) {
    let line = format!("SKIPPED {name}: {}\n", why.replace('\n', " "));
    // A line that can't be written changes nothing about the test.
    let _ = std::io::stderr().write_all(line.as_bytes());
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} may not be skipped in CI: {why}");
}
