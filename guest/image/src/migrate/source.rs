//! The end that gives its tenant away. Runs on vCPU 0; the lanes' work is anybody's.
//!
//! ```text
//! Opening -> Round: collecting -> flushing -> (decide) -> sending -> collecting ...
//!                                               `-> Parking -> Last: collecting -> sending -> Awaiting -> Gone -> (wiped)
//! ```
//! Up to `Awaiting` everything that goes wrong, here, there or between, ends with the tenant going on here.

use super::channels::{self, AgentMemory, CONTROL, DEMAND, Port, Way, of_lane};
use super::lanes::{self, Duty, FromHere, Slots};
use super::state::{self, HEAD, Head, MAP, Roots};
use super::{Next, hold_tenant, tell, tell_failure};
use crate::agent::agent_static;
use crate::arch::{self, clock};
use crate::sealed::{self, Random};
use crate::{link, memory, sched, wasm};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use nacre_abi::message::{Header, Kind, NO_PROGRAM};
use nacre_abi::migrate::{MAX_LANES, MoveEvent, MoveFailure, MoveMode, MoveProgress, MoveReport, SendOrder};
use nacre_abi::window::Window;
use nacre_migrate::crypto::X25519Pair;
use nacre_migrate::flow::{Decision, Measured, Mode, decide};
use nacre_migrate::message::Reason;
use nacre_migrate::policy::{Binding, PeerPolicy, PeerRefused};
use nacre_migrate::source::{Aborted, Parked, Tenant, requested};
use nacre_migrate::vault::SourceVault;
use nacre_migrate::wire::{self, LaneId, TAG_BYTES};
use nacre_migrate::{Content, DATA_OFFSET, Ended, Event, Place, Source, StepError, Terms};
use nacre_wval::{Stopped, VcpuId};

type Vault = SourceVault<X25519Pair, Slots>;

struct VaultCell(UnsafeCell<Vault>);

// SAFETY: whoever has the one `Hold`, or has claimed a lane of it, touches it: see `lanes`.
unsafe impl Sync for VaultCell {}

agent_static! {
    static VAULT: VaultCell = VaultCell(UnsafeCell::new(Vault::EMPTY));
}

/// The way to the vault. There is one at a time.
struct Hold(());

impl Deref for Hold {
    type Target = Vault;

    fn deref(&self) -> &Vault {
        // SAFETY: vCPU 0 alone has the hold, and uses it only with all lanes claimed or none there.
        unsafe { &*VAULT.0.get() }
    }
}

impl DerefMut for Hold {
    fn deref_mut(&mut self) -> &mut Vault {
        // SAFETY: as above.
        unsafe { &mut *VAULT.0.get() }
    }
}

/// The tenant while all its tasks are parked: the proof that they are, and what they need to go on.
struct ParkedTenant {
    stopped: Stopped,
    roots: Roots,
}

impl ParkedTenant {
    /// Lets the tenant go on.
    fn release(self) {
        self.roots.plant();
        hold_tenant(false);
        sched::scheduler().resume(self.stopped);
        sched::wake_for_backlog();
    }
}

impl Tenant for ParkedTenant {
    fn extinguish(self) -> Result<(), Self> {
        let scheduler = sched::scheduler();
        if !scheduler.all_acknowledged(&self.stopped, scheduler.vcpus().without(VcpuId::NORMAL)) {
            return Err(self);
        }
        drop(self.roots);
        sealed::extinguish();
        // The gate stays closed for good: a vCPU that the host resumes late finds it so.
        core::mem::forget(self.stopped);
        Ok(())
    }
}

/// Says no: nothing is judged after the handshake.
struct Nobody;

impl PeerPolicy for Nobody {
    fn judge(&mut self, _: &[u8], _: &Binding) -> Result<(), PeerRefused> {
        Err(PeerRefused::NoPolicy)
    }
}

/// How far it is.
enum Course {
    /// The handshake.
    Opening,
    /// A round while tasks run.
    Round(Phase),
    /// The stop gate is closed; the last tasks are on their way to it.
    Parking(Stopped),
    /// The last round, while tasks are parked.
    LastRound { collects: bool },
    /// The destination has the final manifest.
    Awaiting,
    /// The tenant is gone.
    Gone,
}

/// Units that a request asks for, and how many of them were answered.
#[derive(Clone, Copy, Default)]
struct Answering {
    asked: usize,
    answered: usize,
}

enum Phase {
    Collecting,
    /// Every vCPU flushes the translations of what was marked.
    Flushing {
        generation: u64,
        bumped_ns: u64,
    },
    Sending,
}

/// The source of one migration.
pub struct SourceAgent {
    state: Option<Source<Hold, ParkedTenant>>,
    course: Course,
    order: SendOrder,
    memory: AgentMemory,
    control: Port,
    demand: Option<Port>,
    /// After the hand-over: the channels of the lanes, and how far the requests on each are answered. The first is the demand channel's.
    answering: [Answering; 1 + MAX_LANES as usize],
    fetch: [Option<Port>; MAX_LANES as usize],
    terms: Terms,
    report: MoveReport,
    parked_at_ns: u64,
    /// When the last collection was, and the last round's sending began.
    collected_at_ns: u64,
    sent_before: u64,
    bandwidth: u64,
    dirty_rate: u64,
    wants_cancel: bool,
    /// The roots, until they are sealed.
    roots: Roots,
}

impl SourceAgent {
    /// Begins to move the tenant away.
    ///
    /// # Errors
    /// Why it can't move, in words for the operator.
    pub fn begin(order: &[u8]) -> Result<SourceAgent, &'static str> {
        let layout = channels::layout();
        let order = SendOrder::decode(order).filter(|order| order.lanes <= layout.lanes);
        let order = order.ok_or("the order to migrate names no mode, or more lanes than this CVM has")?;
        if !sealed::has_migration_policy() {
            return Err(
                "the tenant's manifest has no migration policy, so nothing of it may move: sign a manifest with one",
            );
        }
        let terms = Terms {
            manifest: sealed::manifest_hash(),
            memory_bytes: layout.params.memory_bytes,
            cpu_features: wasm::features_in_use().bits(),
            lanes: order.lanes as u8,
        };
        // SAFETY: no other migration is under way, and the lanes of an earlier one were removed when it ended.
        let mut memory = unsafe { AgentMemory::new(layout) };
        let mut control = memory.port(CONTROL, Way::Away);
        link::window().set_move_word(nacre_abi::migrate::MoveWord::Cancel, 0);
        let out = control.channel().room(nacre_migrate::wire::MAX_HANDSHAKE_BYTES).ok_or("no room")?;
        let (state, length) = Source::offer(Hold(()), terms, &mut Random, out)
            .map_err(|_| "a migration is under way: wait for it, or cancel it")?;
        control.channel().put(length);
        lanes::limit_bandwidth(order.bandwidth);
        Ok(SourceAgent {
            state: Some(state),
            course: Course::Opening,
            order,
            memory,
            control,
            demand: None,
            answering: [Answering::default(); 1 + MAX_LANES as usize],
            fetch: [const { None }; MAX_LANES as usize],
            terms,
            report: MoveReport::default(),
            parked_at_ns: 0,
            collected_at_ns: 0,
            sent_before: 0,
            bandwidth: 0,
            dirty_rate: 0,
            wants_cancel: false,
            roots: Roots::NONE,
        })
    }

    /// The host wants it to end.
    pub fn cancel(&mut self) {
        self.wants_cancel = true;
    }

    /// A connection broke and there is another one.
    pub fn rejoin(&mut self, channel: u64) {
        // A connection that broke before the tenant was gone ends the migration, which costs nothing; afterwards it goes on.
        if !matches!(self.course, Course::Gone) {
            self.wants_cancel = true;
            return;
        }
        let Some(state) = self.state.as_mut() else { return };
        let ports = self.fetch.iter_mut().flatten().chain(self.demand.as_mut()).chain([&mut self.control]);
        let Some(port) = ports.into_iter().find(|port| u64::from(port.number()) == channel) else { return };
        port.reset();
        if let Some(answering) =
            (channel as usize).checked_sub(1).and_then(|place| self.answering.get_mut(place))
        {
            *answering = Answering::default();
        }
        link::send(Header::new(Kind::MigrateRejoined, NO_PROGRAM).arg(channel), &[]);
        if let Ok(frame) = state.resume(port.connection()) {
            let _ = port.push(frame.frame());
        }
    }

    /// Evidence for the handshake.
    pub fn evidence(&mut self, evidence: Result<&[u8], &'static str>) {
        let Some(Source::Proving(proving)) = self.state.take_if(|state| matches!(state, Source::Proving(_)))
        else {
            return;
        };
        let out = self.control.channel().room(nacre_migrate::wire::MAX_HANDSHAKE_BYTES);
        match (evidence, out) {
            (Ok(evidence), Some(out)) => {
                let (state, length) = proving.prove(evidence, out);
                self.state = Some(state);
                match length {
                    Ok(length) => self.control.channel().put(length),
                    Err(_) => self.wants_cancel = true,
                }
            }
            _ => {
                self.state = Some(Source::Proving(proving));
                self.wants_cancel = true;
            }
        }
    }

    /// What is to be done now; whether there was anything, and whether it is over.
    pub fn run(&mut self) -> (bool, Next) {
        let asked = link::window().move_word(nacre_abi::migrate::MoveWord::Cancel) != 0;
        if (self.wants_cancel || asked) && self.may_cancel() {
            return (true, self.end_by_cancel());
        }
        let mut busy = self.control.flush().unwrap_or(false);
        if let Some(demand) = &mut self.demand {
            busy |= demand.flush().unwrap_or(false);
        }
        match self.receive() {
            Ok(any) => busy |= any,
            Err(next) => return (true, next),
        }
        if let Some(reason) = lanes::failure().filter(|_| self.may_cancel()) {
            return (true, self.end(reason, format_args!("{reason}")));
        }
        let _ = lanes::take_news();
        match self.advance() {
            Ok(any) => (busy | any, Next::Same),
            Err(next) => (true, next),
        }
    }

    /// Before vCPU 0 sleeps; whether there is something to do after all.
    pub fn before_park(&mut self, window: &Window<'_>) -> bool {
        channels::announce_sleep(CONTROL, self.control.channel().pending() != 0);
        if let Some(demand) = &mut self.demand {
            channels::announce_sleep(DEMAND, demand.channel().pending() != 0);
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        let asked = window.move_word(nacre_abi::migrate::MoveWord::Cancel) != 0 && self.may_cancel();
        let waits = matches!(self.course, Course::Parking(_) | Course::Round(Phase::Flushing { .. }));
        for port in self.fetch.iter_mut().flatten() {
            channels::announce_sleep(port.number(), port.channel().pending() != 0);
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        let served = self.demand.iter().chain(self.fetch.iter().flatten());
        let news = self.control.has_news() || served.into_iter().any(Port::has_news);
        asked || waits || news || (lanes::are_done() && !self.waits_for_others())
    }

    /// Nothing can be done before something comes.
    fn waits_for_others(&self) -> bool {
        matches!(self.course, Course::Opening | Course::Awaiting | Course::Gone)
    }

    fn may_cancel(&self) -> bool {
        self.state.as_ref().is_some_and(Source::may_abort)
    }

    /// Takes what came on the control channel, and what is asked for after the hand-over.
    fn receive(&mut self) -> Result<bool, Next> {
        let mut any = false;
        // Whoever works on a lane uses the vault too.
        while self.control.has_news() {
            let Some(mut all) = lanes::claim_all() else { return Ok(true) };
            let frame = match self.control.receive() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => {
                    self.wants_cancel |= self.may_cancel();
                    break;
                }
            };
            any = true;
            let Some(state) = self.state.take() else { break };
            let policy = if matches!(state, Source::Offered(_)) { sealed::peer_policy() } else { None };
            let step = match policy {
                Some(mut policy) => state.receive(frame, &mut policy),
                None => state.receive(frame, &mut Nobody),
            };
            self.state = Some(step.state);
            if let Some(reply) = step.reply {
                let _ = self.control.push(reply.frame());
            }
            self.point_lanes(&mut all);
            drop(all);
            self.happened(step.event)?;
        }
        if matches!(self.course, Course::Gone) {
            any |= self.serve();
        }
        Ok(any)
    }

    /// After the vault was used whole: tells the lanes where they are in it.
    fn point_lanes(&mut self, all: &mut lanes::AllLanes) {
        let mut hold = Hold(());
        for lane in 0..self.order.lanes as usize {
            if let Some(found) = hold.lane_mut(lane) {
                let pointer: *mut FromHere = found;
                if let Some(work) = all.work(lane) {
                    work.set_source(pointer);
                }
            }
        }
    }

    fn happened(&mut self, event: Result<Event, StepError>) -> Result<(), Next> {
        match event {
            Ok(Event::Prove(binding)) => sealed::evidence::for_migration(&binding),
            Ok(Event::Attested(_)) => self.start(),
            Ok(Event::Staged) => {
                tell(MoveEvent::Staged, 0, &[]);
                self.report.staged_ns = self.since_park();
            }
            Ok(Event::Running) => tell(MoveEvent::Running, 0, &[]),
            Ok(Event::Complete) => {
                self.report.window_ns = self.since_park() - self.report.gone_ns;
                return Err(self.over());
            }
            Ok(Event::Ended(ended)) => return Err(self.ended(ended)),
            // What is due will not come on this connection: before the hand-over that ends it, and costs nothing.
            Err(_) => self.wants_cancel |= self.may_cancel(),
            // Said again, or somebody's hint.
            Ok(_) => {}
        }
        Ok(())
    }

    /// Both ends know each other: makes the lanes.
    fn start(&mut self) {
        let Some(Source::Attested(attested)) = self.state.take() else { return };
        tell(MoveEvent::Attested, 0, &[]);
        let count = usize::from(self.terms.lanes);
        let mut slots = self.memory.slots(channels::layout(), count);
        let copying = attested.start(|_: LaneId| slots.next().unwrap_or_default());
        self.state = Some(Source::Copying(copying));
        let mut hold = Hold(());
        let Some(mut all) = lanes::claim_all() else { unreachable!("no lane has a duty yet") };
        for lane in 0..count {
            let port = self.memory.port(of_lane(lane), Way::Away);
            if let Some(found) = hold.lane_mut(lane) {
                all.add_source(lane, count, port, found);
            }
        }
        let mut demand = self.memory.port(DEMAND, Way::Away);
        // Head and map lie where the demand channel puts its frames together, which is not used before they are there.
        if let Some(room) = demand.channel().room(state::STATE_BYTES) {
            let (pointer, length) = (room.as_mut_ptr(), room.len());
            // SAFETY: the buffer is the agent's for good; the channel writes to it only after the hand-over.
            state::provide(unsafe { core::slice::from_raw_parts_mut(pointer, length) });
        }
        self.demand = Some(demand);
        self.collected_at_ns = clock::monotonic_ns();
        match self.mode() {
            Mode::StopAndCopy | Mode::PostCopy => {
                self.course = Course::Round(Phase::Sending);
            }
            Mode::PreCopy | Mode::Hybrid => {
                if let Some(Source::Copying(copying)) = &mut self.state
                    && copying.begin_round().is_ok()
                {
                    all.begin(Duty::CollectAll);
                    self.course = Course::Round(Phase::Collecting);
                }
            }
        }
    }

    fn mode(&self) -> Mode {
        match self.order.mode {
            MoveMode::Hybrid => Mode::Hybrid,
            MoveMode::PreCopy => Mode::PreCopy,
            MoveMode::PostCopy => Mode::PostCopy,
            MoveMode::StopAndCopy => Mode::StopAndCopy,
        }
    }

    fn since_park(&self) -> u64 {
        clock::monotonic_ns() - self.parked_at_ns
    }

    /// Goes on as far as it can.
    fn advance(&mut self) -> Result<bool, Next> {
        match &mut self.course {
            Course::Opening | Course::Gone => Ok(false),
            Course::Round(Phase::Flushing { generation, bumped_ns }) => {
                if memory::settled() >= *generation {
                    memory::space().recycle_tables();
                    self.decide();
                    return Ok(true);
                }
                let now = clock::monotonic_ns();
                if now.saturating_sub(*bumped_ns) > REBUMP_NS {
                    *bumped_ns = now;
                    wasm::bump_epoch();
                }
                Ok(true)
            }
            Course::Parking(_) => {
                self.try_park();
                Ok(true)
            }
            Course::Awaiting => {
                if matches!(self.state, Some(Source::Staged(_))) {
                    self.go();
                    return Ok(true);
                }
                Ok(false)
            }
            Course::Round(_) | Course::LastRound { .. } => {
                if !lanes::are_done() {
                    wake_for_lanes();
                    return Ok(false);
                }
                let Some(all) = lanes::claim_all() else { return Ok(true) };
                match self.course {
                    Course::Round(Phase::Collecting) => self.collected(all),
                    Course::Round(_) => self.sent(all),
                    _ => return self.last_round(all),
                }
                Ok(true)
            }
        }
    }

    /// Everything that changed is marked: whatever is written from now on must be seen the next time.
    fn collected(&mut self, all: lanes::AllLanes) {
        drop(all);
        memory::space().seal_tables();
        memory::next_generation();
        let (generation, bumped_ns) = (memory::generation(), clock::monotonic_ns());
        wasm::bump_epoch();
        self.course = Course::Round(Phase::Flushing { generation, bumped_ns });
    }

    /// Another round, or the hand-over.
    fn decide(&mut self) {
        let Some(mut all) = lanes::claim_all() else { return };
        let now = clock::monotonic_ns();
        let dirty = unsent_bytes(self.order.lanes);
        let elapsed = (now - self.collected_at_ns).max(1);
        self.dirty_rate = per_second(dirty, elapsed);
        self.collected_at_ns = now;
        let sent = all.bytes();
        let measured = Measured {
            rounds: self.report.rounds as u32,
            memory_bytes: memory::frames().committed_pages().0 * nacre_abi::PAGE_BYTES,
            sent_bytes: sent,
            dirty_bytes: dirty,
            dirty_rate: self.dirty_rate,
            bandwidth: self.bandwidth,
            downtime_goal: core::time::Duration::from_nanos(self.order.downtime_goal_ns),
        };
        match decide(self.mode(), &measured) {
            Decision::AnotherRound => {
                self.report.rounds += 1;
                let progress = MoveProgress {
                    round: self.report.rounds,
                    sent_bytes: sent,
                    dirty_bytes: dirty,
                    dirty_rate: if self.report.rounds > 1 { self.dirty_rate } else { 0 },
                    bandwidth: self.bandwidth,
                };
                tell(MoveEvent::Progress, 0, &progress.encode());
                self.sent_before = sent;
                all.begin(Duty::Send);
                drop(all);
                self.course = Course::Round(Phase::Sending);
                wake_for_lanes();
            }
            Decision::HandOver(_) => {
                drop(all);
                self.begin_parking();
            }
        }
    }

    /// A round was sent: looks what changed meanwhile.
    fn sent(&mut self, mut all: lanes::AllLanes) {
        if matches!(self.mode(), Mode::StopAndCopy | Mode::PostCopy) {
            drop(all);
            return self.begin_parking();
        }
        if !all.flush() {
            // The barrier is not with the host yet.
            return;
        }
        let elapsed = (clock::monotonic_ns() - self.collected_at_ns).max(1);
        self.bandwidth = per_second(all.bytes() - self.sent_before, elapsed);
        if let Some(Source::Copying(copying)) = &mut self.state
            && copying.begin_round().is_ok()
        {
            all.begin(Duty::Collect);
            drop(all);
            self.course = Course::Round(Phase::Collecting);
            wake_for_lanes();
        } else {
            self.wants_cancel = true;
        }
    }

    fn begin_parking(&mut self) {
        let Some(stopped) = sched::scheduler().stop() else {
            self.wants_cancel = true;
            return;
        };
        self.parked_at_ns = clock::monotonic_ns();
        self.report.tsc = arch::rdtsc();
        wasm::bump_epoch();
        self.course = Course::Parking(stopped);
        self.try_park();
    }

    /// All tasks are parked as soon as every worker has said so.
    fn try_park(&mut self) {
        let scheduler = sched::scheduler();
        let Course::Parking(stopped) = &self.course else { return };
        if !scheduler.all_acknowledged(stopped, scheduler.vcpus().without(VcpuId::NORMAL)) {
            if self.since_park() % REBUMP_NS < REBUMP_NS / 4 {
                wasm::bump_epoch();
            }
            return;
        }
        let Some(mut all) = lanes::claim_all() else { return };
        let Course::Parking(stopped) =
            core::mem::replace(&mut self.course, Course::LastRound { collects: true })
        else {
            return;
        };
        hold_tenant(true);
        self.roots = Roots::take();
        let tenant = ParkedTenant { stopped, roots: self.roots.copy() };
        let Some(Source::Copying(copying)) = self.state.take() else { unreachable!("it was copying") };
        match copying.park(tenant, &mut Random) {
            Ok(parked) => self.state = Some(Source::Parked(parked)),
            Err((copying, tenant)) => {
                self.state = Some(Source::Copying(copying));
                tenant.release();
                self.wants_cancel = true;
                return;
            }
        }
        self.report.parked_ns = self.since_park();
        let whole = matches!(self.mode(), Mode::StopAndCopy | Mode::PostCopy);
        all.begin(if whole { Duty::CollectAll } else { Duty::CollectLast });
        tell(MoveEvent::Parked, 0, &[]);
    }

    /// A step of the last round is over.
    fn last_round(&mut self, mut all: lanes::AllLanes) -> Result<bool, Next> {
        let Course::LastRound { collects } = self.course else { return Ok(false) };
        let Some(Source::Parked(mut parked)) = self.state.take() else { unreachable!("it is parked") };
        if collects {
            let drawn = self.draw_state(&mut parked);
            self.state = Some(Source::Parked(parked));
            if !drawn {
                drop(all);
                return Err(
                    self.end(Reason::Memory, format_args!("the tenant's memory is in more pieces than fit"))
                );
            }
            self.point_lanes(&mut all);
            self.report.collected_ns = self.since_park();
            let lists = self.mode().leaves_outstanding();
            all.begin(if lists { Duty::ListLast } else { Duty::SendLast });
            self.course = Course::LastRound { collects: false };
            drop(all);
            wake_for_lanes();
            return Ok(true);
        }
        (self.report.bytes, self.report.outstanding_bytes) = (all.bytes(), all.listed_bytes());
        if !all.flush() {
            self.state = Some(Source::Parked(parked));
            return Ok(true);
        }
        match parked.finish() {
            Ok((awaiting, frame)) => {
                self.state = Some(Source::AwaitStaged(awaiting));
                let _ = self.control.push(frame.frame());
                let _ = self.control.flush();
                self.report.sent_ns = self.since_park();
                self.course = Course::Awaiting;
                self.point_lanes(&mut all);
                Ok(true)
            }
            Err((parked, _)) => {
                self.state = Some(Source::Parked(parked));
                drop(all);
                Err(self.end(Reason::Protocol, format_args!("a lane has not ended its round: a defect")))
            }
        }
    }

    /// The point of no return.
    fn go(&mut self) {
        let Some(mut all) = lanes::claim_all() else { return };
        let Some(Source::Staged(staged)) = self.state.take() else { return };
        match staged.go() {
            Ok((gone, commit)) => {
                for (lane, place) in self.fetch.iter_mut().enumerate() {
                    *place = all.take_port(lane);
                }
                all.remove();
                state::wipe();
                self.state = Some(Source::Gone(gone));
                self.course = Course::Gone;
                self.report.gone_ns = self.since_park();
                link::send(
                    Header::new(Kind::MigrateCommit, NO_PROGRAM).arg(self.report.outstanding_bytes),
                    &commit,
                );
                // All that the destination can't ask for any more: heap, stacks, code.
                memory::wipe_tenant(false);
            }
            Err(staged) => self.state = Some(Source::Staged(staged)),
        }
    }

    /// Puts head and map together and marks them; false if the map is too long.
    fn draw_state(&mut self, parked: &mut Parked<Hold, ParkedTenant>) -> bool {
        let Some(map_bytes) = state::draw_map() else { return false };
        let Ok(tag) = parked.lock(&mut self.roots.0) else { return false };
        state::set_head(&Head {
            roots: core::mem::replace(&mut self.roots, Roots::NONE),
            tag,
            monotonic_ns: clock::monotonic_ns(),
            wall_ns: clock::wall_ns(),
            map_bytes: map_bytes as u64,
            max_tasks: u64::from(memory::layout().max_tasks),
        });
        let first = parked.lanes().next();
        first.is_some_and(|lane| {
            [HEAD, MAP].into_iter().all(|state| lane.mark(Place::state(state), Content::Data).is_ok())
        })
    }

    /// Answers what the destination asks for.
    fn serve(&mut self) -> bool {
        let ports = self.demand.iter_mut().chain(self.fetch.iter_mut().flatten());
        let mut any = false;
        // The demand channel first, and again before each lane: tasks wait for what is asked for there.
        for (port, answering) in ports.zip(&mut self.answering) {
            any |= port.flush().unwrap_or(false);
            any |= answer(&mut self.state, port, answering);
        }
        any
    }

    fn end_by_cancel(&mut self) -> Next {
        self.end(Reason::Cancelled, format_args!("it was cancelled"))
    }

    /// Ends the migration; the tenant goes on here.
    fn end(&mut self, reason: Reason, text: core::fmt::Arguments<'_>) -> Next {
        if let Some(next) = self.cancel_state(reason) {
            let failure =
                if reason == Reason::Cancelled { MoveFailure::Cancelled } else { MoveFailure::Here };
            tell_failure(failure, text);
            return next;
        }
        Next::Same
    }

    fn cancel_state(&mut self, reason: Reason) -> Option<Next> {
        let all = lanes::claim_all()?;
        match self.state.take()?.cancel(reason) {
            Ok((aborted, frame)) => {
                if let Some(frame) = frame {
                    let _ = self.control.push(frame.frame());
                    let _ = self.control.flush();
                }
                self.give_back(aborted, all);
                Some(Next::Stays)
            }
            Err(state) => {
                self.state = Some(state);
                None
            }
        }
    }

    fn give_back(&mut self, aborted: Aborted<ParkedTenant>, mut all: lanes::AllLanes) {
        all.remove();
        state::wipe();
        if let Course::Parking(_) = self.course
            && let Course::Parking(stopped) = core::mem::replace(&mut self.course, Course::Opening)
        {
            sched::scheduler().resume(stopped);
            sched::wake_for_backlog();
        }
        if let Some(tenant) = aborted.tenant {
            tenant.release();
        }
    }

    /// The protocol has ended it.
    fn ended(&mut self, ended: Ended) -> Next {
        if let Some(all) = lanes::claim_all()
            && let Some(Source::Aborted(aborted)) = self.state.take()
        {
            self.give_back(aborted, all);
        }
        let failure = match ended {
            Ended::There(_) => MoveFailure::There,
            _ => MoveFailure::Here,
        };
        tell_failure(failure, format_args!("{ended}"));
        Next::Stays
    }

    /// The destination has everything.
    fn over(&mut self) -> Next {
        tell(MoveEvent::Complete, 0, &self.report.encode());
        memory::wipe_tenant(true);
        Next::Gone
    }
}

/// How often vCPUs are brought to a safe point again, in nanoseconds: bumps coalesce.
const REBUMP_NS: u64 = 20_000;

fn per_second(bytes: u64, ns: u64) -> u64 {
    (u128::from(bytes) * 1_000_000_000 / u128::from(ns)) as u64
}

/// Lets workers that sleep help with the lanes.
fn wake_for_lanes() {
    sched::wake_helpers(lanes::ready().saturating_sub(1));
}

/// Bytes of pages that are marked and not sent, on all lanes. With all lanes claimed.
fn unsent_bytes(lanes: u32) -> u64 {
    let mut hold = Hold(());
    (0..lanes as usize).filter_map(|lane| Some(hold.lane_mut(lane)?.ledger().unsent().1)).sum()
}

/// Answers requests that came on a channel, as far as there is room; returns whether anything was done.
fn answer(slot: &mut Option<Source<Hold, ParkedTenant>>, port: &mut Port, answering: &mut Answering) -> bool {
    let connection = port.connection();
    let mut any = false;
    for _ in 0..ANSWERS_PER_LOOK {
        if answering.answered == answering.asked {
            *answering = Answering::default();
            let Ok(Some(frame)) = port.receive() else { return any };
            if wire::Header::split(frame).is_ok_and(|(header, _)| header.kind == wire::Kind::Resume) {
                return resumed(slot, frame);
            }
            let asked = match slot.as_mut() {
                Some(Source::Gone(gone)) => gone.requests(connection, frame).map(Iterator::count),
                Some(Source::Serving(serving)) => serving.requests(connection, frame).map(Iterator::count),
                _ => return any,
            };
            any = true;
            // What is refused is not answered.
            let Ok(asked) = asked else { continue };
            answering.asked = asked;
        }
        let Some(unit) = requested(port.channel().received(), answering.answered) else {
            *answering = Answering::default();
            continue;
        };
        let Some(frame) = port.channel().room(DATA_OFFSET + unit.place.bytes() + TAG_BYTES) else {
            any |= port.flush().unwrap_or(false);
            return any;
        };
        let _ = state::read(unit.place, &mut frame[DATA_OFFSET..]);
        let sealed = match slot.as_mut() {
            Some(Source::Gone(gone)) => gone.answer(connection, unit, frame),
            Some(Source::Serving(serving)) => serving.answer(connection, unit, frame),
            _ => return any,
        };
        if let Ok(length) = sealed {
            port.channel().put(length);
            let _ = port.flush();
        }
        answering.answered += 1;
        any = true;
    }
    any
}

/// The destination has agreed to another epoch of a connection.
fn resumed(slot: &mut Option<Source<Hold, ParkedTenant>>, frame: &mut [u8]) -> bool {
    if let Some(state) = slot.take() {
        *slot = Some(state.receive(frame, &mut Nobody).state);
    }
    true
}

/// Units that are answered on one channel before the next one's turn.
const ANSWERS_PER_LOOK: usize = 32;
