//! [`TlsTable`]: the connections of a TLS service. It stands between the table of connections, which carry ciphertext, and the
//! program, which sees plaintext, and offers the same operations as the table.
//!
//! ```text
//!  host's messages -> Table --ciphertext--> TlsConnection --plaintext--> sock_recv
//!                       ^                        |
//!                       +-------ciphertext-------+------plaintext------- sock_send
//! ```
//!
//! A connection is taken from the table's backlog at once, and its handshake is driven by the program's task whenever that looks
//! for what has come. `sock_accept` sees a connection only after its handshake. One that asks for evidence waits for a report, of
//! which a service has few on the way at a time.
//!
//! The state of connections, traffic keys included, lies in the tenant heap, as the program's own memory does: it must go where the
//! program goes. The secret of the certificates does not ([`crate::sealed::tls`]).
//!
//! **Bounds.** [`MAX_HANDSHAKES`] connections in the handshake; who comes beyond that waits in the table's backlog, which refuses
//! beyond its own length. A handshake, and what is left to send after the program has closed a connection, has [`DEADLINE_NS`].
//! [`CONNECTION_BYTES`] is the most that a connection takes beside its window; all of them together take no more than
//! a quarter of the memory that was free at the start: a connection beyond that is reset.

use super::secure::{Secure, Stage};
use crate::sealed::{packages, tls::CRYPTO};
use crate::{memory, task};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use nacre_abi::socket::{BACKLOG, MAX_CONNECTIONS};
use nacre_sockets::{Link, Message, Table};
use nacre_tls::{Nonce, Read, TlsConnection, TlsError, TlsIdentity, TlsServer, TlsState};
use nacre_wasi::{Readiness, SocketError, SocketId};

/// Handshakes that go on at once.
pub const MAX_HANDSHAKES: usize = 256;

/// How long a handshake may take, and how long a closed connection may take what is left for it, in nanoseconds.
pub const DEADLINE_NS: u64 = 10_000_000_000;

/// Most bytes that a connection takes beside its window: buffers of 16 KiB for the hello, 20 KiB for ciphertext in, 16 KiB for
/// plaintext and 33 KiB for ciphertext out, all of which may have twice that reserved while they grow; and rustls' state.
pub const CONNECTION_BYTES: u64 = 192 << 10;

/// Connections take at most this part of the memory that is free at the start.
const MEMORY_SHARE: u64 = 4;

/// Reports that a service has on the way at most, beside the one for its default certificate.
const MAX_REPORTS: usize = 16;

/// After how long a default certificate is asked for again, in nanoseconds.
const RETRY_NS: u64 = 1_000_000_000;

/// Most ciphertext that is looked at at a time.
const PIECE_BYTES: usize = 16 << 10;

/// The connections of a TLS service.
pub struct TlsTable {
    table: Table,
    identity: &'static TlsIdentity,
    server: Option<TlsServer>,
    default: Default,
    slots: Vec<Option<Box<Secure>>>,
    /// Connections in `slots`, and how many there may be.
    live: usize,
    limit: usize,
    /// How many of them are in the handshake.
    handshakes: usize,
    /// How many the program has closed.
    closing: usize,
    /// Those that something came for.
    touched: Vec<u32>,
    /// Those whose handshake is over and that wait for `sock_accept`.
    ready: VecDeque<u32>,
    /// Those that have a deadline, soonest first; some have none any more.
    timed: VecDeque<(u64, u32)>,
    /// Those that need evidence that nobody was asked for yet.
    wanted: VecDeque<u32>,
    /// Evidence that is on its way.
    reports: Vec<OnTheWay>,
    piece: Vec<u8>,
}

/// The certificate for clients that name no nonce.
struct Default {
    /// What code its evidence speaks of.
    generation: u64,
    /// It is on its way.
    asked: bool,
    /// Not before that.
    retry_ns: u64,
}

struct OnTheWay {
    nonce: Nonce,
    /// Who asked.
    slots: Vec<u32>,
}

impl TlsTable {
    /// No connections; windows are made of `budget` bytes.
    pub fn new(budget: u64, identity: &'static TlsIdentity) -> TlsTable {
        let limit = memory::available_bytes() / MEMORY_SHARE / CONNECTION_BYTES;
        TlsTable {
            table: Table::new(budget),
            identity,
            server: None,
            default: Default { generation: 0, asked: false, retry_ns: 0 },
            slots: Vec::new(),
            live: 0,
            limit: limit.clamp(64, u64::from(MAX_CONNECTIONS)) as usize,
            handshakes: 0,
            closing: 0,
            touched: Vec::new(),
            ready: VecDeque::new(),
            timed: VecDeque::new(),
            wanted: VecDeque::new(),
            reports: Vec::new(),
            piece: Vec::new(),
        }
    }

    /// See [`Table::promised`].
    pub fn promised(&self) -> u64 {
        self.table.promised()
    }

    fn get(&self, slot: u32) -> Option<&Secure> {
        self.slots.get(slot as usize)?.as_deref()
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Secure> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    fn touch(&mut self, slot: u32) {
        if let Some(secure) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut)
            && !core::mem::replace(&mut secure.touched, true)
        {
            self.touched.push(slot);
        }
    }

    fn touch_all(&mut self) {
        (0..self.slots.len() as u32).for_each(|slot| self.touch(slot));
    }

    /// Takes in a message from the host. What it means for TLS, [`drive`](Self::drive) finds out.
    pub fn receive(&mut self, message: Message, link: &mut impl Link) {
        let slot = message.id.slot();
        self.table.receive(message, link);
        self.touch(slot);
    }

    /// All connections fail: messages were lost.
    pub fn break_all(&mut self, link: &mut impl Link) {
        self.table.break_all(link);
        self.touch_all();
    }

    /// Evidence with this nonce came, or there is none.
    pub fn evidence(&mut self, nonce: Nonce, evidence: Option<&[u8]>, now_ns: u64) {
        let certificate = evidence.and_then(|evidence| self.identity.certificate(evidence).ok());
        if nonce == Nonce::ZERO {
            self.default.asked = false;
            match certificate {
                Some(certificate) => {
                    self.server = Some(match &self.server {
                        Some(server) => server.with_default(certificate),
                        None => TlsServer::new(&CRYPTO, certificate),
                    });
                }
                None => {
                    self.default.generation = 0;
                    self.default.retry_ns = now_ns.saturating_add(RETRY_NS);
                }
            }
            return self.touch_all();
        }
        let Some(at) = self.reports.iter().position(|report| report.nonce == nonce) else { return };
        for slot in self.reports.swap_remove(at).slots {
            let Some(tls) = self.get_mut(slot).and_then(|secure| secure.tls.as_mut()) else { continue };
            // The place may have gone to another connection.
            if tls.needs_evidence() == Some(nonce) {
                // What goes wrong is the state of the connection.
                let _ = match &certificate {
                    Some(certificate) => tls.provide_evidence(certificate),
                    None => tls.refuse_evidence(),
                };
                self.touch(slot);
            }
        }
    }

    /// Evidence came and was lost: nobody gets any of what is on its way.
    pub fn evidence_lost(&mut self, now_ns: u64) {
        while let Some(nonce) = self.reports.last().map(|report| report.nonce) {
            self.evidence(nonce, None, now_ns);
        }
        if self.default.asked {
            self.evidence(Nonce::ZERO, None, now_ns);
        }
    }

    /// Does all that can be done with what has come and with the time that it is; returns the nonces of evidence that is to be asked
    /// for.
    pub fn drive(&mut self, now_ns: u64, link: &mut impl Link) -> Vec<Nonce> {
        self.piece.resize(PIECE_BYTES, 0);
        self.expire(now_ns, link);
        self.take_new(now_ns, link);
        while let Some(slot) = self.touched.pop() {
            if let Some(secure) = self.get_mut(slot) {
                secure.touched = false;
                let handshake = secure.stage == Stage::Handshake;
                self.pump(slot, link);
                self.settle(slot, now_ns, link);
                if handshake {
                    // A handshake takes a good part of a millisecond. Whether the task must end it finds out by itself.
                    let _ = task::safe_point();
                    self.take_new(now_ns, link);
                }
            }
        }
        self.questions(now_ns)
    }

    /// When [`drive`](Self::drive) has something to do though nothing comes.
    pub fn next_ns(&mut self) -> Option<u64> {
        // The program has made room for more by accepting.
        if self.has_room() && self.table.acceptable() > 0 {
            return Some(0);
        }
        while let Some((deadline_ns, slot)) = self.timed.front().copied() {
            if self.get(slot).is_some_and(|secure| secure.deadline_ns == deadline_ns) {
                let retry = self.server.is_none() && self.handshakes > 0 && !self.default.asked;
                return Some(if retry { deadline_ns.min(self.default.retry_ns) } else { deadline_ns });
            }
            self.timed.pop_front();
        }
        None
    }

    /// Whether connections that the program has closed have something left to send.
    pub fn lingers(&self) -> bool {
        self.closing > 0
    }

    fn expire(&mut self, now_ns: u64, link: &mut impl Link) {
        while let Some((deadline_ns, slot)) = self.timed.front().copied() {
            if deadline_ns > now_ns {
                break;
            }
            self.timed.pop_front();
            if self.get(slot).is_some_and(|secure| secure.deadline_ns == deadline_ns) {
                self.remove(slot);
                self.table.reset(SocketId(slot), link);
            }
        }
    }

    fn set_deadline(&mut self, slot: u32, now_ns: u64) {
        let deadline_ns = now_ns.saturating_add(DEADLINE_NS);
        if let Some(secure) = self.get_mut(slot) {
            secure.deadline_ns = deadline_ns;
        }
        if self.timed.len() > 2 * self.live + BACKLOG {
            let slots = &self.slots;
            self.timed.retain(|(deadline_ns, slot)| {
                let secure = slots.get(*slot as usize).and_then(Option::as_deref);
                secure.is_some_and(|secure| secure.deadline_ns == *deadline_ns)
            });
        }
        self.timed.push_back((deadline_ns, slot));
    }

    /// Whether one more handshake may begin.
    fn has_room(&self) -> bool {
        self.handshakes < MAX_HANDSHAKES && self.handshakes + self.ready.len() < BACKLOG
    }

    /// Takes connections out of the table's backlog.
    fn take_new(&mut self, now_ns: u64, link: &mut impl Link) {
        while self.has_room() {
            let Ok(SocketId(slot)) = self.table.accept(link) else { return };
            if self.live >= self.limit {
                self.table.reset(SocketId(slot), link);
                continue;
            }
            let places = (slot as usize + 1).max(self.slots.len());
            self.slots.resize_with(places, || None);
            self.slots[slot as usize] = Some(Box::new(Secure::new()));
            self.live += 1;
            self.handshakes += 1;
            self.set_deadline(slot, now_ns);
            self.touch(slot);
        }
    }

    /// Moves ciphertext both ways, as far as it goes.
    fn pump(&mut self, slot: u32, link: &mut impl Link) {
        let Some(secure) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return };
        let (table, id) = (&mut self.table, SocketId(slot));
        if secure.stage != Stage::Closing {
            secure.feed(table, id, self.server.as_ref(), &mut self.piece, link);
        } else if table.peek(id, 0, &mut []) == Err(SocketError::Reset) {
            secure.broken = true;
        }
        secure.flush(table, id, link);
    }

    /// Goes on to the stage that a connection is in now.
    fn settle(&mut self, slot: u32, now_ns: u64, link: &mut impl Link) {
        let id = SocketId(slot);
        let Some(secure) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return };
        let unsent = secure.tls.as_ref().is_some_and(|tls| !tls.ciphertext().is_empty());
        match secure.stage {
            // It ended before it began, or went wrong.
            Stage::Handshake if secure.failed() || (secure.tls.is_none() && secure.cut) => {
                self.begin_close(slot, now_ns, link);
            }
            Stage::Handshake => match secure.tls.as_ref().map(TlsConnection::state) {
                Some(TlsState::Open) => {
                    secure.stage = Stage::Ready;
                    secure.deadline_ns = u64::MAX;
                    if let Some(tls) = &mut secure.tls {
                        tls.trim();
                    }
                    self.handshakes -= 1;
                    self.ready.push_back(slot);
                }
                Some(TlsState::NeedsEvidence(_)) if !core::mem::replace(&mut secure.waits, true) => {
                    self.wanted.push_back(slot);
                }
                _ => {}
            },
            // The program learns of it; the client has the alert.
            Stage::Ready | Stage::Open if secure.failed() && !unsent && !secure.ended => {
                secure.ended = true;
                self.table.shutdown(id, true, true, link);
            }
            Stage::Ready | Stage::Open => {}
            Stage::Closing if secure.broken => {
                self.remove(slot);
                self.table.reset(id, link);
            }
            Stage::Closing if !unsent => {
                self.remove(slot);
                self.table.close(id, link);
            }
            Stage::Closing => {}
        }
    }

    /// Nobody reads or writes it any more: what is left to send goes, then it is closed.
    fn begin_close(&mut self, slot: u32, now_ns: u64, link: &mut impl Link) {
        let id = SocketId(slot);
        let Some(secure) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return };
        self.handshakes -= usize::from(secure.stage == Stage::Handshake);
        self.closing += 1;
        secure.stage = Stage::Closing;
        secure.deaf = true;
        // What comes from now on is nobody's; and a connection with nothing unread ends without a reset, which would take
        // away what the client has not read yet.
        self.table.shutdown(id, true, false, link);
        secure.flush(&mut self.table, id, link);
        self.set_deadline(slot, now_ns);
        self.settle(slot, now_ns, link);
    }

    fn remove(&mut self, slot: u32) {
        if let Some(secure) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.live -= 1;
            self.handshakes -= usize::from(secure.stage == Stage::Handshake);
            self.closing -= usize::from(secure.stage == Stage::Closing);
        }
    }

    /// What evidence is to be asked for now.
    fn questions(&mut self, now_ns: u64) -> Vec<Nonce> {
        let mut nonces = Vec::new();
        let generation = packages::generation();
        if !self.default.asked && self.default.generation != generation && now_ns >= self.default.retry_ns {
            self.default.asked = true;
            self.default.generation = generation;
            nonces.push(Nonce::ZERO);
        }
        while let Some(slot) = self.wanted.front().copied() {
            let asks = self.get(slot).and_then(|secure| secure.tls.as_ref()?.needs_evidence());
            if let Some(nonce) = asks {
                let full = self.reports.len() >= MAX_REPORTS;
                match self.reports.iter_mut().find(|report| report.nonce == nonce) {
                    Some(report) => report.slots.push(slot),
                    None if full => break,
                    None => {
                        self.reports.push(OnTheWay { nonce, slots: vec![slot] });
                        nonces.push(nonce);
                    }
                }
            }
            self.wanted.pop_front();
        }
        // While no report comes, connections come and go.
        if self.wanted.len() > 2 * MAX_HANDSHAKES {
            let slots = &self.slots;
            let waits = |slot: u32| slots.get(slot as usize)?.as_ref()?.tls.as_ref()?.needs_evidence();
            self.wanted.retain(|slot| waits(*slot).is_some());
        }
        nonces
    }

    /// See [`Table::accept`].
    pub fn accept(&mut self, link: &mut impl Link) -> Result<SocketId, SocketError> {
        loop {
            let slot = self.ready.pop_front().ok_or(SocketError::WouldBlock)?;
            let Some(secure) = self.get_mut(slot) else { continue };
            if secure.failed() {
                self.remove(slot);
                self.table.close(SocketId(slot), link);
                continue;
            }
            secure.stage = Stage::Open;
            return Ok(SocketId(slot));
        }
    }

    /// See [`Table::acceptable`].
    pub fn acceptable(&self) -> u64 {
        self.ready.len() as u64
    }

    /// See [`Table::unlisten`].
    pub fn unlisten(&mut self, link: &mut impl Link) {
        self.table.unlisten(link);
        for slot in 0..self.slots.len() as u32 {
            if self.get(slot).is_some_and(|secure| matches!(secure.stage, Stage::Handshake | Stage::Ready)) {
                self.remove(slot);
                self.table.reset(SocketId(slot), link);
            }
        }
        self.ready.clear();
    }

    /// See [`Table::recv`].
    pub fn recv(&mut self, id: SocketId, buf: &mut [u8], link: &mut impl Link) -> Result<usize, SocketError> {
        self.peek(id, 0, &mut [])?;
        let secure = self.get_mut(id.0).ok_or(SocketError::Reset)?;
        if buf.is_empty() || secure.deaf {
            return Ok(0);
        }
        let tls = secure.tls.as_mut().ok_or(SocketError::Reset)?;
        let read = tls.read_plaintext(buf);
        // What was held up by the plaintext that is read now; and so that `readable` is right.
        self.pump(id.0, link);
        match read {
            Ok(Read::Bytes(count)) => Ok(count),
            Ok(Read::End) => Ok(0),
            Ok(Read::Nothing) => Err(SocketError::WouldBlock),
            Err(_) => Err(SocketError::Reset),
        }
    }

    /// See [`Table::peek`]. No more than one record is decrypted ahead.
    pub fn peek(&self, id: SocketId, skip: u64, buf: &mut [u8]) -> Result<usize, SocketError> {
        let secure = self.get(id.0).ok_or(SocketError::Reset)?;
        match &secure.tls {
            Some(tls) if secure.held() as u64 > skip => Ok(tls.peek_plaintext(skip as usize, buf)),
            _ if secure.failed() => Err(SocketError::Reset),
            _ if secure.at_end() => Ok(0),
            _ => Err(SocketError::WouldBlock),
        }
    }

    /// See [`Table::send`].
    pub fn send(&mut self, id: SocketId, buf: &[u8], link: &mut impl Link) -> Result<usize, SocketError> {
        let secure = self.slots.get_mut(id.0 as usize).and_then(Option::as_deref_mut);
        let secure = secure.ok_or(SocketError::Reset)?;
        if secure.failed() {
            return Err(SocketError::Reset);
        }
        let mut done = 0;
        while done < buf.len() {
            if secure.closed || secure.unread {
                return if done > 0 { Ok(done) } else { Err(SocketError::Closed) };
            }
            let tls = secure.tls.as_mut().ok_or(SocketError::Reset)?;
            let taken = match tls.write_plaintext(&buf[done..]) {
                Ok(taken) => taken,
                Err(TlsError::WriteClosed) => return Err(SocketError::Closed),
                Err(_) => return Err(SocketError::Reset),
            };
            done += taken;
            let before = tls.ciphertext().len();
            secure.flush(&mut self.table, id, link);
            let after = secure.tls.as_ref().map_or(0, |tls| tls.ciphertext().len());
            if taken == 0 && after == before {
                break;
            }
        }
        if done == 0 && !buf.is_empty() { Err(SocketError::WouldBlock) } else { Ok(done) }
    }

    /// See [`Table::shutdown`].
    pub fn shutdown(&mut self, id: SocketId, read: bool, write: bool, link: &mut impl Link) {
        let Some(secure) = self.slots.get_mut(id.0 as usize).and_then(Option::as_deref_mut) else { return };
        if write && !core::mem::replace(&mut secure.closed, true) {
            if let Some(tls) = &mut secure.tls {
                // A connection that failed has nothing to say.
                let _ = tls.close();
            }
            secure.flush(&mut self.table, id, link);
        }
        if read {
            secure.deaf = true;
            self.table.shutdown(id, true, false, link);
        }
    }

    /// See [`Table::close`]. What was sent goes to the client even now.
    pub fn close(&mut self, id: SocketId, now_ns: u64, link: &mut impl Link) {
        let Some(secure) = self.get_mut(id.0) else { return };
        if secure.broken || secure.held() > 0 {
            self.remove(id.0);
            return self.table.reset(id, link);
        }
        self.shutdown(id, false, true, link);
        self.begin_close(id.0, now_ns, link);
    }

    /// The program is over: closes everything it has; see [`lingers`](Self::lingers).
    pub fn close_open(&mut self, now_ns: u64, link: &mut impl Link) {
        self.unlisten(link);
        for slot in 0..self.slots.len() as u32 {
            if self.get(slot).is_some_and(|secure| secure.stage == Stage::Open) {
                self.close(SocketId(slot), now_ns, link);
            }
        }
    }

    /// Closes what is left.
    pub fn close_all(&mut self, link: &mut impl Link) {
        self.table.close_all(link);
        self.slots.clear();
        (self.live, self.handshakes, self.closing) = (0, 0, 0);
    }

    /// See [`Table::readable`].
    pub fn readable(&self, id: SocketId) -> Option<Readiness> {
        let secure = self.get(id.0)?;
        let hangup = secure.failed() || secure.at_end();
        let bytes = secure.held() as u64;
        (hangup || bytes > 0).then_some(Readiness { bytes, hangup })
    }

    /// See [`Table::writable`].
    pub fn writable(&self, id: SocketId) -> Option<Readiness> {
        let secure = self.get(id.0)?;
        let hangup = secure.failed() || secure.unread || secure.closed;
        let tls = secure.tls.as_ref().filter(|tls| !hangup && tls.writable());
        let bytes = tls.map_or(0, |tls| tls.writable_bytes() as u64);
        (hangup || bytes > 0).then_some(Readiness { bytes, hangup })
    }
}
