//! [`Secure`]: one connection of a TLS service, and how bytes move between its TLS and the table below. What becomes of it,
//! [`super::tls`] decides.

use nacre_sockets::{Link, Table};
use nacre_tls::{TlsConnection, TlsServer, TlsState};
use nacre_wasi::{SocketError, SocketId};

/// One connection.
pub struct Secure {
    /// Made when the first bytes come.
    pub tls: Option<TlsConnection>,
    pub stage: Stage,
    /// When it is given up; `u64::MAX` if it is not.
    pub deadline_ns: u64,
    /// It is in `touched`.
    pub touched: bool,
    /// It waits for evidence.
    pub waits: bool,
    /// The ciphertext has ended.
    pub cut: bool,
    /// The connection below failed.
    pub broken: bool,
    /// The client takes nothing any more.
    pub unread: bool,
    /// The program reads no more.
    pub deaf: bool,
    /// The program has said that it sends no more.
    pub closed: bool,
    /// Our half below has ended.
    pub ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// In the handshake.
    Handshake,
    /// The handshake is over, the program has not accepted it.
    Ready,
    /// The program's.
    Open,
    /// The program has closed it, or the handshake failed; something may be left to send.
    Closing,
}

impl Secure {
    /// One that has just come.
    pub fn new() -> Secure {
        Secure {
            tls: None,
            stage: Stage::Handshake,
            deadline_ns: u64::MAX,
            touched: false,
            waits: false,
            cut: false,
            broken: false,
            unread: false,
            deaf: false,
            closed: false,
            ended: false,
        }
    }

    /// Nothing goes any more.
    pub fn failed(&self) -> bool {
        self.broken || matches!(self.tls.as_ref().map(TlsConnection::state), Some(TlsState::Failed(_)))
    }

    /// Plaintext that waits.
    pub fn held(&self) -> usize {
        if self.deaf || self.broken { 0 } else { self.tls.as_ref().map_or(0, TlsConnection::plaintext_bytes) }
    }

    /// Whether the end of what can be read was seen.
    pub fn at_end(&self) -> bool {
        self.deaf || self.tls.as_ref().is_some_and(TlsConnection::peer_closed)
    }

    /// Moves ciphertext from the client into the connection.
    pub fn feed(
        &mut self,
        table: &mut Table,
        id: SocketId,
        server: Option<&TlsServer>,
        piece: &mut [u8],
        link: &mut impl Link,
    ) {
        loop {
            let count = match table.peek(id, 0, piece) {
                Ok(count) => count,
                Err(SocketError::WouldBlock) => return,
                Err(_) => return self.broken = true,
            };
            if self.deaf {
                return;
            }
            if count == 0 {
                if !core::mem::replace(&mut self.cut, true)
                    && let Some(tls) = &mut self.tls
                {
                    tls.end_of_ciphertext();
                }
                return;
            }
            if self.tls.is_none() {
                let Some(server) = server else { return };
                match TlsConnection::new(server) {
                    Ok(tls) => self.tls = Some(tls),
                    Err(_) => return self.broken = true,
                }
            }
            let taken = self.tls.as_mut().map(|tls| tls.feed(&piece[..count]));
            match taken {
                Some(Ok(taken)) if taken > 0 => {
                    // Just seen.
                    let _ = table.recv(id, &mut piece[..taken], link);
                }
                _ => return,
            }
        }
    }

    /// Moves ciphertext to the client, and then the end, if the program has closed.
    pub fn flush(&mut self, table: &mut Table, id: SocketId, link: &mut impl Link) {
        let Some(tls) = &mut self.tls else { return };
        while !tls.ciphertext().is_empty() {
            match table.send(id, tls.ciphertext(), link) {
                Ok(sent) => tls.ciphertext_sent(sent),
                Err(SocketError::WouldBlock) => return,
                Err(_) => {
                    self.unread = true;
                    tls.ciphertext_sent(usize::MAX);
                }
            }
        }
        if self.closed && !core::mem::replace(&mut self.ended, true) {
            table.shutdown(id, false, true, link);
        }
    }
}
