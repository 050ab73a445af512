//! Policies and manifests as people write them: TOML. A key that is not known is an error that names it; digests and keys
//! are hexadecimal.

use crate::launch::Measurement;
use crate::manifest::{Manifest, ManifestError, Mode, is_name, sound_key};
use crate::policy::{AcceptedGuest, MAX_ENTRIES, ManifestRule, Policy};
use crate::tcb::{Platform, Tcb};
use crate::verify::hex;
use ed25519_dalek::VerifyingKey;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Longest policy or manifest file in bytes.
pub const MAX_FILE_BYTES: usize = 256 << 10;

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Longer than [`MAX_FILE_BYTES`].
    #[error("the file is longer than {MAX_FILE_BYTES} bytes")]
    TooLong,
    /// It is not TOML, or a key is not known, missing or of another type.
    #[error("line {line}: {message}")]
    Toml {
        /// Where, counted from 1; 0 if it concerns the whole file.
        line: usize,
        /// What, naming the key.
        message: String,
    },
    /// A key's value is not allowed.
    #[error("{key}: {problem}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The manifest breaks a limit, or a key in it is none.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyFile {
    measurements: Vec<GuestEntry>,
    platforms: Vec<String>,
    minimum_tcb: BTreeMap<String, TcbEntry>,
    allow_debug: bool,
    allow_software_platform: bool,
    software_roots: Vec<String>,
    revoked_chips: Vec<String>,
    revoked_certificates: Vec<String>,
    outer_measurements: Vec<String>,
    manifest: Option<ManifestEntry>,
    code: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GuestEntry {
    digest: String,
    guest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcbEntry {
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestEntry {
    owner: String,
    minimum_version: u64,
    mode: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    version: u64,
    owner: String,
    name: String,
    mode: String,
    #[serde(default)]
    compilers: Vec<String>,
    #[serde(default)]
    brokers: Vec<String>,
    migration: Option<PolicyFile>,
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// If it is not one; the message names the key.
    pub fn from_toml(text: &str) -> Result<Policy, FileError> {
        policy(parse(text)?)
    }
}

impl Manifest {
    /// Reads a manifest file.
    ///
    /// # Errors
    /// If it is not one; the message names the key.
    pub fn from_toml(text: &str) -> Result<Manifest, FileError> {
        let file: ManifestFile = parse(text)?;
        if !is_name(&file.name) {
            return Err(bad("name", "1 to 128 bytes without control characters are allowed"));
        }
        let migration = file.migration.map(policy).transpose()?.map(|policy| policy.encode());
        let manifest = Manifest {
            version: file.version,
            owner: public_key("owner", &file.owner)?,
            compilers: all(&file.compilers, |text| public_key("compilers", text))?,
            brokers: all(&file.brokers, |text| public_key("brokers", text))?,
            mode: mode("mode", &file.mode)?,
            name: file.name,
            migration,
        };
        // Its limits, and one order of the keys.
        Ok(Manifest::decode(&manifest.encode())?)
    }

    /// What a policy file says, as the section of a manifest file that tells where its tenant may move.
    ///
    /// # Errors
    /// If it is no policy file; the message names the key.
    pub fn migration_section(policy: &str) -> Result<String, FileError> {
        Policy::from_toml(policy)?;
        let rules: toml::Table = parse(policy)?;
        let file = toml::Table::from_iter([("migration".to_owned(), toml::Value::Table(rules))]);
        toml::to_string(&file).map_err(|error| FileError::Toml { line: 0, message: error.to_string() })
    }

    /// Writes it for people. The migration policy, if any, is only named by its hash.
    pub fn to_toml(&self) -> String {
        let keys = |keys: &[VerifyingKey]| {
            let keys: Vec<String> = keys.iter().map(|key| format!("\"{}\"", hex(key.as_bytes()))).collect();
            keys.join(", ")
        };
        let mut text = format!(
            "version = {}\nname = {}\nmode = \"{}\"\nowner = \"{}\"\ncompilers = [{}]\nbrokers = [{}]\n",
            self.version,
            toml::Value::String(self.name.clone()),
            self.mode.name(),
            hex(self.owner.as_bytes()),
            keys(&self.compilers),
            keys(&self.brokers),
        );
        if let Some(migration) = &self.migration {
            let hash = hex(&crate::manifest::hash(migration));
            writeln!(text, "# migration policy with SHA-256 {hash}").expect("writing to a string");
        }
        text
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, FileError> {
    if text.len() > MAX_FILE_BYTES {
        return Err(FileError::TooLong);
    }
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| {
            1 + text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count()
        });
        FileError::Toml { line, message: error.message().replace('\n', " ") }
    })
}

fn policy(file: PolicyFile) -> Result<Policy, FileError> {
    let mut minimum_tcb = Vec::new();
    for (name, entry) in &file.minimum_tcb {
        let platform = platform("minimum_tcb", name)?;
        if entry.fmc.is_some() != (platform == Platform::Turin) {
            return Err(bad("minimum_tcb", "fmc belongs to turin, and only there"));
        }
        let TcbEntry { fmc, bootloader, tee, snp, microcode } = *entry;
        minimum_tcb.push((platform, Tcb { fmc: fmc.unwrap_or(0), bootloader, tee, snp, microcode }));
    }
    let guest = |entry: &GuestEntry| {
        if !is_name(&entry.guest) {
            return Err(bad("measurements", "guest needs 1 to 128 bytes without control characters"));
        }
        Ok(AcceptedGuest {
            measurement: Measurement(bytes("measurements", &entry.digest)?),
            guest: entry.guest.clone(),
        })
    };
    let manifest = |entry: &ManifestEntry| {
        Ok::<_, FileError>(ManifestRule {
            owner: *public_key("manifest.owner", &entry.owner)?.as_bytes(),
            minimum_version: entry.minimum_version,
            mode: mode("manifest.mode", &entry.mode)?,
        })
    };
    let policy = Policy {
        measurements: all(&file.measurements, guest)?,
        platforms: all(&file.platforms, |name| platform("platforms", name))?,
        minimum_tcb,
        allow_debug: file.allow_debug,
        allow_software_platform: file.allow_software_platform,
        software_roots: all(&file.software_roots, |text| bytes("software_roots", text))?,
        revoked_chips: all(&file.revoked_chips, |text| chip("revoked_chips", text))?,
        revoked_certificates: all(&file.revoked_certificates, |text| bytes("revoked_certificates", text))?,
        outer_measurements: all(&file.outer_measurements, |text| {
            bytes("outer_measurements", text).map(Measurement)
        })?,
        manifest: file.manifest.as_ref().map(manifest).transpose()?,
        code: file.code.map(|list| all(&list, |text| bytes("code", text))).transpose()?,
    };
    // One order of each list, so that equal policies have equal bytes.
    Policy::decode(&policy.encode()).map_err(|error| bad("policy", &error.to_string()))
}

fn all<T, U>(list: &[T], each: impl Fn(&T) -> Result<U, FileError>) -> Result<Vec<U>, FileError> {
    if list.len() > MAX_ENTRIES {
        return Err(bad("policy", &format!("a list may have {MAX_ENTRIES} entries")));
    }
    list.iter().map(each).collect()
}

fn bad(key: &'static str, problem: &str) -> FileError {
    FileError::Value { key, problem: problem.to_string() }
}

fn platform(key: &'static str, name: &str) -> Result<Platform, FileError> {
    match Platform::from_name(name) {
        Some(Platform::Software) => {
            Err(bad(key, "software is allowed by allow_software_platform = true only"))
        }
        Some(platform) => Ok(platform),
        None => Err(bad(key, &format!("'{}' is none of milan, genoa, turin", name.escape_debug()))),
    }
}

fn mode(key: &'static str, name: &str) -> Result<Mode, FileError> {
    let wrong = || bad(key, &format!("'{}' is neither sealed nor open", name.escape_debug()));
    Mode::from_name(name).ok_or_else(wrong)
}

fn public_key(key: &'static str, text: &str) -> Result<VerifyingKey, FileError> {
    sound_key(&bytes(key, text)?).map_err(|error| bad(key, &error.to_string()))
}

/// A chip's identity: 64 bytes, or the 8 that are not zero on Turin.
fn chip(key: &'static str, text: &str) -> Result<[u8; 64], FileError> {
    if text.len() != 16 {
        return bytes(key, text);
    }
    let mut id = [0; 64];
    id[..8].copy_from_slice(&bytes::<8>(key, text)?);
    Ok(id)
}

/// `N` bytes from hexadecimal digits of either case.
fn bytes<const N: usize>(key: &'static str, text: &str) -> Result<[u8; N], FileError> {
    let wrong = || bad(key, &format!("{} hexadecimal digits are needed", 2 * N));
    if text.len() != 2 * N {
        return Err(wrong());
    }
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
        *byte = digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
    }
    Ok(out)
}
