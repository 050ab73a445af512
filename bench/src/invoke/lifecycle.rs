//! The life of a CVM: launch, run an empty program, drop, again and again; nothing may be left behind.

use super::arm;
use crate::host::{HostEngine, binary_form};
use crate::programs::{EMPTY, container};
use crate::report::{Row, Target, Unit};
use crate::{BenchError, Progress, cvm, machine};
use std::time::Instant;

/// Lives before the first count: allocators and the kernel's caches fill.
const WARM_UP: usize = 5;
const MEMORY_BYTES: u64 = 256 << 20;
/// What allocators may keep; a CVM that leaked its window alone would take more.
const RESIDENT_TARGET: Target = Target::Value((4 << 20) as f64);
const NONE: Target = Target::Value(0.0);

/// What this process holds.
struct Held {
    descriptors: u64,
    threads: u64,
    resident_bytes: u64,
}

impl Held {
    fn now() -> Self {
        Self {
            descriptors: machine::descriptors(),
            threads: machine::threads(),
            resident_bytes: machine::resident_bytes(),
        }
    }
}

pub(super) fn measure(lives: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let compiled = HostEngine::same()?.load(EMPTY.as_bytes())?.code()?;
    let code = container(&binary_form(EMPTY.as_bytes())?, &compiled, 0)?;
    for _ in 0..WARM_UP {
        live(&code)?;
    }
    let before = Held::now();
    let mut samples = Vec::with_capacity(lives);
    for _ in 0..lives {
        progress.step("lives of a CVM");
        samples.push(live(&code)?);
    }
    let mut after = Held::now();
    // The kernel lets a thread be joined a moment before it stops counting it.
    for _ in 0..1000 {
        if after.threads <= before.threads {
            break;
        }
        std::thread::yield_now();
        after = Held::now();
    }
    let growth = |name: &str, unit, before: u64, after: u64, target| {
        let name = format!("life: {name} left after {lives}");
        Row::new(name, arm::CVM, unit, &[after as f64 - before as f64]).map(|row| row.target(target))
    };
    let rows = [
        Row::new("life: launch, empty program, drop", arm::CVM, Unit::Nanoseconds, &samples),
        growth("descriptors", Unit::Count, before.descriptors, after.descriptors, NONE),
        growth("threads", Unit::Count, before.threads, after.threads, NONE),
        growth("resident memory", Unit::Bytes, before.resident_bytes, after.resident_bytes, RESIDENT_TARGET),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// One life, in nanoseconds.
fn live(code: &[u8]) -> Result<f64, BenchError> {
    let begin = Instant::now();
    let cvm = cvm::launch(MEMORY_BYTES, false)?;
    cvm::run(&cvm, code, vec!["empty".into()])?;
    drop(cvm);
    Ok(begin.elapsed().as_nanos() as f64)
}
