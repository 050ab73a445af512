//! Debug images only: the guest looks through its own memory, for tests under a host that misbehaves.
//!
//! What must hold in an idle CVM: each frame is mapped once in the tenant arena, by nobody else, and not free; there are
//! as many mapped as handed out and as many promised as counted; what the exception stub relies on is unchanged.

use crate::task::{self, Spec};
use crate::{arch, areas, heap, memory, vcpu};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use nacre_abi::message::{Header, Kind};
use nacre_abi::{PAGE_BYTES, VcpuId};
use nacre_mm::address_space::{AddressSpace, Mapping, PageRange};
use nacre_mm::{GuestPhys, GuestVirt};

/// Tasks that have told their end may not be gone yet: so often it looks before it believes what it sees.
const LOOKS: u32 = 200;

/// Looks through everything in a task of its own, and sends "ok" or what is wrong as the body of the same message.
pub fn start(header: Header) {
    let entry = move |_| {
        let mut found = look();
        for _ in 1..LOOKS {
            if found.is_none() {
                break;
            }
            task::yield_now();
            found = look();
        }
        let text = found.unwrap_or_else(|| String::from("ok"));
        crate::link::send(Header::new(Kind::SelfTest, header.program), text.as_bytes());
    };
    if let Ok(task) = task::create(Spec::helper(header.program), Box::new(entry)) {
        task::start(&task);
    }
}

/// What is wrong, if anything is.
fn look() -> Option<String> {
    if !arch::exceptions::table_is_intact() {
        return Some("the interrupt descriptor table has changed".into());
    }
    let vcpus = (0..memory::layout().params.vcpus).filter_map(VcpuId::new);
    if let Some(vcpu) = { vcpus }.find(|vcpu| !vcpu::stub_words_are_intact(*vcpu)) {
        return Some(format!("the words of vCPU {} for the stub have changed", vcpu.index()));
    }
    look_at_mappings()
}

fn look_at_mappings() -> Option<String> {
    let layout = memory::layout();
    let frames = memory::frames();
    // Made before anything is counted: it may itself need a page.
    let mut seen = vec![0u64; (layout.frames_bytes / PAGE_BYTES).div_ceil(64) as usize];
    let (mut present, mut promised, mut wrong) = (0u64, 0u64, None);
    let mut visit = |mapping: Mapping| {
        let pages = mapping.size.bytes() / PAGE_BYTES;
        let Some(frame) = mapping.leaf.own_frame() else {
            promised += pages;
            return;
        };
        present += pages;
        for page in 0..pages {
            let address = frame.0 + page * PAGE_BYTES;
            let index = address.wrapping_sub(layout.frames_gpa) / PAGE_BYTES;
            let what = match (frames.is_free(GuestPhys(address)), seen.get_mut((index / 64) as usize)) {
                (Some(false), Some(word)) if *word >> (index % 64) & 1 == 0 => {
                    *word |= 1 << (index % 64);
                    continue;
                }
                (Some(true), _) => "is free",
                (Some(false), Some(_)) => "is mapped twice",
                _ => "is not a frame",
            };
            wrong.get_or_insert_with(|| format!("{address:#x}, mapped at {:#x}, {what}", mapping.start.0));
        }
    };
    let mut look_through = |start, bytes| {
        if let Some(range) = PageRange::new(GuestVirt(start), bytes) {
            memory::space().scan(range, &mut visit);
        }
    };
    heap::for_each(&mut look_through);
    areas::for_each(&mut look_through);
    let (used, committed) = (frames.used_pages(), frames.committed_pages().0);
    if wrong.is_none() && present != used {
        wrong = Some(format!("{present} pages are mapped, {used} are handed out"));
    }
    if wrong.is_none() && present + promised != committed {
        wrong = Some(format!("{} pages are mapped or promised, {committed} are counted", present + promised));
    }
    wrong
}
