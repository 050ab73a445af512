//! How a command fails: one line `nacre: <what>: <why>; <remedy>`, or the same as JSON, and an exit code.

use std::{fmt, process::ExitCode};

use serde::Serialize;

/// Exit code of a command that failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of a command line that makes no sense; clap uses the same.
pub const EXIT_USAGE: u8 = 2;

/// A failed command, told to the user in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The thing that is wrong: a file, an option.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// What the user can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The process's exit code.
    pub exit_code: u8,
}

impl Failure {
    /// A failure of `what` with the message of `error`; what follows its last "; " is the remedy. All error types of
    /// Nacre are worded so.
    pub fn new(what: impl fmt::Display, error: impl fmt::Display) -> Self {
        let message = one_line(&error.to_string());
        let (why, remedy) = match message.rsplit_once("; ") {
            Some((why, remedy)) => (why.to_owned(), Some(remedy.to_owned())),
            None => (message, None),
        };
        Self { what: one_line(&what.to_string()), why, remedy, exit_code: EXIT_FAILED }
    }

    /// A command line whose parts are each valid but do not fit together.
    pub fn usage(what: impl fmt::Display, why: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { exit_code: EXIT_USAGE, ..Self::new(what, format_args!("{why}; {remedy}")) }
    }

    /// Prints the failure to stderr, as JSON when `json`, and gives the exit code.
    #[must_use]
    pub fn report(&self, json: bool) -> ExitCode {
        if json {
            // A struct of strings always serialises.
            let body = serde_json::json!({ "error": self });
            eprintln!("{body}");
        } else {
            eprintln!("nacre: {self}");
        }
        ExitCode::from(self.exit_code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// Names inside a message come from files of others: control characters must neither break the line nor reach the
/// terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_splits_into_why_and_remedy() {
        let failure = Failure::new("a.wasm", "is broken; build it again");
        assert_eq!(failure.to_string(), "a.wasm: is broken; build it again");
        assert_eq!((failure.why.as_str(), failure.remedy.as_deref()), ("is broken", Some("build it again")));
        assert_eq!(Failure::new("a", "b").remedy, None);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let failure = Failure::new("a\nb", "bad \u{1b}[31m name");
        assert_eq!(failure.to_string(), "a b: bad  [31m name");
    }
}
