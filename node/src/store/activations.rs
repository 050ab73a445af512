//! Activations: written in batches, bounded per tenant in number, bytes and age, readable before they are on the disk.

use super::commit::{Change, Owner};
use super::{Store, StoreError, tables};
use crate::names::{ActivationId, EntityName, TenantName, now_ms};
use crate::records::{Activation, Pending, TenantRecord};
use redb::{ReadableDatabase, ReadableTable, Table, WriteTransaction};
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

/// Activations on their way to the disk, and whose they are: a later tenant of the same name is another owner.
#[derive(Debug, Default)]
pub struct Recent(Mutex<BTreeMap<ActivationId, Waiting>>);

type Waiting = (Arc<Owner>, Arc<Activation>);

impl Recent {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ActivationId, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, owner: Arc<Owner>, activation: Arc<Activation>) {
        self.lock().insert(activation.id, (owner, activation));
    }

    pub(super) fn remove(&self, ids: impl Iterator<Item = ActivationId>) {
        let mut all = self.lock();
        ids.for_each(|id| drop(all.remove(&id)));
    }

    fn get(&self, tenant: &TenantRecord, id: ActivationId) -> Option<Arc<Activation>> {
        let all = self.lock();
        all.get(&id).filter(|(owner, _)| owner.uuid == tenant.uuid).map(|(_, activation)| activation.clone())
    }

    fn of(&self, tenant: &TenantRecord) -> BTreeMap<ActivationId, Arc<Activation>> {
        let all = self.lock();
        let own = all.iter().filter(|(_, (owner, _))| owner.uuid == tenant.uuid);
        own.map(|(id, (_, activation))| (*id, activation.clone())).collect()
    }
}

/// Nobody waits for a batch of activations: after every few of them, whoever wants this CPU goes first.
fn make_way(number: usize) {
    if number % 16 == 15 {
        std::thread::yield_now();
    }
}

/// The tables of activations within a transaction.
pub(super) struct Tables<'t> {
    activations: Table<'t, (&'static str, &'static [u8; 16]), &'static [u8]>,
    kept: Table<'t, &'static str, (u64, u64)>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            activations: transaction.open_table(tables::ACTIVATIONS)?,
            kept: transaction.open_table(tables::KEPT)?,
        })
    }

    /// Adds some of one tenant.
    pub(super) fn insert<'a>(
        &mut self,
        tenant: &str,
        activations: impl IntoIterator<Item = &'a Activation>,
    ) -> Result<(), StoreError> {
        let (mut count, mut bytes) = self.kept(tenant)?;
        for (number, activation) in activations.into_iter().enumerate() {
            make_way(number);
            let value = serde_json::to_vec(activation)?;
            let old = self.activations.insert((tenant, &activation.id.bytes()), value.as_slice())?;
            let old = old.map(|old| old.value().len() as u64);
            count += u64::from(old.is_none());
            bytes = (bytes + value.len() as u64).saturating_sub(old.unwrap_or(0));
        }
        self.kept.insert(tenant, (count, bytes))?;
        Ok(())
    }

    fn kept(&self, tenant: &str) -> Result<(u64, u64), StoreError> {
        Ok(self.kept.get(tenant)?.map_or((0, 0), |kept| kept.value()))
    }

    pub(super) fn has(&self, tenant: &str, id: ActivationId) -> Result<bool, StoreError> {
        Ok(self.activations.get((tenant, &id.bytes()))?.is_some())
    }

    /// Removes the oldest beyond these bounds.
    pub(super) fn prune(&mut self, tenant: &str, max_count: u64, max_bytes: u64) -> Result<u64, StoreError> {
        let (mut count, mut bytes) = self.kept(tenant)?;
        let oldest = ActivationId::at(now_ms().saturating_sub(MAX_AGE_MS));
        let mut gone = Vec::new();
        for entry in self.activations.range((tenant, &[0; 16])..=(tenant, &[255; 16]))? {
            let (key, value) = entry?;
            let id = *key.value().1;
            if count <= max_count && bytes <= max_bytes && ActivationId::from_bytes(id) >= oldest {
                break;
            }
            count -= 1;
            bytes = bytes.saturating_sub(value.value().len() as u64);
            gone.push(id);
        }
        for (number, id) in gone.iter().enumerate() {
            make_way(number);
            self.activations.remove((tenant, id))?;
        }
        if !gone.is_empty() {
            self.kept.insert(tenant, (count, bytes))?;
        }
        Ok(gone.len() as u64)
    }

    /// Removes all of a tenant that is no more.
    pub(super) fn forget(&mut self, tenant: &str) -> Result<(), StoreError> {
        self.prune(tenant, 0, 0)?;
        self.kept.remove(tenant)?;
        Ok(())
    }
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
        let Some(value) = table.get((tenant.as_str(), &id.bytes()))? else { return Ok(None) };
        Ok(Some(Arc::new(serde_json::from_slice(value.value())?)))
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
        let mut recent = now.map(|tenant| self.recent.of(&tenant)).unwrap_or_default();
        recent.retain(|id, _| (from..=to).contains(&id.bytes()));
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(tables::ACTIVATIONS)?;
        let matches =
            |activation: &Activation| filter.action.as_ref().is_none_or(|name| *name == activation.action);
        if from > to {
            return Ok(());
        }
        for entry in table.range((tenant.as_str(), &from)..=(tenant.as_str(), &to))?.rev() {
            let (key, value) = entry?;
            let id = ActivationId::from_bytes(*key.value().1);
            while let Some(newer) = recent.last_entry().filter(|newer| *newer.key() >= id) {
                let (newer_id, activation) = newer.remove_entry();
                if newer_id != id && matches(&activation) && !visit(activation) {
                    return Ok(());
                }
            }
            let activation: Activation = serde_json::from_slice(value.value())?;
            if matches(&activation) && !visit(Arc::new(activation)) {
                return Ok(());
            }
        }
        for activation in recent.into_values().rev() {
            if matches(&activation) && !visit(activation) {
                return Ok(());
            }
        }
        Ok(())
    }
}
