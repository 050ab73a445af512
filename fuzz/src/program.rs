//! A program that calls WASI functions: a context over a [`System`] that does little, and linear memory.

use crate::sockets::Clients;
use nacre_wasi::{
    Builder, Call, Clock, Errno, Fs, Interest, Readiness, SocketError, SocketId, Sockets, Stop, Stream,
    StreamError, System, WasiCtx, abi,
};

/// A kernel without a machine: time passes only in waits, standard input says "typed" now and then.
#[derive(Debug, Default)]
pub struct Kernel {
    now: u64,
    input: usize,
    room: usize,
    clients: Clients,
}

impl Sockets for Kernel {
    fn socket_accept(&mut self) -> Result<SocketId, SocketError> {
        self.clients.accept()
    }
    fn socket_unlisten(&mut self) {
        self.clients.unlisten();
    }
    fn socket_acceptable(&self) -> u64 {
        self.clients.waiting()
    }
    fn socket_recv(&mut self, id: SocketId, buf: &mut [u8]) -> Result<usize, SocketError> {
        self.clients.recv(id, buf)
    }
    fn socket_peek(&mut self, id: SocketId, skip: u64, buf: &mut [u8]) -> Result<usize, SocketError> {
        self.clients.peek(id, skip, buf)
    }
    fn socket_send(&mut self, id: SocketId, buf: &[u8]) -> Result<usize, SocketError> {
        self.clients.send(id, buf)
    }
    fn socket_shutdown(&mut self, id: SocketId, read: bool, write: bool) {
        self.clients.shutdown(id, read, write);
    }
    fn socket_close(&mut self, id: SocketId) {
        self.clients.close(id);
    }
    fn socket_readable(&self, id: SocketId) -> Option<Readiness> {
        self.clients.readable(id)
    }
    fn socket_writable(&self, id: SocketId) -> Option<Readiness> {
        self.clients.writable(id)
    }
}

impl System for Kernel {
    fn clock_ns(&self, _: Clock) -> u64 {
        self.now
    }
    fn clock_resolution_ns(&self, _: Clock) -> u64 {
        1
    }
    fn random(&mut self, buf: &mut [u8]) {
        buf.fill(0xa5);
    }
    fn stream_read(&mut self, _: Stream, buf: &mut [u8]) -> Result<usize, StreamError> {
        if self.input == 0 && !buf.is_empty() {
            return Err(StreamError::WouldBlock);
        }
        let n = self.input.min(buf.len());
        buf[..n].fill(b't');
        self.input -= n;
        Ok(n)
    }
    fn stream_write(&mut self, _: Stream, buf: &[u8]) -> Result<usize, StreamError> {
        let n = self.room.min(buf.len());
        self.room -= n;
        if n == 0 { Err(StreamError::WouldBlock) } else { Ok(n) }
    }
    fn stream_readable(&self, _: Stream) -> Option<u64> {
        (self.input > 0).then_some(self.input as u64)
    }
    fn stream_writable(&self, _: Stream) -> Option<u64> {
        (self.room > 0).then_some(self.room as u64)
    }
    fn wait(&mut self, interest: &[Interest], deadline: Option<u64>) -> Result<(), Stop> {
        assert!(deadline.is_none_or(|at| at > self.now) || !interest.is_empty(), "a wait for the past");
        match (interest.first(), deadline) {
            (_, Some(deadline)) => self.now = self.now.max(deadline),
            (Some(Interest::Readable(_)), None) => self.input += 5,
            (Some(Interest::Writable(_)), None) => self.room += 300,
            (Some(Interest::Acceptable), None) => self.clients.come(),
            (Some(Interest::SocketReadable(id)), None) => self.clients.say(*id),
            (Some(Interest::SocketWritable(id)), None) => self.clients.take(*id),
            (None, None) => return Err(Stop::Killed),
        }
        Ok(())
    }
    fn yield_now(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

/// Number of the preopened root directory.
pub const ROOT: u32 = 3;
/// Where [`Program`]'s own calls put results, paths, and data.
const OUT: u32 = 64;
const PATHS: [u32; 2] = [1024, 6144];
const DATA: u32 = 12288;
/// Bytes of linear memory.
pub const MEMORY_BYTES: usize = 16384;
/// The most bytes of one [`Program::read`] or [`Program::write`].
pub const MAX_IO_BYTES: usize = MEMORY_BYTES - DATA as usize;

/// A program whose directory 3 is the root of its file system; 4 is a socket that listens.
pub struct Program {
    /// The context.
    pub ctx: WasiCtx<Kernel>,
    /// Its memory.
    pub memory: Vec<u8>,
}

/// What a call answers in place of its result.
fn answer(result: Result<Errno, Stop>) -> Result<(), Errno> {
    match result {
        Ok(Errno::Success) => Ok(()),
        Ok(error) => Err(error),
        Err(stop) => panic!("{stop:?}"),
    }
}

impl Program {
    /// A program over `fs`.
    #[must_use]
    pub fn new(fs: Fs) -> Program {
        let builder =
            Builder::new().args(vec!["fuzz".into(), "-x".into()]).env(vec![("A".into(), "b=c".into())]);
        let ctx = builder.preopens(vec![("/".into(), ".".into())]).listens(true).build(Kernel::default(), fs);
        Program { ctx: ctx.expect("the root is there"), memory: vec![0; MEMORY_BYTES] }
    }

    /// What to call a WASI function with.
    pub fn call(&mut self) -> Call<'_, Kernel> {
        Call { ctx: &mut self.ctx, memory: &mut self.memory }
    }

    /// Copies bytes into the memory, as far as they fit.
    pub fn put(&mut self, at: u32, data: &[u8]) -> (u32, u32) {
        let (start, len) = (at as usize, data.len().min(MEMORY_BYTES.saturating_sub(at as usize)));
        if let Some(target) = self.memory.get_mut(start..start + len) {
            target.copy_from_slice(&data[..len]);
        }
        (at, len as u32)
    }

    fn out(&self) -> u32 {
        u32::from_le_bytes(*self.memory[OUT as usize..].first_chunk().expect("in memory"))
    }

    /// Makes a directory.
    pub fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        let (at, len) = self.put(PATHS[0], path.as_bytes());
        answer(nacre_wasi::path_create_directory(&mut self.call(), ROOT, at, len))
    }

    /// Makes a symbolic link.
    pub fn symlink(&mut self, target: &str, path: &str) -> Result<(), Errno> {
        let (old, old_len) = self.put(PATHS[0], target.as_bytes());
        let (new, new_len) = self.put(PATHS[1], path.as_bytes());
        answer(nacre_wasi::path_symlink(&mut self.call(), old, old_len, ROOT, new, new_len))
    }

    /// Removes a name, a directory's or another's.
    pub fn remove(&mut self, path: &str, directory: bool) -> Result<(), Errno> {
        let (at, len) = self.put(PATHS[0], path.as_bytes());
        answer(if directory {
            nacre_wasi::path_remove_directory(&mut self.call(), ROOT, at, len)
        } else {
            nacre_wasi::path_unlink_file(&mut self.call(), ROOT, at, len)
        })
    }

    /// Renames.
    pub fn rename(&mut self, old: &str, new: &str) -> Result<(), Errno> {
        let ((old, old_len), (new, new_len)) =
            (self.put(PATHS[0], old.as_bytes()), self.put(PATHS[1], new.as_bytes()));
        answer(nacre_wasi::path_rename(&mut self.call(), ROOT, old, old_len, ROOT, new, new_len))
    }

    /// Gives a file another name.
    pub fn link(&mut self, old: &str, new: &str) -> Result<(), Errno> {
        let ((old, old_len), (new, new_len)) =
            (self.put(PATHS[0], old.as_bytes()), self.put(PATHS[1], new.as_bytes()));
        answer(nacre_wasi::path_link(&mut self.call(), ROOT, 0, old, old_len, ROOT, new, new_len))
    }

    /// Opens a file for reading and, if it is to be created, writing.
    pub fn open(&mut self, path: &str, create: bool) -> Result<u32, Errno> {
        let (at, len) = self.put(PATHS[0], path.as_bytes());
        let write = if create { abi::rights::FD_WRITE } else { 0 };
        let (oflags, rights) = (if create { abi::oflags::CREAT } else { 0 }, abi::rights::FD_READ | write);
        answer(nacre_wasi::path_open(&mut self.call(), ROOT, 0, at, len, oflags, rights, 0, 0, OUT))?;
        Ok(self.out())
    }

    /// Closes a descriptor.
    pub fn close(&mut self, fd: u32) -> Result<(), Errno> {
        answer(nacre_wasi::fd_close(&mut self.call(), fd))
    }

    /// One buffer in the data part of the memory, as a vector of buffers.
    fn buffer(&mut self, len: usize) -> u32 {
        self.put(0, &DATA.to_le_bytes());
        self.put(4, &(len.min(MAX_IO_BYTES) as u32).to_le_bytes());
        0
    }

    /// Writes at an offset; returns how much.
    pub fn write(&mut self, fd: u32, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        self.put(DATA, data);
        let iovs = self.buffer(data.len());
        answer(nacre_wasi::fd_pwrite(&mut self.call(), fd, iovs, 1, offset, OUT))?;
        Ok(self.out())
    }

    /// Reads at an offset.
    pub fn read(&mut self, fd: u32, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let iovs = self.buffer(len);
        answer(nacre_wasi::fd_pread(&mut self.call(), fd, iovs, 1, offset, OUT))?;
        Ok(self.memory[DATA as usize..][..self.out() as usize].to_vec())
    }

    /// Sets a file's size.
    pub fn set_size(&mut self, fd: u32, size: u64) -> Result<(), Errno> {
        answer(nacre_wasi::fd_filestat_set_size(&mut self.call(), fd, size))
    }

    /// Size and number of names of an open file.
    pub fn stat(&mut self, fd: u32) -> Result<(u64, u64), Errno> {
        answer(nacre_wasi::fd_filestat_get(&mut self.call(), fd, OUT))?;
        let word = |at: usize| {
            u64::from_le_bytes(*self.memory[OUT as usize + at..].first_chunk().expect("in memory"))
        };
        Ok((word(32), word(24)))
    }

    /// Closes everything, removes the whole tree, and checks that nothing is left of it.
    ///
    /// # Panics
    /// If something is.
    pub fn check_nothing_leaks(mut self) {
        for fd in 0..2048 {
            let _ = self.close(fd);
        }
        let (kernel, fs) = self.ctx.into_parts();
        kernel.clients.check_closed();
        let mut paths = Vec::new();
        let mut cursor = fs.export("/").expect("the root is there");
        while let Some(entry) = cursor.next(&fs).expect("memory for a path") {
            paths.push((entry.path.to_owned(), entry.kind == nacre_wasi::EntryKind::Dir));
        }
        if paths.iter().any(|(path, _)| path.len() >= nacre_wasi::PATH_MAX) {
            // Made through an open directory; out of reach of a path from the root.
            return;
        }
        let mut program = Program::new(fs);
        for (path, directory) in paths.iter().rev() {
            assert_eq!(program.remove(path, *directory), Ok(()), "{path}");
        }
        let fs = program.ctx.fs();
        assert_eq!((fs.inode_count(), fs.allocated_bytes()), (1, 0), "inodes or blocks leak");
    }
}
