//! A bounded queue of bytes: written at its end, read from its front, contiguous in between. It takes the memory
//! it needs when it needs it and never more than its limit.

use alloc::vec::Vec;

/// A queue of at most a given number of bytes.
#[derive(Debug)]
pub struct Buffer {
    /// Bytes before `head` are used up.
    bytes: Vec<u8>,
    head: usize,
    limit: usize,
}

impl Buffer {
    /// An empty one, which holds at most `limit` bytes. It takes no memory yet.
    pub const fn new(limit: usize) -> Buffer {
        Buffer { bytes: Vec::new(), head: 0, limit }
    }

    /// Bytes in the queue.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes it would take.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.len())
    }

    /// What is in it.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// What is in it, to be changed in place.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.head..]
    }

    /// Takes the beginning of `data`, as much as there is room for; how many bytes that is.
    pub fn push(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.room());
        self.compact();
        self.bytes.extend_from_slice(&data[..taken]);
        taken
    }

    /// Takes all of `data`, beyond the limit if need be: for what has a bound of its own.
    pub fn push_all(&mut self, data: &[u8]) {
        self.compact();
        self.bytes.extend_from_slice(data);
    }

    /// Lets `write` fill up to `room` bytes at the end; it says how many it wrote, or fails and leaves the queue
    /// as it is.
    pub fn append_with<E>(
        &mut self,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.compact();
        let before = self.bytes.len();
        self.bytes.resize(before + room, 0);
        let written = write(&mut self.bytes[before..]);
        self.bytes.truncate(before + written.as_ref().map_or(0, |written| (*written).min(room)));
        written
    }

    /// Forgets the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        self.head = self.head.saturating_add(count).min(self.bytes.len());
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.head = 0;
        }
    }

    /// Moves the beginning into `target`; how many bytes that is.
    pub fn take(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.len());
        target[..count].copy_from_slice(&self.filled()[..count]);
        self.consume(count);
        count
    }

    /// Gives the memory back that it does not use.
    pub fn trim(&mut self) {
        self.compact();
        self.bytes.shrink_to_fit();
    }

    /// Memory it holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Moves what is left to the front, where that costs less than what was read since.
    fn compact(&mut self) {
        if self.head > 0 && self.head >= self.len() {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }
}
