//! How a task is told to end, and how others learn that it has: [`StopRequest`], [`Limits`], [`Completion`].
//!
//! A request is a flag which the task looks at when it comes to a safe point; whoever sets it wakes the task if it sleeps
//! and has running Wasm brought to a safe point. Nothing here waits for the task.

use crate::sync::{AtomicU64, Ordering, fence};

/// Why a task must end at its next safe point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody does not want its result any more.
    Cancelled,
    /// The time it had on the clock is over.
    WallLimit,
    /// It has used up its CPU time.
    CpuLimit,
}

const LIVE: u64 = 0;
const ENDED: u64 = u64::MAX;

/// Whether a task was told to end. The first reason stays.
#[derive(Debug)]
pub struct StopRequest(AtomicU64);

impl Default for StopRequest {
    fn default() -> Self {
        Self::new()
    }
}

impl StopRequest {
    /// Nobody wants it to end.
    pub fn new() -> Self {
        StopRequest(AtomicU64::new(LIVE))
    }

    /// Tells the task to end; true if this is the first request and it has not ended.
    pub fn request(&self, reason: StopReason) -> bool {
        let word = reason as u64 + 1;
        self.0.compare_exchange(LIVE, word, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The request, if there is one. One load: cheap enough for every safe point.
    pub fn get(&self) -> Option<StopReason> {
        reason(self.0.load(Ordering::Acquire))
    }

    /// The task has ended; what it was told before. Later requests are refused, so requests made and requests returned
    /// here are equal in number.
    pub fn end(&self) -> Option<StopReason> {
        reason(self.0.swap(ENDED, Ordering::AcqRel))
    }
}

fn reason(word: u64) -> Option<StopReason> {
    match word {
        1 => Some(StopReason::Cancelled),
        2 => Some(StopReason::WallLimit),
        3 => Some(StopReason::CpuLimit),
        _ => None,
    }
}

/// How long a task may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until when, by the guest's monotonic clock in nanoseconds.
    pub wall_deadline_ns: u64,
    /// How much CPU time, in nanoseconds.
    pub cpu_ns: u64,
}

impl Limits {
    /// As long as it likes.
    pub const NONE: Limits = Limits { wall_deadline_ns: u64::MAX, cpu_ns: u64::MAX };

    /// Which limit a task has reached that has had `cpu_ns` of CPU time at `now_ns`.
    pub const fn reached(&self, now_ns: u64, cpu_ns: u64) -> Option<StopReason> {
        if now_ns >= self.wall_deadline_ns {
            Some(StopReason::WallLimit)
        } else if cpu_ns >= self.cpu_ns {
            Some(StopReason::CpuLimit)
        } else {
            None
        }
    }
}

const NOBODY: u64 = 0;

/// The end of something, and the one who waits for it: a number of the waiter's, such as its place in a table of tasks. It
/// names the waiter, it does not keep it alive: the wake may come when that place has another user, who must bear it.
///
/// ```text
///   waiter: wait_for (store number, FENCE, look for the end) -> park -> wait_for ...
///   ender:  end (store the end, FENCE, read the number) -> wake that number
/// ```
/// Of the two fences one is first: the waiter sees the end, or the ender sees the waiter.
#[derive(Debug)]
pub struct Completion {
    ended: AtomicU64,
    waiter: AtomicU64,
}

impl Default for Completion {
    fn default() -> Self {
        Self::new()
    }
}

impl Completion {
    /// Not ended; nobody waits.
    pub fn new() -> Self {
        Completion { ended: AtomicU64::new(0), waiter: AtomicU64::new(NOBODY) }
    }

    /// Whether it has ended. If so, what the ender wrote before is seen.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire) != 0
    }

    /// Called by the one waiter before it parks, each time: true if there is nothing to wait for.
    pub fn wait_for(&self, waiter: u32) -> bool {
        self.waiter.store(u64::from(waiter) + 1, Ordering::Release);
        fence(Ordering::SeqCst);
        self.has_ended()
    }

    /// Called once by the ender; says whom to wake. Its duty, as with [`crate::ParkState::unpark`]: a waker stopped
    /// between this and the wake holds up that waiter.
    pub fn end(&self) -> Option<u32> {
        self.ended.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        self.waiter.load(Ordering::Acquire).checked_sub(1).map(|waiter| waiter as u32)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays_and_a_task_that_ended_is_not_told() {
        let stop = StopRequest::new();
        assert_eq!(stop.get(), None);
        assert!(stop.request(StopReason::CpuLimit) && !stop.request(StopReason::Cancelled));
        assert_eq!((stop.get(), stop.end()), (Some(StopReason::CpuLimit), Some(StopReason::CpuLimit)));
        assert_eq!((stop.request(StopReason::Cancelled), stop.get(), stop.end()), (false, None, None));
        for reason in [StopReason::Cancelled, StopReason::WallLimit, StopReason::CpuLimit] {
            let stop = StopRequest::new();
            assert!(stop.request(reason));
            assert_eq!(stop.get(), Some(reason));
        }
    }

    #[test]
    fn limits_count_from_the_moment_they_name() {
        assert_eq!(Limits::NONE.reached(u64::MAX - 1, u64::MAX - 1), None);
        let limits = Limits { wall_deadline_ns: 10, cpu_ns: 5 };
        assert_eq!(limits.reached(9, 4), None);
        assert_eq!(limits.reached(9, 5), Some(StopReason::CpuLimit));
        assert_eq!(limits.reached(10, 5), Some(StopReason::WallLimit));
    }

    #[test]
    fn an_end_is_told_to_whoever_waits() {
        let early = Completion::new();
        assert_eq!(early.end(), None);
        assert!(early.wait_for(7) && early.has_ended());
        let late = Completion::new();
        assert!(!late.wait_for(0) && !late.wait_for(0));
        assert_eq!(late.end(), Some(0));
        assert!(late.wait_for(0));
    }
}
