//! vCPU threads: each runs its vCPU until it parks, exits or is stopped.
//!
//! The thread of a parked vCPU sleeps in the kernel, in a read of its wake event: no CPU. A wake is a count in
//! that event, so one that comes early is not lost. A worker's thread then asks the CPU manager (see [`crate::elastic`])
//! and enters the guest once it is admitted.
#![allow(unsafe_code)]

use crate::elastic::manager::Membership;
use crate::elastic::seat::Seat;
use crate::hooks::Hooks;
use crate::kvm::Machine;
use kvm_ioctls::{VcpuExit, VcpuFd};
use nacre_abi::VcpuId;
use nacre_abi::hypercall::{self, ExitReason, PARK_FOREVER, PRINT_MAX_BYTES};
use nacre_abi::window::Window;
use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Why a vCPU thread ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEnd {
    /// It was told to stop.
    Stopped,
    /// The guest ended the CVM.
    GuestExit(ExitReason),
    /// The vCPU shut down: a fault while delivering a fault.
    Shutdown,
    /// KVM can't go on.
    Failed(String),
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a vCPU has done.
        #[derive(Debug, Default)]
        pub struct VcpuCounters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl VcpuCounters {
            fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Nanoseconds inside KVM_RUN, up to the last exit.
    run_ns,
    /// Parks.
    park,
    /// Ranges of memory given back.
    release,
    /// Lines printed.
    print,
    /// Empty calls.
    nop,
    /// Times it said that more tasks wait than the host knows.
    demand,
    /// Interrupted by a signal.
    signal,
    /// Exits this VMM does not know.
    unknown,
}

/// What the rest of a CVM has of one of its vCPUs.
pub struct VcpuHandle {
    /// Signals that it should run.
    pub wake: EventFd,
    /// What it has done.
    pub counters: VcpuCounters,
    /// Time stamp counter when it was last entered; 0 while it is outside of the guest.
    pub entered_tsc: AtomicU64,
    /// Its thread's place under the CPU manager.
    pub seat: Seat,
}

impl VcpuHandle {
    /// The handle of a vCPU that has not run.
    pub fn new(wake: EventFd) -> VcpuHandle {
        VcpuHandle {
            wake,
            counters: VcpuCounters::default(),
            entered_tsc: AtomicU64::new(0),
            seat: Seat::default(),
        }
    }

    /// Gets the vCPU out of the guest, wherever it is there. It enters again at once: for [`Hooks::entering`].
    pub fn interrupt(&self) {
        self.seat.interrupt();
    }

    /// Names and values of its counters; the time in the guest includes the present stay. `tsc_khz` is the rate of the
    /// time stamp counter.
    pub fn snapshot(&self, tsc_khz: u64) -> Vec<(&'static str, u64)> {
        let entered = self.entered_tsc.load(Ordering::Relaxed);
        let inside = if entered == 0 { 0 } else { rdtsc().saturating_sub(entered) };
        let inside_ns = (u128::from(inside) * 1_000_000 / u128::from(tsc_khz.max(1))) as u64;
        let mut values = self.counters.values();
        for (name, value) in &mut values {
            if *name == "run_ns" {
                *value += inside_ns;
            }
        }
        values
    }
}

/// What all vCPU threads of a CVM share.
pub struct Shared {
    /// The machine.
    pub machine: Machine,
    /// vCPUs by number.
    pub vcpus: Vec<VcpuHandle>,
    /// Set when all threads should end.
    pub stop: Arc<AtomicBool>,
    /// Lanes of a migration whose pipes are in the window.
    pub lanes: u32,
    /// What the guest printed, and where it goes.
    pub on_print: Box<dyn Fn(&str) + Send + Sync>,
    /// Its place under the CPU manager, from before the first vCPU runs.
    pub(crate) membership: OnceLock<Membership>,
    /// What a test does in the host's place.
    pub hooks: Option<Arc<dyn Hooks>>,
}

impl Shared {
    /// Whether the vCPU may see a wake that was taken from its event.
    fn may_see_wake(&self, id: VcpuId) -> bool {
        self.stop.load(Ordering::SeqCst) || self.hooks.as_ref().is_none_or(|hooks| hooks.woken(id, self))
    }
}

thread_local! {
    /// Where this thread's vCPU looks before it enters the guest.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// The signal that gets a vCPU out of the guest.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes the next KVM_RUN of this thread return at once: a signal alone would get lost between the look at `stop`
/// and the entry.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: points into the run structure of this thread's vCPU, which outlives the pointer (see `run`).
        unsafe { flag.write_volatile(1) }
    }
}

/// Prepares the process. Once is enough, more do no harm.
///
/// # Errors
/// The kernel's.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Gets the vCPU thread out of the guest and out of its sleep, so that it looks at `stop`.
pub fn kick(thread: &std::thread::JoinHandle<VcpuEnd>, vcpu: &VcpuHandle) {
    let _ = vcpu.wake.write(1);
    vcpu.seat.unpark();
    // A thread that has ended meanwhile can't be signalled, and need not.
    let _ = thread.kill(kick_signal());
}

/// Gets a vCPU thread of this process out of the guest, by its number. Does nothing if it has ended.
pub fn kick_thread(thread: i32) {
    // SAFETY: a system call without pointers; a thread that does not run a vCPU ignores the signal (see `on_kick`).
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal()) };
}

/// The number of this thread.
pub fn thread_id() -> i32 {
    // SAFETY: a system call without arguments.
    unsafe { libc::gettid() }
}

/// CPU time that this thread has used, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time that a thread of this process has used, in nanoseconds; 0 if it has ended.
pub fn thread_cpu_ns(thread: i32) -> u64 {
    // clock_getres(2) and the kernel's posix-timers.h: the complement of the thread's number, then "thread" (4) and
    // "scheduler's clock" (2).
    clock_ns((!thread) << 3 | 4 | 2)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the result; an unknown clock is an error and leaves zeros.
    unsafe { libc::clock_gettime(clock, &mut time) };
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Whether this process may run on `cpu`.
pub fn may_use_cpu(cpu: usize) -> bool {
    // SAFETY: plain old data for which zeros are valid, and a call that fills at most its size.
    let (set, result) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let result = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        (set, result)
    };
    // SAFETY: the number is below the size of the set.
    result == 0 && cpu < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(cpu, &set) }
}

/// Lets this thread run on `cpu` only. What the kernel refuses costs speed, not correctness.
fn pin_to(cpu: usize) {
    if cpu < libc::CPU_SETSIZE as usize {
        // SAFETY: plain old data for which zeros are valid; the number is below the size of the set.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        }
    }
}

/// A worker's thread and its manager.
struct Worker<'s> {
    id: VcpuId,
    seat: &'s Seat,
    membership: &'s Membership,
    pinned: Option<usize>,
}

impl Worker<'_> {
    /// Sleeps until the guest wakes it for the first time, then as [`come`](Self::come).
    fn begin(&mut self, handle: &VcpuHandle, shared: &Shared) -> bool {
        // An interrupted sleep is no wake.
        let woken = || handle.wake.read().is_ok() && shared.may_see_wake(self.id);
        loop {
            if woken() || shared.stop.load(Ordering::SeqCst) {
                break;
            }
        }
        self.come(&shared.stop)
    }

    /// Asks for a CPU and waits until there is one; false if the CVM stops first.
    fn come(&mut self, stop: &AtomicBool) -> bool {
        self.membership.manager.woke(self.membership.cvm, self.id);
        self.go_on(stop)
    }

    /// Waits for the CPU that was asked for; false if the CVM stops first.
    fn go_on(&mut self, stop: &AtomicBool) -> bool {
        let admitted = self.seat.wait_for_cpu(stop);
        let cpu = self.seat.cpu();
        if cpu != self.pinned {
            cpu.into_iter().for_each(pin_to);
            self.pinned = cpu;
        }
        admitted
    }

    /// Leaves the guest if the manager wants that, until there is a CPU again; false if the CVM stops first.
    fn leave_if_told(&mut self, stop: &AtomicBool) -> bool {
        if !self.seat.must_leave() {
            return true;
        }
        self.membership.manager.descheduled(self.membership.cvm, self.id);
        self.go_on(stop)
    }
}

/// Runs a vCPU until it ends. Workers sleep before their first instruction.
pub fn run(mut vcpu: VcpuFd, id: VcpuId, shared: &Arc<Shared>, window: &Window<'_>) -> VcpuEnd {
    IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
    let seat = &shared.vcpus[id.index()].seat;
    seat.enter();
    let end = run_until_end(&mut vcpu, id, shared, window);
    seat.exit();
    IMMEDIATE_EXIT.set(std::ptr::null_mut());
    end
}

fn run_until_end(vcpu: &mut VcpuFd, id: VcpuId, shared: &Arc<Shared>, window: &Window<'_>) -> VcpuEnd {
    let handle = &shared.vcpus[id.index()];
    let counters = &handle.counters;
    let membership = shared.membership.get();
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    let mut worker = membership.filter(|_| id.is_worker()).map(|membership| Worker {
        id,
        seat: &handle.seat,
        membership,
        pinned: None,
    });
    if let Some(worker) = &mut worker
        && !worker.begin(handle, shared)
    {
        return VcpuEnd::Stopped;
    }
    loop {
        if let Some(worker) = &mut worker
            && !worker.leave_if_told(&shared.stop)
        {
            return VcpuEnd::Stopped;
        }
        if shared.stop.load(Ordering::SeqCst) {
            return VcpuEnd::Stopped;
        }
        if let Some(hooks) = &shared.hooks {
            hooks.entering(id, vcpu, shared);
        }
        let entered = Instant::now();
        handle.entered_tsc.store(rdtsc(), Ordering::Relaxed);
        let exit = vcpu.run();
        handle.entered_tsc.store(0, Ordering::Relaxed);
        counters.run_ns.fetch_add(entered.elapsed().as_nanos() as u64, Ordering::Relaxed);
        match exit {
            Ok(VcpuExit::IoOut(hypercall::PARK, _)) => {
                count(&counters.park);
                let mailbox = window.mailbox(id);
                let (deadline, wake) =
                    (mailbox[0].load(Ordering::Relaxed), mailbox[1].load(Ordering::Relaxed));
                if let Some(worker) = &mut worker {
                    worker.membership.manager.parked(worker.membership.cvm, id);
                    wake_after_park(wake, shared);
                }
                sleep(id, shared, deadline);
                if worker.as_mut().is_some_and(|worker| !worker.come(&shared.stop)) {
                    return VcpuEnd::Stopped;
                }
            }
            Ok(VcpuExit::IoOut(hypercall::DEMAND, _)) => {
                count(&counters.demand);
                if let Some(membership) = membership {
                    membership.manager.demand_rose(membership.cvm);
                }
            }
            Ok(VcpuExit::IoOut(hypercall::EXIT, data)) => {
                return VcpuEnd::GuestExit(ExitReason::from_code(value(data)));
            }
            Ok(VcpuExit::IoOut(hypercall::RELEASE, _)) => {
                count(&counters.release);
                release(id, shared, window);
            }
            Ok(VcpuExit::IoOut(hypercall::PRINT, data)) => {
                count(&counters.print);
                (shared.on_print)(&printed(window, id, value(data) as usize));
            }
            Ok(VcpuExit::IoOut(hypercall::NOP, _)) => drop(count(&counters.nop)),
            Ok(VcpuExit::Shutdown) => return VcpuEnd::Shutdown,
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return VcpuEnd::Failed(format!("entry refused, reason {reason:#x}"));
            }
            Ok(VcpuExit::InternalError) => return VcpuEnd::Failed("internal error of KVM".into()),
            Ok(_) => drop(count(&counters.unknown)),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(&counters.signal);
                vcpu.set_kvm_immediate_exit(0);
            }
            Err(error) => return VcpuEnd::Failed(io::Error::from_raw_os_error(error.errno()).to_string()),
        }
    }
}

/// Rings the doorbell that a parking worker names, as its number plus one.
fn wake_after_park(wake: u64, shared: &Shared) {
    let named = wake.checked_sub(1).and_then(|index| shared.vcpus.get(usize::try_from(index).ok()?));
    if let Some(vcpu) = named {
        let _ = vcpu.wake.write(1);
    }
}

/// The value of a port write; the guest always writes four bytes.
fn value(data: &[u8]) -> u32 {
    data.try_into().map_or(u32::MAX, u32::from_le_bytes)
}

fn release(id: VcpuId, shared: &Shared, window: &Window<'_>) {
    let mailbox = window.mailbox(id);
    let (start, bytes) = (mailbox[0].load(Ordering::Relaxed), mailbox[1].load(Ordering::Relaxed));
    if let Err(error) = shared.machine.private().release(start, bytes) {
        tracing::warn!(start, bytes, %error, "the guest releases memory that it has not");
    }
}

/// The text of a print call, without what a terminal would act on.
fn printed(window: &Window<'_>, id: VcpuId, len: usize) -> String {
    let len = len.min(PRINT_MAX_BYTES);
    let bytes: Vec<u8> = window
        .mailbox(id)
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .take(len)
        .collect();
    String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

/// Sleeps until the vCPU is woken, at most `nanoseconds`.
fn sleep(id: VcpuId, shared: &Shared, nanoseconds: u64) {
    let wake = &shared.vcpus[id.index()].wake;
    let deadline = Instant::now().checked_add(Duration::from_nanos(nanoseconds));
    loop {
        if let Some(deadline) = deadline.filter(|_| nanoseconds != PARK_FOREVER)
            && !readable_before(wake, deadline)
        {
            return;
        }
        // Interrupted by a kick: the caller looks at `stop`.
        if wake.read().is_err() || shared.may_see_wake(id) {
            return;
        }
    }
}

/// Waits until `event` was signalled; false at the deadline, or if a signal came first.
fn readable_before(event: &EventFd, deadline: Instant) -> bool {
    let wait = deadline.saturating_duration_since(Instant::now());
    let timeout = libc::timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid descriptor entry, a valid time, no signal mask.
    unsafe { libc::ppoll(&mut poll, 1, &timeout, std::ptr::null()) > 0 }
}

/// The time stamp counter of this processor.
pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}
