//! What the embedder provides to a program's WASI context: clocks, randomness, byte streams and waiting.
//!
//! Only [`System::wait`] and [`System::yield_now`] may block (the guest parks the task's fiber there); every
//! other method answers at once.

use crate::sockets::{SocketId, Sockets};

/// The four clocks of preview 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Wall-clock time: nanoseconds since 1970-01-01T00:00:00Z.
    Realtime,
    /// A clock that never goes back; its zero has no meaning.
    Monotonic,
    /// CPU time used by the program.
    ProcessCpu,
    /// CPU time used by the calling thread.
    ThreadCpu,
}

/// A byte stream of the embedder. Code outside this crate should only match on the streams it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stream {
    /// Standard input.
    Stdin,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a stream operation moved no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// Nothing can be moved now; [`System::wait`] tells when to try again.
    WouldBlock,
    /// The other side is gone for good.
    Closed,
}

/// What a parked task is waiting for, besides its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// The stream has bytes to read, or is at its end.
    Readable(Stream),
    /// The stream takes bytes, or is closed.
    Writable(Stream),
    /// A connection can be accepted.
    Acceptable,
    /// The connection has bytes to read, is at its end or failed.
    SocketReadable(SocketId),
    /// The connection takes bytes, or never will.
    SocketWritable(SocketId),
}

/// The program ends here: no further Wasm instruction of it may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `proc_exit` (or a raised signal that ends a process: 128 + its Linux number).
    Exit(u32),
    /// It wrote to a closed standard output or error, the default of SIGPIPE.
    BrokenPipe,
    /// Killed by the embedder, or by itself with SIGKILL.
    Killed,
}

/// The kernel under a program's WASI context.
pub trait System: Sockets {
    /// The time of `clock`, in nanoseconds.
    fn clock_ns(&self, clock: Clock) -> u64;
    /// The resolution of `clock`, in nanoseconds, not 0.
    fn clock_resolution_ns(&self, clock: Clock) -> u64;
    /// Fills `buf` with random bytes fit for keys.
    fn random(&mut self, buf: &mut [u8]);
    /// Reads what is there now, at most `buf.len()` bytes; `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// [`StreamError::WouldBlock`] when nothing is there yet; `Closed` counts as the end.
    fn stream_read(&mut self, stream: Stream, buf: &mut [u8]) -> Result<usize, StreamError>;
    /// Takes some bytes from the front of `buf` and says how many.
    ///
    /// # Errors
    /// [`StreamError::WouldBlock`] when it takes none now, `Closed` when it never will.
    fn stream_write(&mut self, stream: Stream, buf: &[u8]) -> Result<usize, StreamError>;
    /// Bytes readable now: `None` not ready, `Some(0)` at the end or closed.
    fn stream_readable(&self, stream: Stream) -> Option<u64>;
    /// Bytes writable now: `None` not ready, `Some(0)` closed.
    fn stream_writable(&self, stream: Stream) -> Option<u64>;
    /// Parks the calling task until one of `interest` may be ready or the monotonic clock has reached the
    /// deadline. It may return early; the caller looks again. Without either it waits until it is stopped.
    ///
    /// # Errors
    /// The program was stopped while it waited.
    fn wait(&mut self, interest: &[Interest], deadline_monotonic_ns: Option<u64>) -> Result<(), Stop>;
    /// A safe point: lets other tasks run.
    ///
    /// # Errors
    /// The program was stopped.
    fn yield_now(&mut self) -> Result<(), Stop>;
}
