//! What a client asks of a CVM. Decoded commands borrow from the plaintext they came in; nothing is copied.
//!
//! ```text
//! content    tag u8 | signed u8 | if signed: signer [32], signature [64] | body
//! Invoke 1   name | args: list of text | env: list of (text, text) | limits: 4 x u64, priority u8 | stdin: bytes
//! Install 2  package [32] | key [32] | name | version u64 | kind u8 | env: list of (text, text)
//! Remove 3   name | version u64
//! Status 4   nothing
//! Logs 5     name | from u64
//! ```
//!
//! Numbers are little-endian; bytes, texts and names have a u32 length before them, lists a u32 count.

use crate::codec::{Count, DecodeError, EncodeError, Reader, Sink, put_bytes, put_list, put_name, put_u64};
use alloc::vec::Vec;
use core::fmt;

/// No limit.
pub const UNLIMITED: u64 = u64::MAX;

/// A request's command.
#[derive(Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// Call an action.
    Invoke(Invoke<'a>),
    /// Decrypt a package that the node has stored, and make it an action or service. Needs authority.
    Install(Install<'a>),
    /// Stop and forget an action or service. Needs authority.
    Remove(Remove<'a>),
    /// List what is installed. Needs authority, because names are the tenant's.
    Status,
    /// Read what a service has written. Needs authority.
    Logs(Logs<'a>),
}

/// One call of an action.
#[derive(Clone, PartialEq, Eq)]
pub struct Invoke<'a> {
    /// The action's name.
    pub action: &'a str,
    /// Arguments after `argv[0]`.
    pub args: Vec<&'a str>,
    /// Variables besides the action's own.
    pub env: Vec<(&'a str, &'a str)>,
    /// What it may use at most.
    pub limits: Limits,
    /// Standard input.
    pub stdin: &'a [u8],
}

/// What a call may use at most, as its client wishes; the CVM's own limits hold too. [`UNLIMITED`] leaves it to those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time from its start, in nanoseconds.
    pub wall_ns: u64,
    /// CPU time, in nanoseconds.
    pub cpu_ns: u64,
    /// Linear memories and tables, in bytes.
    pub memory_bytes: u64,
    /// Of each output, in bytes.
    pub output_bytes: u64,
    /// The class of its task.
    pub priority: Priority,
}

/// The class of a task. The numbers are those of `nacre_abi::call::RequestHead`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Before all others.
    High = 0,
    /// As most are.
    #[default]
    Normal = 1,
    /// When nothing else is to do.
    Low = 2,
}

impl Priority {
    fn read(reader: &mut Reader) -> Result<Priority, DecodeError> {
        Ok(match reader.u8()? {
            0 => Priority::High,
            1 => Priority::Normal,
            2 => Priority::Low,
            number => return Err(DecodeError::Choice { what: "the priority", number: number.into() }),
        })
    }
}

impl Default for Limits {
    fn default() -> Limits {
        let none = UNLIMITED;
        let priority = Priority::Normal;
        Limits { wall_ns: none, cpu_ns: none, memory_bytes: none, output_bytes: none, priority }
    }
}

/// What an installed module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// Called once per request.
    Action,
    /// Runs on, behind plain TCP.
    Service,
    /// Runs on, behind TLS that ends in the CVM.
    TlsService,
}

impl ModuleKind {
    pub(crate) const fn number(self) -> u8 {
        match self {
            ModuleKind::Action => 0,
            ModuleKind::Service => 1,
            ModuleKind::TlsService => 2,
        }
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<ModuleKind, DecodeError> {
        Ok(match reader.u8()? {
            0 => ModuleKind::Action,
            1 => ModuleKind::Service,
            2 => ModuleKind::TlsService,
            number => {
                return Err(DecodeError::Choice { what: "the kind of a module", number: number.into() });
            }
        })
    }
}

/// A package to install.
#[derive(Clone, PartialEq, Eq)]
pub struct Install<'a> {
    /// Which of the packages that the node stores.
    pub package: &'a [u8; 32],
    /// The key it is encrypted with.
    pub key: &'a [u8; 32],
    /// The name it gets.
    pub name: &'a str,
    /// Its version; never one older than was installed before under this name.
    pub version: u64,
    /// What it is.
    pub kind: ModuleKind,
    /// Its variables: secrets and configuration.
    pub env: Vec<(&'a str, &'a str)>,
}

/// What to remove.
#[derive(Clone, PartialEq, Eq)]
pub struct Remove<'a> {
    /// Its name.
    pub name: &'a str,
    /// The version that is removed; another one stays.
    pub version: u64,
}

/// Which part of a service's log is asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Logs<'a> {
    /// The service's name.
    pub name: &'a str,
    /// From which byte on, counted from the service's first.
    pub from: u64,
}

impl<'a> Command<'a> {
    pub(crate) const fn tag(&self) -> u8 {
        match self {
            Command::Invoke(_) => 1,
            Command::Install(_) => 2,
            Command::Remove(_) => 3,
            Command::Status => 4,
            Command::Logs(_) => 5,
        }
    }

    /// Whether only the owner or a broker may ask for it.
    pub const fn needs_authority(&self) -> bool {
        match self {
            Command::Invoke(_) => false,
            Command::Install(_) | Command::Remove(_) | Command::Status | Command::Logs(_) => true,
        }
    }

    pub(crate) fn body_bytes(&self) -> Result<usize, EncodeError> {
        let mut count = Count(0);
        self.put_body(&mut count)?;
        Ok(count.0)
    }

    pub(crate) fn put_body(&self, sink: &mut impl Sink) -> Result<(), EncodeError> {
        match self {
            Command::Invoke(invoke) => {
                put_name(sink, invoke.action)?;
                put_list(sink, &invoke.args, |sink, text| {
                    put_bytes(sink, text.as_bytes());
                    Ok(())
                })?;
                put_pairs(sink, &invoke.env)?;
                let Limits { wall_ns, cpu_ns, memory_bytes, output_bytes, priority } = invoke.limits;
                for limit in [wall_ns, cpu_ns, memory_bytes, output_bytes] {
                    put_u64(sink, limit);
                }
                sink.put(&[priority as u8]);
                put_bytes(sink, invoke.stdin);
            }
            Command::Install(install) => {
                sink.put(install.package);
                sink.put(install.key);
                put_name(sink, install.name)?;
                put_u64(sink, install.version);
                sink.put(&[install.kind.number()]);
                put_pairs(sink, &install.env)?;
            }
            Command::Remove(remove) => {
                put_name(sink, remove.name)?;
                put_u64(sink, remove.version);
            }
            Command::Status => {}
            Command::Logs(logs) => {
                put_name(sink, logs.name)?;
                put_u64(sink, logs.from);
            }
        }
        Ok(())
    }

    /// The tag and the body, as they are in a plaintext.
    ///
    /// # Errors
    /// Every [`EncodeError`] but `TooLong`, which is up to the record.
    pub fn encode(&self) -> Result<(u8, Vec<u8>), EncodeError> {
        let mut body = Vec::with_capacity(self.body_bytes()?);
        self.put_body(&mut body)?;
        Ok((self.tag(), body))
    }

    /// Reads the body that follows `tag`. Nothing but what [`encode`](Self::encode) writes is accepted.
    ///
    /// # Errors
    /// Every [`DecodeError`] but those of buckets and padding.
    pub fn decode(tag: u8, body: &'a [u8]) -> Result<Command<'a>, DecodeError> {
        let mut reader = Reader(body);
        let command = match tag {
            1 => Command::Invoke(Invoke {
                action: reader.name()?,
                args: reader.list(4, Reader::text)?,
                env: read_pairs(&mut reader)?,
                limits: Limits {
                    wall_ns: reader.u64()?,
                    cpu_ns: reader.u64()?,
                    memory_bytes: reader.u64()?,
                    output_bytes: reader.u64()?,
                    priority: Priority::read(&mut reader)?,
                },
                stdin: reader.bytes()?,
            }),
            2 => Command::Install(Install {
                package: reader.array()?,
                key: reader.array()?,
                name: reader.name()?,
                version: reader.u64()?,
                kind: ModuleKind::read(&mut reader)?,
                env: read_pairs(&mut reader)?,
            }),
            3 => Command::Remove(Remove { name: reader.name()?, version: reader.u64()? }),
            4 => Command::Status,
            5 => Command::Logs(Logs { name: reader.name()?, from: reader.u64()? }),
            number => return Err(DecodeError::Choice { what: "a command", number: number.into() }),
        };
        reader.end()?;
        Ok(command)
    }
}

fn put_pairs(sink: &mut impl Sink, pairs: &[(&str, &str)]) -> Result<(), EncodeError> {
    put_list(sink, pairs, |sink, (name, value)| {
        put_bytes(sink, name.as_bytes());
        put_bytes(sink, value.as_bytes());
        Ok(())
    })
}

fn read_pairs<'a>(reader: &mut Reader<'a>) -> Result<Vec<(&'a str, &'a str)>, DecodeError> {
    reader.list(8, |reader| Ok((reader.text()?, reader.text()?)))
}

impl fmt::Debug for Command<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Invoke(invoke) => invoke.fmt(formatter),
            Command::Install(install) => install.fmt(formatter),
            Command::Remove(remove) => remove.fmt(formatter),
            Command::Status => formatter.write_str("Status"),
            Command::Logs(logs) => logs.fmt(formatter),
        }
    }
}

impl fmt::Debug for Invoke<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Invoke").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for Install<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Install");
        debug.field("version", &self.version).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl fmt::Debug for Remove<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Remove").field("version", &self.version).finish_non_exhaustive()
    }
}

impl fmt::Debug for Logs<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Logs").field("from", &self.from).finish_non_exhaustive()
    }
}
