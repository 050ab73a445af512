//! What a CVM answers. Decoded replies borrow from the plaintext they came in.
//!
//! ```text
//! content      tag u8 | body
//! Outcome 1    exit u8 | code u32 | flags u8 (1 stdout cut, 2 stderr cut, 4 cold) | cpu, queued, ran: 3 x u64 ns
//!              | text: text | stdout: bytes | stderr: bytes
//! Installed 2  version u64 | code hash [32]
//! Removed 3    version u64
//! Status 4     list of (name, version u64, kind u8, code hash [32])
//! Refused 5    reason u32 | value u64 | detail: text
//! Logs 6       first u64 | bytes: bytes
//! ```

use crate::codec::{
    Count, DecodeError, EncodeError, Reader, Sink, put_bytes, put_list, put_name, put_u32, put_u64,
};
use crate::command::ModuleKind;
use alloc::vec::Vec;
use core::fmt;

/// A CVM's answer to one request.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The call ran, or could not be started.
    Outcome(Outcome<'a>),
    /// The package is installed.
    Installed {
        /// The version that is there now.
        version: u64,
        /// SHA-256 of its precompiled code, which new evidence lists.
        code: &'a [u8; 32],
    },
    /// It is gone.
    Removed {
        /// The version that was there.
        version: u64,
    },
    /// What is installed.
    Status(Vec<Installed<'a>>),
    /// It was not done.
    Refused {
        /// Why.
        reason: Refusal,
        /// A number that belongs to the reason, as that says; else 0.
        value: u64,
        /// More for the reader, or empty.
        detail: &'a str,
    },
    /// What is kept of a service's log.
    Logs {
        /// Which byte of all it has written is the first of these: later than asked for, if older ones are gone.
        first: u64,
        /// Up to the last one written.
        bytes: &'a [u8],
    },
}

/// How a call ended.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// In which way.
    pub exit: ExitKind,
    /// Its exit code.
    pub code: u32,
    /// More was written to standard output than is here.
    pub stdout_cut: bool,
    /// The same of standard error.
    pub stderr_cut: bool,
    /// No memory of its module was ready for use.
    pub cold: bool,
    /// CPU time it had, in nanoseconds.
    pub cpu_ns: u64,
    /// From its arrival in the CVM to its start, in nanoseconds.
    pub queued_ns: u64,
    /// From its start to its end, in nanoseconds.
    pub ran_ns: u64,
    /// Message and backtrace of a trap, or why it could not be started.
    pub text: &'a str,
    /// What it wrote to standard output.
    pub stdout: &'a [u8],
    /// What it wrote to standard error.
    pub stderr: &'a [u8],
}

/// One entry of [`Reply::Status`].
#[derive(Clone, PartialEq, Eq)]
pub struct Installed<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its version.
    pub version: u64,
    /// What it is.
    pub kind: ModuleKind,
    /// SHA-256 of its precompiled code.
    pub code: &'a [u8; 32],
}

/// How a call ended. The numbers are those of `nacre_abi::message::ExitKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// It returned or called `proc_exit`.
    Code = 0,
    /// A Wasm trap.
    Trap = 1,
    /// It could not be loaded or started.
    Error = 2,
    /// It wrote to a stream that nobody reads.
    BrokenPipe = 3,
    /// It needed more memory than the CVM has.
    OutOfMemory = 4,
    /// It reached a time limit.
    TimeLimit = 5,
}

impl ExitKind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<ExitKind> {
        Some(match number {
            0 => ExitKind::Code,
            1 => ExitKind::Trap,
            2 => ExitKind::Error,
            3 => ExitKind::BrokenPipe,
            4 => ExitKind::OutOfMemory,
            5 => ExitKind::TimeLimit,
            _ => return None,
        })
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a command was not carried out. Numbers are stable and never used again for something else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum Refusal {
            $($(#[$doc])* #[error($text)] $name = $number,)*
        }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Refusal] = &[$(Refusal::$name),*];

            /// The reason with this number.
            pub const fn from_number(number: u32) -> Option<Refusal> {
                Some(match number {
                    $($number => Refusal::$name,)*
                    _ => return None,
                })
            }
        }
    };
}

refusals! {
    /// The plaintext is not a command.
    Malformed = 1, "the command is not one of this protocol; use a client of the CVM's release";
    /// The command needs a signature and has none.
    Unsigned = 2, "the command needs the signature of the manifest's owner or of a broker";
    /// The signer is neither the owner nor a broker.
    UnknownSigner = 3, "the command is signed by a key that the manifest does not name";
    /// The signature is not of this command at this place.
    BadSignature = 4, "the signature was not made for this command, session and number";
    /// There is no action with this name.
    UnknownAction = 5, "no action with this name is installed";
    /// There is, but it can't be called: it is a service.
    NotAnAction = 6, "a service can't be invoked; connect to it";
    /// The value is the newest version that was installed.
    OlderVersion = 7, "a newer version was installed before; raise the version";
    /// The version is installed with other content.
    SameVersion = 8, "this version is installed with other content; raise the version";
    /// The value is the version that is installed.
    OtherVersion = 9, "another version is installed";
    /// The node did not deliver the package.
    PackageMissing = 10, "the node does not have the package; upload it again";
    /// The package does not decrypt with the key, or was changed.
    PackageDamaged = 11, "the package was changed or is encrypted with another key";
    /// The code is not signed by a compiler of the manifest, or does not fit the statement.
    CodeRejected = 12, "the code is not what a compiler of the manifest signed";
    /// The code is fine but for other settings or CPU features.
    CodeIncompatible = 13, "the code was compiled for another engine or CPU; compile it again";
    /// The CVM is open: it holds no secrets.
    OpenMode = 14, "the CVM is open and takes no secrets; launch a sealed one";
    /// Too many calls are waiting.
    Busy = 15, "too many calls are waiting; try again";
    /// There is no memory for it.
    OutOfMemory = 16, "the CVM has no memory for it";
    /// Too many names are in use. The value is how many can be.
    TooMany = 17, "too many names are in use";
    /// The answer does not fit a record. It ran.
    AnswerTooLong = 18, "it ran, but the answer is too long; lower the output limit";
    /// The CVM is being stopped or moved.
    Leaving = 19, "the CVM is being stopped or moved; try again";
    /// This CVM does not do that.
    Unsupported = 20, "this CVM does not support the command";
    /// There is code with this name, but it has no log: it is an action.
    NotAService = 21, "an action has no log; what it writes is in the answers to its callers";
    /// The set of installed code is another one than in the evidence of this session. Nothing ran.
    CodeChanged = 22, "other code was installed since the evidence of this session; open another session";
}

impl<'a> Reply<'a> {
    /// A refusal with nothing more to say.
    pub const fn refused(reason: Refusal) -> Reply<'static> {
        Reply::Refused { reason, value: 0, detail: "" }
    }

    const fn tag(&self) -> u8 {
        match self {
            Reply::Outcome(_) => 1,
            Reply::Installed { .. } => 2,
            Reply::Removed { .. } => 3,
            Reply::Status(_) => 4,
            Reply::Refused { .. } => 5,
            Reply::Logs { .. } => 6,
        }
    }

    pub(crate) fn content_bytes(&self) -> Result<usize, EncodeError> {
        let mut count = Count(0);
        self.put(&mut count)?;
        Ok(count.0)
    }

    pub(crate) fn put(&self, sink: &mut impl Sink) -> Result<(), EncodeError> {
        sink.put(&[self.tag()]);
        match self {
            Reply::Outcome(outcome) => outcome.put(sink),
            Reply::Installed { version, code } => {
                put_u64(sink, *version);
                sink.put(*code);
            }
            Reply::Removed { version } => put_u64(sink, *version),
            Reply::Status(list) => put_list(sink, list, |sink, entry| {
                put_name(sink, entry.name)?;
                put_u64(sink, entry.version);
                sink.put(&[entry.kind.number()]);
                sink.put(entry.code);
                Ok(())
            })?,
            Reply::Refused { reason, value, detail } => {
                put_u32(sink, *reason as usize);
                put_u64(sink, *value);
                put_bytes(sink, detail.as_bytes());
            }
            Reply::Logs { first, bytes } => {
                put_u64(sink, *first);
                put_bytes(sink, bytes);
            }
        }
        Ok(())
    }

    /// As it is in a plaintext.
    ///
    /// # Errors
    /// Every [`EncodeError`] but `TooLong`, which is up to the record.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut content = Vec::with_capacity(self.content_bytes()?);
        self.put(&mut content)?;
        Ok(content)
    }

    /// Reads what [`encode`](Self::encode) wrote, and nothing else.
    ///
    /// # Errors
    /// Every [`DecodeError`] but those of buckets and padding.
    pub fn decode(content: &'a [u8]) -> Result<Reply<'a>, DecodeError> {
        let mut reader = Reader(content);
        let reply = match reader.u8()? {
            1 => Reply::Outcome(Outcome::read(&mut reader)?),
            2 => Reply::Installed { version: reader.u64()?, code: reader.array()? },
            3 => Reply::Removed { version: reader.u64()? },
            4 => Reply::Status(reader.list(45, |reader| {
                Ok(Installed {
                    name: reader.name()?,
                    version: reader.u64()?,
                    kind: ModuleKind::read(reader)?,
                    code: reader.array()?,
                })
            })?),
            5 => {
                let number = reader.u32()?;
                let reason = Refusal::from_number(number);
                let reason = reason.ok_or(DecodeError::Choice { what: "the reason of a refusal", number })?;
                Reply::Refused { reason, value: reader.u64()?, detail: reader.text()? }
            }
            6 => Reply::Logs { first: reader.u64()?, bytes: reader.bytes()? },
            number => return Err(DecodeError::Choice { what: "a reply", number: number.into() }),
        };
        reader.end()?;
        Ok(reply)
    }
}

impl<'a> Outcome<'a> {
    fn put(&self, sink: &mut impl Sink) {
        sink.put(&[self.exit as u8]);
        put_u32(sink, self.code as usize);
        let flags = [self.stdout_cut, self.stderr_cut, self.cold];
        sink.put(&[flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag))]);
        for time in [self.cpu_ns, self.queued_ns, self.ran_ns] {
            put_u64(sink, time);
        }
        put_bytes(sink, self.text.as_bytes());
        put_bytes(sink, self.stdout);
        put_bytes(sink, self.stderr);
    }

    fn read(reader: &mut Reader<'a>) -> Result<Outcome<'a>, DecodeError> {
        let number = reader.u8()?;
        let choice = |what, number: u8| DecodeError::Choice { what, number: number.into() };
        let exit = ExitKind::from_number(number).ok_or(choice("the end of a call", number))?;
        let code = reader.u32()?;
        let flags = reader.u8()?;
        if flags > 7 {
            return Err(choice("the flags of an outcome", flags));
        }
        Ok(Outcome {
            exit,
            code,
            stdout_cut: flags & 1 != 0,
            stderr_cut: flags & 2 != 0,
            cold: flags & 4 != 0,
            cpu_ns: reader.u64()?,
            queued_ns: reader.u64()?,
            ran_ns: reader.u64()?,
            text: reader.text()?,
            stdout: reader.bytes()?,
            stderr: reader.bytes()?,
        })
    }
}

impl fmt::Debug for Reply<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Outcome(outcome) => outcome.fmt(formatter),
            Reply::Installed { version, .. } => write!(formatter, "Installed {{ version: {version}, .. }}"),
            Reply::Removed { version } => write!(formatter, "Removed {{ version: {version} }}"),
            Reply::Status(list) => write!(formatter, "Status({} entries)", list.len()),
            Reply::Refused { reason, .. } => write!(formatter, "Refused {{ reason: {reason:?}, .. }}"),
            Reply::Logs { first, bytes } => write!(formatter, "Logs({} bytes from {first})", bytes.len()),
        }
    }
}

impl fmt::Debug for Outcome<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Outcome");
        debug.field("exit", &self.exit).field("cold", &self.cold).finish_non_exhaustive()
    }
}

impl fmt::Debug for Installed<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Installed");
        debug.field("version", &self.version).field("kind", &self.kind).finish_non_exhaustive()
    }
}
