//! The programs that are measured, and their compiled form for a CVM.

use crate::BenchError;
use nacre_engine::{CpuTarget, Header};

/// A compute-bound program with arguments that keep it busy for some hundred milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Compute {
    /// Its name, `argv[0]`.
    pub name: &'static str,
    /// Binary or text form.
    pub source: &'static [u8],
    /// Its arguments.
    pub args: &'static [&'static str],
}

impl Compute {
    /// The whole `argv`.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        std::iter::once(&self.name).chain(self.args).map(|arg| (*arg).to_owned()).collect()
    }
}

/// The compute-bound programs: C, AssemblyScript, and text.
pub const COMPUTE: [Compute; 3] = [
    Compute {
        name: "primes",
        source: include_bytes!("../../apps/primes/primes.wasm"),
        args: &["20000000", "8"],
    },
    Compute {
        name: "mandelbrot",
        source: include_bytes!("../../apps/mandelbrot/mandelbrot.wasm"),
        args: &["300", "15000"],
    },
    Compute { name: "mix", source: include_bytes!("../programs/mix.wat"), args: &[] },
];

/// The smallest command.
pub const EMPTY: &str = include_str!("../../apps/features/empty.wat");

/// A function: standard input becomes standard output.
pub const ECHO: &str = include_str!("../programs/echo.wat");

/// A function in C.
pub const ACTION: &[u8] = include_bytes!("../../apps/action/action.wasm");

/// The key-value service.
pub const KV: &[u8] = include_bytes!("../../apps/kv/kv.wasm");

/// A program that touches fresh memory of this size in bytes, more than 64 KiB. Sizes over 4 GiB make it use a 64-bit
/// memory.
#[must_use]
pub fn touch(bytes: u64) -> String {
    let index = if bytes >> 32 == 0 { "i32" } else { "i64" };
    include_str!("../programs/touch.wat")
        .replace("INDEX", index)
        .replace("PAGES", &(bytes >> 16).to_string())
        .replace("BYTES", &bytes.to_string())
}

/// A program that touches `bytes` of memory, then writes `rate` words a second spread over all of it, for ever, and prints how many it
/// has written every millisecond, as 8 bytes; with a rate of 0 as many as it can. Sizes from 4 GiB on make it use a 64-bit memory.
#[must_use]
pub fn writer(bytes: u64, rate: u64) -> String {
    let (index, narrow) =
        if bytes >> 32 == 0 { ("i32", "i32.wrap_i64") } else { ("i64", "i64.add (i64.const 0)") };
    include_str!("../programs/writer.wat")
        .replace("INDEX", index)
        .replace("NARROW", narrow)
        .replace("SPREAD", &((bytes >> 12) - 16).to_string())
        .replace("PAGES", &(bytes >> 16).to_string())
        .replace("BYTES", &bytes.to_string())
        .replace("LATE", &(rate / 20).to_string())
        .replace("SLICE", &(rate / 1000).max(1).to_string())
        .replace("RATE", &rate.to_string())
}

/// A program that starts with so many MiB of data, as an interpreter with its library does, and writes to a hundred pages of
/// its memory.
#[must_use]
pub fn large(mib: usize) -> String {
    let data: String = (0..mib * 64)
        .map(|block| {
            format!("(data (i32.const {}) \"{}\")", 65_536 + block * 16_384, "abcdefghijklmnop".repeat(1000))
        })
        .collect();
    let (pages, step) = (mib * 16 + 16, mib * 10_000);
    format!(
        r#"(module (memory (export "memory") {pages}) {data}
          (func (export "_start") (local $i i32)
            (loop $next
              (i32.store (i32.mul (local.get $i) (i32.const {step})) (i32.const 77))
              (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100))))))"#
    )
}

/// The `.cwasm` around code that [`crate::host::HostEngine::same`] made, for a CVM. `min_memory_bytes` is what the
/// program starts with.
///
/// # Errors
/// If the code is too long for a `.cwasm`.
pub fn container(source: &[u8], code: &[u8], min_memory_bytes: u64) -> Result<Vec<u8>, BenchError> {
    let header = Header::describe(source, code, CpuTarget::X86_64V3, true, min_memory_bytes)
        .map_err(|error| BenchError::program("a built-in program", error.to_string()))?;
    let mut file = header.encode().to_vec();
    file.extend_from_slice(code);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writer_is_a_module_with_either_kind_of_memory_and_any_rate() {
        for (bytes, rate) in [(256 << 20, 0), (8 << 30, 50_000)] {
            assert!(wat::parse_str(writer(bytes, rate)).unwrap().starts_with(b"\0asm"));
        }
    }

    #[test]
    fn touch_is_a_module_with_either_kind_of_memory() {
        for bytes in [512 << 20, 8 << 30] {
            let text = touch(bytes);
            assert_eq!(text.contains("i64 131072"), bytes == 8 << 30);
            assert!(wat::parse_str(&text).unwrap().starts_with(b"\0asm"));
        }
    }
}
