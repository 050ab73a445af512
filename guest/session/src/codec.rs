//! Canonical little-endian encodings: each value has one, and a reader takes nothing else.

use alloc::vec::Vec;

/// Longest name of an action or service, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Arguments, variables or entries that a list can have.
pub const MAX_LIST: usize = 1 << 16;

/// Why a command or reply can't be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It is longer than a record can be.
    #[error("it has {bytes} bytes; at most {} can be sealed at once", crate::wire::MAX_PLAINTEXT_BYTES - 4)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A name is empty or too long.
    #[error("a name has {bytes} bytes; 1 to {MAX_NAME_BYTES} are allowed")]
    Name {
        /// How long it is.
        bytes: usize,
    },
    /// A list has too many entries.
    #[error("a list has {entries} entries; at most {MAX_LIST} are allowed")]
    List {
        /// How many it has.
        entries: usize,
    },
}

/// Why a plaintext is not what the protocol allows, though it was sealed by the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The announced length does not belong to a plaintext of this size.
    #[error("the length of the plaintext is not that of its bucket")]
    Bucket,
    /// Padding is not zero.
    #[error("the padding is not zero")]
    Padding,
    /// It ends too early.
    #[error("the plaintext ends inside of a value")]
    Short,
    /// Something follows.
    #[error("{bytes} bytes follow the last value")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A number that stands for a choice stands for none.
    #[error("{what} has no choice number {number}")]
    Choice {
        /// Whose number it is.
        what: &'static str,
        /// The number.
        number: u32,
    },
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// A name is empty or too long.
    #[error("a name has {bytes} bytes; 1 to {MAX_NAME_BYTES} are allowed")]
    Name {
        /// How long it is.
        bytes: usize,
    },
    /// A list has too many entries.
    #[error("a list has {entries} entries; at most {MAX_LIST} are allowed")]
    List {
        /// How many it has.
        entries: usize,
    },
}

/// Where encoded bytes go: a counter first, so that the buffer has its size from the start.
pub(crate) trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

pub(crate) struct Count(pub usize);

impl Sink for Count {
    fn put(&mut self, bytes: &[u8]) {
        self.0 = self.0.saturating_add(bytes.len());
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

pub(crate) fn put_u32(sink: &mut impl Sink, value: usize) {
    // What does not fit makes the whole too long, which is found before anything is written.
    sink.put(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}

pub(crate) fn put_u64(sink: &mut impl Sink, value: u64) {
    sink.put(&value.to_le_bytes());
}

pub(crate) fn put_bytes(sink: &mut impl Sink, bytes: &[u8]) {
    put_u32(sink, bytes.len());
    sink.put(bytes);
}

pub(crate) fn put_name(sink: &mut impl Sink, name: &str) -> Result<(), EncodeError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(EncodeError::Name { bytes: name.len() });
    }
    put_bytes(sink, name.as_bytes());
    Ok(())
}

pub(crate) fn put_list<S: Sink, T>(
    sink: &mut S,
    list: &[T],
    mut put: impl FnMut(&mut S, &T) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    if list.len() > MAX_LIST {
        return Err(EncodeError::List { entries: list.len() });
    }
    put_u32(sink, list.len());
    list.iter().try_for_each(|entry| put(sink, entry))
}

pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, bytes: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(*self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(*self.array()?))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let bytes = self.u32()? as usize;
        self.take(bytes)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        core::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Text)
    }

    pub(crate) fn name(&mut self) -> Result<&'a str, DecodeError> {
        let name = self.text()?;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(DecodeError::Name { bytes: name.len() });
        }
        Ok(name)
    }

    pub(crate) fn flag(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            number => Err(DecodeError::Choice { what, number: number.into() }),
        }
    }

    /// A list whose entries have at least `least` bytes each, so that a short plaintext can't ask for much memory.
    pub(crate) fn list<T>(
        &mut self,
        least: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let entries = self.u32()? as usize;
        if entries > MAX_LIST {
            return Err(DecodeError::List { entries });
        }
        if entries * least > self.0.len() {
            return Err(DecodeError::Short);
        }
        (0..entries).map(|_| read(self)).collect()
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { bytes: self.0.len() }) }
    }
}
