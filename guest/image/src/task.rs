//! Tasks: running calls with a stack of their own, which any vCPU may go on with.
//!
//! A task belongs to the tenant arena and names no vCPU. It gives its vCPU up at safe points only: [`safe_point`], [`yield_now`],
//! [`park`], its end. The scheduler in [`crate::sched`] decides who goes on.
//!
//! A task has no stack before it begins and after it has ended: any number of them may wait in queues. It is told to end
//! by [`stop`], and looks at that whenever it comes to a safe point ([`check`]).

mod roots;

pub use roots::{ROOT_BYTES, plant, submit_all_runnable, uproot};

use crate::arch::clock;
use crate::areas::Stack;
use crate::handover::Errand;
use crate::once::Once;
use crate::wasm::slots::Making;
use crate::{arch, sched, vcpu, wasm};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell, UnsafeCell};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use nacre_abi::VcpuId;
use nacre_mm::address_space::MapError;
use nacre_mm::place::Place;
use nacre_wval::{
    Limits, ParkState, PreparePark, Priority, StopReason, StopRequest, Switch, TaskRef, TimerToken, Unpark,
};

/// The body of a task. Called on its own stack, or on the scheduler's if it can't begin.
pub type Entry = Box<dyn FnOnce(Begin) + Send>;

/// How a task's body is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// On its own stack.
    Now,
    /// It was told to end before it began: only to report that. Nothing may wait here.
    Stopped(StopReason),
    /// There is no memory for its stack: only to report that. Nothing may wait here.
    NoMemory,
}

/// What a task is made with.
pub struct Spec {
    /// Its class.
    pub priority: Priority,
    /// How long it may run.
    pub limits: Limits,
    /// The program it runs for, by the host's number; `NO_PROGRAM` for a call.
    pub program: u32,
    /// The call it runs, by the host's number.
    pub call: Option<u32>,
    /// How long it is expected to run, in nanoseconds; `u64::MAX` if that is not known.
    pub expected_ns: u64,
    /// It may wait for memory before it begins (see [`nacre_wval::Vcpu::submit_new`]).
    pub patient: bool,
    /// Reports its end when an allocation failed that has no way to say so; `None` if such a failure must not end it.
    pub on_death: Option<Box<dyn FnOnce() + Send>>,
}

impl Spec {
    /// A task that works for a program beside its own code.
    pub fn helper(program: u32) -> Spec {
        Spec {
            priority: Priority::Normal,
            limits: Limits::NONE,
            program,
            call: None,
            expected_ns: u64::MAX,
            patient: false,
            on_death: None,
        }
    }
}

/// One task. wasmtime's thread-local words come first: `gs:[0]` points here while the task runs.
#[repr(C)]
pub struct Task {
    tls: Cell<[u64; 2]>,
    /// Its saved stack pointer while it does not run; 0 before it begins.
    pub sp: Cell<u64>,
    /// Why it last switched to the scheduler.
    pub why: Cell<Switch>,
    /// Whether it sleeps.
    pub park: ParkState,
    /// Its place in the table of tasks, and its timer's number.
    pub slot: u32,
    entry: Cell<Option<Entry>>,
    stack: RefCell<Option<Stack>>,
    spec: Spec,
    on_death: RefCell<Option<Box<dyn FnOnce() + Send>>>,
    /// It switched out because it must go on on vCPU 0.
    pub wants_normal: Cell<bool>,
    /// What vCPU 0 does with it when it is handed over.
    pub errand: Cell<Errand>,
    /// How many wasmtime locks it holds, and how many [`on_normal`] calls it is in.
    normal_depth: Cell<u32>,
    /// A promised page could not be given a frame; the trap that follows is an out-of-memory error.
    pub frame_missing: Cell<bool>,
    /// Whether it was told to end.
    stop: StopRequest,
    /// It has waited for a stream of its program: changes of these wake it.
    pub watches_streams: AtomicBool,
    /// When the timer that wakes it is due, if it has one: monotonic clock, 0 if it never had.
    timer_at: Cell<u64>,
    /// It ended because an allocation failed.
    out_of_memory: Cell<bool>,
    /// It is in the statistics of ended tasks.
    counted: Cell<bool>,
    /// Whose linear memories it is making, and how far it is.
    pub making: Cell<Making>,
    /// Its wall-clock limit has its timer already (see [`arm_limit`]).
    limit_armed: Cell<bool>,
    /// The address of the page it waits for, which is on its way here; 0 if there is none.
    pub waits_for: AtomicU64,
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

/// Tasks that were told to end and have not.
static STOPPING: AtomicU64 = AtomicU64::new(0);

/// All tasks of this CVM, by slot: what finds them from a timer, and after the arena was copied. As many places as the CVM
/// that made the table may have tasks.
static TASKS: Once<Vec<Entered>> = Once::new();

/// A task in the table.
struct Entered {
    place: Place,
    task: UnsafeCell<Option<Arc<Task>>>,
}

// SAFETY: the content is touched as `Place` allows: written by who claimed the place, read by who entered it, taken out by
// the one who was told to.
unsafe impl Sync for Entered {}
// SAFETY: see above; tasks may be sent.
unsafe impl Send for Entered {}

impl Entered {
    fn get(&self) -> Option<Arc<Task>> {
        if !self.place.enter() {
            return None;
        }
        // SAFETY: entered: the content is there and only read until we leave.
        let task = unsafe { (*self.task.get()).clone() };
        if self.place.leave() {
            self.take_out();
        }
        task
    }

    fn take_out(&self) {
        // SAFETY: the place said that we alone have the content now.
        let last = unsafe { (*self.task.get()).take() };
        self.place.clear();
        drop(last);
    }
}

fn table() -> &'static [Entered] {
    TASKS.get().map_or(&[], Vec::as_slice)
}

/// The table, made at its first use.
fn made_table() -> Result<&'static [Entered], MapError> {
    if let Some(table) = TASKS.get() {
        return Ok(table);
    }
    let mut table = Vec::new();
    table.try_reserve_exact(max_tasks() as usize).map_err(|_| MapError::OutOfMemory)?;
    table.resize_with(max_tasks() as usize, || Entered { place: Place::new(), task: UnsafeCell::new(None) });
    Ok(TASKS.get_or_set(Box::new(table)))
}

/// Where the last place was found: a hint.
static NEXT_PLACE: AtomicU64 = AtomicU64::new(0);

fn claim_place() -> Result<(usize, &'static Entered), MapError> {
    let table = made_table()?;
    // In a CVM that the table came to from a larger one.
    let usable = table.len().min(max_tasks() as usize);
    let hint = NEXT_PLACE.load(Ordering::Relaxed) as usize % usable.max(1);
    let slot =
        (hint..usable).chain(0..hint).find(|slot| table[*slot].place.claim()).ok_or(MapError::OutOfMemory)?;
    NEXT_PLACE.store(slot as u64 + 1, Ordering::Relaxed);
    Ok((slot, &table[slot]))
}

/// Makes a task that will run `entry` once it is [`start`]ed.
///
/// # Errors
/// [`MapError`] if there are as many tasks as the layout provides for.
pub fn create(mut spec: Spec, entry: Entry) -> Result<Arc<Task>, MapError> {
    let on_death = RefCell::new(spec.on_death.take());
    let (slot, entered) = claim_place()?;
    let task = Arc::new(Task {
        tls: Cell::new([0; 2]),
        sp: Cell::new(0),
        why: Cell::new(Switch::Yield),
        park: ParkState::new(),
        slot: slot as u32,
        entry: Cell::new(Some(entry)),
        stack: RefCell::new(None),
        spec,
        on_death,
        wants_normal: Cell::new(false),
        errand: Cell::new(Errand::Run),
        normal_depth: Cell::new(0),
        frame_missing: Cell::new(false),
        stop: StopRequest::new(),
        watches_streams: AtomicBool::new(false),
        timer_at: Cell::new(0),
        out_of_memory: Cell::new(false),
        counted: Cell::new(false),
        making: Cell::default(),
        limit_armed: Cell::new(false),
        waits_for: AtomicU64::new(0),
        cpu_cycles: AtomicU64::new(0),
        last_vcpu: Cell::new(u32::MAX),
    });
    // SAFETY: we claimed the place and nobody is in it yet.
    unsafe { *entered.task.get() = Some(task.clone()) };
    entered.place.open();
    Ok(task)
}

fn max_tasks() -> u32 {
    crate::memory::layout().max_tasks
}

/// Gives a task that was made on vCPU 0, and not started yet, the timer of its wall-clock limit, which spares the worker
/// that begins it from asking for one. Nobody takes the timer back: it finds no such task, or one whose time is not over.
pub fn arm_limit(task: &Task) {
    let deadline = task.spec.limits.wall_deadline_ns;
    if deadline != u64::MAX {
        let armed = sched::arm_timer(next_timer(task.slot + max_tasks()), deadline, task.reference());
        task.limit_armed.set(armed);
    }
}

/// Queues a task that was just made.
pub fn start(task: &Arc<Task>) {
    sched::submit(task);
}

/// The same for one that vCPU 0 is to run, which calls this.
pub fn start_on_normal(task: &Arc<Task>) {
    sched::start_on_normal(task);
}

impl Task {
    /// The scheduler's name for it.
    pub fn reference(&self) -> TaskRef {
        TaskRef::new(self as *const Task as u64).unwrap_or_else(|| unreachable!("a reference is never null"))
    }

    /// Its class.
    pub fn priority(&self) -> Priority {
        self.spec.priority
    }

    /// How long it may run.
    pub fn limits(&self) -> Limits {
        self.spec.limits
    }

    /// It is expected to end within microseconds, and has not shown otherwise.
    pub fn is_brief(&self) -> bool {
        self.spec.expected_ns < sched::BRIEF_NS && self.cpu_cycles.load(Ordering::Relaxed) == 0
    }

    /// It may wait for memory, and has not begun.
    pub fn is_new(&self) -> bool {
        self.spec.patient && self.sp.get() == 0
    }

    /// Why it was told to end, if it was.
    pub fn stopped(&self) -> Option<StopReason> {
        self.stop.get()
    }

    /// The running task is about to report its end: it counts as ended, and a failed allocation no longer ends it in place of
    /// that report.
    pub fn conclude(&self) {
        drop(self.on_death.borrow_mut().take());
        self.count(clock::cycles_to_ns(current_cpu_cycles()));
    }

    /// Counts it as ended, once.
    fn count(&self, cpu_ns: u64) {
        if !self.counted.replace(true) {
            sched::count_ended(cpu_ns);
        }
    }

    /// Makes it ready to be switched to for the first time. Called by the scheduler.
    ///
    /// # Errors
    /// How its body is to be called instead.
    pub fn begin(&self) -> Result<(), Begin> {
        let deadline = self.spec.limits.wall_deadline_ns;
        if deadline != u64::MAX && clock::monotonic_ns() >= deadline {
            self.request_stop(StopReason::WallLimit);
        }
        if let Some(reason) = self.stop.get() {
            return Err(Begin::Stopped(reason));
        }
        let stack = Stack::new().map_err(|_| Begin::NoMemory)?;
        let top = stack.top();
        *self.stack.borrow_mut() = Some(stack);
        // SAFETY: the stack is the task's own, mapped, and not in use.
        self.sp.set(unsafe { arch::new_fiber(top, run_entry, self as *const Task as u64) });
        Ok(())
    }

    /// Lets its body report that it can't begin. Called by the scheduler, on its stack.
    pub fn refuse(&self, why: Begin) {
        if let Some(entry) = self.entry.take() {
            entry(why);
        }
    }

    /// It ended because an allocation failed.
    pub fn died(&self) -> bool {
        self.out_of_memory.get()
    }

    /// Whether an address lies on its stack.
    pub fn has_on_stack(&self, address: u64) -> bool {
        self.stack.borrow().as_ref().is_some_and(|stack| stack.contains(address))
    }

    fn request_stop(&self, reason: StopReason) {
        if self.stop.request(reason) {
            STOPPING.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// First code on a task's stack.
extern "C" fn run_entry(task: u64) -> ! {
    // SAFETY: the table keeps the task alive until the scheduler has seen its end.
    let task = unsafe { &*(task as *const Task) };
    let deadline = task.spec.limits.wall_deadline_ns;
    let needs_timer = deadline != u64::MAX && !task.limit_armed.get();
    let timer = needs_timer.then(|| arm(task, task.slot + max_tasks(), deadline));
    if let Some(entry) = task.entry.take() {
        entry(Begin::Now);
    }
    if let Some(timer) = timer {
        sched::cancel_timer(timer);
    }
    switch_out(task, Switch::Exit);
    unreachable!("a task that ended was switched in")
}

/// Asks for a timer for the running task, waiting while vCPU 0 is behind.
fn arm(task: &Task, number: u32, deadline_ns: u64) -> TimerToken {
    let token = next_timer(number);
    while !sched::arm_timer(token, deadline_ns, task.reference()) {
        yield_now();
    }
    token
}

fn next_timer(number: u32) -> TimerToken {
    TimerToken { slot: number, seq: TIMER_SEQ.fetch_add(1, Ordering::Relaxed) + 1 }
}

/// Gives the vCPU to the scheduler. Returns when the task runs again, maybe on another vCPU.
#[inline(never)]
fn switch_out(task: &Task, why: Switch) {
    assert_eq!(vcpu::locks_held(), 0, "switched out with a lock held");
    task.why.set(why);
    // SAFETY: the scheduler's context was saved when it switched to this task, on this vCPU.
    unsafe { arch::switch(task.sp.as_ptr(), vcpu::local().scheduler_sp.get()) }
}

/// The task that runs here.
///
/// # Panics
/// In the scheduler's own context, where nothing may wait.
pub fn current() -> &'static Task {
    running().expect("only a task can wait")
}

/// The task that runs here, if one does.
pub fn running() -> Option<&'static Task> {
    // SAFETY: a running task is alive, and its code ends before it does.
    vcpu::current().map(|task| unsafe { &*task })
}

/// A safe point of running Wasm: gives the vCPU up if it must.
///
/// # Errors
/// Why the task must end here.
pub fn safe_point() -> Result<(), StopReason> {
    check()?;
    if sched::must_yield(current().priority()) {
        yield_now();
        check()?;
    }
    Ok(())
}

/// Whether the running task may go on. Part of every safe point and of every wait.
///
/// # Errors
/// Why it must end here.
pub fn check() -> Result<(), StopReason> {
    let task = current();
    if task.stop.get().is_none() && task.spec.limits != Limits::NONE {
        let cpu_ns = clock::cycles_to_ns(current_cpu_cycles());
        if let Some(reason) = task.spec.limits.reached(clock::monotonic_ns(), cpu_ns) {
            task.request_stop(reason);
        }
    }
    task.stop.get().map_or(Ok(()), Err)
}

/// Lets other tasks run first.
pub fn yield_now() {
    switch_out(current(), Switch::Yield);
}

/// Goes on on vCPU 0, where nothing takes the vCPU away from it until [`leave_normal`]. In the scheduler's context, nothing.
pub fn enter_normal() {
    let Some(task) = running() else { return };
    while vcpu::id() != VcpuId::NORMAL {
        task.wants_normal.set(true);
        switch_out(task, Switch::Yield);
    }
    task.wants_normal.set(false);
    task.normal_depth.set(task.normal_depth.get() + 1);
}

/// Undoes one [`enter_normal`]; at the last one the task goes on wherever there is a vCPU for it.
pub fn leave_normal() {
    let Some(task) = running() else { return };
    task.normal_depth.set(task.normal_depth.get() - 1);
    if task.normal_depth.get() == 0 && sched::has_workers() {
        switch_out(task, Switch::Yield);
    }
}

/// Runs `work` on vCPU 0: for what takes several of wasmtime's locks and not much time.
pub fn on_normal<R>(work: impl FnOnce() -> R) -> R {
    enter_normal();
    let result = work();
    leave_normal();
    result
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
    let armed = task.timer_at.get();
    // A timer that is due before serves as well: it wakes in vain, the caller looks at the clock and comes again. A service
    // that polls with a timeout would else wake vCPU 0 for a new timer at each poll. So timers are not cancelled either.
    if armed <= clock::monotonic_ns() || armed > deadline_ns {
        arm(task, task.slot, deadline_ns);
        task.timer_at.set(deadline_ns);
    }
    park();
}

/// Wakes a task, or makes its next [`park`] return at once.
pub fn unpark(task: &Task) {
    if task.park.unpark() == Unpark::Push {
        sched::submit(task);
    }
}

/// The task in a slot, if there is one.
pub fn in_slot(slot: u32) -> Option<Arc<Task>> {
    table().get(slot as usize)?.get()
}

/// Wakes the task in `slot`, if there still is one.
pub fn unpark_slot(slot: u32) {
    if let Some(task) = in_slot(slot) {
        unpark(&task);
    }
}

/// A timer is due: each slot has one that wakes its task, and one more for the time limit.
pub fn timer_expired(number: u32) {
    let Some(task) = in_slot(number % max_tasks()) else { return };
    if number < max_tasks() {
        unpark(&task);
    } else if clock::monotonic_ns() >= task.spec.limits.wall_deadline_ns {
        // Else it is another task's, which had this place before.
        stop(&task, StopReason::WallLimit);
    }
}

/// Tells a task to end at its next safe point; wakes it if it sleeps. The first reason stays.
pub fn stop(task: &Task, reason: StopReason) {
    task.request_stop(reason);
    unpark(task);
    // One that computes comes to a safe point; vCPU 0 bumps again while anybody is ending, in case it missed this one.
    wasm::bump_epoch();
}

/// Whether a task was told to end and has not.
pub fn any_stopping() -> bool {
    STOPPING.load(Ordering::SeqCst) != 0
}

/// All tasks that run for a program, one after the other; tasks made meanwhile may be left out.
pub fn of_program(program: u32) -> impl Iterator<Item = Arc<Task>> {
    table().iter().filter_map(Entered::get).filter(move |task| task.spec.program == program)
}

/// The tasks that run a call: one, if the host gives each call a number of its own.
pub fn of_call(call: u32) -> impl Iterator<Item = Arc<Task>> {
    table().iter().filter_map(Entered::get).filter(move |task| task.spec.call == Some(call))
}

/// Frees what a task had that has ended. Called by the scheduler on its own stack.
///
/// # Safety
/// `task` came out of the run queue, and has switched out with [`Switch::Exit`] or was refused.
pub unsafe fn finish(task: *const Task) {
    // SAFETY: the table holds a reference until the end of this function.
    let task = unsafe { &*task };
    let on_death = task.on_death.borrow_mut().take();
    if task.out_of_memory.get()
        && let Some(report) = on_death
    {
        report();
    }
    if task.stop.end().is_some() {
        STOPPING.fetch_sub(1, Ordering::SeqCst);
    }
    drop(task.stack.borrow_mut().take());
    task.count(clock::cycles_to_ns(task.cpu_cycles.load(Ordering::Relaxed)));
    let entered = &table()[task.slot as usize];
    if entered.place.close() {
        entered.take_out();
    }
}

/// Ends the task that runs here because an allocation failed that has no way to say so; the scheduler then has it
/// reported. What it had stays allocated. Returns if the task cannot be ended here: it holds a lock, or this is not its
/// own stack (an exception upcall), or nobody could report it.
pub fn end_out_of_memory() {
    let Some(task) = running() else { return };
    let on_its_stack = task.has_on_stack(core::ptr::from_ref(&task) as u64);
    if task.on_death.borrow().is_none() || vcpu::locks_held() != 0 || !on_its_stack {
        return;
    }
    task.out_of_memory.set(true);
    switch_out(task, Switch::Exit);
}

/// CPU time that the current task has had, in cycles.
pub fn current_cpu_cycles() -> u64 {
    current().cpu_cycles.load(Ordering::Relaxed) + sched::cycles_since_resume()
}
