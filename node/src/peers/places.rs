//! [`Places`]: how much may go on with each node at once; the others wait.

use super::error::PeerError;
use super::name::PeerUrl;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Longest wait for a place.
const PATIENCE: Duration = Duration::from_secs(30);
/// Addresses after which those are forgotten that nobody is busy with.
const MANY: usize = 64;

/// Places of all nodes, by address.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    /// What they are for, as an error says it.
    what: &'static str,
    nodes: Mutex<HashMap<PeerUrl, Weak<Semaphore>>>,
}

impl Places {
    /// So many for each node.
    pub(super) fn new(most: usize, what: &'static str) -> Places {
        Places { most, what, nodes: Mutex::default() }
    }

    /// A place, as soon as there is one, but for 30 s at most.
    ///
    /// # Errors
    /// [`PeerError::TimedOut`].
    pub(super) async fn take(&self, node: &PeerUrl) -> Result<OwnedSemaphorePermit, PeerError> {
        match timeout(PATIENCE, self.of(node).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(PeerError::TimedOut { node: node.clone(), what: self.what }),
        }
    }

    fn of(&self, node: &PeerUrl) -> Arc<Semaphore> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = nodes.get(node).and_then(Weak::upgrade) {
            return places;
        }
        if nodes.len() >= MANY {
            nodes.retain(|_, places| places.strong_count() != 0);
        }
        let places = Arc::new(Semaphore::new(self.most));
        nodes.insert(node.clone(), Arc::downgrade(&places));
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_node_has_its_places_and_idle_ones_are_forgotten() {
        let places = Places::new(2, "a place");
        let node = |number: usize| -> PeerUrl { format!("a:{number}").parse().unwrap() };
        let held = [places.take(&node(1)).await.unwrap(), places.take(&node(1)).await.unwrap()];
        let error = places.take(&node(1)).await.unwrap_err();
        assert!(error.to_string().contains("a place"), "{error}");
        for number in 2..10 * MANY {
            drop(places.take(&node(number)).await.unwrap());
        }
        assert!(places.nodes.lock().unwrap().len() <= MANY);
        places.take(&node(1)).await.unwrap_err();
        drop(held);
        drop(places.take(&node(1)).await.unwrap());
    }
}
