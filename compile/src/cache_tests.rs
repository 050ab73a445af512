//! Tests of the disk cache: damage, mix-ups, concurrent writers, eviction, unusable directories.

use std::thread;

use nacre_engine::Header;

use super::*;

fn program(source: &[u8], payload_bytes: usize) -> Program {
    let payload = vec![7; payload_bytes];
    let header = Header::describe(source, &payload, CpuTarget::X86_64V3, true, 0).unwrap();
    Program::from_payload(header, &payload).unwrap()
}

fn key(source: &[u8]) -> Key {
    Key::new(source, CpuTarget::X86_64V3)
}

fn cache(cap_bytes: u64) -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("made/when/needed"), cap_bytes);
    (dir, cache)
}

fn files(cache: &Cache) -> Vec<String> {
    let names =
        fs::read_dir(cache.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn what_was_put_is_got() {
    let (_dir, cache) = cache(DEFAULT_CAP_BYTES);
    assert_eq!(cache.get(&key(b"a")), None);
    let program = program(b"a", 1000);
    cache.put(&key(b"a"), &program).unwrap();
    assert_eq!(cache.get(&key(b"a")), Some(program));
    assert_eq!(cache.get(&key(b"b")), None);
    assert_eq!(files(&cache).len(), 1, "no temporary file stays");
}

#[test]
fn the_key_holds_source_and_target() {
    let native = |bits| Key::new(b"a", CpuTarget::Native(CpuFeatures::from_bits(bits).unwrap()));
    let v3_bits = CpuFeatures::X86_64_V3.bits();
    let keys = [key(b"a"), key(b"b"), native(1), native(3), native(v3_bits)];
    for (n, a) in keys.iter().enumerate() {
        for b in &keys[n + 1..] {
            assert_ne!(a.file_name(), b.file_name());
        }
    }
}

#[test]
fn a_damaged_entry_is_removed_and_replaced() {
    let (_dir, cache) = cache(DEFAULT_CAP_BYTES);
    let (key, program) = (key(b"a"), program(b"a", 1000));
    let path = cache.dir().join(key.file_name());
    let damages: [fn(&mut Vec<u8>); 5] = [
        |file| *file.last_mut().unwrap() ^= 1,
        |file| file[40] ^= 1,
        |file| file.truncate(100),
        |file| file.truncate(4500),
        |file| file.clear(),
    ];
    for damage in damages {
        cache.put(&key, &program).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        assert_eq!(cache.get(&key), None);
        assert!(!path.exists());
    }
    cache.put(&key, &program).unwrap();
    assert_eq!(cache.get(&key), Some(program));
}

#[test]
fn an_entry_of_another_program_is_not_taken() {
    let (_dir, cache) = cache(DEFAULT_CAP_BYTES);
    cache.put(&key(b"a"), &program(b"a", 10)).unwrap();
    fs::rename(cache.dir().join(key(b"a").file_name()), cache.dir().join(key(b"b").file_name())).unwrap();
    assert_eq!(cache.get(&key(b"b")), None);
}

#[test]
fn the_least_recently_used_go_first() {
    let one = program(b"a", 10_000).file().len() as u64;
    let (_dir, cache) = cache(one * 2 + 100);
    let age = |source: &[u8], seconds| {
        let file = File::open(cache.dir().join(key(source).file_name())).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    cache.put(&key(b"a"), &program(b"a", 10_000)).unwrap();
    cache.put(&key(b"b"), &program(b"b", 10_000)).unwrap();
    age(b"a", 3000);
    age(b"b", 2000);
    // Used again, "a" becomes the newer of the two.
    assert!(cache.get(&key(b"a")).is_some());
    cache.put(&key(b"c"), &program(b"c", 10_000)).unwrap();
    assert!(cache.get(&key(b"a")).is_some());
    assert!(cache.get(&key(b"b")).is_none());
    assert!(cache.get(&key(b"c")).is_some());
}

#[test]
fn an_entry_larger_than_the_cap_still_serves() {
    let (_dir, cache) = cache(100);
    cache.put(&key(b"a"), &program(b"a", 10_000)).unwrap();
    cache.put(&key(b"b"), &program(b"b", 10_000)).unwrap();
    assert!(cache.get(&key(b"a")).is_none());
    assert!(cache.get(&key(b"b")).is_some());
}

#[test]
fn only_old_temporary_files_are_removed() {
    let (_dir, cache) = cache(DEFAULT_CAP_BYTES);
    cache.put(&key(b"a"), &program(b"a", 10)).unwrap();
    for (name, hours) in [(".new-old", 2), (".new-young", 0), ("unrelated.txt", 2)] {
        let file = File::create(cache.dir().join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3700 * hours)).unwrap();
    }
    cache.put(&key(b"b"), &program(b"b", 10)).unwrap();
    let names = files(&cache);
    assert!(!names.contains(&".new-old".to_owned()));
    assert!(names.contains(&".new-young".to_owned()) && names.contains(&"unrelated.txt".to_owned()));
}

#[test]
fn concurrent_writers_readers_and_eviction_never_show_a_torn_entry() {
    let (_dir, cache) = cache(120_000);
    thread::scope(|scope| {
        for n in 0u8..4 {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0u8..30 {
                    let source = [(n + round) % 6];
                    let program = program(&source, 20_000 + usize::from(source[0]));
                    // A writer's directory scan may meet a file another one just removed; that is no error either.
                    cache.put(&key(&source), &program).unwrap();
                    if let Some(found) = cache.get(&key(&source)) {
                        assert_eq!(found, program);
                    }
                }
            });
        }
    });
    assert!(files(&cache).iter().all(|name| name.ends_with(".cwasm")));
}

#[test]
fn an_unusable_directory_is_an_error_of_put_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let cache = Cache::new(file.join("cache"), DEFAULT_CAP_BYTES);
    assert_eq!(cache.get(&key(b"a")), None);
    assert!(cache.put(&key(b"a"), &program(b"a", 10)).is_err());
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    write_atomically(&path, b"one", 0o600).unwrap();
    assert!(write_atomically(&dir.path().join("missing/out"), b"two", 0o600).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"one");
}
