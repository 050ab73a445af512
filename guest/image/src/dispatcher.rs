//! The dispatcher on vCPU 0: reads the host's messages, runs timers, gives memory back, ticks.
//!
//! Whatever it reads is the host's to choose: numbers are looked up, offsets and lengths checked, texts must be UTF-8. A
//! message about something that does not exist is dropped; a broken ring ends the CVM, because nothing can be
//! ordered over it any more.

use crate::arch::{self, clock};
use crate::memory::{self, Scratch};
use crate::program::{Code, Loading, Options, Owner, Program};
use crate::sched::{self, Ran, Timers};
use crate::task::{Begin, Spec};
use crate::translations;
use crate::{
    calls, children, console, elastic, handover, link, migrate, modules, phases, sealed, sockets, stats,
    task, wasm,
};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use nacre_abi::attest::CodeForm;
use nacre_abi::hypercall::{self, ExitReason};
use nacre_abi::message::{ExitKind, Header, Kind, NO_PROGRAM, ProgramOption, TreeKind, stream};
use nacre_abi::ring::{Consumer, Incoming};
use nacre_abi::window::{ControlWord, TO_GUEST_BYTES};
use nacre_wasi::{EntryKind, Errno, FileHandle, Fs};
use nacre_wval::Priority;

/// After how long a task that must come to a safe point and has not is reminded.
const RETRY_NS: u64 = 1_000_000;
/// For how long messages of a busy worker may be left unrung at most, twice.
const UNRUNG_NS: u64 = 5_000_000;
/// Interval at which a CVM whose workers are awake is looked at in any case: nobody tells vCPU 0 that tasks begin to wait.
const BACKSTOP_NS: u64 = 20_000_000;
/// Messages after which timers are looked at: fewer than requests for timers that vCPU 0 can have on their way.
const TIMERS_EVERY: u32 = 32;
/// Longest code that a program can have.
pub const MAX_CODE_BYTES: u64 = 1 << 30;
/// Longest path of a tree entry: one guest path and one link target.
const MAX_STRINGS: usize = 1 << 16;

/// The dispatcher.
pub struct Dispatcher {
    ring: Consumer<'static>,
    /// Bodies are copied here before anything looks at them. Agent memory: the dispatcher never stays in the tenant arena.
    body: &'static mut [u8],
    timers: Timers,
    reclaimer: elastic::Reclaimer,
    /// The vCPUs that had left messages unrung at the last tick.
    unrung: u64,
    /// When running tasks are to be looked at, in cycles.
    next_tick: u64,
    /// When they may be brought to a safe point again, in cycles.
    next_bump: u64,
}

impl Dispatcher {
    /// The dispatcher of this CVM. Once, by vCPU 0.
    pub fn new(timers: Timers, scratch: &mut Scratch) -> Dispatcher {
        let body = scratch.slice(TO_GUEST_BYTES as usize / 4, |_| 0);
        let (ring, reclaimer) = (Consumer::new(link::window().to_guest()), elastic::Reclaimer::default());
        Dispatcher { ring, body, timers, reclaimer, unrung: 0, next_tick: 0, next_bump: 0 }
    }

    /// The loop of vCPU 0.
    pub fn run(mut self) -> ! {
        loop {
            // First of all: the host may have woken this vCPU because it wants a worker back.
            let reminder = self.reclaimer.run();
            translations::catch_up();
            let moving = migrate::run();
            if migrate::holds_tenant() {
                self.run_beside_tenant(moving);
                continue;
            }
            let mut busy = moving | self.receive();
            busy |= self.timers.run();
            busy |= sched::run_handed_over();
            busy |= sched::run_one() == Ran::Task;
            if busy {
                if self.is_due(arch::rdtsc()) {
                    self.tick();
                }
                continue;
            }
            if memory::has_releasable() {
                release_memory();
                continue;
            }
            if migrate::work() {
                continue;
            }
            self.park(reminder);
        }
    }

    /// A turn of the loop while the tenant's arena is not to be touched: it is on its way to another CVM, or here, or has gone.
    fn run_beside_tenant(&mut self, mut busy: bool) {
        if !migrate::leaves_ring() {
            busy |= self.receive();
        }
        if busy || migrate::work() {
            return;
        }
        let window = link::window();
        window.set_control(ControlWord::NormalParked, 1);
        let (ring, leaves_ring) = (&self.ring, migrate::leaves_ring());
        let deadline = migrate::deadline_ns();
        sched::park_unless(|| migrate::before_park() || !leaves_ring && ring.has_message(), deadline);
        window.set_control(ControlWord::NormalParked, 0);
    }

    /// Sleeps until the host or a timer has something, or a worker may have to be reminded.
    fn park(&mut self, reminder: Option<u64>) {
        let window = link::window();
        window.set_control(ControlWord::NormalParked, 1);
        let deadlines = [self.timers.before_park(), self.tick(), reminder, migrate::deadline_ns()];
        let deadline = deadlines.into_iter().flatten().min();
        let ring = &self.ring;
        let busy = || migrate::before_park() || ring.has_message() || handover::any() || sched::has_work();
        sched::park_unless(busy, deadline);
        self.timers.after_park();
        window.set_control(ControlWord::NormalParked, 0);
    }

    /// Brings running tasks to a safe point when one of them must (see [`nacre_wval::Scheduler::tick`]), and while any task is
    /// ending. Returns when to look again, in nanoseconds of the monotonic clock.
    fn tick(&mut self) -> Option<u64> {
        let scheduler = sched::scheduler();
        let (now, retry) = (arch::rdtsc(), clock::ns_to_cycles(RETRY_NS));
        let backstop = clock::ns_to_cycles(BACKSTOP_NS);
        let tick = scheduler.tick(now, clock::ns_to_cycles(sched::SLICE_NS), retry);
        let stopping = task::any_stopping();
        let load = scheduler.load();
        let left = sched::left_for(now);
        if left.is_none() || load.queued == 0 {
            elastic::review_demand(load.queued);
        }
        // A bump that is further away than any was due by a counter that the host has set back since.
        let bump_due = now >= self.next_bump || self.next_bump - now > retry;
        if (tick.bump || stopping) && bump_due {
            wasm::bump_epoch();
            self.next_bump = now.saturating_add(retry);
        }
        if self.is_due(now) && load.queued != 0 && left.is_none() {
            sched::wake_again();
        }
        let mut wait = tick.look_again_at.map(|at| at.saturating_sub(now).min(backstop));
        if stopping {
            wait = Some(wait.map_or(retry, |wait| wait.min(retry)));
        }
        if let Some(left) = left.filter(|_| load.queued != 0) {
            wait = Some(wait.map_or(left, |wait| wait.min(left)));
        }
        let some_awake = load.parked.count() < scheduler.vcpus().count() - 1;
        if some_awake || load.queued != 0 {
            wait = Some(wait.map_or(backstop, |wait| wait.min(backstop)));
        }
        // A worker that has not rung since the last tick is busy with a call that takes longer than was thought.
        let unrung = link::unrung();
        if unrung & core::mem::replace(&mut self.unrung, unrung) != 0 {
            link::ring_for_all();
        }
        if unrung != 0 {
            let unrung_wait = clock::ns_to_cycles(UNRUNG_NS);
            wait = Some(wait.map_or(unrung_wait, |wait| wait.min(unrung_wait)));
        }
        self.next_tick = wait.map_or(0, |wait| now.saturating_add(wait));
        wait.map(|wait| clock::monotonic_ns().saturating_add(clock::cycles_to_ns(wait)))
    }

    /// Whether the next tick is due. Also if it is further away than any tick: then the host has set the counter back.
    fn is_due(&self, now: u64) -> bool {
        now >= self.next_tick || self.next_tick - now > clock::ns_to_cycles(BACKSTOP_NS)
    }

    /// Handles the messages that are there, at most a ring's worth; returns whether there were any.
    fn receive(&mut self) -> bool {
        let mut any = false;
        for number in 1..=256 {
            match self.ring.receive() {
                Ok(Some(incoming)) => {
                    handle(incoming, self.body);
                    any = true;
                    link::count_received();
                    if number % TIMERS_EVERY == 0 {
                        self.timers.run();
                    }
                }
                Ok(None) => break,
                Err(corrupt) => console::fatal(
                    ExitReason::BadLaunch,
                    format_args!(
                        "the host's ring is corrupt ({corrupt:?}): host and guest can't talk any more"
                    ),
                ),
            }
        }
        if !migrate::holds_tenant() {
            sockets::wake_all();
        }
        // A host that found no room says so before it looks once more; we gave room before we look.
        fence(Ordering::SeqCst);
        if any && link::window().control(ControlWord::HostWantsRoom) != 0 {
            arch::hypercall(hypercall::DOORBELL, 0);
        }
        any
    }
}

fn release_memory() {
    memory::release_free(|start, bytes| {
        let mailbox = link::window().mailbox(crate::vcpu::id());
        mailbox[0].store(start.0, Ordering::Relaxed);
        mailbox[1].store(bytes, Ordering::Relaxed);
        arch::hypercall(hypercall::RELEASE, 0);
    });
}

/// Handles one message and takes it off the ring.
fn handle(incoming: Incoming<'_, '_>, buffer: &mut [u8]) {
    let header = incoming.header();
    if migrate::holds_tenant() && !migrate::may_handle(header.kind) {
        return incoming.finish();
    }
    match header.kind {
        // Code is copied once, straight to where it will run.
        Kind::ProgramCode => with_loading(header.program, |loading| {
            let filled = loading.code.fill(header.arg, u64::from(header.len), &mut |at, piece| {
                incoming.copy_body(at, piece);
            });
            if let Err(error) = filled {
                let (kind, text) = error.parts();
                fail(loading, kind, text);
            }
        }),
        Kind::SocketOpen
        | Kind::SocketData
        | Kind::SocketEnd
        | Kind::SocketCredit
        | Kind::SocketClose
        | Kind::SocketReset => sockets::receive(&incoming),
        Kind::ModuleCode => modules::code(&incoming),
        Kind::CallStart => calls::start(&incoming),
        Kind::CallData => calls::data(&incoming),
        #[cfg(feature = "debug-image")]
        Kind::ArenaDump | Kind::ArenaPage | Kind::ArenaLazy | Kind::ArenaEnd => {
            crate::arena_copy::handle(&incoming)
        }
        _ => {
            let len = incoming.copy_body(0, buffer);
            handle_copied(header, &buffer[..len]);
        }
    }
    incoming.finish();
}

fn handle_copied(header: Header, body: &[u8]) {
    let id = header.program;
    match header.kind {
        Kind::ProgramCreate => create(header, body),
        Kind::ProgramArg => {
            with_loading(id, |loading| push_text(loading, body, |loading, text| loading.args.push(text)))
        }
        Kind::ProgramEnv => with_loading(id, |loading| push_text(loading, body, push_env)),
        Kind::Preopen => {
            with_loading(id, |loading| push_text(loading, body, |loading, text| loading.preopens.push(text)))
        }
        Kind::ProgramOption if header.stream == ProgramOption::Listens as u32 => {
            with_program(id, |program| sockets::provide(program))
        }
        Kind::ProgramOption => {
            with_any_loading(id, |loading| set_option(&mut loading.options, header));
        }
        Kind::TreeEntry => with_loading(id, |loading| tree_entry(loading, header, body)),
        Kind::TreeData => with_loading(id, |loading| tree_data(loading, body)),
        Kind::ProgramStart => {
            with_loading(id, |loading| loading.terminals = [0, 1, 2].map(|bit| header.arg >> bit & 1 != 0));
            start(id);
        }
        Kind::StreamData if header.stream == stream::STDIN => {
            with_program(id, |program| program.stdin_data(header.arg, body))
        }
        Kind::StreamEnd if header.stream == stream::STDIN => with_program(id, |program| program.stdin_end()),
        Kind::Credit => with_program(id, |program| program.output_credit(header.stream, header.arg)),
        Kind::StreamClosed => with_program(id, |program| program.output_closed(header.stream)),
        Kind::Export => export(id, body),
        Kind::ProgramDrop => Program::forget(id),
        Kind::Manifest => sealed::take_manifest(body),
        Kind::EvidenceRequest => sealed::evidence::request(id, body),
        Kind::Report => sealed::evidence::report(id, body),
        Kind::ModuleCreate => modules::create(header),
        Kind::ModuleLoad => modules::load(id),
        Kind::ModuleDrop => modules::forget(id),
        Kind::CallCancel => calls::cancel(id),
        Kind::StatsRequest => link::send(Header::new(Kind::Stats, NO_PROGRAM), &stats::all().encode()),
        Kind::MigrateSend
        | Kind::MigrateReceive
        | Kind::MigrateCancel
        | Kind::MigrateCommit
        | Kind::MigrateMemory => migrate::handle(header, body),
        #[cfg(feature = "debug-image")]
        Kind::SelfTest => crate::selftest::start(header, body),
        // What only a guest sends, or this image does not know.
        _ => {}
    }
}

fn with_program(id: u32, act: impl FnOnce(&Arc<Program>)) {
    if let Some(program) = Program::find(id) {
        act(&program);
    }
}

/// Changes what a program is loaded with; nothing if that is none of the host's business.
fn with_loading(id: u32, act: impl FnOnce(&mut Loading)) {
    let hosts = Program::find(id).is_some_and(|program| program.owner == Owner::Host);
    if hosts {
        with_any_loading(id, act);
    }
}

fn with_any_loading(id: u32, act: impl FnOnce(&mut Loading)) {
    with_program(id, |program| {
        // Only the dispatcher has it until the start, which takes it for good.
        if let Some(mut loading) = program.loading.take() {
            act(&mut loading);
            program.loading.put(loading);
        }
    });
}

/// Remembers the first failure of a load; the start reports it.
fn fail(loading: &mut Loading, kind: ExitKind, text: &str) {
    loading.error.get_or_insert_with(|| (kind, text.to_string()));
}

fn create(header: Header, body: &[u8]) {
    phases::mark(&phases::CREATED);
    let id = header.program;
    let refuse = |kind: ExitKind, text: &str| Program::refuse(id, kind, text);
    match CodeForm::from_number(header.stream) {
        Some(CodeForm::Plain) if sealed::takes_plain_code() => {}
        Some(CodeForm::Plain) => return refuse(ExitKind::Error, sealed::SEALED),
        Some(CodeForm::Package) => {
            return if let Err((kind, text)) = sealed::packages::start_service(id, body) {
                refuse(kind, text);
            };
        }
        None => return refuse(ExitKind::Error, "code comes in a form that this guest does not know"),
    }
    let code = if header.arg <= MAX_CODE_BYTES { Code::new(header.arg).ok() } else { None };
    let error = code.is_none().then(|| {
        let text = format!("no memory for {} MiB of code: give the CVM more with --memory", header.arg >> 20);
        (ExitKind::OutOfMemory, text)
    });
    // A page of code that no program has, so that the rest of the load needs no special case.
    let code = code.or_else(|| Code::new(nacre_abi::PAGE_BYTES).ok());
    let loading = code.and_then(Loading::new).map(|loading| Loading { error, ..loading });
    if loading.is_none_or(|loading| Program::create(id, loading, Owner::Host).is_err()) {
        refuse(ExitKind::OutOfMemory, "no memory");
    }
}

fn push_text(loading: &mut Loading, body: &[u8], push: impl FnOnce(&mut Loading, String)) {
    let used = loading.args.len() + loading.env.len() + loading.preopens.len();
    match core::str::from_utf8(body) {
        _ if used >= MAX_STRINGS => fail(loading, ExitKind::Error, "too many arguments and variables"),
        Ok(text) => match copied(text) {
            Some(text) => push(loading, text),
            None => fail(
                loading,
                ExitKind::OutOfMemory,
                "no memory for the arguments: give the CVM more with --memory",
            ),
        },
        Err(_) => fail(loading, ExitKind::Error, "an argument or variable is not UTF-8"),
    }
}

/// A copy, if there is memory for it: the host chooses how long it is.
fn copied(text: &str) -> Option<String> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).ok()?;
    copy.push_str(text);
    Some(copy)
}

fn push_env(loading: &mut Loading, text: String) {
    match text.split_once('=') {
        Some((name, value)) => loading.env.push((name.to_string(), value.to_string())),
        None => fail(loading, ExitKind::Error, "an environment variable has no value"),
    }
}

/// An option that this image does not know, or a priority that does not exist, changes nothing.
fn set_option(options: &mut Options, header: Header) {
    match ProgramOption::from_number(header.stream) {
        Some(ProgramOption::WallLimit) => options.wall_limit_ns = header.arg,
        Some(ProgramOption::CpuLimit) => options.cpu_limit_ns = header.arg,
        Some(ProgramOption::Priority) => {
            let class = usize::try_from(header.arg).ok().and_then(Priority::from_index);
            options.priority = class.unwrap_or(options.priority);
        }
        // The program's, not its task's.
        Some(ProgramOption::Listens) | None => {}
    }
}

fn tree_entry(loading: &mut Loading, header: Header, body: &[u8]) {
    loading.open_file = None;
    let made = make_entry(loading, header, body);
    if let Err((path, error)) = made {
        let kind = if error == Errno::Nospc { ExitKind::OutOfMemory } else { ExitKind::Error };
        fail(loading, kind, &format!("{path} can't be brought in: {error}"));
    }
}

fn make_entry(loading: &mut Loading, header: Header, body: &[u8]) -> Result<(), (String, Errno)> {
    let invalid = |text: &str| (text.to_string(), Errno::Inval);
    let kind = TreeKind::from_number(header.stream).ok_or_else(|| invalid("an entry of unknown kind"))?;
    let text = core::str::from_utf8(body).map_err(|_| invalid("a file whose name is not UTF-8"))?;
    let (path, target) = text.split_once('\0').unwrap_or((text, ""));
    let mtime = header.arg;
    let fs = &mut loading.fs;
    let made = match kind {
        TreeKind::Directory => fs.create_dir_all(path, mtime),
        TreeKind::Symlink => fs.symlink(path, target, mtime),
        TreeKind::File => fs.create_file(path, mtime, false).map(|handle| loading.open_file = Some(handle)),
    };
    made.map_err(|error| (path.to_string(), error))
}

fn tree_data(loading: &mut Loading, body: &[u8]) {
    let Some(handle) = loading.open_file else { return };
    if loading.fs.append(handle, body).is_err() {
        loading.open_file = None;
        fail(
            loading,
            ExitKind::OutOfMemory,
            "the directories brought in need more memory than the CVM has: give it more with --memory",
        );
    }
}

fn start(id: u32) {
    with_program(id, |program| {
        let Some(loading) = program.loading.take() else { return };
        let options = loading.options;
        let (body, dead) = (program.clone(), program.clone());
        let on_death = move || {
            let text = "out of memory: the CVM's heap is full; give the CVM more with --memory";
            children::stop_others(dead.id, None);
            dead.report_exit(ExitKind::OutOfMemory, 0, text);
        };
        let spec = Spec {
            priority: options.priority,
            limits: options.limits(),
            program: id,
            call: None,
            expected_ns: u64::MAX,
            patient: false,
            on_death: Some(Box::new(on_death)),
        };
        match task::create(spec, Box::new(move |begin| wasm::run_program(&body, *loading, begin))) {
            Ok(task) => program.run_in(&task),
            Err(_) => {
                let text = "there are as many tasks as the CVM can have: give it more memory with --memory";
                program.report_exit(ExitKind::OutOfMemory, 0, text);
            }
        }
    });
}

/// Sends a tree of files, as a task: it takes as long as the host reads slowly.
fn export(id: u32, body: &[u8]) {
    let path = String::from_utf8_lossy(body).to_string();
    with_program(id, |program| {
        if program.owner != Owner::Host {
            return link::send(
                Header::new(Kind::TreeEnd, id),
                b"the program is sealed: its files stay inside",
            );
        }
        let fs = program.fs_after.take();
        let Some(fs) = fs else {
            return link::send(
                Header::new(Kind::TreeEnd, id),
                b"the program has not run, or another export goes on",
            );
        };
        let exporter = program.clone();
        // If there is no room for the task the file system is lost with it, and so is every later export.
        let entry = Box::new(move |begin| {
            let sent = if begin == Begin::Now { send_tree(&exporter, &fs, &path) } else { Err(Errno::Nomem) };
            exporter.fs_after.put(fs);
            let text = sent.err().map(|error| error.to_string()).unwrap_or_default();
            exporter.end_task();
            link::send(Header::new(Kind::TreeEnd, id), text.as_bytes());
        });
        match task::create(Spec::helper(id), entry) {
            Ok(task) => program.run_in(&task),
            Err(_) => link::send(Header::new(Kind::TreeEnd, id), b"too many tasks"),
        }
    });
}

fn send_tree(program: &Program, fs: &Fs, path: &str) -> Result<(), Errno> {
    let id = program.id;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(link::MAX_BODY).map_err(|_| Errno::Nomem)?;
    buffer.resize(link::MAX_BODY, 0);
    let mut cursor = match fs.export(path) {
        // One file: an entry without a path.
        Err(Errno::Notdir) => {
            link::send(
                Header::new(Kind::TreeEntry, id).stream(TreeKind::File as u32).arg(clock::wall_ns()),
                &[],
            );
            return send_file(program, fs, fs.file_at(path)?, &mut buffer);
        }
        other => other?,
    };
    while let Some(entry) = cursor.next(fs)? {
        let (kind, target) = match entry.kind {
            EntryKind::Dir => (TreeKind::Directory, None),
            EntryKind::File { .. } => (TreeKind::File, None),
            EntryKind::Symlink { target } => (TreeKind::Symlink, Some(target)),
        };
        let text =
            target.map_or_else(|| entry.path.to_string(), |target| format!("{}\0{target}", entry.path));
        // Programs can nest directories deeper than any path can name.
        if text.len() > link::MAX_BODY {
            return Err(Errno::Nametoolong);
        }
        link::send(Header::new(Kind::TreeEntry, id).stream(kind as u32).arg(entry.mtime), text.as_bytes());
        if let EntryKind::File { handle, .. } = entry.kind {
            send_file(program, fs, handle, &mut buffer)?;
        }
    }
    Ok(())
}

fn send_file(program: &Program, fs: &Fs, file: FileHandle, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut offset = 0;
    loop {
        let len = fs.read_file(file, offset, buffer)?;
        if len == 0 {
            return Ok(());
        }
        if !program.send_tree_data(&buffer[..len]) {
            return Err(Errno::Canceled);
        }
        offset += len as u64;
    }
}
