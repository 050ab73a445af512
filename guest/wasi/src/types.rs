//! Numbers and layouts of the preview 1 ABI, from the `typenames.witx` of `wasi_snapshot_preview1`.
//!
//! Numbers must not change: compiled programs hold them. Records are little-endian, laid out as the witx
//! rules say (natural alignment); each `encode` names its offsets.

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        /// Error codes of preview 1 (`$errno`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Errno {
            $(#[doc = $text] $name = $value,)*
        }

        impl core::fmt::Display for Errno {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(match self { $(Errno::$name => $text,)* })
            }
        }
    };
}

errnos! {
    Success = 0, "no error";
    TooBig = 1, "argument list too long";
    Acces = 2, "permission denied";
    Addrinuse = 3, "address in use";
    Addrnotavail = 4, "address not available";
    Afnosupport = 5, "address family not supported";
    Again = 6, "try again, it would block";
    Already = 7, "already in progress";
    Badf = 8, "bad file descriptor";
    Badmsg = 9, "bad message";
    Busy = 10, "resource busy";
    Canceled = 11, "operation canceled";
    Child = 12, "no child process";
    Connaborted = 13, "connection aborted";
    Connrefused = 14, "connection refused";
    Connreset = 15, "connection reset";
    Deadlk = 16, "deadlock";
    Destaddrreq = 17, "destination address required";
    Dom = 18, "argument out of domain";
    Dquot = 19, "quota exceeded";
    Exist = 20, "file exists";
    Fault = 21, "bad address";
    Fbig = 22, "file too large";
    Hostunreach = 23, "host unreachable";
    Idrm = 24, "identifier removed";
    Ilseq = 25, "illegal byte sequence";
    Inprogress = 26, "operation in progress";
    Intr = 27, "interrupted";
    Inval = 28, "invalid argument";
    Io = 29, "input or output error";
    Isconn = 30, "socket is connected";
    Isdir = 31, "is a directory";
    Loop = 32, "too many symbolic links";
    Mfile = 33, "too many open files";
    Mlink = 34, "too many links";
    Msgsize = 35, "message too large";
    Multihop = 36, "reserved";
    Nametoolong = 37, "name too long";
    Netdown = 38, "network down";
    Netreset = 39, "connection reset by network";
    Netunreach = 40, "network unreachable";
    Nfile = 41, "too many open files in system";
    Nobufs = 42, "no buffer space";
    Nodev = 43, "no such device";
    Noent = 44, "no such file or directory";
    Noexec = 45, "not an executable";
    Nolck = 46, "no locks available";
    Nolink = 47, "reserved";
    Nomem = 48, "not enough memory";
    Nomsg = 49, "no message";
    Noprotoopt = 50, "protocol option not available";
    Nospc = 51, "no space left";
    Nosys = 52, "function not supported";
    Notconn = 53, "not connected";
    Notdir = 54, "not a directory";
    Notempty = 55, "directory not empty";
    Notrecoverable = 56, "state not recoverable";
    Notsock = 57, "not a socket";
    Notsup = 58, "not supported";
    Notty = 59, "not a terminal";
    Nxio = 60, "no such device or address";
    Overflow = 61, "value too large";
    Ownerdead = 62, "previous owner died";
    Perm = 63, "operation not permitted";
    Pipe = 64, "broken pipe";
    Proto = 65, "protocol error";
    Protonosupport = 66, "protocol not supported";
    Prototype = 67, "wrong protocol type";
    Range = 68, "result too large";
    Rofs = 69, "read-only file system";
    Spipe = 70, "invalid seek";
    Srch = 71, "no such process";
    Stale = 72, "reserved";
    Timedout = 73, "timed out";
    Txtbsy = 74, "text file busy";
    Xdev = 75, "cross-device link";
    Notcapable = 76, "capabilities insufficient";
}

impl core::error::Error for Errno {}

impl Errno {
    /// The number the program sees.
    pub fn raw(self) -> u16 {
        self as u16
    }
}

macro_rules! numbers {
    ($(#[$doc:meta])* $module:ident: $ty:ty { $($name:ident = $value:expr;)* }) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        pub mod $module {
            $(pub const $name: $ty = $value;)*
        }
    };
}

numbers! {
    /// Clock identifiers (`$clockid`).
    clockid: u32 {
        REALTIME = 0;
        MONOTONIC = 1;
        PROCESS_CPUTIME_ID = 2;
        THREAD_CPUTIME_ID = 3;
    }
}

numbers! {
    /// Rights of a descriptor (`$rights`).
    rights: u64 {
        FD_DATASYNC = 1 << 0;
        FD_READ = 1 << 1;
        FD_SEEK = 1 << 2;
        FD_FDSTAT_SET_FLAGS = 1 << 3;
        FD_SYNC = 1 << 4;
        FD_TELL = 1 << 5;
        FD_WRITE = 1 << 6;
        FD_ADVISE = 1 << 7;
        FD_ALLOCATE = 1 << 8;
        PATH_CREATE_DIRECTORY = 1 << 9;
        PATH_CREATE_FILE = 1 << 10;
        PATH_LINK_SOURCE = 1 << 11;
        PATH_LINK_TARGET = 1 << 12;
        PATH_OPEN = 1 << 13;
        FD_READDIR = 1 << 14;
        PATH_READLINK = 1 << 15;
        PATH_RENAME_SOURCE = 1 << 16;
        PATH_RENAME_TARGET = 1 << 17;
        PATH_FILESTAT_GET = 1 << 18;
        PATH_FILESTAT_SET_SIZE = 1 << 19;
        PATH_FILESTAT_SET_TIMES = 1 << 20;
        FD_FILESTAT_GET = 1 << 21;
        FD_FILESTAT_SET_SIZE = 1 << 22;
        FD_FILESTAT_SET_TIMES = 1 << 23;
        PATH_SYMLINK = 1 << 24;
        PATH_REMOVE_DIRECTORY = 1 << 25;
        PATH_UNLINK_FILE = 1 << 26;
        POLL_FD_READWRITE = 1 << 27;
        SOCK_SHUTDOWN = 1 << 28;
        SOCK_ACCEPT = 1 << 29;
        ALL = (1 << 30) - 1;
    }
}

numbers! {
    /// Where a seek starts (`$whence`).
    whence: u32 {
        SET = 0;
        CUR = 1;
        END = 2;
    }
}

numbers! {
    /// Types of a file (`$filetype`).
    filetype: u8 {
        UNKNOWN = 0;
        BLOCK_DEVICE = 1;
        CHARACTER_DEVICE = 2;
        DIRECTORY = 3;
        REGULAR_FILE = 4;
        SOCKET_DGRAM = 5;
        SOCKET_STREAM = 6;
        SYMBOLIC_LINK = 7;
    }
}

numbers! {
    /// Flags of a descriptor (`$fdflags`).
    fdflags: u32 {
        APPEND = 1 << 0;
        DSYNC = 1 << 1;
        NONBLOCK = 1 << 2;
        RSYNC = 1 << 3;
        SYNC = 1 << 4;
        ALL = 31;
    }
}

numbers! {
    /// Which times to set (`$fstflags`).
    fstflags: u32 {
        ATIM = 1 << 0;
        ATIM_NOW = 1 << 1;
        MTIM = 1 << 2;
        MTIM_NOW = 1 << 3;
        ALL = 15;
    }
}

numbers! {
    /// How a path is looked up (`$lookupflags`).
    lookupflags: u32 {
        SYMLINK_FOLLOW = 1 << 0;
        ALL = 1;
    }
}

numbers! {
    /// How a path is opened (`$oflags`).
    oflags: u32 {
        CREAT = 1 << 0;
        DIRECTORY = 1 << 1;
        EXCL = 1 << 2;
        TRUNC = 1 << 3;
        ALL = 15;
    }
}

numbers! {
    /// Types of an event (`$eventtype`).
    eventtype: u8 {
        CLOCK = 0;
        FD_READ = 1;
        FD_WRITE = 2;
    }
}

numbers! {
    /// Signals (`$signal`).
    signal: u32 {
        NONE = 0;
        HUP = 1;
        INT = 2;
        QUIT = 3;
        ILL = 4;
        TRAP = 5;
        ABRT = 6;
        BUS = 7;
        FPE = 8;
        KILL = 9;
        USR1 = 10;
        SEGV = 11;
        USR2 = 12;
        PIPE = 13;
        ALRM = 14;
        TERM = 15;
        CHLD = 16;
        CONT = 17;
        STOP = 18;
        TSTP = 19;
        TTIN = 20;
        TTOU = 21;
        URG = 22;
        XCPU = 23;
        XFSZ = 24;
        VTALRM = 25;
        PROF = 26;
        WINCH = 27;
        POLL = 28;
        PWR = 29;
        SYS = 30;
    }
}

/// The number of advice values (`$advice`), all of which are accepted and change nothing.
pub(crate) const ADVICE_COUNT: u32 = 6;
/// The flag of a clock subscription whose timeout is an absolute time.
pub(crate) const SUBSCRIPTION_CLOCK_ABSTIME: u16 = 1;
/// The flag of an event whose other side has hung up.
pub(crate) const FD_READWRITE_HANGUP: u16 = 1;
/// Bytes of a `$subscription`, a `$event`, a `$dirent` header.
pub(crate) const SUBSCRIPTION_BYTES: u32 = 48;
pub(crate) const EVENT_BYTES: u32 = 32;
pub(crate) const DIRENT_BYTES: usize = 24;

/// Copies `value` to `at..` of a record; the offsets are constants inside the record's size.
fn put<const N: usize, const M: usize>(record: &mut [u8; N], at: usize, value: [u8; M]) {
    if let Some(field) = record.get_mut(at..at + M) {
        field.copy_from_slice(&value);
    }
}

/// `$fdstat`: filetype u8 at 0, flags u16 at 2, base rights u64 at 8, inheriting rights u64 at 16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fdstat {
    pub filetype: u8,
    pub flags: u32,
    pub base: u64,
    pub inheriting: u64,
}

impl Fdstat {
    pub fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        put(&mut out, 0, [self.filetype]);
        put(&mut out, 2, (self.flags as u16).to_le_bytes());
        put(&mut out, 8, self.base.to_le_bytes());
        put(&mut out, 16, self.inheriting.to_le_bytes());
        out
    }
}

/// `$filestat`: dev u64 at 0, ino u64 at 8, filetype u8 at 16, nlink u64 at 24, size u64 at 32, times (atim,
/// mtim, ctim) in nanoseconds u64 at 40, 48, 56.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filestat {
    pub dev: u64,
    pub ino: u64,
    pub filetype: u8,
    pub nlink: u64,
    pub size: u64,
    pub atim: u64,
    pub mtim: u64,
    pub ctim: u64,
}

impl Filestat {
    pub fn encode(&self) -> [u8; 64] {
        let mut out = [0; 64];
        put(&mut out, 0, self.dev.to_le_bytes());
        put(&mut out, 8, self.ino.to_le_bytes());
        put(&mut out, 16, [self.filetype]);
        put(&mut out, 24, self.nlink.to_le_bytes());
        put(&mut out, 32, self.size.to_le_bytes());
        put(&mut out, 40, self.atim.to_le_bytes());
        put(&mut out, 48, self.mtim.to_le_bytes());
        put(&mut out, 56, self.ctim.to_le_bytes());
        out
    }
}

/// `$dirent`: next cookie u64 at 0, inode u64 at 8, name length u32 at 16, filetype u8 at 20; the name follows.
pub(crate) fn encode_dirent(next: u64, ino: u64, name_bytes: u32, filetype: u8) -> [u8; DIRENT_BYTES] {
    let mut out = [0; DIRENT_BYTES];
    put(&mut out, 0, next.to_le_bytes());
    put(&mut out, 8, ino.to_le_bytes());
    put(&mut out, 16, name_bytes.to_le_bytes());
    put(&mut out, 20, [filetype]);
    out
}

/// `$event`: userdata u64 at 0, errno u16 at 8, type u8 at 10, nbytes u64 at 16, flags u16 at 24.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub userdata: u64,
    pub error: Errno,
    pub kind: u8,
    pub bytes: u64,
    pub flags: u16,
}

impl Event {
    pub fn encode(&self) -> [u8; EVENT_BYTES as usize] {
        let mut out = [0; EVENT_BYTES as usize];
        put(&mut out, 0, self.userdata.to_le_bytes());
        put(&mut out, 8, self.error.raw().to_le_bytes());
        put(&mut out, 10, [self.kind]);
        put(&mut out, 16, self.bytes.to_le_bytes());
        put(&mut out, 24, self.flags.to_le_bytes());
        out
    }
}
