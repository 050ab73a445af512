//! A stream whose other end has to take what is written: one that takes nothing for a while is given up, so that clients
//! which do not read their answers hold neither memory nor places for ever.

use super::watch::{Busy, Watch};
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The stream.
pub(super) struct Impatient<S> {
    stream: S,
    patience: Duration,
    watch: Arc<Watch>,
    /// Runs while a write waits.
    waiting: Option<(Pin<Box<Sleep>>, Busy)>,
}

impl<S> Impatient<S> {
    /// Gives up when nothing is taken for `patience`; `watch` is told while a write waits.
    pub(super) fn new(stream: S, patience: Duration, watch: Arc<Watch>) -> Self {
        Self { stream, patience, watch, waiting: None }
    }

    /// Turns waiting for too long into an error.
    fn judge<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let (waiting, _) = self.waiting.get_or_insert_with(|| (Box::pin(sleep(patience)), self.watch.busy()));
        waiting.as_mut().poll(context).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, buf);
        this.judge(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, bufs);
        this.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        this.judge(context, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.stream).poll_shutdown(context);
        this.judge(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn only_who_takes_nothing_is_given_up() {
        let (client, server) = tokio::io::duplex(1024);
        let mut server = Impatient::new(server, Duration::from_millis(20), Watch::new());
        let reader = tokio::spawn(async move {
            let mut client = client;
            let mut taken = [0; 4096];
            client.read_exact(&mut taken).await.unwrap();
            client
        });
        server.write_all(&[1; 4096]).await.unwrap();
        let _client = reader.await.unwrap();
        // Nobody reads any more, but the other end is open.
        let error = server.write_all(&[2; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
