//! Paths: opening, making, linking, renaming, removing, and that nothing escapes.

use std::{format, string::String};

use super::*;
use crate::abi::{filetype, oflags, rights};

#[test]
fn nothing_escapes_the_directory() {
    let mut p = Program::new();
    p.ctx.fs.create_dir_all("/secret", 1).unwrap();
    p.ctx.fs.symlink("/data/absolute", "/secret", 1).unwrap();
    p.ctx.fs.symlink("/data/up", "../secret", 1).unwrap();
    assert_eq!(p.mkdir("d"), Errno::Success);
    assert_eq!(p.symlink("../..", "d/up2"), Errno::Success);
    for path in [
        "/data/d",
        "..",
        "../data",
        "d/../../data",
        "d/../..",
        "absolute/x",
        "up",
        "up/x",
        "d/up2",
        "d/up2/data",
    ] {
        assert_eq!(p.stat(path, 1), Err(Errno::Perm), "{path}");
        assert_eq!(p.open_with(path, 1, 0, rights::FD_READ, 0), Err(Errno::Perm), "{path}");
    }
    // The same from a directory opened beneath: its own parent is out of reach.
    let d = p.open_with("d", 0, oflags::DIRECTORY, 0, 0).unwrap();
    let (path, len) = p.path1("..");
    assert_eq!(path_filestat_get(&mut p.call(), d, 0, path, len, OUT), Ok(Errno::Perm));
    // Links are not followed in the last place unless asked, and inner ones may go up within.
    assert_eq!(p.stat("up", 0).unwrap().0, filetype::SYMBOLIC_LINK);
    assert_eq!(p.symlink("../d/../d", "d/within"), Errno::Success);
    assert_eq!(p.stat("d/within/within/./..//d", 1).unwrap().0, filetype::DIRECTORY);
    assert_eq!(p.symlink("/anything", "x"), Errno::Perm);
}

#[test]
fn strange_paths() {
    let mut p = Program::new();
    p.create("f");
    p.mkdir("d");
    let long = "x".repeat(256);
    for (path, error) in [
        ("", Errno::Noent),
        ("f\0", Errno::Inval),
        ("f/", Errno::Notdir),
        ("f/.", Errno::Notdir),
        ("f/..", Errno::Notdir),
        ("nothing/f", Errno::Noent),
        (&long, Errno::Nametoolong),
        (&"d/".repeat(3000), Errno::Nametoolong),
    ] {
        assert_eq!(p.stat(path, 0), Err(error), "{path:?}");
        assert_eq!(p.open_with(path, 0, 0, 0, 0), Err(error), "{path:?}");
    }
    assert_eq!(p.mkdir(&"y".repeat(255)), Errno::Success);
    assert!(p.stat("d///", 0).is_ok() && p.stat(".//d/./../d", 0).is_ok());
    let (path, len) = p.put(1024, b"\xff\xfe");
    assert_eq!(path_create_directory(&mut p.call(), DIR, path, len), Ok(Errno::Ilseq));
    assert_eq!(path_create_directory(&mut p.call(), DIR, 65530, 100), Ok(Errno::Fault));
    assert_eq!(path_create_directory(&mut p.call(), 0, path, 1), Ok(Errno::Badf));
    // A descriptor that is no directory: NOTDIR for an open, BADF for the others, as under wasmtime.
    let fd = p.create("f");
    let (path, len) = p.path1("x");
    assert_eq!(path_open(&mut p.call(), fd, 0, path, len, 0, 0, 0, 0, OUT), Ok(Errno::Notdir));
    assert_eq!(path_open(&mut p.call(), 0, 0, path, len, 0, 0, 0, 0, OUT), Ok(Errno::Badf));
    assert_eq!(path_unlink_file(&mut p.call(), fd, path, len), Ok(Errno::Badf));
    // Unknown flags.
    assert_eq!(path_open(&mut p.call(), DIR, 2, path, len, 0, 0, 0, 0, OUT), Ok(Errno::Inval));
    assert_eq!(path_open(&mut p.call(), DIR, 0, path, len, 16, 0, 0, 0, OUT), Ok(Errno::Inval));
    assert_eq!(path_open(&mut p.call(), DIR, 0, path, len, 0, 0, 0, 32, OUT), Ok(Errno::Inval));
    // A result pointer outside memory: nothing was created.
    assert_eq!(path_open(&mut p.call(), DIR, 0, path, len, 1, 0, 0, 0, 65534), Ok(Errno::Fault));
    assert_eq!(p.stat("x", 0), Err(Errno::Noent));
}

#[test]
fn opening() {
    let mut p = Program::new();
    let rw = rights::FD_READ | rights::FD_WRITE;
    assert_eq!(p.open_with("f", 0, 0, rw, 0), Err(Errno::Noent));
    assert_eq!(p.open_with("f/", 0, oflags::CREAT, rw, 0), Err(Errno::Isdir));
    let fd = p.open_with("f", 0, oflags::CREAT | oflags::EXCL, rw, 0).unwrap();
    p.write(fd, b"abc").unwrap();
    assert_eq!(p.open_with("f", 0, oflags::CREAT | oflags::EXCL, rw, 0), Err(Errno::Exist));
    assert_eq!(p.open_with("f", 0, oflags::DIRECTORY, 0, 0), Err(Errno::Notdir));
    assert_eq!(p.open_with("f", 0, oflags::DIRECTORY | oflags::CREAT, 0, 0), Err(Errno::Inval));
    assert!(p.open_with("f", 0, oflags::TRUNC, rw, 0).is_ok());
    assert_eq!(p.stat("f", 0).unwrap().2, 0);
    p.mkdir("d");
    assert_eq!(p.open_with("d", 0, 0, rw, 0), Err(Errno::Isdir));
    assert_eq!(p.open_with("d", 0, oflags::CREAT, 0, 0), Err(Errno::Isdir));
    assert_eq!(p.open_with("d", 0, oflags::TRUNC, 0, 0), Err(Errno::Isdir));
    assert_eq!(p.open_with("d", 0, oflags::CREAT | oflags::EXCL, 0, 0), Err(Errno::Exist));
    assert!(p.open_with("d/", 0, 0, rights::FD_READ, 0).is_ok());
    // Links: followed, not followed, dangling, created through.
    p.symlink("f", "l");
    assert_eq!(p.open_with("l", 0, 0, rw, 0), Err(Errno::Loop));
    assert!(p.open_with("l", 1, 0, rw, 0).is_ok());
    p.symlink("new", "dangling");
    assert_eq!(p.open_with("dangling", 1, 0, rw, 0), Err(Errno::Noent));
    assert_eq!(p.open_with("dangling", 1, oflags::CREAT | oflags::EXCL, rw, 0), Err(Errno::Exist));
    assert!(p.open_with("dangling", 1, oflags::CREAT, rw, 0).is_ok());
    assert_eq!(p.stat("new", 0).unwrap().0, filetype::REGULAR_FILE);
    // Loops, of one and of a long chain; a chain of 40 still works.
    p.symlink("self", "self");
    assert_eq!(p.stat("self", 1), Err(Errno::Loop));
    assert_eq!(p.stat("self/x", 0), Err(Errno::Loop));
    for i in 0..41 {
        let next = if i == 0 { "f".into() } else { format!("c{}", i - 1) };
        p.symlink(&next, &format!("c{i}"));
    }
    assert!(p.stat("c39", 1).is_ok());
    assert_eq!(p.stat("c40", 1), Err(Errno::Loop));
    // The same with something left to do after each link.
    p.symlink(".", "dot");
    assert!(p.stat(&format!("{}f", "dot/".repeat(40)), 1).is_ok());
    assert_eq!(p.stat(&format!("{}f", "dot/".repeat(41)), 1), Err(Errno::Loop));
}

#[test]
fn readlink_cuts() {
    let mut p = Program::new();
    p.symlink("target", "l");
    let (path, len) = p.path1("l");
    for (room, got) in [(100, &b"target"[..]), (4, b"targ"), (0, b"")] {
        p.memory[500..510].fill(0);
        assert_eq!(path_readlink(&mut p.call(), DIR, path, len, 500, room, OUT), Ok(Errno::Success));
        assert_eq!((p.u32_at(OUT) as usize, &p.memory[500..500 + got.len()]), (got.len(), got));
        assert_eq!(p.memory[500 + got.len()], 0);
    }
    assert_eq!(path_readlink(&mut p.call(), DIR, path, len, 65533, 100, OUT), Ok(Errno::Fault));
    let (path, len) = p.path1(".");
    assert_eq!(path_readlink(&mut p.call(), DIR, path, len, 500, 9, OUT), Ok(Errno::Inval));
}

#[test]
fn making_and_removing() {
    let mut p = Program::new();
    p.create("f");
    assert_eq!((p.mkdir("d"), p.mkdir("d"), p.mkdir("d/")), (Errno::Success, Errno::Exist, Errno::Exist));
    assert_eq!((p.mkdir("d/e/"), p.mkdir("f"), p.mkdir("f/")), (Errno::Success, Errno::Exist, Errno::Notdir));
    assert_eq!((p.mkdir("."), p.mkdir("d/.."), p.mkdir("x/y")), (Errno::Exist, Errno::Exist, Errno::Noent));
    assert_eq!(p.stat("d", 0).unwrap().1, 3);
    assert_eq!((p.rmdir("d"), p.rmdir("f"), p.rmdir("f/")), (Errno::Notempty, Errno::Notdir, Errno::Notdir));
    assert_eq!((p.rmdir("."), p.rmdir("d/.."), p.rmdir("x")), (Errno::Inval, Errno::Notempty, Errno::Noent));
    assert_eq!((p.unlink("d"), p.unlink("d/"), p.unlink("f/")), (Errno::Isdir, Errno::Isdir, Errno::Notdir));
    assert_eq!((p.unlink("x"), p.unlink("."), p.unlink("f")), (Errno::Noent, Errno::Isdir, Errno::Success));
    // A removed directory that is open is empty and takes nothing new.
    let e = p.open_with("d/e", 0, oflags::DIRECTORY, 0, 0).unwrap();
    assert_eq!(
        (p.rmdir("d/e"), p.stat("d", 0).unwrap().1, p.rmdir("d")),
        (Errno::Success, 2, Errno::Success)
    );
    let (path, len) = p.path1("new");
    assert_eq!(path_create_directory(&mut p.call(), e, path, len), Ok(Errno::Noent));
    p.create("g");
    let ((old, n), (new, m)) = (p.path1("g"), p.path2("h"));
    assert_eq!(path_rename(&mut p.call(), DIR, old, n, e, new, m), Ok(Errno::Noent));
    assert_eq!(p.readdir(e, 0, 200).unwrap().0.len(), 2);
    // Links are removed themselves.
    p.mkdir("d");
    p.symlink("d", "l");
    assert_eq!((p.rmdir("l"), p.rmdir("l/"), p.unlink("l/")), (Errno::Notdir, Errno::Notdir, Errno::Notdir));
    assert_eq!((p.unlink("l"), p.stat("d", 0).is_ok()), (Errno::Success, true));
}

#[test]
fn symlinks_and_hard_links() {
    let mut p = Program::new();
    let fd = p.create("f");
    p.write(fd, b"data").unwrap();
    assert_eq!(
        (p.symlink("x", "l/"), p.symlink("", "l"), p.symlink("a\0", "l")),
        (Errno::Noent, Errno::Noent, Errno::Inval)
    );
    assert_eq!((p.symlink("x", "f"), p.symlink("x", "f/")), (Errno::Exist, Errno::Notdir));
    assert_eq!(p.symlink(&"t".repeat(4096), "l"), Errno::Nametoolong);
    assert_eq!((p.link("f", 0, "g"), p.link("f", 0, "g")), (Errno::Success, Errno::Exist));
    assert_eq!(
        (p.link("f", 0, "h/"), p.link("x", 0, "h"), p.mkdir("d")),
        (Errno::Noent, Errno::Noent, Errno::Success)
    );
    assert_eq!((p.link("d", 0, "h"), p.link("f", 2, "h")), (Errno::Perm, Errno::Inval));
    let (stat_f, stat_g) = (p.stat("f", 0).unwrap(), p.stat("g", 0).unwrap());
    assert_eq!((stat_f, stat_f.1, stat_f.2), (stat_g, 2, 4));
    p.symlink("f", "s");
    assert_eq!((p.link("s", 0, "s0"), p.link("s", 1, "s1")), (Errno::Success, Errno::Success));
    assert_eq!((p.stat("s0", 0).unwrap().0, p.stat("s1", 0).unwrap().3), (filetype::SYMBOLIC_LINK, stat_f.3));
    // The contents live until the last name and the last descriptor are gone.
    for name in ["f", "g", "s1"] {
        assert_eq!(p.unlink(name), Errno::Success);
    }
    p.seek(fd, 0, 0).unwrap();
    assert_eq!(p.read(fd, 10).unwrap(), b"data");
    assert_eq!(fd_filestat_get(&mut p.call(), fd, OUT), Ok(Errno::Success));
    assert_eq!(p.u64_at(OUT + 24), 0);
    p.close(fd);
    assert_eq!(p.ctx.fs.allocated_bytes(), 0);
}

#[test]
fn renaming() {
    let mut p = Program::new();
    let fd = p.create("f");
    p.write(fd, b"f").unwrap();
    p.create("g");
    for d in ["d", "d/e", "empty", "full", "full/x"] {
        p.mkdir(d);
    }
    let errors = [
        ("x", "y", Errno::Noent),
        ("f", "empty", Errno::Isdir),
        ("f", "new/", Errno::Notdir),
        ("f/", "new", Errno::Notdir),
        ("d", "f", Errno::Notdir),
        ("d", "full", Errno::Notempty),
        ("d", "d/e/z", Errno::Inval),
        ("d", "d/z", Errno::Inval),
        ("d/e", "d", Errno::Notempty),
        (".", "z", Errno::Busy),
        ("d", ".", Errno::Busy),
        ("d", "d/..", Errno::Busy),
        ("f", "x/y", Errno::Noent),
        ("f", "../f", Errno::Perm),
    ];
    for (old, new, error) in errors {
        assert_eq!(p.rename(old, new), error, "{old} {new}");
    }
    assert_eq!((p.rename("f", "f"), p.rename("d", "d")), (Errno::Success, Errno::Success));
    assert_eq!(
        (p.rename("f", "g"), p.stat("f", 0), p.stat("g", 0).unwrap().2),
        (Errno::Success, Err(Errno::Noent), 1)
    );
    assert_eq!((p.rename("d/e", "empty/"), p.stat("d", 0).unwrap().1), (Errno::Success, 2));
    assert_eq!((p.rename("empty", "d/e2"), p.stat("d", 0).unwrap().1), (Errno::Success, 3));
    assert_eq!((p.rename("d", "full/x"), p.stat("full/x/e2", 0).is_ok()), (Errno::Success, true));
    assert_eq!(p.stat("full/x/e2/../../../g", 0).unwrap().2, 1);
    // Two names of one file: nothing happens.
    p.link("g", 0, "h");
    assert_eq!((p.rename("g", "h"), p.stat("g", 0).unwrap().1), (Errno::Success, 2));
    // A link is renamed itself.
    p.symlink("g", "s");
    assert_eq!((p.rename("s", "t"), p.stat("t", 0).unwrap().0), (Errno::Success, filetype::SYMBOLIC_LINK));
}

#[test]
fn listing_survives_changes() {
    let mut p = Program::new();
    for i in 0..100 {
        let fd = p.create(&format!("file{i}"));
        p.close(fd);
    }
    let dir = p.open_with(".", 0, oflags::DIRECTORY, 0, 0).unwrap();
    let (first, full) = p.readdir(dir, 0, 400).unwrap();
    assert!(full && first[0].1 == "." && first[1].1 == ".." && first.len() > 5);
    let mut seen: Vec<String> = first.iter().map(|(_, name)| name.clone()).collect();
    let mut cookie = first.last().unwrap().0;
    // Everything listed goes away, half of the rest too, and something new comes.
    for i in 0..80 {
        p.unlink(&format!("file{i}"));
    }
    p.create("late");
    loop {
        let (list, full) = p.readdir(dir, cookie, 100).unwrap();
        seen.extend(list.iter().map(|(_, name)| name.clone()));
        if !full {
            break;
        }
        cookie = list.last().unwrap().0;
    }
    for i in 80..100 {
        assert_eq!(seen.iter().filter(|name| **name == format!("file{i}")).count(), 1);
    }
    assert!(seen.contains(&"late".into()));
    assert_eq!(p.readdir(dir, u64::MAX, 100).unwrap(), (vec![], false));
    assert_eq!(p.readdir(dir, 0, 0).unwrap(), (vec![], true));
    assert_eq!(p.readdir(dir, 0, 40_000), Err(Errno::Fault));
    // A buffer that ends inside an entry is full to its last byte.
    let (list, full) = p.readdir(dir, 0, 30).unwrap();
    assert!(full && list.len() == 1);
}
