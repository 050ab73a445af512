//! Open descriptors: what each one refers to, its flags and rights.
//!
//! Rights follow what programs see under wasmtime: they are derived from what the descriptor is and how it was
//! opened. `fd_fdstat_set_rights` can only take rights away; what was taken is kept as a mask, and using it is
//! `ENOTCAPABLE`. New descriptors get the lowest free number, as POSIX programs expect.

use alloc::{string::String, vec::Vec};

use crate::{
    fs::InodeId,
    sockets::SocketId,
    system::Stream,
    types::{Errno, fdflags, filetype, rights},
};

/// The most descriptors a program may have open.
const FD_LIMIT: usize = 1 << 16;

/// Rights of preopened directories that wasmtime reports and userlands look for.
const PREOPEN_BASE: u64 = rights::PATH_CREATE_DIRECTORY
    | rights::PATH_CREATE_FILE
    | rights::PATH_LINK_SOURCE
    | rights::PATH_LINK_TARGET
    | rights::PATH_OPEN
    | rights::FD_READDIR
    | rights::PATH_READLINK
    | rights::PATH_RENAME_SOURCE
    | rights::PATH_RENAME_TARGET
    | rights::PATH_SYMLINK
    | rights::PATH_REMOVE_DIRECTORY
    | rights::PATH_UNLINK_FILE
    | rights::PATH_FILESTAT_GET
    | rights::PATH_FILESTAT_SET_TIMES
    | rights::FD_FILESTAT_GET
    | rights::FD_FILESTAT_SET_TIMES;

/// What may be inherited from a preopened directory.
const PREOPEN_INHERITING: u64 = PREOPEN_BASE
    | rights::FD_DATASYNC
    | rights::FD_READ
    | rights::FD_SEEK
    | rights::FD_FDSTAT_SET_FLAGS
    | rights::FD_SYNC
    | rights::FD_TELL
    | rights::FD_WRITE
    | rights::FD_ADVISE
    | rights::FD_ALLOCATE
    | rights::FD_FILESTAT_SET_SIZE
    | rights::POLL_FD_READWRITE;

/// What can be done with a connection.
const SOCKET: u64 = rights::FD_READ
    | rights::FD_WRITE
    | rights::FD_FDSTAT_SET_FLAGS
    | rights::FD_FILESTAT_GET
    | rights::POLL_FD_READWRITE
    | rights::SOCK_SHUTDOWN;

/// What can be done with the socket that listens.
const LISTENER: u64 =
    rights::FD_FDSTAT_SET_FLAGS | rights::FD_FILESTAT_GET | rights::POLL_FD_READWRITE | rights::SOCK_ACCEPT;

/// What an opened directory can't do.
const NOT_FOR_DIRECTORIES: u64 =
    rights::FD_SEEK | rights::FD_FILESTAT_SET_SIZE | rights::PATH_FILESTAT_SET_SIZE | rights::FD_WRITE;

/// What a descriptor refers to.
pub(crate) enum Kind {
    /// A byte stream of the embedder.
    Stream { stream: Stream, tty: bool },
    /// An open file, with its position.
    File { node: InodeId, position: u64, read: bool, write: bool },
    /// A directory; `preopen` is the path it was given at start.
    Dir { node: InodeId, preopen: Option<String> },
    /// The socket that listens.
    Listener,
    /// A connection.
    Socket(SocketId),
}

/// An open descriptor.
pub(crate) struct Descriptor {
    pub kind: Kind,
    /// Its `fdflags`.
    pub flags: u32,
    /// Rights taken away.
    pub dropped: u64,
    /// Rights taken away from what is opened through it.
    pub dropped_inheriting: u64,
}

impl Descriptor {
    pub fn new(kind: Kind) -> Self {
        Self { kind, flags: 0, dropped: 0, dropped_inheriting: 0 }
    }

    /// The inode it holds, if any.
    pub fn node(&self) -> Option<InodeId> {
        match self.kind {
            Kind::File { node, .. } | Kind::Dir { node, .. } => Some(node),
            Kind::Stream { .. } | Kind::Listener | Kind::Socket(_) => None,
        }
    }

    /// Its rights: (base, inheriting).
    pub fn rights(&self) -> (u64, u64) {
        let (base, inheriting) = match &self.kind {
            Kind::Stream { stream: Stream::Stdin, .. } => (rights::FD_READ, rights::FD_READ),
            Kind::Stream { .. } => (rights::FD_WRITE, rights::FD_WRITE),
            Kind::Dir { preopen: Some(_), .. } => (PREOPEN_BASE, PREOPEN_INHERITING),
            Kind::Dir { preopen: None, .. } => {
                (rights::ALL & !NOT_FOR_DIRECTORIES, rights::ALL & !NOT_FOR_DIRECTORIES)
            }
            Kind::Listener => (LISTENER, SOCKET),
            Kind::Socket(_) => (SOCKET, 0),
            Kind::File { read, write, .. } => {
                let no_read = if *read { 0 } else { rights::FD_READ | rights::FD_READDIR };
                let no_write = if *write { 0 } else { rights::FD_WRITE };
                let all = rights::ALL & !no_read & !no_write;
                (all, all)
            }
        };
        (base & !self.dropped, inheriting & !self.dropped_inheriting)
    }

    /// Fails if the right was taken away.
    ///
    /// # Errors
    /// `ENOTCAPABLE`.
    pub fn need(&self, right: u64) -> Result<(), Errno> {
        if self.dropped & right == 0 { Ok(()) } else { Err(Errno::Notcapable) }
    }

    /// The file type of a stream: a terminal is a character device, anything else unknown, as under wasmtime.
    pub fn stream_filetype(tty: bool) -> u8 {
        if tty { filetype::CHARACTER_DEVICE } else { filetype::UNKNOWN }
    }
}

/// A view of an open file.
pub(crate) struct OpenFile {
    pub node: InodeId,
    pub position: u64,
    pub read: bool,
    pub write: bool,
    pub flags: u32,
}

/// The descriptors of a program.
#[derive(Default)]
pub(crate) struct FdTable {
    slots: Vec<Option<Descriptor>>,
    /// No number below this is free.
    lowest: usize,
}

impl FdTable {
    /// # Errors
    /// `EBADF` when it is not open.
    pub fn get(&self, fd: u32) -> Result<&Descriptor, Errno> {
        self.slots.get(fd as usize).and_then(Option::as_ref).ok_or(Errno::Badf)
    }

    /// # Errors
    /// `EBADF` when it is not open.
    pub fn get_mut(&mut self, fd: u32) -> Result<&mut Descriptor, Errno> {
        self.slots.get_mut(fd as usize).and_then(Option::as_mut).ok_or(Errno::Badf)
    }

    /// The open file under a number.
    ///
    /// # Errors
    /// `EBADF` when it is no open file, `ENOTCAPABLE`.
    pub fn file(&self, fd: u32, right: u64) -> Result<OpenFile, Errno> {
        let descriptor = self.get(fd)?;
        match descriptor.kind {
            Kind::File { node, position, read, write } => {
                descriptor.need(right)?;
                Ok(OpenFile { node, position, read, write, flags: descriptor.flags })
            }
            _ => Err(Errno::Badf),
        }
    }

    /// The open file under a number, for positions.
    ///
    /// # Errors
    /// As [`Self::file`], and `ESPIPE` for a stream.
    pub fn seekable(&self, fd: u32, right: u64) -> Result<OpenFile, Errno> {
        match self.get(fd)?.kind {
            Kind::Stream { .. } | Kind::Listener | Kind::Socket(_) => Err(Errno::Spipe),
            _ => self.file(fd, right),
        }
    }

    /// Moves the position of an open file.
    pub fn set_position(&mut self, fd: u32, to: u64) {
        if let Ok(Descriptor { kind: Kind::File { position, .. }, .. }) = self.get_mut(fd) {
            *position = to;
        }
    }

    /// The directory under a number.
    ///
    /// # Errors
    /// `EBADF` when it is no directory (as wasmtime), `ENOTCAPABLE`.
    pub fn dir(&self, fd: u32, right: u64) -> Result<InodeId, Errno> {
        let descriptor = self.get(fd)?;
        match descriptor.kind {
            Kind::Dir { node, .. } => descriptor.need(right).map(|()| node),
            _ => Err(Errno::Badf),
        }
    }

    /// The connection under a number, and whether its calls do not wait.
    ///
    /// # Errors
    /// `EBADF`, `ENOTSOCK`, `ENOTCONN` for the socket that listens, `ENOTCAPABLE`.
    pub fn socket(&self, fd: u32, right: u64) -> Result<(SocketId, bool), Errno> {
        let descriptor = self.get(fd)?;
        match descriptor.kind {
            Kind::Socket(id) => {
                descriptor.need(right)?;
                Ok((id, descriptor.flags & fdflags::NONBLOCK != 0))
            }
            Kind::Listener => Err(Errno::Notconn),
            _ => Err(Errno::Notsock),
        }
    }

    /// Makes room for one more descriptor, so that the next [`Self::insert`] can't fail.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`.
    pub fn reserve(&mut self) -> Result<(), Errno> {
        let free = self.slots.iter().skip(self.lowest).position(Option::is_none);
        self.lowest = free.map_or(self.slots.len(), |at| at + self.lowest);
        if self.lowest < self.slots.len() {
            return Ok(());
        }
        if self.lowest >= FD_LIMIT {
            return Err(Errno::Mfile);
        }
        self.slots.try_reserve(1).map_err(|_| Errno::Nomem)
    }

    /// Opens a descriptor under the lowest free number.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn insert(&mut self, descriptor: Descriptor) -> Result<u32, Errno> {
        self.reserve()?;
        let at = self.lowest;
        match self.slots.get_mut(at) {
            Some(slot) => *slot = Some(descriptor),
            None => self.slots.push(Some(descriptor)),
        }
        self.lowest += 1;
        u32::try_from(at).map_err(|_| Errno::Mfile)
    }

    /// Closes a number and returns what was under it.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn remove(&mut self, fd: u32) -> Result<Descriptor, Errno> {
        let at = fd as usize;
        let descriptor = self.slots.get_mut(at).and_then(Option::take).ok_or(Errno::Badf)?;
        self.lowest = self.lowest.min(at);
        Ok(descriptor)
    }

    /// Moves `from` onto `to`, both open, and returns what was under `to`, if anything had to go.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn renumber(&mut self, from: u32, to: u32) -> Result<Option<Descriptor>, Errno> {
        self.get(from)?;
        self.get(to)?;
        if from == to {
            return Ok(None);
        }
        let descriptor = self.remove(from)?;
        Ok(Some(core::mem::replace(self.get_mut(to)?, descriptor)))
    }
}
