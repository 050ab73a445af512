//! Calls of modules: one message brings a call (longer requests come in pieces), one task runs it, one message tells how it
//! went. The vCPU that runs a call reports its end on its own ring.
//!
//! Requests are the host's to choose: how much of them is held is bounded, and each is decoded before anything is done.

use crate::arch::clock;
use crate::call_io::Capture;
use crate::children::Loaded;
use crate::memory;
use crate::modules::{self, Found};
use crate::normal::NormalCell;
use crate::program::Options;
use crate::sealed::sessions;
use crate::task::{self, Begin, Spec};
use crate::wasm::{self, Outcome};
use crate::{agent::agent_static, link, sched};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::attest::SESSIONS;
use nacre_abi::call::{
    AnswerHead, HEAD_BYTES, MAX_REQUEST_BYTES, MAX_TEXT_BYTES, PIECE_BYTES, RequestHead, Texts,
};
use nacre_abi::message::{ExitKind, Header, Kind, NO_PROGRAM, stream};
use nacre_abi::ring::Incoming;
use nacre_session::Responder;
use nacre_session::reply::{self, Reply};
use nacre_wval::{Priority, StopReason};

/// Requests that may come in pieces at the same time.
const MAX_PARTIAL: usize = 256;

/// Requests may take this part of the CVM's memory, in all.
const HELD_SHARE: u64 = 4;

/// Requests of which more is to come, by the host's number.
static PARTIAL: NormalCell<BTreeMap<u32, Partial>> = NormalCell::new(BTreeMap::new());

/// Requests whose module is being loaded, by the host's number.
static WAITING: NormalCell<BTreeMap<u32, Waiting>> = NormalCell::new(BTreeMap::new());

/// Bytes of all requests that are held.
static HELD_BYTES: AtomicU64 = AtomicU64::new(0);

agent_static! {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    static COLD: AtomicU64 = AtomicU64::new(0);
    static RESTORED_BYTES: AtomicU64 = AtomicU64::new(0);
}

/// Calls started, those of them that found no memory ready, bytes put back after calls.
pub fn counters() -> [u64; 3] {
    [&CALLS, &COLD, &RESTORED_BYTES].map(|counter| counter.load(Ordering::Relaxed))
}

/// Counts linear memory that was put back after a call.
pub fn count_restored(bytes: u64) {
    RESTORED_BYTES.fetch_add(bytes, Ordering::Relaxed);
}

/// A request in memory; its share of what may be held goes with it.
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Room for `len` bytes, all zero; `None` if so much is not to be held.
    pub fn new(len: usize) -> Option<Bytes> {
        let limit = memory::layout().params.memory_bytes / HELD_SHARE;
        let mut bytes = Bytes(Vec::new());
        bytes.0.try_reserve_exact(len).ok()?;
        bytes.0.resize(len, 0);
        // From here on the drop gives it back.
        let held = HELD_BYTES.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        (held <= limit).then_some(bytes)
    }
}

impl Bytes {
    /// The bytes, which do not count as held any more.
    pub fn into_inner(mut self) -> Vec<u8> {
        HELD_BYTES.fetch_sub(self.0.len() as u64, Ordering::Relaxed);
        core::mem::take(&mut self.0)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        HELD_BYTES.fetch_sub(self.0.len() as u64, Ordering::Relaxed);
    }
}

/// A request of which a part is there.
struct Partial {
    module: u32,
    bytes: Bytes,
    received: usize,
}

/// A request that waits for its module.
struct Waiting {
    module: u32,
    request: Bytes,
    arrived_ns: u64,
}

/// A call that is to run.
pub struct Order {
    /// The host's number.
    call: u32,
    /// What is called.
    pub module: Arc<Loaded>,
    /// How.
    pub head: RequestHead,
    /// Its options, as programs have them.
    pub options: Options,
    /// The whole request.
    pub request: Bytes,
    /// When it came, by the monotonic clock.
    arrived_ns: u64,
}

impl Order {
    /// A call of `module`; `None` if the request is malformed.
    pub fn new(call: u32, module: Arc<Loaded>, request: Bytes, arrived_ns: u64) -> Option<Order> {
        let head = RequestHead::decode(&request.0, request.0.len() as u64)?;
        let options = Options {
            priority: Priority::from_index(head.priority as usize).unwrap_or(Priority::Normal),
            wall_limit_ns: head.wall_limit_ns,
            cpu_limit_ns: head.cpu_limit_ns,
        };
        Some(Order { call, module, head, options, request, arrived_ns })
    }

    /// The texts of the request: arguments first, then variables.
    pub fn texts(&self) -> Texts<'_> {
        Texts::new(self.request.0.get(HEAD_BYTES..self.stdin_at()).unwrap_or_default())
    }

    /// Where in the request standard input begins.
    pub fn stdin_at(&self) -> usize {
        HEAD_BYTES + self.head.texts_bytes as usize
    }
}

/// A call's first message.
pub fn start(incoming: &Incoming<'_, '_>) {
    let header = incoming.header();
    let (call, len) = (header.program, header.len as usize);
    if header.arg > MAX_REQUEST_BYTES || (len as u64) > header.arg {
        return refuse(call, ExitKind::Error, "the request has an impossible length");
    }
    let Some(mut bytes) = Bytes::new(header.arg as usize) else {
        return refuse(
            call,
            ExitKind::OutOfMemory,
            "no memory for the request: give the CVM more with --memory",
        );
    };
    incoming.copy_body(0, &mut bytes.0[..len]);
    if len as u64 == header.arg {
        return begin(call, header.stream, bytes);
    }
    let partial = Partial { module: header.stream, bytes, received: len };
    let refused = PARTIAL.with(|all| {
        if all.len() >= MAX_PARTIAL {
            return Some(partial);
        }
        all.insert(call, partial)
    });
    if refused.is_some() {
        refuse(call, ExitKind::Error, "too many requests in pieces, or two with one number");
    }
}

/// More of a request.
pub fn data(incoming: &Incoming<'_, '_>) {
    let (header, call) = (incoming.header(), incoming.header().program);
    let Some(mut partial) = PARTIAL.with(|all| all.remove(&call)) else { return };
    let end = partial.received + header.len as usize;
    let next = header.arg == partial.received as u64;
    let Some(part) = partial.bytes.0.get_mut(partial.received..end).filter(|part| next && !part.is_empty())
    else {
        return refuse(call, ExitKind::Error, "a piece of the request is not the next one");
    };
    incoming.copy_body(0, part);
    partial.received = end;
    if end == partial.bytes.0.len() {
        begin(call, partial.module, partial.bytes);
    } else {
        PARTIAL.with(|all| all.insert(call, partial));
    }
}

/// Takes a call whose request is complete.
fn begin(call: u32, module: u32, request: Bytes) {
    let arrived_ns = clock::monotonic_ns();
    if module == SESSIONS {
        return match RequestHead::decode(&request.0, request.0.len() as u64) {
            Some(head) => sessions::record(call, head, request),
            None => refuse(call, ExitKind::Error, "the request is malformed"),
        };
    }
    match modules::find(module) {
        Found::Ready(module) => begin_in(module, call, request, arrived_ns),
        Found::Loading => wait(call, Waiting { module, request, arrived_ns }),
        Found::Nothing => refuse(call, ExitKind::Error, "there is no such module"),
    }
}

/// Keeps a call until its module is loaded: the host need not wait for that before it sends it.
fn wait(call: u32, waiting: Waiting) {
    let refused = WAITING.with(|all| {
        if all.len() >= memory::layout().max_tasks as usize {
            return Some(waiting);
        }
        all.insert(call, waiting)
    });
    if refused.is_some() {
        refuse(call, ExitKind::Error, "too many calls wait for their module, or two have one number");
    }
}

/// Begins the calls that have waited for a module, or tells them why there is none.
pub fn module_loaded(id: u32, loaded: Result<&Arc<Loaded>, (ExitKind, &str)>) {
    let next = || WAITING.with(|all| all.extract_if(.., |_, waiting| waiting.module == id).next());
    while let Some((call, Waiting { request, arrived_ns, .. })) = next() {
        match loaded {
            Ok(module) => begin_in(module.clone(), call, request, arrived_ns),
            Err((kind, text)) => refuse(call, kind, text),
        }
    }
}

fn begin_in(module: Arc<Loaded>, call: u32, request: Bytes, arrived_ns: u64) {
    match Order::new(call, module, request, arrived_ns) {
        Some(order) => spawn(order, None),
        None => refuse(call, ExitKind::Error, "the request is malformed"),
    }
}

/// Starts the task of a call. With a `responder` its answer goes to the client of a session, and the host learns nothing of it.
pub fn spawn(order: Order, responder: Option<Responder>) {
    let (call, options) = (order.call, order.options);
    let on_death = move || {
        refuse(
            call,
            ExitKind::OutOfMemory,
            "out of memory: the CVM's heap is full; give the CVM more with --memory",
        );
    };
    let expected_ns = order.module.average_ns();
    let spec = Spec {
        priority: options.priority,
        limits: options.limits(),
        program: NO_PROGRAM,
        call: Some(call),
        expected_ns,
        patient: true,
        on_death: Some(Box::new(on_death)),
    };
    CALLS.fetch_add(1, Ordering::Relaxed);
    match task::create(spec, Box::new(move |begin| run(order, begin, responder))) {
        Ok(task) => {
            task::arm_limit(&task);
            sched::submit_call(&task, expected_ns);
        }
        Err(_) => refuse(
            call,
            ExitKind::OutOfMemory,
            "there are as many tasks as the CVM can have: give it more memory with --memory",
        ),
    }
}

/// The body of a call's task.
fn run(order: Order, begin: Begin, responder: Option<Responder>) {
    let (call, options, arrived_ns) = (order.call, order.options, order.arrived_ns);
    let module = order.module.clone();
    let outcome = match begin {
        Begin::Now => {
            let started_ns = clock::monotonic_ns();
            let times = Times { arrived_ns, started_ns };
            return wasm::run_call(order, |outcome, outputs, cold| {
                if cold {
                    COLD.fetch_add(1, Ordering::Relaxed);
                }
                task::current().conclude();
                module.note_time(clock::monotonic_ns().saturating_sub(started_ns));
                answer(call, responder, outcome, outputs, cold, times);
            });
        }
        Begin::Stopped(reason) => Outcome::stopped(reason, options),
        Begin::NoMemory => Outcome::no_stack(),
    };
    let now = clock::monotonic_ns();
    answer(call, responder, &outcome, None, false, Times { arrived_ns, started_ns: now });
}

/// Ends a call.
pub fn cancel(call: u32) {
    let partial = PARTIAL.with(|all| all.remove(&call)).is_some();
    if partial || WAITING.with(|all| all.remove(&call)).is_some() {
        return refuse(call, ExitKind::Error, "killed");
    }
    for task in task::of_call(call) {
        task::stop(&task, StopReason::Cancelled);
    }
}

/// When a call came and began, by the monotonic clock.
#[derive(Clone, Copy)]
struct Times {
    arrived_ns: u64,
    started_ns: u64,
}

/// Tells of a call that never ran.
pub fn refuse(call: u32, kind: ExitKind, text: &str) {
    let now = clock::monotonic_ns();
    let head = head(kind, 0, Times { arrived_ns: now, started_ns: now });
    send_answer(call, head, text, [&[]; 2]);
}

fn head(kind: ExitKind, code: u32, times: Times) -> AnswerHead {
    AnswerHead {
        kind,
        code,
        stdout_cut: false,
        stderr_cut: false,
        cold: false,
        in_pieces: false,
        text_bytes: 0,
        stdout_bytes: 0,
        stderr_bytes: 0,
        cpu_ns: task::running().map_or(0, |_| clock::cycles_to_ns(task::current_cpu_cycles())),
        queued_ns: times.started_ns.saturating_sub(times.arrived_ns),
        ran_ns: clock::monotonic_ns().saturating_sub(times.started_ns),
    }
}

fn answer(
    call: u32,
    responder: Option<Responder>,
    outcome: &Outcome,
    outputs: Option<&[Capture; 2]>,
    cold: bool,
    times: Times,
) {
    let (kind, code, text) = outcome.parts();
    let mut head = AnswerHead { cold, ..head(kind, code, times) };
    if let Some([out, err]) = outputs {
        (head.stdout_cut, head.stderr_cut) = (out.cut, err.cut);
        (head.stdout_bytes, head.stderr_bytes) = (out.bytes.len() as u64, err.bytes.len() as u64);
    }
    let outputs = outputs.map(|outputs| outputs.each_ref().map(|output| &output.bytes[..]));
    match responder {
        None => send_answer(call, head, text, outputs.unwrap_or_default()),
        Some(responder) => {
            let [stdout, stderr] = outputs.unwrap_or_default();
            let reply = Reply::Outcome(reply::Outcome {
                exit: reply::ExitKind::from_number(kind as u8).unwrap_or(reply::ExitKind::Error),
                code,
                stdout_cut: head.stdout_cut,
                stderr_cut: head.stderr_cut,
                cold,
                cpu_ns: head.cpu_ns,
                queued_ns: head.queued_ns,
                ran_ns: head.ran_ns,
                text: &text[..text_end(text)],
                stdout,
                stderr,
            });
            answer_record(call, &responder.seal(&reply));
        }
    }
}

/// Answers a call that brought a record with the record that replies to it. Nothing else is said of it, not even how long it took.
pub fn answer_record(call: u32, record: &[u8]) {
    let head = AnswerHead {
        kind: ExitKind::Code,
        code: 0,
        stdout_cut: false,
        stderr_cut: false,
        cold: false,
        in_pieces: false,
        text_bytes: 0,
        stdout_bytes: record.len() as u64,
        stderr_bytes: 0,
        cpu_ns: 0,
        queued_ns: 0,
        ran_ns: 0,
    };
    send_answer(call, head, "", [record, &[]]);
}

/// Where a text is cut that is too long for an answer.
fn text_end(text: &str) -> usize {
    (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0)
}

/// Sends an answer: in one message if it fits, else its outputs before it.
fn send_answer(call: u32, mut head: AnswerHead, text: &str, outputs: [&[u8]; 2]) {
    let mut text = &text.as_bytes()[..text_end(text)];
    let outputs_bytes = (head.stdout_bytes + head.stderr_bytes) as usize;
    head.in_pieces = HEAD_BYTES + text.len() + outputs_bytes > link::MAX_BODY;
    let here = if head.in_pieces { 0 } else { outputs_bytes };
    let mut body = Vec::new();
    if body.try_reserve_exact(HEAD_BYTES + text.len() + here).is_err() {
        // The head alone needs no memory.
        (head.in_pieces, text) = (true, &[]);
    }
    head.text_bytes = text.len() as u32;
    let bare = head.encode();
    if body.capacity() != 0 {
        body.extend_from_slice(&bare);
        body.extend_from_slice(text);
        if !head.in_pieces {
            outputs.iter().for_each(|output| body.extend_from_slice(output));
        }
    }
    if head.in_pieces {
        for (number, output) in [stream::STDOUT, stream::STDERR].into_iter().zip(outputs) {
            for (offset, piece) in (0..).step_by(PIECE_BYTES).zip(output.chunks(PIECE_BYTES)) {
                link::send(Header::new(Kind::CallOutput, call).stream(number).arg(offset), piece);
            }
        }
    }
    let body = if body.is_empty() { &bare[..] } else { &body };
    link::send_unrung(Header::new(Kind::CallDone, call), body);
}
