//! One step of rustls' unbuffered connection over our buffers. rustls keeps no bytes between calls: it is shown
//! the ciphertext that is there, says how much of it is used up, and hands out what it wants done with one object
//! per step. This module does those things and says what happened; when to step is for [`crate::connection`].

use crate::buffer::Buffer;
use rustls::Error;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

/// Longest plaintext of a record (RFC 8446, 5.1), in bytes.
pub const RECORD_BYTES: usize = 1 << 14;

/// What a record of application data has beside its plaintext, in bytes: header, content type, tag; and what
/// rustls may put before it (an answer to a key update).
pub const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16 + 64;

/// rustls' connection and how far it has read.
pub struct Link {
    tls: UnbufferedServerConnection,
    /// How much of the ciphertext rustls may be shown again without making it read on: a beginning in which there
    /// is no whole record that it has not seen. It may refer to pieces of a message in there, so it must be shown.
    shown: usize,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something; there may be more.
    More,
    /// There is plaintext now.
    Plaintext,
    /// The client will send no more plaintext.
    PeerClosed,
    /// The job is done.
    Done,
    /// Nothing can be done before more ciphertext comes.
    Idle,
}

/// What is to be done once everything before it is.
#[derive(Clone, Copy, Debug)]
pub enum Job<'a> {
    /// Read what there is.
    Read,
    /// Seal this, at most [`RECORD_BYTES`].
    Write(&'a [u8]),
    /// Say that we send no more.
    Close,
}

impl Link {
    pub fn new(tls: UnbufferedServerConnection) -> Link {
        Link { tls, shown: 0 }
    }

    /// Whether the handshake still goes on.
    pub fn handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Takes one step. [`Job::Read`] reads on in `incoming`; the others leave alone what was not read yet.
    ///
    /// # Errors
    ///
    /// rustls' own: the connection is dead but for [`Link::last_words`].
    pub fn step(
        &mut self,
        job: Job<'_>,
        incoming: &mut Buffer,
        plaintext: &mut Buffer,
        outgoing: &mut Buffer,
    ) -> Result<Step, Error> {
        let shown = match job {
            Job::Read => incoming.len(),
            Job::Write(_) | Job::Close => self.shown.min(incoming.len()),
        };
        let UnbufferedStatus { mut discard, state } =
            self.tls.process_tls_records(&mut incoming.filled_mut()[..shown]);
        let mut seen = shown;
        let outcome = match state {
            Err(error) => Err(error),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plaintext.push_all(record.payload);
                }
                // Application data never comes in the middle of a message: rustls refers to nothing, and what
                // follows in the buffer it has not read.
                seen = discard;
                Ok(Step::Plaintext)
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let needed = match data.encode(&mut []) {
                    Err(EncodeError::InsufficientSize(size)) => size.required_size,
                    Ok(_) | Err(EncodeError::AlreadyEncoded) => 0,
                };
                outgoing
                    .append_with(needed, |space| data.encode(space))
                    .map(|_| Step::More)
                    .map_err(|_| Error::EncryptError)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Step::More)
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => match job {
                Job::Read => Ok(Step::Idle),
                Job::Write(data) => {
                    seal(outgoing, data.len(), |space| traffic.encrypt(data, space)).map(|()| Step::Done)
                }
                Job::Close => {
                    seal(outgoing, 0, |space| traffic.queue_close_notify(space)).map(|()| Step::Done)
                }
            },
            Ok(ConnectionState::PeerClosed) => Ok(Step::PeerClosed),
            Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Ok(Step::Idle),
            // Early data is switched off.
            Ok(_) => Err(Error::General("a state that cannot be".into())),
        };
        incoming.consume(discard);
        // After a step that is not the last there may be whole records that rustls has not read; it reads them in
        // the next step, and until then nobody writes.
        self.shown = seen.saturating_sub(discard);
        outcome
    }

    /// After an error: puts out the alert that tells the client, if there is one.
    pub fn last_words(&mut self, incoming: &mut Buffer, outgoing: &mut Buffer) {
        // Not a step more than there are messages: after those it would read on, which a dead connection must not.
        let mut nothing = Buffer::new(0);
        while self.tls.wants_write() {
            if !matches!(self.step(Job::Read, incoming, &mut nothing, outgoing), Ok(Step::More)) {
                break;
            }
        }
    }
}

/// Lets rustls write a record over `plaintext` bytes, and what has to go before it.
fn seal(
    outgoing: &mut Buffer,
    plaintext: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), Error> {
    match outgoing.append_with(plaintext + RECORD_OVERHEAD_BYTES, &mut write) {
        Err(EncryptError::InsufficientSize(size)) => {
            outgoing.append_with(size.required_size, &mut write).map_err(|_| Error::EncryptError)?;
            Ok(())
        }
        Err(EncryptError::EncryptExhausted) => Err(Error::EncryptError),
        Ok(_) => Ok(()),
    }
}
