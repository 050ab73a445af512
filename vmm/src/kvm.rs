//! The machine: a virtual machine of KVM with its memory slots, doorbells and vCPUs that start in ring 3.
//!
//! There is no ring-0 boot code: each vCPU's state is set so that its first instruction runs in ring 3 with paging on.
//! The registers follow the Intel SDM (vol. 3, 2.5 for the control registers, 13.3 for XCR0).
#![allow(unsafe_code)]

use crate::hooks::Hooks;
use crate::launch::{Launch, USER_CODE, USER_DATA, VcpuState};
use crate::memory::{PrivateMemory, SharedMemory};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use nacre_abi::hypercall::PipeNews;
use nacre_abi::layout::{AGENT_IDT, RAM_GPA, SHARED_GPA, TSS_LIMIT};
use nacre_abi::{VcpuId, hypercall};
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// PG, WP clear, NE, ET, MP, PE: paging and protection on, x87 errors as exceptions.
pub(crate) const CR0: u64 = 0x8000_0033;
/// PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
pub(crate) const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
/// SCE, LME, LMA, NXE.
pub(crate) const EFER: u64 = 0xd01;
/// IOPL 3 and the bit that is always one; interrupts stay off. Ring 3 is all of the guest and trusted with every port; the
/// I/O bitmap is for a KVM that ignores IOPL, and IOPL for an emulated one that ignores the bitmap of a busy segment.
pub(crate) const RFLAGS: u64 = 0x3002;
/// x87, SSE, AVX, and the three parts of AVX-512.
const XCR0_WANTED: u64 = 0xe7;
const XCR0_AVX512: u64 = 0xe0;
/// Where KVM on Intel keeps three pages for itself; away from everything of ours.
const KVM_TSS_ADDRESS: usize = 0xfffb_d000;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no `/dev/kvm`.
    #[error(
        "this machine has no /dev/kvm: enable virtualisation (nested virtualisation if it is a VM itself) and load kvm_intel or kvm_amd"
    )]
    Missing,
    /// `/dev/kvm` may not be opened.
    #[error("no permission for /dev/kvm: join the kvm group (sudo usermod -aG kvm $USER) and log in again")]
    Denied,
    /// A call failed.
    #[error("KVM refuses to {what}: {error}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The processor lacks something.
    #[error("this processor has no {0}, which the guest needs")]
    Processor(&'static str),
}

fn call<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, KvmError> {
    result.map_err(|error| KvmError::Call { what, error: io::Error::from_raw_os_error(error.errno()) })
}

/// A virtual machine without its vCPUs.
pub struct Machine {
    vm: VmFd,
    cpuid: CpuId,
    xcr0: u64,
    // The kernel uses both until the machine is gone: they are dropped after it.
    private: PrivateMemory,
    shared: Arc<SharedMemory>,
}

impl Machine {
    /// Makes the machine and gives it its memory. `hooks` may change what the guest is told about its processor.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(
        private: PrivateMemory,
        shared: SharedMemory,
        hooks: Option<&dyn Hooks>,
    ) -> Result<Machine, KvmError> {
        let kvm = open()?;
        let vm = call("create a virtual machine", create_vm(&kvm))?;
        // Only KVM on Intel knows this call.
        let _ = vm.set_tss_address(KVM_TSS_ADDRESS);
        let mut cpuid = call("tell its CPUID", kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
        add_unprivileged_features(&mut cpuid);
        let mut xcr0 = supported_xcr0(&cpuid)?;
        if let Some(hooks) = hooks {
            hooks.processor(&mut cpuid, &mut xcr0);
        }
        let slots = [
            (RAM_GPA, private.slot_address(), private.bytes()),
            (SHARED_GPA, shared.slot_address(), shared.bytes()),
        ];
        for (slot, (guest_phys_addr, userspace_addr, memory_size)) in (0..).zip(slots) {
            let region =
                kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
            // SAFETY: the mapping is that long and lives as long as this machine, which owns it.
            call("map guest memory", unsafe { vm.set_user_memory_region(region) })?;
        }
        Ok(Machine { vm, cpuid, xcr0, private, shared: Arc::new(shared) })
    }

    /// The private memory, for releasing parts of it.
    pub fn private(&self) -> &PrivateMemory {
        &self.private
    }

    /// The extended state that vCPUs start with.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// The shared window.
    pub fn shared(&self) -> &SharedMemory {
        &self.shared
    }

    /// The same, for longer than the machine lives.
    pub fn shared_memory(&self) -> Arc<SharedMemory> {
        self.shared.clone()
    }

    /// Lets the guest's doorbell signal `event` without leaving the kernel.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn bind_doorbell(&self, event: &EventFd) -> Result<(), KvmError> {
        self.bind(hypercall::DOORBELL, event)
    }

    /// Lets the guest's wake port of `vcpu` signal `event` without leaving the kernel.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn bind_wake(&self, vcpu: VcpuId, event: &EventFd) -> Result<(), KvmError> {
        self.bind(hypercall::wake(vcpu), event)
    }

    /// Lets the guest's words about the pipes of a channel signal `event` without leaving the kernel.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn bind_pipe(&self, channel: u32, news: PipeNews, event: &EventFd) -> Result<(), KvmError> {
        self.bind(hypercall::pipe(channel, news), event)
    }

    fn bind(&self, port: u16, event: &EventFd) -> Result<(), KvmError> {
        call(
            "bind a doorbell",
            self.vm.register_ioevent(event, &IoEventAddress::Pio(port.into()), NoDatamatch),
        )
    }

    /// Makes a vCPU in its launch state.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn vcpu(&self, id: VcpuId, launch: &Launch<'_>) -> Result<VcpuFd, KvmError> {
        let vcpu = call("create a vCPU", self.vm.create_vcpu(id.index() as u64))?;
        call("set CPUID", vcpu.set_cpuid2(&self.cpuid))?;
        let state = &launch.vcpus[id.index()];
        set_system_registers(&vcpu, state)?;
        let mut xcrs = call("read XCR0", vcpu.get_xcrs())?;
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].xcr = 0;
        xcrs.xcrs[0].value = self.xcr0;
        call("set XCR0", vcpu.set_xcrs(&xcrs))?;
        let registers = kvm_regs {
            rip: state.rip,
            rsp: state.rsp,
            rdi: state.rdi,
            rflags: RFLAGS,
            ..kvm_regs::default()
        };
        call("set registers", vcpu.set_regs(&registers))?;
        Ok(vcpu)
    }
}

fn open() -> Result<Kvm, KvmError> {
    Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Denied,
        errno => KvmError::Call { what: "open /dev/kvm", error: io::Error::from_raw_os_error(errno) },
    })
}

/// Whether virtual machines can be made here.
///
/// # Errors
/// [`KvmError`] says why not.
pub fn available() -> Result<(), KvmError> {
    open().map(|_| ())
}

/// Creating a machine is interrupted by signals like any slow call: try again.
fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other,
        }
    }
}

/// The extended state to enable: what is wanted and supported (CPUID leaf 0xD), AVX-512 as a whole or not at all.
fn supported_xcr0(cpuid: &CpuId) -> Result<u64, KvmError> {
    let leaf = |function: u32, index: u32| {
        cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index)
    };
    let state = leaf(0xd, 0).ok_or(KvmError::Processor("XSAVE"))?;
    let supported = XCR0_WANTED & (u64::from(state.edx) << 32 | u64::from(state.eax));
    Ok(if supported & XCR0_AVX512 == XCR0_AVX512 { supported } else { supported & !XCR0_AVX512 })
}

/// CPUID leaf, register (0 = EAX .. 3 = EDX) and the bits in it that stand for instructions which any ring-3 code can execute,
/// given their extended state in XCR0 (Intel SDM vol. 2, CPUID).
const UNPRIVILEGED: [(u32, u32, usize, u32); 5] = [
    // SSE3 PCLMUL SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES AVX F16C RDRAND
    (1, 0, 2, 1 | 1 << 1 | 1 << 9 | 3 << 12 | 3 << 19 | 3 << 22 | 1 << 25 | 7 << 28),
    // BMI1 AVX2 BMI2 ERMS AVX512F AVX512DQ RDSEED ADX AVX512IFMA CLFLUSHOPT CLWB AVX512CD SHA AVX512BW AVX512VL
    (7, 0, 1, 1 << 3 | 1 << 5 | 3 << 8 | 0xf << 16 | 1 << 21 | 3 << 23 | 0xf << 28),
    // AVX512VBMI AVX512VBMI2 GFNI VAES VPCLMUL AVX512VNNI AVX512BITALG AVX512VPOPCNTDQ
    (7, 0, 2, 1 << 1 | 0x7f << 6 & !(1 << 7) | 1 << 14),
    // AVX-VNNI AVX512BF16
    (7, 1, 0, 3 << 4),
    // LZCNT PREFETCHW
    (0x8000_0001, 0, 2, 1 << 5 | 1 << 8),
];

/// Adds the instructions that the host's processor has: no KVM can take them away from ring 3, and one without hardware
/// virtualisation leaves most of them out of what it says it supports.
fn add_unprivileged_features(cpuid: &mut CpuId) {
    for (function, index, register, mask) in UNPRIVILEGED {
        let host = core::arch::x86_64::__cpuid_count(function, index);
        let host = [host.eax, host.ebx, host.ecx, host.edx][register] & mask;
        let entries = cpuid.as_mut_slice().iter_mut();
        for entry in entries.filter(|entry| entry.function == function && entry.index == index) {
            let registers = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
            *registers.into_iter().nth(register).expect("one of four") |= host;
        }
    }
}

fn set_system_registers(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    let mut registers = call("read system registers", vcpu.get_sregs())?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: USER_CODE,
        type_: 11,
        present: 1,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: USER_DATA, type_: 3, db: 1, l: 0, ..code };
    registers.cs = code;
    (registers.ds, registers.es, registers.ss, registers.fs, registers.gs) = (data, data, data, data, data);
    registers.tr = kvm_segment {
        base: state.tss_base,
        limit: TSS_LIMIT as u32,
        selector: state.tss_selector,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    registers.gdt.base = state.gdt_base;
    registers.gdt.limit = state.gdt_limit;
    registers.idt.base = state.idt_base;
    registers.idt.limit = 0xfff;
    registers.cr0 = CR0;
    registers.cr3 = state.cr3;
    registers.cr4 = CR4;
    registers.efer = EFER;
    // FSGSBASE is among them. CPUID is no guide: KVM may leave it out and enable it all the same.
    call("set system registers (it must support FSGSBASE)", vcpu.set_sregs(&registers))
}

const _: () = assert!(
    AGENT_IDT.is_multiple_of(4096),
    "the interrupt descriptor table fills a page: its limit is 0xfff"
);
