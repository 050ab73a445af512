//! First touch: one store on each 4 KiB page of memory nobody has used, in a fresh CVM and in this process on huge pages.
//!
//! The baseline is a plain loop over an anonymous mapping that is advised to be on huge pages, as fast as a process can
//! be; wasmtime's own memories in a process are on small pages and shown beside it.

use super::arm;
use crate::host::{HostEngine, HostProgram, binary_form};
use crate::programs::{container, touch};
use crate::report::{Row, Target, Unit};
use crate::{BenchError, Progress, cvm, machine};
use memmap2::{Advice, MmapMut};
use std::hint::black_box;
use std::time::Instant;

const TARGET: Target = Target::Ratio(2.0);
const MIB: u64 = 1 << 20;
const PAGE_BYTES: usize = 4 << 10;
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// What the program leaves out at the start of its memory.
const UNTOUCHED_BYTES: u64 = 64 << 10;
const BYTES: u64 = 512 * MIB;
const CVM_BYTES: u64 = 1 << 30;
const LARGE_BYTES: u64 = 8 << 30;
const LARGE_CVM_BYTES: u64 = 10 << 30;
/// Memory that must be free for the large one, beside the CVM's own.
const SPARE_BYTES: u64 = 1 << 30;

/// The program for one size of memory.
struct Touch {
    bytes: u64,
    cvm_bytes: u64,
    host: HostProgram,
    code: Vec<u8>,
}

impl Touch {
    fn new(bytes: u64, cvm_bytes: u64) -> Result<Self, BenchError> {
        let source = touch(bytes);
        let host = HostEngine::same()?.load(source.as_bytes())?;
        let code = container(&binary_form(source.as_bytes())?, &host.code()?, bytes)?;
        Ok(Self { bytes, cvm_bytes, host, code })
    }

    /// In a CVM whose memory nobody has touched.
    fn in_cvm(&self) -> Result<f64, BenchError> {
        let cvm = cvm::launch(self.cvm_bytes, false)?;
        self.per_mib(&cvm::run(&cvm, &self.code, vec!["touch".into()])?.output)
    }

    /// In this process's engine.
    fn in_engine(&self) -> Result<f64, BenchError> {
        self.per_mib(&self.host.run(vec!["touch".into()])?.output)
    }

    /// Nanoseconds per MiB from what the program printed.
    fn per_mib(&self, output: &[u8]) -> Result<f64, BenchError> {
        let words: Vec<u64> = output.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        match words[..] {
            [begin, end] if end > begin => {
                Ok((end - begin) as f64 * MIB as f64 / (self.bytes - UNTOUCHED_BYTES) as f64)
            }
            _ => Err(BenchError::program("touch", "tells no time")),
        }
    }
}

pub(super) fn measure(rounds: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let touch = Touch::new(BYTES, CVM_BYTES)?;
    let [mut cvm, mut huge, mut engine] = <[Vec<f64>; 3]>::default();
    for _ in 0..rounds {
        progress.step("first touch: 512 MiB");
        cvm.push(touch.in_cvm()?);
        huge.push(plain_loop(BYTES)?);
        engine.push(touch.in_engine()?);
    }
    let unit = Unit::NanosecondsPerMib;
    let rows = [
        Row::new("first touch: 512 MiB", arm::CVM, unit, &cvm)
            .map(|row| row.against(arm::HOST_HUGE, &cvm, &huge).target(TARGET)),
        Row::new("first touch: 512 MiB", arm::HOST_SAME, unit, &engine)
            .map(|row| row.against(arm::HOST_HUGE, &engine, &huge)),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// The same with a 64-bit memory of 8 GiB, where this machine has as much to spare.
pub(super) fn measure_large(
    rounds: usize,
    progress: &dyn Progress,
    skipped: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    let available = machine::available_bytes();
    if available < LARGE_CVM_BYTES + SPARE_BYTES {
        skipped.push(format!(
            "first touch of 8 GiB: only {:.1} GiB of memory is free",
            available as f64 / f64::from(1 << 30)
        ));
        return Ok(Vec::new());
    }
    let touch = Touch::new(LARGE_BYTES, LARGE_CVM_BYTES)?;
    let (mut cvm, mut huge) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        progress.step("first touch: 8 GiB");
        cvm.push(touch.in_cvm()?);
        huge.push(plain_loop(LARGE_BYTES)?);
    }
    let row = Row::new("first touch: 8 GiB, 64-bit memory", arm::CVM, Unit::NanosecondsPerMib, &cvm);
    Ok(row.map(|row| row.against(arm::HOST_HUGE, &cvm, &huge).target(TARGET)).into_iter().collect())
}

/// Nanoseconds per MiB of a plain loop over `bytes` bytes on huge pages.
fn plain_loop(bytes: u64) -> Result<f64, BenchError> {
    let refused = "memory for the baseline";
    let len = usize::try_from(bytes)
        .map_err(|error| BenchError::System { what: refused, error: std::io::Error::other(error) })?;
    let mut map = MmapMut::map_anon(len + HUGE_PAGE_BYTES).map_err(BenchError::system(refused))?;
    let lead = map.as_ptr().align_offset(HUGE_PAGE_BYTES);
    // A kernel without huge pages refuses; then the baseline has none either.
    let _ = map.advise_range(Advice::HugePage, lead, len);
    let memory = map.get_mut(lead..lead + len).unwrap_or_default();
    let begin = Instant::now();
    for page in memory.chunks_mut(PAGE_BYTES) {
        if let Some(word) = page.first_chunk_mut::<8>() {
            *word = 1u64.to_le_bytes();
        }
    }
    black_box(memory);
    Ok(begin.elapsed().as_nanos() as f64 * MIB as f64 / bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_and_the_loop_tell_their_time() {
        let touch = Touch::new(4 * MIB, 64 * MIB).unwrap();
        assert!(touch.in_engine().unwrap() > 0.0);
        assert!(plain_loop(4 * MIB).unwrap() > 0.0);
    }
}
