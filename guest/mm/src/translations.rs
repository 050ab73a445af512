//! Which cached translations a vCPU still has to forget: all of them, or those of some pages.
//!
//! Whoever takes something away from the page tables begins another *generation*; a vCPU that has *flushed* it has no translation left of what was
//! there before. Live migration takes away next to nothing, the mark that a page was written, and of few pages at a time: it lists them, and a
//! vCPU that is behind by listed generations only forgets those pages. That keeps the translations that tasks work with; and where a hypervisor
//! shadows page tables, forgetting everything has it look again at every table that was changed (measured: 50 us for each, 100 ms for 4 GiB).
//!
//! Each vCPU publishes what it has flushed, or that it sleeps (and touches nothing): see [`owed`](Translations::owed). There is one
//! who lists. The list is a ring; its oldest part is overwritten once all others have flushed, and who slept through it forgets everything:
//!
//! ```text
//! lister   [begin] ------> list* ------> [next_listed] ----.      [next], by anybody: all has to be forgotten
//!             ^                                            |
//!             '---- all have flushed the generation -------'
//! ```

use crate::sync::{AtomicU64, Ordering};

/// Generations that the list can speak of.
const STEPS: u64 = 64;
/// Pages are forgotten in groups of so many: each generation's are filled up with one of them.
pub const GROUP: u64 = 8;
/// In the word of the present generation: what was taken away since [`Translations::base`] is listed.
const LISTED: u64 = 1;
/// How many generations had all forgotten, modulo 2^15, and the generation's number, from these bits on.
const WHOLE_SHIFT: u32 = 1;
const NUMBER_SHIFT: u32 = 16;
const WHOLE: u64 = (1 << (NUMBER_SHIFT - WHOLE_SHIFT)) - 1;

/// The word of a generation.
const fn word(number: u64, whole: u64, listed: u64) -> u64 {
    number << NUMBER_SHIFT | (whole & WHOLE) << WHOLE_SHIFT | listed
}

const fn number_of(word: u64) -> u64 {
    word >> NUMBER_SHIFT
}

const fn whole_of(word: u64) -> u64 {
    word >> WHOLE_SHIFT & WHOLE
}

/// The generations, and the list of up to `N` pages, a multiple of four [`GROUP`]s: a fourth of them in one generation.
pub struct Translations<const N: usize> {
    /// The [word] of the generation.
    now: AtomicU64,
    /// The list has all that was taken away after this generation.
    base: AtomicU64,
    /// Where the pages of a generation begin, by its number modulo [`STEPS`]: counted from the very first, and in the list modulo `N`.
    starts: [AtomicU64; STEPS as usize],
    /// Where the next page goes.
    used: AtomicU64,
    pages: [AtomicU64; N],
}

/// What a vCPU has to forget before it may say that it has flushed a generation.
#[must_use]
pub enum Owed<'t> {
    /// Nothing.
    Nothing,
    /// The translations of these addresses, in whole groups of [`GROUP`].
    Pages([&'t [AtomicU64]; 2]),
    /// All.
    All,
}

impl<const N: usize> Default for Translations<N> {
    fn default() -> Self {
        Translations::new()
    }
}

impl<const N: usize> Translations<N> {
    /// Pages of one generation at most.
    const AT_ONCE: u64 = N as u64 / 4;

    /// Generation 0.
    pub const fn new() -> Translations<N> {
        assert!((N as u64).is_multiple_of(4 * GROUP), "whole groups");
        Translations {
            now: AtomicU64::new(0),
            base: AtomicU64::new(0),
            starts: [const { AtomicU64::new(0) }; STEPS as usize],
            used: AtomicU64::new(0),
            pages: [const { AtomicU64::new(0) }; N],
        }
    }

    /// The present generation.
    pub fn generation(&self) -> u64 {
        number_of(self.now.load(Ordering::SeqCst))
    }

    /// Counts the generations, modulo 2^15, of which all translations are forgotten, and not only listed ones: who has taken something away without a
    /// word finds that it is forgotten, once this has changed and then flushed.
    pub fn whole(&self) -> u64 {
        whole_of(self.now.load(Ordering::SeqCst))
    }

    /// Something was taken away that is in no list.
    pub fn next(&self) {
        let mut now = self.now.load(Ordering::SeqCst);
        loop {
            let next = word(number_of(now) + 1, whole_of(now) + 1, 0);
            match self.now.compare_exchange(now, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return,
                Err(found) => now = found,
            }
        }
    }

    /// Before pages are listed. `settled` is the generation that all have flushed who do not sleep. False if somebody may still be
    /// reading what is overwritten next: try again later.
    ///
    /// Calls of this, [`list`](Self::list) and [`next_listed`](Self::next_listed) belong to one lister; pages may be listed by several at once.
    #[must_use]
    pub fn begin(&self, settled: impl Fn() -> u64) -> bool {
        let now = self.now.load(Ordering::SeqCst);
        let (number, used) = (number_of(now), self.used.load(Ordering::Relaxed).next_multiple_of(GROUP));
        let mut base = match now & LISTED {
            0 => number,
            _ => self.base.load(Ordering::Relaxed),
        };
        let begins = |generation| self.start(generation).load(Ordering::Relaxed);
        while base < number
            && (number + 2 - base >= STEPS || used + Self::AT_ONCE - begins(base + 1) > N as u64)
        {
            base += 1;
        }
        // From here on nobody begins to read what is older; whoever has begun says that it is behind.
        self.base.store(base, Ordering::SeqCst);
        if settled() < number {
            return false;
        }
        self.used.store(used, Ordering::Relaxed);
        self.start(number + 1).store(used, Ordering::Relaxed);
        true
    }

    /// The translation of the page at this address has to be forgotten, and nothing else of what was changed there.
    pub fn list(&self, address: u64) {
        let place = self.used.fetch_add(1, Ordering::Relaxed);
        // Wrapping: where it begins is not known any more if somebody else has begun a generation meanwhile.
        let start = self.start(self.generation() + 1).load(Ordering::Relaxed);
        if place.wrapping_sub(start) < Self::AT_ONCE {
            self.pages[place as usize % N].store(address, Ordering::Relaxed);
        }
    }

    /// Pages that were listed since [`begin`](Self::begin).
    pub fn listed(&self) -> u64 {
        let start = self.start(self.generation() + 1).load(Ordering::Relaxed);
        self.used.load(Ordering::Relaxed).saturating_sub(start)
    }

    /// All that was taken away was listed: the next generation. If there was no room, it is as [`next`](Self::next).
    pub fn next_listed(&self) {
        let now = self.now.load(Ordering::SeqCst);
        let number = number_of(now);
        let (start, used) =
            (self.start(number + 1).load(Ordering::Relaxed), self.used.load(Ordering::Relaxed));
        let end = used.next_multiple_of(GROUP);
        // Somebody may have taken away something else meanwhile, or there was no room.
        let goes_on = now & LISTED != 0 || self.base.load(Ordering::Relaxed) == number;
        if !goes_on || used.saturating_sub(start) > Self::AT_ONCE {
            return self.next();
        }
        let last =
            used.checked_sub(1).map_or(0, |last| self.pages[last as usize % N].load(Ordering::Relaxed));
        for place in used..end {
            self.pages[place as usize % N].store(last, Ordering::Relaxed);
        }
        self.used.store(end, Ordering::Relaxed);
        self.start(number + 2).store(end, Ordering::Relaxed);
        let listed = word(number + 1, whole_of(now), LISTED);
        if self.now.compare_exchange(now, listed, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            self.next();
        }
    }

    /// What a vCPU has to forget that has flushed generation `flushed`, and the generation that it has flushed then. It must have
    /// published, before this call, that it does not sleep and has flushed no more than that.
    pub fn owed(&self, flushed: u64) -> (u64, Owed<'_>) {
        let now = self.now.load(Ordering::SeqCst);
        let number = number_of(now);
        if flushed == number {
            return (number, Owed::Nothing);
        }
        if now & LISTED == 0 || flushed < self.base.load(Ordering::SeqCst) {
            return (number, Owed::All);
        }
        let start = self.start(flushed + 1).load(Ordering::Relaxed);
        let pages = self.start(number + 1).load(Ordering::Relaxed).saturating_sub(start) as usize;
        if pages > N {
            return (number, Owed::All);
        }
        let start = start as usize % N;
        let first = pages.min(N - start);
        (number, Owed::Pages([&self.pages[start..start + first], &self.pages[..pages - first]]))
    }

    fn start(&self, generation: u64) -> &AtomicU64 {
        &self.starts[(generation % STEPS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const VCPUS: usize = 3;
    const PAGES: u64 = 40;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Vcpu {
        Asleep { flushed: u64 },
        Awake { flushed: u64 },
    }

    /// What each vCPU may have cached of each page: which version of its entry.
    struct World {
        translations: Translations<64>,
        vcpus: [Vcpu; VCPUS],
        cached: [BTreeMap<u64, u64>; VCPUS],
        versions: BTreeMap<u64, u64>,
        /// By generation: page and the oldest version that may be cached once it is settled.
        promised: Vec<(u64, u64, u64)>,
        listing: Option<Vec<u64>>,
        /// Taken away without a word: when, by whole generations; the page and its version.
        hidden: Vec<(u64, u64, u64)>,
    }

    impl World {
        fn settled(&self) -> u64 {
            let awake = self.vcpus.iter().filter_map(|vcpu| match vcpu {
                Vcpu::Awake { flushed } => Some(*flushed),
                Vcpu::Asleep { .. } => None,
            });
            awake.fold(self.translations.generation(), u64::min)
        }

        fn change(&mut self, page: u64) -> u64 {
            let version = self.versions.entry(page).or_default();
            *version += 1;
            *version
        }

        fn catch_up(&mut self, vcpu: usize) {
            let Vcpu::Awake { flushed } = self.vcpus[vcpu] else { return };
            let (now, owed) = self.translations.owed(flushed);
            match owed {
                Owed::Nothing => {}
                Owed::All => self.cached[vcpu].clear(),
                Owed::Pages(pages) => {
                    assert!(pages.iter().all(|pages| (pages.len() as u64).is_multiple_of(GROUP)));
                    for page in pages.into_iter().flatten() {
                        self.cached[vcpu].remove(&page.load(Ordering::Relaxed));
                    }
                }
            }
            self.vcpus[vcpu] = Vcpu::Awake { flushed: now };
        }

        fn check(&self) {
            let now = self.translations.generation();
            for (whole, page, version) in &self.hidden {
                let up_to_date = |vcpu: &Vcpu| matches!(vcpu, Vcpu::Awake { flushed } if *flushed == now);
                let caches = self.vcpus.iter().zip(&self.cached).filter(|(vcpu, _)| up_to_date(vcpu));
                let is_over = self.translations.whole() != *whole;
                for (_, cached) in caches.filter(|_| is_over) {
                    assert!(cached.get(page).is_none_or(|found| found >= version), "hidden page {page}");
                }
            }
            let settled = self.settled();
            for (generation, page, version) in &self.promised {
                if *generation > settled {
                    continue;
                }
                for (vcpu, cached) in self.vcpus.iter().zip(&self.cached) {
                    let stale = cached.get(page).is_some_and(|found| found < version);
                    let is_behind = matches!(vcpu, Vcpu::Awake { flushed } if flushed < generation);
                    assert!(!stale || is_behind || matches!(vcpu, Vcpu::Asleep { .. }), "page {page}");
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Touch(usize, u64),
        Begin,
        List(u64),
        NextListed,
        Next(u64),
        Hide(u64),
        CatchUp(usize),
        Sleep(usize),
        Wake(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..VCPUS, 0..PAGES).prop_map(|(vcpu, page)| Step::Touch(vcpu, page)),
            3 => Just(Step::Begin),
            6 => (0..PAGES).prop_map(Step::List),
            3 => Just(Step::NextListed),
            1 => (0..PAGES).prop_map(Step::Next),
            1 => (0..PAGES).prop_map(Step::Hide),
            6 => (0..VCPUS).prop_map(Step::CatchUp),
            1 => (0..VCPUS).prop_map(Step::Sleep),
            2 => (0..VCPUS).prop_map(Step::Wake),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Once a generation is settled nobody who is awake has an older translation of what it took away.
        #[test]
        fn what_is_settled_is_forgotten(steps in proptest::collection::vec(step(), 1..200)) {
            let mut world = World {
                translations: Translations::new(),
                vcpus: [Vcpu::Awake { flushed: 0 }; VCPUS],
                cached: Default::default(),
                versions: BTreeMap::new(),
                promised: Vec::new(),
                listing: None,
                hidden: Vec::new(),
            };
            for step in steps {
                match step {
                    Step::Touch(vcpu, page) => {
                        if matches!(world.vcpus[vcpu], Vcpu::Awake { .. }) {
                            let version = world.versions.get(&page).copied().unwrap_or(0);
                            world.cached[vcpu].entry(page).or_insert(version);
                        }
                    }
                    Step::Begin
                        if world.listing.is_none() && world.translations.begin(|| world.settled()) =>
                    {
                        world.listing = Some(Vec::new());
                    }
                    Step::List(page) if world.listing.is_some() => {
                        world.change(page);
                        world.translations.list(page);
                        world.listing.iter_mut().for_each(|listing| listing.push(page));
                    }
                    Step::NextListed => {
                        let Some(listing) = world.listing.take() else { continue };
                        world.translations.next_listed();
                        let now = world.translations.generation();
                        world.promised.extend(listing.iter().map(|page| (now, *page, world.versions[page])));
                    }
                    Step::Next(page) => {
                        let version = world.change(page);
                        world.translations.next();
                        world.promised.push((world.translations.generation(), page, version));
                    }
                    Step::Hide(page) => {
                        let version = world.change(page);
                        world.hidden.push((world.translations.whole(), page, version));
                    }
                    Step::CatchUp(vcpu) => world.catch_up(vcpu),
                    Step::Sleep(vcpu) => {
                        if let Vcpu::Awake { flushed } = world.vcpus[vcpu] {
                            world.vcpus[vcpu] = Vcpu::Asleep { flushed };
                        }
                    }
                    Step::Wake(vcpu) => {
                        if let Vcpu::Asleep { flushed } = world.vcpus[vcpu] {
                            world.vcpus[vcpu] = Vcpu::Awake { flushed };
                            world.catch_up(vcpu);
                        }
                    }
                    _ => {}
                }
                world.check();
            }
        }
    }

    fn list<const N: usize>(translations: &Translations<N>, pages: impl IntoIterator<Item = u64>) {
        assert!(translations.begin(|| translations.generation()));
        pages.into_iter().for_each(|page| translations.list(page));
        translations.next_listed();
    }

    fn owed<const N: usize>(translations: &Translations<N>, flushed: u64) -> Option<Vec<u64>> {
        match translations.owed(flushed).1 {
            Owed::Nothing => Some(Vec::new()),
            Owed::Pages(pages) => {
                Some(pages.into_iter().flatten().map(|page| page.load(Ordering::Relaxed)).collect())
            }
            Owed::All => None,
        }
    }

    #[test]
    fn who_is_behind_by_lists_forgets_what_they_list() {
        let translations = Translations::<32>::new();
        list(&translations, [7]);
        list(&translations, [9]);
        assert_eq!(owed(&translations, 1), Some([9; 8].into()));
        assert_eq!(owed(&translations, 0), Some([[7; 8], [9; 8]].concat()));
        assert_eq!(owed(&translations, 2), Some(Vec::new()));
        // Whoever waits for all to be forgotten goes on waiting until then.
        assert_eq!(translations.whole(), 0);
        translations.next();
        assert_eq!(translations.whole(), 1);
        assert_eq!((translations.generation(), owed(&translations, 2)), (3, None));
    }

    #[test]
    fn a_list_that_is_too_long_is_none() {
        let translations = Translations::<32>::new();
        list(&translations, 0..8);
        assert_eq!(owed(&translations, 0), Some((0..8).collect()));
        list(&translations, 0..9);
        assert_eq!(owed(&translations, 1), None);
        list(&translations, 3..4);
        assert_eq!((owed(&translations, 1), owed(&translations, 2)), (None, Some([3; 8].into())));
    }

    #[test]
    fn the_oldest_pages_are_overwritten_and_who_slept_through_them_forgets_all() {
        let translations = Translations::<32>::new();
        for generation in 0..5 {
            list(&translations, [generation]);
        }
        assert_eq!(owed(&translations, 0), None);
        assert_eq!(owed(&translations, 1), Some([1, 2, 3, 4].map(|page| [page; 8]).concat()));
    }

    #[test]
    fn nothing_is_overwritten_that_somebody_may_be_reading() {
        let translations = Translations::<32>::new();
        for generation in 0..4 {
            list(&translations, [generation]);
        }
        assert!(!translations.begin(|| 1));
        assert!(translations.begin(|| 4));
    }
}
