//! What each vCPU has for itself: the words its GS base points to, its stacks, its task state segment.

use crate::arch;
use crate::sched::Own;
use crate::task::Task;
use core::arch::asm;
use core::cell::Cell;
use core::sync::atomic::AtomicU64;
use nacre_abi::VcpuId;
use nacre_abi::layout::{
    Layout, TSS_IO_BITMAP, TSS_LIMIT, TSS_OFFSET, VCPU_LOCAL, VCPU_RING0_STACK, VCPU_UPCALL_STACK,
};

/// The per-vCPU words. GS points here; `current` must stay the first word, assembly and wasmtime's hooks read it.
#[repr(C)]
pub struct Local {
    /// The task that runs here, or a stand-in when none does.
    current: Cell<*mut Task>,
    /// Where the scheduler's context is saved while a task runs.
    pub scheduler_sp: Cell<u64>,
    id: Cell<u64>,
    /// What this vCPU has flushed; see `translations`. Read by the others.
    pub flushed: AtomicU64,
    /// wasmtime's thread-local words while no task runs.
    idle_tls: Cell<[u64; 2]>,
    /// Where the last exception was that nothing confirmed, and how many there were in a row.
    spurious: Cell<(u64, u32)>,
    /// The last exception that would end a task or this CVM and is not believed yet.
    doubted: Cell<Doubted>,
    /// What this vCPU adds to its clock, in nanoseconds: see `arch::clock`.
    pub clock_offset_ns: Cell<i64>,
    /// Locks that the code running here holds.
    locks: Cell<i32>,
    /// What this vCPU's scheduler owns.
    own: Cell<Option<&'static Own>>,
}

impl Local {
    /// What this vCPU's scheduler owns.
    ///
    /// # Panics
    /// Before [`set_own`]: a mistake in the order of the boot.
    pub fn own(&self) -> &'static Own {
        self.own.get().expect("the scheduler is not set up on this vCPU")
    }
}

/// Tells this vCPU what its scheduler owns.
pub fn set_own(own: &'static Own) {
    local().own.set(Some(own));
}

/// Prepares the per-vCPU memory of `vcpu` and points GS to it. Called once by the vCPU itself, first thing.
///
/// # Safety
/// `vcpu` is the vCPU that runs this, and the launcher mapped its block.
pub unsafe fn init(vcpu: VcpuId) {
    let local = Layout::vcpu_part_va(vcpu.index(), VCPU_LOCAL);
    // SAFETY: the block belongs to this vCPU alone and nothing has used it yet.
    unsafe {
        (local as *mut Local).write(Local {
            current: Cell::new(core::ptr::null_mut()),
            scheduler_sp: Cell::new(0),
            id: Cell::new(vcpu.index() as u64),
            flushed: AtomicU64::new(0),
            idle_tls: Cell::new([0; 2]),
            spurious: Cell::new((0, 0)),
            doubted: Cell::new(Doubted::default()),
            clock_offset_ns: Cell::new(0),
            locks: Cell::new(0),
            own: Cell::new(None),
        });
        asm!("wrgsbase {}", in(reg) local, options(nostack, preserves_flags));
    }
    set_current(core::ptr::null_mut());
    init_stacks(vcpu);
}

/// Where the words of the task state segment and of the stacks are that the processor and the stub use, and what they hold.
struct StubWords {
    /// Intel SDM vol. 3, 8.7: RSP0 is at 4, the offset of the I/O bitmap at 0x66.
    tss: u64,
    /// Top of the ring-0 stack; the words there are `upcall`, where RSP0 is, and a list of addresses.
    ring0: u64,
    /// The two words at the top of the upcall stack.
    upcall: u64,
    upcall_words: [u64; 2],
}

impl StubWords {
    fn of(vcpu: VcpuId) -> StubWords {
        let ring0 = Layout::vcpu_stack_top(vcpu.index(), VCPU_RING0_STACK) - 64;
        let upcall = Layout::vcpu_stack_top(vcpu.index(), VCPU_UPCALL_STACK) - 64;
        StubWords {
            tss: Layout::vcpu_part_va(vcpu.index(), VCPU_LOCAL) + TSS_OFFSET,
            ring0,
            upcall,
            upcall_words: [
                ring0 - size_of::<arch::exceptions::Frame>() as u64,
                upcall - VCPU_UPCALL_STACK.bytes + 64,
            ],
        }
    }
}

/// Fills the task state segment and the words that the stub finds on the ring-0 and upcall stacks.
fn init_stacks(vcpu: VcpuId) {
    let StubWords { tss, ring0, upcall, upcall_words } = StubWords::of(vcpu);
    // SAFETY: all of it lies in this vCPU's block. A port may be written if its bit is 0, and a byte of ones ends the
    // bitmap.
    unsafe {
        ((tss + 4) as *mut u64).write_unaligned(ring0);
        ((tss + 0x66) as *mut u16).write(TSS_IO_BITMAP as u16);
        ((tss + TSS_LIMIT) as *mut u8).write(0xff);
        (ring0 as *mut [u64; 4]).write([upcall, tss + 4, 0, 0]);
        (upcall as *mut [u64; 2]).write(upcall_words);
    }
}

/// Where the stub finds which translations to forget: the begin and the end of a list of addresses; begin 0 for all.
pub fn listed_words() -> *mut [u64; 2] {
    (StubWords::of(id()).ring0 + 16) as *mut [u64; 2]
}

/// Whether what this vCPU wrote at its start for the stub is still there.
#[cfg(feature = "debug-image")]
pub fn stub_words_are_intact(vcpu: VcpuId) -> bool {
    let StubWords { tss, ring0, upcall, upcall_words } = StubWords::of(vcpu);
    // SAFETY: mapped for good by the launcher, and only written by `init_stacks`.
    unsafe {
        let started = ((tss + 4) as *const u64).read_unaligned() != 0;
        !started
            || ((tss + 4) as *const u64).read_unaligned() == ring0
                && ((tss + 0x66) as *const u16).read() == TSS_IO_BITMAP as u16
                && (ring0 as *const [u64; 2]).read_volatile() == [upcall, tss + 4]
                && (upcall as *const [u64; 2]).read_volatile() == upcall_words
    }
}

/// What another vCPU has flushed.
///
/// # Panics
/// If the CVM has no such vCPU.
pub fn flushed(vcpu: usize) -> &'static AtomicU64 {
    assert!(vcpu < crate::memory::layout().params.vcpus as usize);
    let local = Layout::vcpu_part_va(vcpu, VCPU_LOCAL) as *const Local;
    // SAFETY: the launcher mapped the block of each vCPU, zeroed; of its words only this atomic one is referred to.
    unsafe { &(*local).flushed }
}

/// The words of the vCPU that runs this. Code on a fiber must ask anew after every switch.
pub fn local() -> &'static Local {
    let local: u64;
    // SAFETY: GS points to this vCPU's words from `init` on. Not `pure`: after a switch the answer is another.
    unsafe {
        asm!("rdgsbase {}", out(reg) local, options(nostack, preserves_flags));
        &*(local as *const Local)
    }
}

/// The vCPU that runs this.
pub fn id() -> VcpuId {
    VcpuId::new(local().id.get() as u32).unwrap_or(VcpuId::NORMAL)
}

/// Sets the task that runs here; null for none.
pub fn set_current(task: *mut Task) {
    let local = local();
    let task = if task.is_null() { local.idle_tls.as_ptr().cast() } else { task };
    local.current.set(task);
}

/// The task that runs here, if one does.
pub fn current() -> Option<*mut Task> {
    let local = local();
    let task = local.current.get();
    (task != local.idle_tls.as_ptr().cast()).then_some(task)
}

/// Notes that one of wasmtime's locks was taken (1) or released (-1) here. Nothing is switched out while it holds one, so
/// taking and releasing happen on the same vCPU.
pub fn count_lock(change: i32) {
    let locks = &local().locks;
    locks.set(locks.get() + change);
}

/// Locks held here.
pub fn locks_held() -> i32 {
    local().locks.get()
}

/// An exception that may have been invented: vector, instruction and address, how often it came, and when last.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Doubted {
    what: (u64, u64, u64),
    times: u32,
    tsc: u64,
}

/// How often an exception must come before it is believed, and the cycles between two of them: running an instruction
/// again that really fails takes a few ten thousand.
const BELIEVED_AFTER: u32 = 3;
const AT_ONCE_CYCLES: u64 = 400_000;

/// Whether an exception has come several times on end at the same instruction, with the same vector and address. What is
/// real comes again at once when the instruction runs again; what a host invents does not, unless it stops this vCPU
/// at that very instruction each time.
pub fn comes_again(vector: u64, rip: u64, address: u64) -> bool {
    let cell = &local().doubted;
    let (before, now) = (cell.get(), arch::rdtsc());
    let what = (vector, rip, address);
    let on_end = before.what == what && now.wrapping_sub(before.tsc) < AT_ONCE_CYCLES;
    let times = if on_end { before.times + 1 } else { 1 };
    let believed = times >= BELIEVED_AFTER;
    cell.set(if believed { Doubted::default() } else { Doubted { what, times, tsc: now } });
    believed
}

/// Counts an exception at `rip` that nothing confirms; returns how many there have been there in a row.
pub fn count_spurious(rip: u64) -> u32 {
    let spurious = &local().spurious;
    let (last, count) = spurious.get();
    let count = if last == rip { count.saturating_add(1) } else { 1 };
    spurious.set((rip, count));
    count
}
