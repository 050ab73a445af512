//! Tenants, actions and services: in the database, and in memory as they are there, so that no request reads the disk for them.

use super::commit::{Change, Owner};
use super::marks::Marks;
use super::modules::Draft;
use super::sealed::{self, Sealed};
use super::{Loaded, Store, StoreError, activations, migrations, tables};
use crate::limits::{MAX_METADATA_BYTES, metadata_bytes};
use crate::migration::{Away, Lost, Staged, bytes_of};
use crate::names::{Digest, EntityName, TenantName};
use crate::records::{Action, ModuleRef, Service, TenantRecord};
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Why a change is impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is not there.
    #[error("the requested resource does not exist")]
    Missing,
    /// It is there already.
    #[error("the resource already exists")]
    Exists,
    /// The tenant has as many as it may have.
    #[error("the tenant has {0} actions and services, as many as it may; remove some")]
    TooMany(u32),
    /// Parameters and annotations of all actions are too large together.
    #[error(
        "parameters and annotations of all actions together exceed {MAX_METADATA_BYTES} bytes; make them smaller"
    )]
    TooMuch,
    /// The name is that of a service, or the other way round.
    #[error("the name is that of {0}; choose another name, or remove that one")]
    OtherKind(&'static str),
    /// The port is another service's.
    #[error("the port is used by another service; choose another port")]
    PortTaken,
    /// What it has is on its way to another node.
    #[error("a migration of the tenant is under way; wait for it, or cancel it, and send the request again")]
    Moving,
    /// One of its name is on its way here.
    #[error("a tenant of this name is on its way here; choose another name")]
    Coming,
    /// A manifest of another owner.
    #[error("the tenant's manifest has another owner; only that one can replace it")]
    OtherOwner,
    /// An older manifest.
    #[error("the tenant has version {0} of its manifest; raise the version")]
    OlderManifest(u64),
    /// Another manifest of the same version.
    #[error("the tenant has another manifest of version {0}; raise the version")]
    SameManifestVersion(u64),
    /// A migration that does not go so.
    #[error("{0}; look at it with nacre migrate --list")]
    Step(String),
    /// A new action without code.
    #[error("a new action needs code; send exec with kind and code")]
    NoCode,
}

#[derive(Default)]
struct Owned {
    actions: BTreeMap<EntityName, Arc<Action>>,
    services: BTreeMap<EntityName, Arc<Service>>,
    sealed: Arc<Sealed>,
    bytes: usize,
}

/// What is on the disk, in memory.
pub struct Directory(RwLock<State>);

#[derive(Default)]
struct State {
    tenants: BTreeMap<TenantName, Arc<TenantRecord>>,
    owned: HashMap<TenantName, Owned>,
    marks: Marks,
}

fn weight(action: &Action) -> usize {
    metadata_bytes(&action.name, &[&action.parameters, &action.annotations])
}

impl Directory {
    pub(super) fn new(loaded: Loaded) -> Self {
        let Loaded { tenants, actions, services, sealed, marks, .. } = loaded;
        let mut state = State { marks, ..State::default() };
        for tenant in tenants {
            state.tenants.insert(tenant.name.clone(), Arc::new(tenant));
        }
        for (tenant, action) in actions {
            let owned = state.owned.entry(tenant).or_default();
            owned.bytes += weight(&action);
            owned.actions.insert(action.name.clone(), Arc::new(action));
        }
        for (tenant, service) in services {
            let owned = state.owned.entry(tenant).or_default();
            owned.services.insert(service.name.clone(), Arc::new(service));
        }
        for (tenant, sealed) in sealed {
            state.owned.entry(tenant).or_default().sealed = Arc::new(sealed);
        }
        Self(RwLock::new(state))
    }

    /// It is now as it is on the disk.
    pub(super) fn reload(&self, loaded: Loaded) {
        let fresh = Self::new(loaded).0.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.write() = fresh;
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tenant.
    #[must_use]
    pub fn tenant(&self, name: &str) -> Option<Arc<TenantRecord>> {
        self.read().tenants.get(name).cloned()
    }

    /// All tenants.
    #[must_use]
    pub fn tenants(&self) -> Vec<Arc<TenantRecord>> {
        self.read().tenants.values().cloned().collect()
    }

    /// An action.
    #[must_use]
    pub fn action(&self, tenant: &TenantName, name: &str) -> Option<Arc<Action>> {
        self.read().owned.get(tenant)?.actions.get(name).cloned()
    }

    /// A tenant's actions by name.
    #[must_use]
    pub fn actions(&self, tenant: &TenantName) -> Vec<Arc<Action>> {
        self.read()
            .owned
            .get(tenant)
            .map(|owned| owned.actions.values().cloned().collect())
            .unwrap_or_default()
    }

    /// A service.
    #[must_use]
    pub fn service(&self, tenant: &TenantName, name: &str) -> Option<Arc<Service>> {
        self.read().owned.get(tenant)?.services.get(name).cloned()
    }

    /// A tenant's services by name.
    #[must_use]
    pub fn services(&self, tenant: &TenantName) -> Vec<Arc<Service>> {
        self.read()
            .owned
            .get(tenant)
            .map(|owned| owned.services.values().cloned().collect())
            .unwrap_or_default()
    }

    /// A tenant's manifest and sealed packages.
    #[must_use]
    pub fn sealed(&self, tenant: &TenantName) -> Arc<Sealed> {
        self.read().owned.get(tenant).map(|owned| owned.sealed.clone()).unwrap_or_default()
    }

    pub(super) fn edit_sealed(&self, tenant: &TenantName, edit: impl FnOnce(&mut Sealed)) {
        let mut state = self.write();
        edit(Arc::make_mut(&mut state.owned.entry(tenant.clone()).or_default().sealed));
    }

    /// Where a tenant is that moved away.
    #[must_use]
    pub fn away(&self, tenant: &TenantName) -> Option<Away> {
        self.read().marks.away.get(tenant).cloned()
    }

    /// What was lost of a tenant.
    #[must_use]
    pub fn lost(&self, tenant: &TenantName) -> Option<Lost> {
        self.read().marks.lost.get(tenant).cloned()
    }

    pub(super) fn edit_marks(&self, edit: impl FnOnce(&mut Marks)) {
        edit(&mut self.write().marks);
    }

    /// A tenant has come; what it had here before is gone.
    pub(super) fn replace_tenant(&self, staged: Staged) {
        let Staged { tenant, manifest, actions, services, packages, .. } = staged;
        let name = tenant.name.clone();
        let manifest = bytes_of(&manifest).map(Arc::from);
        let packages = packages.into_iter().map(|package| (package.id, package)).collect();
        let owned = Owned {
            bytes: actions.iter().map(weight).sum(),
            actions: actions.into_iter().map(|action| (action.name.clone(), Arc::new(action))).collect(),
            services: services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect(),
            sealed: Arc::new(Sealed { manifest, packages }),
        };
        let mut state = self.write();
        state.marks.away.remove(&name);
        state.marks.lost.remove(&name);
        state.tenants.insert(name.clone(), Arc::new(tenant));
        state.owned.insert(name, owned);
    }

    /// How many services there are in all.
    #[must_use]
    pub fn service_count(&self) -> usize {
        self.read().owned.values().map(|owned| owned.services.len()).sum()
    }

    /// How many actions there are in all.
    #[must_use]
    pub fn action_count(&self) -> usize {
        self.read().owned.values().map(|owned| owned.actions.len()).sum()
    }

    fn set_action(&self, tenant: &TenantName, action: Action) {
        let mut state = self.write();
        let owned = state.owned.entry(tenant.clone()).or_default();
        owned.bytes += weight(&action);
        if let Some(old) = owned.actions.insert(action.name.clone(), Arc::new(action)) {
            owned.bytes = owned.bytes.saturating_sub(weight(&old));
        }
    }

    fn remove_action(&self, tenant: &TenantName, name: &EntityName) {
        let mut state = self.write();
        if let Some(owned) = state.owned.get_mut(tenant)
            && let Some(old) = owned.actions.remove(name.as_str())
        {
            owned.bytes = owned.bytes.saturating_sub(weight(&old));
        }
    }

    /// Whether the tenant may have one more (if it is new), with so many bytes.
    fn room(&self, tenant: &TenantName, is_new: bool, weight: usize) -> Result<(), EditError> {
        let state = self.read();
        let owned = state.owned.get(tenant);
        let (count, bytes) =
            owned.map_or((0, 0), |owned| (owned.actions.len() + owned.services.len(), owned.bytes));
        let most = state.tenants.get(tenant).map_or(0, |tenant| tenant.limits.actions);
        if is_new && count >= most as usize {
            return Err(EditError::TooMany(most));
        }
        if bytes + weight > MAX_METADATA_BYTES {
            return Err(EditError::TooMuch);
        }
        Ok(())
    }
}

pub(super) type Owning<'t> = TableDefinition<'t, (&'static str, &'static str), &'static [u8]>;

/// Whether a table has this name of this tenant.
fn has(
    transaction: &WriteTransaction,
    table: Owning<'_>,
    tenant: &TenantName,
    name: &EntityName,
) -> Result<bool, StoreError> {
    Ok(transaction.open_table(table)?.get((tenant.as_str(), name.as_str()))?.is_some())
}

/// Removes all that a tenant has in a table; returns the modules.
pub(super) fn remove_all(
    transaction: &WriteTransaction,
    table: Owning<'_>,
    tenant: &TenantName,
) -> Result<Vec<Digest>, StoreError> {
    /// What actions and services have in common.
    #[derive(serde::Deserialize)]
    struct Any {
        name: EntityName,
        module: ModuleRef,
    }
    let mut table = transaction.open_table(table)?;
    let mut found: Vec<Any> = Vec::new();
    for entry in table.range((tenant.as_str(), "")..)? {
        let (key, value) = entry?;
        if key.value().0 != tenant.as_str() {
            break;
        }
        found.push(serde_json::from_slice(value.value())?);
    }
    for one in &found {
        table.remove((tenant.as_str(), one.name.as_str()))?;
    }
    Ok(found.into_iter().map(|one| one.module.digest).collect())
}

impl Store {
    /// Adds a tenant.
    ///
    /// # Errors
    /// [`EditError::Exists`], [`EditError::Coming`], or the store's.
    pub async fn add_tenant(&self, record: TenantRecord) -> Result<(), StoreError> {
        let edit = move |change: &mut Change<'_>| {
            if tables::tenant(change.transaction, record.name.as_str())?.is_some() {
                return Err(EditError::Exists.into());
            }
            if migrations::is_coming(change.transaction, &record.name)? {
                return Err(EditError::Coming.into());
            }
            let mut table = change.transaction.open_table(tables::TENANTS)?;
            table.insert(record.name.as_str(), serde_json::to_vec(&record)?.as_slice())?;
            change.after(move |directory| {
                directory.write().tenants.insert(record.name.clone(), Arc::new(record));
            });
            Ok(())
        };
        self.committer.change(edit).await
    }

    /// Removes a tenant and everything it has.
    ///
    /// # Errors
    /// [`EditError::Missing`], or the store's.
    pub async fn remove_tenant(&self, name: TenantName) -> Result<(), StoreError> {
        let edit = move |change: &mut Change<'_>| {
            if tables::tenant(change.transaction, name.as_str())?.is_none() {
                return Err(EditError::Missing.into());
            }
            change.transaction.open_table(tables::TENANTS)?.remove(name.as_str())?;
            for table in [tables::ACTIONS, tables::SERVICES] {
                for digest in remove_all(change.transaction, table, &name)? {
                    change.drop_module(digest)?;
                }
            }
            for digest in sealed::remove_all(change.transaction, &name)? {
                change.drop_module(digest)?;
            }
            change
                .transaction
                .open_table(tables::PENDING)?
                .retain_in((name.as_str(), &[0; 16])..=(name.as_str(), &[255; 16]), |_, _| false)?;
            activations::Tables::open(change.transaction)?.forget(name.as_str())?;
            for table in [tables::AWAY, tables::LOST] {
                change.transaction.open_table(table)?.remove(name.as_str())?;
            }
            change.after(move |directory| {
                let mut state = directory.write();
                state.tenants.remove(&name);
                state.owned.remove(&name);
                state.marks.away.remove(&name);
                state.marks.lost.remove(&name);
            });
            Ok(())
        };
        self.committer.change(edit).await
    }

    /// Makes an action, or changes it: `edit` gets what is there and says what shall be, or why not. `module` is its new
    /// code, which `edit` has to refer to; without it the old one stays.
    ///
    /// # Errors
    /// What `edit` says, [`EditError`], or the store's.
    pub async fn edit_action(
        &self,
        owner: Arc<Owner>,
        name: EntityName,
        module: Option<Draft>,
        edit: impl FnOnce(Option<Action>) -> Result<Action, EditError> + Send + 'static,
    ) -> Result<Action, StoreError> {
        let change = move |change: &mut Change<'_>| {
            let tenant = change.may_edit(&owner)?;
            let old: Option<Action> = {
                let table = change.transaction.open_table(tables::ACTIONS)?;
                let value = table.get((tenant.as_str(), name.as_str()))?;
                value.map(|value| serde_json::from_slice(value.value())).transpose()?
            };
            if has(change.transaction, tables::SERVICES, &tenant, &name)? {
                return Err(EditError::OtherKind("a service").into());
            }
            let before = old.as_ref().map(|old| old.module.digest);
            let action = edit(old)?;
            change.directory.room(&tenant, before.is_none(), weight(&action))?;
            if let Some(draft) = module {
                change.keep_module(draft)?;
                if let Some(before) = before {
                    change.drop_module(before)?;
                }
            }
            let mut table = change.transaction.open_table(tables::ACTIONS)?;
            table.insert((tenant.as_str(), name.as_str()), serde_json::to_vec(&action)?.as_slice())?;
            let kept = action.clone();
            change.after(move |directory| directory.set_action(&tenant, kept));
            Ok(action)
        };
        self.committer.change(change).await
    }

    /// Removes an action.
    ///
    /// # Errors
    /// [`EditError::Missing`], or the store's.
    pub async fn remove_action(&self, owner: Arc<Owner>, name: EntityName) -> Result<Action, StoreError> {
        let edit = move |change: &mut Change<'_>| {
            let tenant = change.may_edit(&owner)?;
            let removed: Option<Action> = {
                let mut table = change.transaction.open_table(tables::ACTIONS)?;
                let value = table.remove((tenant.as_str(), name.as_str()))?;
                value.map(|value| serde_json::from_slice(value.value())).transpose()?
            };
            let Some(action) = removed else { return Err(EditError::Missing.into()) };
            change.drop_module(action.module.digest)?;
            change.after(move |directory| directory.remove_action(&tenant, &name));
            Ok(action)
        };
        self.committer.change(edit).await
    }

    /// Makes a service, or changes it, as [`edit_action`](Self::edit_action) does.
    ///
    /// # Errors
    /// What `edit` says, [`EditError`], or the store's.
    pub async fn edit_service(
        &self,
        owner: Arc<Owner>,
        name: EntityName,
        module: Draft,
        edit: impl FnOnce(Option<Service>) -> Result<Service, EditError> + Send + 'static,
    ) -> Result<Service, StoreError> {
        let change = move |change: &mut Change<'_>| {
            let tenant = change.may_edit(&owner)?;
            if has(change.transaction, tables::ACTIONS, &tenant, &name)? {
                return Err(EditError::OtherKind("an action").into());
            }
            let mut old: Option<Service> = None;
            let mut ports = Vec::new();
            for entry in change.transaction.open_table(tables::SERVICES)?.iter()? {
                let (key, value) = entry?;
                let service: Service = serde_json::from_slice(value.value())?;
                if key.value() == (tenant.as_str(), name.as_str()) {
                    old = Some(service);
                } else {
                    ports.push(service.port);
                }
            }
            let before = old.as_ref().map(|old| old.module.digest);
            let service = edit(old)?;
            if ports.contains(&service.port) {
                return Err(EditError::PortTaken.into());
            }
            change.directory.room(&tenant, before.is_none(), 0)?;
            change.keep_module(module)?;
            if let Some(before) = before {
                change.drop_module(before)?;
            }
            let mut table = change.transaction.open_table(tables::SERVICES)?;
            table.insert((tenant.as_str(), name.as_str()), serde_json::to_vec(&service)?.as_slice())?;
            let kept = service.clone();
            change.after(move |directory| {
                let mut state = directory.write();
                let services = &mut state.owned.entry(tenant).or_default().services;
                services.insert(kept.name.clone(), Arc::new(kept));
            });
            Ok(service)
        };
        self.committer.change(change).await
    }

    /// Removes a service.
    ///
    /// # Errors
    /// [`EditError::Missing`], or the store's.
    pub async fn remove_service(&self, owner: Arc<Owner>, name: EntityName) -> Result<Service, StoreError> {
        let edit = move |change: &mut Change<'_>| {
            let tenant = change.may_edit(&owner)?;
            let removed: Option<Service> = {
                let mut table = change.transaction.open_table(tables::SERVICES)?;
                let value = table.remove((tenant.as_str(), name.as_str()))?;
                value.map(|value| serde_json::from_slice(value.value())).transpose()?
            };
            let Some(service) = removed else { return Err(EditError::Missing.into()) };
            change.drop_module(service.module.digest)?;
            change.after(move |directory| {
                if let Some(owned) = directory.write().owned.get_mut(&tenant) {
                    owned.services.remove(&name);
                }
            });
            Ok(service)
        };
        self.committer.change(edit).await
    }
}
