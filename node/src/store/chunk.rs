//! One value of the table of activations: several activations of one tenant, in the order of their ids. A transaction of
//! thousands of calls changes a few values only.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | how many activations, little-endian |
//! | 20 each | an id; where its record ends, counted from the first record, little-endian |
//! | the rest | the records: JSON |

use super::StoreError;
use crate::names::ActivationId;
use crate::records::Activation;

/// Most activations in one chunk.
pub(super) const MAX_RECORDS: usize = 128;
/// A chunk with so many bytes gets no more.
const FULL_BYTES: usize = 64 << 10;
/// The activations of a chunk began within this time, in milliseconds: whoever looks for one need not look far.
pub(super) const SPAN_MS: u64 = 100;

const COUNT_BYTES: usize = 4;
const ID_BYTES: usize = 16;
const ENTRY_BYTES: usize = ID_BYTES + 4;

/// A chunk that is being made.
#[derive(Default)]
pub(super) struct Draft {
    ids: Vec<(ActivationId, u32)>,
    records: Vec<u8>,
}

impl Draft {
    /// Whether a later id belongs to another chunk.
    pub(super) fn is_full_for(&self, id: ActivationId) -> bool {
        let far = |(first, _): &(ActivationId, u32)| id.ms().saturating_sub(first.ms()) > SPAN_MS;
        self.ids.len() >= MAX_RECORDS || self.records.len() >= FULL_BYTES || self.ids.first().is_some_and(far)
    }

    /// Adds an activation whose id is higher than all before. Returns the bytes of its record.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if it is longer than a chunk can be, which none is.
    pub(super) fn add(&mut self, activation: &Activation) -> Result<u64, StoreError> {
        let before = self.records.len();
        serde_json::to_writer(&mut self.records, activation)?;
        self.end(activation.id)?;
        Ok((self.records.len() - before) as u64)
    }

    /// The same of a record that is there already.
    pub(super) fn add_record(&mut self, id: ActivationId, record: &[u8]) -> Result<(), StoreError> {
        self.records.extend_from_slice(record);
        self.end(id)
    }

    fn end(&mut self, id: ActivationId) -> Result<(), StoreError> {
        let end = u32::try_from(self.records.len());
        self.ids.push((id, end.map_err(|_| StoreError::Unreadable("an activation of gigabytes".into()))?));
        Ok(())
    }

    /// The highest id, which names the chunk, and its bytes; `None` if it has none. The draft is empty afterwards.
    pub(super) fn take(&mut self) -> Option<(ActivationId, Vec<u8>)> {
        let (last, _) = *self.ids.last()?;
        let mut bytes = Vec::with_capacity(COUNT_BYTES + self.ids.len() * ENTRY_BYTES + self.records.len());
        bytes.extend_from_slice(&(self.ids.len() as u32).to_le_bytes());
        for (id, end) in self.ids.drain(..) {
            bytes.extend_from_slice(&id.bytes());
            bytes.extend_from_slice(&end.to_le_bytes());
        }
        bytes.append(&mut self.records);
        Some((last, bytes))
    }
}

/// A chunk as it is on the disk, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk<'b> {
    entries: &'b [[u8; ENTRY_BYTES]],
    records: &'b [u8],
}

impl<'b> Chunk<'b> {
    /// Reads a chunk.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if it is none.
    pub(super) fn read(bytes: &'b [u8]) -> Result<Self, StoreError> {
        Self::checked(bytes).ok_or_else(|| StoreError::Unreadable("damaged activations".into()))
    }

    fn checked(bytes: &'b [u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<COUNT_BYTES>()?;
        let length = (u32::from_le_bytes(*count) as usize).checked_mul(ENTRY_BYTES)?;
        let (entries, records) = rest.split_at_checked(length)?;
        let chunk = Self { entries: entries.as_chunks().0, records };
        let ends = (0..chunk.len()).map(|number| chunk.end(number));
        let whole = ends.clone().next_back()? == records.len() && ends.is_sorted();
        let ordered = chunk.entries.is_sorted_by(|one, next| one[..ID_BYTES] < next[..ID_BYTES]);
        (whole && ordered).then_some(chunk)
    }

    /// How many activations it has: one at least.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn id(&self, number: usize) -> ActivationId {
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&self.entries[number][..ID_BYTES]);
        ActivationId::from_bytes(id)
    }

    /// Where a record ends.
    fn end(&self, number: usize) -> usize {
        let mut end = [0; 4];
        end.copy_from_slice(&self.entries[number][ID_BYTES..]);
        u32::from_le_bytes(end) as usize
    }

    /// A record with its id, lowest first.
    pub(super) fn record(&self, number: usize) -> (ActivationId, &'b [u8]) {
        let start = number.checked_sub(1).map_or(0, |before| self.end(before));
        (self.id(number), &self.records[start..self.end(number)])
    }

    /// All records with their ids, lowest first.
    pub(super) fn records(self) -> impl Iterator<Item = (ActivationId, &'b [u8])> {
        (0..self.len()).map(move |number| self.record(number))
    }

    /// The record of an activation.
    pub(super) fn get(&self, id: ActivationId) -> Option<&'b [u8]> {
        let wanted = id.bytes();
        let number = self.entries.binary_search_by(|entry| entry[..ID_BYTES].cmp(&wanted)).ok()?;
        Some(self.record(number).1)
    }

    /// The chunk without its first `count` activations.
    ///
    /// # Errors
    /// None for a chunk that was read.
    pub(super) fn without_first(&self, count: usize) -> Result<Draft, StoreError> {
        let mut draft = Draft::default();
        self.records().skip(count).try_for_each(|(id, record)| draft.add_record(id, record))?;
        Ok(draft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(ms: impl IntoIterator<Item = u64>) -> Draft {
        let mut draft = Draft::default();
        for ms in ms {
            draft.add_record(ActivationId::at(ms), format!("{ms}").as_bytes()).unwrap();
        }
        draft
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let (last, bytes) = draft([5, 60, 700]).take().unwrap();
        let chunk = Chunk::read(&bytes).unwrap();
        let id = ActivationId::at;
        assert_eq!(last, id(700));
        let all: Vec<_> = chunk.records().collect();
        assert_eq!(all, [(id(5), &b"5"[..]), (id(60), b"60"), (id(700), b"700")]);
        assert_eq!((chunk.get(id(60)), chunk.get(id(61))), (Some(&b"60"[..]), None));
        let (last, bytes) = chunk.without_first(1).unwrap().take().unwrap();
        let rest: Vec<_> = Chunk::read(&bytes).unwrap().records().collect();
        assert_eq!((last, &rest[..]), (id(700), &all[1..]));
        assert!(chunk.without_first(3).unwrap().take().is_none());
    }

    #[test]
    fn a_chunk_is_bounded_in_number_bytes_and_time() {
        assert!(!draft([]).is_full_for(ActivationId::at(1 << 40)));
        let near = ActivationId::at(10);
        assert!(!draft(0..MAX_RECORDS as u64 - 1).is_full_for(near));
        assert!(draft(0..MAX_RECORDS as u64).is_full_for(near));
        assert!(!draft([10]).is_full_for(ActivationId::last_at(10 + SPAN_MS)));
        assert!(draft([10]).is_full_for(ActivationId::at(11 + SPAN_MS)));
        let mut large = Draft::default();
        large.add_record(near, &[b'x'; FULL_BYTES]).unwrap();
        assert!(large.is_full_for(near));
    }

    #[test]
    fn damage_is_told() {
        let (_, bytes) = draft([1, 2, 3]).take().unwrap();
        for length in 0..bytes.len() {
            assert!(Chunk::read(&bytes[..length]).is_err(), "{length}");
        }
        let changed = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            Chunk::read(&bytes).is_err()
        };
        // The number, an id that is not the next, an end before the last one, an end behind all.
        assert!(changed(0, 4) && changed(3, 255) && changed(COUNT_BYTES + ENTRY_BYTES + 5, 1));
        assert!(changed(COUNT_BYTES + ENTRY_BYTES + ID_BYTES, 0));
        assert!(changed(COUNT_BYTES + 2 * ENTRY_BYTES + ID_BYTES + 3, 1));
        assert!(Chunk::read(&[0; 4]).is_err(), "an empty one is never written");
    }
}
