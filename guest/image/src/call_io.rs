//! What a call reads and writes: its whole input is there before it starts, its outputs are kept up to a limit.

use crate::arch::{clock, cpu};
use crate::calls::Bytes;
use crate::task;
use alloc::vec::Vec;
use nacre_wasi::{Clock, Interest, Stop, Stream, StreamError, System};

/// What [`CallSystem::stream_writable`] says: any length is taken at once.
const WRITABLE_BYTES: u64 = 64 << 10;

/// Output of a call, kept up to a limit; what is beyond it is dropped and the fact noted.
pub struct Capture {
    /// What is kept.
    pub bytes: Vec<u8>,
    limit: usize,
    /// Something was dropped.
    pub cut: bool,
}

impl Capture {
    /// Nothing yet.
    pub fn new(limit: u64) -> Capture {
        Capture { bytes: Vec::new(), limit: limit as usize, cut: false }
    }

    fn write(&mut self, bytes: &[u8]) {
        let room = self.limit - self.bytes.len();
        let (kept, dropped) = bytes.split_at(bytes.len().min(room));
        self.cut |= !dropped.is_empty();
        if self.bytes.capacity() - self.bytes.len() < kept.len() {
            let more = kept.len().max(self.bytes.len()).max(256).min(room);
            if self.bytes.try_reserve_exact(more).is_err() {
                // No memory for more: the same as a lower limit.
                self.limit = self.bytes.len();
                self.cut |= !kept.is_empty();
                return;
            }
        }
        self.bytes.extend_from_slice(kept);
    }
}

/// The kernel under a call's WASI context.
pub struct CallSystem {
    /// The request, of which standard input is the end.
    request: Bytes,
    /// Where in it the next byte to read is.
    next: usize,
    /// Standard output and standard error.
    pub outputs: [Capture; 2],
}

impl CallSystem {
    /// A call whose standard input is what `request` holds from `stdin_at` on.
    pub fn new(request: Bytes, stdin_at: usize, max_output_bytes: u64) -> CallSystem {
        let outputs = [0; 2].map(|_| Capture::new(max_output_bytes));
        CallSystem { request, next: stdin_at, outputs }
    }

    fn unread(&self) -> &[u8] {
        self.request.0.get(self.next..).unwrap_or_default()
    }
}

impl System for CallSystem {
    fn clock_ns(&self, clock: Clock) -> u64 {
        match clock {
            Clock::Realtime => clock::wall_ns(),
            Clock::Monotonic => clock::monotonic_ns(),
            Clock::ThreadCpu | Clock::ProcessCpu => clock::cycles_to_ns(task::current_cpu_cycles()),
        }
    }

    fn clock_resolution_ns(&self, _: Clock) -> u64 {
        1
    }

    fn random(&mut self, buffer: &mut [u8]) {
        cpu::fill_random(buffer);
    }

    fn stream_read(&mut self, stream: Stream, buffer: &mut [u8]) -> Result<usize, StreamError> {
        if stream != Stream::Stdin {
            return Err(StreamError::Closed);
        }
        let unread = self.unread();
        let len = unread.len().min(buffer.len());
        buffer[..len].copy_from_slice(&unread[..len]);
        self.next += len;
        Ok(len)
    }

    fn stream_write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, StreamError> {
        let index = match stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
            _ => return Err(StreamError::Closed),
        };
        self.outputs[index].write(bytes);
        Ok(bytes.len())
    }

    fn stream_readable(&self, stream: Stream) -> Option<u64> {
        Some(if stream == Stream::Stdin { self.unread().len() as u64 } else { 0 })
    }

    fn stream_writable(&self, stream: Stream) -> Option<u64> {
        Some(if matches!(stream, Stream::Stdout | Stream::Stderr) { WRITABLE_BYTES } else { 0 })
    }

    fn wait(&mut self, _: &[Interest], deadline_monotonic_ns: Option<u64>) -> Result<(), Stop> {
        may_go_on()?;
        match deadline_monotonic_ns {
            Some(deadline) => task::park_until(deadline),
            // Nothing that it could wait for will come: until it is told to end.
            None => task::park(),
        }
        may_go_on()
    }

    fn yield_now(&mut self) -> Result<(), Stop> {
        task::yield_now();
        may_go_on()
    }
}

fn may_go_on() -> Result<(), Stop> {
    task::check().map_err(|_| Stop::Killed)
}
