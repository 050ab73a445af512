//! The scheduler of each vCPU: takes tasks from the run queues, switches to them, parks when there are none.
//!
//! What is decided, and how queues and sleepers stay consistent, is in `nacre-wval`; here is what it takes from the
//! machine: context switches, hypercalls, time.

mod timers;

pub use timers::{Timers, arm_timer, cancel_timer};

use crate::agent::{AgentCell, agent_static};
use crate::arch::{self, clock};
use crate::handover::{self, Errand};
use crate::memory::{self, Scratch};
use crate::task::{self, Begin, Task};
use crate::translations;
use crate::{elastic, link, migrate, vcpu, wasm};
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::layout::Layout;
use nacre_abi::ring::Producer;
use nacre_abi::{MAX_VCPUS, hypercall};
use nacre_wval::{
    Commit, LANES, Next, Priority, Scheduler, SpinPolicy, Submitted, TaskRef, TimerInbox, TimerQueue,
    TimerRing, TimerSender, TimerSlot, Vcpu, VcpuId, VcpuSlot, WORDS_PER_MESSAGE, WakeTicket,
};

/// Requests for timers that one vCPU can have on their way to vCPU 0.
const TIMER_REQUESTS: usize = 64;

/// A task is brief if it is expected to take less, in nanoseconds.
pub const BRIEF_NS: u64 = 100_000;

/// How long a task runs while others wait, in nanoseconds.
pub const SLICE_NS: u64 = 5_000_000;

/// A new task that can wait is begun before others that are ready only while this part of the memory is free.
const FREE_SHARE: u64 = 4;

agent_static! {
    static SCHEDULER: AgentCell<Scheduler<'static>> = AgentCell::new();
    static INBOX: AgentCell<TimerInbox<'static>> = AgentCell::new();
    static RUNS: [Runs; MAX_VCPUS as usize] = [const { Runs { resumes: AtomicU64::new(0), moves: AtomicU64::new(0) } }; MAX_VCPUS as usize];
    static PARKS: AtomicU64 = AtomicU64::new(0);
    static WAKES: AtomicU64 = AtomicU64::new(0);
    static SPAWNED: AtomicU64 = AtomicU64::new(0);
    static ENDED: AtomicU64 = AtomicU64::new(0);
    static PREEMPTIONS: AtomicU64 = AtomicU64::new(0);
    /// CPU time of the tasks that ended, in nanoseconds: sum, least, most.
    static CPU_NS: AtomicU64 = AtomicU64::new(0);
    static CPU_MIN_NS: AtomicU64 = AtomicU64::new(u64::MAX);
    static CPU_MAX_NS: AtomicU64 = AtomicU64::new(0);
}

/// How often a vCPU ran a task. Written by itself only, in a cache line of its own: tasks that come and go on several vCPUs do
/// not meet here.
#[repr(align(64))]
struct Runs {
    resumes: AtomicU64,
    moves: AtomicU64,
}

/// Adds one to a counter that only this vCPU writes.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// What a vCPU's scheduler owns. Lives in the agent arena; only its vCPU touches it.
pub struct Own {
    vcpu: Vcpu<'static>,
    timers: TimerSender<'static>,
    /// The ring to the host.
    pub transmit: RefCell<Producer<'static>>,
    /// Messages on the ring for which the host's reader was not woken (see [`link::send_later`]).
    pub unrung: Cell<u32>,
    /// When it was last seen to be awake or woken for such, in cycles.
    pub rung_at: Cell<u64>,
    /// When the first message was sent for which the doorbell is still to be rung, in cycles; 0 for none.
    pub unrung_since: Cell<u64>,
    spin: RefCell<SpinPolicy>,
    /// Since when brief calls are left to the workers that are awake, in cycles; 0 for not. Of vCPU 0.
    left_since: Cell<u64>,
    resumed_at: Cell<u64>,
    /// Who is woken by the next park of this vCPU.
    wake_at_park: Cell<Option<VcpuId>>,
}

/// What all schedulers own, by vCPU.
pub struct AllOwn(&'static [Own]);

// SAFETY: `of` is called by each vCPU for itself only, so no element is ever touched by two.
unsafe impl Sync for AllOwn {}

impl AllOwn {
    /// What `vcpu` owns: called by that vCPU only, at its start.
    ///
    /// # Panics
    /// For a vCPU the CVM has not, which the launcher never starts.
    pub fn of(&self, vcpu: VcpuId) -> &'static Own {
        &self.0[vcpu.index()]
    }
}

/// Makes the scheduler. Once, by vCPU 0. Returns the timers, and what each vCPU owns.
///
/// # Panics
/// If the layout's numbers do not fit together: a defect, found at the first boot.
pub fn init(layout: &Layout, scratch: &mut Scratch) -> (Timers, AllOwn) {
    let vcpus = layout.params.vcpus as usize;
    let zeros = |_| AtomicU64::new(0);
    let max_tasks = layout.max_tasks as usize;
    let slots: &[_] = scratch_slots(scratch, vcpus, max_tasks);
    let scheduler = SCHEDULER.set(Scheduler::new(slots).expect("1 to 64 vCPUs"));
    let rings = {
        let words: [&'static [AtomicU64]; 64] = core::array::from_fn(|vcpu| {
            if vcpu < vcpus { &*scratch.slice(TIMER_REQUESTS * WORDS_PER_MESSAGE, zeros) } else { &[] }
        });
        scratch.slice(vcpus, |vcpu| TimerRing::new(words[vcpu]).expect("a power of two of messages"))
    };
    let inbox = INBOX.set(TimerInbox::new(rings));
    // Each task has a timer to sleep and one for its time limit.
    let queue = TimerQueue::new(scratch.slice(2 * max_tasks, |_| TimerSlot::new()));
    handover::init(scratch, max_tasks);
    let own = scratch.slice(vcpus, |index| {
        let id = VcpuId::new(index as u32).expect("below 64");
        let ring = link::window().to_host(id).expect("a ring each");
        Own {
            vcpu: scheduler.attach(id).expect("attached once"),
            timers: inbox.sender(id).expect("attached once"),
            transmit: RefCell::new(Producer::new(ring)),
            unrung: Cell::new(0),
            rung_at: Cell::new(0),
            unrung_since: Cell::new(0),
            spin: RefCell::new(SpinPolicy::new()),
            left_since: Cell::new(0),
            resumed_at: Cell::new(0),
            wake_at_park: Cell::new(None),
        }
    });
    // Workers begin dormant: the first task that is queued wakes one.
    for index in 1..vcpus as u32 {
        scheduler.idle().announce(VcpuId::new(index).expect("below 64"));
    }
    (Timers { receiver: inbox.receiver().expect("received once"), queue }, AllOwn(own))
}

fn scratch_slots(scratch: &mut Scratch, vcpus: usize, max_tasks: usize) -> &'static [VcpuSlot<'static>] {
    let rings: [&'static [AtomicU64]; 64] = core::array::from_fn(|vcpu| {
        if vcpu < vcpus { &*scratch.slice(LANES * max_tasks, |_| AtomicU64::new(0)) } else { &[] }
    });
    scratch.slice(vcpus, |vcpu| VcpuSlot::new(rings[vcpu]).expect("a power of two of tasks"))
}

/// The shared part.
pub fn scheduler() -> &'static Scheduler<'static> {
    SCHEDULER.get()
}

/// What the scheduler of this vCPU owns.
fn own() -> &'static Own {
    vcpu::local().own()
}

/// Asks the host to wake the vCPU of a ticket.
pub fn ring(ticket: Option<WakeTicket>) {
    if let Some(ticket) = ticket {
        WAKES.fetch_add(1, Ordering::Relaxed);
        arch::wake(ticket.vcpu());
        scheduler().wake_sent(ticket);
    }
}

/// Wakes vCPU 0 if it sleeps: something is there for it that is no task.
pub fn call_normal() {
    if vcpu::id() != VcpuId::NORMAL {
        ring(scheduler().idle().claim_one(nacre_wval::VcpuMask::EMPTY.with(VcpuId::NORMAL)));
    }
}

/// Wakes up to `count` workers that sleep and may run, to help with what is no task.
pub fn wake_helpers(count: usize) {
    for _ in 0..count {
        let Some(ticket) = scheduler().idle().claim_one(scheduler().allowed()) else { return };
        ring(Some(ticket));
    }
}

/// The same by the park that this vCPU comes to next. The ticket is given up, not reported as sent: if the host stops this
/// vCPU before it parks, whoever queues a task or ticks claims that wake again (see `nacre_wval::IdleSet`).
fn ring_at_park(ticket: Option<WakeTicket>) {
    if let Some(ticket) = ticket {
        WAKES.fetch_add(1, Ordering::Relaxed);
        own().wake_at_park.set(Some(ticket.vcpu()));
    }
}

/// Wakes workers for tasks that have waited for long: the host may have lost the wakes that were sent before.
pub fn wake_again() {
    scheduler().idle().doubt_wakes();
    wake_for_backlog();
}

/// Wakes workers for tasks that are queued, after something that lets more of them run.
pub fn wake_for_backlog() {
    // Not more than are missing: until the first one takes its task, all workers that are parked look as if they were needed.
    for _ in 0..scheduler().wakes_missing() {
        let Some(ticket) = scheduler().claim_for_backlog() else { break };
        ring(Some(ticket));
    }
}

/// Tasks that take less than this together are left to the workers that are awake, in nanoseconds: waking another one takes
/// as long, and more CPU.
const WAKE_NS: u64 = 100_000;
/// For how long vCPU 0 leaves them before it wakes somebody after all, in nanoseconds.
const LEFT_NS: u64 = 1_000_000;

/// Queues a call on vCPU 0, whose dispatcher looks after it ([`left_for`]), for the workers that are awake if it is brief.
pub fn submit_call(task: &Task, expected_ns: u64) {
    let own = own();
    let per_worker = (WAKE_NS / expected_ns.max(1)) as usize;
    if per_worker < 2 || vcpu::id() != VcpuId::NORMAL {
        return submit(task);
    }
    elastic::poll();
    let now = arch::rdtsc();
    let since = now.saturating_sub(clock::ns_to_cycles(WAKE_NS));
    // Those left before were taken: this one begins to wait now.
    let is_first = !own.vcpu.leaves_work();
    match own.vcpu.submit_brief(task.reference(), task.priority(), per_worker, since) {
        Ok(Submitted::Left) if is_first || own.left_since.get() == 0 => own.left_since.set(now.max(1)),
        Ok(Submitted::Left) => {}
        Ok(Submitted::Wake(ticket)) => submitted(ticket, task.priority()),
        // Each queue has room for all tasks there can be.
        Err(_) => unreachable!("run queue overflow"),
    }
}

/// Asked by vCPU 0 at each tick: for how many more cycles queued tasks may be left to the workers that are awake; `None` if
/// there are no such tasks, or they were left for long enough.
pub fn left_for(now: u64) -> Option<u64> {
    let left_since = &own().left_since;
    let since = left_since.get();
    let limit = clock::ns_to_cycles(LEFT_NS);
    // Wrapping: a counter that the host has set back ends the wait.
    let left = limit.checked_sub(now.wrapping_sub(since)).filter(|left| since != 0 && *left != 0);
    if left.is_none() {
        left_since.set(0);
    }
    left
}

/// Queues a runnable task on this vCPU and wakes a worker for it; with none free, whoever runs a lower one gives way.
pub fn submit(task: &Task) {
    let (vcpu, reference, class) = (&own().vcpu, task.reference(), task.priority());
    elastic::poll();
    let queued =
        if task.is_new() { vcpu.submit_new(reference, class) } else { vcpu.submit(reference, class) };
    match queued {
        Ok(ticket) => submitted(ticket, class),
        // Each queue has room for all tasks there can be.
        Err(_) => unreachable!("run queue overflow"),
    }
}

/// A task of `class` was queued.
fn submitted(ticket: Option<WakeTicket>, class: Priority) {
    if ticket.is_some() {
        return ring(ticket);
    }
    elastic::demand_rose();
    if scheduler().runs_below(class) {
        wasm::bump_epoch();
    }
}

/// Runs one task if there is one for this vCPU.
pub fn run_one() -> Ran {
    elastic::poll();
    match own().vcpu.next_with(memory_is_plenty()) {
        Next::Run { task, wake } => {
            ring(wake);
            run(task);
            Ran::Task
        }
        Next::Reclaimed { wake } => {
            link::ring_now();
            elastic::count_reclaim();
            ring_at_park(wake);
            Ran::MustPark
        }
        Next::Empty | Next::Stopped => {
            link::ring_now();
            Ran::Nothing
        }
    }
}

/// On vCPU 0: serves one task that was handed over; false if there is none.
pub fn run_handed_over() -> bool {
    if scheduler().is_stopped() {
        return false;
    }
    let Some(task) = handover::pop().and_then(task::in_slot) else { return false };
    let pointer = Arc::as_ptr(&task);
    let reference = task.reference();
    // The table keeps it alive as long as it has not ended.
    drop(task);
    // SAFETY: it was handed over by the vCPU that had it, and only this one takes it.
    match unsafe { (*pointer).errand.replace(Errand::Run) } {
        Errand::Run => run(reference),
        Errand::Refuse(why) => refuse(pointer, why),
        // SAFETY: it switched out for the last time.
        Errand::Finish => unsafe { task::finish(pointer) },
    }
    true
}

fn refuse(pointer: *const Task, why: Begin) {
    // SAFETY: the table keeps it alive until it is finished, and nobody will switch to it.
    unsafe {
        (*pointer).refuse(why);
        task::finish(pointer);
    }
}

/// Starts a task on vCPU 0, which calls this.
pub fn start_on_normal(task: &Task) {
    debug_assert_eq!(vcpu::id(), VcpuId::NORMAL);
    hand_over(task, Errand::Run);
}

/// Hands a task that is switched out to vCPU 0. It must not be touched afterwards.
fn hand_over(task: &Task, errand: Errand) {
    task.errand.set(errand);
    handover::push(task.slot);
}

fn memory_is_plenty() -> bool {
    memory::available_bytes() > memory::layout().params.memory_bytes / FREE_SHARE
}

/// What [`run_one`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// Ran a task until it switched out.
    Task,
    /// Found nothing to run.
    Nothing,
    /// This vCPU may not run tasks now.
    MustPark,
}

fn run(reference: TaskRef) {
    let pointer = reference.get() as *mut Task;
    arch::prefetch(pointer);
    // SAFETY: what comes out of the run queue is a live task that nobody else has (see nacre-wval).
    let task = unsafe { &*pointer };
    translations::catch_up();
    if task.sp.get() == 0
        && let Err(why) = task.begin()
    {
        // What its body drops may take locks of wasmtime's.
        return if vcpu::id() == VcpuId::NORMAL {
            refuse(pointer, why)
        } else {
            hand_over(task, Errand::Refuse(why))
        };
    }
    link::ring_before(task.is_brief());
    let own = own();
    let runs = &RUNS[own.vcpu.id().index()];
    count(&runs.resumes);
    let here = own.vcpu.id().index() as u32;
    let before = task.last_vcpu.replace(here);
    if before != here && before != u32::MAX {
        count(&runs.moves);
    }
    vcpu::set_current(pointer);
    let now = arch::rdtsc();
    own.resumed_at.set(now);
    own.vcpu.begin(now, cpu_limit_at(task, now));
    // SAFETY: the task's context is saved, by `new_fiber` or by its own last switch.
    unsafe { arch::switch(vcpu::local().scheduler_sp.as_ptr(), task.sp.get()) };
    task.cpu_cycles.fetch_add(arch::rdtsc().saturating_sub(own.resumed_at.get()), Ordering::Relaxed);
    vcpu::set_current(core::ptr::null_mut());
    link::flush();
    match task.park.commit(task.why.get()) {
        Commit::Requeue if task.wants_normal.get() => hand_over(task, Errand::Run),
        Commit::Requeue => match own.vcpu.requeue(reference, task.priority()) {
            Ok(ticket) => ring(ticket),
            Err(_) => unreachable!("run queue overflow"),
        },
        Commit::Parked => {}
        // What its report drops may take locks of wasmtime's.
        Commit::Exited if task.died() && vcpu::id() != VcpuId::NORMAL => hand_over(task, Errand::Finish),
        // SAFETY: it switched out for the last time.
        Commit::Exited => unsafe { task::finish(pointer) },
    }
}

/// When a task that is resumed at `now` will have used up its CPU time, in cycles.
fn cpu_limit_at(task: &Task, now: u64) -> u64 {
    match task.limits().cpu_ns {
        u64::MAX => u64::MAX,
        limit => {
            let left = limit.saturating_sub(clock::cycles_to_ns(task.cpu_cycles.load(Ordering::Relaxed)));
            now.saturating_add(clock::ns_to_cycles(left))
        }
    }
}

/// Asked at a safe point by the running task of `class`: whether it must give its vCPU up. On vCPU 0 it must: the
/// dispatcher has other things to do.
pub fn must_yield(class: Priority) -> bool {
    elastic::poll();
    translations::catch_up();
    let over = slice_is_over();
    let must =
        vcpu::id() == VcpuId::NORMAL || own().vcpu.should_yield(class, over) || over && migrate::has_work();
    PREEMPTIONS.fetch_add(u64::from(must), Ordering::Relaxed);
    must
}

/// Whether the running task has had its slice.
pub fn slice_is_over() -> bool {
    clock::cycles_to_ns(cycles_since_resume()) >= SLICE_NS
}

/// Whether there are Worker vCPUs.
pub fn has_workers() -> bool {
    scheduler().vcpus().count() > 1
}

/// How many tasks of a program can run at once.
pub fn parallelism() -> u32 {
    (scheduler().vcpus().count() as u32 - 1).max(1)
}

/// Counts a task that a program spawned.
pub fn count_spawned() {
    SPAWNED.fetch_add(1, Ordering::Relaxed);
}

/// Counts a task that ended.
pub fn count_ended(cpu_ns: u64) {
    ENDED.fetch_add(1, Ordering::Relaxed);
    CPU_NS.fetch_add(cpu_ns, Ordering::Relaxed);
    CPU_MIN_NS.fetch_min(cpu_ns, Ordering::Relaxed);
    CPU_MAX_NS.fetch_max(cpu_ns, Ordering::Relaxed);
}

/// Cycles since the current task was switched in.
pub fn cycles_since_resume() -> u64 {
    arch::rdtsc().saturating_sub(own().resumed_at.get())
}

/// The loop of a Worker vCPU.
pub fn worker_loop() -> ! {
    // Whoever woke it for the first time found it announced at boot.
    let _ = own().vcpu.retract();
    let mut dry_since = arch::rdtsc();
    // How long it waited for the task that it takes next: noted when that has run, not while it waits in its turn.
    let mut waited = None;
    let since = |then| arch::rdtsc().saturating_sub(then);
    loop {
        match run_one() {
            Ran::Task => {
                // A turn for each task, so that neither keeps the other from its end.
                migrate::work();
                if let Some(cycles) = waited.take() {
                    own().spin.borrow_mut().work_came(clock::cycles_to_ns(cycles));
                }
                dry_since = arch::rdtsc();
            }
            Ran::Nothing if migrate::work() => dry_since = arch::rdtsc(),
            Ran::Nothing if spin_for_work() => waited = Some(since(dry_since)),
            ran @ (Ran::Nothing | Ran::MustPark) => {
                if ran == Ran::MustPark {
                    elastic::note_demand()
                } else {
                    elastic::demand_fell()
                }
                park_unless(
                    || {
                        elastic::poll();
                        own().vcpu.has_work() || ran != Ran::MustPark && migrate::has_work()
                    },
                    None,
                );
                // The time for which a worker may not run is no wait for work.
                if ran == Ran::MustPark {
                    dry_since = arch::rdtsc();
                } else if own().vcpu.has_work() {
                    waited = Some(since(dry_since));
                }
            }
        }
    }
}

/// Looks for work for as long as the policy says; true if there is some.
fn spin_for_work() -> bool {
    let own = own();
    let budget_ns = own.spin.borrow().budget_ns(elastic::spin_limit_ns());
    let begin = arch::rdtsc();
    loop {
        if own.vcpu.has_work() || migrate::has_work() {
            return true;
        }
        elastic::poll();
        translations::catch_up();
        // Wrapping: a counter that the host sets back ends the spinning.
        let late = clock::cycles_to_ns(arch::rdtsc().wrapping_sub(begin)) >= budget_ns;
        if late || !scheduler().allowed().contains(own.vcpu.id()) {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Puts this vCPU to sleep until it is woken or the deadline (monotonic clock) has passed, unless `busy` says, after
/// everybody can see that it is about to sleep, that there is something to do.
pub fn park_unless(busy: impl FnOnce() -> bool, deadline_ns: Option<u64>) {
    let vcpu = &own().vcpu;
    vcpu.announce();
    if !busy() {
        let wait_ns =
            deadline_ns.map_or(hypercall::PARK_FOREVER, |at| at.saturating_sub(clock::monotonic_ns()));
        if wait_ns != 0 {
            PARKS.fetch_add(1, Ordering::Relaxed);
            let mailbox = link::window().mailbox(vcpu::id());
            let wake = own().wake_at_park.take().map_or(0, |vcpu| vcpu.index() as u64 + 1);
            mailbox[0].store(wait_ns, Ordering::Relaxed);
            mailbox[1].store(wake, Ordering::Relaxed);
            translations::while_asleep(|| arch::hypercall(hypercall::PARK, 0));
        }
    }
    // It did not park after all.
    own().wake_at_park.take().into_iter().for_each(arch::wake);
    // A wake that came meanwhile is only a hint: the loop looks at the queues in any case.
    let _ = vcpu.retract();
}

/// Whether this vCPU would find a task.
pub fn has_work() -> bool {
    own().vcpu.has_work()
}

/// Counters: resumes, moves, parks, wakes, preemptions, tasks spawned.
pub fn counters() -> [u64; 6] {
    let sum = |of: fn(&Runs) -> &AtomicU64| RUNS.iter().map(|runs| of(runs).load(Ordering::Relaxed)).sum();
    let [parks, wakes, preemptions, spawned] =
        [&PARKS, &WAKES, &PREEMPTIONS, &SPAWNED].map(|counter| counter.load(Ordering::Relaxed));
    [sum(|runs| &runs.resumes), sum(|runs| &runs.moves), parks, wakes, preemptions, spawned]
}

/// Tasks that ended, and the sum, the least and the most of their CPU times in nanoseconds.
pub fn ended() -> [u64; 4] {
    let [ended, sum, min, max] =
        [&ENDED, &CPU_NS, &CPU_MIN_NS, &CPU_MAX_NS].map(|counter| counter.load(Ordering::Relaxed));
    [ended, sum, if ended == 0 { 0 } else { min }, max]
}
