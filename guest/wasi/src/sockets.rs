//! What the embedder provides for a program's sockets: one that listens, and the connections accepted from it.
//!
//! No method blocks: what cannot be done now is [`SocketError::WouldBlock`], and [`System::wait`](crate::System::wait) tells
//! when to try again. An embedder without sockets implements the trait with nothing in it.

/// An accepted connection, by the embedder's number. The program's descriptors are this crate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId(pub u32);

/// Why a socket operation did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketError {
    /// Not now.
    WouldBlock,
    /// The connection failed.
    Reset,
    /// This half is shut down, or the peer reads no more.
    Closed,
}

/// What a poll shows of a socket that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Bytes that can be moved now; connections for one that listens.
    pub bytes: u64,
    /// The peer has ended its half (to read), reads no more (to write), or the connection failed.
    pub hangup: bool,
}

/// The sockets of one program.
pub trait Sockets {
    /// Lets in what has come since the last call, before many sockets are looked at.
    fn socket_refresh(&mut self) {}

    /// The next connection that waits.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`] if none does.
    fn socket_accept(&mut self) -> Result<SocketId, SocketError> {
        Err(SocketError::WouldBlock)
    }

    /// The program has closed the socket that listens.
    fn socket_unlisten(&mut self) {}

    /// Connections that wait.
    fn socket_acceptable(&self) -> u64 {
        0
    }

    /// Reads what is there, at most `buf.len()` bytes; `Ok(0)` is the end.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`] when nothing is there yet, `Reset`.
    fn socket_recv(&mut self, _id: SocketId, _buf: &mut [u8]) -> Result<usize, SocketError> {
        Err(SocketError::Reset)
    }

    /// The same from `skip` bytes on, and what is read stays.
    ///
    /// # Errors
    /// As [`socket_recv`](Self::socket_recv).
    fn socket_peek(&mut self, _id: SocketId, _skip: u64, _buf: &mut [u8]) -> Result<usize, SocketError> {
        Err(SocketError::Reset)
    }

    /// Takes some bytes from the front of `buf` and says how many.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`] when it takes none now, `Closed` when it never will, `Reset`.
    fn socket_send(&mut self, _id: SocketId, _buf: &[u8]) -> Result<usize, SocketError> {
        Err(SocketError::Reset)
    }

    /// Ends halves of a connection.
    fn socket_shutdown(&mut self, _id: SocketId, _read: bool, _write: bool) {}

    /// The program has closed its descriptor: the number means nothing any more.
    fn socket_close(&mut self, _id: SocketId) {}

    /// Whether a read would not wait; `None` if it would.
    fn socket_readable(&self, _id: SocketId) -> Option<Readiness> {
        None
    }

    /// Whether a write would not wait; `None` if it would.
    fn socket_writable(&self, _id: SocketId) -> Option<Readiness> {
        None
    }
}
