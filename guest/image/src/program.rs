//! A program: what the host loads and runs, its standard streams and its file system.

use crate::arch::{clock, cpu};
use crate::areas;
use crate::children;
use crate::link;
use crate::memory;
use crate::normal::NormalCell;
use crate::once::{HandOver, Once};
use crate::sealed::logs;
use crate::sockets::{self, Sockets};
use crate::stdin::Input;
use crate::task::{self, Task};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use nacre_abi::message::{ExitKind, Header, Kind, STREAM_WINDOW_BYTES, stream};
use nacre_mm::address_space::MapError;
use nacre_mm::entry::Perms;
use nacre_wasi::{Clock, FileHandle, Fs, Interest, Stop, Stream, StreamError, System};
use nacre_wval::{Limits, Priority};

/// All programs, by the host's number. The dispatcher's alone.
static PROGRAMS: NormalCell<BTreeMap<u32, Arc<Program>>> = NormalCell::new(BTreeMap::new());

/// No task's slot.
const NO_TASK: u32 = u32::MAX;

/// Who says what a program is run with, and reads what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The host: arguments, variables, files, streams, how it ended.
    Host,
    /// The tenant, by a package that was installed: the host starts and ends it and carries its connections, and learns nothing else. What
    /// it writes to its streams goes to its log, see [`logs`].
    Tenant,
}

/// One program.
pub struct Program {
    /// The host's number for it.
    pub id: u32,
    /// Whose it is.
    pub owner: Owner,
    /// What the host sends before the start.
    pub loading: HandOver<Loading>,
    /// The file system after the end, for exports.
    pub fs_after: HandOver<Fs>,
    /// The slot of the task that runs it or exports its files; a hint whom to wake.
    task: AtomicU32,
    stdin: Input,
    /// If it listens.
    pub sockets: Once<Sockets>,
    /// Standard output, standard error, exported tree.
    outputs: [Output; 3],
    killed: AtomicBool,
    /// It has spawned tasks, which also use its streams.
    has_children: AtomicBool,
    /// CPU time of the spawned tasks that have ended, in cycles.
    children_cycles: AtomicU64,
}

/// What the host says about how a program runs.
#[derive(Clone, Copy)]
pub struct Options {
    /// The class of its tasks.
    pub priority: Priority,
    /// How long it may take from its start, in nanoseconds.
    pub wall_limit_ns: u64,
    /// How much CPU time its main task may have, in nanoseconds.
    pub cpu_limit_ns: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { priority: Priority::Normal, wall_limit_ns: u64::MAX, cpu_limit_ns: u64::MAX }
    }
}

impl Options {
    /// The limits of a task that starts now.
    pub fn limits(&self) -> Limits {
        let wall_deadline_ns = match self.wall_limit_ns {
            u64::MAX => u64::MAX,
            limit => clock::monotonic_ns().saturating_add(limit),
        };
        Limits { wall_deadline_ns, cpu_ns: self.cpu_limit_ns }
    }
}

/// A program on its way in.
pub struct Loading {
    /// The precompiled code.
    pub code: Code,
    /// Arguments, `argv[0]` first.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Names of the directories it finds open; number n has its tree at `/n`.
    pub preopens: Vec<String>,
    /// Which of its standard streams are terminals.
    pub terminals: [bool; 3],
    /// How it runs.
    pub options: Options,
    /// The file system.
    pub fs: Fs,
    /// The file that tree data is for.
    pub open_file: Option<FileHandle>,
    /// The first thing that went wrong; the start reports it.
    pub error: Option<(ExitKind, String)>,
}

/// Why code was not filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillError {
    /// It reaches beyond the end.
    Outside,
    /// There is no frame for it.
    NoMemory,
}

impl FillError {
    /// How a load ends by it.
    pub fn parts(self) -> (ExitKind, &'static str) {
        match self {
            FillError::Outside => (ExitKind::Error, "the host sent code beyond the length it announced"),
            FillError::NoMemory => {
                (ExitKind::OutOfMemory, "no memory for the code: give the CVM more with --memory")
            }
        }
    }
}

impl Loading {
    /// This code with nothing else; `None` if there is no memory for a file system.
    pub fn new(code: Code) -> Option<Loading> {
        let mut fs = Fs::new(clock::wall_ns()).ok()?;
        fs.set_limit(memory::available_bytes());
        Some(Loading {
            code,
            args: Vec::new(),
            env: Vec::new(),
            preopens: Vec::new(),
            terminals: [false; 3],
            options: Options::default(),
            fs,
            open_file: None,
            error: None,
        })
    }
}

/// Memory for precompiled code, mapped in place.
pub struct Code {
    start: u64,
    bytes: u64,
}

impl Code {
    /// Memory for `bytes` bytes of code.
    ///
    /// # Errors
    /// [`MapError`] if there is none.
    pub fn new(bytes: u64) -> Result<Code, MapError> {
        Ok(Code { start: areas::map(bytes, Some(Perms::Read))?, bytes })
    }

    /// Memory with this code in it; `None` if there is none.
    pub fn copy_of(bytes: &[u8]) -> Option<Code> {
        let mut code = Code::new(bytes.len() as u64).ok()?;
        let mut copy = |at: usize, piece: &mut [u8]| piece.copy_from_slice(&bytes[at..at + piece.len()]);
        code.fill(0, bytes.len() as u64, &mut copy).ok()?;
        Some(code)
    }

    /// Lets `fill` write the `len` bytes at `offset`, piece by piece: it is given where in them a piece begins, and the piece.
    /// The code is never writable where it will run: it is written through the window onto frames, which needs no change of
    /// permissions later, and no flush. Once, before anybody looks at these bytes.
    ///
    /// # Errors
    /// [`FillError`].
    pub fn fill(
        &mut self,
        offset: u64,
        len: u64,
        fill: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<(), FillError> {
        if offset.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Err(FillError::Outside);
        }
        // SAFETY: inside an area of ours, of which nobody else knows until it is published.
        unsafe { memory::fill(self.start + offset, len, fill) }.map_err(|_| FillError::NoMemory)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable for as long as this value lives.
        unsafe { core::slice::from_raw_parts(self.start as *const u8, self.bytes as usize) }
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        areas::unmap(self.start, self.bytes);
    }
}

/// Bit of [`Output::sent`]: nothing more is sent.
const CLOSED: u64 = 1 << 63;

/// Standard output or error.
#[derive(Default)]
struct Output {
    /// Bytes that were sent, or are in the hands of the task that sends them.
    sent: AtomicU64,
    /// What the host has consumed, by its word.
    acknowledged: AtomicU64,
    closed: AtomicBool,
}

impl Output {
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) & !CLOSED
    }

    /// Takes the next bytes of the stream, at most `wanted`: their offset and how many; `None` if there is no room now.
    fn reserve(&self, wanted: u64) -> Result<Option<(u64, u64)>, StreamError> {
        let mut sent = self.sent.load(Ordering::Relaxed);
        loop {
            if sent & CLOSED != 0 || self.closed.load(Ordering::Relaxed) {
                return Err(StreamError::Closed);
            }
            let waiting = sent.saturating_sub(self.acknowledged.load(Ordering::Relaxed));
            let take = wanted.min(STREAM_WINDOW_BYTES.saturating_sub(waiting));
            if take == 0 {
                return Ok(None);
            }
            match self.sent.compare_exchange_weak(sent, sent + take, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Some((sent, take))),
                Err(now) => sent = now,
            }
        }
    }

    /// Nothing more is sent from here on; returns where the stream ends.
    fn close(&self) -> u64 {
        self.sent.fetch_or(CLOSED, Ordering::Relaxed) & !CLOSED
    }
}

impl Program {
    /// Makes a program and enters it under its number, in the place of an older one.
    ///
    /// # Errors
    /// [`MapError`] if there is no memory for its standard input.
    pub fn create(id: u32, loading: Loading, owner: Owner) -> Result<(), MapError> {
        let stdin = Input::new()?;
        let program = Arc::new(Program {
            id,
            owner,
            loading: HandOver::new(),
            fs_after: HandOver::new(),
            task: AtomicU32::new(NO_TASK),
            stdin,
            sockets: Once::new(),
            outputs: Default::default(),
            killed: AtomicBool::new(false),
            has_children: AtomicBool::new(false),
            children_cycles: AtomicU64::new(0),
        });
        program.loading.put(Box::new(loading));
        let old = PROGRAMS.with(|programs| programs.insert(id, program));
        drop(old);
        Ok(())
    }

    /// Tells that there is no such program, as the end of one that wrote nothing.
    pub fn refuse(id: u32, kind: ExitKind, text: &str) {
        for number in [stream::STDOUT, stream::STDERR] {
            link::send(Header::new(Kind::StreamEnd, id).stream(number).arg(0), &[]);
        }
        link::send(Header::new(Kind::ProgramExited, id).stream(kind as u32), text.as_bytes());
    }

    /// The program with this number. For the dispatcher.
    pub fn find(id: u32) -> Option<Arc<Program>> {
        PROGRAMS.with(|programs| programs.get(&id).cloned())
    }

    /// Forgets the program; a running one is killed at its next safe point.
    pub fn forget(id: u32) {
        let program = PROGRAMS.with(|programs| programs.remove(&id));
        if let Some(program) = program {
            program.killed.store(true, Ordering::SeqCst);
            children::stop_others(id, None);
            if program.owner == Owner::Tenant {
                logs::end(id);
            }
        }
    }

    /// Starts a task that was made for this program: to run it, or to export its files after its end.
    pub fn run_in(&self, task: &Arc<Task>) {
        self.task.store(task.slot, Ordering::SeqCst);
        task::start(task);
    }

    /// Whether the host wants it no more.
    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// It has spawned a task.
    pub fn note_children(&self) {
        self.has_children.store(true, Ordering::Relaxed);
    }

    /// One of its spawned tasks has ended after so much CPU time.
    pub fn count_child(&self, cycles: u64) {
        self.children_cycles.fetch_add(cycles, Ordering::Relaxed);
    }

    /// A stream has changed: wakes whoever may wait for that.
    fn wake(&self) {
        // After the change; who begins to watch does so before its last look (`GuestSystem::wait`).
        fence(Ordering::SeqCst);
        // Maybe another task's slot by now: that one wakes for nothing.
        task::unpark_slot(self.task.load(Ordering::SeqCst));
        if self.has_children.load(Ordering::Relaxed) {
            for task in task::of_program(self.id).filter(|task| task.watches_streams.load(Ordering::Relaxed))
            {
                task::unpark(&task);
            }
        }
    }

    /// Bytes of standard input from the host at `offset`, at most as many as were promised room; others are dropped.
    pub fn stdin_data(&self, offset: u64, bytes: &[u8]) {
        if self.owner != Owner::Host {
            return;
        }
        self.stdin.put(offset, bytes);
        self.wake();
    }

    /// Standard input is over.
    pub fn stdin_end(&self) {
        self.stdin.end();
        self.wake();
    }

    /// The host has consumed output up to `offset`.
    pub fn output_credit(&self, number: u32, offset: u64) {
        if let Some(output) = self.output(number) {
            // Not more than was sent, and not backwards: else it is a lie without effect.
            if offset <= output.sent() {
                output.acknowledged.fetch_max(offset, Ordering::Relaxed);
                self.wake();
            }
        }
    }

    /// Nobody reads this output any more.
    pub fn output_closed(&self, number: u32) {
        if let Some(output) = self.output(number) {
            output.closed.store(true, Ordering::Relaxed);
            self.wake();
        }
    }

    fn output(&self, number: u32) -> Option<&Output> {
        match number {
            stream::STDOUT => Some(&self.outputs[0]),
            stream::STDERR => Some(&self.outputs[1]),
            stream::TREE => Some(&self.outputs[2]),
            _ => None,
        }
    }

    /// Reports the end: the ends of both outputs, then how it went.
    pub fn report_exit(&self, kind: ExitKind, code: u64, text: &str) {
        let text = if self.owner == Owner::Host { text } else { "" };
        for number in [stream::STDOUT, stream::STDERR] {
            let sent = self.output(number).map_or(0, Output::close);
            link::send(Header::new(Kind::StreamEnd, self.id).stream(number).arg(sent), &[]);
        }
        let cut =
            (0..=text.len().min(link::MAX_BODY)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        // Before the host can know: its next message may start an export, whose task takes this one's place.
        self.end_task();
        link::send(
            Header::new(Kind::ProgramExited, self.id).stream(kind as u32).arg(code),
            &text.as_bytes()[..cut],
        );
    }

    /// No task runs for this program any more.
    pub fn end_task(&self) {
        self.task.store(NO_TASK, Ordering::SeqCst);
    }

    /// Sends a piece of the exported tree, when the host has room for it; false if the program was forgotten meanwhile.
    pub fn send_tree_data(&self, bytes: &[u8]) -> bool {
        let output = &self.outputs[2];
        let sent = output.sent();
        while sent + bytes.len() as u64 - output.acknowledged.load(Ordering::Relaxed) > STREAM_WINDOW_BYTES {
            task::park();
            if task::check().is_err() {
                return false;
            }
        }
        output.sent.store(sent + bytes.len() as u64, Ordering::Relaxed);
        link::send(Header::new(Kind::TreeData, self.id).stream(stream::TREE).arg(sent), bytes);
        true
    }
}

/// The kernel under a program's WASI context.
pub struct GuestSystem(pub Arc<Program>);

impl GuestSystem {
    fn number(stream: Stream) -> u32 {
        match stream {
            Stream::Stdin => stream::STDIN,
            Stream::Stderr => stream::STDERR,
            _ => stream::STDOUT,
        }
    }

    /// Writes all of a message, waiting for room; gives up when nobody reads or the task must end.
    pub fn write_all(&mut self, stream: Stream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.stream_write(stream, bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(StreamError::WouldBlock) if self.wait(&[], None).is_ok() => {}
                Err(_) => return,
            }
        }
    }
}

impl System for GuestSystem {
    fn clock_ns(&self, clock: Clock) -> u64 {
        match clock {
            Clock::Realtime => clock::wall_ns(),
            Clock::Monotonic => clock::monotonic_ns(),
            Clock::ThreadCpu => clock::cycles_to_ns(task::current_cpu_cycles()),
            Clock::ProcessCpu => {
                let children = self.0.children_cycles.load(Ordering::Relaxed);
                clock::cycles_to_ns(task::current_cpu_cycles() + children)
            }
        }
    }

    fn clock_resolution_ns(&self, _: Clock) -> u64 {
        1
    }

    fn random(&mut self, buffer: &mut [u8]) {
        cpu::fill_random(buffer);
    }

    fn stream_read(&mut self, stream: Stream, buffer: &mut [u8]) -> Result<usize, StreamError> {
        if stream != Stream::Stdin {
            return Err(StreamError::Closed);
        }
        let taken = self.0.stdin.take(buffer).ok_or(StreamError::WouldBlock)?;
        if let Some(consumed) = taken.credit {
            link::send(Header::new(Kind::Credit, self.0.id).stream(stream::STDIN).arg(consumed), &[]);
        }
        Ok(taken.bytes)
    }

    fn stream_write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, StreamError> {
        let number = Self::number(stream);
        let output = self.0.output(number).ok_or(StreamError::Closed)?;
        if self.0.owner == Owner::Tenant {
            logs::write(&self.0, bytes);
            return Ok(bytes.len());
        }
        if bytes.is_empty() {
            return if output.closed.load(Ordering::Relaxed) { Err(StreamError::Closed) } else { Ok(0) };
        }
        let wanted = bytes.len().min(link::MAX_BODY);
        let Some((offset, taken)) = output.reserve(wanted as u64)? else {
            return Err(StreamError::WouldBlock);
        };
        let taken = &bytes[..taken as usize];
        link::send(Header::new(Kind::StreamData, self.0.id).stream(number).arg(offset), taken);
        Ok(taken.len())
    }

    fn stream_readable(&self, stream: Stream) -> Option<u64> {
        if stream != Stream::Stdin {
            return Some(0);
        }
        self.0.stdin.readable()
    }

    fn stream_writable(&self, stream: Stream) -> Option<u64> {
        let output = self.0.output(Self::number(stream))?;
        if output.closed.load(Ordering::Relaxed) {
            return Some(0);
        }
        let waiting = output.sent().saturating_sub(output.acknowledged.load(Ordering::Relaxed));
        match STREAM_WINDOW_BYTES.saturating_sub(waiting) {
            0 => None,
            room => Some(room),
        }
    }

    fn wait(&mut self, _: &[Interest], deadline_monotonic_ns: Option<u64>) -> Result<(), Stop> {
        may_go_on()?;
        // Whatever changes for this program wakes the tasks that watch its streams; between the caller's look and here a
        // wake leaves its token. Who begins to watch only now looks once more.
        let watches = task::current().watches_streams.swap(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if watches && !sockets::news_before_sleep(&self.0) {
            let due = sockets::next_ns(&self.0);
            match [deadline_monotonic_ns, due].into_iter().flatten().min() {
                Some(deadline) => task::park_until(deadline),
                None => task::park(),
            }
        }
        sockets::awake(&self.0);
        may_go_on()
    }

    fn yield_now(&mut self) -> Result<(), Stop> {
        task::yield_now();
        may_go_on()
    }
}

fn may_go_on() -> Result<(), Stop> {
    task::check().map_err(|_| Stop::Killed)
}
