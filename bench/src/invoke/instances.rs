//! Instances: making one and calling its empty export, warm, in the guest and in this process.

use super::arm;
use crate::host::{HostEngine, binary_form};
use crate::programs::{EMPTY, container};
use crate::report::{Row, Target, Unit};
use crate::summary::Summary;
use crate::{BenchError, Progress, cvm};

const TARGET: Target = Target::Value(10e3);
/// Instances of each batch that are not counted: they warm caches and allocators up.
const WARM_UP: usize = 100;
const MEMORY_BYTES: u64 = 256 << 20;

pub(super) fn measure(batches: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let program = HostEngine::same()?.load(EMPTY.as_bytes())?;
    let code = container(&binary_form(EMPTY.as_bytes())?, &program.code()?, 0)?;
    let cvm = cvm::launch(MEMORY_BYTES, true)?;
    let (mut guest, mut guest_medians, mut host_medians) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..batches {
        progress.step("instances");
        let inside = cvm::instances(&cvm, &code)?;
        let beside = program.instances(inside.len())?;
        let (inside, beside) =
            (inside.get(WARM_UP..).unwrap_or_default(), beside.get(WARM_UP..).unwrap_or_default());
        guest_medians.extend(Summary::of(inside).map(|summary| summary.median));
        host_medians.extend(Summary::of(beside).map(|summary| summary.median));
        guest.extend_from_slice(inside);
    }
    let row = Row::new("instance and empty call, warm", arm::GUEST, Unit::Nanoseconds, &guest);
    Ok(row
        .map(|row| row.against(arm::HOST_SAME, &guest_medians, &host_medians).target(TARGET))
        .into_iter()
        .collect())
}
