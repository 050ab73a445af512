//! Migrations in the store: whatever step a crash comes after, what a start finds is one of the states of the table in
//! docs/migration.md, at either end.

use super::commit::Owner;
use super::tests::{activation, name, owned, owner, put, record};
use super::*;
use crate::migration::{
    Commit, InEvent, InState, Incoming, Mode, OutEvent, OutState, Outgoing, PeerName, Staged,
};
use crate::names::{Digest, MigrationId, hex};
use crate::records::{ModuleRef, Restart, Version};
use std::sync::Arc;

const ID: MigrationId = MigrationId([7; 16]);

fn peer() -> PeerName {
    PeerName { url: "b:1".into(), fingerprint: Digest([9; 32]) }
}

fn outgoing(tenant: &TenantRecord) -> Outgoing {
    Outgoing {
        id: ID,
        tenant: tenant.name.clone(),
        uuid: tenant.uuid.clone(),
        peer: peer(),
        mode: Mode::Hybrid,
        begun_ms: 1,
        state: OutState::Offered,
    }
}

fn gone() -> OutEvent {
    OutEvent::Gone { commit: Commit(Box::new([3; 88])), outstanding_bytes: 1 }
}

fn service(text: &str, digest: Digest, port: u16) -> Service {
    let (module, restart) = (ModuleRef { digest, bytes: 3 }, Restart::Always);
    Service {
        name: name(text),
        version: Version::FIRST,
        module,
        port,
        restart,
        args: Vec::new(),
        package: None,
        updated_ms: 1,
    }
}

fn draft(store: &Store, module: &[u8]) -> super::modules::Draft {
    use sha2::Digest as _;
    store.modules().draft(Digest(sha2::Sha256::digest(module).into()), module).unwrap()
}

async fn put_service(store: &Store, owner: &str, text: &str) {
    let draft = draft(store, b"svc");
    let new = service(text, draft.digest, 7001);
    store.edit_service(owned(store, owner), name(text), draft, move |_| Ok(new)).await.unwrap();
}

/// A crash: nothing is closed but what the end of a process closes.
async fn crash(store: Store, dir: &Path) -> Store {
    store.close().await;
    drop(store);
    Store::open(dir).unwrap()
}

#[tokio::test]
async fn a_source_that_crashes_finds_its_tenant_here_there_or_lost() {
    let steps = [OutEvent::Parked, gone(), OutEvent::Running, OutEvent::Complete];
    for crashed_after in 0..=steps.len() {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("s");
        let store = Store::open(dir).unwrap();
        let guest = record("t", 10);
        store.add_tenant(guest.clone()).await.unwrap();
        put_service(&store, "t", "kv").await;
        store.offer(outgoing(&guest)).await.unwrap();
        for step in steps.iter().take(crashed_after) {
            store.step_out(ID, step.clone()).await.unwrap();
        }
        let store = crash(store, dir).await;
        let found = store.outgoing().unwrap().remove(0).state;
        let away = store.directory().away(&guest.name);
        let expected = ["aborted", "lost", "gone", "delivered", "complete"][crashed_after];
        assert_eq!((found.word(), away.is_some()), (expected, crashed_after > 1), "{crashed_after}");
        // It may have been gone when the node ended: what is not known is not started empty.
        let lost = store.directory().lost(&guest.name);
        assert_eq!(lost.is_some(), crashed_after == 1, "{crashed_after}");
        assert!(lost.is_none_or(|lost| lost.services == [name("kv")] && lost.reason.contains("restarted")));
        if let OutState::Gone { commit, .. } = found {
            // Deliverable as it was, and never to be offered again.
            assert_eq!(commit.0[..], [3; 88]);
            assert!(store.offer(outgoing(&guest)).await.is_err());
            // The destination does not know it: lost, and said so, across another crash.
            store.step_out(ID, OutEvent::Unknown("it is gone".into())).await.unwrap();
            let store = crash(store, dir).await;
            let lost = store.directory().lost(&guest.name).unwrap();
            assert_eq!((lost.services, lost.reason.as_str()), (vec![name("kv")], "it is gone"));
            assert!(store.directory().away(&guest.name).is_none());
            // Deploying or removing it ends that.
            store.found(guest.name.clone(), name("other")).await.unwrap();
            assert!(store.directory().lost(&guest.name).is_some());
            store.found(guest.name.clone(), name("kv")).await.unwrap();
            let store = crash(store, dir).await;
            assert!(store.directory().lost(&guest.name).is_none());
        }
    }
}

#[tokio::test]
async fn a_tenant_that_stayed_is_not_lost_by_an_end_that_was_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("s");
    let store = Store::open(dir).unwrap();
    let guest = record("t", 10);
    store.add_tenant(guest.clone()).await.unwrap();
    put_service(&store, "t", "kv").await;
    for number in 1..3 {
        store.offer(Outgoing { id: MigrationId([number; 16]), ..outgoing(&guest) }).await.unwrap();
        store.step_out(MigrationId([number; 16]), OutEvent::Parked).await.unwrap();
    }
    store.step_out(MigrationId([2; 16]), gone()).await.unwrap();
    let store = crash(store, dir).await;
    assert!(store.directory().away(&guest.name).is_some() && store.directory().lost(&guest.name).is_none());
    assert_eq!(store.outgoing().unwrap()[0].state.word(), "aborted");
}

#[tokio::test]
async fn a_full_disk_delays_a_step_and_the_store_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("s");
    let store = Store::open(dir).unwrap();
    let guest = record("t", 10);
    store.add_tenant(guest.clone()).await.unwrap();
    put_service(&store, "t", "kv").await;
    store.offer(outgoing(&guest)).await.unwrap();
    store.step_out(ID, OutEvent::Parked).await.unwrap();
    fs::write(dir.join("node.full"), b"").unwrap();
    for _ in 0..3 {
        let refused = store.step_out(ID, gone()).await;
        assert!(matches!(refused, Err(StoreError::Database(_))), "{refused:?}");
        assert!(store.directory().away(&guest.name).is_none());
    }
    fs::remove_file(dir.join("node.full")).unwrap();
    store.step_out(ID, gone()).await.unwrap();
    assert!(store.directory().away(&guest.name).is_some() && store.directory().tenant("t").is_some());
    let store = crash(store, dir).await;
    assert_eq!(store.outgoing().unwrap()[0].state.word(), "gone");
    assert_eq!(store.directory().services(&guest.name).len(), 1);
}

fn staged(tenant: &TenantRecord, digest: Digest) -> Staged {
    Staged {
        tenant: tenant.clone(),
        manifest: hex(b"manifest"),
        actions: Vec::new(),
        services: vec![service("kv", digest, 7001)],
        packages: Vec::new(),
        pending: Vec::new(),
    }
}

fn incoming(guest: &TenantRecord) -> Incoming {
    let (tenant, uuid) = (guest.name.clone(), guest.uuid.clone());
    let (from, state) = (Digest([1; 32]), InState::Receiving);
    Incoming { id: ID, tenant, uuid, from, mode: Mode::Hybrid, begun_ms: 1, state }
}

#[tokio::test]
async fn a_destination_that_crashes_has_all_of_the_tenant_or_nothing() {
    for crashed_after in 0..=3 {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("s");
        let store = Store::open(dir).unwrap();
        let guest = record("t", 10);
        let draft = draft(&store, b"svc");
        let all = staged(&guest, draft.digest);
        store.stage(incoming(&guest), all, vec![draft]).await.unwrap();
        assert!(store.directory().tenant("t").is_none(), "not visible");
        if crashed_after > 0 {
            let id = ActivationId::new();
            let call = activation(id, "a", "x");
            let pending = Pending {
                action: call.action.clone(),
                version: call.version,
                start_ms: 1,
                limits: call.limits,
            };
            store.finish_staging(ID, vec![(id, pending)]).await.unwrap();
            assert!(store.directory().tenant("t").is_none(), "not visible");
        }
        if crashed_after > 1 {
            store.step_in(ID, InEvent::Running).await.unwrap();
            assert_eq!(store.directory().tenant("t").as_deref(), Some(&guest));
            assert_eq!(store.directory().sealed(&guest.name).manifest.as_deref(), Some(&b"manifest"[..]));
            assert_eq!(store.pending_of(&guest.name).unwrap().len(), 1);
        }
        if crashed_after > 2 {
            store.step_in(ID, InEvent::Complete).await.unwrap();
        }
        let store = crash(store, dir).await;
        let found = store.incoming().unwrap().remove(0).state.word();
        assert_eq!(found, ["failed", "failed", "lost", "complete"][crashed_after], "{crashed_after}");
        let here = store.directory().tenant("t").is_some();
        let files = fs::read_dir(dir.join("modules")).unwrap().count();
        assert_eq!((here, files), (crashed_after > 1, usize::from(crashed_after > 1)), "{crashed_after}");
        assert_eq!(store.directory().lost(&guest.name).is_some(), crashed_after == 2);
    }
}

#[tokio::test]
async fn who_is_on_its_way_is_not_changed_and_its_name_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    let guest = record("t", 10);
    store.add_tenant(guest.clone()).await.unwrap();
    put_service(&store, "t", "kv").await;
    // A request that began before is refused, whatever it would change.
    let first = owned(&store, "t");
    let edit = async |owner: &Arc<Owner>| store.remove_service(owner.clone(), name("kv")).await.map(drop);
    let moving = |result| matches!(result, Err(StoreError::Edit(EditError::Moving)));
    store.offer(outgoing(&guest)).await.unwrap();
    assert!(moving(edit(&first).await));
    assert!(moving(store.set_manifest(first.clone(), Arc::from(*b"m"), |_| Ok(())).await));
    store.step_out(ID, OutEvent::Parked).await.unwrap();
    store.step_out(ID, gone()).await.unwrap();
    assert!(moving(edit(&first).await));
    store.step_out(ID, OutEvent::Running).await.unwrap();
    store.step_out(ID, OutEvent::Complete).await.unwrap();
    assert!(moving(edit(&first).await), "it is there now");
    // Nor is a request of a tenant that was removed one of the next of its name.
    store.remove_tenant(guest.name.clone()).await.unwrap();
    store.add_tenant(record("t", 10)).await.unwrap();
    put_service(&store, "t", "kv").await;
    assert!(matches!(edit(&first).await, Err(StoreError::Edit(EditError::Missing))));
    edit(&owned(&store, "t")).await.unwrap();
    // Who comes has its name already, and credentials that nobody else has.
    store.remove_tenant(guest.name.clone()).await.unwrap();
    let draft = draft(&store, b"svc");
    store.stage(incoming(&guest), staged(&guest, draft.digest), vec![draft]).await.unwrap();
    let coming = store.add_tenant(record("t", 10)).await;
    assert!(matches!(coming, Err(StoreError::Edit(EditError::Coming))));
    let double = TenantRecord { name: super::tests::tenant("double"), ..guest.clone() };
    store.add_tenant(double).await.unwrap();
    store.step_in(ID, InEvent::Failed("x".into())).await.unwrap();
    let again = Incoming { id: MigrationId([9; 16]), ..incoming(&guest) };
    let digest = Digest([3; 32]);
    let refused = store.stage(again, staged(&guest, digest), Vec::new()).await;
    assert!(matches!(refused, Err(StoreError::Edit(EditError::Exists))));
}

#[tokio::test]
async fn who_has_come_back_is_not_lost_by_what_was_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    let guest = record("t", 10);
    store.add_tenant(guest.clone()).await.unwrap();
    put_service(&store, "t", "kv").await;
    store.offer(outgoing(&guest)).await.unwrap();
    store.step_out(ID, OutEvent::Parked).await.unwrap();
    store.step_out(ID, gone()).await.unwrap();
    let back = MigrationId([9; 16]);
    let draft = draft(&store, b"svc");
    let all = staged(&guest, draft.digest);
    store.stage(Incoming { id: back, ..incoming(&guest) }, all, vec![draft]).await.unwrap();
    store.finish_staging(back, Vec::new()).await.unwrap();
    store.step_in(back, InEvent::Running).await.unwrap();
    store.step_in(back, InEvent::Complete).await.unwrap();
    let state = store.step_out(ID, OutEvent::Unknown("long ago".into())).await.unwrap().state;
    assert_eq!(state.word(), "lost");
    assert!(store.directory().lost(&guest.name).is_none() && store.directory().away(&guest.name).is_none());
    // However many came and went since, who brought it here answers for that.
    for number in 0..100u64 {
        let other = record(&format!("u{number}"), 10);
        let mut id = [1; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let record = Incoming { id: MigrationId(id), begun_ms: 2 + number, ..incoming(&other) };
        let services = Vec::new();
        let all = Staged { services, ..staged(&other, Digest([3; 32])) };
        store.stage(record, all, Vec::new()).await.unwrap();
        store.step_in(MigrationId(id), InEvent::Failed("x".into())).await.unwrap();
    }
    assert_eq!(store.incoming_of(back).unwrap().unwrap().state.word(), "complete");
    assert!(store.incoming().unwrap().len() < 80, "the others are forgotten");
}

#[tokio::test]
async fn a_later_tenant_of_a_name_is_not_lost_with_the_first() {
    let ends = [InEvent::SourceLost("its CVM ended".into()), InEvent::Restarted];
    for (end, later) in ends.into_iter().flat_map(|end| [(end.clone(), false), (end, true)]) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s")).unwrap();
        let guest = record("t", 10);
        let draft = draft(&store, b"svc");
        let all = staged(&guest, draft.digest);
        store.stage(incoming(&guest), all, vec![draft]).await.unwrap();
        store.finish_staging(ID, Vec::new()).await.unwrap();
        store.step_in(ID, InEvent::Running).await.unwrap();
        if later {
            store.remove_tenant(guest.name.clone()).await.unwrap();
            store.add_tenant(record("t", 10)).await.unwrap();
            put_service(&store, "t", "kv").await;
        }
        store.step_in(ID, end).await.unwrap();
        assert_eq!(store.incoming().unwrap()[0].state.word(), "lost");
        assert_eq!(store.directory().lost(&guest.name).is_none(), later);
    }
}

#[tokio::test]
async fn a_tenant_that_comes_back_is_what_it_became_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("s");
    let store = Store::open(dir).unwrap();
    let guest = record("t", 10);
    store.add_tenant(guest.clone()).await.unwrap();
    put_service(&store, "t", "old").await;
    put(&store, "t", "a", b"one").await.unwrap();
    let digest = draft(&store, b"svc").digest;
    // While it is here nobody brings it; nor another of its name when it is away.
    let come = |guest: &TenantRecord| store.stage(incoming(guest), staged(guest, digest), Vec::new());
    assert!(matches!(come(&guest).await, Err(StoreError::Edit(EditError::Exists))));
    store.offer(outgoing(&guest)).await.unwrap();
    store.step_out(ID, OutEvent::Parked).await.unwrap();
    store.step_out(ID, gone()).await.unwrap();
    assert!(matches!(come(&record("t", 10)).await, Err(StoreError::Edit(EditError::Exists))));
    // It has moved on, and comes back from there.
    let next = crate::migration::Away { to: PeerName { url: "c:1".into(), ..peer() }, id: ID };
    store.follow(owned(&store, "t"), next.clone()).await.unwrap();
    assert_eq!(store.directory().away(&guest.name), Some(next));
    come(&guest).await.unwrap();
    store.finish_staging(ID, Vec::new()).await.unwrap();
    store.step_in(ID, InEvent::Running).await.unwrap();
    let store = crash(store, dir).await;
    let services: Vec<Arc<Service>> = store.directory().services(&guest.name);
    assert_eq!(services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["kv"]);
    assert!(
        store.directory().action(&guest.name, "a").is_none() && store.directory().away(&guest.name).is_none()
    );
    assert_eq!(fs::read_dir(dir.join("modules")).unwrap().count(), 1);
    // A port of somebody else's is refused before anything comes.
    let other = record("u", 10);
    let refused = store.stage(incoming(&other), staged(&other, digest), Vec::new()).await;
    assert!(matches!(refused, Err(StoreError::Edit(EditError::PortTaken))));
    assert!(store.begin(owner(&guest), ActivationId::new(), pending()).await.is_ok());
}

fn pending() -> Pending {
    let call = activation(ActivationId::new(), "a", "x");
    Pending { action: call.action.clone(), version: call.version, start_ms: 1, limits: call.limits }
}
