//! Exceptions: the descriptor table, and the ring-3 upcall that the ring-0 stub delivers them to.
//!
//! No exception is believed: a host may inject any vector with any error code. A page fault is decided by our own page
//! tables, an invalid opcode or a division error by the bytes at the interrupted instruction. What they do not confirm
//! never happened: the upcall returns and the instruction runs again.

use crate::memory;
use crate::wasm::hooks;
use crate::{task, vcpu};
use nacre_abi::hypercall::ExitReason;
use nacre_abi::layout::{AGENT_IDT, AGENT_VA, AREAS_VA, TENANT_VA_END};
use nacre_mm::GuestVirt;
use nacre_mm::address_space::Fault;
use nacre_mm::entry::Access;

const DIVIDE_ERROR: u64 = 0;
const BREAKPOINT: usize = 3;
const INVALID_OPCODE: u64 = 6;
const PAGE_FAULT: u64 = 14;

/// Exceptions in a row at one instruction before they are believed.
const SPURIOUS_LIMIT: u32 = 1000;

/// Page-fault error code bits (Intel SDM vol. 3, 4.7).
const ERROR_WRITE: u64 = 1 << 1;
const ERROR_FETCH: u64 = 1 << 4;

/// An interrupted context, as the stub copied it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Frame {
    cr2: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// The other registers of the interrupted context, in the order in which the stub pushed them.
#[repr(C)]
pub struct Registers {
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    r8_to_r15: [u64; 8],
    rbp: u64,
}

unsafe extern "C" {
    static exception_stubs: [[u8; 16]; 256];
    fn flush_gate();
}

/// Fills the interrupt descriptor table. Once, by vCPU 0, before anything can fault on purpose.
pub fn init() {
    let stubs = (&raw const exception_stubs) as u64;
    for vector in 0..256 {
        let (handler, privilege) = match vector {
            BREAKPOINT => (flush_gate as *const () as u64, 3),
            _ => (stubs + vector as u64 * 16, 0),
        };
        // A 64-bit interrupt gate to the kernel code segment (Intel SDM vol. 3, 6.14.1).
        let low = handler & 0xffff
            | u64::from(crate::arch::exceptions::KERNEL_CODE) << 16
            | (0x8e00 | privilege << 13) << 32
            | (handler >> 16 & 0xffff) << 48;
        let entry = (AGENT_VA + AGENT_IDT) as *mut [u64; 2];
        // SAFETY: the launcher mapped a page for the 256 entries of the table.
        unsafe { entry.add(vector).write_volatile([low, handler >> 32]) };
    }
}

/// Selector of the ring-0 code segment in the launcher's descriptor table.
const KERNEL_CODE: u16 = 0x08;

/// Called by the stub on the upcall stack.
#[unsafe(no_mangle)]
extern "C" fn exception_upcall(frame: &mut Frame, registers: &mut Registers) {
    match frame.vector {
        PAGE_FAULT => page_fault(frame, registers),
        INVALID_OPCODE if instruction_is(frame.rip, is_ud2) => wasm_trap(frame, registers, None),
        DIVIDE_ERROR if instruction_is(frame.rip, is_division) => wasm_trap(frame, registers, None),
        // Not confirmed, or a vector that this guest never causes: the instruction runs again. If it is the same one over
        // and over, it was real after all, such as an instruction that CPUID promised and the processor lacks.
        _ if vcpu::count_spurious(frame.rip) < SPURIOUS_LIMIT => {}
        _ => unhandled(frame),
    }
}

fn page_fault(frame: &mut Frame, registers: &mut Registers) {
    let access = match frame.error {
        error if error & ERROR_FETCH != 0 => Access::Execute,
        error if error & ERROR_WRITE != 0 => Access::Write,
        _ => Access::Read,
    };
    match memory::fault(GuestVirt(frame.cr2), access) {
        Fault::Resolved => {}
        // A stale translation of ours, or an injected fault: either way a flush lets the instruction decide.
        Fault::Spurious => crate::arch::flush_tlb(),
        Fault::OutOfMemory => {
            if let Some(task) = task::running() {
                task.frame_missing.set(true);
            }
            wasm_trap(frame, registers, Some(frame.cr2));
        }
        Fault::Violation => wasm_trap(frame, registers, Some(frame.cr2)),
    }
}

/// What [`trap_on_fiber`] finds on the stack of the task.
struct Trapped {
    frame: Frame,
    rbp: u64,
    address: Option<u64>,
}

/// Bytes below an interrupted stack pointer that its function may use.
const RED_ZONE_BYTES: u64 = 128;

/// Lets the task go on in [`trap_on_fiber`], on its own stack: wasmtime looks the instruction up under a lock, which is
/// taken on vCPU 0 only, and from here nothing can be switched.
fn wasm_trap(frame: &mut Frame, registers: &mut Registers, address: Option<u64>) {
    let record = (frame.rsp - RED_ZONE_BYTES - size_of::<Trapped>() as u64) & !63;
    let is_of_task =
        task::running().is_some_and(|task| task.has_on_stack(frame.rsp) && task.has_on_stack(record));
    // Compiled code lies in areas. What is elsewhere is no Wasm, and its stack may be another's.
    if !(AREAS_VA..TENANT_VA_END).contains(&frame.rip) || !is_of_task {
        unhandled(frame);
    }
    let trapped = Trapped { frame: *frame, rbp: registers.rbp, address };
    // SAFETY: below what the interrupted function uses of the task's stack, which has room for host functions there. A
    // return address of 0 makes the stack look as behind a call.
    unsafe {
        (record as *mut Trapped).write(trapped);
        ((record - 8) as *mut u64).write(0);
    }
    registers.rdi = record;
    frame.rsp = record - 8;
    frame.rip = trap_on_fiber as *const () as u64;
}

/// Offers an exception to wasmtime, which does not come back if it is a Wasm trap.
extern "C" fn trap_on_fiber(trapped: &Trapped) -> ! {
    let Trapped { frame, rbp, address } = trapped;
    if let Some(handler) = hooks::trap_handler() {
        handler(frame.rip as usize, *rbp as usize, address.is_some(), address.unwrap_or(0) as usize);
    }
    unhandled(frame)
}

fn unhandled(frame: &Frame) -> ! {
    crate::console::fatal(
        ExitReason::Exception,
        format_args!(
            "exception {} error {:#x} at {:#x}, address {:#x}, stack {:#x} (cs {:#x} ss {:#x} flags {:#x} rax {:#x}): a defect of the guest image",
            frame.vector,
            frame.error,
            frame.rip,
            frame.cr2,
            frame.rsp,
            frame.cs,
            frame.ss,
            frame.rflags,
            frame.rax
        ),
    )
}

/// Whether `test` holds for the bytes at `rip`, if they are code at all.
fn instruction_is(rip: u64, test: fn(&[u8]) -> bool) -> bool {
    let mut bytes = [0; 8];
    let readable = (0..8u64).take_while(|offset| memory::is_executable(GuestVirt(rip + offset))).count();
    for (offset, byte) in bytes.iter_mut().enumerate().take(readable) {
        // SAFETY: our page tables say that this address is mapped for execution, so it can be read.
        *byte = unsafe { ((rip + offset as u64) as *const u8).read_volatile() };
    }
    test(&bytes[..readable])
}

fn is_ud2(code: &[u8]) -> bool {
    code.starts_with(&[0x0f, 0x0b])
}

/// `div` and `idiv`: opcode F6 or F7 with /6 or /7 in ModRM, behind an operand size or REX prefix.
fn is_division(code: &[u8]) -> bool {
    let code = &code[code.iter().take_while(|byte| matches!(byte, 0x66 | 0x40..=0x4f)).count()..];
    matches!(code, [0xf6 | 0xf7, modrm, ..] if modrm >> 3 & 7 >= 6)
}
