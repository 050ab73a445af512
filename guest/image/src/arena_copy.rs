//! Debug images only: sends the tenant arena to the host, or takes one from it, in the clear.
//!
//! This is the proof that the tenant arena is all a running task needs: a task stopped in one CVM goes on in another that
//! got nothing but these pages. The migration agent does the same with encryption and a protocol.

use crate::memory::{self, Promise};
use crate::{areas, heap, link, sched, task, wasm};
use nacre_abi::LARGE_PAGE_BYTES;
use nacre_abi::layout::{HEAP_VA, IMAGE_VA, IMAGE_VA_END, TENANT_VA_END};
use nacre_abi::message::{Header, Kind, NO_PROGRAM};
use nacre_abi::ring::Incoming;
use nacre_mm::GuestVirt;
use nacre_mm::address_space::{AddressSpace, Mapping, PageRange};
use nacre_mm::entry::{Leaf, Perms};

/// First address of the image behind the agent's statics, which have a large page of their own (see build.rs).
const TENANT_IMAGE_VA: u64 = IMAGE_VA + LARGE_PAGE_BYTES;
/// Bytes of one message.
const PIECE_BYTES: u64 = 32 << 10;

/// Handles one of the arena messages.
pub fn handle(incoming: &Incoming<'_, '_>) {
    let header = incoming.header();
    match header.kind {
        Kind::ArenaDump => dump(),
        Kind::ArenaPage => take_page(header, incoming),
        Kind::ArenaLazy => {
            let mut len = [0; 8];
            incoming.copy_body(0, &mut len);
            map_for(header, u64::from_le_bytes(len));
        }
        Kind::ArenaEnd => {
            heap::arrived();
            task::submit_all_runnable();
        }
        _ => {}
    }
}

fn perms_number(perms: Perms) -> u32 {
    match perms {
        Perms::Read => 0,
        Perms::ReadWrite => 1,
        Perms::ReadExecute => 2,
    }
}

fn perms_of(number: u32) -> Perms {
    match number {
        0 => Perms::Read,
        1 => Perms::ReadWrite,
        _ => Perms::ReadExecute,
    }
}

/// Stops all tasks and sends every page of the tenant arena; the tasks stay stopped.
fn dump() {
    let Some(stopped) = sched::scheduler().stop() else { return };
    let workers = sched::scheduler().vcpus();
    let normal = nacre_wval::VcpuId::NORMAL;
    while !sched::scheduler().all_acknowledged(&stopped, workers.without(normal)) {
        // Bumps coalesce: whoever waits for an acknowledgement bumps again.
        wasm::bump_epoch();
        for _ in 0..1000 {
            core::hint::spin_loop();
        }
    }
    let mut send_range = |start, bytes| {
        if let Some(range) = PageRange::new(GuestVirt(start), bytes) {
            memory::space().scan(range, &mut |mapping| send_mapping(mapping, start == TENANT_IMAGE_VA));
        }
    };
    send_range(TENANT_IMAGE_VA, IMAGE_VA_END - TENANT_IMAGE_VA);
    heap::for_each(&mut send_range);
    areas::for_each(&mut send_range);
    link::send(Header::new(Kind::ArenaEnd, NO_PROGRAM), &[]);
    // This CVM is over: what it had runs elsewhere.
    core::mem::forget(stopped);
}

fn send_mapping(mapping: Mapping, of_image: bool) {
    let bytes = mapping.size.bytes();
    match mapping.leaf {
        // What is hidden is empty memory that somebody may map again.
        Leaf::Absent | Leaf::Hidden { .. } | Leaf::Missing { .. } => {}
        Leaf::Lazy(perms) => {
            let header =
                Header::new(Kind::ArenaLazy, NO_PROGRAM).stream(perms_number(perms)).arg(mapping.start.0);
            link::send(header, &bytes.to_le_bytes());
        }
        // Text and constants are in every CVM of this image.
        Leaf::Present { perms, .. } if of_image && perms != Perms::ReadWrite => {}
        Leaf::Present { perms, .. } => {
            let announce = |perms| {
                let header =
                    Header::new(Kind::ArenaLazy, NO_PROGRAM).stream(perms_number(perms)).arg(mapping.start.0);
                link::send(header, &bytes.to_le_bytes());
            };
            if !of_image {
                announce(Perms::ReadWrite);
            }
            let piece_bytes = PIECE_BYTES.min(bytes);
            for start in (mapping.start.0..mapping.start.0 + bytes).step_by(piece_bytes as usize) {
                // SAFETY: mapped and readable; all tasks are stopped, so nothing changes it.
                let piece = unsafe { core::slice::from_raw_parts(start as *const u8, piece_bytes as usize) };
                link::send(Header::new(Kind::ArenaPage, NO_PROGRAM).arg(start), piece);
            }
            if perms != Perms::ReadWrite {
                announce(perms);
            }
        }
    }
}

/// The range, if it lies in the tenant arena.
fn tenant_range(start: u64, bytes: u64) -> Option<PageRange> {
    let range = PageRange::new(GuestVirt(start), bytes)?;
    let arenas = [(TENANT_IMAGE_VA, IMAGE_VA_END), (HEAP_VA, TENANT_VA_END)];
    arenas.iter().any(|(low, high)| range.start() >= *low && range.end() <= *high).then_some(range)
}

fn map_for(header: Header, bytes: u64) {
    if let Some(range) = tenant_range(header.arg, bytes).filter(|range| range.start() >= HEAP_VA) {
        let _ = memory::map(range, perms_of(header.stream), Promise::Heap);
    }
}

fn take_page(header: Header, incoming: &Incoming<'_, '_>) {
    let bytes = u64::from(header.len);
    let Some(range) = tenant_range(header.arg, bytes) else { return };
    if memory::populate(range).is_err() {
        return;
    }
    // SAFETY: a debug image trusts its host with all of the tenant arena; the range is mapped and writable.
    let into = unsafe { core::slice::from_raw_parts_mut(header.arg as *mut u8, bytes as usize) };
    incoming.copy_body(0, into);
}
