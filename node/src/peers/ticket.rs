//! Tickets of bare connections: who holds one may bring one connection, once, for a while. They are handed out within the TLS link, so
//! that only the node they are for knows them.

use super::error::PeerError;
use super::name::Fingerprint;
use crate::names::{hex, parse_hex, random};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Tickets that are good at once, of all nodes and of one.
const MAX_TICKETS: usize = 1024;
const MAX_TICKETS_OF_ONE: usize = 128;
/// Bytes of a ticket.
pub(super) const TICKET_BYTES: usize = 32;

/// Admits one bare connection. Printed redacted.
#[derive(Clone)]
pub struct Ticket([u8; TICKET_BYTES]);

impl Ticket {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; TICKET_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

impl Serialize for Ticket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Ticket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_hex(&text).map(Self).ok_or_else(|| D::Error::custom("a ticket has 64 hexadecimal digits"))
    }
}

/// What comes of a ticket.
type Brought = Result<std::net::TcpStream, PeerError>;

#[derive(Debug)]
struct Awaited {
    ticket: Ticket,
    from: Fingerprint,
    tell: oneshot::Sender<Brought>,
}

/// The tickets that are good now.
#[derive(Debug, Default)]
pub(super) struct Tickets(Mutex<Vec<Awaited>>);

/// Whoever waits for the connection that a ticket admits.
pub(super) struct Admitted(oneshot::Sender<Brought>);

impl Admitted {
    /// Whether it still waits.
    pub(super) fn waits(&self) -> bool {
        !self.0.is_closed()
    }

    /// Gives it the connection.
    pub(super) fn bring(self, stream: std::net::TcpStream) {
        // Who does not wait any more needs none.
        let _ = self.0.send(Ok(stream));
    }
}

impl Tickets {
    fn lock(&self) -> MutexGuard<'_, Vec<Awaited>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket for `from` that is good for `patience` from now, and the connection that it brings. Not good any more once the future is
    /// dropped.
    pub(super) fn issue(
        self: &Arc<Self>,
        from: Fingerprint,
        patience: Duration,
    ) -> (Ticket, impl Future<Output = Brought> + Send + use<>) {
        let mut bytes = [0; TICKET_BYTES];
        random(&mut bytes);
        let ticket = Ticket(bytes);
        let (tell, told) = oneshot::channel();
        let mut awaited = self.lock();
        let of_one = awaited.iter().filter(|other| other.from == from).count();
        let room = awaited.len() < MAX_TICKETS && of_one < MAX_TICKETS_OF_ONE;
        if room {
            awaited.push(Awaited { ticket: ticket.clone(), from, tell });
        }
        drop(awaited);
        let withdraw = Withdraw { tickets: self.clone(), ticket: ticket.clone() };
        let end = Instant::now() + patience;
        let brought = async move {
            let _withdraw = withdraw;
            if !room {
                let remedy = "too many tickets wait; try again when they are used";
                return Err(PeerError::NotAwaited { from, remedy });
            }
            match timeout_at(end, told).await {
                Ok(Ok(brought)) => brought,
                Ok(Err(_)) => Err(PeerError::NotAwaited { from, remedy: "trust in it has ended" }),
                Err(_) => Err(PeerError::NotShown { from }),
            }
        };
        (ticket, brought)
    }

    /// Takes the ticket that `by` shows: from then on it is not good any more.
    pub(super) fn redeem(&self, by: Fingerprint, shown: &[u8; TICKET_BYTES]) -> Option<Admitted> {
        let mut awaited = self.lock();
        // All of them are looked at, each for the same time: how long it takes says nothing about any.
        let mut found = None;
        for (index, one) in awaited.iter().enumerate() {
            if bool::from(one.ticket.0.ct_eq(shown)) {
                found = Some(index);
            }
        }
        let Awaited { from, tell, .. } = awaited.swap_remove(found?);
        drop(awaited);
        if from != by {
            let _ = tell.send(Err(PeerError::ShownByAnother { from, by }));
            return None;
        }
        Some(Admitted(tell))
    }

    /// No ticket of this node is good any more.
    pub(super) fn forget(&self, from: Fingerprint) {
        self.lock().retain(|one| one.from != from);
    }
}

/// Ends a ticket when nobody waits for it any more.
struct Withdraw {
    tickets: Arc<Tickets>,
    ticket: Ticket,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        self.tickets.lock().retain(|one| !bool::from(one.ticket.0.ct_eq(&self.ticket.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn print(byte: u8) -> Fingerprint {
        Fingerprint::from_bytes([byte; 32])
    }

    #[tokio::test]
    async fn a_ticket_is_good_once_and_for_one_node() {
        let tickets = Arc::new(Tickets::default());
        let (ticket, brought) = tickets.issue(print(1), MINUTE);
        assert!(tickets.redeem(print(1), &[0; TICKET_BYTES]).is_none());
        let admitted = tickets.redeem(print(1), ticket.bytes()).unwrap();
        assert!(tickets.redeem(print(1), ticket.bytes()).is_none());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        admitted.bring(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        brought.await.unwrap();
        let (ticket, brought) = tickets.issue(print(1), MINUTE);
        assert!(tickets.redeem(print(2), ticket.bytes()).is_none());
        let error = brought.await.unwrap_err();
        assert_eq!(error, PeerError::ShownByAnother { from: print(1), by: print(2) });
        assert!(tickets.redeem(print(1), ticket.bytes()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_and_nothing_stays() {
        let tickets = Arc::new(Tickets::default());
        let (ticket, brought) = tickets.issue(print(1), MINUTE);
        assert_eq!(brought.await.unwrap_err(), PeerError::NotShown { from: print(1) });
        assert!(tickets.redeem(print(1), ticket.bytes()).is_none());
        let (ticket, brought) = tickets.issue(print(1), MINUTE);
        drop(brought);
        assert!(tickets.redeem(print(1), ticket.bytes()).is_none());
        let (_, brought) = tickets.issue(print(1), MINUTE);
        tickets.forget(print(1));
        assert!(matches!(brought.await, Err(PeerError::NotAwaited { .. })));
        let many: Vec<_> = (0..MAX_TICKETS_OF_ONE).map(|_| tickets.issue(print(1), MINUTE)).collect();
        assert!(matches!(tickets.issue(print(1), MINUTE).1.await, Err(PeerError::NotAwaited { .. })));
        // Another node has tickets of its own.
        let (other, _brought) = tickets.issue(print(2), MINUTE);
        assert!(tickets.redeem(print(2), other.bytes()).is_some());
        drop(many);
        assert!(tickets.lock().is_empty());
    }

    #[test]
    fn a_ticket_is_not_printed_but_sent() {
        let ticket = Ticket([7; TICKET_BYTES]);
        assert_eq!(format!("{ticket:?}"), "Ticket");
        let json = serde_json::to_string(&ticket).unwrap();
        assert_eq!(serde_json::from_str::<Ticket>(&json).unwrap().bytes(), ticket.bytes());
        assert!(serde_json::from_str::<Ticket>("\"07\"").is_err());
    }
}
