//! The activation key: without it a destination has everything and can run nothing, because the roots of the tenant's tasks
//! came to it sealed under this key. The source makes it when its tasks are parked, and lets go of it in a Commit only.

use crate::crypto::{Key, Root};
use crate::link::aad;
use crate::message::FinalHash;
use crate::wire::{
    COMMIT_FRAME_BYTES, Connection, End, HEADER_BYTES, Header, Kind, MigrationId, TAG_BYTES, WORD_BYTES,
};

/// A Commit: useful to one destination, and the same bytes whenever it is sent. It may be kept by anybody.
pub type Commit = [u8; COMMIT_FRAME_BYTES];

/// The key that opens the sealed roots. Yielded once, wiped when it is dropped.
pub struct Activation<R>(R);

const ROOTS_LABEL: &[u8] = b"nacre migration 3 roots";

impl<R> Activation<R> {
    pub(crate) fn into_root(self) -> R {
        self.0
    }
}

impl<R: Root> Activation<R> {
    pub(crate) fn copy(root: &R) -> Activation<R> {
        Activation(R::from_bytes(root.expose()))
    }

    /// Opens the roots in place.
    ///
    /// # Errors
    /// If they were sealed for another activation; then what `roots` holds is undefined.
    pub fn open(&self, roots: &mut [u8], tag: &[u8; TAG_BYTES]) -> Result<(), NotSealed> {
        let opened = self.0.key(&[ROOTS_LABEL]).open(0, ROOTS_LABEL, roots, tag);
        if opened { Ok(()) } else { Err(NotSealed) }
    }
}

/// Bytes that the source did not seal with this activation key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the roots were not sealed with this activation key")]
pub struct NotSealed;

/// Seals the roots. The key is used for nothing else, and once.
pub(crate) fn seal_roots<R: Root>(activation: &R, roots: &mut [u8]) -> [u8; TAG_BYTES] {
    activation.key(&[ROOTS_LABEL]).seal(0, ROOTS_LABEL, roots)
}

fn header(id: MigrationId) -> [u8; HEADER_BYTES] {
    let body_bytes = WORD_BYTES + TAG_BYTES;
    let (connection, from) = (Connection::Control, End::Source);
    Header { kind: Kind::Commit, connection, from, body_bytes, epoch: 0, counter: 0, id }.encode()
}

/// Makes the Commit. `secret` is used for nothing else, and once.
pub(crate) fn seal_commit<R: Root>(secret: &R, id: MigrationId, hash: &FinalHash, activation: &R) -> Commit {
    let mut frame = [0; COMMIT_FRAME_BYTES];
    let header = header(id);
    let (head, body) = frame.split_at_mut(HEADER_BYTES);
    head.copy_from_slice(&header);
    let (text, tag) = body.split_at_mut(WORD_BYTES);
    text.copy_from_slice(activation.expose());
    tag.copy_from_slice(&secret.key(&[]).seal(0, &aad(&header, hash), text));
    frame
}

/// Opens a Commit in place. `None` if it is not the one for this destination and this final manifest.
pub(crate) fn open_commit<R: Root>(
    secret: &R,
    id: MigrationId,
    hash: &FinalHash,
    frame: &mut [u8],
) -> Option<Activation<R>> {
    let (head, body) = frame.split_first_chunk_mut::<HEADER_BYTES>()?;
    let (text, rest) = body.split_first_chunk_mut::<WORD_BYTES>()?;
    let tag = (&*rest).try_into().ok()?;
    let opened = *head == header(id) && secret.key(&[]).open(0, &aad(head, hash), text, tag);
    let activation = opened.then(|| Activation(R::from_bytes(text)));
    text.fill(0);
    core::hint::black_box(text);
    activation
}
