//! Frames in the pipes of one channel: whole ones are taken out of one pipe, and put together for the other. A channel carries the frames of
//! one connection to the other end, or of a lane's two. In a pipe a frame is followed by zeros up to a multiple of eight bytes.
//!
//! The pipes are memory of the host's. What comes out of them is copied first; a header says how long its frame is, and one that lies costs
//! that connection, which then has to begin again.

use crate::wire::{FrameError, HEADER_BYTES, Header};
use nacre_abi::pipe::{BrokenPipe, PipeReader, PipeWriter};

/// Why nothing more comes through a channel until it begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The host broke an index.
    #[error("the host broke a pipe")]
    Pipe,
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frame is longer than any that belongs here.
    #[error("a frame of {0} bytes does not belong on this channel")]
    Long(usize),
}

impl From<BrokenPipe> for ChannelError {
    fn from(_: BrokenPipe) -> ChannelError {
        ChannelError::Pipe
    }
}

/// One end of a channel, with the buffers in which frames are put together and taken apart. Private memory both: a frame must not be
/// in the host's sight before it is sealed, nor change after it was opened.
pub struct Channel<'a> {
    reader: PipeReader<'a>,
    writer: PipeWriter<'a>,
    incoming: &'a mut [u8],
    /// Bytes of the frame that is coming.
    filled: usize,
    /// Bytes of the last one that came.
    received: usize,
    outgoing: &'a mut [u8],
    /// What of it is still to be written.
    start: usize,
    end: usize,
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

impl<'a> Channel<'a> {
    /// A channel over two pipes that nobody has used yet.
    pub fn new(
        reader: PipeReader<'a>,
        writer: PipeWriter<'a>,
        incoming: &'a mut [u8],
        outgoing: &'a mut [u8],
    ) -> Channel<'a> {
        Channel { reader, writer, incoming, filled: 0, received: 0, outgoing, start: 0, end: 0 }
    }

    /// Begins again with empty pipes and buffers. The host does nothing with the pipes meanwhile.
    pub fn reset(&mut self) {
        self.reader.reset();
        self.writer.reset();
        (self.filled, self.received, self.start, self.end) = (0, 0, 0, 0);
    }

    /// Wipes what was put together and taken apart here. Nothing more is to be sent or received.
    pub fn wipe(&mut self) {
        for buffer in [&mut *self.incoming, &mut *self.outgoing] {
            buffer.fill(0);
            core::hint::black_box(buffer);
        }
        (self.filled, self.received, self.start, self.end) = (0, 0, 0, 0);
    }

    /// The pipe that is read.
    pub fn reader(&self) -> &PipeReader<'a> {
        &self.reader
    }

    /// The pipe that is written.
    pub fn writer(&self) -> &PipeWriter<'a> {
        &self.writer
    }

    /// The next frame, if it is there whole. It is to be dealt with at once: the next call overwrites it.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn receive(&mut self) -> Result<Option<&mut [u8]>, ChannelError> {
        if self.filled < HEADER_BYTES {
            self.filled += self.reader.read(&mut self.incoming[self.filled..HEADER_BYTES])?;
        }
        let Some(header) = self.incoming[..self.filled].first_chunk() else { return Ok(None) };
        let bytes = HEADER_BYTES + Header::decode(header)?.body_bytes;
        if padded(bytes) > self.incoming.len() {
            return Err(ChannelError::Long(bytes));
        }
        self.filled += self.reader.read(&mut self.incoming[self.filled..padded(bytes)])?;
        if self.filled < padded(bytes) {
            return Ok(None);
        }
        self.filled = 0;
        self.received = bytes;
        Ok(Some(&mut self.incoming[..bytes]))
    }

    /// The buffer in which frames are taken apart, for other use until the first one comes: where it is, and its length.
    pub fn idle_incoming(&mut self) -> (*mut u8, usize) {
        (self.incoming.as_mut_ptr(), self.incoming.len())
    }

    /// The last frame that [`receive`](Self::receive) returned, as it was left, until the next one begins to come.
    pub fn received(&mut self) -> &mut [u8] {
        &mut self.incoming[..self.received]
    }

    /// Room for a frame of so many bytes, to be sealed there; `None` if what waits to be written has to go first.
    pub fn room(&mut self, bytes: usize) -> Option<&mut [u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let room = &mut self.outgoing[self.end..];
        (room.len() >= padded(bytes)).then_some(room)
    }

    /// A frame of so many bytes was put at the front of [`room`](Self::room).
    pub fn put(&mut self, bytes: usize) {
        self.outgoing[self.end + bytes..self.end + padded(bytes)].fill(0);
        self.end += padded(bytes);
    }

    /// Appends a frame; false if there is no room for it now.
    #[must_use]
    pub fn push(&mut self, frame: &[u8]) -> bool {
        let Some(room) = self.room(frame.len()) else { return false };
        room[..frame.len()].copy_from_slice(frame);
        self.put(frame.len());
        true
    }

    /// Bytes that wait to be written.
    pub fn pending(&self) -> usize {
        self.end - self.start
    }

    /// Writes what waits, as far as there is room in the pipe; returns how many bytes.
    ///
    /// # Errors
    /// [`ChannelError::Pipe`].
    pub fn flush(&mut self) -> Result<usize, ChannelError> {
        if self.start == self.end {
            return Ok(0);
        }
        let written = self.writer.write(&self.outgoing[self.start..self.end])?;
        self.start += written;
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Connection, End, Kind, MigrationId};
    use core::sync::atomic::AtomicU64;
    use nacre_abi::pipe::{Pipe, PipeWord};
    use std::vec;
    use std::vec::Vec;

    struct Memory {
        words: [Vec<AtomicU64>; 4],
    }

    impl Memory {
        fn new() -> Memory {
            let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
            Memory { words: [words(512), words(64), words(512), words(64)] }
        }

        fn pipes(&self) -> [Pipe<'_>; 2] {
            [Pipe::new(&self.words[0], &self.words[1]), Pipe::new(&self.words[2], &self.words[3])]
        }
    }

    /// Runs `test` on two ends of one channel.
    fn with_ends(test: impl FnOnce(Channel<'_>, Channel<'_>, [Pipe<'_>; 2])) {
        let memory = Memory::new();
        let [there, back] = memory.pipes();
        let mut buffers: Vec<Vec<u8>> = (0..4).map(|_| vec![0; 4096]).collect();
        let [a, b, c, d] = &mut buffers[..] else { unreachable!() };
        let one = Channel::new(PipeReader::new(back), PipeWriter::new(there), a, b);
        let other = Channel::new(PipeReader::new(there), PipeWriter::new(back), c, d);
        test(one, other, [there, back]);
    }

    fn frame(bytes: usize) -> Vec<u8> {
        let header = Header {
            kind: Kind::Data,
            connection: Connection::Demand,
            from: End::Source,
            body_bytes: bytes,
            epoch: 0,
            counter: 0,
            id: MigrationId([7; 16]),
        };
        let mut frame = header.encode().to_vec();
        frame.extend((0..bytes).map(|number| number as u8));
        frame
    }

    #[test]
    fn frames_longer_than_the_pipe_come_out_whole_and_in_order() {
        let lengths: Vec<usize> = (0..40).map(|number| 41 + number * 37 % 1500).collect();
        with_ends(|mut one, mut other, _| {
            let mut received = Vec::new();
            let mut next = lengths.iter();
            let mut waiting = next.next();
            while received.len() < lengths.len() {
                if let Some(bytes) = waiting
                    && one.push(&frame(*bytes))
                {
                    waiting = next.next();
                }
                one.flush().unwrap();
                while let Some(frame) = other.receive().unwrap() {
                    received.push(frame.to_vec());
                }
            }
            let sent: Vec<_> = lengths.iter().map(|bytes| frame(*bytes)).collect();
            assert!(received == sent);
            assert_eq!((one.pending(), one.flush()), (0, Ok(0)));
        });
    }

    #[test]
    fn what_is_no_frame_is_refused_until_the_channel_begins_again() {
        with_ends(|mut one, mut other, pipes| {
            assert!(one.push(&[0xff; 40]));
            one.flush().unwrap();
            assert!(matches!(other.receive(), Err(ChannelError::Frame(_))));
            assert!(matches!(other.receive(), Err(ChannelError::Frame(_))));
            one.reset();
            other.reset();
            assert!(one.push(&frame(100)));
            one.flush().unwrap();
            assert_eq!(other.receive().unwrap().map(|frame| frame.to_vec()), Some(frame(100)));
            pipes[0].set(PipeWord::Written, 1 << 40);
            assert_eq!(other.receive(), Err(ChannelError::Pipe));
        });
    }

    #[test]
    fn a_frame_that_fits_no_buffer_is_refused() {
        with_ends(|mut one, mut other, _| {
            assert!(one.push(&frame(4090)[..40]));
            one.flush().unwrap();
            assert_eq!(other.receive(), Err(ChannelError::Long(4130)));
        });
    }
}
