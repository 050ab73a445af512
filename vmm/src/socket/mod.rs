//! TCP connections to programs that listen: [`Connector::connect`] and [`Connection`], which is made for any executor.
//!
//! Nothing here blocks. A [`Connection`] registers [`Waker`]s: one for who reads, one for who writes. The thread
//! that reads the guest's rings puts what comes into the connection and wakes; what is written goes
//! straight to the ring to the guest. Two things make a writer wait: the guest's credit for this connection, and room on the
//! ring. The module doc of [`nacre_abi::socket`] has the protocol.

mod linger;
mod relay;
mod stream;
mod table;

#[cfg(test)]
mod tests;

pub use relay::{Intake, NotRelayed, Relay, RelayError};
pub use stream::Stream;
pub(crate) use table::Destined;
pub use table::{ConnectError, ConnectionStats, Connections};

use crate::link::{SendError, Sender};
use crate::program::ProgramId;
use nacre_abi::message::{Header, Kind};
use nacre_abi::socket::{Broken, ConnectionId, INITIAL_LIMIT, WINDOW, encode_address};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Where messages to the guest go.
pub trait Outlet: Send + Sync {
    /// Sends if there is room, and else has `waker` woken when there may be.
    ///
    /// # Errors
    /// [`SendError`].
    fn try_post(&self, header: Header, body: &[u8], waker: &Waker) -> Result<bool, SendError>;
    /// Sends a short message, now or when there is room.
    ///
    /// # Errors
    /// [`SendError`].
    fn post(&self, header: Header, body: &[u8]) -> Result<(), SendError>;
    /// Wakes the guest if it sleeps: neither of the others does.
    fn kick(&self);
    /// Whether another host may stand between here and the guest, which has to hear also what is of no use to the guest any more.
    fn is_relayed(&self) -> bool {
        false
    }
}

impl Outlet for Sender {
    fn try_post(&self, header: Header, body: &[u8], waker: &Waker) -> Result<bool, SendError> {
        Sender::try_post(self, header, body, waker)
    }

    fn post(&self, header: Header, body: &[u8]) -> Result<(), SendError> {
        Sender::post_quietly(self, header, body)
    }

    fn kick(&self) {
        Sender::kick(self);
    }

    fn is_relayed(&self) -> bool {
        Sender::is_relayed(self)
    }
}

/// Opens connections to one program, from any thread.
#[derive(Clone)]
pub struct Connector {
    program: u32,
    sender: Arc<dyn Outlet>,
    connections: Arc<Connections>,
    intake: Arc<Intake>,
}

impl Connector {
    /// Connects to a program of the CVM whose ring, connections and intake these are.
    pub fn new(
        program: ProgramId,
        sender: Arc<dyn Outlet>,
        connections: Arc<Connections>,
        intake: Arc<Intake>,
    ) -> Connector {
        Connector { program: program.0, sender, connections, intake }
    }

    /// Opens a connection, for a client at `peer`. It can be written to at once; the program sees it when it accepts it.
    /// Should the guest refuse it after all, its calls fail with [`ErrorKind::ConnectionRefused`].
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(&self, peer: SocketAddr) -> Result<Connection, ConnectError> {
        let connector = self.clone();
        let peer_state = self.connections.open(self.program, |id| {
            Arc::new(Peer { program: self.program, id, sender: self.sender.clone(), state: Mutex::default() })
        })?;
        let header = peer_state.header(Kind::SocketOpen).arg(WINDOW);
        if self.sender.post(header, &encode_address(peer)).is_err() {
            self.connections.release(self.program, peer_state.id);
            return Err(ConnectError::Ended);
        }
        self.sender.kick();
        Ok(Connection { peer: peer_state, connector })
    }

    /// How many connections the program has.
    pub fn stats(&self) -> ConnectionStats {
        self.connections.stats(self.program)
    }
}

/// One connection as both the ring's reader and its user see it.
pub(crate) struct Peer {
    program: u32,
    id: ConnectionId,
    sender: Arc<dyn Outlet>,
    state: Mutex<State>,
}

struct State {
    stream: Stream,
    accepted: bool,
    /// The guest has said its last word.
    guest_done: bool,
    /// So have we.
    host_done: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Default for State {
    fn default() -> State {
        State {
            stream: Stream::new(INITIAL_LIMIT),
            accepted: false,
            guest_done: false,
            host_done: false,
            reader: None,
            writer: None,
        }
    }
}

/// What a message does beyond its connection.
#[derive(Default)]
pub(crate) struct Effect {
    /// It waits to be accepted no more.
    accepted: bool,
    /// Both sides have said their last word.
    finished: bool,
}

impl Peer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self, kind: Kind) -> Header {
        Header::new(kind, self.program).stream(self.id.0)
    }

    /// Changes the state by a message; wakes whom it may concern.
    fn take(&self, change: impl FnOnce(&mut State) -> Result<(), Broken>) -> Effect {
        let mut state = self.state();
        let before = (state.accepted, state.host_done && state.guest_done);
        if change(&mut state).is_err() {
            state.stream.fail(ErrorKind::ConnectionReset);
            if !std::mem::replace(&mut state.host_done, true) && self.is_heard(&state) {
                // If the CVM has ended nobody is to be told.
                let _ = self.sender.post(self.header(Kind::SocketReset), &[]);
                self.sender.kick();
            }
        }
        // Who is failed or refused does not wait to be accepted any more.
        if state.guest_done {
            state.accepted = true;
        }
        let reader = if state.stream.has_news() { state.reader.take() } else { None };
        let writer = if !matches!(state.stream.room(), Ok(None)) { state.writer.take() } else { None };
        let effect = Effect {
            accepted: !before.0 && state.accepted,
            finished: !before.1 && state.host_done && state.guest_done,
        };
        drop(state);
        reader.into_iter().chain(writer).for_each(Waker::wake);
        effect
    }

    fn accepted(&self, limit: u64) -> Effect {
        self.take(|state| {
            state.accepted = true;
            state.stream.out.raise(limit).map(|_| ())
        })
    }

    fn credit(&self, limit: u64) -> Effect {
        self.take(|state| state.stream.out.raise(limit).map(|_| ()))
    }

    fn data(&self, offset: u64, body: &[u8]) -> Effect {
        // What nobody will read is not kept.
        self.take(|state| if state.host_done { Ok(()) } else { state.stream.push(offset, body) })
    }

    fn ended(&self, offset: u64) -> Effect {
        self.take(|state| if state.guest_done { Ok(()) } else { state.stream.end_at(offset, false) })
    }

    /// The last word may come over another ring than data before it, which is still taken.
    fn closed(&self, offset: u64) -> Effect {
        self.take(|state| {
            if !state.guest_done {
                state.stream.end_at(offset, true)?;
                state.guest_done = true;
            }
            Ok(())
        })
    }

    /// Also when the program is over: what it said before its last word may still be read then.
    fn reset(&self, how: ErrorKind) -> Effect {
        self.take(|state| {
            if !std::mem::replace(&mut state.guest_done, true) {
                state.stream.fail(how);
            }
            Ok(())
        })
    }

    fn kept(&self) -> u64 {
        self.state().stream.kept()
    }

    /// Whether it was accepted, and whether guest and host have said their last words.
    fn progress(&self) -> [bool; 3] {
        let state = self.state();
        [state.accepted, state.guest_done, state.host_done]
    }

    /// Whether a last word from here is of use to anybody: another host frees the number by it.
    fn is_heard(&self, state: &State) -> bool {
        !state.guest_done || self.sender.is_relayed()
    }
}

/// A connection to a program. Dropping it closes it as TCP does: orderly, or by a reset if there was something left to read.
pub struct Connection {
    peer: Arc<Peer>,
    connector: Connector,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("program", &self.peer.program)
            .field("id", &self.peer.id)
            .finish()
    }
}

impl Connection {
    /// Reads what is there; 0 is the end of what the program sends. Wakes the context's task when there may be more.
    ///
    /// # Errors
    /// `ConnectionRefused`, `ConnectionReset`.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut done = 0;
        loop {
            let rest = &mut buf[done..];
            let copied = self.poll_consume(context, |bytes| {
                let count = bytes.len().min(rest.len());
                rest[..count].copy_from_slice(&bytes[..count]);
                Ok(count)
            });
            match copied {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(done)),
                // The buffer of a connection lies in two pieces at most.
                Poll::Ready(Ok(count)) => done += count,
                Poll::Ready(Err(_)) | Poll::Pending if done > 0 => return Poll::Ready(Ok(done)),
                other => return other,
            }
            if done == buf.len() {
                return Poll::Ready(Ok(done));
            }
        }
    }

    /// Gives the next bytes to `consume`, which says how many of them it took: to write them elsewhere without a copy. An empty
    /// piece is the end.
    ///
    /// # Errors
    /// As [`poll_read`](Self::poll_read), and what `consume` says.
    pub fn poll_consume(
        &mut self,
        context: &mut Context<'_>,
        consume: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.peer.state();
        let Some(bytes) = state.stream.peek()? else {
            register(&mut state.reader, context);
            return Poll::Pending;
        };
        let count = consume(bytes)?;
        if let Some(limit) = state.stream.consume(count)
            && !state.guest_done
            && self.peer.sender.post(self.peer.header(Kind::SocketCredit).arg(limit), &[]).is_ok()
        {
            self.peer.sender.kick();
        }
        Poll::Ready(Ok(count))
    }

    /// Sends the front of `buf`; how many bytes. Pending is backpressure: the program does not read, or the ring is full.
    ///
    /// # Errors
    /// `BrokenPipe` if the program reads no more or this half was shut down, `ConnectionRefused`, `ConnectionReset`.
    pub fn poll_write(&mut self, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.poll_write_quietly(context, buf);
        if matches!(written, Poll::Ready(Ok(_))) {
            self.peer.sender.kick();
        }
        written
    }

    /// The same, but the guest is not woken for it before [`kick`](Self::kick): for who writes to many connections in turn.
    ///
    /// # Errors
    /// As [`poll_write`](Self::poll_write).
    pub fn poll_write_quietly(&mut self, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.peer.state();
        let mut done = 0;
        loop {
            let room = match state.stream.room() {
                Ok(room) => room.unwrap_or(0).min(buf.len() - done),
                Err(error) if done == 0 => return Poll::Ready(Err(error)),
                Err(_) => 0,
            };
            if room == 0 && (done > 0 || buf.is_empty()) {
                return Poll::Ready(Ok(done));
            }
            if room == 0 {
                register(&mut state.writer, context);
                return Poll::Pending;
            }
            let header = self.peer.header(Kind::SocketData).arg(state.stream.out.offset());
            match self.peer.sender.try_post(header, &buf[done..done + room], context.waker()) {
                Ok(true) => state.stream.out.take(room),
                Ok(false) if done == 0 => return Poll::Pending,
                Ok(false) => return Poll::Ready(Ok(done)),
                Err(_) => return Poll::Ready(Err(ErrorKind::ConnectionReset.into())),
            };
            done += room;
        }
    }

    /// How many bytes can be written at once, as far as this connection's credit goes.
    ///
    /// # Errors
    /// As [`poll_write`](Self::poll_write).
    pub fn poll_write_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.peer.state();
        if let Some(room) = state.stream.room()? {
            return Poll::Ready(Ok(room));
        }
        register(&mut state.writer, context);
        Poll::Pending
    }

    /// Wakes the guest if it sleeps, for what was written quietly.
    pub fn kick(&self) {
        self.peer.sender.kick();
    }

    /// Nothing more is sent: the program reads its end.
    pub fn shutdown_write(&self) {
        let mut state = self.peer.state();
        if !state.host_done
            && !state.guest_done
            && let Some(end) = state.stream.out.end()
        {
            // If the CVM has ended nobody is to be told.
            let _ = self.peer.sender.post(self.peer.header(Kind::SocketEnd).arg(end), &[]);
            self.peer.sender.kick();
        }
    }

    /// Whether the program reads no more.
    pub fn is_deaf(&self) -> bool {
        self.peer.state().stream.is_deaf()
    }

    /// Whether the program has accepted it, or refused.
    pub fn is_accepted(&self) -> bool {
        self.peer.state().accepted
    }

    /// Byte offsets of both directions: sent to the program, and received from it and read.
    pub fn offsets(&self) -> (u64, u64) {
        let state = self.peer.state();
        (state.stream.out.offset(), state.stream.consumed())
    }

    /// Ends it with a reset: the program's calls fail.
    pub fn reset(self) {
        self.finish(true);
    }

    /// Says our last word.
    fn finish(&self, reset: bool) {
        let mut state = self.peer.state();
        state.reader = None;
        state.writer = None;
        if !std::mem::replace(&mut state.host_done, true) && self.peer.is_heard(&state) {
            let header = if reset || state.stream.readable() > 0 {
                self.peer.header(Kind::SocketReset)
            } else {
                self.peer.header(Kind::SocketClose).arg(state.stream.out.offset())
            };
            let _ = self.peer.sender.post(header, &[]);
            self.peer.sender.kick();
        }
        state.stream.forget_input();
        let finished = state.guest_done;
        drop(state);
        if finished {
            self.connector.connections.release(self.peer.program, self.peer.id);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.finish(false);
    }
}

fn register(place: &mut Option<Waker>, context: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(context.waker()),
        None => *place = Some(context.waker().clone()),
    }
}
