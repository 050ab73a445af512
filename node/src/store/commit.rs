//! The one writer: changes that come at the same time share a transaction and its wait for the disk.

use super::activations::{Recent, Record, Tables};
use super::file::DatabaseFile;
use super::modules::{Draft, Modules};
use super::{Directory, EditError, Lock, StoreError, migrations, tables};
use crate::names::{Digest, TenantName};
use crate::records::Activation;
use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

/// An activation waits at most this long for others to share its transaction.
pub const ACTIVATION_DELAY: Duration = Duration::from_millis(50);
/// Most changes in one transaction.
const MAX_BATCH: usize = 4096;
/// Activations on their way to the disk have at most this many KiB together.
const WAITING_KIB: usize = 64 << 10;

/// A change under way: what it may use. A change that fails by its own fault must not have written anything yet.
pub(super) struct Change<'t> {
    pub(super) transaction: &'t WriteTransaction,
    /// What was on the disk before this transaction.
    pub(super) directory: &'t Directory,
    modules: &'t Modules,
    after: Vec<After>,
    unreferenced: Vec<Digest>,
}

/// Whose an activation is: a tenant is told from a later one of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: TenantName,
    /// The first half of its credentials.
    pub uuid: String,
}

/// What is done once the transaction is on the disk.
pub(super) type After = Box<dyn FnOnce(&Directory) + Send>;

impl Change<'_> {
    /// The name of a tenant whose request this change is: unless it was removed meanwhile, also if there is a later one of its name, or what it has
    /// is on its way to another node, or there already.
    ///
    /// # Errors
    /// [`EditError::Missing`], [`EditError::Moving`].
    pub(super) fn may_edit(&self, owner: &Owner) -> Result<TenantName, StoreError> {
        let tenant = tables::tenant(self.transaction, owner.name.as_str())?;
        if tenant.is_none_or(|tenant| tenant.uuid != owner.uuid) {
            return Err(EditError::Missing.into());
        }
        let away = self.transaction.open_table(tables::AWAY)?.get(owner.name.as_str())?.is_some();
        if away || migrations::is_going(self.transaction, owner)? {
            return Err(EditError::Moving.into());
        }
        Ok(owner.name.clone())
    }

    /// Does this once the change is on the disk.
    pub(super) fn after(&mut self, after: impl FnOnce(&Directory) + Send + 'static) {
        self.after.push(Box::new(after));
    }

    /// Adds a reference to a module.
    pub(super) fn keep_module(&mut self, draft: Draft) -> Result<(), StoreError> {
        let digest = draft.digest;
        self.modules.keep(draft)?;
        let mut table = self.transaction.open_table(tables::MODULES)?;
        let count = table.get(&digest.0)?.map_or(0, |count| count.value());
        table.insert(&digest.0, count + 1)?;
        Ok(())
    }

    /// Adds a reference to a module that is here.
    pub(super) fn keep_known_module(&mut self, digest: Digest) -> Result<(), StoreError> {
        let mut table = self.transaction.open_table(tables::MODULES)?;
        let count = table.get(&digest.0)?.map(|count| count.value());
        let count = count.ok_or(super::EditError::Missing)?;
        table.insert(&digest.0, count + 1)?;
        Ok(())
    }

    /// Takes a reference away.
    pub(super) fn drop_module(&mut self, digest: Digest) -> Result<(), StoreError> {
        let mut table = self.transaction.open_table(tables::MODULES)?;
        let count = table.get(&digest.0)?.map_or(0, |count| count.value());
        if count > 1 {
            table.insert(&digest.0, count - 1)?;
        } else {
            table.remove(&digest.0)?;
            self.unreferenced.push(digest);
        }
        Ok(())
    }
}

/// One thing to do, and whom to tell.
trait Job: Send {
    /// True unless the whole transaction has to be given up.
    fn apply(&mut self, change: &mut Change<'_>) -> bool;
    /// The transaction is on the disk, or was given up.
    fn finish(self: Box<Self>, committed: Result<(), String>);
}

struct Edit<T, F> {
    edit: Option<F>,
    result: Option<Result<T, StoreError>>,
    tell: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for Edit<T, F>
where
    T: Send,
    F: FnOnce(&mut Change<'_>) -> Result<T, StoreError> + Send,
{
    fn apply(&mut self, change: &mut Change<'_>) -> bool {
        let Some(edit) = self.edit.take() else { return true };
        let result = edit(change);
        let sound = matches!(result, Ok(_) | Err(StoreError::Edit(_)));
        self.result = Some(result);
        sound
    }

    fn finish(self: Box<Self>, committed: Result<(), String>) {
        let Some(result) = self.result else { return };
        let result = match (result, committed) {
            (Ok(_), Err(error)) => Err(StoreError::Database(error)),
            (result, _) => result,
        };
        // Whoever asked may have gone.
        let _ = self.tell.send(result);
    }
}

enum Message {
    Edit(Box<dyn Job>),
    /// Activations wait: the first ones since the last transaction, or many.
    Activations,
}

/// Takes changes from everywhere.
pub(super) struct Committer {
    sender: Mutex<Option<mpsc::UnboundedSender<Message>>>,
    quick: mpsc::WeakUnboundedSender<Message>,
    /// KiB of activations that may still be on the way.
    weight: Arc<Semaphore>,
    recent: Arc<Recent>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    pub(super) fn start(writer: Writer) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (weight, recent) = (writer.weight.clone(), writer.recent.clone());
        let task = tokio::spawn(Arc::new(writer).run(receiver));
        Self {
            quick: sender.downgrade(),
            sender: Mutex::new(Some(sender)),
            weight,
            recent,
            task: Mutex::new(Some(task)),
        }
    }

    fn send(&self, message: Message) -> Result<(), StoreError> {
        let sender = self.quick.upgrade().ok_or(StoreError::Closed)?;
        sender.send(message).map_err(|_| StoreError::Closed)
    }

    /// Makes a change; it is on the disk when this returns `Ok`.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        edit: impl FnOnce(&mut Change<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (tell, told) = oneshot::channel();
        self.send(Message::Edit(Box::new(Edit { edit: Some(edit), result: None, tell })))?;
        told.await.unwrap_or_else(|_| match self.quick.upgrade() {
            Some(_) => Err(StoreError::Database("the change was given up".into())),
            None => Err(StoreError::Closed),
        })
    }

    pub(super) async fn activation(
        &self,
        owner: Arc<Owner>,
        activation: Arc<Activation>,
    ) -> Result<(), StoreError> {
        let kib = (activation.weight() >> 10).clamp(1, WAITING_KIB) as u32;
        // Given back when they are written.
        self.weight.acquire_many(kib).await.map_err(|_| StoreError::Closed)?.forget();
        if let 1 | MAX_BATCH = self.recent.put(Record::new(owner, activation, kib)) {
            self.send(Message::Activations)?;
        }
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.sender.lock().await.take();
        if let Some(task) = self.task.lock().await.take() {
            // A writer that panicked has closed its queue; everybody was told.
            let _ = task.await;
        }
    }
}

/// Does what is asked of the [`Committer`], in a task of its own.
pub(super) struct Writer {
    database: Arc<DatabaseFile>,
    directory: Arc<Directory>,
    modules: Arc<Modules>,
    recent: Arc<Recent>,
    weight: Arc<Semaphore>,
    /// Nobody else opens the database before the last change is written, even if the store is dropped meanwhile.
    _lock: Arc<Lock>,
}

impl Writer {
    pub(super) fn new(
        database: Arc<DatabaseFile>,
        directory: Arc<Directory>,
        modules: Arc<Modules>,
        recent: Arc<Recent>,
        lock: Arc<Lock>,
    ) -> Self {
        let weight = Arc::new(Semaphore::new(WAITING_KIB));
        Self { database, directory, modules, recent, weight, _lock: lock }
    }

    async fn run(self: Arc<Self>, mut receiver: mpsc::UnboundedReceiver<Message>) {
        while let Some(first) = receiver.recv().await {
            let mut edits = Vec::new();
            let mut next = Some(first);
            if matches!(next, Some(Message::Activations)) {
                // Nobody waits for these: gather more, but go at once when somebody waits, or when there are many.
                next = tokio::time::timeout(ACTIVATION_DELAY, receiver.recv()).await.ok().flatten();
            }
            while let Some(message) = next {
                if let Message::Edit(edit) = message {
                    edits.push(edit);
                }
                next = if edits.len() < MAX_BATCH { receiver.try_recv().ok() } else { None };
            }
            let records = self.recent.take();
            if edits.is_empty() && records.is_empty() {
                continue;
            }
            let writer = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || writer.commit(edits, records)).await {
                tracing::error!(%error, "a change to the store was given up");
                self.database.fail();
                self.weight.add_permits(self.recent.written());
            }
        }
    }

    fn commit(&self, mut jobs: Vec<Box<dyn Job>>, records: Arc<Vec<Record>>) {
        let begin = std::time::Instant::now();
        let count = jobs.len() + records.len();
        let written = self.write(&mut jobs, &records);
        if let Err(error) = &written {
            tracing::error!(%error, changes = count, "a transaction failed");
            self.database.fail();
        }
        let committed = match written {
            Ok((after, unreferenced)) => {
                for after in after {
                    after(&self.directory);
                }
                for digest in unreferenced {
                    self.modules.remove(&digest);
                }
                Ok(())
            }
            Err(StoreError::Database(error)) => Err(error),
            Err(error) => Err(error.to_string()),
        };
        // Before anybody is told: who then asks finds what is on the disk, no more.
        self.weight.add_permits(self.recent.written());
        for job in jobs {
            job.finish(committed.clone());
        }
        crate::metrics::committed(count, begin.elapsed());
    }

    /// One transaction.
    fn write(
        &self,
        jobs: &mut [Box<dyn Job>],
        records: &[Record],
    ) -> Result<(Vec<After>, Vec<Digest>), StoreError> {
        if self.database.renew()? {
            // What was refused may have reached the disk all the same.
            self.directory.reload(super::load(&self.database)?);
        }
        let transaction = self.database.begin_write()?;
        let (directory, modules) = (&*self.directory, &*self.modules);
        let mut change = Change {
            transaction: &transaction,
            directory,
            modules,
            after: Vec::new(),
            unreferenced: Vec::new(),
        };
        for job in jobs.iter_mut() {
            if !job.apply(&mut change) {
                return Err(StoreError::Database("a change could not be written".into()));
            }
        }
        let Change { after, mut unreferenced, .. } = change;
        self.write_activations(&transaction, records)?;
        {
            // A later change of the same transaction may have taken a module up again.
            let table = transaction.open_table(tables::MODULES)?;
            let mut lost = Vec::new();
            for digest in unreferenced.drain(..) {
                if table.get(&digest.0)?.is_none() {
                    lost.push(digest);
                }
            }
            unreferenced = lost;
        }
        transaction.commit()?;
        Ok((after, unreferenced))
    }

    fn write_activations(
        &self,
        transaction: &WriteTransaction,
        records: &[Record],
    ) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let mut tables = Tables::open(transaction)?;
        let mut pending = transaction.open_table(tables::PENDING)?;
        let any_pending = !pending.is_empty()?;
        let mut tenants: HashMap<&str, Vec<&Record>> = HashMap::new();
        for record in records {
            tenants.entry(record.owner.name.as_str()).or_default().push(record);
        }
        for (name, mut records) in tenants {
            for record in records.iter().filter(|_| any_pending) {
                pending.remove((name, &record.activation.id.bytes()))?;
            }
            let Some(tenant) = tables::tenant(transaction, name)? else { continue };
            // A tenant that was removed meanwhile leaves nothing behind, also not to another one of its name.
            records.retain(|record| record.owner.uuid == tenant.uuid);
            tables.insert(name, records.iter().map(|record| &*record.activation).collect())?;
            tables.prune(name, tenant.limits.activations.into(), tenant.limits.activations_bytes)?;
        }
        Ok(())
    }
}
