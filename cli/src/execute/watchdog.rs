//! `--time-limit`, as seen from outside: the guest ends a program at its limit by itself; where it can't (without workers
//! nothing interrupts a computation inside the CVM), the CVM is ended a moment later.

use nacre_vmm::Cvm;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long the guest has to end the program by itself.
const GRACE: Duration = Duration::from_secs(1);

/// Ends a CVM unless it is dropped in time.
pub struct Watchdog {
    limit: Duration,
    bitten: Arc<AtomicBool>,
    _alive: Sender<()>,
}

impl Watchdog {
    /// Begins to watch a program whose limit is `limit`, from now on.
    pub fn start(cvm: &Arc<Cvm>, limit: Duration) -> Watchdog {
        let (alive, watched) = mpsc::channel();
        let bitten = Arc::new(AtomicBool::new(false));
        let (cvm, bites): (Weak<Cvm>, _) = (Arc::downgrade(cvm), bitten.clone());
        std::thread::spawn(move || {
            if watched.recv_timeout(limit.saturating_add(GRACE)) == Err(RecvTimeoutError::Timeout)
                && let Some(cvm) = cvm.upgrade()
            {
                bites.store(true, Ordering::SeqCst);
                cvm.stop();
            }
        });
        Watchdog { limit, bitten, _alive: alive }
    }

    /// What to tell the user, if it had to end the CVM.
    pub fn bitten(&self) -> Option<String> {
        let limit = self.limit.as_secs_f64();
        let text = format!("time limit: it ran for {limit} s; allow more with --time-limit");
        self.bitten.load(Ordering::SeqCst).then_some(text)
    }
}
