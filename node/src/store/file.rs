//! The file of the database. After an error of the file system, say because the disk is full, the database takes and gives nothing any more;
//! it is then closed, and opened again for the next change, as at a start. What was acknowledged is there; what was refused may be, as
//! after a crash.

use super::{StoreError, io_error};
use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Memory for pages of the database, in bytes.
const CACHE_BYTES: usize = 64 << 20;
/// Between two attempts to open it again: each reads all of it.
const PAUSE: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };

/// The database, as long as its file is sound.
pub(super) struct DatabaseFile {
    path: PathBuf,
    database: RwLock<Option<Arc<Database>>>,
    /// It failed; when it was last tried to open it again.
    failed: Mutex<Option<Option<Instant>>>,
}

impl DatabaseFile {
    /// Opens it, makes it if there is none.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let database = RwLock::new(Some(open(&path)?));
        Ok(Self { path, database, failed: Mutex::new(None) })
    }

    fn get(&self) -> Result<Arc<Database>, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner).clone();
        database.ok_or_else(|| StoreError::Database("its disk failed; it is opened again soon".into()))
    }

    pub(super) fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        Ok(self.get()?.begin_read()?)
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        Ok(self.get()?.begin_write()?)
    }

    /// Something failed: it is opened again before the next change.
    pub(super) fn fail(&self) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(None);
    }

    /// Opens it again if it has failed; whether it has. For the one writer, while no change is under way.
    pub(super) fn renew(&self) -> Result<bool, StoreError> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tried) = *failed else { return Ok(false) };
        if tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return Err(StoreError::Database("its disk failed; it is opened again soon".into()));
        }
        *failed = Some(Some(Instant::now()));
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Only one may have the file open.
        *database = None;
        *database = Some(open(&self.path)?);
        *failed = None;
        tracing::warn!(path = %self.path.display(), "the database was opened again after its disk had failed");
        Ok(true)
    }
}

fn open(path: &Path) -> Result<Arc<Database>, StoreError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    Ok(Arc::new(builder.create_with_backend(backend(file.map_err(io_error(path))?, path)?)?))
}

#[cfg(not(test))]
fn backend(file: File, _: &Path) -> Result<redb::backends::FileBackend, StoreError> {
    Ok(redb::backends::FileBackend::new(file)?)
}

#[cfg(test)]
fn backend(file: File, path: &Path) -> Result<faulty::Disk, StoreError> {
    Ok(faulty::Disk { file: redb::backends::FileBackend::new(file)?, full: path.with_extension("full") })
}

/// A file on a disk that is full as long as there is another file beside it.
#[cfg(test)]
mod faulty {
    use redb::StorageBackend;
    use redb::backends::FileBackend;
    use std::io;
    use std::path::PathBuf;

    #[derive(Debug)]
    pub struct Disk {
        pub file: FileBackend,
        pub full: PathBuf,
    }

    impl Disk {
        fn check(&self) -> io::Result<()> {
            if self.full.exists() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check()?;
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check()?;
            self.file.write(offset, data)
        }

        fn close(&self) -> io::Result<()> {
            self.file.close()
        }
    }
}
