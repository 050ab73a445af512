//! Products of AMD's and their trusted computing base: eight bytes in a report whose meaning differs by product
//! (SEV-SNP firmware ABI, document 56860, structure TCB_VERSION).

use core::fmt;

/// A family of processors with a root key of its own, or our software platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Platform {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004.
    Genoa,
    /// EPYC 9005.
    Turin,
    /// No memory encryption: whoever runs the machine can read the CVM's memory and sign any report.
    Software,
}

impl Platform {
    /// All of them.
    pub const ALL: [Platform; 4] = [Platform::Milan, Platform::Genoa, Platform::Turin, Platform::Software];

    /// Its name in policies and output.
    pub fn name(self) -> &'static str {
        match self {
            Platform::Milan => "milan",
            Platform::Genoa => "genoa",
            Platform::Turin => "turin",
            Platform::Software => "software",
        }
    }

    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Platform> {
        Platform::ALL.into_iter().find(|platform| platform.name() == name)
    }

    /// The product with this CPUID family and model (extended ones added in), as reports from version 3 on state them.
    pub fn from_cpuid(family: u8, model: u8) -> Option<Platform> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Platform::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Platform::Genoa),
            (0x1a, 0x00..=0x11) => Some(Platform::Turin),
            _ => None,
        }
    }

    /// How many of the 64 bytes of a chip's identity are used; the others are zero.
    pub fn chip_id_bytes(self) -> usize {
        match self {
            Platform::Turin => 8,
            Platform::Milan | Platform::Genoa | Platform::Software => 64,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// TCB_VERSION as it is in a report: what its bytes mean depends on the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcbVersion(pub [u8; 8]);

/// The parts of a TCB: security versions, each of which may only grow. The order of values is no order of TCBs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tcb {
    /// Of the first mutable code: Turin and later only, 0 elsewhere.
    pub fmc: u8,
    /// Of the security processor's boot loader.
    pub bootloader: u8,
    /// Of its operating system.
    pub tee: u8,
    /// Of the SNP firmware.
    pub snp: u8,
    /// Lowest microcode patch level of all cores.
    pub microcode: u8,
}

impl TcbVersion {
    /// The parts by this product's layout; `None` if a reserved byte is not zero.
    pub fn parts(self, platform: Platform) -> Option<Tcb> {
        let b = self.0;
        let (tcb, reserved) = match platform {
            Platform::Milan | Platform::Genoa | Platform::Software => (
                Tcb { fmc: 0, bootloader: b[0], tee: b[1], snp: b[6], microcode: b[7] },
                [b[2], b[3], b[4], b[5]],
            ),
            Platform::Turin => (
                Tcb { fmc: b[0], bootloader: b[1], tee: b[2], snp: b[3], microcode: b[7] },
                [b[4], b[5], b[6], 0],
            ),
        };
        (reserved == [0; 4]).then_some(tcb)
    }
}

impl Tcb {
    /// As it is in a report of this product.
    pub fn version(self, platform: Platform) -> TcbVersion {
        let Tcb { fmc, bootloader, tee, snp, microcode } = self;
        TcbVersion(match platform {
            Platform::Milan | Platform::Genoa | Platform::Software => {
                [bootloader, tee, 0, 0, 0, 0, snp, microcode]
            }
            Platform::Turin => [fmc, bootloader, tee, snp, 0, 0, 0, microcode],
        })
    }

    /// The parts as pairs of name and value, in the order of policies.
    pub fn named(self) -> [(&'static str, u8); 5] {
        [
            ("fmc", self.fmc),
            ("bootloader", self.bootloader),
            ("tee", self.tee),
            ("snp", self.snp),
            ("microcode", self.microcode),
        ]
    }

    /// The first part in which this is below a minimum: its name, the value, the minimum.
    pub fn first_below(self, minimum: Tcb) -> Option<(&'static str, u8, u8)> {
        let pairs = self.named().into_iter().zip(minimum.named());
        pairs.filter(|(is, least)| is.1 < least.1).map(|(is, least)| (is.0, is.1, least.1)).next()
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tcb { fmc, bootloader, tee, snp, microcode } = self;
        write!(f, "fmc {fmc}, bootloader {bootloader}, tee {tee}, snp {snp}, microcode {microcode}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_differ_by_product() {
        let bytes = TcbVersion([3, 0, 0, 0, 0, 0, 8, 115]);
        let tcb = bytes.parts(Platform::Milan).unwrap();
        assert_eq!(tcb, Tcb { fmc: 0, bootloader: 3, tee: 0, snp: 8, microcode: 115 });
        assert_eq!(tcb.version(Platform::Genoa), bytes);
        assert_eq!(bytes.parts(Platform::Turin), None, "byte 6 is reserved there");
        let turin = TcbVersion([1, 2, 3, 4, 0, 0, 0, 5]);
        let tcb = turin.parts(Platform::Turin).unwrap();
        assert_eq!(tcb, Tcb { fmc: 1, bootloader: 2, tee: 3, snp: 4, microcode: 5 });
        assert_eq!(tcb.version(Platform::Turin), turin);
        assert_eq!(turin.parts(Platform::Milan), None);
    }

    #[test]
    fn every_part_counts_alone() {
        let minimum = Tcb { fmc: 1, bootloader: 1, tee: 1, snp: 1, microcode: 1 };
        let high = Tcb { fmc: 9, bootloader: 9, tee: 9, snp: 9, microcode: 9 };
        assert_eq!(high.first_below(minimum), None);
        assert_eq!(minimum.first_below(minimum), None);
        assert_eq!(Tcb { snp: 0, ..high }.first_below(minimum), Some(("snp", 0, 1)));
        assert_eq!(Tcb { fmc: 0, ..high }.first_below(minimum), Some(("fmc", 0, 1)));
        assert_eq!(Tcb { microcode: 0, ..high }.first_below(minimum), Some(("microcode", 0, 1)));
    }
}
