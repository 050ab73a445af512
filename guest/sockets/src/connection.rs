//! One connection: what has come and was not read, what was sent, who has said what last.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use nacre_abi::socket::{Broken, ConnectionId, INITIAL_LIMIT, MESSAGE_COST, Receiving, Sending};

/// A piece takes more bytes while it is shorter than this.
const MERGE_BYTES: usize = 4096;

/// How a connection stands with its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It may send and receives.
    Open,
    /// It has ended its half, and receives.
    Ended,
    /// It said its last word: it has ended its half, and receives no more.
    Closed,
    /// The connection failed.
    Reset,
}

/// A connection.
pub(crate) struct Connection {
    pub id: ConnectionId,
    /// The program has it; else it waits to be accepted.
    pub accepted: bool,
    pub peer: Peer,
    /// The guest has said its last word.
    pub silent: bool,
    pub out: Sending,
    flow: Receiving,
    /// Offset of the next byte from the host.
    next: u64,
    /// What was not read; `read` bytes of the first piece were.
    pieces: VecDeque<Vec<u8>>,
    read: usize,
    /// Bytes in `pieces` that were not read.
    held: u64,
    /// The program reads no more.
    pub deaf: bool,
}

impl Connection {
    /// A connection that was just opened, with the host's limit on what may be sent.
    pub fn new(id: ConnectionId, limit: u64) -> Result<Connection, Broken> {
        let mut out = Sending::new(0);
        out.raise(limit)?;
        Ok(Connection {
            id,
            accepted: false,
            peer: Peer::Open,
            silent: false,
            out,
            flow: Receiving::new(INITIAL_LIMIT),
            next: 0,
            pieces: VecDeque::new(),
            read: 0,
            held: 0,
            deaf: false,
        })
    }

    /// Bytes that can be read now.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// What it keeps, as cost.
    fn held_cost(&self) -> u64 {
        self.held + self.pieces.len() as u64 * MESSAGE_COST
    }

    /// Takes bytes from the host.
    ///
    /// # Errors
    /// [`Broken`] if they are not the next ones, more than may come, or came after the end.
    pub fn push(&mut self, offset: u64, body: Vec<u8>) -> Result<(), Broken> {
        self.flow.charge(body.len())?;
        if offset != self.next || self.peer != Peer::Open {
            return Err(Broken);
        }
        self.next += body.len() as u64;
        if self.deaf {
            return Ok(());
        }
        let len = body.len();
        // Small pieces would take more memory in their vectors than in one.
        let last = self.pieces.back_mut().filter(|last| last.len() + len <= MERGE_BYTES);
        if let Some(last) = last {
            last.try_reserve(len).map_err(|_| Broken)?;
            last.extend_from_slice(&body);
        } else {
            self.pieces.try_reserve(1).map_err(|_| Broken)?;
            self.pieces.push_back(body);
        }
        self.held += len as u64;
        Ok(())
    }

    /// The host's half ends here; `last` if it also reads no more.
    ///
    /// # Errors
    /// [`Broken`] if it ended before or not here.
    pub fn end(&mut self, offset: u64, last: bool) -> Result<(), Broken> {
        let fits = match self.peer {
            Peer::Open => offset == self.next,
            Peer::Ended => last && offset == self.next,
            Peer::Closed | Peer::Reset => false,
        };
        if !fits {
            return Err(Broken);
        }
        self.peer = if last { Peer::Closed } else { Peer::Ended };
        Ok(())
    }

    /// The connection failed: nothing of it can be read any more.
    pub fn fail(&mut self) {
        self.peer = Peer::Reset;
        self.forget_input();
    }

    /// The program reads no more.
    pub fn stop_reading(&mut self) {
        self.deaf = true;
        self.forget_input();
    }

    fn forget_input(&mut self) {
        self.pieces = VecDeque::new();
        self.held = 0;
        self.read = 0;
    }

    /// Copies what is there, from `skip` bytes on; it stays.
    pub fn peek(&self, mut skip: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        let mut start = self.read;
        for piece in &self.pieces {
            let rest = piece.get(start..).unwrap_or_default();
            start = 0;
            let Some(rest) = rest.get(skip.min(usize::MAX as u64) as usize..) else {
                skip -= rest.len() as u64;
                continue;
            };
            skip = 0;
            done += copy(rest, buf.get_mut(done..).unwrap_or_default());
            if done == buf.len() {
                break;
            }
        }
        done
    }

    /// Moves what is there to `buf`.
    pub fn take(&mut self, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(piece) = self.pieces.front() {
            let rest = piece.get(self.read..).unwrap_or_default();
            let count = copy(rest, buf.get_mut(done..).unwrap_or_default());
            done += count;
            self.read += count;
            if self.read < piece.len() {
                break;
            }
            self.pieces.pop_front();
            self.read = 0;
        }
        self.held -= done as u64;
        if self.pieces.is_empty() && self.pieces.capacity() > 64 {
            self.pieces = VecDeque::new();
        }
        done
    }

    /// The limit to tell the host now, if it is worth a message.
    pub fn credit(&mut self, window: u64) -> Option<u64> {
        let held = self.held_cost();
        // Who sends no more needs none.
        if self.peer == Peer::Open { self.flow.credit(held, window) } else { None }
    }

    /// The limit that a connection is accepted with.
    pub fn first_limit(&mut self, window: u64) -> u64 {
        self.credit(window).unwrap_or(self.flow.limit())
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}
