//! What the host does with messages from a guest, which it does not trust either.
//!
//! Input: any messages about a few programs, while their readers keep up. Checked: no panic; output arrives without gaps or
//! repetitions, an end only after all of it; what the host keeps for a guest that plays games with offsets is
//! bounded by the stream windows.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::message::{Header, Kind, STREAM_WINDOW_BYTES};
use nacre_vmm::events::{Events, Mailboxes, ProgramEvent, ProgramId};
use nacre_vmm::program::TreeEntry;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
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

#[derive(Default)]
struct Host {
    mailboxes: Mailboxes,
    readers: HashMap<u32, Events>,
    /// Where each output stream is, and where it ends.
    streams: HashMap<(u32, u32), (u64, Option<u64>)>,
    messages: usize,
}

impl Host {
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
            Step::Open(program) => self.open(u32::from(program) % PROGRAMS),
            Step::Remove(program) => {
                let program = u32::from(program) % PROGRAMS;
                self.mailboxes.remove(ProgramId(program));
                self.readers.remove(&program);
                self.streams.retain(|(of, _), _| *of != program);
            }
            Step::Close => {
                self.mailboxes.close();
                self.streams.clear();
                assert!(self.readers.values().all(|reader| reader.recv().is_none()));
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut host = Host::default();
    (0..PROGRAMS).for_each(|program| host.open(program));
    let before = IN_USE.load(Ordering::Relaxed);
    for step in steps {
        host.step(step);
        let kept = IN_USE.load(Ordering::Relaxed).saturating_sub(before);
        let bound = PROGRAMS as usize * KEPT_PER_PROGRAM + host.messages * KEPT_PER_MESSAGE + 65536;
        assert!(kept <= bound, "the host keeps {kept} bytes for a guest whose windows allow {bound}");
    }
});
