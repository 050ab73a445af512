//! What a launch measures: SEV-SNP's launch digest over the initial pages and one save area per vCPU, as its firmware computes it on
//! hardware and as this crate computes it everywhere else.
//!
//! Pages go in in the order of the launch's runs, each run from its start; a page of zeros goes in as such a page does, without its content.
//! Then the vCPUs by number. What the processor decides (the extended state it has, [`VcpuEntry::xcr0`]) is part of it: machines with and
//! without AVX-512 measure differently.

use crate::kvm::{CR0, CR4, EFER, RFLAGS};
use crate::launch::{Launch, USER_CODE, USER_DATA, VcpuState};
use nacre_abi::layout::TSS_LIMIT;
use nacre_attest::launch::{LaunchDigest, Measurement, PAGE_BYTES, snp};
use nacre_attest::vmsa::{self, Segment, VcpuEntry};

/// Ring-3 code: present, execute and read, accessed; 64 bits; limit in pages.
const CODE_ATTRIBUTES: u16 = 0xafb;
/// Ring-3 data: present, read and write, accessed; 32 bits; limit in pages.
const DATA_ATTRIBUTES: u16 = 0xcf3;
/// A busy task state segment.
const TSS_ATTRIBUTES: u16 = 0x8b;
/// Limit of the interrupt descriptor table: it fills a page.
const IDT_LIMIT: u32 = 0xfff;

impl Launch<'_> {
    /// The measurement of this launch on a machine that enables the extended state `xcr0`.
    pub fn measure(&self, xcr0: u64) -> Measurement {
        let mut digest = LaunchDigest::new();
        for run in &self.runs {
            let mut pages = run.content.chunks(PAGE_BYTES);
            for address in (run.address..run.address + run.bytes).step_by(PAGE_BYTES) {
                match pages.next().filter(|page| page.iter().any(|byte| *byte != 0)) {
                    None => digest.zero_page(address),
                    Some(content) => {
                        let mut page = [0; PAGE_BYTES];
                        page[..content.len()].copy_from_slice(content);
                        digest.normal_page(address, &page);
                    }
                }
            }
        }
        for vcpu in &self.vcpus {
            digest.vmsa_page(snp::VMSA_GPA, &vmsa::page(&entry(vcpu, xcr0)));
        }
        digest.finish()
    }
}

/// A vCPU's first state, as [`crate::kvm`] sets it.
fn entry(state: &VcpuState, xcr0: u64) -> VcpuEntry {
    let segment = |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
    let (code, data) = (segment(USER_CODE, CODE_ATTRIBUTES), segment(USER_DATA, DATA_ATTRIBUTES));
    let table = |base, limit| Segment { base, limit, ..Segment::default() };
    let tss = Segment {
        selector: state.tss_selector,
        attributes: TSS_ATTRIBUTES,
        limit: TSS_LIMIT as u32,
        base: state.tss_base,
    };
    VcpuEntry {
        cs: code,
        ds: data,
        es: data,
        ss: data,
        fs: data,
        gs: data,
        gdtr: table(state.gdt_base, u32::from(state.gdt_limit)),
        idtr: table(state.idt_base, IDT_LIMIT),
        tr: tss,
        cpl: 3,
        efer: EFER | snp::EFER_SVME,
        cr0: CR0,
        cr3: state.cr3,
        cr4: CR4,
        rflags: RFLAGS,
        rip: state.rip,
        rsp: state.rsp,
        rdi: state.rdi,
        xcr0,
        ..VcpuEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use crate::image::{self, GuestImage};
    use crate::launch::Launch;

    fn launch(image: &'static [u8], vcpus: u32, mib: u64) -> Launch<'static> {
        Launch::new(&GuestImage::parse(image).unwrap(), vcpus, mib << 20).unwrap()
    }

    #[test]
    fn all_that_a_host_chooses_changes_the_measurement() {
        let base = launch(image::RELEASE, 2, 256).measure(7);
        assert_eq!(base, launch(image::RELEASE, 2, 256).measure(7));
        assert_ne!(base, launch(image::RELEASE, 3, 256).measure(7), "vCPUs");
        assert_ne!(base, launch(image::RELEASE, 2, 512).measure(7), "memory");
        assert_ne!(base, launch(image::RELEASE, 2, 256).measure(0xe7), "extended state");
        assert_ne!(base, launch(image::DEBUG, 2, 256).measure(7), "image");
        let with = |change: &dyn Fn(&mut Launch<'static>)| {
            let mut launch = launch(image::RELEASE, 2, 256);
            change(&mut launch);
            launch.measure(7)
        };
        assert_eq!(base, with(&|_| ()));
        assert_ne!(base, with(&|launch| launch.vcpus[1].rip += 1), "where a vCPU begins");
        assert_ne!(base, with(&|launch| launch.runs[0].address += 4096), "where a page lies");
        assert_ne!(base, with(&|launch| launch.runs[0].content.to_mut()[5000] ^= 1), "a bit of a page");
        assert_ne!(base, with(&|launch| launch.runs[0].bytes += 4096), "a page of zeros more");
        assert_ne!(base, with(&|launch| launch.vcpus.truncate(1)), "a vCPU less");
    }
}
