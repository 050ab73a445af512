//! Time: the time stamp counter, scaled by what the host said at launch, never going back.
//!
//! The rate and the wall clock are the host's claims; the guest decides nothing that matters for security on them.

use crate::agent::{AgentCell, agent_static};
use crate::arch::rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::window::{ControlWord, Window};

/// Rates outside of this are refused: 100 MHz to 20 GHz.
const TSC_KHZ: core::ops::RangeInclusive<u64> = 100_000..=20_000_000;

/// The conversion of one CVM.
pub struct Clock {
    start_tsc: u64,
    /// Nanoseconds per cycle, as a fixed-point number with 32 fractional bits.
    scale: u64,
    wall_at_start_ns: u64,
}

agent_static! {
    static CLOCK: AgentCell<Clock> = AgentCell::new();
    /// The latest monotonic time that was told: a counter that differs between vCPUs must not show.
    static LATEST_NS: AtomicU64 = AtomicU64::new(0);
}

/// Takes the host's claims from the control page; `None` if the rate is impossible.
pub fn init(window: &Window<'_>, start_tsc: u64) -> Option<()> {
    let khz = window.control(ControlWord::TscKhz);
    if !TSC_KHZ.contains(&khz) {
        return None;
    }
    let scale = ((1_000_000u128 << 32) / u128::from(khz)) as u64;
    let since = start_tsc.saturating_sub(window.control(ControlWord::WallClockTsc));
    let wall_at_start_ns = window.control(ControlWord::WallClockNs).saturating_add(scaled(since, scale));
    CLOCK.set(Clock { start_tsc, scale, wall_at_start_ns });
    Some(())
}

fn scaled(cycles: u64, scale: u64) -> u64 {
    u64::try_from((u128::from(cycles) * u128::from(scale)) >> 32).unwrap_or(u64::MAX)
}

/// `cycles` of the time stamp counter in nanoseconds.
pub fn cycles_to_ns(cycles: u64) -> u64 {
    scaled(cycles, CLOCK.get().scale)
}

/// `ns` nanoseconds in cycles of the time stamp counter.
pub fn ns_to_cycles(ns: u64) -> u64 {
    u64::try_from((u128::from(ns) << 32) / u128::from(CLOCK.get().scale.max(1))).unwrap_or(u64::MAX)
}

/// Nanoseconds since this CVM started; never less than before, on any vCPU.
pub fn monotonic_ns() -> u64 {
    let clock = CLOCK.get();
    let now = scaled(rdtsc().saturating_sub(clock.start_tsc), clock.scale);
    LATEST_NS.fetch_max(now, Ordering::Relaxed).max(now)
}

/// Nanoseconds since 1970, by the host's word.
pub fn wall_ns() -> u64 {
    CLOCK.get().wall_at_start_ns.saturating_add(monotonic_ns())
}
