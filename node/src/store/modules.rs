//! The files of modules: content-addressed, counted in the database, removed with their last reference.

use super::{StoreError, io_error, private_directory};
use crate::names::{Digest, hex};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The directory of modules.
#[derive(Debug)]
pub struct Modules {
    dir: PathBuf,
}

/// A module on the disk that nobody refers to yet. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    file: NamedTempFile,
    /// SHA-256 of the module.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

impl Modules {
    /// Opens the directory and removes what nobody refers to.
    pub(super) fn open(dir: &Path, references: &[[u8; 32]]) -> Result<Self, StoreError> {
        private_directory(dir)?;
        let kept: HashSet<String> = references.iter().map(|digest| hex(digest)).collect();
        for entry in fs::read_dir(dir).map_err(io_error(dir))? {
            let entry = entry.map_err(io_error(dir))?;
            if !entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                tracing::debug!(file = ?entry.file_name(), "a module that nobody refers to is removed");
                fs::remove_file(entry.path()).map_err(io_error(&entry.path()))?;
            }
        }
        Ok(Self { dir: dir.to_owned() })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// Writes a module to the disk, under no name yet. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn draft(&self, digest: Digest, module: &[u8]) -> Result<Draft, StoreError> {
        let write = || -> io::Result<NamedTempFile> {
            let mut file = tempfile::Builder::new()
                .prefix(".new-")
                .permissions(fs::Permissions::from_mode(0o600))
                .tempfile_in(&self.dir)?;
            file.write_all(module)?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        let file = write().map_err(io_error(&self.dir))?;
        Ok(Draft { file, digest, bytes: module.len() as u64 })
    }

    /// Gives drafts their names, durably. Only the committing thread calls this.
    pub(super) fn keep(&self, draft: Draft) -> Result<(), StoreError> {
        let path = self.path(&draft.digest);
        draft.file.persist(&path).map_err(|error| io_error(&path)(error.error))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io_error(&self.dir))
    }

    /// Removes a module that nobody refers to. If that fails the next start does it.
    pub(super) fn remove(&self, digest: &Digest) {
        if let Err(error) = fs::remove_file(self.path(digest)) {
            tracing::warn!(%error, "a module could not be removed");
        }
    }

    /// Whether a module is here.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Reads a module. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.path(digest);
        fs::read(&path).map_err(io_error(&path))
    }
}
