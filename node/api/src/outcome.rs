//! From what a program did to the outcome of its activation: result, status, logs. Pure. The texts are OpenWhisk's where it
//! has one for the case.

use crate::limits::{ActionLimits, MAX_RESULT_BYTES};
use crate::names::rfc3339;
use crate::records::Status;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::ops::Range;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exit(u32),
    /// By a trap: what, and a backtrace.
    Trap(String),
    /// It could not be started.
    Error(String),
    /// It needed more memory than it may have.
    OutOfMemory(String),
    /// It ran into its time limit.
    TimeLimit,
    /// The CVM or the node failed.
    Lost(String),
}

/// Everything a program left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// How it ended.
    pub end: End,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// There was more of the former.
    pub stdout_cut: bool,
    /// There was more of the latter.
    pub stderr_cut: bool,
}

/// The outcome of an activation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// A JSON object.
    pub result: Box<RawValue>,
    /// Lines of `time stream: text`.
    pub logs: Vec<String>,
    /// It ran into its time limit.
    pub timeout: bool,
}

impl Left {
    /// Makes the outcome; `end_ms` dates the logs.
    #[must_use]
    pub fn outcome(self, limits: &ActionLimits, end_ms: u64) -> Outcome {
        let found = find_result(&self.stdout);
        let (status, result, taken) = match &self.end {
            End::Exit(0) => match found {
                Found::Object(range) => {
                    let text = std::str::from_utf8(&self.stdout[range.clone()]).unwrap_or("{}").to_owned();
                    let status = if has_error(&text) { Status::ApplicationError } else { Status::Success };
                    (status, RawValue::from_string(text).unwrap_or_else(|_| error_object("")), Some(range))
                }
                Found::TooLong(bytes) => (Status::DeveloperError, too_long(bytes), None),
                Found::None if self.stdout_cut => (Status::DeveloperError, too_long(self.stdout.len()), None),
                Found::None => (
                    Status::DeveloperError,
                    error_object(
                        "The action did not produce a valid JSON response: its last output has to be a JSON object.",
                    ),
                    None,
                ),
            },
            End::Exit(code) => match found {
                // A program that says what went wrong in its own words is heard.
                Found::Object(range) if has_error(&String::from_utf8_lossy(&self.stdout[range.clone()])) => {
                    let text = String::from_utf8_lossy(&self.stdout[range.clone()]).into_owned();
                    let object = RawValue::from_string(text).unwrap_or_else(|_| error_object(""));
                    (Status::ApplicationError, object, Some(range))
                }
                _ => {
                    let text = format!("The action exited with code {code}; its logs may say why.");
                    (Status::ApplicationError, error_object(&text), None)
                }
            },
            End::Trap(text) => {
                let text = format!(
                    "The action did not produce a valid response and exited unexpectedly: {}",
                    text.lines().next().unwrap_or_default()
                );
                (Status::DeveloperError, error_object(&text), None)
            }
            End::Error(text) => (
                Status::DeveloperError,
                error_object(&format!("The action could not be started: {text}")),
                None,
            ),
            End::OutOfMemory(_) => (
                Status::DeveloperError,
                error_object("The action exhausted its memory and was aborted."),
                None,
            ),
            End::TimeLimit => {
                let text = format!("The action exceeded its time limits of {} milliseconds.", limits.timeout);
                (Status::DeveloperError, error_object(&text), None)
            }
            End::Lost(text) => (Status::InternalError, error_object(text), None),
        };
        let timeout = self.end == End::TimeLimit;
        Outcome { status, result, logs: self.logs(taken, limits, end_ms), timeout }
    }

    fn logs(&self, taken: Option<Range<usize>>, limits: &ActionLimits, end_ms: u64) -> Vec<String> {
        let max_bytes = (limits.logs as usize) << 20;
        let time = rfc3339(end_ms);
        let mut logs = Lines { lines: Vec::new(), room: max_bytes, cut: false, time: &time };
        let (before, after) =
            taken.map_or((self.stdout.len(), self.stdout.len()), |range| (range.start, range.end));
        logs.add("stdout", &self.stdout[..before]);
        logs.add("stdout", &self.stdout[after..]);
        logs.add("stderr", &self.stderr);
        if let End::Trap(text) = &self.end {
            logs.add("stderr", text.as_bytes());
        }
        if logs.cut || self.stdout_cut || self.stderr_cut {
            let text = format!(
                "{time} stderr: Logs were truncated because the total bytes size exceeds the limit of {max_bytes} bytes."
            );
            logs.lines.push(text);
        }
        logs.lines
    }
}

struct Lines<'t> {
    lines: Vec<String>,
    room: usize,
    cut: bool,
    time: &'t str,
}

impl Lines<'_> {
    fn add(&mut self, stream: &str, bytes: &[u8]) {
        for line in bytes.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            // Each line has a cost of its own, so that a million short ones are not a hundred MiB.
            let cost = line.len() + self.time.len() + 10;
            if cost > self.room {
                self.cut = true;
                return;
            }
            self.room -= cost;
            self.lines.push(format!("{} {stream}: {}", self.time, String::from_utf8_lossy(line)));
        }
    }
}

/// An object with one error.
#[must_use]
pub fn error_object(text: &str) -> Box<RawValue> {
    let text = serde_json::json!({ "error": text }).to_string();
    // An object of a string always is JSON.
    RawValue::from_string(text).unwrap_or_default()
}

fn too_long(bytes: usize) -> Box<RawValue> {
    let text = format!(
        "The action produced a response that exceeded the allowed length: {bytes} > {MAX_RESULT_BYTES} bytes."
    );
    error_object(&text)
}

/// Whether an object has a member `error` that says something: then it is an application's error, as with OpenWhisk.
fn has_error(object: &str) -> bool {
    #[derive(Deserialize)]
    struct Probe<'t> {
        #[serde(borrow, default)]
        error: Option<&'t RawValue>,
    }
    match serde_json::from_str::<Probe<'_>>(object) {
        Ok(probe) => probe.error.is_some(),
        // Such as `error` given twice.
        Err(_) => serde_json::from_str::<HashMap<String, IgnoredAny>>(object)
            .is_ok_and(|map| map.contains_key("error")),
    }
}

enum Found {
    Object(Range<usize>),
    TooLong(usize),
    None,
}

/// Lines that are tried as the beginning of the result, and bytes that are read for it: hostile output costs no more.
const MAX_TRIES: usize = 256;
const MAX_READ_BYTES: usize = 16 << 20;

/// The last JSON object of a program's output: one that begins at the beginning of a line and ends at the end of the last line
/// that is not empty.
fn find_result(stdout: &[u8]) -> Found {
    let end = stdout.len() - stdout.iter().rev().take_while(|byte| byte.is_ascii_whitespace()).count();
    if end == 0 || stdout[end - 1] != b'}' {
        return Found::None;
    }
    let mut line_end = end;
    let (mut tries, mut read) = (0, 0);
    loop {
        let start = stdout[..line_end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let indent = stdout[start..end].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let at = start + indent;
        if stdout.get(at) == Some(&b'{') {
            tries += 1;
            read += end - at;
            if serde_json::from_slice::<HashMap<String, IgnoredAny>>(&stdout[at..end]).is_ok() {
                return if end - at > MAX_RESULT_BYTES {
                    Found::TooLong(end - at)
                } else {
                    Found::Object(at..end)
                };
            }
            if tries >= MAX_TRIES || read >= MAX_READ_BYTES {
                return Found::None;
            }
        }
        if start == 0 {
            return Found::None;
        }
        line_end = start - 1;
    }
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
