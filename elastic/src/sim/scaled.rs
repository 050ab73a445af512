//! All other arms: CVMs whose number of vCPUs is fixed, follows samples, or follows demand with a delay.
//!
//! Each CVM has one queue of tasks and some vCPUs; each vCPU runs one task after the other. When more vCPUs run than
//! there are cores, all of them run at the same lower speed: processor sharing without any cost of switching, which is
//! better than a real host does. A vCPU that runs is not taken away. Deciding costs nothing. A CVM keeps
//! one vCPU always. Where a CVM boots per burst, booting takes time but no core.

use super::report::{ArmOutcome, Example, Recorder};
use super::scenario::{Arm, Scenario};
use super::workload::Workload;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

#[derive(Debug, Default)]
struct Guest {
    queue: VecDeque<u32>,
    /// vCPUs it has.
    vcpus: u32,
    /// vCPUs on their way.
    coming: u32,
    running: u32,
    /// When all its vCPUs ran last, in nanoseconds.
    full_at: u64,
    /// A look at whether it has too many is scheduled.
    trim_scheduled: bool,
}

impl Guest {
    fn demand(&self) -> u32 {
        self.running + self.queue.len() as u32
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// This many vCPUs are there.
    Added(u32),
    Sample,
    /// Time to unplug what was not used.
    Trim,
}

/// When the number of vCPUs changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Fixed,
    Sampled { interval: u64 },
    OnDemand { delay: u64, keep: u64 },
    PerBurst { boot: u64 },
}

pub(super) struct Scaled<'a> {
    rule: Rule,
    cores: f64,
    max: u32,
    workload: &'a Workload,
    guests: Vec<Guest>,
    /// CVMs beyond those of the workload, of bursts that are over.
    spare: Vec<u32>,
    events: BinaryHeap<Reverse<(u64, u64, u32, Kind)>>,
    /// Running tasks by the work that each vCPU must have done when they finish.
    finishes: BinaryHeap<Reverse<(u64, u64, u32, u32)>>,
    sequence: u64,
    now: u64,
    running: u32,
    vcpus: u32,
    /// Work that a vCPU has done which ran all the time, in nanoseconds.
    done: f64,
    recorder: Recorder<'a>,
}

impl<'a> Scaled<'a> {
    pub(super) fn new(
        arm: Arm,
        scenario: &Scenario,
        workload: &'a Workload,
        example: Option<&'a Example>,
    ) -> Self {
        let max = u32::from(scenario.workers);
        let count = workload.cvms as usize;
        let sizes = match arm {
            Arm::StaticP95 => workload.p95().into_iter().map(|size| size.min(max)).collect(),
            Arm::StaticEqual => vec![(scenario.cores / workload.cvms).clamp(1, max); count],
            Arm::BootPerBurst => vec![0; count],
            Arm::Nacre | Arm::Hotplug | Arm::Sampled { .. } => vec![1; count],
        };
        let rule = match arm {
            Arm::Nacre | Arm::StaticP95 | Arm::StaticEqual => Rule::Fixed,
            Arm::Hotplug => {
                Rule::OnDemand { delay: scenario.costs.hotplug_ns, keep: scenario.costs.hotplug_keep_ns }
            }
            Arm::Sampled { interval_ms } => Rule::Sampled { interval: u64::from(interval_ms) * 1_000_000 },
            Arm::BootPerBurst => Rule::PerBurst { boot: scenario.costs.boot_ns },
        };
        let mut scaled = Self {
            rule,
            cores: f64::from(scenario.cores),
            max,
            workload,
            guests: sizes.iter().map(|&vcpus| Guest { vcpus, ..Guest::default() }).collect(),
            spare: Vec::new(),
            events: BinaryHeap::new(),
            finishes: BinaryHeap::new(),
            sequence: 0,
            now: 0,
            running: 0,
            vcpus: sizes.iter().sum(),
            done: 0.0,
            recorder: Recorder::new(workload, example),
        };
        for (cvm, size) in (0..).zip(sizes) {
            scaled.recorder.example_level(cvm, 0, f64::from(size));
            if let Rule::Sampled { interval } = rule {
                // Samplers of different CVMs are not in step: multiples of the golden ratio.
                let phase = (u64::from(cvm) * 0x9e37_79b9 % (1 << 32) * interval) >> 32;
                scaled.schedule(phase, cvm, Kind::Sample);
            }
        }
        scaled
    }

    /// Runs until every task has finished. `progress` is told the fraction of tasks that have arrived.
    pub(super) fn run(mut self, progress: &mut dyn FnMut(f64)) -> ArmOutcome {
        let arrivals = &self.workload.arrivals;
        let mut arrived = 0;
        while self.recorder.finished < arrivals.len() {
            let arrival = arrivals.get(arrived).map_or(u64::MAX, |arrival| arrival.at);
            let event = self.events.peek().map_or(u64::MAX, |event| event.0.0);
            let finish = self.finishes.peek().map_or(u64::MAX, |finish| self.instant_of(finish.0.0));
            let next = arrival.min(event).min(finish);
            self.advance(next);
            if finish == next {
                if let Some(Reverse((_, _, task, cvm))) = self.finishes.pop() {
                    self.finish(task, cvm);
                }
            } else if arrival == next {
                let cvm = arrivals[arrived].cvm;
                let first = arrived;
                while arrivals.get(arrived).is_some_and(|task| task.at == next && task.cvm == cvm) {
                    arrived += 1;
                }
                self.arrive(cvm, first as u32..arrived as u32);
                if arrived % 4096 < 8 {
                    progress(arrived as f64 / arrivals.len() as f64);
                }
            } else if let Some(Reverse((_, _, cvm, kind))) = self.events.pop() {
                match kind {
                    Kind::Sample => self.sample(cvm),
                    Kind::Trim => self.trim(cvm),
                    Kind::Added(vcpus) => {
                        self.guests[cvm as usize].coming -= vcpus;
                        self.resize(cvm, self.guests[cvm as usize].vcpus + vcpus);
                        self.recorder.wakes += u64::from(vcpus);
                    }
                }
            }
        }
        self.recorder.outcome(self.now)
    }

    fn speed(&self) -> f64 {
        if self.running == 0 { 1.0 } else { (self.cores / f64::from(self.running)).min(1.0) }
    }

    /// When a vCPU that runs all the time has done `work`, given as the bits of a float.
    fn instant_of(&self, work: u64) -> u64 {
        self.now + ((f64::from_bits(work) - self.done).max(0.0) / self.speed()).round() as u64
    }

    fn advance(&mut self, now: u64) {
        let elapsed = (now - self.now) as f64;
        let speed = self.speed();
        self.done += elapsed * speed;
        self.recorder.busy += elapsed * speed * f64::from(self.running);
        self.recorder.reserved += elapsed * f64::from(self.vcpus);
        self.now = now;
    }

    fn schedule(&mut self, at: u64, cvm: u32, kind: Kind) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, cvm, kind)));
    }

    fn arrive(&mut self, cvm: u32, tasks: std::ops::Range<u32>) {
        match self.rule {
            Rule::Fixed | Rule::Sampled { .. } => self.guests[cvm as usize].queue.extend(tasks),
            Rule::OnDemand { delay, .. } => {
                self.guests[cvm as usize].queue.extend(tasks);
                self.add_on_demand(cvm, delay);
            }
            Rule::PerBurst { boot } => {
                let vcpus = (tasks.len() as u32).min(self.max);
                let fresh = self.spare.pop().unwrap_or_else(|| {
                    self.guests.push(Guest::default());
                    self.guests.len() as u32 - 1
                });
                self.guests[fresh as usize].queue.extend(tasks);
                self.guests[fresh as usize].coming = vcpus;
                // Its CPUs are set aside while it boots.
                self.vcpus += vcpus;
                self.recorder.decisions += 1;
                self.schedule(self.now + boot, fresh, Kind::Added(vcpus));
                return;
            }
        }
        self.start(cvm);
    }

    fn add_on_demand(&mut self, cvm: u32, delay: u64) {
        let guest = &mut self.guests[cvm as usize];
        let wanted = guest.demand().min(self.max).saturating_sub(guest.vcpus + guest.coming);
        if wanted > 0 {
            guest.coming += wanted;
            self.recorder.decisions += 1;
            self.schedule(self.now + delay, cvm, Kind::Added(wanted));
        }
    }

    /// Sets the CVM's vCPUs to its demand now.
    fn sample(&mut self, cvm: u32) {
        let wanted = self.guests[cvm as usize].demand().clamp(1, self.max);
        let before = self.guests[cvm as usize].vcpus;
        self.recorder.decisions += 1;
        self.recorder.wakes += u64::from(wanted.saturating_sub(before));
        if wanted != before {
            self.resize(cvm, wanted);
        }
        if let Rule::Sampled { interval } = self.rule {
            self.schedule(self.now + interval, cvm, Kind::Sample);
        }
    }

    /// Unplugs vCPUs that were not all used for long enough.
    fn trim(&mut self, cvm: u32) {
        let Rule::OnDemand { keep, .. } = self.rule else { return };
        let now = self.now;
        let guest = &mut self.guests[cvm as usize];
        if guest.running == guest.vcpus {
            guest.full_at = now;
        }
        let due = guest.full_at + keep;
        if due > now {
            self.schedule(due, cvm, Kind::Trim);
            return;
        }
        guest.trim_scheduled = false;
        let vcpus = guest.running.max(1);
        self.resize(cvm, vcpus);
    }

    fn resize(&mut self, cvm: u32, vcpus: u32) {
        let guest = &mut self.guests[cvm as usize];
        let booted = matches!(self.rule, Rule::PerBurst { .. });
        if !booted {
            self.vcpus = self.vcpus - guest.vcpus + vcpus;
        }
        guest.vcpus = vcpus;
        self.recorder.example_level(cvm, self.now, f64::from(vcpus));
        self.start(cvm);
    }

    /// Starts tasks on free vCPUs.
    fn start(&mut self, cvm: u32) {
        let guest = &mut self.guests[cvm as usize];
        while guest.running < guest.vcpus
            && let Some(task) = guest.queue.pop_front()
        {
            guest.running += 1;
            self.running += 1;
            self.sequence += 1;
            let work = self.done + self.workload.arrivals[task as usize].service as f64;
            // Floats that are not negative have the order of their bits.
            self.finishes.push(Reverse((work.to_bits(), self.sequence, task, cvm)));
        }
    }

    fn finish(&mut self, task: u32, cvm: u32) {
        self.recorder.task_done(task, self.now);
        self.running -= 1;
        let guest = &mut self.guests[cvm as usize];
        guest.running -= 1;
        let idle = guest.queue.is_empty() && guest.running == 0;
        match self.rule {
            Rule::OnDemand { keep, .. } if guest.queue.is_empty() => {
                if guest.running + 1 == guest.vcpus {
                    guest.full_at = self.now;
                }
                if guest.vcpus > 1 && !std::mem::replace(&mut guest.trim_scheduled, true) {
                    self.schedule(self.now + keep, cvm, Kind::Trim);
                }
            }
            Rule::PerBurst { .. } if idle => {
                self.vcpus -= guest.vcpus;
                guest.vcpus = 0;
                self.spare.push(cvm);
            }
            _ => self.start(cvm),
        }
    }
}
