//! The guest's end of the shared window: each vCPU's ring to the host, and the doorbell.

use crate::agent::{AgentCell, agent_static};
use crate::arch::{self, clock};
use crate::{memory, task, vcpu};
use core::sync::atomic::{AtomicU64, Ordering, fence};
use nacre_abi::VcpuId;
use nacre_abi::elastic::{ElasticWord, PAGE_VERSION};
use nacre_abi::hypercall::DOORBELL;
use nacre_abi::layout::{Layout, SHARED_VA};
use nacre_abi::message::Header;
use nacre_abi::ring::Full;
use nacre_abi::window::{self, ControlWord, Window};

agent_static! {
    static WINDOW: AgentCell<Window<'static>> = AgentCell::new();
    static RECEIVED: AtomicU64 = AtomicU64::new(0);
    static SENT: AtomicU64 = AtomicU64::new(0);
    static DOORBELLS: AtomicU64 = AtomicU64::new(0);
    /// The vCPUs that have left something unrung.
    static UNRUNG: AtomicU64 = AtomicU64::new(0);
}

/// Counts a message that came from the host.
pub fn count_received() {
    RECEIVED.fetch_add(1, Ordering::Relaxed);
}

/// Messages received, messages sent, doorbells rung for them.
pub fn counters() -> [u64; 3] {
    [&RECEIVED, &SENT, &DOORBELLS].map(|counter| counter.load(Ordering::Relaxed))
}

/// Finds the window; `None` if the host did not put it there. Once, by vCPU 0.
pub fn init(layout: &Layout) -> Option<&'static Window<'static>> {
    let vcpus = layout.params.vcpus;
    let words = (window::bytes(vcpus, layout.lanes) / 8) as usize;
    // SAFETY: the launcher mapped the window there; it is accessed through atomics only.
    let words = unsafe { core::slice::from_raw_parts(SHARED_VA as *const AtomicU64, words) };
    let window = Window::new(words, vcpus, layout.lanes)?;
    let valid = window.control(ControlWord::Magic) == window::MAGIC
        && window.control(ControlWord::AbiVersion) == u64::from(nacre_abi::ABI_VERSION)
        && window.elastic().get(ElasticWord::Version) == PAGE_VERSION;
    valid.then(|| WINDOW.set(window))
}

/// The window.
pub fn window() -> &'static Window<'static> {
    WINDOW.get()
}

/// The window, if boot came that far.
pub fn try_window() -> Option<&'static Window<'static>> {
    WINDOW.try_get()
}

/// Whether this vCPU is in the middle of a message: nothing may be switched there.
pub fn is_sending() -> bool {
    vcpu::local().own().transmit.try_borrow().is_err()
}

/// Puts a message on this vCPU's ring and lets the host know.
///
/// # Errors
/// [`Full`] if there is no room now.
pub fn try_send(header: Header, body: &[u8]) -> Result<(), Full> {
    memory::touch(body);
    vcpu::local().own().transmit.borrow_mut().send(header, body)?;
    SENT.fetch_add(1, Ordering::Relaxed);
    ring();
    Ok(())
}

/// Lets the host know of what is on this vCPU's ring.
fn ring() {
    if vcpu::local().own().unrung_since.replace(0) != 0 {
        UNRUNG.fetch_and(!vcpu::id().bit(), Ordering::Relaxed);
    }
    ring_for_all();
}

/// The vCPUs that have left something unrung.
pub fn unrung() -> u64 {
    UNRUNG.load(Ordering::Relaxed)
}

/// Lets the host know of what is on any vCPU's ring: it looks at all of them.
pub fn ring_for_all() {
    // The host says that it sleeps before it looks at the rings for the last time; we look after we wrote. Only the host
    // says that it is awake: if we did, for others not to ring too, a vCPU that is stopped between its word and its
    // doorbell would keep everybody's messages from being seen.
    fence(Ordering::SeqCst);
    if window().control(ControlWord::HostAwake) == 0 {
        DOORBELLS.fetch_add(1, Ordering::Relaxed);
        arch::hypercall(DOORBELL, 0);
    }
}

/// How long the end of a call may be left unrung while other short calls run, in nanoseconds.
const UNRUNG_NS: u64 = 100_000;

/// Puts a message on this vCPU's ring and leaves the doorbell to [`ring_before`] and [`ring_now`], which the scheduler calls
/// before whatever it does next: a worker that ends many short calls rings once for several. Should the next one take long
/// after all, vCPU 0 rings.
pub fn send_unrung(header: Header, body: &[u8]) {
    memory::touch(body);
    let own = vcpu::local().own();
    let sent = own.transmit.borrow_mut().send(header, body);
    if sent.is_err() {
        return send(header, body);
    }
    SENT.fetch_add(1, Ordering::Relaxed);
    if vcpu::id() == VcpuId::NORMAL {
        ring();
    } else if own.unrung_since.get() == 0 {
        own.unrung_since.set(arch::rdtsc().max(1));
        UNRUNG.fetch_or(vcpu::id().bit(), Ordering::Relaxed);
    }
}

/// Rings for what was left unrung, unless the task that is to run now is `brief` and it is not for long.
pub fn ring_before(brief: bool) {
    let since = vcpu::local().own().unrung_since.get();
    if since != 0 && !(brief && clock::cycles_to_ns(arch::rdtsc().wrapping_sub(since)) < UNRUNG_NS) {
        ring();
    }
}

/// Rings for what was left unrung: nothing else is to be done.
pub fn ring_now() {
    if vcpu::local().own().unrung_since.get() != 0 {
        ring();
    }
}

/// Messages that [`send_later`] lets wait for a doorbell at most, and for how long after the last one it does so.
const UNRUNG_MESSAGES: u32 = 16;
const QUIET_NS: u64 = 2_000_000;

/// As [`send`], for messages about connections: if the host's reader sleeps, but was woken a moment ago, it is not woken for
/// this message alone. It is by [`flush`], by the next switch of this vCPU to its scheduler, or when there are some such
/// messages. So a task that answers many requests in turn rings once for all of them. If it computes for long then, the host
/// sees them all the same: after such a message it looks at the rings by itself for some milliseconds.
pub fn send_later(header: Header, body: &[u8]) {
    memory::touch(body);
    let local = vcpu::local().own();
    if local.transmit.borrow_mut().send(header, body).is_err() {
        return send(header, body);
    }
    SENT.fetch_add(1, Ordering::Relaxed);
    local.unrung.set(local.unrung.get() + 1);
    // Wrapping: a counter that the host has set back rings for nothing.
    let since = arch::rdtsc().wrapping_sub(local.rung_at.get());
    if local.unrung.get() >= UNRUNG_MESSAGES || since > clock::ns_to_cycles(QUIET_NS) {
        flush();
    }
}

/// Wakes the host's reader, if it sleeps, for what [`send_later`] has sent.
pub fn flush() {
    let local = vcpu::local().own();
    if local.unrung.take() != 0 {
        local.rung_at.set(arch::rdtsc());
        fence(Ordering::SeqCst);
        if window().control(ControlWord::HostAwake) == 0 {
            DOORBELLS.fetch_add(1, Ordering::Relaxed);
            arch::hypercall(DOORBELL, 0);
        }
    }
}

/// Longest body of one message to the host.
pub const MAX_BODY: usize = window::TO_HOST_BYTES as usize / 4;

/// The same, waiting for room: a task that holds no lock lets others run meanwhile. The host empties its rings at once, whatever its own
/// readers do, so the wait is short; if it does not, it only harms itself.
pub fn send(header: Header, body: &[u8]) {
    while try_send(header, body).is_err() {
        arch::hypercall(DOORBELL, 0);
        if vcpu::current().is_some() && vcpu::locks_held() == 0 {
            task::yield_now();
        } else {
            core::hint::spin_loop();
        }
    }
}
