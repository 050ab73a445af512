//! Units: the pieces of a tenant that move. A unit is a page or a named piece of state, in one generation.

use crate::wire::{LaneId, MAX_CONTENT_BYTES, UNIT_BYTES};
use core::fmt;

/// Bytes of a small page.
pub const SMALL_BYTES: usize = 4096;
/// Bytes of a large page.
pub const LARGE_BYTES: usize = 2 << 20;
/// Bytes of the pieces in which a large page travels the first time: what is sealed, copied and opened stays in a core's own cache.
pub const PIECE_BYTES: usize = 128 << 10;
/// Pieces of a large page.
pub const PIECES: u32 = (LARGE_BYTES / PIECE_BYTES) as u32;
/// Small pages in a large one.
pub const SMALL_PER_LARGE: u64 = (LARGE_BYTES / SMALL_BYTES) as u64;

const ADDRESS_BITS: u32 = 48;

/// The number of a round. The first is 1; a unit's generation is the round for which it was last marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Round(pub u32);

/// Which piece of the tenant. Only [`Place::small`], [`Place::large`] and [`Place::state`] make one, so it keeps the rules.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(Inner);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Inner {
    Small(u64),
    Large(u64),
    State(u16),
}

/// How large a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// As long as its content, 2 MiB at most.
    State,
}

impl Place {
    /// The small page at this guest-virtual address, which must be a multiple of its size and below 2^48.
    pub const fn small(address: u64) -> Option<Place> {
        if address.is_multiple_of(SMALL_BYTES as u64) && address >> ADDRESS_BITS == 0 {
            Some(Place(Inner::Small(address / SMALL_BYTES as u64)))
        } else {
            None
        }
    }

    /// The large page at this guest-virtual address, which must be a multiple of its size and below 2^48.
    pub const fn large(address: u64) -> Option<Place> {
        if address.is_multiple_of(LARGE_BYTES as u64) && address >> ADDRESS_BITS == 0 {
            Some(Place(Inner::Large(address / SMALL_BYTES as u64)))
        } else {
            None
        }
    }

    /// The named piece of state with this number.
    pub const fn state(number: u16) -> Place {
        Place(Inner::State(number))
    }

    /// Its address, or the number of a piece of state.
    pub const fn address(self) -> u64 {
        match self.0 {
            Inner::Small(page) | Inner::Large(page) => page * SMALL_BYTES as u64,
            Inner::State(number) => number as u64,
        }
    }

    /// How large it is.
    pub const fn extent(self) -> Extent {
        match self.0 {
            Inner::Small(_) => Extent::Small,
            Inner::Large(_) => Extent::Large,
            Inner::State(_) => Extent::State,
        }
    }

    /// Bytes of its content; for state the most it can be.
    pub const fn bytes(self) -> usize {
        match self.0 {
            Inner::Small(_) => SMALL_BYTES,
            Inner::Large(_) => LARGE_BYTES,
            Inner::State(_) => MAX_CONTENT_BYTES,
        }
    }

    /// Bytes of its page; zero for state.
    pub(crate) const fn page_bytes(self) -> u64 {
        match self.0 {
            Inner::State(_) => 0,
            _ => self.bytes() as u64,
        }
    }

    /// The lane it belongs to, out of so many: its 2 MiB region's number decides; state goes by the first lane. All records of
    /// a unit travel on one connection, so they arrive in the order in which they were sent.
    pub fn lane(self, lanes: usize) -> LaneId {
        match self.0 {
            Inner::Small(page) | Inner::Large(page) => LaneId::wrapping(page / SMALL_PER_LARGE, lanes),
            Inner::State(_) => LaneId::wrapping(0, lanes),
        }
    }

    /// The place `steps` further in the same lane, for lists: small pages follow each other inside their large page, large
    /// pages skip what belongs to other lanes, state stands alone.
    pub fn further(self, steps: u32, lanes: usize) -> Option<Place> {
        let steps = u64::from(steps);
        match self.0 {
            Inner::Small(page) => {
                let inside = page % SMALL_PER_LARGE + steps < SMALL_PER_LARGE;
                inside.then_some(Place(Inner::Small(page + steps)))
            }
            Inner::Large(page) => {
                let far = steps.checked_mul(SMALL_PER_LARGE * lanes.max(1) as u64)?;
                Place::large(page.checked_add(far)?.checked_mul(SMALL_BYTES as u64)?)
            }
            Inner::State(_) => (steps == 0).then_some(self),
        }
    }

    /// A number of 37 bits that two places of one extent never share; a large page has that of its first small one.
    pub(crate) const fn key(self) -> u64 {
        match self.0 {
            Inner::Small(page) | Inner::Large(page) => page,
            Inner::State(number) => 1 << (ADDRESS_BITS - 12) | number as u64,
        }
    }

    pub(crate) const fn from_key(key: u64, large: bool) -> Place {
        Place(match key >> (ADDRESS_BITS - 12) {
            0 if large => Inner::Large(key),
            0 => Inner::Small(key),
            _ => Inner::State(key as u16),
        })
    }

    /// The large page around a small one.
    pub(crate) const fn around(self) -> Option<Place> {
        match self.0 {
            Inner::Small(page) => Some(Place(Inner::Large(page - page % SMALL_PER_LARGE))),
            _ => None,
        }
    }

    /// The small pages of a large one.
    pub(crate) fn parts(self) -> impl Iterator<Item = Place> {
        let (first, count) = match self.0 {
            Inner::Large(page) => (page, SMALL_PER_LARGE),
            _ => (0, 0),
        };
        (first..first + count).map(|page| Place(Inner::Small(page)))
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Inner::Small(_) => write!(formatter, "small page {:#x}", self.address()),
            Inner::Large(_) => write!(formatter, "large page {:#x}", self.address()),
            Inner::State(number) => write!(formatter, "state {number}"),
        }
    }
}

/// What a unit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Bytes that travel.
    Data = 1,
    /// Zeros, which do not.
    Zero = 2,
    /// Nothing: the place is not the tenant's any more.
    Absent = 3,
}

impl Content {
    /// The content with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Content> {
        match number {
            1 => Some(Content::Data),
            2 => Some(Content::Zero),
            3 => Some(Content::Absent),
            _ => None,
        }
    }
}

/// A place in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    /// Which piece.
    pub place: Place,
    /// The round for which it was marked.
    pub generation: Round,
    /// What it holds.
    pub content: Content,
}

/// Why bytes describe no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a unit's description breaks the format")]
pub struct UnitError;

impl Unit {
    /// The description, with how many bytes follow it (in a [`Data`](crate::wire::Kind::Data)), which piece does (in a
    /// [`Piece`](crate::wire::Kind::Piece)), or how many places it speaks of (in a list).
    pub(crate) fn encode(&self, count: u32) -> [u8; UNIT_BYTES] {
        let mut bytes = [0; UNIT_BYTES];
        bytes[..8].copy_from_slice(&self.place.address().to_le_bytes());
        bytes[8..12].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&count.to_le_bytes());
        bytes[16] = self.place.extent() as u8 + 1;
        bytes[17] = self.content as u8;
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; UNIT_BYTES]) -> Result<(Unit, u32), UnitError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let address = u64::from(word(0)) | u64::from(word(4)) << 32;
        let place = match bytes[16] {
            1 => Place::small(address),
            2 => Place::large(address),
            3 => u16::try_from(address).ok().map(Place::state),
            _ => None,
        };
        let generation = Round(word(8));
        let (Some(place), Some(content)) = (place, Content::from_number(bytes[17])) else {
            return Err(UnitError);
        };
        if generation == Round(0) || bytes[18..] != [0; 6] {
            return Err(UnitError);
        }
        Ok((Unit { place, generation, content }, word(12)))
    }
}
