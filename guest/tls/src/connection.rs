//! One connection: ciphertext in and out on one side, plaintext on the other. Nothing here waits: every call does
//! what can be done with the bytes that are there, and the caller calls again when there are more.
//!
//! ```text
//!              feed                        provide_evidence
//!   Hello ------------> NeedsEvidence -----------------------> Handshake ------> Open
//!     |   (a nonce in the server name)                             ^              |  close_notify,
//!     +------------------------------------------------------------+              |  each way by itself
//!          (no nonce: the default certificate)                                    v
//!   any ----> Failed (an error; the alert is still in take_ciphertext)          finished()
//! ```
//!
//! Each direction ends by itself. The client's close_notify is the end of the plaintext ([`Read::End`]); we may
//! go on sending. Ciphertext that ends without one ([`TlsConnection::end_of_ciphertext`]) is an error of its own,
//! [`TlsError::Truncated`]: the node could have cut the connection where it liked.
//!
//! **Memory.** Buffers take what they need and at most: [`MAX_HELLO_BYTES`] for the first message, until it is
//! answered; [`INCOMING_BYTES`] of ciphertext; one record of plaintext (16 KiB); [`OUTGOING_BYTES`] of ciphertext
//! to send, beyond which only the handshake goes (its certificate, once) and an alert. rustls adds some KiB of
//! state and holds one record more while it works on it. [`TlsConnection::trim`] gives back what an idle
//! connection does not use.

use crate::buffer::Buffer;
use crate::config::{Probe, TlsServer};
use crate::error::TlsError;
use crate::identity::Certificate;
use crate::link::{Job, Link, RECORD_BYTES, RECORD_OVERHEAD_BYTES, Step};
use crate::name::Nonce;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

/// Most bytes of ciphertext a client may send before we answer: its hello and what frames it.
pub const MAX_HELLO_BYTES: usize = 16 << 10;

/// Ciphertext that was fed and is not yet read: more than the longest record rustls takes (18,437 bytes).
pub const INCOMING_BYTES: usize = 20 << 10;

/// Ciphertext of application data that was not taken yet: two records.
pub const OUTGOING_BYTES: usize = 2 * (RECORD_BYTES + RECORD_OVERHEAD_BYTES);

/// Where a connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsState {
    /// The client's hello is not here yet.
    Hello,
    /// The client asked for evidence with this nonce: fetch it and call [`TlsConnection::provide_evidence`].
    NeedsEvidence(Nonce),
    /// The handshake goes on.
    Handshake,
    /// Plaintext goes both ways, but for a direction that was closed.
    Open,
    /// It ended with this error. The alert may still be in [`TlsConnection::take_ciphertext`].
    Failed(TlsError),
}

/// What there was to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The client closed its side in order: all of it was read.
    End,
}

/// A connection of one client.
pub struct TlsConnection {
    server: TlsServer,
    phase: Phase,
    incoming: Buffer,
    plaintext: Buffer,
    outgoing: Buffer,
    /// The client's close_notify was read.
    peer_closed: bool,
    /// No more ciphertext will come.
    cut: bool,
    closing: Closing,
}

enum Phase {
    /// The hello is awaited; what has come of it is kept, in case it is to be read again with another certificate.
    Hello {
        link: Box<Link>,
        probe: Arc<Probe>,
        hello: Buffer,
    },
    /// As above; the probe's link is there to refuse.
    NeedsEvidence {
        link: Box<Link>,
        nonce: Nonce,
        hello: Buffer,
    },
    Running(Box<Link>),
    Failed(TlsError),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// To be said when the handshake is over.
    Wanted,
    Said,
}

impl fmt::Debug for TlsConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsConnection").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl TlsConnection {
    /// A connection that awaits its client's hello.
    ///
    /// # Errors
    ///
    /// [`TlsError::NoRandomness`], [`TlsError::Internal`].
    pub fn new(server: &TlsServer) -> Result<TlsConnection, TlsError> {
        let (link, probe) = server.probe()?;
        Ok(TlsConnection {
            server: server.clone(),
            phase: Phase::Hello {
                link: Box::new(Link::new(link)),
                probe,
                hello: Buffer::new(MAX_HELLO_BYTES),
            },
            incoming: Buffer::new(INCOMING_BYTES),
            plaintext: Buffer::new(RECORD_BYTES),
            outgoing: Buffer::new(OUTGOING_BYTES),
            peer_closed: false,
            cut: false,
            closing: Closing::No,
        })
    }

    /// Where it stands.
    pub fn state(&self) -> TlsState {
        match &self.phase {
            Phase::Hello { .. } => TlsState::Hello,
            Phase::NeedsEvidence { nonce, .. } => TlsState::NeedsEvidence(*nonce),
            Phase::Running(link) if link.handshaking() => TlsState::Handshake,
            Phase::Running(_) => TlsState::Open,
            Phase::Failed(error) => TlsState::Failed(error.clone()),
        }
    }

    /// The nonce of the evidence it waits for.
    pub fn needs_evidence(&self) -> Option<Nonce> {
        match &self.phase {
            Phase::NeedsEvidence { nonce, .. } => Some(*nonce),
            Phase::Hello { .. } | Phase::Running(_) | Phase::Failed(_) => None,
        }
    }

    /// Takes ciphertext from the client, and does what can be done with it; how many bytes it took. Fewer than
    /// there are means that plaintext is to be read first, or evidence to be provided. What comes after the
    /// client's close_notify is taken and ignored.
    ///
    /// # Errors
    ///
    /// The connection failed, now or before: take the ciphertext that is left, then drop it.
    pub fn feed(&mut self, ciphertext: &[u8]) -> Result<usize, TlsError> {
        let mut taken = 0;
        loop {
            self.drive()?;
            if self.peer_closed || self.cut {
                return Ok(ciphertext.len());
            }
            let rest = &ciphertext[taken..];
            let count = match &mut self.phase {
                Phase::Failed(error) => return Err(error.clone()),
                Phase::NeedsEvidence { .. } => 0,
                Phase::Hello { hello, .. } if !rest.is_empty() => match hello.push(rest) {
                    0 => return Err(self.fail(TlsError::HelloTooLong)),
                    count => self.incoming.push(&rest[..count]),
                },
                Phase::Hello { .. } | Phase::Running(_) => self.incoming.push(rest),
            };
            if count == 0 {
                return Ok(taken);
            }
            taken += count;
        }
    }

    /// Says that no more ciphertext will come: the client, or the node, closed the connection below. Without a
    /// close_notify before it the connection fails with [`TlsError::Truncated`], after the plaintext that had
    /// come was read.
    pub fn end_of_ciphertext(&mut self) {
        self.cut = true;
        let _ = self.drive();
    }

    /// Goes on with `certificate`, whose evidence has the nonce that was asked for.
    ///
    /// # Errors
    ///
    /// [`TlsError::NotWaiting`] leaves the connection as it is; others as [`TlsConnection::feed`].
    pub fn provide_evidence(&mut self, certificate: &Certificate) -> Result<(), TlsError> {
        let Phase::NeedsEvidence { nonce, hello, .. } = &mut self.phase else {
            return Err(TlsError::NotWaiting);
        };
        match self.server.answer(*nonce, certificate) {
            Ok(link) => {
                self.incoming = Buffer::new(INCOMING_BYTES);
                self.incoming.push(hello.filled());
                self.phase = Phase::Running(Box::new(Link::new(link)));
                self.drive()
            }
            Err(error) => Err(self.fail(error.into())),
        }
    }

    /// There is no evidence to be had: the client gets an alert, and the connection fails with
    /// [`TlsError::NoEvidence`].
    ///
    /// # Errors
    ///
    /// [`TlsError::NotWaiting`] leaves the connection as it is.
    pub fn refuse_evidence(&mut self) -> Result<(), TlsError> {
        if self.needs_evidence().is_none() {
            return Err(TlsError::NotWaiting);
        }
        self.fail(TlsError::NoEvidence);
        Ok(())
    }

    /// Whether [`TlsConnection::read_plaintext`] has something to say: bytes, the end, or an error.
    pub fn readable(&self) -> bool {
        !self.plaintext.is_empty() || self.peer_closed || matches!(self.phase, Phase::Failed(_))
    }

    /// Bytes of plaintext that were decrypted and not read: at most one record.
    pub fn plaintext_bytes(&self) -> usize {
        self.plaintext.len()
    }

    /// Copies what [`TlsConnection::plaintext_bytes`] counts, from `skip` bytes on, and leaves it; how many bytes.
    pub fn peek_plaintext(&self, skip: usize, target: &mut [u8]) -> usize {
        let rest = self.plaintext.filled().get(skip..).unwrap_or_default();
        let count = rest.len().min(target.len());
        target[..count].copy_from_slice(&rest[..count]);
        count
    }

    /// Whether [`TlsConnection::write_plaintext`] takes something now, whatever its length.
    pub fn writable(&self) -> bool {
        self.writable_bytes() >= RECORD_BYTES
    }

    /// How many bytes [`TlsConnection::write_plaintext`] would take at most into its next record.
    pub fn writable_bytes(&self) -> usize {
        match &self.phase {
            Phase::Running(link) if !link.handshaking() && self.closing == Closing::No => {
                self.outgoing.room().saturating_sub(RECORD_OVERHEAD_BYTES).min(RECORD_BYTES)
            }
            _ => 0,
        }
    }

    /// Reads plaintext.
    ///
    /// # Errors
    ///
    /// The connection failed, and all that came before was read.
    pub fn read_plaintext(&mut self, target: &mut [u8]) -> Result<Read, TlsError> {
        let mut count = 0;
        while count < target.len() {
            if self.plaintext.is_empty() {
                match self.drive() {
                    Err(error) if count == 0 => return Err(error),
                    _ if self.plaintext.is_empty() => break,
                    _ => {}
                }
            }
            count += self.plaintext.take(&mut target[count..]);
        }
        if count > 0 {
            // So that `readable` knows of what comes next.
            let _ = self.drive();
            return Ok(Read::Bytes(count));
        }
        match self.peer_closed && self.plaintext.is_empty() {
            true => Ok(Read::End),
            false => Ok(Read::Nothing),
        }
    }

    /// Seals the beginning of `data` for the client; how many bytes it took. It takes none before the handshake
    /// is over, and none while too much ciphertext waits to be taken.
    ///
    /// # Errors
    ///
    /// [`TlsError::WriteClosed`] after [`TlsConnection::close`]; others: the connection failed.
    pub fn write_plaintext(&mut self, data: &[u8]) -> Result<usize, TlsError> {
        if let Phase::Failed(error) = &self.phase {
            return Err(error.clone());
        }
        if self.closing != Closing::No {
            return Err(TlsError::WriteClosed);
        }
        let mut taken = 0;
        while taken < data.len() {
            let count = self.writable_bytes().min(data.len() - taken);
            // A record costs the same however little is in it: rather wait for room.
            if count == 0 || (count < RECORD_BYTES.min(data.len() - taken) && !self.outgoing.is_empty()) {
                break;
            }
            self.work(Job::Write(&data[taken..taken + count]))?;
            taken += count;
        }
        Ok(taken)
    }

    /// Says that we send no more: close_notify goes out after all that was written. The client may go on sending.
    /// Does nothing a second time.
    ///
    /// # Errors
    ///
    /// The connection failed.
    pub fn close(&mut self) -> Result<(), TlsError> {
        if self.closing == Closing::No {
            self.closing = Closing::Wanted;
        }
        self.drive()?;
        self.say_close()
    }

    /// Moves ciphertext for the client into `target`; how many bytes that is.
    pub fn take_ciphertext(&mut self, target: &mut [u8]) -> usize {
        self.outgoing.take(target)
    }

    /// The ciphertext that waits for being taken: for callers that write it to its place themselves, and then
    /// call [`TlsConnection::ciphertext_sent`].
    pub fn ciphertext(&self) -> &[u8] {
        self.outgoing.filled()
    }

    /// Forgets the first `count` bytes of [`TlsConnection::ciphertext`].
    pub fn ciphertext_sent(&mut self, count: usize) {
        self.outgoing.consume(count);
    }

    /// Whether the client closed its side in order.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether nothing is left to do but to close the connection below: both sides closed, or it failed, and all
    /// ciphertext was taken.
    pub fn finished(&self) -> bool {
        let over = match self.phase {
            Phase::Failed(_) => true,
            _ => self.peer_closed && self.plaintext.is_empty() && self.closing == Closing::Said,
        };
        over && self.outgoing.is_empty()
    }

    /// Gives back memory that is not used now: for connections that are idle.
    pub fn trim(&mut self) {
        for buffer in [&mut self.incoming, &mut self.plaintext, &mut self.outgoing] {
            buffer.trim();
        }
    }

    /// Memory of its buffers in bytes, without rustls' own.
    pub fn memory_bytes(&self) -> usize {
        let hello = match &self.phase {
            Phase::Hello { hello, .. } | Phase::NeedsEvidence { hello, .. } => hello.memory_bytes(),
            Phase::Running(_) | Phase::Failed(_) => 0,
        };
        hello + self.incoming.memory_bytes() + self.plaintext.memory_bytes() + self.outgoing.memory_bytes()
    }

    /// Does all that can be done with the ciphertext that is there, up to the next plaintext.
    fn drive(&mut self) -> Result<(), TlsError> {
        if self.plaintext.is_empty() {
            self.work(Job::Read)?;
            if self.closing == Closing::Wanted {
                self.say_close()?;
            }
        }
        Ok(())
    }

    /// Sends close_notify if the handshake is over.
    fn say_close(&mut self) -> Result<(), TlsError> {
        match &self.phase {
            Phase::Running(link) if !link.handshaking() && self.closing == Closing::Wanted => {
                self.closing = Closing::Said;
                self.work(Job::Close)
            }
            _ => Ok(()),
        }
    }

    /// Steps until `job` is done or nothing more can be.
    fn work(&mut self, job: Job<'_>) -> Result<(), TlsError> {
        loop {
            let link = match &mut self.phase {
                Phase::Hello { link, .. } | Phase::Running(link) => link,
                Phase::NeedsEvidence { .. } => return Ok(()),
                Phase::Failed(error) => return Err(error.clone()),
            };
            match link.step(job, &mut self.incoming, &mut self.plaintext, &mut self.outgoing) {
                Ok(Step::More) => {}
                Ok(Step::PeerClosed) => self.peer_closed = true,
                // An empty record is nothing to read; and who writes is not stopped by what there is to read.
                Ok(Step::Plaintext) if self.plaintext.is_empty() || !matches!(job, Job::Read) => {}
                Ok(Step::Plaintext | Step::Done) => break,
                Ok(Step::Idle) => {
                    self.answered();
                    return match job {
                        Job::Read => self.idle(),
                        // Asked for only where rustls takes it.
                        Job::Write(_) | Job::Close => Err(self.fail(TlsError::Internal)),
                    };
                }
                Err(error) => return self.refused(error),
            }
        }
        self.answered();
        Ok(())
    }

    /// Once there is an answer to the hello, it need not be kept.
    fn answered(&mut self) {
        if matches!(self.phase, Phase::Hello { .. })
            && !self.outgoing.is_empty()
            && let Phase::Hello { link, .. } =
                core::mem::replace(&mut self.phase, Phase::Failed(TlsError::Internal))
        {
            self.phase = Phase::Running(link);
        }
    }

    /// rustls wants more ciphertext: it must be able to come.
    fn idle(&mut self) -> Result<(), TlsError> {
        if self.peer_closed {
            self.incoming.consume(usize::MAX);
        } else if self.cut {
            return Err(self.fail(TlsError::Truncated));
        } else if self.incoming.room() == 0 {
            return Err(self.fail(TlsError::TooLong));
        }
        Ok(())
    }

    /// rustls refused to go on: because the client asked for evidence, or for good.
    fn refused(&mut self, error: rustls::Error) -> Result<(), TlsError> {
        if let Phase::Hello { probe, .. } = &self.phase
            && let Some(nonce) = probe.asked()
            && self.outgoing.is_empty()
            && let Phase::Hello { link, hello, .. } =
                core::mem::replace(&mut self.phase, Phase::Failed(TlsError::Internal))
        {
            self.phase = Phase::NeedsEvidence { link, nonce, hello };
            return Ok(());
        }
        Err(self.fail(error.into()))
    }

    /// Ends the connection with `error`, which it returns, and puts the alert out.
    fn fail(&mut self, error: TlsError) -> TlsError {
        let phase = core::mem::replace(&mut self.phase, Phase::Failed(error.clone()));
        // After our close_notify nothing more is said, not even an alert.
        if self.closing != Closing::Said
            && let Phase::Hello { mut link, .. }
            | Phase::NeedsEvidence { mut link, .. }
            | Phase::Running(mut link) = phase
        {
            link.last_words(&mut self.incoming, &mut self.outgoing);
        }
        self.incoming = Buffer::new(0);
        error
    }
}
