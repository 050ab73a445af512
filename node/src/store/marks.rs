//! The marks of tenants that moved away or were lost.

use super::{StoreError, tables};
use crate::migration::{Away, Lost};
use crate::names::{MigrationId, TenantName};
use crate::records::Service;
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use std::collections::HashMap;

/// The marks of tenants.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Those that moved away.
    pub away: HashMap<TenantName, Away>,
    /// Those that were lost.
    pub lost: HashMap<TenantName, Lost>,
}

pub(super) fn marks(transaction: &ReadTransaction) -> Result<Marks, StoreError> {
    Ok(Marks { away: named(transaction, tables::AWAY)?, lost: named(transaction, tables::LOST)? })
}

fn named<T: DeserializeOwned>(
    transaction: &ReadTransaction,
    table: TableDefinition<'static, &'static str, &'static [u8]>,
) -> Result<HashMap<TenantName, T>, StoreError> {
    let mut found = HashMap::new();
    for entry in transaction.open_table(table)?.iter()? {
        let (key, value) = entry?;
        let name = TenantName::new(key.value()).map_err(|error| StoreError::Unreadable(error.to_string()))?;
        found.insert(name, serde_json::from_slice(value.value())?);
    }
    Ok(found)
}

/// What a tenant's services are marked with; nothing if it has none.
pub(super) fn set_lost(
    transaction: &WriteTransaction,
    tenant: &TenantName,
    id: MigrationId,
    reason: &str,
) -> Result<(), StoreError> {
    let mut services = Vec::new();
    for entry in transaction.open_table(tables::SERVICES)?.range((tenant.as_str(), "")..)? {
        let (key, value) = entry?;
        if key.value().0 != tenant.as_str() {
            break;
        }
        services.push(serde_json::from_slice::<Service>(value.value())?.name);
    }
    let mut table = transaction.open_table(tables::LOST)?;
    if services.is_empty() {
        table.remove(tenant.as_str())?;
    } else {
        let lost = Lost { id, reason: reason.to_owned(), services };
        table.insert(tenant.as_str(), serde_json::to_vec(&lost)?.as_slice())?;
    }
    Ok(())
}

/// Sets the mark of a tenant, or takes it away.
pub(super) fn set_mark<T>(marks: &mut HashMap<TenantName, T>, tenant: &TenantName, mark: Option<T>) {
    match mark {
        Some(mark) => drop(marks.insert(tenant.clone(), mark)),
        None => drop(marks.remove(tenant)),
    }
}

/// Where a tenant is that moved away.
pub(super) fn away_of(
    transaction: &WriteTransaction,
    tenant: &TenantName,
) -> Result<Option<Away>, StoreError> {
    mark_of(transaction, tables::AWAY, tenant)
}

/// What was lost of a tenant.
pub(super) fn lost_of(
    transaction: &WriteTransaction,
    tenant: &TenantName,
) -> Result<Option<Lost>, StoreError> {
    mark_of(transaction, tables::LOST, tenant)
}

fn mark_of<T: DeserializeOwned>(
    transaction: &WriteTransaction,
    table: TableDefinition<'static, &'static str, &'static [u8]>,
    tenant: &TenantName,
) -> Result<Option<T>, StoreError> {
    let table = transaction.open_table(table)?;
    let value = table.get(tenant.as_str())?;
    Ok(value.map(|value| serde_json::from_slice(value.value())).transpose()?)
}
