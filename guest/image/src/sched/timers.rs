//! Timers: asked for by any vCPU, kept by vCPU 0.

use super::own;
use crate::arch::{self, clock};
use crate::{task, vcpu};
use nacre_wval::{TaskRef, TimerQueue, TimerReceiver, TimerToken, VcpuId};

/// Timers and who may change them: vCPU 0.
pub struct Timers {
    pub(super) receiver: TimerReceiver<'static>,
    pub(super) queue: TimerQueue<'static>,
}

/// Asks vCPU 0 for a timer; false if its inbox is full. Then it is woken once more: the host may have lost the wakes for what
/// fills the inbox, and the caller comes again until there is room.
pub fn arm_timer(token: TimerToken, deadline_ns: u64, task: TaskRef) -> bool {
    let armed = own().timers.arm(token, deadline_ns, task);
    if matches!(armed, Ok(true) | Err(_)) && vcpu::id() != VcpuId::NORMAL {
        arch::wake(VcpuId::NORMAL);
    }
    armed.is_ok()
}

/// Gives a timer up. A full inbox only means that it will wake its task in vain.
pub fn cancel_timer(token: TimerToken) {
    let _ = own().timers.cancel(token);
}

impl Timers {
    /// Wakes whom is due; returns whether anybody was.
    pub fn run(&mut self) -> bool {
        self.receiver.drain(&mut self.queue);
        let mut any = false;
        if self.queue.next_deadline().is_some() {
            let now = clock::monotonic_ns();
            while let Some(expired) = self.queue.pop_expired(now) {
                task::timer_expired(expired.token.slot);
                any = true;
            }
        }
        any
    }

    /// Until when vCPU 0 may park.
    pub fn before_park(&mut self) -> Option<u64> {
        self.receiver.before_park(&mut self.queue)
    }

    /// vCPU 0 is awake again.
    pub fn after_park(&mut self) {
        self.receiver.after_park();
    }
}
