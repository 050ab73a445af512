//! Listing directories.

use crate::{
    ctx::{Call, run},
    memory,
    system::{Clock, Stop, System},
    types::{Errno, encode_dirent, filetype, rights},
};

/// Fills the rest of a buffer from the front of `data`; returns whether it is full.
fn fill(rest: &mut &mut [u8], data: &[u8]) -> bool {
    let n = rest.len().min(data.len());
    if let (Some((to, left)), Some(data)) = (core::mem::take(rest).split_at_mut_checked(n), data.get(..n)) {
        to.copy_from_slice(data);
        *rest = left;
    }
    rest.is_empty()
}

/// Writes entries behind `cookie` (0 for the start), each a `$dirent` and its name, and how many bytes. A full
/// buffer may end inside an entry; a buffer that is not full says that there are no more. Cookies stay valid
/// while the directory changes: an entry that stays is seen exactly once.
pub fn fd_readdir<S: System>(
    c: &mut Call<'_, S>,
    fd: u32,
    buf: u32,
    buf_len: u32,
    cookie: u64,
    bufused: u32,
) -> Result<Errno, Stop> {
    run(|| {
        memory::check(c.memory, bufused, 4)?;
        let node = c.ctx.fds.dir(fd, rights::FD_READDIR)?;
        let mut rest = memory::bytes_mut(c.memory, buf, buf_len)?;
        let fs = &c.ctx.fs;
        let inode = fs.inode(node)?;
        let dir = inode.dir()?;
        // A removed directory's parent may be gone.
        let parent = if inode.nlink == 0 { inode.ino } else { fs.inode(dir.parent)?.ino };
        let dots = [(1, inode.ino, "."), (2, parent, "..")];
        let dots = dots.iter().filter(|(next, ..)| *next > cookie);
        let mut full = rest.is_empty();
        for (next, ino, name) in dots {
            full = full
                || fill(&mut rest, &encode_dirent(*next, *ino, name.len() as u32, filetype::DIRECTORY))
                || fill(&mut rest, name.as_bytes());
        }
        if !full {
            for entry in dir.after(cookie) {
                let inode = fs.inode(entry.node)?;
                let name_bytes = entry.name.len() as u32;
                if fill(&mut rest, &encode_dirent(entry.cookie, inode.ino, name_bytes, inode.filetype()))
                    || fill(&mut rest, entry.name.as_bytes())
                {
                    break;
                }
            }
        }
        let used = (buf_len as usize).saturating_sub(rest.len()) as u32;
        memory::put_u32(c.memory, bufused, used)?;
        let system = &c.ctx.system;
        c.ctx.fs.touch_read(node, || system.clock_ns(Clock::Realtime));
        Ok(())
    })
}
