//! [`Watch`]: how long a client keeps a connection open without a whole head of a request. One timer for each connection, which
//! looks when it fires whether it had to: to set one for each request costs more than to read the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// What one connection does.
#[derive(Debug)]
pub(crate) struct Watch {
    begin: Instant,
    /// Requests that are being answered, and answers that the client does not take.
    busy: AtomicUsize,
    /// When the last of them ended, in milliseconds since the beginning.
    since_ms: AtomicU64,
}

/// The connection is busy while this lives.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Watch>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.since_ms.store(self.0.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch {
    /// Of a new connection.
    pub(crate) fn new() -> Arc<Self> {
        let (busy, since_ms) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { begin: Instant::now(), busy, since_ms })
    }

    /// The connection begins to be busy.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Comes back when the connection was not busy for so long.
    pub(crate) async fn idle(&self, patience: Duration) {
        loop {
            let since = self.begin + Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
            let busy = self.busy.load(Ordering::Relaxed) != 0;
            let now = Instant::now();
            if !busy && since + patience <= now {
                return;
            }
            sleep_until(if busy { now } else { since } + patience).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_does_nothing_is_idle() {
        const PATIENCE: Duration = Duration::from_millis(20);
        let watch = Watch::new();
        watch.idle(PATIENCE).await;
        let busy = watch.busy();
        assert!(tokio::time::timeout(4 * PATIENCE, watch.idle(PATIENCE)).await.is_err());
        let end = Instant::now();
        drop(busy);
        watch.idle(PATIENCE).await;
        // A millisecond is as exact as it counts.
        assert!(end.elapsed() + Duration::from_millis(1) >= PATIENCE);
    }
}
