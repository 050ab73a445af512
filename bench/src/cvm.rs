//! The arm that is measured: programs in a CVM of this process.

use crate::BenchError;
use crate::host::Run;
use crate::machine::Timer;
use nacre_abi::message::{Header, Kind, SelfTest};
use nacre_vmm::program::{Exit, Program, ProgramEvent, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};

/// A fresh CVM with one worker.
///
/// # Errors
/// If there is none.
pub fn launch(memory_bytes: u64, debug_image: bool) -> Result<Cvm, BenchError> {
    Ok(Cvm::launch(CvmConfig { workers: 1, memory_bytes, debug_image, ..CvmConfig::default() })?)
}

/// Runs a program; its time goes from the message that starts it to the one that tells its end. Loading the code is
/// not part of it, and neither is giving its memory back.
///
/// # Errors
/// If it ends otherwise than with exit code 0 and nothing on standard error.
pub fn run(cvm: &Cvm, code: &[u8], argv: Vec<String>) -> Result<Run, BenchError> {
    let name = argv.first().cloned().unwrap_or_default();
    let program = cvm.load(&ProgramSpec { code, args: argv, ..ProgramSpec::default() })?;
    settle(cvm)?;
    let timer = Timer::start();
    let (exit, output, errors) = program.run_to_end()?;
    let (elapsed, cpu) = timer.stop();
    drop(program);
    settle(cvm)?;
    match exit {
        Exit::Code(0) if errors.is_empty() => Ok(Run { elapsed, cpu, output }),
        Exit::Code(0) => Err(BenchError::program(&name, "wrote to standard error")),
        other => Err(BenchError::program(&name, format!("ended with {other:?}"))),
    }
}

/// Waits until the guest has dealt with everything it was sent.
fn settle(cvm: &Cvm) -> Result<(), BenchError> {
    cvm.stats()?;
    Ok(())
}

/// Time that making an instance, calling its empty `_start` and dropping it takes inside a CVM of the debug image, by
/// the guest's own clock, in nanoseconds.
///
/// # Errors
/// If the guest does not answer with numbers.
pub fn instances(cvm: &Cvm, code: &[u8]) -> Result<Vec<f64>, BenchError> {
    let program = cvm.load(&ProgramSpec { code, args: vec!["empty".into()], ..ProgramSpec::default() })?;
    measurement(cvm, &program, SelfTest::Instances, &[])
}

/// What a guest of the debug image measures of itself that needs no program. `gaps` are nanoseconds.
///
/// # Errors
/// If the guest does not answer with numbers.
pub fn self_test(cvm: &Cvm, which: SelfTest, gaps: &[u32]) -> Result<Vec<f64>, BenchError> {
    // Answers come to a program; this one is never started.
    let program = cvm.load(&ProgramSpec::default())?;
    let body: Vec<u8> = gaps.iter().flat_map(|gap| gap.to_le_bytes()).collect();
    measurement(cvm, &program, which, &body)
}

fn measurement(
    cvm: &Cvm,
    program: &Program<'_>,
    which: SelfTest,
    body: &[u8],
) -> Result<Vec<f64>, BenchError> {
    cvm.send(Header::new(Kind::SelfTest, program.id.0).arg(which as u64), body)?;
    loop {
        if let ProgramEvent::Message(Header { kind: Kind::SelfTest, .. }, body) = program.next_event()? {
            return numbers(&body)
                .ok_or_else(|| BenchError::program("the guest's self-test", "gave no numbers"));
        }
    }
}

/// Numbers separated by spaces.
fn numbers(text: &[u8]) -> Option<Vec<f64>> {
    let words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let numbers: Option<Vec<f64>> =
        words.map(|word| word.parse::<u64>().ok().map(|number| number as f64)).collect();
    numbers.filter(|numbers| !numbers.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_and_some() {
        assert_eq!(numbers(b"1 20 3 "), Some(vec![1.0, 20.0, 3.0]));
        assert_eq!((numbers(b"failed"), numbers(b""), numbers(b"1 nan")), (None, None, None));
    }
}
