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

/// A vCPU that is so far behind the latest time had its counter set back, and is put right.
const STEP_NS: u64 = 100_000_000;

/// Nanoseconds since this CVM started; never less than before, on any vCPU. If the host sets a counter back, time goes on
/// from where it was: timers must not wait for the counter to come back.
pub fn monotonic_ns() -> u64 {
    let clock = CLOCK.get();
    let offset = &crate::vcpu::local().clock_offset_ns;
    let cycles = rdtsc().wrapping_sub(clock.start_tsc) as i64;
    let since = (i128::from(cycles) * i128::from(clock.scale)) >> 32;
    let own = u64::try_from(since + i128::from(offset.get())).unwrap_or(0).min(i64::MAX as u64);
    let latest = LATEST_NS.fetch_max(own, Ordering::Relaxed).max(own);
    if latest - own > STEP_NS {
        offset.set(i64::try_from(i128::from(latest) - since).unwrap_or(i64::MAX));
    }
    latest
}

/// Nanoseconds since 1970, by the host's word.
pub fn wall_ns() -> u64 {
    CLOCK.get().wall_at_start_ns.saturating_add(monotonic_ns())
}
