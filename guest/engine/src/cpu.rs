//! CPU features that compiled code may use: the set, its names, the compile targets, and how a set is read from raw
//! CPUID leaves (the guest has no std, and its `cpuid` traps, so it reads each leaf once and asks here).
//!
//! Bit numbers of [`CpuFeatures`] are part of the `.cwasm` format: append, never renumber.

use alloc::string::String;
use core::fmt;

/// A set of CPU features that change which instructions the compiler emits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CpuFeatures(u64);

/// Where CPUID reports a feature.
#[derive(Clone, Copy)]
enum Source {
    Leaf1Ecx(u32),
    Leaf7Ebx(u32),
    Leaf7Ecx(u32),
    Leaf7Sub1Eax(u32),
    Ext1Ecx(u32),
}

/// Which register state the operating system must have enabled in XCR0 for the feature to be usable.
#[derive(Clone, Copy)]
enum State {
    /// Always available in 64-bit mode.
    Base,
    /// XMM and YMM: XCR0 bits 1 and 2.
    Avx,
    /// In addition opmask and ZMM: XCR0 bits 5 to 7.
    Avx512,
}

struct Feature {
    /// The name wasmtime asks `detect_host_feature` for, and shown to people.
    name: &'static str,
    /// Cranelift's x86-64 flag.
    flag: &'static str,
    source: Source,
    state: State,
    /// Part of the x86-64-v3 level.
    v3: bool,
}

const fn feature(name: &'static str, flag: &'static str, source: Source, state: State, v3: bool) -> Feature {
    Feature { name, flag, source, state, v3 }
}

/// One row per bit of [`CpuFeatures`]. Bit positions: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
const TABLE: [Feature; 19] = [
    feature("sse3", "has_sse3", Source::Leaf1Ecx(0), State::Base, true),
    feature("ssse3", "has_ssse3", Source::Leaf1Ecx(9), State::Base, true),
    feature("cmpxchg16b", "has_cmpxchg16b", Source::Leaf1Ecx(13), State::Base, true),
    feature("sse4.1", "has_sse41", Source::Leaf1Ecx(19), State::Base, true),
    feature("sse4.2", "has_sse42", Source::Leaf1Ecx(20), State::Base, true),
    feature("popcnt", "has_popcnt", Source::Leaf1Ecx(23), State::Base, true),
    feature("avx", "has_avx", Source::Leaf1Ecx(28), State::Avx, true),
    feature("avx2", "has_avx2", Source::Leaf7Ebx(5), State::Avx, true),
    feature("fma", "has_fma", Source::Leaf1Ecx(12), State::Avx, true),
    feature("bmi1", "has_bmi1", Source::Leaf7Ebx(3), State::Base, true),
    feature("bmi2", "has_bmi2", Source::Leaf7Ebx(8), State::Base, true),
    feature("lzcnt", "has_lzcnt", Source::Ext1Ecx(5), State::Base, true),
    feature("avxvnni", "has_avx_vnni", Source::Leaf7Sub1Eax(4), State::Avx, false),
    feature("avx512f", "has_avx512f", Source::Leaf7Ebx(16), State::Avx512, false),
    feature("avx512dq", "has_avx512dq", Source::Leaf7Ebx(17), State::Avx512, false),
    feature("avx512vl", "has_avx512vl", Source::Leaf7Ebx(31), State::Avx512, false),
    feature("avx512vbmi", "has_avx512vbmi", Source::Leaf7Ecx(1), State::Avx512, false),
    feature("avx512vnni", "has_avx512vnni", Source::Leaf7Ecx(11), State::Avx512, false),
    feature("avx512bitalg", "has_avx512bitalg", Source::Leaf7Ecx(12), State::Avx512, false),
];

const KNOWN: u64 = (1 << TABLE.len()) - 1;

/// XCR0 bits 1 and 2 (Intel SDM volume 1, chapter 13).
const XCR0_AVX: u64 = 0x6;
/// XCR0 bits 1, 2 and 5 to 7.
const XCR0_AVX512: u64 = 0xe6;
/// CPUID.1:ECX.OSXSAVE: XCR0 exists and can be read.
const OSXSAVE: u32 = 27;

impl CpuFeatures {
    /// No feature beyond plain x86-64.
    pub const BASELINE: Self = Self(0);

    /// What the x86-64-v3 level has (psABI): AVX2, BMI, FMA, LZCNT and everything before them.
    pub const X86_64_V3: Self = Self(v3_bits());

    /// The set with these bits, or `None` when one of them has no meaning in this version.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits & !KNOWN == 0 { Some(Self(bits)) } else { None }
    }

    /// The bits as stored in a `.cwasm` header.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of all features for which `has` says yes; it is asked by wasmtime's names.
    #[must_use]
    pub fn probe(mut has: impl FnMut(&'static str) -> bool) -> Self {
        Self::collect(|feature| has(feature.name))
    }

    /// The features a CPU with these CPUID leaves has and its operating system lets it use.
    #[must_use]
    pub fn from_cpuid(leaves: &CpuidLeaves) -> Self {
        let bit = |register: u32, n: u32| register >> n & 1 == 1;
        let xcr0 = if bit(leaves.leaf1_ecx, OSXSAVE) { leaves.xcr0 } else { 0 };
        Self::collect(|feature| {
            let in_cpu = match feature.source {
                Source::Leaf1Ecx(n) => bit(leaves.leaf1_ecx, n),
                Source::Leaf7Ebx(n) => bit(leaves.leaf7_ebx, n),
                Source::Leaf7Ecx(n) => bit(leaves.leaf7_ecx, n),
                Source::Leaf7Sub1Eax(n) => bit(leaves.leaf7_1_eax, n),
                Source::Ext1Ecx(n) => bit(leaves.ext1_ecx, n),
            };
            let usable = match feature.state {
                State::Base => true,
                State::Avx => xcr0 & XCR0_AVX == XCR0_AVX,
                State::Avx512 => xcr0 & XCR0_AVX512 == XCR0_AVX512,
            };
            in_cpu && usable
        })
    }

    /// What is in `self` and not in `host`: empty when code compiled for `self` may run there.
    #[must_use]
    pub const fn missing_from(self, host: Self) -> Self {
        Self(self.0 & !host.0)
    }

    /// Whether the set holds nothing.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of the features, in the order of their bits.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.rows().map(|feature| feature.name)
    }

    /// Cranelift's flags for the features, in the order of their bits.
    pub fn cranelift_flags(self) -> impl Iterator<Item = &'static str> {
        self.rows().map(|feature| feature.flag)
    }

    fn rows(self) -> impl Iterator<Item = &'static Feature> {
        TABLE.iter().enumerate().filter(move |(bit, _)| self.0 >> bit & 1 == 1).map(|(_, feature)| feature)
    }

    fn collect(mut has: impl FnMut(&Feature) -> bool) -> Self {
        let bits = TABLE.iter().enumerate().filter(|(_, feature)| has(feature));
        Self(bits.fold(0, |set, (bit, _)| set | 1 << bit))
    }
}

const fn v3_bits() -> u64 {
    let (mut bits, mut n) = (0, 0);
    while n < TABLE.len() {
        if TABLE[n].v3 {
            bits |= 1 << n;
        }
        n += 1;
    }
    bits
}

/// The names separated by commas.
impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, name) in self.names().enumerate() {
            f.write_str(if n == 0 { "" } else { ", " })?;
            f.write_str(name)?;
        }
        Ok(())
    }
}

impl fmt::Debug for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuFeatures({self})")
    }
}

/// The registers that say which features a CPU has. A leaf the CPU does not have is given as 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaves {
    /// Leaf 1, ECX.
    pub leaf1_ecx: u32,
    /// Leaf 7 subleaf 0, EBX.
    pub leaf7_ebx: u32,
    /// Leaf 7 subleaf 0, ECX.
    pub leaf7_ecx: u32,
    /// Leaf 7 subleaf 1, EAX (exists when leaf 7 subleaf 0 has EAX >= 1).
    pub leaf7_1_eax: u32,
    /// Leaf 0x8000_0001, ECX.
    pub ext1_ecx: u32,
    /// XCR0 as this virtual CPU may use it. Under KVM without hardware virtualisation `xgetbv` shows the host's
    /// value: mask it with the one the VM was started with.
    pub xcr0: u64,
}

/// What a program is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum CpuTarget {
    /// The x86-64-v3 level, whatever machine compiles: runs on every server CPU since about 2013 (Intel) or 2017 (AMD).
    #[default]
    X86_64V3,
    /// All features of one CPU, usually the compiling one's.
    Native(CpuFeatures),
}

impl CpuTarget {
    /// The features code for this target may use.
    #[must_use]
    pub const fn features(self) -> CpuFeatures {
        match self {
            Self::X86_64V3 => CpuFeatures::X86_64_V3,
            Self::Native(features) => features,
        }
    }

    /// The name as on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64V3 => "x86-64-v3",
            Self::Native(_) => "native",
        }
    }

    /// The target with its features, for people.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::X86_64V3 => self.name().into(),
            Self::Native(features) => alloc::format!("native ({features})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves of a CPU that has everything.
    const ALL: CpuidLeaves = CpuidLeaves {
        leaf1_ecx: u32::MAX,
        leaf7_ebx: u32::MAX,
        leaf7_ecx: u32::MAX,
        leaf7_1_eax: u32::MAX,
        ext1_ecx: u32::MAX,
        xcr0: 0xe7,
    };

    #[test]
    fn v3_has_the_level_and_no_more() {
        let names: std::vec::Vec<_> = CpuFeatures::X86_64_V3.names().collect();
        assert_eq!(
            names,
            [
                "sse3",
                "ssse3",
                "cmpxchg16b",
                "sse4.1",
                "sse4.2",
                "popcnt",
                "avx",
                "avx2",
                "fma",
                "bmi1",
                "bmi2",
                "lzcnt"
            ]
        );
    }

    #[test]
    fn everything_is_found_when_everything_is_there() {
        assert_eq!(CpuFeatures::from_cpuid(&ALL).bits(), KNOWN);
    }

    #[test]
    fn wide_registers_need_the_operating_system() {
        let no_zmm = CpuFeatures::from_cpuid(&CpuidLeaves { xcr0: 0x7, ..ALL });
        let missing = CpuFeatures::from_bits(KNOWN).unwrap().missing_from(no_zmm);
        assert!(missing.names().all(|name| name.starts_with("avx512")));
        assert_eq!(missing.names().count(), 6);

        let no_ymm = CpuFeatures::from_cpuid(&CpuidLeaves { xcr0: 0x3, ..ALL });
        assert!(no_ymm.names().all(|name| !name.starts_with("avx") && name != "fma"));
        let no_xsave = CpuFeatures::from_cpuid(&CpuidLeaves { leaf1_ecx: !(1 << OSXSAVE), ..ALL });
        assert_eq!(no_xsave, no_ymm);
    }

    #[test]
    fn each_bit_comes_from_its_own_register() {
        let only_lzcnt = CpuidLeaves { ext1_ecx: 1 << 5, ..CpuidLeaves::default() };
        assert_eq!(std::format!("{}", CpuFeatures::from_cpuid(&only_lzcnt)), "lzcnt");
        let bmi = CpuidLeaves { leaf7_ebx: 1 << 3 | 1 << 8, ..CpuidLeaves::default() };
        assert_eq!(std::format!("{}", CpuFeatures::from_cpuid(&bmi)), "bmi1, bmi2");
        let vbmi =
            CpuidLeaves { leaf1_ecx: 1 << OSXSAVE, leaf7_ecx: 1 << 1, xcr0: 0xe6, ..CpuidLeaves::default() };
        assert_eq!(std::format!("{}", CpuFeatures::from_cpuid(&vbmi)), "avx512vbmi");
        let vnni =
            CpuidLeaves { leaf1_ecx: 1 << OSXSAVE, leaf7_1_eax: 1 << 4, xcr0: 6, ..CpuidLeaves::default() };
        assert_eq!(std::format!("{}", CpuFeatures::from_cpuid(&vnni)), "avxvnni");
    }

    #[test]
    fn unknown_bits_are_refused() {
        assert!(CpuFeatures::from_bits(KNOWN).is_some());
        assert!(CpuFeatures::from_bits(KNOWN + 1).is_none());
    }
}
