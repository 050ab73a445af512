//! Operations on names: open, create, link, remove and rename, with POSIX rules and wasmtime's error codes.
//!
//! Each one resolves, checks everything, reserves what it needs, and only then changes the tree: an error leaves
//! the tree as it was.

use alloc::string::String;

use super::{
    Directory, FileData, Fs, InodeId, LINK_MAX, Node, PATH_MAX,
    path::{Found, Name},
};
use crate::types::Errno;

/// What an open may do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpenHow {
    /// Follow a link in the last place.
    pub follow: bool,
    /// Create the file if it is missing.
    pub create: bool,
    /// Fail if it exists.
    pub exclusive: bool,
    /// Cut the file to nothing.
    pub truncate: bool,
    /// Fail unless it is a directory.
    pub directory: bool,
    /// The descriptor is for writing.
    pub write: bool,
}

/// A place for a new name; `slash` if slashes followed it.
struct Vacant {
    parent: InodeId,
    name: Name,
    slash: bool,
}

impl Fs {
    /// Opens or creates `path` beneath `base`, and holds the inode until [`Fs::release`].
    ///
    /// # Errors
    /// Those of POSIX `openat`; `ELOOP` for a link that is not to be followed.
    pub(crate) fn open(
        &mut self,
        base: InodeId,
        path: &str,
        how: OpenHow,
        now: u64,
    ) -> Result<InodeId, Errno> {
        if how.directory && (how.create || how.exclusive || how.truncate) {
            return Err(Errno::Inval);
        }
        let follow = how.follow && !(how.create && how.exclusive);
        let found = self.resolve(base, path, follow)?;
        let id = match &found {
            Found::Entry { parent, name, node: None, slash } if how.create => {
                if *slash {
                    return Err(Errno::Isdir);
                }
                let place = Vacant { parent: *parent, name: name.clone(), slash: false };
                self.create(&place, Node::File { data: FileData::default(), executable: false }, now)?
            }
            _ => {
                if how.create && how.exclusive {
                    found.node(self)?;
                    return Err(Errno::Exist);
                }
                self.check_open(&found, how)?
            }
        };
        if how.truncate {
            self.set_size(id, 0, now)?;
        }
        self.retain(id)?;
        Ok(id)
    }

    /// Checks that what exists may be opened this way.
    fn check_open(&self, found: &Found, how: OpenHow) -> Result<InodeId, Errno> {
        let id = found.node(self)?;
        match &self.inode(id)?.node {
            Node::Symlink(_) => Err(Errno::Loop),
            Node::Dir(_) if how.write || how.create || how.truncate => Err(Errno::Isdir),
            Node::File { .. } if how.directory => Err(Errno::Notdir),
            _ => Ok(id),
        }
    }

    /// Resolves to a name that does not exist, in a directory that was not removed.
    fn vacant(&self, base: InodeId, path: &str) -> Result<Vacant, Errno> {
        match self.resolve(base, path, false)? {
            Found::Dir { .. } => Err(Errno::Exist),
            Found::Entry { node: Some(id), slash, .. } => {
                if slash && !self.inode(id)?.is_dir() {
                    Err(Errno::Notdir)
                } else {
                    Err(Errno::Exist)
                }
            }
            Found::Entry { parent, name, node: None, slash } => Ok(Vacant { parent, name, slash }),
        }
    }

    /// Makes a new inode under a vacant name.
    fn create(&mut self, place: &Vacant, node: Node, now: u64) -> Result<InodeId, Errno> {
        let name = self.prepare(place.parent, &place.name)?;
        let is_dir = matches!(node, Node::Dir(_));
        let id = self.insert(node, if is_dir { 2 } else { 1 }, now)?;
        let parent = self.inode_mut(place.parent)?;
        parent.dir_mut()?.commit(name, id);
        parent.nlink += u64::from(is_dir);
        (parent.times.mtim, parent.times.ctim) = (now, now);
        Ok(id)
    }

    /// Makes room for `name` in a directory that was not removed.
    fn prepare(&mut self, dir: InodeId, name: &Name) -> Result<String, Errno> {
        let inode = self.inode_mut(dir)?;
        if inode.nlink == 0 {
            return Err(Errno::Noent);
        }
        inode.dir_mut()?.prepare(name.as_str())
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// Those of POSIX `mkdirat`.
    pub(crate) fn mkdir(&mut self, base: InodeId, path: &str, now: u64) -> Result<InodeId, Errno> {
        let place = self.vacant(base, path)?;
        self.create(&place, Node::Dir(Directory::new(place.parent)), now)
    }

    /// Makes a symbolic link. Whether `target` may be absolute is the caller's choice: following one is `EPERM`.
    ///
    /// # Errors
    /// Those of POSIX `symlinkat`; `EINVAL` for a NUL.
    pub(crate) fn make_symlink(
        &mut self,
        target: &str,
        base: InodeId,
        path: &str,
        now: u64,
    ) -> Result<InodeId, Errno> {
        match target.len() {
            0 => return Err(Errno::Noent),
            PATH_MAX.. => return Err(Errno::Nametoolong),
            _ if target.as_bytes().contains(&0) => return Err(Errno::Inval),
            _ => {}
        }
        let place = self.vacant(base, path)?;
        if place.slash {
            return Err(Errno::Noent);
        }
        let mut copy = String::new();
        copy.try_reserve_exact(target.len()).map_err(|_| Errno::Nospc)?;
        copy.push_str(target);
        self.create(&place, Node::Symlink(copy), now)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` when it is none.
    pub(crate) fn readlink(&self, base: InodeId, path: &str) -> Result<&str, Errno> {
        match &self.inode(self.lookup(base, path, false)?)?.node {
            Node::Symlink(target) => Ok(target),
            _ => Err(Errno::Inval),
        }
    }

    /// Gives a file a further name.
    ///
    /// # Errors
    /// Those of POSIX `linkat`; `EPERM` for a directory.
    pub(crate) fn link(
        &mut self,
        old: (InodeId, &str, bool),
        new: (InodeId, &str),
        now: u64,
    ) -> Result<(), Errno> {
        let id = self.lookup(old.0, old.1, old.2)?;
        let inode = self.inode(id)?;
        if inode.is_dir() {
            return Err(Errno::Perm);
        }
        if inode.nlink >= LINK_MAX {
            return Err(Errno::Mlink);
        }
        let place = self.vacant(new.0, new.1)?;
        if place.slash {
            return Err(Errno::Noent);
        }
        let name = self.prepare(place.parent, &place.name)?;
        let parent = self.inode_mut(place.parent)?;
        parent.dir_mut()?.commit(name, id);
        (parent.times.mtim, parent.times.ctim) = (now, now);
        let inode = self.inode_mut(id)?;
        inode.nlink += 1;
        inode.times.ctim = now;
        Ok(())
    }

    /// Removes a name that is no directory's.
    ///
    /// # Errors
    /// Those of POSIX `unlinkat`.
    pub(crate) fn unlink(&mut self, base: InodeId, path: &str, now: u64) -> Result<(), Errno> {
        let Found::Entry { parent, name, node: Some(id), slash } = self.resolve_for_removal(base, path)?
        else {
            return Err(Errno::Isdir);
        };
        if self.inode(id)?.is_dir() {
            return Err(Errno::Isdir);
        }
        if slash {
            return Err(Errno::Notdir);
        }
        self.remove_name(parent, &name, now)?;
        self.drop_link(id, now);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of POSIX `unlinkat(AT_REMOVEDIR)`.
    pub(crate) fn rmdir(&mut self, base: InodeId, path: &str, now: u64) -> Result<(), Errno> {
        match self.resolve_for_removal(base, path)? {
            Found::Dir { dotdot: true, .. } => Err(Errno::Notempty),
            Found::Dir { .. } | Found::Entry { node: None, .. } => Err(Errno::Inval),
            Found::Entry { parent, name, node: Some(id), .. } => {
                if self.inode(id)?.dir()?.len() > 0 {
                    return Err(Errno::Notempty);
                }
                self.remove_name(parent, &name, now)?;
                self.lose_subdir(parent)?;
                self.drop_link(id, now);
                Ok(())
            }
        }
    }

    /// Resolves without following a last link, and fails when nothing is there.
    fn resolve_for_removal(&self, base: InodeId, path: &str) -> Result<Found, Errno> {
        // A link before a trailing slash is removed by nobody: it is not a directory itself.
        let bare = path.trim_end_matches('/');
        if bare.len() != path.len() && !bare.is_empty() {
            let id = self.lookup(base, bare, false)?;
            if matches!(self.inode(id)?.node, Node::Symlink(_)) {
                return Err(Errno::Notdir);
            }
        }
        let found = self.resolve(base, path, false)?;
        match found {
            Found::Entry { node: None, .. } => Err(Errno::Noent),
            found => Ok(found),
        }
    }

    /// Notes that a directory has one directory less.
    fn lose_subdir(&mut self, parent: InodeId) -> Result<(), Errno> {
        let inode = self.inode_mut(parent)?;
        inode.nlink = inode.nlink.saturating_sub(1);
        Ok(())
    }

    fn remove_name(&mut self, parent: InodeId, name: &Name, now: u64) -> Result<(), Errno> {
        let inode = self.inode_mut(parent)?;
        inode.dir_mut()?.remove(name.as_str()).ok_or(Errno::Noent)?;
        (inode.times.mtim, inode.times.ctim) = (now, now);
        Ok(())
    }

    /// Notes that an inode lost a name; a directory loses all of its links with its only name.
    fn drop_link(&mut self, id: InodeId, now: u64) {
        if let Ok(inode) = self.inode_mut(id) {
            inode.nlink = if inode.is_dir() { 0 } else { inode.nlink.saturating_sub(1) };
            inode.times.ctim = now;
        }
        self.reap(id);
    }

    /// Renames, replacing what has the new name.
    ///
    /// # Errors
    /// Those of POSIX `renameat`: among them `EINVAL` into its own subtree, `ENOTEMPTY`, `EISDIR`, `ENOTDIR`.
    pub(crate) fn rename(
        &mut self,
        old: (InodeId, &str),
        new: (InodeId, &str),
        now: u64,
    ) -> Result<(), Errno> {
        let (Found::Entry { parent: from, name: old_name, node: old_node, slash: old_slash }, new) =
            (self.resolve_for_removal(old.0, old.1)?, self.resolve(new.0, new.1, false)?)
        else {
            return Err(Errno::Busy);
        };
        let Found::Entry { parent: to, name: new_name, node: target, slash: new_slash } = new else {
            return Err(Errno::Busy);
        };
        let id = old_node.ok_or(Errno::Noent)?;
        let is_dir = self.inode(id)?.is_dir();
        if (old_slash || new_slash) && !is_dir {
            return Err(Errno::Notdir);
        }
        if target == Some(id) {
            return Ok(());
        }
        if self.inode(to)?.nlink == 0 {
            return Err(Errno::Noent);
        }
        if is_dir && self.is_within(to, id)? {
            return Err(Errno::Inval);
        }
        if let Some(target) = target {
            match (is_dir, &self.inode(target)?.node) {
                (true, Node::Dir(dir)) if dir.len() > 0 => return Err(Errno::Notempty),
                (true, Node::Dir(_)) => {}
                (true, _) => return Err(Errno::Notdir),
                (false, Node::Dir(_)) => return Err(Errno::Isdir),
                (false, _) => {}
            }
            self.inode_mut(to)?.dir_mut()?.replace(new_name.as_str(), id).ok_or(Errno::Io)?;
        } else {
            let name = self.prepare(to, &new_name)?;
            self.inode_mut(to)?.dir_mut()?.commit(name, id);
        }
        self.finish_rename((from, &old_name), (to, target), (id, is_dir), now)
    }

    /// The part of a rename after the new name is in place: nothing here can fail for a reason of the program's.
    fn finish_rename(
        &mut self,
        (from, old_name): (InodeId, &Name),
        (to, target): (InodeId, Option<InodeId>),
        (id, is_dir): (InodeId, bool),
        now: u64,
    ) -> Result<(), Errno> {
        self.remove_name(from, old_name, now)?;
        if is_dir {
            self.lose_subdir(from)?;
            // The new parent gains this directory, and loses the one it replaces.
            self.inode_mut(to)?.nlink += u64::from(target.is_none());
            self.inode_mut(id)?.dir_mut()?.parent = to;
        }
        let parent = self.inode_mut(to)?;
        (parent.times.mtim, parent.times.ctim) = (now, now);
        self.inode_mut(id)?.times.ctim = now;
        if let Some(target) = target {
            self.drop_link(target, now);
        }
        Ok(())
    }

    /// Whether the directory `dir` is `top` or lies beneath it.
    fn is_within(&self, mut dir: InodeId, top: InodeId) -> Result<bool, Errno> {
        while dir != top {
            let parent = self.inode(dir)?.dir()?.parent;
            if parent == dir {
                return Ok(false);
            }
            dir = parent;
        }
        Ok(true)
    }
}
