//! From what a program did to the outcome of its activation: result, status, logs. Pure. The texts are OpenWhisk's where it
//! has one for the case.

use crate::limits::{ActionLimits, MAX_RESULT_BYTES};
use crate::names::rfc3339;
use crate::records::Status;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
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
                Found::Object(range, has_error) => {
                    let text = std::str::from_utf8(&self.stdout[range.clone()]);
                    let has_error = has_error && text.is_ok();
                    let status = if has_error { Status::ApplicationError } else { Status::Success };
                    let text = text.unwrap_or("{}").to_owned();
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
                Found::Object(range, true) => {
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
        let (before, after) =
            taken.map_or((self.stdout.len(), self.stdout.len()), |range| (range.start, range.end));
        let trap = if let End::Trap(text) = &self.end { text.as_bytes() } else { &[] };
        let (before, after) = (&self.stdout[..before], &self.stdout[after..]);
        let parts = [("stdout", before), ("stdout", after), ("stderr", &self.stderr), ("stderr", trap)];
        if !(self.stdout_cut || self.stderr_cut)
            && parts.iter().all(|(_, part)| part.iter().all(|c| *c == b'\n'))
        {
            return Vec::new();
        }
        let time = rfc3339(end_ms);
        let mut logs = Lines { lines: Vec::new(), room: max_bytes, cut: false, time: &time };
        for (stream, part) in parts {
            logs.add(stream, part);
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

/// A JSON object, and whether it has a member `error` that says something, which is not null or is there twice: then it is an
/// application's error, as with OpenWhisk.
struct Object {
    has_error: bool,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let (mut times, mut says) = (0, false);
                while let Some(IsError(is_error)) = map.next_key()? {
                    if is_error {
                        times += 1;
                        says |= map.next_value::<Option<IgnoredAny>>()?.is_some();
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Object { has_error: says || times > 1 })
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Whether a member's name is `error`.
struct IsError(bool);

impl<'de> Deserialize<'de> for IsError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = IsError;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a name")
            }
            fn visit_str<E>(self, name: &str) -> Result<IsError, E> {
                Ok(IsError(name == "error"))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

enum Found {
    /// Where it is, and whether it tells an error.
    Object(Range<usize>, bool),
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
            if let Ok(object) = serde_json::from_slice::<Object>(&stdout[at..end]) {
                return if end - at > MAX_RESULT_BYTES {
                    Found::TooLong(end - at)
                } else {
                    Found::Object(at..end, object.has_error)
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
