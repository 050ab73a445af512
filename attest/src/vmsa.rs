//! A vCPU's save area (VMSA) at launch: the SEV-ES layout of the AMD64 Architecture Programmer's Manual, volume 2, table
//! B-4. All that is not named here is zero. A host that enters a vCPU in another state has another measurement.

use crate::launch::{PAGE_BYTES, snp};

/// A segment register or descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Descriptor bits 40 to 47 in bits 0 to 7, 52 to 55 in bits 8 to 11.
    pub attributes: u16,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// The state in which a vCPU is entered first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuEntry {
    /// Extra segment.
    pub es: Segment,
    /// Code segment.
    pub cs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Data segment.
    pub ds: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// Global descriptor table: base and limit.
    pub gdtr: Segment,
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Interrupt descriptor table: base and limit.
    pub idtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Privilege level (ring).
    pub cpl: u8,
    /// Extended features; [`snp::EFER_SVME`] is to be set as the processor demands it.
    pub efer: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 2.
    pub cr2: u64,
    /// Page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// Flags.
    pub rflags: u64,
    /// First instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Register.
    pub rax: u64,
    /// Register.
    pub rbx: u64,
    /// Register.
    pub rcx: u64,
    /// Register.
    pub rdx: u64,
    /// Register.
    pub rbp: u64,
    /// Second argument.
    pub rsi: u64,
    /// First argument.
    pub rdi: u64,
    /// Registers r8 to r15.
    pub r8_to_r15: [u64; 8],
    /// Base of GS in the kernel.
    pub kernel_gs_base: u64,
    /// System call target and segments.
    pub star: u64,
    /// System call target.
    pub lstar: u64,
    /// System call flags mask.
    pub sfmask: u64,
    /// Page attribute table.
    pub pat: u64,
    /// Extended state components.
    pub xcr0: u64,
    /// SSE control.
    pub mxcsr: u32,
    /// x87 control word.
    pub fcw: u16,
    /// SEV_FEATURES.
    pub sev_features: u64,
}

impl Default for VcpuEntry {
    /// Zeros, and what a processor has after reset in the registers that are not zero: debug, flags, PAT, x87, SSE, XCR0.
    fn default() -> VcpuEntry {
        let none = Segment::default();
        VcpuEntry {
            es: none,
            cs: none,
            ss: none,
            ds: none,
            fs: none,
            gs: none,
            gdtr: none,
            ldtr: none,
            idtr: none,
            tr: none,
            cpl: 0,
            efer: snp::EFER_SVME,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            rflags: 2,
            rip: 0,
            rsp: 0,
            rax: 0,
            rbx: 0,
            rcx: 0,
            rdx: 0,
            rbp: 0,
            rsi: 0,
            rdi: 0,
            r8_to_r15: [0; 8],
            kernel_gs_base: 0,
            star: 0,
            lstar: 0,
            sfmask: 0,
            pat: snp::RESET_PAT,
            xcr0: 1,
            mxcsr: snp::RESET_MXCSR,
            fcw: snp::INIT_FCW,
            sev_features: snp::FEATURE_SNP_ACTIVE,
        }
    }
}

/// The save area as a page.
pub fn page(entry: &VcpuEntry) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    let mut put = |at: usize, field: &[u8]| page[at..at + field.len()].copy_from_slice(field);
    let e = entry;
    for (i, segment) in [e.es, e.cs, e.ss, e.ds, e.fs, e.gs, e.gdtr, e.ldtr, e.idtr, e.tr].iter().enumerate()
    {
        put(i * 16, &segment.selector.to_le_bytes());
        put(i * 16 + 2, &segment.attributes.to_le_bytes());
        put(i * 16 + 4, &segment.limit.to_le_bytes());
        put(i * 16 + 8, &segment.base.to_le_bytes());
    }
    put(0xcb, &[e.cpl]);
    let words = [
        (0xd0, e.efer),
        (0x148, e.cr4),
        (0x150, e.cr3),
        (0x158, e.cr0),
        (0x160, e.dr7),
        (0x168, e.dr6),
        (0x170, e.rflags),
        (0x178, e.rip),
        (0x1d8, e.rsp),
        (0x1f8, e.rax),
        (0x200, e.star),
        (0x208, e.lstar),
        (0x218, e.sfmask),
        (0x220, e.kernel_gs_base),
        (0x240, e.cr2),
        (0x268, e.pat),
        (0x308, e.rcx),
        (0x310, e.rdx),
        (0x318, e.rbx),
        (0x328, e.rbp),
        (0x330, e.rsi),
        (0x338, e.rdi),
        (0x3b0, e.sev_features),
        (0x3e8, e.xcr0),
    ];
    for (at, word) in words {
        put(at, &word.to_le_bytes());
    }
    for (i, word) in e.r8_to_r15.iter().enumerate() {
        put(0x340 + i * 8, &word.to_le_bytes());
    }
    put(0x408, &e.mxcsr.to_le_bytes());
    put(0x410, &e.fcw.to_le_bytes());
    page
}
