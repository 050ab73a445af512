//! Reading, writing and seeking, on files and streams.
//!
//! Bytes move directly between linear memory and file blocks or the embedder's streams; a large transfer passes
//! a safe point every few MiB.

use super::sock;
use crate::{
    ctx::{Call, Fail, WasiCtx, run},
    fdtable::Kind,
    fs::{InodeId, MAX_FILE_BYTES},
    memory::{self, IoVecs},
    system::{Clock, Interest, Stop, Stream, StreamError, System},
    types::{Errno, fdflags, rights, whence},
};

/// How many bytes are moved between two safe points.
const CHUNK: u32 = 4 << 20;

/// Splits buffers into pieces of at most [`CHUNK`]: (pointer, length).
fn pieces(iovs: &IoVecs) -> impl Iterator<Item = (u32, u32)> + '_ {
    iovs.iter().flat_map(|(ptr, len)| {
        // In bounds of the memory, as checked when they were loaded.
        (0..len.div_ceil(CHUNK)).map(move |i| (ptr.saturating_add(i * CHUNK), (len - i * CHUNK).min(CHUNK)))
    })
}

/// Passes a safe point whenever [`CHUNK`] bytes have been moved.
fn breathe<S: System>(system: &mut S, moved: &mut u32, n: usize) -> Result<(), Stop> {
    *moved = moved.saturating_add(n as u32);
    if *moved >= CHUNK {
        *moved = 0;
        system.yield_now()?;
    }
    Ok(())
}

/// Reads a file into the buffers from `offset` on; returns the number of bytes.
fn read_file<S: System>(c: &mut Call<'_, S>, node: InodeId, offset: u64, iovs: &IoVecs) -> Result<u32, Fail> {
    let WasiCtx { fs, system, .. } = &mut *c.ctx;
    let (mut total, mut moved) = (0_u32, 0);
    for (ptr, len) in pieces(iovs) {
        let n = fs.read(node, offset.saturating_add(total.into()), memory::bytes_mut(c.memory, ptr, len)?)?;
        total += n as u32;
        if n < len as usize {
            break;
        }
        breathe(system, &mut moved, n)?;
    }
    if total > 0 {
        fs.touch_read(node, || system.clock_ns(Clock::Realtime));
    }
    Ok(total)
}

/// Writes the buffers to a file from `offset` on; an error after some bytes is a short count.
fn write_file<S: System>(
    c: &mut Call<'_, S>,
    node: InodeId,
    offset: u64,
    iovs: &IoVecs,
) -> Result<u32, Fail> {
    let WasiCtx { fs, system, .. } = &mut *c.ctx;
    let now = system.clock_ns(Clock::Realtime);
    let (mut total, mut moved) = (0_u32, 0);
    for (ptr, len) in pieces(iovs) {
        let data = memory::bytes(c.memory, ptr, len)?;
        let n = match fs.write(node, offset.saturating_add(total.into()), data, now) {
            Err(error) if total == 0 => return Err(error.into()),
            Err(_) => break,
            Ok(n) => n,
        };
        total += n as u32;
        if n < len as usize {
            break;
        }
        breathe(system, &mut moved, n)?;
    }
    Ok(total)
}

/// Reads what a stream has, waiting for the first byte unless `nonblock`.
fn read_stream<S: System>(
    c: &mut Call<'_, S>,
    stream: Stream,
    nonblock: bool,
    iovs: &IoVecs,
) -> Result<u32, Fail> {
    let system = &mut c.ctx.system;
    let mut total = 0_u32;
    for (ptr, len) in pieces(iovs) {
        let buf = memory::bytes_mut(c.memory, ptr, len)?;
        let n = loop {
            match system.stream_read(stream, buf) {
                Ok(n) => break n.min(buf.len()),
                Err(StreamError::Closed) => break 0,
                Err(StreamError::WouldBlock) if total > 0 => return Ok(total),
                Err(StreamError::WouldBlock) if nonblock => return Err(Errno::Again.into()),
                Err(StreamError::WouldBlock) => system.wait(&[Interest::Readable(stream)], None)?,
            }
        };
        total += n as u32;
        if n < len as usize {
            break;
        }
    }
    Ok(total)
}

/// Writes all of the buffers to a stream, waiting for room unless `nonblock`.
fn write_stream<S: System>(
    c: &mut Call<'_, S>,
    stream: Stream,
    nonblock: bool,
    iovs: &IoVecs,
) -> Result<u32, Fail> {
    let system = &mut c.ctx.system;
    let mut total = 0_u32;
    for (ptr, len) in pieces(iovs) {
        let mut data = memory::bytes(c.memory, ptr, len)?;
        while !data.is_empty() {
            match system.stream_write(stream, data) {
                Ok(n) if n > 0 => {
                    let n = n.min(data.len());
                    total += n as u32;
                    data = data.get(n..).unwrap_or(&[]);
                }
                Err(StreamError::Closed) => return Err(Stop::BrokenPipe.into()),
                Ok(_) | Err(StreamError::WouldBlock) => {
                    if nonblock {
                        return if total > 0 { Ok(total) } else { Err(Errno::Again.into()) };
                    }
                    system.wait(&[Interest::Writable(stream)], None)?;
                }
            }
        }
    }
    Ok(total)
}

/// Reads at the descriptor's position and moves it. Blocks on a stream until there is at least one byte.
pub fn fd_read<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    iovs: u32,
    iovs_len: u32,
    nread: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, nread, 4)?;
        let iovs = IoVecs::load(c.memory, iovs, iovs_len)?;
        let descriptor = c.ctx.fds.get(fd)?;
        let total = match descriptor.kind {
            Kind::Stream { stream: stream @ Stream::Stdin, .. } => {
                descriptor.need(rights::FD_READ)?;
                let nonblock = descriptor.flags & fdflags::NONBLOCK != 0;
                read_stream(c, stream, nonblock, &iovs)?
            }
            Kind::Socket(_) => {
                let (id, nonblock) = c.ctx.fds.socket(fd, rights::FD_READ)?;
                sock::receive(c, id, sock::How { nonblock, ..sock::How::default() }, &iovs)?
            }
            Kind::File { node, position, read: true, .. } => {
                descriptor.need(rights::FD_READ)?;
                let total = read_file(c, node, position, &iovs)?;
                c.ctx.fds.set_position(fd, position.saturating_add(total.into()));
                total
            }
            _ => return Err(Errno::Badf.into()),
        };
        Ok(memory::put_u32(c.memory, nread, total)?)
    })
}

/// Reads a file at `offset`; the position stays.
pub fn fd_pread<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    iovs: u32,
    iovs_len: u32,
    offset: u64,
    nread: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, nread, 4)?;
        let iovs = IoVecs::load(c.memory, iovs, iovs_len)?;
        let node = match c.ctx.fds.get(fd)?.kind {
            Kind::Stream { stream: Stream::Stdin, .. } | Kind::Socket(_) => return Err(Errno::Spipe.into()),
            _ => c.ctx.fds.file(fd, rights::FD_READ | rights::FD_SEEK)?,
        };
        if !node.read {
            return Err(Errno::Badf.into());
        }
        if offset > MAX_FILE_BYTES {
            return Err(Errno::Inval.into());
        }
        let total = read_file(c, node.node, offset, &iovs)?;
        Ok(memory::put_u32(c.memory, nread, total)?)
    })
}

/// Writes at the descriptor's position, or the end with `APPEND`, and moves the position.
pub fn fd_write<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    iovs: u32,
    iovs_len: u32,
    nwritten: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, nwritten, 4)?;
        let iovs = IoVecs::load(c.memory, iovs, iovs_len)?;
        let descriptor = c.ctx.fds.get(fd)?;
        let total = match descriptor.kind {
            Kind::Stream { stream: stream @ (Stream::Stdout | Stream::Stderr), .. } => {
                descriptor.need(rights::FD_WRITE)?;
                let nonblock = descriptor.flags & fdflags::NONBLOCK != 0;
                write_stream(c, stream, nonblock, &iovs)?
            }
            Kind::Socket(_) => {
                let (id, nonblock) = c.ctx.fds.socket(fd, rights::FD_WRITE)?;
                sock::transmit(c, id, nonblock, &iovs)?
            }
            Kind::File { node, position, write: true, .. } => {
                descriptor.need(rights::FD_WRITE)?;
                let append = descriptor.flags & fdflags::APPEND != 0;
                let offset = if append { c.ctx.fs.size(node)? } else { position };
                let total = write_file(c, node, offset, &iovs)?;
                c.ctx.fds.set_position(fd, offset.saturating_add(total.into()));
                total
            }
            _ => return Err(Errno::Badf.into()),
        };
        Ok(memory::put_u32(c.memory, nwritten, total)?)
    })
}

/// Writes to a file at `offset`, or the end with `APPEND` (as Linux does); the position stays.
pub fn fd_pwrite<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    iovs: u32,
    iovs_len: u32,
    offset: u64,
    nwritten: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, nwritten, 4)?;
        let iovs = IoVecs::load(c.memory, iovs, iovs_len)?;
        let file = match c.ctx.fds.get(fd)?.kind {
            Kind::Stream { stream: Stream::Stdout | Stream::Stderr, .. } | Kind::Socket(_) => {
                return Err(Errno::Spipe.into());
            }
            _ => c.ctx.fds.file(fd, rights::FD_WRITE | rights::FD_SEEK)?,
        };
        if !file.write {
            return Err(Errno::Badf.into());
        }
        if offset > MAX_FILE_BYTES {
            return Err(Errno::Inval.into());
        }
        let append = file.flags & fdflags::APPEND != 0;
        let offset = if append { c.ctx.fs.size(file.node)? } else { offset };
        let total = write_file(c, file.node, offset, &iovs)?;
        Ok(memory::put_u32(c.memory, nwritten, total)?)
    })
}

/// Moves the position of a file and writes the new one. `offset` is signed.
pub fn fd_seek<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    offset: u64,
    whence: u32,
    newoffset: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, newoffset, 8)?;
        let file = c.ctx.fds.seekable(fd, rights::FD_SEEK)?;
        let from = match whence {
            whence::SET => 0,
            whence::CUR => file.position,
            whence::END => c.ctx.fs.size(file.node)?,
            _ => return Err(Errno::Inval.into()),
        };
        let to = from.checked_add_signed(offset.cast_signed()).filter(|to| *to <= MAX_FILE_BYTES);
        let to = to.ok_or(Errno::Inval)?;
        c.ctx.fds.set_position(fd, to);
        Ok(memory::put_u64(c.memory, newoffset, to)?)
    })
}

/// Writes the position of a file.
pub fn fd_tell<S: System>(c: &mut Call<'_, S>, fd: u32, offset: u32) -> Result<Errno, Stop> {
    run(|| {
        let file = c.ctx.fds.seekable(fd, rights::FD_TELL)?;
        Ok(memory::put_u64(c.memory, offset, file.position)?)
    })
}
