//! [`Connections`]: a program's connections, plain or behind TLS. The program does not see which.

use super::tls::TlsTable;
use crate::arch::clock;
use alloc::boxed::Box;
use nacre_sockets::{Link, Message, Table};
use nacre_wasi::{Readiness, SocketError, SocketId};

/// The connections of one program.
pub enum Connections {
    /// The program sees what clients send.
    Plain(Table),
    /// Clients speak TLS, the program sees what is inside.
    Tls(Box<TlsTable>),
}

/// Calls the same method of whichever it is.
macro_rules! either {
    ($self:expr, $table:ident => $call:expr) => {
        match $self {
            Connections::Plain($table) => $call,
            Connections::Tls($table) => $call,
        }
    };
}

/// As in [`Table`].
impl Connections {
    pub fn promised(&self) -> u64 {
        either!(self, table => table.promised())
    }

    pub fn receive(&mut self, message: Message, link: &mut impl Link) {
        either!(self, table => table.receive(message, link))
    }

    pub fn break_all(&mut self, link: &mut impl Link) {
        either!(self, table => table.break_all(link))
    }

    pub fn accept(&mut self, link: &mut impl Link) -> Result<SocketId, SocketError> {
        either!(self, table => table.accept(link))
    }

    pub fn acceptable(&self) -> u64 {
        either!(self, table => table.acceptable())
    }

    pub fn unlisten(&mut self, link: &mut impl Link) {
        either!(self, table => table.unlisten(link))
    }

    pub fn recv(&mut self, id: SocketId, buf: &mut [u8], link: &mut impl Link) -> Result<usize, SocketError> {
        either!(self, table => table.recv(id, buf, link))
    }

    pub fn peek(&self, id: SocketId, skip: u64, buf: &mut [u8]) -> Result<usize, SocketError> {
        either!(self, table => table.peek(id, skip, buf))
    }

    pub fn send(&mut self, id: SocketId, buf: &[u8], link: &mut impl Link) -> Result<usize, SocketError> {
        either!(self, table => table.send(id, buf, link))
    }

    pub fn shutdown(&mut self, id: SocketId, read: bool, write: bool, link: &mut impl Link) {
        either!(self, table => table.shutdown(id, read, write, link))
    }

    pub fn close(&mut self, id: SocketId, link: &mut impl Link) {
        match self {
            Connections::Plain(table) => table.close(id, link),
            Connections::Tls(table) => table.close(id, clock::monotonic_ns(), link),
        }
    }

    pub fn close_all(&mut self, link: &mut impl Link) {
        either!(self, table => table.close_all(link))
    }

    pub fn readable(&self, id: SocketId) -> Option<Readiness> {
        either!(self, table => table.readable(id))
    }

    pub fn writable(&self, id: SocketId) -> Option<Readiness> {
        either!(self, table => table.writable(id))
    }
}
