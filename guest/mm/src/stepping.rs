//! Tests only: atomics that may stop their thread before any access, as a host may stop a vCPU at any instruction.
//!
//! Between two accesses to shared words a thread changes nothing that others see, so stopping before each access covers
//! stopping at any instruction.

use std::cell::RefCell;
use std::sync::atomic::{self, Ordering};
use std::sync::{Arc, Condvar, Mutex};

thread_local! {
    static GATE: RefCell<Option<Arc<Gate>>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct State {
    /// Accesses that the thread may still make.
    budget: u64,
    /// Accesses that it has made.
    made: u64,
    /// It waits, with no budget left.
    stopped: bool,
    done: bool,
}

/// Controls one thread.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// Runs `work` on a thread of its own, which stops before its first access.
    pub fn run(work: impl FnOnce() + Send + 'static) -> (Arc<Gate>, std::thread::JoinHandle<()>) {
        let gate = Arc::new(Gate::default());
        let inner = gate.clone();
        let thread = std::thread::spawn(move || {
            struct Done(Arc<Gate>);
            impl Drop for Done {
                fn drop(&mut self) {
                    self.0.state.lock().unwrap().done = true;
                    self.0.changed.notify_all();
                }
            }
            let _done = Done(inner.clone());
            GATE.set(Some(inner));
            work();
            GATE.set(None);
        });
        (gate, thread)
    }

    /// Lets the thread make `count` more accesses; returns once it stops before the next one (true) or has ended.
    pub fn step(&self, count: u64) -> bool {
        let mut state = self.state.lock().unwrap();
        state.budget += count;
        state.stopped = false;
        self.changed.notify_all();
        while !state.stopped && !state.done {
            state = self.changed.wait(state).unwrap();
        }
        !state.done
    }

    /// Accesses that the thread has made.
    pub fn made(&self) -> u64 {
        self.state.lock().unwrap().made
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        while state.budget == 0 {
            state.stopped = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
        }
        state.budget -= 1;
        state.made += 1;
    }
}

fn step() {
    let gate = GATE.with_borrow(|gate| gate.clone());
    if let Some(gate) = gate {
        gate.pass();
    }
}

/// As `core`'s.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct AtomicU64(atomic::AtomicU64);

macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(pub fn $name(&self, $($argument: $type),*) -> $result {
            step();
            self.0.$name($($argument),*)
        })*
    };
}

impl AtomicU64 {
    pub const fn new(value: u64) -> AtomicU64 {
        AtomicU64(atomic::AtomicU64::new(value))
    }

    forward! {
        load(order: Ordering) -> u64;
        store(value: u64, order: Ordering) -> ();
        swap(value: u64, order: Ordering) -> u64;
        fetch_and(value: u64, order: Ordering) -> u64;
        fetch_or(value: u64, order: Ordering) -> u64;
        fetch_add(value: u64, order: Ordering) -> u64;
        fetch_sub(value: u64, order: Ordering) -> u64;
        fetch_min(value: u64, order: Ordering) -> u64;
        fetch_max(value: u64, order: Ordering) -> u64;
        compare_exchange(old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
    }
}
