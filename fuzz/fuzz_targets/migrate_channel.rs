//! The guest's end of a migration's channel, over pipes in memory of the host's.
//!
//! Input: what the host does between two calls of the guest: sets an index or a word of data to anything, or moves bytes on as it should. Checked:
//! no panic, no read or write outside; a frame that comes out has the length that its header says and fits the buffer; what the guest
//! writes appears in its pipe as it was, as long as the host moves its index honestly.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::pipe::{Pipe, PipeReader, PipeWord, PipeWriter};
use nacre_migrate::channel::Channel;
use nacre_migrate::wire::{HEADER_BYTES, Header};
use std::sync::atomic::{AtomicU64, Ordering};

const DATA_WORDS: usize = 64;
const BUFFER_BYTES: usize = 4096;

#[derive(Debug, arbitrary::Arbitrary)]
enum Step {
    /// The host sets one of the four words of a pipe.
    Word {
        outgoing: bool,
        word: u8,
        value: u64,
    },
    /// The host writes what comes next, and says so.
    Bring(Vec<u64>),
    /// The host takes all there is.
    Take,
    Receive,
    Send(Vec<u8>),
    Flush,
    Reset,
}

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

fuzz_target!(|steps: Vec<Step>| {
    let memory = [words(512), words(DATA_WORDS), words(512), words(DATA_WORDS)];
    let to_guest = Pipe::new(&memory[0], &memory[1]);
    let to_host = Pipe::new(&memory[2], &memory[3]);
    let (mut incoming, mut outgoing) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let mut channel =
        Channel::new(PipeReader::new(to_guest), PipeWriter::new(to_host), &mut incoming, &mut outgoing);
    let (mut expected, mut taken, mut honest) = (Vec::new(), Vec::new(), true);
    for step in steps {
        match step {
            Step::Word { outgoing, word, value } => {
                let word = [PipeWord::Read, PipeWord::Written, PipeWord::ReaderWaits, PipeWord::WriterWaits]
                    [usize::from(word % 4)];
                honest &= !outgoing;
                if outgoing { to_host.set(word, value) } else { to_guest.set(word, value) }
            }
            Step::Bring(values) => {
                let mut written = to_guest.get(PipeWord::Written);
                for value in values.into_iter().take(DATA_WORDS) {
                    memory[1][(written / 8) as usize % DATA_WORDS].store(value, Ordering::Relaxed);
                    written = written.wrapping_add(8);
                }
                to_guest.set(PipeWord::Written, written);
            }
            Step::Take if honest => {
                let (read, written) = (to_host.get(PipeWord::Read), to_host.get(PipeWord::Written));
                for at in (read..written).step_by(8) {
                    let word = memory[3][(at / 8) as usize % DATA_WORDS].load(Ordering::Relaxed);
                    taken.extend(word.to_le_bytes());
                }
                to_host.set(PipeWord::Read, written);
            }
            Step::Take => {}
            Step::Receive => {
                if let Ok(Some(frame)) = channel.receive() {
                    let header = frame.first_chunk::<HEADER_BYTES>().map(Header::decode);
                    let Some(Ok(header)) = header else { panic!("a frame without a header") };
                    assert_eq!(frame.len(), HEADER_BYTES + header.body_bytes);
                }
            }
            Step::Send(bytes) => {
                if channel.push(&bytes) {
                    expected.extend(&bytes);
                    expected.resize(expected.len().next_multiple_of(8), 0);
                }
            }
            Step::Flush => {
                let pending = channel.pending();
                if let Ok(count) = channel.flush() {
                    assert_eq!(channel.pending(), pending - count);
                }
            }
            Step::Reset => {
                channel.reset();
                (expected, taken, honest) = (Vec::new(), Vec::new(), true);
            }
        }
        assert!(!honest || expected.starts_with(&taken), "what went out is not what was sent");
    }
});
