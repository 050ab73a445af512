//! The CPU features of the machine this process runs on.

use std::arch::is_x86_feature_detected;

use nacre_engine::CpuFeatures;

/// The features code may use here, as the operating system allows them.
#[must_use]
pub fn features() -> CpuFeatures {
    CpuFeatures::probe(|name| match name {
        "sse3" => is_x86_feature_detected!("sse3"),
        "ssse3" => is_x86_feature_detected!("ssse3"),
        "cmpxchg16b" => is_x86_feature_detected!("cmpxchg16b"),
        "sse4.1" => is_x86_feature_detected!("sse4.1"),
        "sse4.2" => is_x86_feature_detected!("sse4.2"),
        "popcnt" => is_x86_feature_detected!("popcnt"),
        "avx" => is_x86_feature_detected!("avx"),
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "bmi1" => is_x86_feature_detected!("bmi1"),
        "bmi2" => is_x86_feature_detected!("bmi2"),
        "lzcnt" => is_x86_feature_detected!("lzcnt"),
        "avxvnni" => is_x86_feature_detected!("avxvnni"),
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512dq" => is_x86_feature_detected!("avx512dq"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        "avx512vbmi" => is_x86_feature_detected!("avx512vbmi"),
        "avx512vnni" => is_x86_feature_detected!("avx512vnni"),
        "avx512bitalg" => is_x86_feature_detected!("avx512bitalg"),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use nacre_engine::CpuidLeaves;

    use super::*;

    /// Two independent ways to the same set: std's detection and the guest's decoding of raw CPUID leaves.
    #[test]
    fn raw_cpuid_gives_the_same_set() {
        let has_subleaf_1 = __cpuid_count(7, 0).eax >= 1;
        let leaves = CpuidLeaves {
            leaf1_ecx: __cpuid(1).ecx,
            leaf7_ebx: __cpuid_count(7, 0).ebx,
            leaf7_ecx: __cpuid_count(7, 0).ecx,
            leaf7_1_eax: if has_subleaf_1 { __cpuid_count(7, 1).eax } else { 0 },
            ext1_ecx: __cpuid(0x8000_0001).ecx,
            // Reading XCR0 needs `unsafe`; what std says about AVX and AVX-512 stands for it.
            xcr0: match (is_x86_feature_detected!("avx"), is_x86_feature_detected!("avx512f")) {
                (_, true) => 0xe7,
                (true, false) => 0x7,
                (false, false) => 0x3,
            },
        };
        assert_eq!(CpuFeatures::from_cpuid(&leaves), features());
    }
}
