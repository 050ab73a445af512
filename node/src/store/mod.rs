//! Everything durable.
//!
//! ```text
//! STATE_DIR (0700)/
//!   lock             held by the one node that uses the directory; its process id is inside
//!   node.redb        the database: tenants, actions, activations
//!   modules/SHA256   the modules of actions, as they came
//!   compiled/        what was compiled from them; may be deleted at any time
//! ```
//!
//! **What is durable when.** A change is acknowledged after the transaction with it has reached the disk; changes that come
//! at the same time share one ([`commit`]). A non-blocking call is such a change: its id is in [`tables::PENDING`]
//! before its 202 leaves, and whatever is there at the next start becomes an activation that says the node was
//! restarted. The result of a blocking call is acknowledged by being delivered; its record for later reading follows within
//! [`commit::ACTIVATION_DELAY`] and is readable at once.
//!
//! **Modules** are files named by their digest, so that the database stays small. A file is complete and on the disk before
//! the transaction that refers to it, and removed after the transaction that drops the last reference; both happen on
//! the committing thread, in order. What a crash leaves in between is removed at the next start.

pub mod activations;
mod chunk;
pub mod commit;
mod directory;
mod file;
mod lock;
mod marks;
mod migrations;
pub mod modules;
mod sealed;
pub mod tables;

pub use directory::{Directory, EditError};
pub use lock::Lock;
pub use sealed::Sealed;

use crate::migration::Outgoing;
use crate::names::{ActivationId, TenantName, now_ms};
use crate::records::{Action, Pending, Service, TenantRecord};
use commit::{Committer, Writer};
use file::DatabaseFile;
use modules::Modules;
use redb::{ReadTransaction, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system says no.
    #[error("{path}: {error}; check the directory and its permissions")]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        error: io::Error,
    },
    /// Another process has it.
    #[error("{path} is used by another node (process {pid}); stop that one, or choose another --state-dir")]
    Locked {
        /// The state directory.
        path: PathBuf,
        /// Who.
        pid: String,
    },
    /// Others may enter the directory.
    #[error("{0} is open to other users; chmod 700 it, or choose another --state-dir")]
    Open(PathBuf),
    /// The database.
    #[error(
        "the database fails: {0}; look at the disk, restore the state directory from a copy if it is damaged"
    )]
    Database(String),
    /// A value that this version can't read.
    #[error("the database holds something unreadable ({0}); use the version of nacre that wrote it")]
    Unreadable(String),
    /// The store is closed.
    #[error("the node is stopping; try again when it is back")]
    Closed,
    /// The change itself is impossible.
    #[error(transparent)]
    Edit(#[from] EditError),
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(error.to_string())
            }
        }
    )*};
}
from_redb!(
    redb::Error,
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Io { path, error }
}

/// The open store.
pub struct Store {
    database: Arc<DatabaseFile>,
    directory: Arc<Directory>,
    modules: Arc<Modules>,
    committer: Committer,
    recent: Arc<activations::Recent>,
    interrupted: Vec<Outgoing>,
    dir: PathBuf,
    /// Held as long as the store is open, and as its writer is at work.
    _lock: Arc<Lock>,
}

impl Store {
    /// Opens the store in `dir`, makes it if there is none, and ends what a crash left unfinished. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        private_directory(dir)?;
        let lock = Arc::new(Lock::take(dir)?);
        let database = Arc::new(DatabaseFile::open(dir.join("node.redb"))?);
        let interrupted = prepare(&database)?;
        let loaded = load(&database)?;
        let modules = Arc::new(Modules::open(&dir.join("modules"), &loaded.references)?);
        let directory = Arc::new(Directory::new(loaded));
        let recent = Arc::new(activations::Recent::default());
        let writer =
            Writer::new(database.clone(), directory.clone(), modules.clone(), recent.clone(), lock.clone());
        let committer = Committer::start(writer);
        let dir = dir.to_owned();
        Ok(Self { database, directory, modules, committer, recent, interrupted, dir, _lock: lock })
    }

    /// Tenants and actions as they are on the disk.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The files of modules.
    #[must_use]
    pub fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until everything handed over is on the disk; nothing is taken any more.
    pub async fn close(&self) {
        self.committer.close().await;
    }
}

/// Makes the tables, checks the layout, and gives calls and migrations that were under way their end.
fn prepare(database: &DatabaseFile) -> Result<Vec<Outgoing>, StoreError> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(tables::META)?;
        let layout = meta.get("layout")?.map(|value| value.value());
        match layout {
            None => drop(meta.insert("layout", tables::LAYOUT)?),
            Some(tables::LAYOUT) => {}
            Some(tables::LAYOUT_1) => {
                activations::migrate(&transaction)?;
                meta.insert("layout", tables::LAYOUT)?;
            }
            Some(other) => return Err(StoreError::Unreadable(format!("layout {other}"))),
        }
        transaction.open_table(tables::TENANTS)?;
        transaction.open_table(tables::ACTIONS)?;
        transaction.open_table(tables::SERVICES)?;
        transaction.open_table(tables::MODULES)?;
        transaction.open_table(tables::MANIFESTS)?;
        transaction.open_table(tables::PACKAGES)?;
        let mut pending = transaction.open_table(tables::PENDING)?;
        let mut interrupted = Vec::new();
        for entry in pending.iter()? {
            let (key, value) = entry?;
            let (tenant, id) = key.value();
            let id = ActivationId::from_bytes(*id);
            let call: Pending = serde_json::from_slice(value.value())?;
            interrupted.push((tenant.to_owned(), call.interrupted(id, now_ms())));
        }
        pending.retain(|_, _| false)?;
        let tables = &mut activations::Tables::open(&transaction)?;
        for (tenant, activation) in interrupted {
            tables.insert(&tenant, vec![&activation])?;
        }
    }
    let ended = migrations::restarted(&transaction)?;
    transaction.commit()?;
    Ok(ended)
}

struct Loaded {
    tenants: Vec<TenantRecord>,
    actions: Vec<(TenantName, Action)>,
    services: Vec<(TenantName, Service)>,
    sealed: Vec<(TenantName, sealed::Sealed)>,
    marks: marks::Marks,
    references: Vec<[u8; 32]>,
}

/// Everything in a table of what tenants own.
fn owned<T: DeserializeOwned>(
    transaction: &ReadTransaction,
    table: TableDefinition<'_, (&'static str, &'static str), &'static [u8]>,
) -> Result<Vec<(TenantName, T)>, StoreError> {
    let mut found = Vec::new();
    for entry in transaction.open_table(table)?.iter()? {
        let (key, value) = entry?;
        let tenant =
            TenantName::new(key.value().0).map_err(|error| StoreError::Unreadable(error.to_string()))?;
        found.push((tenant, serde_json::from_slice(value.value())?));
    }
    Ok(found)
}

fn load(database: &DatabaseFile) -> Result<Loaded, StoreError> {
    let transaction = database.begin_read()?;
    let mut tenants = Vec::new();
    for entry in transaction.open_table(tables::TENANTS)?.iter()? {
        tenants.push(serde_json::from_slice(entry?.1.value())?);
    }
    let mut references = Vec::new();
    for entry in transaction.open_table(tables::MODULES)?.iter()? {
        references.push(*entry?.0.value());
    }
    let (actions, services) = (owned(&transaction, tables::ACTIONS)?, owned(&transaction, tables::SERVICES)?);
    let sealed = sealed::load(&transaction)?;
    let marks = marks::marks(&transaction)?;
    Ok(Loaded { tenants, actions, services, sealed, marks, references })
}

/// A directory that is ours alone.
pub(crate) fn private_directory(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error(dir))?;
    let mode = fs::metadata(dir).map_err(io_error(dir))?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { Err(StoreError::Open(dir.to_owned())) }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

#[cfg(test)]
mod migration_tests;
