//! What a CVM consists of at launch: initial pages and vCPU states, as a pure function of image and parameters.
//!
//! The page tables map, with the permissions of each: the image (large pages), the agent arena (one linear window of large
//! pages), each vCPU's stacks and words (small pages with gaps between them), the shared window. Everything else is
//! mapped by the guest itself, later.

use crate::image::GuestImage;
use nacre_abi::boot::BootInfo;
use nacre_abi::hypercall::LAST_PORT;
use nacre_abi::layout::{
    AGENT_BOOT_INFO, AGENT_GDT, AGENT_IDT, AGENT_ROOT_TABLE, AGENT_VA, AGENT_VCPU_BLOCKS, LaunchParams,
    Layout, LayoutError, RAM_GPA, SHARED_GPA, SHARED_VA, TSS_LIMIT, TSS_OFFSET, VCPU_BLOCK_BYTES, VCPU_LOCAL,
    VCPU_PARTS, VCPU_SCHEDULER_STACK,
};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES};
use nacre_mm::address_space::MapError;
use nacre_mm::entry::{Perms, Size};
use nacre_mm::frames::{Frames, PagePool};
use nacre_mm::page_tables::{PageTables, TableMemory};
use nacre_mm::{GuestPhys, GuestVirt};
use std::sync::atomic::{AtomicU64, Ordering};

/// Selectors of the descriptor table. Ring 3 code is 0x20, data 0x18, each with privilege 3.
pub const USER_CODE: u16 = 0x23;
/// See [`USER_CODE`].
pub const USER_DATA: u16 = 0x1b;
/// Selector of vCPU 0's task state segment; each next one is 16 bytes on.
pub const FIRST_TSS: u16 = 0x28;

const _: () = assert!(
    FIRST_TSS as u64 + 16 * nacre_abi::MAX_VCPUS as u64 <= PAGE_BYTES,
    "descriptor table over a page"
);
const _: () = assert!(LAST_PORT == 0x7f, "the I/O bitmap of 16 bytes covers the ports up to 0x7f");

/// Why a launch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Impossible parameters.
    #[error("{}", match .0 {
        LayoutError::Vcpus => "a CVM has 0 to 63 workers",
        LayoutError::Memory => "a CVM's memory is 64 MiB to 64 GiB, in steps of 2 MiB",
        LayoutError::TooSmall => "this memory is too small for so many workers: give the CVM more memory or fewer workers",
    })]
    Layout(LayoutError),
    /// The page-table pool cannot hold the first page tables: a defect of the layout.
    #[error("the first page tables do not fit their pool")]
    Tables,
}

/// Bytes at a guest-physical address. What is in no run is not measured and may hold anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// Where, a multiple of a page.
    pub address: u64,
    /// What; behind it, up to `bytes`, zeros.
    pub content: std::borrow::Cow<'a, [u8]>,
    /// Length in bytes, a multiple of a page.
    pub bytes: u64,
}

/// How one vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuState {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// First argument: the vCPU's number.
    pub rdi: u64,
    /// Root page table.
    pub cr3: u64,
    /// Descriptor tables.
    pub gdt_base: u64,
    /// Last byte of the descriptor table.
    pub gdt_limit: u16,
    /// Interrupt descriptor table.
    pub idt_base: u64,
    /// Task state segment.
    pub tss_base: u64,
    /// Its selector.
    pub tss_selector: u16,
}

/// Everything a CVM starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch<'a> {
    /// Where everything is.
    pub layout: Layout,
    /// Initial memory.
    pub runs: Vec<Run<'a>>,
    /// Initial vCPU states, by number.
    pub vcpus: Vec<VcpuState>,
}

/// Page tables while they are being built: the root and the pool, in host memory.
struct Tables {
    layout: Layout,
    root: Box<[AtomicU64; 512]>,
    pool: Vec<Box<[AtomicU64; 512]>>,
}

/// Pages of the pool that the launcher fills at most: large pages need few.
const LAUNCH_TABLES: usize = 96;

fn empty_table() -> Box<[AtomicU64; 512]> {
    Box::new(std::array::from_fn(|_| AtomicU64::new(0)))
}

impl TableMemory for &Tables {
    fn entries(&self, table: GuestPhys) -> &[AtomicU64; 512] {
        if table.0 == self.layout.root_table_gpa() {
            return &self.root;
        }
        &self.pool[((table.0 - self.layout.agent_gpa - self.layout.table_pool_offset) / PAGE_BYTES) as usize]
    }

    // The launcher maps frames it knows; nothing is zeroed or copied here.
    fn zero(&self, _: GuestPhys, _: Size) {}
    fn copy_page(&self, _: GuestPhys, _: GuestPhys) {}
}

impl<'a> Launch<'a> {
    /// The launch of `image` with `vcpus` vCPUs and `memory_bytes` of private memory.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn new(image: &GuestImage<'a>, vcpus: u32, memory_bytes: u64) -> Result<Launch<'a>, LaunchError> {
        let params = LaunchParams { vcpus, memory_bytes, image_bytes: image.page_bytes() };
        let layout = Layout::new(params).map_err(LaunchError::Layout)?;
        let mut runs = Vec::new();
        let mut image_gpa = RAM_GPA;
        let mut segments = Vec::new();
        for segment in &image.segments {
            segments.push((segment.first_page(), image_gpa, segment.page_bytes(), segment.perms));
            runs.push(segment_run(segment, image_gpa));
            image_gpa += segment.page_bytes();
        }
        let tables_used_bytes =
            build_tables(&layout, &segments, &mut runs).map_err(|_| LaunchError::Tables)?;
        let agent = |offset, content: Vec<u8>| Run {
            address: layout.agent_gpa + offset,
            content: content.into(),
            bytes: PAGE_BYTES,
        };
        runs.push(agent(AGENT_BOOT_INFO, BootInfo { layout, tables_used_bytes }.encode().to_vec()));
        runs.push(agent(AGENT_GDT, descriptor_table(vcpus)));
        let vcpus = (0..vcpus as usize).map(|vcpu| vcpu_state(&layout, image.entry, vcpu)).collect();
        Ok(Launch { layout, runs, vcpus })
    }
}

fn segment_run<'a>(segment: &crate::image::Segment<'a>, frames: u64) -> Run<'a> {
    let lead = (segment.address % PAGE_BYTES) as usize;
    let address = frames + (segment.address - segment.first_page()) - lead as u64;
    let content = if lead == 0 {
        segment.content.into()
    } else {
        let mut padded = vec![0; lead];
        padded.extend_from_slice(segment.content);
        padded.into()
    };
    Run { address, content, bytes: (lead as u64 + segment.bytes).next_multiple_of(PAGE_BYTES) }
}

/// Builds the page tables, adds them to `runs`, and returns how much of the pool they take.
fn build_tables(
    layout: &Layout,
    segments: &[(u64, u64, u64, Perms)],
    runs: &mut Vec<Run<'_>>,
) -> Result<u64, MapError> {
    let pool_gpa = layout.agent_gpa + layout.table_pool_offset;
    let count = LAUNCH_TABLES.min((layout.table_pool_bytes / PAGE_BYTES) as usize);
    let tables =
        Tables { layout: *layout, root: empty_table(), pool: (0..count).map(|_| empty_table()).collect() };
    let free: Vec<AtomicU64> = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    let pool = PagePool::new(GuestPhys(pool_gpa), count, 0, &free);
    let space = PageTables::new(
        GuestPhys(layout.root_table_gpa()),
        &tables,
        pool,
        Frames::new(GuestPhys(0), 0, 0, &[]),
    );
    let large = |va: u64, gpa: u64, bytes: u64, perms: Perms| {
        (0..bytes).step_by(LARGE_PAGE_BYTES as usize).try_for_each(|offset| {
            space.map_fixed(GuestVirt(va + offset), GuestPhys(gpa + offset), Size::Large, perms)
        })
    };
    for (va, gpa, bytes, perms) in segments {
        large(*va, *gpa, *bytes, *perms)?;
    }
    large(AGENT_VA, layout.agent_gpa, layout.agent_bytes, Perms::ReadWrite)?;
    large(SHARED_VA, SHARED_GPA, layout.shared_bytes, Perms::ReadWrite)?;
    for vcpu in 0..layout.params.vcpus as usize {
        let mut gpa = layout.agent_gpa + AGENT_VCPU_BLOCKS + vcpu as u64 * VCPU_BLOCK_BYTES;
        for part in VCPU_PARTS {
            let va = Layout::vcpu_part_va(vcpu, part);
            for offset in (0..part.bytes).step_by(PAGE_BYTES as usize) {
                space.map_fixed(GuestVirt(va + offset), GuestPhys(gpa), Size::Small, Perms::ReadWrite)?;
                gpa += PAGE_BYTES;
            }
        }
    }
    let bytes_of = |tables: &mut dyn Iterator<Item = &[AtomicU64; 512]>| {
        let mut bytes = Vec::new();
        for entry in tables.flatten() {
            bytes.extend_from_slice(&entry.load(Ordering::Relaxed).to_le_bytes());
        }
        bytes
    };
    // The pool hands its pages out from the start on.
    let used: usize =
        count - free.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum::<usize>();
    let content = bytes_of(&mut tables.pool[..used].iter().map(|table| &**table));
    runs.push(Run {
        address: layout.root_table_gpa(),
        content: bytes_of(&mut std::iter::once(&*tables.root)).into(),
        bytes: PAGE_BYTES,
    });
    runs.push(Run { address: pool_gpa, bytes: content.len() as u64, content: content.into() });
    Ok(used as u64 * PAGE_BYTES)
}

/// Null, ring-0 code and data, ring-3 data and code, then a task state segment per vCPU (Intel SDM vol. 3, 3.4.5, 8.2.3).
fn descriptor_table(vcpus: u32) -> Vec<u8> {
    let mut words = vec![
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff_u64,
    ];
    for vcpu in 0..vcpus as usize {
        let base = tss_base(vcpu);
        let low = TSS_LIMIT & 0xffff | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        words.extend([low, base >> 32]);
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn tss_base(vcpu: usize) -> u64 {
    Layout::vcpu_part_va(vcpu, VCPU_LOCAL) + TSS_OFFSET
}

fn vcpu_state(layout: &Layout, entry: u64, vcpu: usize) -> VcpuState {
    VcpuState {
        rip: entry,
        rsp: Layout::vcpu_stack_top(vcpu, VCPU_SCHEDULER_STACK),
        rdi: vcpu as u64,
        cr3: layout.agent_gpa + AGENT_ROOT_TABLE,
        gdt_base: AGENT_VA + AGENT_GDT,
        gdt_limit: FIRST_TSS + 16 * layout.params.vcpus as u16 - 1,
        idt_base: AGENT_VA + AGENT_IDT,
        tss_base: tss_base(vcpu),
        tss_selector: FIRST_TSS + 16 * vcpu as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image;

    fn launch(vcpus: u32, mib: u64) -> Result<Launch<'static>, LaunchError> {
        Launch::new(&GuestImage::parse(image::RELEASE).unwrap(), vcpus, mib << 20)
    }

    #[test]
    fn a_launch_is_a_function_of_its_parameters() {
        assert_eq!(launch(3, 256), launch(3, 256));
        assert_ne!(launch(3, 256).unwrap().runs, launch(4, 256).unwrap().runs);
        assert_ne!(launch(3, 256).unwrap().runs, launch(3, 512).unwrap().runs);
    }

    #[test]
    fn runs_are_disjoint_pages_inside_the_memory() {
        for (vcpus, mib) in [(1, 64), (64, 256), (2, 65536)] {
            let launch = launch(vcpus, mib).unwrap();
            let mut runs: Vec<_> =
                launch.runs.iter().map(|run| (run.address, run.bytes, run.content.len())).collect();
            runs.sort();
            let mut end = RAM_GPA;
            for (address, bytes, content) in runs {
                assert!(
                    address >= end
                        && address % PAGE_BYTES == 0
                        && bytes % PAGE_BYTES == 0
                        && content as u64 <= bytes
                );
                end = address + bytes;
            }
            assert!(end <= launch.layout.frames_gpa);
        }
    }

    #[test]
    fn impossible_parameters_are_refused_with_a_remedy() {
        assert!(launch(65, 64).unwrap_err().to_string().contains("0 to 63 workers"));
        assert!(launch(1, 32).unwrap_err().to_string().contains("64 MiB to 64 GiB"));
    }
}
