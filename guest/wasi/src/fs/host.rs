//! Import and export: filling the file system before a program runs, and reading a tree back afterwards.
//!
//! Paths here start at the root; a leading slash is allowed and means nothing. What is imported may come from an
//! untrusted host: it is checked like a program's own calls, with one difference: link targets may be absolute
//! (following such a link is `EPERM`).

use alloc::{string::String, vec::Vec};

use super::{BLOCK_BYTES, Fs, Inode, InodeId, Node, OpenHow, PATH_MAX};
use crate::types::Errno;

/// Names a file for import and export. It is checked at every use: after the file is gone it is `EBADF`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHandle {
    id: InodeId,
    ino: u64,
}

/// What an exported entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// As given to [`Fs::create_file`]; false for what the program made.
        executable: bool,
        /// To read its contents.
        handle: FileHandle,
    },
    /// A directory; its entries follow.
    Dir,
    /// A symbolic link.
    Symlink {
        /// Where it points, unchecked.
        target: &'a str,
    },
}

/// One entry of an exported tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportEntry<'a> {
    /// The path relative to where the export started, without a leading slash.
    pub path: &'a str,
    /// What it is.
    pub kind: EntryKind<'a>,
    /// The time of its last modification, in nanoseconds since 1970.
    pub mtime: u64,
}

/// A position in the export of a tree. It does not borrow the file system: between two steps files may be read,
/// and changes are tolerated (what is gone is left out).
#[derive(Debug)]
pub struct Cursor {
    /// The directories on the way: slot, its inode number, cookie, length of its path.
    stack: Vec<(InodeId, u64, u64, usize)>,
    path: String,
}

impl Cursor {
    /// The next entry, directories before what is in them; `None` at the end.
    ///
    /// # Errors
    /// [`Errno::Nomem`] when there is no memory for the path.
    pub fn next<'a>(&'a mut self, fs: &'a Fs) -> Result<Option<ExportEntry<'a>>, Errno> {
        while let Some((dir, ino, cookie, path_len)) = self.stack.last_mut() {
            self.path.truncate(*path_len);
            let entry = match fs.inode(*dir) {
                Ok(inode @ Inode { node: Node::Dir(dir), .. }) if inode.ino == *ino => {
                    dir.after(*cookie).next()
                }
                _ => None,
            };
            let Some(entry) = entry else {
                self.stack.pop();
                continue;
            };
            *cookie = entry.cookie;
            let inode = fs.inode(entry.node)?;
            self.path.try_reserve(entry.name.len() + 1).map_err(|_| Errno::Nomem)?;
            if !self.path.is_empty() {
                self.path.push('/');
            }
            self.path.push_str(&entry.name);
            let kind = match &inode.node {
                Node::File { data, executable } => {
                    let handle = FileHandle { id: entry.node, ino: inode.ino };
                    EntryKind::File { size: data.size(), executable: *executable, handle }
                }
                Node::Symlink(target) => EntryKind::Symlink { target },
                Node::Dir(_) => {
                    self.stack.try_reserve(1).map_err(|_| Errno::Nomem)?;
                    self.stack.push((entry.node, inode.ino, 0, self.path.len()));
                    EntryKind::Dir
                }
            };
            return Ok(Some(ExportEntry { path: &self.path, kind, mtime: inode.times.mtim }));
        }
        Ok(None)
    }
}

/// A path for the resolver: without its leading slashes, `.` for the root itself.
fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

impl Fs {
    /// Makes a directory and those above it that are missing, all with this time of modification.
    ///
    /// # Errors
    /// [`Errno::Notdir`] when something else has one of the names, [`Errno::Nospc`], bad paths.
    pub fn create_dir_all(&mut self, path: &str, mtime: u64) -> Result<(), Errno> {
        let path = relative(path);
        if path.len() >= PATH_MAX {
            return Err(Errno::Nametoolong);
        }
        let ends = path.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let prefix = path.get(..end).unwrap_or(path);
            match self.lookup(self.root, prefix, true) {
                Err(Errno::Noent) => self.mkdir(self.root, prefix, mtime).map(|_| ())?,
                Err(error) => return Err(error),
                Ok(id) => self.inode(id)?.dir().map(|_| ())?,
            }
        }
        Ok(())
    }

    /// Makes a file, or empties the one that is there. Its directory must exist.
    ///
    /// # Errors
    /// Those of an `open` with `O_CREAT | O_TRUNC`.
    pub fn create_file(&mut self, path: &str, mtime: u64, executable: bool) -> Result<FileHandle, Errno> {
        let how = OpenHow { follow: true, create: true, truncate: true, write: true, ..OpenHow::default() };
        let id = self.open(self.root, relative(path), how, mtime)?;
        self.release(id);
        let inode = self.inode_mut(id)?;
        if let Node::File { executable: flag, .. } = &mut inode.node {
            *flag = executable;
        }
        Ok(FileHandle { id, ino: inode.ino })
    }

    fn check_handle(&self, handle: FileHandle) -> Result<(), Errno> {
        let inode = self.inode(handle.id).map_err(|_| Errno::Badf)?;
        if inode.ino == handle.ino { Ok(()) } else { Err(Errno::Badf) }
    }

    /// Adds bytes to the end of a file, all or an error; its times stay as they are.
    ///
    /// # Errors
    /// [`Errno::Nospc`] (some of the bytes may have been added), [`Errno::Badf`].
    pub fn append(&mut self, handle: FileHandle, data: &[u8]) -> Result<(), Errno> {
        self.check_handle(handle)?;
        let (file, _, space) = self.file_mut(handle.id)?;
        let n = file.write(file.size(), data, space)?;
        if n < data.len() { Err(Errno::Nospc) } else { Ok(()) }
    }

    /// Makes a symbolic link at `path`.
    ///
    /// # Errors
    /// Those of POSIX `symlinkat`.
    pub fn symlink(&mut self, path: &str, target: &str, mtime: u64) -> Result<(), Errno> {
        self.make_symlink(target, self.root, relative(path), mtime).map(|_| ())
    }

    /// Sets the time of modification, of a link itself when it is one: for directories after they were filled.
    ///
    /// # Errors
    /// Those of looking the path up.
    pub fn set_mtime(&mut self, path: &str, mtime: u64) -> Result<(), Errno> {
        let id = self.lookup(self.root, relative(path), false)?;
        self.inode_mut(id)?.times.mtim = mtime;
        Ok(())
    }

    /// Starts the export of the directory at `path`.
    ///
    /// # Errors
    /// Those of looking the path up, [`Errno::Notdir`], [`Errno::Nomem`].
    pub fn export(&self, path: &str) -> Result<Cursor, Errno> {
        let id = self.lookup(self.root, relative(path), true)?;
        let inode = self.inode(id)?;
        inode.dir()?;
        let mut stack = Vec::new();
        stack.try_reserve(16).map_err(|_| Errno::Nomem)?;
        stack.push((id, inode.ino, 0, 0));
        Ok(Cursor { stack, path: String::new() })
    }

    /// Opens the directory at `path`, and holds it until [`Fs::release`].
    pub(crate) fn open_dir(&mut self, path: &str) -> Result<InodeId, Errno> {
        let id = self.lookup(self.root, relative(path), true)?;
        self.inode(id)?.dir()?;
        self.retain(id)?;
        Ok(id)
    }

    /// Looks up a file by its path.
    ///
    /// # Errors
    /// Those of looking the path up, [`Errno::Isdir`].
    pub fn file_at(&self, path: &str) -> Result<FileHandle, Errno> {
        let id = self.lookup(self.root, relative(path), true)?;
        let inode = self.inode(id)?;
        if inode.is_dir() { Err(Errno::Isdir) } else { Ok(FileHandle { id, ino: inode.ino }) }
    }

    /// The size of a file in bytes.
    ///
    /// # Errors
    /// [`Errno::Badf`].
    pub fn file_size(&self, handle: FileHandle) -> Result<u64, Errno> {
        self.check_handle(handle)?;
        self.size(handle.id)
    }

    /// Reads from a file; short only at its end.
    ///
    /// # Errors
    /// [`Errno::Badf`].
    pub fn read_file(&self, handle: FileHandle, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        self.check_handle(handle)?;
        self.read(handle.id, offset, buf)
    }

    /// The first stored piece of a file in a block at or after that of `offset`: its position and at most
    /// [`BLOCK_BYTES`] bytes, in place. Everything between the pieces, and from the last one to the size, is zeros.
    ///
    /// # Errors
    /// [`Errno::Badf`].
    pub fn next_block(&self, handle: FileHandle, offset: u64) -> Result<Option<(u64, &[u8])>, Errno> {
        self.check_handle(handle)?;
        let block = BLOCK_BYTES as u64;
        let found = self.file(handle.id)?.stored_block(offset / block);
        Ok(found.map(|(number, bytes)| (number * block, bytes)))
    }
}
