//! A program's WASI context and how to build one.

use alloc::{string::String, vec::Vec};

use crate::{
    calls::Scratch,
    fdtable::{Descriptor, FdTable, Kind},
    fs::Fs,
    system::{Stop, Stream, System},
    types::Errno,
};

/// Everything WASI knows about one running program.
pub struct WasiCtx<S: System> {
    pub(crate) system: S,
    pub(crate) fs: Fs,
    pub(crate) fds: FdTable,
    pub(crate) args: Vec<String>,
    /// `NAME=value` strings.
    pub(crate) env: Vec<String>,
    /// Memory that polls use again.
    pub(crate) poll: Scratch,
}

/// One call of a WASI function: the context and the caller's whole linear memory.
pub struct Call<'a, S: System> {
    /// The caller's context.
    pub ctx: &'a mut WasiCtx<S>,
    /// The caller's linear memory.
    pub memory: &'a mut [u8],
}

/// Why a context could not be built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    /// An argument, a variable or a preopen name holds a NUL byte, or a variable's name is empty or holds `=`.
    #[error("{0} is not a valid argument, variable or directory name")]
    BadString(String),
    /// A directory to preopen is missing or not a directory.
    #[error("cannot preopen {path}: {error}")]
    Preopen {
        /// Its path in the file system.
        path: String,
        /// Why.
        error: Errno,
    },
    /// There is no memory.
    #[error("not enough memory")]
    OutOfMemory,
}

/// Builds a [`WasiCtx`]: descriptors 0, 1 and 2 are the standard streams, preopens follow from 3 on, then the socket that
/// listens, if there is one.
#[derive(Default)]
pub struct Builder {
    args: Vec<String>,
    env: Vec<(String, String)>,
    preopens: Vec<(String, String)>,
    listens: bool,
    tty: [bool; 3],
}

impl Builder {
    /// No arguments, no variables, no directories, no terminals.
    pub fn new() -> Self {
        Self::default()
    }

    /// The arguments; the first one is the program's name.
    #[must_use]
    pub fn args(mut self, args: Vec<String>) -> Self {
        self.args = args;
        self
    }

    /// The environment, as (name, value).
    #[must_use]
    pub fn env(mut self, env: Vec<(String, String)>) -> Self {
        self.env = env;
        self
    }

    /// The preopened directories, as (name the program sees, path in the file system).
    #[must_use]
    pub fn preopens(mut self, preopens: Vec<(String, String)>) -> Self {
        self.preopens = preopens;
        self
    }

    /// Which of stdin, stdout and stderr are terminals: those are reported as character devices, others as
    /// unknown, as wasmtime does.
    #[must_use]
    pub fn tty(mut self, stdin: bool, stdout: bool, stderr: bool) -> Self {
        self.tty = [stdin, stdout, stderr];
        self
    }

    /// Whether it finds a socket that listens, behind the preopens.
    #[must_use]
    pub fn listens(mut self, listens: bool) -> Self {
        self.listens = listens;
        self
    }

    /// Builds the context.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build<S: System>(self, system: S, mut fs: Fs) -> Result<WasiCtx<S>, BuildError> {
        if let Some(bad) = self.args.iter().find(|arg| arg.contains('\0')) {
            return Err(BuildError::BadString(bad.clone()));
        }
        let mut env = Vec::new();
        env.try_reserve_exact(self.env.len()).map_err(|_| BuildError::OutOfMemory)?;
        for (name, value) in self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(BuildError::BadString(name));
            }
            let mut pair = name;
            pair.try_reserve_exact(value.len() + 1).map_err(|_| BuildError::OutOfMemory)?;
            pair.push('=');
            pair.push_str(&value);
            env.push(pair);
        }
        let mut fds = FdTable::default();
        for (stream, tty) in [Stream::Stdin, Stream::Stdout, Stream::Stderr].into_iter().zip(self.tty) {
            let descriptor = Descriptor::new(Kind::Stream { stream, tty });
            fds.insert(descriptor).map_err(|_| BuildError::OutOfMemory)?;
        }
        for (name, path) in self.preopens {
            if name.is_empty() || name.contains('\0') {
                return Err(BuildError::BadString(name));
            }
            let node = match fs.open_dir(&path) {
                Ok(node) => node,
                Err(error) => return Err(BuildError::Preopen { path, error }),
            };
            let descriptor = Descriptor::new(Kind::Dir { node, preopen: Some(name) });
            fds.insert(descriptor).map_err(|_| BuildError::OutOfMemory)?;
        }
        if self.listens {
            fds.insert(Descriptor::new(Kind::Listener)).map_err(|_| BuildError::OutOfMemory)?;
        }
        Ok(WasiCtx { system, fs, fds, args: self.args, env, poll: Scratch::default() })
    }
}

/// Shows sizes only: arguments, variables and files are the tenant's.
impl<S: System> core::fmt::Debug for WasiCtx<S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("WasiCtx").field("fs", &self.fs).finish_non_exhaustive()
    }
}

impl<S: System> WasiCtx<S> {
    /// The file system.
    pub fn fs(&self) -> &Fs {
        &self.fs
    }

    /// The file system, to change it beside the program.
    pub fn fs_mut(&mut self) -> &mut Fs {
        &mut self.fs
    }

    /// The embedder's part.
    pub fn system(&self) -> &S {
        &self.system
    }

    /// The embedder's part.
    pub fn system_mut(&mut self) -> &mut S {
        &mut self.system
    }

    /// Takes the context apart after the program has ended.
    pub fn into_parts(self) -> (S, Fs) {
        (self.system, self.fs)
    }

    /// Notes that a descriptor is closed.
    pub(crate) fn release(&mut self, descriptor: &Descriptor) {
        if let Some(node) = descriptor.node() {
            self.fs.release(node);
        }
        match descriptor.kind {
            Kind::Socket(id) => self.system.socket_close(id),
            Kind::Listener => self.system.socket_unlisten(),
            _ => {}
        }
    }
}

/// How a function of preview 1 fails: with an error code for the program, or by ending it.
#[derive(Debug)]
pub(crate) enum Fail {
    Errno(Errno),
    Stop(Stop),
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Stop> for Fail {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// Runs the body of a function and turns its outcome into what the caller gets.
pub(crate) fn run(body: impl FnOnce() -> Result<(), Fail>) -> Result<Errno, Stop> {
    match body() {
        Ok(()) => Ok(Errno::Success),
        Err(Fail::Errno(errno)) => Ok(errno),
        Err(Fail::Stop(stop)) => Err(stop),
    }
}

/// Checks an argument that holds flags: no others than `all` may be set.
pub(crate) fn flags(value: u32, all: u32) -> Result<u32, Errno> {
    if value & !all == 0 { Ok(value) } else { Err(Errno::Inval) }
}
