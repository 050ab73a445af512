//! What the host knows of one connection: bytes that came and were not read, what may be sent, who is waiting. No I/O.
//!
//! The guest is not trusted: its pieces come over several rings in any order, and whatever breaks the rules of
//! [`nacre_abi::socket`] fails the connection. What is kept is bounded by the window that it was given.

use nacre_abi::socket::{Broken, MESSAGE_COST, Receiving, Sending, WINDOW};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};

/// One connection.
pub struct Stream {
    /// Towards the guest.
    pub out: Sending,
    flow: Receiving,
    /// In order and not read.
    ready: VecDeque<u8>,
    /// Offset of the next byte from the guest.
    next: u64,
    /// Pieces that came before others, by offset.
    early: BTreeMap<u64, Vec<u8>>,
    /// Cost of `early`.
    early_cost: u64,
    /// Where the guest's half ends.
    end: Option<u64>,
    /// The guest reads no more.
    deaf: bool,
    failed: Option<ErrorKind>,
}

impl Stream {
    /// A new connection: the host may send up to `limit`.
    pub fn new(limit: u64) -> Stream {
        Stream {
            out: Sending::new(limit),
            flow: Receiving::new(WINDOW),
            ready: VecDeque::new(),
            next: 0,
            early: BTreeMap::new(),
            early_cost: 0,
            end: None,
            deaf: false,
            failed: None,
        }
    }

    /// A piece from the guest.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn push(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Broken> {
        self.flow.charge(bytes.len())?;
        let end = offset.checked_add(bytes.len() as u64).ok_or(Broken)?;
        let beyond = self.end.is_some_and(|last| end > last);
        // What could be read if all came that may.
        let far = end - self.next.min(end) > WINDOW;
        if offset < self.next || beyond || far {
            return Err(Broken);
        }
        if offset > self.next {
            return self.keep(offset, end, bytes);
        }
        self.append(bytes);
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.next {
                break;
            }
            let (at, piece) = entry.remove_entry();
            if at != self.next {
                return Err(Broken);
            }
            self.early_cost -= piece.len() as u64 + MESSAGE_COST;
            self.append(&piece);
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) {
        self.ready.extend(bytes);
        self.next += bytes.len() as u64;
    }

    fn keep(&mut self, offset: u64, end: u64, bytes: &[u8]) -> Result<(), Broken> {
        let before = self.early.range(..end).next_back();
        if before.is_some_and(|(start, piece)| start + piece.len() as u64 > offset) {
            return Err(Broken);
        }
        self.early.insert(offset, bytes.to_vec());
        self.early_cost += bytes.len() as u64 + MESSAGE_COST;
        Ok(())
    }

    /// The guest's half ends at `offset`; `deaf` if it reads no more either.
    ///
    /// # Errors
    /// [`Broken`] if that can't be.
    pub fn end_at(&mut self, offset: u64, deaf: bool) -> Result<(), Broken> {
        let last_early = self.early.iter().next_back().map_or(0, |(start, piece)| start + piece.len() as u64);
        if self.end.is_some_and(|end| end != offset) || offset < self.next.max(last_early) {
            return Err(Broken);
        }
        self.end = Some(offset);
        self.deaf |= deaf;
        Ok(())
    }

    /// The connection failed. What came in order can't be read any more, as after a TCP reset.
    pub fn fail(&mut self, how: ErrorKind) {
        self.failed.get_or_insert(how);
        self.forget_input();
    }

    /// Frees what it keeps.
    pub fn forget_input(&mut self) {
        self.ready = VecDeque::new();
        self.early = BTreeMap::new();
        self.early_cost = 0;
    }

    /// Bytes that can be read.
    pub fn readable(&self) -> usize {
        self.ready.len()
    }

    /// Whether a read would say something.
    pub fn has_news(&self) -> bool {
        !self.ready.is_empty() || self.failed.is_some() || self.end == Some(self.next)
    }

    /// The next bytes: as many as lie together. Empty at the end, `None` if there are none yet.
    ///
    /// # Errors
    /// How the connection failed.
    pub fn peek(&self) -> io::Result<Option<&[u8]>> {
        if let Some(how) = self.failed {
            return Err(how.into());
        }
        let (front, _) = self.ready.as_slices();
        Ok((!front.is_empty() || self.end == Some(self.next)).then_some(front))
    }

    /// `count` bytes were read; the limit to tell the guest now, if it is worth a message.
    pub fn consume(&mut self, count: usize) -> Option<u64> {
        self.ready.drain(..count.min(self.ready.len()));
        // A buffer that was filled once is not kept for ever by an idle connection.
        if self.ready.is_empty() && self.ready.capacity() > 64 << 10 {
            self.ready = VecDeque::new();
        }
        match self.end {
            Some(_) => None,
            None => self.flow.credit(self.ready.len() as u64 + self.early_cost, WINDOW),
        }
    }

    /// Bytes that can be written now; `None` if none can.
    ///
    /// # Errors
    /// The connection failed, the guest reads no more, or this half was ended.
    pub fn room(&self) -> io::Result<Option<usize>> {
        match self.failed {
            Some(how) => Err(how.into()),
            None if self.deaf || self.out.is_ended() => Err(ErrorKind::BrokenPipe.into()),
            None => Ok(Some(self.out.room()).filter(|room| *room > 0)),
        }
    }

    /// Whether the guest reads no more.
    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Bytes that were read, as an offset of the guest's stream.
    pub fn consumed(&self) -> u64 {
        self.next - self.ready.len() as u64
    }

    /// Bytes it keeps.
    pub fn kept(&self) -> u64 {
        self.ready.len() as u64 + self.early_cost
    }
}
