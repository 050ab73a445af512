//! Migrations: their states, the marks of tenants that moved away or were lost, and what comes of a tenant before it is this node's.
//!
//! Every change of a state and what it entails is one transaction:
//!
//! | becomes | with it |
//! |---|---|
//! | source `Parked` | nothing: the mark that the tenant may be gone, without which the guest does not go |
//! | source `Gone` | the Commit, and the mark that the tenant is away |
//! | source `Lost` | the mark that it is away goes; its services are `lost` |
//! | destination `Receiving` | its records are staged, its modules counted |
//! | destination `Running` | what was staged is the tenant's; what an earlier stay left is gone |
//! | destination `Failed` | what was staged goes |
//! | destination `Lost` | its services are `lost` |

use super::commit::{Change, Owner};
use super::directory::EditError;
use super::marks::{away_of, lost_of, set_lost, set_mark};
use super::modules::Draft;
use super::{Store, StoreError, directory, sealed, tables};
use crate::migration::{
    Away, InEvent, InState, Incoming, OutEvent, OutState, Outgoing, Staged, StepError, bytes_of,
};
use crate::names::{ActivationId, Digest, EntityName, MigrationId, TenantName};
use crate::records::{Pending, Service, TenantRecord};
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Migrations that are over and still shown, for each role.
const MAX_OVER: usize = 64;
/// Those that brought a tenant which is here stay longer: a source that was out of reach all the time may still ask about them.
const MAX_BROUGHT: usize = 4096;

type ById = TableDefinition<'static, &'static [u8; 16], &'static [u8]>;

impl From<StepError> for StoreError {
    fn from(error: StepError) -> Self {
        Self::Edit(EditError::Step(error.to_string()))
    }
}

/// Whether a tenant of this name is on its way here.
pub(super) fn is_coming(transaction: &WriteTransaction, tenant: &TenantName) -> Result<bool, StoreError> {
    Ok(all::<Incoming>(transaction, tables::INCOMING)?.iter().any(|record| record.brings(tenant)))
}

/// Whether a tenant that is here is about to go: what it has was told to another node. Once it is gone it is marked as away.
pub(super) fn is_going(transaction: &WriteTransaction, owner: &Owner) -> Result<bool, StoreError> {
    let goes = |record: &Outgoing| {
        record.uuid == owner.uuid && matches!(record.state, OutState::Offered | OutState::Parked)
    };
    Ok(all::<Outgoing>(transaction, tables::OUTGOING)?.iter().any(goes))
}

fn get<T: DeserializeOwned>(
    transaction: &WriteTransaction,
    table: ById,
    id: MigrationId,
) -> Result<Option<T>, StoreError> {
    let table = transaction.open_table(table)?;
    let value = table.get(&id.0)?;
    Ok(value.map(|value| serde_json::from_slice(value.value())).transpose()?)
}

fn put<T: Serialize>(
    transaction: &WriteTransaction,
    table: ById,
    id: MigrationId,
    value: &T,
) -> Result<(), StoreError> {
    transaction.open_table(table)?.insert(&id.0, json(value)?.as_slice())?;
    Ok(())
}

fn all<T: DeserializeOwned>(transaction: &WriteTransaction, table: ById) -> Result<Vec<T>, StoreError> {
    let mut found = Vec::new();
    for entry in transaction.open_table(table)?.iter()? {
        found.push(serde_json::from_slice(entry?.1.value())?);
    }
    Ok(found)
}

/// Forgets the oldest of those that are over.
fn prune<T: DeserializeOwned>(
    transaction: &WriteTransaction,
    table: ById,
    most: usize,
    over: impl Fn(&T) -> Option<(u64, MigrationId)>,
) -> Result<(), StoreError> {
    let mut over: Vec<_> = all::<T>(transaction, table)?.iter().filter_map(over).collect();
    over.sort_unstable();
    let surplus = over.len().saturating_sub(most);
    let mut table = transaction.open_table(table)?;
    for (_, id) in &over[..surplus] {
        table.remove(&id.0)?;
    }
    Ok(())
}

/// A step at the source and what goes with it.
fn step_out(
    transaction: &WriteTransaction,
    id: MigrationId,
    event: OutEvent,
) -> Result<Option<Outgoing>, StoreError> {
    let Some(mut record) = get::<Outgoing>(transaction, tables::OUTGOING, id)? else { return Ok(None) };
    let state = record.state.clone().step(event)?;
    // What goes with a step happens once: since then the tenant may have come back, or was deployed again.
    if state == record.state {
        return Ok(Some(record));
    }
    let was_gone = matches!(record.state, OutState::Gone { .. });
    record.state = state;
    let tenant = tables::tenant(transaction, record.tenant.as_str())?;
    // It may also have come back by another migration: then it is not away by this one.
    let is_away = away_of(transaction, &record.tenant)?.is_some_and(|away| away.id == id);
    let is_here = tenant.is_some_and(|tenant| tenant.uuid == record.uuid) && was_gone == is_away;
    match &record.state {
        OutState::Gone { .. } if is_here => {
            let away = Away { to: record.peer.clone(), id };
            let mut table = transaction.open_table(tables::AWAY)?;
            table.insert(record.tenant.as_str(), json(&away)?.as_slice())?;
        }
        OutState::Lost { reason } if is_here => {
            transaction.open_table(tables::AWAY)?.remove(record.tenant.as_str())?;
            set_lost(transaction, &record.tenant, id, reason)?;
        }
        _ => {}
    }
    put(transaction, tables::OUTGOING, id, &record)?;
    if record.state.is_over() {
        let over = |one: &Outgoing| one.state.is_over().then_some((one.begun_ms, one.id));
        prune(transaction, tables::OUTGOING, MAX_OVER, over)?;
    }
    Ok(Some(record))
}

/// A step at the destination and what goes with it; also the modules that lose a reference.
fn step_in(
    transaction: &WriteTransaction,
    id: MigrationId,
    event: InEvent,
) -> Result<Option<(Incoming, Vec<Digest>)>, StoreError> {
    let Some(mut record) = get::<Incoming>(transaction, tables::INCOMING, id)? else { return Ok(None) };
    let state = record.state.clone().step(event)?;
    if state == record.state {
        return Ok(Some((record, Vec::new())));
    }
    record.state = state;
    let mut unreferenced = Vec::new();
    match &record.state {
        InState::Running => unreferenced = make_visible(transaction, id, &record.tenant)?,
        InState::Failed { .. } => {
            if let Some(staged) = get::<Staged>(transaction, tables::STAGED, id)? {
                unreferenced = staged.modules().map(|(digest, _)| digest).collect();
                transaction.open_table(tables::STAGED)?.remove(&id.0)?;
            }
        }
        InState::Lost { reason } => {
            let tenant = tables::tenant(transaction, record.tenant.as_str())?;
            // Since then it may have been removed, and another one added under its name.
            if tenant.is_some_and(|tenant| record.uuid.is_empty() || tenant.uuid == record.uuid) {
                set_lost(transaction, &record.tenant, id, reason)?;
            }
        }
        InState::Receiving | InState::Staged | InState::Complete => {}
    }
    put(transaction, tables::INCOMING, id, &record)?;
    if record.state.is_over() {
        let mut here = HashSet::new();
        for entry in transaction.open_table(tables::TENANTS)?.iter()? {
            here.insert(serde_json::from_slice::<TenantRecord>(entry?.1.value())?.uuid);
        }
        let brought = |one: &Incoming| one.state == InState::Complete && here.contains(&one.uuid);
        for (kept, most) in [(false, MAX_OVER), (true, MAX_BROUGHT)] {
            let over = |one: &Incoming| {
                (one.state.is_over() && brought(one) == kept).then_some((one.begun_ms, one.id))
            };
            prune(transaction, tables::INCOMING, most, over)?;
        }
    }
    Ok(Some((record, unreferenced)))
}

/// What was staged becomes the tenant's, in place of what an earlier stay of it left here. Returns what that referred to.
fn make_visible(
    transaction: &WriteTransaction,
    id: MigrationId,
    tenant: &TenantName,
) -> Result<Vec<Digest>, StoreError> {
    let staged: Staged = get(transaction, tables::STAGED, id)?.ok_or(EditError::Missing)?;
    transaction.open_table(tables::STAGED)?.remove(&id.0)?;
    let name = tenant.as_str();
    let mut unreferenced = Vec::new();
    for table in [tables::ACTIONS, tables::SERVICES] {
        unreferenced.extend(directory::remove_all(transaction, table, tenant)?);
    }
    unreferenced.extend(sealed::remove_all(transaction, tenant)?);
    for table in [tables::AWAY, tables::LOST] {
        transaction.open_table(table)?.remove(name)?;
    }
    transaction.open_table(tables::TENANTS)?.insert(name, json(&staged.tenant)?.as_slice())?;
    for action in &staged.actions {
        let mut table = transaction.open_table(tables::ACTIONS)?;
        table.insert((name, action.name.as_str()), json(action)?.as_slice())?;
    }
    for service in &staged.services {
        let mut table = transaction.open_table(tables::SERVICES)?;
        table.insert((name, service.name.as_str()), json(service)?.as_slice())?;
    }
    for package in &staged.packages {
        transaction.open_table(tables::PACKAGES)?.insert((name, &package.id.0), json(package)?.as_slice())?;
    }
    let manifest = bytes_of(&staged.manifest).ok_or(EditError::Missing)?;
    transaction.open_table(tables::MANIFESTS)?.insert(name, manifest.as_slice())?;
    let mut pending = transaction.open_table(tables::PENDING)?;
    for (call, record) in &staged.pending {
        pending.insert((name, &call.bytes()), json(record)?.as_slice())?;
    }
    Ok(unreferenced)
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    Ok(serde_json::to_vec(value)?)
}

/// Tells all migrations that the node was started, before anything else uses the store. Returns those away from here that this has ended.
pub(super) fn restarted(transaction: &WriteTransaction) -> Result<Vec<Outgoing>, StoreError> {
    for table in [tables::OUTGOING, tables::INCOMING, tables::STAGED] {
        transaction.open_table(table)?;
    }
    for table in [tables::AWAY, tables::LOST] {
        transaction.open_table(table)?;
    }
    let mut ended = Vec::new();
    for record in
        all::<Outgoing>(transaction, tables::OUTGOING)?.into_iter().filter(|one| !one.state.is_over())
    {
        let record = step_out(transaction, record.id, OutEvent::Restarted)?;
        ended.extend(record.filter(|record| record.state.is_over()));
    }
    for record in all::<Incoming>(transaction, tables::INCOMING)? {
        let step = step_in(transaction, record.id, InEvent::Restarted)?;
        for digest in step.map(|(_, unreferenced)| unreferenced).unwrap_or_default() {
            // The file goes with the others that nobody refers to.
            let mut table = transaction.open_table(tables::MODULES)?;
            let count = table.get(&digest.0)?.map_or(0, |count| count.value());
            match count {
                0 | 1 => drop(table.remove(&digest.0)?),
                _ => drop(table.insert(&digest.0, count - 1)?),
            }
        }
    }
    Ok(ended)
}

impl Store {
    fn reading<T: DeserializeOwned>(&self, table: ById) -> Result<Vec<T>, StoreError> {
        let mut found = Vec::new();
        for entry in self.database.begin_read()?.open_table(table)?.iter()? {
            found.push(serde_json::from_slice(entry?.1.value())?);
        }
        Ok(found)
    }

    /// All migrations away from here that are kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn outgoing(&self) -> Result<Vec<Outgoing>, StoreError> {
        self.reading(tables::OUTGOING)
    }

    /// Migrations away from here that the start of this node has ended: their destinations may still wait.
    #[must_use]
    pub fn interrupted(&self) -> &[Outgoing] {
        &self.interrupted
    }

    /// All migrations to here that are kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn incoming(&self) -> Result<Vec<Incoming>, StoreError> {
        self.reading(tables::INCOMING)
    }

    /// Whether a migration to here that brings this tenant is under way.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_expected(&self, tenant: &TenantName) -> Result<bool, StoreError> {
        Ok(self.incoming()?.iter().any(|record| record.brings(tenant)))
    }

    /// A migration to here, if it is kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn incoming_of(&self, id: MigrationId) -> Result<Option<Incoming>, StoreError> {
        let table = self.database.begin_read()?.open_table(tables::INCOMING)?;
        let value = table.get(&id.0)?;
        Ok(value.map(|value| serde_json::from_slice(value.value())).transpose()?)
    }

    /// Begins a migration away from here, before anything of the tenant is told: from now on nothing of that is changed. Once more when it is known
    /// who takes it.
    ///
    /// # Errors
    /// [`EditError::Missing`] if the tenant is not here; or the store's.
    pub async fn offer(&self, record: Outgoing) -> Result<(), StoreError> {
        let edit = move |change: &mut Change<'_>| {
            let tenant = tables::tenant(change.transaction, record.tenant.as_str())?;
            let away = change.transaction.open_table(tables::AWAY)?.get(record.tenant.as_str())?.is_some();
            if away || tenant.is_none_or(|tenant| tenant.uuid != record.uuid) {
                return Err(EditError::Missing.into());
            }
            // It runs here: whatever was begun before has ended, though the disk did not take that then.
            for old in all::<Outgoing>(change.transaction, tables::OUTGOING)? {
                if old.id != record.id
                    && old.tenant == record.tenant
                    && matches!(old.state, OutState::Offered | OutState::Parked)
                {
                    let ended = OutEvent::Aborted("its end could not be kept".into());
                    step_out(change.transaction, old.id, ended)?;
                }
            }
            put(change.transaction, tables::OUTGOING, record.id, &record)
        };
        self.committer.change(edit).await
    }

    /// A step of a migration away from here; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`EditError::Missing`], [`EditError::Step`], or the store's.
    pub async fn step_out(&self, id: MigrationId, event: OutEvent) -> Result<Outgoing, StoreError> {
        let edit = move |change: &mut Change<'_>| {
            let record = step_out(change.transaction, id, event)?.ok_or(EditError::Missing)?;
            let tenant = record.tenant.clone();
            let (away, lost) = (away_of(change.transaction, &tenant)?, lost_of(change.transaction, &tenant)?);
            change.after(move |directory| {
                directory.edit_marks(|marks| {
                    set_mark(&mut marks.away, &tenant, away);
                    set_mark(&mut marks.lost, &tenant, lost);
                });
            });
            Ok(record)
        };
        self.committer.change(edit).await
    }

    /// Stages a tenant that is to come. `drafts` are the modules that are not here yet; the others are kept from now on.
    ///
    /// # Errors
    /// [`EditError::Exists`] if another tenant has its name, [`EditError::Missing`] if a module is not here, [`EditError::PortTaken`];
    /// or the store's.
    pub async fn stage(
        &self,
        record: Incoming,
        staged: Staged,
        drafts: Vec<Draft>,
    ) -> Result<(), StoreError> {
        let edit = move |change: &mut Change<'_>| {
            check_staged(change.transaction, &record, &staged, &drafts)?;
            let mut drafts: HashMap<Digest, Draft> =
                drafts.into_iter().map(|draft| (draft.digest, draft)).collect();
            for (digest, _) in staged.modules() {
                match drafts.remove(&digest) {
                    Some(draft) => change.keep_module(draft)?,
                    None => change.keep_known_module(digest)?,
                }
            }
            put(change.transaction, tables::STAGED, record.id, &staged)?;
            put(change.transaction, tables::INCOMING, record.id, &record)
        };
        self.committer.change(edit).await
    }

    /// The last of the records came.
    ///
    /// # Errors
    /// [`EditError::Missing`], [`EditError::Step`], or the store's.
    pub async fn finish_staging(
        &self,
        id: MigrationId,
        pending: Vec<(ActivationId, Pending)>,
    ) -> Result<(), StoreError> {
        let edit = move |change: &mut Change<'_>| {
            let mut staged: Staged =
                get(change.transaction, tables::STAGED, id)?.ok_or(EditError::Missing)?;
            step_in(change.transaction, id, InEvent::Staged)?.ok_or(EditError::Missing)?;
            staged.pending = pending;
            put(change.transaction, tables::STAGED, id, &staged)
        };
        self.committer.change(edit).await
    }

    /// A step of a migration to here; it is on the disk when this returns, and visible if the tenant is this node's by it.
    ///
    /// # Errors
    /// [`EditError::Missing`], [`EditError::Step`], or the store's.
    pub async fn step_in(&self, id: MigrationId, event: InEvent) -> Result<Incoming, StoreError> {
        let edit = move |change: &mut Change<'_>| {
            let staged = get::<Staged>(change.transaction, tables::STAGED, id)?;
            let (record, gone) = step_in(change.transaction, id, event)?.ok_or(EditError::Missing)?;
            for digest in gone {
                change.drop_module(digest)?;
            }
            let lost = lost_of(change.transaction, &record.tenant)?;
            let kept = record.clone();
            change.after(move |directory| match (kept.state, staged) {
                (InState::Running, Some(staged)) => directory.replace_tenant(staged),
                (InState::Lost { .. }, _) => {
                    directory.edit_marks(|marks| marks.lost.extend(lost.map(|lost| (kept.tenant, lost))));
                }
                _ => {}
            });
            Ok(record)
        };
        self.committer.change(edit).await
    }

    /// The tenant has moved on: this is where it is now.
    ///
    /// # Errors
    /// [`EditError::Missing`] if it has not moved away from here; or the store's.
    pub async fn follow(&self, owner: Arc<Owner>, away: Away) -> Result<(), StoreError> {
        let edit = move |change: &mut Change<'_>| {
            let tenant = owner.name.clone();
            let here = tables::tenant(change.transaction, tenant.as_str())?;
            if here.is_none_or(|here| here.uuid != owner.uuid) {
                return Err(EditError::Missing.into());
            }
            let mut table = change.transaction.open_table(tables::AWAY)?;
            if table.get(tenant.as_str())?.is_none() {
                return Err(EditError::Missing.into());
            }
            table.insert(tenant.as_str(), json(&away)?.as_slice())?;
            change
                .after(move |directory| directory.edit_marks(|marks| drop(marks.away.insert(tenant, away))));
            Ok(())
        };
        self.committer.change(edit).await
    }

    /// A service is not `lost` any more: it was removed or deployed.
    ///
    /// # Errors
    /// The store's.
    pub async fn found(&self, tenant: TenantName, service: EntityName) -> Result<(), StoreError> {
        if self.directory().lost(&tenant).is_none_or(|lost| !lost.services.contains(&service)) {
            return Ok(());
        }
        let edit = move |change: &mut Change<'_>| {
            let Some(mut lost) = lost_of(change.transaction, &tenant)? else { return Ok(()) };
            lost.services.retain(|name| *name != service);
            let mut table = change.transaction.open_table(tables::LOST)?;
            if lost.services.is_empty() {
                table.remove(tenant.as_str())?;
            } else {
                table.insert(tenant.as_str(), json(&lost)?.as_slice())?;
            }
            change.after(move |directory| {
                directory.edit_marks(|marks| match lost.services.is_empty() {
                    true => drop(marks.lost.remove(&tenant)),
                    false => drop(marks.lost.insert(tenant, lost)),
                });
            });
            Ok(())
        };
        self.committer.change(edit).await
    }

    /// A tenant's calls under way whose callers were told to ask later.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pending_of(&self, tenant: &TenantName) -> Result<Vec<(ActivationId, Pending)>, StoreError> {
        let table = self.database.begin_read()?.open_table(tables::PENDING)?;
        let mut found = Vec::new();
        for entry in table.range((tenant.as_str(), &[0; 16])..=(tenant.as_str(), &[255; 16]))? {
            let (key, value) = entry?;
            found.push((ActivationId::from_bytes(*key.value().1), serde_json::from_slice(value.value())?));
        }
        Ok(found)
    }
}

/// Whether a tenant may come: before anything is written.
fn check_staged(
    transaction: &WriteTransaction,
    record: &Incoming,
    staged: &Staged,
    drafts: &[Draft],
) -> Result<(), StoreError> {
    let name = record.tenant.as_str();
    let away = transaction.open_table(tables::AWAY)?.get(name)?.is_some();
    if let Some(here) = tables::tenant(transaction, name)?
        && (here.uuid != staged.tenant.uuid || !away)
    {
        return Err(EditError::Exists.into());
    }
    if is_coming(transaction, &record.tenant)? {
        return Err(EditError::Exists.into());
    }
    // Its credentials are its alone.
    for entry in transaction.open_table(tables::TENANTS)?.iter()? {
        let (key, value) = entry?;
        let other: TenantRecord = serde_json::from_slice(value.value())?;
        if key.value() != name && other.uuid == staged.tenant.uuid {
            return Err(EditError::Exists.into());
        }
    }
    for entry in transaction.open_table(tables::SERVICES)?.iter()? {
        let (key, value) = entry?;
        let other: Service = serde_json::from_slice(value.value())?;
        let taken = staged.services.iter().any(|service| service.port == other.port);
        if key.value().0 != name && taken {
            return Err(EditError::PortTaken.into());
        }
    }
    let modules = transaction.open_table(tables::MODULES)?;
    for (digest, _) in staged.modules() {
        if modules.get(&digest.0)?.is_none() && !drafts.iter().any(|draft| draft.digest == digest) {
            return Err(EditError::Missing.into());
        }
    }
    Ok(())
}
