//! The attestation report of AMD SEV-SNP, versions 2 to 5: 1184 bytes, every field by its offset as in document 56860
//! ("SEV Secure Nested Paging Firmware ABI Specification"), table ATTESTATION_REPORT. Reserved areas must be zero, so that
//! what is parsed encodes to the same bytes. Nothing here says whether a report is to be believed.

use crate::tcb::TcbVersion;
use alloc::vec::Vec;

/// Size of a report, signature included.
pub const REPORT_BYTES: usize = 1184;
/// Size of the part that is signed.
pub const SIGNED_BYTES: usize = 0x2a0;
/// SIGNATURE_ALGO for ECDSA P-384 with SHA-384.
pub const ECDSA_P384_SHA384: u32 = 1;

/// Offsets of fields in a report.
mod at {
    pub const FAMILY_ID: usize = 0x10;
    pub const IMAGE_ID: usize = 0x20;
    pub const VMPL: usize = 0x30;
    pub const SIGNATURE_ALGO: usize = 0x34;
    pub const CURRENT_TCB: usize = 0x38;
    pub const PLATFORM_INFO: usize = 0x40;
    pub const KEY_INFO: usize = 0x48;
    pub const REPORT_DATA: usize = 0x50;
    pub const MEASUREMENT: usize = 0x90;
    pub const HOST_DATA: usize = 0xc0;
    pub const ID_KEY_DIGEST: usize = 0xe0;
    pub const AUTHOR_KEY_DIGEST: usize = 0x110;
    pub const REPORT_ID: usize = 0x140;
    pub const REPORT_ID_MA: usize = 0x160;
    pub const REPORTED_TCB: usize = 0x180;
    pub const CPUID: usize = 0x188;
    pub const CHIP_ID: usize = 0x1a0;
    pub const COMMITTED_TCB: usize = 0x1e0;
    pub const CURRENT_VERSION: usize = 0x1e8;
    pub const COMMITTED_VERSION: usize = 0x1ec;
    pub const LAUNCH_TCB: usize = 0x1f0;
    pub const LAUNCH_MIT_VECTOR: usize = 0x1f8;
    pub const CURRENT_MIT_VECTOR: usize = 0x200;
    pub const SIGNATURE_R: usize = 0x2a0;
    pub const SIGNATURE_S: usize = 0x2e8;
}

/// What is wrong with bytes that should have been a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Not 1184 bytes.
    #[error("a report has {REPORT_BYTES} bytes, not {0}")]
    Length(usize),
    /// A version that this code does not know.
    #[error("report version {0} is not known (2 to 5 are)")]
    Version(u32),
    /// Not ECDSA P-384 with SHA-384.
    #[error("signature algorithm {0} is not known (1 is)")]
    Algorithm(u32),
    /// A reserved area is not zero, or a reserved bit has the wrong value.
    #[error("the reserved area at offset {0:#x} has a value")]
    Reserved(usize),
    /// SIGNING_KEY is none of VCEK, VLEK and none.
    #[error("signing key {0} is not known")]
    SigningKey(u32),
    /// VMPL is above 3. (The host's own requests have 0xffffffff, which are no guest's reports.)
    #[error("privilege level {0} is not a guest's")]
    Vmpl(u32),
}

/// The guest's policy, which the security processor enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPolicy(pub u64);

impl GuestPolicy {
    /// Bit 17 is always one.
    const ONES: u64 = 1 << 17;
    /// Bits 26 to 63 are reserved.
    const ZEROS: u64 = !0 << 26;

    /// The policy of our guests: SMT allowed, no migration agent, no debugging.
    pub const NACRE: GuestPolicy = GuestPolicy(1 << 16 | GuestPolicy::ONES);

    /// With debugging allowed or not.
    pub fn with_debug(self, allowed: bool) -> GuestPolicy {
        GuestPolicy(self.0 & !(1 << 19) | u64::from(allowed) << 19)
    }

    /// Least minor version of the firmware's interface.
    pub fn abi_minor(self) -> u8 {
        self.0 as u8
    }

    /// Least major version of the firmware's interface.
    pub fn abi_major(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The flags by name.
    pub fn flags(self) -> impl Iterator<Item = (&'static str, bool)> {
        const NAMES: [(u32, &str); 9] = [
            (16, "smt allowed"),
            (18, "migration agent allowed"),
            (19, "debug allowed"),
            (20, "single socket"),
            (21, "cxl allowed"),
            (22, "aes-256-xts"),
            (23, "rapl disabled"),
            (24, "ciphertext hiding"),
            (25, "page swap disabled"),
        ];
        NAMES.into_iter().map(move |(bit, name)| (name, self.0 >> bit & 1 == 1))
    }

    /// Whether the host may read and write the guest's memory for debugging.
    pub fn debug(self) -> bool {
        self.0 >> 19 & 1 == 1
    }

    /// Whether a migration agent, which gets the guest's keys, may be associated.
    pub fn migration_agent(self) -> bool {
        self.0 >> 18 & 1 == 1
    }
}

/// PLATFORM_INFO. Its undefined bits are kept: newer firmware defines more of them in the same version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    /// The flags by name.
    pub fn flags(self) -> impl Iterator<Item = (&'static str, bool)> {
        const NAMES: [(u32, &str); 7] = [
            (0, "smt enabled"),
            (1, "tsme enabled"),
            (2, "ecc memory"),
            (3, "rapl disabled"),
            (4, "ciphertext hiding"),
            (5, "alias check complete"),
            (7, "sev-tio enabled"),
        ];
        NAMES.into_iter().map(move |(bit, name)| (name, self.0 >> bit & 1 == 1))
    }
}

/// Which key signed a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningKey {
    /// The chip's own, derived from its secrets and the TCB.
    Vcek,
    /// One that a cloud provider got from AMD for all of its chips.
    Vlek,
    /// None: the report is not signed.
    None,
}

/// KEY_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The digest of an author key is in the report.
    pub author_key: bool,
    /// The chip's key may not be used: the signature is zeros.
    pub mask_chip_key: bool,
    /// Which key signed.
    pub signing_key: SigningKey,
}

/// A firmware version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirmwareVersion {
    /// Major version of the interface.
    pub major: u8,
    /// Minor version of the interface.
    pub minor: u8,
    /// Build number.
    pub build: u8,
}

/// CPUID family, model and stepping, with the extended parts added in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpuid {
    /// Family.
    pub family: u8,
    /// Model.
    pub model: u8,
    /// Stepping.
    pub stepping: u8,
}

/// Bits of the mitigation vectors of version 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mitigations {
    /// Those in force when the guest was launched.
    pub launch: u64,
    /// Those in force now.
    pub current: u64,
}

/// An ECDSA P-384 signature: both numbers big-endian. (In the report they are little-endian and 72 bytes wide.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Number r.
    pub r: [u8; 48],
    /// Number s.
    pub s: [u8; 48],
}

impl Signature {
    /// r and s behind each other.
    pub fn fixed(&self) -> [u8; 96] {
        let mut both = [0; 96];
        both[..48].copy_from_slice(&self.r);
        both[48..].copy_from_slice(&self.s);
        both
    }
}

/// A report, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Layout version, 2 to 5.
    pub version: u32,
    /// The guest's security version, given at launch.
    pub guest_svn: u32,
    /// The guest's policy.
    pub policy: GuestPolicy,
    /// Family, given at launch.
    pub family_id: [u8; 16],
    /// Image, given at launch.
    pub image_id: [u8; 16],
    /// Privilege level of the guest that asked, 0 to 3.
    pub vmpl: u32,
    /// TCB that runs.
    pub current_tcb: TcbVersion,
    /// How the platform is configured.
    pub platform_info: PlatformInfo,
    /// Which keys are concerned.
    pub key_info: KeyInfo,
    /// What the guest gave: here the hash of its claims.
    pub report_data: [u8; 64],
    /// The launch digest.
    pub measurement: [u8; 48],
    /// What the host gave at launch: here the hash of the tenant's manifest.
    pub host_data: [u8; 32],
    /// Digest of the key that signed the identity block.
    pub id_key_digest: [u8; 48],
    /// Digest of the key that certified that key.
    pub author_key_digest: [u8; 48],
    /// Identity of this launch.
    pub report_id: [u8; 32],
    /// Identity of the migration agent's launch; all ones if there is none.
    pub report_id_ma: [u8; 32],
    /// TCB that the signing key was derived for.
    pub reported_tcb: TcbVersion,
    /// The processor, from version 3 on.
    pub cpuid: Option<Cpuid>,
    /// Identity of the chip, or zeros if masked.
    pub chip_id: [u8; 64],
    /// TCB below which the firmware can't be rolled back.
    pub committed_tcb: TcbVersion,
    /// Firmware that runs.
    pub current_version: FirmwareVersion,
    /// Firmware below which it can't be rolled back.
    pub committed_version: FirmwareVersion,
    /// TCB when the guest was launched.
    pub launch_tcb: TcbVersion,
    /// Mitigation vectors, in version 5.
    pub mitigations: Option<Mitigations>,
    /// Over the first [`SIGNED_BYTES`] bytes.
    pub signature: Signature,
}

/// The part of a report that its signature covers; `None` if the length is wrong.
pub fn signed_bytes(report: &[u8]) -> Option<&[u8]> {
    if report.len() == REPORT_BYTES { report.get(..SIGNED_BYTES) } else { None }
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// If it is not one, or has a value where the layout of its version has none.
    pub fn parse(bytes: &[u8]) -> Result<Report, ReportError> {
        let bytes: &[u8; REPORT_BYTES] = bytes.try_into().map_err(|_| ReportError::Length(bytes.len()))?;
        let version = u32_at(bytes, 0);
        if !(2..=5).contains(&version) {
            return Err(ReportError::Version(version));
        }
        let algorithm = u32_at(bytes, at::SIGNATURE_ALGO);
        if algorithm != ECDSA_P384_SHA384 {
            return Err(ReportError::Algorithm(algorithm));
        }
        check_reserved(bytes, version)?;
        let policy = GuestPolicy(u64_at(bytes, 8));
        if policy.0 & GuestPolicy::ZEROS != 0 || policy.0 & GuestPolicy::ONES == 0 {
            return Err(ReportError::Reserved(8));
        }
        let vmpl = u32_at(bytes, at::VMPL);
        if vmpl > 3 {
            return Err(ReportError::Vmpl(vmpl));
        }
        let [family, model, stepping] = array_at(bytes, at::CPUID);
        Ok(Report {
            version,
            guest_svn: u32_at(bytes, 4),
            policy,
            family_id: array_at(bytes, at::FAMILY_ID),
            image_id: array_at(bytes, at::IMAGE_ID),
            vmpl,
            current_tcb: TcbVersion(array_at(bytes, at::CURRENT_TCB)),
            platform_info: PlatformInfo(u64_at(bytes, at::PLATFORM_INFO)),
            key_info: key_info(u32_at(bytes, at::KEY_INFO))?,
            report_data: array_at(bytes, at::REPORT_DATA),
            measurement: array_at(bytes, at::MEASUREMENT),
            host_data: array_at(bytes, at::HOST_DATA),
            id_key_digest: array_at(bytes, at::ID_KEY_DIGEST),
            author_key_digest: array_at(bytes, at::AUTHOR_KEY_DIGEST),
            report_id: array_at(bytes, at::REPORT_ID),
            report_id_ma: array_at(bytes, at::REPORT_ID_MA),
            reported_tcb: TcbVersion(array_at(bytes, at::REPORTED_TCB)),
            cpuid: (version >= 3).then_some(Cpuid { family, model, stepping }),
            chip_id: array_at(bytes, at::CHIP_ID),
            committed_tcb: TcbVersion(array_at(bytes, at::COMMITTED_TCB)),
            current_version: firmware(bytes, at::CURRENT_VERSION),
            committed_version: firmware(bytes, at::COMMITTED_VERSION),
            launch_tcb: TcbVersion(array_at(bytes, at::LAUNCH_TCB)),
            mitigations: (version >= 5).then(|| Mitigations {
                launch: u64_at(bytes, at::LAUNCH_MIT_VECTOR),
                current: u64_at(bytes, at::CURRENT_MIT_VECTOR),
            }),
            signature: Signature {
                r: reversed(array_at(bytes, at::SIGNATURE_R)),
                s: reversed(array_at(bytes, at::SIGNATURE_S)),
            },
        })
    }

    /// Writes it in the layout of its version. The inverse of [`Report::parse`] for whatever that accepts.
    pub fn encode(&self) -> [u8; REPORT_BYTES] {
        let mut bytes = [0; REPORT_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.version.to_le_bytes());
        put(4, &self.guest_svn.to_le_bytes());
        put(8, &self.policy.0.to_le_bytes());
        put(at::FAMILY_ID, &self.family_id);
        put(at::IMAGE_ID, &self.image_id);
        put(at::VMPL, &self.vmpl.to_le_bytes());
        put(at::SIGNATURE_ALGO, &ECDSA_P384_SHA384.to_le_bytes());
        put(at::CURRENT_TCB, &self.current_tcb.0);
        put(at::PLATFORM_INFO, &self.platform_info.0.to_le_bytes());
        put(at::KEY_INFO, &self.key_info.encode().to_le_bytes());
        put(at::REPORT_DATA, &self.report_data);
        put(at::MEASUREMENT, &self.measurement);
        put(at::HOST_DATA, &self.host_data);
        put(at::ID_KEY_DIGEST, &self.id_key_digest);
        put(at::AUTHOR_KEY_DIGEST, &self.author_key_digest);
        put(at::REPORT_ID, &self.report_id);
        put(at::REPORT_ID_MA, &self.report_id_ma);
        put(at::REPORTED_TCB, &self.reported_tcb.0);
        if let Some(Cpuid { family, model, stepping }) = self.cpuid {
            put(at::CPUID, &[family, model, stepping]);
        }
        put(at::CHIP_ID, &self.chip_id);
        put(at::COMMITTED_TCB, &self.committed_tcb.0);
        let firmware = |version: FirmwareVersion| [version.build, version.minor, version.major];
        put(at::CURRENT_VERSION, &firmware(self.current_version));
        put(at::COMMITTED_VERSION, &firmware(self.committed_version));
        put(at::LAUNCH_TCB, &self.launch_tcb.0);
        if let Some(Mitigations { launch, current }) = self.mitigations {
            put(at::LAUNCH_MIT_VECTOR, &launch.to_le_bytes());
            put(at::CURRENT_MIT_VECTOR, &current.to_le_bytes());
        }
        put(at::SIGNATURE_R, &reversed(self.signature.r));
        put(at::SIGNATURE_S, &reversed(self.signature.s));
        bytes
    }

    /// The part that the signature covers.
    pub fn signed_bytes(&self) -> Vec<u8> {
        self.encode()[..SIGNED_BYTES].to_vec()
    }
}

impl KeyInfo {
    fn encode(self) -> u32 {
        let signing_key = match self.signing_key {
            SigningKey::Vcek => 0,
            SigningKey::Vlek => 1,
            SigningKey::None => 7,
        };
        u32::from(self.author_key) | u32::from(self.mask_chip_key) << 1 | signing_key << 2
    }
}

fn key_info(word: u32) -> Result<KeyInfo, ReportError> {
    if word >> 5 != 0 {
        return Err(ReportError::Reserved(at::KEY_INFO));
    }
    let signing_key = match word >> 2 {
        0 => SigningKey::Vcek,
        1 => SigningKey::Vlek,
        7 => SigningKey::None,
        other => return Err(ReportError::SigningKey(other)),
    };
    Ok(KeyInfo { author_key: word & 1 == 1, mask_chip_key: word & 2 == 2, signing_key })
}

fn check_reserved(bytes: &[u8; REPORT_BYTES], version: u32) -> Result<(), ReportError> {
    let before_chip_id = if version >= 3 { 0x18b } else { 0x188 };
    let before_signature = if version >= 5 { 0x208 } else { 0x1f8 };
    let areas = [
        0x4c..0x50,
        before_chip_id..0x1a0,
        0x1eb..0x1ec,
        0x1ef..0x1f0,
        before_signature..0x2a0,
        // The numbers of P-384 fill 48 of 72 bytes.
        0x2d0..0x2e8,
        0x318..REPORT_BYTES,
    ];
    match areas.into_iter().find(|area| bytes[area.clone()].iter().any(|byte| *byte != 0)) {
        Some(area) => Err(ReportError::Reserved(area.start)),
        None => Ok(()),
    }
}

fn array_at<const N: usize>(bytes: &[u8; REPORT_BYTES], at: usize) -> [u8; N] {
    core::array::from_fn(|i| bytes[at + i])
}

fn u32_at(bytes: &[u8; REPORT_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8; REPORT_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn firmware(bytes: &[u8; REPORT_BYTES], at: usize) -> FirmwareVersion {
    let [build, minor, major] = array_at(bytes, at);
    FirmwareVersion { major, minor, build }
}

fn reversed(mut number: [u8; 48]) -> [u8; 48] {
    number.reverse();
    number
}
