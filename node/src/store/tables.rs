//! The tables of the database. Values are JSON unless said otherwise.

use super::StoreError;
use crate::records::TenantRecord;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

/// Version of this layout.
pub const LAYOUT: u64 = 2;
/// Its predecessor, which is brought up to date: each activation was a value of its own.
pub const LAYOUT_1: u64 = 1;

/// Numbers about the store itself, by name.
pub const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Tenant -> [`TenantRecord`](crate::records::TenantRecord).
pub const TENANTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tenants");
/// (tenant, name) -> [`Action`](crate::records::Action).
pub const ACTIONS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("actions");
/// (tenant, name) -> [`Service`](crate::records::Service).
pub const SERVICES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("services");
/// SHA-256 of a module -> how many actions and services use it.
pub const MODULES: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("modules");
/// (tenant, highest id) -> chunk of activations, see [`chunk`](super::chunk). Ids begin with the time, so these are in order.
pub const ACTIVATIONS: TableDefinition<'_, (&str, &[u8; 16]), &[u8]> =
    TableDefinition::new("activation chunks");
/// The same of layout 1: (tenant, id) -> [`Activation`](crate::records::Activation).
pub const ACTIVATIONS_1: TableDefinition<'_, (&str, &[u8; 16]), &[u8]> = TableDefinition::new("activations");
/// Tenant -> how many activations are kept, and how many bytes their records have.
pub const KEPT: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("kept");
/// (tenant, id) -> [`Pending`](crate::records::Pending).
pub const PENDING: TableDefinition<'_, (&str, &[u8; 16]), &[u8]> = TableDefinition::new("pending");

/// Tenant -> its signed manifest, as bytes.
pub const MANIFESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("manifests");
/// (tenant, id) -> [`Package`](crate::records::Package).
pub const PACKAGES: TableDefinition<'_, (&str, &[u8; 16]), &[u8]> = TableDefinition::new("packages");

/// Migration -> [`Outgoing`](crate::migration::Outgoing).
pub const OUTGOING: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("outgoing migrations");
/// Migration -> [`Incoming`](crate::migration::Incoming).
pub const INCOMING: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("incoming migrations");
/// Migration -> [`Staged`](crate::migration::Staged): nobody sees it before its tenant runs here.
pub const STAGED: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("staged tenants");
/// Tenant -> [`Away`](crate::migration::Away): it has moved, and is never started here.
pub const AWAY: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("moved tenants");
/// Tenant -> [`Lost`](crate::migration::Lost).
pub const LOST: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("lost tenants");

/// A tenant as this transaction sees it.
pub(super) fn tenant(transaction: &WriteTransaction, name: &str) -> Result<Option<TenantRecord>, StoreError> {
    let table = transaction.open_table(TENANTS)?;
    let value = table.get(name)?;
    value.map(|value| serde_json::from_slice(value.value())).transpose().map_err(StoreError::from)
}
