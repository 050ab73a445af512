//! What both ends do alike in the handshake: the offer, the transcript, and the secrets that come of it.

use crate::crypto::{Pair, Root};
use crate::policy::Nonces;
use crate::wire::{Connection, HEADER_BYTES, MAX_LANES, OFFER_BYTES, WORD_BYTES};
use sha2::{Digest, Sha256};

const TRANSCRIPT_LABEL: &[u8] = b"nacre migration 3 transcript";
const IMAGE_LABEL: &[u8] = b"nacre migration 3 image";
const FINAL_LABEL: &[u8] = b"nacre migration 3 final";

/// Makes [`Terms::image`] of what a guest finds itself to be.
#[derive(Clone, Debug)]
pub struct ImageHash(Sha256);

impl Default for ImageHash {
    fn default() -> ImageHash {
        ImageHash(Sha256::new_with_prefix(IMAGE_LABEL))
    }
}

impl ImageHash {
    /// Adds a range of code or constants; in the order of their addresses.
    pub fn add(&mut self, address: u64, content: &[u8]) {
        self.0.update(address.to_le_bytes());
        self.0.update((content.len() as u64).to_le_bytes());
        self.0.update(content);
    }

    /// The hash.
    #[must_use]
    pub fn finish(self) -> [u8; WORD_BYTES] {
        self.0.finalize().into()
    }
}

/// What is to move: the body of an offer, apart from the nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// SHA-256 of the manifest that the source was launched with; zeros without one.
    pub manifest: [u8; WORD_BYTES],
    /// Bytes of memory that the destination needs.
    pub memory_bytes: u64,
    /// CPU features that loaded code uses, as in the header of a `.cwasm`.
    pub cpu_features: u64,
    /// How many lanes there are, 1 to [`MAX_LANES`].
    pub lanes: u8,
    /// A hash of the source's code and constants, by itself: what moves refers to them by address.
    pub image: [u8; WORD_BYTES],
}

impl Terms {
    pub(crate) fn encode(&self, nonce: &[u8; WORD_BYTES]) -> [u8; OFFER_BYTES] {
        let mut bytes = [0; OFFER_BYTES];
        bytes[..32].copy_from_slice(nonce);
        bytes[32..64].copy_from_slice(&self.manifest);
        bytes[64..72].copy_from_slice(&self.memory_bytes.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.cpu_features.to_le_bytes());
        bytes[80] = self.lanes;
        bytes[88..].copy_from_slice(&self.image);
        bytes
    }

    /// `None` if a field has no valid value.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Terms, [u8; WORD_BYTES])> {
        let (nonce, rest) = bytes.split_first_chunk::<WORD_BYTES>()?;
        let (manifest, rest) = rest.split_first_chunk::<WORD_BYTES>()?;
        let (memory, rest) = rest.split_first_chunk()?;
        let (features, rest) = rest.split_first_chunk()?;
        let (lanes, rest) = rest.split_first()?;
        let (zeros, image) = rest.split_first_chunk::<7>()?;
        let terms = Terms {
            manifest: *manifest,
            memory_bytes: u64::from_le_bytes(*memory),
            cpu_features: u64::from_le_bytes(*features),
            lanes: *lanes,
            image: image.try_into().ok()?,
        };
        let valid = terms.are_valid() && *zeros == [0; 7];
        valid.then_some((terms, *nonce))
    }

    pub(crate) fn are_valid(&self) -> bool {
        (1..=MAX_LANES).contains(&usize::from(self.lanes))
    }
}

/// What both ends know before either has proved anything: terms, nonces, and the hash of the frames so far.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Greeting {
    pub terms: Terms,
    pub nonces: Nonces,
    transcript: [u8; WORD_BYTES],
}

impl Greeting {
    pub(crate) fn new(terms: Terms, nonces: Nonces) -> Greeting {
        Greeting { terms, nonces, transcript: Sha256::digest(TRANSCRIPT_LABEL).into() }
    }

    /// A frame was sent or accepted: the hash of all frames becomes that of the hash so far and this frame.
    pub(crate) fn add(&mut self, frame: &[u8]) {
        self.transcript = Sha256::new().chain_update(self.transcript).chain_update(frame).finalize().into();
    }

    pub(crate) fn transcript(&self) -> &[u8; WORD_BYTES] {
        &self.transcript
    }
}

/// The secrets of a migration, each for one use. What both ends agreed on is wiped as soon as these are derived, so that each
/// can be wiped for itself.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Secrets<R> {
    /// The hash of the whole handshake.
    pub transcript: [u8; WORD_BYTES],
    /// For the control connection, until the end.
    pub control: Option<R>,
    /// For the rounds, until the source is gone.
    pub pages: Option<R>,
    /// For fetching, until the destination has everything.
    pub fetch: Option<R>,
    /// For Commit, until it is made or opened.
    pub commit: Option<R>,
    /// For fingerprints.
    pub table: Option<R>,
}

impl<R: Root> Secrets<R> {
    pub(crate) fn agree<P: Pair<Root = R>>(
        pair: &P,
        peer: &[u8; WORD_BYTES],
        transcript: &[u8; WORD_BYTES],
    ) -> Option<Secrets<R>> {
        let root = pair.agree(peer, transcript)?;
        let derive = |what: &[u8]| Some(root.derive(&[b"nacre migration 3 secret", what]));
        Some(Secrets {
            transcript: *transcript,
            control: derive(b"control"),
            pages: derive(b"pages"),
            fetch: derive(b"fetch"),
            commit: derive(b"commit"),
            table: derive(b"table"),
        })
    }

    /// The secret that a connection's keys come from, unless it was wiped.
    pub(crate) fn of(&self, connection: Connection) -> Option<&R> {
        match connection {
            Connection::Control => self.control.as_ref(),
            Connection::Pages(_) => self.pages.as_ref(),
            Connection::Demand | Connection::Fetch(_) => self.fetch.as_ref(),
        }
    }
}

/// The hash of the final manifest: transcript, last round, and for each lane the count of units and the fingerprint.
pub(crate) fn final_hash(
    transcript: &[u8; WORD_BYTES],
    round: crate::Round,
    lanes: impl Iterator<Item = crate::book::Summary>,
) -> [u8; WORD_BYTES] {
    let hash = Sha256::new().chain_update(FINAL_LABEL).chain_update(transcript);
    let hash = hash.chain_update(round.0.to_le_bytes());
    let add = |hash: Sha256, lane: crate::book::Summary| {
        hash.chain_update(lane.units.to_le_bytes()).chain_update(lane.fingerprint.to_le_bytes())
    };
    lanes.fold(hash, add).finalize().into()
}

/// The body of a handshake frame, after the header.
pub(crate) fn body(frame: &[u8]) -> &[u8] {
    frame.get(HEADER_BYTES..).unwrap_or(&[])
}
