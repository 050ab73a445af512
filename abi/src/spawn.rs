//! The host calls of module `nacre`: how a program runs functions of its own as tasks. `docs/spawn.md` explains them;
//! here are their names, types and numbers, for the guest that provides them and the CLI that checks imports.
//!
//! As in WASI preview 1 pointers and lengths are `i32`, and each function but `parallelism` returns an error number
//! of preview 1. Records are little-endian.

/// The module name programs import them from.
pub const MODULE: &str = "nacre";

/// Calls a macro with every function: `name(parameter: type, ...) -> result;`, where `u32` is the core type i32 and
/// `u64` is i64.
#[macro_export]
macro_rules! for_each_nacre {
    ($m:ident) => {
        $m! {
            parallelism() -> count;
            spawn(name: u32, name_len: u32, message: u32, message_len: u32, options: u32, handle: u32) -> errno;
            join(handle: u32, timeout_ns: u64, report: u32) -> errno;
            result_read(handle: u32, offset: u32, buffer: u32, len: u32, nread: u32) -> errno;
            cancel(handle: u32) -> errno;
            drop(handle: u32) -> errno;
            message_read(offset: u32, buffer: u32, len: u32, nread: u32) -> errno;
            result_write(bytes: u32, len: u32) -> errno;
        }
    };
}

macro_rules! names {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $result:ident;)*) => {
        [$((stringify!($name), &[$(stringify!($ty)),*] as &[&str], stringify!($result))),*]
    };
}

/// Every function: its name, the types of its parameters, its result.
pub const FUNCTIONS: [(&str, &[&str], &str); 8] = for_each_nacre!(names);

/// Longest message or result in bytes.
pub const MAX_MESSAGE_BYTES: u32 = 16 << 20;
/// Longest name of an exported function in bytes.
pub const MAX_NAME_BYTES: u32 = 256;
/// Tasks that one program can have, from their spawn to the drop of their handle.
pub const MAX_TASKS: usize = 4096;
/// `timeout_ns` of `join` that waits for as long as it takes.
pub const FOREVER: u64 = u64::MAX;

/// How a task ended: `status` of a [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Its function returned; `code` is what it returned.
    Returned = 0,
    /// It called `proc_exit`; `code` is the exit code.
    Exited = 1,
    /// It trapped; the program's standard error has the message.
    Trapped = 2,
    /// It was cancelled.
    Cancelled = 3,
    /// It reached its time limit.
    TimeLimit = 4,
    /// There was no memory for it.
    OutOfMemory = 5,
    /// It could not be started, or it wrote to a stream that nobody reads.
    Failed = 6,
}

/// `options` of `spawn`: priority u32 at 0 (0: that of the caller, 1: high, 2: normal, 3: low), zero u32 at 4,
/// wall-clock limit u64 at 8 and CPU limit u64 at 16 in nanoseconds (0: none).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// One more than the number of the class; 0 for the caller's.
    pub priority: u32,
    /// How long it may take from its spawn; 0 for no limit.
    pub wall_limit_ns: u64,
    /// How much CPU time it may have; 0 for no limit.
    pub cpu_limit_ns: u64,
}

impl Options {
    /// Bytes of the record.
    pub const BYTES: usize = 24;

    /// Reads the record; `None` for a priority that does not exist, or a reserved field that is not zero.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Options> {
        let [first, wall, cpu] = bytes.as_chunks::<8>().0 else { return None };
        let (priority, reserved) = first.split_at(4);
        let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
        let (priority, reserved) = (word(priority), word(reserved));
        (priority <= 3 && reserved == 0).then_some(Options {
            priority,
            wall_limit_ns: u64::from_le_bytes(*wall),
            cpu_limit_ns: u64::from_le_bytes(*cpu),
        })
    }
}

/// `report` of `join`: status u32 at 0, code u32 at 4, length of the result u64 at 8, CPU time in nanoseconds u64 at 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub status: Status,
    /// What that status says about it, else 0.
    pub code: u32,
    /// Bytes that `result_read` can read.
    pub result_len: u64,
    /// CPU time it had.
    pub cpu_ns: u64,
}

impl Report {
    /// Bytes of the record.
    pub const BYTES: usize = 24;

    /// The record.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&(self.status as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.code.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.result_len.to_le_bytes());
        bytes[16..].copy_from_slice(&self.cpu_ns.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let mut bytes = [0; Options::BYTES];
        assert_eq!(Options::decode(&bytes), Some(Options::default()));
        bytes[0] = 3;
        bytes[8] = 7;
        bytes[16] = 9;
        let options = Options { priority: 3, wall_limit_ns: 7, cpu_limit_ns: 9 };
        assert_eq!(Options::decode(&bytes), Some(options));
        bytes[0] = 4;
        assert_eq!(Options::decode(&bytes), None);
        bytes[0] = 0;
        bytes[5] = 1;
        assert_eq!(Options::decode(&bytes), None);
    }

    #[test]
    fn reports_have_their_layout() {
        let report = Report { status: Status::TimeLimit, code: 0x0102, result_len: 3, cpu_ns: 1 << 40 };
        let bytes = report.encode();
        assert_eq!((&bytes[..8], bytes[8], bytes[21]), (&[4, 0, 0, 0, 2, 1, 0, 0][..], 3, 1));
    }
}
