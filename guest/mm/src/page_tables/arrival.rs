//! The destination of a migration: pages get frames, content through another mapping, and, after the hand-over, what was missing.
//!
//! Before the hand-over no task runs: [`PageTables::place`] and its like change mappings as the units of the source say, one caller
//! per region, and every vCPU flushes once before tasks run. They leave permissions to [`PageTables::settle_runs`].
//!
//! After it, tasks run, wait for what is missing, and may also take it away:
//!
//! ```text
//!            claim               arrived
//!  Missing --------> arriving ------------> Present
//!     ^                 |  |
//!     '-----------------'  '--> absent, promised, ...: its owner took it away; the frame is freed by who has claimed it
//!          give_back
//! ```
//!
//! From `claim` to `arrived` or `give_back` the frame belongs to the claim, not to the entry, so nobody else uses it while its content
//! is written. Permissions may change, and a large page may be split, meanwhile.

use super::*;

/// Bytes below one directory.
const GIGABYTE: u64 = 1 << 30;

/// What [`PageTables::claim`] found.
#[must_use = "a claim that is forgotten keeps its page missing for ever"]
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// The caller fills the frame now.
    Yours(Claimed),
    /// Pages of the other size are there, and some are missing: of a large unit its small ones are to be claimed one by one.
    OtherSize,
    /// Nothing is missing there, or somebody else is filling it.
    NotMissing,
}

/// A page that is being filled. Ends with [`PageTables::arrived`] or [`PageTables::give_back`].
#[must_use = "a claim that is forgotten keeps its page missing for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct Claimed {
    address: u64,
    size: Size,
    frame: GuestPhys,
}

impl Claimed {
    /// Where the content goes.
    pub fn frame(&self) -> GuestPhys {
        self.frame
    }

    /// First address of the page.
    pub fn start(&self) -> GuestVirt {
        GuestVirt(self.address)
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        self.size
    }
}

/// What a page's content is when it has been given a frame.
#[derive(Clone, Copy)]
enum Content {
    /// It is written by the caller.
    Here,
    /// It comes after the hand-over.
    Elsewhere,
}

impl Content {
    fn leaf(self, frame: GuestPhys, perms: Perms) -> Leaf {
        match self {
            Content::Here => Leaf::written(frame, perms),
            Content::Elsewhere => Leaf::Missing { frame, perms, arriving: false },
        }
    }
}

impl<M: TableMemory> PageTables<'_, M> {
    /// Makes sure that the page at `address`, a multiple of its size, has a frame, which is returned, and is present; what is new is
    /// readable and writable and counts as promised. The caller writes all of the page. A small page that lies in a large
    /// one stays a piece of it; a large page takes the place of small ones.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed then. Out of memory may only mean that there is no large frame in one piece: the small
    /// pages may fit.
    pub fn place(&self, address: GuestVirt, size: Size) -> Result<GuestPhys, MapError> {
        self.provide(address.0, size, Content::Here)
    }

    /// As [`place`](Self::place), for a large page whose content comes in pieces, in order. `None`: the piece goes to small pages, because there was no
    /// large frame for the first one. Even if there is one again, what came before stays where it is.
    ///
    /// # Errors
    /// [`MapError`] but for out of memory.
    pub fn place_piece(&self, page: GuestVirt, is_first: bool) -> Result<Option<GuestPhys>, MapError> {
        let large = |found: Option<Mapping>| {
            matches!(found, Some(Mapping { size: Size::Large, leaf: Leaf::Present { .. }, .. }))
        };
        if !is_first && !large(self.lookup(page)) {
            return Ok(None);
        }
        match self.place(page, Size::Large) {
            Ok(frame) => Ok(Some(frame)),
            Err(MapError::OutOfMemory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the page's content zero: what is absent becomes promised, what has a frame is zeroed or freed.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub fn place_zero(&self, address: GuestVirt, size: Size) -> Result<(), MapError> {
        let slot = self.directory_entry(address.0)?;
        loop {
            let bits = slot.load(Ordering::Acquire);
            match (entry::table(bits), size) {
                (None, Size::Large) => return self.zero_entry(slot, Size::Large),
                (Some(table), Size::Large) => {
                    if self.replace(slot, table, Leaf::Lazy(Perms::ReadWrite))? {
                        return Ok(());
                    }
                }
                (None, Size::Small) => match entry::decode(bits) {
                    Leaf::Lazy(_) => return Ok(()),
                    Leaf::Present { frame, .. } => {
                        self.memory.zero(piece_at(frame, address.0), Size::Small);
                        return self.soil(slot, bits, Size::Large);
                    }
                    _ => _ = self.split(slot)?,
                },
                (Some(table), Size::Small) => {
                    let entry = &self.memory.entries(table)[index(address.0, 0)];
                    return self.zero_entry(entry, Size::Small);
                }
            }
        }
    }

    /// Makes sure that the page has a frame and is missing: whoever accesses it waits until it has [arrived](Self::arrived). A small
    /// page that lies in a large one splits it.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub fn place_missing(&self, address: GuestVirt, size: Size) -> Result<(), MapError> {
        self.provide(address.0, size, Content::Elsewhere).map(|_| ())
    }

    /// Makes the page absent; as [`AddressSpace::unmap`].
    pub fn remove(&self, address: GuestVirt, size: Size) -> Unmapped {
        match PageRange::new(address, size.bytes()) {
            Some(range) => self.unmap(range),
            None => Unmapped { flush: Flush::NotNeeded, complete: false },
        }
    }

    /// Puts copies in the place of the directories of the range (one for each gigabyte). Where tables are shadowed each write to a table that a
    /// processor has walked is an exit, of 2 to 3 us on the reference machine; the copies have not been walked, so that splitting many large
    /// pages is cheap. What was found below the old ones is found again at the first access, and need not be built again.
    /// Before tasks run, and while nobody else looks at the range; every vCPU flushes before the old ones are used for something
    /// else ([`seal_tables`](Self::seal_tables)). What is retired may take half of the 128 places: of more directories the rest stay as they are.
    pub fn renew_directories(&self, range: PageRange) {
        let mut at = range.start();
        while self.retired.has_many_places() {
            let Some(region) = self.next_region(at, range.end()) else { return };
            at = (region & !(GIGABYTE - 1)) + GIGABYTE;
            let above =
                entry::table(self.memory.entries(self.root)[index(region, 3)].load(Ordering::Acquire));
            let Some(slot) = above.map(|table| &self.memory.entries(table)[index(region, 2)]) else { return };
            let bits = slot.load(Ordering::Acquire);
            let (Some(old), Some(place)) = (entry::table(bits), self.retired.reserve()) else { return };
            let entries = self.memory.entries(old);
            let copy = |number: u64| entries[number as usize].load(Ordering::Acquire);
            match self.install_table(slot, bits, 0, copy) {
                Ok(Installed::Ours(_)) => place.put(old),
                Ok(Installed::Changed) | Err(_) => return,
            }
        }
    }

    fn provide(&self, address: u64, size: Size, content: Content) -> Result<GuestPhys, MapError> {
        let slot = self.directory_entry(address)?;
        loop {
            let bits = slot.load(Ordering::Acquire);
            match (entry::table(bits), size, entry::decode(bits)) {
                (None, Size::Large, _) => {
                    let alloc = || self.frames.alloc_large().map(|(frame, _)| frame);
                    return self.provide_entry(slot, Size::Large, content, alloc);
                }
                (Some(table), Size::Large, _) => {
                    if let Some(frame) = self.provide_instead(slot, table, content)? {
                        return Ok(frame);
                    }
                }
                (None, Size::Small, Leaf::Present { frame, .. }) if matches!(content, Content::Here) => {
                    self.soil(slot, bits, Size::Large)?;
                    return Ok(piece_at(frame, address));
                }
                (None, Size::Small, _) => _ = self.split(slot)?,
                (Some(table), Size::Small, _) => {
                    return self.provide_small(table, index(address, 0), content);
                }
            }
        }
    }

    fn provide_small(
        &self,
        table: GuestPhys,
        number: usize,
        content: Content,
    ) -> Result<GuestPhys, MapError> {
        let entries = self.memory.entries(table);
        self.provide_entry(&entries[number], Size::Small, content, || self.piece_for(entries, number))
    }

    /// A small frame for an entry that has none: if it can be, one that makes the pages of the table the pieces of a large frame.
    /// Units come in ascending order, mostly, so the nearest entry below tells in which.
    fn piece_for(&self, entries: &[AtomicU64; ENTRIES], number: usize) -> Option<GuestPhys> {
        let own = |number: usize| entry::decode(entries[number].load(Ordering::Acquire)).own_frame();
        let nearest =
            (0..number).rev().chain(number + 1..ENTRIES).find_map(|other| Some((other, own(other)?)));
        let piece = match nearest {
            None => self.frames.alloc_reserved(number as u64),
            Some((other, frame)) if frame.0 % LARGE_PAGE_BYTES == other as u64 * PAGE_BYTES => {
                self.frames.alloc_beside(frame, number as u64)
            }
            Some(_) => None,
        };
        piece.or_else(|| self.frames.alloc_small())
    }

    /// Gives a frame to a leaf entry that has none, and says what its content is.
    fn provide_entry(
        &self,
        entry: &AtomicU64,
        size: Size,
        content: Content,
        alloc: impl Fn() -> Option<GuestPhys>,
    ) -> Result<GuestPhys, MapError> {
        loop {
            let bits = entry.load(Ordering::Acquire);
            let old = entry::decode(bits);
            let perms = old.perms().unwrap_or(Perms::ReadWrite);
            if let Some(frame) = old.own_frame() {
                if exchange(entry, bits, content.leaf(frame, perms), size) {
                    return Ok(frame);
                }
                continue;
            }
            let promise = self.promise(if old == Leaf::Absent { size.bytes() / PAGE_BYTES } else { 0 })?;
            let frame = alloc().ok_or(MapError::OutOfMemory)?;
            if exchange(entry, bits, content.leaf(frame, perms), size) {
                promise.keep();
                return Ok(frame);
            }
            self.free_frame(frame, size);
        }
    }

    /// Puts a large page in the place of small ones: with their frame, if they are the pieces of one. `None` if the entry has
    /// changed meanwhile.
    fn provide_instead(
        &self,
        slot: &AtomicU64,
        table: GuestPhys,
        content: Content,
    ) -> Result<Option<GuestPhys>, MapError> {
        let own = |entry: &AtomicU64| entry::decode(entry.load(Ordering::Acquire)).own_frame();
        let entries = self.memory.entries(table);
        let pieces = own(&entries[0]).filter(|first| {
            let piece = |number| Some(GuestPhys(first.0 + number as u64 * PAGE_BYTES));
            first.0.is_multiple_of(LARGE_PAGE_BYTES)
                && entries.iter().enumerate().all(|(number, entry)| own(entry) == piece(number))
        });
        if let Some(frame) = pieces {
            let place = self.retired.reserve().ok_or(MapError::OutOfTables)?;
            let large = content.leaf(frame, Perms::ReadWrite);
            let done = joins::replace_table(slot, table, large);
            if done {
                self.free_table(table, place);
            }
            return Ok(done.then_some(frame));
        }
        let (frame, _) = self.frames.alloc_large().ok_or(MapError::OutOfMemory)?;
        let replaced = self.replace(slot, table, content.leaf(frame, Perms::ReadWrite));
        if !matches!(replaced, Ok(true)) {
            self.free_frame(frame, Size::Large);
        }
        Ok(replaced?.then_some(frame))
    }

    /// Puts a large leaf in the place of a table, and frees what was there; false if the entry has changed.
    fn replace(&self, slot: &AtomicU64, table: GuestPhys, leaf: Leaf) -> Result<bool, MapError> {
        let entries = self.memory.entries(table);
        let absent = entries.iter().filter(|entry| entry.load(Ordering::Acquire) == 0).count();
        let promise = self.promise(absent as u64)?;
        let place = self.retired.reserve().ok_or(MapError::OutOfTables)?;
        if !joins::replace_table(slot, table, leaf) {
            return Ok(false);
        }
        promise.keep();
        self.free_small_frames(table);
        self.free_table(table, place);
        Ok(true)
    }

    fn zero_entry(&self, entry: &AtomicU64, size: Size) -> Result<(), MapError> {
        loop {
            let bits = entry.load(Ordering::Acquire);
            let old = entry::decode(bits);
            let perms = old.perms().unwrap_or(Perms::ReadWrite);
            if let Some(frame) = old.own_frame() {
                self.memory.zero(frame, size);
                if exchange(entry, bits, Leaf::written(frame, perms), size) {
                    return Ok(());
                }
                continue;
            }
            let promise = self.promise(if old == Leaf::Absent { size.bytes() / PAGE_BYTES } else { 0 })?;
            if exchange(entry, bits, Leaf::Lazy(perms), size) {
                promise.keep();
                return Ok(());
            }
        }
    }

    /// Makes a present page count as written for everybody.
    fn soil(&self, entry: &AtomicU64, mut bits: u64, size: Size) -> Result<(), MapError> {
        while let Leaf::Present { frame, perms, .. } = entry::decode(bits)
            && entry::is_leaf(bits, size)
            && !exchange(entry, bits, Leaf::written(frame, perms), size)
        {
            bits = entry.load(Ordering::Acquire);
        }
        Ok(())
    }

    /// Promises pages, until the result is dropped or kept.
    pub(super) fn promise(&self, pages: u64) -> Result<Promise<'_>, MapError> {
        if pages != 0 {
            self.frames.commit(pages).map_err(|_| MapError::OutOfMemory)?;
        }
        Ok(Promise { frames: &self.frames, pages })
    }

    /// Takes the missing page at `address`, a multiple of its size, in order to fill its frame.
    pub fn claim(&self, address: GuestVirt, size: Size) -> Claim {
        let _visit = self.visit();
        let Some(slot) = self.find_directory_entry(address.0) else { return Claim::NotMissing };
        loop {
            let bits = slot.load(Ordering::Acquire);
            let (entry, bits) = match (entry::table(bits), size) {
                (None, Size::Large) => (slot, bits),
                (None, Size::Small) => return other_size(core::iter::once(bits)),
                (Some(table), Size::Small) => {
                    let entry = &self.memory.entries(table)[index(address.0, 0)];
                    (entry, entry.load(Ordering::Acquire))
                }
                (Some(table), Size::Large) => {
                    let entries = self.memory.entries(table).iter();
                    return other_size(entries.map(|entry| entry.load(Ordering::Acquire)));
                }
            };
            let Leaf::Missing { frame, perms, arriving: false } = entry::decode(bits) else {
                return Claim::NotMissing;
            };
            if exchange(entry, bits, Leaf::Missing { frame, perms, arriving: true }, size) {
                return Claim::Yours(Claimed { address: address.0, size, frame });
            }
        }
    }

    /// Makes a page present whose frame has been filled; it counts as written for everybody. False if its owner has taken it away
    /// meanwhile, all of it: its frame is free then.
    pub fn arrived(&self, claimed: Claimed) -> bool {
        self.end_claim(claimed, Content::Here)
    }

    /// Makes a page that was claimed missing as before. False as for [`arrived`](Self::arrived).
    pub fn give_back(&self, claimed: Claimed) -> bool {
        self.end_claim(claimed, Content::Elsewhere)
    }

    /// Makes a missing page present whose frame was filled without a claim, before tasks ran; false if it is not missing, or
    /// is claimed, or is of the other size.
    pub fn arrive(&self, address: GuestVirt, size: Size) -> bool {
        match self.claim(address, size) {
            Claim::Yours(claimed) => self.arrived(claimed),
            Claim::OtherSize | Claim::NotMissing => false,
        }
    }

    fn end_claim(&self, claimed: Claimed, content: Content) -> bool {
        let _visit = self.visit();
        let Claimed { address, size, frame } = claimed;
        loop {
            let slot = self.find_directory_entry(address);
            let bits = slot.map_or(0, |slot| slot.load(Ordering::Acquire));
            match (slot, entry::table(bits), size) {
                (Some(_), Some(table), Size::Small) => {
                    return self.end_small(&self.memory.entries(table)[index(address, 0)], frame, content);
                }
                (Some(_), Some(table), Size::Large) => {
                    let mut any = false;
                    for (number, entry) in self.memory.entries(table).iter().enumerate() {
                        let piece = GuestPhys(frame.0 + number as u64 * PAGE_BYTES);
                        any |= self.end_small(entry, piece, content);
                    }
                    return any;
                }
                (Some(slot), None, Size::Large) if is_arriving(bits, frame).is_some() => {
                    let perms = entry::decode(bits).perms().unwrap_or(Perms::Read);
                    if exchange(slot, bits, content.leaf(frame, perms), Size::Large) {
                        return true;
                    }
                }
                // Large pages do not take the place of a small one that is missing but by an unmapping.
                _ => {
                    self.free_frame(frame, size);
                    return false;
                }
            }
        }
    }

    /// The same for one small page.
    fn end_small(&self, entry: &AtomicU64, frame: GuestPhys, content: Content) -> bool {
        loop {
            let bits = entry.load(Ordering::Acquire);
            let Some(perms) = is_arriving(bits, frame) else {
                self.free_frame(frame, Size::Small);
                return false;
            };
            if exchange(entry, bits, content.leaf(frame, perms), Size::Small) {
                return true;
            }
        }
    }
}

/// The permissions of a page that is being filled in this frame.
fn is_arriving(bits: u64, claimed: GuestPhys) -> Option<Perms> {
    match entry::decode(bits) {
        Leaf::Missing { frame, perms, arriving: true } if frame == claimed => Some(perms),
        _ => None,
    }
}

fn other_size(mut entries: impl Iterator<Item = u64>) -> Claim {
    let missing = |bits| matches!(entry::decode(bits), Leaf::Missing { arriving: false, .. });
    if entries.any(missing) { Claim::OtherSize } else { Claim::NotMissing }
}

/// The piece of a large frame for the small page at `address`.
fn piece_at(frame: GuestPhys, address: u64) -> GuestPhys {
    GuestPhys(frame.0 + ((address & !(PAGE_BYTES - 1)) % LARGE_PAGE_BYTES))
}

/// Pages that are promised until this is dropped.
pub(super) struct Promise<'p> {
    frames: &'p Frames<'p>,
    pages: u64,
}

impl Promise<'_> {
    /// Some entry stands for the promise now.
    pub(super) fn keep(mut self) {
        self.pages = 0;
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        if self.pages != 0 {
            self.frames.uncommit(self.pages);
        }
    }
}
