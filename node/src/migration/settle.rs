//! What becomes of migrations when the node is told to stop: a tenant that is between two nodes must not be lost by that.

use super::destination::Order;
use super::{Job, Migrations};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Migrations {
    /// Whether the node is about to stop: nothing begins any more.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Before the node stops: no migration begins any more; those whose tenant still runs where it was are ended, and the others are waited for, so long.
    /// False if that was not enough.
    pub async fn settle(&self, limit: Duration) -> bool {
        // With the lock that whoever begins one holds.
        let jobs: Vec<Arc<Job>> = {
            let jobs = self.jobs();
            self.stopping.store(true, Ordering::SeqCst);
            jobs.values().filter(|job| !job.is_over()).cloned().collect()
        };
        // Where it is too late nothing comes of it.
        jobs.iter().for_each(|job| job.cancel());
        let arrivals: Vec<_> = self.arrivals().values().cloned().collect();
        tokio::time::timeout(limit, async {
            for arrival in arrivals {
                // One that is over hears nothing any more.
                let _ = arrival.send(Order::Leave).await;
            }
            for job in jobs {
                let _ = job.watch().wait_for(|view| view.step.is_over()).await;
            }
            loop {
                let over = self.arrival_over.notified();
                if self.arrivals().is_empty() {
                    return;
                }
                over.await;
            }
        })
        .await
        .is_ok()
    }
}
