//! All connections of one program.

use crate::connection::{Connection, Peer};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use nacre_abi::message::Kind;
use nacre_abi::socket::{BACKLOG, Broken, ConnectionId, INITIAL_LIMIT, MAX_CONNECTIONS, Refusal, WINDOW};
use nacre_wasi::{Readiness, SocketError, SocketId};

/// Where messages to the host go.
pub trait Link {
    /// Sends one message; waits for room on the ring if it must.
    fn send(&mut self, kind: Kind, id: ConnectionId, arg: u64, body: &[u8]);
}

/// A message about a connection, copied from the ring.
#[derive(Clone, Debug)]
pub struct Message {
    /// What it says.
    pub kind: Kind,
    /// About whom.
    pub id: ConnectionId,
    /// Offset, limit or reason.
    pub arg: u64,
    /// Bytes.
    pub body: Vec<u8>,
}

/// The connections of one program, by slot.
pub struct Table {
    slots: Vec<Option<Box<Connection>>>,
    backlog: VecDeque<u32>,
    /// Connections in `slots`.
    live: u64,
    /// Bytes that all windows together are made of.
    budget: u64,
    listening: bool,
}

impl Table {
    /// No connections, and windows made of `budget` bytes.
    pub fn new(budget: u64) -> Table {
        Table { slots: Vec::new(), backlog: VecDeque::new(), live: 0, budget, listening: true }
    }

    /// Connections there are.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// The window of a connection: an equal share of the budget, within bounds.
    fn window(&self) -> u64 {
        (self.budget / self.live.max(1)).clamp(INITIAL_LIMIT, WINDOW)
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    fn by_id(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slot_mut(id.slot()).filter(|connection| connection.id == id)
    }

    fn get(&self, id: SocketId) -> Option<&Connection> {
        self.slots.get(id.0 as usize)?.as_deref()
    }

    /// Takes in a message from the host.
    pub fn receive(&mut self, message: Message, link: &mut impl Link) {
        let Message { kind, id, arg, body } = message;
        if kind == Kind::SocketOpen {
            return self.open(id, arg, link);
        }
        let Some(connection) = self.by_id(id) else { return };
        if connection.silent || connection.peer == Peer::Reset {
            return;
        }
        let taken = match kind {
            Kind::SocketData => connection.push(arg, body),
            Kind::SocketEnd => connection.end(arg, false),
            Kind::SocketClose => connection.end(arg, true),
            Kind::SocketCredit => connection.out.raise(arg).map(|_| ()),
            Kind::SocketReset => {
                connection.fail();
                Ok(())
            }
            _ => Ok(()),
        };
        let deaf = connection.deaf;
        if taken == Err(Broken) {
            self.break_off(id.slot(), link);
        } else if deaf {
            self.give_credit(id.slot(), link);
        }
    }

    fn open(&mut self, id: ConnectionId, limit: u64, link: &mut impl Link) {
        if let Some(old) = self.slot_mut(id.slot()) {
            // An honest host never does that. The number it means is the one that is there.
            if old.id == id {
                self.break_off(id.slot(), link);
            }
            return;
        }
        if let Err(refusal) = self.try_open(id, limit) {
            link.send(Kind::SocketRefused, id, refusal as u64, &[]);
        }
    }

    fn try_open(&mut self, id: ConnectionId, limit: u64) -> Result<(), Refusal> {
        if !self.listening {
            return Err(Refusal::NotListening);
        }
        if self.backlog.len() >= BACKLOG {
            return Err(Refusal::Full);
        }
        let slot = id.slot() as usize;
        if slot >= self.slots.len() {
            self.slots.try_reserve(slot + 1 - self.slots.len()).map_err(|_| Refusal::NoMemory)?;
            self.slots.resize_with(slot + 1, || None);
        }
        self.backlog.try_reserve(1).map_err(|_| Refusal::NoMemory)?;
        let connection = Connection::new(id, limit).map_err(|_| Refusal::Full)?;
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(Box::new(connection));
            self.backlog.push_back(id.slot());
            self.live += 1;
        }
        Ok(())
    }

    /// The host broke the rules, or memory is lost: the connection fails on both sides.
    fn break_off(&mut self, slot: u32, link: &mut impl Link) {
        if let Some(connection) = self.slot_mut(slot) {
            connection.fail();
            if !core::mem::replace(&mut connection.silent, true) {
                link.send(Kind::SocketReset, connection.id, 0, &[]);
            }
        }
    }

    /// All connections fail: messages were lost.
    pub fn break_all(&mut self, link: &mut impl Link) {
        for slot in 0..self.slots.len() as u32 {
            self.break_off(slot, link);
        }
    }

    fn give_credit(&mut self, slot: u32, link: &mut impl Link) {
        let window = self.window();
        if let Some(connection) = self.slot_mut(slot)
            && connection.accepted
            && !connection.silent
            && let Some(limit) = connection.credit(window)
        {
            link.send(Kind::SocketCredit, connection.id, limit, &[]);
        }
    }

    /// The next connection that waits.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`] if none does.
    pub fn accept(&mut self, link: &mut impl Link) -> Result<SocketId, SocketError> {
        loop {
            let slot = self.backlog.pop_front().ok_or(SocketError::WouldBlock)?;
            let window = self.window();
            let Some(connection) = self.slot_mut(slot) else { continue };
            // One that failed before anybody saw it is never seen, as on Linux.
            if connection.peer == Peer::Reset {
                self.close(SocketId(slot), link);
                continue;
            }
            connection.accepted = true;
            let limit = connection.first_limit(window);
            link.send(Kind::SocketAccepted, connection.id, limit, &[]);
            return Ok(SocketId(slot));
        }
    }

    /// Connections that wait.
    pub fn acceptable(&self) -> u64 {
        self.backlog.len() as u64
    }

    /// The program has closed the socket that listens: who waits is refused.
    pub fn unlisten(&mut self, link: &mut impl Link) {
        self.listening = false;
        while let Some(slot) = self.backlog.pop_front() {
            // Whatever it has sent: it was never accepted.
            if let Some(connection) = self.slot_mut(slot).filter(|connection| !connection.silent) {
                let id = connection.id;
                link.send(Kind::SocketRefused, id, Refusal::NotListening as u64, &[]);
            }
            self.remove(slot);
        }
    }

    /// Reads what is there; `Ok(0)` is the end.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`], `Reset`.
    pub fn recv(&mut self, id: SocketId, buf: &mut [u8], link: &mut impl Link) -> Result<usize, SocketError> {
        let connection = self.slot_mut(id.0).ok_or(SocketError::Reset)?;
        readable(connection, 0)?;
        let count = connection.take(buf);
        if count > 0 {
            self.give_credit(id.0, link);
        }
        Ok(count)
    }

    /// Reads what is there after `skip` bytes, and leaves it.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn peek(&self, id: SocketId, skip: u64, buf: &mut [u8]) -> Result<usize, SocketError> {
        let connection = self.get(id).ok_or(SocketError::Reset)?;
        readable(connection, skip)?;
        Ok(connection.peek(skip, buf))
    }

    /// Sends the front of `buf`; returns how many bytes.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`] without credit, `Closed` where nobody reads, `Reset`.
    pub fn send(&mut self, id: SocketId, buf: &[u8], link: &mut impl Link) -> Result<usize, SocketError> {
        let connection = self.slot_mut(id.0).ok_or(SocketError::Reset)?;
        match connection.peer {
            Peer::Reset => return Err(SocketError::Reset),
            _ if connection.silent || connection.out.is_ended() => return Err(SocketError::Closed),
            Peer::Closed => return Err(SocketError::Closed),
            Peer::Open | Peer::Ended => {}
        }
        let mut done = 0;
        while done < buf.len() {
            let count = connection.out.room().min(buf.len() - done);
            if count == 0 {
                break;
            }
            let offset = connection.out.take(count);
            link.send(Kind::SocketData, connection.id, offset, &buf[done..done + count]);
            done += count;
        }
        if done == 0 && !buf.is_empty() { Err(SocketError::WouldBlock) } else { Ok(done) }
    }

    /// Ends halves.
    pub fn shutdown(&mut self, id: SocketId, read: bool, write: bool, link: &mut impl Link) {
        let Some(connection) = self.slot_mut(id.0) else { return };
        if write
            && !connection.silent
            && let Some(end) = connection.out.end()
        {
            link.send(Kind::SocketEnd, connection.id, end, &[]);
        }
        if read {
            connection.stop_reading();
            self.give_credit(id.0, link);
        }
    }

    /// The program has closed it. As TCP does: if it had not read everything, the peer learns that by a reset.
    pub fn close(&mut self, id: SocketId, link: &mut impl Link) {
        let Some(connection) = self.slot_mut(id.0) else { return };
        if !core::mem::replace(&mut connection.silent, true) {
            let (kind, arg) = match connection.held() {
                0 => (Kind::SocketClose, connection.out.offset()),
                _ => (Kind::SocketReset, 0),
            };
            link.send(kind, connection.id, arg, &[]);
        }
        self.remove(id.0);
    }

    /// Ends a connection as failed, whatever was read or sent; the number means nothing any more.
    pub fn reset(&mut self, id: SocketId, link: &mut impl Link) {
        self.break_off(id.0, link);
        self.remove(id.0);
    }

    fn remove(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && place.take().is_some()
        {
            self.live -= 1;
        }
    }

    /// The program is over: closes everything.
    pub fn close_all(&mut self, link: &mut impl Link) {
        self.unlisten(link);
        for slot in 0..self.slots.len() as u32 {
            self.close(SocketId(slot), link);
        }
    }

    /// Whether a read would not wait.
    pub fn readable(&self, id: SocketId) -> Option<Readiness> {
        let connection = self.get(id)?;
        let hangup = connection.peer != Peer::Open || connection.deaf;
        (hangup || connection.held() > 0).then_some(Readiness { bytes: connection.held(), hangup })
    }

    /// Whether a write would not wait.
    pub fn writable(&self, id: SocketId) -> Option<Readiness> {
        let connection = self.get(id)?;
        let hangup = matches!(connection.peer, Peer::Closed | Peer::Reset) || connection.out.is_ended();
        let room = if hangup { 0 } else { connection.out.room() as u64 };
        (hangup || room > 0).then_some(Readiness { bytes: room, hangup })
    }

    /// The most that the host may honestly have on the way: bytes and what messages cost.
    pub fn promised(&self) -> u64 {
        // Windows shrink when there are more connections, but what was promised stays.
        (self.live + BACKLOG as u64) * INITIAL_LIMIT * 2 + self.budget.max(self.live * INITIAL_LIMIT) * 2
    }
}

/// Whether there is something after `skip` bytes.
fn readable(connection: &Connection, skip: u64) -> Result<(), SocketError> {
    match connection.peer {
        Peer::Reset => Err(SocketError::Reset),
        Peer::Open if connection.held() <= skip && !connection.deaf => Err(SocketError::WouldBlock),
        _ => Ok(()),
    }
}

/// Connections that any program can have: slots fit a table.
const _: () = assert!(MAX_CONNECTIONS as usize >= BACKLOG, "the backlog has no slots");
