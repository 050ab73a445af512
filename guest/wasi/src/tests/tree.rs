//! Import and export.

use std::{string::String, vec, vec::Vec};

use crate::*;

fn export(fs: &Fs, path: &str) -> Vec<(String, String, u64)> {
    let mut cursor = fs.export(path).unwrap();
    let mut list = Vec::new();
    while let Some(entry) = cursor.next(fs).unwrap() {
        let kind = match entry.kind {
            EntryKind::File { size, executable, .. } => std::format!("file {size} {executable}"),
            EntryKind::Dir => "dir".into(),
            EntryKind::Symlink { target } => std::format!("-> {target}"),
        };
        list.push((entry.path.into(), kind, entry.mtime));
    }
    list
}

#[test]
fn what_is_imported_is_exported() {
    let mut fs = Fs::new(0).unwrap();
    fs.create_dir_all("/a/b/c", 10).unwrap();
    fs.create_dir_all("a/b", 11).unwrap();
    let file = fs.create_file("/a/prog", 20, true).unwrap();
    fs.append(file, b"hello ").unwrap();
    fs.append(file, b"world").unwrap();
    fs.symlink("a/link", "/elsewhere", 30).unwrap();
    let empty = fs.create_file("a/b/empty", 40, false).unwrap();
    fs.set_mtime("a", 50).unwrap();
    let entry = |path: &str, kind: &str, mtime| (path.into(), kind.into(), mtime);
    let tree = [
        entry("b", "dir", 40),
        entry("b/c", "dir", 10),
        entry("b/empty", "file 0 false", 40),
        entry("prog", "file 11 true", 20),
        entry("link", "-> /elsewhere", 30),
    ];
    assert_eq!(export(&fs, "/a"), tree);
    assert_eq!(export(&fs, "/").len(), 6);
    assert_eq!(export(&fs, "")[0], entry("a", "dir", 50));
    assert_eq!(fs.next_block(file, 0), Ok(Some((0, &b"hello world"[..]))));
    assert_eq!((fs.next_block(file, 1 << 20), fs.next_block(empty, 0)), (Ok(None), Ok(None)));
    let mut buf = [0; 20];
    assert_eq!((fs.read_file(file, 6, &mut buf), &buf[..5]), (Ok(5), &b"world"[..]));
    assert_eq!((fs.file_at("a/prog"), fs.file_size(file)), (Ok(file), Ok(11)));
}

#[test]
fn bad_imports_are_errors() {
    let mut fs = Fs::new(0).unwrap();
    let file = fs.create_file("f", 0, false).unwrap();
    assert_eq!(fs.create_dir_all("f/x", 0), Err(Errno::Notdir));
    assert_eq!(fs.create_dir_all("a/../../x", 0), Err(Errno::Perm));
    assert_eq!(fs.create_dir_all(&"x/".repeat(5000), 0), Err(Errno::Nametoolong));
    assert_eq!(fs.create_file("no/f", 0, false), Err(Errno::Noent));
    assert_eq!(fs.create_file("/", 0, false), Err(Errno::Isdir));
    assert_eq!(fs.export("f").map(|_| ()), Err(Errno::Notdir));
    assert_eq!(fs.file_at("/"), Err(Errno::Isdir));
    fs.set_limit(10);
    assert_eq!((fs.append(file, &[0; 10]), fs.append(file, &[0])), (Ok(()), Err(Errno::Nospc)));
    // A handle of a file that is gone is refused, also when its slot is used again.
    let mut ctx = Builder::new()
        .preopens(vec![("/".into(), "/".into())])
        .build(super::TestSystem::default(), fs)
        .unwrap();
    let mut memory = vec![b'f'; 100];
    assert_eq!(
        path_unlink_file(&mut Call { ctx: &mut ctx, memory: &mut memory }, 3, 0, 1),
        Ok(Errno::Success)
    );
    let (_, mut fs) = ctx.into_parts();
    assert_eq!(fs.append(file, b"x"), Err(Errno::Badf));
    fs.create_file("g", 0, false).unwrap();
    assert_eq!((fs.append(file, b"x"), fs.file_size(file)), (Err(Errno::Badf), Err(Errno::Badf)));
}

#[test]
fn sparse_files_export_what_is_stored() {
    let mut fs = Fs::new(0).unwrap();
    let file = fs.create_file("f", 0, false).unwrap();
    let id = fs.open_dir("/").unwrap();
    let node = fs.lookup(id, "f", false).unwrap();
    for block in [5_000_000_u64, 3, 700] {
        fs.write(node, block * 65536 + 10, b"x", 0).unwrap();
    }
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Some((offset, bytes)) = fs.next_block(file, at).unwrap() {
        assert!(bytes.len() == 11 && bytes[10] == b'x');
        blocks.push(offset / 65536);
        at = offset + BLOCK_BYTES as u64;
    }
    assert_eq!(blocks, [3, 700, 5_000_000]);
    assert!(fs.allocated_bytes() <= 3 * 65536);
}

#[test]
fn an_export_tolerates_changes() {
    let mut fs = Fs::new(0).unwrap();
    fs.create_dir_all("d", 0).unwrap();
    fs.create_file("d/x", 0, false).unwrap();
    fs.create_file("z", 0, false).unwrap();
    let mut cursor = fs.export("/").unwrap();
    assert_eq!(cursor.next(&fs).unwrap().map(|e| e.path), Some("d"));
    let root = fs.open_dir("/").unwrap();
    fs.unlink(root, "d/x", 0).unwrap();
    fs.rmdir(root, "d", 0).unwrap();
    fs.create_dir_all("other", 0).unwrap();
    assert_eq!(cursor.next(&fs).unwrap().map(|e| e.path), Some("z"));
    assert_eq!(cursor.next(&fs).unwrap().map(|e| e.path), Some("other"));
    assert_eq!(cursor.next(&fs).unwrap(), None);
}
