//! The shared window: the only memory both the guest and its host read and write.
//!
//! ```text
//! 0x0000   control page: words below
//! 0x1000   shared page: demand, grant and reclaim, see [`elastic`](crate::elastic)
//! 0x2000   mailboxes, MAILBOX_BYTES per vCPU: hypercall arguments
//! 0x40000  ring to the guest, consumed by vCPU 0
//!          rings to the host, one per vCPU, produced by that vCPU alone
//!          pipes of migrations, to the guest and to the host, for each channel
//! ```
//!
//! The window is a slice of atomic words, so that all code that touches it is safe code: the other side may change any
//! word at any time, and each access yields *some* value, once. Whoever reads copies first, then validates, then uses.

use crate::elastic::{self, ElasticPage};
use crate::migrate::{CONTROL_PIPE_BYTES, FIRST_LANE, MoveWord, PIPE_BYTES};
use crate::pipe::{PIPE_HEADER_BYTES, Pipe};
use crate::ring::Ring;
use crate::sync::{AtomicU64, Ordering};
use crate::{MAX_VCPUS, VcpuId};

/// First word of the control page, written by the host before launch.
pub const MAGIC: u64 = u64::from_le_bytes(*b"NACREWIN");
/// Bytes of one vCPU's mailbox.
pub const MAILBOX_BYTES: u64 = 2048;
/// Offset of the first mailbox.
pub const MAILBOXES: u64 = 0x2000;
/// Offset of the ring to the guest.
pub const RINGS: u64 = 0x4_0000;
/// Data bytes of the ring to the guest.
pub const TO_GUEST_BYTES: u64 = 1 << 20;
/// Data bytes of each ring to the host.
pub const TO_HOST_BYTES: u64 = 256 << 10;
/// Bytes of a ring's indices, before its data.
pub const RING_HEADER_BYTES: u64 = 4096;

const _: () = assert!(MAILBOXES + MAX_VCPUS as u64 * MAILBOX_BYTES <= RINGS, "mailboxes reach the rings");

/// Words of the control page. The host writes the first ones before launch; all are hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlWord {
    /// [`MAGIC`].
    Magic = 0,
    /// The host's [`ABI_VERSION`](crate::ABI_VERSION).
    AbiVersion = 1,
    /// Rate of the time stamp counter in kHz.
    TscKhz = 2,
    /// Nanoseconds since 1970 at the moment of the next word.
    WallClockNs = 3,
    /// Time stamp counter at the moment of the wall clock.
    WallClockTsc = 4,
    /// Guest: 1 while vCPU 0 is about to park or parked, so the host must wake it after writing to its ring. Who does so
    /// sets it to 0: others need not wake it again.
    NormalParked = 16,
    /// Host: 0 while the thread that reads the rings sleeps, so the guest must ring the doorbell after writing. Who
    /// does so sets it to 1: others need not ring again.
    HostAwake = 24,
    /// Host: 1 while somebody waits for room on the ring to the guest, so the guest must ring the doorbell after reading.
    HostWantsRoom = 32,
}

/// Bytes of the window of a CVM with this many vCPUs and lanes of a migration.
pub const fn bytes(vcpus: u32, lanes: u32) -> u64 {
    pipe_offset(vcpus, FIRST_LANE + lanes, false)
}

/// Where the pipes of a channel begin: the one to the guest, or the one to the host.
const fn pipe_offset(vcpus: u32, channel: u32, to_host: bool) -> u64 {
    let rings =
        RINGS + RING_HEADER_BYTES + TO_GUEST_BYTES + vcpus as u64 * (RING_HEADER_BYTES + TO_HOST_BYTES);
    let start = crate::layout::round_up(rings, crate::PAGE_BYTES);
    let before = match channel {
        0 => 0,
        channel => {
            2 * (PIPE_HEADER_BYTES + CONTROL_PIPE_BYTES)
                + (channel as u64 - 1) * 2 * (PIPE_HEADER_BYTES + PIPE_BYTES)
        }
    };
    start + before + to_host as u64 * (PIPE_HEADER_BYTES + pipe_bytes(channel))
}

const fn pipe_bytes(channel: u32) -> u64 {
    if channel == 0 { CONTROL_PIPE_BYTES } else { PIPE_BYTES }
}

/// A view of the whole window.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    words: &'a [AtomicU64],
    vcpus: u32,
    lanes: u32,
}

impl<'a> Window<'a> {
    /// A window over `words`, which must hold at least [`bytes`]`(vcpus, lanes)`; `None` if it does not.
    pub fn new(words: &'a [AtomicU64], vcpus: u32, lanes: u32) -> Option<Window<'a>> {
        let fits = vcpus <= MAX_VCPUS && words.len() as u64 >= bytes(vcpus, lanes) / 8;
        fits.then_some(Window { words, vcpus, lanes })
    }

    /// Lanes whose pipes are in this window.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Reads a word about migrations.
    pub fn move_word(&self, word: MoveWord) -> u64 {
        self.words[word as usize].load(Ordering::SeqCst)
    }

    /// Writes a word about migrations.
    pub fn set_move_word(&self, word: MoveWord, value: u64) {
        self.words[word as usize].store(value, Ordering::SeqCst);
    }

    /// Sets bits of a word about migrations.
    pub fn set_move_bits(&self, word: MoveWord, bits: u64) {
        self.words[word as usize].fetch_or(bits, Ordering::SeqCst);
    }

    /// Takes a word about migrations: it is zero then.
    pub fn take_move_word(&self, word: MoveWord) -> u64 {
        self.words[word as usize].swap(0, Ordering::SeqCst)
    }

    /// The pipes of a channel: to the guest, and to the host; `None` for a channel that there is not.
    pub fn pipes(&self, channel: u32) -> Option<[Pipe<'a>; 2]> {
        let pipe = |to_host| {
            let offset = pipe_offset(self.vcpus, channel, to_host);
            let words = self.part(offset, PIPE_HEADER_BYTES);
            Pipe::new(words, self.part(offset + PIPE_HEADER_BYTES, pipe_bytes(channel)))
        };
        (channel < FIRST_LANE + self.lanes).then(|| [pipe(false), pipe(true)])
    }

    /// vCPUs whose rings are in this window.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Reads a control word once.
    pub fn control(&self, word: ControlWord) -> u64 {
        self.words[word as usize].load(Ordering::SeqCst)
    }

    /// Writes a control word.
    pub fn set_control(&self, word: ControlWord, value: u64) {
        self.words[word as usize].store(value, Ordering::SeqCst);
    }

    /// Writes a control word and returns what was there.
    pub fn swap_control(&self, word: ControlWord, value: u64) -> u64 {
        self.words[word as usize].swap(value, Ordering::SeqCst)
    }

    /// The shared page.
    pub fn elastic(&self) -> ElasticPage<'a> {
        ElasticPage::new(self.part(elastic::PAGE_OFFSET, elastic::PAGE_BYTES))
    }

    /// The mailbox of `vcpu` as words.
    pub fn mailbox(&self, vcpu: VcpuId) -> &'a [AtomicU64] {
        self.part(MAILBOXES + vcpu.index() as u64 * MAILBOX_BYTES, MAILBOX_BYTES)
    }

    /// The ring that the host produces and vCPU 0 consumes.
    pub fn to_guest(&self) -> Ring<'a> {
        self.ring(RINGS, TO_GUEST_BYTES)
    }

    /// The ring that `vcpu` produces and the host consumes; `None` for a vCPU the CVM has not.
    pub fn to_host(&self, vcpu: VcpuId) -> Option<Ring<'a>> {
        let start = RINGS + RING_HEADER_BYTES + TO_GUEST_BYTES;
        let stride = RING_HEADER_BYTES + TO_HOST_BYTES;
        ((vcpu.index() as u32) < self.vcpus)
            .then(|| self.ring(start + vcpu.index() as u64 * stride, TO_HOST_BYTES))
    }

    fn ring(&self, offset: u64, data_bytes: u64) -> Ring<'a> {
        Ring::new(self.part(offset, RING_HEADER_BYTES), self.part(offset + RING_HEADER_BYTES, data_bytes))
    }

    fn part(&self, offset: u64, bytes: u64) -> &'a [AtomicU64] {
        &self.words[(offset / 8) as usize..((offset + bytes) / 8) as usize]
    }
}
