//! What moves beside pages, and how pages are read here and put in place there.
//!
//! Two units of state follow the pages of the last round: the *head* ([`Head`]) with what the agent gives away and the sealed
//! roots, and the *map*: which pages there are, with which permissions. The map decides: a page that is in it and never came is zero, one
//! that came and is not in it is taken away.

use super::lanes::TENANT_IMAGE_VA;
use crate::agent::agent_static;
use crate::normal::NormalCell;
use crate::sealed::tls;
use crate::{areas, memory, task};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use nacre_abi::layout::{HEAP_VA, IMAGE_VA_END, TENANT_VA_END};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_migrate::destination::{Change, Memory, NoMemory};
use nacre_migrate::wire::TAG_BYTES;
use nacre_migrate::{Extent, ImageHash, Place};
use nacre_mm::GuestVirt;
use nacre_mm::address_space::PageRange;
use nacre_mm::entry::{Leaf, Perms, Size};
use nacre_mm::page_tables::Run;

/// The number of the head.
pub const HEAD: u16 = 0;
/// The number of the map.
pub const MAP: u16 = 1;
/// Bytes of the head.
pub const HEAD_BYTES: usize = 256;
/// Where the head's words begin.
const WORDS_AT: usize = ROOT_BYTES + TAG_BYTES;
/// Bytes of a run in the map.
const RUN_BYTES: usize = 16;
/// Bytes that both have at most together.
pub const STATE_BYTES: usize = LARGE_PAGE_BYTES as usize;

/// Bytes of the roots: what makes tasks run ([`task::uproot`]), and the key of TLS services with a word that says whether there is one.
pub const ROOT_BYTES: usize = task::ROOT_BYTES + 8 + 32;

/// What the tenant can't run without, and what its agent gives away with it, as it travels. Wiped when it is dropped.
pub struct Roots(pub [u8; ROOT_BYTES]);

impl Roots {
    /// Puts the tasks' roots in their place.
    pub fn plant(&self) {
        plant_tasks(&self.0);
    }

    /// Puts the key in its place, where there never was one.
    pub fn plant_key(&self) {
        let rest = &self.0[task::ROOT_BYTES..];
        if rest[0] == 1
            && let Some(secret) = rest[8..].first_chunk()
        {
            tls::import(secret);
        }
    }
}

impl Drop for Roots {
    fn drop(&mut self) {
        wipe_bytes(&mut self.0);
    }
}

fn plant_tasks(roots: &[u8; ROOT_BYTES]) {
    if let Some(tasks) = roots.first_chunk() {
        task::plant(tasks);
    }
}

fn wipe_bytes(bytes: &mut [u8]) {
    bytes.fill(0);
    core::hint::black_box(bytes);
}

agent_static! {
    /// The roots of the tenant that is parked here: in this one place, so that wiping it leaves none.
    static PARKED_ROOTS: NormalCell<[u8; ROOT_BYTES]> = NormalCell::new([0; ROOT_BYTES]);
}

/// Takes the roots away from the tenant. All its tasks are parked.
pub fn take_roots() {
    PARKED_ROOTS.with(|roots| {
        let Some((tasks, rest)) = roots.split_first_chunk_mut() else { return };
        task::uproot(tasks);
        if let Some((word, secret)) = rest.split_first_chunk_mut::<8>()
            && let Some(secret) = secret.first_chunk_mut()
        {
            word[0] = u8::from(tls::export(secret));
        }
    });
}

/// Gives them back.
pub fn plant_roots() {
    PARKED_ROOTS.with(|roots| {
        plant_tasks(roots);
        wipe_bytes(roots);
    });
}

/// Wipes them.
pub fn wipe_roots() {
    PARKED_ROOTS.with(|roots| wipe_bytes(roots));
}

/// A copy of them, in which `seal` encrypts them in place; its tag.
///
/// # Errors
/// `seal`'s.
pub fn sealed_roots<T, E>(seal: impl FnOnce(&mut [u8]) -> Result<T, E>) -> Result<(Roots, T), E> {
    let mut roots = Roots([0; ROOT_BYTES]);
    PARKED_ROOTS.with(|parked| roots.0.copy_from_slice(parked));
    let tag = seal(&mut roots.0)?;
    Ok((roots, tag))
}

/// Where head and map are put together, or arrive: memory of the agent's, one migration at a time.
struct Store {
    bytes: UnsafeCell<*mut u8>,
    /// Bytes of the map.
    map_bytes: AtomicUsize,
    head_bytes: AtomicUsize,
}

// SAFETY: the memory is written by vCPU 0 before lane 0 is told to send it, or by whoever has claimed lane 0, by which all state
// travels; vCPU 0 reads it when lane 0 has done its duty.
unsafe impl Sync for Store {}

agent_static! {
    static STORE: Store = Store {
        bytes: UnsafeCell::new(core::ptr::null_mut()),
        map_bytes: AtomicUsize::new(0),
        head_bytes: AtomicUsize::new(0),
    };
}

/// Gives head and map their memory. By vCPU 0, when nobody works on a lane.
pub fn provide(memory: &'static mut [u8]) {
    assert!(memory.len() >= STATE_BYTES, "too little for head and map");
    // SAFETY: nobody works on a lane.
    unsafe { *STORE.bytes.get() = memory.as_mut_ptr() }
    STORE.map_bytes.store(0, Ordering::Relaxed);
    STORE.head_bytes.store(0, Ordering::Relaxed);
}

/// All of it. By whoever may touch it now: see [`Store`].
fn bytes() -> &'static mut [u8] {
    // SAFETY: provided for the whole migration, and touched by one at a time, as `Store` says.
    unsafe { core::slice::from_raw_parts_mut(*STORE.bytes.get(), STATE_BYTES) }
}

/// The parts of the head, little-endian words but for the roots.
pub struct Head {
    /// The roots, sealed, and their tag.
    pub roots: Roots,
    /// See there.
    pub tag: [u8; TAG_BYTES],
    /// The source's clocks when its tasks were parked.
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970.
    pub wall_ns: u64,
    /// Bytes of the map.
    pub map_bytes: u64,
    /// Tasks that its table has room for.
    pub max_tasks: u64,
}

impl Head {
    fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..ROOT_BYTES].copy_from_slice(&self.roots.0);
        bytes[ROOT_BYTES..WORDS_AT].copy_from_slice(&self.tag);
        let words = [self.monotonic_ns, self.wall_ns, self.map_bytes, self.max_tasks];
        for (chunk, word) in bytes[WORDS_AT..].chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; HEAD_BYTES]) -> Head {
        let word = |number: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[WORDS_AT + 8 * number..WORDS_AT + 8 * number + 8]);
            u64::from_le_bytes(word)
        };
        let (mut roots, mut tag) = (Roots([0; ROOT_BYTES]), [0; TAG_BYTES]);
        roots.0.copy_from_slice(&bytes[..ROOT_BYTES]);
        tag.copy_from_slice(&bytes[ROOT_BYTES..WORDS_AT]);
        Head { roots, tag, monotonic_ns: word(0), wall_ns: word(1), map_bytes: word(2), max_tasks: word(3) }
    }
}

/// Writes the map as things are now; returns its length in bytes, or `None` if it has more runs than fit.
pub fn draw_map() -> Option<usize> {
    let room = &mut bytes()[HEAD_BYTES..];
    let (mut used, mut fits) = (0, true);
    let range = PageRange::new(GuestVirt(HEAP_VA), TENANT_VA_END - HEAP_VA)?;
    memory::space().runs(range, &mut |run| {
        // What is hidden is empty memory that somebody may map again.
        if run.hidden {
            return;
        }
        match room.get_mut(used..used + RUN_BYTES) {
            Some(place) => {
                place.copy_from_slice(&encode_run(&run));
                used += RUN_BYTES;
            }
            None => fits = false,
        }
    });
    STORE.map_bytes.store(used, Ordering::Release);
    fits.then_some(used)
}

/// Puts the head in its place.
pub fn set_head(head: &Head) {
    bytes()[..HEAD_BYTES].copy_from_slice(&head.encode());
    STORE.head_bytes.store(HEAD_BYTES, Ordering::Release);
}

/// The head that came; `None` if it did not, or is not what a source sends.
pub fn head() -> Option<Head> {
    let head = Head::decode(bytes().first_chunk()?);
    let came = STORE.head_bytes.load(Ordering::Acquire) == HEAD_BYTES;
    (came && head.map_bytes == STORE.map_bytes.load(Ordering::Acquire) as u64).then_some(head)
}

/// Wipes head and map.
pub fn wipe() {
    // SAFETY: see `bytes`; null if nothing was ever provided.
    if !unsafe { *STORE.bytes.get() }.is_null() {
        bytes()[..HEAD_BYTES].fill(0);
        core::hint::black_box(bytes());
    }
}

fn encode_run(run: &Run) -> [u8; RUN_BYTES] {
    let mut bytes = [0; RUN_BYTES];
    bytes[..8].copy_from_slice(&run.start.0.to_le_bytes());
    bytes[8..14].copy_from_slice(&run.pages.to_le_bytes()[..6]);
    bytes[14] = match run.perms {
        Perms::Read => 0,
        Perms::ReadWrite => 1,
        Perms::ReadExecute => 2,
    };
    bytes[15] = u8::from(run.promised);
    bytes
}

fn decode_run(bytes: &[u8; RUN_BYTES]) -> Option<Run> {
    let word = |from: usize, count: usize| {
        bytes[from..from + count].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    let (start, pages) = (word(0, 8), word(8, 6));
    let end = pages.checked_mul(PAGE_BYTES).and_then(|bytes| start.checked_add(bytes))?;
    let valid =
        start.is_multiple_of(PAGE_BYTES) && start >= HEAP_VA && end <= TENANT_VA_END && bytes[15] <= 1;
    let perms = match bytes[14] {
        0 => Perms::Read,
        1 => Perms::ReadWrite,
        2 => Perms::ReadExecute,
        _ => return None,
    };
    valid.then_some(Run { start: GuestVirt(start), pages, perms, promised: bytes[15] == 1, hidden: false })
}

/// Makes the address space what the map says. `None` if the map breaks its rules, or memory is short.
pub fn follow_map() -> Option<()> {
    let length = STORE.map_bytes.load(Ordering::Acquire);
    let (runs, rest) = bytes().get(HEAD_BYTES..HEAD_BYTES + length)?.as_chunks::<RUN_BYTES>();
    if !rest.is_empty() {
        return None;
    }
    let mut end = 0;
    for run in runs {
        let run = decode_run(run).filter(|run| run.start.0 >= end)?;
        end = run.start.0 + run.pages * PAGE_BYTES;
    }
    let range = PageRange::new(GuestVirt(HEAP_VA), TENANT_VA_END - HEAP_VA)?;
    memory::settle_runs(range, runs.iter().filter_map(decode_run)).ok()
}

/// Whether a page may come after the hand-over: only what nobody but a task's own code, on its own stack, ever touches. That is the linear
/// memories; heap, statics, code and stacks come before.
pub fn may_wait(place: Place) -> bool {
    place.extent() != Extent::State && areas::is_linear_memory(place.address())
}

/// Copies a piece of a large page's content.
pub fn read_piece(page: Place, offset: usize, buffer: &mut [u8]) {
    memory::read_page(page.address() + offset as u64, buffer);
}

/// Copies the content of a place to the front of `buffer`; returns its length, or `None` if there is no such page any more: then zeros do.
pub fn read(place: Place, buffer: &mut [u8]) -> Option<usize> {
    match place.extent() {
        Extent::State => {
            let (from, length) = match place.address() as u16 {
                HEAD => (0, STORE.head_bytes.load(Ordering::Acquire)),
                _ => (HEAD_BYTES, STORE.map_bytes.load(Ordering::Acquire)),
            };
            buffer.get_mut(..length)?.copy_from_slice(bytes().get(from..from + length)?);
            Some(length)
        }
        _ => {
            let buffer = buffer.get_mut(..place.bytes())?;
            memory::read_page(place.address(), buffer);
            Some(buffer.len())
        }
    }
}

agent_static! {
    static RUNNING: AtomicBool = AtomicBool::new(false);
}

/// Whether tasks run already: then a page comes to its place only if that still waits for it.
pub fn is_running() -> bool {
    RUNNING.load(Ordering::Relaxed)
}

/// Tasks are about to run.
pub fn set_running() {
    RUNNING.store(true, Ordering::Relaxed);
}

/// The tenant's memory where it arrives.
pub struct Arrival;

fn size_of_place(place: Place) -> Option<(GuestVirt, Size)> {
    let at = GuestVirt(place.address());
    let (size, bytes) = match place.extent() {
        Extent::Small => (Size::Small, PAGE_BYTES),
        Extent::Large => (Size::Large, LARGE_PAGE_BYTES),
        Extent::State => return None,
    };
    let end = at.0 + bytes;
    let inside =
        (at.0 >= TENANT_IMAGE_VA && end <= IMAGE_VA_END) || (at.0 >= HEAP_VA && end <= TENANT_VA_END);
    inside.then_some((at, size))
}

/// The hash of this image, which both ends have to have: what moves refers to code and constants by address.
pub fn image() -> [u8; 32] {
    let mut hash = ImageHash::default();
    memory::for_each_constant(&mut |address, content| hash.add(address, content));
    hash.finish()
}

/// What of the image can't be written is in every CVM of this image.
fn is_writable(at: GuestVirt) -> bool {
    let leaf = memory::space().lookup(at).map(|mapping| mapping.leaf);
    matches!(leaf, Some(Leaf::Present { perms: Perms::ReadWrite, .. }))
}

impl Memory for Arrival {
    fn change(&mut self, place: Place, change: Change<'_>) -> Result<(), NoMemory> {
        if place.extent() == Extent::State {
            let Change::Data(content) = change else { return Ok(()) };
            let (from, length) = match place.address() as u16 {
                HEAD if content.len() == HEAD_BYTES => (0, &STORE.head_bytes),
                MAP if content.len() <= STATE_BYTES - HEAD_BYTES => (HEAD_BYTES, &STORE.map_bytes),
                _ => return Err(NoMemory),
            };
            bytes()[from..from + content.len()].copy_from_slice(content);
            length.store(content.len(), Ordering::Release);
            return Ok(());
        }
        let (at, size) = size_of_place(place).ok_or(NoMemory)?;
        let of_image = at.0 < IMAGE_VA_END;
        match change {
            Change::Data(_) | Change::Piece(..) if of_image && !is_writable(at) => Err(NoMemory),
            Change::Data(content) => {
                memory::place_content(at, size, content, is_running()).map_err(|_| NoMemory)
            }
            // Pieces come before the hand-over only.
            Change::Piece(offset, content) => {
                memory::place_piece(at, offset as u64, content).map_err(|_| NoMemory)
            }
            Change::Zero if of_image => memory::zero_page(at, size).map_err(|_| NoMemory),
            Change::Zero => memory::place_zero(at, size).map_err(|_| NoMemory),
            Change::Outstanding | Change::Absent if of_image => Err(NoMemory),
            Change::Outstanding => memory::place_missing(at, size).map_err(|_| NoMemory),
            Change::Absent => {
                memory::remove_page(at, size);
                Ok(())
            }
        }
    }
}
