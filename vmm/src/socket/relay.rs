//! Relays TCP streams to connections on the thread that reads the guest's rings: what a client sends goes from its socket to
//! the ring in that thread, and what the program answers from the ring to the socket. No other thread is woken for it.
//!
//! A tiny executor over [`Connection`]: each stream has a waker that puts it on the list of those to look at. Sockets
//! are watched edge-triggered, so that a request costs one `read` and one `write`, and one `epoll_wait` for as many as are
//! ready; the guest is woken once for all of them.

use super::{ConnectError, Connection, Connector, linger};
use nacre_abi::socket::MAX_DATA;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Reads of one socket before another one's turn.
const READS_PER_TURN: usize = 4;
/// The doorbell among the sockets.
const DOORBELL: u64 = u64::MAX;

/// What other threads give the relay.
#[derive(Default)]
struct Shared {
    /// Streams to take in.
    new: Vec<(TcpStream, Connection)>,
    /// Streams to look at.
    ready: Vec<u64>,
    /// Nobody looks any more.
    closed: bool,
}

/// Hands streams to a CVM's relay.
pub struct Intake {
    shared: Mutex<Shared>,
    doorbell: Arc<EventFd>,
}

impl Intake {
    /// The intake of the relay whose thread waits for `doorbell`.
    pub fn new(doorbell: Arc<EventFd>) -> Intake {
        Intake { shared: Mutex::default(), doorbell }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is relayed any more: drops what waits.
    fn close(&self) {
        let old = std::mem::replace(&mut *self.shared(), Shared { closed: true, ..Shared::default() });
        drop(old);
    }
}

/// Why a stream is not relayed.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// There is no connection for it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The kernel does not do what is asked of the stream.
    #[error("the client's socket can't be used: {0}")]
    Socket(#[from] io::Error),
}

/// A stream that is not relayed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotRelayed {
    /// It, as it was given.
    pub stream: TcpStream,
    /// Why.
    #[source]
    pub error: RelayError,
}

impl Connector {
    /// Connects a client's stream to the program: from here on bytes, ends and resets of each side reach the other, until both
    /// have ended.
    ///
    /// # Errors
    /// [`NotRelayed`], with the stream.
    pub fn relay(&self, stream: TcpStream, peer: SocketAddr) -> Result<(), NotRelayed> {
        let prepared = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
        let connected = prepared.map_err(RelayError::from).and_then(|()| Ok(self.connect(peer)?));
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => return Err(NotRelayed { stream, error }),
        };
        let mut shared = self.intake.shared();
        if shared.closed {
            drop(shared);
            return Err(NotRelayed { stream, error: ConnectError::Ended.into() });
        }
        shared.new.push((stream, connection));
        drop(shared);
        // It fails only if so much was rung before that the relay looks anyway.
        let _ = self.intake.doorbell.write(1);
        Ok(())
    }
}

/// Puts one stream on the list.
struct StreamWaker {
    key: u64,
    queued: AtomicBool,
    intake: Arc<Intake>,
    /// The relay's thread: it looks at the list before it sleeps.
    thread: std::thread::ThreadId,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.intake.shared().ready.push(self.key);
            if std::thread::current().id() != self.thread {
                let _ = self.intake.doorbell.write(1);
            }
        }
    }
}

/// One client.
struct Client {
    stream: TcpStream,
    connection: Connection,
    mark: Arc<StreamWaker>,
    waker: Waker,
    /// The socket may have something to read; may take something.
    readable: bool,
    writable: bool,
    /// The client has ended its half or is gone: reads go on to the end.
    hung_up: bool,
    /// What was read and found no room on the ring, from the offset on.
    rest: Vec<u8>,
    rest_at: usize,
    /// The client's half, and the program's, have been ended on the other side.
    client_ended: bool,
    program_ended: bool,
}

/// What becomes of a client.
#[derive(PartialEq, Eq)]
enum Fate {
    Stays,
    /// More to do, after the others.
    Again,
    /// Both halves have ended.
    Over,
    /// One side failed: the other learns that.
    Failed,
}

/// The streams of one CVM.
pub struct Relay {
    epoll: Epoll,
    intake: Arc<Intake>,
    clients: HashMap<u64, Client>,
    next: u64,
    buffer: Vec<u8>,
    events: Vec<EpollEvent>,
    /// Streams that have more to do.
    again: Vec<u64>,
}

impl Relay {
    /// A relay whose thread this is.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn new(intake: Arc<Intake>) -> io::Result<Relay> {
        let epoll = Epoll::new()?;
        let watch = EpollEvent::new(EventSet::IN, DOORBELL);
        epoll.ctl(ControlOperation::Add, intake.doorbell.as_raw_fd(), watch)?;
        Ok(Relay {
            epoll,
            intake,
            clients: HashMap::new(),
            next: 0,
            buffer: vec![0; MAX_DATA],
            events: vec![EpollEvent::default(); EVENTS],
            again: Vec::new(),
        })
    }

    /// Whether there are any streams.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Waits for the doorbell or a socket; at most so many milliseconds, or for ever (-1). Whether the doorbell rang.
    pub fn wait(&mut self, timeout_ms: i32) -> bool {
        let count = self.epoll.wait(timeout_ms, &mut self.events).unwrap_or(0);
        let mut rung = false;
        for event in &self.events[..count] {
            if event.data() == DOORBELL {
                // It is readable, and nobody else reads it.
                let _ = self.intake.doorbell.read();
                rung = true;
            } else if let Some(client) = self.clients.get_mut(&event.data()) {
                let set = event.event_set();
                let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
                client.hung_up |= set.intersects(gone);
                client.readable |= set.intersects(EventSet::IN | gone);
                client.writable |= set.intersects(EventSet::OUT | gone);
                if !client.mark.queued.swap(true, Ordering::SeqCst) {
                    self.again.push(event.data());
                }
            }
        }
        rung
    }

    /// Moves what can be moved; whether anything is left to do. The guest is to be woken afterwards.
    pub fn turn(&mut self) -> bool {
        let (new, ready) = {
            let mut shared = self.intake.shared();
            (std::mem::take(&mut shared.new), std::mem::take(&mut shared.ready))
        };
        let mut work = std::mem::take(&mut self.again);
        work.extend(ready);
        work.extend(new.into_iter().filter_map(|(stream, connection)| self.take_in(stream, connection)));
        for key in work {
            let Some(client) = self.clients.get_mut(&key) else { continue };
            client.mark.queued.store(false, Ordering::SeqCst);
            match client.pump(&mut self.buffer) {
                Fate::Stays => {}
                Fate::Again => {
                    if !client.mark.queued.swap(true, Ordering::SeqCst) {
                        self.again.push(key);
                    }
                }
                fate => {
                    let client = self.clients.remove(&key);
                    client.into_iter().for_each(|client| client.finish(&fate));
                }
            }
        }
        !self.again.is_empty() || !self.intake.shared().ready.is_empty()
    }

    fn take_in(&mut self, stream: TcpStream, connection: Connection) -> Option<u64> {
        let key = self.next;
        let watch = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        // If the kernel does not watch it, the drop of both tells both sides.
        self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(watch, key)).ok()?;
        self.next += 1;
        let thread = std::thread::current().id();
        let mark =
            Arc::new(StreamWaker { key, queued: AtomicBool::new(true), intake: self.intake.clone(), thread });
        let client = Client {
            stream,
            connection,
            waker: Waker::from(mark.clone()),
            mark,
            readable: true,
            writable: true,
            hung_up: false,
            rest: Vec::new(),
            rest_at: 0,
            client_ended: false,
            program_ended: false,
        };
        self.clients.insert(key, client);
        Some(key)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.intake.close();
    }
}

impl Client {
    /// Moves what can be moved, both ways.
    fn pump(&mut self, buffer: &mut [u8]) -> Fate {
        let fate = match (self.answer(), self.request(buffer)) {
            (Ok(()), Ok(more)) => {
                if more {
                    Fate::Again
                } else {
                    Fate::Stays
                }
            }
            _ => return Fate::Failed,
        };
        // Who has ended its half and reads no more, as a program that closed, is over for its client too.
        let over = self.program_ended && (self.client_ended || self.connection.is_deaf());
        if over { Fate::Over } else { fate }
    }

    /// From the program to the client.
    fn answer(&mut self) -> io::Result<()> {
        let mut context = Context::from_waker(&self.waker);
        while self.writable && !self.program_ended {
            let (stream, mut full, mut end) = (&mut self.stream, false, false);
            let moved = self.connection.poll_consume(&mut context, |bytes| {
                end = bytes.is_empty();
                match stream.write(bytes) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        full = true;
                        Ok(0)
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
                    other => other,
                }
            });
            match moved {
                Poll::Pending => break,
                Poll::Ready(result) => result.map(|_| ())?,
            }
            self.writable = !full;
            if end {
                self.program_ended = true;
                // A client that is gone already is seen by the next read.
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
        Ok(())
    }

    /// From the client to the program; whether there is more for a later turn.
    fn request(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut context = Context::from_waker(&self.waker);
        for _ in 0..READS_PER_TURN {
            while self.rest_at < self.rest.len() {
                match self.connection.poll_write_quietly(&mut context, &self.rest[self.rest_at..]) {
                    Poll::Ready(count) => self.rest_at += count?,
                    Poll::Pending => return Ok(false),
                }
            }
            if self.client_ended || !self.readable {
                return Ok(false);
            }
            let room = match self.connection.poll_write_room(&mut context) {
                Poll::Ready(Ok(room)) => room.min(buffer.len()),
                // The program reads no more. What it says may still be on its way.
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(false),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            };
            let count = match self.stream.read(&mut buffer[..room]) {
                Ok(0) => {
                    self.client_ended = true;
                    self.connection.shutdown_write();
                    return Ok(false);
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // What is less than was asked for is all there is, unless the end came with it: no second read to see that.
            self.readable = count == room || self.hung_up;
            let mut done = 0;
            while done < count {
                match self.connection.poll_write_quietly(&mut context, &buffer[done..count]) {
                    Poll::Ready(written) => done += written?,
                    Poll::Pending => break,
                }
            }
            if done < count {
                self.rest.clear();
                self.rest.extend_from_slice(&buffer[done..count]);
                self.rest_at = 0;
                return Ok(false);
            }
        }
        Ok(self.readable)
    }

    fn finish(self, fate: &Fate) {
        if *fate == Fate::Failed {
            // The client gets a reset as the program does, not an end that looks orderly.
            linger::reset_on_close(&self.stream);
            self.connection.reset();
        }
    }
}
