//! One directory: names to inodes, in order of creation, with cookies that stay valid while it changes.
//!
//! Entries live in a vector ordered by a cookie that only grows; removing leaves a gap until half of the vector
//! is gaps. A hash table over the same entries finds a name in constant time. Adding is split into a fallible
//! `prepare` and an infallible `commit`, so that a rename never stops half-way.

use alloc::{string::String, vec::Vec};

use hashbrown::HashTable;

use super::InodeId;
use crate::types::Errno;

/// Cookies of `.` and `..`; the entries follow.
const FIRST_COOKIE: u64 = 3;
/// Below this many entries gaps are not worth closing.
const COMPACT_ABOVE: usize = 32;

/// One entry. An empty name is a gap.
pub(crate) struct Entry {
    /// The cookie that continues after this entry.
    pub cookie: u64,
    /// The name, one path component.
    pub name: String,
    /// What it names.
    pub node: InodeId,
}

/// The entries of a directory and its parent (itself for the root).
pub(crate) struct Directory {
    pub parent: InodeId,
    entries: Vec<Entry>,
    index: HashTable<u32>,
    live: usize,
    next_cookie: u64,
}

/// FNV-1a with a final mix: directories only need spread, their owner can hurt nobody else by collisions.
fn hash(name: &str) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h ^= h >> 32;
    h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ (h >> 32)
}

fn hash_of(entries: &[Entry], at: u32) -> u64 {
    entries.get(at as usize).map_or(0, |entry| hash(&entry.name))
}

impl Directory {
    pub fn new(parent: InodeId) -> Self {
        Self { parent, entries: Vec::new(), index: HashTable::new(), live: 0, next_cookie: FIRST_COOKIE }
    }

    /// The number of entries, without `.` and `..`.
    pub fn len(&self) -> usize {
        self.live
    }

    fn position(&self, name: &str) -> Option<u32> {
        let same = |at: &u32| self.entries.get(*at as usize).is_some_and(|entry| entry.name == name);
        self.index.find(hash(name), same).copied()
    }

    /// What `name` names.
    pub fn get(&self, name: &str) -> Option<InodeId> {
        self.entries.get(self.position(name)? as usize).map(|entry| entry.node)
    }

    /// Makes room for one more entry and copies its name.
    ///
    /// # Errors
    /// `ENOSPC`; then nothing has changed.
    pub fn prepare(&mut self, name: &str) -> Result<String, Errno> {
        let mut copy = String::new();
        copy.try_reserve_exact(name.len()).map_err(|_| Errno::Nospc)?;
        copy.push_str(name);
        self.entries.try_reserve(1).map_err(|_| Errno::Nospc)?;
        if self.entries.len() >= u32::MAX as usize {
            return Err(Errno::Nospc);
        }
        let entries = &self.entries;
        self.index.try_reserve(1, |at| hash_of(entries, *at)).map_err(|_| Errno::Nospc)?;
        Ok(copy)
    }

    /// Adds the entry for which [`Self::prepare`] made room. The name must not be in the directory.
    pub fn commit(&mut self, name: String, node: InodeId) {
        let at = self.entries.len() as u32;
        let hash = hash(&name);
        self.entries.push(Entry { cookie: self.next_cookie, name, node });
        self.next_cookie += 1;
        self.live += 1;
        let entries = &self.entries;
        self.index.insert_unique(hash, at, |at| hash_of(entries, *at));
    }

    /// Makes an existing name name something else, and returns what it named.
    pub fn replace(&mut self, name: &str, node: InodeId) -> Option<InodeId> {
        let at = self.position(name)?;
        let entry = self.entries.get_mut(at as usize)?;
        Some(core::mem::replace(&mut entry.node, node))
    }

    /// Removes a name and returns what it named.
    pub fn remove(&mut self, name: &str) -> Option<InodeId> {
        let at = self.position(name)?;
        if let Ok(found) = self.index.find_entry(hash(name), |other| *other == at) {
            found.remove();
        }
        let entry = self.entries.get_mut(at as usize)?;
        entry.name = String::new();
        let node = entry.node;
        self.live -= 1;
        if self.entries.len() > COMPACT_ABOVE && self.live < self.entries.len() / 2 {
            self.compact();
        }
        Some(node)
    }

    /// Closes the gaps. It needs no memory: the table keeps its capacity.
    fn compact(&mut self) {
        self.entries.retain(|entry| !entry.name.is_empty());
        self.index.clear();
        for (at, entry) in self.entries.iter().enumerate() {
            let entries = &self.entries;
            self.index.insert_unique(hash(&entry.name), at as u32, |at| hash_of(entries, *at));
        }
    }

    /// The entries behind `cookie`, in order.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = &Entry> {
        let from = self.entries.partition_point(|entry| entry.cookie <= cookie);
        self.entries.iter().skip(from).filter(|entry| !entry.name.is_empty())
    }
}
