//! Functions that take a path, relative to a directory descriptor it can't leave.

use crate::{
    ctx::{Call, flags, run},
    fdtable::{Descriptor, Kind},
    fs::{InodeId, OpenHow},
    memory,
    system::{Clock, Stop, System},
    types::{Errno, fdflags, lookupflags, oflags, rights},
};

/// The current time for changes.
fn now<S: System>(c: &Call<'_, S>) -> u64 {
    c.ctx.system.clock_ns(Clock::Realtime)
}

/// Whether to follow a link in the last place.
fn follow(value: u32) -> Result<bool, Errno> {
    Ok(flags(value, lookupflags::ALL)? & lookupflags::SYMLINK_FOLLOW != 0)
}

/// Makes a directory.
pub fn path_create_directory<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    path: u32,
    path_len: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let dir = c.ctx.fds.dir(fd, rights::PATH_CREATE_DIRECTORY)?;
        let now = now(c);
        c.ctx.fs.mkdir(dir, memory::string(c.memory, path, path_len)?, now)?;
        Ok(())
    })
}

/// Writes the attributes of what a path names (`$filestat`, 64 bytes).
pub fn path_filestat_get<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    lookup: u32,
    path: u32,
    path_len: u32,
    stat: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let follow = follow(lookup)?;
        let dir = c.ctx.fds.dir(fd, rights::PATH_FILESTAT_GET)?;
        let node = c.ctx.fs.lookup(dir, memory::string(c.memory, path, path_len)?, follow)?;
        let record = c.ctx.fs.stat(node)?;
        Ok(memory::put(c.memory, stat, &record.encode())?)
    })
}

/// Sets the times of what a path names.
#[expect(clippy::too_many_arguments, reason = "the signature is the specification's")]
pub fn path_filestat_set_times<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    lookup: u32,
    path: u32,
    path_len: u32,
    atim: u64,
    mtim: u64,
    fst_flags: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let follow = follow(lookup)?;
        let now = now(c);
        let [atim, mtim] = super::fd::times(atim, mtim, fst_flags, now)?;
        let dir = c.ctx.fds.dir(fd, rights::PATH_FILESTAT_SET_TIMES)?;
        let node = c.ctx.fs.lookup(dir, memory::string(c.memory, path, path_len)?, follow)?;
        Ok(c.ctx.fs.set_times(node, atim, mtim, now)?)
    })
}

/// Gives a file a further name.
#[expect(clippy::too_many_arguments, reason = "the signature is the specification's")]
pub fn path_link<S: System>(
    c: &mut Call<'_, S>,
    old_fd: u32,
    old_lookup: u32,
    old_path: u32,
    old_path_len: u32,
    new_fd: u32,
    new_path: u32,
    new_path_len: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let follow = follow(old_lookup)?;
        let old_dir = c.ctx.fds.dir(old_fd, rights::PATH_LINK_SOURCE)?;
        let new_dir = c.ctx.fds.dir(new_fd, rights::PATH_LINK_TARGET)?;
        let now = now(c);
        let old = memory::string(c.memory, old_path, old_path_len)?;
        let new = memory::string(c.memory, new_path, new_path_len)?;
        Ok(c.ctx.fs.link((old_dir, old, follow), (new_dir, new), now)?)
    })
}

/// What the arguments of `path_open` ask for: how to open, and whether reading is allowed.
fn open_how(follow: bool, oflag: u32, base: u64) -> (OpenHow, bool) {
    let create = oflag & oflags::CREAT != 0;
    let truncate = oflag & oflags::TRUNC != 0;
    let wants_write = base & rights::FD_WRITE != 0;
    // As wasmtime: without the right to write it is opened for reading, whether asked for or not.
    let read = base & rights::FD_READ != 0 || !wants_write;
    let how = OpenHow {
        follow,
        create,
        exclusive: create && oflag & oflags::EXCL != 0,
        truncate,
        directory: oflag & oflags::DIRECTORY != 0,
        write: wants_write || truncate,
    };
    (how, read)
}

/// Opens a file or directory and writes the new descriptor's number. Of the rights asked for only reading and
/// writing count, as under wasmtime; those taken from the directory's inheriting rights are missing.
#[expect(clippy::too_many_arguments, reason = "the signature is the specification's")]
pub fn path_open<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    dirflags: u32,
    path: u32,
    path_len: u32,
    oflag: u32,
    base: u64,
    _inheriting: u64,
    fdflag: u32,
    opened_fd: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, opened_fd, 4)?;
        let follow = follow(dirflags)?;
        let oflag = flags(oflag, oflags::ALL)?;
        let fdflag = flags(fdflag, fdflags::ALL)?;
        let path = memory::string(c.memory, path, path_len)?;
        let (how, read) = open_how(follow, oflag, base);
        if how.directory && oflag & oflags::EXCL != 0 {
            return Err(Errno::Inval.into());
        }
        let (dir, dropped) = open_through(c.ctx.fds.get(fd)?, how, base)?;
        c.ctx.fds.reserve()?;
        let now = c.ctx.system.clock_ns(Clock::Realtime);
        let node = c.ctx.fs.open(dir, path, how, now)?;
        let kind = if c.ctx.fs.inode(node)?.is_dir() {
            Kind::Dir { node, preopen: None }
        } else {
            Kind::File { node, position: 0, read, write: base & rights::FD_WRITE != 0 }
        };
        let mut descriptor = Descriptor::new(kind);
        descriptor.flags = if descriptor_is_file(&descriptor) { fdflag } else { 0 };
        (descriptor.dropped, descriptor.dropped_inheriting) = (dropped, dropped);
        let number = c.ctx.fds.insert(descriptor)?;
        Ok(memory::put_u32(c.memory, opened_fd, number)?)
    })
}

fn descriptor_is_file(descriptor: &Descriptor) -> bool {
    matches!(descriptor.kind, Kind::File { .. })
}

/// Checks the directory of an open: returns it and the rights that what is opened won't have.
fn open_through(descriptor: &Descriptor, how: OpenHow, base: u64) -> Result<(InodeId, u64), Errno> {
    let Kind::Dir { node, .. } = descriptor.kind else {
        return Err(if descriptor_is_file(descriptor) { Errno::Notdir } else { Errno::Badf });
    };
    let create = if how.create { rights::PATH_CREATE_FILE } else { 0 };
    let truncate = if how.truncate { rights::PATH_FILESTAT_SET_SIZE } else { 0 };
    descriptor.need(rights::PATH_OPEN | create | truncate)?;
    let dropped = descriptor.dropped_inheriting;
    if base & dropped & (rights::FD_READ | rights::FD_WRITE) != 0 {
        return Err(Errno::Notcapable);
    }
    Ok((node, dropped))
}

/// Writes the target of a symbolic link, cut to the buffer, and how many bytes.
pub fn path_readlink<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    path: u32,
    path_len: u32,
    buf: u32,
    buf_len: u32,
    bufused: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, bufused, 4)?;
        let dir = c.ctx.fds.dir(fd, rights::PATH_READLINK)?;
        let target = c.ctx.fs.readlink(dir, memory::string(c.memory, path, path_len)?)?.as_bytes();
        let target = target.get(..buf_len as usize).unwrap_or(target);
        memory::put(c.memory, buf, target)?;
        Ok(memory::put_u32(c.memory, bufused, target.len() as u32)?)
    })
}

/// Removes an empty directory.
pub fn path_remove_directory<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    path: u32,
    path_len: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let dir = c.ctx.fds.dir(fd, rights::PATH_REMOVE_DIRECTORY)?;
        let now = now(c);
        Ok(c.ctx.fs.rmdir(dir, memory::string(c.memory, path, path_len)?, now)?)
    })
}

/// Renames a file or directory, replacing what has the new name.
pub fn path_rename<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    old_path: u32,
    old_path_len: u32,
    new_fd: u32,
    new_path: u32,
    new_path_len: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let old_dir = c.ctx.fds.dir(fd, rights::PATH_RENAME_SOURCE)?;
        let new_dir = c.ctx.fds.dir(new_fd, rights::PATH_RENAME_TARGET)?;
        let now = now(c);
        let old = memory::string(c.memory, old_path, old_path_len)?;
        let new = memory::string(c.memory, new_path, new_path_len)?;
        Ok(c.ctx.fs.rename((old_dir, old), (new_dir, new), now)?)
    })
}

/// Makes a symbolic link; an absolute target is `EPERM`, as under wasmtime.
pub fn path_symlink<S: System>(
    c: &mut Call<'_, S>,
    old_path: u32,
    old_path_len: u32,
    fd: u32,
    new_path: u32,
    new_path_len: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let dir = c.ctx.fds.dir(fd, rights::PATH_SYMLINK)?;
        let now = now(c);
        let target = memory::string(c.memory, old_path, old_path_len)?;
        let new = memory::string(c.memory, new_path, new_path_len)?;
        if target.starts_with('/') {
            return Err(Errno::Perm.into());
        }
        c.ctx.fs.make_symlink(target, dir, new, now)?;
        Ok(())
    })
}

/// Removes a file's name.
pub fn path_unlink_file<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    path: u32,
    path_len: u32,
) -> Result<Errno, Stop> {
    run(|| {
        let dir = c.ctx.fds.dir(fd, rights::PATH_UNLINK_FILE)?;
        let now = now(c);
        Ok(c.ctx.fs.unlink(dir, memory::string(c.memory, path, path_len)?, now)?)
    })
}
