//! The wasmtime settings both sides share. A setting belongs here when a module compiled with one value can not be
//! loaded, or would misbehave, under another; see wasmtime's `Tunables` and the check it makes when it deserialises.
//!
//! Nothing is left to wasmtime's defaults: these depend on the cargo features of the build (`component-model-async`,
//! `gc-copying`, `threads`), which differ between the guest, the CLI and the benchmarks.

use core::fmt::{self, Write};

use sha2::{Digest, Sha256};
use wasmparser::WasmFeatures;
use wasmtime::{Collector, Config, Inlining, WasmBacktraceDetails};

/// The wasmtime version on both sides; precompiled code of any other version is refused.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// Address space reserved for each linear memory, in bytes: all a 32-bit memory can address, so that such a memory
/// never moves and needs no explicit bounds checks.
pub const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Unmapped address space after each linear memory, in bytes: offsets below it need no check of their own.
pub const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// Address space reserved beyond its size when a 64-bit memory moves as it grows, in bytes.
pub const MEMORY_GROWTH_RESERVATION_BYTES: u64 = 2 << 30;

/// Stack one call into Wasm may use, in bytes: wasmtime's own default, so that programs that recurse deeply behave as
/// under that engine. A fiber's stack must be larger by what host functions need.
pub const MAX_WASM_STACK_BYTES: usize = 512 << 10;

/// Counts changes of code generation that no value below shows, such as a compiler flag of `compiler`.
const CODE_REVISION: u32 = 4;

/// The Wasm proposals programs may use. Everything else is refused at compile time, by name.
#[must_use]
pub const fn wasm_features() -> WasmFeatures {
    // Wasm 2.0, which holds SIMD, bulk memory and reference types, then what is beyond it. `GC_TYPES` is wasmparser's
    // name for "externref and exnref exist", not for the GC proposal, which stays off.
    WasmFeatures::WASM2
        .union(WasmFeatures::GC_TYPES)
        .union(WasmFeatures::EXCEPTIONS)
        .union(WasmFeatures::TAIL_CALL)
        .union(WasmFeatures::MULTI_MEMORY)
        .union(WasmFeatures::MEMORY64)
        .union(WasmFeatures::EXTENDED_CONST)
        .union(WasmFeatures::RELAXED_SIMD)
}

/// Applies every setting on which the compiling host and the guest must agree.
///
/// The guest adds what only a runtime has: its own code memory and `detect_host_feature`, which may answer yes to
/// everything once [`crate::Header::check_compatible`] has passed.
pub fn configure(config: &mut Config) {
    config
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(wasm_features(), true)
        // Deterministic relaxed SIMD would cost speed and buy nothing: the CPU features are part of the .cwasm.
        .relaxed_simd_deterministic(false)
        .concurrency_support(false)
        .shared_memory(false)
        .collector(Collector::DeferredReferenceCounting);
    config
        .epoch_interruption(true)
        .consume_fuel(false)
        .signals_based_traps(true)
        .memory_reservation(MEMORY_RESERVATION_BYTES)
        .memory_guard_size(MEMORY_GUARD_BYTES)
        .memory_reservation_for_growth(MEMORY_GROWTH_RESERVATION_BYTES)
        .memory_may_move(true)
        .guard_before_linear_memory(false)
        .memory_init_cow(true)
        .table_lazy_init(true)
        .max_wasm_stack(MAX_WASM_STACK_BYTES);
    config
        // Backtraces name functions from the Wasm name section; DWARF and ELF symbols would only make files larger.
        // `Environment`, the default, would let a variable of the host decide.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .debug_info(false)
        .debug_symbols(false)
        .generate_address_map(true)
        .native_unwind_info(false)
        .compiler_inlining(Inlining::No);
}

/// SHA-256 over everything that must be equal on both sides for a `.cwasm` to be loaded.
#[must_use]
pub fn fingerprint() -> [u8; 32] {
    let mut hasher = HashWriter(Sha256::new());
    // Writing into a hash can not fail.
    let _ = write!(
        hasher,
        "wasmtime={WASMTIME_VERSION};revision={CODE_REVISION};features={:#x};reservation={MEMORY_RESERVATION_BYTES};\
         guard={MEMORY_GUARD_BYTES};collector=drc;epoch;signals;cow;lazy-tables;may-move",
        wasm_features().bits()
    );
    hasher.0.finalize().into()
}

/// Lets `write!` feed a hash.
struct HashWriter(Sha256);

impl Write for HashWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_one_cargo_builds_with() {
        let manifest = include_str!("../Cargo.toml");
        assert!(manifest.contains(&std::format!("version = \"={WASMTIME_VERSION}\"")));
    }

    #[test]
    fn what_the_design_excludes_is_off() {
        for off in [
            WasmFeatures::THREADS,
            WasmFeatures::GC,
            WasmFeatures::FUNCTION_REFERENCES,
            WasmFeatures::COMPONENT_MODEL,
            WasmFeatures::STACK_SWITCHING,
            WasmFeatures::LEGACY_EXCEPTIONS,
            WasmFeatures::CUSTOM_PAGE_SIZES,
        ] {
            assert!(!wasm_features().intersects(off), "{off:?}");
        }
    }

    #[test]
    fn fingerprint_is_stable_within_a_build() {
        assert_eq!(fingerprint(), fingerprint());
        assert_ne!(fingerprint(), [0; 32]);
    }
}
