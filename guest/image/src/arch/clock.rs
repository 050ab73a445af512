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
    /// What is added to this CVM's own time since a tenant came from another one, in nanoseconds: it may be negative.
    static SHIFT_NS: AtomicU64 = AtomicU64::new(0);
    static WALL_SHIFT_NS: AtomicU64 = AtomicU64::new(0);
    /// When it came.
    static RESUMED_NS: AtomicU64 = AtomicU64::new(0);
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
    let shift = i128::from(SHIFT_NS.load(Ordering::Relaxed) as i64);
    let since = since + shift;
    let own = u64::try_from(since + i128::from(offset.get())).unwrap_or(0).min(i64::MAX as u64);
    let latest = LATEST_NS.fetch_max(own, Ordering::Relaxed).max(own);
    if latest - own > STEP_NS {
        offset.set(i64::try_from(i128::from(latest) - since).unwrap_or(i64::MAX));
    }
    latest
}

/// Nanoseconds since 1970, by the host's word.
pub fn wall_ns() -> u64 {
    let shift = WALL_SHIFT_NS.load(Ordering::Relaxed) as i64;
    CLOCK.get().wall_at_start_ns.saturating_add(monotonic_ns()).saturating_add_signed(shift)
}

/// A pause between two hosts is believed up to this.
const LONGEST_PAUSE_NS: u64 = 3600 * 1_000_000_000;

/// A tenant came whose clocks were at these times when it was parked: they go on from there, by as much as the hosts' wall clocks say
/// that has passed. Neither goes back. Before any task runs, on vCPU 0.
pub fn go_on_from(monotonic_ns: u64, wall_ns: u64) {
    let (own_wall, own) = (self::wall_ns(), self::monotonic_ns());
    let passed = own_wall.saturating_sub(wall_ns).min(LONGEST_PAUSE_NS);
    let resumed = monotonic_ns.saturating_add(passed);
    let shift = resumed.wrapping_sub(own) as i64;
    // Wall time is start and monotonic time: what is added to that is taken away here, unless time would go back.
    let wall = own_wall.max(wall_ns);
    WALL_SHIFT_NS.store((wall.wrapping_sub(own_wall) as i64).wrapping_sub(shift) as u64, Ordering::Relaxed);
    SHIFT_NS.fetch_add(shift as u64, Ordering::Relaxed);
    LATEST_NS.store(resumed, Ordering::SeqCst);
    RESUMED_NS.store(resumed, Ordering::Relaxed);
}

/// When a tenant came, by the monotonic clock.
pub fn resumed_at_ns() -> u64 {
    RESUMED_NS.load(Ordering::Relaxed)
}
