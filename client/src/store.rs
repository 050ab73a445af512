//! The key broker's store: a folder that only its owner may read.
//!
//! ```text
//! releases/HASH.json       one per name (HASH: of the name): version, package, key, secrets
//! packages/ID.package      ciphertext, as the node has it: for a node that lost its own
//! manifest.signed          the newest manifest
//! audit.jsonl              what was released to whom, one line each; only ever appended to
//! lock                     one writer at a time: nacre deploy and the broker share the folder
//! ```
//! A version never goes back: what is removed leaves its version behind. Files are replaced whole, and flushed before anybody is
//! told.

use crate::files;
use crate::keys::from_hex;
use crate::release::{Release, Service};
use nacre_attest::manifest::{Manifest, ManifestError, SignedManifest};
use nacre_attest::verify::hex;
use nacre_session::command::ModuleKind;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroize;

/// Largest record: a release with its variables, which fit a command.
const MAX_RECORD_BYTES: u64 = 192 << 20;
/// Largest package: a gibibyte of code.
const MAX_PACKAGE_BYTES: u64 = (1 << 30) + (1 << 20);
const MAX_MANIFEST_BYTES: u64 = 64 << 10;

/// Why the store does not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file can't be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file is not what this module wrote.
    #[error("{0} is damaged; restore it from a backup")]
    Damaged(PathBuf),
    /// A newer version was registered before.
    #[error("{name}: version {newest} was registered before; raise the version")]
    Older {
        /// Of what.
        name: String,
        /// The newest one.
        newest: u64,
    },
    /// This version was registered with other content.
    #[error("{name}: version {version} was registered with other content; raise the version")]
    SameVersion {
        /// Of what.
        name: String,
        /// Which one.
        version: u64,
    },
    /// The store belongs to another owner.
    #[error("the store's manifest has another owner; use one store per owner")]
    OtherOwner,
    /// A newer manifest is known.
    #[error("version {newest} of the manifest is known; sign this one with a higher version")]
    OlderManifest {
        /// The newest one.
        newest: u64,
    },
    /// Another manifest of this version is known: which of them is the newest, nobody could say.
    #[error("another manifest of version {version} is known; sign this one with a higher version")]
    SameManifestVersion {
        /// Which one.
        version: u64,
    },
    /// A manifest is not signed by its owner.
    #[error("{0}; sign it with nacre manifest sign")]
    Manifest(#[from] ManifestError),
}

/// What is known of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The newest version there ever was.
    pub version: u64,
    /// What is released; nothing if it was removed.
    pub release: Option<Release>,
    /// Packages that the node may still have and nobody needs: 32 hexadecimal digits each.
    pub obsolete: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    name: String,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    release: Option<ReleaseRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    obsolete: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseRecord {
    kind: String,
    package: String,
    content: String,
    code: String,
    key: String,
    env: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restart: Option<String>,
}

impl Drop for ReleaseRecord {
    fn drop(&mut self) {
        self.key.zeroize();
        self.env.iter_mut().for_each(|(_, value)| value.zeroize());
    }
}

/// The name of a kind, in files and output.
#[must_use]
pub fn kind_name(kind: ModuleKind) -> &'static str {
    match kind {
        ModuleKind::Action => "action",
        ModuleKind::Service => "service",
        ModuleKind::TlsService => "tls-service",
    }
}

fn kind_of(name: &str) -> Option<ModuleKind> {
    [ModuleKind::Action, ModuleKind::Service, ModuleKind::TlsService]
        .into_iter()
        .find(|kind| kind_name(*kind) == name)
}

impl Record {
    fn new(entry: &Entry) -> Record {
        let release = entry.release.as_ref().map(|release| ReleaseRecord {
            kind: kind_name(release.kind).to_owned(),
            package: hex(&release.package),
            content: hex(&release.content),
            code: hex(&release.code),
            key: hex(&release.key),
            env: release.env.clone(),
            port: release.service.as_ref().map(|service| service.port),
            restart: release.service.as_ref().and_then(|service| service.restart.clone()),
        });
        let Entry { name, version, obsolete, .. } = entry;
        Record { name: name.clone(), version: *version, release, obsolete: obsolete.clone() }
    }

    fn entry(&self) -> Option<Entry> {
        let release = match &self.release {
            None => None,
            Some(release) => Some(Release {
                name: self.name.clone(),
                version: self.version,
                kind: kind_of(&release.kind)?,
                package: from_hex(&release.package)?,
                content: from_hex(&release.content)?,
                code: from_hex(&release.code)?,
                key: from_hex(&release.key)?,
                env: release.env.clone(),
                service: release.port.map(|port| Service { port, restart: release.restart.clone() }),
            }),
        };
        let Record { name, version, obsolete, .. } = self;
        Some(Entry { name: name.clone(), version: *version, release, obsolete: obsolete.clone() })
    }
}

/// A store in a folder.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the store in a folder; makes it if it is not there.
    ///
    /// # Errors
    /// `File`.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        for dir in [dir, &dir.join("releases"), &dir.join("packages")] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|error| StoreError::File { path: dir.to_owned(), error })?;
        }
        Ok(Store { dir: dir.to_owned() })
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps other writers out until it is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join("lock");
        let lock = || {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|error| StoreError::File { path: path.clone(), error })
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.dir.join("releases").join(format!("{}.json", hex(&Sha256::digest(name))))
    }

    fn package_path(&self, id: &str) -> PathBuf {
        self.dir.join("packages").join(format!("{id}.package"))
    }

    /// What is known of a name.
    ///
    /// # Errors
    /// `File`, `Damaged`.
    pub fn entry(&self, name: &str) -> Result<Option<Entry>, StoreError> {
        let found = read_record(&self.record_path(name))?;
        if found.as_ref().is_some_and(|entry| entry.name != name) {
            return Err(StoreError::Damaged(self.record_path(name)));
        }
        Ok(found)
    }

    /// Everything, by name.
    ///
    /// # Errors
    /// `File`, `Damaged`.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let dir = self.dir.join("releases");
        let failed = |error| StoreError::File { path: dir.clone(), error };
        let mut all = Vec::new();
        for file in fs::read_dir(&dir).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                all.extend(read_record(&path)?);
            }
        }
        all.sort_by(|a: &Entry, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Whether this version of `name`, with this package, may be registered. The same again may.
    ///
    /// # Errors
    /// `Older`, `SameVersion`; `File`, `Damaged`.
    pub fn check(&self, name: &str, version: u64, content: Option<&[u8; 32]>) -> Result<(), StoreError> {
        let Some(entry) = self.entry(name)? else { return Ok(()) };
        let known = entry.release.as_ref().map(|release| &release.content);
        let name = name.to_owned();
        match version.cmp(&entry.version) {
            std::cmp::Ordering::Less => Err(StoreError::Older { name, newest: entry.version }),
            std::cmp::Ordering::Equal if known.is_none() || known != content => {
                Err(StoreError::SameVersion { name, version })
            }
            _ => Ok(()),
        }
    }

    /// Registers a release with its package; the one before is obsolete then.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changes.
    pub fn register(&self, release: &Release, package: &[u8]) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        self.check(&release.name, release.version, Some(&release.content))?;
        let id = hex(&release.package);
        write(&self.package_path(&id), package)?;
        let mut obsolete = self.superseded(&release.name)?;
        obsolete.retain(|old| *old != id);
        let (name, version, release) = (release.name.clone(), release.version, Some(release.clone()));
        self.put(&Entry { name, version, release, obsolete })
    }

    /// Forgets key and secrets of a name, whose version stays.
    ///
    /// # Errors
    /// `File`, `Damaged`.
    pub fn forget(&self, name: &str) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let Some(entry) = self.entry(name)? else { return Ok(()) };
        let obsolete = self.superseded(name)?;
        self.put(&Entry { release: None, obsolete, ..entry })
    }

    /// The packages of a name so far.
    fn superseded(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let Some(entry) = self.entry(name)? else { return Ok(Vec::new()) };
        let last = entry.release.as_ref().map(|release| hex(&release.package));
        Ok(entry.obsolete.iter().cloned().chain(last).collect())
    }

    /// Notes that the node has these packages no more.
    ///
    /// # Errors
    /// `File`, `Damaged`.
    pub fn cleared(&self, name: &str, packages: &[String]) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let Some(mut entry) = self.entry(name)? else { return Ok(()) };
        entry.obsolete.retain(|id| !packages.contains(id));
        self.put(&entry)?;
        for id in packages {
            // It is only space; the next registration does not need it.
            let _ = fs::remove_file(self.package_path(id));
        }
        Ok(())
    }

    fn put(&self, entry: &Entry) -> Result<(), StoreError> {
        let path = self.record_path(&entry.name);
        let encoded = serde_json::to_vec_pretty(&Record::new(entry));
        let mut bytes =
            encoded.map_err(|error| StoreError::File { path: path.clone(), error: error.into() })?;
        let written = write(&path, &bytes);
        bytes.zeroize();
        written
    }

    /// The package of a release.
    ///
    /// # Errors
    /// `File`.
    pub fn package(&self, release: &Release) -> Result<Vec<u8>, StoreError> {
        let path = self.package_path(&hex(&release.package));
        files::read_private(&path, MAX_PACKAGE_BYTES).map_err(|error| StoreError::File { path, error })
    }

    /// The newest manifest.
    ///
    /// # Errors
    /// `File`, `Damaged`, `Manifest`.
    pub fn manifest(&self) -> Result<Option<(SignedManifest, Manifest)>, StoreError> {
        let path = self.dir.join("manifest.signed");
        let bytes = match files::read_private(&path, MAX_MANIFEST_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| StoreError::File { path: path.clone(), error })?,
        };
        let signed = SignedManifest::decode(&bytes).map_err(|_| StoreError::Damaged(path.clone()))?;
        let manifest = signed.verify().map_err(|_| StoreError::Damaged(path))?;
        Ok(Some((signed, manifest)))
    }

    /// Keeps a manifest if it is the newest.
    ///
    /// # Errors
    /// `OtherOwner`, `OlderManifest`, `SameManifestVersion`, `Manifest`; `File`.
    pub fn set_manifest(&self, signed: &SignedManifest) -> Result<(), StoreError> {
        let new = signed.verify()?;
        let _lock = self.lock()?;
        if let Some((_, known)) = self.manifest()? {
            if known.owner != new.owner {
                return Err(StoreError::OtherOwner);
            }
            if known.version > new.version {
                return Err(StoreError::OlderManifest { newest: known.version });
            }
            if known == new {
                return Ok(());
            }
            if known.version == new.version {
                return Err(StoreError::SameManifestVersion { version: known.version });
            }
        }
        write(&self.dir.join("manifest.signed"), &signed.encode())
    }

    /// Appends a line to the audit log, with the time, and flushes it: nothing is released that is not written down.
    ///
    /// # Errors
    /// `File`.
    pub fn audit(&self, event: &str, mut what: serde_json::Value) -> Result<(), StoreError> {
        let path = self.dir.join("audit.jsonl");
        let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        what["time"] = now.into();
        what["event"] = event.into();
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            file.write_all(format!("{what}\n").as_bytes())?;
            file.sync_data()
        };
        append().map_err(|error| StoreError::File { path: path.clone(), error })
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    files::replace(path, bytes).map_err(|error| StoreError::File { path: path.to_owned(), error })
}

fn read_record(path: &Path) -> Result<Option<Entry>, StoreError> {
    let mut bytes = match files::read_private(path, MAX_RECORD_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| StoreError::File { path: path.to_owned(), error })?,
    };
    let record = serde_json::from_slice::<Record>(&bytes);
    bytes.zeroize();
    let entry = record.ok().and_then(|record| record.entry());
    entry.map(Some).ok_or_else(|| StoreError::Damaged(path.to_owned()))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
