//! The kernel under a WASI context: a program's, which the host follows while it runs, or a call's, which has its input
//! before it starts and whose output is collected.

use crate::call_io::CallSystem;
use crate::program::GuestSystem;
use nacre_wasi::{
    Clock, Interest, Readiness, SocketError, SocketId, Sockets, Stop, Stream, StreamError, System,
};

/// Either of them.
pub enum TaskSystem {
    /// A program's.
    Program(GuestSystem),
    /// A call's.
    Call(CallSystem),
}

/// Calls the same method of whichever it is.
macro_rules! either {
    ($self:ident, $system:ident => $call:expr) => {
        match $self {
            TaskSystem::Program($system) => $call,
            TaskSystem::Call($system) => $call,
        }
    };
}

impl Sockets for CallSystem {}

impl Sockets for TaskSystem {
    fn socket_refresh(&mut self) {
        either!(self, system => system.socket_refresh())
    }

    fn socket_accept(&mut self) -> Result<SocketId, SocketError> {
        either!(self, system => system.socket_accept())
    }

    fn socket_unlisten(&mut self) {
        either!(self, system => system.socket_unlisten())
    }

    fn socket_acceptable(&self) -> u64 {
        either!(self, system => system.socket_acceptable())
    }

    fn socket_recv(&mut self, id: SocketId, buf: &mut [u8]) -> Result<usize, SocketError> {
        either!(self, system => system.socket_recv(id, buf))
    }

    fn socket_peek(&mut self, id: SocketId, skip: u64, buf: &mut [u8]) -> Result<usize, SocketError> {
        either!(self, system => system.socket_peek(id, skip, buf))
    }

    fn socket_send(&mut self, id: SocketId, buf: &[u8]) -> Result<usize, SocketError> {
        either!(self, system => system.socket_send(id, buf))
    }

    fn socket_shutdown(&mut self, id: SocketId, read: bool, write: bool) {
        either!(self, system => system.socket_shutdown(id, read, write))
    }

    fn socket_close(&mut self, id: SocketId) {
        either!(self, system => system.socket_close(id))
    }

    fn socket_readable(&self, id: SocketId) -> Option<Readiness> {
        either!(self, system => system.socket_readable(id))
    }

    fn socket_writable(&self, id: SocketId) -> Option<Readiness> {
        either!(self, system => system.socket_writable(id))
    }
}

impl System for TaskSystem {
    fn clock_ns(&self, clock: Clock) -> u64 {
        either!(self, system => system.clock_ns(clock))
    }

    fn clock_resolution_ns(&self, clock: Clock) -> u64 {
        either!(self, system => system.clock_resolution_ns(clock))
    }

    fn random(&mut self, buffer: &mut [u8]) {
        either!(self, system => system.random(buffer))
    }

    fn stream_read(&mut self, stream: Stream, buffer: &mut [u8]) -> Result<usize, StreamError> {
        either!(self, system => system.stream_read(stream, buffer))
    }

    fn stream_write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, StreamError> {
        either!(self, system => system.stream_write(stream, bytes))
    }

    fn stream_readable(&self, stream: Stream) -> Option<u64> {
        either!(self, system => system.stream_readable(stream))
    }

    fn stream_writable(&self, stream: Stream) -> Option<u64> {
        either!(self, system => system.stream_writable(stream))
    }

    fn wait(&mut self, interest: &[Interest], deadline_monotonic_ns: Option<u64>) -> Result<(), Stop> {
        either!(self, system => system.wait(interest, deadline_monotonic_ns))
    }

    fn yield_now(&mut self) -> Result<(), Stop> {
        either!(self, system => system.yield_now())
    }
}
