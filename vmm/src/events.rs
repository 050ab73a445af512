//! What happens to programs: messages from the guest, put in order and handed to whoever follows a program.
//!
//! The guest is not trusted here: what one program makes the host keep is bounded, whatever the guest sends.

use crate::tunnel::roster::{InputEntry, OutputEntry, Phase};
use nacre_abi::message::{ExitKind, Header, Kind, STREAM_WINDOW_BYTES, stream};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The host's number for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramId(pub u32);

/// What happens to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramEvent {
    /// Bytes of standard output (1) or error (2), in order. Say [`Program::consumed`] when they are dealt with.
    Output {
        /// Stream number.
        stream: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// Offset behind them.
        end: u64,
    },
    /// The guest has consumed standard input up to here.
    InputCredit(u64),
    /// It is over; all its output came before.
    Exited(Exit),
    /// Any other message, for whoever asked for it.
    Message(Header, Vec<u8>),
}

impl ProgramEvent {
    /// What it takes in memory, about, in bytes.
    fn cost(&self) -> usize {
        EVENT_BYTES
            + match self {
                ProgramEvent::Output { bytes, .. } | ProgramEvent::Message(_, bytes) => bytes.len(),
                ProgramEvent::InputCredit(_) | ProgramEvent::Exited(_) => 0,
            }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(u32),
    /// By a trap: message and Wasm backtrace.
    Trap(String),
    /// It could not be loaded or started.
    Error(String),
    /// It wrote to a stream that nobody reads.
    BrokenPipe,
    /// It needed more memory than there is.
    OutOfMemory(String),
    /// It reached its time limit: which one, and what to do.
    TimeLimit(String),
}

impl Exit {
    fn decode(header: Header, body: &[u8]) -> Exit {
        Exit::new(ExitKind::from_number(header.stream), header.arg as u32, body)
    }

    /// The end of this kind, with its code or text.
    pub(crate) fn new(kind: Option<ExitKind>, code: u32, text: &[u8]) -> Exit {
        let text = || String::from_utf8_lossy(text).into_owned();
        match kind {
            Some(ExitKind::Code) => Exit::Code(code),
            Some(ExitKind::Trap) => Exit::Trap(text()),
            Some(ExitKind::BrokenPipe) => Exit::BrokenPipe,
            Some(ExitKind::OutOfMemory) => Exit::OutOfMemory(text()),
            Some(ExitKind::TimeLimit) => Exit::TimeLimit(text()),
            Some(ExitKind::Error) => Exit::Error(text()),
            None => Exit::Error("the guest reports an unknown end".into()),
        }
    }
}

/// Puts the pieces of one stream, which come over several rings, in order. A guest may have one window beyond what was
/// consumed on its way; pieces beyond that, or that overlap others, are not kept.
#[derive(Default)]
struct Reorder {
    next: u64,
    consumed: u64,
    early: BTreeMap<u64, Vec<u8>>,
    end: Option<u64>,
}

impl Reorder {
    fn starting_at(offset: u64) -> Reorder {
        Reorder { next: offset, consumed: offset, ..Reorder::default() }
    }

    /// Takes a piece; returns what is in order now.
    fn push(&mut self, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let window_end = self.consumed.saturating_add(STREAM_WINDOW_BYTES);
        let Some(end) = offset.checked_add(bytes.len() as u64).filter(|end| *end <= window_end) else {
            return Vec::new();
        };
        let before = self.early.range(..end).next_back();
        let overlaps = before.is_some_and(|(start, piece)| start + piece.len() as u64 > offset);
        if offset < self.next || overlaps || bytes.is_empty() {
            return Vec::new();
        }
        self.early.insert(offset, bytes.to_vec());
        let mut ready = Vec::new();
        while let Some(piece) = self.early.remove(&self.next) {
            self.next += piece.len() as u64;
            ready.extend(piece);
        }
        ready
    }

    fn is_complete(&self) -> bool {
        self.end == Some(self.next)
    }
}

/// Bytes of events that may wait for one reader, apart from the streams, which have their windows.
const MAX_WAITING_BYTES: usize = 256 << 20;
/// What an event costs beside its bytes.
const EVENT_BYTES: usize = 128;

/// The queue of what happens to a program.
pub struct Events {
    events: Receiver<ProgramEvent>,
    waiting: Arc<AtomicUsize>,
}

impl Events {
    /// Waits for the next event; `None` after the end of the CVM, or when the guest broke the protocol.
    pub fn recv(&self) -> Option<ProgramEvent> {
        self.events.recv().ok().inspect(|event| self.taken(event))
    }

    /// The next event if it is there.
    pub fn try_recv(&self) -> Option<ProgramEvent> {
        self.events.try_recv().ok().inspect(|event| self.taken(event))
    }

    fn taken(&self, event: &ProgramEvent) {
        self.waiting.fetch_sub(event.cost(), Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Mailbox {
    events: Option<mpsc::Sender<ProgramEvent>>,
    waiting: Arc<AtomicUsize>,
    /// Standard output, standard error, exported tree.
    streams: [Reorder; 3],
    exit: Option<Exit>,
    phase: Option<Phase>,
    input: InputEntry,
}

impl Mailbox {
    fn deliver(&mut self, header: Header, body: &[u8]) {
        let stream = match header.stream {
            stream::STDOUT => Some(0),
            stream::STDERR => Some(1),
            stream::TREE => Some(2),
            _ => None,
        };
        let event = match (header.kind, stream) {
            (Kind::StreamData, Some(index @ 0..=1)) => {
                let bytes = self.streams[index].push(header.arg, body);
                let end = self.streams[index].next;
                (!bytes.is_empty()).then_some(ProgramEvent::Output { stream: header.stream, bytes, end })
            }
            // One task sends a tree, entries and data in turn: a piece that is not the next one is a lie.
            (Kind::TreeData, Some(2)) if header.arg == self.streams[2].next => {
                let bytes = self.streams[2].push(header.arg, body);
                (!bytes.is_empty()).then_some(ProgramEvent::Message(header, bytes))
            }
            (Kind::StreamEnd, Some(index @ 0..=1)) => {
                self.streams[index].end = Some(header.arg);
                None
            }
            (Kind::Credit, None) => {
                self.input.consumed = self.input.consumed.max(header.arg);
                Some(ProgramEvent::InputCredit(header.arg))
            }
            (Kind::ProgramExited, _) => {
                self.exit = Some(Exit::decode(header, body));
                None
            }
            (Kind::StreamData | Kind::TreeData, _) => None,
            _ => Some(ProgramEvent::Message(header, body.to_vec())),
        };
        self.post(event);
        // The end is told when all output is: it may have come over a faster ring.
        if self.streams[..2].iter().all(Reorder::is_complete) {
            let exit = self.exit.take().map(ProgramEvent::Exited);
            if exit.is_some() {
                self.phase = Some(Phase::Over);
            }
            self.post(exit);
        }
    }

    fn post(&mut self, event: Option<ProgramEvent>) {
        if let (Some(events), Some(event)) = (&self.events, event) {
            let waiting = self.waiting.fetch_add(event.cost(), Ordering::Relaxed) + event.cost();
            // A receiver that is gone is not interested.
            let _ = events.send(event);
            if waiting > MAX_WAITING_BYTES {
                tracing::warn!(waiting, "a guest sends faster than it may: its messages are no longer read");
                self.events = None;
            }
        }
    }
}

/// Where messages about programs go.
#[derive(Default)]
pub struct Mailboxes(Mutex<State>);

#[derive(Default)]
struct State {
    boxes: HashMap<ProgramId, Mailbox>,
    closed: bool,
}

impl Mailboxes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the mailbox of a program, or replaces its reader. After the CVM's end the queue is closed at once.
    pub fn open(&self, id: ProgramId) -> Events {
        let (sender, events) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut state = self.state();
        if !state.closed {
            let mailbox = state.boxes.entry(id).or_default();
            (mailbox.events, mailbox.waiting) = (Some(sender), waiting.clone());
        }
        Events { events, waiting }
    }

    /// The same for a program whose outputs go on at these offsets.
    pub fn open_at(&self, id: ProgramId, outputs: [u64; 2]) -> Events {
        let events = self.open(id);
        if let Some(mailbox) = self.state().boxes.get_mut(&id) {
            mailbox.streams = [outputs[0], outputs[1], 0].map(Reorder::starting_at);
        }
        events
    }

    /// How much of a program's outputs has come in order.
    pub fn outputs_seen(&self, id: ProgramId) -> [u64; 2] {
        self.state()
            .boxes
            .get(&id)
            .map_or([0; 2], |mailbox| [mailbox.streams[0].next, mailbox.streams[1].next])
    }

    /// The same for a program that comes from another host.
    pub(crate) fn adopt(&self, id: ProgramId, outputs: [OutputEntry; 2], input: InputEntry) -> Events {
        let events = self.open_at(id, outputs.map(|output| output.next));
        if let Some(mailbox) = self.state().boxes.get_mut(&id) {
            mailbox.phase = Some(Phase::Running);
            mailbox.input = input;
            for (stream, output) in mailbox.streams.iter_mut().zip(outputs) {
                stream.end = output.end;
            }
        }
        events
    }

    /// What another host has to know of the programs.
    pub(crate) fn roster(&self) -> Vec<(ProgramId, Phase, [OutputEntry; 2], InputEntry)> {
        let state = self.state();
        let entry = |(id, mailbox): (&ProgramId, &Mailbox)| {
            let output = |number: usize| {
                let Reorder { next, end, .. } = mailbox.streams[number];
                OutputEntry { next, end }
            };
            (*id, mailbox.phase.unwrap_or(Phase::Loading), [output(0), output(1)], mailbox.input)
        };
        let mut programs: Vec<_> = state.boxes.iter().map(entry).collect();
        programs.sort_unstable_by_key(|(id, ..)| id.0);
        programs
    }

    /// The program was started.
    pub(crate) fn started(&self, id: ProgramId) {
        if let Some(mailbox) = self.state().boxes.get_mut(&id) {
            mailbox.phase.get_or_insert(Phase::Running);
        }
    }

    /// Standard input of a program as far as it is known here.
    pub(crate) fn input(&self, id: ProgramId) -> InputEntry {
        self.state().boxes.get(&id).map_or(InputEntry::default(), |mailbox| mailbox.input)
    }

    /// So much of it was sent.
    pub(crate) fn input_sent(&self, id: ProgramId, sent: u64, ended: bool) {
        if let Some(mailbox) = self.state().boxes.get_mut(&id) {
            mailbox.input.sent = mailbox.input.sent.max(sent);
            mailbox.input.ended |= ended;
        }
    }

    /// Hands a message to its program's reader; nobody's messages are dropped.
    pub fn deliver(&self, header: Header, body: &[u8]) {
        if let Some(mailbox) = self.state().boxes.get_mut(&ProgramId(header.program)) {
            mailbox.deliver(header, body);
        }
    }

    /// The reader has dealt with a stream up to `end`: that much more of it may come.
    pub fn consumed(&self, id: ProgramId, stream: u32, end: u64) {
        if let Some(mailbox) = self.state().boxes.get_mut(&id)
            && let Some(index) = stream.checked_sub(stream::STDOUT)
            && let Some(reorder) = mailbox.streams.get_mut(index as usize)
        {
            reorder.consumed = reorder.consumed.max(end.min(reorder.next));
        }
    }

    /// Forgets a program.
    pub fn remove(&self, id: ProgramId) {
        self.state().boxes.remove(&id);
    }

    /// The CVM has ended: all readers find their queues closed.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.boxes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_in_order_and_the_end_comes_last() {
        let mailboxes = Mailboxes::default();
        let id = ProgramId(4);
        let events = mailboxes.open(id);
        let data = |offset: u64, bytes: &[u8]| {
            mailboxes.deliver(Header::new(Kind::StreamData, 4).stream(stream::STDOUT).arg(offset), bytes);
        };
        mailboxes.deliver(Header::new(Kind::ProgramExited, 4).stream(ExitKind::Code as u32).arg(3), &[]);
        mailboxes.deliver(Header::new(Kind::StreamEnd, 4).stream(stream::STDERR).arg(0), &[]);
        mailboxes.deliver(Header::new(Kind::StreamEnd, 4).stream(stream::STDOUT).arg(6), &[]);
        data(4, b"ef");
        assert_eq!(events.try_recv(), None);
        data(0, b"ab");
        data(0, b"XX");
        data(2, b"cd");
        let output = |bytes: &[u8], end| ProgramEvent::Output { stream: 1, bytes: bytes.to_vec(), end };
        assert_eq!(events.recv().unwrap(), output(b"ab", 2));
        assert_eq!(events.recv().unwrap(), output(b"cdef", 6));
        assert_eq!(events.recv().unwrap(), ProgramEvent::Exited(Exit::Code(3)));
    }

    #[test]
    fn a_guest_that_exceeds_its_window_is_not_stored() {
        let mut reorder = Reorder::default();
        for offset in 1..2 * STREAM_WINDOW_BYTES {
            reorder.push(offset, &[0; 64]);
        }
        let kept: usize = reorder.early.values().map(Vec::len).sum();
        assert!(kept as u64 <= STREAM_WINDOW_BYTES, "{kept} bytes");
        assert!(reorder.push(u64::MAX, b"x").is_empty());
        // In order, but beyond what was consumed.
        let mut reorder = Reorder::default();
        let piece = vec![0; STREAM_WINDOW_BYTES as usize];
        assert_eq!(reorder.push(0, &piece).len(), piece.len());
        assert!(reorder.push(STREAM_WINDOW_BYTES, b"x").is_empty());
    }

    #[test]
    fn readers_learn_of_the_end_of_the_cvm() {
        let mailboxes = Mailboxes::default();
        let before = mailboxes.open(ProgramId(1));
        mailboxes.close();
        assert!(before.recv().is_none() && mailboxes.open(ProgramId(2)).recv().is_none());
    }

    #[test]
    fn a_guest_that_floods_a_reader_is_cut_off() {
        let mailboxes = Mailboxes::default();
        let events = mailboxes.open(ProgramId(1));
        for _ in 0..5000 {
            mailboxes.deliver(Header::new(Kind::SelfTest, 1), &[0; 65536]);
        }
        let received = std::iter::from_fn(|| events.recv()).count();
        assert!(received * 65536 <= MAX_WAITING_BYTES + 65536, "{received} messages kept");
    }
}
