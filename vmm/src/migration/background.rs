//! [`Background`]: threads of a migration that give way while the tenant's tasks run at the source. The tenant, and everybody else on the
//! host, has the first claim on its CPUs until the tasks are parked; from then on whoever moves bytes is everybody's equal, because somebody
//! waits for each of them.
//!
//! They give way by their nice value, which the kernel lets everybody raise, but lower again only with `CAP_SYS_NICE` or a high enough
//! `RLIMIT_NICE` (setpriority(2), getrlimit(2)). Without that no thread gives way: it could not be hurried when it has to.

use rustix::process::{Pid, getpriority_process, setpriority_process};
use rustix::thread::gettid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The nice value of a thread that gives way: the kernel's highest.
const GIVES_WAY: i32 = 19;
/// A thread that moves fewer bytes a second, because others have the CPUs, is their equal every other time: a tenant has to be able to leave a host whose CPUs
/// are never idle. Two lanes at that rate fill a link of 1 Gbit/s, for which both ends need a tenth of a CPU (reckoned from what sealing, sending and opening take).
const LEAST_RATE: u64 = 64 << 20;
/// How often a thread looks whether it gets to that.
const LOOK: Duration = Duration::from_millis(100);

/// The threads that give way.
#[derive(Debug)]
pub(super) struct Background {
    /// Nobody gives way any more.
    over: AtomicBool,
    /// Held for moments, and never while a thread gives way: it might get no CPU to let go of it.
    members: Mutex<Vec<Pid>>,
    /// The nice value of an equal.
    normal: i32,
}

impl Background {
    pub(super) fn new() -> Background {
        let normal = getpriority_process(None).unwrap_or(0);
        Background { over: AtomicBool::new(!may_return()), members: Mutex::default(), normal }
    }

    fn members(&self) -> MutexGuard<'_, Vec<Pid>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this thread gives way.
    pub(super) fn join(&self) -> Member<'_> {
        let thread = gettid();
        self.members().push(thread);
        let member = Member { background: self, thread, look: Look::now() };
        member.give_way(true);
        member
    }

    /// Nobody gives way any more, from now on.
    pub(super) fn end(&self) {
        if !self.over.swap(true, Ordering::SeqCst) {
            self.members().iter().for_each(|thread| set_nice(*thread, self.normal));
        }
    }
}

/// A thread that moves bytes in the background, for as long as it is one.
#[derive(Debug)]
pub(super) struct Member<'b> {
    background: &'b Background,
    thread: Pid,
    look: Look,
}

impl Member<'_> {
    /// It moved bytes. Who moved too few because others had the CPUs is an equal until the next look.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.look.bytes += bytes as u64;
        let elapsed = self.look.began.elapsed();
        if elapsed >= LOOK {
            self.looked(elapsed, Look::now());
        }
    }

    fn looked(&mut self, elapsed: Duration, now: Look) {
        let waited = now.waited.saturating_sub(self.look.waited);
        self.give_way(!is_starved(self.look.bytes, elapsed, waited));
        self.look = now;
    }

    fn give_way(&self, does: bool) {
        let Background { over, normal, .. } = self.background;
        if does && !over.load(Ordering::SeqCst) {
            set_nice(self.thread, GIVES_WAY);
            // Whoever ends it changes priorities after `over`: either it is seen here, or that comes later.
            if !over.load(Ordering::SeqCst) {
                return;
            }
        }
        set_nice(self.thread, *normal);
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.give_way(false);
        self.background.members().retain(|thread| *thread != self.thread);
    }
}

/// What a thread had done when it last looked.
#[derive(Debug)]
struct Look {
    began: Instant,
    bytes: u64,
    /// For how long it had waited for a CPU in its life.
    waited: Duration,
}

impl Look {
    fn now() -> Look {
        Look { began: Instant::now(), bytes: 0, waited: waited_for_cpu() }
    }
}

/// Whether a thread moved less than it should, and waited for a CPU for most of the time, not for the network or the guest.
fn is_starved(bytes: u64, elapsed: Duration, waited: Duration) -> bool {
    waited > elapsed / 2 && (bytes as f64) < LEAST_RATE as f64 * elapsed.as_secs_f64()
}

/// For how long this thread was ready and had no CPU: the second number of its `schedstat` (the kernel's sched-stats.rst). Zero if the kernel
/// does not count it.
fn waited_for_cpu() -> Duration {
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = counts.split_whitespace().nth(1).and_then(|waited| waited.parse().ok());
    Duration::from_nanos(waited.unwrap_or(0))
}

/// What the kernel refuses costs speed, and nothing else.
fn set_nice(thread: Pid, nice: i32) {
    if let Err(error) = setpriority_process(Some(thread), nice) {
        tracing::debug!(%error, nice, "a thread's priority is as it was");
    }
}

/// Whether a thread that gave way may be an equal again: tried once, by one that has nothing else to do.
fn may_return() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    let attempt = || {
        let normal = getpriority_process(None)?;
        setpriority_process(Some(gettid()), GIVES_WAY)?;
        setpriority_process(Some(gettid()), normal)
    };
    *MAY.get_or_init(|| {
        let tried = std::thread::Builder::new().name("may-lower-nice".into()).spawn(attempt);
        let may = tried.is_ok_and(|thread| thread.join().is_ok_and(|tried| tried.is_ok()));
        if !may {
            tracing::info!(
                "migrations share the CPUs equally with what runs: only with CAP_SYS_NICE or LimitNICE=0 (RLIMIT_NICE of 20) can they give way"
            );
        }
        may
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn nice_of(thread: Pid) -> i32 {
        getpriority_process(Some(thread)).unwrap()
    }

    #[test]
    fn threads_give_way_until_the_end_and_others_never() {
        if !may_return() {
            eprintln!("SKIPPED: this process may not lower nice values");
            return;
        }
        let (background, own) = (Background::new(), nice_of(gettid()));
        let (tell, told) = channel();
        let (go, wait) = channel::<()>();
        std::thread::scope(|scope| {
            let background = &background;
            scope.spawn(move || {
                for _ in 0..2 {
                    let member = background.join();
                    tell.send(member.thread).unwrap();
                    wait.recv().unwrap();
                    drop(member);
                    tell.send(gettid()).unwrap();
                    wait.recv().unwrap();
                }
            });
            // A panic here drops it, which ends the other thread.
            let go = go;
            let (next, step) = (|| told.recv().unwrap(), || go.send(()).unwrap());
            let thread = next();
            assert_eq!((nice_of(thread), nice_of(gettid())), (GIVES_WAY, own));
            step();
            assert_eq!(nice_of(next()), own, "it is no member any more");
            assert!(background.members().is_empty());
            step();
            assert_eq!(nice_of(next()), GIVES_WAY);
            background.end();
            assert_eq!(nice_of(thread), own);
            (0..2).for_each(|_| step());
        });
        let late = background.join();
        assert_eq!(nice_of(late.thread), own, "it is over");
    }

    #[test]
    fn who_is_starved_is_an_equal_for_a_while() {
        if !may_return() {
            eprintln!("SKIPPED: this process may not lower nice values");
            return;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let background = Background::new();
                let mut member = background.join();
                let mut looks = |bytes: u64, waited: Duration| {
                    member.look = Look { began: Instant::now(), bytes, waited: Duration::ZERO };
                    member.looked(LOOK, Look { waited, ..Look::now() });
                    nice_of(member.thread)
                };
                let normal = background.normal;
                assert_eq!(looks(1, LOOK * 3 / 4), normal, "it is starved");
                assert_eq!(looks(LEAST_RATE, LOOK * 3 / 4), GIVES_WAY, "it moved enough");
                assert_eq!(looks(1, LOOK * 3 / 4), normal);
                assert_eq!(looks(1, LOOK / 4), GIVES_WAY, "it waited for others than CPUs");
            });
        });
        assert!(is_starved(LEAST_RATE / 20, LOOK, LOOK * 3 / 4));
        assert!(!is_starved(LEAST_RATE / 5, LOOK, LOOK * 3 / 4), "it moves enough");
        assert!(!is_starved(0, LOOK, LOOK / 4), "others than CPUs are slow");
    }

    #[test]
    fn the_kernel_counts_how_long_a_thread_waited() {
        let counts = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        assert_eq!(counts.split_whitespace().count(), 3, "{counts}");
    }
}
