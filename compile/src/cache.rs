//! The disk cache of compiled programs: `$NACRE_CACHE_DIR`, else `$XDG_CACHE_HOME/nacre`, else `~/.cache/nacre`.
//!
//! One file per entry, `<key>.cwasm`, where the key is a digest of the module, the engine settings and the CPU target.
//! Entries appear by rename, so that processes never see half of one and need no lock; every entry is checked against
//! its header when it is read, and a damaged one counts as absent. The modification time is the time of last use:
//! when the entries exceed the cap, the least recently used go.
//!
//! No failure of the cache fails a command: callers go on without it.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nacre_engine::{CpuFeatures, CpuTarget, container, fingerprint};
use sha2::{Digest, Sha256};

use crate::program::Program;

/// All entries together, in bytes.
pub const DEFAULT_CAP_BYTES: u64 = 2 << 30;

const SUFFIX: &str = "cwasm";
const TEMPORARY_PREFIX: &str = ".new-";
/// A temporary file this old was left by a process that died.
const TEMPORARY_LIFETIME: Duration = Duration::from_secs(3600);
/// The time of last use is written at most this often.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// Identifies an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    source_sha256: [u8; 32],
    target: CpuTarget,
    digest: [u8; 32],
}

impl Key {
    /// The key of `wasm` (binary form) compiled for `target` with this build's settings.
    #[must_use]
    pub fn new(wasm: &[u8], target: CpuTarget) -> Self {
        Self::of_digest(container::sha256(wasm), target)
    }

    /// The same, from the SHA-256 of the module's binary form.
    #[must_use]
    pub fn of_digest(source_sha256: [u8; 32], target: CpuTarget) -> Self {
        let digest = Sha256::new()
            .chain_update(container::HEADER_VERSION.to_le_bytes())
            .chain_update(fingerprint())
            .chain_update(target.name())
            .chain_update(target.features().bits().to_le_bytes())
            .chain_update(source_sha256)
            .finalize();
        Self { source_sha256, target, digest: digest.into() }
    }

    fn file_name(&self) -> String {
        let mut name: String = self.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        name.push('.');
        name.push_str(SUFFIX);
        name
    }
}

/// A cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
    cap_bytes: u64,
}

impl Cache {
    /// The cache in `dir`, which is made when the first entry is.
    #[must_use]
    pub fn new(dir: PathBuf, cap_bytes: u64) -> Self {
        Self { dir, cap_bytes }
    }

    /// The user's cache, or `None` when the environment names no place for it.
    #[must_use]
    pub fn of_user() -> Option<Self> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = var("NACRE_CACHE_DIR")
            // The XDG specification: a relative path is to be ignored.
            .or_else(|| var("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()).map(|dir| dir.join("nacre")))
            .or_else(|| var("HOME").map(|home| home.join(".cache/nacre")))?;
        Some(Self::new(dir, DEFAULT_CAP_BYTES))
    }

    /// Where the entries are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entry of `key`, if there is one and it is sound. A damaged entry is removed.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Program> {
        let path = self.dir.join(key.file_name());
        let mut file = File::open(&path).ok()?;
        let program = match read_entry(&mut file, key) {
            Ok(program) => program,
            Err(reason) => {
                tracing::warn!(path = %path.display(), %reason, "damaged cache entry");
                // When it can not be removed the next insert replaces it.
                let _ = fs::remove_file(&path);
                return None;
            }
        };
        // A cache that can not be written still serves; its order of eviction is then by age.
        let _ = touch(&file);
        Some(program)
    }

    /// Stores `program` under `key` and evicts what exceeds the cap.
    ///
    /// # Errors
    /// When the directory can not be made or written.
    pub fn put(&self, key: &Key, program: &Program) -> io::Result<()> {
        // Only this user may write code that will be run.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let name = key.file_name();
        write_atomically(&self.dir.join(&name), program.file(), 0o600)?;
        self.evict(&name)
    }

    /// Removes the least recently used entries above the cap, but never `keep`, and what dead processes left.
    fn evict(&self, keep: &str) -> io::Result<()> {
        let mut entries = Vec::new();
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Entries of other processes may vanish meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            let Ok(modified) = metadata.modified() else { continue };
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|_| metadata.is_file()) else { continue };
            if name.starts_with(TEMPORARY_PREFIX) {
                if now.duration_since(modified).is_ok_and(|age| age > TEMPORARY_LIFETIME) {
                    let _ = fs::remove_file(entry.path());
                }
            } else if Path::new(name).extension().is_some_and(|extension| extension == SUFFIX) {
                entries.push((name == keep, modified, metadata.len(), entry.path()));
            }
        }
        // Newest first, the kept one before all.
        entries.sort_by_key(|entry| std::cmp::Reverse((entry.0, entry.1)));
        let mut total = 0u64;
        for (kept, _, bytes, path) in entries {
            total = total.saturating_add(bytes);
            if total > self.cap_bytes && !kept {
                tracing::debug!(path = %path.display(), bytes, "evicted from the cache");
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

/// Reads and checks an entry; `key` says what it must be.
fn read_entry(file: &mut File, key: &Key) -> Result<Program, String> {
    let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |m| usize::try_from(m.len()).unwrap_or(0)));
    io::Read::read_to_end(file, &mut bytes).map_err(|error| error.to_string())?;
    // Whether this CPU can run it is not the cache's question: one may compile here and run elsewhere.
    let program =
        Program::from_bytes(bytes, CpuFeatures::probe(|_| true)).map_err(|error| error.to_string())?;
    if program.header().source_sha256 != key.source_sha256 || program.header().target != key.target {
        return Err("it belongs to another program".to_owned());
    }
    Ok(program)
}

/// Notes that an entry was used now.
fn touch(file: &File) -> io::Result<()> {
    let now = SystemTime::now();
    let age = now.duration_since(file.metadata()?.modified()?).unwrap_or(TOUCH_INTERVAL);
    if age >= TOUCH_INTERVAL { file.set_modified(now) } else { Ok(()) }
}

/// Writes a file that appears under its name only when it is complete. `mode` is subject to the umask.
///
/// # Errors
/// The operating system's; the file at `path` is then unchanged.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
