//! Policies: what a verifier accepts. They are written in TOML (`docs/evidence.md`) and have a binary form besides, which a
//! tenant's manifest carries for the other end of migrations. An empty policy accepts nothing.

use crate::launch::Measurement;
use crate::manifest::{self, Mode};
use crate::tcb::{Platform, Tcb};
use crate::wire::{Reader, WireError, Writer};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Most entries of any list of a policy.
pub const MAX_ENTRIES: usize = 256;

const MAGIC: &[u8; 8] = b"NACREPO1";

/// A guest that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedGuest {
    /// Its launch digest.
    pub measurement: Measurement,
    /// Its version, for people: shown when it is met.
    pub guest: String,
}

/// What the CVM's manifest must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestRule {
    /// The owner's Ed25519 public key.
    pub owner: [u8; 32],
    /// Least version.
    pub minimum_version: u64,
    /// How the CVM may be used.
    pub mode: Mode,
}

/// What a verifier accepts. The default accepts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The guests that are accepted.
    pub measurements: Vec<AcceptedGuest>,
    /// The products that are accepted; never [`Platform::Software`].
    pub platforms: Vec<Platform>,
    /// Least TCB by product. A product without an entry is not accepted.
    pub minimum_tcb: Vec<(Platform, Tcb)>,
    /// Whether the host may debug the guest.
    pub allow_debug: bool,
    /// Whether evidence of a machine without memory encryption is accepted.
    pub allow_software_platform: bool,
    /// SHA-256 of the software roots that are accepted; empty: any.
    pub software_roots: Vec<[u8; 32]>,
    /// Chips that are not accepted.
    pub revoked_chips: Vec<[u8; 64]>,
    /// SHA-256 of certificates that are not accepted, wherever in the chain.
    pub revoked_certificates: Vec<[u8; 32]>,
    /// Launch digests of the VM around a nested CVM.
    pub outer_measurements: Vec<Measurement>,
    /// What the manifest must be; `None`: any, or none at all.
    pub manifest: Option<ManifestRule>,
    /// Hashes of code that may be loaded; `None`: any. The list may be empty: nothing may be loaded.
    pub code: Option<Vec<[u8; 32]>>,
}

impl Policy {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut guests = self.measurements.clone();
        guests.sort_by_key(|one| one.measurement);
        guests.dedup_by_key(|one| one.measurement);
        let mut writer = Writer::new(MAGIC).u16(guests.len() as u16);
        for one in &guests {
            writer = writer.raw(&one.measurement.0).string(one.guest.as_bytes());
        }
        let platforms: Vec<[u8; 1]> = self.platforms.iter().map(|one| [*one as u8]).collect();
        let minimum: Vec<[u8; 6]> = self
            .minimum_tcb
            .iter()
            .map(|(platform, tcb)| {
                [*platform as u8, tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode]
            })
            .collect();
        let outer: Vec<[u8; 48]> = self.outer_measurements.iter().map(|one| one.0).collect();
        writer = writer
            .set(&platforms)
            .set(&minimum)
            .u8(u8::from(self.allow_debug))
            .u8(u8::from(self.allow_software_platform))
            .set(&self.software_roots)
            .set(&self.revoked_chips)
            .set(&self.revoked_certificates)
            .set(&outer);
        writer = match self.manifest {
            None => writer.u8(0),
            Some(rule) => writer.u8(1).raw(&rule.owner).u64(rule.minimum_version).u8(match rule.mode {
                Mode::Sealed => 1,
                Mode::Open => 2,
            }),
        };
        match &self.code {
            None => writer.u8(0),
            Some(list) => writer.u8(1).set(list),
        }
        .done()
    }

    /// Reads [`Policy::encode`]'s bytes.
    ///
    /// # Errors
    /// If they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Policy, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(WireError::Magic("a policy"));
        }
        let policy = Policy {
            measurements: guests(&mut reader)?,
            platforms: platforms(&mut reader)?,
            minimum_tcb: minimum_tcb(&mut reader)?,
            allow_debug: reader.flag("allow_debug")?,
            allow_software_platform: reader.flag("allow_software_platform")?,
            software_roots: reader.set("software_roots", MAX_ENTRIES)?,
            revoked_chips: reader.set("revoked_chips", MAX_ENTRIES)?,
            revoked_certificates: reader.set("revoked_certificates", MAX_ENTRIES)?,
            outer_measurements: reader
                .set("outer_measurements", MAX_ENTRIES)?
                .into_iter()
                .map(Measurement)
                .collect(),
            manifest: match reader.flag("manifest")? {
                false => None,
                true => Some(ManifestRule {
                    owner: reader.array()?,
                    minimum_version: reader.u64()?,
                    mode: match reader.u8()? {
                        1 => Mode::Sealed,
                        2 => Mode::Open,
                        _ => return Err(WireError::Value("mode")),
                    },
                }),
            },
            code: match reader.flag("code")? {
                false => None,
                true => Some(reader.set("code", MAX_ENTRIES)?),
            },
        };
        reader.end()?;
        Ok(policy)
    }

    /// The least TCB of a product, if the policy has one.
    pub fn minimum_for(&self, platform: Platform) -> Option<Tcb> {
        self.minimum_tcb.iter().find(|(of, _)| *of == platform).map(|(_, tcb)| *tcb)
    }
}

fn guests(reader: &mut Reader<'_>) -> Result<Vec<AcceptedGuest>, WireError> {
    let what = "measurements";
    let mut all: Vec<AcceptedGuest> = Vec::new();
    for _ in 0..reader.count(what, MAX_ENTRIES)? {
        let measurement = Measurement(reader.array()?);
        let guest = reader.text("guest", manifest::MAX_NAME_BYTES)?.to_string();
        let ascends = all.last().is_none_or(|last| last.measurement < measurement);
        if !ascends || !manifest::is_name(&guest) {
            return Err(WireError::Value(what));
        }
        all.push(AcceptedGuest { measurement, guest });
    }
    Ok(all)
}

fn genuine_platform(number: u8) -> Result<Platform, WireError> {
    let genuine = [Platform::Milan, Platform::Genoa, Platform::Turin];
    genuine.into_iter().find(|one| *one as u8 == number).ok_or(WireError::Value("platforms"))
}

fn platforms(reader: &mut Reader<'_>) -> Result<Vec<Platform>, WireError> {
    let numbers: Vec<[u8; 1]> = reader.set("platforms", 8)?;
    numbers.into_iter().map(|[number]| genuine_platform(number)).collect()
}

fn minimum_tcb(reader: &mut Reader<'_>) -> Result<Vec<(Platform, Tcb)>, WireError> {
    let mut all: Vec<(Platform, Tcb)> = Vec::new();
    for [number, fmc, bootloader, tee, snp, microcode] in reader.set("minimum_tcb", 8)? {
        let platform = genuine_platform(number)?;
        if all.last().is_some_and(|(last, _)| *last == platform) {
            return Err(WireError::Value("minimum_tcb"));
        }
        all.push((platform, Tcb { fmc, bootloader, tee, snp, microcode }));
    }
    Ok(all)
}
