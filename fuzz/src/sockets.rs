//! The sockets of a program under test: clients come, speak and take what they are sent whenever the program waits for that,
//! and end by themselves after a while. What is asked of them must be about connections that are open.

use nacre_wasi::{Readiness, SocketError, SocketId};

/// What a client says or takes whenever the program waits for it, in bytes.
const PIECE: usize = 3000;
/// What it says or takes in all.
const ALL: usize = 100_000;
/// Every so many clients one fails instead of coming to its end.
const FAILS: usize = 3;

/// A connection as the program's embedder sees it.
#[derive(Debug, Default)]
struct Client {
    closed: bool,
    /// The program has ended its halves.
    deaf: bool,
    mute: bool,
    /// Bytes to read, and bytes it takes.
    input: usize,
    room: usize,
    /// What it has ever said and taken.
    said: usize,
    taken: usize,
    failed: bool,
}

/// All clients.
#[derive(Debug, Default)]
pub struct Clients {
    waiting: u64,
    unlistened: bool,
    clients: Vec<Client>,
}

impl Clients {
    fn client(&self, id: SocketId) -> &Client {
        let client = &self.clients[id.0 as usize];
        assert!(!client.closed, "{id:?} is closed");
        client
    }

    fn client_mut(&mut self, id: SocketId) -> &mut Client {
        self.client(id);
        &mut self.clients[id.0 as usize]
    }

    /// The program waits for a client.
    pub fn come(&mut self) {
        assert!(!self.unlistened, "nobody comes to a socket that is closed");
        self.waiting += 2;
    }

    /// The program waits to read.
    pub fn say(&mut self, id: SocketId) {
        let client = self.client_mut(id);
        client.input += PIECE;
        client.said += PIECE;
        client.failed |= (id.0 as usize).is_multiple_of(FAILS) && client.said >= ALL;
    }

    /// The program waits to write.
    pub fn take(&mut self, id: SocketId) {
        let client = self.client_mut(id);
        client.room += PIECE;
        client.taken += PIECE;
    }

    /// The next client that waits.
    pub fn accept(&mut self) -> Result<SocketId, SocketError> {
        self.waiting = self.waiting.checked_sub(1).ok_or(SocketError::WouldBlock)?;
        self.clients.push(Client { input: 10, room: 10, ..Client::default() });
        Ok(SocketId(self.clients.len() as u32 - 1))
    }

    /// How many wait.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Nobody is let in any more.
    pub fn unlisten(&mut self) {
        assert!(!std::mem::replace(&mut self.unlistened, true), "closed twice");
        self.waiting = 0;
    }

    /// Copies what a client said.
    pub fn peek(&self, id: SocketId, skip: u64, buf: &mut [u8]) -> Result<usize, SocketError> {
        let client = self.client(id);
        let left = (client.input as u64).saturating_sub(skip) as usize;
        match left.min(buf.len()) {
            _ if client.failed => Err(SocketError::Reset),
            0 if client.deaf || client.said >= ALL || buf.is_empty() => Ok(0),
            0 => Err(SocketError::WouldBlock),
            count => {
                buf[..count].fill(b's');
                Ok(count)
            }
        }
    }

    /// Reads what a client said.
    pub fn recv(&mut self, id: SocketId, buf: &mut [u8]) -> Result<usize, SocketError> {
        let count = self.peek(id, 0, buf)?;
        self.client_mut(id).input -= count;
        Ok(count)
    }

    /// Sends to a client.
    pub fn send(&mut self, id: SocketId, buf: &[u8]) -> Result<usize, SocketError> {
        let client = self.client_mut(id);
        match client.room.min(buf.len()) {
            _ if client.failed => Err(SocketError::Reset),
            _ if client.mute || client.taken >= ALL => Err(SocketError::Closed),
            0 if !buf.is_empty() => Err(SocketError::WouldBlock),
            count => {
                client.room -= count;
                Ok(count)
            }
        }
    }

    /// Ends halves.
    pub fn shutdown(&mut self, id: SocketId, read: bool, write: bool) {
        let client = self.client_mut(id);
        client.deaf |= read;
        client.mute |= write;
        if read {
            client.input = 0;
        }
    }

    /// The program has closed a connection.
    pub fn close(&mut self, id: SocketId) {
        self.client_mut(id).closed = true;
    }

    /// Whether a read would not wait.
    pub fn readable(&self, id: SocketId) -> Option<Readiness> {
        let client = self.client(id);
        let hangup = client.deaf || client.failed || client.said >= ALL;
        (hangup || client.input > 0).then_some(Readiness { bytes: client.input as u64, hangup })
    }

    /// Whether a write would not wait.
    pub fn writable(&self, id: SocketId) -> Option<Readiness> {
        let client = self.client(id);
        let hangup = client.mute || client.failed || client.taken >= ALL;
        (hangup || client.room > 0).then_some(Readiness { bytes: client.room as u64, hangup })
    }

    /// Checks that the program has left nothing open.
    pub fn check_closed(&self) {
        assert!(self.unlistened && self.clients.iter().all(|client| client.closed), "sockets leak");
    }
}
