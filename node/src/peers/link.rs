//! A TLS connection with a trusted node: it ends where the trust ends, whatever is spoken on it.

use super::trust::{Cut, Lease};
use hyper_util::client::legacy::connect::{Connected, Connection};
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What listeners say of a connection first: taken, in this version of what is spoken.
pub(super) const LINK_VERSION: u8 = 1;
/// Or that this node has as many connections as it may.
pub(super) const LINK_FULL: u8 = 0xff;

/// The connection.
pub(super) struct Link<S> {
    stream: S,
    // One each, since who reads and who writes may be different tasks.
    reading: Cut,
    writing: Cut,
    _lease: Lease,
}

impl<S> Link<S> {
    pub(super) fn new(stream: S, lease: Lease) -> Self {
        Self { stream, reading: lease.cut(), writing: lease.cut(), _lease: lease }
    }

    /// What carries it.
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }
}

/// An error once `cut` is over.
fn whole(cut: &mut Cut, context: &mut Context<'_>) -> io::Result<()> {
    match cut.as_mut().poll(context) {
        Poll::Ready(()) => Err(io::Error::new(ErrorKind::ConnectionAborted, "trust in the node has ended")),
        Poll::Pending => Ok(()),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Link<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        whole(&mut this.reading, context)?;
        Pin::new(&mut this.stream).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Link<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        whole(&mut this.writing, context)?;
        Pin::new(&mut this.stream).poll_write(context, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        whole(&mut this.writing, context)?;
        Pin::new(&mut this.stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        whole(&mut this.writing, context)?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        whole(&mut this.writing, context)?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

impl<S> Connection for Link<S> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
