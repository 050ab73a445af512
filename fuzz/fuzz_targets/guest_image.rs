//! The guest image's ELF loader, and the initial memory and page tables that the launcher makes from it.
//!
//! Input: an ELF file made from parameters and then damaged, or raw bytes, and launch parameters. Checked: no panic;
//! segments are in order, inside the image's addresses, on large pages of their own and never writable and executable;
//! initial memory is disjoint whole pages inside private memory; walking the initial page tables leads to private memory or
//! the shared window only, to each image page with that segment's permissions, and to a stack for each vCPU.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::layout::{
    AGENT_BOOT_INFO, IMAGE_VA, IMAGE_VA_END, Layout, RAM_GPA, SHARED_GPA, VCPU_SCHEDULER_STACK,
};
use nacre_abi::{LARGE_PAGE_BYTES, PAGE_BYTES, boot::BootInfo};
use nacre_fuzz::elf;
use nacre_mm::entry::{self, Leaf, Perms, Size};
use nacre_vmm::image::GuestImage;
use nacre_vmm::launch::Launch;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    file: File,
    vcpus: u8,
    memory_units: u16,
}

#[derive(Debug, arbitrary::Arbitrary)]
enum File {
    Raw(Vec<u8>),
    Made { elf: elf::Parameters, damage: Vec<(u16, u8)>, cut: u16 },
}

impl File {
    fn bytes(self) -> Vec<u8> {
        match self {
            File::Raw(bytes) => bytes,
            File::Made { elf, damage, cut } => {
                let mut bytes = elf.file();
                for (at, value) in damage {
                    let at = at as usize % bytes.len();
                    bytes[at] = value;
                }
                bytes.truncate(bytes.len() - cut as usize % bytes.len() / 4);
                bytes
            }
        }
    }
}

/// The initial memory as the processor would see it.
struct Memory<'a>(&'a Launch<'a>);

impl Memory<'_> {
    /// The byte at a guest-physical address; `None` outside of all initial memory.
    fn byte(&self, gpa: u64) -> Option<u8> {
        let run = self.0.runs.iter().find(|run| (run.address..run.address + run.bytes).contains(&gpa))?;
        Some(run.content.get((gpa - run.address) as usize).copied().unwrap_or(0))
    }

    fn entry(&self, table: u64, index: u64) -> u64 {
        let run = self.0.runs.iter().find(|run| (run.address..run.address + run.bytes).contains(&table));
        let at = (table + index * 8 - run.expect("tables are initial memory").address) as usize;
        run.and_then(|run| run.content.get(at..)?.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Calls `visit` with address, frame, size and permissions of each mapping.
    fn walk(&self, table: u64, level: u32, base: u64, visit: &mut dyn FnMut(u64, u64, Size, Perms)) {
        for index in 0..512 {
            let bits = self.entry(table, index);
            let address = base + (index << (12 + 9 * level));
            match (level, entry::table(bits)) {
                (1.., Some(next)) => self.walk(next.0, level - 1, address, visit),
                _ => match entry::decode(bits) {
                    Leaf::Absent => {}
                    Leaf::Lazy(_) | Leaf::Hidden { .. } | Leaf::Missing { .. } => {
                        panic!("the launcher promises nothing")
                    }
                    Leaf::Present { frame, perms, .. } => {
                        let size = if level == 0 { Size::Small } else { Size::Large };
                        assert!(level <= 1, "a mapping of an unknown size");
                        visit(address, frame.0, size, perms);
                    }
                },
            }
        }
    }
}

fn check_image(image: &GuestImage<'_>) {
    let mut end = IMAGE_VA;
    for segment in &image.segments {
        assert!(segment.first_page() >= end && segment.bytes > 0);
        assert!(segment.content.len() as u64 <= segment.bytes);
        assert_eq!(segment.page_bytes() % LARGE_PAGE_BYTES, 0);
        end = segment.first_page() + segment.page_bytes();
        assert!(segment.address + segment.bytes <= end && end <= IMAGE_VA_END);
    }
    let code = image.segments.iter().filter(|segment| segment.perms == Perms::ReadExecute);
    let entered = |segment: &nacre_vmm::image::Segment<'_>| {
        segment.address <= image.entry && image.entry < segment.address + segment.bytes
    };
    assert_eq!(code.filter(|segment| entered(segment)).count(), 1, "the entry point is no code");
}

fn check_runs(launch: &Launch<'_>) {
    let mut runs: Vec<_> = launch.runs.iter().collect();
    runs.sort_by_key(|run| run.address);
    let mut end = RAM_GPA;
    for run in runs {
        assert!(run.address >= end, "initial memory overlaps");
        assert_eq!((run.address % PAGE_BYTES, run.bytes % PAGE_BYTES), (0, 0));
        assert!(run.content.len() as u64 <= run.bytes);
        end = run.address + run.bytes;
    }
    assert!(end <= launch.layout.frames_gpa);
    let page = launch.layout.agent_gpa + AGENT_BOOT_INFO;
    let boot = std::array::from_fn(|at| Memory(launch).byte(page + at as u64).expect("measured"));
    assert_eq!(BootInfo::decode(&boot).map(|info| info.layout), Ok(launch.layout));
}

fn check_tables(image: &GuestImage<'_>, launch: &Launch<'_>) {
    let memory = Memory(launch);
    let layout = &launch.layout;
    let mut mappings = Vec::new();
    memory.walk(layout.root_table_gpa(), 3, 0, &mut |address, frame, size, perms| {
        let end = frame + size.bytes();
        let private = RAM_GPA <= frame && end <= layout.frames_gpa;
        let shared = SHARED_GPA <= frame && end <= SHARED_GPA + layout.shared_bytes;
        assert!(private || shared && perms == Perms::ReadWrite, "{address:#x} leads out of the CVM");
        let in_image = frame < layout.agent_gpa && private;
        assert_eq!(in_image, (IMAGE_VA..IMAGE_VA_END).contains(&address), "image pages are mapped once");
        mappings.push((address, frame, size, perms));
    });
    let find = |address: u64| {
        let found =
            mappings.iter().find(|(start, _, size, _)| (*start..start + size.bytes()).contains(&address));
        found.map(|(start, frame, _, perms)| (frame + (address - start), *perms))
    };
    for segment in &image.segments {
        let file_end = segment.content.len() as u64;
        for offset in [0, file_end / 2, file_end.saturating_sub(1), file_end, segment.bytes - 1] {
            if offset >= segment.bytes {
                continue;
            }
            let (gpa, perms) = find(segment.address + offset).expect("the image is mapped");
            let expected = segment.content.get(offset as usize).copied().unwrap_or(0);
            assert_eq!((memory.byte(gpa), perms), (Some(expected), segment.perms));
        }
    }
    assert_eq!(launch.vcpus.len(), layout.params.vcpus as usize);
    for (number, vcpu) in launch.vcpus.iter().enumerate() {
        assert_eq!((vcpu.rip, vcpu.rdi, vcpu.cr3), (image.entry, number as u64, layout.root_table_gpa()));
        assert_eq!(find(vcpu.rsp - 8).map(|(_, perms)| perms), Some(Perms::ReadWrite), "no stack");
        let lowest = Layout::vcpu_part_va(number, VCPU_SCHEDULER_STACK);
        assert_eq!(find(lowest - 1), None, "no guard page below the stack");
    }
}

fuzz_target!(|input: Input| {
    let file = input.file.bytes();
    let Ok(image) = GuestImage::parse(&file) else { return };
    check_image(&image);
    match Launch::new(&image, u32::from(input.vcpus), u64::from(input.memory_units) << 21) {
        Ok(launch) => {
            check_runs(&launch);
            check_tables(&image, &launch);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
