//! One page-table entry: the hardware's format when present, ours when not.
//!
//! ```text
//! bit 63  62..52   51..12   11  10      9     8  7   6  5  4..3  2  1  0
//! NX      -        frame    -   HIDDEN  LAZY  -  PS  D  A  -     U  W  P
//! ```
//!
//! A present entry is the processor's (Intel SDM vol. 3, 4.5; AMD APM vol. 2, 5.3). An entry with P = 0 and LAZY = 1 is
//! *promised*: its address may be used with the permissions in W and NX, but no frame is behind it yet; the first access
//! faults and gets a zeroed one. One with P = 0 and HIDDEN = 1 is *hidden*: an access is an error, but its frame, or with
//! LAZY its promise, is kept for whoever maps the address again. Zero is *absent*: an access is an error.
//!
//! A and D are set in advance on mappings that nobody tracks: hardware and hypervisors otherwise pay for setting them.

use crate::GuestPhys;
use crate::address_space::Flush;
use core::sync::atomic::{AtomicU64, Ordering};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const LAZY: u64 = 1 << 9;
const HIDDEN: u64 = 1 << 10;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perms {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
}

impl Perms {
    const fn bits(self) -> u64 {
        match self {
            Perms::Read => NO_EXECUTE,
            Perms::ReadWrite => NO_EXECUTE | WRITE,
            Perms::ReadExecute => 0,
        }
    }

    /// Whether everything `self` allows is allowed by `other` too.
    pub const fn within(self, other: Perms) -> bool {
        matches!(
            (self, other),
            (Perms::Read, _)
                | (Perms::ReadWrite, Perms::ReadWrite)
                | (Perms::ReadExecute, Perms::ReadExecute)
        )
    }

    /// Whether an access of this kind is allowed.
    pub const fn allow(self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => matches!(self, Perms::ReadWrite),
            Access::Execute => matches!(self, Perms::ReadExecute),
        }
    }
}

/// A kind of memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// How much an entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 4 KiB: an entry of a leaf table.
    Small,
    /// 2 MiB: an entry of a page directory.
    Large,
}

impl Size {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Size::Small => nacre_abi::PAGE_BYTES,
            Size::Large => nacre_abi::LARGE_PAGE_BYTES,
        }
    }
}

/// A decoded leaf entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Nothing may be accessed here.
    Absent,
    /// Promised, without a frame.
    Lazy(Perms),
    /// Not to be accessed, but kept: a small page only, which was readable and writable.
    Hidden {
        /// Where it was mapped to; `None` if it was only promised.
        frame: Option<GuestPhys>,
        /// As of a mapped one.
        dirty: bool,
    },
    /// Mapped.
    Present {
        /// Where to.
        frame: GuestPhys,
        /// What is allowed.
        perms: Perms,
        /// Written since the bit was last cleared (or preset).
        dirty: bool,
    },
}

/// The bits of a leaf entry for `leaf`.
pub const fn encode(leaf: Leaf, size: Size) -> u64 {
    let large = match size {
        Size::Small => 0,
        Size::Large => LARGE,
    };
    match leaf {
        Leaf::Absent => 0,
        Leaf::Lazy(perms) => LAZY | large | perms.bits(),
        Leaf::Hidden { frame: None, .. } => HIDDEN | LAZY,
        Leaf::Hidden { frame: Some(frame), dirty } => frame.0 | HIDDEN | if dirty { DIRTY } else { 0 },
        Leaf::Present { frame, perms, dirty } => {
            frame.0 | PRESENT | USER | ACCESSED | large | perms.bits() | if dirty { DIRTY } else { 0 }
        }
    }
}

/// Reads the bits of a leaf entry (not of one that points to a table: see [`table`]).
pub const fn decode(bits: u64) -> Leaf {
    let perms = match (bits & WRITE != 0, bits & NO_EXECUTE != 0) {
        (true, _) => Perms::ReadWrite,
        (false, true) => Perms::Read,
        (false, false) => Perms::ReadExecute,
    };
    if bits & PRESENT != 0 {
        Leaf::Present { frame: GuestPhys(bits & FRAME), perms, dirty: bits & DIRTY != 0 }
    } else if bits & HIDDEN != 0 {
        let frame = if bits & LAZY == 0 { Some(GuestPhys(bits & FRAME)) } else { None };
        Leaf::Hidden { frame, dirty: bits & DIRTY != 0 }
    } else if bits & LAZY != 0 {
        Leaf::Lazy(perms)
    } else {
        Leaf::Absent
    }
}

/// Makes a leaf entry that is present count as not written. The processor sets the bit again at the next write, once stale
/// translations are gone.
pub fn clean(entry: &AtomicU64) {
    if entry.load(Ordering::Acquire) & PRESENT != 0 {
        entry.fetch_and(!DIRTY, Ordering::AcqRel);
    }
}

/// Whether a leaf entry (promised or present) is a large one.
pub const fn is_large(bits: u64) -> bool {
    bits & LARGE != 0
}

/// The bits of an entry that points to the table at `frame`: it allows everything, the leaves decide.
pub const fn encode_table(frame: GuestPhys) -> u64 {
    frame.0 | PRESENT | WRITE | USER | ACCESSED
}

/// The table that an entry above the leaf level points to, if it points to one.
pub const fn table(bits: u64) -> Option<GuestPhys> {
    if bits & PRESENT != 0 && bits & LARGE == 0 { Some(GuestPhys(bits & FRAME)) } else { None }
}

/// The leaf with other permissions, and whether that took something away.
pub fn with_perms(leaf: Leaf, perms: Perms) -> (Leaf, Flush) {
    match leaf {
        Leaf::Absent | Leaf::Lazy(_) | Leaf::Hidden { frame: None, .. } => {
            (Leaf::Lazy(perms), Flush::NotNeeded)
        }
        // The processor remembers nothing of what was not present.
        Leaf::Hidden { frame: Some(frame), dirty } => {
            (Leaf::Present { frame, perms, dirty }, Flush::NotNeeded)
        }
        Leaf::Present { frame, perms: old, dirty } => {
            let flush = if old.within(perms) { Flush::NotNeeded } else { Flush::Needed };
            (Leaf::Present { frame, perms, dirty }, flush)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_survive_a_round_trip() {
        for size in [Size::Small, Size::Large] {
            for perms in [Perms::Read, Perms::ReadWrite, Perms::ReadExecute] {
                for leaf in [
                    Leaf::Absent,
                    Leaf::Lazy(perms),
                    Leaf::Present { frame: GuestPhys(0x1_2340_0000), perms, dirty: false },
                    Leaf::Present { frame: GuestPhys(0x1_2340_0000), perms, dirty: true },
                ] {
                    assert_eq!(decode(encode(leaf, size)), leaf);
                }
            }
        }
    }

    #[test]
    fn what_is_hidden_is_kept_and_not_present_to_the_processor() {
        for leaf in [
            Leaf::Hidden { frame: None, dirty: false },
            Leaf::Hidden { frame: Some(GuestPhys(0x1_2340_0000)), dirty: false },
            Leaf::Hidden { frame: Some(GuestPhys(0x1000)), dirty: true },
        ] {
            let bits = encode(leaf, Size::Small);
            assert_eq!((decode(bits), bits & PRESENT, table(bits)), (leaf, 0, None));
        }
    }

    #[test]
    fn a_promise_is_not_present_to_the_processor() {
        assert_eq!(encode(Leaf::Lazy(Perms::ReadWrite), Size::Large) & PRESENT, 0);
        assert_eq!(table(encode(Leaf::Lazy(Perms::ReadWrite), Size::Large)), None);
        assert_eq!(table(encode_table(GuestPhys(0x5000))), Some(GuestPhys(0x5000)));
    }
}
