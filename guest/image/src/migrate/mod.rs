//! Live migration: the tenant of this CVM goes to another one, or comes from there. What is said to the other end, and in which state
//! what may be said, is `nacre-migrate`'s; here is what it takes from the machine.
//!
//! * [`source`], [`destination`]: the two ends, on vCPU 0;
//! * [`lanes`]: the work that any vCPU does that has nothing else to do: collecting, sealing, opening; [`pace`]: how fast;
//! * [`channels`]: pipes to the host, and the agent memory that is set aside for all this;
//! * [`vault`]: where their secrets lie; [`state`]: what moves beside pages; [`waiting`]: tasks that touched a page that is not here yet.
//!
//! While the tenant is parked here, or is arriving, nothing of its arena may be touched but by this module: the dispatcher asks
//! [`holds_tenant`] before it does anything else.

mod channels;
mod destination;
mod lanes;
mod pace;
mod source;
mod state;
mod vault;
mod waiting;

pub use lanes::{has_work, ready as helpers_wanted, work};
pub use waiting::begin_wait;

use crate::agent::agent_static;
use crate::arch::clock;
use crate::normal::NormalCell;
use crate::translations;
use crate::{link, memory, wasm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use destination::DestinationAgent;
use nacre_abi::message::{Header, Kind, NO_PROGRAM};
use nacre_abi::migrate::{MoveEvent, MoveFailure, MoveWord};
use nacre_abi::window::Window;
use source::SourceAgent;

agent_static! {
    /// A migration is under way: somebody has to look at [`AGENT`].
    static ACTIVE: AtomicBool = AtomicBool::new(false);
    /// When the agent has something to do again, by the monotonic clock, if it waits for that; else 0.
    static WAKES_AT_NS: AtomicU64 = AtomicU64::new(0);
    static HOLDS_TENANT: AtomicBool = AtomicBool::new(false);
    static AGENT: NormalCell<Agent> = NormalCell::new(Agent::None);
}

/// What this CVM's agent is doing.
#[expect(clippy::large_enum_variant, reason = "there is one, in a static")]
enum Agent {
    None,
    Source(SourceAgent),
    Destination(DestinationAgent),
    /// The migration is over and the tenant is here: pages that were split are joined.
    Joining(Joining),
    /// The tenant has gone and everything was sent: nothing is left to do, for good.
    Gone,
}

/// Joins what was split, in steps between which all vCPUs flush.
#[derive(Clone, Copy)]
struct Joining {
    /// Where it goes on; `None` at the end.
    at: Option<u64>,
    /// The generation that all vCPUs have to reach before the next step.
    generation: u64,
    /// When running tasks were last brought to a safe point for that.
    bumped_ns: u64,
}

/// How often vCPUs that have to flush are brought to a safe point while pages are joined, in nanoseconds.
const JOIN_BUMP_NS: u64 = 1_000_000;

impl Joining {
    fn begin() -> Joining {
        // What was collected or brought in last may have taken tables out of use too.
        memory::space().seal_tables();
        translations::next_generation();
        Joining { at: Some(0), generation: translations::generation(), bumped_ns: 0 }
    }

    /// One step; whether anything was done, and what becomes of the agent.
    fn step(&mut self) -> (bool, Next) {
        if !memory::recycle_joined(self.generation) {
            let now = clock::monotonic_ns();
            if now.saturating_sub(self.bumped_ns) > JOIN_BUMP_NS {
                self.bumped_ns = now;
                wasm::bump_epoch();
            }
            return (false, Next::Same);
        }
        let Some(at) = self.at else {
            memory::end_reservations();
            return (true, Next::None);
        };
        self.at = memory::rejoin_some(at);
        self.generation = translations::generation();
        (true, Next::Same)
    }
}

/// Whether the tenant's arena is not to be touched: its tasks are parked for a hand-over, it has gone, or it is arriving.
pub fn holds_tenant() -> bool {
    HOLDS_TENANT.load(Ordering::Acquire)
}

/// Whether the ring to the guest is to be left alone too: what the host has put there goes where the tenant goes.
pub fn leaves_ring() -> bool {
    holds_tenant() && !AGENT.with(|agent| matches!(agent, Agent::Destination(_)))
}

fn hold_tenant(holds: bool) {
    HOLDS_TENANT.store(holds, Ordering::Release);
}

fn set_active(active: bool) {
    ACTIVE.store(active, Ordering::Release);
}

/// Until when nothing has to be done, if that is known.
pub fn deadline_ns() -> Option<u64> {
    let wakes_at = Some(WAKES_AT_NS.load(Ordering::Relaxed)).filter(|at| *at != 0 && is_active());
    wakes_at.into_iter().chain(pace::deadline_ns()).min()
}

/// The agent waits until then, by the monotonic clock.
fn wakes_at(at_ns: u64) {
    WAKES_AT_NS.store(at_ns, Ordering::Relaxed);
}

/// Whether a migration is under way.
pub fn is_active() -> bool {
    ACTIVE.load(Ordering::Acquire)
}

/// Tells the host.
fn tell(event: MoveEvent, arg: u64, body: &[u8]) {
    link::send(Header::new(Kind::MigrateEvent, NO_PROGRAM).stream(event as u32).arg(arg), body);
}

fn tell_failure(failure: MoveFailure, text: core::fmt::Arguments<'_>) {
    let text = crate::console::Text::of(text);
    tell(MoveEvent::Aborted, failure as u64, text.as_bytes());
}

/// A message about migrations came. Whatever it says, at worst nothing moves.
pub fn handle(header: Header, body: &[u8]) {
    AGENT.with(|agent| match (header.kind, &mut *agent) {
        (Kind::MigrateSend, Agent::None | Agent::Joining(_)) => match SourceAgent::begin(body) {
            Ok(source) => {
                *agent = Agent::Source(source);
                set_active(true);
            }
            Err(text) => tell_failure(MoveFailure::Here, format_args!("{text}")),
        },
        (Kind::MigrateSend, _) => {
            tell_failure(
                MoveFailure::Here,
                format_args!("a migration is under way: wait for it, or cancel it"),
            );
        }
        (Kind::MigrateReceive, Agent::None) => match DestinationAgent::begin(header.arg) {
            Ok(destination) => {
                *agent = Agent::Destination(destination);
                set_active(true);
            }
            Err(text) => tell_failure(MoveFailure::Here, format_args!("{text}")),
        },
        (Kind::MigrateCancel, Agent::Source(source)) => source.cancel(),
        (Kind::MigrateCancel, Agent::Destination(destination)) => destination.cancel(),
        (Kind::MigrateCommit, Agent::Destination(destination)) => destination.commit(body),
        (Kind::MigrateMemory, Agent::Destination(destination)) => destination.memory_is_committed(),
        _ => {}
    });
}

/// Whether a message may be handled although the tenant's arena may not be touched: only agent memory is used for it. A report is none of them:
/// what waits for it lies in the arena.
pub fn may_handle(kind: Kind) -> bool {
    matches!(kind, Kind::MigrateCancel | Kind::MigrateCommit | Kind::MigrateMemory)
}

/// Evidence that this end asked for is here, or there is none.
pub fn evidence(evidence: Result<&[u8], &'static str>) {
    AGENT.with(|agent| match agent {
        Agent::Source(source) => source.evidence(evidence),
        Agent::Destination(destination) => destination.evidence(evidence),
        Agent::None | Agent::Joining(_) | Agent::Gone => {}
    });
}

/// What vCPU 0 has to do for a migration now; returns whether there was anything.
pub fn run() -> bool {
    if !is_active() {
        return false;
    }
    AGENT.with(|agent| {
        rejoin_channels(agent);
        let (busy, next) = match agent {
            Agent::Source(source) => source.run(),
            Agent::Destination(destination) => destination.run(),
            Agent::Joining(joining) => joining.step(),
            Agent::None | Agent::Gone => (false, Next::Same),
        };
        match next {
            Next::Same => {}
            Next::Stays => *agent = Agent::Joining(Joining::begin()),
            Next::None => {
                *agent = Agent::None;
                set_active(false);
            }
            Next::Gone => {
                *agent = Agent::Gone;
                set_active(false);
            }
        }
        busy
    })
}

/// Begins channels again whose connections broke, as far as the host has others.
fn rejoin_channels(agent: &mut Agent) {
    if link::window().move_word(MoveWord::Rejoin) == 0 {
        return;
    }
    let wanted = link::window().take_move_word(MoveWord::Rejoin);
    for channel in (0..u64::BITS).filter(|channel| wanted >> channel & 1 != 0) {
        match agent {
            Agent::Source(source) => source.rejoin(channel),
            Agent::Destination(destination) => destination.rejoin(channel),
            Agent::None | Agent::Joining(_) | Agent::Gone => {}
        }
    }
}

/// What becomes of an agent.
enum Next {
    /// It goes on.
    Same,
    /// It is over, and the tenant is here.
    Stays,
    /// Nothing is left of it.
    None,
    /// It is over, and the tenant is not here.
    Gone,
}

/// Whether vCPU 0 must not sleep: called when everybody can see that it is about to.
pub fn before_park() -> bool {
    if !is_active() {
        return false;
    }
    let window = link::window();
    let busy = AGENT.with(|agent| match agent {
        Agent::Source(source) => source.before_park(window),
        Agent::Destination(destination) => destination.before_park(window),
        // Others flush soon, or sleep.
        Agent::Joining(_) => true,
        Agent::None | Agent::Gone => false,
    });
    busy || window.move_word(MoveWord::Rejoin) != 0 || lanes::before_park()
}

/// By a task that holds a lock, on vCPU 0: sees to the page at `address`. Nobody else does meanwhile what vCPU 0 has to do for that, also when a connection
/// broke.
fn fetch_now(address: u64) {
    AGENT.with(|agent| {
        rejoin_channels(agent);
        if let Agent::Destination(destination) = agent {
            destination.fetch_now(address);
        }
    });
}

/// Whether this CVM could take a tenant: it never loaded anything.
fn is_fresh() -> bool {
    !crate::sealed::has_taken_code() && memory::layout().params.memory_bytes > 0
}

fn window() -> &'static Window<'static> {
    link::window()
}
