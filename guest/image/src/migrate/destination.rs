//! The end to which a tenant comes. Runs on vCPU 0; the lanes' work is anybody's until tasks run.
//!
//! ```text
//! Opening -> Receiving -> Verifying -> Staged -> (Commit) -> Fetching -> over
//! ```
//! From `Receiving` on the tenant's arena is overwritten as its pages come: nothing here uses it before the tenant runs. Whatever goes
//! wrong before `Staged` ends this CVM's use: the tenant goes on where it was.

use super::channels::{self, AgentMemory, CONTROL, DEMAND, Port, Way, of_lane};
use super::lanes::{self, Duty, Slots, ToHere};
use super::state;
use super::vault::{self, Nobody, VaultCell};
use super::{Next, hold_tenant, tell, tell_failure, waiting};
use crate::agent::agent_static;
use crate::arch::{self, clock, cpu};
use crate::sealed::{self, Random};
use crate::translations;
use crate::{heap, link, memory, sched, task, wasm};
use nacre_abi::message::{self, Kind, NO_PROGRAM};
use nacre_abi::migrate::{COMMIT_BYTES, MAX_LANES, MoveEvent, MoveFailure, MoveReport, REQUEST_BYTES};
use nacre_abi::window::Window;
use nacre_migrate::crypto::X25519Pair;
use nacre_migrate::destination::{Demand, Host, MemoryCommitted, ReceiveError, Stage};
use nacre_migrate::message::Reason;
use nacre_migrate::vault::DestinationVault;
use nacre_migrate::wire::{self, Connection, Header, LaneId};
use nacre_migrate::{Destination, Event, StepError};

type Vault = DestinationVault<X25519Pair, Slots>;
type Hold = vault::Hold<Vault>;

agent_static! {
    static VAULT: VaultCell<Vault> = VaultCell::new(Vault::EMPTY);
}

/// The destination of one migration.
pub struct DestinationAgent {
    state: Option<Destination<Hold>>,
    memory: AgentMemory,
    control: Port,
    demand: Option<Port>,
    fetch: [Option<Port>; MAX_LANES as usize],
    lanes: usize,
    bandwidth: u64,
    memory_committed: bool,
    asked_for_memory: bool,
    wants_cancel: bool,
    /// Pages were settled as the map says.
    settled: bool,
    /// Where one goes on to look for uniform regions, after each round.
    noting: Option<u64>,
    /// Where one goes on to touch the memory of tables, once.
    touching: Option<usize>,
    report: MoveReport,
    committed_tsc: u64,
}

impl DestinationAgent {
    /// Makes this CVM a receiver.
    ///
    /// # Errors
    /// Why it can't be one.
    pub fn begin(bandwidth: u64) -> Result<DestinationAgent, &'static str> {
        if !super::is_fresh() {
            return Err("this CVM has loaded code: only a fresh one can receive");
        }
        if !sealed::has_migration_policy() {
            return Err("this CVM was launched without a manifest that has a migration policy");
        }
        let layout = channels::layout();
        let host = Host {
            manifest: sealed::manifest_hash(),
            memory_bytes: layout.params.memory_bytes,
            cpu_features: cpu::features().bits(),
            image: state::image(),
        };
        // SAFETY: a CVM receives once.
        let mut memory = unsafe { AgentMemory::new(layout) };
        let control = memory.port(CONTROL, Way::Here);
        // SAFETY: this is vCPU 0, a CVM receives once, and there are no lanes yet.
        let hold = unsafe { VAULT.hold() };
        Ok(DestinationAgent {
            state: Some(Destination::fresh(hold, host)),
            memory,
            control,
            demand: None,
            fetch: [const { None }; MAX_LANES as usize],
            lanes: 0,
            bandwidth,
            memory_committed: false,
            asked_for_memory: false,
            wants_cancel: false,
            settled: false,
            noting: None,
            touching: Some(0),
            report: MoveReport::default(),
            committed_tsc: 0,
        })
    }

    /// The host wants it to end.
    pub fn cancel(&mut self) {
        self.wants_cancel = true;
    }

    /// All memory is committed.
    pub fn memory_is_committed(&mut self) {
        self.memory_committed = true;
        // Now the source may hear of the round that came.
        lanes::keep_news();
    }

    /// A connection broke, and there is another one.
    pub fn rejoin(&mut self, channel: u32) {
        let Some(Destination::Running(_) | Destination::Done(_) | Destination::Staged(_)) = &self.state
        else {
            self.wants_cancel = true;
            return;
        };
        let ports = self.fetch.iter_mut().flatten().chain(self.demand.as_mut()).chain([&mut self.control]);
        let Some(port) = ports.into_iter().find(|port| port.number() == channel) else { return };
        port.reset();
        link::send(message::Header::new(Kind::MigrateRejoined, NO_PROGRAM).arg(u64::from(channel)), &[]);
    }

    /// Evidence for the handshake.
    pub fn evidence(&mut self, evidence: Result<&[u8], &'static str>) {
        let Some(Destination::Answering(answering)) =
            self.state.take_if(|state| matches!(state, Destination::Answering(_)))
        else {
            return;
        };
        let out = self.control.channel().room(nacre_migrate::wire::MAX_HANDSHAKE_BYTES);
        match (evidence, out) {
            (Ok(evidence), Some(out)) => {
                let (state, length) = answering.prove(evidence, out);
                self.state = Some(state);
                match length {
                    Ok(length) => self.control.channel().put(length),
                    Err(_) => self.wants_cancel = true,
                }
            }
            _ => {
                self.state = Some(Destination::Answering(answering));
                self.wants_cancel = true;
            }
        }
    }

    /// The Commit came.
    pub fn commit(&mut self, frame: &[u8]) {
        let Ok(mut frame) = <[u8; COMMIT_BYTES]>::try_from(frame) else { return };
        let Some(state) = self.state.take() else { return };
        self.committed_tsc = arch::rdtsc();
        let step = state.receive(&mut frame, &mut Nobody, &mut Random);
        self.state = Some(step.state);
        if let Some(reply) = step.reply {
            let _ = self.control.push(reply.frame());
        }
        if step.event == Ok(Event::Running) {
            self.activate();
        }
    }

    /// What is to be done now; whether there was anything, and what becomes of this agent.
    pub fn run(&mut self) -> (bool, Next) {
        if self.wants_cancel
            && let Some(next) =
                self.end(Reason::Cancelled, MoveFailure::Cancelled, format_args!("it was cancelled"))
        {
            return (true, next);
        }
        let mut busy = self.control.flush().unwrap_or(false);
        match self.receive() {
            Ok(any) => busy |= any,
            Err(next) => return (true, next),
        }
        if let Some(reason) = lanes::failure()
            && let Some(next) = self.end(reason, MoveFailure::Here, format_args!("{reason}"))
        {
            return (true, next);
        }
        if lanes::take_news() {
            busy |= self.lanes_have_news();
        }
        sched::wake_helpers(lanes::ready().saturating_sub(1));
        match self.advance() {
            Ok(any) => (busy | any, Next::Same),
            Err(next) => (true, next),
        }
    }

    /// Before vCPU 0 sleeps; whether there is something to do after all.
    pub fn before_park(&mut self, _: &Window<'_>) -> bool {
        let ports = self.fetch.iter_mut().flatten().chain(self.demand.as_mut()).chain([&mut self.control]);
        for port in ports {
            let pending = port.channel().pending() != 0;
            channels::announce_sleep(port.number(), pending);
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        let ports = self.fetch.iter().flatten().chain(self.demand.as_ref()).chain([&self.control]);
        let news = self.wants_cancel || ports.into_iter().any(Port::has_news);
        let running = matches!(self.state, Some(Destination::Running(_)));
        news || running && waiting::has_questions()
    }

    fn receive(&mut self) -> Result<bool, Next> {
        let mut any = false;
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
            // Judged before the tenant's arena is overwritten, in which the manifest lies.
            let policy = if matches!(state, Destination::Answered(_)) { sealed::peer_policy() } else { None };
            let step = match policy {
                Some(mut policy) => state.receive(frame, &mut policy, &mut Random),
                None => state.receive(frame, &mut Nobody, &mut Random),
            };
            self.state = Some(step.state);
            if let Some(reply) = step.reply {
                let _ = self.control.push(reply.frame());
            }
            match step.event {
                Ok(Event::Ended(ended)) => {
                    tell_failure(MoveFailure::There, format_args!("{ended}"));
                    return Err(self.destroyed(all));
                }
                Ok(Event::Attested(terms)) => self.start(usize::from(terms.lanes), all),
                event => {
                    self.point_lanes(&mut all);
                    drop(all);
                    self.happened(event);
                }
            }
            let _ = self.control.flush();
        }
        Ok(any)
    }

    /// After the vault was used whole: tells the lanes where they are in it.
    fn point_lanes(&mut self, all: &mut lanes::AllLanes) {
        // SAFETY: this is vCPU 0, and all lanes are claimed.
        let mut hold = unsafe { VAULT.hold() };
        for lane in 0..self.lanes {
            if let Some(found) = hold.lane_mut(lane) {
                let pointer: *mut ToHere = found;
                if let Some(work) = all.work(lane) {
                    work.set_destination(pointer);
                }
            }
        }
    }

    fn happened(&mut self, event: Result<Event, StepError>) {
        match event {
            Ok(Event::Prove(binding)) => sealed::evidence::for_migration(&binding),
            Ok(Event::Resumed(Connection::Control)) => {
                if let Some(frame) = self.state.as_mut().and_then(Destination::say_again) {
                    let _ = self.control.push(frame.frame());
                }
            }
            // The host may bring the Commit this way, too.
            Ok(Event::Running) => self.activate(),
            Err(StepError::Record(error)) if error.is_for_good() => self.control_failed(),
            Err(_) => self.wants_cancel = true,
            Ok(_) => {}
        }
    }

    /// What is due will not come on this connection. If it is too late to end it, there has to be another one.
    fn control_failed(&mut self) {
        match &self.state {
            Some(Destination::Staged(_) | Destination::Running(_) | Destination::Done(_)) => {
                self.control.give_up()
            }
            _ => self.wants_cancel = true,
        }
    }

    /// Both ends know each other: from here on the tenant's arena is what comes.
    fn start(&mut self, count: usize, mut all: lanes::AllLanes) {
        let layout = channels::layout();
        // Its host may have brought something since it began.
        if count > layout.lanes as usize || !super::is_fresh() {
            self.wants_cancel = true;
            return;
        }
        let Some(Destination::Attested(attested)) = self.state.take() else { return };
        tell(MoveEvent::Attested, 0, &[]);
        let mut slots = self.memory.slots(layout, count);
        let started = attested
            .start(self.bandwidth / count.max(1) as u64, |_: LaneId| slots.next().unwrap_or_default());
        let Ok((receiving, frame)) = started else {
            self.wants_cancel = true;
            return;
        };
        hold_tenant(true);
        self.state = Some(Destination::Receiving(receiving));
        self.lanes = count;
        // SAFETY: this is vCPU 0, and all lanes are claimed.
        let mut hold = unsafe { VAULT.hold() };
        for lane in 0..count {
            let port = self.memory.port(of_lane(lane), Way::Here);
            if let Some(found) = hold.lane_mut(lane) {
                all.add_destination(lane, count, port, found);
            }
        }
        let mut demand = self.memory.port(DEMAND, Way::Here);
        let (pointer, length) = demand.channel().idle_incoming();
        // SAFETY: the buffer is the agent's for good; the channel uses it only after the hand-over, when head and map were followed.
        state::provide(unsafe { core::slice::from_raw_parts_mut(pointer, length) });
        self.demand = Some(demand);
        all.begin(Duty::Receive);
        let _ = self.control.push(frame.frame());
        let _ = self.control.flush();
    }

    /// A lane has reached a barrier, or the last one.
    fn lanes_have_news(&mut self) -> bool {
        let Some(mut all) = lanes::claim_all() else {
            lanes::keep_news();
            return true;
        };
        all.prepare_lists();
        if let Some(Destination::Receiving(_)) = &self.state {
            self.noting.get_or_insert(0);
        }
        // The source parks nothing before it has heard of a round: what its tasks would wait for comes first.
        if let Some(Destination::Receiving(receiving)) = &mut self.state
            && self.memory_committed
            && let Some(frame) = receiving.round_received()
        {
            let _ = self.control.push(frame.frame());
            let _ = self.control.flush();
        }
        self.point_lanes(&mut all);
        false
    }

    fn advance(&mut self) -> Result<bool, Next> {
        match &self.state {
            Some(Destination::Verifying(verifying)) if lanes::are_done() && verifying.is_complete() => {
                self.stage()
            }
            Some(Destination::Receiving(_)) if self.noting.is_some() => {
                self.noting = self.noting.and_then(memory::note_uniform_some);
                Ok(true)
            }
            Some(Destination::Receiving(_)) if self.touching.is_some() && self.memory_committed => {
                self.touching = self.touching.and_then(memory::touch_tables_some);
                Ok(true)
            }
            Some(Destination::Running(_)) => Ok(self.fetch_more()),
            Some(Destination::Done(_)) => self.finish(),
            _ => Ok(false),
        }
    }

    /// Everything is here: settles the pages, and says so.
    fn stage(&mut self) -> Result<bool, Next> {
        if !self.settled {
            let head = state::head();
            let fits = head.is_some_and(|head| head.max_tasks <= u64::from(memory::layout().max_tasks));
            if !fits || state::follow_map().is_none() {
                let text = format_args!("this CVM has not the memory that the tenant has");
                return match self.end(Reason::Memory, MoveFailure::Here, text) {
                    Some(next) => Err(next),
                    None => Ok(true),
                };
            }
            self.settled = true;
        }
        if !self.memory_committed {
            if !core::mem::replace(&mut self.asked_for_memory, true) {
                tell(MoveEvent::NeedsMemory, 0, &[]);
            }
            return Ok(false);
        }
        let Some(mut all) = lanes::claim_all() else { return Ok(true) };
        let Some(Destination::Verifying(verifying)) = self.state.take() else { return Ok(false) };
        match verifying.stage(MemoryCommitted) {
            Stage::Staged(staged, frame) => {
                self.report.bytes = all.bytes();
                for (lane, place) in self.fetch.iter_mut().enumerate() {
                    *place = all.take_port(lane);
                }
                all.remove();
                self.state = Some(Destination::Staged(staged));
                let _ = self.control.push(frame.frame());
                let _ = self.control.flush();
                tell(MoveEvent::Staged, 0, &[]);
                Ok(true)
            }
            Stage::NotYet(verifying) => {
                self.state = Some(Destination::Verifying(verifying));
                Ok(false)
            }
            Stage::Destroyed(ended, frame) => {
                if let Some(frame) = frame {
                    let _ = self.control.push(frame.frame());
                    let _ = self.control.flush();
                }
                tell_failure(MoveFailure::Here, format_args!("{ended}"));
                Err(self.destroyed(all))
            }
        }
    }

    /// The activation key is here: the tenant runs.
    fn activate(&mut self) {
        let Some(Destination::Running(running)) = &mut self.state else { return };
        let (Some(activation), Some(mut head)) = (running.activation(), state::head()) else { return };
        if activation.open(&mut head.roots.0, &head.tag).is_err() {
            crate::console::fatal(
                nacre_abi::hypercall::ExitReason::Panic,
                format_args!("the roots of the tenant do not open: a defect"),
            );
        }
        let (missing_units, missing_bytes) = running.missing();
        self.report.outstanding_bytes = missing_bytes;
        clock::go_on_from(head.monotonic_ns, head.wall_ns);
        state::set_running();
        state::wipe();
        memory::space().seal_tables();
        // Pages changed under addresses that this guest's own code has used: the heap's, and statics.
        translations::next_generation();
        head.roots.plant();
        head.roots.plant_key();
        heap::arrived();
        hold_tenant(false);
        wasm::bump_epoch();
        sealed::evidence::ask_again();
        task::submit_all_runnable();
        self.report.tsc = arch::rdtsc();
        self.report.parked_ns = clock::cycles_to_ns(self.report.tsc.wrapping_sub(self.committed_tsc));
        tell(MoveEvent::Running, missing_units, &self.report.encode());
        let _ = self.control.flush();
    }

    /// Asks for what tasks wait for, then for the rest, and takes what came.
    fn fetch_more(&mut self) -> bool {
        let mut busy = false;
        let Some(Destination::Running(mut running)) = self.state.take() else { return false };
        if let Some(demand) = &mut self.demand {
            waiting::take_questions(&mut |address| {
                let Some(frame) = demand.channel().room(REQUEST_ROOM) else { return false };
                match running.demand(address, frame) {
                    Ok((Demand::Ask(_), Some(length))) => {
                        demand.channel().put(length);
                        true
                    }
                    // It is on its way, or here.
                    Ok(_) => true,
                    Err(_) => false,
                }
            });
        }
        let mut came = false;
        let ports = self.demand.iter_mut().chain(self.fetch.iter_mut().flatten());
        for port in ports {
            busy |= port.flush().unwrap_or(false);
            let connection = port.connection();
            for _ in 0..FRAMES_PER_LOOK {
                let frame = match port.receive() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(_) => {
                        port.give_up();
                        break;
                    }
                };
                busy = true;
                if is_resume(frame) {
                    let step = Destination::Running(running).receive(frame, &mut Nobody, &mut Random);
                    if let Some(reply) = step.reply {
                        let _ = port.push(reply.frame());
                        let _ = port.flush();
                    }
                    if matches!(step.event, Err(StepError::Record(error)) if error.is_for_good()) {
                        port.give_up();
                    }
                    let Destination::Running(same) = step.state else { return true };
                    running = same;
                    waiting::ask_again();
                    continue;
                }
                match running.fetched(connection, frame, &mut state::Arrival) {
                    Ok(fetched) => came |= fetched.used != 0,
                    Err(ReceiveError::Record(error)) if error.is_for_good() => port.give_up(),
                    Err(ReceiveError::Record(_)) => {}
                    Err(_) => came = true,
                }
            }
        }
        for (lane, port) in self.fetch.iter_mut().enumerate() {
            let (Some(port), Some(lane)) = (port, LaneId::new(lane)) else { continue };
            if let Some(frame) = port.channel().room(REQUEST_BYTES as usize / 2)
                && let Ok(Some(length)) = running.background(lane, &mut frame[..REQUEST_BYTES as usize / 2])
            {
                port.channel().put(length);
                busy |= port.flush().unwrap_or(false);
            }
        }
        if let Some(demand) = &mut self.demand {
            busy |= demand.flush().unwrap_or(false);
        }
        if came {
            waiting::pages_came();
        }
        self.state = Some(match running.complete() {
            Ok((finished, frame)) => {
                if let Some(frame) = frame {
                    let _ = self.control.push(frame.frame());
                    let _ = self.control.flush();
                }
                self.report.window_ns = clock::monotonic_ns() - clock::resumed_at_ns();
                tell(MoveEvent::Complete, 0, &self.report.encode());
                busy = true;
                Destination::Done(finished)
            }
            Err(running) => Destination::Running(running),
        });
        busy
    }

    /// A task that holds a lock needs the page at `address`: nothing else happens on this vCPU until it is here.
    pub fn fetch_now(&mut self, address: u64) {
        if let (Some(Destination::Running(running)), Some(demand)) = (&mut self.state, &mut self.demand)
            && let Some(frame) = demand.channel().room(REQUEST_ROOM)
            && let Ok((Demand::Ask(_), Some(length))) = running.demand(address, frame)
        {
            demand.channel().put(length);
        }
        let _ = self.fetch_more();
    }

    fn end(&mut self, reason: Reason, failure: MoveFailure, text: core::fmt::Arguments<'_>) -> Option<Next> {
        let all = lanes::claim_all()?;
        match self.state.take()?.cancel(reason) {
            Ok((_, frame)) => {
                if let Some(frame) = frame {
                    let _ = self.control.push(frame.frame());
                    let _ = self.control.flush();
                }
                tell_failure(failure, text);
                Some(self.destroyed(all))
            }
            Err(state) => {
                self.state = Some(state);
                self.wants_cancel = false;
                None
            }
        }
    }

    /// It came to nothing: this CVM is of no use any more. What lanes use of the vault is gone already.
    fn destroyed(&mut self, mut all: lanes::AllLanes) -> Next {
        all.remove();
        state::wipe();
        Next::Gone
    }

    /// Wipes the buffers of one channel for pages, and gives it up; false if none is left.
    fn wipe_one_port(&mut self) -> bool {
        let port = self.demand.take().or_else(|| self.fetch.iter_mut().find_map(Option::take));
        port.map(|mut port| port.channel().wipe()).is_some()
    }

    /// It has everything, and nothing is left to do but to clear up: the pages that came last lie in the channels' buffers as they were opened.
    fn finish(&mut self) -> Result<bool, Next> {
        if self.wipe_one_port() {
            return Ok(true);
        }
        if self.control.channel().pending() == 0 { Err(self.over()) } else { Ok(false) }
    }

    fn over(&mut self) -> Next {
        if let Some(Destination::Done(finished)) = self.state.take() {
            finished.close();
        }
        Next::Stays
    }
}

fn is_resume(frame: &[u8]) -> bool {
    Header::split(frame).is_ok_and(|(header, _)| header.kind == wire::Kind::Resume)
}

/// Room for one request on the demand channel.
const REQUEST_ROOM: usize = 128;
/// Frames that are taken from one channel before the next one's turn.
const FRAMES_PER_LOOK: usize = 16;
