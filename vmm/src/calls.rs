//! Modules, which are loaded once, and calls of them.
//!
//! ```text
//! load_module -> Module        call -> CallHandle      CallDone -> `done`, on the thread that reads the rings
//!      | ModuleCreate ...           | CallStart             |
//!      v                            v                       |
//!                         guest: vCPU 0 -> worker ----------+
//! ```
//! A call never waits for the guest: its request goes on the ring, or waits for room in a queue of bounded length. What the
//! guest says about a call is checked against what the call allowed; an answer that does not fit ends the call with an
//! error. The number of a call is used again only after its answer.

mod distant;
mod modules;

pub use modules::{MAX_POSTED_CODE_BYTES, Module};

use crate::cvm::Cvm;
use crate::events::Exit;
use crate::link::{SendError, Sender};
use crate::program::RunOptions;
use crate::tunnel::origin::Origin;
use modules::Loading;
use nacre_abi::attest::SESSIONS;
use nacre_abi::call::{
    AnswerHead, HEAD_BYTES, MAX_OUTPUT_BYTES, MAX_REQUEST_BYTES, MAX_TEXTS, PIECE_BYTES, RequestHead,
    UNLIMITED,
};
use nacre_abi::message::{ExitKind, Header, Kind, stream};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One call of a module's `_start`.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    /// Arguments, `argv[0]` first.
    pub args: &'a [&'a str],
    /// Environment.
    pub env: &'a [(&'a str, &'a str)],
    /// All of its standard input.
    pub stdin: &'a [u8],
    /// Time limits and class.
    pub options: RunOptions,
    /// How many bytes its linear memories and tables may have.
    pub memory_limit: Option<u64>,
    /// How many bytes are kept of standard output, and as many of standard error; what is beyond is dropped.
    pub max_output: usize,
}

/// How a call went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallResult {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// More was written to standard output than was kept.
    pub stdout_cut: bool,
    /// The same of standard error.
    pub stderr_cut: bool,
    /// CPU time, by the guest's clock as all times here.
    pub cpu: Duration,
    /// From its arrival in the guest to its start.
    pub queued: Duration,
    /// From its start to its end.
    pub ran: Duration,
    /// It was the first one in its memory.
    pub cold: bool,
}

impl CallResult {
    fn failed(text: &str) -> CallResult {
        CallResult {
            exit: Exit::Error(text.into()),
            stdout: Vec::new(),
            stderr: Vec::new(),
            stdout_cut: false,
            stderr_cut: false,
            cpu: Duration::ZERO,
            queued: Duration::ZERO,
            ran: Duration::ZERO,
            cold: false,
        }
    }
}

/// Why a call was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// As many calls are on their way as the CVM can have, or the guest is behind with reading: make it again when one has
    /// ended.
    #[error("the CVM has as many calls as it can take; make it again when one has ended")]
    Busy,
    /// The CVM has ended, or the tenant has moved to another one.
    #[error("the CVM has ended")]
    Ended,
    /// The request is longer than any can be.
    #[error(
        "a request of {bytes} bytes is too long; {MAX_REQUEST_BYTES} is the limit for arguments, environment and input"
    )]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// More arguments and variables than a call can have.
    #[error("{count} arguments and variables are too many; {MAX_TEXTS} is the limit")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// What is done with a result.
type Done = Box<dyn FnOnce(CallResult) + Send>;

/// A call that was made.
#[derive(Clone)]
pub struct CallHandle {
    sender: Arc<Sender>,
    calls: Arc<Calls>,
    place: Place,
}

impl CallHandle {
    /// Ends the call at its next safe point; its result comes all the same. Nothing if it has ended.
    pub fn cancel(&self) {
        let mut state = self.calls.state();
        // Else the number is another's by now. Once: the guest need not be told again.
        if let Some(waiting) = state.waiting.get_mut(self.place.index as usize).and_then(Option::as_mut)
            && waiting.generation == self.place.generation
            && !std::mem::replace(&mut waiting.cancelled, true)
        {
            // While the number is ours: the message cannot hit a later call with it.
            let _ = self.sender.post([(Header::new(Kind::CallCancel, self.place.index), &[][..])], true);
        }
    }
}

/// Names a call: its number in the guest, and which of those that had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u32,
    generation: u64,
}

/// A call whose result is not there yet.
struct Waiting {
    generation: u64,
    cancelled: bool,
    max_output: usize,
    /// Output that came in pieces.
    outputs: [Pieces; 2],
    /// The answer, if it has overtaken some of them: the call's task changed its vCPU, and with it the ring.
    answer: Option<Vec<u8>>,
    done: Done,
}

/// Output that comes in pieces, which may overtake each other.
#[derive(Default)]
struct Pieces {
    bytes: Vec<u8>,
    /// Which have come.
    come: Vec<bool>,
    /// Something came that cannot be.
    wrong: bool,
}

impl Pieces {
    fn put(&mut self, offset: u64, piece: &[u8], limit: usize) {
        let end = offset.saturating_add(piece.len() as u64);
        let number = offset / PIECE_BYTES as u64;
        let fits = offset.is_multiple_of(PIECE_BYTES as u64)
            && (1..=PIECE_BYTES).contains(&piece.len())
            && end <= limit as u64;
        let number = number as usize;
        if !fits || self.come.get(number).copied().unwrap_or(false) {
            self.wrong = true;
            return;
        }
        self.bytes.resize(self.bytes.len().max(end as usize), 0);
        self.come.resize(self.come.len().max(number + 1), false);
        self.bytes[offset as usize..end as usize].copy_from_slice(piece);
        self.come[number] = true;
    }

    /// Whether all of the `len` bytes have come; `None` if they never will.
    fn is_whole(&self, len: u64) -> Option<bool> {
        let pieces = len.div_ceil(PIECE_BYTES as u64) as usize;
        let possible = !self.wrong && self.bytes.len() as u64 <= len;
        possible.then(|| self.come.len() == pieces && self.come.iter().all(|come| *come))
    }

    /// All of it, if `len` bytes have come.
    fn take(self, len: u64) -> Option<Vec<u8>> {
        (self.is_whole(len)? && self.bytes.len() as u64 == len).then_some(self.bytes)
    }
}

/// The calls and modules of a CVM that wait for an answer.
pub struct Calls {
    state: Mutex<State>,
    in_flight: AtomicUsize,
    max_calls: usize,
}

#[derive(Default)]
struct State {
    /// Calls by number.
    waiting: Vec<Option<Waiting>>,
    free: Vec<u32>,
    generation: u64,
    /// Modules that are being loaded.
    loading: HashMap<u32, Loading>,
    modules: u32,
    /// Modules that have handles.
    present: HashSet<u32>,
    /// Numbers of calls that are other hosts'.
    distant: HashMap<u32, Arc<Origin>>,
    /// The same of modules that are being loaded, or might be: origins that have any.
    origins: Vec<Arc<Origin>>,
    /// The tenant moves, or has moved: no call begins.
    moving: bool,
    closed: bool,
}

impl Calls {
    /// The calls of a CVM that can have so many tasks; some are left for others.
    pub fn new(max_tasks: u32) -> Calls {
        Calls {
            state: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            max_calls: max_tasks as usize / 8 * 7,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a call.
    fn enter(&self, max_output: usize, done: Done) -> Result<Place, CallError> {
        let mut state = self.state();
        if state.closed {
            return Err(CallError::Ended);
        }
        if state.moving {
            return Err(CallError::Busy);
        }
        let index = match state.free.pop() {
            Some(index) => index,
            None if state.waiting.len() < self.max_calls => {
                state.waiting.push(None);
                state.waiting.len() as u32 - 1
            }
            None => return Err(CallError::Busy),
        };
        state.generation += 1;
        let generation = state.generation;
        let outputs = Default::default();
        state.waiting[index as usize] =
            Some(Waiting { generation, cancelled: false, max_output, outputs, answer: None, done });
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Place { index, generation })
    }

    fn leave(&self, index: u32) -> Option<Waiting> {
        let mut state = self.state();
        let waiting = state.waiting.get_mut(index as usize)?.take()?;
        state.free.push(index);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        Some(waiting)
    }

    /// Whether a result is not there yet.
    pub fn any_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) != 0
    }

    /// Calls whose results are not there yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Enters a call with so much room for each output, and returns its number: what [`Cvm::call`] does, without a guest.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn expect(
        &self,
        max_output: usize,
        done: impl FnOnce(CallResult) + Send + 'static,
    ) -> Result<u32, CallError> {
        self.enter(max_output, Box::new(done)).map(|place| place.index)
    }

    /// Takes a message that concerns calls or modules; false if it is somebody else's.
    pub fn deliver(&self, header: Header, body: &[u8]) -> bool {
        match header.kind {
            Kind::CallDone | Kind::CallOutput => {
                let mut state = self.state();
                if !state.distant.is_empty()
                    && let Some(origin) = state.distant.get(&header.program).cloned()
                {
                    drop(state);
                    origin.tell(header, body);
                    return true;
                }
                let waiting = state.waiting.get_mut(header.program as usize).and_then(Option::as_mut);
                let ended = waiting.is_some_and(|waiting| waiting.hear(header, body));
                drop(state);
                if ended && let Some(waiting) = self.leave(header.program) {
                    let (result, done) = waiting.answered();
                    done(result);
                }
            }
            Kind::ModuleLoaded => {
                let mut state = self.state();
                let of_origin =
                    state.origins.iter().find(|origin| origin.has_module(header.program)).cloned();
                let loading = state.loading.remove(&header.program);
                drop(state);
                if let Some(origin) = of_origin {
                    origin.tell(header, body);
                    return true;
                }
                let Some(Loading { refused, waiter }) = loading else { return true };
                match ExitKind::from_number(header.stream) {
                    Some(ExitKind::Code) => {}
                    kind => drop(refused.set(Exit::new(kind, 0, body))),
                }
                if let Some(waiter) = waiter {
                    // One that gave up is not interested.
                    let _ = waiter.send(());
                }
            }
            _ => return false,
        }
        true
    }

    /// The CVM has ended: tells everybody who waits.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.distant.clear();
        state.origins.clear();
        state.loading.clear();
        let waiting = std::mem::take(&mut state.waiting);
        self.in_flight.store(0, Ordering::Relaxed);
        drop(state);
        for call in waiting.into_iter().flatten() {
            (call.done)(CallResult::failed("the CVM ended before the call did"));
        }
    }
}

impl Waiting {
    /// Takes a message; true once nothing more is to come.
    fn hear(&mut self, header: Header, body: &[u8]) -> bool {
        if header.kind == Kind::CallDone {
            // A second one changes nothing.
            self.answer.get_or_insert_with(|| body.to_vec());
        } else {
            let number = header.stream.checked_sub(stream::STDOUT).unwrap_or(u32::MAX) as usize;
            if let Some(pieces) = self.outputs.get_mut(number) {
                pieces.put(header.arg, body, self.max_output);
            }
        }
        let Some(answer) = &self.answer else { return false };
        let Some(head) = AnswerHead::decode(answer, answer.len()).filter(|head| head.in_pieces) else {
            return true;
        };
        let [out, err] = &self.outputs;
        let whole = [out.is_whole(head.stdout_bytes), err.is_whole(head.stderr_bytes)];
        let too_long = head.stdout_bytes.max(head.stderr_bytes) > self.max_output as u64;
        // What can't be right is not waited for.
        too_long || whole.contains(&None) || whole == [Some(true); 2]
    }

    /// The result that the answer means, and what is done with it.
    fn answered(self) -> (CallResult, Done) {
        let done = self.done;
        let result = decode_answer(&self.answer.unwrap_or_default(), self.max_output, self.outputs);
        (result.unwrap_or_else(|| CallResult::failed("the guest's answer makes no sense")), done)
    }
}

/// Reads an answer; `None` if it is none, or exceeds what the call allowed.
fn decode_answer(body: &[u8], max_output: usize, outputs: [Pieces; 2]) -> Option<CallResult> {
    let head = AnswerHead::decode(body, body.len())?;
    if head.stdout_bytes.max(head.stderr_bytes) > max_output as u64 {
        return None;
    }
    let (text, rest) = body[HEAD_BYTES..].split_at_checked(head.text_bytes as usize)?;
    let [out, err] = outputs;
    let (stdout, stderr) = if head.in_pieces {
        (out.take(head.stdout_bytes)?, err.take(head.stderr_bytes)?)
    } else {
        let (out, err) = rest.split_at_checked(head.stdout_bytes as usize)?;
        (out.to_vec(), err.to_vec())
    };
    Some(CallResult {
        exit: Exit::new(Some(head.kind), head.code, text),
        stdout,
        stderr,
        stdout_cut: head.stdout_cut,
        stderr_cut: head.stderr_cut,
        cpu: Duration::from_nanos(head.cpu_ns),
        queued: Duration::from_nanos(head.queued_ns),
        ran: Duration::from_nanos(head.ran_ns),
        cold: head.cold,
    })
}

/// A limit in nanoseconds.
fn limit_ns(limit: Option<Duration>) -> u64 {
    limit.map_or(UNLIMITED, |limit| u64::try_from(limit.as_nanos()).unwrap_or(UNLIMITED))
}

impl Call<'_> {
    /// The request in bytes.
    fn encode(&self) -> Result<Vec<u8>, CallError> {
        let count = self.args.len() + self.env.len();
        if count > MAX_TEXTS as usize {
            return Err(CallError::TooMany { count });
        }
        let args: usize = self.args.iter().map(|arg| 4 + arg.len()).sum();
        let vars: usize = self.env.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
        let bytes = HEAD_BYTES as u64 + args as u64 + vars as u64 + self.stdin.len() as u64;
        if bytes > MAX_REQUEST_BYTES {
            return Err(CallError::TooLong { bytes });
        }
        let head = RequestHead {
            wall_limit_ns: limit_ns(self.options.wall_limit),
            cpu_limit_ns: limit_ns(self.options.cpu_limit),
            memory_limit_bytes: self.memory_limit.unwrap_or(UNLIMITED),
            max_output_bytes: self.max_output() as u64,
            priority: self.options.priority as u32,
            args: self.args.len() as u32,
            vars: self.env.len() as u32,
            texts_bytes: (args + vars) as u32,
            stdin_bytes: self.stdin.len() as u64,
        };
        let mut request = Vec::with_capacity(bytes as usize);
        request.extend_from_slice(&head.encode());
        for arg in self.args {
            request.extend_from_slice(&(arg.len() as u32).to_le_bytes());
            request.extend_from_slice(arg.as_bytes());
        }
        for (name, value) in self.env {
            request.extend_from_slice(&((name.len() + 1 + value.len()) as u32).to_le_bytes());
            for part in [name.as_bytes(), b"=", value.as_bytes()] {
                request.extend_from_slice(part);
            }
        }
        request.extend_from_slice(self.stdin);
        Ok(request)
    }

    /// What is kept of each output at most.
    fn max_output(&self) -> usize {
        self.max_output.min(MAX_OUTPUT_BYTES as usize)
    }
}

/// The messages that bring a request.
fn messages(call: u32, module: u32, request: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    (0..).step_by(Sender::MAX_BODY).zip(request.chunks(Sender::MAX_BODY)).map(move |(offset, piece)| {
        let header = match offset {
            0 => Header::new(Kind::CallStart, call).stream(module).arg(request.len() as u64),
            offset => Header::new(Kind::CallData, call).arg(offset),
        };
        (header, piece)
    })
}

impl Cvm {
    /// Queues one call of the module's `_start` in a fresh instance; never waits for the guest. `done` is called once, with the
    /// result, on the thread that reads this CVM's rings, and must not wait for anything.
    ///
    /// # Errors
    /// [`CallError`]; `done` is not called then.
    pub fn call(
        &self,
        module: &Module,
        call: Call<'_>,
        done: impl FnOnce(CallResult) + Send + 'static,
    ) -> Result<CallHandle, CallError> {
        self.call_number(module.number(), &call, Box::new(done))
    }

    /// Hands a record of a session to the guest, as the input of a call whose limits hold for what the record asks for. Its answer is
    /// standard output: another record, whether the guest took this one or not.
    ///
    /// # Errors
    /// [`CallError`]; `done` is not called then.
    pub fn record(
        &self,
        call: &Call<'_>,
        done: impl FnOnce(CallResult) + Send + 'static,
    ) -> Result<CallHandle, CallError> {
        self.call_number(SESSIONS, call, Box::new(done))
    }

    fn call_number(&self, module: u32, call: &Call<'_>, done: Done) -> Result<CallHandle, CallError> {
        let request = call.encode()?;
        let place = self.calls().enter(call.max_output(), done)?;
        let sender = self.sender();
        if let Err(error) = sender.post(messages(place.index, module, &request), false) {
            // If it is not there any more the CVM has ended, and `done` was told so.
            if self.calls().leave(place.index).is_some() {
                return Err(match error {
                    SendError::Full => CallError::Busy,
                    SendError::Ended | SendError::Moved => CallError::Ended,
                    SendError::TooLong(bytes) => CallError::TooLong { bytes: bytes as u64 },
                });
            }
        }
        Ok(CallHandle { sender, calls: self.calls().clone(), place })
    }

    /// Calls whose results are not there yet.
    pub fn calls_in_flight(&self) -> usize {
        self.calls().in_flight()
    }
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
