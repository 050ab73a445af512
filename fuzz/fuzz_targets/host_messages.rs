//! What the host does with messages from a guest, which it does not trust either.
//!
//! Input: any messages about a few programs, while their readers keep up, and about a few calls. Checked: no panic; output arrives without gaps or
//! repetitions, an end only after all of it; what the host keeps for a guest that plays games with offsets is
//! bounded by the stream windows, and by what the calls allow; each call gets one result, within what it allows.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::call::{AnswerHead, PIECE_BYTES};
use nacre_abi::message::ExitKind;
use nacre_abi::message::{Header, Kind, STREAM_WINDOW_BYTES};
use nacre_vmm::calls::{CallError, Calls};
use nacre_vmm::events::{Events, Mailboxes, ProgramEvent, ProgramId};
use nacre_vmm::program::TreeEntry;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above; `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Programs the host knows; messages may be about others.
const PROGRAMS: u32 = 3;
/// The longest body on a ring to the host.
const MAX_BODY: usize = (nacre_abi::window::TO_HOST_BYTES / 4) as usize;
/// Bytes the host may keep per program: early pieces of two streams (the window, twice), and the text of its end.
const KEPT_PER_PROGRAM: usize = 2 * 2 * STREAM_WINDOW_BYTES as usize + MAX_BODY;
/// Tasks of the guest whose calls these are.
const MAX_TASKS: u32 = 8;
/// Bytes the host may keep per call: two outputs, in vectors that may have grown by doubling, and what a result copies of them.
const KEPT_PER_CALL: usize = 2 * 2 * 4 * PIECE_BYTES + 1024;
/// Bytes of bookkeeping per message: a map node, a vector.
const KEPT_PER_MESSAGE: usize = 1024;

#[derive(Debug, arbitrary::Arbitrary)]
enum Step {
    Output {
        program: u8,
        error: bool,
        arg: Arg,
        body: Body,
    },
    /// Many pieces that overlap, behind a gap that is never filled.
    Overlap {
        program: u8,
        count: u8,
        distance: u8,
        len: u16,
    },
    OutputEnd {
        program: u8,
        error: bool,
        arg: Arg,
    },
    Exit {
        program: u8,
        kind: u8,
        text: Body,
    },
    Any {
        kind: u8,
        program: u8,
        stream: u8,
        arg: Arg,
        body: Body,
    },
    /// A call is made that has room for so many pieces of output.
    Call(u8),
    /// A piece of a call's output, its number counted from the start.
    Piece {
        call: u8,
        error: bool,
        number: u8,
        off: bool,
        len: u16,
    },
    /// The end of a call, with so many bytes of output.
    Done {
        call: u8,
        out: u32,
        err: u32,
        in_pieces: bool,
        lie: bool,
    },
    /// The host asks for another reader.
    Open(u8),
    Remove(u8),
    Close,
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Arg {
    /// Where the stream is.
    Here,
    /// Near that.
    Near(i8),
    /// Within or just beyond the window, in KiB.
    Ahead(u16),
    Any(u64),
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Body {
    Text(Vec<u8>),
    Long(u16),
}

struct Host {
    mailboxes: Mailboxes,
    calls: Calls,
    /// Calls made and results told.
    made: usize,
    told: Arc<AtomicUsize>,
    readers: HashMap<u32, Events>,
    /// Where each output stream is, and where it ends.
    streams: HashMap<(u32, u32), (u64, Option<u64>)>,
    messages: usize,
}

impl Host {
    fn new() -> Host {
        Host {
            mailboxes: Mailboxes::default(),
            calls: Calls::new(MAX_TASKS),
            made: 0,
            told: Arc::default(),
            readers: HashMap::new(),
            streams: HashMap::new(),
            messages: 0,
        }
    }

    /// Makes a call that has room for `pieces` pieces.
    fn call(&mut self, pieces: u8) {
        let (room, told) = (usize::from(pieces % 4) * PIECE_BYTES, self.told.clone());
        let made = self.calls.expect(room, move |result| {
            assert!(result.stdout.len().max(result.stderr.len()) <= room);
            told.fetch_add(1, Ordering::Relaxed);
        });
        match made {
            Ok(call) => {
                assert!(call < MAX_TASKS);
                self.made += 1;
            }
            Err(error) => assert!(matches!(error, CallError::Busy | CallError::Ended)),
        }
    }

    fn deliver_call(&mut self, header: Header, body: &[u8]) {
        self.messages += 1;
        assert!(self.calls.deliver(header, body));
        assert!(self.told.load(Ordering::Relaxed) <= self.made);
    }

    fn done(&mut self, call: u8, [out, err]: [u32; 2], in_pieces: bool, lie: bool) {
        let [out, err] = [out, err].map(|bytes| u64::from(bytes) % (4 * PIECE_BYTES as u64 + 1));
        let head = AnswerHead {
            kind: ExitKind::Code,
            code: 0,
            stdout_cut: false,
            stderr_cut: false,
            cold: false,
            in_pieces,
            text_bytes: 0,
            stdout_bytes: out,
            stderr_bytes: err,
            cpu_ns: 0,
            queued_ns: 0,
            ran_ns: 0,
        };
        let mut body = head.encode().to_vec();
        body.resize(body.len() + if in_pieces { 0 } else { (out + err) as usize } + usize::from(lie), 1);
        self.deliver_call(Header::new(Kind::CallDone, u32::from(call) % MAX_TASKS), &body);
    }

    fn open(&mut self, program: u32) {
        self.readers.insert(program, self.mailboxes.open(ProgramId(program)));
    }

    fn deliver(&mut self, header: Header, body: &[u8]) {
        self.mailboxes.deliver(header, body);
        self.messages += 1;
        if header.kind == Kind::StreamEnd && self.readers.contains_key(&header.program) {
            self.streams.entry((header.program, header.stream)).or_default().1 = Some(header.arg);
        }
        if let Some(entry) = TreeEntry::decode(header, body) {
            assert!(entry.path.len() + entry.target.len() <= body.len());
            assert_eq!(entry.kind as u32, header.stream);
        }
        for (program, reader) in &mut self.readers {
            while let Some(event) = reader.try_recv() {
                match event {
                    ProgramEvent::Output { stream, bytes, end } => {
                        let (next, _) = self.streams.entry((*program, stream)).or_default();
                        assert!((1..=2).contains(&stream) && !bytes.is_empty());
                        assert_eq!(end, *next + bytes.len() as u64, "a gap in the output");
                        *next = end;
                        self.mailboxes.consumed(ProgramId(*program), stream, end);
                    }
                    ProgramEvent::Exited(_) => {
                        let complete = |stream| {
                            let (next, end) =
                                self.streams.get(&(*program, stream)).copied().unwrap_or_default();
                            end == Some(next)
                        };
                        assert!(complete(1) && complete(2), "an end before all output");
                    }
                    ProgramEvent::InputCredit(_) => assert_eq!(header.kind, Kind::Credit),
                    ProgramEvent::Message(told, text) => assert_eq!((told, &text[..]), (header, body)),
                }
            }
        }
    }

    fn message(&mut self, kind: Kind, program: u8, stream: u32, arg: Arg, body: Body) {
        let program = u32::from(program) % (PROGRAMS + 1);
        let (next, _) = self.streams.get(&(program, stream)).copied().unwrap_or_default();
        let arg = match arg {
            Arg::Here => next,
            Arg::Near(by) => next.wrapping_add_signed(i64::from(by)),
            Arg::Ahead(kib) => next + u64::from(kib % 300) * 1024,
            Arg::Any(value) => value,
        };
        let body = match body {
            Body::Text(bytes) => bytes,
            Body::Long(len) => vec![b'x'; len as usize % MAX_BODY + 1],
        };
        let header = Header { len: body.len() as u32, ..Header::new(kind, program).stream(stream).arg(arg) };
        self.deliver(header, &body);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Output { program, error, arg, body } => {
                self.message(Kind::StreamData, program, 1 + u32::from(error), arg, body);
            }
            Step::Overlap { program, count, distance, len } => {
                for piece in 0..u64::from(count % 64) {
                    let arg = Arg::Any(1 + piece * u64::from(distance));
                    self.message(Kind::StreamData, program, 1, arg, Body::Long(len));
                }
            }
            Step::OutputEnd { program, error, arg } => {
                self.message(Kind::StreamEnd, program, 1 + u32::from(error), arg, Body::Text(Vec::new()));
            }
            Step::Exit { program, kind, text } => {
                self.message(Kind::ProgramExited, program, u32::from(kind % 6), Arg::Here, text);
            }
            Step::Any { kind, program, stream, arg, body } => {
                if let Some(kind) = Kind::from_number(u16::from(kind % 40)) {
                    self.message(kind, program, u32::from(stream % 6), arg, body);
                }
            }
            Step::Call(pieces) => self.call(pieces),
            Step::Piece { call, error, number, off, len } => {
                let arg = u64::from(number % 6) * PIECE_BYTES as u64 + u64::from(off);
                let body = vec![b'y'; len as usize % (PIECE_BYTES + 2)];
                let header = Header::new(Kind::CallOutput, u32::from(call) % MAX_TASKS);
                self.deliver_call(header.stream(1 + u32::from(error)).arg(arg), &body);
            }
            Step::Done { call, out, err, in_pieces, lie } => self.done(call, [out, err], in_pieces, lie),
            Step::Open(program) => self.open(u32::from(program) % PROGRAMS),
            Step::Remove(program) => {
                let program = u32::from(program) % PROGRAMS;
                self.mailboxes.remove(ProgramId(program));
                self.readers.remove(&program);
                self.streams.retain(|(of, _), _| *of != program);
            }
            Step::Close => {
                self.mailboxes.close();
                self.calls.close();
                assert_eq!(self.told.load(Ordering::Relaxed), self.made, "a call without a result");
                self.streams.clear();
                assert!(self.readers.values().all(|reader| reader.recv().is_none()));
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut host = Host::new();
    (0..PROGRAMS).for_each(|program| host.open(program));
    let before = IN_USE.load(Ordering::Relaxed);
    for step in steps {
        host.step(step);
        let kept = IN_USE.load(Ordering::Relaxed).saturating_sub(before);
        let bound = PROGRAMS as usize * KEPT_PER_PROGRAM
            + MAX_TASKS as usize * KEPT_PER_CALL
            + host.messages * KEPT_PER_MESSAGE
            + 65536;
        assert!(kept <= bound, "the host keeps {kept} bytes for a guest whose windows allow {bound}");
    }
});
