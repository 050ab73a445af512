//! Which thread makes the next step: any of them, with some stopped for long, as a host stops vCPUs.

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

/// Random numbers that are the same everywhere (SplitMix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True `permille` times in a thousand.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Threads that can be told apart: more than a simulation has.
const THREADS: usize = 16;

/// The scheduler of one seed.
pub struct Stopper {
    rng: Rng,
    seed: Option<u64>,
    step: u64,
    /// Until which step each thread stands still.
    stopped_until: [u64; THREADS],
    /// Of a thousand steps, how many begin with stopping somebody.
    stops: u64,
    longest_stop: u64,
    /// Of a thousand steps, how many go on with the same thread.
    inertia: u64,
}

impl Stopper {
    /// The scheduler of `seed`, for one run.
    pub fn new(seed: u64) -> Stopper {
        let mut rng = Rng(seed ^ 0x7363_6865_6475_6c65);
        Stopper {
            stops: rng.pick(&[0, 2, 10, 50]),
            longest_stop: rng.pick(&[20, 200, 2_000]),
            inertia: rng.pick(&[0, 500, 900]),
            rng,
            seed: Some(seed),
            step: 0,
            stopped_until: [0; THREADS],
        }
    }
}

impl Scheduler for Stopper {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.seed.take().map(Schedule::new)
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, _: bool) -> Option<TaskId> {
        self.step += 1;
        if self.stops > 0 && self.rng.chance(self.stops) {
            let victim = usize::from(runnable[self.rng.below(runnable.len() as u64) as usize].id());
            self.stopped_until[victim % THREADS] = self.step + self.rng.below(self.longest_stop);
        }
        let runs = |task: &&&Task| self.stopped_until[usize::from(task.id()) % THREADS] <= self.step;
        let free = runnable.iter().filter(runs).count();
        if free == 0 {
            // All that could go on are stopped: the first whose time is over does.
            return runnable
                .iter()
                .min_by_key(|task| self.stopped_until[usize::from(task.id()) % THREADS])
                .map(|task| task.id());
        }
        if let Some(same) = runnable.iter().filter(runs).find(|task| Some(task.id()) == current)
            && self.rng.clone().chance(self.inertia)
        {
            let id = same.id();
            self.rng.next();
            return Some(id);
        }
        let chosen = self.rng.clone().below(free as u64) as usize;
        let id = runnable.iter().filter(runs).nth(chosen).map(|task| task.id());
        self.rng.next();
        id
    }

    fn next_u64(&mut self) -> u64 {
        self.rng.next()
    }
}
