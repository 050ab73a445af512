//! The contents of one file: 64 KiB blocks, sparse, every allocation fallible.
//!
//! Blocks hang in leaves of 256 (16 MiB); the leaves are sorted by their index, so a dense file finds its leaf by
//! that index and a sparse one by binary search. A block is a byte vector of at most 64 KiB: no capacity
//! is a hole, and what lies beyond its length reads as zeros, so a small file costs about its size.

use alloc::vec::Vec;

use crate::types::Errno;

/// Bytes of one block: the unit in which file contents are allocated, exported and later tracked.
pub const BLOCK_BYTES: usize = 65536;
/// The largest size of a file, in bytes.
pub const MAX_FILE_BYTES: u64 = i64::MAX as u64;
/// Blocks per leaf.
const FANOUT: u64 = 256;

/// How many bytes of file contents are allocated, and how many may be.
pub(crate) struct Space {
    /// Bytes allocated now.
    pub used: u64,
    /// The most bytes that may be allocated.
    pub limit: u64,
}

impl Space {
    /// Makes `block` able to hold `capacity` bytes.
    fn grow(&mut self, block: &mut Vec<u8>, capacity: usize) -> Result<(), Errno> {
        let old = block.capacity();
        if old >= capacity {
            return Ok(());
        }
        if self.used.saturating_add((capacity - old) as u64) > self.limit {
            return Err(Errno::Nospc);
        }
        block.try_reserve_exact(capacity - block.len()).map_err(|_| Errno::Nospc)?;
        self.used = self.used.saturating_add((block.capacity() - old) as u64);
        Ok(())
    }

    /// Gives a block back, leaving a hole.
    fn free(&mut self, block: &mut Vec<u8>) {
        self.used = self.used.saturating_sub(block.capacity() as u64);
        *block = Vec::new();
    }
}

struct Leaf {
    index: u64,
    blocks: Vec<Vec<u8>>,
}

/// The contents and size of one file.
#[derive(Default)]
pub(crate) struct FileData {
    size: u64,
    leaves: Vec<Leaf>,
}

/// Splits a position into (block number, offset in the block).
fn split(position: u64) -> (u64, usize) {
    (position / BLOCK_BYTES as u64, (position % BLOCK_BYTES as u64) as usize)
}

impl FileData {
    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the leaf is, or where it would be inserted.
    fn find(&self, index: u64) -> Result<usize, usize> {
        if let Ok(guess) = usize::try_from(index)
            && self.leaves.get(guess).is_some_and(|leaf| leaf.index == index)
        {
            return Ok(guess);
        }
        match self.leaves.last() {
            None => Err(0),
            Some(last) if last.index < index => Err(self.leaves.len()),
            Some(last) if last.index == index => Ok(self.leaves.len() - 1),
            Some(_) => self.leaves.binary_search_by_key(&index, |leaf| leaf.index),
        }
    }

    /// The stored bytes of a block; `None` and what is beyond them reads as zeros.
    fn block(&self, number: u64) -> Option<&Vec<u8>> {
        let leaf = self.leaves.get(self.find(number / FANOUT).ok()?)?;
        leaf.blocks.get((number % FANOUT) as usize)
    }

    /// The block's vector, making room for it in the tables (not for its bytes).
    fn block_mut(&mut self, number: u64) -> Result<&mut Vec<u8>, Errno> {
        let at = match self.find(number / FANOUT) {
            Ok(at) => at,
            Err(at) => {
                self.leaves.try_reserve(1).map_err(|_| Errno::Nospc)?;
                self.leaves.insert(at, Leaf { index: number / FANOUT, blocks: Vec::new() });
                at
            }
        };
        let slot = (number % FANOUT) as usize;
        let leaf = self.leaves.get_mut(at).ok_or(Errno::Io)?;
        if leaf.blocks.len() <= slot {
            leaf.blocks.try_reserve(slot + 1 - leaf.blocks.len()).map_err(|_| Errno::Nospc)?;
            leaf.blocks.resize_with(slot + 1, Vec::new);
        }
        leaf.blocks.get_mut(slot).ok_or(Errno::Io)
    }

    /// Copies from `offset` on; the number of bytes is short only at the end of the file.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let left = self.size.saturating_sub(offset);
        let total = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let mut position = offset;
        let mut rest = buf.get_mut(..total).unwrap_or(&mut []);
        while !rest.is_empty() {
            let (number, at) = split(position);
            let n = rest.len().min(BLOCK_BYTES - at);
            let (now, later) = rest.split_at_mut(n);
            let stored = self.block(number).and_then(|block| block.get(at..)).unwrap_or(&[]);
            let (data, zeros) = now.split_at_mut(stored.len().min(n));
            if let Some(stored) = stored.get(..data.len()) {
                data.copy_from_slice(stored);
            }
            zeros.fill(0);
            position += n as u64;
            rest = later;
        }
        total
    }

    /// Writes at `offset`, extending the file; short when memory ran out on the way.
    ///
    /// # Errors
    /// `EFBIG` beyond the largest size, `ENOSPC` when nothing could be written.
    pub fn write(&mut self, offset: u64, data: &[u8], space: &mut Space) -> Result<usize, Errno> {
        if data.is_empty() {
            return Ok(0);
        }
        let room = MAX_FILE_BYTES.checked_sub(offset).filter(|room| *room > 0).ok_or(Errno::Fbig)?;
        let total = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
        let mut rest = data.get(..total).unwrap_or(data);
        let mut position = offset;
        while !rest.is_empty() {
            let (number, at) = split(position);
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - at));
            if let Err(error) = self.write_block(number, at, now, space) {
                if position == offset {
                    return Err(error);
                }
                break;
            }
            position += now.len() as u64;
            rest = later;
        }
        self.size = self.size.max(position);
        Ok((position - offset) as usize)
    }

    fn write_block(&mut self, number: u64, at: usize, data: &[u8], space: &mut Space) -> Result<(), Errno> {
        let end = at + data.len();
        let block = self.block_mut(number)?;
        if block.capacity() < end {
            // The first block grows with the file so that small files stay small; later ones come whole.
            let capacity =
                if number == 0 { end.max(block.capacity() * 2).min(BLOCK_BYTES) } else { BLOCK_BYTES };
            space.grow(block, capacity)?;
        }
        if block.len() < at {
            block.resize(at, 0);
        }
        let overlap = (block.len() - at).min(data.len());
        let (over, new) = data.split_at(overlap);
        if let Some(target) = block.get_mut(at..at + overlap) {
            target.copy_from_slice(over);
        }
        block.extend_from_slice(new);
        Ok(())
    }

    /// Sets the size; growing adds a hole, shrinking frees blocks.
    ///
    /// # Errors
    /// `EINVAL` above the largest size (as wasmtime on Linux).
    pub fn set_size(&mut self, size: u64, space: &mut Space) -> Result<(), Errno> {
        if size > MAX_FILE_BYTES {
            return Err(Errno::Inval);
        }
        if size < self.size {
            let (number, at) = split(size);
            let whole = number + u64::from(at > 0);
            while let Some(leaf) = self.leaves.last_mut() {
                let keep = whole.saturating_sub(leaf.index.saturating_mul(FANOUT)).min(FANOUT) as usize;
                for block in leaf.blocks.iter_mut().skip(keep) {
                    space.free(block);
                }
                leaf.blocks.truncate(keep);
                if keep > 0 {
                    break;
                }
                self.leaves.pop();
            }
            if at > 0
                && let Ok(leaf) = self.find(number / FANOUT)
                && let Some(leaf) = self.leaves.get_mut(leaf)
                && let Some(block) = leaf.blocks.get_mut((number % FANOUT) as usize)
            {
                block.truncate(at);
            }
        }
        self.size = size;
        Ok(())
    }

    /// Reserves memory for `offset..offset + len` and extends the size to cover it.
    ///
    /// # Errors
    /// `EINVAL` for an empty range, `EFBIG`, `ENOSPC` (then nothing has changed).
    pub fn allocate(&mut self, offset: u64, len: u64, space: &mut Space) -> Result<(), Errno> {
        if len == 0 {
            return Err(Errno::Inval);
        }
        let end = offset.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES).ok_or(Errno::Fbig)?;
        let (first, last) = (split(offset).0, split(end - 1).0);
        for number in first..=last {
            let reserved = self.block_mut(number).and_then(|block| space.grow(block, BLOCK_BYTES));
            if let Err(error) = reserved {
                self.unreserve(first, number, space);
                return Err(error);
            }
        }
        self.size = self.size.max(end);
        Ok(())
    }

    /// Frees blocks of `first..=last` that hold no bytes, only room.
    fn unreserve(&mut self, first: u64, last: u64, space: &mut Space) {
        for leaf in &mut self.leaves {
            let base = leaf.index.saturating_mul(FANOUT);
            for (number, block) in (base..).zip(leaf.blocks.iter_mut()) {
                if (first..=last).contains(&number) && block.is_empty() {
                    space.free(block);
                }
            }
        }
        // Leaves without a single block would only slow the search down.
        self.leaves.retain(|leaf| leaf.blocks.iter().any(|block| block.capacity() > 0));
    }

    /// Frees everything.
    pub fn clear(&mut self, space: &mut Space) {
        for leaf in &mut self.leaves {
            for block in &mut leaf.blocks {
                space.free(block);
            }
        }
        self.leaves = Vec::new();
        self.size = 0;
    }

    /// The first block at or after `number` that holds bytes, cut to the size: (number, bytes).
    pub fn stored_block(&self, number: u64) -> Option<(u64, &[u8])> {
        let at = self.find(number / FANOUT).unwrap_or_else(|at| at);
        for leaf in self.leaves.get(at..)? {
            let base = leaf.index * FANOUT;
            let skip = number.saturating_sub(base) as usize;
            for (number, block) in (base..).zip(leaf.blocks.iter()).skip(skip) {
                let left = self.size.saturating_sub(number.saturating_mul(BLOCK_BYTES as u64));
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
                if len > 0 {
                    return Some((number, block.get(..len)?));
                }
            }
        }
        None
    }
}
