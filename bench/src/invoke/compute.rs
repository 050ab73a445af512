//! Computing: the same compiled program in a CVM and in this process, and in this process with the engine's defaults.
//!
//! The targets are for the time on the clock. Where other programs use the machine meanwhile, look at the processor time
//! of the process beside it, which holds all of the VMM's and the vCPUs' but no waiting for a processor.

use super::arm;
use crate::host::{HostEngine, HostProgram, Run, binary_form};
use crate::programs::{COMPUTE, Compute, container};
use crate::report::{Row, Target, Unit};
use crate::summary::order;
use crate::{BenchError, Progress, cvm};
use nacre_vmm::Cvm;

/// Of the CVM's time to the same engine's with the same settings.
const SAME_TARGET: Target = Target::Ratio(1.03);
/// Of the CVM's time to the same engine's with its defaults, which have no epoch checks.
const DEFAULT_TARGET: Target = Target::Ratio(1.10);
const MEMORY_BYTES: u64 = 1 << 30;

const ARMS: [&str; 3] = [arm::CVM, arm::HOST_SAME, arm::HOST_DEFAULT];

/// One program, ready to run in all arms.
struct Arms<'a> {
    cvm: &'a Cvm,
    program: Compute,
    code: Vec<u8>,
    same: HostProgram,
    default: HostProgram,
}

pub(super) fn measure(rounds: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let (same, default) = (HostEngine::same()?, HostEngine::defaults()?);
    let cvm = cvm::launch(MEMORY_BYTES, false)?;
    let mut rows = Vec::new();
    for program in COMPUTE {
        let same = same.load(program.source)?;
        let code = container(&binary_form(program.source)?, &same.code()?, 0)?;
        let arms = Arms { cvm: &cvm, program, code, same, default: default.load(program.source)? };
        rows.extend(arms.measure(rounds, progress)?);
    }
    Ok(rows)
}

impl Arms<'_> {
    fn measure(&self, rounds: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
        let name = self.program.name;
        let mut wall: [Vec<f64>; 3] = Default::default();
        let mut cpu: [Vec<f64>; 3] = Default::default();
        let mut output: Option<Vec<u8>> = None;
        for round in 0..rounds {
            progress.step(&format!("computing: {name}"));
            for arm in order(round, ARMS.len()) {
                let run = self.run(arm)?;
                wall[arm].push(run.elapsed.as_nanos() as f64);
                cpu[arm].push(run.cpu.as_nanos() as f64);
                if output.get_or_insert_with(|| run.output.clone()) != &run.output {
                    return Err(BenchError::program(name, "gives another output in another arm"));
                }
            }
        }
        let rows = [
            against(name, &wall, 0, 1).map(|row| row.target(SAME_TARGET)),
            against(name, &wall, 0, 2).map(|row| row.target(DEFAULT_TARGET)),
            against(&format!("{name}, processor time"), &cpu, 0, 1),
            against(&format!("{name}, processor time"), &cpu, 0, 2),
            // What the settings alone cost, without a CVM: epoch checks and the portable target.
            against(&format!("{name}, processor time"), &cpu, 1, 2),
        ];
        Ok(rows.into_iter().flatten().collect())
    }

    fn run(&self, arm: usize) -> Result<Run, BenchError> {
        let argv = self.program.argv();
        match arm {
            0 => cvm::run(self.cvm, &self.code, argv),
            1 => self.same.run(argv),
            _ => self.default.run(argv),
        }
    }
}

/// One arm's samples against those of another one.
fn against(name: &str, samples: &[Vec<f64>; 3], arm: usize, baseline: usize) -> Option<Row> {
    let row = Row::new(format!("compute: {name}"), ARMS[arm], Unit::Nanoseconds, &samples[arm]);
    row.map(|row| row.against(ARMS[baseline], &samples[arm], &samples[baseline]))
}
