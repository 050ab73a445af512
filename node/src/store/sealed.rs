//! What tenants of sealed CVMs leave with the node: a signed manifest and packages. All of it is opaque here: the node checks that the
//! manifest is one, and that packages are not too many; only the CVM can tell what is in them.

use super::commit::{Change, Owner};
use super::directory::EditError;
use super::modules::Draft;
use super::{Store, StoreError, tables};
use crate::names::{Digest, PackageId, TenantName, now_ms};
use crate::records::{ModuleRef, Package};
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A tenant's manifest and packages.
#[derive(Clone, Debug, Default)]
pub struct Sealed {
    /// The signed manifest with which its CVM is launched; without one the CVM is open and has none.
    pub manifest: Option<Arc<[u8]>>,
    /// Packages by name.
    pub packages: BTreeMap<PackageId, Package>,
}

/// All tenants' manifests and packages.
pub(super) fn load(transaction: &ReadTransaction) -> Result<Vec<(TenantName, Sealed)>, StoreError> {
    let mut found: HashMap<String, Sealed> = HashMap::new();
    for entry in transaction.open_table(tables::MANIFESTS)?.iter()? {
        let (key, value) = entry?;
        found.entry(key.value().to_owned()).or_default().manifest = Some(value.value().into());
    }
    for entry in transaction.open_table(tables::PACKAGES)?.iter()? {
        let (key, value) = entry?;
        let package: Package = serde_json::from_slice(value.value())?;
        found.entry(key.value().0.to_owned()).or_default().packages.insert(package.id, package);
    }
    let named = found.into_iter().map(|(name, sealed)| {
        let name = TenantName::new(&name).map_err(|error| StoreError::Unreadable(error.to_string()))?;
        Ok((name, sealed))
    });
    named.collect()
}

/// Removes all that a tenant has here; returns the files.
pub(super) fn remove_all(
    transaction: &WriteTransaction,
    tenant: &TenantName,
) -> Result<Vec<Digest>, StoreError> {
    transaction.open_table(tables::MANIFESTS)?.remove(tenant.as_str())?;
    let mut table = transaction.open_table(tables::PACKAGES)?;
    let mut digests = Vec::new();
    for entry in
        table.extract_from_if((tenant.as_str(), &[0; 16])..=(tenant.as_str(), &[255; 16]), |_, _| true)?
    {
        let package: Package = serde_json::from_slice(entry?.1.value())?;
        digests.push(package.module.digest);
    }
    Ok(digests)
}

impl Store {
    /// Sets a tenant's manifest. `edit` gets the one that is there and says whether it may be replaced.
    ///
    /// # Errors
    /// What `edit` says, [`EditError::Missing`] without such a tenant, or the store's.
    pub async fn set_manifest(
        &self,
        owner: Arc<Owner>,
        manifest: Arc<[u8]>,
        edit: impl FnOnce(Option<&[u8]>) -> Result<(), EditError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let change = move |change: &mut Change<'_>| {
            let tenant = change.may_edit(&owner)?;
            let mut table = change.transaction.open_table(tables::MANIFESTS)?;
            let old = table.get(tenant.as_str())?.map(|value| value.value().to_vec());
            edit(old.as_deref())?;
            table.insert(tenant.as_str(), &*manifest)?;
            change.after(move |directory| {
                directory.edit_sealed(&tenant, |sealed| sealed.manifest = Some(manifest));
            });
            Ok(())
        };
        self.committer.change(change).await
    }

    /// Keeps a package, in the place of one with the same name.
    ///
    /// # Errors
    /// [`EditError`], or the store's.
    pub async fn put_package(
        &self,
        owner: Arc<Owner>,
        id: PackageId,
        draft: Draft,
    ) -> Result<Package, StoreError> {
        let package = Package {
            id,
            module: ModuleRef { digest: draft.digest, bytes: draft.bytes },
            created_ms: now_ms(),
        };
        let change = move |change: &mut Change<'_>| {
            let tenant = change.may_edit(&owner)?;
            let Some(record) = tables::tenant(change.transaction, tenant.as_str())? else {
                return Err(EditError::Missing.into());
            };
            let known = change.directory.sealed(&tenant);
            let full = known.packages.len() >= record.limits.actions as usize;
            if full && !known.packages.contains_key(&id) {
                return Err(EditError::TooMany(record.limits.actions).into());
            }
            let old: Option<Package> = {
                let mut table = change.transaction.open_table(tables::PACKAGES)?;
                let old = table.insert((tenant.as_str(), &id.0), serde_json::to_vec(&package)?.as_slice())?;
                old.map(|value| serde_json::from_slice(value.value())).transpose()?
            };
            change.keep_module(draft)?;
            if let Some(old) = old {
                change.drop_module(old.module.digest)?;
            }
            change.after(move |directory| {
                directory.edit_sealed(&tenant, |sealed| {
                    sealed.packages.insert(id, package);
                });
            });
            Ok(package)
        };
        self.committer.change(change).await
    }

    /// Removes a package.
    ///
    /// # Errors
    /// [`EditError::Missing`], or the store's.
    pub async fn remove_package(&self, owner: Arc<Owner>, id: PackageId) -> Result<Package, StoreError> {
        let change = move |change: &mut Change<'_>| {
            let tenant = change.may_edit(&owner)?;
            let removed: Option<Package> = {
                let mut table = change.transaction.open_table(tables::PACKAGES)?;
                let value = table.remove((tenant.as_str(), &id.0))?;
                value.map(|value| serde_json::from_slice(value.value())).transpose()?
            };
            let Some(package) = removed else { return Err(EditError::Missing.into()) };
            change.drop_module(package.module.digest)?;
            change.after(move |directory| {
                directory.edit_sealed(&tenant, |sealed| {
                    sealed.packages.remove(&id);
                });
            });
            Ok(package)
        };
        self.committer.change(change).await
    }
}
