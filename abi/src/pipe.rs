//! A pipe: a stream of bytes through the shared window, between one writer and one reader that do not trust each other. The frames
//! of a migration travel through pipes; the host only moves their bytes on.
//!
//! Indices count bytes since the pipe was last [reset](PipeWriter::reset) and never wrap in practice. Each party keeps its own privately, publishes a
//! copy, and checks what it reads of the other's against its own, as on a [`ring`](crate::ring). The guest writes and reads whole words: whoever
//! writes pads what it has to a multiple of eight bytes. The host may move its indices by single bytes.
//!
//! Ordering: the writer writes the data, then publishes its index with Release; the reader loads it with Acquire. The same holds
//! backwards for room. Who is about to sleep says so in its word, fences, and looks once more; the other side publishes, fences,
//! and looks at that word.

use crate::PAGE_BYTES;
use crate::sync::{AtomicU64, Ordering, load_words, store_words};

/// Bytes of a pipe's words, before its data.
pub const PIPE_HEADER_BYTES: u64 = PAGE_BYTES;

/// The words of a pipe, on cache lines of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipeWord {
    /// The reader's index.
    Read = 0,
    /// The writer's index.
    Written = 16,
    /// Reader: 1 while it sleeps until something is written.
    ReaderWaits = 32,
    /// Writer: 1 while it sleeps until there is room.
    WriterWaits = 48,
}

/// The memory of one pipe.
#[derive(Clone, Copy)]
pub struct Pipe<'a> {
    words: &'a [AtomicU64],
    data: &'a [AtomicU64],
}

/// The other side's index went backwards or promises more than the capacity: the pipe is of no use until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenPipe;

impl<'a> Pipe<'a> {
    /// A pipe over `words` (a page) and `data`, a power of two of words.
    ///
    /// # Panics
    /// If the slices are not as said: their sizes are constants of the layout, never the peer's choice.
    pub fn new(words: &'a [AtomicU64], data: &'a [AtomicU64]) -> Pipe<'a> {
        assert!(words.len() as u64 * 8 == PIPE_HEADER_BYTES && data.len().is_power_of_two());
        Pipe { words, data }
    }

    /// Bytes that can be on their way.
    pub fn capacity(&self) -> u64 {
        self.data.len() as u64 * 8
    }

    /// Reads a word once.
    pub fn get(&self, word: PipeWord) -> u64 {
        self.words[word as usize].load(Ordering::SeqCst)
    }

    /// Writes a word.
    pub fn set(&self, word: PipeWord, value: u64) {
        self.words[word as usize].store(value, Ordering::SeqCst);
    }

    /// Writes a word and returns what was there.
    pub fn swap(&self, word: PipeWord, value: u64) -> u64 {
        self.words[word as usize].swap(value, Ordering::SeqCst)
    }

    /// Makes the pipe empty, while neither side uses it.
    pub fn clear(&self) {
        for word in [PipeWord::Written, PipeWord::Read, PipeWord::ReaderWaits, PipeWord::WriterWaits] {
            self.set(word, 0);
        }
    }

    /// Bytes between the writer's index and a reader's own.
    ///
    /// # Errors
    /// [`BrokenPipe`].
    pub fn filled(&self, read: u64) -> Result<u64, BrokenPipe> {
        let written = self.words[PipeWord::Written as usize].load(Ordering::Acquire);
        written.checked_sub(read).filter(|bytes| *bytes <= self.capacity()).ok_or(BrokenPipe)
    }

    /// Bytes of room in front of a writer's own index.
    ///
    /// # Errors
    /// [`BrokenPipe`].
    pub fn room(&self, written: u64) -> Result<u64, BrokenPipe> {
        let read = self.words[PipeWord::Read as usize].load(Ordering::Acquire);
        let filled = written.checked_sub(read).filter(|bytes| *bytes <= self.capacity()).ok_or(BrokenPipe)?;
        Ok(self.capacity() - filled)
    }

    /// Where `bytes` bytes from index `at` on lie in the data: one or two ranges of bytes.
    pub fn ranges(&self, at: u64, bytes: u64) -> [core::ops::Range<usize>; 2] {
        let start = (at % self.capacity()) as usize;
        let bytes = bytes.min(self.capacity()) as usize;
        let first = bytes.min(self.data.len() * 8 - start);
        [start..start + first, 0..bytes - first]
    }

    /// The data's words, for who moves them by other means.
    pub fn data(&self) -> &'a [AtomicU64] {
        self.data
    }

    fn pieces(&self, at: u64, words: usize) -> [&'a [AtomicU64]; 2] {
        let start = (at / 8) as usize & (self.data.len() - 1);
        let first = words.min(self.data.len() - start);
        [&self.data[start..start + first], &self.data[..words - first]]
    }
}

/// The guest's end that writes.
pub struct PipeWriter<'a> {
    pipe: Pipe<'a>,
    written: u64,
}

impl<'a> PipeWriter<'a> {
    /// The writer of a pipe that nobody has used yet.
    pub const fn new(pipe: Pipe<'a>) -> PipeWriter<'a> {
        PipeWriter { pipe, written: 0 }
    }

    /// The pipe.
    pub fn pipe(&self) -> &Pipe<'a> {
        &self.pipe
    }

    /// Begins again, for another connection. The host does nothing with the pipe meanwhile.
    pub fn reset(&mut self) {
        self.written = 0;
        self.pipe.clear();
    }

    /// Writes as much of `bytes`, a multiple of eight, as there is room for; returns how much, a multiple of eight.
    ///
    /// # Errors
    /// [`BrokenPipe`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, BrokenPipe> {
        let room = self.pipe.room(self.written)? / 8;
        let words = (bytes.len() / 8).min(usize::try_from(room).unwrap_or(usize::MAX));
        let [first, second] = self.pipe.pieces(self.written, words);
        store_words(first, bytes);
        store_words(second, &bytes[first.len() * 8..]);
        self.written += words as u64 * 8;
        self.pipe.words[PipeWord::Written as usize].store(self.written, Ordering::Release);
        Ok(words * 8)
    }

    /// Bytes of room.
    ///
    /// # Errors
    /// [`BrokenPipe`].
    pub fn room(&self) -> Result<u64, BrokenPipe> {
        self.pipe.room(self.written)
    }
}

/// The guest's end that reads.
pub struct PipeReader<'a> {
    pipe: Pipe<'a>,
    read: u64,
}

impl<'a> PipeReader<'a> {
    /// The reader of a pipe that nobody has used yet.
    pub const fn new(pipe: Pipe<'a>) -> PipeReader<'a> {
        PipeReader { pipe, read: 0 }
    }

    /// The pipe.
    pub fn pipe(&self) -> &Pipe<'a> {
        &self.pipe
    }

    /// Begins again, for another connection. The host does nothing with the pipe meanwhile.
    pub fn reset(&mut self) {
        self.read = 0;
        self.pipe.clear();
    }

    /// Whole words that are there, in bytes.
    ///
    /// # Errors
    /// [`BrokenPipe`].
    pub fn available(&self) -> Result<u64, BrokenPipe> {
        Ok(self.pipe.filled(self.read)? & !7)
    }

    /// Copies what is there to the front of `buffer`, a multiple of eight bytes, and gives its room free; returns how much, a
    /// multiple of eight.
    ///
    /// # Errors
    /// [`BrokenPipe`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BrokenPipe> {
        let available = usize::try_from(self.available()? / 8).unwrap_or(usize::MAX);
        let words = (buffer.len() / 8).min(available);
        let [first, second] = self.pipe.pieces(self.read, words);
        load_words(buffer, first);
        load_words(&mut buffer[first.len() * 8..], second);
        self.read += words as u64 * 8;
        self.pipe.words[PipeWord::Read as usize].store(self.read, Ordering::Release);
        Ok(words * 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(data_words: usize) -> (Vec<AtomicU64>, Vec<AtomicU64>) {
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        (words(PAGE_BYTES as usize / 8), words(data_words))
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let (words, data) = memory(16);
        let pipe = Pipe::new(&words, &data);
        let (mut writer, mut reader) = (PipeWriter::new(pipe), PipeReader::new(pipe));
        let sent: Vec<u8> = (0..4096u32).map(|number| (number * 7) as u8).collect();
        let (mut at, mut got) = (0, Vec::new());
        let mut step = 8;
        while got.len() < sent.len() {
            at += writer.write(&sent[at..(at + step).min(sent.len())]).unwrap();
            let mut buffer = [0; 40];
            let count = reader.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            step = step % 120 + 8;
        }
        assert_eq!(got, sent);
        assert_eq!((writer.room(), reader.available()), (Ok(128), Ok(0)));
    }

    #[test]
    fn indices_that_lie_break_the_pipe_until_it_is_reset() {
        let (words, data) = memory(16);
        let pipe = Pipe::new(&words, &data);
        let (mut writer, mut reader) = (PipeWriter::new(pipe), PipeReader::new(pipe));
        for lie in [129, u64::MAX] {
            pipe.set(PipeWord::Written, lie);
            assert_eq!(reader.read(&mut [0; 8]), Err(BrokenPipe), "{lie}");
        }
        writer.reset();
        assert_eq!(writer.write(&[1; 16]), Ok(16));
        for lie in [17, u64::MAX] {
            pipe.set(PipeWord::Read, lie);
            assert_eq!(writer.write(&[1; 8]), Err(BrokenPipe), "{lie}");
        }
        reader.reset();
        writer.reset();
        assert_eq!((writer.write(&[2; 200]), reader.available()), (Ok(128), Ok(128)));
    }

    #[test]
    fn a_host_that_moves_single_bytes_shows_whole_words_only() {
        let (words, data) = memory(16);
        let pipe = Pipe::new(&words, &data);
        let mut reader = PipeReader::new(pipe);
        pipe.set(PipeWord::Written, 13);
        assert_eq!((reader.available(), reader.read(&mut [0; 64])), (Ok(8), Ok(8)));
        pipe.set(PipeWord::Written, 16);
        assert_eq!(reader.read(&mut [0; 64]), Ok(8));
        assert_eq!(pipe.ranges(120, 24), [120..128, 0..16]);
        assert_eq!(pipe.ranges(0, 24), [0..24, 0..0]);
    }
}
