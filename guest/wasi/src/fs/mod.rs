//! The in-memory file system: inodes and what may be done with one of them.
//!
//! `file` holds contents, `dir` names, `path` finds inodes, `ops` changes names, `host` imports and exports trees. An
//! inode lives while a name or an open descriptor refers to it. Times are nanoseconds since 1970 and always come
//! from the caller. Directories have exactly one name, so the parents of a directory form a tree.

mod dir;
mod file;
mod host;
mod ops;
mod path;

use alloc::{string::String, vec::Vec};

pub(crate) use dir::Directory;
pub use file::{BLOCK_BYTES, MAX_FILE_BYTES};
pub(crate) use file::{FileData, Space};
pub use host::{Cursor, EntryKind, ExportEntry, FileHandle};
pub(crate) use ops::OpenHow;
pub use path::{NAME_MAX, PATH_MAX};

use crate::types::{Errno, Filestat, filetype};

/// The size a directory reports, in bytes, as on common disk file systems.
const DIRECTORY_SIZE: u64 = 4096;
/// The device number every inode reports; streams report 0.
const DEVICE: u64 = 1;
/// How many names a file may have.
const LINK_MAX: u64 = 65000;

/// Names a slot of the inode table. It stays valid while a name or a descriptor refers to the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InodeId(u32);

pub(crate) enum Node {
    File { data: FileData, executable: bool },
    Dir(Directory),
    Symlink(String),
}

/// The three times of an inode, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub atim: u64,
    pub mtim: u64,
    pub ctim: u64,
}

pub(crate) struct Inode {
    /// Never used twice, unlike the slot.
    pub ino: u64,
    /// Names; for a directory 2 and one for each directory in it, or 0 once it is removed.
    pub nlink: u64,
    /// Open descriptors and other holders.
    pub opens: u64,
    pub times: Times,
    pub node: Node,
}

impl Inode {
    /// The preview 1 file type.
    pub fn filetype(&self) -> u8 {
        match self.node {
            Node::File { .. } => filetype::REGULAR_FILE,
            Node::Dir(_) => filetype::DIRECTORY,
            Node::Symlink(_) => filetype::SYMBOLIC_LINK,
        }
    }

    pub fn is_dir(&self) -> bool {
        matches!(self.node, Node::Dir(_))
    }

    /// The directory's entries.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn dir(&self) -> Result<&Directory, Errno> {
        match &self.node {
            Node::Dir(dir) => Ok(dir),
            _ => Err(Errno::Notdir),
        }
    }

    fn dir_mut(&mut self) -> Result<&mut Directory, Errno> {
        match &mut self.node {
            Node::Dir(dir) => Ok(dir),
            _ => Err(Errno::Notdir),
        }
    }
}

enum Slot {
    /// The next free slot, if any.
    Free(Option<u32>),
    Used(Inode),
}

/// An in-memory file system with one root directory.
pub struct Fs {
    slots: Vec<Slot>,
    free: Option<u32>,
    next_ino: u64,
    root: InodeId,
    space: Space,
}

/// Shows sizes only: names and contents are the tenant's.
impl core::fmt::Debug for Fs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Fs")
            .field("inodes", &self.inode_count())
            .field("allocated_bytes", &self.space.used)
            .finish_non_exhaustive()
    }
}

impl Fs {
    /// An empty file system whose root directory was made at `now` (nanoseconds since 1970).
    ///
    /// # Errors
    /// [`Errno::Nospc`] when there is no memory.
    pub fn new(now: u64) -> Result<Self, Errno> {
        let root = InodeId(0);
        let space = Space { used: 0, limit: u64::MAX };
        let mut fs = Self { slots: Vec::new(), free: None, next_ino: 1, root, space };
        fs.insert(Node::Dir(Directory::new(root)), 2, now)?;
        Ok(fs)
    }

    /// Sets how many bytes of file contents may be allocated; more is `ENOSPC`. What is allocated stays.
    pub fn set_limit(&mut self, bytes: u64) {
        self.space.limit = bytes;
    }

    /// Bytes of memory that file contents take now.
    pub fn allocated_bytes(&self) -> u64 {
        self.space.used
    }

    /// The number of inodes alive.
    pub fn inode_count(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Used(_))).count()
    }

    /// The inode. A stale id can't come from inside this crate; it is `EIO` rather than a panic.
    pub(crate) fn inode(&self, id: InodeId) -> Result<&Inode, Errno> {
        match self.slots.get(id.0 as usize) {
            Some(Slot::Used(inode)) => Ok(inode),
            _ => Err(Errno::Io),
        }
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> Result<&mut Inode, Errno> {
        match self.slots.get_mut(id.0 as usize) {
            Some(Slot::Used(inode)) => Ok(inode),
            _ => Err(Errno::Io),
        }
    }

    /// Puts a new inode into the table.
    fn insert(&mut self, node: Node, nlink: u64, now: u64) -> Result<InodeId, Errno> {
        let times = Times { atim: now, mtim: now, ctim: now };
        let inode = Inode { ino: self.next_ino, nlink, opens: 0, times, node };
        let id = match self.free {
            Some(at) => {
                let slot = self.slots.get_mut(at as usize).ok_or(Errno::Io)?;
                if let Slot::Free(next) = *slot {
                    self.free = next;
                }
                *slot = Slot::Used(inode);
                at
            }
            None => {
                let at = u32::try_from(self.slots.len()).map_err(|_| Errno::Nospc)?;
                self.slots.try_reserve(1).map_err(|_| Errno::Nospc)?;
                self.slots.push(Slot::Used(inode));
                at
            }
        };
        self.next_ino += 1;
        Ok(InodeId(id))
    }

    /// Frees the inode when nothing refers to it any more.
    fn reap(&mut self, id: InodeId) {
        if !self.inode(id).is_ok_and(|inode| inode.nlink == 0 && inode.opens == 0) {
            return;
        }
        if let Some(slot) = self.slots.get_mut(id.0 as usize) {
            if let Slot::Used(Inode { node: Node::File { data, .. }, .. }) = slot {
                data.clear(&mut self.space);
            }
            *slot = Slot::Free(self.free);
            self.free = Some(id.0);
        }
    }

    /// Notes one more holder of the inode.
    pub(crate) fn retain(&mut self, id: InodeId) -> Result<(), Errno> {
        self.inode_mut(id)?.opens += 1;
        Ok(())
    }

    /// Notes that one holder is gone.
    pub(crate) fn release(&mut self, id: InodeId) {
        if let Ok(inode) = self.inode_mut(id) {
            inode.opens = inode.opens.saturating_sub(1);
        }
        self.reap(id);
    }

    pub(crate) fn stat(&self, id: InodeId) -> Result<Filestat, Errno> {
        let inode = self.inode(id)?;
        let size = match &inode.node {
            Node::File { data, .. } => data.size(),
            Node::Dir(_) => DIRECTORY_SIZE,
            Node::Symlink(target) => target.len() as u64,
        };
        let Times { atim, mtim, ctim } = inode.times;
        let (ino, nlink) = (inode.ino, inode.nlink);
        Ok(Filestat { dev: DEVICE, ino, filetype: inode.filetype(), nlink, size, atim, mtim, ctim })
    }

    /// The size of a file in bytes.
    ///
    /// # Errors
    /// `EBADF` when it is no file.
    pub(crate) fn size(&self, id: InodeId) -> Result<u64, Errno> {
        self.file(id).map(FileData::size)
    }

    fn file(&self, id: InodeId) -> Result<&FileData, Errno> {
        match &self.inode(id)?.node {
            Node::File { data, .. } => Ok(data),
            _ => Err(Errno::Badf),
        }
    }

    /// The file's contents, its times, and the budget, to change them.
    fn file_mut(&mut self, id: InodeId) -> Result<(&mut FileData, &mut Times, &mut Space), Errno> {
        match self.slots.get_mut(id.0 as usize) {
            Some(Slot::Used(Inode { node: Node::File { data, .. }, times, .. })) => {
                Ok((data, times, &mut self.space))
            }
            _ => Err(Errno::Badf),
        }
    }

    /// Reads from a file; short only at its end.
    pub(crate) fn read(&self, id: InodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        Ok(self.file(id)?.read(offset, buf))
    }

    /// Notes a read at `now`, as `relatime` does: only when the time of access is not newer than that of
    /// modification.
    pub(crate) fn touch_read(&mut self, id: InodeId, now: impl FnOnce() -> u64) {
        if let Ok(inode) = self.inode_mut(id)
            && inode.times.atim <= inode.times.mtim
        {
            inode.times.atim = now();
        }
    }

    /// Writes to a file; short when memory ran out on the way.
    ///
    /// # Errors
    /// `EBADF`, `EFBIG`, `ENOSPC`.
    pub(crate) fn write(&mut self, id: InodeId, offset: u64, data: &[u8], now: u64) -> Result<usize, Errno> {
        let (file, times, space) = self.file_mut(id)?;
        let n = file.write(offset, data, space)?;
        if n > 0 {
            (times.mtim, times.ctim) = (now, now);
        }
        Ok(n)
    }

    /// Sets a file's size.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL` when it is too large.
    pub(crate) fn set_size(&mut self, id: InodeId, size: u64, now: u64) -> Result<(), Errno> {
        let (file, times, space) = self.file_mut(id)?;
        file.set_size(size, space)?;
        (times.mtim, times.ctim) = (now, now);
        Ok(())
    }

    /// Reserves memory for a range of a file.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`, `EFBIG`, `ENOSPC`.
    pub(crate) fn allocate(&mut self, id: InodeId, offset: u64, len: u64, now: u64) -> Result<(), Errno> {
        let (file, times, space) = self.file_mut(id)?;
        let before = file.size();
        file.allocate(offset, len, space)?;
        times.ctim = now;
        if file.size() != before {
            times.mtim = now;
        }
        Ok(())
    }

    /// Sets the given times.
    pub(crate) fn set_times(
        &mut self,
        id: InodeId,
        atim: Option<u64>,
        mtim: Option<u64>,
        now: u64,
    ) -> Result<(), Errno> {
        let times = &mut self.inode_mut(id)?.times;
        times.atim = atim.unwrap_or(times.atim);
        times.mtim = mtim.unwrap_or(times.mtim);
        times.ctim = now;
        Ok(())
    }
}
