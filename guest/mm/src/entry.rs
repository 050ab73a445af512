//! One page-table entry: the hardware's format when present, ours when not.
//!
//! ```text
//! bit 63  62..55  54        53      52       51..12  11       10      9     8  7   6  5  4..3  2  1  0
//! NX      -       ARRIVING  UNSENT  WRITTEN  frame   MISSING  HIDDEN  LAZY  -  PS  D  A  -     U  W  P
//! ```
//!
//! A present entry is the processor's (Intel SDM vol. 3, 4.5; AMD APM vol. 2, 5.3). One with P = 0 is nobody's but ours:
//!
//! | set | the page is | with |
//! |---|---|---|
//! | nothing | *absent*: an access is an error | |
//! | LAZY | *promised*: there is no frame yet; the first access faults and gets a zeroed one | W, NX, PS |
//! | HIDDEN | *hidden*: an access is an error, but the frame is kept for whoever maps the address again | frame, D, WRITTEN, UNSENT |
//! | HIDDEN, LAZY | hidden, and what is kept is a promise | |
//! | MISSING | *missing*: its content is elsewhere and comes; an access waits for it | frame, W, NX, PS |
//! | MISSING, ARRIVING | the same, and its frame belongs to the one who is filling it, not to the entry | frame, W, NX, PS |
//!
//! A present entry that points to a table has two marks of its own: JOINING, where MISSING is in others (see `page_tables::joins`),
//! and UNIFORM, bit 55 (see `page_tables::runs`).
//!
//! **Written** means something to two users who do not know of each other: warm instance slots and migration. The processor has
//! one bit for both, D. Whoever clears D notes it for the other first, in the same atomic operation: WRITTEN is what slots have not
//! seen yet, UNSENT what migration has not. So a page is written for slots if D or WRITTEN is set, for migration if D or UNSENT is.
//!
//! A and D are set in advance on mappings that nobody tracks: hardware and hypervisors otherwise pay for setting them.

use crate::GuestPhys;
use crate::address_space::Flush;
use crate::sync::{AtomicU64, Ordering};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const LAZY: u64 = 1 << 9;
const HIDDEN: u64 = 1 << 10;
const MISSING: u64 = 1 << 11;
const WRITTEN: u64 = 1 << 52;
const UNSENT: u64 = 1 << 53;
const ARRIVING: u64 = 1 << 54;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// In an entry that points to a table: somebody has begun to put a large page in its place.
pub const JOINING: u64 = 1 << 11;

/// In an entry that points to a table: all small pages there are, or will be, mapped readable and writable.
pub const UNIFORM: u64 = 1 << 55;

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
        /// As of a mapped one.
        unsent: bool,
    },
    /// Its content comes from elsewhere: whoever accesses it waits.
    Missing {
        /// Where its content will be.
        frame: GuestPhys,
        /// What will be allowed.
        perms: Perms,
        /// Somebody is filling the frame, and it is his: who takes the page away leaves the frame to him.
        arriving: bool,
    },
    /// Mapped.
    Present {
        /// Where to.
        frame: GuestPhys,
        /// What is allowed.
        perms: Perms,
        /// Written, as warm slots see it: since their view was last cleaned (or preset).
        dirty: bool,
        /// Written, as migration sees it: since it last collected the page (or preset).
        unsent: bool,
    },
}

impl Leaf {
    /// A mapped page that counts as written for everybody.
    pub const fn written(frame: GuestPhys, perms: Perms) -> Leaf {
        Leaf::Present { frame, perms, dirty: true, unsent: true }
    }

    /// The frame that belongs to the entry: who takes the entry away frees it.
    pub const fn own_frame(self) -> Option<GuestPhys> {
        match self {
            Leaf::Present { frame, .. }
            | Leaf::Hidden { frame: Some(frame), .. }
            | Leaf::Missing { frame, arriving: false, .. } => Some(frame),
            _ => None,
        }
    }

    /// What it allows, or will allow; `None` if nothing.
    pub const fn perms(self) -> Option<Perms> {
        match self {
            Leaf::Absent | Leaf::Hidden { .. } => None,
            Leaf::Lazy(perms) | Leaf::Missing { perms, .. } | Leaf::Present { perms, .. } => Some(perms),
        }
    }

    /// What a large leaf says about small page `number` of it.
    pub const fn piece(self, number: u64) -> Leaf {
        match self {
            Leaf::Present { frame, perms, dirty, unsent } => {
                Leaf::Present { frame: piece_of(frame, number), perms, dirty, unsent }
            }
            Leaf::Missing { frame, perms, arriving } => {
                Leaf::Missing { frame: piece_of(frame, number), perms, arriving }
            }
            other => other,
        }
    }
}

const fn piece_of(frame: GuestPhys, number: u64) -> GuestPhys {
    GuestPhys(frame.0 + number * nacre_abi::PAGE_BYTES)
}

/// Who asks whether a page was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Warm instance slots.
    Slots,
    /// Live migration.
    Migration,
}

impl View {
    const fn note(self) -> u64 {
        match self {
            View::Slots => WRITTEN,
            View::Migration => UNSENT,
        }
    }

    const fn other(self) -> View {
        match self {
            View::Slots => View::Migration,
            View::Migration => View::Slots,
        }
    }
}

/// The bits for what two users have not seen.
const fn written_bits(dirty: bool, unsent: bool) -> u64 {
    match (dirty, unsent) {
        (true, true) => DIRTY,
        (true, false) => WRITTEN,
        (false, true) => UNSENT,
        (false, false) => 0,
    }
}

/// Whether a present entry's page was written, as `view` sees it.
pub const fn is_written(bits: u64, view: View) -> bool {
    bits & (DIRTY | view.note()) != 0
}

/// The bits of a present entry after `view` has seen that it was written.
pub const fn seen(bits: u64, view: View) -> u64 {
    let rest = bits & !(DIRTY | view.note());
    if bits & DIRTY != 0 { rest | view.other().note() } else { rest }
}

/// The bits of a present entry whose page `view` has yet to see.
pub const fn unseen(bits: u64, view: View) -> u64 {
    bits | view.note()
}

/// The bits of which one is set in every leaf entry that migration has to look at: one that was written, or is promised; some
/// others have one too. With `all` also in every one that is present.
pub const fn to_collect(all: bool) -> u64 {
    DIRTY | UNSENT | LAZY | if all { PRESENT } else { 0 }
}

/// Whether an entry is present to the processor.
pub const fn is_present(bits: u64) -> bool {
    bits & PRESENT != 0
}

/// What a leaf entry looks like in a list of runs: equal for pages that belong to one, zero for what is absent.
pub const fn run_kind(bits: u64) -> u64 {
    match decode(bits) {
        Leaf::Absent => 0,
        Leaf::Hidden { .. } => PRESENT | HIDDEN,
        Leaf::Lazy(_) => PRESENT | LAZY | bits & (WRITE | NO_EXECUTE),
        _ => PRESENT | bits & (WRITE | NO_EXECUTE),
    }
}

/// The kind of runs of pages that are mapped, or missing, and allow this.
pub const fn mapped_kind(perms: Perms) -> u64 {
    PRESENT | perms.bits()
}

/// What is allowed in a run of this kind, and whether it is promised, and hidden.
pub const fn of_run_kind(kind: u64) -> (Perms, bool, bool) {
    if kind & HIDDEN != 0 {
        (Perms::ReadWrite, true, true)
    } else {
        (perms_of(kind), kind & LAZY != 0, false)
    }
}

const fn perms_of(bits: u64) -> Perms {
    match (bits & WRITE != 0, bits & NO_EXECUTE != 0) {
        (true, _) => Perms::ReadWrite,
        (false, true) => Perms::Read,
        (false, false) => Perms::ReadExecute,
    }
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
        Leaf::Hidden { frame: Some(frame), dirty, unsent } => frame.0 | HIDDEN | written_bits(dirty, unsent),
        Leaf::Missing { frame, perms, arriving } => {
            frame.0 | MISSING | large | perms.bits() | if arriving { ARRIVING } else { 0 }
        }
        Leaf::Present { frame, perms, dirty, unsent } => {
            frame.0 | PRESENT | USER | ACCESSED | large | perms.bits() | written_bits(dirty, unsent)
        }
    }
}

/// Reads the bits of a leaf entry (not of one that points to a table: see [`table`]).
pub const fn decode(bits: u64) -> Leaf {
    let frame = GuestPhys(bits & FRAME);
    let perms = perms_of(bits);
    let (dirty, unsent) = (is_written(bits, View::Slots), is_written(bits, View::Migration));
    if bits & PRESENT != 0 {
        Leaf::Present { frame, perms, dirty, unsent }
    } else if bits & HIDDEN != 0 {
        let frame = if bits & LAZY == 0 { Some(frame) } else { None };
        Leaf::Hidden { frame, dirty, unsent }
    } else if bits & MISSING != 0 {
        Leaf::Missing { frame, perms, arriving: bits & ARRIVING != 0 }
    } else if bits & LAZY != 0 {
        Leaf::Lazy(perms)
    } else {
        Leaf::Absent
    }
}

/// Makes a leaf entry that is present count as not written for `view`; says whether it counted as written. The processor sets D
/// again at the next write, once stale translations are gone.
pub fn clean(entry: &AtomicU64, size: Size, view: View) -> bool {
    loop {
        let bits = entry.load(Ordering::Acquire);
        if !is_leaf(bits, size) || !is_written(bits, view) {
            return false;
        }
        if entry.compare_exchange(bits, seen(bits, view), Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return true;
        }
    }
}

/// Whether an entry of a table of this size's entries is a mapped page: not a promise, nor a pointer to a table.
pub const fn is_leaf(bits: u64, size: Size) -> bool {
    bits & PRESENT != 0 && (matches!(size, Size::Small) || bits & LARGE != 0)
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
        Leaf::Hidden { frame: Some(frame), dirty, unsent } => {
            (Leaf::Present { frame, perms, dirty, unsent }, Flush::NotNeeded)
        }
        Leaf::Missing { frame, arriving, .. } => (Leaf::Missing { frame, perms, arriving }, Flush::NotNeeded),
        Leaf::Present { frame, perms: old, dirty, unsent } => {
            let flush = if old.within(perms) { Flush::NotNeeded } else { Flush::Needed };
            (Leaf::Present { frame, perms, dirty, unsent }, flush)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEWS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
    const FRAME: GuestPhys = GuestPhys(0x1_2340_0000);

    #[test]
    fn leaves_survive_a_round_trip() {
        for size in [Size::Small, Size::Large] {
            for perms in [Perms::Read, Perms::ReadWrite, Perms::ReadExecute] {
                let present =
                    VIEWS.map(|(dirty, unsent)| Leaf::Present { frame: FRAME, perms, dirty, unsent });
                let missing = [false, true].map(|arriving| Leaf::Missing { frame: FRAME, perms, arriving });
                for leaf in [Leaf::Absent, Leaf::Lazy(perms)].iter().chain(&present).chain(&missing) {
                    assert_eq!(decode(encode(*leaf, size)), *leaf);
                }
            }
        }
    }

    #[test]
    fn what_is_hidden_or_missing_is_kept_and_not_present_to_the_processor() {
        for (dirty, unsent) in VIEWS {
            for leaf in [
                Leaf::Hidden { frame: Some(FRAME), dirty, unsent },
                Leaf::Hidden { frame: None, dirty: false, unsent: false },
                Leaf::Missing { frame: FRAME, perms: Perms::ReadWrite, arriving: dirty },
            ] {
                let bits = encode(leaf, Size::Small);
                assert_eq!((decode(bits), bits & PRESENT, table(bits)), (leaf, 0, None));
            }
        }
    }

    #[test]
    fn who_has_seen_a_write_takes_nothing_from_the_other() {
        let view = |bits| match decode(bits) {
            Leaf::Present { dirty, unsent, .. } => (dirty, unsent),
            other => panic!("{other:?}"),
        };
        for (dirty, unsent) in VIEWS {
            let leaf = Leaf::Present { frame: FRAME, perms: Perms::ReadWrite, dirty, unsent };
            let bits = encode(leaf, Size::Small);
            assert_eq!(view(seen(bits, View::Slots)), (false, unsent));
            assert_eq!(view(seen(bits, View::Migration)), (dirty, false));
            assert_eq!(view(unseen(bits, View::Migration)), (dirty, true));
            // Whatever notes are there, the processor's bit tells both, and is cleared by the first who looks.
            let written = bits | DIRTY;
            assert_eq!((view(written), seen(written, View::Slots) & DIRTY), ((true, true), 0));
            assert_eq!(view(seen(written, View::Slots)), (false, true));
            assert_eq!(view(seen(written, View::Migration)), (true, false));
        }
    }

    #[test]
    fn runs_tell_permissions_apart_and_nothing_else() {
        for perms in [Perms::Read, Perms::ReadWrite, Perms::ReadExecute] {
            let leaves = [
                Leaf::Lazy(perms),
                Leaf::written(FRAME, perms),
                Leaf::Present { frame: GuestPhys(0x1000), perms, dirty: false, unsent: false },
                Leaf::Missing { frame: FRAME, perms, arriving: true },
            ];
            for leaf in leaves {
                let promised = matches!(leaf, Leaf::Lazy(_));
                for size in [Size::Small, Size::Large] {
                    let kind = run_kind(encode(leaf, size));
                    assert_eq!(of_run_kind(kind), (perms, promised, false), "{leaf:?}");
                }
            }
        }
        for frame in [None, Some(FRAME)] {
            let hidden = encode(Leaf::Hidden { frame, dirty: true, unsent: true }, Size::Small);
            assert_eq!(of_run_kind(run_kind(hidden)), (Perms::ReadWrite, true, true));
        }
        assert_eq!(run_kind(0), 0);
    }

    #[test]
    fn a_promise_is_not_present_to_the_processor() {
        assert_eq!(encode(Leaf::Lazy(Perms::ReadWrite), Size::Large) & PRESENT, 0);
        assert_eq!(table(encode(Leaf::Lazy(Perms::ReadWrite), Size::Large)), None);
        assert_eq!(table(encode_table(GuestPhys(0x5000))), Some(GuestPhys(0x5000)));
    }
}
