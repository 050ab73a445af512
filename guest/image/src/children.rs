//! Tasks that programs spawn: what all tasks of one run share ([`Family`]), one such task ([`Child`]), and whom an
//! instance has spawned ([`Kids`]).
//!
//! Nothing here has a lock: a child's message is there before anybody else knows the child, its result is set once, at its
//! end, and the rest are counters. The host calls over it are in [`crate::wasm::spawn`].

use crate::arch::clock;
use crate::once::Once;
use crate::program::{Code, Program};
use crate::task::{self, Begin, Spec, Task};
use crate::wasm::slots::ModuleSlots;
use crate::wasm::{self, Context};
use crate::{memory, sched};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use nacre_abi::spawn::{MAX_TASKS, Report, Status};
use nacre_wasi::Errno;
use nacre_wval::{Completion, Limits, Priority, StopReason};
use wasmtime::{ExternType, InstancePre, Module, ValType};

/// Messages and results of one program may take this part of the memory that is free at its start.
const HELD_SHARE: u64 = 4;

/// A program's code, ready to be instantiated. The fields are dropped in this order: the module's code lies in `code`.
pub struct Loaded {
    /// With its imports.
    pub pre: InstancePre<Context>,
    module: Module,
    /// It exports `_start`, which takes and returns nothing.
    pub has_start: bool,
    /// The exported functions that take and return an i32.
    tasks: BTreeSet<String>,
    /// How long its calls take of late, in nanoseconds.
    average_ns: AtomicU64,
    /// The memories of its calls, which are kept between them.
    pub slots: ModuleSlots,
    /// Where it lies.
    _code: Code,
    _leave: LeaveNormal,
}

/// Ends what the drop of [`Loaded`] begins: all its fields are dropped on one trip to vCPU 0, for the engine's locks.
struct LeaveNormal;

impl Drop for Loaded {
    fn drop(&mut self) {
        task::enter_normal();
    }
}

impl Drop for LeaveNormal {
    fn drop(&mut self) {
        task::leave_normal();
    }
}

/// By so much the average time of calls can rise at least with one of them, times eight, in nanoseconds.
const AVERAGE_STEP_NS: u64 = 8_000;

impl Loaded {
    /// A module that was loaded from `code`.
    pub fn new(pre: InstancePre<Context>, module: Module, code: Code) -> Loaded {
        let is_i32 = |types: &mut dyn Iterator<Item = ValType>| {
            matches!((types.next(), types.next()), (Some(ValType::I32), None))
        };
        let (mut has_start, mut tasks) = (false, BTreeSet::new());
        for export in module.exports() {
            let ExternType::Func(ty) = export.ty() else { continue };
            has_start |= export.name() == "_start" && ty.params().len() + ty.results().len() == 0;
            if is_i32(&mut ty.params()) && is_i32(&mut ty.results()) {
                tasks.insert(String::from(export.name()));
            }
        }
        let slots = ModuleSlots::new();
        Loaded {
            pre,
            module,
            has_start,
            tasks,
            average_ns: AtomicU64::new(u64::MAX),
            slots,
            _code: code,
            _leave: LeaveNormal,
        }
    }

    /// A call took so long.
    pub fn note_time(&self, ns: u64) {
        let average = self.average_ns.load(Ordering::Relaxed);
        // One whose vCPU lost its CPU says nothing about the others: no call counts for much more than the average.
        let bounded = ns.min(average.saturating_mul(4).saturating_add(AVERAGE_STEP_NS));
        let new = if average == u64::MAX { ns } else { average - average / 8 + bounded / 8 };
        self.average_ns.store(new, Ordering::Relaxed);
    }

    /// How long calls take of late, in nanoseconds; `u64::MAX` if there was none.
    pub fn average_ns(&self) -> u64 {
        self.average_ns.load(Ordering::Relaxed)
    }

    /// Whether it exports something of that name.
    pub fn exports(&self, name: &str) -> bool {
        self.module.get_export_index(name).is_some()
    }

    /// Whether that is a function which takes and returns an i32.
    pub fn is_task(&self, name: &str) -> bool {
        self.tasks.contains(name)
    }
}

/// What all tasks of one run of a program share. It lives as long as the last of them and the last handle.
pub struct Family {
    /// Whose streams they use.
    pub program: Arc<Program>,
    /// What they run.
    pub loaded: Loaded,
    /// Arguments, `argv[0]` first.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Which of the standard streams are terminals.
    pub terminals: [bool; 3],
    /// The main task's place in the table of tasks.
    main: u32,
    /// The main task has ended: no new ones.
    closed: AtomicBool,
    /// Children that have not ended.
    live: AtomicUsize,
    /// Children that still exist: they run, or somebody has a handle.
    existing: AtomicUsize,
    /// Bytes of their messages and results.
    held_bytes: AtomicU64,
    held_limit: u64,
}

impl Family {
    /// The family of the main task, which is the caller.
    pub fn new(
        program: Arc<Program>,
        loaded: Loaded,
        args: Vec<String>,
        env: Vec<(String, String)>,
        terminals: [bool; 3],
    ) -> Family {
        Family {
            program,
            loaded,
            args,
            env,
            terminals,
            main: task::current().slot,
            closed: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            existing: AtomicUsize::new(0),
            held_bytes: AtomicU64::new(0),
            held_limit: memory::available_bytes() / HELD_SHARE,
        }
    }

    /// Sets `bytes` of messages and results aside.
    ///
    /// # Errors
    /// [`Errno::Nobufs`] if the program has as much as it may.
    pub fn hold(&self, bytes: u64) -> Result<(), Errno> {
        let held = self.held_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > self.held_limit {
            self.release(bytes);
            return Err(Errno::Nobufs);
        }
        Ok(())
    }

    /// Gives back what was [`hold`](Self::hold).
    pub fn release(&self, bytes: u64) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The main task has ended: ends all others and waits for them. Called by the main task.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if self.live.load(Ordering::SeqCst) == 0 {
            return;
        }
        stop_others(self.program.id, Some(self.main));
        while self.live.load(Ordering::SeqCst) != 0 {
            task::park();
        }
    }
}

/// Tells all tasks of a program to end, but for the one in slot `except`.
pub fn stop_others(program: u32, except: Option<u32>) {
    for other in task::of_program(program).filter(|other| Some(other.slot) != except) {
        task::stop(&other, StopReason::Cancelled);
    }
}

/// What a child is spawned with.
pub struct Order {
    /// The exported function.
    pub name: String,
    /// What it is given; accounted with [`Family::hold`].
    pub message: Vec<u8>,
    /// Its class.
    pub priority: Priority,
    /// How long it may run.
    pub limits: Limits,
}

/// A task that a program spawned.
pub struct Child {
    /// Its relatives.
    pub family: Arc<Family>,
    /// The exported function it calls.
    pub name: String,
    /// What it is given.
    pub message: Vec<u8>,
    task: Once<Arc<Task>>,
    done: Completion,
    end: Once<End>,
}

struct End {
    report: Report,
    result: Vec<u8>,
}

impl Child {
    /// Spawns a task.
    ///
    /// # Errors
    /// [`Errno::Again`] if there are as many tasks as there can be, [`Errno::Canceled`] if the program is ending.
    pub fn spawn(family: &Arc<Family>, order: Order) -> Result<Arc<Child>, Errno> {
        let Order { name, message, priority, limits } = order;
        let child = Arc::new(Child {
            family: family.clone(),
            name,
            message,
            task: Once::new(),
            done: Completion::new(),
            end: Once::new(),
        });
        // From here on the drop of `child` takes it back.
        if family.existing.fetch_add(1, Ordering::Relaxed) >= MAX_TASKS {
            return Err(Errno::Again);
        }
        family.live.fetch_add(1, Ordering::SeqCst);
        let (body, dead) = (child.clone(), child.clone());
        let spec = Spec {
            priority,
            limits,
            program: family.program.id,
            call: None,
            expected_ns: u64::MAX,
            patient: true,
            on_death: Some(Box::new(move || dead.end(Status::OutOfMemory, 0, 0, Vec::new()))),
        };
        let made = if family.closed.load(Ordering::SeqCst) {
            Err(Errno::Canceled)
        } else {
            task::create(spec, Box::new(move |begin| body.run(begin))).map_err(|_| Errno::Again)
        };
        let task = made.inspect_err(|_| family.left())?;
        let task = child.task.get_or_set(Box::new(task));
        // Whoever closes looks through the table of tasks after it has said so.
        if family.closed.load(Ordering::SeqCst) || family.program.is_killed() {
            task::stop(task, StopReason::Cancelled);
        }
        family.program.note_children();
        sched::count_spawned();
        task::start(task);
        Ok(child)
    }

    /// The body of its task.
    fn run(self: Arc<Child>, begin: Begin) {
        match begin {
            Begin::Now => {
                let ((status, code), result) = wasm::run_child(&self);
                task::current().conclude();
                self.end(status, code, clock::cycles_to_ns(task::current_cpu_cycles()), result);
            }
            Begin::Stopped(StopReason::Cancelled) => self.end(Status::Cancelled, 0, 0, Vec::new()),
            Begin::Stopped(_) => self.end(Status::TimeLimit, 0, 0, Vec::new()),
            Begin::NoMemory => self.end(Status::OutOfMemory, 0, 0, Vec::new()),
        }
    }

    fn end(&self, status: Status, code: u32, cpu_ns: u64, result: Vec<u8>) {
        let report = Report { status, code, result_len: result.len() as u64, cpu_ns };
        self.end.get_or_set(Box::new(End { report, result }));
        if let Some(waiter) = self.done.end() {
            task::unpark_slot(waiter);
        }
        self.family.left();
    }

    /// Called by the one who waits for its end, before it parks: its report if there is nothing to wait for.
    pub fn ended(&self, waiter: u32) -> Option<&Report> {
        if self.done.wait_for(waiter) { self.end.get().map(|end| &end.report) } else { None }
    }

    /// Its result, once it has ended.
    pub fn result(&self) -> Option<&[u8]> {
        self.done.has_ended().then(|| self.end.get().map_or(&[][..], |end| &end.result))
    }

    /// Tells it to end.
    pub fn cancel(&self) {
        if !self.done.has_ended()
            && let Some(task) = self.task.get()
        {
            task::stop(task, StopReason::Cancelled);
        }
    }
}

impl Family {
    /// A child has ended.
    fn left(&self) {
        if self.live.fetch_sub(1, Ordering::SeqCst) == 1 {
            task::unpark_slot(self.main);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let result = self.end.get().map_or(0, |end| end.result.len());
        self.family.release((self.message.len() + result) as u64);
        self.family.existing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The children of one instance, and its own part as a child. When it goes, they are told to end.
pub struct Kids {
    /// Its relatives.
    pub family: Arc<Family>,
    /// What this instance was spawned as; `None` for the main one.
    pub me: Option<Arc<Child>>,
    /// What this instance gives to whoever joins it; accounted with [`Family::hold`].
    pub result: Vec<u8>,
    handles: BTreeMap<u32, Arc<Child>>,
    next: u32,
}

impl Kids {
    /// Nobody yet.
    pub fn new(family: Arc<Family>, me: Option<Arc<Child>>) -> Kids {
        Kids { family, me, result: Vec::new(), handles: BTreeMap::new(), next: 1 }
    }

    /// Enters a child; returns its handle, which no other child of this instance ever has.
    ///
    /// # Errors
    /// [`Errno::Overflow`] when all numbers have been used.
    pub fn enter(&mut self, child: Arc<Child>) -> Result<u32, Errno> {
        let handle = self.next;
        let Some(next) = handle.checked_add(1) else {
            child.cancel();
            return Err(Errno::Overflow);
        };
        self.next = next;
        self.handles.insert(handle, child);
        Ok(handle)
    }

    /// The child behind a handle.
    ///
    /// # Errors
    /// [`Errno::Badf`] if there is none.
    pub fn get(&self, handle: u32) -> Result<&Arc<Child>, Errno> {
        self.handles.get(&handle).ok_or(Errno::Badf)
    }

    /// Forgets a child, which is told to end if it has not.
    ///
    /// # Errors
    /// [`Errno::Badf`] if there is none.
    pub fn forget(&mut self, handle: u32) -> Result<(), Errno> {
        self.handles.remove(&handle).ok_or(Errno::Badf)?.cancel();
        Ok(())
    }
}

impl Drop for Kids {
    fn drop(&mut self) {
        self.family.release(self.result.len() as u64);
        for child in self.handles.values() {
            child.cancel();
        }
    }
}
