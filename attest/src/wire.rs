//! The one way our own formats are written: little-endian numbers, and byte strings after their u32 length. The reader
//! takes from a slice, never past it, and every format ends with [`Reader::end`], so that a value has one encoding.

use alloc::vec::Vec;

/// What is wrong with bytes that should have been one of our formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a field.
    #[error("it is truncated")]
    Truncated,
    /// Something follows the last field.
    #[error("bytes follow its end")]
    Trailing,
    /// A field or the whole is longer than allowed.
    #[error("{0} is too long")]
    TooLong(&'static str),
    /// The first bytes are not this format's.
    #[error("it does not begin as {0} does")]
    Magic(&'static str),
    /// A field has a value that is not allowed, or not in the one way it is written.
    #[error("{0} has no valid value")]
    Value(&'static str),
}

/// Takes fields from a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins at the first byte.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Value(what)),
        }
    }

    /// A byte string after its u32 length, of at most `most` bytes.
    pub fn string(&mut self, what: &'static str, most: usize) -> Result<&'a [u8], WireError> {
        let len = self.u32()? as usize;
        if len > most { Err(WireError::TooLong(what)) } else { self.bytes(len) }
    }

    /// A byte string of UTF-8.
    pub fn text(&mut self, what: &'static str, most: usize) -> Result<&'a str, WireError> {
        core::str::from_utf8(self.string(what, most)?).map_err(|_| WireError::Value(what))
    }

    /// A u16 count of at most `most`.
    pub fn count(&mut self, what: &'static str, most: usize) -> Result<usize, WireError> {
        let count = usize::from(self.u16()?);
        if count > most { Err(WireError::TooLong(what)) } else { Ok(count) }
    }

    /// Up to `most` arrays, which must be strictly ascending: a set has one order.
    pub fn set<const N: usize>(
        &mut self,
        what: &'static str,
        most: usize,
    ) -> Result<Vec<[u8; N]>, WireError> {
        let count = self.count(what, most)?;
        let mut all: Vec<[u8; N]> = Vec::new();
        for _ in 0..count {
            let next = self.array()?;
            if all.last().is_some_and(|last| *last >= next) {
                return Err(WireError::Value(what));
            }
            all.push(next);
        }
        Ok(all)
    }

    /// That this was all.
    pub fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }
}

/// Writes what [`Reader`] reads.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins with these bytes.
    pub fn new(magic: &[u8]) -> Writer {
        Writer { bytes: magic.to_vec() }
    }

    /// Bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Writer {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(self, value: u8) -> Writer {
        self.raw(&[value])
    }

    /// Two bytes.
    pub fn u16(self, value: u16) -> Writer {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(self, value: u32) -> Writer {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(self, value: u64) -> Writer {
        self.raw(&value.to_le_bytes())
    }

    /// A byte string after its u32 length.
    ///
    /// # Panics
    /// If it has 4 GiB or more: every format has limits far below.
    pub fn string(self, bytes: &[u8]) -> Writer {
        let len = u32::try_from(bytes.len()).expect("no field comes near 4 GiB");
        self.u32(len).raw(bytes)
    }

    /// A count and arrays in ascending order, doubles left out.
    pub fn set<const N: usize>(self, all: &[[u8; N]]) -> Writer {
        let mut sorted = all.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let writer = self.u16(u16::try_from(sorted.len()).expect("sets are small"));
        sorted.iter().fold(writer, |writer, one| writer.raw(one))
    }

    /// What was written.
    pub fn done(self) -> Vec<u8> {
        self.bytes
    }
}
