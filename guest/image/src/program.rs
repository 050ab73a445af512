//! A program: what the host loads and runs, its standard streams and its file system.

use crate::arch::{clock, cpu};
use crate::areas;
use crate::link;
use crate::sync::SpinLock;
use crate::task::{self, Task};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use nacre_abi::hypercall::ExitReason;
use nacre_abi::message::{ExitKind, Header, Kind, STREAM_WINDOW_BYTES, stream};
use nacre_mm::address_space::MapError;
use nacre_mm::entry::Perms;
use nacre_wasi::{Clock, FileHandle, Fs, Interest, Stop, Stream, StreamError, System};

/// All programs, by the host's number.
static PROGRAMS: SpinLock<BTreeMap<u32, Arc<Program>>> = SpinLock::new(BTreeMap::new());

/// One program.
pub struct Program {
    /// The host's number for it.
    pub id: u32,
    /// What the host sends before the start.
    pub loading: SpinLock<Option<Loading>>,
    /// The file system after the end, for exports.
    pub fs_after: SpinLock<Option<Fs>>,
    task: SpinLock<Option<Arc<Task>>>,
    stdin: SpinLock<Input>,
    /// Standard output, standard error, exported tree.
    outputs: [Output; 3],
    killed: AtomicBool,
    /// It was killed while it ran and has not ended yet.
    dying: AtomicBool,
}

/// Programs that were killed and have not come to a safe point yet.
static DYING: AtomicU64 = AtomicU64::new(0);

/// Whether some program was killed and has not come to a safe point yet.
pub fn any_dying() -> bool {
    DYING.load(Ordering::SeqCst) != 0
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
    /// The file system.
    pub fs: Fs,
    /// The file that tree data is for.
    pub open_file: Option<FileHandle>,
    /// The first thing that went wrong; the start reports it.
    pub error: Option<(ExitKind, String)>,
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
        Ok(Code { start: areas::map(bytes, Some(Perms::ReadWrite))?, bytes })
    }

    /// `len` bytes of it at `offset`, for filling; `None` if they are not inside.
    pub fn part_mut(&mut self, offset: u64, len: u64) -> Option<&mut [u8]> {
        if offset.checked_add(len)? > self.bytes {
            return None;
        }
        // SAFETY: inside an area that is mapped writable and, until it is published, used by nobody else.
        Some(unsafe { core::slice::from_raw_parts_mut((self.start + offset) as *mut u8, len as usize) })
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

/// Standard input.
struct Input {
    buffer: VecDeque<u8>,
    /// Bytes that came so far: the offset of the next one.
    received: u64,
    consumed: u64,
    credited: u64,
    ended: bool,
}

/// Standard output or error.
#[derive(Default)]
struct Output {
    sent: AtomicU64,
    /// What the host has consumed, by its word.
    acknowledged: AtomicU64,
    closed: AtomicBool,
}

impl Program {
    /// Makes a program and enters it under its number, in the place of an older one.
    ///
    /// # Errors
    /// [`MapError`] if there is no memory for its standard input.
    pub fn create(id: u32, loading: Loading) -> Result<(), MapError> {
        let mut buffer = VecDeque::new();
        buffer.try_reserve_exact(STREAM_WINDOW_BYTES as usize).map_err(|_| MapError::OutOfMemory)?;
        let stdin = Input { buffer, received: 0, consumed: 0, credited: 0, ended: false };
        let program = Arc::new(Program {
            id,
            loading: SpinLock::new(Some(loading)),
            fs_after: SpinLock::new(None),
            task: SpinLock::new(None),
            stdin: SpinLock::new(stdin),
            outputs: Default::default(),
            killed: AtomicBool::new(false),
            dying: AtomicBool::new(false),
        });
        let old = PROGRAMS.lock().insert(id, program);
        drop(old);
        Ok(())
    }

    /// The program with this number.
    pub fn find(id: u32) -> Option<Arc<Program>> {
        PROGRAMS.lock().get(&id).cloned()
    }

    /// Forgets the program; a running one is killed at its next safe point.
    pub fn forget(id: u32) {
        let program = PROGRAMS.lock().remove(&id);
        if let Some(program) = program {
            program.killed.store(true, Ordering::Relaxed);
            if program.task.lock().is_some() && !program.dying.swap(true, Ordering::SeqCst) {
                DYING.fetch_add(1, Ordering::SeqCst);
            }
            program.wake();
            // One that computes comes to a safe point.
            crate::wasm::bump_epoch();
        }
    }

    /// Starts a task that was made for this program: to run it, or to export its files after its end.
    pub fn run_in(&self, task: &Arc<Task>) {
        *self.task.lock() = Some(task.clone());
        task::start(task);
    }

    /// Whether it must end at its next safe point.
    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task::unpark(&task);
        }
    }

    /// Bytes of standard input from the host at `offset`, at most as many as were promised room; others are dropped.
    pub fn stdin_data(&self, offset: u64, bytes: &[u8]) {
        {
            let mut stdin = self.stdin.lock();
            let room = (STREAM_WINDOW_BYTES as usize).saturating_sub(stdin.buffer.len());
            if offset != stdin.received || bytes.len() > room {
                return;
            }
            stdin.buffer.extend(bytes);
            stdin.received += bytes.len() as u64;
        }
        self.wake();
    }

    /// Standard input is over.
    pub fn stdin_end(&self) {
        self.stdin.lock().ended = true;
        self.wake();
    }

    /// The host has consumed output up to `offset`.
    pub fn output_credit(&self, number: u32, offset: u64) {
        if let Some(output) = self.output(number) {
            // Not more than was sent, and not backwards: else it is a lie without effect.
            let sent = output.sent.load(Ordering::Relaxed);
            if offset <= sent {
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
        for number in [stream::STDOUT, stream::STDERR] {
            let sent = self.output(number).map_or(0, |output| output.sent.load(Ordering::Relaxed));
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
        let mut task = self.task.lock();
        if self.dying.swap(false, Ordering::SeqCst) {
            DYING.fetch_sub(1, Ordering::SeqCst);
        }
        let ended = task.take();
        drop(task);
        drop(ended);
    }

    /// Sends a piece of the exported tree, when the host has room for it; false if the program was forgotten meanwhile.
    pub fn send_tree_data(&self, bytes: &[u8]) -> bool {
        let output = &self.outputs[2];
        let sent = output.sent.load(Ordering::Relaxed);
        while sent + bytes.len() as u64 - output.acknowledged.load(Ordering::Relaxed) > STREAM_WINDOW_BYTES {
            task::park();
            if self.is_killed() {
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

    fn stop_if_killed(&self) -> Result<(), Stop> {
        if self.0.is_killed() { Err(Stop::Killed) } else { Ok(()) }
    }
}

impl System for GuestSystem {
    fn clock_ns(&self, clock: Clock) -> u64 {
        match clock {
            Clock::Realtime => clock::wall_ns(),
            Clock::Monotonic => clock::monotonic_ns(),
            Clock::ProcessCpu | Clock::ThreadCpu => clock::cycles_to_ns(task::current_cpu_cycles()),
        }
    }

    fn clock_resolution_ns(&self, _: Clock) -> u64 {
        1
    }

    fn random(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let Some(word) = cpu::random_word() else {
                crate::console::fatal(
                    ExitReason::Panic,
                    format_args!("the processor's random number generator failed"),
                );
            };
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }

    fn stream_read(&mut self, stream: Stream, buffer: &mut [u8]) -> Result<usize, StreamError> {
        if stream != Stream::Stdin {
            return Err(StreamError::Closed);
        }
        let (taken, credit) = {
            let mut stdin = self.0.stdin.lock();
            let taken = stdin.buffer.len().min(buffer.len());
            if taken == 0 && !stdin.ended && !buffer.is_empty() {
                return Err(StreamError::WouldBlock);
            }
            for (to, from) in buffer.iter_mut().zip(stdin.buffer.drain(..taken)) {
                *to = from;
            }
            stdin.consumed += taken as u64;
            let due = stdin.consumed - stdin.credited >= STREAM_WINDOW_BYTES / 4;
            if due {
                stdin.credited = stdin.consumed;
            }
            (taken, due.then_some(stdin.consumed))
        };
        if let Some(consumed) = credit {
            link::send(Header::new(Kind::Credit, self.0.id).stream(stream::STDIN).arg(consumed), &[]);
        }
        Ok(taken)
    }

    fn stream_write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, StreamError> {
        let number = Self::number(stream);
        let output = self.0.output(number).ok_or(StreamError::Closed)?;
        if output.closed.load(Ordering::Relaxed) {
            return Err(StreamError::Closed);
        }
        let sent = output.sent.load(Ordering::Relaxed);
        let room = STREAM_WINDOW_BYTES.saturating_sub(sent - output.acknowledged.load(Ordering::Relaxed));
        let take = bytes.len().min(room as usize).min(link::MAX_BODY);
        if take == 0 && !bytes.is_empty() {
            return Err(StreamError::WouldBlock);
        }
        if take != 0 {
            output.sent.store(sent + take as u64, Ordering::Relaxed);
            link::send(Header::new(Kind::StreamData, self.0.id).stream(number).arg(sent), &bytes[..take]);
        }
        Ok(take)
    }

    fn stream_readable(&self, stream: Stream) -> Option<u64> {
        if stream != Stream::Stdin {
            return Some(0);
        }
        let stdin = self.0.stdin.lock();
        match stdin.buffer.len() {
            0 if !stdin.ended => None,
            bytes => Some(bytes as u64),
        }
    }

    fn stream_writable(&self, stream: Stream) -> Option<u64> {
        let output = self.0.output(Self::number(stream))?;
        if output.closed.load(Ordering::Relaxed) {
            return Some(0);
        }
        let waiting = output.sent.load(Ordering::Relaxed) - output.acknowledged.load(Ordering::Relaxed);
        match STREAM_WINDOW_BYTES.saturating_sub(waiting) {
            0 => None,
            room => Some(room),
        }
    }

    fn wait(&mut self, _: &[Interest], deadline_monotonic_ns: Option<u64>) -> Result<(), Stop> {
        self.stop_if_killed()?;
        // Whatever changes for this program wakes its task; between the caller's look and here a wake leaves its token.
        match deadline_monotonic_ns {
            Some(deadline) => task::park_until(deadline),
            None => task::park(),
        }
        self.stop_if_killed()
    }

    fn yield_now(&mut self) -> Result<(), Stop> {
        task::yield_now();
        self.stop_if_killed()
    }
}
