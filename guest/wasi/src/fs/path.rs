//! Path resolution beneath a directory, in the manner of `openat2(RESOLVE_BENEATH)`.
//!
//! A path never leaves the directory it starts from: absolute paths, absolute link targets and a `..` too many are
//! `EPERM`, as wasmtime answers. Nothing is allocated: parents are found by the directories' parent references
//! and a depth count, and links in progress sit in a fixed stack, whose size is also the loop limit.

use super::{Fs, InodeId, Node};
use crate::types::Errno;

/// The longest name of one entry, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest path or link target, in bytes, plus one (as Linux counts the end).
pub const PATH_MAX: usize = 4096;
/// How many links one resolution follows before it is `ELOOP`.
const LINK_LIMIT: usize = 40;

/// An owned path component.
#[derive(Clone)]
pub(crate) struct Name {
    bytes: [u8; NAME_MAX],
    len: usize,
}

impl Name {
    fn new(name: &str) -> Result<Self, Errno> {
        let mut bytes = [0; NAME_MAX];
        bytes.get_mut(..name.len()).ok_or(Errno::Nametoolong)?.copy_from_slice(name.as_bytes());
        Ok(Self { bytes, len: name.len() })
    }

    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
    }
}

/// Where a path led.
#[expect(clippy::large_enum_variant, reason = "lives briefly on the stack; a box could fail")]
pub(crate) enum Found {
    /// It ended in `.` or `..`: a directory without a name to change.
    Dir { id: InodeId, dotdot: bool },
    /// A name in a directory, and what it names, if it exists.
    Entry { parent: InodeId, name: Name, node: Option<InodeId>, slash: bool },
}

impl Found {
    /// What was found.
    ///
    /// # Errors
    /// `ENOENT` for nothing, `ENOTDIR` for a non-directory before a trailing slash.
    pub fn node(&self, fs: &Fs) -> Result<InodeId, Errno> {
        match self {
            Found::Dir { id, .. } => Ok(*id),
            Found::Entry { node, slash, .. } => {
                let id = node.ok_or(Errno::Noent)?;
                if *slash && !fs.inode(id)?.is_dir() { Err(Errno::Notdir) } else { Ok(id) }
            }
        }
    }
}

/// Checks what is wrong with a path before anything is looked up.
fn check(path: &str) -> Result<(), Errno> {
    if path.is_empty() {
        return Err(Errno::Noent);
    }
    if path.len() >= PATH_MAX {
        return Err(Errno::Nametoolong);
    }
    if path.as_bytes().contains(&0) {
        return Err(Errno::Inval);
    }
    if path.starts_with('/') {
        return Err(Errno::Perm);
    }
    Ok(())
}

impl Fs {
    /// Resolves `path` beneath the directory `base`; a link in the last place is followed only if `follow`, or if
    /// a slash comes after it.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EPERM` (escape), `ELOOP`, `ENAMETOOLONG`, `EINVAL` (a NUL).
    pub(crate) fn resolve(&self, base: InodeId, path: &str, follow: bool) -> Result<Found, Errno> {
        check(path)?;
        let mut stack: [&str; LINK_LIMIT + 1] = [""; LINK_LIMIT + 1];
        let mut top = 0;
        let mut links = 0;
        stack[0] = path;
        let (mut dir, mut depth) = (base, 0_u32);
        let mut dotdot = false;
        loop {
            let Some(rest) = stack.get_mut(top) else { return Err(Errno::Loop) };
            let trimmed = rest.trim_start_matches('/');
            if trimmed.is_empty() {
                if top == 0 {
                    return Ok(Found::Dir { id: dir, dotdot });
                }
                top -= 1;
                continue;
            }
            let end = trimmed.find('/').unwrap_or(trimmed.len());
            let (component, after) = trimmed.split_at(end);
            *rest = after;
            dotdot = component == "..";
            match component {
                "." => continue,
                ".." => {
                    depth = depth.checked_sub(1).ok_or(Errno::Perm)?;
                    dir = self.inode(dir)?.dir()?.parent;
                    continue;
                }
                _ if component.len() > NAME_MAX => return Err(Errno::Nametoolong),
                _ => {}
            }
            let pending = stack.get(..=top).unwrap_or(&[]);
            let last = pending.iter().all(|rest| rest.bytes().all(|b| b == b'/'));
            let slash = last && pending.iter().any(|rest| !rest.is_empty());
            let node = self.inode(dir)?.dir()?.get(component);
            let kind = node.map(|id| self.inode(id)).transpose()?.map(|inode| &inode.node);
            if let Some(Node::Symlink(target)) = kind
                && (!last || follow || slash)
            {
                links += 1;
                if links > LINK_LIMIT {
                    return Err(Errno::Loop);
                }
                if target.starts_with('/') {
                    return Err(Errno::Perm);
                }
                // A frame that is used up makes room.
                if !after.is_empty() {
                    top += 1;
                }
                *stack.get_mut(top).ok_or(Errno::Loop)? = target;
                continue;
            }
            if last {
                let name = Name::new(component)?;
                return Ok(Found::Entry { parent: dir, name, node, slash });
            }
            match (node, kind) {
                (Some(id), Some(Node::Dir(_))) => (dir, depth) = (id, depth + 1),
                (Some(_), _) => return Err(Errno::Notdir),
                (None, _) => return Err(Errno::Noent),
            }
        }
    }

    /// Resolves to something that exists.
    ///
    /// # Errors
    /// As [`Fs::resolve`], and `ENOENT`.
    pub(crate) fn lookup(&self, base: InodeId, path: &str, follow: bool) -> Result<InodeId, Errno> {
        self.resolve(base, path, follow)?.node(self)
    }
}
