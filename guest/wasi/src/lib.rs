//! WASI preview 1, complete, over an in-memory file system.
//!
//! One [`WasiCtx`] belongs to one running program. The embedder (the guest kernel, or a test) provides a
//! [`System`]: clocks, randomness, byte streams, [`Sockets`] and a way to wait. Everything else lives here: the
//! descriptor table, rights, path resolution and the [`Fs`]. Nothing here knows a Wasm engine; each function
//! of preview 1 is a free function over a [`Call`] with the wasm-level parameter types, listed once in
//! [`for_each_preview1!`] so that an embedder binds all of them with one macro.
//!
//! What the program passes is hostile: pointers, lengths, flags and paths are checked before use, every
//! allocation whose size the program decides is fallible, and nothing panics.
//!
//! Where the specification leaves room, this follows what wasmtime's own preview 1 does, so that one
//! program prints the same under both; the places where it deliberately does more are:
//! `fd_allocate`, `fd_fdstat_set_rights`, the CPU-time clocks, `O_SYNC`-like open flags, following the source
//! of `path_link`, `NONBLOCK` on stdio and `proc_raise` work instead of failing; reads and writes use all
//! buffers of a vector, not only the first; a bad descriptor in `poll_oneoff` is an error of its own
//! event, as specified; `proc_exit` takes every code. Out-of-bounds pointers are `EFAULT`, not a trap.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod calls;
mod ctx;
mod fdtable;
mod fs;
mod list;
mod memory;
mod sockets;
mod system;
mod types;

pub use calls::*;
pub use ctx::{BuildError, Builder, Call, WasiCtx};
pub use fs::{
    BLOCK_BYTES, Cursor, EntryKind, ExportEntry, FileHandle, Fs, MAX_FILE_BYTES, NAME_MAX, PATH_MAX,
};
pub use list::PREVIEW1;
pub use sockets::{Readiness, SocketError, SocketId, Sockets};
pub use system::{Clock, Interest, Stop, Stream, StreamError, System};
pub use types::Errno;

/// Numbers of the preview 1 ABI (flags, rights, enumerations), by the witx's names.
pub mod abi {
    pub use crate::types::{
        clockid, eventtype, fdflags, filetype, fstflags, lookupflags, oflags, rights, signal, whence,
    };
}

#[cfg(test)]
mod tests;
