//! Activations: written in batches, [several in a value](super::chunk), bounded per tenant in number, bytes and age, readable before they are on the disk.

use super::chunk::{Chunk, Draft, SPAN_MS};
use super::commit::{Change, Owner};
use super::{Store, StoreError, tables};
use crate::names::{ActivationId, EntityName, TenantName, now_ms};
use crate::records::{Activation, Pending, TenantRecord};
use redb::{ReadableTable, Table, WriteTransaction};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Activations are kept this long, in milliseconds: a week.
pub const MAX_AGE_MS: u64 = 7 * 24 * 3600 * 1000;

/// What a list of activations is asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this action.
    pub action: Option<EntityName>,
    /// Only those that began at or after this moment, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Only those that began at or before this moment.
    pub upto_ms: Option<u64>,
    /// How many of the newest to leave out.
    pub skip: usize,
    /// How many at most.
    pub limit: usize,
}

/// An activation on its way to the disk.
pub(super) struct Record {
    /// Whose it is: a later tenant of the same name is another owner.
    pub(super) owner: Arc<Owner>,
    pub(super) activation: Arc<Activation>,
    id: ActivationId,
    /// Its part of what may be on the way.
    kib: u32,
}

impl Record {
    pub(super) fn new(owner: Arc<Owner>, activation: Arc<Activation>, kib: u32) -> Self {
        Self { owner, id: activation.id, activation, kib }
    }
}

/// Activations on their way to the disk: those for the next transaction, whose writer is woken once for all of them, and those
/// in the one that is being written.
#[derive(Default)]
pub(super) struct Recent(Mutex<OnTheWay>);

#[derive(Default)]
struct OnTheWay {
    waiting: Vec<Record>,
    writing: Arc<Vec<Record>>,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, OnTheWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; returns how many wait now.
    pub(super) fn put(&self, record: Record) -> usize {
        let mut all = self.lock();
        all.waiting.push(record);
        all.waiting.len()
    }

    /// Those that wait, to be written. Until [`written`](Self::written) they are still readable here.
    pub(super) fn take(&self) -> Arc<Vec<Record>> {
        let mut all = self.lock();
        let next = Vec::with_capacity(all.waiting.len());
        all.writing = Arc::new(std::mem::replace(&mut all.waiting, next));
        all.writing.clone()
    }

    /// Those that were taken are on the disk, or given up. Returns their part of what may be on the way, in KiB.
    pub(super) fn written(&self) -> usize {
        let writing = std::mem::take(&mut self.lock().writing);
        writing.iter().map(|record| record.kib as usize).sum()
    }

    fn get(&self, tenant: &TenantRecord, id: ActivationId) -> Option<Arc<Activation>> {
        let found = |records: &[Record]| {
            let mut found = records.iter().rev().filter(|record| record.id == id);
            found.find(|record| record.owner.uuid == tenant.uuid).map(|record| record.activation.clone())
        };
        let all = self.lock();
        found(&all.waiting).or_else(|| {
            let writing = all.writing.clone();
            drop(all);
            found(&writing)
        })
    }

    fn of(&self, tenant: &TenantRecord) -> BTreeMap<ActivationId, Arc<Activation>> {
        let own = |record: &&Record| record.owner.uuid == tenant.uuid;
        let pair = |record: &Record| (record.id, record.activation.clone());
        let (mut found, writing) = {
            let all = self.lock();
            let waiting: BTreeMap<_, _> = all.waiting.iter().filter(own).map(pair).collect();
            (waiting, all.writing.clone())
        };
        found.extend(writing.iter().filter(own).map(pair));
        found
    }
}

/// Nobody waits for a batch of activations: after every few of them, whoever wants this CPU goes first.
fn make_way(number: usize) {
    if number % 16 == 15 {
        std::thread::yield_now();
    }
}

type Key = (&'static str, &'static [u8; 16]);

/// The last id that a chunk with an activation of this id can have.
fn end_of_span(id: ActivationId) -> [u8; 16] {
    ActivationId::last_at(id.ms().saturating_add(SPAN_MS)).bytes()
}

/// What `read` makes of a tenant's activation.
fn find<T>(
    table: &impl ReadableTable<Key, &'static [u8]>,
    tenant: &str,
    id: ActivationId,
    read: impl FnOnce(&[u8]) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    for entry in table.range((tenant, &id.bytes())..=(tenant, &end_of_span(id)))? {
        let (_, chunk) = entry?;
        if let Some(record) = Chunk::read(chunk.value())?.get(id) {
            return read(record).map(Some);
        }
    }
    Ok(None)
}

/// The tables of activations within a transaction.
pub(super) struct Tables<'t> {
    activations: Table<'t, Key, &'static [u8]>,
    kept: Table<'t, &'static str, (u64, u64)>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            activations: transaction.open_table(tables::ACTIVATIONS)?,
            kept: transaction.open_table(tables::KEPT)?,
        })
    }

    /// Adds some of one tenant. Their ids are nobody's yet.
    pub(super) fn insert(&mut self, tenant: &str, mut new: Vec<&Activation>) -> Result<(), StoreError> {
        new.sort_unstable_by_key(|activation| activation.id);
        new.dedup_by_key(|activation| activation.id);
        let (mut count, mut bytes) = self.kept(tenant)?;
        count += new.len() as u64;
        let mut draft = Draft::default();
        for (number, activation) in new.into_iter().enumerate() {
            make_way(number);
            if draft.is_full_for(activation.id) {
                self.write(tenant, &mut draft)?;
            }
            bytes += draft.add(activation)?;
        }
        self.write(tenant, &mut draft)?;
        self.kept.insert(tenant, (count, bytes))?;
        Ok(())
    }

    fn write(&mut self, tenant: &str, draft: &mut Draft) -> Result<(), StoreError> {
        if let Some((last, chunk)) = draft.take() {
            self.activations.insert((tenant, &last.bytes()), chunk.as_slice())?;
        }
        Ok(())
    }

    fn kept(&self, tenant: &str) -> Result<(u64, u64), StoreError> {
        Ok(self.kept.get(tenant)?.map_or((0, 0), |kept| kept.value()))
    }

    pub(super) fn has(&self, tenant: &str, id: ActivationId) -> Result<bool, StoreError> {
        Ok(find(&self.activations, tenant, id, |_| Ok(()))?.is_some())
    }

    /// Removes the oldest beyond these bounds.
    pub(super) fn prune(&mut self, tenant: &str, max_count: u64, max_bytes: u64) -> Result<(), StoreError> {
        let before = self.kept(tenant)?;
        let (mut count, mut bytes) = before;
        let oldest = ActivationId::at(now_ms().saturating_sub(MAX_AGE_MS));
        let mut gone = Vec::new();
        let mut cut = Draft::default();
        for entry in self.activations.range((tenant, &[0; 16])..=(tenant, &[255; 16]))? {
            let (key, value) = entry?;
            let chunk = Chunk::read(value.value())?;
            let surplus = chunk.records().take_while(|(id, record)| {
                let goes = count > max_count || bytes > max_bytes || *id < oldest;
                if goes {
                    count = count.saturating_sub(1);
                    bytes = bytes.saturating_sub(record.len() as u64);
                }
                goes
            });
            let surplus = surplus.count();
            if surplus < chunk.len() {
                if surplus != 0 {
                    cut = chunk.without_first(surplus)?;
                }
                break;
            }
            gone.push(*key.value().1);
        }
        for last in gone {
            self.activations.remove((tenant, &last))?;
        }
        self.write(tenant, &mut cut)?;
        if (count, bytes) != before {
            self.kept.insert(tenant, (count, bytes))?;
        }
        Ok(())
    }

    /// Removes all of a tenant that is no more.
    pub(super) fn forget(&mut self, tenant: &str) -> Result<(), StoreError> {
        self.activations.retain_in((tenant, &[0; 16])..=(tenant, &[255; 16]), |_, _| false)?;
        self.kept.remove(tenant)?;
        Ok(())
    }
}

/// Brings the activations of layout 1 into chunks.
pub(super) fn migrate(transaction: &WriteTransaction) -> Result<(), StoreError> {
    {
        let old = transaction.open_table(tables::ACTIVATIONS_1)?;
        let mut new = Tables::open(transaction)?;
        let mut draft = Draft::default();
        let mut before = String::new();
        for entry in old.iter()? {
            let (key, record) = entry?;
            let (tenant, id) = key.value();
            let id = ActivationId::from_bytes(*id);
            if before != tenant || draft.is_full_for(id) {
                new.write(&before, &mut draft)?;
                tenant.clone_into(&mut before);
            }
            draft.add_record(id, record.value())?;
        }
        new.write(&before, &mut draft)?;
    }
    transaction.delete_table(tables::ACTIVATIONS_1)?;
    Ok(())
}

impl Store {
    /// Hands an activation that is over to the store: readable at once, on the disk soon. Waits when too many are on
    /// their way.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn record(
        &self,
        owner: impl Into<Arc<Owner>>,
        activation: Arc<Activation>,
    ) -> Result<(), StoreError> {
        self.committer.activation(owner.into(), activation).await
    }

    /// Notes durably that a call is under way; for one that is over already nothing is noted.
    ///
    /// # Errors
    /// [`StoreError`]; then it must not be acknowledged.
    pub async fn begin(
        &self,
        owner: impl Into<Arc<Owner>>,
        id: ActivationId,
        call: Pending,
    ) -> Result<(), StoreError> {
        let owner = owner.into();
        let edit = move |change: &mut Change<'_>| {
            let tables = Tables::open(change.transaction)?;
            let tenant = tables::tenant(change.transaction, owner.name.as_str())?;
            let exists = tenant.is_some_and(|record| record.uuid == owner.uuid);
            if exists && !tables.has(owner.name.as_str(), id)? {
                let value = serde_json::to_vec(&call)?;
                let mut pending = change.transaction.open_table(tables::PENDING)?;
                pending.insert((owner.name.as_str(), &id.bytes()), value.as_slice())?;
            }
            Ok(())
        };
        self.committer.change(edit).await
    }

    /// One activation.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn activation(
        &self,
        tenant: &TenantName,
        id: ActivationId,
    ) -> Result<Option<Arc<Activation>>, StoreError> {
        let now = self.directory.tenant(tenant.as_str());
        if let Some(recent) = now.and_then(|tenant| self.recent.get(&tenant, id)) {
            return Ok(Some(recent));
        }
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(tables::ACTIVATIONS)?;
        let read = |record: &[u8]| Ok(Arc::new(serde_json::from_slice(record)?));
        find(&table, tenant.as_str(), id, read)
    }

    /// A call that was acknowledged and is not over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pending(&self, tenant: &TenantName, id: ActivationId) -> Result<Option<Pending>, StoreError> {
        let table = self.database.begin_read()?.open_table(tables::PENDING)?;
        let value = table.get((tenant.as_str(), &id.bytes()))?;
        Ok(value.map(|value| serde_json::from_slice(value.value())).transpose()?)
    }

    /// The activations that a filter asks for, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn activations(
        &self,
        tenant: &TenantName,
        filter: &Filter,
    ) -> Result<Vec<Arc<Activation>>, StoreError> {
        let mut found = Vec::new();
        let mut skip = filter.skip;
        self.visit(tenant, filter, |activation| {
            if skip > 0 {
                skip -= 1;
            } else {
                found.push(activation);
            }
            found.len() < filter.limit
        })?;
        Ok(found)
    }

    /// How many there are, `skip` left out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn count_activations(&self, tenant: &TenantName, filter: &Filter) -> Result<usize, StoreError> {
        let mut count = 0usize;
        self.visit(tenant, filter, |_| {
            count += 1;
            true
        })?;
        Ok(count.saturating_sub(filter.skip))
    }

    /// Calls `visit` for each that the filter names, newest first, until it says false.
    fn visit(
        &self,
        tenant: &TenantName,
        filter: &Filter,
        mut visit: impl FnMut(Arc<Activation>) -> bool,
    ) -> Result<(), StoreError> {
        let from = filter.since_ms.map_or([0; 16], |ms| ActivationId::at(ms).bytes());
        let to = filter.upto_ms.map_or([255; 16], |ms| ActivationId::last_at(ms).bytes());
        // Both snapshots in this order: what leaves the first in between is in the second.
        let now = self.directory.tenant(tenant.as_str());
        let mut next = now.map(|tenant| self.recent.of(&tenant)).unwrap_or_default();
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(tables::ACTIVATIONS)?;
        if from > to {
            return Ok(());
        }
        let among = |id: &ActivationId| (from..=to).contains(&id.bytes());
        let matches =
            |activation: &Activation| filter.action.as_ref().is_none_or(|name| *name == activation.action);
        next.retain(|id, activation| among(id) && matches(activation));
        let end = end_of_span(ActivationId::from_bytes(to));
        for entry in table.range((tenant.as_str(), &from)..=(tenant.as_str(), &end))?.rev() {
            let (key, value) = entry?;
            // What is newer than all of this chunk is newer than all that is to come.
            let last = ActivationId::from_bytes(*key.value().1);
            while let Some(newest) = next.last_entry().filter(|newest| *newest.key() > last) {
                if !visit(newest.remove()) {
                    return Ok(());
                }
            }
            for (id, record) in Chunk::read(value.value())?.records().filter(|(id, _)| among(id)) {
                let activation: Activation = serde_json::from_slice(record)?;
                if matches(&activation) {
                    next.entry(id).or_insert_with(|| Arc::new(activation));
                }
            }
        }
        for activation in next.into_values().rev() {
            if !visit(activation) {
                return Ok(());
            }
        }
        Ok(())
    }
}
