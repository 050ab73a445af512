//! What the store promises: changes survive reopening, modules live as long as somebody refers to them, activations are
//! bounded and in order, two nodes do not share a directory.

use super::activations::Filter;
use super::commit::Owner;
use super::*;
use crate::limits::{ActionLimits, TenantLimits};
use crate::names::{Digest, EntityName};
use crate::records::{Activation, ModuleRef, Status, Version};
use crate::tenants::Credentials;
use serde_json::value::RawValue;

pub(super) fn name(text: &str) -> EntityName {
    EntityName::new(text).unwrap()
}

pub(super) fn tenant(text: &str) -> TenantName {
    TenantName::new(text).unwrap()
}

pub(super) fn record(text: &str, activations: u32) -> TenantRecord {
    Credentials::random()
        .record(tenant(text), TenantLimits { activations, actions: 3, ..TenantLimits::default() })
}

pub(super) fn owner(record: &TenantRecord) -> Owner {
    Owner { name: record.name.clone(), uuid: record.uuid.clone() }
}

fn action(text: &str, digest: Digest) -> Action {
    Action {
        name: name(text),
        version: Version::FIRST,
        module: ModuleRef { digest, bytes: 4 },
        binary: true,
        parameters: Vec::new(),
        annotations: Vec::new(),
        limits: ActionLimits::default(),
        publish: false,
        updated_ms: 1,
    }
}

pub(super) fn activation(id: ActivationId, action: &str, text: &str) -> Arc<Activation> {
    let call = Pending {
        action: name(action),
        version: Version::FIRST,
        start_ms: 1,
        limits: ActionLimits::default(),
    };
    let result = RawValue::from_string(format!("{{\"t\":\"{text}\"}}")).unwrap();
    Arc::new(Activation { status: Status::Success, result, ..call.interrupted(id, 2) })
}

/// Whoever has this name; nobody if there is no such tenant.
pub(super) fn owned(store: &Store, text: &str) -> Arc<Owner> {
    let uuid = store.directory().tenant(text).map(|record| record.uuid.clone()).unwrap_or_default();
    Arc::new(Owner { name: tenant(text), uuid })
}

pub(super) async fn put(store: &Store, owner: &str, text: &str, module: &[u8]) -> Result<Action, StoreError> {
    use sha2::Digest as _;
    let digest = Digest(sha2::Sha256::digest(module).into());
    let draft = store.modules().draft(digest, module)?;
    let new = action(text, digest);
    store.edit_action(owned(store, owner), name(text), Some(draft), move |_| Ok(new)).await
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir.join("modules")).unwrap().count()
}

#[tokio::test]
async fn what_is_acknowledged_survives() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("state");
    let guest = record("guest", 10);
    let store = Store::open(dir).unwrap();
    store.add_tenant(guest.clone()).await.unwrap();
    assert!(matches!(store.add_tenant(guest.clone()).await, Err(StoreError::Edit(EditError::Exists))));
    put(&store, "guest", "a", b"one").await.unwrap();
    let (id, pending) = (ActivationId::new(), ActivationId::new());
    let call = |id| {
        let Activation { action, version, start_ms, limits, .. } = (*activation(id, "a", "")).clone();
        Pending { action, version, start_ms, limits }
    };
    store.begin(owner(&guest), id, call(id)).await.unwrap();
    store.begin(owner(&guest), pending, call(pending)).await.unwrap();
    store.record(owner(&guest), activation(id, "a", "x")).await.unwrap();
    // Readable before it is on the disk.
    assert!(store.activation(&guest.name, id).unwrap().is_some());
    // The end of one that ended before it was noted is not forgotten for the note.
    store.close().await;
    drop(store);

    let store = Store::open(dir).unwrap();
    assert_eq!(*store.directory().tenant("guest").unwrap(), guest);
    let found = store.directory().action(&guest.name, "a").unwrap();
    assert_eq!(store.modules().read(&found.module.digest).unwrap(), b"one");
    assert_eq!(store.activation(&guest.name, id).unwrap().unwrap().result.get(), "{\"t\":\"x\"}");
    let ended = store.activation(&guest.name, pending).unwrap().unwrap();
    assert_eq!(ended.status, Status::InternalError);
    assert!(
        ended.result.get().contains("restarted") && store.pending(&guest.name, pending).unwrap().is_none()
    );
    let mode = |path: &str| fs::metadata(dir.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(""), mode("node.redb"), mode("modules")], [0o700, 0o600, 0o700]);
}

#[tokio::test]
async fn modules_live_as_long_as_their_last_reference() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("state");
    let store = Store::open(dir).unwrap();
    store.add_tenant(record("t", 10)).await.unwrap();
    put(&store, "t", "a", b"one").await.unwrap();
    put(&store, "t", "b", b"one").await.unwrap();
    assert_eq!(files(dir), 1);
    put(&store, "t", "a", b"two").await.unwrap();
    put(&store, "t", "a", b"two").await.unwrap();
    assert_eq!(files(dir), 2);
    store.remove_action(owned(&store, "t"), name("b")).await.unwrap();
    assert_eq!(files(dir), 1);
    assert!(matches!(
        store.remove_action(owned(&store, "t"), name("b")).await,
        Err(StoreError::Edit(EditError::Missing))
    ));
    // What a crash leaves is removed.
    fs::write(dir.join("modules/0123"), "x").unwrap();
    fs::write(dir.join("modules/.new-x"), "x").unwrap();
    store.close().await;
    drop(store);
    let store = Store::open(dir).unwrap();
    assert_eq!(files(dir), 1);
    store.remove_tenant(tenant("t")).await.unwrap();
    assert_eq!(files(dir), 0);
    assert!(store.directory().action(&tenant("t"), "a").is_none());
    assert!(put(&store, "t", "a", b"one").await.is_err());
    assert_eq!(files(dir), 0);
}

#[tokio::test]
async fn a_tenant_has_as_many_actions_as_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    store.add_tenant(record("t", 10)).await.unwrap();
    for text in ["a", "b", "c"] {
        put(&store, "t", text, b"one").await.unwrap();
    }
    assert!(matches!(put(&store, "t", "d", b"one").await, Err(StoreError::Edit(EditError::TooMany(3)))));
    put(&store, "t", "c", b"two").await.unwrap();
    store.remove_action(owned(&store, "t"), name("a")).await.unwrap();
    put(&store, "t", "d", b"one").await.unwrap();
}

#[tokio::test]
async fn activations_are_bounded_ordered_and_apart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("s");
    let (few, other) = (record("few", 5), record("other", 100));
    let now = now_ms();
    let id = |step: u64| ActivationId::at(now + step);
    {
        let store = Store::open(dir).unwrap();
        store.add_tenant(few.clone()).await.unwrap();
        store.add_tenant(other.clone()).await.unwrap();
        for step in 0..20 {
            let action = if step % 2 == 0 { "even" } else { "odd" };
            store.record(owner(&few), activation(id(step), action, "x")).await.unwrap();
            store.record(owner(&other), activation(id(step), action, "y")).await.unwrap();
        }
        let all = Filter { limit: 100, ..Filter::default() };
        // Whether they are on the disk yet or not.
        assert_eq!(store.activations(&other.name, &all).unwrap().len(), 20);
        store.close().await;
    }
    let store = Store::open(dir).unwrap();
    let list = |tenant: &TenantName, filter: Filter| -> Vec<u64> {
        let found = store.activations(tenant, &filter).unwrap();
        let steps = |one: &Arc<Activation>| (0..20).find(|step| id(*step) == one.id).unwrap();
        found.iter().map(steps).collect()
    };
    let all = || Filter { limit: 100, ..Filter::default() };
    assert_eq!(list(&few.name, all()), [19, 18, 17, 16, 15]);
    assert_eq!(list(&other.name, Filter { limit: 3, skip: 2, ..all() }), [17, 16, 15]);
    assert_eq!(list(&other.name, Filter { action: Some(name("even")), limit: 2, ..all() }), [18, 16]);
    let between = Filter { since_ms: Some(now + 3), upto_ms: Some(now + 5), ..all() };
    assert_eq!(list(&other.name, between.clone()), [5, 4, 3]);
    assert_eq!(store.count_activations(&other.name, &Filter { skip: 1, ..between }).unwrap(), 2);
    let backwards = Filter { since_ms: Some(now + 5), upto_ms: Some(now + 3), ..all() };
    assert_eq!(list(&other.name, backwards), [0u64; 0]);
    assert!(store.activation(&few.name, id(3)).unwrap().is_none());
    assert!(store.activation(&tenant("nobody"), id(19)).unwrap().is_none());
}

/// Several transactions whose activations overlap in time, more than a value takes, and a limit in the middle of one.
#[tokio::test]
async fn activations_of_many_transactions_are_one_list() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    let (kept, spread) = (250, 700);
    let owned = record("t", kept);
    store.add_tenant(owned.clone()).await.unwrap();
    let now = now_ms();
    let ids: Vec<ActivationId> = (0..spread).map(|step| ActivationId::at(now + step)).collect();
    // Each third ends in another transaction: an edit has those before it written.
    for part in 0..3 {
        for id in ids.iter().skip(part).step_by(3) {
            store.record(owner(&owned), activation(*id, "a", "x")).await.unwrap();
        }
        put(&store, "t", "a", &[part as u8; 4]).await.unwrap();
    }
    let all = Filter { limit: 1000, ..Filter::default() };
    let listed = store.activations(&owned.name, &all).unwrap();
    assert_eq!(listed.len(), kept as usize);
    assert!(listed.is_sorted_by(|newer, older| newer.id > older.id));
    for one in &listed {
        assert_eq!(store.activation(&owned.name, one.id).unwrap().unwrap().id, one.id);
    }
    assert_eq!(store.count_activations(&owned.name, &all).unwrap(), kept as usize);
    let first = &listed[0];
    let last = Filter { since_ms: Some(first.id.ms()), limit: 5, ..Filter::default() };
    assert_eq!(store.activations(&owned.name, &last).unwrap()[0].id, first.id);
    let gone = ids.iter().filter(|id| store.activation(&owned.name, **id).unwrap().is_none());
    assert_eq!(gone.count(), ids.len() - listed.len());
    // All of a tenant goes with it.
    store.remove_tenant(owned.name.clone()).await.unwrap();
    let table = store.database.begin_read().unwrap().open_table(tables::ACTIVATIONS).unwrap();
    assert_eq!(table.iter().unwrap().count(), 0);
}

/// A store of the layout before this one.
#[tokio::test]
async fn an_older_layout_is_brought_up_to_date_and_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("s");
    let owned = record("t", 1000);
    let store = Store::open(dir).unwrap();
    store.add_tenant(owned.clone()).await.unwrap();
    let ids: Vec<ActivationId> = (0..300).map(|step| ActivationId::at(now_ms() + 10 * step)).collect();
    {
        let transaction = store.database.begin_write().unwrap();
        {
            transaction.open_table(tables::META).unwrap().insert("layout", tables::LAYOUT_1).unwrap();
            let mut old = transaction.open_table(tables::ACTIVATIONS_1).unwrap();
            let mut bytes = 0;
            for id in &ids {
                let value = serde_json::to_vec(&*activation(*id, "a", "old")).unwrap();
                bytes += value.len() as u64;
                old.insert(("t", &id.bytes()), value.as_slice()).unwrap();
            }
            let mut kept = transaction.open_table(tables::KEPT).unwrap();
            kept.insert("t", (ids.len() as u64, bytes)).unwrap();
        }
        transaction.commit().unwrap();
    }
    store.close().await;
    drop(store);
    let store = Store::open(dir).unwrap();
    let late = ActivationId::last_at(now_ms() + 5);
    store.record(owner(&owned), activation(late, "a", "new")).await.unwrap();
    let all = Filter { limit: 1000, ..Filter::default() };
    let listed = store.activations(&owned.name, &all).unwrap();
    assert_eq!(listed.len(), ids.len() + 1);
    assert!(listed.is_sorted_by(|newer, older| newer.id > older.id));
    let text = |id| store.activation(&owned.name, id).unwrap().unwrap().result.get().to_owned();
    assert_eq!((text(ids[7]), text(late)), ("{\"t\":\"old\"}".to_owned(), "{\"t\":\"new\"}".to_owned()));
    let transaction = store.database.begin_write().unwrap();
    transaction.open_table(tables::META).unwrap().insert("layout", tables::LAYOUT + 1).unwrap();
    transaction.commit().unwrap();
    store.close().await;
    drop(store);
    let error = Store::open(dir).err().unwrap().to_string();
    assert!(error.contains("layout 3") && error.contains("version"), "{error}");
}

/// What ends after its tenant was removed is not given to another tenant of the same name.
#[tokio::test]
async fn a_name_used_again_inherits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    let (first, second) = (record("t", 10), record("t", 10));
    store.add_tenant(first.clone()).await.unwrap();
    store.remove_tenant(first.name.clone()).await.unwrap();
    store.add_tenant(second.clone()).await.unwrap();
    let late = ActivationId::new();
    store.record(owner(&first), activation(late, "a", "secret")).await.unwrap();
    // On its way to the disk already it is nobody's.
    let all = Filter { limit: 10, ..Filter::default() };
    assert!(store.activation(&second.name, late).unwrap().is_none());
    assert!(store.activations(&second.name, &all).unwrap().is_empty());
    // A change behind it has it written.
    put(&store, "t", "a", b"one").await.unwrap();
    assert!(store.activation(&second.name, late).unwrap().is_none());
}

#[tokio::test]
async fn one_node_at_a_time_and_nobody_else_enters() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path).unwrap();
    let second = Store::open(&path).err().unwrap().to_string();
    assert!(second.contains(&std::process::id().to_string()) && second.contains("--state-dir"), "{second}");
    store.close().await;
    drop(store);
    let store = Store::open(&path).unwrap();
    store.close().await;
    drop(store);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Open(_))));
}
