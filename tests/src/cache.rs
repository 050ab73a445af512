//! The cache folder for what tests fetch or compile: `.cache/` in the repository's root, or `$NACRE_TEST_CACHE`.
//! Each entry is a folder that appears in one step when it is complete; two processes never make the same one twice.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache folder, making it if necessary.
    pub fn open() -> Result<Cache> {
        let root = match std::env::var_os("NACRE_TEST_CACHE") {
            Some(dir) => PathBuf::from(dir),
            None => crate::repository().join(".cache"),
        };
        fs::create_dir_all(root.join("locks")).with_context(|| format!("can't make {}", root.display()))?;
        Ok(Cache { root: root.canonicalize()? })
    }

    /// The folder of the entry `key`. If there is none yet, `make` fills an empty folder which then becomes the entry;
    /// if `make` fails nothing stays behind. Others who want the same entry wait meanwhile. The key must name
    /// everything the content depends on (versions, checksums).
    pub fn entry(&self, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let done = self.root.join(key);
        let lock =
            File::create(self.root.join("locks").join(key)).with_context(|| format!("can't lock {key}"))?;
        lock.lock().with_context(|| format!("can't lock {key}"))?;
        if done.is_dir() {
            return Ok(done);
        }
        let draft = self.root.join(format!("{key}.part"));
        // What a killed run left: the lock is ours, so nobody is working in it.
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        fs::create_dir_all(&draft)?;
        let made = make(&draft);
        if let Err(error) = made {
            fs::remove_dir_all(&draft)?;
            return Err(error);
        }
        fs::rename(&draft, &done)?;
        Ok(done)
    }

    /// A folder that tools may use for caches of their own.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("scratch").join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// The SHA-256 digest of a file, in hexadecimal.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let data = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(sha256(&[&data]))
}

/// The SHA-256 digest of the parts, one after the other, in hexadecimal.
pub fn sha256(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_in(dir: &Path) -> Cache {
        fs::create_dir_all(dir.join("locks")).unwrap();
        Cache { root: dir.to_path_buf() }
    }

    #[test]
    fn an_entry_is_made_once_even_by_many_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache_in(dir.path());
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let entry = cache.entry("thing-1", |draft| {
                        made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        Ok(fs::write(draft.join("file"), "content")?)
                    });
                    assert_eq!(fs::read_to_string(entry.unwrap().join("file")).unwrap(), "content");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn a_failed_entry_leaves_nothing_and_can_be_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache_in(dir.path());
        fs::create_dir_all(dir.path().join("thing-2.part/left-over")).unwrap();
        let failed = cache.entry("thing-2", |draft| {
            fs::write(draft.join("half"), "")?;
            anyhow::bail!("no luck")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no luck");
        assert!(!dir.path().join("thing-2").exists() && !dir.path().join("thing-2.part").exists());
        let entry = cache.entry("thing-2", |draft| Ok(fs::write(draft.join("file"), "")?)).unwrap();
        assert_eq!(fs::read_dir(entry).unwrap().count(), 1);
    }

    #[test]
    fn digests_are_sha256() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&[b"a", b"bc"]), expected);
    }
}
