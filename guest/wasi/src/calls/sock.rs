//! Sockets. No descriptor is one yet: every open descriptor answers `ENOTSOCK`, any other number `EBADF`.

use crate::{
    ctx::{Call, Fail, flags, run},
    memory::{self, IoVecs},
    system::{Stop, System},
    types::{Errno, fdflags},
};

/// `recv_peek | recv_waitall`.
const RIFLAGS: u32 = 3;
/// `rd | wr`.
const SDFLAGS: u32 = 3;

/// The socket under a number.
fn socket<S: System>(c: &Call<'_, S>, fd: u32) -> Result<(), Fail> {
    c.ctx.fds.get(fd)?;
    Err(Errno::Notsock.into())
}

/// Accepts a connection and writes its new descriptor.
pub fn sock_accept<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    fdflag: u32,
    accepted: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, accepted, 4)?;
        flags(fdflag, fdflags::ALL)?;
        socket(c, fd)
    })
}

/// Receives bytes from a connection.
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
        flags(riflags, RIFLAGS)?;
        IoVecs::load(c.memory, iovs, iovs_len)?;
        socket(c, fd)
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
        IoVecs::load(c.memory, iovs, iovs_len)?;
        socket(c, fd)
    })
}

/// Ends one or both directions of a connection.
pub fn sock_shutdown<S: System>(c: &mut Call<'_, S>, fd: u32, how: u32) -> Result<Errno, Stop> {
    run(|| {
        c.ctx.fds.get(fd)?;
        flags(how, SDFLAGS)?;
        socket(c, fd)
    })
}
