//! The hand-over: all tasks are parked, the last round, and the point of no return.

use super::rounds::{REBUMP_NS, unsent_bytes};
use super::{Course, Hold, SourceAgent, wake_for_lanes};
use crate::arch::{self, clock};
use crate::migrate::lanes::{self, Duty};
use crate::migrate::state::{self, HEAD, Head, MAP};
use crate::migrate::{Next, hold_tenant, tell};
use crate::sealed::{self, Random};
use crate::{link, memory, sched, wasm};
use nacre_abi::message::{Header, Kind, NO_PROGRAM};
use nacre_abi::migrate::MoveEvent;
use nacre_migrate::flow::{Mode, lists_remainder};
use nacre_migrate::message::Reason;
use nacre_migrate::source::{Parked, Tenant};
use nacre_migrate::{Content, Place, Source};
use nacre_wval::{Stopped, VcpuId};

/// The tenant while all its tasks are parked: the proof that they are. What they need to go on is in [`state::take_roots`]'s place.
pub(super) struct ParkedTenant {
    stopped: Stopped,
}

impl ParkedTenant {
    /// Lets the tenant go on.
    pub(super) fn release(self) {
        state::plant_roots();
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
        state::wipe_roots();
        sealed::extinguish();
        // The gate stays closed for good, because what could open it ends here: a vCPU that the host resumes late finds it so.
        Ok(())
    }
}

impl SourceAgent {
    pub(super) fn begin_parking(&mut self) {
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
    pub(super) fn try_park(&mut self) {
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
        state::take_roots();
        let tenant = ParkedTenant { stopped };
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
        all.begin(if whole { Duty::CollectWhole } else { Duty::CollectLast });
        tell(MoveEvent::Parked, 0, &[]);
        drop(all);
        wake_for_lanes();
        // Collecting changes nothing that is in it.
        self.map_bytes = state::draw_map();
    }

    /// A step of the last round is over.
    pub(super) fn last_round(&mut self, mut all: lanes::AllLanes) -> Result<bool, Next> {
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
            let lists = lists_remainder(self.mode(), unsent_bytes(&all, self.order.lanes), self.carried);
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
    pub(super) fn go(&mut self) {
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
                // All that the destination can't ask for any more: heap, stacks, code; linear memories, if nothing of them is still to go.
                memory::wipe_tenant(self.report.outstanding_bytes == 0);
            }
            Err(staged) => self.state = Some(Source::Staged(staged)),
        }
    }

    /// Puts head and map together and marks them; false if the map is too long.
    pub(super) fn draw_state(&mut self, parked: &mut Parked<Hold, ParkedTenant>) -> bool {
        let Some(map_bytes) = self.map_bytes.take() else { return false };
        let Ok((roots, tag)) = state::sealed_roots(|roots| parked.lock(roots)) else { return false };
        state::set_head(&Head {
            roots,
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
}
