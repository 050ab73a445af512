//! Tasks: running calls with a stack of their own, which any vCPU may go on with.
//!
//! A task belongs to the tenant arena and names no vCPU. It gives its vCPU up at safe points only: [`yield_now`],
//! [`park`], its end. The scheduler in [`crate::sched`] decides who goes on.

use crate::areas::Stack;
use crate::program::Program;
use crate::sync::SpinLock;
use crate::{arch, sched, vcpu};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::message::ExitKind;
use nacre_mm::address_space::MapError;
use nacre_wval::{ParkState, PreparePark, Switch, TaskRef, TimerToken, Unpark};

/// One task. wasmtime's thread-local words come first: `gs:[0]` points here while the task runs.
#[repr(C)]
pub struct Task {
    tls: Cell<[u64; 2]>,
    /// Its saved stack pointer while it does not run.
    pub sp: Cell<u64>,
    /// Why it last switched to the scheduler.
    pub why: Cell<Switch>,
    /// Whether it sleeps.
    pub park: ParkState,
    /// Its place in the table of tasks, and its timer's number.
    slot: u32,
    entry: Cell<Option<Box<dyn FnOnce() + Send>>>,
    stack: Stack,
    /// The program it runs, if it runs one: whom to report to when it cannot go on.
    pub program: Cell<Option<u32>>,
    /// It ended because an allocation failed.
    out_of_memory: Cell<bool>,
    /// Time it has had on any vCPU.
    pub cpu_cycles: AtomicU64,
    /// The vCPU it last ran on; a counter's input, never an address.
    pub last_vcpu: Cell<u32>,
}

// SAFETY: the cells are touched only by the vCPU that runs or is about to run the task, which the scheduler makes exactly
// one; the hand-over from one to the next is ordered by the run queue or the park state.
unsafe impl Sync for Task {}
// SAFETY: see above; nothing in it belongs to a thread.
unsafe impl Send for Task {}

/// The number of the last timer: never goes back, also not when a slot goes to another task.
static TIMER_SEQ: AtomicU64 = AtomicU64::new(0);

/// All tasks of this CVM, by slot: what finds them from a timer, and after the arena was copied.
static TASKS: SpinLock<Vec<Option<Arc<Task>>>> = SpinLock::new(Vec::new());

/// Makes a task that will run `entry` once it is [`start`]ed.
///
/// # Errors
/// [`MapError`] if there is no memory for its stack, or there are as many tasks as the layout provides for.
pub fn create(entry: Box<dyn FnOnce() + Send>) -> Result<Arc<Task>, MapError> {
    let stack = Stack::new()?;
    let task = {
        let mut tasks = TASKS.lock();
        let slot = match tasks.iter().position(Option::is_none) {
            Some(slot) => slot,
            None if tasks.len() < crate::memory::layout().max_tasks as usize => {
                tasks.push(None);
                tasks.len() - 1
            }
            None => return Err(MapError::OutOfMemory),
        };
        let task = Arc::new(Task {
            tls: Cell::new([0; 2]),
            sp: Cell::new(0),
            why: Cell::new(Switch::Yield),
            park: ParkState::new(),
            slot: slot as u32,
            entry: Cell::new(Some(entry)),
            stack,
            program: Cell::new(None),
            out_of_memory: Cell::new(false),
            cpu_cycles: AtomicU64::new(0),
            last_vcpu: Cell::new(u32::MAX),
        });
        tasks[slot] = Some(task.clone());
        task
    };
    // SAFETY: the stack is the task's own, mapped, and not in use.
    task.sp.set(unsafe { arch::new_fiber(task.stack.top(), run_entry, Arc::as_ptr(&task) as u64) });
    Ok(task)
}

/// Queues a task that was just made.
pub fn start(task: &Arc<Task>) {
    sched::submit(reference(task));
}

/// The scheduler's name for a task.
fn reference(task: &Arc<Task>) -> TaskRef {
    TaskRef::new(Arc::as_ptr(task) as u64).unwrap_or_else(|| unreachable!("an Arc is never null"))
}

/// First code on a task's stack.
extern "C" fn run_entry(task: u64) -> ! {
    // SAFETY: the table keeps the task alive until the scheduler has seen its end.
    let task = unsafe { &*(task as *const Task) };
    if let Some(entry) = task.entry.take() {
        entry();
    }
    switch_out(task, Switch::Exit);
    unreachable!("a task that ended was switched in")
}

/// Gives the vCPU to the scheduler. Returns when the task runs again, maybe on another vCPU.
#[inline(never)]
fn switch_out(task: &Task, why: Switch) {
    task.why.set(why);
    // SAFETY: the scheduler's context was saved when it switched to this task, on this vCPU.
    unsafe { arch::switch(task.sp.as_ptr(), vcpu::local().scheduler_sp.get()) }
}

/// The task that runs here.
///
/// # Panics
/// In the scheduler's own context, where nothing may wait.
pub fn current() -> &'static Task {
    let task = vcpu::current().expect("only a task can wait");
    // SAFETY: a running task is alive, and its code ends before it does.
    unsafe { &*task }
}

/// A safe point: lets other tasks run first.
pub fn yield_now() {
    switch_out(current(), Switch::Yield);
}

/// Sleeps until [`unpark`]ed; may return early.
pub fn park() {
    let task = current();
    if task.park.prepare_park() == PreparePark::Switch {
        switch_out(task, Switch::Park);
        task.park.finish_park();
    }
}

/// Sleeps until [`unpark`]ed or until the monotonic clock reaches the deadline; may return early.
pub fn park_until(deadline_ns: u64) {
    let task = current();
    let token = TimerToken { slot: task.slot, seq: TIMER_SEQ.fetch_add(1, Ordering::Relaxed) + 1 };
    let name =
        TaskRef::new(task as *const Task as u64).unwrap_or_else(|| unreachable!("a reference is never null"));
    while !sched::arm_timer(token, deadline_ns, name) {
        yield_now();
    }
    park();
    sched::cancel_timer(token);
}

/// Wakes a task, or makes its next [`park`] return at once.
pub fn unpark(task: &Arc<Task>) {
    if task.park.unpark() == Unpark::Push {
        sched::submit(reference(task));
    }
}

/// Wakes the task in `slot`, if there still is one.
pub fn unpark_slot(slot: u32) {
    let task = TASKS.lock().get(slot as usize).cloned().flatten();
    if let Some(task) = task {
        unpark(&task);
    }
}

/// Frees a task that has ended. Called by the scheduler on its own stack.
///
/// # Safety
/// `task` came out of the run queue and has switched out with [`Switch::Exit`].
pub unsafe fn finish(task: *const Task) {
    // SAFETY: the table holds a reference until the next line but one.
    let slot = unsafe { (*task).slot } as usize;
    let last = TASKS.lock().get_mut(slot).and_then(Option::take);
    drop(last);
}

/// Ends the task that runs here because an allocation failed that has no way to say so; the scheduler then reports its
/// program. What it had stays allocated. Returns if the task cannot be ended here: it holds a lock, or this is not its
/// own stack (an exception upcall), or no program's task runs here.
pub fn end_out_of_memory() {
    let Some(task) = vcpu::current() else { return };
    // SAFETY: a running task is alive.
    let task = unsafe { &*task };
    let here = core::ptr::from_ref(&task) as u64;
    if task.program.get().is_none() || vcpu::locks_held() != 0 || !task.stack.contains(here) {
        return;
    }
    task.out_of_memory.set(true);
    switch_out(task, Switch::Exit);
}

/// Reports the program of a task that ended by [`end_out_of_memory`]. Called by the scheduler on its own stack.
pub fn report_out_of_memory(task: &Task) {
    if task.out_of_memory.get()
        && let Some(program) = task.program.take().and_then(Program::find)
    {
        let text = "out of memory: the CVM's heap is full; give the CVM more with --memory";
        program.report_exit(ExitKind::OutOfMemory, 0, text);
    }
}

/// CPU time that the current task has had, in cycles, up to its last switch.
pub fn current_cpu_cycles() -> u64 {
    current().cpu_cycles.load(Ordering::Relaxed) + sched::cycles_since_resume()
}

/// Queues every task that does not sleep: after the arena came from another CVM, where they were queued.
#[cfg(feature = "debug-image")]
pub fn submit_all_runnable() {
    let count = TASKS.lock().len();
    for slot in 0..count {
        let task = TASKS.lock().get(slot).cloned().flatten();
        if let Some(task) = task.filter(|task| !task.park.is_parked()) {
            sched::submit(reference(&task));
        }
    }
}
