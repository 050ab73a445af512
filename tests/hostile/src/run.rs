//! One seed: a CVM under the host of its plan, and whether everything that must hold held.

use crate::host::Adversary;
use crate::plan::{Attack, Class, LaunchLie, Plan, Rng};
use crate::programs::{Job, Work};
use nacre_abi::message::{Header, Kind, NO_PROGRAM, SelfTest, stream};
use nacre_cli::program::Program as Code;
use nacre_vmm::elastic::ElasticConfig;
use nacre_vmm::program::{Connection, Exit, ProgramEvent, ProgramSpec};
use nacre_vmm::{Call, Cvm, CvmConfig, CvmError};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// How long programs may take once the host behaves, before they count as stuck: they need some ten milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the clients of services come from: the guest does not see it.
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// Room for either output of a call: more than any work writes.
const MAX_OUTPUT: usize = 1 << 20;

/// How a seed that held ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Every program finished, rightly.
    Right,
    /// The CVM ended, with this reason.
    Ended(String),
    /// No CVM, or no program in it, with this reason.
    Refused(String),
    /// Nothing went on, and the CVM could be stopped.
    Stalled,
}

/// What happened on a seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub verdict: Verdict,
    /// What the host did, and how often.
    pub done: BTreeMap<String, u64>,
    /// How long all of it took.
    pub time: Duration,
}

/// What came out of one program, up to its end or the CVM's.
struct Outcome {
    job: Job,
    exit: Result<Exit, String>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs a plan. `code` is [`crate::programs::code`].
///
/// # Errors
/// What did not hold, as text.
pub fn run(plan: &Plan, code: &Code) -> Result<Report, String> {
    let begin = Instant::now();
    let host = Adversary::new(plan);
    let verdict = verdict(plan, code, &host)?;
    Ok(Report { verdict, done: host.done(), time: begin.elapsed() })
}

fn verdict(plan: &Plan, code: &Code, host: &Arc<Adversary>) -> Result<Verdict, String> {
    let last_words = Arc::new(Mutex::new(String::new()));
    let words = last_words.clone();
    let config = CvmConfig {
        workers: plan.workers,
        memory_bytes: plan.memory_bytes,
        debug_image: plan.debug_image,
        identity: None,
        on_print: Box::new(move |text| words.lock().unwrap_or_else(PoisonError::into_inner).push_str(text)),
        elastic: ElasticConfig { grace: plan.grace(), ..ElasticConfig::default() },
        hooks: Some(host.clone()),
    };
    let cvm = match Cvm::launch(config) {
        Ok(cvm) => cvm,
        Err(error) if plan.class == Class::Launch => return Ok(Verdict::Refused(error.to_string())),
        Err(error) => return Err(format!("no CVM: {error}")),
    };
    let (outcomes, stuck) = run_programs(plan, code, host, &cvm);
    let mut result = judge(plan, &outcomes, stuck);
    if result == Ok(Verdict::Right) {
        result = audit(plan, &cvm);
    }
    cvm.stop();
    let words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
    let told = |what: String| if words.is_empty() { what } else { format!("{what}: {}", words.trim_end()) };
    match result {
        Ok(Verdict::Ended(reason)) => Ok(Verdict::Ended(told(reason))),
        other => other.map_err(told),
    }
}

/// Runs the programs of the plan under attack; and if they got stuck, where the vCPUs are.
fn run_programs(plan: &Plan, code: &Code, host: &Adversary, cvm: &Cvm) -> (Vec<Outcome>, Option<String>) {
    let (say_done, done) = channel();
    let (say_started, started) = channel();
    std::thread::scope(|scope| {
        if !plan.from_boot {
            // The guest is up when it answers.
            let _ = cvm.stats();
        }
        let attacker = scope.spawn(move || {
            // What is on the rings before is code, which the host may change as it likes.
            if plan.class == Class::Window {
                let _ = plan.jobs.iter().try_for_each(|_| started.recv());
                let _ = cvm.stats();
            }
            host.attack(cvm);
        });
        if plan.attacks.contains(&Attack::Messages) {
            scope.spawn(|| send_garbage(plan, host, cvm));
        }
        let programs: Vec<_> = plan
            .jobs
            .iter()
            .map(|job| {
                let (say_done, say_started) = (say_done.clone(), say_started.clone());
                scope.spawn(move || {
                    let outcome = run_job(plan, *job, code, cvm, say_started);
                    let _ = say_done.send(());
                    outcome
                })
            })
            .collect();
        drop((say_done, say_started));
        let mut patience = Patience::new(Duration::from_micros(plan.hostile_us) + PATIENCE);
        let is_stuck = programs.iter().any(|_| !patience.wait_for(&done));
        let stuck = is_stuck.then(|| host.places());
        if is_stuck {
            cvm.stop();
        }
        let outcomes = programs.into_iter().filter_map(|thread| thread.join().ok()).collect();
        let _ = attacker.join();
        (outcomes, stuck)
    })
}

/// How long is still waited. Time in which this process was stopped as a whole, with everything that is waited for, is not counted:
/// of each slice only what was asked for is.
pub(crate) struct Patience {
    slices: u128,
}

impl Patience {
    const SLICE: Duration = Duration::from_millis(100);

    /// As long as this.
    pub(crate) fn new(time: Duration) -> Patience {
        Patience { slices: time.as_millis() / Self::SLICE.as_millis() }
    }

    /// Waits for a message, or that nobody is left to send one; false if patience has ended before.
    pub(crate) fn wait_for(&mut self, done: &Receiver<()>) -> bool {
        while done.recv_timeout(Self::SLICE) == Err(RecvTimeoutError::Timeout) {
            match self.slices.checked_sub(1) {
                Some(left) => self.slices = left,
                None => return false,
            }
        }
        true
    }
}

fn run_job(plan: &Plan, job: Job, code: &Code, cvm: &Cvm, started: Sender<()>) -> Outcome {
    let mut outcome =
        Outcome { job, exit: Err("it has not run".into()), stdout: Vec::new(), stderr: Vec::new() };
    let exit = if job.calls {
        call(cvm, code, plan.calls_each(), started, &mut outcome)
    } else {
        follow(cvm, code, started, &mut outcome)
    };
    outcome.exit = exit.map_err(|error| error.to_string());
    outcome
}

fn follow(cvm: &Cvm, code: &Code, started: Sender<()>, outcome: &mut Outcome) -> Result<Exit, CvmError> {
    let (job, stdout, stderr) = (outcome.job, &mut outcome.stdout, &mut outcome.stderr);
    let spec = ProgramSpec {
        code: code.file(),
        args: vec!["work".into(), job.argument()],
        preopens: vec!["d".into()],
        listens: true,
        ..ProgramSpec::default()
    };
    let program = cvm.load(&spec)?;
    program.start()?;
    let _ = started.send(());
    let (mut input, text) = (program.stdin(), job.input());
    let credit = input.credit();
    std::thread::scope(|scope| {
        let client = if job.work == Work::Serve {
            let connection = program.connect(PEER);
            Some(scope.spawn(move || connection.map_or_else(|_| Vec::new(), |to| exchange(to, &text))))
        } else {
            scope.spawn(move || input.write_all(&text).then(|| input.end()));
            None
        };
        let exit = loop {
            match program.next_event() {
                Ok(ProgramEvent::Output { stream, bytes, end }) => {
                    if stream == stream::STDOUT { &mut *stdout } else { &mut *stderr }.extend(bytes);
                    if let Err(error) = program.consumed(stream, end) {
                        break Err(error);
                    }
                }
                Ok(ProgramEvent::InputCredit(offset)) => credit.advance(offset),
                Ok(ProgramEvent::Exited(exit)) => break Ok(exit),
                Ok(ProgramEvent::Message(..)) => {}
                Err(error) => break Err(error),
            }
        };
        credit.finish();
        if let Some(heard) = client.and_then(|client| client.join().ok()) {
            stdout.extend(heard);
        }
        exit
    })
}

/// Sends all of it on a connection, and returns what comes back until the connection ends or fails.
fn exchange(mut connection: Connection, text: &[u8]) -> Vec<u8> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let (mut sent, mut heard, mut buf) = (0, Vec::new(), vec![0; 20_000]);
    loop {
        let mut moved = false;
        if sent < text.len()
            && let Poll::Ready(Ok(count)) = connection.poll_write(&mut context, &text[sent..])
        {
            (sent, moved) = (sent + count, true);
            if sent == text.len() {
                connection.shutdown_write();
            }
        }
        match connection.poll_read(&mut context, &mut buf) {
            Poll::Ready(Ok(0) | Err(_)) => return heard,
            Poll::Ready(Ok(count)) => heard.extend(&buf[..count]),
            Poll::Pending if moved => {}
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Wakes a thread that waits for a connection.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Calls a module of this job's own; stops at the first result that is not right, which is then the outcome.
fn call(
    cvm: &Cvm,
    code: &Code,
    times: usize,
    started: Sender<()>,
    outcome: &mut Outcome,
) -> Result<Exit, CvmError> {
    let (argument, stdin) = (outcome.job.argument(), outcome.job.input());
    let args = ["work", &argument];
    let module = match cvm.load_module(code.file()) {
        Ok(module) => module,
        Err(CvmError::Module(refused)) => return Ok(refused),
        Err(error) => return Err(error),
    };
    let expected = outcome.job.expected();
    let mut last = Err(cvm.end_error());
    for _ in 0..times {
        let (say_result, result) = channel();
        let call = Call { args: &args, stdin: &stdin, max_output: MAX_OUTPUT, ..Call::default() };
        let made = cvm.call(&module, call, move |result| drop(say_result.send(result)));
        if let Err(error) = made {
            return Err(if cvm.has_ended() { cvm.end_error() } else { CvmError::Ended(error.to_string()) });
        }
        let _ = started.send(());
        let Ok(result) = result.recv() else { return Err(cvm.end_error()) };
        if cvm.has_ended() {
            return Err(cvm.end_error());
        }
        (outcome.stdout, outcome.stderr) = (result.stdout, result.stderr);
        let differs = expected.difference(&result.exit, &outcome.stdout, &outcome.stderr).is_some();
        last = Ok(result.exit);
        if differs {
            break;
        }
    }
    last
}

/// Messages that no honest host sends: about programs that do not exist, or out of place for those that do.
fn send_garbage(plan: &Plan, host: &Adversary, cvm: &Cvm) {
    let mut rng = plan.rng(4);
    let end = Instant::now() + Duration::from_micros(plan.hostile_us);
    while Instant::now() < end {
        let (header, body) = garbage(&mut rng, plan.jobs.len() as u64);
        if host.is_attacking() && cvm.send(header, &body).is_err() {
            return;
        }
        // The pace; nothing waits for it.
        std::thread::sleep(Duration::from_micros(rng.below(2 * plan.pause_us)));
    }
}

fn garbage(rng: &mut Rng, programs: u64) -> (Header, Vec<u8>) {
    // Nothing here is the host's right to do to a running program, and nothing asks the debug image for its arena.
    const ANY: [Kind; 11] = [
        Kind::Credit,
        Kind::StreamData,
        Kind::ProgramExited,
        Kind::Stats,
        Kind::Ready,
        Kind::TreeEnd,
        Kind::StatsRequest,
        Kind::Export,
        Kind::ModuleLoaded,
        Kind::CallOutput,
        Kind::CallDone,
    ];
    const STRANGERS: [Kind; 16] = [
        Kind::ProgramCode,
        Kind::ProgramStart,
        Kind::ProgramArg,
        Kind::ProgramEnv,
        Kind::Preopen,
        Kind::TreeEntry,
        Kind::TreeData,
        Kind::ProgramDrop,
        Kind::StreamEnd,
        Kind::ModuleCode,
        Kind::ModuleLoad,
        Kind::ModuleDrop,
        Kind::CallStart,
        Kind::CallData,
        Kind::CallCancel,
        Kind::SocketOpen,
    ];
    // About connections that nobody has opened.
    const SOCKETS: [Kind; 7] = [
        Kind::SocketAccepted,
        Kind::SocketRefused,
        Kind::SocketData,
        Kind::SocketEnd,
        Kind::SocketCredit,
        Kind::SocketClose,
        Kind::SocketReset,
    ];
    let stranger = rng.chance(500);
    let program = if stranger { 1000 + rng.below(1 << 20) as u32 } else { rng.below(programs) as u32 };
    let kind = if stranger && rng.chance(500) { rng.pick(&STRANGERS) } else { rng.pick(&ANY) };
    let arg = match kind {
        // Far beyond what a program reads or sends, or what it was loaded with: to be ignored.
        Kind::StreamData | Kind::Credit | Kind::ProgramCode => u64::MAX - rng.below(1 << 30),
        // Requests whose rest never comes, or comes from another.
        Kind::CallStart | Kind::CallData => rng.below(200),
        _ => rng.next(),
    };
    let body = (0..rng.below(100)).map(|_| rng.next() as u8).collect();
    let number = rng.below(4) as u32;
    if rng.chance(200) {
        let header = Header::new(rng.pick(&SOCKETS), program).stream(1000 + (rng.next() as u32 >> 8));
        return (header.arg(rng.pick(&[0, 1, u64::MAX, arg])), body);
    }
    (Header::new(kind, program).stream(number).arg(arg), body)
}

/// Asks the guest whether it still answers, and the debug image to look through itself.
fn audit(plan: &Plan, cvm: &Cvm) -> Result<Verdict, String> {
    if plan.class == Class::Window {
        // Its rings may be broken already, which it need not have seen.
        return Ok(Verdict::Right);
    }
    let answer = if plan.debug_image { look_through(cvm) } else { cvm.stats().map(|_| "ok".to_string()) };
    match answer {
        Ok(text) if text == "ok" => Ok(Verdict::Right),
        Ok(text) => Err(format!("the guest finds in itself: {text}")),
        Err(error) if may_end(plan, &error.to_string()) => Ok(Verdict::Ended(error.to_string())),
        Err(error) => Err(format!("after its programs: {error}")),
    }
}

/// What the debug image finds when it looks through its own memory.
fn look_through(cvm: &Cvm) -> Result<String, CvmError> {
    let events = cvm.cvm_events();
    cvm.send(Header::new(Kind::SelfTest, NO_PROGRAM).arg(SelfTest::Audit as u64), &[])?;
    loop {
        match events.recv().ok_or_else(|| cvm.end_error())? {
            ProgramEvent::Message(header, body) if header.kind == Kind::SelfTest => {
                return Ok(String::from_utf8_lossy(&body).into_owned());
            }
            _ => {}
        }
    }
}

fn judge(plan: &Plan, outcomes: &[Outcome], stuck: Option<String>) -> Result<Verdict, String> {
    let mut ended = None;
    let mut refused = None;
    for outcome in outcomes {
        let expected = outcome.job.expected();
        match &outcome.exit {
            Ok(Exit::Error(text)) if may_refuse(plan) => refused = Some(text.clone()),
            Ok(exit) => {
                if let Some(what) = expected.difference(exit, &outcome.stdout, &outcome.stderr) {
                    return Err(format!("{:?} {}: {what}", outcome.job.work, outcome.job.argument()));
                }
            }
            Err(reason) => {
                ended = Some(reason.clone());
                let prefix = expected.stdout.starts_with(&outcome.stdout)
                    && expected.stderr.starts_with(&outcome.stderr);
                if !prefix {
                    return Err(format!("{:?}: wrong output before the end of the CVM", outcome.job.work));
                }
            }
        }
    }
    if outcomes.len() != plan.jobs.len() {
        return Err("a thread of the host panicked".into());
    }
    if let Some(places) = stuck {
        return match plan.class {
            Class::Window => Ok(Verdict::Stalled),
            _ => {
                Err(format!("programs are stuck though the host behaves again: {}{places}", states(outcomes)))
            }
        };
    }
    match (ended, refused) {
        (Some(reason), _) if may_end(plan, &reason) => Ok(Verdict::Ended(reason)),
        (Some(reason), _) => Err(format!("it ended: {reason}")),
        (None, Some(reason)) => Ok(Verdict::Refused(reason)),
        (None, None) => Ok(Verdict::Right),
    }
}

fn states(outcomes: &[Outcome]) -> String {
    let state = |outcome: &Outcome| {
        let done = outcome.exit.is_ok();
        format!(
            "{:?} {} after {} bytes; ",
            outcome.job.work,
            if done { "done" } else { "stuck" },
            outcome.stdout.len()
        )
    };
    outcomes.iter().map(state).collect()
}

/// Whether a program may be refused: what it was compiled for is not there.
fn may_refuse(plan: &Plan) -> bool {
    use LaunchLie::{MissingFeature, RandomCpuid, Xcr0Minimal, Xcr0WithoutAvx512};
    matches!(plan.lie, MissingFeature | RandomCpuid | Xcr0Minimal | Xcr0WithoutAvx512)
}

/// Whether the CVM may end for this reason.
fn may_end(plan: &Plan, reason: &str) -> bool {
    let named = |of: &[&str]| of.iter().any(|name| reason.contains(name));
    match plan.class {
        Class::Recoverable => false,
        // An exception that comes while another one is delivered makes a double fault, and one more then shuts the vCPU down:
        // so it is by the architecture (AMD64 Architecture Programmer's Manual, volume 2, 8.2.9), whatever the guest does.
        Class::Exceptions => {
            named(&["(Exception)", "a vCPU shut down"]) || plan.from_boot && named(&["(BadLaunch)"])
        }
        Class::Window => named(&["(BadLaunch)", "(Exception)", "the guest broke its ring"]),
        Class::Launch => named(&["(BadLaunch)", "(Exception)", "(Panic)"]),
    }
}
