//! The C functions through which wasmtime reaches this "operating system" (wasmtime's `sys/custom/capi.rs`).

use crate::agent::agent_static;
use crate::wasm::slots::{self, Image};
use crate::{areas, task, vcpu};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use nacre_abi::VcpuId;
use nacre_mm::entry::Perms;

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
/// Any non-zero value is an error; this is what Linux calls ENOMEM.
const NO_MEMORY: i32 = 12;

/// wasmtime's trap handler. A tenant static, as wasmtime's own "initialised" flag is: both move together.
static TRAP_HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Instruction pointer, frame pointer, whether there is a faulting address, that address.
pub type TrapHandler = extern "C" fn(usize, usize, bool, usize);

/// wasmtime's trap handler, once an engine exists. It returns only if the exception is not a Wasm trap.
pub fn trap_handler() -> Option<TrapHandler> {
    let handler = TRAP_HANDLER.load(Ordering::Relaxed);
    // SAFETY: only `wasmtime_init_traps` stores it, from a function pointer of this type.
    (handler != 0).then(|| unsafe { core::mem::transmute::<usize, TrapHandler>(handler) })
}

fn perms(flags: u32) -> Option<Perms> {
    match flags & (PROT_READ | PROT_WRITE | PROT_EXEC) {
        0 => None,
        flags if flags & PROT_WRITE != 0 => Some(Perms::ReadWrite),
        flags if flags & PROT_EXEC != 0 => Some(Perms::ReadExecute),
        _ => Some(Perms::Read),
    }
}

fn status<T, E>(result: Result<T, E>) -> i32 {
    if result.is_ok() { 0 } else { NO_MEMORY }
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_init_traps(handler: TrapHandler) -> i32 {
    TRAP_HANDLER.store(handler as usize, Ordering::Relaxed);
    0
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_page_size() -> usize {
    nacre_abi::PAGE_BYTES as usize
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_mmap_new(size: usize, flags: u32, result: &mut *mut u8) -> i32 {
    let perms = perms(flags);
    let slot = if perms.is_none() { slots::reserve(size as u64) } else { None };
    let area = slot.unwrap_or_else(|| areas::map(size as u64, perms));
    if let Ok(start) = area {
        *result = start as *mut u8;
    }
    status(area)
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_mmap_remap(start: *mut u8, size: usize, flags: u32) -> i32 {
    let fresh = areas::protect(start as u64, size as u64, None);
    status(fresh.and_then(|()| areas::protect(start as u64, size as u64, perms(flags))))
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_munmap(start: *mut u8, size: usize) -> i32 {
    if !slots::give_back(start as u64) {
        areas::unmap(start as u64, size as u64);
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_mprotect(start: *mut u8, size: usize, flags: u32) -> i32 {
    let (start, bytes, perms) = (start as u64, size as u64, perms(flags));
    let slot = if perms == Some(Perms::ReadWrite) { slots::make_accessible(start, bytes) } else { None };
    status(slot.unwrap_or_else(|| areas::protect(start, bytes, perms)))
}

/// An image of initial data, for the memories of calls. Without one wasmtime copies the data segments.
#[unsafe(no_mangle)]
extern "C" fn wasmtime_memory_image_new(start: *const u8, bytes: usize, image: &mut *mut Image) -> i32 {
    *image = slots::new_image(start, bytes);
    0
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_memory_image_map_at(image: *mut Image, at: *mut u8, _: usize) -> i32 {
    // SAFETY: wasmtime maps an image where it belongs, in a memory that it has just made accessible.
    let placed = unsafe { slots::place_image(image, at as u64) };
    if placed { 0 } else { NO_MEMORY }
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_memory_image_free(image: *mut Image) {
    // SAFETY: wasmtime frees an image once, at the end of its module.
    unsafe { slots::free_image(image) }
}

/// The thread-local words are the first of the current task. `gs` is read anew each time: the fiber may have moved.
#[unsafe(no_mangle)]
extern "C" fn wasmtime_tls_get(slot: usize) -> *mut u8 {
    let value: *mut u8;
    // SAFETY: gs:[0] points to the current task or the idle words, both start with two words; wasmtime passes 0 or 1.
    unsafe {
        asm!("mov {task}, gs:[0]", "mov {value}, [{task} + 8*{slot}]", task = out(reg) _, slot = in(reg) slot & 1, value = lateout(reg) value, options(nostack, preserves_flags));
    }
    value
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_tls_set(slot: usize, value: *mut u8) {
    // SAFETY: as in `wasmtime_tls_get`.
    unsafe {
        asm!("mov {task}, gs:[0]", "mov [{task} + 8*{slot}], {value}", task = out(reg) _, slot = in(reg) slot & 1, value = in(reg) value, options(nostack, preserves_flags));
    }
}

/// Bit of a read-write lock's word that says: one writer.
const WRITER: usize = 1 << 62;

agent_static! {
    /// Locks that were taken on a Worker vCPU: none, ever.
    static WORKER_LOCKS: AtomicU64 = AtomicU64::new(0);
}

/// Locks of wasmtime's that were taken on Worker vCPUs so far.
pub fn worker_locks() -> u64 {
    WORKER_LOCKS.load(Ordering::Relaxed)
}

fn word(lock: *mut usize) -> &'static AtomicUsize {
    // SAFETY: wasmtime passes the address of a lock's word, which it uses only through these functions.
    unsafe { AtomicUsize::from_ptr(lock) }
}

/// Takes a lock, on vCPU 0: there nobody holds one already, because nothing is switched out while it does. So nobody
/// waits here; the loop is for what [`WORKER_LOCKS`] counts, which must not happen.
fn acquire(mut attempt: impl FnMut() -> bool) {
    task::enter_normal();
    while !attempt() {
        core::hint::spin_loop();
    }
    taken();
}

fn taken() {
    vcpu::count_lock(1);
    if vcpu::id() != VcpuId::NORMAL {
        WORKER_LOCKS.fetch_add(1, Ordering::Relaxed);
    }
}

fn released() {
    vcpu::count_lock(-1);
    task::leave_normal();
}

/// Shows that the count of locks on workers works: takes one that nobody else knows.
#[cfg(feature = "debug-image")]
pub fn lock_here() {
    taken();
    vcpu::count_lock(-1);
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_sync_lock_free(_: *mut usize) {}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_sync_lock_acquire(lock: *mut usize) {
    acquire(|| word(lock).compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok());
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_sync_lock_release(lock: *mut usize) {
    word(lock).store(0, Ordering::Release);
    released();
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_sync_rwlock_read(lock: *mut usize) {
    acquire(|| {
        let readers = word(lock).load(Ordering::Relaxed);
        readers & WRITER == 0
            && word(lock).compare_exchange(readers, readers + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    });
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_sync_rwlock_read_release(lock: *mut usize) {
    word(lock).fetch_sub(1, Ordering::Release);
    released();
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_sync_rwlock_write(lock: *mut usize) {
    acquire(|| word(lock).compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok());
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_sync_rwlock_write_release(lock: *mut usize) {
    word(lock).store(0, Ordering::Release);
    released();
}

#[unsafe(no_mangle)]
extern "C" fn wasmtime_sync_rwlock_free(_: *mut usize) {}
