//! The writing end of a ring whose other end lies.
//!
//! Input: a sequence of consumer indices the peer publishes, words it scribbles over, and messages to send. Checked: no
//! panic; a message that was sent lies in the ring as it should; nothing is overwritten that the peer has not released
//! by an index it really published; an honest index is always enough to go on; the producer writes nothing but its own index.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::message::{Header, Kind};
use nacre_abi::ring::{Producer, Ring};
use std::sync::atomic::{AtomicU64, Ordering};

const HEADER_BYTES: u64 = 24;
const PRODUCER_INDEX: usize = 16;

#[derive(Debug, arbitrary::Arbitrary)]
enum Step {
    /// Any consumer index.
    Head(u64),
    /// One so far before (or behind, or misaligned to) the end.
    Near(i16),
    /// The peer scribbles over the data and over the producer's published index.
    Scribble(u8, u64, bool),
    Send {
        len: u16,
        byte: u8,
        arg: u64,
    },
    Drained,
    /// The producer is made anew from its saved state, as the host does at each use.
    Resume,
}

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    words_log2: u8,
    steps: Vec<Step>,
}

fuzz_target!(|input: Input| {
    let zeros = |count| -> Vec<AtomicU64> { (0..count).map(|_| AtomicU64::new(0)).collect() };
    let words = 1_usize << (input.words_log2 % 7 + 2);
    let (indices, data) = (zeros(PRODUCER_INDEX + 1), zeros(words));
    let ring = Ring::new(&indices, &data);
    let capacity = words as u64 * 8;
    let mut producer = Producer::new(ring);
    // What was written, and the furthest index the peer published that does not claim more than that.
    let (mut tail, mut released) = (0_u64, 0_u64);
    for step in input.steps {
        let head = indices[0].load(Ordering::Relaxed);
        let honest = head % 8 == 0 && head <= tail && head >= released;
        match step {
            Step::Head(value) => indices[0].store(value, Ordering::Relaxed),
            Step::Near(by) => indices[0].store(tail.wrapping_add_signed(i64::from(by)), Ordering::Relaxed),
            Step::Scribble(at, value, index) => {
                data[at as usize % words].store(value, Ordering::Relaxed);
                if index {
                    indices[PRODUCER_INDEX].store(value, Ordering::Relaxed);
                }
            }
            Step::Drained => {
                if honest {
                    released = head;
                }
                assert_eq!(producer.is_drained(), released == tail);
            }
            Step::Resume => producer = Producer::resume(ring, producer.state()),
            Step::Send { len, byte, arg } => {
                let body = vec![byte; len as usize % (producer.max_body() + 1)];
                let bytes = HEADER_BYTES + (body.len() as u64).next_multiple_of(8);
                let room = |head: u64| tail + bytes - head <= capacity;
                let fits = room(released) || honest && room(head);
                let header = Header::new(Kind::StreamData, 7).arg(arg);
                let sent = producer.send(header, &body).is_ok();
                assert!(fits || !sent, "unread bytes were overwritten");
                assert!(sent || !fits, "an honest peer is stuck");
                if honest && !room(released) {
                    released = head;
                }
                if sent {
                    check(&data, tail, Header { len: body.len() as u32, ..header }, &body);
                    tail += bytes;
                    assert_eq!(indices[PRODUCER_INDEX].load(Ordering::Relaxed), tail);
                }
            }
        }
    }
});

/// The message lies at `at`, padded with zeros.
fn check(data: &[AtomicU64], at: u64, header: Header, body: &[u8]) {
    let word = |index: usize| data[(at as usize / 8 + index) % data.len()].load(Ordering::Relaxed);
    assert_eq!([word(0), word(1), word(2)], header.encode());
    for (index, chunk) in body.chunks(8).enumerate() {
        let mut expected = [0; 8];
        expected[..chunk.len()].copy_from_slice(chunk);
        assert_eq!(word(3 + index).to_le_bytes(), expected);
    }
}
