//! Where things are: guest-physical and guest-virtual memory of a CVM.
//!
//! ```text
//! guest-physical                              guest-virtual
//! SHARED_GPA  shared window                   IMAGE_VA   the image: text, constants, statics (tenant arena: .data .bss)
//! RAM_GPA     image (2 MiB per segment)       AGENT_VA   the agent arena, one linear window
//!             agent arena                     VCPU_VA    per-vCPU blocks: stacks with guard pages (agent arena)
//!             frames: the rest                SHARED_VA  the shared window
//!                                             HEAP_VA    tenant heap   \ the tenant arena: same addresses in every
//!                                             AREAS_VA   tenant areas  / CVM of the same image
//! ```
//!
//! Everything here is a pure function of [`LaunchParams`], so the launcher, the guest and an offline measurement agree.

use crate::{LARGE_PAGE_BYTES, MAX_VCPUS, PAGE_BYTES};

/// First guest-physical address of private memory. Above 4 GiB, so that it is one run without a hole for devices.
pub const RAM_GPA: u64 = 4 << 30;
/// First guest-physical address of the shared window.
pub const SHARED_GPA: u64 = 1 << 30;
/// Where the image is linked to run.
pub const IMAGE_VA: u64 = 0x40_0000;
/// First virtual address beyond the image.
pub const IMAGE_VA_END: u64 = 0x4000_0000;
/// Linear window onto the agent arena.
pub const AGENT_VA: u64 = 0x10_0000_0000;
/// Per-vCPU blocks, [`VCPU_STRIDE`] apart.
pub const VCPU_VA: u64 = 0x18_0000_0000;
/// The shared window.
pub const SHARED_VA: u64 = 0x20_0000_0000;
/// First address of the tenant arena outside the image; the tenant heap begins here.
pub const HEAP_VA: u64 = 0x100_0000_0000;
/// First address behind the heap: areas (linear memories, code, fiber stacks).
pub const AREAS_VA: u64 = 0x200_0000_0000;
/// End of the tenant arena.
pub const TENANT_VA_END: u64 = 0x5000_0000_0000;

/// Distance of two per-vCPU blocks in virtual memory.
pub const VCPU_STRIDE: u64 = 1 << 20;

/// Run queues of one vCPU: three classes of priority, in each new tasks and those that have begun.
pub const RUN_QUEUES_PER_VCPU: u64 = 6;

/// Smallest and largest private memory of a CVM in bytes.
pub const MEMORY_MIN_BYTES: u64 = 64 << 20;
/// See [`MEMORY_MIN_BYTES`].
pub const MEMORY_MAX_BYTES: u64 = 64 << 30;

/// A page-aligned part of a per-vCPU block: offset from the block's start in virtual memory and length, both in bytes.
/// The page below each part is unmapped, so running off its lower end faults instead of corrupting its neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuPart {
    /// Offset in the block.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Words reached through the vCPU's GS base, and its task state segment.
pub const VCPU_LOCAL: VcpuPart = VcpuPart { offset: 0x1000, bytes: 2 * PAGE_BYTES };
/// Stack of the ring-0 stub (exception frames only).
pub const VCPU_RING0_STACK: VcpuPart = VcpuPart { offset: 0x4000, bytes: PAGE_BYTES };
/// Stack of exception upcalls that hit the scheduler itself.
pub const VCPU_UPCALL_STACK: VcpuPart = VcpuPart { offset: 0x6000, bytes: 8 * PAGE_BYTES };
/// Stack of the scheduler and, on vCPU 0, of the dispatcher.
pub const VCPU_SCHEDULER_STACK: VcpuPart = VcpuPart { offset: 0x1_0000, bytes: 32 * PAGE_BYTES };
/// All parts of a per-vCPU block in the order of their frames.
pub const VCPU_PARTS: [VcpuPart; 4] = [VCPU_LOCAL, VCPU_RING0_STACK, VCPU_UPCALL_STACK, VCPU_SCHEDULER_STACK];
/// Offset of the task state segment inside [`VCPU_LOCAL`].
pub const TSS_OFFSET: u64 = PAGE_BYTES;
/// Offset of the I/O permission bitmap inside the task state segment (it follows the 104 architectural bytes).
pub const TSS_IO_BITMAP: u64 = 0x68;
/// Limit of the task state segment: bitmap for ports up to [`LAST_PORT`](crate::hypercall::LAST_PORT), one byte more because
/// a hypercall writes four bytes and the processor checks the bits of all four ports, then the terminating byte of ones.
pub const TSS_LIMIT: u64 = TSS_IO_BITMAP + (crate::hypercall::LAST_PORT as u64 + 1) / 8 + 1;

/// Bytes of frames that one vCPU's block takes.
pub const VCPU_BLOCK_BYTES: u64 =
    VCPU_LOCAL.bytes + VCPU_RING0_STACK.bytes + VCPU_UPCALL_STACK.bytes + VCPU_SCHEDULER_STACK.bytes;

/// Offset in the agent arena of the [boot information](crate::boot::BootInfo) page.
pub const AGENT_BOOT_INFO: u64 = 0;
/// Offset in the agent arena of the global descriptor table.
pub const AGENT_GDT: u64 = PAGE_BYTES;
/// Offset in the agent arena of the interrupt descriptor table.
pub const AGENT_IDT: u64 = 2 * PAGE_BYTES;
/// Offset in the agent arena of the root page table.
pub const AGENT_ROOT_TABLE: u64 = 3 * PAGE_BYTES;
/// Offset in the agent arena of the first per-vCPU block's frames.
pub const AGENT_VCPU_BLOCKS: u64 = 4 * PAGE_BYTES;

const _: () = assert!(
    VCPU_SCHEDULER_STACK.offset + VCPU_SCHEDULER_STACK.bytes <= VCPU_STRIDE,
    "block overflows its stride"
);
const _: () =
    assert!(VCPU_VA + MAX_VCPUS as u64 * VCPU_STRIDE <= SHARED_VA, "per-vCPU blocks reach the shared window");

/// What the one who launches a CVM chooses; all of it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchParams {
    /// vCPUs: one normal vCPU and the Worker vCPUs.
    pub vcpus: u32,
    /// Private memory in bytes, a multiple of a large page.
    pub memory_bytes: u64,
    /// Bytes that the image takes, a multiple of a large page.
    pub image_bytes: u64,
}

/// Why launch parameters are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// `vcpus` is not in 1..=64.
    Vcpus,
    /// The memory is not a multiple of 2 MiB in 64 MiB..=64 GiB.
    Memory,
    /// Image and agent arena leave less than half of the memory to the tenant.
    TooSmall,
}

/// The layout of one CVM; all addresses are guest-physical unless they are called `_va`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The parameters it follows from.
    pub params: LaunchParams,
    /// Start of the agent arena.
    pub agent_gpa: u64,
    /// Length of the agent arena in bytes.
    pub agent_bytes: u64,
    /// Offset in the agent arena of the page-table pool.
    pub table_pool_offset: u64,
    /// Length of the page-table pool in bytes.
    pub table_pool_bytes: u64,
    /// Offset in the agent arena of the memory the agent divides up itself at boot (allocator maps, run queues).
    pub scratch_offset: u64,
    /// Length of that memory in bytes.
    pub scratch_bytes: u64,
    /// Offset in the agent arena of the memory for migrations: ledgers, and buffers for frames.
    pub migrate_offset: u64,
    /// Length of that memory in bytes.
    pub migrate_bytes: u64,
    /// Lanes that a migration of this CVM can have.
    pub lanes: u32,
    /// Start of the frames: private memory that the guest's allocator hands out.
    pub frames_gpa: u64,
    /// Length of the frames in bytes.
    pub frames_bytes: u64,
    /// Tasks that can exist at once; each run queue has this many places.
    pub max_tasks: u32,
    /// Length of the shared window in bytes.
    pub shared_bytes: u64,
}

/// `value` rounded up to a multiple of `unit`, a power of two.
pub const fn round_up(value: u64, unit: u64) -> u64 {
    (value + unit - 1) & !(unit - 1)
}

impl Layout {
    /// The layout for `params`.
    ///
    /// # Errors
    /// [`LayoutError`] if a parameter is out of its range.
    pub const fn new(params: LaunchParams) -> Result<Layout, LayoutError> {
        let LaunchParams { vcpus, memory_bytes, image_bytes } = params;
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(LayoutError::Vcpus);
        }
        if memory_bytes < MEMORY_MIN_BYTES
            || memory_bytes > MEMORY_MAX_BYTES
            || memory_bytes % LARGE_PAGE_BYTES != 0
        {
            return Err(LayoutError::Memory);
        }
        if image_bytes % LARGE_PAGE_BYTES != 0 || image_bytes > IMAGE_VA_END - IMAGE_VA {
            return Err(LayoutError::TooSmall);
        }
        // One task per 256 KiB of memory, 256 at least, 65,536 at most; a power of two because the rings need one.
        let max_tasks = clamp((memory_bytes >> 18).next_power_of_two(), 256, 1 << 16);
        let vcpu_blocks_end = AGENT_VCPU_BLOCKS + vcpus as u64 * VCPU_BLOCK_BYTES;
        // A leaf table for every 2 MiB of memory, as much again for sparse areas, and a floor for small guests.
        let table_pool_bytes = memory_bytes / 256 + (2 << 20);
        // Run queues (8 bytes a task and queue) and timers (two of 64 bytes a task), allocator maps (under 128 bytes per large page, and a bit per table).
        let scratch_bytes = round_up(
            (1 << 20)
                + max_tasks * 8 * RUN_QUEUES_PER_VCPU * vcpus as u64
                + max_tasks * 2 * 64
                + (memory_bytes / LARGE_PAGE_BYTES) * 128
                + table_pool_bytes / 1024,
            PAGE_BYTES,
        );
        // What a small guest touches of all three lies on one large page of the host.
        let scratch_offset = vcpu_blocks_end;
        let table_pool_offset = scratch_offset + scratch_bytes;
        // Last, because it is touched by nobody before a migration.
        let migrate_offset = round_up(table_pool_offset + table_pool_bytes, PAGE_BYTES);
        let migrate_bytes = round_up(crate::migrate::agent_bytes(memory_bytes, vcpus), PAGE_BYTES);
        let lanes = crate::migrate::lanes(memory_bytes, vcpus);
        let agent_bytes = round_up(migrate_offset + migrate_bytes, LARGE_PAGE_BYTES);
        let frames_offset = image_bytes + agent_bytes;
        if frames_offset > memory_bytes / 2 {
            return Err(LayoutError::TooSmall);
        }
        Ok(Layout {
            params,
            agent_gpa: RAM_GPA + image_bytes,
            agent_bytes,
            table_pool_offset,
            table_pool_bytes,
            scratch_offset,
            scratch_bytes,
            migrate_offset,
            migrate_bytes,
            lanes,
            frames_gpa: RAM_GPA + frames_offset,
            frames_bytes: memory_bytes - frames_offset,
            max_tasks: max_tasks as u32,
            shared_bytes: round_up(crate::window::bytes(vcpus, lanes), LARGE_PAGE_BYTES),
        })
    }

    /// Virtual address of `part` of `vcpu`'s block (an index below `params.vcpus`).
    pub const fn vcpu_part_va(vcpu: usize, part: VcpuPart) -> u64 {
        VCPU_VA + vcpu as u64 * VCPU_STRIDE + part.offset
    }

    /// Initial stack pointer: the top of `part`.
    pub const fn vcpu_stack_top(vcpu: usize, part: VcpuPart) -> u64 {
        Self::vcpu_part_va(vcpu, part) + part.bytes
    }

    /// Guest-physical address of the root page table, as every vCPU's CR3 has it.
    pub const fn root_table_gpa(&self) -> u64 {
        self.agent_gpa + AGENT_ROOT_TABLE
    }
}

const fn clamp(value: u64, low: u64, high: u64) -> u64 {
    if value < low {
        low
    } else if value > high {
        high
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(vcpus: u32, mib: u64) -> LaunchParams {
        LaunchParams { vcpus, memory_bytes: mib << 20, image_bytes: 8 << 20 }
    }

    #[test]
    fn parts_do_not_overlap_and_leave_guards() {
        let mut end = 0;
        for part in VCPU_PARTS {
            assert!(part.offset >= end + PAGE_BYTES, "no guard page below {part:?}");
            end = part.offset + part.bytes;
        }
        assert!(end <= VCPU_STRIDE);
    }

    #[test]
    fn regions_are_disjoint_and_fill_the_memory() {
        for (vcpus, mib) in [(1, 64), (2, 64), (64, 256), (3, 1024), (64, 65536)] {
            let layout = Layout::new(params(vcpus, mib)).unwrap();
            assert_eq!(layout.agent_gpa + layout.agent_bytes, layout.frames_gpa);
            assert_eq!(layout.frames_gpa + layout.frames_bytes, RAM_GPA + (mib << 20));
            assert!(layout.scratch_offset >= AGENT_VCPU_BLOCKS + vcpus as u64 * VCPU_BLOCK_BYTES);
            assert!(layout.scratch_offset + layout.scratch_bytes <= layout.table_pool_offset);
            assert!(layout.table_pool_offset + layout.table_pool_bytes <= layout.migrate_offset);
            assert!(layout.migrate_offset + layout.migrate_bytes <= layout.agent_bytes);
            for value in [layout.agent_gpa, layout.frames_gpa, layout.frames_bytes, layout.agent_bytes] {
                assert_eq!(value % LARGE_PAGE_BYTES, 0);
            }
        }
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert_eq!(Layout::new(params(0, 64)), Err(LayoutError::Vcpus));
        assert_eq!(Layout::new(params(65, 64)), Err(LayoutError::Vcpus));
        assert_eq!(Layout::new(params(1, 62)), Err(LayoutError::Memory));
        assert_eq!(Layout::new(params(1, 65538)), Err(LayoutError::Memory));
        assert_eq!(
            Layout::new(LaunchParams { vcpus: 1, memory_bytes: (64 << 20) + 4096, image_bytes: 0 }),
            Err(LayoutError::Memory)
        );
        assert_eq!(
            Layout::new(LaunchParams { vcpus: 64, memory_bytes: 64 << 20, image_bytes: 48 << 20 }),
            Err(LayoutError::TooSmall)
        );
    }
}
