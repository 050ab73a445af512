//! The guest: what runs inside a Nacre CVM, all of it in ring 3.
//!
//! ```text
//! arch        the machine: ring-0 stub, context switch, exceptions, time, CPUID
//! vcpu        per-vCPU words and stacks           agent     statics of the agent arena
//! memory      address space and frames            heap areas  the tenant arena's memory
//! sched task  tasks on vCPUs                      link      rings and doorbell
//! elastic     which workers may run
//! dispatcher  vCPU 0: messages, timers            program   what the host loads and runs
//! migrate     the tenant goes to another CVM, or comes from one
//! modules     code that is loaded once            calls     calls of it       system, call_io  what WASI stands on
//! children    tasks that programs spawn           once      values that are set once
//! wasm        the engine, WASI                    console   last words
//! ```
//! What can be said without a machine lives in the crates `nacre-mm`, `nacre-wval`, `nacre-wasi`, `nacre-engine`.
#![no_std]
#![no_main]

extern crate alloc;

mod agent;
mod arch;
mod areas;
#[cfg(feature = "debug-image")]
mod arena_copy;
#[cfg(feature = "debug-image")]
mod audit;
mod call_io;
mod calls;
mod children;
mod console;
mod dispatcher;
mod elastic;
mod handover;
mod heap;
mod link;
mod memory;
mod migrate;
mod modules;
mod normal;
mod once;
mod phases;
mod program;
mod sched;
mod sealed;
#[cfg(feature = "debug-image")]
mod selftest;
mod sockets;
mod stats;
mod stdin;
mod system;
mod task;
mod translations;
mod vcpu;
mod wasm;

use agent::{AgentCell, agent_static};
use memory::Scratch;
use nacre_abi::VcpuId;
use nacre_abi::boot::BootInfo;
use nacre_abi::hypercall::{self, ExitReason};
use nacre_abi::message::{Header, Kind, NO_PROGRAM};

agent_static! {
    static OWN: AgentCell<sched::AllOwn> = AgentCell::new();
}

/// First Rust code of every vCPU, on its scheduler stack. The launcher passes the vCPU's number.
#[unsafe(no_mangle)]
extern "C" fn guest_entry(vcpu: u64) -> ! {
    let Some(vcpu) = VcpuId::new(vcpu as u32) else { arch::exit(ExitReason::BadLaunch) };
    // SAFETY: the launcher starts each vCPU once, with its own number.
    unsafe { vcpu::init(vcpu) };
    translations::started();
    if vcpu.is_worker() {
        // Woken before vCPU 0 has set the scheduler up, which a host may do: not yet.
        let own = loop {
            match OWN.try_get() {
                Some(own) => break own,
                None => arch::hypercall(hypercall::PARK, 0),
            }
        };
        vcpu::set_own(own.of(vcpu));
        sched::worker_loop();
    }
    phases::mark(&phases::ENTRY);
    match boot() {
        Ok(dispatcher) => dispatcher.run(),
        Err(what) => {
            console::fatal(ExitReason::BadLaunch, format_args!("launch refused by the guest: {what}"))
        }
    }
}

/// Brings the guest up on vCPU 0.
fn boot() -> Result<dispatcher::Dispatcher, &'static str> {
    arch::exceptions::init();
    let info = BootInfo::decode(&arch::boot_info_bytes())
        .map_err(|_| "the boot information does not fit this image")?;
    let window = link::init(&info.layout).ok_or("the shared window is of another version")?;
    arch::clock::init(window, phases::at(&phases::ENTRY)).ok_or("the clock rate is impossible")?;
    let mut scratch = Scratch::new(&info.layout);
    memory::init(&info, &mut scratch).map_err(|_| "the page-table pool is too small")?;
    let (timers, own) = sched::init(&info.layout, &mut scratch);
    vcpu::set_own(OWN.set(own).of(VcpuId::NORMAL));
    let dispatcher = dispatcher::Dispatcher::new(timers, &mut scratch);
    phases::mark(&phases::MEMORY_READY);
    link::send(Header::new(Kind::Ready, NO_PROGRAM).arg(arch::rdtsc()), &[]);
    Ok(dispatcher)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // What `alloc` says when an allocation that cannot fail does. It is the end of the task that asked, not of the CVM.
    if console::Text::of(format_args!("{}", info.message())).as_bytes().starts_with(b"memory allocation of") {
        task::end_out_of_memory();
    }
    console::fatal(ExitReason::Panic, format_args!("{info}"))
}
