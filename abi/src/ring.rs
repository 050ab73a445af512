//! A ring of messages between one producer and one consumer that do not trust each other.
//!
//! Indices count bytes since the start and never wrap in practice (2^64); each party keeps its own index privately and
//! publishes a copy. What it reads of the other's index is checked against its own: the difference must be a multiple of
//! eight and at most the capacity. A message is a 24-byte [`Header`] and its body, padded to eight bytes; the header is
//! copied out once, decoded into a type, and every length in it is bounded by what the index already promised. The
//! body is read with copies only. The worst a lying peer can do is a wrong message or [`Corrupt`], after which the
//! ring stays unusable.
//!
//! Ordering: the producer writes words, then publishes its index with Release; the consumer reads it with Acquire. The
//! same holds backwards for the space that the consumer gives free. (Lamport's queue.)

use crate::PAGE_BYTES;
use crate::message::{HEADER_WORDS, Header};
use crate::sync::{AtomicU64, Ordering};

/// Words in an index header: the consumer's index is word 0, the producer's is on another cache line.
const CONSUMER_INDEX: usize = 0;
const PRODUCER_INDEX: usize = 16;
const _: () = assert!((PRODUCER_INDEX + 1) as u64 * 8 <= PAGE_BYTES);
const HEADER_BYTES: u64 = HEADER_WORDS as u64 * 8;

/// The memory of one ring: its indices and its data.
#[derive(Clone, Copy)]
pub struct Ring<'a> {
    indices: &'a [AtomicU64],
    data: &'a [AtomicU64],
}

/// The message does not fit now; later it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The other side broke the rules of the ring; it can't be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    /// An index is misaligned, went backwards or promises more than the capacity.
    Index,
    /// A header does not decode, or names a body longer than allowed or than was written.
    Header,
}

impl<'a> Ring<'a> {
    /// A ring over `indices` (at least 17 words) and `data` (a power of two of words).
    ///
    /// # Panics
    /// If the slices are not as said: their sizes are constants of the layout, never the peer's choice.
    pub fn new(indices: &'a [AtomicU64], data: &'a [AtomicU64]) -> Ring<'a> {
        assert!(indices.len() > PRODUCER_INDEX && data.len().is_power_of_two());
        Ring { indices, data }
    }

    fn capacity(&self) -> u64 {
        self.data.len() as u64 * 8
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        &self.data[(index / 8) as usize & (self.data.len() - 1)]
    }

    /// Longest body a message on this ring can have.
    pub fn max_body(&self) -> usize {
        (self.capacity() / 4) as usize
    }
}

/// The writing end. There must be one per ring.
pub struct Producer<'a> {
    ring: Ring<'a>,
    state: ProducerState,
}

/// A producer's own indices, for one who cannot keep a borrow of the ring between two uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerState {
    tail: u64,
    seen_head: u64,
}

impl<'a> Producer<'a> {
    /// The producer of a ring nobody has used yet.
    pub fn new(ring: Ring<'a>) -> Producer<'a> {
        Producer::resume(ring, ProducerState::default())
    }

    /// The producer that left off with `state`.
    pub fn resume(ring: Ring<'a>, state: ProducerState) -> Producer<'a> {
        Producer { ring, state }
    }

    /// Where it leaves off.
    pub fn state(&self) -> ProducerState {
        self.state
    }

    /// Longest body [`send`](Self::send) takes.
    pub fn max_body(&self) -> usize {
        self.ring.max_body()
    }

    /// Puts one message on the ring; `header.len` is set from `body`.
    ///
    /// # Errors
    /// [`Full`] if there is no room now, or if the consumer's index is a lie.
    ///
    /// # Panics
    /// If `body` is longer than [`max_body`](Self::max_body): the caller's own mistake.
    pub fn send(&mut self, header: Header, body: &[u8]) -> Result<(), Full> {
        assert!(body.len() <= self.max_body(), "message body over the ring's maximum");
        let bytes = HEADER_BYTES + (body.len() as u64).next_multiple_of(8);
        if !self.has_room(bytes) {
            return Err(Full);
        }
        let words = Header { len: body.len() as u32, ..header }.encode();
        for (at, word) in (self.state.tail..).step_by(8).zip(words) {
            self.ring.word(at).store(word, Ordering::Relaxed);
        }
        self.write_body(self.state.tail + HEADER_BYTES, body);
        self.state.tail += bytes;
        self.ring.indices[PRODUCER_INDEX].store(self.state.tail, Ordering::Release);
        Ok(())
    }

    /// Whether nothing is left to read, as far as the consumer says.
    pub fn is_drained(&mut self) -> bool {
        self.refresh_head();
        self.state.seen_head == self.state.tail
    }

    /// Shows the messages that the consumer has not taken, as far as it says and as far as they are whole. Leaves them there.
    pub fn unread(&mut self, mut see: impl FnMut(&Incoming<'_, '_>)) {
        self.refresh_head();
        let mut reader = Consumer { ring: self.ring, head: self.state.seen_head, corrupt: None };
        while reader.head < self.state.tail {
            let Ok(Some(incoming)) = reader.receive() else { break };
            see(&incoming);
            let bytes = HEADER_BYTES + u64::from(incoming.header().len).next_multiple_of(8);
            reader.head += bytes;
        }
    }

    fn has_room(&mut self, bytes: u64) -> bool {
        if self.state.tail + bytes - self.state.seen_head > self.ring.capacity() {
            self.refresh_head();
        }
        self.state.tail + bytes - self.state.seen_head <= self.ring.capacity()
    }

    fn refresh_head(&mut self) {
        let head = self.ring.indices[CONSUMER_INDEX].load(Ordering::Acquire);
        // Only forwards, never past what was written: anything else is a lie and leaves the ring full.
        if head.is_multiple_of(8) && head >= self.state.seen_head && head <= self.state.tail {
            self.state.seen_head = head;
        }
    }

    fn write_body(&self, mut at: u64, body: &[u8]) {
        let (words, rest) = body.as_chunks::<8>();
        for word in words {
            self.ring.word(at).store(u64::from_le_bytes(*word), Ordering::Relaxed);
            at += 8;
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.ring.word(at).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }
}

/// The reading end. There must be one per ring.
pub struct Consumer<'a> {
    ring: Ring<'a>,
    head: u64,
    corrupt: Option<Corrupt>,
}

/// A message whose header is decoded and whose body lies on the ring. Taking it off is [`finish`](Self::finish);
/// dropping it leaves it there.
pub struct Incoming<'r, 'a> {
    consumer: &'r mut Consumer<'a>,
    header: Header,
}

impl<'a> Consumer<'a> {
    /// The consumer of a ring nobody has used yet.
    pub fn new(ring: Ring<'a>) -> Consumer<'a> {
        Consumer { ring, head: 0, corrupt: None }
    }

    /// Whether something may be there to [`receive`](Self::receive) (also when the ring is corrupt).
    pub fn has_message(&self) -> bool {
        self.corrupt.is_none() && self.ring.indices[PRODUCER_INDEX].load(Ordering::SeqCst) != self.head
    }

    /// The next message, if there is one.
    ///
    /// # Errors
    /// [`Corrupt`] once the producer broke the rules, from then on always.
    pub fn receive(&mut self) -> Result<Option<Incoming<'_, 'a>>, Corrupt> {
        match self.next_header() {
            Ok(Some(header)) => Ok(Some(Incoming { consumer: self, header })),
            Ok(None) => Ok(None),
            Err(corrupt) => {
                self.corrupt = Some(corrupt);
                Err(corrupt)
            }
        }
    }

    fn next_header(&self) -> Result<Option<Header>, Corrupt> {
        if let Some(corrupt) = self.corrupt {
            return Err(corrupt);
        }
        let tail = self.ring.indices[PRODUCER_INDEX].load(Ordering::Acquire);
        let available = tail.wrapping_sub(self.head);
        if available == 0 {
            return Ok(None);
        }
        if !available.is_multiple_of(8) || available > self.ring.capacity() || available < HEADER_BYTES {
            return Err(Corrupt::Index);
        }
        let mut words = [0; HEADER_WORDS];
        for (at, word) in (self.head..).step_by(8).zip(&mut words) {
            *word = self.ring.word(at).load(Ordering::Relaxed);
        }
        let header = Header::decode(words).ok_or(Corrupt::Header)?;
        let body = u64::from(header.len).next_multiple_of(8);
        if header.len as usize > self.ring.max_body() || body > available - HEADER_BYTES {
            return Err(Corrupt::Header);
        }
        Ok(Some(header))
    }
}

impl Incoming<'_, '_> {
    /// The decoded header; `len` is the body's length.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Copies `into.len()` bytes of the body, from `offset` on; bytes beyond its end are left as they are. Returns how
    /// many were copied. Each byte of the window is read once per call.
    pub fn copy_body(&self, offset: usize, into: &mut [u8]) -> usize {
        let len = (self.header.len as usize).saturating_sub(offset).min(into.len());
        let start = self.consumer.head + HEADER_BYTES + offset as u64;
        let mut done = 0;
        let misaligned = offset % 8;
        if misaligned != 0 && len != 0 {
            let word = self.load(start - misaligned as u64);
            let take = (8 - misaligned).min(len);
            into[..take].copy_from_slice(&word[misaligned..misaligned + take]);
            done = take;
        }
        let (words, rest) = into[done..len].as_chunks_mut::<8>();
        let mut at = start + done as u64;
        for word in words {
            *word = self.load(at);
            at += 8;
        }
        let rest_len = rest.len();
        if rest_len != 0 {
            rest.copy_from_slice(&self.load(at)[..rest_len]);
        }
        len
    }

    /// Takes the message off the ring.
    pub fn finish(self) {
        let bytes = HEADER_BYTES + u64::from(self.header.len).next_multiple_of(8);
        self.consumer.head += bytes;
        self.consumer.ring.indices[CONSUMER_INDEX].store(self.consumer.head, Ordering::Release);
    }

    fn load(&self, at: u64) -> [u8; 8] {
        self.consumer.ring.word(at).load(Ordering::Relaxed).to_le_bytes()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::message::Kind;
    use proptest::prelude::*;

    fn memory(words: usize) -> (Vec<AtomicU64>, Vec<AtomicU64>) {
        let zeros = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        (zeros(17), zeros(words))
    }

    fn header(program: u32) -> Header {
        Header { kind: Kind::StreamData, len: 0, program, stream: 1, arg: 7 }
    }

    #[test]
    fn messages_arrive_in_order_until_full() {
        let (indices, data) = memory(64);
        let ring = Ring::new(&indices, &data);
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        for round in 0..100u32 {
            let mut sent = 0;
            while producer.send(header(sent), &[sent as u8; 13][..(sent % 14) as usize]).is_ok() {
                sent += 1;
            }
            assert!(sent > 5, "round {round}");
            for expected in 0..sent {
                let incoming = consumer.receive().unwrap().expect("sent before");
                let mut body = [0xee; 20];
                let len = incoming.copy_body(0, &mut body);
                assert_eq!((incoming.header().program, len), (expected, (expected % 14) as usize));
                assert!(body[..len].iter().all(|byte| *byte == expected as u8) && body[len] == 0xee);
                incoming.finish();
            }
            assert!(consumer.receive().unwrap().is_none());
        }
    }

    proptest! {
        /// Any content of the window yields messages within bounds or an error, never a panic, and errors stick.
        #[test]
        fn hostile_memory_never_panics(words in prop::collection::vec(any::<u64>(), 64), tail in any::<u64>(), small in 0u64..600) {
            let (indices, data) = memory(64);
            for (cell, word) in data.iter().zip(&words) {
                cell.store(*word, Ordering::Relaxed);
            }
            indices[PRODUCER_INDEX].store(if tail % 2 == 0 { tail } else { small }, Ordering::Relaxed);
            let mut consumer = Consumer::new(Ring::new(&indices, &data));
            for _ in 0..100 {
                match consumer.receive() {
                    Ok(Some(incoming)) => {
                        let mut body = [0; 600];
                        prop_assert!(incoming.copy_body(0, &mut body) <= 128);
                        incoming.finish();
                    }
                    Ok(None) => break,
                    Err(error) => {
                        prop_assert_eq!(consumer.receive().err(), Some(error));
                        break;
                    }
                }
            }
        }

        #[test]
        fn bodies_can_be_copied_in_pieces(body in prop::collection::vec(any::<u8>(), 0..120), cut in 0usize..130) {
            let (indices, data) = memory(64);
            let ring = Ring::new(&indices, &data);
            Producer::new(ring).send(header(0), &body).unwrap();
            let mut consumer = Consumer::new(ring);
            let incoming = consumer.receive().unwrap().unwrap();
            let cut = cut.min(body.len());
            let mut copy = vec![0; body.len()];
            prop_assert_eq!(incoming.copy_body(0, &mut copy[..cut]), cut);
            prop_assert_eq!(incoming.copy_body(cut, &mut copy[cut..]), body.len() - cut);
            prop_assert_eq!(copy, body);
        }

        #[test]
        fn a_lying_consumer_only_fills_the_ring(head in any::<u64>()) {
            let (indices, data) = memory(64);
            let mut producer = Producer::new(Ring::new(&indices, &data));
            indices[CONSUMER_INDEX].store(head, Ordering::Relaxed);
            let sent = (0..1000).take_while(|_| producer.send(header(0), &[1; 8]).is_ok()).count();
            prop_assert!(sent <= 32);
        }
    }

    #[test]
    fn what_is_unread_is_seen_and_stays() {
        let (indices, data) = memory(64);
        let ring = Ring::new(&indices, &data);
        let (mut producer, mut consumer) = (Producer::new(ring), Consumer::new(ring));
        let seen = |producer: &mut Producer<'_>| {
            let mut all = Vec::new();
            producer.unread(|incoming| {
                let mut body = vec![0; incoming.header().len as usize];
                incoming.copy_body(0, &mut body);
                all.push((incoming.header().program, body));
            });
            all
        };
        for round in 0..50u32 {
            (0..3).for_each(|number| producer.send(header(number), &[round as u8; 9]).unwrap());
            consumer.receive().unwrap().unwrap().finish();
            let rest = [1, 2].map(|number| (number, vec![round as u8; 9]));
            assert_eq!((seen(&mut producer), seen(&mut producer)), (rest.to_vec(), rest.to_vec()));
            for expected in 1..3 {
                let incoming = consumer.receive().unwrap().unwrap();
                assert_eq!(incoming.header().program, expected);
                incoming.finish();
            }
            assert!(seen(&mut producer).is_empty());
        }
    }

    #[test]
    fn two_threads_agree() {
        let (indices, data) = memory(512);
        let ring = Ring::new(&indices, &data);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut producer = Producer::new(ring);
                for i in 0..20_000u32 {
                    while producer.send(header(i), &i.to_le_bytes()).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut consumer = Consumer::new(ring);
            let mut expected = 0;
            while expected < 20_000 {
                let Some(incoming) = consumer.receive().unwrap() else { continue };
                let mut body = [0; 4];
                incoming.copy_body(0, &mut body);
                assert_eq!((incoming.header().program, u32::from_le_bytes(body)), (expected, expected));
                incoming.finish();
                expected += 1;
            }
        });
    }
}
