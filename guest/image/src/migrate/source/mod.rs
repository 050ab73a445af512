//! The end that gives its tenant away. Runs on vCPU 0; the lanes' work is anybody's.
//!
//! ```text
//! Opening -> Round: collecting -> flushing -> (decide) -> sending -> collecting ...
//!                                               `-> Parking -> Last: collecting -> sending -> Awaiting -> Gone -> (wiped)
//! ```
//! Up to `Awaiting` everything that goes wrong, here, there or between, ends with the tenant going on here.

mod handover;
mod rounds;
mod scouting;
mod serving;

use super::channels::{self, AgentMemory, CONTROL, DEMAND, Port, Way, of_lane};
use super::lanes::{self, Duty, FromHere, Slots};
use super::state;
use super::vault::{self, Nobody, VaultCell};
use super::{Next, pace, tell, tell_failure, wakes_at};
use crate::agent::agent_static;
use crate::arch::clock;
use crate::sealed::{self, Random};
use crate::translations;
use crate::{link, memory, sched, wasm};
use handover::ParkedTenant;
use nacre_abi::message::{Header, Kind, NO_PROGRAM};
use nacre_abi::migrate::{MAX_LANES, MoveEvent, MoveFailure, MoveMode, MoveReport, MoveWord, SendOrder};
use nacre_abi::window::Window;
use nacre_migrate::crypto::X25519Pair;
use nacre_migrate::flow::{Least, Mode};
use nacre_migrate::message::Reason;
use nacre_migrate::source::Aborted;
use nacre_migrate::vault::SourceVault;
use nacre_migrate::wire::LaneId;
use nacre_migrate::{Ended, Event, Round, Source, StepError, Terms};
use nacre_wval::Stopped;
use rounds::hurry;
use scouting::Scouting;
use serving::Answering;

type Vault = SourceVault<X25519Pair, Slots>;
type Hold = vault::Hold<Vault>;

agent_static! {
    static VAULT: VaultCell<Vault> = VaultCell::new(Vault::EMPTY);
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

enum Phase {
    /// About to collect, once nobody reads the last list of translations any more.
    ToCollect {
        duty: Duty,
        goes_on: bool,
        bumped_ns: u64,
    },
    Collecting(Duty),
    /// Every vCPU flushes the translations of what was marked. Then collecting goes on, if it is not over.
    Flushing {
        generation: u64,
        bumped_ns: u64,
        then: Option<Duty>,
    },
    Sending,
    /// Tasks run, and nothing is done: see [`scouting`].
    Looking {
        until: u64,
    },
    /// Tasks run, and nothing is done before the destination is ready.
    Waiting,
    /// Nothing is done before the destination has what was sent.
    Confirming,
}

impl Phase {
    /// Whether what it waits for is done by vCPUs at their next safe point.
    fn is_for_flushes(&self) -> bool {
        matches!(self, Phase::ToCollect { .. } | Phase::Flushing { .. })
    }
}

/// The source of one migration.
pub struct SourceAgent {
    state: Option<Source<Hold, ParkedTenant>>,
    course: Course,
    order: SendOrder,
    scouting: Scouting,
    /// The round that is being sent, and the last one that the destination has received: from the first on it has all the memory it
    /// will need.
    round: Round,
    received: Option<Round>,
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
    dirty_before: u64,
    least: Least,
    /// Rounds would be over, but the destination was not ready: it hears of one more, and when it has that they begin anew.
    begins_anew: bool,
    /// Rounds and bytes that were sent when they began anew.
    rounds_before: u64,
    bytes_before: u64,
    bandwidth: u64,
    /// The most that a round has carried, likewise.
    carried: u64,
    dirty_rate: u64,
    wants_cancel: bool,
    /// Bytes of the map, from the time at which all tasks are parked; `None` if it is too long.
    map_bytes: Option<usize>,
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
            image: state::image(),
        };
        // SAFETY: no other migration is under way, and the lanes of an earlier one were removed when it ended.
        let mut memory = unsafe { AgentMemory::new(layout) };
        let mut control = memory.port(CONTROL, Way::Away);
        link::window().set_move_word(MoveWord::Cancel, 0);
        wakes_at(0);
        let out = control.channel().room(nacre_migrate::wire::MAX_HANDSHAKE_BYTES).ok_or("no room")?;
        // SAFETY: this is vCPU 0, no other migration is under way, and there are no lanes yet.
        let hold = unsafe { VAULT.hold() };
        let (state, length) = Source::offer(hold, terms, &mut Random, out)
            .map_err(|_| "a migration is under way: wait for it, or cancel it")?;
        control.channel().put(length);
        pace::limit_bandwidth(order.bandwidth);
        Ok(SourceAgent {
            state: Some(state),
            course: Course::Opening,
            order,
            scouting: Scouting::First,
            round: Round::default(),
            received: None,
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
            dirty_before: 0,
            least: Least::NONE,
            begins_anew: false,
            rounds_before: 0,
            bytes_before: 0,
            bandwidth: 0,
            carried: 0,
            dirty_rate: 0,
            wants_cancel: false,
            map_bytes: None,
        })
    }

    /// The host wants it to end.
    pub fn cancel(&mut self) {
        self.wants_cancel = true;
    }

    /// A connection broke and there is another one.
    pub fn rejoin(&mut self, channel: u32) {
        // A connection that broke before the tenant was gone ends the migration, which costs nothing; afterwards it goes on.
        if !matches!(self.course, Course::Gone) {
            self.wants_cancel = true;
            return;
        }
        let Some(state) = self.state.as_mut() else { return };
        let ports = self.fetch.iter_mut().flatten().chain(self.demand.as_mut()).chain([&mut self.control]);
        let Some(port) = ports.into_iter().find(|port| port.number() == channel) else { return };
        port.reset();
        if let Some(answering) =
            (channel as usize).checked_sub(1).and_then(|place| self.answering.get_mut(place))
        {
            *answering = Answering::default();
        }
        link::send(Header::new(Kind::MigrateRejoined, NO_PROGRAM).arg(u64::from(channel)), &[]);
        if let Ok(frame) = state.resume(port.connection()) {
            // Its pipe is empty.
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
        let asked = link::window().move_word(MoveWord::Cancel) != 0;
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
        let asked = (self.wants_cancel || window.move_word(MoveWord::Cancel) != 0) && self.may_cancel();
        let flushes = Phase::is_for_flushes;
        let waits = matches!(&self.course, Course::Parking(_))
            || matches!(&self.course, Course::Round(phase) if flushes(phase));
        for port in self.fetch.iter_mut().flatten() {
            channels::announce_sleep(port.number(), port.channel().pending() != 0);
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        let served = self.demand.iter().chain(self.fetch.iter().flatten());
        let news = self.control.has_news() || served.into_iter().any(Port::has_news);
        asked || waits || news || self.may_go(window) || (lanes::are_done() && !self.waits_for_others())
    }

    /// Nothing can be done before something comes.
    fn waits_for_others(&self) -> bool {
        matches!(
            self.course,
            Course::Opening
                | Course::Awaiting
                | Course::Gone
                | Course::Round(Phase::Looking { .. } | Phase::Waiting | Phase::Confirming)
        )
    }

    /// The destination is staged, and the host holds nothing back.
    fn may_go(&self, window: &Window<'_>) -> bool {
        matches!((&self.course, &self.state), (Course::Awaiting, Some(Source::Staged(_))))
            && window.move_word(MoveWord::Hold) == 0
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
                    self.control_failed();
                    return Ok(true);
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
            match step.event {
                Ok(Event::Ended(ended)) => return Err(self.ended(ended, all)),
                Ok(Event::Attested(_)) => self.start(all),
                event => {
                    self.point_lanes(&mut all);
                    drop(all);
                    self.happened(event)?;
                }
            }
        }
        if matches!(self.course, Course::Gone) {
            any |= self.serve();
        }
        Ok(any)
    }

    /// After the vault was used whole: tells the lanes where they are in it.
    fn point_lanes(&mut self, all: &mut lanes::AllLanes) {
        // SAFETY: this is vCPU 0, and all lanes are claimed.
        let mut hold = unsafe { VAULT.hold() };
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
            Ok(Event::Staged) => {
                tell(MoveEvent::Staged, 0, &[]);
                self.report.staged_ns = self.since_park();
            }
            Ok(Event::RoundReceived(round)) => self.received = Some(round),
            Ok(Event::Running) => tell(MoveEvent::Running, 0, &[]),
            Ok(Event::Complete) => {
                self.report.window_ns = self.since_park() - self.report.gone_ns;
                return Err(self.over());
            }
            Err(StepError::Record(error)) if error.is_for_good() => self.control_failed(),
            Err(_) => self.wants_cancel |= self.may_cancel(),
            // Said again, or somebody's hint.
            Ok(_) => {}
        }
        Ok(())
    }

    /// What is due will not come on this connection: before the hand-over that ends it, and costs nothing; afterwards there has to be another one.
    fn control_failed(&mut self) {
        match self.may_cancel() {
            true => self.wants_cancel = true,
            false => self.control.give_up(),
        }
    }

    /// Both ends know each other: makes the lanes.
    fn start(&mut self, mut all: lanes::AllLanes) {
        let Some(Source::Attested(attested)) = self.state.take() else { return };
        tell(MoveEvent::Attested, 0, &[]);
        let count = usize::from(self.terms.lanes);
        let mut slots = self.memory.slots(channels::layout(), count);
        let copying = attested.start(|_: LaneId| slots.next().unwrap_or_default());
        self.state = Some(Source::Copying(copying));
        // SAFETY: this is vCPU 0, and all lanes are claimed.
        let mut hold = unsafe { VAULT.hold() };
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
                // A round of nothing: its answer says that the destination is ready.
                if let Some(Source::Copying(copying)) = &mut self.state
                    && copying.begin_round().is_ok()
                {
                    all.begin(Duty::Send);
                    self.course = Course::Round(Phase::Sending);
                }
            }
            Mode::PreCopy | Mode::Hybrid => {
                if let Some(Source::Copying(copying)) = &mut self.state
                    && let Ok(round) = copying.begin_round()
                {
                    self.round = round;
                    drop(all);
                    self.collect(Duty::CollectAll, false);
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
            Course::Round(Phase::Looking { until }) => {
                let over = clock::monotonic_ns() >= *until;
                if over {
                    self.look();
                }
                Ok(over)
            }
            Course::Round(Phase::Waiting) => {
                if self.received.is_some() {
                    self.begin_parking();
                }
                Ok(self.received.is_some())
            }
            Course::Round(Phase::Confirming) => {
                let has_come = self.received >= Some(self.round);
                if has_come {
                    self.next_round();
                }
                Ok(has_come)
            }
            Course::Round(Phase::ToCollect { duty, goes_on, bumped_ns }) => {
                hurry(bumped_ns);
                let (duty, goes_on) = (*duty, *goes_on);
                self.begin_collecting(duty, goes_on);
                Ok(true)
            }
            Course::Round(Phase::Flushing { generation, bumped_ns, then }) => {
                if translations::settled() < *generation {
                    hurry(bumped_ns);
                    return Ok(true);
                }
                let then = *then;
                memory::space().recycle_tables();
                match then {
                    Some(duty) => self.collect(duty, true),
                    None if self.has_scouted() => self.decide(),
                    None => {}
                }
                Ok(true)
            }
            Course::Parking(_) => {
                self.try_park();
                Ok(true)
            }
            Course::Awaiting => {
                let goes = self.may_go(link::window());
                if goes {
                    self.go();
                }
                Ok(goes)
            }
            Course::Round(_) | Course::LastRound { .. } => {
                if !lanes::are_done() {
                    wake_for_lanes();
                    return Ok(false);
                }
                let Some(all) = lanes::claim_all() else { return Ok(true) };
                match self.course {
                    Course::Round(Phase::Collecting(duty)) => self.collected(all, duty),
                    Course::Round(_) => self.sent(all),
                    _ => return self.last_round(all),
                }
                Ok(true)
            }
        }
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

    /// The protocol has ended it. Nobody may come to a lane in between: what lanes use of the vault is gone already.
    fn ended(&mut self, ended: Ended, mut all: lanes::AllLanes) -> Next {
        match self.state.take() {
            Some(Source::Aborted(aborted)) => self.give_back(aborted, all),
            _ => all.remove(),
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
        // Else it was done when the tenant went.
        if self.report.outstanding_bytes != 0 {
            memory::wipe_tenant(true);
        }
        tell(MoveEvent::Complete, 0, &self.report.encode());
        Next::Gone
    }
}

/// Lets workers that sleep help with the lanes.
fn wake_for_lanes() {
    sched::wake_helpers(lanes::ready().saturating_sub(1));
}
