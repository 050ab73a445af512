//! The reading end of a ring whose other end lies.
//!
//! Input: a sequence of things the peer does to the shared memory (any word, any index, also between the moment a message
//! is received and the moment its body is copied) and of receptions. Checked: no panic; lengths stay within what was
//! promised; a body is exactly the bytes in the ring and nothing is written beyond it; a decoded header does not change
//! any more; an error stays; the consumer writes nothing but its own index.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::message::Header;
use nacre_abi::ring::{Consumer, Ring};
use std::sync::atomic::{AtomicU64, Ordering};

const PRODUCER_INDEX: usize = 16;
const HEADER_BYTES: u64 = 24;

#[derive(Debug, arbitrary::Arbitrary)]
enum Step {
    /// Any value in any word of the data.
    Word(u8, u64),
    /// Something like a header, where the consumer looks next or elsewhere.
    Header {
        ahead: u8,
        kind: u8,
        len: u16,
        program: u32,
    },
    /// Any producer index.
    Tail(u64),
    /// A plausible one: so many words before the consumer.
    Advance(u8),
    Receive {
        offset: u16,
        len: u16,
        meanwhile: [Option<(u8, u64)>; 3],
        finish: bool,
    },
}

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    words_log2: u8,
    steps: Vec<Step>,
}

/// The shared memory, and what its data should be: only the peer changes that.
struct Memory<'a> {
    indices: &'a [AtomicU64],
    data: &'a [AtomicU64],
    expected: Vec<u64>,
}

impl Memory<'_> {
    fn store(&mut self, at: u64, value: u64) {
        let at = at as usize % self.data.len();
        self.expected[at] = value;
        self.data[at].store(value, Ordering::Relaxed);
    }

    fn byte(&self, at: u64) -> u8 {
        self.expected[(at / 8) as usize % self.data.len()].to_le_bytes()[(at % 8) as usize]
    }
}

/// One reception by a consumer that stands at `head`; returns where it stands then, or `None` after an error.
fn receive(memory: &mut Memory<'_>, consumer: &mut Consumer<'_>, head: u64, step: &Step) -> Option<u64> {
    let Step::Receive { offset, len, meanwhile, finish } = step else { return Some(head) };
    let tail = memory.indices[PRODUCER_INDEX].load(Ordering::Relaxed);
    let max_body = memory.data.len() * 2;
    assert_eq!(consumer.has_message(), tail != head);
    let incoming = match consumer.receive() {
        Ok(Some(incoming)) => incoming,
        Ok(None) => {
            assert_eq!(tail, head, "a message was overlooked");
            return Some(head);
        }
        Err(error) => {
            assert!(!consumer.has_message());
            assert_eq!(consumer.receive().err(), Some(error), "an error must stay");
            return None;
        }
    };
    let header: Header = incoming.header();
    let padded = HEADER_BYTES + u64::from(header.len).next_multiple_of(8);
    assert!(header.len as usize <= max_body && padded <= tail - head, "a body longer than was written");
    for (at, value) in meanwhile.iter().flatten() {
        memory.store(u64::from(*at), *value);
    }
    assert_eq!(incoming.header(), header);
    let (offset, len) = (*offset as usize % (max_body + 16), *len as usize % (max_body + 16));
    let mut body = vec![0xee; len];
    let copied = incoming.copy_body(offset, &mut body);
    assert_eq!(copied, (header.len as usize).saturating_sub(offset).min(len));
    let start = head + HEADER_BYTES + offset as u64;
    assert!(
        (start..).zip(&body[..copied]).all(|(at, byte)| memory.byte(at) == *byte),
        "not the bytes of the ring"
    );
    assert!(body[copied..].iter().all(|byte| *byte == 0xee), "written beyond the body");
    if *finish {
        incoming.finish();
        return Some(head + padded);
    }
    Some(head)
}

fuzz_target!(|input: Input| {
    let words = 1 << (input.words_log2 % 7 + 2);
    let zeros = |count| -> Vec<AtomicU64> { (0..count).map(|_| AtomicU64::new(0)).collect() };
    let (indices, data) = (zeros(PRODUCER_INDEX + 1), zeros(words));
    let mut memory = Memory { indices: &indices, data: &data, expected: vec![0; words] };
    let mut consumer = Consumer::new(Ring::new(&indices, &data));
    let mut head = 0;
    for step in &input.steps {
        match step {
            Step::Word(at, value) => memory.store(u64::from(*at), *value),
            Step::Header { ahead, kind, len, program } => {
                let at = head / 8 + u64::from(ahead % 4);
                let len = u64::from(*len) % (words as u64 * 2 + 8);
                memory.store(at, u64::from(kind % 40) | len << 32);
                memory.store(at + 1, u64::from(*program));
            }
            Step::Tail(tail) => indices[PRODUCER_INDEX].store(*tail, Ordering::Relaxed),
            Step::Advance(by) => {
                let words = u64::from(*by) % (words as u64 + 2);
                indices[PRODUCER_INDEX].store(head + words * 8, Ordering::Relaxed);
            }
            Step::Receive { .. } => match receive(&mut memory, &mut consumer, head, step) {
                Some(now) => head = now,
                None => break,
            },
        }
        assert_eq!(indices[0].load(Ordering::Relaxed), head, "the published index");
    }
    assert!(
        data.iter().zip(&memory.expected).all(|(word, expected)| word.load(Ordering::Relaxed) == *expected)
    );
});
