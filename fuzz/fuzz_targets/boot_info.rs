//! The boot information page, which the guest reads before it can trust anything, and the layout that follows from it.
//!
//! Input: raw bytes, or (so that the checks behind the magic are reached) launch parameters. Checked: no panic; what is
//! accepted encodes to what was read; all regions are aligned, disjoint and inside the memory, and the agent's scratch
//! memory holds the allocator maps and run queues that the guest puts there.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_abi::boot::{BootInfo, ENCODED_BYTES, MAGIC};
use nacre_abi::layout::{
    AGENT_VCPU_BLOCKS, IMAGE_VA, IMAGE_VA_END, Layout, MEMORY_MAX_BYTES, MEMORY_MIN_BYTES, RAM_GPA,
    SHARED_GPA, VCPU_BLOCK_BYTES,
};
use nacre_abi::{ABI_VERSION, LARGE_PAGE_BYTES, MAX_VCPUS, PAGE_BYTES, window};
use nacre_mm::frames::words_needed;

#[derive(Debug, arbitrary::Arbitrary)]
enum Input {
    Raw([u8; ENCODED_BYTES]),
    Words { vcpus: u32, memory: u64, image: u64, tables: u64, rest: u64 },
    Likely { vcpus: u8, memory_units: u16, image_units: u8, tables: u16 },
}

fn page(vcpus: u32, words: [u64; 4]) -> [u8; ENCODED_BYTES] {
    let [memory, image, tables, rest] = words;
    let words = [MAGIC, u64::from(ABI_VERSION) | u64::from(vcpus) << 32, memory, image, tables, rest];
    let mut bytes = [0; ENCODED_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn check(layout: &Layout) {
    let params = layout.params;
    assert!((1..=MAX_VCPUS).contains(&params.vcpus));
    assert!((MEMORY_MIN_BYTES..=MEMORY_MAX_BYTES).contains(&params.memory_bytes));
    assert!(params.image_bytes <= IMAGE_VA_END - IMAGE_VA);
    for value in
        [layout.agent_gpa, layout.agent_bytes, layout.frames_gpa, layout.frames_bytes, layout.shared_bytes]
    {
        assert_eq!(value % LARGE_PAGE_BYTES, 0);
    }
    // Image, agent arena, frames: one after the other, filling the memory.
    assert_eq!(layout.agent_gpa, RAM_GPA + params.image_bytes);
    assert_eq!(layout.frames_gpa, layout.agent_gpa + layout.agent_bytes);
    assert_eq!(layout.frames_gpa + layout.frames_bytes, RAM_GPA + params.memory_bytes);
    assert!(layout.frames_bytes >= params.memory_bytes / 2);
    // Inside the agent arena, in whatever order: fixed pages, per-vCPU blocks, page tables, scratch.
    assert!(layout.root_table_gpa() + PAGE_BYTES <= layout.agent_gpa + AGENT_VCPU_BLOCKS);
    let mut regions = [
        (0, AGENT_VCPU_BLOCKS),
        (AGENT_VCPU_BLOCKS, u64::from(params.vcpus) * VCPU_BLOCK_BYTES),
        (layout.table_pool_offset, layout.table_pool_bytes),
        (layout.scratch_offset, layout.scratch_bytes),
    ];
    regions.sort();
    let mut end = 0;
    for (start, bytes) in regions {
        assert!(start >= end && start % PAGE_BYTES == 0 && bytes % PAGE_BYTES == 0, "regions overlap");
        end = start + bytes;
    }
    assert!(end <= layout.agent_bytes);
    // What the guest divides the scratch memory into.
    let maps = words_needed((layout.frames_bytes / LARGE_PAGE_BYTES) as usize) as u64 * 8;
    let tables = layout.table_pool_bytes / PAGE_BYTES / 8;
    let queues = u64::from(layout.max_tasks) * 8 * u64::from(params.vcpus);
    assert!(layout.max_tasks.is_power_of_two());
    assert!(maps + tables + queues <= layout.scratch_bytes);
    // The window ends below private memory.
    assert!(layout.shared_bytes >= window::bytes(params.vcpus, layout.lanes));
    assert!(SHARED_GPA + layout.shared_bytes <= RAM_GPA);
}

fuzz_target!(|input: Input| {
    let bytes = match input {
        Input::Raw(bytes) => bytes,
        Input::Words { vcpus, memory, image, tables, rest } => page(vcpus, [memory, image, tables, rest]),
        Input::Likely { vcpus, memory_units, image_units, tables } => {
            let words =
                [u64::from(memory_units) << 21, u64::from(image_units) << 21, u64::from(tables) << 12, 0];
            page(u32::from(vcpus), words)
        }
    };
    let Ok(info) = BootInfo::decode(&bytes) else { return };
    // The last word is reserved.
    assert_eq!(info.encode()[..ENCODED_BYTES - 8], bytes[..ENCODED_BYTES - 8]);
    assert!(info.tables_used_bytes <= info.layout.table_pool_bytes);
    check(&info.layout);
});
