//! Bare connections: a preamble with a ticket, then bytes that the nodes do not look at.
//!
//! ```text
//! PREAMBLE (8) | fingerprint of who connects (32) | ticket (32)   ->
//!                                                                <-  TAKEN (1), or the end
//! ```

use super::dial::{HANDSHAKE_PATIENCE, connect as tcp};
use super::error::PeerError;
use super::name::{Fingerprint, PeerUrl};
use super::ticket::{TICKET_BYTES, Ticket, Tickets};
use rustix::net::sockopt;
use std::io::{self, ErrorKind};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// With what a bare connection begins. A TLS connection begins with a record of the type 22.
pub(super) const PREAMBLE: [u8; 8] = *b"NACRE\r\n\x01";
/// The ticket was good.
const TAKEN: u8 = 1;
/// Data that the other end does not acknowledge for this long ends the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
const BYTES: usize = PREAMBLE.len() + 32 + TICKET_BYTES;

/// Connects, and shows the ticket.
pub(super) async fn connect(
    own: Fingerprint,
    node: &PeerUrl,
    ticket: &Ticket,
) -> Result<std::net::TcpStream, PeerError> {
    let mut stream = tcp(node).await?;
    let shown = async {
        stream.write_all(&[&PREAMBLE[..], own.bytes(), ticket.bytes()].concat()).await?;
        stream.read_u8().await
    };
    let late = |_| PeerError::TimedOut { node: node.clone(), what: "its answer to a ticket" };
    match timeout(HANDSHAKE_PATIENCE, shown).await.map_err(late)? {
        Ok(TAKEN) => {}
        Ok(other) => {
            let problem = format!("it answers {other} to a ticket");
            return Err(PeerError::Protocol { node: node.clone(), problem });
        }
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            return Err(PeerError::TicketRefused { node: node.clone() });
        }
        Err(error) => return Err(PeerError::Broken { node: node.clone(), reason: error.to_string() }),
    }
    blocking(stream).map_err(|error| PeerError::Broken { node: node.clone(), reason: error.to_string() })
}

/// Reads a preamble of which the first byte is right, and gives the connection to who waits for it.
pub(super) async fn arrive(tickets: &Tickets, mut stream: TcpStream) -> io::Result<()> {
    let mut shown = [0; BYTES];
    stream.read_exact(&mut shown).await?;
    let wrong = |what| io::Error::new(ErrorKind::InvalidData, what);
    let (preamble, rest) = shown.split_at(PREAMBLE.len());
    let (Some(by), Some(ticket)) = (rest.first_chunk::<32>(), rest.last_chunk::<TICKET_BYTES>()) else {
        return Err(wrong("a short preamble"));
    };
    if preamble != PREAMBLE {
        return Err(wrong("neither TLS nor a preamble"));
    }
    let admitted = tickets.redeem(Fingerprint::from_bytes(*by), ticket);
    let admitted =
        admitted.filter(|admitted| admitted.waits()).ok_or_else(|| wrong("a ticket that is not good"))?;
    stream.write_all(&[TAKEN]).await?;
    admitted.bring(blocking(stream)?);
    Ok(())
}

/// For threads that wait in their reads and writes.
fn blocking(stream: TcpStream) -> io::Result<std::net::TcpStream> {
    sockopt::set_tcp_user_timeout(&stream, u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX))?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}
