//! Tests of the broker's store: versions, files, several writers.

use super::*;
use crate::release::{Code, ReleaseSpec};
use std::os::unix::fs::PermissionsExt;

fn release(name: &str, version: u64) -> (Release, Vec<u8>) {
    let code = Code { cwasm: vec![7; 100_000], module_sha256: [1; 32], fingerprint: [2; 32] };
    let spec = ReleaseSpec {
        name: name.to_owned(),
        version,
        kind: ModuleKind::Action,
        env: vec![("TOKEN".to_owned(), "planted".to_owned())],
        service: None,
    };
    Release::seal(&code, spec, &crate::keys::generate()).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("a/store")).unwrap();
    (dir, store)
}

#[test]
fn releases_survive_and_are_private() {
    let (_dir, store) = store();
    let (mut one, package) = release("one", 3);
    one.service = Some(Service { port: 80, restart: Some("never".to_owned()) });
    one.kind = ModuleKind::TlsService;
    store.register(&one, &package).unwrap();
    let again = Store::open(store.dir()).unwrap();
    let entries = again.entries().unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].release.as_ref(), Some(&one));
    assert_eq!(again.package(&one).unwrap(), package);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.dir().to_owned()), 0o700);
    assert_eq!(mode(store.record_path("one")), 0o600);
    assert_eq!(mode(store.package_path(&hex(&one.package))), 0o600);
    fs::set_permissions(store.record_path("one"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(store.entries().unwrap_err().to_string().contains("chmod 600"));
}

#[test]
fn versions_never_go_back() {
    let (_dir, store) = store();
    let (two, package) = release("a", 2);
    store.register(&two, &package).unwrap();
    // The same again is nothing new.
    store.register(&two, &package).unwrap();
    let (one, old) = release("a", 1);
    assert!(matches!(store.register(&one, &old), Err(StoreError::Older { newest: 2, .. })));
    let (other, others) = release("a", 2);
    assert!(matches!(store.register(&other, &others), Err(StoreError::SameVersion { version: 2, .. })));
    assert_eq!(store.entry("a").unwrap().unwrap().release, Some(two.clone()));

    let (three, package) = release("a", 3);
    store.register(&three, &package).unwrap();
    assert_eq!(store.entry("a").unwrap().unwrap().obsolete, [hex(&two.package)]);
    // A removal makes no room for what was there before.
    store.forget("a").unwrap();
    let entry = store.entry("a").unwrap().unwrap();
    assert_eq!((entry.version, &entry.release), (3, &None));
    assert_eq!(entry.obsolete, [hex(&two.package), hex(&three.package)]);
    assert!(matches!(store.register(&two, &package), Err(StoreError::Older { newest: 3, .. })));
    assert!(matches!(store.register(&three, &package), Err(StoreError::SameVersion { .. })));
    store.cleared("a", &entry.obsolete).unwrap();
    assert!(!store.package_path(&hex(&two.package)).exists());
    let (four, package) = release("a", 4);
    store.register(&four, &package).unwrap();
    assert_eq!(store.entry("a").unwrap().unwrap().obsolete, Vec::<String>::new());
}

#[test]
fn nothing_of_a_removed_release_is_left() {
    let (_dir, store) = store();
    let (one, package) = release("a", 1);
    let record = || String::from_utf8(fs::read(store.record_path("a")).unwrap()).unwrap();
    store.register(&one, &package).unwrap();
    assert!(record().contains("planted") && record().contains(&hex(&one.key)));
    store.forget("a").unwrap();
    assert!(!record().contains("planted") && !record().contains(&hex(&one.key)));
}

#[test]
fn manifests_never_go_back() {
    let (_dir, store) = store();
    let owner = crate::keys::generate();
    let manifest = |version, owner: &nacre_session::SigningKey| {
        let manifest = Manifest {
            version,
            owner: owner.verifying_key(),
            compilers: vec![owner.verifying_key()],
            brokers: Vec::new(),
            mode: nacre_attest::manifest::Mode::Sealed,
            name: "a".to_owned(),
            migration: None,
        };
        manifest.sign(owner).unwrap()
    };
    assert_eq!(store.manifest().unwrap(), None);
    for version in [1, 2, 2] {
        store.set_manifest(&manifest(version, &owner)).unwrap();
    }
    let older = store.set_manifest(&manifest(1, &owner));
    assert!(matches!(older, Err(StoreError::OlderManifest { newest: 2 })));
    let renamed = manifest(2, &owner).verify().unwrap();
    let renamed = Manifest { name: "b".to_owned(), ..renamed }.sign(&owner).unwrap();
    let twin = store.set_manifest(&renamed);
    assert!(matches!(twin, Err(StoreError::SameManifestVersion { version: 2 })));
    let other = store.set_manifest(&manifest(3, &crate::keys::generate()));
    assert!(matches!(other, Err(StoreError::OtherOwner)));
    let mut unsigned = manifest(4, &owner);
    unsigned.signature[0] ^= 1;
    assert!(matches!(store.set_manifest(&unsigned), Err(StoreError::Manifest(_))));
    assert_eq!(store.manifest().unwrap().unwrap().1.version, 2);
}

#[test]
fn damaged_records_are_named() {
    let (_dir, store) = store();
    let (one, package) = release("a", 1);
    store.register(&one, &package).unwrap();
    let path = store.record_path("a");
    let good = fs::read_to_string(&path).unwrap();
    for bad in ["{", "{}", &good.replace("\"action\"", "\"x\""), &good.replace(&hex(&one.key), "00")] {
        files::replace(&path, bad.as_bytes()).unwrap();
        let error = store.entries().unwrap_err();
        assert!(matches!(&error, StoreError::Damaged(named) if *named == path), "{error}");
        // Nothing is registered over what can't be read: its version is not known.
        assert!(store.register(&release("a", 9).0, &package).is_err());
    }
}

#[test]
fn writers_take_turns() {
    let (_dir, store) = store();
    let register = |version| store.register(&release("a", version).0, b"package").is_ok();
    let register = &register;
    std::thread::scope(|scope| {
        for version in 1..=8 {
            scope.spawn(move || register(version));
        }
    });
    // Whatever the order: the newest won, and each one it replaced is known to be obsolete.
    let entry = store.entry("a").unwrap().unwrap();
    assert_eq!(entry.version, 8);
    let packages = fs::read_dir(store.dir().join("packages")).unwrap().count();
    assert_eq!(packages, entry.obsolete.len() + 1);
}

#[test]
fn the_audit_log_is_appended_to() {
    let (_dir, store) = store();
    store.audit("rejected", serde_json::json!({ "why": "a\nb" })).unwrap();
    Store::open(store.dir()).unwrap().audit("released", serde_json::json!({})).unwrap();
    let text = fs::read_to_string(store.dir().join("audit.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["event"], &lines[1]["event"]), (&"rejected".into(), &"released".into()));
    assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
}
