//! What the processor can do, and random numbers from it.

use crate::agent::agent_static;
use crate::console::fatal;
use core::arch::x86_64::{__cpuid_count, _rdrand64_step, _xgetbv, CpuidResult};
use core::sync::atomic::{AtomicU64, Ordering};
use nacre_abi::hypercall::ExitReason;
use nacre_engine::{CpuFeatures, CpuidLeaves};

agent_static! {
    /// What [`features`] has found, [`UNKNOWN`] before.
    static FEATURES: AtomicU64 = AtomicU64::new(UNKNOWN);
}

/// No set of features has all bits.
const UNKNOWN: u64 = u64::MAX;
const _: () = assert!(CpuFeatures::from_bits(UNKNOWN).is_none());

/// The features of this processor. CPUID may trap to the host (8 us a leaf), so it is asked once.
pub fn features() -> CpuFeatures {
    CpuFeatures::from_bits(FEATURES.load(Ordering::Relaxed)).unwrap_or_else(|| {
        let features = CpuFeatures::from_cpuid(&leaves());
        FEATURES.store(features.bits(), Ordering::Relaxed);
        features
    })
}

/// The extended state this guest saves and may use: x87, SSE, AVX, AVX-512. `xgetbv` may show more than the launcher set.
const XCR0_MASK: u64 = 0xe7;

fn leaves() -> CpuidLeaves {
    const NONE: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    let leaf7 = if __cpuid_count(0, 0).eax >= 7 { __cpuid_count(7, 0) } else { NONE };
    let (leaf1, ext1) = (__cpuid_count(1, 0), __cpuid_count(0x8000_0001, 0));
    let leaf7_1 = if leaf7.eax >= 1 { __cpuid_count(7, 1).eax } else { 0 };
    let osxsave = leaf1.ecx & 1 << 27 != 0;
    // SAFETY: OSXSAVE says that xgetbv exists.
    let xcr0 = if osxsave { unsafe { xcr0() } } else { 0 };
    CpuidLeaves {
        leaf1_ecx: leaf1.ecx,
        leaf7_ebx: leaf7.ebx,
        leaf7_ecx: leaf7.ecx,
        leaf7_1_eax: leaf7_1,
        ext1_ecx: ext1.ecx,
        xcr0: xcr0 & XCR0_MASK,
    }
}

/// # Safety
/// The processor must have `xgetbv` enabled.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { _xgetbv(0) }
}

/// Fills `buffer` with random bytes; ends the CVM if the generator fails.
pub fn fill_random(buffer: &mut [u8]) {
    for chunk in buffer.chunks_mut(8) {
        let Some(word) = random_word() else {
            fatal(ExitReason::Panic, format_args!("the processor's random number generator failed"));
        };
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// A random word from the processor's generator; `None` if it fails ten times, as a broken one does.
pub fn random_word() -> Option<u64> {
    // SAFETY: every processor that runs x86-64-v3 code has RDRAND.
    unsafe { rdrand() }
}

/// # Safety
/// The processor must have RDRAND.
#[target_feature(enable = "rdrand")]
unsafe fn rdrand() -> Option<u64> {
    let mut word = 0;
    (0..10).any(|_| _rdrand64_step(&mut word) == 1).then_some(word)
}
