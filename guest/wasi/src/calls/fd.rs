//! Descriptors: closing, renumbering, status, flags, rights, sizes, times, preopens.

use crate::{
    ctx::{Call, Fail, flags, run},
    fdtable::{Descriptor, Kind},
    memory,
    system::{Clock, Stop, System},
    types::{ADVICE_COUNT, Errno, Fdstat, Filestat, fdflags, filetype, fstflags, rights},
};

/// Advises on the use of a file's range, which changes nothing here.
pub fn fd_advise<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    _offset: u64,
    _len: u64,
    advice: u32,
) -> Result<Errno, Stop> {
    run(|| {
        if advice >= ADVICE_COUNT {
            return Err(Errno::Inval.into());
        }
        c.ctx.fds.file(fd, rights::FD_ADVISE)?;
        Ok(())
    })
}

/// Reserves memory for a range of a file and extends the file to cover it.
pub fn fd_allocate<S: System>(c: &mut Call<'_, S>, fd: u32, offset: u64, len: u64) -> Result<Errno, Stop> {
    run(|| {
        let file = c.ctx.fds.file(fd, rights::FD_ALLOCATE)?;
        if !file.write {
            return Err(Errno::Badf.into());
        }
        let now = c.ctx.system.clock_ns(Clock::Realtime);
        Ok(c.ctx.fs.allocate(file.node, offset, len, now)?)
    })
}

/// Closes a descriptor.
pub fn fd_close<S: System>(c: &mut Call<'_, S>, fd: u32) -> Result<Errno, Stop> {
    run(|| {
        let descriptor = c.ctx.fds.remove(fd)?;
        c.ctx.release(&descriptor);
        Ok(())
    })
}

/// Nothing is left to synchronise: files are memory.
pub fn fd_datasync<S: System>(c: &mut Call<'_, S>, fd: u32) -> Result<Errno, Stop> {
    run(|| c.ctx.fds.file(fd, rights::FD_DATASYNC).map(|_| ()).map_err(Fail::from))
}

/// Nothing is left to synchronise: files are memory.
pub fn fd_sync<S: System>(c: &mut Call<'_, S>, fd: u32) -> Result<Errno, Stop> {
    run(|| c.ctx.fds.file(fd, rights::FD_SYNC).map(|_| ()).map_err(Fail::from))
}

/// Writes a descriptor's type, flags and rights (`$fdstat`, 24 bytes).
pub fn fd_fdstat_get<S: System>(c: &mut Call<'_, S>, fd: u32, stat: u32) -> Result<Errno, Stop> {
    run(|| {
        let descriptor = c.ctx.fds.get(fd)?;
        let filetype = match descriptor.kind {
            Kind::Stream { tty, .. } => Descriptor::stream_filetype(tty),
            Kind::File { .. } => filetype::REGULAR_FILE,
            Kind::Dir { .. } => filetype::DIRECTORY,
            Kind::Listener | Kind::Socket(_) => filetype::SOCKET_STREAM,
        };
        let (base, inheriting) = descriptor.rights();
        let record = Fdstat { filetype, flags: descriptor.flags, base, inheriting };
        Ok(memory::put(c.memory, stat, &record.encode())?)
    })
}

/// Sets `APPEND` and `NONBLOCK`; the synchronisation flags can't be changed after opening.
pub fn fd_fdstat_set_flags<S: System>(c: &mut Call<'_, S>, fd: u32, new: u32) -> Result<Errno, Stop> {
    run(|| {
        let descriptor = c.ctx.fds.get_mut(fd)?;
        if matches!(descriptor.kind, Kind::Dir { .. }) {
            return Err(Errno::Badf.into());
        }
        descriptor.need(rights::FD_FDSTAT_SET_FLAGS)?;
        let settable = fdflags::APPEND | fdflags::NONBLOCK;
        descriptor.flags = (descriptor.flags & !settable) | flags(new, settable)?;
        Ok(())
    })
}

/// Takes rights away. Both sets must be subsets of what the descriptor has.
pub fn fd_fdstat_set_rights<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    base: u64,
    inheriting: u64,
) -> Result<Errno, Stop> {
    run(|| {
        let descriptor = c.ctx.fds.get_mut(fd)?;
        let (has_base, has_inheriting) = descriptor.rights();
        if base & !has_base != 0 || inheriting & !has_inheriting != 0 {
            return Err(Errno::Notcapable.into());
        }
        descriptor.dropped |= has_base & !base;
        descriptor.dropped_inheriting |= has_inheriting & !inheriting;
        Ok(())
    })
}

/// Writes the attributes of what a descriptor refers to (`$filestat`, 64 bytes).
pub fn fd_filestat_get<S: System>(c: &mut Call<'_, S>, fd: u32, stat: u32) -> Result<Errno, Stop> {
    run(|| {
        let descriptor = c.ctx.fds.get(fd)?;
        descriptor.need(rights::FD_FILESTAT_GET)?;
        let record = match descriptor.kind {
            Kind::Stream { tty, .. } => {
                Filestat { filetype: Descriptor::stream_filetype(tty), ..Filestat::default() }
            }
            Kind::File { node, .. } | Kind::Dir { node, .. } => c.ctx.fs.stat(node)?,
            Kind::Listener | Kind::Socket(_) => {
                Filestat { filetype: filetype::SOCKET_STREAM, ..Filestat::default() }
            }
        };
        Ok(memory::put(c.memory, stat, &record.encode())?)
    })
}

/// Sets the size of a file.
pub fn fd_filestat_set_size<S: System>(c: &mut Call<'_, S>, fd: u32, size: u64) -> Result<Errno, Stop> {
    run(|| {
        let file = c.ctx.fds.file(fd, rights::FD_FILESTAT_SET_SIZE)?;
        if !file.write {
            // What ftruncate says of a descriptor that is not open for writing.
            return Err(Errno::Inval.into());
        }
        let now = c.ctx.system.clock_ns(Clock::Realtime);
        Ok(c.ctx.fs.set_size(file.node, size, now)?)
    })
}

/// The times to set, (access, modification), from the arguments of a set_times function.
///
/// # Errors
/// `EINVAL` for unknown flags, or a time together with "now".
pub(super) fn times(atim: u64, mtim: u64, which: u32, now: u64) -> Result<[Option<u64>; 2], Errno> {
    flags(which, fstflags::ALL)?;
    let one = |time, set, set_now| match (which & set != 0, which & set_now != 0) {
        (true, true) => Err(Errno::Inval),
        (true, false) => Ok(Some(time)),
        (false, true) => Ok(Some(now)),
        (false, false) => Ok(None),
    };
    Ok([one(atim, fstflags::ATIM, fstflags::ATIM_NOW)?, one(mtim, fstflags::MTIM, fstflags::MTIM_NOW)?])
}

/// Sets the times of a file or directory.
pub fn fd_filestat_set_times<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    atim: u64,
    mtim: u64,
    fst_flags: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let now = c.ctx.system.clock_ns(Clock::Realtime);
        let [atim, mtim] = times(atim, mtim, fst_flags, now)?;
        let descriptor = c.ctx.fds.get(fd)?;
        descriptor.need(rights::FD_FILESTAT_SET_TIMES)?;
        let node = descriptor.node().ok_or(Errno::Badf)?;
        Ok(c.ctx.fs.set_times(node, atim, mtim, now)?)
    })
}

/// Writes that a descriptor is a preopened directory and how long its name is (`$prestat`, 8 bytes); `EBADF` for
/// any other, which is how libraries find the end of the preopens.
pub fn fd_prestat_get<S: System>(c: &mut Call<'_, S>, fd: u32, prestat: u32) -> Result<Errno, Stop> {
    run(|| match &c.ctx.fds.get(fd)?.kind {
        Kind::Dir { preopen: Some(name), .. } => {
            let len = u32::try_from(name.len()).map_err(|_| Errno::Overflow)?;
            // The tag `dir` is 0; the length is at 4.
            Ok(memory::put_u64(c.memory, prestat, u64::from(len) << 32)?)
        }
        _ => Err(Errno::Badf.into()),
    })
}

/// Writes the name of a preopened directory, without a terminator.
pub fn fd_prestat_dir_name<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    path: u32,
    path_len: u32,
) -> Result<Errno, Stop> {
    run(|| match &c.ctx.fds.get(fd)?.kind {
        Kind::Dir { preopen: Some(name), .. } if name.len() > path_len as usize => {
            Err(Errno::Nametoolong.into())
        }
        Kind::Dir { preopen: Some(name), .. } => Ok(memory::put(c.memory, path, name.as_bytes())?),
        _ => Err(Errno::Notdir.into()),
    })
}

/// Moves a descriptor onto another number, closing what was there.
pub fn fd_renumber<S: System>(c: &mut Call<'_, S>, fd: u32, to: u32) -> Result<Errno, Stop> {
    run(|| {
        if let Some(old) = c.ctx.fds.renumber(fd, to)? {
            c.ctx.release(&old);
        }
        Ok(())
    })
}
