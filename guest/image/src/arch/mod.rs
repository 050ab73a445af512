//! The machine: instructions and assembly that the rest of the guest reaches through functions.

pub mod clock;
pub mod cpu;
pub mod exceptions;
pub mod libc;

use crate::vcpu;
use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use core::arch::{asm, global_asm};
use core::sync::atomic::AtomicU64;
use nacre_abi::hypercall;
use nacre_abi::{VcpuId, boot};
use nacre_mm::translations::GROUP;

global_asm!(include_str!("stub.S"), options(att_syntax, raw));

unsafe extern "C" {
    fn fiber_switch(save: *mut u64, to: u64);
    fn fiber_start();
}

/// Writes to a port: a hypercall.
pub fn hypercall(port: u16, value: u32) {
    // SAFETY: a port write from ring 3 changes no memory of ours; the I/O bitmap allows the ports of `hypercall`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) }
}

/// Ends the CVM.
pub fn exit(reason: hypercall::ExitReason) -> ! {
    loop {
        hypercall(hypercall::EXIT, reason.code());
    }
}

/// Asks the host to let `vcpu` run.
pub fn wake(vcpu: VcpuId) {
    hypercall(hypercall::wake(vcpu), 0);
}

/// Forgets all translations that this vCPU has cached.
pub fn flush_tlb() {
    // Whoever was interrupted in `flush_pages` then forgets more than it has to.
    // SAFETY: the words are this vCPU's. The gate reloads CR3 and returns with all registers as they were.
    unsafe {
        vcpu::listed_words().write_volatile([0; 2]);
        asm!("int3", options(preserves_flags));
    }
}

/// Forgets the translations of these addresses that this vCPU has cached. Whole groups of [`GROUP`].
pub fn flush_pages(pages: &[AtomicU64]) {
    /// Pages in one go: ring 0 is not interrupted.
    const AT_ONCE: usize = 64 * GROUP as usize;
    let words = vcpu::listed_words();
    for pages in pages.chunks(AT_ONCE) {
        let range = pages.as_ptr_range();
        // SAFETY: the words are this vCPU's, and for its stub alone; the list is memory of the agent's, mapped for good. The gate
        // returns with all registers as they were.
        unsafe {
            words.write_volatile([range.start as u64, range.end as u64]);
            asm!("int3", options(preserves_flags));
            words.write_volatile([0; 2]);
        }
    }
}

/// Begins to bring what `pointer` names into this processor's cache: all its lines at once, not one after the other as they are
/// needed.
pub fn prefetch<T>(pointer: *const T) {
    const LINE_BYTES: usize = 64;
    for offset in (0..size_of::<T>()).step_by(LINE_BYTES) {
        // SAFETY: a hint, which cannot fault whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(pointer.wrapping_byte_add(offset).cast()) };
    }
}

/// The time stamp counter, not reordered before earlier loads.
pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Saves the running context's stack pointer in `*save` and goes on with the context whose saved one is `to`.
///
/// # Safety
/// `to` was saved by this function or made by [`new_fiber`], its stack is intact, and no other vCPU runs on it. `save` is
/// valid until somebody switches back.
pub unsafe fn switch(save: *mut u64, to: u64) {
    // SAFETY: by this function's contract.
    unsafe { fiber_switch(save, to) }
}

/// Prepares a stack so that switching to the returned stack pointer calls `entry(argument)`.
///
/// # Safety
/// `top` is the 16-byte aligned end of at least 256 writable bytes that nobody else uses.
pub unsafe fn new_fiber(top: u64, entry: extern "C" fn(u64) -> !, argument: u64) -> u64 {
    // Popped by fiber_switch: mxcsr and x87 control word, r15 r14 r13 r12 rbx rbp, return address.
    let frame: [u64; 8] = [
        0x037f << 32 | 0x1f80,
        0,
        0,
        entry as *const () as u64,
        argument,
        0,
        0,
        fiber_start as *const () as u64,
    ];
    let at = top - 16 - size_of_val(&frame) as u64;
    // SAFETY: inside the bytes the caller promised.
    unsafe { (at as *mut [u64; 8]).write(frame) };
    at
}

/// The boot information page, as the launcher wrote it.
pub fn boot_info_bytes() -> [u8; boot::ENCODED_BYTES] {
    let page = (nacre_abi::layout::AGENT_VA + nacre_abi::layout::AGENT_BOOT_INFO)
        as *const [u8; boot::ENCODED_BYTES];
    // SAFETY: the launcher maps the agent arena there before the first instruction.
    unsafe { page.read() }
}
