//! Messages on the rings: a fixed header and a body of bytes.
//!
//! A CVM runs *programs*, numbered by the host. A program's life, host (H) and guest (G):
//!
//! ```text
//! H ProgramCreate(arg: code bytes)  ProgramCode*  ProgramArg* ProgramEnv* Preopen* ProgramOption*  (TreeEntry TreeData*)*
//! H ProgramStart
//! H StreamData/StreamEnd (stdin)    G StreamData (stdout, stderr)    both Credit (bytes consumed so far)
//! G ProgramExited
//! H SocketOpen ...                  connections: see [`socket`](crate::socket)
//! H Export                          G (TreeEntry TreeData*)* TreeEnd
//! H ProgramDrop
//! ```
//!
//! A *module* is code that is loaded once and called many times. Host-chosen numbers name modules and calls, each kind in
//! a space of its own (`program` in the header):
//!
//! ```text
//! H ModuleCreate(arg: code bytes)  ModuleCode*  ModuleLoad      G ModuleLoaded
//! H CallStart(stream: module, arg: request bytes)  CallData*    G CallOutput*  CallDone
//! H CallCancel                                                  (a CallDone comes all the same)
//! H ModuleDrop                                                  (its calls run to their ends)
//! ```
//!
//! What a request and an answer hold is in [`call`](crate::call): in the usual case one message each way.
//!
//! Streams carry byte offsets from their start: a program may write from one vCPU's ring and then from another's, and the
//! receiver puts the pieces in order. A sender has at most [`STREAM_WINDOW_BYTES`] on the way that the receiver has not
//! consumed, so neither side needs an unbounded buffer and a stalled stream blocks nobody else.

/// Words in a header.
pub const HEADER_WORDS: usize = 3;

/// Bytes of a stream that may be unconsumed.
pub const STREAM_WINDOW_BYTES: u64 = 128 << 10;

/// Program number of messages that concern the CVM as a whole.
pub const NO_PROGRAM: u32 = u32::MAX;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a message says; H: sent by the host, G: by the guest.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// The kind with this number, if there is one.
            pub const fn from_number(number: u16) -> Option<Kind> {
                match number {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// H: a new program; `arg` is the length of its precompiled code in bytes. With [`CodeForm::Package`](crate::attest::CodeForm) in
    /// `stream` its code is what was installed from a package, named by the body.
    ProgramCreate = 1,
    /// H: a piece of the code; `arg` is its offset.
    ProgramCode = 2,
    /// H: one argument (argv\[0\] first).
    ProgramArg = 3,
    /// H: one environment variable, `K=V`.
    ProgramEnv = 4,
    /// H: a directory the program finds open, as a guest path.
    Preopen = 5,
    /// Both: a file, directory or symbolic link; `stream` is a [`TreeKind`], `arg` the modification time in nanoseconds
    /// since 1970; the body is the path, for a link then a zero byte and the target.
    TreeEntry = 6,
    /// Both: the next bytes of the last entry, a file. From the guest `arg` is their offset in the tree's bytes.
    TreeData = 7,
    /// G: an exported tree is complete; the body is empty, or says why it failed.
    TreeEnd = 8,
    /// H: run the program; bits 0 to 2 of `arg` say which of its standard streams are terminals.
    ProgramStart = 9,
    /// Both: bytes of `stream` at offset `arg`.
    StreamData = 10,
    /// Both: `stream` ends at offset `arg`.
    StreamEnd = 11,
    /// Both: the receiver of `stream` has consumed all before offset `arg`.
    Credit = 12,
    /// H: nobody reads this stream any more.
    StreamClosed = 13,
    /// G: the program is over; `stream` is an [`ExitKind`], `arg` its exit code, the body an error text.
    ProgramExited = 14,
    /// H: send the tree below the guest path in the body.
    Export = 15,
    /// H: forget the program.
    ProgramDrop = 16,
    /// H: send a [`Stats`](Kind::Stats) message.
    StatsRequest = 17,
    /// G: the guest's counters, [`GuestStats`].
    Stats = 18,
    /// G: the guest is up; `arg` is its time stamp counter then.
    Ready = 19,
    /// H, before the start: something about how the program runs; `stream` is a [`ProgramOption`], `arg` its value.
    ProgramOption = 20,
    /// H: a new module; `program` is its number, `arg` the length of its code in bytes, `stream` its
    /// [`CodeForm`](crate::attest::CodeForm).
    ModuleCreate = 21,
    /// H: a piece of a module's code; `arg` is its offset.
    ModuleCode = 22,
    /// H: the code is complete: load it.
    ModuleLoad = 23,
    /// G: the module can be called if `stream` is [`ExitKind::Code`]; else it is gone and the body says why.
    ModuleLoaded = 24,
    /// H: forget the module; calls of it that were started go on.
    ModuleDrop = 25,
    /// H: call the module with number `stream` (or [`SESSIONS`](crate::attest::SESSIONS)); `program` is the call's number, `arg` the
    /// length of the request, the body its first bytes. From [`ModuleLoad`](Kind::ModuleLoad) on: the call begins when the module is
    /// loaded, or ends as the load did.
    CallStart = 26,
    /// H: more of a request; `arg` is the offset.
    CallData = 27,
    /// H: end the call at its next safe point.
    CallCancel = 28,
    /// G: a piece of a call's output, of [`call::PIECE_BYTES`](crate::call::PIECE_BYTES) but for the last one; `stream` says
    /// of which, `arg` is the offset.
    CallOutput = 29,
    /// G: the call is over; the body is an answer (see [`call`](crate::call)).
    CallDone = 30,
    /// H, debug images only: stop all tasks and send the tenant arena.
    ArenaDump = 32,
    /// Both, debug images only: memory at virtual address `arg`; `stream` holds the permissions.
    ArenaPage = 33,
    /// Both, debug images only: an address range that is reserved but has no frames yet; the body is its length.
    ArenaLazy = 34,
    /// Both, debug images only: the arena is complete; the receiver runs its tasks.
    ArenaEnd = 36,
    /// H, debug images only: make the measurement [`SelfTest`] number `arg`; the body is its input. G: the result as text.
    SelfTest = 37,
    /// H: a new connection for a program that listens; `stream` is its number in this and all that follow, `arg` up to what
    /// cost the guest may send, the body the peer's address. All kinds of connections: see [`socket`](crate::socket).
    SocketOpen = 48,
    /// G: the program has accepted the connection; `arg` is up to what cost the host may send.
    SocketAccepted = 49,
    /// G: there is no such connection, and the guest says nothing more of it; `arg` is a [`Refusal`](crate::socket::Refusal).
    SocketRefused = 50,
    /// Both: bytes of a connection at offset `arg`.
    SocketData = 51,
    /// Both: the sender's half ends at offset `arg`.
    SocketEnd = 52,
    /// Both: up to what cost the other side may send.
    SocketCredit = 53,
    /// Both, the sender's last word: its half ends at offset `arg`, and it reads no more.
    SocketClose = 54,
    /// Both, the sender's last word: the connection failed.
    SocketReset = 55,
    /// H, once and before any code: the tenant manifest, signed. Without it the CVM is open and no manifest is in its evidence.
    Manifest = 56,
    /// H: make an offer for a session; `program` is the request's number, the body the client's nonce.
    EvidenceRequest = 57,
    /// G: `program` is the guest's number for it, the body the report data.
    ReportRequest = 58,
    /// H: the report that was asked for under this number, with its certificates, as `nacre-attest` encodes them; without a body
    /// there is none.
    Report = 59,
    /// G: the answer to the evidence request with this number; `stream` is an [`EvidenceKind`](crate::attest::EvidenceKind).
    Evidence = 60,
    /// H: move the tenant away; the body is a [`SendOrder`](crate::migrate::SendOrder).
    MigrateSend = 64,
    /// H, before anything but a manifest: this CVM is to receive a tenant; `arg` is the bandwidth to expect, in bytes per second.
    MigrateReceive = 65,
    /// H: end the migration, if that is still possible.
    MigrateCancel = 66,
    /// G at the source: the tenant is gone, and the body makes the destination run it. H at the destination: that body.
    MigrateCommit = 67,
    /// G: `stream` is a [`MoveEvent`](crate::migrate::MoveEvent).
    MigrateEvent = 68,
    /// H: all memory of this CVM is committed.
    MigrateMemory = 69,
    /// G: both pipes of channel `arg` are empty and begin again, as [`MoveWord::Rejoin`](crate::migrate::MoveWord) wanted.
    MigrateRejoined = 70,
}

/// What a debug image can measure of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Nanoseconds that each of many instances of the message's program takes.
    Instances = 0,
    /// Nanoseconds of bare wakes of a parked worker. Body: nanoseconds to wait before each, four bytes per wake.
    WakeFloor = 1,
    /// Nanoseconds in all, then from the arrival of each empty task to its first instruction. Body: nanoseconds from one
    /// arrival to the next, four bytes per task.
    Wakes = 2,
    /// No numbers: whether the guest finds its own memory in order, "ok" or what is wrong.
    Audit = 3,
    /// No numbers: makes a worker take a lock, which shows that the count of such locks counts.
    TakeLock = 4,
}

impl SelfTest {
    /// The measurement with this number, if there is one.
    pub const fn from_number(number: u64) -> Option<SelfTest> {
        match number {
            0 => Some(SelfTest::Instances),
            1 => Some(SelfTest::WakeFloor),
            2 => Some(SelfTest::Wakes),
            3 => Some(SelfTest::Audit),
            4 => Some(SelfTest::TakeLock),
            _ => None,
        }
    }
}

/// Standard streams of a program.
pub mod stream {
    /// Standard input, host to guest.
    pub const STDIN: u32 = 0;
    /// Standard output, guest to host.
    pub const STDOUT: u32 = 1;
    /// Standard error, guest to host.
    pub const STDERR: u32 = 2;
    /// The bytes of an exported tree ([`TreeData`](super::Kind::TreeData)), guest to host: they have a window too.
    pub const TREE: u32 = 3;
}

/// What a [`TreeEntry`](Kind::TreeEntry) describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeKind {
    /// A directory.
    Directory = 0,
    /// A regular file; its bytes follow.
    File = 1,
    /// A symbolic link.
    Symlink = 2,
}

impl TreeKind {
    /// The kind with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<TreeKind> {
        match number {
            0 => Some(TreeKind::Directory),
            1 => Some(TreeKind::File),
            2 => Some(TreeKind::Symlink),
            _ => None,
        }
    }
}

/// What a [`ProgramOption`](Kind::ProgramOption) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramOption {
    /// How long the program may take from its start, in nanoseconds.
    WallLimit = 0,
    /// How much CPU time its main task may have, in nanoseconds.
    CpuLimit = 1,
    /// The class of its tasks: 0 high, 1 normal, 2 low.
    Priority = 2,
    /// It finds a listening socket behind its preopened directories. No value.
    Listens = 16,
}

impl ProgramOption {
    /// The option with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<ProgramOption> {
        match number {
            0 => Some(ProgramOption::WallLimit),
            1 => Some(ProgramOption::CpuLimit),
            2 => Some(ProgramOption::Priority),
            16 => Some(ProgramOption::Listens),
            _ => None,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// It returned or called `proc_exit`; `arg` is the code.
    Code = 0,
    /// A Wasm trap; the body is the message and the Wasm backtrace.
    Trap = 1,
    /// It could not be loaded or started; the body says why.
    Error = 2,
    /// It wrote to a stream that nobody reads any more.
    BrokenPipe = 3,
    /// It needed more memory than the CVM has.
    OutOfMemory = 4,
    /// It reached its time limit; the body says which.
    TimeLimit = 5,
}

impl ExitKind {
    /// The kind with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<ExitKind> {
        match number {
            0 => Some(ExitKind::Code),
            1 => Some(ExitKind::Trap),
            2 => Some(ExitKind::Error),
            3 => Some(ExitKind::BrokenPipe),
            4 => Some(ExitKind::OutOfMemory),
            5 => Some(ExitKind::TimeLimit),
            _ => None,
        }
    }
}

/// The fixed part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it says.
    pub kind: Kind,
    /// Length of the body in bytes.
    pub len: u32,
    /// The program concerned, or [`NO_PROGRAM`].
    pub program: u32,
    /// Stream number or a sub-kind.
    pub stream: u32,
    /// Offset, length or code: see [`Kind`].
    pub arg: u64,
}

impl Header {
    /// A header for a message about `program`; the length is filled in when it is sent.
    pub const fn new(kind: Kind, program: u32) -> Header {
        Header { kind, len: 0, program, stream: 0, arg: 0 }
    }

    /// The same with another `stream`.
    pub const fn stream(self, stream: u32) -> Header {
        Header { stream, ..self }
    }

    /// The same with another `arg`.
    pub const fn arg(self, arg: u64) -> Header {
        Header { arg, ..self }
    }

    /// As words: `kind | len << 32`, `program | stream << 32`, `arg`.
    pub const fn encode(self) -> [u64; HEADER_WORDS] {
        [
            self.kind as u64 | (self.len as u64) << 32,
            self.program as u64 | (self.stream as u64) << 32,
            self.arg,
        ]
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for an unknown kind or reserved bits.
    pub const fn decode(words: [u64; HEADER_WORDS]) -> Option<Header> {
        if words[0] & 0xffff_0000 != 0 {
            return None;
        }
        let Some(kind) = Kind::from_number(words[0] as u16) else { return None };
        Some(Header {
            kind,
            len: (words[0] >> 32) as u32,
            program: words[1] as u32,
            stream: (words[1] >> 32) as u32,
            arg: words[2],
        })
    }
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a guest. All of them are the guest's own claims.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct GuestStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl GuestStats {
            /// Bytes of the encoded form.
            pub const BYTES: usize = 8 * [$(stringify!($name)),*].len();

            /// Little-endian words in the order of the fields.
            pub fn encode(&self) -> [u8; Self::BYTES] {
                let mut bytes = [0; Self::BYTES];
                for (chunk, word) in bytes.chunks_exact_mut(8).zip([$(self.$name),*]) {
                    chunk.copy_from_slice(&word.to_le_bytes());
                }
                bytes
            }

            /// Reads what [`encode`](Self::encode) wrote.
            pub fn decode(bytes: &[u8; Self::BYTES]) -> GuestStats {
                let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
                GuestStats { $($name: words.next().unwrap_or(0),)* }
            }
        }
    };
}

stats! {
    /// Time stamp counter when vCPU 0 executed its first instruction.
    entry_tsc,
    /// ... when memory management and the other vCPUs' data were ready.
    memory_ready_tsc,
    /// ... when the first program's first message came.
    created_tsc,
    /// ... when its task ran.
    task_tsc,
    /// ... when the engine was there.
    engine_tsc,
    /// ... when the first program was loaded and about to be instantiated.
    loaded_tsc,
    /// ... just before the first Wasm instruction of the first program.
    wasm_tsc,
    /// Bytes of frames in use.
    frames_used_bytes,
    /// Bytes of frames promised to areas that may touch them later, and in use.
    committed_bytes,
    /// Highest value of `committed_bytes`.
    committed_peak_bytes,
    /// Bytes that were given back to the host.
    released_bytes,
    /// Page faults handled.
    page_faults,
    /// Translation look-aside buffer flushes.
    tlb_flushes,
    /// Tasks resumed.
    task_resumes,
    /// Tasks resumed on another vCPU than before.
    task_moves,
    /// Tasks that programs spawned.
    tasks_spawned,
    /// Tasks that ended.
    tasks_ended,
    /// CPU time of those, in nanoseconds.
    task_cpu_ns,
    /// The least and the most that one of them had.
    task_cpu_min_ns,
    /// See `task_cpu_min_ns`.
    task_cpu_max_ns,
    /// Times a task gave its vCPU up because its slice was over or a higher one waited.
    preemptions,
    /// Times a vCPU parked.
    parks,
    /// Times a vCPU was woken by the guest.
    wakes,
    /// Times a worker found that it must park.
    reclaims,
    /// Calls of modules that were started.
    calls,
    /// Calls that found no memory of their module's ready for use.
    calls_cold,
    /// Bytes of linear memory that were put back after calls.
    restored_bytes,
    /// Messages that came from the host.
    messages_in,
    /// Messages to the host.
    messages_out,
    /// Doorbells rung for them.
    doorbells,
    /// Tasks that were handed to vCPU 0 because they needed a lock of the engine's.
    handed_over,
    /// Locks that were taken on Worker vCPUs: 0, else a worker that the host stops can hold up others.
    worker_locks,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_a_round_trip_and_reserved_bits_are_refused() {
        let header = Header { kind: Kind::Credit, len: 9, program: 3, stream: 2, arg: u64::MAX };
        assert_eq!(Header::decode(header.encode()), Some(header));
        let mut words = header.encode();
        words[0] |= 1 << 20;
        assert_eq!(Header::decode(words), None);
        assert_eq!(Header::decode([0, 0, 0]), None);
        assert_eq!(Header::decode([31, 0, 0]), None);
    }

    #[test]
    fn stats_survive_a_round_trip() {
        let stats = GuestStats { entry_tsc: 1, wakes: u64::MAX, page_faults: 3, ..GuestStats::default() };
        assert_eq!(GuestStats::decode(&stats.encode()), stats);
    }
}
