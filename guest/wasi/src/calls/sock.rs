//! Sockets: the one that listens, and the connections accepted from it ([`crate::Sockets`]).
//!
//! A socket without `NONBLOCK` waits: to accept for a connection, to receive for the first byte (with `RECV_WAITALL` for all),
//! to send until all is taken. With it, what cannot be done now is `EAGAIN`. `ROFLAGS` are always 0: bytes of a stream
//! are never cut. There is no SIGPIPE: sending where nobody reads is `EPIPE`.

use crate::{
    ctx::{Call, Fail, flags, run},
    fdtable::{Descriptor, Kind},
    memory::{self, IoVecs},
    sockets::{SocketError, SocketId},
    system::{Interest, Stop, System},
    types::{Errno, fdflags, rights},
};

/// What `riflags` can hold.
const RECV_PEEK: u32 = 1;
const RECV_WAITALL: u32 = 2;
/// What `how` can hold: `rd`, `wr`.
const SHUT_RD: u32 = 1;
const SHUT_WR: u32 = 2;

/// Accepts a connection and writes its new descriptor. Of the flags `NONBLOCK` has a meaning for it.
pub fn sock_accept<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    fdflag: u32,
    accepted: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, accepted, 4)?;
        let fdflag = flags(fdflag, fdflags::ALL)?;
        let descriptor = c.ctx.fds.get(fd)?;
        match descriptor.kind {
            Kind::Listener => descriptor.need(rights::SOCK_ACCEPT)?,
            // As POSIX has it of a socket that does not listen.
            Kind::Socket(_) => return Err(Errno::Inval.into()),
            _ => return Err(Errno::Notsock.into()),
        }
        let nonblock = descriptor.flags & fdflags::NONBLOCK != 0;
        // What a connection may do is what the listening socket lets it inherit.
        let dropped = descriptor.dropped_inheriting;
        // Before a connection is taken that would be lost.
        c.ctx.fds.reserve()?;
        let id = loop {
            match c.ctx.system.socket_accept() {
                Ok(id) => break id,
                Err(SocketError::WouldBlock) if nonblock => return Err(Errno::Again.into()),
                Err(SocketError::WouldBlock) => c.ctx.system.wait(&[Interest::Acceptable], None)?,
                Err(SocketError::Reset | SocketError::Closed) => return Err(Errno::Connaborted.into()),
            }
        };
        let connection = Descriptor { flags: fdflag, dropped, ..Descriptor::new(Kind::Socket(id)) };
        let number = c.ctx.fds.insert(connection)?;
        Ok(memory::put_u32(c.memory, accepted, number)?)
    })
}

/// How a connection is read.
#[derive(Clone, Copy, Default)]
pub(super) struct How {
    /// It does not wait.
    pub nonblock: bool,
    /// What is read stays.
    pub peek: bool,
    /// It waits until the buffers are full.
    pub wait_all: bool,
}

/// Reads a connection into the buffers; returns the number of bytes.
pub(super) fn receive<S: System>(
    c: &mut Call<'_, S>,
    id: SocketId,
    how: How,
    iovs: &IoVecs,
) -> Result<u32, Fail> {
    let system = &mut c.ctx.system;
    let mut total = 0_u32;
    for (ptr, len) in iovs.iter() {
        let mut buf = memory::bytes_mut(c.memory, ptr, len)?;
        while !buf.is_empty() {
            let got = match how.peek {
                true => system.socket_peek(id, u64::from(total), buf),
                false => system.socket_recv(id, buf),
            };
            match got {
                Ok(0) => return Ok(total),
                Ok(n) => {
                    let n = n.min(buf.len());
                    total += n as u32;
                    buf = buf.get_mut(n..).unwrap_or_default();
                }
                Err(SocketError::WouldBlock) if total > 0 && (how.nonblock || !how.wait_all) => {
                    return Ok(total);
                }
                Err(SocketError::WouldBlock) if how.nonblock => return Err(Errno::Again.into()),
                Err(SocketError::WouldBlock) => system.wait(&[Interest::SocketReadable(id)], None)?,
                Err(SocketError::Reset | SocketError::Closed) if total > 0 => return Ok(total),
                Err(SocketError::Reset) => return Err(Errno::Connreset.into()),
                Err(SocketError::Closed) => return Ok(0),
            }
        }
    }
    Ok(total)
}

/// Writes the buffers to a connection; returns the number of bytes.
pub(super) fn transmit<S: System>(
    c: &mut Call<'_, S>,
    id: SocketId,
    nonblock: bool,
    iovs: &IoVecs,
) -> Result<u32, Fail> {
    let system = &mut c.ctx.system;
    let mut total = 0_u32;
    for (ptr, len) in iovs.iter() {
        let mut data = memory::bytes(c.memory, ptr, len)?;
        while !data.is_empty() {
            match system.socket_send(id, data) {
                Ok(n) if n > 0 => {
                    let n = n.min(data.len());
                    total += n as u32;
                    data = data.get(n..).unwrap_or_default();
                }
                Ok(_) | Err(SocketError::WouldBlock) if nonblock => {
                    return if total > 0 { Ok(total) } else { Err(Errno::Again.into()) };
                }
                Ok(_) | Err(SocketError::WouldBlock) => {
                    system.wait(&[Interest::SocketWritable(id)], None)?;
                }
                Err(SocketError::Reset | SocketError::Closed) if total > 0 => return Ok(total),
                Err(SocketError::Reset) => return Err(Errno::Connreset.into()),
                Err(SocketError::Closed) => return Err(Errno::Pipe.into()),
            }
        }
    }
    Ok(total)
}

/// Receives bytes from a connection. A peek with `RECV_WAITALL` waits for as much as the connection's window lets in at
/// most, so it gives what is there.
pub fn sock_recv<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    iovs: u32,
    iovs_len: u32,
    riflags: u32,
    nread: u32,
    roflags: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, nread, 4)?;
        memory::check(c.memory, roflags, 2)?;
        let riflags = flags(riflags, RECV_PEEK | RECV_WAITALL)?;
        let iovs = IoVecs::load(c.memory, iovs, iovs_len)?;
        let (id, nonblock) = c.ctx.fds.socket(fd, rights::FD_READ)?;
        let peek = riflags & RECV_PEEK != 0;
        let how = How { nonblock, peek, wait_all: riflags & RECV_WAITALL != 0 && !peek };
        let total = receive(c, id, how, &iovs)?;
        memory::put(c.memory, roflags, &[0; 2])?;
        Ok(memory::put_u32(c.memory, nread, total)?)
    })
}

/// Sends bytes on a connection.
pub fn sock_send<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    iovs: u32,
    iovs_len: u32,
    siflags: u32,
    nwritten: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, nwritten, 4)?;
        flags(siflags, 0)?;
        let iovs = IoVecs::load(c.memory, iovs, iovs_len)?;
        let (id, nonblock) = c.ctx.fds.socket(fd, rights::FD_WRITE)?;
        let total = transmit(c, id, nonblock, &iovs)?;
        Ok(memory::put_u32(c.memory, nwritten, total)?)
    })
}

/// Ends one or both directions of a connection.
pub fn sock_shutdown<S: System>(c: &mut Call<'_, S>, fd: u32, how: u32) -> Result<Errno, Stop> {
    run(|| {
        c.ctx.fds.get(fd)?;
        let how = flags(how, SHUT_RD | SHUT_WR)?;
        let (id, _) = c.ctx.fds.socket(fd, rights::SOCK_SHUTDOWN)?;
        if how == 0 {
            return Err(Errno::Inval.into());
        }
        c.ctx.system.socket_shutdown(id, how & SHUT_RD != 0, how & SHUT_WR != 0);
        Ok(())
    })
}
