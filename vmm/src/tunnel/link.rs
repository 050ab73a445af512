//! [`Link`]: one end of the way between an origin and the host that has its guest. It keeps what the other end has not acknowledged, so
//! that the byte stream below may break and be replaced at any time. Two threads per stream: one reads, one writes.
//!
//! Who sends waits for nothing: [`Outlet::try_post`] says when there is no room, and what nobody can wait for is bounded by
//! [`MAX_QUEUED_BYTES`], beyond which the link is over. What comes is handed to a [`Taker`], and acknowledged once that has it.

use super::OriginId;
use super::frame::{self, Frame, MAX_FRAME_BYTES, Malformed};
use crate::link::SendError;
use crate::socket::Outlet;
use nacre_abi::message::Header;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::Thread;

/// Bytes that are not acknowledged before [`Outlet::try_post`] finds no room.
pub const WINDOW_BYTES: usize = 4 << 20;
/// Bytes that are not acknowledged before the link is given up: the other end is gone, or a guest sends faster than it may.
pub const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Bytes written to the stream at once, about.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes read from it at once.
const READ_BYTES: usize = 64 << 10;

/// Takes what comes over a link.
pub trait Taker: Send + Sync {
    /// Takes a message, or has `waker` woken when it may have room. What makes no sense is taken and dropped.
    fn take(&self, header: Header, body: &[u8], waker: &Waker) -> bool;
    /// Nothing more comes for now.
    fn pause(&self);
}

/// Why a link carries nothing now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// The stream ended or failed: attach another one.
    #[error("the connection between the hosts broke: {0}")]
    Stream(String),
    /// The other end can't be the one of this link: nothing will ever go over it.
    #[error("the two ends of the tunnel do not fit: one of them has forgotten what it had")]
    OutOfStep,
    /// More waits than may: nothing will ever go over it.
    #[error("the other end of the tunnel takes nothing: {MAX_QUEUED_BYTES} bytes wait for it")]
    Overrun,
}

impl Break {
    /// Whether another stream would not help.
    pub fn is_final(&self) -> bool {
        !matches!(self, Break::Stream(_))
    }
}

/// A message that waits.
pub type Message = (Header, Vec<u8>);

/// What goes on elsewhere when one end of a link moves to another host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// The number of the message that is wanted next.
    pub next_in: u64,
    /// The number of the first of `unacknowledged`.
    pub first_out: u64,
    /// What was sent and not acknowledged.
    pub unacknowledged: Vec<Message>,
}

/// What goes out. No I/O.
#[derive(Default)]
struct Outgoing {
    /// Frames that were not acknowledged, the first with number `first`.
    frames: VecDeque<Vec<u8>>,
    first: u64,
    bytes: usize,
    /// The next one to be written to the stream there is now.
    unwritten: u64,
}

impl Outgoing {
    fn push(&mut self, header: Header, body: &[u8]) {
        let frame = frame::message(self.first + self.frames.len() as u64, header, body);
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// All before `number` was taken; false if that cannot be.
    fn acknowledge(&mut self, number: u64) -> bool {
        if number > self.end() {
            return false;
        }
        while self.first < number {
            let Some(frame) = self.frames.pop_front() else { break };
            self.bytes -= frame.len();
            self.first += 1;
        }
        self.unwritten = self.unwritten.max(self.first);
        true
    }

    /// The other end wants this one next, on a new stream; false if it is not there any more, or not yet.
    fn go_on_from(&mut self, number: u64) -> bool {
        let fits = number >= self.first && self.acknowledge(number);
        self.unwritten = number;
        fits
    }

    /// Appends what is to be written next to `buffer`.
    fn write_to(&mut self, buffer: &mut Vec<u8>, acknowledged: u64) {
        let skip = (self.unwritten - self.first) as usize;
        for frame in self.frames.iter().skip(skip) {
            if buffer.len() > WRITE_BYTES {
                break;
            }
            let at = buffer.len();
            buffer.extend_from_slice(frame);
            frame::stamp(&mut buffer[at..], acknowledged);
            self.unwritten += 1;
        }
    }
}

struct State {
    out: Outgoing,
    stream: Option<UnixStream>,
    /// Which of the streams it had.
    generation: u64,
    /// The other end has said Hello.
    greeted: bool,
    wakers: Vec<Waker>,
    over: bool,
}

/// What comes in. Held while a message is handed over.
struct Incoming {
    next: u64,
    generation: u64,
    /// Nothing is taken for now.
    frozen: bool,
}

/// Who is told of breaks; must not wait for anything.
pub type OnBreak = Box<dyn Fn(Break) + Send + Sync>;

/// One end.
pub struct Link {
    origin: OriginId,
    incoming: Mutex<Incoming>,
    /// `incoming.next`, for the writer.
    taken: AtomicU64,
    state: Mutex<State>,
    /// There is something to write, or another stream.
    changed: Condvar,
    taker: Arc<dyn Taker>,
    on_break: Mutex<Option<Arc<OnBreak>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// An end that goes on from `from`; `taker` takes what comes.
    pub fn new(origin: OriginId, from: &LinkState, taker: Arc<dyn Taker>) -> Arc<Link> {
        let mut out = Outgoing { first: from.first_out, unwritten: from.first_out, ..Outgoing::default() };
        from.unacknowledged.iter().for_each(|(header, body)| out.push(*header, body));
        let state =
            State { out, stream: None, generation: 0, greeted: false, wakers: Vec::new(), over: false };
        Arc::new(Link {
            origin,
            incoming: Mutex::new(Incoming { next: from.next_in, generation: 0, frozen: false }),
            taken: AtomicU64::new(from.next_in),
            state: Mutex::new(state),
            changed: Condvar::new(),
            taker,
            on_break: Mutex::default(),
        })
    }

    /// Goes on over `stream`, whose other end is the other end of this link, instead of the one there may have been.
    ///
    /// `on_break` is told of its break, from a thread of the link's or from one that sends.
    ///
    /// # Errors
    /// The kernel's, if it gives no descriptors or threads; or the link is over.
    pub fn attach(self: &Arc<Link>, stream: UnixStream, on_break: OnBreak) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        let (reads, writes) = (stream.try_clone()?, stream.try_clone()?);
        let (generation, next) = {
            let mut incoming = lock(&self.incoming);
            incoming.generation += 1;
            let mut state = lock(&self.state);
            if state.over {
                return Err(io::Error::other("the link is over"));
            }
            state.generation = incoming.generation;
            state.greeted = false;
            *lock(&self.on_break) = Some(Arc::new(on_break));
            if let Some(old) = state.stream.replace(stream) {
                let _ = old.shutdown(Shutdown::Both);
            }
            (incoming.generation, incoming.next)
        };
        self.changed.notify_all();
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(body).map(|_| ())
        };
        let (reader, writer) = (self.clone(), self.clone());
        let hello = frame::hello(self.origin, next);
        spawn("tunnel-out", Box::new(move || writer.write_all(&writes, generation, hello)))?;
        spawn("tunnel-in", Box::new(move || reader.read_all(&reads, generation)))
    }

    /// How many streams it has had.
    pub fn streams(&self) -> u64 {
        lock(&self.state).generation
    }

    /// Nothing more comes or goes.
    pub fn close(&self) {
        self.stop_taking();
        self.end();
    }

    /// Nothing more is taken over the stream there is; the number of what would be next.
    pub fn stop_taking(&self) -> u64 {
        let mut incoming = lock(&self.incoming);
        incoming.generation += 1;
        incoming.next
    }

    /// Takes nothing, until it is told to again.
    pub fn freeze(&self, frozen: bool) {
        lock(&self.incoming).frozen = frozen;
    }

    fn end(&self) {
        let mut state = lock(&self.state);
        state.over = true;
        state.generation += 1;
        state.out = Outgoing::default();
        if let Some(stream) = state.stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How things are. They stay so while it is [frozen](Self::freeze) and nobody sends, but for what is acknowledged.
    pub fn export(&self) -> LinkState {
        let state = lock(&self.state);
        let message = |bytes: &Vec<u8>| match frame::decode(bytes) {
            Ok(Some((Frame::Message { header, body, .. }, _))) => Some((header, body.to_vec())),
            _ => None,
        };
        LinkState {
            next_in: self.taken.load(Ordering::SeqCst),
            first_out: state.out.first,
            unacknowledged: state.out.frames.iter().filter_map(message).collect(),
        }
    }

    /// Whether everything that was sent was taken.
    pub fn is_drained(&self) -> bool {
        lock(&self.state).out.frames.is_empty()
    }

    fn push(&self, state: &mut State, header: Header, body: &[u8]) -> Result<(), SendError> {
        if state.over {
            return Err(SendError::Ended);
        }
        state.out.push(header, body);
        self.changed.notify_one();
        Ok(())
    }

    fn write_all(&self, mut stream: &UnixStream, generation: u64, hello: Vec<u8>) {
        let mut buffer = hello;
        let mut told = 0;
        loop {
            if let Err(error) = stream.write_all(&buffer) {
                return self.broken(generation, Break::Stream(error.to_string()));
            }
            buffer.clear();
            let mut state = lock(&self.state);
            loop {
                if state.generation != generation {
                    return;
                }
                let taken = self.taken.load(Ordering::SeqCst);
                if state.greeted {
                    state.out.write_to(&mut buffer, taken);
                    if buffer.is_empty() && taken > told {
                        buffer = frame::ack(taken);
                    }
                }
                if !buffer.is_empty() {
                    told = taken;
                    break;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn read_all(&self, mut stream: &UnixStream, generation: u64) {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let mut piece = vec![0; READ_BYTES];
        loop {
            let count = match stream.read(&mut piece) {
                Ok(0) => return self.broken(generation, Break::Stream("it ended".into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.broken(generation, Break::Stream(error.to_string())),
            };
            buffer.extend_from_slice(&piece[..count]);
            match self.take_frames(&buffer, generation, &waker) {
                Ok(used) => drop(buffer.drain(..used)),
                Err(Some(why)) => return self.broken(generation, why),
                Err(None) => return,
            }
            debug_assert!(buffer.len() < MAX_FRAME_BYTES, "a frame that is complete was taken");
        }
    }

    /// Takes the complete frames of `bytes`; how many bytes they have. An error without a reason is another stream's beginning.
    fn take_frames(&self, bytes: &[u8], generation: u64, waker: &Waker) -> Result<usize, Option<Break>> {
        let mut used = 0;
        let malformed = |error: Malformed| Some(Break::Stream(error.to_string()));
        while let Some((frame, length)) = frame::decode(&bytes[used..]).map_err(malformed)? {
            match frame {
                Frame::Hello { origin, next } => self.greet(generation, origin, next)?,
                Frame::Ack(number) => self.acknowledged(generation, number)?,
                Frame::Message { number, acknowledged, header, body } => {
                    self.acknowledged(generation, acknowledged)?;
                    self.hand_over(generation, number, header, body, waker)?;
                }
            }
            used += length;
        }
        if used != 0 {
            self.taker.pause();
            // The writer looks at `taken` with the lock held: it does not miss this.
            drop(lock(&self.state));
            self.changed.notify_all();
        }
        Ok(used)
    }

    fn greet(&self, generation: u64, origin: OriginId, next: u64) -> Result<(), Option<Break>> {
        let mut state = lock(&self.state);
        match () {
            () if state.generation != generation => Err(None),
            () if origin != self.origin => Err(Some(Break::OutOfStep)),
            () if state.greeted => Err(Some(Break::Stream(Malformed.to_string()))),
            () if !state.out.go_on_from(next) => Err(Some(Break::OutOfStep)),
            () => {
                state.greeted = true;
                Ok(())
            }
        }
    }

    fn acknowledged(&self, generation: u64, number: u64) -> Result<(), Option<Break>> {
        let mut state = lock(&self.state);
        if state.generation != generation {
            return Err(None);
        }
        if !state.greeted {
            return Err(Some(Break::Stream(Malformed.to_string())));
        }
        if !state.out.acknowledge(number) {
            return Err(Some(Break::OutOfStep));
        }
        let room = state.out.bytes < WINDOW_BYTES;
        let wakers = if room { std::mem::take(&mut state.wakers) } else { Vec::new() };
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn hand_over(
        &self,
        generation: u64,
        number: u64,
        header: Header,
        body: &[u8],
        waker: &Waker,
    ) -> Result<(), Option<Break>> {
        loop {
            let mut incoming = lock(&self.incoming);
            if incoming.generation != generation {
                return Err(None);
            }
            if number != incoming.next {
                return Err(Some(Break::Stream(Malformed.to_string())));
            }
            if !incoming.frozen && self.taker.take(header, body, waker) {
                incoming.next += 1;
                self.taken.store(incoming.next, Ordering::SeqCst);
                return Ok(());
            }
            drop(incoming);
            self.taker.pause();
            // Woken by the waker.
            std::thread::park_timeout(RETRY);
        }
    }

    /// The stream is of no use any more, if it is the one there is.
    fn broken(&self, generation: u64, why: Break) {
        let mut state = lock(&self.state);
        if state.generation != generation || state.over {
            return;
        }
        // The other thread of this stream tells nothing.
        state.generation += 1;
        state.greeted = false;
        if let Some(stream) = state.stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.changed.notify_all();
        if why.is_final() {
            self.end();
        }
        let on_break = lock(&self.on_break).clone();
        on_break.into_iter().for_each(|on_break| on_break(why.clone()));
    }
}

/// How often a message that found no room is offered again though nobody woke its thread: the link may be frozen no more, or have
/// another stream.
const RETRY: std::time::Duration = std::time::Duration::from_millis(20);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Outlet for Link {
    fn try_post(&self, header: Header, body: &[u8], waker: &Waker) -> Result<bool, SendError> {
        let mut state = lock(&self.state);
        if state.out.bytes >= WINDOW_BYTES && !state.over {
            state.wakers.push(waker.clone());
            return Ok(false);
        }
        self.push(&mut state, header, body).map(|()| true)
    }

    fn post(&self, header: Header, body: &[u8]) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        self.push(&mut state, header, body)?;
        if state.out.bytes <= MAX_QUEUED_BYTES {
            return Ok(());
        }
        let told = state.generation;
        drop(state);
        self.broken(told, Break::Overrun);
        Err(SendError::Ended)
    }

    fn kick(&self) {}

    fn is_relayed(&self) -> bool {
        true
    }
}
