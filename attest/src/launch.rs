//! SNP's launch digest: each launched page extends it by SHA-384 over a PAGE_INFO structure of 112 bytes (document
//! 56860, SNP_LAUNCH_UPDATE). Order matters, and it is the order of the launch.

use sha2::{Digest, Sha384};

/// Size of a page.
pub const PAGE_BYTES: usize = 4096;

/// Numbers of SNP's launch commands.
pub mod snp {
    /// Size of PAGE_INFO.
    pub const PAGE_INFO_BYTES: u16 = 0x70;
    /// Page with content that is measured.
    pub const PAGE_TYPE_NORMAL: u8 = 1;
    /// A vCPU's save area.
    pub const PAGE_TYPE_VMSA: u8 = 2;
    /// Page of zeros.
    pub const PAGE_TYPE_ZERO: u8 = 3;
    /// Every VMSA is measured at this address: all ones, page aligned, cut to 52 bits.
    pub const VMSA_GPA: u64 = 0xffff_ffff_f000;
    /// SEV_FEATURES bit 0: the guest runs under SNP.
    pub const FEATURE_SNP_ACTIVE: u64 = 1;
    /// PAT after reset.
    pub const RESET_PAT: u64 = 0x0007_0406_0007_0406;
    /// MXCSR after reset.
    pub const RESET_MXCSR: u32 = 0x1f80;
    /// x87 control word after `fninit`.
    pub const INIT_FCW: u16 = 0x37f;
    /// EFER.SVME, which KVM sets in every VMSA.
    pub const EFER_SVME: u64 = 1 << 12;
}

/// A finished launch digest: MEASUREMENT of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Measurement(pub [u8; 48]);

/// A launch digest in the making.
#[derive(Clone, Debug)]
pub struct LaunchDigest {
    digest: [u8; 48],
}

impl Default for LaunchDigest {
    fn default() -> LaunchDigest {
        LaunchDigest::new()
    }
}

impl LaunchDigest {
    /// Of a guest without pages.
    pub fn new() -> LaunchDigest {
        LaunchDigest { digest: [0; 48] }
    }

    /// A page of content at a guest-physical address.
    pub fn normal_page(&mut self, gpa: u64, page: &[u8; PAGE_BYTES]) {
        self.extend(snp::PAGE_TYPE_NORMAL, gpa, &page_hash(page));
    }

    /// The same for a page whose [`page_hash`] is known already.
    pub fn normal_page_hashed(&mut self, gpa: u64, hash: &[u8; 48]) {
        self.extend(snp::PAGE_TYPE_NORMAL, gpa, hash);
    }

    /// A page of zeros.
    pub fn zero_page(&mut self, gpa: u64) {
        self.extend(snp::PAGE_TYPE_ZERO, gpa, &[0; 48]);
    }

    /// A vCPU's save area. The firmware measures all of them at [`snp::VMSA_GPA`].
    pub fn vmsa_page(&mut self, gpa: u64, page: &[u8; PAGE_BYTES]) {
        self.extend(snp::PAGE_TYPE_VMSA, gpa, &page_hash(page));
    }

    /// The digest.
    pub fn finish(self) -> Measurement {
        Measurement(self.digest)
    }

    /// No intermediate migration image, no rights for privilege levels 1 to 3.
    fn extend(&mut self, page_type: u8, gpa: u64, contents: &[u8; 48]) {
        let mut info = [0; snp::PAGE_INFO_BYTES as usize];
        info[..48].copy_from_slice(&self.digest);
        info[48..96].copy_from_slice(contents);
        info[96..98].copy_from_slice(&snp::PAGE_INFO_BYTES.to_le_bytes());
        info[98] = page_type;
        info[104..].copy_from_slice(&gpa.to_le_bytes());
        self.digest = Sha384::digest(info).into();
    }
}

/// SHA-384 of a page's content.
pub fn page_hash(page: &[u8; PAGE_BYTES]) -> [u8; 48] {
    Sha384::digest(page).into()
}
