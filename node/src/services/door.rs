//! A service's port, and clients that were accepted there and could not be served where their tenant was just then.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Where clients come in. It stays open while the tenant moves, however often.
pub struct Door {
    listener: TcpListener,
    early: Mutex<Vec<(TcpStream, SocketAddr)>>,
    news: Notify,
}

impl Door {
    /// Opens one.
    ///
    /// # Errors
    /// If the address can't be listened on.
    pub async fn open(address: SocketAddr) -> io::Result<Door> {
        let listener = TcpListener::bind(address).await?;
        Ok(Door { listener, early: Mutex::default(), news: Notify::new() })
    }

    /// The next client; first those that were given back. If this is dropped no client is lost.
    ///
    /// # Errors
    /// If the kernel has no descriptor for one.
    pub(super) async fn client(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let early = self.early.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let Some(client) = early {
                return Ok(client);
            }
            tokio::select! {
                accepted = self.listener.accept() => return accepted,
                () = self.news.notified() => {}
            }
        }
    }

    /// Takes a client back that could not be served: its tenant has just moved.
    pub(super) fn give_back(&self, client: TcpStream, peer: SocketAddr) {
        self.early.lock().unwrap_or_else(PoisonError::into_inner).push((client, peer));
        self.news.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[tokio::test]
    async fn who_was_given_back_comes_before_others() {
        let door = Door::open((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = door.listener.local_addr().unwrap();
        let _first = TcpStream::connect(address).await.unwrap();
        let (client, peer) = door.client().await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        door.give_back(client, peer);
        assert_eq!(door.client().await.unwrap().1, peer);
        assert_ne!(door.client().await.unwrap().1, peer);
        // Also to somebody who waits already.
        let (client, peer) = {
            let _third = TcpStream::connect(address).await.unwrap();
            door.client().await.unwrap()
        };
        let (waited, ()) = tokio::join!(door.client(), async { door.give_back(client, peer) });
        assert_eq!(waited.unwrap().1, peer);
    }
}
