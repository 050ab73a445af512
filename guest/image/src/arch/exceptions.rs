//! Exceptions: the descriptor table, and the ring-3 upcall that the ring-0 stub delivers them to.
//!
//! No exception is believed: a host may inject any vector with any error code. A page fault is decided by our own page
//! tables, an invalid opcode or a division error by the bytes at the interrupted instruction. What they do not confirm
//! never happened: the upcall returns and the instruction runs again. What would end a task is compared with the instruction
//! itself (`doubt`): the address it uses, not the one in CR2, or its divisor. Where that can't be told, the instruction
//! runs again, and what is real comes again at once.

use crate::memory;
use crate::wasm::hooks;
use crate::{task, vcpu};
use nacre_abi::PAGE_BYTES;
use nacre_abi::hypercall::ExitReason;
use nacre_abi::layout::{AGENT_IDT, AGENT_VA, AREAS_VA, TENANT_VA_END};
use nacre_engine::operand;
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
    fn page_wait_entry();
}

/// The entry of the interrupt descriptor table for `vector`.
fn gate(vector: usize) -> [u64; 2] {
    let stubs = (&raw const exception_stubs) as u64;
    let (handler, privilege) = match vector {
        BREAKPOINT => (flush_gate as *const () as u64, 3),
        _ => (stubs + vector as u64 * 16, 0),
    };
    // A 64-bit interrupt gate to the kernel code segment (Intel SDM vol. 3, 6.14.1).
    let low = handler & 0xffff
        | u64::from(KERNEL_CODE) << 16
        | (0x8e00 | privilege << 13) << 32
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

const TABLE: *mut [u64; 2] = (AGENT_VA + AGENT_IDT) as *mut [u64; 2];

/// Fills the interrupt descriptor table. Once, by vCPU 0, before anything can fault on purpose.
pub fn init() {
    for vector in 0..256 {
        // SAFETY: the launcher mapped a page for the 256 entries of the table.
        unsafe { TABLE.add(vector).write_volatile(gate(vector)) };
    }
}

/// Whether the table still is as [`init`] filled it.
#[cfg(feature = "debug-image")]
pub fn table_is_intact() -> bool {
    // SAFETY: see `init`; nobody writes there after it.
    (0..256).all(|vector| unsafe { TABLE.add(vector).read_volatile() } == gate(vector))
}

/// Selector of the ring-0 code segment in the launcher's descriptor table.
const KERNEL_CODE: u16 = 0x08;

/// Called by the stub on the upcall stack.
#[unsafe(no_mangle)]
extern "C" fn exception_upcall(frame: &mut Frame, registers: &mut Registers) {
    match frame.vector {
        PAGE_FAULT => page_fault(frame, registers),
        INVALID_OPCODE if Code::at(frame.rip).bytes().starts_with(&UD2) => wasm_trap(frame, registers, None),
        DIVIDE_ERROR if is_division(Code::at(frame.rip).bytes()) => {
            if is_believed(doubt_division(frame, registers), frame) {
                wasm_trap(frame, registers, None);
            }
        }
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
        Fault::Missing => match missing_page(frame, registers) {
            Some(address) => wait_for_page(frame, address),
            None => not_waited_for(frame),
        },
        // A stale translation of ours, or an injected fault: either way a flush lets the instruction decide.
        Fault::Spurious => crate::arch::flush_tlb(),
        fault @ (Fault::OutOfMemory | Fault::Violation) => {
            let (doubt, address) = doubt_access(frame, registers, access);
            if !is_believed(doubt, frame) {
                return crate::arch::flush_tlb();
            }
            if fault == Fault::OutOfMemory
                && let Some(task) = task::running()
            {
                task.frame_missing.set(true);
            }
            wasm_trap(frame, registers, Some(address));
        }
    }
}

/// Bytes below the interrupted stack pointer at which what a waiting task needs to go on begins: below its red zone, and below
/// what `page_wait_entry` writes there at the end.
const WAIT_RECORD_BYTES: u64 = 256;

/// An address in the page without which the interrupted instruction can't go on because it is still to come. A task that waits is switched
/// out: a host that could choose where would have it done in the middle of the scheduler. So the instruction itself says what it
/// touches. Where it can't be understood, only Wasm code is believed, which can be switched anywhere.
fn missing_page(frame: &Frame, registers: &Registers) -> Option<u64> {
    let missing = |address: u64| memory::is_missing(address).then_some(address);
    let (code, all) = (Code::at(frame.rip), registers_in_order(frame, registers));
    let again = || vcpu::comes_again(frame.vector, frame.rip, frame.cr2);
    if let Some(strings) = operand::string_operands(code.bytes(), &all) {
        return strings.into_iter().find_map(missing);
    }
    if let Some(address) = operand::memory_operand(code.bytes(), &all) {
        // How wide the access is nobody knows: it may reach into the next page.
        let next = (address.wrapping_add(WIDEST_ACCESS - 1)) & !(PAGE_BYTES - 1);
        return missing(address).or_else(|| missing(next).filter(|_| next > address && again()));
    }
    missing(frame.cr2).filter(|_| is_wasm(frame.rip) && again())
}

/// No honest host's exception, or the page has come meanwhile: the instruction runs again.
fn not_waited_for(frame: &Frame) {
    if vcpu::count_spurious(frame.rip) >= SPURIOUS_LIMIT {
        unhandled(frame);
    }
    crate::arch::flush_tlb();
}

/// Lets the task go on in `page_wait_entry`, on its own stack, where it can be switched.
fn wait_for_page(frame: &mut Frame, address: u64) {
    let record = (frame.rsp - WAIT_RECORD_BYTES) & !63;
    // Nothing that the scheduler or the dispatcher uses stays outstanding.
    if !crate::migrate::begin_wait(frame.rsp) || !crate::migrate::begin_wait(record - WAIT_RECORD_BYTES) {
        return not_waited_for(frame);
    }
    // SAFETY: below what the interrupted function uses of the task's stack, which has room for host functions there.
    unsafe { (record as *mut [u64; 3]).write([address, frame.rip, frame.rsp]) }
    frame.rsp = record;
    frame.rip = page_wait_entry as *const () as u64;
}

/// What the interrupted instruction says about an exception.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// It can't run without it.
    Real,
    /// It does nothing of the kind.
    Invented,
    /// Nobody knows.
    Unknown,
}

fn is_believed(doubt: Doubt, frame: &Frame) -> bool {
    match doubt {
        Doubt::Real => true,
        // Should this be wrong about an instruction, that fails for ever.
        Doubt::Invented => vcpu::count_spurious(frame.rip) >= SPURIOUS_LIMIT,
        Doubt::Unknown => vcpu::comes_again(frame.vector, frame.rip, frame.cr2),
    }
}

/// Whether an address is one of compiled Wasm: that lies in areas, and nothing else there can be executed.
fn is_wasm(rip: u64) -> bool {
    (AREAS_VA..TENANT_VA_END).contains(&rip)
}

/// Bytes that one access can touch.
const WIDEST_ACCESS: u64 = 64;

/// Compares a fault that our tables confirm for CR2 with the address that the instruction uses; returns that, if it is known.
fn doubt_access(frame: &Frame, registers: &Registers, access: Access) -> (Doubt, u64) {
    let code = Code::at(frame.rip);
    if access == Access::Execute {
        return (if code.len == LONGEST { Doubt::Invented } else { Doubt::Unknown }, frame.cr2);
    }
    let Some(address) = operand::memory_operand(code.bytes(), &registers_in_order(frame, registers)) else {
        return (Doubt::Unknown, frame.cr2);
    };
    let fails =
        |access| matches!(memory::fault(GuestVirt(address), access), Fault::Violation | Fault::OutOfMemory);
    let one_page = address % PAGE_BYTES <= PAGE_BYTES - WIDEST_ACCESS;
    match (fails(access), fails(Access::Read)) {
        (_, true) => (Doubt::Real, address),
        (false, _) if one_page => (Doubt::Invented, address),
        _ => (Doubt::Unknown, frame.cr2),
    }
}

/// Compares a division error with the divisor.
fn doubt_division(frame: &Frame, registers: &Registers) -> Doubt {
    match operand::divisor(Code::at(frame.rip).bytes(), &registers_in_order(frame, registers)) {
        Some(0) => Doubt::Real,
        // The smallest number divided by -1 does not fit.
        None | Some(0xffff_ffff | u64::MAX) => Doubt::Unknown,
        Some(_) => Doubt::Invented,
    }
}

fn registers_in_order(frame: &Frame, registers: &Registers) -> operand::Registers {
    let Registers { rbx, rcx, rdx, rsi, rdi, r8_to_r15: high, rbp } = registers;
    let low = [frame.rax, *rcx, *rdx, *rbx, frame.rsp, *rbp, *rsi, *rdi];
    core::array::from_fn(|n| if n < 8 { low[n] } else { high[n - 8] })
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
    // What is no Wasm may have another's stack.
    if !is_wasm(frame.rip) || !is_of_task {
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

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// The bytes at an instruction pointer, as far as they are code at all.
struct Code {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Code {
    fn at(rip: u64) -> Code {
        let mut bytes = [0; LONGEST];
        let executable = |offset: usize| memory::is_executable(GuestVirt(rip.wrapping_add(offset as u64)));
        let len = (0..LONGEST).take_while(|offset| executable(*offset)).count();
        for (offset, byte) in bytes.iter_mut().enumerate().take(len) {
            // SAFETY: our page tables say that this address is mapped for execution, so it can be read.
            *byte = unsafe { ((rip + offset as u64) as *const u8).read_volatile() };
        }
        Code { bytes, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

const UD2: [u8; 2] = [0x0f, 0x0b];

/// `div` and `idiv`: opcode F6 or F7 with /6 or /7 in ModRM, behind an operand size or REX prefix.
fn is_division(code: &[u8]) -> bool {
    let code = &code[code.iter().take_while(|byte| matches!(byte, 0x66 | 0x40..=0x4f)).count()..];
    matches!(code, [0xf6 | 0xf7, modrm, ..] if modrm >> 3 & 7 >= 6)
}
