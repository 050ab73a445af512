//! Records of one connection: a key for each direction and epoch, counters that only grow, and how a connection that broke begins
//! again under new keys.
//!
//! A receiver takes the record with the next counter of the current epoch and nothing else, so whatever is lost, repeated, held
//! back, changed or from another time is refused and changes nothing. What was lost with a connection is sent again in a new
//! epoch, which the source proposes (`Resume`) and the destination answers. Either end only ever raises its epoch, and a key belongs to one epoch: no
//! counter comes twice with one key, whatever a relay does.

use crate::crypto::{Key, Root};
use crate::wire::{
    Connection, End, FrameError, HEADER_BYTES, Header, Kind, MigrationId, TAG_BYTES, WORD_BYTES,
};

/// What begins the authenticated data of every record.
const RECORD_LABEL: &[u8; 24] = b"nacre migration 3 record";
/// What begins the derivation of every record's key.
pub(crate) const KEY_LABEL: &[u8] = b"nacre migration 3 key";
/// Records of one direction and epoch: their counters are below this.
pub const MAX_RECORDS: u64 = 1 << 32;
/// Bytes of a [`Kind::Resume`] frame.
pub const RESUME_FRAME_BYTES: usize = HEADER_BYTES + TAG_BYTES;

/// Why a record is refused. Nothing changed: the record that is due can still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It belongs to another migration.
    #[error("the frame is of migration {found:?}")]
    OtherMigration {
        /// Which.
        found: MigrationId,
    },
    /// It belongs to another connection, or was sent by this end.
    #[error("the frame is of another connection or direction")]
    OtherConnection,
    /// It belongs to another epoch of its connection.
    #[error("the frame is of epoch {found} of its connection, which is in epoch {current}")]
    OtherEpoch {
        /// Its epoch.
        found: u32,
        /// That of the connection.
        current: u32,
    },
    /// A record with this number was accepted before.
    #[error("record {found} was received before")]
    Replayed {
        /// Its number.
        found: u64,
    },
    /// Records before it are missing.
    #[error("record {found} came in place of {next}; resume the connection")]
    OutOfOrder {
        /// Its number.
        found: u64,
        /// The number that is due.
        next: u64,
    },
    /// Nobody with the key has made it.
    #[error("the record is not authentic")]
    Forged,
    /// There is no key for this connection: not yet, or not any more.
    #[error("the connection is not open")]
    Closed,
    /// The other end has not agreed to the new epoch yet.
    #[error("the connection's new epoch is not agreed yet")]
    NotAgreed,
    /// All numbers of the epoch, or all epochs, are used up.
    #[error("the connection's numbers are used up; resume it")]
    Exhausted,
    /// The buffer is not as long as the frame.
    #[error("the buffer is shorter than the frame")]
    Buffer,
}

impl RecordError {
    /// Whether nothing that is due can come on this connection any more: something was lost on the way or changed. A record of another epoch
    /// is none of that: the ends go to the next one at different times.
    pub fn is_for_good(self) -> bool {
        match self {
            RecordError::Frame(_)
            | RecordError::OtherMigration { .. }
            | RecordError::OtherConnection
            | RecordError::OutOfOrder { .. }
            | RecordError::Forged
            | RecordError::Exhausted => true,
            RecordError::OtherEpoch { .. }
            | RecordError::Replayed { .. }
            | RecordError::Closed
            | RecordError::NotAgreed
            | RecordError::Buffer => false,
        }
    }
}

/// One connection's keys and counters, at one end.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Link<K> {
    id: MigrationId,
    own: End,
    connection: Connection,
    epoch: u32,
    /// Whether the other end is known to be in this epoch.
    agreed: bool,
    sender: K,
    sent: u64,
    receiver: K,
    received: u64,
}

impl<K: Key> Link<K> {
    /// A connection in its first epoch, which the handshake agreed.
    pub(crate) fn new<R: Root<Key = K>>(
        root: &R,
        id: MigrationId,
        own: End,
        connection: Connection,
    ) -> Link<K> {
        Link::at(root, id, own, connection, 0)
    }

    fn at<R: Root<Key = K>>(
        root: &R,
        id: MigrationId,
        own: End,
        connection: Connection,
        epoch: u32,
    ) -> Link<K> {
        let key =
            |from: End| root.key(&[KEY_LABEL, &[from as u8, connection.number()], &epoch.to_le_bytes()]);
        Link {
            id,
            own,
            connection,
            epoch,
            agreed: true,
            sender: key(own),
            sent: 0,
            receiver: key(own.other()),
            received: 0,
        }
    }

    /// Which connection.
    pub fn connection(&self) -> Connection {
        self.connection
    }

    /// How often it began again.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether a record can be sealed now.
    pub(crate) fn ready(&self) -> Result<(), RecordError> {
        match (self.agreed, self.sent < MAX_RECORDS) {
            (false, _) => Err(RecordError::NotAgreed),
            (true, false) => Err(RecordError::Exhausted),
            (true, true) => Ok(()),
        }
    }

    /// Seals the body that is at `frame[HEADER_BYTES..]`, of so many bytes, in place, and puts header and tag around it. Returns the
    /// frame's length.
    pub(crate) fn seal(&mut self, kind: Kind, frame: &mut [u8], plain: usize) -> Result<usize, RecordError> {
        self.ready()?;
        self.seal_always(kind, frame, plain)
    }

    fn seal_always(&mut self, kind: Kind, frame: &mut [u8], plain: usize) -> Result<usize, RecordError> {
        if self.sent >= MAX_RECORDS {
            return Err(RecordError::Exhausted);
        }
        let length = HEADER_BYTES + plain + TAG_BYTES;
        let frame = frame.get_mut(..length).ok_or(RecordError::Buffer)?;
        let header = Header {
            kind,
            connection: self.connection,
            from: self.own,
            body_bytes: plain + TAG_BYTES,
            epoch: self.epoch,
            counter: self.sent,
            id: self.id,
        }
        .encode();
        // What this end seals, the other one can read.
        Header::decode(&header)?;
        frame[..HEADER_BYTES].copy_from_slice(&header);
        let (text, tag) = frame[HEADER_BYTES..].split_at_mut(plain);
        // The number is used up before anything is made with it.
        self.sent += 1;
        tag.copy_from_slice(&self.sender.seal(self.sent - 1, &aad(&header, &[0; WORD_BYTES]), text));
        Ok(length)
    }

    /// Opens a record of this connection in place.
    ///
    /// # Errors
    /// Whatever is wrong with it; nothing changes but, if it is `Forged`, the bytes of `frame`.
    pub(crate) fn open<'f>(&mut self, frame: &'f mut [u8]) -> Result<(Kind, &'f mut [u8]), RecordError> {
        let (header, _) = Header::split(frame)?;
        if header.id != self.id {
            return Err(RecordError::OtherMigration { found: header.id });
        }
        if header.connection != self.connection || header.from != self.own.other() {
            return Err(RecordError::OtherConnection);
        }
        if header.epoch != self.epoch {
            return Err(RecordError::OtherEpoch { found: header.epoch, current: self.epoch });
        }
        let next = self.received;
        match header.counter {
            found if found < next => return Err(RecordError::Replayed { found }),
            found if found > next => return Err(RecordError::OutOfOrder { found, next }),
            _ => {}
        }
        let (head, body) = frame.split_at_mut(HEADER_BYTES);
        let head: &[u8; HEADER_BYTES] = (&*head).try_into().map_err(|_| FrameError::Truncated)?;
        let (text, tag) = body.split_last_chunk_mut::<TAG_BYTES>().ok_or(FrameError::Truncated)?;
        if !self.receiver.open(next, &aad(head, &[0; WORD_BYTES]), text, tag) {
            return Err(RecordError::Forged);
        }
        self.received += 1;
        Ok((header.kind, text))
    }

    /// Source: goes to the next epoch and proposes it. Nothing can be sealed until the destination has answered.
    pub(crate) fn propose<R: Root<Key = K>>(
        &mut self,
        root: &R,
    ) -> Result<[u8; RESUME_FRAME_BYTES], RecordError> {
        let epoch = self.epoch.checked_add(1).ok_or(RecordError::Exhausted)?;
        *self = Link::at(root, self.id, self.own, self.connection, epoch);
        self.agreed = false;
        self.resume_frame()
    }

    /// Destination: a proposal came. If it is authentic and newer than this epoch, goes there and answers.
    pub(crate) fn follow<R: Root<Key = K>>(
        &mut self,
        root: &R,
        frame: &mut [u8],
    ) -> Result<[u8; RESUME_FRAME_BYTES], RecordError> {
        let (header, _) = Header::split(frame)?;
        if header.epoch <= self.epoch {
            return Err(RecordError::OtherEpoch { found: header.epoch, current: self.epoch });
        }
        let mut candidate = Link::at(root, self.id, self.own, self.connection, header.epoch);
        candidate.open(frame)?;
        *self = candidate;
        self.resume_frame()
    }

    /// Source: the destination's answer to a proposal.
    pub(crate) fn agreed(&mut self, frame: &mut [u8]) -> Result<(), RecordError> {
        self.open(frame)?;
        self.agreed = true;
        Ok(())
    }

    fn resume_frame(&mut self) -> Result<[u8; RESUME_FRAME_BYTES], RecordError> {
        let mut frame = [0; RESUME_FRAME_BYTES];
        self.seal_always(Kind::Resume, &mut frame, 0)?;
        Ok(frame)
    }

    #[cfg(test)]
    pub(crate) fn set_sent(&mut self, sent: u64) {
        self.sent = sent;
    }
}

/// What is authenticated beside a text: a label, the whole header, and for a Commit the hash of the final manifest.
pub(crate) fn aad(
    header: &[u8; HEADER_BYTES],
    bound: &[u8; WORD_BYTES],
) -> [u8; RECORD_LABEL.len() + HEADER_BYTES + WORD_BYTES] {
    let mut bytes = [0; RECORD_LABEL.len() + HEADER_BYTES + WORD_BYTES];
    let (label, rest) = bytes.split_at_mut(RECORD_LABEL.len());
    let (head, last) = rest.split_at_mut(HEADER_BYTES);
    label.copy_from_slice(RECORD_LABEL);
    head.copy_from_slice(header);
    last.copy_from_slice(bound);
    bytes
}
