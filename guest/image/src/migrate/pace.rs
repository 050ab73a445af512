//! How fast content may be sent, if bandwidth is limited.

use super::lanes;
use crate::agent::agent_static;
use crate::arch::clock;
use core::sync::atomic::{AtomicU64, Ordering};

/// Content is sent in bursts of so much.
const BURST_NS: u64 = 2_000_000;

agent_static! {
    /// Nanoseconds that a MiB takes at the bandwidth that was asked for; 0 for no limit.
    static PACE_NS: AtomicU64 = AtomicU64::new(0);
    /// When the next byte may go, by the monotonic clock.
    static NEXT_NS: AtomicU64 = AtomicU64::new(0);
}

/// Limits what is sent, in bytes per second.
pub fn limit_bandwidth(bytes_per_second: u64) {
    let pace =
        if bytes_per_second == u64::MAX { 0 } else { (1_000_000_000 << 20) / bytes_per_second.max(1 << 10) };
    PACE_NS.store(pace, Ordering::Relaxed);
    NEXT_NS.store(0, Ordering::Relaxed);
}

/// Whether nothing may be sent now.
pub fn must_pause() -> bool {
    PACE_NS.load(Ordering::Relaxed) != 0 && clock::monotonic_ns() < NEXT_NS.load(Ordering::Relaxed)
}

/// So many bytes are sent.
pub fn count_sent(bytes: usize) {
    let pace = PACE_NS.load(Ordering::Relaxed);
    if pace != 0 {
        NEXT_NS.fetch_max(clock::monotonic_ns().saturating_sub(BURST_NS), Ordering::Relaxed);
        NEXT_NS.fetch_add(((u128::from(pace) * bytes as u128) >> 20) as u64, Ordering::Relaxed);
    }
}

/// Until when nothing may be sent.
pub fn deadline_ns() -> Option<u64> {
    (!lanes::are_done() && must_pause()).then(|| NEXT_NS.load(Ordering::Relaxed))
}
